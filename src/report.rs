//! The report of one optimization, as Rust types and as JSON (`dmopt.report/1`; `docs/report.md` has an example).
//!
//! Sizes are in bytes. Within version 1 fields may be added; none is renamed, removed or given another meaning.

use std::collections::{BTreeMap, BTreeSet};

use dmopt_ir::{DType, Graph, Model, Sizes};
use dmopt_passes::Outcome;
use dmopt_runtime::inputs::{Pins, assignments};
use dmopt_runtime::{Interface, Port};
use serde::{Deserialize, Serialize};

use crate::runtimes::needed;
use crate::{Facts, Placed, Proof, Source, memory, proof};

/// The value of [`Report::schema`].
pub const SCHEMA: &str = "dmopt.report/1";

/// Why there is no verdict where nobody wanted one.
const NOT_ASKED: &str = "not asked for";

/// What one optimization did and found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The original.
    pub input: File,
    /// The result.
    pub output: File,
    /// One entry for each pass that ran, in order.
    pub passes: Vec<Pass>,
    /// The mixing sites of the original.
    pub mixing_sites: Vec<MixingSite>,
    /// Memory for activations.
    pub peak: Peak,
    /// The order of operators, for each graph whose sizes are known.
    pub schedules: Vec<Schedule>,
    /// The arrangements of operators that were measured before one was chosen, the lightest; empty where there was no
    /// choice.
    pub arrangements: Vec<Arrangement>,
    /// Whether outputs are the same: the runtime that decides, the first that failed or else the first that passed.
    pub validation: Validation,
    /// The same of every runtime that was asked.
    pub validations: Vec<Validation>,
    /// The worst class among the edits applied: `exact`, `reassociates` or `approximates`; null without edits.
    pub safety: Option<String>,
    /// The oldest ONNX Runtime that runs the result as it is meant, as `1.24`; null if any does. The file says so too, as
    /// `dmopt.min_onnxruntime`.
    pub min_onnxruntime: Option<String>,
    /// True when `--stop-after` ended the run.
    pub stopped: bool,
    /// Remarks, such as types that the file and inference disagree on.
    pub notes: Vec<String>,
}

/// A model file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct File {
    /// Where it is; `<stdin>` or `<stdout>` for a pipe, null for a result that was not kept.
    pub path: Option<String>,
    /// Size of the file, external data left out.
    pub file_bytes: u64,
    /// Operators, those of bodies included.
    pub nodes: u64,
    /// Elements of all constants.
    pub parameters: u64,
    /// Bytes of the same, wherever they are stored.
    pub initializer_bytes: u64,
}

/// What one pass did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pass {
    /// Name.
    pub name: String,
    /// The furthest that its edits may change results: `exact`, `reassociates` or `approximates`.
    pub safety: String,
    /// Edits applied.
    pub rewrites: u64,
    /// What it found and left alone.
    pub refused: Vec<Refused>,
}

/// A place that a pass left alone.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// The operator.
    pub node: String,
    /// Why the edit was not certain to be safe.
    pub reason: String,
}

/// A linear combination `c + sum_i s_i * x_i` in the original.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MixingSite {
    /// Name of the value that holds the result.
    pub output: String,
    /// Number of terms.
    pub terms: usize,
    /// How the original writes it.
    pub form: String,
    /// True when it was rewritten.
    pub rewritten: bool,
    /// Why not, if it was not.
    pub reason: Option<String>,
    /// How the result writes it: `mul-add`, `horner`, `depthwise-conv` or `fused-conv`; null where it is in none of these
    /// forms.
    pub written: Option<String>,
}

/// Peak memory for activations: weights and graph inputs are not counted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peak {
    /// By the liveness model.
    pub predicted: Predicted,
    /// Measured in ONNX Runtime; null when it was not.
    pub measured: Option<Measured>,
    /// Why it was not.
    pub measured_reason: Option<String>,
}

/// A peak measured while ONNX Runtime ran original and result, outputs and temporaries included: the larger of the first
/// run and the later ones.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Name and version of the runtime.
    pub runtime: String,
    /// Execution provider: `cpu`, `cuda` or `cuda:N`.
    pub ep: String,
    /// Configuration of the session: `default` or `tuned`.
    pub session: String,
    /// Of the original.
    pub before_bytes: u64,
    /// Of the result.
    pub after_bytes: u64,
}

