//! Add products to an accumulator where it is, with ONNX Runtime's fused convolution.
//!
//! On the processor, `Add` never runs in place, but the operand `Z` of `com.microsoft.FusedConv`, which computes
//! `activation(Conv(x, W, B) + Z)`, is overwritten by the result if nothing reads it later. So each step of a sum becomes
//! one operator, and neither the product nor a second accumulator exists:
//! ```text
//! Conv(p, W) + z            ~  FusedConv(p, W, , z)             nothing else reads the convolution
//! s*x + z                   ~  FusedConv(x, S, , z)             S: depthwise 1x1 kernels, s for each channel; computed, too
//! s*x + z, s per sample     ~  the same on [1, N*C, ...]        each channel of each sample is a channel; views cost nothing
//! z - s*x, z - Conv(p, W)   ~  the same with -S, -W
//! (z + P) + Q               ~  FusedConv(Q, FusedConv(P, z))    sums of sums: the later one onto the earlier one
//! x + z                     ~  FusedConv(x, 1, , z)             z is not read later, and not an input
//! (P + B) + Q + c           ~  FusedConv(Q, P + (B + c))        a bias goes into the first step
//! s*x + z + t               ~  FusedConv(x, S, t, z)        t: what the network computes for each channel (of each sample)
//! activation(P + z)         ~  the same as an attribute
//! s*x + c                   ~  Conv(x, S, c)                    one tensor where there were two
//! ```
//! Of two products, the one whose operands are there first comes first, so that those need not be kept. A step with a bias and `Z` is
//! right in every session from ONNX Runtime 1.27 on alone, so a bias stays in such a step only where there is no first
//! step to take it, and nowhere if the result is to run in an older one.
//!
//! Class: rounding differs (one fused step, another order of additions). NaN and infinity are those of the sum.
//! Left alone: other element types than float32 and other ranks than 3 to 5, which the kernel does not have; sums of
//! two values that are needed later, too. Does nothing for other targets: no other provider has this step.
//!
//! target: ort-cpu
//! ```onnx
//! f (float[1,2,4,4] x, float[1,3,4,4] p) => (float[1,2,4,4] z)
//! <float[2,1,1] s = {0.5, -2.0}, float[2,3,3,3] w, float[2] b = {1.0, 2.0}, float t = {3.0}, float[2,1,1] c = {0.5, 0.25}> {
//!   n = Neg(x)
//!   m = Mul(n, s)
//!   r = Conv<pads=[1,1,1,1]>(p, w, b)
//!   a = Add(m, r)
//!   e = Exp(n)
//!   k = Mul(e, t)
//!   u = Add(a, k)
//!   v = Add(u, c)
//!   z = Relu(v)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,2,4,4] x, float[1,3,4,4] p) => (float[1,2,4,4] z)
//! <
//!   float[2,3,3,3] w,
//!   float[2,1,1,1] m_scale = {0.5, -2.0},
//!   float[2,1,1,1] k_scale = {3.0, 3.0},
//!   float[2] r_bias = {1.5, 2.25}
//! >
//! {
//!   n = Neg(x)
//!   r_acc = Conv<pads = [1, 1, 1, 1]>(p, w, r_bias)
//!   a_acc = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(n, m_scale, "", r_acc)
//!   e = Exp(n)
//!   z = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1], activation = "Relu">(e, k_scale, "", a_acc)
//! }
//! ```
//!
//! target: ort-cpu
//! refused: the product is read by something else
//! ```onnx
//! f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z, float[1,2,4,4] m) <float s = {0.5}> {
//!   m = Mul(x, s)
//!   z = Add(m, y)
//! }
//! ```

use dmopt_ir::{
    DType, Graph, NewOp, Op, OpId, Operand, Patch, Position, Rewriter, Safety, Tensor, TensorType, ValueId,
};

use crate::affine::{Affine, elementwise};
use crate::linear::{Array, MAX_CHANNELS, MAX_WEIGHT, scaled_weight};
use crate::{Context, Miss, Pass, Planning, Rule, Stage, Target};

/// See the header of this file.
pub struct AccumulateInPlace;

impl Pass for AccumulateInPlace {
    fn name(&self) -> &'static str {
        "accumulate-in-place"
    }

    fn source(&self) -> &'static str {
        include_str!("accumulate_in_place.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Lowering
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        if context.planning.target == Target::OrtCpu {
            let biased = has_bias(context.planning);
            context.apply_rule(&Accumulate { biased }, rewriter);
        }
    }
}

/// The oldest ONNX Runtime in which a step with a bias and an accumulator is right in every session.
pub(crate) const BIASED: (u32, u32) = (1, 27);

/// True if every ONNX Runtime that is to run the result has steps with a bias and an accumulator.
pub(crate) fn has_bias(planning: &Planning) -> bool {
    planning.target == Target::OrtCpu && planning.onnxruntime.is_none_or(|version| version >= BIASED)
}

/// The rule, for a runtime that has steps with a bias and an accumulator, or for one that has not.
struct Accumulate {
    biased: bool,
}

impl Rule for Accumulate {
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss> {
        match graph.op(op).op_type.as_str() {
            "Add" | "Sub" | "Sum" => {
                let shifted = || shift(graph, op, self.biased);
                let biased = || computed_bias(graph, op, self.biased);
                let patch = shifted().or_else(biased).or_else(|| sum(graph, op, self.biased));
                patch.ok_or(Miss::NoMatch).and_then(|patch| patch)
            }
            _ => activated(graph, op).ok_or(Miss::NoMatch),
        }
    }
}

/// Longer chains are not searched for their first step.
const LONGEST: usize = 256;

