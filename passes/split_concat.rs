//! Sum over the parts of a concatenation instead of concatenating them.
//!
//! A Concat along the channels that only layers read, directly or through operators that treat each channel by itself,
//! need not exist, and neither need its normalized and activated copies (`channels/mod.rs` has the algebra):
//! ```text
//! Conv(f(Concat(x, z)), W, B)   ~  Conv(f(x), W[:, x], B) + Conv(f(z), W[:, z])    also ConvTranspose, Gemm, MatMul
//! ```
//! Several layers that read one Concat are split together, or none is. A Concat of a Concat is taken as one, and a Concat
//! among the readers gets the parts in place of the whole. Parts are added up in the order in which they are computed. A
//! first step joins neighbouring parts so that two are left, further ones four, eight, up to all: fewer and larger layers
//! are faster. It is done where it brings the predicted peak of the whole graph down.
//!
//! Class: rounding differs (another order of additions). A sum over some channels can overflow where that over all does
//! not, next to the largest number of the type; NaN and infinity come out as before otherwise.
//! Left alone: float16 and bfloat16, which would round each sum; weights that something else reads.
//!
//! ```onnx
//! f (float[1,8,16,16] x) => (float[1,4,16,16] y)
//! <float[16,8,1,1] u, float[16,16,1,1] v, float[32] gamma, float[32] beta, float[32] mean, float[32] var, float[4,32,1,1] w, float[4] b> {
//!   p = Conv(x, u)
//!   q = Conv(p, v)
//!   c = Concat<axis = 1>(q, p)
//!   n = BatchNormalization(c, gamma, beta, mean, var)
//!   r = Relu(n)
//!   y = Conv(r, w, b)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,8,16,16] x) => (float[1,4,16,16] y)
//! <
//!   float[16,8,1,1] u,
//!   float[16,16,1,1] v,
//!   float[4] b,
//!   float[16] gamma_0,
//!   float[16] beta_0,
//!   float[16] mean_0,
//!   float[16] var_0,
//!   float[4,16,1,1] w_0,
//!   float[16] gamma_1,
//!   float[16] beta_1,
//!   float[16] mean_1,
//!   float[16] var_1,
//!   float[4,16,1,1] w_1
//! >
//! {
//!   p = Conv(x, u)
//!   n_0 = BatchNormalization(p, gamma_0, beta_0, mean_0, var_0)
//!   r_0 = Relu(n_0)
//!   y_part_0 = Conv(r_0, w_0, b)
//!   q = Conv(p, v)
//!   n_1 = BatchNormalization(q, gamma_1, beta_1, mean_1, var_1)
//!   r_1 = Relu(n_1)
//!   y_part_1 = Conv(r_1, w_1)
//!   y = Add(y_part_1, y_part_0)
//! }
//! ```
//!
//! refused: something else reads the concatenated tensor
//! ```onnx
//! f (float[1,8,16,16] x) => (float[1,4,16,16] y, float[1,16,16,16] c)
//! <float[8,8,1,1] u, float[4,16,3,3] w> {
//!   p = Conv(x, u)
//!   c = Concat<axis = 1>(p, x)
//!   y = Conv<pads = [1, 1, 1, 1]>(c, w)
//! }
//! ```

use std::ops::Range;

use dmopt_ir::{Graph, Op, OpId, Patch, Rewriter, Safety};

use crate::channels::{self, Region, Site, sites};
use crate::{Context, Miss, Offer, Pass, Planning, Stage};

/// See the header of this file.
pub struct SplitConcat;

impl Pass for SplitConcat {
    fn name(&self) -> &'static str {
        "split-concat"
    }

    fn source(&self) -> &'static str {
        include_str!("split_concat.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Offering
    }

    fn run(&self, _rewriter: &mut Rewriter<'_>, _context: &mut Context<'_>) {}

    fn offers(&self, graph: &Graph, _planning: &Planning) -> Vec<Offer> {
        channels::offers(graph, found(graph), levels)
    }

    fn take(&self, graph: &Graph, _planning: &Planning, offer: &Offer, level: usize) -> Result<Patch, Miss> {
        let region = channels::region_of(graph, offer)?;
        region.in_parts(&parts(&region, level)?)
    }
}

fn found(graph: &Graph) -> impl Iterator<Item = Site<'_>> {
    sites(graph, |op: &Op, _: OpId| op.is("Concat"), |_| true)
}

