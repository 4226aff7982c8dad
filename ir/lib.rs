//! The graph that every pass reads and edits: SSA values over petgraph.
//!
//! A [`Model`] owns a [`Graph`]; a graph owns [`Op`]s (operators) and [`Value`]s (what operators read and
//! write). Passes read `&Graph` and describe an edit as a [`Patch`]; the [`Rewriter`] applies it as a whole or
//! not at all, and is the only way to change a graph once it is built. [`verify()`] lists the invariants.
//!
//! This crate knows no protobuf and no runtime. What a file says beyond the nouns here (documentation strings,
//! metadata, device configurations, ...) travels in opaque `extra` bytes that only the importer and exporter read.

#![forbid(unsafe_code)]

mod derived;
mod dtype;
mod graph;
pub mod hash;
mod id;
pub mod infer;
mod model;
mod op;
pub mod parallel;
#[cfg(test)]
mod properties;
mod rewriter;
mod sizes;
mod structure;
mod tensor;
pub mod text;
mod types;
mod verify;

pub use derived::Derived;
pub use dtype::DType;
pub use graph::{BuildError, Builder, Def, Graph, Slot, Use, Value};
pub use id::{OpId, ValueId};
pub use model::{Function, Model, Names, Opsets};
pub use op::{Attribute, AttributeValue, Op};
pub use rewriter::{NewOp, Operand, Patch, Position, Refusal, Rewriter, Safety};
pub use sizes::Sizes;
pub use structure::{Digest, Structure, attribute_digest, model_digest};
pub use tensor::{External, LoadExternal, SparseTensor, Storage, Tensor, TensorError};
pub use types::{Dim, Shape, TensorType, Type};
pub use verify::{Boundary, Invariant, Violation, verify, verify_model};
