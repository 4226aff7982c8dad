//! Take a scale and a shift per channel into the layer before them.
//!
//! A layer (Conv, ConvTranspose, Gemm, MatMul of matrices, InstanceNormalization, GroupNormalization) with constant weights
//! that only a Mul, Div, Add or Sub with a constant reads becomes one layer, and a tensor less exists:
//! ```text
//! s * Conv(p, W, B) + c     ~  Conv(p, s*W, s*B + c)        s, c: a number, or one for each channel
//! c - Conv(p, W, B)         ~  Conv(p, -W, c - B)
//! Conv(p, W, B) / s         ~  Conv(p, W/s, B/s)            every 1/s an ordinary number
//! A W + c                   ~  Gemm(A, W, c)                matrices
//! s * InstanceNormalization(p, W, B) + c  ~  InstanceNormalization(p, s*W, s*B + c)      and so on
//! ```
//! Class: rounding differs (merged constants). Where the scale is 0, NaN and infinity in p are no longer hidden or
//! shown in the same places: `0 * (x with NaN)` was NaN, as it is with W = 0, but an overflow before the scale is gone.
//! Left alone: weights that another layer shares (a scaled copy would be larger than what is saved, but for the few of a
//! normalization), float16 weights (they would lose digits; a shift goes into the bias all the same).
//!
//! ```onnx
//! f (float[1,3,4,4] x) => (float[1,2,4,4] z) <float[2,3,1,1] w, float[2] b, float[2,1,1] s, float[1,2,1,1] t> {
//!   c = Conv(x, w, b)
//!   m = Mul(s, c)
//!   z = Sub(m, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,3,4,4] x) => (float[1,2,4,4] z) <float[2,3,1,1] w, float[2] b> {
//!   z = Conv(x, w, b)
//! }
//! ```
//!
//! refused: the weights have other readers
//! ```onnx
//! f (float[1,2,4,4] x) => (float[1,2,4,4] z) <float[2,2,1,1] w, float s = {0.5}> {
//!   c = Conv(x, w)
//!   m = Mul(c, s)
//!   r = Relu(m)
//!   z = Conv(r, w)
//! }
//! ```

use dmopt_ir::{Graph, OpId, Patch, Rewriter, Safety};

use crate::affine::{Layer, elementwise};
use crate::{Context, Miss, Pass, Rule};

/// See the header of this file.
pub struct FuseLayerAffine;

impl Pass for FuseLayerAffine {
    fn name(&self) -> &'static str {
        "fuse-layer-affine"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_layer_affine.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        context.apply_rule(self, rewriter);
    }
}

