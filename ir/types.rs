//! Types of values: element type and shape, with symbolic dimensions.

use std::fmt;
use std::sync::Arc;

use crate::DType;

/// One dimension of a shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Dim {
    /// A size known before the model runs.
    Known(u64),
    /// A size named by the model (`dim_param`): equal names mean equal sizes within a model.
    Symbol(Arc<str>),
    /// A size that nothing is known about.
    Unknown,
}

impl Dim {
    /// The size, if it is known.
    pub fn known(&self) -> Option<u64> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// True when both are the same for certain: equal sizes, or the same symbol.
    pub fn same(&self, other: &Dim) -> bool {
        self != &Dim::Unknown && self == other
    }

    /// False only when both sizes are known and differ.
    pub fn may_equal(&self, other: &Dim) -> bool {
        !matches!((self, other), (Dim::Known(a), Dim::Known(b)) if a != b)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// The dimensions of a tensor, outermost first.
pub type Shape = Vec<Dim>;

/// Element type and, where known, shape of a tensor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// `None` when not even the rank is known.
    pub shape: Option<Shape>,
}

impl TensorType {
    /// A tensor type with a fully known shape.
    pub fn known(dtype: DType, dims: &[u64]) -> Self {
        TensorType { dtype, shape: Some(dims.iter().map(|&d| Dim::Known(d)).collect()) }
    }

    /// Number of dimensions, if known.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// All sizes, if every one is known.
    pub fn dims(&self) -> Option<Vec<u64>> {
        self.shape.as_ref()?.iter().map(Dim::known).collect()
    }

    /// Number of elements, if every size is known and the product fits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.as_ref()?.iter().try_fold(1u64, |n, dim| n.checked_mul(dim.known()?))
    }

    /// Bytes of the data, if the shape is known and elements have a fixed size.
    pub fn bytes(&self) -> Option<u64> {
        self.dtype.packed_len(self.elements()?)
    }

    /// True when the shapes are equal for certain (known sizes or the same symbols).
    pub fn same_shape(&self, other: &TensorType) -> bool {
        match (&self.shape, &other.shape) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same(y)),
            _ => false,
        }
    }
}

/// The type of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    /// A dense tensor.
    Tensor(TensorType),
    /// A sparse tensor.
    Sparse(TensorType),
    /// A list of values of one type.
    Sequence(Box<Type>),
    /// A map from keys of an integer or string type.
    Map {
        /// Type of the keys.
        key: DType,
        /// Type of the values.
        value: Box<Type>,
    },
    /// A value that may be absent.
    Optional(Box<Type>),
    /// A type that only its own domain understands.
    Opaque {
        /// Domain that defines it.
        domain: String,
        /// Name within the domain.
        name: String,
    },
}

impl Type {
    /// The tensor type, if this is a dense tensor.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// False when a value of this type can certainly not stand where `other` is expected: another kind,
    /// element type or rank, or a known size that differs.
    pub fn compatible(&self, other: &Type) -> bool {
        match (self, other) {
            (Type::Tensor(a), Type::Tensor(b)) | (Type::Sparse(a), Type::Sparse(b)) => {
                a.dtype == b.dtype
                    && match (&a.shape, &b.shape) {
                        (Some(x), Some(y)) => {
                            x.len() == y.len() && x.iter().zip(y).all(|(p, q)| p.may_equal(q))
                        }
                        _ => true,
                    }
            }
            (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => {
                a.compatible(b)
            }
            (Type::Map { key: k, value: v }, Type::Map { key: l, value: w }) => k == l && v.compatible(w),
            (a, b) => a == b,
        }
    }

    /// What both types together say: known sizes win over symbols, symbols over unknown. `None` when the
    /// types are not [`compatible`](Type::compatible).
    pub fn merge(&self, other: &Type) -> Option<Type> {
        if !self.compatible(other) {
            return None;
        }
        match (self, other) {
            (Type::Tensor(a), Type::Tensor(b)) => Some(Type::Tensor(a.merge(b))),
            (Type::Sparse(a), Type::Sparse(b)) => Some(Type::Sparse(a.merge(b))),
            _ => Some(self.clone()),
        }
    }
}

impl TensorType {
    fn merge(&self, other: &TensorType) -> TensorType {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) => Some(
                a.iter()
                    .zip(b)
                    .map(|(x, y)| match (x, y) {
                        (Dim::Known(_), _) => x.clone(),
                        (_, Dim::Known(_)) => y.clone(),
                        (Dim::Symbol(_), _) => x.clone(),
                        _ => y.clone(),
                    })
                    .collect(),
            ),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        TensorType { dtype: self.dtype, shape }
    }
}

impl From<TensorType> for Type {
    fn from(t: TensorType) -> Type {
        Type::Tensor(t)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        match &self.shape {
            None => f.write_str("[]"),
            Some(dims) if dims.is_empty() => Ok(()),
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                write!(f, "[{}]", dims.join(","))
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => write!(f, "{t}"),
            Type::Sparse(t) => write!(f, "sparse_tensor({t})"),
            Type::Sequence(t) => write!(f, "seq({t})"),
            Type::Map { key, value } => write!(f, "map({key}, {value})"),
            Type::Optional(t) => write!(f, "optional({t})"),
            Type::Opaque { domain, name } => write!(f, "opaque({domain}, {name})"),
        }
    }
}
