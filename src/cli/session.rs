//! `dmopt session`.

use clap::{Args, ValueEnum};
use dmopt::runtime::{self, Ep};
use serde::Serialize;

/// Print code that makes a low-memory session of ONNX Runtime for a model, to be pasted
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt session model.opt.onnx", "in Python"),
    ("dmopt session model.opt.onnx --language cpp --ep cuda", "in C++, on a GPU"),
]))]
pub struct Session {
    /// The model, as the code will name it; it need not exist
    #[arg(value_name = "MODEL")]
    model: String,
    /// Execution provider: cpu, cuda, or cuda:N for GPU number N; cuda,KEY=VALUE,... with options of the provider
    #[arg(long, value_name = "EP", default_value_t = Ep::Cpu)]
    ep: Ep,
    /// Language of the code
    #[arg(long, value_enum, value_name = "LANGUAGE", default_value_t = Language::Python)]
    language: Language,
    /// Print JSON (dmopt.session/1)
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    schema: &'a str,
    model: &'a str,
    ep: String,
    language: &'a str,
    code: &'a str,
}

/// A language that ONNX Runtime is called from.
#[derive(Clone, Copy, ValueEnum)]
enum Language {
    /// Package onnxruntime
    Python,
    /// Crate ort
    Rust,
    /// ONNX Runtime's own C++ interface
    Cpp,
}

impl Session {
    pub fn run(self) -> anyhow::Result<()> {
        let (name, language) = match self.language {
            Language::Python => ("python", runtime::Language::Python),
            Language::Rust => ("rust", runtime::Language::Rust),
            Language::Cpp => ("cpp", runtime::Language::Cpp),
        };
        let code = runtime::session_code(language, &self.model, &self.ep);
        let printed = Printed {
            schema: "dmopt.session/1",
            model: &self.model,
            ep: self.ep.to_string(),
            language: name,
            code: &code,
        };
        super::print(|| code.clone(), &printed, self.json)
    }
}
