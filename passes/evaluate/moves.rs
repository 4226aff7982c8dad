//! Operators that move elements or make them from sizes: no arithmetic on values.

use std::borrow::Cow;

use dmopt_ir::{AttributeValue, DType, Op, Tensor};

use super::number::{self, Elements, Number};
use super::space::{broadcast, is_addressable, place, places, product, spread, strides, walk};
use super::{Answer, Call, Stop};

/// Results of the operator; `None` when it is not one of this file.
pub(super) fn evaluate(call: &Call) -> Answer<Option<Vec<Tensor>>> {
    let ints = |slot: usize| call.optional(slot)?.to_i64().ok();
    let dims = |slot: usize| Some(call.optional(slot)?.dims.clone());
    if let Some(to) = renamed(call.op, &dims, &ints) {
        return Ok(Some(vec![Tensor { dims: to, ..call.input(0)?.clone() }]));
    }
    let result = match call.op_type() {
        "Cast" => {
            let to = call.op.int("to").and_then(|to| DType::from_code(i32::try_from(to).ok()?));
            cast(call, to.ok_or(Stop::Beyond)?)
        }
        "CastLike" => cast(call, call.input(1)?.dtype),
        "Range" => range(call),
        "ConstantOfShape" => constant_of_shape(call),
        "NonZero" => non_zero(call),
        "Where" if call.input(0)?.dtype != DType::Bool => Err(Stop::Beyond),
        name => {
            let Some(moves) = moves(call.op, call.opset, &dims, &ints) else { return Ok(None) };
            let model = call.input(if name == "Where" { 1 } else { 0 })?;
            return moves.into_iter().map(|to| moved(call, to, model.dtype)).collect::<Answer<_>>().map(Some);
        }
    };
    Ok(Some(vec![result?]))
}

fn cast(call: &Call, to: DType) -> Answer<Tensor> {
    let x = call.input(0)?;
    if x.dtype == to {
        return Ok(x.clone());
    }
    number::cast(x, to, call.count(&x.dims, to)?)
}

/// `start, start + delta, ..` up to `limit`, integers only: runtimes differ in how they step through floats.
fn range(call: &Call) -> Answer<Tensor> {
    let start = call.input(0)?;
    let only = |slot: usize| {
        let t = call.input(slot)?;
        match (t.elements(), t.dtype == start.dtype) {
            (Some(1), true) => Elements::of(t).map(|all| all.at(0)),
            _ => Err(Stop::Beyond),
        }
    };
    let (Number::Int(first), Number::Int(limit), Number::Int(delta)) = (only(0)?, only(1)?, only(2)?) else {
        return Err(Stop::Beyond);
    };
    if delta == 0 {
        return Err(Stop::Undefined("a range steps by zero"));
    }
    let toward = ((limit - first) * delta.signum()).max(0);
    let count = toward / delta.abs() + (toward % delta.abs() != 0) as i128;
    let dims = vec![u64::try_from(count).map_err(|_| Stop::Beyond)?];
    call.count(&dims, start.dtype)?;
    let mut out = Vec::new();
    for index in 0..count {
        number::push(&mut out, start.dtype, Number::Int(first + index * delta))?;
    }
    Ok(Tensor::raw(start.dtype, dims, out))
}

fn constant_of_shape(call: &Call) -> Answer<Tensor> {
    let shape = call.input(0)?.to_i64().map_err(|_| Stop::Beyond)?;
    let dims = sizes(shape).ok_or(Stop::Beyond)?;
    let (dtype, element) = match call.op.attribute("value") {
        None => (DType::F32, vec![0; 4]),
        Some(AttributeValue::Tensor(t)) if t.elements() == Some(1) => {
            (t.dtype, t.bytes().map_err(|_| Stop::Beyond)?.into_owned())
        }
        Some(_) => return Err(Stop::Beyond),
    };
    let count = call.count(&dims, dtype)?;
    Ok(Tensor::raw(dtype, dims, element.repeat(count)))
}

fn non_zero(call: &Call) -> Answer<Tensor> {
    let x = call.input(0)?;
    let hits: Vec<usize> =
        Elements::of(x)?.iter().enumerate().filter(|(_, v)| !v.is_zero()).map(|(i, _)| i).collect();
    // A scalar counts as a vector of one, with one row of indices.
    let dims = if x.dims.is_empty() { &[1][..] } else { &x.dims };
    let to = vec![dims.len() as u64, hits.len() as u64];
    call.count(&to, DType::I64)?;
    let rows = dims.iter().zip(strides(dims));
    let indices: Vec<i64> = rows
        .flat_map(|(&d, step)| hits.iter().map(move |&i| ((i / step as usize) as u64 % d) as i64))
        .collect();
    Tensor::from_i64(DType::I64, to, &indices).map_err(|_| Stop::Beyond)
}

