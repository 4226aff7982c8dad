//! Which versions of ONNX Runtime run a graph as it is meant.

use dmopt_ir::Graph;

use crate::accumulate_in_place::{BIASED, is_fused};

/// The oldest ONNX Runtime, as major and minor version, that computes this graph in the memory that was planned for and
/// gives right numbers at every level of optimization; `None` if every version does.
///
/// `FusedConv` overwrites its operand `Z` from 1.24 on. With a bias and `Z`, versions up to 1.26 give wrong numbers at
/// the highest level (the conversion to blocked layouts takes `Z` as it is).
pub fn oldest_onnxruntime(graph: &Graph) -> Option<(u32, u32)> {
    let of = |id| {
        let op = graph.op(id);
        let fused = is_fused(op) && op.input(3).is_some();
        let own = fused.then(|| if op.input(2).is_some() { BIASED } else { (1, 24) });
        op.bodies().filter_map(oldest_onnxruntime).chain(own).max()
    };
    graph.ops().filter_map(of).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::text::parse_model;

    #[test]
    fn a_step_in_place_needs_a_version_that_has_it() {
        let oldest = |operands: &str| {
            let text = format!(
                "f (float[1,1,2,2] x, float[1,1,2,2] z) => (y) <float[1,1,1,1] w = {{2}}, float[1] b = {{1}}> {{
                   y = com.microsoft.FusedConv({operands}) }}"
            );
            oldest_onnxruntime(&parse_model(&text).unwrap().graph)
        };
        assert_eq!(oldest("x, w, b"), None);
        assert_eq!(oldest("x, w, , z"), Some((1, 24)));
        assert_eq!(oldest("x, w, b, z"), Some((1, 27)));
    }
}
