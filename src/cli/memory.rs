//! `dmopt memory`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dmopt::memory::Kernels;
use dmopt::memory_report::{At, Live, Why};
use dmopt::{MemoryOptions, MemoryReport};

use super::bytes;
use super::style::HEAD;
use super::units::plural;
use super::{Kind, SizeArgs, source};

/// Groups of tensors that are listed one by one; the others are summed up.
const GROUPS: usize = 12;

/// Predict the peak of activation memory without running the model, and show what it consists of
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt memory model.onnx", "the peak, and why each tensor is there"),
    ("dmopt memory model.onnx model.opt.onnx --html t.html", "both, step by step, in a browser"),
]))]
pub struct Memory {
    /// The model; - for standard input
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A second model to compare with, such as the optimized one
    #[arg(value_name = "OTHER")]
    other: Option<PathBuf>,
    /// Whose kernels and planning
    #[arg(long, value_enum, default_value_t = For::OrtCpu)]
    target: For,
    /// Version of ONNX Runtime
    #[arg(long, value_name = "MAJOR.MINOR", default_value = "1.32", value_parser = super::version)]
    ort_version: (u32, u32),
    /// How the session is set up: default has memory patterns on, tuned has them off
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Default)]
    session: Kind,
    #[command(flatten)]
    sizes: SizeArgs,
    /// How many of the tensors at the peak are listed, largest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Print JSON (dmopt.memory/1)
    #[arg(long)]
    json: bool,
    /// Write the timeline as a page for a browser, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the timeline as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Whose kernels and planning.
#[derive(Clone, Copy, ValueEnum)]
enum For {
    /// ONNX Runtime on the processor.
    OrtCpu,
    /// ONNX Runtime on CUDA.
    OrtCuda,
    /// Kernels that compute in place whatever can be, in the order of the file.
    Ideal,
}

impl Memory {
    pub fn run(self) -> anyhow::Result<()> {
        self.html.iter().chain(&self.svg).try_for_each(|path| self.guard(path))?;
        let options = MemoryOptions {
            kernels: match self.target {
                For::OrtCpu => Kernels::OrtCpu { version: self.ort_version },
                For::OrtCuda => Kernels::OrtCuda { version: self.ort_version },
                For::Ideal => Kernels::Ideal,
            },
            session: self.session.into(),
            sizes: self.sizes.sizes(),
            ..MemoryOptions::default()
        };
        let mut report = dmopt::memory_report(&source(&self.model)?, &options)?;
        if let Some(other) = &self.other {
            report.other = Some(Box::new(dmopt::memory_report(&source(other)?, &options)?));
        }
        if let Some(path) = &self.html {
            write(path, &report.html())?;
        }
        if let Some(path) = &self.svg {
            write(path, &report.svg())?;
        }
        super::print(|| render(&report, self.top), &report, self.json)
    }

