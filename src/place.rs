//! The result on its way to its place: written beside it, proved there, then moved.

use std::fs;
use std::path::{Path, PathBuf};

use dmopt_runtime::{ModelFile, Status};
use tempfile::TempDir;

use crate::onnx::schema::ModelProto;
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
/// A candidate that fails is kept as `<target>.rejected.onnx` instead, with its external data.
///
/// # Errors
/// Something cannot be written, or the proof cannot begin. What was at the target before is still there then.
pub fn place(
    candidate: ModelProto,
    source: &Source,
    target: Target<'_>,
    prove: Option<&Prove<'_>>,
    require: bool,
) -> Result<Placed, Error> {
    let folder = Folder::new(&source.folder);
    let write = WriteOptions { source: Some(&folder), ..WriteOptions::default() };
    let Some(prove) = prove else {
        let (path, bytes) = put(candidate, target, &write)?;
        return Ok(Placed { verdict: Verdict::InPlace, path: Some(path), bytes, proof: None });
    };

    let staged = Staged::write(&candidate, &target, &write)?;
    let proof = prove(&staged.file()?)?;
    let bytes = staged.written.bytes;
    let (verdict, path) = match proof.status() {
        Status::Failed => {
            let kept = keep(candidate, source, &target, &write);
            let path = kept.as_ref().ok().map(|path| path.display().to_string());
            (Verdict::Rejected { kept }, path)
        }
        Status::Skipped if require => (Verdict::Withheld, None),
        Status::Passed | Status::Skipped => {
            let path = match target {
                Target::File(path) if !is_special(&path) => staged.move_to(&path, &write)?,
                target => put(candidate, target, &write)?.0,
            };
            (Verdict::InPlace, Some(path))
        }
    };
    Ok(Placed { verdict, path, bytes, proof: Some(proof) })
}

/// Looks whether a result can be put where `target` says, before any work is done for it.
///
/// # Errors
/// The target is a folder, or the folder that it would be in is missing or not to be written to.
pub(crate) fn check(target: &Target<'_>) -> Result<(), Error> {
    let Target::File(path) = target else { return Ok(()) };
    let names_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    match fs::metadata(path) {
        _ if names_folder => return Err(onnx::Error::Directory(path.clone()).into()),
        Ok(kind) if kind.is_dir() => return Err(onnx::Error::Directory(path.clone()).into()),
        Ok(kind) if !kind.is_file() => return Ok(()),
        _ => {}
    }
    let path = resolved(path)?;
    // A file without a name: where that can be made, so can one with a name, and nothing has to be cleaned up.
    tempfile::tempfile_in(folder_of(&path)).map(drop).map_err(|cause| Error::Io {
        path,
        action: "write a file there",
        cause,
    })
}

/// Writes a model without a detour.
fn put(model: ModelProto, target: Target<'_>, write: &WriteOptions<'_>) -> Result<(String, u64), Error> {
    match target {
        Target::File(path) => Ok((path.display().to_string(), onnx::write(model, &path, write)?.bytes)),
        Target::Stream { name, stream } => {
            Ok((name.to_string(), onnx::write_stream(&model, name, stream, write.limit)?))
        }
    }
}

/// Keeps a result that failed, beside where it would have gone.
fn keep(
    model: ModelProto,
    source: &Source,
    target: &Target<'_>,
    write: &WriteOptions<'_>,
) -> Result<PathBuf, String> {
    let Target::File(path) = target else { return Err("it would have gone to a pipe".to_string()) };
    let path = path.with_extension("rejected.onnx");
    if source.is_at(&path) {
        return Err(format!("{} is the input", path.display()));
    }
    onnx::write(model, &path, write).map(|_| path).map_err(|cause| cause.to_string())
}

/// True for something other than a regular file or nothing: a pipe, `/dev/null`.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|kind| !kind.is_file())
}

/// A result in a temporary folder of its own, on the file system where it will stay: moving it is one step then.
struct Staged {
    folder: TempDir,
    model: PathBuf,
    written: onnx::Written,
}

impl Staged {
    fn write(candidate: &ModelProto, target: &Target<'_>, write: &WriteOptions<'_>) -> Result<Staged, Error> {
        let (place, name) = match target {
            Target::File(path) if fs::metadata(path).is_ok_and(|kind| kind.is_dir()) => {
                return Err(onnx::Error::Directory(path.clone()).into());
            }
            Target::File(path) if !is_special(path) => {
                let path = resolved(path)?;
                (folder_of(&path), path.file_name().unwrap_or_default().to_os_string())
            }
            _ => (std::env::temp_dir(), "model.onnx".into()),
        };
        let folder = onnx::scratch::folder(&place).map_err(|cause| Error::Io {
            path: place,
            action: "write to",
            cause,
        })?;
        let model = folder.path().join(name);
        // A stream has no place for a second file, so its limit has to show before the work of proving.
        if let Target::Stream { name, .. } = target {
            onnx::write_stream(candidate, name, std::io::sink(), PROTOBUF_LIMIT)?;
        }
        let written = onnx::write(candidate.clone(), &model, write)?;
        Ok(Staged { folder, model, written })
    }

    fn file(&self) -> Result<ModelFile, Error> {
        Ok(ModelFile { bytes: onnx::open(&self.model)?, folder: Some(self.folder.path().to_path_buf()) })
    }

    /// Moves weights first, so that the model never refers to what is not there.
    fn move_to(self, path: &Path, write: &WriteOptions<'_>) -> Result<String, Error> {
        let target = resolved(path)?;
        let folder = folder_of(&target);
        if let Some(source) = write.source {
            for (location, _) in &self.written.brought {
                source.bring(location, &folder).map_err(onnx::Error::from)?;
            }
        }
        let rename = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(|cause| Error::Io {
                path: to.to_path_buf(),
                action: "put in place",
                cause,
            })
        };
        if let Some(weights) = &self.written.weights {
            rename(weights, &folder.join(weights.file_name().unwrap_or_default()))?;
        }
        if let Ok(before) = fs::metadata(&target) {
            let keep = |cause| Error::Io { path: target.clone(), action: "set permissions of", cause };
            fs::set_permissions(&self.model, before.permissions()).map_err(keep)?;
        }
        rename(&self.model, &target)?;
        Ok(path.display().to_string())
    }
}

/// Where a symbolic link leads, so that it stays one; any other path as it is.
fn resolved(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_symlink() {
        return Ok(path.to_path_buf());
    }
    path.canonicalize().map_err(|cause| Error::Io { path: path.to_path_buf(), action: "resolve", cause })
}
