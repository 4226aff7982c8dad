//! How much memory a model takes in ONNX Runtime.
//!
//! **On the CPU**, to the byte: an allocator of ours serves the session and writes down every block. The figures
//! are what the session asks for, without the rounding and the reserves of an arena, which [`Arena`] adds for the
//! default session. That is loaded several times, because it does not always execute the same order. One thread
//! runs the model, so that temporaries which convolutions keep per thread do not depend on the machine; which
//! kernels there are still does, where they have temporaries.
//!
//! **On CUDA**, from the statistics of the provider's arena. Requests are rounded up there, at least to 256 bytes,
//! and the most ever in use cannot be reset: where loading the model, or the search for the fastest convolution in the
//! first run, needs more than running it, the peak is an upper bound.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer;
use ort::memory::Allocator;

use super::counting;
use super::{
    Ep, Level, OnnxRuntime, OrtSession, Settings, Setup, device_memory, failed, found, nvml, run, values,
};
use crate::{Arena, Memory, ModelFile, Named, Peak, RuntimeError};

/// Loads in one measurement of a session that may arrange operators for the processor: it does not execute a file in the
/// same order each time, and not all orders need as much.
const LOADS: usize = 3;

/// Runs of the first load. The second already shows what every later one needs; the third proves it.
const RUNS: usize = 3;

impl OnnxRuntime {
    /// Runs a model and measures its memory. On CUDA inputs and outputs are on the device; the inputs do not count.
    ///
    /// # Errors
    /// The model does not load or run.
    pub fn memory(
        &self,
        model: &ModelFile,
        settings: impl Into<Settings>,
        ep: Ep,
        inputs: &[Named],
    ) -> Result<Memory, RuntimeError> {
        let settings = settings.into();
        match ep {
            Ep::Cpu => {
                let arena = if settings.arena { self.arena(model, settings, inputs)? } else { None };
                Ok(Memory { arena, ..self.count(model, settings, inputs)? })
            }
            Ep::Cuda { device, .. } => self.ask_device(model, settings, ep, device, inputs),
        }
    }

    /// With the counting allocator, and without the arena: the most that is needed in any of several loads.
    pub(super) fn count(
        &self,
        model: &ModelFile,
        settings: Settings,
        inputs: &[Named],
    ) -> Result<Memory, RuntimeError> {
        let larger = |a: Peak, b: Peak| if b.bytes > a.bytes { b } else { a };
        let mut most = self.count_load(model, settings, inputs, RUNS)?;
        let more = if settings.level == Level::All { LOADS - 1 } else { 0 };
        for _ in 0..more {
            let other = self.count_load(model, settings, inputs, RUNS - 1)?;
            most.kept_bytes = most.kept_bytes.max(other.kept_bytes);
            most.first = larger(most.first, other.first);
            most.steady = larger(most.steady, other.steady);
        }
        Ok(most)
    }

    fn count_load(
        &self,
        model: &ModelFile,
        settings: Settings,
        inputs: &[Named],
        runs: usize,
    ) -> Result<Memory, RuntimeError> {
        let folder = tempfile::tempdir().map_err(failed)?;
        let setup =
            Setup { settings, ep: Ep::Cpu, exact: false, counted: Some(&folder.path().join("profile")) };
        let (session, loading) = counting::record(|| self.open(model, &setup));
        let mut session = session?;
        let values = session.inputs(inputs)?;
        let mut peaks = Vec::with_capacity(runs);
        for _ in 0..runs {
            peaks.push(session.counted_run(&values)?);
        }
        // Otherwise the file would be written after its folder is gone.
        session.raw.end_profiling().map_err(failed)?;
        let (first, later) = (peaks[0], &peaks[1..]);
        let steady = later.iter().copied().max_by_key(|peak| peak.bytes).unwrap_or(first);
        Ok(Memory { kept_bytes: counting::kept(&loading), first, steady, arena: None, process_bytes: None })
    }

