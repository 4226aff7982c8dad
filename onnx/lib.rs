//! ONNX files to graphs and back, losslessly.
//!
//! `file -> read -> schema -> import -> graph -> export -> schema -> write -> file`. Each step can be had alone:
//! [`open`] and [`decode`] give the messages of a file, [`encode`] and [`write()`] put them back byte for byte.
//! Weights are never copied on the way: they stay slices of the mapped input until they are written.

#![deny(unsafe_code)]

mod data;
mod error;
mod export;
mod external;
mod extra;
mod import;
mod metadata;
#[cfg(test)]
mod random_models;
#[allow(unsafe_code)]
mod read;
pub mod schema;
pub mod scratch;
mod spill;
mod tensors;
mod types;
mod walk;
mod wire;
#[allow(unsafe_code)]
mod write;

pub use data::Data;
pub use error::{Error, ExportError, ExternalError, Fault, ImportError, TensorFault};
pub use export::{ExportOptions, ValueInfo, export};
pub use external::{Brought, Folder, Reference};
pub use import::import;
pub use metadata::{metadata, set_metadata};
pub use read::{decode, open, slurp};
pub use spill::{ALIGNMENT, SMALL};
pub use walk::locations;
pub use wire::{Fixed, Packed};
pub use write::{
    PROTOBUF_LIMIT, SPLICE, WriteOptions, Written, encode, locations_of_file, publish, replace, write,
    write_stream,
};

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dmopt_ir::{LoadExternal, Model, Tensor};
use prost::Message;
use schema::TensorProto;

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

/// A tensor in a file of its own, as the test data of models are stored (`input_0.pb`), and its name, which may be
/// empty.
///
/// # Errors
/// The file cannot be read, or holds no tensor.
pub fn load_tensor(path: &Path) -> Result<(String, Tensor), Error> {
    let file = path.display().to_string();
    let damaged = |reason: String| Error::Damaged { file: file.clone(), reason };
    let mut proto = TensorProto::decode(open(path)?).map_err(|e| damaged(e.to_string()))?;
    let name = proto.name.take().unwrap_or_default();
    let folder: Arc<dyn LoadExternal> = Arc::new(Folder::of(path));
    let tensor = tensors::parse(proto, &folder).map_err(|fault| damaged(fault.to_string()))?;
    Ok((name, tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_in_a_file_of_its_own_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("input_0.pb");
        let raw_data = Some(vec![0, 0, 128, 63, 0, 0, 0, 64].into());
        let proto = TensorProto {
            name: Some("x".into()),
            dims: vec![2],
            data_type: Some(1),
            raw_data,
            ..Default::default()
        };
        std::fs::write(&path, proto.encode_to_vec()).unwrap();
        let (name, tensor) = load_tensor(&path).unwrap();
        assert_eq!((name.as_str(), tensor.to_f64().unwrap()), ("x", vec![1.0, 2.0]));
        std::fs::write(&path, b"text").unwrap();
        let reason = load_tensor(&path).unwrap_err().to_string();
        assert!(reason.starts_with(&format!("{}: damaged: ", path.display())), "{reason}");
    }
}
