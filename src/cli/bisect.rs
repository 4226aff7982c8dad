//! `dmopt bisect`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use dmopt::bisect::{Bisection, Given, Trial, bisect};
use dmopt::{Options, With};

use super::optimize::{For, Where};
use super::style::{BAD, GOOD, HEAD};
use super::units::plural;
use super::{OrtArgs, PassArgs, SizeArgs, source};

const EXAMPLES: &str = "\
Examples:
  dmopt bisect model.onnx                      the first edit after which outputs differ or the peak grows
  dmopt bisect model.onnx --inputs batch.npz   with these inputs
  dmopt bisect model.onnx --ep cuda            on a GPU

Exit codes: 0 nothing is wrong; 1 error; 2 wrong usage; 3 an edit makes outputs differ; 4 an edit makes the predicted peak
grow; 5 the model does not run.";

/// Find the first edit after which outputs differ or the predicted peak grows, and cut out a small model that shows it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Bisect {
    /// The model; - for standard input
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Where the small model goes [default: MODEL with .bisect.onnx at the end]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Inputs: a NumPy archive with an array per input, or a folder of ONNX test data [default: random]
    #[arg(long, value_name = "FILE.npz|DIR", conflicts_with_all = ["seed", "dim", "input_shape"])]
    inputs: Option<PathBuf>,
    /// What the result is for [default: portable; ort-cuda with --ep cuda]
    #[arg(long, value_enum, value_name = "NAME")]
    target: Option<For>,
    #[command(flatten)]
    passes: PassArgs,
    /// Where the models run [default: both as far as they are there]
    #[arg(long, value_enum, value_name = "RUNTIME")]
    validate_with: Option<Where>,
    #[command(flatten)]
    ort: OrtArgs,
    #[command(flatten)]
    sizes: SizeArgs,
    /// First seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON (dmopt.bisect/1)
    #[arg(long)]
    json: bool,
    /// Do not print the trials
    #[arg(short, long)]
    quiet: bool,
}

impl Bisect {
    pub fn run(self) -> anyhow::Result<()> {
        let options = Options {
            passes: self.passes.passes,
            skip: self.passes.edits.skip,
            own: super::own_passes(),
            exact: self.passes.edits.exact,
            sizes: self.sizes.sizes(),
            seed: self.seed,
            target: self.target.unwrap_or(For::run_on(&self.ort.ep)).into(),
            runtimes: self.ort.runtimes(self.validate_with.map_or(With::Available, With::from)),
            ..Options::default()
        };
        let silent = self.quiet || self.json;
        let tell = |trial: &Trial| {
            if !silent {
                let verdict = match &trial.wrong {
                    Some(reason) => format!("{BAD}bad{BAD:#}  {reason}"),
                    None => format!("{GOOD}good{GOOD:#}"),
                };
                super::say(format_args!("{:>6} edits  {verdict}\n", trial.edits));
            }
        };
        let given = Given { inputs: self.inputs, reproducer: self.output };
        let found = bisect(&source(&self.model)?, &options, &given, &tell)?;
        super::print(|| render(&found), &found, self.json)?;
        Ok(found.judge()?)
    }
}

fn render(found: &Bisection) -> String {
    let mut text = String::new();
    let trials = plural(found.trials.len(), "trial");
    let Some(culprit) = &found.culprit else {
        let peak = |peak: Option<u64>| peak.map_or_else(|| "unknown".to_string(), super::bytes);
        return format!(
            "{GOOD}nothing is wrong{GOOD:#}: after {} outputs agree, and the predicted peak is {} (original {})\n",
            plural(found.edits as usize, "edit"),
            peak(found.peak),
            peak(found.original_peak)
        );
    };
    let _ = writeln!(
        text,
        "{HEAD}{}{HEAD:#}, application {} (edit {} of {}, found in {trials})",
        culprit.pass, culprit.application, culprit.edit, found.edits
    );
    let _ = writeln!(text, "  {BAD}{}{BAD:#}", culprit.reason);
    let _ = writeln!(text, "  --stop-after {} gives a good result", culprit.edit - 1);
    if culprit.changes.is_empty() {
        let _ = writeln!(text, "\nIt moves {} and changes nothing else.", plural(culprit.moved, "operator"));
    }
    for (title, side) in [("before", 0), ("after", 1)] {
        if culprit.changes.is_empty() {
            break;
        }
        let _ = writeln!(text, "\n{HEAD}{title}{HEAD:#}");
        for group in &culprit.changes {
            let alone = if side == 0 { &group.gone } else { &group.new };
            let both = group.changed.iter().map(|c| if side == 0 { &c.text.before } else { &c.text.after });
            alone.iter().chain(both).for_each(|line| _ = writeln!(text, "  {line}"));
        }
    }
    match (&culprit.reproducer, &culprit.reproducer_reason) {
        (Some(made), _) => {
            let operators = plural(made.nodes as usize, "operator");
            let _ =
                writeln!(text, "\n{HEAD}reproducer{HEAD:#}  {} ({operators})\n  {}", made.path, made.command);
        }
        (None, reason) => {
            let _ =
                writeln!(text, "\n{HEAD}reproducer{HEAD:#}  none: {}", reason.as_deref().unwrap_or_default());
        }
    }
    text
}
