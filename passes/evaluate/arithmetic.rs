//! Operators that compute: element by element, along axes, and matrix products.
//!
//! Floats are computed in f64 and rounded once to their type; see [`push`] for why that is the correctly rounded
//! result where it has to be.

use std::cmp::Ordering;

use dmopt_ir::{DType, Safety, Tensor};

use super::number::{Elements, Number, push};
use super::space::{broadcast, is_addressable, place, places, product, spread, strides, walk};
use super::{Answer, Call, Stop};

/// Matrix products with more multiplications than this take too long for what they save.
const MAX_PRODUCTS: u64 = 1 << 30;

/// The class of the result, if there is one.
pub(super) fn class(call: &Call) -> Safety {
    let rounds = match call.op_type() {
        // Runtimes without kernels for half precision compute in single precision, and may round only at the end.
        "Add" | "Sub" | "Mul" | "Div" | "Sqrt" | "Sum" => call.inputs.iter().flatten().any(is_half),
        name => is_float(call) && elementary(name).is_some(),
    };
    if rounds || has_partial_results(call) { Safety::Reassociates } else { Safety::Exact }
}

/// True for what is rounded more than once on the way, if a runtime likes.
pub(super) fn has_partial_results(call: &Call) -> bool {
    let sums = match call.op_type() {
        // A sum of two is one rounding; the order of more is for the runtime to choose.
        "Sum" => call.inputs.len() > 2,
        "Mean" => call.inputs.len() > 1,
        "ReduceSum" | "ReduceProd" | "ReduceMean" | "MatMul" | "Softmax" | "Pow" => true,
        _ => false,
    };
    is_float(call) && sums
}

fn is_float(call: &Call) -> bool {
    call.optional(0).is_some_and(|x| !x.dtype.is_integer() && x.dtype != DType::Bool)
}

/// True for elements of half precision.
pub(super) fn is_half(tensor: &&Tensor) -> bool {
    matches!(tensor.dtype, DType::F16 | DType::BF16)
}

/// Functions of one number that runtimes approximate.
fn elementary(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "Reciprocal" => f64::recip,
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Tanh" => f64::tanh,
        "Sigmoid" => |a| 1.0 / (1.0 + (-a).exp()),
        "Softplus" => |a| a.max(0.0) + (-a.abs()).exp().ln_1p(),
        "Sin" => f64::sin,
        "Cos" => f64::cos,
        _ => return None,
    })
}

/// Result of the operator.
pub(super) fn evaluate(call: &Call) -> Answer<Tensor> {
    let unary = |f: fn(f64) -> f64| floats(call, &[call.input(0)?], |v| Ok(f(v[0])));
    if let Some(f) = elementary(call.op_type()) {
        return unary(f);
    }
    match call.op_type() {
        "Add" => binary(call, |a, b| a + b, |a, b| Ok(a + b)),
        "Sub" => binary(call, |a, b| a - b, |a, b| Ok(a - b)),
        "Mul" => binary(call, |a, b| a * b, |a, b| a.checked_mul(b).ok_or(OVERFLOW)),
        "Div" => binary(call, |a, b| a / b, |a, b| a.checked_div(b).ok_or(BY_ZERO)),
        "Mod" => integers(call, &call.all()?, remainder(call.op.int("fmod") == Some(1))),
        "Pow" => floats(call, &call.all()?, |v| pair(v).map(|(a, b)| a.powf(b))),
        "Neg" => signed(call, |a| -a, |a| -a),
        "Abs" => signed(call, f64::abs, i128::abs),
        "Relu" => either(call, &[call.input(0)?], |v| extreme(&[v[0], 0.0], f64::max), |v| Ok(v[0].max(0))),
        "Clip" => clip(call),
        "Sqrt" => unary(f64::sqrt),
        "Floor" => unary(f64::floor),
        "Ceil" => unary(f64::ceil),
        "Round" => unary(f64::round_ties_even),
        // Before version 8 these did not broadcast.
        "Min" | "Max" | "Sum" | "Mean" if call.opset >= 8 => variadic(call),
        "Equal" => compare(call, |order| order == Some(Ordering::Equal)),
        "Less" => compare(call, |order| order == Some(Ordering::Less)),
        "Greater" => compare(call, |order| order == Some(Ordering::Greater)),
        "LessOrEqual" => compare(call, |order| order.is_some_and(Ordering::is_le)),
        "GreaterOrEqual" => compare(call, |order| order.is_some_and(Ordering::is_ge)),
        "And" => logic(call, |v| pair(v).map(|(a, b)| a && b)),
        "Or" => logic(call, |v| pair(v).map(|(a, b)| a || b)),
        "Xor" => logic(call, |v| pair(v).map(|(a, b)| a != b)),
        "Not" => logic(call, |v| if let [a] = v { Ok(!a) } else { Err(Stop::Beyond) }),
        "ReduceSum" | "ReduceProd" | "ReduceMin" | "ReduceMax" | "ReduceMean" => reduce(call),
        "Softmax" => softmax(call),
        "MatMul" => mat_mul(call),
        _ => Err(Stop::Beyond),
    }
}

