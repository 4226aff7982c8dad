//! Moving weights out of a message that became too large, and finding what it refers to outside.

use bytes::Bytes;

use crate::error::ExternalError;
use crate::external::Reference;
use crate::schema::{AttributeProto, DataLocation, DataType, GraphProto, ModelProto, NodeProto, TensorProto};

/// Initializers below this many bytes stay in the model: shapes, axes and other small operands, which runtimes want
/// to read while they load the model.
pub const SMALL: usize = 1024;

/// Weights begin at multiples of this, so that a runtime can map them.
pub const ALIGNMENT: u64 = 4096;

/// Elements for the second file, after `padding` zero bytes.
pub(crate) struct Spill {
    pub(crate) padding: u64,
    pub(crate) data: Bytes,
}

/// Moves every initializer that is not small, those of bodies included, to an external file `name`; returns its
/// content. The elements are shared, not copied.
pub(crate) fn spill(model: &mut ModelProto, name: &str) -> Vec<Spill> {
    let mut pieces = Vec::new();
    let mut end = 0u64;
    let mut take = |tensor: &mut TensorProto| {
        let Some(data) = take_elements(tensor) else { return };
        let offset = end.next_multiple_of(ALIGNMENT);
        let reference = Reference { location: name.to_string(), offset, length: Some(data.len() as u64) };
        tensor.external_data = reference.entries();
        tensor.data_location = Some(DataLocation::External.into());
        pieces.push(Spill { padding: offset - end, data });
        end = offset + reference.length.unwrap_or(0);
    };
    if let Some(graph) = &mut model.graph {
        each_initializer(graph, &mut take);
    }
    pieces
}

/// Takes the elements of a tensor that is not small and whose elements are plain bytes in the message.
fn take_elements(tensor: &mut TensorProto) -> Option<Bytes> {
    let kind = DataType::try_from(tensor.data_type?).ok()?;
    let field = match (&mut tensor.raw_data, kind) {
        (Some(raw), _) => raw,
        (None, DataType::Float | DataType::Complex64) => &mut tensor.float_data.0,
        (None, DataType::Double | DataType::Complex128) => &mut tensor.double_data.0,
        _ => return None,
    };
    if field.len() < SMALL {
        return None;
    }
    let data = std::mem::take(field);
    tensor.raw_data = None;
    Some(data)
}

fn each_initializer(graph: &mut GraphProto, take: &mut impl FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *take);
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.iter_mut().for_each(|body| each_initializer(body, take));
        attribute.graphs.iter_mut().for_each(|body| each_initializer(body, take));
    }
}

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
