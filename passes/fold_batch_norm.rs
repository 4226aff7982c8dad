//! Fold batch normalizations (in their inference form) into the layer or the linear combination before them.
//!
//! With `y = BatchNormalization(r) = a*r + b` for each channel, `a = gamma / sqrt(var + epsilon)`,
//! `b = beta - a*mean`, and `~` for "is written as":
//! ```text
//! y of r = Conv(p, W, B)       ~  y = Conv(p, a*W, a*B + b)      also ConvTranspose, Gemm, MatMul of
//!                                                                matrices, InstanceNormalization, GroupNormalization
//! y of r = s*p + t*q + c       ~  y = (a*s)*p + (a*t)*q + (a*c + b)
//! ```
//! Scales and shifts between layer and normalization are taken along. A tensor less exists, and an operator less runs.
//!
//! For `ort-cpu`, r may have other readers that are steps of linear combinations, which cost no tensor there, or take its
//! mean: they read `r = (y - b)/a` instead, where no channel loses more than 5 bits of it by that (`raw_readers.rs`).
//!
//! Class: another formula. NaN and infinity of the input come out as before. Where r overflows and |a| < 1, y may be finite.
//! Left alone: r that something else reads, because it has to exist all the same; sums of unscaled values, which would
//! need a scaled copy of each; float16, whose weights would lose digits.
//!
//! ```onnx
//! f (float[1,3,4,4] x) => (float[1,2,4,4] s)
//! <float[2,3,1,1] w, float[2] gamma = {0.5, 2.0}, float[2] beta = {0.25, -0.5}, float[2] mean = {0.125, 0.5},
//!  float[2] var = {1.0, 0.25}> {
//!   r = Conv(x, w)
//!   y = BatchNormalization(r, gamma, beta, mean, var)
//!   s = Relu(y)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,3,4,4] x) => (float[1,2,4,4] s)
//! <
//!   float[2,3,1,1] w_scaled = {-0.33376145, -0.42137083, -0.23684503, -3.3841348, -1.642901, 1.2268784},
//!   float[2] w_bias = {0.18750031, -2.49996}
//! >
//! {
//!   y = Conv(x, w_scaled, w_bias)
//!   s = Relu(y)
//! }
//! ```
//!
//! target: ort-cpu
//! ```onnx
//! f (float[1,3,4,4] x, float[1,2,4,4] i) => (float[1,2,4,4] s, float[1,2,4,4] z)
//! <float[2,3,1,1] w, float[2] gamma = {0.5, 2.0}, float[2] beta = {0.25, -0.5}, float[2] mean = {0.125, 0.5},
//!  float[2] var = {1.0, 0.25}, float t = {3.0}> {
//!   r = Conv(x, w)
//!   y = BatchNormalization(r, gamma, beta, mean, var)
//!   s = Relu(y)
//!   m = Mul(r, t)
//!   z = Add(i, m)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,3,4,4] x, float[1,2,4,4] i) => (float[1,2,4,4] s, float[1,2,4,4] z)
//! <
//!   float[2,3,1,1] w_scaled = {-0.33376145, -0.42137083, -0.23684503, -3.3841348, -1.642901, 1.2268784},
//!   float[2] w_bias = {0.18750031, -2.49996},
//!   float[2,1,1] r_scale = {6.00003, 0.750015},
//!   float[2,1,1] r_shift = {-1.1250075, 1.8750075}
//! >
//! {
//!   y = Conv(x, w_scaled, w_bias)
//!   s = Relu(y)
//!   r_product = Mul(y, r_scale)
//!   m = Add(r_product, r_shift)
//!   z = Add(i, m)
//! }
//! ```
//!
//! refused: something else reads the layer's result
//! ```onnx
//! f (float[1,3,4,4] x) => (float[1,2,4,4] z, float[1,2,4,4] y)
//! <float[2,3,1,1] w, float[2] gamma, float[2] beta, float[2] mean, float[2] var> {
//!   r = Conv(x, w)
//!   z = Tanh(r)
//!   y = BatchNormalization(r, gamma, beta, mean, var)
//! }
//! ```

use dmopt_ir::{DType, Graph, OpId, Patch, Rewriter, Safety, ValueId};

use crate::accumulate_in_place::has_bias;
use crate::affine::{Affine, Layer, Norm, batch_norm, elementwise};
use crate::fuse_scaled_sum::{replacement, steps};
use crate::linear::{Combination, Expr, Finder};
use crate::raw_readers::Normalized;
use crate::{Context, Miss, Pass, Rule, Target};

/// See the header of this file.
pub struct FoldBatchNorm;

