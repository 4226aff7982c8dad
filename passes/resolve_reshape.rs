//! Give a Reshape a constant target where it only computes what a constant can say.
//!
//! Exporters read the target back from shapes, element by element. What computes it then keeps a reader on tensors
//! that have no other use for it, and every runtime has to run it.
//!
//! ```text
//! target [k, ..]       = {k, ..}     all elements are numbers
//! target [N, k, ..]    = {0, k, ..}  every other element is the size that the operand has at its place
//! target [e, k, ..]    = {-1, k, ..} one element is no number, the others are at least 1
//! ```
//!
//! A -1 in the target counts as the number that it stands for, where that follows from the shape of the operand. All
//! three are exact for every input that the Reshape accepts, empty ones included. A 0 copies a size: where that
//! size is 0, the computed target says 0 too. A -1 stands for what is left, which beside sizes of at least 1 is what
//! the computed element must be. Copied sizes and a -1 are not mixed, because nothing is certain of the -1 where a copied
//! size is 0. Under `allowzero` a 0 does not copy.
//!
//! ```onnx
//! f (float[N,2,8] x) => (float[4,M] y, int64[3] s) <int64[1] from = {0}, int64[1] to = {1}, int64[1] four = {4}> {
//!   s = Shape(x)
//!   n = Slice(s, from, to)
//!   m = Mul(n, four)
//!   t = Concat<axis = 0>(four, m)
//!   y = Reshape(x, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[N,2,8] x) => (float[4,M] y, int64[3] s) <int64[2] t = {4, -1}> {
//!   s = Shape(x)
//!   y = Reshape(x, t)
//! }
//! ```
//!
//! Flattening all but the batch, as PyTorch's `x.view(x.size(0), -1)`:
//!
//! ```onnx
//! f (float[N,H,8] x) => (float[N,K] y) <int64[1] from = {0}, int64[1] to = {1}, int64[1] rest = {-1}> {
//!   s = Shape(x)
//!   n = Slice(s, from, to)
//!   t = Concat<axis = 0>(n, rest)
//!   y = Reshape(x, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[N,H,8] x) => (float[N,K] y) <int64[2] t = {0, -1}> {
//!   y = Reshape(x, t)
//! }
//! ```
//!
//! refused: neither size stands at its place in `x`, and one -1 cannot stand for both
//! ```onnx
//! f (float[N,H,8] x) => (float[H,N,8] y) <int64[2] swap = {1, 0}, int64[1] eight = {8}> {
//!   s = Shape(x)
//!   n = Gather(s, swap)
//!   t = Concat<axis = 0>(n, eight)
//!   y = Reshape(x, t)
//! }
//! ```

use dmopt_ir::infer::{self, Element};
use dmopt_ir::{Dim, Graph, NewOp, OpId, Patch, Rewriter, Safety, Tensor, ValueId};

use crate::{Context, Miss, Pass};

/// See the header of this file.
pub struct ResolveReshape;

impl Pass for ResolveReshape {
    fn name(&self) -> &'static str {
        "resolve-reshape"
    }

    fn source(&self) -> &'static str {
        include_str!("resolve_reshape.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let mut computed = crate::order_of(graph);
        computed.retain(|&op| computes_target(graph, op));
        if computed.is_empty() {
            return;
        }
        // Taken once: no edit here changes what a target says.
        let targets = infer::reshape_targets(graph);
        for op in computed {
            let target = targets.get(&op).ok_or(Miss::NoMatch);
            let proposal = target.and_then(|target| with_constant_target(rewriter.graph(), op, target));
            context.apply(op, proposal, rewriter);
        }
    }
}

/// True for a Reshape that is read and whose target other operators compute.
fn computes_target(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    let computed = |target: ValueId| graph.producer(target).is_some() && graph.constant(target).is_none();
    op.is("Reshape")
        && op.input(1).is_some_and(computed)
        && op.output(0).is_some_and(|result| graph.readers(result) > 0)
}

fn with_constant_target(graph: &Graph, id: OpId, elements: &[Element]) -> Result<Patch, Miss> {
    let op = graph.op(id);
    let (Some(data), Some(target), Some(result)) = (op.input(0), op.input(1), op.output(0)) else {
        return Err(Miss::NoMatch);
    };
    let shape = graph.tensor_type(data).and_then(|ty| ty.shape.as_deref());
    let copies_zero = op.int("allowzero").unwrap_or(0) == 0;
    let sizes = constant_target(elements, shape, copies_zero)?;
    let mut patch = Patch::new(Safety::Exact);
    let constant = patch.constant(&graph.value(target).name, Tensor::i64s(&sizes));
    let reshaped = patch.add_op(NewOp::like(graph, id, vec![Some(data.into()), Some(constant)]));
    patch.replace_uses(result, reshaped);
    Ok(patch)
}

