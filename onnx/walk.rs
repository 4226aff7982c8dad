//! What a model refers to by name: files with external data, and values that training needs.

use crate::error::{ExternalError, ImportError, TensorFault, function_place, node_place};
use crate::external::Reference;
use crate::schema::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// Every external file that a model refers to, once each, in the order in which they appear.
///
/// # Errors
/// A reference cannot be understood.
pub fn locations(model: &ModelProto) -> Result<Vec<String>, ImportError> {
    let mut found = Vec::new();
    each_tensor(model, &mut |tensor| {
        let location = Reference::of(tensor)?.map(|reference| reference.location);
        found.extend(location.filter(|location| !found.contains(location)));
        Ok(())
    })?;
    Ok(found)
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

/// Visits every tensor of a model: graph, bodies, functions, training. An error ends it and is told with its place.
pub(crate) fn each_tensor(model: &ModelProto, visit: &mut impl Visit) -> Result<(), ImportError> {
    let training = model.training_info.iter().flat_map(|t| [&t.initialization, &t.algorithm]).flatten();
    model.graph.iter().chain(training).try_for_each(|graph| in_graph(graph, visit))?;
    model.functions.iter().try_for_each(|function| {
        let mut defaults = function.attribute_proto.iter();
        let place = || function_place(text(&function.domain), text(&function.name));
        in_nodes(&function.node, visit)
            .and_then(|()| defaults.try_for_each(|attribute| in_attribute(attribute, visit)))
            .map_err(|error| error.within(place()))
    })
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

/// What is done with each tensor.
pub(crate) trait Visit: FnMut(&TensorProto) -> Result<(), ExternalError> {}

impl<F: FnMut(&TensorProto) -> Result<(), ExternalError>> Visit for F {}

fn in_tensor(tensor: &TensorProto, visit: &mut impl Visit) -> Result<(), ImportError> {
    visit(tensor).map_err(|cause| {
        let error = ImportError::from(TensorFault::External(cause));
        match text(&tensor.name) {
            "" => error,
            name => error.within(format!("tensor '{name}'")),
        }
    })
}

fn in_sparse(sparse: &SparseTensorProto, visit: &mut impl Visit) -> Result<(), ImportError> {
    sparse.values.iter().chain(&sparse.indices).try_for_each(|tensor| in_tensor(tensor, visit))
}

fn in_graph(graph: &GraphProto, visit: &mut impl Visit) -> Result<(), ImportError> {
    graph.initializer.iter().try_for_each(|tensor| in_tensor(tensor, visit))?;
    graph.sparse_initializer.iter().try_for_each(|sparse| in_sparse(sparse, visit))?;
    in_nodes(&graph.node, visit)
}

fn in_nodes(nodes: &[NodeProto], visit: &mut impl Visit) -> Result<(), ImportError> {
    nodes.iter().enumerate().try_for_each(|(position, node)| {
        let place = || node_place(text(&node.op_type), text(&node.name), position);
        let mut attributes = node.attribute.iter();
        attributes.try_for_each(|attribute| in_attribute(attribute, visit)).map_err(|e| e.within(place()))
    })
}

fn in_attribute(attribute: &AttributeProto, visit: &mut impl Visit) -> Result<(), ImportError> {
    let mut tensors = attribute.t.as_deref().into_iter().chain(&attribute.tensors);
    let mut sparse = attribute.sparse_tensor.as_deref().into_iter().chain(&attribute.sparse_tensors);
    let mut bodies = attribute.g.as_deref().into_iter().chain(&attribute.graphs);
    let place = || format!("attribute '{}'", text(&attribute.name));
    tensors
        .try_for_each(|tensor| in_tensor(tensor, visit))
        .and_then(|()| sparse.try_for_each(|tensor| in_sparse(tensor, visit)))
        .and_then(|()| bodies.try_for_each(|body| in_graph(body, visit)))
        .map_err(|error| error.within(place()))
}
