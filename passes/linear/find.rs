//! Reading a linear combination out of a graph.

use std::cell::RefCell;

use dmopt_ir::hash::{HashMap, HashSet};
use dmopt_ir::{Dim, Graph, Op, OpId, TensorType, ValueId};

use super::factor::{broadcasts_into, is_single};
use super::{Array, Computed, Expr, Factor};

/// One term: `factor * x`, or the factor alone.
#[derive(Clone, PartialEq, Debug)]
pub struct Term {
    /// The tensor that is scaled; `None` for an addend that broadcasts, such as a bias.
    pub x: Option<ValueId>,
    /// What it is scaled by.
    pub factor: Factor,
    /// True when the file scales it, be it by 1; false for a mere sign.
    pub scaled: bool,
}

/// How a file writes a combination; the most particular construct in it counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// Add, Sub, Neg, Mul, Div.
    Chain,
    /// Sum of several operands.
    Sum,
    /// Mean of several operands.
    Mean,
    /// 1x1 convolutions by scaled identities.
    IdentityConv,
    /// ReduceSum over a stack.
    StackSum,
    /// ReduceMean over a stack.
    StackMean,
    /// ReduceSum over a stack that is scaled as a whole.
    StackScaledSum,
    /// A 1x1 convolution of concatenated channels, its kernel made of scaled identities.
    ConcatConv,
    /// Einsum of a vector and a stack.
    Einsum,
    /// MatMul or Gemm of a vector and a stack.
    MatMul,
}

impl Form {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Form::Chain => "chain",
            Form::Sum => "sum",
            Form::Mean => "mean",
            Form::IdentityConv => "identity-conv",
            Form::StackSum => "stack-sum",
            Form::StackMean => "stack-mean",
            Form::StackScaledSum => "stack-scaled-sum",
            Form::ConcatConv => "concat-conv",
            Form::Einsum => "einsum",
            Form::MatMul => "matmul",
        }
    }
}

/// A linear combination, flattened.
#[derive(Clone, Debug)]
pub struct Combination {
    /// Type of every `x`. The value that was read has as many elements in the same order; its shape may differ.
    pub ty: TensorType,
    /// The terms, in the order in which the file adds them.
    pub terms: Vec<Term>,
    /// How the file writes it.
    pub form: Form,
    /// The operators that were looked through, the one of the result included.
    pub ops: Vec<OpId>,
    /// Sums within this one that are mixing sites of their own, where it adds up several.
    pub parts: Vec<Part>,
    /// One of the terms lies so deep that it was not looked into: the combination is a part of what the file adds up.
    pub is_cut: bool,
}

/// A mixing site within a larger sum.
#[derive(Clone, Debug)]
pub struct Part {
    /// The value that holds it.
    pub value: ValueId,
    /// Number of its terms.
    pub width: usize,
    /// How the file writes it.
    pub form: Form,
}

impl Combination {
    pub(super) fn leaf(x: ValueId, ty: TensorType) -> Combination {
        let terms = vec![Term { x: Some(x), factor: Factor::one(), scaled: false }];
        Combination { ty, terms, form: Form::Chain, ops: Vec::new(), parts: Vec::new(), is_cut: false }
    }

    /// What makes a sum a mixing site: two terms, both scaled, or one by a number or a computed coefficient; or
    /// three terms; or two convolutions and an addend; or a stack, however few slices it has. A residual connection
    /// is none, nor is one to the scale and shift of a normalisation.
    pub fn is_mixing(&self, graph: &Graph) -> bool {
        if self.form > Form::IdentityConv {
            return true;
        }
        let terms: Vec<&Term> = self.terms.iter().filter(|t| t.x.is_some()).collect();
        match terms.len() {
            0 | 1 => false,
            2 => {
                let scaled = |t: &&Term| t.scaled && !t.x.is_some_and(|x| is_normalised(graph, x));
                let by_number = |t: &&Term| scaled(t) && (t.factor.is_single() || !t.factor.parts.is_empty());
                let conv =
                    |t: &&Term| t.x.and_then(|x| graph.producer(x)).is_some_and(|op| graph.op(op).is("Conv"));
                let addend = terms.len() < self.terms.len();
                terms.iter().all(scaled) || terms.iter().any(by_number) || (addend && terms.iter().all(conv))
            }
            _ => true,
        }
    }

