//! Models that are broken, or made to break their reader: each is refused in one line or passed through, in little
//! memory and time. What concerns single files and tensors is in `onnx/tests`, random damage in `fuzz`.
#![cfg(unix)]

use std::fs;
use std::process::Command;

use dmopt::ir::text::parse_model;
use dmopt::onnx;
use dmopt::onnx::schema::*;

use super::cli::{Desk, bytes, proto};

/// Address space in KiB, and processor time in seconds, that a process may take: much less than what the models here
/// would take from whoever believes them.
const LIMITS: &str = "ulimit -v 4194304; ulimit -t 20";

/// `optimize m.onnx` with all passes, as it comes and without running the models; exit codes and what was said.
fn optimize(desk: &Desk) -> [(Option<i32>, String); 2] {
    ["", "--no-validate --verify"].map(|options| {
        let script = format!("{LIMITS}; exec \"$0\" optimize m.onnx out.onnx {options} -v 2>&1");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_dmopt")]).current_dir(desk.path(""));
        shell
            .env("PATH", "")
            .env_remove("DMOPT_PYTHON")
            .env_remove("ORT_DYLIB_PATH")
            .env_remove("VIRTUAL_ENV");
        let output = shell.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

fn desk(model: ModelProto) -> Desk {
    let desk = Desk::new();
    fs::write(desk.path("m.onnx"), bytes(model)).unwrap();
    desk
}

/// Every way ends with exit code 1 and one line with these words.
fn refused(model: ModelProto, about: &[&str]) {
    let desk = desk(model);
    for (code, said) in optimize(&desk) {
        let last = said.lines().last().unwrap_or_default();
        assert_eq!(code, Some(1), "{said}");
        assert!(last.starts_with("error: m.onnx: "), "{said}");
        for part in about {
            assert!(last.contains(part), "'{last}' does not mention '{part}'");
        }
    }
    assert_eq!(desk.files(), ["m.onnx"]);
}

/// Every way ends well, and the result can be read.
fn passed(model: ModelProto) {
    let desk = desk(model);
    for (code, said) in optimize(&desk) {
        assert_eq!(code, Some(0), "{said}");
        onnx::load(&desk.path("out.onnx")).unwrap();
    }
    assert_eq!(desk.files(), ["m.onnx", "out.onnx"]);
}

/// `y = Op(x, w)` around a weight.
fn with_weight(change: impl FnOnce(&mut TensorProto)) -> ModelProto {
    let mut model =
        proto("g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }");
    change(&mut model.graph.as_mut().unwrap().initializer[0]);
    model
}

fn external(tensor: &mut TensorProto, location: &str, offset: u64, length: u64) {
    tensor.raw_data = None;
    tensor.float_data = Default::default();
    tensor.data_location = Some(DataLocation::External.into());
    let reference = onnx::Reference { location: location.into(), offset, length: Some(length) };
    tensor.external_data = reference.entries();
}

#[test]
fn external_data_that_lead_out_of_the_folder_are_refused_at_once() {
    for (location, reason) in [
        ("/etc/passwd", "absolute"),
        ("../m.onnx", "leaves the model's folder"),
        ("sub/../../m.onnx", "leaves the model's folder"),
        ("", "names no file"),
    ] {
        refused(with_weight(|w| external(w, location, 0, 16)), &["tensor 'w'", reason]);
    }
    let desk = desk(with_weight(|w| external(w, "link", 0, 16)));
    std::os::unix::fs::symlink("/etc/passwd", desk.path("link")).unwrap();
    desk.refuses("optimize m.onnx --no-validate", 1, &["m.onnx: tensor 'w'", "symbolic link"]);
}

#[test]
fn ranges_beyond_the_file_or_of_another_size_are_refused_at_once() {
    for (offset, length, reason) in [
        (1, 16, "bytes 1..17 are wanted, it has 16"),
        (u64::MAX, 16, "it has 16"),
        (0, u64::MAX, "it has 16"),
        (0, 12, "12"),
        (0, 8, "8"),
    ] {
        let desk = desk(with_weight(|w| external(w, "data", offset, length)));
        fs::write(desk.path("data"), [0; 16]).unwrap();
        desk.refuses("optimize m.onnx --no-validate", 1, &["m.onnx: ", "'w'", reason]);
    }
}

#[test]
fn ranges_may_overlap() {
    let mut model = proto(
        "g (float[2,2] x) => (float[2,2] y) <float[2,2] w, float[2,2] v> { a = MatMul(x, w) y = MatMul(a, v) }",
    );
    for (tensor, offset) in model.graph.as_mut().unwrap().initializer.iter_mut().zip([0, 4]) {
        external(tensor, "data", offset, 16);
    }
    let desk = desk(model);
    fs::write(desk.path("data"), [0x3d; 20]).unwrap();
    desk.run("optimize m.onnx out.onnx --require-validation -q --passes drop-dead");
    desk.run("optimize m.onnx out.onnx -q").succeeds();
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    refused(with_weight(|w| w.dims = vec![-1, -4]), &["'w'", "dimension -1 is negative"]);
    refused(with_weight(|w| w.dims = vec![i64::MAX, i64::MAX]), &["'w'", "beyond all bounds"]);
    refused(with_weight(|w| w.dims = vec![1 << 62, 2]), &["'w'"]);
    refused(with_weight(|w| w.dims = vec![1 << 31, 1 << 32]), &["'w'"]);
    refused(with_weight(|w| w.dims = vec![2, 3]), &["'w'", "24", "16"]);
    refused(with_weight(|w| w.data_type = Some(77)), &["'w'", "element type 77"]);
    refused(
        with_weight(|w| {
            external(w, "data", 0, 0);
            w.external_data.truncate(1);
            w.dims = vec![1 << 31, 1 << 32];
        }),
        &["'w'"],
    );
}

#[test]
fn negative_sizes_of_inputs_are_refused_or_taken_as_open() {
    let mut model = proto("g (float[2,2] x) => (float[2,2] y) { y = Relu(x) }");
    let graph = model.graph.as_mut().unwrap();
    let ty = graph.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
    for (dim, size) in ty.shape.as_mut().unwrap().dim.iter_mut().zip([-1, i64::MIN]) {
        dim.dim_value = Some(size);
    }
    for (code, said) in optimize(&desk(model)) {
        assert!(matches!(code, Some(0 | 1)), "{said}");
    }
}

/// Whether a fold stays within its budget does not depend on who asks for the bytes.
#[test]
fn what_would_grow_without_bounds_is_not_folded() {
    for line in [
        "t = ConstantOfShape(n)",
        "o = ConstantOfShape(n) t = Exp(o)",
        "t = Expand(s, n)",
        "o = Expand(s, n) t = Transpose(o)",
        "r = Reshape(s, one) t = Tile(r, big)",
        "t = Range(zero, big1, step)",
        "i = ConstantOfShape(n) j = Shape(i) k = ConstantOfShape(j) t = Cast<to = 1>(k)",
        "e = ConstantOfShape(two) f = EyeLike(e) t = Cast<to = 1>(f)",
        "p = Reshape(s, one) t = Pad(p, pads)",
        "h = OneHot(index, depth, values) t = Cast<to = 1>(h)",
    ] {
        let text = format!(
            "g (float[1] x) => (float[?] y)
             <int64[2] n = {{1048576, 1048576}}, int64[2] two = {{2097152, 2097152}}, int64[1] one = {{1}},
              int64[1] big = {{1099511627776}}, int64 zero = {{0}}, int64 big1 = {{4611686018427387904}},
              int64 step = {{1}}, int64[2] pads = {{0, 1099511627776}}, float s = {{2.0}}, int64[1] index = {{3}},
              int64 depth = {{1099511627776}}, float[2] values = {{0, 1}}> {{
              {line} z = Shape(t) f32 = Cast<to = 1>(z) y = Add(x, f32) }}"
        );
        let desk = desk(proto(&text));
        for (code, said) in optimize(&desk) {
            assert!(code == Some(0), "{line}: {code:?}: {said}");
        }
    }
}

/// Lists of a number for each channel would be larger than the memory.
#[test]
fn there_may_be_any_number_of_channels() {
    for text in [
        "g (float[1,1152921504606846976] x) => (float[1,1152921504606846976] y) <float s = {2}> { y = Mul(x, s) }",
        "g (float[1,1,1] x) => (float[1,1152921504606846976,1] y)
         <float[1152921504606846976,0,1] w = {}, float s = {2}> { c = Conv(x, w) y = Mul(c, s) }",
    ] {
        passed(proto(text));
    }
}

#[test]
fn values_beyond_the_memory_are_not_computed_for_validation() {
    let text = "g (float[1] x) => (float[?,?] y) <int64[2] n = {1048576, 1048576}> {
        t = ConstantOfShape(n) y = Add(x, t) }";
    let desk = desk(proto(text));
    let [(code, said), _] = optimize(&desk);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("skipped"), "{said}");
}

/// Bodies within bodies, up to where protobuf stops.
#[test]
fn bodies_may_be_nested_as_deeply_as_files_can_say() {
    let nested = |depth: usize| {
        let mut text = "r = Relu(x)".to_string();
        let mut result = "r".to_string();
        for level in 0..depth {
            text = format!(
                "o{level} = If (c) < then_branch = t{level} () => (float[2] {result}) {{ {text} }},
                   else_branch = e{level} () => (float[2] q{level}) {{ q{level} = Neg(x) }} >"
            );
            result = format!("o{level}");
        }
        let text = format!("g (bool c, float[2] x) => (float[2] {result}) {{ {text} }}");
        parse_model(&text).map(|model| onnx::export(&model, &Default::default()).unwrap())
    };
    passed(nested(20).unwrap());
    // The text form stops somewhere too.
    let deep = nested(300);
    assert!(deep.is_err_and(|error| error.to_string().contains("nested too deeply")));

    let mut graph = GraphProto::default();
    for _ in 0..60 {
        let attribute = AttributeProto {
            name: Some("body".into()),
            r#type: Some(AttributeType::Graph.into()),
            g: Some(Box::new(graph)),
            ..Default::default()
        };
        let node =
            NodeProto { op_type: Some("Loop".into()), attribute: vec![attribute], ..Default::default() };
        graph = GraphProto { node: vec![node], ..Default::default() };
    }
    let mut model = proto("g (float[2] x) => (float[2] y) { y = Relu(x) }");
    model.graph = Some(graph);
    refused(model, &["nested more than 100 deep"]);
}

#[test]
fn functions_may_call_themselves() {
    let mut model = proto(
        "<ir_version: 10, opset_import: [\"\": 21, \"f\": 1]> g (float[2] x) => (float[2] y) { y = f.again(x) }",
    );
    let call = |name: &str, from: &str, to: &str| NodeProto {
        op_type: Some(name.into()),
        domain: Some("f".into()),
        input: vec![from.into()],
        output: vec![to.into()],
        ..Default::default()
    };
    let function = |name: &str, calls: &str| FunctionProto {
        name: Some(name.into()),
        domain: Some("f".into()),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![call(calls, "a", "b")],
        opset_import: model.opset_import.clone(),
        ..Default::default()
    };
    let functions = vec![function("again", "other"), function("other", "again")];
    model.functions = functions;
    passed(model);
}

#[test]
fn many_names_and_long_ones_take_no_more_than_their_length() {
    let long = "n".repeat(1 << 20);
    passed(proto(&format!("g (float[2] x) => (float[2] y) {{ {long} = Relu(x) y = Neg({long}) }}")));
}

#[test]
fn long_names_are_shortened_in_messages() {
    let long = "n".repeat(1 << 20);
    let text = format!("g (float[2] x) => (float[2] y) {{ {long} = Relu(x) y = Neg({long}) }}");
    let mut model = proto(&text);
    model.graph.as_mut().unwrap().node[0].output = vec!["another".to_string()];
    let desk = desk(model);
    desk.refuses("optimize m.onnx --no-validate", 1, &["nnnn...nnnn"]);
    assert!(desk.run("optimize m.onnx --no-validate").stderr().len() < 1000);
}

/// Text that clears the screen, rings the bell and colours what follows.
#[test]
fn names_do_not_control_the_terminal() {
    let named = |name: &str| {
        let mut model = proto(
            "<ir_version: 10, opset_import: [\"\": 21]> g (float[2] x) => (float[2] y) { t = Relu(x) y = Neg(t) }",
        );
        let graph = model.graph.as_mut().unwrap();
        graph.input[0].name = Some(name.to_string());
        graph.node[0].input = vec![name.to_string()];
        model
    };
    let name = "\x1b[2J\x07\x1b[31mred";
    let desk = desk(named(name));
    let escaped = r"\u{1b}[2J\u{7}\u{1b}[31mred";
    let table = desk.run("inspect m.onnx").succeeds().stdout();
    assert!(table.contains(escaped), "{table}");

    let text = desk.run("optimize m.onnx out.onnx --no-validate -q --print").succeeds().stdout();
    assert!(text.contains(r"\x1b[2J\x07\x1b[31mred") && !text.contains(['\x1b', '\x07']), "{text}");
    let again = parse_model(&text).unwrap().graph;
    assert_eq!(again.value(again.inputs()[0]).name, name);

    let mut broken = named(name);
    broken.graph.as_mut().unwrap().node[0].input = vec![format!("no{name}")];
    fs::write(desk.path("m.onnx"), bytes(broken)).unwrap();
    desk.refuses("optimize m.onnx --no-validate", 1, &[&format!("no{escaped}")]);
}
