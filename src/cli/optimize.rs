//! `dmopt optimize`.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use dmopt::html_report::Content;
use dmopt::ir::infer::infer_graph;
use dmopt::ir::{Model, text};
use dmopt::runtime::Ep;
use dmopt::{
    Anchors, MemoryOptions, MemoryReport, Optimized, Options, Report, Source, Stage, Target, Validate, With,
};
use dmopt::{passes, triton};

use super::progress::Progress;
use super::{Kind, OrtArgs, PassArgs, SizeArgs, is_pipe, source, table};

/// Rewrite a model so that it needs less memory, prove that outputs are the same, and write it
#[derive(Args)]
#[command(after_help = super::examples(&[
    ("dmopt optimize model.onnx", "writes model.opt.onnx"),
    ("dmopt optimize model.onnx out.onnx --session tuned", "measured as a low-memory session"),
    ("dmopt optimize model.onnx --html report.html", "with a page that shows what was done"),
    ("dmopt optimize - - < in.onnx > out.onnx", "in a pipe"),
    ("dmopt optimize model.onnx --triton-repo models --name net", "for NVIDIA Triton"),
]))]
pub struct Optimize {
    /// The model; - for standard input
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where the result goes [default: IN with .opt.onnx at the end]; - for standard output
    #[arg(value_name = "OUT")]
    output: Option<PathBuf>,
    /// The same as OUT
    #[arg(short, long = "output", value_name = "OUT", conflicts_with = "output")]
    o: Option<PathBuf>,
    /// Replace IN by the result, in one step, instead of writing to OUT
    #[arg(long, conflicts_with_all = ["output", "o"])]
    in_place: bool,
    /// Keep the original of --in-place as IN with SUFFIX [default: .bak]
    #[arg(long, value_name = "SUFFIX", requires = "in_place", num_args = 0..=1, require_equals = true,
        default_missing_value = ".bak", value_parser = suffix)]
    backup: Option<String>,
    /// What the result is for [default: portable; ort-cuda with --ep cuda]
    #[arg(long, value_enum)]
    target: Option<For>,
    #[command(flatten)]
    passes: PassArgs,
    /// Oldest ONNX Runtime that the result has to run in, as 1.24 [default: the one that validates it]
    #[arg(long, value_name = "VERSION", value_parser = super::version)]
    onnxruntime: Option<(u32, u32)>,
    /// How ONNX Runtime, which does not follow the file, is made to run operators in the order found
    #[arg(long, value_enum, default_value_t = OrderAnchors::Auto)]
    order_anchors: OrderAnchors,
    /// Stop looking for rewrites that trade for memory once the predicted peak is this low
    #[arg(long, value_name = "N")]
    budget_bytes: Option<u64>,
    /// How much more arithmetic such rewrites may cost, as a factor
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = ratio)]
    max_flops_ratio: f64,
    /// Compute what lies between two layers in this many slices of its channels, everywhere [default: as the peak asks for]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    split_hidden: Option<u64>,
    /// Compute a batch in this many slices of its samples, 1 for none, 0 for one of each sample [default: as many as take no
    /// longer]
    #[arg(long, value_name = "K")]
    split_batch: Option<u64>,
    #[command(flatten)]
    sizes: SizeArgs,
    /// First seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Do not run the models
    #[arg(long)]
    no_validate: bool,
    /// Where the models run [default: both as far as they are there; what is named here has to be]
    #[arg(long, value_enum, value_name = "RUNTIME", conflicts_with = "no_validate")]
    validate_with: Option<Where>,
    #[command(flatten)]
    ort: OrtArgs,
    /// Fail with exit code 5 where validation would be skipped
    #[arg(long, conflicts_with = "no_validate")]
    require_validation: bool,
    /// Write what was done and found as JSON (dmopt.report/1), also when the result is rejected
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Write into a model repository of NVIDIA Triton: DIR/NAME/1/model.onnx, and DIR/NAME/config.pbtxt with the settings of
    /// the low-memory session
    #[arg(long, value_name = "DIR", requires = "name", conflicts_with_all = ["output", "o", "session", "in_place"])]
    triton_repo: Option<PathBuf>,
    /// The name of the model in the repository
    #[arg(long, requires = "triton_repo")]
    name: Option<String>,
    /// Write the report as a page for a browser, in one file, also when the result is rejected
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    /// Stop after this many edits
    #[arg(long, value_name = "N")]
    stop_after: Option<u64>,
    /// Check every invariant of the graph after every pass
    #[arg(long)]
    verify: bool,
    /// Print the result as text on standard output
    #[arg(long)]
    print: bool,
    /// Print the report as JSON (dmopt.report/1) instead of the table
    #[arg(long, conflicts_with_all = ["print", "quiet"])]
    json: bool,
    /// Print errors only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Print every pass, mixing site and refusal
    #[arg(short, long)]
    verbose: bool,
}

