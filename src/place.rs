//! The result on its way to its place: written beside it, proved there, then moved.
//!
//! Whatever happens on the way, to this process or to another one with the same target: files that the model at the
//! target refers to are never replaced, weights are in place before a model refers to them, and the model is replaced
//! in one step. So the old model or the new one is there, whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use dmopt_runtime::{ModelFile, Status};
use tempfile::TempPath;

use crate::onnx::schema::{ModelProto, StringStringEntryProto};
use crate::onnx::scratch::{self, Ahead, Scratch};
use crate::onnx::{self, Folder, PROTOBUF_LIMIT, WriteOptions};
use crate::source::folder_of;
use crate::{Error, Proof, Source, Target};

/// What became of a result.
#[derive(Clone, PartialEq, Debug)]
pub struct Placed {
    /// Where it is now.
    pub verdict: Verdict,
    /// The file that was written and kept, as a path or as the name of a stream.
    pub path: Option<String>,
    /// Size of the model file in bytes.
    pub bytes: u64,
    /// What running original and result showed; `None` when that was not asked for.
    pub proof: Option<Proof>,
}

/// Whether a result is where it belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is.
    InPlace,
    /// Outputs differ. The place is untouched.
    Rejected {
        /// Where the result was kept, or why it was not.
        kept: Result<PathBuf, String>,
    },
    /// Validation was required and skipped. Nothing was kept.
    Withheld,
}

/// Runs a candidate, which is the very file that is then moved into place, against the original.
///
/// # Errors
/// It cannot begin.
pub type Prove<'a> = dyn Fn(&ModelFile) -> Result<Proof, Error> + 'a;

/// Writes `candidate`, the result for `source`, to where `target` says, if it passes what `prove` makes it go through.
/// Without, it is not run. `require` makes a proof that was skipped count as failed.
///
/// A candidate that fails is kept as `<target>.rejected.onnx` instead, with its external data; as
/// `<target>.2.rejected.onnx` and so on where a file of that name is no candidate that failed.
///
/// # Errors
/// Something cannot be written, or the proof cannot begin. What was at the target before is still there then.
pub fn place(
    mut candidate: ModelProto,
    source: &Source,
    target: Target<'_>,
    prove: Option<&Prove<'_>>,
    require: bool,
) -> Result<Placed, Error> {
    let place = destination(&target, source)?;
    candidate.metadata_props.retain(|entry| !is_mark(entry));
    if prove.is_none() && place.is_none() {
        let (path, bytes) = put(candidate, target)?;
        return Ok(Placed { verdict: Verdict::InPlace, path: Some(path), bytes, proof: None });
    }
    let staged = Staged::write(&candidate, source, &target, place.as_deref())?;
    let proof = prove.map(|prove| prove(&staged.file(source)?)).transpose()?;
    let mut bytes = staged.written.bytes;
    let (verdict, path) = match proof.as_ref().map(Proof::status) {
        Some(Status::Failed) => {
            let kept = keep(candidate, source, place.as_deref()).map(|(path, size)| {
                bytes = size;
                path
            });
            let path = kept.as_ref().ok().map(|path| path.display().to_string());
            (Verdict::Rejected { kept }, path)
        }
        Some(Status::Skipped) if require => (Verdict::Withheld, None),
        _ => {
            let path = match (&place, &target) {
                (Some(place), _) => {
                    staged.publish(source, place, backup(&target, place).as_deref())?;
                    // As the caller called it, though it may be a link.
                    match &target {
                        Target::File(path) => path.display().to_string(),
                        _ => source.name.clone(),
                    }
                }
                (None, _) => put(candidate, target)?.0,
            };
            (Verdict::InPlace, Some(path))
        }
    };
    Ok(Placed { verdict, path, bytes, proof })
}

/// Looks whether a result can be put where `target` says, before any work is done for it.
///
/// # Errors
/// The target is a folder, the folder that it would be in is missing or not to be written to, or the copy of the
/// original would replace a file.
pub(crate) fn check(target: &Target<'_>, source: &Source) -> Result<(), Error> {
    if let Target::File(path) = target {
        let names_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        if names_folder || path.is_dir() {
            return Err(onnx::Error::Directory(path.clone()).into());
        }
    }
    let Some(place) = destination(target, source)? else { return Ok(()) };
    if let Some(backup) = backup(target, &place).filter(|path| path.symlink_metadata().is_ok()) {
        let reason = "is there already, and may be the only copy of something";
        return Err(Error::Overwrites { output: backup, reason });
    }
    // A file without a name: where that can be made, so can one with a name, and nothing has to be cleaned up.
    let tried = tempfile::tempfile_in(folder_of(&place)).map(drop).map_err(scratch::bare);
    tried.map_err(io_error(&place, "write a file there"))
}

