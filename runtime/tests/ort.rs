//! What is measured in ONNX Runtime. The library is the one that `DMOPT_ORT_LIB` names; without it, every test here
//! says that it was skipped. All of them run once more against the one that `DMOPT_ORT_LIB_OLD` names.

#![cfg(feature = "ort")]
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::PathBuf;

use dmopt_ir::{DType, Dim, Storage, Tensor, TensorType, text};
use dmopt_runtime::inputs::{Rng, random_tensor};
use dmopt_runtime::ort::{Ep, Level, Memory, OnnxRuntime, SessionKind, Settings};
use dmopt_runtime::{
    Backend, Inside, ModelFile, Named, Options, RuntimeError, Session, Status, Tolerance, compare_inside,
    latency, validate_with,
};

/// Bytes of one activation of the models here.
const T: u64 = 64 * 64 * 4;

/// The library under test, or `None` with a line that says so.
fn runtime() -> Option<OnnxRuntime> {
    match std::env::var_os("DMOPT_ORT_LIB") {
        Some(path) => Some(OnnxRuntime::load(&PathBuf::from(path)).unwrap()),
        None => {
            skipped("a test of ONNX Runtime (DMOPT_ORT_LIB names no library)");
            None
        }
    }
}

/// Not println!, whose output the test harness keeps to itself.
fn skipped(what: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}

/// Minor number of the version under test.
fn minor(runtime: &OnnxRuntime) -> u32 {
    runtime.library().version.split('.').nth(1).unwrap().parse().unwrap()
}

/// Initializers without values are zero.
fn model(source: &str) -> ModelFile {
    let zeros = |ty: &TensorType| {
        let sizes = ty.shape.iter().flatten().map(|d| if let Dim::Known(n) = d { *n } else { 1 });
        Storage::Raw(vec![0; (sizes.product::<u64>() * 4) as usize].into())
    };
    let model = text::parse_model_filled(source, &mut |_, ty| zeros(ty)).unwrap();
    let proto = dmopt_onnx::export(&model, &Default::default()).unwrap();
    ModelFile { bytes: dmopt_onnx::encode(&proto).concat().into(), folder: None }
}

fn inputs() -> Vec<Named> {
    vec![("x".to_string(), random_tensor(&mut Rng::new(7), DType::F32, &[64, 64]).unwrap())]
}

/// Eight products of `x` with scalars, brought together by `body`, which makes `y` of `m0..m7`; as the graph output
/// or followed by two more operators.
fn mixing(body: &str, interior: bool) -> ModelFile {
    let scalars: String = (0..8).map(|i| format!(", float s{i} = {{0.{}}}", i + 1)).collect();
    let (output, rest) =
        if interior { ("float[1,1] z", "r = Relu(y) z = ReduceMean(r)") } else { ("float[64,64] y", "") };
    model(&format!(
        "<ir_version: 8, opset_import: [\"\": 17]>
         g (float[64,64] x) => ({output}) <int64[1] axis = {{0}}{scalars}> {{ {body} {rest} }}"
    ))
}

fn products() -> String {
    (0..8).map(|i| format!("m{i} = Mul(x, s{i}) ")).collect()
}

/// `a1 = m0 + m1`, `a2 = a1 + m2`, ... `y`, each `m` right before its sum when `interleaved`.
fn chain(interleaved: bool) -> String {
    let mut text = if interleaved { "m0 = Mul(x, s0) ".to_string() } else { products() };
    for i in 1..8 {
        if interleaved {
            text += &format!("m{i} = Mul(x, s{i}) ");
        }
        let before = if i == 1 { "m0".to_string() } else { format!("a{}", i - 1) };
        let after = if i == 7 { "y".to_string() } else { format!("a{i}") };
        text += &format!("{after} = Add({before}, m{i}) ");
    }
    text
}

fn sum() -> String {
    products() + "y = Sum(m0, m1, m2, m3, m4, m5, m6, m7)"
}

fn concat() -> String {
    let mut text = products();
    for i in 0..8 {
        text += &format!("u{i} = Unsqueeze(m{i}, axis) ");
    }
    text + "c = Concat<axis = 0>(u0, u1, u2, u3, u4, u5, u6, u7) y = ReduceSum<keepdims = 0>(c, axis)"
}

fn measure(runtime: &OnnxRuntime, model: &ModelFile, kind: SessionKind) -> Memory {
    runtime.memory(model, kind, Ep::Cpu, &inputs()).unwrap()
}

/// Peaks in units of one activation: (pattern off, pattern on and steady).
fn peaks(runtime: &OnnxRuntime, body: &str, interior: bool) -> (u64, u64) {
    let model = mixing(body, interior);
    let tuned = measure(runtime, &model, SessionKind::Tuned);
    assert_eq!(tuned.first, tuned.steady, "without patterns every run is like the first");
    assert_eq!(tuned, measure(runtime, &model, SessionKind::Tuned), "the same figures twice");
    let default = measure(runtime, &model, SessionKind::Default);
    assert_eq!(default, measure(runtime, &model, SessionKind::Default), "the same figures twice");
    (tuned.steady.bytes / T, default.steady.bytes / T)
}

