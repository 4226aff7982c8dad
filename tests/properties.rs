//! What holds for every model, tried on random ones: combinations keep their value, graphs stay sound, and a second
//! run finds nothing to do, or what needs less.
//!
//! A failure prints its seed; `arbtest(..).seed(..)` runs it again.

use std::collections::HashSet;

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;
use bytes::Bytes;
use dmopt_fixtures::random::{self, Combination};
use dmopt_ir::text::print_model;
use dmopt_ir::{Graph, Model, OpId, Safety, verify_model};
use dmopt_onnx::schema::ModelProto;
use dmopt_onnx::{ExportOptions, Folder};
use dmopt_passes::{Options, Outcome, PIPELINE, Planning, Stage, Target};

/// Milliseconds for each property.
const BUDGET: u64 = 2_000;

fn import(bytes: &Bytes) -> Model {
    dmopt_onnx::parse("random", bytes.clone(), Folder::new(".")).unwrap_or_else(|error| panic!("{error}"))
}

fn export(model: &Model) -> Bytes {
    let proto =
        dmopt_onnx::export(model, &ExportOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    encode(&proto)
}

fn encode(proto: &ModelProto) -> Bytes {
    dmopt_onnx::encode(proto).concat().into()
}

fn run(model: &mut Model, options: Options<'_>) -> Outcome {
    let before = print_model(model);
    let options = Options { verify: true, ..options };
    dmopt_passes::run(model, &options).unwrap_or_else(|error| panic!("{error}\n{before}"))
}

/// All passes, for any target.
fn for_any_target(u: &mut Unstructured<'_>) -> Result<Options<'static>> {
    let planning = Planning { target: *u.choose(&Target::ALL)?, ..Planning::default() };
    Ok(Options { planning, ..Options::default() })
}

/// A graph of any kind.
fn any(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let model = match u.int_in_range(0..=2)? {
        0 => random::graph(u)?,
        1 => Combination::arbitrary(u)?.build(),
        _ => random::normalized(u)?,
    };
    Ok(encode(&model))
}

/// Names and types of what a model reads and writes.
fn interface(model: &Model) -> Vec<String> {
    let graph = &model.graph;
    let ports = graph.inputs().iter().chain(graph.outputs());
    ports.map(|&v| format!("{} {:?}", graph.value(v).name, graph.value(v).ty)).collect()
}

fn sound(model: &Model, before: &str) {
    let violations = verify_model(model);
    assert!(violations.is_empty(), "{violations:?}\nfrom\n{before}\nto\n{}", print_model(model));
}

#[test]
fn every_pass_alone_leaves_a_sound_graph_with_the_same_interface() {
    arbtest(|u| {
        let bytes = any(u)?;
        for pass in PIPELINE {
            let mut model = import(&bytes);
            let (before, ports) = (print_model(&model), interface(&model));
            sound(&model, &before);
            run(&mut model, Options { only: vec![pass.name().to_string()], ..Options::default() });
            sound(&model, &before);
            assert_eq!(interface(&model), ports, "{} on\n{before}", pass.name());
        }
        Ok(())
    })
    .budget_ms(BUDGET);
}

#[test]
fn all_passes_together_leave_a_sound_graph_with_the_same_interface_that_can_be_written() {
    arbtest(|u| {
        let options = for_any_target(u)?;
        let mut model = import(&any(u)?);
        let (before, ports) = (print_model(&model), interface(&model));
        run(&mut model, options);
        sound(&model, &before);
        assert_eq!(interface(&model), ports, "{before}");
        let again = import(&export(&model));
        sound(&again, &before);
        assert_eq!(interface(&again), ports, "{before}");
        Ok(())
    })
    .budget_ms(BUDGET);
}

/// Those of bodies included: a branch that is always taken becomes part of the graph around it.
fn convolutions(graph: &Graph) -> usize {
    let within = |op: OpId| graph.op(op).bodies().map(convolutions).sum::<usize>();
    graph.ops().map(|op| usize::from(graph.op(op).is("Conv")) + within(op)).sum()
}

/// Runtimes refuse files in which two operators have one name.
#[test]
fn all_passes_together_repeat_no_name() {
    arbtest(|u| {
        let mut model = import(&any(u)?);
        let before = print_model(&model);
        run(&mut model, Options::default());
        let graph = &model.graph;
        let mut names = HashSet::new();
        for name in graph.ops().map(|op| &graph.op(op).name).filter(|name| !name.is_empty()) {
            assert!(names.insert(name), "{name} twice\nfrom\n{before}\nto\n{}", print_model(&model));
        }
        Ok(())
    })
    .budget_ms(BUDGET);
}

/// A second convolution of what the first one reads costs more than it saves. Passes that offer to split layers are left
/// out: several that read less each are what they are for.
#[test]
fn passes_repeat_no_convolution_unless_they_split_it() {
    arbtest(|u| {
        let mut model = import(&any(u)?);
        let (before, count) = (print_model(&model), convolutions(&model.graph));
        let offering = PIPELINE.iter().filter(|pass| pass.stage() == Stage::Offering);
        let skip = offering.map(|pass| pass.name().to_string()).collect();
        run(&mut model, Options { skip, ..Options::default() });
        assert!(convolutions(&model.graph) <= count, "\nfrom\n{before}\nto\n{}", print_model(&model));
        Ok(())
    })
    .budget_ms(BUDGET);
}

/// The search for offers goes through some of their combinations, and may find another from where it ended.
#[test]
fn a_second_run_changes_nothing_but_to_bring_the_peak_down_by_another_offer() {
    arbtest(|u| {
        let planning = for_any_target(u)?.planning;
        let options = || Options { planning: planning.clone(), ..Options::default() };
        let mut model = import(&any(u)?);
        let before = print_model(&model);
        let first = run(&mut model, options());
        let mut read = import(&export(&model));
        let peak = |outcome: &Outcome| outcome.schedules.iter().find(|s| !s.in_body).map(|s| s.after_bytes);
        for (model, how) in [(&mut model, "as it was left"), (&mut read, "written and read")] {
            let mut last = peak(&first);
            loop {
                let again = run(model, options());
                let busy: Vec<_> =
                    again.passes.iter().filter(|pass| pass.rewrites > 0).map(|p| p.name).collect();
                let offers =
                    PIPELINE.iter().any(|p| p.stage() == Stage::Offering && busy.contains(&p.name()));
                if offers && peak(&again) < last {
                    last = peak(&again);
                    continue;
                }
                assert!(
                    busy.is_empty(),
                    "{how}, {busy:?} changed it again\nfrom\n{before}\nto\n{}",
                    print_model(model)
                );
                break;
            }
        }
        assert_eq!(export(&read), export(&model), "{before}");
        Ok(())
    })
    .budget_ms(BUDGET);
}

#[test]
fn exact_runs_apply_exact_edits_alone() {
    arbtest(|u| {
        let mut model = import(&any(u)?);
        let outcome = run(&mut model, Options { allow: Some(Safety::Exact), ..Options::default() });
        assert!(outcome.safety <= Some(Safety::Exact));
        Ok(())
    })
    .budget_ms(BUDGET);
}

#[cfg(feature = "tract")]
mod values {
    //! The same by execution.

    use dmopt_ir::{DType, Tensor};
    use dmopt_runtime::tract::Tract;
    use dmopt_runtime::{Backend, ModelFile, Named, Status, Tolerance, validate};

    use super::*;

    /// Roundings of unit size that a value may be off by, for each unit of what was added up to get it. The longest
    /// chain of operators in a random combination is shorter.
    const ROUNDINGS: f64 = 64.0;

    fn file(bytes: &Bytes) -> ModelFile {
        ModelFile { bytes: bytes.clone(), folder: None }
    }

    /// The outputs, or nothing where the runtime cannot run the model.
    fn outputs(bytes: &Bytes, inputs: &[Named]) -> Option<Vec<Vec<f64>>> {
        let run = Tract.load(&file(bytes)).and_then(|mut session| session.run(inputs));
        match run {
            Ok(outputs) => {
                Some(outputs.tensors.iter().map(|(_, tensor)| tensor.to_f64().unwrap_or_default()).collect())
            }
            Err(error) => {
                eprintln!("not run: {error}");
                None
            }
        }
    }

    /// Random combinations equal their f64 value, as written and as optimized.
    #[test]
    fn combinations_keep_their_value() {
        let mut compared = 0;
        arbtest(|u| {
            let options = for_any_target(u)?;
            let combination = Combination::arbitrary(u)?;
            let Some(dtype) = DType::from_code(combination.dtype().into()) else { return Ok(()) };
            let unit = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
            let mut values = Vec::new();
            let mut inputs = Vec::new();
            for (name, sizes) in combination.inputs() {
                // Halves and sixteenths: exact in either type.
                let mut numbers = Vec::new();
                for _ in 0..sizes.iter().product() {
                    numbers.push(f64::from(u.int_in_range(-32..=32)?) / 16.0);
                }
                let tensor = Tensor::from_f64(dtype, sizes, &numbers).unwrap_or_else(|e| panic!("{e}"));
                inputs.push((name, tensor));
                values.push(numbers);
            }
            let expected = combination.evaluate(&values);
            let before = encode(&combination.build());
            let mut model = import(&before);
            let text = print_model(&model);
            run(&mut model, options);
            let after = export(&model);
            for (bytes, which) in [(&before, "as written"), (&after, "optimized")] {
                let Some(outputs) = outputs(bytes, &inputs) else { continue };
                assert_eq!(outputs.len(), expected.len(), "{text}");
                for (found, wanted) in outputs.iter().zip(&expected) {
                    assert_eq!(found.len(), wanted.len(), "{text}");
                    for (&found, wanted) in found.iter().zip(wanted) {
                        let off = (found - wanted.value).abs();
                        let allowed = ROUNDINGS * unit * wanted.size + f64::from(f32::MIN_POSITIVE);
                        assert!(
                            off <= allowed,
                            "{which}: {found} instead of {wanted:?}\n{text}\nto\n{}",
                            print_model(&model)
                        );
                    }
                }
                compared += 1;
            }
            Ok(())
        })
        .budget_ms(BUDGET);
        assert!(compared > 0, "nothing was run");
    }

    /// Random layers with normalizations and sums behind them compute the same, within what the edits may change.
    #[test]
    fn normalizations_keep_their_value() {
        let mut compared = 0;
        arbtest(|u| {
            let options = for_any_target(u)?;
            let before = encode(&random::normalized(u)?);
            let mut model = import(&before);
            let text = print_model(&model);
            // Alone, too: in the pipeline, other passes leave less to fold-batch-norm.
            let alone = if u.arbitrary()? { Vec::new() } else { vec!["fold-batch-norm".to_string()] };
            let outcome = run(&mut model, Options { only: alone, ..options });
            let unit = if text.contains("double") { f64::EPSILON } else { f64::from(f32::EPSILON) };
            // Sums of a few elements may come out some hundred times smaller than their terms.
            let rel = if outcome.safety > Some(Safety::Exact) { 4096.0 * unit } else { 0.0 };
            let tolerance = Tolerance { abs: 0.0, rel };
            let options = dmopt_runtime::Options { seeds: 2, sizes: 1, tolerance, ..Default::default() };
            let validation = validate(&file(&before), &file(&export(&model)), &options)
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
            let reason = validation.reason.unwrap_or_default();
            assert!(
                validation.status != Status::Failed,
                "{reason}\nfrom\n{text}\nto\n{}",
                print_model(&model)
            );
            compared += usize::from(validation.status == Status::Passed);
            Ok(())
        })
        .budget_ms(BUDGET);
        assert!(compared > 0, "nothing was run");
    }

    /// With exact edits alone, the outputs have the same bits.
    #[test]
    fn exact_runs_keep_every_bit() {
        arbtest(|u| {
            let before = any(u)?;
            let mut model = import(&before);
            let text = print_model(&model);
            run(&mut model, Options { allow: Some(Safety::Exact), ..Options::default() });
            let options = dmopt_runtime::Options {
                seeds: 1,
                sizes: 2,
                tolerance: Tolerance::EXACT,
                ..Default::default()
            };
            let validation = validate(&file(&before), &file(&export(&model)), &options)
                .unwrap_or_else(|error| panic!("{error}\n{text}"));
            let reason = validation.reason.unwrap_or_default();
            assert!(
                validation.status != Status::Failed,
                "{reason}\nfrom\n{text}\nto\n{}",
                print_model(&model)
            );
            Ok(())
        })
        .budget_ms(BUDGET);
    }
}
