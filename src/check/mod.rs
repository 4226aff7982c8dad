//! The regression test for rewrites: what dmopt makes of models, against what a lock file says that it made.

mod lock;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dmopt_ir::{Sizes, model_digest, parallel};
use dmopt_passes::{Pass, Target};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::report::{MixingSite, OpenSizes};
use crate::rewrite::Inferred;
use crate::units::plural;
use crate::{Error, Facts, Source, ir, onnx};

pub use lock::{Entry, Lock, Made};

/// The value of [`Report::schema`].
pub const SCHEMA: &str = "dmopt.check/1";

/// What models are checked for unless they are told.
pub const TARGETS: &[Target] = &[Target::Portable];

/// Endings of files that dmopt writes beside a model: a folder's models are without them.
const RESULTS: [&str; 3] = [".opt.onnx", ".rejected.onnx", ".bisect.onnx"];

/// How to check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For what; empty means [`TARGETS`].
    pub targets: Vec<Target>,
    /// Bit-identical edits only.
    pub exact: bool,
    /// Not these passes.
    pub skip: Vec<String>,
    /// Sizes for open dimensions. What stays open gets the size of a first validation run.
    pub sizes: Sizes,
    /// Largest predicted peak of a result, in bytes.
    pub max_peak: Option<u64>,
    /// Largest predicted peak of a result, divided by that of its original.
    pub max_peak_ratio: Option<f64>,
    /// Models that are worked on at the same time; `None` means one for each processor.
    pub jobs: Option<usize>,
    /// The share of the models that is checked, from 1, and the number of shares.
    pub shard: Option<(usize, usize)>,
}

/// What a check found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The lock file.
    pub lock: String,
    /// The models in order of their paths.
    pub models: Vec<Checked>,
}

/// What a check found about one model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Its name in the lock file.
    pub path: String,
    /// The verdict.
    pub status: Status,
    /// What is not as it was locked, and limits that are exceeded: a sentence each.
    pub differences: Vec<String>,
    /// What is better than it was locked, or only worth knowing.
    pub notes: Vec<String>,
    /// What dmopt makes of it now; null when it could not be read or is gone.
    pub found: Option<Entry>,
}

/// A verdict about one model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As locked, within the limits.
    Passed,
    /// Something is not as it was locked, or a limit is exceeded.
    Differs,
    /// The lock file does not know it.
    New,
    /// The lock file knows it, and it is not there.
    Gone,
    /// It could not be read or rewritten.
    Error,
}

/// Checks models, files or folders, against a lock file, which stays as it is. `own` passes run with the others.
///
/// # Errors
/// A path does not exist or the lock file cannot be read. What is wrong with a model is in the report.
pub fn check(
    paths: &[PathBuf],
    lock_path: &Path,
    lock: &Lock,
    own: &[&'static dyn Pass],
    options: &Options,
) -> Result<Report, Error> {
    let base = crate::source::folder_of(lock_path);
    let mut todo: BTreeMap<String, Option<PathBuf>> = BTreeMap::new();
    for path in paths {
        let folder = path.is_dir();
        let files = if folder { models_in(path)? } else { vec![path.clone()] };
        if folder {
            // What the lock file says is in this folder and is not.
            let prefix = key(path, &base)?;
            let inside = |name: &str| {
                prefix == "." || name.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with('/'))
            };
            todo.extend(lock.models.keys().filter(|name| inside(name)).map(|name| (name.clone(), None)));
        }
        for file in files {
            todo.insert(key(&file, &base)?, Some(file));
        }
    }
    let mut todo: Vec<(String, Option<PathBuf>)> = todo.into_iter().collect();
    if let Some((share, shares)) = options.shard {
        todo = todo
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % shares == share - 1)
            .map(|(_, item)| item)
            .collect();
    }
    let jobs = options.jobs.unwrap_or_else(parallel::processors);
    let check = |(name, file): &(String, Option<PathBuf>)| {
        one(name, file.as_deref(), lock.models.get(name), own, options)
    };
    let mut models = Vec::with_capacity(todo.len());
    let _ = parallel::in_order_on(jobs, &todo, check, |_, checked| {
        models.push(checked);
        ControlFlow::<()>::Continue(())
    });
    Ok(Report { schema: SCHEMA.to_string(), lock: lock_path.display().to_string(), models })
}

impl Report {
    /// The lock file as this check would have it: what was found in place of what was locked. What could not be read stays.
    pub fn update(&self, lock: &Lock) -> Lock {
        let mut lock = lock.clone();
        for model in &self.models {
            match (&model.found, model.status) {
                (Some(found), _) => {
                    let entry = lock.models.entry(model.path.clone()).or_insert_with(|| found.clone());
                    // Targets that were not looked at this time stay, unless the model is another one.
                    let known = std::mem::replace(entry, found.clone());
                    if known.content == found.content && known.data == found.data {
                        for (name, made) in known.targets {
                            entry.targets.entry(name).or_insert(made);
                        }
                    }
                }
                (None, Status::Gone) => _ = lock.models.remove(&model.path),
                (None, _) => {}
            }
        }
        lock
    }

