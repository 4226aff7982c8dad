//! Operators that compute: element by element, along axes, and matrix products.
//!
//! Floats are computed in f64 and rounded once to their type. For one addition, subtraction, multiplication, division
//! or square root of numbers of at most 24 significant bits that is the correctly rounded result, because f64 has
//! more than twice as many bits plus two (Figueroa 1995); in f64 itself the operation is the one that IEEE 754 rounds.

use dmopt_ir::{DType, EvalError, Tensor};

use super::{Call, broadcast, broadcast_steps, representable, strides, walk};

type Result<T> = std::result::Result<T, EvalError>;

/// Result of the operator; `None` when it is not one of this file, or not one whose rounding is certain.
pub(super) fn evaluate(call: &Call) -> Result<Option<Tensor>> {
    let unary = |f: fn(f64) -> f64| floats(call, &[call.input(0)?], |v| Ok(f(v[0])));
    let rounding = |f: fn(f64) -> f64| if call.rounding { unary(f).map(Some) } else { Ok(None) };
    Ok(Some(match call.op {
        "Add" => binary(call, |a, b| a + b, i64::checked_add)?,
        "Sub" => binary(call, |a, b| a - b, i64::checked_sub)?,
        "Mul" => binary(call, |a, b| a * b, i64::checked_mul)?,
        "Div" => binary(call, |a, b| a / b, certain_quotient)?,
        "Mod" => modulo(call)?,
        "Neg" => signed(call, |a| -a, i64::checked_neg)?,
        "Abs" => signed(call, f64::abs, i64::checked_abs)?,
        "Sqrt" => unary(f64::sqrt)?,
        "Floor" => unary(f64::floor)?,
        "Ceil" => unary(f64::ceil)?,
        "Round" => unary(f64::round_ties_even)?,
        "Relu" => floats(call, &[call.input(0)?], |v| extreme(call, &[v[0], 0.0], f64::max))?,
        "Sum" | "Min" | "Max" | "Mean" => match variadic(call)? {
            Some(result) => result,
            None => return Ok(None),
        },
        "Equal" => compare(call, |a, b| a == b, |a, b| a == b)?,
        "Less" => compare(call, |a, b| a < b, |a, b| a < b)?,
        "Greater" => compare(call, |a, b| a > b, |a, b| a > b)?,
        "LessOrEqual" => compare(call, |a, b| a <= b, |a, b| a <= b)?,
        "GreaterOrEqual" => compare(call, |a, b| a >= b, |a, b| a >= b)?,
        "And" => logic(call, |a, b| a && b)?,
        "Or" => logic(call, |a, b| a || b)?,
        "Xor" => logic(call, |a, b| a != b)?,
        "Not" => not(call)?,
        "ReduceSum" | "ReduceProd" | "ReduceMin" | "ReduceMax" | "ReduceMean" => match reduce(call)? {
            Some(result) => result,
            None => return Ok(None),
        },
        "Reciprocal" => return rounding(f64::recip),
        "Exp" => return rounding(f64::exp),
        "Log" => return rounding(f64::ln),
        "Tanh" => return rounding(f64::tanh),
        "Sigmoid" => return rounding(|a| 1.0 / (1.0 + (-a).exp())),
        "Softplus" => return rounding(|a| a.max(0.0) + (-a.abs()).exp().ln_1p()),
        "Sin" => return rounding(f64::sin),
        "Cos" => return rounding(f64::cos),
        "Pow" if call.rounding => power(call)?,
        "Softmax" if call.rounding => softmax(call)?,
        "MatMul" if call.rounding => mat_mul(call)?,
        _ => return Ok(None),
    }))
}

/// Operands of one type and of shapes that broadcast; the shape of the result.
fn operands(call: &Call, inputs: &[&Tensor]) -> Result<Vec<u64>> {
    if call.opset < 7 && inputs.len() > 1 {
        return Err(EvalError::Unsupported(format!("{} before operator set 7", call.op)));
    }
    if inputs.windows(2).any(|w| w[0].dtype != w[1].dtype) {
        return Err(call.failed("operands of different types"));
    }
    let shapes: Vec<&[u64]> = inputs.iter().map(|t| &*t.dims).collect();
    let dims = broadcast(&shapes).ok_or_else(|| call.failed("shapes do not broadcast"))?;
    call.volume(&dims, DType::I64)?;
    Ok(dims)
}

