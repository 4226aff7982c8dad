//! Compute what lies between two layers in slices of its channels, each added to the result as soon as it is there.
//!
//! Blocks that expand, treat each channel by itself and project again (MobileNet, EfficientNet without squeeze and
//! excitation, ConvNeXt and the MLPs of transformers) have their largest tensors inside. In K slices of the hidden
//! channels, no more than one slice of them exists at a time (`channels/mod.rs` has the algebra):
//! ```text
//! Conv(f(Conv(x, W, B)), V, C)  ~  Conv(f(Conv(x, W[1], B[1])), V[:, 1], C) + Conv(f(Conv(x, W[2], B[2])), V[:, 2]) + ..
//! ```
//! likewise for ConvTranspose, Gemm and MatMul, for several layers that make the hidden channels (gated MLPs), and for
//! several that read them. A residual that is added to the result is the first summand. Multiplications stay as many as
//! they were; K is about 2, 4, 8, 16 or 32, up to slices of four channels, and as small as brings the predicted peak of the
//! whole graph down. Slices of more than four channels are whole blocks of eight, where all of them can be.
//! `--split-hidden K` takes K slices of about equal width everywhere instead, or as many as there can be.
//!
//! Class: rounding differs (another order of additions). A sum over some channels can overflow where that over all does
//! not, next to the largest number of the type; NaN and infinity come out as before otherwise.
//! Left alone: float16 and bfloat16, which would round each sum; weights that something else reads; hidden channels that
//! something reads as a whole, as squeeze and excitation does; slices.
//!
//! ```onnx
//! f (float[1,4,16,16] x) => (float[1,4,16,16] y)
//! <float[16,4,1,1] e, float[16,1,3,3] d, float[4,16,1,1] p, float[4] pb, float low = {0.0}, float high = {6.0}> {
//!   h = Conv(x, e)
//!   a = Clip(h, low, high)
//!   g = Conv<group = 16, pads = [1, 1, 1, 1]>(a, d)
//!   c = Clip(g, low, high)
//!   r = Conv(c, p, pb)
//!   y = Add(x, r)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,4,16,16] x) => (float[1,4,16,16] y)
//! <
//!   float[4] pb,
//!   float low = {0.0},
//!   float high = {6.0},
//!   float[4,4,1,1] e_0,
//!   float[4,1,3,3] d_0,
//!   float[4,4,1,1] p_0,
//!   float[4,4,1,1] e_1,
//!   float[4,1,3,3] d_1,
//!   float[4,4,1,1] p_1,
//!   float[4,4,1,1] e_2,
//!   float[4,1,3,3] d_2,
//!   float[4,4,1,1] p_2,
//!   float[4,4,1,1] e_3,
//!   float[4,1,3,3] d_3,
//!   float[4,4,1,1] p_3
//! >
//! {
//!   h_0 = Conv(x, e_0)
//!   a_0 = Clip(h_0, low, high)
//!   g_0 = Conv<pads = [1, 1, 1, 1], group = 4>(a_0, d_0)
//!   c_0 = Clip(g_0, low, high)
//!   r_part_0 = Conv(c_0, p_0, pb)
//!   r_sum_0 = Add(r_part_0, x)
//!   h_1 = Conv(x, e_1)
//!   a_1 = Clip(h_1, low, high)
//!   g_1 = Conv<pads = [1, 1, 1, 1], group = 4>(a_1, d_1)
//!   c_1 = Clip(g_1, low, high)
//!   r_part_1 = Conv(c_1, p_1)
//!   r_sum_1 = Add(r_part_1, r_sum_0)
//!   h_2 = Conv(x, e_2)
//!   a_2 = Clip(h_2, low, high)
//!   g_2 = Conv<pads = [1, 1, 1, 1], group = 4>(a_2, d_2)
//!   c_2 = Clip(g_2, low, high)
//!   r_part_2 = Conv(c_2, p_2)
//!   r_sum_2 = Add(r_part_2, r_sum_1)
//!   h_3 = Conv(x, e_3)
//!   a_3 = Clip(h_3, low, high)
//!   g_3 = Conv<pads = [1, 1, 1, 1], group = 4>(a_3, d_3)
//!   c_3 = Clip(g_3, low, high)
//!   r_part_3 = Conv(c_3, p_3)
//!   y = Add(r_part_3, r_sum_2)
//! }
//! ```
//!
//! refused: a gate is computed of all hidden channels
//! ```onnx
//! f (float[1,4,16,16] x) => (float[1,4,16,16] y)
//! <float[16,4,1,1] e, float[4,16,1,1] s, float[16,4,1,1] t, float[4,16,1,1] p> {
//!   h = Conv(x, e)
//!   m = GlobalAveragePool(h)
//!   i = Conv(m, s)
//!   j = Relu(i)
//!   k = Conv(j, t)
//!   g = Sigmoid(k)
//!   a = Mul(h, g)
//!   y = Conv(a, p)
//! }
//! ```

