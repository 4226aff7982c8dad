//! Operators that move elements: transposition, joining, cutting, gathering, scattering, padding.

use super::shape::slice_len;
use super::{
    Call, DType, Dim, Int, Ints, List, Rule, Rules, Shape, Size, TensorType, Type, axes, axis, dim, of_rank,
    product, tensor, unify,
};

pub(super) const RULES: Rules = &[
    ("CenterCropPad", Rule::Tensor(center_crop_pad)),
    ("Compress", Rule::Tensor(compress)),
    ("Concat", Rule::Tensor(concat)),
    ("DepthToSpace", Rule::Tensor(depth_to_space)),
    ("Gather", Rule::Tensor(gather)),
    ("GatherElements", Rule::Tensor(gather_elements)),
    ("GatherND", Rule::Tensor(gather_nd)),
    ("NonZero", Rule::Tensor(non_zero)),
    ("OneHot", Rule::Tensor(one_hot)),
    ("Pad", Rule::Tensor(pad)),
    ("ReverseSequence", Rule::Tensor(first)),
    ("Scatter", Rule::Tensor(first)),
    ("ScatterElements", Rule::Tensor(first)),
    ("ScatterND", Rule::Tensor(first)),
    ("Slice", Rule::Tensor(slice)),
    ("SpaceToDepth", Rule::Tensor(space_to_depth)),
    ("Split", Rule::Types(split)),
    ("TensorScatter", Rule::Tensor(first)),
    ("Tile", Rule::Tensor(tile)),
    ("Transpose", Rule::Tensor(transpose)),
    ("Trilu", Rule::Tensor(first)),
    ("Unique", Rule::Types(unique)),
];

fn first(call: &Call<'_>) -> Option<TensorType> {
    call.tensor(0).cloned()
}

fn transpose(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else {
        return Some(tensor(dtype, call.op.ints("perm").map(|p| of_rank(p.len()))));
    };
    let shape: Shape = match call.op.ints("perm") {
        None => dims.iter().rev().cloned().collect(),
        Some(perm) if perm.len() == dims.len() => {
            axes(perm, dims.len())?.into_iter().map(|a| dims[a].clone()).collect()
        }
        Some(_) => return None,
    };
    Some(tensor(dtype, shape))
}

fn concat(call: &Call<'_>) -> Option<TensorType> {
    let slots = 0..call.args.len();
    let dtype = slots.clone().find_map(|s| call.dtype(s))?;
    let Some(rank) = slots.clone().find_map(|s| call.shape(s)).map(<[Dim]>::len) else {
        return Some(tensor(dtype, None));
    };
    let default = if call.opset < 4 { 1 } else { 0 };
    let along = call.axis("axis", default, rank)?;
    let mut shape = of_rank(rank);
    let mut total = Some(Size::Known(0));
    for slot in slots {
        let Some(dims) = call.shape(slot) else {
            total = None;
            continue;
        };
        if dims.len() != rank {
            return None;
        }
        for (i, (known, d)) in shape.iter_mut().zip(dims).enumerate() {
            if i == along {
                total = total.and_then(|t| t.add(&Size::of(d)?));
            } else {
                *known = unify(known, d)?;
            }
        }
    }
    shape[along] = dim(total);
    Some(tensor(dtype, shape))
}

fn split(call: &Call<'_>) -> Vec<Option<Type>> {
    let parts = call.op.outputs.len();
    let Some(dtype) = call.dtype(0) else { return Vec::new() };
    let unknown = |shape: Option<Shape>| vec![Some(Type::Tensor(tensor(dtype, shape))); parts];
    let Some(dims) = call.shape(0) else { return unknown(None) };
    let Some(along) = call.axis("axis", 0, dims.len()) else { return Vec::new() };
    let sizes: Vec<Dim> = match call.list(1, "split") {
        List::Known(sizes) if sizes.len() == parts => sizes.iter().map(|&n| Size::Known(n).dim()).collect(),
        List::Known(_) => return Vec::new(),
        List::Unknown(_) => match call.ints(1) {
            Some(sizes) if sizes.elements.len() == parts => sizes.dims(),
            _ => of_rank(parts),
        },
        List::Absent => equal_parts(&dims[along], parts, call.opset),
    };
    let part = |size: Dim| {
        let mut shape = dims.to_vec();
        shape[along] = size;
        Some(Type::Tensor(tensor(dtype, shape)))
    };
    sizes.into_iter().map(part).collect()
}

