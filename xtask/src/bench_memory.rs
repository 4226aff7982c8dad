//! The table of `docs/results.md`: peak memory of original and result in stock ONNX Runtime, measured.
//!
//! Each network is optimized for each target and each kind of session, and compared with its original by `dmopt validate`.
//! Nothing is taken from a prediction: every figure is what an allocator registered with ONNX Runtime counted.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use dmopt_fixtures::FORMS;
use serde::Deserialize;
use serde_json::Value;

use crate::network::{Choices, LayerChoices};
use crate::{network, peers, test, torchvision};

/// What to measure.
#[derive(Args, Clone)]
pub struct Bench {
    /// Only networks with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Inputs per comparison
    #[arg(long, value_name = "N", default_value_t = 10)]
    seeds: u32,
    /// Timed runs of each file; 0 leaves the latency out
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: u32,
    /// Let no result be chosen by measuring while it is made: minutes less, and a default session may get more than it has to
    #[arg(long)]
    quick: bool,
    /// Compute batches as a whole (`--split-batch 1`)
    #[arg(long, conflicts_with = "exact")]
    whole_batches: bool,
    /// Only what leaves every bit of the outputs as it is (`--exact`)
    #[arg(long)]
    exact: bool,
    /// The program to measure [default: a release build]
    #[arg(long, value_name = "PATH")]
    dmopt: Option<PathBuf>,
    /// Where the table goes
    #[arg(long, value_name = "FILE.md", default_value = "docs/results.md")]
    output: PathBuf,
}

/// What a page is about: the same networks, optimized with other options.
struct Page {
    title: &'static str,
    /// The option of this command that makes it, and the page's place if it is not the usual one.
    options: &'static str,
    /// What `dmopt optimize` is asked for beside target and session.
    optimize: &'static [&'static str],
    /// What a reader has to know about it.
    about: &'static str,
}

const USUAL: Page = Page {
    title: "Results",
    options: "",
    optimize: &[],
    about: "Batches of several samples are computed in slices (`split-batch`), as by default; [whole-batches.md](whole-batches.md)
has what comes of them as a whole, [exact.md](exact.md) what comes of rewrites that leave every bit as it is.",
};

const WHOLE_BATCHES: Page = Page {
    title: "Results of whole batches",
    options: " --whole-batches --output docs/whole-batches.md",
    optimize: &["--split-batch", "1"],
    about: "Batches are computed as a whole (`--split-batch 1`).",
};

const EXACT: Page = Page {
    title: "Results without any difference",
    options: " --exact --output docs/exact.md",
    optimize: &["--exact"],
    about: "Only rewrites that leave every bit of the outputs as it is are made (`--exact`); [results.md](results.md) has the
others too.",
};

/// A network of the table.
struct Network {
    name: &'static str,
    source: Source,
}

/// Where a network comes from.
enum Source {
    /// `cargo xtask network` with these arguments.
    Mixing(&'static [&'static str]),
    /// `cargo xtask layer`.
    Layer,
    /// The same with the mixing written in this form.
    Form(&'static str),
    /// `cargo xtask torchvision --only` the first `--exporter` the second.
    Torchvision(&'static str, &'static str),
}

