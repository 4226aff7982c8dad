//! Maps `y = scale * x + shift` with a constant for each channel (axis 1), and the layers that can take them in.
//!
//! ```text
//! BatchNormalization(x)               =  scale * x + shift    scale = gamma / sqrt(var + epsilon)
//!                                                             shift = beta - scale * mean
//! x + c, x - c, c - x, x * c, x / c   =  scale * x + shift
//! scale * Conv(p, W, B) + shift       =  Conv(p, scale * W, scale * B + shift)     rows of W
//! ConvTranspose likewise                                                           columns, group by group
//! scale * (alpha * A W + beta * C) + shift  =  alpha * A (scale * W) + (scale * beta * C + shift)
//! scale * (A W) + shift               =  Gemm(A, scale * W, shift)                 matrices alone
//! scale * InstanceNormalization(p, W, B) + shift  =  InstanceNormalization(p, scale * W, scale * B + shift)
//! GroupNormalization likewise, from version 21 on, where W and B are one number for each channel
//! ```

use dmopt_ir::{DType, Graph, NewOp, Op, OpId, Operand, Patch, Tensor, ValueId};

use crate::Miss;
use crate::linear::{Array, MAX_CHANNELS, MAX_WEIGHT, scaled_weight};

/// `y = scale * x + shift`, one of each for every channel.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Affine {
    /// The map that changes nothing.
    pub fn identity(channels: usize) -> Affine {
        Affine { scale: vec![1.0; channels], shift: vec![0.0; channels] }
    }

    /// First `inner`, then this.
    pub fn after(&self, inner: &Affine) -> Affine {
        let pairs = |f: fn((f64, f64), (f64, f64)) -> f64| {
            let own = self.scale.iter().copied().zip(self.shift.iter().copied());
            let inner = inner.scale.iter().copied().zip(inner.shift.iter().copied());
            own.zip(inner).map(|(own, inner)| f(own, inner)).collect()
        };
        Affine { scale: pairs(|(s, _), (t, _)| s * t), shift: pairs(|(s, c), (_, d)| s * d + c) }
    }

    /// The map that takes it back; no scale may be 0.
    pub fn inverse(&self) -> Affine {
        let shift = self.scale.iter().zip(&self.shift).map(|(s, c)| -c / s).collect();
        Affine { scale: self.scale.iter().map(|s| 1.0 / s).collect(), shift }
    }

    fn only_shifts(&self) -> bool {
        self.scale.iter().all(|&s| s == 1.0)
    }
}

/// The parameters of a batch normalization in its inference form.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// What is normalized.
    pub x: ValueId,
    /// What the normalization does to it.
    pub affine: Affine,
    /// What it is in each channel on average, by the statistics of the normalization.
    pub mean: Vec<f64>,
    /// Its variance by the same.
    pub variance: Vec<f64>,
}

/// Reads a BatchNormalization that computes `scale * x + shift`.
///
/// # Errors
/// It is none, or is refused because its parameters are not constants.
pub(crate) fn batch_norm(graph: &Graph, id: OpId) -> Result<Norm, Miss> {
    let op = graph.op(id);
    let inference = op.int("training_mode").unwrap_or(0) == 0 && op.results().count() == 1;
    // Before version 9, attributes said whether the statistics are those of a channel.
    if !op.is("BatchNormalization") || !inference || graph.opset("") < 9 {
        return Err(Miss::NoMatch);
    }
    let x = op.input(0).ok_or(Miss::NoMatch)?;
    let ty = graph.tensor_type(x).ok_or(Miss::NoMatch)?;
    let parameter = |slot: usize| {
        let value = op.input(slot).ok_or(Miss::NoMatch)?;
        let tensor =
            graph.constant(value).ok_or_else(|| Miss::refused("its parameters are not constants"))?;
        // From version 14 on, parameters may have a type of their own; the sum is rounded to that of x.
        if !ty.dtype.is_float() || !tensor.dtype.is_float() || tensor.dims.len() != 1 {
            return Err(Miss::NoMatch);
        }
        tensor.to_f64().map_err(|error| Miss::refused(error.to_string()))
    };
    let (gamma, beta, mean, variance) = (parameter(1)?, parameter(2)?, parameter(3)?, parameter(4)?);
    let channels = gamma.len();
    if [&beta, &mean, &variance].iter().any(|p| p.len() != channels) {
        return Err(Miss::NoMatch);
    }
    let epsilon = f64::from(op.float("epsilon").unwrap_or(1e-5));
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift = (0..channels).map(|c| beta[c] - scale[c] * mean[c]).collect();
    Ok(Norm { x, affine: Affine { scale, shift }, mean, variance })
}