/// Equal parts; from operator set 18 on, the last one takes what is left.
fn equal_parts(whole: &Dim, parts: usize, opset: i64) -> Vec<Dim> {
    let count = parts as u64;
    match whole {
        Dim::Known(n) if opset >= 18 && count > 0 => {
            let chunk = n.div_ceil(count);
            match n.checked_sub(chunk * (count - 1)) {
                Some(last) => (1..count).map(|_| chunk).chain([last]).map(Dim::Known).collect(),
                None => of_rank(parts),
            }
        }
        _ => {
            let divisor = Size::Known(parts as i64);
            let part = |n: Size| if opset < 18 { n.divided(&divisor) } else { n.div_exact(&divisor) };
            vec![dim(Size::of(whole).and_then(part)); parts]
        }
    }
}

fn slice(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let (starts, ends, along) = if call.opset < 10 {
        let along = call.op.ints("axes").map_or(List::Absent, |a| List::Known(a.to_vec()));
        (call.op.ints("starts").map(Ints::list), call.op.ints("ends").map(Ints::list), along)
    } else {
        let operand = |slot| call.ints(slot).map(|v| v.into_owned());
        (operand(1), operand(2), call.list(3, ""))
    };
    let count = (starts.as_ref().map(|s| s.elements.len()))
        .or(ends.as_ref().map(|e| e.elements.len()))
        .or(call.length(1))
        .or(call.length(2));
    let along = match along {
        List::Known(list) => axes(&list, dims.len())?,
        // Which axes are cut is not known.
        List::Unknown(_) => return Some(tensor(dtype, of_rank(dims.len()))),
        List::Absent => match count {
            Some(n) if n <= dims.len() => (0..n).collect(),
            Some(_) => return None,
            None => return Some(tensor(dtype, of_rank(dims.len()))),
        },
    };
    let steps = (call.opset >= 10 && call.has(4)).then(|| call.ints(4));
    let mut shape = dims.to_vec();
    for (i, &a) in along.iter().enumerate() {
        let at = |list: &Option<Ints>| list.as_ref().and_then(|l| l.elements.get(i).cloned());
        let step = match &steps {
            None => Some(1),
            Some(steps) => steps
                .as_ref()
                .and_then(|s| s.elements.get(i).and_then(|e| e.size.as_ref().and_then(Size::known))),
        };
        shape[a] = match (at(&starts), at(&ends), step) {
            (Some(start), Some(end), Some(step)) => cut(&dims[a], &start, &end, step),
            _ => Dim::Unknown,
        };
    }
    Some(tensor(dtype, shape))
}

/// The length of a slice.
fn cut(whole: &Dim, start: &Int, end: &Int, step: i64) -> Dim {
    let (Some(size), Some(first), Some(last)) = (Size::of(whole), &start.size, &end.size) else {
        return Dim::Unknown;
    };
    if let (Some(n), Some(first), Some(last)) = (size.known(), first.known(), last.known()) {
        return dim(slice_len(n, first, last, step).map(Size::Known));
    }
    let huge = i64::from(i32::MAX);
    if step < 0 {
        // Only the whole, reversed.
        let from_last = first.known().is_some_and(|n| n == -1 || n >= huge);
        let to_first = last.known().is_some_and(|n| n <= -huge);
        let whole = from_last && to_first && step == -1;
        return if whole { size.dim() } else { Dim::Unknown };
    }
    // A bound counted from the back, then cut to the range of the dimension.
    let bound = |value: &Int, expression: &Size| match expression.known() {
        Some(n) if n >= huge => Some(size.clone()),
        Some(n) if n <= -huge => Some(Size::Known(0)),
        Some(n) if n < 0 => size.plus(n)?.positive(),
        _ if value.nonnegative => size.minimum(expression),
        _ => None,
    };
    let count = || {
        let (first, last) = (bound(start, first)?, bound(end, last)?);
        last.sub(&first)?.positive()?.div_ceil(step)
    };
    if step == 0 { Dim::Unknown } else { dim(count()) }
}