/// Applies `f` to the elements of all operands at every position of the result.
fn zip<T: Copy, U>(
    call: &Call,
    inputs: &[(&[u64], Vec<T>)],
    dims: &[u64],
    f: impl Fn(&[T]) -> Result<U>,
) -> Result<Vec<U>> {
    let mut walks: Vec<_> =
        inputs.iter().map(|(from, _)| walk(dims, 0, &broadcast_steps(from, dims.len()))).collect();
    let mut at = Vec::with_capacity(inputs.len());
    (0..dims.iter().product::<u64>())
        .map(|_| {
            at.clear();
            for ((_, values), walk) in inputs.iter().zip(&mut walks) {
                let value = walk.next().and_then(|i| values.get(usize::try_from(i).ok()?).copied());
                at.push(value.ok_or_else(|| call.failed("index out of range"))?);
            }
            f(&at)
        })
        .collect()
}

fn floats(call: &Call, inputs: &[&Tensor], f: impl Fn(&[f64]) -> Result<f64>) -> Result<Tensor> {
    let dims = operands(call, inputs)?;
    let dtype = inputs[0].dtype;
    if !dtype.is_float() {
        return Err(call.failed(format!("elements of type {dtype}")));
    }
    let values = inputs.iter().map(|t| Ok((&*t.dims, call.floats(t)?))).collect::<Result<Vec<_>>>()?;
    let out = zip(call, &values, &dims, f)?;
    call.made(Tensor::from_f64(dtype, dims, &out))
}

/// `f` has no value where the standard leaves the result open; a value that the type does not hold is open too.
fn integers(call: &Call, inputs: &[&Tensor], f: impl Fn(&[i64]) -> Option<i64>) -> Result<Tensor> {
    let dims = operands(call, inputs)?;
    let dtype = inputs[0].dtype;
    if !dtype.is_integer() {
        return Err(call.failed(format!("elements of type {dtype}")));
    }
    let values = inputs.iter().map(|t| Ok((&*t.dims, call.integers(t)?))).collect::<Result<Vec<_>>>()?;
    let out = zip(call, &values, &dims, |v| certain(call, dtype, f(v)))?;
    call.made(Tensor::from_i64(dtype, dims, &out))
}

fn certain(call: &Call, dtype: DType, value: Option<i64>) -> Result<i64> {
    value
        .filter(|&v| representable(v, dtype))
        .ok_or_else(|| call.failed("a value that the standard leaves open"))
}

fn binary(call: &Call, f: fn(f64, f64) -> f64, i: fn(i64, i64) -> Option<i64>) -> Result<Tensor> {
    let inputs = [call.input(0)?, call.input(1)?];
    if inputs[0].dtype.is_float() {
        return floats(call, &inputs, |v| Ok(f(v[0], v[1])));
    }
    integers(call, &inputs, |v| i(v[0], v[1]))
}

/// A quotient that does not depend on how the runtime rounds: neither by zero, nor negative with a remainder.
fn certain_quotient(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    (quotient.checked_mul(b) == Some(a) || (a >= 0) == (b >= 0)).then_some(quotient)
}

fn modulo(call: &Call) -> Result<Tensor> {
    let inputs = [call.input(0)?, call.input(1)?];
    if call.int("fmod")?.unwrap_or(0) != 0 || inputs[0].dtype.is_float() {
        return Err(EvalError::Unsupported("Mod of floats".into()));
    }
    // The sign of the divisor, as in Python.
    let remainder = |a: i64, b: i64| {
        let r = a.checked_rem(b)?;
        Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
    };
    integers(call, &inputs, |v| remainder(v[0], v[1]))
}

fn signed(call: &Call, f: fn(f64) -> f64, i: fn(i64) -> Option<i64>) -> Result<Tensor> {
    let input = [call.input(0)?];
    if input[0].dtype.is_float() {
        floats(call, &input, |v| Ok(f(v[0])))
    } else {
        integers(call, &input, |v| i(v[0]))
    }
}

/// Sum, Min, Max and Mean of any number of operands.
fn variadic(call: &Call) -> Result<Option<Tensor>> {
    let inputs = (0..call.inputs.len()).map(|slot| call.input(slot)).collect::<Result<Vec<_>>>()?;
    let Some(first) = inputs.first() else { return Err(call.failed("no operands")) };
    let (count, name) = (inputs.len(), call.op);
    if call.opset < 8 {
        return Ok(None);
    }
    if !first.dtype.is_float() {
        return match name {
            "Min" => integers(call, &inputs, |v| v.iter().copied().reduce(i64::min)).map(Some),
            "Max" => integers(call, &inputs, |v| v.iter().copied().reduce(i64::max)).map(Some),
            _ => Ok(None),
        };
    }
    // A sum of two is one rounding; the order of more is for the runtime to choose.
    if (name == "Sum" && count > 2 || name == "Mean" && count > 1) && !call.rounding {
        return Ok(None);
    }
    floats(call, &inputs, |v| match name {
        "Sum" => Ok(v[1..].iter().fold(v[0], |a, b| a + b)),
        "Mean" => Ok(v[1..].iter().fold(v[0], |a, b| a + b) / count as f64),
        "Min" => extreme(call, v, f64::min),
        _ => extreme(call, v, f64::max),
    })
    .map(Some)
}

