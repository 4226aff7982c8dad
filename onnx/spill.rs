//! Moving weights out of a message that became too large.

use crate::Data;
use crate::external::Reference;
use crate::schema::{DataLocation, DataType, GraphProto, ModelProto, TensorProto};

/// Initializers below this many bytes stay in the model: shapes, axes and other small operands, which runtimes want
/// to read while they load the model.
pub const SMALL: usize = 1024;

/// Weights begin at multiples of this, so that a runtime can map them.
pub const ALIGNMENT: u64 = 4096;

/// Elements for the second file, after `padding` zero bytes.
pub(crate) struct Spill {
    pub(crate) padding: u64,
    pub(crate) data: Data,
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
fn take_elements(tensor: &mut TensorProto) -> Option<Data> {
    let kind = DataType::try_from(tensor.data_type?).ok()?;
    if let Some(raw) = &tensor.raw_data {
        return if raw.len() < SMALL { None } else { tensor.raw_data.take() };
    }
    let field = match kind {
        DataType::Float | DataType::Complex64 => &mut tensor.float_data.0,
        DataType::Double | DataType::Complex128 => &mut tensor.double_data.0,
        _ => return None,
    };
    (field.len() >= SMALL).then(|| std::mem::take(field).into())
}

fn each_initializer(graph: &mut GraphProto, take: &mut impl FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *take);
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.iter_mut().for_each(|body| each_initializer(body, take));
        attribute.graphs.iter_mut().for_each(|body| each_initializer(body, take));
    }
}
