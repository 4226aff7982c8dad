//! Networks of torchvision as ONNX files, exported by a PyTorch of its own below `target/`.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::test::{call, make_venv, target_folder};

/// Packages and their versions.
const REQUIREMENTS: &str = "fixtures/requirements.txt";

/// What to export. The script knows the networks and says so where it is asked for another.
#[derive(Args)]
pub struct Choices {
    /// Folder to write to
    #[arg(default_value = "target/torchvision")]
    folder: PathBuf,
    /// Only these networks, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Only this exporter; ts-bn is ts with batch normalizations kept
    #[arg(long, value_name = "NAME", value_parser = ["ts", "dynamo", "ts-bn"])]
    exporter: Option<String>,
    /// Another batch than usual
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
}

/// Exports the networks.
pub fn export(choices: &Choices) -> anyhow::Result<()> {
    let venv = target_folder().join("pytorch");
    make_venv(&venv, REQUIREMENTS)?;
    let mut command = Command::new(venv.join("bin/python"));
    command.arg("fixtures/export_torchvision.py").arg(&choices.folder);
    if !choices.only.is_empty() {
        command.arg("--only").args(&choices.only);
    }
    if let Some(exporter) = &choices.exporter {
        command.arg("--exporter").arg(exporter);
    }
    if let Some(batch) = choices.batch {
        command.arg("--batch").arg(batch.to_string());
    }
    call(&mut command)
}
