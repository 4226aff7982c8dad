use std::sync::Arc;

use dmopt_ir::{Attribute, AttributeValue, Builder, Storage};

use super::*;

fn run(
    op: &str,
    opset: i64,
    attributes: &[(&str, AttributeValue)],
    inputs: &[&Tensor],
    allow: Safety,
) -> Answer<Evaluated> {
    let mut names = Builder::new("f", Arc::default());
    let operands = (0..inputs.len()).map(|slot| Some(names.value(&slot.to_string()))).collect();
    let mut op = Op::new(op, operands, vec![None]);
    op.attributes = attributes.iter().map(|(name, value)| Attribute::new(*name, value.clone())).collect();
    let inputs: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
    evaluate(&op, opset, &inputs, allow, u64::MAX)
}

/// Evaluates an operator with one output.
fn eval(op: &str, opset: i64, attributes: &[(&str, AttributeValue)], inputs: &[&Tensor]) -> Answer<Tensor> {
    run(op, opset, attributes, inputs, Safety::Reassociates).map(|mut all| all.results.remove(0))
}

fn exact(op: &str, inputs: &[&Tensor]) -> Answer<Evaluated> {
    run(op, 17, &[], inputs, Safety::Exact)
}

fn floats(dtype: DType, dims: &[u64], values: &[f64]) -> Tensor {
    Tensor::from_f64(dtype, dims.to_vec(), values).unwrap()
}

fn f32s(dims: &[u64], values: &[f64]) -> Tensor {
    floats(DType::F32, dims, values)
}

fn ints(dims: &[u64], values: &[i64]) -> Tensor {
    Tensor::from_i64(DType::I64, dims.to_vec(), values).unwrap()
}

#[test]
fn operands_broadcast_both_ways() {
    let y = eval("Add", 17, &[], &[&ints(&[2, 1], &[10, 20]), &ints(&[3], &[1, 2, 3])]).unwrap();
    assert_eq!(y, ints(&[2, 3], &[11, 12, 13, 21, 22, 23]));
    assert!(eval("Add", 17, &[], &[&ints(&[2], &[1, 2]), &ints(&[3], &[1, 2, 3])]).is_err());
}

#[test]
fn sums_and_products_round_as_their_type_does() {
    let bits = |t: &Tensor| t.bytes().unwrap().to_vec();
    let (a, b) = (0.1f32, 0.7f32);
    let y = eval("Mul", 17, &[], &[&f32s(&[], &[a as f64]), &f32s(&[], &[b as f64])]).unwrap();
    assert_eq!(bits(&y), (a * b).to_le_bytes());
    let y = eval("Div", 17, &[], &[&f32s(&[], &[a as f64]), &f32s(&[], &[b as f64])]).unwrap();
    assert_eq!(bits(&y), (a / b).to_le_bytes());
    let half = |v: f64| floats(DType::F16, &[], &[v]);
    assert_eq!(eval("Add", 17, &[], &[&half(2048.0), &half(1.0)]).unwrap(), half(2048.0));
}

#[test]
fn sums_in_half_precision_have_no_result() {
    for dtype in [DType::F16, DType::BF16] {
        let x = floats(dtype, &[3], &[1.0, 2.0, 3.0]);
        assert!(run("Exp", 17, &[], &[&x], Safety::Reassociates).is_ok());
        for (op, inputs) in [("ReduceSum", &[&x][..]), ("MatMul", &[&x, &x])] {
            assert_eq!(run(op, 17, &[], inputs, Safety::Reassociates), Err(HALF), "{op}");
        }
    }
}

#[test]
fn what_is_rounded_in_half_precision_is_not_exact() {
    for dtype in [DType::F16, DType::BF16] {
        let x = floats(dtype, &[3], &[1.0, 2.0, 3.0]);
        for (op, inputs) in [("Mul", &[&x, &x][..]), ("Sum", &[&x, &x]), ("Sqrt", &[&x])] {
            assert_eq!(exact(op, inputs), Err(Stop::Unsafe(Safety::Reassociates)), "{op} of {dtype}");
            assert!(run(op, 17, &[], inputs, Safety::Reassociates).is_ok(), "{op} of {dtype}");
        }
        assert!(exact("Neg", &[&x]).is_ok());
    }
}

#[test]
fn the_exact_set_has_no_operator_whose_rounding_is_free() {
    let x = f32s(&[3], &[1.0, 2.0, 3.0]);
    assert!(exact("Add", &[&x, &x]).is_ok());
    assert!(exact("Sum", &[&x, &x]).is_ok());
    assert!(exact("ReduceMax", &[&x]).is_ok());
    for (op, inputs) in [
        ("Exp", &[&x][..]),
        ("Softmax", &[&x]),
        ("MatMul", &[&x, &x]),
        ("ReduceSum", &[&x]),
        ("Sum", &[&x, &x, &x]),
    ] {
        assert_eq!(exact(op, inputs), Err(Stop::Unsafe(Safety::Reassociates)), "{op}");
        let found = run(op, 17, &[], inputs, Safety::Reassociates);
        assert_eq!(found.map(|f| f.safety), Ok(Safety::Reassociates), "{op}");
    }
    assert!(exact("ReduceSum", &[&ints(&[2], &[1, 2])]).is_ok());
}

