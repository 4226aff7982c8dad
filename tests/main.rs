//! Tests of the whole tool, in one binary.

// What a test needs and does not find is a failure of the test, in its helper functions too.
#![allow(clippy::unwrap_used)]

mod apart;
mod cli;
mod conformance;
mod docs;
mod examples;
mod exports;
mod files;
mod forms;
mod hostile;
mod html_report;
mod memory;
mod pipeline;
mod properties;
mod schedule;
mod serving;
mod shell;
mod splits;
mod timeline;
mod validation;
