//! ONNX files to graphs and back, losslessly.
//!
//! `file -> read -> schema -> import -> graph -> export -> schema -> write -> file`. Each step can be had alone:
//! [`open`] and [`decode`] give the messages of a file, [`encode`] and [`write()`] put them back byte for byte.
//! Weights are never copied on the way: they stay slices of the mapped input until they are written.

mod error;
mod external;
mod read;
pub mod schema;
mod spill;
mod wire;
mod write;

pub use error::{Error, ExternalError};
pub use external::{Brought, Folder, Reference};
pub use read::{decode, open, slurp};
pub use spill::{ALIGNMENT, SMALL, locations};
pub use wire::{Fixed, Packed};
pub use write::{PROTOBUF_LIMIT, SPLICE, WriteOptions, Written, encode, write, write_stream};
