//! Runtimes, and models against each other, as people and scripts see them. The library of ONNX Runtime is the one that
//! `DMOPT_ORT_LIB` names; without it, the tests that need one say that they were skipped.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use dmopt::onnx;
use dmopt::report::ValidationStatus;
use dmopt::validation::report::Report as Comparison;
use prost::Message;

use crate::cli::{Desk, EXPORT, bytes, proto};

/// The arguments that choose the library under test, or `None` with a line that says so.
pub fn ort() -> Option<String> {
    library("DMOPT_ORT_LIB")
}

fn library(variable: &str) -> Option<String> {
    let path = std::env::var(variable).ok().filter(|_| cfg!(feature = "ort"));
    if path.is_none() {
        // Not println!, whose output the test harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: a test of ONNX Runtime ({variable} names no library)");
    }
    path.map(|path| format!("--ort-lib {path}"))
}

fn comparison(desk: &Desk, arguments: &str) -> Comparison {
    serde_json::from_str(&desk.run(&format!("{arguments} --json")).stdout()).unwrap()
}

/// A copy of `m.onnx` with one constant off by a percent.
fn write_wrong(desk: &Desk, constant: &str) {
    let mut model = onnx::decode("m.onnx", fs::read(desk.path("m.onnx")).unwrap().into()).unwrap();
    let constants = &mut model.graph.as_mut().unwrap().initializer;
    let scalar = constants.iter_mut().find(|t| t.name.as_deref() == Some(constant)).unwrap();
    let raw = scalar.raw_data.clone().unwrap();
    let value = f32::from_le_bytes(raw[..].try_into().unwrap()) * 1.01;
    scalar.raw_data = Some(value.to_le_bytes().to_vec().into());
    fs::write(desk.path("wrong.onnx"), bytes(model)).unwrap();
}

const HEAD: &str = "<ir_version: 8, opset_import: [\"\": 17]> g (float[8,64] x) => (float[8,64] y)";

/// A model as `NAME.onnx`.
fn write(desk: &Desk, name: &str, text: &str) {
    fs::write(desk.path(name), bytes(proto(text))).unwrap();
}

/// Everything before the last operators is damped to a billionth.
fn damped(scalar: f64) -> String {
    format!(
        "{HEAD} <float s = {{{scalar}}}, float small = {{1e-9}}, float one = {{1.0}}> {{
            term = Mul(x, s) sum = Add(x, term) less = Mul(sum, small) y = Add(less, one)
        }}"
    )
}

#[test]
fn a_doctor_finds_nothing_wrong_with_a_machine_that_has_nothing() {
    let desk = Desk::new();
    let told = desk.run("doctor").succeeds().stdout();
    if cfg!(feature = "ort") {
        assert!(told.contains("pip install onnxruntime\n"), "{told}");
        assert!(told.contains("provider   missing: no ONNX Runtime"), "{told}");
    }
    assert_eq!(
        told.contains("dmopt validate  tract; memory is not measured"),
        cfg!(feature = "tract"),
        "{told}"
    );
    fs::write(desk.path("libonnxruntime.so"), "text").unwrap();
    let told = desk.run("doctor --ort-lib libonnxruntime.so").succeeds().stdout();
    assert_eq!(told.contains("problem"), cfg!(feature = "ort"), "{told}");
}

#[test]
fn a_doctor_names_what_is_used() {
    let Some(ort) = ort() else { return };
    let told = Desk::new().run(&format!("doctor {ort}")).succeeds().stdout();
    let used = told.lines().find(|line| line.starts_with("  onnxruntime ") && line.ends_with(" (used)"));
    let name = used.unwrap().trim().trim_end_matches(" (used)");
    for part in [&format!("dmopt validate  {name}"), "CPUExecutionProvider", "(--ort-lib)", "driver"] {
        assert!(told.contains(part), "'{part}' is not in {told}");
    }
}

#[test]
fn a_session_is_printed_in_three_languages() {
    let desk = Desk::new();
    let code = |arguments: &str| desk.run(&format!("session m.onnx {arguments}")).succeeds().stdout();
    assert!(code("").starts_with("import onnxruntime as ort\n"));
    assert!(code("--language cpp").contains("options.DisableMemPattern();"));
    assert!(code("--language rust --ep cuda:1").contains("\"device_id\", \"1\""));
    assert_eq!(desk.run("session m.onnx --language cobol").code(), 2);
    assert_eq!(desk.run("session m.onnx --ep tpu").code(), 2);
}

