//! Where two models begin to differ.

use crate::compare::compare;
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

/// Values in one run: as many as a few runs need for all of them, but not few.
fn at_a_time(values: usize) -> usize {
    values.div_ceil(16).max(64)
}

/// The first of `shared` that differs: values that both models have under the same name and type, in an order in
/// which the reference can compute them. They are computed some at a time, in this order, so the one that is found
/// is the first; values that only one of the models has lie between it and the one before.
///
/// # Errors
/// A model with more outputs cannot be made, loaded or run.
pub fn first_divergence(
    backend: &dyn Backend,
    shared: &[String],
    reference: &Expose<'_>,
    candidate: &Expose<'_>,
    inputs: &[Named],
    tolerance: Tolerance,
) -> Result<Option<Divergence>, RuntimeError> {
    let run = |expose: &Expose<'_>, values: &[String]| {
        let failed = |reason| RuntimeError::Failed { runtime: backend.name(), reason };
        let model = expose(values).map_err(failed)?;
        Ok::<_, RuntimeError>(backend.load(&model)?.run(inputs)?.tensors)
    };
    for values in shared.chunks(at_a_time(shared.len())) {
        let (a, b) = (run(reference, values)?, run(candidate, values)?);
        for value in values {
            let only = |tensors: &[Named]| -> Vec<Named> {
                tensors.iter().filter(|(name, _)| name == value).cloned().collect()
            };
            let difference = match compare(&only(&a), &only(&b), tolerance) {
                Ok(comparison) if comparison.passed() => continue,
                Ok(comparison) => comparison.describe("elements"),
                Err(mismatch) => mismatch.to_string(),
            };
            return Ok(Some(Divergence { value: value.clone(), difference }));
        }
    }
    Ok(None)
}
