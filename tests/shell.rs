//! What makes the command line pleasant: help, completions, manual pages, colours, JSON everywhere.

use std::fs;

use crate::cli::{Desk, EXPORT};

const COMMANDS: [&str; 12] = [
    "optimize",
    "validate",
    "inspect",
    "memory",
    "diff",
    "check",
    "bisect",
    "passes",
    "session",
    "doctor",
    "completions",
    "man",
];

#[test]
fn every_command_has_help_with_examples() {
    let desk = Desk::new();
    let all = desk.run("--help").succeeds().stdout();
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command}")), "{command} is not in\n{all}");
        let help = desk.run(&format!("{command} --help")).succeeds().stdout();
        assert!(help.contains(&format!("Examples:\n  dmopt {command}")), "{help}");
    }
}

#[test]
fn shells_get_completions_for_commands_flags_and_passes() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = desk.run(&format!("completions {shell}")).succeeds().stdout();
        for part in ["optimize", "triton-repo", "fuse-scaled-sum"] {
            assert!(text.contains(part), "{shell}: no {part}");
        }
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    let desk = Desk::new();
    desk.run("man pages/man1").succeeds();
    for command in COMMANDS {
        let page = fs::read_to_string(desk.path(&format!("pages/man1/dmopt-{command}.1"))).unwrap();
        assert!(page.contains(".TH dmopt") && page.contains("Examples:"), "{page}");
    }
    assert!(desk.run("man").succeeds().stdout().contains(".SH SUBCOMMANDS"));
}

#[test]
fn every_command_that_tells_something_tells_it_in_json() {
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx o.onnx --no-validate -q").succeeds();
    desk.run("check m.onnx --update").succeeds();
    for (command, schema) in [
        ("optimize m.onnx o.onnx --no-validate", "dmopt.report/1"),
        ("inspect m.onnx", "dmopt.inspect/1"),
        ("memory m.onnx", "dmopt.memory/1"),
        ("diff m.onnx o.onnx", "dmopt.diff/1"),
        ("check m.onnx", "dmopt.check/1"),
        ("passes", "dmopt.passes/1"),
        ("passes drop-dead", "dmopt.passes/1"),
        ("session m.onnx", "dmopt.session/1"),
        ("doctor", "dmopt.doctor/1"),
    ] {
        let text = desk.run(&format!("{command} --json")).succeeds().stdout();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], schema, "{command}");
    }
    let one: serde_json::Value =
        serde_json::from_str(&desk.run("passes drop-dead --json").succeeds().stdout()).unwrap();
    assert_eq!(one["passes"].as_array().unwrap().len(), 1);
}

#[test]
fn sizes_are_exact_on_demand() {
    let desk = Desk::with(EXPORT);
    let json = desk.run("inspect m.onnx --json").succeeds().stdout();
    let peak = serde_json::from_str::<dmopt::Inspection>(&json).unwrap().peak_bytes.unwrap();
    assert!(desk.run("inspect m.onnx --bytes").succeeds().stdout().contains(&format!("{peak} B")));
    assert!(!desk.run("inspect m.onnx").succeeds().stdout().contains(&format!("{peak} B")));
}

#[test]
fn colours_come_on_demand_and_go_with_no_color() {
    let desk = Desk::with(EXPORT);
    let run = |variables: &[(&str, &str)]| desk.run_in("inspect m.onnx", variables).succeeds().stdout();
    assert!(!run(&[]).contains('\u{1b}'), "no terminal, no colours");
    assert!(run(&[("CLICOLOR_FORCE", "1")]).contains('\u{1b}'));
    assert!(!run(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\u{1b}'));
}

#[test]
fn a_pass_that_is_misspelt_is_suggested() {
    let desk = Desk::with(EXPORT);
    for command in ["optimize m.onnx --skip drop-daed", "check m.onnx --skip drop-daed", "passes drop-daed"] {
        let done = desk.run(command);
        assert_eq!(done.code(), 2);
        assert!(done.stderr().contains("a similar value exists: 'drop-dead'"), "{}", done.stderr());
    }
}
