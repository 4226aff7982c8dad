//! Temporary folders beside the files that they become, files that are in place before the model that they are for, and
//! what takes both away whatever happens to the process:
//!
//! - it ends, with or without an error: the destructors of [`Scratch`] and [`Ahead`];
//! - it is told to stop, when destructors do not run: [`clear_for_exit`];
//! - it is killed: the next process that makes a folder at the same place takes the folders away.
//!
//! The last one must know that the owner is dead. Each folder holds a file that its owner keeps locked, and the system
//! ends a lock with the process that holds it; so a folder whose lock can be had is nobody's. Folders of this kind
//! without a lock, or on file systems that have no locks, are left alone.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::Builder;

/// How the name of every temporary folder begins. No output is called so unless someone asks for it.
const PREFIX: &str = ".dmopt-";

/// Length of what follows in the name.
const RANDOM: usize = 6;

/// The file within the folder that its owner holds, and what it says.
const LOCK: &str = ".dmopt-owner";
const CONTENT: &[u8] = b"Temporary files of dmopt. Its next run beside this folder takes them away.\n";

/// How often another folder is tried when one is taken away before it is locked, and taking one away at the end.
const TRIES: usize = 16;

/// Between two attempts to take a folder away that somebody writes into.
const PAUSE: Duration = Duration::from_millis(2);

/// What this process answers for until it ends.
static MADE: Mutex<Made> = Mutex::new(Made { folders: Vec::new(), ahead: Vec::new() });

struct Made {
    /// Every temporary folder; what was dropped is no longer there under its random name.
    folders: Vec<PathBuf>,
    /// What is in place ahead of its model.
    ahead: Vec<PathBuf>,
}

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where it was looked for what others left.
static SWEPT: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

/// A temporary folder, which goes away with the value.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    // Dropped after the folder is gone.
    _lock: File,
}

impl Scratch {
    /// A temporary folder within `place`.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn within(place: &Path) -> io::Result<Scratch> {
        // A relative path would lead elsewhere if the current folder changed.
        let place = std::path::absolute(place)?;
        let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.get_or_insert_default().insert(place.clone()) {
            sweep(&place);
        }
        drop(swept);
        let mut made = made();
        for _ in 0..TRIES {
            let folder = Builder::new().prefix(PREFIX).rand_bytes(RANDOM).tempdir_in(&place);
            let folder = folder.map_err(bare)?.keep();
            made.folders.push(folder.clone());
            match lock(&folder) {
                Ok(Some(lock)) => return Ok(Scratch { folder, _lock: lock }),
                // Another process has taken it for one that was left behind.
                Ok(None) => {}
                Err(cause) if cause.kind() == ErrorKind::NotFound => {}
                Err(cause) => {
                    let _ = remove(&folder);
                    return Err(cause);
                }
            }
        }
        Err(io::Error::other("temporary folders disappear as soon as they are made"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove(&self.folder);
    }
}

/// Files that are in place ahead of the model that they are for. Until it is there too, they go away with the value, and
/// when the process is told to stop.
#[derive(Debug, Default)]
pub struct Ahead(Vec<PathBuf>);

impl Ahead {
    /// Puts a file or a folder at `path`, in one step.
    ///
    /// # Errors
    /// Those of the step, which must leave nothing at `path` then.
    pub fn put(&mut self, path: &Path, step: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        // As long as it is held, the process does not end by being told to stop.
        let mut made = made();
        step()?;
        made.ahead.push(path.clone());
        self.0.push(path);
        Ok(())
    }

    /// Puts the model in place, in one step; all that came before it stays from that moment on.
    ///
    /// # Errors
    /// Those of the step.
    pub fn settle(mut self, step: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut made = made();
        step()?;
        self.let_go(&mut made);
        self.0.clear();
        Ok(())
    }

    fn let_go(&self, made: &mut Made) {
        made.ahead.retain(|path| !self.0.contains(path));
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut made = made();
        take_back(&self.0);
        self.let_go(&mut made);
    }
}

/// Removes the last ones first: a folder comes before what is in it, and stays if it is not empty.
fn take_back(paths: &[PathBuf]) {
    for path in paths.iter().rev() {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
}

/// What the system said, without the name of the temporary file, which nobody knows.
pub fn bare(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source);
    let code = cause.and_then(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    code.map_or(error, io::Error::from_raw_os_error)
}

/// The lock of a new folder; `None` if another process has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(LOCK);
    let mut file = File::create_new(&path)?;
    match file.try_lock() {
        Ok(()) if !path.exists() => return Ok(None),
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        // Without locks, nobody else gets one either.
        Ok(()) | Err(fs::TryLockError::Error(_)) => {}
    }
    file.write_all(CONTENT)?;
    Ok(Some(file))
}

/// Takes away the folders at a place whose owners are dead.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let ours = random.is_some_and(|random| random.len() == RANDOM);
        // The type is the entry's own: a symbolic link is no folder.
        if ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = take_away(&entry.path());
        }
    }
}

