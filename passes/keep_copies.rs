//! Write a large result that is computed twice in two ways, so that it stays computed twice.
//!
//! A cheap operator that runs again where its result is read again (see `common-subexpressions`) needs no memory in
//! between. ONNX Runtime merges operators that are equal to the letter, at every level of optimization, and keeps the
//! result all the while; operators that say the same in other words it leaves alone. Which words there are:
//! - an axis counted from the other end (operator sets from 11 on),
//! - a default that is written out: `ceil_mode` of a pooling operator (from 10 on),
//! - a sum or product with its operands the other way round.
//!
//! Runs at the very end, and only where the plan of the merged graph needs more. The same results, bit for bit.
//!
//! ```onnx
//! f (float[1,32] x, float[1,32] z) => (float[1,1] y) <int64[1] axis = {1}> {
//!   a = Concat<axis = 1>(x, z)
//!   b = ReduceSum(a, axis)
//!   c = Concat<axis = 1>(z, x)
//!   d = Add(c, b)
//!   e = ReduceSum(d, axis)
//!   f = Concat<axis = 1>(x, z)
//!   g = Mul(f, e)
//!   y = ReduceSum(g, axis)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,32] x, float[1,32] z) => (float[1,1] y) <int64[1] axis = {1}> {
//!   a = Concat<axis = 1>(x, z)
//!   b = ReduceSum(a, axis)
//!   c = Concat<axis = 1>(z, x)
//!   d = Add(c, b)
//!   e = ReduceSum(d, axis)
//!   f = Concat<axis = -1>(x, z)
//!   g = Mul(f, e)
//!   y = ReduceSum(g, axis)
//! }
//! ```
//!
//! refused: there is no other way to write an exponential
//! ```onnx
//! f (float[1,64] x) => (float[1,1] y) <int64[1] axis = {1}> {
//!   a = Exp(x)
//!   b = ReduceSum(a, axis)
//!   c = Neg(x)
//!   d = Add(c, b)
//!   e = ReduceSum(d, axis)
//!   f = Exp(x)
//!   g = Mul(f, e)
//!   y = ReduceSum(g, axis)
//! }
//! ```

use std::collections::HashMap;

use dmopt_ir::{Attribute, Graph, Names, NewOp, Op, OpId, Operand, Patch, Rewriter, Safety};

use crate::common_subexpressions::{hash, may_merge, same};
use crate::{Context, Miss, Pass, Planning, Stage, order_of};

/// See the header of this file.
pub struct KeepCopies;

impl Pass for KeepCopies {
    fn name(&self) -> &'static str {
        "keep-copies"
    }

    fn source(&self) -> &'static str {
        include_str!("keep_copies.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn stage(&self) -> Stage {
        Stage::Final
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let order = order_of(graph);
        let copies = copies(graph, &order);
        if copies.is_empty() || !pay(graph, &order, &copies, context.planning) {
            return;
        }
        let mut forms = Forms::default();
        order.iter().for_each(|&op| forms.insert(graph.op(op)));
        for (copy, _) in copies {
            let graph = rewriter.graph();
            let other = in_other_words(graph, copy).and_then(|other| match forms.contains(&other) {
                true => {
                    Err(Miss::refused("computed more than twice, and there is one other way to write it"))
                }
                false => Ok(other),
            });
            let proposal = other.as_ref().map(|other| rewritten(graph, copy, other)).map_err(Miss::clone);
            if context.apply(copy, proposal, rewriter)
                && let Ok(other) = other
            {
                forms.insert(&other);
            }
        }
    }
}

/// Operators to compare others with.
#[derive(Default)]
struct Forms(HashMap<u64, Vec<Op>>);

impl Forms {
    fn insert(&mut self, op: &Op) {
        self.0.entry(hash(op)).or_default().push(op.clone());
    }

    fn contains(&self, op: &Op) -> bool {
        self.0.get(&hash(op)).is_some_and(|alike| alike.iter().any(|other| same(other, op)))
    }
}

/// Operators that compute what an earlier one has computed, with that one. What an output of the graph is has to be
/// computed by an operator of its own, so that is none.
fn copies(graph: &Graph, order: &[OpId]) -> Vec<(OpId, OpId)> {
    let mut seen: HashMap<u64, Vec<OpId>> = HashMap::new();
    let mut copies = Vec::new();
    for &op in order.iter().filter(|&&op| may_merge(graph, op)) {
        let alike = seen.entry(hash(graph.op(op))).or_default();
        match alike.iter().find(|&&first| same(graph.op(first), graph.op(op))) {
            Some(_) if graph.op(op).results().any(|value| graph.is_output(value)) => {}
            Some(&first) => copies.push((op, first)),
            None => alike.push(op),
        }
    }
    copies
}

/// True if less memory is needed with the copies than without.
fn pay(graph: &Graph, order: &[OpId], copies: &[(OpId, OpId)], planning: &Planning) -> bool {
    let peak = |graph: &Graph, order: &[OpId]| planning.sized(graph).peak_in(order).ok();
    let merged = merged(graph, copies);
    peak(graph, order).zip(peak(&merged, &order_of(&merged))).is_some_and(|(with, without)| with < without)
}

