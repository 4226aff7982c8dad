//! A piece of a model as a model of its own: what it reads from outside becomes inputs, what is read outside becomes
//! outputs, and constants come along.

use std::collections::{HashMap, HashSet};

use dmopt_ir::{Def, Graph, Model, OpId, TensorType, Type, ValueId};

use crate::onnx;
use crate::onnx::schema::{
    Dimension, ModelProto, TensorProto, TensorShapeProto, TensorType as TensorTypeProto, TypeProto,
    ValueInfoProto,
};

/// The bytes that a piece of a model may have.
const MAX_BYTES: u64 = 1 << 30;

/// These operators of a model, in its order. `sized` is its graph with sizes for open dimensions, whose types the inputs
/// and outputs get.
///
/// # Errors
/// The type of a value at the border is not known, or a constant cannot be read: a sentence.
pub(crate) fn cut(model: &Model, sized: &Graph, ops: &HashSet<OpId>) -> Result<ModelProto, String> {
    let graph = &model.graph;
    let order = graph.order().map_err(|_| "the graph has a cycle".to_string())?;
    let (mut inputs, mut outputs, mut constants) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for &id in order.iter().filter(|op| ops.contains(op)) {
        let op = graph.op(id);
        for value in op.operands().chain(op.captures.iter().copied()).filter(|&v| seen.insert(v)) {
            match &graph.value(value).def {
                Def::Op { op, .. } if ops.contains(op) => {}
                Def::Initializer(_) | Def::SparseInitializer(_) => constants.push(value),
                _ => inputs.push(value),
            }
        }
        let leaves = |value: ValueId| {
            let outside = |u: dmopt_ir::Use| !ops.contains(&u.op);
            graph.is_output(value) || graph.uses(value).len() == 0 || graph.uses(value).any(outside)
        };
        outputs.extend(op.results().filter(|&v| leaves(v)));
    }
    let mut proto =
        onnx::export(model, &onnx::ExportOptions::default()).map_err(|cause| cause.to_string())?;
    let name = |&value: &ValueId| graph.value(value).name.clone();
    let ports = |values: &[ValueId]| {
        values.iter().map(|v| port(name(v), sized.tensor_type(*v))).collect::<Result<_, _>>()
    };
    let kept: HashSet<String> = order
        .iter()
        .filter(|op| ops.contains(op))
        .filter_map(|&op| graph.op(op).results().next().as_ref().map(name))
        .collect();
    let main = proto.graph.as_mut().ok_or("the model has no graph")?;
    main.input = ports(&inputs)?;
    main.output = ports(&outputs)?;
    main.node.retain(|node| node.output.iter().any(|output| kept.contains(output)));
    main.value_info.clear();
    let wanted: HashMap<String, ValueId> = constants.iter().map(|v| (name(v), *v)).collect();
    main.initializer.retain(|tensor| tensor.name.as_ref().is_some_and(|name| wanted.contains_key(name)));
    main.sparse_initializer.retain(|sparse| {
        let name = sparse.values.as_ref().and_then(|values| values.name.as_ref());
        name.is_some_and(|name| wanted.contains_key(name))
    });
    let mut bytes = 0;
    for tensor in &mut main.initializer {
        let value = tensor.name.as_ref().and_then(|name| wanted.get(name));
        if let Some(Def::Initializer(constant)) = value.map(|v| &graph.value(*v).def) {
            bytes += constant.byte_len().unwrap_or(0);
            if bytes > MAX_BYTES {
                return Err("its constants are too large".to_string());
            }
            bring(tensor, constant)?;
        }
    }
    Ok(proto)
}

/// Puts the elements of a constant that is in another file into the message.
fn bring(tensor: &mut TensorProto, constant: &dmopt_ir::Tensor) -> Result<(), String> {
    if !constant.is_resident() {
        let elements = constant.bytes().map_err(|cause| cause.to_string())?;
        tensor.raw_data = Some(elements.into_owned().into());
        tensor.external_data.clear();
        tensor.data_location = None;
    }
    Ok(())
}

fn port(name: String, ty: Option<&TensorType>) -> Result<ValueInfoProto, String> {
    let ty = ty.ok_or_else(|| format!("the type of {name} is not known"))?;
    let dims = ty
        .dims()
        .ok_or_else(|| format!("{name} is {}, whose sizes are not known", Type::Tensor(ty.clone())))?;
    let dim =
        dims.iter().map(|&size| Dimension { dim_value: Some(size as i64), ..Dimension::default() }).collect();
    let shape = Some(TensorShapeProto { dim, ..TensorShapeProto::default() });
    let tensor = TensorTypeProto { elem_type: Some(ty.dtype.code()), shape, ..TensorTypeProto::default() };
    let r#type = Some(TypeProto { tensor_type: Some(tensor), ..TypeProto::default() });
    Ok(ValueInfoProto { name: Some(name), r#type, ..ValueInfoProto::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::infer::infer_graph;
    use dmopt_ir::text::{parse_model, print_graph_as};

    fn piece(text: &str, results: &[&str]) -> String {
        let mut model = parse_model(text).unwrap();
        infer_graph(&mut model.graph);
        let graph = &model.graph;
        let chosen =
            |&op: &OpId| graph.op(op).results().any(|v| results.contains(&graph.value(v).name.as_str()));
        let ops = graph.ops().filter(chosen).collect();
        let proto = cut(&model, graph, &ops).unwrap();
        let bytes = onnx::encode(&proto).concat();
        let model = onnx::parse("piece", bytes.into(), onnx::Folder::new(".")).unwrap();
        print_graph_as(&model.graph, dmopt_ir::text::Style::Example)
    }

    #[test]
    fn a_piece_has_what_it_reads_as_inputs_and_what_is_read_as_outputs() {
        let text = "f (float[2] x) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
            a = Exp(x) b = Mul(a, w) c = Neg(b) d = Add(c, b) e = Sub(d, v) y = Relu(e) }";
        let expected = parse_model(
            "f (float[2] a) => (float[2] b, float[2] c) <float[2] w = {1, 2}> { b = Mul(a, w) c = Neg(b) }",
        );
        let expected = print_graph_as(&expected.unwrap().graph, dmopt_ir::text::Style::Example);
        assert_eq!(piece(text, &["b", "c"]), expected);
    }

    #[test]
    fn what_a_body_captures_becomes_an_input() {
        let text = "f (bool c, float[1] x) => (float[1] y) { a = Exp(x)
            y = If (c) <then_branch = t () => (float[1] v) { v = Neg(a) },
                        else_branch = e () => (float[1] w) { w = Relu(x) }> }";
        let found = piece(text, &["y"]);
        assert!(found.starts_with("f (bool c, float[1] a, float[1] x) => (float[1] y)"), "{found}");
    }
}
