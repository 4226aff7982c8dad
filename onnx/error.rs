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
    /// The model cannot be represented as a graph.
    #[error("{file}: {cause}")]
    Import {
        /// The file.
        file: String,
        /// What is wrong with the model.
        cause: ImportError,
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

    /// The same, said of files in the folder `to` where it is said of those in `from`.
    pub fn moved(mut self, from: &Path, to: &Path) -> Error {
        let there = |path: &Path| path.strip_prefix(from).ok().map(|rest| to.join(rest));
        match &mut self {
            Error::Io { path, .. }
            | Error::Directory(path)
            | Error::External(ExternalError::File { path, .. } | ExternalError::Range { path, .. }) => {
                there(path).into_iter().for_each(|there| *path = there);
            }
            Error::TooLarge { file, .. } => {
                there(Path::new(&file)).iter().for_each(|there| *file = there.display().to_string());
            }
            _ => {}
        }
        self
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

/// Why a model cannot be represented as a graph: what is wrong, and in which node, attribute or function.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}{fault}", .place.iter().rev().map(|part| format!("{part}: ")).collect::<String>())]
pub struct ImportError {
    /// Where, from the innermost part to the outermost.
    pub place: Vec<String>,
    /// What.
    pub fault: Fault,
}

impl ImportError {
    /// The same, seen from one level further out.
    pub(crate) fn within(mut self, part: impl Into<String>) -> ImportError {
        self.place.push(part.into());
        self
    }
}

/// What a node is called in messages.
pub(crate) fn node_place(op_type: &str, name: &str, position: usize) -> String {
    match name {
        "" => format!("node {position} ({op_type})"),
        name => format!("{op_type} '{name}'"),
    }
}

/// What a function is called in messages.
pub(crate) fn function_place(domain: &str, name: &str) -> String {
    format!("function {domain}::{name}")
}

impl<F: Into<Fault>> From<F> for ImportError {
    fn from(fault: F) -> ImportError {
        ImportError { place: Vec::new(), fault: fault.into() }
    }
}

/// What is wrong with a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// Names that are defined twice, or not at all, or a cycle.
    #[error(transparent)]
    Build(#[from] dmopt_ir::BuildError),
    /// A tensor that contradicts itself.
    #[error(transparent)]
    Tensor(#[from] TensorFault),
    /// The file does not say which version of the format it is in.
    #[error("the IR version is missing")]
    NoIrVersion,
    /// A version of the format that never was.
    #[error("IR version {0} is none; versions begin at 1")]
    BadIrVersion(i64),
    /// A format version of the future.
    #[error("IR version {0} is newer than this tool knows ({max})", max = crate::schema::IR_VERSION)]
    IrVersion(i64),
    /// A version of the default operator set of the future.
    #[error("opset {0} is newer than this tool knows ({max})", max = crate::schema::OPSET_VERSION)]
    Opset(i64),
    /// An operator set is imported without a version, or with one below 1.
    #[error("operator set '{domain}' is imported with version {version}; versions begin at 1")]
    OpsetVersion {
        /// The operator set.
        domain: String,
        /// The version, 0 if there is none.
        version: i64,
    },
    /// An operator set is imported in two versions.
    #[error("operator set '{0}' is imported in two versions")]
    OpsetTwice(String),
    /// A node needs an operator set that is not imported.
    #[error("operator set '{0}' is not imported")]
    NoOpset(String),
    /// Something that must have a name has none.
    #[error("{0} without a name")]
    NoName(&'static str),
    /// An attribute that has bodies but does not say that it is one.
    #[error("the attribute is of kind {0} and yet has graphs")]
    Kind(i32),
    /// An attribute that does not say its kind and has several values.
    #[error("the attribute has several values and does not say which counts")]
    Ambiguous,
    /// No graph.
    #[error("the model has no graph")]
    NoGraph,
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorFault {
    /// An element type that the standard does not define.
    #[error("element type {0} is unknown")]
    Type(i32),
    /// A negative size.
    #[error("dimension {0} is negative")]
    Dim(i64),
    /// More elements than can be counted.
    #[error("the number of elements is beyond all bounds")]
    Size,
    /// Data that are too short or too long.
    #[error("type and dimensions ask for {expected} {unit}, the data have {found}")]
    Count {
        /// How many there should be.
        expected: u64,
        /// How many there are.
        found: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A sparse tensor without one of its parts.
    #[error("the sparse tensor has no {0}")]
    Incomplete(&'static str),
    /// A bad reference to external data.
    #[error(transparent)]
    External(ExternalError),
}

/// Why a graph cannot be written as a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ExportError {
    /// Operators depend on each other in a circle.
    #[error("{0} depends on its own result: the graph has a cycle")]
    Cycle(String),
    /// An `extra` that the importer did not make.
    #[error("what was kept from the input cannot be read back: {0}")]
    Extra(#[from] prost::DecodeError),
}
