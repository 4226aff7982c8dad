//! Operators that move elements, make them from sizes, or convert them: no arithmetic on values.

use dmopt_ir::{AttributeValue, DType, EvalError, Tensor};

use super::{Call, broadcast, broadcast_steps, representable, strides, walk};

type Result<T> = std::result::Result<T, EvalError>;

/// Results of the operator; `None` when it is not one of this file.
pub(super) fn evaluate(call: &Call) -> Result<Option<Vec<Tensor>>> {
    let one = match call.op {
        "Split" => return split(call).map(Some),
        "Constant" => constant(call),
        "ConstantOfShape" => constant_of_shape(call),
        "Identity" => call.input(0).cloned(),
        "Shape" => shape(call),
        "Size" => size(call),
        "Cast" => cast(call),
        "CastLike" => convert(call, call.input(0)?, call.input(1)?.dtype),
        "Reshape" => reshape(call),
        "Flatten" => flatten(call),
        "Squeeze" => squeeze(call),
        "Unsqueeze" => unsqueeze(call),
        "Transpose" => transpose(call),
        "Expand" => expand(call),
        "Tile" => tile(call),
        "Slice" => slice(call),
        "Gather" => gather(call),
        "Concat" => concat(call),
        "Range" => range(call),
        "Where" => choose(call),
        "NonZero" => non_zero(call),
        _ => return Ok(None),
    };
    one.map(|tensor| Some(vec![tensor]))
}

/// Elements of `tensor` picked by walking it.
fn view(call: &Call, tensor: &Tensor, dims: Vec<u64>, start: isize, steps: &[isize]) -> Result<Tensor> {
    let width = call.width(tensor.dtype)?;
    let mut out = Vec::with_capacity(call.volume(&dims, tensor.dtype)? * width);
    let bytes = tensor.bytes().map_err(|e| call.failed(e))?;
    for at in walk(&dims, start, steps) {
        let element = usize::try_from(at).ok().and_then(|at| bytes.get(at * width..(at + 1) * width));
        out.extend(element.ok_or_else(|| call.failed("index out of range"))?);
    }
    Ok(Tensor::raw(tensor.dtype, dims, out))
}

/// The same elements under other sizes.
fn reshaped(call: &Call, tensor: &Tensor, dims: Vec<u64>) -> Result<Tensor> {
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    if elements.is_none() || elements != tensor.elements() {
        return Err(call.failed(format!("{} does not have the elements of {dims:?}", tensor.ty())));
    }
    Ok(Tensor { dims, extra: Default::default(), ..tensor.clone() })
}

fn constant(call: &Call) -> Result<Tensor> {
    match call.attributes {
        [one] => match (&*one.name, &one.value) {
            ("value", AttributeValue::Tensor(t)) => Ok(t.clone()),
            ("value_int", AttributeValue::Int(v)) => call.made(Tensor::from_i64(DType::I64, vec![], &[*v])),
            ("value_ints", AttributeValue::Ints(v)) => Ok(Tensor::i64s(v)),
            ("value_float", AttributeValue::Float(v)) => Ok(f32s(vec![], &[*v])),
            ("value_floats", AttributeValue::Floats(v)) => Ok(f32s(vec![v.len() as u64], v)),
            _ => Err(call.failed(format!("attribute {}", one.name))),
        },
        _ => Err(call.failed("not one value")),
    }
}