use std::ops::Range;

use dmopt_ir::{Graph, Op, OpId, Patch, Rewriter, Safety};

use crate::channels::{self, Layer, Region, Site, sites};
use crate::{Context, Miss, Offer, Pass, Planning, Stage};

/// See the header of this file.
pub struct SplitHidden;

/// Slices at each level, or fewer where they are whole blocks.
const COUNTS: [u64; 5] = [2, 4, 8, 16, 32];

/// Layers in the place of those that read the hidden channels: slices of slices would soon be too small to be fast.
const MOST_LAYERS: u64 = 32;

/// In a default session, ONNX Runtime computes convolutions in blocks of so many channels (twice as many where vectors of
/// the processor are twice as wide), and depthwise ones with other numbers of channels several times as slowly.
const BLOCK: u64 = 8;

/// Slices have at least so many channels, unless the caller says how many there are.
const LEAST: u64 = 4;

impl Pass for SplitHidden {
    fn name(&self) -> &'static str {
        "split-hidden"
    }

    fn source(&self) -> &'static str {
        include_str!("split_hidden.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Offering
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let Some(count) = context.planning.split_hidden.filter(|&count| count > 1) else { return };
        let mut tried = Vec::new();
        loop {
            let graph = rewriter.graph();
            let next = found(graph).find(|site| !tried.contains(&site.op));
            let Some(Site { op, region, .. }) = next else { return };
            tried.push(op);
            let proposal = region.and_then(|region| region.in_parts(&slices(&region, count)?));
            context.apply(op, proposal, rewriter);
        }
    }

    fn offers(&self, graph: &Graph, planning: &Planning) -> Vec<Offer> {
        if planning.split_hidden.is_some() {
            return Vec::new();
        }
        channels::offers(graph, found(graph), levels)
    }

    fn take(&self, graph: &Graph, _planning: &Planning, offer: &Offer, level: usize) -> Result<Patch, Miss> {
        let region = channels::region_of(graph, offer)?;
        match at_level(&region, level) {
            Some(slices) if is_wanted(&region) => region.in_parts(&slices),
            _ => Err(Miss::NoMatch),
        }
    }
}

/// Sites whose channels all come from layers, and are not slices of others.
fn found(graph: &Graph) -> impl Iterator<Item = Site<'_>> {
    let is_layer = |_: &Op, id: OpId| Layer::of(graph, id).is_some();
    sites(graph, is_layer, is_wanted)
}

fn is_wanted(region: &Region<'_>) -> bool {
    region.is_hidden() && !region.is_slice()
}

fn levels(region: &Region<'_>) -> usize {
    let most = region.most_parts().min(MOST_LAYERS / region.sinks.len() as u64) as usize;
    let mut before = 1;
    let is_finer = |&level: &usize| {
        let count = at_level(region, level).map_or(0, |slices| slices.len());
        count <= most && count > std::mem::replace(&mut before, count)
    };
    (0..COUNTS.len()).take_while(is_finer).count()
}

/// The channels in each slice at a level; `None` where slices would be too narrow.
fn at_level(region: &Region<'_>, level: usize) -> Option<Vec<Range<u64>>> {
    let count = *COUNTS.get(level)?;
    let (channels, grain) = (region.channels, region.grain);
    let block = grain * (BLOCK >> grain.trailing_zeros().min(BLOCK.trailing_zeros()));
    if block > grain && channels.is_multiple_of(block) && 2 * channels > count * BLOCK {
        let width = (channels / block).div_ceil(count) * block;
        let slices = 0..channels.div_ceil(width);
        return Some(slices.map(|slice| slice * width..channels.min((slice + 1) * width)).collect());
    }
    if channels < count * LEAST { None } else { slices(region, count).ok() }
}

