//! Constant tensors: weights, attributes. Data stays where it is (a memory-mapped file, mostly) until it is read.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use crate::{DType, Derived, Dim, TensorType};

/// A constant tensor.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first; empty for a scalar.
    pub dims: Vec<u64>,
    /// Where the elements are.
    pub storage: Storage,
    /// What else the file said about this tensor; opaque here.
    pub extra: Bytes,
}

/// Where the elements of a tensor are. ONNX has several places for them; a tensor keeps the one that it came in.
#[derive(Clone, PartialEq, Debug)]
pub enum Storage {
    /// Little-endian elements, packed for types below 8 bits.
    Raw(Bytes),
    /// `float_data`: f32, or pairs for complex64.
    Float(Vec<f32>),
    /// `double_data`: f64, or pairs for complex128.
    Double(Vec<f64>),
    /// `int32_data`: integers up to 32 bits, bool, and the bit patterns of 16-bit and smaller floats.
    Int32(Vec<i32>),
    /// `int64_data`: i64.
    Int64(Vec<i64>),
    /// `uint64_data`: u32 and u64.
    Uint64(Vec<u64>),
    /// `string_data`.
    Strings(Vec<Bytes>),
    /// In another file.
    External(External),
    /// Put together from others when they are read.
    Derived(Derived),
    /// Nowhere: legal in text examples, where a seeded value stands in.
    Absent,
}

/// A range of another file.
#[derive(Clone)]
pub struct External {
    /// Path relative to the folder of the model.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; `None` means up to the end of the file.
    pub length: Option<u64>,
    /// Reads the range when a pass needs the values.
    pub source: Arc<dyn LoadExternal>,
}

impl PartialEq for External {
    fn eq(&self, other: &External) -> bool {
        (&self.location, self.offset, self.length) == (&other.location, other.offset, other.length)
    }
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "External({:?} @{} +{:?})", self.location, self.offset, self.length)
    }
}

/// Scaled tensors of fewer bytes, or with runs of fewer elements, are multiplied at once.
const SMALL: usize = 1 << 14;
const LONG: usize = 16;

/// Runs that are multiplied at a time then.
const AT_ONCE: usize = 1 << 12;

/// Reads ranges of external files; the importer provides one.
pub trait LoadExternal: Send + Sync {
    /// The bytes of the range.
    ///
    /// # Errors
    /// A sentence naming the file and the reason: missing, outside the model's folder, shorter than the range.
    fn load(&self, range: &External) -> Result<Bytes, String>;
}

/// Why the elements of a tensor cannot be had.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TensorError {
    /// External data could not be read.
    #[error("external data: {0}")]
    External(String),
    /// The tensor has no data.
    #[error("tensor without data")]
    Absent,
    /// The data do not have the length that type and shape ask for.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// Bytes that type and shape ask for.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Elements of this type are not numbers that the caller can use.
    #[error("elements of type {0} cannot be read as numbers here")]
    Type(DType),
}

impl Tensor {
    /// A tensor from little-endian bytes.
    pub fn raw(dtype: DType, dims: Vec<u64>, data: impl Into<Bytes>) -> Tensor {
        Tensor { dtype, dims, storage: Storage::Raw(data.into()), extra: Bytes::new() }
    }

    /// A one-dimensional i64 tensor, as shapes and axes are written.
    pub fn i64s(values: &[i64]) -> Tensor {
        Tensor::from_i64(DType::I64, vec![values.len() as u64], values).unwrap_or_else(|_| unreachable!())
    }

    /// Floating-point elements, each rounded to `dtype` (to nearest, ties to even).
    ///
    /// # Errors
    /// `dtype` is not a floating-point type of at least 16 bits, or the count does not fit `dims`.
    pub fn from_f64(dtype: DType, dims: Vec<u64>, values: &[f64]) -> Result<Tensor, TensorError> {
        let mut out = Vec::with_capacity(values.len() * 8);
        for &v in values {
            match dtype {
                DType::F64 => out.extend(v.to_le_bytes()),
                DType::F32 => out.extend((v as f32).to_le_bytes()),
                DType::F16 => out.extend(f16::from_f64(v).to_le_bytes()),
                DType::BF16 => out.extend(bf16::from_f64(v).to_le_bytes()),
                other => return Err(TensorError::Type(other)),
            }
        }
        Tensor::raw(dtype, dims, out).checked()
    }