impl Measured {
    /// What to say where the result needs more than the original.
    fn warning(&self) -> Option<String> {
        let Measured { session, before_bytes, after_bytes, .. } = self;
        let advice = match session.as_str() {
            "default" => {
                "; the low-memory session (--session tuned, dmopt session) leaves the file's operators as they are"
            }
            _ => "",
        };
        let more = format!(
            "the result needs {after_bytes} bytes in a {session} session, the original {before_bytes}{advice}"
        );
        (after_bytes > before_bytes).then_some(more)
    }
}

/// The peak of a session of ONNX Runtime without optimizations, predicted from its plan.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Predicted {
    /// Whose kernels and whose order of execution: `onnxruntime 1.32, cpu`.
    pub runtime: String,
    /// For the original; null when sizes are not known.
    pub before_bytes: Option<u64>,
    /// For the result; null when sizes are not known.
    pub after_bytes: Option<u64>,
    /// The sizes that stood for the open dimensions of the inputs, by name.
    pub sizes: BTreeMap<String, u64>,
    /// Why a number is null.
    pub reason: Option<String>,
}

/// One way to arrange the operators of the result, and what it took.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Arrangement {
    /// How they stand in the file.
    pub operators: String,
    /// Measured peak in bytes, in the session that `peak.measured` names.
    pub bytes: u64,
}

/// The order of one graph of the result: the main graph or a body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// Name of the graph.
    pub graph: String,
    /// Peak in bytes if operators were executed in the order that they came in, rewrites applied.
    pub before_bytes: u64,
    /// The same in the order of the result.
    pub after_bytes: u64,
    /// True for the body of an operator.
    pub in_body: bool,
    /// True if the figures are for sizes that were assumed, because nobody gave them.
    pub assumed_sizes: bool,
    /// No order of these operators needs less, in bytes; null for graphs with bodies, for which no bound is known.
    pub lower_bound_bytes: Option<u64>,
    /// True if the order is proven to be the best.
    pub optimal: bool,
}

/// Whether original and result compute the same.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Validation {
    /// The verdict.
    pub status: ValidationStatus,
    /// The runtime that ran both files; null when none was asked to.
    pub runtime: Option<String>,
    /// Largest absolute difference of two output elements; null when nothing was compared.
    pub max_abs: Option<f64>,
    /// Largest difference relative to the elements or the scale of their tensor; null when nothing was compared.
    pub max_rel: Option<f64>,
    /// Largest number of representable values between two elements of floating-point outputs.
    pub max_ulp: Option<u64>,
    /// Smallest cosine of the angle between an output and its reference.
    pub cosine: Option<f64>,
    /// The difference allowed; null when validation was not asked for.
    pub tolerance: Option<Tolerance>,
    /// True when all outputs had the same bits; null when nothing was compared.
    pub bit_identical: Option<bool>,
    /// How far values inside the models are apart; null when none was compared.
    pub inside: Option<Inside>,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// The runs that were compared.
    pub runs: Vec<Run>,
}

/// The verdict of a validation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValidationStatus {
    /// Both files ran and all outputs agreed.
    Passed,
    /// Outputs differ, or the result does not run.
    Failed,
    /// Nothing is known.
    Skipped,
}

/// A difference that is allowed: either one suffices.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Tolerance {
    /// Absolute.
    pub abs: f64,
    /// Relative to the elements or the scale of their tensor.
    pub rel: f64,
}

/// How far values inside the graph are apart that have the same name in both files.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Inside {
    /// How many were compared.
    pub values: usize,
    /// True when all of them had the same bits.
    pub bit_identical: bool,
    /// Largest relative difference.
    pub max_rel: f64,
}