/// Where the elements of a result come from: each an operand and a position there.
pub(crate) struct Moves {
    /// Shape of the result.
    pub(crate) dims: Vec<u64>,
    /// Source of each element, in order.
    pub(crate) from: Box<dyn Iterator<Item = (usize, usize)>>,
}

/// Gathers bytes; every operand that elements come from must have the type of the result.
fn moved(call: &Call, to: Moves, dtype: DType) -> Answer<Tensor> {
    let width = number::width(dtype).ok_or(Stop::Beyond)?;
    let mut out = Vec::with_capacity(call.count(&to.dims, dtype)? * width);
    let sources = (call.inputs.iter())
        .map(|input| match input {
            Some(t) if t.dtype == dtype => t.bytes().map_err(|_| Stop::Beyond),
            _ => Ok(Cow::default()),
        })
        .collect::<Answer<Vec<_>>>()?;
    for (operand, index) in to.from {
        let element = sources.get(operand).and_then(|s| s.get(index * width..(index + 1) * width));
        out.extend(element.ok_or(Stop::Beyond)?);
    }
    Ok(Tensor::raw(dtype, to.dims, out))
}

/// How an operator that computes nothing moves elements, one entry for each result. `dims` gives the shape of the
/// operand at a position, `ints` its elements where they are parameters (sizes, axes, positions, conditions).
/// `None` for every other operator, and where a parameter is not known.
pub(crate) fn moves(
    op: &Op,
    opset: i64,
    dims: &dyn Fn(usize) -> Option<Vec<u64>>,
    ints: &dyn Fn(usize) -> Option<Vec<i64>>,
) -> Option<Vec<Moves>> {
    let dims = &|slot: usize| dims(slot).filter(|d| is_addressable(d));
    if let Some(to) = renamed(op, dims, ints) {
        let from = 0..product(&to)? as usize;
        return one(to, from);
    }
    match op.op_type.as_str() {
        "Transpose" => {
            let x = dims(0)?;
            let order: Vec<usize> = match op.ints("perm") {
                Some(perm) => {
                    let is_permutation =
                        perm.iter().all(|&a| a >= 0) && places(perm, x.len())?.len() == x.len();
                    is_permutation.then(|| perm.iter().map(|&a| a as usize).collect())?
                }
                None => (0..x.len()).rev().collect(),
            };
            let strides = strides(&x);
            let (to, steps): (Vec<u64>, Vec<i64>) = order.iter().map(|&a| (x[a], strides[a])).unzip();
            let from = walk(&to, &steps, 0);
            one(to, from)
        }
        "Expand" => {
            let x = dims(0)?;
            let to = broadcast(&[&x, &sizes(ints(1)?)?])?;
            let from = spread(&x, &to);
            one(to, from)
        }
        "Tile" if opset >= 6 => {
            let x = dims(0)?;
            let repeats = sizes(ints(1)?).filter(|r| r.len() == x.len())?;
            // Each dimension is walked as many times as it repeats, without a step in between.
            let each = x.iter().zip(&repeats).flat_map(|(&d, &r)| [r, d]).collect::<Vec<_>>();
            let steps = strides(&x).into_iter().flat_map(|s| [0, s]).collect::<Vec<_>>();
            let to: Option<Vec<u64>> = x.iter().zip(&repeats).map(|(d, r)| d.checked_mul(*r)).collect();
            one(to?, walk(&each, &steps, 0))
        }
        "Slice" => slice(op, opset, dims(0)?, ints),
        "Gather" => gather(op, dims(0)?, dims(1)?, ints(1)?),
        "Concat" => concat(op, (0..op.inputs.len()).map(dims).collect::<Option<_>>()?),
        "Split" => split(op, dims(0)?, ints),
        "Where" => {
            let (condition, x, y) = (dims(0)?, dims(1)?, dims(2)?);
            let to = broadcast(&[&condition, &x, &y])?;
            let truth = ints(0).filter(|t| Some(t.len() as u64) == product(&condition))?;
            let from = (spread(&condition, &to).zip(spread(&x, &to)).zip(spread(&y, &to)))
                .map(move |((at, x), y)| if truth[at] != 0 { (1, x) } else { (2, y) });
            Some(vec![Moves { dims: to, from: Box::new(from) }])
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
                Some(axes) => places(&axes, x.len())?,
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
            let axes = places(&axes, rank)?;
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
fn one(dims: Vec<u64>, from: impl Iterator<Item = usize> + 'static) -> Option<Vec<Moves>> {
    Some(vec![Moves { dims, from: Box::new(from.map(|index| (0, index))) }])
}

/// Sizes, or how often; none is negative.
fn sizes(values: Vec<i64>) -> Option<Vec<u64>> {
    values.into_iter().map(|d| u64::try_from(d).ok()).collect()
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
    places(&axes, x.len())?;
    let (mut to, mut strides, mut base) = (x.clone(), strides(&x), 0);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = place(axis, x.len())?;
        let size = x[axis] as i64;
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (start, end) = (from_end(starts[i]), from_end(ends[i]));
        let (first, reach) = match steps[i] {
            0 => return None,
            1.. => (start.clamp(0, size), end.clamp(0, size) - start.clamp(0, size)),
            // Some runtimes read the largest integer as "to the end" in this direction too, others do not.
            _ if ends[i] >= i32::MAX as i64 => return None,
            _ if size == 0 => (0, 0),
            _ => (start.clamp(0, size - 1), start.clamp(0, size - 1) - end.clamp(-1, size - 1)),
        };
        base += first * strides[axis];
        to[axis] = (reach.max(0) as u64).div_ceil(steps[i].unsigned_abs());
        // Nothing moves along an axis of one, and a large step might overflow.
        strides[axis] = if to[axis] > 1 { strides[axis] * steps[i] } else { 0 };
    }
    let from = walk(&to, &strides, base);
    one(to, from)
}

fn gather(op: &Op, x: Vec<u64>, indices: Vec<u64>, at: Vec<i64>) -> Option<Vec<Moves>> {
    let axis = place(op.int("axis").unwrap_or(0), x.len())?;
    let size = x[axis] as usize;
    let at = at.into_iter().map(|i| place(i, size)).collect::<Option<Vec<_>>>()?;
    if product(&indices) != Some(at.len() as u64) {
        return None;
    }
    let inner = product(&x[axis + 1..])? as usize;
    let to = [&x[..axis], &indices, &x[axis + 1..]].concat();
    // The result as outer, index, inner.
    let from = (0..product(&to)? as usize).map(move |i| {
        let (row, within) = (i / inner, i % inner);
        (row / at.len() * size + at[row % at.len()]) * inner + within
    });
    one(to, from)
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
    // One row of the result has a chunk of every operand; these are their starts.
    let chunks = parts.iter().map(|part| product(&part[axis..])).collect::<Option<Vec<u64>>>()?;
    let row = product(&to[axis..])? as usize;
    let starts: Vec<usize> = chunks
        .iter()
        .scan(0, |start, &chunk| Some(std::mem::replace(start, *start + chunk as usize)))
        .collect();
    let from = (0..product(&to)? as usize).map(move |i| {
        let operand = starts.partition_point(|&start| start <= i % row) - 1;
        (operand, i / row * chunks[operand] as usize + i % row - starts[operand])
    });
    Some(vec![Moves { dims: to, from: Box::new(from) }])
}

fn split(op: &Op, x: Vec<u64>, ints: &dyn Fn(usize) -> Option<Vec<i64>>) -> Option<Vec<Moves>> {
    let axis = place(op.int("axis").unwrap_or(0), x.len())?;
    let lengths: Vec<u64> = match parameter(op, 1, "split", ints)? {
        Some(lengths) => sizes(lengths)?,
        None if op.int("num_outputs").is_some_and(|n| n != op.outputs.len() as i64) => return None,
        None => {
            // The last one takes what is left.
            let (parts, size) = (op.outputs.len() as u64, x[axis]);
            let each = size.div_ceil(parts.max(1));
            (0..parts).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    if lengths.len() != op.outputs.len()
        || lengths.iter().try_fold(0u64, |n, &s| n.checked_add(s)) != Some(x[axis])
    {
        return None;
    }
    let (strides, mut start) = (strides(&x), 0);
    let part = |length: u64| {
        let mut to = x.clone();
        to[axis] = length;
        let from = walk(&to, &strides, start * strides[axis]);
        start += length as i64;
        one(to, from)?.pop()
    };
    lengths.into_iter().map(part).collect()
}