/// A step of a sum: what a convolution that nothing else reads adds to it.
struct Step {
    /// The operator that computes it now.
    op: OpId,
    x: ValueId,
    weight: Weight,
    bias: Bias,
}

enum Weight {
    /// That of the convolution.
    Own(ValueId),
    /// That of the convolution, with the other sign.
    Negated(Tensor),
    /// A depthwise 1x1 convolution in the place of elementwise operators: a number for each channel, and the number of
    /// spatial dimensions.
    Scale(Vec<f64>, usize),
    /// The same with a value.
    Computed(PerChannel),
}

/// The kernel goes from channel to channel, so where one has fewer elements than this, a product and a sum are faster: they
/// took as long at 196 elements and two thirds of the time at 49.
const LEAST_AREA: u64 = 128;

/// A value with a number for each channel, and perhaps for each sample, of what it is multiplied with or added to.
#[derive(Clone)]
pub(crate) struct PerChannel {
    /// The value.
    pub value: ValueId,
    /// Its shape, as long as that of what it is beside.
    dims: Vec<u64>,
    channels: u64,
    /// The shape of what it is beside, where each sample has numbers of its own.
    samples: Option<Vec<u64>>,
}

#[derive(Clone)]
enum Bias {
    None,
    /// That of the convolution, which is not a constant.
    Computed(ValueId),
    /// What was added to the product.
    PerChannel(PerChannel),
    Numbers(Vec<f64>),
}

/// True if the target adds a multiple of one value of this type to another in one step.
pub(crate) fn has_step(target: Target, ty: &TensorType) -> bool {
    target == Target::OrtCpu && fits(ty)
}

/// What the kernel takes.
fn fits(ty: &TensorType) -> bool {
    ty.dtype == DType::F32 && ty.rank().is_some_and(|rank| (3..=5).contains(&rank))
}

/// `a + b`, one of them a chain of steps that the other can be put under.
fn sum(graph: &Graph, op: OpId, biased: bool) -> Option<Result<Patch, Miss>> {
    let operator = graph.op(op);
    let known = operator.is_standard() && graph.opset("") >= 7 && operator.results().count() == 1;
    let [Some(a), Some(b)] = operator.inputs[..] else { return None };
    let result = operator.output(0).filter(|_| known && a != b)?;
    let ty = graph.tensor_type(result)?;
    let same = |v: ValueId| graph.tensor_type(v).is_some_and(|own| own.same_shape(ty));
    if !fits(ty) || !same(a) || !same(b) {
        return None;
    }
    let place = |chain: &Vec<Step>| chain.last().map(|first| (first.ready(graph), first.op));
    let (on_a, mut on_b) = (chain(graph, a), chain(graph, b));
    if operator.is("Sub") {
        on_b = on_b.filter(|chain| chain.len() == 1).and_then(|chain| negated(graph, chain));
        // `a - b` is no step on top of b.
        let steps = on_b?;
        return Some(accumulate(graph, result, steps, a, on_a, biased));
    }
    Some(match (on_a, on_b) {
        (Some(steps), under) if under.as_ref().is_none_or(|under| place(under) < place(&steps)) => {
            accumulate(graph, result, steps, b, under, biased)
        }
        (under, Some(steps)) => accumulate(graph, result, steps, a, under, biased),
        (_, None) => {
            let (x, z) = overwritten(graph, op, [a, b])?;
            accumulate(graph, result, vec![Step::plain(graph, op, x)?], z, None, biased)
        }
    })
}

/// Which of two operands of a sum can be overwritten by it, as the second of the pair: that whose other readers stand
/// furthest up in the file. `None` if there is none, or the sum is an output, which gets memory of its own.
fn overwritten(graph: &Graph, op: OpId, operands: [ValueId; 2]) -> Option<(ValueId, ValueId)> {
    let here = graph.op(op).rank;
    let last_reader = |z: ValueId| {
        let others = graph.uses(z).filter(|at| at.op != op);
        let last = others.map(|at| graph.op(at.op).rank + 1).max().unwrap_or(0);
        (last <= here && graph.producer(z).is_some() && !graph.is_output(z) && graph.constant(z).is_none())
            .then_some(last)
    };
    let [a, b] = operands;
    if graph.op(op).is("Sub") || graph.op(op).results().any(|v| graph.is_output(v)) {
        return None;
    }
    match (last_reader(a), last_reader(b)) {
        (Some(of_a), of_b) if of_b.is_none_or(|of_b| of_a < of_b) => Some((b, a)),
        (_, Some(_)) => Some((a, b)),
        _ => None,
    }
}

/// Writes the steps of a chain, which begins anew, on top of `z`, which may be a chain itself.
fn accumulate(
    graph: &Graph,
    result: ValueId,
    mut steps: Vec<Step>,
    z: ValueId,
    mut under: Option<Vec<Step>>,
    biased: bool,
) -> Result<Patch, Miss> {
    // A view is copied to an output.
    if graph.is_output(result) && steps.first().is_some_and(Step::is_seen_otherwise) {
        return Err(Miss::NoMatch);
    }
    let mut patch = Patch::new(Safety::Reassociates);
    let first = steps.last_mut().ok_or(Miss::NoMatch)?;
    let mut z: Operand = z.into();
    if let (Bias::Numbers(bias), Some(under)) = (&first.bias, &mut under)
        && let Some(lowest) = under.last_mut()
        && lowest.shift(bias)
    {
        first.bias = Bias::None;
        z = emit(graph, under, None, biased, &mut patch)?;
    }
    let new = emit(graph, &steps, Some(z), biased, &mut patch)?;
    patch.replace_uses(result, new);
    Ok(patch)
}