#[test]
fn values_that_the_standard_leaves_open_are_not_computed() {
    let refused = |op: &str, inputs: &[&Tensor]| matches!(exact(op, inputs), Err(Stop::Undefined(_)));
    assert!(refused("Div", &[&ints(&[], &[1]), &ints(&[], &[0])]));
    assert!(refused("Mul", &[&ints(&[], &[i64::MAX]), &ints(&[], &[2])]));
    assert!(refused("Max", &[&f32s(&[], &[f64::NAN]), &f32s(&[], &[1.0])]));
    assert!(refused("Relu", &[&f32s(&[], &[-0.0])]));
    let narrow = Tensor::from_i64(DType::I8, vec![], &[100]).unwrap();
    assert!(refused("Add", &[&narrow, &narrow]));
    let to = |to: DType, x: &Tensor| eval("Cast", 17, &[("to", (to.code() as i64).into())], &[x]);
    assert!(to(DType::U8, &f32s(&[], &[-1.0])).is_err());
    assert!(to(DType::I32, &f32s(&[], &[f64::NAN])).is_err());
    assert_eq!(to(DType::I32, &f32s(&[], &[-2.9])).unwrap().to_i64().unwrap(), [-2]);
}

#[test]
fn casts_round_to_nearest_even_and_bools_are_not_zero() {
    let to = |to: DType, x: &Tensor| eval("Cast", 17, &[("to", (to.code() as i64).into())], &[x]).unwrap();
    assert_eq!(to(DType::F16, &f32s(&[2], &[2049.0, 2051.0])), floats(DType::F16, &[2], &[2048.0, 2052.0]));
    assert_eq!(to(DType::Bool, &f32s(&[3], &[0.0, -0.5, f64::NAN])).to_i64().unwrap(), [0, 1, 1]);
}

#[test]
fn a_gather_counts_from_either_end_and_stays_within() {
    let shape = ints(&[2], &[2, 3]);
    assert_eq!(eval("Gather", 17, &[], &[&shape, &ints(&[], &[-1])]).unwrap(), ints(&[], &[3]));
    assert!(eval("Gather", 17, &[], &[&shape, &ints(&[], &[2])]).is_err());
}

#[test]
fn gather_takes_blocks_along_any_axis() {
    let x = ints(&[2, 3], &[0, 1, 2, 10, 11, 12]);
    let y = eval("Gather", 17, &[("axis", 1.into())], &[&x, &ints(&[1, 2], &[2, 0])]).unwrap();
    assert_eq!(y, ints(&[2, 1, 2], &[2, 0, 12, 10]));
}