/// The least or greatest; NaN, and zeros of both signs, are for the runtime to order.
fn extreme(call: &Call, values: &[f64], pick: fn(f64, f64) -> f64) -> Result<f64> {
    let best = values.iter().copied().reduce(pick).ok_or_else(|| call.failed("no elements"))?;
    let other_zero = best == 0.0 && values.iter().any(|v| *v == 0.0 && v.to_bits() != best.to_bits());
    if other_zero || values.iter().any(|v| v.is_nan()) {
        return Err(call.failed("a value that the standard leaves open"));
    }
    Ok(best)
}

fn compare(call: &Call, f: fn(f64, f64) -> bool, i: fn(i64, i64) -> bool) -> Result<Tensor> {
    let inputs = [call.input(0)?, call.input(1)?];
    let dims = operands(call, &inputs)?;
    let (a, b) = (inputs[0], inputs[1]);
    let out = if a.dtype.is_float() {
        let values = [(&*a.dims, call.floats(a)?), (&*b.dims, call.floats(b)?)];
        zip(call, &values, &dims, |v| Ok(f(v[0], v[1]) as i64))?
    } else {
        let values = [(&*a.dims, call.integers(a)?), (&*b.dims, call.integers(b)?)];
        zip(call, &values, &dims, |v| Ok(i(v[0], v[1]) as i64))?
    };
    call.made(Tensor::from_i64(DType::Bool, dims, &out))
}

fn logic(call: &Call, f: fn(bool, bool) -> bool) -> Result<Tensor> {
    let inputs = [call.input(0)?, call.input(1)?];
    let dims = operands(call, &inputs)?;
    let truths = |t: &Tensor| -> Result<Vec<bool>> {
        match t.dtype {
            DType::Bool => Ok(call.integers(t)?.into_iter().map(|v| v != 0).collect()),
            other => Err(call.failed(format!("elements of type {other}"))),
        }
    };
    let values = [(&*inputs[0].dims, truths(inputs[0])?), (&*inputs[1].dims, truths(inputs[1])?)];
    let out = zip(call, &values, &dims, |v| Ok(f(v[0], v[1]) as i64))?;
    call.made(Tensor::from_i64(DType::Bool, dims, &out))
}

fn not(call: &Call) -> Result<Tensor> {
    let input = call.input(0)?;
    if input.dtype != DType::Bool {
        return Err(call.failed(format!("elements of type {}", input.dtype)));
    }
    let out: Vec<i64> = call.integers(input)?.into_iter().map(|v| (v == 0) as i64).collect();
    call.made(Tensor::from_i64(DType::Bool, input.dims.clone(), &out))
}

fn power(call: &Call) -> Result<Tensor> {
    let inputs = [call.input(0)?, call.input(1)?];
    floats(call, &inputs, |v| Ok(v[0].powf(v[1])))
}

