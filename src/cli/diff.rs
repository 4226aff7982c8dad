//! `dmopt diff`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use dmopt::diff::{Constant, Diff, Group};

use super::bytes;
use super::source;
use super::style::{BAD, DOUBT, GOOD, HEAD};
use super::units::plural;

/// How many groups, and lines of each, are shown unless all are asked for.
const GROUPS: usize = 30;
const LINES: usize = 12;

const EXAMPLES: &str = "\
Examples:
  dmopt diff model.onnx model.opt.onnx         what a rewrite changed
  dmopt diff --json a.onnx b.onnx              the same for programs (dmopt.diff/1)
  dmopt diff --exit-code old.onnx new.onnx     exit code 4 if they differ in structure

Exit codes: 0 both were read, whether they differ or not; 1 error; 2 wrong usage; 4 with --exit-code, where the two have
other operators, constants, inputs or outputs (interior names and order do not count).";

/// Show what differs between two models: operators gone, new and changed, by mixing site or block
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct DiffModels {
    /// The first model; - for standard input
    #[arg(value_name = "A")]
    before: PathBuf,
    /// The second model; - for standard input
    #[arg(value_name = "B")]
    after: PathBuf,
    /// Exit with code 4 if the models differ in structure
    #[arg(long)]
    exit_code: bool,
    /// Print JSON (dmopt.diff/1)
    #[arg(long)]
    json: bool,
    /// Print every change, however many there are
    #[arg(short, long)]
    verbose: bool,
}

impl DiffModels {
    pub fn run(self) -> anyhow::Result<()> {
        if [&self.before, &self.after].into_iter().all(|path| super::is_pipe(path)) {
            super::usage_error("A and B would share standard input");
        }
        let found = dmopt::diff::diff(&source(&self.before)?, &source(&self.after)?)?;
        super::print(|| render(&found, self.verbose), &found, self.json)?;
        if self.exit_code && !found.same_structure {
            let candidate = found.after.path.unwrap_or_default();
            let exceeded = format!("has another structure than {}", found.before.path.unwrap_or_default());
            return Err(dmopt::Error::Limit { candidate, exceeded }.into());
        }
        Ok(())
    }
}

fn render(found: &Diff, all: bool) -> String {
    let mut text = String::new();
    let (before, after) = (&found.before, &found.after);
    let count = |of: fn(&Group) -> usize| found.groups.iter().map(of).sum::<usize>();
    let (gone, new) = (count(|group| group.gone.len()), count(|group| group.new.len()));
    let changed = count(|group| group.changed.len());
    let _ = writeln!(text, "{:<11}{} -> {}", "models", name(before), name(after));
    let _ = writeln!(
        text,
        "{:<11}{} -> {}: {BAD}{gone} gone{BAD:#}, {GOOD}{new} new{GOOD:#}, {DOUBT}{changed} changed{DOUBT:#}, {} the same",
        "nodes", before.nodes, after.nodes, found.unchanged
    );
    let _ = writeln!(
        text,
        "{:<11}{} -> {}{}",
        "weights",
        bytes(before.initializer_bytes),
        bytes(after.initializer_bytes),
        constants(found)
    );
    if found.moved > 0 {
        let _ = writeln!(
            text,
            "{:<11}{} that both have stand elsewhere",
            "order",
            plural(found.moved, "operator")
        );
    }
    let same = if found.same_structure { "the same" } else { "another" };
    let _ = writeln!(
        text,
        "{:<11}{same} ({:.12} -> {:.12})",
        "structure", found.structure.before, found.structure.after
    );
    for line in &found.interface {
        let _ = writeln!(text, "{:<11}{line}", "interface");
    }
    let shown = if all { found.groups.len() } else { found.groups.len().min(GROUPS) };
    for group in &found.groups[..shown] {
        one(&mut text, group, all);
    }
    if shown < found.groups.len() {
        let _ = writeln!(text, "\n... and {} more groups (-v lists all)", found.groups.len() - shown);
    }
    text
}

fn name(file: &dmopt::report::File) -> &str {
    file.path.as_deref().unwrap_or_default()
}

fn constants(found: &Diff) -> String {
    let part = |list: &[Constant], word: &str| match list.len() {
        0 => String::new(),
        n => format!(", {n} {word} ({})", bytes(list.iter().map(|constant| constant.bytes).sum())),
    };
    part(&found.constants_gone, "gone") + &part(&found.constants_new, "new")
}

fn one(text: &mut String, group: &Group, all: bool) {
    let form = group.form.as_ref().map(|form| {
        let side = |form: &Option<String>| form.clone().unwrap_or_else(|| "none".to_string());
        match form.before == form.after {
            true => format!(" ({})", side(&form.before)),
            false => format!(" ({} -> {})", side(&form.before), side(&form.after)),
        }
    });
    let _ = writeln!(text, "\n{HEAD}{}{HEAD:#}{}", group.title, form.unwrap_or_default());
    let gone = group.gone.iter().map(|line| format!("  {BAD}- {line}{BAD:#}"));
    let new = group.new.iter().map(|line| format!("  {GOOD}+ {line}{GOOD:#}"));
    let changed = group.changed.iter().map(|change| {
        format!("  {DOUBT}~ {}{DOUBT:#}: {}", change.text.after, change.differences.join(", "))
    });
    let lines: Vec<String> = gone.chain(new).chain(changed).collect();
    let shown = if all { lines.len() } else { lines.len().min(LINES) };
    lines[..shown].iter().for_each(|line| _ = writeln!(text, "{line}"));
    if shown < lines.len() {
        let _ = writeln!(text, "  ... and {} more (-v lists all)", lines.len() - shown);
    }
}
