//! What a model consists of, in numbers.

use dmopt_ir::{AttributeValue, Def, Graph, Model, Tensor};

/// The size of a model: its main graph with all bodies, functions left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Operators, `Constant` included.
    pub nodes: u64,
    /// Elements of all constants: initializers and the tensors of `Constant` operators.
    pub parameters: u64,
    /// Bytes of the same; strings and sparse tensors, whose size depends on their content, are left out.
    pub initializer_bytes: u64,
}

impl Facts {
    /// Counts.
    pub fn of(model: &Model) -> Facts {
        let mut facts = Facts::default();
        each_graph(&model.graph, &mut |graph| facts.nodes += graph.op_count() as u64);
        each_constant(&model.graph, &mut |tensor| {
            facts.parameters = facts.parameters.saturating_add(tensor.elements().unwrap_or(0));
            facts.initializer_bytes = facts.initializer_bytes.saturating_add(tensor.byte_len().unwrap_or(0));
        });
        facts
    }
}

/// Visits a graph and its bodies.
pub(crate) fn each_graph<'g>(graph: &'g Graph, visit: &mut dyn FnMut(&'g Graph)) {
    visit(graph);
    for op in graph.ops() {
        graph.op(op).bodies().for_each(|body| each_graph(body, visit));
    }
}

/// Visits every dense constant of a graph and its bodies.
pub(crate) fn each_constant<'g>(graph: &'g Graph, visit: &mut dyn FnMut(&'g Tensor)) {
    each_graph(graph, &mut |graph| {
        for value in graph.values() {
            match &graph.value(value).def {
                Def::Initializer(tensor) | Def::Input { default: Some(tensor) } => visit(tensor),
                _ => {}
            }
        }
        for op in graph.ops().map(|id| graph.op(id)).filter(|op| op.is("Constant")) {
            if let Some(AttributeValue::Tensor(tensor)) = op.attribute("value") {
                visit(tensor);
            }
        }
    });
}
