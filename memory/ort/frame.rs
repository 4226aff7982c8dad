//! One graph as it runs: the main graph, or a body (`ExecutionFrame` in `core/framework/execution_frame.cc`).
//!
//! A body has a plan of its own and a memory pattern of its own. While it runs, what it takes is added to what the
//! graph around it holds; `control` says how often it runs and where its results are.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use dmopt_ir::{Def, Graph, Op, OpId, ValueId};

use super::control::allocated;
use super::known::{Known, shapes};
use super::pattern::Block;
use super::reuse::{Buffers, Offers, Origin};
use super::scratch::Scratch;
use super::timeline::{Buffer, Tenant};
use super::{Settings, execution_order};
use crate::Unknown;

/// Which run of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Run {
    /// Any, in a session without memory patterns.
    Plain,
    /// The first, in a session with memory patterns.
    First,
    /// A later one there: all values in one block, outputs beside it.
    Later,
}

/// What a plan needs to know whatever the order is, so that a graph that is planned in many orders is looked at once.
/// `graph` has known sizes; `planned` is the same graph as ONNX Runtime knows it.
#[derive(Debug)]
pub(super) struct Basis<'g> {
    graph: &'g Graph,
    planned: &'g Graph,
    offers: Offers,
    /// By operator; `None` where a size is not known.
    scratch: Vec<Option<Scratch>>,
    /// The bodies of operators, whose plans do not depend on when these run; or values in them of unknown size.
    bodies: HashMap<OpId, Result<Vec<Frame<'g>>, Vec<String>>>,
}

impl<'g> Basis<'g> {
    /// What is known of a graph. `around` is the operator whose body it is, and the shapes known in that one's graph.
    pub fn new(
        planned: &'g Graph,
        graph: &'g Graph,
        settings: &Settings,
        around: Option<(&Op, &Known<'g>)>,
    ) -> Result<Basis<'g>, Unknown> {
        let known = shapes(planned, around.map_or(&[][..], |(_, known)| known));
        let in_loop = around.is_some_and(|(op, _)| op.is("Loop"));
        let offers = Offers::new(planned, settings.kernels, &known, in_loop);
        let mut scratch = vec![None; graph.op_bound()];
        let mut bodies = HashMap::new();
        for id in graph.ops() {
            let op = graph.op(id);
            scratch[id.index()] = settings.kernels.scratch_parts(graph, id);
            let pairs = planned.op(id).bodies().zip(op.bodies());
            let frames = pairs.map(|(planned, graph)| {
                let basis = Arc::new(Basis::new(planned, graph, settings, Some((op, &known)))?);
                Frame::new(basis, execution_order(planned, settings.order)?)
            });
            match frames.collect::<Result<Vec<_>, _>>() {
                Ok(frames) if frames.is_empty() => {}
                Ok(frames) => _ = bodies.insert(id, Ok(frames)),
                Err(Unknown::Sizes(names)) => _ = bodies.insert(id, Err(names)),
                Err(cycle) => return Err(cycle),
            }
        }
        Ok(Basis { graph, planned, offers, scratch, bodies })
    }

    /// The bodies of an operator.
    fn bodies(&self, op: OpId) -> Option<&[Frame<'g>]> {
        self.bodies.get(&op)?.as_deref().ok()
    }
}

/// A graph with its plan.
#[derive(Debug)]
pub(super) struct Frame<'g> {
    basis: Arc<Basis<'g>>,
    pub order: Vec<OpId>,
    pub buffers: Vec<Buffer>,
    /// The buffer that each value has here, if it is not from outside.
    place: Vec<Option<usize>>,
    /// Found when it is asked for: by far not every plan is.
    block_bytes: OnceLock<u64>,
}

/// Bytes in memory at one step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct At {
    pub live_bytes: u64,
    pub scratch_bytes: u64,
}

/// Tells whether the memory of a graph output is taken while the frame runs. Otherwise it was there before.
pub(super) type Counted<'c> = &'c dyn Fn(ValueId) -> bool;

impl<'g> Frame<'g> {
    /// Plans a graph whose operators are executed in this order.
    pub fn new(basis: Arc<Basis<'g>>, order: Vec<OpId>) -> Result<Frame<'g>, Unknown> {
        let graph = basis.graph;
        let assigned = Buffers::assign(basis.planned, &order, &basis.offers);
        let (mut unknown, mut inner) = (Vec::new(), Vec::new());
        let mut name = |value: ValueId| {
            let name = &graph.value(value).name;
            if !unknown.contains(name) {
                unknown.push(name.clone());
            }
        };
        for &id in &order {
            if basis.scratch[id.index()].is_none() {
                graph.op(id).operands().filter(|&v| bytes(graph, v).is_none()).for_each(&mut name);
            }
            if let Some(Err(names)) = basis.bodies.get(&id) {
                inner.extend_from_slice(names);
            }
        }
        let (buffers, place) = lay_out(&basis, &order, &assigned, &mut name);
        unknown.extend(inner);
        if !unknown.is_empty() {
            return Err(Unknown::Sizes(unknown));
        }
        Ok(Frame { basis, order, buffers, place, block_bytes: OnceLock::new() })
    }

    /// The graph, with known sizes.
    pub fn graph(&self) -> &'g Graph {
        self.basis.graph
    }