const OVERFLOW: Stop = Stop::Undefined("an integer overflows");
const BY_ZERO: Stop = Stop::Undefined("an integer is divided by zero");
const UNORDERED: Stop = Stop::Undefined("NaN, or zeros of both signs, are put in order");

fn pair<T: Copy>(values: &[T]) -> Answer<(T, T)> {
    if let [a, b] = *values { Ok((a, b)) } else { Err(Stop::Beyond) }
}

/// Applies `f` to the elements of all operands at every position of the result, of type `to`.
fn pointwise(
    call: &Call,
    inputs: &[&Tensor],
    to: DType,
    mut f: impl FnMut(&[Number]) -> Answer<Number>,
) -> Answer<Tensor> {
    // Before version 7 broadcasting had rules of its own.
    let mixed = inputs.windows(2).any(|w| w[0].dtype != w[1].dtype);
    if mixed || call.opset < 7 && inputs.len() > 1 || inputs.iter().any(|t| !is_addressable(&t.dims)) {
        return Err(Stop::Beyond);
    }
    let shapes: Vec<&[u64]> = inputs.iter().map(|t| &*t.dims).collect();
    let dims = broadcast(&shapes).ok_or(Stop::Beyond)?;
    let count = call.count(&dims, to)?;
    let elements = inputs.iter().map(|t| Elements::of(t)).collect::<Answer<Vec<_>>>()?;
    let mut positions: Vec<_> = shapes.iter().map(|own| spread(own, &dims)).collect();
    let mut out = Vec::new();
    let mut numbers = Vec::with_capacity(inputs.len());
    for _ in 0..count {
        numbers.clear();
        for (elements, positions) in elements.iter().zip(&mut positions) {
            numbers.push(elements.at(positions.next().ok_or(Stop::Beyond)?));
        }
        push(&mut out, to, f(&numbers)?)?;
    }
    Ok(Tensor::raw(to, dims, out))
}

fn floats(call: &Call, inputs: &[&Tensor], f: impl Fn(&[f64]) -> Answer<f64>) -> Answer<Tensor> {
    let dtype = inputs.first().ok_or(Stop::Beyond)?.dtype;
    let mut values = Vec::with_capacity(inputs.len());
    pointwise(call, inputs, dtype, |numbers| {
        values.clear();
        for number in numbers {
            let Number::Float(v) = *number else { return Err(Stop::Beyond) };
            values.push(v);
        }
        f(&values).map(Number::Float)
    })
}

fn integers(call: &Call, inputs: &[&Tensor], f: impl Fn(&[i128]) -> Answer<i128>) -> Answer<Tensor> {
    let dtype = inputs.first().filter(|t| t.dtype.is_integer()).ok_or(Stop::Beyond)?.dtype;
    let mut values = Vec::with_capacity(inputs.len());
    pointwise(call, inputs, dtype, |numbers| {
        values.clear();
        for number in numbers {
            let Number::Int(v) = *number else { return Err(Stop::Beyond) };
            values.push(v);
        }
        f(&values).map(Number::Int)
    })
}

