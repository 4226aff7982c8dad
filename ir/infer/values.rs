//! What is known about the elements of small integer tensors: shapes, axes, indices, and arithmetic on them.
//!
//! `Shape -> Gather -> Mul -> Concat -> Reshape` chains are followed with sizes that are symbols. Elements are
//! `i64`, `i32` or `bool` (0 and 1). Shapes have one dimension at most; but exporters turn lists of padding into
//! matrices and back, so that moving elements around works with any number of dimensions.

use super::shape::{range_len, slice_positions};
use super::{Call, List, Size, axes, axis};
use crate::{AttributeValue, DType, Dim, Tensor, TensorType, Type};

/// Longer vectors are data, not shapes.
const MAX_LEN: usize = 64;

/// An element.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Int {
    pub size: Option<Size>,
    /// Certainly not negative; an unknown dimension is that much known.
    pub nonnegative: bool,
}

/// The elements of a tensor.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ints {
    dims: Vec<usize>,
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

    pub fn number(&self) -> Option<i64> {
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
        Ints { dims: vec![elements.len()], elements }
    }

    fn scalar(element: Int) -> Ints {
        Ints { dims: Vec::new(), elements: vec![element] }
    }

    /// A list that an attribute spells out.
    pub fn list(list: &[i64]) -> Ints {
        Ints::vector(list.iter().map(|&n| Int::known(n)).collect())
    }

    /// The elements of a constant, if it is an integer tensor and not large.
    pub fn of(tensor: &Tensor) -> Option<Ints> {
        if !is_tracked(tensor.dtype) || tensor.elements()? > MAX_LEN as u64 {
            return None;
        }
        let elements = tensor.to_i64().ok()?.into_iter().map(Int::known).collect();
        Some(Ints { dims: known_dims(&tensor.ty())?, elements })
    }

    /// True for a tensor of one dimension.
    pub fn is_vector(&self) -> bool {
        self.dims.len() == 1
    }

    /// The elements at these positions along an axis.
    fn pick(&self, along: usize, positions: &[usize]) -> Option<Ints> {
        let len = *self.dims.get(along)?;
        let inner: usize = self.dims[along + 1..].iter().product();
        let mut dims = self.dims.clone();
        dims[along] = positions.len();
        let mut elements = Vec::new();
        for block in self.elements.chunks(len.max(1) * inner.max(1)) {
            for at in positions {
                elements.extend_from_slice(block.get(at * inner..(at + 1) * inner)?);
            }
        }
        (elements.len() <= MAX_LEN).then_some(Ints { dims, elements })
    }

    /// With dimensions in another order.
    fn transpose(&self, perm: &[usize]) -> Ints {
        let mut strides = vec![1; self.dims.len()];
        for i in (1..self.dims.len()).rev() {
            strides[i - 1] = strides[i] * self.dims[i];
        }
        let mut positions = vec![0];
        for &p in perm {
            let steps = |at: usize| (0..self.dims[p]).map(move |i| (at, i));
            positions = positions.into_iter().flat_map(steps).map(|(at, i)| at + i * strides[p]).collect();
        }
        let elements = positions.into_iter().filter_map(|at| self.elements.get(at).cloned()).collect();
        Ints { dims: perm.iter().map(|&p| self.dims[p]).collect(), elements }
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
        let told = |e: &Int| e.size.is_some() || e.nonnegative;
        self.elements.len() <= MAX_LEN && (self.elements.is_empty() || self.elements.iter().any(told))
    }
}

/// All sizes, for a tensor of few elements.
fn known_dims(ty: &TensorType) -> Option<Vec<usize>> {
    let few = ty.elements().is_some_and(|n| n <= MAX_LEN as u64);
    if few { ty.dims()?.into_iter().map(|d| usize::try_from(d).ok()).collect() } else { None }
}

fn is_tracked(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32 | DType::Bool)
}

