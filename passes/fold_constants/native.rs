//! Operators on constants, computed without a runtime: movement of elements, integer and boolean arithmetic, and
//! the floating-point arithmetic that IEEE 754 defines to the last bit.
//!
//! What the standard leaves open has no answer here: integer overflow, division by zero, casts of what does not
//! fit, casts that runtimes round twice.

use std::borrow::Cow;

use dmopt_ir::{AttributeValue, DType, Op, Tensor};
use half::{bf16, f16};

/// Operators that pair up elements list their positions; beyond this many elements they are left to a runtime.
const MAX_ELEMENTS: u64 = 1 << 20;

/// Why there is no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// Not computed here; a runtime may know.
    Beyond,
    /// The standard does not say what the result is.
    Undefined(&'static str),
}

type Answer<T> = Result<T, Stop>;

/// Results of a standard operator on constants, one for each output position.
pub(super) fn evaluate(op: &Op, opset: i64, inputs: &[Option<&Tensor>]) -> Answer<Vec<Tensor>> {
    let input = |slot: usize| inputs.get(slot).copied().flatten().ok_or(Stop::Beyond);
    let ints = |slot: usize| input(slot).ok()?.to_i64().ok();
    let dims = |slot: usize| Some(input(slot).ok()?.dims.clone());
    if let Some(to) = renamed(op, &dims, &ints) {
        return Ok(vec![Tensor { dims: to, ..input(0)?.clone() }]);
    }
    if let Some(moves) = moves(op, opset, &dims, &ints) {
        let model = input(if op.op_type == "Where" { 1 } else { 0 })?;
        return moves.iter().map(|to| moved(to, model.dtype, inputs)).collect();
    }
    let result = match op.op_type.as_str() {
        "Cast" => {
            cast(input(0)?, op.int("to").and_then(|to| DType::from_code(to as i32)).ok_or(Stop::Beyond)?)
        }
        "CastLike" => cast(input(0)?, input(1)?.dtype),
        "Neg" | "Abs" | "Sqrt" | "Not" => unary(&op.op_type, input(0)?),
        "Range" => range(input(0)?, input(1)?, input(2)?),
        "ConstantOfShape" => constant_of_shape(op, input(0)?),
        "Min" | "Max" => (1..inputs.len())
            .try_fold(input(0)?.clone(), |so_far, slot| binary(op, opset, &so_far, input(slot)?)),
        _ => binary(op, opset, input(0)?, input(1)?),
    };
    Ok(vec![result?])
}

/// True for operators that move elements, or compute them as IEEE 754 defines: every runtime gives the same bits.
pub(super) fn is_exact(op_type: &str) -> bool {
    const MOVE: &[&str] = &[
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ];
    const COMPUTE: &[&str] = &["Abs", "Add", "ConstantOfShape", "Div", "Mul", "Neg", "Sqrt", "Sub"];
    MOVE.contains(&op_type) || COMPUTE.contains(&op_type)
}

/// One number, exactly.
#[derive(Clone, Copy, Debug)]
enum Number {
    Int(i128),
    Float(f64),
}

/// The elements of a tensor, one at a time.
struct Elements<'a> {
    dtype: DType,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Elements<'a> {
    fn of(tensor: &'a Tensor) -> Answer<Elements<'a>> {
        let readable = tensor.dtype.is_float() || tensor.dtype.is_integer() || tensor.dtype == DType::Bool;
        if !readable {
            return Err(Stop::Beyond);
        }
        Ok(Elements { dtype: tensor.dtype, bytes: tensor.bytes().map_err(|_| Stop::Beyond)? })
    }

    fn len(&self) -> usize {
        self.bytes.len() / width(self.dtype)
    }

    fn at(&self, index: usize) -> Number {
        let start = index * width(self.dtype);
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

    fn word<const N: usize>(&self, start: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[start + i])
    }
}

