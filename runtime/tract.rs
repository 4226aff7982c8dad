//! The embedded runtime: tract.
//!
//! A model is parsed once and prepared again whenever input shapes change: sizes are concrete by the time that
//! tract infers types, so symbolic dimensions never meet its own algebra. It runs as translated, without tract's
//! own graph optimizations, because those rearrange arithmetic differently in two models that are the same:
//! operator by operator, an exact rewrite gives the same bits.
//!
//! Panics in tract become errors, which needs `panic = "unwind"`, the default.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use dmopt_ir::{DType, Dim, Tensor, TensorType};
use half::f16;
use tract_onnx::model::ParseResult;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue,
    OutletId, TVec, Tensor as TractTensor, TractError, TractResult, TypedRunnableModel,
};

use crate::panics::catch;
use crate::{Backend, Interface, ModelFile, Named, Outputs, Port, RuntimeError, Session};

const NAME: &str = "tract";

/// tract as a [`Backend`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Backend for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, model: &ModelFile) -> Result<Box<dyn Session>, RuntimeError> {
        let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_types(true);
        let mut proto = guard(|| onnx.proto_model_for_read(&mut &model.bytes[..]))
            .map_err(|reason| RuntimeError::Malformed { runtime: NAME, reason })?;
        let interface = interface(&proto)?;
        let functions =
            proto.functions.iter().map(|f| (standard(f.domain()), f.name().to_string())).collect();
        let operators = onnx.op_register.0.keys().map(String::as_str).collect();
        let mut values = Vec::new();
        if let Some(graph) = &mut proto.graph {
            check(graph, &Known { operators, functions })?;
            values = graph.node.iter().flat_map(|n| &n.output).filter(|v| !v.is_empty()).cloned().collect();
            prepare(graph, true);
        }
        let folder = folder(model)?;
        let ParseResult { model, unresolved_inputs, outlets_by_name: outlets } =
            guard(|| onnx.parse(&proto, folder)).map_err(failed)?;
        if let Some(name) = unresolved_inputs.first() {
            return Err(RuntimeError::Malformed { runtime: NAME, reason: format!("nothing defines {name}") });
        }
        values.retain(|name| interface.outputs.iter().all(|port| port.name != *name));
        Ok(Box::new(Loaded { interface, model, values, outlets, watched: vec![], budget: 0, prepared: None }))
    }
}

/// A parsed model and its last preparation.
struct Loaded {
    interface: Interface,
    model: InferenceModel,
    values: Vec<String>,
    outlets: HashMap<String, OutletId>,
    /// Values to show, and the bytes that they may take.
    watched: Vec<String>,
    budget: u64,
    prepared: Option<Prepared>,
}

/// A model with types inferred for inputs of some shapes.
#[derive(Clone)]
struct Prepared {
    shapes: Vec<Vec<usize>>,
    plan: Arc<TypedRunnableModel>,
    /// What the plan returns after the outputs of the interface.
    watched: Vec<String>,
}

impl Session for Loaded {
    fn interface(&self) -> &Interface {
        &self.interface
    }

    fn run(&mut self, inputs: &[Named]) -> Result<Outputs, RuntimeError> {
        let values: Vec<TractTensor> = self
            .interface
            .inputs
            .iter()
            .map(|port| {
                let (_, tensor) = inputs
                    .iter()
                    .find(|(name, _)| name == &port.name)
                    .ok_or_else(|| failed(format!("no value for input {}", port.name)))?;
                to_tract(tensor)
            })
            .collect::<Result<_, _>>()?;
        let Prepared { plan, watched, .. } = self.prepare(&values)?;
        let values: TVec<_> = values.into_iter().map(IntoTValue::into_tvalue).collect();
        let start = Instant::now();
        let mut results = guard(|| plan.run(values)).map_err(failed)?.into_iter();
        let wall = start.elapsed();
        let tensors = (self.interface.outputs.iter().zip(&mut results))
            .map(|(port, value)| Ok((port.name.clone(), from_tract(&value, &port.name)?)))
            .collect::<Result<_, RuntimeError>>()?;
        let watched = watched.into_iter().zip(results);
        let watched = watched.filter_map(|(name, value)| from_tract(&value, &name).ok().map(|t| (name, t)));
        Ok(Outputs { tensors, watched: watched.collect(), wall })
    }

