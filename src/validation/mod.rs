//! Two models against each other: outputs, memory, time.

mod data;
pub mod report;

use std::path::PathBuf;

use dmopt_ir::{Def, Graph, Sizes, Type};
use dmopt_runtime::inputs::Pins;
use dmopt_runtime::{self as runtime, Backend, Interface, ModelFile, Named, Port, Session, Tolerance};

use crate::proof::{Judged, Side, inputs_of, judge, sizes_error};
use crate::report::{File, Validation, ValidationStatus};
use crate::runtimes::suits;
use crate::{Error, Facts, Runtimes, Source, ir, tolerance};
use data::Set;
use report::{Divergence, Elsewhere, Expected, Latency, Limits, MemoryPair, Report, Runtime, SCHEMA};

/// Files of test data come from other runtimes on other machines; this is what ONNX's own tests allow.
const EXPECTED: Tolerance = Tolerance { abs: 1e-7, rel: 1e-3 };

/// What to run, and what to ask of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// The runtime: ONNX Runtime where it is there, else the embedded one, unless this says otherwise.
    pub runtimes: Runtimes,
    /// Sizes for open dimensions.
    pub sizes: Sizes,
    /// Inputs in a `.npz` file, or a folder of test data (`input_0.pb`); random ones without.
    pub inputs: Option<PathBuf>,
    /// The first seed of random inputs.
    pub seed: u64,
    /// How many seeds.
    pub seeds: usize,
    /// Timed runs of each model; 0 for none.
    pub runs: usize,
    /// Compare outputs only, not values inside that share names: for models that were not made from each other.
    pub outputs_only: bool,
    /// Largest allowed peak memory of the candidate, divided by that of the reference.
    pub max_peak_ratio: Option<f64>,
    /// Largest allowed time of the candidate, divided by that of the reference.
    pub max_latency_ratio: Option<f64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            runtimes: Runtimes::default(),
            sizes: Sizes::default(),
            inputs: None,
            seed: 0,
            seeds: 3,
            runs: 10,
            outputs_only: false,
            max_peak_ratio: None,
            max_latency_ratio: None,
        }
    }
}

/// Compares a candidate with a reference. What they do differently is in the report, which [`Report::judge`] turns
/// into an error.
///
/// # Errors
/// A file is no model, the models have other inputs or outputs ([`Error::Interface`]), the inputs do not fit, or a
/// runtime that was asked for is not there.
pub fn validate(reference: &Source, candidate: &Source, options: &Options) -> Result<Report, Error> {
    let typed = |source: &Source| -> Result<ir::Model, Error> {
        let mut model = source.model()?;
        ir::infer::infer_graph(&mut model.graph);
        Ok(model)
    };
    let (ours, theirs) = (typed(reference)?, typed(candidate)?);
    if let Some(reason) = differ(&ours.graph, &theirs.graph) {
        return Err(Error::Interface {
            reference: reference.name.clone(),
            candidate: candidate.name.clone(),
            reason,
        });
    }
    let interface = required(&ours.graph);
    let outputs: Vec<String> =
        ours.graph.outputs().iter().map(|&v| ours.graph.value(v).name.clone()).collect();
    let sets = match &options.inputs {
        Some(path) => data::read(path, &interface.inputs, &outputs)?,
        None => Vec::new(),
    };
    let found = options.runtimes.find()?;
    let (backend, session) = match (&found.ort, &found.tract) {
        (Some(ort), _) => {
            suits(&reference.name, &ours, ort.as_ref())?;
            suits(&candidate.name, &theirs, ort.as_ref())?;
            (ort.as_ref(), Some(options.runtimes.session.name().to_string()))
        }
        (None, Some(tract)) => (tract.as_ref(), None),
        (None, None) => return Err(Error::Unavailable(found.none())),
    };

    let (a, b) = (reference.file(), candidate.file());
    let check = runtime::Options {
        seed: options.seed,
        seeds: options.seeds,
        inside: false,
        pins: Pins { dims: options.sizes.dims.clone(), shapes: options.sizes.shapes.clone() },
        given: sets.iter().map(|set| set.inputs.clone()).collect(),
        tolerance: tolerance::between(&ours, &theirs),
        terms: tolerance::longest_sum(&ours.graph).max(tolerance::longest_sum(&theirs.graph)),
        ..runtime::Options::default()
    };
    let (left, right) = (Side { file: &a, graph: &ours.graph }, Side { file: &b, graph: &theirs.graph });
    let Judged { found: judged, divergence } =
        judge(backend, left, right, &check, !options.outputs_only).map_err(sizes_error(&reference.name))?;
    let ran = judged.comparison.is_some();
    let not_run = || "the models did not both run".to_string();
    let run = judged.runs.first().filter(|_| ran).ok_or_else(not_run);
    let inputs = run.and_then(|run| inputs_of(backend, &a, &check, run).map_err(|cause| cause.to_string()));
    let on = |work: &dyn Fn(&[Named]) -> Result<MemoryPair, String>| inputs.clone().and_then(|i| work(&i));
    let memory = on(&|inputs| measure(backend, &a, &b, inputs));
    let (latency, elsewhere) =
        match inputs.clone().and_then(|inputs| time(backend, &a, &b, &inputs, options.runs)) {
            Ok((latency, elsewhere)) => (latency, elsewhere),
            Err(reason) => (Err(reason), Elsewhere::default()),
        };
    let (memory, memory_reason) = split(memory);
    let (latency, latency_reason) = split(latency);
    let file = |source: &Source, model: &ir::Model| {
        let Facts { nodes, parameters, initializer_bytes } = Facts::of(model);
        let (path, file_bytes) = (Some(source.name.clone()), source.bytes.len() as u64);
        File { path, file_bytes, nodes, parameters, initializer_bytes }
    };
    let mut report = Report {
        schema: SCHEMA.to_string(),
        reference: file(reference, &ours),
        candidate: file(candidate, &theirs),
        runtime: Runtime {
            name: backend.name().to_string(),
            ep: if session.is_some() { options.runtimes.ep.to_string() } else { "cpu".to_string() },
            session,
        },
        expected: if ran { expected(backend, &a, &sets)? } else { None },
        outputs: Validation::new(Some(&judged)),
        first_divergence: divergence.map(|d| Divergence { value: d.value, difference: d.difference }),
        memory,
        memory_reason,
        latency,
        latency_reason,
        elsewhere,
        limits: Limits {
            max_peak_ratio: options.max_peak_ratio,
            max_latency_ratio: options.max_latency_ratio,
            exceeded: Vec::new(),
        },
    };
    report.limits.exceeded = exceeded(&report);
    Ok(report)
}

