//! `dmopt memory` as people and scripts use it. That its figures are those of ONNX Runtime is tested in `memory/`.

use std::fs;
use std::path::{Path, PathBuf};

use arbtest::arbtest;
use bytes::Bytes;
use dmopt::memory::{Kernels, Limits};
use dmopt::memory_report::Why;
use dmopt::{MemoryOptions, MemoryReport, Source, memory_report};
use dmopt_fixtures::random;
use dmopt_ir::Sizes;

use super::cli::{Desk, EXPORT, SYMBOLIC, bytes, proto};

/// Two tensors of 1 KiB wait for the end, one after the other is computed.
pub const SMALL: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (float[N,64] x) => (float[N,64] y) {
        a = Exp(x) b = Relu(a) c = Tanh(b) d = Abs(x) y = Sum(a, c, d)
    }";

/// A branch that needs two tensors beside its result.
const BRANCHES: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (bool cond, float[256] x) => (float[256] y) {
        a = Exp(x)
        y = If(cond) <then_branch = t () => (float[256] r) { p = Exp(a) q = Abs(p) s = Neg(q) r = Add(s, q) },
                      else_branch = e () => (float[256] r) { r = Abs(a) }>
    }";

fn json(desk: &Desk, arguments: &str) -> MemoryReport {
    serde_json::from_str(&desk.run(&format!("memory {arguments} --json")).succeeds().stdout()).unwrap()
}

/// In every step, what is listed adds up to what the step takes, and nothing takes more than the peak.
fn adds_up(report: &MemoryReport) {
    for (i, step) in report.order.iter().enumerate() {
        let there = report.buffers.iter().filter(|buffer| (buffer.from..=buffer.to).contains(&i));
        assert_eq!(there.map(|buffer| buffer.bytes).sum::<u64>(), step.live_bytes, "step {i}");
        assert!(step.total_bytes() <= report.peak_bytes);
    }
    let live: u64 = report.live.iter().map(|live| live.bytes).sum();
    assert_eq!(live + report.scratch_bytes, report.peak_bytes);
    if let Some(at) = &report.at {
        let step = &report.order[at.step];
        assert_eq!((step.total_bytes(), &step.node), (report.peak_bytes, &at.node));
        assert_eq!(step.scratch_bytes, report.scratch_bytes);
    }
    if let (Some(bound), Some(best)) = (report.lower_bound_bytes, report.best_order_bytes) {
        assert!(bound <= best && bound <= report.peak_bytes, "{bound} {best} {}", report.peak_bytes);
    }
}

#[test]
fn the_report_names_all_that_is_in_memory_at_the_peak() {
    let desk = Desk::with(EXPORT);
    let report = json(&desk, "m.onnx");
    adds_up(&report);
    assert_eq!((report.schema.as_str(), report.path.as_str()), ("dmopt.memory/1", "m.onnx"));
    assert_eq!((report.target.as_str(), report.ort_version.as_deref()), ("ort-cpu", Some("1.32")));
    assert_eq!(report.session.as_deref(), Some("default"));
    assert!(report.live.len() > 5 && report.live.is_sorted_by_key(|live| std::cmp::Reverse(live.bytes)));
    // The products of a mixing site wait for the operator that puts them together.
    let waiting = report.live.iter().filter(|live| live.reason == Why::ReadLater);
    assert!(waiting.clone().count() > 1 && waiting.clone().all(|live| live.by.is_some()));
    assert!(report.lower_bound_bytes.unwrap() < report.peak_bytes);
    assert_eq!(report.optimal, Some(false));
    assert_eq!(desk.files(), ["m.onnx"]);
}

#[test]
fn the_table_explains_the_whole_peak_on_one_screen() {
    let desk = Desk::with(EXPORT);
    let (report, text) = (json(&desk, "m.onnx"), desk.run("memory m.onnx").succeeds().stdout());
    assert!(text.lines().count() <= 50, "{text}");
    assert!(text.contains(&format!("{} B, step ", report.peak_bytes)), "{text}");
    let at = report.at.as_ref().unwrap();
    let (_, table) = text.split_once(&format!("in memory at step {}", at.step + 1)).unwrap();
    let (table, tensors) = table.split_once("tensors at the peak").unwrap();
    // Every tensor is in one of the groups.
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        let number = words.next()?.parse::<usize>().ok()?;
        words.next()?.starts_with("tensor").then_some(number)
    };
    assert_eq!(table.lines().filter_map(count).sum::<usize>(), report.live.len(), "{text}");
    assert!(table.contains("read later by") && table.contains(" sum "), "{text}");
    assert!(tensors.contains(&report.live[0].value), "{text}");
}