    /// True if neither it nor any part of it can be a mixing site, whatever its coefficients.
    pub fn is_single(&self) -> bool {
        self.form <= Form::IdentityConv && self.width() < 2
    }

    /// A mixing site that nothing around it belongs to: it has its addend already, or is contracted from a stack.
    fn is_closed(&self, graph: &Graph) -> bool {
        let closes = self.form > Form::IdentityConv || self.terms.iter().any(|t| t.x.is_none());
        closes && self.is_mixing(graph)
    }

    /// Terms that have an `x`.
    pub fn width(&self) -> usize {
        self.terms.iter().filter(|t| t.x.is_some()).count()
    }

    /// All terms scaled; `None` when a coefficient would have to grow.
    pub(super) fn times(&self, factor: &Factor) -> Option<Combination> {
        let mut out = self.clone();
        for term in &mut out.terms {
            term.factor = term.factor.times(factor)?;
            term.scaled = true;
        }
        Some(out)
    }

    /// Makes one term of those with the same `x` (or none) and the same computed coefficient.
    pub(super) fn merge(&mut self) {
        // Most combinations have a term or two.
        if let [] | [_] = self.terms[..] {
            return;
        }
        if let [first, second] = &self.terms[..]
            && first.x != second.x
        {
            return;
        }
        let mut merged: Vec<Term> = Vec::new();
        let mut places: HashMap<Option<ValueId>, Vec<usize>> = HashMap::default();
        for term in self.terms.drain(..) {
            let places = places.entry(term.x).or_default();
            let known = places.iter().find(|&&at| merged[at].factor.parts == term.factor.parts);
            let sum =
                known.and_then(|&at| Some((at, merged[at].factor.constant.plus(&term.factor.constant)?)));
            match sum {
                Some((at, sum)) => {
                    merged[at].factor.constant = sum;
                    merged[at].scaled = true;
                }
                None => {
                    places.push(merged.len());
                    merged.push(term);
                }
            }
        }
        self.terms = merged;
    }

    /// `scale * combination + shift`, with one of each for every channel. `None` where a coefficient would have to grow.
    pub fn mapped(&self, scale: &[f64], shift: &[f64]) -> Option<Combination> {
        let spatial = self.ty.rank()?.checked_sub(2)?;
        let mut out = self.times(&Factor::constant(channel_array(scale.to_vec(), spatial)))?;
        let constant = Factor::constant(channel_array(shift.to_vec(), spatial));
        out.terms.push(Term { x: None, factor: constant, scaled: false });
        out.merge();
        Some(out)
    }

    /// All terms with the other sign.
    pub(super) fn negated(mut self) -> Combination {
        for term in &mut self.terms {
            term.factor = term.factor.map(|v| -v);
        }
        self
    }

    pub(super) fn through(mut self, op: OpId, form: Form) -> Combination {
        self.ops.push(op);
        self.form = self.form.max(form);
        self
    }

    pub(super) fn absorb(&mut self, other: Combination) {
        self.terms.extend(other.terms);
        self.ops.extend(other.ops);
        self.parts.extend(other.parts);
        self.form = self.form.max(other.form);
        self.is_cut |= other.is_cut;
    }
}

/// True for the result of a normalisation, also in another shape: its scale per channel is part of it.
fn is_normalised(graph: &Graph, mut value: ValueId) -> bool {
    while let Some(op) = graph.producer(value).map(|op| graph.op(op)) {
        match op.input(0) {
            _ if op.op_type.ends_with("Normalization") => return true,
            Some(input) if op.is("Reshape") => value = input,
            _ => return false,
        }
    }
    false
}

/// Reads combinations out of one graph.
pub struct Finder<'g> {
    pub(super) graph: &'g Graph,
    /// True if operands broadcast by the rules of today; before version 7, attributes said how.
    broadcasts: bool,
    obstacles: RefCell<Vec<(OpId, String)>>,
    /// Values that are no stack along an axis, as far as one combination can see.
    pub(super) is_whole: RefCell<HashSet<(ValueId, usize)>>,
    /// How often an operator was looked at.
    #[cfg(test)]
    pub looks: std::cell::Cell<usize>,
}

