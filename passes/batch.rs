//! The batch of a model: how many samples it has, and which values have a row for each of them.

use std::collections::HashSet;

use dmopt_ir::{Def, Dim, Graph, OpId, Sizes, TensorType, ValueId, infer};

use crate::Planning;

/// The samples that the largest input of a graph has along its outermost axis.
pub(crate) struct Batch {
    /// How many there are. Of an open batch, a number that is larger than any known size: what has as many rows at this
    /// number has one for each sample.
    pub samples: u64,
    open: Option<Open>,
}

/// A batch of a size that the model leaves open.
struct Open {
    /// The graph with so many samples.
    sized: Graph,
    /// What has, whatever the number of samples, one row for each, all of one size that is known.
    rows: HashSet<ValueId>,
}

impl Batch {
    /// The batch of a graph. Types must have been inferred.
    pub fn of(graph: &Graph, planning: &Planning) -> Option<Batch> {
        let input = largest_input(planning.sized(graph).graph())?;
        match graph.tensor_type(input)?.shape.as_ref()?.first()? {
            Dim::Known(samples) => Some(Batch { samples: *samples, open: None }),
            Dim::Symbol(_) => Batch::open(graph, input),
            Dim::Unknown => Batch::open(&graph.with_named_dims(), input),
        }
    }

    /// The samples of an open batch, which has a name.
    fn open(graph: &Graph, input: ValueId) -> Option<Batch> {
        let Dim::Symbol(name) = graph.tensor_type(input)?.shape.as_ref()?.first()?.clone() else {
            return None;
        };
        let graph = infer::with_proven_types(graph);
        let dims = |ty: &TensorType| ty.shape.iter().flatten().filter_map(Dim::known).max();
        let largest = graph.values().filter_map(|v| dims(graph.tensor_type(v)?)).max();
        let samples = largest.unwrap_or(1).max(1).checked_add(1)?;
        let is_row = |ty: &TensorType| match ty.shape.as_deref() {
            Some([Dim::Symbol(rows), row @ ..]) => *rows == name && row.iter().all(|d| d.known().is_some()),
            _ => false,
        };
        let rows = graph.values().filter(|&v| graph.tensor_type(v).is_some_and(is_row)).collect();
        let sizes = Sizes { dims: [(name.to_string(), samples)].into(), ..Sizes::default() };
        Some(Batch { samples, open: Some(Open { sized: graph.with_sizes(&sizes), rows }) })
    }

    /// True if the model leaves the number of samples open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The graph, of which this is the batch, with so many samples.
    pub fn graph<'a>(&'a self, graph: &'a Graph) -> &'a Graph {
        self.open.as_ref().map_or(graph, |open| &open.sized)
    }

    /// The operand by which an operator is told how large its result is, where that is known: because the operand is constant,
    /// or because the result is certain, whatever the operand is computed of.
    pub fn told_size(&self, graph: &Graph, id: OpId) -> Option<usize> {
        let op = graph.op(id);
        let slot = match op.op_type.as_str() {
            "Reshape" | "Expand" => 1,
            "Resize" if graph.opset("") >= 11 => 3,
            _ => return None,
        };
        let is_certain = self.is_open() && op.output(0).is_some_and(|result| self.is_certain(result));
        (graph.constant(op.input(slot)?).is_some() || is_certain).then_some(slot)
    }

    /// True if what a value is at this number of samples tells what it is at any that it can be.
    pub fn is_certain(&self, value: ValueId) -> bool {
        self.open.as_ref().is_none_or(|open| open.rows.contains(&value))
    }
}

/// The first of the largest inputs.
fn largest_input(graph: &Graph) -> Option<ValueId> {
    let is_open = |v: &&ValueId| matches!(graph.value(**v).def, Def::Input { default: None });
    let inputs = graph.inputs().iter().rev().filter(is_open);
    inputs.copied().max_by_key(|&v| graph.tensor_type(v).and_then(TensorType::elements))
}

#[cfg(test)]
mod tests {
    use dmopt_ir::infer;
    use dmopt_ir::text::{default_opsets, parse_graph};

    use super::*;

    /// The batch of a graph, and the names of what has a row for each sample.
    fn batch(text: &str) -> (Batch, Vec<String>) {
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        infer::infer_graph(&mut graph);
        let batch = Batch::of(&graph, &Planning::default()).unwrap();
        let certain = graph.values().filter(|&v| batch.is_certain(v));
        let names = certain.map(|v| graph.value(v).name.clone()).collect();
        (batch, names)
    }

    #[test]
    fn the_largest_input_has_the_batch() {
        let (batch, _) = batch("f (float[2] scale, float[6,8] x) => (float[6,8] y) { y = Relu(x) }");
        assert_eq!((batch.samples, batch.is_open()), (6, false));
    }

    #[test]
    fn an_open_batch_has_more_samples_than_anything_has_rows() {
        for size in ["n", "?"] {
            let text = format!(
                "f (float[{size},3,7] x, float[m,3,7] z) => (float y) <int64[1] k = {{-1}}, int64[1] axes = {{0}}> {{
                    a = Relu(x)  t = Transpose<perm = [1, 0, 2]>(a)  b = Flatten(a)  c = Reshape(a, k)
                    s = Concat<axis = 0>(a, a)  y = ReduceSum<keepdims = 0>(a, axes) }}"
            );
            let (batch, certain) = batch(&text);
            assert_eq!((batch.samples, batch.is_open()), (22, true), "{size}");
            assert_eq!(certain, ["x", "a", "b"], "{size}");
        }
    }
}
