//! What can go wrong between a file and a model. Every message names the file and the reason, on one line.

use std::io;
use std::path::{Path, PathBuf};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system said no.
    #[error("{}: cannot {action}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        cause: io::Error,
    },
    /// A folder where a file should be.
    #[error("{}: is a directory, not an ONNX file", .0.display())]
    Directory(PathBuf),
    /// Not a byte in it.
    #[error("{file}: empty, not an ONNX model")]
    Empty {
        /// The file.
        file: String,
    },
    /// Something else than an ONNX model.
    #[error("{file}: not an ONNX model: {reason}")]
    Foreign {
        /// The file.
        file: String,
        /// What it looks like.
        reason: String,
    },
    /// The file ends early.
    #[error(
        "{file}: truncated: its last field should be {announced} bytes long but only {present} are there"
    )]
    Truncated {
        /// The file.
        file: String,
        /// Length that the field announces.
        announced: u64,
        /// Bytes between there and the end of the file.
        present: u64,
    },
    /// An ONNX model in which something is wrong at the level of bytes.
    #[error("{file}: damaged: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong and in which message.
        reason: String,
    },
    /// External data that cannot be used or carried along.
    #[error("{0}")]
    External(#[from] ExternalError),
    /// Too large for one protobuf message, even with its weights in a second file.
    #[error("{file}: {bytes} bytes are more than one ONNX file can hold ({limit}){hint}")]
    TooLarge {
        /// The file to be written.
        file: String,
        /// Size of the message.
        bytes: u64,
        /// Largest size allowed.
        limit: u64,
        /// What would help.
        hint: &'static str,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |cause| Error::Io { path: path.to_path_buf(), action, cause }
    }
}

/// Why external data cannot be read or carried along.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExternalError {
    /// A reference that cannot be understood.
    #[error("external data of {tensor:?}: {reason}")]
    Reference {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A file that must not be used.
    #[error("external data file {location:?}: {reason}")]
    Refused {
        /// As the model says it.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file that cannot be used.
    #[error("external data file {}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A range that ends beyond its file.
    #[error("external data file {}: bytes {begin}..{end} are wanted, it has {present}", .path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Size of the file.
        present: u64,
    },
}
