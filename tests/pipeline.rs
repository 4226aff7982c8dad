//! What a pipeline does with a model: optimize, check, diff, bisect.

use std::fs;
use std::path::PathBuf;

use dmopt::bisect::{Bisection, Symptom};
use dmopt::check::{Lock, Report, Status};
use dmopt::diff::Diff;
use dmopt::ir::text::{Style, print_graph_as};

use crate::cli::{Desk, EXPORT, bytes, proto};

/// Operators that stand twice in a row; those in the middle do not cancel.
pub const TWICE: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (float[3,3,3] x) => (float[3,3,3] y) {
        a = Neg(x)
        b = Neg(a)
        c = Relu(b)
        d = Sigmoid(c)
        e = Sigmoid(d)
        f = Tanh(e)
        h = Neg(f)
        i = Neg(h)
        y = Abs(i)
    }";

/// A program that Cargo built from `examples/`.
pub fn example(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_BIN_EXE_dmopt"));
    folder.with_file_name("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

/// The command with the pass in `examples/planted.rs`.
fn planted() -> PathBuf {
    example("planted")
}

fn checked(text: &str) -> Report {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_pipeline_notices_what_broke_and_finds_the_pass_to_blame() {
    let desk = Desk::with(EXPORT);
    fs::create_dir(desk.path("nets")).unwrap();
    fs::rename(desk.path("m.onnx"), desk.path("nets/m.onnx")).unwrap();
    fs::write(desk.path("nets/twice.onnx"), bytes(proto(TWICE))).unwrap();

    desk.run("optimize nets/m.onnx --no-validate").succeeds();
    assert_eq!(desk.run("check nets").code(), 4, "nothing is locked yet");
    desk.run("check nets --update").succeeds();
    let told = desk.run("check nets").succeeds().stdout();
    assert!(told.contains("2 models, 2 as locked in dmopt.lock"), "{told}");

    // A site whose stacked tensor somebody else reads cannot be rewritten.
    let mut model = dmopt::onnx::decode("m", fs::read(desk.path("nets/m.onnx")).unwrap().into()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let stacked =
        graph.node.iter().find(|node| node.op_type.as_deref() == Some("Concat")).unwrap().output[0].clone();
    let mut output = graph.output[0].clone();
    output.name = Some(stacked);
    output.r#type = None;
    graph.output.push(output);
    fs::write(desk.path("nets/m.onnx"), bytes(model)).unwrap();
    let done = desk.run("check nets");
    let told = done.stdout();
    assert_eq!(
        (done.code(), done.stderr().contains("of 2 models: 1 differ")),
        (4, true),
        "{}",
        done.stderr()
    );
    for part in [
        "the file is another",
        "mixing site /stem/mixing/Add_output_0 is gone",
        "fuse-scaled-sum: ",
        "another structure",
        "peak grew",
    ] {
        assert!(told.contains(part), "no '{part}' in\n{told}");
    }
    assert!(told.contains("nets/twice.onnx  as locked"), "{told}");

    // The same models in a tool with a pass that is wrong.
    let done = desk.run_with(&planted(), "check nets/twice.onnx");
    let told = done.stdout();
    assert_eq!(done.code(), 4, "{told}{}", done.stderr());
    assert!(told.contains("drop-twice: 0 -> 3 rewrites") && !told.contains("the file is"), "{told}");
}

#[test]
#[cfg(feature = "tract")]
fn bisect_names_the_pass_the_application_and_a_small_model() {
    let desk = Desk::with_text(TWICE);
    assert_eq!(desk.run_with(&planted(), "optimize m.onnx out.onnx").code(), 3);
    let done = desk.run_with(&planted(), "bisect m.onnx --json");
    assert_eq!(done.code(), 3, "{}", done.stderr());
    assert!(done.stderr().contains("m.onnx: outputs differ from edit"), "{}", done.stderr());
    let found: Bisection = serde_json::from_str(&done.stdout()).unwrap();
    let culprit = found.culprit.unwrap();
    assert_eq!((culprit.pass.as_str(), culprit.application), ("drop-twice", 2));
    assert_eq!(culprit.symptom, Symptom::OutputsDiffer);
    assert_eq!(culprit.changes[0].gone, ["d = Sigmoid(c)", "e = Sigmoid(d)"]);

    let reproducer = culprit.reproducer.unwrap();
    assert_eq!((reproducer.path.as_str(), reproducer.nodes), ("m.bisect.onnx", 3));
    let small = dmopt::onnx::load(&desk.path("m.bisect.onnx")).unwrap();
    assert_eq!(
        print_graph_as(&small.graph, Style::Example).split_whitespace().collect::<Vec<_>>().join(" "),
        "g (float[3,3,3] c) => (float[3,3,3] f) { d = Sigmoid(c) \
         e = Sigmoid(d) f = Tanh(e) }"
    );
    let command = reproducer.command.strip_prefix("dmopt ").unwrap();
    assert_eq!(desk.run_with(&planted(), command).code(), 3);
}

#[test]
#[cfg(feature = "tract")]
fn bisect_finds_a_pass_of_the_pipeline_that_rounds_too_much() {
    let desk = Desk::with_text(crate::cli::CANCELLING);
    let done = desk.run("bisect m.onnx");
    assert_eq!(done.code(), 3, "{}", done.stderr());
    let told = done.stdout();
    assert!(told.starts_with("fuse-scaled-sum, application 1 "), "{told}");
    assert!(told.contains("\nbefore\n") && told.contains("\nafter\n"), "{told}");
    assert!(told.contains("dmopt optimize m.bisect.onnx --passes fuse-scaled-sum"), "{told}");
}

#[test]
#[cfg(feature = "tract")]
fn bisect_finds_nothing_where_nothing_is_wrong() {
    let desk = Desk::with_text(TWICE);
    let told = desk.run("bisect m.onnx").succeeds().stdout();
    assert!(told.starts_with("nothing is wrong: "), "{told}");
    assert_eq!(desk.files(), ["m.onnx"]);
}

#[test]
fn diff_tells_what_a_rewrite_changed_by_mixing_site() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --no-validate").succeeds();
    let json = desk.run("diff m.onnx m.opt.onnx --json").succeeds().stdout();
    let found: Diff = serde_json::from_str(&json).unwrap();
    assert_eq!((found.schema.as_str(), found.same_structure), ("dmopt.diff/1", false));
    let sites = found.groups.iter().filter(|group| group.title.starts_with("mixing site ")).count();
    assert!(sites >= 20, "{sites} of {:?}", found.groups.iter().map(|g| &g.title).collect::<Vec<_>>());
    let count = |of: fn(&dmopt::diff::Group) -> usize| found.groups.iter().map(of).sum::<usize>() as u64;
    let same = (found.unchanged + found.groups.iter().map(|g| g.changed.len()).sum::<usize>()) as u64;
    assert_eq!(count(|g| g.gone.len()) + same, found.before.nodes);
    assert_eq!(count(|g| g.new.len()) + same, found.after.nodes);

    let told = desk.run("diff m.onnx m.opt.onnx").succeeds().stdout();
    assert!(told.contains("mixing site ") && told.contains("stack-sum, "), "{told}");
    assert_eq!(desk.run("diff m.onnx m.opt.onnx --exit-code").code(), 4);
    desk.run("diff m.onnx m.onnx --exit-code").succeeds();
}

#[test]
fn limits_are_checked_with_and_without_a_lock_file_that_agrees() {
    let desk = Desk::with(EXPORT);
    desk.run("check m.onnx --update").succeeds();
    let lock = Lock::read(&desk.path("dmopt.lock")).unwrap();
    let made = &lock.models["m.onnx"].targets["portable"];
    let (peak, original) = (made.peak.unwrap(), made.original_peak.unwrap());
    desk.run(&format!("check m.onnx --max-peak {peak} --max-peak-ratio 1")).succeeds();
    let told = desk.run(&format!("check m.onnx --max-peak {}", peak - 1));
    assert_eq!(told.code(), 4);
    assert!(told.stdout().contains(&format!("the predicted peak is {peak} bytes, not at most {}", peak - 1)));
    let ratio = peak as f64 / original as f64;
    assert_eq!(desk.run(&format!("check m.onnx --max-peak-ratio {:.4}", ratio - 0.01)).code(), 4);
    assert_eq!(desk.run(&format!("check m.onnx --update --max-peak {}", peak - 1)).code(), 4);
}

#[test]
fn shards_together_are_the_whole_and_write_one_lock_file() {
    let desk = Desk::new();
    for name in ["a", "b", "c"] {
        fs::write(desk.path(&format!("{name}.onnx")), bytes(proto(TWICE))).unwrap();
    }
    desk.run("check . --update --lock whole.lock --jobs 2").succeeds();
    desk.run("check . --update --lock parts.lock --shard 1/2").succeeds();
    let first = checked(&desk.run("check . --lock parts.lock --shard 1/2 --json").succeeds().stdout());
    let names: Vec<&str> = first.models.iter().map(|model| model.path.as_str()).collect();
    assert_eq!(names, ["a.onnx", "c.onnx"]);
    desk.run("check . --update --lock parts.lock --shard 2/2").succeeds();
    assert_eq!(fs::read(desk.path("parts.lock")).unwrap(), fs::read(desk.path("whole.lock")).unwrap());

    fs::remove_file(desk.path("b.onnx")).unwrap();
    let done = desk.run("check . --lock whole.lock --json");
    assert_eq!((done.code(), checked(&done.stdout()).models[1].status), (4, Status::Gone));
    desk.run("check . --lock whole.lock --update").succeeds();
    assert!(!fs::read_to_string(desk.path("whole.lock")).unwrap().contains("b.onnx"));
}

#[test]
fn a_model_that_cannot_be_read_is_an_error_and_the_others_are_checked() {
    let desk = Desk::with_text(TWICE);
    desk.run("check . --update").succeeds();
    fs::write(desk.path("broken.onnx"), "no model").unwrap();
    let done = desk.run("check .");
    assert_eq!(done.code(), 1, "{}", done.stderr());
    assert!(done.stdout().contains("m.onnx  as locked") && done.stdout().contains("broken.onnx  error"));
    let lock = fs::read(desk.path("dmopt.lock")).unwrap();
    assert_eq!(desk.run("check . --update").code(), 1);
    assert_eq!(fs::read(desk.path("dmopt.lock")).unwrap(), lock);
}

/// The commands in a file for a service, which are indented by as much, after the line that ends so.
fn script(file: &str, after: &str, indent: usize) -> String {
    let text = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let part = text.split(after).last().unwrap();
    part.lines().filter_map(|line| line.get(indent..)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_steps_for_github_and_gitlab_check_models() {
    let desk = Desk::new();
    fs::create_dir(desk.path("models")).unwrap();
    fs::write(desk.path("models/a.onnx"), bytes(proto(TWICE))).unwrap();
    desk.run("check models --update").succeeds();
    let run = |text: &str, variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new("/bin/bash");
        let folder = PathBuf::from(env!("CARGO_BIN_EXE_dmopt"));
        command.args(["-e", "-c", text]).current_dir(desk.path(".")).envs(variables.iter().copied());
        let done = command.env("PATH", folder.parent().unwrap()).output().unwrap();
        (done.status.code().unwrap(), String::from_utf8(done.stdout).unwrap())
    };
    let github = script("action.yml", "run: |\n", 8);
    let inputs = |peak| {
        [
            ("MODELS", "models"),
            ("LOCK", "dmopt.lock"),
            ("MAX_PEAK", peak),
            ("MAX_PEAK_RATIO", ""),
            ("SHARD", ""),
        ]
    };
    let (code, told) = run(&github, &inputs("40 MB"));
    assert!(code == 0 && told.contains("1 as locked"), "{told}");
    assert_eq!(run(&github, &inputs("1 B")).0, 4);
    let gitlab = script("docs/examples/gitlab-ci.yml", "script:\n", 6);
    let (code, told) = run(&gitlab, &[("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "4")]);
    assert!(code == 0 && told.contains("1 as locked"), "{told}");
}
