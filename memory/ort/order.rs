//! The order in which ONNX Runtime executes a graph.
//!
//! Operators are numbered by their place in the file. `Constant` operators get no number: they become initializers
//! when the model is loaded (`Graph::Graph` in `core/graph/graph.cc`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use dmopt_ir::{Graph, OpId};

use crate::Unknown;

/// How a session orders operators (`ExecutionOrder` of its options).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// What a session does unless told otherwise: a depth-first search from the operators that nothing reads, against
    /// the direction of the edges, the highest number first in every choice; operators run when the search leaves
    /// them (`GraphViewer::GraphViewer` in `core/graph/graph_viewer.cc`, `Graph::ReverseDFSFrom` in
    /// `core/graph/graph.cc`).
    #[default]
    ReverseDepthFirst,
    /// Of the operators that are ready, `Shape` and `Size` first, then the lowest number
    /// (`PriorityNodeCompare` in `core/graph/graph_viewer.cc`, `Graph::KahnsTopologicalSort` in `core/graph/graph.cc`).
    /// For a sorted file without such operators, the order of the file.
    Priority,
}

/// The operators of the graph in the order of execution, without `Constant`.
///
/// # Errors
/// The graph has a cycle.
pub fn execution_order(graph: &Graph, order: Order) -> Result<Vec<OpId>, Unknown> {
    let numbered: Vec<OpId> = graph.order().map_err(|_| Unknown::Cycle)?;
    let numbered: Vec<OpId> = numbered.into_iter().filter(|&id| !graph.op(id).is("Constant")).collect();
    let mut number = vec![usize::MAX; graph.op_bound()];
    numbered.iter().enumerate().for_each(|(n, id)| number[id.index()] = n);
    let before = |n: usize| {
        let producers = graph.predecessors(numbered[n]).map(|id| number[id.index()]);
        let mut before: Vec<usize> = producers.filter(|&n| n != usize::MAX).collect();
        before.sort_unstable();
        before.dedup();
        before
    };
    let order = match order {
        Order::ReverseDepthFirst => reverse_depth_first(numbered.len(), before),
        Order::Priority => {
            let urgent = |n: usize| graph.op(numbered[n]).is("Shape") || graph.op(numbered[n]).is("Size");
            priority(numbered.len(), before, urgent)
        }
    };
    Ok(order.into_iter().map(|n| numbered[n]).collect())
}

/// The order of [`Order::ReverseDepthFirst`] for operators by number; `before` gives the producers of an operator in
/// ascending order.
pub(crate) fn reverse_depth_first(count: usize, before: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    let mut is_leaf = vec![true; count];
    (0..count).for_each(|n| before(n).into_iter().for_each(|producer| is_leaf[producer] = false));
    let mut pending: Vec<(usize, bool)> = (0..count).filter(|&n| is_leaf[n]).map(|n| (n, false)).collect();
    let mut seen = vec![false; count];
    let mut order = Vec::with_capacity(count);
    while let Some((n, leave)) = pending.pop() {
        if leave {
            order.push(n);
        } else if !std::mem::replace(&mut seen[n], true) {
            pending.push((n, true));
            pending.extend(before(n).into_iter().filter(|&producer| !seen[producer]).map(|p| (p, false)));
        }
    }
    order
}

fn priority(
    count: usize,
    before: impl Fn(usize) -> Vec<usize>,
    urgent: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let producers: Vec<Vec<usize>> = (0..count).map(before).collect();
    let mut waiting: Vec<usize> = producers.iter().map(Vec::len).collect();
    let mut after = vec![Vec::new(); count];
    for (n, producers) in producers.iter().enumerate() {
        producers.iter().for_each(|&producer| after[producer].push(n));
    }
    let key = |n: usize| Reverse((!urgent(n), n));
    let mut ready: BinaryHeap<_> = (0..count).filter(|&n| waiting[n] == 0).map(key).collect();
    let mut order = Vec::with_capacity(count);
    while let Some(Reverse((_, n))) = ready.pop() {
        order.push(n);
        for &next in &after[n] {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                ready.push(key(next));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::text::{default_opsets, parse_graph};

    fn run(text: &str, order: Order) -> String {
        let graph = parse_graph(text, default_opsets()).unwrap();
        let order = execution_order(&graph, order).unwrap();
        let names = order.iter().flat_map(|&id| graph.op(id).results()).map(|v| graph.value(v).name.as_str());
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_highest_number_runs_first_and_constants_do_not_run() {
        let text = "g (float[2] x) => (float[2] y) {
            c = Constant<value = float {1.0}>() a = Relu(x) b = Add(x, c) d = Exp(b) y = Mul(a, d) }";
        assert_eq!(run(text, Order::ReverseDepthFirst), "b d a y");
        assert_eq!(run(text, Order::Priority), "a b d y");
    }

    #[test]
    fn the_last_leaf_runs_first() {
        let text =
            "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Exp(a) b = Abs(x) z = Exp(b) }";
        assert_eq!(run(text, Order::ReverseDepthFirst), "b z a y");
    }

    #[test]
    fn shapes_have_priority_as_soon_as_they_are_ready() {
        let text = "g (float[2] x) => (float[2] y, int64[1] s, int64 t) {
            a = Relu(x) b = Exp(x) y = Add(a, b) s = Shape(x) t = Size(b) }";
        assert_eq!(run(text, Order::Priority), "s a b t y");
    }

    #[test]
    fn a_body_waits_for_what_it_captures() {
        let text = "g (bool c, float[2] x) => (float[2] y) {
            a = Relu(x) y = If(c) <then_branch = t () => (float[2] r) { r = Exp(a) },
                                   else_branch = e () => (float[2] r) { r = Abs(x) }> }";
        assert_eq!(run(text, Order::ReverseDepthFirst), "a y");
    }
}