#[test]
fn top_chooses_how_many_tensors_are_listed() {
    let desk = Desk::with(EXPORT);
    let listed = |arguments: &str| {
        let text = desk.run(&format!("memory m.onnx {arguments}")).succeeds().stdout();
        let (_, list) = text.split_once("tensors at the peak").unwrap_or(("", ""));
        list.lines().filter(|line| line.contains('[')).count()
    };
    let all = json(&desk, "m.onnx").live.len();
    assert_eq!([listed("--top 0"), listed("--top 3"), listed("--top 1000")], [0, 3, all]);
}

#[test]
fn reasons_and_readers_are_those_of_the_model() {
    let report = json(&Desk::with_text(SMALL), "m.onnx --dim N=4");
    adds_up(&report);
    // In ONNX Runtime 1.32 a sum of three takes a temporary of the size of its result.
    assert_eq!((report.peak_bytes, report.scratch_bytes), (5 * 1024, 1024));
    assert_eq!(report.at.as_ref().unwrap().node, "Sum of 'y'");
    let live: Vec<(&str, Why)> = report.live.iter().map(|l| (l.value.as_str(), l.reason)).collect();
    let read = Why::Operand;
    assert_eq!(live, [("d", read), ("a", read), ("c", read), ("y", Why::Computed)]);
}

#[test]
fn the_peak_is_an_expression_in_open_dimensions() {
    let desk = Desk::with(SYMBOLIC);
    let mut seen = Vec::new();
    for batch in [1, 2, 5] {
        let report = json(&desk, &format!("m.onnx --dim batch={batch}"));
        assert_eq!(report.sizes, [("batch".to_string(), batch)].into());
        let expression = report.peak_expression.unwrap();
        let (slope, rest) = expression.split_once("*batch").unwrap();
        let constant: u64 = rest.strip_prefix(" + ").map_or(0, |n| n.parse().unwrap());
        assert_eq!(slope.parse::<u64>().unwrap() * batch + constant, report.peak_bytes, "{expression}");
        seen.push(report.peak_bytes);
    }
    assert!(seen.is_sorted() && seen[0] < seen[2]);
    assert_eq!(json(&Desk::with(EXPORT), "m.onnx").peak_expression, None);
    let nameless = Desk::with_text(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[?,3] x) => (float[?,3] y) { a = Exp(x) y = Abs(a) }",
    );
    let report = json(&nameless, "m.onnx --dim x.0=5");
    assert_eq!((report.peak_expression.as_deref(), report.peak_bytes), (Some("24*x.0"), 120));
}

#[test]
fn open_sizes_are_named_with_the_flags_that_give_them() {
    let symbolic = Desk::with(SYMBOLIC);
    symbolic.refuses("memory m.onnx", 1, &["m.onnx: ", "dimension batch is open (--dim batch=N gives it"]);
    let two = Desk::with_text(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[N,M] x) => (float[N,M] y) { y = Exp(x) }",
    );
    two.refuses("memory m.onnx", 1, &["dimensions M, N are open (--dim M=N --dim N=N gives them sizes)"]);
    two.refuses("memory m.onnx --dim K=1", 1, &["no input has a dimension named K"]);
    assert_eq!(json(&two, "m.onnx --input-shape x=3x4").peak_bytes, 48);
}

