//! Laws of bounds and searches on random problems, against what follows from the definitions alone.

use std::collections::HashMap;

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;

use crate::bound::{self, Cuts};
use crate::heuristics::Heuristic;
use crate::problem::{Buffer, InPlace, Operator, Problem};
use crate::search::beam::beam;
use crate::search::exact::{Answer, Work, decide};
use crate::search::late::Late;
use crate::search::{Certificate, Limits, search};
use crate::state::State;

/// Runs a property on so many random inputs; which ones never depends on the time they take.
fn each(count: u64, mut property: impl FnMut(&mut Unstructured<'_>) -> Result<()>) {
    // The lower half of a seed is the number of random bytes.
    (0..count).for_each(|seed| arbtest(&mut property).seed(seed << 32 | 512).run());
}

/// A random problem; sizes are small, so that many are equal.
pub(crate) fn random(u: &mut Unstructured<'_>, least: usize, most: usize) -> Result<Problem> {
    let n = u.int_in_range(least..=most)?;
    let (mut ops, mut buffers): (Vec<Operator>, Vec<Buffer>) = (Vec::new(), Vec::new());
    // With a short memory graphs become long, with a long one wide.
    let memory = u.int_in_range(1..=8usize)?;
    for v in 0..n {
        let known = buffers.len();
        let mut op = Operator::default();
        for _ in 0..u.int_in_range(0..=3)? {
            if known > 0 {
                op.reads.push(known - 1 - u.choose_index(known.min(memory))?);
            }
        }
        if v > 0 && u.ratio(1, 10)? {
            op.after.push(u.choose_index(v)?);
        }
        let results = if u.ratio(1, 10)? { 0 } else { u.int_in_range(1..=2)? };
        for _ in 0..results {
            op.creates.push(buffers.len());
            let bytes = u.int_in_range(0..=4u64)?;
            buffers.push(Buffer::new(bytes, u.ratio(1, 8)?));
        }
        for &result in &op.creates {
            let mut over = op.reads.clone();
            over.retain(|&b| buffers[b].bytes == buffers[result].bytes);
            if !over.is_empty() && u.ratio(2, 3)? {
                let first = u.choose_index(over.len())?;
                over.rotate_left(first);
                op.in_place.push(InPlace { result, over });
            }
        }
        if u.ratio(1, 4)? {
            op.scratch = u.int_in_range(0..=3)?;
        }
        ops.push(op);
    }
    Ok(Problem::new(ops, buffers).unwrap())
}

/// Bytes while `v` runs after the operators of `done`, by the definition: buffers are allocated, taken over and freed
/// one by one. The second number is what is left after it.
fn simulate(p: &Problem, done: u32, v: usize) -> (u64, u64) {
    let ran = |u: usize, done: u32| done >> u & 1 == 1;
    let alive = |b: &Buffer, done: u32| {
        ran(b.creator(), done) && (b.kept || b.readers().any(|reader| !ran(reader, done)))
    };
    let live = |done: u32| p.buffers().iter().filter(|b| alive(b, done)).map(|b| b.bytes).sum::<u64>();
    let op = &p.ops()[v];
    let mut dying: Vec<usize> =
        op.reads.iter().copied().filter(|&b| !alive(&p.buffers()[b], done | 1 << v)).collect();
    let mut fresh = 0;
    for &result in &op.creates {
        let over = op.in_place.iter().filter(|pair| pair.result == result).flat_map(|pair| &pair.over);
        match over.into_iter().find_map(|b| dying.iter().position(|d| d == b)) {
            Some(taken) => drop(dying.remove(taken)),
            None => fresh += p.buffers()[result].bytes,
        }
    }
    (live(done) + fresh + op.scratch, live(done | 1 << v))
}

/// The lowest peak over all orders that go on after `done`.
fn lowest(p: &Problem, done: u32, known: &mut HashMap<u32, u64>) -> u64 {
    if let Some(&peak) = known.get(&done) {
        return peak;
    }
    let ready =
        (0..p.len()).filter(|&v| done >> v & 1 == 0 && p.ops()[v].after.iter().all(|&u| done >> u & 1 == 1));
    let peak = ready.map(|v| simulate(p, done, v).0.max(lowest(p, done | 1 << v, known))).min().unwrap_or(0);
    known.insert(done, peak);
    peak
}

#[test]
fn a_run_needs_what_the_definition_says_forward_and_backward() {
    each(1_000, |u| {
        let p = random(u, 1, 12)?;
        let (mut state, mut done) = (State::new(&p), 0u32);
        for _ in 0..40 {
            let back = !state.log.is_empty() && (state.ready.is_empty() || u.ratio(1, 3)?);
            if back {
                done &= !(1 << state.log[state.log.len() - 1]);
                state.undo();
            } else if !state.ready.is_empty() {
                let v = state.ready[u.choose_index(state.ready.len())?] as usize;
                state.run(v);
                done |= 1 << v;
            }
            let mut ready = state.ready.clone();
            ready.sort_unstable();
            let expected: Vec<u32> = (0..p.len() as u32)
                .filter(|v| done >> v & 1 == 0)
                .filter(|&v| p.ops()[v as usize].after.iter().all(|&u| done >> u & 1 == 1))
                .collect();
            assert_eq!(ready, expected);
            for v in ready.into_iter().map(|v| v as usize) {
                assert_eq!((state.needs(v), state.after(v)), simulate(&p, done, v));
            }
        }
        Ok(())
    });
}

#[test]
fn a_profile_has_what_the_definition_says_of_each_step() {
    each(1_000, |u| {
        let p = random(u, 1, 12)?;
        let (mut state, mut expected, mut done) = (State::new(&p), Vec::new(), 0u32);
        while !state.is_complete() {
            let v = state.ready[u.choose_index(state.ready.len())?] as usize;
            expected.push(simulate(&p, done, v).0);
            state.run(v);
            done |= 1 << v;
        }
        let order: Vec<usize> = state.log.iter().map(|&v| v as usize).collect();
        assert_eq!(p.profile(&order), expected);
        assert_eq!(Some(p.peak(&order)), expected.into_iter().max());
        Ok(())
    });
}

#[test]
fn the_order_found_is_the_best_of_all_and_no_bound_exceeds_it() {
    each(6_000, |u| {
        let p = random(u, 1, 9)?;
        let best = lowest(&p, 0, &mut HashMap::new());
        let found = search(&p, &Limits::default());
        assert!(p.is_order(&found.order));
        assert_eq!((p.peak(&found.order), found.certificate()), (found.peak_bytes, Certificate::Optimal));
        assert_eq!(found.peak_bytes, best, "{p:?}");
        let file: Vec<usize> = (0..p.len()).collect();
        let settled = bound::settled(&p, &p.profile(&file));
        let bounds = [bound::operator(&p), settled, bound::forced(&p), bound::cut(&p, &file, u64::MAX)];
        assert!(bounds.is_sorted() && bounds[3] <= best, "{bounds:?} {best} {p:?}");
        for heuristic in Heuristic::ALL {
            let order = heuristic.order(&p);
            assert!(p.is_order(&order), "{heuristic:?}");
            assert!(p.peak(&order) >= best);
        }
        Ok(())
    });
}

#[test]
fn an_operator_is_settled_where_every_other_comes_before_it_or_after_it() {
    let mut settled = 0;
    each(6_000, |u| {
        let p = random(u, 1, 9)?;
        let mut before = vec![0u32; p.len()];
        for v in 0..p.len() {
            before[v] = p.ops[v].after.iter().map(|&u| before[u] | 1 << u).fold(0, |all, set| all | set);
        }
        let is_related = |u: usize, v: usize| u == v || before[v] >> u & 1 == 1 || before[u] >> v & 1 == 1;
        // What no bound of the operators alone comes to.
        let needs: Vec<u64> = (0..p.len() as u64).map(|v| 1000 + v).collect();
        let last = (0..p.len()).rev().find(|&v| (0..p.len()).all(|u| is_related(u, v)));
        let expected = last.map_or(bound::operator(&p), |v| needs[v]);
        assert_eq!(bound::settled(&p, &needs), expected, "{p:?}");
        settled += usize::from(last.is_some());
        Ok(())
    });
    assert!((1_000..5_000).contains(&settled), "{settled}");
}

#[test]
fn no_cut_exceeds_what_the_best_order_from_a_downset_needs() {
    each(3_000, |u| {
        let p = random(u, 1, 9)?;
        let (mut cuts, mut state, mut done) = (Cuts::new(&p), State::new(&p), 0u32);
        for _ in 0..u.int_in_range(0..=p.len() - 1)? {
            let v = state.ready[u.choose_index(state.ready.len())?] as usize;
            state.run(v);
            done |= 1 << v;
        }
        let best = lowest(&p, done, &mut HashMap::new());
        for v in (0..p.len()).filter(|&v| !state.has_run(v)) {
            let least = cuts.given(v, |u| state.has_run(u), u64::MAX);
            assert!(least <= best, "{v} after {:?}: {least} {best} {p:?}", state.log);
            if state.is_ready(v) {
                assert!(least <= state.needs(v));
            }
        }
        Ok(())
    });
}

#[test]
fn waiting_for_the_reader_leaves_the_lowest_peak_as_it_is() {
    let mut changed = 0;
    each(10_000, |u| {
        let p = random(u, 2, 9)?;
        if let Some(late) = Late::of(&p) {
            changed += 1;
            let best = |p: &Problem| lowest(p, 0, &mut HashMap::new());
            assert_eq!(best(&late.problem), best(&p), "{p:?}");
            let order: Vec<usize> = (0..p.len()).collect();
            assert!(p.is_order(&late.original(&order)));
            assert_eq!(p.peak(&late.original(&order)), late.problem.peak(&order));
        }
        Ok(())
    });
    assert!(changed > 1_000, "{changed}");
}

#[test]
fn the_exact_search_alone_finds_the_best_and_beams_keep_their_budget() {
    each(6_000, |u| {
        let p = random(u, 1, 10)?;
        let best = lowest(&p, 0, &mut HashMap::new());
        let mut cuts = u.arbitrary::<bool>()?.then(|| Cuts::new(&p));
        if let Some(cuts) = &mut cuts {
            cuts.bound(&Heuristic::BreadthFirst.order(&p), u64::MAX);
        }
        let mut within = |budget: u64| {
            let mut work = Work { states: u64::MAX, steps: u64::MAX };
            decide(&p, cuts.as_mut(), budget, u64::MAX, &mut work)
        };
        match within(best) {
            Answer::Yes(order) => assert!(p.peak(&order) <= best, "{p:?}"),
            other => panic!("{other:?}: {p:?}"),
        }
        if best > 0 {
            match within(u.int_in_range(0..=best - 1)?) {
                Answer::No(beyond) => assert!(beyond <= best, "{beyond} {best} {p:?}"),
                other => panic!("{other:?}: {p:?}"),
            }
        }
        let budget = best + u.int_in_range(0..=3)?;
        let mut steps = u64::MAX;
        if let Some(order) = beam(&p, budget, u.int_in_range(1..=3)?, &mut steps) {
            assert!(p.peak(&order) <= budget);
        }
        assert!(best == 0 || beam(&p, best - 1, 3, &mut steps).is_none());
        Ok(())
    });
}

#[test]
fn a_search_that_is_cut_off_is_still_right() {
    each(1_000, |u| {
        let p = random(u, 6, 14)?;
        let best = lowest(&p, 0, &mut HashMap::new());
        let limits = Limits { states: u.int_in_range(0..=20)?, steps: u.int_in_range(0..=400)? };
        let found = search(&p, &limits);
        assert!(p.is_order(&found.order));
        assert_eq!(p.peak(&found.order), found.peak_bytes);
        assert!(found.states <= limits.states);
        assert!((found.lower_bound_bytes..=found.peak_bytes).contains(&best), "{found:?} {best} {p:?}");
        assert!(Heuristic::ALL.iter().all(|h| p.peak(&h.order(&p)) >= found.peak_bytes));
        assert_eq!(search(&p, &limits), found);
        Ok(())
    });
}