    fn values(&self) -> &[String] {
        &self.values
    }

    fn watch(&mut self, names: &[String], budget: u64) {
        self.watched = names.iter().filter(|name| self.outlets.contains_key(*name)).cloned().collect();
        self.budget = budget;
        self.prepared = None;
    }
}

impl Loaded {
    fn prepare(&mut self, values: &[TractTensor]) -> Result<Prepared, RuntimeError> {
        let shapes: Vec<Vec<usize>> = values.iter().map(|v| v.shape().to_vec()).collect();
        if let Some(prepared) = &self.prepared
            && prepared.shapes == shapes
        {
            return Ok(prepared.clone());
        }
        let mut model = self.model.clone();
        let prepared = guard(|| {
            for (i, value) in values.iter().enumerate() {
                model.set_input_fact(i, InferenceFact::dt_shape(value.datum_type(), value.shape()))?;
            }
            let boundary = model.outputs.len();
            model.outputs.extend(self.watched.iter().filter_map(|name| self.outlets.get(name)));
            let mut model = model.into_typed()?;
            let sizes = (model.outputs.iter().skip(boundary))
                .map(|outlet| Ok(model.outlet_fact(*outlet)?.mem_size().to_i64()?))
                .collect::<TractResult<Vec<i64>>>()?;
            let kept = thin(&sizes, self.budget);
            let inside: Vec<OutletId> = kept.iter().map(|i| model.outputs[boundary + i]).collect();
            model.outputs.truncate(boundary);
            model.outputs.extend(inside);
            let watched = kept.into_iter().map(|i| self.watched[i].clone()).collect();
            Ok(Prepared { shapes, plan: model.into_runnable()?, watched })
        })
        .map_err(failed)?;
        self.prepared = Some(prepared.clone());
        Ok(prepared)
    }
}

/// Positions of evenly spread entries whose sizes add up to no more than `budget`.
fn thin(sizes: &[i64], budget: u64) -> Vec<usize> {
    let mut stride = 1;
    loop {
        let kept: Vec<usize> = (0..sizes.len()).step_by(stride).collect();
        let total = kept.iter().fold(0u64, |n, &i| n.saturating_add(sizes[i].max(0) as u64));
        if total <= budget || kept.is_empty() {
            return kept;
        }
        if kept.len() == 1 {
            return Vec::new();
        }
        stride += 1;
    }
}

/// Folder for external data, as the text that tract wants.
fn folder(model: &ModelFile) -> Result<Option<&str>, RuntimeError> {
    model
        .folder
        .as_deref()
        .map(|path: &Path| {
            path.to_str().ok_or_else(|| unsupported(format!("folder name {} is not UTF-8", path.display())))
        })
        .transpose()
}

/// Runs code of tract, which may panic.
fn guard<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    catch(work)?.map_err(|e| message(&e))
}

/// The outermost and the innermost message: which node, and what was wrong with it. What lies between is tract's
/// own call chain.
fn message(error: &TractError) -> String {
    let outer = first_line(&error.to_string());
    let inner = first_line(&error.root_cause().to_string());
    if outer == inner { inner } else { format!("{outer}: {inner}") }
}

fn first_line(text: &str) -> String {
    const LONGEST: usize = 200;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_string(),
    }
}

fn failed(reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Failed { runtime: NAME, reason: reason.into() }
}

fn unsupported(reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Unsupported { runtime: NAME, reason: reason.into() }
}

/// The domain, with the two spellings of the standard one made one.
fn standard(domain: &str) -> String {
    if domain == "ai.onnx" { String::new() } else { domain.to_string() }
}

/// What tract has under an operator type, and what the model defines itself.
struct Known<'a> {
    operators: HashSet<&'a str>,
    functions: HashSet<(String, String)>,
}

