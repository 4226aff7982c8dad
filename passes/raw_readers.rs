//! What reads the raw result of a layer, rewritten to read its normalized result: the raw one need not exist then.
//!
//! With `y = a*raw + b` for each channel, `raw = (y - b) / a`:
//! ```text
//! s*raw + t        =  (s/a)*y + (t - s*b/a)
//! raw (an addend)  =  (1/a)*y - b/a
//! g*raw            =  (g*1/a)*y + g*(-b/a)             g: what the network computes, for each channel (of each sample)
//! mean(raw)        =  1/a*mean(y) - b/a                over everything but samples and channels
//! Conv(raw, W, B)  =  Conv(y, W/a, B - sum W*b/a)      a by input channel; no padding, which would be filled with -b/a
//! ```
//! The subtraction cancels digits that `b` took: `raw` comes back with an error of `1 + |b/a| / rms(raw)` units in its
//! last place, where `rms(raw)` is what the normalization's statistics say. Where that is more than [`CANCELS`] in a
//! channel, the rewrite is refused.

use dmopt_ir::{Graph, NewOp, OpId, Operand, Patch, Position, Slot, ValueId};

use crate::Miss;
use crate::accumulate_in_place::PerChannel;
use crate::affine::{Affine, elementwise};
use crate::linear::{Array, MAX_WEIGHT, axis, scaled_weight};

/// By how much more than one rounding the raw result may be off.
const CANCELS: f64 = 32.0;

/// A layer's result and what a normalization makes of it.
pub(crate) struct Normalized<'a> {
    /// The result of the layer.
    pub raw: ValueId,
    /// `y` in terms of it.
    pub affine: Affine,
    /// Its root mean square in each channel.
    pub rms: Vec<f64>,
    /// The operator on the way to `y`.
    pub way: OpId,
    /// `y`, in the patch.
    pub y: Operand,
    /// The graph.
    pub graph: &'a Graph,
    /// True if a step in place may have a bias, which products with computed values need.
    pub biased: bool,
}

