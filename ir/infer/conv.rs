//! Convolutions and pools: windows that slide over the dimensions after `[N, C]`.

use super::{Call, DType, Dim, Rule, Rules, Shape, Size, TensorType, Type, dim, of_rank, tensor};

pub(super) const RULES: Rules = &[
    ("AveragePool", Rule::Tensor(pool)),
    ("CausalConvWithState", Rule::Types(causal_conv)),
    ("Col2Im", Rule::Tensor(col2im)),
    ("Conv", Rule::Tensor(|call| conv(call, 1, call.dtype(0).or(call.dtype(1))))),
    ("ConvInteger", Rule::Tensor(|call| conv(call, 1, Some(DType::I32)))),
    ("ConvTranspose", Rule::Tensor(conv_transpose)),
    ("DeformConv", Rule::Tensor(|call| conv(call, 1, call.dtype(0)))),
    ("GlobalAveragePool", Rule::Tensor(global_pool)),
    ("GlobalLpPool", Rule::Tensor(global_pool)),
    ("GlobalMaxPool", Rule::Tensor(global_pool)),
    ("LpPool", Rule::Tensor(pool)),
    ("MaxPool", Rule::Types(max_pool)),
    ("MaxRoiPool", Rule::Tensor(max_roi_pool)),
    ("MaxUnpool", Rule::Tensor(max_unpool)),
    ("QLinearConv", Rule::Tensor(|call| conv(call, 3, call.dtype(7)))),
    ("RoiAlign", Rule::Tensor(roi_align)),
];

/// How a window moves along one dimension.
struct Window {
    /// Elements that the window spans, dilation included.
    span: Option<Size>,
    stride: i64,
    pads: [i64; 2],
    padding: Padding,
    ceil: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Given,
    /// None at all.
    Valid,
    /// As much as makes the result `ceil(input/stride)`.
    Same,
}

impl Call<'_> {
    /// The windows over `spatial` dimensions; `kernel` as far as it is known. `None` where attributes contradict.
    fn windows(&self, kernel: &[Option<Size>]) -> Option<Vec<Window>> {
        let spatial = kernel.len();
        let list = |name: &str, len: usize, default: i64| match self.op.ints(name) {
            // An empty list stands for the default, as some exporters write it.
            None | Some([]) => Some(vec![default; len]),
            Some(list) if list.len() == len => Some(list.to_vec()),
            Some(_) => None,
        };
        let strides = list("strides", spatial, 1)?;
        let dilations = list("dilations", spatial, 1)?;
        let pads = list("pads", 2 * spatial, 0)?;
        let padding = match self.op.string("auto_pad") {
            None | Some("NOTSET" | "") => Padding::Given,
            Some("VALID") => Padding::Valid,
            Some("SAME_UPPER" | "SAME_LOWER") => Padding::Same,
            Some(_) => return None,
        };
        if strides.iter().chain(&dilations).any(|&v| v < 1) {
            return None;
        }
        let window = |i: usize| Window {
            span: kernel[i].as_ref().and_then(|k| k.plus(-1)?.times(dilations[i])?.plus(1)),
            stride: strides[i],
            pads: [pads[i], pads[spatial + i]],
            padding,
            ceil: self.int("ceil_mode", 0) != 0,
        };
        Some((0..spatial).map(window).collect())
    }
}

impl Window {
    /// How many places the window has along a dimension.
    fn places(&self, input: &Dim) -> Dim {
        // Most convolutions keep the size, whatever it is.
        let padded = self.pads[0].checked_add(self.pads[1]).and_then(|p| p.checked_add(1));
        let kept = self.padding == Padding::Given && padded == self.span.as_ref().and_then(Size::known);
        if kept && padded.is_some() && self.stride == 1 && self.pads[0] >= 0 {
            return input.clone();
        }
        dim(Size::of(input).and_then(|size| self.places_of(size)))
    }

