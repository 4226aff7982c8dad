//! Commands, one file each, and how they end. Errors become one line and an exit code here, and nowhere else.

mod bisect;
mod check;
mod diff;
mod doctor;
mod inspect;
mod memory;
mod optimize;
mod passes;
mod progress;
mod session;
mod shell;
mod style;
mod table;
mod validate;

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dmopt::ir::Sizes;
use dmopt::passes::{PIPELINE, Pass};
use dmopt::runtime::apart::{self, Processes};
use dmopt::runtime::{Ep, SessionKind};
use dmopt::{Runtimes, Source, With, units};
use style::ERROR;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  error: one line on standard error says what is wrong; nothing is written, unless it says that the model is
  2  wrong usage: an unknown flag, pass or value
  3  outputs differ: of optimize, the result is kept as *.rejected.onnx, the output is untouched
  4  a limit is exceeded (--max-peak-ratio, --max-latency-ratio), or check found a difference to the lock file
  5  a runtime, execution provider or device that was required is not there or cannot run the model";

/// The end of a command's help: examples, each a command and what it does, and the exit codes.
fn examples(lines: &[(&str, &str)]) -> String {
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let lines: String =
        lines.iter().map(|(command, what)| format!("  {command:<width$}  {what}\n")).collect();
    format!("Examples:\n{lines}\n{EXIT_CODES}")
}

/// Prints text, or with `json` what the value is in JSON.
fn print(text: impl FnOnce() -> String, value: &impl serde::Serialize, json: bool) -> anyhow::Result<()> {
    let text = match json {
        true => style::json(value).context("cannot write JSON")?,
        false => style::shown(&text()),
    };
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot print")
}

fn start() -> String {
    examples(&[
        ("dmopt optimize model.onnx", "writes model.opt.onnx"),
        ("dmopt inspect model.onnx", "what is in it"),
        ("dmopt check models --update", "locks what dmopt makes of models"),
        ("dmopt help optimize", "every flag of a command"),
    ])
}

/// Makes an ONNX model need the least memory that its computation allows, and proves that the outputs are the same.
#[derive(Parser)]
#[command(name = "dmopt", version, after_help = start(), max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print sizes as exact numbers of bytes
    #[arg(long, global = true)]
    bytes: bool,
}

/// Whether sizes are printed as exact numbers.
static EXACT: OnceLock<bool> = OnceLock::new();

/// A size as the command line asks for it: `14.5 MB`, or `14483456 B`.
fn bytes(n: u64) -> String {
    if EXACT.get() == Some(&true) { format!("{n} B") } else { units::bytes(n) }
}

#[derive(Subcommand)]
enum Command {
    Optimize(Box<optimize::Optimize>),
    Validate(validate::Validate),
    Inspect(inspect::Inspect),
    Memory(memory::Memory),
    Diff(diff::DiffModels),
    Check(check::Check),
    Bisect(bisect::Bisect),
    Passes(passes::Passes),
    Session(session::Session),
    Doctor(doctor::Doctor),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Sizes for what the model leaves open.
#[derive(Args)]
struct SizeArgs {
    /// Shape of an input, for validation and memory prediction; the written model stays as open as it was
    #[arg(long, value_name = "NAME=DIMS", value_parser = shape)]
    input_shape: Vec<(String, Vec<u64>)>,
    /// Size of a symbolic dimension (INPUT.AXIS for one without a name), likewise
    #[arg(long, value_name = "NAME=N", value_parser = dim)]
    dim: Vec<(String, u64)>,
}

impl SizeArgs {
    fn sizes(&self) -> Sizes {
        Sizes { dims: self.dim.iter().cloned().collect(), shapes: self.input_shape.iter().cloned().collect() }
    }
}

/// Which edits are made.
#[derive(Args)]
struct EditArgs {
    /// Not these passes, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = pass_names(), hide_possible_values = true)]
    skip: Vec<String>,
    /// Only edits that keep every bit of the outputs
    #[arg(long)]
    exact: bool,
}

/// The same, by passes.
#[derive(Args)]
struct PassArgs {
    /// Only these passes, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = pass_names(), hide_possible_values = true)]
    passes: Vec<String>,
    #[command(flatten)]
    edits: EditArgs,
}

/// How ONNX Runtime is set up.
#[derive(Args)]
struct OrtArgs {
    /// ONNX Runtime's library [default: ORT_DYLIB_PATH, else of the active Python, else of the system]
    #[arg(long, value_name = "PATH")]
    ort_lib: Option<PathBuf>,
    /// Execution provider of ONNX Runtime: cpu, cuda, or cuda:N for GPU number N; cuda,KEY=VALUE,... with options of the
    /// provider
    #[arg(long, value_name = "EP", default_value_t = Ep::Cpu)]
    ep: Ep,
    /// Configuration of ONNX Runtime's sessions: as everybody gets it who sets nothing, or tuned for low memory
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Default)]
    session: Kind,
    /// Longest that a runtime may take to load a model or to run it once, in seconds; 0 for as long as it likes. Runtimes
    /// run in processes of their own, on CUDA in this one, where nothing stops them
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