    /// Integer elements (wrapping where they do not fit), bool included.
    ///
    /// # Errors
    /// `dtype` is not an integer type or bool, or the count does not fit `dims`.
    pub fn from_i64(dtype: DType, dims: Vec<u64>, values: &[i64]) -> Result<Tensor, TensorError> {
        let mut out = Vec::with_capacity(values.len() * 8);
        for &v in values {
            match dtype {
                DType::I64 | DType::U64 => out.extend(v.to_le_bytes()),
                DType::I32 | DType::U32 => out.extend((v as i32).to_le_bytes()),
                DType::I16 | DType::U16 => out.extend((v as i16).to_le_bytes()),
                DType::I8 | DType::U8 => out.push(v as u8),
                DType::Bool => out.push((v != 0) as u8),
                other => return Err(TensorError::Type(other)),
            }
        }
        Tensor::raw(dtype, dims, out).checked()
    }

    /// The same tensor with each element multiplied, every run of `run` elements by one factor. Large ones are multiplied
    /// when they are read. `None` when an element comes to lie beyond what the type holds, or so close to zero that the type
    /// drops digits of it, or is no floating-point number of at least 16 bits.
    ///
    /// # Errors
    /// The data cannot be read.
    pub fn scaled(&self, run: usize, by: impl Fn(usize) -> f64) -> Result<Option<Tensor>, TensorError> {
        let block = self.block()?;
        let run = run.clamp(1, block.len().max(1));
        let runs = self.elements().unwrap_or(0).div_ceil(run as u64) as usize;
        let factors = |runs: Range<usize>| runs.map(&by).collect::<Vec<f64>>();
        let storage = if block.len() < SMALL || run < LONG {
            // Factors need memory, too: they are there for some runs at a time.
            let mut scaled = Vec::with_capacity(block.len());
            let bytes = run * self.dtype.bits().unwrap_or(8).div_ceil(8) as usize;
            for (i, part) in block.chunks(bytes * AT_ONCE).enumerate() {
                let factors = factors(i * AT_ONCE..runs.min((i + 1) * AT_ONCE));
                let part = Derived::scaled(self.dtype, block.slice_ref(part), run, factors);
                let Some(part) = part else { return Ok(None) };
                part.read(0..part.len(), &mut scaled);
            }
            Storage::Raw(scaled.into())
        } else {
            let Some(derived) = Derived::scaled(self.dtype, block, run, factors(0..runs)) else {
                return Ok(None);
            };
            Storage::Derived(derived)
        };
        Ok(Some(Tensor { dtype: self.dtype, dims: self.dims.clone(), storage, extra: Bytes::new() }))
    }

    /// The elements as a block of bytes, shared where it can be.
    fn block(&self) -> Result<Bytes, TensorError> {
        let expected = self.byte_len().ok_or(TensorError::Type(self.dtype))?;
        let block = match &self.storage {
            Storage::Raw(bytes) => bytes.clone(),
            Storage::External(range) => range.source.load(range).map_err(TensorError::External)?,
            _ => self.bytes()?.into_owned().into(),
        };
        let found = block.len() as u64;
        if found == expected { Ok(block) } else { Err(TensorError::Length { expected, found }) }
    }

    /// The part of the tensor with these indices on one axis. Elements stay where they are as far as the storage has
    /// ranges.
    ///
    /// # Errors
    /// The data cannot be read, or are not there in whole bytes.
    ///
    /// # Panics
    /// The tensor has no such axis, or the axis no such indices.
    pub fn slice(&self, axis: usize, range: Range<u64>) -> Result<Tensor, TensorError> {
        assert!(range.start <= range.end && range.end <= self.dims[axis]);
        let width = match self.dtype.bits() {
            Some(bits) if bits % 8 == 0 => u64::from(bits / 8),
            _ => return Err(TensorError::Type(self.dtype)),
        };
        let all = self.byte_len().ok_or(TensorError::Type(self.dtype))?;
        let mut dims = self.dims.clone();
        dims[axis] = range.end - range.start;
        let part = |storage| Tensor { dtype: self.dtype, dims, storage, extra: Bytes::new() };
        if all == 0 {
            return Ok(part(Storage::Raw(Bytes::new())));
        }
        let row = width * self.dims[axis + 1..].iter().product::<u64>();
        let (start, len) = (range.start * row, (range.end - range.start) * row);
        if self.dims[..axis].iter().all(|&dim| dim == 1) {
            match &self.storage {
                Storage::Raw(bytes) if bytes.len() as u64 == row * self.dims[axis] => {
                    let (start, end) = (start as usize, (start + len) as usize);
                    return Ok(part(Storage::Raw(bytes.slice(start..end))));
                }
                Storage::External(range) => {
                    let offset = range.offset.checked_add(start).ok_or(TensorError::Type(self.dtype))?;
                    return Ok(part(Storage::External(External {
                        offset,
                        length: Some(len),
                        ..range.clone()
                    })));
                }
                _ => {}
            }
        }
        let (stride, run) = ((row * self.dims[axis]) as usize, start as usize..(start + len) as usize);
        let derived = match &self.storage {
            Storage::Derived(whole) if whole.len() as u64 == all => whole.cut(stride, run.clone()),
            _ => None,
        };
        let derived = match derived {
            Some(derived) => derived,
            None => Derived::strided(self.block()?, stride, run),
        };
        Ok(part(Storage::Derived(derived)))
    }

