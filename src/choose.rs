//! Which of several results needs least in the session that will serve it, the original among them.
//!
//! A session that may optimize replaces operators by fused ones, which get other numbers, so the order that it executes
//! does not follow from the file alone; and it may need more for operators that by themselves need less. Where ONNX
//! Runtime is there, it is asked: if the result does not come down to the predicted peak, other ways to arrange the same
//! operators are measured as well, and where everything needs more than the original, the original's own operators; they
//! stay, too, where nothing needs less than they do and they are fewer. In a better order, they are tried where that of the
//! rewritten ones is not proven to be the best, and theirs promises clearly less.
//! Without ONNX Runtime, its plan stands in for it.

use std::collections::BTreeMap;

use dmopt_ir::Model;
use dmopt_passes::{Anchors, Outcome, PIPELINE, Schedule, Site, Target};
use dmopt_runtime::{self as runtime, Backend, ModelFile, Named, RuntimeError};

use crate::facts::each_graph;
use crate::report::Arrangement;
use crate::rewrite::Inferred;
use crate::{Error, Options, Source, onnx};

/// A rewritten model, and what was done to it.
pub(crate) struct Candidate {
    pub model: Model,
    pub outcome: Outcome,
    /// What was measured on the way here; empty if there was nothing to choose.
    pub measured: Vec<Arrangement>,
    /// What the original and this model weigh, if that was asked.
    pub weights: Option<[u64; 2]>,
    /// What is written for it, if that was made already.
    pub proto: Option<onnx::schema::ModelProto>,
}

impl Candidate {
    pub fn new(model: Model, outcome: Outcome) -> Candidate {
        Candidate { model, outcome, measured: Vec::new(), weights: None, proto: None }
    }

    /// The figures were not measured but are those of a plan: no column of the report has them, a remark says what came
    /// of them.
    pub fn weighed_by_plan(&mut self) {
        let measured = std::mem::take(&mut self.measured);
        let least = measured.iter().min_by_key(|way| way.bytes);
        if let (Some(first), Some(way)) = (measured.first(), least)
            && way != first
        {
            self.outcome.notes.push(format!(
                "operators stand {} because ONNX Runtime is predicted to need {} bytes then, and {} {}",
                way.operators, way.bytes, first.bytes, first.operators
            ));
        }
    }
}

/// Files beyond this are not measured in several arrangements: each is in memory as a whole then.
const MAX_BYTES: u64 = 1 << 30;

/// A measured peak is as predicted if it is not above it by more than one part in this many.
const AS_PREDICTED: u64 = 50;

/// All rewriting is given up, where it needs no more than the original, for what needs less by one part in this many.
const WORTH_GIVING_UP: u64 = 20;

/// The passes that decide about order.
pub(crate) const ORDER: [&str; 2] = ["schedule-for-memory", "order-anchors"];

/// The pass that finds mixing sites.
const SITES: &str = "fuse-scaled-sum";

/// A way to arrange operators.
struct Way<'a> {
    /// How they stand then.
    name: String,
    /// Passes that do not run.
    skip: &'a [&'static str],
    anchors: Anchors,
    target: Target,
}

/// Says what a model needs, in bytes; `None` where that is not known.
pub(crate) type Scale<'a> = &'a dyn Fn(&Model) -> Option<u64>;

/// Number of operators that do something, those of bodies too.
fn operators(model: &Model) -> usize {
    let mut count = 0;
    each_graph(&model.graph, &mut |graph| {
        count += graph.ops().filter(|&op| !graph.op(op).is("Constant")).count();
    });
    count
}

