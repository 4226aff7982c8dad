//! Shape and type inference: the types of an operator's results from the types (and constants) of its operands.
//!
//! A rule answers only what the standard guarantees for every input that the operator accepts; everything else
//! stays unknown, because passes rewrite on what is answered here. Symbols are sizes of at least 1, and equal
//! names are equal sizes. Sizes that follow from symbols are written as expressions (see `size`), so that the
//! same size computed twice has the same name.
//!
//! One file for each family of operators: a table of names and rules, and the rules. `values` computes what
//! integer arithmetic on shapes yields, as far as shapes are known; `graph` walks a graph in order.

mod contrib;
mod control;
mod conv;
mod elementwise;
mod graph;
mod matmul;
mod norm;
mod recurrent;
mod reduce;
mod resize;
mod sequence;
mod shape;
mod shuffle;
mod signal;
mod size;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod values;

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::hash::HashMap;
use crate::{AttributeValue, DType, Dim, Op, Shape, Tensor, TensorType, Type};
use size::Size;
use values::{Int, Ints};

pub use graph::{
    BindError, Element, Note, infer_graph, reshape_targets, unproven_outputs, with_proven_types,
};

/// One operand as inference sees it.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// Its type, if known.
    pub ty: Option<&'a Type>,
    /// Its value, if it is a constant.
    pub constant: Option<&'a Tensor>,
}

/// The types of the results of `op`, one entry for each output position; `None` where nothing is known.
/// `opset` is the version of the operator's domain. `op.inputs` tells which operands are there (the ids do not
/// matter), `inputs` what is known about each.
pub fn infer(op: &Op, opset: i64, inputs: &[Known<'_>]) -> Vec<Option<Type>> {
    let args: Vec<Arg<'_>> =
        inputs.iter().map(|k| Arg { ty: k.ty, constant: k.constant, ints: None }).collect();
    Call { op, opset, args: &args }.infer()
}

/// What is known about an operand.
#[derive(Clone, Copy, Default)]
struct Arg<'a> {
    ty: Option<&'a Type>,
    constant: Option<&'a Tensor>,
    ints: Option<&'a Ints>,
}

/// An operator with what is known about its operands.
struct Call<'a> {
    op: &'a Op,
    opset: i64,
    args: &'a [Arg<'a>],
}

/// How the results of an operator follow from its operands.
enum Rule {
    /// One result, a tensor.
    Tensor(fn(&Call<'_>) -> Option<TensorType>),
    /// Any results.
    Types(fn(&Call<'_>) -> Vec<Option<Type>>),
}

type Rules = &'static [(&'static str, Rule)];

static RULES: LazyLock<HashMap<&'static str, &'static Rule>> = LazyLock::new(|| {
    let families: [Rules; 11] = [
        control::RULES,
        conv::RULES,
        elementwise::RULES,
        matmul::RULES,
        norm::RULES,
        recurrent::RULES,
        reduce::RULES,
        resize::RULES,
        sequence::RULES,
        shape::RULES,
        shuffle::RULES,
    ];
    let rules = families.into_iter().chain([signal::RULES]);
    rules.flatten().map(|(name, rule)| (*name, rule)).collect()
});

impl<'a> Call<'a> {
    fn infer(&self) -> Vec<Option<Type>> {
        let mut types = match self.rule() {
            Some(Rule::Tensor(rule)) => vec![rule(self).map(Type::Tensor)],
            Some(Rule::Types(rule)) => rule(self),
            None => Vec::new(),
        };
        types.resize(self.op.outputs.len(), None);
        types
    }

    fn rule(&self) -> Option<&'static Rule> {
        // Within a function, an attribute may be the caller's to give.
        let open = |a: &crate::Attribute| matches!(a.value, AttributeValue::Reference { .. });
        if self.opset < 1 || self.op.attributes.iter().any(open) {
            return None;
        }
        let name = self.op.op_type.as_str();
        match self.op.domain.as_str() {
            "com.microsoft" => contrib::RULES.iter().find(|(known, _)| *known == name).map(|(_, rule)| rule),
            _ if self.op.is_standard() => RULES.get(name).copied(),
            _ => None,
        }
    }

    /// True when the operand at this position is not left out.
    fn has(&self, slot: usize) -> bool {
        self.op.input(slot).is_some()
    }

    fn ty(&self, slot: usize) -> Option<&'a Type> {
        self.args.get(slot)?.ty
    }

