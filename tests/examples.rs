//! The header of every pass is a test: the pass turns the first graph into the second and leaves the refused ones
//! alone, and both graphs compute the same.
//!
//! `UPDATE_EXPECT=1` writes what the passes do into their headers, to be read before it is committed.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dmopt_ir::text::{
    canonical, canonical_like, parse_model, parse_model_filled, print_example, print_graph,
};
use dmopt_ir::{Def, Graph, Model, Safety, Storage, TensorType, verify_model};
use dmopt_passes::header::{self, Block, Examples, Rewrite};
use dmopt_passes::{Options, Outcome, PIPELINE, Pass, Planning, Target};
use dmopt_runtime::inputs::{Rng, random_tensor};
use dmopt_runtime::{ModelFile, Status, Tolerance, validate};

/// Tensors with more elements than this are written without data when a header is updated.
const SHORT: u64 = 8;

fn examples(pass: &dyn Pass) -> Examples {
    header::examples(pass.source()).unwrap_or_else(|error| panic!("{}: {error}", file(pass).display()))
}

fn file(pass: &dyn Pass) -> PathBuf {
    let name = pass.name().replace('-', "_");
    Path::new(env!("CARGO_MANIFEST_DIR")).join("passes").join(name).with_extension("rs")
}

/// The model of a block; initializers without data get values that depend on their names alone.
fn model(pass: &dyn Pass, block: &Block) -> Model {
    let model = parse_model_filled(&block.text, &mut seeded).unwrap_or_else(|error| at(pass, block, error));
    sound(pass, block, &model);
    model
}

fn sound(pass: &dyn Pass, block: &Block, model: &Model) {
    if let Some(violation) = verify_model(model).first() {
        at(pass, block, violation)
    }
}

fn at(pass: &dyn Pass, block: &Block, what: impl std::fmt::Display) -> ! {
    panic!("{}:{}: {what}", file(pass).display(), block.lines.start + 1)
}

/// Random elements; what is called a variance is positive.
fn seeded(name: &str, ty: &TensorType) -> Storage {
    let seed = name.bytes().fold(0, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let Some(dims) = ty.dims() else { return Storage::Absent };
    match random_tensor(&mut Rng::new(seed), ty.dtype, &dims) {
        Ok(tensor) if name.contains("var") => {
            let positive = tensor.to_f64().map(|v| v.iter().map(|x| x.abs() + 0.5).collect::<Vec<_>>());
            let tensor = positive.and_then(|v| dmopt_ir::Tensor::from_f64(ty.dtype, dims, &v));
            tensor.map_or(Storage::Absent, |t| t.storage)
        }
        Ok(tensor) => tensor.storage,
        Err(_) => Storage::Absent,
    }
}

fn run(pass: &dyn Pass, target: Target, block: &Block, model: &mut Model) -> Outcome {
    let planning = Planning { target, ..Planning::default() };
    let only = vec![pass.name().to_string()];
    let options = Options { only, planning, verify: true, ..Options::default() };
    dmopt_passes::run(model, &options).unwrap_or_else(|error| at(pass, block, error))
}

fn rewrites(outcome: &Outcome) -> u64 {
    outcome.passes.iter().map(|p| p.rewrites).sum()
}

/// Each pass with each of its examples.
fn each_rewrite(mut check: impl FnMut(&dyn Pass, &Rewrite)) {
    for pass in PIPELINE {
        examples(*pass).rewrites.iter().for_each(|example| check(*pass, example));
    }
}

#[test]
fn every_pass_has_an_example() {
    for pass in PIPELINE {
        assert!(!examples(*pass).rewrites.is_empty(), "{} has no example", pass.name());
        assert_eq!(std::fs::read_to_string(file(*pass)).unwrap(), pass.source(), "{}", pass.name());
    }
}

#[test]
fn every_pass_is_in_the_pipeline() {
    let known: HashSet<PathBuf> = PIPELINE.iter().map(|pass| file(*pass)).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("passes");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_pass = path.extension().is_some_and(|e| e == "rs")
            && std::fs::read_to_string(&path).unwrap().contains("\nimpl Pass for ");
        assert!(!is_pass || known.contains(&path), "{} is not in PIPELINE", path.display());
    }
}