#[test]
fn peaks_of_a_mixing_site_are_known_to_the_byte() {
    let Some(runtime) = runtime() else { return };
    assert_eq!(peaks(&runtime, &sum(), true), (10, 11));
    assert_eq!(peaks(&runtime, &concat(), true), (16, 16));
    assert_eq!(peaks(&runtime, &chain(true), true), (9, 9));
    assert_eq!(peaks(&runtime, &chain(false), true), (3, 3));
    assert_eq!(peaks(&runtime, &sum(), false), (10, 10));
    assert_eq!(peaks(&runtime, &concat(), false), (16, 17));
    assert_eq!(peaks(&runtime, &chain(true), false), (9, 10));
    assert_eq!(peaks(&runtime, &chain(false), false), (3, 4));
}

#[test]
fn settings_may_be_chosen_one_by_one() {
    let Some(runtime) = runtime() else { return };
    let twins = model(
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[64,64] x) => (float[64,64] y)
         { a = Sin(x) b = Sin(x) y = Add(a, b) }",
    );
    let peak = |model, level, memory_pattern| {
        let settings = Settings { memory_pattern, arena: false, level };
        let memory = runtime.memory(model, settings, Ep::Cpu, &inputs()).unwrap();
        assert_eq!(memory.arena, None);
        (memory.first.bytes / T, memory.steady.bytes / T)
    };
    // Without rewrites both Sin run; with them the second is recognized as the first.
    assert_eq!(peak(&twins, Level::Disabled, false), (3, 3));
    assert_eq!(peak(&twins, Level::Basic, false), (2, 2));
    // The block of all values stands beside the output.
    let chain = mixing(&chain(false), false);
    assert_eq!(peak(&chain, Level::Disabled, false), (3, 3));
    assert_eq!(peak(&chain, Level::Disabled, true), (3, 4));
}

#[test]
fn a_peak_is_split_into_its_parts() {
    let Some(runtime) = runtime() else { return };
    let sums = measure(&runtime, &mixing(&sum(), false), SessionKind::Tuned).steady;
    // The kernel of Sum keeps two partial sums beside the eight products.
    match sums.scratch {
        Some(scratch) => assert_eq!((scratch, sums.activations), (2 * T, 8 * T)),
        None => assert_eq!(sums.activations, 10 * T),
    }
    let chained = measure(&runtime, &mixing(&chain(false), false), SessionKind::Default).steady;
    assert_eq!((chained.outputs, chained.bytes), (T, 4 * T), "the output is beside the block of all values");
}

#[test]
fn versions_that_tell_kernels_apart_tell_scratch_apart() {
    let Some(runtime) = runtime() else { return };
    let peak = measure(&runtime, &mixing(&sum(), false), SessionKind::Tuned).steady;
    assert_eq!(peak.scratch.is_some(), minor(&runtime) >= 30, "{}", runtime.library().version);
}

/// Versions before 1.27 unfold a whole image per thread where there are several images or groups.
#[test]
fn scratch_of_convolutions_follows_the_version() {
    let Some(runtime) = runtime() else { return };
    let model = model(
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[2,64,64,64] x) => (float[2,64,64,64] y)
         <float[64,64,3,3] w> { y = Conv<pads = [1, 1, 1, 1]>(x, w) }",
    );
    let x = random_tensor(&mut Rng::new(7), DType::F32, &[2, 64, 64, 64]).unwrap();
    let settings = Settings { memory_pattern: false, arena: false, level: Level::Disabled };
    let memory = runtime.memory(&model, settings, Ep::Cpu, &[("x".into(), x)]).unwrap();
    let output = 2 * 64 * 64 * 64 * 4;
    let unfolded = 64 * 9 * 64 * 64 * 4;
    let piece = 64 * 1024;
    let scratch = if minor(&runtime) < 27 { unfolded } else { piece };
    assert_eq!(memory.steady.bytes, output + scratch, "{memory:?}");
}

/// A process can use one library, so the other one gets a process of its own.
#[test]
fn all_of_it_holds_on_an_older_version() {
    let Some(old) = std::env::var_os("DMOPT_ORT_LIB_OLD") else {
        return skipped("tests of an older ONNX Runtime (DMOPT_ORT_LIB_OLD names no library)");
    };
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.env("DMOPT_ORT_LIB", &old).args(["--skip", "all_of_it_holds_on_an_older_version"]);
    let done = again.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "with {}: {told}", old.display());
    assert!(!String::from_utf8_lossy(&done.stderr).contains("skipped: a test of ONNX Runtime"), "{told}");
}