/// The inputs in a file or folder, checked against a graph.
///
/// # Errors
/// [`Error::Inputs`].
pub(crate) fn given(path: &std::path::Path, graph: &Graph) -> Result<Vec<Vec<Named>>, Error> {
    let outputs: Vec<String> = graph.outputs().iter().map(|&v| graph.value(v).name.clone()).collect();
    let sets = data::read(path, &required(graph).inputs, &outputs)?;
    Ok(sets.into_iter().map(|set| set.inputs).collect())
}

/// How two interfaces differ in names, order, element types or ranks: a sentence, or `None` when they do not.
fn differ(reference: &Graph, candidate: &Graph) -> Option<String> {
    let ports = |graph: &Graph| [required_inputs(graph), graph.outputs().to_vec()];
    let sides = ["input", "output"].into_iter().zip(ports(reference).into_iter().zip(ports(candidate)));
    for (side, (a, b)) in sides {
        if a.len() != b.len() {
            return Some(format!("it has {} {side}s instead of {}", b.len(), a.len()));
        }
        for (p, q) in a.iter().map(|&v| reference.value(v)).zip(b.iter().map(|&v| candidate.value(v))) {
            if p.name != q.name {
                return Some(format!("{side} {} is named {}", p.name, q.name));
            }
            if let (Some(ours), Some(theirs)) = (&p.ty, &q.ty)
                && !alike(ours, theirs)
            {
                return Some(format!("{side} {} is {theirs}, not {ours}", p.name));
            }
        }
    }
    None
}

/// The same kind of value; tensors of the same element type and rank. Sizes may differ: that shows when they run.
fn alike(a: &Type, b: &Type) -> bool {
    match (a.tensor(), b.tensor()) {
        (Some(a), Some(b)) => a.dtype == b.dtype && a.rank().zip(b.rank()).is_none_or(|(m, n)| m == n),
        _ => a.compatible(b),
    }
}

/// Inputs that a run has to provide.
fn required_inputs(graph: &Graph) -> Vec<ir::ValueId> {
    let required = |&&id: &&ir::ValueId| matches!(graph.value(id).def, Def::Input { default: None });
    graph.inputs().iter().filter(required).copied().collect()
}

/// The same as a runtime would tell, as far as they are tensors of known type.
fn required(graph: &Graph) -> Interface {
    let port = |id| {
        let ty = graph.tensor_type(id)?.clone();
        Some(Port { name: graph.value(id).name.clone(), ty })
    };
    Interface { inputs: required_inputs(graph).into_iter().filter_map(port).collect(), outputs: Vec::new() }
}

fn measure(
    backend: &dyn Backend,
    a: &ModelFile,
    b: &ModelFile,
    inputs: &[Named],
) -> Result<MemoryPair, String> {
    let memory = |file| backend.memory(file, inputs).map_err(|cause| cause.to_string());
    let (reference, candidate) = (memory(a)?, memory(b)?);
    let peak_ratio = candidate.peak().bytes as f64 / reference.peak().bytes.max(1) as f64;
    Ok(MemoryPair { reference: (&reference).into(), candidate: (&candidate).into(), peak_ratio })
}

