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
//! Class: rounding differs (quotients of coefficients; the order of additions stays). A sum of n terms can overflow where
//! one of them is within a factor of 1024 n of the largest number. NaN and infinity come out as before otherwise.
//! Left alone: coefficients that are computed, zero, infinite, or further apart than 1024 times; other types than float32.
//! For `ort-cpu`, sums of the ranks that `accumulate-in-place` takes.
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

use dmopt_ir::{DType, Graph, OpId, Patch, Rewriter, Safety};

use crate::accumulate_in_place::has_step;
use crate::fuse_scaled_sum::{combination_at, combinations, is_sign, split};
use crate::linear::{Array, Combination, Expr, Finder, Form, Placement, Term};
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
                && !has_step(planning.target, &combination.ty);
            let refused = match pays.then(|| nested(graph, root, &combination))? {
                Ok(expr) if steps(&expr) > combination.ops.len() => return None,
                Ok(expr) if stands(graph, root, &expr).is_some() => return None,
                Ok(_) => None,
                Err(miss) => Some(miss),
            };
            let products =
                combination.ops.iter().map(|&op| graph.op(op)).filter(|op| op.is("Mul") || op.is("Div"));
            let relieves = products.flat_map(|op| op.results()).collect();
            Some(Offer { start: root, op: root, relieves, levels: 1, refused })
        };
        combinations(graph, &order_of(graph)).found.into_iter().filter_map(offer).collect()
    }

    fn take(&self, graph: &Graph, _planning: &Planning, offer: &Offer, _level: usize) -> Result<Patch, Miss> {
        let root = offer.start;
        let combination = combination_at(graph, &Finder::new(graph), root).ok_or(Miss::NoMatch)?;
        let result = graph.op(root).output(0).ok_or(Miss::NoMatch)?;
        let mut patch = Patch::new(Safety::Reassociates);
        let new = nested(graph, root, &combination)?.emit(graph, &mut patch, &graph.value(result).name);
        patch.replace_uses(result, new.ok_or(Miss::NoMatch)?);
        Ok(patch)
    }
}

/// The operators of a combination that stands as this pass would write it, if it does, and with no more of them than
/// `most`.
pub(crate) fn stands_nested(
    graph: &Graph,
    root: OpId,
    combination: &Combination,
    most: usize,
) -> Option<Placement> {
    let expr = nested(graph, root, combination).ok().filter(|expr| steps(expr) <= most)?;
    stands(graph, root, &expr)
}

fn stands(graph: &Graph, root: OpId, expr: &Expr) -> Option<Placement> {
    expr.find(graph, graph.op(root).output(0)?, false)
}

/// Number of operators.
fn steps(expr: &Expr) -> usize {
    ["Mul", "Add", "Sub"].iter().map(|op_type| expr.count(op_type)).sum()
}