    fn places_of(&self, input: Size) -> Option<Size> {
        let [begin, end] = match self.padding {
            Padding::Same => return input.div_ceil(self.stride),
            Padding::Given => self.pads,
            Padding::Valid => [0, 0],
        };
        let span = self.span.as_ref()?;
        let room = input.plus(begin)?.plus(end)?.sub(span)?;
        if room.known().is_some_and(|n| n < 0) {
            return None;
        }
        if !self.ceil {
            return room.div_floor(self.stride)?.plus(1);
        }
        // A last window that would start in the end padding is left out, which older runtimes did not do:
        // where that matters, only a known size is trusted.
        let places = room.div_ceil(self.stride)?.plus(1)?;
        let last_start_is_inside = span.known()? >= self.stride.checked_add(end)?;
        match (places.known(), input.known()) {
            _ if self.padding == Padding::Valid => None,
            _ if last_start_is_inside => Some(places),
            (Some(n), Some(len)) => {
                let outside = n.checked_sub(1)?.checked_mul(self.stride)? >= len.checked_add(begin)?;
                Some(Size::Known(n - outside as i64))
            }
            _ => None,
        }
    }
}

/// `[N, C, d..], [M, C/groups, k..] -> [N, M, places..]`; the kernel is the operand `weight`.
pub(super) fn conv(call: &Call<'_>, weight: usize, dtype: Option<DType>) -> Option<TensorType> {
    let dtype = dtype?;
    let (data, weight) = (call.shape(0), call.shape(weight));
    let Some(rank) = data.or(weight).map(<[Dim]>::len) else { return Some(tensor(dtype, None)) };
    let spatial = rank.checked_sub(2)?;
    let kernel = match (call.op.ints("kernel_shape"), weight) {
        (_, Some([_, _, kernel @ ..])) if kernel.len() == spatial => kernel.iter().map(Size::of).collect(),
        (_, Some(_)) => return None,
        (Some(kernel), None) if kernel.len() == spatial => {
            kernel.iter().map(|&k| Some(Size::Known(k))).collect()
        }
        _ => vec![None; spatial],
    };
    let windows = call.windows(&kernel)?;
    let mut shape = of_rank(rank);
    shape[1] = weight.map_or(Dim::Unknown, |w| w[0].clone());
    if let Some(data) = data {
        shape[0] = data[0].clone();
        for (size, (window, input)) in shape[2..].iter_mut().zip(windows.iter().zip(&data[2..])) {
            *size = window.places(input);
        }
    }
    Some(tensor(dtype, shape))
}

/// `(d - 1)*stride + span + output_padding - pads`, or as `output_shape` says.
fn conv_transpose(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0).or(call.dtype(1))?;
    let (data, weight) = (call.shape(0), call.shape(1));
    let Some(rank) = data.or(weight).map(<[Dim]>::len) else { return Some(tensor(dtype, None)) };
    let spatial = rank.checked_sub(2)?;
    let kernel = match weight {
        Some([_, _, kernel @ ..]) if kernel.len() == spatial => kernel.iter().map(Size::of).collect(),
        Some(_) => return None,
        None => vec![None; spatial],
    };
    let windows = call.windows(&kernel)?;
    let mut shape = of_rank(rank);
    let groups = call.int("group", 1);
    shape[1] = dim(weight.and_then(|w| Size::of(&w[1])?.times(groups)));
    shape[0] = data.map_or(Dim::Unknown, |d| d[0].clone());
    let extra = call.op.ints("output_padding").unwrap_or_default();
    for (i, window) in windows.iter().enumerate() {
        let extra = extra.get(i).copied().unwrap_or(0);
        let given = call.op.ints("output_shape").filter(|s| !s.is_empty());
        let size = || {
            let input = Size::of(&data?[2 + i])?;
            let [begin, end] = match window.padding {
                Padding::Same if extra == 0 => return input.times(window.stride),
                Padding::Same => return None,
                Padding::Given => window.pads,
                Padding::Valid => [0, 0],
            };
            let start = input.plus(-1)?.times(window.stride)?;
            start.add(window.span.as_ref()?)?.plus(extra)?.plus(begin.checked_add(end)?.checked_neg()?)
        };
        shape[2 + i] = match given {
            // Some models give the batch and the channels too.
            Some(given) => given.get(given.len().checked_sub(spatial)? + i).map(|&n| Size::Known(n).dim())?,
            None => dim(size()),
        };
    }
    Some(tensor(dtype, shape))
}

fn pool_shape(call: &Call<'_>) -> Option<Shape> {
    let kernel = call.op.ints("kernel_shape")?;
    let Some(data) = call.shape(0) else { return Some(of_rank(kernel.len() + 2)) };
    let [batch, channels, spatial @ ..] = data else { return None };
    if spatial.len() != kernel.len() {
        return None;
    }
    let kernel: Vec<_> = kernel.iter().map(|&k| Some(Size::Known(k))).collect();
    let windows = call.windows(&kernel)?;
    let places = windows.iter().zip(spatial).map(|(w, d)| w.places(d));
    Some([batch.clone(), channels.clone()].into_iter().chain(places).collect())
}