#[test]
fn weights_do_not_count_and_copies_of_them_count_apart() {
    let Some(runtime) = runtime() else { return };
    let memory = |op: &str| {
        let model = model(&format!(
            "<ir_version: 8, opset_import: [\"\": 17]>
             g (float[64,64] x) => (float[64,64] y) <float[64,64] w> {{ c = {op}(x, w) y = Relu(c) }}"
        ));
        measure(&runtime, &model, SessionKind::Tuned)
    };
    assert_eq!((memory("Mul").kept_bytes, memory("Mul").steady.bytes), (0, 2 * T));
    // Matrix products keep a packed copy of a constant factor.
    let product = memory("MatMul");
    assert!(product.kept_bytes >= T, "{product:?}");
    assert_eq!(product.steady.bytes, 2 * T);
}

#[test]
fn the_arena_of_a_default_session_holds_more_than_it_needs() {
    let Some(runtime) = runtime() else { return };
    let memory = measure(&runtime, &mixing(&chain(true), false), SessionKind::Default);
    let arena = memory.arena.unwrap();
    assert!(arena.max_in_use >= memory.steady.bytes, "{memory:?}");
    assert!(arena.held >= arena.max_in_use, "{memory:?}");
    assert_eq!(measure(&runtime, &mixing(&chain(true), false), SessionKind::Tuned).arena, None);
}

#[test]
fn sessions_are_measured_side_by_side() {
    let Some(runtime) = runtime() else { return };
    let steady = |interleaved: bool| {
        let model = mixing(&chain(interleaved), true);
        (0..8).map(|_| measure(&runtime, &model, SessionKind::Tuned).steady.bytes).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| steady(true));
        assert_eq!(steady(false), [3 * T; 8]);
        assert_eq!(other.join().unwrap(), [9 * T; 8]);
    });
}

#[test]
fn a_model_runs_with_its_interface() {
    let Some(runtime) = runtime() else { return };
    let model = model(
        "<ir_version: 8, opset_import: [\"\": 17]>
         g (float[N,2] x, float[2] w) => (float[N,2] y, int64[2] s) <float[2] w = {2.0, 3.0}>
         { y = Mul(x, w) s = Shape(x) }",
    );
    let backend = runtime.backend(SessionKind::Default, Ep::Cpu);
    assert_eq!(backend.name(), format!("onnxruntime {}", runtime.library().version));
    let mut session = backend.load(&model).unwrap();
    let interface = session.interface().clone();
    assert_eq!(interface.inputs.len(), 1, "an input with an initializer needs no value");
    let shape = interface.inputs[0].ty.shape.clone().unwrap();
    assert_eq!(shape, [Dim::Symbol("N".into()), Dim::Known(2)]);
    let x = Tensor::from_f64(DType::F32, vec![1, 2], &[-1.0, 4.0]).unwrap();
    let outputs = session.run(&[("x".into(), x)]).unwrap().tensors;
    assert_eq!(outputs[0], ("y".into(), Tensor::from_f64(DType::F32, vec![1, 2], &[-2.0, 12.0]).unwrap()));
    assert_eq!(outputs[1], ("s".into(), Tensor::i64s(&[1, 2])));
}

#[test]
fn every_type_passes_through() {
    use DType::*;
    let Some(runtime) = runtime() else { return };
    for dtype in [Bool, F16, BF16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64] {
        let model = model(&format!(
            "<ir_version: 8, opset_import: [\"\": 17]> g ({dtype}[N] x) => ({dtype}[N] y) {{ y = Identity(x) }}"
        ));
        let value = random_tensor(&mut Rng::new(3), dtype, &[5]).unwrap();
        let mut session = runtime.session(&model, SessionKind::Default, Ep::Cpu).unwrap();
        assert_eq!(session.run(&[("x".into(), value.clone())]).unwrap().tensors[0].1, value, "{dtype}");
        let none = random_tensor(&mut Rng::new(3), dtype, &[0]).unwrap();
        assert_eq!(session.run(&[("x".into(), none.clone())]).unwrap().tensors[0].1, none, "{dtype}");
    }
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let Some(runtime) = runtime() else { return };
    let backend = runtime.backend(SessionKind::Default, Ep::Cpu);
    let reason = |model: &ModelFile| backend.load(model).err().unwrap();
    let garbage = ModelFile { bytes: bytes::Bytes::from_static(b"not a model"), folder: None };
    assert!(matches!(reason(&garbage), RuntimeError::Malformed { .. }), "{}", reason(&garbage));
    let unknown = model(
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }",
    );
    assert!(reason(&unknown).to_string().contains("NoSuchOperator"), "{}", reason(&unknown));
}

