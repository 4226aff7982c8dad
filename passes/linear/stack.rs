//! Stacks: tensors whose slices along one axis are separate tensors (Unsqueeze + Concat), and what contracts them.

use dmopt_ir::{Dim, Op, OpId, Tensor, TensorType, ValueId};

use super::find::scalar;
use super::{Array, Combination, Computed, Expr, Factor, Finder, Form};

/// The slices of a stack along its axis.
type Slices = Vec<Combination>;

impl Finder<'_> {
    /// True when an operand comes from a Concat, directly or through what keeps a stack a stack: worth a word when
    /// it cannot be looked through.
    pub(super) fn reads_a_stack(&self, op: &Op) -> bool {
        let contracts = ["ReduceSum", "ReduceMean", "Einsum", "MatMul", "Gemm"];
        contracts.contains(&op.op_type.as_str())
            && op.operands().any(|v| {
                let mut value = v;
                for _ in 0..8 {
                    let Some(producer) = self.graph.producer(value) else { return false };
                    let producer = self.graph.op(producer);
                    match producer.op_type.as_str() {
                        "Concat" => return true,
                        "Mul" | "Div" | "Neg" | "Reshape" | "Flatten" | "Identity" => {
                            match producer.input(0) {
                                Some(input) => value = input,
                                None => return false,
                            }
                        }
                        _ => return false,
                    }
                }
                false
            })
    }

    /// `ReduceSum` or `ReduceMean` along the axis of a stack.
    pub(super) fn reduced_stack(&self, id: OpId, op: &Op, depth: usize) -> Option<Combination> {
        let stack = op.input(0)?;
        let rank = self.graph.tensor_type(stack)?.rank()?;
        let axes = match op.input(1) {
            Some(v) => self.graph.constant(v)?.to_i64().ok()?,
            None => op.ints("axes")?.to_vec(),
        };
        let &[reduced] = axes.as_slice() else { return None };
        let slices = self.slices(stack, axis(reduced, rank)?, depth)?;
        let scaled = slices.iter().any(|s| s.form == Form::StackScaledSum);
        let (form, scale) = match (op.op_type.as_str(), scaled) {
            ("ReduceMean", _) => (Form::StackMean, 1.0 / slices.len() as f64),
            (_, true) => (Form::StackScaledSum, 1.0),
            (_, false) => (Form::StackSum, 1.0),
        };
        let all = add_up(slices)?;
        let all = if form == Form::StackMean { all.times(&scalar(scale))? } else { all };
        Some(all.through(id, form))
    }

    /// `Einsum` of a vector and a stack, contracted along the stacked axis: `n,n...->...` and the like. The vector
    /// may have further labels, all of size one.
    pub(super) fn einsum(&self, id: OpId, op: &Op, depth: usize) -> Option<Combination> {
        let equation: String = op.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        let (operands, result) = equation.split_once("->")?;
        let (left, right) = operands.split_once(',')?;
        let &[Some(a), Some(b)] = op.inputs.as_slice() else { return None };
        for (vector, vector_labels, stack, stack_labels) in [(a, left, b, right), (b, right, a, left)] {
            let dims = self.graph.tensor_type(vector)?.shape.clone()?;
            if vector_labels.len() != dims.len() || !vector_labels.chars().all(char::is_alphabetic) {
                continue;
            }
            let long = (0..dims.len()).filter(|&i| dims[i] != Dim::Known(1)).collect::<Vec<_>>();
            let contracted = match long.as_slice() {
                &[i] => i,
                [] if dims.len() == 1 => 0,
                _ => continue,
            };
            let label = vector_labels.chars().nth(contracted)?;
            let kept: String = stack_labels.chars().filter(|&c| c != label).collect();
            let others = |c: &char| vector_labels.contains(*c) && !stack_labels.contains(*c);
            let without_ones: String = result.chars().filter(|c| !others(c)).collect();
            if stack_labels.matches(label).count() != 1 || kept != without_ones || result.contains(label) {
                continue;
            }
            let place = stack_labels.find(label)?;
            let stacked = match stack_labels.find("...") {
                // Behind an ellipsis only the distance from the end is certain.
                Some(dots) if dots < place => {
                    self.graph.tensor_type(stack)?.rank()?.checked_sub(stack_labels.len() - place)?
                }
                _ => place,
            };
            let slices = self.slices(stack, stacked, depth)?;
            return Some(self.contract(vector, contracted, slices)?.through(id, Form::Einsum));
        }
        None
    }

    /// `MatMul` or `Gemm` of a vector (or a matrix of one row or column) and a stack.
    pub(super) fn matmul(&self, id: OpId, op: &Op, depth: usize) -> Option<Combination> {
        let (a, b) = (op.input(0)?, op.input(1)?);
        let gemm = op.op_type == "Gemm";
        if gemm && op.input(2).is_some() {
            return None;
        }
        let transposed = |name: &str| gemm && op.int(name).unwrap_or(0) != 0;
        let alpha = if gemm { op.float("alpha").unwrap_or(1.0) as f64 } else { 1.0 };
        let (rows, columns) = (self.graph.tensor_type(a)?, self.graph.tensor_type(b)?);
        let (rank_a, rank_b) = (rows.rank()?, columns.rank()?);
        let inner_a = if transposed("transA") { rank_a.checked_sub(2)? } else { rank_a.checked_sub(1)? };
        let inner_b = match rank_b {
            1 => 0,
            _ if transposed("transB") => rank_b.checked_sub(1)?,
            _ => rank_b.checked_sub(2)?,
        };
        let is_vector = |ty: &TensorType, inner: usize| {
            let shape = ty.shape.as_ref();
            shape.is_some_and(|s| (0..s.len()).all(|i| i == inner || s[i] == Dim::Known(1)))
        };
        let contract = |vector, along, stack, stacked| {
            let slices = self.slices(stack, stacked, depth)?;
            self.contract(vector, along, slices)?.times(&scalar(alpha))
        };
        // A matrix times a batch of matrices stacks along another axis than the contracted one of each.
        let mut found = None;
        if is_vector(rows, inner_a) && (rank_a <= 2 || rank_b <= rank_a) {
            found = contract(a, inner_a, b, inner_b);
        }
        if found.is_none() && is_vector(columns, inner_b) && (rank_b <= 2 || rank_a <= rank_b) {
            found = contract(b, inner_b, a, inner_a);
        }
        Some(found?.through(id, Form::MatMul))
    }

    /// `sum_i vector_i * slice_i`.
    fn contract(&self, vector: ValueId, along: usize, slices: Slices) -> Option<Combination> {
        let factor = self.any_factor(vector)?;
        let dims = self.graph.tensor_type(vector)?.shape.clone()?;
        if dims.get(along)?.known()? != slices.len() as u64 {
            return None;
        }
        let scaled =
            slices.into_iter().enumerate().map(|(i, slice)| slice.times(&element(&factor, &dims, along, i)?));
        add_up(scaled.collect::<Option<Slices>>()?)
    }

    /// The slices of a tensor that only one operator reads, along `stacked`. Where there are none, that is asked once: a
    /// Reshape may have several axes to ask about, and so may the next.
    fn slices(&self, value: ValueId, stacked: usize, depth: usize) -> Option<Slices> {
        if self.is_whole.borrow().contains(&(value, stacked)) {
            return None;
        }
        let slices = self.slices_of(value, stacked, depth);
        if slices.is_none() {
            self.is_whole.borrow_mut().insert((value, stacked));
        }
        slices
    }

    fn slices_of(&self, value: ValueId, stacked: usize, depth: usize) -> Option<Slices> {
        let id = self.graph.producer(value)?;
        let op = self.graph.op(id);
        if !op.is_standard() || depth > 64 {
            return None;
        }
        if self.graph.readers(value) != 1 {
            if op.op_type == "Concat" {
                self.refuse(id, "the stacked tensor has other readers");
            }
            return None;
        }
        let ty = self.graph.tensor_type(value)?;
        let shape = ty.shape.as_ref()?;
        let mut slices = match op.op_type.as_str() {
            "Concat" if axis(op.int("axis")?, shape.len())? == stacked => {
                op.inputs.iter().map(|&v| self.slice(v?, stacked, depth)).collect::<Option<Slices>>()?
            }
            "Unsqueeze" => vec![self.slice(value, stacked, depth)?],
            "Identity" => self.slices(op.input(0)?, stacked, depth + 1)?,
            "Neg" => {
                let slices = self.slices(op.input(0)?, stacked, depth + 1)?;
                slices.into_iter().map(Combination::negated).collect()
            }
            "Mul" | "Div" => self.scaled_slices(op, ty, stacked, depth)?,
            // Row-major order keeps slices whole when nothing but ones stands before their axis, here and there.
            "Reshape" | "Flatten" if ones_before(shape, stacked) => {
                let input = op.input(0)?;
                let inner = self.graph.tensor_type(input)?.shape.as_ref()?;
                let fits = |&j: &usize| ones_before(inner, j) && inner[j].same(&shape[stacked]);
                (0..inner.len()).filter(fits).find_map(|j| self.slices(input, j, depth + 1))?
            }
            _ => return None,
        };
        // One slice remembers the operator for all of them.
        slices.first_mut()?.ops.push(id);
        Some(slices)
    }

    /// An operand of the Concat that makes a stack: a tensor with an axis of size one put in.
    fn slice(&self, value: ValueId, stacked: usize, depth: usize) -> Option<Combination> {
        let shape = self.graph.tensor_type(value)?.shape.clone()?;
        if shape.get(stacked)? != &Dim::Known(1) {
            return None;
        }
        let id = self.graph.producer(value)?;
        let op = self.graph.op(id);
        if !op.is("Unsqueeze") && !op.is("Reshape") {
            return None;
        }
        let inner = op.input(0)?;
        let ty = self.graph.tensor_type(inner)?;
        let mut without = shape;
        without.remove(stacked);
        if !ty.same_shape(&TensorType { dtype: ty.dtype, shape: Some(without) }) {
            return None;
        }
        if self.graph.readers(value) > 1 {
            return Some(Combination::leaf(inner, ty.clone()));
        }
        let mut slice = self.term_of_shape(inner, depth + 1)?;
        slice.ops.push(id);
        Some(slice)
    }

    /// A stack times or divided by a tensor that broadcasts into it.
    fn scaled_slices(&self, op: &Op, ty: &TensorType, stacked: usize, depth: usize) -> Option<Slices> {
        let (a, b) = (op.input(0)?, op.input(1)?);
        let is_stack = |v: ValueId| self.graph.tensor_type(v).is_some_and(|t| t.same_shape(ty));
        let (stack, by) = match (is_stack(a), is_stack(b)) {
            (true, false) => (a, b),
            (false, true) if op.op_type == "Mul" => (b, a),
            _ => return None,
        };
        let mut factor = self.factor(by, ty)?;
        if op.op_type == "Div" {
            if factor.parts.is_empty() && factor.constant.data.iter().all(|v| (1.0 / v).is_normal()) {
                factor = factor.map(|v| 1.0 / v);
            } else {
                factor.parts.iter_mut().for_each(|p| p.inverse = true);
                if !factor.constant.is_one() {
                    return None;
                }
            }
        }
        let by_shape = self.graph.tensor_type(by)?.shape.clone()?;
        let rank = ty.rank()?;
        let slices = self.slices(stack, stacked, depth + 1)?;
        let slice_type = |s: &Combination| {
            let mut shape = ty.shape.clone()?;
            shape.remove(stacked);
            Some(s.ty.same_shape(&TensorType { dtype: ty.dtype, shape: Some(shape) }))
        };
        let scaled = slices.iter().enumerate().map(|(i, slice)| {
            // The coefficient's own axis that lines up with the stacked one, if it reaches that far.
            let factor = match (stacked + by_shape.len()).checked_sub(rank) {
                Some(along) if by_shape[along] != Dim::Known(1) => element(&factor, &by_shape, along, i)?,
                Some(along) => drop_axis(&factor, &by_shape, along)?,
                None => factor.clone(),
            };
            if !factor.is_single() && !slice_type(slice)? {
                return None;
            }
            let mut slice = slice.times(&factor)?;
            slice.form = Form::StackScaledSum;
            Some(slice)
        });
        scaled.collect()
    }
}