/// Sums nested deeper than this are read in parts, so that a hostile file cannot exhaust the stack.
const MAX_DEPTH: usize = 200;

/// Combinations with more terms than this are left alone: what is written for them is nested as deep.
const MAX_TERMS: usize = 512;

/// Constants with more elements than this are not read as coefficients.
const MAX_COEFFICIENT: u64 = 1 << 20;

impl<'g> Finder<'g> {
    /// A reader of this graph.
    pub fn new(graph: &'g Graph) -> Finder<'g> {
        Finder {
            graph,
            broadcasts: graph.opset("") >= 7,
            obstacles: RefCell::default(),
            is_whole: RefCell::default(),
            #[cfg(test)]
            looks: std::cell::Cell::default(),
        }
    }

    /// Patterns that were met since the last call and could not be looked through, with the reason.
    pub fn take_obstacles(&self) -> Vec<(OpId, String)> {
        self.obstacles.take()
    }

    /// The combination that computes `value`, looking through at least its own operator.
    ///
    /// # Errors
    /// It is not linear, or not certain to be, or has too many terms; the operators that were looked through then.
    pub fn combination(&self, value: ValueId) -> Result<Combination, Vec<OpId>> {
        self.is_whole.borrow_mut().clear();
        let mut all = self.linear(value, 0).ok_or_else(Vec::new)?;
        if all.terms.len() > MAX_TERMS {
            self.graph
                .producer(value)
                .into_iter()
                .for_each(|op| self.refuse(op, format!("more than {MAX_TERMS} terms")));
            return Err(all.ops);
        }
        all.merge();
        // A partial sum that is read several times, but within this combination alone, need not exist either:
        // a + w * (b - a) reads a twice. As many are looked through as there may be terms.
        let is_read_again = |t: &Term| t.x.is_some_and(|x| self.graph.readers(x) > 1);
        if !all.terms.iter().any(is_read_again) {
            return Ok(all);
        }
        let mut ops: HashSet<OpId> = all.ops.iter().copied().collect();
        for _ in 0..MAX_TERMS {
            let within = |t: &Term| self.within(t.x?, &all, &ops);
            let Some((x, inner)) = all.terms.iter().find_map(within) else { break };
            let Some(at) = all.terms.iter().position(|t| t.x == Some(x)) else { break };
            let Some(scaled) = inner.times(&all.terms[at].factor) else { break };
            if all.terms.len() + scaled.terms.len() > MAX_TERMS {
                break;
            }
            all.terms.splice(at..=at, scaled.terms);
            ops.extend(&inner.ops);
            all.ops.extend(&inner.ops);
            all.form = all.form.max(inner.form);
            all.is_cut |= inner.is_cut;
            all.merge();
        }
        Ok(all)
    }

    /// The combination behind a term that only `ops`, the operators of `all`, read, if it is one term: with two computed
    /// coefficients, looking through would double what is behind it.
    fn within(&self, x: ValueId, all: &Combination, ops: &HashSet<OpId>) -> Option<(ValueId, Combination)> {
        let inside = self.graph.readers(x) > 1
            && !self.graph.is_output(x)
            && self.graph.uses(x).all(|at| ops.contains(&at.op))
            && all.terms.iter().filter(|t| t.x == Some(x)).count() == 1;
        let inner = inside.then(|| self.linear(x, 1)).flatten()?;
        inner.ty.same_shape(&all.ty).then_some((x, inner))
    }

    pub(super) fn refuse(&self, op: OpId, reason: impl Into<String>) {
        self.obstacles.borrow_mut().push((op, reason.into()));
    }

    /// The combination behind a value that only one operator reads, or the value itself as the one term.
    pub(super) fn term(&self, value: ValueId, depth: usize) -> Option<Combination> {
        let ty = self.graph.tensor_type(value)?;
        let inner = (self.graph.readers(value) == 1 && depth < MAX_DEPTH)
            .then(|| self.linear(value, depth + 1))
            .flatten();
        Some(inner.unwrap_or_else(|| {
            let mut leaf = Combination::leaf(value, ty.clone());
            leaf.terms[0].scaled = depth <= MAX_DEPTH && self.is_cast_of_scaled(value);
            leaf.is_cut = depth >= MAX_DEPTH && self.graph.producer(value).is_some();
            leaf
        }))
    }

    /// True for `Cast(a * s)` that serves this reader alone: a scaled term, though rounded on the way.
    fn is_cast_of_scaled(&self, value: ValueId) -> bool {
        let cast = self.graph.producer(value).map(|op| self.graph.op(op)).filter(|op| op.is("Cast"));
        let scaled = cast.and_then(|op| op.input(0)).filter(|&v| self.graph.readers(v) == 1);
        self.graph.readers(value) == 1
            // Deeper than any sum: whether what is scaled is such a cast itself does not matter.
            && scaled.and_then(|v| self.linear(v, MAX_DEPTH + 1)).is_some_and(|c| c.width() == 1)
    }

    /// As [`term`](Finder::term), with every `x` of the value's own shape.
    pub(super) fn term_of_shape(&self, value: ValueId, depth: usize) -> Option<Combination> {
        let ty = self.graph.tensor_type(value)?;
        let inner = self.term(value, depth)?;
        Some(if inner.ty.same_shape(ty) { inner } else { Combination::leaf(value, ty.clone()) })
    }

    fn linear(&self, value: ValueId, depth: usize) -> Option<Combination> {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        let id = self.graph.producer(value)?;
        let op = self.graph.op(id);
        if !self.broadcasts || !op.is_standard() || op.output(0) != Some(value) || op.results().count() != 1 {
            return None;
        }
        let known = self.graph.tensor_type(value).filter(|t| t.shape.is_some());
        let Some(ty) = known else {
            if self.reads_a_stack(op) {
                self.refuse(id, "its shape is not known");
            }
            return None;
        };
        if !ty.dtype.is_float() {
            return None;
        }
        match op.op_type.as_str() {
            "Add" | "Sub" | "Sum" | "Mean" => self.sum(id, op, ty, depth),
            "Neg" => Some(self.term(op.input(0)?, depth)?.negated().through(id, Form::Chain)),
            "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let inner = self.term(op.input(0)?, depth)?;
                // Looking through a change of shape alone finds nothing.
                (!inner.ops.is_empty()).then(|| inner.through(id, Form::Chain))
            }
            "Mul" | "Div" => self.scale(id, op, ty, depth),
            "ReduceSum" | "ReduceMean" => self.reduced_stack(id, op, depth),
            "Einsum" => self.einsum(id, op, depth),
            "MatMul" | "Gemm" => self.matmul(id, op, depth),
            "Conv" => self.conv(id, op, ty, depth),
            _ => None,
        }
    }

