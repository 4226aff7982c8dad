//! What happens to files when something goes wrong around the process: full disks, kills, others with the same output.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dmopt::onnx::schema::DataLocation;
use dmopt::runtime::{ModelFile, Status, Tolerance, Validation};
use dmopt::{Proof, Source, Target, Verdict, onnx};
use dmopt_fixtures::prng::Prng;

use super::cli::{Desk, EXPORT, bytes, proto};

/// A model whose initializers have their data in these files, from the beginning.
fn external(text: &str, files: &[(&str, u64)]) -> Vec<u8> {
    let mut model = proto(&format!("<ir_version: 10, opset_import: [\"\": 21]> {text}"));
    for (weight, (location, bytes)) in model.graph.as_mut().unwrap().initializer.iter_mut().zip(files) {
        let reference = onnx::Reference { location: location.to_string(), offset: 0, length: Some(*bytes) };
        weight.external_data = reference.entries();
        weight.data_location = Some(DataLocation::External.into());
    }
    bytes(model)
}

/// A model whose Identity goes away, with 4 MB of weights in a file beside it: `a/m.onnx` and `a/weights.bin`.
fn desk() -> Desk {
    let model = external(
        "g (float[2,1024] x) => (float[2,1024] y) <float[1024,1024] w> { i = Identity(x) y = MatMul(i, w) }",
        &[("weights.bin", 1 << 22)],
    );
    let desk = Desk::new();
    fs::create_dir(desk.path("a")).unwrap();
    fs::create_dir(desk.path("b")).unwrap();
    fs::write(desk.path("a/m.onnx"), model).unwrap();
    fs::write(desk.path("a/weights.bin"), vec![0x3d; 1 << 22]).unwrap();
    desk
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Has the result for `a/m.onnx` found wrong on its way to `place`. Gives where it was kept.
fn reject(desk: &Desk, place: &str) -> PathBuf {
    let source = Source::open(&desk.path("a/m.onnx")).unwrap();
    let prove = |_: &ModelFile| {
        let skipped = Validation::skip("none", Tolerance { abs: 0.0, rel: 0.0 }, "wrong");
        let failed = Validation { status: Status::Failed, ..skipped };
        Ok(Proof { validations: vec![failed], measured: Err("not asked for".to_string()) })
    };
    let candidate = onnx::decode("m.onnx", source.bytes.clone()).unwrap();
    let target = Target::File(desk.path(place));
    let placed = dmopt::place(candidate, &source, target, Some(&prove), false).unwrap();
    let Verdict::Rejected { kept } = placed.verdict else { panic!("{:?}", placed.verdict) };
    let kept = kept.unwrap();
    assert_eq!(placed.bytes, fs::metadata(&kept).unwrap().len());
    kept
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn in_place_the_input_becomes_the_result_and_keeps_its_permissions() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx out.onnx --no-validate -q").succeeds();
    let result = fs::read(desk.path("out.onnx")).unwrap();
    fs::remove_file(desk.path("out.onnx")).unwrap();

    set_mode(&desk.path("m.onnx"), 0o640);
    desk.run("optimize m.onnx --in-place --no-validate -q").succeeds();
    assert_eq!(desk.files(), ["m.onnx"]);
    assert_eq!(fs::read(desk.path("m.onnx")).unwrap(), result);
    assert_eq!(mode(&desk.path("m.onnx")), 0o640);
}

#[test]
fn new_files_have_the_permissions_of_what_they_are_made_of() {
    let desk = desk();
    set_mode(&desk.path("a/m.onnx"), 0o600);
    set_mode(&desk.path("a/weights.bin"), 0o640);
    desk.run("optimize a/m.onnx b/out.onnx --no-validate -q").succeeds();
    assert_eq!((mode(&desk.path("b/out.onnx")), mode(&desk.path("b/weights.bin"))), (0o600, 0o640));
    assert_eq!(mode(&reject(&desk, "b/out.onnx")), 0o600);

    set_mode(&desk.path("b/out.onnx"), 0o644);
    desk.run("optimize a/m.onnx b/out.onnx --no-validate -q").succeeds();
    assert_eq!(mode(&desk.path("b/out.onnx")), 0o644, "what was there keeps its own");
}

#[test]
fn a_rejected_result_replaces_only_another_one() {
    let desk = desk();
    fs::write(desk.path("b/out.rejected.onnx"), "precious").unwrap();
    std::os::unix::fs::symlink("weights.bin", desk.path("b/out.2.rejected.onnx")).unwrap();
    assert_eq!(reject(&desk, "b/out.onnx"), desk.path("b/out.3.rejected.onnx"));
    assert_eq!(reject(&desk, "b/out.onnx"), desk.path("b/out.3.rejected.onnx"));
    assert_eq!(fs::read(desk.path("b/out.rejected.onnx")).unwrap(), b"precious");
    assert_eq!(
        names(&desk.path("b")),
        ["out.2.rejected.onnx", "out.3.rejected.onnx", "out.rejected.onnx", "weights.bin"]
    );

    // A result that is made of a rejected one is none.
    fs::copy(desk.path("b/out.3.rejected.onnx"), desk.path("a/m.onnx")).unwrap();
    desk.run("optimize a/m.onnx b/out.3.rejected.onnx --no-validate -q").succeeds();
    assert_eq!(reject(&desk, "b/out.onnx"), desk.path("b/out.4.rejected.onnx"));
}

#[test]
fn a_report_that_cannot_be_told_is_an_error_that_says_where_the_result_is() {
    let desk = Desk::with(EXPORT);
    for (arguments, what) in [("", "the report"), ("-q --print", "its text")] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = desk.command(&format!("optimize m.onnx out.onnx --no-validate {arguments}"));
        let output = command.stdout(full).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        let told = format!("error: out.onnx is written, but {what} is not: cannot print: No space left");
        assert!(message.contains(&told), "{message}");
        assert!(onnx::load(&desk.path("out.onnx")).is_ok());
        fs::remove_file(desk.path("out.onnx")).unwrap();
    }
}

