//! Element types of tensors, with the numbers that ONNX gives them.

use std::fmt;

use half::{bf16, f16};

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// An ONNX element type (`TensorProto.DataType`; 0, undefined, is not a type).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(i32)]
        #[allow(missing_docs)]
        pub enum DType { $($variant = $code),* }

        impl DType {
            /// Every element type, in the order of the standard's numbers.
            pub const ALL: &'static [DType] = &[$(DType::$variant),*];

            /// The type with this number in ONNX, if there is one.
            pub fn from_code(code: i32) -> Option<DType> {
                match code { $($code => Some(DType::$variant),)* _ => None }
            }

            /// The name in ONNX's textual syntax.
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name),* }
            }

            /// Bits of one element in memory; `None` for strings, whose size depends on the data.
            pub fn bits(self) -> Option<u32> {
                match self { $(DType::$variant => if $bits == 0 { None } else { Some($bits) }),* }
            }
        }
    };
}

dtypes! {
    F32 = 1, "float", 32;
    U8 = 2, "uint8", 8;
    I8 = 3, "int8", 8;
    U16 = 4, "uint16", 16;
    I16 = 5, "int16", 16;
    I32 = 6, "int32", 32;
    I64 = 7, "int64", 64;
    String = 8, "string", 0;
    Bool = 9, "bool", 8;
    F16 = 10, "float16", 16;
    F64 = 11, "double", 64;
    U32 = 12, "uint32", 32;
    U64 = 13, "uint64", 64;
    Complex64 = 14, "complex64", 64;
    Complex128 = 15, "complex128", 128;
    BF16 = 16, "bfloat16", 16;
    F8E4M3FN = 17, "float8e4m3fn", 8;
    F8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    F8E5M2 = 19, "float8e5m2", 8;
    F8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    U4 = 21, "uint4", 4;
    I4 = 22, "int4", 4;
    F4E2M1 = 23, "float4e2m1", 4;
    F8E8M0 = 24, "float8e8m0", 8;
    U2 = 25, "uint2", 2;
    I2 = 26, "int2", 2;
    F6E2M3 = 27, "float6e2m3", 6;
    F6E3M2 = 28, "float6e3m2", 6;
}

impl DType {
    /// The number that ONNX gives this type.
    pub fn code(self) -> i32 {
        self as i32
    }

    /// The type of this name in ONNX's textual syntax.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|t| t.name() == name)
    }

    /// f16, bf16, f32 or f64: the types in which linear combinations are rewritten.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// A signed or unsigned integer of at least 8 bits.
    pub fn is_integer(self) -> bool {
        use DType::*;
        matches!(self, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }

    /// The largest magnitude that elements of a floating-point type of at least 16 bits have; `None` for other types.
    pub fn largest(self) -> Option<f64> {
        match self {
            DType::F64 => Some(f64::MAX),
            DType::F32 => Some(f32::MAX.into()),
            DType::F16 => Some(f16::MAX.to_f64()),
            DType::BF16 => Some(bf16::MAX.to_f64()),
            _ => None,
        }
    }

    /// The smallest magnitude that such a type has with all its digits; `None` for other types.
    pub fn smallest_normal(self) -> Option<f64> {
        match self {
            DType::F64 => Some(f64::MIN_POSITIVE),
            DType::F32 => Some(f32::MIN_POSITIVE.into()),
            DType::F16 => Some(f16::MIN_POSITIVE.to_f64()),
            DType::BF16 => Some(bf16::MIN_POSITIVE.to_f64()),
            _ => None,
        }
    }

    /// Bytes of `elements` packed elements (types below 8 bits share bytes, the last one padded);
    /// `None` for strings and on overflow.
    pub fn packed_len(self, elements: u64) -> Option<u64> {
        Some(elements.checked_mul(self.bits()? as u64)?.div_ceil(8))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
