//! The peak of activation memory when operators run one after the other in file order.
//!
//! The rules:
//! - The result of an operator is in memory from that operator on, through its last reader. A result that nothing
//!   reads is there while its operator runs. Outputs of the graph stay to the end.
//! - Operands and results of an operator are in memory together: nothing is computed in place.
//! - `Identity`, `Reshape`, `Flatten`, `Squeeze` and `Unsqueeze` are views: their result is the buffer of their first
//!   operand, which then lives until the last reader of either.
//! - What exists before the run and stays after it is not counted: weights (initializers and `Constant` operators)
//!   and the inputs, which belong to the caller. A view of one of these is not counted either.
//! - A body (branch of `If`, body of `Loop` or `Scan`) runs while its operator does, and its own peak is added
//!   there; of several bodies the largest, since one runs at a time. Within a body its inputs are counted too, to the
//!   end: in a loop they are the results of the round before. Results of the body and of its operator are counted
//!   both, which is too much rather than too little.
//! - Scratch memory of kernels, alignment and reuse are a runtime's own and not part of this model. Neither is what
//!   a call of a model-local function needs inside.

use dmopt_ir::{Graph, OpId, ValueId};

use crate::kernels::is_view;

/// The moment of a run at which most bytes are in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peak {
    /// Bytes in memory then.
    pub bytes: u64,
    /// The operator that runs then, the first of several; `None` for a graph without operators.
    pub at: Option<OpId>,
    /// The buffers in memory then, each named by the value that created it, with its size in bytes, in file order.
    pub live: Vec<(ValueId, u64)>,
    /// Of `bytes`, what the bodies of the operator need.
    pub in_bodies: u64,
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
}

fn describe(values: &[String]) -> String {
    let first = values.first().map(String::as_str).unwrap_or_default();
    match values.len() {
        1 => format!("the size of '{first}' is not known"),
        n => format!("the sizes of {n} values are not known, the first is '{first}'"),
    }
}

/// The peak of a graph in file order, by the rules of this [module](self).
///
/// # Errors
/// A size is not known, in the graph or in a body.
pub fn file_order(graph: &Graph) -> Result<Peak, Unknown> {
    let order = graph.order().map_err(|_| Unknown::Cycle)?;
    peak(graph, &order, false)
}

/// A buffer: bytes and the steps (inclusive) between which it is in memory.
struct Buffer {
    value: ValueId,
    bytes: u64,
    first: usize,
    last: usize,
}

fn peak(graph: &Graph, order: &[OpId], is_body: bool) -> Result<Peak, Unknown> {
    let mut unknown = Vec::new();
    let buffers = buffers(graph, order, is_body, &mut unknown);
    let mut in_bodies = vec![0u64; order.len()];
    for (step, &id) in order.iter().enumerate() {
        for body in graph.op(id).bodies() {
            let order = body.order().map_err(|_| Unknown::Cycle)?;
            match peak(body, &order, true) {
                Ok(peak) => in_bodies[step] = in_bodies[step].max(peak.bytes),
                Err(Unknown::Sizes(names)) => unknown.extend(names),
                Err(cycle) => return Err(cycle),
            }
        }
    }
    if !unknown.is_empty() {
        return Err(Unknown::Sizes(unknown));
    }

    // Bytes that appear at a step, and bytes that are gone from a step on.
    let (mut appear, mut vanish) = (vec![0u128; order.len() + 2], vec![0u128; order.len() + 2]);
    for buffer in &buffers {
        appear[buffer.first] += u128::from(buffer.bytes);
        vanish[buffer.last + 1] += u128::from(buffer.bytes);
    }
    let (mut now, mut most, mut best_step) = (0, None, 0);
    for step in 0..order.len().max(1) {
        now = now + appear[step] - vanish[step];
        let total = now + u128::from(in_bodies.get(step).copied().unwrap_or(0));
        if most.is_none_or(|most| total > most) {
            (most, best_step) = (Some(total), step);
        }
    }
    let there = |b: &&Buffer| (b.first..=b.last).contains(&best_step);
    Ok(Peak {
        bytes: most.unwrap_or(0).try_into().unwrap_or(u64::MAX),
        at: order.get(best_step).copied(),
        live: buffers.iter().filter(there).map(|b| (b.value, b.bytes)).collect(),
        in_bodies: in_bodies.get(best_step).copied().unwrap_or(0),
    })
}

/// Every buffer that is counted, in the order of creation; values of unknown size go to `unknown`.
fn buffers(graph: &Graph, order: &[OpId], is_body: bool, unknown: &mut Vec<String>) -> Vec<Buffer> {
    let mut step_of = vec![0usize; graph.op_bound()];
    order.iter().enumerate().for_each(|(step, id)| step_of[id.index()] = step);
    let end = order.len().saturating_sub(1);
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut buffer_of: Vec<Option<usize>> = vec![None; graph.value_bound()];
    let mut create = |value: ValueId, first: usize, last: usize, buffer_of: &mut [Option<usize>]| match graph
        .tensor_type(value)
        .and_then(|ty| ty.bytes())
    {
        None => unknown.push(graph.value(value).name.clone()),
        Some(bytes) => {
            buffer_of[value.index()] = Some(buffers.len());
            buffers.push(Buffer { value, bytes, first, last });
        }
    };
    if is_body {
        graph.inputs().iter().for_each(|&input| create(input, 0, end, &mut buffer_of));
    }
    let mut last = vec![0usize; graph.value_bound()];
    for (step, &id) in order.iter().enumerate() {
        let op = graph.op(id);
        for value in op.results() {
            let read = graph.uses(value).map(|at| step_of[at.op.index()]).max();
            let until = if graph.is_output(value) { end } else { read.unwrap_or(step) };
            last[value.index()] = until;
            match op.input(0).filter(|_| is_view(op)) {
                Some(operand) => buffer_of[value.index()] = buffer_of[operand.index()],
                None if op.is("Constant") => {}
                None => create(value, step, until, &mut buffer_of),
            }
        }
    }
    for (value, buffer) in buffer_of.iter().enumerate() {
        if let Some(buffer) = buffer.and_then(|b| buffers.get_mut(b)) {
            buffer.last = buffer.last.max(last[value]);
        }
    }
    buffers
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
        assert_eq!(peak.bytes, peak.in_bodies + peak.live.iter().map(|(_, bytes)| bytes).sum::<u64>());
        (peak.bytes / 4, at, peak.live.iter().map(|(v, _)| graph.value(*v).name.clone()).collect())
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
    fn sizes_beyond_the_address_space_do_not_overflow() {
        let names: Vec<String> = (0..9).map(|i| format!("v{i}")).collect();
        let mut lines: Vec<String> = names.iter().map(|name| format!("{name} = Relu(x)")).collect();
        lines.push(format!("y = Sum({})", names.join(", ")));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let sizes: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), u64::MAX / 32)).collect();
        assert_eq!(file_order(&graph(&lines, &["y"], &sizes)).unwrap().bytes, u64::MAX);
    }
}
