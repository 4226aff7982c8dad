//! What a process holds on an NVIDIA GPU, from the driver's management library, when that is there.

use std::ffi::{c_int, c_uint, c_void};

/// An entry of `nvmlDeviceGetComputeRunningProcesses_v3`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Process {
    pid: c_uint,
    used_bytes: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// Bytes of device memory that this process holds: arenas, weights, the CUDA context and the libraries' own. `None`
/// without the management library, without such a device, or where the driver does not tell (inside a container the
/// driver may know the process under another number).
pub(super) fn process_bytes(device: i32) -> Option<u64> {
    type Init = unsafe extern "C" fn() -> c_int;
    type Handle = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
    type Processes = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut Process) -> c_int;
    const UNKNOWN: u64 = u64::MAX;
    // SAFETY: the names and signatures are those of the library's documentation, and each is called as it says.
    unsafe {
        let library = libloading::Library::new("libnvidia-ml.so.1").ok()?;
        let init = library.get::<Init>(b"nvmlInit_v2\0").ok()?;
        let handle = library.get::<Handle>(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?;
        let processes = library.get::<Processes>(b"nvmlDeviceGetComputeRunningProcesses_v3\0").ok()?;
        let mut found = vec![Process::default(); 256];
        let mut count = c_uint::try_from(found.len()).ok()?;
        let mut pointer = std::ptr::null_mut();
        let index = c_uint::try_from(device).ok()?;
        if init() != 0
            || handle(index, &mut pointer) != 0
            || processes(pointer, &mut count, found.as_mut_ptr()) != 0
        {
            return None;
        }
        found.truncate(count as usize);
        let own = found.iter().find(|p| p.pid == std::process::id())?;
        Some(own.used_bytes).filter(|&bytes| bytes != UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_device_that_is_not_there_has_no_memory() {
        assert_eq!(super::process_bytes(-1), None);
        assert_eq!(super::process_bytes(10_000), None);
    }
}
