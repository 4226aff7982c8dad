//! The pages of `docs/` and the README say what is true: their commands run, their code is that of the examples, and what is
//! generated is current.
//!
//! Blocks fenced as `sh` are run line by line in a folder with a model in it. A block that cannot be says so in its first line,
//! for readers too. A line whose comment says `exit code N` has to end with that code.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use dmopt::passes::{PIPELINE, header};

use crate::cli::{Desk, bytes, proto};
use crate::pipeline::{TWICE, example};

const NOT_RUN: &str = "# not run by the tests: ";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and every page below `docs/`.
fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    pages
}

/// Fenced blocks: language and text.
fn blocks(page: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(page).unwrap();
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push((language.to_string(), body.join("\n") + "\n"));
        }
    }
    found
}

/// Two streams that are stacked, scaled and added up, of a batch of this size.
fn mixing(batch: &str) -> String {
    format!(
        "<ir_version: 10, opset_import: [\"\": 21]>
        g (float[{batch},2,16,16] x) => (float[{batch},2,16,16] y)
        <float[1] a = {{0.5}}, float[1] b = {{-2.0}}, int64[1] axes = {{0}}> {{
            r = Relu(x) p = Mul(a, r) e = Tanh(x) q = Mul(b, e)
            u = Unsqueeze(p, axes) v = Unsqueeze(q, axes)
            s = Concat<axis=0>(u, v) t = ReduceSum<keepdims=0>(s, axes) y = Abs(t)
        }}"
    )
}

/// A folder with models, in which `dmopt` and `cargo run` are what was built.
fn desk() -> Desk {
    let desk = Desk::new();
    fs::write(desk.path("model.onnx"), bytes(proto(&mixing("4")))).unwrap();
    fs::write(desk.path("open.onnx"), bytes(proto(&mixing("batch")))).unwrap();
    fs::create_dir(desk.path("models")).unwrap();
    fs::copy(desk.path("model.onnx"), desk.path("models/a.onnx")).unwrap();
    fs::write(desk.path("twice.onnx"), bytes(proto(TWICE))).unwrap();
    symlink(root().join("fixtures"), desk.path("fixtures")).unwrap();
    fs::create_dir(desk.path("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_dmopt"), desk.path("bin/dmopt")).unwrap();
    let cargo = format!(
        "#!/bin/sh\ncase \"$1 $2 $3 $4\" in\n'run --locked --release --') shift 4; exec dmopt \"$@\";;\n\
         'run --example planted --') shift 4; exec '{}' \"$@\";;\n'run --example own_pass --') shift 4; exec '{}' \"$@\";;\n\
         esac\necho \"no cargo $*\" >&2; exit 99\n",
        example("planted").display(),
        example("own_pass").display()
    );
    fs::write(desk.path("bin/cargo"), cargo).unwrap();
    fs::set_permissions(desk.path("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    desk
}

fn shell(desk: &Desk, line: &str) -> (i32, String) {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).current_dir(desk.path("."));
    for variable in ["DMOPT_PYTHON", "ORT_DYLIB_PATH", "VIRTUAL_ENV"] {
        command.env_remove(variable);
    }
    // Where a page asks for ONNX Runtime, it is there if the tests have it.
    if line.contains("--session tuned")
        && let Some(library) = std::env::var_os("DMOPT_ORT_LIB")
    {
        command.env("ORT_DYLIB_PATH", library);
    }
    command.env("PATH", format!("{}:/usr/bin:/bin", desk.path("bin").display()));
    let done = command.output().unwrap();
    (done.status.code().unwrap(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// The code that a line says it ends with.
fn expected(line: &str) -> i32 {
    let said =
        line.split_once("exit code ").and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    said.and_then(|code| code.parse().ok()).unwrap_or(0)
}

#[test]
#[cfg(feature = "tract")]
fn every_command_in_the_pages_runs() {
    let mut left_out = BTreeSet::new();
    for page in pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        let desk = desk();
        for (language, text) in blocks(&page) {
            if language != "sh" {
                let commands = text
                    .lines()
                    .filter(|line| ["dmopt ", "cargo ", "pip "].iter().any(|c| line.starts_with(c)));
                assert_eq!(
                    commands.collect::<Vec<_>>(),
                    Vec::<&str>::new(),
                    "{name}: a command in a block of '{language}'"
                );
                continue;
            }
            if let Some(reason) = text.strip_prefix(NOT_RUN) {
                left_out.insert(format!("{name}: {}", reason.lines().next().unwrap_or_default()));
                continue;
            }
            for line in text.lines().filter(|line| !line.trim().is_empty()) {
                let (code, stderr) = shell(&desk, line);
                assert_eq!(code, expected(line), "{name}: {line}\n{stderr}");
            }
        }
    }
    let _ = writeln!(std::io::stderr(), "not run: {}", left_out.into_iter().collect::<Vec<_>>().join("; "));
}

#[test]
fn links_between_pages_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                assert!(page.parent().unwrap().join(path).exists(), "{}: {link}", page.display());
            }
        }
    }
}

/// What stands between the imports and the end, however it is indented and wrapped.
fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn the_tutorial_is_its_example() {
    let page = root().join("docs/writing-a-pass.md");
    let code: String =
        blocks(&page).into_iter().filter(|(language, _)| language == "rust").map(|(_, text)| text).collect();
    let program = fs::read_to_string(root().join("examples/own_pass.rs")).unwrap();
    assert_eq!(words(&code), words(&program));
    let examples = header::examples(&program).unwrap();
    assert_eq!((examples.rewrites.len(), examples.refusals.len()), (1, 1));
}

#[test]
fn the_tutorials_pass_does_what_its_header_says() {
    let examples = header::examples(include_str!("../examples/own_pass.rs")).unwrap();
    let rewritten = |graph: &str| {
        let desk = Desk::with_text(graph);
        let own = example("own_pass");
        let passes = "--passes drop-double-negation --no-validate --verify -v";
        let done = desk.run_with(&own, &format!("optimize m.onnx o.onnx {passes}")).succeeds();
        let diff = |other: &str| {
            fs::write(desk.path("expected.onnx"), bytes(proto(other))).unwrap();
            desk.run("diff o.onnx expected.onnx --exit-code").code()
        };
        (diff(graph), examples.rewrites.iter().map(|e| diff(&e.after.text)).next().unwrap(), done.stdout())
    };
    let (same, as_told, _) = rewritten(&examples.rewrites[0].before.text);
    assert_eq!((same, as_told), (4, 0));
    let refusal = &examples.refusals[0];
    let (same, _, told) = rewritten(&refusal.graph.text);
    assert_eq!((same, told.contains(&refusal.reason)), (0, true), "{told}");
}

/// The page of passes: the header of each, in the order of the pipeline.
#[test]
fn the_page_of_passes_is_current() {
    let mut page =
        "# Passes\n\nIn the order in which they run. This page is made of the headers of the passes' files: \
                    `UPDATE_EXPECT=1 cargo test the_page_of_passes` writes it.\n"
            .to_string();
    for pass in PIPELINE {
        let text = header::text(pass.source());
        page += &format!(
            "\n## {}\n\nMay change results: {}.\n\n{}\n",
            pass.name(),
            pass.safety().name(),
            text.trim()
        );
    }
    let path = root().join("docs/passes.md");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, page).unwrap();
    } else {
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == page,
            "docs/passes.md is not current: UPDATE_EXPECT=1"
        );
    }
}
