//! Elements that are not in memory as they are wanted, but put together when they are read: a part of a weight, or a
//! weight with other numbers, which need no memory of their own then.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use crate::{DType, parallel};

/// Runs of a block of memory at equal distances, their elements multiplied or as they are.
#[derive(Clone, PartialEq, Debug)]
pub struct Derived {
    /// Bytes from the beginning of one run to that of the next, more than 0; the block is a whole number of them.
    stride: usize,
    /// The place of a run within such a stretch. It holds whole elements.
    run: Range<usize>,
    scale: Option<Scale>,
    /// What the runs are in.
    block: Bytes,
}

/// Factors for the elements of a block.
#[derive(Clone, PartialEq, Debug)]
struct Scale {
    dtype: DType,
    /// So many elements after each other share a factor, more than 0.
    each: usize,
    /// How many elements with factors stand before the block.
    skipped: usize,
    by: Arc<[f64]>,
}

/// Bytes of elements with one factor for which it pays to work out which of them fit.
const LONG_ENOUGH: usize = 128;

/// Bytes that a processor looks at before it asks for more: as long as waking a thread takes, and some.
const SHARE: usize = 1 << 18;

impl Derived {
    /// Bytes to read at a time where all of them are wanted one after the other: a whole number of elements of any type.
    pub const PIECE: usize = 1 << 16;

    /// Runs of a block as they are. The stride is more than 0, and the block a whole number of them.
    pub(crate) fn strided(block: Bytes, stride: usize, run: Range<usize>) -> Derived {
        Derived { stride, run, scale: None, block }
    }

    /// A block of floating-point elements, each `each` of them multiplied by a factor and rounded to the type. `None` when
    /// there are no such numbers, or one comes to lie beyond what the type holds, or so close to zero that the type drops
    /// digits of it.
    pub(crate) fn scaled(dtype: DType, block: Bytes, each: usize, by: Vec<f64>) -> Option<Derived> {
        let (smallest, largest) = (dtype.smallest_normal()?, dtype.largest()?);
        let width = dtype.bits()? as usize / 8;
        let each = each.clamp(1, block.len().max(1));
        debug_assert!(by.len() >= (block.len() / width).div_ceil(each), "a factor for each run");
        let fits = |(run, by): (&[u8], &f64)| {
            if !by.is_finite() {
                return false;
            }
            let by = by.abs();
            if dtype == DType::F32 && run.len() >= LONG_ENOUGH && surely_fit(run, by) {
                return true;
            }
            let (least, most) = magnitudes(dtype, run, smallest, largest);
            most * by <= largest && (by == 0.0 || least * by >= smallest)
        };
        let runs = (SHARE / (each * width)).max(1);
        let shares: Vec<(&[u8], &[f64])> = block.chunks(runs * each * width).zip(by.chunks(runs)).collect();
        let all_fit = parallel::in_order(
            &shares,
            |(block, by)| block.chunks(each * width).zip(*by).all(fits),
            |_, fit| if fit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) },
        );
        if all_fit.is_break() {
            return None;
        }
        let scale = Some(Scale { dtype, each, skipped: 0, by: by.into() });
        Some(Derived { stride: block.len().max(1), run: 0..block.len(), scale, block })
    }

    /// Runs of this, which is a whole number of such strides: of what is one block, parts of every run, or some of the
    /// runs. Others would be runs of runs.
    pub(crate) fn cut(&self, stride: usize, run: Range<usize>) -> Option<Derived> {
        if self.run == (0..self.stride) {
            return Some(Derived { stride, run, ..self.clone() });
        }
        let each = self.run.len();
        if stride == each {
            let run = self.run.start + run.start..self.run.start + run.end;
            return Some(Derived { run, ..self.clone() });
        }
        let are_whole = run.start.is_multiple_of(each) && run.end.is_multiple_of(each);
        if stride != self.len() || !are_whole {
            return None;
        }
        let runs = run.start / each * self.stride..run.end / each * self.stride;
        let scale = self.scale.clone().map(|scale| scale.after(runs.start));
        Some(Derived { block: self.block.slice(runs), scale, ..self.clone() })
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.block.len() / self.stride * self.run.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends these bytes, which begin and end at elements.
    pub fn read(&self, bytes: Range<usize>, into: &mut Vec<u8>) {
        let (mut at, end) = (bytes.start, bytes.end.min(self.len()));
        into.reserve(end.saturating_sub(at));
        while at < end {
            let (stretch, within) = (at / self.run.len(), at % self.run.len());
            let from = stretch * self.stride + self.run.start + within;
            let count = (self.run.len() - within).min(end - at);
            match &self.scale {
                None => into.extend_from_slice(&self.block[from..from + count]),
                Some(scale) => scale.append(&self.block, from..from + count, into),
            }
            at += count;
        }
    }

    /// All of them.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        self.read(0..self.len(), &mut all);
        all
    }
}

