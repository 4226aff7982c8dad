//! The order that the passes choose, as ONNX Runtime executes it: what is promised is what is measured.

use dmopt::ir::Sizes;
use dmopt::memory::ort::{Settings as PlanSettings, plan};
use dmopt::memory::steer::is_anchor;
use dmopt::passes::{Anchors, Options, Planning, run};
use dmopt_fixtures::{Form, Kind, Network};
use dmopt_onnx::Folder;

use super::cli::{Desk, EXPORT};

/// Only order, no other edit.
const ORDER: [&str; 2] = ["schedule-for-memory", "order-anchors"];

fn network(streams: usize) -> Network {
    let size = (64, 80);
    Network { kind: Kind::DirectMixingConv, form: Form::F13, streams, size, ..Network::default() }
}

fn import(bytes: Vec<u8>) -> dmopt_ir::Model {
    dmopt_onnx::parse("network", bytes.into(), Folder::new(".")).unwrap()
}

fn ordered(streams: usize, anchors: Anchors) -> dmopt_ir::Model {
    let mut model = import(network(streams).bytes());
    let options = Options {
        only: ORDER.map(String::from).to_vec(),
        planning: Planning { anchors, ..Planning::default() },
        ..Options::default()
    };
    run(&mut model, &options).unwrap();
    model
}

fn predicted(model: &dmopt_ir::Model) -> u64 {
    plan(&model.graph, &PlanSettings::default()).unwrap().first_run.peak_bytes
}

#[test]
fn order_alone_more_than_halves_what_an_accumulation_loop_takes() {
    for streams in [2, 4] {
        let mut before = import(network(streams).bytes());
        dmopt_ir::infer::infer_graph(&mut before.graph);
        let after = ordered(streams, Anchors::Auto);
        let (before, after) = (predicted(&before), predicted(&after));
        assert!(2 * after <= before, "{streams} streams: {before} to {after}");
    }
}

#[test]
fn without_anchors_no_operator_is_added() {
    let before = import(network(2).bytes());
    let (auto, never) = (ordered(2, Anchors::Auto), ordered(2, Anchors::Never));
    let anchors =
        |model: &dmopt_ir::Model| model.graph.ops().filter(|&id| is_anchor(&model.graph, id)).count();
    assert_eq!(anchors(&never), 0);
    assert_eq!(never.graph.op_count(), before.graph.op_count());
    assert!(anchors(&auto) > 0);
    assert_eq!(auto.graph.op_count(), before.graph.op_count() + anchors(&auto));
    assert!(
        predicted(&never) <= {
            let mut before = before;
            dmopt_ir::infer::infer_graph(&mut before.graph);
            predicted(&before)
        }
    );
}

#[test]
fn the_report_tells_how_good_the_order_is() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --no-validate --report r.json").succeeds();
    let report = desk.report("r.json");
    let [schedule] = &report.schedules[..] else { panic!("{:?}", report.schedules) };
    let bound = schedule.lower_bound_bytes.unwrap();
    assert!(bound <= schedule.after_bytes);
    assert!(schedule.after_bytes <= schedule.before_bytes);
    assert_eq!(schedule.optimal, schedule.after_bytes == bound);
    assert!(report.peak.predicted.after_bytes < report.peak.predicted.before_bytes);
    assert_eq!(report.arrangements, []);
}

/// Sums of products are harder to order here than what the file has for them.
#[test]
fn rewriting_that_stands_in_the_way_of_a_better_order_is_not_taken() {
    let desk = Desk::with("direct_mixing_conv_d18_n4_f12_dynamo.onnx");
    let peak = |passes: &str| {
        desk.run(&format!("optimize m.onnx m.opt.onnx {passes} --no-validate --report r.json")).succeeds();
        desk.report("r.json").peak.predicted.after_bytes.unwrap()
    };
    let ordered = peak("--passes schedule-for-memory,order-anchors");
    assert_eq!(peak(""), ordered);
    let report = desk.report("r.json");
    assert!(report.notes.iter().any(|note| note.contains("as in the original, in a better order")));
    assert!(!report.mixing_sites.is_empty());
    for site in &report.mixing_sites {
        assert_eq!(site.fate(), "left alone: the original's operators need no more");
    }
    let bytes = std::fs::read(desk.path("m.opt.onnx")).unwrap();
    desk.run("optimize m.opt.onnx again.onnx --no-validate").succeeds();
    assert_eq!(std::fs::read(desk.path("again.onnx")).unwrap(), bytes);
}

const BODIES: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (bool cond, float[256] x) => (float[256] y, float[2] k) {
        k = Constant<value = float[2] {1.0, 2.0}>()
        y = If(cond) <then_branch = t () => (float[256] r) { p = Exp(x) q = Abs(x) r = Add(p, q) },
                      else_branch = e () => (float[2] c) { c = Constant<value = float[2] {1.0, 2.0}>() }>
    }";

#[test]
fn bodies_have_no_say_in_what_is_proven_about_the_whole() {
    let desk = Desk::with_text(BODIES);
    let table = desk.run("optimize m.onnx --no-validate --report r.json").succeeds().stdout();
    assert!(!table.contains("no order below"), "{table}");
    let report = desk.report("r.json");
    for schedule in report.schedules.iter().filter(|schedule| !schedule.in_body) {
        assert_eq!(schedule.lower_bound_bytes, None);
    }
}

