//! The law of [`dmopt_memory::ort`]: predicted bytes are measured bytes, in the first run and in later ones, with
//! memory patterns and without, for models in a session of ONNX Runtime whose optimizations are off.
//!
//! The library is the one that `DMOPT_ORT_LIB` names; without it, every test here says that it was skipped.
//! `DMOPT_GRAPHS` is the number of random graphs for each order of execution, 2,000 if it is not set.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::Command;

use arbtest::arbitrary::Unstructured;
use dmopt_fixtures::prng::Prng;
use dmopt_fixtures::random::{BATCH, Session};
use dmopt_fixtures::{Form, Network};
use dmopt_ir::{Model, Sizes, Storage, TensorType, infer, text};
use dmopt_memory::Kernels;
use dmopt_memory::ort::{Order, Plan, Settings, plan};
use dmopt_runtime::inputs::{Rng, random_tensor};
use dmopt_runtime::ort::{Ep, Level, OnnxRuntime, Settings as SessionSettings};
use dmopt_runtime::{ModelFile, Named};

/// The library under test, or `None` with a line that says so.
fn runtime() -> Option<OnnxRuntime> {
    match std::env::var_os("DMOPT_ORT_LIB") {
        Some(path) => Some(OnnxRuntime::load(path.as_ref()).unwrap()),
        None => {
            say("skipped: a test against ONNX Runtime (DMOPT_ORT_LIB names no library)");
            None
        }
    }
}

/// Not println!, whose output the test harness keeps to itself.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn settings(runtime: &OnnxRuntime) -> Settings {
    let mut parts = runtime.library().version.split('.').map(|part| part.parse().unwrap());
    let version = (parts.next().unwrap(), parts.next().unwrap());
    let sizes = Sizes { dims: [("N".to_string(), BATCH)].into(), ..Sizes::default() };
    Settings { kernels: Kernels::OrtCpu { version }, sizes, ..Settings::default() }
}

/// A model from text, types inferred; initializers without data get some.
fn model(source: &str) -> Result<Model, String> {
    let mut rng = Rng::new(1);
    let mut fill = |_: &str, ty: &TensorType| {
        let dims = ty.dims().unwrap_or_default();
        let tensor = random_tensor(&mut rng, ty.dtype, &dims).unwrap();
        Storage::Raw(tensor.bytes().unwrap().into_owned().into())
    };
    let mut model = text::parse_model_filled(source, &mut fill).map_err(|e| e.to_string())?;
    infer::infer_graph(&mut model.graph);
    Ok(model)
}

/// Peaks in bytes: every run without memory patterns, the first run with them, later runs with them.
fn predicted(plan: &Plan) -> [u64; 3] {
    [plan.first_run.peak_bytes, plan.patterned.first_peak_bytes, plan.patterned.peak_bytes]
}

fn measured(runtime: &OnnxRuntime, model: &Model) -> Result<[u64; 3], String> {
    let proto = dmopt_onnx::export(model, &Default::default()).map_err(|e| e.to_string())?;
    let file = ModelFile { bytes: dmopt_onnx::encode(&proto).concat().into(), folder: None };
    let mut rng = Rng::new(2);
    let inputs = model.graph.inputs().iter().map(|&id| {
        let ty = model.graph.tensor_type(id).unwrap();
        let dims: Vec<u64> = ty.shape.iter().flatten().map(|dim| dim.known().unwrap_or(BATCH)).collect();
        (model.graph.value(id).name.clone(), random_tensor(&mut rng, ty.dtype, &dims).unwrap())
    });
    let inputs: Vec<Named> = inputs.collect();
    let measure = |memory_pattern| {
        let session = SessionSettings { memory_pattern, arena: false, level: Level::Disabled };
        runtime.memory(&file, session, Ep::Cpu, &inputs).map_err(|e| e.to_string())
    };
    let (plain, patterned) = (measure(false)?, measure(true)?);
    if plain.first.bytes != plain.steady.bytes {
        return Err(format!("{} and {} bytes without patterns", plain.first.bytes, plain.steady.bytes));
    }
    Ok([plain.first.bytes, patterned.first.bytes, patterned.steady.bytes])
}

/// What was predicted and what was measured, where that is not the same.
fn difference(runtime: &OnnxRuntime, settings: &Settings, source: &str) -> Result<Option<String>, String> {
    let model = model(source)?;
    let plan = plan(&model.graph, settings).map_err(|e| e.to_string())?;
    if !plan.unknown.is_empty() {
        return Err(format!("not modelled: {:?}", plan.unknown));
    }
    let (predicted, measured) = (predicted(&plan), measured(runtime, &model)?);
    Ok((predicted != measured).then(|| format!("predicted {predicted:?}, measured {measured:?}")))
}

