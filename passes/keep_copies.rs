//! Write a large result that is computed twice in two ways, so that it stays computed twice.
//!
//! A cheap operator that runs again where its result is read again (see `common-subexpressions`) needs no memory in
//! between. ONNX Runtime merges operators that are equal to the letter, at every level of optimization, and keeps the
//! result all the while; operators that say the same in other words it leaves alone. Which words there are:
//! - an axis counted from the other end (operator sets from 11 on),
//! - a default that is written out, or left out: `ceil_mode` of a pooling operator (from 10 on),
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

use std::borrow::Cow;

use dmopt_ir::hash::{HashMap, HashSet};
use dmopt_ir::{Attribute, Graph, NewOp, Op, OpId, Operand, Patch, Rewriter, Safety, ValueId};

use crate::common_subexpressions::{hash, may_merge, same};
use crate::{Context, Miss, Pass, Stage, edited, order_of};

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
        let found = copies(graph, &order_of(graph), true);
        if found.is_empty() {
            return;
        }
        let peak = |graph: &Graph| context.planning.sized(graph).plans().ok()?.peak_in(&order_of(graph)).ok();
        let (apart, equal): (Vec<Copy>, Vec<Copy>) = found.into_iter().partition(|copy| copy.words.is_ok());
        let peak_merged = |copies: &[Copy]| peak(&merged(graph, copies)?);
        let with_all = peak_merged(&copies(graph, &order_of(graph), false));
        let (Some(now), Some(with_equal_merged), Some(with_all_merged)) =
            (peak(graph), peak_merged(&equal), with_all)
        else {
            return;
        };
        // What is merged at no cost, or costs nothing beside what has to be merged, stays as it is.
        let refused = equal.into_iter().filter(|_| now < with_equal_merged);
        let kept = apart.into_iter().filter(|_| with_equal_merged < with_all_merged);
        for Copy { op, words, .. } in kept.chain(refused) {
            let proposal = words.map(|words| words.patch(rewriter.graph(), op));
            context.apply(op, proposal, rewriter);
        }
    }
}

/// An operator that computes what an earlier one has computed.
struct Copy {
    op: OpId,
    of: OpId,
    /// How it can be written otherwise, or why not.
    words: Result<Words, Miss>,
}