#[test]
fn a_runtime_that_is_asked_for_and_not_there_is_exit_code_5() {
    let desk = Desk::with(EXPORT);
    fs::write(desk.path("libonnxruntime.so"), "text").unwrap();
    for arguments in ["--validate-with ort", "--validate-with both", "--ep cuda"] {
        desk.refuses(&format!("optimize m.onnx -q {arguments}"), 5, &["ONNX Runtime"]);
    }
    desk.refuses("validate m.onnx m.onnx --runtime ort", 5, &["ONNX Runtime"]);
    if cfg!(feature = "ort") {
        let broken = "--ort-lib libonnxruntime.so";
        desk.refuses(&format!("optimize m.onnx -q {broken}"), 5, &["libonnxruntime.so (--ort-lib)"]);
        desk.refuses(&format!("validate m.onnx m.onnx {broken}"), 5, &["libonnxruntime.so (--ort-lib)"]);
    }
}

#[test]
fn cuda_that_is_not_there_is_exit_code_5_and_says_what_is_missing() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    let missing = ["CUDAExecutionProvider is not available", "was built without it", "onnxruntime-gpu"];
    desk.refuses(&format!("validate m.onnx m.onnx --ep cuda {ort}"), 5, &missing);
    desk.refuses(&format!("optimize m.onnx -q --ep cuda {ort}"), 5, &missing);
}

#[test]
fn the_embedded_runtime_is_never_cuda() {
    let desk = Desk::with(EXPORT);
    desk.refuses("validate m.onnx m.onnx --runtime tract --ep cuda", 5, &["embedded runtime"]);
}

#[test]
fn other_inputs_or_outputs_are_an_error_before_anything_runs() {
    let desk = Desk::with_text(&damped(0.5));
    let other = |from: &str, to: &str, about: &str| {
        write(&desk, "other.onnx", &damped(0.5).replace(from, to));
        desk.refuses(
            "validate m.onnx other.onnx",
            1,
            &["other.onnx has another interface than m.onnx", about],
        );
    };
    other("float[8,64] y)", "float[8,64] y, float[8,64] sum)", "it has 2 outputs instead of 1");
    other("(float[8,64] x)", "(float[64] x)", "input x is float[64], not float[8,64]");
    let renamed = damped(0.5).replace("float[8,64] x", "float[8,64] z").replace("(x,", "(z,");
    write(&desk, "other.onnx", &renamed);
    desk.refuses("validate m.onnx other.onnx", 1, &["input x is named z"]);
}

#[test]
fn both_models_cannot_come_through_one_pipe() {
    assert_eq!(Desk::new().run("validate - -").code(), 2);
}

#[test]
fn wrong_usage_of_validate_is_exit_code_2() {
    let desk = Desk::with(EXPORT);
    for wrong in
        ["--max-peak-ratio 0", "--runtime both", "--session fast", "--inputs x.npz --seeds 2", "--ep gpu"]
    {
        assert_eq!(desk.run(&format!("validate m.onnx m.onnx {wrong}")).code(), 2, "{wrong}");
    }
}

#[test]
#[cfg(feature = "tract")]
fn without_onnx_runtime_the_embedded_one_compares_and_memory_is_not_measured() {
    let desk = Desk::with_text(&damped(0.5));
    let found = comparison(&desk, "validate m.onnx m.onnx");
    assert_eq!((found.runtime.name.as_str(), found.outputs.status), ("tract", ValidationStatus::Passed));
    assert!(found.memory.is_none() && found.memory_reason.unwrap().contains("tract"));
    assert_eq!(found.latency.unwrap().runs, 10);
    let limited = desk.run("validate m.onnx m.onnx --max-peak-ratio 2");
    assert_eq!(limited.code(), 5);
    assert!(limited.stderr().contains("peak memory is limited but was not measured"), "{}", limited.stderr());

    let table = desk.run("optimize m.onnx --report r.json").succeeds().stdout();
    assert!(
        table.contains("not measured: onnxruntime is not available") || cfg!(not(feature = "ort")),
        "{table}"
    );
    let report = desk.report("r.json");
    assert_eq!(report.validations.len(), 1);
    assert!(report.peak.measured.is_none() && report.peak.measured_reason.is_some());
}

