//! The safe closure: what may run at once without losing the best order.
//!
//! Let `D` have run, within a budget, and let `S = {s_1, ..., s_k}` be a chain (each `s_i+1` can run only after `s_i`)
//! that can run next within the budget, with `f(D + S) <= f(D)` and `f(D + s_1 .. s_i) > f(D)` for `0 < i < k`. Then
//! whatever order completes `D` within the budget, one that runs `S` first does too: take any down-set `E` of that
//! order after `D`, and let `P` be what it has of `S`, which is a beginning of the chain. Submodularity gives
//! `f(E + S) + f(D + P) <= f(E) + f(D + S)`, and `f(D + P) >= f(D + S)`, so `f(E + S) <= f(E)`. Since results need no
//! more memory the more has run, every operator of the order needs no more after `E + S` than after `E`.

use super::exact::MOVE;
use crate::state::State;

/// Longest chain that is tried.
const LONGEST: usize = 16;

/// Runs chains that are safe within the budget until there are none, or about as much work as `limit` is done; the number
/// of operators looked at.
pub(crate) fn close(state: &mut State<'_>, budget: u64, limit: u64) -> u64 {
    let mut steps = 0;
    let begun = state.moves;
    let mut at = 0;
    // One round over the ready operators without success is the end.
    let mut misses = 0;
    while misses < state.ready.len() && steps + MOVE * (state.moves - begun) <= limit {
        at = if at >= state.ready.len() { 0 } else { at };
        let v = state.ready[at] as usize;
        steps += 1;
        if state.needs(v) <= budget && chain(state, v, budget) {
            misses = 0;
        } else {
            misses += 1;
            at += 1;
        }
    }
    steps
}

/// Runs a chain from `v` on if there is a safe one; the state is as before if not.
fn chain(state: &mut State<'_>, v: usize, budget: u64) -> bool {
    let (start, before) = (state.live, state.log.len());
    let mut last = v;
    state.run(v);
    while state.live > start {
        let onward = state.problem.successors[last].iter().map(|&next| next as usize);
        let onward = onward.filter(|&next| state.is_ready(next) && state.needs(next) <= budget);
        let best = onward.min_by_key(|&next| (state.after(next), next));
        match best {
            Some(next) if state.log.len() - before < LONGEST => {
                state.run(next);
                last = next;
            }
            _ => {
                state.undo_to(before);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Problem;
    use crate::problem::{Buffer, Operator};

    #[test]
    fn nothing_is_tried_beyond_the_limit() {
        let stays = |v| Operator { creates: vec![v], ..Operator::default() };
        let problem = Problem::new((0..100).map(stays).collect(), vec![Buffer::new(1, true); 100]).unwrap();
        let looks = |limit| close(&mut State::new(&problem), 100, limit);
        assert_eq!([u64::MAX, 50 * (1 + 2 * MOVE)].map(looks), [100, 51]);
    }
}
