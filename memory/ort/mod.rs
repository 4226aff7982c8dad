//! ONNX Runtime's memory plan, reproduced: the bytes that a session takes for activations, step by step, without
//! running it.
//!
//! It holds for a session whose optimizations are off (or find nothing to do), on one thread. The parts, a file each:
//! the [execution order](Order), which values share a buffer (`reuse`), what kernels offer (`table`, behind
//! [`Kernels`]) and need (`scratch`), bodies (`control`), and the block that later runs allocate where memory
//! patterns are on (`pattern`). That the prediction is right to the byte is a law that tests check on random graphs in
//! ONNX Runtime itself.
//!
//! What is not counted, as in the [ideal model](crate::liveness): weights, and inputs, which belong to the caller.

mod captures;
mod control;
mod frame;
mod known;
mod order;
mod pattern;
mod reuse;
pub(crate) mod scratch;
pub(crate) mod table;
mod timeline;

use std::collections::BTreeMap;
use std::sync::Arc;

use dmopt_ir::{Graph, OpId, Sizes, ValueId};

use crate::{Kernels, Unknown};
use frame::{Basis, Frame, Run};

pub(crate) use order::reverse_depth_first;
pub use order::{Order, execution_order};
pub use timeline::{Buffer, Reason, Step, Tenant, Timeline};

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
    /// Every run without memory patterns.
    pub first_run: Timeline,
    /// Runs with memory patterns.
    pub patterned: Patterned,
    /// Operators that are in no table, in the graph and in bodies, by type; they are taken to compute into memory of
    /// their own without scratch memory.
    pub unknown: BTreeMap<String, usize>,
}

/// The memory of a session with memory patterns, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Patterned {
    /// Peak of the first run: as without patterns, but for bodies that run again in the same run.
    pub first_peak_bytes: u64,
    /// The block that later runs allocate for all values but graph outputs.
    pub block_bytes: u64,
    /// Peak of the later runs.
    pub peak_bytes: u64,
    /// The step of that peak, the first of several.
    pub peak_step: usize,
}

/// Predicts the memory of a session. Types must have been inferred.
///
/// # Errors
/// A size is not known, or the graph has a cycle.
pub fn plan(graph: &Graph, settings: &Settings) -> Result<Plan, Unknown> {
    let sized = graph.sized(&settings.sizes);
    let frame = Planner::new(graph, &sized, settings)?.frame(execution_order(graph, settings.order)?)?;
    let all = |_: ValueId| true;
    let later = frame.run(Run::Later, &all);
    let (peak_step, peak_bytes) =
        timeline::peak(later.iter().map(|at| at.live_bytes.saturating_add(at.scratch_bytes)));
    let patterned = Patterned {
        first_peak_bytes: frame.peak(Run::First, &all),
        block_bytes: frame.block_bytes(),
        peak_bytes,
        peak_step,
    };
    let mut unknown = BTreeMap::new();
    note_unknown(graph, settings.kernels, &mut unknown);
    Ok(Plan { order: frame.order.clone(), first_run: Timeline::new(frame), patterned, unknown })
}

/// Plans one graph in many orders.
#[derive(Debug)]
pub struct Planner<'g>(Arc<Basis<'g>>);

impl<'g> Planner<'g> {
    /// Sees to what does not depend on the order. `sized` is the graph with a size for everything, so the sizes in the
    /// settings do not count; the order in them is that of bodies.
    ///
    /// # Errors
    /// A body has a cycle.
    pub fn new(graph: &'g Graph, sized: &'g Graph, settings: &Settings) -> Result<Planner<'g>, Unknown> {
        Ok(Planner(Arc::new(Basis::new(graph, sized, settings, None)?)))
    }

    /// The first run of a session that executes the operators in this order, `Constant` operators left out.
    ///
    /// # Errors
    /// A size is not known.
    pub fn first_run(&self, order: Vec<OpId>) -> Result<Timeline, Unknown> {
        Ok(Timeline::new(self.frame(order)?))
    }

    fn frame(&self, order: Vec<OpId>) -> Result<Frame<'g>, Unknown> {
        Frame::new(Arc::clone(&self.0), order)
    }
}

