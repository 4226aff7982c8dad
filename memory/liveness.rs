//! The peak of activation memory when operators run one after the other.
//!
//! The rules:
//! - The result of an operator is in memory from that operator on, through its last reader. A result that nothing
//!   reads is there while its operator runs. Outputs of the graph stay to the end.
//! - Operands and results of an operator are in memory together, save for results that are computed in place: in none
//!   of the steps for [`file_order`], where the kernels allow it for [`in_order`], with [`Kernels::Ideal`] in every
//!   elementwise operator.
//! - Views (`Identity`, `Reshape`, ...) are the buffer of their operand, which then lives until the last reader of
//!   either.
//! - Scratch memory of kernels counts for [`in_order`] alone, as far as it is known.
//! - Alignment, reuse and what a call of a model-local function needs inside are no part of this model. Weights, inputs
//!   and bodies: see [`Scheduling`].

mod timeline;

use dmopt_ir::{Graph, OpId, ValueId};

use crate::kernels::Kernels;
use crate::scheduling::Scheduling;
use crate::state::taken_over;

pub use timeline::timeline;

/// The moment of a run at which most bytes are in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peak {
    /// Bytes in memory then.
    pub bytes: u64,
    /// The operator that runs then, the first of several; `None` for a graph without operators.
    pub at: Option<OpId>,
    /// The buffers in memory then, each named by the value that created it, with its size in bytes, in file order. One
    /// that is just taken over stands under the name of the operand.
    pub live: Vec<(ValueId, u64)>,
    /// Of `bytes`, what the bodies of the operator need.
    pub in_bodies: u64,
    /// Of `bytes`, scratch memory of the operator's kernel.
    pub scratch: u64,
}

/// Why there is no prediction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unknown {
    /// Values whose size is not known, by name, in file order.
    #[error("{}", describe(.0))]
    Sizes(Vec<String>),
    /// Operators depend on each other in a circle.
    #[error("the graph has a cycle")]
    Cycle,
    /// The sizes add up to more than any machine has.
    #[error("the sizes of all values add up to more than 2^60 bytes")]
    TooLarge,
    /// The operators given are not those of the graph, or not in an order in which they could run.
    #[error("the operators are not in an order in which they could run")]
    Order,
}

fn describe(values: &[String]) -> String {
    let first = values.first().map(String::as_str).unwrap_or_default();
    match values.len() {
        1 => format!("the size of '{first}' is not known"),
        n => format!("the sizes of {n} values are not known, the first is '{first}'"),
    }
}

/// The peak of a graph in file order, nothing computed in place.
///
/// # Errors
/// A size is not known, in the graph or in a body.
pub fn file_order(graph: &Graph) -> Result<Peak, Unknown> {
    let scheduling = Scheduling::build(graph, None, false)?;
    let order: Vec<usize> = (0..scheduling.ops().len()).collect();
    Ok(peak(&scheduling, &order))
}

/// The peak of a graph in an order of its operators, by kernels that compute in place what they can.
///
/// # Errors
/// A size is not known, in the graph or in a body, or it is no order of the operators.
pub fn in_order(graph: &Graph, order: &[OpId], kernels: Kernels) -> Result<Peak, Unknown> {
    let scheduling = Scheduling::new(graph, kernels)?;
    let order = scheduling.numbers(order).filter(|order| scheduling.problem().is_order(order));
    Ok(peak(&scheduling, &order.ok_or(Unknown::Order)?))
}

