//! Everything that can be tested, after setting up what the tests need: a Python with onnx and ONNX Runtime, an older
//! ONNX Runtime beside it, and the models of the ONNX backend tests, which go below `target/` and are kept for the next
//! time; and a Chromium, which is that of the system.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Packages and their versions.
pub(crate) const REQUIREMENTS: &str = "scripts/requirements.txt";

/// A second version of ONNX Runtime, the oldest line that dmopt uses: what is measured differs between versions.
const OLD_ONNX_RUNTIME: &str = "onnxruntime==1.24.4";

/// Runs everything.
pub fn run() -> anyhow::Result<()> {
    let target = target_folder();
    let begin = Instant::now();
    let mut done = Vec::new();
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> anyhow::Result<()>| {
        println!("== {name}");
        let begin = Instant::now();
        work().with_context(|| format!("{name} failed"))?;
        done.push((name, begin.elapsed()));
        anyhow::Ok(())
    };

    let venv = target.join("venv");
    let models = target.join("backend-models");
    let python = venv.join("bin/python");
    step("Python with onnx and onnxruntime", &mut || make_venv(&venv, REQUIREMENTS))?;
    step("ONNX backend test models", &mut || {
        call(Command::new(&python).arg("scripts/backend_models.py").arg(&models))
    })?;
    let library = onnx_runtime(&venv)?;
    let old = target.join("onnxruntime-old");
    step("an older ONNX Runtime", &mut || install_old(&python, &old))?;
    let old = library_of(&old)?;
    let mut chromium = PathBuf::new();
    step("Chromium", &mut || browser().map(|found| chromium = found))?;
    let environment: Vec<(&str, OsString)> = vec![
        ("DMOPT_PYTHON", python.clone().into()),
        ("DMOPT_BACKEND_MODELS", models.into()),
        ("DMOPT_ORT_LIB", library.into()),
        ("DMOPT_ORT_LIB_OLD", old.into()),
        ("DMOPT_BROWSER", chromium.into()),
    ];
    let cargo =
        |arguments: &[&str]| call(Command::new(env!("CARGO")).args(arguments).envs(environment.clone()));
    if has_nextest() {
        step("tests", &mut || cargo(&["nextest", "run", "--workspace", "--locked"]))?;
        step("documentation tests", &mut || cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"]))?;
    } else {
        step("tests", &mut || cargo(&["test", "--workspace", "--locked"]))?;
    }

    println!("== summary");
    for (name, time) in &done {
        println!("{name:<36}{}", seconds(*time));
    }
    println!("all tests passed, nothing skipped for want of set-up ({})", seconds(begin.elapsed()));
    Ok(())
}

/// Where builds go, and what is set up.
pub fn target_folder() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    super::root().join(folder)
}

/// A virtual environment with the pinned packages, made anew when the list has changed.
pub fn make_venv(venv: &Path, requirements: &str) -> anyhow::Result<()> {
    let wanted = std::fs::read(requirements).with_context(|| format!("cannot read {requirements}"))?;
    let marker = venv.join("installed.txt");
    if std::fs::read(&marker).is_ok_and(|installed| installed == wanted) {
        println!("{} is up to date", venv.display());
        return Ok(());
    }
    let python = std::env::var_os("DMOPT_PYTHON").unwrap_or_else(|| "python3".into());
    call(Command::new(python).args(["-m", "venv", "--clear"]).arg(venv))?;
    call(Command::new(venv.join("bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        requirements,
    ]))?;
    std::fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))
}

/// The older version in a folder of its own, from which no Python imports it.
fn install_old(python: &Path, folder: &Path) -> anyhow::Result<()> {
    let marker = folder.join("installed.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == OLD_ONNX_RUNTIME) {
        println!("{} is up to date", folder.display());
        return Ok(());
    }
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    let options = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"];
    call(Command::new(python).args(options).arg(folder).arg(OLD_ONNX_RUNTIME))?;
    std::fs::write(&marker, OLD_ONNX_RUNTIME).with_context(|| format!("cannot write {}", marker.display()))
}

/// The shared library within a virtual environment.
pub(crate) fn onnx_runtime(venv: &Path) -> anyhow::Result<PathBuf> {
    for python in list(&venv.join("lib"))? {
        if let Ok(library) = library_of(&python.join("site-packages")) {
            return Ok(library);
        }
    }
    bail!("no libonnxruntime.so in {}", venv.display())
}

/// The Chromium that `DMOPT_BROWSER` names, or one of the system; installed where that is Debian and allowed.
fn browser() -> anyhow::Result<PathBuf> {
    let installed = || {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let candidates =
            std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name)));
        candidates.into_iter().find(|path| path.is_file())
    };
    if let Some(found) = std::env::var_os("DMOPT_BROWSER").map(PathBuf::from).or_else(installed) {
        println!("{}", found.display());
        return Ok(found);
    }
    let apt = |arguments: &[&str]| {
        call(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "--quiet"])
        .and_then(|()| apt(&["install", "--quiet", "--yes", "--no-install-recommends", "chromium"]))
        .context("there is no Chromium and it cannot be installed; DMOPT_BROWSER may name one")?;
    installed().context("Chromium was installed but is not in PATH")
}

/// The shared library within a folder of Python packages.
fn library_of(packages: &Path) -> anyhow::Result<PathBuf> {
    let capi = packages.join("onnxruntime/capi");
    let is_library = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libonnxruntime.so"))
    };
    let found = list(&capi)?.into_iter().find(is_library);
    found.with_context(|| format!("no libonnxruntime.so in {}", capi.display()))
}

fn list(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn has_nextest() -> bool {
    let found = Command::new(env!("CARGO")).args(["nextest", "--version"]).output();
    found.is_ok_and(|output| output.status.success())
}

/// Kills processes that write models at random moments, and looks at what they leave.
pub fn kill(times: u32) -> anyhow::Result<()> {
    let test = [
        "test",
        "--package",
        "dmopt",
        "--test",
        "main",
        "files::a_process_that_is_killed",
        "--",
        "--nocapture",
    ];
    call(Command::new(env!("CARGO")).args(test).env("DMOPT_KILLS", times.to_string()))
}

/// Runs a command to its end; its output goes where ours goes.
pub fn call(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
