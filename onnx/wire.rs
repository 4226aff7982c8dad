//! How struct fields map to protobuf fields: the type of a Rust field decides how it is written.
//!
//! | Rust field     | protobuf field                                              |
//! |----------------|-------------------------------------------------------------|
//! | `Option<T>`    | `optional T`: present when `Some`, even if it holds the default |
//! | `Vec<T>`       | `repeated T`, one tag per element                           |
//! | `Packed<T>`    | `repeated T [packed = true]` of varints                     |
//! | `Fixed<WIDTH>` | `repeated float` or `double [packed = true]`, kept as bytes |
//!
//! Reading accepts packed and unpacked scalars alike, as protobuf requires; writing uses the form above. Fields
//! are written in the order of their declaration, which [`messages`] users keep ascending by tag, then whatever
//! the schema did not know. That is the canonical encoding, so canonical input comes back byte for byte.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

/// One value under one tag.
pub(crate) trait Value: Default {
    fn encode(&self, tag: u32, buf: &mut impl BufMut);
    fn encoded_len(&self, tag: u32) -> usize;
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError>;

    /// Appends what stands under one tag: one value, or for scalars a packed run of them.
    fn extend(
        values: &mut Vec<Self>,
        wire: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let mut value = Self::default();
        value.merge(wire, buf, ctx)?;
        values.push(value);
        Ok(())
    }
}

/// A scalar that may be packed.
pub(crate) trait Scalar: Value {
    fn encode_packed(values: &[Self], tag: u32, buf: &mut impl BufMut);
    fn packed_len(values: &[Self], tag: u32) -> usize;
}

macro_rules! scalars {
    ($($ty:ty => $codec:ident),*) => {$(
        impl Value for $ty {
            fn encode(&self, tag: u32, buf: &mut impl BufMut) {
                encoding::$codec::encode(tag, self, buf);
            }
            fn encoded_len(&self, tag: u32) -> usize {
                encoding::$codec::encoded_len(tag, self)
            }
            fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
                encoding::$codec::merge(wire, self, buf, ctx)
            }
            fn extend(values: &mut Vec<Self>, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
                encoding::$codec::merge_repeated(wire, values, buf, ctx)
            }
        }
        impl Scalar for $ty {
            fn encode_packed(values: &[Self], tag: u32, buf: &mut impl BufMut) {
                encoding::$codec::encode_packed(tag, values, buf);
            }
            fn packed_len(values: &[Self], tag: u32) -> usize {
                encoding::$codec::encoded_len_packed(tag, values)
            }
        }
    )*};
}
scalars!(i32 => int32, i64 => int64, u64 => uint64, f32 => float);

macro_rules! delimited {
    ($($ty:ty => $codec:ident),*) => {$(
        impl Value for $ty {
            fn encode(&self, tag: u32, buf: &mut impl BufMut) {
                encoding::$codec::encode(tag, self, buf);
            }
            fn encoded_len(&self, tag: u32) -> usize {
                encoding::$codec::encoded_len(tag, self)
            }
            fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
                encoding::$codec::merge(wire, self, buf, ctx)
            }
        }
    )*};
}
delimited!(String => string, Bytes => bytes);

impl<T: Value> Value for Box<T> {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        (**self).encode(tag, buf);
    }
    fn encoded_len(&self, tag: u32) -> usize {
        (**self).encoded_len(tag)
    }
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        (**self).merge(wire, buf, ctx)
    }
}

/// Everything that a message holds under one tag.
pub(crate) trait Field {
    fn encode(&self, tag: u32, buf: &mut impl BufMut);
    fn encoded_len(&self, tag: u32) -> usize;
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError>;
}

impl<T: Value> Field for Option<T> {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        if let Some(value) = self {
            value.encode(tag, buf);
        }
    }
    fn encoded_len(&self, tag: u32) -> usize {
        self.as_ref().map_or(0, |value| value.encoded_len(tag))
    }
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        self.get_or_insert_default().merge(wire, buf, ctx)
    }
}

impl<T: Value> Field for Vec<T> {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        for value in self {
            value.encode(tag, buf);
        }
    }
    fn encoded_len(&self, tag: u32) -> usize {
        self.iter().map(|value| value.encoded_len(tag)).sum()
    }
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        T::extend(self, wire, buf, ctx)
    }
}

/// A packed list of integers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed<T>(pub Vec<T>);

