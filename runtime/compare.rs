//! Elementwise comparison of outputs, and how much difference is allowed.

use approx::relative_eq;
use dmopt_ir::{DType, Safety, Tensor, TensorError};

use crate::Named;
use crate::settings::Ep;

/// Allowed difference between two floating-point outputs.
///
/// Elements `a` and `b` agree when `|a - b| <= abs` or `|a - b| <= rel * max(|a|, |b|, floor)`, where the floor is
/// the root mean square of the reference output: rounding errors of a sum scale with its terms, not with what is
/// left of them after they cancel, so an element near zero is held to the accuracy of its tensor.
/// Both zero means bit for bit the same (all NaNs count as one value).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Absolute difference, whatever the size of the elements.
    pub abs: f64,
    /// Difference relative to the larger of the two elements and the floor.
    pub rel: f64,
}

impl Tolerance {
    /// No difference at all.
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

    /// What a chain of `depth` linear operators (convolutions, matrix products, mixing sites on the longest path
    /// from an input to an output) computed in `dtype` (the coarsest floating-point type of the model) may differ
    /// by after rewrites of `class`, the worst that was applied.
    ///
    /// - `Exact`: nothing.
    /// - `Reassociates`: `rel = 8 (depth + 4) u`, with `u` the unit roundoff of `dtype`. A reordered sum of `n`
    ///   terms differs by about `sqrt(n) u` of the size of its terms; each linear operator after it carries that
    ///   difference on at the scale of its own output and adds roundings of its own that no longer coincide. Over
    ///   a chain these add up linearly at worst. The factor covers the largest of many elements and sums of some
    ///   hundred terms, the 4 keeps short chains from being judged by less than one long sum.
    /// - `Approximates`: 16 times that: another formula rounds in other places, and may cancel differently.
    ///
    /// For float32 and depth 18 this is 1.05e-5. A coefficient that is 1 % off in one of the mixing layers moves
    /// outputs by 1e-4 to 1e-2 of their size, far above it; in float16 and bfloat16, whose own roundings amount
    /// to percents at such depths, only coarser mistakes show.
    ///
    /// `abs` is the same number of smallest subnormals: below the normal range the spacing stops shrinking.
    /// For types that are no floats only equality counts, and the result is [`EXACT`](Tolerance::EXACT).
    pub fn for_class(class: Safety, dtype: DType, depth: usize) -> Tolerance {
        let Some((digits, smallest)) = precision(dtype) else { return Tolerance::EXACT };
        let factor = match class {
            Safety::Exact => return Tolerance::EXACT,
            Safety::Reassociates => 8.0,
            Safety::Approximates => 128.0,
        } * (depth as f64 + 4.0);
        Tolerance { abs: factor * 2f64.powi(smallest), rel: factor * 2f64.powi(-digits) }
    }

    /// The same for a model whose longest sum has so many terms: the root of their number over 512, if there are more. On
    /// CUDA over 32: a kernel of the processor keeps some sixteen partial sums, while there a thread adds up term after
    /// term.
    pub fn for_sums(self, terms: u64, ep: &Ep) -> Tolerance {
        let usual = match ep {
            Ep::Cpu => 512.0,
            Ep::Cuda { .. } => 32.0,
        };
        let factor = (terms as f64 / usual).sqrt().max(1.0);
        Tolerance { abs: self.abs * factor, rel: self.rel * factor }
    }

    /// What values inside the graph are held to: 64 times as much, because they have no size of their own to keep.
    /// A difference of two almost equal tensors is as inaccurate as the tensors were, however small it is. Never
    /// more than 0.2 % (unless outputs may differ by more): a coefficient that is 1 % off must show.
    pub fn inside(self) -> Tolerance {
        Tolerance { abs: self.abs * 64.0, rel: (self.rel * 64.0).min(self.rel.max(2e-3)) }
    }
}

/// Digits of the significand (unit roundoff is `2^-digits`) and exponent of the smallest subnormal.
fn precision(dtype: DType) -> Option<(i32, i32)> {
    match dtype {
        DType::F64 => Some((53, -1074)),
        DType::F32 => Some((24, -149)),
        DType::F16 => Some((11, -24)),
        DType::BF16 => Some((8, -133)),
        _ => None,
    }
}

