//! dmopt with one pass more, which is wrong: what `dmopt bisect` is for. The pass takes every operator that stands twice
//! in a row for one that undoes itself. That is right for Neg and wrong for most others.
//!
//! ```text
//! cargo run --example planted -- optimize model.onnx     # outputs differ
//! cargo run --example planted -- bisect model.onnx       # application N of drop-twice
//! ```

use std::process::ExitCode;

use dmopt::ir::{Graph, OpId, Patch, Rewriter, Safety};
use dmopt::passes::{Context, Miss, Pass, Rule};

/// Takes two operators of one type in a row for nothing.
struct DropTwice;

impl Pass for DropTwice {
    fn name(&self) -> &'static str {
        "drop-twice"
    }

    fn source(&self) -> &'static str {
        include_str!("planted.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        context.apply_rule(self, rewriter);
    }
}

impl Rule for DropTwice {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        let second = graph.op(op);
        let between = second.input(0).filter(|_| second.inputs.len() == 1).ok_or(Miss::NoMatch)?;
        let first = graph.producer(between).map(|p| graph.op(p)).ok_or(Miss::NoMatch)?;
        let (Some(result), Some(operand)) = (second.output(0), first.input(0)) else {
            return Err(Miss::NoMatch);
        };
        if first.op_type != second.op_type || graph.is_output(result) {
            return Err(Miss::NoMatch);
        }
        let mut patch = Patch::new(Safety::Exact);
        patch.replace_uses(result, operand);
        Ok(patch)
    }
}

fn main() -> ExitCode {
    dmopt::cli::run(&[&DropTwice])
}