/// The regular file that the result becomes, links resolved; `None` for a stream, a pipe or `/dev/null`.
fn destination(target: &Target<'_>, source: &Source) -> Result<Option<PathBuf>, Error> {
    let path = match (target, &source.path) {
        (Target::Stream { .. }, _) => return Ok(None),
        (Target::File(path), _) => path,
        (Target::InPlace { .. }, Some(path)) => path,
        (Target::InPlace { .. }, None) => {
            let cause = io::Error::other("it came through a pipe");
            return Err(io_error(Path::new(&source.name), "replace")(cause));
        }
    };
    if fs::metadata(path).is_ok_and(|kind| !kind.is_file()) {
        return Ok(None);
    }
    match path.is_symlink() {
        true => path.canonicalize().map(Some).map_err(io_error(path, "resolve")),
        false => Ok(Some(path.clone())),
    }
}

/// Where a copy of the original goes, if one is asked for.
fn backup(target: &Target<'_>, place: &Path) -> Option<PathBuf> {
    let Target::InPlace { backup: Some(suffix) } = target else { return None };
    let mut name: OsString = place.as_os_str().to_os_string();
    name.push(suffix);
    Some(name.into())
}

/// Writes a model to something that is no regular file.
fn put(model: ModelProto, target: Target<'_>) -> Result<(String, u64), Error> {
    match target {
        Target::Stream { name, stream } => {
            Ok((name.to_string(), onnx::write_stream(&model, name, stream, PROTOBUF_LIMIT)?))
        }
        Target::File(path) => {
            Ok((path.display().to_string(), onnx::write(model, &path, &WriteOptions::default())?.bytes))
        }
        Target::InPlace { .. } => {
            Err(io_error(Path::new("the input"), "replace")(io::Error::other("it is no file")))
        }
    }
}

/// Keeps a result that failed, beside where it would have gone. Gives the file and its size.
fn keep(mut model: ModelProto, source: &Source, place: Option<&Path>) -> Result<(PathBuf, u64), String> {
    let place = place.ok_or("it would have gone to a pipe")?;
    let _turn = turn(&folder_of(place));
    let path = name_of_rejected(place, source);
    let (key, value) = (Some(REJECTED.to_string()), Some("outputs differ".to_string()));
    model.metadata_props.push(StringStringEntryProto { key, value, ..Default::default() });
    let folder = Folder::new(&source.folder);
    let permissions = source.permissions();
    let options = WriteOptions { source: Some(&folder), permissions, ..WriteOptions::default() };
    let written = onnx::write(model, &path, &options).map_err(|cause| cause.to_string())?;
    Ok((path, written.bytes))
}

/// What a rejected result says of itself (`metadata_props`).
const REJECTED: &str = "dmopt.rejected";

fn is_mark(entry: &StringStringEntryProto) -> bool {
    entry.key.as_deref() == Some(REJECTED)
}

/// The first name that is free, or that of an older rejected result: no other file is replaced.
fn name_of_rejected(place: &Path, source: &Source) -> PathBuf {
    let mut path = place.with_extension("rejected.onnx");
    let mut number = 1;
    while source.is_at(&path) || (path.symlink_metadata().is_ok() && !is_rejected(&path)) {
        number += 1;
        path = place.with_extension(format!("{number}.rejected.onnx"));
    }
    path
}

fn is_rejected(path: &Path) -> bool {
    let regular = path.symlink_metadata().is_ok_and(|kind| kind.is_file());
    let model = || onnx::open(path).and_then(|bytes| onnx::decode("", bytes));
    regular && model().is_ok_and(|model| model.metadata_props.iter().any(is_mark))
}

/// A result in a temporary folder of its own, on the file system where it will stay: moving it is one step then.
struct Staged {
    scratch: Scratch,
    model: PathBuf,
    written: onnx::Written,
    /// External files of the source that the model refers to.
    locations: Vec<String>,
}

