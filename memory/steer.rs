//! How a file makes ONNX Runtime run its operators in a given order.
//!
//! A stock session does not follow the file: it searches back from the operators that nothing reads, the one that
//! stands last in the file first, and of the producers of each operator visits the one that stands last first; an
//! operator runs when the search leaves it (see [`Order::ReverseDepthFirst`](crate::ort::Order)). Two things about a
//! file steer that search:
//!
//! - **Order anchors** ([`anchors`]). A `Size` operator at the end of the file that nothing reads is a place where the
//!   search begins, and it begins there before it comes to the outputs. When the file itself stands in the wanted
//!   order `v_0 v_1 ...`, a search that begins at `v_j`, after everything before `v_i` has run, runs exactly
//!   `v_i .. v_j` in this order if each of them reads a result of the one before: of its producers the last one in
//!   the file is then its neighbour, whose search has run all the others. So an anchor at the end of each such run,
//!   the first of them last in the file, makes any order come true. Executors that follow the file do what is wanted
//!   without them, and drop or ignore what nothing reads; a session that prefers `Size` as soon as it can be computed
//!   runs them in between.
//! - **Numbering** ([`renumbered`]). Without anchors, of two producers that could run in either order the one to run
//!   first has to stand later in the file. That reaches depth-first orders alone, and executors that follow the
//!   file get the opposite of what is good for them.
//!
//! An anchor costs the eight bytes of its result. It reads only the shape of a value, right after that is computed, so
//! it keeps nothing in memory; but a value that it reads has a reader more, which stops fusions that want a single one.

use std::collections::BinaryHeap;

use dmopt_ir::{Graph, OpId, Type, ValueId};

use crate::ort::reverse_depth_first;

/// Prefix of the names of anchors and of their results.
pub const ANCHOR: &str = "order_anchor";

/// True for an operator that is there for the order alone: a `Size` named as an [`ANCHOR`] whose result is not read.
pub fn is_anchor(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    op.is("Size") && op.name.starts_with(ANCHOR) && op.results().all(|v| graph.readers(v) == 0)
}

/// A graph in a wanted order, as far as steering it is concerned.
struct Wanted<'a> {
    graph: &'a Graph,
    /// The operators that run, in the wanted order, which is that of the file.
    order: Vec<OpId>,
    /// Producers of each, by place in the order, ascending, each once.
    producers: Vec<Vec<usize>>,
}

impl<'a> Wanted<'a> {
    fn new(graph: &'a Graph, order: &[OpId]) -> Wanted<'a> {
        let runs = |id: &OpId| !graph.op(*id).is("Constant") && !is_anchor(graph, *id);
        let order: Vec<OpId> = order.iter().copied().filter(runs).collect();
        let mut place = vec![usize::MAX; graph.op_bound()];
        order.iter().enumerate().for_each(|(at, id)| place[id.index()] = at);
        let producers_of = |id: &OpId| {
            let mut producers: Vec<usize> = graph.predecessors(*id).map(|p| place[p.index()]).collect();
            producers.retain(|&at| at != usize::MAX);
            producers.sort_unstable();
            producers.dedup();
            producers
        };
        let producers = order.iter().map(producers_of).collect();
        Wanted { graph, order, producers }
    }

    /// Where a run of neighbours ends that read each other, the last one left out.
    fn ends(&self) -> Vec<usize> {
        let broken = |&at: &usize| self.producers[at].last() != Some(&(at - 1));
        (1..self.order.len()).filter(broken).map(|at| at - 1).collect()
    }

    /// What a session executes with anchors at these places, which ascend; without the anchors.
    fn executed(&self, anchored: &[usize]) -> Vec<OpId> {
        let count = self.order.len();
        let before = |n: usize| match n.checked_sub(count) {
            None => self.producers[n].clone(),
            // The first anchor to run stands last.
            Some(anchor) => vec![anchored[anchored.len() - 1 - anchor]],
        };
        let executed = reverse_depth_first(count + anchored.len(), before);
        executed.into_iter().filter(|&n| n < count).map(|n| self.order[n]).collect()
    }

    fn can_anchor(&self, at: usize) -> bool {
        anchored_value(self.graph, self.order[at]).is_some()
    }
}

/// The operators after which there has to be an anchor, in the order in which these have to run, for a file in this
/// `order`: few of those without which the execution order would not be `good` enough. None if none is needed; not enough
/// where an operator has no result that could be read, so what comes of it has to be planned.
///
/// `good` is asked at most about three times for each end of a run, and not again once it has no answer.
pub fn anchors(graph: &Graph, order: &[OpId], good: &mut dyn FnMut(&[OpId]) -> Option<bool>) -> Vec<OpId> {
    let wanted = Wanted::new(graph, order);
    let mut kept: Vec<usize> = wanted.ends().into_iter().filter(|&at| wanted.can_anchor(at)).collect();
    if good(&wanted.executed(&[])) == Some(true) {
        return Vec::new();
    }
    // Halves first: mostly, large parts of the order come true by themselves.
    let mut chunk = kept.len().div_ceil(2);
    'asking: while chunk > 0 {
        let mut from = 0;
        while from < kept.len() {
            let to = (from + chunk).min(kept.len());
            let without: Vec<usize> = [&kept[..from], &kept[to..]].concat();
            match good(&wanted.executed(&without)) {
                Some(true) => kept = without,
                Some(false) => from = to,
                None => break 'asking,
            }
        }
        chunk /= 2;
    }
    kept.into_iter().map(|at| wanted.order[at]).collect()
}