#[test]
fn what_is_no_model_is_one_line() {
    let desk = Desk::new();
    fs::write(desk.path("text.onnx"), "not a model").unwrap();
    desk.refuses("memory text.onnx", 1, &["text.onnx"]);
    desk.refuses("memory missing.onnx", 1, &["missing.onnx", "No such file"]);
    fs::write(desk.path("m.onnx"), bytes(proto(SMALL))).unwrap();
    desk.refuses("memory m.onnx text.onnx --dim N=1 --html out.html", 1, &["text.onnx"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let desk = Desk::with_text(SMALL);
    for wrong in [
        "memory",
        "memory m.onnx --target moon",
        "memory m.onnx --ort-version new",
        "memory m.onnx --session warm",
        "memory m.onnx --top -1",
        "memory m.onnx m.onnx m.onnx",
    ] {
        assert_eq!(desk.run(wrong).code(), 2, "{wrong}");
    }
}

#[test]
fn bodies_count_while_their_operator_runs_and_have_no_bound() {
    let desk = Desk::with_text(BRANCHES);
    let report = json(&desk, "m.onnx");
    adds_up(&report);
    assert_eq!(report.order.iter().map(|step| step.op_type.as_str()).collect::<Vec<_>>(), ["Exp", "If"]);
    assert!(report.scratch_bytes >= 1024 && report.at.as_ref().unwrap().step == 1);
    assert_eq!((report.lower_bound_bytes, report.best_order_bytes, report.optimal), (None, None, None));
    assert!(report.notes.iter().any(|note| note.contains("no lower bound")), "{:?}", report.notes);
    let text = desk.run("memory m.onnx").succeeds().stdout();
    assert!(text.contains("the bodies of this operator") && !text.contains("\nlower bound"), "{text}");
}

#[test]
fn sessions_and_targets_differ_as_they_say() {
    let desk = Desk::with(EXPORT);
    let [default, tuned, cuda, ideal] = ["", "--session tuned", "--target ort-cuda", "--target ideal"]
        .map(|a| json(&desk, &format!("m.onnx {a}")));
    [&default, &tuned, &cuda, &ideal].into_iter().for_each(adds_up);
    assert!(default.block_bytes.unwrap() > 0 && default.steady_peak_bytes >= default.peak_bytes);
    assert_eq!((tuned.block_bytes, tuned.steady_peak_bytes), (None, default.peak_bytes));
    assert!(default.notes[0].contains("default session") && tuned.notes[0].contains("BASIC"));
    assert!(cuda.notes.iter().any(|note| note.contains("cuDNN")) && cuda.target == "ort-cuda");
    assert!(ideal.peak_bytes < default.peak_bytes);
    assert_eq!((ideal.ort_version, ideal.session, ideal.scratch_bytes), (None, None, 0));
    let old = json(&desk, "m.onnx --ort-version 1.23");
    assert!(old.scratch_bytes + old.peak_bytes > default.peak_bytes, "convolutions took more before 1.27");
}

#[test]
fn operators_that_are_in_no_table_are_noted() {
    let desk = Desk::with_text(
        "<ir_version: 10, opset_import: [\"\": 21, \"com.example\": 1]>
         g (float[4] x) => (float[4] y) { y = com.example.Mystery(x) }",
    );
    let report = json(&desk, "m.onnx");
    assert!(
        report.notes.iter().any(|note| note.ends_with("com.example.Mystery (1 time)")),
        "{:?}",
        report.notes
    );
}

#[test]
fn two_models_are_compared() {
    let desk = Desk::with(SYMBOLIC);
    desk.run("optimize m.onnx o.onnx --no-validate -q").succeeds();
    let report = json(&desk, "m.onnx o.onnx --dim batch=64");
    let other = report.other.as_ref().unwrap();
    assert_eq!((other.path.as_str(), &other.other), ("o.onnx", &None));
    assert!(other.peak_bytes < report.peak_bytes);
    let change = (other.peak_bytes as f64 / report.peak_bytes as f64 - 1.0) * 100.0;
    let text = desk.run("memory m.onnx o.onnx --dim batch=64").succeeds().stdout();
    assert!(text.lines().next().unwrap().ends_with(&format!("{change:+.1} %")), "{text}");
    assert!(text.contains("\nm.onnx in ONNX Runtime") && text.contains("\no.onnx in ONNX Runtime"), "{text}");
}

#[test]
fn a_model_without_operators_needs_nothing() {
    let desk =
        Desk::with_text("<ir_version: 10, opset_import: [\"\": 21]> g (float[4] x) => (float[4] x) { }");
    let report = json(&desk, "m.onnx");
    assert_eq!((report.peak_bytes, report.at.clone(), report.live.len()), (0, None, 0));
    desk.run("memory m.onnx --html t.html --svg t.svg").succeeds();
}

#[test]
fn sizes_beyond_any_machine_are_no_panic() {
    let waiting: String = (0..10).map(|i| format!("a{i} = Exp(x) ")).collect();
    let desk = Desk::with_text(&format!(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[500000000,1000000000] x) => (float[500000000,1000000000] y)
         {{ {waiting} y = Sum(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9) }}"
    ));
    let report = json(&desk, "m.onnx --html t.html --svg t.svg");
    assert_eq!((report.peak_bytes, report.lower_bound_bytes), (u64::MAX, None));
    desk.run("memory m.onnx").succeeds();
    desk.refuses(
        "memory m.onnx --target ideal",
        1,
        &["m.onnx: the sizes of all values add up to more than 2^60 bytes"],
    );
}

/// The lower bound holds and everything adds up, whatever the graph and whoever runs it.
#[test]
fn random_models_add_up() {
    arbtest(|u| {
        let content = Bytes::from(bytes(random::graph(u)?));
        let source = Source::read("random", content.as_ref()).unwrap();
        let limits = Limits { states: 1_000, steps: 100_000 };
        let sizes = Sizes { dims: [("batch".to_string(), 3)].into(), ..Sizes::default() };
        for kernels in
            [Kernels::OrtCpu { version: (1, 32) }, Kernels::OrtCuda { version: (1, 32) }, Kernels::Ideal]
        {
            let open = MemoryOptions { kernels, limits, ..MemoryOptions::default() };
            let sized = MemoryOptions { sizes: sizes.clone(), ..open.clone() };
            // Not every model has a dimension of that name, and not every size is known.
            for options in [open, sized] {
                if let Ok(report) = memory_report(&source, &options) {
                    adds_up(&report);
                }
            }
        }
        Ok(())
    })
    .budget_ms(2_000);
}

/// The example in the documentation is what the command prints. `UPDATE_EXPECT=1` writes it there.
#[test]
fn the_documented_example_is_a_real_one() {
    let real = Desk::with_text(SMALL).run("memory m.onnx --dim N=4 --json").succeeds().stdout();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/memory-report.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once("```json\n").unwrap();
    let (example, tail) = rest.split_once("```").unwrap();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, format!("{head}```json\n{real}```{tail}")).unwrap();
        return;
    }
    assert_eq!(example, real);
}