/// Operators that a runtime takes to be equal to earlier ones: those that read equal results are equal, too. Those that
/// can be written otherwise are taken to be so if `apart` says so. What an output of the graph is has to be computed by
/// an operator of its own.
fn copies(graph: &Graph, order: &[OpId], apart: bool) -> Vec<Copy> {
    // Most graphs have none, and the first one is equal as it stands.
    let mut hashes = HashSet::default();
    if order.iter().filter(|&&id| may_merge(graph, id)).all(|&id| hashes.insert(hash(graph.op(id)))) {
        return Vec::new();
    }
    let mut seen: HashMap<u64, Vec<(OpId, Cow<'_, Op>)>> = HashMap::default();
    let mut merged: HashMap<ValueId, ValueId> = HashMap::default();
    let mut copies = Vec::new();
    for &id in order.iter().filter(|&&id| may_merge(graph, id)) {
        let mut op = Cow::Borrowed(graph.op(id));
        if op.operands().any(|value| merged.contains_key(&value)) {
            let inputs = op.to_mut().inputs.iter_mut().flatten();
            inputs.for_each(|value| *value = merged.get(value).copied().unwrap_or(*value));
        }
        let find = |hash: u64, op: &Op| {
            let alike = seen.get(&hash).into_iter().flatten();
            alike.into_iter().find(|(_, other)| same(other, op)).map(|(id, _)| *id)
        };
        let mut key = hash(&op);
        let of = find(key, &op).filter(|_| !op.results().any(|value| graph.is_output(value)));
        let mut form = op;
        if let Some(of) = of {
            let words = Words::other(graph, &form).and_then(|words| {
                let other = words.of(&form);
                match find(hash(&other), &other) {
                    Some(_) => {
                        Err(Miss::refused("computed more than twice, and there is one other way to write it"))
                    }
                    None => Ok((words, other)),
                }
            });
            let (words, other) =
                words.map_or_else(|miss| (Err(miss), None), |(w, other)| (Ok(w), Some(other)));
            match other.filter(|_| apart) {
                Some(other) => (key, form) = (hash(&other), Cow::Owned(other)),
                None => {
                    let results = form.outputs.iter().zip(&graph.op(of).outputs);
                    merged.extend(results.filter_map(|(own, first)| Some(((*own)?, (*first)?))));
                }
            }
            copies.push(Copy { op: id, of, words });
        }
        seen.entry(key).or_default().push((id, form));
    }
    copies
}

/// The graph that a runtime makes of this one if it merges these copies. One that cannot be stays, as if it were not equal.
fn merged(graph: &Graph, copies: &[Copy]) -> Option<Graph> {
    let merge = |copy: &Copy| {
        let mut patch = Patch::new(Safety::Exact);
        for (gone, kept) in graph.op(copy.op).outputs.iter().zip(&graph.op(copy.of).outputs) {
            if let (Some(gone), Some(kept)) = (*gone, *kept) {
                patch.replace_uses(gone, kept);
            }
        }
        patch
    };
    edited(graph, copies.iter().map(merge)).map(|(merged, _)| merged)
}

/// A difference that means nothing.
#[derive(Clone, Copy, Debug)]
enum Words {
    /// This attribute has this value, which means what it meant.
    Set(&'static str, i64),
    /// This attribute, which says what the default is, is left out.
    Without(&'static str),
    /// The two operands stand the other way round.
    Swapped,
}

impl Words {
    /// Another way to write an operator.
    ///
    /// # Errors
    /// There is none.
    fn other(graph: &Graph, op: &Op) -> Result<Words, Miss> {
        let opset = graph.opset("");
        let axis = match op.op_type.as_str() {
            "Concat" => op.int("axis"),
            "Gather" | "GatherElements" | "Split" => Some(op.int("axis").unwrap_or(0)),
            "LogSoftmax" | "Softmax" => Some(op.int("axis").unwrap_or(if opset < 13 { 1 } else { -1 })),
            _ => None,
        };
        let rank = op.input(0).and_then(|value| graph.tensor_type(value)?.rank());
        match (op.op_type.as_str(), axis, rank) {
            (_, Some(axis), Some(rank)) if opset >= 11 => {
                let rank = rank as i64;
                Ok(Words::Set("axis", if axis < 0 { axis + rank } else { axis - rank }))
            }
            ("AveragePool" | "MaxPool", ..) if opset >= 10 => match op.int("ceil_mode") {
                None => Ok(Words::Set("ceil_mode", 0)),
                Some(0) => Ok(Words::Without("ceil_mode")),
                Some(_) => Err(Miss::refused("computed twice, but its default cannot be left out")),
            },
            // Before version 7, the second operand is broadcast to the first.
            ("Add" | "Mul", ..) if opset >= 7 && op.input(0) != op.input(1) => Ok(Words::Swapped),
            _ => Err(Miss::refused(
                "computed twice, but there is no other way to write it: ONNX Runtime keeps one result",
            )),
        }
    }

    /// The operator in these words.
    fn of(self, op: &Op) -> Op {
        let mut op = op.clone();
        match self {
            Words::Set(name, value) => {
                op.attributes.retain(|attribute| attribute.name != name);
                op.attributes.push(Attribute::new(name, value));
            }
            Words::Without(name) => op.attributes.retain(|attribute| attribute.name != name),
            Words::Swapped => op.inputs.reverse(),
        }
        op
    }

    /// Writes an operator of the graph in these words.
    fn patch(self, graph: &Graph, id: OpId) -> Patch {
        let mut patch = Patch::new(Safety::Exact);
        patch.add_op(NewOp::instead_of(graph, id, self.of(graph.op(id))));
        for (slot, value) in graph.op(id).outputs.iter().enumerate() {
            if let Some(value) = *value {
                patch.replace_uses(value, Operand::New { op: 0, slot });
            }
        }
        patch
    }
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
            ("Softmax(x)", "Softmax<axis = 3>(x)"),
            ("MaxPool<kernel_shape = [1, 1]>(x)", "MaxPool<kernel_shape = [1, 1], ceil_mode = 0>(x)"),
            ("MaxPool<kernel_shape = [1, 1], ceil_mode = 0>(x)", "MaxPool<kernel_shape = [1, 1]>(x)"),
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
    fn a_third_copy_is_named_and_the_second_has_no_use_then() {
        let three = |second: &str| {
            far_apart("Add(x, z)", second)
                .replace("y = ReduceSum(g, axes)", "h = Add(x, z)  i = Sub(h, g)  y = ReduceSum(i, axes)")
        };
        let refused = left_alone(PASS, &three("Add(x, z)"));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("Add of 'h': computed more than twice"), "{refused:?}");
    }

    #[test]
    fn what_reads_equal_results_is_equal_too() {
        let text = |second: &str| {
            far_apart("Mul(r, x)", second)
                .replace("a = Mul", "r = Neg(z)  a = Mul")
                .replace(&format!("f = {second}"), &format!("s = Neg(z)  f = {second}"))
        };
        let (before, after) = (text("Mul(s, x)"), text("Mul(x, s)"));
        let small = |text: String| text.replace("float[1,1,4,16] z", "float[1,1,1,1] z");
        check(PASS, &small(before), &small(after));
    }

    #[test]
    fn copies_that_cost_nothing_stay_equal_beside_one_that_has_to_be_merged() {
        let text = far_apart("Neg(x)", "Neg(x)").replace(
            "y = ReduceSum(g, axes)",
            "h = ReduceSum(g, axes)  p = Add(h, b)  q = Add(h, b)  y = Mul(p, q)",
        );
        let refused = left_alone(PASS, &text);
        assert_eq!(refused.len(), 1, "{refused:?}");
    }

    #[test]
    fn an_operator_without_other_words_is_named() {
        let refused = left_alone(PASS, &far_apart("Neg(x)", "Neg(x)"));
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("Neg of 'f': computed twice"), "{refused:?}");
    }
}