/// What comes after the name of a file in the name of its copy.
fn suffix(text: &str) -> Result<String, String> {
    match text {
        "" => Err("it would be the file itself".to_string()),
        _ if text.contains(['/', '\\']) => Err("a copy stands beside its original".to_string()),
        _ => Ok(text.to_string()),
    }
}

/// What a result is for.
#[derive(Clone, Copy, ValueEnum)]
pub enum For {
    /// Plain ONNX operators, which every runtime has
    Portable,
    /// ONNX Runtime on the processor, with operators of its own
    OrtCpu,
    /// ONNX Runtime on CUDA
    OrtCuda,
}

impl For {
    /// What a result is for that is tried on this provider, where nobody says.
    pub fn run_on(ep: &Ep) -> For {
        match ep {
            Ep::Cpu => For::Portable,
            Ep::Cuda { .. } => For::OrtCuda,
        }
    }
}

impl From<For> for passes::Target {
    fn from(target: For) -> passes::Target {
        match target {
            For::Portable => passes::Target::Portable,
            For::OrtCpu => passes::Target::OrtCpu,
            For::OrtCuda => passes::Target::OrtCuda,
        }
    }
}

/// How an order is made to come true.
#[derive(Clone, Copy, ValueEnum)]
enum OrderAnchors {
    /// By `Size` operators at the end of the file, where they are needed: the file is in the good order for all
    Auto,
    /// By numbering alone, for ONNX Runtime alone: no operators are added
    Never,
}

/// A choice of runtimes.
#[derive(Clone, Copy, ValueEnum)]
pub enum Where {
    /// The embedded runtime
    Tract,
    /// ONNX Runtime, which measures memory too
    Ort,
    /// Both
    Both,
}

impl From<Where> for With {
    fn from(runtimes: Where) -> With {
        match runtimes {
            Where::Tract => With::Tract,
            Where::Ort => With::Ort,
            Where::Both => With::Both,
        }
    }
}

/// A factor of at least 1.
fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if ratio >= 1.0 { Ok(ratio) } else { Err("a factor is at least 1".to_string()) }
}

/// A configuration of Triton that is to be written.
struct Served {
    config: PathBuf,
    text: String,
}

impl Served {
    fn write(self) -> anyhow::Result<()> {
        let fill = |file: &mut std::fs::File| file.write_all(self.text.as_bytes());
        Ok(dmopt::onnx::replace(&self.config, fill).map_err(dmopt::Error::from)?)
    }
}