/// The constant that does what a computed target does to a tensor of this shape.
fn constant_target(elements: &[Element], shape: Option<&[Dim]>, copies_zero: bool) -> Result<Vec<i64>, Miss> {
    let number = |element: &Element| match element {
        Element::Known(n) => Some(*n),
        Element::Symbol(_) | Element::Unknown => None,
    };
    let with = |stand_in: i64| elements.iter().map(|e| number(e).unwrap_or(stand_in)).collect();
    let copied = |(at, element): (usize, &Element)| match element {
        Element::Known(_) => true,
        Element::Symbol(name) => {
            copies_zero && shape.and_then(|s| s.get(at)).is_some_and(|d| *d == Dim::Symbol(name.clone()))
        }
        Element::Unknown => false,
    };
    if elements.iter().enumerate().all(copied) {
        return Ok(with(0));
    }
    match elements.iter().filter(|e| number(e).is_none()).count() {
        1 if elements.iter().filter_map(number).all(|n| n > 0) => Ok(with(-1)),
        1 => {
            Err(Miss::refused("one size of the target is computed, and a -1 is not certain beside a 0 or -1"))
        }
        open => Err(Miss::Refused(format!(
            "{open} sizes of the target are computed; one -1 cannot stand for all, nor a 0 for each"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, left_alone};

    const PASS: &str = "resolve-reshape";

    fn symbol(name: &str) -> Element {
        Element::Symbol(name.into())
    }

    /// `attributes` of a Reshape of `float[N,H,8]` to the target `parts`, made from the sizes `n` and `h`.
    fn reshape(attributes: &str, parts: &str, shape: &str) -> String {
        format!(
            "f (float[N,H,8] x) => (float[{shape}] y)
             <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] rest = {{-1}}> {{
               s = Shape(x)
               n = Slice(s, zero, one)
               h = Slice(s, one, two)
               t = Concat<axis = 0>({parts})
               y = Reshape{attributes}(x, t)
             }}"
        )
    }

    #[test]
    fn sizes_in_their_places_are_copied() {
        check(
            PASS,
            &reshape("", "n, h, two, rest", "N,H,2,4"),
            "f (float[N,H,8] x) => (float[N,H,2,4] y) <int64[4] t = {0, 0, 2, 4}> { y = Reshape(x, t) }",
        );
    }

    #[test]
    fn under_allowzero_nothing_is_copied() {
        left_alone(PASS, &reshape("<allowzero = 1>", "n, rest", "N,K"));
        let zeros = [symbol("N"), Element::Known(8)];
        let shape = [Dim::Symbol("N".into()), Dim::Known(8)];
        assert_eq!(constant_target(&zeros, Some(&shape), true), Ok(vec![0, 8]));
        assert_eq!(constant_target(&zeros, Some(&shape), false), Ok(vec![-1, 8]));
    }

    #[test]
    fn a_size_elsewhere_is_what_is_left() {
        let shape = [Dim::Symbol("N".into()), Dim::Known(8)];
        let target = |elements: &[Element]| constant_target(elements, Some(&shape), true);
        assert_eq!(target(&[Element::Known(8), symbol("N")]), Ok(vec![8, -1]));
        assert_eq!(target(&[Element::Known(8), Element::Unknown]), Ok(vec![8, -1]));
        assert_eq!(constant_target(&[symbol("N"), Element::Known(8)], None, true), Ok(vec![-1, 8]));
        assert_eq!(target(&[Element::Known(2), Element::Known(-1)]), Ok(vec![2, -1]));
    }

    #[test]
    fn nothing_is_left_for_certain_beside_a_size_that_may_be_zero() {
        let shape = [Dim::Symbol("N".into()), Dim::Symbol("H".into()), Dim::Known(8)];
        let refused = |elements: &[Element]| {
            matches!(constant_target(elements, Some(&shape), true), Err(Miss::Refused(_)))
        };
        assert!(refused(&[symbol("N"), Element::Unknown, Element::Known(4)]));
        assert!(refused(&[Element::Known(0), Element::Unknown, Element::Known(4)]));
        assert!(refused(&[Element::Known(-1), Element::Unknown]));
    }

    /// As PyTorch's `tensordot` prepares its operands.
    #[test]
    fn a_number_that_is_left_changes_places_with_a_size() {
        check(
            PASS,
            "f (float[2,N,8] x) => (float[2,M] y) <int64[1] two = {2}, int64[1] one = {1}, int64[1] eight = {8}, int64[1] rest = {-1}> {
               s = Shape(x)
               n = Slice(s, one, two)
               m = Mul(n, eight)
               t = Concat<axis = 0>(rest, m)
               y = Reshape(x, t)
             }",
            "f (float[2,N,8] x) => (float[2,M] y) <int64[2] t = {2, -1}> { y = Reshape(x, t) }",
        );
    }

    #[test]
    fn what_the_file_declares_for_the_result_proves_nothing() {
        let text = "f (float[?,?,8] x, int64[1] n) => (float[2,M] y) <int64[1] rest = {-1}> {
             m = Abs(n)
             t = Concat<axis = 0>(rest, m)
             y = Reshape(x, t)
           }";
        assert_eq!(left_alone(PASS, text).len(), 1);
    }

    #[test]
    fn a_target_that_the_caller_may_give_stays() {
        left_alone(PASS, "f (float[2,3] x, int64[1] t = {6}) => (float[6] y) { y = Reshape(x, t) }");
    }

    #[test]
    fn an_unknown_target_is_nothing_to_report() {
        let refused =
            left_alone(PASS, "f (float[6] x, int64[2] a) => (float[?,?] y) { t = Abs(a) y = Reshape(x, t) }");
        assert_eq!(refused, Vec::<String>::new());
    }
}