impl Rule for FuseLayerAffine {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        let (x, affine) = elementwise(graph, op).ok_or(Miss::NoMatch)?;
        if graph.readers(x) != 1 {
            return Err(Miss::NoMatch);
        }
        let layer = Layer::of(graph, x)?;
        let result = graph.op(op).output(0).ok_or(Miss::NoMatch)?;
        let mut patch = Patch::new(Safety::Reassociates);
        let new = layer.absorb(&affine, &mut patch)?;
        patch.replace_uses(result, new);
        Ok(patch)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, left_alone};

    const PASS: &str = "fuse-layer-affine";

    fn model(interface: &str, weights: &str, body: &str) -> String {
        format!("<ir_version: 10, opset_import: [\"\": 21]> f {interface} <{weights}> {{ {body} }}")
    }

    /// What stands behind a convolution with weights 1, 2 and bias 4, 6 leaves one with these weights and bias.
    fn absorbed(constants: &str, body: &str, weights: &str, bias: &str) {
        let interface = "(float[1,1,2,2] x) => (float[1,2,2,2] z)";
        let before = format!("float[2,1,1,1] w = {{1.0, 2.0}}, float[2] b = {{4.0, 6.0}}, {constants}");
        let after = format!("float[2,1,1,1] w = {{{weights}}}, float[2] b = {{{bias}}}");
        check(
            PASS,
            &model(interface, &before, &format!("c = Conv(x, w, b) {body}")),
            &model(interface, &after, "z = Conv(x, w, b)"),
        );
    }

    #[test]
    fn every_operator_with_a_constant_is_taken_in() {
        absorbed("float[2,1,1] s = {2.0, 3.0}", "z = Mul(s, c)", "2.0, 6.0", "8.0, 18.0");
        absorbed("float s = {2.0}", "z = Div(c, s)", "0.5, 1.0", "2.0, 3.0");
        absorbed("float[1,2,1,1] s = {2.0, 3.0}", "z = Add(c, s)", "1.0, 2.0", "6.0, 9.0");
        absorbed("float[1] s = {2.0}", "z = Sub(c, s)", "1.0, 2.0", "2.0, 4.0");
        absorbed("float[1] s = {2.0}", "z = Sub(s, c)", "-1.0, -2.0", "-2.0, -4.0");
        absorbed("float s = {2.0}, float t = {1.0}", "m = Mul(c, s) z = Add(m, t)", "2.0, 4.0", "9.0, 13.0");
    }

    #[test]
    fn a_matrix_product_with_a_bias_becomes_a_gemm() {
        let interface = "(float[3,2] x) => (float[3,2] z)";
        let weights = "float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {5.0, 6.0}";
        check(
            PASS,
            &model(interface, weights, "c = MatMul(x, w) z = Add(c, b)"),
            &model(interface, weights, "z = Gemm(x, w, b)"),
        );
    }

    #[test]
    fn a_normalization_takes_scale_and_shift_even_if_others_share_its_weights() {
        let interface = "(float[1,2,3,3] x) => (float[1,2,3,3] z)";
        let before = "float[2] w = {1.0, 2.0}, float[2] b = {4.0, 6.0}, float[2,1,1] s = {2.0, 3.0}";
        let after = "float[2] w = {1.0, 2.0}, float[2] b = {4.0, 6.0}, \
                     float[2] v = {2.0, 6.0}, float[2] c = {9.0, 19.0}";
        for norm in ["InstanceNormalization", "GroupNormalization<num_groups = 2>"] {
            let text = |second: &str| format!("n = {norm}(x, w, b) r = Relu(n) {second}");
            check(
                PASS,
                &model(
                    interface,
                    &format!("{before}, float t = {{1.0}}"),
                    &text(&format!("c = {norm}(r, w, b) m = Mul(c, s) z = Add(m, t)")),
                ),
                &model(interface, after, &text(&format!("z = {norm}(r, v, c)"))),
            );
        }
    }

    #[test]
    fn a_group_normalization_with_weights_of_groups_stays() {
        let text = model(
            "(float[1,4,3,3] x) => (float[1,4,3,3] z)",
            "float[2] w = {1.0, 2.0}, float[2] b = {4.0, 6.0}, float[4,1,1] s = {2.0, 3.0, 4.0, 5.0}",
            "c = GroupNormalization<num_groups = 2>(x, w, b) z = Mul(c, s)",
        );
        let text = text.replace("\"\": 21", "\"\": 18");
        assert!(left_alone(PASS, &text).is_empty());
    }

    #[test]
    fn each_run_of_weights_is_scaled_by_its_own_channel() {
        let case = |interface: &str, layer: &str, before: &str, scale: &str, after: &str| {
            let (layer, scaled) = (format!("c = {layer} z = Mul(c, s)"), format!("z = {layer}"));
            let text = model(interface, &format!("{before}, {scale} = {{1, 10, 100, 1000}}"), &layer);
            check(PASS, &text, &model(interface, after, &scaled));
        };
        case(
            "(float[1,4,5] x) => (float[1,4,7] z)",
            "ConvTranspose<group = 2>(x, w)",
            "float[4,2,3] w = {1,1,1,1,1,1, 2,2,2,2,2,2, 3,3,3,3,3,3, 4,4,4,4,4,4}",
            "float[4,1] s",
            "float[4,2,3] w = {1,1,1,10,10,10, 2,2,2,20,20,20, 300,300,300,3000,3000,3000, 400,400,400,4000,4000,4000}",
        );
        case(
            "(float[2,2] x) => (float[2,4] z)",
            "Gemm<transB = 1>(x, w)",
            "float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}",
            "float[4] s",
            "float[4,2] w = {1, 2, 30, 40, 500, 600, 7000, 8000}",
        );
        case(
            "(float[3,2] x) => (float[3,4] z)",
            "Gemm(x, w)",
            "float[2,4] w = {1, 2, 3, 4, 5, 6, 7, 8}",
            "float[4] s",
            "float[2,4] w = {1, 20, 300, 4000, 5, 60, 700, 8000}",
        );
    }

    #[test]
    fn what_varies_within_a_channel_stays() {
        let interface = "(float[1,1,2,2] x) => (float[1,2,2,2] z)";
        for constant in ["float[2] s = {2.0, 3.0}", "float[2,1] s = {2.0, 3.0}", "float[2,2,2] s"] {
            let weights = format!("float[2,1,1,1] w = {{1.0, 2.0}}, {constant}");
            let weights = weights
                .replace("float[2,2,2] s", "float[2,2,2] s = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}");
            assert!(left_alone(PASS, &model(interface, &weights, "c = Conv(x, w) z = Mul(c, s)")).is_empty());
        }
    }

    #[test]
    fn batched_products_of_matrices_have_no_channels_on_axis_1() {
        let text = model(
            "(float[3,2,2] x) => (float[3,2,2] z)",
            "float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2,1] b = {5.0, 6.0}",
            "c = MatMul(x, w) z = Add(c, b)",
        );
        assert!(left_alone(PASS, &text).is_empty());
    }

    #[test]
    fn a_result_that_something_else_reads_stays() {
        let text = model(
            "(float[1,1,2,2] x) => (float[1,2,2,2] z, float[1,2,2,2] y)",
            "float[2,1,1,1] w = {1.0, 2.0}, float s = {2.0}",
            "c = Conv(x, w) z = Mul(c, s) y = Relu(c)",
        );
        assert!(left_alone(PASS, &text).is_empty());
    }

    #[test]
    fn weights_that_do_not_fit_are_refused_with_the_reason() {
        let interface = |dtype: &str| format!("({dtype}[1,1,2,2] x) => ({dtype}[1,2,2,2] z)");
        let refused = |dtype: &str, weights: &str, scale: &str| {
            let constants = format!("{dtype}[2,1,1,1] w = {{{weights}}}, {dtype} s = {{{scale}}}");
            left_alone(PASS, &model(&interface(dtype), &constants, "c = Conv(x, w) z = Mul(c, s)"))
        };
        let unfit = ["Mul of 'z': a scaled weight does not fit its type"];
        assert_eq!(refused("float", "1e38, 1.0", "10.0"), unfit);
        assert_eq!(refused("float", "1e-30, 1.0", "1e-20"), unfit);
        assert_eq!(
            refused("float16", "1.0, 2.0", "2.0"),
            ["Mul of 'z': its float16 weights would lose digits"]
        );
    }

    #[test]
    fn shared_weights_take_a_shift_but_no_scale() {
        let interface = "(float[1,2,2,2] x) => (float[1,2,2,2] z)";
        let weights = "float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[2] b = {5.0, 6.0}";
        check(
            PASS,
            &model(
                interface,
                "float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[2,1,1] t = {5.0, 6.0}",
                "c = Conv(x, w) a = Add(c, t) r = Relu(a) z = Conv(r, w)",
            ),
            &model(interface, weights, "a = Conv(x, w, b) r = Relu(a) z = Conv(r, w)"),
        );
    }
}
