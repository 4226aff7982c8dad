//! Runtimes that execute a model file, and the proof that two files compute the same.
//!
//! A [`Backend`] takes the bytes of a model file, not a graph: what is validated is the file that ships.
//! [`validate()`] runs the original and the rewritten file on the same seeded [`inputs`], compares the outputs
//! element by element ([`compare`]), and judges them by a [`Tolerance`] that follows from what was done to the
//! model.
//!
//! The embedded runtime, tract, sits behind the feature `tract`. What it cannot do:
//! - **Operators** are refused when tract has no implementation of them, when they belong to another domain
//!   than the standard one, or when the model defines functions for them: tract looks operators up by type alone
//!   and never reads functions, so it would compute something else without a word.
//! - **bfloat16** (and 8-bit and smaller floats, 4-bit integers, strings at the boundary, sequences) has no
//!   counterpart in tract; such models are refused.
//! - **Operators with known wrong values** (some forms of BitShift, GRU, LSTM, Celu, SpaceToDepth, ...): original
//!   and rewritten file run in the same runtime, so an equal mistake on both sides goes unnoticed, and a rewrite
//!   that touches such an operator is not proven by running it here. No rewrite in this project does.

#![deny(unsafe_code)]

pub mod apart;
mod available;
pub mod compare;
mod diverge;
pub mod inputs;
mod latency;
mod memory;
mod npz;
#[cfg(feature = "ort")]
#[allow(unsafe_code)]
pub mod ort;
#[cfg(any(feature = "ort", feature = "tract"))]
mod panics;
mod session_code;
mod settings;
#[cfg(test)]
#[cfg(feature = "tract")]
mod testing;
#[cfg(feature = "tract")]
pub mod tract;
mod validate;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dmopt_ir::{DType, Tensor, TensorType};
use serde::{Deserialize, Serialize};

pub use available::available;
pub use compare::{Comparison, Tolerance};
pub use diverge::{Divergence, Expose, compare_inside};
pub use latency::{Latency, latency};
pub use memory::{Arena, Memory, Peak};
pub use npz::{NpzError, read_npz};
pub use session_code::{Language, session_code};
pub use settings::{Ep, Level, SessionKind, Settings};
pub use validate::{Inside, Options, Run, Status, Validation, differ, validate, validate_with};

/// Version of the embedded runtime.
pub const TRACT_VERSION: &str = "0.23.9";

/// A model file as a runtime takes it.
#[derive(Clone, Debug)]
pub struct ModelFile {
    /// Content of the file.
    pub bytes: Bytes,
    /// Folder that locations of external data are relative to; `None` for a model that came through a pipe.
    pub folder: Option<PathBuf>,
}

impl ModelFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`RuntimeError::Read`] when the file cannot be read.
    pub fn open(path: &Path) -> Result<ModelFile, RuntimeError> {
        let bytes = std::fs::read(path)
            .map_err(|source| RuntimeError::Read { path: path.to_owned(), source })?
            .into();
        // The parent of a bare file name is the empty path, which means the current folder.
        Ok(ModelFile { bytes, folder: path.parent().map(Path::to_owned) })
    }
}

/// A tensor with the name of the graph input or output that it belongs to.
pub type Named = (String, Tensor);

/// A runtime.
pub trait Backend {
    /// Name and version, as reports print it.
    fn name(&self) -> &'static str;

    /// Major and minor version, where models may ask for one.
    fn version(&self) -> Option<(u32, u32)> {
        None
    }

    /// What computes.
    fn ep(&self) -> Ep {
        Ep::Cpu
    }

    /// Reads a model and refuses what this runtime cannot run, as far as that shows before running.
    ///
    /// # Errors
    /// [`RuntimeError::Malformed`], [`RuntimeError::Operator`] or [`RuntimeError::Unsupported`].
    fn load(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError>;

    /// The same for a model whose outputs are to be compared: where a runtime rounds more than it has to by default, this
    /// session does not.
    ///
    /// # Errors
    /// As [`load`](Backend::load).
    fn load_exact(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        self.load(model)
    }

    /// Runs a model and measures what it takes.
    ///
    /// # Errors
    /// The model does not load or run, or ([`RuntimeError::Unsupported`]) this runtime does not tell.
    fn memory(&self, model: &ModelFile, inputs: &[Named]) -> Result<Memory, RuntimeError> {
        let _ = (model, inputs);
        Err(RuntimeError::Unsupported {
            runtime: self.name(),
            reason: "it does not report memory".to_string(),
        })
    }

    /// The most that any run of a model takes: that [memory](Backend::memory) alone.
    ///
    /// # Errors
    /// See [`Backend::memory`].
    fn peak(&self, model: &ModelFile, inputs: &[Named]) -> Result<Peak, RuntimeError> {
        Ok(self.memory(model, inputs)?.peak())
    }
}

/// A loaded model. Sessions of two models may run at the same time.
pub trait Session: Send {
    /// What the model reads and writes.
    fn interface(&self) -> &Interface;

