//! What a model needs in memory, and why: a runtime's plan as a report.
//!
//! The report is the plan (see [`memory::ort`]) with names instead of ids, so that it can be printed, written as JSON
//! (`dmopt.memory/1`, described in `docs/memory-report.md`) and drawn. Within version 1 fields may be added; none is
//! renamed, removed or given another meaning. Sizes are in bytes. Steps are positions in `order`, from 0.

mod build;
mod expression;
mod page;
mod picture;

use std::collections::BTreeMap;

use dmopt_ir::Sizes;
use dmopt_runtime::SessionKind;
use serde::{Deserialize, Serialize};

use crate::memory;

pub use build::memory_report;
pub(crate) use page::Page;
pub(crate) use picture::escape;

/// The value of [`MemoryReport::schema`].
pub const SCHEMA: &str = "dmopt.memory/1";

/// What to predict.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryOptions {
    /// Whose kernels run the model.
    pub kernels: memory::Kernels,
    /// How ONNX Runtime's session is set up.
    pub session: SessionKind,
    /// Sizes of open dimensions.
    pub sizes: Sizes,
    /// How much work the lower bound may cost; the default is less than a second.
    pub limits: memory::Limits,
}

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        let memory::ort::Settings { kernels, .. } = memory::ort::Settings::default();
        let limits = memory::Limits { states: 100_000, steps: 20_000_000 };
        MemoryOptions { kernels, session: SessionKind::Default, sizes: Sizes::default(), limits }
    }
}

/// What a model needs in memory, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The file, or `<stdin>`.
    pub path: String,
    /// Whose plan it is: `ort-cpu`, `ort-cuda` or `ideal`.
    pub target: String,
    /// Version of ONNX Runtime; null for `ideal`.
    pub ort_version: Option<String>,
    /// `default` or `tuned`; null for `ideal`.
    pub session: Option<String>,
    /// The sizes that stand for the open dimensions of the inputs, by name.
    pub sizes: BTreeMap<String, u64>,
    /// Peak of the first run: tensors and scratch memory of kernels; weights and inputs are not counted.
    pub peak_bytes: u64,
    /// The same in the open dimensions, valid where the peak is at the same operator; null when none is open, or when
    /// the size of a tensor is no expression of them.
    pub peak_expression: Option<String>,
    /// `peak_bytes` with every block rounded up as an arena does; null where there is no arena.
    pub arena_peak_bytes: Option<u64>,
    /// Peak of every later run.
    pub steady_peak_bytes: u64,
    /// Of `steady_peak_bytes`, the block that holds all tensors but outputs; null where each has memory of its own.
    pub block_bytes: Option<u64>,
    /// No order of the model's operators needs less than this; null when it is not known.
    pub lower_bound_bytes: Option<u64>,
    /// Peak of the best order that a search found, if every tensor is freed after its last reader; null like the bound.
    pub best_order_bytes: Option<u64>,
    /// True when `peak_bytes` is the lower bound; null when that is not known.
    pub optimal: Option<bool>,
    /// Where the peak is; null for a model without operators.
    pub at: Option<At>,
    /// What is in memory at the peak, largest first; with `scratch_bytes` it adds up to `peak_bytes`.
    pub live: Vec<Live>,
    /// What the kernel of the operator at the peak needs for itself; for an operator with bodies, what these need.
    pub scratch_bytes: u64,
    /// All constants, wherever they are stored. They are in memory besides.
    pub weights_bytes: u64,
    /// The inputs, which belong to the caller; null when the size of one is not known.
    pub inputs_bytes: Option<u64>,
    /// The operators in the order of execution.
    pub order: Vec<Step>,
    /// Everything that the run allocates, in the order of allocation.
    pub buffers: Vec<Buffer>,
    /// What to know about the prediction.
    pub notes: Vec<String>,
    /// The report of a second model, to compare with; null when there is none.
    pub other: Option<Box<MemoryReport>>,
}

/// An operator in the order of execution.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct At {
    /// Its step.
    pub step: usize,
    /// Its type and its name, or its type and first result.
    pub node: String,
}

/// A buffer that is in memory at the peak.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Live {
    /// Name of the tensor that is needed; of the last one in it where none is.
    pub value: String,
    /// Element type and sizes of the tensor that the buffer was made for.
    #[serde(rename = "type")]
    pub ty: String,
    /// Size.
    pub bytes: u64,
    /// Why it is there.
    pub reason: Why,
    /// The operator that needs it next; null for outputs and what nothing reads.
    pub by: Option<At>,
    /// The step that allocates it.
    pub from: usize,
    /// The step after which it is freed.
    pub to: usize,
}

/// Why a buffer is in memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The running operator computes the tensor.
    Computed,
    /// The running operator reads the tensor.
    Operand,
    /// A later operator reads the tensor.
    ReadLater,
    /// Nothing in the buffer is needed, but a later result takes it over, and it is not freed meanwhile.
    HeldForReuse,
    /// It is an output of the model.
    Output,
    /// Nothing reads the tensor, and what nothing reads is not freed.
    NeverRead,
}

/// An operator and what is in memory while it runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its type and its name, or its type and first result.
    pub node: String,
    /// Its type.
    pub op_type: String,
    /// Tensors in memory while it runs.
    pub live_bytes: u64,
    /// What its kernel needs for itself; for an operator with bodies, what these need.
    pub scratch_bytes: u64,
}

/// A piece of memory that is allocated once and freed once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// Names of the tensors in it, one after the other or views of each other, in the order of execution.
    pub values: Vec<String>,
    /// Element type and sizes of the first.
    #[serde(rename = "type")]
    pub ty: String,
    /// Size.
    pub bytes: u64,
    /// The step that allocates it.
    pub from: usize,
    /// The step after which it is freed.
    pub to: usize,
    /// Why it is in memory, from `from` on; each state lasts until the next.
    pub states: Vec<State>,
}

/// Why a buffer is in memory from a step on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The first step.
    pub from: usize,
    /// Why.
    pub reason: Why,
    /// The tensor that is needed, or the last one where none is, as a position in [`Buffer::values`].
    pub value: usize,
    /// The step that needs it next; null for outputs and what nothing reads.
    pub by: Option<usize>,
}

impl Step {
    /// All that is in memory.
    pub fn total_bytes(&self) -> u64 {
        self.live_bytes.saturating_add(self.scratch_bytes)
    }
}

impl Buffer {
    /// Why it is in memory at a step between `from` and `to`.
    pub fn state(&self, step: usize) -> Option<State> {
        let after = self.states.partition_point(|state| state.from <= step);
        self.states.get(after.checked_sub(1)?).copied().filter(|_| step <= self.to)
    }
}

impl MemoryReport {
    /// The report and the one that it is compared with.
    pub fn models(&self) -> impl Iterator<Item = &MemoryReport> {
        std::iter::successors(Some(self), |report| report.other.as_deref())
    }

    /// Who runs the model, in words.
    pub fn runtime(&self) -> String {
        let version = self.ort_version.as_deref().unwrap_or_default();
        match (self.target.as_str(), &self.session) {
            ("ort-cpu", Some(session)) => format!("in ONNX Runtime {version} on the CPU, {session} session"),
            ("ort-cuda", Some(session)) => format!("in ONNX Runtime {version} on CUDA, {session} session"),
            _ => "with ideal kernels in file order".to_string(),
        }
    }
}
