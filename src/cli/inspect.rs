//! `dmopt inspect`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use dmopt::Inspection;
use dmopt::report::planned_for;

use super::bytes;
use super::style::HEAD;
use super::units::{count, plural};
use super::{SizeArgs, source};

/// How many of the largest values at the peak are listed.
const LARGEST: usize = 5;

/// Show what is in a model: operators, inputs and outputs, parameters, mixing sites, predicted peak
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt inspect model.onnx", "operators, mixing sites, predicted peak"),
    ("dmopt inspect model.onnx --dim batch=4", "with a size for what is open"),
]))]
pub struct Inspect {
    /// The model; - for standard input
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print JSON (dmopt.inspect/1)
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<()> {
        let found = dmopt::inspect(&source(&self.model)?, &self.sizes.sizes())?;
        super::print(|| render(&found), &found, self.json)
    }
}

fn render(found: &Inspection) -> String {
    let mut text = String::new();
    let opsets: Vec<String> =
        found.opsets.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let _ = writeln!(
        text,
        "{} ({}), IR version {}, opset {}",
        found.path,
        bytes(found.file_bytes),
        found.ir_version,
        opsets.join(", ")
    );
    for (title, values) in [("inputs", &found.inputs), ("outputs", &found.outputs)] {
        let _ = writeln!(text, "\n{HEAD}{title}{HEAD:#}");
        for value in values {
            let _ = writeln!(text, "  {}: {}", value.name, value.ty.as_deref().unwrap_or("type unknown"));
        }
    }
    let _ = writeln!(
        text,
        "\n{HEAD}parameters{HEAD:#}\n  {} in {}",
        count(found.parameters),
        bytes(found.initializer_bytes)
    );
    let _ = writeln!(text, "\n{HEAD}operators{HEAD:#} ({})", found.nodes);
    let mut operators: Vec<(&String, &u64)> = found.operators.iter().collect();
    operators.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), (*name).clone()));
    for (name, n) in operators {
        let _ = writeln!(text, "  {n:>6}  {name}");
    }
    if !found.functions.is_empty() {
        let _ = writeln!(text, "\n{HEAD}functions{HEAD:#}\n  {}", found.functions.join("\n  "));
    }
    sites(&mut text, found);
    peak(&mut text, found);
    text
}

fn sites(text: &mut String, found: &Inspection) {
    let _ = writeln!(text, "\n{HEAD}mixing sites{HEAD:#} ({})", found.mixing_sites.len());
    let mut forms: BTreeMap<(&str, usize), usize> = BTreeMap::new();
    for site in &found.mixing_sites {
        *forms.entry((&site.form, site.terms)).or_default() += 1;
    }
    for ((form, terms), sites) in forms {
        let _ = writeln!(text, "  {sites:>6}  {form}, {}", plural(terms, "term"));
    }
    for site in &found.mixing_sites {
        let reason =
            site.reason.as_ref().map(|reason| format!("  (left alone: {reason})")).unwrap_or_default();
        let _ =
            writeln!(text, "  {:<16}{:<10}{}{reason}", site.form, plural(site.terms, "term"), site.output);
    }
}

fn peak(text: &mut String, found: &Inspection) {
    let _ = writeln!(
        text,
        "\n{HEAD}predicted peak{HEAD:#} ({})",
        planned_for(dmopt::memory::ort::Settings::default().kernels)
    );
    match (found.peak_bytes, &found.peak_reason) {
        (Some(peak), _) => {
            let _ = writeln!(text, "  {} in {}", bytes(peak), plural(found.peak_values.len(), "value"));
            for (name, size) in found.peak_values.iter().take(LARGEST) {
                let _ = writeln!(text, "  {:>10}  {name}", bytes(*size));
            }
        }
        (None, reason) => {
            let _ = writeln!(text, "  unknown: {}", reason.as_deref().unwrap_or_default());
        }
    }
}
