//! Finding regions.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use dmopt_ir::{Dim, Graph, Op, OpId, Slot, Use, ValueId};

use super::layer::{Layer, weights};
use crate::linear::axis;
use crate::{Miss, order_of};

/// Regions of more operators than this are left alone: whatever is so far apart has a layer between.
const MAX_OPS: usize = 64;

/// Operators of a sum that are looked at: as many as a region in parts may have, and some.
const MAX_SUM: usize = 8 * MAX_OPS;

/// Operands of a Concat and the channels that each of them is.
pub(super) type Parts = [(ValueId, Range<u64>)];

/// What makes the channels of a region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Source {
    /// The operator.
    pub op: OpId,
    /// A layer, which makes any part of its channels; otherwise a Concat.
    pub layer: bool,
}

/// What reads the channels of a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sink {
    /// The operator.
    pub op: OpId,
    /// The layer that it is; `None` for a Concat.
    pub layer: Option<Layer>,
    /// An Add right after the layer, and what it adds, which takes part in the sum.
    pub residual: Option<(OpId, ValueId)>,
}

impl Sink {
    /// The operator whose result stays what it is.
    pub fn last(&self) -> OpId {
        self.residual.map_or(self.op, |(add, _)| add)
    }
}

/// A region: see the header of this module.
pub(crate) struct Region<'g> {
    pub(super) graph: &'g Graph,
    pub(super) rank: usize,
    pub(super) axis: usize,
    /// Number of channels.
    pub channels: u64,
    /// Every part has a multiple of this many channels.
    pub grain: u64,
    /// What makes the channels.
    pub sources: BTreeSet<Source>,
    /// Operators between sources and sinks.
    pub(super) inner: BTreeSet<OpId>,
    /// What reads the channels, in file order.
    pub sinks: Vec<Sink>,
    /// All values of the region, in the order in which they were found.
    pub values: Vec<ValueId>,
    /// The operands of its Concats and the channels that each of them is, as they are asked for.
    pub(super) concats: RefCell<HashMap<OpId, Rc<Parts>>>,
}

/// A place where a region may be.
pub(crate) struct Site<'g> {
    /// The operator that the region was found from.
    pub start: OpId,
    /// The operator whose result stays what it is, the first of several; what the region would start at where it is refused.
    pub op: OpId,
    /// The region, or why it cannot be computed in parts.
    pub region: Result<Region<'g>, Miss>,
}

/// All wanted regions that start at operators of this kind and end in a layer, in file order; found as they are asked for.
pub(crate) fn sites<'g>(
    graph: &'g Graph,
    is_start: impl Fn(&Op, OpId) -> bool,
    is_wanted: impl Fn(&Region<'g>) -> bool,
) -> impl Iterator<Item = Site<'g>> {
    let (mut covered, mut claimed) = (HashSet::new(), HashSet::new());
    order_of(graph).into_iter().filter_map(move |start| {
        if !is_start(graph.op(start), start) || covered.contains(&start) {
            return None;
        }
        match Region::around(graph, start) {
            Ok(mut region) => {
                covered.extend(region.sources.iter().map(|source| source.op));
                if !is_wanted(&region) {
                    return None;
                }
                region.take_residuals(&mut claimed);
                let first = region.sinks.iter().find(|sink| sink.layer.is_some());
                first.map(Sink::last).map(|op| Site { start, op, region: Ok(region) })
            }
            Err(Miss::Refused(reason)) => Some(Site { start, op: start, region: Err(Miss::Refused(reason)) }),
            Err(_) => None,
        }
    })
}