/// `chain + c` with a number for each channel: it goes into the bias of the first step. `s*x + c` becomes a step, too.
fn shift(graph: &Graph, op: OpId, biased: bool) -> Option<Result<Patch, Miss>> {
    let (value, Affine { scale, shift }) = elementwise(graph, op)?;
    let ty = graph.tensor_type(value)?;
    let mut steps = chain(graph, value)?;
    let alone = steps.len() == 1;
    let first = steps.last_mut()?;
    let convolves = matches!(first.weight, Weight::Own(_));
    if !fits(ty) || scale.iter().any(|&s| s != 1.0) || (alone && convolves) || !first.shift(&shift) {
        return None;
    }
    let mut patch = Patch::new(Safety::Reassociates);
    Some(emit(graph, &steps, None, biased, &mut patch).and_then(|new| {
        patch.replace_uses(graph.op(op).output(0).ok_or(Miss::NoMatch)?, new);
        Ok(patch)
    }))
}

/// `convolution + t` with a computed number for each channel, or each channel of a sample where all samples are channels
/// of one: it becomes the bias of the convolution.
fn computed_bias(graph: &Graph, op: OpId, biased: bool) -> Option<Result<Patch, Miss>> {
    let (value, bias) = PerChannel::addend(graph, op)?;
    let result = graph.op(op).output(0)?;
    let mut patch = Patch::new(Safety::Reassociates);
    if let Some(mut step) = Step::of(graph, value).filter(|_| graph.readers(value) == 1)
        && let Weight::Computed(factor) = &step.weight
        && bias.groups() == factor.groups()
    {
        step.bias = Bias::PerChannel(bias);
        return Some(step.emit(graph, None, biased, &mut patch).map(|new| {
            patch.replace_uses(result, new);
            patch
        }));
    }
    // The convolution, and the view of its result in which all samples are apart again.
    let producer = graph.producer(value)?;
    let view = graph.op(producer).is("Reshape").then_some(producer);
    let step = match view {
        Some(view) => graph.producer(graph.op(view).input(0)?)?,
        None => producer,
    };
    let fused = graph.op(step);
    let convolved = fused.output(0)?;
    let sizes = |value: ValueId| {
        let shape = graph.tensor_type(value)?.shape.as_ref()?;
        Some((shape.first()?.known(), shape.get(1)?.known()?))
    };
    let (samples, groups) = sizes(convolved)?;
    let whole = match (sizes(value)?, view) {
        ((Some(apart), channels), Some(_)) => {
            samples == Some(1) && apart.checked_mul(channels) == Some(groups)
        }
        (_, view) => view.is_none(),
    };
    let alone = graph.readers(value) == 1 && graph.readers(convolved) == 1;
    let plain = is_step(fused) && fused.attribute("activation").is_none();
    if !plain || !biased || !alone || !whole || !bias.serves(groups) {
        return None;
    }
    let name = &graph.value(result).name;
    let mut bias = bias.bias(groups, &mut patch);
    if let Some(own) = fused.input(2) {
        let sum = NewOp::new("Add", [own.into(), bias]).result_named(&format!("{name}_bias"));
        bias = patch.add_op(sum);
    }
    let mut operands: Vec<_> = fused.inputs.iter().map(|v| v.map(Operand::from)).collect();
    *operands.get_mut(2)? = Some(bias);
    let new = NewOp::like(graph, step, operands).result_named(&format!("{name}_acc"));
    let mut new = patch.add_op(new.at(Position::At(op)));
    if let Some(view) = view {
        let shape = graph.op(view).input(1)?;
        new =
            patch.add_op(NewOp::like(graph, view, vec![Some(new), Some(shape.into())]).at(Position::At(op)));
    }
    patch.replace_uses(result, new);
    Some(Ok(patch))
}

/// An activation that alone reads a step in place.
fn activated(graph: &Graph, op: OpId) -> Option<Patch> {
    let (name, parameters) = activation(graph, op)?;
    let value = graph.op(op).input(0)?;
    let step = graph.producer(value).filter(|_| graph.readers(value) == 1)?;
    let fused = graph.op(step);
    if !is_step(fused) || fused.attribute("activation").is_some() || fused.input(3).is_none() {
        return None;
    }
    let operands = fused.inputs.iter().map(|v| v.map(Operand::from)).collect();
    let mut new = NewOp::like(graph, step, operands).attribute("activation", name);
    if !parameters.is_empty() {
        new = new.attribute("activation_params", parameters);
    }
    let mut patch = Patch::new(Safety::Reassociates);
    let new = patch.add_op(new);
    patch.replace_uses(graph.op(op).output(0)?, new);
    Some(patch)
}

/// An activation that the kernel has (`contrib_ops/cpu/fused_activation.cc`), with its parameters.
fn activation(graph: &Graph, op: OpId) -> Option<(&'static str, Vec<f32>)> {
    let operator = graph.op(op);
    let float = |name: &str, default: f32| operator.float(name).unwrap_or(default);
    if !operator.is_standard() || operator.results().count() != 1 || graph.opset("") < 6 {
        return None;
    }
    Some(match operator.op_type.as_str() {
        "Relu" => ("Relu", vec![]),
        "Sigmoid" => ("Sigmoid", vec![]),
        "Tanh" => ("Tanh", vec![]),
        "LeakyRelu" => ("LeakyRelu", vec![float("alpha", 0.01)]),
        "HardSigmoid" => ("HardSigmoid", vec![float("alpha", 0.2), float("beta", 0.5)]),
        "Clip" => {
            let operand = |slot: usize, default: f32| match operator.input(slot) {
                None => Some(default),
                Some(value) => match graph.constant(value)?.to_f64().ok()?[..] {
                    [bound] => Some(bound as f32),
                    _ => None,
                },
            };
            let (least, most) = match graph.opset("") {
                ..11 => (float("min", f32::MIN), float("max", f32::MAX)),
                _ => (operand(1, f32::MIN)?, operand(2, f32::MAX)?),
            };
            (least <= most).then_some(("Clip", vec![least, most]))?
        }
        _ => return None,
    })
}

