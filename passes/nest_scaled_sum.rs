//! Scale the accumulator instead of what is added to it.
//!
//! A chain of products and sums has, beside the accumulator, a product for each term whose `x` is read again later. By
//! Horner's scheme there is none: the accumulator is kept in units of the coefficient of the next term.
//! ```text
//! s_1*x_1 + s_2*x_2 + ... + s_n*x_n  ~  ((x_1 * (s_1/s_2) + x_2) * (s_2/s_3) + ... + x_n) * s_n
//! ```
//! That is as many operators, and a tensor less at a time. What is subtracted counts as positive in the quotients. It is
//! done where it brings the predicted peak of the whole graph down: where an order can be found in which products take
//! the place of what they scale, it does not.
//!
//! Class: rounding differs (quotients of coefficients; the order of additions stays). A sum can overflow where it did
//! not, within a factor of 1024 of the largest number of the type. NaN and infinity come out as before otherwise.
//! Left alone: coefficients that are computed, zero, or further apart than 1024 times; float16 and bfloat16. For
//! `ort-cpu`, sums that `accumulate-in-place` takes.
//!
//! ```onnx
//! f (float[1,8,16,16] x) => (float[1,8,16,16] y) <float a = {0.5}, float b = {2.0}, float c = {-4.0}> {
//!   p = Exp(x)
//!   q = Sigmoid(p)
//!   r = Sqrt(q)
//!   k = Mul(p, a)
//!   l = Mul(q, b)
//!   m = Add(k, l)
//!   n = Mul(r, c)
//!   o = Add(m, n)
//!   s = Sub(p, q)
//!   t = Div(s, r)
//!   u = Tanh(o)
//!   y = Sub(u, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,8,16,16] x) => (float[1,8,16,16] y)
//! <float o_scale = {0.25}, float o_scale_1 = {0.5}, float o_scale_2 = {4.0}>
//! {
//!   p = Exp(x)
//!   o_mul = Mul(p, o_scale)
//!   q = Sigmoid(p)
//!   o_add = Add(o_mul, q)
//!   o_mul_3 = Mul(o_add, o_scale_1)
//!   r = Sqrt(q)
//!   o_sub = Sub(o_mul_3, r)
//!   o = Mul(o_sub, o_scale_2)
//!   s = Sub(p, q)
//!   t = Div(s, r)
//!   u = Tanh(o)
//!   y = Sub(u, t)
//! }
//! ```
//!
//! refused: a coefficient is computed
//! ```onnx
//! f (float[1,2,4,4] x, float[1,2,4,4] y, float a) => (float[1,2,4,4] z, float[1,2,4,4] v) <float b = {2.0}> {
//!   p = Exp(x)
//!   q = Exp(y)
//!   m = Mul(p, a)
//!   n = Mul(q, b)
//!   z = Add(m, n)
//!   v = Sub(p, q)
//! }
//! ```

use dmopt_ir::{DType, Graph, OpId, Patch, Rewriter, Safety, ValueId};

use crate::accumulate_in_place::has_step;
use crate::fuse_scaled_sum::{combination_at, combinations, is_sign, split};
use crate::linear::{Array, Combination, Expr, Finder, Form, Term};
use crate::{Context, Miss, Offer, Pass, Planning, Stage, order_of};

/// See the header of this file.
pub struct NestScaledSum;

/// By how much coefficients may differ.
const APART: f64 = 1024.0;

impl Pass for NestScaledSum {
    fn name(&self) -> &'static str {
        "nest-scaled-sum"
    }

    fn source(&self) -> &'static str {
        include_str!("nest_scaled_sum.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Offering
    }

    fn run(&self, _rewriter: &mut Rewriter<'_>, _context: &mut Context<'_>) {}

    fn offers(&self, graph: &Graph, planning: &Planning) -> Vec<Offer> {
        // Without a product that outlives its operand there is nothing to gain.
        let kept = |term: &Term| !is_sign(&term.factor) && term.x.is_some_and(|x| graph.readers(x) > 1);
        let offer = |(root, combination): (OpId, Combination)| {
            let pays = combination.form == Form::Chain
                && combination.terms.iter().skip(1).any(kept)
                && !has_step(planning.target, &combination.ty)
                && !is_nested(graph, root, &combination);
            let products =
                combination.ops.iter().map(|&op| graph.op(op)).filter(|op| op.is("Mul") || op.is("Div"));
            let relieves = products.flat_map(|op| op.results()).collect();
            let refused = pays.then(|| nested(&combination).err());
            refused.map(|refused| Offer { start: root, op: root, relieves, levels: 1, refused })
        };
        combinations(graph, &order_of(graph)).found.into_iter().filter_map(offer).collect()
    }

    fn take(&self, graph: &Graph, _planning: &Planning, offer: &Offer, _level: usize) -> Result<Patch, Miss> {
        let root = offer.start;
        let combination = combination_at(graph, &Finder::new(graph), root).ok_or(Miss::NoMatch)?;
        let result = graph.op(root).output(0).ok_or(Miss::NoMatch)?;
        let mut patch = Patch::new(Safety::Reassociates);
        let new = nested(&combination)?.emit(graph, &mut patch, &graph.value(result).name);
        patch.replace_uses(result, new.ok_or(Miss::NoMatch)?);
        Ok(patch)
    }
}