impl Pass for FoldBatchNorm {
    fn name(&self) -> &'static str {
        "fold-batch-norm"
    }

    fn source(&self) -> &'static str {
        include_str!("fold_batch_norm.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Approximates
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let planning = &context.planning;
        let fold = Fold { reread: planning.target == Target::OrtCpu, biased: has_bias(planning) };
        context.apply_rule(&fold, rewriter);
    }
}

/// The rule; with `reread`, also where other readers of the layer's result can read the normalized one, for a runtime
/// whose steps in place may have a bias or not.
struct Fold {
    reread: bool,
    biased: bool,
}

impl Rule for Fold {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        let norm = batch_norm(graph, op)?;
        let result = graph.op(op).output(0).ok_or(Miss::NoMatch)?;
        // Scales and shifts on the way to the normalization, each read by the next alone.
        let (mut x, mut first, mut inner) = (norm.x, op, Affine::identity(norm.affine.scale.len()));
        let layer = loop {
            match Layer::of(graph, x) {
                Err(Miss::NoMatch) => {}
                found => break found?,
            }
            let before = graph.producer(x).filter(|_| graph.readers(x) == 1);
            match before.and_then(|before| Some((before, elementwise(graph, before)?))) {
                Some((before, (value, affine))) if affine.scale.len() == norm.affine.scale.len() => {
                    (x, first, inner) = (value, before, inner.after(&affine));
                }
                _ => return into_combination(graph, &norm, result),
            }
        };
        let other = graph.uses(x).find(|at| at.op != first);
        if let Some(other) = other.filter(|_| !self.reread) {
            let reader = graph.describe(other.op);
            return Err(Miss::refused(format!("{reader} reads '{}' as well", graph.value(x).name)));
        }
        if graph.is_output(x) {
            return Err(Miss::refused("the value before it is an output of the graph"));
        }
        let mut patch = Patch::new(Safety::Approximates);
        let affine = norm.affine.after(&inner);
        let y = layer.absorb(&affine, &mut patch)?;
        patch.replace_uses(result, y);
        if other.is_some() {
            let rms = (0..inner.scale.len()).map(|c| {
                let mean = (norm.mean[c] - inner.shift[c]) / inner.scale[c];
                (mean * mean + norm.variance[c] / (inner.scale[c] * inner.scale[c])).sqrt()
            });
            Normalized { graph, raw: x, rms: rms.collect(), affine, way: first, y, biased: self.biased }
                .reread(&mut patch)?;
        }
        Ok(patch)
    }
}

/// `a * combination + b` as one combination, where it needs no more operators and nothing else reads what is before
/// the normalization.
fn into_combination(graph: &Graph, norm: &Norm, result: ValueId) -> Result<Patch, Miss> {
    let root = graph.producer(norm.x).filter(|_| graph.readers(norm.x) == 1).ok_or(Miss::NoMatch)?;
    let combination = Finder::new(graph).combination(norm.x).map_err(|_| Miss::NoMatch)?;
    let ty = graph.tensor_type(norm.x).ok_or(Miss::NoMatch)?;
    if !combination.ty.same_shape(ty) {
        return Err(Miss::NoMatch);
    }
    if ty.dtype == DType::F16 {
        return Err(Miss::refused("float16 coefficients would lose digits"));
    }
    let mapped = combination.mapped(&norm.affine.scale, &norm.affine.shift).ok_or(Miss::NoMatch)?;
    let expr = no_longer(graph, root, &combination, &mapped)?;
    let mut patch = Patch::new(Safety::Approximates);
    let new = expr.emit(graph, &mut patch, &graph.value(result).name);
    patch.replace_uses(result, new.ok_or_else(|| Miss::refused("a scaled weight does not fit its type"))?);
    Ok(patch)
}