/// Refuses what tract would misread in silence (other domains, functions, sparse initializers) and what it has no
/// implementation for, bodies included.
fn check(graph: &GraphProto, known: &Known) -> Result<(), RuntimeError> {
    if !graph.sparse_initializer.is_empty() {
        return Err(unsupported("sparse initializers"));
    }
    for node in &graph.node {
        let id = (standard(&node.domain), node.op_type.clone());
        let expanded = is_fused_conv(node);
        if (!id.0.is_empty() && !expanded)
            || known.functions.contains(&id)
            || (!expanded && !known.operators.contains(&*node.op_type))
        {
            let operator = if id.0.is_empty() { id.1 } else { format!("{}::{}", id.0, id.1) };
            return Err(RuntimeError::Operator { operator, runtime: NAME });
        }
        bodies(node).try_for_each(|body| check(body, known))?;
    }
    Ok(())
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Rewrites what tract trips over: nodes of the same name (it wants them unique, ONNX does not), Gemm (it scales in
/// f32, whatever the type of the operands), ONNX Runtime's fused convolution (it has none), and symbolic sizes in the declared inputs of bodies, which no size that
/// a run chooses could match.
fn prepare(graph: &mut GraphProto, top: bool) {
    let nodes = std::mem::take(&mut graph.node).into_iter();
    graph.node = nodes.flat_map(without_gemm).flat_map(without_fused_conv).collect();
    let mut names: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    names.extend(graph.input.iter().map(|v| v.name.clone()));
    for node in &mut graph.node {
        if !names.insert(node.name.clone()) {
            // tract falls back to the name of the first output, which is unique.
            node.name.clear();
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| prepare(body, false));
        }
    }
    if !top {
        for input in &mut graph.input {
            for dim in tensor_type(input).and_then(|t| t.shape.as_mut()).into_iter().flat_map(|s| &mut s.dim)
            {
                if matches!(dim.value, Some(tensor_shape_proto::dimension::Value::DimParam(_))) {
                    dim.value = None;
                }
            }
        }
    }
}

/// `alpha A B + beta C` in operators that keep the type of `A`; any other node as it is.
fn without_gemm(node: NodeProto) -> Vec<NodeProto> {
    let (Some(a), Some(b), Some(out)) = (node.input.first(), node.input.get(1), node.output.first()) else {
        return vec![node];
    };
    if node.op_type != "Gemm" {
        return vec![node];
    }
    let mut steps = Steps { prefix: format!("{out}/gemm"), like: a.clone(), nodes: Vec::new() };
    let attribute = |name: &str| node.attribute.iter().find(|x| x.name == name);
    let transposed = |name: &str| attribute(name).is_some_and(|x| x.i != 0);
    let factor = |name: &str| attribute(name).map_or(1.0, |x| x.f);
    let a = steps.transpose(a, transposed("transA"), "a");
    let b = steps.transpose(b, transposed("transB"), "b");
    let product = steps.push("MatMul", &[&a, &b], vec![], "product");
    let product = steps.scale(&product, factor("alpha"), "alpha");
    if let Some(c) = node.input.get(2).filter(|c| !c.is_empty()) {
        let c = steps.scale(c, factor("beta"), "beta");
        steps.push("Add", &[&product, &c], vec![], "sum");
    }
    if let Some(last) = steps.nodes.last_mut() {
        last.output = node.output;
        last.name = node.name;
    }
    steps.nodes
}

/// ONNX Runtime's `FusedConv`.
fn is_fused_conv(node: &NodeProto) -> bool {
    node.domain == "com.microsoft" && node.op_type == "FusedConv"
}

/// `activation(Conv(X, W, B) + Z)` in standard operators; any other node as it is.
fn without_fused_conv(node: NodeProto) -> Vec<NodeProto> {
    let Some(out) = node.output.first().filter(|_| is_fused_conv(&node)) else { return vec![node] };
    let mut steps = Steps { prefix: format!("{out}/fused"), like: String::new(), nodes: Vec::new() };
    let attribute = |name: &str| node.attribute.iter().find(|x| x.name == name);
    let operands: Vec<&str> = node.input.iter().map(String::as_str).collect();
    let conv = operands.get(..operands.len().min(3)).unwrap_or_default();
    let conv = if conv.last() == Some(&"") { &conv[..conv.len() - 1] } else { conv };
    let own = |x: &&AttributeProto| !x.name.starts_with("activation");
    let mut value = steps.push("Conv", conv, node.attribute.iter().filter(own).cloned().collect(), "conv");
    if let Some(z) = operands.get(3).filter(|z| !z.is_empty()) {
        value = steps.push("Add", &[&value, z], vec![], "sum");
    }
    let parameters = attribute("activation_params").map_or(&[][..], |x| &x.floats);
    let float = |name: &str, at: usize| {
        let f = parameters.get(at).copied().unwrap_or_default();
        AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() }
    };
    match attribute("activation").map(|x| String::from_utf8_lossy(&x.s).into_owned()).as_deref() {
        None | Some("") => {}
        Some("Clip") => {
            for (at, op, bound) in [(0, "Max", "least"), (1, "Min", "most")] {
                let number = steps.push("Constant", &[], vec![float("value_float", at)], bound);
                value = steps.push(op, &[&value, &number], vec![], &format!("above/{bound}"));
            }
        }
        Some("LeakyRelu") => _ = steps.push("LeakyRelu", &[&value], vec![float("alpha", 0)], "leaky"),
        Some("HardSigmoid") => {
            let attributes = vec![float("alpha", 0), float("beta", 1)];
            _ = steps.push("HardSigmoid", &[&value], attributes, "hard");
        }
        // What tract does not know by this name is refused when it parses the node.
        Some(other) => _ = steps.push(other, &[&value], vec![], "activation"),
    }
    if let Some(last) = steps.nodes.last_mut() {
        last.output = node.output;
        last.name = node.name;
    }
    steps.nodes
}