#[test]
fn reshape_copies_and_infers_sizes() {
    let x = ints(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    let dims = |shape: &[i64]| eval("Reshape", 17, &[], &[&x, &Tensor::i64s(shape)]).map(|t| t.dims);
    assert_eq!(dims(&[0, -1, 1]).unwrap(), [2, 3, 1]);
    assert!(dims(&[4, -1]).is_err());
    assert!(dims(&[7]).is_err());
    assert!(dims(&[-1, -1]).is_err());
}

#[test]
fn axes_are_an_attribute_or_an_operand() {
    let x = ints(&[2], &[1, 2]);
    let old = eval("Unsqueeze", 11, &[("axes", vec![0, 2].into())], &[&x]).unwrap();
    let new = eval("Unsqueeze", 13, &[], &[&x, &Tensor::i64s(&[-1, 0])]).unwrap();
    assert_eq!((&old.dims, &new.dims), (&vec![1, 2, 1], &vec![1, 2, 1]));
    assert_eq!(eval("Squeeze", 13, &[], &[&new]).unwrap(), x);
    assert!(eval("Squeeze", 13, &[], &[&new, &Tensor::i64s(&[1])]).is_err());
}

#[test]
fn slices_go_forward_and_backward() {
    let x = ints(&[5], &[0, 1, 2, 3, 4]);
    let slice = |start: i64, end: i64, step: i64| {
        let one = |v| Tensor::i64s(&[v]);
        eval("Slice", 13, &[], &[&x, &one(start), &one(end), &one(0), &one(step)])
            .map(|t| t.to_i64().unwrap())
    };
    assert_eq!(slice(1, i64::MAX, 2).unwrap(), [1, 3]);
    assert_eq!(slice(-1, i64::MIN, -1).unwrap(), [4, 3, 2, 1, 0]);
    assert_eq!(slice(-9, -9, -1).unwrap(), [0]);
    assert_eq!(slice(4, 1, 1).unwrap(), [0; 0]);
    assert_eq!(slice(3, i64::MAX, i64::MAX).unwrap(), [3]);
    assert!(slice(0, 1, 0).is_err());
}

#[test]
fn transposes_tiles_and_concatenations_move_whole_elements() {
    let x = ints(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    assert_eq!(eval("Transpose", 17, &[], &[&x]).unwrap(), ints(&[3, 2], &[0, 3, 1, 4, 2, 5]));
    let tiled = eval("Tile", 17, &[], &[&ints(&[2], &[7, 8]), &Tensor::i64s(&[2])]).unwrap();
    assert_eq!(tiled, ints(&[4], &[7, 8, 7, 8]));
    let both = eval("Concat", 17, &[("axis", (-1).into())], &[&x, &ints(&[2, 1], &[8, 9])]).unwrap();
    assert_eq!(both, ints(&[2, 4], &[0, 1, 2, 8, 3, 4, 5, 9]));
}

#[test]
fn ranges_stop_before_the_limit() {
    let range = |a: i64, b: i64, d: i64| {
        eval("Range", 17, &[], &[&ints(&[], &[a]), &ints(&[], &[b]), &ints(&[], &[d])])
            .map(|t| t.to_i64().unwrap())
    };
    assert_eq!(range(0, 5, 2).unwrap(), [0, 2, 4]);
    assert_eq!(range(3, 0, -1).unwrap(), [3, 2, 1]);
    assert_eq!(range(3, 0, 1).unwrap(), [0; 0]);
    assert!(range(0, i64::MAX, 1).is_err());
}

#[test]
fn softmax_before_operator_set_13_takes_all_later_axes_as_one() {
    let x = f32s(&[1, 2, 2], &[0.0; 4]);
    assert_eq!(eval("Softmax", 13, &[], &[&x]).unwrap(), f32s(&[1, 2, 2], &[0.5; 4]));
    assert_eq!(eval("Softmax", 11, &[], &[&x]).unwrap(), f32s(&[1, 2, 2], &[0.25; 4]));
}

#[test]
fn reductions_keep_or_drop_their_axes() {
    let x = ints(&[2, 3], &[0, 1, 2, 3, 4, 5]);
    let axes = Tensor::i64s(&[-1]);
    assert_eq!(eval("ReduceSum", 13, &[], &[&x, &axes]).unwrap(), ints(&[2, 1], &[3, 12]));
    let dropped = eval("ReduceMax", 11, &[("keepdims", 0.into()), ("axes", vec![0].into())], &[&x]).unwrap();
    assert_eq!(dropped, ints(&[3], &[3, 4, 5]));
}

#[test]
fn matrix_products_broadcast_batches_and_take_vectors() {
    let a = f32s(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
    let y = eval("MatMul", 17, &[], &[&a, &f32s(&[2], &[10.0, 1.0])]).unwrap();
    assert_eq!(y, f32s(&[2, 1], &[12.0, 34.0]));
    assert!(eval("MatMul", 17, &[], &[&a, &f32s(&[3], &[0.0; 3])]).is_err());
}

#[test]
fn hostile_sizes_are_errors() {
    let huge = |dims: Vec<u64>| Tensor {
        dtype: DType::F32,
        dims,
        storage: Storage::Absent,
        extra: Default::default(),
    };
    assert!(eval("Transpose", 17, &[], &[&huge(vec![0, u64::MAX, 3])]).is_err());
    assert!(eval("Identity", 17, &[], &[&huge(vec![u64::MAX, 3])]).is_err());
    assert!(eval("ConstantOfShape", 17, &[], &[&Tensor::i64s(&[i64::MAX, 2])]).is_err());
    assert!(eval("ConstantOfShape", 17, &[], &[&Tensor::i64s(&[-1])]).is_err());
    assert!(eval("Expand", 17, &[], &[&ints(&[], &[1]), &Tensor::i64s(&[1 << 40])]).is_err());
}

#[test]
fn other_domains_are_refused() {
    let mut op = Op::new("Identity", vec![None], vec![None]);
    op.domain = "dmopt.ops".into();
    let result = evaluate(&op, 17, &[Some(&ints(&[], &[1]))], Safety::Exact, u64::MAX);
    assert_eq!(result, Err(Stop::Beyond));
}

#[test]
fn picking_numbers_is_exact_and_rounds_nothing() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let (x, zero, six) =
            (floats(dtype, &[3], &[-1.5, 0.5, 8.0]), floats(dtype, &[], &[0.0]), floats(dtype, &[], &[6.0]));
        for (op, inputs, expected) in [
            ("Relu", &[&x][..], [0.0, 0.5, 8.0]),
            ("Min", &[&x, &six], [-1.5, 0.5, 6.0]),
            ("Max", &[&x, &zero, &six], [6.0, 6.0, 8.0]),
            ("Clip", &[&x, &zero, &six], [0.0, 0.5, 6.0]),
        ] {
            let found = exact(op, inputs).unwrap();
            assert_eq!(found.safety, Safety::Exact, "{op} of {dtype}");
            assert_eq!(found.results, [floats(dtype, &[3], &expected)], "{op} of {dtype}");
        }
    }
}

#[test]
fn clips_take_their_bounds_from_attributes_or_operands() {
    let x = f32s(&[3], &[-9.0, 1.0, 9.0]);
    let old = eval("Clip", 6, &[("min", (-2.0f32).into()), ("max", 3.0f32.into())], &[&x]);
    assert_eq!(old, Ok(f32s(&[3], &[-2.0, 1.0, 3.0])));
    assert_eq!(eval("Clip", 13, &[], &[&x, &f32s(&[], &[0.0])]), Ok(f32s(&[3], &[0.0, 1.0, 9.0])));
    let (least, most) = (ints(&[], &[0]), ints(&[], &[5]));
    assert_eq!(eval("Clip", 13, &[], &[&ints(&[2], &[-4, 7]), &least, &most]), Ok(ints(&[2], &[0, 5])));
    assert!(eval("Clip", 13, &[], &[&x, &f32s(&[1, 2], &[0.0, 1.0])]).is_err());
}

#[test]
fn a_clip_that_runtimes_differ_in_is_not_computed() {
    let (zero, infinite) = (f32s(&[], &[0.0]), f32s(&[], &[f64::INFINITY]));
    assert!(matches!(exact("Clip", &[&infinite, &zero]), Err(Stop::Undefined(_))));
    assert!(matches!(exact("Clip", &[&f32s(&[], &[f64::NAN]), &zero, &zero]), Err(Stop::Undefined(_))));
    assert!(matches!(exact("Clip", &[&f32s(&[], &[-0.0]), &zero, &zero]), Err(Stop::Undefined(_))));
    assert_eq!(eval("Clip", 17, &[], &[&infinite, &zero, &zero]), Ok(zero.clone()));
}

#[test]
fn a_permutation_names_every_axis_once() {
    let x = ints(&[2, 2], &[0, 1, 2, 3]);
    for perm in [vec![0, 0], vec![-1, 0], vec![0], vec![0, 2]] {
        assert!(eval("Transpose", 17, &[("perm", perm.into())], &[&x]).is_err());
    }
}

#[test]
fn conditions_are_bools_and_slices_backward_have_an_end() {
    let x = ints(&[2], &[1, 2]);
    assert!(eval("Where", 17, &[], &[&x, &x, &x]).is_err());
    let one = |v| Tensor::i64s(&[v]);
    assert!(eval("Slice", 17, &[], &[&x, &one(-1), &one(i64::MAX), &one(0), &one(-1)]).is_err());
    assert!(
        eval("Slice", 17, &[], &[&x, &Tensor::i64s(&[0, 0]), &Tensor::i64s(&[1, 1]), &Tensor::i64s(&[0, 0])])
            .is_err()
    );
}

#[test]
fn parts_without_elements_leave_no_gap() {
    let (none, x, y) = (ints(&[2, 0], &[]), ints(&[2, 1], &[1, 2]), ints(&[2, 2], &[3, 4, 5, 6]));
    let all = eval("Concat", 17, &[("axis", 1.into())], &[&none, &x, &none, &y, &none]);
    assert_eq!(all, Ok(ints(&[2, 3], &[1, 3, 4, 2, 5, 6])));
}

#[test]
fn nothing_is_computed_beyond_the_room() {
    let op = Op::new("Expand", vec![None; 2], vec![None]);
    let (x, to) = (ints(&[], &[1]), Tensor::i64s(&[4]));
    let within = |room| evaluate(&op, 17, &[Some(&x), Some(&to)], Safety::Exact, room);
    assert!(within(32).is_ok());
    assert_eq!(within(31), Err(Stop::Beyond));
}

#[test]
fn more_than_a_million_elements_move() {
    let (rows, columns) = (1 << 11, 1 << 10);
    let bytes: Vec<u8> = (0..rows * columns).map(|i| (i % 251) as u8).collect();
    let x = Tensor::raw(DType::U8, vec![rows as u64, columns as u64], bytes.clone());
    let y = eval("Transpose", 17, &[], &[&x]).unwrap();
    let column: Vec<u8> = (0..rows).map(|row| bytes[row * columns + 5]).collect();
    assert_eq!(&y.bytes().unwrap()[5 * rows..6 * rows], column);
}