/// True for ONNX Runtime's fused convolution.
pub(crate) fn is_fused(op: &Op) -> bool {
    op.domain == "com.microsoft" && op.op_type == "FusedConv"
}

/// True for one that has its result.
fn is_step(op: &Op) -> bool {
    is_fused(op) && op.results().count() == 1
}

/// The steps that compute a value, the last one first, each read by the next alone; the first one has no `Z`. `None` if
/// the value is computed otherwise.
fn chain(graph: &Graph, mut value: ValueId) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    while steps.len() < LONGEST && graph.readers(value) == 1 {
        let step = Step::of(graph, value)?;
        let z = graph.op(step.op).input(3).filter(|_| matches!(step.weight, Weight::Own(_)));
        steps.push(step);
        match z {
            Some(z) => value = z,
            None => return Some(steps),
        }
    }
    None
}

/// A chain of one step with the other sign.
fn negated(graph: &Graph, mut chain: Vec<Step>) -> Option<Vec<Step>> {
    let step = chain.first_mut()?;
    step.weight = match &step.weight {
        Weight::Scale(scale, spatial) => Weight::Scale(scale.iter().map(|s| -s).collect(), *spatial),
        Weight::Own(w) => {
            let tensor = graph.constant(*w).filter(|_| graph.readers(*w) == 1)?;
            tensor.byte_len().filter(|&bytes| bytes <= MAX_WEIGHT)?;
            Weight::Negated(scaled_weight(&tensor, tensor.elements()? as usize, |_| -1.0)?)
        }
        Weight::Negated(_) | Weight::Computed(_) => return None,
    };
    step.bias = match &step.bias {
        Bias::None => Bias::None,
        Bias::Computed(_) | Bias::PerChannel(_) => return None,
        Bias::Numbers(bias) => Bias::Numbers(bias.iter().map(|b| -b).collect()),
    };
    Some(chain)
}

/// Writes the steps of a chain, on top of `z` if there is one.
fn emit(
    graph: &Graph,
    steps: &[Step],
    z: Option<Operand>,
    biased: bool,
    patch: &mut Patch,
) -> Result<Operand, Miss> {
    let mut z = z;
    for step in steps.iter().rev() {
        z = Some(step.emit(graph, z, biased, patch)?);
    }
    z.ok_or(Miss::NoMatch)
}

impl Step {
    /// The convolution, or the elementwise operators, that compute a value.
    fn of(graph: &Graph, value: ValueId) -> Option<Step> {
        let op = graph.producer(value)?;
        let operator = graph.op(op);
        let fused = is_step(operator) && operator.attribute("activation").is_none();
        if fused || operator.is("Conv") {
            let bias = match operator.input(2) {
                None => Bias::None,
                Some(bias) => match graph.constant(bias) {
                    Some(numbers) => Bias::Numbers(numbers.to_f64().ok()?),
                    None => Bias::Computed(bias),
                },
            };
            let (x, weight) = (operator.input(0)?, Weight::Own(operator.input(1)?));
            return Some(Step { op, x, weight, bias });
        }
        let Some((mut x, mut affine)) = elementwise(graph, op) else {
            let (x, factor) = PerChannel::factor(graph, op)?;
            return Some(Step { op, x, weight: Weight::Computed(factor), bias: Bias::None });
        };
        while let Some(before) = graph.producer(x).filter(|_| graph.readers(x) == 1)
            && let Some((value, inner)) = elementwise(graph, before)
            && inner.scale.len() == affine.scale.len()
        {
            (x, affine) = (value, affine.after(&inner));
        }
        let ty = graph.tensor_type(x)?;
        if !ty.same_shape(graph.tensor_type(value)?) {
            return None;
        }
        let bias = match affine.shift.iter().all(|&c| c == 0.0) {
            true => Bias::None,
            false => Bias::Numbers(affine.shift),
        };
        Some(Step { op, x, weight: Weight::Scale(affine.scale, ty.rank()?.checked_sub(2)?), bias })
    }

    /// A value as it is, in the place of an operator.
    fn plain(graph: &Graph, op: OpId, x: ValueId) -> Option<Step> {
        let shape = graph.tensor_type(x)?.shape.as_ref()?;
        let channels = usize::try_from(shape.get(1)?.known()?).ok()?;
        let weight = Weight::Scale(vec![1.0; channels], shape.len().checked_sub(2)?);
        Some(Step { op, x, weight, bias: Bias::None })
    }

    /// The place in the file from which on it could be computed.
    fn ready(&self, graph: &Graph) -> u64 {
        let reads = [Some(self.x), graph.op(self.op).input(1)];
        let producers =
            reads.into_iter().flatten().filter_map(|v| graph.producer(v)).filter(|&p| p != self.op);
        producers.map(|p| graph.op(p).rank + 1).max().unwrap_or(0)
    }

    /// True if its result is a view of what it computes.
    fn is_seen_otherwise(&self) -> bool {
        matches!(&self.weight, Weight::Computed(factor) if factor.samples.is_some())
    }

    /// Adds to the bias; false if that is not a constant, or would be needed for each sample.
    fn shift(&mut self, by: &[f64]) -> bool {
        if matches!(self.weight, Weight::Computed(_)) {
            return false;
        }
        self.bias = match &self.bias {
            Bias::None => Bias::Numbers(by.to_vec()),
            Bias::Numbers(own) if own.len() == by.len() => {
                Bias::Numbers(own.iter().zip(by).map(|(own, by)| own + by).collect())
            }
            _ => return false,
        };
        true
    }