/// Bytes of an element of a type that [`Elements`] reads.
fn width(dtype: DType) -> usize {
    dtype.bits().map_or(1, |bits| bits as usize / 8)
}

/// Appends a number as an element of a type; integers must fit. Floats are rounded by way of f32 where they are
/// narrower than it, as runtimes do; for one operation on such numbers that is the correctly rounded result.
fn push(out: &mut Vec<u8>, dtype: DType, number: Number) -> Answer<()> {
    match (dtype, number) {
        (DType::F64, Number::Float(v)) => out.extend(v.to_le_bytes()),
        (DType::F32, Number::Float(v)) => out.extend((v as f32).to_le_bytes()),
        (DType::F16, Number::Float(v)) => out.extend(f16::from_f32(v as f32).to_le_bytes()),
        (DType::BF16, Number::Float(v)) => out.extend(bf16::from_f32(v as f32).to_le_bytes()),
        (_, Number::Float(_)) => return Err(Stop::Beyond),
        (_, Number::Int(v)) => {
            let bits = width(dtype) as u32 * 8;
            let (least, most) = match dtype {
                DType::Bool => (0, 1),
                DType::I8 | DType::I16 | DType::I32 | DType::I64 => (-1 << (bits - 1), (1 << (bits - 1)) - 1),
                _ => (0, (1 << bits) - 1),
            };
            if !(least..=most).contains(&v) {
                return Err(Stop::Undefined("an integer overflows"));
            }
            out.extend(&v.to_le_bytes()[..width(dtype)]);
        }
    }
    Ok(())
}

