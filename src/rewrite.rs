//! From a model as it came to one that the passes have been over.

use dmopt_ir::infer::{Note, infer_graph};
use dmopt_ir::{Model, Safety};
use dmopt_passes::{self as passes, Chosen, Outcome};

use crate::{Error, MIN_ONNXRUNTIME, Options, Source, Stage, onnx};

/// A model with inferred types, to make others from.
pub(crate) struct Inferred {
    pub model: Model,
    /// What inference had to say.
    notes: Vec<Note>,
}

impl Inferred {
    pub fn of(mut model: Model) -> Inferred {
        let notes = infer_graph(&mut model.graph);
        Inferred { model, notes }
    }

    /// What the passes that the options choose make of it, taking what a run before found to pay.
    ///
    /// # Errors
    /// [`Error::Passes`].
    pub fn rewritten(
        &self,
        source: &Source,
        options: &Options<'_>,
        offers: Option<&Chosen>,
    ) -> Result<(Model, Outcome), Error> {
        let mut model = self.model.clone();
        let outcome = run(&mut model, source, options, Some(&self.notes), offers)?;
        Ok((model, outcome))
    }
}

/// Runs the passes that the options choose. The model says then which version of ONNX Runtime it needs, if it does.
///
/// # Errors
/// [`Error::Passes`].
pub fn rewrite(model: &mut Model, source: &Source, options: &Options<'_>) -> Result<Outcome, Error> {
    run(model, source, options, None, None)
}

fn run(
    model: &mut Model,
    source: &Source,
    options: &Options<'_>,
    inferred: Option<&[Note]>,
    offers: Option<&Chosen>,
) -> Result<Outcome, Error> {
    let progress = |name: &str, round| {
        options.progress.iter().for_each(|tell| tell(Stage::Pass { name, round }));
    };
    let allow = if options.exact { Safety::Exact } else { Safety::Approximates };
    let options = passes::Options {
        only: options.passes.clone(),
        skip: options.skip.clone(),
        own: options.own.clone(),
        allow: Some(allow),
        stop_after: options.stop_after,
        inferred,
        offers,
        verify: options.verify,
        budget_bytes: options.budget_bytes,
        max_flops_ratio: options.max_flops_ratio,
        progress: Some(&progress),
        planning: passes::Planning {
            target: options.target,
            onnxruntime: options.onnxruntime,
            sizes: options.sizes.clone(),
            anchors: options.anchors,
            split_hidden: options.split_hidden,
            split_batch: options.split_batch,
        },
        ..passes::Options::default()
    };
    let outcome =
        passes::run(model, &options).map_err(|cause| Error::Passes { file: source.name.clone(), cause })?;
    if outcome.safety.is_some() {
        let oldest =
            passes::oldest_onnxruntime(&model.graph).map(|(major, minor)| format!("{major}.{minor}"));
        onnx::set_metadata(model, MIN_ONNXRUNTIME, oldest)
            .map_err(|cause| Error::Export { file: source.name.clone(), cause })?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::parse_model;

    use super::*;

    #[test]
    fn what_the_file_and_inference_disagree_on_is_told_and_follows_from_the_operators() {
        let model = parse_model(
            "<ir_version: 10, opset_import: [\"\": 21]>
            f (float[2,3] x) => (float[2,3] z) <float[2,5] y> { y = Relu(x) z = Neg(y) }",
        )
        .unwrap();
        let source =
            Source { name: String::new(), bytes: Default::default(), path: None, folder: Default::default() };
        let options = Options::default();
        let mut alone = model.clone();
        let mut outcomes = vec![rewrite(&mut alone, &source, &options).unwrap()];
        let (inferred, outcome) = Inferred::of(model).rewritten(&source, &options, None).unwrap();
        outcomes.push(outcome);
        for (model, outcome) in [alone, inferred].iter().zip(outcomes) {
            assert_eq!(outcome.notes, ["'y' is declared as float[2,5], but its operator gives float[2,3]"]);
            let types = model.graph.values().filter_map(|value| model.graph.value(value).ty.as_ref());
            assert!(types.into_iter().all(|ty| ty.to_string() == "float[2,3]"), "{model:?}");
        }
    }
}
