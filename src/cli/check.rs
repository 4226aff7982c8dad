//! `dmopt check`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use dmopt::check::{Checked, Lock, Options, Report, Status};
use dmopt::passes;

use super::bytes;
use super::optimize::For;
use super::style::{BAD, DOUBT, GOOD, HEAD};
use super::units::{parse_bytes, plural};
use super::{EditArgs, SizeArgs};

const EXAMPLES: &str = "\
Examples:
  dmopt check models --update                  write dmopt.lock
  dmopt check models                           fail if a rewrite stopped firing, a result changed or a peak grew
  dmopt check models --max-peak \"40 MB\"        and if a predicted peak is above 40 MB
  dmopt check models --shard 2/4               the second quarter of the models, for one of four jobs

Exit codes: 0 everything is as locked; 1 error, or a model cannot be read; 2 wrong usage; 4 a difference or a limit.
What got better is no failure; --update locks it.";

/// Check that dmopt still makes of models what a lock file says that it made
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// Models, or folders of models (*.onnx in them and in their folders, results of dmopt left out)
    #[arg(value_name = "MODEL|DIR", required = true)]
    paths: Vec<PathBuf>,
    /// The lock file
    #[arg(long, value_name = "FILE", default_value = "dmopt.lock")]
    lock: PathBuf,
    /// Write what is found into the lock file
    #[arg(long)]
    update: bool,
    /// Fail if a predicted peak of a result is above this, in bytes or as '40 MB'
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_peak: Option<u64>,
    /// Fail if a predicted peak of a result is above this part of its original's
    #[arg(long, value_name = "R", value_parser = super::ratio)]
    max_peak_ratio: Option<f64>,
    /// What results are for, separated by commas [default: portable]
    #[arg(long, value_enum, value_name = "NAMES", value_delimiter = ',')]
    target: Vec<For>,
    #[command(flatten)]
    edits: EditArgs,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Check the I-th of N shares of the models
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Models that are worked on at the same time [default: one for each processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Print JSON (dmopt.check/1)
    #[arg(long)]
    json: bool,
    /// Print what is not as locked only
    #[arg(short, long)]
    quiet: bool,
}

/// `I/N`, with `I` from 1.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if 1 <= i && i <= n => Ok((i, n)),
        _ => Err("expected a share and the number of shares, as in 2/4".to_string()),
    }
}

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let options = Options {
            targets: self.target.iter().map(|&target| passes::Target::from(target)).collect(),
            exact: self.edits.exact,
            skip: self.edits.skip,
            sizes: self.sizes.sizes(),
            max_peak: self.max_peak,
            max_peak_ratio: self.max_peak_ratio,
            jobs: self.jobs.map(usize::from),
            shard: self.shard,
        };
        let lock = Lock::read(&self.lock)?;
        let mut report = dmopt::check::check(&self.paths, &self.lock, &lock, &super::own_passes(), &options)?;
        if self.update {
            let updated = report.update(&lock);
            if updated != lock || !self.lock.exists() {
                updated.write(&self.lock)?;
            }
            report = report.accepted(&options);
        }
        super::print(|| render(&report, self.quiet, self.update), &report, self.json)?;
        Ok(report.judge()?)
    }
}

fn render(report: &Report, quiet: bool, updated: bool) -> String {
    let mut text = String::new();
    for model in &report.models {
        if quiet && model.status == Status::Passed {
            continue;
        }
        let (style, word) = match model.status {
            Status::Passed => (GOOD, if updated { "locked" } else { "as locked" }),
            Status::Differs => (BAD, "differs"),
            Status::New => (BAD, "not locked (--update adds it)"),
            Status::Gone => (BAD, "gone"),
            Status::Error => (BAD, "error"),
        };
        let _ = writeln!(text, "{HEAD}{}{HEAD:#}  {style}{word}{style:#}{}", model.path, figures(model));
        model.differences.iter().for_each(|line| _ = writeln!(text, "  {BAD}{line}{BAD:#}"));
        model.notes.iter().for_each(|line| _ = writeln!(text, "  {DOUBT}{line}{DOUBT:#}"));
    }
    let passed = report.models.iter().filter(|model| model.status == Status::Passed).count();
    if !quiet {
        let _ =
            writeln!(text, "{}, {passed} as locked in {}", plural(report.models.len(), "model"), report.lock);
    }
    text
}

/// The peaks, by target.
fn figures(model: &Checked) -> String {
    let targets = model.found.iter().flat_map(|found| &found.targets);
    let shown = |peak: Option<u64>| peak.map_or_else(|| "unknown".to_string(), bytes);
    targets
        .map(|(name, made)| {
            let sites = plural(made.sites.len(), "mixing site");
            format!("  {name}: {} -> {}, {sites}", shown(made.original_peak), shown(made.peak))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_count_from_one() {
        assert_eq!(shard("2/4"), Ok((2, 4)));
        for wrong in ["0/4", "5/4", "1", "a/b", "1/0"] {
            assert!(shard(wrong).is_err(), "{wrong}");
        }
    }
}
