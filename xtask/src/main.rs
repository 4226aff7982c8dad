//! Set-up and chores behind one command: `cargo xtask test`, `cargo xtask fixtures`, `cargo xtask network`,
//! `cargo xtask layer`, `cargo xtask torchvision`, `cargo xtask onnx-backend`, `cargo xtask bench-peers`,
//! `cargo xtask bench-scaling`, `cargo xtask bench-memory`, `cargo xtask deny`, `cargo xtask kill`, `cargo xtask fuzz`.

#![forbid(unsafe_code)]

mod bench_memory;
mod deny;
mod fuzz;
mod network;
mod peers;
mod test;
mod torchvision;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Set-up and chores of dmopt.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up what the tests need (below target/) and run all of them
    Test,
    /// Write direct-mixing networks in every form as ONNX files
    Fixtures {
        /// Folder to write to
        #[arg(default_value = "target/fixtures")]
        folder: PathBuf,
    },
    /// Write one direct-mixing network of any size
    Network(network::Choices),
    /// Write one layer of such a network
    Layer(network::LayerChoices),
    /// Check licences, versions and sources of dependencies, and what is known against them
    Deny,
    /// Run the models of the ONNX backend tests through dmopt and judge the results
    OnnxBackend(peers::Conformance),
    /// Time dmopt and other optimizers on large models, and write docs/benchmarks.md
    BenchPeers,
    /// Time dmopt on graphs of many shapes and of two sizes, and write docs/scaling.md
    BenchScaling,
    /// Measure what results need in ONNX Runtime beside their originals, and write docs/results.md
    BenchMemory(bench_memory::Bench),
    /// Kill processes that write models, at random moments, and look at what they leave
    Kill {
        /// How many
        #[arg(long, default_value_t = 200)]
        times: u32,
    },
    /// Feed a target in fuzz/ with mutated inputs
    Fuzz(fuzz::Choices),
    /// Export networks of torchvision, and a U-Net, with random weights (PyTorch goes below target/: 5 GB)
    Torchvision(torchvision::Choices),
}

fn main() -> anyhow::Result<()> {
    std::env::set_current_dir(root()).with_context(|| format!("cannot enter {}", root().display()))?;
    match Cli::parse().command {
        Command::Test => test::run(),
        Command::Fixtures { folder } => {
            let written = dmopt_fixtures::write_all(&folder)
                .with_context(|| format!("cannot write to {}", folder.display()))?;
            println!("{} models in {}", written.len(), folder.display());
            Ok(())
        }
        Command::Network(choices) => network::write(&choices),
        Command::Layer(choices) => network::write_layer(&choices),
        Command::Deny => deny::run(),
        Command::OnnxBackend(choices) => peers::conformance(&choices),
        Command::BenchPeers => peers::bench(),
        Command::BenchScaling => peers::scaling(),
        Command::BenchMemory(bench) => bench_memory::run(&bench),
        Command::Kill { times } => test::kill(times),
        Command::Fuzz(choices) => fuzz::run(&choices),
        Command::Torchvision(choices) => torchvision::export(&choices),
    }
}

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
