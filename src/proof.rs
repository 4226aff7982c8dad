//! Proof by execution: that two files compute the same, in every runtime that is asked, and what memory both take.

use dmopt_ir::{Graph, Sizes};
use dmopt_runtime::compare::{Comparison, compare};
use dmopt_runtime::{
    Backend, Divergence, Ep, Inside, Memory, ModelFile, Named, Options, Run, RuntimeError, SessionKind,
    Status, Validation, validate_with,
};

use crate::inside::compare_shared;
use crate::runtimes::Found;
use crate::{Error, Runtimes, tolerance};

/// A model file, and its graph with types inferred.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub file: &'a ModelFile,
    pub graph: &'a Graph,
}

/// What running both files showed.
#[derive(Clone, PartialEq, Debug)]
pub struct Proof {
    /// The verdict of each runtime that was asked, at least one.
    pub validations: Vec<Validation>,
    /// What both files take in ONNX Runtime, or why that is not known.
    pub measured: Result<Measured, String>,
}

/// What two files take in ONNX Runtime.
#[derive(Clone, PartialEq, Debug)]
pub struct Measured {
    /// Name and version of the runtime.
    pub runtime: &'static str,
    /// Execution provider.
    pub ep: Ep,
    /// Configuration of the sessions.
    pub session: SessionKind,
    /// The original.
    pub before: Memory,
    /// The result.
    pub after: Memory,
}

impl Proof {
    /// The validation that decides: the first that failed, else the first that passed, else the first.
    pub fn deciding(&self) -> Option<&Validation> {
        let first = |status| self.validations.iter().find(|found| found.status == status);
        first(Status::Failed).or_else(|| first(Status::Passed)).or_else(|| self.validations.first())
    }

    /// What it says; skipped when there is none.
    pub fn status(&self) -> Status {
        self.deciding().map_or(Status::Skipped, |found| found.status)
    }
}

/// Runs both files in all runtimes that were found.
///
/// # Errors
/// Sizes that contradict the original.
pub(crate) fn prove(
    found: &Found,
    runtimes: &Runtimes,
    original: Side<'_>,
    result: Side<'_>,
    options: &Options,
) -> Result<Proof, RuntimeError> {
    let validations = judge_all(found, original, result, options)?;
    let mut proof = Proof { validations, measured: Err(found.without_ort.clone()) };
    if proof.validations.is_empty() {
        proof.validations.push(Validation::skip("none", options.tolerance, found.none()));
    }
    if let Some(ort) = &found.ort {
        proof.measured = measure(ort.as_ref(), runtimes, original.file, result.file, options, &proof);
    }
    Ok(proof)
}

/// The verdicts of the runtimes that were found. Where the embedded one computes something else of the original than ONNX
/// Runtime does, and not of the result, or less so, the mistake is its own, and its verdict is that it has none.
///
/// # Errors
/// Sizes that contradict the original.
pub(crate) fn judge_all(
    found: &Found,
    original: Side<'_>,
    result: Side<'_>,
    options: &Options,
) -> Result<Vec<Validation>, RuntimeError> {
    let mut validations: Vec<Validation> = Vec::new();
    for backend in [&found.tract, &found.ort].into_iter().flatten() {
        // What one runtime has compared inside need not be compared again.
        let inside = validations.iter().all(|found| found.inside.is_none());
        let options = Options { inside, ..options.clone() };
        validations.push(judge(backend.as_ref(), original, result, &options, inside)?.found);
    }
    if let (Some(tract), Some(ort), [embedded, served]) = (&found.tract, &found.ort, &mut validations[..])
        && (embedded.status, served.status) == (Status::Failed, Status::Passed)
        && let Some(run) = embedded.runs.last().or(served.runs.first())
        && let Some(mistake) = mistake(tract.as_ref(), ort.as_ref(), original, result, options, run)
    {
        let reason = format!("what it makes of the original is not what {} does: {mistake}", ort.name());
        *embedded = Validation::skip(embedded.runtime, embedded.tolerance, reason);
    }
    Ok(validations)
}

/// How `tract` differs from `ort` on the original, where it agrees with it on the result, or is nearer to it there.
fn mistake(
    tract: &dyn Backend,
    ort: &dyn Backend,
    original: Side<'_>,
    result: Side<'_>,
    options: &Options,
    run: &Run,
) -> Option<String> {
    let inputs = inputs_of(ort, original.file, options, run).ok()?;
    let outputs = |backend: &dyn Backend, side: Side<'_>| {
        backend.load_exact(side.file).and_then(|mut session| session.run(&inputs)).ok()
    };
    let expected = outputs(ort, original)?;
    let tolerance = tolerance::of_runtimes(original.graph).for_sums(options.terms, &ort.ep());
    let compared = |side| Some(compare(&expected.tensors, &outputs(tract, side)?.tensors, tolerance));
    let result = compared(result)?.ok()?;
    match compared(original)? {
        Err(mismatch) if result.passed() => Some(mismatch.to_string()),
        Ok(found) if !found.passed() && (result.passed() || is_nearer(&result, &found)) => {
            Some(found.describe("output elements"))
        }
        _ => None,
    }
}