fn either(
    call: &Call,
    inputs: &[&Tensor],
    f: impl Fn(&[f64]) -> Answer<f64>,
    i: impl Fn(&[i128]) -> Answer<i128>,
) -> Answer<Tensor> {
    match inputs.first() {
        Some(x) if x.dtype.is_float() => floats(call, inputs, f),
        _ => integers(call, inputs, i),
    }
}

fn binary(call: &Call, f: fn(f64, f64) -> f64, i: fn(i128, i128) -> Answer<i128>) -> Answer<Tensor> {
    let f = |v: &[f64]| pair(v).map(|(a, b)| f(a, b));
    either(call, &call.all()?, f, |v| pair(v).and_then(|(a, b)| i(a, b)))
}

fn signed(call: &Call, f: fn(f64) -> f64, i: fn(i128) -> i128) -> Answer<Tensor> {
    either(call, &[call.input(0)?], |v| Ok(f(v[0])), |v| Ok(i(v[0])))
}

/// With the sign of the divisor, or of the dividend as in C.
fn remainder(as_in_c: bool) -> impl Fn(&[i128]) -> Answer<i128> {
    move |v| {
        let (a, b) = pair(v)?;
        let rest = a.checked_rem(b).ok_or(BY_ZERO)?;
        Ok(if as_in_c { rest } else { (rest + b) % b })
    }
}

/// Sum, Min, Max and Mean of any number of operands.
fn variadic(call: &Call) -> Answer<Tensor> {
    let inputs = call.all()?;
    let total = |v: &[f64]| v.iter().copied().reduce(|a, b| a + b).ok_or(Stop::Beyond);
    let count = inputs.len() as f64;
    match call.op_type() {
        "Min" => {
            either(call, &inputs, |v| extreme(v, f64::min), |v| v.iter().copied().min().ok_or(Stop::Beyond))
        }
        "Max" => {
            either(call, &inputs, |v| extreme(v, f64::max), |v| v.iter().copied().max().ok_or(Stop::Beyond))
        }
        "Sum" => floats(call, &inputs, total),
        _ => floats(call, &inputs, |v| Ok(total(v)? / count)),
    }
}

/// The least or greatest; NaN, and zeros of both signs, are for the runtime to order.
fn extreme(values: &[f64], pick: fn(f64, f64) -> f64) -> Answer<f64> {
    let best = values.iter().copied().reduce(pick).ok_or(Stop::Beyond)?;
    let other_zero = best == 0.0 && values.iter().any(|v| *v == 0.0 && v.to_bits() != best.to_bits());
    if other_zero || values.iter().any(|v| v.is_nan()) { Err(UNORDERED) } else { Ok(best) }
}

/// `Min(max, Max(min, x))`; the bounds were attributes before version 11.
fn clip(call: &Call) -> Answer<Tensor> {
    let x = call.input(0)?;
    let bound = |slot: usize, name: &str| -> Answer<Option<Number>> {
        if call.opset < 11 {
            return Ok(call.op.float(name).map(|v| Number::Float(v as f64)));
        }
        let Some(bound) = call.optional(slot) else { return Ok(None) };
        if bound.dtype != x.dtype || bound.elements() != Some(1) {
            return Err(Stop::Beyond);
        }
        Ok(Some(Elements::of(bound)?.at(0)))
    };
    let (least, most) = (bound(1, "min")?, bound(2, "max")?);
    // Left out, a bound is the last finite number; infinities are clipped to it by some runtimes only.
    let float = |v: f64, bound: Option<Number>, pick| match bound {
        Some(Number::Float(bound)) => extreme(&[v, bound], pick),
        None if v.abs() <= f32::MAX as f64 => Ok(v),
        None => Err(Stop::Undefined("a number beyond those of float meets a bound that is left out")),
        Some(Number::Int(_)) => Err(Stop::Beyond),
    };
    let int = |v: i128, bound: Option<Number>, pick: fn(i128, i128) -> i128| match bound {
        Some(Number::Int(bound)) => Ok(pick(v, bound)),
        None => Ok(v),
        Some(Number::Float(_)) => Err(Stop::Beyond),
    };
    let f = |v: &[f64]| float(float(v[0], least, f64::max)?, most, f64::min);
    either(call, &[x], f, |v| int(int(v[0], least, i128::max)?, most, i128::min))
}

