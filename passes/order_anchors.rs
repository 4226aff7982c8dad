//! Make ONNX Runtime run operators in the order of the file, by a few `Size` operators at its end.
//!
//! ONNX Runtime orders a graph by a search that begins at the operators that nothing reads, the last one of the file
//! first. A `Size` that nothing reads is such a place: the search runs everything that its operand needs before it
//! comes to the rest (`memory/steer.rs` has the proof that this reaches every order). Only those anchors are kept without
//! which the predicted peak would be higher; where the runtime does as well by itself there are none. They cost eight
//! bytes each, and executors that follow the file drop or ignore them. Their names are `order_anchor_` and that of the value.
//!
//! Runs once, after every other pass. A model that has anchors loses them first, so it comes out as it went in if
//! nothing else is to be done. With `--order-anchors never` the operators are numbered for ONNX Runtime's own search
//! instead, where that helps: of two that could run in either order, the one to run first stands later in the file.
//!
//! The same operators run on the same operands: bit-identical. Below, the runtime by itself would compute `m0`, `m1` and
//! `m2` before it adds the first two; the anchor makes it add them before it comes to the third.
//!
//! ```onnx
//! f (float[1,64] x) => (float[1,64] y) {
//!   m0 = Exp(x)
//!   m1 = Abs(x)
//!   s1 = Add(m0, m1)
//!   m2 = Neg(x)
//!   s2 = Add(s1, m2)
//!   y = Tanh(s2)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,64] x) => (float[1,64] y) {
//!   m0 = Exp(x)
//!   m1 = Abs(x)
//!   s1 = Add(m0, m1)
//!   m2 = Neg(x)
//!   s2 = Add(s1, m2)
//!   y = Tanh(s2)
//!   [order_anchor_s1]
//!   order_anchor_s1 = Size(s1)
//! }
//! ```
//!
//! refused: the runtime keeps to the file by itself
//! ```onnx
//! f (float[2,64] x) => (float[2,64] y) {
//!   a = Exp(x)
//!   y = Neg(a)
//! }
//! ```

use dmopt_ir::{Graph, NewOp, OpId, Patch, Position, Rewriter, Safety};
use dmopt_memory::ort::{Order, execution_order};
use dmopt_memory::steer::{self, ANCHOR};

use crate::planning::{Anchors, Planning};
use crate::{Context, Miss, Pass, Stage, edited, order_of};

/// See the header of this file.
pub struct OrderAnchors;

impl Pass for OrderAnchors {
    fn name(&self) -> &'static str {
        "order-anchors"
    }

    fn source(&self) -> &'static str {
        include_str!("order_anchors.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn stage(&self) -> Stage {
        Stage::Final
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let Some(&first) = order_of(graph).first() else { return };
        match steering(graph, context.planning) {
            Err(Miss::Refused(reason)) => context.log.refuse(format!("graph '{}'", graph.name()), reason),
            proposal => _ = context.apply(first, proposal, rewriter),
        }
    }
}

/// Plans that choosing anchors may ask for, in operators planned.
const WORK: usize = 300_000;

/// The edit that makes the runtime keep to the file.
///
/// # Errors
/// Why there is none: a size is not known, the runtime does as well by itself, or the file as it would be written is
/// predicted to need no less.
fn steering(graph: &Graph, planning: &Planning) -> Result<Patch, Miss> {
    let order = order_of(graph);
    let patch = match planning.anchors {
        Anchors::Auto => anchored(graph, &order, planning).ok_or(Miss::NoEffect)?,
        Anchors::Never => {
            let mut patch = Patch::new(Safety::Exact);
            patch.reorder(steer::renumbered(graph, &order));
            patch
        }
    };
    let peaks = |graph: &Graph| planning.sized(graph).peaks().map_err(|_| Miss::NoMatch);
    let anchored = edited(graph, [patch.clone()]).filter(|(_, applied)| *applied > 0);
    let (anchored, _) = anchored.ok_or(Miss::NoMatch)?;
    let (before, after) = (peaks(graph)?, peaks(&anchored)?);
    let no_worse = after.iter().zip(&before).all(|(after, before)| after <= before);
    match (after[0] < before[0], no_worse) {
        (true, true) => Ok(patch),
        (true, false) => Err(Miss::refused("ONNX Runtime would need more at other sizes than those assumed")),
        (false, _) if planning.anchors == Anchors::Never => Err(Miss::NoEffect),
        (false, _) => Err(Miss::refused("anchors would not bring ONNX Runtime's peak down")),
    }
}