/// The nested form of a combination, its terms in the order in which they stand.
fn nested(combination: &Combination) -> Result<Expr, Miss> {
    let dtype = combination.ty.dtype;
    let constant = |array: &Array| {
        let tensor = array.tensor(dtype).ok_or_else(|| Miss::refused("a quotient does not fit its type"))?;
        Ok(Expr::Constant(tensor))
    };
    let times = |acc: Expr, by: &Array| match by.data.iter().all(|&s| s == 1.0) {
        true => Ok(acc),
        false => Ok(Expr::op("Mul", [acc, constant(by)?])),
    };
    let (terms, addends) = split(&combination.terms);
    if terms.iter().map(|term| &term.factor).chain(&addends).any(|factor| !factor.parts.is_empty()) {
        return Err(Miss::refused("a coefficient is computed"));
    }
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Miss::refused(format!("{dtype} would overflow too early")));
    }
    let sizes = || terms.iter().flat_map(|term| &term.factor.constant.data).map(|s| s.abs());
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    if sizes().any(f64::is_nan) || least == 0.0 || most > APART * least {
        return Err(Miss::refused("coefficients are zero or far apart"));
    }
    // What is accumulated, and in which units.
    let mut acc: Option<(Expr, Array)> = None;
    for term in &terms {
        let x = Expr::Value(term.x.ok_or(Miss::NoMatch)?);
        let coefficient = &term.factor.constant;
        acc = Some(match acc {
            None => (x, coefficient.clone()),
            Some((acc, unit)) => {
                let negative = coefficient.data.iter().all(|&s| s < 0.0);
                let next = if negative { coefficient.map(f64::abs) } else { coefficient.clone() };
                let quotient = unit.zip(&next, |a, b| a / b).ok_or(Miss::NoMatch)?;
                let step = if negative { "Sub" } else { "Add" };
                (Expr::op(step, [times(acc, &quotient)?, x]), next)
            }
        });
    }
    let (sum, unit) = acc.ok_or(Miss::NoMatch)?;
    let mut sum = times(sum, &unit)?;
    for addend in addends {
        sum = Expr::op("Add", [sum, constant(&addend.constant)?]);
    }
    Ok(sum)
}

