//! Lists of tensors, and values that may be absent.

use super::{Call, DType, Dim, List, Rule, Rules, Size, TensorType, Type, of_rank, tensor};
use crate::AttributeValue;

pub(super) const RULES: Rules = &[
    ("ConcatFromSequence", Rule::Tensor(concat)),
    ("Optional", Rule::Types(optional)),
    ("OptionalGetElement", Rule::Types(get)),
    ("OptionalHasElement", Rule::Tensor(|_| Some(tensor(DType::Bool, of_rank(0))))),
    ("SequenceAt", Rule::Types(at)),
    ("SequenceConstruct", Rule::Types(construct)),
    ("SequenceEmpty", Rule::Types(empty)),
    ("SequenceErase", Rule::Types(erase)),
    ("SequenceInsert", Rule::Types(insert)),
    ("SequenceLength", Rule::Tensor(|_| Some(tensor(DType::I64, of_rank(0))))),
    ("SplitToSequence", Rule::Types(split)),
];

/// What is true of either type: dimensions that certainly agree, a shape where the ranks do.
pub(super) fn join(a: &Type, b: &Type) -> Option<Type> {
    match (a, b) {
        (Type::Tensor(a), Type::Tensor(b)) if a.dtype == b.dtype => {
            let shape = match (&a.shape, &b.shape) {
                (Some(x), Some(y)) if x.len() == y.len() => {
                    let same = x.iter().zip(y).map(|(p, q)| if p.same(q) { p.clone() } else { Dim::Unknown });
                    Some(same.collect())
                }
                _ => None,
            };
            Some(Type::Tensor(TensorType { dtype: a.dtype, shape }))
        }
        (Type::Sequence(a), Type::Sequence(b)) => join(a, b).map(|t| Type::Sequence(Box::new(t))),
        (Type::Optional(a), Type::Optional(b)) => join(a, b).map(|t| Type::Optional(Box::new(t))),
        _ => (a == b).then(|| a.clone()),
    }
}

fn element(call: &Call<'_>) -> Option<Type> {
    match call.ty(0)? {
        Type::Sequence(element) => Some((**element).clone()),
        _ => None,
    }
}

fn list_of(element: Option<Type>) -> Vec<Option<Type>> {
    vec![element.map(|t| Type::Sequence(Box::new(t)))]
}

fn construct(call: &Call<'_>) -> Vec<Option<Type>> {
    let mut types = (0..call.args.len()).map(|slot| call.ty(slot).cloned());
    let first = types.next().flatten();
    list_of(types.fold(first, |all, ty| join(&all?, &ty?)))
}

fn empty(call: &Call<'_>) -> Vec<Option<Type>> {
    let dtype = match call.op.int("dtype") {
        None => Some(DType::F32),
        Some(_) => call.dtype_attribute("dtype"),
    };
    list_of(dtype.map(|d| tensor(d, None).into()))
}

fn at(call: &Call<'_>) -> Vec<Option<Type>> {
    vec![element(call)]
}

fn erase(call: &Call<'_>) -> Vec<Option<Type>> {
    vec![call.ty(0).cloned()]
}

fn insert(call: &Call<'_>) -> Vec<Option<Type>> {
    list_of(element(call).zip(call.ty(1)).and_then(|(old, new)| join(&old, new)))
}

fn split(call: &Call<'_>) -> Vec<Option<Type>> {
    let part = || {
        let dtype = call.dtype(0)?;
        let Some(dims) = call.shape(0) else { return Some(tensor(dtype, None)) };
        let along = call.axis("axis", 0, dims.len())?;
        let mut shape = dims.to_vec();
        shape[along] = match call.list(1, "") {
            List::Absent if call.int("keepdims", 1) == 0 => {
                shape.remove(along);
                return Some(tensor(dtype, shape));
            }
            List::Absent => Dim::Known(1),
            List::Known(sizes) => equal(&sizes, &dims[along], call.shape(1)),
            List::Unknown(_) => Dim::Unknown,
        };
        Some(tensor(dtype, shape))
    };
    list_of(part().map(Type::Tensor))
}

/// The size of all parts, if they are alike. One number is the size of each part, the last one aside.
fn equal(sizes: &[i64], whole: &Dim, form: Option<&[Dim]>) -> Dim {
    match (sizes, form) {
        ([size], Some([])) => match (whole, u64::try_from(*size)) {
            (Dim::Known(n), Ok(size)) if size > 0 && n % size == 0 && *n > 0 => Dim::Known(size),
            _ => Dim::Unknown,
        },
        ([first, rest @ ..], _) if rest.iter().all(|s| s == first) => Size::Known(*first).dim(),
        _ => Dim::Unknown,
    }
}

/// Joined along an axis, or stacked on a new one.
fn concat(call: &Call<'_>) -> Option<TensorType> {
    let element = element(call)?;
    let element = element.tensor()?;
    let Some(dims) = &element.shape else { return Some(tensor(element.dtype, None)) };
    let mut shape = dims.clone();
    if call.int("new_axis", 0) != 0 {
        shape.insert(call.axis("axis", 0, dims.len() + 1)?, Dim::Unknown);
    } else {
        shape[call.axis("axis", 0, dims.len())?] = Dim::Unknown;
    }
    Some(tensor(element.dtype, shape))
}

fn optional(call: &Call<'_>) -> Vec<Option<Type>> {
    let inner = match call.op.attribute("type") {
        Some(AttributeValue::Type(ty)) => Some(ty.clone()),
        _ => call.ty(0).cloned(),
    };
    vec![inner.map(|t| Type::Optional(Box::new(t)))]
}

fn get(call: &Call<'_>) -> Vec<Option<Type>> {
    vec![call.ty(0).map(|ty| match ty {
        Type::Optional(inner) => (**inner).clone(),
        other => other.clone(),
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_what_its_elements_share() {
        let list = |dims: &[u64]| Type::Tensor(TensorType::known(DType::F32, dims));
        let joined = join(&list(&[2, 3]), &list(&[4, 3]));
        let expected = tensor(DType::F32, vec![Dim::Unknown, Dim::Known(3)]);
        assert_eq!(joined, Some(expected.into()));
        assert_eq!(join(&list(&[2]), &list(&[2, 3])), Some(tensor(DType::F32, None).into()));
        assert_eq!(join(&list(&[2]), &TensorType::known(DType::I64, &[2]).into()), None);
    }
}
