//! Which of several files with the same operators needs least in the session that will serve it.
//!
//! A session that may optimize replaces operators by fused ones, which get other numbers, so the order that it executes
//! does not follow from the file alone. Where ONNX Runtime is there, it is asked: if the file with order anchors does
//! not come down to the predicted peak, the other ways to arrange the same operators are measured as well, and the
//! lightest is taken.

use bytes::Bytes;
use dmopt_ir::Model;
use dmopt_passes::{Anchors, Outcome, PIPELINE};
use dmopt_runtime::{self as runtime, Backend, ModelFile, Named, RuntimeError};

use crate::report::Arrangement;
use crate::{Error, Options, Source, onnx, rewrite};

/// A rewritten model, and what was done to it.
pub(crate) struct Candidate {
    pub model: Model,
    pub outcome: Outcome,
    /// What was measured on the way here; empty if there was nothing to choose.
    pub measured: Vec<Arrangement>,
}

/// Files beyond this are not measured in several arrangements: each is in memory as a whole then.
const MAX_BYTES: usize = 1 << 30;

/// A measured peak is as predicted if it is not above it by more than one part in this many.
const AS_PREDICTED: u64 = 50;

/// The passes that decide about order.
const ORDER: [&str; 2] = ["schedule-for-memory", "order-anchors"];

/// Takes `first`, or another arrangement of the same operators that needs less in a session of this runtime. Where no
/// mixing site was rewritten and everything needs more than the original, that is the original itself.
///
/// # Errors
/// A pass failed.
pub(crate) fn lightest(
    ort: &dyn Backend,
    source: &Source,
    original: &Model,
    first: Candidate,
    options: &Options<'_>,
    check: &runtime::Options,
) -> Result<Candidate, Error> {
    let moved = first.outcome.passes.iter().any(|p| ORDER.contains(&p.name) && p.rewrites > 0);
    let main = first.outcome.schedules.iter().find(|schedule| !schedule.in_body && !schedule.assumed_sizes);
    let promised = main.map_or(0, |schedule| schedule.after_bytes);
    let measure = |model: &Model| peak(ort, source, model, check);
    let (true, Ok(bytes), Ok(before)) = (moved, measure(&first.model), measure(original)) else {
        return Ok(first);
    };
    let mut measured = vec![Arrangement { operators: "in the order found".to_string(), bytes }];
    let mut best = first;
    let mut least = bytes;
    if bytes > before || bytes.saturating_sub(promised) > promised / AS_PREDICTED {
        let all: Vec<&str> = PIPELINE.iter().map(|pass| pass.name()).collect();
        let mut others: Vec<(&str, &[&str], Anchors)> = vec![("as they came", &ORDER, options.anchors)];
        if options.anchors != Anchors::Never {
            others.push(("numbered for onnxruntime", &[], Anchors::Never));
        }
        if best.outcome.sites.iter().all(|site| !site.rewritten) {
            others.push(("as in the original", &all, options.anchors));
        }
        for (name, skipped, anchors) in others {
            let mut skip = options.skip.clone();
            skip.extend(skipped.iter().map(|name| name.to_string()));
            let mut model = original.clone();
            let outcome = rewrite(&mut model, source, &options.with(anchors, skip))?;
            let Ok(bytes) = measure(&model) else { continue };
            measured.push(Arrangement { operators: name.to_string(), bytes });
            if bytes < least {
                (least, best) = (bytes, Candidate { model, outcome, measured: Vec::new() });
            }
        }
    }
    Ok(Candidate { measured, ..best })
}

/// The measured peak of a model, in bytes.
///
/// # Errors
/// It is too large, or does not load or run.
fn peak(
    ort: &dyn Backend,
    source: &Source,
    model: &Model,
    check: &runtime::Options,
) -> Result<u64, RuntimeError> {
    let not_measured = |reason: String| RuntimeError::Unsupported { runtime: ort.name(), reason };
    let proto = onnx::export(model, &onnx::ExportOptions::default())
        .map_err(|cause| not_measured(cause.to_string()))?;
    let parts: Vec<Bytes> = onnx::encode(&proto);
    if parts.iter().map(Bytes::len).sum::<usize>() > MAX_BYTES {
        return Err(not_measured("the model is too large".to_string()));
    }
    let file = ModelFile { bytes: parts.concat().into(), folder: Some(source.folder.clone()) };
    let interface = ort.load(&file)?.interface().clone();
    let sizes = runtime::inputs::assignments(&interface, &check.pins)?.into_iter().next().unwrap_or_default();
    let inputs: Vec<Named> = check.inputs(&interface, &sizes, check.seed)?;
    Ok(ort.memory(&file, &inputs)?.peak().bytes)
}