/// In every runtime that is there: arguments that choose it.
fn runtimes() -> Vec<String> {
    let embedded = cfg!(feature = "tract").then(|| "--runtime tract".to_string());
    embedded.into_iter().chain(ort()).collect()
}

#[test]
fn a_scalar_off_by_a_percent_is_exit_code_3_and_the_first_value_that_differs_is_named() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    write_wrong(&desk, "blocks.3.sites.1.mixing.a.0");
    let done = desk.run(&format!("validate m.onnx wrong.onnx --runs 0 --seeds 1 --json {ort}"));
    assert_eq!(done.code(), 3, "{}", done.stderr());
    let found: Comparison = serde_json::from_str(&done.stdout()).unwrap();
    let first = found.first_divergence.unwrap().value;
    assert_eq!(first, "/blocks.3/sites.1/mixing/Mul_output_0");
    assert!(done.stderr().contains(&first), "{}", done.stderr());
}

#[test]
fn a_mistake_that_the_network_damps_shows_inside_unless_only_outputs_count() {
    let desk = Desk::with_text(&damped(0.5));
    write(&desk, "wrong.onnx", &damped(0.505));
    for runtime in runtimes() {
        let arguments = format!("validate m.onnx wrong.onnx --runs 0 {runtime}");
        let done = desk.run(&arguments);
        assert_eq!(done.code(), 3, "{runtime}: {}", done.stderr());
        assert!(done.stderr().contains("the first value that differs is term:"), "{}", done.stderr());
        desk.run(&format!("{arguments} --outputs-only")).succeeds();
    }
}

#[test]
fn a_reference_that_does_not_run_is_exit_code_5() {
    let foreign =
        "<ir_version: 8, opset_import: [\"\": 17, \"com.example\": 1]> g (float[4] x) => (float[4] y)
        { y = com.example.Mystery(x) }";
    let desk = Desk::with_text(foreign);
    for runtime in runtimes() {
        let done = desk.run(&format!("validate m.onnx m.onnx {runtime}"));
        assert_eq!(done.code(), 5, "{}", done.stderr());
        assert!(done.stderr().contains("nothing was compared") && done.stderr().contains("Mystery"));
    }
}

/// Eight products of `x` summed up as they come, or each right after it is made.
fn sums(interleaved: bool) -> String {
    let scalars: Vec<String> = (0..8).map(|i| format!("float s{i} = {{0.{}}}", i + 1)).collect();
    let mut body = String::new();
    let product = |i: usize| format!("m{i} = Mul(x, s{i}) ");
    if interleaved {
        body.extend((0..8).map(product));
    }
    for i in 1..8 {
        // ONNX Runtime runs the last of several operators that could run next first.
        let before = if i == 1 { "m0".to_string() } else { format!("a{}", i - 1) };
        let after = if i == 7 { "y".to_string() } else { format!("a{i}") };
        if !interleaved {
            body += &(if i == 1 { product(0) } else { String::new() } + &product(i));
        }
        body += &format!("{after} = Add({before}, m{i}) ");
    }
    format!("{HEAD} <{}> {{ {body} }}", scalars.join(", "))
}

#[test]
fn memory_is_the_same_to_the_byte_in_every_run_of_the_command_and_can_be_limited() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with_text(&sums(false));
    write(&desk, "low.onnx", &sums(true));
    let unit = 8 * 64 * 4;
    let measure =
        |arguments: &str| comparison(&desk, &format!("validate {arguments} --runs 0 {ort}")).memory.unwrap();
    let memory = measure("m.onnx low.onnx --session tuned");
    assert_eq!((memory.reference.peak_bytes, memory.candidate.peak_bytes), (9 * unit, 3 * unit));
    assert_eq!(memory, measure("m.onnx low.onnx --session tuned"));
    assert_eq!(memory.peak_ratio, 3.0 / 9.0);
    let default = measure("m.onnx low.onnx");
    assert_eq!(default, measure("m.onnx low.onnx"));
    assert!(default.reference.arena.unwrap().held_bytes >= default.reference.peak_bytes);

    desk.run(&format!("validate m.onnx low.onnx --max-peak-ratio 1.0 {ort}")).succeeds();
    let done = desk.run(&format!("validate low.onnx m.onnx --session tuned --max-peak-ratio 1.0 {ort}"));
    assert_eq!(done.code(), 4, "{}", done.stderr());
    assert!(
        done.stderr().ends_with("m.onnx: peak memory is 3.0000 times that of the reference, not at most 1\n")
    );
}

