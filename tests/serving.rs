//! Models as servers take them.

use std::fs;
use std::process::Command;

use crate::cli::{Desk, EXPORT};
use crate::pipeline::example;

#[test]
fn a_model_goes_into_a_repository_of_triton() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --triton-repo models --name net --no-validate").succeeds();
    assert!(dmopt::onnx::load(&desk.path("models/net/1/model.onnx")).is_ok());
    let config = fs::read_to_string(desk.path("models/net/config.pbtxt")).unwrap();
    for part in
        ["name: \"net\"", "level: -1", "\"enable_mem_pattern\" value: { string_value: \"0\" }", "KIND_CPU"]
    {
        assert!(config.contains(part), "no {part} in {config}");
    }
    // Again, because it is ours; but what somebody wrote stays.
    desk.run("optimize m.onnx --triton-repo models --name net --no-validate").succeeds();
    fs::write(desk.path("models/net/config.pbtxt"), "name: \"net\"").unwrap();
    desk.refuses(
        "optimize m.onnx --triton-repo models --name net",
        1,
        &["config.pbtxt", "not written by dmopt"],
    );
    desk.refuses("optimize m.onnx --triton-repo models --name a/b", 1, &["m.onnx: 'a/b' is no name"]);
    assert!(!desk.path("models/a").exists());
}

/// The part of a text that begins with a line that starts so.
fn from<'t>(text: &'t str, start: &str) -> &'t str {
    &text[text.find(start).unwrap_or_else(|| panic!("no {start} in {text}"))..]
}

#[test]
fn programs_in_the_pages_have_the_session_that_is_printed() {
    let desk = Desk::new();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/serving.md")).unwrap();
    let code = desk.run("session model.opt.onnx").succeeds().stdout();
    assert!(page.contains(from(&code, "options = ")), "{code}");
    let code = desk.run("session model.opt.onnx --language rust").succeeds().stdout();
    let session = words(from(&code, "let environment")).replace("let session", "let mut session");
    let program = words(include_str!("../examples/serve.rs"));
    assert!(program.contains(&session.replace("\"model.opt.onnx\"", "path")), "{session}");
    let code = desk.run("session model.opt.onnx --language cpp").succeeds().stdout();
    let session = words(from(&code, "Ort::Env")).replace("ORT_TSTR(\"model.opt.onnx\")", "arguments[1]");
    assert!(words(include_str!("../examples/serve.cpp")).contains(&session), "{session}");
}

#[test]
fn the_recipes_for_python_and_rust_run() {
    let (Some(python), Some(library)) = (std::env::var_os("DMOPT_PYTHON"), std::env::var_os("DMOPT_ORT_LIB"))
    else {
        eprintln!("skipped: the recipes of docs/serving.md (DMOPT_PYTHON and DMOPT_ORT_LIB name nothing)");
        return;
    };
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx model.opt.onnx --no-validate -q").succeeds();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/serving.md")).unwrap();
    let recipe = page.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let run = |command: &mut Command| {
        let done = command.current_dir(desk.path(".")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    assert_eq!(run(Command::new(python).args(["-c", recipe])), "(2, 10)\n");
    if cfg!(feature = "ort") {
        let told = run(Command::new(example("serve")).arg("model.opt.onnx").env("ORT_DYLIB_PATH", library));
        assert!(told.contains("Tensor<f32>(2, 10)"), "{told}");
    }
}