/// Takes pieces out of a model as long as the rest shows a difference too.
fn shrunk(mut session: Session, differs: &dyn Fn(&Session) -> bool) -> Session {
    let pieces: [fn(&mut Session) -> &mut Vec<String>; 4] =
        [|s| &mut s.outputs, |s| &mut s.operators, |s| &mut s.declared, |s| &mut s.inputs];
    loop {
        let mut changed = false;
        for pieces in pieces {
            for i in (0..pieces(&mut session).len()).rev() {
                let mut less = session.clone();
                pieces(&mut less).remove(i);
                if differs(&less) {
                    session = less;
                    changed = true;
                }
            }
        }
        if !changed {
            return session;
        }
    }
}

fn graphs() -> u64 {
    std::env::var("DMOPT_GRAPHS").map_or(2000, |n| n.parse().unwrap())
}

/// The model that a seed stands for.
fn drawn(seed: u64) -> Session {
    let mut prng = Prng::named(seed, "law");
    let entropy: Vec<u8> = (0..32 + prng.bits() % 320).map(|_| prng.bits() as u8).collect();
    Session::arbitrary(&mut Unstructured::new(&entropy)).unwrap()
}

/// What is wrong with the graph that this seed stands for; the number of its operators, if nothing is.
fn check(runtime: &OnnxRuntime, settings: &Settings, seed: u64) -> Result<usize, String> {
    let session = drawn(seed);
    let compare = |session: &Session| difference(runtime, settings, &session.to_string());
    match compare(&session) {
        Ok(None) => Ok(session.operators.len()),
        Err(reason) => Err(format!("graph {seed}: {reason}\n{session}")),
        Ok(Some(_)) => {
            let session = shrunk(session, &|session| matches!(compare(session), Ok(Some(_))));
            Err(format!("graph {seed}: {}\n{session}", compare(&session).unwrap().unwrap()))
        }
    }
}

#[test]
fn predicted_is_measured_on_random_graphs() {
    let Some(runtime) = runtime() else { return };
    let settings = settings(&runtime);
    let graphs = graphs();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let results = std::thread::scope(|scope| {
        let part = |first| {
            let (runtime, settings) = (&runtime, &settings);
            let seeds = (first..graphs).step_by(threads as usize);
            scope.spawn(move || {
                seeds.map(|seed| check(runtime, settings, seed)).sum::<Result<usize, String>>()
            })
        };
        let threads: Vec<_> = (0..threads).map(part).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<Result<usize, String>>()
    });
    let operators = results.unwrap_or_else(|difference| panic!("{difference}"));
    say(&format!("predicted is measured on {graphs} random graphs of {operators} operators"));
}

/// The other order can be set from Python alone, where the bytes in memory after each operator can be had, too.
#[test]
fn predicted_is_measured_in_priority_order() {
    let (Some(runtime), Some(python)) = (runtime(), std::env::var_os("DMOPT_PYTHON")) else {
        return say("skipped: a test of ONNX Runtime in Python (DMOPT_PYTHON or DMOPT_ORT_LIB is not set)");
    };
    let settings = Settings { order: Order::Priority, ..settings(&runtime) };
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for seed in 0..graphs() {
        let mut session = drawn(seed);
        // Operators of the main graph have names, those of bodies have none.
        for (i, operator) in session.operators.iter_mut().enumerate() {
            *operator = format!("[main{i}] {operator}");
        }
        let model = model(&session.to_string()).unwrap();
        let plan = plan(&model.graph, &settings).unwrap();
        let steps = plan.first_run.steps.iter();
        let steps: Vec<String> =
            steps.map(|step| format!("[{:?}, {}]", model.graph.op(step.op).name, step.live_bytes)).collect();
        let proto = dmopt_onnx::export(&model, &Default::default()).unwrap();
        std::fs::write(folder.path().join(format!("{seed}.onnx")), dmopt_onnx::encode(&proto).concat())
            .unwrap();
        expected.push(format!("\"{seed}.onnx\": [{}]", steps.join(", ")));
    }
    std::fs::write(folder.path().join("expected.json"), format!("{{{}}}", expected.join(",\n"))).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/priority_order.py");
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    say(text.trim_end());
}