/// Reads `x + c`, `x - c`, `c - x`, `x * c`, `x / c` with a constant that is one number, or one for each channel.
pub(crate) fn elementwise(graph: &Graph, id: OpId) -> Option<(ValueId, Affine)> {
    let op = graph.op(id);
    // Before version 7, attributes said how operands broadcast.
    let known = op.is_standard() && graph.opset("") >= 7 && op.inputs.len() == 2 && op.results().count() == 1;
    if !known || !matches!(op.op_type.as_str(), "Add" | "Sub" | "Mul" | "Div") {
        return None;
    }
    let (a, b) = (op.input(0)?, op.input(1)?);
    let (x, constant, swapped) = match (graph.constant(a), graph.constant(b)) {
        (None, Some(constant)) => (a, constant, false),
        (Some(constant), None) => (b, constant, true),
        _ => return None,
    };
    let ty = graph.tensor_type(x)?;
    let rank = ty.rank()?;
    let channels = ty.shape.as_ref()?.get(1)?.known()?;
    if !ty.dtype.is_float() || constant.dims.len() > rank || constant.elements()? > channels {
        return None;
    }
    let constant = Array::new(&constant.dims, constant.to_f64().ok()?).per_channel(channels, rank - 2)?;
    let (same, none) = (vec![1.0; constant.len()], vec![0.0; constant.len()]);
    let (scale, shift) = match (op.op_type.as_str(), swapped) {
        ("Add", _) => (same, constant),
        ("Mul", _) => (constant, none),
        ("Sub", false) => (same, constant.iter().map(|c| -c).collect()),
        ("Sub", true) => (constant.iter().map(|_| -1.0).collect(), constant),
        ("Div", false) if constant.iter().all(|c| c.is_normal() && (1.0 / c).is_normal()) => {
            (constant.iter().map(|c| 1.0 / c).collect(), none)
        }
        _ => return None,
    };
    Some((x, Affine { scale, shift }))
}

/// A layer that is linear in its weights, which are constants.
pub(crate) struct Layer<'g> {
    graph: &'g Graph,
    id: OpId,
    result: ValueId,
    kind: Kind,
    dtype: DType,
    channels: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
    /// An instance or group normalization; its weights are a scale for each channel.
    Norm,
}

impl<'g> Layer<'g> {
    /// The layer that computes this value.
    ///
    /// # Errors
    /// There is none, or its weights are not constants.
    pub fn of(graph: &'g Graph, value: ValueId) -> Result<Layer<'g>, Miss> {
        let id = graph.producer(value).ok_or(Miss::NoMatch)?;
        let op = graph.op(id);
        let kind = match op.op_type.as_str() {
            "Conv" => Kind::Conv,
            "ConvTranspose" => Kind::ConvTranspose,
            "Gemm" => Kind::Gemm,
            "MatMul" => Kind::MatMul,
            "InstanceNormalization" => Kind::Norm,
            "GroupNormalization" if graph.opset("") >= 21 => Kind::Norm,
            _ => return Err(Miss::NoMatch),
        };
        let ty = graph.tensor_type(value).ok_or(Miss::NoMatch)?;
        let shape = ty.shape.as_ref().ok_or(Miss::NoMatch)?;
        let matrix = matches!(kind, Kind::Gemm | Kind::MatMul);
        let channels = shape.get(1).and_then(|d| d.known()).filter(|&channels| channels <= MAX_CHANNELS);
        let channels = channels.ok_or(Miss::NoMatch)? as usize;
        if !op.is_standard() || !ty.dtype.is_float() || (matrix && (shape.len() != 2 || graph.opset("") < 7))
        {
            return Err(Miss::NoMatch);
        }
        let weight = op.input(1).ok_or(Miss::NoMatch)?;
        let rank = graph.tensor_type(weight).and_then(|ty| ty.rank());
        let expected = if kind == Kind::Norm { 1 } else { shape.len() };
        if graph.constant(weight).is_none() || rank != Some(expected) {
            return Err(Miss::refused("its weights are not constants"));
        }
        Ok(Layer { graph, id, result: value, kind, dtype: ty.dtype, channels })
    }

    fn op(&self) -> &'g Op {
        self.graph.op(self.id)
    }