/// The graph that a runtime makes of this one.
fn merged(graph: &Graph, copies: &[(OpId, OpId)]) -> Graph {
    let mut merged = graph.clone();
    let (mut names, mut fuel) = (Names::default(), None);
    let mut rewriter = Rewriter::new(&mut merged, &mut names, Safety::Exact, &mut fuel);
    for &(copy, first) in copies {
        let mut patch = Patch::new(Safety::Exact);
        for (gone, kept) in graph.op(copy).outputs.iter().zip(&graph.op(first).outputs) {
            if let (Some(gone), Some(kept)) = (*gone, *kept) {
                patch.replace_uses(gone, kept);
            }
        }
        // One that is refused stays, as if it were not equal.
        let _ = rewriter.apply(patch);
    }
    // Readers of an equal result that is computed earlier close no cycle.
    let _ = rewriter.finish();
    merged
}

/// Operators whose `axis` may be counted from either end.
const AXIS: [&str; 6] = ["Concat", "Gather", "GatherElements", "LogSoftmax", "Softmax", "Split"];

/// The same operator, written otherwise.
///
/// # Errors
/// There is no other way.
fn in_other_words(graph: &Graph, id: OpId) -> Result<Op, Miss> {
    let mut op = graph.op(id).clone();
    let set = |op: &mut Op, name: &str, value: i64| {
        op.attributes.retain(|attribute| attribute.name != name);
        op.attributes.push(Attribute::new(name, value));
    };
    let opset = graph.opset("");
    match op.op_type.as_str() {
        name if AXIS.contains(&name) && opset >= 11 => {
            let rank = op.input(0).and_then(|value| graph.tensor_type(value)?.rank());
            let (Some(axis), Some(rank)) = (op.int("axis"), rank) else {
                return Err(Miss::refused(
                    "computed twice, but its axis or the rank of its operand is not known",
                ));
            };
            let rank = rank as i64;
            set(&mut op, "axis", if axis < 0 { axis + rank } else { axis - rank });
        }
        "AveragePool" | "MaxPool" if opset >= 10 && op.attribute("ceil_mode").is_none() => {
            set(&mut op, "ceil_mode", 0);
        }
        "Add" | "Mul" if op.input(0) != op.input(1) => op.inputs.reverse(),
        _ => {
            return Err(Miss::refused(
                "computed twice, but there is no other way to write it: ONNX Runtime keeps one result",
            ));
        }
    }
    Ok(op)
}

/// Puts `other` in the place of an operator with the same results.
fn rewritten(graph: &Graph, id: OpId, other: &Op) -> Patch {
    let operands = other.inputs.iter().map(|value| value.map(Operand::from)).collect();
    let like = NewOp::like(graph, id, operands);
    let set = |new: NewOp, attribute: &Attribute| new.attribute(&attribute.name, attribute.value.clone());
    let mut patch = Patch::new(Safety::Exact);
    patch.add_op(other.attributes.iter().fold(like, set));
    for (slot, value) in other.outputs.iter().enumerate() {
        if let Some(value) = *value {
            patch.replace_uses(value, Operand::New { op: 0, slot });
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, left_alone};

    const PASS: &str = "keep-copies";

    /// Two equal operators far apart, with room for more in between.
    fn far_apart(first: &str, second: &str) -> String {
        format!(
            "f (float[1,1,4,16] x, float[1,1,4,16] z) => (float[1,1,1,1] y) <int64[3] axes = {{1, 2, 3}}> {{
               a = {first}  b = ReduceSum(a, axes)
               c = Exp(x)  d = Add(c, b)  e = ReduceSum(d, axes)
               f = {second}  g = Mul(f, e)  y = ReduceSum(g, axes)
             }}"
        )
    }

    #[test]
    fn each_kind_of_operator_has_its_other_words() {
        for (first, second) in [
            ("Add(x, z)", "Add(z, x)"),
            ("Mul(x, z)", "Mul(z, x)"),
            ("Softmax<axis = -1>(x)", "Softmax<axis = 3>(x)"),
            ("MaxPool<kernel_shape = [1, 1]>(x)", "MaxPool<kernel_shape = [1, 1], ceil_mode = 0>(x)"),
        ] {
            check(PASS, &far_apart(first, first), &far_apart(first, second));
        }
    }

    #[test]
    fn copies_that_cost_nothing_when_merged_stay_equal() {
        left_alone(
            PASS,
            "f (float[1,64] x, float[1,64] z) => (float[1,64] y) {
               a = Add(x, z)  b = Add(x, z)  c = Mul(a, b)  y = Neg(c)
             }",
        );
    }

    #[test]
    fn a_third_copy_is_named() {
        let three = |second: &str| {
            far_apart("Add(x, z)", second)
                .replace("y = ReduceSum(g, axes)", "h = Add(x, z)  i = Sub(h, g)  y = ReduceSum(i, axes)")
        };
        let refused = crate::testing::refusals(&check(PASS, &three("Add(x, z)"), &three("Add(z, x)")));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("Add of 'h': computed more than twice"), "{refused:?}");
    }

    #[test]
    fn an_operator_without_other_words_is_named() {
        let refused = left_alone(PASS, &far_apart("Neg(x)", "Neg(x)"));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("Neg of 'f': computed twice"), "{refused:?}");
    }
}
