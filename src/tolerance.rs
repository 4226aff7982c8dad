//! How far the outputs of a result may be from those of the original: what was done to the model, in which type it
//! computes, and how deep it is.

use std::collections::HashSet;

use dmopt_ir::{DType, Graph, Model, Safety};
use dmopt_passes::Outcome;
use dmopt_runtime::Tolerance;

use crate::facts::each_graph;

/// The tolerance for what the passes did to this model, whose types are inferred, before that for long sums.
pub(crate) fn of(original: &Model, outcome: &Outcome) -> Tolerance {
    let sites: HashSet<&str> = outcome.sites.iter().map(|site| site.output.as_str()).collect();
    let class = outcome.safety.unwrap_or(Safety::Exact);
    match coarsest(&[&original.graph]) {
        Some(dtype) => Tolerance::for_class(class, dtype, depth(&original.graph, &sites)),
        None => Tolerance::EXACT,
    }
}

/// The tolerance for two models of which nothing is known but that they should compute the same: as if one had been
/// made from the other by reordering sums.
pub(crate) fn between(a: &Model, b: &Model) -> Tolerance {
    let deep = |model: &Model| {
        // The sites are those that the passes find in a copy that goes nowhere.
        let found = dmopt_passes::run(&mut model.clone(), &dmopt_passes::Options::default());
        let sites = found.map(|outcome| outcome.sites).unwrap_or_default();
        depth(&model.graph, &sites.iter().map(|site| site.output.as_str()).collect())
    };
    match coarsest(&[&a.graph, &b.graph]) {
        Some(dtype) => Tolerance::for_class(Safety::Reassociates, dtype, deep(a).max(deep(b))),
        None => Tolerance::EXACT,
    }
}

/// The tolerance for one model in two runtimes, before that for long sums: they add up in other orders.
pub(crate) fn of_runtimes(graph: &Graph) -> Tolerance {
    match coarsest(&[graph]) {
        Some(dtype) => Tolerance::for_class(Safety::Reassociates, dtype, depth(graph, &HashSet::new())),
        None => Tolerance::EXACT,
    }
}

/// The number of linear operators (convolutions, matrix products, mixing sites) on the longest path through a graph.
/// A body counts once, however often it runs. `sites` are the results of mixing sites.
pub fn depth(graph: &Graph, sites: &HashSet<&str>) -> usize {
    const LINEAR: [&str; 9] = [
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "DeformConv",
        "Einsum",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "Attention",
    ];
    let mut depth_of = vec![0; graph.op_bound()];
    let mut deepest = 0;
    for id in graph.order().unwrap_or_default() {
        let op = graph.op(id);
        let linear = op.is_standard() && LINEAR.contains(&op.op_type.as_str());
        let mixes = op.results().any(|v| sites.contains(graph.value(v).name.as_str()));
        let inside = op.bodies().map(|body| depth(body, sites)).max().unwrap_or(0);
        let before = graph.predecessors(id).map(|p| depth_of[p.index()]).max().unwrap_or(0);
        depth_of[id.index()] = before + inside + usize::from(linear || mixes);
        deepest = deepest.max(depth_of[id.index()]);
    }
    deepest
}

/// The most terms that one element of a convolution or matrix product sums up, as far as sizes are known.
pub(crate) fn longest_sum(graph: &Graph) -> u64 {
    let dims = |value| graph.tensor_type(value).and_then(|ty| ty.dims());
    let of_op = |id| {
        let op = graph.op(id);
        let product = |dims: &[u64]| dims.iter().fold(1u64, |n, &dim| n.saturating_mul(dim));
        let terms = match (op.op_type.as_str(), op.input(1).and_then(dims)) {
            ("Conv", Some(weight)) => product(weight.get(1..).unwrap_or_default()),
            ("ConvTranspose", Some(weight)) => {
                let groups = op.int("group").and_then(|groups| u64::try_from(groups).ok()).unwrap_or(1);
                let kernel = product(weight.get(2..).unwrap_or_default());
                weight.first().map_or(0, |&inputs| kernel.saturating_mul(inputs / groups.max(1)))
            }
            ("Gemm" | "MatMul", Some(weight)) => {
                let rows = weight.len().saturating_sub(2);
                let transposed = op.int("transB").unwrap_or(0) != 0;
                (if transposed { weight.last() } else { weight.get(rows) }).copied().unwrap_or(0)
            }
            _ => 0,
        };
        op.bodies().map(longest_sum).fold(terms, u64::max)
    };
    graph.ops().map(of_op).max().unwrap_or(0)
}

/// The floating-point type with the fewest digits among all values.
fn coarsest(graphs: &[&Graph]) -> Option<DType> {
    const FINEST_LAST: [DType; 4] = [DType::BF16, DType::F16, DType::F32, DType::F64];
    let mut found = HashSet::new();
    for graph in graphs {
        each_graph(graph, &mut |graph| {
            found.extend(graph.values().filter_map(|v| graph.tensor_type(v)).map(|ty| ty.dtype));
        });
    }
    FINEST_LAST.into_iter().find(|dtype| found.contains(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_sum_is_that_of_the_layer_with_most_operands_for_an_element() {
        let of = |text: &str| longest_sum(&dmopt_ir::text::parse_model(text).unwrap().graph);
        let conv = |op: &str, w: &str| {
            format!("f (float[1,8,4,4] x, float[{w}] w) => (float[1,8,4,4] y) {{ y = {op}(x, w) }}")
        };
        assert_eq!(of(&conv("Conv", "8,4,3,3")), 36);
        assert_eq!(of(&conv("ConvTranspose<group = 2>", "8,4,3,3")), 36);
        let product = |op: &str, w: &str| {
            format!("f (float[n,6] x, float[{w}] w) => (float[n,5] y) {{ y = {op}(x, w) }}")
        };
        assert_eq!(["MatMul", "Gemm"].map(|op| of(&product(op, "6,5"))), [6, 6]);
        assert_eq!(of(&product("Gemm<transB = 1>", "5,6")), 6);
        assert_eq!(of("f (float[2] x) => (float[2] y) { y = Exp(x) }"), 0);
    }
}
