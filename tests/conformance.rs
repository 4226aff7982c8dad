//! A sample of the ONNX backend tests through the command, judged by ONNX's checker, ONNX Runtime and the suite's own
//! expectations. `cargo xtask onnx-backend` runs all of them.

use std::io::Write;
use std::process::Command;

/// Models, evenly spread over the suite.
const SAMPLE: &str = "8";

#[test]
fn models_of_the_standard_survive_every_target() {
    let (Some(python), Some(models)) =
        (std::env::var_os("DMOPT_PYTHON"), std::env::var_os("DMOPT_BACKEND_MODELS"))
    else {
        // Not println!, whose output the test harness keeps to itself.
        let reason =
            "skipped: a sample of the backend tests (DMOPT_PYTHON or DMOPT_BACKEND_MODELS is not set)";
        return writeln!(std::io::stderr(), "{reason}").unwrap();
    };
    let work = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/conformance.py");
    let mut judge = Command::new(python);
    judge.arg(script).arg(models).args(["--dmopt", env!("CARGO_BIN_EXE_dmopt"), "--sample", SAMPLE]);
    let output = judge.arg("--work").arg(work.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    for row in ["| dmopt | plain | 8 | ", "| dmopt portable | baked | 8 | "] {
        assert!(said.contains(row), "{said}");
    }
}
