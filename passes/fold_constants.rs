//! Compute once what is the same in every run: operators on constants, and sizes that types tell.
//!
//! ```text
//! op(constant, ..)           = constant     within the byte budget
//! Shape(x: T[.., 8, 6])<2>   = {8, 6}       also where only the part of the shape that is used is known
//! Size(x: T[2, 3])           = 6
//! ```
//!
//! The result may be larger than the operands that go with it by the budget of the run at most; sizes are compared
//! before anything is computed. Movement of elements, integers, and the float operations that IEEE 754 defines to
//! the last bit are computed here; the rest by the evaluator of the run, if there is one. Left alone: operators
//! with bodies, random ones, the ends of quantized ranges (QuantizeLinear and its kin), tensors without data, and
//! external tensors of more than 16 MiB.
//!
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[3] a = {1, 2, 3}, float[3] b = {0.5, 0.5, 4}> {
//!   c = Mul(a, b)
//!   y = Add(x, c)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2,3] x) => (float[2,3] y) <float[3] c = {0.5, 1, 12}> {
//!   y = Add(x, c)
//! }
//! ```
//!
//! Exporters read sizes back from tensors.
//!
//! ```onnx
//! f (float[N,2,8] x) => (float[4,?] y) <int64[1] from = {1}, int64[1] to = {2}, int64[1] two = {2}, int64[1] rest = {-1}> {
//!   s = Shape(x)
//!   c = Slice(s, from, to)
//!   m = Mul(c, two)
//!   t = Concat<axis = 0>(m, rest)
//!   y = Reshape(x, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[N,2,8] x) => (float[4,?] y) <int64[2] t = {4, -1}> {
//!   y = Reshape(x, t)
//! }
//! ```
//!
//! refused: the result is 4 MB larger than the shape that goes with it, and the budget is 1 MB
//! ```onnx
//! f (float[1] x) => (float[1000000] y) <int64[1] n = {1000000}> {
//!   ones = ConstantOfShape<value = float[1] {1}>(n)
//!   y = Mul(x, ones)
//! }
//! ```

mod native;

use std::borrow::Cow;
use std::collections::HashMap;

use dmopt_ir::{
    DType, Dim, EvalError, Evaluator, Graph, Op, OpId, Patch, Refusal, Rewriter, Safety, Storage, Tensor,
    TensorType, ValueId,
};

use crate::{Context, Miss, Pass};
use native::Stop;

/// External operands beyond this many bytes are not read.
const MAX_EXTERNAL_BYTES: u64 = 16 << 20;

/// Quantized weights stand in the file in their small form; computing them would undo that.
const KEPT: &[&str] = &["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"];

/// Operators beyond those of `native` whose results do not depend on how a runtime computes them.
const EXACT: &[&str] = &[
    "ArgMax",
    "ArgMin",
    "Ceil",
    "Compress",
    "DepthToSpace",
    "EyeLike",
    "Floor",
    "GatherElements",
    "GatherND",
    "IsInf",
    "IsNaN",
    "NonZero",
    "OneHot",
    "Pad",
    "ReverseSequence",
    "Sign",
    "SpaceToDepth",
    "Trilu",
];

/// See the header of this file.
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn source(&self) -> &'static str {
        include_str!("fold_constants.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let mut sizes = Sizes::default();
        // One walk in order is enough: a result is a constant by the time its readers come.
        for op in crate::order_of(rewriter.graph()) {
            if rewriter.out_of_fuel() {
                return;
            }
            let graph = rewriter.graph();
            if !may_fold(graph, op) {
                continue;
            }
            let folder = Folder { graph, op, budget: *context.fold_budget, allow: rewriter.allows() };
            let (proposal, growth) = match folder.fold(&mut sizes, context.evaluator) {
                Ok(folded) => (Ok(folded.patch), folded.growth),
                Err(miss) => (Err(miss), 0),
            };
            if context.apply(op, proposal, rewriter) {
                // What one operator saves another one may spend.
                *context.fold_budget = context.fold_budget.saturating_add_signed(-growth);
            }
        }
    }
}

/// False for what is a constant already, does not only depend on its operands, or is not read.
fn may_fold(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    let op_type = op.op_type.as_str();
    graph.is_live(id)
        && op.is_standard()
        && !matches!(op_type, "Constant" | "Identity")
        && is_deterministic(graph, op)
        && !KEPT.contains(&op_type)
        && op.bodies().next().is_none()
        && op.results().any(|v| graph.readers(v) > 0)
}

