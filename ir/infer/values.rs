//! What is known about the elements of small integer tensors: shapes, axes, indices, and arithmetic on them.
//!
//! `Shape -> Gather -> Mul -> Concat -> Reshape` chains are followed with sizes that are symbols. Elements are
//! `i64`, `i32` or `bool` (0 and 1), in tensors of at most one dimension.

use super::{Call, List, Size, axis};
use crate::{AttributeValue, DType, Dim, Tensor, Type};

/// Longer vectors are data, not shapes.
const MAX_LEN: usize = 64;

/// An element.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Int {
    pub size: Option<Size>,
    /// Certainly not negative; an unknown dimension is that much known.
    pub nonnegative: bool,
}

/// The elements of a tensor of no or one dimension.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ints {
    pub scalar: bool,
    pub elements: Vec<Int>,
}

impl Int {
    pub fn new(size: Option<Size>) -> Int {
        Int { nonnegative: size.as_ref().is_some_and(Size::is_nonnegative), size }
    }

    fn known(n: i64) -> Int {
        Int::new(Some(Size::Known(n)))
    }

    fn of_dim(dim: &Dim) -> Int {
        Int { size: Size::of(dim), nonnegative: true }
    }

    /// The dimension that a shape operand asks for with this element, if it is one.
    pub fn dim(&self) -> Dim {
        match &self.size {
            Some(size) if self.nonnegative => size.dim(),
            _ => Dim::Unknown,
        }
    }

    fn number(&self) -> Option<i64> {
        self.size.as_ref()?.known()
    }

    /// False only when the two certainly differ; true only when they certainly do not.
    fn equals(&self, other: &Int) -> Option<bool> {
        let minus_one = |x: &Int| x.number().is_some_and(|n| n < 0);
        if (self.nonnegative && minus_one(other)) || (other.nonnegative && minus_one(self)) {
            return Some(false);
        }
        let difference = self.size.as_ref()?.sub(other.size.as_ref()?)?;
        difference.known().map(|d| d == 0)
    }
}

impl Ints {
    fn vector(elements: Vec<Int>) -> Ints {
        Ints { scalar: false, elements }
    }

    fn scalar(element: Int) -> Ints {
        Ints { scalar: true, elements: vec![element] }
    }

    /// The elements of a constant, if it is an integer tensor of at most one dimension and not long.
    pub fn of(tensor: &Tensor) -> Option<Ints> {
        if !is_tracked(tensor.dtype) || tensor.dims.len() > 1 || tensor.elements()? > MAX_LEN as u64 {
            return None;
        }
        let elements = tensor.to_i64().ok()?.into_iter().map(Int::known).collect();
        Some(Ints { scalar: tensor.dims.is_empty(), elements })
    }

    /// All elements as numbers.
    pub fn known(&self) -> Option<Vec<i64>> {
        self.elements.iter().map(Int::number).collect()
    }

    /// The elements as the dimensions that a shape operand asks for.
    pub fn dims(&self) -> Vec<Dim> {
        self.elements.iter().map(Int::dim).collect()
    }

    fn worth_keeping(&self) -> bool {
        self.elements.len() <= MAX_LEN && self.elements.iter().any(|e| e.size.is_some() || e.nonnegative)
    }
}

fn is_tracked(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32 | DType::Bool)
}

