//! Which results of ONNX Runtime's kernels are views of an operand, and which may take over an operand's buffer.
//!
//! Sources: the `KernelDefBuilder` calls `Alias` and `MayInplace` in `core/providers/{cpu,cuda}` and
//! `contrib_ops/{cpu,cuda}`. What is said of the processor is measured as well, by the law of this crate's tests; of
//! CUDA it was measured once, operator by operator (`scripts/gpu_operators.py`, docs/gpu.md).

use std::ops::Range;

use dmopt_ir::{DType, Graph, Op};

use crate::Kernels;

/// What a kernel declares about its results.
enum Rule {
    /// The first result is the first operand (`Alias(0, 0)`).
    View,
    /// The first result may take over any of these operands (`MayInplace(i, 0)`).
    InPlace(Range<usize>),
    /// Neither.
    Fresh,
}

/// The operand that the result at `slot` is a view of.
pub(crate) fn alias(kernels: Kernels, graph: &Graph, op: &Op, slot: usize) -> Option<usize> {
    // Running mean and variance, which training updates (cpu/nn/batch_norm.cc, since version 14).
    if op.is("BatchNormalization") && graph.opset("") >= 14 && matches!(slot, 1 | 2) {
        return Some(slot + 2);
    }
    (slot == 0 && matches!(rule(kernels, graph, op), Some(Rule::View))).then_some(0)
}

/// The operands whose buffer the result at `slot` may take over.
pub(crate) fn in_place(kernels: Kernels, graph: &Graph, op: &Op, slot: usize) -> Range<usize> {
    match rule(kernels, graph, op) {
        Some(Rule::InPlace(operands)) if slot == 0 => operands,
        _ => 0..0,
    }
}

/// True when the operator is in a table.
pub(crate) fn knows(kernels: Kernels, graph: &Graph, op: &Op) -> bool {
    rule(kernels, graph, op).is_some()
}

fn rule(kernels: Kernels, graph: &Graph, op: &Op) -> Option<Rule> {
    let on_cuda = matches!(kernels, Kernels::OrtCuda { .. });
    let version = match kernels {
        Kernels::OrtCpu { version } | Kernels::OrtCuda { version } => version,
        Kernels::Ideal => return None,
    };
    let on_cpu = |rule| if on_cuda { Rule::Fresh } else { rule };
    let domain = if op.domain == "ai.onnx" { "" } else { op.domain.as_str() };
    let first = Rule::InPlace(0..1);
    Some(match (domain, op.op_type.as_str()) {
        // cpu/tensor/{identity_op,reshape,squeeze,unsqueeze,flatten}.cc and their like of CUDA.
        ("", "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten") => Rule::View,
        // cuda/tensor/identity_op.cc, cuda/nn/dropout.cc; the kernel of the processor copies.
        ("", "Dropout") if on_cuda && graph.opset("") < 12 => Rule::View,
        // cpu/activation/activations.cc, cuda/activation/activations.cc.
        (
            "",
            "Elu" | "HardSigmoid" | "LeakyRelu" | "Relu" | "Selu" | "Sigmoid" | "Softplus" | "Softsign"
            | "Tanh" | "ThresholdedRelu",
        ) => first,
        // No kernels on CUDA: they run on the processor.
        ("", "Celu" | "Mean") if on_cuda => return None,
        // cpu/activation/activations.cc, cpu/math/clip.cc, cpu/tensor/{cast_op,scatter}.cc.
        ("", "Celu" | "Clip" | "Cast" | "Scatter" | "ScatterElements") => on_cpu(first),
        // cpu/math/softmax.cc: declared for float alone.
        ("", "Softmax" | "LogSoftmax") => match op.input(0).and_then(|x| graph.tensor_type(x)) {
            Some(ty) if ty.dtype == DType::F32 => on_cpu(first),
            _ => Rule::Fresh,
        },
        // {cpu,cuda}/nn/shrink.cc, {cpu,cuda}/tensor/trilu.cc.
        ("", "Shrink" | "Trilu") => first,
        // cuda/tensor/scatter_nd.cc.
        ("", "ScatterND") if on_cuda => first,
        // cuda/tensor/gelu.cc, contrib_ops/cuda/activation; none on the processor.
        ("", "Gelu") | ("com.microsoft", "Gelu" | "QuickGelu") if on_cuda => first,
        // As 1.31 was measured on CUDA; older versions, like the processor, run it as the operators that define it.
        ("", "HardSwish") if on_cuda && version >= (1, 31) => first,
        // contrib_ops/cpu/fused_conv.cc: the operand that is added, since 1.24.
        ("com.microsoft", "FusedConv") if !on_cuda && version >= (1, 24) => Rule::InPlace(3..4),
        ("com.microsoft", "FusedConv" | "Gelu" | "QuickGelu" | "BiasGelu" | "FastGelu") => Rule::Fresh,
        ("", "If" | "Loop") => Rule::Fresh,
        ("", "Scan") if graph.opset("") >= 9 => Rule::Fresh,
        ("", name) if FRESH.binary_search(&name).is_ok() => Rule::Fresh,
        _ => return None,
    })
}

/// Operators of the standard operator set whose kernels declare neither on either execution provider.
#[rustfmt::skip]
const FRESH: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Equal", "Erf", "Exp", "Expand",
    "EyeLike", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Hardmax", "InstanceNormalization",
    "IsInf", "IsNaN", "LRN", "LayerNormalization", "Less", "LessOrEqual", "Log", "LpNormalization",
    "LpPool", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or",
    "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Range", "Reciprocal", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Resize", "ReverseSequence", "Round", "ScatterND", "Shape", "Sign",
    "Sin", "Sinh", "Size", "Slice", "SpaceToDepth", "Split", "Sqrt", "Sub", "Sum", "Tan", "Tile", "TopK",
    "Transpose", "Upsample", "Where", "Xor",
];

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_is_sorted() {
        assert!(super::FRESH.is_sorted());
    }
}