impl OrtArgs {
    fn runtimes(&self, with: With) -> Runtimes {
        let patience = Some(Duration::from_secs(self.timeout)).filter(|time| !time.is_zero());
        Runtimes {
            with,
            ort_lib: self.ort_lib.clone(),
            ep: self.ep.clone(),
            session: self.session.into(),
            processes: this_program().map(|program| Processes { program, patience }),
        }
    }
}

/// The program that runs, also when another one has taken its place since.
fn this_program() -> Option<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Some(running) } else { std::env::current_exe().ok() }
}

/// Configuration of a session.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// As everybody gets it who sets nothing
    Default,
    /// Tuned for low memory; `dmopt session` prints it
    Tuned,
}

impl From<Kind> for SessionKind {
    fn from(kind: Kind) -> SessionKind {
        match kind {
            Kind::Default => SessionKind::Default,
            Kind::Tuned => SessionKind::Tuned,
        }
    }
}

/// `NAME=DIMS`, sizes separated by `x` or `,`. A name may have a `=` in it, sizes may not.
fn shape(text: &str) -> Result<(String, Vec<u64>), String> {
    let (name, dims) = named(text)?;
    let sizes = dims.split(['x', ',']).filter(|_| !dims.is_empty()).map(size).collect::<Result<_, _>>()?;
    Ok((name, sizes))
}

/// `NAME=N`.
fn dim(text: &str) -> Result<(String, u64), String> {
    let (name, number) = named(text)?;
    Ok((name, size(number)?))
}

fn named(text: &str) -> Result<(String, &str), String> {
    match text.rsplit_once('=') {
        Some((name, rest)) if !name.is_empty() => Ok((name.to_string(), rest)),
        _ => Err("expected a name, '=' and a size, as in batch=4".to_string()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("'{text}' is not a size"))
}

/// `MAJOR.MINOR`.
fn version(text: &str) -> Result<(u32, u32), String> {
    crate::runtimes::parse_version(text).ok_or_else(|| "expected a version, as 1.32".to_string())
}

/// A positive number.
fn ratio(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "expected a positive number, as 1.05".to_string())
}

/// The passes that the program adds.
static OWN: OnceLock<Vec<&'static dyn Pass>> = OnceLock::new();

fn own_passes() -> Vec<&'static dyn Pass> {
    OWN.get().cloned().unwrap_or_default()
}

/// Names of passes, so that a wrong one is a usage error with a suggestion.
fn pass_names() -> PossibleValuesParser {
    PIPELINE.iter().copied().chain(own_passes()).map(|pass| pass.name()).collect::<Vec<_>>().into()
}

/// Opens a file, or reads standard input for `-`.
fn source(path: &Path) -> Result<Source, dmopt::Error> {
    if is_pipe(path) { Source::read("<stdin>", io::stdin().lock()) } else { Source::open(path) }
}

fn is_pipe(path: &Path) -> bool {
    path == Path::new("-")
}

/// Ends with a usage error that clap cannot find by itself.
fn usage_error(message: &str) -> ! {
    Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message).exit()
}

/// What shells report of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Blocks signals that are not to end the process. Writing beyond the largest size of a file (`ulimit -f`) is an error like
/// that of a full disk then. A hang-up that the process was started to ignore (`nohup`) stays without effect; to be told to
/// stop by it, it gets a handler.
#[cfg(unix)]
fn block_signals() {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    if is_ignored(Signal::SIGHUP) {
        signals.add(Signal::SIGHUP);
    }
    // If they cannot be blocked, all is as it was.
    let _ = signals.thread_block();
}

