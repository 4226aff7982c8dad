//! Bytes of a field that need not be in memory before they are written.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use bytes::{Buf, BufMut, Bytes};
use dmopt_ir::Derived;
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

use crate::wire::Value;

/// The elements of a tensor as bytes. It reads as a slice; what is [`Derived`] is put together for that, as a whole and
/// once, and piece by piece for writing.
#[derive(Clone, Debug)]
pub struct Data(Place);

#[derive(Clone, Debug)]
enum Place {
    Here(Bytes),
    Later(Arc<(Derived, OnceLock<Bytes>)>),
}

impl Data {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Here(bytes) => bytes.len(),
            Place::Later(later) => later.0.len(),
        }
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        match &self.0 {
            Place::Here(bytes) => bytes,
            Place::Later(later) => later.1.get_or_init(|| later.0.bytes().into()),
        }
    }

    /// The bytes, to be handed on a piece at a time.
    pub(crate) fn pieces(&self) -> impl Buf {
        let mut pieces = Pieces { data: self, at: 0, piece: Vec::new(), used: 0 };
        pieces.fill();
        pieces
    }
}

impl Default for Data {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Data(Place::Here(bytes))
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl FromIterator<u8> for Data {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Self {
        Bytes::from_iter(bytes).into()
    }
}

impl From<Derived> for Data {
    fn from(derived: Derived) -> Self {
        Data(Place::Later(Arc::new((derived, OnceLock::new()))))
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Data) -> bool {
        self.len() == other.len() && self.bytes() == other.bytes()
    }
}

/// What is left to be handed on.
struct Pieces<'a> {
    data: &'a Data,
    /// Where the piece begins.
    at: usize,
    /// Of data that are derived.
    piece: Vec<u8>,
    /// Bytes of the piece that were handed on.
    used: usize,
}

impl Pieces<'_> {
    fn fill(&mut self) {
        if let Place::Later(later) = &self.data.0 {
            self.piece.clear();
            later.0.read(self.at..self.at + Derived::PIECE, &mut self.piece);
        }
    }
}

impl Buf for Pieces<'_> {
    fn remaining(&self) -> usize {
        self.data.len() - self.at - self.used
    }

    fn chunk(&self) -> &[u8] {
        match &self.data.0 {
            Place::Here(bytes) => &bytes[self.used..],
            Place::Later(..) => &self.piece[self.used..],
        }
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "no so many bytes are left");
        self.used += count;
        while let Place::Later(..) = self.data.0
            && self.used >= self.piece.len()
            && !self.piece.is_empty()
        {
            self.used -= self.piece.len();
            self.at += self.piece.len();
            self.fill();
        }
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        let from = self.at + self.used;
        let bytes = self.data.bytes().slice(from..from + count);
        match &self.data.0 {
            // What has been handed on as a whole is not put together again.
            Place::Later(later) if from + count == self.data.len() => {
                (self.at, self.used) = (later.0.len(), 0);
                self.piece.clear();
            }
            _ => self.advance(count),
        }
        bytes
    }
}

impl Value for Data {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        encoding::encode_key(tag, WireType::LengthDelimited, buf);
        encoding::encode_varint(self.len() as u64, buf);
        buf.put(self.pieces());
    }

    fn encoded_len(&self, tag: u32) -> usize {
        encoding::key_len(tag) + encoding::encoded_len_varint(self.len() as u64) + self.len()
    }

    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        let mut bytes = Bytes::new();
        Value::merge(&mut bytes, wire, buf, ctx)?;
        *self = bytes.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use dmopt_ir::{DType, Storage, Tensor};

    use super::*;
    use crate::encode;
    use crate::schema::{GraphProto, ModelProto, TensorProto};

    fn derived() -> Derived {
        let values: Vec<f64> = (0..50_000).map(f64::from).collect();
        let tensor = Tensor::from_f64(DType::F32, vec![50_000], &values).unwrap();
        match tensor.scaled(1000, |run| run as f64).unwrap().unwrap().storage {
            Storage::Derived(derived) => derived,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn derived_data_are_the_bytes_that_they_are_put_together_to() {
        let (data, bytes) = (Data::from(derived()), Data::from(derived().bytes()));
        assert_eq!((data.len(), &data), (200_000, &bytes));
        let mut poured = Vec::new();
        crate::write::pour(Data::from(derived()).pieces(), &mut poured).unwrap();
        assert_eq!(poured, bytes.to_vec());
        let mut pieces = bytes.pieces();
        pieces.advance(70_001);
        assert_eq!(pieces.copy_to_bytes(5), bytes.bytes().slice(70_001..70_006));
        let mut derived = data.pieces();
        derived.advance(70_001);
        assert_eq!((derived.remaining(), derived.chunk()[0]), (129_999, bytes[70_001]));
        assert_eq!(derived.copy_to_bytes(100_000), bytes.bytes().slice(70_001..170_001));
        assert_eq!((derived.remaining(), derived.chunk()[0]), (29_999, bytes[170_001]));
        assert_eq!(derived.copy_to_bytes(29_999), bytes.bytes().slice(170_001..));
        assert!(!derived.has_remaining());
    }

    /// Takes some bytes, and then no more.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_is_full_in_the_middle_of_derived_data_is_an_error() {
        let tensor = TensorProto { raw_data: Some(derived().into()), ..Default::default() };
        let graph = GraphProto { initializer: vec![tensor], ..Default::default() };
        let model = ModelProto { graph: Some(graph), ..Default::default() };
        for room in [0, 100, 70_000, 199_999] {
            let sent = crate::write_stream(&model, "<stdout>", Full(room), crate::PROTOBUF_LIMIT);
            assert!(sent.is_err(), "{room}");
        }
    }

    #[test]
    fn a_model_is_written_as_it_is_encoded() {
        let tensor = |raw_data: Data| TensorProto { raw_data: Some(raw_data), ..Default::default() };
        let many = (0..20_000).map(|n| tensor(vec![n as u8; n % 7].into()));
        let initializer = many.chain([tensor(derived().into()), tensor(vec![1; 5000].into())]).collect();
        let model = ModelProto {
            graph: Some(GraphProto { initializer, ..Default::default() }),
            ..Default::default()
        };
        let mut written = Vec::new();
        let bytes = crate::write_stream(&model, "<stdout>", &mut written, crate::PROTOBUF_LIMIT).unwrap();
        assert_eq!((written.len() as u64, &written), (bytes, &encode(&model).concat()));
    }
}
