//! `dmopt validate`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dmopt::With;
use dmopt::validation::Options;
use dmopt::validation::report::{ModelMemory, Report};

use super::bytes;
use super::style::{DOUBT, HEAD};
use super::table::verdict;
use super::units::{count, plural};
use super::{OrtArgs, SizeArgs, source};

/// How many nodes that ran elsewhere are listed for each model.
const FEW: usize = 10;

/// Compare two models: outputs, peak memory and latency, on the same inputs in the same runtime
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt validate a.onnx b.onnx", "outputs, memory and latency"),
    ("dmopt validate a.onnx b.onnx --inputs batch.npz", "with these inputs"),
    ("dmopt validate a.onnx b.onnx --max-peak-ratio 1", "exit code 4 if b needs more memory"),
]))]
pub struct Validate {
    /// The model that is right
    #[arg(value_name = "REFERENCE")]
    reference: PathBuf,
    /// The model to compare with it
    #[arg(value_name = "CANDIDATE")]
    candidate: PathBuf,
    /// What runs them [default: ONNX Runtime where it is there, else the embedded runtime]
    #[arg(long, value_enum, value_name = "RUNTIME")]
    runtime: Option<Where>,
    #[command(flatten)]
    ort: OrtArgs,
    /// Inputs: a NumPy archive with an array per input, or a folder of ONNX test data (input_0.pb, or
    /// test_data_set_0/input_0.pb; outputs in it are compared with those of REFERENCE) [default: random]
    #[arg(long, value_name = "FILE.npz|DIR", conflicts_with_all = ["seed", "seeds", "dim", "input_shape"])]
    inputs: Option<PathBuf>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// First seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of seeds
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: usize,
    /// Timed runs of each model, in turns; 0 for none
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
    /// Compare outputs only, not values inside that have the same name in both models
    #[arg(long)]
    outputs_only: bool,
    /// Exit with code 4 if CANDIDATE's peak memory is more than R times that of REFERENCE
    #[arg(long, value_name = "R", value_parser = super::ratio)]
    max_peak_ratio: Option<f64>,
    /// Exit with code 4 if CANDIDATE takes more than R times as long as REFERENCE
    #[arg(long, value_name = "R", value_parser = super::ratio)]
    max_latency_ratio: Option<f64>,
    /// Print JSON (dmopt.validation/1)
    #[arg(long)]
    json: bool,
}

/// A runtime.
#[derive(Clone, Copy, ValueEnum)]
enum Where {
    /// The embedded runtime: outputs and latency only
    Tract,
    /// ONNX Runtime
    Ort,
}