fn pool(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(call.dtype(0)?, pool_shape(call)?))
}

fn max_pool(call: &Call<'_>) -> Vec<Option<Type>> {
    let (Some(dtype), Some(shape)) = (call.dtype(0), pool_shape(call)) else { return Vec::new() };
    vec![Some(tensor(dtype, shape.clone()).into()), Some(tensor(DType::I64, shape).into())]
}

fn global_pool(call: &Call<'_>) -> Option<TensorType> {
    let shape = match call.shape(0) {
        None => None,
        Some([batch, channels, spatial @ ..]) => {
            let ones = spatial.iter().map(|_| Dim::Known(1));
            Some([batch.clone(), channels.clone()].into_iter().chain(ones).collect::<Shape>())
        }
        Some(_) => return None,
    };
    Some(tensor(call.dtype(0)?, shape))
}

fn max_unpool(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    if call.has(2) {
        return Some(tensor(dtype, call.shape_operand(2)));
    }
    let kernel = call.op.ints("kernel_shape")?;
    let Some([batch, channels, spatial @ ..]) = call.shape(0) else {
        return Some(tensor(dtype, of_rank(kernel.len() + 2)));
    };
    let kernel: Vec<_> = kernel.iter().map(|&k| Some(Size::Known(k))).collect();
    if spatial.len() != kernel.len() {
        return None;
    }
    let windows = call.windows(&kernel)?;
    let sizes = windows.iter().zip(spatial).map(|(w, d)| {
        let [begin, end] = w.pads;
        let start = Size::of(d)?.plus(-1)?.times(w.stride)?;
        start.add(w.span.as_ref()?)?.plus(begin.checked_add(end)?.checked_neg()?)
    });
    let sizes = sizes.map(dim);
    Some(tensor(dtype, [batch.clone(), channels.clone()].into_iter().chain(sizes).collect::<Shape>()))
}

fn channels_of(call: &Call<'_>) -> Dim {
    call.shape(0).and_then(|d| d.get(1)).cloned().unwrap_or(Dim::Unknown)
}

fn regions_of(call: &Call<'_>) -> Dim {
    call.shape(1).and_then(|d| d.first()).cloned().unwrap_or(Dim::Unknown)
}

fn max_roi_pool(call: &Call<'_>) -> Option<TensorType> {
    let [h, w] = call.op.ints("pooled_shape")? else { return None };
    let shape = vec![regions_of(call), channels_of(call), Size::Known(*h).dim(), Size::Known(*w).dim()];
    Some(tensor(call.dtype(0)?, shape))
}

fn roi_align(call: &Call<'_>) -> Option<TensorType> {
    let side = |name| Size::Known(call.int(name, 1)).dim();
    let shape = vec![regions_of(call), channels_of(call), side("output_height"), side("output_width")];
    Some(tensor(call.dtype(0)?, shape))
}

/// `[N, C*prod(block), L] -> [N, C, image..]`
fn col2im(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0)?;
    let Some(image) = call.shape_operand(1) else { return Some(tensor(dtype, None)) };
    let data = match call.shape(0) {
        Some([n, c, _]) => Some((n, c)),
        Some(_) => return None,
        None => None,
    };
    let block = call.shape_operand(2).and_then(|b| super::product(&b));
    let channels = data.and_then(|(_, c)| Size::of(c)?.divided(&block?));
    let batch = data.map_or(Dim::Unknown, |(n, _)| n.clone());
    let shape: Shape = [batch, dim(channels)].into_iter().chain(image).collect();
    Some(tensor(dtype, shape))
}

