//! From a file or a pipe to a [`ModelProto`]. Files are mapped, not read: weights are touched when a pass asks for
//! their values, and not before.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, skip_field};

use crate::error::Error;
use crate::schema::ModelProto;

/// The bytes of a file, mapped where the file is a regular one.
///
/// The file must not be truncated or rewritten in place while the bytes are in use; [`write`](crate::write())
/// replaces files by renaming, which is safe even onto the input.
///
/// # Errors
/// The file is missing, unreadable, empty or a directory.
pub fn open(path: &Path) -> Result<Bytes, Error> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let kind = file.metadata().map_err(Error::io(path, "look at"))?;
    if kind.is_dir() {
        return Err(Error::Directory(path.to_path_buf()));
    }
    if !kind.is_file() {
        return slurp(&path.display().to_string(), file);
    }
    if kind.len() == 0 {
        return Err(Error::Empty { file: path.display().to_string() });
    }
    map(&file).map_err(Error::io(path, "map"))
}

/// Maps a regular file that is not empty.
pub(crate) fn map(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: the mapping is private and read-only. That nobody shortens the file meanwhile is, as for every
    // program that maps files, the caller's promise; see `open`.
    let mapping = unsafe { memmap2::Mmap::map(file) }?;
    Ok(Bytes::from_owner(mapping))
}

/// Everything that a stream holds; `file` names it in errors (`<stdin>`).
///
/// # Errors
/// The stream cannot be read, or is empty.
pub fn slurp(file: &str, mut stream: impl Read) -> Result<Bytes, Error> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map_err(Error::io(Path::new(file), "read"))?;
    if all.is_empty() {
        return Err(Error::Empty { file: file.to_string() });
    }
    Ok(Bytes::from(all))
}

/// Decodes a model; its raw bytes are slices of `bytes`. `file` names it in errors.
///
/// # Errors
/// The bytes are truncated, damaged, or no ONNX model at all; in the last case the error says what they look like.
pub fn decode(file: &str, bytes: Bytes) -> Result<ModelProto, Error> {
    let file = file.to_string();
    let cause = match ModelProto::decode(bytes.clone()) {
        Ok(model) if model.graph.is_some() => return Ok(model),
        Ok(_) => None,
        Err(cause) => Some(cause.to_string()),
    };
    if let Some(reason) = sniff(&bytes) {
        return Err(Error::Foreign { file, reason });
    }
    let Some(cause) = cause else {
        return Err(Error::Foreign { file, reason: "it has no graph".to_string() });
    };
    if let Some((announced, present)) = truncation(bytes) {
        return Err(Error::Truncated { file, announced, present });
    }
    let reason = if cause.ends_with("recursion limit reached") {
        "messages are nested more than 100 deep, which is where protobuf stops".to_string()
    } else {
        cause.trim_start_matches("failed to decode Protobuf message: ").to_string()
    };
    Err(Error::Damaged { file, reason })
}

/// What bytes look like that are not protobuf.
fn sniff(bytes: &[u8]) -> Option<String> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file that it stands for"),
        (0, b"PK\x03\x04", "a zip archive (PyTorch saves checkpoints as such)"),
        (0, b"\x1f\x8b", "gzip-compressed data"),
        (0, b"\x89HDF", "an HDF5 file (Keras saves models as such)"),
        (4, b"TFL3", "a TensorFlow Lite model"),
        (4, b"ORTM", "a model in ONNX Runtime's own format"),
    ];
    for (offset, signature, name) in SIGNATURES {
        if bytes.get(*offset..).is_some_and(|rest| rest.starts_with(signature)) {
            return Some(format!("it is {name}"));
        }
    }
    let head = &bytes[..bytes.len().min(1024)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The cut at 1024 bytes may fall inside a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let line: String = text.trim_start().lines().next().unwrap_or_default().chars().take(40).collect();
    Some(format!("it is text, beginning {line:?}"))
}

/// The announced and the present length of the outermost field that the file's end cuts off, if that is what is
/// wrong with it: a file cut anywhere is cut inside one of those.
fn truncation(mut bytes: Bytes) -> Option<(u64, u64)> {
    while !bytes.is_empty() {
        let present = bytes.len() as u64;
        let Ok((tag, wire)) = decode_key(&mut bytes) else { return (present < 5).then_some((5, present)) };
        let length = match wire {
            WireType::LengthDelimited => match decode_varint(&mut bytes.clone()) {
                Ok(length) => length,
                Err(_) => return (bytes.len() < 10).then_some((10, bytes.len() as u64)),
            },
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            _ => 1,
        };
        if skip_field(wire, tag, &mut bytes, Default::default()).is_err() {
            return (length > bytes.len() as u64).then_some((length, bytes.len() as u64));
        }
    }
    None
}
