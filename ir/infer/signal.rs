//! Windows and Fourier transforms; text.

use super::{Call, DType, Dim, Rule, Rules, Size, TensorType, Type, dim, of_rank, tensor};

pub(super) const RULES: Rules = &[
    ("BlackmanWindow", Rule::Tensor(window)),
    ("DFT", Rule::Tensor(dft)),
    ("HammingWindow", Rule::Tensor(window)),
    ("HannWindow", Rule::Tensor(window)),
    ("MelWeightMatrix", Rule::Tensor(mel_weights)),
    ("NonMaxSuppression", Rule::Tensor(boxes)),
    ("STFT", Rule::Tensor(stft)),
    ("StringNormalizer", Rule::Tensor(normalized)),
    ("StringSplit", Rule::Types(string_split)),
    ("TfIdfVectorizer", Rule::Tensor(vectorized)),
];

fn output_datatype(call: &Call<'_>) -> Option<DType> {
    match call.op.int("output_datatype") {
        None => Some(DType::F32),
        Some(_) => call.dtype_attribute("output_datatype"),
    }
}

fn window(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(output_datatype(call)?, vec![dim(call.scalar(0))]))
}

/// `floor(dft_length/2) + 1` rows.
fn mel_weights(call: &Call<'_>) -> Option<TensorType> {
    let rows = || call.scalar(1)?.div_floor(2)?.plus(1);
    Some(tensor(output_datatype(call)?, vec![dim(rows()), dim(call.scalar(0))]))
}

/// The transformed axis gets the length of the transform, one-sided half of it; the last dimension holds real
/// and imaginary parts.
fn dft(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let mut shape = dims.to_vec();
    *shape.last_mut()? = Dim::Known(2);
    let along = match (call.opset, call.has(2)) {
        (..20, _) => Some(call.int("axis", 1)),
        (_, false) => Some(-2),
        (_, true) => call.scalar(2).and_then(|a| a.known()),
    };
    let Some(along) = along else { return Some(tensor(dtype, of_rank(dims.len()))) };
    let along = super::axis(along, dims.len())?;
    let length = if call.has(1) { call.scalar(1) } else { Size::of(&dims[along]) };
    let (inverse, one_sided) = (call.int("inverse", 0) != 0, call.int("onesided", 0) != 0);
    if inverse && one_sided {
        // Newer operator sets give a real signal here, and lengths that older ones do not define.
        return Some(tensor(dtype, of_rank(dims.len())));
    }
    shape[along] = dim(if one_sided { length.and_then(|n| n.div_floor(2)?.plus(1)) } else { length });
    Some(tensor(dtype, shape))
}

/// `[batch, frames, bins, 2]`
fn stft(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some([batch, signal, ..]) = call.shape(0) else { return Some(tensor(dtype, of_rank(4))) };
    let length = match (call.has(3), call.has(2)) {
        (true, _) => call.scalar(3),
        (false, true) => call.shape(2).and_then(|w| Size::of(w.first()?)),
        (false, false) => None,
    };
    let step = call.scalar(1).and_then(|s| s.known());
    let frames = || Size::of(signal)?.sub(length.as_ref()?)?.div_floor(step?)?.plus(1);
    let bins = || match call.int("onesided", 1) {
        0 => length.clone(),
        _ => length.as_ref()?.div_floor(2)?.plus(1),
    };
    Some(tensor(dtype, vec![batch.clone(), dim(frames()), dim(bins()), Dim::Known(2)]))
}

/// `[selected, 3]`: batch, class, box.
fn boxes(_: &Call<'_>) -> Option<TensorType> {
    Some(tensor(DType::I64, vec![Dim::Unknown, Dim::Known(3)]))
}

/// Strings that are stop words go.
fn normalized(call: &Call<'_>) -> Option<TensorType> {
    let mut shape = call.shape(0).map(<[Dim]>::to_vec);
    if let Some(last) = shape.as_mut().and_then(|s| s.last_mut()) {
        *last = Dim::Unknown;
    }
    Some(tensor(DType::String, shape))
}

fn string_split(call: &Call<'_>) -> Vec<Option<Type>> {
    let dims = call.shape(0);
    let parts = dims.map(|d| [d, &[Dim::Unknown]].concat());
    let counts = dims.map(<[Dim]>::to_vec);
    vec![Some(tensor(DType::String, parts).into()), Some(tensor(DType::I64, counts).into())]
}

/// The last dimension becomes the number of indices.
fn vectorized(call: &Call<'_>) -> Option<TensorType> {
    let count = call.op.ints("ngram_indexes")?.iter().max()?.checked_add(1)?;
    let shape = call.shape(0).map(|dims| match dims {
        [] | [_] => vec![Size::Known(count).dim()],
        [outer @ .., _] => [outer, &[Size::Known(count).dim()]].concat(),
    });
    Some(tensor(DType::F32, shape))
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn transforms() {
        expect(&[
            ("HannWindow", 17, &["int64=16"], "float[16]"),
            ("DFT", 20, &["float[B,16,1]", "-", "-"], "float[B,16,2]"),
            ("DFT onesided=1", 20, &["float[B,16,1]", "int64=10", "int64=1"], "float[B,6,2]"),
            ("STFT", 17, &["float[B,128,1]", "int64=8", "-", "int64=16"], "float[B,15,9,2]"),
        ]);
    }
}
