//! From a [`ModelProto`] to a file, without copying weights and without ever leaving half a file behind.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::error::Error;
use crate::external::{Brought, Folder, parent};
use crate::schema::ModelProto;
use crate::scratch::{self, Ahead, Scratch};
use crate::spill::{self, Spill};
use crate::{read, walk};

/// Largest protobuf message that readers accept: its length must fit an `i32`.
pub const PROTOBUF_LIMIT: u64 = i32::MAX as u64;

/// How to write a file.
#[derive(Debug)]
pub struct WriteOptions<'a> {
    /// Largest file to write, in bytes; above it, weights go to a second file. [`PROTOBUF_LIMIT`] unless testing.
    pub limit: u64,
    /// The folder that external data of the model are in; they come along when the output goes elsewhere.
    pub source: Option<&'a Folder>,
    /// Names that the second file must not have: something else refers to files of these names.
    pub avoid: &'a [String],
    /// Permissions of files that were not there before; the system's default if absent.
    pub permissions: Option<fs::Permissions>,
}

impl Default for WriteOptions<'_> {
    fn default() -> Self {
        WriteOptions { limit: PROTOBUF_LIMIT, source: None, avoid: &[], permissions: None }
    }
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Size of the model file in bytes.
    pub bytes: u64,
    /// The file that took the weights of a model above the limit.
    pub weights: Option<PathBuf>,
    /// External files that came along, and how.
    pub brought: Vec<(String, Brought)>,
}

/// Writes a model to a file; an existing one is replaced as a whole, at the end.
///
/// A model above the limit gets its weights (initializers of 1 KiB and more) moved to one file `<path>.data` next to
/// it, which is in place before the model refers to it, and never in the place of a file that the model which is there
/// so far refers to. External files that the model refers to already are copied next to the output ([`Folder::bring`]).
///
/// # Errors
/// The file or those that it needs cannot be written, or the model is above the limit even without weights. A file
/// that was there before is then still there, unchanged, and what came for the new one is gone again.
pub fn write(mut model: ModelProto, path: &Path, options: &WriteOptions) -> Result<Written, Error> {
    let mut written = Written::default();
    let at = |cause| Error::Import { file: path.display().to_string(), cause };
    let locations = walk::locations(&model).map_err(at)?;
    let mut weights = Vec::new();
    let old = locations_of_file(path);
    let name = free_name(path, &[&locations[..], &old, options.avoid].concat());
    if model.encoded_len() as u64 > options.limit {
        weights = spill::spill(&mut model, &name);
        fits(&model, path, options.limit, "")?;
    }
    let mut ahead = Ahead::default();
    if let Some(source) = options.source {
        for location in locations {
            let how = source.bring(&location, &parent(path), &mut ahead)?;
            written.brought.push((location, how));
        }
    }
    let permissions = options.permissions.as_ref();
    if !weights.is_empty() {
        let beside = parent(path).join(name);
        let fill = |file: &mut fs::File| weights.iter().try_for_each(|piece| write_at(file, piece));
        if let Some(ready) = prepare(&beside, permissions, fill)? {
            ahead.put(&ready.target, || ready.publish()).map_err(Error::io(&beside, "put in place"))?;
        }
        written.weights = Some(beside);
    }
    let ready = prepare(path, permissions, |file| {
        written.bytes = encode_to(&model, file)?;
        Ok(())
    })?;
    let publish = || ready.as_ref().map_or(Ok(()), Ready::publish);
    ahead.settle(publish).map_err(Error::io(path, "put in place"))?;
    Ok(written)
}

/// Writes a model to a stream; `file` names it in errors (`<stdout>`).
///
/// # Errors
/// The stream fails, or the model is above `limit` bytes: a stream has no place for a second file.
pub fn write_stream(
    model: &ModelProto,
    file: &str,
    mut stream: impl Write,
    limit: u64,
) -> Result<u64, Error> {
    fits(model, Path::new(file), limit, "; write to a file instead, so that weights can go to a second one")?;
    let sent = encode_to(model, &mut stream).and_then(|bytes| stream.flush().map(|()| bytes));
    sent.map_err(Error::io(Path::new(file), "write"))
}

