//! The shapes that ONNX Runtime knows before a model runs. They decide which buffers are of the same size.
//!
//! ONNX Runtime runs the inference functions of the standard (`onnx/defs`), which answer less than ours:
//! - Sizes that follow from open dimensions by arithmetic have no name.
//! - What a `Loop` carries may change its shape from round to round; that it does not is not looked for.
//! - `Tile`, `Resize` and `Upsample` forget the name of an open dimension even where they leave it alone.
//! - `LessOrEqual` and `GreaterOrEqual` of versions 12 to 15 have no shape.
//!
//! What is computed from a value of unknown shape has none either, and an unknown dimension stays unknown but where it
//! meets a known one of more than 1. Graph outputs are declared, and so are, as a rule, those of bodies, which give
//! `If` and `Scan` their shapes.

use std::borrow::Cow;

use dmopt_ir::{Def, Dim, Graph, Op, Shape, ValueId};

/// The shapes that are known, by value; with unknown dimensions. Most are what our inference says.
pub(super) type Known<'g> = Vec<Option<Cow<'g, [Dim]>>>;

/// The shapes of the values of a graph. `around` has those of the enclosing graph.
pub(super) fn shapes<'g>(graph: &'g Graph, around: &[Option<Cow<'g, [Dim]>>]) -> Known<'g> {
    let mut known: Known<'g> = vec![None; graph.value_bound()];
    for value in graph.values() {
        known[value.index()] = match graph.value(value).def {
            Def::Captured { outer } if !around.is_empty() => around.get(outer.index()).cloned().flatten(),
            _ => inferred(graph, value),
        };
    }
    let Ok(order) = graph.order() else { return known };
    for id in order {
        let op = graph.op(id);
        for (slot, value) in op.outputs.iter().enumerate() {
            let Some(value) = value.filter(|&value| !graph.is_output(value)) else { continue };
            if let Some(shape) = known[value.index()].take() {
                known[value.index()] = result(graph, op, slot, shape, &known);
            }
        }
    }
    known
}

/// What our inference says, without expressions.
fn inferred(graph: &Graph, value: ValueId) -> Option<Cow<'_, [Dim]>> {
    let dims = graph.tensor_type(value)?.shape.as_deref()?;
    let is_named = dims.iter().all(|dim| std::ptr::eq(dim, named(dim)));
    Some(if is_named { Cow::Borrowed(dims) } else { dims.iter().map(named).cloned().collect() })
}

fn named(dim: &Dim) -> &Dim {
    match dim {
        Dim::Symbol(name) if name.starts_with('{') => &Dim::Unknown,
        _ => dim,
    }
}

/// True if this is what our inference says.
fn is_inferred(graph: &Graph, value: ValueId, shape: &[Dim]) -> bool {
    let dims = graph.tensor_type(value).and_then(|ty| ty.shape.as_deref());
    dims.is_some_and(|dims| std::ptr::eq(dims, shape) || dims.iter().map(named).eq(shape))
}

/// What is known of a result for which our inference says `shape`.
fn result<'g>(
    graph: &Graph,
    op: &Op,
    slot: usize,
    shape: Cow<'g, [Dim]>,
    known: &Known<'g>,
) -> Option<Cow<'g, [Dim]>> {
    let of = |value: ValueId| known[value.index()].as_deref();
    let operands = || op.inputs.iter().take(decisive(op)).flatten().copied();
    let standard = if op.is_standard() { op.op_type.as_str() } else { "" };
    match standard {
        "Loop" if slot < op.inputs.len().saturating_sub(2) => return None,
        "LessOrEqual" | "GreaterOrEqual" if (12..16).contains(&graph.opset("")) => return None,
        "If" | "Size" => return Some(shape),
        "Gemm" => {
            let sized = |slot: usize, dim: &Dim| {
                let read = op.input(slot).and_then(of);
                if read.is_some_and(|read| !read.contains(&Dim::Unknown)) {
                    dim.clone()
                } else {
                    Dim::Unknown
                }
            };
            return Some(shape.iter().enumerate().map(|(axis, dim)| sized(axis, dim)).collect());
        }
        "Shape" if operands().any(|value| of(value).is_none()) => return Some(vec![Dim::Unknown].into()),
        "Shape" => return Some(shape),
        "Reshape" => {
            if let Some(target) = op.input(1).and_then(|target| graph.constant(target)?.to_i64().ok()) {
                return Some(reshaped(&target, shape.into_owned(), of(op.input(0)?)).into());
            }
        }
        "Scan" => return Some(scanned(op, slot, shape.into_owned(), known).into()),
        "Tile" | "Resize" | "Upsample" => {
            of(op.input(0)?)?;
            return Some(numbers(&shape));
        }
        _ => {}
    }
    if operands().all(|value| of(value).is_some_and(|shape| is_inferred(graph, value, shape))) {
        return Some(shape);
    }
    let read = operands().map(of).collect::<Option<Vec<&[Dim]>>>()?;
    if BROADCASTING.contains(&standard) {
        return Some(broadcast(shape.into_owned(), &read).into());
    }
    if standard == "Concat" {
        return Some(joined(op, shape.into_owned(), &read).into());
    }
    // An operator that keeps the shape of its operand.
    let mut operands = operands();
    if let (Some(operand), None) = (operands.next(), operands.next())
        && is_inferred(graph, operand, &shape)
    {
        return known[operand.index()].clone();
    }
    Some(numbers(&shape))
}

