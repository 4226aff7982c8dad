//! Exact search over down-sets: is there an order whose peak is within a budget?
//!
//! Depth first, towards the states with least in memory. A step from a state is one ready operator that fits into the
//! budget, then the [safe closure](super::closure). What makes it end:
//! - A down-set is looked at once. All that were reached and left again have no way on within the budget.
//! - A down-set is left at once if a cut shows that there is no way on: the least that one of the critical operators
//!   (see [`Cuts`]) needs after any down-set that has this one.
//! - From a [valley](super::valley) there is no way back: if it has no way on, neither has what lies before it.
//!
//! If there is no such order, the least that was beyond the budget is a lower bound on the peak: with any budget below
//! it the search would have been the same.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::closure::close;
use super::valley::Valleys;
use crate::bound::Cuts;
use crate::problem::Problem;
use crate::state::State;

/// Critical operators that are looked at per down-set.
const CRITICAL: usize = 2;

/// Whether there is an order within a budget.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// This one.
    Yes(Vec<usize>),
    /// No; every order has at least this peak.
    No(u64),
    /// The work was used up.
    Unknown,
}

/// What a step of a run costs, compared with a look at a ready operator.
pub(crate) const MOVE: u64 = 4;

/// How much work may still be done.
pub(crate) struct Work {
    /// Down-sets that may be reached.
    pub states: u64,
    /// Looks at operators and at edges of networks; steps of a run count [`MOVE`].
    pub steps: u64,
}

/// A state on the way, with the operators that have not been tried from it.
struct Frame {
    /// Operators that have run.
    steps: usize,
    live: u64,
    open: Vec<u32>,
}

/// Looks for an order whose peak is at most `budget`, through at most `most` down-sets.
pub(crate) fn decide(
    problem: &Problem,
    mut cuts: Option<&mut Cuts<'_>>,
    budget: u64,
    most: u64,
    work: &mut Work,
) -> Answer {
    let mut state = State::new(problem);
    let mut valleys = Valleys::new(problem.len());
    let mut frames: Vec<Frame> = Vec::new();
    let mut seen = HashSet::new();
    let mut beyond = u64::MAX;
    loop {
        let mut used = close(&mut state, budget, work.steps);
        if state.is_complete() {
            return Answer::Yes(state.log.iter().map(|&v| v as usize).collect());
        }
        if seen.insert(state.hash) {
            work.states = work.states.saturating_sub(1);
            let needs = cuts.as_deref_mut().map_or(0, |cuts| needed(cuts, &state, budget, &mut used));
            if needs > budget {
                beyond = beyond.min(needs);
            } else {
                leave_behind(&mut frames, &state, &mut valleys, &mut used);
                used += state.ready.len() as u64;
                frames.push(frame(&state, budget, &mut beyond));
            }
        }
        work.steps = work.steps.saturating_sub(used + MOVE * std::mem::take(&mut state.moves));
        if seen.len() as u64 > most || work.steps == 0 || work.states == 0 {
            return Answer::Unknown;
        }
        let next = loop {
            let Some(frame) = frames.last_mut() else { return Answer::No(beyond) };
            match frame.open.pop() {
                Some(next) => {
                    state.undo_to(frame.steps);
                    break next;
                }
                None => drop(frames.pop()),
            }
        };
        state.run(next as usize);
    }
}

/// What every order needs that goes on from here, as far as cuts show it.
fn needed(cuts: &mut Cuts<'_>, state: &State<'_>, budget: u64, used: &mut u64) -> u64 {
    let before = cuts.work();
    let critical: Vec<usize> = cuts.critical().filter(|&v| !state.has_run(v)).take(CRITICAL).collect();
    let mut most = 0;
    for v in critical {
        most = most.max(cuts.given(v, |u| state.has_run(u), budget));
        if most > budget {
            break;
        }
    }
    *used += cuts.work() - before;
    most
}

/// Drops the frames from which the state is a valley.
fn leave_behind(frames: &mut Vec<Frame>, state: &State<'_>, valleys: &mut Valleys, used: &mut u64) {
    let before = valleys.work();
    // Where the state is a valley from one frame, it is one from every later frame.
    while let Some(frame) = frames.last() {
        if frame.live < state.live || !valleys.is_least(state, frame.steps) {
            break;
        }
        frames.pop();
    }
    *used += valleys.work() - before;
}

/// The steps from a state; what the others need at least goes to `beyond`.
fn frame(state: &State<'_>, budget: u64, beyond: &mut u64) -> Frame {
    let mut open: Vec<u32> = Vec::with_capacity(state.ready.len());
    for &v in &state.ready {
        let needs = state.needs(v as usize);
        if needs <= budget {
            open.push(v);
        } else {
            *beyond = (*beyond).min(needs);
        }
    }
    // The last one is taken first.
    open.sort_unstable_by_key(|&v| Reverse((state.after(v as usize), v)));
    Frame { steps: state.log.len(), live: state.live, open }
}
