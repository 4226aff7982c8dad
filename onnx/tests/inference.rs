//! Inferred types against what real files declare and what their operators compute.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dmopt_ir::{Dim, Graph, Model, Type, infer::infer_graph};
use dmopt_onnx::schema::{ModelProto, TensorProto};
use dmopt_onnx::{Folder, import, open};
use prost::Message;

fn models_below(folder: &Path, models: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            models_below(&path, models);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            models.push(path);
        }
    }
}

fn model(proto: ModelProto, path: &Path) -> Model {
    import(proto, Arc::new(Folder::of(path))).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(open(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The model without any type but those of its inputs.
fn undeclared(mut proto: ModelProto) -> ModelProto {
    if let Some(graph) = &mut proto.graph {
        graph.value_info.clear();
        graph.output.iter_mut().for_each(|output| output.r#type = None);
    }
    proto
}

fn types(graph: &Graph) -> Vec<(&str, Option<&Type>)> {
    let results = graph.ops().flat_map(|op| graph.op(op).results());
    results.map(|v| (graph.value(v).name.as_str(), graph.value(v).ty.as_ref())).collect()
}

fn is_full(ty: Option<&Type>) -> bool {
    let tensor = ty.and_then(Type::tensor);
    tensor.is_some_and(|t| t.shape.as_ref().is_some_and(|dims| !dims.contains(&Dim::Unknown)))
}

/// Every value of an exported network gets an element type and a shape, from the inputs alone.
#[test]
fn exports_are_inferred_from_their_inputs() {
    let mut paths = Vec::new();
    models_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures"), &mut paths);
    assert!(!paths.is_empty());
    for path in paths {
        let declared = model(decode(&path), &path);
        let mut inferred = model(undeclared(decode(&path)), &path);
        assert_eq!(infer_graph(&mut inferred.graph), [], "{}", path.display());
        for ((name, declared), (_, inferred)) in
            types(&declared.graph).into_iter().zip(types(&inferred.graph))
        {
            assert!(is_full(inferred), "{}: '{name}' is {inferred:?}", path.display());
            if let (Some(declared), Some(inferred)) = (declared, inferred) {
                let agree = declared.compatible(inferred);
                assert!(
                    agree,
                    "{}: '{name}' is declared as {declared}, inferred as {inferred}",
                    path.display()
                );
            }
        }
    }
}

/// How the inferred types of outputs compare with the files.
#[derive(Default, Debug)]
struct Tally {
    full: usize,
    partial: usize,
    unknown: usize,
    contradictions: Vec<String>,
}

/// Compares the outputs of one backend test with what it declares, and with the results beside it.
fn judge(path: &Path, tally: &mut Tally) {
    let declared = model(decode(path), path);
    let mut inferred = model(undeclared(decode(path)), path);
    let notes = infer_graph(&mut inferred.graph);
    tally.contradictions.extend(notes.iter().map(|note| format!("{}: {note}", path.display())));
    for (slot, (&was, &is)) in declared.graph.outputs().iter().zip(inferred.graph.outputs()).enumerate() {
        let (Some(was), is) = (&declared.graph.value(was).ty, &inferred.graph.value(is).ty) else { continue };
        let Some(is) = is else {
            tally.unknown += 1;
            continue;
        };
        if is_full(Some(is)) {
            tally.full += 1
        } else {
            tally.partial += 1
        }
        if !was.compatible(is) {
            tally.contradictions.push(format!("{}: {was} is inferred as {is}", path.display()));
        }
        let result = path.with_file_name(format!("test_data_set_0/output_{slot}.pb"));
        if let (Some(tensor), Ok(bytes)) = (is.tensor(), std::fs::read(&result)) {
            let result = TensorProto::decode(bytes.as_slice()).unwrap();
            let sizes: Vec<Dim> = result.dims.iter().map(|&d| Dim::Known(d as u64)).collect();
            let fits = |shape: &Vec<Dim>| {
                shape.len() == sizes.len() && shape.iter().zip(&sizes).all(|(a, b)| a.may_equal(b))
            };
            if !tensor.shape.as_ref().is_none_or(fits) {
                tally.contradictions.push(format!("{}: {sizes:?} is inferred as {is}", path.display()));
            }
        }
    }
}

/// The models of ONNX's own backend tests, as `scripts/backend_models.py` writes them.
#[test]
fn backend_models_are_never_contradicted() {
    let Some(folder) = std::env::var_os("DMOPT_BACKEND_MODELS") else {
        // Not println!, whose output the test harness keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: types of the backend models (DMOPT_BACKEND_MODELS names no folder)"
        );
        return;
    };
    let mut paths = Vec::new();
    models_below(Path::new(&folder), &mut paths);
    assert!(!paths.is_empty());
    let mut tally = Tally::default();
    paths.iter().for_each(|path| judge(path, &mut tally));
    println!("outputs: {} full, {} partial, {} unknown", tally.full, tally.partial, tally.unknown);
    assert!(tally.contradictions.is_empty(), "{}", tally.contradictions.join("\n"));
    assert!(tally.full > 1900, "only {} of the outputs are inferred in full", tally.full);
}
