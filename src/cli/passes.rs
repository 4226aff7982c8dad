//! `dmopt passes`.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use clap::Args;
use dmopt::passes::{PIPELINE, Pass, find, header};

use super::pass_names;

/// List the passes in the order in which they run, or show one with its examples
#[derive(Args)]
pub struct Passes {
    /// The pass to show
    #[arg(value_name = "NAME", value_parser = pass_names())]
    name: Option<String>,
}

impl Passes {
    pub fn run(self) -> anyhow::Result<()> {
        let text = match &self.name {
            None => list(),
            Some(name) => show(find(name)?),
        };
        anstream::stdout().write_all(text.as_bytes()).context("cannot print")
    }
}

fn list() -> String {
    let mut text = String::new();
    let width = PIPELINE.iter().map(|pass| pass.name().len()).max().unwrap_or(0);
    for pass in PIPELINE {
        let summary = header::text(pass.source()).lines().next().unwrap_or_default().to_string();
        let _ = writeln!(text, "{:<width$}  {:<12}  {summary}", pass.name(), pass.safety().name());
    }
    text
}

fn show(pass: &dyn Pass) -> String {
    format!("{} ({})\n\n{}", pass.name(), pass.safety().name(), header::text(pass.source()))
}
