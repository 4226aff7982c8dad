//! What is in memory at each step of a run, and why.

use dmopt_ir::{Graph, OpId, ValueId};

use super::{Buffers, Origin};
use crate::{Kernels, Unknown};

/// A run, step by step. Steps are positions in the order of execution.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    /// What each operator finds and needs.
    pub steps: Vec<Step>,
    /// Everything that is allocated between operators, in the order of allocation.
    pub buffers: Vec<Buffer>,
    /// Largest number of bytes at one moment.
    pub peak_bytes: u64,
    /// The step of the peak, the first of several.
    pub peak_step: usize,
}

/// One operator of a run, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The operator.
    pub op: OpId,
    /// Values in memory while it runs, its results included.
    pub live_bytes: u64,
    /// What the kernel needs for itself.
    pub scratch_bytes: u64,
}

impl Step {
    /// All that is in memory.
    pub fn total_bytes(&self) -> u64 {
        self.live_bytes.saturating_add(self.scratch_bytes)
    }
}

/// A block of memory and the values in it, one after the other or several views.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// The value that it is allocated for.
    pub value: ValueId,
    /// All values in it, that one first, in the order of execution.
    pub tenants: Vec<Tenant>,
    /// Its size.
    pub bytes: u64,
    /// The step that allocates it.
    pub first: usize,
    /// The step after which it is freed.
    pub last: usize,
    /// True for the memory of a graph output, which the caller keeps.
    pub is_output: bool,
}

/// A value in a buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tenant {
    /// The value.
    pub value: ValueId,
    /// The step that computes it.
    pub first: usize,
    /// The steps that read it, in ascending order.
    pub readers: Vec<usize>,
}

/// Why a buffer is in memory at a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The value is computed at this step.
    Computed(ValueId),
    /// The value is read, at this step or the next one given.
    Read {
        /// The value.
        value: ValueId,
        /// The step that reads it next.
        at: usize,
    },
    /// Nothing in it is needed, but a later result takes it over, and it is not freed meanwhile.
    Held {
        /// The value that will be in it.
        value: ValueId,
        /// The step that computes it.
        at: usize,
    },
    /// It is a graph output.
    Output(ValueId),
    /// Nothing reads the value, and what nothing reads is never freed.
    NeverRead(ValueId),
}

impl Buffer {
    /// Why it is in memory at this step; `None` where it is not.
    pub fn reason(&self, step: usize) -> Option<Reason> {
        if !(self.first..=self.last).contains(&step) {
            return None;
        }
        let tenants = &self.tenants;
        if let Some(tenant) = tenants.iter().find(|t| t.first == step) {
            return Some(Reason::Computed(tenant.value));
        }
        let next = |t: &Tenant| t.readers.get(t.readers.partition_point(|&at| at < step)).copied();
        let read = tenants.iter().filter(|t| t.first < step).filter_map(|t| Some((next(t)?, t.value)));
        if let Some((at, value)) = read.min() {
            return Some(Reason::Read { value, at });
        }
        if self.is_output {
            return Some(Reason::Output(self.value));
        }
        match tenants.iter().find(|t| t.first > step) {
            Some(tenant) => Some(Reason::Held { value: tenant.value, at: tenant.first }),
            None => Some(Reason::NeverRead(self.value)),
        }
    }
}

impl Timeline {
    /// The buffers in memory at a step, and why.
    pub fn live(&self, step: usize) -> impl Iterator<Item = (&Buffer, Reason)> {
        self.buffers.iter().filter_map(move |buffer| Some((buffer, buffer.reason(step)?)))
    }

    /// `graph` has known sizes.
    pub(super) fn new(
        graph: &Graph,
        order: &[OpId],
        buffers: &Buffers,
        kernels: Kernels,
    ) -> Result<Timeline, Unknown> {
        let mut unknown = Vec::new();
        let mut step_of = vec![0usize; graph.op_bound()];
        order.iter().enumerate().for_each(|(step, id)| step_of[id.index()] = step);
        let end = order.len().saturating_sub(1);
        let mut made: Vec<Buffer> = Vec::new();
        let mut place = vec![None; graph.value_bound()];
        let mut steps = Vec::with_capacity(order.len());
        for (step, &id) in order.iter().enumerate() {
            for value in graph.op(id).results() {
                let owner = buffers.owner(value);
                let origin = buffers.origin(value);
                if origin == Origin::Outside {
                    continue;
                }
                let at = *place[owner.index()].get_or_insert_with(|| {
                    let bytes = graph.tensor_type(owner).and_then(|ty| ty.bytes()).unwrap_or_else(|| {
                        unknown.push(graph.value(owner).name.clone());
                        0
                    });
                    let is_output = origin == Origin::Output;
                    let tenants = Vec::new();
                    made.push(Buffer { value: owner, tenants, bytes, first: step, last: step, is_output });
                    made.len() - 1
                });
                let mut readers: Vec<usize> = graph.uses(value).map(|at| step_of[at.op.index()]).collect();
                readers.sort_unstable();
                readers.dedup();
                made[at].tenants.push(Tenant { value, first: step, readers });
            }
            let scratch_bytes = kernels.scratch(graph, id).unwrap_or_else(|| {
                unknown.push(
                    graph.op(id).results().next().map_or(String::new(), |v| graph.value(v).name.clone()),
                );
                0
            });
            steps.push(Step { op: id, live_bytes: 0, scratch_bytes });
        }
        if !unknown.is_empty() {
            return Err(Unknown::Sizes(unknown));
        }
        let (mut appear, mut vanish) = (vec![0u128; order.len() + 1], vec![0u128; order.len() + 1]);
        for buffer in &mut made {
            let read = buffer.tenants.iter().filter_map(|t| t.readers.last()).max();
            buffer.last = if buffer.is_output { end } else { read.copied().unwrap_or(end) };
            appear[buffer.first] += u128::from(buffer.bytes);
            vanish[buffer.last + 1] += u128::from(buffer.bytes);
        }
        let mut run = Timeline { steps, buffers: made, peak_bytes: 0, peak_step: 0 };
        let mut now = 0u128;
        for (i, step) in run.steps.iter_mut().enumerate() {
            now = now + appear[i] - vanish[i];
            step.live_bytes = now.try_into().unwrap_or(u64::MAX);
            if step.total_bytes() > run.peak_bytes {
                (run.peak_bytes, run.peak_step) = (step.total_bytes(), i);
            }
        }
        Ok(run)
    }
}
