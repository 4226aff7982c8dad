//! Real exports from PyTorch: every mixing site is found and rewritten, and the results compute the same in another
//! runtime.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dmopt::{Options, Report, Source, Target, Validate, optimize, rewrite};
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The committed exports, with the number of mixing sites of each network.
fn exports() -> Vec<(String, usize)> {
    let index = fs::read_to_string(root().join("fixtures/pytorch/index.tsv")).unwrap();
    let mut lines = index.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let column = |name: &str| head.iter().position(|title| *title == name).unwrap();
    let (file, sites) = (column("file"), column("sites"));
    lines.map(|line| (line[file].to_string(), line[sites].parse().unwrap())).collect()
}

fn optimized(name: &str, folder: &TempDir) -> (PathBuf, PathBuf, Report) {
    let original = root().join("fixtures/pytorch").join(name);
    let result = folder.path().join(name);
    let options = Options { validate: Validate::Never, verify: true, ..Options::default() };
    let done = optimize(&Source::open(&original).unwrap(), Target::File(result.clone()), &options);
    (original, result, done.unwrap_or_else(|error| panic!("{error}")).report)
}

/// Networks whose first site is no sum in the graph: a single convolution over all streams, a single scaled stream.
const FIRST_IS_NO_SUM: [&str; 2] =
    ["li_net3_soma_d18_n2_f6_dynamo.onnx", "direct_mixing_d18_n1_f13_metadata_names_dynamo.onnx"];

#[test]
fn every_mixing_site_is_found_and_rewritten() {
    let mut wrong = Vec::new();
    for (name, sites) in exports() {
        let sites = sites - usize::from(FIRST_IS_NO_SUM.contains(&name.as_str()));
        let source = Source::open(&root().join("fixtures/pytorch").join(&name)).unwrap();
        let mut model = source.model().unwrap();
        let found =
            rewrite(&mut model, &source, &Options { verify: true, ..Options::default() }).unwrap().sites;
        let rewritten = found.iter().filter(|site| site.rewritten).count();
        if (found.len(), rewritten) != (sites, sites) {
            wrong.push(format!("{name}: {} found, {rewritten} rewritten, {sites} there", found.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The full ONNX checker accepts the results, and ONNX Runtime computes the same from them.
#[test]
fn results_agree_in_onnx_runtime() {
    let Some(python) = std::env::var_os("DMOPT_PYTHON") else {
        // Around the capture of the test harness: what is skipped has to show.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: results in ONNX Runtime (DMOPT_PYTHON names no Python with onnxruntime)"
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut pairs = String::new();
    for (name, _) in exports() {
        let (original, result, _) = optimized(&name, &folder);
        pairs += &format!("{}\t{}\n", original.display(), result.display());
    }
    let list = folder.path().join("pairs.txt");
    fs::write(&list, pairs).unwrap();
    let script = root().join("scripts/check_models.py");
    let done = Command::new(python).arg(script).arg("--pairs").arg(list).output().unwrap();
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}