/// Reductions along axes. Sums, products and means of floats are rounded in an order of the runtime's choosing.
fn reduce(call: &Call) -> Result<Option<Tensor>> {
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    let float = tensor.dtype.is_float();
    let picks = matches!(call.op, "ReduceMin" | "ReduceMax");
    if (float && !picks && !call.rounding) || (!float && call.op == "ReduceMean") {
        return Ok(None);
    }
    let axes = call.ints("axes", 1)?.filter(|axes| !axes.is_empty());
    let axes = match axes {
        Some(axes) => call.axes(&axes, rank)?,
        None if call.int("noop_with_empty_axes")?.unwrap_or(0) != 0 => return Ok(Some(tensor.clone())),
        None => (0..rank).collect(),
    };
    let kept = |a: usize| !axes.contains(&a);
    let steps = strides(&tensor.dims);
    let select = |wanted: bool| -> (Vec<u64>, Vec<isize>) {
        (0..rank).filter(|&a| kept(a) == wanted).map(|a| (tensor.dims[a], steps[a])).unzip()
    };
    let ((outer, outer_steps), (inner, inner_steps)) = (select(true), select(false));
    let dims: Vec<u64> = if call.int("keepdims")?.unwrap_or(1) != 0 {
        (0..rank).map(|a| if kept(a) { tensor.dims[a] } else { 1 }).collect()
    } else {
        outer.clone()
    };
    let count = inner.iter().product::<u64>();
    if count == 0 {
        return Err(call.failed("no elements"));
    }
    let starts = walk(&outer, 0, &outer_steps);
    let at = |start: isize| walk(&inner, start, &inner_steps).map(|i| i as usize);
    if float {
        let values = call.floats(tensor)?;
        let out = starts
            .map(|start| {
                let group: Vec<f64> = at(start).filter_map(|i| values.get(i).copied()).collect();
                match call.op {
                    "ReduceSum" => Ok(group.iter().sum()),
                    "ReduceProd" => Ok(group.iter().product()),
                    "ReduceMean" => Ok(group.iter().sum::<f64>() / count as f64),
                    "ReduceMin" => extreme(call, &group, f64::min),
                    _ => extreme(call, &group, f64::max),
                }
            })
            .collect::<Result<Vec<f64>>>()?;
        return call.made(Tensor::from_f64(tensor.dtype, dims, &out)).map(Some);
    }
    let values = call.integers(tensor)?;
    let fold: fn(i64, i64) -> Option<i64> = match call.op {
        "ReduceSum" => i64::checked_add,
        "ReduceProd" => i64::checked_mul,
        "ReduceMin" => |a, b| Some(a.min(b)),
        _ => |a, b| Some(a.max(b)),
    };
    let group = |start| {
        let mut members = at(start).filter_map(|i| values.get(i).copied());
        let first = members.next()?;
        members.try_fold(first, fold)
    };
    let out = starts.map(|start| certain(call, tensor.dtype, group(start))).collect::<Result<Vec<i64>>>()?;
    call.made(Tensor::from_i64(tensor.dtype, dims, &out)).map(Some)
}

fn softmax(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    if !tensor.dtype.is_float() {
        return Err(call.failed(format!("elements of type {}", tensor.dtype)));
    }
    // Before operator set 13 all axes from `axis` on were one.
    let axis = call.axis(call.int("axis")?.unwrap_or(if call.opset < 13 { 1 } else { -1 }), rank)?;
    let last = if call.opset < 13 { rank } else { axis + 1 };
    let product = |range: std::ops::Range<usize>| tensor.dims[range].iter().product::<u64>() as usize;
    let (outer, length, inner) = (product(0..axis), product(axis..last), product(last..rank));
    let mut values = call.floats(tensor)?;
    for start in (0..outer).flat_map(|o| (0..inner).map(move |i| o * length * inner + i)) {
        let places = || (0..length).map(|k| start + k * inner);
        let largest = places().map(|at| values[at]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = places().map(|at| (values[at] - largest).exp()).sum();
        for at in places() {
            values[at] = (values[at] - largest).exp() / total;
        }
    }
    call.made(Tensor::from_f64(tensor.dtype, tensor.dims.clone(), &values))
}

fn mat_mul(call: &Call) -> Result<Tensor> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype != b.dtype || !a.dtype.is_float() {
        return Err(call.failed(format!("{} by {}", a.ty(), b.ty())));
    }
    // A vector is a row on the left and a column on the right; its axis goes from the result.
    let ([.., k], [.., l]) = (&*a.dims, &*b.dims) else { return Err(call.failed("a scalar operand")) };
    let (left, right) = (
        if a.dims.len() == 1 { vec![1, *k] } else { a.dims.clone() },
        if b.dims.len() == 1 { vec![*l, 1] } else { b.dims.clone() },
    );
    let (batch_a, rows) = left.split_at(left.len() - 2);
    let (batch_b, columns) = right.split_at(right.len() - 2);
    let (m, k, l, n) = (rows[0], rows[1], columns[0], columns[1]);
    let batch = broadcast(&[batch_a, batch_b]).filter(|_| k == l);
    let batch = batch.ok_or_else(|| call.failed(format!("{} by {}", a.ty(), b.ty())))?;
    let full = [&*batch, &[m, n]].concat();
    call.volume(&full, DType::F64)?;
    let (x, y) = (call.floats(a)?, call.floats(b)?);
    let mut out = Vec::with_capacity(full.iter().product::<u64>() as usize);
    let places = |from| walk(&batch, 0, &broadcast_steps(from, batch.len()));
    for (at_a, at_b) in places(batch_a).zip(places(batch_b)) {
        let (x, y) = (&x[at_a as usize * (m * k) as usize..], &y[at_b as usize * (k * n) as usize..]);
        for row in 0..m {
            for column in 0..n {
                out.push((0..k).map(|i| x[(row * k + i) as usize] * y[(i * n + column) as usize]).sum());
            }
        }
    }
    let mut dims = batch;
    dims.extend((a.dims.len() > 1).then_some(m));
    dims.extend((b.dims.len() > 1).then_some(n));
    call.made(Tensor::from_f64(a.dtype, dims, &out))
}