/// True when equal operands certainly give equal results.
pub(crate) fn is_deterministic(graph: &Graph, op: &Op) -> bool {
    let random = matches!(
        op.op_type.as_str(),
        "RandomNormal"
            | "RandomNormalLike"
            | "RandomUniform"
            | "RandomUniformLike"
            | "Multinomial"
            | "Bernoulli"
    );
    // Its third operand makes it train; before version 7, an attribute did unless set otherwise.
    let drops = op.op_type == "Dropout"
        && (op.input(2).is_some() || graph.opset(&op.domain) < 7 && op.int("is_test") != Some(1));
    op.is_standard() && !random && !drops
}

/// A fold that fits the budget.
struct Folded {
    patch: Patch,
    /// Bytes by which the constants of the model grow, or shrink.
    growth: i64,
}

struct Folder<'a> {
    graph: &'a Graph,
    op: OpId,
    budget: u64,
    allow: Safety,
}

impl Folder<'_> {
    fn fold(&self, sizes: &mut Sizes, evaluator: Option<&dyn Evaluator>) -> Result<Folded, Miss> {
        if let Some(known) = sizes.learn(self.graph, self.op) {
            return self.replace(vec![known], Safety::Exact);
        }
        let op = self.graph.op(self.op);
        let operands: Option<Vec<Option<Cow<'_, Tensor>>>> = (op.inputs.iter())
            .map(|input| match input {
                Some(value) => self.graph.constant(*value).map(Some),
                None => Some(None),
            })
            .collect();
        let operands = operands.ok_or(Miss::NoMatch)?;
        if operands.iter().all(Option::is_none) || operands.iter().flatten().any(|t| !is_readable(t)) {
            return Err(Miss::NoMatch);
        }
        let expected: Option<u64> =
            op.results().map(|v| self.graph.tensor_type(v)?.bytes()).try_fold(0u64, |n, b| n.checked_add(b?));
        if let Some(bytes) = expected {
            self.growth(bytes)?;
        }
        let inputs: Vec<Option<&Tensor>> = operands.iter().map(Option::as_deref).collect();
        let opset = self.graph.opset(&op.domain);
        match native::evaluate(op, opset, &inputs) {
            Ok(results) => self.replace(results, Safety::Exact),
            Err(Stop::Undefined(reason)) => Err(Miss::refused(reason)),
            Err(Stop::Beyond) => {
                // The size must be known before, and a cast is either native or not defined.
                let evaluator = evaluator.filter(|_| expected.is_some() && !op.op_type.starts_with("Cast"));
                let evaluator = evaluator.ok_or(Miss::NoMatch)?;
                let safety = self.class(&inputs);
                if safety > self.allow {
                    return Err(Miss::refused(Refusal::Unsafe(safety).to_string()));
                }
                match evaluator.evaluate(op, opset, &inputs) {
                    Ok(results) => self.replace(results, safety),
                    Err(EvalError::Unsupported(_)) => Err(Miss::NoMatch),
                    Err(EvalError::Failed(reason)) => Err(Miss::Refused(reason)),
                }
            }
        }
    }

    /// Exact when no rounding depends on how a runtime computes.
    fn class(&self, inputs: &[Option<&Tensor>]) -> Safety {
        let op = self.graph.op(self.op);
        let is_float = |dtype: DType| !dtype.is_integer() && dtype != DType::Bool;
        let floats = inputs.iter().flatten().any(|t| is_float(t.dtype))
            || op.results().any(|v| self.graph.tensor_type(v).is_none_or(|t| is_float(t.dtype)));
        if !floats || EXACT.contains(&op.op_type.as_str()) || native::is_exact(&op.op_type) {
            Safety::Exact
        } else {
            Safety::Reassociates
        }
    }

    /// Bytes by which the constants grow when results of this size replace the operands that only serve the operator.
    fn growth(&self, bytes: u64) -> Result<i64, Miss> {
        let op = self.graph.op(self.op);
        let mut operands: Vec<ValueId> = op.operands().collect();
        operands.sort();
        operands.dedup();
        let only_here =
            |v: &ValueId| !self.graph.is_output(*v) && self.graph.uses(*v).all(|at| at.op == self.op);
        let freed = (operands.into_iter().filter(only_here))
            .filter_map(|v| self.graph.constant(v)?.byte_len())
            .fold(0u64, u64::saturating_add);
        if bytes.saturating_sub(freed) > self.budget {
            return Err(Miss::Refused(format!(
                "the result has {bytes} bytes and replaces {freed}; the budget for growth is {} bytes",
                self.budget
            )));
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(signed(bytes) - signed(freed))
    }

    fn replace(&self, results: Vec<Tensor>, safety: Safety) -> Result<Folded, Miss> {
        let op = self.graph.op(self.op);
        let read = |slot: usize| op.output(slot).filter(|&v| self.graph.readers(v) > 0);
        let needed = (0..op.outputs.len()).filter(|&slot| read(slot).is_some());
        if needed.max() >= Some(results.len()) {
            return Err(Miss::NoMatch);
        }
        let mut patch = Patch::new(safety);
        let mut bytes = 0u64;
        for (slot, tensor) in results.into_iter().enumerate() {
            let Some(value) = read(slot) else { continue };
            bytes = bytes.saturating_add(tensor.byte_len().ok_or(Miss::NoMatch)?);
            let constant = patch.constant(&self.graph.value(value).name, tensor);
            patch.replace_uses(value, constant);
        }
        Ok(Folded { growth: self.growth(bytes)?, patch })
    }
}

