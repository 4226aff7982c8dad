//! Values of single operators on constants, for constant folding.
//!
//! Written here instead of asked from a runtime: the shape arithmetic that exporters leave behind needs no runtime
//! at all, and a folded value has to be the one that every runtime computes, not the one that some kernel does.
//! Two sets of operators are told apart:
//! - **exact**: data movement (`layout.rs`), comparisons, integer arithmetic, and the floating-point operations whose
//!   result IEEE 754 determines (each is one correctly rounded operation). Folding them is bit-identical.
//! - **rounding** ([`Safety::Reassociates`]): reductions, matrix products and elementary functions, computed in f64
//!   and rounded once. Any runtime's own result differs by its roundings alone.
//!
//! Whatever the standard leaves open (integer overflow, division of negative integers, NaN in a maximum) or an index out of range is an error: nothing is folded then.

mod arithmetic;
mod layout;

use dmopt_ir::{Attribute, AttributeValue, DType, EvalError, Evaluator, Op, Safety, Tensor, TensorError};

/// Results above this many bytes are not computed.
const LARGEST: u64 = 1 << 28;

/// The evaluator for constant folding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Folder {
    safety: Safety,
}

impl Folder {
    /// An evaluator whose values differ from those of a runtime by no more than `safety` allows.
    pub fn new(safety: Safety) -> Folder {
        Folder { safety }
    }
}

impl Evaluator for Folder {
    fn evaluate(&self, op: &Op, opset: i64, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, EvalError> {
        if !op.is_standard() {
            return Err(EvalError::Unsupported(format!("{}::{}", op.domain, op.op_type)));
        }
        // Sizes of zero may hide others that overflow when strides are computed.
        if inputs.iter().flatten().any(|t| !addressable(&t.dims)) {
            return Err(EvalError::Failed(format!("{}: an operand is too large", op.op_type)));
        }
        let rounding = self.safety >= Safety::Reassociates;
        let call = Call {
            op: &op.op_type,
            attributes: &op.attributes,
            opset,
            inputs,
            outputs: op.outputs.len(),
            rounding,
        };
        let results = match layout::evaluate(&call)? {
            Some(results) => results,
            None => {
                vec![arithmetic::evaluate(&call)?.ok_or_else(|| EvalError::Unsupported(op.op_type.clone()))?]
            }
        };
        if results.len() != op.outputs.len() {
            return Err(call.failed("optional outputs are not computed"));
        }
        Ok(results)
    }
}

/// One operator to evaluate.
struct Call<'a> {
    op: &'a str,
    attributes: &'a [Attribute],
    opset: i64,
    inputs: &'a [Option<&'a Tensor>],
    outputs: usize,
    /// Results may be rounded differently than a runtime would.
    rounding: bool,
}

impl<'a> Call<'a> {
    fn failed(&self, why: impl std::fmt::Display) -> EvalError {
        EvalError::Failed(format!("{}: {why}", self.op))
    }

    fn optional(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    fn input(&self, slot: usize) -> Result<&'a Tensor, EvalError> {
        self.optional(slot).ok_or_else(|| self.failed(format!("operand {slot} is missing")))
    }

    fn attribute(&self, name: &str) -> Option<&'a AttributeValue> {
        self.attributes.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    fn int(&self, name: &str) -> Result<Option<i64>, EvalError> {
        match self.attribute(name) {
            None => Ok(None),
            Some(AttributeValue::Int(v)) => Ok(Some(*v)),
            Some(_) => Err(self.failed(format!("attribute {name} is no integer"))),
        }
    }

    /// Integers that moved from an attribute to an operand between versions of the operator.
    fn ints(&self, name: &str, slot: usize) -> Result<Option<Vec<i64>>, EvalError> {
        match (self.attribute(name), self.optional(slot)) {
            (Some(AttributeValue::Ints(v)), None) => Ok(Some(v.clone())),
            (None, Some(tensor)) => Ok(Some(self.integers(tensor)?)),
            (None, None) => Ok(None),
            _ => Err(self.failed(format!("attribute {name} is not a list of integers"))),
        }
    }

    fn integers(&self, tensor: &Tensor) -> Result<Vec<i64>, EvalError> {
        // Values of u64 above the range of i64 would wrap.
        if tensor.dtype == DType::U64 {
            return Err(self.failed("elements of type uint64"));
        }
        tensor.to_i64().map_err(|e| self.failed(e))
    }