    /// `a + b`, `a - b`, `Sum`, `Mean`: operands of the result's shape are terms, smaller ones are added as they are.
    fn sum(&self, id: OpId, op: &Op, ty: &TensorType, depth: usize) -> Option<Combination> {
        let form = match op.op_type.as_str() {
            "Sum" => Form::Sum,
            "Mean" => Form::Mean,
            _ => Form::Chain,
        };
        let mut operands = Vec::new();
        let mut addends = Vec::new();
        for (slot, operand) in op.inputs.iter().enumerate() {
            let operand = (*operand)?;
            let negative = op.op_type == "Sub" && slot == 1;
            if self.graph.tensor_type(operand)?.same_shape(ty) {
                let part = self.term_of_shape(operand, depth)?;
                operands.push((operand, if negative { part.negated() } else { part }));
            } else {
                let factor = self.factor(operand, ty)?;
                let factor = if negative { factor.map(|v| -v) } else { factor };
                addends.push(Term { x: None, factor, scaled: false });
            }
        }
        if operands.iter().filter(|(_, c)| c.is_closed(self.graph)).count() > 1 {
            for (value, part) in &mut operands {
                if part.parts.is_empty() && part.is_closed(self.graph) {
                    part.parts.push(Part { value: *value, width: part.width(), form: part.form });
                }
            }
        }
        let mut operands = operands.into_iter().map(|(_, part)| part);
        let mut all = operands.next()?;
        operands.for_each(|part| all.absorb(part));
        all.terms.extend(addends);
        if op.op_type == "Mean" {
            all = all.times(&scalar(1.0 / op.inputs.len() as f64))?;
        }
        Some(all.through(id, form))
    }

