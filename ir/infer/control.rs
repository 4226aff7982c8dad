//! Operators with bodies. Their rules read the types of the bodies' values as they stand; the walk over a graph
//! infers those first.

use std::collections::BTreeSet;

use super::graph::{each_dim, each_dim_mut};
use super::sequence::join;
use super::{Call, DType, Dim, Rule, Rules, Size, TensorType, Type, axis, of_rank, tensor};
use crate::{AttributeValue, Def, Graph};

pub(super) const RULES: Rules =
    &[("If", Rule::Types(choose)), ("Loop", Rule::Types(repeat)), ("Scan", Rule::Types(scan))];

impl Call<'_> {
    fn body(&self, name: &str) -> Option<&Graph> {
        match self.op.attribute(name)? {
            AttributeValue::Graph(body) => Some(body),
            _ => None,
        }
    }
}

/// Types of a body's outputs.
fn outputs(body: &Graph) -> impl ExactSizeIterator<Item = Option<&Type>> {
    body.outputs().iter().map(|&v| body.value(v).ty.as_ref())
}

fn choose(call: &Call<'_>) -> Vec<Option<Type>> {
    let (Some(yes), Some(no)) = (call.body("then_branch"), call.body("else_branch")) else {
        return Vec::new();
    };
    let types = match call.known_ints(0).as_deref() {
        Some([0]) => outputs(no).map(|ty| ty.cloned()).collect(),
        Some([_]) => outputs(yes).map(|ty| ty.cloned()).collect(),
        _ => outputs(yes).zip(outputs(no)).map(|(a, b)| join(a?, b?)).collect(),
    };
    outside(call, &[yes, no], types)
}

/// What a carried value is after any number of rounds, none included.
pub(super) fn carried(before: Option<&Type>, after: Option<&Type>) -> Option<Type> {
    match (before, after) {
        (Some(before), Some(after)) => join(before, after),
        (Some(Type::Tensor(t)), None) | (None, Some(Type::Tensor(t))) => Some(tensor(t.dtype, None).into()),
        _ => None,
    }
}

/// Operands: trip count, condition, carried values. Body: number of the round, condition, carried values ->
/// condition, carried values, one element of each list. The number of rounds is not known.
fn repeat(call: &Call<'_>) -> Vec<Option<Type>> {
    let Some(body) = call.body("body") else { return Vec::new() };
    let state = call.args.len().saturating_sub(2);
    let results = outputs(body).skip(1).enumerate().map(|(i, after)| {
        if i < state {
            return carried(call.ty(i + 2), after);
        }
        let element = after?.tensor()?;
        let shape = element.shape.as_ref().map(|s| [&[Dim::Unknown], s.as_slice()].concat());
        Some(tensor(element.dtype, shape).into())
    });
    outside(call, &[body], results.collect())
}

/// How a Scan divides its operands: state values first, then what is scanned.
pub(super) struct Scanned {
    /// Number of state values.
    pub state: usize,
    /// Axis along which each further operand is scanned.
    axes: Vec<i64>,
}

impl Scanned {
    pub fn of(call: &Call<'_>) -> Option<Scanned> {
        let count = usize::try_from(call.op.int("num_scan_inputs")?).ok()?;
        let state = call.args.len().checked_sub(count)?;
        // Operator set 8 has a batch dimension and a first operand for lengths.
        if call.opset < 9 {
            return None;
        }
        let axes = call.op.ints("scan_input_axes").map_or_else(|| vec![0; count], <[i64]>::to_vec);
        (axes.len() == count).then_some(Scanned { state, axes })
    }

    /// The type that the body sees of operand number `slot`: the whole state, or one element.
    pub fn body_input(&self, call: &Call<'_>, slot: usize) -> Option<Type> {
        let ty = call.ty(slot)?;
        let Some(&along) = slot.checked_sub(self.state).and_then(|i| self.axes.get(i)) else {
            return Some(ty.clone());
        };
        let TensorType { dtype, shape } = ty.tensor()?;
        let shape = shape.as_ref().and_then(|dims| {
            let mut rest = dims.clone();
            rest.remove(axis(along, dims.len())?);
            Some(rest)
        });
        Some(tensor(*dtype, shape).into())
    }

    /// Number of rounds: the common length of what is scanned.
    fn length(&self, call: &Call<'_>) -> Dim {
        let lengths = self.axes.iter().enumerate().filter_map(|(i, &along)| {
            let dims = call.shape(self.state + i)?;
            Some(dims[axis(along, dims.len())?].clone())
        });
        lengths.reduce(|a, b| super::unify(&a, &b).unwrap_or(Dim::Unknown)).unwrap_or(Dim::Unknown)
    }
}

fn scan(call: &Call<'_>) -> Vec<Option<Type>> {
    let (Some(body), Some(scanned)) = (call.body("body"), Scanned::of(call)) else { return Vec::new() };
    let length = scanned.length(call);
    let axes = call.op.ints("scan_output_axes");
    let results = outputs(body).enumerate().map(|(i, after)| {
        let Some(k) = i.checked_sub(scanned.state) else { return carried(call.ty(i), after) };
        let element = after?.tensor()?;
        let along = axes.map_or(Some(0), |a| a.get(k).copied());
        let shape = element.shape.as_ref().and_then(|dims| {
            let mut all = dims.clone();
            all.insert(axis(along?, dims.len() + 1)?, length.clone());
            Some(all)
        });
        Some(tensor(element.dtype, shape).into())
    });
    outside(call, &[body], results.collect())
}

/// The types that a Loop's body sees, given what is assumed of the carried values.
pub(super) fn loop_inputs(state: &[Option<Type>]) -> Vec<Option<Type>> {
    let round = tensor(DType::I64, of_rank(0)).into();
    let condition = tensor(DType::Bool, of_rank(0)).into();
    [Some(round), Some(condition)].into_iter().chain(state.iter().cloned()).collect()
}

/// Types without the symbols that mean nothing around the body: all but those that it was given.
fn outside(call: &Call<'_>, bodies: &[&Graph], types: Vec<Option<Type>>) -> Vec<Option<Type>> {
    let mut given = BTreeSet::new();
    let mut learn = |ty: &Type| {
        each_dim(ty, &mut |dim| {
            if let Some(size) = Size::of(dim) {
                size.each_symbol(&mut |name| {
                    given.insert(name.to_string());
                });
            }
        })
    };
    call.args.iter().filter_map(|a| a.ty).for_each(&mut learn);
    for body in bodies {
        let captured = body.values().map(|v| body.value(v)).filter(|v| matches!(v.def, Def::Captured { .. }));
        captured.filter_map(|v| v.ty.as_ref()).for_each(&mut learn);
    }
    let mut local = |dim: &mut Dim| {
        if Size::of(dim).is_some_and(|size| size.any_symbol(&|name| !given.contains(name))) {
            *dim = Dim::Unknown;
        }
    };
    let cleaned = types.into_iter().map(|ty| {
        let mut ty = ty?;
        each_dim_mut(&mut ty, &mut local);
        Some(ty)
    });
    cleaned.collect()
}
