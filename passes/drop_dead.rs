//! Erase what nothing reads: operators without readers, initializers without readers.
//!
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[3] unused> {
//!   t = Exp(x)
//!   y = Relu(x)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) {
//!   y = Relu(x)
//! }
//! ```

use dmopt_ir::{Def, Patch, Rewriter, Safety};

use crate::{Context, Pass};

/// See the header of this file.
pub struct DropDead;

impl Pass for DropDead {
    fn name(&self) -> &'static str {
        "drop-dead"
    }

    fn source(&self) -> &'static str {
        include_str!("drop_dead.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        // Last first: what only served an unread operator goes with it.
        for op in crate::order_of(rewriter.graph()).into_iter().rev() {
            let graph = rewriter.graph();
            if graph.is_live(op) && graph.op(op).results().all(|v| graph.readers(v) == 0) {
                let mut patch = Patch::new(Safety::Exact);
                patch.erase(op);
                context.apply(op, Ok(patch), rewriter);
            }
        }
        let graph = rewriter.graph();
        let unread = graph.values().filter(|&v| graph.readers(v) == 0);
        let unread =
            unread.filter(|&v| matches!(graph.value(v).def, Def::Initializer(_) | Def::SparseInitializer(_)));
        let mut patch = Patch::new(Safety::Exact);
        let count = unread.map(|v| patch.drop_initializer(v)).count();
        if count > 0 {
            // Unread initializers of one graph are one edit; nothing can refuse it.
            let _ = rewriter.apply(patch);
        }
    }
}