impl Optimize {
    pub fn run(mut self) -> anyhow::Result<()> {
        let served = self.triton()?;
        if served.is_some() {
            self.ort.session = Kind::Tuned;
        }
        let output = self.destination();
        if self.in_place && is_pipe(&self.input) {
            super::usage_error("standard input cannot be replaced in place");
        }
        if (self.print || self.json) && is_pipe(&output) {
            let flag = if self.print { "--print" } else { "--json" };
            super::usage_error(&format!("{flag} and '-' as output would share standard output"));
        }
        if self.triton_repo.is_some() && is_pipe(&self.input) {
            super::usage_error("a model for Triton has to be in a file");
        }
        if let Some(report) = &self.report {
            self.guard_report(report, &output, b'{')?;
        }
        if let Some(page) = &self.html {
            self.guard_report(page, &output, b'<')?;
            anyhow::ensure!(
                self.report.as_ref() != Some(page),
                "{}: page and report are one file",
                page.display()
            );
        }
        let progress = Progress::new(self.quiet, self.verbose);
        let tell = |stage: Stage<'_>| progress.tell(stage);
        let with = self.validate_with.map_or(With::Available, With::from);
        let options = Options {
            passes: self.passes.passes.clone(),
            skip: self.passes.edits.skip.clone(),
            own: super::own_passes(),
            exact: self.passes.edits.exact,
            stop_after: self.stop_after,
            verify: self.verify,
            sizes: self.sizes.sizes(),
            target: self.target(),
            budget_bytes: self.budget_bytes,
            max_flops_ratio: Some(self.max_flops_ratio),
            onnxruntime: self.onnxruntime,
            split_hidden: self.split_hidden,
            split_batch: self.split_batch,
            anchors: match self.order_anchors {
                OrderAnchors::Auto => Anchors::Auto,
                OrderAnchors::Never => Anchors::Never,
            },
            seed: self.seed,
            validate: match (self.no_validate, self.require_validation) {
                (true, _) => Validate::Never,
                (_, true) => Validate::Required,
                _ => Validate::WhenPossible,
            },
            runtimes: self.ort.runtimes(with),
            progress: Some(&tell),
        };
        let input = source(&self.input)?;
        let mut stdout = io::stdout().lock();
        let target = if self.in_place {
            Target::InPlace { backup: self.backup.clone() }
        } else if is_pipe(&output) {
            Target::Stream { name: "<stdout>", stream: &mut stdout }
        } else {
            Target::File(output.clone())
        };
        let done = dmopt::optimize(&input, target, &options);
        progress.finish();
        let report = match &done {
            Ok(done) => Some(&done.report),
            Err(error) => error.report(),
        };
        let told = report.map_or(Ok(()), |report| {
            self.tell(report, &output)?;
            self.draw(report, &input, done.as_ref().ok())
        });
        let done = done?;
        let but = |what: &str| {
            let path = done.report.output.path.as_deref().unwrap_or_default();
            format!("{path} is written, but {what} is not")
        };
        if let Some(served) = served {
            served.write().with_context(|| but("the configuration"))?;
        }
        told.with_context(|| but("the report"))?;
        if self.print {
            let text = text::print_model_as(&done.model, text::Style::Display);
            let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            printed.context("cannot print").with_context(|| but("its text"))?;
        }
        // The process ends, and its memory with it: to free every operator first takes as long as a pass.
        std::mem::forget((input, done));
        Ok(())
    }

    fn target(&self) -> passes::Target {
        self.target.unwrap_or(For::run_on(&self.ort.ep)).into()
    }

    /// What there is to do for Triton, once the model is in its place; its folder is made.
    fn triton(&self) -> anyhow::Result<Option<Served>> {
        let (Some(repository), Some(name)) = (&self.triton_repo, &self.name) else { return Ok(None) };
        let mut model = source(&self.input)?.model()?;
        infer_graph(&mut model.graph);
        let text = triton::config(name, &model.graph, &self.ort.ep)
            .map_err(|reason| anyhow::anyhow!("{}: {reason}", self.input.display()))?;
        let folder = repository.join(name);
        let config = folder.join("config.pbtxt");
        let ours = std::fs::read(&config).map_or(true, |old| old.starts_with(triton::MARK.as_bytes()));
        anyhow::ensure!(ours, "{}: it was not written by dmopt and would be overwritten", config.display());
        let version = folder.join("1");
        std::fs::create_dir_all(&version)
            .with_context(|| format!("{}: cannot make this folder", version.display()))?;
        Ok(Some(Served { config, text }))
    }

    fn destination(&self) -> PathBuf {
        if let (Some(repository), Some(name)) = (&self.triton_repo, &self.name) {
            return repository.join(name).join("1").join("model.onnx");
        }
        match self.output.as_ref().or(self.o.as_ref()) {
            Some(path) => path.clone(),
            None if self.in_place => self.input.clone(),
            None if is_pipe(&self.input) => "-".into(),
            None => self.input.with_extension("opt.onnx"),
        }
    }

