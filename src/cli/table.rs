//! The report as people read it.

use std::fmt::Write;

use dmopt::Report;
use dmopt::report::{Arrangement, Measured, Pass, Peak, Predicted, Validation, ValidationStatus};

use super::bytes;
use super::style::{BAD, DOUBT, GOOD, HEAD};
use super::units::{count, plural};

/// How many refusals and notes are listed unless all are asked for.
const FEW: usize = 3;

/// Before and after, mixing sites, validation; refusals and notes in short or, with `all`, in full.
pub fn render(report: &Report, all: bool) -> String {
    let (before, after) = (&report.input, &report.output);
    let rewritten = report.mixing_sites.iter().filter(|site| site.rewritten).count();
    let peak = &report.peak.predicted;
    let mut text = String::new();
    let mut row = |name: &str, before: String, after: String, remark: String| {
        let line = format!("{name:<18}{before:>12}{after:>12}  {remark}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    row("", "before".into(), "after".into(), String::new());
    row("nodes", before.nodes.to_string(), after.nodes.to_string(), String::new());
    row("parameters", count(before.parameters), count(after.parameters), String::new());
    row("weights", bytes(before.initializer_bytes), bytes(after.initializer_bytes), String::new());
    row(
        "mixing sites",
        report.mixing_sites.len().to_string(),
        String::new(),
        format!("{rewritten} rewritten"),
    );
    row("predicted peak", or_unknown(peak.before_bytes), or_unknown(peak.after_bytes), about(peak));
    if let Some((bound, certificate)) = certificate(report) {
        row("no order below", String::new(), bytes(bound), certificate);
    }
    let measured = report.peak.measured.as_ref();
    let bytes_of = |side: fn(&Measured) -> u64| measured.map_or_else(|| "-".to_string(), |m| bytes(side(m)));
    row(
        "measured peak",
        bytes_of(|m| m.before_bytes),
        bytes_of(|m| m.after_bytes),
        measured_by(&report.peak) + &chosen_from(report),
    );
    for (i, found) in report.verdicts().iter().enumerate() {
        let _ = writeln!(text, "{:<18}{}", if i == 0 { "validation" } else { "" }, verdict(found));
    }
    if let Some(oldest) = &report.min_onnxruntime {
        let _ = writeln!(text, "{:<18}onnxruntime {oldest} or later", "needs");
    }
    if let Some(path) = &after.path {
        let _ = writeln!(text, "{:<18}{path} ({})", "result", bytes(after.file_bytes));
    }
    if all {
        passes(&mut text, report);
        sites(&mut text, report);
        arrangements(&mut text, report);
    }
    refusals(&mut text, report, all);
    text
}

fn or_unknown(peak: Option<u64>) -> String {
    peak.map_or_else(|| "unknown".to_string(), bytes)
}

fn change(before: u64, after: u64) -> String {
    if before == 0 {
        return String::new();
    }
    format!("{:+.1} %, ", (after as f64 / before as f64 - 1.0) * 100.0)
}

/// How the peak was measured, or why it was not.
fn measured_by(peak: &Peak) -> String {
    match &peak.measured {
        Some(Measured { runtime, ep, session, before_bytes, after_bytes }) => {
            format!("{}{runtime}, {ep}, {session} session", change(*before_bytes, *after_bytes))
        }
        None => format!("not measured: {}", peak.measured_reason.as_deref().unwrap_or_default()),
    }
}

/// How many arrangements there were to choose from.
fn chosen_from(report: &Report) -> String {
    match report.arrangements.len() {
        0 | 1 => String::new(),
        n => format!(", the lightest of {n} arrangements"),
    }
}

/// How the peak was predicted, or why it was not.
fn about(peak: &Predicted) -> String {
    if let Some(reason) = &peak.reason {
        return reason.clone();
    }
    let change = match (peak.before_bytes, peak.after_bytes) {
        (Some(before), Some(after)) => change(before, after),
        _ => String::new(),
    };
    let sizes: String = peak.sizes.iter().map(|(name, size)| format!(", {name}={size}")).collect();
    format!("{change}{}, optimizations off{sizes}", peak.runtime)
}

/// What no order of the result's operators can avoid, and how far the predicted peak is from it; for the sizes of the
/// prediction alone.
fn certificate(report: &Report) -> Option<(u64, String)> {
    let schedule = report.main_schedule()?;
    let (bound, peak) = (schedule.lower_bound_bytes?, report.peak.predicted.after_bytes?);
    let above = peak as f64 / bound.max(1) as f64 - 1.0;
    let text = match schedule.optimal && above < 0.001 {
        true => "the order is proven to be the best".to_string(),
        false => format!("the result is within {:.1} % of that", above * 100.0),
    };
    Some((bound, text))
}

/// What a validation found, in one line.
pub fn verdict(found: &Validation) -> String {
    let reason = found.reason.as_deref().unwrap_or_default();
    let remark = if reason.is_empty() { String::new() } else { format!("; {reason}") };
    let runtime = found.runtime.as_deref().unwrap_or_default();
    let figures = || match (found.max_abs, found.max_rel, found.tolerance) {
        (Some(abs), Some(rel), Some(allowed)) => {
            let runs = plural(found.runs.len(), "run");
            let bits = if found.bit_identical == Some(true) { "bit-identical, " } else { "" };
            let [abs, rel, allowed] = [abs, rel, allowed.rel].map(scientific);
            format!("{bits}max abs {abs}, max rel {rel} (tolerance {allowed}), {runs}")
        }
        _ => "nothing was compared".to_string(),
    };
    match found.status {
        ValidationStatus::Passed => format!("{GOOD}passed{GOOD:#} by {runtime}: {}{remark}", figures()),
        ValidationStatus::Failed => format!("{BAD}failed{BAD:#} by {runtime}: {reason} ({})", figures()),
        ValidationStatus::Skipped => match runtime {
            "" | "none" => format!("{DOUBT}skipped{DOUBT:#}: {reason}"),
            runtime => format!("{DOUBT}skipped{DOUBT:#} by {runtime}: {reason}"),
        },
    }
}

fn scientific(x: f64) -> String {
    if x == 0.0 { "0".to_string() } else { format!("{x:.2e}") }
}

fn passes(text: &mut String, report: &Report) {
    let _ = writeln!(text, "\n{HEAD}passes{HEAD:#}");
    for Pass { name, safety, rewrites, refused } in &report.passes {
        let refused = match refused.len() {
            0 => String::new(),
            n => format!(", {n} refused"),
        };
        let _ = writeln!(text, "  {name:<24}{safety:<14}{}{refused}", plural(*rewrites as usize, "rewrite"));
    }
}

fn arrangements(text: &mut String, report: &Report) {
    if report.arrangements.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{HEAD}arrangements measured{HEAD:#}");
    for Arrangement { operators, bytes: peak } in &report.arrangements {
        let _ = writeln!(text, "  {:>10}  operators {operators}", bytes(*peak));
    }
}

fn sites(text: &mut String, report: &Report) {
    if report.mixing_sites.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{HEAD}mixing sites{HEAD:#}");
    for site in &report.mixing_sites {
        let (terms, fate) = (plural(site.terms, "term"), site.fate_and_form());
        let _ = writeln!(text, "  {:<16}{terms:<10}{fate}  {}", site.form, site.output);
    }
}

/// What was left alone, and remarks.
fn refusals(text: &mut String, report: &Report, all: bool) {
    let refused = report.passes.iter().flat_map(|pass| {
        pass.refused.iter().map(move |r| format!("{}: {}: {}", pass.name, r.node, r.reason))
    });
    let sites = report.mixing_sites.iter().filter_map(|site| {
        let reason = site.reason.as_ref()?;
        Some(format!("mixing site {}: {reason}", site.output))
    });
    let sites = sites.filter(|_| !all);
    for (title, lines) in
        [("left alone", sites.chain(refused).collect::<Vec<String>>()), ("notes", report.notes.clone())]
    {
        if lines.is_empty() {
            continue;
        }
        let shown = if all { lines.len() } else { lines.len().min(FEW) };
        let _ = writeln!(text, "\n{HEAD}{title}{HEAD:#}");
        for line in lines.iter().take(shown) {
            let _ = writeln!(text, "  {line}");
        }
        if shown < lines.len() {
            let _ = writeln!(text, "  ... and {} more (-v lists all)", lines.len() - shown);
        }
    }
}