/// What is unknown is an open dimension, as a rule; numbers stay.
fn numbers<'g>(shape: &[Dim]) -> Cow<'g, [Dim]> {
    shape.iter().map(|dim| dim.known().map_or(Dim::Unknown, Dim::Known)).collect()
}

/// How many of the operands, from the first on, decide about the shapes of the results.
fn decisive(op: &Op) -> usize {
    match op.op_type.as_str() {
        "BatchNormalization"
        | "Clip"
        | "CumSum"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "PRelu"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND" => 1,
        "Conv" | "ConvTranspose" | "FusedConv" | "Gemm" => 2,
        _ => op.inputs.len(),
    }
}

const BROADCASTING: [&str; 22] = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
];

/// A size is known where an operand has it, or where all sizes are known; a name, where no size is unknown.
fn broadcast(shape: Shape, read: &[&[Dim]]) -> Shape {
    let rank = shape.len();
    let meet = |axis: usize, dim: Dim| {
        let met = || read.iter().filter_map(|other| other.get((axis + other.len()).checked_sub(rank)?));
        let decided = dim.known().is_some_and(|n| n > 1) && met().any(|other| *other == dim);
        if decided || met().all(|other| *other != Dim::Unknown) { dim } else { Dim::Unknown }
    };
    shape.into_iter().enumerate().map(|(axis, dim)| meet(axis, dim)).collect()
}

/// A size that is not added up is known where one operand has it.
fn joined(op: &Op, shape: Shape, read: &[&[Dim]]) -> Shape {
    let rank = shape.len() as i64;
    let joint = op.int("axis").map(|axis| if axis < 0 { axis + rank } else { axis });
    let size = |axis: usize, dim: Dim| {
        let is_known = |other: &&[Dim]| other.get(axis).is_some_and(|dim| *dim != Dim::Unknown);
        let known = match joint == Some(axis as i64) {
            true => read.iter().all(is_known),
            false => read.iter().any(is_known),
        };
        if known { dim } else { Dim::Unknown }
    };
    shape.into_iter().enumerate().map(|(axis, dim)| size(axis, dim)).collect()
}

/// States have the shape of the body's output; other results one more dimension, as long as what is scanned.
fn scanned(op: &Op, slot: usize, mut shape: Shape, known: &Known<'_>) -> Shape {
    let inputs = op.int("num_scan_inputs").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let states = op.inputs.len().saturating_sub(inputs);
    let axis = |name: &str, i: usize, rank: usize| {
        let axis = op.ints(name).and_then(|axes| axes.get(i)).copied().unwrap_or(0);
        usize::try_from(if axis < 0 { axis.saturating_add(rank as i64) } else { axis }).unwrap_or(0)
    };
    let is_known = (0..inputs).any(|i| {
        let read = op.input(states + i).and_then(|value| known[value.index()].as_deref());
        let length = read.and_then(|read| read.get(axis("scan_input_axes", i, read.len())));
        length.is_some_and(|length| *length != Dim::Unknown)
    });
    if slot >= states && !is_known {
        let rank = shape.len();
        if let Some(dim) = shape.get_mut(axis("scan_output_axes", slot - states, rank)) {
            *dim = Dim::Unknown;
        }
    }
    shape
}

/// `Reshape` to a constant target: 0 stands for the dimension of the operand, -1 for the rest of it.
fn reshaped(target: &[i64], shape: Shape, read: Option<&[Dim]>) -> Shape {
    let whole = read.is_some_and(|read| !read.contains(&Dim::Unknown));
    let size = |axis: usize, dim: Dim| {
        let is_known = match target.get(axis) {
            Some(-1) => whole,
            Some(0) => read.and_then(|read| read.get(axis)).is_some_and(|dim| *dim != Dim::Unknown),
            _ => true,
        };
        if is_known { dim } else { Dim::Unknown }
    };
    shape.into_iter().enumerate().map(|(axis, dim)| size(axis, dim)).collect()
}