/// Latency where it is asked for, and where nodes run.
fn time(
    backend: &dyn Backend,
    a: &ModelFile,
    b: &ModelFile,
    inputs: &[Named],
    runs: usize,
) -> Result<(Result<Latency, String>, Elsewhere), String> {
    let load = |file| backend.load(file).map_err(|cause| cause.to_string());
    let (mut a, mut b) = (load(a)?, load(b)?);
    let nodes = |session: &dyn Session| session.elsewhere().iter().map(ToString::to_string).collect();
    let elsewhere = Elsewhere { reference: nodes(a.as_ref()), candidate: nodes(b.as_ref()) };
    let latency = match runs {
        0 => Err("not asked for".to_string()),
        _ => runtime::latency(a.as_mut(), b.as_mut(), inputs, runs)
            .map(Latency::from)
            .map_err(|e| e.to_string()),
    };
    Ok((latency, elsewhere))
}

/// The reference against the outputs that came with its inputs.
fn expected(backend: &dyn Backend, reference: &ModelFile, sets: &[Set]) -> Result<Option<Expected>, Error> {
    let with_outputs: Vec<&Set> = sets.iter().filter(|set| !set.expected.is_empty()).collect();
    if with_outputs.is_empty() {
        return Ok(None);
    }
    let tolerance = crate::report::Tolerance { abs: EXPECTED.abs, rel: EXPECTED.rel };
    let mut found = Expected { sets: with_outputs.len(), max_rel: 0.0, tolerance, reason: None };
    let run = |set: &Set| backend.load_exact(reference).and_then(|mut session| session.run(&set.inputs));
    for set in with_outputs {
        let reason = match run(set) {
            Ok(outputs) => match runtime::compare::compare(&set.expected, &outputs.tensors, EXPECTED) {
                Ok(comparison) => {
                    found.max_rel = found.max_rel.max(comparison.max_rel);
                    (!comparison.passed()).then(|| comparison.describe("elements"))
                }
                Err(mismatch) => Some(mismatch.to_string()),
            },
            Err(cause) => Some(cause.to_string()),
        };
        found.reason = found.reason.or(reason);
    }
    Ok(Some(found))
}

fn exceeded(report: &Report) -> Vec<String> {
    let limits = [
        ("peak memory", report.memory.as_ref().map(|m| m.peak_ratio), report.limits.max_peak_ratio),
        ("latency", report.latency.as_ref().map(|l| l.ratio), report.limits.max_latency_ratio),
    ];
    let beyond = limits.into_iter().filter_map(|(what, found, limit)| Some((what, found?, limit?)));
    beyond
        .filter(|(_, found, limit)| found > limit)
        .map(|(what, found, limit)| {
            format!("{what} is {found:.4} times that of the reference, not at most {limit}")
        })
        .collect()
}

fn split<T>(found: Result<T, String>) -> (Option<T>, Option<String>) {
    match found {
        Ok(found) => (Some(found), None),
        Err(reason) => (None, Some(reason)),
    }
}

impl Report {
    /// The report as a verdict.
    ///
    /// # Errors
    /// [`Error::Differ`], [`Error::NotCompared`] when the models did not both run, [`Error::Limit`], or
    /// [`Error::Unavailable`] when what a limit asks about was not measured.
    pub fn judge(&self) -> Result<(), Error> {
        let name = |file: &File| file.path.clone().unwrap_or_default();
        let (reference, candidate) = (name(&self.reference), name(&self.candidate));
        let reason = || self.outputs.reason.clone().unwrap_or_default();
        match self.outputs.status {
            ValidationStatus::Failed => return Err(Error::Differ { reference, candidate, reason: reason() }),
            ValidationStatus::Skipped => return Err(Error::NotCompared { reference, reason: reason() }),
            ValidationStatus::Passed => {}
        }
        if let Some(reason) = self.expected.as_ref().and_then(|found| found.reason.clone()) {
            return Err(Error::Unexpected { reference, reason });
        }
        let missing = [
            ("peak memory", self.limits.max_peak_ratio, &self.memory_reason),
            ("latency", self.limits.max_latency_ratio, &self.latency_reason),
        ];
        for (what, limit, reason) in missing {
            if let (Some(_), Some(reason)) = (limit, reason) {
                return Err(Error::Unavailable(format!("{what} is limited but was not measured: {reason}")));
            }
        }
        match self.limits.exceeded.first() {
            Some(_) => Err(Error::Limit { candidate, exceeded: self.limits.exceeded.join("; ") }),
            None => Ok(()),
        }
    }
}