fn fits(model: &ModelProto, path: &Path, limit: u64, hint: &'static str) -> Result<(), Error> {
    let bytes = model.encoded_len() as u64;
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::TooLarge { file: path.display().to_string(), bytes, limit, hint })
}

/// The external files that the model in a file refers to; none if it is no model.
pub fn locations_of_file(path: &Path) -> Vec<String> {
    let model =
        if path.is_file() { read::open(path).and_then(|bytes| read::decode("", bytes)).ok() } else { None };
    model.and_then(|model| walk::locations(&model).ok()).unwrap_or_default()
}

/// `<path>.data`, or a numbered one when a file of that name is in use.
fn free_name(path: &Path, used: &[String]) -> String {
    let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let used = |name: &String| used.iter().any(|location| Path::new(location) == Path::new(name));
    let mut name = format!("{stem}.data");
    let mut number = 1;
    while used(&name) {
        number += 1;
        name = format!("{stem}.{number}.data");
    }
    name
}

fn write_at(file: &mut fs::File, piece: &Spill) -> io::Result<()> {
    file.write_all(&vec![0; piece.padding as usize])?;
    pour(piece.data.pieces(), file)
}

/// Puts a file in place as a whole: written beside its target, flushed to disk, then renamed over it
/// ([`publish`]). A symbolic link stays one; anything that is not a regular file (a pipe, `/dev/null`) is written to
/// directly.
///
/// # Errors
/// The path is a folder, or a file operation failed; what was there before is still there.
pub fn replace(path: &Path, fill: impl FnOnce(&mut fs::File) -> io::Result<()>) -> Result<(), Error> {
    let ready = prepare(path, None, fill)?;
    ready.as_ref().map_or(Ok(()), Ready::publish).map_err(Error::io(path, "put in place"))
}

/// A file that is complete on disk, beside its target.
struct Ready {
    _scratch: Scratch,
    new: PathBuf,
    target: PathBuf,
}

impl Ready {
    fn publish(&self) -> io::Result<()> {
        publish(&self.new, &self.target)
    }
}

/// Writes what is to be at `path`; `None` if that is written to directly.
fn prepare(
    path: &Path,
    permissions: Option<&fs::Permissions>,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> Result<Option<Ready>, Error> {
    let existing = fs::metadata(path).ok();
    if existing.as_ref().is_some_and(|kind| kind.is_dir()) {
        return Err(Error::Directory(path.to_path_buf()));
    }
    if existing.as_ref().is_some_and(|kind| !kind.is_file()) {
        let mut file = fs::OpenOptions::new().write(true).open(path).map_err(Error::io(path, "open"))?;
        return fill(&mut file).map(|()| None).map_err(Error::io(path, "write"));
    }
    let target = if existing.is_some() { path.canonicalize() } else { Ok(path.to_path_buf()) };
    let target = target.map_err(Error::io(path, "resolve"))?;

    let scratch = Scratch::within(&parent(&target)).map_err(Error::io(path, "write beside"))?;
    let new = scratch.path().join(target.file_name().unwrap_or_default());
    let mut file = fs::File::create_new(&new).map_err(Error::io(path, "write beside"))?;
    permit(&file, permissions);
    fill(&mut file).map_err(Error::io(path, "write"))?;
    file.sync_all().map_err(Error::io(path, "flush"))?;
    Ok(Some(Ready { _scratch: scratch, new, target }))
}

/// Gives permissions to a file that is new. That a file system has none is no reason to stop.
pub(crate) fn permit(file: &fs::File, permissions: Option<&fs::Permissions>) {
    let _ = permissions.map(|permissions| file.set_permissions(permissions.clone()));
}

/// Renames a file that is complete on disk over `target`. It gets the permissions of what was there, and its owner
/// where the process may give files away.
///
/// # Errors
/// The system refuses; what was at the target is still there.
pub fn publish(new: &Path, target: &Path) -> io::Result<()> {
    if let Ok(old) = fs::metadata(target) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::{MetadataExt, chown};
            let _ = chown(new, Some(old.uid()), Some(old.gid()));
        }
        fs::set_permissions(new, old.permissions())?;
    }
    fs::rename(new, target)?;
    scratch::sync_folder(&parent(target));
    Ok(())
}

