//! The command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    dmopt::cli::run(&[])
}
