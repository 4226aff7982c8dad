//! `dmopt passes`.

use std::fmt::Write as _;

use clap::Args;
use dmopt::passes::{PIPELINE, Pass, header};
use serde::Serialize;

use super::{own_passes, pass_names};

/// List the passes in the order in which they run, or show one with its examples
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt passes", "all of them"),
    ("dmopt passes fuse-scaled-sum", "what one does, and what it refuses"),
]))]
pub struct Passes {
    /// The pass to show
    #[arg(value_name = "NAME", value_parser = pass_names())]
    name: Option<String>,
    /// Print JSON (dmopt.passes/1)
    #[arg(long)]
    json: bool,
}

/// The value of [`List::schema`].
const SCHEMA: &str = "dmopt.passes/1";

#[derive(Serialize)]
struct List {
    schema: &'static str,
    passes: Vec<Described>,
}

#[derive(Serialize)]
struct Described {
    name: &'static str,
    /// The furthest that its edits may change results.
    safety: &'static str,
    /// What it does, in a sentence.
    summary: String,
    /// The same with algebra and examples, in Markdown.
    documentation: String,
}

impl Passes {
    pub fn run(self) -> anyhow::Result<()> {
        let all = PIPELINE.iter().copied().chain(own_passes());
        let passes: Vec<Described> = all
            .filter(|pass| self.name.as_ref().is_none_or(|name| pass.name() == name))
            .map(describe)
            .collect();
        let list = List { schema: SCHEMA, passes };
        let text = || match (&self.name, list.passes.as_slice()) {
            (Some(_), [pass]) => format!("{} ({})\n\n{}", pass.name, pass.safety, pass.documentation),
            (_, passes) => table(passes),
        };
        super::print(text, &list, self.json)
    }
}

fn describe(pass: &dyn Pass) -> Described {
    let documentation = header::text(pass.source());
    let summary = documentation.lines().next().unwrap_or_default().to_string();
    Described { name: pass.name(), safety: pass.safety().name(), summary, documentation }
}

fn table(passes: &[Described]) -> String {
    let mut text = String::new();
    let width = passes.iter().map(|pass| pass.name.len()).max().unwrap_or(0);
    for Described { name, safety, summary, .. } in passes {
        let _ = writeln!(text, "{name:<width$}  {safety:<12}  {summary}");
    }
    text
}
