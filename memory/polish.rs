//! Small changes to an order that a finer model than the search's finds better.
//!
//! The search counts what is alive. A runtime's plan may keep more: ONNX Runtime does not free a buffer that a later
//! result is going to take over. So the order that was found is judged by the plan itself, and operators near its peak
//! are moved: one that runs later to a place before it, with all that it waits for, or one that runs earlier to a place
//! behind it, with all that waits for it. A move that helps is kept, until none does or the caller has seen enough.

use dmopt_ir::hash::HashSet;

use crate::Problem;

/// How an order is judged: less is better, by the peak first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Weight {
    /// Peak in bytes.
    pub peak_bytes: u64,
    /// Number of steps that need as much.
    pub steps: usize,
    /// Position of the first of them in the order.
    pub at: usize,
}

/// How far from the peak operators are moved from and to, in positions.
const REACH: usize = 12;

/// An order that weighs no more than this one, and less if small changes can do it. `weigh` judges an order of the
/// problem; `None` ends the search.
pub fn polish(
    problem: &Problem,
    mut order: Vec<usize>,
    weigh: &mut dyn FnMut(&[usize]) -> Option<Weight>,
) -> Vec<usize> {
    let Some(mut best) = weigh(&order) else { return order };
    // Where operators wait for each other, many moves come to the same order.
    let mut seen = HashSet::from_iter([order.clone()]);
    'better: loop {
        for (from, to) in moves(best.at, order.len()) {
            let moved = moved(problem, &order, from, to);
            if seen.contains(&moved) {
                continue;
            }
            seen.insert(moved.clone());
            let Some(weight) = weigh(&moved) else { return order };
            if (weight.peak_bytes, weight.steps) < (best.peak_bytes, best.steps) {
                (best, order) = (weight, moved);
                continue 'better;
            }
        }
        return order;
    }
}

/// Pairs of positions around the peak, those near to it first: the operator at the first goes to the second.
fn moves(peak: usize, len: usize) -> Vec<(usize, usize)> {
    let before = peak.saturating_sub(REACH)..=peak;
    let mut pairs: Vec<(usize, usize)> = before
        .flat_map(|i| (peak..len.min(peak + REACH + 1)).map(move |j| (i, j)))
        .filter(|(i, j)| i < j)
        .flat_map(|(i, j)| [(j, i), (i, j)])
        .collect();
    pairs.sort_by_key(|&(from, to)| (from.abs_diff(to), from, to));
    pairs
}

/// The order with the operator at `from` moved to `to`: up with what it waits for, or down with what waits for it.
fn moved(problem: &Problem, order: &[usize], from: usize, to: usize) -> Vec<usize> {
    let (low, high) = (from.min(to), from.max(to));
    let after = |v: usize| problem.ops()[v].after.iter().copied();
    let window = &order[low..=high];
    let mut goes = vec![order[from]];
    if to < from {
        for &v in window.iter().rev().skip(1) {
            if goes.iter().any(|&w| after(w).any(|u| u == v)) {
                goes.push(v);
            }
        }
    } else {
        for &v in window.iter().skip(1) {
            if after(v).any(|u| goes.contains(&u)) {
                goes.push(v);
            }
        }
    }
    let (going, staying): (Vec<usize>, Vec<usize>) = window.iter().partition(|v| goes.contains(v));
    let mut moved = order.to_vec();
    let window = match to < from {
        true => going.into_iter().chain(staying),
        false => staying.into_iter().chain(going),
    };
    moved.splice(low..=high, window.collect::<Vec<_>>());
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Buffer, Operator};

    /// Operators that each wait for these, and create one buffer of a byte.
    fn problem(after: &[&[usize]]) -> Problem {
        let ops = after.iter().enumerate().map(|(v, after)| Operator {
            after: after.to_vec(),
            creates: vec![v],
            reads: after.to_vec(),
            in_place: Vec::new(),
            scratch: 0,
        });
        Problem::new(ops.collect(), after.iter().map(|_| Buffer::new(1, false)).collect()).unwrap()
    }

    #[test]
    fn what_moves_takes_along_what_it_waits_for_or_what_waits_for_it() {
        let chain = problem(&[&[], &[], &[1], &[2], &[0]]);
        assert_eq!(moved(&chain, &[0, 1, 2, 3, 4], 3, 0), [1, 2, 3, 0, 4]);
        assert_eq!(moved(&chain, &[0, 1, 2, 3, 4], 1, 4), [0, 4, 1, 2, 3]);
        assert_eq!(moved(&chain, &[0, 1, 2, 3, 4], 4, 1), [0, 4, 1, 2, 3]);
    }

    #[test]
    fn every_move_of_a_random_problem_gives_an_order() {
        arbtest::arbtest(|u| {
            let problem = crate::laws::random(u, 2, 30)?;
            let order: Vec<usize> = (0..problem.len()).collect();
            for (from, to) in moves(u.choose_index(problem.len())?, problem.len()) {
                assert!(problem.is_order(&moved(&problem, &order, from, to)), "{from} {to}");
            }
            Ok(())
        });
    }

    #[test]
    fn an_order_is_changed_as_long_as_it_gets_lighter() {
        // What counts is how far each operator is from its place in the reverse order.
        let free = problem(&[&[], &[], &[], &[], &[]]);
        let mut weigh = |order: &[usize]| {
            let off: Vec<usize> = order.iter().enumerate().map(|(at, &v)| at.abs_diff(4 - v)).collect();
            let at = off.iter().position(|&off| off > 0).unwrap_or(0);
            Some(Weight { peak_bytes: off.iter().sum::<usize>() as u64, steps: 1, at })
        };
        assert_eq!(polish(&free, vec![0, 1, 2, 3, 4], &mut weigh), [4, 3, 2, 1, 0]);
    }

    #[test]
    fn no_order_is_weighed_twice() {
        arbtest::arbtest(|u| {
            let problem = crate::laws::random(u, 2, 30)?;
            let mut seen = std::collections::HashSet::new();
            polish(&problem, (0..problem.len()).collect(), &mut |order| {
                assert!(seen.insert(order.to_vec()), "{order:?}");
                Some(Weight { peak_bytes: problem.peak(order), steps: 1, at: problem.len() / 2 })
            });
            Ok(())
        });
    }

    #[test]
    fn who_has_seen_enough_gets_the_best_so_far() {
        let free = problem(&[&[], &[]]);
        let mut left = 1;
        let mut weigh = |order: &[usize]| {
            left -= 1;
            (left >= 0).then_some(Weight { peak_bytes: order[0] as u64, steps: 1, at: 0 })
        };
        assert_eq!(polish(&free, vec![1, 0], &mut weigh), [1, 0]);
    }
}
