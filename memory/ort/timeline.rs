//! What is in memory at each step of a run, and why.

use dmopt_ir::{OpId, ValueId};

use super::frame::{At, Frame, Run};

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
    /// What the kernel needs for itself beside them; for an operator with bodies, what these need.
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

    /// The peak in an arena: every block, and the scratch memory of a step as one, rounded up to 256 bytes
    /// (`kMinAllocationSize` in `core/framework/bfc_arena.h`). An arena that gives a larger free chunk away undivided has
    /// more in use, and holds more than it has in use.
    pub fn arena_peak_bytes(&self) -> u64 {
        let rounded = |bytes: u64| u128::from(bytes).next_multiple_of(256);
        let mut taken = vec![0u128; self.steps.len() + 2];
        let mut freed = taken.clone();
        for buffer in &self.buffers {
            taken[buffer.first] += rounded(buffer.bytes);
            freed[buffer.last + 1] += rounded(buffer.bytes);
        }
        let (mut now, mut most) = (0u128, 0u128);
        for (i, step) in self.steps.iter().enumerate() {
            now = now + taken[i] - freed[i];
            most = most.max(now + rounded(step.scratch_bytes));
        }
        most.try_into().unwrap_or(u64::MAX)
    }

    pub(super) fn new(frame: Frame<'_>) -> Timeline {
        let at = frame.run(Run::Plain, &|_| true);
        let steps = frame.order.iter().zip(at).map(|(&op, at)| {
            let At { live_bytes, scratch_bytes } = at;
            Step { op, live_bytes, scratch_bytes }
        });
        let steps: Vec<Step> = steps.collect();
        let (peak_step, peak_bytes) = peak(steps.iter().map(Step::total_bytes));
        Timeline { steps, buffers: frame.buffers, peak_bytes, peak_step }
    }
}

/// The first of the largest numbers, and where it is.
pub(super) fn peak(bytes: impl Iterator<Item = u64>) -> (usize, u64) {
    bytes
        .enumerate()
        .fold((0, 0), |(at, most), (i, bytes)| if bytes > most { (i, bytes) } else { (at, most) })
}
