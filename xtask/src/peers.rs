//! dmopt beside other optimizers: on the models of the ONNX backend tests, and on large ones; and on graphs that grow.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::Args;
use dmopt_fixtures::Large;

use super::test::{call, make_venv, target_folder};

/// Other optimizers and their versions; ONNX and ONNX Runtime are those of the tests.
const REQUIREMENTS: &str = "scripts/requirements-peers.txt";

/// What of the ONNX backend tests to run.
#[derive(Args)]
pub struct Conformance {
    /// Only this many models, evenly spread
    #[arg(long, value_name = "N")]
    sample: Option<u32>,
    /// Other optimizers too
    #[arg(long)]
    peers: bool,
    /// Write the table to this document
    #[arg(long, value_name = "FILE.md")]
    output: Option<String>,
}

/// Runs the models of the ONNX backend tests through dmopt.
pub fn conformance(choices: &Conformance) -> anyhow::Result<()> {
    let python = python()?;
    let models = target_folder().join("backend-models");
    call(Command::new(&python).arg("scripts/backend_models.py").arg(&models))?;
    let mut script = Command::new(&python);
    script.arg("scripts/conformance.py").arg(&models).arg("--dmopt").arg(build(&[])?);
    let sample = choices.sample.map(|count| count.to_string());
    script.args(sample.iter().flat_map(|count| ["--sample", count]));
    let peers = if choices.peers { " --peers" } else { "" };
    script.args(peers.split_whitespace());
    if let Some(output) = &choices.output {
        let sample = sample.map(|count| format!(" --sample {count}")).unwrap_or_default();
        let line = format!("cargo xtask onnx-backend{peers}{sample} --output {output}");
        script.args(["--markdown", output, "--command", &line]);
    }
    call(&mut script)
}

/// Builds the large models, times dmopt and the others on them, and writes docs/benchmarks.md.
pub fn bench() -> anyhow::Result<()> {
    let python = python()?;
    let folder = target_folder().join("bench-peers");
    for model in Large::ALL {
        let path = folder.join(model.name()).join("model.onnx");
        if !path.is_file() {
            model.write(&folder).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let mut script = Command::new(&python);
    script.arg("scripts/bench_peers.py").arg(&folder).arg("--dmopt").arg(release()?);
    call(script.args(["--markdown", "docs/benchmarks.md"]))
}

/// Times dmopt on graphs of many shapes and sizes, and writes docs/scaling.md.
pub fn scaling() -> anyhow::Result<()> {
    let mut script = Command::new(python()?);
    script.arg("scripts/bench_scaling.py").arg(target_folder().join("bench-scaling"));
    call(script.arg("--dmopt").arg(release()?).args(["--markdown", "docs/scaling.md"]))
}

/// A Python that has them all.
fn python() -> anyhow::Result<PathBuf> {
    let venv = target_folder().join("peers");
    make_venv(&venv, REQUIREMENTS)?;
    Ok(venv.join("bin/python"))
}

/// The binary as it ships, without the embedded runtime, where that has no part.
pub(crate) fn release() -> anyhow::Result<PathBuf> {
    build(&["--no-default-features", "--features", "ort"])
}

fn build(features: &[&str]) -> anyhow::Result<PathBuf> {
    let build = ["build", "--locked", "--release", "--package", "dmopt"];
    call(Command::new(env!("CARGO")).args(build).args(features))?;
    Ok(Path::new(&target_folder()).join("release/dmopt"))
}