impl Call<'_> {
    /// The elements of the results, given their types; empty when nothing is known.
    pub fn values(&self, types: &[Option<Type>]) -> Vec<Option<Ints>> {
        let small = |ty: &Option<Type>| {
            let tensor = ty.as_ref().and_then(Type::tensor);
            tensor.is_some_and(|t| is_tracked(t.dtype) && t.rank().is_some_and(|r| r <= 1))
        };
        if !types.iter().any(small) || self.rule().is_none() {
            return Vec::new();
        }
        let values = match self.op.op_type.as_str() {
            "Split" => self.split_values(types).unwrap_or_default(),
            _ => vec![self.first_value(types)],
        };
        // A value stands only where the type agrees with its form.
        let checked = values.into_iter().zip(types).map(|(value, ty)| {
            let shape = ty.as_ref()?.tensor()?.shape.as_deref()?;
            value.filter(|v| {
                small(ty)
                    && v.worth_keeping()
                    && match shape {
                        [] => v.scalar,
                        [n] => !v.scalar && n.may_equal(&Dim::Known(v.elements.len() as u64)),
                        _ => false,
                    }
            })
        });
        checked.collect()
    }

    fn first_value(&self, types: &[Option<Type>]) -> Option<Ints> {
        match self.op.op_type.as_str() {
            "Shape" => {
                let shape = self.shape(0)?;
                let (start, end) = self.shape_range(shape.len());
                Some(Ints::vector(shape.get(start..end)?.iter().map(Int::of_dim).collect()))
            }
            "Size" => Some(Ints::scalar(Int { size: super::product(self.shape(0)?), nonnegative: true })),
            "Identity" => Some(self.ints(0)?.into_owned()),
            "Cast" | "CastLike" => self.cast(),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.regroup(types),
            "Concat" => self.concat(),
            "Gather" => self.gather(),
            "Slice" => self.slice(),
            "Expand" | "Tile" => self.repeat(),
            "ConstantOfShape" => self.fill(),
            "Range" => self.range(),
            "Where" => self.select(),
            "Neg" => self.map(|a| Int::new(a.size.as_ref().and_then(|s| s.times(-1)))),
            "Abs" => self.map(|a| match (&a.size, a.nonnegative) {
                (_, true) => a.clone(),
                (Some(Size::Known(n)), _) => Int::new(n.checked_abs().map(Size::Known)),
                _ => Int { size: None, nonnegative: true },
            }),
            "Not" => self.map(|a| Int::new(a.number().map(|n| Size::Known((n == 0) as i64)))),
            "And" => self.logic(|a, b| match (a, b) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            }),
            "Or" => self.logic(|a, b| match (a, b) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            }),
            "Equal" => self.compare(Int::equals),
            "Greater" => self.compare(|a, b| less(b, a)),
            "Less" => self.compare(less),
            "GreaterOrEqual" => self.compare(|a, b| less(a, b).map(|l| !l)),
            "LessOrEqual" => self.compare(|a, b| less(b, a).map(|l| !l)),
            "Add" => self.zip(|a, b| arithmetic(a, b, Size::add, a.nonnegative && b.nonnegative)),
            "Sub" => self.zip(|a, b| arithmetic(a, b, Size::sub, false)),
            "Mul" => self.zip(|a, b| arithmetic(a, b, Size::mul, a.nonnegative && b.nonnegative)),
            "Div" => self.zip(divide),
            "Mod" => self.zip(remainder),
            "Max" => self.zip(|a, b| arithmetic(a, b, Size::maximum, a.nonnegative || b.nonnegative)),
            "Min" => self.zip(|a, b| arithmetic(a, b, Size::minimum, a.nonnegative && b.nonnegative)),
            "ReduceProd" => self.reduce(Size::Known(1), Size::mul),
            "ReduceSum" => self.reduce(Size::Known(0), Size::add),
            _ => None,
        }
    }

    fn cast(&self) -> Option<Ints> {
        let value = self.ints(0)?;
        let to = match self.op.op_type.as_str() {
            "Cast" => self.dtype_attribute("to")?,
            _ => self.dtype(1)?,
        };
        let fits = |n: i64| match to {
            DType::I64 => true,
            DType::I32 => i32::try_from(n).is_ok(),
            DType::Bool => n == 0 || n == 1,
            _ => false,
        };
        let symbols = matches!(to, DType::I64 | DType::I32);
        let elements = value.elements.iter().map(|e| match e.number() {
            Some(n) if fits(n) => e.clone(),
            None if symbols => e.clone(),
            _ => Int::default(),
        });
        Some(Ints { scalar: value.scalar, elements: elements.collect() })
    }

    /// The same elements in another shape of at most one dimension.
    fn regroup(&self, types: &[Option<Type>]) -> Option<Ints> {
        let mut value = self.ints(0)?.into_owned();
        let rank = types.first()?.as_ref()?.tensor()?.rank()?;
        value.scalar = rank == 0;
        (rank == 1 || (rank == 0 && value.elements.len() == 1)).then_some(value)
    }

    fn concat(&self) -> Option<Ints> {
        let mut elements = Vec::new();
        for slot in 0..self.args.len() {
            match self.ints(slot) {
                Some(value) if !value.scalar => elements.extend(value.elements.iter().cloned()),
                Some(_) => return None,
                None => elements.extend(vec![Int::default(); self.length(slot)?]),
            }
            if elements.len() > MAX_LEN {
                return None;
            }
        }
        Some(Ints::vector(elements))
    }

    fn gather(&self) -> Option<Ints> {
        let (data, indices) = (self.ints(0)?, self.ints(1)?);
        let pick = |n: i64| Some(data.elements.get(axis(n, data.elements.len())?)?.clone());
        let pick = |i: &Int| i.number().and_then(pick).unwrap_or_default();
        (!data.scalar)
            .then(|| Ints { scalar: indices.scalar, elements: indices.elements.iter().map(pick).collect() })
    }

    fn slice(&self) -> Option<Ints> {
        let data = self.ints(0)?;
        let one = |slot, name, default| match self.list(slot, name) {
            List::Absent => default,
            List::Known(list) => list.first().copied(),
            List::Unknown(_) => None,
        };
        let (first, last) = match self.opset {
            ..10 => (one(usize::MAX, "starts", None)?, one(usize::MAX, "ends", None)?),
            _ => (one(1, "", None)?, one(2, "", None)?),
        };
        let step = if self.opset < 10 { 1 } else { one(4, "", Some(1))? };
        if data.scalar || step == 0 {
            return None;
        }
        let positions = super::shape::slice_positions(data.elements.len() as i64, first, last, step)?;
        let picked = positions.map(|i| usize::try_from(i).ok().and_then(|i| data.elements.get(i)).cloned());
        picked.collect::<Option<Vec<_>>>().map(Ints::vector)
    }

    /// Expand and Tile of one element, or to the same length.
    fn repeat(&self) -> Option<Ints> {
        let data = self.ints(0)?;
        let [count] = <[i64; 1]>::try_from(self.known_ints(1)?).ok()?;
        let count = usize::try_from(count).ok().filter(|n| *n <= MAX_LEN)?;
        match (data.elements.as_slice(), self.op.op_type.as_str()) {
            ([only], _) => Some(Ints::vector(vec![only.clone(); count])),
            (all, "Tile") => (all.len() * count <= MAX_LEN)
                .then(|| Ints::vector(all.iter().cloned().cycle().take(all.len() * count).collect())),
            (all, _) => (count == all.len() || count == 1).then(|| Ints::vector(all.to_vec())),
        }
    }

    fn fill(&self) -> Option<Ints> {
        let count = match self.known_ints(0)?.as_slice() {
            [] => None,
            [n] => Some(usize::try_from(*n).ok().filter(|n| *n <= MAX_LEN)?),
            _ => return None,
        };
        let Some(AttributeValue::Tensor(value)) = self.op.attribute("value") else { return None };
        let element = Int::known(*value.to_i64().ok()?.first()?);
        Some(match count {
            None => Ints::scalar(element),
            Some(n) => Ints::vector(vec![element; n]),
        })
    }

    fn range(&self) -> Option<Ints> {
        let number = |slot| self.scalar(slot)?.known();
        let (start, limit, delta) = (number(0)?, number(1)?, number(2)?);
        let count = super::shape::range_len(start, limit, delta).filter(|n| *n <= MAX_LEN as i64)?;
        let element = |i: i64| start.checked_add(i.checked_mul(delta)?).map(Int::known);
        (0..count).map(element).collect::<Option<Vec<_>>>().map(Ints::vector)
    }

    fn select(&self) -> Option<Ints> {
        let (condition, yes, no) = (self.ints(0)?, self.ints(1)?, self.ints(2)?);
        let operands = [&*condition, &*yes, &*no];
        let len = common_len(&operands)?;
        let element = |i: usize| {
            let (yes, no) = (at(&yes, i), at(&no, i));
            match at(&condition, i).number() {
                Some(0) => no.clone(),
                Some(_) => yes.clone(),
                None if yes == no => yes.clone(),
                None => Int { size: None, nonnegative: yes.nonnegative && no.nonnegative },
            }
        };
        let scalar = operands.iter().all(|o| o.scalar);
        Some(Ints { scalar, elements: (0..len).map(element).collect() })
    }

    fn map(&self, f: impl Fn(&Int) -> Int) -> Option<Ints> {
        let a = self.ints(0)?;
        Some(Ints { scalar: a.scalar, elements: a.elements.iter().map(f).collect() })
    }

    /// An operation on two or more operands, element by element.
    fn zip(&self, f: impl Fn(&Int, &Int) -> Int) -> Option<Ints> {
        if self.opset < 7 {
            return None;
        }
        let mut result = self.ints(0)?.into_owned();
        for slot in 1..self.args.len() {
            let other = self.ints(slot)?;
            let len = common_len(&[&result, &other])?;
            let elements = (0..len).map(|i| f(at(&result, i), at(&other, i))).collect();
            result = Ints { scalar: result.scalar && other.scalar, elements };
        }
        Some(result)
    }

    fn compare(&self, f: impl Fn(&Int, &Int) -> Option<bool>) -> Option<Ints> {
        self.zip(|a, b| Int::new(f(a, b).map(|v| Size::Known(v as i64))))
    }

    fn logic(&self, f: fn(Option<bool>, Option<bool>) -> Option<bool>) -> Option<Ints> {
        let truth = |i: &Int| i.number().map(|n| n != 0);
        self.compare(|a, b| f(truth(a), truth(b)))
    }

    fn reduce(&self, start: Size, f: fn(&Size, &Size) -> Option<Size>) -> Option<Ints> {
        let data = self.ints(0)?;
        match self.list(1, "axes") {
            List::Absent => {}
            List::Known(axes) if matches!(axes.as_slice(), [0] | [-1]) => {}
            _ => return None,
        }
        if data.scalar || self.int("noop_with_empty_axes", 0) != 0 {
            return None;
        }
        let size = data.elements.iter().try_fold(start, |sum, e| f(&sum, e.size.as_ref()?));
        let element = Int { size, nonnegative: data.elements.iter().all(|e| e.nonnegative) };
        Some(Ints { scalar: self.int("keepdims", 1) == 0, elements: vec![element] })
    }

    fn split_values(&self, types: &[Option<Type>]) -> Option<Vec<Option<Ints>>> {
        let data = self.ints(0)?;
        let mut rest = data.elements.as_slice();
        let mut parts = Vec::with_capacity(types.len());
        for ty in types {
            let [Dim::Known(len)] = ty.as_ref()?.tensor()?.shape.as_deref()? else { return None };
            let (part, tail) = rest.split_at_checked(usize::try_from(*len).ok()?)?;
            parts.push(Some(Ints::vector(part.to_vec())));
            rest = tail;
        }
        (!data.scalar && rest.is_empty()).then_some(parts)
    }
}