    fn emit(
        &self,
        graph: &Graph,
        z: Option<Operand>,
        biased: bool,
        patch: &mut Patch,
    ) -> Result<Operand, Miss> {
        if z.is_some() && !biased && !matches!(self.bias, Bias::None) {
            let (major, minor) = BIASED;
            return Err(Miss::refused(format!(
                "a step with a bias and an accumulator needs ONNX Runtime {major}.{minor}"
            )));
        }
        let name = |value: ValueId| graph.value(value).name.as_str();
        let unfit = || Miss::refused("a constant does not fit its type");
        let operator = graph.op(self.op);
        let result = operator.output(0).map_or("", name);
        let numbers = |dims: Vec<u64>, data: &[f64]| Array { dims, data: data.to_vec() }.tensor(DType::F32);
        let weight = match &self.weight {
            Weight::Own(weight) => (*weight).into(),
            Weight::Negated(tensor) => patch.constant(&format!("{result}_negated"), tensor.clone()),
            Weight::Scale(scale, spatial) => {
                let mut dims = vec![1; spatial + 2];
                dims[0] = scale.len() as u64;
                patch.constant(&format!("{result}_scale"), numbers(dims, scale).ok_or_else(unfit)?)
            }
            Weight::Computed(factor) => factor.kernels(patch),
        };
        let bias = match &self.bias {
            Bias::None => None,
            Bias::Computed(bias) => Some((*bias).into()),
            Bias::PerChannel(bias) => Some(bias.bias(bias.groups(), patch)),
            Bias::Numbers(bias) => {
                let tensor = numbers(vec![bias.len() as u64], bias).ok_or_else(unfit)?;
                let same = operator.input(2).filter(|&own| {
                    graph.constant(own).is_some_and(|own| own.bytes().ok() == tensor.bytes().ok())
                });
                Some(same.map_or_else(|| patch.constant(&format!("{result}_bias"), tensor), Operand::from))
            }
        };
        // Where each sample has numbers of its own, all samples are channels of one.
        let samples = match &self.weight {
            Weight::Computed(factor) => {
                factor.samples.as_ref().map(|samples| (factor.as_one_sample(samples), samples))
            }
            _ => None,
        };
        let as_one = samples.as_ref().map(|(dims, _)| shape(dims, patch));
        let mut seen = |value: Operand| match as_one {
            Some(shape) => patch.add_op(NewOp::new("Reshape", [value, shape])),
            None => value,
        };
        let (x, z) = (seen(self.x.into()), z.map(&mut seen));
        let mut operands = vec![Some(x), Some(weight)];
        match z {
            Some(z) => operands.extend([bias, Some(z)]),
            None => operands.extend(bias.map(Some)),
        }
        let depthwise = match &self.weight {
            Weight::Scale(scale, spatial) => Some((scale.len() as i64, *spatial)),
            Weight::Computed(factor) => Some((factor.groups() as i64, factor.dims.len() - 2)),
            Weight::Own(_) | Weight::Negated(_) => None,
        };
        let mut new = match depthwise {
            Some((groups, spatial)) => NewOp::with_optional("Conv", operands)
                .named(operator.name.clone())
                .attribute("group", groups)
                .attribute("kernel_shape", vec![1i64; spatial])
                .at(Position::At(self.op)),
            None => NewOp::like(graph, self.op, operands),
        };
        if z.is_some() {
            new = new.of("com.microsoft", "FusedConv");
        }
        let new = patch.add_op(new.result_named(&format!("{result}_acc")));
        Ok(match samples {
            Some((_, samples)) => {
                let shape = shape(samples, patch);
                patch.add_op(NewOp::new("Reshape", [new, shape]))
            }
            None => new,
        })
    }
}

impl PerChannel {
    /// Reads `value` beside `x`, where a kernel that goes from channel to channel is no slower.
    fn beside(graph: &Graph, x: ValueId, value: ValueId) -> Option<PerChannel> {
        let (ty, own) = (graph.tensor_type(x)?, graph.tensor_type(value)?);
        let shape = ty.shape.as_ref()?;
        let channels = shape.get(1)?.known()?;
        let own = own.dims()?;
        let mut dims = vec![1; shape.len().checked_sub(own.len())?];
        dims.extend(own);
        let samples =
            if dims[0] == 1 { None } else { Some(ty.dims().filter(|dims_of_x| dims_of_x[0] == dims[0])?) };
        let fits = (dims[1] == 1 || dims[1] == channels) && dims[2..].iter().all(|&size| size == 1);
        let area = shape[2..].iter().try_fold(1u64, |area, dim| area.checked_mul(dim.known()?))?;
        let few = samples.as_ref().map_or(Some(channels), |samples| samples[0].checked_mul(channels))?;
        (fits && self::fits(ty) && area >= LEAST_AREA && few <= MAX_CHANNELS && x != value)
            .then_some(PerChannel { value, dims, channels, samples })
    }

    /// Reads an operator of this type, which has two operands, of `x` and such a value.
    fn of(graph: &Graph, op: OpId, op_type: &str) -> Option<(ValueId, PerChannel)> {
        let operator = graph.op(op);
        let [Some(a), Some(b)] = operator.inputs[..] else { return None };
        if !operator.is(op_type) || graph.opset("") < 7 || operator.results().any(|v| graph.is_output(v)) {
            return None;
        }
        let beside = |x, value| Some((x, PerChannel::beside(graph, x, value)?));
        // Of two values of this kind, either could be the one that is multiplied.
        beside(a, b).or_else(|| beside(b, a))
    }

