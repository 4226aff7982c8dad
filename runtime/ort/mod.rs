//! ONNX Runtime, loaded at run time: nothing of it is needed to build.
//!
//! [`discover()`] lists the libraries of this machine, [`OnnxRuntime::find`] loads the one to use. A process can use
//! one library, once; the first that loads stays.
//!
//! A session is of one of two [kinds](SessionKind): what everybody gets who sets nothing, and the documented
//! low-memory configuration; or it has [`Settings`] of its own. On CUDA nothing ever falls back in silence: without the provider, the driver or a
//! device there is an error, and nodes that ONNX Runtime places on the CPU are [listed](Session::elsewhere).
//!
//! What memory a model takes is measured by [`OnnxRuntime::memory`].

mod apply;
mod counting;
mod cuda;
mod discover;
mod measure;
mod nodes;
mod nvml;
mod values;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ort::AsPointer;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::session::{Session as RawSession, SessionOutputs};

use crate::panics::catch;
use crate::settings::CUDA;
use crate::{Backend, Interface, ModelFile, Named, Outputs, Placement, Port, RuntimeError, Session};
use values::Input;

pub use crate::memory::{Arena, Memory, Peak};
pub use crate::settings::{Ep, Level, SessionKind, Settings};
pub use cuda::{Driver, driver, usable};
pub use discover::{Candidate, Library, Origin, choose, discover, inspect, preferred};

const NAME: &str = "onnxruntime";

/// The library that this process uses.
#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    library: Library,
    /// `onnxruntime 1.32.0`.
    name: String,
    environment: Environment,
}

static LOADED: Mutex<Option<&'static Loaded>> = Mutex::new(None);