/// True if a combination stands as [`nested`] would write it, whatever its order and coefficients: a sum is scaled in it,
/// and terms are added to what is there one at a time.
pub(crate) fn is_nested(graph: &Graph, root: OpId, combination: &Combination) -> bool {
    let is_term = |value: ValueId| combination.terms.iter().any(|term| term.x == Some(value));
    let mut scales_a_sum = false;
    let mut value = graph.op(root).output(0);
    while let Some(acc) = value.filter(|&acc| !is_term(acc)) {
        let Some(op) = graph.producer(acc).filter(|op| combination.ops.contains(op)).map(|op| graph.op(op))
        else {
            return false;
        };
        let [Some(a), Some(b)] = op.inputs[..] else { return false };
        let added = |v: ValueId| is_term(v) || graph.constant(v).is_some();
        value = match op.op_type.as_str() {
            "Add" | "Sub" if added(b) => Some(a),
            "Add" if added(a) => Some(b),
            "Mul" if graph.constant(b).is_some() => {
                scales_a_sum |= !is_term(a);
                Some(a)
            }
            _ => return false,
        };
    }
    scales_a_sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{left_alone_for, refuses, takes};
    use crate::{Target, find};

    /// A sum of which every term is read later, too.
    fn model(ty: &str, weights: &str, body: &str) -> String {
        format!("f ({ty} x, {ty} y, {ty} v) => ({ty} z, {ty} k) <{weights}> {{ {body} k = Max(x, y, v) }}")
    }

    fn nests(ty: &str, weights: &str, body: &str, new_weights: &str, new_body: &str) {
        takes(&NestScaledSum, &model(ty, weights, body), 0, &model(ty, new_weights, new_body));
    }

    const X: &str = "float[1,2,4,4]";
    const PRODUCTS: &str = "m = Mul(x, a) n = Mul(y, b) o = Mul(v, c) p = Add(m, n) z = Add(p, o)";

    #[test]
    fn coefficients_become_quotients() {
        nests(
            X,
            "float a = {6}, float b = {3}, float[2,1,1] c = {1, 2}",
            PRODUCTS,
            "float q = {2}, float[2,1,1] r = {3, 1.5}, float[2,1,1] s = {1, 2}",
            "m = Mul(x, q) n = Add(m, y) o = Mul(n, r) p = Add(o, v) z = Mul(p, s)",
        );
    }

    #[test]
    fn what_is_subtracted_counts_as_positive() {
        nests(
            X,
            "float a = {6}, float b = {-3}, float[2,1,1] c = {-1, 2}",
            PRODUCTS,
            "float q = {2}, float[2,1,1] r = {-3, 1.5}, float[2,1,1] s = {-1, 2}",
            "m = Mul(x, q) n = Sub(m, y) o = Mul(n, r) p = Add(o, v) z = Mul(p, s)",
        );
    }

    #[test]
    fn equal_coefficients_are_one_product_and_a_bias_stays_behind_it() {
        nests(
            X,
            "float a = {2}, float[2,1,1] c = {5, 6}",
            "m = Mul(x, a) n = Mul(y, a) p = Add(m, n) z = Add(p, c)",
            "float a = {2}, float[2,1,1] c = {5, 6}",
            "m = Add(x, y) n = Mul(m, a) z = Add(n, c)",
        );
    }

    #[test]
    fn a_last_term_that_is_not_scaled_needs_no_product() {
        nests(
            X,
            "float a = {8}, float b = {4}",
            "m = Mul(x, a) n = Mul(y, b) p = Add(m, n) z = Add(p, v)",
            "float a = {2}, float b = {4}",
            "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) z = Add(o, v)",
        );
    }

    #[test]
    fn what_cannot_be_divided_by_is_refused() {
        let with = |ty: &str, c: &str| {
            refuses(
                &NestScaledSum,
                &model(
                    ty,
                    &format!(
                        "{} a = {{6}}, {} b = {{3}}, {c}",
                        ty.split('[').next().unwrap(),
                        ty.split('[').next().unwrap()
                    ),
                    PRODUCTS,
                ),
            )
        };
        let apart = "coefficients are zero or far apart";
        for c in ["float[2,1,1] c = {1, 0}", "float c = {0.005}", "float c = {7000}", "float c = {nan}"] {
            assert_eq!(with(X, c), apart, "{c}");
        }
        assert_eq!(with("float16[1,2,4,4]", "float16 c = {1}"), "float16 would overflow too early");
        let text = format!(
            "f ({X} x, {X} y, float a) => ({X} z, {X} k) <float b = {{2}}> {{
            m = Mul(x, a) n = Mul(y, b) z = Add(m, n) k = Sub(x, y) }}"
        );
        assert_eq!(refuses(&NestScaledSum, &text), "a coefficient is computed");
    }

    #[test]
    fn nothing_is_offered_where_no_product_outlives_its_operand_or_the_target_has_a_step() {
        let offers = |target: Target, text: &str| {
            let mut model = dmopt_ir::text::parse_model(text).unwrap();
            dmopt_ir::infer::infer_graph(&mut model.graph);
            NestScaledSum.offers(&model.graph, &Planning { target, ..Planning::default() }).len()
        };
        let weights = |ty: &str| format!("{ty} a = {{2}}, {ty} b = {{3}}, {ty} c = {{4}}");
        let single = model(X, &weights("float"), PRODUCTS);
        let double = model("double[1,2,4,4]", &weights("double"), PRODUCTS);
        assert_eq!(Target::ALL.map(|target| offers(target, &single)), [1, 0, 1]);
        assert_eq!(Target::ALL.map(|target| offers(target, &double)), [1, 1, 1]);
        let last = single.replace("k = Max(x, y, v)", "k = Exp(x)");
        assert_eq!(offers(Target::Portable, &last), 0);
        let sum = model(X, &weights("float"), "p = Add(x, y) z = Add(p, v)");
        assert_eq!(offers(Target::Portable, &sum), 0);
    }

    #[test]
    fn what_is_nested_stays_so_where_nothing_is_added_in_place() {
        let nested = "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) p = Sub(o, v) z = Mul(p, c)";
        let text = model(X, "float a = {2}, float b = {3}, float c = {4}", nested);
        let fuse = find("fuse-scaled-sum").unwrap().name();
        for target in [Target::Portable, Target::OrtCuda] {
            left_alone_for(target, fuse, &text);
        }
    }
}