/// True when every size before an axis is one.
fn ones_before(shape: &[Dim], axis: usize) -> bool {
    shape.iter().take(axis).all(|d| *d == Dim::Known(1))
}

/// The sum of slices, which must all have one shape.
fn add_up(slices: Slices) -> Option<Combination> {
    let mut slices = slices.into_iter();
    let mut all = slices.next()?;
    for slice in slices {
        if !slice.ty.same_shape(&all.ty) {
            return None;
        }
        all.absorb(slice);
    }
    Some(all)
}

/// Element `i` of a coefficient of shape `dims` along one axis; that axis is gone afterwards.
fn element(factor: &Factor, dims: &[Dim], along: usize, i: usize) -> Option<Factor> {
    pick(factor, dims, along, i as u64)
}

/// A coefficient without an axis of size one.
fn drop_axis(factor: &Factor, dims: &[Dim], along: usize) -> Option<Factor> {
    if factor.is_single() && factor.parts.is_empty() {
        return Some(factor.clone());
    }
    pick(factor, dims, along, 0)
}

fn pick(factor: &Factor, dims: &[Dim], along: usize, i: u64) -> Option<Factor> {
    let mut rest = dims.to_vec();
    rest.remove(along);
    if let [part] = factor.parts.as_slice() {
        let index = Tensor::from_i64(dmopt_ir::DType::I64, vec![], &[i as i64]).ok()?;
        let args = vec![part.expr.clone(), Expr::Constant(index)];
        let expr = Expr::Op { op_type: "Gather", axis: Some(along as i64), args };
        let part = Computed { expr, shape: rest, inverse: part.inverse };
        return Some(Factor { constant: factor.constant.clone(), parts: vec![part] });
    }
    if !factor.parts.is_empty() {
        return None;
    }
    let known: Vec<u64> = dims.iter().map(Dim::known).collect::<Option<_>>()?;
    let full: u64 = known.iter().product();
    // The array may have lost leading ones, or all its axes; put them back to address it.
    let array = factor
        .constant
        .zip(&Array { dims: known.clone(), data: vec![1.0; usize::try_from(full).ok()?] }, |a, one| {
            a * one
        })?;
    let inner: usize = known[along + 1..].iter().product::<u64>() as usize;
    let size = known[along] as usize;
    let data = array.data.iter().enumerate().filter(|(at, _)| (at / inner) % size == i as usize);
    let data: Vec<f64> = data.map(|(_, &v)| v).collect();
    let rest: Vec<u64> = rest.iter().map(Dim::known).collect::<Option<_>>()?;
    Some(Factor::constant(Array::new(&rest, data)))
}

/// An axis counted from the front.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}