/// Models that once showed a difference, or would if a rule were left out.
const KEPT: &[&str] = &[
    // Sum makes temporaries of the shapes so far.
    "g (float[4,5,6] x, float[6] p, float[5,1] q) => (float[4,5,6] y) { v = Sum(p, q, p, x) y = Neg(v) }",
    // Softmax along another axis turns its operand; that of doubles is not in place.
    "g (float[2,8,12] x) => (float[2,8,12] y, float[2,8,12] z) { u = Neg(x) v = Softmax<axis = 1>(u) y = Neg(v) z = Abs(u) }",
    "g (double[2,8,12] x) => (double[2,8,12] y, double[2,8,12] z) { u = Neg(x) v = Softmax(u) y = Neg(v) z = Abs(u) }",
    // Tile forgets the name of a dimension, which Concat finds again.
    "g (float[N,30] x) => (float[N,150] y) <int64[2] r = {1, 2}> {
        a = Tile(x, r) b = Transpose<perm = [0, 1]>(a) c = Sigmoid(b) d = Concat<axis = 1>(c, b, x) y = Neg(d) }",
    // What nothing reads gives up its buffer and is still never freed.
    "g (float[2,7,9] x) => (float[2,7,9] y) { a = Neg(x) y = Relu(a) dead = Softplus(y) b = Gelu(x) c = Div(b, a) }",
    // A scalar is taken over, but not found again among what was given up.
    "g (float[4,30] x) => (double y, double z) { s = Size(x) d = Cast<to = 11>(s) e = Neg(d) z = Abs(e) t = Size(x) y = Cast<to = 11>(t) }",
    // Results of If whose sizes are open are allocated as the branch computes them.
    "g (float[N,40] x, float[N,20] q) => (float[N,40] z) {
        c = Constant<value = bool {1}>() a = Neg(x)
        v, w = If(c) <then_branch = t () => (float[N,40] r, float[N,20] s) { m = Exp(q) s = Neg(m) n = Neg(a) r = Exp(n) },
                      else_branch = e () => (float[N,40] r, float[N,20] s) { r = Neg(a) s = Neg(q) }>
        b = Neg(w) d = Neg(v) z = Exp(d) }",
    // Of what bodies capture, the order in a hash set decides what is taken again first.
    "g (float[4,30] x) => (float[4,30] z) {
        c = Constant<value = bool {1}>() v18 = Neg(x) v19 = Exp(x) v2 = Abs(x)
        a = If(c) <then_branch = t () => (float[4,30] r) { r = Sum(v2, v19, v18) },
                   else_branch = e () => (float[4,30] r) { r = Sum(v18, v2, v19) }>
        b = Exp(a) d = Neg(b) z = Exp(d) }",
    // From the second round on, a Loop has a memory pattern, in the first run of the model too.
    "g (float[100] x) => (float[100] y) <int64 n = {4}, bool k = {1}> {
        u = Neg(x)
        v = Loop(n, k, u) <body = b (int64 i, bool c, float[100] s) => (bool o, float[100] t)
            { o = Identity(c) a = Abs(s) q = Exp(a) t = Add(a, q) }>
        y = Neg(v) }",
    // Scan turns what it does not scan along the first axis.
    "g (float[3,100] x) => (float[3,100] y) {
        u = Neg(x)
        z = Scan(u) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = b (float[3] e) => (float[3] o) { q = Exp(e) o = Neg(q) }>
        y = Neg(z) }",
    // A constant output is copied before anything runs.
    "g (float[100] x) => (float[100] y, float[100] w) <float[100] w> { a = Neg(x) y = Exp(a) }",
];

#[test]
fn predicted_is_measured_on_graphs_that_were_hard() {
    let Some(runtime) = runtime() else { return };
    let settings = settings(&runtime);
    for body in KEPT {
        let source = format!("<ir_version: 8, opset_import: [\"\": 21]> {body}");
        assert_eq!(difference(&runtime, &settings, &source), Ok(None), "{body}");
    }
    let old = "<ir_version: 8, opset_import: [\"\": 13]> g (float[N,4] x) => (float[N,4] y)
        { a = Neg(x) b = LessOrEqual(a, x) c = Where(b, x, x) d = Neg(c) e = Abs(d) y = Exp(e) }";
    assert_eq!(difference(&runtime, &settings, old), Ok(None), "LessOrEqual of version 12 has no shape");
}

/// The networks that this project is about, written as exporters write them.
#[test]
fn predicted_is_measured_on_direct_mixing_networks() {
    let Some(runtime) = runtime() else { return };
    let settings = settings(&runtime);
    for streams in [2, 4] {
        for form in [Form::F1, Form::F3] {
            let network = Network { streams, form, batch: Some(4), size: (208, 272), ..Network::default() };
            let mut model =
                dmopt_onnx::parse("network", network.bytes().into(), dmopt_onnx::Folder::new(".")).unwrap();
            infer::infer_graph(&mut model.graph);
            let plan = plan(&model.graph, &settings).unwrap();
            let measured = measured(&runtime, &model).unwrap();
            let name = network.name();
            say(&format!("{name}: {:?} bytes, not modelled: {:?}", measured, plan.unknown));
            assert_eq!(predicted(&plan), measured, "{name}");
        }
    }
}