/// The library under test, or `None` with a line that says so.
#[cfg(feature = "ort")]
pub fn library() -> Option<PathBuf> {
    use std::io::Write as _;

    let library = std::env::var_os("DMOPT_ORT_LIB");
    if library.is_none() {
        // Around the capture of the test harness: what is skipped has to show.
        let _ =
            writeln!(std::io::stderr(), "skipped: predicted and measured (DMOPT_ORT_LIB names no library)");
    }
    library.map(PathBuf::from)
}

/// What the command says is what a session takes: the first run and later ones, with memory patterns and without.
#[cfg(feature = "ort")]
#[test]
fn predicted_bytes_are_measured_bytes() {
    use dmopt::runtime::inputs::{Pins, random_inputs};
    use dmopt::runtime::ort::OnnxRuntime;
    use dmopt::runtime::{Ep, Level, Session as _, SessionKind, Settings};

    let Some(library) = library() else { return };
    let runtime = OnnxRuntime::load(&library).unwrap();
    let sizes = Sizes { dims: [("batch".to_string(), 3)].into(), ..Sizes::default() };
    for (name, sizes) in [(EXPORT, Sizes::default()), (SYMBOLIC, sizes)] {
        let desk = Desk::with(name);
        let source = Source::open(&desk.path("m.onnx")).unwrap();
        for session in [SessionKind::Default, SessionKind::Tuned] {
            let options = MemoryOptions { session, sizes: sizes.clone(), ..MemoryOptions::default() };
            let report = memory_report(&source, &options).unwrap();
            let settings = Settings {
                memory_pattern: session == SessionKind::Default,
                arena: false,
                level: Level::Disabled,
            };
            let interface = runtime.session(&source.file(), settings, Ep::Cpu).unwrap().interface().clone();
            let inputs = random_inputs(&interface, &report.sizes, &Pins::default(), 0).unwrap();
            let measured = runtime.memory(&source.file(), settings, Ep::Cpu, &inputs).unwrap();
            let found = (measured.first.bytes, measured.steady.bytes);
            assert_eq!((report.peak_bytes, report.steady_peak_bytes), found, "{name}, {session:?}");
        }
    }
}

/// How many elements are not zero is known when the model has run.
const DATA_DEPENDENT: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (float[4,8] x) => (float[2,k] y) { m = NonZero(x) c = Cast<to = 1>(m) e = Exp(c) y = Neg(e) }";

#[test]
fn a_size_that_depends_on_data_is_named_and_can_be_given() {
    let desk = Desk::with_text(DATA_DEPENDENT);
    desk.refuses("memory m.onnx", 1, &["'m'", "depends on data", "--dim m.1=N"]);
    let report = json(&desk, "m.onnx --dim m.1=10");
    adds_up(&report);
    // Two rows of ten: the indices are of 8 bytes, the rest of 4.
    assert_eq!(report.peak_bytes, 160 + 80);
    desk.run("optimize m.onnx --dim m.1=10").succeeds();
}
