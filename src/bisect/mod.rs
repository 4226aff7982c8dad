//! The first edit after which a result no longer computes the same or needs more memory, found by halving.
//!
//! The passes apply edits one after the other and stop after as many as they are told, and a run that stops later begins
//! with the same edits. Between a number of edits that is good (none) and one that is bad (all), halving finds an edit
//! that turns good into bad. Where later edits repair what earlier ones broke, there may be others before it.

mod cut;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dmopt_ir::{Model, OpId};
use dmopt_passes::Outcome;
use dmopt_runtime::{self as runtime, ModelFile, Status};
use serde::{Deserialize, Serialize};

use crate::diff::{Group, Matching, groups};
use crate::proof::{self, Side};
use crate::report::{self, OpenSizes};
use crate::rewrite::Inferred;
use crate::runtimes::Found;
use crate::{Error, Options, Source, Target, ir, onnx, tolerance, validation};
use cut::cut;

/// The value of [`Bisection::schema`].
pub const SCHEMA: &str = "dmopt.bisect/1";

/// What was looked for and found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Bisection {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: String,
    /// Edits that all passes together apply.
    pub edits: u64,
    /// The runtimes that ran the models.
    pub runtimes: Vec<String>,
    /// Predicted peak of the original in bytes; null when it is not known.
    pub original_peak: Option<u64>,
    /// Predicted peak with all edits in bytes; null when it is not known.
    pub peak: Option<u64>,
    /// The numbers of edits that were looked at, in the order in which they were.
    pub trials: Vec<Trial>,
    /// The edit that is to blame; null when the result is right and needs no more than the original.
    pub culprit: Option<Culprit>,
}

/// A result of some of the edits.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// How many edits were applied.
    pub edits: u64,
    /// What is wrong with it; null when nothing is.
    pub wrong: Option<String>,
}

/// An edit that is to blame.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Culprit {
    /// What goes wrong.
    pub symptom: Symptom,
    /// The same in words.
    pub reason: String,
    /// Number of the edit, from 1: `--stop-after` with one less gives a good result.
    pub edit: u64,
    /// The pass that applied it.
    pub pass: String,
    /// Which of the pass's edits it is, from 1.
    pub application: u64,
    /// What the edit changed; empty when it only moved operators.
    pub changes: Vec<Group>,
    /// How many operators the edit moved.
    pub moved: usize,
    /// The smallest piece of the model on which the pass goes wrong in the same way.
    pub reproducer: Option<Reproducer>,
    /// Why there is none.
    pub reproducer_reason: Option<String>,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Symptom {
    /// The result does not compute what the original does.
    OutputsDiffer,
    /// The predicted peak of the result is above that of the original.
    PeakGrows,
}

/// A small model that shows what goes wrong.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reproducer {
    /// The file.
    pub path: String,
    /// Its operators.
    pub nodes: u64,
    /// A command that shows it.
    pub command: String,
}

/// What to run the models on, and where the reproducer goes.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Inputs in a `.npz` file, or a folder of test data (`input_0.pb`); random ones without.
    pub inputs: Option<PathBuf>,
    /// Where the reproducer goes; without, beside the model with `.bisect.onnx` at the end.
    pub reproducer: Option<PathBuf>,
}

/// Finds the first edit after which outputs differ or, where they do not, after which the predicted peak is above that of the
/// original. `tell` is told of each trial. Of the options, `stop_after`, `validate` and `progress` do not count.
///
/// # Errors
/// See [`Error`]; [`Error::NotCompared`] when the original does not run anywhere.
pub fn bisect(
    source: &Source,
    options: &Options<'_>,
    given: &Given,
    tell: &dyn Fn(&Trial),
) -> Result<Bisection, Error> {
    let place = given.reproducer.clone().unwrap_or_else(|| match &source.path {
        Some(path) => path.with_extension("bisect.onnx"),
        None => "model.bisect.onnx".into(),
    });
    let original = source.complete_model()?;
    source.guard(&Target::File(place.clone()), &original)?;
    let backends = options.runtimes.find()?;
    let case = Case::of(source, original, &backends, options, given.inputs.as_deref())?;
    let (result, outcome) = case.rewritten(None)?;
    let edits = edits(&outcome);
    let mut found = Bisection {
        schema: SCHEMA.to_string(),
        model: source.name.clone(),
        edits,
        runtimes: case.names(),
        original_peak: case.peak(&case.inferred.model),
        peak: case.peak(&result),
        trials: Vec::new(),
        culprit: None,
    };
    let look = |count: u64, symptom: Option<Symptom>, trials: &mut Vec<Trial>| -> Result<_, Error> {
        let (model, outcome) = case.rewritten(Some(count))?;
        let wrong = case.wrong(&model, &outcome, symptom)?;
        let trial = Trial { edits: count, wrong: wrong.as_ref().map(|(_, reason)| reason.clone()) };
        tell(&trial);
        trials.push(trial);
        Ok(wrong)
    };
    let Some((symptom, mut reason)) = look(edits, None, &mut found.trials)? else { return Ok(found) };
    let (mut good, mut bad) = (0, edits);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match look(middle, Some(symptom), &mut found.trials)? {
            Some((_, why)) => (bad, reason) = (middle, why),
            None => good = middle,
        }
    }
    found.culprit = Some(case.blame(symptom, reason, bad, &place)?);
    Ok(found)
}