impl Scale {
    /// The factors of what comes after so many bytes of the block.
    fn after(self, bytes: usize) -> Scale {
        let width = self.dtype.bits().map_or(1, |bits| bits as usize / 8);
        Scale { skipped: self.skipped + bytes / width, ..self }
    }

    /// Appends the elements in these bytes of a block, multiplied.
    fn append(&self, block: &[u8], bytes: Range<usize>, into: &mut Vec<u8>) {
        let from = &block[bytes.clone()];
        match self.dtype {
            DType::F64 => self.multiply(from, bytes.start, into, f64::from_le_bytes, f64::to_le_bytes),
            DType::F16 => self.multiply(
                from,
                bytes.start,
                into,
                |c| f16::from_le_bytes(c).to_f64(),
                |v| f16::from_f64(v).to_le_bytes(),
            ),
            DType::BF16 => self.multiply(
                from,
                bytes.start,
                into,
                |c| bf16::from_le_bytes(c).to_f64(),
                |v| bf16::from_f64(v).to_le_bytes(),
            ),
            // `scaled` takes no other.
            _ => self.multiply(
                from,
                bytes.start,
                into,
                |c| f32::from_le_bytes(c).into(),
                |v| (v as f32).to_le_bytes(),
            ),
        }
    }

    fn multiply<const N: usize>(
        &self,
        from: &[u8],
        start: usize,
        into: &mut Vec<u8>,
        read: impl Fn([u8; N]) -> f64,
        write: impl Fn(f64) -> [u8; N],
    ) {
        let (mut from, mut element) = (from.as_chunks::<N>().0, self.skipped + start / N);
        let before = into.len();
        into.resize(before + from.len() * N, 0);
        let mut to = into[before..].as_chunks_mut::<N>().0;
        while !from.is_empty() {
            let by = self.by[element / self.each];
            let count = (self.each - element % self.each).min(from.len());
            let (of_run, others) = from.split_at(count);
            let (results, rest) = to.split_at_mut(count);
            of_run.iter().zip(results).for_each(|(from, to)| *to = write(read(*from) * by));
            (from, to, element) = (others, rest, element + count);
        }
    }
}

/// True if the products of these elements of f32 with a factor surely have all digits and are finite. Of nearly every weight
/// nothing else has to be known, and it is seen many elements at a time: magnitudes of f32 are in the order of their bits,
/// and one beyond the first or the last that fits makes a difference negative. Zero always fits.
fn surely_fit(elements: &[u8], by: f64) -> bool {
    let first = (f64::from(f32::MIN_POSITIVE) / by) as f32;
    let last = (f64::from(f32::MAX) / by) as f32;
    // One more on either side makes up for the rounding of the bounds.
    let first = first.max(f32::MIN_POSITIVE).next_up();
    let last = last.min(f32::MAX).next_down();
    if first > last {
        return false;
    }
    let (first, last) = (first.to_bits() as i32, last.to_bits() as i32);
    let beyond = elements.as_chunks::<4>().0.iter().fold(0, |beyond, c| {
        let bits = i32::from_le_bytes(*c) & i32::MAX;
        let above_first = if bits == 0 { 0 } else { bits - first };
        beyond | above_first | (last - bits)
    });
    beyond >= 0
}

