//! What a file says beyond the nouns of the graph. The importer packs it into a noun's `extra`, the exporter unpacks
//! it; in between it is opaque. A noun about which there is nothing more to say, and one made by a pass, has none.
//!
//! Each of these is the original message without what the graph itself holds, plus what is needed to tell how the
//! original said it: absent or explicitly default, in which field, at which position.

use bytes::Bytes;
use prost::Message;

use crate::schema::{AttributeProto, GraphProto, SparseTensorProto, TensorProto, TypeProto, ValueInfoProto};
use crate::wire::messages;

/// Stands in [`TensorExtra::field`] for: in no field at all, there being no elements.
pub(crate) const NOWHERE: i32 = 0;
/// Stands in [`TensorExtra::field`] for `float_data`.
pub(crate) const FLOAT_DATA: i32 = 4;
/// Stands in [`TensorExtra::field`] for `double_data`.
pub(crate) const DOUBLE_DATA: i32 = 10;
/// Stands in [`TensorExtra::field`] for: outside, in words of the original's own that `rest` keeps.
pub(crate) const EXTERNAL_DATA: i32 = 13;

messages! {
    /// About a tensor.
    TensorExtra {
        1 => rest: Option<TensorProto>,
        2 => field: Option<i32>,
    }

    /// About a sparse tensor.
    SparseExtra {
        1 => rest: Option<SparseTensorProto>,
    }

    /// About an attribute.
    AttributeExtra {
        1 => rest: Option<AttributeProto>,
        /// Present if the original did not say of which kind it is.
        2 => untyped: Option<i32>,
        /// Present if the original left out its value, which is then the default of the kind.
        3 => valueless: Option<i32>,
    }

    /// About one mention of a value among inputs, outputs or value_info.
    Declaration {
        /// The original, with its type only where the graph's type does not give it back.
        1 => info: Option<ValueInfoProto>,
        /// Present if `info` has its own type (or purposely none); the next field is what it was then.
        2 => retyped: Option<i32>,
        /// The graph's type at import, as it would have been written.
        3 => rendered: Option<TypeProto>,
        /// Position among value_info.
        4 => position: Option<u64>,
    }

    /// About a graph.
    GraphExtra {
        1 => rest: Option<GraphProto>,
        /// All inputs, if there is anything to say about one.
        2 => inputs: Vec<Declaration>,
        /// All outputs, if there is anything to say about one.
        3 => outputs: Vec<Declaration>,
        /// Entries of value_info for which there is no value, or which repeat one.
        4 => strays: Vec<Declaration>,
    }
}

/// A message as a noun's `extra`; nothing for a message that says nothing.
pub(crate) fn pack<M: Message + Default + PartialEq>(message: &M) -> Bytes {
    // Fields all come in `Option` and `Vec`: only the default message is encoded as nothing.
    if message.encoded_len() == 0 { Bytes::new() } else { message.encode_to_vec().into() }
}

/// `message` unless it says nothing.
pub(crate) fn some<M: Message>(message: M) -> Option<M> {
    (message.encoded_len() > 0).then_some(message)
}

/// The message that a noun's `extra` holds.
pub(crate) fn unpack<M: Message + Default>(extra: &Bytes) -> Result<M, prost::DecodeError> {
    if extra.is_empty() { Ok(M::default()) } else { M::decode(extra.clone()) }
}
