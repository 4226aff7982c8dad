//! The low-memory session as code, to be pasted.

use crate::settings::{CUDA, Ep, SessionKind, cuda_options};

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
pub fn session_code(language: Language, path: &str, ep: &Ep) -> String {
    let path = quoted(path);
    let options: Vec<(String, String)> = cuda_options(SessionKind::Tuned.into(), ep, false)
        .into_iter()
        .map(|(key, value)| (quoted(key), quoted(&value)))
        .collect();
    match language {
        Language::Python => python(&path, &options),
        Language::Rust => rust(&path, &options),
        Language::Cpp => cpp(&path, &options),
    }
}

/// A text as each of these languages writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn python(path: &str, cuda: &[(String, String)]) -> String {
    let pairs: Vec<String> = cuda.iter().map(|(key, value)| format!("{key}: {value}")).collect();
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

fn rust(path: &str, cuda: &[(String, String)]) -> String {
    let settings: String =
        cuda.iter().map(|(key, value)| format!(".with_arbitrary_config({key}, {value})")).collect();
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

fn cpp(path: &str, cuda: &[(String, String)]) -> String {
    let provider = if cuda.is_empty() {
        String::new()
    } else {
        let pairs: Vec<String> = cuda.iter().map(|(key, value)| format!("{{{key}, {value}}}")).collect();
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
    fn session_code_sets_all_three_settings_in_each_language() {
        for (language, settings) in [
            (
                Language::Python,
                ["enable_mem_pattern = False", "enable_cpu_mem_arena = False", "ENABLE_BASIC"],
            ),
            (Language::Rust, ["with_memory_pattern(false)", "with_arena_allocator(false)", "Level1"]),
            (Language::Cpp, ["DisableMemPattern()", "DisableCpuMemArena()", "ENABLE_BASIC"]),
        ] {
            for ep in [Ep::Cpu, Ep::cuda(0), "cuda,a=\"b\"".parse().unwrap()] {
                let code = session_code(language, "dir/a \"b\".onnx", &ep);
                assert!(settings.iter().all(|s| code.contains(s)), "{code}");
                assert!(code.contains("\"dir/a \\\"b\\\".onnx\""), "{code}");
                assert_eq!(code.contains("CUDA"), ep != Ep::Cpu, "{code}");
                assert_eq!(code.contains("kSameAsRequested"), ep != Ep::Cpu, "{code}");
                assert_eq!(code.contains("\\\"b\\\"\""), ep.to_string().contains("a="), "{code}");
            }
        }
    }
}
