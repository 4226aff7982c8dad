//! dmopt makes an ONNX model need the least memory that its computation allows, and proves that the outputs are the
//! same. The API on one screen:
//!
//! ```no_run
//! use dmopt::{Options, Source, Target, optimize};
//!
//! let source = Source::open("model.onnx".as_ref())?;
//! let done = optimize(&source, Target::File("model.opt.onnx".into()), &Options::default())?;
//! println!("{} nodes instead of {}", done.report.output.nodes, done.report.input.nodes);
//! # Ok::<(), dmopt::Error>(())
//! ```
//!
//! [`optimize()`] is read, [`rewrite`], export, [`place`], report. Each step can be had alone, and each crate below
//! is re-exported under its short name. [`cli`] is the command line, to which a program can add passes of its own.

#![forbid(unsafe_code)]

// The commands call the library as any other program does.
extern crate self as dmopt;

pub mod bisect;
pub mod check;
mod choose;
pub mod cli;
pub mod diff;
mod doctor;
mod error;
mod facts;
pub mod html_report;
mod inside;
mod inspect;
pub mod memory_report;
mod place;
mod proof;
pub mod report;
mod rewrite;
mod room;
mod runtimes;
mod source;
mod tolerance;
pub mod triton;
pub mod units;
pub mod validation;

use choose::Candidate;
use dmopt_ir::{Model, Sizes};
use proof::Side;
use rewrite::Inferred;

pub use dmopt_ir as ir;
pub use dmopt_memory as memory;
pub use dmopt_onnx as onnx;
pub use dmopt_passes as passes;
pub use dmopt_runtime as runtime;
pub use passes::Anchors;

pub use doctor::{Diagnosis, Remedy, Runtime, diagnose};
pub use error::Error;
pub use facts::Facts;
pub use inspect::{Inspection, inspect};
pub use memory_report::{MemoryOptions, MemoryReport, memory_report};
pub use place::{Placed, Prove, Verdict, place};
pub use proof::{Measured, Proof};
pub use report::Report;
pub use rewrite::rewrite;
pub use runtimes::{MIN_ONNXRUNTIME, Runtimes, With};
pub use source::{Source, Target};
pub use tolerance::depth;
pub use validation::validate;

/// What to do to a model, and how far to trust it.
#[derive(Clone, Default)]
pub struct Options<'a> {
    /// Only these passes, by name; empty means all.
    pub passes: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
    /// Passes of the caller's own, which run with the others.
    pub own: Vec<&'static dyn passes::Pass>,
    /// Bit-identical edits only.
    pub exact: bool,
    /// Stop after this many edits.
    pub stop_after: Option<u64>,
    /// Check every invariant after every pass.
    pub verify: bool,
    /// Sizes for open dimensions, for validation and for the predicted peak.
    pub sizes: Sizes,
    /// The first seed of the random inputs.
    pub seed: u64,
    /// What the result is for.
    pub target: passes::Target,
    /// The oldest ONNX Runtime that the result has to run in, as major and minor version; where nobody says, the one that
    /// validates it.
    pub onnxruntime: Option<(u32, u32)>,
    /// Take no more rewrites that trade for memory once the model needs no more than this many bytes.
    pub budget_bytes: Option<u64>,
    /// How much more arithmetic such rewrites may cost, as a factor; `None` means 1: none.
    pub max_flops_ratio: Option<f64>,
    /// Into how many slices the channels between two layers are split, everywhere; as the peak asks for where nobody says.
    pub split_hidden: Option<u64>,
    /// In how many slices of its samples a batch is computed, 0 for one of each sample; in as many as take no longer where
    /// nobody says.
    pub split_batch: Option<u64>,
    /// How ONNX Runtime is made to follow the order that was found.
    pub anchors: Anchors,
    /// Whether the result has to prove itself.
    pub validate: Validate,
    /// Where it has to.
    pub runtimes: Runtimes,
    /// Told what happens, as it happens.
    pub progress: Option<&'a dyn Fn(Stage<'_>)>,
}

impl Options<'_> {
    /// The same with other choices about order, and nobody told.
    fn with(&self, anchors: Anchors, skip: Vec<String>) -> Self {
        Options { anchors, skip, progress: None, ..self.clone() }
    }
}

/// Whether the result has to prove itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Validate {
    /// It is run, where the runtime can; what cannot be run is put in place with the reason in the report.
    #[default]
    WhenPossible,
    /// It is run, or not put in place.
    Required,
    /// It is not run.
    Never,
}

/// Where [`optimize()`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage<'a> {
    /// Reading the input.
    Read,
    /// Running a pass.
    Pass {
        /// Its name.
        name: &'a str,
        /// How often the pipeline has begun, this time included.
        round: usize,
    },
    /// Measuring what the result needs in ONNX Runtime, to choose between arrangements of its operators and the original.
    Measure,
    /// Writing the result.
    Write,
    /// Running original and result on the same inputs.
    Validate,
}

/// A result that is in its place.
#[derive(Clone, Debug)]
pub struct Optimized {
    /// What was done and found.
    pub report: Report,
    /// The model that was read, with inferred types.
    pub original: Model,
    /// The model that was written, with inferred types.
    pub model: Model,
}