/// Anchors, few of those that the order of the file needs to come true; `None` where the runtime does as well by itself.
fn anchored(graph: &Graph, order: &[OpId], planning: &Planning) -> Option<Patch> {
    let by_itself = execution_order(graph, Order::ReverseDepthFirst).ok()?;
    if order.iter().filter(|&&id| !graph.op(id).is("Constant")).eq(&by_itself) {
        return None;
    }
    let sized = planning.sized(graph);
    let plans = sized.plans().ok()?;
    let goal = plans.peak_in(order).ok()?;
    let mut left = WORK / order.len().max(1);
    let mut good = |executed: &[OpId]| {
        left = left.checked_sub(1).filter(|&left| left > 0)?;
        Some(plans.peak_in(executed).is_ok_and(|peak| peak <= goal))
    };
    let mut patch = Patch::new(Safety::Exact);
    // The first to run stands last.
    let anchored = steer::anchors(graph, order, &mut good);
    for &id in anchored.iter().rev() {
        let value = steer::anchored_value(graph, id)?;
        // Like any name, it says what is computed: files in which the same values are anchored can be compared.
        let name = format!("{ANCHOR}_{}", graph.value(value).name);
        let size = NewOp::new("Size", [value.into()]);
        patch.add_op(size.named(&name).result_named(&name).at(Position::Last));
    }
    (patch.added() > 0).then_some(patch)
}

/// Takes all anchors out of a graph and its bodies.
pub(crate) fn strip(rewriter: &mut Rewriter<'_>) {
    for op in order_of(rewriter.graph()) {
        rewriter.in_bodies(op, &mut strip);
    }
    let graph = rewriter.graph();
    let mut patch = Patch::new(Safety::Exact);
    let anchors: Vec<OpId> = graph.ops().filter(|&id| steer::is_anchor(graph, id)).collect();
    anchors.iter().for_each(|&id| patch.erase(id));
    if !anchors.is_empty() {
        // Nothing reads an anchor, so nothing can refuse this.
        let _ = rewriter.apply(patch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, left_alone, optimize};
    use crate::{Options, run};
    use dmopt_ir::text::print_model;

    const PASS: &str = "order-anchors";

    /// A chain of products and sums as exporters write it: ONNX Runtime runs all products first.
    const CHAIN: &str = "f (float[64] x) => (float[64] y) <float a = {4}, float b = {2}, float c = {3}> {
        m0 = Mul(x, a)  m1 = Mul(x, b)  s1 = Add(m0, m1)  m2 = Mul(x, c)  s2 = Add(s1, m2)  y = Neg(s2)
    }";

    #[test]
    fn a_second_run_leaves_the_model_as_it_was() {
        let (mut model, outcome) = optimize(PASS, CHAIN, Options::default());
        assert_eq!(outcome.passes[0].rewrites, 1);
        let text = print_model(&model);
        assert!(text.contains("Size("), "{text}");
        let only = vec!["drop-dead".to_string(), "schedule-for-memory".to_string(), PASS.to_string()];
        let again = run(&mut model, &Options { only, ..Options::default() }).unwrap();
        assert_eq!((again.passes.iter().map(|pass| pass.rewrites).sum::<u64>(), again.safety), (0, None));
        assert_eq!(print_model(&model), text);
    }

    #[test]
    fn an_anchor_is_named_after_what_it_reads() {
        let text = print_model(&optimize(PASS, CHAIN, Options::default()).0);
        assert!(text.contains("order_anchor_s1 = Size(s1)"), "{text}");
    }

    #[test]
    fn without_anchors_the_products_are_numbered_for_the_runtime() {
        let planning = Planning { anchors: Anchors::Never, ..Planning::default() };
        let (model, _) = optimize(PASS, CHAIN, Options { planning, ..Options::default() });
        let results = model.graph.order().unwrap().into_iter().flat_map(|id| model.graph.op(id).output(0));
        let names: Vec<&str> = results.map(|v| model.graph.value(v).name.as_str()).collect();
        assert_eq!(names, ["m2", "m1", "m0", "s1", "s2", "y"]);
    }

    #[test]
    fn a_size_that_is_read_is_no_anchor() {
        left_alone(PASS, "f (float[4] x) => (int64 s) { y = Neg(x) [order_anchor_0] s = Size(y) }");
    }

    #[test]
    fn sizes_that_are_not_known_leave_the_order_alone() {
        left_alone(
            PASS,
            "f (float[4] x) => (float[n] y) { m = NonZero(x) t = Transpose(m) a = Exp(x) b = Neg(x) s = Add(a, b)
               y = GatherND(s, t) }",
        );
    }

    #[test]
    fn open_sizes_are_assumed() {
        let open = CHAIN.replace("float[64]", "float[2,n]");
        check(PASS, &open, &open.replace("y = Neg(s2)", "y = Neg(s2) t = Size(s1)"));
    }
}
