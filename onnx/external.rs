//! Tensor elements that lie in files beside the model: where they are, how they are read when someone asks, and how
//! the files come along when the model is written to another folder.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tempfile::TempPath;

use crate::error::{ExternalError, ImportError};
use crate::schema::{DataLocation, ModelProto, StringStringEntryProto, TensorProto};
use crate::scratch::{self, Ahead, Scratch};
use crate::{read, tensors, walk, write};

/// A range of an external file, as a tensor refers to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Path of the file relative to the model's folder.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; to the end of the file if absent.
    pub length: Option<u64>,
}

impl Reference {
    /// Where a tensor's elements are, if they are outside.
    ///
    /// # Errors
    /// No location, or an offset or length that is not a number.
    pub fn of(tensor: &TensorProto) -> Result<Option<Reference>, ExternalError> {
        if tensor.data_location != Some(DataLocation::External.into()) {
            return Ok(None);
        }
        let fault = |reason: String| ExternalError::Reference {
            tensor: tensor.name.clone().unwrap_or_default(),
            reason,
        };
        let entry = |key: &str| -> Option<&str> {
            let found = tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key))?;
            Some(found.value.as_deref().unwrap_or_default())
        };
        let number = |key: &str| -> Result<Option<u64>, ExternalError> {
            let Some(text) = entry(key) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| fault(format!("{key} is {text:?}, not a number of bytes")))
        };
        let location = entry("location").ok_or_else(|| fault("no location".to_string()))?;
        Ok(Some(Reference {
            location: location.to_string(),
            offset: number("offset")?.unwrap_or(0),
            length: number("length")?,
        }))
    }

    /// The entries that say the same in a [`TensorProto`].
    pub fn entries(&self) -> Vec<StringStringEntryProto> {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_string()),
            value: Some(value),
            ..Default::default()
        };
        let mut entries =
            vec![entry("location", self.location.clone()), entry("offset", self.offset.to_string())];
        entries.extend(self.length.map(|length| entry("length", length.to_string())));
        entries
    }
}

/// The folder of a model, from which external data are read on demand. Each file is mapped once.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: Mutex<HashMap<PathBuf, Bytes>>,
}

impl Folder {
    /// The folder at `root`; nothing is opened yet.
    pub fn new(root: impl Into<PathBuf>) -> Folder {
        Folder { root: root.into(), files: Mutex::default() }
    }

    /// The folder that holds the file `model`.
    pub fn of(model: &Path) -> Folder {
        Folder::new(parent(model))
    }

    /// Where a location leads, provided that it stays in the folder: relative, no `..`, and no symbolic link out.
    ///
    /// # Errors
    /// The location is refused, or there is no such file.
    pub fn resolve(&self, location: &str) -> Result<PathBuf, ExternalError> {
        let path = self.root.join(plain(location)?);
        let missing =
            |cause: io::Error| ExternalError::File { path: path.clone(), reason: cause.to_string() };
        let found = path.canonicalize().map_err(missing)?;
        let root = self.root.canonicalize().map_err(missing)?;
        if !found.starts_with(root) {
            return Err(refused(location, "a symbolic link leads out of the model's folder"));
        }
        if !found.is_file() {
            return Err(ExternalError::File { path, reason: "not a regular file".to_string() });
        }
        Ok(found)
    }

    /// The bytes of a range; the file stays mapped for the next one.
    ///
    /// # Errors
    /// The location is refused, the file cannot be read, or it ends before the range does.
    pub fn read(&self, range: &Reference) -> Result<Bytes, ExternalError> {
        let path = self.resolve(&range.location)?;
        let whole = self.file(&path)?;
        let present = whole.len() as u64;
        let length = range.length.unwrap_or(present.saturating_sub(range.offset));
        let end = range.offset.saturating_add(length);
        if end > present {
            return Err(ExternalError::Range { path, begin: range.offset, end, present });
        }
        Ok(whole.slice(range.offset as usize..end as usize))
    }

    /// Looks whether all external data of a model are there: regular files within the folder that are long enough.
    /// Only the sizes of the files are asked for; nothing is opened.
    ///
    /// # Errors
    /// The first tensor whose data are not there, and why.
    pub fn check(&self, model: &ModelProto) -> Result<(), ImportError> {
        let mut files: HashMap<String, (PathBuf, u64)> = HashMap::new();
        let mut check = |tensor: &TensorProto| -> Result<(), ExternalError> {
            let Some(range) = Reference::of(tensor)? else { return Ok(()) };
            if !files.contains_key(&range.location) {
                let path = self.resolve(&range.location)?;
                let failed =
                    |cause: io::Error| ExternalError::File { path: path.clone(), reason: cause.to_string() };
                let present = fs::metadata(&path).map_err(failed)?.len();
                files.insert(range.location.clone(), (path, present));
            }
            let (path, present) = &files[&range.location];
            let length = range.length.or_else(|| tensors::byte_len(tensor)).unwrap_or(0);
            let (begin, end) = (range.offset, range.offset.saturating_add(length));
            if end > *present {
                return Err(ExternalError::Range { path: path.clone(), begin, end, present: *present });
            }
            Ok(())
        };
        walk::each_tensor(model, &mut check)
    }

