//! Operators that ONNX Runtime adds to the standard ones (domain `com.microsoft`), as far as their results have the
//! type of an operand or of a standard operator's result.

use super::{Rule, Rules, conv, elementwise};

pub(super) const RULES: Rules = &[
    ("BiasGelu", Rule::Tensor(elementwise::same)),
    ("FastGelu", Rule::Tensor(elementwise::same)),
    ("FusedConv", Rule::Tensor(|call| conv::conv(call, 1, call.dtype(0)))),
    ("Gelu", Rule::Tensor(elementwise::same)),
    ("QuickGelu", Rule::Tensor(elementwise::same)),
];

#[cfg(test)]
mod tests {
    use crate::{infer::infer_graph, text};

    #[test]
    fn a_fused_convolution_gives_what_a_convolution_gives() {
        let source = "f (float[N,3,8,8] x) => (y) <float[4,3,3,3] w> {
            c = com.microsoft.FusedConv(x, w, , ) y = com.microsoft.Gelu(c) }";
        let mut graph = text::parse_model(source).unwrap().graph;
        infer_graph(&mut graph);
        let ty = graph.tensor_type(graph.outputs()[0]).map(|ty| ty.to_string());
        assert_eq!(ty.as_deref(), Some("float[N,4,6,6]"));
    }
}
