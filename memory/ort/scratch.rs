//! What ONNX Runtime's kernels for the processor allocate while they run, with one thread.

use dmopt_ir::{DType, Graph, Op, OpId, ValueId};

/// Bytes that the kernel holds at most beside its operands and results; `None` when a size is not known.
pub(crate) fn cpu(version: (u32, u32), graph: &Graph, id: OpId) -> Option<u64> {
    let op = graph.op(id);
    match (op.domain.as_str(), op.op_type.as_str()) {
        ("" | "ai.onnx", "Conv") | ("com.microsoft", "FusedConv") => conv(version, graph, op),
        ("" | "ai.onnx", "Sum") => sum(graph, op),
        _ => Some(0),
    }
}

/// Three operands or more are added up in temporaries (`UntypedBroadcastVariadic` in
/// `cpu/math/element_wise_ops.cc`): each pair in a new one, the last pair in the result; the sum so far is freed once
/// the next one is there.
fn sum(graph: &Graph, op: &Op) -> Option<u64> {
    let bytes = graph.tensor_type(op.output(0)?)?.bytes()?;
    Some(match op.inputs.len() {
        0..=2 => 0,
        3 => bytes,
        _ => 2 * bytes,
    })
}

/// Elements that a thread unfolds at a time (`MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD`).
const SEGMENT: u64 = 16 * 1024;

/// The working buffer of a convolution (`MlasConvPrepare` in `core/mlas/lib/convolve.cpp`): none where the image is
/// the matrix already (1x1 kernels and the like), the whole unfolded image where there are more filters than
/// positions, and otherwise 64 KiB, in which it is unfolded piece by piece. Before 1.27, several images or groups were
/// unfolded as a whole each.
fn conv(version: (u32, u32), graph: &Graph, op: &Op) -> Option<u64> {
    let dims = |value: Option<ValueId>| graph.tensor_type(value?)?.dims();
    let (x, w, y) = (dims(op.input(0))?, dims(op.input(1))?, dims(op.output(0))?);
    let spatial = x.len().checked_sub(2).filter(|_| x.len() == y.len() && x.len() == w.len())?;
    let dtype = graph.tensor_type(op.input(0)?)?.dtype;
    let groups = u64::try_from(op.int("group").unwrap_or(1)).ok().filter(|&n| n > 0)?;
    let (batch, channels, filters) = (*x.first()?, *w.get(1)?, w.first()? / groups);
    let (kernel, positions) = (w.get(2..)?, y.get(2..)?.iter().product::<u64>());
    let unfolded = channels * kernel.iter().product::<u64>();
    let ones = |name| op.ints(name).is_none_or(|list| list.iter().all(|&n| n == 1));
    let padded = (0..spatial).any(|axis| {
        // Without strides, an image that is padded is larger afterwards than the kernel leaves it.
        let dilation = op.ints("dilations").and_then(|d| d.get(axis)).map_or(1, |&d| d.max(1) as u64);
        let reach = (kernel[axis].max(1) - 1) * dilation;
        y[axis + 2] + reach != x[axis + 2]
    });
    if dtype != DType::F32 {
        return Some(0);
    }
    if ones("strides") && !padded {
        let whole = spatial == 2
            && ones("dilations")
            && channels == 1
            && (kernel[1] == x[3] || (kernel[0] == x[2] && kernel[1] == 1));
        let line = spatial == 1 && ones("dilations") && channels == 1 && kernel[0] == x[2];
        if unfolded == channels || whole || line {
            return Some(0);
        }
    }
    Some(if filters > positions {
        4 * positions * unfolded
    } else if version < (1, 27) && (batch > 1 || groups > 1) {
        4 * SEGMENT.max(positions * unfolded).max(filters * positions)
    } else {
        4 * SEGMENT
    })
}