/// The length that vectors and scalars broadcast to.
fn common_len(operands: &[&Ints]) -> Option<usize> {
    let len = operands.iter().map(|o| o.elements.len()).find(|n| *n != 1).unwrap_or(1);
    operands.iter().all(|o| o.elements.len() == len || o.elements.len() == 1).then_some(len)
}

fn at(value: &Ints, i: usize) -> &Int {
    match value.elements.as_slice() {
        [only] => only,
        all => &all[i],
    }
}

fn arithmetic(a: &Int, b: &Int, f: fn(&Size, &Size) -> Option<Size>, nonnegative: bool) -> Int {
    let size = a.size.as_ref().zip(b.size.as_ref()).and_then(|(a, b)| f(a, b));
    let nonnegative = nonnegative || size.as_ref().is_some_and(Size::is_nonnegative);
    Int { size, nonnegative }
}

/// Integer division truncates towards zero, which is the floor where nothing is negative.
fn divide(a: &Int, b: &Int) -> Int {
    let nonnegative = a.nonnegative && b.nonnegative;
    let size = match (&a.size, &b.size) {
        (Some(Size::Known(a)), Some(Size::Known(b))) => a.checked_div(*b).map(Size::Known),
        (Some(a), Some(b)) => a.div_exact(b).or_else(|| match b.known() {
            Some(k) if nonnegative => a.div_floor(k),
            _ => None,
        }),
        _ => None,
    };
    Int { nonnegative: nonnegative || size.as_ref().is_some_and(Size::is_nonnegative), size }
}

/// `Mod` follows the sign of the divisor, and `fmod` that of the dividend: alike where nothing is negative.
fn remainder(a: &Int, b: &Int) -> Int {
    let nonnegative = a.nonnegative && b.nonnegative;
    let size = match (&a.size, &b.size) {
        (Some(a), Some(Size::Known(k))) if nonnegative && *k > 0 => {
            a.div_floor(*k).and_then(|q| a.sub(&q.times(*k)?))
        }
        _ => None,
    };
    Int { size, nonnegative }
}

fn less(a: &Int, b: &Int) -> Option<bool> {
    if a.number().is_some_and(|n| n < 0) && b.nonnegative {
        return Some(true);
    }
    if b.number().is_some_and(|n| n <= 0) && a.nonnegative {
        return Some(false);
    }
    let (a, b) = (a.size.as_ref()?, b.size.as_ref()?);
    if a.sub(b)?.is_nonnegative() {
        return Some(false);
    }
    b.sub(a)?.plus(-1)?.is_nonnegative().then_some(true)
}
