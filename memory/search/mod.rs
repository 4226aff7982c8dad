//! The order of operators with the lowest peak.
//!
//! 0. What may wait for its reader [does](late); that leaves the lowest peak as it is.
//! 1. The [heuristics](crate::heuristics) give an order, [bounds](crate::bound) a limit below which there is none. If
//!    they meet, that is all; on most networks they do.
//! 2. The exact search decides whether there is an order within a budget, for budgets between bound and peak. Either
//!    answer brings the two closer together.
//! 3. Beam searches find better orders where the exact one does not come to an end.
//!
//! Limits are counts of work, never of time, so that a result is the same on every machine.

pub(crate) mod beam;
mod closure;
pub(crate) mod exact;
pub(crate) mod late;
mod tree;
mod valley;

use std::ops::ControlFlow;

use dmopt_ir::parallel;

use crate::bound::{self, Cuts};
use crate::heuristics::Heuristic;
use crate::problem::Problem;
use beam::beam;
use exact::{Answer, Work, decide};
use late::Late;

/// How much work a search may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Down-sets that exact searches may reach.
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
    /// Down-sets that exact searches reached; 0 if there was no need for one.
    pub states: u64,
}

/// Where no answer is to be had, budgets closer together than this part of them are not worth another search.
const FINE: u64 = 200;

/// Problems of as many operators are ordered by several heuristics at a time.
const WORTH_THREADS: usize = 2_000;

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
    let mut found = start(problem);
    if found.is_optimal() {
        return found;
    }
    let Some(late) = Late::of(problem) else {
        narrow(problem, limits, &mut found);
        return found;
    };
    let mut within = start(&late.problem);
    narrow(&late.problem, limits, &mut within);
    let order = late.original(&within.order);
    found.lower_bound_bytes = found.lower_bound_bytes.max(within.lower_bound_bytes);
    found.states = within.states;
    found.offer(problem, order);
    found
}

/// The best of the heuristics, as far as it takes to meet the bound that costs nothing.
fn start(problem: &Problem) -> Found {
    // The first is the order of the file, which is good enough often.
    let [first, others @ ..] = &Heuristic::ALL;
    let order = first.order(problem);
    let needs = problem.profile(&order);
    let lower_bound_bytes = bound::settled(problem, &needs);
    let peak_bytes = needs.into_iter().max().unwrap_or(0);
    let mut found = Found { order, peak_bytes, lower_bound_bytes, states: 0 };
    if found.is_optimal() {
        return found;
    }
    let make = |heuristic: &Heuristic| {
        let order = heuristic.order(problem);
        (problem.peak(&order), order)
    };
    let take = |_: &Heuristic, (peak, order)| {
        found.take(peak, order);
        if found.is_optimal() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let threads = if problem.len() < WORTH_THREADS { 1 } else { parallel::processors() };
    let _ = parallel::in_order_on(threads, others, make, take);
    found
}

/// Brings bound and peak together, as far as the limits allow.
fn narrow(problem: &Problem, limits: &Limits, found: &mut Found) {
    let mut steps = limits.steps;
    let cuts = affordable_cuts(problem, &found.order, &mut steps);
    if let Some((_, bound)) = &cuts {
        found.lower_bound_bytes = *bound;
    }
    improve(problem, limits, cuts.map(|(cuts, _)| cuts), steps, found);
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

/// A part of a search.
enum Turn {
    /// Exact searches through at most so many down-sets each.
    Plain(u64),
    /// The same at the bound, with cuts: they rule out much where many ways lead to the same end, and cost a hundred times
    /// as much.
    Cuts(u64),
    /// Beam searches of this width.
    Beam(usize),
}

/// Cheap ones first; each has a third of the work that is left, the last all of it.
const TURNS: [Turn; 9] = [
    Turn::Plain(2_000),
    Turn::Cuts(1_000),
    Turn::Beam(4),
    Turn::Plain(20_000),
    Turn::Beam(32),
    Turn::Cuts(5_000),
    Turn::Plain(200_000),
    Turn::Beam(500),
    Turn::Plain(u64::MAX),
];

/// Searches until peak and bound meet or the work is used up.
fn improve(
    problem: &Problem,
    limits: &Limits,
    mut cuts: Option<Cuts<'_>>,
    mut steps: u64,
    found: &mut Found,
) {
    for (i, turn) in TURNS.iter().enumerate() {
        let states = limits.states - found.states;
        if found.is_optimal() || states == 0 {
            break;
        }
        let share = if i + 1 < TURNS.len() { steps / 3 } else { steps };
        let mut work = Work { states, steps: share };
        match *turn {
            Turn::Plain(most) => exactly(problem, None, most, &mut work, found),
            Turn::Cuts(most) if cuts.is_some() => exactly(problem, cuts.as_mut(), most, &mut work, found),
            Turn::Cuts(_) => {}
            Turn::Beam(width) => bisect(problem, width, &mut work.steps, found),
        }
        steps -= share - work.steps;
        found.states += states - work.states;
    }
}

/// Exact searches with budgets between bound and peak, each through at most so many down-sets.
fn exactly(
    problem: &Problem,
    mut cuts: Option<&mut Cuts<'_>>,
    most: u64,
    work: &mut Work,
    found: &mut Found,
) {
    // The least budget that has not been decided. The bound comes first: it is often the peak.
    let mut least = found.lower_bound_bytes;
    let mut budget = least;
    while least < found.peak_bytes && work.steps > 0 && work.states > 0 {
        match decide(problem, cuts.as_deref_mut(), budget, most, work) {
            Answer::Yes(order) => found.offer(problem, order),
            Answer::No(beyond) => {
                found.lower_bound_bytes = beyond.min(found.peak_bytes);
                least = beyond;
            }
            // With cuts only the bound is worth it: what they rule out is little where budgets are larger.
            Answer::Unknown if cuts.is_some() => return,
            // A larger budget may still be easy.
            Answer::Unknown => least = budget + 1 + budget / FINE,
        }
        let halfway = least + found.peak_bytes.saturating_sub(least + 1) / 2;
        budget = if cuts.is_some() { least } else { halfway };
    }
}

/// Beam searches with budgets between bound and peak.
fn bisect(problem: &Problem, width: usize, steps: &mut u64, found: &mut Found) {
    let mut failed = found.lower_bound_bytes.saturating_sub(1);
    while found.peak_bytes > failed + 1 + failed / FINE && *steps > 0 {
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
        self.take(problem.peak(&order), order);
    }

    /// The same of an order whose peak is known.
    fn take(&mut self, peak: u64, order: Vec<usize>) {
        if peak < self.peak_bytes {
            (self.order, self.peak_bytes) = (order, peak);
        }
    }
}
