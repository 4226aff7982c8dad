//! Seeded random inputs, and sizes for dimensions that the model leaves open.
//!
//! Values are the same on every platform: integer arithmetic and exact conversions only.
//! - floats: uniform on [-1, 1), on a grid that every type represents exactly;
//! - integers of 8 bits, mostly pixels or quantized values: 0 to 127;
//! - wider integers, mostly indices: 0 or 1, valid on any axis of two or more;
//! - a scalar of them, mostly a count or a step, by which kernels divide: 1;
//! - bool: either.

use std::collections::BTreeMap;

use dmopt_ir::{DType, Dim, Tensor};

use crate::{Interface, Named, Port, RuntimeError};

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough for test data.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform on [-1, 1) in steps of `2^(1 - bits)`.
    fn symmetric(&mut self, bits: u32) -> f64 {
        (self.next_u64() >> (64 - bits)) as f64 / (1u64 << (bits - 1)) as f64 - 1.0
    }
}

/// A tensor of random elements; see the [module](self) for their distribution.
///
/// # Errors
/// The type itself, for strings, complex numbers and types of less than a byte, and when the tensor is too large.
pub fn random_tensor(rng: &mut Rng, dtype: DType, dims: &[u64]) -> Result<Tensor, DType> {
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or(dtype)?;
    let draws = 0..elements;
    let dims = dims.to_vec();
    let tensor = if let Some(bits) = significand(dtype) {
        Tensor::from_f64(dtype, dims, &draws.map(|_| rng.symmetric(bits)).collect::<Vec<_>>())
    } else {
        let (least, count) = match dtype {
            DType::U8 | DType::I8 => (0, 128),
            DType::Bool => (0, 2),
            _ if dims.is_empty() => (1, 1),
            _ => (0, 2),
        };
        let values: Vec<i64> = draws.map(|_| least + (rng.next_u64() % count) as i64).collect();
        Tensor::from_i64(dtype, dims, &values)
    };
    tensor.map_err(|_| dtype)
}

/// Bits of the significand, the hidden one included, for the types that random floats are made of.
fn significand(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F64 => Some(53),
        DType::F32 => Some(24),
        DType::F16 => Some(11),
        DType::BF16 => Some(8),
        _ => None,
    }
}

/// Sizes that the caller fixes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pins {
    /// Size of a symbolic dimension, by its name.
    pub dims: BTreeMap<String, u64>,
    /// Shape of an input, by its name.
    pub shapes: BTreeMap<String, Vec<u64>>,
}

/// A size for every open dimension: symbols by their name, nameless dimensions as `input.axis`.
pub type Sizes = BTreeMap<String, u64>;

/// Sizes for open dimensions, most promising first: (first axis, other axes). The first axis is mostly the batch,
/// which takes any size: with several samples, memory is that of a model in use. The others may have to survive strides,
/// windows or fixed heads.
const LADDER: [(u64, u64); 8] = [(4, 16), (1, 24), (3, 32), (2, 64), (1, 224), (2, 7), (1, 2), (1, 1)];

/// Assignments to try in order, each covering every open dimension of the inputs; a single one when nothing is
/// left open. Dimensions of the same name get the same size in all inputs.
///
/// # Errors
/// [`RuntimeError::Sizes`] when a pin contradicts the model or names something that it does not have.
pub fn assignments(interface: &Interface, pins: &Pins) -> Result<Vec<Sizes>, RuntimeError> {
    let pinned = pinned(interface, pins)?;
    let mut leading = BTreeMap::new();
    for port in &interface.inputs {
        for (axis, dim) in port.ty.shape.iter().flatten().enumerate() {
            if let Some(key) = key(port, axis, dim)
                && !pinned.contains_key(&key)
            {
                *leading.entry(key).or_insert(false) |= axis == 0;
            }
        }
    }
    let mut all: Vec<Sizes> = Vec::new();
    for (first, other) in LADDER {
        let mut sizes = pinned.clone();
        sizes.extend(leading.iter().map(|(k, &lead)| (k.clone(), if lead { first } else { other })));
        if !all.contains(&sizes) {
            all.push(sizes);
        }
    }
    Ok(all)
}

