//! Small models for tests, built with tract's own messages.

use dmopt_ir::{DType, Tensor};
use prost::Message;
use tract_onnx::pb::*;

use crate::ModelFile;

/// A graph in the making.
#[derive(Clone, Default)]
pub struct ModelBuilder {
    pub proto: ModelProto,
    pub graph: GraphProto,
}

impl ModelBuilder {
    pub fn new() -> ModelBuilder {
        let opset = OperatorSetIdProto { domain: String::new(), version: 17 };
        let proto = ModelProto { ir_version: 8, opset_import: vec![opset], ..Default::default() };
        ModelBuilder { proto, graph: GraphProto { name: "g".into(), ..Default::default() } }
    }

    /// Sizes that are no numbers are symbols.
    pub fn input(mut self, name: &str, dtype: DType, dims: &[&str]) -> Self {
        self.graph.input.push(value(name, dtype, dims));
        self
    }

    pub fn output(mut self, name: &str, dtype: DType, dims: &[&str]) -> Self {
        self.graph.output.push(value(name, dtype, dims));
        self
    }

    pub fn constant(mut self, name: &str, tensor: &Tensor) -> Self {
        self.graph.initializer.push(tensor_proto(name, tensor));
        self
    }

    pub fn node(self, op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        self.node_with(op_type, inputs, outputs, vec![])
    }

    pub fn node_with(
        mut self,
        op: &str,
        ins: &[&str],
        outs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> Self {
        let strings = |names: &[&str]| names.iter().map(|s| s.to_string()).collect();
        let (input, output) = (strings(ins), strings(outs));
        self.graph.node.push(NodeProto {
            op_type: op.into(),
            input,
            output,
            attribute,
            ..Default::default()
        });
        self
    }

    pub fn edit(mut self, edit: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Self {
        edit(&mut self.proto, &mut self.graph);
        self
    }

    pub fn file(mut self) -> ModelFile {
        self.proto.graph = Some(self.graph);
        ModelFile { bytes: self.proto.encode_to_vec().into(), folder: None }
    }
}

pub fn tensor_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: tensor.dtype.code(),
        dims: tensor.dims.iter().map(|&d| d as i64).collect(),
        raw_data: tensor.bytes().unwrap().to_vec(),
        ..Default::default()
    }
}

pub fn value(name: &str, dtype: DType, dims: &[&str]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims
        .iter()
        .map(|d| Dimension {
            value: Some(d.parse().map_or_else(|_| Value::DimParam(d.to_string()), Value::DimValue)),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: dtype.code(), shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    use attribute_proto::AttributeType::Int;
    AttributeProto { name: name.into(), i, r#type: Int as i32, ..Default::default() }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    use attribute_proto::AttributeType::Float;
    AttributeProto { name: name.into(), f, r#type: Float as i32, ..Default::default() }
}

pub fn body(name: &str, graph: GraphProto) -> AttributeProto {
    use attribute_proto::AttributeType::Graph;
    AttributeProto { name: name.into(), g: Some(graph), r#type: Graph as i32, ..Default::default() }
}

pub fn f32s(dims: &[u64], values: &[f64]) -> Tensor {
    Tensor::from_f64(DType::F32, dims.to_vec(), values).unwrap()
}
