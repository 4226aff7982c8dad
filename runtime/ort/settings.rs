//! How sessions are made: execution provider, and [`Settings`], of which two sets have a [name](SessionKind).
//!
//! The low-memory configuration, [`SessionKind::Tuned`], and why:
//! - **Memory pattern off.** With it, from the second run on one block holds all values of a run, packed by size
//!   classes, and was measured up to one whole activation above what they need. Without it each run needs what the
//!   first one did.
//! - **Arena off** (CPU), or growing by what is asked for (CUDA). The default one doubles in steps and never gives
//!   back: 2.7 times the need was measured.
//! - **Optimization level BASIC.** ONNX Runtime orders nodes by a search from the outputs that visits the highest
//!   node number first, and files are written for that order. The levels above replace nodes by fused ones with
//!   new numbers, which changes the order and has doubled peaks; BASIC folds constants, convolutions with
//!   batch normalizations and the like, which leaves it alone.

use ort::AsPointer;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::Placement;

/// What a session is configured for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SessionKind {
    /// Nothing set: what everybody gets who sets nothing.
    #[default]
    Default,
    /// The low-memory configuration: memory pattern off, arena off or frugal, optimization level BASIC.
    Tuned,
}

impl SessionKind {
    /// As options and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            SessionKind::Default => "default",
            SessionKind::Tuned => "tuned",
        }
    }
}

/// The settings that decide how much memory a session takes. What users choose between is a [`SessionKind`]; any
/// other combination is for experiments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// From the second run on, one block holds all values of a run.
    pub memory_pattern: bool,
    /// Memory comes from an arena that grows in steps and keeps what it has. Without: from the system as it is needed
    /// (CPU), or from an arena that grows by what is asked for (CUDA).
    pub arena: bool,
    /// What ONNX Runtime may rewrite while it loads a model.
    pub level: Level,
}

/// ONNX Runtime's optimization levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// No rewrites: the nodes that run are those of the file.
    Disabled,
    /// Rewrites that hold for every execution provider: constants and convolutions are folded, for example.
    Basic,
    /// All there are.
    All,
}

impl From<SessionKind> for Settings {
    fn from(kind: SessionKind) -> Settings {
        match kind {
            SessionKind::Default => Settings { memory_pattern: true, arena: true, level: Level::All },
            SessionKind::Tuned => Settings { memory_pattern: false, arena: false, level: Level::Basic },
        }
    }
}

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

/// Execution provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ep {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Number of the GPU.
        device: i32,
    },
}

impl Ep {
    /// As options and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Ep::Cpu => "cpu",
            Ep::Cuda { .. } => "cuda",
        }
    }
}

pub(super) const CUDA: &str = "CUDAExecutionProvider";

/// Options of the CUDA execution provider.
fn cuda_options(settings: Settings, device: i32) -> Vec<(&'static str, String)> {
    let mut options = vec![("device_id", device.to_string())];
    if !settings.arena {
        options.push(("arena_extend_strategy", "kSameAsRequested".to_string()));
        options.push(("cudnn_conv_use_max_workspace", "0".to_string()));
    }
    options
}

pub(super) fn cuda_provider(settings: Settings, device: i32) -> ExecutionProviderDispatch {
    cuda_options(settings, device)
        .into_iter()
        .fold(ort::ep::CUDA::default(), |provider, (key, value)| provider.with_arbitrary_config(key, value))
        .build()
}

/// The nodes that another execution provider got.
pub(super) fn not_on(provider: &str, placements: Vec<Placement>) -> Vec<Placement> {
    placements.into_iter().filter(|p| p.provider != provider).collect()
}

/// A language that ONNX Runtime is called from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    /// Package `onnxruntime`.
    Python,
    /// Crate `ort`, version 2.
    Rust,
    /// ONNX Runtime's own C++ interface.
    Cpp,
}

/// Code that makes the low-memory session for the model at `path`, to be pasted.
pub fn session_code(language: Language, path: &str, ep: Ep) -> String {
    let path = format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""));
    let options = match ep {
        Ep::Cpu => Vec::new(),
        Ep::Cuda { device } => cuda_options(SessionKind::Tuned.into(), device),
    };
    match language {
        Language::Python => python(&path, &options),
        Language::Rust => rust(&path, &options),
        Language::Cpp => cpp(&path, &options),
    }
}

