//! Tests of the whole tool, in one binary.

mod cli;
mod examples;