/// A network, and its results: the kinds of sessions one after the other, in each the targets.
type Row = (&'static str, Vec<Compared>);

/// With how far rounding alone moves the original.
type Noisy = (Row, Rounding);

const NETWORKS: &[Network] = &[
    Network { name: "direct_mixing_conv, 2 streams", source: Source::Mixing(&["--streams", "2"]) },
    Network { name: "direct_mixing_conv, 4 streams", source: Source::Mixing(&["--streams", "4"]) },
    Network { name: "direct_mixing_bn, 2 streams", source: Source::Mixing(&["--kind", "direct_mixing_bn"]) },
    Network { name: "li_net3, 2 streams", source: Source::Mixing(&["--kind", "li_net3"]) },
    Network { name: "li_net3_soma, 2 streams", source: Source::Mixing(&["--kind", "li_net3_soma"]) },
    Network { name: "one layer, batch 32, 128 channels, 52x68, 2 streams", source: Source::Layer },
    Network { name: "MobileNetV2, batch 16", source: Source::Torchvision("mobilenet_v2", "dynamo") },
    Network { name: "U-Net, base width 32, 256x256", source: Source::Torchvision("unet", "dynamo") },
    Network { name: "DenseNet-121", source: Source::Torchvision("densenet121", "dynamo") },
    Network { name: "ResNet-50", source: Source::Torchvision("resnet50", "dynamo") },
    Network {
        name: "vision transformer, batch 1, 785 positions",
        source: Source::Torchvision("vit", "dynamo"),
    },
    Network { name: "MobileNetV2, BatchNorm kept", source: Source::Torchvision("mobilenet_v2", "ts-bn") },
    Network { name: "U-Net, BatchNorm kept", source: Source::Torchvision("unet", "ts-bn") },
    Network { name: "DenseNet-121, BatchNorm kept", source: Source::Torchvision("densenet121", "ts-bn") },
    Network { name: "ResNet-50, BatchNorm kept", source: Source::Torchvision("resnet50", "ts-bn") },
];

const TARGETS: [&str; 2] = ["portable", "ort-cpu"];
const SESSIONS: [&str; 2] = ["default", "tuned"];

/// One result against its original.
struct Compared {
    /// Peak of the original in this session, in bytes.
    before: u64,
    /// Peak of the result in this session, in bytes.
    after: u64,
    /// Largest relative difference of outputs.
    max_rel: f64,
    /// Median time of the result by that of the original.
    latency: Option<f64>,
}

/// What `scripts/rounding.py` found for an original, as relative differences, and its results.
#[derive(Deserialize)]
struct Rounding {
    /// Between sessions with all optimizations and with none.
    between_sessions: f64,
    /// From the same computation in double precision.
    from_double: f64,
    /// How many decisions between classes there were.
    decisions: u64,
    /// How many of them are others between these sessions, and of each result.
    changed: Vec<u64>,
}

/// Measures and writes the table.
pub fn run(bench: &Bench) -> anyhow::Result<()> {
    let target = test::target_folder();
    let program = match &bench.dmopt {
        Some(program) => program.clone(),
        None => peers::release()?,
    };
    let venv = target.join("venv");
    test::make_venv(&venv, test::REQUIREMENTS)?;
    let tool = Tool { program, library: test::onnx_runtime(&venv)?, python: venv.join("bin/python") };
    let folder = target.join("bench-memory");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (mut networks, mut forms) = (Vec::new(), Vec::new());
    // A run is long: what was measured stands in the document as soon as there is a row of it.
    let write = |networks: &[Noisy], forms: &[Row]| {
        let mut text = tables(networks, bench);
        if !forms.is_empty() {
            text += &table_of_forms(forms);
        }
        std::fs::write(&bench.output, text)
            .with_context(|| format!("cannot write {}", bench.output.display()))
    };
    for network in NETWORKS.iter().filter(|network| network.name.contains(&bench.only)) {
        let original = network.build(&folder).with_context(|| format!("cannot build {}", network.name))?;
        let row = tool.row(network.name, &original, &TARGETS, bench)?;
        networks.push((row, tool.rounding(&original, bench)?));
        write(&networks, &forms)?;
    }
    let of_forms = Bench { runs: 0, quick: true, ..bench.clone() };
    for form in FORMS.iter().map(|form| form.name()).filter(|name| name.contains(&bench.only)) {
        let network = Network { name: form, source: Source::Form(form) };
        let original = network.build(&folder).with_context(|| format!("cannot build form {form}"))?;
        forms.push(tool.row(form, &original, &TARGETS[1..], &of_forms)?);
        write(&networks, &forms)?;
    }
    ensure!(!networks.is_empty() || !forms.is_empty(), "no network has '{}' in its name", bench.only);
    Ok(())
}

impl Bench {
    fn page(&self) -> &'static Page {
        match (self.whole_batches, self.exact) {
            (true, _) => &WHOLE_BATCHES,
            (false, true) => &EXACT,
            (false, false) => &USUAL,
        }
    }
}