    /// The arena of a session that nothing of ours is in.
    fn arena(
        &self,
        model: &ModelFile,
        settings: Settings,
        inputs: &[Named],
    ) -> Result<Option<Arena>, RuntimeError> {
        let mut session = self.session(model, settings, Ep::Cpu)?;
        let values = session.inputs(inputs)?;
        for _ in 0..RUNS {
            run(&mut session.raw, &values)?;
        }
        Ok(session.statistics(0)?.map(|s| Arena { max_in_use: s.max_in_use, held: s.total }))
    }

    /// With the statistics of the device's arena.
    fn ask_device(
        &self,
        model: &ModelFile,
        settings: Settings,
        ep: Ep,
        device: i32,
        inputs: &[Named],
    ) -> Result<Memory, RuntimeError> {
        let mut session = self.session(model, settings, ep)?;
        let no_statistics = || failed("the device's arena has no statistics");
        let kept = session.statistics(device)?.ok_or_else(no_statistics)?.in_use;
        let values = session.inputs(inputs)?;
        let _turn = super::cuda::turn(&session.ep);
        let mut peaks = Vec::with_capacity(RUNS);
        let mut held = 0;
        for _ in 0..RUNS {
            let binding = session.bind(&values, device)?;
            let before = session.statistics(device)?.ok_or_else(no_statistics)?.in_use;
            session.raw.run_binding(&binding).map_err(failed)?;
            binding.synchronize_outputs().map_err(failed)?;
            let after = session.statistics(device)?.ok_or_else(no_statistics)?;
            let outputs = after.in_use.saturating_sub(before);
            let bytes = after.max_in_use.saturating_sub(before);
            peaks.push(Peak { bytes, activations: bytes.saturating_sub(outputs), scratch: None, outputs });
            held = after.total;
        }
        let max_in_use = session.statistics(device)?.ok_or_else(no_statistics)?.max_in_use;
        let steady = peaks[RUNS - 1];
        Ok(Memory {
            kept_bytes: kept,
            first: peaks[0],
            steady,
            arena: Some(Arena { max_in_use, held }),
            process_bytes: nvml::process_bytes(device),
        })
    }
}

/// What an arena says of itself, in bytes.
struct Statistics {
    in_use: u64,
    max_in_use: u64,
    total: u64,
}

impl OrtSession {
    fn counted_run(&mut self, inputs: &[values::Input]) -> Result<Peak, RuntimeError> {
        let (outputs, events) = counting::record(|| run(&mut self.raw, inputs));
        let outputs = outputs?;
        let addresses = self
            .interface
            .outputs
            .iter()
            .map(|port| Ok(values::address(found(&outputs, &port.name)?)?.addr()))
            .collect::<Result<Vec<usize>, RuntimeError>>()?;
        // A setting that ONNX Runtime does not know is ignored in silence; so would be our allocator.
        if !events.iter().any(|event| matches!(event, counting::Event::Alloc(..))) {
            return Err(failed("the counting allocator was not used, or the model allocates nothing"));
        }
        Ok(counting::peak(&events, &addresses))
    }

    /// Statistics of the session's arena; `None` without one.
    fn statistics(&self, device: i32) -> Result<Option<Statistics>, RuntimeError> {
        let allocator = Allocator::new(&self.raw, device_memory(&self.ep, device)?).map_err(failed)?;
        let mut pairs = ptr::null_mut();
        // SAFETY: the allocator is alive, the pointer is valid for writing; the list is ours to release, and its
        // texts are copied before.
        unsafe {
            let status = (ort::api().AllocatorGetStats)(allocator.ptr(), &mut pairs);
            ort::Error::result_from_status(status).map_err(failed)?;
            let number = |key: &CStr| {
                let value: *const c_char = (ort::api().GetKeyValue)(pairs, key.as_ptr());
                if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok()?.parse::<u64>().ok() }
            };
            let numbers = (number(c"InUse"), number(c"MaxInUse"), number(c"TotalAllocated"));
            (ort::api().ReleaseKeyValuePairs)(pairs);
            let (Some(in_use), Some(max_in_use), Some(total)) = numbers else { return Ok(None) };
            Ok(Some(Statistics { in_use, max_in_use, total }))
        }
    }
}