#[test]
fn sequences_are_refused_without_a_panic() {
    let Some(runtime) = runtime() else { return };
    let model = model(
        "<ir_version: 8, opset_import: [\"\": 17]>
         g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x) }",
    );
    let error = runtime.session(&model, SessionKind::Default, Ep::Cpu).unwrap_err();
    assert!(matches!(error, RuntimeError::Unsupported { .. }), "{error}");
}

#[test]
fn cuda_without_cuda_is_an_error_and_never_the_processor() {
    let Some(runtime) = runtime() else { return };
    if runtime.library().providers.iter().any(|p| p == "CUDAExecutionProvider") {
        return skipped("refusing CUDA (this library has it)");
    }
    let model = mixing(&sum(), false);
    for kind in [SessionKind::Default, SessionKind::Tuned] {
        let error = runtime.session(&model, kind, Ep::cuda(0)).unwrap_err();
        assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error}");
    }
}

#[test]
fn a_process_keeps_its_library() {
    let Some(runtime) = runtime() else { return };
    assert_eq!(OnnxRuntime::load(runtime.path()).unwrap().path(), runtime.path());
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("libonnxruntime.so");
    std::fs::copy(runtime.path(), &copy).unwrap();
    let error = OnnxRuntime::load(&copy).unwrap_err();
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&runtime.path().display().to_string()), "{error}");
}

/// Three layers, each with an inner value `a1`, `a2`, `a3` between the layers' own.
fn layers(scalars: [&str; 3]) -> String {
    let [s1, s2, s3] = scalars;
    format!(
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[64,64] x) => (float[64,64] y)
         <float s1 = {{{s1}}}, float s2 = {{{s2}}}, float s3 = {{{s3}}}> {{
           m1 = Mul(x, s1) a1 = Tanh(m1) m2 = Mul(a1, s2) a2 = Tanh(m2) m3 = Mul(a2, s3) y = Tanh(m3)
         }}"
    )
}

#[test]
fn validation_runs_both_files_and_finds_a_wrong_scalar() {
    let Some(runtime) = runtime() else { return };
    let backend = runtime.backend(SessionKind::Default, Ep::Cpu);
    let right = model(&layers(["0.5", "0.25", "0.75"]));
    let options = Options { tolerance: Tolerance { abs: 0.0, rel: 1e-5 }, ..Options::default() };
    let found = validate_with(&backend, &right, &right, &options).unwrap();
    assert_eq!((found.status, found.bit_identical()), (Status::Passed, true), "{found:?}");
    let wrong = model(&layers(["0.5", "0.2525", "0.75"]));
    let found = validate_with(&backend, &right, &wrong, &options).unwrap();
    assert_eq!(found.status, Status::Failed);
    let given = vec![vec![("x".into(), Tensor::raw(DType::F32, vec![64, 64], vec![0; T as usize]))]];
    let found = validate_with(&backend, &right, &wrong, &Options { given, ..options }).unwrap();
    assert_eq!((found.status, found.runs.len()), (Status::Passed, 1), "zero times anything is the same");
}

#[test]
fn the_first_value_that_differs_is_named() {
    let Some(runtime) = runtime() else { return };
    let backend = runtime.backend(SessionKind::Default, Ep::Cpu);
    let exposed = |source: String| {
        move |values: &[String]| {
            let outputs: String = values.iter().map(|name| format!(", float[64,64] {name}")).collect();
            Ok(model(&source.replace("float[64,64] y)", &format!("float[64,64] y{outputs})"))))
        }
    };
    let right = exposed(layers(["0.5", "0.25", "0.75"]));
    let wrong = exposed(layers(["0.5", "0.2525", "0.75"]));
    let shared =
        [&["m1", "a1"][..], &["m2", "a2", "m3"]].map(|group| group.iter().map(|v| v.to_string()).collect());
    let tolerance = Tolerance { abs: 0.0, rel: 1e-5 };
    let look = |candidate: &dmopt_runtime::Expose<'_>| {
        compare_inside(&backend, &shared, &right, candidate, &inputs(), tolerance).unwrap()
    };
    let (inside, first) = look(&wrong);
    assert_eq!((inside.values, first.unwrap().value.as_str()), (3, "m2"));
    assert_eq!(look(&right), (Inside { values: 5, bit_identical: true, max_rel: 0.0 }, None));
}

#[test]
fn two_models_are_timed_in_turns() {
    let Some(runtime) = runtime() else { return };
    let load = |body: &str| runtime.session(&mixing(body, true), SessionKind::Default, Ep::Cpu).unwrap();
    let (mut a, mut b) = (load(&sum()), load(&chain(false)));
    let found = latency(&mut a, &mut b, &inputs(), 5).unwrap();
    assert_eq!(found.runs, 5);
    assert!(found.spread.0 <= found.ratio && found.ratio <= found.spread.1, "{found:?}");
}