#[test]
fn half_precision_is_not_predicted_on_the_processor() {
    let text = "<ir_version: 10, opset_import: [\"\": 21]>
        g (float16[64] x) => (float16[64] y) { a = Exp(x) y = Abs(a) }";
    let desk = Desk::with_text(text);
    desk.run("optimize m.onnx --no-validate --report r.json").succeeds();
    let predicted = desk.report("r.json").peak.predicted;
    assert_eq!((predicted.before_bytes, predicted.after_bytes), (None, None));
    assert!(predicted.reason.unwrap().contains("casts"));
}

/// Sizes stand for open dimensions while the order is searched; what is written stays open.
#[test]
fn sizes_that_were_assumed_do_not_reach_the_file() {
    let desk = Desk::with(super::cli::SYMBOLIC);
    desk.run("optimize m.onnx --no-validate").succeeds();
    let written = dmopt::Source::open(&desk.path("m.opt.onnx")).unwrap().model().unwrap();
    let input = written.graph.inputs()[0];
    assert!(written.graph.tensor_type(input).unwrap().to_string().starts_with("float[batch,"));
}

#[cfg(feature = "ort")]
#[test]
fn what_is_promised_for_the_order_is_measured() {
    use dmopt::runtime::inputs::{Pins, random_inputs};
    use dmopt::runtime::ort::OnnxRuntime;
    use dmopt::runtime::{Ep, Level, ModelFile, Session as _, Settings};

    let Some(library) = super::memory::library() else { return };
    let runtime = OnnxRuntime::load(&library).unwrap();
    let settings = Settings { memory_pattern: false, arena: false, level: Level::Disabled };
    for (streams, anchors) in [(2, Anchors::Auto), (3, Anchors::Never), (4, Anchors::Auto)] {
        let model = ordered(streams, anchors);
        let proto = dmopt_onnx::export(&model, &Default::default()).unwrap();
        let file = ModelFile { bytes: dmopt_onnx::encode(&proto).concat().into(), folder: None };
        let interface = runtime.session(&file, settings, Ep::Cpu).unwrap().interface().clone();
        let sizes = Sizes::default();
        let inputs = random_inputs(&interface, &sizes.dims, &Pins::default(), 0).unwrap();
        let measured = runtime.memory(&file, settings, Ep::Cpu, &inputs).unwrap();
        assert_eq!(measured.first.bytes, predicted(&model), "{streams} streams, {anchors:?}");
    }
}

#[cfg(feature = "ort")]
#[test]
fn an_optimizing_session_gets_the_lightest_arrangement_that_was_measured() {
    let Some(library) = super::memory::library() else { return };
    let desk = Desk::new();
    std::fs::write(desk.path("m.onnx"), network(2).bytes()).unwrap();
    let library = library.display();
    desk.run(&format!("optimize m.onnx --validate-with ort --ort-lib {library} --report r.json")).succeeds();
    let report = desk.report("r.json");
    let measured = report.peak.measured.unwrap();
    assert!(!report.arrangements.is_empty());
    let least = report.arrangements.iter().map(|arrangement| arrangement.bytes).min();
    assert_eq!(least, Some(measured.after_bytes));
    assert!(measured.after_bytes < measured.before_bytes);
}

/// The concatenation is computed twice because in between something else needs its memory.
#[cfg(feature = "ort")]
const TWICE: &str = "<ir_version: 10, opset_import: [\"\": 21]>
    g (float[1,2048] x, float[1,2048] z) => (float[1,1] y) <int64[1] axis = {1}> {
        a = Concat<axis = 1>(x, z)  b = ReduceMax<keepdims = 1>(a, axis)
        c = Concat<axis = 1>(z, x)  e = Add(c, b)  f = ReduceMax<keepdims = 1>(e, axis)
        h = Concat<axis = 1>(x, z)  i = Mul(h, f)  y = ReduceMax<keepdims = 1>(i, axis)
    }";

#[cfg(feature = "ort")]
#[test]
fn what_is_computed_twice_on_purpose_is_so_in_a_session_that_merges_equal_operators() {
    let Some(library) = super::memory::library() else { return };
    let desk = Desk::with_text(TWICE);
    let tuned = format!("--session tuned --validate-with ort --ort-lib {}", library.display());
    let peak = |skip: &str| {
        desk.run(&format!("optimize m.onnx {skip} {tuned} --report r.json")).succeeds();
        let peak = desk.report("r.json").peak;
        (peak.predicted.after_bytes.unwrap(), peak.measured.unwrap().after_bytes)
    };
    let ((predicted, measured), (_, merged)) = (peak(""), peak("--skip keep-copies"));
    assert_eq!(measured, predicted);
    assert!(merged > measured, "{merged} bytes merged, {measured} apart");
}

/// Two or three channels become eight in a default session, which computes in blocks of channels.
#[cfg(feature = "ort")]
#[test]
fn a_session_in_which_rewriting_does_not_pay_gets_the_operators_of_the_original() {
    let Some(library) = super::memory::library() else { return };
    let desk = Desk::with(EXPORT);
    let library = library.display();
    desk.run(&format!("optimize m.onnx --validate-with ort --ort-lib {library} --report r.json")).succeeds();
    let report = desk.report("r.json");
    let measured = report.peak.measured.unwrap();
    assert!(measured.after_bytes <= measured.before_bytes, "{measured:?}");
    let least = report.arrangements.iter().map(|arrangement| arrangement.bytes).min();
    assert_eq!(least, Some(measured.after_bytes));
}