    fn checked(self) -> Result<Tensor, TensorError> {
        self.bytes()?;
        Ok(self)
    }

    /// Number of elements; `None` when the product of the sizes does not fit.
    pub fn elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Bytes that the elements need; `None` for strings and on overflow.
    pub fn byte_len(&self) -> Option<u64> {
        self.dtype.packed_len(self.elements()?)
    }

    /// Element type and shape.
    pub fn ty(&self) -> TensorType {
        TensorType { dtype: self.dtype, shape: Some(self.dims.iter().map(|&d| Dim::Known(d)).collect()) }
    }

    /// True when the elements are in this process already (memory-mapped counts), as they are.
    pub fn is_resident(&self) -> bool {
        !matches!(self.storage, Storage::External(_) | Storage::Derived(_) | Storage::Absent)
    }

    /// The elements as little-endian bytes, wherever they are stored; borrowed when no conversion is needed.
    ///
    /// # Errors
    /// The data are absent, unreadable, of the wrong length, or strings.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, TensorError> {
        let expected = self.byte_len().ok_or(TensorError::Type(self.dtype))?;
        let bytes: Cow<'_, [u8]> = match &self.storage {
            Storage::Raw(b) => Cow::Borrowed(b),
            Storage::Float(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>().into(),
            Storage::Double(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>().into(),
            Storage::Int64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>().into(),
            Storage::Int32(v) => {
                // Types below a byte are stored packed, one byte of them per entry.
                let width = self.dtype.bits().unwrap_or(32).div_ceil(8).min(4) as usize;
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(width)).collect::<Vec<_>>().into()
            }
            Storage::Uint64(v) => {
                let width = if self.dtype == DType::U32 { 4 } else { 8 };
                v.iter().flat_map(|x| x.to_le_bytes().into_iter().take(width)).collect::<Vec<_>>().into()
            }
            Storage::Strings(_) => return Err(TensorError::Type(DType::String)),
            Storage::External(range) => {
                Cow::Owned(range.source.load(range).map_err(TensorError::External)?.to_vec())
            }
            Storage::Derived(derived) => Cow::Owned(derived.bytes()),
            Storage::Absent => return Err(TensorError::Absent),
        };
        if bytes.len() as u64 != expected {
            return Err(TensorError::Length { expected, found: bytes.len() as u64 });
        }
        Ok(bytes)
    }

    /// Floating-point or integer elements as f64 (i64 and u64 beyond 2^53 are rounded).
    ///
    /// # Errors
    /// The data cannot be read, or are not numbers of at least 8 bits.
    pub fn to_f64(&self) -> Result<Vec<f64>, TensorError> {
        let b = self.bytes()?;
        Ok(match self.dtype {
            DType::F64 => chunks(&b).map(f64::from_le_bytes).collect(),
            DType::F32 => chunks(&b).map(|c| f32::from_le_bytes(c) as f64).collect(),
            DType::F16 => chunks(&b).map(|c| f16::from_le_bytes(c).to_f64()).collect(),
            DType::BF16 => chunks(&b).map(|c| bf16::from_le_bytes(c).to_f64()).collect(),
            _ => self.to_i64()?.into_iter().map(|v| v as f64).collect(),
        })
    }

    /// Integer or bool elements as i64 (u64 wraps).
    ///
    /// # Errors
    /// The data cannot be read, or are not integers of at least 8 bits.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        let b = self.bytes()?;
        Ok(match self.dtype {
            DType::I64 | DType::U64 => chunks(&b).map(i64::from_le_bytes).collect(),
            DType::I32 => chunks(&b).map(|c| i32::from_le_bytes(c) as i64).collect(),
            DType::U32 => chunks(&b).map(|c| u32::from_le_bytes(c) as i64).collect(),
            DType::I16 => chunks(&b).map(|c| i16::from_le_bytes(c) as i64).collect(),
            DType::U16 => chunks(&b).map(|c| u16::from_le_bytes(c) as i64).collect(),
            DType::I8 => b.iter().map(|&x| x as i8 as i64).collect(),
            DType::U8 | DType::Bool => b.iter().map(|&x| x as i64).collect(),
            other => return Err(TensorError::Type(other)),
        })
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// A constant sparse tensor in coordinate form.
#[derive(Clone, PartialEq, Debug)]
pub struct SparseTensor {
    /// Sizes of the dense tensor.
    pub dims: Vec<u64>,
    /// The non-default elements, one dimension.
    pub values: Box<Tensor>,
    /// Their positions.
    pub indices: Box<Tensor>,
    /// What else the file said; opaque here.
    pub extra: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl LoadExternal for Nowhere {
        fn load(&self, _: &External) -> Result<Bytes, String> {
            Err("nowhere".to_string())
        }
    }