fn f32s(dims: Vec<u64>, values: &[f32]) -> Tensor {
    Tensor::raw(DType::F32, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn constant_of_shape(call: &Call) -> Result<Tensor> {
    let dims = sizes(call, &call.integers(call.input(0)?)?)?;
    let zero = f32s(vec![1], &[0.0]);
    let value = match call.attribute("value") {
        None => &zero,
        Some(AttributeValue::Tensor(t)) => t,
        Some(_) => return Err(call.failed("attribute value is no tensor")),
    };
    let steps = vec![0; dims.len()];
    view(call, value, dims, 0, &steps)
}

fn sizes(call: &Call, values: &[i64]) -> Result<Vec<u64>> {
    values.iter().map(|&d| u64::try_from(d).map_err(|_| call.failed(format!("size {d}")))).collect()
}

fn shape(call: &Call) -> Result<Tensor> {
    let dims: Vec<i64> = call.input(0)?.dims.iter().map(|&d| d as i64).collect();
    let rank = dims.len() as i64;
    let clamp = |at: i64| (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize;
    let (start, end) = (clamp(call.int("start")?.unwrap_or(0)), clamp(call.int("end")?.unwrap_or(rank)));
    Ok(Tensor::i64s(dims.get(start..end).unwrap_or_default()))
}

fn size(call: &Call) -> Result<Tensor> {
    let n = call.input(0)?.elements().ok_or_else(|| call.failed("too many elements"))?;
    call.made(Tensor::from_i64(DType::I64, vec![], &[n as i64]))
}

fn cast(call: &Call) -> Result<Tensor> {
    let to = call.int("to")?.and_then(|code| DType::from_code(i32::try_from(code).ok()?));
    convert(call, call.input(0)?, to.ok_or_else(|| call.failed("no element type"))?)
}

/// Conversion where the standard says what comes out: every value must be representable, or round to a float.
fn convert(call: &Call, from: &Tensor, to: DType) -> Result<Tensor> {
    if from.dtype == to {
        return Ok(from.clone());
    }
    let dims = from.dims.clone();
    let number = |t: DType| t.is_float() || t.is_integer() || t == DType::Bool;
    if !number(from.dtype) || !number(to) || from.dtype == DType::U64 || to == DType::U64 {
        return Err(call.failed(format!("{} to {to}", from.dtype)));
    }
    if from.dtype.is_float() {
        let values = call.floats(from)?;
        if to.is_float() {
            return call.made(Tensor::from_f64(to, dims, &values));
        }
        let whole = |v: &f64| if to == DType::Bool { (*v != 0.0) as i64 } else { *v as i64 };
        let ints: Vec<i64> = values.iter().map(whole).collect();
        let fits =
            |(v, i): (&f64, &i64)| v.trunc() == *i as f64 && v.abs() < 2f64.powi(63) && representable(*i, to);
        if to != DType::Bool && !values.iter().zip(&ints).all(fits) {
            return Err(call.failed(format!("a value does not fit {to}")));
        }
        return call.made(Tensor::from_i64(to, dims, &ints));
    }
    let values = call.integers(from)?;
    if to.is_float() {
        // Two roundings, to f64 and on, would differ from one.
        if values.iter().any(|v| v.unsigned_abs() > 1 << 53) {
            return Err(call.failed("an integer above 2^53"));
        }
        let floats: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        return call.made(Tensor::from_f64(to, dims, &floats));
    }
    if to != DType::Bool && !values.iter().all(|&v| representable(v, to)) {
        return Err(call.failed(format!("a value does not fit {to}")));
    }
    call.made(Tensor::from_i64(to, dims, &values))
}

fn reshape(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let wanted = call.ints("shape", 1)?.ok_or_else(|| call.failed("no shape"))?;
    let keep_zero = call.int("allowzero")?.unwrap_or(0) != 0;
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (axis, &d) in wanted.iter().enumerate() {
        dims.push(match d {
            0 if !keep_zero => *tensor.dims.get(axis).ok_or_else(|| call.failed("no size to copy"))?,
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            d => u64::try_from(d).map_err(|_| call.failed(format!("size {d}")))?,
        });
    }
    if let Some(axis) = open {
        let others = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n > 0);
        let elements = tensor.elements();
        let rest = elements.zip(others).filter(|(n, m)| n % m == 0).map(|(n, m)| n / m);
        dims[axis] = rest.ok_or_else(|| call.failed("the sizes do not divide"))?;
    }
    reshaped(call, tensor, dims)
}

fn flatten(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    let axis = call.int("axis")?.unwrap_or(1);
    // One past the last axis is allowed here.
    let axis = if axis == rank as i64 { rank } else { call.axis(axis, rank)? };
    let (outer, inner) = tensor.dims.split_at(axis);
    reshaped(call, tensor, vec![outer.iter().product(), inner.iter().product()])
}

fn squeeze(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let axes = match call.ints("axes", 1)? {
        Some(axes) => call.axes(&axes, tensor.dims.len())?,
        None => (0..tensor.dims.len()).filter(|&a| tensor.dims[a] == 1).collect(),
    };
    if axes.iter().any(|&a| tensor.dims[a] != 1) {
        return Err(call.failed("a squeezed axis is not of size 1"));
    }
    let kept = tensor.dims.iter().enumerate().filter(|(a, _)| !axes.contains(a));
    reshaped(call, tensor, kept.map(|(_, &d)| d).collect())
}

fn unsqueeze(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let axes = call.ints("axes", 1)?.ok_or_else(|| call.failed("no axes"))?;
    let axes = call.axes(&axes, tensor.dims.len() + axes.len())?;
    let mut dims = tensor.dims.clone();
    // Ascending, so that every position is already counted in the result.
    axes.iter().for_each(|&a| dims.insert(a, 1));
    reshaped(call, tensor, dims)
}

fn transpose(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    let order = match call.ints("perm", usize::MAX)? {
        Some(perm) => {
            if perm.iter().any(|&a| a < 0) || call.axes(&perm, rank)?.len() != rank {
                return Err(call.failed("no permutation of the axes"));
            }
            perm.iter().map(|&a| a as usize).collect()
        }
        None => (0..rank).rev().collect::<Vec<_>>(),
    };
    let steps = strides(&tensor.dims);
    let dims = order.iter().map(|&a| tensor.dims[a]).collect();
    view(call, tensor, dims, 0, &order.iter().map(|&a| steps[a]).collect::<Vec<_>>())
}

fn expand(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let wanted = sizes(call, &call.integers(call.input(1)?)?)?;
    let dims = broadcast(&[&tensor.dims, &wanted]).ok_or_else(|| call.failed("shapes do not broadcast"))?;
    let steps = broadcast_steps(&tensor.dims, dims.len());
    view(call, tensor, dims, 0, &steps)
}

fn tile(call: &Call) -> Result<Tensor> {
    if call.opset < 6 {
        return Err(EvalError::Unsupported("Tile before operator set 6".into()));
    }
    let tensor = call.input(0)?;
    let repeats = sizes(call, &call.integers(call.input(1)?)?)?;
    if repeats.len() != tensor.dims.len() {
        return Err(call.failed("not one count for every axis"));
    }
    // Each axis as two: the repetition, along which the source stands still, and the axis itself.
    let pairs = tensor.dims.iter().zip(&repeats);
    let dims: Vec<u64> = pairs.clone().flat_map(|(&d, &n)| [n, d]).collect();
    let steps: Vec<isize> = strides(&tensor.dims).into_iter().flat_map(|s| [0, s]).collect();
    let tiled = view(call, tensor, dims, 0, &steps)?;
    reshaped(call, &tiled, pairs.map(|(&d, &n)| d * n).collect())
}

fn slice(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let rank = tensor.dims.len();
    let needed = |list: Option<Vec<i64>>| list.ok_or_else(|| call.failed("starts or ends are missing"));
    let (starts, ends) = (needed(call.ints("starts", 1)?)?, needed(call.ints("ends", 2)?)?);
    let axes = call.ints("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let by = call.ints("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if starts.len() != ends.len() || starts.len() != axes.len() || starts.len() != by.len() {
        return Err(call.failed("starts, ends, axes and steps differ in number"));
    }
    call.axes(&axes, rank)?;
    let mut dims = tensor.dims.clone();
    let mut steps = strides(&tensor.dims);
    let mut origin = 0;
    for (((&start, &end), &axis), &by) in starts.iter().zip(&ends).zip(&axes).zip(&by) {
        let axis = call.axis(axis, rank)?;
        let size = dims[axis] as i64;
        let from_front = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
        let (first, count) = match by {
            0 => return Err(call.failed("a step of 0")),
            1.. => {
                let (first, end) = (from_front(start).clamp(0, size), from_front(end).clamp(0, size));
                (first, (end - first).max(0) as u64)
            }
            // Some runtimes read the largest integer as "to the end" in this direction too, others do not.
            _ if end >= i32::MAX as i64 => return Err(call.failed("an open end with a negative step")),
            _ => {
                let first = from_front(start).clamp(0, size.max(1) - 1);
                let end = from_front(end).clamp(-1, size - 1);
                (first, if size == 0 { 0 } else { (first - end).max(0) as u64 })
            }
        };
        dims[axis] = count.div_ceil(by.unsigned_abs());
        origin += first as isize * steps[axis];
        // Nothing moves along an axis of one, and a large step might overflow.
        steps[axis] = if dims[axis] > 1 { steps[axis] * by as isize } else { 0 };
    }
    view(call, tensor, dims, origin, &steps)
}

fn split(call: &Call) -> Result<Vec<Tensor>> {
    let tensor = call.input(0)?;
    let axis = call.axis(call.int("axis")?.unwrap_or(0), tensor.dims.len())?;
    let size = tensor.dims[axis];
    let lengths = match call.ints("split", 1)? {
        Some(lengths) => sizes(call, &lengths)?,
        None => {
            let parts = call.outputs.max(1) as u64;
            if call.int("num_outputs")?.is_some_and(|n| n != parts as i64) {
                return Err(call.failed("another number of outputs"));
            }
            let each = size.div_ceil(parts);
            (0..parts).map(|i| each.min(size.saturating_sub(i * each))).collect()
        }
    };
    if lengths.iter().try_fold(0u64, |n, &d| n.checked_add(d)) != Some(size) {
        return Err(call.failed("the parts do not add up"));
    }
    let steps = strides(&tensor.dims);
    let mut start = 0;
    lengths
        .iter()
        .map(|&length| {
            let mut dims = tensor.dims.clone();
            dims[axis] = length;
            let part = view(call, tensor, dims, start as isize * steps[axis], &steps);
            start += length;
            part
        })
        .collect()
}

fn gather(call: &Call) -> Result<Tensor> {
    let (tensor, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(call.int("axis")?.unwrap_or(0), tensor.dims.len())?;
    let size = tensor.dims[axis];
    let (outer, inner) = (&tensor.dims[..axis], &tensor.dims[axis + 1..]);
    let dims = [outer, &indices.dims, inner].concat();
    let width = call.width(tensor.dtype)?;
    let mut out = Vec::with_capacity(call.volume(&dims, tensor.dtype)? * width);
    let bytes = tensor.bytes().map_err(|e| call.failed(e))?;
    let block = inner.iter().product::<u64>() as usize * width;
    let indices = call.integers(indices)?;
    for at in 0..outer.iter().product::<u64>() as usize {
        for &index in &indices {
            let index = call.axis(index, size as usize)?;
            let start = (at * size as usize + index) * block;
            out.extend(bytes.get(start..start + block).ok_or_else(|| call.failed("index out of range"))?);
        }
    }
    Ok(Tensor::raw(tensor.dtype, dims, out))
}

fn concat(call: &Call) -> Result<Tensor> {
    let first = call.input(0)?;
    let axis = call.int("axis")?.ok_or_else(|| call.failed("no axis"))?;
    let axis = call.axis(axis, first.dims.len())?;
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    let mut parts = Vec::with_capacity(call.inputs.len());
    for slot in 0..call.inputs.len() {
        let part = call.input(slot)?;
        let differs = |(a, (&x, &y)): (usize, (&u64, &u64))| a != axis && x != y;
        let mut sizes = part.dims.iter().zip(&first.dims).enumerate();
        if part.dtype != first.dtype || part.dims.len() != first.dims.len() || sizes.any(differs) {
            return Err(call.failed(format!("{} next to {}", part.ty(), first.ty())));
        }
        dims[axis] += part.dims[axis];
        parts.push((part.bytes().map_err(|e| call.failed(e))?, part.dims[axis] as usize));
    }
    let width = call.width(first.dtype)?;
    let mut out = Vec::with_capacity(call.volume(&dims, first.dtype)? * width);
    let inner = dims[axis + 1..].iter().product::<u64>() as usize * width;
    for at in 0..dims[..axis].iter().product::<u64>() as usize {
        for (bytes, length) in &parts {
            let block = length * inner;
            out.extend(bytes.get(at * block..(at + 1) * block).unwrap_or_default());
        }
    }
    Ok(Tensor::raw(first.dtype, dims, out))
}

/// Of integers only: runtimes differ in how they step through floats.
fn range(call: &Call) -> Result<Tensor> {
    let dtype = call.input(0)?.dtype;
    let mut numbers = [0; 3];
    for (slot, number) in numbers.iter_mut().enumerate() {
        match call.integers(call.input(slot)?)?[..] {
            [one] => *number = one as i128,
            _ => return Err(call.failed("an operand is not one number")),
        }
    }
    let [start, limit, delta] = numbers;
    if delta == 0 {
        return Err(call.failed("a step of 0"));
    }
    let toward = (limit - start) * delta.signum();
    let count =
        u64::try_from(toward.max(0).div_euclid(delta.abs()) + (toward.max(0) % delta.abs() != 0) as i128);
    let count = count.map_err(|_| call.failed("too many elements"))?;
    call.volume(&[count], dtype)?;
    let values: Vec<i64> = (0..count as i128).map(|i| (start + i * delta) as i64).collect();
    call.made(Tensor::from_i64(dtype, vec![count], &values))
}

fn choose(call: &Call) -> Result<Tensor> {
    let (condition, yes, no) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if yes.dtype != no.dtype || condition.dtype != DType::Bool {
        return Err(call.failed("operands of other types"));
    }
    let dims = broadcast(&[&condition.dims, &yes.dims, &no.dims]);
    let dims = dims.ok_or_else(|| call.failed("shapes do not broadcast"))?;
    let all = |t: &Tensor| view(call, t, dims.clone(), 0, &broadcast_steps(&t.dims, dims.len()));
    let (condition, yes, no) = (all(condition)?, all(yes)?, all(no)?);
    let width = call.width(yes.dtype)?;
    let bytes = |t: &Tensor| t.bytes().map(|b| b.to_vec()).map_err(|e| call.failed(e));
    let (picks, mut out, other) = (bytes(&condition)?, bytes(&yes)?, bytes(&no)?);
    for ((pick, to), from) in picks.iter().zip(out.chunks_exact_mut(width)).zip(other.chunks_exact(width)) {
        if *pick == 0 {
            to.copy_from_slice(from);
        }
    }
    Ok(Tensor::raw(yes.dtype, dims, out))
}

fn non_zero(call: &Call) -> Result<Tensor> {
    let tensor = call.input(0)?;
    let hits: Vec<usize> =
        call.floats(tensor)?.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
    // A scalar counts as a vector of one, with one row of indices.
    let dims = if tensor.dims.is_empty() { &[1][..] } else { &tensor.dims };
    let rows = dims.iter().zip(strides(dims));
    let indices: Vec<i64> = rows
        .flat_map(|(&d, step)| hits.iter().map(move |&i| ((i / step as usize) as u64 % d) as i64))
        .collect();
    call.made(Tensor::from_i64(DType::I64, vec![dims.len() as u64, hits.len() as u64], &indices))
}
