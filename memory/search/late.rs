//! Operators that may wait for their reader.
//!
//! Let only `w` wait for `v`, and let what `v` leaves be at least as large as all that it reads. Then `v` may as well run
//! right before `w`, provided that `w` needs as much for its own results: take any order, and move `v` there.
//! - A state between the two has no result of `v` (`m` bytes), and at most what `v` reads besides (`r` bytes, `r <= m`):
//!   it is no larger.
//! - An operator `u` in between may no longer take over what `v` reads, so it allocates more by at most what both read;
//!   that was in memory before `u` anyway, so `u` needs no more than before.
//! - Right before `w`, `v` needs at most what is there when `w` starts plus its results and scratch memory, and that is
//!   no more than `w` needs then.
//!
//! If several operators may wait for the same reader, they do so one after the other. As an order that meets one of these
//! rules can be changed to meet the next, all hold at once: there is a best order in which each such `v` runs after
//! everything else that its reader waits for. That is a problem with more dependencies and the same lowest peak.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::problem::{Buffer, Operator, Problem};
use crate::state::saved;

/// A problem with the same lowest peak, in which less can be done in more than one order.
pub(crate) struct Late {
    pub problem: Problem,
    /// For each of its operators the number in the problem given.
    original: Vec<usize>,
}

/// Where an operator waits for more than this, none waits for it: each would have to wait for most of the others.
const MANY: usize = 256;

impl Late {
    /// Every operator waits that may. `None` if there is none.
    pub fn of(problem: &Problem) -> Option<Late> {
        let late: Vec<Option<usize>> = (0..problem.len()).map(|v| waits_for(problem, v)).collect();
        let mut after: Vec<Vec<usize>> = problem.ops.iter().map(|op| op.after.clone()).collect();
        for (v, w) in late.iter().enumerate().filter_map(|(v, w)| Some((v, (*w)?))) {
            after[v].extend(problem.ops[w].after.iter().filter(|&&other| late[other] != Some(w)));
        }
        let added: usize =
            after.iter().zip(&problem.ops).map(|(after, op)| after.len() - op.after.len()).sum();
        if added > 0 { renumber(problem, &after) } else { None }
    }

    /// An order of the problem given.
    pub fn original(&self, order: &[usize]) -> Vec<usize> {
        order.iter().map(|&v| self.original[v]).collect()
    }
}

/// The reader that an operator may wait for.
fn waits_for(problem: &Problem, v: usize) -> Option<usize> {
    let [w] = problem.successors[v].as_slice() else { return None };
    let w = *w as usize;
    if problem.ops[w].after.len() > MANY {
        return None;
    }
    let bytes = |b: usize| problem.buffers[b].bytes;
    let op = &problem.ops[v];
    let read: u64 = op.reads.iter().filter(|&&b| !problem.buffers[b].kept).map(|&b| bytes(b)).sum();
    let left: u64 =
        op.creates.iter().filter(|&&b| !problem.buffers[b].readers.is_empty()).map(|&b| bytes(b)).sum();
    let created: u64 = op.creates.iter().map(|&b| bytes(b)).sum();
    let reader = &problem.ops[w];
    let reader_creates: u64 = reader.creates.iter().map(|&b| bytes(b)).sum();
    let reader_needs = reader_creates - saved(problem, w, |_| true) + reader.scratch;
    let kept = op.creates.iter().any(|&b| problem.buffers[b].kept);
    (!kept && left >= read && created + op.scratch <= reader_needs).then_some(w)
}

/// The problem with these dependencies, numbered so that every operator comes after those it waits for. `None` if there
/// is a circle, which does not happen: nothing but its reader waits for an operator that waits.
fn renumber(problem: &Problem, after: &[Vec<usize>]) -> Option<Late> {
    let n = problem.len();
    let mut waiting: Vec<usize> = after.iter().map(Vec::len).collect();
    let mut successors = vec![Vec::new(); n];
    after
        .iter()
        .enumerate()
        .for_each(|(v, after)| after.iter().for_each(|&before| successors[before].push(v)));
    let mut ready: BinaryHeap<Reverse<usize>> = (0..n).filter(|&v| waiting[v] == 0).map(Reverse).collect();
    let (mut original, mut number) = (Vec::with_capacity(n), vec![0; n]);
    while let Some(Reverse(v)) = ready.pop() {
        number[v] = original.len();
        original.push(v);
        for &next in &successors[v] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    let renumbered = |&v: &usize| Operator {
        after: after[v].iter().map(|&before| number[before]).collect(),
        ..problem.ops[v].clone()
    };
    let ops = original.iter().map(renumbered).collect();
    let buffers = problem.buffers.iter().map(|b| Buffer::new(b.bytes, b.kept)).collect();
    Problem::new(ops, buffers).ok().map(|problem| Late { problem, original })
}