/// True if the process ignores this signal; false where the system does not tell in `/proc`.
#[cfg(unix)]
fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    // The lowest bit is signal 1.
    ignored.is_some_and(|set| set >> (signal as i32 - 1) & 1 == 1)
}

/// Runs the command line of this process, with passes beside those of [`PIPELINE`]: the whole of a program that
/// is dmopt with passes of its own.
pub fn run(own: &[&'static dyn Pass]) -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == apart::ARGUMENT) {
        return if apart::host().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    // The first call decides; a process has one command line.
    let _ = OWN.set(own.to_vec());
    // Before there are other threads, which inherit it.
    #[cfg(unix)]
    block_signals();
    // Without a handler there would be no clearing up, and nothing else would be lost.
    let _ = ctrlc::set_handler(|| {
        dmopt::onnx::scratch::clear_for_exit();
        std::process::exit(INTERRUPTED);
    });
    let Cli { command, bytes } = Cli::parse();
    let _ = EXACT.set(bytes);
    let done = match command {
        Command::Optimize(args) => args.run(),
        Command::Validate(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Memory(args) => args.run(),
        Command::Diff(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Bisect(args) => args.run(),
        Command::Passes(args) => args.run(),
        Command::Session(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let known = error.downcast_ref::<dmopt::Error>();
            // Our own messages are complete; others need their causes.
            let complete = error.chain().next().is_some_and(|outer| outer.is::<dmopt::Error>());
            let message = if complete { error.to_string() } else { format!("{error:#}") };
            say(format_args!("{ERROR}error:{ERROR:#} {}\n", shorten(&one_line(&message))));
            ExitCode::from(known.map_or(1, dmopt::Error::exit_code))
        }
    }
}

/// Writes to standard error. That nobody can hear it is no reason to stop.
fn say(text: std::fmt::Arguments<'_>) {
    let _ = anstream::stderr().write_all(style::shown(&text.to_string()).as_bytes());
}

/// What libraries say may have several lines.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// Names longer than this say no more in a message than both of their ends.
const LONG: usize = 200;

fn shorten(message: &str) -> String {
    let short = |word: &str| -> String {
        let chars: Vec<char> = word.chars().collect();
        match chars.len() {
            0..=LONG => word.to_string(),
            n => chars[..LONG / 2].iter().chain(&['.'; 3]).chain(&chars[n - LONG / 2..]).collect(),
        }
    };
    message.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = match error.downcast_ref::<dmopt::Error>() {
        // A model that was cut off is no result.
        Some(_) => None,
        None => error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()),
    };
    cause.is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shapes_may_be_separated_either_way() {
        assert_eq!(shape("x=1,3,224,224").unwrap(), ("x".into(), vec![1, 3, 224, 224]));
        assert_eq!(shape("a=b=2x3").unwrap(), ("a=b".into(), vec![2, 3]));
        assert_eq!(shape("scalar=").unwrap(), ("scalar".into(), vec![]));
        assert!(shape("x=1,,2").is_err());
        assert!(shape("=3").is_err());
    }

    #[test]
    fn dimensions_have_one_size() {
        assert_eq!(dim("batch=4").unwrap(), ("batch".into(), 4));
        assert!(dim("batch").is_err());
        assert!(dim("batch=-1").is_err());
    }

    #[test]
    fn messages_of_several_lines_become_one() {
        assert_eq!(one_line("a\n  b\n\n"), "a; b");
    }

    #[test]
    fn long_names_lose_their_middle() {
        let message = format!("node '{}': no such value", "ä".repeat(1000) + "end");
        let short = shorten(&message);
        assert!(short.starts_with("node 'ää") && short.ends_with("äend': no such value"), "{short}");
        assert_eq!(short.chars().count(), "node ".len() + LONG + 3 + " no such value".len());
        assert_eq!(shorten("a short  one"), "a short  one");
    }

    #[test]
    fn ratios_are_positive_numbers() {
        assert_eq!(ratio("1.05"), Ok(1.05));
        for wrong in ["0", "-1", "inf", "nan", "x", ""] {
            assert!(ratio(wrong).is_err(), "{wrong}");
        }
    }
}
