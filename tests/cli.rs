//! The command line as people and scripts use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dmopt::ir::text::parse_model;
use dmopt::onnx::schema::ModelProto;
use dmopt::onnx::{self, Folder};
use dmopt::passes::PIPELINE;
use dmopt::report::{Report, ValidationStatus};
use tempfile::TempDir;

/// A direct-mixing network of depth 18 with two streams, as an exporter wrote it.
pub const EXPORT: &str = "direct_mixing_conv_d18_n2_f3_ts.onnx";

/// The same kind of network with three streams and a symbolic batch.
pub const SYMBOLIC: &str = "direct_mixing_conv_d18_n3_f13_symbatch_zeros_dynamo.onnx";

fn export(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pytorch").join(name)
}

/// A folder with the command in it.
pub struct Desk(TempDir);

impl Desk {
    pub fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    /// With an export as `m.onnx`.
    pub fn with(name: &str) -> Desk {
        let desk = Desk::new();
        fs::copy(export(name), desk.path("m.onnx")).unwrap();
        desk
    }

    /// With a model in text form as `m.onnx`.
    pub fn with_text(text: &str) -> Desk {
        let desk = Desk::new();
        fs::write(desk.path("m.onnx"), bytes(proto(text))).unwrap();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[cfg(unix)]
    pub fn make_pipe(&self, name: &str) {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
    }

    pub fn files(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    pub fn command(&self, arguments: &str) -> Command {
        self.command_with(Path::new(env!("CARGO_BIN_EXE_dmopt")), arguments)
    }

    fn command_with(&self, program: &Path, arguments: &str) -> Command {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        // Which libraries a machine happens to have is nothing that a test should depend on.
        for variable in ["DMOPT_PYTHON", "ORT_DYLIB_PATH", "VIRTUAL_ENV"] {
            command.env_remove(variable);
        }
        command.env("PATH", "");
        command
    }

    pub fn run(&self, arguments: &str) -> Done {
        Done(self.command(arguments).output().unwrap())
    }

    /// With these variables of the environment.
    pub fn run_in(&self, arguments: &str, variables: &[(&str, &str)]) -> Done {
        Done(self.command(arguments).envs(variables.iter().copied()).output().unwrap())
    }

    /// With another program than dmopt itself.
    pub fn run_with(&self, program: &Path, arguments: &str) -> Done {
        Done(self.command_with(program, arguments).output().unwrap())
    }

    pub fn report(&self, name: &str) -> Report {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// The last run must have failed with one line about this and left nothing behind.
    pub fn refuses(&self, arguments: &str, code: i32, about: &[&str]) {
        let before = self.files();
        let done = self.run(arguments);
        let message = done.stderr();
        let errors: Vec<&str> = message.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((done.code(), errors.len()), (code, 1), "{arguments}: {message}");
        assert!(message.ends_with(&format!("{}\n", errors[0])), "not the last line: {message}");
        for part in about {
            assert!(errors[0].contains(part), "'{}' does not mention '{part}'", errors[0]);
        }
        assert_eq!(done.stdout(), "");
        assert_eq!(self.files(), before);
    }
}

pub struct Done(Output);

impl Done {
    pub fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    pub fn succeeds(self) -> Done {
        assert_eq!(self.code(), 0, "{}", self.stderr());
        self
    }
}

pub fn proto(text: &str) -> ModelProto {
    onnx::export(&parse_model(text).unwrap(), &Default::default()).unwrap()
}

pub fn bytes(proto: ModelProto) -> Vec<u8> {
    onnx::encode(&proto).concat()
}

/// `y = (2^30 x + z) - 2^30 x`, which is `z`, except that float32 loses the `z` in the middle.
pub const CANCELLING: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (float[4,64] x, float[4,64] z) => (float[4,64] y)
    <float big = {1073741824.0}, float opposite = {-1073741824.0}> {
        m = Mul(x, big) s = Add(m, z) n = Mul(x, opposite) y = Add(s, n)
    }";

/// Validation passes where the embedded runtime is built in, and is skipped elsewhere.
fn verdict() -> ValidationStatus {
    if cfg!(feature = "tract") { ValidationStatus::Passed } else { ValidationStatus::Skipped }
}

#[test]
fn a_real_export_is_rewritten_validated_and_reported() {
    let desk = Desk::with(EXPORT);
    let done = desk.run("optimize m.onnx --report r.json").succeeds();
    assert_eq!(desk.files(), ["m.onnx", "m.opt.onnx", "r.json"]);
    let table = done.stdout();
    assert!(table.contains("20 rewritten") && table.contains("predicted peak"), "{table}");

    let report = desk.report("r.json");
    assert_eq!(report.schema, "dmopt.report/1");
    assert_eq!(report.input.path.as_deref(), Some("m.onnx"));
    assert_eq!(report.output.path.as_deref(), Some("m.opt.onnx"));
    assert!(report.output.nodes < report.input.nodes);
    assert_eq!(report.output.file_bytes, fs::metadata(desk.path("m.opt.onnx")).unwrap().len());
    assert_eq!(report.mixing_sites.len(), 20);
    assert!(report.mixing_sites.iter().all(|site| site.rewritten && site.form == "stack-sum"));
    assert!(report.mixing_sites.iter().all(|site| site.written.as_deref() == Some("mul-add")));
    let names: Vec<&str> = report.passes.iter().map(|pass| pass.name.as_str()).collect();
    assert_eq!(names, PIPELINE.iter().map(|pass| pass.name()).collect::<Vec<_>>());
    let peak = &report.peak.predicted;
    assert!(peak.after_bytes.unwrap() < peak.before_bytes.unwrap(), "{peak:?}");
    assert_eq!(report.validation.status, verdict());
    if cfg!(feature = "tract") {
        let validation = &report.validation;
        assert!(validation.max_rel.unwrap() <= validation.tolerance.unwrap().rel);
        assert_eq!(validation.runs.len(), 3);
    }
}

#[test]
fn the_output_has_the_interface_of_the_input() {
    let desk = Desk::with(SYMBOLIC);
    desk.run("optimize m.onnx out.onnx --dim batch=2 --quiet").succeeds();
    let interface = |name: &str| {
        let graph = onnx::load(&desk.path(name)).unwrap().graph;
        let describe = |v: &_| (graph.value(*v).name.clone(), graph.value(*v).ty.clone());
        graph.inputs().iter().chain(graph.outputs()).map(describe).collect::<Vec<_>>()
    };
    assert_eq!(interface("m.onnx"), interface("out.onnx"));
}

#[test]
fn optimizing_the_output_again_finds_nothing_left_to_do() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx a.onnx --no-validate").succeeds();
    desk.run("optimize a.onnx b.onnx --no-validate --report r.json").succeeds();
    assert!(desk.report("r.json").passes.iter().all(|pass| pass.rewrites == 0));
    assert_eq!(fs::read(desk.path("a.onnx")).unwrap(), fs::read(desk.path("b.onnx")).unwrap());
}

#[test]
fn a_model_with_nothing_to_do_is_written_as_it_came() {
    // Inference knows more of the types within the branches and of the output than the file says.
    let desk = Desk::with_text(
        "<ir_version: 10, opset_import: [\"\": 21]>
         g (bool c, float[2] x) => (float[?] y) <float[?] t> {
            t = Exp(x)
            y = If (c) <
              then_branch = a () => (float[?] v) { v = Relu(t) },
              else_branch = b () => (float[?] w) { w = Neg(t) }>
        }",
    );
    desk.run("optimize m.onnx").succeeds();
    assert_eq!(fs::read(desk.path("m.opt.onnx")).unwrap(), fs::read(desk.path("m.onnx")).unwrap());
}

#[test]
fn the_output_can_be_named_in_two_ways_but_not_both() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx a.onnx --no-validate").succeeds();
    desk.run("optimize -o b.onnx m.onnx --no-validate").succeeds();
    assert_eq!(desk.files(), ["a.onnx", "b.onnx", "m.onnx"]);
    assert_eq!(desk.run("optimize m.onnx a.onnx -o b.onnx").code(), 2);
}

#[test]
fn pipes_carry_the_model_and_nothing_else() {
    let desk = Desk::with(EXPORT);
    let input = fs::File::open(desk.path("m.onnx")).unwrap();
    let done = Done(desk.command("optimize - --report r.json").stdin(input).output().unwrap()).succeeds();
    let model = onnx::parse("output", done.0.stdout.clone().into(), Folder::new(".")).unwrap();
    let report = desk.report("r.json");
    assert_eq!(model.graph.op_count() as u64, report.output.nodes);
    assert_eq!(report.input.path.as_deref(), Some("<stdin>"));
    assert_eq!(report.output.path.as_deref(), Some("<stdout>"));
    assert_eq!(report.validation.status, verdict());
    assert!(done.stderr().contains("mixing sites"), "{}", done.stderr());
}

/// The exit code of a command whose reader is gone before it writes.
fn without_a_reader(command: &str) -> Option<i32> {
    let desk = Desk::with(EXPORT);
    let mut child = desk.command(command).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    child.wait().unwrap().code()
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    assert_eq!(without_a_reader("inspect m.onnx"), Some(0));
}

#[test]
fn a_model_that_is_cut_off_is_an_error() {
    assert_eq!(without_a_reader("optimize m.onnx - --quiet --no-validate"), Some(1));
}

#[test]
fn where_no_terminal_is_lines_are_plain() {
    let desk = Desk::with(EXPORT);
    let done = desk.run("optimize m.onnx -v").succeeds();
    assert!(!done.stdout().contains('\x1b') && !done.stderr().contains('\x1b'));
    let stages: Vec<String> = done.stderr().lines().map(str::to_string).collect();
    assert_eq!(stages.first().map(String::as_str), Some("reading"));
    assert_eq!(stages.last().map(String::as_str), Some("validating"));
    assert!(stages.iter().any(|line| line == "round 1: fuse-scaled-sum"), "{stages:?}");
}

#[test]
fn quiet_says_nothing() {
    let desk = Desk::with(EXPORT);
    let done = desk.run("optimize m.onnx --no-validate -q").succeeds();
    assert_eq!((done.stdout(), done.stderr()), (String::new(), String::new()));
}

#[test]
fn print_shows_the_result_on_standard_output_and_the_table_elsewhere() {
    let desk = Desk::with(EXPORT);
    let done = desk.run("optimize m.onnx --no-validate --print").succeeds();
    assert!(done.stdout().starts_with("<ir_version"), "{}", done.stdout());
    assert!(!done.stdout().contains("predicted peak") && done.stderr().contains("predicted peak"));
    assert_eq!(desk.run("optimize m.onnx - --print").code(), 2);
}

#[test]
fn exact_keeps_every_bit() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --exact --report r.json").succeeds();
    let report = desk.report("r.json");
    assert!(report.mixing_sites.iter().all(|site| !site.rewritten));
    assert!(matches!(report.safety.as_deref(), None | Some("exact")));
    assert_eq!(report.validation.status, verdict());
    if cfg!(feature = "tract") {
        assert_eq!(report.validation.bit_identical, Some(true));
        assert_eq!(report.validation.tolerance.unwrap().rel, 0.0);
    }
}