    /// `a * s`, `s * a`, `a / s`, where s broadcasts into a and is smaller.
    fn scale(&self, id: OpId, op: &Op, ty: &TensorType, depth: usize) -> Option<Combination> {
        let (a, b) = (op.input(0)?, op.input(1)?);
        let full = |v: ValueId| self.graph.tensor_type(v).is_some_and(|t| t.same_shape(ty));
        let (x, s) = match (full(a), full(b)) {
            (true, false) => (a, b),
            (false, true) if op.op_type == "Mul" => (b, a),
            // Of two tensors of one element, a constant one is the coefficient.
            (true, true) if is_single(ty.shape.as_ref()?) => {
                match (self.graph.constant(a).is_some(), self.graph.constant(b).is_some()) {
                    (_, true) => (a, b),
                    (true, false) => (b, a),
                    _ => return None,
                }
            }
            _ => return None,
        };
        if op.op_type == "Div" && s != b {
            return None;
        }
        let mut factor = self.factor(s, ty)?;
        if op.op_type == "Div" {
            factor = self.reciprocal(factor, s, ty)?;
        }
        let inner = self.term(x, depth)?;
        let inner = if inner.ty.same_shape(ty) || factor.is_single() { inner.times(&factor) } else { None };
        inner.or_else(|| Combination::leaf(x, ty.clone()).times(&factor)).map(|c| c.through(id, Form::Chain))
    }

    /// A value as a coefficient of a tensor of type `ty`; `None` unless it certainly broadcasts into it.
    pub(super) fn factor(&self, value: ValueId, ty: &TensorType) -> Option<Factor> {
        let own = self.graph.tensor_type(value)?;
        if own.dtype != ty.dtype || !broadcasts_into(own.shape.as_ref()?, ty.shape.as_ref()?) {
            return None;
        }
        self.any_factor(value)
    }

    /// A value as a coefficient, whatever it scales.
    pub(super) fn any_factor(&self, value: ValueId) -> Option<Factor> {
        let shape = self.graph.tensor_type(value)?.shape.clone()?;
        if let Some(tensor) = self.graph.constant(value)
            && tensor.elements().is_some_and(|n| n <= MAX_COEFFICIENT)
            && let Ok(data) = tensor.to_f64()
        {
            return Some(Factor::constant(Array::new(&tensor.dims, data)));
        }
        let part = Computed { expr: Expr::Value(value), shape, inverse: false };
        Some(Factor { constant: Array::scalar(1.0), parts: vec![part] })
    }

    /// 1/s: of a constant where that is an ordinary number, of a computed value as a division.
    fn reciprocal(&self, factor: Factor, s: ValueId, ty: &TensorType) -> Option<Factor> {
        if factor.parts.is_empty() {
            let inverse = factor.constant.map(|v| 1.0 / v);
            let fine = |v: &f64| v.is_normal() && (1.0 / v).is_normal();
            if inverse.data.iter().all(fine) && inverse.tensor(ty.dtype).is_some() {
                return Some(Factor::constant(inverse));
            }
        }
        let shape = self.graph.tensor_type(s)?.shape.clone()?;
        let part = Computed { expr: Expr::Value(s), shape, inverse: true };
        Some(Factor { constant: Array::scalar(1.0), parts: vec![part] })
    }

