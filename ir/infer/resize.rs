//! Resampling of images.

use super::{Call, DType, Dim, Rule, Rules, Shape, Size, TensorType, axes, dim, of_rank, tensor};
use crate::AttributeValue;

pub(super) const RULES: Rules = &[
    ("AffineGrid", Rule::Tensor(affine_grid)),
    ("GridSample", Rule::Tensor(grid_sample)),
    ("ImageDecoder", Rule::Tensor(image_decoder)),
    ("Resize", Rule::Tensor(resize)),
    ("Upsample", Rule::Tensor(upsample)),
];

/// `floor(size * scale)`. Runtimes compute it in single or double precision: only what both agree on is answered.
fn scaled(size: &Dim, scale: f64) -> Dim {
    if scale == 1.0 {
        return size.clone();
    }
    let within = |v: f64| v >= 0.0 && v < i64::MAX as f64;
    match Size::of(size) {
        Some(Size::Known(n)) => {
            let (double, single) = ((n as f64 * scale).floor(), (n as f32 * scale as f32).floor() as f64);
            if double == single && within(double) { Dim::Known(double as u64) } else { Dim::Unknown }
        }
        Some(size) if scale.fract() == 0.0 && within(scale) => dim(size.times(scale as i64)),
        Some(size) if scale > 0.0 && (1.0 / scale).fract() == 0.0 && within(1.0 / scale) => {
            // Exact in floating point only for powers of two.
            let by = (1.0 / scale) as u64;
            if by.is_power_of_two() { dim(size.div_floor(by as i64)) } else { Dim::Unknown }
        }
        _ => Dim::Unknown,
    }
}

fn scaled_shape(call: &Call<'_>, scales: Option<Vec<f64>>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else {
        return Some(tensor(dtype, scales.map(|s| of_rank(s.len()))));
    };
    let shape = match scales {
        Some(scales) if scales.len() == dims.len() => {
            dims.iter().zip(scales).map(|(d, s)| scaled(d, s)).collect()
        }
        Some(_) => return None,
        None => of_rank(dims.len()),
    };
    Some(tensor(dtype, shape))
}

fn numbers(call: &Call<'_>, slot: usize) -> Option<Vec<f64>> {
    let constant = call.constant(slot)?;
    if constant.elements()? > super::MAX_RANK as u64 { None } else { constant.to_f64().ok() }
}

fn upsample(call: &Call<'_>) -> Option<TensorType> {
    let scales = match call.op.attribute("scales") {
        Some(AttributeValue::Floats(scales)) => Some(scales.iter().map(|&s| s as f64).collect()),
        _ if call.opset >= 9 => numbers(call, 1),
        _ => None,
    };
    scaled_shape(call, scales)
}

fn resize(call: &Call<'_>) -> Option<TensorType> {
    if call.opset < 11 {
        return scaled_shape(call, numbers(call, 1));
    }
    let dtype = call.dtype(0)?;
    let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
    let along = match call.op.ints("axes") {
        Some(list) => axes(list, dims.len())?,
        None => (0..dims.len()).collect(),
    };
    let empty = |slot| call.length(slot) == Some(0);
    let stretch = matches!(call.op.string("keep_aspect_ratio_policy"), None | Some("stretch"));
    let crop = call.op.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let mut shape = dims.to_vec();
    if call.has(3) && !empty(3) {
        let sizes = call.shape_operand(3).filter(|s| s.len() == along.len() && stretch);
        let sizes = sizes.unwrap_or_else(|| of_rank(along.len()));
        for (&a, size) in along.iter().zip(sizes) {
            shape[a] = size;
        }
    } else {
        let scales = numbers(call, 2).filter(|s| s.len() == along.len() && !crop);
        for (i, &a) in along.iter().enumerate() {
            shape[a] = scales.as_ref().map_or(Dim::Unknown, |s| scaled(&dims[a], s[i]));
        }
    }
    Some(tensor(dtype, shape))
}

/// `[N, C, d..], [N, out.., r] -> [N, C, out..]`
fn grid_sample(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let grid = match call.shape(1) {
        Some([batch, out @ .., _]) => Some((batch, out)),
        Some(_) => return None,
        None => None,
    };
    let Some(rank) = call.shape(0).or(call.shape(1)).map(<[Dim]>::len) else {
        return Some(tensor(dtype, None));
    };
    let mut shape = of_rank(rank);
    if let Some([n, c, ..]) = call.shape(0) {
        (shape[0], shape[1]) = (n.clone(), c.clone());
    }
    if let Some((_, out)) = grid {
        shape.get_mut(2..)?.iter_mut().zip(out).for_each(|(size, d)| *size = d.clone());
        if out.len() + 2 != rank {
            return None;
        }
    }
    Some(tensor(dtype, shape))
}

/// `size = [N, C, d..] -> [N, d.., number of d]`
fn affine_grid(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(size) = call.shape_operand(1) else { return Some(tensor(dtype, None)) };
    let [n, _, spatial @ ..] = size.as_slice() else { return None };
    let last = Dim::Known(spatial.len() as u64);
    Some(tensor(dtype, [std::slice::from_ref(n), spatial, &[last]].concat()))
}

fn image_decoder(call: &Call<'_>) -> Option<TensorType> {
    let channels = match call.op.string("pixel_format") {
        Some("Grayscale") => Dim::Known(1),
        None | Some("RGB" | "BGR") => Dim::Known(3),
        Some(_) => Dim::Unknown,
    };
    let shape: Shape = vec![Dim::Unknown, Dim::Unknown, channels];
    Some(tensor(DType::U8, shape))
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn sizes_and_scales() {
        expect(&[
            ("Resize", 13, &["float[N,C,4,W]", "-", "float[4]=1,1,2,2"], "float[N,C,8,{2*W}]"),
            (
                "Resize",
                13,
                &["float[N,C,5,W]", "float[0]=", "float[4]=1,1,0.5,0.5"],
                "float[N,C,2,{floor(W/2)}]",
            ),
            ("Resize", 13, &["float[N,C,5,5]", "-", "-", "int64[4]=1,3,7,9"], "float[1,3,7,9]"),
            ("Resize axes=[2,3]", 18, &["float[N,C,5,5]", "-", "-", "int64[2]=7,9"], "float[N,C,7,9]"),
            (
                "Resize axes=[2,3] keep_aspect_ratio_policy='not_larger'",
                18,
                &["float[N,C,5,5]", "-", "-", "int64[2]=7,9"],
                "float[N,C,?,?]",
            ),
            ("Resize", 10, &["float[N,C,4,4]", "float[4]=1,1,2,2"], "float[N,C,8,8]"),
            ("Upsample", 9, &["float[N,C,4,4]", "float[4]=1,1,2,3"], "float[N,C,8,12]"),
            ("Resize", 13, &["float[N,C,4,4]", "-", "float[4]"], "float[?,?,?,?]"),
        ]);
    }

    #[test]
    fn grids() {
        expect(&[
            ("GridSample", 20, &["float[N,C,H,W]", "float[N,5,6,2]"], "float[N,C,5,6]"),
            ("AffineGrid", 20, &["float[N,2,3]", "int64[4]=2,3,5,6"], "float[2,5,6,2]"),
        ]);
    }
}
