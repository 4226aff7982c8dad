//! What the two sides say to each other: a message is a head in JSON, and the bytes of models and tensors behind it.
//!
//! The other side may have been led astray by a model, so nothing that it says is taken on trust: a message that makes
//! no sense is an error, and no more memory is set aside than bytes arrive.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use dmopt_ir::{DType, Dim, Storage, Tensor, TensorType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Which;
use crate::{Interface, Memory, Named, Peak, Placement, Port, RuntimeError};

/// The longest head. Names are in it, and no file has more bytes than this.
const MAX_HEAD: u64 = 1 << 32;

/// What a process is asked for. The first message says which runtime is to answer.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Begin(Which),
    /// With the model.
    Load {
        exact: bool,
        folder: Option<PathBuf>,
    },
    /// With the inputs.
    Run {
        inputs: Heads,
    },
    Watch {
        names: Vec<String>,
        budget: u64,
    },
    /// With the model and the inputs.
    Memory {
        folder: Option<PathBuf>,
        inputs: Heads,
    },
    /// The same.
    Peak {
        folder: Option<PathBuf>,
        inputs: Heads,
    },
}

/// What it answers.
#[derive(Serialize, Deserialize)]
pub(super) enum Reply {
    Loaded(Loaded),
    /// With outputs and watched values.
    Ran(Ran),
    Memory(Memory),
    Peak(Peak),
    Failed(Failure),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Loaded {
    pub interface: Ports,
    pub values: Vec<String>,
    pub elsewhere: Vec<Placement>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Ran {
    pub tensors: Heads,
    pub watched: Heads,
    pub wall: Duration,
}

/// An error of a runtime, without its name, which the asking side knows.
#[derive(Serialize, Deserialize)]
pub(super) enum Failure {
    Malformed(String),
    Operator(String),
    Unsupported(String),
    Unavailable(String),
    Sizes(String),
    Failed(String),
}

impl Failure {
    pub fn new(error: RuntimeError) -> Failure {
        match error {
            RuntimeError::Malformed { reason, .. } => Failure::Malformed(reason),
            RuntimeError::Operator { operator, .. } => Failure::Operator(operator),
            RuntimeError::Unsupported { reason, .. } => Failure::Unsupported(reason),
            RuntimeError::Unavailable { reason, .. } => Failure::Unavailable(reason),
            RuntimeError::Sizes(reason) => Failure::Sizes(reason),
            RuntimeError::Failed { reason, .. } => Failure::Failed(reason),
            error
            @ (RuntimeError::Read { .. } | RuntimeError::InputType { .. } | RuntimeError::Tensor(_)) => {
                Failure::Failed(error.to_string())
            }
        }
    }

    pub fn of(self, runtime: &'static str) -> RuntimeError {
        match self {
            Failure::Malformed(reason) => RuntimeError::Malformed { runtime, reason },
            Failure::Operator(operator) => RuntimeError::Operator { operator, runtime },
            Failure::Unsupported(reason) => RuntimeError::Unsupported { runtime, reason },
            Failure::Unavailable(reason) => RuntimeError::Unavailable { runtime, reason },
            Failure::Sizes(reason) => RuntimeError::Sizes(reason),
            Failure::Failed(reason) => RuntimeError::Failed { runtime, reason },
        }
    }
}

/// Tensors whose bytes stand behind the head, in this order.
pub(super) type Heads = Vec<TensorHead>;

/// What stands behind a head.
pub(super) type Blobs<'a> = Vec<Cow<'a, [u8]>>;

#[derive(Serialize, Deserialize)]
pub(super) struct TensorHead {
    name: String,
    dtype: i32,
    dims: Vec<u64>,
    /// Number of strings, each of which has bytes of its own; `None` where all elements have theirs together.
    strings: Option<usize>,
}

/// The heads of tensors, and their bytes.
///
/// # Errors
/// A tensor is not there.
pub(super) fn encode(tensors: &[Named]) -> Result<(Heads, Blobs<'_>), RuntimeError> {
    let mut blobs = Vec::new();
    let mut heads = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let strings = match &tensor.storage {
            Storage::Strings(strings) => {
                blobs.extend(strings.iter().map(|text| Cow::Borrowed(&**text)));
                Some(strings.len())
            }
            _ => {
                blobs.push(tensor.bytes()?);
                None
            }
        };
        let (dtype, dims) = (tensor.dtype.code(), tensor.dims.clone());
        heads.push(TensorHead { name: name.clone(), dtype, dims, strings });
    }
    Ok((heads, blobs))
}

/// Tensors of heads and bytes; `None` where they do not fit.
pub(super) fn decode(heads: &[TensorHead], blobs: &mut impl Iterator<Item = Bytes>) -> Option<Vec<Named>> {
    let tensor = |head: &TensorHead| {
        let storage = match head.strings {
            Some(count) => {
                let strings: Vec<Bytes> = blobs.take(count).collect();
                Storage::Strings(Some(strings).filter(|found| found.len() == count)?)
            }
            None => Storage::Raw(blobs.next()?),
        };
        let dtype = DType::from_code(head.dtype)?;
        let tensor = Tensor { dtype, dims: head.dims.clone(), storage, extra: Bytes::new() };
        Some((head.name.clone(), tensor))
    };
    heads.iter().map(tensor).collect()
}

/// An [`Interface`].
#[derive(Serialize, Deserialize)]
pub(super) struct Ports {
    inputs: Vec<PortHead>,
    outputs: Vec<PortHead>,
}

#[derive(Serialize, Deserialize)]
struct PortHead {
    name: String,
    dtype: i32,
    shape: Option<Vec<Size>>,
}

#[derive(Serialize, Deserialize)]
enum Size {
    Known(u64),
    Symbol(String),
    Unknown,
}

impl Ports {
    pub fn encode(interface: &Interface) -> Ports {
        let size = |dim: &Dim| match dim {
            Dim::Known(size) => Size::Known(*size),
            Dim::Symbol(name) => Size::Symbol(name.to_string()),
            Dim::Unknown => Size::Unknown,
        };
        let port = |port: &Port| PortHead {
            name: port.name.clone(),
            dtype: port.ty.dtype.code(),
            shape: port.ty.shape.as_ref().map(|shape| shape.iter().map(size).collect()),
        };
        let ports = |ports: &[Port]| ports.iter().map(port).collect();
        Ports { inputs: ports(&interface.inputs), outputs: ports(&interface.outputs) }
    }