impl Network {
    fn build(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        #[derive(clap::Parser)]
        struct Line<A: Args> {
            #[command(flatten)]
            choices: A,
        }
        let name: String = self.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let file = folder.join(format!("{name}.onnx"));
        let path = file.to_str().context("the path is no text")?;
        match self.source {
            Source::Mixing(arguments) => {
                let line = [&["network", path], arguments].concat();
                network::write(&<Line<Choices> as clap::Parser>::try_parse_from(line)?.choices)?;
            }
            Source::Form(form) => {
                let line = ["network", path, "--form", form];
                network::write(&<Line<Choices> as clap::Parser>::try_parse_from(line)?.choices)?;
            }
            Source::Layer => {
                let line = <Line<LayerChoices> as clap::Parser>::try_parse_from(["layer", path])?;
                network::write_layer(&line.choices)?;
            }
            Source::Torchvision(name, exporter) => {
                let end = format!("_{exporter}.onnx");
                let there = || {
                    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
                    let mut files = files.map(|entry| entry.path());
                    files.find(|path| {
                        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                        file.starts_with(name) && file.ends_with(&end)
                    })
                };
                if there().is_none() {
                    let folder = folder.to_str().context("the path is no text")?;
                    let line = ["torchvision", folder, "--only", name, "--exporter", exporter];
                    torchvision::export(
                        &<Line<torchvision::Choices> as clap::Parser>::try_parse_from(line)?.choices,
                    )?;
                }
                return there().context("the exporter wrote no such file");
            }
        }
        Ok(file)
    }
}

/// The command line that users have.
struct Tool {
    program: PathBuf,
    library: PathBuf,
    python: PathBuf,
}

impl Tool {
    fn command(&self, arguments: &[&str], session: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--session", session, "--ort-lib"]).arg(&self.library);
        command
    }

    fn row(
        &self,
        name: &'static str,
        original: &Path,
        targets: &[&str],
        bench: &Bench,
    ) -> anyhow::Result<Row> {
        let mut cells = Vec::new();
        for session in SESSIONS {
            for target in targets {
                let compared = self.compare(original, target, session, bench)?;
                println!(
                    "{name}: {target}, {session} session: {} -> {} bytes, max rel {:.1e}, latency {:.2?}",
                    compared.before, compared.after, compared.max_rel, compared.latency
                );
                cells.push(compared);
            }
        }
        Ok((name, cells))
    }

    fn rounding(&self, original: &Path, bench: &Bench) -> anyhow::Result<Rounding> {
        let mut script = Command::new(&self.python);
        script.arg("scripts/rounding.py").arg(original).args(["--seeds", &bench.seeds.to_string()]);
        script.arg("--results").args(
            SESSIONS
                .iter()
                .flat_map(|session| TARGETS.iter().map(move |target| result(original, target, session))),
        );
        let found = script.args(["--exact", "1"]).output().context("cannot run python")?;
        serde_json::from_slice(&found.stdout)
            .with_context(|| String::from_utf8_lossy(&found.stderr).into_owned())
    }

    fn compare(
        &self,
        original: &Path,
        target: &str,
        session: &str,
        bench: &Bench,
    ) -> anyhow::Result<Compared> {
        let result = result(original, target, session);
        let (before, after) = (original.to_str().context("no text")?, result.to_str().context("no text")?);
        let optimize = ["optimize", before, after, "--target", target, "--quiet"];
        let mut optimize = self.command(&optimize, session);
        optimize.args(bench.page().optimize);
        match bench.quick {
            true => optimize.arg("--no-validate"),
            false => optimize.args(["--validate-with", "ort"]),
        };
        test::call(&mut optimize)?;
        let (seeds, runs) = (bench.seeds.to_string(), bench.runs.to_string());
        let validate =
            ["validate", before, after, "--outputs-only", "--json", "--seeds", &seeds, "--runs", &runs];
        let found = self.command(&validate, session).output().context("cannot run dmopt")?;
        if !found.status.success() {
            bail!("{after}: {}", String::from_utf8_lossy(&found.stderr).trim());
        }
        let found: Value = serde_json::from_slice(&found.stdout).context("no JSON")?;
        let bytes =
            |side: &str| found["memory"][side]["peak_bytes"].as_u64().context("memory was not measured");
        Ok(Compared {
            before: bytes("reference")?,
            after: bytes("candidate")?,
            max_rel: found["outputs"]["max_rel"].as_f64().context("outputs were not compared")?,
            latency: found["latency"]["ratio"].as_f64(),
        })
    }
}

/// Where the result for a target and a session goes.
fn result(original: &Path, target: &str, session: &str) -> PathBuf {
    original.with_extension(format!("{target}.{session}.onnx"))
}