    /// Reads `x * s`.
    pub fn factor(graph: &Graph, op: OpId) -> Option<(ValueId, PerChannel)> {
        PerChannel::of(graph, op, "Mul")
    }

    /// Reads `x + s`.
    fn addend(graph: &Graph, op: OpId) -> Option<(ValueId, PerChannel)> {
        PerChannel::of(graph, op, "Add")
    }

    /// How many channels there are when all samples are one.
    fn groups(&self) -> u64 {
        self.dims[0] * self.channels
    }

    /// The shape of what it is beside, with all samples as channels of one.
    fn as_one_sample(&self, samples: &[u64]) -> Vec<u64> {
        [1, self.groups()].into_iter().chain(samples[2..].iter().copied()).collect()
    }

    /// True if it is a number, or can be repeated to be one, for each of so many channels.
    fn serves(&self, groups: u64) -> bool {
        groups == self.groups() || (self.samples.is_none() && groups.is_multiple_of(self.channels))
    }

    /// The kernels of a depthwise convolution.
    fn kernels(&self, patch: &mut Patch) -> Operand {
        let mut dims = vec![1; self.dims.len()];
        dims[0] = self.groups();
        self.reshaped(&dims, patch)
    }

    /// The bias of a convolution with so many channels.
    fn bias(&self, groups: u64, patch: &mut Patch) -> Operand {
        self.reshaped(&[groups], patch)
    }

    /// A number for each channel, in a shape that begins with their number.
    fn reshaped(&self, to: &[u64], patch: &mut Patch) -> Operand {
        let mut value: Operand = self.value.into();
        let mut dims = self.dims.clone();
        (dims[0], dims[1]) = (to[0] / self.channels, self.channels);
        if dims != self.dims {
            let every = shape(&dims, patch);
            value = patch.add_op(NewOp::new("Expand", [value, every]));
        }
        let to = shape(to, patch);
        patch.add_op(NewOp::new("Reshape", [value, to]))
    }
}

fn shape(dims: &[u64], patch: &mut Patch) -> Operand {
    let dims: Vec<i64> = dims.iter().map(|&size| size as i64).collect();
    patch.constant("shape", Tensor::i64s(&dims))
}

#[cfg(test)]
mod tests {
    use crate::Target;
    use crate::testing::{check_for, left_alone, left_alone_for};

    const PASS: &str = "accumulate-in-place";
    const X: &str = "(float[N,2,H,W] x, float[N,2,H,W] y) => (float[N,2,H,W] z)";

    fn model(interface: &str, weights: &str, body: &str) -> String {
        format!("f {interface} <{weights}> {{ {body} }}")
    }

    fn check(weights: &str, before: &str, new_weights: &str, after: &str) {
        check_for(Target::OrtCpu, PASS, &model(X, weights, before), &model(X, new_weights, after));
    }

    #[test]
    fn a_scaled_value_is_added_by_a_depthwise_step_whatever_its_form() {
        let step = "z = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(x, s, , y)";
        let alike = |weights: &str, body: &str, s: &str| {
            check(weights, body, &format!("float[2,1,1,1] s = {{{s}}}"), step);
        };
        alike("float s = {3}", "m = Mul(x, s) z = Add(m, y)", "3, 3");
        alike("float[2,1,1] s = {3, 4}", "m = Mul(s, x) z = Add(y, m)", "3, 4");
        alike("float[1,2,1,1] s = {2, 4}", "m = Div(x, s) z = Sum(y, m)", "0.5, 0.25");
        alike("float[1] s = {3}", "m = Mul(x, s) z = Sub(y, m)", "-3, -3");
        alike("float[1] s = {3}, float t = {2}", "m = Mul(x, s) n = Mul(m, t) z = Add(n, y)", "6, 6");
    }

    #[test]
    fn a_value_scaled_by_what_is_computed_is_added_by_a_depthwise_step() {
        let text = |interface: &str, body: &str| {
            format!("f ({interface}) => (float[2,3,16,16] y) {{ {body} y = Exp(z) }}")
        };
        let whole = "float[2,3,16,16] x, float[2,3,16,16] a, float[1,3,1,1] s";
        let before = text(whole, "m = Mul(x, s) z = Add(m, a)");
        let step = "z = com.microsoft.FusedConv<group = 3, kernel_shape = [1, 1]>(x, w, , a)";
        let after = format!(
            "f ({whole}) => (float[2,3,16,16] y) <int64[4] shape = {{3, 1, 1, 1}}> {{ w = Reshape(s, shape) {step} y = Exp(z) }}"
        );
        check_for(Target::OrtCpu, PASS, &before, &after);
        let sampled = "float[2,3,16,16] x, float[2,3,16,16] a, float[2,1,1,1] s";
        let before = text(sampled, "m = Mul(s, x) z = Add(a, m)");
        let after = format!(
            "f ({sampled}) => (float[2,3,16,16] y) <int64[4] every = {{2, 3, 1, 1}}, int64[4] kernels = {{6, 1, 1, 1}},
             int64[4] one = {{1, 6, 16, 16}}, int64[4] two = {{2, 3, 16, 16}}> {{
                 e = Expand(s, every) w = Reshape(e, kernels) p = Reshape(x, one) q = Reshape(a, one)
                 r = com.microsoft.FusedConv<group = 6, kernel_shape = [1, 1]>(p, w, , q)
                 z = Reshape(r, two) y = Exp(z) }}"
        );
        check_for(Target::OrtCpu, PASS, &before, &after);
        // Small channels, and numbers of their own for every pixel: what is added to the product is the step.
        for (area, s) in [("4,4", "2,3,1,1"), ("16,16", "2,1,16,16")] {
            let interface = format!("float[2,3,{area}] x, float[2,3,{area}] a, float[{s}] s");
            let before = text(&interface, "m = Mul(x, s) z = Add(m, a)");
            let step = "z = com.microsoft.FusedConv<group = 3, kernel_shape = [1, 1]>(a, one, , m)";
            let after = text(&interface, &format!("m = Mul(x, s) {step}"))
                .replace("{ m", "<float[3,1,1,1] one = {1, 1, 1}> { m");
            check_for(Target::OrtCpu, PASS, &before, &after);
        }
        // A view is copied to an output.
        let output = format!("f ({sampled}) => (float[2,3,16,16] z) {{ m = Mul(x, s) z = Add(m, a) }}");
        assert!(left_alone_for(Target::OrtCpu, PASS, &output).is_empty());
    }