/// Nodes that stand for one.
struct Steps {
    prefix: String,
    /// A value of the type that factors get.
    like: String,
    nodes: Vec<NodeProto>,
}

impl Steps {
    fn push(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>, name: &str) -> String {
        let output = format!("{}/{name}", self.prefix);
        self.nodes.push(NodeProto {
            op_type: op.into(),
            input: inputs.iter().map(|s| s.to_string()).collect(),
            output: vec![output.clone()],
            attribute,
            ..Default::default()
        });
        output
    }

    fn transpose(&mut self, value: &str, wanted: bool, name: &str) -> String {
        if wanted { self.push("Transpose", &[value], vec![], name) } else { value.to_string() }
    }

    fn scale(&mut self, value: &str, factor: f32, name: &str) -> String {
        if factor == 1.0 {
            return value.to_string();
        }
        let r#type = AttributeType::Float as i32;
        let attribute =
            AttributeProto { name: "value_float".into(), r#type, f: factor, ..Default::default() };
        let number = self.push("Constant", &[], vec![attribute], &format!("{name}/f32"));
        let like = self.like.clone();
        let number = self.push("CastLike", &[&number, &like], vec![], &format!("{name}/factor"));
        self.push("Mul", &[value, &number], vec![], name)
    }
}

fn tensor_type(value: &mut ValueInfoProto) -> Option<&mut type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = value.r#type.as_mut()?.value.as_mut()?;
    Some(tensor)
}

/// Graph inputs without initializer, and graph outputs.
fn interface(model: &ModelProto) -> Result<Interface, RuntimeError> {
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| RuntimeError::Malformed { runtime: NAME, reason: "there is no graph".into() })?;
    let constants: HashSet<&str> = graph.initializer.iter().map(|t| &*t.name).collect();
    let inputs =
        graph.input.iter().filter(|v| !constants.contains(&*v.name)).map(port).collect::<Result<_, _>>();
    let outputs = graph.output.iter().map(port).collect::<Result<_, _>>();
    Ok(Interface { inputs: inputs?, outputs: outputs? })
}

fn port(value: &ValueInfoProto) -> Result<Port, RuntimeError> {
    let name = value.name.clone();
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err(unsupported(format!("{name} is not a tensor")));
    };
    let dtype = DType::from_code(tensor.elem_type)
        .ok_or_else(|| unsupported(format!("{name} has element type {}", tensor.elem_type)))?;
    let shape = tensor.shape.as_ref().map(|shape| {
        use tensor_shape_proto::dimension::Value;
        shape
            .dim
            .iter()
            .map(|dim| match &dim.value {
                Some(Value::DimValue(n)) => u64::try_from(*n).map_or(Dim::Unknown, Dim::Known),
                Some(Value::DimParam(name)) if !name.is_empty() => Dim::Symbol(name.as_str().into()),
                _ => Dim::Unknown,
            })
            .collect()
    });
    Ok(Port { name, ty: TensorType { dtype, shape } })
}

