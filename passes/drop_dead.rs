//! Erase what computes nothing: operators and initializers that nothing reads, and operators whose result is one of
//! their operands, bit by bit.
//!
//! ```text
//! Identity(x), Cast<T>(x: T), Dropout(x) outside training                  = x
//! Sum(x), Mean(x), Max(x), Min(x), Concat(x)                               = x
//! Reshape, Flatten, Squeeze, Unsqueeze (alone or in a row), Expand, Tile   = x   where x has the shape of the result
//! Slice<steps > 0>(x)                                                      = x   where x has the shape of the result
//! Transpose<0, 1, ..>(x), Transpose<inverse of p>(Transpose<p>(x))         = x
//! Pad(x, 0), x * 1, x / 1, x - 0.0, x + -0.0                               = x
//! Where(true, x, y), If<then: x>(true)                                     = x
//! Reshape(Reshape(x, a), b)                                                = Reshape(x, b)
//! ```
//!
//! Shapes must be known to be equal: the same sizes, or the same symbols. A graph's inputs and outputs keep their
//! names, so an Identity between the two stays.
//!
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[3] unused> {
//!   t = Exp(x)
//!   y = Relu(x)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) {
//!   y = Relu(x)
//! }
//! ```
//!
//! The exporter of PyTorch writes a parameter that equals another one as an Identity of it.
//!
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[1] a, int64[2] flat = {1, 6}, int64[2] back = {2, 3}> {
//!   b = Identity(a)
//!   s = Mul(x, b)
//!   t = Reshape(s, flat)
//!   u = Reshape(t, back)
//!   y = Relu(u)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[1] a> {
//!   s = Mul(x, a)
//!   y = Relu(s)
//! }
//! ```
//!
//! refused: `-0.0 + 0.0` is `0.0`, so adding zero is not the identity
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float zero = {0.0}> {
//!   y = Add(x, zero)
//! }
//! ```

use std::collections::HashMap;

use dmopt_ir::{
    AttributeValue, DType, Def, Graph, NewOp, Op, OpId, Operand, Patch, Position, Rewriter, Safety, Tensor,
    ValueId,
};

use crate::{Context, Miss, Pass, Rule};

/// Constants beyond this size are not read to find out whether they are all ones or zeros.
const MAX_CONSTANT_BYTES: u64 = 1 << 16;

/// How many operators in a row are looked through for a value of the same shape; keeps the pass linear.
const MAX_ROW: usize = 8;

/// See the header of this file.
pub struct DropDead;

impl Pass for DropDead {
    fn name(&self) -> &'static str {
        "drop-dead"
    }

    fn source(&self) -> &'static str {
        include_str!("drop_dead.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        context.apply_rule(&NoOps, rewriter);
        // Last first: what only served an unread operator goes with it.
        for op in crate::order_of(rewriter.graph()).into_iter().rev() {
            let graph = rewriter.graph();
            if graph.is_live(op) && graph.op(op).results().all(|v| graph.readers(v) == 0) {
                let mut patch = Patch::new(Safety::Exact);
                patch.erase(op);
                context.apply(op, Ok(patch), rewriter);
            }
        }
        let graph = rewriter.graph();
        let unread = graph.values().filter(|&v| graph.readers(v) == 0);
        let unread =
            unread.filter(|&v| matches!(graph.value(v).def, Def::Initializer(_) | Def::SparseInitializer(_)));
        let mut patch = Patch::new(Safety::Exact);
        let count = unread.map(|v| patch.drop_initializer(v)).count();
        if count > 0 {
            // Unread initializers of one graph are one edit; nothing can refuse it.
            let _ = rewriter.apply(patch);
        }
    }
}

/// Operators whose result is one of their operands.
struct NoOps;

impl Rule for NoOps {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        let operator = graph.op(op);
        if !operator.is_standard() || operator.results().all(|v| graph.readers(v) == 0) {
            return Err(Miss::NoMatch);
        }
        if operator.is("If") {
            return inline_branch(graph, op);
        }
        let result = operator.output(0).ok_or(Miss::NoMatch)?;
        if operator.results().any(|v| v != result && graph.readers(v) > 0) {
            return Err(Miss::NoMatch);
        }
        let Some(same) = equal_operand(graph, operator, result) else {
            return merge_reshapes(graph, op).ok_or(Miss::NoMatch);
        };
        // An output must be computed by an operator of its own; the Identity that is left would be no gain.
        if graph.is_output(result) && (graph.producer(same).is_none() || graph.is_output(same)) {
            return Err(Miss::NoEffect);
        }
        let mut patch = Patch::new(Safety::Exact);
        patch.replace_uses(result, same);
        Ok(patch)
    }
}

/// The value that `result`, the first result of an operator, is a copy of.
fn equal_operand(graph: &Graph, op: &Op, result: ValueId) -> Option<ValueId> {
    let x = op.input(0)?;
    let unchanged = match op.op_type.as_str() {
        "Identity" => true,
        "Sum" | "Mean" | "Max" | "Min" | "Concat" => op.inputs.len() == 1,
        "Cast" => op.int("to") == Some(graph.tensor_type(x)?.dtype.code() as i64),
        "CastLike" => graph.tensor_type(op.input(1)?)?.dtype == graph.tensor_type(x)?.dtype,
        "Dropout" => !trains(graph, op),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => return same_shape_before(graph, op, result),
        "Expand" | "Tile" => same_shape(graph, x, result),
        "Slice" => forwards(graph, op) && same_shape(graph, x, result),
        "Transpose" => return before_transposes(graph, op),
        "Pad" => pads_nothing(graph, op),
        "Mul" => return beside(graph, op, result, 0, 1.0).or_else(|| beside(graph, op, result, 1, 1.0)),
        "Div" => return beside(graph, op, result, 0, 1.0),
        "Sub" => return beside(graph, op, result, 0, 0.0),
        "Add" => return beside(graph, op, result, 0, -0.0).or_else(|| beside(graph, op, result, 1, -0.0)),
        "Where" => return chosen(graph, op, result),
        _ => false,
    };
    unchanged.then_some(x)
}

/// The value of a constant that is small enough to look at.
fn small_constant(graph: &Graph, value: ValueId) -> Option<Tensor> {
    let tensor = graph.constant(value)?;
    (tensor.byte_len()? <= MAX_CONSTANT_BYTES).then(|| tensor.into_owned())
}

fn same_shape(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    match (graph.tensor_type(a), graph.tensor_type(b)) {
        (Some(a), Some(b)) => a.same_shape(b),
        _ => false,
    }
}

/// True when a broadcast of `x` with `other` certainly has the shape of `x`.
fn absorbs(graph: &Graph, x: ValueId, other: ValueId, result: ValueId) -> bool {
    let ranks =
        (graph.tensor_type(x).and_then(|t| t.rank()), graph.tensor_type(other).and_then(|t| t.dims()));
    let is_single = match ranks {
        (_, Some(dims)) if dims.is_empty() => true,
        (Some(rank), Some(dims)) => dims.len() <= rank && dims.iter().all(|&d| d == 1),
        _ => false,
    };
    is_single || same_shape(graph, x, result)
}

/// True when a Dropout may drop something: it trains, or nothing says that it does not.
fn trains(graph: &Graph, op: &Op) -> bool {
    match graph.opset(&op.domain) {
        ..7 => op.int("is_test").unwrap_or(0) == 0,
        7..12 => false,
        12.. => op.input(2).is_some_and(|mode| !is_all(graph, mode, 0.0)),
    }
}

/// True for a constant whose elements all are this number; a zero only equals zeros of its sign.
fn is_all(graph: &Graph, value: ValueId, number: f64) -> bool {
    let Some(tensor) = small_constant(graph, value) else { return false };
    // Most constants are told by their second element: all are alike if a row of them, moved on by one, is the same row.
    let width = tensor.dtype.bits().unwrap_or(0) as usize / 8;
    let are_alike = |bytes: &[u8]| bytes.get(width..).is_some_and(|rest| bytes.starts_with(rest));
    if !tensor.bytes().is_ok_and(|bytes| are_alike(&bytes)) {
        return false;
    }
    let Ok(elements) = tensor.to_f64() else { return false };
    let signed = tensor.dtype.is_float();
    let same = |v: f64| v == number && (!signed || v.is_sign_negative() == number.is_sign_negative());
    elements.first().is_some_and(|&first| same(first))
}

/// The operand at `slot` of a binary operator whose other operand is all `neutral`.
fn beside(graph: &Graph, op: &Op, result: ValueId, slot: usize, neutral: f64) -> Option<ValueId> {
    let (x, other) = (op.input(slot)?, op.input(1 - slot)?);
    (is_all(graph, other, neutral) && absorbs(graph, x, other, result)).then_some(x)
}

/// A value before a row of operators that only rename dimensions, if it has the shape of the result.
fn same_shape_before(graph: &Graph, op: &Op, result: ValueId) -> Option<ValueId> {
    let mut at = op.input(0)?;
    for _ in 0..MAX_ROW {
        if same_shape(graph, at, result) {
            return Some(at);
        }
        at = reshaped(graph, at)?.1;
    }
    None
}

/// The operator that computes a value by renaming dimensions alone, and what it reads.
fn reshaped(graph: &Graph, value: ValueId) -> Option<(OpId, ValueId)> {
    let id = graph.producer(value)?;
    let op = graph.op(id);
    let renames = op.is_standard()
        && matches!(op.op_type.as_str(), "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity");
    renames.then_some((id, op.input(0)?))
}

/// True for a Slice that certainly steps forwards.
fn forwards(graph: &Graph, op: &Op) -> bool {
    op.input(4).is_none_or(|steps| {
        let steps = small_constant(graph, steps).and_then(|t| t.to_i64().ok());
        steps.is_some_and(|s| s.iter().all(|&step| step > 0))
    })
}

fn pads_nothing(graph: &Graph, op: &Op) -> bool {
    let pads = match op.input(1) {
        Some(pads) => small_constant(graph, pads).and_then(|t| t.to_i64().ok()),
        None => op.ints("pads").map(<[i64]>::to_vec),
    };
    pads.is_some_and(|p| p.iter().all(|&n| n == 0))
}

/// The operand of a Transpose that moves nothing, or of the Transpose before it that it undoes.
fn before_transposes(graph: &Graph, op: &Op) -> Option<ValueId> {
    let x = op.input(0)?;
    let outer = permutation(graph, op)?;
    let is_identity = |perm: &[usize]| perm.iter().enumerate().all(|(i, &p)| i == p);
    if is_identity(&outer) {
        return Some(x);
    }
    let inner = graph.op(graph.producer(x)?);
    // With another reader of what lies between, the value before both would stay alive beside it.
    if !inner.is("Transpose") || graph.readers(x) != 1 {
        return None;
    }
    let inner_perm = permutation(graph, inner)?;
    let both: Option<Vec<usize>> = outer.iter().map(|&axis| inner_perm.get(axis).copied()).collect();
    if is_identity(&both?) { inner.input(0) } else { None }
}

fn permutation(graph: &Graph, op: &Op) -> Option<Vec<usize>> {
    match op.ints("perm") {
        Some(perm) => perm.iter().map(|&axis| usize::try_from(axis).ok()).collect(),
        None => Some((0..graph.tensor_type(op.input(0)?)?.rank()?).rev().collect()),
    }
}

/// The operand that a Where with a constant condition copies.
fn chosen(graph: &Graph, op: &Op, result: ValueId) -> Option<ValueId> {
    let condition = op.input(0)?;
    let (slot, other) = if is_all(graph, condition, 1.0) {
        (1, 2)
    } else if is_all(graph, condition, 0.0) {
        (2, 1)
    } else {
        return None;
    };
    let (x, other) = (op.input(slot)?, op.input(other)?);
    let keeps_shape =
        same_shape(graph, x, result) || same_shape(graph, x, other) && absorbs(graph, x, condition, result);
    keeps_shape.then_some(x)
}

/// `Reshape(Reshape(x, a), b) = Reshape(x, b)`: the elements stay in order, so only `b` matters, unless a 0 in it
/// copies a size of what it reshapes. Such a target is written out when every size of the result is known.
fn merge_reshapes(graph: &Graph, op: OpId) -> Option<Patch> {
    let operator = graph.op(op);
    if !operator.is("Reshape") {
        return None;
    }
    let (between, target) = (operator.input(0)?, operator.input(1)?);
    let (_, x) = reshaped(graph, between)?;
    if graph.readers(between) != 1 {
        return None;
    }
    let mut patch = Patch::new(Safety::Exact);
    let sizes = small_constant(graph, target)?.to_i64().ok()?;
    let target = if operator.int("allowzero") == Some(1) || !sizes.contains(&0) {
        target.into()
    } else {
        let dims = graph.tensor_type(operator.output(0)?)?.dims()?;
        let dims: Option<Vec<i64>> = dims.iter().map(|&d| i64::try_from(d).ok().filter(|&d| d > 0)).collect();
        patch.constant(&format!("{}_shape", graph.value(between).name), Tensor::i64s(&dims?))
    };
    let merged = patch.add_op(NewOp::like(graph, op, vec![Some(x.into()), Some(target)]));
    patch.replace_uses(operator.output(0)?, merged);
    Some(patch)
}

/// Puts the branch that a constant condition takes in the place of an If.
fn inline_branch(graph: &Graph, op: OpId) -> Result<Patch, Miss> {
    let operator = graph.op(op);
    let condition = operator.input(0).and_then(|v| graph.constant(v)).ok_or(Miss::NoMatch)?;
    let taken = match condition.to_i64().as_deref() {
        Ok([value]) if condition.dtype == DType::Bool => *value != 0,
        _ => return Err(Miss::NoMatch),
    };
    let name = if taken { "then_branch" } else { "else_branch" };
    let Some(AttributeValue::Graph(branch)) = operator.attribute(name) else { return Err(Miss::NoMatch) };
    let mut patch = Patch::new(Safety::Exact);
    let mut operands: HashMap<ValueId, Operand> = HashMap::new();
    for value in branch.values().filter(|&v| branch.readers(v) > 0) {
        let operand = match &branch.value(value).def {
            Def::Captured { outer } => Operand::Value(*outer),
            Def::Initializer(tensor) => patch.constant(&branch.value(value).name, (**tensor).clone()),
            Def::Op { .. } | Def::Dead => continue,
            Def::Input { .. } => return Err(Miss::refused("the branch of an If has an input")),
            Def::SparseInitializer(_) => {
                return Err(Miss::refused(format!("{name} has a sparse initializer")));
            }
        };
        operands.insert(value, operand);
    }
    for id in crate::order_of(branch) {
        let inner = branch.op(id);
        if inner.bodies().next().is_some() {
            return Err(Miss::refused(format!("{name} holds {}, which has bodies", branch.describe(id))));
        }
        let inputs = inner.inputs.iter().map(|v| v.and_then(|v| operands.get(&v).copied())).collect();
        let mut copy = NewOp::like(branch, id, inputs).at(Position::At(op));
        if let Some(result) = inner.results().next() {
            copy = copy.result_named(&branch.value(result).name);
        }
        patch.add_op(copy);
        let number = patch.added() - 1;
        for (slot, result) in inner.outputs.iter().enumerate() {
            operands.extend(result.map(|v| (v, Operand::New { op: number, slot })));
        }
    }
    for (slot, result) in branch.outputs().iter().enumerate() {
        if let (Some(old), Some(&new)) = (operator.output(slot), operands.get(result)) {
            patch.replace_uses(old, new);
        }
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, left_alone};

    const PASS: &str = "drop-dead";

    /// `line` computes `t` from `x` and whatever is declared; it is the identity on `x`.
    fn vanishes(declared: &str, line: &str) {
        check(
            PASS,
            &format!("f (float[2,3] x) => (float[2,3] y) <float[2,3] t {declared}> {{ {line} y = Relu(t) }}"),
            "f (float[2,3] x) => (float[2,3] y) { y = Relu(x) }",
        );
    }

    fn stays(declared: &str, line: &str) {
        left_alone(
            PASS,
            &format!("f (float[2,3] x) => (float[2,3] y) <float[2,3] t {declared}> {{ {line} y = Relu(t) }}"),
        );
    }

    #[test]
    fn copies_vanish() {
        for line in [
            "t = Identity(x)",
            "t = Cast<to = 1>(x)",
            "t = CastLike(x, x)",
            "t = Dropout(x)",
            "t = Sum(x)",
            "t = Mean(x)",
            "t = Max(x)",
            "t = Min(x)",
            "t = Concat<axis = 0>(x)",
            "t = Flatten(x)",
            "t = Squeeze(x)",
            "t = Transpose<perm = [0, 1]>(x)",
            "u = Transpose<perm = [1, 0]>(x) t = Transpose<perm = [1, 0]>(u)",
        ] {
            vanishes("", line);
        }
    }

    #[test]
    fn operators_with_neutral_parameters_vanish() {
        vanishes(", int64[2] s = {2, 3}", "t = Reshape(x, s)");
        vanishes(", int64[2] s = {0, -1}", "t = Reshape(x, s)");
        vanishes(", int64[2] s = {1, 3}", "t = Expand(x, s)");
        vanishes(", int64[2] s = {1, 1}", "t = Tile(x, s)");
        vanishes(", int64[1] from = {0}, int64[1] to = {100}", "t = Slice(x, from, to)");
        vanishes(", int64[4] none = {0, 0, 0, 0}", "t = Pad(x, none)");
        vanishes(", int64[1] axis = {0}", "u = Unsqueeze(x, axis) t = Squeeze(u, axis)");
        vanishes(", float ratio = {0.5}, bool training = {0}", "t = Dropout(x, ratio, training)");
        vanishes(", float[1] one = {1}", "t = Mul(x, one)");
        vanishes(", float[1,3] one = {1, 1, 1}", "t = Mul(one, x)");
        vanishes(", float one = {1}", "t = Div(x, one)");
        vanishes(", float zero = {0}", "t = Sub(x, zero)");
        vanishes(", float zero = {-0.0}", "t = Add(zero, x)");
    }

    #[test]
    fn what_is_not_quite_a_copy_stays() {
        left_alone(PASS, "f (float[2] x) => (float16[2] y) { t = Cast<to = 10>(x) y = Relu(t) }");
        stays(", float one = {1}", "t = Div(one, x)");
        stays(", float zero = {-0.0}", "t = Sub(x, zero)");
        stays(", float zero = {0}", "t = Sub(zero, x)");
        stays(", float[3] nearly = {1, 1, 1.0000001}", "t = Mul(x, nearly)");
        stays(", float ratio = {0.5}, bool training = {1}", "t = Dropout(x, ratio, training)");
        stays(
            ", int64[1] from = {-1}, int64[1] to = {-100}, int64[1] axis = {0}, int64[1] back = {-1}",
            "t = Slice(x, from, to, axis, back)",
        );
        stays(", int64[4] shift = {0, 1, 0, -1}", "t = Pad(x, shift)");
    }

    #[test]
    fn a_broadcast_is_not_a_copy() {
        left_alone(
            PASS,
            "f (float[3] x) => (float[2,3] y) <float[2,1] one = {1, 1}, float[2,3] t> { t = Mul(x, one) y = Relu(t) }",
        );
    }

    #[test]
    fn adding_zero_is_a_copy_of_integers() {
        check(
            PASS,
            "f (int64[2] x) => (int64[2] y) <int64 zero = {0}> { t = Add(x, zero) y = Neg(t) }",
            "f (int64[2] x) => (int64[2] y) { y = Neg(x) }",
        );
    }

    #[test]
    fn shapes_of_the_same_symbols_are_equal() {
        check(
            PASS,
            "f (float[N,3] x, int64[2] s) => (float[N,3] y) <float[N,3] t> { t = Reshape(x, s) y = Relu(t) }",
            "f (float[N,3] x, int64[2] s) => (float[N,3] y) { y = Relu(x) }",
        );
        left_alone(
            PASS,
            "f (float[N,3] x, int64[2] s) => (float[M,3] y) <float[M,3] t> { t = Reshape(x, s) y = Relu(t) }",
        );
    }

    #[test]
    fn an_identity_between_input_and_output_stays() {
        left_alone(PASS, "f (float[2] x) => (float[2] y) { y = Identity(x) }");
        left_alone(PASS, "f () => (float[2] y) <float[2] w = {1, 2}> { y = Identity(w) }");
    }

    #[test]
    fn an_output_takes_its_name_along() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) { t = Relu(x) y = Identity(t) }",
            "f (float[2] x) => (float[2] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn two_outputs_of_one_value_need_an_identity() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y, float[2] z) { t = Relu(x) y = Identity(t) z = Identity(t) }",
            "f (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }",
        );
    }

    #[test]
    fn identities_of_parameters_vanish_in_rows() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) <float[2] a> { b = Identity(a) c = Identity(b) t = Add(x, c) y = Mul(t, b) }",
            "f (float[2] x) => (float[2] y) <float[2] a> { t = Add(x, a) y = Mul(t, a) }",
        );
    }

    #[test]
    fn a_dropout_whose_mask_is_read_stays() {
        left_alone(PASS, "f (float[2] x) => (float[2] y, bool[2] m) { t, m = Dropout(x) y = Relu(t) }");
    }

    #[test]
    fn a_constant_condition_chooses() {
        for (condition, kept) in [("1", "a"), ("0", "b")] {
            check(
                PASS,
                &format!(
                    "f (float[2] x) => (float[2] y) <bool[1] c = {{{condition}}}, float[2] a, float[2] b>
                     {{ a = Exp(x) b = Neg(x) t = Where(c, a, b) y = Relu(t) }}"
                ),
                &if kept == "a" {
                    "f (float[2] x) => (float[2] y) { a = Exp(x) y = Relu(a) }".to_string()
                } else {
                    "f (float[2] x) => (float[2] y) { b = Neg(x) y = Relu(b) }".to_string()
                },
            );
        }
        left_alone(
            PASS,
            "f (float[2] x, float[2] z) => (float[2] y) <bool[2] c = {0, 1}> { t = Where(c, x, z) y = Relu(t) }",
        );
        left_alone(
            PASS,
            "f (float[1] x, float[2] z) => (float[2] y) <bool[1] c = {1}> { t = Where(c, x, z) y = Relu(t) }",
        );
    }

    #[test]
    fn a_reshape_of_a_reshape_is_one() {
        check(
            PASS,
            "f (float[2,3,4] x) => (float[4,6] y) <int64[2] a = {6, 4}, int64[2] b = {4, -1}>
             { t = Reshape(x, a) y = Reshape(t, b) }",
            "f (float[2,3,4] x) => (float[4,6] y) <int64[2] b = {4, -1}> { y = Reshape(x, b) }",
        );
    }

    #[test]
    fn a_zero_in_the_target_copies_from_what_lies_between() {
        // The 0 stands for 6, not for the 2 of x.
        check(
            PASS,
            "f (float[2,3,4] x) => (float[6,2,2] y) <int64[2] a = {6, 4}, int64[3] b = {0, 2, 2}>
             { t = Reshape(x, a) y = Reshape(t, b) }",
            "f (float[2,3,4] x) => (float[6,2,2] y) <int64[3] b = {6, 2, 2}> { y = Reshape(x, b) }",
        );
        left_alone(
            PASS,
            "f (float[N,3,4] x) => (float[M,2,2] y) <int64[2] a = {-1, 4}, int64[3] b = {0, 2, 2}>
             { t = Reshape(x, a) y = Reshape(t, b) }",
        );
    }

    #[test]
    fn a_reshape_that_others_read_too_is_not_merged() {
        left_alone(
            PASS,
            "f (float[2,3,4] x) => (float[4,6] y, float[6,4] z) <int64[2] a = {6, 4}, int64[2] b = {4, 6}>
             { t = Reshape(x, a) y = Reshape(t, b) z = Relu(t) }",
        );
    }

    #[test]
    fn the_branch_of_a_constant_condition_takes_the_place_of_the_if() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
               a = Exp(x)
               y, b = If (c) <
                 then_branch = t () => (float[2] v, float[2] a2) <float[2] w = {1, 2}> {
                   u = Mul(a, w)
                   v = Add(u, x)
                   a2 = Neg(w)
                 },
                 else_branch = e () => (float[2] p, float[2] q) { p = Relu(x) q = Relu(a) }>
               z = Sub(b, a)
             }",
            "f (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
               a = Exp(x)
               u = Mul(a, w)
               y = Add(u, x)
               b = Neg(w)
               z = Sub(b, a)
             }",
        );
    }

    #[test]
    fn a_branch_that_puts_out_what_it_captures_is_followed() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) <bool c = {0}> {
               a = Exp(x)
               b = If (c) <
                 then_branch = t () => (float[2] v) { v = Relu(a) },
                 else_branch = e () => (float[2] p) { p = Identity(a) }>
               y = Neg(b)
             }",
            "f (float[2] x) => (float[2] y) { a = Exp(x) y = Neg(a) }",
        );
    }

    #[test]
    fn a_branch_with_bodies_of_its_own_is_refused() {
        let refused = left_alone(
            PASS,
            "f (bool d, float[2] x) => (float[2] y) <bool c = {1}> {
               y = If (c) <
                 then_branch = t () => (float[2] v) {
                   v = If (d) <
                     then_branch = t2 () => (float[2] m) { m = Neg(x) },
                     else_branch = e2 () => (float[2] n) { n = Abs(x) }>
                 },
                 else_branch = e () => (float[2] p) { p = Relu(x) }>
             }",
        );
        assert_eq!(refused, ["If of 'y': then_branch holds If of 'v', which has bodies"]);
    }

    #[test]
    fn optional_results_that_a_branch_leaves_out_stay_out() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) <bool c = {1}> {
               y = If (c) <
                 then_branch = t () => (float[2] v) { , v = com.acme.Pair(x) },
                 else_branch = e () => (float[2] p) { p = Relu(x) }>
             }",
            "f (float[2] x) => (float[2] y) { , y = com.acme.Pair(x) }",
        );
    }

    #[test]
    fn names_within_bodies_follow_what_they_read() {
        check(
            PASS,
            "f (bool c, float[2] x) => (float[2] y, float[2] z) {
               t = Exp(x)
               z = Identity(t)
               y = If (c) <
                 then_branch = a () => (float[2] v) { v = Relu(t) },
                 else_branch = b () => (float[2] w) { w = Neg(z) }>
             }",
            "f (bool c, float[2] x) => (float[2] y, float[2] z) {
               z = Exp(x)
               y = If (c) <
                 then_branch = a () => (float[2] v) { v = Relu(z) },
                 else_branch = b () => (float[2] w) { w = Neg(z) }>
             }",
        );
    }
}