    /// The report after its [update](Report::update) was written: what was found is what is locked, and limits are limits.
    pub fn accepted(mut self, options: &Options) -> Report {
        self.models.retain(|model| model.status != Status::Gone);
        for model in &mut self.models {
            let Some(found) = &model.found else { continue };
            model.notes.clear();
            model.differences = found
                .targets
                .iter()
                .flat_map(|(target, made)| of_target(limits(made, options), target))
                .collect();
            model.status = if model.differences.is_empty() { Status::Passed } else { Status::Differs };
        }
        self
    }

    /// The report as a verdict.
    ///
    /// # Errors
    /// [`Error::Check`]: a model is not as it was locked or exceeds a limit, or could not be read.
    pub fn judge(&self) -> Result<(), Error> {
        let count = |status| self.models.iter().filter(|model| model.status == status).count();
        let parts = [
            (Status::Error, "could not be read"),
            (Status::Differs, "differ"),
            (Status::New, "not locked"),
            (Status::Gone, "gone"),
        ];
        let said: Vec<String> = parts
            .into_iter()
            .filter(|&(status, _)| count(status) > 0)
            .map(|(status, word)| format!("{} {word}", count(status)))
            .collect();
        if said.is_empty() {
            return Ok(());
        }
        let reason = format!("of {}: {}", plural(self.models.len(), "model"), said.join(", "));
        Err(Error::Check { lock: self.lock.clone(), reason, unreadable: count(Status::Error) > 0 })
    }
}