/// What is counted is what a process takes in ONNX Runtime's own Python package, as the system sees it.
#[test]
#[cfg(target_os = "linux")]
fn memory_agrees_with_that_of_a_process_within_two_percent() {
    let (Some(ort), Some(python)) = (ort(), std::env::var_os("DMOPT_PYTHON")) else { return };
    let desk = Desk::with_text(&sums(false).replace("[8,64]", "[1024,1024]"));
    let found =
        comparison(&desk, &format!("validate m.onnx m.onnx --runs 0 --session tuned --seeds 1 {ort}"));
    let counted = found.memory.unwrap().reference.peak_bytes;
    assert_eq!(counted, 9 << 22);
    let mut script = std::process::Command::new(python);
    script.arg("scripts/process_memory.py").arg(desk.path("m.onnx")).current_dir(env!("CARGO_MANIFEST_DIR"));
    let told = String::from_utf8(script.output().unwrap().stdout).unwrap();
    let resident: f64 = told.trim().split_once(" bytes").unwrap().0.replace(',', "").parse().unwrap();
    let ratio = resident / counted as f64;
    assert!((0.98..1.02).contains(&ratio), "{counted} bytes counted, {told}");
}

#[test]
fn an_older_version_measures_too_without_telling_scratch_apart() {
    let Some(old) = library("DMOPT_ORT_LIB_OLD") else { return };
    let desk = Desk::with_text(&sums(false));
    let found = comparison(&desk, &format!("validate m.onnx m.onnx --runs 0 --session tuned {old}"));
    let peak = found.memory.unwrap().reference.steady;
    assert_eq!((peak.bytes, peak.scratch), (9 * 8 * 64 * 4, None));
    assert!(found.runtime.name.starts_with("onnxruntime 1.2"), "{}", found.runtime.name);
}

/// `y = Relu(conv(x) + bias + x)`, which no first step of a sum can take the bias of.
const RESIDUAL: &str = "<ir_version: 8, opset_import: [\"\": 17]> g (float[1,2,4,4] x) => (float[1,2,4,4] y)
    <float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {5, 6}> { r = Relu(x) c = Conv(r, w, b) s = Add(c, r) y = Relu(s) }";

#[test]
fn a_result_says_which_version_it_needs_and_older_ones_are_refused() {
    let (Some(new), Some(old)) = (ort(), library("DMOPT_ORT_LIB_OLD")) else { return };
    let desk = Desk::with_text(RESIDUAL);
    let table =
        desk.run(&format!("optimize m.onnx --target ort-cpu --report r.json {new}")).succeeds().stdout();
    assert_eq!(desk.report("r.json").min_onnxruntime.as_deref(), Some("1.27"));
    assert!(table.contains("needs             onnxruntime 1.27 or later"), "{table}");
    desk.run(&format!("validate m.onnx m.opt.onnx --runs 0 {new}")).succeeds();
    let refused = desk.run(&format!("validate m.onnx m.opt.onnx --runs 0 {old}"));
    assert_eq!(refused.code(), 5);
    assert!(refused.stderr().contains("m.opt.onnx needs ONNX Runtime 1.27 or later, and what was found is"));
    let refused = desk.run(&format!("optimize m.opt.onnx again.onnx --target ort-cpu {old}"));
    assert_eq!(refused.code(), 5);
    assert!(refused.stderr().contains("m.opt.onnx needs ONNX Runtime 1.27"), "{}", refused.stderr());
    assert!(!desk.path("again.onnx").exists());
    let suited = desk.run(&format!("optimize m.onnx --target ort-cpu --report r.json {old}")).succeeds();
    let reason = "a step with a bias and an accumulator needs ONNX Runtime 1.27";
    assert!(suited.stdout().contains(reason), "{}", suited.stdout());
    assert_eq!(desk.report("r.json").min_onnxruntime, None);
    let portable = desk.run(&format!("optimize m.onnx --report r.json {old}")).succeeds();
    assert!(!portable.stdout().contains("needs"));
    assert_eq!(desk.report("r.json").min_onnxruntime, None);
}

