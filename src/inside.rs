//! The values that two models share by name, and models that show them.

use std::collections::HashMap;

use dmopt_ir::{DType, Graph, Type};
use dmopt_runtime::{Backend, Divergence, Inside, ModelFile, Named, RuntimeError, Tolerance, compare_inside};

use crate::onnx;
use crate::onnx::schema::{TensorType, TypeProto, ValueInfoProto};

/// Values in one group, which are computed in one run.
const GROUP: usize = 64;

/// Bytes of the values in one group, as far as they are known.
const GROUP_BYTES: u64 = 1 << 28;

/// Compares the values that both graphs define under the same name with types that fit, in the order of the
/// reference, up to the first that differs. The graphs are those of the files, with types inferred.
///
/// # Errors
/// See [`compare_inside`].
pub(crate) fn compare_shared(
    backend: &dyn Backend,
    reference: (&ModelFile, &Graph),
    candidate: (&ModelFile, &Graph),
    inputs: &[Named],
    tolerance: Tolerance,
) -> Result<(Inside, Option<Divergence>), RuntimeError> {
    let shared = shared(reference.1, candidate.1);
    let types: HashMap<&str, DType> =
        shared.iter().flatten().map(|(name, dtype)| (name.as_str(), *dtype)).collect();
    let groups: Vec<Vec<String>> =
        shared.iter().map(|group| group.iter().map(|(name, _)| name.clone()).collect()).collect();
    let a = |values: &[String]| expose(reference.0, values, &types);
    let b = |values: &[String]| expose(candidate.0, values, &types);
    compare_inside(backend, &groups, &a, &b, inputs, tolerance)
}

/// Names and element types of the shared values, in groups.
fn shared(reference: &Graph, candidate: &Graph) -> Vec<Vec<(String, DType)>> {
    fn results(graph: &Graph) -> impl Iterator<Item = (&str, Option<&Type>)> {
        let order = graph.order().unwrap_or_default();
        order.into_iter().flat_map(|op| graph.op(op).results()).map(|id| {
            let value = graph.value(id);
            (value.name.as_str(), value.ty.as_ref())
        })
    }
    let theirs: HashMap<&str, Option<&Type>> = results(candidate).collect();
    let mut groups: Vec<Vec<(String, DType)>> = Vec::new();
    let mut bytes = 0u64;
    for (name, ours) in results(reference) {
        let Some(theirs) = theirs.get(name) else { continue };
        // Runtimes take no outputs of types that are unknown here: they might be sequences.
        let Some(ty) = ours.or(*theirs).and_then(Type::tensor) else { continue };
        let fits = ours.zip(*theirs).is_none_or(|(a, b)| a.compatible(b));
        if !fits || ty.dtype.bits().is_none_or(|bits| bits < 8) {
            continue;
        }
        let size = ty.bytes().unwrap_or(0);
        let full = groups.last().is_none_or(|group| group.len() == GROUP)
            || bytes.saturating_add(size) > GROUP_BYTES;
        if full {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        if let Some(group) = groups.last_mut() {
            group.push((name.to_string(), ty.dtype));
        }
    }
    groups
}

/// The same model with these values as further outputs. Runtimes infer their shapes.
fn expose(file: &ModelFile, values: &[String], types: &HashMap<&str, DType>) -> Result<ModelFile, String> {
    let mut proto = onnx::decode("model", file.bytes.clone()).map_err(|cause| cause.to_string())?;
    let graph = proto.graph.as_mut().ok_or("the model has no graph")?;
    for name in values {
        if graph.output.iter().all(|output| output.name.as_ref() != Some(name)) {
            let elem_type = types.get(name.as_str()).map(|dtype| dtype.code());
            let tensor = TensorType { elem_type, ..TensorType::default() };
            let ty = TypeProto { tensor_type: Some(tensor), ..TypeProto::default() };
            let (name, r#type) = (Some(name.clone()), Some(ty));
            graph.output.push(ValueInfoProto { name, r#type, ..ValueInfoProto::default() });
        }
    }
    Ok(ModelFile { bytes: onnx::encode(&proto).concat().into(), folder: file.folder.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::text::parse_model;

    fn graph(text: &str) -> Graph {
        let mut model = parse_model(text).unwrap();
        dmopt_ir::infer::infer_graph(&mut model.graph);
        model.graph
    }

    fn names(a: &Graph, b: &Graph) -> Vec<Vec<String>> {
        shared(a, b).into_iter().map(|group| group.into_iter().map(|(name, _)| name).collect()).collect()
    }

    const HEAD: &str = "<ir_version: 10, opset_import: [\"\": 21]> g (float[2,3] x) => (float[2,3] y)";

    #[test]
    fn values_are_shared_by_name_and_type_in_the_order_of_the_reference() {
        let a = graph(&format!(
            "{HEAD} {{ a = Relu(x) b = Exp(a) c = Cast<to = 7>(b) d = Shape(x) y = Neg(b) }}"
        ));
        let b =
            graph(&format!("{HEAD} {{ b = Exp(x) c = Transpose(b) a = Relu(b) d = Shape(x) y = Neg(a) }}"));
        assert_eq!(names(&a, &b), [["a", "b", "d", "y"]]);
    }

    #[test]
    fn large_values_are_computed_apart() {
        let text =
            "<ir_version: 10, opset_import: [\"\": 21]> g (float[30000,1000] x) => (float[30000,1000] y)
                    { a = Relu(x) b = Exp(a) c = Exp(b) y = Neg(c) }";
        assert_eq!(names(&graph(text), &graph(text)), [["a", "b"], ["c", "y"]]);
    }

    #[test]
    fn what_is_an_output_already_is_not_one_twice() {
        let model = parse_model(&format!("{HEAD} {{ a = Relu(x) y = Neg(a) }}")).unwrap();
        let bytes = onnx::encode(&onnx::export(&model, &Default::default()).unwrap()).concat();
        let file = ModelFile { bytes: bytes.into(), folder: None };
        let shown = expose(&file, &["a".to_string(), "y".to_string()], &HashMap::new()).unwrap();
        let outputs = onnx::decode("shown", shown.bytes).unwrap().graph.unwrap().output;
        assert_eq!(outputs.iter().filter_map(|o| o.name.as_deref()).collect::<Vec<_>>(), ["y", "a"]);
    }
}