fn tile(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, call.length(1).map(of_rank))) };
    if call.opset < 6 {
        return Some(tensor(dtype, of_rank(dims.len())));
    }
    let shape = match call.ints(1) {
        Some(repeats) if repeats.elements.len() == dims.len() => {
            let scaled = dims.iter().zip(repeats.dims());
            scaled.map(|(d, by)| dim(product(&[d.clone(), by]))).collect()
        }
        Some(_) => return None,
        None => of_rank(dims.len()),
    };
    Some(tensor(dtype, shape))
}

fn pad(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let pads: Vec<Option<Size>> = if call.opset < 11 {
        let list = call.op.ints("pads").or(call.op.ints("paddings"))?;
        list.iter().map(|&n| Some(Size::Known(n))).collect()
    } else {
        match call.ints(1) {
            Some(pads) => pads.elements.iter().map(|e| e.size.clone()).collect(),
            None => vec![None; call.length(1).unwrap_or(2 * dims.len())],
        }
    };
    let along = match call.list(3, "") {
        List::Known(list) => axes(&list, dims.len())?,
        List::Unknown(_) => return Some(tensor(dtype, of_rank(dims.len()))),
        List::Absent => (0..dims.len()).collect(),
    };
    if pads.len() != 2 * along.len() {
        return None;
    }
    let mut shape = dims.to_vec();
    for (i, &a) in along.iter().enumerate() {
        let padded = || Size::of(&dims[a])?.add(pads[i].as_ref()?)?.add(pads[i + along.len()].as_ref()?);
        shape[a] = dim(padded());
    }
    Some(tensor(dtype, shape))
}

fn center_crop_pad(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let along = match call.op.ints("axes") {
        Some(list) => axes(list, dims.len())?,
        None => (0..dims.len()).collect(),
    };
    let target = call.shape_operand(1).unwrap_or_else(|| of_rank(along.len()));
    if target.len() != along.len() {
        return None;
    }
    let mut shape = dims.to_vec();
    for (&a, size) in along.iter().zip(target) {
        shape[a] = size;
    }
    Some(tensor(dtype, shape))
}

fn gather(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let (Some(data), Some(indices)) = (call.shape(0), call.shape(1)) else {
        return Some(tensor(dtype, None));
    };
    let along = call.axis("axis", 0, data.len())?;
    let shape = [&data[..along], indices, &data[along + 1..]].concat();
    Some(tensor(dtype, shape))
}

fn gather_elements(call: &Call<'_>) -> Option<TensorType> {
    Some(call.like(1, call.dtype(0)?))
}

fn gather_nd(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let (Some(data), Some(indices)) = (call.shape(0), call.shape(1)) else {
        return Some(tensor(dtype, None));
    };
    let (Some(last), Ok(batch)) = (indices.last(), usize::try_from(call.int("batch_dims", 0))) else {
        return None;
    };
    let Dim::Known(depth) = last else { return Some(tensor(dtype, None)) };
    let rest = data.get(batch.checked_add(usize::try_from(*depth).ok()?)?..)?;
    Some(tensor(dtype, [&indices[..indices.len() - 1], rest].concat()))
}

fn compress(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    if call.op.int("axis").is_none() {
        return Some(tensor(dtype, of_rank(1)));
    }
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let mut shape = dims.to_vec();
    shape[call.axis("axis", 0, dims.len())?] = Dim::Unknown;
    Some(tensor(dtype, shape))
}