impl<'g> Region<'g> {
    /// The region that is found from an operator again, if the result that stays what it is is still that of `last`.
    pub fn again(graph: &'g Graph, start: OpId, last: OpId) -> Result<Region<'g>, Miss> {
        let mut region = Region::around(graph, start)?;
        region.take_residuals(&mut HashSet::new());
        let first = region.sinks.iter_mut().find(|sink| sink.layer.is_some()).ok_or(Miss::NoMatch)?;
        // An addition that was left to another region is none of this one.
        first.residual = first.residual.filter(|(add, _)| *add == last);
        if first.last() == last { Ok(region) } else { Err(Miss::NoMatch) }
    }

    /// The region that an operator makes channels for.
    fn around(graph: &'g Graph, start: OpId) -> Result<Region<'g>, Miss> {
        let op = graph.op(start);
        let value = op.output(0).filter(|_| op.results().count() == 1).ok_or(Miss::NoMatch)?;
        let shape = graph.tensor_type(value).and_then(|ty| ty.shape.as_deref()).ok_or(Miss::NoMatch)?;
        let rank = shape.len();
        let axis = match Layer::of(graph, start) {
            Some(layer) => layer.axis(rank),
            None => concat_axis(op, rank),
        };
        let axis = axis.ok_or(Miss::NoMatch)?;
        let channels = shape.get(axis).and_then(Dim::known).ok_or(Miss::NoMatch)?;
        let region = Region {
            graph,
            rank,
            axis,
            channels,
            grain: 1,
            sources: BTreeSet::new(),
            inner: BTreeSet::new(),
            sinks: Vec::new(),
            values: Vec::new(),
            concats: RefCell::default(),
        };
        let mut growth = Growth {
            region,
            wanted: HashSet::new(),
            pending: Vec::new(),
            outside: Vec::new(),
            obstacle: None,
        };
        growth.want(value);
        while let Some(value) = growth.pending.pop() {
            let made = growth.made_by(value);
            growth.note(made);
            growth.read_by(value);
        }
        growth.finish()
    }

    /// The size along the channels of a value that broadcasts against those of the region.
    fn size_of(&self, value: ValueId) -> Option<u64> {
        let shape = self.graph.tensor_type(value)?.shape.as_ref()?;
        match (self.axis + shape.len()).checked_sub(self.rank) {
            Some(axis) if shape.len() <= self.rank => shape[axis].known(),
            _ if shape.len() <= self.rank => Some(1),
            _ => None,
        }
    }

    /// True if layers alone make the channels, and layers alone read them.
    pub fn is_hidden(&self) -> bool {
        self.sources.iter().all(|source| source.layer) && self.sinks.iter().all(|sink| sink.layer.is_some())
    }

    /// True if the region is a slice of another: what it sums up is added to what another region does that is made of
    /// the same operand.
    pub fn is_slice(&self) -> bool {
        let data = |op: OpId| self.graph.op(op).input(0);
        let made_of: HashSet<_> = self.sources.iter().filter_map(|source| data(source.op)).collect();
        let is_other = |layer: &OpId| self.sinks.iter().all(|sink| sink.op != *layer);
        self.sinks.iter().any(|sink| {
            let others = summands(self.graph, sink.op).into_iter().filter(is_other);
            others
                .filter_map(data)
                .filter_map(|x| layer_before(self.graph, x))
                .filter_map(data)
                .any(|x| made_of.contains(&x))
        })
    }

    /// The rank of the operator after which the operands of Concats in this range of channels are there, unless they are
    /// from the beginning.
    pub fn ready_at(&self, range: &Range<u64>) -> Option<u64> {
        let concats = self.sources.iter().filter(|source| !source.layer);
        let within = concats.flat_map(|source| self.parts_within(source.op, range));
        let ready = within.filter_map(|(part, _)| self.graph.producer(part)).map(|op| self.graph.op(op).rank);
        ready.max()
    }

    /// The largest number of parts of which none is a convolution in a single group, which is another layer.
    pub fn most_parts(&self) -> u64 {
        let is_grouped = |&op: &OpId| {
            matches!(Channelwise::of(self.graph, op, self.axis), Some(Channelwise::Grouped { .. }))
        };
        let least = if self.inner.iter().any(is_grouped) { 2 } else { 1 };
        self.channels / self.grain / least
    }

    /// Operators that are computed part by part.
    fn ops(&self) -> impl Iterator<Item = OpId> {
        let sources = self.sources.iter().map(|source| source.op);
        sources.chain(self.inner.iter().copied()).chain(self.sinks.iter().map(|sink| sink.op))
    }

    /// True if one of these values is computed from what the region computes.
    fn feeds(&self, values: impl IntoIterator<Item = ValueId>) -> bool {
        let graph = self.graph;
        // Ranks never fall along an edge.
        let first = self.ops().map(|op| graph.op(op).rank).min().unwrap_or(0);
        let own: HashSet<OpId> = self.ops().collect();
        let mut seen = HashSet::new();
        let mut pending: Vec<OpId> = values.into_iter().filter_map(|v| graph.producer(v)).collect();
        while let Some(op) = pending.pop() {
            if own.contains(&op) {
                return true;
            }
            if graph.op(op).rank >= first && seen.insert(op) {
                pending.extend(graph.predecessors(op));
            }
        }
        false
    }

    /// Takes additions right after layers into the sums, unless another region has.
    fn take_residuals(&mut self, claimed: &mut HashSet<OpId>) {
        for at in 0..self.sinks.len() {
            let sink = &self.sinks[at];
            if sink.layer.is_none() {
                continue;
            }
            if let Some((add, residual)) = residual_of(self.graph, sink.op)
                && !claimed.contains(&add)
                && !self.feeds([residual])
            {
                claimed.insert(add);
                self.sinks[at].residual = Some((add, residual));
            }
        }
    }
}

/// The Add that alone reads a layer's result, and its other operand, where that is no constant and of the same shape.
fn residual_of(graph: &Graph, layer: OpId) -> Option<(OpId, ValueId)> {
    let result = graph.op(layer).output(0)?;
    let mut uses = graph.uses(result);
    let (at, none) = (uses.next()?, uses.next());
    let op = graph.op(at.op);
    let Slot::Operand(slot) = at.slot else { return None };
    let alone = none.is_none() && graph.readers(result) == 1;
    if !alone || !op.is("Add") || op.inputs.len() != 2 || graph.opset("") < 7 {
        return None;
    }
    let other = op.input(1 - slot as usize)?;
    let (own, ty) = (graph.tensor_type(result)?, graph.tensor_type(other)?);
    let fits = own.dtype == ty.dtype && own.same_shape(ty) && graph.constant(other).is_none();
    fits.then_some((at.op, other))
}

/// Layers whose results are added to that of this one, itself among them; those near to it where there are many.
fn summands(graph: &Graph, layer: OpId) -> Vec<OpId> {
    // The place of a summand: either operand of an Add, or the last of a Gemm or a fused convolution.
    let sum_slots = |op: OpId| match graph.op(op).op_type.as_str() {
        "Add" => 0..2,
        "Gemm" => 2..3,
        "FusedConv" => 3..4,
        _ => 0..0,
    };
    let (mut top, mut climbed) = (layer, 0);
    while climbed < MAX_OPS
        && let Some(result) = graph.op(top).output(0)
        && let (Some(at), 1) = (graph.uses(result).next(), graph.readers(result))
        && let Slot::Operand(slot) = at.slot
        && sum_slots(at.op).contains(&(slot as usize))
    {
        (top, climbed) = (at.op, climbed + 1);
    }
    let (mut pending, mut layers, mut looked) = (VecDeque::from([top]), Vec::new(), 0);
    while looked < MAX_SUM
        && let Some(op) = pending.pop_front()
    {
        looked += 1;
        if is_layer(graph, op) {
            layers.push(op);
        }
        let summands = sum_slots(op).filter_map(|slot| graph.op(op).input(slot));
        pending.extend(summands.filter(|&v| graph.readers(v) == 1).filter_map(|v| graph.producer(v)));
    }
    layers
}

/// True for layers, those with a target's operators among them.
fn is_layer(graph: &Graph, op: OpId) -> bool {
    Layer::of(graph, op).is_some() || graph.op(op).op_type == "FusedConv"
}

/// The layer that a value is computed from through operators that treat each channel by itself.
fn layer_before(graph: &Graph, value: ValueId) -> Option<OpId> {
    let mut by = graph.producer(value)?;
    for _ in 0..MAX_OPS {
        if is_layer(graph, by) {
            return Some(by);
        }
        by = graph.producer(graph.op(by).input(0)?)?;
    }
    None
}

/// A region that is being found.
struct Growth<'g> {
    region: Region<'g>,
    /// The values of the region.
    wanted: HashSet<ValueId>,
    pending: Vec<ValueId>,
    /// Computed values that all parts read as a whole.
    outside: Vec<ValueId>,
    /// The first thing in the way.
    obstacle: Option<Miss>,
}

impl<'g> Growth<'g> {
    /// Notes that a value has to be had part by part.
    fn want(&mut self, value: ValueId) {
        if self.wanted.insert(value) {
            self.region.values.push(value);
            self.pending.push(value);
        }
    }