#[test]
fn a_backup_is_the_original_and_never_replaces_another() {
    let desk = Desk::with(EXPORT);
    let original = fs::read(desk.path("m.onnx")).unwrap();
    desk.run("optimize m.onnx --in-place --backup --no-validate -q").succeeds();
    assert_eq!(desk.files(), ["m.onnx", "m.onnx.bak"]);
    assert_eq!(fs::read(desk.path("m.onnx.bak")).unwrap(), original);
    let result = fs::read(desk.path("m.onnx")).unwrap();
    assert_ne!(result, original);

    let again = "optimize m.onnx --in-place --backup --no-validate";
    desk.refuses(again, 1, &["m.onnx.bak", "is there already"]);
    assert!(!desk.run(&format!("{again} -v")).stderr().contains("reading\nround"));
    assert_eq!(fs::read(desk.path("m.onnx.bak")).unwrap(), original);
    desk.run("optimize m.onnx --in-place --backup=~ --no-validate -q").succeeds();
    assert_eq!(fs::read(desk.path("m.onnx~")).unwrap(), result);
}

#[test]
fn in_place_a_link_stays_one_and_external_data_stay_as_they_are() {
    let desk = desk();
    let original = fs::read(desk.path("a/m.onnx")).unwrap();
    let weights = fs::read(desk.path("a/weights.bin")).unwrap();
    std::os::unix::fs::symlink("m.onnx", desk.path("a/link.onnx")).unwrap();
    desk.run("optimize a/link.onnx --in-place --backup -q").succeeds();
    assert_eq!(names(&desk.path("a")), ["link.onnx", "m.onnx", "m.onnx.bak", "weights.bin"]);
    assert!(desk.path("a/link.onnx").is_symlink());
    assert_eq!(fs::read(desk.path("a/m.onnx.bak")).unwrap(), original);
    assert_ne!(fs::read(desk.path("a/m.onnx")).unwrap(), original);
    assert_eq!(fs::read(desk.path("a/weights.bin")).unwrap(), weights);
}