/// What dmopt makes of a model.
///
/// # Errors
/// It cannot be read or rewritten, or the sizes contradict it.
pub fn survey(source: &Source, own: &[&'static dyn Pass], options: &Options) -> Result<Entry, Error> {
    let original = Inferred::of(source.complete_model()?);
    let targets = if options.targets.is_empty() { TARGETS } else { &options.targets };
    let mut made = BTreeMap::new();
    for &target in targets {
        made.insert(target.name().to_string(), make(source, &original, target, own, options)?);
    }
    Ok(Entry { content: sha256(&source.bytes), data: external(source)?, targets: made })
}

fn make(
    source: &Source,
    inferred: &Inferred,
    target: Target,
    own: &[&'static dyn Pass],
    options: &Options,
) -> Result<Made, Error> {
    let original = &inferred.model;
    let open = OpenSizes::of(&original.graph, &options.sizes, target.kernels())
        .map_err(|reason| Error::Sizes { file: source.name.clone(), reason })?;
    let choices = crate::Options {
        skip: options.skip.clone(),
        own: own.to_vec(),
        exact: options.exact,
        sizes: options.sizes.clone(),
        target,
        ..crate::Options::default()
    };
    let (model, outcome) = inferred.rewritten(source, &choices, None)?;
    // The file holds signed numbers.
    let number = |bytes: u64| bytes.min(i64::MAX as u64);
    let peak = |model: &ir::Model| open.first_peak(&model.graph).map(number);
    let rewrites = outcome.passes.iter().filter(|pass| pass.rewrites > 0);
    Ok(Made {
        structure: model_digest(&model).to_string(),
        nodes: Facts::of(&model).nodes,
        original_peak: peak(original),
        peak: peak(&model),
        lower_bound: outcome.main_schedule().and_then(|schedule| schedule.lower_bound_bytes).map(number),
        sizes: open.first_sizes().dims,
        rewrites: rewrites.map(|pass| (pass.name.to_string(), pass.rewrites)).collect(),
        sites: outcome.sites.iter().map(|site| (site.output.clone(), fate(site))).collect(),
    })
}

fn fate(site: &dmopt_passes::Site) -> String {
    format!("{}, {}, {}", site.form, plural(site.terms, "term"), MixingSite::from(site).fate())
}

fn one(
    name: &str,
    file: Option<&Path>,
    locked: Option<&Entry>,
    own: &[&'static dyn Pass],
    options: &Options,
) -> Checked {
    let verdict = |status, differences: Vec<String>, found| Checked {
        path: name.to_string(),
        status,
        differences,
        notes: Vec::new(),
        found,
    };
    let Some(file) = file else {
        return verdict(Status::Gone, vec!["it is locked and not there".to_string()], None);
    };
    let found = match Source::open(file).and_then(|source| survey(&source, own, options)) {
        Ok(found) => found,
        Err(cause) => return verdict(Status::Error, vec![cause.to_string()], None),
    };
    let (mut against, mut notes) = (Vec::new(), Vec::new());
    if let Some(locked) = locked {
        if locked.content != found.content {
            against.push(format!("the file is another: {:.19} -> {:.19}", locked.content, found.content));
        }
        let files: std::collections::BTreeSet<&String> =
            locked.data.keys().chain(found.data.keys()).collect();
        let data = files.into_iter().filter(|file| locked.data.get(*file) != found.data.get(*file));
        against.extend(data.map(|file| format!("external data are others: {file}")));
        for (target, made) in &found.targets {
            match locked.targets.get(target) {
                Some(known) => {
                    let (worse, better) = made.compare(known);
                    against.extend(of_target(worse, target));
                    notes.extend(of_target(better, target));
                }
                None => against.push(format!("target {target} is not locked")),
            }
        }
    }
    for (target, made) in &found.targets {
        against.extend(of_target(limits(made, options), target));
    }
    let status = match (locked, against.is_empty()) {
        (None, _) => Status::New,
        (Some(_), true) => Status::Passed,
        (Some(_), false) => Status::Differs,
    };
    Checked { notes, ..verdict(status, against, Some(found)) }
}

/// The most portable target goes without saying.
fn of_target(sentences: Vec<String>, target: &str) -> impl Iterator<Item = String> {
    let prefix = if target == Target::Portable.name() { String::new() } else { format!("{target}: ") };
    sentences.into_iter().map(move |sentence| format!("{prefix}{sentence}"))
}

fn limits(made: &Made, options: &Options) -> Vec<String> {
    let mut exceeded = Vec::new();
    let unknown = || "a limit is set and the predicted peak is not known".to_string();
    match (options.max_peak, made.peak) {
        (Some(limit), Some(peak)) if peak > limit => {
            exceeded.push(format!("the predicted peak is {peak} bytes, not at most {limit}"));
        }
        (Some(_), None) => exceeded.push(unknown()),
        _ => {}
    }
    match (options.max_peak_ratio, made.peak, made.original_peak) {
        (Some(limit), Some(peak), Some(original)) if peak as f64 > limit * original as f64 => {
            let ratio = peak as f64 / original.max(1) as f64;
            exceeded.push(format!(
                "the predicted peak is {ratio:.4} times that of the original, not at most {limit}"
            ));
        }
        (Some(_), Some(_), Some(_)) | (None, ..) => {}
        (Some(_), ..) => exceeded.push(unknown()),
    }
    exceeded.dedup();
    exceeded
}

/// The models in a folder and its folders, without hidden ones and without what dmopt wrote.
fn models_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let cannot = |cause| Error::Io { path: folder.to_path_buf(), action: "list", cause };
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with('.') {
            continue;
        }
        // A link to a folder may lead in a circle.
        let kind = entry.file_type().map_err(cannot)?;
        if kind.is_dir() {
            found.extend(models_in(&path)?);
        } else if name.ends_with(".onnx") && path.is_file() && !RESULTS.iter().any(|end| name.ends_with(end))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A path as the lock file names it: relative to its folder, with `/`; absolute where it is elsewhere.
fn key(path: &Path, base: &Path) -> Result<String, Error> {
    let real = |path: &Path| {
        let cannot = |cause| Error::Io { path: path.to_path_buf(), action: "read", cause };
        // The name of a link is what people know a model by.
        match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) if !path.is_dir() => {
                let folder = if folder == Path::new("") { Path::new(".") } else { folder };
                Ok(folder.canonicalize().map_err(cannot)?.join(name))
            }
            _ => path.canonicalize().map_err(cannot),
        }
    };
    let path = real(path)?;
    let base =
        base.canonicalize().map_err(|cause| Error::Io { path: base.to_path_buf(), action: "read", cause })?;
    let Ok(relative) = path.strip_prefix(&base) else { return Ok(path.display().to_string()) };
    let parts: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    Ok(if parts.is_empty() { ".".to_string() } else { parts.join("/") })
}

fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

fn hex(digest: &[u8]) -> String {
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The digests of the files that hold external data.
fn external(source: &Source) -> Result<BTreeMap<String, String>, Error> {
    let proto = onnx::decode(&source.name, source.bytes.clone())?;
    let folder = onnx::Folder::new(&source.folder);
    let at = |cause| onnx::Error::Import { file: source.name.clone(), cause };
    let locations = onnx::locations(&proto).map_err(at)?;
    let digest = |location: String| {
        let path = folder.resolve(&location).map_err(onnx::Error::from)?;
        let cannot = |cause: io::Error| Error::Io { path: path.clone(), action: "read", cause };
        let mut file = std::fs::File::open(&path).map_err(cannot)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(cannot)? {
                0 => return Ok((location, hex(hasher.finalize().as_slice()))),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    locations.into_iter().map(digest).collect()
}
