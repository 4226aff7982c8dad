//! Results of single operators on constants, computed without a runtime.
//!
//! A folded value has to be the one that every runtime computes, not the one that some kernel does. So every result
//! has a class:
//! - [`Safety::Exact`]: movement of elements, comparisons, integers, casts, and the operations on floats of which
//!   IEEE 754 defines every bit, in single and double precision.
//! - [`Safety::Reassociates`]: sums, products and means of several floats, matrix products and elementary functions,
//!   computed in f64 and rounded once; whatever is rounded in half precision, which runtimes may keep wider until later. A
//!   runtime's own result differs by its roundings alone.
//!
//! What the standard leaves open has no result: integer overflow, division by zero, casts of what does not fit or is
//! rounded twice, the greatest of NaN and another number or of zeros of both signs, and what has partial results in half
//! precision: whether they are rounded, too, shows in the third digit.
//!
//! `moves.rs` has what moves elements, `arithmetic.rs` what computes them, `number.rs` the elements themselves, and
//! `space.rs` their positions.

mod arithmetic;
mod moves;
mod number;
mod space;
#[cfg(test)]
mod tests;

use dmopt_ir::{DType, Op, Safety, Tensor};

pub(crate) use moves::moves;
pub(crate) use space::product;

/// Results above this many bytes are not computed.
const LARGEST: u64 = 1 << 28;

/// Why there is no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Not an operator, type or size of this module, or operands that do not fit the operator.
    Beyond,
    /// The standard does not say what the result is.
    Undefined(&'static str),
    /// There is a result, of a class that is not allowed.
    Unsafe(Safety),
}

type Answer<T> = Result<T, Stop>;

const HALF: Stop = Stop::Undefined("runtimes differ in how they round partial results in half precision");

/// Results of an operator on constants.
#[derive(PartialEq, Debug)]
pub(crate) struct Evaluated {
    /// One for each output position.
    pub(crate) results: Vec<Tensor>,
    /// How they may differ from what a runtime computes.
    pub(crate) safety: Safety,
}

/// Computes an operator of version `opset`, if the class of the result is within `allow` and if no result has more
/// than `room` bytes; what only renames the elements of an operand takes no room.
pub(crate) fn evaluate(
    op: &Op,
    opset: i64,
    inputs: &[Option<&Tensor>],
    allow: Safety,
    room: u64,
) -> Answer<Evaluated> {
    if !op.is_standard() {
        return Err(Stop::Beyond);
    }
    let call = Call { op, opset, inputs, room: room.min(LARGEST) };
    if let Some(results) = moves::evaluate(&call)? {
        return Ok(Evaluated { results, safety: Safety::Exact });
    }
    let safety = arithmetic::class(&call);
    if safety > allow {
        return Err(Stop::Unsafe(safety));
    }
    if arithmetic::has_partial_results(&call) && inputs.iter().flatten().any(arithmetic::is_half) {
        return Err(HALF);
    }
    Ok(Evaluated { results: vec![arithmetic::evaluate(&call)?], safety })
}

/// One operator to compute.
struct Call<'a> {
    op: &'a Op,
    opset: i64,
    inputs: &'a [Option<&'a Tensor>],
    /// Bytes that a result may have.
    room: u64,
}

impl<'a> Call<'a> {
    fn op_type(&self) -> &'a str {
        &self.op.op_type
    }

    fn optional(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    fn input(&self, slot: usize) -> Answer<&'a Tensor> {
        self.optional(slot).ok_or(Stop::Beyond)
    }

    /// Every operand; none may be left out.
    fn all(&self) -> Answer<Vec<&'a Tensor>> {
        (0..self.inputs.len()).map(|slot| self.input(slot)).collect()
    }

    /// Integers that moved from an attribute to an operand between versions of the operator.
    fn ints(&self, name: &str, slot: usize) -> Answer<Option<Vec<i64>>> {
        match self.optional(slot) {
            Some(tensor) => tensor.to_i64().map(Some).map_err(|_| Stop::Beyond),
            None => Ok(self.op.ints(name).map(<[i64]>::to_vec)),
        }
    }

    /// Number of elements of a result of whole bytes that fits the room.
    fn count(&self, dims: &[u64], dtype: DType) -> Answer<usize> {
        let elements = product(dims).filter(|_| space::is_addressable(dims)).ok_or(Stop::Beyond)?;
        let fits = dtype.packed_len(elements).is_some_and(|bytes| bytes <= self.room);
        if fits && number::width(dtype).is_some() { Ok(elements as usize) } else { Err(Stop::Beyond) }
    }
}
