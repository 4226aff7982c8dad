//! What ONNX Runtime's kernels allocate while they run: those for the processor, with one thread, and those for CUDA.
//!
//! Sources: the kernels in `core/providers/{cpu,cuda}` and `contrib_ops/cpu`, and what the counting allocator saw of them,
//! on CUDA the statistics of the arena (docs/gpu.md).
//! Memory that kernels take from the C++ heap (`std::vector`) never comes through an allocator of the session and is
//! not counted anywhere.

use dmopt_ir::{DType, Graph, Op, OpId, ValueId};

/// What a kernel holds of its own, in bytes, at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Scratch {
    /// While its results are not allocated yet.
    pub before: u64,
    /// Beside its results.
    pub beside: u64,
}

impl Scratch {
    /// What is needed beside results of which this many bytes are allocated by the kernel: if the kernel needs more
    /// before, the difference counts too.
    pub fn beside(self, allocated: u64) -> u64 {
        self.beside.max(self.before.saturating_sub(allocated))
    }
}

/// What the kernel of an operator needs; `None` when a size is not known. Operators that are not listed here need
/// nothing.
pub(crate) fn cpu(version: (u32, u32), graph: &Graph, id: OpId) -> Option<Scratch> {
    let op = graph.op(id);
    let call = Call { graph, op };
    let beside = match (op.domain.as_str(), op.op_type.as_str()) {
        ("" | "ai.onnx", "Sum" | "Max" | "Min" | "Mean") => return call.variadic(),
        ("" | "ai.onnx", "Conv") | ("com.microsoft", "FusedConv") => call.conv(version),
        ("" | "ai.onnx", "ConvTranspose") => call.conv_transpose(),
        ("" | "ai.onnx", "Where") => call.choice(),
        ("" | "ai.onnx", "Softmax" | "LogSoftmax" | "Hardmax") => call.softmax(),
        ("" | "ai.onnx", "Resize" | "Upsample") => call.resize(),
        ("" | "ai.onnx", "LRN") => call.local_response(),
        // contrib_ops/cpu/bert/bias_gelu.cc: the sum before the function.
        ("com.microsoft", "BiasGelu") => call.bytes(op.output(0)),
        _ => Some(0),
    };
    Some(Scratch { before: 0, beside: beside? })
}

/// The same on CUDA. What convolutions ask cuDNN for depends on the device and is not in here.
pub(crate) fn cuda(graph: &Graph, id: OpId) -> Option<Scratch> {
    let op = graph.op(id);
    let call = Call { graph, op };
    let beside = match (op.domain.as_str(), op.op_type.as_str()) {
        // cuda/math/softmax.cc.
        ("" | "ai.onnx", "Softmax" | "LogSoftmax") => call.softmax(),
        ("" | "ai.onnx", name) if name.starts_with("Reduce") || name.starts_with("Arg") => call.reduction(),
        _ => Some(0),
    };
    Some(Scratch { before: 0, beside: beside? })
}

/// Elements that a thread unfolds at a time (`MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD`).
const SEGMENT: u64 = 16 * 1024;

struct Call<'g> {
    graph: &'g Graph,
    op: &'g Op,
}

