//! What the kernels of a runtime do with memory: which results are views of an operand, which may be computed in an
//! operand's buffer, and how much a kernel needs while it runs.
//!
//! These are properties of an operator alone. Whether a buffer is in fact taken over depends on who else needs it,
//! which is for the models to say that ask here.
//!
//! - [`Kernels::Ideal`]: every elementwise operator computes in place, on any operand, and nothing needs scratch
//!   memory: what kernels written for the purpose could do.
//! - [`Kernels::OrtCpu`], [`Kernels::OrtCuda`]: what ONNX Runtime's kernels declare (`Alias`, `MayInplace` in
//!   `core/providers/{cpu,cuda}` and `contrib_ops`). An operator that is in no table here has neither, which predicts
//!   too much memory rather than too little; [`Kernels::knows`] tells.

use std::ops::Range;

use dmopt_ir::{DType, Graph, Op, OpId, TensorType};

use crate::ort::scratch::{self, Scratch};
use crate::ort::table;

/// Whose kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernels {
    /// Kernels as good as they could be.
    Ideal,
    /// ONNX Runtime's execution provider for the processor, one thread.
    OrtCpu {
        /// Major and minor version.
        version: (u32, u32),
    },
    /// ONNX Runtime's execution provider for CUDA.
    OrtCuda {
        /// Major and minor version.
        version: (u32, u32),
    },
}

impl Kernels {
    /// The operand whose buffer the result at `slot` always is, for a view.
    pub fn alias(&self, graph: &Graph, op: OpId, slot: usize) -> Option<usize> {
        let op = graph.op(op);
        let operand = match self {
            Kernels::Ideal => (slot == 0 && is_view(op)).then_some(0),
            Kernels::OrtCpu { .. } | Kernels::OrtCuda { .. } => table::alias(*self, graph, op, slot),
        }?;
        op.input(operand).map(|_| operand)
    }

    /// The operands whose buffer the result at `slot` may take over, provided that nothing else needs it and that
    /// the two are of the [same size](same_size); in order of preference. Operands that are left out may be among
    /// them.
    pub fn in_place(&self, graph: &Graph, op: OpId, slot: usize) -> Range<usize> {
        let op = graph.op(op);
        match self {
            Kernels::Ideal if slot == 0 && is_elementwise(op) => 0..op.inputs.len(),
            Kernels::Ideal => 0..0,
            Kernels::OrtCpu { .. } | Kernels::OrtCuda { .. } => table::in_place(*self, graph, op, slot),
        }
    }

    /// Bytes that the kernel allocates for itself beside its results, and frees before it ends; `None` when they depend
    /// on a size that is not known.
    pub fn scratch(&self, graph: &Graph, op: OpId) -> Option<u64> {
        let mut results = graph.op(op).results().map(|value| graph.tensor_type(value)?.bytes());
        let results = results.try_fold(0u64, |sum, bytes| sum.checked_add(bytes?));
        Some(self.scratch_parts(graph, op)?.beside(results?))
    }

    pub(crate) fn scratch_parts(&self, graph: &Graph, op: OpId) -> Option<Scratch> {
        match self {
            Kernels::OrtCpu { version } => scratch::cpu(*version, graph, op),
            Kernels::OrtCuda { .. } => scratch::cuda(graph, op),
            Kernels::Ideal => Some(Scratch::default()),
        }
    }

    /// True when the operator is in the tables. Otherwise it is taken to have neither views, nor steps in place, nor
    /// scratch memory.
    pub fn knows(&self, graph: &Graph, op: OpId) -> bool {
        match self {
            Kernels::Ideal => true,
            Kernels::OrtCpu { .. } | Kernels::OrtCuda { .. } => table::knows(*self, graph, graph.op(op)),
        }
    }
}

/// True when a buffer of one type can be used for the other: elements of equal width, the same dimensions for
/// certain, and no strings (ONNX Runtime: `SameSize` in `allocation_planner.cc`).
pub fn same_size(a: &TensorType, b: &TensorType) -> bool {
    let strings = a.dtype == DType::String || b.dtype == DType::String;
    !strings && a.dtype.bits() == b.dtype.bits() && a.same_shape(b)
}

/// True for operators whose result is their first operand under another shape.
pub(crate) fn is_view(op: &Op) -> bool {
    const VIEWS: [&str; 5] = ["Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
    op.is_standard() && VIEWS.contains(&op.op_type.as_str())
}

/// True for operators each element of whose result depends on one element of each operand alone.
fn is_elementwise(op: &Op) -> bool {
    op.is_standard() && ELEMENTWISE.binary_search(&op.op_type.as_str()).is_ok()
}

#[rustfmt::skip]
const ELEMENTWISE: &[&str] = &[
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BatchNormalization", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "DequantizeLinear", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear",
    "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu", "Where", "Xor",
];

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::text::{default_opsets, parse_graph};

    fn graph(body: &str) -> Graph {
        let text = format!("g (float[2,3] x, float[2,3] z) => (float[2,3] y) {{ {body} }}");
        parse_graph(&text, default_opsets()).unwrap()
    }

    fn first(graph: &Graph) -> OpId {
        graph.ops().next().unwrap()
    }

    #[test]
    fn the_list_of_elementwise_operators_is_sorted() {
        assert!(ELEMENTWISE.is_sorted());
        assert!(!is_elementwise(&Op::new("Conv", vec![], vec![])));
    }

    #[test]
    fn ideal_kernels_add_in_place_and_onnx_runtimes_do_not() {
        let g = graph("y = Add(x, z)");
        let on = |kernels: Kernels| kernels.in_place(&g, first(&g), 0);
        assert_eq!(on(Kernels::Ideal), 0..2);
        assert_eq!(on(Kernels::OrtCpu { version: (1, 32) }), 0..0);
        assert_eq!(on(Kernels::OrtCuda { version: (1, 32) }), 0..0);
    }

    #[test]
    fn every_target_has_views() {
        let g = graph("y = Identity(x)");
        for kernels in
            [Kernels::Ideal, Kernels::OrtCpu { version: (1, 32) }, Kernels::OrtCuda { version: (1, 32) }]
        {
            assert_eq!(kernels.alias(&g, first(&g), 0), Some(0));
        }
    }

    #[test]
    fn buffers_of_one_size_may_hold_other_types() {
        let ty = |dtype, dims: &[u64]| TensorType::known(dtype, dims);
        assert!(same_size(&ty(DType::F32, &[2, 3]), &ty(DType::I32, &[2, 3])));
        assert!(!same_size(&ty(DType::F32, &[2, 3]), &ty(DType::F32, &[3, 2])));
        assert!(!same_size(&ty(DType::F32, &[2]), &ty(DType::F16, &[2])));
        assert!(!same_size(&ty(DType::String, &[2]), &ty(DType::String, &[2])));
    }
}