    /// What is written must not end up in the place of a model or of its weights.
    fn guard(&self, path: &Path) -> anyhow::Result<()> {
        let same =
            |model: &PathBuf| matches!((path.canonicalize(), model.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if std::iter::once(&self.model).chain(&self.other).any(same) {
            anyhow::bail!("{}: the timeline would overwrite the model", path.display());
        }
        let mut first = [0];
        if let Ok(read) = File::open(path).and_then(|mut old| old.read(&mut first)) {
            let markup = read == 0 || first == *b"<";
            anyhow::ensure!(markup, "{}: the timeline would overwrite a file that is none", path.display());
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    Ok(dmopt::onnx::replace(path, |file| file.write_all(text.as_bytes())).map_err(dmopt::Error::from)?)
}

/// The peak of each model, and what it consists of.
fn render(report: &MemoryReport, top: usize) -> String {
    let mut text = String::new();
    if let Some(other) = &report.other {
        compare(&mut text, report, other);
    }
    for model in report.models() {
        let gap = if text.is_empty() { "" } else { "\n" };
        let sizes: String = model.sizes.iter().map(|(name, size)| format!(", {name}={size}")).collect();
        let _ = writeln!(text, "{gap}{HEAD}{}{HEAD:#} {}{sizes}\n", model.path, model.runtime());
        figures(&mut text, model);
        groups(&mut text, model);
        tensors(&mut text, model, top);
        if !model.notes.is_empty() {
            let _ = writeln!(text, "\n{HEAD}notes{HEAD:#}");
            model.notes.iter().for_each(|note| _ = writeln!(text, "  {note}"));
        }
    }
    text
}

/// Both models in figures.
fn compare(text: &mut String, report: &MemoryReport, other: &MemoryReport) {
    let mut row = |name: &str, before: Option<u64>, after: Option<u64>| {
        let (Some(before), Some(after)) = (before, after) else { return };
        let change = match before == after || before == 0 {
            true => String::new(),
            false => {
                format!("  {:+.1} %", (after as f64 / before as f64 - 1.0) * 100.0).replace("-0.0", "0.0")
            }
        };
        let _ = writeln!(text, "{name:<18}{:>12}{:>12}{change}", bytes(before), bytes(after));
    };
    let figure = |of: fn(&MemoryReport) -> Option<u64>| (of(report), of(other));
    for (name, (before, after)) in [
        ("peak, first run", figure(|m| Some(m.peak_bytes))),
        ("peak, later runs", figure(|m| Some(m.steady_peak_bytes))),
        ("lower bound", figure(|m| m.lower_bound_bytes)),
        ("weights", figure(|m| Some(m.weights_bytes))),
    ] {
        row(name, before, after);
    }
}

fn figures(text: &mut String, model: &MemoryReport) {
    let mut row = |name: &str, size: u64, remark: &str| {
        let _ = writeln!(text, "{}", format!("{name:<18}{:>10}  {remark}", bytes(size)).trim_end());
    };
    let place = match &model.at {
        Some(at) => format!("{} B, {}", model.peak_bytes, step(at, Some(model.order.len()))),
        None => "there are no operators".to_string(),
    };
    row("peak, first run", model.peak_bytes, &place);
    if let Some(arena) = model.arena_peak_bytes {
        row("in an arena", arena, &format!("{arena} B, each block rounded up to 256 bytes"));
    }
    let steady = match model.block_bytes {
        Some(block) => {
            format!(
                "{} B, one block of {} (memory pattern) beside outputs and scratch memory",
                model.steady_peak_bytes,
                bytes(block)
            )
        }
        None => "each like the first".to_string(),
    };
    row("peak, later runs", model.steady_peak_bytes, &steady);
    if let (Some(bound), Some(best)) = (model.lower_bound_bytes, model.best_order_bytes) {
        let found = match best == bound {
            true => String::new(),
            false => format!("; the best order found needs {} without reuse", bytes(best)),
        };
        let gap = match bound {
            _ if model.optimal == Some(true) => ", and this one no more".to_string(),
            0 => String::new(),
            _ => format!("; this one needs {:.2} times that", model.peak_bytes as f64 / bound as f64),
        };
        row("lower bound", bound, &format!("no order of the operators needs less{gap}{found}"));
    }
    row("weights", model.weights_bytes, "besides");
    if let Some(inputs) = model.inputs_bytes {
        row("inputs", inputs, "besides, the caller's");
    }
    if let Some(expression) = &model.peak_expression {
        let _ = writeln!(text, "{:<18}{expression}", "peak in bytes");
    }
}

/// What is in memory at the peak, by reason and by the kind of operator that needs it; adds up to the peak.
fn groups(text: &mut String, model: &MemoryReport) {
    let Some(at) = &model.at else { return };
    let mut groups: BTreeMap<(Why, Option<&str>), Vec<&Live>> = BTreeMap::new();
    for live in &model.live {
        let kind = live.by.as_ref().and_then(|by| model.order.get(by.step)).map(|step| step.op_type.as_str());
        groups.entry((live.reason, kind)).or_default().push(live);
    }
    let sum = |members: &[&Live]| members.iter().fold(0u64, |sum, live| sum.saturating_add(live.bytes));
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, members)| std::cmp::Reverse(sum(members)));
    let _ = writeln!(text, "\n{HEAD}in memory at step {}{HEAD:#}, {}", at.step + 1, at.node);
    let mut row = |count: String, size: u64, why: &str| {
        let part = size as f64 / model.peak_bytes.max(1) as f64 * 100.0;
        let line = format!("{count:>12}{:>10}{part:>7.1} %  {why}", bytes(size));
        let _ = writeln!(text, "{}", line.trim_end());
    };
    // One more group takes no more room than a line about it.
    let shown = if groups.len() > GROUPS + 1 { GROUPS } else { groups.len() };
    for ((why, kind), members) in &groups[..shown] {
        row(plural(members.len(), "tensor"), sum(members), &in_common(*why, *kind, members));
    }
    if shown < groups.len() {
        let others: Vec<&Live> = groups[shown..].iter().flat_map(|(_, members)| members).copied().collect();
        row(plural(others.len(), "tensor"), sum(&others), "for other reasons (--json lists all)");
    }
    if model.scratch_bytes > 0 {
        row("kernel".to_string(), model.scratch_bytes, scratch(&model.order[at.step].op_type));
    }
    row("sum".to_string(), model.peak_bytes, "");
}

/// What an operator needs for itself.
fn scratch(op_type: &str) -> &'static str {
    match op_type {
        "If" | "Loop" | "Scan" => "the bodies of this operator",
        _ => "scratch memory of this operator",
    }
}

/// Why some tensors are in memory that wait for operators of one type.
fn in_common(why: Why, kind: Option<&str>, members: &[&Live]) -> String {
    let mut readers: Vec<&At> = members.iter().filter_map(|live| live.by.as_ref()).collect();
    readers.sort_by_key(|by| by.step);
    readers.dedup_by_key(|by| by.step);
    match (why, kind, readers.as_slice()) {
        (Why::ReadLater, Some(kind), [first, .., last]) => {
            let (count, first, last) = (readers.len(), first.step + 1, last.step + 1);
            format!("read later by {count} {kind} (steps {first} to {last})")
        }
        (Why::HeldForReuse, Some(kind), [first, .., last]) => {
            let (count, first, last) = (readers.len(), first.step + 1, last.step + 1);
            format!("free, but held for the results of {count} {kind} (steps {first} to {last})")
        }
        (why, _, readers) => reason(why, readers.first().copied()),
    }
}

fn tensors(text: &mut String, model: &MemoryReport, top: usize) {
    let shown = model.live.len().min(top);
    if shown == 0 {
        return;
    }
    let _ = writeln!(text, "\n{HEAD}tensors at the peak{HEAD:#}");
    for live in &model.live[..shown] {
        let why = reason(live.reason, live.by.as_ref());
        let _ = writeln!(text, "{:>10}  {} {}: {why}", bytes(live.bytes), live.ty, live.value);
    }
    if shown < model.live.len() {
        let _ = writeln!(text, "{:>10}  and {} more (--top N lists more)", "", model.live.len() - shown);
    }
}

/// Why a tensor is in memory, in words.
fn reason(why: Why, by: Option<&At>) -> String {
    let by = by.map(|at| step(at, None)).unwrap_or_default();
    match why {
        Why::Computed => "computed by this operator".to_string(),
        Why::Operand => "read by this operator".to_string(),
        Why::ReadLater => format!("read later by {by}"),
        Why::HeldForReuse => format!("free, but held for the result of {by}"),
        Why::Output => "output of the model".to_string(),
        Why::NeverRead => "nothing reads it, so it is not freed".to_string(),
    }
}

/// `Conv 'c' (step 3)`, `step 3 of 9, Conv 'c'`.
fn step(at: &At, of: Option<usize>) -> String {
    match of {
        Some(of) => format!("step {} of {of}, {}", at.step + 1, at.node),
        None => format!("{} (step {})", at.node, at.step + 1),
    }
}