    #[test]
    fn what_is_computed_for_each_channel_becomes_the_bias_of_a_step() {
        let text = |interface: &str, weights: &str, body: &str| {
            format!("f ({interface}) => (float[2,3,16,16] y) <{weights}> {{ {body} y = Exp(z) }}")
        };
        let whole = "float[2,3,16,16] x, float[2,3,16,16] a, float[1,3,1,1] s, float[3,1,1] t";
        check_for(
            Target::OrtCpu,
            PASS,
            &text(whole, "", "m = Mul(x, s) n = Add(m, a) z = Add(t, n)"),
            &text(
                whole,
                "int64[4] kernels = {3, 1, 1, 1}, int64[1] bias = {3}",
                "w = Reshape(s, kernels) b = Reshape(t, bias)
                 z = com.microsoft.FusedConv<group = 3, kernel_shape = [1, 1]>(x, w, b, a)",
            ),
        );
        check_for(
            Target::OrtCpu,
            PASS,
            &text(whole, "", "m = Mul(x, s) z = Add(m, t)"),
            &text(
                whole,
                "int64[4] kernels = {3, 1, 1, 1}, int64[1] bias = {3}",
                "w = Reshape(s, kernels) b = Reshape(t, bias) z = Conv<group = 3, kernel_shape = [1, 1]>(x, w, b)",
            ),
        );
        // Numbers for each sample, numbers that are the same for all, and constants.
        let sampled =
            "float[2,3,16,16] x, float[2,3,16,16] a, float[2,3,1,1] s, float[2,3,1,1] t, float[3,1,1] u";
        check_for(
            Target::OrtCpu,
            PASS,
            &text(sampled, "float c = {3}", "m = Mul(x, s) n = Add(m, a) k = Add(n, t) l = Add(k, u) z = Add(l, c)"),
            &text(
                sampled,
                "int64[4] kernels = {6, 1, 1, 1}, int64[4] one = {1, 6, 16, 16}, int64[4] two = {2, 3, 16, 16},
                 int64[1] of_t = {6}, int64[4] each_u = {2, 3, 1, 1}, int64[1] of_u = {6}, float c = {3},
                 int64[4] each_c = {2, 3, 1, 1}, int64[1] of_c = {6}",
                "w = Reshape(s, kernels) p = Reshape(x, one) q = Reshape(a, one)
                 b = Reshape(t, of_t) d = Expand(u, each_u) e = Reshape(d, of_u) f = Add(b, e)
                 g = Expand(c, each_c) h = Reshape(g, of_c) i = Add(f, h)
                 r = com.microsoft.FusedConv<group = 6, kernel_shape = [1, 1]>(p, w, i, q)
                 z = Reshape(r, two)",
            ),
        );
    }

    #[test]
    fn what_another_view_of_a_step_is_shifted_by_is_no_bias() {
        let text = "f (float[2,3,16,16] x, float[2,3,16,16] a, float[3,1,1] t) => (float[1,3,32,16] y)
            <float[3,1,1,1] s = {1, 2, 3}, int64[4] to = {1, 3, 32, 16}> {
                m = com.microsoft.FusedConv<group = 3, kernel_shape = [1, 1]>(x, s, , a)
                v = Reshape(m, to) z = Add(v, t) y = Exp(z) }";
        assert!(left_alone_for(Target::OrtCpu, PASS, text).is_empty());
    }

    #[test]
    fn what_is_subtracted_from_a_product_is_no_step() {
        let text = model(X, "float s = {3}", "m = Mul(x, s) z = Sub(m, y)");
        assert!(left_alone_for(Target::OrtCpu, PASS, &text).is_empty());
    }

    #[test]
    fn a_convolution_is_added_onto_what_is_there() {
        let w = "float[2,2,1,1] w = {1, 2, 3, 4}";
        check(w, "c = Conv(x, w) z = Add(c, y)", w, "z = com.microsoft.FusedConv(x, w, , y)");
        check(
            w,
            "c = Conv(x, w) z = Sub(y, c)",
            "float[2,2,1,1] w = {-1, -2, -3, -4}",
            "z = com.microsoft.FusedConv(x, w, , y)",
        );
        let b = format!("{w}, float[2] b = {{5, 6}}");
        check(&b, "c = Conv(x, w, b) z = Add(c, y)", &b, "z = com.microsoft.FusedConv(x, w, b, y)");
    }

    #[test]
    fn of_two_convolutions_the_later_one_is_added_and_its_bias_goes_to_the_first() {
        let weights = |b: &str, c: &str| {
            format!(
                "float[2,2,1,1] w = {{1, 2, 3, 4}}, float[2,2,1,1] v = {{5, 6, 7, 8}}, float[2] b = {{{b}}}{c}"
            )
        };
        check(
            &weights("1, 2", ", float[2] c = {10, 20}"),
            "p = Conv(x, w, b) q = Conv(y, v, c) z = Add(q, p)",
            &weights("11, 22", ""),
            "p = Conv(x, w, b) z = com.microsoft.FusedConv(y, v, , p)",
        );
    }