    /// The layer that an operator is, if its channels are on the axis of the region.
    fn layer(&self, id: OpId) -> Option<Layer> {
        let Region { graph, rank, axis, .. } = self.region;
        Layer::of(graph, id).filter(|layer| layer.axis(rank) == Some(axis))
    }

    /// What computes a value has to compute it part by part.
    fn made_by(&mut self, value: ValueId) -> Result<(), Miss> {
        let graph = self.region.graph;
        let name = || &graph.value(value).name;
        let shape = graph.tensor_type(value).and_then(|ty| ty.shape.as_deref());
        if shape.map(<[Dim]>::len) != Some(self.region.rank)
            || self.region.size_of(value) != Some(self.region.channels)
        {
            return Err(Miss::Refused(format!("'{}' has other channels", name())));
        }
        let by = graph
            .producer(value)
            .ok_or_else(|| Miss::Refused(format!("'{}' is not computed, only read", name())))?;
        if self.region.inner.contains(&by) {
            return Ok(());
        }
        if self.layer(by).is_some() {
            weights(graph, by)?;
            self.region.sources.insert(Source { op: by, layer: true });
            return Ok(());
        }
        if concat_axis(graph.op(by), self.region.rank) == Some(self.region.axis) {
            self.region.sources.insert(Source { op: by, layer: false });
            return Ok(());
        }
        self.add_inner(by)
    }

