//! The embedded runtime: tract.
//!
//! A model is parsed once and prepared again whenever input shapes change: sizes are concrete by the time that
//! tract infers types, so symbolic dimensions never meet its own algebra. It runs as translated, without tract's
//! own graph optimizations, because those rearrange arithmetic differently in two models that are the same:
//! operator by operator, an exact rewrite gives the same bits.
//!
//! Panics in tract become errors, which needs `panic = "unwind"`, the default.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Instant;

use dmopt_ir::{DType, Dim, Tensor, TensorType};
use half::f16;
use tract_onnx::model::ParseResult;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto, type_proto};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TVec,
    Tensor as TractTensor, TractError, TractResult, TypedRunnableModel,
};

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
        let functions = proto.functions.iter().map(|f| (standard(f.domain()), f.name().to_string())).collect();
        let operators = onnx.op_register.0.keys().map(String::as_str).collect();
        if let Some(graph) = &mut proto.graph {
            check(graph, &Known { operators, functions })?;
            prepare(graph, true);
        }
        let folder = folder(model)?;
        let ParseResult { model, unresolved_inputs, .. } =
            guard(|| onnx.parse(&proto, folder)).map_err(failed)?;
        if let Some(name) = unresolved_inputs.first() {
            return Err(RuntimeError::Malformed { runtime: NAME, reason: format!("nothing defines {name}") });
        }
        Ok(Box::new(Loaded { interface, model, prepared: None }))
    }
}

/// A parsed model and its last preparation.
struct Loaded {
    interface: Interface,
    model: InferenceModel,
    prepared: Option<(Vec<Vec<usize>>, Arc<TypedRunnableModel>)>,
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
        let plan = self.prepare(&values)?;
        let values: TVec<_> = values.into_iter().map(IntoTValue::into_tvalue).collect();
        let start = Instant::now();
        let results = guard(|| plan.run(values)).map_err(failed)?;
        let wall = start.elapsed();
        let tensors = self
            .interface
            .outputs
            .iter()
            .zip(results)
            .map(|(port, value)| Ok((port.name.clone(), from_tract(&value.into_tensor(), &port.name)?)))
            .collect::<Result<_, RuntimeError>>()?;
        Ok(Outputs { tensors, wall, peak_bytes: None })
    }
}

impl Loaded {
    /// The model with types inferred for inputs of these shapes.
    fn prepare(&mut self, values: &[TractTensor]) -> Result<Arc<TypedRunnableModel>, RuntimeError> {
        let shapes: Vec<Vec<usize>> = values.iter().map(|v| v.shape().to_vec()).collect();
        if let Some((known, plan)) = &self.prepared
            && *known == shapes
        {
            return Ok(plan.clone());
        }
        let mut model = self.model.clone();
        let plan = guard(|| {
            for (i, value) in values.iter().enumerate() {
                model.set_input_fact(i, InferenceFact::dt_shape(value.datum_type(), value.shape()))?;
            }
            model.into_typed()?.into_runnable()
        })
        .map_err(failed)?;
        self.prepared = Some((shapes, plan.clone()));
        Ok(plan)
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

/// Runs code that may panic; the panic message becomes the error and does not reach the terminal.
fn guard<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                previous(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(message(&e)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            Err(text.to_string())
        }
    }
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
        if !id.0.is_empty() || known.functions.contains(&id) || !known.operators.contains(&*node.op_type) {
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

/// Clears what tract trips over: nodes of the same name (it wants them unique, ONNX does not), and symbolic sizes
/// in the declared inputs of bodies, which no size that a run chooses could match.
fn prepare(graph: &mut GraphProto, top: bool) {
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
            for dim in tensor_type(input).and_then(|t| t.shape.as_mut()).into_iter().flat_map(|s| &mut s.dim) {
                if matches!(dim.value, Some(tensor_shape_proto::dimension::Value::DimParam(_))) {
                    dim.value = None;
                }
            }
        }
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
    let inputs = graph.input.iter().filter(|v| !constants.contains(&*v.name)).map(port).collect::<Result<_, _>>();
    let outputs = graph.output.iter().map(port).collect::<Result<_, _>>();
    Ok(Interface { inputs: inputs?, outputs: outputs? })
}

fn port(value: &ValueInfoProto) -> Result<Port, RuntimeError> {
    let name = value.name.clone();
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
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
            TractTensor::from_shape(&shape, &chunks.iter().map(|c| <$t>::from_le_bytes(*c)).collect::<Vec<$t>>())
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