    #[test]
    fn a_bias_behind_a_chain_goes_into_its_first_step() {
        check(
            "float s = {3}, float t = {4}, float[2,1,1] c = {1, 2}",
            "m = Mul(x, s) n = Mul(y, t) a = Add(m, n) z = Add(a, c)",
            "float[2,1,1,1] s = {3, 3}, float[2,1,1,1] t = {4, 4}, float[2] c = {1, 2}",
            "m = Conv<group = 2, kernel_shape = [1, 1]>(x, s, c)
             z = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(y, t, , m)",
        );
    }

    #[test]
    fn a_value_is_added_onto_one_that_is_not_read_later() {
        check(
            "",
            "e = Exp(x) f = Exp(e) s = Add(e, f) z = Neg(s)",
            "float[2,1,1,1] one = {1, 1}",
            "e = Exp(x) f = Exp(e)
             s = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(e, one, , f) z = Neg(s)",
        );
        let kept = model(X, "", "e = Exp(x) f = Exp(y) s = Add(e, f) g = Mul(e, f) z = Mul(s, g)");
        assert!(left_alone_for(Target::OrtCpu, PASS, &kept).is_empty());
        let output = model(X, "", "e = Exp(x) z = Add(e, y)");
        assert!(left_alone_for(Target::OrtCpu, PASS, &output).is_empty());
    }

    #[test]
    fn a_scale_and_a_shift_become_one_step() {
        let interface = "(float[1,2,4,4] x) => (float[1,2,4,4] z)";
        check_for(
            Target::OrtCpu,
            PASS,
            &model(
                interface,
                "float[2,1,1] s = {3, 4}, float[2,1,1] c = {1, 2}",
                "m = Mul(x, s) z = Add(m, c)",
            ),
            &model(
                interface,
                "float[2,1,1,1] s = {3, 4}, float[2] c = {1, 2}",
                "z = Conv<group = 2, kernel_shape = [1, 1]>(x, s, c)",
            ),
        );
        let shifted = model(interface, "float[2,1,1] c = {1, 2}", "z = Add(x, c)");
        assert!(left_alone_for(Target::OrtCpu, PASS, &shifted).is_empty());
    }

    #[test]
    fn sums_of_sums_become_one_chain() {
        check(
            "float s = {3}, float t = {4}, float u = {5}, float v = {6}",
            "e = Exp(x) f = Exp(y) m = Mul(x, s) n = Mul(y, t) a = Add(m, n)
             k = Mul(e, u) l = Mul(f, v) b = Add(k, l) z = Add(b, a)",
            "float s = {3}, float[2,1,1,1] t = {4, 4}, float[2,1,1,1] u = {5, 5}, float[2,1,1,1] v = {6, 6}",
            "e = Exp(x) f = Exp(y) m = Mul(x, s)
             n = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(y, t, , m)
             k = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(e, u, , n)
             z = com.microsoft.FusedConv<group = 2, kernel_shape = [1, 1]>(f, v, , k)",
        );
    }

    #[test]
    fn activations_become_an_attribute() {
        let w = "float[2,2,1,1] w = {1, 2, 3, 4}";
        let bounds = format!("{w}, float lo = {{0}}, float hi = {{6}}");
        for (weights, activation, attributes) in [
            (w, "Relu(a)", "activation = \"Relu\""),
            (w, "Sigmoid(a)", "activation = \"Sigmoid\""),
            (w, "Tanh(a)", "activation = \"Tanh\""),
            (w, "LeakyRelu<alpha = 0.5>(a)", "activation = \"LeakyRelu\", activation_params = [0.5]"),
            (w, "HardSigmoid(a)", "activation = \"HardSigmoid\", activation_params = [0.2, 0.5]"),
            (&*bounds, "Clip(a, lo, hi)", "activation = \"Clip\", activation_params = [0.0, 6.0]"),
        ] {
            check(
                weights,
                &format!("c = Conv(x, w) a = Add(c, y) z = {activation}"),
                w,
                &format!("z = com.microsoft.FusedConv<{attributes}>(x, w, , y)"),
            );
        }
    }

    #[test]
    fn what_the_kernel_has_not_is_left_alone() {
        let interface = |ty: &str| format!("({ty} x, {ty} y) => ({ty} z)");
        for ty in ["float16[1,2,2,2]", "double[1,2,2,2]", "float[2,2]", "float[1,2,2,2,2,2]"] {
            let dtype = ty.split('[').next().unwrap_or_default();
            let text = model(&interface(ty), &format!("{dtype} s = {{3}}"), "m = Mul(x, s) z = Add(m, y)");
            assert!(left_alone_for(Target::OrtCpu, PASS, &text).is_empty(), "{ty}");
        }
        let broadcast = "(float[1,2,4,4] x, float[1,2,1,4] y) => (float[1,2,4,4] z)";
        let text = model(broadcast, "float s = {3}", "m = Mul(x, s) z = Add(m, y)");
        assert!(left_alone_for(Target::OrtCpu, PASS, &text).is_empty());
    }

    #[test]
    fn other_targets_get_nothing_of_it() {
        let text = model(X, "float s = {3}", "m = Mul(x, s) z = Add(m, y)");
        assert!(left_alone(PASS, &text).is_empty());
        assert!(left_alone_for(Target::OrtCuda, PASS, &text).is_empty());
    }
}