impl<T: Scalar> Field for Packed<T> {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        T::encode_packed(&self.0, tag, buf);
    }
    fn encoded_len(&self, tag: u32) -> usize {
        T::packed_len(&self.0, tag)
    }
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        T::extend(&mut self.0, wire, buf, ctx)
    }
}

/// A packed list of floats of `WIDTH` bytes each (4 or 8), as little-endian bytes: exactly what stands in the file,
/// so that weights stored this way are not copied either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fixed<const WIDTH: usize>(pub Bytes);

impl<const WIDTH: usize> Fixed<WIDTH> {
    const ELEMENT: WireType = if WIDTH == 4 { WireType::ThirtyTwoBit } else { WireType::SixtyFourBit };
}

impl<const WIDTH: usize> Field for Fixed<WIDTH> {
    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        if !self.0.is_empty() {
            self.0.encode(tag, buf);
        }
    }
    fn encoded_len(&self, tag: u32) -> usize {
        if self.0.is_empty() { 0 } else { self.0.encoded_len(tag) }
    }
    fn merge(&mut self, wire: WireType, buf: &mut impl Buf, ctx: DecodeContext) -> Result<(), DecodeError> {
        let mut run = Bytes::new();
        if wire == WireType::LengthDelimited {
            run.merge(wire, buf, ctx.clone())?;
        } else {
            encoding::check_wire_type(Self::ELEMENT, wire)?;
            if buf.remaining() >= WIDTH {
                run = buf.copy_to_bytes(WIDTH);
            } else {
                encoding::skip_field(wire, 1, buf, ctx.clone())?;
            }
        }
        let mut partial = run.slice(run.len() - run.len() % WIDTH..);
        if !partial.is_empty() {
            // Part of an element: skipping a whole one reports the shortage in prost's own words.
            encoding::skip_field(Self::ELEMENT, 1, &mut partial, ctx)?;
        }
        if self.0.is_empty() {
            self.0 = run;
        } else {
            let known = std::mem::take(&mut self.0);
            let mut all = known.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            all.extend_from_slice(&run);
            self.0 = all.freeze();
        }
        Ok(())
    }
}

/// Appends a field that the schema does not know to `kept`, as it stands in the file.
pub(crate) fn keep(
    kept: &mut Vec<u8>,
    tag: u32,
    wire: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    encoding::encode_key(tag, wire, kept);
    encoding::skip_field(wire, tag, &mut Tee { source: buf, copy: kept }, ctx)
}

/// A reader that also writes down what it read.
struct Tee<'a, B> {
    source: &'a mut B,
    copy: &'a mut Vec<u8>,
}

impl<B: Buf> Buf for Tee<'_, B> {
    fn remaining(&self) -> usize {
        self.source.remaining()
    }
    fn chunk(&self) -> &[u8] {
        self.source.chunk()
    }
    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let chunk = self.source.chunk();
            let taken = count.min(chunk.len());
            self.copy.extend_from_slice(&chunk[..taken]);
            self.source.advance(taken);
            count -= taken;
        }
    }
}

