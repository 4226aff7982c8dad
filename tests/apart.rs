//! Runtimes in processes of their own: they say the same there, and what happens to such a process happens to it alone.
#![cfg(all(unix, feature = "tract"))]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::time::Instant;

use dmopt::runtime::apart::{Apart, Processes, Which};
use dmopt::runtime::inputs::{Pins, Sizes, random_inputs};
use dmopt::runtime::tract::Tract;
use dmopt::runtime::{Backend, Ep, ModelFile, Named, RuntimeError, SessionKind};

use super::cli::{Desk, bytes, proto};
use super::validation::ort;

/// Runs for longer than anybody waits.
const ENDLESS: &str = "g (float[4] x) => (float[4] y) <int64 n = {1152921504606846976}> {
    y = Loop <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] s) { d = Identity(c) s = Add(a, a) }> (n, , x)
}";

/// Divides the smallest integer by -1, for which x86 processors have a signal.
const DEADLY: &str = "g (int64[1] x) => (int64[1] y)
    <int64[1] zero = {0}, int64[1] least = {-9223372036854775808}, int64[1] minus = {-1}> {
    none = Mul(x, zero) a = Add(none, least) y = Div(a, minus)
}";

fn file(text: &str) -> ModelFile {
    ModelFile { bytes: bytes(proto(text)).into(), folder: None }
}

fn apart(program: &str) -> Apart<Tract> {
    let processes = Processes { program: PathBuf::from(program), patience: None };
    Apart::new(Tract, Which::Embedded, processes)
}

fn embedded() -> Apart<Tract> {
    apart(env!("CARGO_BIN_EXE_dmopt"))
}

fn inputs(backend: &dyn Backend, model: &ModelFile) -> Vec<Named> {
    let session = backend.load(model).unwrap();
    random_inputs(session.interface(), &Sizes::new(), &Pins::default(), 0).unwrap()
}

/// Why a runtime did not load or run a model.
fn failure(backend: &dyn Backend, model: &ModelFile) -> String {
    let ran = backend.load(model).and_then(|mut session| session.run(&inputs(&Tract, model)));
    ran.unwrap_err().to_string()
}

#[test]
fn a_process_of_its_own_says_what_this_one_would() {
    let model = file(
        "g (float[batch,3] x, int64[2] n) => (float[batch,3] y, int64[2] m)
         { inside = Relu(x) y = Add(inside, x) m = Neg(n) }",
    );
    let (here, there) = (Tract.load(&model).unwrap(), embedded().load(&model).unwrap());
    let (mut here, mut there) = (here, there);
    assert_eq!(here.interface(), there.interface());
    assert_eq!(here.values(), there.values());
    for seed in 0..2 {
        let sizes = Sizes::from([("batch".to_string(), 2 + seed)]);
        let inputs = random_inputs(here.interface(), &sizes, &Pins::default(), seed).unwrap();
        here.watch(&["inside".to_string()], 1 << 20);
        there.watch(&["inside".to_string()], 1 << 20);
        let (here, there) = (here.run(&inputs).unwrap(), there.run(&inputs).unwrap());
        assert_eq!(here.tensors, there.tensors);
        assert_eq!((&here.watched, here.watched.len()), (&there.watched, 1));
    }
}

#[test]
fn what_a_runtime_refuses_it_refuses_there() {
    let model = file("g (float[2] x) => (float[2] y) { y = com.example.Op(x) }");
    let (here, there) = (Tract.load(&model).err().unwrap(), embedded().load(&model).err().unwrap());
    assert!(matches!(there, RuntimeError::Operator { .. }), "{there}");
    assert_eq!(here.to_string(), there.to_string());
}

#[test]
fn a_runtime_that_takes_too_long_is_stopped() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with_text(ENDLESS);
    let done = desk.run(&format!("validate m.onnx m.onnx {ort} --runtime ort --timeout 1"));
    assert_eq!(done.code(), 5, "{}", done.stderr());
    assert!(done.stdout().contains("it took more than 1 s and was stopped"), "{}", done.stdout());
}

#[test]
fn a_session_that_was_stopped_says_so_when_it_is_asked_again() {
    let Some(ort) = ort() else { return };
    let library = PathBuf::from(ort.trim_start_matches("--ort-lib "));
    let which = Which::OnnxRuntime { library, settings: SessionKind::Default.into(), ep: Ep::Cpu };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_dmopt"));
    let processes = Processes { program, patience: Some(Duration::from_secs(2)) };
    let mut session = Apart::new(Tract, which, processes).load(&file(ENDLESS)).unwrap();
    let x = random_inputs(session.interface(), &Sizes::new(), &Pins::default(), 0).unwrap();
    for _ in 0..2 {
        let said = session.run(&x).unwrap_err().to_string();
        assert!(said.contains("it took more than 2 s and was stopped"), "{said}");
    }
}

#[test]
fn a_program_that_is_not_there_or_does_something_else_is_an_error() {
    let model = file("g (float[2] x) => (float[2] y) { y = Relu(x) }");
    for (program, about) in [
        ("/nowhere/dmopt", "no process for it could be started from /nowhere/dmopt"),
        ("/bin/true", "its process ended with exit status: 0"),
        ("/bin/cat", "its process ended with exit status: 1"),
        ("/bin/sh", "its process ended with exit status: 2"),
    ] {
        let said = failure(&apart(program), &model);
        assert!(said.contains(about), "{program}: {said}");
    }
}

#[test]
fn a_model_that_kills_its_runtime_does_not_kill_the_command() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with_text(DEADLY);
    let done = desk.run(&format!("optimize m.onnx o.onnx {ort} --validate-with ort"));
    assert_eq!(done.code(), 5);
    assert!(done.stderr().contains("its process died of signal 8 (SIGFPE)"), "{}", done.stderr());
    assert_eq!(desk.files(), ["m.onnx"]);
}

#[test]
fn a_candidate_that_kills_its_runtime_differs() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with_text("g (int64[1] x) => (int64[1] y) { y = Neg(x) }");
    fs::write(desk.path("deadly.onnx"), bytes(proto(DEADLY))).unwrap();
    let done = desk.run(&format!("validate m.onnx deadly.onnx {ort} --runtime ort"));
    assert_eq!(done.code(), 3, "{}", done.stderr());
    assert!(done.stdout().contains("died of signal 8"), "{}", done.stdout());
}

/// Processes that this one has started.
#[cfg(target_os = "linux")]
fn children(id: u32) -> Vec<String> {
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed.split_whitespace().map(str::to_string).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn processes_end_with_the_command_however_that_ends() {
    let Some(ort) = ort() else { return };
    for signal in ["-INT", "-TERM", "-KILL"] {
        let desk = Desk::with_text(ENDLESS);
        let mut command = desk.command(&format!("validate m.onnx m.onnx {ort} --runtime ort"));
        let mut command = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let wait = |done: &dyn Fn() -> bool| {
            let begin = Instant::now();
            while !done() {
                assert!(begin.elapsed() < Duration::from_secs(60), "{signal}: waited for too long");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        wait(&|| children(command.id()).len() == 2);
        let started = children(command.id());
        let told = std::process::Command::new("kill").args([signal, &command.id().to_string()]).status();
        assert!(told.unwrap().success());
        command.wait().unwrap();
        // Its new parent may not care to take note.
        let gone = |id: &String| {
            let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
        };
        wait(&|| started.iter().all(gone));
    }
}