impl Validate {
    pub fn run(self) -> anyhow::Result<()> {
        if [&self.reference, &self.candidate].into_iter().all(|path| super::is_pipe(path)) {
            super::usage_error("REFERENCE and CANDIDATE would share standard input");
        }
        let with = match self.runtime {
            None => With::Available,
            Some(Where::Tract) => With::Tract,
            Some(Where::Ort) => With::Ort,
        };
        let options = Options {
            sizes: self.sizes.sizes(),
            runtimes: self.ort.runtimes(with),
            inputs: self.inputs,
            seed: self.seed,
            seeds: self.seeds,
            runs: self.runs,
            outputs_only: self.outputs_only,
            max_peak_ratio: self.max_peak_ratio,
            max_latency_ratio: self.max_latency_ratio,
        };
        let report = dmopt::validate(&source(&self.reference)?, &source(&self.candidate)?, &options)?;
        super::print(|| render(&report), &report, self.json)?;
        Ok(report.judge()?)
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    let (a, b) = (&report.reference, &report.candidate);
    let row = |text: &mut String, name: &str, reference: String, candidate: String, remark: String| {
        let line = format!("{name:<18}{reference:>12}{candidate:>12}  {remark}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    row(&mut text, "", "reference".into(), "candidate".into(), String::new());
    row(&mut text, "nodes", a.nodes.to_string(), b.nodes.to_string(), String::new());
    row(&mut text, "parameters", count(a.parameters), count(b.parameters), String::new());
    row(&mut text, "weights", bytes(a.initializer_bytes), bytes(b.initializer_bytes), String::new());
    match &report.memory {
        Some(memory) => {
            let (a, b) = (&memory.reference, &memory.candidate);
            let ratio =
                format!("ratio {:.4} ({} and {} bytes)", memory.peak_ratio, a.peak_bytes, b.peak_bytes);
            row(&mut text, "peak memory", bytes(a.peak_bytes), bytes(b.peak_bytes), ratio);
            let mut part = |name: &str, of: &dyn Fn(&ModelMemory) -> Option<u64>, remark: &str| {
                if let (Some(a), Some(b)) = (of(a), of(b)) {
                    row(&mut text, name, bytes(a), bytes(b), remark.to_string());
                }
            };
            part("  first run", &|m| Some(m.first.bytes), "");
            part("  steady state", &|m| Some(m.steady.bytes), "every run after it; of that");
            let telling = a.steady.scratch.is_some();
            let values = if telling { "    activations" } else { "    with scratch" };
            part(values, &|m| Some(m.steady.activations), "");
            part("    scratch", &|m| m.steady.scratch, "");
            part("    outputs", &|m| Some(m.steady.outputs), "");
            part("  kept", &|m| Some(m.kept_bytes), "between runs, beside the weights of the file");
            part(
                "  arena in use",
                &|m| Some(m.arena?.max_in_use_bytes),
                "at most, weights that it holds included",
            );
            part("  arena held", &|m| Some(m.arena?.held_bytes), "after the runs");
            part("  process", &|m| m.process_bytes, "on the device, as the driver says");
        }
        None => {
            let reason = format!("not measured: {}", report.memory_reason.as_deref().unwrap_or_default());
            row(&mut text, "peak memory", "-".into(), "-".into(), reason);
        }
    }
    match &report.latency {
        Some(found) => {
            let (low, high) = found.ratio_quartiles;
            let ratio = format!(
                "ratio {:.3} (half of all pairs {low:.3} to {high:.3}), {}",
                found.ratio,
                plural(found.runs, "run")
            );
            row(
                &mut text,
                "latency",
                seconds(found.reference_seconds),
                seconds(found.candidate_seconds),
                ratio,
            );
        }
        None => {
            let reason = format!("not measured: {}", report.latency_reason.as_deref().unwrap_or_default());
            row(&mut text, "latency", "-".into(), "-".into(), reason);
        }
    }
    tell_outputs(&mut text, report);
    elsewhere(&mut text, report);
    text
}

fn tell_outputs(text: &mut String, report: &Report) {
    let found = &report.outputs;
    let _ = writeln!(text, "{:<18}{}", "outputs", verdict(found));
    if let (Some(ulp), Some(cosine)) = (found.max_ulp, found.cosine) {
        let _ = writeln!(text, "{:<18}max {ulp} ULP, cosine {cosine:.9}", "");
    }
    match &found.inside {
        Some(inside) => {
            let values = plural(inside.values, "value");
            let _ =
                writeln!(text, "{:<18}{values} with the same name: max rel {:.2e}", "inside", inside.max_rel);
        }
        None => _ = writeln!(text, "{:<18}not compared", "inside"),
    }
    if let Some(expected) = &report.expected {
        let verdict = expected.reason.as_deref().unwrap_or("reference gives them");
        let sets = plural(expected.sets, "set");
        let _ =
            writeln!(text, "{:<18}{verdict} ({sets}, max rel {:.2e})", "expected outputs", expected.max_rel);
    }
    let runtime = &report.runtime;
    let session = runtime.session.as_ref().map(|s| format!(", {s} session")).unwrap_or_default();
    let _ = writeln!(text, "{:<18}{}, {}{session}", "runtime", runtime.name, runtime.ep);
    for exceeded in &report.limits.exceeded {
        let _ = writeln!(text, "{:<18}{DOUBT}{exceeded}{DOUBT:#}", "limit");
    }
}

fn elsewhere(text: &mut String, report: &Report) {
    for (model, nodes) in
        [("reference", &report.elsewhere.reference), ("candidate", &report.elsewhere.candidate)]
    {
        if nodes.is_empty() {
            continue;
        }
        let _ =
            writeln!(text, "\n{HEAD}not on the device{HEAD:#} ({model}, {})", plural(nodes.len(), "node"));
        for node in nodes.iter().take(FEW) {
            let _ = writeln!(text, "  {node}");
        }
        if nodes.len() > FEW {
            let _ = writeln!(text, "  ... and {} more (--json lists all)", nodes.len() - FEW);
        }
    }
}

fn seconds(time: f64) -> String {
    match time {
        t if t < 1e-3 => format!("{:.1} us", t * 1e6),
        t if t < 1.0 => format!("{:.2} ms", t * 1e3),
        t => format!("{t:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        assert_eq!([1.5e-5, 0.0123, 2.0].map(seconds), ["15.0 us", "12.30 ms", "2.00 s"]);
    }
}