/// The operators for `new`.
///
/// # Errors
/// They are more than those of `old` and the normalization, or scale more tensors: a scaled copy takes as much memory as
/// the tensor that it is made of. Or a coefficient does not fit.
fn no_longer(graph: &Graph, root: OpId, old: &Combination, new: &Combination) -> Result<Expr, Miss> {
    let replacement = replacement(graph, root, new).map_err(Miss::Refused)?;
    let before: usize = old.ops.iter().map(|&op| steps(graph, op)).sum();
    let scales = |op: &&OpId| matches!(graph.op(**op).op_type.as_str(), "Mul" | "Div");
    let scaled = replacement.expr.count("Mul") + replacement.expr.count("Div");
    if scaled > old.ops.iter().filter(scales).count() || replacement.steps > before + 1 {
        return Err(Miss::NoEffect);
    }
    Ok(replacement.expr)
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, check_for, left_alone, left_alone_for, optimize};
    use crate::{Options, Planning, Target};
    use dmopt_ir::Safety;

    const PASS: &str = "fold-batch-norm";

    fn model(interface: &str, weights: &str, body: &str) -> String {
        format!("<ir_version: 10, opset_import: [\"\": 21]> f {interface} <{weights}> {{ {body} }}")
    }

    /// `y = 2*x - 1` for channel 0, `y = -0.5*x + 4` for channel 1.
    const NORM: &str = "float[2] gamma = {4.0, -0.5}, float[2] beta = {1.0, 3.0}, float[2] mean = {1.0, 2.0}, \
                        float[2] var = {4.0, 1.0}";
    const Y: &str = "y = BatchNormalization<epsilon = 0.0>(r, gamma, beta, mean, var)";

    #[test]
    fn a_convolution_takes_scale_and_shift() {
        let interface = "(float[1,1,2,2] x) => (float[1,2,2,2] y)";
        let outcome = check(
            PASS,
            &model(
                interface,
                &format!("float[2,1,1,1] w = {{3.0, 4.0}}, float[2] b = {{1.0, 2.0}}, {NORM}"),
                &format!("r = Conv(x, w, b) {Y}"),
            ),
            &model(interface, "float[2,1,1,1] w = {6.0, -2.0}, float[2] b = {1.0, 3.0}", "y = Conv(x, w, b)"),
        );
        assert_eq!(outcome.safety, Some(Safety::Approximates));
    }

    #[test]
    fn a_transposed_convolution_is_scaled_by_columns_of_each_group() {
        let interface = "(float[1,4,2,2] x) => (float[1,2,2,2] y)";
        check(
            PASS,
            &model(
                interface,
                &format!("float[4,1,1,1] w = {{1.0, 2.0, 3.0, 4.0}}, {NORM}"),
                &format!("r = ConvTranspose<group = 2>(x, w) {Y}"),
            ),
            &model(
                interface,
                "float[4,1,1,1] w = {2.0, 4.0, -1.5, -2.0}, float[2] b = {-1.0, 4.0}",
                "y = ConvTranspose<group = 2>(x, w, b)",
            ),
        );
    }

    #[test]
    fn a_matrix_product_becomes_a_gemm_and_a_gemm_keeps_alpha() {
        let interface = "(float[3,2] x) => (float[3,2] y)";
        check(
            PASS,
            &model(
                interface,
                &format!("float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}, {NORM}"),
                &format!("r = MatMul(x, w) {Y}"),
            ),
            &model(
                interface,
                "float[2,2] w = {2.0, -1.0, 6.0, -2.0}, float[2] b = {-1.0, 4.0}",
                "y = Gemm(x, w, b)",
            ),
        );
        check(
            PASS,
            &model(
                interface,
                &format!("float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}, float[1,2] c = {{1.0, 2.0}}, {NORM}"),
                &format!("r = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, c) {Y}"),
            ),
            &model(
                interface,
                "float[2,2] w = {2.0, 4.0, -1.5, -2.0}, float[2] c = {3.0, 2.0}",
                "y = Gemm<transB = 1, alpha = 0.5, beta = 1.0>(x, w, c)",
            ),
        );
    }

    #[test]
    fn scales_and_shifts_on_the_way_are_taken_along() {
        let interface = "(float[1,1,2,2] x) => (float[1,2,2,2] y)";
        check(
            PASS,
            &model(
                interface,
                &format!(
                    "float[2,1,1,1] w = {{3.0, 4.0}}, float[2,1,1] c = {{1.0, 2.0}}, float[1] s = {{2.0}}, {NORM}"
                ),
                &format!("k = Conv(x, w) m = Mul(s, k) r = Sub(m, c) {Y}"),
            ),
            &model(
                interface,
                "float[2,1,1,1] w = {12.0, -4.0}, float[2] b = {-3.0, 5.0}",
                "y = Conv(x, w, b)",
            ),
        );
    }

    #[test]
    fn a_sum_that_is_normalized_takes_the_scale_into_its_coefficients() {
        let interface = "(float[1,2,2,2] p, float[1,2,2,2] q) => (float[1,2,2,2] y)";
        check(
            PASS,
            &model(
                interface,
                &format!("float a = {{2.0}}, float c = {{-1.0}}, {NORM}"),
                &format!("m = Mul(p, a) n = Mul(q, c) r = Add(m, n) {Y}"),
            ),
            &model(
                interface,
                "float[2,1,1] a = {4.0, -1.0}, float[2,1,1] c = {-2.0, 0.5}, float[2,1,1] d = {-1.0, 4.0}",
                "m = Mul(p, a) n = Mul(q, c) k = Add(m, n) y = Add(k, d)",
            ),
        );
    }

    #[test]
    fn a_residual_connection_before_a_normalization_stays() {
        let text = model(
            "(float[1,2,2,2] p, float[1,2,2,2] q) => (float[1,2,2,2] y)",
            NORM,
            &format!("s = Relu(p) r = Add(s, q) {Y}"),
        );
        assert!(left_alone(PASS, &text).is_empty());
    }

    #[test]
    fn other_readers_are_named() {
        let text = model(
            "(float[1,1,2,2] x) => (float[1,2,2,2] t, float[1,2,2,2] y)",
            &format!("float[2,1,1,1] w = {{3.0, 4.0}}, {NORM}"),
            &format!("r = Conv(x, w) t = Tanh(r) {Y}"),
        );
        assert_eq!(left_alone(PASS, &text), ["BatchNormalization of 'y': Tanh of 't' reads 'r' as well"]);
        let output = model(
            "(float[1,1,2,2] x) => (float[1,2,2,2] r, float[1,2,2,2] y)",
            &format!("float[2,1,1,1] w = {{3.0, 4.0}}, {NORM}"),
            &format!("r = Conv(x, w) {Y}"),
        );
        assert_eq!(
            left_alone(PASS, &output),
            ["BatchNormalization of 'y': the value before it is an output of the graph"]
        );
    }

    #[test]
    fn training_and_computed_parameters_are_left_alone() {
        let weights = format!("float[2,1,1,1] w = {{3.0, 4.0}}, {NORM}");
        let training = model(
            "(float[1,1,2,2] x) => (float[1,2,2,2] y, float[2] m, float[2] v)",
            &weights,
            "r = Conv(x, w) y, m, v = BatchNormalization<training_mode = 1>(r, gamma, beta, mean, var)",
        );
        assert!(left_alone(PASS, &training).is_empty());
        let computed = model(
            "(float[1,1,2,2] x, float[2] k) => (float[1,2,2,2] y)",
            &weights,
            "r = Conv(x, w) y = BatchNormalization(r, k, beta, mean, var)",
        );
        assert_eq!(
            left_alone(PASS, &computed),
            ["BatchNormalization of 'y': its parameters are not constants"]
        );
    }

    const TWO: &str = "(float[1,1,2,2] x, float[1,2,2,2] i) => (float[1,2,2,2] y, float[1,2,2,2] z)";
    const W: &str = "float[2,1,1,1] w = {3.0, 4.0}";

    #[test]
    fn what_is_weighed_by_the_mean_of_itself_reads_the_normalized_result() {
        let interface =
            "(float[2,1,16,16] x, float[2,2,16,16] i) => (float[2,2,16,16] y, float[2,2,16,16] z)";
        let gated =
            |mean: &str, gate: &str| format!("r = Conv(x, w) {Y} {mean} g = Sigmoid(a) {gate} z = Add(i, m)");
        let after = |mean: &str, gate: &str, s: &str| {
            format!(
                "y = Conv(x, w, b) {mean} g = Sigmoid(a) {gate} p = Mul({s}, k) n = Mul(y, p) t = Mul({s}, c)
                 m = Add(n, t) z = Add(i, m)"
            )
        };
        // r = y/2 + 1/2 and r = -2y + 8.
        let map = "float[2,1,1] k = {0.5, -2.0}, float[2,1,1] c = {0.5, 8.0}";
        let weights = "float[2,1,1,1] w = {6.0, -2.0}, float[2] b = {-1.0, 4.0}";
        let check = |own: &str, before: String, new: &str, after: String| {
            let before = model(interface, &format!("{W}, {own}{NORM}"), &before);
            check_for(
                Target::OrtCpu,
                PASS,
                &before,
                &model(interface, &format!("{weights}, {new}, {map}"), &after),
            );
        };
        check(
            "",
            gated("a = GlobalAveragePool(r)", "m = Mul(r, g)"),
            "float[2,1,1] u = {0.5, -2.0}, float[2,1,1] v = {0.5, 8.0}",
            after("e = GlobalAveragePool(y) f = Mul(e, u) a = Add(f, v)", "", "g"),
        );
        let axes = "int64[2] axes = {-1, 2}, int64[2] last = {2, 3}";
        check(
            &format!("{axes}, "),
            gated("a = ReduceMean<keepdims = 0>(r, axes)", "s = Unsqueeze(g, last) m = Mul(s, r)"),
            &format!("{axes}, float[2] u = {{0.5, -2.0}}, float[2] v = {{0.5, 8.0}}"),
            after(
                "e = ReduceMean<keepdims = 0>(y, axes) f = Mul(e, u) a = Add(f, v)",
                "s = Unsqueeze(g, last)",
                "s",
            ),
        );
    }

    #[test]
    fn what_is_weighed_stays_where_no_step_in_place_has_a_bias() {
        let text = model(
            "(float[2,1,16,16] x, float[2,2,16,16] i, float[2,2,1,1] g) => (float[2,2,16,16] y, float[2,2,16,16] z)",
            &format!("{W}, {NORM}"),
            &format!("r = Conv(x, w) {Y} m = Mul(r, g) z = Add(i, m)"),
        );
        let planning =
            |version| Planning { target: Target::OrtCpu, onnxruntime: Some(version), ..Planning::default() };
        let safety = |version| {
            let options = Options { planning: planning(version), ..Options::default() };
            optimize(PASS, &text, options).1.safety
        };
        assert_eq!((safety((1, 26)), safety((1, 27))), (None, Some(Safety::Approximates)));
    }

    #[test]
    fn linear_readers_of_the_layer_read_the_normalized_result_instead() {
        let reread = |weights: &str, body: &str, new_weights: &str, after: &str| {
            check_for(
                Target::OrtCpu,
                PASS,
                &model(TWO, &format!("{W}, {weights}{NORM}"), &format!("r = Conv(x, w) {Y} {body}")),
                &model(
                    TWO,
                    &format!("float[2,1,1,1] w = {{6.0, -2.0}}, float[2] b = {{-1.0, 4.0}}, {new_weights}"),
                    &format!("y = Conv(x, w, b) {after}"),
                ),
            );
        };
        // r = y/2 + 1/2 and r = -2y + 8.
        reread(
            "float s = {10.0}, ",
            "m = Mul(r, s) z = Add(i, m)",
            "float[2,1,1] s = {5.0, -20.0}, float[2,1,1] c = {5.0, 80.0}",
            "m = Mul(y, s) n = Add(m, c) z = Add(i, n)",
        );
        reread(
            "",
            "z = Sub(i, r)",
            "float[2,1,1] s = {0.5, -2.0}, float[2,1,1] c = {0.5, 8.0}",
            "m = Mul(y, s) n = Add(m, c) z = Sub(i, n)",
        );
        reread(
            "float[2,2,1,1] v = {1.0, 2.0, 3.0, 4.0}, float[2] d = {100.0, 200.0}, ",
            "z = Conv(r, v, d)",
            "float[2,2,1,1] v = {0.5, -4.0, 1.5, -8.0}, float[2] d = {116.5, 233.5}",
            "z = Conv(y, v, d)",
        );
        reread(
            "float[2,1,1,1] v = {1.0, 2.0}, ",
            "z = Conv<group = 2>(r, v)",
            "float[2,1,1,1] v = {0.5, -4.0}, float[2] d = {0.5, 16.0}",
            "z = Conv<group = 2>(y, v, d)",
        );
    }

    #[test]
    fn readers_that_are_no_steps_of_a_combination_are_named() {
        let refused = |norm: &str, weights: &str, body: &str| {
            let weights = format!("{W}, {weights}{norm}");
            left_alone_for(Target::OrtCpu, PASS, &model(TWO, &weights, &format!("r = Conv(x, w) {Y} {body}")))
        };
        let other = |who: &str| vec![format!("BatchNormalization of 'y': {who}")];
        assert_eq!(refused(NORM, "", "z = Tanh(r)"), other("Tanh of 'z' reads 'r' as well"));
        assert_eq!(
            refused(NORM, "float s = {2.0}, ", "m = Mul(r, s) z = Tanh(m)"),
            other("Mul of 'm' reads 'r' as well")
        );
        assert_eq!(
            refused(
                NORM,
                "float[2,2,1,1] v = {1.0, 2.0, 3.0, 4.0}, ",
                "z = Conv<pads = [0,0,0,0], auto_pad = \"SAME_UPPER\">(r, v)"
            ),
            other("Conv of 'z' reads it as well, and pads it")
        );
        let lost = other("a channel of 'r' cannot be had back from its normalization");
        let sum = "z = Add(r, i)";
        assert_eq!(refused(&NORM.replace("4.0, -0.5", "0.0, -0.5"), "", sum), lost);
        assert_eq!(refused(&NORM.replace("1.0, 3.0", "300.0, 3.0"), "", sum), lost);
    }
}