/// A loaded ONNX Runtime.
#[derive(Clone, Copy, Debug)]
pub struct OnnxRuntime(&'static Loaded);

impl OnnxRuntime {
    /// Loads the library that [`choose`] prefers.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when there is none that can be used.
    pub fn find(explicit: Option<&Path>) -> Result<OnnxRuntime, RuntimeError> {
        OnnxRuntime::load(&choose(explicit).map_err(unavailable)?.path)
    }

    /// Loads a library. Loading the same again gives the same.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`] when it does not load, is too old, or this process uses another one already.
    pub fn load(path: &Path) -> Result<OnnxRuntime, RuntimeError> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = *loaded {
            return if loaded.path == path {
                Ok(OnnxRuntime(loaded))
            } else {
                Err(unavailable(format!("this process uses {} already", loaded.path.display())))
            };
        }
        let library =
            inspect(&path).map_err(|reason| unavailable(format!("{}: {reason}", path.display())))?;
        // Everything else in `ort` panics until a library is loaded; this does not.
        let builder = ort::init_from(&path).map_err(unavailable)?;
        let environment = catch(|| builder.with_name("dmopt").with_telemetry(false).build())
            .map_err(unavailable)?
            .map_err(unavailable)?;
        environment.set_log_level(LogLevel::Error);
        counting::register(environment.ptr().cast_mut()).map_err(unavailable)?;
        let name = format!("{NAME} {}", library.version);
        let new: &'static Loaded = Box::leak(Box::new(Loaded { path, library, name, environment }));
        *loaded = Some(new);
        Ok(OnnxRuntime(new))
    }

    /// The library.
    pub fn path(&self) -> &'static Path {
        &self.0.path
    }

    /// What the library says of itself.
    pub fn library(&self) -> &'static Library {
        &self.0.library
    }

    /// Devices that the library finds, as `CPUExecutionProvider: CPU, GenuineIntel`.
    pub fn devices(&self) -> Vec<String> {
        let describe = |device: ort::device::Device<'_>| -> ort::Result<String> {
            let hardware = device.hardware_device();
            Ok(format!("{}: {:?}, {}", device.ep()?, hardware.ty(), hardware.vendor()?))
        };
        catch(|| self.0.environment.devices().flat_map(describe).collect()).unwrap_or_default()
    }

    /// Sessions of this kind, or with these settings, as a [`Backend`].
    pub fn backend(&self, settings: impl Into<Settings>, ep: Ep) -> OrtBackend {
        OrtBackend { runtime: *self, settings: settings.into(), ep }
    }

    /// Loads a model.
    ///
    /// # Errors
    /// As [`Backend::load`]; [`RuntimeError::Unavailable`] when the execution provider is not there.
    pub fn session(
        &self,
        model: &ModelFile,
        settings: impl Into<Settings>,
        ep: Ep,
    ) -> Result<OrtSession, RuntimeError> {
        self.open(model, &Setup { settings: settings.into(), ep, exact: false, counted: None })
    }

    /// Makes sure of the execution provider, the driver and the device that sessions on CUDA need, and that the provider
    /// takes its options.
    ///
    /// # Errors
    /// [`RuntimeError::Unavailable`]: what is missing, or wrong with an option.
    pub fn require(&self, ep: &Ep) -> Result<(), RuntimeError> {
        self.reach(ep)?;
        if *ep == Ep::Cpu {
            return Ok(());
        }
        let setup = Setup {
            settings: Settings::from(SessionKind::Default),
            ep: ep.clone(),
            exact: false,
            counted: None,
        };
        self.builder(None, &setup).map(drop)
    }

    /// Makes sure of provider, driver and device alone: whether the options are good shows when the session is made.
    fn reach(&self, ep: &Ep) -> Result<(), RuntimeError> {
        let Ep::Cuda { device, .. } = ep else { return Ok(()) };
        usable(self.library(), &driver(), *device)
            .map_err(|reason| RuntimeError::Unavailable { runtime: CUDA, reason })
    }

    fn open(&self, model: &ModelFile, setup: &Setup<'_>) -> Result<OrtSession, RuntimeError> {
        self.reach(&setup.ep)?;
        let _turn = cuda::turn(&setup.ep);
        let raw = catch(|| {
            let mut builder = self.builder(model.folder.as_deref(), setup)?;
            builder.commit_from_memory(&model.bytes).map_err(refused)
        })
        .map_err(failed)??;
        let ports = |outlets: &[ort::value::Outlet]| -> Result<Vec<Port>, RuntimeError> {
            outlets.iter().map(values::port).collect()
        };
        let interface = Interface { inputs: ports(raw.inputs())?, outputs: ports(raw.outputs())? };
        let elsewhere = match setup.ep {
            Ep::Cpu => Vec::new(),
            Ep::Cuda { .. } => nodes::not_on(CUDA, nodes::placements(&raw)?),
        };
        Ok(OrtSession { raw, interface, ep: setup.ep.clone(), elsewhere })
    }

    /// A session that is being made for a model whose weights lie in a folder.
    fn builder(&self, folder: Option<&Path>, setup: &Setup<'_>) -> Result<SessionBuilder, RuntimeError> {
        // Without a policy of ours, `ort` lets ONNX Runtime pick devices by itself.
        let mut builder = SessionBuilder::new(&self.0.environment)
            .map_err(failed)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)
            .map_err(failed)?;
        if let Some(folder) = folder {
            // The parent of a bare file name is the empty path, which means the current folder.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let folder = folder
                .to_str()
                .ok_or_else(|| unsupported(format!("folder name {} is not UTF-8", folder.display())))?;
            builder = builder
                .with_config_entry("session.model_external_initializers_file_folder_path", folder)
                .map_err(failed)?;
        }
        builder = apply::apply(setup.settings, builder).map_err(failed)?;
        if let Ep::Cuda { .. } = setup.ep {
            let provider = apply::cuda_provider(setup.settings, &setup.ep, setup.exact).error_on_failure();
            builder = builder
                .with_execution_providers([provider])
                .map_err(|e| RuntimeError::Unavailable { runtime: CUDA, reason: one_line(e) })?
                .with_config_entry(nodes::RECORD, "1")
                .map_err(failed)?;
        }
        if let Some(profile) = setup.counted {
            // One thread: what it allocates is all, and temporaries per thread do not depend on the machine.
            builder = builder
                .with_env_allocators()
                .map_err(failed)?
                .with_intra_threads(1)
                .map_err(failed)?
                .with_profiling(profile)
                .map_err(failed)?;
        }
        Ok(builder)
    }
}

/// How a session is made.
struct Setup<'a> {
    settings: Settings,
    ep: Ep,
    /// Compute as exactly as the execution provider can.
    exact: bool,
    /// Use the counting allocator and a single thread, and write a profile to a file of this prefix.
    counted: Option<&'a Path>,
}

/// ONNX Runtime as a [`Backend`].
#[derive(Clone, Debug)]
pub struct OrtBackend {
    runtime: OnnxRuntime,
    settings: Settings,
    ep: Ep,
}

impl Backend for OrtBackend {
    fn name(&self) -> &'static str {
        &self.runtime.0.name
    }

    fn version(&self) -> Option<(u32, u32)> {
        let (_, version) = self.name().rsplit_once(' ')?;
        let mut parts = version.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    }

    fn ep(&self) -> Ep {
        self.ep.clone()
    }

    fn load(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        Ok(Box::new(self.runtime.session(model, self.settings, self.ep.clone())?))
    }

    fn load_exact(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        let setup = Setup { settings: self.settings, ep: self.ep.clone(), exact: true, counted: None };
        Ok(Box::new(self.runtime.open(model, &setup)?))
    }

    fn memory(&self, model: &ModelFile, inputs: &[Named]) -> Result<Memory, RuntimeError> {
        self.runtime.memory(model, self.settings, self.ep.clone(), inputs)
    }

    fn peak(&self, model: &ModelFile, inputs: &[Named]) -> Result<Peak, RuntimeError> {
        let memory = match self.ep {
            // The arena, which takes a session of its own, is not asked.
            Ep::Cpu => self.runtime.count(model, self.settings, inputs),
            Ep::Cuda { .. } => self.memory(model, inputs),
        };
        Ok(memory?.peak())
    }
}

