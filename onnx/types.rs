//! Types of values, between their message and the graph.

use dmopt_ir::{DType, Dim, TensorType as GraphTensorType, Type};

use crate::extra::Declaration;
use crate::schema::{
    Dimension, MapType, OpaqueType, OptionalType, SequenceType, SparseTensorType, TensorShapeProto,
    TensorType, TypeProto, ValueInfoProto,
};

/// What a message says of a type; `None` when it is incomplete or of a kind that the graph does not know.
pub(crate) fn parse(proto: &TypeProto) -> Option<Type> {
    if let Some(tensor) = &proto.tensor_type {
        return Some(Type::Tensor(parse_tensor(tensor.elem_type, &tensor.shape)?));
    }
    if let Some(tensor) = &proto.sparse_tensor_type {
        return Some(Type::Sparse(parse_tensor(tensor.elem_type, &tensor.shape)?));
    }
    if let Some(list) = &proto.sequence_type {
        return Some(Type::Sequence(Box::new(parse(list.elem_type.as_ref()?)?)));
    }
    if let Some(map) = &proto.map_type {
        let value = Box::new(parse(map.value_type.as_ref()?)?);
        return Some(Type::Map { key: DType::from_code(map.key_type?)?, value });
    }
    if let Some(optional) = &proto.optional_type {
        return Some(Type::Optional(Box::new(parse(optional.elem_type.as_ref()?)?)));
    }
    let opaque = proto.opaque_type.as_ref()?;
    let (domain, name) = (opaque.domain.clone().unwrap_or_default(), opaque.name.clone().unwrap_or_default());
    Some(Type::Opaque { domain, name })
}

fn parse_tensor(elem_type: Option<i32>, shape: &Option<TensorShapeProto>) -> Option<GraphTensorType> {
    let dtype = DType::from_code(elem_type?)?;
    let shape = shape.as_ref().map(|shape| shape.dim.iter().map(parse_dim).collect());
    Some(GraphTensorType { dtype, shape })
}

fn parse_dim(dim: &Dimension) -> Dim {
    match (dim.dim_value.map(u64::try_from), dim.dim_param.as_deref()) {
        (Some(Ok(size)), _) => Dim::Known(size),
        (None, Some(symbol)) if !symbol.is_empty() => Dim::Symbol(symbol.into()),
        // Some writers say -1 for a size that they do not know.
        _ => Dim::Unknown,
    }
}

/// The message for a type.
pub(crate) fn render(ty: &Type) -> TypeProto {
    let mut proto = TypeProto::default();
    let boxed = |ty: &Type| Some(Box::new(render(ty)));
    match ty {
        Type::Tensor(t) => {
            let (elem_type, shape) = render_tensor(t);
            proto.tensor_type = Some(TensorType { elem_type, shape, ..Default::default() });
        }
        Type::Sparse(t) => {
            let (elem_type, shape) = render_tensor(t);
            proto.sparse_tensor_type = Some(SparseTensorType { elem_type, shape, ..Default::default() });
        }
        Type::Sequence(t) => {
            proto.sequence_type = Some(SequenceType { elem_type: boxed(t), ..Default::default() });
        }
        Type::Map { key, value } => {
            let (key_type, value_type) = (Some(key.code()), boxed(value));
            proto.map_type = Some(MapType { key_type, value_type, ..Default::default() });
        }
        Type::Optional(t) => {
            proto.optional_type = Some(OptionalType { elem_type: boxed(t), ..Default::default() });
        }
        Type::Opaque { domain, name } => {
            let (domain, name) = (Some(domain.clone()), Some(name.clone()));
            proto.opaque_type = Some(OpaqueType { domain, name, ..Default::default() });
        }
    }
    proto
}

fn render_tensor(ty: &GraphTensorType) -> (Option<i32>, Option<TensorShapeProto>) {
    let dim = |dim: &Dim| match dim {
        Dim::Known(size) => Dimension { dim_value: Some(*size as i64), ..Default::default() },
        Dim::Symbol(symbol) => Dimension { dim_param: Some(symbol.to_string()), ..Default::default() },
        Dim::Unknown => Dimension::default(),
    };
    let shape = ty.shape.as_ref().map(|dims| dims.iter().map(dim).collect());
    (Some(ty.dtype.code()), shape.map(|dim| TensorShapeProto { dim, ..Default::default() }))
}

/// What must be kept of a mention of a value, so that [`redeclare`] gives it back while the value has type `ty`. The
/// name stays in it, to find it by.
pub(crate) fn declaration(mut info: ValueInfoProto, ty: Option<&Type>) -> Declaration {
    let rendered = ty.map(render);
    if info.r#type == rendered {
        info.r#type = None;
        return Declaration { info: Some(info), ..Default::default() };
    }
    Declaration { info: Some(info), retyped: Some(1), rendered, ..Default::default() }
}

/// True if a declaration says nothing that name and type do not.
pub(crate) fn is_plain(declaration: &Declaration) -> bool {
    let Some(info) = &declaration.info else { return true };
    let named = ValueInfoProto { name: info.name.clone(), ..Default::default() };
    declaration.retyped.is_none() && *info == named
}

/// The message for a value: as it was declared where that still holds, else with its type as it is now.
pub(crate) fn redeclare(name: &str, ty: Option<&Type>, kept: Option<Declaration>) -> ValueInfoProto {
    let kept = kept.unwrap_or_default();
    let mut info = kept.info.unwrap_or_default();
    let now = ty.map(render);
    if kept.retyped.is_none() {
        info.r#type = now;
    } else if now != kept.rendered {
        let original = info.r#type.take();
        info.r#type = now.map(|mut now| {
            if let Some(original) = original {
                keep_denotations(&mut now, &original);
            }
            now
        });
    }
    info.name = Some(name.to_string());
    info
}

/// Denotations say what a value and its dimensions mean, which a more precise type does not change.
fn keep_denotations(now: &mut TypeProto, original: &TypeProto) {
    now.denotation.clone_from(&original.denotation);
    let (Some(now), Some(original)) = (&mut now.tensor_type, &original.tensor_type) else { return };
    let (Some(now), Some(original)) = (&mut now.shape, &original.shape) else { return };
    if now.dim.len() == original.dim.len() {
        for (now, original) in now.dim.iter_mut().zip(&original.dim) {
            now.denotation.clone_from(&original.denotation);
        }
    }
}
