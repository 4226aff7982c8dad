//! Constant tensors, between their message and the graph. The elements move as they are: shared with the file, in the
//! field in which they came.

use std::sync::Arc;

use bytes::Bytes;
use dmopt_ir::{DType, External, LoadExternal, SparseTensor, Storage, Tensor};
use prost::DecodeError;

use crate::error::TensorFault;
use crate::external::Reference;
use crate::extra::{
    DOUBLE_DATA, EXTERNAL_DATA, FLOAT_DATA, NOWHERE, SparseExtra, TensorExtra, pack, some, unpack,
};
use crate::schema::{DataLocation, SparseTensorProto, TensorProto};
use crate::wire::{Fixed, Packed};

/// A tensor from its message; a name, if it has one, counts as something more to say.
pub(crate) fn parse(mut proto: TensorProto, source: &Arc<dyn LoadExternal>) -> Result<Tensor, TensorFault> {
    let code = proto.data_type.take().unwrap_or(0);
    let dtype = DType::from_code(code).ok_or(TensorFault::Type(code))?;
    let dims = sizes(std::mem::take(&mut proto.dims))?;
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or(TensorFault::Size)?;

    let mut field = None;
    let storage = if let Some(reference) = Reference::of(&proto).map_err(TensorFault::External)? {
        proto.data_location = None;
        if proto.external_data == reference.entries() {
            proto.external_data.clear();
        } else {
            field = Some(EXTERNAL_DATA);
        }
        let Reference { location, offset, length } = reference;
        Storage::External(External { location, offset, length, source: source.clone() })
    } else if let Some(raw) = proto.raw_data.take_if(|_| dtype != DType::String) {
        Storage::Raw(raw.bytes().clone())
    } else {
        let (storage, from) = typed(&mut proto, dtype);
        field = from;
        storage
    };
    if proto.segment.is_none() {
        check_count(dtype, elements, &storage)?;
    }
    let extra = pack(&TensorExtra { rest: some(proto), field, ..Default::default() });
    Ok(Tensor { dtype, dims, storage, extra })
}

/// The elements in the field for their type.
fn typed(proto: &mut TensorProto, dtype: DType) -> (Storage, Option<i32>) {
    use std::mem::take;
    match dtype {
        DType::String => (Storage::Strings(take(&mut proto.string_data)), None),
        DType::F32 | DType::Complex64 if !proto.float_data.0.is_empty() => {
            (Storage::Raw(take(&mut proto.float_data.0)), Some(FLOAT_DATA))
        }
        DType::F64 | DType::Complex128 if !proto.double_data.0.is_empty() => {
            (Storage::Raw(take(&mut proto.double_data.0)), Some(DOUBLE_DATA))
        }
        DType::F32 | DType::F64 | DType::Complex64 | DType::Complex128 => {
            (Storage::Raw(Bytes::new()), Some(NOWHERE))
        }
        DType::I64 => (Storage::Int64(take(&mut proto.int64_data.0)), None),
        DType::U32 | DType::U64 => (Storage::Uint64(take(&mut proto.uint64_data.0)), None),
        _ => (Storage::Int32(take(&mut proto.int32_data.0)), None),
    }
}

/// Bytes that type and dimensions ask for; `None` where they do not tell.
pub(crate) fn byte_len(proto: &TensorProto) -> Option<u64> {
    let elements = proto.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))?;
    DType::from_code(proto.data_type?)?.packed_len(elements).filter(|_| proto.segment.is_none())
}

fn sizes(dims: Vec<i64>) -> Result<Vec<u64>, TensorFault> {
    dims.into_iter().map(|d| u64::try_from(d).map_err(|_| TensorFault::Dim(d))).collect()
}

