//! The order of operators with the lowest peak.
//!
//! 1. The [heuristics](crate::heuristics) give an order, [bounds](crate::bound) a limit below which there is none. If
//!    they meet, that is all; on most networks they do.
//! 2. The exact search goes through down-sets from the bound upwards. It is complete, and fast where few down-sets
//!    fit into the budget.
//! 3. Beam searches find better orders where the exact one does not come to an end, and so limit it from above.
//!
//! Limits are counts of work, never of time, so that a result is the same on every machine.

pub(crate) mod beam;
mod closure;
pub(crate) mod exact;
mod tree;

use crate::bound::{self, Cuts};
use crate::heuristics::Heuristic;
use crate::problem::Problem;
use beam::beam;
use exact::{Exact, Outcome};

/// How much work a search may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Down-sets that the exact search may reach.
    pub states: u64,
    /// Looks at an operator, over all searches; about 50 million a second.
    pub steps: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { states: 1_000_000, steps: 200_000_000 }
    }
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The operators in the order found, by number.
    pub order: Vec<usize>,
    /// Its peak in bytes.
    pub peak_bytes: u64,
    /// No order has a lower peak than this, in bytes.
    pub lower_bound_bytes: u64,
    /// Down-sets that the exact search reached; 0 if it was not needed.
    pub states: u64,
}

/// How good an order is for certain.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Certificate {
    /// No order has a lower peak.
    Optimal,
    /// The peak is at most this times the lowest.
    Within(f64),
}

impl Found {
    /// How good the order is for certain.
    pub fn certificate(&self) -> Certificate {
        match self.peak_bytes.cmp(&self.lower_bound_bytes) {
            std::cmp::Ordering::Greater => {
                Certificate::Within(self.peak_bytes as f64 / self.lower_bound_bytes as f64)
            }
            _ => Certificate::Optimal,
        }
    }
}

/// Looks for the order with the lowest peak, within limits. The result is never worse than any of the
/// [heuristics](crate::heuristics), the order of the file among them.
pub fn search(problem: &Problem, limits: &Limits) -> Found {
    let mut found = Found { order: Vec::new(), peak_bytes: u64::MAX, lower_bound_bytes: 0, states: 0 };
    for heuristic in Heuristic::ALL {
        found.offer(problem, heuristic.order(problem));
    }
    found.lower_bound_bytes = bound::operator(problem);
    let mut steps = limits.steps;
    let cuts = affordable_cuts(problem, &found.order, &mut steps);
    if let Some((_, bound)) = &cuts {
        found.lower_bound_bytes = *bound;
    }
    improve(problem, limits, cuts.map(|(cuts, _)| cuts), steps, &mut found);
    found
}

/// Cuts and the bound that they give; none for a problem so large that relating every two operators would take most of
/// the steps.
fn affordable_cuts<'p>(problem: &'p Problem, order: &[usize], steps: &mut u64) -> Option<(Cuts<'p>, u64)> {
    let n = problem.len() as u64;
    let readings: u64 = problem.ops.iter().map(|op| (op.after.len() + op.reads.len()) as u64).sum();
    let related = n * (n / 64 + readings);
    if related > *steps / 2 {
        return None;
    }
    let mut cuts = Cuts::new(problem);
    let bound = cuts.bound(order, *steps / 4);
    *steps = steps.saturating_sub(related / 8 + cuts.work());
    Some((cuts, bound))
}

/// Searches until peak and bound meet or the work is used up.
fn improve(problem: &Problem, limits: &Limits, cuts: Option<Cuts<'_>>, mut steps: u64, found: &mut Found) {
    /// States after which beams take turns with the exact search, and the widths of the beams.
    const TURNS: [(u64, &[usize]); 3] = [(2_000, &[4, 32]), (50_000, &[200]), (u64::MAX, &[1_000])];
    if found.is_optimal() {
        return;
    }
    let mut exact = Exact::new(problem, cuts, found.lower_bound_bytes);
    for (states, widths) in TURNS {
        let outcome = exact.advance(found.peak_bytes, states.min(limits.states), &mut steps);
        found.states = exact.states();
        match outcome {
            Outcome::Found(order) => {
                found.offer(problem, order);
                found.lower_bound_bytes = found.peak_bytes;
            }
            Outcome::Exhausted => found.lower_bound_bytes = found.peak_bytes,
            Outcome::Interrupted(bound) => found.lower_bound_bytes = found.lower_bound_bytes.max(bound),
        }
        for &width in widths {
            bisect(problem, width, &mut steps, found);
        }
        if found.is_optimal() {
            return;
        }
    }
}

/// Beam searches with budgets between bound and peak.
fn bisect(problem: &Problem, width: usize, steps: &mut u64, found: &mut Found) {
    let mut failed = found.lower_bound_bytes.saturating_sub(1);
    // Below a thousandth the gap is not worth another beam.
    while found.peak_bytes > failed + 1 + failed / 1_000 && *steps > 0 {
        let budget = failed + (found.peak_bytes - failed) / 2;
        match beam(problem, budget, width, steps) {
            Some(order) => found.offer(problem, order),
            None => failed = budget,
        }
    }
}

impl Found {
    fn is_optimal(&self) -> bool {
        self.peak_bytes <= self.lower_bound_bytes
    }

    /// Takes an order if it is better.
    fn offer(&mut self, problem: &Problem, order: Vec<usize>) {
        let peak = problem.peak(&order);
        if peak < self.peak_bytes {
            (self.order, self.peak_bytes) = (order, peak);
        }
    }
}
