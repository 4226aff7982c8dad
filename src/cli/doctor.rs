//! `dmopt doctor`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use dmopt::Diagnosis;

use super::style::{BAD, GOOD, HEAD};

/// Show the runtimes of this machine, which of them are used, and what would provide those that are missing
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt doctor", "what is there and what is missing"),
    ("dmopt doctor --ort-lib libonnxruntime.so", "a library that is not found by itself"),
]))]
pub struct Doctor {
    /// A library of ONNX Runtime to look at first
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// Print JSON (dmopt.doctor/1)
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> anyhow::Result<()> {
        let found = dmopt::diagnose(self.ort_lib.as_deref());
        super::print(|| render(&found), &found, self.json)
    }
}

fn render(found: &Diagnosis) -> String {
    let mut text = format!("{HEAD}runtimes{HEAD:#}\n");
    for runtime in &found.runtimes {
        let mark = if runtime.used { format!(" {GOOD}(used){GOOD:#}") } else { String::new() };
        let _ = writeln!(text, "  {}{mark}", runtime.name);
        let _ = writeln!(text, "    from       {}", runtime.origin);
        if let Some(problem) = &runtime.problem {
            let _ = writeln!(text, "    {BAD}problem{BAD:#}    {problem}");
        }
        for (title, lines) in [("providers", &runtime.providers), ("devices", &runtime.devices)] {
            for (i, line) in lines.iter().enumerate() {
                let _ = writeln!(text, "    {:<11}{line}", if i == 0 { title } else { "" });
            }
        }
    }
    if !found.cuda.is_empty() {
        let _ = writeln!(text, "\n{HEAD}CUDA{HEAD:#}");
    }
    for (name, part) in &found.cuda {
        match part {
            Ok(there) => _ = writeln!(text, "  {name:<11}{there}"),
            Err(missing) => _ = writeln!(text, "  {name:<11}{BAD}missing{BAD:#}: {missing}"),
        }
    }
    if !found.remedies.is_empty() {
        let _ = writeln!(text, "\n{HEAD}what is missing{HEAD:#}");
        for remedy in &found.remedies {
            let _ = writeln!(text, "  {:<26}{}", remedy.what, remedy.command);
        }
    }
    let _ = writeln!(text, "\n{HEAD}used{HEAD:#}");
    for line in &found.uses {
        let _ = writeln!(text, "  {line}");
    }
    text
}