fn is_nearer(this: &Comparison, that: &Comparison) -> bool {
    this.nonfinite == 0 && this.max_rel <= that.max_rel
}

/// With the inputs of the first run that was compared.
fn measure(
    ort: &dyn Backend,
    runtimes: &Runtimes,
    original: &ModelFile,
    result: &ModelFile,
    options: &Options,
    proof: &Proof,
) -> Result<Measured, String> {
    let decided = proof.deciding().filter(|found| found.status == Status::Passed);
    let run =
        decided.and_then(|found| found.runs.first()).ok_or("only what passes validation is measured")?;
    let memory =
        |file: &ModelFile, inputs: &[Named]| ort.memory(file, inputs).map_err(|cause| cause.to_string());
    let inputs = inputs_of(ort, original, options, run).map_err(|cause| cause.to_string())?;
    Ok(Measured {
        runtime: ort.name(),
        ep: runtimes.ep.clone(),
        session: runtimes.session,
        before: memory(original, &inputs)?,
        after: memory(result, &inputs)?,
    })
}

/// The inputs of a run as a runtime sees them.
///
/// # Errors
/// The model does not load, or has inputs that cannot be made.
pub(crate) fn inputs_of(
    backend: &dyn Backend,
    model: &ModelFile,
    options: &Options,
    run: &Run,
) -> Result<Vec<Named>, RuntimeError> {
    options.inputs(backend.load(model)?.interface(), &run.sizes, run.seed)
}

/// A verdict, and where the models begin to differ.
pub(crate) struct Judged {
    pub found: Validation,
    pub divergence: Option<Divergence>,
}

/// Runs both files in one runtime and compares outputs. Values inside that share names are compared as far as the
/// options say and the runtime shows them by itself; with `expose`, else by exposing them in copies of both files.
///
/// # Errors
/// Sizes that contradict the original.
pub(crate) fn judge(
    backend: &dyn Backend,
    original: Side<'_>,
    result: Side<'_>,
    options: &Options,
    expose: bool,
) -> Result<Judged, RuntimeError> {
    let mut found = validate_with(backend, original.file, result.file, options)?;
    if found.inside.is_some() || !expose || found.comparison.is_none() {
        return Ok(Judged { found, divergence: None });
    }
    let outputs_differ = found.status == Status::Failed;
    // The first run stands for all, unless a later one failed.
    let run = if outputs_differ { found.runs.last() } else { found.runs.first() };
    let looked = run.map_or_else(
        || Err("no run was compared".to_string()),
        |run| {
            let looked = look_inside(backend, original, result, options, run, outputs_differ);
            looked.map_err(|cause| cause.to_string())
        },
    );
    let (inside, divergence) = match looked {
        Ok(looked) => looked,
        Err(reason) => {
            let skipped = format!("values inside were not compared: {reason}");
            found.reason =
                Some(found.reason.map_or_else(|| skipped.clone(), |known| format!("{known}; {skipped}")));
            return Ok(Judged { found, divergence: None });
        }
    };
    found.inside = Some(inside).filter(|inside| inside.values > 0);
    if let Some(Divergence { value, difference }) = &divergence {
        let first = format!("the first value that differs is {value}: {difference}");
        found.reason = Some(match found.reason.take() {
            Some(known) => format!("{known}; {first}"),
            None => format!("values inside the model differ; {first}"),
        });
        found.status = Status::Failed;
    }
    Ok(Judged { found, divergence })
}

fn look_inside(
    backend: &dyn Backend,
    original: Side<'_>,
    result: Side<'_>,
    options: &Options,
    run: &Run,
    outputs_differ: bool,
) -> Result<(Inside, Option<Divergence>), RuntimeError> {
    let inputs = inputs_of(backend, original.file, options, run)?;
    let shapes = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.dims.clone())).collect();
    let sizes = Sizes { dims: run.sizes.clone(), shapes };
    let (ours, theirs) = (original.graph.with_sizes(&sizes), result.graph.with_sizes(&sizes));
    let look = |tolerance| {
        compare_shared(backend, (original.file, &ours), (result.file, &theirs), &inputs, tolerance)
    };
    let found = look(options.tolerance_in(backend).inside())?;
    // What is within the wider tolerance everywhere inside and still too far off at an output begins somewhere.
    if outputs_differ && found.1.is_none() { look(options.tolerance_in(backend)) } else { Ok(found) }
}

/// What keeps validation from beginning.
pub(crate) fn sizes_error(file: &str) -> impl Fn(RuntimeError) -> Error {
    move |cause| Error::Sizes { file: file.to_string(), reason: cause.to_string() }
}