    /// Runs the model once. `inputs` has one resident tensor for every input of the interface, in any order;
    /// sizes may change from one run to the next.
    ///
    /// # Errors
    /// The model does not run with these inputs, or not on this runtime.
    fn run(&mut self, inputs: &[Named]) -> Result<Outputs, RuntimeError>;

    /// Names of the values inside the main graph that this runtime can show, in file order.
    fn values(&self) -> &[String] {
        &[]
    }

    /// From the next run on, shows these values too, as far as `budget` bytes allow: of several that do not all
    /// fit, some from everywhere in the graph, the same for every model in which they have the same sizes.
    fn watch(&mut self, names: &[String], budget: u64) {
        let _ = (names, budget);
    }

    /// Nodes that run somewhere else than where they were meant to.
    fn elsewhere(&self) -> &[Placement] {
        &[]
    }
}

/// A node as ONNX Runtime runs it, after its own rewrites.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// Execution provider.
    pub provider: String,
    /// Name of the node; empty for nodes that ONNX Runtime made.
    pub node: String,
    /// Operator type, after `domain::` for another than the standard domain.
    pub operator: String,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.node.is_empty() { "unnamed" } else { &self.node };
        write!(f, "{name} ({}) on {}", self.operator, self.provider)
    }
}

/// Results of one run.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// Graph outputs in the order of the interface.
    pub tensors: Vec<Named>,
    /// Values inside the graph that were [watched](Session::watch), in the order asked for.
    pub watched: Vec<Named>,
    /// Time of the computation alone, without loading and preparation.
    pub wall: Duration,
}

/// Inputs and outputs of a model, in the order of the file; inputs that have an initializer are left out.
#[derive(Clone, PartialEq, Debug)]
pub struct Interface {
    /// Graph inputs that a run has to provide.
    pub inputs: Vec<Port>,
    /// Graph outputs.
    pub outputs: Vec<Port>,
}

/// One graph input or output.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Declared element type and shape.
    pub ty: TensorType,
}

/// Why a model was not run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are no model.
    #[error("{runtime} cannot parse the model: {reason}")]
    Malformed {
        /// Name of the runtime.
        runtime: &'static str,
        /// What it said.
        reason: String,
    },
    /// The runtime does not have an operator.
    #[error("operator {operator} is not supported by {runtime}")]
    Operator {
        /// Operator type, after `domain::` for another than the standard domain.
        operator: String,
        /// Name of the runtime.
        runtime: &'static str,
    },
    /// The runtime does not have something else that the model needs: an element type, an attribute, ...
    #[error("not supported by {runtime}: {reason}")]
    Unsupported {
        /// Name of the runtime.
        runtime: &'static str,
        /// What it does not have.
        reason: String,
    },
    /// The run failed.
    #[error("{runtime} failed: {reason}")]
    Failed {
        /// Name of the runtime.
        runtime: &'static str,
        /// What it said.
        reason: String,
    },
    /// The runtime, the execution provider or the device that was asked for is not there.
    #[error("{runtime} is not available: {reason}")]
    Unavailable {
        /// What was asked for.
        runtime: &'static str,
        /// What is missing.
        reason: String,
    },
    /// Inputs of this type cannot be made or passed.
    #[error("input {input} has element type {dtype}, for which no values can be generated")]
    InputType {
        /// Graph input.
        input: String,
        /// Its type.
        dtype: DType,
    },
    /// A size that was asked for contradicts the model.
    #[error("{0}")]
    Sizes(String),
    /// Data of a tensor are not there or do not fit its type.
    #[error(transparent)]
    Tensor(#[from] dmopt_ir::TensorError),
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_of_the_embedded_runtime_is_the_pinned_one() {
        let pinned = format!("tract-onnx = {{ version = \"={}\"", super::TRACT_VERSION);
        assert!(include_str!("../Cargo.toml").contains(&pinned));
    }
}
