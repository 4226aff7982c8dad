//! Evaluation of one operator on constants: a trait here, implemented over a runtime and handed to the passes.

use crate::{Op, Tensor};

/// Why an operator was not evaluated.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum EvalError {
    /// The evaluator does not know the operator, or not with these types.
    #[error("{0} cannot be evaluated here")]
    Unsupported(String),
    /// The evaluation failed.
    #[error("{0}")]
    Failed(String),
}

/// Computes the results of single operators.
pub trait Evaluator: Send + Sync {
    /// Results of `op` (a standard operator without bodies, `opset` its version) on `inputs`, one entry for each
    /// operand position; one tensor for each output position.
    ///
    /// # Errors
    /// See [`EvalError`]. An evaluator that is not certain of a value must return an error.
    fn evaluate(&self, op: &Op, opset: i64, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, EvalError>;
}