fn python(path: &str, cuda: &[(&str, String)]) -> String {
    let pairs: Vec<String> = cuda.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
    let providers = if cuda.is_empty() {
        "\"CPUExecutionProvider\"".to_string()
    } else {
        format!("(\"{CUDA}\", {{{}}}), \"CPUExecutionProvider\"", pairs.join(", "))
    };
    format!(
        "\
import onnxruntime as ort

options = ort.SessionOptions()
options.enable_mem_pattern = False
options.enable_cpu_mem_arena = False
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
session = ort.InferenceSession({path}, options, providers=[{providers}])
"
    )
}

fn rust(path: &str, cuda: &[(&str, String)]) -> String {
    let settings: String =
        cuda.iter().map(|(key, value)| format!(".with_arbitrary_config(\"{key}\", \"{value}\")")).collect();
    let (imports, first) = if cuda.is_empty() {
        ("", String::new())
    } else {
        (
            "use ort::ep::{ArbitrarilyConfigurableExecutionProvider, CUDA};\n",
            format!("CUDA::default(){settings}.build().error_on_failure(), "),
        )
    };
    format!(
        "\
use ort::ep::CPU;
{imports}use ort::session::{{Session, builder::GraphOptimizationLevel}};

let environment = ort::init().build()?;
let session = Session::builder(&environment)?
    .with_memory_pattern(false)?
    .with_optimization_level(GraphOptimizationLevel::Level1)?
    .with_execution_providers([{first}CPU::default().with_arena_allocator(false).build()])?
    .commit_from_file({path})?;
"
    )
}

fn cpp(path: &str, cuda: &[(&str, String)]) -> String {
    let provider = if cuda.is_empty() {
        String::new()
    } else {
        let pairs: Vec<String> =
            cuda.iter().map(|(key, value)| format!("{{\"{key}\", \"{value}\"}}")).collect();
        format!(
            "\
Ort::CUDAProviderOptions cuda;
cuda.Update({{{}}});
options.AppendExecutionProvider_CUDA_V2(*cuda);
",
            pairs.join(", ")
        )
    };
    format!(
        "\
#include <onnxruntime_cxx_api.h>

Ort::Env env;
Ort::SessionOptions options;
options.DisableMemPattern();
options.DisableCpuMemArena();
options.SetGraphOptimizationLevel(ORT_ENABLE_BASIC);
{provider}Ort::Session session(env, ORT_TSTR({path}), options);
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_gets_the_device_and_when_tuned_a_frugal_arena() {
        assert_eq!(cuda_options(SessionKind::Default.into(), 1), [("device_id", "1".to_string())]);
        let tuned = cuda_options(SessionKind::Tuned.into(), 0);
        assert!(tuned.contains(&("arena_extend_strategy", "kSameAsRequested".to_string())), "{tuned:?}");
    }

    #[test]
    fn nodes_on_the_processor_are_singled_out() {
        let on = |provider: &str, node: &str| Placement {
            provider: provider.into(),
            node: node.into(),
            operator: "Relu".into(),
        };
        let placed = vec![on(CUDA, "a"), on("CPUExecutionProvider", "b")];
        assert_eq!(not_on(CUDA, placed), [on("CPUExecutionProvider", "b")]);
    }

    #[test]
    fn session_code_sets_all_three_settings_in_each_language() {
        for (language, settings) in [
            (
                Language::Python,
                ["enable_mem_pattern = False", "enable_cpu_mem_arena = False", "ENABLE_BASIC"],
            ),
            (Language::Rust, ["with_memory_pattern(false)", "with_arena_allocator(false)", "Level1"]),
            (Language::Cpp, ["DisableMemPattern()", "DisableCpuMemArena()", "ENABLE_BASIC"]),
        ] {
            for ep in [Ep::Cpu, Ep::Cuda { device: 0 }] {
                let code = session_code(language, "dir/a \"b\".onnx", ep);
                assert!(settings.iter().all(|s| code.contains(s)), "{code}");
                assert!(code.contains("\"dir/a \\\"b\\\".onnx\""), "{code}");
                assert_eq!(code.contains("CUDA"), ep != Ep::Cpu, "{code}");
                assert_eq!(code.contains("kSameAsRequested"), ep != Ep::Cpu, "{code}");
            }
        }
    }
}
