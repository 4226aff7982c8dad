//! The part of the diagnosis that is about ONNX Runtime and CUDA.

use std::path::Path;

use dmopt_runtime::ort::{self, Candidate, Driver, OnnxRuntime};

use super::{Diagnosis, Remedy, Runtime, uses};

pub(super) const ORT: Remedy = Remedy { what: "ONNX Runtime", command: "pip install onnxruntime" };
pub(super) const CUDA_PROVIDER: Remedy =
    Remedy { what: "CUDA provider", command: "pip install 'onnxruntime-gpu[cuda,cudnn]'" };
const CUDA_DRIVER: Remedy = Remedy { what: "NVIDIA driver", command: "sudo ubuntu-drivers install" };

/// Looks for libraries of ONNX Runtime, and for what CUDA needs.
pub(super) fn look(found: &mut Diagnosis, explicit: Option<&Path>) {
    let candidates = ort::discover(explicit);
    let chosen = ort::preferred(&candidates).and_then(|candidate| {
        let runtime = OnnxRuntime::load(&candidate.path).map_err(|cause| cause.to_string())?;
        Ok((candidate, runtime))
    });
    for candidate in &candidates {
        let loaded = chosen.as_ref().ok().filter(|(chosen, _)| chosen.path == candidate.path);
        found.runtimes.push(library(candidate, loaded.map(|(_, runtime)| runtime)));
    }
    if chosen.is_err() {
        found.remedies.push(ORT);
    }
    cuda(found, chosen.as_ref().ok().map(|(_, runtime)| runtime), &ort::driver());
    found.uses = uses(chosen.map(|(_, runtime)| format!("onnxruntime {}", runtime.library().version)));
}

fn library(candidate: &Candidate, loaded: Option<&OnnxRuntime>) -> Runtime {
    let (version, problem, providers) = match &candidate.library {
        Ok(library) => (library.version.as_str(), None, library.providers.clone()),
        Err(reason) => ("", Some(reason.clone()), Vec::new()),
    };
    Runtime {
        name: format!("onnxruntime {version}").trim_end().to_string(),
        origin: format!("{} ({})", candidate.path.display(), candidate.origin),
        problem,
        providers,
        devices: loaded.map(OnnxRuntime::devices).unwrap_or_default(),
        used: loaded.is_some(),
    }
}

fn cuda(found: &mut Diagnosis, runtime: Option<&OnnxRuntime>, driver: &Result<Driver, String>) {
    let provider = match runtime {
        // A device is asked about below.
        Some(runtime) => match ort::usable(runtime.library(), &Ok(any_device()), 0) {
            Ok(()) => Ok(format!("in onnxruntime {}", runtime.library().version)),
            Err(reason) => Err(reason),
        },
        None => Err("no ONNX Runtime".to_string()),
    };
    if provider.is_err() {
        found.remedies.push(CUDA_PROVIDER);
    }
    if driver.is_err() {
        found.remedies.push(CUDA_DRIVER);
    }
    let device = match driver {
        Ok(Driver { devices, .. }) if devices.is_empty() => Err("the driver knows none".to_string()),
        Ok(Driver { devices, .. }) => Ok(devices.join(", ")),
        Err(_) => Err("none without a driver".to_string()),
    };
    let driver = driver.as_ref().map(|driver| format!("for CUDA {}", driver.cuda)).map_err(Clone::clone);
    found.cuda = vec![("provider", provider), ("driver", driver), ("device", device)];
}

fn any_device() -> Driver {
    Driver { cuda: String::new(), devices: vec![String::new()] }
}