#[test]
fn stop_after_counts_edits() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --stop-after 3 --no-validate --report r.json").succeeds();
    let report = desk.report("r.json");
    assert_eq!(report.passes.iter().map(|pass| pass.rewrites).sum::<u64>(), 3);
    assert!(report.stopped);
}

#[test]
fn passes_can_be_chosen_and_skipped() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --passes drop-dead --no-validate --report r.json").succeeds();
    assert_eq!(desk.report("r.json").passes.len(), 1);
    desk.run("optimize m.onnx --skip drop-dead,fuse-scaled-sum --no-validate --report r.json").succeeds();
    assert_eq!(desk.report("r.json").passes.len(), PIPELINE.len() - 2);
}

#[test]
fn a_peak_that_depends_on_an_open_size_is_unknown_until_the_size_is_given() {
    let desk = Desk::with(SYMBOLIC);
    desk.run("optimize m.onnx --no-validate --report r.json").succeeds();
    let unknown = desk.report("r.json").peak.predicted;
    assert_eq!((unknown.before_bytes, unknown.after_bytes), (None, None));
    assert!(unknown.reason.unwrap().contains("--dim batch=N"));

    let at = |batch: u64| {
        let sized = format!("optimize m.onnx --no-validate --report r.json --dim batch={batch}");
        desk.run(&sized).succeeds();
        let known = desk.report("r.json").peak.predicted;
        assert_eq!((known.sizes["batch"], known.reason), (batch, None));
        known.before_bytes.unwrap()
    };
    // What kernels need for themselves does not grow with the batch.
    assert_eq!(at(9) - at(6), at(6) - at(3));
}

