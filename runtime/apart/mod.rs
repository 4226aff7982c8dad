//! Runtimes in processes of their own.
//!
//! A model may make a runtime divide by zero, read where nothing is, recurse without end, or take all memory, and what
//! happens to a process then cannot be caught within it. So every session, and every measurement of memory, gets a
//! process that may die or be stopped; what it was asked is an error then, like any other that a runtime reports.
//!
//! [`Apart`] is the side that asks: a [`Backend`] like others. [`host`] is the other side. Both are the same program,
//! started again with [`ARGUMENT`]; [`wire`] is what they say to each other.

mod host;
mod process;
mod wire;

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Backend, Ep, Interface, Memory, ModelFile, Named, Outputs, Peak, Placement, RuntimeError, Session,
    Settings,
};
use process::Process;
use wire::{Heads, Loaded, Ran, Reply, Request};

pub use host::host;

/// The first argument of a process that is to run [`host`] and nothing else.
pub const ARGUMENT: &str = "--host-runtime";

/// How processes are made, and how long they may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Processes {
    /// A program that calls [`host`] if its first argument is [`ARGUMENT`].
    pub program: PathBuf,
    /// The longest that a runtime may take to load a model, or to run it once; `None` for as long as it likes.
    pub patience: Option<Duration>,
}

/// A runtime as another process finds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Which {
    /// The embedded one.
    Embedded,
    /// ONNX Runtime.
    OnnxRuntime {
        /// The library.
        library: PathBuf,
        /// How sessions are made.
        settings: Settings,
        /// Execution provider.
        ep: Ep,
    },
}

/// A runtime of which each session has a process of its own.
pub struct Apart<B> {
    runtime: B,
    which: Which,
    processes: Processes,
}

impl<B: Backend> Apart<B> {
    /// `runtime`, in processes that find it as `which`.
    pub fn new(runtime: B, which: Which, processes: Processes) -> Apart<B> {
        Apart { runtime, which, processes }
    }

    fn open(&self, model: &ModelFile, exact: bool) -> Result<Box<dyn Session>, RuntimeError> {
        let mut process = self.start()?;
        let request = Request::Load { exact, folder: model.folder.clone() };
        let (reply, _) = process.ask(&request, &[Cow::Borrowed(&model.bytes)])?;
        let Reply::Loaded(Loaded { interface, values, elsewhere }) = reply else {
            return Err(process.confused());
        };
        let interface = interface.decode().ok_or_else(|| process.confused())?;
        Ok(Box::new(Remote { process, interface, values, elsewhere }))
    }

    fn start(&self) -> Result<Process, RuntimeError> {
        Process::start(&self.processes, &self.which, self.name())
    }

    /// What a process answers that is asked about a model and inputs, and nothing else.
    fn once(
        &self,
        model: &ModelFile,
        inputs: &[Named],
        request: impl FnOnce(Option<PathBuf>, Heads) -> Request,
    ) -> Result<(Process, Reply), RuntimeError> {
        let mut process = self.start()?;
        let (inputs, data) = wire::encode(inputs)?;
        let mut blobs = vec![Cow::Borrowed(&*model.bytes)];
        blobs.extend(data);
        let (reply, _) = process.ask(&request(model.folder.clone(), inputs), &blobs)?;
        Ok((process, reply))
    }
}

impl<B: Backend> Backend for Apart<B> {
    fn name(&self) -> &'static str {
        self.runtime.name()
    }

    fn version(&self) -> Option<(u32, u32)> {
        self.runtime.version()
    }

    fn ep(&self) -> Ep {
        self.runtime.ep()
    }

    fn load(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        self.open(model, false)
    }

    fn load_exact(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        self.open(model, true)
    }

    fn memory(&self, model: &ModelFile, inputs: &[Named]) -> Result<Memory, RuntimeError> {
        match self.once(model, inputs, |folder, inputs| Request::Memory { folder, inputs })? {
            (_, Reply::Memory(memory)) => Ok(memory),
            (process, _) => Err(process.confused()),
        }
    }

    fn peak(&self, model: &ModelFile, inputs: &[Named]) -> Result<Peak, RuntimeError> {
        match self.once(model, inputs, |folder, inputs| Request::Peak { folder, inputs })? {
            (_, Reply::Peak(peak)) => Ok(peak),
            (process, _) => Err(process.confused()),
        }
    }
}

/// A model that another process has loaded.
struct Remote {
    process: Process,
    interface: Interface,
    values: Vec<String>,
    elsewhere: Vec<Placement>,
}

impl Session for Remote {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn run(&mut self, inputs: &[Named]) -> Result<Outputs, RuntimeError> {
        let (inputs, data) = wire::encode(inputs)?;
        let (reply, blobs) = self.process.ask(&Request::Run { inputs }, &data)?;
        let Reply::Ran(Ran { tensors, watched, wall }) = reply else { return Err(self.process.confused()) };
        let mut blobs = blobs.into_iter();
        let decoded = wire::decode(&tensors, &mut blobs).zip(wire::decode(&watched, &mut blobs));
        let (tensors, watched) = decoded.ok_or_else(|| self.process.confused())?;
        Ok(Outputs { tensors, watched, wall })
    }

    fn values(&self) -> &[String] {
        &self.values
    }

    fn watch(&mut self, names: &[String], budget: u64) {
        self.process.tell(&Request::Watch { names: names.to_vec(), budget });
    }

    fn elsewhere(&self) -> &[Placement] {
        &self.elsewhere
    }
}