#[test]
fn optimize_validates_in_both_runtimes_and_measures_in_one() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    let table = desk.run(&format!("optimize m.onnx --report r.json {ort}")).succeeds().stdout();
    let report = desk.report("r.json");
    let measured = report.peak.measured.unwrap();
    assert_eq!((measured.ep.as_str(), measured.session.as_str()), ("cpu", "default"));
    assert!(measured.runtime.starts_with("onnxruntime 1.") && measured.before_bytes > 0, "{measured:?}");
    assert!(table.contains("measured peak") && table.contains(&measured.runtime), "{table}");
    let ran: Vec<&str> = report.validations.iter().filter_map(|v| v.runtime.as_deref()).collect();
    let expected =
        if cfg!(feature = "tract") { vec!["tract", &measured.runtime] } else { vec![&*measured.runtime] };
    assert_eq!(ran, expected);
    assert!(report.validations.iter().all(|v| v.status == ValidationStatus::Passed));
    assert!(report.validation.inside.is_some(), "values inside are compared in the first of them");

    let again = comparison(&desk, &format!("validate m.onnx m.opt.onnx --runs 0 {ort}")).memory.unwrap();
    assert_eq!(
        (again.reference.peak_bytes, again.candidate.peak_bytes),
        (measured.before_bytes, measured.after_bytes)
    );
}

#[test]
fn optimize_with_onnx_runtime_alone_compares_values_inside() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    desk.run(&format!("optimize m.onnx --validate-with ort --session tuned --report r.json {ort}"))
        .succeeds();
    let report = desk.report("r.json");
    assert_eq!(report.validations.len(), 1);
    assert!(report.validation.inside.is_some_and(|inside| inside.values > 100), "{:?}", report.validation);
    assert_eq!(report.peak.measured.unwrap().session, "tuned");
}

/// `x` as `.npy` data: a vector of one element, or with another type.
fn npy(kind: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(elements);
    file
}

fn write_npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut archive = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, data) in arrays {
        archive.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(data).unwrap();
    }
    archive.finish().unwrap();
}

const SIGNED: &str =
    "<ir_version: 8, opset_import: [\"\": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }";
const UNSIGNED: &str =
    "<ir_version: 8, opset_import: [\"\": 17]> g (float[N] x) => (float[N] y) { y = Abs(x) }";

#[test]
fn inputs_come_from_a_numpy_archive() {
    let desk = Desk::with_text(SIGNED);
    write(&desk, "other.onnx", UNSIGNED);
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    for runtime in runtimes() {
        let validate = format!("validate m.onnx other.onnx --runs 0 {runtime}");
        assert_eq!(desk.run(&validate).code(), 3, "random numbers have either sign");
        write_npz(&desk.path("x.npz"), &[("x", npy("<f4", "(2,)", &floats(&[1.0, 2.0])))]);
        desk.run(&format!("{validate} --inputs x.npz")).succeeds();
        write_npz(&desk.path("x.npz"), &[("x", npy("<f4", "(2,)", &floats(&[1.0, -2.0])))]);
        assert_eq!(desk.run(&format!("{validate} --inputs x.npz")).code(), 3);
    }
    write_npz(&desk.path("x.npz"), &[("x", npy("<i4", "(1,)", &[0; 4]))]);
    desk.refuses(
        "validate m.onnx other.onnx --inputs x.npz",
        1,
        &["x.npz", "input x is float[N], not int32[1]"],
    );
    write_npz(&desk.path("x.npz"), &[("z", npy("<f4", "(1,)", &[0; 4]))]);
    desk.refuses("validate m.onnx other.onnx --inputs x.npz", 1, &["no input named z (it has x)"]);
    desk.refuses("validate m.onnx other.onnx --inputs none.npz", 1, &["none.npz"]);
    desk.refuses("validate m.onnx other.onnx --inputs m.onnx", 1, &["m.onnx"]);
}

fn write_tensor(path: &Path, values: &[f32]) {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensor = onnx::schema::TensorProto {
        dims: vec![values.len() as i64],
        data_type: Some(1),
        raw_data: Some(raw.into()),
        ..Default::default()
    };
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, tensor.encode_to_vec()).unwrap();
}