/// The nested form of a combination that `root` computes, its terms in the order in which they stand.
fn nested(graph: &Graph, root: OpId, combination: &Combination) -> Result<Expr, Miss> {
    let ty = &combination.ty;
    let result = graph.op(root).output(0).and_then(|value| graph.tensor_type(value));
    if !result.is_some_and(|result| result.same_shape(ty)) {
        return Err(Miss::NoMatch);
    }
    // What comes back out of a nested sum is as large as the largest constant in it.
    let constant = |array: &Array| {
        let tensor = array.least(ty.dtype).and_then(|least| least.tensor(ty.dtype));
        Ok(Expr::Constant(tensor.ok_or_else(|| Miss::refused("a constant does not fit its type"))?))
    };
    let times = |acc: Expr, by: &Array| match by.data.iter().all(|&s| s == 1.0) {
        true => Ok(acc),
        false => Ok(Expr::op("Mul", [acc, constant(by)?])),
    };
    let (terms, addends) = split(&combination.terms);
    if terms.iter().map(|term| &term.factor).chain(&addends).any(|factor| !factor.parts.is_empty()) {
        return Err(Miss::refused("a coefficient is computed"));
    }
    if ty.dtype != DType::F32 {
        return Err(Miss::refused(format!("it is of type {}", ty.dtype)));
    }
    let sizes = || terms.iter().flat_map(|term| &term.factor.constant.data).map(|s| s.abs());
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    if !sizes().all(f64::is_finite) || least == 0.0 || most > APART * least {
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
                let quotient = unit.zip(&next, |a, b| a / b);
                let quotient =
                    quotient.ok_or_else(|| Miss::refused("a quotient would be larger than both"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;
    use crate::testing::{check, check_for, left_alone_for, refuses, takes};

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
        let with = |c: &str| {
            refuses(&NestScaledSum, &model(X, &format!("float a = {{6}}, float b = {{3}}, {c}"), PRODUCTS))
        };
        let apart = "coefficients are zero or far apart";
        for c in [
            "float[2,1,1] c = {1, 0}",
            "float c = {0.005}",
            "float c = {7000}",
            "float c = {nan}",
            "float c = {inf}",
        ] {
            assert_eq!(with(c), apart, "{c}");
        }
        let half = PRODUCTS.replace("z = Add(p, o)", "z = Add(o, p)");
        let text = model("float16[1,2,4,4]", "float16 a = {6}, float16 b = {3}, float16 c = {1}", &half);
        assert_eq!(refuses(&NestScaledSum, &text), "it is of type float16");
        let pixels = "float[4,1] a = {1, 2, 3, 4}, float[1,4] b = {1, 2, 3, 4}, float c = {1}";
        let larger = "a quotient would be larger than both";
        assert_eq!(refuses(&NestScaledSum, &model(X, pixels, PRODUCTS)), larger);
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
            let offers = NestScaledSum.offers(&model.graph, &Planning { target, ..Planning::default() });
            offers.iter().filter(|offer| offer.refused.is_none()).count()
        };
        let weights = |ty: &str| format!("{ty} a = {{2}}, {ty} b = {{3}}, {ty} c = {{4}}");
        let single = model(X, &weights("float"), PRODUCTS);
        let double = model("double[1,2,4,4]", &weights("double"), PRODUCTS);
        assert_eq!(Target::ALL.map(|target| offers(target, &single)), [1, 0, 1]);
        assert_eq!(Target::ALL.map(|target| offers(target, &double)), [0, 0, 0]);
        let last = single.replace("k = Max(x, y, v)", "k = Exp(x)");
        assert_eq!(offers(Target::Portable, &last), 0);
        let sum = model(X, &weights("float"), "p = Add(x, y) z = Add(p, v)");
        assert_eq!(offers(Target::Portable, &sum), 0);
        // Two products more than there are.
        let between = model(X, "float a = {2}", "m = Mul(y, a) n = Add(x, m) z = Add(n, v)");
        assert_eq!(offers(Target::Portable, &between), 0);
    }

    #[test]
    fn what_is_nested_stays_so_where_nothing_is_added_in_place() {
        let nested = "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) p = Sub(o, v) z = Mul(p, c)";
        let text = model(X, "float a = {2}, float b = {3}, float c = {4}", nested);
        for target in [Target::Portable, Target::OrtCuda] {
            left_alone_for(target, FUSE, &text);
        }
        let products = "m = Mul(x, a) n = Mul(y, b) p = Add(m, n) o = Mul(v, c) z = Add(p, o)";
        let products = model(X, "float a = {24}, float b = {12}, float c = {-4}", products);
        check_for(Target::OrtCpu, FUSE, &text, &products);
    }

    #[test]
    fn what_is_nested_stays_so_with_constants_of_several_sizes_and_where_a_chain_is_longer() {
        let sizes = "float a = {2}, float[2,1,1] b = {3, 5}, float[2,1,1] c = {4, 7}";
        let body = "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) p = Add(o, v) z = Mul(p, c)";
        left_alone_for(Target::Portable, FUSE, &model(X, sizes, body));
        // A chain would scale five terms instead of three sums.
        let body = "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) p = Add(o, v) q = Exp(x) r = Add(p, q)
            s = Exp(y) t = Add(r, s) z = Mul(t, c)";
        let text = model(X, "float a = {2}, float b = {3}, float c = {4}", body);
        left_alone_for(Target::Portable, FUSE, &text);
    }

    #[test]
    fn what_only_looks_nested_becomes_a_chain() {
        for (weights, body, new_weights, new_body) in [
            // A scale goes into the kernels of convolutions.
            (
                "float a = {2}, float[2,2,1,1] w = {1, 2, 3, 4}, float[2,2,1,1] u = {5, 6, 7, 8}",
                "m = Conv(x, w) n = Conv(y, u) o = Add(m, n) z = Mul(o, a)",
                "float[2,2,1,1] w = {2, 4, 6, 8}, float[2,2,1,1] u = {10, 12, 14, 16}",
                "m = Conv(x, w) n = Conv(y, u) z = Add(m, n)",
            ),
            // The same value twice is one term.
            (
                "float a = {2}, float b = {3}",
                "m = Mul(x, a) n = Add(m, y) o = Mul(n, b) z = Add(o, x)",
                "float a = {7}, float b = {3}",
                "m = Mul(x, a) n = Mul(y, b) z = Add(m, n)",
            ),
        ] {
            check(FUSE, &model(X, weights, body), &model(X, new_weights, new_body));
        }
    }

    const FUSE: &str = "fuse-scaled-sum";
}
