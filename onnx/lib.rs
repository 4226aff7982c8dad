//! ONNX files to graphs and back, losslessly.
//!
//! `file -> read -> schema -> import -> graph -> export -> schema -> write -> file`. Each step can be had alone:
//! [`open`] and [`decode`] give the messages of a file, [`encode`] and [`write()`] put them back byte for byte.
//! Weights are never copied on the way: they stay slices of the mapped input until they are written.

mod error;
mod export;
mod external;
mod extra;
mod import;
#[cfg(test)]
mod random_models;
mod read;
pub mod schema;
mod spill;
mod tensors;
mod types;
mod walk;
mod wire;
mod write;

pub use error::{Error, ExportError, ExternalError, Fault, ImportError, TensorFault};
pub use export::{ExportOptions, ValueInfo, export};
pub use external::{Brought, Folder, Reference};
pub use import::import;
pub use read::{decode, open, slurp};
pub use spill::{ALIGNMENT, SMALL};
pub use walk::locations;
pub use wire::{Fixed, Packed};
pub use write::{PROTOBUF_LIMIT, SPLICE, WriteOptions, Written, encode, write, write_stream};

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dmopt_ir::Model;

/// The model in a file.
///
/// # Errors
/// See [`open`], [`decode`] and [`import()`].
pub fn load(path: &Path) -> Result<Model, Error> {
    parse(&path.display().to_string(), open(path)?, Folder::of(path))
}

/// The model in bytes that were read from `file`, with its external data in `folder`.
///
/// # Errors
/// See [`decode`] and [`import()`].
pub fn parse(file: &str, bytes: Bytes, folder: Folder) -> Result<Model, Error> {
    import(decode(file, bytes)?, Arc::new(folder))
        .map_err(|cause| Error::Import { file: file.to_string(), cause })
}