/// The open dimensions that pins decide.
fn pinned(interface: &Interface, pins: &Pins) -> Result<Sizes, RuntimeError> {
    let mut sizes = Sizes::new();
    let mut symbols: Vec<String> = Vec::new();
    let ports = || interface.inputs.iter();
    for (axis, dim, port) in
        ports().flat_map(|p| p.ty.shape.iter().flatten().enumerate().map(move |(axis, dim)| (axis, dim, p)))
    {
        let Some(key) = key(port, axis, dim) else { continue };
        if let Some(&size) = pins.dims.get(&key) {
            sizes.insert(key.clone(), size);
        }
        symbols.push(key);
    }
    if let Some(unknown) = pins.dims.keys().find(|k| !symbols.contains(k)) {
        symbols.sort();
        symbols.dedup();
        let known = if symbols.is_empty() { "none".to_string() } else { symbols.join(", ") };
        return Err(RuntimeError::Sizes(format!(
            "no input has a dimension named {unknown} (open dimensions: {known})"
        )));
    }
    for (name, shape) in &pins.shapes {
        let port = ports()
            .find(|p| &p.name == name)
            .ok_or_else(|| RuntimeError::Sizes(format!("the model has no input named {name}")))?;
        let Some(declared) = &port.ty.shape else { continue };
        if declared.len() != shape.len() {
            return Err(RuntimeError::Sizes(format!(
                "input {name} has {} dimensions, the given shape has {}",
                declared.len(),
                shape.len()
            )));
        }
        for (axis, (dim, &size)) in declared.iter().zip(shape).enumerate() {
            let conflict = |other: u64| {
                RuntimeError::Sizes(format!("axis {axis} of input {name} has size {other}, not {size}"))
            };
            match (dim, key(port, axis, dim)) {
                (Dim::Known(n), _) if *n != size => return Err(conflict(*n)),
                (_, Some(key)) => match sizes.insert(key, size) {
                    Some(other) if other != size => return Err(conflict(other)),
                    _ => {}
                },
                _ => {}
            }
        }
    }
    Ok(sizes)
}

/// Name of an open dimension; `None` for a fixed one.
fn key(port: &Port, axis: usize, dim: &Dim) -> Option<String> {
    match dim {
        Dim::Known(_) => None,
        Dim::Symbol(name) => Some(name.to_string()),
        Dim::Unknown => Some(format!("{}.{axis}", port.name)),
    }
}

