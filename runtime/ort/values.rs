//! Tensors in and out of ONNX Runtime, and the types of its interface.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use dmopt_ir::{DType, Dim, Tensor, TensorType};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::sys::{ONNXTensorElementDataType, OrtValue};
use ort::value::{DynValue, Outlet, ValueType};

use super::{failed, unsupported};
use crate::{Port, RuntimeError};

/// Element types by their numbers in ONNX Runtime's interface. Up to 23 they are ONNX's own.
fn dtype(code: i32) -> Option<DType> {
    match code {
        1..=23 => DType::from_code(code),
        24 => Some(DType::U2),
        25 => Some(DType::I2),
        26 => Some(DType::F8E8M0),
        _ => None,
    }
}

fn code(dtype: DType) -> Option<ONNXTensorElementDataType> {
    use ONNXTensorElementDataType as T;
    Some(match dtype {
        DType::F32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DType::U8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DType::I8 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DType::U16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DType::I16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DType::I32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DType::I64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DType::Bool => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DType::F16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DType::F64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DType::U32 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DType::U64 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DType::BF16 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DType::F8E4M3FN => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN,
        DType::F8E4M3FNUZ => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ,
        DType::F8E5M2 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2,
        DType::F8E5M2FNUZ => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ,
        DType::U4 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4,
        DType::I4 => T::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4,
        _ => return None,
    })
}

/// Name and type of a graph input or output.
pub(super) fn port(outlet: &Outlet) -> Result<Port, RuntimeError> {
    let name = outlet.name().to_string();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(unsupported(format!("{name} is not a tensor")));
    };
    let dtype = dtype(ONNXTensorElementDataType::from(*ty) as i32)
        .ok_or_else(|| unsupported(format!("{name} has element type {ty}")))?;
    let dims = shape.iter().enumerate().map(|(axis, &size)| {
        match (u64::try_from(size), dimension_symbols.get(axis)) {
            (Ok(size), _) => Dim::Known(size),
            (Err(_), Some(symbol)) if !symbol.is_empty() => Dim::Symbol(symbol.as_str().into()),
            _ => Dim::Unknown,
        }
    });
    Ok(Port { name, ty: TensorType { dtype, shape: Some(dims.collect()) } })
}

/// A tensor as ONNX Runtime takes it.
pub(super) struct Input {
    pub name: String,
    pub value: DynValue,
    /// What the value points to. Words, because elements must be aligned for their type.
    _elements: Vec<u64>,
}

pub(super) fn input(name: &str, tensor: &Tensor) -> Result<Input, RuntimeError> {
    let refused = || unsupported(format!("input {name} of type {}", tensor.ty()));
    let code = code(tensor.dtype).ok_or_else(refused)?;
    let dims: Vec<i64> =
        tensor.dims.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>().map_err(|_| refused())?;
    let bytes = tensor.bytes()?;
    // At least one word: the pointer must not be null, not even to no elements.
    let mut elements = vec![0u64; bytes.len().div_ceil(size_of::<u64>()).max(1)];
    let info = MemoryInfo::default();
    let mut value: *mut OrtValue = ptr::null_mut();
    // SAFETY: the words have room for the bytes. They do not move when the vector does, and they outlive the value,
    // which is dropped first. ONNX Runtime checks that there are as many bytes as shape and type ask for.
    let value = unsafe {
        let start = elements.as_mut_ptr().cast::<u8>();
        ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
        let status = (ort::api().CreateTensorWithDataAsOrtValue)(
            info.ptr(),
            start.cast::<c_void>(),
            bytes.len(),
            dims.as_ptr(),
            dims.len(),
            code,
            &mut value,
        );
        ort::Error::result_from_status(status).map_err(failed)?;
        DynValue::from_ptr(NonNull::new(value).ok_or_else(refused)?, Some(&Allocator::default()))
    };
    Ok(Input { name: name.to_string(), value, _elements: elements })
}

/// Address of the first element of a tensor on the host.
pub(super) fn address(value: &DynValue) -> Result<*const u8, RuntimeError> {
    let mut data: *const c_void = ptr::null();
    // SAFETY: the value is alive, the pointer is valid for writing.
    unsafe {
        let status = (ort::api().GetTensorData)(value.ptr(), &mut data);
        ort::Error::result_from_status(status).map_err(failed)?;
    }
    Ok(data.cast())
}

/// A copy of a graph output, which is on the host.
pub(super) fn output(name: &str, value: &DynValue) -> Result<Tensor, RuntimeError> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(unsupported(format!("output {name} is not a tensor")));
    };
    let refused = || unsupported(format!("output {name} of type {ty}"));
    let dtype = dtype(ONNXTensorElementDataType::from(*ty) as i32)
        .filter(|&dtype| code(dtype).is_some())
        .ok_or_else(refused)?;
    let dims: Vec<u64> =
        shape.iter().map(|&d| u64::try_from(d)).collect::<Result<_, _>>().map_err(|_| refused())?;
    let mut bytes = 0usize;
    // SAFETY: the value is alive, the pointer is valid for writing.
    unsafe {
        let status = (ort::api().GetTensorSizeInBytes)(value.ptr(), &mut bytes);
        ort::Error::result_from_status(status).map_err(failed)?;
    }
    let data = address(value)?;
    let elements = if bytes == 0 || data.is_null() {
        Vec::new()
    } else {
        // SAFETY: a tensor that is no string tensor is this many bytes from its first element on.
        unsafe { std::slice::from_raw_parts(data, bytes) }.to_vec()
    };
    Ok(Tensor::raw(dtype, dims, elements))
}