#[test]
fn sizes_that_the_model_does_not_have_are_an_error() {
    let desk = Desk::with(SYMBOLIC);
    desk.refuses("optimize m.onnx --no-validate -q --dim nosuch=2", 1, &["m.onnx", "nosuch", "batch"]);
}

#[test]
fn files_that_are_no_models_are_one_line_and_nothing_is_written() {
    let desk = Desk::with(EXPORT);
    let whole = fs::read(desk.path("m.onnx")).unwrap();
    fs::write(desk.path("cut.onnx"), &whole[..whole.len() / 2]).unwrap();
    fs::write(desk.path("text.onnx"), "hello\nworld\n").unwrap();
    fs::write(desk.path("empty.onnx"), "").unwrap();
    fs::create_dir(desk.path("folder.onnx")).unwrap();
    desk.refuses("optimize cut.onnx", 1, &["cut.onnx", "truncated"]);
    desk.refuses("optimize text.onnx", 1, &["text.onnx", "text"]);
    desk.refuses("optimize empty.onnx", 1, &["empty.onnx", "empty"]);
    desk.refuses("optimize folder.onnx", 1, &["folder.onnx", "directory"]);
    desk.refuses("optimize missing.onnx", 1, &["missing.onnx", "No such file"]);
    desk.refuses("inspect missing.onnx", 1, &["missing.onnx"]);
}

