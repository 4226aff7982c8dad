//! Operators that work element by element, with or without broadcasting; casts and quantization.

use super::{Call, DType, Rule, Rules, Shape, TensorType, Type, broadcast, of_rank, tensor};

pub(super) const RULES: Rules = &[
    ("Abs", Rule::Tensor(same)),
    ("Acos", Rule::Tensor(same)),
    ("Acosh", Rule::Tensor(same)),
    ("Add", Rule::Tensor(arithmetic)),
    ("And", Rule::Tensor(predicate)),
    ("Asin", Rule::Tensor(same)),
    ("Asinh", Rule::Tensor(same)),
    ("Atan", Rule::Tensor(same)),
    ("Atanh", Rule::Tensor(same)),
    ("BitCast", Rule::Tensor(bit_cast)),
    ("BitShift", Rule::Tensor(arithmetic)),
    ("BitwiseAnd", Rule::Tensor(arithmetic)),
    ("BitwiseNot", Rule::Tensor(same)),
    ("BitwiseOr", Rule::Tensor(arithmetic)),
    ("BitwiseXor", Rule::Tensor(arithmetic)),
    ("Cast", Rule::Tensor(cast)),
    ("CastLike", Rule::Tensor(cast_like)),
    ("Ceil", Rule::Tensor(same)),
    ("Celu", Rule::Tensor(same)),
    ("Clip", Rule::Tensor(same)),
    ("Cos", Rule::Tensor(same)),
    ("Cosh", Rule::Tensor(same)),
    ("CumProd", Rule::Tensor(same)),
    ("CumSum", Rule::Tensor(same)),
    ("DequantizeLinear", Rule::Tensor(dequantize)),
    ("Div", Rule::Tensor(arithmetic)),
    ("Dropout", Rule::Types(dropout)),
    ("DynamicQuantizeLinear", Rule::Types(dynamic_quantize)),
    ("Elu", Rule::Tensor(same)),
    ("Equal", Rule::Tensor(predicate)),
    ("Erf", Rule::Tensor(same)),
    ("Exp", Rule::Tensor(same)),
    ("Floor", Rule::Tensor(same)),
    ("Gelu", Rule::Tensor(same)),
    ("Greater", Rule::Tensor(predicate)),
    ("GreaterOrEqual", Rule::Tensor(predicate)),
    ("HardSigmoid", Rule::Tensor(same)),
    ("HardSwish", Rule::Tensor(same)),
    ("Hardmax", Rule::Tensor(same)),
    ("Identity", Rule::Types(identity)),
    ("IsInf", Rule::Tensor(test)),
    ("IsNaN", Rule::Tensor(test)),
    ("LeakyRelu", Rule::Tensor(same)),
    ("Less", Rule::Tensor(predicate)),
    ("LessOrEqual", Rule::Tensor(predicate)),
    ("Log", Rule::Tensor(same)),
    ("LogSoftmax", Rule::Tensor(same)),
    ("Max", Rule::Tensor(variadic)),
    ("Mean", Rule::Tensor(variadic)),
    ("Min", Rule::Tensor(variadic)),
    ("Mish", Rule::Tensor(same)),
    ("Mod", Rule::Tensor(arithmetic)),
    ("Mul", Rule::Tensor(arithmetic)),
    ("Neg", Rule::Tensor(same)),
    ("Not", Rule::Tensor(test)),
    ("Or", Rule::Tensor(predicate)),
    ("PRelu", Rule::Tensor(same)),
    ("Pow", Rule::Tensor(power)),
    ("QuantizeLinear", Rule::Tensor(quantize)),
    ("Reciprocal", Rule::Tensor(same)),
    ("RegexFullMatch", Rule::Tensor(test)),
    ("Relu", Rule::Tensor(same)),
    ("RotaryEmbedding", Rule::Tensor(same)),
    ("Round", Rule::Tensor(same)),
    ("Selu", Rule::Tensor(same)),
    ("Shrink", Rule::Tensor(same)),
    ("Sigmoid", Rule::Tensor(same)),
    ("Sign", Rule::Tensor(same)),
    ("Sin", Rule::Tensor(same)),
    ("Sinh", Rule::Tensor(same)),
    ("Softmax", Rule::Tensor(same)),
    ("Softplus", Rule::Tensor(same)),
    ("Softsign", Rule::Tensor(same)),
    ("Sqrt", Rule::Tensor(same)),
    ("StringConcat", Rule::Tensor(arithmetic)),
    ("Sub", Rule::Tensor(arithmetic)),
    ("Sum", Rule::Tensor(variadic)),
    ("SwiGLU", Rule::Tensor(same)),
    ("Swish", Rule::Tensor(same)),
    ("Tan", Rule::Tensor(same)),
    ("Tanh", Rule::Tensor(same)),
    ("ThresholdedRelu", Rule::Tensor(same)),
    ("Where", Rule::Tensor(select)),
    ("Xor", Rule::Tensor(predicate)),
];

