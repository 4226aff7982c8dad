//! What the comparison of two models found, as Rust types and as JSON (`dmopt.validation/1`; `docs/validation.md`
//! explains every figure).
//!
//! Sizes are in bytes, times in seconds. Within version 1 fields may be added; none is renamed, removed or given
//! another meaning.

use dmopt_runtime::{Memory, Status};
use serde::{Deserialize, Serialize};

use crate::report::{File, Tolerance, Validation, ValidationStatus};

/// The value of [`Report::schema`].
pub const SCHEMA: &str = "dmopt.validation/1";

/// What the comparison of two models found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The model that is right.
    pub reference: File,
    /// The model that is compared with it.
    pub candidate: File,
    /// What ran both.
    pub runtime: Runtime,
    /// Whether outputs agree, and values inside that share names.
    pub outputs: Validation,
    /// The first value that both models share and that differs; null when none was found.
    pub first_divergence: Option<Divergence>,
    /// The reference against outputs that came with the inputs; null when none did.
    pub expected: Option<Expected>,
    /// What the models take; null when it was not measured.
    pub memory: Option<MemoryPair>,
    /// Why it was not.
    pub memory_reason: Option<String>,
    /// How long the models take; null when it was not measured.
    pub latency: Option<Latency>,
    /// Why it was not.
    pub latency_reason: Option<String>,
    /// Nodes that did not run where they were meant to, the CUDA device.
    pub elsewhere: Elsewhere,
    /// What was not to be exceeded.
    pub limits: Limits,
}

/// What ran both models.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Runtime {
    /// Name, and version where it is loaded at run time.
    pub name: String,
    /// Execution provider: `cpu`, `cuda` or `cuda:N`.
    pub ep: String,
    /// Configuration of the session: `default` or `tuned`; null in a runtime that has no such choice.
    pub session: Option<String>,
}

/// A value that differs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Divergence {
    /// Its name, the same in both models.
    pub value: String,
    /// How it differs.
    pub difference: String,
}

/// The reference against outputs that came with the inputs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Expected {
    /// How many sets of inputs had outputs with them.
    pub sets: usize,
    /// Largest relative difference.
    pub max_rel: f64,
    /// The difference allowed.
    pub tolerance: Tolerance,
    /// What differs by more; null when nothing does.
    pub reason: Option<String>,
}

/// What both models take.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MemoryPair {
    /// The reference.
    pub reference: ModelMemory,
    /// The candidate.
    pub candidate: ModelMemory,
    /// Peak of the candidate divided by that of the reference.
    pub peak_ratio: f64,
}

/// What one model takes, its inputs left out, which belong to the caller.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ModelMemory {
    /// The larger of `first.bytes` and `steady.bytes`.
    pub peak_bytes: u64,
    /// The first run.
    pub first: Peak,
    /// The runs after it.
    pub steady: Peak,
    /// What the session keeps between runs beside the weights of the file; on CUDA the weights themselves.
    pub kept_bytes: u64,
    /// Statistics of the session's arena, weights included; null without an arena.
    pub arena: Option<Arena>,
    /// On CUDA, what the process holds on the device, context and libraries included; null where the driver does not
    /// tell.
    pub process_bytes: Option<u64>,
}

/// Largest memory at one moment of a run, and what it consisted of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peak {
    /// The sum of the parts.
    pub bytes: u64,
    /// Values between operators. Where `scratch` is null, it is in here.
    pub activations: u64,
    /// Temporaries of the kernel that ran; null where the runtime does not tell them apart.
    pub scratch: Option<u64>,
    /// Graph outputs that were already there.
    pub outputs: u64,
}

/// Statistics of an arena.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arena {
    /// Most in use at a time, each block rounded up.
    pub max_in_use_bytes: u64,
    /// What it took from the system or the device, and keeps.
    pub held_bytes: u64,
}

/// How long both models take, run in turns.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Runs of each.
    pub runs: usize,
    /// Median of the reference.
    pub reference_seconds: f64,
    /// Median of the candidate.
    pub candidate_seconds: f64,
    /// Median over pairs of neighbouring runs of the candidate's time divided by the reference's.
    pub ratio: f64,
    /// First and third quartile of the same.
    pub ratio_quartiles: (f64, f64),
}

/// Nodes that did not run where they were meant to.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Of the reference.
    pub reference: Vec<String>,
    /// Of the candidate.
    pub candidate: Vec<String>,
}

/// What was not to be exceeded.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Limit of `memory.peak_ratio`.
    pub max_peak_ratio: Option<f64>,
    /// Limit of `latency.ratio`.
    pub max_latency_ratio: Option<f64>,
    /// A sentence for each limit that was exceeded.
    pub exceeded: Vec<String>,
}

impl From<&Memory> for ModelMemory {
    fn from(memory: &Memory) -> ModelMemory {
        ModelMemory {
            peak_bytes: memory.peak().bytes,
            first: memory.first.into(),
            steady: memory.steady.into(),
            kept_bytes: memory.kept_bytes,
            arena: memory
                .arena
                .map(|arena| Arena { max_in_use_bytes: arena.max_in_use, held_bytes: arena.held }),
            process_bytes: memory.process_bytes,
        }
    }
}

impl From<dmopt_runtime::Peak> for Peak {
    fn from(peak: dmopt_runtime::Peak) -> Peak {
        let dmopt_runtime::Peak { bytes, activations, scratch, outputs } = peak;
        Peak { bytes, activations, scratch, outputs }
    }
}

impl From<dmopt_runtime::Latency> for Latency {
    fn from(found: dmopt_runtime::Latency) -> Latency {
        Latency {
            runs: found.runs,
            reference_seconds: found.reference.as_secs_f64(),
            candidate_seconds: found.candidate.as_secs_f64(),
            ratio: found.ratio,
            ratio_quartiles: found.spread,
        }
    }
}

impl From<Status> for ValidationStatus {
    fn from(status: Status) -> ValidationStatus {
        match status {
            Status::Passed => ValidationStatus::Passed,
            Status::Failed => ValidationStatus::Failed,
            Status::Skipped => ValidationStatus::Skipped,
        }
    }
}