#[test]
fn graphs_that_make_no_sense_are_one_line_and_nothing_is_written() {
    let text = "<ir_version: 10, opset_import: [\"\": 21]> g (float[2] x) => (float[2] y) { a = Relu(x) y = Add(x, a) }";
    let mut cyclic = proto(text);
    let nodes = &mut cyclic.graph.as_mut().unwrap().node;
    nodes[0].input = vec!["y".to_string()];
    nodes[0].name = Some("first".to_string());
    let mut future = proto(text);
    future.opset_import[0].version = Some(99);

    let desk = Desk::new();
    fs::write(desk.path("cyclic.onnx"), bytes(cyclic)).unwrap();
    fs::write(desk.path("future.onnx"), bytes(future)).unwrap();
    desk.refuses("optimize cyclic.onnx", 1, &["cyclic.onnx", "cycle"]);
    desk.refuses("optimize future.onnx", 1, &["future.onnx", "opset 99"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let desk = Desk::with(EXPORT);
    for wrong in [
        "optimize m.onnx --no-such-flag",
        "optimize m.onnx --passes no-such-pass",
        "optimize m.onnx --target moon",
        "optimize m.onnx --dim batch",
        "optimize m.onnx --input-shape x=1,b",
        "optimize m.onnx --no-validate --require-validation",
        "optimize",
        "passes no-such-pass",
    ] {
        assert_eq!(desk.run(wrong).code(), 2, "{wrong}");
    }
    let done = desk.run("optimize m.onnx --passes drop-ded");
    assert!(done.stderr().contains("'drop-dead'"), "{}", done.stderr());
    assert_eq!(desk.files(), ["m.onnx"]);
}

#[test]
fn help_documents_the_exit_codes() {
    let desk = Desk::new();
    for arguments in ["--help", "optimize --help"] {
        let help = desk.run(arguments).succeeds().stdout();
        assert!(help.contains("3  outputs differ") && help.contains("5  a runtime"), "{help}");
    }
}

#[test]
#[cfg(unix)]
fn the_input_is_never_overwritten() {
    let desk = Desk::with(EXPORT);
    std::os::unix::fs::symlink("m.onnx", desk.path("soft.onnx")).unwrap();
    fs::hard_link(desk.path("m.onnx"), desk.path("hard.onnx")).unwrap();
    for output in ["m.onnx", "./m.onnx", "soft.onnx", "hard.onnx"] {
        desk.refuses(&format!("optimize m.onnx {output}"), 1, &["is the input itself"]);
    }
    desk.refuses("optimize m.onnx --report m.onnx", 1, &["the report would overwrite the input"]);
    assert_eq!(fs::read(desk.path("m.onnx")).unwrap(), fs::read(export(EXPORT)).unwrap());
}

#[test]
fn an_output_that_cannot_be_written_leaves_nothing_behind() {
    let desk = Desk::with(EXPORT);
    fs::create_dir(desk.path("folder")).unwrap();
    desk.refuses("optimize m.onnx folder", 1, &["folder", "directory"]);
    desk.refuses("optimize m.onnx missing/out.onnx", 1, &["missing/out.onnx", "No such file"]);
}

#[test]
fn an_output_that_cannot_be_written_is_noticed_before_the_work() {
    let desk = Desk::with(EXPORT);
    fs::create_dir(desk.path("folder")).unwrap();
    for arguments in [
        "optimize m.onnx missing/out.onnx -v",
        "optimize m.onnx missing/out.onnx -v --no-validate",
        "optimize m.onnx folder -v",
        "optimize m.onnx new/ -v",
        "optimize m.onnx out.onnx -v --report missing/r.json",
        "optimize m.onnx out.onnx -v --report folder",
        "optimize m.onnx m.onnx/out.onnx -v",
        "optimize m.onnx /proc/out.onnx -v",
    ] {
        desk.refuses(arguments, 1, &[]);
        let message = desk.run(arguments).stderr();
        assert!(!message.contains("round 1"), "{arguments}: {message}");
    }
}

#[test]
#[cfg(unix)]
fn an_output_that_is_a_link_stays_one() {
    let desk = Desk::with(EXPORT);
    fs::write(desk.path("real.onnx"), "old").unwrap();
    std::os::unix::fs::symlink("real.onnx", desk.path("out.onnx")).unwrap();
    desk.run("optimize m.onnx out.onnx").succeeds();
    assert!(desk.path("out.onnx").is_symlink());
    assert!(onnx::load(&desk.path("real.onnx")).is_ok());
}

#[test]
#[cfg(unix)]
fn a_process_that_is_told_to_stop_leaves_nothing_behind() {
    let desk = Desk::with(EXPORT);
    // Writing to a pipe that nobody reads waits, while the candidate lies in the folder for temporary files.
    desk.make_pipe("pipe");
    let mut command = desk.command("optimize m.onnx pipe -q");
    let mut child = command.env("TMPDIR", desk.0.path()).stderr(Stdio::null()).spawn().unwrap();
    let staged = || desk.files().iter().any(|name| name.starts_with(".dmopt-"));
    while !staged() {
        assert_eq!(child.try_wait().unwrap(), None, "it must wait for a reader");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(desk.files(), ["m.onnx", "pipe"]);
}

/// A folder `a` with a model `m.onnx` whose weight is in `weights.bin`.
fn external() -> Desk {
    let desk = Desk::new();
    let mut model = proto(
        "<ir_version: 10, opset_import: [\"\": 21]>
         g (float[2,512] x) => (float[2,512] y) <float[512] w> { y = Add(x, w) }",
    );
    let weight = &mut model.graph.as_mut().unwrap().initializer[0];
    let reference = onnx::Reference { location: "weights.bin".into(), offset: 0, length: Some(2048) };
    weight.external_data = reference.entries();
    weight.data_location = Some(onnx::schema::DataLocation::External.into());
    fs::create_dir(desk.path("a")).unwrap();
    fs::write(desk.path("a/m.onnx"), bytes(model)).unwrap();
    fs::write(desk.path("a/weights.bin"), 0.5f32.to_le_bytes().repeat(512)).unwrap();
    desk
}

#[test]
fn external_data_come_along() {
    let desk = external();
    fs::create_dir(desk.path("b")).unwrap();
    desk.run("optimize a/m.onnx b/out.onnx --report r.json").succeeds();
    assert_eq!(fs::read(desk.path("b/weights.bin")).unwrap(), fs::read(desk.path("a/weights.bin")).unwrap());
    assert_eq!(desk.report("r.json").validation.status, verdict());
}

#[test]
fn external_data_that_are_missing_or_too_short_are_noticed_though_nothing_reads_them() {
    let desk = external();
    fs::write(desk.path("a/weights.bin"), [0; 2047]).unwrap();
    let why = ["a/m.onnx: tensor 'w': ", "weights.bin", "bytes 0..2048 are wanted, it has 2047"];
    desk.refuses("optimize a/m.onnx --no-validate", 1, &why);
    desk.refuses("optimize a/m.onnx -", 1, &why);
    fs::remove_file(desk.path("a/weights.bin")).unwrap();
    desk.refuses(
        "optimize a/m.onnx --no-validate",
        1,
        &["a/m.onnx: tensor 'w': ", "weights.bin", "No such file"],
    );
    desk.run("inspect a/m.onnx").succeeds();
}

/// `y = x * (w + same) + x` with `w` and the value `t` in reach of training, where nothing in the graph itself keeps
/// them from being folded, merged and renamed.
#[test]
fn what_training_refers_to_stays_a_variable_with_its_name() {
    use dmopt::onnx::schema::*;
    let mut model = proto(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[2] x) => (float[2] y)
         <float[2] w = {1.0, 2.0}, float[2] same = {1.0, 2.0}, float[2] momentum = {0.0, 0.0}> {
            s = Add(w, same) t = Mul(x, s) i = Identity(t) y = Add(i, x)
        }",
    );
    let name = |name: &str| vec![name.to_string()];
    let step = NodeProto {
        op_type: Some("Neg".into()),
        input: name("t"),
        output: name("new_w"),
        ..Default::default()
    };
    let binding = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
        ..Default::default()
    };
    model.training_info = vec![TrainingInfoProto {
        algorithm: Some(GraphProto { node: vec![step], ..Default::default() }),
        update_binding: vec![binding("w", "new_w"), binding("momentum", "new_w")],
        ..Default::default()
    }];
    let training = model.training_info.clone();
    let desk = Desk::new();
    fs::write(desk.path("m.onnx"), bytes(model)).unwrap();
    desk.run("optimize m.onnx --verify --report r.json").succeeds();
    assert_eq!(desk.report("r.json").validation.status, verdict());

    let result = onnx::decode("m.opt.onnx", onnx::open(&desk.path("m.opt.onnx")).unwrap()).unwrap();
    assert_eq!(result.training_info, training);
    let graph = result.graph.unwrap();
    let initializers: Vec<&str> = graph.initializer.iter().filter_map(|t| t.name.as_deref()).collect();
    assert_eq!(initializers, ["w", "same", "momentum"]);
    let nodes: Vec<(&str, &str)> =
        graph.node.iter().map(|n| (n.op_type.as_deref().unwrap(), n.output[0].as_str())).collect();
    assert_eq!(nodes, [("Add", "s"), ("Mul", "t"), ("Add", "y")], "only the Identity is of no use");
}

#[test]
fn weights_of_the_input_are_never_overwritten() {
    let desk = external();
    desk.refuses("optimize a/m.onnx a/weights.bin", 1, &["holds weights of the input"]);
}

const FOREIGN: &str = "<ir_version: 10, opset_import: [\"\": 21, \"com.example\": 1]>
    g (float[4] x) => (float[4] y) { y = com.example.Mystery(x) }";

#[test]
fn an_operator_that_the_runtime_does_not_have_skips_validation_and_says_so() {
    let desk = Desk::with_text(FOREIGN);
    let done = desk.run("optimize m.onnx").succeeds();
    assert!(done.stdout().contains("skipped"), "{}", done.stdout());
    if cfg!(feature = "tract") {
        assert!(done.stdout().contains("Mystery is not supported by tract"), "{}", done.stdout());
    }
}

#[test]
fn required_validation_that_is_skipped_is_exit_code_5() {
    let desk = Desk::with_text(FOREIGN);
    let done = desk.run("optimize m.onnx --require-validation");
    assert_eq!(done.code(), 5, "{}", done.stderr());
    assert_eq!(desk.files(), ["m.onnx"]);
}

#[test]
fn passes_are_listed_and_shown() {
    let desk = Desk::new();
    let list = desk.run("passes").succeeds().stdout();
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, PIPELINE.iter().map(|pass| pass.name()).collect::<Vec<_>>());
    let shown = desk.run("passes fuse-scaled-sum").succeeds().stdout();
    assert!(shown.starts_with("fuse-scaled-sum (reassociates)\n") && shown.contains("```onnx"), "{shown}");
}