impl Normalized<'_> {
    /// Adds to a patch that every other reader of the raw result reads `y`.
    ///
    /// # Errors
    /// A reader that is no step of a linear combination, or digits that would be lost.
    pub fn reread(&self, patch: &mut Patch) -> Result<(), Miss> {
        let graph = self.graph;
        let Affine { scale, shift } = &self.affine;
        for ((a, b), rms) in scale.iter().zip(shift).zip(&self.rms) {
            let ordinary = (*a as f32).is_normal() && ((1.0 / a) as f32).is_normal();
            if !ordinary || 1.0 + (b / a).abs() / rms > CANCELS {
                let name = &graph.value(self.raw).name;
                return Err(Miss::refused(format!(
                    "a channel of '{name}' cannot be had back from its normalization"
                )));
            }
        }
        let mut bare = 0;
        for at in graph.uses(self.raw).filter(|at| at.op != self.way) {
            let result = graph.op(at.op).output(0).ok_or(Miss::NoMatch)?;
            if let Some(gate) = self.gate(at.op).filter(|_| self.is_added(result)) {
                let again = self.gated(gate, at.op, patch)?;
                patch.replace_uses(result, again);
                continue;
            }
            let own =
                elementwise(graph, at.op).filter(|(x, own)| *x == self.raw && own.scale.len() == scale.len());
            match own {
                Some((_, own)) if graph.readers(result) == 1 && self.is_added(result) => {
                    let again = self.combined(&own, at.op, patch)?;
                    patch.replace_uses(result, again);
                }
                _ if at.slot == Slot::Operand(0) && averages(graph, at.op) => {
                    let again = self.averaged(at.op, patch)?;
                    patch.replace_uses(result, again);
                }
                _ if at.slot == Slot::Operand(0) && graph.op(at.op).is("Conv") => {
                    let again = self.convolved(at.op, patch)?;
                    patch.replace_uses(result, again);
                }
                // Twice, and it would be a tensor like the one that is to go.
                _ if bare == 0 && at.slot != Slot::Capture && is_sum(graph, at.op) => bare += 1,
                _ => {
                    let (reader, name) = (graph.describe(at.op), &graph.value(self.raw).name);
                    return Err(Miss::refused(format!("{reader} reads '{name}' as well")));
                }
            }
        }
        if bare > 0 {
            let again = self.combined(&Affine::identity(scale.len()), self.way, patch)?;
            patch.replace_uses(self.raw, again);
        }
        Ok(())
    }

    /// True if only a sum of tensors like the raw result reads this value.
    fn is_added(&self, value: ValueId) -> bool {
        self.graph.uses(value).all(|at| at.slot != Slot::Capture && is_sum(self.graph, at.op))
    }

    /// `own(raw)` in terms of `y`, in the place of an operator.
    fn combined(&self, own: &Affine, place: OpId, patch: &mut Patch) -> Result<Operand, Miss> {
        let back = own.after(&self.affine.inverse());
        self.applied(back, None, self.y, self.spatial()?, place, patch)
    }

    /// The value that an operator multiplies the raw result with, where a step in place can do that.
    fn gate(&self, op: OpId) -> Option<ValueId> {
        let (x, gate) = PerChannel::factor(self.graph, op).filter(|_| self.biased)?;
        (x == self.raw).then_some(gate.value)
    }

    /// `gate * raw` in terms of `y`, in the place of an operator.
    fn gated(&self, gate: ValueId, place: OpId, patch: &mut Patch) -> Result<Operand, Miss> {
        self.applied(self.affine.inverse(), Some(gate), self.y, self.spatial()?, place, patch)
    }

    /// The mean of the raw result in terms of that of `y`.
    fn averaged(&self, op: OpId, patch: &mut Patch) -> Result<Operand, Miss> {
        let operator = self.graph.op(op);
        let kept = operator.is("GlobalAveragePool") || operator.int("keepdims").unwrap_or(1) != 0;
        let spatial = if kept { self.spatial()? } else { 0 };
        let mut operands: Vec<_> = operator.inputs.iter().map(|v| v.map(Operand::from)).collect();
        *operands.first_mut().ok_or(Miss::NoMatch)? = Some(self.y);
        let name = &self.graph.value(self.raw).name;
        let mean = NewOp::like(self.graph, op, operands).result_named(&format!("{name}_mean"));
        let mean = patch.add_op(mean);
        self.applied(self.affine.inverse(), None, mean, spatial, op, patch)
    }

    /// A map, times a gate if there is one, applied to a value with this many dimensions behind the channels, in the place
    /// of an operator.
    fn applied(
        &self,
        map: Affine,
        gate: Option<ValueId>,
        to: Operand,
        spatial: usize,
        place: OpId,
        patch: &mut Patch,
    ) -> Result<Operand, Miss> {
        let coefficient = |what: &str, data: Vec<f64>, patch: &mut Patch| {
            let constant = self.constant(what, data, spatial, patch)?;
            Ok(gate.map_or(constant, |gate| self.product(gate.into(), constant, place, patch)))
        };
        let shifts = map.shift.iter().any(|&c| c != 0.0);
        let factor = coefficient("scale", map.scale, patch)?;
        let product = self.product(to, factor, place, patch);
        if !shifts {
            return Ok(product);
        }
        let addend = coefficient("shift", map.shift, patch)?;
        Ok(self.sum(product, addend, place, patch))
    }

    /// How many dimensions follow the channels.
    fn spatial(&self) -> Result<usize, Miss> {
        let rank = self.graph.tensor_type(self.raw).and_then(|ty| ty.rank());
        rank.and_then(|rank| rank.checked_sub(2)).ok_or(Miss::NoMatch)
    }

    /// A number for each channel, with this many dimensions behind.
    fn constant(
        &self,
        what: &str,
        data: Vec<f64>,
        behind: usize,
        patch: &mut Patch,
    ) -> Result<Operand, Miss> {
        let ty = self.graph.tensor_type(self.raw).ok_or(Miss::NoMatch)?;
        let mut dims = vec![1; behind + 1];
        dims[0] = data.len() as u64;
        let tensor = Array { dims, data }.tensor(ty.dtype);
        let tensor = tensor.ok_or_else(|| Miss::refused("a scaled coefficient does not fit its type"))?;
        Ok(patch.constant(&format!("{}_{what}", self.graph.value(self.raw).name), tensor))
    }

    fn product(&self, a: Operand, b: Operand, place: OpId, patch: &mut Patch) -> Operand {
        let name = format!("{}_product", self.graph.value(self.raw).name);
        patch.add_op(NewOp::new("Mul", [a, b]).result_named(&name).at(Position::At(place)))
    }

    fn sum(&self, a: Operand, b: Operand, place: OpId, patch: &mut Patch) -> Operand {
        let name = format!("{}_sum", self.graph.value(self.raw).name);
        patch.add_op(NewOp::new("Add", [a, b]).result_named(&name).at(Position::At(place)))
    }

    /// A convolution of the raw result as one of `y`.
    fn convolved(&self, op: OpId, patch: &mut Patch) -> Result<Operand, Miss> {
        let (graph, conv) = (self.graph, self.graph.op(op));
        let padded = conv.ints("pads").is_some_and(|pads| pads.iter().any(|&p| p != 0))
            || matches!(conv.string("auto_pad"), Some("SAME_UPPER" | "SAME_LOWER"));
        let refused =
            |why: &str| Miss::refused(format!("{} reads it as well, and {why}", graph.describe(op)));
        if padded {
            return Err(refused("pads it"));
        }
        let w = conv.input(1).ok_or(Miss::NoMatch)?;
        let weight = graph.constant(w).filter(|_| graph.readers(w) == 1);
        let weight = weight.ok_or_else(|| refused("has weights that are shared or computed"))?;
        if weight.byte_len().is_none_or(|bytes| bytes > MAX_WEIGHT) {
            return Err(refused("has weights that are too large"));
        }
        let values = weight.to_f64().map_err(|error| Miss::refused(error.to_string()))?;
        let groups = usize::try_from(conv.int("group").unwrap_or(1)).unwrap_or(0);
        let [filters, each, ..] = &weight.dims[..] else { return Err(Miss::NoMatch) };
        let (filters, each) = (*filters as usize, *each as usize);
        let kernel = values.len() / filters.saturating_mul(each).max(1);
        let Affine { scale, shift } = self.affine.inverse();
        if groups == 0
            || !filters.is_multiple_of(groups)
            || each.checked_mul(groups) != Some(scale.len())
            || kernel == 0
        {
            return Err(Miss::NoMatch);
        }
        let channel = |run: usize| {
            let (filter, within) = (run / each, run % each);
            filter / (filters / groups) * each + within
        };
        let scaled = scaled_weight(&weight, kernel, |run| scale[channel(run)]);
        let scaled = scaled.ok_or_else(|| Miss::refused("a scaled weight does not fit its type"))?;
        let mut bias = match conv.input(2) {
            None => vec![0.0; filters],
            Some(bias) => {
                let own = graph.constant(bias).ok_or_else(|| refused("has a computed bias"))?;
                let own = own.to_f64().map_err(|error| Miss::refused(error.to_string()))?;
                if own.len() != filters {
                    return Err(Miss::NoMatch);
                }
                own
            }
        };
        values
            .iter()
            .enumerate()
            .for_each(|(i, w)| bias[i / (each * kernel)] += w * shift[channel(i / kernel)]);
        let bias = Array { dims: vec![filters as u64], data: bias }.tensor(weight.dtype);
        let bias = bias.ok_or_else(|| Miss::refused("its bias does not fit its type"))?;
        let name = &graph.value(w).name;
        let scaled = patch.constant(&format!("{name}_scaled"), scaled);
        let bias = patch.constant(&format!("{name}_bias"), bias);
        let new = NewOp::like(graph, op, vec![Some(self.y), Some(scaled), Some(bias)]);
        Ok(patch.add_op(new.result_named(&format!("{name}_conv"))))
    }
}

/// A sum whose operands are all of its result's shape.
fn is_sum(graph: &Graph, op: OpId) -> bool {
    let operator = graph.op(op);
    let result = operator.output(0).and_then(|v| graph.tensor_type(v));
    let alike = |v: ValueId| matches!((graph.tensor_type(v), result), (Some(a), Some(b)) if a.same_shape(b));
    operator.is_standard()
        && matches!(operator.op_type.as_str(), "Add" | "Sub" | "Sum")
        && operator.operands().all(alike)
}

/// True for the mean over everything but samples and channels.
fn averages(graph: &Graph, op: OpId) -> bool {
    let operator = graph.op(op);
    let all = || {
        let rank = graph.tensor_type(operator.input(0)?)?.rank()?;
        let axes = match operator.input(1) {
            Some(axes) => graph.constant(axes)?.to_i64().ok()?,
            None => operator.ints("axes")?.to_vec(),
        };
        let mut axes = axes.iter().map(|&a| axis(a, rank)).collect::<Option<Vec<usize>>>()?;
        axes.sort_unstable();
        Some(rank > 2 && axes.into_iter().eq(2..rank))
    };
    operator.is("GlobalAveragePool") || (operator.is("ReduceMean") && all() == Some(true))
}
