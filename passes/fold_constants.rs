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
//! the last bit are exact; elementary functions and sums of several floats are rounded once, and so is what half precision
//! rounds, which runtimes may keep wider. Left alone: operators
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
//! f (float[N,2,8] x) => (float[4,M] y) <int64[1] from = {1}, int64[1] to = {2}, int64[1] two = {2}, int64[1] rest = {-1}> {
//!   s = Shape(x)
//!   c = Slice(s, from, to)
//!   m = Mul(c, two)
//!   t = Concat<axis = 0>(m, rest)
//!   y = Reshape(x, t)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[N,2,8] x) => (float[4,M] y) <int64[2] t = {4, -1}> {
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

use std::borrow::Cow;
use std::collections::HashMap;

use dmopt_ir::{
    DType, Dim, Graph, Op, OpId, Patch, Refusal, Rewriter, Safety, Storage, Tensor, TensorType, ValueId,
};

use crate::evaluate::{self, Stop};
use crate::{Context, Miss, Pass};

/// External operands beyond this many bytes are not read.
const MAX_EXTERNAL_BYTES: u64 = 16 << 20;

/// Integers of tensors with more elements than this are not followed one by one.
const MAX_SIZES: u64 = 1 << 20;

/// Quantized weights stand in the file in their small form; computing them would undo that.
const KEPT: &[&str] = &["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"];

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
            let (proposal, growth) = match folder.fold(&mut sizes) {
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
    fn fold(&self, sizes: &mut Sizes) -> Result<Folded, Miss> {
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
        let room = expected.unwrap_or_else(|| self.budget.saturating_add(self.freed()));
        let inputs: Vec<Option<&Tensor>> = operands.iter().map(Option::as_deref).collect();
        match evaluate::evaluate(op, self.graph.opset(&op.domain), &inputs, self.allow, room) {
            Ok(found) => self.replace(found.results, found.safety),
            Err(Stop::Beyond) => Err(Miss::NoMatch),
            Err(Stop::Undefined(reason)) => Err(Miss::refused(reason)),
            Err(Stop::Unsafe(safety)) => Err(Miss::refused(Refusal::Unsafe(safety).to_string())),
        }
    }

    /// Bytes of the operands that only serve the operator.
    fn freed(&self) -> u64 {
        let mut operands: Vec<ValueId> = self.graph.op(self.op).operands().collect();
        operands.sort();
        operands.dedup();
        let only_here =
            |v: &ValueId| !self.graph.is_output(*v) && self.graph.uses(*v).all(|at| at.op == self.op);
        (operands.into_iter().filter(only_here))
            .filter_map(|v| self.graph.constant(v)?.byte_len())
            .fold(0u64, u64::saturating_add)
    }

    /// Bytes by which the constants grow when results of this size replace the operands that only serve the operator.
    fn growth(&self, bytes: u64) -> Result<i64, Miss> {
        let freed = self.freed();
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
        let moves = evaluate::moves(op, graph.opset(&op.domain), &dims, &ints)?.pop()?;
        if evaluate::product(&moves.dims).is_none_or(|elements| elements > MAX_SIZES) {
            return None;
        }
        let constants: Vec<Option<Vec<i64>>> = (op.inputs.iter())
            .map(|v| graph.constant((*v)?).filter(|t| t.dtype == DType::I64)?.to_i64().ok())
            .collect();
        let element = |(operand, index): (usize, usize)| match self.known.get(&op.input(operand)?) {
            Some(partial) => Some(*partial.elements.get(index)?),
            None => Some(Some(*constants.get(operand)?.as_ref()?.get(index)?)),
        };
        Some(Partial { elements: moves.from.map(element).collect::<Option<_>>()?, dims: moves.dims })
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

#[cfg(test)]
mod tests {
    use dmopt_ir::text::print_graph;

    use super::*;
    use crate::Options;
    use crate::testing::{check, left_alone, optimize, refusals};

    const PASS: &str = "fold-constants";

    /// `line` computes `t` from what is declared; the result is the constant `expected`.
    fn folds(declared: &str, line: &str, expected: &str) {
        check(
            PASS,
            &format!("f (float[1] x) => (float[1] y) <{declared}> {{ {line} y = com.acme.Use(x, t) }}"),
            &format!("f (float[1] x) => (float[1] y) <{expected}> {{ y = com.acme.Use(x, t) }}"),
        );
    }

    /// `line` computes `t` and stays; gives the refusals.
    fn stays(declared: &str, line: &str) -> Vec<String> {
        left_alone(
            PASS,
            &format!("f (float[1] x) => (float[1] y) <{declared}> {{ {line} y = com.acme.Use(x, t) }}"),
        )
    }

    #[test]
    fn elements_are_moved() {
        let m = "int64[2,3] m = {1, 2, 3, 4, 5, 6}";
        folds(m, "t = Transpose(m)", "int64[3,2] t = {1, 4, 2, 5, 3, 6}");
        folds(m, "t = Flatten<axis = 0>(m)", "int64[1,6] t = {1, 2, 3, 4, 5, 6}");
        folds(
            &format!("{m}, int64[2] s = {{-1, 2}}"),
            "t = Reshape(m, s)",
            "int64[3,2] t = {1, 2, 3, 4, 5, 6}",
        );
        folds(
            &format!("{m}, int64[1] a = {{-1}}"),
            "t = Unsqueeze(m, a)",
            "int64[2,3,1] t = {1, 2, 3, 4, 5, 6}",
        );
        folds("int64[1,2] m = {1, 2}", "t = Squeeze(m)", "int64[2] t = {1, 2}");
        folds(&format!("{m}, int64 i = {{-1}}"), "t = Gather<axis = 1>(m, i)", "int64[2] t = {3, 6}");
        folds(
            &format!("{m}, int64[2,1] i = {{1, 0}}"),
            "t = Gather(m, i)",
            "int64[2,1,3] t = {4, 5, 6, 1, 2, 3}",
        );
        folds(
            &format!("{m}, int64[2,1] n = {{8, 9}}"),
            "t = Concat<axis = -1>(m, n)",
            "int64[2,4] t = {1, 2, 3, 8, 4, 5, 6, 9}",
        );
        folds("float[2] m = {1, 2}, int64[2] s = {2, 1}", "t = Expand(m, s)", "float[2,2] t = {1, 2, 1, 2}");
        folds(
            "float16[2] m = {1.0, 2.0}, int64[1] r = {2}",
            "t = Tile(m, r)",
            "float16[4] t = {1.0, 2.0, 1.0, 2.0}",
        );
        folds(
            "bool[2,1] c = {1, 0}, float[2] a = {1, 2}, float b = {7}",
            "t = Where(c, a, b)",
            "float[2,2] t = {1, 2, 7, 7}",
        );
    }

    #[test]
    fn slices_go_both_ways_and_are_clamped() {
        for (bounds, expected) in [
            ("int64[1] f = {1}, int64[1] e = {3}", "int64[2] t = {2, 3}"),
            ("int64[1] f = {-2}, int64[1] e = {9223372036854775807}", "int64[2] t = {4, 5}"),
            ("int64[1] f = {4}, int64[1] e = {2}", "int64[0] t = {}"),
        ] {
            folds(&format!("int64[5] m = {{1, 2, 3, 4, 5}}, {bounds}"), "t = Slice(m, f, e)", expected);
        }
        for (bounds, expected) in [
            (
                "int64[1] f = {-1}, int64[1] e = {-9223372036854775808}, int64[1] s = {-2}",
                "int64[3] t = {5, 3, 1}",
            ),
            ("int64[1] f = {0}, int64[1] e = {5}, int64[1] s = {3}", "int64[2] t = {1, 4}"),
            ("int64[1] f = {3}, int64[1] e = {0}, int64[1] s = {-1}", "int64[3] t = {4, 3, 2}"),
        ] {
            let declared = format!("int64[5] m = {{1, 2, 3, 4, 5}}, int64[1] a = {{0}}, {bounds}");
            folds(&declared, "t = Slice(m, f, e, a, s)", expected);
        }
    }

    #[test]
    fn a_split_gives_several_constants() {
        check(
            PASS,
            "f (float[1] x) => (float[1] y) <int64[5] m = {1, 2, 3, 4, 5}>
             { a, b, c = Split<num_outputs = 3>(m) y = com.acme.Use(x, a, b, c) }",
            "f (float[1] x) => (float[1] y) <int64[2] a = {1, 2}, int64[2] b = {3, 4}, int64[1] c = {5}>
             { y = com.acme.Use(x, a, b, c) }",
        );
    }

    #[test]
    fn integers_are_computed() {
        let two = "int64[2] a = {-7, 7}, int64[2] b = {2, -2}";
        folds(two, "t = Add(a, b)", "int64[2] t = {-5, 5}");
        folds(two, "t = Sub(a, b)", "int64[2] t = {-9, 9}");
        folds(two, "t = Mul(a, b)", "int64[2] t = {-14, -14}");
        folds(two, "t = Div(a, b)", "int64[2] t = {-3, -3}");
        folds(two, "t = Mod(a, b)", "int64[2] t = {1, -1}");
        folds(two, "t = Mod<fmod = 1>(a, b)", "int64[2] t = {-1, 1}");
        folds(two, "t = Min(a, b)", "int64[2] t = {-7, -2}");
        folds(two, "t = Max(a, b, a)", "int64[2] t = {2, 7}");
        folds("int64[2] a = {-7, 7}", "t = Neg(a)", "int64[2] t = {7, -7}");
        folds(two, "t = Less(a, b)", "bool[2] t = {1, 0}");
        folds("uint64 a = {18446744073709551615}, uint64 b = {1}", "t = Less(a, b)", "bool t = {0}");
        folds("bool[2] a = {1, 0}, bool b = {1}", "t = Xor(a, b)", "bool[2] t = {0, 1}");
        folds("bool[2] a = {1, 0}", "t = Not(a)", "bool[2] t = {0, 1}");
        folds(
            "int64 a = {5}, int64 b = {-2}, int64 c = {-3}",
            "t = Range(a, b, c)",
            "int64[3] t = {5, 2, -1}",
        );
        folds("int64 a = {5}, int64 b = {-2}, int64 c = {3}", "t = Range(a, b, c)", "int64[0] t = {}");
        folds("int64[2] a = {1, 2}", "t = ConstantOfShape<value = int64[1] {7}>(a)", "int64[1,2] t = {7, 7}");
    }

    #[test]
    fn floats_are_rounded_to_their_type() {
        folds("float a = {16777216}, float b = {1}", "t = Add(a, b)", "float t = {16777216}");
        folds("float16 a = {2048.0}, float16 b = {1.0}", "t = Add(a, b)", "float16 t = {2048.0}");
        folds("float a = {1}, float b = {3}", "t = Div(a, b)", "float t = {0.33333334}");
        folds("float a = {2}", "t = Sqrt(a)", "float t = {1.4142135}");
        folds("float a = {0}", "t = Neg(a)", "float t = {-0.0}");
        folds("float[2] a = {1, nan}", "t = Equal(a, a)", "bool[2] t = {1, 0}");
    }

    #[test]
    fn casts_follow_the_standard() {
        folds("float[3] a = {-1.9, 1.9, 3}", "t = Cast<to = 7>(a)", "int64[3] t = {-1, 1, 3}");
        folds("int32[2] a = {200, -1}", "t = Cast<to = 3>(a)", "int8[2] t = {-56, -1}");
        folds("float[3] a = {0, -0.0, 0.1}", "t = Cast<to = 9>(a)", "bool[3] t = {0, 0, 1}");
        folds("int64 a = {16777217}", "t = Cast<to = 1>(a)", "float t = {16777216}");
        folds("float a = {1.1}", "t = Cast<to = 10>(a)", "float16 t = {1.1}");
    }

    #[test]
    fn what_the_standard_leaves_open_is_refused() {
        for (declared, line, reason) in [
            ("int64 a = {1}, int64 b = {0}", "t = Div(a, b)", "Div of 't': an integer is divided by zero"),
            ("int8 a = {100}", "t = Add(a, a)", "Add of 't': an integer overflows"),
            ("uint8 a = {1}, uint8 b = {2}", "t = Sub(a, b)", "Sub of 't': an integer overflows"),
            ("float a = {300}", "t = Cast<to = 3>(a)", "Cast of 't': a number does not fit the integer type"),
            ("float a = {nan}", "t = Cast<to = 7>(a)", "Cast of 't': a number does not fit the integer type"),
            ("float a = {-1}", "t = Cast<to = 2>(a)", "Cast of 't': a number does not fit the integer type"),
            (
                "double a = {1.1}",
                "t = Cast<to = 10>(a)",
                "Cast of 't': runtimes differ in how they round this cast",
            ),
        ] {
            assert_eq!(stays(declared, line), [reason]);
        }
    }

    #[test]
    fn what_no_runtime_accepts_stays() {
        stays("float[3,0] a = {}, int64[1] axis = {0}", "t = Squeeze(a, axis)");
        stays("float[3] a = {1, 2, 3}, int64 i = {3}", "t = Gather(a, i)");
    }

    #[test]
    fn constant_operators_alone_stay() {
        stays("", "t = Constant<value_ints = [1, 2]>()");
    }

    #[test]
    fn constant_operators_are_operands_in_every_spelling() {
        folds(
            "",
            "a = Constant<value_ints = [1, 2]>() b = Constant<value_int = 3>() c = Constant<value = int64[1] {4}>()
             u = Add(a, b) t = Add(u, c)",
            "int64[2] t = {8, 9}",
        );
    }

    #[test]
    fn defaults_of_inputs_are_no_constants() {
        left_alone(PASS, "f (float[1] x, float[1] a = {1}) => (float[1] y) { t = Neg(a) y = Add(x, t) }");
    }

    #[test]
    fn a_constant_output_keeps_its_name() {
        check(
            PASS,
            "f () => (float[1] y) <float[1] a = {1}> { y = Neg(a) }",
            "f () => (float[1] y) <float[1] b = {-1}> { y = Identity(b) }",
        );
    }

    /// The result of `line`, which reads `x`, is known from types.
    fn knows(ty: &str, line: &str, expected: &str) {
        check(
            PASS,
            &format!("f ({ty} x) => (float[1] y) <int64[1] one = {{1}}, int64[1] three = {{3}}, int64 last = {{-1}}>
                      {{ {line} y = com.acme.Use(x, t, one, three, last) }}"),
            &format!("f ({ty} x) => (float[1] y)
                      <{expected}, int64[1] one = {{1}}, int64[1] three = {{3}}, int64 last = {{-1}}>
                      {{ y = com.acme.Use(x, t, one, three, last) }}"),
        );
    }

    #[test]
    fn sizes_come_from_types() {
        knows("float[2,3]", "t = Shape(x)", "int64[2] t = {2, 3}");
        knows("float[2,3]", "t = Size(x)", "int64 t = {6}");
        knows("float[]", "u = Constant<value_int = 1>() t = Neg(u)", "int64 t = {-1}");
    }

    #[test]
    fn the_known_part_of_a_shape_is_enough() {
        knows("float[N,3,4]", "t = Shape<start = 1>(x)", "int64[2] t = {3, 4}");
        knows("float[N,3,4]", "t = Shape<start = -2, end = -1>(x)", "int64[1] t = {3}");
        knows("float[2,N]", "t = Shape<start = 5>(x)", "int64[0] t = {}");
        knows("float[N,3,4]", "s = Shape(x) t = Slice(s, one, three)", "int64[2] t = {3, 4}");
        knows("float[N,3,4]", "s = Shape(x) t = Gather(s, last)", "int64 t = {4}");
        knows(
            "float[N,3,4]",
            "s = Shape(x) u = Slice(s, one, three) c = Concat<axis = 0>(s, u) t = Slice(c, one, three)",
            "int64[2] t = {3, 4}",
        );
    }

    #[test]
    fn an_unknown_size_is_not_invented() {
        left_alone(PASS, "f (float[N,3] x) => (int64[2] y) { s = Shape(x) y = Neg(s) }");
        left_alone(
            PASS,
            "f (float[N,3] x) => (int64 y) <int64 first = {0}> { s = Shape(x) t = Gather(s, first) y = Neg(t) }",
        );
        left_alone(PASS, "f (float[N,3] x) => (int64 y) { s = Size(x) y = Neg(s) }");
    }

    #[test]
    fn random_operators_and_quantized_weights_stay() {
        left_alone(
            PASS,
            "f (float[2] x) => (float[2] y) <int64[1] s = {2}, float[2] p = {0.5, 0.5}> { t = Bernoulli(p) y = Add(x, t) }",
        );
        left_alone(
            PASS,
            "f (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.5}> { t = DequantizeLinear(w, s) y = Add(x, t) }",
        );
    }

    #[test]
    fn a_huge_result_costs_nothing() {
        let refused =
            stays("int64[2] s = {1048576, 1048576}, float[1048576,1048576] t", "t = ConstantOfShape(s)");
        assert_eq!(
            refused,
            ["ConstantOfShape of 't': the result has 4398046511104 bytes and replaces 16; \
              the budget for growth is 1048576 bytes"]
        );
    }

    #[test]
    fn operands_that_go_make_room() {
        let text = "f (float[1] x) => (float[1] y) <int64[4] a = {1, 2, 3, 4}> { t = Neg(a) y = com.acme.Use(x, t) }";
        let (_, outcome) = optimize(PASS, text, Options { fold_budget: Some(0), ..Options::default() });
        assert_eq!(outcome.passes[0].rewrites, 1);
        let text = text.replace("Use(x, t)", "Use(x, t, a)");
        let (_, outcome) = optimize(PASS, &text, Options { fold_budget: Some(31), ..Options::default() });
        assert_eq!(
            refusals(&outcome),
            ["Neg of 't': the result has 32 bytes and replaces 0; the budget for growth is 31 bytes"]
        );
    }

    #[test]
    fn the_budget_is_one_for_the_whole_model() {
        let text = "f (float[1] x) => (float[1] y) <int64[2] s = {2, 2}, float a = {1}>
                    { t = Expand(a, s) u = Expand(a, s) y = com.acme.Use(x, t, u) }";
        let (_, outcome) = optimize(PASS, text, Options { fold_budget: Some(20), ..Options::default() });
        // The second one would free `a` and `s` too: 16 bytes for 20.
        assert_eq!(outcome.passes[0].rewrites, 2);
        let (_, outcome) = optimize(PASS, text, Options { fold_budget: Some(15), ..Options::default() });
        assert_eq!(outcome.passes[0].rewrites, 0);
    }

    #[test]
    fn tensors_without_data_stay() {
        left_alone(PASS, "f (float[2] x) => (float[2] y) <float[2] w> { t = Neg(w) y = Add(x, t) }");
    }

    #[test]
    fn constants_fold_within_bodies() {
        check(
            PASS,
            "f (bool c, float[2] x) => (float[2] y) {
               y = If (c) <
                 then_branch = t () => (float[2] v) <float[2] a = {1, 2}> { b = Neg(a) v = Add(x, b) },
                 else_branch = e () => (float[2] w) { w = Relu(x) }>
             }",
            "f (bool c, float[2] x) => (float[2] y) {
               y = If (c) <
                 then_branch = t () => (float[2] v) <float[2] b = {-1, -2}> { v = Add(x, b) },
                 else_branch = e () => (float[2] w) { w = Relu(x) }>
             }",
        );
    }

    /// The class of what folds `t`, under a run that allows `allow`; `None` when it stays.
    fn class_of(declared: &str, line: &str, allow: Safety) -> Option<Safety> {
        let text = format!(
            "f (float[1] x) => (float[1] y) <float[3] a = {{-1, 0.5, 8}}, {declared}>
             {{ {line} y = com.acme.Use(x, t) }}"
        );
        optimize(PASS, &text, Options { allow: Some(allow), ..Options::default() }).1.safety
    }

    #[test]
    fn picking_one_of_several_floats_is_exact() {
        for line in ["t = Relu(a)", "t = Min(a, b)", "t = Max(a, b)", "t = Clip(a, least, b)"] {
            let declared = "float b = {6}, float least = {0}";
            assert_eq!(class_of(declared, line, Safety::Exact), Some(Safety::Exact), "{line}");
        }
    }

    #[test]
    fn results_that_depend_on_rounding_need_leave() {
        for line in
            ["t = Sigmoid(a)", "t = Sum(a, a, a)", "t = ReduceSum<keepdims = 0>(a)", "t = MatMul(a, a)"]
        {
            assert_eq!(class_of("float b", line, Safety::Exact), None, "{line}");
            assert_eq!(class_of("float b", line, Safety::Reassociates), Some(Safety::Reassociates), "{line}");
        }
    }

    #[test]
    fn elementary_functions_are_rounded_once() {
        folds("float[3] a = {0, 1, -1}", "t = Exp(a)", "float[3] t = {1, 2.7182817, 0.36787945}");
        folds("float16 a = {0.0}", "t = Sigmoid(a)", "float16 t = {0.5}");
    }

    #[test]
    fn what_is_left_open_is_reported_and_what_is_not_known_is_not() {
        let open = stays("float[2] a = {1, nan}, float b = {2}", "t = Max(a, b)");
        assert_eq!(open, ["Max of 't': NaN, or zeros of both signs, are put in order"]);
        assert!(stays("float[2] a = {1, 2}", "t = Selu(a)").is_empty());
    }

    #[test]
    fn results_of_unknown_or_excessive_size_of_unknown_operators_stay() {
        for declared in ["float[?] t", "float[1048576,1048576] t"] {
            let text = format!(
                "f (float[2] x) => (float[2] y) <float[2] a = {{1, 2}}, {declared}>
                 {{ t = Unheard(a) y = com.acme.Use(x, t) }}"
            );
            let (model, _) = optimize(PASS, &text, Options::default());
            assert!(print_graph(&model.graph).contains("Unheard"));
        }
    }

    #[test]
    fn a_result_whose_size_only_its_values_tell_is_within_the_budget() {
        let text = "f (float[1] x) => (float[1] y) <bool[4] a = {1, 0, 1, 1}> { t = NonZero(a) y = com.acme.Use(x, t) }";
        for (budget, rewrites) in [(20, 1), (19, 0)] {
            let (_, outcome) =
                optimize(PASS, text, Options { fold_budget: Some(budget), ..Options::default() });
            assert_eq!(outcome.passes[0].rewrites, rewrites);
        }
    }

    #[test]
    fn sizes_of_constants_are_known() {
        folds(
            "float[2,3] a = {0, 0, 0, 0, 0, 0}, int64 last = {-1}",
            "s = Shape(a) t = Gather(s, last)",
            "int64 t = {3}",
        );
        folds("float[2,3] a = {0, 0, 0, 0, 0, 0}", "t = Size(a)", "int64 t = {6}");
    }
}