#[test]
fn examples_are_rewritten_as_shown() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    for pass in PIPELINE {
        let mut source = pass.source().to_string();
        // Last first: an update moves the lines below it.
        for Rewrite { before, after, target } in examples(*pass).rewrites.iter().rev() {
            let mut rewritten = model(*pass, before);
            run(*pass, *target, before, &mut rewritten);
            let expected = parse_model(&after.text);
            expected.iter().for_each(|expected| sound(*pass, after, expected));
            let (shown, found) = match &expected {
                Ok(expected) => {
                    (canonical(&expected.graph), canonical_like(&rewritten.graph, &expected.graph))
                }
                Err(error) => (error.to_string(), canonical(&rewritten.graph)),
            };
            if shown == found {
                continue;
            }
            if update {
                source = header::replace(&source, after, &written(&rewritten.graph, before, after));
            } else {
                let place = format!("{}:{}", file(*pass).display(), after.lines.start + 1);
                wrong.push(format!("{place}: shown\n{shown}\nfound\n{found}"));
            }
        }
        if source != pass.source() {
            std::fs::write(file(*pass), source).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a pass made of an example, as its header shows it.
fn written(graph: &Graph, before: &Block, after: &Block) -> String {
    let dataless = |block: &Block| {
        let mut names = HashSet::new();
        // An unreadable expectation is replaced all the same.
        let _ = parse_model_filled(&block.text, &mut |name, _| {
            names.insert(name.to_string());
            Storage::Absent
        });
        names
    };
    let mut without = dataless(before);
    without.extend(dataless(after));
    for id in graph.values() {
        let value = graph.value(id);
        if matches!(&value.def, Def::Initializer(t) if t.elements().is_none_or(|n| n > SHORT)) {
            without.insert(value.name.clone());
        }
    }
    print_example(graph, without)
}

#[test]
fn a_second_run_changes_nothing() {
    each_rewrite(|pass, example| {
        let mut model = model(pass, &example.before);
        assert_ne!(rewrites(&run(pass, example.target, &example.before, &mut model)), 0, "{}", pass.name());
        let once = print_graph(&model.graph);
        let again = run(pass, example.target, &example.before, &mut model);
        assert_eq!((rewrites(&again), print_graph(&model.graph)), (0, once), "{}", pass.name());
    });
}

#[test]
fn no_edit_is_beyond_the_class_of_its_pass() {
    each_rewrite(|pass, example| {
        let worst = run(pass, example.target, &example.before, &mut model(pass, &example.before)).safety;
        assert!(worst <= Some(pass.safety()), "{}: {worst:?}", pass.name());
    });
}

#[test]
fn refused_examples_are_left_alone() {
    for pass in PIPELINE {
        for refusal in &examples(*pass).refusals {
            let mut model = model(*pass, &refusal.graph);
            let before = canonical(&model.graph);
            let outcome = run(*pass, refusal.target, &refusal.graph, &mut model);
            assert_eq!((rewrites(&outcome), canonical(&model.graph)), (0, before), "{}", pass.name());
        }
    }
}

#[test]
fn examples_compute_the_same_before_and_after() {
    each_rewrite(|pass, example| {
        let before = model(pass, &example.before);
        let mut after = before.clone();
        let class = run(pass, example.target, &example.before, &mut after).safety.unwrap_or(Safety::Exact);
        let depth = before.graph.op_count();
        let types = before.graph.outputs().iter().filter_map(|&v| before.graph.tensor_type(v));
        let tolerance = types.fold(Tolerance::EXACT, |widest, ty| {
            let own = Tolerance::for_class(class, ty.dtype, depth);
            Tolerance { abs: widest.abs.max(own.abs), rel: widest.rel.max(own.rel) }
        });
        let options = dmopt_runtime::Options { tolerance, ..Default::default() };
        let verdict =
            validate(&bytes(pass, &example.before, &before), &bytes(pass, &example.after, &after), &options)
                .unwrap();
        let reason = verdict.reason.unwrap_or_default();
        match verdict.status {
            Status::Passed => assert!(!verdict.runs.is_empty(), "{}", pass.name()),
            Status::Failed => at(pass, &example.before, reason),
            // Beside the captured output of tests: this must be seen when everything passes, too.
            Status::Skipped => {
                let line = example.before.lines.start + 1;
                let _ =
                    writeln!(std::io::stderr(), "not executed: {}:{line}: {reason}", file(pass).display());
            }
        }
    });
}

fn bytes(pass: &dyn Pass, block: &Block, model: &Model) -> ModelFile {
    let exported = dmopt_onnx::export(model, &Default::default());
    let proto = exported.unwrap_or_else(|error| at(pass, block, error));
    let bytes: Vec<u8> = dmopt_onnx::encode(&proto).iter().flat_map(|part| part.to_vec()).collect();
    ModelFile { bytes: Bytes::from(bytes), folder: None }
}
