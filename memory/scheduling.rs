//! A graph as a scheduling [`Problem`].
//!
//! - Operators keep their order in the file; what each waits for are its data.
//! - Values that are in memory before the run and after it are no buffers: weights (initializers and `Constant`
//!   operators), captured values, and inputs, which belong to the caller. Views of them are none either.
//! - A view and its operand are one buffer, read by the readers of both and by the view itself.
//! - A result may take over an operand where the kernels allow it, the two have the [same size](crate::same_size) and
//!   the operator reads the operand's buffer only once (ONNX Runtime: `FindReusableInput` in `allocation_planner.cc`).
//! - Outputs of the graph stay to the end. ONNX Runtime gives each a buffer of its own (`kAllocateOutput`), so none is
//!   a view or is computed in place; with ideal kernels it may be both.
//! - A body runs while its operator does, and its peak in file order counts as scratch memory of it; of several bodies
//!   the largest, since one runs at a time. Within a body its inputs are there to the end: in a loop they are results
//!   of the round before. Results of the body and of its operator are counted both, which is too much rather than too
//!   little.

use dmopt_ir::{Graph, OpId, ValueId};

use crate::kernels::{Kernels, is_view, same_size};
use crate::liveness::Unknown;
use crate::problem::{Buffer, InPlace, Malformed, Operator, Problem};

/// A problem, and what its numbers stand for.
#[derive(Clone, Debug)]
pub struct Scheduling {
    problem: Problem,
    ops: Vec<OpId>,
    values: Vec<ValueId>,
    /// Of the scratch memory of each operator, what its bodies need.
    in_bodies: Vec<u64>,
    /// Bytes of a body's inputs.
    inputs: u64,
}

impl Scheduling {
    /// The problem of ordering this graph's operators for a runtime with these kernels.
    ///
    /// # Errors
    /// A size is not known, in the graph or in a body.
    pub fn new(graph: &Graph, kernels: Kernels) -> Result<Scheduling, Unknown> {
        Scheduling::build(graph, Some(kernels), false)
    }

    /// As [`new`](Scheduling::new); without kernels there are views, but nothing is computed in place.
    pub(crate) fn build(
        graph: &Graph,
        kernels: Option<Kernels>,
        is_body: bool,
    ) -> Result<Scheduling, Unknown> {
        let order = graph.order().map_err(|_| Unknown::Cycle)?;
        let mut builder = Builder {
            graph,
            kernels,
            number: vec![usize::MAX; graph.op_bound()],
            buffer_of: vec![None; graph.value_bound()],
            values: Vec::new(),
            buffers: Vec::new(),
            unknown: Vec::new(),
        };
        let mut inputs = 0u64;
        if is_body {
            for &input in graph.inputs() {
                inputs = inputs.saturating_add(builder.bytes(input));
            }
        }
        let (mut ops, mut in_bodies) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
        for (v, &id) in order.iter().enumerate() {
            builder.number[id.index()] = v;
            let mut op = builder.operator(id);
            let in_body = builder.in_bodies(id)?;
            op.scratch = op.scratch.saturating_add(in_body);
            ops.push(op);
            in_bodies.push(in_body);
        }
        let Builder { values, buffers, unknown, .. } = builder;
        if !unknown.is_empty() {
            return Err(Unknown::Sizes(unknown));
        }
        let problem = Problem::new(ops, buffers).map_err(|cause| match cause {
            Malformed::TooLarge => Unknown::TooLarge,
            // Operators come in a topological order, and every buffer has the creator that it was made for.
            Malformed::Order(_) | Malformed::Creator(_) | Malformed::Buffer(_) => Unknown::Cycle,
        })?;
        Ok(Scheduling { problem, ops: order, values, in_bodies, inputs })
    }

    /// The problem. Its operators are numbered in file order.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// The operators, in file order.
    pub fn ops(&self) -> &[OpId] {
        &self.ops
    }

    /// For each buffer the value that created it, in file order.
    pub fn values(&self) -> &[ValueId] {
        &self.values
    }

    /// Bytes that the bodies of an operator need, by its number.
    pub fn in_bodies(&self, op: usize) -> u64 {
        self.in_bodies[op]
    }

    /// The operators that an order of the problem stands for.
    pub fn order(&self, numbers: &[usize]) -> Vec<OpId> {
        numbers.iter().map(|&v| self.ops[v]).collect()
    }

    /// The numbers of operators; `None` if one is not in the graph.
    pub fn numbers(&self, order: &[OpId]) -> Option<Vec<usize>> {
        let bound = self.ops.iter().map(|id| id.index() + 1).max().unwrap_or(0);
        let mut number = vec![None; bound];
        self.ops.iter().enumerate().for_each(|(v, id)| number[id.index()] = Some(v));
        order.iter().map(|id| number.get(id.index()).copied().flatten()).collect()
    }