    fn tensor(&self, slot: usize) -> Option<&'a TensorType> {
        self.ty(slot)?.tensor()
    }

    fn dtype(&self, slot: usize) -> Option<DType> {
        self.tensor(slot).map(|t| t.dtype)
    }

    fn shape(&self, slot: usize) -> Option<&'a [Dim]> {
        self.tensor(slot)?.shape.as_deref()
    }

    /// A tensor with the shape of an operand.
    fn like(&self, slot: usize, dtype: DType) -> TensorType {
        tensor(dtype, self.shape(slot).map(<[Dim]>::to_vec))
    }

    fn constant(&self, slot: usize) -> Option<&'a Tensor> {
        self.args.get(slot)?.constant
    }

    /// The elements of an integer operand of at most one dimension, as far as they are known.
    fn ints(&self, slot: usize) -> Option<Cow<'a, Ints>> {
        let arg = self.args.get(slot)?;
        match arg.ints {
            Some(ints) => Some(Cow::Borrowed(ints)),
            None => Ints::of(arg.constant?).map(Cow::Owned),
        }
    }

    /// The elements of an integer operand of at most one dimension, if all are known numbers.
    fn known_ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.ints(slot)?.known()
    }

    /// The one element of an integer operand, as far as it is known.
    fn scalar(&self, slot: usize) -> Option<Size> {
        match self.ints(slot)?.elements.as_slice() {
            [only] => only.size.clone(),
            _ => None,
        }
    }

    /// How many elements an operand of one dimension has, if known.
    fn length(&self, slot: usize) -> Option<usize> {
        match self.shape(slot)? {
            [Dim::Known(n)] => usize::try_from(*n).ok().filter(|n| *n <= MAX_RANK),
            _ => None,
        }
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.op.int(name).unwrap_or(default)
    }

    /// An element type that an attribute names; `None` when it is not there or names none.
    fn dtype_attribute(&self, name: &str) -> Option<DType> {
        DType::from_code(i32::try_from(self.op.int(name)?).ok()?)
    }

    /// A list of integers that newer operator sets take as an operand and older ones as an attribute.
    fn list(&self, slot: usize, name: &str) -> List {
        if self.has(slot) {
            return match self.known_ints(slot) {
                Some(list) => List::Known(list),
                None => List::Unknown(self.length(slot)),
            };
        }
        self.op.ints(name).map_or(List::Absent, |list| List::Known(list.to_vec()))
    }

    /// An axis attribute as a position among `rank` dimensions.
    fn axis(&self, name: &str, default: i64, rank: usize) -> Option<usize> {
        axis(self.int(name, default), rank)
    }
}

/// No tensor has more dimensions; a file that says otherwise is not followed.
const MAX_RANK: usize = 1024;

/// A list of integers that an operator is given, such as axes.
enum List {
    Absent,
    /// Given, but not known; its length may be.
    Unknown(Option<usize>),
    Known(Vec<i64>),
}

/// An axis, counted from the back when negative, as a position below `rank`.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let at = if axis < 0 { axis.checked_add(rank)? } else { axis };
    if (0..rank).contains(&at) { usize::try_from(at).ok() } else { None }
}

/// Axes as positions below `rank`, in the order given; `None` when one is out of range or given twice.
fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    let axes = list.iter().map(|&a| axis(a, rank)).collect::<Option<Vec<_>>>()?;
    let mut seen = vec![false; rank];
    axes.iter().all(|&a| !std::mem::replace(&mut seen[a], true)).then_some(axes)
}

/// The dimension of a size that may be unknown.
fn dim(size: Option<Size>) -> Dim {
    size.map_or(Dim::Unknown, |s| s.dim())
}

/// The product of dimensions.
fn product(dims: &[Dim]) -> Option<Size> {
    if dims.contains(&Dim::Known(0)) {
        return Some(Size::Known(0));
    }
    dims.iter().try_fold(Size::Known(1), |product, d| product.mul(&Size::of(d)?))
}

/// A dimension that two operands must have alike: what is known of either.
fn unify(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(x), Dim::Known(y)) if x != y => None,
        (Dim::Known(_), _) => Some(a.clone()),
        (_, Dim::Known(_)) => Some(b.clone()),
        (Dim::Symbol(_), _) => Some(a.clone()),
        _ => Some(b.clone()),
    }
}

/// The dimension that a pair broadcasts to; `None` when it certainly does not.
fn broadcast_dim(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(1), d) | (d, Dim::Known(1)) => Some(d.clone()),
        (Dim::Known(x), Dim::Known(y)) if x != y => None,
        // Beside a size other than 1, the other one is the same or 1.
        (Dim::Known(_), _) => Some(a.clone()),
        (_, Dim::Known(_)) => Some(b.clone()),
        _ if a.same(b) => Some(a.clone()),
        // Either may be 1.
        _ => Some(Dim::Unknown),
    }
}

/// The shape that two shapes broadcast to, in both directions; `None` when they certainly do not.
fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let (front, back) = long.split_at(long.len() - short.len());
    let mut shape = front.to_vec();
    for (x, y) in back.iter().zip(short) {
        shape.push(broadcast_dim(x, y)?);
    }
    Some(shape)
}

/// A tensor type.
fn tensor(dtype: DType, shape: impl Into<Option<Shape>>) -> TensorType {
    TensorType { dtype, shape: shape.into() }
}

/// A shape of this rank with nothing else known.
fn of_rank(rank: usize) -> Shape {
    vec![Dim::Unknown; rank]
}
