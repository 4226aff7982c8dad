//! Compute once what several operators compute: same type, same attributes, same operands.
//!
//! ```text
//! op(x) .. op(x) = op(x)
//! ```
//!
//! A result that is kept for a later reader takes memory in between. Two operators therefore merge when
//! - the results take 4 KiB at most, are constants, or are only other names of an operand's elements (Reshape and
//!   its kin), or
//! - the first result is still needed where the second operator stands, so that nothing lives longer beside it, or
//! - the operator is expensive: convolutions, matrix products, recurrent layers, attention.
//!
//! A large result of a cheap operator is computed again; `keep-copies` sees to it that runtimes leave it at that. Random
//! operators and operators with bodies never merge, nor do two outputs of the graph: each needs an operator that
//! computes it.
//!
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) {
//!   a = Exp(x)
//!   b = Exp(x)
//!   y = Add(a, b)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) {
//!   a = Exp(x)
//!   y = Add(a, a)
//! }
//! ```
//!
//! refused: 40000 bytes would stay alive while c is computed
//! ```onnx
//! f (float[100,100] x) => (float[100,100] y) {
//!   a = Exp(x)
//!   b = ReduceSum<keepdims = 1>(a)
//!   c = Mul(x, b)
//!   d = Exp(x)
//!   y = Add(c, d)
//! }
//! ```

use std::hash::{Hash, Hasher};
use std::mem::discriminant;

use dmopt_ir::hash::{Fold, HashMap, hasher};
use dmopt_ir::{Attribute, AttributeValue, Graph, Op, OpId, Patch, Rewriter, Safety, SparseTensor};

use crate::dedupe_initializers::{hash_ends, same_elements};
use crate::fold_constants::is_deterministic;
use crate::{Context, Miss, Pass};

/// Results up to this size may live longer without a second thought.
const SMALL_BYTES: u64 = 4096;

/// Operators that are worth memory.
const EXPENSIVE: &[&str] = &[
    "Attention",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "DeformConv",
    "DFT",
    "Einsum",
    "GRU",
    "Gemm",
    "GridSample",
    "LSTM",
    "MatMul",
    "MatMulInteger",
    "NonMaxSuppression",
    "QLinearConv",
    "QLinearMatMul",
    "RNN",
    "TopK",
];

/// Operators whose result has the elements of their operand in the same order: runtimes let both share memory.
const VIEWS: &[&str] = &["Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];

/// See the header of this file.
pub struct CommonSubexpressions;

impl Pass for CommonSubexpressions {
    fn name(&self) -> &'static str {
        "common-subexpressions"
    }

    fn source(&self) -> &'static str {
        include_str!("common_subexpressions.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let order = crate::order_of(rewriter.graph());
        let mut place = vec![0; rewriter.graph().op_bound()];
        for (position, op) in order.iter().enumerate() {
            place[op.index()] = position;
        }
        let mut needed_until: Vec<usize> = vec![0; rewriter.graph().op_bound()];
        for &op in &order {
            needed_until[op.index()] = last_reader(rewriter.graph(), op, &place);
        }
        let mut seen: HashMap<u64, Vec<OpId>> = HashMap::default();
        for op in order {
            let graph = rewriter.graph();
            if !may_merge(graph, op) {
                continue;
            }
            let alike = seen.entry(hash(graph.op(op))).or_default();
            let Some(&first) = alike.iter().rev().find(|&&first| same(graph.op(first), graph.op(op))) else {
                alike.push(op);
                continue;
            };
            let proposal = merge(graph, first, op, needed_until[first.index()] >= place[op.index()]);
            if context.apply(op, proposal, rewriter) {
                needed_until[first.index()] = needed_until[first.index()].max(needed_until[op.index()]);
            } else {
                // What follows is closer to this one.
                alike.push(op);
            }
        }
    }
}

/// The place of the last operator that reads a result; beyond all places for outputs of the graph.
fn last_reader(graph: &Graph, op: OpId, place: &[usize]) -> usize {
    let results = || graph.op(op).results();
    if results().any(|v| graph.is_output(v)) {
        return usize::MAX;
    }
    results().flat_map(|v| graph.uses(v)).map(|at| place[at.op.index()]).max().unwrap_or(0)
}

/// True for an operator that computes the same whenever it runs, and whose parts can be compared.
pub(crate) fn may_merge(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    graph.is_live(id)
        && is_deterministic(graph, op)
        && op.bodies().next().is_none()
        && !op.attributes.iter().any(|a| matches!(a.value, AttributeValue::Opaque))
}

/// Replaces the results of `second` by those of `first`.
fn merge(graph: &Graph, first: OpId, second: OpId, is_needed_still: bool) -> Result<Patch, Miss> {
    let (kept, gone) = (graph.op(first), graph.op(second));
    let mut patch = Patch::new(Safety::Exact);
    let mut bytes = Some(0u64);
    for (slot, value) in gone.outputs.iter().enumerate() {
        let Some(old) = value.filter(|&v| graph.readers(v) > 0) else { continue };
        let new = kept.output(slot).ok_or(Miss::NoMatch)?;
        if graph.is_output(old) && graph.is_output(new) {
            return Err(Miss::NoEffect);
        }
        bytes = bytes.and_then(|sum| sum.checked_add(graph.tensor_type(old)?.bytes()?));
        patch.replace_uses(old, new);
    }
    let op_type = kept.op_type.as_str();
    let is_free = op_type == "Constant" || VIEWS.contains(&op_type) || EXPENSIVE.contains(&op_type);
    if is_free || is_needed_still || bytes.is_some_and(|b| b <= SMALL_BYTES) {
        return Ok(patch);
    }
    let size = bytes.map_or("a result of unknown size".to_string(), |b| format!("{b} bytes"));
    Err(Miss::Refused(format!("{size} of {} would stay alive until here", graph.describe(first))))
}

/// Equal for operators that are [the same](same).
pub(crate) fn hash(op: &Op) -> u64 {
    let mut all = hasher();
    (&op.op_type, &op.overload, &op.inputs, op.outputs.len()).hash(&mut all);
    // Attributes have no order.
    let attributes = op.attributes.iter().map(|attribute| {
        let mut one = hasher();
        hash_attribute(attribute, &mut one);
        one.finish()
    });
    attributes.fold(0u64, u64::wrapping_add).hash(&mut all);
    all.finish()
}

fn hash_attribute(attribute: &Attribute, hasher: &mut Fold) {
    attribute.name.hash(hasher);
    discriminant(&attribute.value).hash(hasher);
    match &attribute.value {
        AttributeValue::Float(v) => v.to_bits().hash(hasher),
        AttributeValue::Int(v) => v.hash(hasher),
        AttributeValue::Ints(v) => v.hash(hasher),
        AttributeValue::String(v) => v.hash(hasher),
        AttributeValue::Tensor(t) => {
            (t.dtype, &t.dims).hash(hasher);
            hash_ends(t, hasher);
        }
        // Rare; compared in full.
        _ => {}
    }
}

/// True if two operators compute the same: type, attributes, operands.
pub(crate) fn same(a: &Op, b: &Op) -> bool {
    // Both are of the standard set, whatever they call it.
    (&a.op_type, &a.overload, &a.inputs) == (&b.op_type, &b.overload, &b.inputs)
        && a.outputs.len() == b.outputs.len()
        && a.attributes.len() == b.attributes.len()
        && a.attributes.iter().all(|x| b.attribute(&x.name).is_some_and(|y| same_value(&x.value, y)))
}

/// Equal by value: floats by bits, tensors by bytes.
fn same_value(a: &AttributeValue, b: &AttributeValue) -> bool {
    use AttributeValue::*;
    match (a, b) {
        (Float(a), Float(b)) => a.to_bits() == b.to_bits(),
        (Int(a), Int(b)) => a == b,
        (String(a), String(b)) => a == b,
        (Tensor(a), Tensor(b)) => same_elements(a, b),
        (SparseTensor(a), SparseTensor(b)) => same_sparse(a, b),
        (Type(a), Type(b)) => a == b,
        (Floats(a), Floats(b)) => a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())),
        (Ints(a), Ints(b)) => a == b,
        (Strings(a), Strings(b)) => a == b,
        (Tensors(a), Tensors(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_elements(a, b)),
        (SparseTensors(a), SparseTensors(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_sparse(a, b))
        }
        (Types(a), Types(b)) => a == b,
        (Reference { name: a, kind: k }, Reference { name: b, kind: l }) => (a, k) == (b, l),
        _ => false,
    }
}

