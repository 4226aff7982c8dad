//! Exact search over down-sets, lowest peak first.
//!
//! A step from a down-set is one ready operator, then the safe closure. Steps that need more than the budget wait,
//! sorted by what they need. Once no step within the budget leads to a new down-set, no order has a peak within the
//! budget, and the budget rises to the least that a waiting step needs. So the budget is a lower bound at all times,
//! no work is done twice, and the first complete order is the best. Within a budget the search goes depth first,
//! towards the states with least in memory.
//!
//! A down-set from which no order within the budget goes on is left at once if a cut shows it: the least that an
//! operator of the critical ones (see [`Cuts`]) needs after any down-set that has this one. It waits, too, at that many
//! bytes.

use std::collections::{BTreeMap, HashSet};

use super::closure::close;
use super::tree::Tree;
use crate::bound::Cuts;
use crate::problem::Problem;

/// Instead of an operator: all steps from a node.
const ALL: u32 = u32::MAX;

/// Critical operators that are looked at per down-set.
const CRITICAL: usize = 4;

/// A search that can be continued.
pub(crate) struct Exact<'p> {
    tree: Tree<'p>,
    cuts: Option<Cuts<'p>>,
    budget: u64,
    /// Down-sets that have been reached.
    seen: HashSet<u128>,
    /// Steps within the budget: a node and an operator.
    open: Vec<(u32, u32)>,
    /// Steps beyond it, by what they need.
    waiting: BTreeMap<u64, Vec<(u32, u32)>>,
}

/// How far a search came.
pub(crate) enum Outcome {
    /// The best order.
    Found(Vec<usize>),
    /// No order has a peak below the limit.
    Exhausted,
    /// The work was used up; no peak is lower than this.
    Interrupted(u64),
}

impl<'p> Exact<'p> {
    /// `bound` is a lower bound on the peak, `cuts` where it comes from, if it comes from cuts.
    pub fn new(problem: &'p Problem, cuts: Option<Cuts<'p>>, bound: u64) -> Exact<'p> {
        let mut exact = Exact {
            tree: Tree::new(problem),
            cuts,
            budget: bound,
            seen: HashSet::new(),
            open: Vec::new(),
            waiting: BTreeMap::new(),
        };
        exact.reach(u64::MAX);
        exact
    }

    /// Number of down-sets reached.
    pub fn states(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Goes on looking for an order with a peak below `limit`, until `states` are reached or `steps` used up.
    pub fn advance(&mut self, limit: u64, states: u64, steps: &mut u64) -> Outcome {
        loop {
            if self.tree.state.is_complete() {
                return Outcome::Found(self.tree.order());
            }
            if self.states() >= states || *steps == 0 {
                return Outcome::Interrupted(self.budget);
            }
            let Some((node, v)) = self.open.pop() else {
                match self.waiting.pop_first() {
                    Some((needs, open)) if needs < limit => (self.budget, self.open) = (needs, open),
                    _ => return Outcome::Exhausted,
                }
                continue;
            };
            self.tree.visit(node);
            let used = if v == ALL {
                self.open_all(node, limit)
            } else {
                self.tree.state.run(v as usize);
                self.reach(limit)
            };
            *steps = steps.saturating_sub(used);
        }
    }

    /// Closes the state at which the run stands and, if it is new, notes every step from it; the work done.
    fn reach(&mut self, limit: u64) -> u64 {
        let mut steps = 1 + close(&mut self.tree.state, self.budget);
        if !self.seen.insert(self.tree.state.hash) || self.tree.state.is_complete() {
            return steps;
        }
        let (needs, used) = self.needs();
        steps += used;
        if needs >= limit {
            return steps;
        }
        let node = self.tree.add();
        if needs > self.budget {
            self.waiting.entry(needs).or_default().push((node, ALL));
            return steps;
        }
        steps + self.open_all(node, limit)
    }

    /// What every order needs that goes on from here, as far as cuts show it, and the work done.
    fn needs(&mut self) -> (u64, u64) {
        let (state, Some(cuts)) = (&self.tree.state, &mut self.cuts) else { return (0, 0) };
        let before = cuts.work();
        let critical: Vec<usize> = cuts.critical().filter(|&v| !state.has_run(v)).take(CRITICAL).collect();
        let mut most = 0;
        for v in critical {
            most = most.max(cuts.given(v, |u| state.has_run(u), self.budget));
            if most > self.budget {
                break;
            }
        }
        (most, cuts.work() - before)
    }

    /// Notes every step from a node, at which the run stands; the work done.
    fn open_all(&mut self, node: u32, limit: u64) -> u64 {
        let state = &self.tree.state;
        let mut next: Vec<(u64, u64, u32)> =
            state.ready.iter().map(|&v| (state.needs(v as usize), state.after(v as usize), v)).collect();
        let steps = next.len() as u64;
        next.retain(|&(needs, _, _)| needs < limit);
        // The last one is taken first.
        next.sort_unstable_by_key(|&(_, after, v)| std::cmp::Reverse((after, v)));
        for (needs, _, v) in next {
            if needs <= self.budget {
                self.open.push((node, v));
            } else {
                self.waiting.entry(needs).or_default().push((node, v));
            }
        }
        steps
    }
}