fn compare(call: &Call, f: fn(Option<Ordering>) -> bool) -> Answer<Tensor> {
    let inputs = call.all()?;
    // Bools have no order.
    if call.op_type() != "Equal" && inputs.iter().any(|t| t.dtype == DType::Bool) {
        return Err(Stop::Beyond);
    }
    pointwise(call, &inputs, DType::Bool, |v| {
        let order = match pair(v)? {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
            _ => return Err(Stop::Beyond),
        };
        Ok(Number::Int(f(order) as i128))
    })
}

fn logic(call: &Call, f: impl Fn(&[bool]) -> Answer<bool>) -> Answer<Tensor> {
    let inputs = call.all()?;
    if inputs.iter().any(|t| t.dtype != DType::Bool) {
        return Err(Stop::Beyond);
    }
    let mut truths = Vec::with_capacity(inputs.len());
    pointwise(call, &inputs, DType::Bool, |numbers| {
        truths.clear();
        truths.extend(numbers.iter().map(|v| !v.is_zero()));
        Ok(Number::Int(f(&truths)? as i128))
    })
}

/// Reductions along axes.
fn reduce(call: &Call) -> Answer<Tensor> {
    let x = call.input(0)?;
    let rank = x.dims.len();
    if !is_addressable(&x.dims) || !(x.dtype.is_float() || x.dtype.is_integer()) {
        return Err(Stop::Beyond);
    }
    let axes = match call.ints("axes", 1)?.filter(|axes| !axes.is_empty()) {
        Some(axes) => places(&axes, rank).ok_or(Stop::Beyond)?,
        None if call.op.int("noop_with_empty_axes").unwrap_or(0) != 0 => return Ok(x.clone()),
        None => (0..rank).collect(),
    };
    let kept = |a: &usize| !axes.contains(a);
    let steps = strides(&x.dims);
    let select = |wanted: bool| -> (Vec<u64>, Vec<i64>) {
        (0..rank).filter(|a| kept(a) == wanted).map(|a| (x.dims[a], steps[a])).unzip()
    };
    let ((outer, outer_steps), (inner, inner_steps)) = (select(true), select(false));
    let dims: Vec<u64> = if call.op.int("keepdims").unwrap_or(1) != 0 {
        (0..rank).map(|a| if kept(&a) { x.dims[a] } else { 1 }).collect()
    } else {
        outer.clone()
    };
    call.count(&dims, x.dtype)?;
    if inner.contains(&0) {
        return Err(Stop::Beyond);
    }
    let elements = Elements::of(x)?;
    let mut out = Vec::new();
    let mut group = Vec::new();
    for start in walk(&outer, &outer_steps, 0) {
        group.clear();
        group.extend(walk(&inner, &inner_steps, start as i64).map(|at| elements.at(at)));
        push(&mut out, x.dtype, reduced(call.op_type(), &group)?)?;
    }
    Ok(Tensor::raw(x.dtype, dims, out))
}

/// The numbers of one group made into one.
fn reduced(name: &str, group: &[Number]) -> Answer<Number> {
    let floats: Vec<f64> =
        group.iter().filter_map(|v| if let Number::Float(v) = v { Some(*v) } else { None }).collect();
    if floats.len() == group.len() {
        return Ok(Number::Float(match name {
            "ReduceSum" => floats.iter().sum(),
            "ReduceProd" => floats.iter().product(),
            "ReduceMean" => floats.iter().sum::<f64>() / floats.len() as f64,
            "ReduceMin" => extreme(&floats, f64::min)?,
            _ => extreme(&floats, f64::max)?,
        }));
    }
    let mut ints = group.iter().filter_map(|v| if let Number::Int(v) = v { Some(*v) } else { None });
    Ok(Number::Int(match name {
        "ReduceSum" => ints.try_fold(0, i128::checked_add).ok_or(OVERFLOW)?,
        "ReduceProd" => ints.try_fold(1, i128::checked_mul).ok_or(OVERFLOW)?,
        "ReduceMin" => ints.min().ok_or(Stop::Beyond)?,
        "ReduceMax" => ints.max().ok_or(Stop::Beyond)?,
        _ => return Err(Stop::Beyond),
    }))
}