fn same_sparse(a: &SparseTensor, b: &SparseTensor) -> bool {
    a.dims == b.dims && same_elements(&a.values, &b.values) && same_elements(&a.indices, &b.indices)
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, left_alone};

    const PASS: &str = "common-subexpressions";

    #[test]
    fn chains_of_equal_operators_merge() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) <float[2] a, float[2] b, float[2] c, float[2] d>
             { a = Exp(x) b = Neg(a) c = Exp(x) d = Neg(c) y = Add(b, d) }",
            "f (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) y = Add(b, b) }",
        );
    }

    #[test]
    fn attributes_are_compared_by_value_and_in_any_order() {
        check(
            PASS,
            "f (float[1,1,4,4] x) => (float[1,1,3,3] y) {
               a = AveragePool<kernel_shape = [2, 2], ceil_mode = 0>(x)
               b = AveragePool<ceil_mode = 0, kernel_shape = [2, 2]>(x)
               y = Add(a, b)
             }",
            "f (float[1,1,4,4] x) => (float[1,1,3,3] y) {
               a = AveragePool<kernel_shape = [2, 2], ceil_mode = 0>(x)
               y = Add(a, a)
             }",
        );
        for (a, b) in [("alpha = 0.0", "alpha = -0.0"), ("alpha = 0.5", "beta = 0.5"), ("alpha = 0.5", "")] {
            left_alone(
                PASS,
                &format!(
                    "f (float[2] x) => (float[2] y) {{ a = Elu<{a}>(x) b = Elu<{b}>(x) y = Add(a, b) }}"
                ),
            );
        }
    }

    #[test]
    fn constants_merge_by_their_bytes() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y) {
               a = Constant<value = float[2] {1, 2}>()
               b = Constant<value = float[2] {1, 2}>()
               c = Constant<value = float[2] {1, 3}>()
               y = Sum(x, a, b, c)
             }",
            "f (float[2] x) => (float[2] y) {
               a = Constant<value = float[2] {1, 2}>()
               c = Constant<value = float[2] {1, 3}>()
               y = Sum(x, a, a, c)
             }",
        );
    }

    #[test]
    fn different_operands_and_domains_stay() {
        left_alone(
            PASS,
            "f (float[2] x, float[2] z) => (float[2] y) { a = Sub(x, z) b = Sub(z, x) y = Add(a, b) }",
        );
        left_alone(
            PASS,
            "f (float[2] x) => (float[2] y) { a = com.acme.Odd(x) b = com.acme.Odd(x) y = Add(a, b) }",
        );
    }

    #[test]
    fn random_operators_stay() {
        for op in ["RandomNormalLike(x)", "Bernoulli(x)", "Dropout(x, half, yes)"] {
            left_alone(
                PASS,
                &format!(
                    "f (float[2] x) => (float[2] y) <float half = {{0.5}}, bool yes = {{1}}>
                     {{ a = {op} b = {op} y = com.acme.Use(a, b, half, yes) }}"
                ),
            );
        }
    }

    #[test]
    fn one_output_of_the_graph_takes_the_other_reader_along() {
        check(
            PASS,
            "f (float[2] x) => (float[2] y, float[2] z) { a = Exp(x) y = Exp(x) z = Neg(a) }",
            "f (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Neg(y) }",
        );
    }

    #[test]
    fn two_outputs_of_the_graph_stay() {
        left_alone(PASS, "f (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Exp(x) }");
    }

    #[test]
    fn the_survivor_must_have_every_result_that_is_read() {
        check(
            PASS,
            "f (float[4] x) => (float[2] y) {
               a, b = Split<num_outputs = 2>(x)
               , c = Split<num_outputs = 2>(x)
               y = Sum(a, b, c)
             }",
            "f (float[4] x) => (float[2] y) { a, b = Split<num_outputs = 2>(x) y = Sum(a, b, b) }",
        );
        left_alone(
            PASS,
            "f (float[4] x) => (float[2] y) {
               , c = Split<num_outputs = 2>(x)
               a, b = Split<num_outputs = 2>(x)
               y = Sum(a, b, c)
             }",
        );
    }

    /// A large cheap result, then something else that is large, then the same result again.
    fn apart(op: &str, between: &str, last: &str) -> String {
        format!(
            "f (float[100,100] x) => (float[100,100] y)
             <float[100,100] w, float[100,100] a, float[100,100] b, float[100,100] c, float[100,100] d>
             {{ a = {op} b = {between} c = Neg(b) d = {op} y = {last} }}"
        )
    }

    #[test]
    fn a_large_cheap_result_is_computed_again() {
        let refused = left_alone(PASS, &apart("Exp(x)", "Sqrt(a)", "Add(c, d)"));
        assert_eq!(refused, ["Exp of 'd': 40000 bytes of Exp of 'a' would stay alive until here"]);
    }

    #[test]
    fn a_large_result_that_is_needed_anyway_merges() {
        check(
            PASS,
            &apart("Exp(x)", "Sqrt(a)", "Sum(a, c, d)"),
            "f (float[100,100] x) => (float[100,100] y) <float[100,100] w>
             { a = Exp(x) b = Sqrt(a) c = Neg(b) y = Sum(a, c, a) }",
        );
    }

    #[test]
    fn an_expensive_result_merges() {
        check(
            PASS,
            &apart("MatMul(x, w)", "Sqrt(a)", "Add(c, d)"),
            "f (float[100,100] x) => (float[100,100] y) <float[100,100] w>
             { a = MatMul(x, w) b = Sqrt(a) c = Neg(b) y = Add(c, a) }",
        );
    }

    #[test]
    fn a_new_name_for_the_same_elements_merges() {
        check(
            PASS,
            &apart("Flatten(x)", "Sqrt(a)", "Add(c, d)"),
            "f (float[100,100] x) => (float[100,100] y) <float[100,100] w>
             { a = Flatten(x) b = Sqrt(a) c = Neg(b) y = Add(c, a) }",
        );
    }

    #[test]
    fn operators_with_bodies_stay() {
        let branches = "then_branch = t () => (float[2] v) { v = Neg(x) }, else_branch = e () => (float[2] w) { w = Relu(x) }";
        left_alone(
            PASS,
            &format!(
                "f (bool c, float[2] x) => (float[2] y) {{ a = If (c) <{branches}> b = If (c) <{}> y = Add(a, b) }}",
                branches.replace('v', "v2").replace("w ", "w2 ").replace("w)", "w2)")
            ),
        );
    }

    #[test]
    fn bodies_merge_within_themselves() {
        check(
            PASS,
            "f (bool c, float[2] x) => (float[2] y) {
               y = If (c) <
                 then_branch = t () => (float[2] v) { a = Exp(x) b = Exp(x) v = Add(a, b) },
                 else_branch = e () => (float[2] w) { w = Relu(x) }>
             }",
            "f (bool c, float[2] x) => (float[2] y) {
               y = If (c) <
                 then_branch = t () => (float[2] v) { a = Exp(x) v = Add(a, a) },
                 else_branch = e () => (float[2] w) { w = Relu(x) }>
             }",
        );
    }
}