/// One run of both files on the same inputs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Seed of the inputs.
    pub seed: u64,
    /// Sizes of the open dimensions.
    pub sizes: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn new(
        source: &Source,
        original: &Model,
        model: &Model,
        outcome: &Outcome,
        placed: &Placed,
        predicted: Predicted,
        arrangements: Vec<Arrangement>,
    ) -> Report {
        let file = |path, file_bytes, model| {
            let Facts { nodes, parameters, initializer_bytes } = Facts::of(model);
            File { path, file_bytes, nodes, parameters, initializer_bytes }
        };
        let proof = placed.proof.as_ref();
        let decided = proof.and_then(Proof::deciding);
        let not_asked = NOT_ASKED.to_string();
        let measured = proof.map_or(Err(&not_asked), |proof| proof.measured.as_ref());
        let measured_reason = measured.err().cloned();
        let measured = measured.ok().map(Measured::from);
        let mut notes = outcome.notes.clone();
        notes.extend(measured.as_ref().and_then(Measured::warning));
        Report {
            schema: SCHEMA.to_string(),
            input: file(Some(source.name.clone()), source.bytes.len() as u64, original),
            output: file(placed.path.clone(), placed.bytes, model),
            passes: outcome.passes.iter().map(Pass::from).collect(),
            mixing_sites: outcome.sites.iter().map(MixingSite::from).collect(),
            peak: Peak { predicted, measured, measured_reason },
            schedules: outcome.schedules.iter().map(Schedule::from).collect(),
            arrangements,
            validation: Validation::new(decided),
            validations: proof
                .iter()
                .flat_map(|proof| &proof.validations)
                .map(|v| Validation::new(Some(v)))
                .collect(),
            safety: outcome.safety.map(|class| class.name().to_string()),
            min_onnxruntime: needed(model),
            stopped: outcome.out_of_fuel,
            notes,
        }
    }
}

impl Report {
    /// The order of the main graph, where its figures are for sizes that are known.
    pub fn main_schedule(&self) -> Option<&Schedule> {
        self.schedules.iter().find(|schedule| !schedule.in_body && !schedule.assumed_sizes)
    }

    /// Each runtime's verdict, or the one reason why there is none.
    pub fn verdicts(&self) -> &[Validation] {
        if self.validations.is_empty() { std::slice::from_ref(&self.validation) } else { &self.validations }
    }
}

impl MixingSite {
    /// What became of it, in words.
    pub fn fate(&self) -> String {
        match (self.rewritten, &self.reason) {
            (true, _) => "rewritten".to_string(),
            (false, Some(reason)) => format!("left alone: {reason}"),
            (false, None) => "an accumulation already".to_string(),
        }
    }

    /// The same with the form that it has in the result.
    pub fn fate_and_form(&self) -> String {
        match &self.written {
            Some(form) if self.rewritten => format!("rewritten as {form}"),
            Some(form) => format!("{} ({form})", self.fate()),
            None => self.fate(),
        }
    }
}

impl From<&dmopt_passes::PassReport> for Pass {
    fn from(pass: &dmopt_passes::PassReport) -> Pass {
        let refused = |r: &dmopt_passes::Refused| Refused { node: r.node.clone(), reason: r.reason.clone() };
        Pass {
            name: pass.name.to_string(),
            safety: pass.safety.name().to_string(),
            rewrites: pass.rewrites,
            refused: pass.refused.iter().map(refused).collect(),
        }
    }
}

impl From<&dmopt_passes::Schedule> for Schedule {
    fn from(schedule: &dmopt_passes::Schedule) -> Schedule {
        Schedule {
            graph: schedule.graph.clone(),
            before_bytes: schedule.before_bytes,
            after_bytes: schedule.after_bytes,
            in_body: schedule.in_body,
            assumed_sizes: schedule.assumed_sizes,
            lower_bound_bytes: schedule.lower_bound_bytes,
            optimal: schedule.is_optimal(),
        }
    }
}

impl From<&dmopt_passes::Site> for MixingSite {
    fn from(site: &dmopt_passes::Site) -> MixingSite {
        MixingSite {
            output: site.output.clone(),
            terms: site.terms,
            form: site.form.to_string(),
            rewritten: site.rewritten,
            reason: site.reason.clone(),
            written: site.written.map(|form| form.name().to_string()),
        }
    }
}

impl From<&proof::Measured> for Measured {
    fn from(found: &proof::Measured) -> Measured {
        Measured {
            runtime: found.runtime.to_string(),
            ep: found.ep.to_string(),
            session: found.session.name().to_string(),
            before_bytes: found.before.peak().bytes,
            after_bytes: found.after.peak().bytes,
        }
    }
}