fn softmax(call: &Call) -> Answer<Tensor> {
    let x = call.input(0)?;
    let rank = x.dims.len();
    call.count(&x.dims, x.dtype)?;
    // Before version 13 all axes from `axis` on were one.
    let axis = call.op.int("axis").unwrap_or(if call.opset < 13 { 1 } else { -1 });
    let axis = place(axis, rank).ok_or(Stop::Beyond)?;
    let last = if call.opset < 13 { rank } else { axis + 1 };
    let size = |dims: &[u64]| product(dims).map(|n| n as usize).ok_or(Stop::Beyond);
    let (length, inner) = (size(&x.dims[axis..last])?, size(&x.dims[last..])?);
    let elements = Elements::of(x)?;
    let mut values = (0..elements.len()).map(|at| elements.float(at)).collect::<Answer<Vec<f64>>>()?;
    let outer = if values.is_empty() { 0 } else { values.len() / (length * inner) };
    for start in (0..outer).flat_map(|o| (0..inner).map(move |i| o * length * inner + i)) {
        let places = || (0..length).map(|k| start + k * inner);
        let largest = places().map(|at| values[at]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = places().map(|at| (values[at] - largest).exp()).sum();
        for at in places() {
            values[at] = (values[at] - largest).exp() / total;
        }
    }
    of_floats(x.dtype, x.dims.clone(), &values)
}

fn mat_mul(call: &Call) -> Answer<Tensor> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype != b.dtype || !a.dtype.is_float() || !is_addressable(&a.dims) || !is_addressable(&b.dims) {
        return Err(Stop::Beyond);
    }
    // A vector is a row on the left and a column on the right; its axis goes from the result.
    let ([.., k], [.., l]) = (&*a.dims, &*b.dims) else { return Err(Stop::Beyond) };
    let left = if a.dims.len() == 1 { vec![1, *k] } else { a.dims.clone() };
    let right = if b.dims.len() == 1 { vec![*l, 1] } else { b.dims.clone() };
    let ((batch_a, rows), (batch_b, columns)) =
        (left.split_at(left.len() - 2), right.split_at(right.len() - 2));
    let (m, k, n) = (rows[0] as usize, rows[1] as usize, columns[1] as usize);
    let batch = broadcast(&[batch_a, batch_b]).filter(|_| rows[1] == columns[0]).ok_or(Stop::Beyond)?;
    let full = [&*batch, &[rows[0], columns[1]]].concat();
    let count = call.count(&full, a.dtype)?;
    if (count as u64).checked_mul(rows[1]).is_none_or(|products| products > MAX_PRODUCTS) {
        return Err(Stop::Beyond);
    }
    let (x, y) = (Elements::of(a)?, Elements::of(b)?);
    let mut out = vec![0.0; count];
    for (i, (at_a, at_b)) in spread(batch_a, &batch).zip(spread(batch_b, &batch)).enumerate() {
        for row in 0..m {
            let sums = &mut out[(i * m + row) * n..][..n];
            for inner in 0..k {
                let factor = x.float((at_a * m + row) * k + inner)?;
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum += factor * y.float((at_b * k + inner) * n + column)?;
                }
            }
        }
    }
    let mut dims = batch;
    dims.extend((a.dims.len() > 1).then_some(rows[0]));
    dims.extend((b.dims.len() > 1).then_some(columns[1]));
    of_floats(a.dtype, dims, &out)
}

fn of_floats(dtype: DType, dims: Vec<u64>, values: &[f64]) -> Answer<Tensor> {
    let mut out = Vec::new();
    values.iter().try_for_each(|&v| push(&mut out, dtype, Number::Float(v)))?;
    Ok(Tensor::raw(dtype, dims, out))
}
