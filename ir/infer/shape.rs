//! Operators that make a shape, or are told one: Reshape and its kin, generators.

use super::{
    Call, Cow, DType, Dim, Ints, List, Rule, Rules, Shape, Size, TensorType, axes, axis, broadcast, dim,
    of_rank, product, tensor,
};
use crate::AttributeValue;

pub(super) const RULES: Rules = &[
    ("Constant", Rule::Tensor(constant)),
    ("ConstantOfShape", Rule::Tensor(constant_of_shape)),
    ("Expand", Rule::Tensor(expand)),
    ("EyeLike", Rule::Tensor(eye_like)),
    ("Flatten", Rule::Tensor(flatten)),
    ("Multinomial", Rule::Tensor(multinomial)),
    ("RandomNormal", Rule::Tensor(random)),
    ("RandomNormalLike", Rule::Tensor(random_like)),
    ("RandomUniform", Rule::Tensor(random)),
    ("RandomUniformLike", Rule::Tensor(random_like)),
    ("Bernoulli", Rule::Tensor(random_like)),
    ("Range", Rule::Tensor(range)),
    ("Reshape", Rule::Tensor(reshape)),
    ("Shape", Rule::Tensor(shape)),
    ("Size", Rule::Tensor(size)),
    ("Squeeze", Rule::Tensor(squeeze)),
    ("Unsqueeze", Rule::Tensor(unsqueeze)),
];

fn constant(call: &Call<'_>) -> Option<TensorType> {
    let [attribute] = call.op.attributes.as_slice() else { return None };
    let vector = |dtype, n: usize| Some(TensorType::known(dtype, &[n as u64]));
    match &attribute.value {
        AttributeValue::Tensor(t) => Some(t.ty()),
        AttributeValue::SparseTensor(t) => Some(TensorType::known(t.values.dtype, &t.dims)),
        AttributeValue::Float(_) => Some(TensorType::known(DType::F32, &[])),
        AttributeValue::Int(_) => Some(TensorType::known(DType::I64, &[])),
        AttributeValue::String(_) => Some(TensorType::known(DType::String, &[])),
        AttributeValue::Floats(v) => vector(DType::F32, v.len()),
        AttributeValue::Ints(v) => vector(DType::I64, v.len()),
        AttributeValue::Strings(v) => vector(DType::String, v.len()),
        _ => None,
    }
}

impl Call<'_> {
    /// The shape that an operand spells out, or its rank alone.
    pub fn shape_operand(&self, slot: usize) -> Option<Shape> {
        match self.ints(slot) {
            Some(ints) if ints.is_vector() => Some(ints.dims()),
            Some(_) => None,
            None => self.length(slot).map(of_rank),
        }
    }

    /// The part of a shape of this rank that `Shape` gives.
    pub fn shape_range(&self, rank: usize) -> (usize, usize) {
        let rank = rank as i64;
        let clamp = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.int("start", 0)), clamp(self.int("end", rank)));
        (start, end.max(start))
    }
}

fn constant_of_shape(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match call.op.attribute("value") {
        Some(AttributeValue::Tensor(t)) => t.dtype,
        Some(_) => return None,
        None => DType::F32,
    };
    Some(tensor(dtype, call.shape_operand(0)))
}

fn shape(call: &Call<'_>) -> Option<TensorType> {
    let len = call.shape(0).map(|dims| {
        let (start, end) = call.shape_range(dims.len());
        Dim::Known((end - start) as u64)
    });
    Some(tensor(DType::I64, vec![len.unwrap_or(Dim::Unknown)]))
}

fn size(_: &Call<'_>) -> Option<TensorType> {
    Some(TensorType::known(DType::I64, &[]))
}