/// How far two sets of outputs are apart.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Comparison {
    /// Elements compared.
    pub elements: u64,
    /// Elements outside the tolerance, those of `nonfinite` included.
    pub differing: u64,
    /// Elements that are NaN or infinite on one side and not the same on the other.
    pub nonfinite: u64,
    /// Largest `|a - b|` over elements that are finite on both sides.
    pub max_abs: f64,
    /// Largest `|a - b| / max(|a|, |b|, floor)` over the same elements; see [`Tolerance`] for the floor.
    pub max_rel: f64,
    /// Largest number of representable values from one element to the other, over the same elements of
    /// floating-point outputs: 1 for neighbours.
    pub max_ulp: u64,
    /// Smallest cosine of the angle between an output and its reference, over floating-point outputs and the same
    /// elements; 1 where there are none.
    pub cosine: f64,
    /// The element with the largest relative difference, or the first that differs and is not finite.
    pub worst: Option<Worst>,
    /// True when every output has the same bits on both sides (all NaNs count as one value).
    pub bit_identical: bool,
}

/// One element that differs.
#[derive(Clone, PartialEq, Debug)]
pub struct Worst {
    /// Graph output.
    pub output: String,
    /// Position along each axis.
    pub index: Vec<u64>,
    /// Value in the reference.
    pub reference: f64,
    /// Value in the candidate.
    pub candidate: f64,
}

impl Comparison {
    /// True when every element was within the tolerance.
    pub fn passed(&self) -> bool {
        self.differing == 0
    }

    /// One sentence on what differs, which is called `what` in the plural.
    pub fn describe(&self, what: &str) -> String {
        let Some(worst) = &self.worst else { return format!("{what} differ") };
        format!(
            "{} of {} {what} differ; the worst is {}{:?}: {:e} instead of {:e}",
            self.differing, self.elements, worst.output, worst.index, worst.candidate, worst.reference
        )
    }

    /// Takes the results of another comparison into this one.
    pub fn merge(&mut self, other: Comparison) {
        let rank = |c: &Comparison| (c.nonfinite > 0, c.max_rel);
        if other.worst.is_some() && (self.worst.is_none() || rank(&other) > rank(self)) {
            self.worst = other.worst;
        }
        self.elements += other.elements;
        self.differing += other.differing;
        self.nonfinite += other.nonfinite;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
        self.max_ulp = self.max_ulp.max(other.max_ulp);
        self.cosine = self.cosine.min(other.cosine);
        self.bit_identical &= other.bit_identical;
    }

    fn empty() -> Comparison {
        Comparison { cosine: 1.0, bit_identical: true, ..Comparison::default() }
    }
}

/// Outputs that cannot be compared element by element.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Mismatch {
    /// The candidate has no output of this name.
    #[error("output {0} is missing")]
    Missing(String),
    /// Another type or shape.
    #[error("output {output} is {candidate}, not {reference}")]
    Type {
        /// Graph output.
        output: String,
        /// Type in the reference.
        reference: String,
        /// Type in the candidate.
        candidate: String,
    },
    /// Data of a tensor are not there or do not fit its type.
    #[error("output {output}: {source}")]
    Data {
        /// Graph output.
        output: String,
        /// What is wrong.
        source: TensorError,
    },
}

/// Compares outputs by name. Floats are held to the tolerance, everything else to equality.
///
/// # Errors
/// See [`Mismatch`].
pub fn compare(
    reference: &[Named],
    candidate: &[Named],
    tolerance: Tolerance,
) -> Result<Comparison, Mismatch> {
    let mut total = Comparison::empty();
    for (name, a) in reference {
        let (_, b) =
            candidate.iter().find(|(n, _)| n == name).ok_or_else(|| Mismatch::Missing(name.clone()))?;
        if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
            return Err(Mismatch::Type {
                output: name.clone(),
                reference: a.ty().to_string(),
                candidate: b.ty().to_string(),
            });
        }
        let data = |source| Mismatch::Data { output: name.clone(), source };
        total.merge(compare_tensor(name, a, b, tolerance).map_err(data)?);
    }
    Ok(total)
}