/// Steps from two parts to all that there are.
fn levels(region: &Region<'_>) -> usize {
    let parts = region.borders().len().saturating_sub(1);
    parts.next_power_of_two().ilog2().max(1) as usize
}

/// The channels of the parts, two at level 0 and twice as many at each further one, those first that are computed first.
fn parts(region: &Region<'_>, level: usize) -> Result<Vec<Range<u64>>, Miss> {
    let borders = region.borders();
    let all = borders.len().saturating_sub(1);
    if all < 2 {
        return Err(Miss::refused(
            "parts of the Concat lie across groups of channels, or across those of another",
        ));
    }
    let count = u32::try_from(level + 1).ok().and_then(|n| 2usize.checked_pow(n)).map_or(all, |n| n.min(all));
    let mut at = 0;
    let mut chosen = vec![0];
    for part in 1..count {
        let ideal = region.channels * part as u64 / count as u64;
        // As near as possible to parts of equal width, and one border left for each part to come.
        let choice = at + 1..=all - (count - part);
        at = choice.min_by_key(|&i| borders[i].abs_diff(ideal)).unwrap_or(at + 1);
        chosen.push(borders[at]);
    }
    chosen.push(region.channels);
    let mut parts: Vec<Range<u64>> = chosen.windows(2).map(|w| w[0]..w[1]).collect();
    parts.sort_by_cached_key(|part| region.ready_at(part));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::SplitConcat;
    use crate::Miss;
    use crate::testing::{refuses, take, takes};

    #[test]
    fn a_skip_that_is_there_first_is_added_up_first() {
        takes(
            &SplitConcat,
            "f (float[1,2,4,4] x) => (float[1,1,4,4] y)
             <float[1,3,1,1] w = {1, 2, 3}, float[1] b = {4}, float[1,2,1,1] u = {5, 6}> {
                up = Conv(x, u)  c = Concat<axis = 1>(up, x)  y = Conv(c, w, b)
             }",
            0,
            "f (float[1,2,4,4] x) => (float[1,1,4,4] y)
             <float[1,2,1,1] w0 = {2, 3}, float[1,1,1,1] w1 = {1}, float[1] b = {4}, float[1,2,1,1] u = {5, 6}> {
                up = Conv(x, u)  s = Conv(x, w0, b)  t = Conv(up, w1)  y = Add(t, s)
             }",
        );
    }

    #[test]
    fn what_treats_each_channel_by_itself_is_done_to_the_parts() {
        takes(
            &SplitConcat,
            "f (float[1,2,4,4] x, float[1,1,4,4] z) => (float[1,1,2,2] y)
             <float[1,3,1,1] w = {1, 2, 3}, float[3] g = {1, 2, 3}, float[3] h = {4, 5, 6}, float[3] m = {7, 8, 9},
              float[3] v = {10, 11, 12}, float[3,1,1,1] d = {13, 14, 15}, float[3,1,1] s = {16, 17, 18}, float t = {2}> {
                c = Concat<axis = -3>(x, z)  n = BatchNormalization(c, g, h, m, v)  e = Conv<group = 3>(n, d)
                k = Mul(s, e)  l = Pow(k, t)  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(l)  y = Conv(p, w)
             }",
            0,
            "f (float[1,2,4,4] x, float[1,1,4,4] z) => (float[1,1,2,2] y)
             <float[1,2,1,1] w0 = {1, 2}, float[2] g0 = {1, 2}, float[2] h0 = {4, 5}, float[2] m0 = {7, 8},
              float[2] v0 = {10, 11}, float[2,1,1,1] d0 = {13, 14}, float[2,1,1] s0 = {16, 17},
              float[1,1,1,1] w1 = {3}, float[1] g1 = {3}, float[1] h1 = {6}, float[1] m1 = {9},
              float[1] v1 = {12}, float[1,1,1,1] d1 = {15}, float[1,1,1] s1 = {18}, float t = {2}> {
                n0 = BatchNormalization(x, g0, h0, m0, v0)  e0 = Conv<group = 2>(n0, d0)  k0 = Mul(s0, e0)
                l0 = Pow(k0, t)  p0 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(l0)  y0 = Conv(p0, w0)
                n1 = BatchNormalization(z, g1, h1, m1, v1)  e1 = Conv<group = 1>(n1, d1)  k1 = Mul(s1, e1)
                l1 = Pow(k1, t)  p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(l1)  y1 = Conv(p1, w1)
                y = Add(y1, y0)
             }",
        );
    }

    const FOUR: &str =
        "f (float[1,1,2] a, float[1,1,2] b, float[1,1,2] c, float[1,1,2] d) => (float[1,1,2] y)";

    #[test]
    fn neighbours_stay_together_at_first() {
        let before = format!(
            "{FOUR} <float[1,4,1] w = {{1, 2, 3, 4}}> {{ t = Concat<axis = 1>(a, b, c, d)  y = Conv(t, w) }}"
        );
        takes(
            &SplitConcat,
            &before,
            0,
            &format!(
                "{FOUR} <float[1,2,1] v = {{1, 2}}, float[1,2,1] w = {{3, 4}}> {{
                   p = Concat<axis = 1>(a, b)  s = Conv(p, v)  q = Concat<axis = 1>(c, d)  t = Conv(q, w)  y = Add(t, s)
                }}"
            ),
        );
        takes(
            &SplitConcat,
            &before,
            1,
            &format!(
                "{FOUR} <float[1,1,1] i = {{1}}, float[1,1,1] j = {{2}}, float[1,1,1] k = {{3}}, float[1,1,1] l = {{4}}> {{
                   r0 = Conv(a, i)  r1 = Conv(b, j)  s1 = Add(r1, r0)  r2 = Conv(c, k)  s2 = Add(r2, s1)
                   r3 = Conv(d, l)  y = Add(r3, s2)
                }}"
            ),
        );
    }

    #[test]
    fn all_readers_are_split_and_a_concat_among_them_gets_the_parts() {
        takes(
            &SplitConcat,
            "f (float[1,1,2] a, float[1,1,2] b) => (float[1,1,2] y, float[1,1,2] z, float[1,3,2] q)
             <float[1,2,1] v = {1, 2}, float[1,2,1] w = {3, 4}> {
                t = Concat<axis = 1>(a, b)  r = Relu(t)  y = Conv(t, v)  z = Conv(r, w)
                p = MaxPool<kernel_shape = [1]>(r)  q = Concat<axis = 1>(a, p)
             }",
            0,
            "f (float[1,1,2] a, float[1,1,2] b) => (float[1,1,2] y, float[1,1,2] z, float[1,3,2] q)
             <float[1,1,1] v0 = {1}, float[1,1,1] v1 = {2}, float[1,1,1] w0 = {3}, float[1,1,1] w1 = {4}> {
                y0 = Conv(a, v0)  r0 = Relu(a)  z0 = Conv(r0, w0)  p0 = MaxPool<kernel_shape = [1]>(r0)
                y1 = Conv(b, v1)  y = Add(y1, y0)  r1 = Relu(b)  z1 = Conv(r1, w1)  z = Add(z1, z0)
                p1 = MaxPool<kernel_shape = [1]>(r1)  q = Concat<axis = 1>(a, p0, p1)
             }",
        );
    }

    #[test]
    fn matrices_are_split_along_their_last_axis_and_take_the_sum_so_far() {
        takes(
            &SplitConcat,
            "f (float[2,1] a, float[2,2] b) => (float[2,1] y)
             <float[1,3] w = {1, 2, 3}, float[1] c = {4}> { t = Concat<axis = 1>(a, b)  y = Gemm<transB = 1, beta = 0.5>(t, w, c) }",
            0,
            "f (float[2,1] a, float[2,2] b) => (float[2,1] y)
             <float[1,1] v = {1}, float[1,2] w = {2, 3}, float[1] c = {4}> {
                s = Gemm<transB = 1, beta = 0.5>(a, v, c)  y = Gemm<transB = 1, beta = 1.0>(b, w, s)
             }",
        );
        takes(
            &SplitConcat,
            "f (float[2,5,1] a, float[2,5,2] b) => (float[2,5,1] y)
             <float[3,1] w = {1, 2, 3}> { t = Concat<axis = 2>(a, b)  y = MatMul(t, w) }",
            0,
            "f (float[2,5,1] a, float[2,5,2] b) => (float[2,5,1] y)
             <float[1,1] v = {1}, float[2,1] w = {2, 3}> { s = MatMul(a, v)  r = MatMul(b, w)  y = Add(r, s) }",
        );
    }

    #[test]
    fn a_concat_of_a_concat_is_one() {
        takes(
            &SplitConcat,
            "f (float[1,1,2] a, float[1,1,2] b, float[1,2,2] c) => (float[1,1,2] y) <float[1,4,1] w = {1, 2, 3, 4}> {
                s = Concat<axis = 1>(a, b)  t = Concat<axis = 1>(s, c)  y = Conv(t, w) }",
            1,
            "f (float[1,1,2] a, float[1,1,2] b, float[1,2,2] c) => (float[1,1,2] y)
             <float[1,1,1] u = {1}, float[1,1,1] v = {2}, float[1,2,1] w = {3, 4}> {
                p = Conv(a, u)  q = Conv(b, v)  s = Add(q, p)  r = Conv(c, w)  y = Add(r, s) }",
        );
    }

    #[test]
    fn groups_that_lie_within_parts_are_split_and_others_are_refused() {
        let text = |groups: u32| {
            format!(
                "f (float[1,2,2] a, float[1,4,2] b) => (float[1,1,2] y) <float[6,{},1] g, float[1,6,1] w> {{
                   t = Concat<axis = 1>(a, b)  h = Conv<group = {groups}>(t, g)  y = Conv(h, w) }}",
                6 / groups
            )
        };
        let filled = |text: String| {
            text.replace("float[6,2,1] g", "float[6,2,1] g = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}")
                .replace(
                    "float[6,3,1] g",
                    "float[6,3,1] g = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}",
                )
                .replace("float[1,6,1] w", "float[1,6,1] w = {1, 2, 3, 4, 5, 6}")
        };
        let model = take(&SplitConcat, &filled(text(3)), 0).unwrap();
        let groups: Vec<i64> = model.graph.ops().filter_map(|op| model.graph.op(op).int("group")).collect();
        assert_eq!(groups, [1, 2]);
        assert_eq!(
            refuses(&SplitConcat, &filled(text(2))),
            "parts of the Concat lie across groups of channels, or across those of another"
        );
    }

    #[test]
    fn what_needs_the_whole_is_refused_with_its_reason() {
        let refused = |outputs: &str, more: &str| {
            refuses(
                &SplitConcat,
                &format!(
                    "f (float[1,1,2] a, float[1,1,2] b) => (float[1,1,2] y{outputs})
                     <float[1,2,1] w = {{1, 2}}, float[1,2,1] v = {{1, 2}}> {{
                        t = Concat<axis = 1>(a, b)  y = Conv(t, w)  {more} }}"
                ),
            )
        };
        assert_eq!(refused(", float[1,2,2] t", ""), "'t' is an output");
        assert_eq!(refused(", float[1,2,2] z", "z = Softmax<axis = 1>(t)"), "Softmax of 'z' mixes channels");
        assert_eq!(refused(", float[1,2,2] r", "r = Relu(t)"), "'r' is an output");
        assert_eq!(refused(", float[1,1,2] z", "z = Conv(t, w)"), "the weights 'w' have other readers");
        assert_eq!(
            refused(", float[1,1,2] z", "u = Add(t, s)  z = Conv(u, v)  s = Sigmoid(y)"),
            "what is computed of all channels is read with each of them again"
        );
    }

    #[test]
    fn nothing_is_offered_where_no_layer_sums_over_the_channels() {
        let text = "f (float[1,1,2] a, float[1,1,2] b) => (float[1,2,2] y) { t = Concat<axis = 1>(a, b)  y = Relu(t) }";
        assert_eq!(take(&SplitConcat, text, 0).err(), Some(Miss::NoMatch));
        let half =
            "f (float16[1,1,2] a, float16[1,1,2] b) => (float16[1,1,2] y) <float16[1,2,1] w = {1, 2}> {
            t = Concat<axis = 1>(a, b)  y = Conv(t, w) }";
        assert_eq!(take(&SplitConcat, half, 0).err(), Some(Miss::NoMatch));
    }

    #[test]
    fn operators_get_names_that_no_other_has() {
        let text = "f (float[1,1,2] a, float[1,1,2] b) => (float[1,1,2] y) <float[1,2,1] w = {1, 2}> {
            [n] t = Concat<axis = 1>(a, b)  [n_0] r = Relu(t)  [n_sum_1] s = Sigmoid(r)  [n_1] y = Conv(s, w) }";
        let model = take(&SplitConcat, text, 0).unwrap();
        let mut names: Vec<&str> = model.graph.ops().map(|op| model.graph.op(op).name.as_str()).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!((names.len(), before), (before, 7));
    }
}