    /// The peak in file order, the inputs of a body included.
    fn file_peak(&self) -> u64 {
        let order: Vec<usize> = (0..self.problem.len()).collect();
        self.problem.peak(&order).saturating_add(self.inputs)
    }
}

/// Goes through a graph in file order.
struct Builder<'g> {
    graph: &'g Graph,
    kernels: Option<Kernels>,
    number: Vec<usize>,
    buffer_of: Vec<Option<usize>>,
    values: Vec<ValueId>,
    buffers: Vec<Buffer>,
    /// Names of values of unknown size.
    unknown: Vec<String>,
}

impl Builder<'_> {
    /// The size of a value; one that is not known is noted and counts 0.
    fn bytes(&mut self, value: ValueId) -> u64 {
        let bytes = self.graph.tensor_type(value).and_then(|ty| ty.bytes());
        bytes.unwrap_or_else(|| {
            self.unknown.push(self.graph.value(value).name.clone());
            0
        })
    }

    fn operator(&mut self, id: OpId) -> Operator {
        let op = self.graph.op(id);
        let read = op.operands().chain(op.captures.iter().copied());
        let reads: Vec<usize> = read.filter_map(|value| self.buffer_of[value.index()]).collect();
        let after = self.graph.predecessors(id).map(|before| self.number[before.index()]).collect();
        let (mut creates, mut in_place) = (Vec::new(), Vec::new());
        if !op.is("Constant") {
            for (slot, value) in
                op.outputs.iter().enumerate().filter_map(|(slot, value)| Some((slot, (*value)?)))
            {
                let kept = self.graph.is_output(value);
                let own =
                    kept && matches!(self.kernels, Some(Kernels::OrtCpu { .. } | Kernels::OrtCuda { .. }));
                if let Some(operand) = self.viewed(id, slot).filter(|_| !own) {
                    let shared = self.buffer_of[operand.index()];
                    self.buffer_of[value.index()] = shared;
                    shared.into_iter().for_each(|b| self.buffers[b].kept |= kept);
                    continue;
                }
                let result = self.buffers.len();
                let bytes = self.bytes(value);
                self.buffers.push(Buffer::new(bytes, kept));
                self.values.push(value);
                self.buffer_of[value.index()] = Some(result);
                creates.push(result);
                let over = if own { Vec::new() } else { self.over(id, slot, value, &reads) };
                if !over.is_empty() {
                    in_place.push(InPlace { result, over });
                }
            }
        }
        let scratch = self.scratch(id);
        Operator { after, creates, reads, in_place, scratch }
    }

    /// The operand that a result is a view of.
    fn viewed(&self, id: OpId, slot: usize) -> Option<ValueId> {
        let op = self.graph.op(id);
        let operand = match self.kernels {
            Some(kernels) => kernels.alias(self.graph, id, slot)?,
            None => (slot == 0 && is_view(op)).then_some(0)?,
        };
        op.input(operand)
    }

    /// The buffers that a result may take over, among those that its operator reads.
    fn over(&self, id: OpId, slot: usize, result: ValueId, reads: &[usize]) -> Vec<usize> {
        let (graph, Some(kernels)) = (self.graph, self.kernels) else { return Vec::new() };
        let op = graph.op(id);
        let operands = kernels.in_place(graph, id, slot).filter_map(|i| op.input(i));
        let fits = |operand: &ValueId| match (graph.tensor_type(*operand), graph.tensor_type(result)) {
            (Some(a), Some(b)) => same_size(a, b),
            _ => false,
        };
        let buffers = operands.filter(fits).filter_map(|operand| self.buffer_of[operand.index()]);
        let bytes = |b: usize| self.buffers[b].bytes;
        let read_once = |b: &usize| reads.iter().filter(|&read| read == b).count() == 1;
        buffers
            .filter(read_once)
            .filter(|&b| Some(bytes(b)) == self.buffers.last().map(|own| own.bytes))
            .collect()
    }

    fn scratch(&mut self, id: OpId) -> u64 {
        let Some(kernels) = self.kernels else { return 0 };
        kernels.scratch(self.graph, id).unwrap_or_else(|| {
            let op = self.graph.op(id);
            let known = |value: ValueId| self.graph.tensor_type(value).is_some_and(|ty| ty.bytes().is_some());
            let cause = op.operands().find(|&value| !known(value)).or(op.results().next());
            let name = cause.map(|value| self.graph.value(value).name.clone());
            self.unknown.extend(name.filter(|name| !self.unknown.contains(name)));
            0
        })
    }

    /// The largest peak of an operator's bodies.
    fn in_bodies(&mut self, id: OpId) -> Result<u64, Unknown> {
        let mut most = 0;
        for body in self.graph.op(id).bodies() {
            match Scheduling::build(body, self.kernels, true) {
                Ok(scheduling) => most = most.max(scheduling.file_peak()),
                Err(Unknown::Sizes(names)) => self.unknown.extend(names),
                Err(other) => return Err(other),
            }
        }
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::infer::infer_graph;
    use dmopt_ir::text::{default_opsets, parse_graph};

    const ORT: Kernels = Kernels::OrtCpu { version: (1, 32) };

    fn graph(body: &str) -> Graph {
        let text = format!(
            "g (float[2,4] x) => (float[2,4] y) <float[4,4] w, float[1,2,4] k, int64[2] s = {{2, 4}}> {{ {body} }}"
        );
        let mut graph = parse_graph(&text, default_opsets()).unwrap();
        infer_graph(&mut graph);
        graph
    }

    /// Peak in file order, in tensors of the size of `x`.
    fn peak(body: &str, kernels: Kernels) -> u64 {
        let scheduling = Scheduling::new(&graph(body), kernels).unwrap();
        let order: Vec<usize> = (0..scheduling.ops().len()).collect();
        scheduling.problem().peak(&order) / 32
    }

    /// For each in-place pair of each operator: names of the result and of what it may take over.
    fn pairs(body: &str, kernels: Kernels) -> Vec<(String, Vec<String>)> {
        let g = graph(body);
        let scheduling = Scheduling::new(&g, kernels).unwrap();
        let name = |b: usize| g.value(scheduling.values()[b]).name.clone();
        let pairs = scheduling.problem().ops().iter().flat_map(|op| &op.in_place);
        pairs.map(|pair| (name(pair.result), pair.over.iter().map(|&b| name(b)).collect())).collect()
    }

    #[test]
    fn inputs_and_weights_are_never_taken_over() {
        assert_eq!(pairs("a = Relu(x) y = MatMul(a, w)", ORT), []);
        assert_eq!(
            pairs("a = MatMul(x, w) b = Relu(a) y = MatMul(b, w)", ORT),
            [("b".into(), vec!["a".into()])]
        );
    }

    #[test]
    fn onnx_runtime_gives_outputs_a_buffer_of_their_own_and_ideal_kernels_do_not() {
        let in_place = "a = MatMul(x, w) y = Relu(a)";
        assert_eq!((peak(in_place, ORT), peak(in_place, Kernels::Ideal)), (2, 1));
        let view = "a = MatMul(x, w) y = Identity(a)";
        assert_eq!((peak(view, ORT), peak(view, Kernels::Ideal)), (2, 1));
    }

    #[test]
    fn an_operand_that_is_read_twice_is_not_taken_over() {
        assert_eq!(pairs("a = MatMul(x, w) b = Mul(a, a) y = MatMul(b, w)", Kernels::Ideal), []);
        let through_a_view = "a = MatMul(x, w) v = Identity(a) b = Mul(a, v) y = MatMul(b, w)";
        assert_eq!(pairs(through_a_view, Kernels::Ideal), []);
    }

    #[test]
    fn an_operand_of_another_shape_is_not_taken_over() {
        let add = |operand: &str| format!("a = MatMul(x, w) b = Add(a, {operand}) y = Reshape(b, s)");
        assert_eq!(pairs(&add("x"), Kernels::Ideal), [("b".into(), vec!["a".into()])]);
        // As many elements, but one dimension more.
        assert_eq!(pairs(&add("k"), Kernels::Ideal), []);
    }

    #[test]
    fn a_view_and_its_operand_are_one_buffer() {
        let g =
            graph("a = MatMul(x, w) v = Identity(a) b = Exp(v) c = Exp(a) d = Add(b, c) y = MatMul(d, w)");
        let scheduling = Scheduling::new(&g, ORT).unwrap();
        let readers: Vec<usize> = scheduling.problem().buffers()[0].readers().collect();
        assert_eq!(readers, [1, 2, 3]);
    }

    #[test]
    fn a_constant_is_no_buffer() {
        let body = "c = Constant<value_float = 1.0>() a = Add(x, c) y = MatMul(a, w)";
        assert_eq!(peak(body, ORT), 2);
    }

    #[test]
    fn numbers_and_operators_translate_both_ways() {
        let g = graph("a = Relu(x) y = MatMul(a, w)");
        let scheduling = Scheduling::new(&g, ORT).unwrap();
        let order = g.order().unwrap();
        assert_eq!(scheduling.numbers(&order), Some(vec![0, 1]));
        assert_eq!(scheduling.order(&[1, 0]), [order[1], order[0]]);
    }
}
