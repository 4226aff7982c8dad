//! The command line. Errors become one line and an exit code here, and nowhere else.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
