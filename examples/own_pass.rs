//! Erase two negations in a row.
//!
//! ```text
//! Neg(Neg(x)) = x
//! ```
//!
//! ```onnx
//! f (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) c = Neg(b) y = Relu(c) }
//! ```
//! ->
//! ```onnx
//! f (float[2] x) => (float[2] y) { a = Exp(x) y = Relu(a) }
//! ```
//!
//! refused: the result is an output, which keeps its name
//! ```onnx
//! f (float[2] x) => (float[2] y) { a = Exp(x) b = Neg(a) y = Neg(b) }
//! ```

use std::process::ExitCode;

use dmopt::ir::{Graph, OpId, Patch, Rewriter, Safety};
use dmopt::passes::{Context, Miss, Pass, Rule};

/// See the header of this file.
struct DropDoubleNegation;

impl Pass for DropDoubleNegation {
    fn name(&self) -> &'static str {
        "drop-double-negation"
    }

    fn source(&self) -> &'static str {
        include_str!("own_pass.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        context.apply_rule(self, rewriter);
    }
}

impl Rule for DropDoubleNegation {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        let second = graph.op(op);
        let between = second.input(0).filter(|_| second.is("Neg")).ok_or(Miss::NoMatch)?;
        let first = graph.producer(between).map(|p| graph.op(p)).ok_or(Miss::NoMatch)?;
        let operand = first.input(0).filter(|_| first.is("Neg")).ok_or(Miss::NoMatch)?;
        let result = second.output(0).ok_or(Miss::NoMatch)?;
        if graph.is_output(result) {
            return Err(Miss::refused("the result is an output, which keeps its name"));
        }
        let mut patch = Patch::new(Safety::Exact);
        patch.replace_uses(result, operand);
        Ok(patch)
    }
}

fn main() -> ExitCode {
    dmopt::cli::run(&[&DropDoubleNegation])
}