#[test]
fn inspect_shows_what_is_there() {
    let desk = Desk::with(EXPORT);
    let text = desk.run("inspect m.onnx").succeeds().stdout();
    assert!(text.contains("mixing sites (20)") && text.contains("stack-sum, 3 terms"), "{text}");
    assert!(text.contains("InstanceNormalization") && text.contains("predicted peak"), "{text}");
    let json = desk.run("inspect m.onnx --json").succeeds().stdout();
    let found: dmopt::Inspection = serde_json::from_str(&json).unwrap();
    assert_eq!((found.schema.as_str(), found.mixing_sites.len()), ("dmopt.inspect/1", 20));
    assert_eq!(found.operators.values().sum::<u64>(), found.nodes);
    let values: u64 = found.peak_values.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(values + found.peak_scratch_bytes, found.peak_bytes.unwrap());
    assert_eq!(desk.files(), ["m.onnx"]);
}

/// What shows only where the embedded runtime is built in.
#[cfg(feature = "tract")]
mod validated {
    use super::*;
    use dmopt::runtime::{self, Tolerance};
    use dmopt::{Proof, Source, Target, Verdict};

    #[test]
    fn outputs_that_differ_are_exit_code_3_and_the_output_stays_as_it_was() {
        let desk = Desk::with_text(CANCELLING);
        fs::write(desk.path("out.onnx"), "precious").unwrap();
        let done = desk.run("optimize m.onnx out.onnx --report r.json");
        assert_eq!(done.code(), 3, "{}", done.stderr());
        assert!(done.stderr().contains("out.rejected.onnx"), "{}", done.stderr());
        assert_eq!(desk.files(), ["m.onnx", "out.onnx", "out.rejected.onnx", "r.json"]);
        assert_eq!(fs::read_to_string(desk.path("out.onnx")).unwrap(), "precious");
        assert!(onnx::load(&desk.path("out.rejected.onnx")).is_ok());
        let report = desk.report("r.json");
        assert_eq!(report.validation.status, ValidationStatus::Failed);
        assert_eq!(report.output.path.as_deref(), Some("out.rejected.onnx"));
    }

    #[test]
    fn a_wrong_candidate_is_rejected_together_with_its_external_data() {
        let desk = external();
        let source = Source::open(&desk.path("a/m.onnx")).unwrap();
        let mut wrong = onnx::decode("m.onnx", source.bytes.clone()).unwrap();
        wrong.graph.as_mut().unwrap().node[0].op_type = Some("Sub".to_string());
        fs::create_dir(desk.path("b")).unwrap();
        let target = Target::File(desk.path("b/out.onnx"));
        let check = runtime::Options { tolerance: Tolerance { abs: 0.0, rel: 1e-3 }, ..Default::default() };
        let prove = |result: &runtime::ModelFile| {
            let found = runtime::validate(&source.file(), result, &check).unwrap();
            Ok(Proof { validations: vec![found], measured: Err("not asked for".to_string()) })
        };
        let placed = dmopt::place(wrong, &source, target, Some(&prove), false).unwrap();
        assert_eq!(placed.verdict, Verdict::Rejected { kept: Ok(desk.path("b/out.rejected.onnx")) });
        assert!(desk.path("b/weights.bin").is_file());
        assert!(!desk.path("b/out.onnx").exists());
    }
}