impl Validation {
    pub(crate) fn new(found: Option<&dmopt_runtime::Validation>) -> Validation {
        let Some(found) = found else {
            return Validation {
                status: ValidationStatus::Skipped,
                runtime: None,
                max_abs: None,
                max_rel: None,
                max_ulp: None,
                cosine: None,
                tolerance: None,
                bit_identical: None,
                inside: None,
                reason: Some(NOT_ASKED.to_string()),
                runs: Vec::new(),
            };
        };
        let compared = found.comparison.as_ref();
        Validation {
            status: found.status.into(),
            runtime: Some(found.runtime.to_string()),
            max_abs: compared.map(|c| c.max_abs),
            max_rel: compared.map(|c| c.max_rel),
            max_ulp: compared.map(|c| c.max_ulp),
            cosine: compared.map(|c| c.cosine),
            tolerance: Some(Tolerance { abs: found.tolerance.abs, rel: found.tolerance.rel }),
            bit_identical: compared.map(|c| c.bit_identical),
            inside: found.inside.map(|inside| Inside {
                values: inside.values,
                bit_identical: inside.bit_identical,
                max_rel: inside.max_rel,
            }),
            reason: found.reason.clone(),
            runs: found.runs.iter().map(|run| Run { seed: run.seed, sizes: run.sizes.clone() }).collect(),
        }
    }
}

/// True if a value is of half precision, for which most kernels of the processor are missing, and ONNX Runtime adds casts.
pub(crate) fn is_cast(graph: &Graph, kernels: memory::Kernels) -> bool {
    let halves = [DType::F16, DType::BF16];
    let computes_in_half =
        || graph.values().any(|v| graph.tensor_type(v).is_some_and(|ty| halves.contains(&ty.dtype)));
    matches!(kernels, memory::Kernels::OrtCpu { .. }) && computes_in_half()
}

/// Whose plan a prediction is, as reports write it.
pub fn planned_for(kernels: memory::Kernels) -> String {
    match kernels {
        memory::Kernels::Ideal => "ideal kernels".to_string(),
        memory::Kernels::OrtCpu { version: (major, minor) } => format!("onnxruntime {major}.{minor}, cpu"),
        memory::Kernels::OrtCuda { version: (major, minor) } => format!("onnxruntime {major}.{minor}, cuda"),
    }
}

/// The sizes that inputs of a run can have; those of values inside, which come about in the run, are for plans alone.
pub(crate) fn pins(graph: &Graph, given: &Sizes) -> Pins {
    let inside = if given.dims.is_empty() { BTreeSet::new() } else { graph.open_dims().1 };
    let of_inputs = given.dims.iter().filter(|(name, _)| !inside.contains(*name));
    Pins { dims: of_inputs.map(|(name, &size)| (name.clone(), size)).collect(), shapes: given.shapes.clone() }
}

/// The name of an open dimension of the first value whose size is not known.
fn dim_of(graph: &Graph, unknown: &memory::Unknown) -> Option<String> {
    let memory::Unknown::Sizes(names) = unknown else { return None };
    let value = graph.values().find(|&v| Some(&graph.value(v).name) == names.first())?;
    graph.open_dims_of(value).next().map(|(_, name)| name)
}

/// The open dimensions of a model's inputs, what the caller says about them, and whose kernels will run it.
pub(crate) struct OpenSizes {
    given: Sizes,
    kernels: memory::Kernels,
    /// The sizes, when the caller fixes all of them or none is open.
    fixed: Option<BTreeMap<String, u64>>,
    /// Names of those that stay open.
    open: Vec<String>,
    /// The sizes that a first run is made with.
    first: BTreeMap<String, u64>,
}

impl OpenSizes {
    /// # Errors
    /// The given sizes contradict the graph: a sentence.
    pub(crate) fn of(graph: &Graph, given: &Sizes, kernels: memory::Kernels) -> Result<OpenSizes, String> {
        let required = graph
            .inputs()
            .iter()
            .filter(|&&input| matches!(graph.value(input).def, dmopt_ir::Def::Input { default: None }));
        let port = |&input: &_| {
            let name = graph.value(input).name.clone();
            graph.tensor_type(input).map(|ty| Port { name, ty: ty.clone() })
        };
        let interface = Interface { inputs: required.filter_map(port).collect(), outputs: Vec::new() };
        let mut tried = assignments(&interface, &pins(graph, given)).map_err(|cause| cause.to_string())?;
        let alone = tried.len() == 1;
        let first = tried.drain(..).next().unwrap_or_default();
        let (open, fixed) = if alone {
            (Vec::new(), Some(first.clone()))
        } else {
            (first.keys().filter(|name| !given.dims.contains_key(*name)).cloned().collect(), None)
        };
        Ok(OpenSizes { given: given.clone(), kernels, fixed, open, first })
    }