    /// A 1x1 convolution whose kernel is made of diagonals, of one tensor or of concatenated ones.
    fn conv(&self, id: OpId, op: &Op, ty: &TensorType, depth: usize) -> Option<Combination> {
        let (x, w) = (op.input(0)?, op.input(1)?);
        let rank = ty.rank()?;
        let kernel = self.graph.tensor_type(w)?.dims()?;
        let pointwise = rank >= 3
            && kernel.len() == rank
            && kernel[2..].iter().all(|&k| k == 1)
            && op.ints("strides").is_none_or(|s| s.iter().all(|&s| s == 1))
            && op.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0));
        if !pointwise {
            return None;
        }
        let (outputs, per_group, group) = (kernel[0], kernel[1], op.int("group").unwrap_or(1));
        let inputs = self.graph.tensor_type(x)?.shape.as_ref()?.get(1)?.known()?;
        let spatial = rank - 2;
        let mut all = if group == 1 && per_group == inputs && inputs == outputs {
            let block = self.diagonals(w, outputs, 1, spatial)?.pop()?;
            self.term_of_shape(x, depth)?.times(&Factor::constant(block))?.through(id, Form::IdentityConv)
        } else if group as u64 == inputs && inputs == outputs && per_group == 1 {
            let scales = self.graph.constant(w)?.to_f64().ok()?;
            let scales = channel_array(scales, spatial);
            self.term_of_shape(x, depth)?.times(&Factor::constant(scales))?.through(id, Form::IdentityConv)
        } else if group == 1 && per_group == inputs && outputs > 0 && inputs % outputs == 0 {
            self.concat_conv(id, op, outputs, depth)?
        } else {
            return None;
        };
        if let Some(bias) = op.input(2) {
            let bias = self.graph.constant(bias)?.to_f64().ok()?;
            let factor = Factor::constant(channel_array(bias, spatial));
            all.terms.push(Term { x: None, factor, scaled: false });
        }
        all.ty.same_shape(ty).then_some(all)
    }

    fn concat_conv(&self, id: OpId, op: &Op, channels: u64, depth: usize) -> Option<Combination> {
        let (x, w) = (op.input(0)?, op.input(1)?);
        let concat_id = self.graph.producer(x)?;
        let concat = self.graph.op(concat_id);
        let rank = self.graph.tensor_type(x)?.rank()?;
        if !concat.is("Concat") || super::stack::axis(concat.int("axis")?, rank)? != 1 {
            return None;
        }
        let parts: Vec<ValueId> = concat.operands().collect();
        let whole = parts.iter().all(|&p| {
            let shape = self.graph.tensor_type(p).and_then(|t| t.shape.as_ref());
            shape.and_then(|s| s.get(1)) == Some(&Dim::Known(channels))
        });
        if !whole {
            return None;
        }
        if self.graph.constant(w).is_none() {
            self.refuse(id, "the kernel over concatenated channels is not a constant");
            return None;
        }
        let blocks = self.diagonals(w, channels, parts.len(), rank - 2)?;
        if self.graph.readers(x) != 1 {
            self.refuse(id, "the concatenated tensor has other readers");
            return None;
        }
        let mut all: Option<Combination> = None;
        for (part, block) in parts.into_iter().zip(blocks) {
            let term = self.term_of_shape(part, depth)?.times(&Factor::constant(block))?;
            match &mut all {
                Some(all) => all.absorb(term),
                None => all = Some(term),
            }
        }
        Some(all?.through(concat_id, Form::ConcatConv).through(id, Form::ConcatConv))
    }

    /// The kernel `[channels, parts * channels, 1...]` as one diagonal for each part; `None` when any element beside
    /// the diagonals is not zero.
    fn diagonals(&self, w: ValueId, channels: u64, parts: usize, spatial: usize) -> Option<Vec<Array>> {
        let kernel = self.graph.constant(w)?;
        if kernel.byte_len()? > MAX_KERNEL {
            return None;
        }
        let data = kernel.to_f64().ok()?;
        let (channels, row) = (channels as usize, channels as usize * parts);
        if data.len() != channels * row {
            return None;
        }
        for (i, &v) in data.iter().enumerate() {
            if v != 0.0 && (i % row) % channels != i / row {
                return None;
            }
        }
        let diagonal = |part: usize| {
            let values: Vec<f64> = (0..channels).map(|c| data[c * row + part * channels + c]).collect();
            channel_array(values, spatial)
        };
        Some((0..parts).map(diagonal).collect())
    }
}

/// Kernels larger than this are not read in search of diagonals.
const MAX_KERNEL: u64 = 64 << 20;

/// One value for each channel of a tensor with `spatial` dimensions behind the channels; a scalar if all are equal.
fn channel_array(values: Vec<f64>, spatial: usize) -> Array {
    match values.first() {
        Some(&first) if values.iter().all(|v| v.to_bits() == first.to_bits()) => Array::scalar(first),
        _ => {
            let mut dims = vec![values.len() as u64];
            dims.resize(spatial + 1, 1);
            Array { dims, data: values }
        }
    }
}

pub(super) fn scalar(value: f64) -> Factor {
    Factor::constant(Array::scalar(value))
}