/// True when the elements are at hand, or small enough to fetch.
fn is_readable(tensor: &Tensor) -> bool {
    match tensor.storage {
        Storage::Absent => false,
        Storage::External(_) => tensor.byte_len().is_some_and(|b| b <= MAX_EXTERNAL_BYTES),
        _ => true,
    }
}

/// What is known of the elements of integer tensors that are made of sizes.
#[derive(Default)]
struct Sizes {
    known: HashMap<ValueId, Partial>,
}

/// An i64 tensor of which some elements are known.
struct Partial {
    dims: Vec<u64>,
    elements: Vec<Option<i64>>,
}

impl Sizes {
    /// Takes in an operator; its result, once every element of it is known.
    fn learn(&mut self, graph: &Graph, id: OpId) -> Option<Tensor> {
        let op = graph.op(id);
        let result = op.output(0)?;
        let partial = match op.op_type.as_str() {
            "Shape" => shape_of(op, graph.tensor_type(op.input(0)?)?)?,
            "Size" => {
                let elements = graph.tensor_type(op.input(0)?)?.elements()?;
                Partial { dims: vec![], elements: vec![i64::try_from(elements).ok()] }
            }
            _ => self.moved(graph, op)?,
        };
        let elements: Option<Vec<i64>> = partial.elements.iter().copied().collect();
        let tensor = elements.and_then(|e| Tensor::from_i64(DType::I64, partial.dims.clone(), &e).ok());
        self.known.insert(result, partial);
        tensor
    }

    /// The result of an operator that moves elements, at least one operand of which is known in part.
    fn moved(&self, graph: &Graph, op: &Op) -> Option<Partial> {
        if op.outputs.len() != 1 || !op.operands().any(|v| self.known.contains_key(&v)) {
            return None;
        }
        let dims = |slot: usize| {
            let value = op.input(slot)?;
            self.known
                .get(&value)
                .map(|p| p.dims.clone())
                .or_else(|| Some(graph.constant(value)?.dims.clone()))
        };
        let ints = |slot: usize| graph.constant(op.input(slot)?)?.to_i64().ok();
        let moves = native::moves(op, graph.opset(&op.domain), &dims, &ints)?.pop()?;
        let constants: Vec<Option<Vec<i64>>> = (op.inputs.iter())
            .map(|v| graph.constant((*v)?).filter(|t| t.dtype == DType::I64)?.to_i64().ok())
            .collect();
        let element = |&(operand, index): &(usize, usize)| match self.known.get(&op.input(operand)?) {
            Some(partial) => Some(*partial.elements.get(index)?),
            None => Some(Some(*constants.get(operand)?.as_ref()?.get(index)?)),
        };
        Some(Partial { elements: moves.from.iter().map(element).collect::<Option<_>>()?, dims: moves.dims })
    }
}

/// The elements of `Shape(x)`, between its attributes `start` and `end`.
fn shape_of(op: &Op, ty: &TensorType) -> Option<Partial> {
    let dims = ty.shape.as_ref()?;
    let rank = dims.len() as i64;
    let clamped = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let start = clamped(op.int("start").unwrap_or(0));
    let end = clamped(op.int("end").unwrap_or(rank));
    let size = |dim: &Dim| dim.known().and_then(|d| i64::try_from(d).ok());
    let elements: Vec<Option<i64>> = dims.get(start..end).unwrap_or_default().iter().map(size).collect();
    Some(Partial { dims: vec![elements.len() as u64], elements })
}