/// The type of the first operand.
pub(super) fn same(call: &Call<'_>) -> Option<TensorType> {
    call.tensor(0).cloned()
}

fn identity(call: &Call<'_>) -> Vec<Option<Type>> {
    vec![call.ty(0).cloned()]
}

/// True or false for each element.
fn test(call: &Call<'_>) -> Option<TensorType> {
    Some(call.like(0, DType::Bool))
}

/// What operands broadcast to. Before operator set 7 (8 for `Max` and its like) the first operand had the shape
/// of the result. The outer `None` says that the operands certainly do not fit.
fn common_shape(call: &Call<'_>, slots: std::ops::Range<usize>) -> Option<Option<Shape>> {
    if call.opset < 7 {
        return Some(call.shape(0).map(<[_]>::to_vec));
    }
    let mut shapes = slots.map(|slot| call.shape(slot));
    let Some(Some(first)) = shapes.next() else { return Some(None) };
    let mut common = first.to_vec();
    for shape in shapes {
        let Some(shape) = shape else { return Some(None) };
        common = broadcast(&common, shape)?;
    }
    Some(Some(common))
}

/// The element type that the operands share.
fn common_dtype(call: &Call<'_>, slots: std::ops::Range<usize>) -> Option<DType> {
    slots.into_iter().find_map(|slot| call.dtype(slot))
}

fn arithmetic(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(common_dtype(call, 0..2)?, common_shape(call, 0..2)?))
}

fn predicate(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(DType::Bool, common_shape(call, 0..2)?))
}

/// The exponent may have another type.
fn power(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(call.dtype(0)?, common_shape(call, 0..2)?))
}

fn variadic(call: &Call<'_>) -> Option<TensorType> {
    let all = 0..call.args.len();
    Some(tensor(common_dtype(call, all.clone())?, common_shape(call, all)?))
}

fn select(call: &Call<'_>) -> Option<TensorType> {
    Some(tensor(common_dtype(call, 1..3)?, common_shape(call, 0..3)?))
}

fn cast(call: &Call<'_>) -> Option<TensorType> {
    let to = match call.op.string("to") {
        // Before operator set 6, the attribute was a name.
        Some(name) => DType::from_name(&name.to_ascii_lowercase())?,
        None => call.dtype_attribute("to")?,
    };
    Some(call.like(0, to))
}

fn cast_like(call: &Call<'_>) -> Option<TensorType> {
    Some(call.like(0, call.dtype(1)?))
}

fn bit_cast(call: &Call<'_>) -> Option<TensorType> {
    Some(call.like(0, call.dtype_attribute("to")?))
}

fn dropout(call: &Call<'_>) -> Vec<Option<Type>> {
    let data = call.tensor(0);
    let mask = data.map(|t| {
        let dtype = if call.opset >= 10 { DType::Bool } else { t.dtype };
        Type::Tensor(tensor(dtype, t.shape.clone()))
    });
    vec![data.cloned().map(Type::Tensor), mask]
}

/// An output type that an attribute may give; 0 stands for none. The outer `None` says that it gives nonsense.
fn output_dtype(call: &Call<'_>) -> Option<Option<DType>> {
    match call.int("output_dtype", 0) {
        0 => Some(None),
        _ => call.dtype_attribute("output_dtype").map(Some),
    }
}

fn quantize(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match (output_dtype(call)?, call.has(2)) {
        (Some(dtype), _) => dtype,
        (None, true) => call.dtype(2)?,
        (None, false) => DType::U8,
    };
    Some(call.like(0, dtype))
}

fn dequantize(call: &Call<'_>) -> Option<TensorType> {
    let dtype = match output_dtype(call)? {
        Some(dtype) => dtype,
        None => call.dtype(1)?,
    };
    Some(call.like(0, dtype))
}

