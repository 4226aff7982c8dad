//! Regions of a graph that treat each channel by itself, from what makes the channels to what sums over them.
//!
//! ```text
//! sources          Concat(x_1, .., x_n) along the channels, or layers: Conv, ConvTranspose, Gemm, MatMul
//! region           operators that take channel c to channel c: elementwise ones, with constants for each channel,
//!                  normalizations by statistics of a channel, depthwise and grouped convolutions, pooling
//! sinks            layers, which sum over the channels; Concat, which only passes them on
//! ```
//! With `P_k` the channels of part k, everything up to the sinks can be computed part by part:
//! ```text
//! rows of the source's weights      h_k = region(W[P_k, :] x + b[P_k])
//! columns of the sink's weights     y   = sum_k V[:, P_k] h_k + c
//! ```
//! so that no more than one part of what lies between has to exist at a time, beside the sum. A residual that is added
//! to `y` becomes the first summand, because it has to exist until then anyway.

mod layer;
mod parts;
mod region;

use std::ops::Range;

use dmopt_ir::Graph;

use crate::{Miss, Offer};

pub(crate) use layer::Layer;
pub(crate) use region::{Region, Site, is_elementwise, sites};

/// This many parts of about equal size, one after the other.
pub(crate) fn even_parts(size: u64, count: u64) -> impl Iterator<Item = Range<u64>> {
    let border = move |part: u64| (u128::from(size) * u128::from(part) / u128::from(count)) as u64;
    (0..count).map(move |part| border(part)..border(part + 1))
}

/// The offers to compute sites part by part, at as many levels as a region has; none where it has none.
pub(crate) fn offers<'g>(
    graph: &Graph,
    sites: impl Iterator<Item = Site<'g>>,
    levels: fn(&Region<'_>) -> usize,
) -> Vec<Offer> {
    let offer = |site: Site<'_>| {
        let Site { start, op, region } = site;
        match region {
            Ok(region) => {
                let levels = levels(&region);
                (levels > 0).then_some(Offer { start, op, relieves: region.values, levels, refused: None })
            }
            Err(miss) => {
                let relieves = graph.op(op).results().collect();
                Some(Offer { start, op, relieves, levels: 1, refused: Some(miss) })
            }
        }
    };
    sites.filter_map(offer).collect()
}

/// The region that an offer is about.
///
/// # Errors
/// It is gone, or why it cannot be computed in parts.
pub(crate) fn region_of<'g>(graph: &'g Graph, offer: &Offer) -> Result<Region<'g>, Miss> {
    match &offer.refused {
        Some(miss) => Err(miss.clone()),
        None if graph.is_live(offer.start) => Region::again(graph, offer.start, offer.op),
        None => Err(Miss::NoMatch),
    }
}