/// An order of the file with which a stock session comes close to the wanted `order` without anchors: of what could
/// stand next, always what is to run last.
pub fn renumbered(graph: &Graph, order: &[OpId]) -> Vec<OpId> {
    let mut place = vec![0; graph.op_bound()];
    order.iter().enumerate().for_each(|(at, id)| place[id.index()] = at);
    let mut waiting = vec![0usize; graph.op_bound()];
    order.iter().for_each(|id| waiting[id.index()] = graph.predecessors(*id).count());
    let mut ready: BinaryHeap<(usize, OpId)> =
        order.iter().filter(|id| waiting[id.index()] == 0).map(|&id| (place[id.index()], id)).collect();
    let mut file = Vec::with_capacity(order.len());
    while let Some((_, id)) = ready.pop() {
        file.push(id);
        for next in graph.successors(id) {
            waiting[next.index()] -= 1;
            if waiting[next.index()] == 0 {
                ready.push((place[next.index()], next));
            }
        }
    }
    file
}

/// The value that an anchor after this operator reads: its first result that is a tensor.
pub fn anchored_value(graph: &Graph, id: OpId) -> Option<ValueId> {
    graph.op(id).results().find(|&v| matches!(graph.value(v).ty, Some(Type::Tensor(_))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use arbtest::arbitrary::{Result, Unstructured};
    use arbtest::arbtest;
    use dmopt_ir::text::{default_opsets, parse_graph};

    /// What a stock session executes if the file stands in this `order` and has these anchors, which are not listed.
    fn executed(graph: &Graph, order: &[OpId], anchored: &[OpId]) -> Vec<OpId> {
        let wanted = Wanted::new(graph, order);
        let place: HashMap<OpId, usize> = wanted.order.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        let mut places: Vec<usize> = anchored.iter().filter_map(|id| place.get(id).copied()).collect();
        places.sort_unstable();
        wanted.executed(&places)
    }

    /// Operators `v0 v1 ...`, each of up to three of those before.
    fn random(u: &mut Unstructured<'_>) -> Result<Graph> {
        let mut lines = String::new();
        let count = u.int_in_range(1..=12)?;
        let mut read = vec![false; count];
        for v in 0..count {
            let mut operands = Vec::new();
            for _ in 0..u.int_in_range(1..=3)? {
                match u.int_in_range(0..=v)? {
                    0 => operands.push("x".to_string()),
                    w => {
                        read[w - 1] = true;
                        operands.push(format!("v{}", w - 1));
                    }
                }
            }
            lines.push_str(&format!("v{v} = Sum({})\n", operands.join(", ")));
        }
        let outputs: Vec<String> =
            (0..count).filter(|&v| !read[v]).map(|v| format!("float[2] v{v}")).collect();
        let text = format!("g (float[2] x) => ({}) {{ {lines} }}", outputs.join(", "));
        let mut graph =
            parse_graph(&text, default_opsets()).unwrap_or_else(|error| panic!("{text}\n{error}"));
        dmopt_ir::infer::infer_graph(&mut graph);
        Ok(graph)
    }

    /// Any order in which the operators can run.
    fn random_order(u: &mut Unstructured<'_>, graph: &Graph) -> Result<Vec<OpId>> {
        let mut order: Vec<OpId> = Vec::new();
        let mut left: Vec<OpId> = graph.ops().collect();
        while !left.is_empty() {
            let ready: Vec<OpId> = left
                .iter()
                .copied()
                .filter(|&id| graph.predecessors(id).all(|p| order.contains(&p)))
                .collect();
            let next = *u.choose(&ready)?;
            left.retain(|&id| id != next);
            order.push(next);
        }
        Ok(order)
    }

    #[test]
    fn any_order_comes_true_and_every_anchor_left_is_needed() {
        arbtest(|u| {
            let graph = random(u)?;
            let wanted = random_order(u, &graph)?;
            let anchored = anchors(&graph, &wanted, &mut |executed| Some(executed == wanted));
            assert_eq!(executed(&graph, &wanted, &anchored), wanted);
            for at in 0..anchored.len() {
                let fewer = [&anchored[..at], &anchored[at + 1..]].concat();
                assert_ne!(executed(&graph, &wanted, &fewer), wanted);
            }
            Ok(())
        })
        .budget_ms(2_000);
    }

    #[test]
    fn nothing_is_asked_once_there_is_no_answer() {
        let text = "g (float[2] x) => (float[2] a3) {
            m0 = Exp(x) m1 = Abs(x) a1 = Add(m0, m1) m2 = Neg(x) a2 = Add(a1, m2) m3 = Cos(x) a3 = Add(a2, m3) }";
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        dmopt_ir::infer::infer_graph(&mut graph);
        let order: Vec<OpId> = graph.ops().collect();
        let mut asked = 0;
        let anchored = anchors(&graph, &order, &mut |_| {
            asked += 1;
            (asked < 2).then_some(false)
        });
        assert_eq!((asked, anchored.len()), (2, Wanted::new(&graph, &order).ends().len()));
    }

    #[test]
    fn a_new_numbering_is_an_order_of_the_same_operators() {
        arbtest(|u| {
            let graph = random(u)?;
            let wanted = random_order(u, &graph)?;
            let file = renumbered(&graph, &wanted);
            for (at, &id) in file.iter().enumerate() {
                assert!(graph.predecessors(id).all(|p| file[..at].contains(&p)));
            }
            assert_eq!(file.len(), wanted.len());
            Ok(())
        })
        .budget_ms(1_000);
    }

    fn by_name(graph: &Graph, names: &[&str]) -> Vec<OpId> {
        let find = |name: &&str| {
            let value = graph.values().find(|&v| graph.value(v).name == **name).unwrap();
            graph.producer(value).unwrap()
        };
        names.iter().map(find).collect()
    }

    #[test]
    fn a_new_numbering_makes_an_accumulation_run_term_by_term() {
        let text = "g (float[2] x) => (float[2] a2) {
            m0 = Exp(x) m1 = Abs(x) m2 = Neg(x) a1 = Add(m0, m1) a2 = Add(a1, m2) }";
        let graph = parse_graph(text, default_opsets()).unwrap();
        let wanted = by_name(&graph, &["m0", "m1", "a1", "m2", "a2"]);
        let file = renumbered(&graph, &wanted);
        assert_eq!(file, by_name(&graph, &["m2", "m1", "m0", "a1", "a2"]));
        assert_eq!(executed(&graph, &file, &[]), wanted);
    }

    #[test]
    fn an_operator_is_an_anchor_by_its_name_and_by_not_being_read() {
        let text =
            "g (float[2] x) => (float[2] y) { y = Relu(x) [order_anchor] s = Size(y) [other] t = Size(y) }";
        let graph = parse_graph(text, default_opsets()).unwrap();
        let is = |name| is_anchor(&graph, by_name(&graph, &[name])[0]);
        assert_eq!((is("s"), is("t"), is("y")), (true, false, false));
    }
}