    /// Remembers what is in the way. The search goes on: without a sink it is nothing to tell of.
    fn note(&mut self, found: Result<(), Miss>) {
        if let Err(miss) = found {
            self.obstacle.get_or_insert(miss);
        }
    }

    /// What reads a value has to read it part by part.
    fn read_by(&mut self, value: ValueId) {
        let graph = self.region.graph;
        let uses: Vec<_> = graph.uses(value).collect();
        if uses.len() != graph.readers(value) {
            self.note(Err(Miss::Refused(format!("'{}' is an output", graph.value(value).name))));
        }
        for at in uses.into_iter().filter(|at| !self.region.inner.contains(&at.op)).collect::<Vec<_>>() {
            let read = self.read_at(value, at);
            self.note(read);
        }
    }

    fn read_at(&mut self, value: ValueId, at: Use) -> Result<(), Miss> {
        let graph = self.region.graph;
        let name = || &graph.value(value).name;
        let Slot::Operand(slot) = at.slot else {
            return Err(Miss::Refused(format!("a body reads '{}'", name())));
        };
        if let Some(layer) = self.layer(at.op) {
            if slot != 0 {
                let reader = graph.describe(at.op);
                return Err(Miss::Refused(format!("{reader} reads '{}' other than as data", name())));
            }
            self.region.sinks.push(Sink { op: at.op, layer: Some(layer), residual: None });
            return weights(graph, at.op).map(drop);
        }
        if concat_axis(graph.op(at.op), self.region.rank) == Some(self.region.axis) {
            if !self.region.sinks.iter().any(|sink| sink.op == at.op) {
                self.region.sinks.push(Sink { op: at.op, layer: None, residual: None });
            }
            return Ok(());
        }
        self.add_inner(at.op)
    }

    /// Takes an operator into the region that computes a channel from the same channel of its operands.
    fn add_inner(&mut self, id: OpId) -> Result<(), Miss> {
        let graph = self.region.graph;
        let op = graph.op(id);
        let kind = Channelwise::of(graph, id, self.region.axis)
            .ok_or_else(|| Miss::Refused(format!("{} mixes channels", graph.describe(id))))?;
        if self.region.inner.len() == MAX_OPS {
            return Err(Miss::refused("too many operators treat each channel by itself"));
        }
        self.region.inner.insert(id);
        for (slot, &value) in op.inputs.iter().enumerate() {
            let Some(value) = value else { continue };
            match (self.region.role(kind, slot, value), graph.constant(value).is_some()) {
                (Some(Role::Part { .. }), false) if kind.is_elementwise() || slot == 0 => self.want(value),
                (Some(Role::Part { .. }), true) => {
                    let numbers = graph.tensor_type(value).and_then(|ty| ty.elements());
                    if numbers.is_none_or(|n| n > self.region.channels) && graph.readers(value) != 1 {
                        let name = &graph.value(value).name;
                        return Err(Miss::Refused(format!("the weights '{name}' have other readers")));
                    }
                }
                (Some(Role::Whole), true) => {}
                (Some(Role::Whole), false) => self.outside.push(value),
                _ => {
                    let name = &graph.value(value).name;
                    return Err(Miss::Refused(format!("'{name}' cannot be read channel by channel")));
                }
            }
        }
        if let Channelwise::Grouped { channels_each } = kind {
            self.region.grain = lcm(self.region.grain, channels_each);
        }
        self.want(op.output(0).ok_or(Miss::NoMatch)?);
        Ok(())
    }