/// Output like the input; state `[B, C, k - 1]`.
fn causal_conv(call: &Call<'_>) -> Vec<Option<Type>> {
    let output = call.tensor(0).cloned();
    let state = || {
        let [b, c, _] = call.shape(0)? else { return None };
        let [_, _, k] = call.shape(1)? else { return None };
        Some(tensor(call.dtype(0)?, vec![b.clone(), c.clone(), dim(Size::of(k)?.plus(-1))]))
    };
    vec![output.map(Type::Tensor), state().map(Type::Tensor)]
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn convolutions() {
        expect(&[
            (
                "Conv pads=[3,3,3,3] strides=[2,2]",
                11,
                &["float[N,3,224,224]", "float[64,3,7,7]"],
                "float[N,64,112,112]",
            ),
            (
                "Conv pads=[1,1,1,1] strides=[2,2]",
                11,
                &["float[N,64,H,W]", "float[128,64,3,3]"],
                "float[N,128,{floor((H + 1)/2)},{floor((W + 1)/2)}]",
            ),
            (
                "Conv strides=[2,2]",
                11,
                &["float[N,64,H,W]", "float[128,64,1,1]"],
                "float[N,128,{floor((H + 1)/2)},{floor((W + 1)/2)}]",
            ),
            ("Conv pads=[1,1,1,1]", 11, &["float[N,64,H,?]", "float[M,64,3,3]"], "float[N,M,H,?]"),
            ("Conv dilations=[2]", 11, &["float[1,1,10]", "float[1,1,3]"], "float[1,1,6]"),
            ("Conv auto_pad='SAME_UPPER' strides=[2]", 11, &["float[1,1,9]", "float[1,1,3]"], "float[1,1,5]"),
            ("Conv auto_pad='VALID' pads=[1,1]", 11, &["float[1,1,9]", "float[1,1,3]"], "float[1,1,7]"),
            ("Conv", 11, &["float[1,2,8,8,8]", "float[4,2,3,3,3]"], "float[1,4,6,6,6]"),
            ("Conv", 11, &["float[1,2,2]", "float[4,2,3]"], "float[1,4,?]"),
            ("Conv", 11, &["float[1,2,8,8]", "float[4,2,3]"], "-"),
            ("Conv kernel_shape=[3]", 11, &["float[1,2,8]", "float[...]"], "float[1,?,6]"),
            ("ConvInteger", 10, &["uint8[1,1,3,3]", "uint8[1,1,2,2]"], "int32[1,1,2,2]"),
        ]);
    }

    #[test]
    fn transposed_convolutions() {
        expect(&[
            ("ConvTranspose", 11, &["float[1,1,3,3]", "float[1,2,3,3]"], "float[1,2,5,5]"),
            (
                "ConvTranspose strides=[3,2] output_padding=[1,1]",
                11,
                &["float[1,1,3,3]", "float[1,2,3,3]"],
                "float[1,2,10,8]",
            ),
            (
                "ConvTranspose strides=[2,2] pads=[1,2,1,2] group=2",
                11,
                &["float[N,4,H,3]", "float[4,1,3,3]"],
                "float[N,2,{2*H - 1},3]",
            ),
            (
                "ConvTranspose output_shape=[10,8] strides=[3,2]",
                11,
                &["float[1,1,3,3]", "float[1,2,3,3]"],
                "float[1,2,10,8]",
            ),
            (
                "ConvTranspose auto_pad='SAME_UPPER' strides=[2,2]",
                11,
                &["float[1,1,3,3]", "float[1,2,3,3]"],
                "float[1,2,6,6]",
            ),
        ]);
    }

    #[test]
    fn pools() {
        expect(&[
            (
                "MaxPool kernel_shape=[3,3] pads=[1,1,1,1] strides=[2,2]",
                12,
                &["float[N,64,112,H]"],
                "float[N,64,56,{floor((H + 1)/2)}] int64[N,64,56,{floor((H + 1)/2)}]",
            ),
            ("AveragePool kernel_shape=[2,2] strides=[2,2]", 11, &["float[N,64,7,7]"], "float[N,64,3,3]"),
            (
                "AveragePool kernel_shape=[3,3] strides=[2,2] ceil_mode=1",
                19,
                &["float[N,64,H,4]"],
                "float[N,64,{floor(H/2)},2]",
            ),
            // The last window would start in the padding.
            ("AveragePool kernel_shape=[1] strides=[2] ceil_mode=1", 19, &["float[1,1,2]"], "float[1,1,1]"),
            ("AveragePool kernel_shape=[1] strides=[2] ceil_mode=1", 19, &["float[1,1,L]"], "float[1,1,?]"),
            ("GlobalAveragePool", 1, &["float[N,512,H,W]"], "float[N,512,1,1]"),
            (
                "MaxUnpool kernel_shape=[2,2] strides=[2,2]",
                11,
                &["float[1,1,2,2]", "int64[1,1,2,2]"],
                "float[1,1,4,4]",
            ),
            (
                "RoiAlign output_height=7 output_width=5",
                16,
                &["float[1,C,H,W]", "float[R,4]", "int64[R]"],
                "float[R,C,7,5]",
            ),
        ]);
    }
}