#[test]
fn in_place_is_for_files_and_without_an_output() {
    let desk = Desk::with(EXPORT);
    for wrong in [
        "optimize - --in-place",
        "optimize m.onnx out.onnx --in-place",
        "optimize m.onnx -o out.onnx --in-place",
        "optimize m.onnx --backup",
        "optimize m.onnx --in-place --backup=",
        "optimize m.onnx --in-place --backup=/../../x",
    ] {
        assert_eq!(desk.run(wrong).code(), 2, "{wrong}");
    }
}

#[test]
fn a_result_is_not_put_where_its_weights_belong() {
    let desk = desk();
    desk.refuses("optimize a/m.onnx b/weights.bin", 1, &["is where weights of the input belong"]);
    assert!(names(&desk.path("b")).is_empty());
}

#[test]
fn a_file_that_holds_its_own_weights_is_not_replaced() {
    let desk = Desk::new();
    let model = external(
        "g (float[4] x) => (float[4] y) <float[4] w> { i = Identity(x) y = Mul(i, w) }",
        &[("m.onnx", 16)],
    );
    fs::write(desk.path("m.onnx"), &model).unwrap();
    desk.refuses("optimize m.onnx --in-place", 1, &["holds weights of the input"]);
    assert_eq!(fs::read(desk.path("m.onnx")).unwrap(), model);
    desk.run("optimize m.onnx out.onnx --no-validate -q").succeeds();
}

#[test]
fn weights_that_came_along_go_again_when_others_cannot() {
    let desk = Desk::new();
    fs::create_dir(desk.path("b")).unwrap();
    let text = "g (float[4] x) => (float[4] y) <float[4] v, float[4] w> { i = Identity(x) t = Mul(i, v) y = Add(t, w) }";
    fs::write(desk.path("m.onnx"), external(text, &[("v.bin", 16), ("w.bin", 16)])).unwrap();
    for name in ["v.bin", "w.bin", "b/w.bin"] {
        fs::write(desk.path(name), name.repeat(16)).unwrap();
    }
    desk.refuses("optimize m.onnx b/out.onnx --no-validate", 1, &["w.bin: in the way of"]);
    assert_eq!(names(&desk.path("b")), ["w.bin"]);
}

