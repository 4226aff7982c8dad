//! Which operators treat the samples of a batch, the slices along the outermost axis, by themselves.

use dmopt_ir::{Graph, OpId, Safety, Tensor, ValueId};

use crate::batch::Batch;
use crate::linear::axis as axis_of;
use crate::slices::{Role, roles};

/// A target of Reshape, and of others that say how large their result is.
pub(crate) fn shape(dims: &[u64]) -> Tensor {
    Tensor::i64s(&dims.iter().map(|&n| n as i64).collect::<Vec<_>>())
}

/// The sizes of a value that has an outermost axis, and as many elements as can be counted.
pub(crate) fn dims(graph: &Graph, value: ValueId) -> Option<Vec<u64>> {
    let ty = graph.tensor_type(value).filter(|ty| ty.elements().is_some_and(|count| count > 0))?;
    ty.dims().filter(|dims| !dims.is_empty())
}

/// Operators whose kernels compute a sample in the same way, bit by bit, wherever it stands in a batch.
#[rustfmt::skip]
const EXACT: &[&str] = &[
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv",
    "ConvInteger", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Equal", "Expand", "Flatten", "Gather",
    "GatherElements", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "MatMulInteger", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "PRelu", "Pad",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
];

/// How far slices may change the results of an operator that reads these operands slice by slice.
pub(crate) fn safety(graph: &Graph, id: OpId, sampled: &[bool]) -> Safety {
    let op = graph.op(id);
    let is_exact = match op.op_type.as_str() {
        // A stack of products is one after the other; what serves the whole stack is multiplied in one.
        "MatMul" => {
            sampled.iter().all(|own| *own)
                && op.operands().all(|v| dims(graph, v).is_some_and(|d| d.len() > 2))
        }
        "Resize" | "Upsample" => op.string("mode").is_none_or(|mode| mode == "nearest"),
        // Sums begin at a multiple of the size of a vector.
        "InstanceNormalization" => op.input(0).and_then(|v| dims(graph, v)).is_some_and(|dims| {
            dims[2..].iter().fold(1, |product: u64, size| product.wrapping_mul(*size)) % 16 == 0
        }),
        name => EXACT.contains(&name),
    };
    if is_exact { Safety::Exact } else { Safety::Reassociates }
}

/// Which operands an operator reads slice by slice to compute its results so; `None` where slices do not do.
pub(crate) fn sampled(batch: &Batch, graph: &Graph, id: OpId, count: u64) -> Option<Vec<bool>> {
    let op = graph.op(id);
    let sampled = operands_by_sample(batch, graph, id)?;
    let divides = |value: ValueId| dims(graph, value).is_some_and(|dims| dims[0] % count == 0);
    let operands = op.inputs.iter().zip(&sampled).filter(|(_, own)| **own);
    let mut values = op.results().chain(operands.filter_map(|(value, _)| *value));
    // As many samples as there are; only these take several of an outermost axis for one, or the other way round.
    let regroups = ["Flatten", "Reshape"].contains(&op.op_type.as_str());
    let size = |value: ValueId| dims(graph, value).map(|dims| dims[0]);
    let first = size(op.output(0)?)?;
    let fits = values.all(|v| divides(v) && !graph.is_pinned(v) && (regroups || size(v) == Some(first)));
    fits.then_some(sampled)
}

/// Operators whose only result has, for each sample of the first operand, one that is computed of that alone and of all of
/// the other operands.
#[rustfmt::skip]
const OF_THE_FIRST: &[&str] = &[
    "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalLpPool",
    "GlobalMaxPool", "GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "QLinearConv",
    "SpaceToDepth",
];

/// Operators that do something along axes that they name, in an operand from a version of the operator set on and in an
/// attribute before: the operand and the version.
#[rustfmt::skip]
const ALONG_AXES: &[(&str, usize, i64)] = &[
    ("ReduceL1", 1, 18), ("ReduceL2", 1, 18), ("ReduceLogSum", 1, 18), ("ReduceLogSumExp", 1, 18), ("ReduceMax", 1, 18),
    ("ReduceMean", 1, 18), ("ReduceMin", 1, 18), ("ReduceProd", 1, 18), ("ReduceSum", 1, 13), ("ReduceSumSquare", 1, 18),
    ("Slice", 3, 10), ("Squeeze", 1, 13), ("Unsqueeze", 1, 13),
];

/// Operators that do something along one axis: the attribute, or what it is without.
#[rustfmt::skip]
const ALONG_AN_AXIS: &[(&str, i64)] = &[
    ("ArgMax", 0), ("ArgMin", 0), ("LpNormalization", -1), ("Split", 0), ("TopK", -1),
];