impl Call<'_> {
    fn dims(&self, value: Option<ValueId>) -> Option<Vec<u64>> {
        self.graph.tensor_type(value?)?.dims()
    }

    fn bytes(&self, value: Option<ValueId>) -> Option<u64> {
        self.graph.tensor_type(value?)?.bytes()
    }

    fn dtype(&self, value: Option<ValueId>) -> Option<DType> {
        Some(self.graph.tensor_type(value?)?.dtype)
    }

    /// Bytes of what these values broadcast to.
    fn broadcast(&self, dtype: DType, values: &[ValueId]) -> Option<u64> {
        let mut dims: Vec<u64> = Vec::new();
        for &value in values {
            stretch(&mut dims, self.dims(Some(value))?);
        }
        dtype.packed_len(product(&dims))
    }

    /// Three operands or more are taken together two at a time (`UntypedBroadcastVariadic` in
    /// `math/element_wise_ops.cc`): into a new temporary each time, which replaces the one before, the last time into
    /// the result.
    fn variadic(&self) -> Option<Scratch> {
        let values: Vec<ValueId> = self.op.operands().collect();
        let dtype = self.dtype(self.op.output(0))?;
        let mut scratch = Scratch::default();
        let mut dims = Vec::new();
        for (taken, &value) in values.iter().enumerate().take(values.len().saturating_sub(1)) {
            stretch(&mut dims, self.dims(Some(value))?);
            if taken == 0 {
                continue;
            }
            let next = dtype.packed_len(product(&dims))?;
            scratch =
                Scratch { before: scratch.before.max(scratch.beside.saturating_add(next)), beside: next };
        }
        Some(scratch)
    }

    /// Reductions on CUDA (`cuda/reduction/reduction_ops.cc`): cuDNN works in a buffer as large as the operand, for a sum of
    /// squares or of exponentials beside a tensor of those. Sums over the first or the last axes alone have a kernel of
    /// ONNX Runtime's own, and so has the largest element along the last axis. Measured for float32 (docs/gpu.md), and
    /// taken to be so for other floating-point types; integers are left out.
    fn reduction(&self) -> Option<u64> {
        let operand = self.bytes(self.op.input(0))?;
        if !matches!(self.dtype(self.op.input(0))?, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Some(0);
        }
        let result = product(&self.dims(self.op.output(0))?);
        let name = self.op.op_type.as_str();
        if name.starts_with("Arg") {
            return Some(match self.is_along_last(0)? {
                true => 0,
                false => operand.saturating_mul(2).saturating_add(result.saturating_mul(8)),
            });
        }
        let alone = self.reduces_one_side(&self.dims(self.op.input(0))?);
        Some(match name {
            "ReduceMean" | "ReduceSum" | "ReduceLogSum" if alone => 0,
            "ReduceSumSquare" if alone => operand,
            "ReduceLogSumExp" => operand.saturating_mul(2).saturating_add(self.bytes(self.op.output(0))?),
            "ReduceSumSquare" => operand.saturating_mul(2),
            _ if self.op.int("noop_with_empty_axes") == Some(1)
                && self.axes().is_some_and(|a| a.is_empty()) =>
            {
                0
            }
            _ => operand,
        })
    }

    /// The axes that are reduced, none for all of them; `None` where they are computed.
    fn axes(&self) -> Option<Vec<i64>> {
        match (self.op.ints("axes"), self.op.input(1)) {
            (Some(axes), _) => Some(axes.to_vec()),
            (None, Some(axes)) => self.graph.constant(axes)?.to_i64().ok(),
            (None, None) => Some(Vec::new()),
        }
    }

    /// True if the axes that are reduced are the first ones or the last ones; those of size 1 do not count.
    fn reduces_one_side(&self, dims: &[u64]) -> bool {
        let Some(axes) = self.axes() else { return false };
        let place = |axis: i64| if axis < 0 { axis + dims.len() as i64 } else { axis };
        let gone = |axis: usize| axes.iter().any(|&a| place(a) == axis as i64);
        let gone: Vec<bool> = (0..dims.len()).filter(|&axis| dims[axis] != 1).map(gone).collect();
        gone.is_sorted() || gone.is_sorted_by(|a, b| a >= b)
    }

    /// True if attribute `axis`, or this one where it is left out, is the last axis of the operand.
    fn is_along_last(&self, usual: i64) -> Option<bool> {
        let rank = self.graph.tensor_type(self.op.input(0)?)?.rank()? as i64;
        let axis = self.op.int("axis").unwrap_or(usual);
        Some(axis == -1 || axis == rank - 1)
    }

    /// `Where` (`tensor/where_op.cc`): what the condition leaves of either operand, each of the shape of the two.
    fn choice(&self) -> Option<u64> {
        let dtype = self.dtype(self.op.output(0))?;
        let condition = self.op.input(0)?;
        let chosen = |operand| self.broadcast(dtype, &[condition, self.op.input(operand)?]);
        chosen(1)?.checked_add(chosen(2)?)
    }

    /// From version 13 on, an axis that is not the last is brought there and back (`math/softmax.cc`,
    /// `math/hardmax.cc`).
    fn softmax(&self) -> Option<u64> {
        match self.graph.opset("") >= 13 && !self.is_along_last(-1)? {
            true => self.bytes(self.op.output(0))?.checked_mul(2),
            false => Some(0),
        }
    }

    /// Indices and weights of linear interpolation (`SetupUpsampleBilinear`, `SetupUpsampleTrilinear` in
    /// `tensor/upsample.cc`): per row and column of the result two indices and two weights of 4 bytes each; per plane,
    /// row and column 24 bytes. Nothing where all sizes stay.
    fn resize(&self) -> Option<u64> {
        let (x, y) = (self.dims(self.op.input(0))?, self.dims(self.op.output(0))?);
        if self.op.string("mode") != Some("linear") || x == y || x.len() != y.len() {
            return Some(0);
        }
        let sum = |axes: &[u64]| axes.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
        Some(match y.len() {
            2 => sum(&y).saturating_mul(16),
            3 => sum(&y).saturating_mul(24),
            4 if x[..2] == y[..2] => sum(&y[2..]).saturating_mul(16),
            4 => sum(&y[1..3]).saturating_mul(16),
            5 => sum(&y[2..]).saturating_mul(24),
            _ => 0,
        })
    }

    /// `LRN` (`nn/lrn.cc`): the scale of each element, and the squares of one image with a margin.
    fn local_response(&self) -> Option<u64> {
        let x = self.dims(self.op.input(0))?;
        let margin = u64::try_from(self.op.int("size")?).ok()?.saturating_sub(1);
        let image = product(x.get(2..)?);
        self.bytes(self.op.input(0))?
            .checked_add(image.checked_mul(x.get(1)?.checked_add(margin)?)?.checked_mul(4)?)
    }

    /// The unfolded image of one group (`nn/conv_transpose.cc`).
    fn conv_transpose(&self) -> Option<u64> {
        let (x, w) = (self.dims(self.op.input(0))?, self.dims(self.op.input(1))?);
        product(w.get(1..)?).checked_mul(product(x.get(2..)?))?.checked_mul(4)
    }

    /// The working buffer of a convolution (`MlasConvPrepare` in `core/mlas/lib/convolve.cpp`): none where the image
    /// is the matrix already (1x1 kernels and the like), the whole unfolded image where there are more filters than
    /// positions, and otherwise 64 KiB, in which it is unfolded piece by piece. Before 1.27, several images or groups
    /// were unfolded as a whole each.
    fn conv(&self, version: (u32, u32)) -> Option<u64> {
        let op = self.op;
        let (x, w, y) = (self.dims(op.input(0))?, self.dims(op.input(1))?, self.dims(op.output(0))?);
        let spatial = x.len().checked_sub(2).filter(|_| x.len() == y.len() && x.len() == w.len())?;
        let groups = u64::try_from(op.int("group").unwrap_or(1)).ok().filter(|&n| n > 0)?;
        let (batch, channels, filters) = (x[0], w[1], w[0] / groups);
        let (kernel, positions) = (&w[2..], product(&y[2..]));
        let unfolded = channels.saturating_mul(product(kernel));
        let ones = |name| op.ints(name).is_none_or(|list| list.iter().all(|&n| n == 1));
        let padded = (0..spatial).any(|axis| {
            // Without strides, an image that is padded is larger afterwards than the kernel leaves it.
            let dilation = op.ints("dilations").and_then(|d| d.get(axis)).map_or(1, |&d| d.max(1) as u64);
            let reach = (kernel[axis].max(1) - 1).saturating_mul(dilation);
            y[axis + 2].saturating_add(reach) != x[axis + 2]
        });
        if ones("strides") && !padded {
            let single = ones("dilations") && channels == 1;
            let whole = match spatial {
                1 => single && kernel[0] == x[2],
                2 => single && (kernel[1] == x[3] || (kernel[0] == x[2] && kernel[1] == 1)),
                _ => false,
            };
            if unfolded == channels || whole {
                return Some(0);
            }
        }
        let elements = if filters > positions {
            positions.checked_mul(unfolded)?
        } else if version < (1, 27) && (batch > 1 || groups > 1) {
            SEGMENT.max(positions.checked_mul(unfolded)?).max(filters.checked_mul(positions)?)
        } else {
            SEGMENT
        };
        elements.checked_mul(4)
    }
}

