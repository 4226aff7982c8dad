//! Elements as numbers, and back, and from one type to another.

use std::borrow::Cow;

use dmopt_ir::{DType, Tensor};
use half::{bf16, f16};

use super::{Answer, Stop};

/// One number, exactly.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn is_zero(self) -> bool {
        match self {
            Number::Int(v) => v == 0,
            Number::Float(v) => v == 0.0,
        }
    }
}

impl From<i128> for Number {
    fn from(v: i128) -> Number {
        Number::Int(v)
    }
}

impl From<f64> for Number {
    fn from(v: f64) -> Number {
        Number::Float(v)
    }
}

/// Bytes of an element, for types that fill whole bytes.
pub(super) fn width(dtype: DType) -> Option<usize> {
    dtype.bits().filter(|bits| bits % 8 == 0).map(|bits| bits as usize / 8)
}

/// The elements of a tensor of numbers, one at a time.
pub(super) struct Elements<'a> {
    dtype: DType,
    width: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Elements<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Answer<Elements<'a>> {
        let dtype = tensor.dtype;
        let width = width(dtype).filter(|_| is_number(dtype)).ok_or(Stop::Beyond)?;
        Ok(Elements { dtype, width, bytes: tensor.bytes().map_err(|_| Stop::Beyond)? })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Number> + '_ {
        (0..self.len()).map(|index| self.at(index))
    }

    pub(super) fn at(&self, index: usize) -> Number {
        let start = index * self.width;
        match self.dtype {
            DType::F64 => Number::Float(f64::from_le_bytes(self.word(start))),
            DType::F32 => Number::Float(f32::from_le_bytes(self.word(start)) as f64),
            DType::F16 => Number::Float(f16::from_le_bytes(self.word(start)).to_f64()),
            DType::BF16 => Number::Float(bf16::from_le_bytes(self.word(start)).to_f64()),
            DType::I64 => Number::Int(i64::from_le_bytes(self.word(start)) as i128),
            DType::I32 => Number::Int(i32::from_le_bytes(self.word(start)) as i128),
            DType::I16 => Number::Int(i16::from_le_bytes(self.word(start)) as i128),
            DType::I8 => Number::Int(i8::from_le_bytes(self.word(start)) as i128),
            DType::U64 => Number::Int(u64::from_le_bytes(self.word(start)) as i128),
            DType::U32 => Number::Int(u32::from_le_bytes(self.word(start)) as i128),
            DType::U16 => Number::Int(u16::from_le_bytes(self.word(start)) as i128),
            _ => Number::Int(self.bytes[start] as i128),
        }
    }

    /// An element of a floating-point tensor.
    pub(super) fn float(&self, index: usize) -> Answer<f64> {
        match self.at(index) {
            Number::Float(v) => Ok(v),
            Number::Int(_) => Err(Stop::Beyond),
        }
    }

    fn word<const N: usize>(&self, start: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[start + i])
    }
}

fn is_number(dtype: DType) -> bool {
    dtype.is_float() || dtype.is_integer() || dtype == DType::Bool
}

/// Appends a number as an element of a type; integers must fit. Floats are rounded by way of f32 where they are
/// narrower than it, as runtimes do.
///
/// For one addition, subtraction, multiplication, division or square root the result is the correctly rounded one,
/// however many times it is rounded on the way: each step has more than twice as many bits plus two as the operands
/// (Figueroa 1995), and in f64 itself the operation is the one that IEEE 754 rounds.
pub(super) fn push(out: &mut Vec<u8>, dtype: DType, number: Number) -> Answer<()> {
    match (dtype, number) {
        (DType::F64, Number::Float(v)) => out.extend(v.to_le_bytes()),
        (DType::F32, Number::Float(v)) => out.extend((v as f32).to_le_bytes()),
        (DType::F16, Number::Float(v)) => out.extend(f16::from_f32(v as f32).to_le_bytes()),
        (DType::BF16, Number::Float(v)) => out.extend(bf16::from_f32(v as f32).to_le_bytes()),
        (_, Number::Float(_)) => return Err(Stop::Beyond),
        (_, Number::Int(v)) => {
            let width = width(dtype).filter(|_| !dtype.is_float() && is_number(dtype)).ok_or(Stop::Beyond)?;
            let bits = width as u32 * 8;
            let (least, most) = match dtype {
                DType::Bool => (0, 1),
                DType::I8 | DType::I16 | DType::I32 | DType::I64 => (-1 << (bits - 1), (1 << (bits - 1)) - 1),
                _ => (0, (1 << bits) - 1),
            };
            if !(least..=most).contains(&v) {
                return Err(Stop::Undefined("an integer overflows"));
            }
            out.extend(&v.to_le_bytes()[..width]);
        }
    }
    Ok(())
}

/// Casts between numbers; `count` elements. Integers wrap, as the standard says.
pub(super) fn cast(x: &Tensor, to: DType, count: usize) -> Answer<Tensor> {
    let elements = Elements::of(x)?;
    let width = width(to).filter(|_| is_number(to)).ok_or(Stop::Beyond)?;
    let mut out = Vec::with_capacity(count * width);
    for number in elements.iter() {
        match number {
            number if to == DType::Bool => out.push(!number.is_zero() as u8),
            Number::Int(v) if to == DType::F64 => out.extend((v as f64).to_le_bytes()),
            Number::Int(v) if to == DType::F32 => out.extend((v as f32).to_le_bytes()),
            Number::Int(v) if to.is_float() => {
                once(v as f32 as i128 == v)?;
                push(&mut out, to, Number::Float(v as f64))?;
            }
            Number::Int(v) => out.extend(&v.to_le_bytes()[..width]),
            Number::Float(v) if to.is_float() => {
                let narrow = width < 4 && elements.dtype == DType::F64;
                once(!narrow || v.is_nan() || v as f32 as f64 == v)?;
                push(&mut out, to, Number::Float(v))?;
            }
            Number::Float(v) => {
                let misfit = Stop::Undefined("a number does not fit the integer type");
                // Beyond i64 and u64 nothing fits; infinities and NaN are beyond.
                let whole = Some(v.trunc()).filter(|v| v.abs() < 2f64.powi(64)).ok_or(misfit)?;
                push(&mut out, to, Number::Int(whole as i128)).map_err(|_| misfit)?;
            }
        }
    }
    Ok(Tensor::raw(to, x.dims.clone(), out))
}

/// Stops where a conversion to 16 bits by way of f32 rounds twice.
fn once(is_exact: bool) -> Answer<()> {
    if is_exact { Ok(()) } else { Err(Stop::Undefined("runtimes differ in how they round this cast")) }
}