fn non_zero(call: &Call<'_>) -> Option<TensorType> {
    let rank = call.shape(0).map_or(Dim::Unknown, |dims| Dim::Known(dims.len() as u64));
    Some(tensor(DType::I64, vec![rank, Dim::Unknown]))
}

fn one_hot(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(2)?;
    let Some(indices) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let at = axis(call.int("axis", -1), indices.len() + 1)?;
    let mut shape = indices.to_vec();
    let depth = match call.ints(1).as_deref() {
        Some(Ints { elements, .. }) if elements.len() == 1 => elements[0].dim(),
        _ => Dim::Unknown,
    };
    shape.insert(at, depth);
    Some(tensor(dtype, shape))
}

fn unique(call: &Call<'_>) -> Vec<Option<Type>> {
    let values = || {
        let dtype = call.dtype(0)?;
        if call.op.int("axis").is_none() {
            return Some(tensor(dtype, of_rank(1)));
        }
        let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
        let mut shape = dims.to_vec();
        shape[call.axis("axis", 0, dims.len())?] = Dim::Unknown;
        Some(tensor(dtype, shape))
    };
    let list = || Some(Type::Tensor(tensor(DType::I64, of_rank(1))));
    vec![values().map(Type::Tensor), list(), list(), list()]
}

/// `[N, C, H, W] -> [N, C/(b*b), H*b, W*b]`
fn depth_to_space(call: &Call<'_>) -> Option<TensorType> {
    blocks(call, |d, b| d.divided(&Size::Known(b.checked_mul(b)?)), Size::times)
}

/// `[N, C, H, W] -> [N, C*b*b, H/b, W/b]`
fn space_to_depth(call: &Call<'_>) -> Option<TensorType> {
    blocks(call, |d, b| d.times(b.checked_mul(b)?), |d, b| d.divided(&Size::Known(b)))
}

