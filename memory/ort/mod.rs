//! ONNX Runtime's memory plan, reproduced: the bytes that a session takes for activations, step by step, without
//! running it.
//!
//! It holds for a session whose optimizations are off (or find nothing to do), on one thread. The parts:
//! [`execution order`](Order), [which values share a buffer](self::reuse), what kernels need
//! ([views and steps in place](crate::Kernels), scratch memory), and the [block](self::pattern) that later
//! runs allocate where memory patterns are on. That the prediction is right to the byte is a law that tests check on
//! random graphs in ONNX Runtime itself.
//!
//! What is not counted, as in the [ideal model](crate::liveness): weights, and inputs, which belong to the caller.

mod order;
mod pattern;
mod reuse;
pub(crate) mod scratch;
pub(crate) mod table;
mod timeline;

use std::borrow::Cow;

use dmopt_ir::{Graph, OpId, Sizes};

use crate::{Kernels, Unknown};
use pattern::Block;
use reuse::{Buffers, Origin};

pub use order::{Order, execution_order};
pub use timeline::{Buffer, Reason, Step, Timeline};

/// What the plan depends on beside the graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Whose kernels, and of which version.
    pub kernels: Kernels,
    /// Order of execution.
    pub order: Order,
    /// Sizes of open dimensions. ONNX Runtime plans without them: two values are of the same size if their symbols
    /// are the same.
    pub sizes: Sizes,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            kernels: Kernels::OrtCpu { version: (1, 32) },
            order: Order::default(),
            sizes: Sizes::default(),
        }
    }
}

/// The memory of a session.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Operators in the order of execution; `Constant` operators, which do not run, are not among them.
    pub order: Vec<OpId>,
    /// The first run, and every run without memory patterns.
    pub first_run: Timeline,
    /// Every run after the first where memory patterns are on.
    pub steady: Steady,
    /// Operators that are in no table, and are taken to compute into memory of their own without scratch memory.
    pub unknown: Vec<OpId>,
}

/// A run for which a memory pattern is there: one block for all values, graph outputs and scratch memory beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Steady {
    /// The block in bytes.
    pub block_bytes: u64,
    /// Peak in bytes.
    pub peak_bytes: u64,
    /// The step of the peak, the first of several.
    pub peak_step: usize,
}

/// Predicts the memory of a session. Types must have been inferred.
///
/// # Errors
/// A size is not known, or the graph has a cycle.
pub fn plan(graph: &Graph, settings: &Settings) -> Result<Plan, Unknown> {
    let sized = match settings.sizes == Sizes::default() {
        true => Cow::Borrowed(graph),
        false => Cow::Owned(graph.with_sizes(&settings.sizes)),
    };
    let order = execution_order(graph, settings.order)?;
    let buffers = Buffers::assign(graph, &order, settings.kernels);
    let first_run = Timeline::new(&sized, &order, &buffers, settings.kernels)?;
    let steady = steady(&first_run);
    let unknown = order.iter().copied().filter(|&id| !settings.kernels.knows(graph, id)).collect();
    Ok(Plan { order, first_run, steady, unknown })
}

fn steady(run: &Timeline) -> Steady {
    let count = run.steps.len();
    let (mut born, mut freed) = (vec![Vec::new(); count], vec![Vec::new(); count]);
    let mut outputs = vec![0u64; count + 1];
    for (i, buffer) in run.buffers.iter().enumerate() {
        match buffer.is_output {
            true => outputs[buffer.first] = outputs[buffer.first].saturating_add(buffer.bytes),
            false => {
                born[buffer.first].push(i);
                freed[buffer.last].push(i);
            }
        }
    }
    let mut block = Block::default();
    let mut places = vec![None; run.buffers.len()];
    for (born, freed) in born.iter().zip(&freed) {
        born.iter().for_each(|&i| places[i] = Some(block.place(run.buffers[i].bytes)));
        freed.iter().filter_map(|&i| places[i]).for_each(|place| block.free(place));
    }
    let mut steady = Steady { block_bytes: block.bytes(), peak_bytes: block.bytes(), peak_step: 0 };
    let mut kept = block.bytes();
    for (i, step) in run.steps.iter().enumerate() {
        kept = kept.saturating_add(outputs[i]);
        let bytes = kept.saturating_add(step.scratch_bytes);
        if bytes > steady.peak_bytes {
            (steady.peak_bytes, steady.peak_step) = (bytes, i);
        }
    }
    steady
}