    fn file(&self, path: &Path) -> Result<Bytes, ExternalError> {
        // A panic elsewhere leaves at worst a file less in the map.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapped) = files.get(path) {
            return Ok(mapped.clone());
        }
        let failed =
            |cause: io::Error| ExternalError::File { path: path.to_path_buf(), reason: cause.to_string() };
        let file = File::open(path).map_err(failed)?;
        let empty = file.metadata().map_err(failed)?.len() == 0;
        let mapped = if empty { Bytes::new() } else { read::map(&file).map_err(failed)? };
        files.insert(path.to_path_buf(), mapped.clone());
        Ok(mapped)
    }

    /// Copies the file at `location` to the folder `other` under the same location. Not a hard link: changing one
    /// would change the other, and ONNX's own loader refuses files that have several links. A file with the same
    /// content that is there already is left alone, and nothing is looked at when `other` is this folder. What is made
    /// has the permissions of what it is copied from, and is taken away again unless `ahead` makes it stay.
    ///
    /// # Errors
    /// The location is refused, the file is missing, a different one is in the way, or it cannot be written.
    pub fn bring(&self, location: &str, other: &Path, ahead: &mut Ahead) -> Result<Brought, ExternalError> {
        if let (Ok(here), Ok(there)) = (self.root.canonicalize(), other.canonicalize())
            && here == there
        {
            return Ok(Brought::Present);
        }
        let source = self.resolve(location)?;
        let target = other.join(plain(location)?);
        let failed =
            |cause: io::Error| ExternalError::File { path: target.clone(), reason: cause.to_string() };
        let compare = || match same_content(&source, &target).map_err(failed)? {
            true => Ok(Brought::Present),
            false => Err(ExternalError::File {
                path: target.clone(),
                reason: format!("in the way of {}, and different from it", source.display()),
            }),
        };
        if fs::symlink_metadata(&target).is_ok() {
            return compare();
        }
        let folder = parent(&target);
        make_folder(&folder, ahead).map_err(failed)?;
        let scratch = Scratch::within(&folder).map_err(failed)?;
        let new = scratch.path().join("copy");
        let mut copy = File::create_new(&new).map_err(failed)?;
        let mut original = File::open(&source).map_err(failed)?;
        let permissions = original.metadata().map_err(failed)?.permissions();
        write::permit(&copy, Some(&permissions));
        io::copy(&mut original, &mut copy).map_err(failed)?;
        copy.sync_all().map_err(failed)?;
        let new = TempPath::try_from_path(new).map_err(failed)?;
        match ahead.put(&target, || new.persist_noclobber(&target).map_err(|error| error.error)) {
            Ok(()) => scratch::sync_folder(&folder),
            // Another process was faster.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => return compare(),
            Err(cause) => return Err(failed(cause)),
        }
        Ok(Brought::Copied)
    }
}

impl dmopt_ir::LoadExternal for Folder {
    fn load(&self, range: &dmopt_ir::External) -> Result<Bytes, String> {
        let range =
            Reference { location: range.location.clone(), offset: range.offset, length: range.length };
        self.read(&range).map_err(|error| error.to_string())
    }
}

/// How an external file came along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// It was there already.
    Present,
    /// As a copy.
    Copied,
}

/// The folder that a path is in; the current one for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes a folder and those around it.
fn make_folder(folder: &Path, ahead: &mut Ahead) -> io::Result<()> {
    let missing = folder.ancestors().take_while(|folder| *folder != Path::new("") && !folder.exists());
    for folder in missing.collect::<Vec<_>>().into_iter().rev() {
        match ahead.put(folder, || fs::create_dir(folder)) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
            _ => {}
        }
    }
    Ok(())
}

/// A location as a path below a folder, without looking at the file system.
fn plain(location: &str) -> Result<&Path, ExternalError> {
    let path = Path::new(location);
    let mut named = false;
    for part in path.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir => return Err(refused(location, "it leaves the model's folder")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(refused(
                    location,
                    "it is absolute; only paths below the model's folder are read",
                ));
            }
        }
    }
    if named { Ok(path) } else { Err(refused(location, "it names no file")) }
}

fn refused(location: &str, reason: &'static str) -> ExternalError {
    ExternalError::Refused { location: location.to_string(), reason }
}

fn same_content(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (size, other) = (a.metadata()?, b.metadata()?);
    if !other.is_file() || size.len() != other.len() {
        return Ok(false);
    }
    if same_file(&size, &other) {
        return Ok(true);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let count = a.read(&mut left)?;
        if count == 0 {
            return Ok(true);
        }
        // Equal sizes were just seen; a file that shrinks meanwhile is an error like any other.
        b.read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

#[cfg(unix)]
fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    false
}