    /// With the sizes that the caller fixes, else those of the first validation run. `planned` are the peaks of the two
    /// where they have been predicted already.
    pub(crate) fn predict(
        &self,
        original: &Model,
        model: &Model,
        validation: Option<&dmopt_runtime::Validation>,
        planned: Option<[u64; 2]>,
    ) -> Predicted {
        let run = || Some(validation?.runs.first()?.sizes.clone());
        let dims = self.fixed.clone().or_else(run);
        let peak = |model: &Model| self.peak(&model.graph, dims.as_ref());
        let [before, after] = planned.map_or_else(|| [peak(original), peak(model)], |peaks| peaks.map(Ok));
        Predicted {
            runtime: planned_for(self.kernels),
            reason: before.as_ref().err().or(after.as_ref().err()).cloned(),
            before_bytes: before.ok(),
            after_bytes: after.ok(),
            sizes: dims.unwrap_or_default(),
        }
    }

    /// The sizes that a first run is made with, and those of values inside that the caller gives.
    pub(crate) fn first_sizes(&self) -> Sizes {
        self.sizes(Some(&self.first))
    }

    /// The peak of a first run, in bytes; `None` where it is not known.
    pub(crate) fn first_peak(&self, graph: &Graph) -> Option<u64> {
        self.peak(graph, Some(&self.first)).ok()
    }

    /// The peak of one run in ONNX Runtime, in bytes, with the sizes that the caller fixes, or these.
    ///
    /// # Errors
    /// Why it is not known: a sentence.
    pub(crate) fn peak(&self, graph: &Graph, dims: Option<&BTreeMap<String, u64>>) -> Result<u64, String> {
        if is_cast(graph, self.kernels) {
            let casts = "ONNX Runtime adds casts around half-precision kernels, which the plan does not know";
            return Err(casts.to_string());
        }
        self.plan(graph, dims).map(|plan| plan.first_run.peak_bytes)
    }

    /// What one run takes in ONNX Runtime, with the sizes that the caller fixes, or these.
    ///
    /// # Errors
    /// Why it is not known: a sentence.
    pub(crate) fn plan(
        &self,
        graph: &Graph,
        dims: Option<&BTreeMap<String, u64>>,
    ) -> Result<memory::ort::Plan, String> {
        let settings =
            memory::ort::Settings { sizes: self.sizes(dims), kernels: self.kernels, ..Default::default() };
        memory::ort::plan(graph, &settings).map_err(|unknown| self.explain(graph, &unknown))
    }

    /// The sizes that the caller fixes, or these.
    pub(crate) fn sizes(&self, dims: Option<&BTreeMap<String, u64>>) -> Sizes {
        let mut all = self.given.dims.clone();
        all.extend(
            dims.or(self.fixed.as_ref()).into_iter().flatten().map(|(name, &size)| (name.clone(), size)),
        );
        Sizes { dims: all, shapes: self.given.shapes.clone() }
    }

    /// Why something is not known, and how to make it known: a sentence.
    pub(crate) fn explain(&self, graph: &Graph, unknown: &memory::Unknown) -> String {
        match self.open.as_slice() {
            [] => match (unknown, dim_of(graph, unknown)) {
                (memory::Unknown::Sizes(_), Some(name)) => {
                    format!("{unknown}, because it depends on data (--dim {name}=N gives it a size)")
                }
                _ => unknown.to_string(),
            },
            [name] => format!("{unknown}; dimension {name} is open (--dim {name}=N gives it a size)"),
            names => {
                let flags: Vec<String> = names.iter().map(|name| format!("--dim {name}=N")).collect();
                let (names, flags) = (names.join(", "), flags.join(" "));
                format!("{unknown}; dimensions {names} are open ({flags} gives them sizes)")
            }
        }
    }
}