/// Random tensors for every input of the interface.
///
/// # Errors
/// [`RuntimeError::InputType`] for types without random values, [`RuntimeError::Sizes`] for an input whose number
/// of dimensions is neither declared nor pinned.
pub fn random_inputs(
    interface: &Interface,
    sizes: &Sizes,
    pins: &Pins,
    seed: u64,
) -> Result<Vec<Named>, RuntimeError> {
    let mut rng = Rng::new(seed);
    let mut inputs = Vec::with_capacity(interface.inputs.len());
    for port in &interface.inputs {
        let dims = match (&port.ty.shape, pins.shapes.get(&port.name)) {
            (_, Some(shape)) => shape.clone(),
            (Some(shape), None) => shape
                .iter()
                .enumerate()
                .map(|(axis, dim)| match dim {
                    Dim::Known(n) => Some(*n),
                    _ => sizes.get(&key(port, axis, dim)?).copied(),
                })
                .collect::<Option<Vec<u64>>>()
                .ok_or_else(|| RuntimeError::Sizes(format!("input {} has no sizes", port.name)))?,
            (None, None) => {
                return Err(RuntimeError::Sizes(format!("input {} has no declared shape", port.name)));
            }
        };
        let tensor = random_tensor(&mut rng, port.ty.dtype, &dims)
            .map_err(|dtype| RuntimeError::InputType { input: port.name.clone(), dtype })?;
        inputs.push((port.name.clone(), tensor));
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmopt_ir::TensorType;

    fn port(name: &str, dtype: DType, dims: Vec<Dim>) -> Port {
        Port { name: name.into(), ty: TensorType { dtype, shape: Some(dims) } }
    }

    fn symbol(name: &str) -> Dim {
        Dim::Symbol(name.into())
    }

    fn interface(inputs: Vec<Port>) -> Interface {
        Interface { inputs, outputs: vec![] }
    }

    fn pins(dims: &[(&str, u64)], shapes: &[(&str, &[u64])]) -> Pins {
        Pins {
            dims: dims.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
            shapes: shapes.iter().map(|(k, v)| (k.to_string(), v.to_vec())).collect(),
        }
    }

    #[test]
    fn generator_matches_the_published_sequence() {
        let mut rng = Rng::new(1234567);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn floats_of_a_seed_never_change() {
        let t = random_tensor(&mut Rng::new(0), DType::F32, &[3]).unwrap();
        assert_eq!(t.to_f64().unwrap(), [0.7666215896606445, -0.13694405555725098, -0.9471324682235718]);
    }

    #[test]
    fn floats_fill_their_range_in_every_type() {
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let v = random_tensor(&mut Rng::new(7), dtype, &[40, 50]).unwrap().to_f64().unwrap();
            assert!(v.iter().all(|x| (-1.0..1.0).contains(x)), "{dtype}");
            assert!(v.iter().any(|x| *x < -0.95) && v.iter().any(|x| *x > 0.95), "{dtype}");
            assert!((v.iter().sum::<f64>() / 2000.0).abs() < 0.05, "{dtype}");
        }
    }

    #[test]
    fn integers_are_small_and_not_negative() {
        let draw = |dtype| random_tensor(&mut Rng::new(1), dtype, &[500]).unwrap().to_i64().unwrap();
        assert!(draw(DType::I64).iter().all(|v| (0..2).contains(v)));
        assert!(draw(DType::I8).iter().all(|v| (0..128).contains(v)));
        assert!(draw(DType::Bool).contains(&1) && draw(DType::Bool).contains(&0));
    }

    #[test]
    fn integers_that_are_alone_can_be_divided_by() {
        let drawn = |seed| random_tensor(&mut Rng::new(seed), DType::I64, &[]).unwrap().to_i64().unwrap();
        assert!((0..20).all(|seed| drawn(seed) == [1]));
    }

    #[test]
    fn strings_are_refused() {
        let model = interface(vec![port("s", DType::String, vec![Dim::Known(1)])]);
        let e = random_inputs(&model, &Sizes::new(), &Pins::default(), 0).unwrap_err();
        assert_eq!(e.to_string(), "input s has element type string, for which no values can be generated");
    }

    #[test]
    fn a_shared_symbol_has_one_size_in_all_inputs() {
        let model = interface(vec![
            port("a", DType::F32, vec![symbol("n"), Dim::Known(3)]),
            port("b", DType::F32, vec![Dim::Known(2), symbol("n")]),
        ]);
        let all = assignments(&model, &Pins::default()).unwrap();
        let batches: Vec<u64> = all.iter().map(|s| s["n"]).collect();
        assert_eq!(batches, [4, 1, 3, 2]);
        let inputs = random_inputs(&model, &all[2], &Pins::default(), 0).unwrap();
        assert_eq!((&inputs[0].1.dims, &inputs[1].1.dims), (&vec![3, 3], &vec![2, 3]));
    }

    #[test]
    fn a_model_without_open_dimensions_has_one_assignment() {
        let model = interface(vec![port("a", DType::F32, vec![Dim::Known(3)])]);
        assert_eq!(assignments(&model, &Pins::default()).unwrap(), [Sizes::new()]);
    }

    #[test]
    fn pins_reach_every_input_with_the_symbol() {
        let model = interface(vec![
            port("a", DType::F32, vec![symbol("n"), Dim::Unknown]),
            port("b", DType::F32, vec![symbol("n")]),
        ]);
        let pins = pins(&[], &[("a", &[5, 6])]);
        let all = assignments(&model, &pins).unwrap();
        assert_eq!(all.len(), 1);
        let inputs = random_inputs(&model, &all[0], &pins, 0).unwrap();
        assert_eq!((&inputs[0].1.dims, &inputs[1].1.dims), (&vec![5, 6], &vec![5]));
    }

    #[test]
    fn pins_that_contradict_the_model_are_errors() {
        let model = interface(vec![port("a", DType::F32, vec![symbol("n"), Dim::Known(3)])]);
        let message = |p: Pins| assignments(&model, &p).unwrap_err().to_string();
        assert_eq!(message(pins(&[], &[("a", &[1, 4])])), "axis 1 of input a has size 3, not 4");
        assert_eq!(message(pins(&[], &[("a", &[1])])), "input a has 2 dimensions, the given shape has 1");
        assert_eq!(message(pins(&[], &[("b", &[1])])), "the model has no input named b");
        assert_eq!(message(pins(&[("m", 1)], &[])), "no input has a dimension named m (open dimensions: n)");
        assert_eq!(message(pins(&[("n", 2)], &[("a", &[1, 3])])), "axis 0 of input a has size 2, not 1");
    }
}