    /// The report must not end up in the place of a model. `begin` is what such a report begins with.
    fn guard_report(&self, report: &Path, output: &Path, begin: u8) -> anyhow::Result<()> {
        let same = |other: &Path| {
            report == other
                || matches!((report.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b)
        };
        anyhow::ensure!(!same(&self.input), "{}: the report would overwrite the input", report.display());
        anyhow::ensure!(!same(output), "{}: the report would overwrite the output", report.display());
        // Weights and models begin otherwise.
        if let Ok(mut old) = std::fs::File::open(report) {
            let mut first = [0];
            let report_like = old.read(&mut first).is_ok_and(|read| read == 0 || first == [begin]);
            anyhow::ensure!(
                report_like,
                "{}: the report would overwrite a file that is no report",
                report.display()
            );
        }
        let folder = report.parent().filter(|f| *f != Path::new("")).unwrap_or(Path::new("."));
        anyhow::ensure!(folder.is_dir(), "{}: there is no folder for the report", report.display());
        // The report comes last, when the model is in its place: what would fail then has to fail now.
        let writable = match report.exists() {
            true => OpenOptions::new().append(true).open(report).map(drop),
            false => tempfile::tempfile_in(folder).map(drop),
        };
        writable.with_context(|| format!("{}: cannot write the report", report.display()))
    }

    /// Writes the page. A result that was rejected is read from where it was kept.
    fn draw(&self, report: &Report, input: &Source, done: Option<&Optimized>) -> anyhow::Result<()> {
        let Some(path) = &self.html else { return Ok(()) };
        let inferred = |mut model: Model| {
            infer_graph(&mut model.graph);
            model
        };
        let kept = || match &report.output.path {
            Some(path) if Path::new(path).is_file() => Source::open(path.as_ref())?.model(),
            _ => input.model(),
        };
        let (original, result) = match done {
            Some(Optimized { original, model, .. }) => (original.clone(), model.clone()),
            None => (inferred(input.model()?), inferred(kept()?)),
        };
        let memory = self.memory(report, input, &result);
        let content = Content {
            report,
            before: &original.graph,
            after: &result.graph,
            memory: memory.as_ref().map_err(String::as_str),
        };
        let page = content.html();
        Ok(dmopt::onnx::replace(path, |file| file.write_all(page.as_bytes())).map_err(dmopt::Error::from)?)
    }

    /// The memory of both models at the sizes of the prediction, or why it is not known.
    fn memory(&self, report: &Report, input: &Source, result: &Model) -> Result<MemoryReport, String> {
        let say = |cause: dmopt::Error| cause.to_string();
        let mut sizes = self.sizes.sizes();
        sizes.dims.extend(report.peak.predicted.sizes.clone());
        let options = MemoryOptions {
            kernels: self.target().kernels(),
            session: self.ort.session.into(),
            sizes,
            ..MemoryOptions::default()
        };
        let proto = dmopt::onnx::export(result, &Default::default()).map_err(|cause| cause.to_string())?;
        let after = Source {
            name: report.output.path.clone().unwrap_or_else(|| "result".to_string()),
            bytes: dmopt::onnx::encode(&proto).concat().into(),
            path: None,
            folder: input.folder.clone(),
        };
        let mut both = dmopt::memory_report(input, &options).map_err(say)?;
        both.other = Some(Box::new(dmopt::memory_report(&after, &options).map_err(say)?));
        Ok(both)
    }

    /// Writes the report, and the table to where people read: standard output, unless that carries data.
    fn tell(&self, report: &Report, output: &Path) -> anyhow::Result<()> {
        if let Some(path) = &self.report {
            let text = super::style::json(report).context("cannot write the report as JSON")?;
            dmopt::onnx::replace(path, |file| file.write_all(text.as_bytes()))?;
        }
        if self.quiet {
            return Ok(());
        }
        // Both kinds of data that standard output may carry exclude JSON there.
        if self.print || is_pipe(output) {
            super::say(format_args!("{}", table::render(report, self.verbose)));
            return Ok(());
        }
        super::print(|| table::render(report, self.verbose), report, self.json)
    }
}