fn tables(rows: &[Noisy], bench: &Bench) -> String {
    let Page { title, options, about, .. } = bench.page();
    let mut text = format!(
        "# {title}

Peak memory of activations in stock ONNX Runtime on the processor, to the byte as an allocator of ours that is registered
with it counts (`docs/validation.md`): the larger of the first run and the later ones, of a default session in any of three
loads. In brackets, the share of what the original needs in a **default** session. *default* is what everybody gets who sets
nothing, *tuned* the low-memory session of `dmopt session`. The networks are 208x272 with a batch of 4, or 224x224 with a
batch of 4, unless a row says otherwise; weights are random. Every network is optimized for each target and each session
(`--quick`: without measuring which arrangement suits a session best, so for both alike).
{about}

```sh
# not run by the tests: takes long, and a network
cargo xtask bench-memory --seeds {} --runs {}{}{options}
```

| network | original, default | original, tuned | portable, default | ort-cpu, default | portable, tuned | ort-cpu, tuned |
|---|---|---|---|---|---|---|
",
        bench.seeds,
        bench.runs,
        if bench.quick { " --quick" } else { "" },
    );
    for ((name, cells), _) in rows {
        let [default, _, tuned, _] = &cells[..] else { continue };
        let _ = write!(text, "| {name} | {} | {} |", megabytes(default.before), megabytes(tuned.before));
        for cell in cells {
            let share = cell.after as f64 / default.before.max(1) as f64;
            let _ = write!(text, " {} ({share:.2}) |", megabytes(cell.after));
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "
Largest relative difference of any output element, and the median time of the result by that of the original, both files
in one process by turns (times depend on what else the machine does). The last two columns are what rounding alone does
(`scripts/rounding.py`): how far the original is from itself, with all optimizations of the session and with none, and how far
it is from the same computation in double precision, for the nearer of these sessions and one input. A file that computed
without any rounding would differ from the original by that much; less cannot be asked of any.

| network | portable, default | ort-cpu, default | portable, tuned | ort-cpu, tuned | original against itself | original against double |
|---|---|---|---|---|---|---|
"
    );
    for ((name, cells), rounding) in rows {
        let _ = write!(text, "| {name} |");
        for cell in cells {
            let time = cell.latency.map_or("not timed".to_string(), |ratio| format!("{ratio:.2}"));
            let _ = write!(text, " {:.1e}, {time} |", cell.max_rel);
        }
        let _ = writeln!(text, " {:.1e} | {:.1e} |", rounding.between_sessions, rounding.from_double);
    }
    text += "
Which class is the largest, for each sample of each input and for each pixel where outputs have any: how many of these
decisions are others than in the original. The last column is what rounding alone does: the original with all optimizations
of the session against none.

| network | decisions | portable, default | ort-cpu, default | portable, tuned | ort-cpu, tuned | original against itself |
|---|---|---|---|---|---|---|
";
    for ((name, _), rounding) in rows {
        let _ = write!(text, "| {name} | {} |", rounding.decisions);
        let itself = rounding.changed.iter().take(1);
        for changed in rounding.changed.iter().skip(1).chain(itself) {
            let _ = write!(text, " {changed} |");
        }
        text.push('\n');
    }
    text
}

fn table_of_forms(rows: &[Row]) -> String {
    let mut text = "
The first network in every form in which its mixing can be written; the shares are of what that form needs in a default
session, and differences are those of the tuned one. Nothing is chosen by measuring here. In the forms f11 the weights are
computed when the network runs, in some of them for each sample or pixel; in f12 the mixing is computed in double precision.
Where a weight belongs to a pixel (f11-attention, f11-pixel) or a product is rounded to half precision (f12-narrow), no
operator of ONNX Runtime on the processor multiplies and adds in one step, so the product is a tensor beside the
accumulator and the stream: that makes 3 tensors of a size of which the other forms have 2. In f12 all of it is in double
precision, tensors twice as large that nothing adds to in place, and what is asked for in double is not computed in less.

| form | original, default | ort-cpu, default | ort-cpu, tuned | difference |
|---|---|---|---|---|
"
    .to_string();
    for (name, cells) in rows {
        let [default, tuned] = &cells[..] else { continue };
        let _ = write!(text, "| {name} | {} |", megabytes(default.before));
        for cell in cells {
            let share = cell.after as f64 / default.before.max(1) as f64;
            let _ = write!(text, " {} ({share:.2}) |", megabytes(cell.after));
        }
        let _ = writeln!(text, " {:.1e} |", tuned.max_rel);
    }
    text
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