    fn finish(self) -> Result<Region<'g>, Miss> {
        let Growth { mut region, outside, obstacle, .. } = self;
        if region.channels < 2 || !region.sinks.iter().any(|sink| sink.layer.is_some()) {
            return Err(Miss::NoMatch);
        }
        if let Some(miss) = obstacle {
            return Err(miss);
        }
        let graph = region.graph;
        region.sinks.sort_by_key(|sink| (graph.op(sink.op).rank, sink.op));
        let reads = region.sources.iter().flat_map(|source| graph.op(source.op).operands());
        if region.feeds(reads.chain(outside)) {
            return Err(Miss::refused("what is computed of all channels is read with each of them again"));
        }
        Ok(region)
    }
}

/// What an operand is to an operator of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Each part reads its own part, along this axis.
    Part {
        /// The axis of the operand.
        axis: usize,
    },
    /// Each part reads all of it.
    Whole,
}

impl Region<'_> {
    /// What an operand is; `None` where it does not fit.
    pub(super) fn role(&self, kind: Channelwise, slot: usize, value: ValueId) -> Option<Role> {
        let ty = self.graph.tensor_type(value)?;
        let rank = ty.rank()?;
        match kind {
            Channelwise::Elementwise => match self.size_of(value)? {
                1 if self.channels > 1 => Some(Role::Whole),
                n if n == self.channels => {
                    let axis = (self.axis + rank).checked_sub(self.rank);
                    Some(axis.map_or(Role::Whole, |axis| Role::Part { axis }))
                }
                _ => None,
            },
            _ if slot == 0 => Some(Role::Part { axis: self.axis }),
            Channelwise::Normalized | Channelwise::Grouped { .. } => {
                let dims = ty.dims()?;
                let constant = self.graph.constant(value).is_some();
                (constant && dims.first() == Some(&self.channels)).then_some(Role::Part { axis: 0 })
            }
            Channelwise::Pooled => None,
        }
    }
}

/// How an operator treats each channel by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Channelwise {
    /// Each element by itself; operands broadcast.
    Elementwise,
    /// By statistics of the channel; operands after the first have a number for each.
    Normalized,
    /// Convolution within groups that have as many channels afterwards as before.
    Grouped {
        /// Channels of a group.
        channels_each: u64,
    },
    /// Pooling over what lies within a channel.
    Pooled,
}

impl Channelwise {
    /// How this operator does, if it does.
    pub(super) fn of(graph: &Graph, id: OpId, axis: usize) -> Option<Channelwise> {
        let op = graph.op(id);
        let result = op.output(0).filter(|_| op.results().count() == 1)?;
        if !op.is_standard() || graph.opset("") < 7 {
            return None;
        }
        let name = op.op_type.as_str();
        if is_elementwise(op) {
            return Some(Channelwise::Elementwise);
        }
        if axis != 1 {
            return None;
        }
        let inference = op.int("training_mode").unwrap_or(0) == 0 && graph.opset("") >= 9;
        match name {
            "BatchNormalization" if inference => Some(Channelwise::Normalized),
            "InstanceNormalization" => Some(Channelwise::Normalized),
            "Conv" => {
                let channels = |value| graph.tensor_type(value)?.shape.as_ref()?.get(1)?.known();
                let groups = u64::try_from(op.int("group")?).ok().filter(|&groups| groups > 1)?;
                let (before, after) = (channels(op.input(0)?)?, channels(result)?);
                let even = before == after && before.is_multiple_of(groups);
                (even && weights(graph, id).is_ok())
                    .then_some(Channelwise::Grouped { channels_each: before / groups })
            }
            "AveragePool" | "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" | "LpPool" | "MaxPool" => {
                Some(Channelwise::Pooled)
            }
            _ => None,
        }
    }

    fn is_elementwise(self) -> bool {
        self == Channelwise::Elementwise
    }
}

/// True for operators each element of whose result depends on one element of each operand alone, operands broadcast.
pub(crate) fn is_elementwise(op: &Op) -> bool {
    op.is_standard() && ELEMENTWISE.binary_search(&op.op_type.as_str()).is_ok()
}

/// See [`is_elementwise`].
#[rustfmt::skip]
const ELEMENTWISE: &[&str] = &[
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Shrink",
    "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
];

/// The axis of a Concat of tensors of this rank.
pub(super) fn concat_axis(op: &Op, rank: usize) -> Option<usize> {
    if !op.is("Concat") || op.results().count() != 1 {
        return None;
    }
    axis(op.int("axis")?, rank)
}

fn lcm(a: u64, b: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}