fn dynamic_quantize(call: &Call<'_>) -> Vec<Option<Type>> {
    let types = [call.like(0, DType::U8), tensor(DType::F32, of_rank(0)), tensor(DType::U8, of_rank(0))];
    types.into_iter().map(|t| Some(Type::Tensor(t))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dim;
    use crate::infer::testing::{expect, shape_of};

    #[test]
    fn results_broadcast() {
        expect(&[
            ("Add", 7, &["float[N,3,1,5]", "float[3,4,1]"], "float[N,3,4,5]"),
            ("Mul", 13, &["float[N]", "float[1]"], "float[N]"),
            ("Mul", 13, &["float[N]", "float[M]"], "float[?]"),
            ("Mul", 13, &["float[N]", "float[N]"], "float[N]"),
            ("Sub", 13, &["float[N]", "float[5]"], "float[5]"),
            ("Sub", 13, &["float[?]", "float[1]"], "float[?]"),
            ("Div", 13, &["float[?]", "float[0]"], "float[0]"),
            ("Add", 13, &["float[2]", "float[3]"], "-"),
            ("Add", 13, &["float16", "float16[N,2]"], "float16[N,2]"),
            ("Add", 6, &["float[2,3,4]", "float[3]"], "float[2,3,4]"),
            ("Pow", 13, &["float[2]", "int64[3,1]"], "float[3,2]"),
            ("Less", 13, &["int64[N,1]", "int64[M]"], "bool[N,M]"),
            ("Where", 16, &["bool[N,1]", "float[4]", "float"], "float[N,4]"),
            ("Max", 13, &["float[1]", "float[2,1]", "float[3]"], "float[2,3]"),
            ("Sum", 13, &["float[N]", "float[M]", "float[4]"], "float[4]"),
        ]);
    }

    #[test]
    fn types_follow_attributes_and_operands() {
        expect(&[
            ("Cast to=7", 13, &["float[N]"], "int64[N]"),
            ("CastLike", 15, &["float[N]", "float16[2]"], "float16[N]"),
            ("IsNaN", 13, &["float[2,3]"], "bool[2,3]"),
            ("Dropout", 13, &["float[2]"], "float[2] bool[2]"),
            ("Dropout", 7, &["float[2]"], "float[2] float[2]"),
            ("QuantizeLinear", 13, &["float[2]", "float"], "uint8[2]"),
            ("QuantizeLinear", 13, &["float[2]", "float", "int8"], "int8[2]"),
            ("QuantizeLinear output_dtype=3", 21, &["float[2]", "float"], "int8[2]"),
            ("DequantizeLinear", 21, &["int8[2]", "float16", "int8"], "float16[2]"),
            ("DynamicQuantizeLinear", 11, &["float[N]"], "uint8[N] float uint8"),
        ]);
    }

    /// Whatever sizes the symbols have: where numpy's rule gives a shape, the answer must agree with it.
    #[test]
    fn broadcasting_agrees_with_concrete_sizes() {
        let names = ["N", "M"];
        arbtest::arbtest(|u| {
            let sizes = [u.int_in_range(0..=3u64)?, u.int_in_range(0..=3u64)?];
            let side = |u: &mut arbtest::arbitrary::Unstructured<'_>| {
                let mut dims = Vec::new();
                for _ in 0..u.int_in_range(0..=3)? {
                    let at = u.int_in_range(0..=1usize)?;
                    dims.push(match u.int_in_range(0..=3)? {
                        0 => (Dim::Symbol(names[at].into()), sizes[at]),
                        1 => (Dim::Unknown, u.int_in_range(0..=3)?),
                        _ => {
                            let n = u.int_in_range(0..=3)?;
                            (Dim::Known(n), n)
                        }
                    });
                }
                Ok(dims)
            };
            let (a, b) = (side(u)?, side(u)?);
            let rank = a.len().max(b.len());
            let at =
                |dims: &[(Dim, u64)], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |i| dims[i].1);
            let concrete: Option<Vec<u64>> = (0..rank)
                .map(|i| match (at(&a, i), at(&b, i)) {
                    (1, n) | (n, 1) => Some(n),
                    (m, n) => (m == n).then_some(n),
                })
                .collect();
            let answer = broadcast(&shape_of(&a), &shape_of(&b));
            let Some(concrete) = concrete else { return Ok(()) };
            let answer = answer.expect("sizes that broadcast are not refused");
            assert_eq!(answer.len(), rank);
            for (dim, size) in answer.iter().zip(concrete) {
                match dim {
                    Dim::Known(n) => assert_eq!(*n, size),
                    Dim::Symbol(name) => {
                        assert_eq!(sizes[names.iter().position(|n| *n == &**name).unwrap()], size)
                    }
                    Dim::Unknown => {}
                }
            }
            Ok(())
        });
    }
}
