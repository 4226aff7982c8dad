//! Coefficients: a constant array times or divided by computed tensors.

use dmopt_ir::{DType, Dim, Shape, Tensor};

use super::Expr;

/// A file may say that a tensor has any number of channels; no list is made of more than this.
pub const MAX_CHANNELS: u64 = 1 << 24;

/// A constant that broadcasts against the tensor it scales, in f64.
#[derive(Clone, PartialEq, Debug)]
pub struct Array {
    /// Sizes, without leading ones; empty for a scalar.
    pub dims: Vec<u64>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Array {
    /// A scalar.
    pub fn scalar(value: f64) -> Array {
        Array { dims: Vec::new(), data: vec![value] }
    }

    /// An array; one element is a scalar whatever its rank, and leading ones are dropped.
    pub fn new(dims: &[u64], data: Vec<f64>) -> Array {
        let dims = if data.len() == 1 { &[] } else { &dims[dims.iter().take_while(|&&d| d == 1).count()..] };
        Array { dims: dims.to_vec(), data }
    }

    /// The one value of a scalar.
    pub fn as_scalar(&self) -> Option<f64> {
        if self.dims.is_empty() { self.data.first().copied() } else { None }
    }

    /// True for the scalar 1.
    pub fn is_one(&self) -> bool {
        self.as_scalar() == Some(1.0)
    }

    /// True when every element is zero.
    pub fn is_zero(&self) -> bool {
        self.data.iter().all(|&v| v == 0.0)
    }

    /// Each element changed.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array { dims: self.dims.clone(), data: self.data.iter().map(|&v| f(v)).collect() }
    }

    /// Elementwise with broadcasting; `None` when the shapes do not fit, or what comes of it is larger than both.
    pub fn zip(&self, other: &Array, f: impl Fn(f64, f64) -> f64) -> Option<Array> {
        if self.dims == other.dims {
            let data = self.data.iter().zip(&other.data).map(|(&a, &b)| f(a, b)).collect();
            return Some(Array { dims: self.dims.clone(), data });
        }
        match (self.as_scalar(), other.as_scalar()) {
            (Some(a), _) => return Some(other.map(|b| f(a, b))),
            (_, Some(b)) => return Some(self.map(|a| f(a, b))),
            _ => {}
        }
        let rank = self.dims.len().max(other.dims.len());
        let dim = |a: &Array, i: usize| (i + a.dims.len()).checked_sub(rank).map_or(1, |i| a.dims[i]);
        let mut dims = Vec::with_capacity(rank);
        for i in 0..rank {
            dims.push(match (dim(self, i), dim(other, i)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => return None,
            });
        }
        let count = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))? as usize;
        if count > self.data.len().max(other.data.len()) {
            return None;
        }
        let at = |a: &Array, mut flat: usize| {
            let (mut index, mut stride) = (0, 1);
            for i in (0..rank).rev() {
                let (here, size) = (flat % dims[i] as usize, dim(a, i) as usize);
                flat /= dims[i] as usize;
                if size > 1 {
                    index += here * stride;
                }
                stride *= size;
            }
            a.data[index]
        };
        let data = (0..count).map(|i| f(at(self, i), at(other, i))).collect();
        Some(Array { dims, data })
    }

    /// The sum.
    pub fn plus(&self, other: &Array) -> Option<Array> {
        self.zip(other, |a, b| a + b)
    }

    /// The same as this type holds it, with one element along each axis along which nothing changes then; `None` as
    /// for [`tensor`](Array::tensor).
    pub fn least(&self, dtype: DType) -> Option<Array> {
        let mut data = self.tensor(dtype)?.to_f64().ok()?;
        let mut dims = self.dims.clone();
        for axis in 0..dims.len() {
            let inner = dims[axis + 1..].iter().product::<u64>() as usize;
            let block = dims[axis] as usize * inner;
            let constant = |block: &[f64]| block.chunks(inner).all(|row| *row == block[..inner]);
            if block > inner && data.chunks(block).all(constant) {
                data = data.chunks(block).flat_map(|block| &block[..inner]).copied().collect();
                dims[axis] = 1;
            }
        }
        Some(Array::new(&dims, data))
    }

    /// The constant as a tensor of this type; `None` when an element is too large for the type, or so small that the
    /// type would drop digits of it.
    pub fn tensor(&self, dtype: DType) -> Option<Tensor> {
        let tensor = Tensor::from_f64(dtype, self.dims.clone(), &self.data).ok()?;
        let stored = tensor.to_f64().ok()?;
        let smallest = dtype.smallest_normal()?;
        let fits =
            |(&a, &b): (&f64, &f64)| !a.is_finite() || (b.is_finite() && (a == b || a.abs() >= smallest));
        self.data.iter().zip(&stored).all(fits).then_some(tensor)
    }

    /// One value for each of `channels` channels, when the array varies along the channel axis alone of a tensor
    /// with `spatial` dimensions behind it, and there are not more than [`MAX_CHANNELS`].
    pub fn per_channel(&self, channels: u64, spatial: usize) -> Option<Vec<f64>> {
        if channels > MAX_CHANNELS {
            return None;
        }
        if let Some(value) = self.as_scalar() {
            return Some(vec![value; channels as usize]);
        }
        let fits = self.dims.len() == spatial + 1
            && self.dims[0] == channels
            && self.dims[1..].iter().all(|&d| d == 1);
        fits.then(|| self.data.clone())
    }
}