fn edits(outcome: &Outcome) -> u64 {
    outcome.passes.iter().map(|pass| pass.rewrites).sum()
}

/// A model, and how its results are judged.
struct Case<'a> {
    source: &'a Source,
    inferred: Inferred,
    open: OpenSizes,
    options: &'a Options<'a>,
    found: &'a Found,
    check: runtime::Options,
}

impl<'a> Case<'a> {
    fn of(
        source: &'a Source,
        model: Model,
        found: &'a Found,
        options: &'a Options<'a>,
        inputs: Option<&Path>,
    ) -> Result<Case<'a>, Error> {
        let inferred = Inferred::of(model);
        let model = &inferred.model;
        let open = OpenSizes::of(&model.graph, &options.sizes, options.target.kernels())
            .map_err(|reason| Error::Sizes { file: source.name.clone(), reason })?;
        let given = inputs.map(|path| validation::given(path, &model.graph)).transpose()?.unwrap_or_default();
        let check = runtime::Options {
            seed: options.seed,
            pins: report::pins(&model.graph, &options.sizes),
            given,
            ..runtime::Options::default()
        };
        Ok(Case { source, inferred, open, options, found, check })
    }

    fn names(&self) -> Vec<String> {
        [&self.found.tract, &self.found.ort]
            .into_iter()
            .flatten()
            .map(|backend| backend.name().to_string())
            .collect()
    }

    /// The model after so many edits.
    fn rewritten(&self, stop_after: Option<u64>) -> Result<(Model, Outcome), Error> {
        let mut options = self.options.with(self.options.anchors, self.options.skip.clone());
        options.stop_after = stop_after;
        self.inferred.rewritten(self.source, &options, None)
    }

    /// The predicted peak at the sizes of a first run, in bytes.
    fn peak(&self, model: &Model) -> Option<u64> {
        self.open.first_peak(&model.graph)
    }

    /// What is wrong with a result, looking for anything or for this alone.
    fn wrong(
        &self,
        result: &Model,
        outcome: &Outcome,
        only: Option<Symptom>,
    ) -> Result<Option<(Symptom, String)>, Error> {
        if only != Some(Symptom::PeakGrows)
            && let Some(reason) = self.differs(result, outcome)?
        {
            return Ok(Some((Symptom::OutputsDiffer, reason)));
        }
        if only == Some(Symptom::OutputsDiffer) {
            return Ok(None);
        }
        Ok(match (self.peak(&self.inferred.model), self.peak(result)) {
            (Some(was), Some(is)) if is > was => Some((
                Symptom::PeakGrows,
                format!("the predicted peak is {is} bytes, that of the original {was}"),
            )),
            _ => None,
        })
    }

    /// How outputs, or values inside, differ from those of the original.
    fn differs(&self, result: &Model, outcome: &Outcome) -> Result<Option<String>, Error> {
        let proto = onnx::export(result, &onnx::ExportOptions::default())
            .map_err(|cause| Error::Export { file: self.source.name.clone(), cause })?;
        let bytes: Bytes = onnx::encode(&proto).concat().into();
        let (ours, theirs) =
            (self.source.file(), ModelFile { bytes, folder: Some(self.source.folder.clone()) });
        let check = runtime::Options {
            tolerance: tolerance::of(&self.inferred.model, outcome),
            terms: tolerance::longest_sum(&self.inferred.model.graph),
            ..self.check.clone()
        };
        let validations = proof::judge_all(
            self.found,
            Side { file: &ours, graph: &self.inferred.model.graph },
            Side { file: &theirs, graph: &result.graph },
            &check,
        )
        .map_err(proof::sizes_error(&self.source.name))?;
        let failed = validations.iter().find(|found| found.status == Status::Failed);
        if let Some(failed) = failed {
            return Ok(Some(failed.reason.clone().unwrap_or_else(|| "outputs differ".to_string())));
        }
        if validations.iter().any(|found| found.status == Status::Passed) {
            return Ok(None);
        }
        let reasons: Vec<String> = validations.into_iter().filter_map(|found| found.reason).collect();
        let reason = if reasons.is_empty() { self.found.none() } else { reasons.join("; ") };
        Err(Error::NotCompared { reference: self.source.name.clone(), reason })
    }

    /// The edit with this number: its pass, what it changed, and a small model that shows it.
    fn blame(&self, symptom: Symptom, reason: String, edit: u64, place: &Path) -> Result<Culprit, Error> {
        let ((mut before, counts), (after, more)) =
            (self.rewritten(Some(edit - 1))?, self.rewritten(Some(edit))?);
        let count = |outcome: &Outcome| -> BTreeMap<&'static str, u64> {
            outcome.passes.iter().map(|pass| (pass.name, pass.rewrites)).collect()
        };
        let before_counts = count(&counts);
        let (pass, application) = count(&more)
            .into_iter()
            .find(|(name, n)| before_counts.get(name).is_none_or(|known| n > known))
            .unwrap_or(("order of operators", 1));
        ir::infer::infer_graph(&mut before.graph);
        let matching = Matching::of(&before.graph, &after.graph);
        let changed = matching.changed.iter().map(|(p, ..)| *p);
        let touched: HashSet<OpId> = changed.chain(matching.alone(0)).collect();
        let made = self.reproduce(symptom, pass, &before, touched, place);
        let (reproducer, reproducer_reason) = match made {
            Ok(reproducer) => (Some(reproducer), None),
            Err(reason) => (None, Some(reason)),
        };
        Ok(Culprit {
            symptom,
            reason,
            edit,
            pass: pass.to_string(),
            application,
            changes: groups(&matching),
            moved: matching.moved(),
            reproducer,
            reproducer_reason,
        })
    }

    /// Grows the piece around the operators that the edit touched until the pass alone goes wrong on it, and writes it.
    ///
    /// # Errors
    /// No piece shows it: a sentence.
    fn reproduce(
        &self,
        symptom: Symptom,
        pass: &'static str,
        model: &Model,
        touched: HashSet<OpId>,
        place: &Path,
    ) -> Result<Reproducer, String> {
        let graph = &model.graph;
        let sized = graph.with_sizes(&self.open.first_sizes());
        // An edit that only moves operators is about all of them.
        let mut ops = if touched.is_empty() { graph.ops().collect() } else { touched };
        loop {
            if let Ok(proto) = cut(model, &sized, &ops)
                && self.shows(symptom, pass, onnx::encode(&proto).concat().into())
            {
                let nodes = ops.len() as u64;
                let permissions = self.source.permissions();
                let options = onnx::WriteOptions { permissions, ..onnx::WriteOptions::default() };
                onnx::write(proto, place, &options).map_err(|cause| cause.to_string())?;
                let path = place.display().to_string();
                let command = format!("dmopt optimize {path} --passes {pass}");
                return Ok(Reproducer { path, nodes, command });
            }
            let ring: Vec<OpId> =
                ops.iter().flat_map(|&op| graph.predecessors(op).chain(graph.successors(op))).collect();
            let before = ops.len();
            ops.extend(ring);
            if ops.len() == before {
                if before == graph.op_count() {
                    return Err("pass and model alone do not show it; it takes the edits before".to_string());
                }
                ops = graph.ops().collect();
            }
        }
    }

    /// True if the pass alone goes wrong on this model.
    fn shows(&self, symptom: Symptom, pass: &str, bytes: Bytes) -> bool {
        let name = self.source.name.clone();
        let source = Source { name, bytes, path: None, folder: self.source.folder.clone() };
        let mut options = self.options.with(self.options.anchors, Vec::new());
        options.passes = vec![pass.to_string()];
        options.sizes = ir::Sizes::default();
        let shown = source.complete_model().and_then(|model| {
            let case = Case::of(&source, model, self.found, &options, None)?;
            let (result, outcome) = case.rewritten(None)?;
            case.wrong(&result, &outcome, Some(symptom))
        });
        matches!(shown, Ok(Some(_)))
    }
}

impl Bisection {
    /// The bisection as a verdict.
    ///
    /// # Errors
    /// [`Error::Bisected`]: an edit is to blame.
    pub fn judge(&self) -> Result<(), Error> {
        let Some(culprit) = &self.culprit else { return Ok(()) };
        let what = match culprit.symptom {
            Symptom::OutputsDiffer => "outputs differ",
            Symptom::PeakGrows => "the peak grows",
        };
        let reason = format!(
            "{what} from edit {} on: number {} of {}",
            culprit.edit, culprit.application, culprit.pass
        );
        Err(Error::Bisected {
            model: self.model.clone(),
            reason,
            outputs: culprit.symptom == Symptom::OutputsDiffer,
        })
    }
}