impl Call<'_> {
    /// The elements of the results, given their types; empty when nothing is known.
    pub fn values(&self, types: &[Option<Type>]) -> Vec<Option<Ints>> {
        let tracked = |ty: &Option<Type>| {
            let tensor = ty.as_ref().and_then(Type::tensor);
            tensor.is_some_and(|t| is_tracked(t.dtype) && (t.rank() == Some(1) || known_dims(t).is_some()))
        };
        if !types.iter().any(tracked) || self.rule().is_none() {
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
                let fits = |(dim, n): (&Dim, &usize)| dim.may_equal(&Dim::Known(*n as u64));
                let elements: usize = v.dims.iter().product();
                tracked(ty)
                    && v.worth_keeping()
                    && elements == v.elements.len()
                    && shape.len() == v.dims.len()
                    && shape.iter().zip(&v.dims).all(fits)
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
            "Transpose" => self.transposed(),
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
        Some(Ints { dims: value.dims.clone(), elements: elements.collect() })
    }

    /// The same elements in another shape.
    fn regroup(&self, types: &[Option<Type>]) -> Option<Ints> {
        let elements = self.ints(0)?.into_owned().elements;
        let ty = types.first()?.as_ref()?.tensor()?;
        let dims = match ty.shape.as_deref()? {
            [_] => vec![elements.len()],
            _ => known_dims(ty)?,
        };
        Some(Ints { dims, elements })
    }

    fn transposed(&self) -> Option<Ints> {
        let data = self.ints(0)?;
        let rank = data.dims.len();
        let perm = match self.op.ints("perm") {
            None => (0..rank).rev().collect(),
            Some(perm) => axes(perm, rank).filter(|p| p.len() == rank)?,
        };
        Some(data.transpose(&perm))
    }

    /// Along the first dimension, which is that of shapes.
    fn concat(&self) -> Option<Ints> {
        let mut elements = Vec::new();
        for slot in 0..self.args.len() {
            match self.ints(slot) {
                Some(value) if value.is_vector() => elements.extend(value.elements.iter().cloned()),
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
        if !data.is_vector() || indices.dims.len() > 1 {
            return None;
        }
        let pick = |n: i64| Some(data.elements.get(axis(n, data.elements.len())?)?.clone());
        let pick = |i: &Int| i.number().and_then(pick).unwrap_or_default();
        Some(Ints { dims: indices.dims.clone(), elements: indices.elements.iter().map(pick).collect() })
    }

    fn slice(&self) -> Option<Ints> {
        let mut data = self.ints(0)?.into_owned();
        let operand = |slot| self.known_ints(slot);
        let (starts, ends) = match self.opset {
            ..10 => (self.op.ints("starts")?.to_vec(), self.op.ints("ends")?.to_vec()),
            _ => (operand(1)?, operand(2)?),
        };
        let steps = match self.opset {
            10.. if self.has(4) => operand(4)?,
            _ => vec![1; starts.len()],
        };
        let along = match (self.opset, self.op.ints("axes")) {
            (..10, Some(list)) => axes(list, data.dims.len())?,
            (10.., _) if self.has(3) => axes(&operand(3)?, data.dims.len())?,
            _ => (0..starts.len()).collect(),
        };
        if [ends.len(), steps.len(), along.len()] != [starts.len(); 3] {
            return None;
        }
        for (i, &a) in along.iter().enumerate() {
            let len = i64::try_from(*data.dims.get(a)?).ok()?;
            let positions = slice_positions(len, starts[i], ends[i], steps[i])?;
            let positions = positions.map(usize::try_from).collect::<Result<Vec<_>, _>>().ok()?;
            data = data.pick(a, &positions)?;
        }
        Some(data)
    }

    /// Expand and Tile of one element, or to the same length.
    fn repeat(&self) -> Option<Ints> {
        let data = self.ints(0).filter(|d| d.dims.len() <= 1)?;
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
        let count = range_len(start, limit, delta).filter(|n| *n <= MAX_LEN as i64)?;
        let element = |i: i64| start.checked_add(i.checked_mul(delta)?).map(Int::known);
        (0..count).map(element).collect::<Option<Vec<_>>>().map(Ints::vector)
    }

    fn select(&self) -> Option<Ints> {
        let (condition, yes, no) = (self.ints(0)?, self.ints(1)?, self.ints(2)?);
        let operands = [&*condition, &*yes, &*no];
        let dims = common_dims(&operands)?;
        let element = |i: usize| {
            let (yes, no) = (at(&yes, i), at(&no, i));
            match at(&condition, i).number() {
                Some(0) => no.clone(),
                Some(_) => yes.clone(),
                None if yes == no => yes.clone(),
                None => Int { size: None, nonnegative: yes.nonnegative && no.nonnegative },
            }
        };
        let len: usize = dims.iter().product();
        Some(Ints { elements: (0..len).map(element).collect(), dims })
    }

    fn map(&self, f: impl Fn(&Int) -> Int) -> Option<Ints> {
        let a = self.ints(0)?;
        Some(Ints { dims: a.dims.clone(), elements: a.elements.iter().map(f).collect() })
    }

    /// An operation on two or more operands, element by element.
    fn zip(&self, f: impl Fn(&Int, &Int) -> Int) -> Option<Ints> {
        if self.opset < 7 {
            return None;
        }
        let mut result = self.ints(0)?.into_owned();
        for slot in 1..self.args.len() {
            let other = self.ints(slot)?;
            let dims = common_dims(&[&result, &other])?;
            let len: usize = dims.iter().product();
            let elements = (0..len).map(|i| f(at(&result, i), at(&other, i))).collect();
            result = Ints { dims, elements };
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
        if !data.is_vector() || self.int("noop_with_empty_axes", 0) != 0 {
            return None;
        }
        let size = data.elements.iter().try_fold(start, |sum, e| f(&sum, e.size.as_ref()?));
        let element = Int { size, nonnegative: data.elements.iter().all(|e| e.nonnegative) };
        Some(if self.int("keepdims", 1) == 0 { Ints::scalar(element) } else { Ints::vector(vec![element]) })
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
        (data.is_vector() && rest.is_empty()).then_some(parts)
    }
}

/// What operands broadcast to, where each has one element or the same dimensions.
fn common_dims(operands: &[&Ints]) -> Option<Vec<usize>> {
    let one = |o: &&&Ints| o.elements.len() == 1;
    let many = operands.iter().find(|o| !one(o));
    let rank = operands.iter().map(|o| o.dims.len()).max()?;
    let dims = many.map_or_else(|| vec![1; rank], |o| o.dims.clone());
    let fit = |o: &&&Ints| o.dims == dims || (one(o) && o.dims.len() <= dims.len());
    operands.iter().all(|o| fit(&o)).then_some(dims)
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

/// Integer division truncates towards zero: the floor where nothing is negative, and 0 just below.
fn divide(a: &Int, b: &Int) -> Int {
    let nonnegative = a.nonnegative && b.nonnegative;
    let by_number = |a: &Size, k: i64| {
        if nonnegative {
            return a.div_floor(k);
        }
        let barely_negative = k > 0 && a.plus(k - 1)?.is_nonnegative();
        if barely_negative { a.div_floor(k)?.positive() } else { None }
    };
    let size = match (&a.size, &b.size) {
        (Some(Size::Known(a)), Some(Size::Known(b))) => a.checked_div(*b).map(Size::Known),
        (Some(a), Some(b)) => a.div_exact(b).or_else(|| by_number(a, b.known()?)),
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
