//! Rules checked from a line of text each.

use super::{Known, infer};
use crate::{Attribute, AttributeValue, DType, Dim, Op, Shape, Tensor, TensorType, Type, ValueId};

/// Operator with attributes, operator set, operands, results. An operand is `-` (left out), `?` (there, unknown),
/// `float[N,3]`, or `int64[2]=1,3` with its value; `float[...]` has no shape, `float` no dimensions. Results are
/// joined by blanks; `-` is one that nothing is known about.
pub type Case<'a> = (&'a str, i64, &'a [&'a str], &'a str);

/// Checks that every case gives its results.
pub fn expect(cases: &[Case<'_>]) {
    for (op, opset, inputs, results) in cases {
        let expected = results_of(&results.split(' ').collect::<Vec<_>>());
        let op = parse_op(op, inputs, expected.len());
        let operands: Vec<(Option<Type>, Option<Tensor>)> = inputs.iter().map(|i| parse_operand(i)).collect();
        let known: Vec<Known<'_>> =
            operands.iter().map(|(ty, c)| Known { ty: ty.as_ref(), constant: c.as_ref() }).collect();
        let inferred: Vec<String> = infer(&op, *opset, &known)
            .iter()
            .map(|t| match t {
                Some(Type::Tensor(t)) if t.shape.is_none() => format!("{}[...]", t.dtype),
                Some(t) => t.to_string().replace(' ', "_"),
                None => "-".to_string(),
            })
            .collect();
        assert_eq!(inferred, expected, "{} of {inputs:?} at operator set {opset}", op.op_type);
    }
}

/// Blanks within braces belong to a dimension.
fn results_of(words: &[&str]) -> Vec<String> {
    let mut results: Vec<String> = Vec::new();
    let mut open = false;
    for word in words {
        match results.last_mut() {
            Some(last) if open => *last = format!("{last}_{word}"),
            _ => results.push(word.to_string()),
        }
        open = results.last().is_some_and(|r| r.matches('[').count() > r.matches(']').count());
    }
    results
}

/// The dimensions alone.
pub fn shape_of(dims: &[(Dim, u64)]) -> Shape {
    dims.iter().map(|(d, _)| d.clone()).collect()
}

fn parse_op(text: &str, inputs: &[&str], results: usize) -> Op {
    let (name, attributes) = text.split_once(' ').unwrap_or((text, ""));
    let inputs = inputs.iter().map(|i| (*i != "-").then_some(ValueId(0))).collect();
    let mut op = Op::new(name, inputs, vec![Some(ValueId(0)); results]);
    // Blanks within quotes belong to the value.
    let mut rest = attributes;
    while let Some((name, tail)) = rest.split_once('=') {
        let (value, next): (AttributeValue, &str) = if let Some(tail) = tail.strip_prefix('\'') {
            let (value, next) = tail.split_once('\'').unwrap();
            (value.into(), next)
        } else {
            let (value, next) = tail.split_once(' ').unwrap_or((tail, ""));
            match value.strip_prefix('[') {
                Some(list) => {
                    let list = list.strip_suffix(']').unwrap().split(',').filter(|v| !v.is_empty());
                    (list.map(|v| v.parse().unwrap()).collect::<Vec<i64>>().into(), next)
                }
                None => (value.parse::<i64>().unwrap().into(), next),
            }
        };
        op.attributes.push(Attribute::new(name.trim(), value));
        rest = next.trim_start();
    }
    op
}

fn parse_operand(text: &str) -> (Option<Type>, Option<Tensor>) {
    if matches!(text, "-" | "?") {
        return (None, None);
    }
    let (ty, value) = match text.split_once('=') {
        Some((ty, value)) => (parse_type(ty), Some(value)),
        None => (parse_type(text), None),
    };
    let constant = value.map(|value| {
        let elements: Vec<f64> =
            value.split(',').filter(|v| !v.is_empty()).map(|v| v.parse().unwrap()).collect();
        let dims = ty.dims().unwrap();
        if ty.dtype.is_float() {
            Tensor::from_f64(ty.dtype, dims, &elements).unwrap()
        } else {
            let elements: Vec<i64> = elements.iter().map(|&v| v as i64).collect();
            Tensor::from_i64(ty.dtype, dims, &elements).unwrap()
        }
    });
    (Some(ty.into()), constant)
}

/// `float[N,3]`
pub fn parse_type(text: &str) -> TensorType {
    let (name, shape) = match text.split_once('[') {
        None => (text, Some(Vec::new())),
        Some((name, "...]")) => (name, None),
        Some((name, dims)) => {
            let dims = dims.strip_suffix(']').unwrap().split(',').map(|d| match d.parse() {
                Ok(n) => Dim::Known(n),
                Err(_) if d == "?" => Dim::Unknown,
                Err(_) => Dim::Symbol(d.into()),
            });
            (name, Some(dims.collect()))
        }
    };
    TensorType { dtype: DType::from_name(name).unwrap(), shape }
}