/// A model loaded in ONNX Runtime.
#[derive(Debug)]
pub struct OrtSession {
    raw: RawSession,
    interface: Interface,
    ep: Ep,
    elsewhere: Vec<Placement>,
}

impl Session for OrtSession {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    /// On CUDA the model runs twice: once for the outputs, once timed, with inputs and outputs on the device.
    fn run(&mut self, inputs: &[Named]) -> Result<Outputs, RuntimeError> {
        let _turn = cuda::turn(&self.ep);
        let inputs = self.inputs(inputs)?;
        let start = Instant::now();
        let outputs = run(&mut self.raw, &inputs)?;
        let wall = start.elapsed();
        let tensors = self
            .interface
            .outputs
            .iter()
            .map(|port| Ok((port.name.clone(), values::output(&port.name, found(&outputs, &port.name)?)?)))
            .collect::<Result<_, RuntimeError>>()?;
        drop(outputs);
        let wall = match self.ep {
            Ep::Cpu => wall,
            Ep::Cuda { device, .. } => {
                let binding = self.bind(&inputs, device)?;
                let start = Instant::now();
                self.raw.run_binding(&binding).map_err(failed)?;
                binding.synchronize_outputs().map_err(failed)?;
                start.elapsed()
            }
        };
        Ok(Outputs { tensors, watched: Vec::new(), wall })
    }

    fn elsewhere(&self) -> &[Placement] {
        &self.elsewhere
    }
}

impl OrtSession {
    fn inputs(&self, inputs: &[Named]) -> Result<Vec<Input>, RuntimeError> {
        let named = |name: &str| inputs.iter().find(|(n, _)| n == name);
        self.interface
            .inputs
            .iter()
            .map(|port| {
                let (name, tensor) =
                    named(&port.name).ok_or_else(|| failed(format!("no value for input {}", port.name)))?;
                values::input(name, tensor)
            })
            .collect()
    }

    /// Inputs and outputs on the device.
    fn bind(&self, inputs: &[Input], device: i32) -> Result<ort::session::IoBinding, RuntimeError> {
        let mut binding = self.raw.create_binding().map_err(failed)?;
        for input in inputs {
            binding.bind_input(&*input.name, &input.value).map_err(failed)?;
        }
        let memory = device_memory(&self.ep, device)?;
        for port in &self.interface.outputs {
            binding.bind_output_to_device(&*port.name, &memory).map_err(failed)?;
        }
        binding.synchronize_inputs().map_err(failed)?;
        Ok(binding)
    }
}

/// Memory of the device that an execution provider computes on.
fn device_memory(ep: &Ep, device: i32) -> Result<MemoryInfo<'static>, RuntimeError> {
    let kind = match ep {
        Ep::Cpu => AllocationDevice::CPU,
        Ep::Cuda { .. } => AllocationDevice::CUDA,
    };
    MemoryInfo::new(kind, device, AllocatorType::Device, MemoryType::Default).map_err(failed)
}

fn run<'s>(session: &'s mut RawSession, inputs: &[Input]) -> Result<SessionOutputs<'s>, RuntimeError> {
    let inputs: Vec<_> = inputs.iter().map(|input| (&*input.name, &input.value)).collect();
    session.run(inputs).map_err(failed)
}

fn found<'o>(outputs: &'o SessionOutputs<'_>, name: &str) -> Result<&'o ort::value::DynValue, RuntimeError> {
    outputs.get(name).ok_or_else(|| failed(format!("no output {name}")))
}

fn failed(reason: impl ToString) -> RuntimeError {
    RuntimeError::Failed { runtime: NAME, reason: one_line(reason) }
}

fn unsupported(reason: impl ToString) -> RuntimeError {
    RuntimeError::Unsupported { runtime: NAME, reason: one_line(reason) }
}

fn unavailable(reason: impl ToString) -> RuntimeError {
    RuntimeError::Unavailable { runtime: NAME, reason: one_line(reason) }
}

/// Why ONNX Runtime did not take a model.
fn refused(error: ort::Error) -> RuntimeError {
    let reason = one_line(&error);
    match error.code() {
        ort::ErrorCode::InvalidProtobuf | ort::ErrorCode::InvalidGraph | ort::ErrorCode::NoModel => {
            RuntimeError::Malformed { runtime: NAME, reason }
        }
        ort::ErrorCode::NotImplemented => RuntimeError::Unsupported { runtime: NAME, reason },
        _ => RuntimeError::Failed { runtime: NAME, reason },
    }
}

/// ONNX Runtime's messages run over several lines.
fn one_line(text: impl ToString) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