fn compare_tensor(
    name: &str,
    a: &Tensor,
    b: &Tensor,
    tolerance: Tolerance,
) -> Result<Comparison, TensorError> {
    let mut result = Comparison { elements: a.elements().unwrap_or(0), ..Comparison::empty() };
    let (bytes_a, bytes_b) = (a.bytes()?, b.bytes()?);
    if bytes_a == bytes_b {
        return Ok(result);
    }
    let (x, y) = (a.to_f64()?, b.to_f64()?);
    // Integers above 2^53 may agree as f64 and still differ: bits decide what is the same.
    let width = a.dtype.bits().unwrap_or(8).div_ceil(8) as usize;
    let bits = bytes_a.chunks_exact(width).zip(bytes_b.chunks_exact(width));
    let floor = rms(&x);
    if a.dtype.is_float() {
        result.cosine = cosine(&x, &y);
    }
    let exact = !a.dtype.is_float() || tolerance == Tolerance::EXACT;
    let mut worst = None;
    for (i, ((&p, &q), (bits_p, bits_q))) in x.iter().zip(&y).zip(bits).enumerate() {
        if (p.is_nan() && q.is_nan()) || bits_p == bits_q {
            continue;
        }
        result.bit_identical = false;
        if !(p.is_finite() && q.is_finite()) {
            if result.nonfinite == 0 {
                worst = Some(i);
            }
            result.nonfinite += 1;
            result.differing += 1;
            continue;
        }
        let difference = (p - q).abs();
        let scale = p.abs().max(q.abs()).max(floor);
        let relative = if difference == 0.0 { 0.0 } else { difference / scale };
        if result.nonfinite == 0 && (worst.is_none() || relative > result.max_rel) {
            worst = Some(i);
        }
        result.max_abs = result.max_abs.max(difference);
        result.max_rel = result.max_rel.max(relative);
        if a.dtype.is_float() {
            result.max_ulp = result.max_ulp.max(rank(bits_p).abs_diff(rank(bits_q)));
        }
        let epsilon = tolerance.abs.max(tolerance.rel * floor);
        if exact || !relative_eq!(p, q, epsilon = epsilon, max_relative = tolerance.rel) {
            result.differing += 1;
        }
    }
    result.worst = worst.map(|i| Worst {
        output: name.to_string(),
        index: position(i as u64, &a.dims),
        reference: x.get(i).copied().unwrap_or(f64::NAN),
        candidate: y.get(i).copied().unwrap_or(f64::NAN),
    });
    Ok(result)
}

