//! Values inside two models that share names: how far apart they are, and where the models begin to differ.
//!
//! A runtime shows what is inside a model when the model says so: copies of both models get the values as further
//! outputs. That changes what a runtime may merge, so the values of one run need not be those of another, bit for bit.

use crate::compare::compare;
use crate::validate::Inside;
use crate::{Backend, ModelFile, Named, RuntimeError, Tolerance};

/// Makes the same model with these values as further graph outputs.
///
/// # Errors
/// Why it cannot: a sentence.
pub type Expose<'a> = dyn Fn(&[String]) -> Result<ModelFile, String> + 'a;

/// The first value that differs.
#[derive(Clone, PartialEq, Debug)]
pub struct Divergence {
    /// Name of the value, the same in both models.
    pub value: String,
    /// How it differs: a sentence.
    pub difference: String,
}

/// Compares values inside both models up to the first that differs: how far those before it are apart, and that one.
///
/// `shared` are values that both models have under the same name and type, in an order in which the reference can
/// compute them, in groups that are computed together. So the value that is found is the first; values that only one
/// of the models has lie between it and the one before.
///
/// # Errors
/// A model with more outputs cannot be made, loaded or run.
pub fn compare_inside(
    backend: &dyn Backend,
    shared: &[Vec<String>],
    reference: &Expose<'_>,
    candidate: &Expose<'_>,
    inputs: &[Named],
    tolerance: Tolerance,
) -> Result<(Inside, Option<Divergence>), RuntimeError> {
    let run = |expose: &Expose<'_>, values: &[String]| {
        let failed = |reason| RuntimeError::Failed { runtime: backend.name(), reason };
        let model = expose(values).map_err(failed)?;
        Ok::<_, RuntimeError>(backend.load_exact(&model)?.run(inputs)?.tensors)
    };
    let mut inside = Inside { values: 0, bit_identical: true, max_rel: 0.0 };
    for values in shared {
        let (a, b) = (run(reference, values)?, run(candidate, values)?);
        for value in values {
            let only = |tensors: &[Named]| -> Vec<Named> {
                tensors.iter().filter(|(name, _)| name == value).cloned().collect()
            };
            inside.values += 1;
            let difference = match compare(&only(&a), &only(&b), tolerance) {
                Ok(comparison) => {
                    inside.bit_identical &= comparison.bit_identical;
                    inside.max_rel = inside.max_rel.max(comparison.max_rel);
                    if comparison.passed() {
                        continue;
                    }
                    comparison.describe("elements")
                }
                Err(mismatch) => mismatch.to_string(),
            };
            inside.bit_identical = false;
            return Ok((inside, Some(Divergence { value: value.clone(), difference })));
        }
    }
    Ok((inside, None))
}