fn take_away(folder: &Path) -> io::Result<()> {
    let path = folder.join(LOCK);
    match fs::symlink_metadata(&path) {
        // An owner that was killed before it made the lock. One that is alive is in the middle of that, and makes
        // another folder.
        Err(cause) if cause.kind() == ErrorKind::NotFound => return fs::remove_dir(folder),
        Err(cause) => return Err(cause),
        Ok(kind) if !kind.is_file() => return Ok(()),
        Ok(_) => {}
    }
    let lock = File::options().read(true).write(true).open(&path)?;
    if lock.try_lock().is_err() || !CONTENT.starts_with(&fs::read(&path)?) {
        return Ok(());
    }
    remove(folder)
}

/// Removes a folder, the lock last: whoever is killed on the way leaves what the next one knows.
fn remove(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false if entry.file_name() == LOCK => {}
            false => fs::remove_file(entry.path())?,
        }
    }
    match fs::remove_file(folder.join(LOCK)) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(cause),
        _ => fs::remove_dir(folder),
    }
}

/// Takes away whatever is there of the temporary folders of this process, and what is in place ahead of its model. From
/// then on, whoever wants to make or place something waits for ever: this is for a process that ends.
pub fn clear_for_exit() {
    let made = made();
    for path in &made.folders {
        // Whoever is writing into it is not stopped by this, and may put one more file there in the middle of it.
        for _ in 0..TRIES {
            if remove(path).is_ok() || !path.exists() {
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    take_back(&made.ahead);
    std::mem::forget(made);
}

/// Makes what was renamed within a folder last through a failure of power. Where folders cannot be flushed, it does so
/// a little later.
pub fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abandoned(place: &Path, random: &str, content: &[u8]) -> PathBuf {
        let folder = place.join(format!("{PREFIX}{random}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(LOCK), content).unwrap();
        fs::write(folder.join("half a model"), "half").unwrap();
        folder
    }

    #[test]
    fn a_folder_goes_away_with_its_value() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::within(place.path()).unwrap();
        assert!(scratch.path().is_dir());
        drop(scratch);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_ahead_of_its_model_goes_away_unless_the_model_comes() {
        let place = tempfile::tempdir().unwrap();
        let (folder, file) = (place.path().join("sub"), place.path().join("sub/weights"));
        let put = || {
            let mut ahead = Ahead::default();
            ahead.put(&folder, || fs::create_dir(&folder)).unwrap();
            ahead.put(&file, || fs::write(&file, "weights")).unwrap();
            assert!(ahead.put(&file, || File::create_new(&file).map(drop)).is_err());
            ahead
        };
        drop(put());
        assert!(!folder.exists());
        put().settle(|| Err(io::Error::other("full"))).unwrap_err();
        assert!(!folder.exists());
        put().settle(|| Ok(())).unwrap();
        assert!(file.is_file());
        assert!(!made().ahead.contains(&file));
    }

    #[test]
    fn what_the_dead_left_is_taken_away() {
        let place = tempfile::tempdir().unwrap();
        abandoned(place.path(), "abcdef", CONTENT);
        abandoned(place.path(), "ghijkl", &CONTENT[..9]);
        fs::create_dir(place.path().join(".dmopt-mnopqr")).unwrap();
        drop(Scratch::within(place.path()).unwrap());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_living_hold_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::within(place.path()).unwrap();
        sweep(place.path());
        assert!(scratch.path().join(LOCK).is_file());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let foreign = abandoned(place.path(), "abcdef", b"precious");
        let longer = abandoned(place.path(), "notebook", CONTENT);
        let no_lock = place.path().join(".dmopt-ghijkl");
        fs::create_dir(&no_lock).unwrap();
        fs::write(no_lock.join("notes"), "notes").unwrap();
        let file = place.path().join(".dmopt-mnopqr");
        fs::write(&file, "notes").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&longer, place.path().join(".dmopt-stuvwx")).unwrap();
        sweep(place.path());
        for path in [foreign.join("half a model"), longer.join("half a model"), no_lock.join("notes"), file] {
            assert!(path.is_file(), "{}", path.display());
        }
    }
}