    fn floats(&self, tensor: &Tensor) -> Result<Vec<f64>, EvalError> {
        tensor.to_f64().map_err(|e| self.failed(e))
    }

    fn made(&self, result: Result<Tensor, TensorError>) -> Result<Tensor, EvalError> {
        result.map_err(|e| self.failed(e))
    }

    /// An axis counted from the front; negative ones count from the back.
    fn axis(&self, axis: i64, rank: usize) -> Result<usize, EvalError> {
        let counted = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(counted)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| self.failed(format!("position {axis} of {rank}")))
    }

    fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, EvalError> {
        let mut all = axes.iter().map(|&a| self.axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
        all.sort_unstable();
        if all.windows(2).any(|w| w[0] == w[1]) {
            return Err(self.failed("an axis is named twice"));
        }
        Ok(all)
    }

    /// Number of elements of a result, if it may be computed.
    fn volume(&self, dims: &[u64], dtype: DType) -> Result<usize, EvalError> {
        dims.iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|_| addressable(dims))
            .filter(|&n| dtype.packed_len(n).is_some_and(|bytes| bytes <= LARGEST))
            .map(|n| n as usize)
            .ok_or_else(|| self.failed("the result is too large or of a type without fixed size"))
    }

    /// Bytes of one element, for types that fill whole bytes.
    fn width(&self, dtype: DType) -> Result<usize, EvalError> {
        match dtype.bits() {
            Some(bits) if bits % 8 == 0 => Ok(bits as usize / 8),
            _ => Err(self.failed(format!("elements of type {dtype}"))),
        }
    }
}

/// True when positions along every axis can be computed without overflow.
fn addressable(dims: &[u64]) -> bool {
    let volume = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
    volume.is_some_and(|n| n <= i64::MAX as u64 / 16)
}

/// True when an integer type has this value.
fn representable(v: i64, dtype: DType) -> bool {
    match dtype {
        DType::I8 => i8::try_from(v).is_ok(),
        DType::I16 => i16::try_from(v).is_ok(),
        DType::I32 => i32::try_from(v).is_ok(),
        DType::U8 => u8::try_from(v).is_ok(),
        DType::U16 => u16::try_from(v).is_ok(),
        DType::U32 => u32::try_from(v).is_ok(),
        _ => true,
    }
}

/// Steps between neighbours along each axis of a dense tensor, in elements.
fn strides(dims: &[u64]) -> Vec<isize> {
    let mut step = 1;
    let mut all: Vec<isize> = dims
        .iter()
        .rev()
        .map(|&d| {
            let this = step;
            step *= d.max(1) as isize;
            this
        })
        .collect();
    all.reverse();
    all
}

/// Positions in a source of every element of a result in row-major order, where the source moves by `steps` along
/// the axes of the result.
fn walk(dims: &[u64], start: isize, steps: &[isize]) -> impl Iterator<Item = isize> + use<> {
    let (dims, steps) = (dims.to_vec(), steps.to_vec());
    let mut index = vec![0u64; dims.len()];
    let mut at = start;
    let total = dims.iter().product::<u64>();
    (0..total).map(move |_| {
        let here = at;
        for ((i, &dim), &step) in index.iter_mut().zip(&dims).zip(&steps).rev() {
            *i += 1;
            at += step;
            if *i < dim {
                break;
            }
            at -= step * dim as isize;
            *i = 0;
        }
        here
    })
}

/// Common shape of operands under multidirectional broadcasting; `None` when they do not fit.
fn broadcast(shapes: &[&[u64]]) -> Option<Vec<u64>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    (0..rank)
        .map(|axis| {
            let sizes = shapes.iter().filter_map(|s| s.get((axis + s.len()).checked_sub(rank)?).copied());
            sizes.filter(|&d| d != 1).try_fold(1, |known, d| (known == 1 || known == d).then_some(d))
        })
        .collect()
}

/// Steps of an operand along the axes of the shape that it is broadcast to.
fn broadcast_steps(from: &[u64], to: usize) -> Vec<isize> {
    let mut steps = vec![0; to - from.len()];
    steps.extend(strides(from).into_iter().zip(from).map(|(step, &d)| if d == 1 { 0 } else { step }));
    steps
}

#[cfg(test)]
mod tests;