/// `[d_0, ...] -> shape`: 0 keeps a dimension (unless `allowzero`), -1 is what is left.
fn reshape(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let target: Cow<'_, Ints> = if call.opset < 5 {
        Cow::Owned(Ints::list(call.op.ints("shape")?))
    } else {
        match call.ints(1) {
            Some(ints) if ints.is_vector() => ints,
            _ => return Some(tensor(dtype, call.length(1).map(of_rank))),
        }
    };
    let data = call.shape(0);
    let keep_zero = call.int("allowzero", 0) != 0;
    let number = |i: usize| target.elements[i].size.as_ref().and_then(Size::known);
    let mut result = target.dims();
    // What a dimension keeps cancels on both sides, known or not.
    let mut left: Option<Vec<Dim>> = data.map(<[Dim]>::to_vec);
    let mut others: Vec<Dim> = Vec::new();
    for (i, size) in result.iter_mut().enumerate() {
        match number(i) {
            Some(0) if !keep_zero => {
                *size = data.and_then(|d| d.get(i)).cloned().unwrap_or(Dim::Unknown);
                match left.as_mut().and_then(|l| l.get_mut(i)) {
                    Some(kept) => *kept = Dim::Known(1),
                    None => left = None,
                }
            }
            Some(n) if n < 0 => {}
            _ => others.push(size.clone()),
        }
    }
    let mut inferred = (0..result.len()).filter(|&i| number(i) == Some(-1));
    if let (Some(at), None) = (inferred.next(), inferred.next())
        && let Some(left) = left
    {
        result[at] = dim(quotient(left, others));
    }
    Some(tensor(dtype, result))
}

/// The product of `dims` divided by the product of `by`: what Reshape infers, which is certainly an integer.
fn quotient(mut dims: Vec<Dim>, by: Vec<Dim>) -> Option<Size> {
    let mut rest = Vec::with_capacity(by.len());
    for d in by {
        match dims.iter().position(|x| x.same(&d)) {
            Some(at) if d != Dim::Known(0) => drop(dims.swap_remove(at)),
            _ => rest.push(d),
        }
    }
    product(&dims)?.divided(&product(&rest)?)
}

fn flatten(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, of_rank(2))) };
    let at = match call.int("axis", 1) {
        end if end == dims.len() as i64 => dims.len(),
        a => axis(a, dims.len())?,
    };
    let (outer, inner) = dims.split_at(at);
    Some(tensor(dtype, vec![dim(product(outer)), dim(product(inner))]))
}

fn squeeze(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let shape = match call.list(1, "axes") {
        List::Known(list) => {
            let drop = axes(&list, dims.len())?;
            let kept = dims.iter().enumerate().filter(|(i, _)| !drop.contains(i));
            Some(kept.map(|(_, d)| d.clone()).collect())
        }
        List::Unknown(count) => count.and_then(|n| dims.len().checked_sub(n)).map(of_rank),
        // Every dimension of size 1 goes: which ones must be certain.
        List::Absent if dims.iter().all(|d| d.known().is_some()) => {
            Some(dims.iter().filter(|d| **d != Dim::Known(1)).cloned().collect())
        }
        List::Absent => None,
    };
    Some(tensor(dtype, shape))
}

fn unsqueeze(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let shape = match call.list(1, "axes") {
        List::Known(list) => {
            let rank = dims.len() + list.len();
            let new = axes(&list, rank)?;
            let mut old = dims.iter().cloned();
            let mut at = |i| if new.contains(&i) { Some(Dim::Known(1)) } else { old.next() };
            Some((0..rank).map(&mut at).collect::<Option<Shape>>()?)
        }
        List::Unknown(count) => count.map(|n| of_rank(n + dims.len())),
        List::Absent => None,
    };
    Some(tensor(dtype, shape))
}

fn expand(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let (Some(dims), Some(target)) = (call.shape(0), call.shape_operand(1)) else {
        return Some(tensor(dtype, None));
    };
    Some(tensor(dtype, broadcast(dims, &target)?))
}

/// Number of elements that `Range` counts.
pub(super) fn range_len(start: i64, limit: i64, delta: i64) -> Option<i64> {
    let span = limit.checked_sub(start)?;
    match delta {
        0 => None,
        1.. => Some(span.max(0).checked_add(delta - 1)?.checked_div(delta)?),
        _ => Some(span.min(0).checked_add(delta.checked_add(1)?)?.checked_div(delta)?),
    }
}