/// Rewrites a model and puts it where `target` says, once it has proved itself.
///
/// # Errors
/// See [`Error`]. Nothing is at the target then that was not there before.
pub fn optimize(source: &Source, target: Target<'_>, options: &Options<'_>) -> Result<Optimized, Error> {
    let say = |stage| options.progress.iter().for_each(|tell| tell(stage));
    say(Stage::Read);
    place::check(&target, source)?;
    let original = source.complete_model()?;
    source.guard(&target, &original)?;
    // Before the work, because a runtime that was asked for may not be there.
    let found = match options.validate {
        Validate::Never => None,
        _ => Some(options.runtimes.find()?),
    };
    let inferred = Inferred::of(original);
    let original = &inferred.model;
    let found = found.map(|found| match room::lacking(&original.graph, &options.sizes) {
        Some(lacking) => runtimes::Found::refuse(lacking),
        None => found,
    });
    let mut options = options.clone();
    let version = found.as_ref().and_then(|found| found.ort.as_ref()?.version());
    options.onnxruntime = options.onnxruntime.or(version);
    let options = &options;
    let open = report::OpenSizes::of(&original.graph, &options.sizes, options.target.kernels())
        .map_err(|reason| Error::Sizes { file: source.name.clone(), reason })?;

    let ort = found.as_ref().and_then(|found| found.ort.as_deref());
    // What the plan says of the original is asked for where no runtime is.
    let alone = ort.is_none();
    let (rewritten, before) = ir::parallel::join(
        || inferred.rewritten(source, options, None),
        || alone.then(|| open.peak(&original.graph, None).ok()).flatten(),
    );
    let (model, outcome) = rewritten?;
    let mut check = runtime::Options {
        seed: options.seed,
        pins: report::pins(&original.graph, &options.sizes),
        terms: tolerance::longest_sum(&original.graph),
        ..runtime::Options::default()
    };
    let mut candidate = Candidate::new(model, outcome);
    ort.iter().for_each(|_| say(Stage::Measure));
    let weigh = |model: &Model| match ort {
        Some(ort) => choose::measured_peak(ort, source, model, &check).ok(),
        None => open.peak(&model.graph, None).ok(),
    };
    let export = |model: &Model| {
        onnx::export(model, &onnx::ExportOptions::default())
            .map_err(|cause| Error::Export { file: source.name.clone(), cause })
    };
    if alone {
        let (after, proto) = ir::parallel::join(
            || open.peak(&candidate.model.graph, None),
            || candidate.outcome.safety.map(|_| export(&candidate.model)).transpose(),
        );
        candidate.weights = before.zip(after.ok()).map(Into::into);
        candidate.proto = proto?;
    }
    // Where it is not known what they need, there is nothing to choose by.
    if !alone || candidate.weights.is_some() {
        candidate = choose::lightest(&weigh, source, &inferred, candidate, options)?;
    }
    if alone {
        candidate.weighed_by_plan();
    }
    let Candidate { model, mut outcome, measured, weights, proto } = candidate;
    if let (Some(budget), Some(schedule)) = (options.budget_bytes, outcome.main_schedule())
        && schedule.after_bytes > budget
    {
        let predicted = schedule.after_bytes;
        outcome.notes.push(format!(
            "the model does not fit: {predicted} bytes are predicted, and {budget} were allowed"
        ));
    }
    if let memory::Kernels::OrtCuda { .. } = options.target.kernels() {
        let workspaces = "what convolutions ask cuDNN for depends on the device and is in no prediction";
        outcome.notes.push(workspaces.to_string());
    }
    if let Some(ort) = ort {
        runtimes::suits(&source.name, original, ort)?;
        runtimes::suits(&format!("the result of {}", source.name), &model, ort)?;
    }
    check.tolerance = tolerance::of(original, &outcome);

    say(Stage::Write);
    // Types that were inferred on the way are no reason to write another file than came in.
    let candidate = match (outcome.safety, proto) {
        (None, _) => export(&source.model()?)?,
        (Some(_), Some(proto)) => proto,
        (Some(_), None) => export(&model)?,
    };
    let original_file = source.file();
    let prove = found.as_ref().map(|found| {
        |result: &runtime::ModelFile| {
            say(Stage::Validate);
            let before = Side { file: &original_file, graph: &original.graph };
            let after = Side { file: result, graph: &model.graph };
            proof::prove(found, &options.runtimes, before, after, &check)
                .map_err(proof::sizes_error(&source.name))
        }
    });
    let prove = prove.as_ref().map(|prove| prove as &Prove<'_>);
    // A runtime that was named has to run the model.
    let require = options.validate == Validate::Required
        || (options.validate != Validate::Never && matches!(options.runtimes.with, With::Ort | With::Tract));
    let placed = place(candidate, source, target, prove, require)?;
    let decided = placed.proof.as_ref().and_then(Proof::deciding);
    // Without ONNX Runtime, weights are predictions.
    let predicted = open.predict(original, &model, decided, weights.filter(|_| alone));
    let report = Report::new(source, original, &model, &outcome, &placed, predicted, measured);
    match placed.verdict {
        Verdict::InPlace => Ok(Optimized { report, original: inferred.model, model }),
        Verdict::Rejected { kept } => Err(Error::OutputsDiffer { report: Box::new(report), kept }),
        Verdict::Withheld => Err(Error::NotValidated { report: Box::new(report) }),
    }
}