    /// `None` for element types that there are not.
    pub fn decode(self) -> Option<Interface> {
        let dim = |size: Size| match size {
            Size::Known(size) => Dim::Known(size),
            Size::Symbol(name) => Dim::Symbol(name.into()),
            Size::Unknown => Dim::Unknown,
        };
        let port = |port: PortHead| {
            let shape = port.shape.map(|shape| shape.into_iter().map(dim).collect());
            let ty = TensorType { dtype: DType::from_code(port.dtype)?, shape };
            Some(Port { name: port.name, ty })
        };
        let ports = |ports: Vec<PortHead>| ports.into_iter().map(port).collect::<Option<_>>();
        Some(Interface { inputs: ports(self.inputs)?, outputs: ports(self.outputs)? })
    }
}

/// Says something.
///
/// # Errors
/// The other side does not listen.
pub(super) fn send(to: &mut impl Write, head: &impl Serialize, blobs: &[impl AsRef<[u8]>]) -> io::Result<()> {
    let lengths: Vec<u64> = blobs.iter().map(|blob| blob.as_ref().len() as u64).collect();
    let head = serde_json::to_vec(&(head, lengths))?;
    to.write_all(&(head.len() as u64).to_le_bytes())?;
    to.write_all(&head)?;
    blobs.iter().try_for_each(|blob| to.write_all(blob.as_ref()))?;
    to.flush()
}

/// Waits for what the other side says.
///
/// # Errors
/// It has gone, or makes no sense.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<Bytes>)> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEAD {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (head, lengths): (T, Vec<u64>) = serde_json::from_slice(&read(from, length)?)?;
    let blobs = lengths.into_iter().map(|length| read(from, length)).collect::<io::Result<_>>()?;
    Ok((head, blobs))
}

fn read(from: &mut impl Read, length: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    // What has arrived is the measure of what is set aside.
    from.take(length).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == length {
        true => Ok(bytes.into()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_arrive_as_they_were_sent() {
        let strings = Storage::Strings(vec![Bytes::from_static(b"a"), Bytes::new()]);
        let words = Tensor { dtype: DType::String, dims: vec![2], storage: strings, extra: Bytes::new() };
        let tensors: Vec<Named> = vec![
            ("x".into(), Tensor::from_f64(DType::F16, vec![1, 2], &[1.5, -2.0]).unwrap()),
            ("empty".into(), Tensor::i64s(&[])),
            ("words".into(), words),
        ];
        let (heads, blobs) = encode(&tensors).unwrap();
        let mut pipe = Vec::new();
        send(&mut pipe, &heads, &blobs).unwrap();
        let (heads, blobs): (Heads, _) = receive(&mut &*pipe).unwrap();
        assert_eq!(decode(&heads, &mut blobs.into_iter()).unwrap(), tensors);
    }

    #[test]
    fn a_message_that_is_cut_off_is_an_error_wherever() {
        let (heads, blobs) = (Request::Load { exact: true, folder: None }, [b"model".as_slice()]);
        let mut pipe = Vec::new();
        send(&mut pipe, &heads, &blobs).unwrap();
        assert!(receive::<Request>(&mut &*pipe).is_ok());
        for length in 0..pipe.len() {
            assert!(receive::<Request>(&mut &pipe[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_promises_more_than_it_brings_is_an_error() {
        let head = br#"[{"Load":{"exact":true,"folder":null}},[18446744073709551615]]"#;
        let message = [&(head.len() as u64).to_le_bytes(), head.as_slice(), b"model"].concat();
        assert!(receive::<Request>(&mut &*message).is_err());
        assert!(receive::<Request>(&mut [0xff; 64].as_slice()).is_err());
    }
}