impl Staged {
    fn write(
        candidate: &ModelProto,
        source: &Source,
        target: &Target<'_>,
        place: Option<&Path>,
    ) -> Result<Staged, Error> {
        let place = place.map_or_else(|| std::env::temp_dir().join("model.onnx"), Path::to_path_buf);
        // A stream has no place for a second file, so its limit has to show before the work of proving.
        if let Target::Stream { name, .. } = target {
            onnx::write_stream(candidate, name, io::sink(), PROTOBUF_LIMIT)?;
        }
        let scratch = Scratch::within(&folder_of(&place)).map_err(io_error(&place, "write beside"))?;
        let model = scratch.path().join(place.file_name().unwrap_or_default());
        let at = |cause| onnx::Error::Import { file: source.name.clone(), cause };
        let locations = onnx::locations(candidate).map_err(at)?;
        let avoid = onnx::locations_of_file(&place);
        let options =
            WriteOptions { avoid: &avoid, permissions: source.permissions(), ..WriteOptions::default() };
        // Whoever reads about a file there knows the place, and not the folder.
        let beside = place.parent().unwrap_or(Path::new(""));
        let there = |cause: onnx::Error| cause.moved(scratch.path(), beside);
        let written = onnx::write(candidate.clone(), &model, &options).map_err(there)?;
        if written.weights.is_some() {
            // Who runs it looks for all of its files in one folder.
            let mut brought = Ahead::default();
            bring(source, &locations, scratch.path(), &mut brought).map_err(there)?;
            brought.settle(|| Ok(())).map_err(io_error(&place, "write beside"))?;
        }
        Ok(Staged { scratch, model, written, locations })
    }

    fn file(&self, source: &Source) -> Result<ModelFile, Error> {
        let folder = if self.written.weights.is_some() { self.scratch.path() } else { &source.folder };
        Ok(ModelFile { bytes: onnx::open(&self.model)?, folder: Some(folder.to_path_buf()) })
    }

    /// Moves weights first, so that the model never refers to what is not there.
    fn publish(self, source: &Source, place: &Path, backup: Option<&Path>) -> Result<(), Error> {
        let folder = folder_of(place);
        let _turn = turn(&folder);
        let mut ahead = Ahead::default();
        bring(source, &self.locations, &folder, &mut ahead)?;
        if let Some(weights) = &self.written.weights {
            let name = weights.file_name().unwrap_or_default();
            if onnx::locations_of_file(place).iter().any(|used| Path::new(used) == Path::new(name)) {
                let cause = io::Error::other("another process has just put a model there");
                return Err(io_error(place, "put in place")(cause));
            }
            let target = folder.join(name);
            let put = ahead.put(&target, || fs::rename(weights, &target));
            put.map_err(io_error(&target, "put in place"))?;
            scratch::sync_folder(&folder);
        }
        if let Some(backup) = backup {
            self.back_up(place, backup, &mut ahead).map_err(io_error(backup, "copy the original to"))?;
        }
        ahead.settle(|| onnx::publish(&self.model, place)).map_err(io_error(place, "put in place"))
    }

    /// A second name for the original, which then loses its first one; a copy where files have one name only.
    fn back_up(&self, original: &Path, backup: &Path, ahead: &mut Ahead) -> io::Result<()> {
        match ahead.put(backup, || fs::hard_link(original, backup)) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                let copy = self.scratch.path().join("original");
                fs::copy(original, &copy)?;
                File::open(&copy)?.sync_all()?;
                let copy = TempPath::try_from_path(copy)?;
                ahead.put(backup, || copy.persist_noclobber(backup).map_err(|error| error.error))
            }
            done => done,
        }
    }
}

fn bring(source: &Source, locations: &[String], folder: &Path, ahead: &mut Ahead) -> Result<(), onnx::Error> {
    let from = Folder::new(&source.folder);
    Ok(locations.iter().try_for_each(|location| from.bring(location, folder, ahead).map(drop))?)
}

/// Waits until no other process is putting a result into this folder. Where folders cannot be locked, processes that
/// write one output at one time may find that it has changed, and say so.
fn turn(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    folder.lock().ok().map(|()| folder)
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::Io { path: path.to_path_buf(), action, cause }
}