/// Takes `first`, or what needs less on this scale: the same operators arranged in another way or the original's.
///
/// # Errors
/// A pass failed.
pub(crate) fn lightest(
    weigh: Scale<'_>,
    source: &Source,
    inferred: &Inferred,
    first: Candidate,
    options: &Options<'_>,
) -> Result<Candidate, Error> {
    let original = &inferred.model;
    let edited = |ours: bool| {
        let mut passes = first.outcome.passes.iter().filter(|pass| ORDER.contains(&pass.name) == ours);
        passes.any(|pass| pass.rewrites > 0)
    };
    let (moved, rewritten) = (edited(true), edited(false));
    // Who asks for certain passes, or for a part of what they do, gets that.
    let asked = !options.passes.is_empty() || options.split_hidden.or(options.split_batch).is_some();
    if options.stop_after.is_some() || !moved && (!rewritten || asked) {
        return Ok(first);
    }
    let promise = |outcome: &Outcome| outcome.main_schedule().map_or(0, |schedule| schedule.after_bytes);
    let promised = promise(&first.outcome);
    let is_best = first.outcome.main_schedule().is_none_or(Schedule::is_optimal);
    let weights = first.weights.or_else(|| {
        let bytes = weigh(&first.model)?;
        Some([weigh(original)?, bytes])
    });
    let Some([before, bytes]) = weights else { return Ok(first) };
    let mut measured = vec![Arrangement { operators: "in the order found".to_string(), bytes }];
    let all: Vec<&'static str> = PIPELINE.iter().map(|pass| pass.name()).collect();
    let others: Vec<&'static str> = all.iter().copied().filter(|name| !ORDER.contains(name)).collect();
    let Options { anchors, target, .. } = *options;
    let mut ways: Vec<Way<'_>> = Vec::new();
    let as_promised = bytes.saturating_sub(promised) <= promised / AS_PREDICTED;
    if moved && !as_promised {
        let alone = ("of standard types alone, ", Target::Portable);
        let standard = (target == Target::OrtCpu && !asked).then_some(alone);
        for (prefix, target) in [("", options.target)].into_iter().chain(standard) {
            let mut way = |name: &str, skip, anchors| {
                ways.push(Way { name: format!("{prefix}{name}"), skip, anchors, target });
            };
            // Those of the target have been measured in the order found.
            if target != options.target {
                way("in the order found", &[], anchors);
            }
            way("as they came", &ORDER, anchors);
            if anchors != Anchors::Never {
                way("numbered for onnxruntime", &[], Anchors::Never);
            }
        }
    }
    let needs_more = bytes > before;
    let is_in_vain = |bytes: u64, model: &Model| bytes == before && operators(model) > operators(original);
    if (needs_more || rewritten && !(is_best && as_promised)) && !asked {
        let name = "as in the original, in a better order".to_string();
        ways.push(Way { name, skip: &others, anchors, target });
    }
    if (needs_more || is_in_vain(bytes, &first.model)) && !asked {
        ways.push(Way { name: "as in the original".to_string(), skip: &all, anchors, target });
    }
    let sites = first.outcome.sites.clone();
    // What pays does not depend on how operators are arranged in the end.
    let mut offers = BTreeMap::from([(target.name(), first.outcome.offers.clone())]);
    let mut best = first;
    let mut least = bytes;
    for Way { name, skip: skipped, anchors, target } in ways {
        let mut skip = options.skip.clone();
        skip.extend(skipped.iter().map(|name| name.to_string()));
        let options = Options { target, ..options.with(anchors, skip) };
        let (model, mut outcome) = inferred.rewritten(source, &options, offers.get(target.name()))?;
        // Operators that nothing was done to may be easier to order. Where they promise too little they are not measured.
        let gives_up = skipped == others && !needs_more;
        let limit = if gives_up { least - least / WORTH_GIVING_UP } else { least };
        if gives_up && promise(&outcome) >= limit {
            continue;
        }
        offers.entry(target.name()).or_insert_with(|| outcome.offers.clone());
        let Some(bytes) = weigh(&model) else { continue };
        measured.push(Arrangement { operators: name, bytes });
        if bytes < limit || skipped == all && bytes == least && is_in_vain(least, &best.model) {
            if skipped.contains(&SITES) {
                let undone = |site: &Site| match site.rewritten {
                    true => site.left_alone("the original's operators need no more"),
                    false => site.clone(),
                };
                outcome.sites = sites.iter().map(undone).collect();
            }
            (least, best) = (bytes, Candidate::new(model, outcome));
        }
    }
    Ok(Candidate { measured, weights: Some([before, least]), ..best })
}

/// The measured peak of a model, in bytes.
///
/// # Errors
/// It is too large, or does not load or run.
pub(crate) fn measured_peak(
    ort: &dyn Backend,
    source: &Source,
    model: &Model,
    check: &runtime::Options,
) -> Result<u64, RuntimeError> {
    let not_measured = |reason: String| RuntimeError::Unsupported { runtime: ort.name(), reason };
    let proto = onnx::export(model, &onnx::ExportOptions::default())
        .map_err(|cause| not_measured(cause.to_string()))?;
    let mut bytes = Vec::new();
    onnx::write_stream(&proto, &source.name, &mut bytes, MAX_BYTES)
        .map_err(|cause| not_measured(cause.to_string()))?;
    let file = ModelFile { bytes: bytes.into(), folder: Some(source.folder.clone()) };
    let interface = ort.load(&file)?.interface().clone();
    let sizes = runtime::inputs::assignments(&interface, &check.pins)?.into_iter().next().unwrap_or_default();
    let inputs: Vec<Named> = check.inputs(&interface, &sizes, check.seed)?;
    Ok(ort.peak(&file, &inputs)?.bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dmopt_ir::text::parse_model;

    use super::*;

    /// A layer of three stacked tensors; the stack need not be there, at the price of two layers more.
    const STACKED: &str = "<ir_version: 10, opset_import: [\"\": 21]>
        g (float[1,1,64,64] x) => (float[1,1,64,62] y) <float[1,3,1,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            a = Exp(x) b = Abs(x) c = Neg(x) stack = Concat<axis = 1>(a, b, c) y = Conv(stack, w)
        }";

    /// What remains of a model where the original weighs as much as `before`, what came of it as much as `after`; and the
    /// number of its operators, with that of the original.
    fn remains(before: u64, after: u64) -> (Candidate, [usize; 2]) {
        let inferred = Inferred::of(parse_model(STACKED).unwrap());
        let model = &inferred.model;
        let source =
            Source { name: String::new(), bytes: Default::default(), path: None, folder: PathBuf::new() };
        let options = Options::default();
        let (rewritten, outcome) = inferred.rewritten(&source, &options, None).unwrap();
        assert!(operators(&rewritten) > operators(model));
        let weigh = |found: &Model| Some(if operators(found) > operators(model) { after } else { before });
        let first = Candidate::new(rewritten, outcome);
        let best = lightest(&weigh, &source, &inferred, first, &options).unwrap();
        let counts = [operators(&best.model), operators(model)];
        (best, counts)
    }

    #[test]
    fn more_operators_for_as_many_bytes_are_not_taken() {
        let (best, [found, original]) = remains(1_000_000, 1_000_000);
        assert_eq!((found, best.weights), (original, Some([1_000_000, 1_000_000])));
        assert_eq!(best.measured.last().unwrap().operators, "as in the original");
    }

    #[test]
    fn more_operators_for_fewer_bytes_are_taken() {
        let (best, [found, original]) = remains(1_000_000, 999_999);
        assert!(found > original && best.weights == Some([1_000_000, 999_999]));
    }
}
