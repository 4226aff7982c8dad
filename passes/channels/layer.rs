//! Layers with constant weights, as what makes channels and as what sums over them.

use dmopt_ir::{DType, Graph, Op, OpId, ValueId};

use crate::Miss;

/// A linear map with weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layer {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
}

impl Layer {
    /// What layer an operator is, if it is one whose weights serve all channels alike (no groups).
    pub fn of(graph: &Graph, id: OpId) -> Option<Layer> {
        let op = graph.op(id);
        let layer = match op.op_type.as_str() {
            "Conv" => Layer::Conv,
            "ConvTranspose" => Layer::ConvTranspose,
            "Gemm" if graph.opset("") >= 7 && op.int("transA").unwrap_or(0) == 0 => Layer::Gemm,
            "MatMul" => Layer::MatMul,
            _ => return None,
        };
        let result = op.output(0).filter(|_| op.results().count() == 1)?;
        let floats = matches!(graph.tensor_type(result)?.dtype, DType::F32 | DType::F64);
        let whole = match layer.is_matrix() {
            true => graph.tensor_type(op.input(1)?)?.rank() == Some(2),
            false => op.int("group").unwrap_or(1) == 1,
        };
        (op.is_standard() && floats && whole).then_some(layer)
    }

    /// True for products of matrices.
    pub fn is_matrix(self) -> bool {
        matches!(self, Layer::Gemm | Layer::MatMul)
    }

    /// The axis of channels in a tensor of this rank that the layer reads or makes.
    pub fn axis(self, rank: usize) -> Option<usize> {
        let (axis, enough) = if self.is_matrix() { (rank.checked_sub(1)?, 2) } else { (1, 3) };
        (rank >= enough).then_some(axis)
    }

    /// The axes of the weights for the channels that are read and for those that are made.
    pub fn weight_axes(self, op: &Op) -> (usize, usize) {
        match self {
            Layer::Conv => (1, 0),
            Layer::Gemm if op.int("transB").unwrap_or(0) != 0 => (1, 0),
            Layer::ConvTranspose | Layer::Gemm | Layer::MatMul => (0, 1),
        }
    }
}

/// The weights of an operator, if they are a constant that nothing else reads.
///
/// # Errors
/// Why they are none.
pub(crate) fn weights(graph: &Graph, id: OpId) -> Result<ValueId, Miss> {
    let value = graph.op(id).input(1).ok_or(Miss::NoMatch)?;
    if graph.constant(value).is_none() {
        return Err(Miss::Refused(format!("the weights of {} are not constants", graph.describe(id))));
    }
    // Parts of weights that stay for another reader would add to the model.
    if graph.readers(value) != 1 {
        let name = &graph.value(value).name;
        return Err(Miss::Refused(format!("the weights '{name}' have other readers")));
    }
    Ok(value)
}