/// The smallest and the largest magnitude of elements, of those that are not below the smallest with all digits, and of
/// those that are finite.
fn magnitudes(dtype: DType, elements: &[u8], smallest: f64, largest: f64) -> (f64, f64) {
    fn of(values: impl Iterator<Item = f64>, smallest: f64, largest: f64) -> (f64, f64) {
        values.map(f64::abs).fold((f64::INFINITY, 0.0), |(least, most), v| {
            (
                if v >= smallest && v < least { v } else { least },
                if v <= largest && v > most { v } else { most },
            )
        })
    }
    match dtype {
        DType::F32 => {
            of(elements.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c).into()), smallest, largest)
        }
        DType::F64 => of(elements.as_chunks().0.iter().map(|c| f64::from_le_bytes(*c)), smallest, largest),
        DType::F16 => {
            of(elements.as_chunks().0.iter().map(|c| f16::from_le_bytes(*c).to_f64()), smallest, largest)
        }
        _ => of(elements.as_chunks().0.iter().map(|c| bf16::from_le_bytes(*c).to_f64()), smallest, largest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Storage, Tensor};

    fn scaled(dtype: DType, values: &[f64], each: usize, by: &[f64]) -> Option<Vec<f64>> {
        let dims = vec![values.len() as u64];
        let tensor = Tensor::from_f64(dtype, dims.clone(), values).unwrap();
        let Storage::Raw(block) = tensor.storage else { panic!() };
        let derived = Derived::scaled(dtype, block, each, by.to_vec())?;
        Some(Tensor::raw(dtype, dims, derived.bytes()).to_f64().unwrap())
    }

    #[test]
    fn runs_of_every_type_are_multiplied_by_their_factors() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let product = scaled(dtype, &[1.0, 2.0, -3.0, 4.0, 0.0], 2, &[2.0, 0.5, 3.0]);
            assert_eq!(product, Some(vec![2.0, 4.0, -1.5, 2.0, 0.0]), "{dtype}");
        }
        assert_eq!(scaled(DType::F32, &[], 2, &[]), Some(vec![]));
    }

    #[test]
    fn a_product_that_overflows_or_loses_digits_is_none() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let (smallest, largest) = (dtype.smallest_normal().unwrap(), dtype.largest().unwrap());
            for (values, by) in [
                ([largest, 1.0], 2.0),
                ([1.0, smallest], 0.5),
                ([1.0, 1.0], f64::NAN),
                ([1.0, 0.0], f64::INFINITY),
            ] {
                assert_eq!(scaled(dtype, &values, 2, &[by]), None, "{dtype} {values:?} {by}");
                // The same numbers where the factor is another one.
                assert!(scaled(dtype, &[1.0, 1.0, values[0], values[1]], 2, &[1.0, 1.0]).is_some());
            }
            let harmless = [f64::INFINITY, smallest / 2.0, 0.0];
            assert!(scaled(dtype, &harmless, 3, &[2.0]).is_some(), "{dtype}");
            assert_eq!(scaled(dtype, &[largest, smallest], 2, &[0.0]), Some(vec![0.0, 0.0]), "{dtype}");
        }
        assert!(scaled(DType::F32, &[f64::NAN], 1, &[2.0]).unwrap()[0].is_nan());
        assert_eq!(Derived::scaled(DType::I32, Bytes::from_static(&[1; 4]), 1, vec![1.0]), None);
    }

    /// Factors near to where the first or the last product gets lost, of elements near to the ends of their type.
    #[test]
    fn a_product_is_none_just_where_one_of_its_elements_is_lost() {
        let (smallest, largest) = (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX));
        arbtest::arbtest(|u| {
            let ends = [smallest, 1.0, largest];
            let near = |u: &mut arbtest::arbitrary::Unstructured<'_>| {
                let value = *u.choose(&ends)? as f32;
                Ok(f64::from(f32::from_bits(value.to_bits().saturating_add_signed(u.int_in_range(-3..=3)?))))
            };
            let value = near(u)?;
            let by = near(u)? / near(u)?;
            let by = f64::from_bits(by.to_bits().saturating_add_signed(u.int_in_range(-3..=3)?));
            let (product, is_normal) = (value * by, value >= smallest);
            let overflows = value.is_finite() && product > largest;
            let loses_digits = is_normal && by != 0.0 && product < smallest;
            let fits = by.is_finite() && !overflows && !loses_digits;
            // Among zeros, which always fit, in a run that is short and in one that is long.
            let (value, by) =
                (if u.arbitrary()? { -value } else { value }, if u.arbitrary()? { -by } else { by });
            for zeros in [0, 70] {
                let values = [vec![0.0; zeros], vec![value]].concat();
                assert_eq!(scaled(DType::F32, &values, 71, &[by]).is_some(), fits, "{value} {by} {zeros}");
            }
            Ok(())
        });
    }

    #[test]
    fn parts_of_parts_of_a_scaled_tensor_are_those_of_the_product() {
        arbtest::arbtest(|u| {
            let dims: Vec<u64> = (0..3).map(|_| u.int_in_range(1..=40)).collect::<Result<_, _>>()?;
            let count = dims.iter().product::<u64>() as usize;
            let each = u.int_in_range(1..=count + 1)?;
            let values: Vec<f64> = (0..count).map(|n| n as f64).collect();
            let tensor = Tensor::from_f64(DType::F32, dims.clone(), &values).unwrap();
            let by = |run: usize| run as f64 - 1.0;
            let product = |(i, v): (usize, &f64)| f64::from((v * by(i / each)) as f32);
            let products: Vec<f64> = values.iter().enumerate().map(product).collect();
            let whole = tensor.scaled(each, by).unwrap().unwrap();
            assert_eq!(whole.to_f64().unwrap(), products);
            let mut part = whole;
            let mut plain = Tensor::from_f64(DType::F32, dims, &products).unwrap();
            for _ in 0..3 {
                let axis = u.choose_index(3)?;
                let start = u.int_in_range(0..=part.dims[axis])?;
                let range = start..u.int_in_range(start..=part.dims[axis])?;
                part = part.slice(axis, range.clone()).unwrap();
                plain = plain.slice(axis, range).unwrap();
                assert_eq!(part.to_f64().unwrap(), plain.to_f64().unwrap());
            }
            Ok(())
        });
    }

    #[test]
    fn parts_of_parts_of_a_weight_need_no_memory_of_their_own() {
        let values: Vec<f64> = (0..24).map(f64::from).collect();
        let weight = Tensor::from_f64(DType::F32, vec![4, 3, 2], &values).unwrap();
        let block = |tensor: &Tensor| match &tensor.storage {
            Storage::Raw(block) => block.as_ptr_range(),
            Storage::Derived(derived) => derived.block.as_ptr_range(),
            _ => panic!(),
        };
        let own = block(&weight);
        let columns = weight.slice(1, 1..3).unwrap();
        for (part, expected) in [
            (columns.slice(0, 1..2).unwrap(), vec![8.0, 9.0, 10.0, 11.0]),
            (columns.slice(1, 1..2).unwrap(), vec![4.0, 5.0, 10.0, 11.0, 16.0, 17.0, 22.0, 23.0]),
        ] {
            assert_eq!(part.to_f64().unwrap(), expected);
            let of = block(&part);
            assert!(own.start <= of.start && of.end <= own.end);
        }
    }

    #[test]
    fn large_products_are_made_piece_by_piece_when_they_are_read() {
        let values: Vec<f64> = (0..100_003).map(f64::from).collect();
        let tensor = Tensor::from_f64(DType::F32, vec![100_003], &values).unwrap();
        let product = tensor.scaled(1000, |run| run as f64).unwrap().unwrap();
        let Storage::Derived(derived) = &product.storage else { panic!("multiplied at once") };
        let mut pieces = Vec::new();
        for at in (0..derived.len()).step_by(4096) {
            derived.read(at..at + 4096, &mut pieces);
        }
        assert_eq!(pieces, derived.bytes());
        let expected = |i: usize| (i / 1000 * i) as f64;
        assert_eq!(product.to_f64().unwrap()[99_999], f64::from(expected(99_999) as f32));
        // Factors for every other element need more memory than the product.
        let fine = tensor.scaled(2, |_| 2.0).unwrap().unwrap();
        assert!(matches!(fine.storage, Storage::Raw(_)));
    }
}
