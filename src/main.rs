//! The command line. Errors become one line and an exit code here, and nowhere else.

mod cli;

use std::process::ExitCode;

/// What shells report of a process that was interrupted.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    // Without a handler there would be no clearing up, and nothing else would be lost.
    let _ = ctrlc::set_handler(|| {
        dmopt::onnx::scratch::clear_for_exit();
        std::process::exit(INTERRUPTED);
    });
    cli::run()
}