/// The peak in an order of the operators, by number.
fn peak(scheduling: &Scheduling, order: &[usize]) -> Peak {
    let problem = scheduling.problem();
    let profile = problem.profile(order);
    let Some(bytes) = profile.iter().copied().max() else { return Peak::default() };
    let step = profile.iter().position(|&needs| needs == bytes).unwrap_or_default();
    let v = order[step];

    let mut step_of = vec![0; order.len()];
    order.iter().enumerate().for_each(|(step, &v)| step_of[v] = step);
    let left = |b: usize| {
        let buffer = &problem.buffers()[b];
        buffer.kept || buffer.readers().any(|reader| step_of[reader] > step)
    };
    let taken = taken_over(problem, v, |operand| !left(operand));
    let there = |b: usize| {
        let creator = problem.buffers()[b].creator();
        let reads = problem.ops()[v].reads.contains(&b);
        let fresh = creator == v && taken.iter().all(|&(result, _)| result != b);
        fresh || (step_of[creator] < step && (reads || left(b)))
    };
    let live = (0..problem.buffers().len()).filter(|&b| there(b));
    let in_bodies = scheduling.in_bodies(v);
    Peak {
        bytes,
        at: scheduling.ops().get(v).copied(),
        live: live.map(|b| (scheduling.values()[b], problem.buffers()[b].bytes)).collect(),
        in_bodies,
        scratch: problem.ops()[v].scratch - in_bodies,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use dmopt_ir::{Attribute, AttributeValue, Builder, DType, Op, Opsets, Tensor, TensorType};

    /// A graph from `result = Op(operands)` lines; `x` is the input, `w` a weight. Every value has one float per
    /// element of the size given for it, 1 if none is.
    fn graph(lines: &[&str], outputs: &[&str], sizes: &[(&str, u64)]) -> Graph {
        let mut b = Builder::new("g", Arc::new(Opsets::from([(String::new(), 21)])));
        let x = b.value("x");
        b.input(x, None).unwrap();
        let w = b.value("w");
        b.initializer(w, Tensor::raw(DType::F32, vec![1000], vec![0; 4000])).unwrap();
        for line in lines {
            let (result, call) = line.split_once(" = ").unwrap();
            let (op_type, operands) = call.trim_end_matches(')').split_once('(').unwrap();
            let names = operands.split(", ").filter(|n| !n.is_empty());
            let operands = names.map(|n| Some(b.value(n))).collect();
            let result = b.value(result);
            b.op(Op::new(op_type, operands, vec![Some(result)])).unwrap();
        }
        outputs.iter().for_each(|name| {
            let id = b.value(name);
            b.output(id);
        });
        let all: Vec<ValueId> = b.graph().values().collect();
        for id in all {
            let name = b.graph().value(id).name.clone();
            let size = sizes.iter().find(|(n, _)| *n == name).map_or(1, |(_, size)| *size);
            if name != "w" {
                b.set_type(id, Some(TensorType::known(DType::F32, &[size]).into()));
            }
        }
        b.finish().unwrap()
    }

    /// Peak in floats, type of the operator there, names of what lives.
    fn summary(graph: &Graph) -> (u64, String, Vec<String>) {
        let peak = file_order(graph).unwrap();
        let at = peak.at.map(|id| graph.op(id).op_type.clone()).unwrap_or_default();
        assert_eq!(peak.bytes, counted(&peak));
        (peak.bytes / 4, at, peak.live.iter().map(|(v, _)| graph.value(*v).name.clone()).collect())
    }

    fn counted(peak: &Peak) -> u64 {
        peak.in_bodies + peak.scratch + peak.live.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    #[test]
    fn a_chain_holds_two_values_at_a_time() {
        let g = graph(&["a = Relu(x)", "b = Exp(a)", "y = Tanh(b)"], &["y"], &[("a", 3), ("b", 5), ("y", 2)]);
        assert_eq!(summary(&g), (8, "Exp".into(), vec!["a".into(), "b".into()]));
    }

    #[test]
    fn a_diamond_holds_the_shared_operand_until_its_last_reader() {
        let lines = ["a = Relu(x)", "b = Exp(a)", "c = Tanh(a)", "y = Add(b, c)"];
        let (floats, at, live) = summary(&graph(&lines, &["y"], &[("a", 10)]));
        assert_eq!((floats, at.as_str()), (12, "Tanh"));
        assert_eq!(live, ["a", "b", "c"]);
    }

    #[test]
    fn products_of_a_list_live_together_and_those_of_a_chain_do_not() {
        let list = ["a = Mul(x, w)", "b = Mul(x, w)", "c = Mul(x, w)", "d = Add(a, b)", "y = Add(d, c)"];
        let chain = ["a = Mul(x, w)", "b = Mul(x, w)", "d = Add(a, b)", "c = Mul(x, w)", "y = Add(d, c)"];
        assert_eq!(summary(&graph(&list, &["y"], &[])).0, 4);
        assert_eq!(summary(&graph(&chain, &["y"], &[])).0, 3);
    }

    #[test]
    fn inputs_weights_and_constants_are_not_counted() {
        let g = graph(&["c = Constant()", "y = Sum(x, w, c)"], &["y"], &[("x", 100), ("c", 100)]);
        assert_eq!(summary(&g), (1, "Sum".into(), vec!["y".into()]));
    }

    #[test]
    fn outputs_stay_to_the_end() {
        let lines = ["y = Relu(x)", "a = Exp(x)", "b = Tanh(a)", "z = Abs(b)"];
        let (floats, at, live) = summary(&graph(&lines, &["y", "z"], &[("y", 4)]));
        assert_eq!((floats, at.as_str()), (6, "Tanh"));
        assert_eq!(live, ["y", "a", "b"]);
    }

    #[test]
    fn a_view_shares_the_buffer_of_its_operand_and_keeps_it() {
        let lines = ["a = Relu(x)", "v = Reshape(a, w)", "b = Exp(x)", "c = Tanh(b)", "y = Add(v, c)"];
        let (floats, at, live) = summary(&graph(&lines, &["y"], &[("a", 5), ("v", 5)]));
        assert_eq!((floats, at.as_str()), (7, "Tanh"));
        assert_eq!(live, ["a", "b", "c"]);
    }

    #[test]
    fn a_view_of_an_input_is_not_counted() {
        let g = graph(&["v = Flatten(x)", "y = Relu(v)"], &["y"], &[("x", 9), ("v", 9)]);
        assert_eq!(summary(&g).0, 1);
    }

    #[test]
    fn a_result_that_nothing_reads_is_there_while_its_operator_runs() {
        let g = graph(&["a = Relu(x)", "dead = Exp(a)", "y = Tanh(a)"], &["y"], &[("dead", 7)]);
        assert_eq!(summary(&g), (8, "Exp".into(), vec!["a".into(), "dead".into()]));
    }

    #[test]
    fn a_body_adds_its_own_peak_and_keeps_what_it_captures() {
        let body = graph(&["p = Exp(x)", "q = Tanh(p)"], &["q"], &[("x", 2), ("p", 3), ("q", 4)]);
        let mut b = Builder::new("g", Arc::new(Opsets::from([(String::new(), 21)])));
        let float = |size| Some(TensorType::known(DType::F32, &[size]).into());
        let (x, a, y) = (b.value("x"), b.value("a"), b.value("y"));
        b.input(x, None).unwrap();
        b.op(Op::new("Relu", vec![Some(x)], vec![Some(a)])).unwrap();
        let mut op = Op::new("Loop", vec![None, None, Some(a)], vec![Some(y)]);
        op.attributes.push(Attribute::new("body", AttributeValue::Graph(Box::new(body))));
        b.op(op).unwrap();
        b.output(y);
        [(x, 1), (a, 10), (y, 4)].into_iter().for_each(|(v, size)| b.set_type(v, float(size)));
        let peak = file_order(&b.finish().unwrap()).unwrap();
        assert_eq!((peak.bytes / 4, peak.in_bodies / 4), (10 + 4 + 9, 2 + 3 + 4));
    }

    #[test]
    fn unknown_sizes_are_named() {
        let mut b = Builder::new("g", Arc::new(Opsets::new()));
        let (x, y) = (b.value("x"), b.value("y"));
        b.input(x, None).unwrap();
        b.op(Op::new("Relu", vec![Some(x)], vec![Some(y)])).unwrap();
        b.output(y);
        let unknown = file_order(&b.finish().unwrap()).unwrap_err();
        assert_eq!(unknown, Unknown::Sizes(vec!["y".into()]));
        assert_eq!(unknown.to_string(), "the size of 'y' is not known");
    }

    #[test]
    fn a_graph_without_operators_needs_nothing() {
        assert_eq!(file_order(&graph(&[], &["x"], &[("x", 9)])).unwrap(), Peak::default());
    }

    #[test]
    fn sizes_beyond_any_machine_are_refused() {
        let names: Vec<String> = (0..9).map(|i| format!("v{i}")).collect();
        let mut lines: Vec<String> = names.iter().map(|name| format!("{name} = Relu(x)")).collect();
        lines.push(format!("y = Sum({})", names.join(", ")));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let sizes: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), u64::MAX / 32)).collect();
        assert_eq!(file_order(&graph(&lines, &["y"], &sizes)).unwrap_err(), Unknown::TooLarge);
    }

    #[test]
    fn ideal_kernels_compute_in_place_what_is_elementwise() {
        let lines = ["a = Relu(x)", "b = Exp(a)", "c = Conv(b, w)", "d = Add(c, b)", "y = Tanh(d)"];
        let g = graph(&lines, &["y"], &[("a", 8), ("b", 8), ("c", 8), ("d", 8), ("y", 8)]);
        let peak = in_order(&g, &g.order().unwrap(), Kernels::Ideal).unwrap();
        let names: Vec<&str> = peak.live.iter().map(|(v, _)| g.value(*v).name.as_str()).collect();
        assert_eq!((peak.bytes / 4, names), (16, vec!["b", "c"]));
        assert_eq!(peak.bytes, counted(&peak));
        assert_eq!(summary(&g).0, 24);
    }

    #[test]
    fn the_order_decides() {
        let lines = ["a = Mul(x, w)", "b = Mul(x, w)", "c = Mul(x, w)", "d = Sub(a, b)", "y = Sub(d, c)"];
        let g = graph(&lines, &["y"], &[]);
        let ops = g.order().unwrap();
        let late = [0, 1, 3, 2, 4].map(|v| ops[v]);
        let floats = |order: &[OpId]| in_order(&g, order, Kernels::Ideal).map(|peak| peak.bytes / 4);
        assert_eq!(floats(&ops), Ok(3));
        assert_eq!(floats(&late), Ok(2));
        assert_eq!(floats(&ops[1..]), Err(Unknown::Order));
        let reverse: Vec<OpId> = ops.iter().rev().copied().collect();
        assert_eq!(floats(&reverse), Err(Unknown::Order));
    }
}