/// Root mean square of the finite elements; 0 without any.
fn rms(values: &[f64]) -> f64 {
    let finite = || values.iter().filter(|v| v.is_finite());
    // Scaled by the largest, so that squares of large f64 values stay finite.
    let largest = finite().fold(0.0, |m: f64, v| m.max(v.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let sum: f64 = finite().map(|v| (v / largest).powi(2)).sum();
    largest * (sum / finite().count() as f64).sqrt()
}

/// Place of a floating-point number among all of its type, both zeros at 0, from its little-endian bits.
fn rank(bits: &[u8]) -> i64 {
    let width = 8 * bits.len() as u32;
    let bits = bits.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    let sign = 1u64 << (width - 1);
    let magnitude = (bits & (sign - 1)) as i64;
    if bits & sign == 0 { magnitude } else { -magnitude }
}

/// Cosine of the angle between two vectors, over elements that are finite in both. A vector of zeros has the
/// direction of another such one and of no other.
fn cosine(x: &[f64], y: &[f64]) -> f64 {
    let pairs = || x.iter().zip(y).filter(|(p, q)| p.is_finite() && q.is_finite());
    let scale = |side: f64, value: &f64| side.max(value.abs());
    // Scaled by the largest element, so that no square overflows.
    let (m, n) = pairs().fold((0f64, 0f64), |(m, n), (p, q)| (scale(m, p), scale(n, q)));
    if m == 0.0 || n == 0.0 {
        return if m == n { 1.0 } else { 0.0 };
    }
    let (dot, xx, yy) = pairs()
        .map(|(p, q)| (p / m, q / n))
        .fold((0.0, 0.0, 0.0), |(d, a, b), (p, q)| (d + p * q, a + p * p, b + q * q));
    (dot / (f64::sqrt(xx) * f64::sqrt(yy))).clamp(-1.0, 1.0)
}

/// Index along each axis of the element at a position in row-major order.
fn position(mut flat: u64, dims: &[u64]) -> Vec<u64> {
    let mut index: Vec<u64> = dims
        .iter()
        .rev()
        .map(|&d| {
            let at = flat % d.max(1);
            flat /= d.max(1);
            at
        })
        .collect();
    index.reverse();
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f64]) -> Vec<Named> {
        vec![("y".into(), Tensor::from_f64(DType::F32, vec![values.len() as u64], values).unwrap())]
    }

    const LOOSE: Tolerance = Tolerance { abs: 0.0, rel: 1e-3 };

    #[test]
    fn equal_bits_are_identical() {
        let c = compare(&f32s(&[1.0, -2.0]), &f32s(&[1.0, -2.0]), Tolerance::EXACT).unwrap();
        assert!(c.bit_identical && c.passed());
        assert_eq!((c.elements, c.max_abs, c.worst), (2, 0.0, None));
    }

    #[test]
    fn nan_matches_only_nan() {
        assert!(compare(&f32s(&[f64::NAN]), &f32s(&[-f64::NAN]), Tolerance::EXACT).unwrap().bit_identical);
        let c = compare(&f32s(&[1.0, f64::NAN]), &f32s(&[1.0, 0.0]), LOOSE).unwrap();
        assert_eq!((c.differing, c.nonfinite), (1, 1));
        assert_eq!(c.worst.unwrap().index, [1]);
    }

    #[test]
    fn infinity_matches_only_the_same_infinity() {
        let inf = f64::INFINITY;
        assert!(compare(&f32s(&[inf, 1.0]), &f32s(&[inf, 1.0001]), LOOSE).unwrap().passed());
        assert!(!compare(&f32s(&[inf]), &f32s(&[-inf]), LOOSE).unwrap().passed());
        assert!(!compare(&f32s(&[inf]), &f32s(&[3e38]), LOOSE).unwrap().passed());
    }

    #[test]
    fn elements_near_zero_are_held_to_the_scale_of_their_tensor() {
        let c = compare(&f32s(&[100.0, 0.0]), &f32s(&[100.0, 0.01]), LOOSE).unwrap();
        assert!(c.passed());
        assert!((c.max_rel - 0.01 / 50f64.sqrt() / 10.0).abs() < 1e-9, "{}", c.max_rel);
        assert!(!compare(&f32s(&[100.0, 0.0]), &f32s(&[100.0, 0.1]), LOOSE).unwrap().passed());
    }

    #[test]
    fn worst_element_is_named_by_position() {
        let tensor = |v: f64| {
            vec![("y".into(), Tensor::from_f64(DType::F32, vec![2, 2], &[1.0, 1.0, v, 1.001]).unwrap())]
        };
        let worst = compare(&tensor(1.0), &tensor(1.5), LOOSE).unwrap().worst.unwrap();
        assert_eq!((worst.index, worst.reference, worst.candidate), (vec![1, 0], 1.0, 1.5));
    }

    #[test]
    fn without_tolerance_the_sign_of_zero_counts() {
        assert!(!compare(&f32s(&[0.0]), &f32s(&[-0.0]), Tolerance::EXACT).unwrap().passed());
        assert!(compare(&f32s(&[0.0]), &f32s(&[-0.0]), LOOSE).unwrap().passed());
    }

    #[test]
    fn integers_must_be_equal() {
        let ints = |v| vec![("y".into(), Tensor::i64s(&[v]))];
        assert!(!compare(&ints(1_000_000), &ints(1_000_001), LOOSE).unwrap().passed());
    }

    #[test]
    fn large_integers_that_differ_in_the_last_bit_differ() {
        let ints = |v| vec![("y".into(), Tensor::i64s(&[v]))];
        assert!(!compare(&ints(1 << 60), &ints((1 << 60) + 1), LOOSE).unwrap().passed());
    }

    #[test]
    fn other_shapes_and_missing_outputs_are_mismatches() {
        let e = compare(&f32s(&[1.0]), &f32s(&[1.0, 1.0]), LOOSE).unwrap_err();
        assert_eq!(e.to_string(), "output y is float[2], not float[1]");
        assert_eq!(compare(&f32s(&[1.0]), &[], LOOSE).unwrap_err(), Mismatch::Missing("y".into()));
    }

    #[test]
    fn ulps_count_representable_values() {
        let ulps = |dtype, a: f64, b: f64| {
            let tensor = |v| vec![("y".into(), Tensor::from_f64(dtype, vec![1], &[v]).unwrap())];
            compare(&tensor(a), &tensor(b), LOOSE).unwrap().max_ulp
        };
        assert_eq!(ulps(DType::F32, 1.0, 1.0 + 3.0 * 2f64.powi(-23)), 3);
        assert_eq!(ulps(DType::F64, -1.0, -1.0 - f64::EPSILON), 1);
        assert_eq!(ulps(DType::F16, 1.0, 1.0 + 2f64.powi(-10)), 1);
        assert_eq!(ulps(DType::BF16, 1.0, 1.0 - 2f64.powi(-8)), 1);
        assert_eq!(ulps(DType::F32, 0.0, -0.0), 0);
        assert_eq!(ulps(DType::F32, f64::from(f32::from_bits(1)), -f64::from(f32::from_bits(2))), 3);
    }

    #[test]
    fn the_cosine_tells_directions_apart() {
        let cosine = |a: &[f64], b: &[f64]| compare(&f32s(a), &f32s(b), LOOSE).unwrap().cosine;
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert!((cosine(&[1.0, 0.0], &[3.0, 4.0]) - 0.6).abs() < 1e-12);
        assert!((cosine(&[1.0, 2.0], &[-1.0, -2.0]) + 1.0).abs() < 1e-12);
        assert_eq!(cosine(&[1.0, 2.0], &[1.0, 2.0]), 1.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
        assert!((cosine(&[3e38, 3e38], &[3e38, 0.0]) - 0.5f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn merging_keeps_the_worst() {
        let mut total = compare(&f32s(&[1.0]), &f32s(&[1.1]), LOOSE).unwrap();
        total.merge(compare(&f32s(&[1.0]), &f32s(&[1.5]), LOOSE).unwrap());
        total.merge(compare(&f32s(&[1.0]), &f32s(&[1.0]), LOOSE).unwrap());
        assert_eq!((total.elements, total.differing, total.bit_identical), (3, 2, false));
        assert_eq!(total.worst.unwrap().candidate, 1.5);
    }

    #[test]
    fn tolerance_follows_class_type_and_depth() {
        use Safety::{Approximates, Exact, Reassociates};
        assert_eq!(Tolerance::for_class(Exact, DType::F32, 50), Tolerance::EXACT);
        assert_eq!(Tolerance::for_class(Reassociates, DType::I64, 50), Tolerance::EXACT);
        let usual = Tolerance::for_class(Reassociates, DType::F32, 4);
        assert_eq!((usual.for_sums(1, &Ep::Cpu), usual.for_sums(512, &Ep::Cpu)), (usual, usual));
        assert_eq!(usual.for_sums(2048, &Ep::Cpu).rel, 2.0 * usual.rel);
        assert_eq!(usual.for_sums(2048, &Ep::cuda(0)).rel, 8.0 * usual.rel);
        let rel = |class, dtype, depth| Tolerance::for_class(class, dtype, depth).rel;
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.01;
        assert!(near(rel(Reassociates, DType::F32, 18), 1.05e-5));
        assert!(near(rel(Reassociates, DType::F32, 1), 2.38e-6));
        assert!(near(rel(Reassociates, DType::F64, 18), 1.95e-14));
        assert!(near(rel(Reassociates, DType::F16, 18), 8.59e-2));
        assert!(near(rel(Reassociates, DType::BF16, 1), 1.56e-1));
        assert!(near(rel(Approximates, DType::F32, 18), 1.68e-4));
    }
}
