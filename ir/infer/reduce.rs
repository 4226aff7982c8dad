//! Operators that reduce dimensions, and that pick along one.

use super::{Call, DType, Dim, List, Rule, Rules, Size, TensorType, Type, axes, dim, of_rank, tensor};

pub(super) const RULES: Rules = &[
    ("ArgMax", Rule::Tensor(arg)),
    ("ArgMin", Rule::Tensor(arg)),
    ("ReduceL1", Rule::Tensor(reduce)),
    ("ReduceL2", Rule::Tensor(reduce)),
    ("ReduceLogSum", Rule::Tensor(reduce)),
    ("ReduceLogSumExp", Rule::Tensor(reduce)),
    ("ReduceMax", Rule::Tensor(reduce)),
    ("ReduceMean", Rule::Tensor(reduce)),
    ("ReduceMin", Rule::Tensor(reduce)),
    ("ReduceProd", Rule::Tensor(reduce)),
    ("ReduceSum", Rule::Tensor(reduce)),
    ("ReduceSumSquare", Rule::Tensor(reduce)),
    ("TopK", Rule::Types(top_k)),
];

fn reduce(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let keep = call.int("keepdims", 1) != 0;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let list = match call.list(1, "axes") {
        List::Known(list) => list,
        List::Absent => Vec::new(),
        // Which dimensions go is not known; with a known number of them, the rank is, unless none means all.
        List::Unknown(_) if keep => return Some(tensor(dtype, of_rank(dims.len()))),
        List::Unknown(Some(n)) if n > 0 => {
            return Some(tensor(dtype, dims.len().checked_sub(n).map(of_rank)));
        }
        List::Unknown(_) => return Some(tensor(dtype, None)),
    };
    if list.is_empty() && call.int("noop_with_empty_axes", 0) != 0 {
        return call.tensor(0).cloned();
    }
    let gone = if list.is_empty() { (0..dims.len()).collect() } else { axes(&list, dims.len())? };
    Some(tensor(dtype, without(dims, &gone, keep)))
}

/// The shape after a reduction over these positions.
fn without(dims: &[Dim], gone: &[usize], keep: bool) -> Vec<Dim> {
    let reduced = dims.iter().enumerate().filter_map(|(i, d)| match (gone.contains(&i), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::Known(1)),
        (true, false) => None,
    });
    reduced.collect()
}

fn arg(call: &Call<'_>) -> Option<TensorType> {
    let Some(dims) = call.shape(0) else { return Some(tensor(DType::I64, None)) };
    let along = call.axis("axis", 0, dims.len())?;
    Some(tensor(DType::I64, without(dims, &[along], call.int("keepdims", 1) != 0)))
}

fn top_k(call: &Call<'_>) -> Vec<Option<Type>> {
    let shape = || {
        let mut shape = call.shape(0)?.to_vec();
        let along = call.axis("axis", -1, shape.len())?;
        shape[along] = match call.op.int("k") {
            Some(k) if call.opset < 10 => Size::Known(k).dim(),
            _ => dim(call.scalar(1).filter(Size::is_nonnegative)),
        };
        Some(shape)
    };
    let Some(dtype) = call.dtype(0) else { return Vec::new() };
    let shape = shape();
    vec![Some(tensor(dtype, shape.clone()).into()), Some(tensor(DType::I64, shape).into())]
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn axes_come_as_attribute_or_operand() {
        expect(&[
            ("ReduceSum axes=[1] keepdims=0", 11, &["float[N,3,H]"], "float[N,H]"),
            ("ReduceMean axes=[-1,1]", 13, &["float[N,3,H]"], "float[N,1,1]"),
            ("ReduceMean", 18, &["float[N,3,H]", "int64[2]=1,2"], "float[N,1,1]"),
            ("ReduceSum keepdims=0", 13, &["float[N,3,H]", "int64[1]=-1"], "float[N,3]"),
            ("ReduceSum", 13, &["float[N,3]"], "float[1,1]"),
            ("ReduceSum keepdims=0", 13, &["float[N,3]"], "float"),
            ("ReduceSum noop_with_empty_axes=1", 13, &["float[N,3]"], "float[N,3]"),
            ("ReduceSum noop_with_empty_axes=1", 13, &["float[N,3]", "int64[0]="], "float[N,3]"),
            ("ReduceSum", 13, &["float[N,3]", "int64[1]"], "float[?,?]"),
            ("ReduceSum keepdims=0", 13, &["float[N,3]", "int64[1]"], "float[?]"),
            ("ReduceSum keepdims=0", 13, &["float[N,3]", "?"], "float[...]"),
            ("ReduceMax axes=[3]", 13, &["float[N,3]"], "-"),
        ]);
    }

    #[test]
    fn picks_along_an_axis() {
        expect(&[
            ("ArgMax", 13, &["float[N,3]"], "int64[1,3]"),
            ("ArgMin axis=-1 keepdims=0", 13, &["float[N,3]"], "int64[N]"),
            ("TopK k=2", 1, &["float[N,3]"], "float[N,2] int64[N,2]"),
            ("TopK axis=0", 11, &["float[N,3]", "int64[1]=4"], "float[4,3] int64[4,3]"),
            ("TopK", 11, &["float[N,3]", "int64[1]"], "float[N,?] int64[N,?]"),
        ]);
    }
}
