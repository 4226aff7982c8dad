//! Which runtimes there are, and which of them are asked.

use std::path::PathBuf;

use dmopt_ir::Model;
use dmopt_runtime::apart::{Apart, Processes, Which};
use dmopt_runtime::{Backend, Ep, SessionKind};

use crate::{Error, onnx};

/// What a file says about itself if it needs a version of ONNX Runtime, as `1.24`, or a later one.
pub const MIN_ONNXRUNTIME: &str = "dmopt.min_onnxruntime";

/// `MAJOR.MINOR`.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What a model says it needs, as `1.24`.
pub(crate) fn needed(model: &Model) -> Option<String> {
    onnx::metadata(model, MIN_ONNXRUNTIME)
}

/// Refuses a runtime that is older than what a model needs.
///
/// # Errors
/// [`Error::Unavailable`].
pub(crate) fn suits(file: &str, model: &Model, runtime: &dyn Backend) -> Result<(), Error> {
    let (Some(needed), Some(version)) = (needed(model), runtime.version()) else { return Ok(()) };
    if version >= parse_version(&needed).unwrap_or((0, 0)) {
        return Ok(());
    }
    let found = runtime.name();
    Err(Error::Unavailable(format!(
        "{file} needs ONNX Runtime {needed} or later, and what was found is {found}"
    )))
}

/// Which runtimes to use, and how ONNX Runtime is set up.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Runtimes {
    /// Which ones.
    pub with: With,
    /// ONNX Runtime's library; without, the first of [`ort::discover`](dmopt_runtime::ort::discover) that can be used.
    pub ort_lib: Option<PathBuf>,
    /// Execution provider of ONNX Runtime.
    pub ep: Ep,
    /// Configuration of ONNX Runtime's sessions.
    pub session: SessionKind,
    /// Processes for them; without, they run in this one, which ends with them if a model makes them die. On CUDA they
    /// always do: each process would hold a context of its own on the device.
    pub processes: Option<Processes>,
}

/// Which runtimes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum With {
    /// Those that are there; a library that is named and an execution provider other than the processor have to be.
    #[default]
    Available,
    /// The embedded one.
    Tract,
    /// ONNX Runtime.
    Ort,
    /// Both.
    Both,
}

/// The runtimes that were found.
pub(crate) struct Found {
    /// The embedded one.
    pub tract: Option<Box<dyn Backend>>,
    /// ONNX Runtime.
    pub ort: Option<Box<dyn Backend>>,
    /// Why ONNX Runtime is not among them; empty when it is.
    pub without_ort: String,
    /// Why none is to run the model, though there may be some.
    pub refused: Option<String>,
}

impl Runtimes {
    /// The embedded runtime alone.
    pub fn embedded() -> Runtimes {
        Runtimes { with: With::Tract, ..Runtimes::default() }
    }

    /// Loads them.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: one that was asked for is not there.
    pub(crate) fn find(&self) -> Result<Found, Error> {
        let named = self.ort_lib.is_some() || self.ep != Ep::Cpu;
        let required = |with| self.with == with || self.with == With::Both;
        let tract = match self.embedded_runtime() {
            Some(_) if self.with == With::Ort => None,
            None if required(With::Tract) => return Err(Error::Unavailable(NO_TRACT.to_string())),
            found => found,
        };
        if self.with == With::Tract && self.ep != Ep::Cpu {
            return Err(Error::Unavailable(format!(
                "the embedded runtime has no execution provider {}",
                self.ep
            )));
        }
        let (ort, without_ort) = match self.with {
            With::Tract => (None, "not asked for".to_string()),
            _ => match self.onnx_runtime() {
                Ok(ort) => (Some(ort), String::new()),
                Err(reason) if named || required(With::Ort) => return Err(Error::Unavailable(reason)),
                Err(reason) => (None, reason),
            },
        };
        Ok(Found { tract, ort, without_ort, refused: None })
    }

    #[cfg(feature = "ort")]
    fn onnx_runtime(&self) -> Result<Box<dyn Backend>, String> {
        use dmopt_runtime::ort::OnnxRuntime;
        let found = OnnxRuntime::find(self.ort_lib.as_deref()).and_then(|runtime| {
            runtime.require(&self.ep)?;
            Ok(runtime)
        });
        let runtime = found.map_err(|cause| cause.to_string())?;
        let which = Which::OnnxRuntime {
            library: runtime.path().to_path_buf(),
            settings: self.session.into(),
            ep: self.ep.clone(),
        };
        Ok(self.hosted(runtime.backend(self.session, self.ep.clone()), which))
    }

    #[cfg(not(feature = "ort"))]
    fn onnx_runtime(&self) -> Result<Box<dyn Backend>, String> {
        Err("this build cannot use ONNX Runtime (it lacks the feature ort)".to_string())
    }

    #[cfg(feature = "tract")]
    fn embedded_runtime(&self) -> Option<Box<dyn Backend>> {
        Some(self.hosted(dmopt_runtime::tract::Tract, Which::Embedded))
    }

    #[cfg(not(feature = "tract"))]
    fn embedded_runtime(&self) -> Option<Box<dyn Backend>> {
        None
    }

    /// A runtime where it is to run.
    #[cfg(any(feature = "ort", feature = "tract"))]
    fn hosted(&self, runtime: impl Backend + 'static, which: Which) -> Box<dyn Backend> {
        match &self.processes {
            Some(processes) if self.ep == Ep::Cpu => Box::new(Apart::new(runtime, which, processes.clone())),
            _ => Box::new(runtime),
        }
    }
}

const NO_TRACT: &str = "built without the embedded runtime (the feature tract)";

impl Found {
    /// None, for this reason.
    pub fn refuse(reason: String) -> Found {
        Found { tract: None, ort: None, without_ort: reason.clone(), refused: Some(reason) }
    }

    /// Why there is none at all.
    pub fn none(&self) -> String {
        let missing = || format!("{NO_TRACT}, and ONNX Runtime: {}", self.without_ort);
        self.refused.clone().unwrap_or_else(missing)
    }
}