/// Makes sizes those that they and others broadcast to.
fn stretch(dims: &mut Vec<u64>, other: Vec<u64>) {
    if other.len() > dims.len() {
        dims.splice(0..0, std::iter::repeat_n(1, other.len() - dims.len()));
    }
    let offset = dims.len() - other.len();
    for (dim, other) in dims[offset..].iter_mut().zip(other) {
        *dim = if *dim == 1 { other } else { *dim };
    }
}

fn product(dims: &[u64]) -> u64 {
    dims.iter().fold(1, |n, &dim| n.saturating_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::infer::infer_graph;
    use dmopt_ir::text::{default_opsets, parse_graph};

    /// What an operator on 2x3x5 float32 elements (120 bytes) needs beside on CUDA.
    fn on_cuda(op: &str) -> u64 {
        beside("2,3,5", op)
    }

    fn beside(dims: &str, op: &str) -> u64 {
        let text = format!("g (float[{dims}] x) => (y) {{ y = {op} }}");
        let mut graph = parse_graph(&text, default_opsets()).unwrap();
        infer_graph(&mut graph);
        let op = graph.ops().next().unwrap();
        cuda(&graph, op).unwrap().beside
    }

    #[test]
    fn sums_over_outer_axes_need_nothing_on_cuda_and_other_reductions_a_copy() {
        for (op, bytes) in [
            ("ReduceSum(x)", 0),
            ("ReduceMean<axes = [0]>(x)", 0),
            ("ReduceMean<axes = [-1, -2]>(x)", 0),
            ("ReduceMean<axes = [1]>(x)", 120),
            ("ReduceMean<axes = [0, 2]>(x)", 120),
            ("ReduceMax<axes = [2]>(x)", 120),
            ("ReduceSumSquare<axes = [1]>(x)", 240),
            ("ReduceSumSquare<axes = [2]>(x)", 120),
            ("ReduceMax<noop_with_empty_axes = 1>(x)", 0),
            ("ReduceLogSumExp<axes = [1]>(x)", 280),
            ("ArgMax<axis = -1>(x)", 0),
            ("ArgMax<axis = 1>(x)", 320),
            ("Relu(x)", 0),
        ] {
            assert_eq!(on_cuda(op), bytes, "{op}");
        }
    }

    #[test]
    fn axes_of_size_one_are_on_neither_side() {
        assert_eq!(beside("1,3,5", "ReduceMean<axes = [1]>(x)"), 0);
    }

    #[test]
    fn a_softmax_along_another_axis_than_the_last_is_brought_there_and_back_on_cuda() {
        assert_eq!(["Softmax<axis = 2>(x)", "Softmax<axis = 1>(x)"].map(on_cuda), [0, 240]);
    }
}