#[test]
fn inputs_come_in_the_layout_of_test_data_and_outputs_in_it_are_compared() {
    let desk = Desk::with_text(SIGNED);
    write_tensor(&desk.path("data/test_data_set_0/input_0.pb"), &[1.0, -2.0]);
    write_tensor(&desk.path("data/test_data_set_0/output_0.pb"), &[1.0, 0.0]);
    for runtime in runtimes() {
        let validate = format!("validate m.onnx m.onnx --runs 0 --inputs data {runtime}");
        desk.run(&validate).succeeds();
        let expected = comparison(&desk, &validate).expected.unwrap();
        assert_eq!((expected.sets, expected.max_rel, expected.reason), (1, 0.0, None));
        write_tensor(&desk.path("data/test_data_set_1/input_0.pb"), &[1.0]);
        write_tensor(&desk.path("data/test_data_set_1/output_0.pb"), &[1.5]);
        let done = desk.run(&validate);
        assert_eq!(done.code(), 3, "{}", done.stderr());
        assert!(done.stderr().contains("m.onnx does not give the outputs that came with its inputs"));
        fs::remove_dir_all(desk.path("data/test_data_set_1")).unwrap();
    }
    desk.refuses("validate m.onnx m.onnx --inputs .", 1, &["no input_0.pb"]);
}

/// The script that measures on a GPU, in the root of the repository.
fn gpu_script(arguments: &[&str]) -> std::process::Output {
    let mut script = std::process::Command::new("bash");
    script.arg("scripts/gpu_validate.sh").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    script.output().unwrap()
}

#[test]
#[cfg(unix)]
fn the_gpu_script_measures_every_model_in_both_sessions_on_cuda() {
    let done = gpu_script(&["--dry-run", "--ort-lib", "lib.so", "--models", "no/such/folder"]);
    assert_eq!(gpu_script(&["--dry-run", "--only", "no such model"]).status.code(), Some(2));
    assert!(done.status.success());
    let lines = String::from_utf8(done.stdout).unwrap();
    let compared: Vec<&str> = lines.lines().filter(|line| line.contains(" validate ")).collect();
    assert_eq!(compared.len(), 10, "{lines}");
    assert!(compared.iter().all(|line| line.contains("--ep cuda") && line.ends_with("--ort-lib lib.so")));
    let made = lines.lines().filter(|line| line.contains(" optimize ") && line.contains("--ep cuda"));
    assert_eq!(made.count(), 10, "{lines}");
    for part in ["d18-n2-b4", "d18-n2-b32", "d18-n4-b4", "d18-n4-b32", "layer-n2-b32"] {
        assert_eq!(
            compared.iter().filter(|line| line.contains(&format!("{part}.onnx"))).count(),
            2,
            "{part}"
        );
    }
}

#[test]
#[cfg(unix)]
fn the_gpu_script_writes_a_table_where_there_is_a_device_and_stops_where_there_is_none() {
    use dmopt_fixtures::Layer;
    let Some(ort) = ort() else { return };
    let desk = Desk::new();
    let layer = Layer { streams: 2, channels: 4, batch: 1, size: (8, 8) };
    fs::write(desk.path("layer-n2-b32.onnx"), layer.bytes()).unwrap();
    let (models, table) = (desk.path("").display().to_string(), desk.path("table.md"));
    let run = |ep: &str| {
        let output = table.display().to_string();
        let mut arguments = vec!["--dmopt", env!("CARGO_BIN_EXE_dmopt"), "--models", &models, "--runs", "1"];
        arguments.extend(["--only", "layer", "--output", &output, "--ep", ep]);
        arguments.extend(ort.split(' '));
        gpu_script(&arguments)
    };
    let done = run("cpu");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = fs::read_to_string(&table).unwrap();
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("| passed, ")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(rows.iter().all(|row| row.matches(" / ").count() == 6), "{text}");
    assert_eq!(run("cuda").status.code(), Some(5));
}

#[test]
fn the_script_for_operators_measures_what_is_predicted() {
    let (Some(ort), Some(python)) = (ort(), std::env::var_os("DMOPT_PYTHON")) else { return };
    let mut script = std::process::Command::new(python);
    script.arg("scripts/gpu_operators.py").args(["--ep", "cpu", "--dmopt", env!("CARGO_BIN_EXE_dmopt")]);
    script.args(["--only", "Relu,Add,MaxPool", "--jobs", "1"]).args(ort.split(' '));
    let done = script.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let table = String::from_utf8(done.stdout).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.ends_with("| 0 |  | 0 |")).collect();
    assert_eq!(rows.len(), 4, "{table}");
}