fn range(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0).or(call.dtype(1)).or(call.dtype(2))?;
    let count = || {
        if !dtype.is_integer() {
            let number = |slot: usize| call.constant(slot)?.to_f64().ok()?.first().copied();
            let count = ((number(1)? - number(0)?) / number(2)?).ceil().max(0.0);
            // Where rounding could tip the count, runtimes may differ.
            let exact = dtype == DType::F64 || (count == count.round() && count < 1e6);
            return (exact && count.is_finite()).then_some(Size::Known(count as i64));
        }
        let (start, limit) = (call.scalar(0)?, call.scalar(1)?);
        match (start.known(), limit.known(), call.scalar(2)?.known()?) {
            (Some(start), Some(limit), delta) => range_len(start, limit, delta).map(Size::Known),
            (_, _, delta) if delta > 0 => limit.sub(&start)?.positive()?.div_ceil(delta),
            _ => None,
        }
    };
    Some(tensor(dtype, vec![dim(count())]))
}

fn eye_like(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype_attribute("dtype").or(call.dtype(0))?;
    Some(call.like(0, dtype))
}

fn random(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match call.op.int("dtype") {
        None => DType::F32,
        Some(_) => call.dtype_attribute("dtype")?,
    };
    let dims = call.op.ints("shape")?.iter().map(|&n| Size::Known(n).dim()).collect::<Shape>();
    Some(tensor(dtype, dims))
}

fn random_like(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match call.op.int("dtype") {
        None => call.dtype(0)?,
        Some(_) => call.dtype_attribute("dtype")?,
    };
    Some(call.like(0, dtype))
}

fn multinomial(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match call.op.int("dtype") {
        None => DType::I32,
        Some(_) => call.dtype_attribute("dtype")?,
    };
    let batch = match call.shape(0) {
        Some([batch, _]) => batch.clone(),
        _ => Dim::Unknown,
    };
    Some(tensor(dtype, vec![batch, Size::Known(call.int("sample_size", 1)).dim()]))
}

/// The positions that a slice of `len` elements takes; `None` when they are too many to list.
pub(super) fn slice_positions(
    len: i64,
    start: i64,
    end: i64,
    step: i64,
) -> Option<impl Iterator<Item = i64>> {
    let count = slice_len(len, start, end, step)?;
    let start = if start < 0 { start.saturating_add(len) } else { start };
    let start = if step > 0 { start.clamp(0, len) } else { start.clamp(0, len.max(1) - 1) };
    Some((0..count).map(move |i| start.wrapping_add(i.wrapping_mul(step))))
}