fn check_count(dtype: DType, elements: u64, storage: &Storage) -> Result<(), TensorFault> {
    let bytes = || dtype.packed_len(elements).ok_or(TensorFault::Size);
    let (expected, found, unit) = match storage {
        Storage::Raw(data) => (bytes()?, data.len() as u64, "bytes"),
        Storage::Strings(data) => (elements, data.len() as u64, "strings"),
        Storage::Int64(data) => (elements, data.len() as u64, "elements"),
        Storage::Uint64(data) => (elements, data.len() as u64, "elements"),
        // Four-bit and two-bit elements are packed into the bytes that the entries stand for, six-bit ones are not.
        Storage::Int32(data) if dtype.bits().is_some_and(|bits| bits < 5) => {
            (bytes()?, data.len() as u64, "entries")
        }
        Storage::Int32(data) => (elements, data.len() as u64, "elements"),
        Storage::External(External { length: Some(length), .. }) if dtype != DType::String => {
            (bytes()?, *length, "bytes")
        }
        _ => return Ok(()),
    };
    if expected == found { Ok(()) } else { Err(TensorFault::Count { expected, found, unit }) }
}

/// The message for a tensor. `name` is that of an initializer; elsewhere a tensor keeps the name that it had.
pub(crate) fn render(tensor: &Tensor, name: Option<&str>) -> Result<TensorProto, DecodeError> {
    let TensorExtra { rest, field, .. } = unpack(&tensor.extra)?;
    let mut proto = rest.unwrap_or_default();
    proto.dims = tensor.dims.iter().map(|&d| d as i64).collect();
    proto.data_type = Some(tensor.dtype.code());
    if let Some(name) = name {
        proto.name = Some(name.to_string());
    }
    if field == Some(EXTERNAL_DATA) && !matches!(tensor.storage, Storage::External(_)) {
        proto.external_data.clear();
    }
    match &tensor.storage {
        Storage::Raw(data) => match (field, tensor.dtype) {
            (Some(FLOAT_DATA), DType::F32 | DType::Complex64) => proto.float_data = Fixed(data.clone()),
            (Some(DOUBLE_DATA), DType::F64 | DType::Complex128) => proto.double_data = Fixed(data.clone()),
            (Some(NOWHERE), _) if data.is_empty() => {}
            _ => proto.raw_data = Some(data.clone().into()),
        },
        Storage::Float(v) => proto.float_data = Fixed(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Storage::Double(v) => proto.double_data = Fixed(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Storage::Int32(v) => proto.int32_data = Packed(v.clone()),
        Storage::Int64(v) => proto.int64_data = Packed(v.clone()),
        Storage::Uint64(v) => proto.uint64_data = Packed(v.clone()),
        Storage::Strings(v) => proto.string_data.clone_from(v),
        Storage::External(range) => {
            proto.data_location = Some(DataLocation::External.into());
            let reference =
                Reference { location: range.location.clone(), offset: range.offset, length: range.length };
            if Reference::of(&proto).ok().flatten().as_ref() != Some(&reference) {
                proto.external_data = reference.entries();
            }
        }
        Storage::Derived(derived) => proto.raw_data = Some(derived.clone().into()),
        Storage::Absent => {}
    }
    Ok(proto)
}

/// A sparse tensor from its message; the name of an initializer is taken from its values before.
pub(crate) fn parse_sparse(
    mut proto: SparseTensorProto,
    source: &Arc<dyn LoadExternal>,
) -> Result<SparseTensor, TensorFault> {
    let part = |part: Option<TensorProto>, name| parse(part.ok_or(TensorFault::Incomplete(name))?, source);
    let values = Box::new(part(proto.values.take(), "values")?);
    let indices = Box::new(part(proto.indices.take(), "indices")?);
    let dims = sizes(std::mem::take(&mut proto.dims))?;
    let extra = pack(&SparseExtra { rest: some(proto), ..Default::default() });
    Ok(SparseTensor { dims, values, indices, extra })
}

/// The message for a sparse tensor.
pub(crate) fn render_sparse(
    tensor: &SparseTensor,
    name: Option<&str>,
) -> Result<SparseTensorProto, DecodeError> {
    let mut proto = unpack::<SparseExtra>(&tensor.extra)?.rest.unwrap_or_default();
    proto.values = Some(render(&tensor.values, name)?);
    proto.indices = Some(render(&tensor.indices, None)?);
    proto.dims = tensor.dims.iter().map(|&d| d as i64).collect();
    Ok(proto)
}