/// Which operands are read sample by sample, by type of operator.
fn operands_by_sample(batch: &Batch, graph: &Graph, id: OpId) -> Option<Vec<bool>> {
    let op = graph.op(id);
    if !op.is_standard() || op.bodies().next().is_some() {
        return None;
    }
    let (name, is_alone) = (op.op_type.as_str(), op.results().count() == 1);
    let rank = |value: Option<ValueId>| graph.tensor_type(value?)?.rank();
    let (from, to) = (rank(op.input(0))?, rank(op.output(0))?);
    let constant = |slot: usize| graph.constant(op.input(slot)?)?.to_i64().ok();
    let the_first = || (0..op.inputs.len()).map(|slot| slot == 0).collect::<Vec<bool>>();
    let all = || vec![true; op.inputs.len()];
    let along = |absent: i64| axis_of(op.int("axis").unwrap_or(absent), from);
    if OF_THE_FIRST.contains(&name) {
        return (is_alone && from > 1).then(the_first);
    }
    if let Some((_, slot, since)) = ALONG_AXES.iter().find(|(known, ..)| *known == name) {
        let is_operand = graph.opset("") >= *since;
        let axes = if is_operand { constant(*slot)? } else { op.ints("axes")?.to_vec() };
        let rank = if name == "Unsqueeze" { to } else { from };
        let inner = |&axis: &i64| axis_of(axis, rank).is_some_and(|axis| axis > 0);
        return (!axes.is_empty() && axes.iter().all(inner)).then(the_first);
    }
    if let Some((_, absent)) = ALONG_AN_AXIS.iter().find(|(known, _)| *known == name) {
        let is_inner = along(*absent).is_some_and(|axis| axis > 0);
        return (is_inner && (is_alone || name == "Split" || name == "TopK")).then(the_first);
    }
    match name {
        "LayerNormalization" | "RMSNormalization" => {
            let is_inner = along(-1).is_some_and(|axis| axis > 0);
            let serves_all = |slot: usize| {
                op.input(slot).is_none_or(|v| {
                    dims(graph, v).is_none_or(|dims| dims.len() < from || dims[0] == 1)
                        && graph.tensor_type(v).is_some_and(|ty| ty.rank().is_some())
                })
            };
            (is_alone && is_inner && serves_all(1) && serves_all(2)).then(the_first)
        }
        "BatchNormalization" => {
            (is_alone && from > 1 && op.int("training_mode").unwrap_or(0) == 0).then(the_first)
        }
        "Concat" => along(0).filter(|&axis| axis > 0).map(|_| all()),
        "Transpose" => (op.ints("perm")?.first() == Some(&0)).then(the_first),
        "Gather" => match along(0)? {
            0 => Some(vec![false, true]),
            _ => Some(the_first()),
        },
        "GatherElements" => along(0).filter(|&axis| axis > 0).map(|_| all()),
        "Pad" => {
            let pads = op.ints("pads").map(<[i64]>::to_vec).or_else(|| constant(1))?;
            let ends = [pads.first()?, pads.get(from)?];
            (op.input(3).is_none() && ends == [&0, &0]).then(the_first)
        }
        "Flatten" => {
            let axis = op.int("axis").unwrap_or(1);
            (axis != 0 && axis != -(from as i64)).then(the_first)
        }
        "Expand" => {
            let is_one_for_all = from < to || dims(graph, op.input(0)?)?[0] == 1;
            let operands = if is_one_for_all { vec![false; 2] } else { the_first() };
            new_shape(batch, graph, id, 1).map(|_| operands)
        }
        "Reshape" => new_shape(batch, graph, id, 1).map(|_| the_first()),
        "Resize" | "Upsample" => {
            let crops = op.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
            // One factor for all sizes would be one for the samples, too.
            let keeps_ratio = op.string("keep_aspect_ratio_policy").is_some_and(|policy| policy != "stretch");
            let is_plain = ["axes", "scales"].iter().all(|name| op.attribute(name).is_none());
            let slot = if name == "Upsample" || graph.opset("") < 11 { 1 } else { 2 };
            let scale = || {
                let scales = graph.constant(op.input(slot)?)?.to_f64().ok()?;
                Some(scales.first() == Some(&1.0))
            };
            let keeps = new_shape(batch, graph, id, 1).is_some() || scale() == Some(true);
            (is_plain && !crops && !keeps_ratio && keeps).then(the_first)
        }
        "Tile" => (constant(1)?.first() == Some(&1)).then(the_first),
        "CumSum" => {
            let axis = *constant(1)?.first()?;
            axis_of(axis, from).filter(|&axis| axis > 0).map(|_| the_first())
        }
        "QuantizeLinear" | "DequantizeLinear" => {
            // With a scale for each of several along an axis, that is not the one of the samples.
            let is_inner = along(1).is_some_and(|axis| axis > 0);
            let scale = rank(op.input(1))?;
            (is_alone && (scale == 0 || scale == 1 && is_inner)).then(the_first)
        }
        "MatMulInteger" | "QLinearMatMul" => {
            let (second, of_rows): (usize, &[usize]) =
                if name == "MatMulInteger" { (1, &[2]) } else { (3, &[1, 2]) };
            let is_one = |slot: &usize| {
                op.input(*slot).is_none_or(|v| graph.tensor_type(v).and_then(|ty| ty.elements()) == Some(1))
            };
            (from > 1 && rank(op.input(second))? == 2 && of_rows.iter().all(is_one)).then(the_first)
        }
        _ => {
            let roles = roles(graph, id, 0)?;
            Some(roles.into_iter().map(|role| role == Role::Slice(0)).collect())
        }
    }
}

/// Where an operator is told how large its result is, the operand and what it says for one of so many slices.
pub(crate) fn new_shape(batch: &Batch, graph: &Graph, id: OpId, count: u64) -> Option<(usize, Tensor)> {
    let slot = batch.told_size(graph, id)?;
    let mut sizes = dims(graph, graph.op(id).output(0)?)?;
    sizes[0] /= count;
    Some((slot, shape(&sizes)))
}
