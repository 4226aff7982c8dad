//! The command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Graphs are many small allocations: the system's allocator takes a fifth of the time on large ones.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    dmopt::cli::run(&[])
}
