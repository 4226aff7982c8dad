//! Temporary files and folders, known by path so that a process that is told to stop can take them away: destructors do
//! not run then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{Builder, NamedTempFile, TempDir};

/// How the name of everything temporary begins. No output is called so unless someone asks for it.
const PREFIX: &str = ".dmopt-";

/// Everything made so far. What was moved into place or dropped is no longer there under its random name.
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A temporary file in a folder, with the permissions that the process gives to new files.
pub(crate) fn file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    let new_file = std::os::unix::fs::PermissionsExt::from_mode(0o666); // The process's mask applies.
    #[cfg(unix)]
    builder.permissions(new_file);
    made(|| builder.tempfile_in(folder), NamedTempFile::path)
}

/// A temporary folder within a folder.
///
/// # Errors
/// It cannot be made there.
pub fn folder(within: &Path) -> io::Result<TempDir> {
    made(|| Builder::new().prefix(PREFIX).tempdir_in(within), TempDir::path)
}

/// Takes away whatever is there of the temporary files and folders of this process. From then on, whoever wants to make
/// another one waits for ever: this is for a process that ends.
pub fn clear_for_exit() {
    let made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    for path in made.iter() {
        let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
    std::mem::forget(made);
}

fn made<T>(make: impl FnOnce() -> io::Result<T>, path: fn(&T) -> &Path) -> io::Result<T> {
    let mut known = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let new = make()?;
    // A relative path would lead elsewhere if the current folder changed.
    known.push(std::path::absolute(path(&new))?);
    Ok(new)
}