/// Declares protobuf messages. Each field is `tag => name: type`, in ascending order of tags; each message gets the
/// field `unknown` besides, which is how nothing is dropped.
macro_rules! messages {
    ($(
        $(#[$attr:meta])*
        $name:ident {
            $( $(#[$field_attr:meta])* $tag:literal => $field:ident: $ty:ty, )*
        }
    )*) => {$(
        $(#[$attr])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $( $(#[$field_attr])* pub $field: $ty, )*
            /// Fields that this schema does not know, as they stood in the file; written back after the others.
            pub unknown: Vec<u8>,
        }

        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
                $( $crate::wire::Field::encode(&self.$field, $tag, buf); )*
                buf.put_slice(&self.unknown);
            }
            fn merge_field(
                &mut self,
                tag: u32,
                wire: prost::encoding::WireType,
                buf: &mut impl bytes::Buf,
                ctx: prost::encoding::DecodeContext,
            ) -> Result<(), prost::DecodeError> {
                match tag {
                    $( $tag => $crate::wire::Field::merge(&mut self.$field, wire, buf, ctx).map_err(|mut error| {
                        error.push(stringify!($name), stringify!($field));
                        error
                    }), )*
                    _ => $crate::wire::keep(&mut self.unknown, tag, wire, buf, ctx),
                }
            }
            fn encoded_len(&self) -> usize {
                self.unknown.len() $( + $crate::wire::Field::encoded_len(&self.$field, $tag) )*
            }
            fn clear(&mut self) {
                *self = Self::default();
            }
        }

        impl $crate::wire::Value for $name {
            fn encode(&self, tag: u32, buf: &mut impl bytes::BufMut) {
                prost::encoding::message::encode(tag, self, buf);
            }
            fn encoded_len(&self, tag: u32) -> usize {
                prost::encoding::message::encoded_len(tag, self)
            }
            fn merge(
                &mut self,
                wire: prost::encoding::WireType,
                buf: &mut impl bytes::Buf,
                ctx: prost::encoding::DecodeContext,
            ) -> Result<(), prost::DecodeError> {
                prost::encoding::message::merge(wire, self, buf, ctx)
            }
        }

        #[cfg(test)]
        impl $crate::wire::random::Random for $name {
            fn random(u: &mut arbtest::arbitrary::Unstructured<'_>, depth: usize) -> arbtest::arbitrary::Result<Self> {
                Ok(Self {
                    $( $field: $crate::wire::random::Random::random(u, depth + 1)?, )*
                    unknown: $crate::wire::random::unknown(u)?,
                })
            }
        }
    )*};
}
pub(crate) use messages;

/// Random messages, so that tests reach every field of every message.
#[cfg(test)]
pub(crate) mod random {
    use super::{Fixed, Packed, Value};
    use arbtest::arbitrary::{Result, Unstructured};
    use bytes::Bytes;

    /// Beyond this nesting, fields stay empty: messages contain each other.
    const DEPTH: usize = 7;

    /// Whether to add something: no longer when randomness runs out, which would be the same thing again and again.
    fn more(u: &mut Unstructured<'_>, depth: usize) -> Result<bool> {
        Ok(depth < DEPTH && !u.is_empty() && u.ratio(3, 5)?)
    }

    pub(crate) trait Random: Sized {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self>;
    }

    macro_rules! arbitrary {
        ($($ty:ty),*) => {$(
            impl Random for $ty {
                fn random(u: &mut Unstructured<'_>, _depth: usize) -> Result<Self> {
                    u.arbitrary()
                }
            }
        )*};
    }
    arbitrary!(i32, i64, u64, f32);

    impl Random for String {
        fn random(u: &mut Unstructured<'_>, _depth: usize) -> Result<Self> {
            (0..u.int_in_range(0..=3)?).map(|_| u.arbitrary::<char>()).collect()
        }
    }

    impl Random for Bytes {
        fn random(u: &mut Unstructured<'_>, _depth: usize) -> Result<Self> {
            (0..u.int_in_range(0..=3)?).map(|_| u.arbitrary::<u8>()).collect()
        }
    }

    impl Random for crate::Data {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self> {
            Ok(Bytes::random(u, depth)?.into())
        }
    }
    impl<T: Random> Random for Box<T> {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self> {
            T::random(u, depth).map(Box::new)
        }
    }

    impl<T: Random + Value> Random for Option<T> {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self> {
            if more(u, depth)? { T::random(u, depth).map(Some) } else { Ok(None) }
        }
    }

    impl<T: Random> Random for Vec<T> {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self> {
            let mut values = Vec::new();
            while values.len() < 4 && more(u, depth)? {
                values.push(T::random(u, depth)?);
            }
            Ok(values)
        }
    }

    impl<T: Random> Random for Packed<T> {
        fn random(u: &mut Unstructured<'_>, depth: usize) -> Result<Self> {
            Vec::random(u, depth).map(Packed)
        }
    }

    impl<const WIDTH: usize> Random for Fixed<WIDTH> {
        fn random(u: &mut Unstructured<'_>, _depth: usize) -> Result<Self> {
            let count = u.int_in_range(0..=3)?;
            Ok(Fixed(Bytes::copy_from_slice(&u.arbitrary::<[u8; 24]>()?[..count * WIDTH])))
        }
    }

    /// A field whose tag no message uses: a varint, a fixed width or a string.
    pub(crate) fn unknown(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
        let mut kept = Vec::new();
        match u.int_in_range(0..=11)? {
            0 => u.arbitrary::<u64>()?.encode(900, &mut kept),
            1 => u.arbitrary::<f32>()?.encode(901, &mut kept),
            2 => String::random(u, 0)?.encode(902, &mut kept),
            _ => {}
        }
        Ok(kept)
    }
}