/// The encoded model as pieces that follow each other. Raw bytes from [`SPLICE`] on are pieces of their own and shared
/// with the model, not copied; those that are derived are put together, and the model keeps them.
pub fn encode(model: &ModelProto) -> Vec<Bytes> {
    let mut pieces = Pieces::default();
    model.encode_raw(&mut pieces);
    pieces.flush();
    pieces.done
}

/// Writes the encoded model piece by piece: no more of it is in memory at a time than [`AT_ONCE`] bytes and what the model
/// itself has there. Gives the number of bytes.
fn encode_to(model: &ModelProto, to: &mut dyn Write) -> io::Result<u64> {
    let mut writer = Writer { tail: BytesMut::new(), to, written: Ok(0) };
    model.encode_raw(&mut writer);
    writer.flush();
    writer.written
}

/// Writes what is left in a buffer.
pub(crate) fn pour(mut from: impl Buf, to: &mut dyn Write) -> io::Result<()> {
    while from.has_remaining() {
        let chunk = from.chunk();
        to.write_all(chunk)?;
        let count = chunk.len();
        from.advance(count);
    }
    Ok(())
}

/// Byte strings of this length or more are spliced in rather than copied.
pub const SPLICE: usize = 4096;

/// Bytes that are collected before they are written.
const AT_ONCE: usize = 1 << 16;

/// A buffer that takes long byte strings by reference.
#[derive(Default)]
struct Pieces {
    done: Vec<Bytes>,
    tail: BytesMut,
}

impl Pieces {
    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.done.push(self.tail.split().freeze());
        }
    }
}

// SAFETY: the three required methods are those of `BytesMut`, which upholds the contract; `put` adds whole pieces
// through safe code only.
unsafe impl BufMut for Pieces {
    fn remaining_mut(&self) -> usize {
        self.tail.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has initialized `count` bytes of what `chunk_mut` returned.
        unsafe { self.tail.advance_mut(count) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.tail.chunk_mut()
    }

    fn put<T: Buf>(&mut self, mut source: T) {
        let count = source.remaining();
        if count >= SPLICE {
            self.flush();
            self.done.push(source.copy_to_bytes(count));
        } else {
            self.tail.put(source);
        }
    }
}

/// A buffer that hands everything on to a file, long byte strings without a copy. After an error it takes no more.
struct Writer<'w> {
    tail: BytesMut,
    to: &'w mut dyn Write,
    /// Number of bytes, or what went wrong.
    written: io::Result<u64>,
}

impl Writer<'_> {
    fn hand_on(&mut self, bytes: impl Buf) {
        if let Ok(written) = self.written {
            let count = bytes.remaining() as u64;
            self.written = pour(bytes, self.to).map(|()| written + count);
        }
    }

    fn flush(&mut self) {
        let mut tail = std::mem::take(&mut self.tail);
        self.hand_on(&tail[..]);
        tail.clear();
        self.tail = tail;
    }

    fn flush_if_long(&mut self) {
        if self.tail.len() >= AT_ONCE {
            self.flush();
        }
    }
}

// SAFETY: the three required methods are those of `BytesMut`, which upholds the contract; what is written was
// initialized, and is emptied before `chunk_mut` returns more of it.
unsafe impl BufMut for Writer<'_> {
    fn remaining_mut(&self) -> usize {
        self.tail.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has initialized `count` bytes of what `chunk_mut` returned.
        unsafe { self.tail.advance_mut(count) }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.flush_if_long();
        self.tail.chunk_mut()
    }

    fn put<T: Buf>(&mut self, source: T) {
        if source.remaining() >= SPLICE {
            self.flush();
            self.hand_on(source);
        } else {
            self.flush_if_long();
            self.tail.put(source);
        }
    }

    fn put_slice(&mut self, source: &[u8]) {
        self.flush_if_long();
        self.tail.put_slice(source);
    }
}
