//! ONNX Runtime's memory plan.

pub(crate) mod scratch;
pub(crate) mod table;
