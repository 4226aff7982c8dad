//! Normalizations and losses.

use super::{Call, DType, Dim, Rule, Rules, TensorType, Type, of_rank, tensor};

pub(super) const RULES: Rules = &[
    ("BatchNormalization", Rule::Types(batch_norm)),
    ("GroupNormalization", Rule::Tensor(same)),
    ("InstanceNormalization", Rule::Tensor(same)),
    ("LRN", Rule::Tensor(same)),
    ("LayerNormalization", Rule::Types(layer_norm)),
    ("LpNormalization", Rule::Tensor(same)),
    ("MeanVarianceNormalization", Rule::Tensor(same)),
    ("NegativeLogLikelihoodLoss", Rule::Tensor(loss)),
    ("RMSNormalization", Rule::Tensor(rms_norm)),
    ("SoftmaxCrossEntropyLoss", Rule::Types(cross_entropy)),
];

fn same(call: &Call<'_>) -> Option<TensorType> {
    call.tensor(0).cloned()
}

/// In training: the running mean and variance too, and before operator set 14 what was saved of them.
fn batch_norm(call: &Call<'_>) -> Vec<Option<Type>> {
    let statistic = |slot: usize| {
        let shape = call.shape(slot).map_or_else(|| of_rank(1), <[Dim]>::to_vec);
        Some(Type::Tensor(tensor(call.dtype(slot)?, shape)))
    };
    let (mean, variance) = (statistic(3), statistic(4));
    vec![same(call).map(Type::Tensor), mean.clone(), variance.clone(), mean, variance]
}

/// Mean and inverse deviation keep the rank, with 1 from the axis on.
fn layer_norm(call: &Call<'_>) -> Vec<Option<Type>> {
    let statistic = || {
        let dtype = match call.op.int("stash_type") {
            None => DType::F32,
            Some(_) => call.dtype_attribute("stash_type")?,
        };
        let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
        let first = call.axis("axis", -1, dims.len())?;
        let shape = dims.iter().enumerate().map(|(i, d)| if i < first { d.clone() } else { Dim::Known(1) });
        Some(tensor(dtype, shape.collect::<Vec<_>>()))
    };
    let statistic = statistic().map(Type::Tensor);
    vec![same(call).map(Type::Tensor), statistic.clone(), statistic]
}

/// The scale gives the element type.
fn rms_norm(call: &Call<'_>) -> Option<TensorType> {
    Some(call.like(0, call.dtype(1)?))
}

/// A scalar, or a loss for each target.
fn loss(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    match call.op.string("reduction").unwrap_or("mean") {
        "none" => Some(call.like(1, dtype)),
        _ => Some(tensor(dtype, of_rank(0))),
    }
}

fn cross_entropy(call: &Call<'_>) -> Vec<Option<Type>> {
    vec![loss(call).map(Type::Tensor), same(call).map(Type::Tensor)]
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn normalizations() {
        let channels = "float[8]";
        expect(&[
            (
                "BatchNormalization",
                15,
                &["float16[N,8,H]", channels, channels, channels, channels],
                "float16[N,8,H] float[8] float[8]",
            ),
            (
                "LayerNormalization axis=-2",
                17,
                &["float16[N,S,8]", "float16[S,8]"],
                "float16[N,S,8] float[N,1,1] float[N,1,1]",
            ),
            ("RMSNormalization", 23, &["float[N,8]", "float16[8]"], "float16[N,8]"),
            ("GroupNormalization num_groups=2", 21, &["float[N,8,H]", channels, channels], "float[N,8,H]"),
            ("NegativeLogLikelihoodLoss", 13, &["float[N,5]", "int64[N]"], "float"),
            (
                "SoftmaxCrossEntropyLoss reduction='none'",
                13,
                &["float[N,5,H]", "int64[N,H]"],
                "float[N,H] float[N,5,H]",
            ),
        ]);
    }
}