/// How many elements a slice of `len` elements takes.
pub(super) fn slice_len(len: i64, start: i64, end: i64, step: i64) -> Option<i64> {
    let from_back = |v: i64| if v < 0 { v.saturating_add(len) } else { v };
    let (start, end) = (from_back(start), from_back(end));
    match step {
        0 => None,
        1.. => range_len(start.clamp(0, len), end.clamp(0, len), step),
        _ if len == 0 => Some(0),
        // The standard moves such a start to 0, numpy takes nothing, and runtimes follow either.
        _ if start < 0 => None,
        _ => range_len(start.clamp(0, len - 1), end.clamp(-1, len - 1), step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::testing::expect;

    #[test]
    fn reshapes() {
        expect(&[
            ("Reshape", 13, &["float[2,3,4]", "int64[2]=4,6"], "float[4,6]"),
            ("Reshape", 13, &["float[N,512,1,1]", "int64[2]=0,-1"], "float[N,512]"),
            ("Reshape", 13, &["float[?,12,64]", "int64[2]=0,-1"], "float[?,768]"),
            ("Reshape", 13, &["float[?,12,64]", "int64[2]=-1,768"], "float[?,768]"),
            ("Reshape", 13, &["float[N,12,64]", "int64[2]=-1,768"], "float[N,768]"),
            ("Reshape", 13, &["float[N,H]", "int64[2]=-1,4"], "float[{floor((H*N)/4)},4]"),
            ("Reshape", 13, &["float[7]", "int64[2]=-1,4"], "float[?,4]"),
            ("Reshape", 13, &["float[0,3]", "int64[2]=-1,3"], "float[0,3]"),
            ("Reshape", 13, &["float[0,3]", "int64[2]=0,-1"], "float[0,3]"),
            ("Reshape allowzero=1", 14, &["float[0,3]", "int64[2]=3,0"], "float[3,0]"),
            ("Reshape", 13, &["float[N]", "int64[0]="], "float"),
            ("Reshape", 13, &["float[N,3]", "int64[4]"], "float[?,?,?,?]"),
            ("Reshape", 13, &["float[N,3]", "int64[K]"], "float[...]"),
            ("Reshape shape=[3,-1]", 1, &["float[2,3]"], "float[3,2]"),
            ("Flatten", 13, &["float[N,512,1,1]"], "float[N,512]"),
            ("Flatten axis=0", 13, &["float[N,3]"], "float[1,{3*N}]"),
            ("Flatten axis=-1", 13, &["float[2,3,4]"], "float[6,4]"),
            ("Flatten axis=3", 13, &["float[2,3,4]"], "float[24,1]"),
        ]);
    }

    #[test]
    fn dimensions_of_one_come_and_go() {
        expect(&[
            ("Squeeze axes=[1]", 11, &["float[N,1,3]"], "float[N,3]"),
            ("Squeeze", 13, &["float[N,1,3]", "int64[1]=-2"], "float[N,3]"),
            ("Squeeze", 13, &["float[2,1,3,1]"], "float[2,3]"),
            // N may be 1 too.
            ("Squeeze", 13, &["float[N,1,3]"], "float[...]"),
            ("Squeeze", 13, &["float[N,1,3]", "int64[1]"], "float[?,?]"),
            ("Unsqueeze axes=[0,2]", 11, &["float[N,3]"], "float[1,N,1,3]"),
            ("Unsqueeze", 13, &["float[N,3]", "int64[1]=-1"], "float[N,3,1]"),
            ("Unsqueeze", 13, &["float[N,3]", "int64[1]"], "float[?,?,?]"),
            ("Unsqueeze", 13, &["float[N,3]", "int64[2]=0,0"], "-"),
            ("Expand", 13, &["float[N,1,3]", "int64[4]=2,1,4,1"], "float[2,N,4,3]"),
            ("Expand", 13, &["float[3]", "int64[2]"], "float[?,3]"),
        ]);
    }

    #[test]
    fn generators() {
        expect(&[
            ("Shape", 13, &["float[N,3,H]"], "int64[3]"),
            ("Shape start=1", 15, &["float[N,3,H]"], "int64[2]"),
            ("Shape start=-1 end=7", 15, &["float[N,3,H]"], "int64[1]"),
            ("Shape start=2 end=1", 15, &["float[N,3,H]"], "int64[0]"),
            ("Shape", 13, &["float[...]"], "int64[?]"),
            ("Size", 13, &["float[N]"], "int64"),
            ("ConstantOfShape", 9, &["int64[2]=4,5"], "float[4,5]"),
            ("Range", 11, &["int64=1", "int64=10", "int64=4"], "int64[3]"),
            ("Range", 11, &["int64=10", "int64=1", "int64=-4"], "int64[3]"),
            ("Range", 11, &["int64=1", "int64=0", "int64=1"], "int64[0]"),
            ("Range", 11, &["float=0", "float=2", "float=0.5"], "float[4]"),
            ("Range", 11, &["int64", "int64", "int64"], "int64[?]"),
            ("EyeLike dtype=7", 9, &["float[3,4]"], "int64[3,4]"),
            ("RandomNormal shape=[2,3]", 1, &[], "float[2,3]"),
            ("RandomUniformLike dtype=10", 1, &["float[N]"], "float16[N]"),
            ("Constant value_ints=[1,2,3]", 13, &[], "int64[3]"),
        ]);
    }

    /// Every slice, by walking over it.
    #[test]
    fn slices_take_what_a_walk_over_them_takes() {
        for len in 0..6i64 {
            for (start, end) in (-8..8).flat_map(|s| (-8..8).map(move |e| (s, e))) {
                for step in [-3, -2, -1, 1, 2, 3] {
                    let from_back = |v: i64| if v < 0 { v + len } else { v };
                    let (mut at, mut walked) = (from_back(start), Vec::new());
                    let last = from_back(end);
                    at = if step > 0 { at.max(0) } else { at.min(len - 1) };
                    while if step > 0 { at < last.min(len) } else { at > last.max(-1) } {
                        if (0..len).contains(&at) {
                            walked.push(at);
                        }
                        at += step;
                    }
                    let positions = slice_positions(len, start, end, step).map(Iterator::collect);
                    let undefined = step < 0 && len > 0 && from_back(start) < 0;
                    assert_eq!(positions, (!undefined).then_some(walked), "{start}:{end}:{step} of {len}");
                }
            }
        }
    }
}
