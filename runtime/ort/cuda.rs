//! What CUDA needs, and whether it is there: an execution provider in the library, a driver, a device.
//!
//! ONNX Runtime's own message for any of these is long and names only the first thing that failed inside; without
//! asking beforehand, a session that wanted a GPU would say that some library could not be loaded.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Library;
use crate::settings::{CUDA, Ep};

/// An NVIDIA driver that works.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Driver {
    /// Newest version of CUDA that it serves, as `12.8`.
    pub cuda: String,
    /// Names of the devices, in the order of their numbers.
    pub devices: Vec<String>,
}

/// Asks the driver.
///
/// # Errors
/// One sentence: there is none, or it does not work.
pub fn driver() -> Result<Driver, String> {
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    // SAFETY: this is the driver's own library; the names and signatures are those of its documentation.
    unsafe {
        let library =
            libloading::Library::new(name).map_err(|_| format!("no NVIDIA driver ({name} is missing)"))?;
        let incomplete = |_| format!("{name} is no complete NVIDIA driver");
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0").map_err(incomplete)?;
        let version = library
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDriverGetVersion\0")
            .map_err(incomplete)?;
        let count = library
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0")
            .map_err(incomplete)?;
        let label = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0")
            .map_err(incomplete)?;
        let error = library
            .get::<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>(b"cuGetErrorString\0")
            .map_err(incomplete)?;
        let done = |code: c_int| -> Result<(), String> {
            if code == 0 {
                return Ok(());
            }
            let mut text = ptr::null();
            let known = error(code, &mut text) == 0 && !text.is_null();
            let text =
                if known { CStr::from_ptr(text).to_string_lossy().into_owned() } else { "unknown".into() };
            Err(format!("the NVIDIA driver does not work: error {code}, {text}"))
        };
        let (mut cuda, mut devices) = (0, 0);
        done(init(0))?;
        done(version(&mut cuda))?;
        done(count(&mut devices))?;
        let mut names = Vec::new();
        for device in 0..devices {
            let mut name = [0 as c_char; 256];
            // A device's handle is its number.
            done(label(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
            names.push(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned());
        }
        Ok(Driver { cuda: format!("{}.{}", cuda / 1000, cuda % 1000 / 10), devices: names })
    }
}

/// Held by the session that runs on a device. cuDNN captures streams while it plans convolutions, and as long as it does,
/// ONNX Runtime cannot wait for the device in another thread: "operation not permitted when stream is capturing".
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other session runs on a device, and keeps others from it; at once for the processor.
pub(super) fn turn(ep: &Ep) -> Option<MutexGuard<'static, ()>> {
    match ep {
        Ep::Cpu => None,
        Ep::Cuda { .. } => Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// Whether a library can use a device.
///
/// # Errors
/// One sentence: what is missing first of provider, driver and device.
pub fn usable(library: &Library, driver: &Result<Driver, String>, device: i32) -> Result<(), String> {
    if !library.providers.iter().any(|provider| provider == CUDA) {
        return Err(format!(
            "this ONNX Runtime ({}) was built without it; `pip install 'onnxruntime-gpu[cuda,cudnn]'` provides one",
            library.version
        ));
    }
    let Driver { devices, .. } = driver.as_ref().map_err(Clone::clone)?;
    match usize::try_from(device) {
        Ok(device) if device < devices.len() => Ok(()),
        _ => Err(format!("no device of number {device}; the driver knows {}", devices.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_take_turns_on_a_device_and_nowhere_else() {
        let first = turn(&Ep::cuda(0));
        assert!(first.is_some() && TURN.try_lock().is_err());
        assert!(turn(&Ep::Cpu).is_none());
        drop(first);
        assert!(turn(&Ep::cuda(1)).is_some());
    }

    #[test]
    fn what_is_missing_is_named_provider_first_then_driver_then_device() {
        let library = |provider: &str| Library { version: "1.32.0".into(), providers: vec![provider.into()] };
        let driver = |devices: &[&str]| {
            Ok(Driver { cuda: "13.0".into(), devices: devices.iter().map(ToString::to_string).collect() })
        };
        let reason = |library, driver, device| usable(&library, &driver, device).unwrap_err();
        let none = || Err("no NVIDIA driver (libcuda.so.1 is missing)".to_string());
        let built = reason(library("CPUExecutionProvider"), none(), 0);
        assert!(
            built.starts_with("this ONNX Runtime (1.32.0) was built without it; `pip install"),
            "{built}"
        );
        assert_eq!(reason(library(CUDA), none(), 0), "no NVIDIA driver (libcuda.so.1 is missing)");
        assert_eq!(reason(library(CUDA), driver(&[]), 0), "no device of number 0; the driver knows 0");
        assert_eq!(reason(library(CUDA), driver(&["GPU"]), 1), "no device of number 1; the driver knows 1");
        assert_eq!(usable(&library(CUDA), &driver(&["GPU"]), 0), Ok(()));
    }
}