/// A computed tensor that a coefficient is multiplied with, or divided by.
#[derive(Clone, PartialEq, Debug)]
pub struct Computed {
    /// How to compute it from values of the graph.
    pub expr: Expr,
    /// Its shape; it broadcasts against the tensor it scales.
    pub shape: Shape,
    /// Divided by, not multiplied with.
    pub inverse: bool,
}

/// A coefficient: `constant * parts`.
#[derive(Clone, PartialEq, Debug)]
pub struct Factor {
    /// Everything that is known.
    pub constant: Array,
    /// Everything that is computed when the model runs.
    pub parts: Vec<Computed>,
}

impl Factor {
    /// The coefficient 1.
    pub fn one() -> Factor {
        Factor::constant(Array::scalar(1.0))
    }

    /// A constant coefficient.
    pub fn constant(constant: Array) -> Factor {
        Factor { constant, parts: Vec::new() }
    }

    /// True for the coefficient 1.
    pub fn is_one(&self) -> bool {
        self.parts.is_empty() && self.constant.is_one()
    }

    /// True when it is one number for the whole tensor.
    pub fn is_single(&self) -> bool {
        self.constant.dims.is_empty() && self.parts.iter().all(|p| is_single(&p.shape))
    }

    /// The product of two coefficients; `None` when it would be larger than both, or is not certain to broadcast.
    pub fn times(&self, other: &Factor) -> Option<Factor> {
        // Mostly there is nothing to ask.
        let is_number = other.parts.is_empty() && other.constant.dims.is_empty();
        let are_alike = self.parts.is_empty() && other.parts.is_empty() && {
            self.constant.dims.is_empty() || self.constant.dims == other.constant.dims
        };
        if !is_number && !are_alike {
            let (a, b) = (self.shape()?, other.shape()?);
            let both = broadcast(&a, &b)?;
            let grows = both.len() > a.len().max(b.len()) || (both != a && both != b);
            if grows && !is_single(&a) && !is_single(&b) {
                return None;
            }
        }
        let constant = self.constant.zip(&other.constant, |x, y| x * y)?;
        Some(Factor { constant, parts: self.parts.iter().chain(&other.parts).cloned().collect() })
    }

    /// The same coefficient with its constant changed.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Factor {
        Factor { constant: self.constant.map(f), parts: self.parts.clone() }
    }

    /// Shape that constant and parts broadcast to.
    fn shape(&self) -> Option<Shape> {
        let constant: Shape = self.constant.dims.iter().map(|&d| Dim::Known(d)).collect();
        self.parts.iter().try_fold(constant, |shape, part| broadcast(&shape, &part.shape))
    }
}

/// True when a tensor of this shape has exactly one element.
pub fn is_single(shape: &[Dim]) -> bool {
    shape.iter().all(|d| *d == Dim::Known(1))
}

/// The shape that both broadcast to, where that is certain.
fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let dim = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(one.clone(), |i| s[i].clone());
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x.same(&y) => Some(x),
            (x, y) if x == one => Some(y),
            (x, y) if y == one => Some(x),
            _ => None,
        })
        .collect()
}

/// True when a tensor of shape `small` certainly broadcasts into `large` without changing its shape.
pub fn broadcasts_into(small: &[Dim], large: &[Dim]) -> bool {
    small.len() <= large.len()
        && small.iter().rev().zip(large.iter().rev()).all(|(s, l)| *s == Dim::Known(1) || s.same(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(dims: &[u64]) -> Array {
        let count = dims.iter().product::<u64>();
        Array::new(dims, (0..count).map(|v| v as f64).collect())
    }

    #[test]
    fn arrays_broadcast_as_tensors_do() {
        let sum = array(&[3, 1]).zip(&array(&[3, 2]), |a, b| 10.0 * a + b);
        assert_eq!(sum, Some(Array { dims: vec![3, 2], data: vec![0.0, 1.0, 12.0, 13.0, 24.0, 25.0] }));
        assert_eq!(array(&[3]).zip(&array(&[2]), |a, b| a + b), None);
        let column = Array { dims: vec![1 << 20, 1], data: vec![1.0; 1 << 20] };
        assert_eq!(column.zip(&Array { dims: vec![1, 1 << 20], ..column.clone() }, |a, b| a + b), None);
    }

    #[test]
    fn a_sum_of_constants_never_grows() {
        assert_eq!(array(&[3, 1]).plus(&array(&[2])), None);
        assert!(array(&[3, 1]).plus(&Array::scalar(1.0)).is_some());
    }

    #[test]
    fn a_product_of_coefficients_never_grows() {
        let (channels, pixels) = (Factor::constant(array(&[3, 1, 1])), Factor::constant(array(&[4, 5])));
        assert_eq!(channels.times(&pixels), None);
        assert!(channels.times(&Factor::constant(Array::scalar(2.0))).is_some());
    }

    #[test]
    fn a_constant_that_overflows_its_type_has_no_tensor() {
        assert!(Array::scalar(1e5).tensor(DType::F16).is_none());
        assert!(Array::scalar(f64::INFINITY).tensor(DType::F16).is_some());
    }

    #[test]
    fn a_constant_that_loses_digits_in_its_type_has_no_tensor() {
        assert!(Array::scalar(1e-8).tensor(DType::F16).is_none());
        assert!(Array::scalar(1e-46).tensor(DType::F32).is_none());
        // A value that the type holds exactly is what the file said.
        assert!(Array::scalar(2f64.powi(-24)).tensor(DType::F16).is_some());
    }
}
