//! Where models come from and go to.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dmopt_ir::{Model, Storage};

use crate::onnx::{self, Folder};
use crate::{Error, facts, runtime};

/// A model as it came in.
pub struct Source {
    /// What to call it: the path, or `<stdin>`.
    pub name: String,
    /// Content of the file.
    pub bytes: Bytes,
    /// The file; `None` when it came through a pipe.
    pub path: Option<PathBuf>,
    /// Folder that external data are in.
    pub folder: PathBuf,
}

/// Where the result goes.
pub enum Target<'a> {
    /// To a file, which is replaced as a whole.
    File(PathBuf),
    /// Over the file that the model came from, which is replaced as a whole.
    InPlace {
        /// What to append to the name of the file for a copy of the original, which must not be there yet.
        backup: Option<String>,
    },
    /// To a stream, once it has proved itself.
    Stream {
        /// What to call it in errors.
        name: &'a str,
        /// The stream.
        stream: &'a mut dyn Write,
    },
}

impl Source {
    /// A file. It is mapped, not read.
    ///
    /// # Errors
    /// The file is missing, unreadable, empty or a directory.
    pub fn open(path: &Path) -> Result<Source, Error> {
        Ok(Source {
            name: path.display().to_string(),
            bytes: onnx::open(path)?,
            path: Some(path.to_path_buf()),
            folder: folder_of(path),
        })
    }

    /// A stream, read to its end. External data are looked for in the current folder.
    ///
    /// # Errors
    /// The stream cannot be read, or is empty.
    pub fn read(name: &str, stream: impl Read) -> Result<Source, Error> {
        let bytes = onnx::slurp(name, stream)?;
        Ok(Source { name: name.to_string(), bytes, path: None, folder: ".".into() })
    }

    /// The model, without inferred types. Its external data need not be there.
    ///
    /// # Errors
    /// The bytes are no model.
    pub fn model(&self) -> Result<Model, Error> {
        Ok(onnx::parse(&self.name, self.bytes.clone(), Folder::new(&self.folder))?)
    }

    /// The model, without inferred types, provided that its external data are there as far as the sizes of files tell.
    ///
    /// # Errors
    /// The bytes are no model, or a tensor whose data are missing or too short.
    pub fn complete_model(&self) -> Result<Model, Error> {
        let at = |cause| onnx::Error::Import { file: self.name.clone(), cause };
        let (proto, folder) = (onnx::decode(&self.name, self.bytes.clone())?, Folder::new(&self.folder));
        folder.check(&proto).map_err(at)?;
        Ok(onnx::import(proto, Arc::new(folder)).map_err(at)?)
    }

    /// The model as a runtime takes it.
    pub fn file(&self) -> runtime::ModelFile {
        runtime::ModelFile { bytes: self.bytes.clone(), folder: Some(self.folder.clone()) }
    }

    /// Permissions of the file, which new files get that hold what is in it; `None` when it came through a pipe.
    pub(crate) fn permissions(&self) -> Option<Permissions> {
        let kind = fs::metadata(self.path.as_ref()?).ok()?;
        kind.is_file().then(|| kind.permissions())
    }

    /// True when this is the file that the model came from.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.path.as_deref().is_some_and(|input| same_file(input, path))
    }

    /// Refuses a target that is the input itself, one of the files that hold its weights, or where a copy of those goes;
    /// and in place, an input that holds its own weights.
    pub(crate) fn guard(&self, target: &Target<'_>, model: &Model) -> Result<(), Error> {
        let (output, in_place) = match (target, &self.path) {
            (Target::File(output), _) => (output, false),
            (Target::InPlace { .. }, Some(input)) => (input, true),
            _ => return Ok(()),
        };
        let refuse = |reason| Err(Error::Overwrites { output: output.clone(), reason });
        if !in_place && self.is_at(output) {
            return refuse("is the input itself");
        }
        let folder = Folder::new(&self.folder);
        // Weights stand beside the result under the names that they have.
        let place = output.canonicalize().unwrap_or_else(|_| output.clone());
        let (mut in_use, mut in_the_way) = (false, false);
        facts::each_constant(&model.graph, &mut |tensor| {
            if let Storage::External(range) = &tensor.storage {
                in_use |= folder.resolve(&range.location).is_ok_and(|data| same_file(&data, output));
                let parts = Path::new(&range.location).components().filter(|part| *part != Component::CurDir);
                in_the_way |= parts.map(Component::as_os_str).eq(place.file_name());
            }
        });
        match (in_use, in_the_way) {
            (true, _) => refuse("holds weights of the input"),
            (_, true) => refuse("is where weights of the input belong"),
            _ => Ok(()),
        }
    }
}

/// The folder that a path is in; the current one for a bare name.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// True when both paths lead to one file, by whatever links.
fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |path: &Path| fs::metadata(path).ok().map(|kind| (kind.dev(), kind.ino()));
        id(a).is_some() && id(a) == id(b)
    }
    #[cfg(not(unix))]
    {
        a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    }
}