    /// The graph as ONNX Runtime knows it.
    pub fn planned(&self) -> &'g Graph {
        self.basis.planned
    }

    /// Bytes of the block that later runs allocate.
    pub fn block_bytes(&self) -> u64 {
        *self.block_bytes.get_or_init(|| pack(&self.buffers, self.order.len()))
    }

    /// The place of a value's buffer in the order of allocation, if it is not from outside.
    pub fn place(&self, value: ValueId) -> Option<usize> {
        self.place[value.index()]
    }

    /// The buffer of a value, if it is not from outside.
    pub fn buffer(&self, value: ValueId) -> Option<&Buffer> {
        self.place[value.index()].map(|at| &self.buffers[at])
    }

    /// The memory that a run takes, step by step.
    pub fn run(&self, run: Run, counted: Counted<'_>) -> Vec<At> {
        let mut appear = vec![0u128; self.order.len() + 1];
        // Where nothing runs, an output that is a constant is there all the same.
        let mut vanish = vec![0u128; self.order.len() + 2];
        for buffer in self.buffers.iter().filter(|buffer| self.takes(buffer, run, counted)) {
            appear[buffer.first] += u128::from(buffer.bytes);
            vanish[buffer.last + 1] += u128::from(buffer.bytes);
        }
        let mut now = if run == Run::Later { u128::from(self.block_bytes()) } else { 0 };
        let mut steps = Vec::with_capacity(self.order.len());
        for step in 0..self.order.len() {
            now = now + appear[step] - vanish[step];
            let op = self.order[step];
            let scratch = match self.basis.bodies(op) {
                None => self.basis.scratch[op.index()].unwrap_or_default(),
                Some(bodies) => {
                    let taken = |slot: usize| {
                        let value = self.graph().op(op).output(slot);
                        let buffer = value.and_then(|value| Some((value, self.buffer(value)?)));
                        buffer
                            .is_some_and(|(v, buffer)| buffer.value == v && self.takes(buffer, run, counted))
                    };
                    self.control(op, bodies, run, &taken)
                }
            };
            let scratch_bytes = scratch.beside(clamp(appear[step]));
            steps.push(At { live_bytes: clamp(now), scratch_bytes });
        }
        steps
    }

    /// The largest number of bytes that a run takes at one moment.
    pub fn peak(&self, run: Run, counted: Counted<'_>) -> u64 {
        let block = if run == Run::Later { self.block_bytes() } else { 0 };
        let steps = self.run(run, counted);
        steps.iter().map(|at| at.live_bytes.saturating_add(at.scratch_bytes)).fold(block, u64::max)
    }

    /// True when the run allocates this buffer by itself, rather than in the block or in the graph around.
    fn takes(&self, buffer: &Buffer, run: Run, counted: Counted<'_>) -> bool {
        match buffer.is_output {
            true => counted(buffer.value),
            false => run != Run::Later,
        }
    }
}

/// The buffers of a graph in the order of allocation, and which one each value is in.
fn lay_out(
    basis: &Basis<'_>,
    order: &[OpId],
    assigned: &Buffers,
    unknown: &mut dyn FnMut(ValueId),
) -> (Vec<Buffer>, Vec<Option<usize>>) {
    let graph = basis.graph;
    let mut step_of = vec![0usize; graph.op_bound()];
    order.iter().enumerate().for_each(|(step, id)| step_of[id.index()] = step);
    let end = order.len().saturating_sub(1);
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut place: Vec<Option<usize>> = vec![None; graph.value_bound()];
    let mut size = |value: ValueId| {
        bytes(graph, value).unwrap_or_else(|| {
            unknown(value);
            0
        })
    };
    // Constants that are outputs are copied before anything runs (`IExecutionFrame::Init`).
    for &value in graph.outputs() {
        let is_constant =
            graph.constant(value).is_some() || matches!(graph.value(value).def, Def::Initializer(_));
        if is_constant && place[value.index()].is_none() {
            place[value.index()] = Some(buffers.len());
            let bytes = size(value);
            let tenants = vec![Tenant { value, first: 0, readers: Vec::new() }];
            buffers.push(Buffer { value, tenants, bytes, first: 0, last: end, is_output: true });
        }
    }
    for (step, &id) in order.iter().enumerate() {
        let op = graph.op(id);
        let results = match basis.bodies(id) {
            Some(bodies) => allocated(graph, op, bodies),
            None => op.results().collect(),
        };
        for value in results {
            let (owner, origin) = (assigned.owner(value), assigned.origin(value));
            if origin == Origin::Outside {
                continue;
            }
            let at = *place[owner.index()].get_or_insert_with(|| {
                let (bytes, is_output) = (size(owner), origin == Origin::Output);
                let tenants = Vec::new();
                buffers.push(Buffer { value: owner, tenants, bytes, first: step, last: step, is_output });
                buffers.len() - 1
            });
            place[value.index()] = Some(at);
            let mut readers: Vec<usize> = graph.uses(value).map(|at| step_of[at.op.index()]).collect();
            readers.sort_unstable();
            readers.dedup();
            buffers[at].tenants.push(Tenant { value, first: step, readers });
        }
    }
    for buffer in &mut buffers {
        let read = buffer.tenants.iter().filter_map(|tenant| tenant.readers.last()).max();
        buffer.last = if buffer.is_output { end } else { read.copied().unwrap_or(end) };
    }
    (buffers, place)
}

/// Bytes of the block for these buffers.
fn pack(buffers: &[Buffer], steps: usize) -> u64 {
    let mut freed = vec![Vec::new(); steps];
    let mut block = Block::default();
    // In the order of allocation, which is that of the first steps.
    let mut done = 0;
    for buffer in buffers.iter().filter(|buffer| !buffer.is_output) {
        for places in freed.iter_mut().take(buffer.first).skip(done) {
            std::mem::take(places).into_iter().for_each(|place| block.free(place));
        }
        done = buffer.first;
        freed[buffer.last].push(block.place(buffer.bytes));
    }
    block.bytes()
}

pub(super) fn bytes(graph: &Graph, value: ValueId) -> Option<u64> {
    graph.tensor_type(value)?.bytes()
}

fn clamp(bytes: u128) -> u64 {
    bytes.try_into().unwrap_or(u64::MAX)
}
