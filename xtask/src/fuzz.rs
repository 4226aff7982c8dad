//! Fuzzing with libFuzzer, on a stable compiler: the targets are compiled with the coverage counters of LLVM and every
//! assertion on.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Args;

use super::test::{call, target_folder};

/// What tells libFuzzer which code an input reached, as cargo-fuzz sets it.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What to fuzz, and how long.
#[derive(Args)]
pub struct Choices {
    /// import, text or passes; see fuzz/lib.rs
    target: String,
    /// How long to go on
    #[arg(long, value_name = "N", default_value_t = 1800)]
    seconds: u64,
    /// How long one input may take
    #[arg(long, value_name = "N", default_value_t = 25)]
    timeout: u64,
}

/// Builds a target and runs it on its corpus in `target/fuzz`, which grows; what it finds goes to `target/fuzz/found`.
pub fn run(choices: &Choices) -> anyhow::Result<()> {
    let folder = target_folder().join("fuzz");
    let corpus = folder.join("corpus");
    let models = target_folder().join("backend-models");
    let mut seeds = cargo(&["run", "--locked", "--package", "dmopt-fuzz", "--bin", "seeds", "--"]);
    call(seeds.arg(&corpus).args(models.is_dir().then_some(models)))?;

    // With a target named, the counters stay out of build scripts, which are run without libFuzzer.
    let host = host()?;
    let mut build = cargo(&["build", "--locked", "--package", "dmopt-fuzz", "--profile", "fuzz"]);
    build.args(["--features", "libfuzzer", "--target", &host, "--bin", &choices.target, "--target-dir"]);
    call(build.arg(&folder).env("RUSTFLAGS", COVERAGE.join(" ")))?;

    let binary = folder.join(host).join("fuzz").join(&choices.target);
    let corpus = corpus.join(&choices.target);
    let found = folder.join("found").join(&choices.target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let options = [
        format!("-max_total_time={}", choices.seconds),
        format!("-timeout={}", choices.timeout),
        format!("-artifact_prefix={}/", found.display()),
    ];
    // The limits are those that a container for models would have.
    let limits = ["-rss_limit_mb=2048", "-malloc_limit_mb=1024", "-max_len=8192", "-print_final_stats=1"];
    call(Command::new(binary).args(options).args(limits).arg(corpus))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(arguments);
    command
}

/// The machine that the compiler runs on, in its own words.
fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let output = Command::new(rustc).arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_string())
}
