//! What a model refers to by name: files with external data, and values that training needs.

use crate::error::ExternalError;
use crate::external::Reference;
use crate::schema::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// Every external file that a model refers to, once each, in the order in which they appear.
///
/// # Errors
/// A reference cannot be understood.
pub fn locations(model: &ModelProto) -> Result<Vec<String>, ExternalError> {
    let mut found = Vec::new();
    let mut last = Ok(());
    each_tensor(model, &mut |tensor| match Reference::of(tensor) {
        Ok(Some(reference)) if !found.contains(&reference.location) => found.push(reference.location),
        Ok(_) => {}
        Err(error) => last = Err(error),
    });
    last.map(|()| found)
}

/// Every name by which training may refer to a value of the main graph: the initializers that it updates, and what its
/// own graphs read.
pub(crate) fn training_names(model: &ModelProto) -> Vec<String> {
    let mut names = Vec::new();
    for training in &model.training_info {
        let bindings = training.initialization_binding.iter().chain(&training.update_binding);
        names.extend(bindings.filter_map(|binding| binding.key.clone()));
        for graph in training.initialization.iter().chain(&training.algorithm) {
            names_read(graph, &mut names);
        }
    }
    names.sort_unstable();
    names.dedup();
    names
}

fn names_read(graph: &GraphProto, names: &mut Vec<String>) {
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        for attribute in &node.attribute {
            let bodies = attribute.g.as_deref().into_iter().chain(&attribute.graphs);
            bodies.for_each(|body| names_read(body, names));
        }
    }
}

/// Visits every tensor of a model: graph, bodies, functions, training.
pub(crate) fn each_tensor(model: &ModelProto, visit: &mut impl FnMut(&TensorProto)) {
    let training = model.training_info.iter().flat_map(|t| [&t.initialization, &t.algorithm]).flatten();
    model.graph.iter().chain(training).for_each(|graph| in_graph(graph, visit));
    for function in &model.functions {
        in_nodes(&function.node, visit);
        function.attribute_proto.iter().for_each(|attribute| in_attribute(attribute, visit));
    }
}

fn in_graph(graph: &GraphProto, visit: &mut impl FnMut(&TensorProto)) {
    graph.initializer.iter().for_each(&mut *visit);
    for sparse in &graph.sparse_initializer {
        sparse.values.iter().chain(&sparse.indices).for_each(&mut *visit);
    }
    in_nodes(&graph.node, visit);
}

fn in_nodes(nodes: &[NodeProto], visit: &mut impl FnMut(&TensorProto)) {
    nodes.iter().flat_map(|node| &node.attribute).for_each(|attribute| in_attribute(attribute, visit));
}

fn in_attribute(attribute: &AttributeProto, visit: &mut impl FnMut(&TensorProto)) {
    attribute.t.as_deref().into_iter().chain(&attribute.tensors).for_each(&mut *visit);
    for sparse in attribute.sparse_tensor.as_deref().into_iter().chain(&attribute.sparse_tensors) {
        sparse.values.iter().chain(&sparse.indices).for_each(&mut *visit);
    }
    attribute.g.as_deref().into_iter().chain(&attribute.graphs).for_each(|body| in_graph(body, visit));
}