/// A tensor as tract takes it.
fn to_tract(tensor: &Tensor) -> Result<TractTensor, RuntimeError> {
    let shape: Vec<usize> = tensor
        .dims
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| unsupported(format!("a dimension of {}", tensor.ty())))?;
    let bytes = tensor.bytes()?;
    macro_rules! elements {
        ($t:ty) => {{
            let (chunks, _) = bytes.as_chunks::<{ size_of::<$t>() }>();
            TractTensor::from_shape(
                &shape,
                &chunks.iter().map(|c| <$t>::from_le_bytes(*c)).collect::<Vec<$t>>(),
            )
        }};
    }
    match tensor.dtype {
        DType::Bool => TractTensor::from_shape(&shape, &bytes.iter().map(|b| *b != 0).collect::<Vec<bool>>()),
        DType::F16 => elements!(f16),
        DType::F32 => elements!(f32),
        DType::F64 => elements!(f64),
        DType::I8 => elements!(i8),
        DType::I16 => elements!(i16),
        DType::I32 => elements!(i32),
        DType::I64 => elements!(i64),
        DType::U8 => elements!(u8),
        DType::U16 => elements!(u16),
        DType::U32 => elements!(u32),
        DType::U64 => elements!(u64),
        other => return Err(unsupported(format!("tensors of {other}"))),
    }
    .map_err(|e| failed(message(&e)))
}