    /// Writes `scale * y + shift` into a patch as one layer in the place of this one, which computes `y`.
    ///
    /// # Errors
    /// The weights have other readers (and are not just one for each channel), are too large, lack the digits, or the new ones do not fit their type.
    pub fn absorb(&self, affine: &Affine, patch: &mut Patch) -> Result<Operand, Miss> {
        if affine.scale.len() != self.channels {
            return Err(Miss::NoMatch);
        }
        let (op, graph) = (self.op(), self.graph);
        let (x, w) = (op.input(0).ok_or(Miss::NoMatch)?, op.input(1).ok_or(Miss::NoMatch)?);
        let name = |value: ValueId| &graph.value(value).name;
        let weight = if affine.only_shifts() {
            w.into()
        } else {
            if self.dtype == DType::F16 {
                return Err(Miss::refused("its float16 weights would lose digits"));
            }
            let tensor = graph.constant(w).ok_or(Miss::NoMatch)?;
            if self.kind != Kind::Norm && graph.readers(w) != 1 {
                return Err(Miss::refused(format!("its weights '{}' have other readers", name(w))));
            }
            if tensor.byte_len().is_none_or(|bytes| bytes > MAX_WEIGHT) {
                return Err(Miss::refused(format!("its weights '{}' are too large", name(w))));
            }
            let (run, channel) = self.channels_of_weight(&tensor).ok_or(Miss::NoMatch)?;
            let scaled = scaled_weight(&tensor, run, |run| affine.scale[channel(run)])
                .ok_or_else(|| Miss::refused("a scaled weight does not fit its type"))?;
            patch.constant(&format!("{}_scaled", name(w)), scaled)
        };
        let old = self.bias()?;
        let hint = format!("{}_scaled", name(self.result));
        let bias: Vec<f64> = (0..self.channels)
            .map(|c| old.as_ref().map_or(0.0, |b| affine.scale[c] * b[c]) + affine.shift[c])
            .collect();
        if old.is_none() && bias.iter().all(|&b| b == 0.0) {
            let new = NewOp::like(graph, self.id, vec![Some(x.into()), Some(weight)]);
            return Ok(patch.add_op(new.result_named(&hint)));
        }
        let bias = Array { dims: vec![self.channels as u64], data: bias };
        let bias = bias.tensor(self.dtype).ok_or_else(|| Miss::refused("its bias does not fit its type"))?;
        let of_bias = match op.input(2) {
            Some(old) => format!("{}_folded", name(old)),
            None => format!("{}_bias", name(w)),
        };
        let bias = patch.constant(&of_bias, bias);
        let operands = vec![Some(x.into()), Some(weight), Some(bias)];
        let new = match self.kind {
            Kind::Gemm => NewOp::like(graph, self.id, operands).attribute("beta", 1.0f32),
            Kind::MatMul => NewOp::with_optional("Gemm", operands)
                .named(op.name.clone())
                .at(dmopt_ir::Position::At(self.id)),
            Kind::Conv | Kind::ConvTranspose | Kind::Norm => NewOp::like(graph, self.id, operands),
        };
        Ok(patch.add_op(new.result_named(&hint)))
    }

    /// Elements of the weights in a row that serve the same channel, and the channel of each such run.
    fn channels_of_weight(&self, weight: &Tensor) -> Option<(usize, impl Fn(usize) -> usize + use<>)> {
        let count = weight.elements()? as usize;
        let rows = *weight.dims.first()? as usize;
        let row = count.checked_div(rows)?;
        let group = usize::try_from(self.op().int("group").unwrap_or(1)).ok()?;
        let (kind, channels) = (self.kind, self.channels);
        let by_row = match kind {
            Kind::Conv | Kind::Norm => true,
            Kind::Gemm => self.op().int("transB").unwrap_or(0) != 0,
            Kind::ConvTranspose | Kind::MatMul => false,
        };
        // Rows of a transposed convolution are its inputs, a share of them for each group.
        let (groups, columns) =
            if kind == Kind::ConvTranspose { (group, *weight.dims.get(1)? as usize) } else { (1, channels) };
        let fits = if by_row {
            rows == channels
        } else {
            groups * columns == channels && rows.is_multiple_of(groups.max(1))
        };
        if !fits || row == 0 || columns == 0 || row % columns != 0 && !by_row {
            return None;
        }
        let run = if by_row { row } else { row / columns };
        let channel = move |run: usize| match by_row {
            true => run,
            false => run / columns / (rows / groups) * columns + run % columns,
        };
        Some((run, channel))
    }

    /// What is added for each channel, if anything is.
    fn bias(&self) -> Result<Option<Vec<f64>>, Miss> {
        let Some(value) = self.op().input(2) else { return Ok(None) };
        let tensor = self.graph.constant(value).ok_or_else(|| Miss::refused("its bias is not a constant"))?;
        let data = tensor.to_f64().map_err(|error| Miss::refused(error.to_string()))?;
        let beta = match self.kind {
            Kind::Gemm => f64::from(self.op().float("beta").unwrap_or(1.0)),
            _ => 1.0,
        };
        let bias = Array::new(&tensor.dims, data).per_channel(self.channels as u64, 0);
        let bias = bias.ok_or_else(|| Miss::refused("its bias is not one number for each channel"))?;
        Ok(Some(bias.into_iter().map(|b| b * beta).collect()))
    }
}