/// The channels in this many slices of about equal width, or as many as there can be.
fn slices(region: &Region<'_>, count: u64) -> Result<Vec<Range<u64>>, Miss> {
    let groups = region.channels / region.grain;
    let count = count.min(region.most_parts());
    if count < 2 {
        return Err(Miss::NoEffect);
    }
    let channels = |groups: Range<u64>| groups.start * region.grain..groups.end * region.grain;
    Ok(channels::even_parts(groups, count).map(channels).collect())
}

#[cfg(test)]
mod tests {
    use super::SplitHidden;
    use crate::testing::{optimize, refusals, refuses, take, takes};
    use crate::{Miss, Options, Pass, Planning};

    #[test]
    fn a_block_is_computed_in_slices_that_are_added_to_its_residual() {
        takes(
            &SplitHidden,
            "f (float[1,1,3] x) => (float[1,1,3] y)
             <float[8,1,1] e = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] eb = {1, 2, 3, 4, 5, 6, 7, 8},
              float[8,1,1] d = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,8,1] p = {1, 2, 3, 4, 5, 6, 7, 8}, float[1] pb = {9}> {
                h = Conv(x, e, eb)  a = Relu(h)  g = Conv<group = 8>(a, d)  r = Conv(g, p, pb)  y = Add(x, r)
             }",
            0,
            "f (float[1,1,3] x) => (float[1,1,3] y)
             <float[4,1,1] e0 = {1, 2, 3, 4}, float[4] eb0 = {1, 2, 3, 4}, float[4,1,1] d0 = {1, 2, 3, 4},
              float[1,4,1] p0 = {1, 2, 3, 4}, float[1] pb = {9},
              float[4,1,1] e1 = {5, 6, 7, 8}, float[4] eb1 = {5, 6, 7, 8}, float[4,1,1] d1 = {5, 6, 7, 8},
              float[1,4,1] p1 = {5, 6, 7, 8}> {
                h0 = Conv(x, e0, eb0)  a0 = Relu(h0)  g0 = Conv<group = 4>(a0, d0)  r0 = Conv(g0, p0, pb)  s = Add(r0, x)
                h1 = Conv(x, e1, eb1)  a1 = Relu(h1)  g1 = Conv<group = 4>(a1, d1)  r1 = Conv(g1, p1)  y = Add(r1, s)
             }",
        );
    }

    #[test]
    fn gelu_in_pieces_and_a_gate_of_its_own_layer_go_with_their_slices() {
        takes(
            &SplitHidden,
            "f (float[2,3,1] x) => (float[2,3,1] y)
             <float[1,8] u = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,8] v = {1, 2, 3, 4, 5, 6, 7, 8},
              float[8] c = {1, 2, 3, 4, 5, 6, 7, 8}, float[8,1] w = {1, 2, 3, 4, 5, 6, 7, 8}, float root = {1.4}, float one = {1}> {
                m = MatMul(x, u)  h = Add(m, c)  q = Div(h, root)  e = Erf(q)  f = Add(e, one)  g = Mul(h, f)
                k = MatMul(x, v)  a = Mul(g, k)  y = MatMul(a, w)
             }",
            0,
            "f (float[2,3,1] x) => (float[2,3,1] y)
             <float[1,4] u0 = {1, 2, 3, 4}, float[4] c0 = {1, 2, 3, 4}, float[1,4] v0 = {1, 2, 3, 4}, float[4,1] w0 = {1, 2, 3, 4},
              float[1,4] u1 = {5, 6, 7, 8}, float[4] c1 = {5, 6, 7, 8}, float[1,4] v1 = {5, 6, 7, 8}, float[4,1] w1 = {5, 6, 7, 8},
              float root = {1.4}, float one = {1}> {
                m0 = MatMul(x, u0)  h0 = Add(m0, c0)  q0 = Div(h0, root)  e0 = Erf(q0)  f0 = Add(e0, one)  g0 = Mul(h0, f0)
                k0 = MatMul(x, v0)  a0 = Mul(g0, k0)  y0 = MatMul(a0, w0)
                m1 = MatMul(x, u1)  h1 = Add(m1, c1)  q1 = Div(h1, root)  e1 = Erf(q1)  f1 = Add(e1, one)  g1 = Mul(h1, f1)
                k1 = MatMul(x, v1)  a1 = Mul(g1, k1)  y1 = MatMul(a1, w1)  y = Add(y1, y0)
             }",
        );
    }

    #[test]
    fn several_layers_that_read_the_hidden_channels_are_summed_side_by_side() {
        let model = take(
            &SplitHidden,
            "f (float[1,1,3] x) => (float[1,1,3] y, float[1,1,3] z)
             <float[8,1,1] e = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,8,1] v = {1, 2, 3, 4, 5, 6, 7, 8},
              float[1,8,1] w = {1, 2, 3, 4, 5, 6, 7, 8}> { h = Conv(x, e)  a = Relu(h)  y = Conv(a, v)  z = Conv(a, w) }",
            0,
        );
        let model = model.unwrap();
        let count = |op_type| model.graph.ops().filter(|&op| model.graph.op(op).is(op_type)).count();
        assert_eq!((count("Conv"), count("Relu"), count("Add")), (6, 2, 2));
    }

    #[test]
    fn many_layers_that_read_the_hidden_channels_are_not_multiplied() {
        let levels = |readers: u64| {
            let numbers = (1..=64).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
            let of = |text: fn(u64) -> String| (0..readers).map(text).collect::<Vec<_>>();
            let outputs = of(|n| format!("float[1,1,3] y{n}")).join(", ");
            let weights =
                of(|n| format!("float[1,64,1] w{n} = {{NUMBERS}}")).join(", ").replace("NUMBERS", &numbers);
            let lines = of(|n| format!("y{n} = Conv(h, w{n})")).join(" ");
            let text = format!(
                "f (float[1,1,3] x) => ({outputs}) <float[64,1,1] e = {{{numbers}}}, {weights}> {{ h = Conv(x, e) {lines} }}"
            );
            let mut model = dmopt_ir::text::parse_model(&text).unwrap();
            dmopt_ir::infer::infer_graph(&mut model.graph);
            SplitHidden.offers(&model.graph, &Planning::default()).first().map(|offer| offer.levels)
        };
        assert_eq!([1, 2, 16, 17].map(levels), [Some(4), Some(4), Some(1), None]);
    }

    /// `count` slices of a block with 10 hidden channels, in groups of 2.
    fn forced(count: u64) -> (Vec<u64>, Vec<String>) {
        let options = Options {
            planning: Planning { split_hidden: Some(count), ..Planning::default() },
            ..Options::default()
        };
        let text = "f (float[1,1,3] x) => (float[1,1,3] y)
             <float[10,1,1] e = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
              float[10,2,1] d = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
              float[1,10,1] p = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}> {
                h = Conv(x, e)  g = Conv<group = 5>(h, d)  y = Conv(g, p) }";
        let (model, outcome) = optimize("split-hidden", text, options);
        let graph = &model.graph;
        let order = graph.order().unwrap();
        let grouped = order.iter().filter_map(|&op| graph.op(op).int("group"));
        (grouped.map(|groups| 2 * groups as u64).collect(), refusals(&outcome))
    }

    #[test]
    fn slices_can_be_asked_for_and_keep_groups_whole() {
        assert_eq!(forced(2), (vec![4, 6], vec![]));
        assert_eq!(forced(99), (vec![4, 6], vec![]));
        assert_eq!(forced(1), (vec![10], vec![]));
    }

    /// Channels in each slice of a block with depthwise convolution, at a level.
    fn widths(channels: u64, level: usize) -> Option<Vec<u64>> {
        let numbers = |count: u64| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
        let one = numbers(channels);
        let text = format!(
            "f (float[1,1,3] x) => (float[1,1,3] y)
             <float[{channels},1,1] e = {{{one}}}, float[{channels},1,1] d = {{{one}}}, float[1,{channels},1] p = {{{one}}}> {{
                h = Conv(x, e)  g = Conv<group = {channels}>(h, d)  y = Conv(g, p) }}"
        );
        let graph = take(&SplitHidden, &text, level).ok()?.graph;
        let groups = graph.order().unwrap().into_iter().filter_map(|op| graph.op(op).int("group"));
        Some(groups.map(|count| count as u64).collect())
    }

    #[test]
    fn slices_of_more_than_four_channels_are_whole_blocks_of_eight_where_all_can_be() {
        assert_eq!(widths(96, 1), Some(vec![24; 4]));
        assert_eq!(widths(96, 2), Some(vec![16; 6]));
        assert_eq!(widths(96, 3), Some(vec![8; 12]));
        assert_eq!(widths(144, 1), Some(vec![40, 40, 40, 24]));
        assert_eq!(widths(64, 3), Some(vec![4; 16]));
        assert_eq!(widths(8, 0), Some(vec![4; 2]));
        assert_eq!(widths(20, 1), Some(vec![5; 4]));
        assert_eq!(widths(12, 1), None);
    }

    #[test]
    fn slices_are_not_sliced_again() {
        let block = "f (float[1,1,3] x) => (float[1,1,3] y)
             <float[8,1,1] e = {1, 2, 3, 4, 5, 6, 7, 8}, float[1,8,1] p = {1, 2, 3, 4, 5, 6, 7, 8}> {
                h = Conv(x, e)  a = Relu(h)  y = Conv(a, p) }";
        let once = take(&SplitHidden, block, 0).unwrap();
        let text = dmopt_ir::text::print_model(&once);
        assert_eq!(take(&SplitHidden, &text, 0).err(), Some(Miss::NoMatch));
        let matrices = "f (float[3,1] x) => (float[3,1] y)
             <float[1,8] e = {1, 2, 3, 4, 5, 6, 7, 8}, float[8,1] p = {1, 2, 3, 4, 5, 6, 7, 8}> {
                h = Gemm(x, e)  a = Relu(h)  y = Gemm(a, p) }";
        let once = take(&SplitHidden, matrices, 0).unwrap();
        let text = dmopt_ir::text::print_model(&once);
        assert_eq!(take(&SplitHidden, &text, 0).err(), Some(Miss::NoMatch));
    }

    #[test]
    fn a_slice_is_known_in_however_long_a_sum() {
        let weights = |i: usize| {
            format!(
                "float[8,1,1] e{i} = {{{i}, 2, 3, 4, 5, 6, 7, 8}}, float[1,8,1] p{i} = {{{i}, 2, 3, 4, 5, 6, 7, 8}}"
            )
        };
        let slice = |i: usize| {
            format!(
                "h{i} = Conv(x, e{i})  a{i} = Relu(h{i})  r{i} = Conv(a{i}, p{i})  v{} = Add(r{i}, v{i})",
                i + 1
            )
        };
        let text = format!(
            "f (float[1,1,3] x, float[1,1,3] v0) => (float[1,1,3] v600) <{}> {{ {} }}",
            Vec::from_iter((0..600).map(weights)).join(", "),
            Vec::from_iter((0..600).map(slice)).join(" "),
        );
        assert_eq!(take(&SplitHidden, &text, 0).err(), Some(Miss::NoMatch));
    }

    #[test]
    fn squeeze_and_excitation_and_outputs_inside_are_refused() {
        let text = |outputs: &str, gate: &str| {
            format!(
                "f (float[1,1,3] x) => (float[1,1,3] y{outputs})
                 <float[2,1,1] e = {{1, 2}}, float[1,2,1] p = {{1, 2}}, float[1,2,1] s = {{1, 2}}, float[2,1,1] t = {{1, 2}}> {{
                    h = Conv(x, e)  {gate}  y = Conv(a, p) }}"
            )
        };
        let gate = "m = GlobalAveragePool(h)  i = Conv(m, s)  k = Conv(i, t)  g = Sigmoid(k)  a = Mul(h, g)";
        assert_eq!(
            refuses(&SplitHidden, &text("", gate)),
            "what is computed of all channels is read with each of them again"
        );
        assert_eq!(refuses(&SplitHidden, &text(", float[1,2,3] h", "a = Relu(h)")), "'h' is an output");
    }
}
