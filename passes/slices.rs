//! Which part of its operands an operator reads to compute a slice of its result along an axis.

use dmopt_ir::{DType, Graph, OpId, ValueId};

use crate::channels::is_elementwise;
use crate::linear::axis as axis_of;

/// What an operator reads of an operand to compute a slice of its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// All of it.
    Whole,
    /// The same slice along this axis.
    Slice(usize),
}

/// True for a product of matrices, each row of which is computed of that row of the first factor.
pub(crate) fn is_product(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    op.is("MatMul") || op.is("Gemm") && op.int("transA").unwrap_or(0) == 0
}

/// What an operator reads to compute a slice of its only result along an axis; `None` where slices do not do.
pub(crate) fn roles(graph: &Graph, id: OpId, axis: usize) -> Option<Vec<Role>> {
    let op = graph.op(id);
    let result = op.output(0).filter(|_| op.results().count() == 1)?;
    let shape = graph.tensor_type(result)?.shape.as_deref()?;
    let (rank, size) = (shape.len(), shape.get(axis)?.known()?);
    // Operands broadcast; of the second factor of a product, the rows are summed over.
    let role = |operand: &Option<ValueId>| {
        let Some(value) = *operand else { return Some(Role::Whole) };
        let ty = graph.tensor_type(value)?;
        let shape = ty.shape.as_deref()?;
        let Some(own) = (axis + shape.len()).checked_sub(rank) else { return Some(Role::Whole) };
        match shape.get(own)?.known()? {
            1 => Some(Role::Whole),
            n => (n == size && can_be_cut(ty.dtype)).then_some(Role::Slice(own)),
        }
    };
    let rank_of = |slot: usize| graph.tensor_type(op.input(slot)?)?.rank();
    match op.op_type.as_str() {
        _ if !op.is_standard() => None,
        "MatMul" | "Gemm" if is_product(graph, id) => {
            let columns = rank.checked_sub(1)?;
            if axis == columns || rank_of(0)? < 2 || rank_of(1)? < 2 {
                return None;
            }
            let is_second = |slot: usize| slot == 1 && axis + 1 == columns;
            let roles = op.inputs.iter().enumerate();
            roles.map(|(slot, v)| if is_second(slot) { Some(Role::Whole) } else { role(v) }).collect()
        }
        "Softmax" | "LogSoftmax" => {
            // Before version 13, all axes from this one on are taken for one.
            let is_flat = graph.opset("") < 13;
            let along = axis_of(op.int("axis").unwrap_or(if is_flat { 1 } else { -1 }), rank)?;
            let is_apart = if is_flat { axis < along } else { axis != along };
            is_apart.then_some(vec![Role::Slice(axis)])
        }
        name if is_elementwise(op) || ELEMENTWISE.contains(&name) => op.inputs.iter().map(role).collect(),
        _ => None,
    }
}

/// True for the types that Slice takes: none of less than a byte or of eight bits of floating point.
fn can_be_cut(dtype: DType) -> bool {
    dtype.code() <= DType::BF16.code()
}

/// More elementwise operators than regions of channels take.
#[rustfmt::skip]
const ELEMENTWISE: &[&str] = &[
    "And", "Cast", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Mean", "Not", "Or",
    "Sum", "Where",
];