fn note_unknown(graph: &Graph, kernels: Kernels, unknown: &mut BTreeMap<String, usize>) {
    for id in graph.ops() {
        let op = graph.op(id);
        if !kernels.knows(graph, id) {
            let domain = if op.is_standard() { String::new() } else { format!("{}.", op.domain) };
            *unknown.entry(format!("{domain}{}", op.op_type)).or_default() += 1;
        }
        op.bodies().for_each(|body| note_unknown(body, kernels, unknown));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::infer;
    use dmopt_ir::text::{default_opsets, parse_graph};

    /// One value of the graphs here.
    const T: u64 = 1024;

    fn graph(body: &str) -> Graph {
        let text = format!("g (float[256] x) => (float[256] y) {{ {body} }}");
        let mut graph = parse_graph(&text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        graph
    }

    fn planned(graph: &Graph) -> Plan {
        plan(graph, &Settings::default()).unwrap()
    }

    /// Why the buffer of each value is there at a step.
    fn reasons(graph: &Graph, plan: &Plan, step: usize) -> Vec<String> {
        let name = |v: ValueId| graph.value(v).name.clone();
        let live = plan.first_run.live(step).map(|(buffer, reason)| {
            let why = match reason {
                Reason::Computed(v) => format!("computed {}", name(v)),
                Reason::Read { value, at } => format!("{} read at {at}", name(value)),
                Reason::Held { value, at } => format!("held for {} at {at}", name(value)),
                Reason::Output(v) => format!("output {}", name(v)),
                Reason::NeverRead(v) => format!("never read {}", name(v)),
            };
            format!("{}: {why}", name(buffer.value))
        });
        live.collect()
    }

    #[test]
    fn a_step_in_place_takes_no_memory_and_a_sum_does() {
        let plan = planned(&graph("a = Abs(x) b = Relu(a) y = Add(b, b)"));
        assert_eq!(plan.first_run.peak_bytes, 2 * T);
        assert_eq!(plan.first_run.buffers.len(), 2);
        let plan = planned(&graph("a = Abs(x) b = Exp(a) c = Add(b, a) y = Relu(c)"));
        assert_eq!(plan.first_run.peak_bytes, 3 * T);
    }

    #[test]
    fn a_graph_of_constants_takes_nothing() {
        let text = "g (float[2] x) => (float[2] y) { y = Constant<value = float[2] {1.0, 2.0}>() }";
        let plan = planned(&parse_graph(text, default_opsets()).unwrap());
        assert_eq!((plan.first_run.peak_bytes, plan.first_run.arena_peak_bytes()), (0, 0));
    }

    #[test]
    fn an_arena_rounds_every_block_up() {
        let plan = planned(&graph("a = Abs(x) b = ReduceSum<keepdims = 1>(a) c = Exp(b) y = Mul(a, c)"));
        assert_eq!(plan.first_run.peak_bytes, 2 * T + 4);
        assert_eq!(plan.first_run.arena_peak_bytes(), 2 * T + 256);
    }

    #[test]
    fn a_planner_says_of_every_order_what_a_new_one_says() {
        let text = "g (bool p, float[256] x) => (float[256] y) {
            a = Abs(x)  b = Exp(a)  c = Neg(x)
            d = If (p) <
                then_branch = t () => (float[256] r) { e = Exp(c)  r = Add(e, b) },
                else_branch = f () => (float[256] s) { s = Neg(c) }>
            y = Add(d, a)
        }";
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        let file = graph.order().unwrap();
        let [a, b, c, d, y] = file[..] else { panic!() };
        let planner = || Planner::new(&graph, &graph, &Settings::default()).unwrap();
        let shared = planner();
        let plans: Vec<Timeline> = [[c, a, b, d, y], [a, b, c, d, y], [a, c, b, d, y]]
            .map(|order| {
                let timeline = shared.first_run(order.to_vec()).unwrap();
                assert_eq!(timeline, planner().first_run(order.to_vec()).unwrap());
                timeline
            })
            .into();
        assert_eq!(
            plans[1],
            plan(&graph, &Settings { order: Order::Priority, ..Settings::default() }).unwrap().first_run
        );
        assert_ne!(plans[0], plans[1]);
    }

    #[test]
    fn a_size_that_is_not_known_in_a_body_is_named_in_every_order() {
        let text = "g (bool p, float[256] x) => (float[256] y) {
            a = Abs(x)
            d = If (p) <
                then_branch = t () => (float[256] r) { u = odd.Thing(x)  r = Add(x, x) },
                else_branch = f () => (float[256] s) { s = Neg(x) }>
            y = Add(d, a)
        }";
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        let [a, d, y] = graph.order().unwrap()[..] else { panic!() };
        let planner = Planner::new(&graph, &graph, &Settings::default()).unwrap();
        for order in [[a, d, y], [d, a, y]] {
            assert_eq!(planner.first_run(order.into()).unwrap_err(), Unknown::Sizes(vec!["u".to_string()]));
        }
    }

    #[test]
    fn a_buffer_that_is_taken_again_is_held_meanwhile() {
        let g = graph("a = Abs(x) b = ReduceSum<keepdims = 1>(a) c = Exp(b) d = Add(c, x) y = Mul(d, c)");
        let plan = planned(&g);
        assert_eq!(reasons(&g, &plan, 2), ["a: held for d at 3", "b: b read at 2", "c: computed c"]);
        assert_eq!(plan.first_run.peak_bytes, 2 * T + 4);
    }

    #[test]
    fn what_nothing_reads_stays_to_the_end() {
        let g = graph("a = Abs(x) y = Exp(a) dead = Neg(a)");
        let plan = planned(&g);
        assert_eq!(reasons(&g, &plan, 2), ["a: a read at 2", "dead: never read dead", "y: computed y"]);
    }

    #[test]
    fn later_runs_keep_outputs_beside_the_block() {
        let plan = planned(&graph("a = Abs(x) b = Exp(a) y = Neg(b)"));
        let expected =
            Patterned { first_peak_bytes: 2 * T, block_bytes: 2 * T, peak_bytes: 3 * T, peak_step: 2 };
        assert_eq!(plan.patterned, expected);
    }

    #[test]
    fn sizes_stand_in_for_symbols_but_are_not_planned_with() {
        let text = "g (float[N] x, float[256] z) => (float[256] y) { a = Abs(z) b = Exp(x) c = Add(b, z) y = Neg(a) }";
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        assert!(matches!(plan(&graph, &Settings::default()), Err(Unknown::Sizes(_))));
        let sizes = Sizes { dims: [("N".to_string(), 256)].into(), ..Sizes::default() };
        let bound = plan(&graph, &Settings { sizes, ..Settings::default() }).unwrap();
        assert_eq!(bound.first_run.buffers.len(), 4, "256 and N are not the same size");
    }

    #[test]
    fn sizes_beyond_the_address_space_do_not_overflow() {
        let huge = "float[9,9000000000000000]";
        let ops: String = (0..99).map(|i| format!("a{i} = Abs(x) b{i} = Exp(a{i}) ")).collect();
        let sum = (0..99).map(|i| format!("b{i}")).collect::<Vec<_>>().join(", ");
        let text = format!("g ({huge} x) => ({huge} y) {{ {ops} y = Sum({sum}) }}");
        let mut graph = parse_graph(&text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        let plan = planned(&graph);
        assert_eq!((plan.first_run.peak_bytes, plan.patterned.peak_bytes), (u64::MAX, u64::MAX));
    }

    #[test]
    fn operators_that_are_in_no_table_are_named() {
        let g = graph("a = odd.Thing(x) y = Relu(x)");
        let error = plan(&g, &Settings::default()).unwrap_err();
        assert_eq!(error, Unknown::Sizes(vec!["a".to_string()]));
        let text = "g (float[256] x) => (float[256] y) <float[256] a> { a = odd.Thing(x) y = Relu(a) }";
        let graph = parse_graph(text, default_opsets()).unwrap();
        assert_eq!(planned(&graph).unknown, [("odd.Thing".to_string(), 1)].into());
    }
}