fn blocks(
    call: &Call<'_>,
    channels: fn(&Size, i64) -> Option<Size>,
    spatial: fn(&Size, i64) -> Option<Size>,
) -> Option<TensorType> {
    let (dtype, block) = (call.dtype(0)?, call.op.int("blocksize")?);
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, of_rank(4))) };
    let [n, c, h, w] = dims else { return None };
    let apply = |f: fn(&Size, i64) -> Option<Size>, d: &Dim| dim(Size::of(d).and_then(|d| f(&d, block)));
    Some(tensor(dtype, vec![n.clone(), apply(channels, c), apply(spatial, h), apply(spatial, w)]))
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn joins() {
        expect(&[
            ("Concat axis=1", 13, &["float[N,3,H]", "float[N,5,H]"], "float[N,8,H]"),
            ("Concat axis=-1", 13, &["float[2,?]", "float[?,3]"], "float[2,?]"),
            ("Concat axis=0", 13, &["float[N]", "float[M]", "float[2]"], "float[{M + N + 2}]"),
            ("Concat axis=0", 13, &["float[...]", "float[2,3]"], "float[?,3]"),
            ("Concat axis=0", 13, &["float[2,3]", "float[2,4]"], "-"),
            ("Tile", 13, &["float[N,3]", "int64[2]=2,1"], "float[{2*N},3]"),
            ("Pad pads=[0,1,0,2]", 2, &["float[N,3]"], "float[N,6]"),
            ("Pad", 13, &["float[N,3]", "int64[4]=1,0,-1,4"], "float[N,7]"),
            ("Pad", 18, &["float[N,3]", "int64[2]=1,1", "-", "int64[1]=-1"], "float[N,5]"),
            ("Pad", 13, &["float[N,3]", "int64[4]"], "float[?,?]"),
        ]);
    }

    #[test]
    fn splits() {
        expect(&[
            ("Split axis=1", 13, &["float[N,6]"], "float[N,3] float[N,3]"),
            ("Split axis=1 split=[1,5]", 11, &["float[N,6]"], "float[N,1] float[N,5]"),
            ("Split axis=1", 13, &["float[N,6]", "int64[2]=2,4"], "float[N,2] float[N,4]"),
            ("Split axis=1", 13, &["float[N,6]", "int64[2]"], "float[N,?] float[N,?]"),
            ("Split num_outputs=3", 18, &["float[7]"], "float[3] float[3] float[1]"),
            ("Split num_outputs=2", 18, &["float[N]"], "float[?] float[?]"),
            ("Split", 13, &["float[N]"], "float[{floor(N/2)}] float[{floor(N/2)}]"),
        ]);
    }

    #[test]
    fn slices() {
        expect(&[
            ("Slice starts=[1] ends=[3] axes=[1]", 9, &["float[N,5]"], "float[N,2]"),
            (
                "Slice",
                13,
                &["float[N,5]", "int64[1]=-2", "int64[1]=9223372036854775807", "int64[1]=1"],
                "float[N,2]",
            ),
            (
                "Slice",
                13,
                &["float[5]", "int64[1]=-1", "int64[1]=-9223372036854775807", "-", "int64[1]=-1"],
                "float[5]",
            ),
            ("Slice", 13, &["float[9]", "int64[1]=1", "int64[1]=8", "int64[1]=0", "int64[1]=3"], "float[3]"),
            // The whole of it, whatever its size.
            ("Slice", 13, &["float[N]", "int64[1]=0", "int64[1]=9223372036854775807"], "float[N]"),
            (
                "Slice",
                13,
                &["float[N]", "int64[1]=0", "int64[1]=9223372036854775807", "-", "int64[1]=2"],
                "float[{floor((N + 1)/2)}]",
            ),
            ("Slice", 13, &["float[N,5]", "int64[1]", "int64[1]", "int64[1]=0"], "float[?,5]"),
            ("Slice", 13, &["float[N,5]", "int64[1]", "int64[1]", "int64[1]"], "float[?,?]"),
        ]);
    }

    #[test]
    fn gathers() {
        expect(&[
            ("Gather axis=1", 13, &["float[N,3,H]", "int64"], "float[N,H]"),
            ("Gather", 13, &["float[1000,64]", "int64[N,S]"], "float[N,S,64]"),
            ("GatherElements axis=1", 13, &["float[N,3]", "int64[N,2]"], "float[N,2]"),
            ("GatherND", 13, &["float[2,3,4]", "int64[5,2]"], "float[5,4]"),
            ("GatherND batch_dims=1", 13, &["float[N,3,4]", "int64[N,1]"], "float[N,4]"),
            ("GatherND", 13, &["float[2,3,4]", "int64[5,?]"], "float[...]"),
            ("ScatterND", 18, &["float[N,4]", "int64[2,1]", "float[2,4]"], "float[N,4]"),
            ("OneHot", 11, &["int64[N]", "int64=10", "float16[2]"], "float16[N,10]"),
            ("OneHot axis=0", 11, &["int64[N]", "int64", "float[2]"], "float[?,N]"),
            ("NonZero", 13, &["float[2,3]"], "int64[2,?]"),
            ("Compress axis=1", 11, &["float[N,3]", "bool[3]"], "float[N,?]"),
            ("Unique", 11, &["float[N]"], "float[?] int64[?] int64[?] int64[?]"),
        ]);
    }

    #[test]
    fn permutations() {
        expect(&[
            ("Transpose perm=[0,2,3,1]", 13, &["float[N,3,H,W]"], "float[N,H,W,3]"),
            ("Transpose", 13, &["float[N,3]"], "float[3,N]"),
            ("Transpose perm=[0,0]", 13, &["float[N,3]"], "-"),
            ("DepthToSpace blocksize=2", 13, &["float[N,12,H,W]"], "float[N,3,{2*H},{2*W}]"),
            ("SpaceToDepth blocksize=2", 13, &["float[N,3,H,4]"], "float[N,12,{floor(H/2)},2]"),
        ]);
    }
}
