//! A model as NVIDIA Triton serves it: the configuration (`config.pbtxt`) of its ONNX Runtime backend, with the settings
//! of the low-memory session.
//!
//! The keys are those that the backend documents (`triton-inference-server/onnxruntime_backend`, README): level -1 is
//! ONNX Runtime's BASIC, `enable_mem_arena` is that of the processor, `arena_extend_strategy` 1 lets the one of CUDA grow
//! by what is asked for.

use std::fmt::Write as _;

use dmopt_ir::{DType, Def, Graph, ValueId};
use dmopt_runtime::Ep;

/// What the first line of every configuration written here begins with.
pub const MARK: &str = "# Written by dmopt";

/// The configuration of a model of this name and interface. Sizes that are open are `-1`; batching is left to the model, whose
/// first dimension is one like any other.
///
/// # Errors
/// The name is none for a folder, an input or output is nothing that Triton can pass, or there are options of the provider,
/// some of which Triton calls otherwise: a sentence.
pub fn config(name: &str, graph: &Graph, ep: &Ep) -> Result<String, String> {
    check_name(name)?;
    let mut text = format!("{MARK}: the low-memory session of ONNX Runtime.\nname: {}\n", quoted(name));
    text.push_str("backend: \"onnxruntime\"\nmax_batch_size: 0\n");
    for (kind, ids) in [("input", graph.inputs()), ("output", graph.outputs())] {
        let ports: Vec<String> = ids.iter().map(|&id| port(graph, id)).collect::<Result<_, _>>()?;
        let _ = writeln!(text, "{kind} [\n{}\n]", ports.join(",\n"));
    }
    let kind = match ep {
        Ep::Cpu => "count: 1 kind: KIND_CPU".to_string(),
        Ep::Cuda { options, .. } if !options.is_empty() => {
            return Err(format!(
                "the options in '{ep}' have other names in Triton's configuration, and belong there"
            ));
        }
        Ep::Cuda { device, .. } => format!("count: 1 kind: KIND_GPU gpus: [ {device} ]"),
    };
    let _ = writeln!(text, "instance_group [ {{ {kind} }} ]");
    text.push_str("optimization { graph { level: -1 } }\n");
    let cuda = [("arena_extend_strategy", "1")];
    let cuda = if *ep == Ep::Cpu { &[][..] } else { &cuda[..] };
    for (key, value) in [("enable_mem_arena", "0"), ("enable_mem_pattern", "0")].iter().chain(cuda) {
        let _ = writeln!(text, "parameters {{ key: \"{key}\" value: {{ string_value: \"{value}\" }} }}");
    }
    Ok(text)
}

/// # Errors
/// The name is none for a folder: a sentence.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    match !name.is_empty() && !name.starts_with('.') && name.chars().all(plain) {
        true => Ok(()),
        false => Err(format!("'{name}' is no name for a model: letters, digits and _ - . + are")),
    }
}

fn port(graph: &Graph, id: ValueId) -> Result<String, String> {
    let value = graph.value(id);
    let name = &value.name;
    let ty = graph.tensor_type(id).ok_or_else(|| format!("{name} is no tensor of known type"))?;
    let dtype =
        data_type(ty.dtype).ok_or_else(|| format!("{name} is of type {}, which Triton lacks", ty.dtype))?;
    let shape = ty.shape.as_ref().ok_or_else(|| format!("the rank of {name} is not known"))?;
    let dims: Vec<String> =
        shape.iter().map(|dim| dim.known().map_or_else(|| "-1".to_string(), |n| n.to_string())).collect();
    // Triton has no tensors without dimensions of their own.
    let dims = match dims.is_empty() {
        true => "dims: [ 1 ] reshape: { shape: [ ] }".to_string(),
        false => format!("dims: [ {} ]", dims.join(", ")),
    };
    let optional = matches!(value.def, Def::Input { default: Some(_) });
    let optional = if optional { " optional: true" } else { "" };
    Ok(format!("  {{ name: {} data_type: {dtype} {dims}{optional} }}", quoted(name)))
}

fn data_type(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "TYPE_BOOL",
        DType::U8 => "TYPE_UINT8",
        DType::U16 => "TYPE_UINT16",
        DType::U32 => "TYPE_UINT32",
        DType::U64 => "TYPE_UINT64",
        DType::I8 => "TYPE_INT8",
        DType::I16 => "TYPE_INT16",
        DType::I32 => "TYPE_INT32",
        DType::I64 => "TYPE_INT64",
        DType::F16 => "TYPE_FP16",
        DType::F32 => "TYPE_FP32",
        DType::F64 => "TYPE_FP64",
        DType::String => "TYPE_STRING",
        DType::BF16 => "TYPE_BF16",
        _ => return None,
    })
}

/// A string in protobuf's text format.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => _ = write!(quoted, "\\{:03o}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::text::parse_model;

    fn graph(text: &str) -> Graph {
        parse_model(text).unwrap().graph
    }

    #[test]
    fn the_interface_and_the_settings_of_the_session_are_in_it() {
        let graph = graph(
            "f (float[N,3,8,8] x, int64 \"odd \\\"name\\\"\", float16[2] d = {1, 2}) => (float[N,?] y) { y = Foo(x, \"odd \\\"name\\\"\", d) }",
        );
        assert_eq!(
            config("net", &graph, &Ep::Cpu).unwrap(),
            r#"# Written by dmopt: the low-memory session of ONNX Runtime.
name: "net"
backend: "onnxruntime"
max_batch_size: 0
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1, 3, 8, 8 ] },
  { name: "odd \"name\"" data_type: TYPE_INT64 dims: [ 1 ] reshape: { shape: [ ] } },
  { name: "d" data_type: TYPE_FP16 dims: [ 2 ] optional: true }
]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
optimization { graph { level: -1 } }
parameters { key: "enable_mem_arena" value: { string_value: "0" } }
parameters { key: "enable_mem_pattern" value: { string_value: "0" } }
"#
        );
        let cuda = config("net", &graph, &Ep::cuda(1)).unwrap();
        let named = "cuda,prefer_nhwc=1".parse().unwrap();
        assert!(config("net", &graph, &named).unwrap_err().contains("'cuda,prefer_nhwc=1'"));
        assert!(
            cuda.contains("KIND_GPU gpus: [ 1 ]") && cuda.contains("\"arena_extend_strategy\""),
            "{cuda}"
        );
    }

    #[test]
    fn what_triton_cannot_serve_is_refused() {
        let odd = graph("f (uint4[2] x) => (float[2] y) { y = Foo(x) }");
        assert_eq!(config("net", &odd, &Ep::Cpu).unwrap_err(), "x is of type uint4, which Triton lacks");
        let plain = graph("f (float[2] x) => (float[2] y) { y = Relu(x) }");
        for name in ["", "a/b", "..", "a b"] {
            assert!(config(name, &plain, &Ep::Cpu).unwrap_err().contains("is no name for a model"));
        }
    }
}