/// The example in a page of the documentation has the fields of a real report, no more and no fewer.
/// `UPDATE_EXPECT=1` writes the real one there.
fn documents<R: serde::Serialize + serde::de::DeserializeOwned>(page: &str, real: &R) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once("```json\n").unwrap();
    let (example, tail) = rest.split_once("\n```").unwrap();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let example = serde_json::to_string_pretty(real).unwrap();
        fs::write(&path, format!("{head}```json\n{example}\n```{tail}")).unwrap();
        return;
    }
    let example: serde_json::Value = serde_json::from_str(example).unwrap();
    assert_eq!(shape(&example), shape(&serde_json::to_value(real).unwrap()));
    serde_json::from_value::<R>(example).unwrap();
}

#[test]
#[cfg(feature = "tract")]
fn the_documented_report_is_a_real_one() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    desk.run(&format!("optimize m.onnx --session tuned --report r.json {ort}")).succeeds();
    let mut real = desk.report("r.json");
    real.passes.truncate(2);
    real.mixing_sites.truncate(2);
    documents("report.md", &real);
}

#[test]
fn the_documented_comparison_is_a_real_one() {
    let Some(ort) = ort() else { return };
    let desk = Desk::with(EXPORT);
    write_wrong(&desk, "blocks.3.sites.1.mixing.a.0");
    documents("validation.md", &comparison(&desk, &format!("validate m.onnx wrong.onnx --runs 100 {ort}")));
}

/// Paths to all values, with their kinds.
fn shape(value: &serde_json::Value) -> Vec<String> {
    use serde_json::Value;
    let below =
        |name: String, value: &Value| shape(value).into_iter().map(move |path| format!("{name}.{path}"));
    match value {
        Value::Object(fields) => fields.iter().flat_map(|(name, v)| below(name.clone(), v)).collect(),
        Value::Array(items) => items.iter().enumerate().flat_map(|(i, v)| below(i.to_string(), v)).collect(),
        Value::Null => vec!["null".to_string()],
        Value::Bool(_) => vec!["bool".to_string()],
        Value::Number(_) => vec!["number".to_string()],
        Value::String(_) => vec!["string".to_string()],
    }
}

/// The embedded runtime makes double zeros of a shape, where float ones are meant.
#[test]
#[cfg(feature = "tract")]
fn a_runtime_that_is_wrong_about_the_original_has_no_say() {
    let Some(ort) = ort() else { return };
    let text = "g (float[2] x) => (float[3] y, float[2] z) <int64[1] shape = {3}> { y = ConstantOfShape(shape) z = Neg(x) }";
    let desk = Desk::with_text(text);
    let done = desk.run(&format!("optimize m.onnx out.onnx {ort} --report r.json"));
    assert_eq!(done.code(), 0, "{}", done.stderr());
    let report = desk.report("r.json");
    let statuses: Vec<ValidationStatus> = report.validations.iter().map(|found| found.status).collect();
    assert_eq!(statuses, [ValidationStatus::Skipped, ValidationStatus::Passed]);
    let reason = report.validations[0].reason.clone().unwrap();
    assert!(reason.starts_with("what it makes of the original is not what onnxruntime"), "{reason}");
    // Alone it decides.
    assert_eq!(desk.run("optimize m.onnx alone.onnx").code(), 3);
}

/// Of nothing but minus infinity, the embedded runtime takes the least number for the maximum. The sum of products is
/// rounded once where it is folded, and twice in both runtimes.
#[test]
#[cfg(feature = "tract")]
fn a_runtime_that_is_wrong_about_the_original_need_not_be_nearer_to_the_result() {
    let Some(ort) = ort() else { return };
    let text = "g (float[2] x) => (float[2,1] y, float[2] z) <float[1,2] a = {-1, -1}, float[1,2] b = {0, 0},
        float[1,3] p = {1, 5.9604645e-8, 5.9604645e-8}, float[3,1] q = {1, 1, 1}> {
        d = Div(a, b) m = ReduceMax(d) s = MatMul(p, q) y = Concat<axis = 0>(m, s) z = Neg(x) }";
    let desk = Desk::with_text(text);
    desk.run(&format!("optimize m.onnx out.onnx {ort} --report r.json")).succeeds();
    let statuses = desk.report("r.json").validations.into_iter().map(|found| found.status);
    assert_eq!(statuses.collect::<Vec<_>>(), [ValidationStatus::Skipped, ValidationStatus::Passed]);
}