/// Casts between numbers. Integers wrap, as the standard says.
fn cast(x: &Tensor, to: DType) -> Answer<Tensor> {
    let elements = Elements::of(x)?;
    if !(to.is_float() || to.is_integer() || to == DType::Bool) {
        return Err(Stop::Beyond);
    }
    let mut out = Vec::with_capacity(elements.len() * width(to));
    for index in 0..elements.len() {
        match elements.at(index) {
            Number::Int(v) if to == DType::Bool => out.push((v != 0) as u8),
            Number::Float(v) if to == DType::Bool => out.push((v != 0.0) as u8),
            Number::Int(v) if to == DType::F64 => out.extend((v as f64).to_le_bytes()),
            Number::Int(v) if to == DType::F32 => out.extend((v as f32).to_le_bytes()),
            Number::Int(v) if to.is_float() => {
                once(v as f32 as i128 == v)?;
                push(&mut out, to, Number::Float(v as f64))?;
            }
            Number::Int(v) => out.extend(&v.to_le_bytes()[..width(to)]),
            Number::Float(v) if to.is_float() => {
                let narrow = width(to) < 4 && elements.dtype == DType::F64;
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

fn unary(op_type: &str, x: &Tensor) -> Answer<Tensor> {
    let elements = Elements::of(x)?;
    let mut out = Vec::with_capacity(elements.bytes.len());
    for index in 0..elements.len() {
        let number = match (op_type, elements.at(index)) {
            ("Not", Number::Int(v)) if x.dtype == DType::Bool => Number::Int(1 - v.min(1)),
            (_, Number::Int(_)) if x.dtype == DType::Bool => return Err(Stop::Beyond),
            ("Neg", Number::Int(v)) => Number::Int(-v),
            ("Abs", Number::Int(v)) => Number::Int(v.abs()),
            ("Neg", Number::Float(v)) => Number::Float(-v),
            ("Abs", Number::Float(v)) => Number::Float(v.abs()),
            ("Sqrt", Number::Float(v)) => Number::Float(v.sqrt()),
            _ => return Err(Stop::Beyond),
        };
        push(&mut out, x.dtype, number)?;
    }
    Ok(Tensor::raw(x.dtype, x.dims.clone(), out))
}

/// An operator on pairs of elements, with broadcasting.
fn binary(op: &Op, opset: i64, x: &Tensor, y: &Tensor) -> Answer<Tensor> {
    let op_type = op.op_type.as_str();
    let compares = matches!(op_type, "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual");
    let computes = matches!(
        op_type,
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Min" | "Max" | "And" | "Or" | "Xor" | "Equal"
    );
    // Before version 7 broadcasting had rules of its own.
    if !(compares || computes) || opset < 7 || x.dtype != y.dtype {
        return Err(Stop::Beyond);
    }
    let (a, b) = (Elements::of(x)?, Elements::of(y)?);
    let dims = broadcast(&x.dims, &y.dims).ok_or(Stop::Beyond)?;
    let to = if compares { DType::Bool } else { x.dtype };
    let positions = |own: &[u64]| walk(&dims, &spread(own, &dims)?, 0);
    let (left, right) = (positions(&x.dims).ok_or(Stop::Beyond)?, positions(&y.dims).ok_or(Stop::Beyond)?);
    let mut out = Vec::with_capacity(left.len() * width(to));
    for (i, j) in left.into_iter().zip(right) {
        let number = match (a.at(i), b.at(j)) {
            (Number::Int(a), Number::Int(b)) => on_ints(op, x.dtype, a, b)?,
            (Number::Float(a), Number::Float(b)) => on_floats(op_type, a, b)?,
            _ => return Err(Stop::Beyond),
        };
        push(&mut out, to, number)?;
    }
    Ok(Tensor::raw(to, dims, out))
}

fn on_ints(op: &Op, dtype: DType, a: i128, b: i128) -> Answer<Number> {
    let is_bool = dtype == DType::Bool;
    let divisor = || if b == 0 { Err(Stop::Undefined("an integer is divided by zero")) } else { Ok(b) };
    Ok(Number::Int(match op.op_type.as_str() {
        "Equal" => (a == b) as i128,
        "And" if is_bool => a & b,
        "Or" if is_bool => a | b,
        "Xor" if is_bool => a ^ b,
        _ if is_bool => return Err(Stop::Beyond),
        "Less" => (a < b) as i128,
        "Greater" => (a > b) as i128,
        "LessOrEqual" => (a <= b) as i128,
        "GreaterOrEqual" => (a >= b) as i128,
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a.checked_mul(b).ok_or(Stop::Undefined("an integer overflows"))?,
        "Div" => a / divisor()?,
        "Mod" if op.int("fmod") == Some(1) => a % divisor()?,
        // The sign of the divisor.
        "Mod" => (a % divisor()? + b) % b,
        "Min" => a.min(b),
        "Max" => a.max(b),
        _ => return Err(Stop::Beyond),
    }))
}

fn on_floats(op_type: &str, a: f64, b: f64) -> Answer<Number> {
    Ok(match op_type {
        "Add" => Number::Float(a + b),
        "Sub" => Number::Float(a - b),
        "Mul" => Number::Float(a * b),
        "Div" => Number::Float(a / b),
        "Equal" => Number::Int((a == b) as i128),
        "Less" => Number::Int((a < b) as i128),
        "Greater" => Number::Int((a > b) as i128),
        "LessOrEqual" => Number::Int((a <= b) as i128),
        "GreaterOrEqual" => Number::Int((a >= b) as i128),
        _ => return Err(Stop::Beyond),
    })
}

/// `start, start + delta, ..` up to `limit`, integers only.
fn range(start: &Tensor, limit: &Tensor, delta: &Tensor) -> Answer<Tensor> {
    let only = |t: &Tensor| match (t.elements(), Elements::of(t)?.at(0)) {
        (Some(1), Number::Int(v)) if t.dtype == start.dtype => Ok(v),
        _ => Err(Stop::Beyond),
    };
    if [start, limit, delta].iter().any(|t| t.elements() != Some(1)) {
        return Err(Stop::Beyond);
    }
    let (first, limit, delta) = (only(start)?, only(limit)?, only(delta)?);
    if delta == 0 {
        return Err(Stop::Undefined("a range steps by zero"));
    }
    let count = ((limit - first) / delta + ((limit - first) % delta != 0) as i128).max(0);
    let count = if (limit - first).signum() == delta.signum() { count } else { 0 };
    if count > MAX_ELEMENTS as i128 {
        return Err(Stop::Beyond);
    }
    let mut out = Vec::new();
    for index in 0..count {
        push(&mut out, start.dtype, Number::Int(first + index * delta))?;
    }
    Ok(Tensor::raw(start.dtype, vec![count as u64], out))
}

fn constant_of_shape(op: &Op, shape: &Tensor) -> Answer<Tensor> {
    let dims: Option<Vec<u64>> =
        shape.to_i64().ok().and_then(|sizes| sizes.into_iter().map(|d| u64::try_from(d).ok()).collect());
    let dims = dims.ok_or(Stop::Beyond)?;
    let elements = count(&dims).ok_or(Stop::Beyond)?;
    let (dtype, element) = match op.attribute("value") {
        None => (DType::F32, vec![0; 4]),
        Some(AttributeValue::Tensor(t))
            if t.elements() == Some(1) && t.dtype.bits().is_some_and(|b| b >= 8) =>
        {
            (t.dtype, t.bytes().map_err(|_| Stop::Beyond)?.into_owned())
        }
        Some(_) => return Err(Stop::Beyond),
    };
    Ok(Tensor::raw(dtype, dims, element.repeat(elements)))
}

/// Where the elements of a result come from: each an operand and a position there.
pub(super) struct Moves {
    /// Shape of the result.
    pub(super) dims: Vec<u64>,
    /// Source of each element, in order.
    pub(super) from: Vec<(usize, usize)>,
}

/// Gathers bytes; every operand that elements come from must have the type of the result.
fn moved(to: &Moves, dtype: DType, inputs: &[Option<&Tensor>]) -> Answer<Tensor> {
    let width = dtype.bits().filter(|bits| bits % 8 == 0 && *bits > 0).ok_or(Stop::Beyond)? as usize / 8;
    let mut sources: Vec<Cow<'_, [u8]>> = Vec::new();
    for input in inputs {
        sources.push(match input {
            Some(t) if t.dtype == dtype => t.bytes().map_err(|_| Stop::Beyond)?,
            _ => Cow::default(),
        });
    }
    let mut out = Vec::with_capacity(to.from.len() * width);
    for &(operand, index) in &to.from {
        let element = sources.get(operand).and_then(|s| s.get(index * width..(index + 1) * width));
        out.extend(element.ok_or(Stop::Beyond)?);
    }
    Ok(Tensor::raw(dtype, to.dims.clone(), out))
}

/// How an operator that computes nothing moves elements, one entry for each result. `dims` gives the shape of the
/// operand at a position, `ints` its elements where they are parameters (sizes, axes, positions, conditions).
/// `None` for every other operator, and where a parameter is not known.
pub(super) fn moves(
    op: &Op,
    opset: i64,
    dims: &dyn Fn(usize) -> Option<Vec<u64>>,
    ints: &dyn Fn(usize) -> Option<Vec<i64>>,
) -> Option<Vec<Moves>> {
    if let Some(to) = renamed(op, dims, ints) {
        let from = (0..count(&to)?).collect();
        return Some(one(to, from));
    }
    match op.op_type.as_str() {
        "Transpose" => {
            let x = dims(0)?;
            let perm = match op.ints("perm") {
                Some(perm) => perm.iter().map(|&a| place(a, x.len())).collect::<Option<Vec<_>>>()?,
                None => (0..x.len()).rev().collect(),
            };
            let (to, steps) = perm.iter().map(|&a| (x[a], strides(&x)[a])).unzip::<_, _, Vec<_>, Vec<_>>();
            (count(&to)? == count(&x)?).then_some(())?;
            let from = walk(&to, &steps, 0)?;
            Some(one(to, from))
        }
        "Expand" => {
            let (x, shape) = (dims(0)?, ints(1)?);
            let shape: Option<Vec<u64>> = shape.into_iter().map(|d| u64::try_from(d).ok()).collect();
            let to = broadcast(&x, &shape?)?;
            let from = walk(&to, &spread(&x, &to)?, 0)?;
            Some(one(to, from))
        }
        "Tile" if opset >= 6 => {
            let (x, repeats) = (dims(0)?, ints(1)?);
            let repeats: Option<Vec<u64>> = repeats.into_iter().map(|r| u64::try_from(r).ok()).collect();
            let repeats = repeats.filter(|r| r.len() == x.len())?;
            // Each dimension is walked as many times as it repeats, without a step in between.
            let each = x.iter().zip(&repeats).flat_map(|(&d, &r)| [r, d]).collect::<Vec<_>>();
            let steps = strides(&x).into_iter().flat_map(|s| [0, s]).collect::<Vec<_>>();
            let from = walk(&each, &steps, 0)?;
            let to: Option<Vec<u64>> = x.iter().zip(&repeats).map(|(d, r)| d.checked_mul(*r)).collect();
            Some(one(to?, from))
        }
        "Slice" => slice(op, opset, dims(0)?, ints),
        "Gather" => gather(op, dims(0)?, dims(1)?, ints(1)?),
        "Concat" => concat(op, (0..op.inputs.len()).map(dims).collect::<Option<_>>()?),
        "Split" => split(op, dims(0)?, ints),
        "Where" => {
            let (condition, x, y) = (dims(0)?, dims(1)?, dims(2)?);
            let to = broadcast(&broadcast(&condition, &x)?, &y)?;
            let positions = |own: &[u64]| walk(&to, &spread(own, &to)?, 0);
            let (x, y) = (positions(&x)?, positions(&y)?);
            let truth = ints(0)?;
            let pick =
                |(i, at): (usize, usize)| Some(if *truth.get(at)? != 0 { (1, x[i]) } else { (2, y[i]) });
            let from = positions(&condition)?.into_iter().enumerate().map(pick).collect::<Option<_>>()?;
            Some(vec![Moves { dims: to, from }])
        }
        _ => None,
    }
}

/// The shape of the result of an operator that leaves the elements and their order as they are.
fn renamed(
    op: &Op,
    dims: &dyn Fn(usize) -> Option<Vec<u64>>,
    ints: &dyn Fn(usize) -> Option<Vec<i64>>,
) -> Option<Vec<u64>> {
    let to = match op.op_type.as_str() {
        "Identity" => dims(0)?,
        "Reshape" => reshape_target(op, &dims(0)?, parameter(op, 1, "shape", ints)??)?,
        "Flatten" => {
            let x = dims(0)?;
            let axis = op.int("axis").unwrap_or(1);
            let axis = if axis == x.len() as i64 { x.len() } else { place(axis, x.len())? };
            let (outer, inner) = x.split_at(axis);
            vec![product(outer)?, product(inner)?]
        }
        "Squeeze" => {
            let x = dims(0)?;
            let axes = match parameter(op, 1, "axes", ints)? {
                Some(axes) => axes.into_iter().map(|a| place(a, x.len())).collect::<Option<Vec<_>>>()?,
                None => (0..x.len()).filter(|&i| x[i] == 1).collect(),
            };
            if axes.iter().any(|&axis| x[axis] != 1) {
                return None;
            }
            x.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect()
        }
        "Unsqueeze" => {
            let (x, axes) = (dims(0)?, parameter(op, 1, "axes", ints)??);
            let rank = x.len() + axes.len();
            let axes = axes.into_iter().map(|a| place(a, rank)).collect::<Option<Vec<_>>>()?;
            let mut sizes = x.iter().copied();
            (0..rank)
                .map(|i| if axes.contains(&i) { Some(1) } else { sizes.next() })
                .collect::<Option<_>>()?
        }
        _ => return None,
    };
    (product(&to)? == product(&dims(0)?)?).then_some(to)
}

/// A single result that reads the first operand at these positions.
fn one(dims: Vec<u64>, from: Vec<usize>) -> Vec<Moves> {
    vec![Moves { dims, from: from.into_iter().map(|index| (0, index)).collect() }]
}

/// A parameter that older versions have as an attribute and newer ones as an operand. `None` where it is there but
/// not known, `Some(None)` where it is left out.
fn parameter(
    op: &Op,
    slot: usize,
    name: &str,
    ints: &dyn Fn(usize) -> Option<Vec<i64>>,
) -> Option<Option<Vec<i64>>> {
    match op.input(slot) {
        Some(_) => ints(slot).map(Some),
        None => Some(op.ints(name).map(<[i64]>::to_vec)),
    }
}

fn reshape_target(op: &Op, x: &[u64], sizes: Vec<i64>) -> Option<Vec<u64>> {
    let copies_zero = op.int("allowzero") != Some(1);
    let mut to: Vec<u64> = Vec::with_capacity(sizes.len());
    let mut open = None;
    for (axis, size) in sizes.into_iter().enumerate() {
        to.push(match size {
            0 if copies_zero => *x.get(axis)?,
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            size => u64::try_from(size).ok()?,
        });
    }
    if let Some(axis) = open {
        to[axis] = product(x)?.checked_div(product(&to)?)?;
    }
    Some(to)
}

fn slice(op: &Op, opset: i64, x: Vec<u64>, ints: &dyn Fn(usize) -> Option<Vec<i64>>) -> Option<Vec<Moves>> {
    let [starts, ends, axes] = match opset {
        ..10 => ["starts", "ends", "axes"].map(|name| op.ints(name).map(<[i64]>::to_vec)),
        10.. => [Some(ints(1)?), Some(ints(2)?), parameter(op, 3, "", ints)?],
    };
    let (starts, ends) = (starts?, ends?);
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = parameter(op, 4, "", ints)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return None;
    }
    let (mut to, mut strides, mut base) = (x.clone(), strides(&x), 0);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = place(axis, x.len())?;
        let size = x[axis] as i64;
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (start, end) = (from_end(starts[i]), from_end(ends[i]));
        let reach = match steps[i] {
            0 | i64::MIN => return None,
            step if step > 0 => {
                let start = start.clamp(0, size);
                base += start * strides[axis];
                (end.clamp(0, size) - start + step - 1) / step
            }
            _ if size == 0 => 0,
            step => {
                let start = start.clamp(0, size - 1);
                base += start * strides[axis];
                (start - end.clamp(-1, size - 1) - step - 1) / -step
            }
        };
        to[axis] = reach.max(0) as u64;
        strides[axis] *= steps[i];
    }
    let from = walk(&to, &strides, base)?;
    Some(one(to, from))
}

fn gather(op: &Op, x: Vec<u64>, indices: Vec<u64>, at: Vec<i64>) -> Option<Vec<Moves>> {
    let axis = place(op.int("axis").unwrap_or(0), x.len())?;
    let size = x[axis] as i64;
    let at: Option<Vec<usize>> =
        at.into_iter().map(|i| usize::try_from(if i < 0 { i + size } else { i }).ok()).collect();
    let at = at?;
    if at.iter().any(|&i| i as i64 >= size) {
        return None;
    }
    let (outer, inner) = (count(&x[..axis])?, count(&x[axis + 1..])?);
    let to = [&x[..axis], &indices, &x[axis + 1..]].concat();
    count(&to)?;
    let row = |o: usize, i: usize| {
        let first = (o * size as usize + i) * inner;
        first..first + inner
    };
    let from = (0..outer).flat_map(|o| at.iter().flat_map(move |&i| row(o, i))).collect();
    Some(one(to, from))
}

fn concat(op: &Op, parts: Vec<Vec<u64>>) -> Option<Vec<Moves>> {
    let first = parts.first()?;
    let axis = place(op.int("axis")?, first.len())?;
    let fits = |part: &Vec<u64>| {
        part.len() == first.len() && (0..part.len()).all(|i| i == axis || part[i] == first[i])
    };
    if !parts.iter().all(fits) {
        return None;
    }
    let mut to = first.clone();
    to[axis] = parts.iter().try_fold(0u64, |n, part| n.checked_add(part[axis]))?;
    let mut from = Vec::with_capacity(count(&to)?);
    for outer in 0..count(&first[..axis])? {
        for (operand, part) in parts.iter().enumerate() {
            let chunk = count(&part[axis..])?;
            from.extend((outer * chunk..(outer + 1) * chunk).map(|index| (operand, index)));
        }
    }
    Some(vec![Moves { dims: to, from }])
}

fn split(op: &Op, x: Vec<u64>, ints: &dyn Fn(usize) -> Option<Vec<i64>>) -> Option<Vec<Moves>> {
    let axis = place(op.int("axis").unwrap_or(0), x.len())?;
    let sizes: Vec<u64> = match parameter(op, 1, "split", ints)? {
        Some(sizes) => sizes.into_iter().map(|s| u64::try_from(s).ok()).collect::<Option<_>>()?,
        None => {
            // The last one takes what is left.
            let (parts, size) = (op.outputs.len() as u64, x[axis]);
            let each = size.div_ceil(parts.max(1));
            (0..parts).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    if sizes.len() != op.outputs.len()
        || sizes.iter().try_fold(0u64, |n, &s| n.checked_add(s)) != Some(x[axis])
    {
        return None;
    }
    let (strides, mut start) = (strides(&x), 0);
    let part = |size: u64| {
        let mut to = x.clone();
        to[axis] = size;
        let from = walk(&to, &strides, start * strides[axis])?;
        start += size as i64;
        one(to, from).pop()
    };
    sizes.into_iter().map(part).collect()
}

/// An axis that may count from the end.
fn place(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// Number of elements, if it is within [`MAX_ELEMENTS`].
fn count(dims: &[u64]) -> Option<usize> {
    if dims.contains(&0) {
        return Some(0);
    }
    product(dims).filter(|&elements| elements <= MAX_ELEMENTS).map(|elements| elements as usize)
}

fn product(dims: &[u64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

/// Distance between neighbours along each dimension, in elements.
fn strides(dims: &[u64]) -> Vec<i64> {
    let mut step = 1i64;
    let mut strides: Vec<i64> = dims
        .iter()
        .rev()
        .map(|&d| {
            let own = step;
            step = step.saturating_mul(d as i64);
            own
        })
        .collect();
    strides.reverse();
    strides
}

/// Positions in row-major order of `dims`, each dimension stepping by its stride.
fn walk(dims: &[u64], strides: &[i64], base: i64) -> Option<Vec<usize>> {
    if count(dims)? == 0 {
        return Some(Vec::new());
    }
    let mut at = vec![base];
    for (&size, &step) in dims.iter().zip(strides) {
        at = at.iter().flat_map(|&from| (0..size as i64).map(move |i| from + i * step)).collect();
    }
    at.into_iter().map(|p| usize::try_from(p).ok()).collect()
}

/// The shape that two shapes broadcast to.
fn broadcast(a: &[u64], b: &[u64]) -> Option<Vec<u64>> {
    let rank = a.len().max(b.len());
    let size = |dims: &[u64], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (1, n) | (n, 1) => Some(n),
            (m, n) => (m == n).then_some(m),
        })
        .collect()
}

/// The strides with which a tensor is read when it is broadcast.
fn spread(dims: &[u64], to: &[u64]) -> Option<Vec<i64>> {
    let missing = to.len().checked_sub(dims.len())?;
    let own = strides(dims);
    let step = |i: usize| {
        let i = i.checked_sub(missing)?;
        (dims[i] != 1).then_some(own[i])
    };
    Some((0..to.len()).map(|i| step(i).unwrap_or(0)).collect())
}