/// Waits until a process that cannot end before somebody writes to a pipe has made a file.
fn await_file(child: &mut std::process::Child, path: &Path) {
    while !path.exists() {
        assert_eq!(child.try_wait().unwrap(), None, "it must wait for the pipe");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tell(child: &std::process::Child, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn weights_that_came_along_go_again_when_the_process_is_told_to_stop() {
    let desk = Desk::new();
    for name in ["sub", "b"] {
        fs::create_dir(desk.path(name)).unwrap();
    }
    let text = "g (float[4] x) => (float[4] y) <float[4] v, float[4] w> { i = Identity(x) t = Mul(i, v) y = Add(t, w) }";
    fs::write(desk.path("m.onnx"), external(text, &[("sub/v.bin", 16), ("w.bin", 16)])).unwrap();
    for name in ["sub/v.bin", "w.bin"] {
        fs::write(desk.path(name), [0; 16]).unwrap();
    }
    // Looking whether a pipe has the right content takes until somebody writes to it.
    desk.make_pipe("b/w.bin");
    for signal in ["INT", "TERM", "HUP"] {
        let mut child = desk.command("optimize m.onnx b/out.onnx --no-validate -q").spawn().unwrap();
        await_file(&mut child, &desk.path("b/sub/v.bin"));
        tell(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert_eq!(names(&desk.path("b")), ["w.bin"], "{signal}");
    }
}

/// What `nohup` does.
#[cfg(target_os = "linux")]
#[test]
fn a_hang_up_that_was_ignored_when_the_process_began_does_not_stop_it() {
    let desk = Desk::new();
    fs::create_dir(desk.path("b")).unwrap();
    let text = "g (float[4] x) => (float[4] y) <float[4] v, float[4] w> { t = Mul(x, v) y = Add(t, w) }";
    fs::write(desk.path("m.onnx"), external(text, &[("v.bin", 16), ("w.bin", 16)])).unwrap();
    for name in ["v.bin", "w.bin"] {
        fs::write(desk.path(name), [0; 16]).unwrap();
    }
    desk.make_pipe("b/w.bin");
    let script = "trap '' HUP; exec \"$0\" optimize m.onnx b/out.onnx --no-validate -q";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_dmopt")]).current_dir(desk.path(""));
    let mut child = shell.spawn().unwrap();
    await_file(&mut child, &desk.path("b/v.bin"));
    tell(&child, "HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(child.try_wait().unwrap(), None, "it must go on");
    tell(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// At any moment: also between the weights and the model, and right after.
#[test]
fn a_process_that_is_told_to_stop_leaves_the_result_with_its_weights_or_neither() {
    let desk = desk();
    let command = "optimize a/m.onnx b/out.onnx --no-validate -q";
    let mut random = Prng::named(11, "stops");
    for _ in 0..24 {
        let mut child = desk.command(command).stderr(Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() && names(&desk.path("b")).is_empty() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros((random.unit() * 8e3) as u64));
        // One whose end has been seen has no number any more.
        if child.try_wait().unwrap().is_none() {
            tell(&child, "TERM");
        }
        child.wait().unwrap();
        let there = names(&desk.path("b"));
        assert!(there.is_empty() || there == ["out.onnx", "weights.bin"], "{there:?}");
        for name in there {
            fs::remove_file(desk.path("b").join(name)).unwrap();
        }
    }
}

/// A disk with room for less than the result. The system would kill a process that does not mind.
#[test]
fn a_file_that_cannot_grow_leaves_the_old_one() {
    let desk = Desk::with(EXPORT);
    fs::write(desk.path("out.onnx"), "old").unwrap();
    let original = fs::read(desk.path("m.onnx")).unwrap();
    for arguments in ["m.onnx out.onnx --no-validate", "m.onnx out.onnx", "m.onnx --in-place --backup"] {
        let script = format!("ulimit -f 20; exec \"$0\" optimize {arguments} -q");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_dmopt")]).current_dir(desk.path(""));
        let output = shell.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        let place = if arguments.contains("out.onnx") { "out.onnx" } else { "m.onnx" };
        let begin = format!("error: {place}: cannot write: File too large");
        assert!(message.starts_with(&begin), "{message}");
        assert_eq!(fs::read(desk.path("out.onnx")).unwrap(), b"old");
        assert_eq!(fs::read(desk.path("m.onnx")).unwrap(), original);
        assert_eq!(desk.files(), ["m.onnx", "out.onnx"]);
    }
}

/// Needs the right to mount a file system in a name space of one's own.
#[test]
fn a_full_disk_leaves_the_old_file() {
    let desk = desk();
    let script = "set -e; mount -t tmpfs -o size=2m tmpfs b; printf old > b/out.onnx; \
        if \"$0\" optimize a/m.onnx b/out.onnx --no-validate; then exit 9; fi; cat b/out.onnx; ls -A b >&2";
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "/bin/sh", "-c", script, env!("CARGO_BIN_EXE_dmopt")]);
    let output = match unshare.current_dir(desk.path("")).output() {
        Ok(output) => output,
        Err(cause) => return println!("skipped: unshare: {cause}"),
    };
    let message = String::from_utf8(output.stderr).unwrap();
    if !output.status.success() && !message.contains("error: ") {
        return println!("skipped: {message}");
    }
    assert!(output.status.success(), "{message}");
    assert!(message.contains("weights.bin: No space left on device"), "{message}");
    assert!(message.ends_with("\nout.onnx\n"), "{message}");
    assert_eq!(output.stdout, b"old");
}

#[test]
fn a_device_that_is_full_is_an_error() {
    let desk = Desk::with(EXPORT);
    desk.refuses("optimize m.onnx /dev/full --no-validate", 1, &["/dev/full", "No space left on device"]);
}

#[test]
fn progress_that_cannot_be_told_is_no_reason_to_stop() {
    let desk = Desk::with(EXPORT);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = desk.command("optimize m.onnx out.onnx --no-validate -v");
    assert!(command.stdout(Stdio::null()).stderr(full).status().unwrap().success());
    assert_eq!(desk.files(), ["m.onnx", "out.onnx"]);
}

#[test]
fn two_processes_may_write_one_output() {
    let desk = desk();
    let command = "optimize a/m.onnx b/out.onnx --no-validate -q";
    desk.run(command).succeeds();
    let result = fs::read(desk.path("b/out.onnx")).unwrap();
    for _ in 0..5 {
        fs::remove_file(desk.path("b/weights.bin")).unwrap();
        let writers: Vec<_> = (0..3).map(|_| desk.command(command).spawn().unwrap()).collect();
        for mut writer in writers {
            assert_eq!(writer.wait().unwrap().code(), Some(0));
        }
        assert_eq!(fs::read(desk.path("b/out.onnx")).unwrap(), result);
        assert_eq!(names(&desk.path("b")), ["out.onnx", "weights.bin"]);
        assert_eq!(fs::metadata(desk.path("b/weights.bin")).unwrap().len(), 1 << 22);
    }
}

/// `cargo xtask kill` does this 200 times.
#[test]
fn a_process_that_is_killed_leaves_the_old_files_or_the_new_ones() {
    let times = std::env::var("DMOPT_KILLS").map_or(24, |times| times.parse().unwrap());
    let desk = desk();
    let (input, weights) = (desk.path("a/m.onnx"), desk.path("a/weights.bin"));
    let (output, copied) = (desk.path("b/out.onnx"), desk.path("b/weights.bin"));
    let backup = desk.path("a/m.onnx.bak");
    let read = |path: &Path| fs::read(path).ok();
    let (original, data) = (read(&input).unwrap(), read(&weights).unwrap());
    let beside = "optimize a/m.onnx b/out.onnx --no-validate -q";
    let over = "optimize a/m.onnx --in-place --backup --no-validate -q";
    let begin = Instant::now();
    desk.run(beside).succeeds();
    let whole = begin.elapsed();
    let result = read(&output).unwrap();

    let mut random = Prng::named(7, "kills");
    let (mut killed, mut replaced) = (0, 0);
    for round in 0..times {
        fs::write(&input, &original).unwrap();
        fs::write(&output, "old").unwrap();
        let _ = (fs::remove_file(&copied), fs::remove_file(&backup));
        let (command, folder) = if round % 2 == 0 { (beside, "b") } else { (over, "a") };
        let mut child = desk.command(command).stderr(Stdio::null()).spawn().unwrap();
        // At any moment, or in the middle of writing, which is a small part of the time.
        if round % 4 < 2 {
            std::thread::sleep(whole.mul_f64(random.unit() * 1.1));
        } else {
            let writes = || names(&desk.path(folder)).iter().any(|name| name.starts_with(".dmopt-"));
            while child.try_wait().unwrap().is_none() && !writes() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros((random.unit() * 8e3) as u64));
        }
        child.kill().unwrap();
        killed += i32::from(child.wait().unwrap().code().is_none());

        let (now, then) = (read(&input).unwrap(), read(&output).unwrap());
        assert_eq!(read(&weights).unwrap(), data);
        assert!(read(&copied).is_none_or(|copy| copy == data));
        assert!(read(&backup).is_none_or(|copy| copy == original));
        if command == beside {
            assert_eq!(now, original);
            assert!(then == b"old" || (then == result && copied.exists()));
        } else {
            assert!(now == original || (now == result && backup.exists()));
        }
        replaced += i32::from(then == result || now == result);
    }
    println!("{times} processes, {killed} of them killed before they ended; {replaced} new files were there");

    let _ = (fs::write(&input, &original), fs::remove_file(&backup));
    desk.run(beside).succeeds();
    desk.run(over).succeeds();
    assert_eq!(names(&desk.path("a")), ["m.onnx", "m.onnx.bak", "weights.bin"]);
    assert_eq!(names(&desk.path("b")), ["out.onnx", "weights.bin"]);
}
