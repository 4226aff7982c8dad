//! [`Settings`] put into a session that is being made.

use ort::AsPointer;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use crate::settings::{Ep, Level, Settings, cuda_options};

/// Sets what differs from ONNX Runtime's own defaults.
pub(super) fn apply(settings: Settings, mut builder: SessionBuilder) -> Result<SessionBuilder, ort::Error> {
    let Settings { memory_pattern, arena, level } = settings;
    if !memory_pattern {
        builder = builder.with_memory_pattern(false)?;
    }
    if !arena {
        // SAFETY: the options are alive and ours alone; the status was just returned by ONNX Runtime.
        unsafe { ort::Error::result_from_status((ort::api().DisableCpuMemArena)(builder.ptr_mut())) }?;
    }
    Ok(match level {
        Level::Disabled => builder.with_optimization_level(GraphOptimizationLevel::Disable)?,
        Level::Basic => builder.with_optimization_level(GraphOptimizationLevel::Level1)?,
        Level::All => builder,
    })
}

/// The CUDA execution provider with its options.
pub(super) fn cuda_provider(settings: Settings, ep: &Ep, exact: bool) -> ExecutionProviderDispatch {
    cuda_options(settings, ep, exact)
        .into_iter()
        .fold(ort::ep::CUDA::default(), |provider, (key, value)| provider.with_arbitrary_config(key, value))
        .build()
}