    fn numbers(dims: &[u64]) -> Tensor {
        let count = dims.iter().product::<u64>();
        let values: Vec<f64> = (0..count).map(|n| n as f64).collect();
        Tensor::from_f64(DType::F32, dims.to_vec(), &values).unwrap()
    }

    #[test]
    fn rows_and_columns_are_shared() {
        let tensor = numbers(&[1, 3, 2]);
        let Storage::Raw(all) = &tensor.storage else { panic!() };
        let rows = tensor.slice(1, 1..3).unwrap();
        let Storage::Raw(own) = &rows.storage else { panic!() };
        assert_eq!(own.as_ptr(), all[8..].as_ptr());
        assert_eq!((rows.dims.clone(), rows.to_f64().unwrap()), (vec![1, 2, 2], vec![2.0, 3.0, 4.0, 5.0]));
        let columns = tensor.slice(2, 1..2).unwrap();
        assert!(matches!(columns.storage, Storage::Derived(_)));
        assert_eq!((columns.dims.clone(), columns.to_f64().unwrap()), (vec![1, 3, 1], vec![1.0, 3.0, 5.0]));
    }

    #[test]
    fn parts_of_parts_are_those_of_the_whole() {
        arbtest::arbtest(|u| {
            let dims: Vec<u64> = (0..3).map(|_| u.int_in_range(0..=4)).collect::<Result<_, _>>()?;
            let mut part = numbers(&dims);
            let mut ranges: Vec<Range<u64>> = dims.iter().map(|&dim| 0..dim).collect();
            for _ in 0..4 {
                let axis = u.choose_index(3)?;
                let start = u.int_in_range(0..=part.dims[axis])?;
                let end = u.int_in_range(start..=part.dims[axis])?;
                part = part.slice(axis, start..end).unwrap();
                ranges[axis] = ranges[axis].start + start..ranges[axis].start + end;
            }
            let mut expected = Vec::new();
            for i in ranges[0].clone() {
                for j in ranges[1].clone() {
                    expected.extend(ranges[2].clone().map(|k| ((i * dims[1] + j) * dims[2] + k) as f64));
                }
            }
            assert_eq!(part.to_f64().unwrap(), expected);
            Ok(())
        });
    }

    #[test]
    fn rows_in_another_file_stay_there() {
        let storage = Storage::External(External {
            location: "w".to_string(),
            offset: 100,
            length: None,
            source: Arc::new(Nowhere),
        });
        let tensor = Tensor { storage, ..numbers(&[4, 2]) };
        let rows = tensor.slice(0, 1..3).unwrap();
        let Storage::External(range) = &rows.storage else { panic!() };
        assert_eq!((range.offset, range.length), (108, Some(16)));
        assert_eq!(tensor.slice(1, 0..1), Err(TensorError::External("nowhere".to_string())));
    }

    #[test]
    fn elements_of_less_than_a_byte_cannot_be_cut() {
        let packed = Tensor::raw(DType::U4, vec![4], vec![0, 0]);
        assert_eq!(packed.slice(0, 1..3), Err(TensorError::Type(DType::U4)));
    }
}
