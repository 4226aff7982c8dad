//! `dmopt session`.

use std::io::Write;

use anyhow::Context;
use clap::{Args, ValueEnum};
use dmopt::runtime::{self, Ep};

/// Print code that makes a low-memory session of ONNX Runtime for a model, to be pasted
#[derive(Args)]
pub struct Session {
    /// The model, as the code will name it; it need not exist
    #[arg(value_name = "MODEL")]
    model: String,
    /// Execution provider: cpu, cuda, or cuda:N for GPU number N
    #[arg(long, value_name = "EP", default_value_t = Ep::Cpu)]
    ep: Ep,
    /// Language of the code
    #[arg(long, value_enum, value_name = "LANGUAGE", default_value_t = Language::Python)]
    language: Language,
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
        let language = match self.language {
            Language::Python => runtime::Language::Python,
            Language::Rust => runtime::Language::Rust,
            Language::Cpp => runtime::Language::Cpp,
        };
        let code = runtime::session_code(language, &self.model, self.ep);
        anstream::stdout().write_all(code.as_bytes()).context("cannot print")
    }
}