/// A tensor that tract computed.
fn from_tract(tensor: &TractTensor, name: &str) -> Result<Tensor, RuntimeError> {
    let read = || -> TractResult<Option<(DType, Vec<u8>)>> {
        // Sizes and indices are symbolic inside tract; with concrete inputs they are numbers.
        let tensor = match tensor.datum_type() {
            DatumType::TDim => tensor.cast_to_dt(DatumType::I64)?,
            other => tensor.cast_to_dt(other.unquantized())?,
        };
        let view = tensor.try_as_plain_ram()?;
        macro_rules! elements {
            ($t:ty) => {
                view.as_slice::<$t>()?.iter().flat_map(|x| x.to_le_bytes()).collect()
            };
        }
        Ok(Some(match tensor.datum_type() {
            DatumType::Bool => (DType::Bool, view.as_slice::<bool>()?.iter().map(|b| *b as u8).collect()),
            DatumType::F16 => (DType::F16, elements!(f16)),
            DatumType::F32 => (DType::F32, elements!(f32)),
            DatumType::F64 => (DType::F64, elements!(f64)),
            DatumType::I8 => (DType::I8, elements!(i8)),
            DatumType::I16 => (DType::I16, elements!(i16)),
            DatumType::I32 => (DType::I32, elements!(i32)),
            DatumType::I64 => (DType::I64, elements!(i64)),
            DatumType::U8 => (DType::U8, elements!(u8)),
            DatumType::U16 => (DType::U16, elements!(u16)),
            DatumType::U32 => (DType::U32, elements!(u32)),
            DatumType::U64 => (DType::U64, elements!(u64)),
            _ => return Ok(None),
        }))
    };
    let (dtype, bytes) = guard(read)
        .map_err(failed)?
        .ok_or_else(|| unsupported(format!("output {name} of type {:?}", tensor.datum_type())))?;
    Ok(Tensor::raw(dtype, tensor.shape().iter().map(|&d| d as u64).collect(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use tract_onnx::pb::{FunctionProto, SparseTensorProto, StringStringEntryProto};

    fn load_error(model: ModelFile) -> String {
        Tract.load(&model).err().map(|e| e.to_string()).unwrap_or_default()
    }

    fn run(model: ModelFile, inputs: &[Named]) -> Result<Vec<Named>, RuntimeError> {
        Ok(Tract.load(&model)?.run(inputs)?.tensors)
    }

    fn unary(op: &str) -> ModelBuilder {
        ModelBuilder::new().input("x", DType::F32, &["N", "2"]).output("y", DType::F32, &["N", "2"]).node(
            op,
            &["x"],
            &["y"],
        )
    }

    fn x() -> Vec<Named> {
        vec![("x".into(), f32s(&[1, 2], &[-1.5, 2.0]))]
    }

    #[test]
    fn outputs_come_by_name_in_the_order_of_the_graph() {
        let model = unary("Relu").output("z", DType::F32, &["N", "2"]).node("Neg", &["x"], &["z"]).file();
        let out = run(model, &x()).unwrap();
        assert_eq!(out[0], ("y".into(), f32s(&[1, 2], &[0.0, 2.0])));
        assert_eq!(out[1], ("z".into(), f32s(&[1, 2], &[1.5, -2.0])));
    }

    #[test]
    fn sizes_may_change_between_runs() {
        let mut session = Tract.load(&unary("Relu").file()).unwrap();
        for n in [1, 3, 2] {
            let x = f32s(&[n, 2], &vec![1.0; 2 * n as usize]);
            assert_eq!(session.run(&[("x".into(), x)]).unwrap().tensors[0].1.dims, [n, 2]);
        }
    }

    #[test]
    fn an_unknown_operator_is_named() {
        assert_eq!(load_error(unary("Foo").file()), "operator Foo is not supported by tract");
    }

    #[test]
    fn an_operator_of_another_domain_is_refused_even_under_a_standard_name() {
        let model = unary("Relu").edit(|_, g| g.node[0].domain = "dmopt.ops".into()).file();
        assert_eq!(load_error(model), "operator dmopt.ops::Relu is not supported by tract");
        let model = unary("Relu").edit(|_, g| g.node[0].domain = "ai.onnx".into()).file();
        assert_eq!(load_error(model), "");
    }

    #[test]
    fn a_function_is_refused_even_for_a_standard_operator() {
        let function =
            FunctionProto { name: Some("Relu".into()), domain: Some("".into()), ..Default::default() };
        let model = unary("Relu").edit(|p, _| p.functions.push(function.clone())).file();
        assert_eq!(load_error(model), "operator Relu is not supported by tract");
        let model = unary("Neg").edit(|p, _| p.functions.push(function)).file();
        assert_eq!(load_error(model), "", "a function that nothing calls does no harm");
    }

    #[test]
    fn bodies_are_checked_too() {
        let branch = |op: &str| {
            let mut graph =
                ModelBuilder::new().node(op, &["x"], &["b"]).output("b", DType::F32, &["N", "2"]).graph;
            graph.node[0].domain = if op == "Relu" { "dmopt.ops".into() } else { String::new() };
            graph
        };
        let model = ModelBuilder::new()
            .input("c", DType::Bool, &[])
            .input("x", DType::F32, &["N", "2"])
            .node_with(
                "If",
                &["c"],
                &["y"],
                vec![body("then_branch", branch("Neg")), body("else_branch", branch("Relu"))],
            )
            .output("y", DType::F32, &["N", "2"]);
        assert_eq!(load_error(model.file()), "operator dmopt.ops::Relu is not supported by tract");
    }

    #[test]
    fn sparse_initializers_are_refused() {
        let model = unary("Relu").edit(|_, g| g.sparse_initializer.push(SparseTensorProto::default())).file();
        assert_eq!(load_error(model), "not supported by tract: sparse initializers");
    }

    #[test]
    fn bfloat16_is_refused() {
        let model = ModelBuilder::new()
            .input("x", DType::BF16, &["2"])
            .output("y", DType::BF16, &["2"])
            .node("Neg", &["x"], &["y"]);
        assert!(load_error(model.file()).contains("Bfloat16"));
    }

    #[test]
    fn bytes_that_are_no_model_are_malformed() {
        let file = ModelFile { bytes: bytes::Bytes::from_static(b"not a model"), folder: None };
        assert!(load_error(file).starts_with("tract cannot parse the model: "));
        let empty = ModelFile { bytes: bytes::Bytes::new(), folder: None };
        assert_eq!(load_error(empty), "tract cannot parse the model: there is no graph");
    }

    #[test]
    fn an_undefined_operand_is_an_error() {
        let model = unary("Relu").edit(|_, g| g.node[0].input[0] = "nowhere".into()).file();
        assert_eq!(load_error(model), "tract cannot parse the model: nothing defines nowhere");
    }

    #[test]
    fn a_panic_in_tract_becomes_an_error() {
        // tract indexes its table of values by the name of the output, which nothing defines here.
        let model = unary("Relu").edit(|_, g| g.node[0].output[0] = "other".into()).file();
        assert!(load_error(model).starts_with("tract failed: "));
    }

    #[test]
    fn nodes_of_the_same_name_run() {
        let model = ModelBuilder::new()
            .input("x", DType::F32, &["N", "2"])
            .output("y", DType::F32, &["N", "2"])
            .node("Neg", &["x"], &["a"])
            .node("Neg", &["a"], &["y"])
            .edit(|_, g| g.node.iter_mut().for_each(|n| n.name = "x".into()));
        assert_eq!(run(model.file(), &x()).unwrap()[0].1, x()[0].1);
    }

    #[test]
    fn inputs_with_initializers_are_constants() {
        let model = ModelBuilder::new()
            .input("w", DType::F32, &["2"])
            .input("x", DType::F32, &["N", "2"])
            .constant("w", &f32s(&[2], &[2.0, 3.0]))
            .output("y", DType::F32, &["N", "2"])
            .node("Mul", &["x", "w"], &["y"]);
        let session = Tract.load(&model.clone().file()).unwrap();
        assert_eq!(session.interface().inputs.len(), 1);
        assert_eq!(run(model.file(), &x()).unwrap()[0].1, f32s(&[1, 2], &[-3.0, 6.0]));
    }

    #[test]
    fn external_data_is_read_from_the_folder_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("weights"), [0u8, 0, 0, 0, 0, 0, 0x40, 0x40]).unwrap();
        let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
        let model = unary("Relu").edit(|_, g| {
            let mut w = tensor_proto("w", &f32s(&[1], &[0.0]));
            w.raw_data.clear();
            w.data_location = Some(1);
            w.external_data = vec![entry("location", "weights"), entry("offset", "4"), entry("length", "4")];
            g.initializer.push(w);
            g.node[0].op_type = "Mul".into();
            g.node[0].input.push("w".into());
        });
        let mut file = model.file();
        assert!(load_error(file.clone()).contains("external data"));
        file.folder = Some(folder.path().to_owned());
        assert_eq!(run(file, &x()).unwrap()[0].1, f32s(&[1, 2], &[-4.5, 6.0]));
    }

    #[test]
    fn every_type_that_tract_has_passes_through() {
        use DType::*;
        for dtype in [Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64] {
            let model = ModelBuilder::new().input("x", dtype, &["N"]).output("y", dtype, &["N"]).node(
                "Identity",
                &["x"],
                &["y"],
            );
            let value = crate::inputs::random_tensor(&mut crate::inputs::Rng::new(3), dtype, &[5]).unwrap();
            let out = run(model.file(), &[("x".into(), value.clone())]).unwrap();
            assert_eq!(out[0].1, value, "{dtype}");
        }
    }

    #[test]
    fn gemm_keeps_the_type_of_its_operands() {
        let tensor = |dtype, dims: &[u64], v: &[f64]| Tensor::from_f64(dtype, dims.to_vec(), v).unwrap();
        for dtype in [DType::F16, DType::F32, DType::F64] {
            let model = ModelBuilder::new()
                .input("a", dtype, &["3", "2"])
                .constant("b", &tensor(dtype, &[2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, -1.0]))
                .constant("c", &tensor(dtype, &[2], &[10.0, 20.0]))
                .output("y", dtype, &["2", "2"])
                .node_with(
                    "Gemm",
                    &["a", "b", "c"],
                    &["y"],
                    vec![int("transA", 1), int("transB", 1), float("alpha", 0.5), float("beta", 2.0)],
                );
            let a = tensor(dtype, &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let y = run(model.file(), &[("a".into(), a)]).unwrap();
            assert_eq!(y[0].1, tensor(dtype, &[2, 2], &[25.5, 39.0, 27.0, 39.0]), "{dtype}");
        }
    }

    #[test]
    fn a_fused_convolution_adds_and_activates() {
        let text = |name: &str, value: &str| AttributeProto {
            name: name.into(),
            r#type: AttributeType::String as i32,
            s: value.into(),
            ..Default::default()
        };
        let numbers = |values: &[f32]| AttributeProto {
            name: "activation_params".into(),
            r#type: AttributeType::Floats as i32,
            floats: values.to_vec(),
            ..Default::default()
        };
        let fused = |inputs: &[&str], attributes: Vec<AttributeProto>| {
            let model = ModelBuilder::new()
                .input("x", DType::F32, &["1", "2", "2"])
                .input("z", DType::F32, &["1", "2", "2"])
                .constant("w", &f32s(&[2, 1, 1], &[2.0, -1.0]))
                .constant("b", &f32s(&[2], &[0.5, 0.0]))
                .output("y", DType::F32, &["1", "2", "2"])
                .node_with("FusedConv", inputs, &["y"], [vec![int("group", 2)], attributes].concat())
                .edit(|_, g| g.node[0].domain = "com.microsoft".into());
            let x = ("x".to_string(), f32s(&[1, 2, 2], &[1.0, -2.0, 3.0, -4.0]));
            let z = ("z".to_string(), f32s(&[1, 2, 2], &[1.0, 1.0, -8.0, 0.0]));
            let values = run(model.file(), &[x, z]).unwrap()[0].1.to_f64().unwrap();
            values.into_iter().map(|v| (v * 100.0).round() / 100.0).collect::<Vec<_>>()
        };
        let all = ["x", "w", "b", "z"];
        assert_eq!(fused(&["x", "w"], vec![]), [2.0, -4.0, -3.0, 4.0]);
        assert_eq!(fused(&["x", "w", "b"], vec![]), [2.5, -3.5, -3.0, 4.0]);
        assert_eq!(fused(&["x", "w", "", "z"], vec![]), [3.0, -3.0, -11.0, 4.0]);
        assert_eq!(fused(&all, vec![text("activation", "Relu")]), [3.5, 0.0, 0.0, 4.0]);
        assert_eq!(fused(&all, vec![text("activation", "Tanh")]), [1.0, -0.99, -1.0, 1.0]);
        assert_eq!(
            fused(&all, vec![text("activation", "LeakyRelu"), numbers(&[0.5])]),
            [3.5, -1.25, -5.5, 4.0]
        );
        assert_eq!(
            fused(&all, vec![text("activation", "Clip"), numbers(&[-1.0, 3.0])]),
            [3.0, -1.0, -1.0, 3.0]
        );
        let hard = vec![text("activation", "HardSigmoid"), numbers(&[0.25, 0.5])];
        assert_eq!(fused(&all, hard), [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn watched_values_are_shown_by_name() {
        let model =
            unary("Neg").edit(|_, g| g.node[0].output[0] = "inside".into()).node("Abs", &["inside"], &["y"]);
        let mut session = Tract.load(&model.file()).unwrap();
        assert_eq!(session.values(), ["inside"]);
        assert!(session.run(&x()).unwrap().watched.is_empty());
        session.watch(&["inside".into(), "nowhere".into()], 100);
        let out = session.run(&x()).unwrap();
        assert_eq!(out.watched, [("inside".to_string(), f32s(&[1, 2], &[1.5, -2.0]))]);
        assert_eq!(out.tensors[0].1, f32s(&[1, 2], &[1.5, 2.0]));
        session.watch(&["inside".into()], 7);
        assert!(session.run(&x()).unwrap().watched.is_empty(), "8 bytes do not fit into 7");
    }

    #[test]
    fn values_that_do_not_all_fit_are_thinned_evenly() {
        assert_eq!(thin(&[10; 6], 60), [0, 1, 2, 3, 4, 5]);
        assert_eq!(thin(&[10; 6], 59), [0, 2, 4]);
        assert_eq!(thin(&[10; 6], 20), [0, 3]);
        assert_eq!(thin(&[10; 6], 9), [0; 0]);
        assert_eq!(thin(&[], 9), [0; 0]);
    }

    #[test]
    fn sizes_computed_by_the_model_are_integers() {
        let model = ModelBuilder::new()
            .input("x", DType::F32, &["N", "2"])
            .output("y", DType::I64, &["2"])
            .node("Shape", &["x"], &["y"]);
        assert_eq!(run(model.file(), &x()).unwrap()[0].1, Tensor::i64s(&[1, 2]));
    }
}
