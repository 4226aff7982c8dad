//! Turn every linear combination `c + sum_i s_i * x_i` into one chain of multiply-add steps.
//!
//! A combination is read in whatever form the file writes it (see `linear/mod.rs` for the rules) and written as
//! `acc <- s_0 * x_0; acc <- acc + s_1 * x_1; ...`, terms in the order in which their `x_i` are computed, each step
//! right after its `x_i`. At most the accumulator and one product then exist beside the `x_i`, where a stack, a
//! concatenation or a list of products needs all of them at once.
//!
//! On the way, with `~` for "is written as":
//! ```text
//! s*x + t*x                 ~  (s+t)*x                      constants; infinity may be where NaN (inf - inf) was
//! 0*x + ...                 ~  ...                          differs where x is NaN or infinite
//! x + (-1)*y                ~  x - y
//! s*Conv(p, W, B) + c       ~  Conv(p, s*W, s*B + c)        nothing else reads the Conv or W; constants
//! ```
//! Class: rounding differs (another order of additions, merged constants). With `--exact`, operators only move.
//! Left alone: what `nest-scaled-sum` writes, unless the target adds a product in one step; sums of two unscaled terms
//! (residual connections), and whatever would need more operators than before.
//!
//! ```onnx
//! f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z) <float[1] a = {0.5}, float[1] b = {-2.0}, int64[1] axes = {0}> {
//!   p = Mul(a, x)
//!   q = Mul(b, y)
//!   u = Unsqueeze(p, axes)
//!   v = Unsqueeze(q, axes)
//!   s = Concat<axis=0>(u, v)
//!   z = ReduceSum<keepdims=0>(s, axes)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z) <float a = {0.5}, float b = {-2.0}> {
//!   p = Mul(x, a)
//!   q = Mul(y, b)
//!   z = Add(p, q)
//! }
//! ```
//!
//! refused: the stacked tensor has other readers
//! ```onnx
//! f (float[1,2,4,4] x, float[1,2,4,4] y) => (float[1,2,4,4] z, float[2,1,2,4,4] s) <int64[1] axes = {0}> {
//!   u = Unsqueeze(x, axes)
//!   v = Unsqueeze(y, axes)
//!   s = Concat<axis=0>(u, v)
//!   z = ReduceSum<keepdims=0>(s, axes)
//! }
//! ```

use std::collections::BTreeSet;

use dmopt_ir::hash::{HashMap, HashSet};
use dmopt_ir::{DType, Def, Dim, Graph, OpId, Patch, Rewriter, Safety, Tensor, TensorType, ValueId};

use crate::accumulate_in_place::has_step;
use crate::linear::{Array, Combination, Expr, Factor, Finder, Form, MAX_WEIGHT, Term};
use crate::nest_scaled_sum::stands_nested;
use crate::{Context, Miss, Pass, Site, Target, order_of};

/// See the header of this file.
pub struct FuseScaledSum;

impl Pass for FuseScaledSum {
    fn name(&self) -> &'static str {
        "fuse-scaled-sum"
    }

    fn source(&self) -> &'static str {
        include_str!("fuse_scaled_sum.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let exact = rewriter.allows() == Safety::Exact;
        let Survey { plans, obstacles } =
            survey(rewriter.graph(), exact, context.order_follows, context.planning.target);
        for (op, reason) in obstacles {
            context.apply(op, Err(Miss::Refused(reason)), rewriter);
        }
        for Plan { root, sites, step } in plans {
            let graph = rewriter.graph();
            let (node, patch) = (graph.describe(root), step.patch(graph, root));
            let (rewritten, reason) = match patch.map(|p| rewriter.apply(p)) {
                Ok(Ok(())) => (true, None),
                Ok(Err(refusal)) => (false, Some(refusal.to_string())),
                Err(Miss::Refused(reason)) => (false, Some(reason)),
                Err(_) => (false, None),
            };
            if let Some(reason) = &reason {
                context.log.refuse(node, reason.clone());
            }
            for site in sites {
                context.log.site(Site { rewritten, reason: reason.clone(), ..site });
            }
        }
    }
}

/// The mixing sites of a graph, its bodies included, as they stand; nothing is changed.
pub fn mixing_sites(graph: &Graph) -> Vec<Site> {
    let mut sites: Vec<Site> =
        survey(graph, false, false, Target::default()).plans.into_iter().flat_map(|p| p.sites).collect();
    for op in graph.ops() {
        sites.extend(graph.op(op).bodies().flat_map(mixing_sites));
    }
    sites
}

/// What there is to do in a graph.
struct Survey {
    plans: Vec<Plan>,
    obstacles: Vec<(OpId, String)>,
}

/// One combination and what to do about it.
struct Plan {
    root: OpId,
    /// The mixing sites in it: mostly one.
    sites: Vec<Site>,
    step: Step,
}

enum Step {
    /// It stands as it should.
    Leave,
    /// The operators are right, but these stand later than they could.
    Hoist(Vec<OpId>),
    /// It is to be written anew.
    Rewrite,
    /// It cannot be.
    Refuse(String),
}

/// The combinations of a graph.
pub(crate) struct Combinations {
    /// Each with the operator that computes its result.
    pub found: Vec<(OpId, Combination)>,
    /// The operators that belong to one.
    members: HashSet<OpId>,
    /// What could not be looked through, with the reason.
    obstacles: Vec<(OpId, String)>,
}

/// The combinations of a graph whose operators are given in order.
pub(crate) fn combinations(graph: &Graph, order: &[OpId]) -> Combinations {
    read(graph, order, &Finder::new(graph))
}

fn read(graph: &Graph, order: &[OpId], finder: &Finder<'_>) -> Combinations {
    let mut members: HashSet<OpId> = HashSet::default();
    let mut obstacles = Vec::new();
    let mut found = Vec::new();
    let mut passed = Passed::default();
    // Readers first: a sum within a sum belongs to the outer one.
    for &root in order.iter().rev() {
        if members.contains(&root) || passed.over.contains(&root) {
            continue;
        }
        if let Some(larger) = passed.part_of.get(&root) {
            passed.told.insert(*larger);
            continue;
        }
        let combination = examine(graph, finder, root);
        obstacles.extend(finder.take_obstacles());
        match combination {
            Ok(combination) => {
                members.extend(&combination.ops);
                members.extend(combination.terms.iter().flat_map(|t| preparation(graph, t)));
                found.push((root, combination));
            }
            Err(left) => passed.pass(graph, root, left),
        }
    }
    let reason =
        format!("larger than {LARGE} operators and left alone, so that not every part of it was looked at");
    obstacles.extend(passed.told.into_iter().map(|op| (op, reason.clone())));
    obstacles.retain(|(op, _)| !members.contains(op));
    Combinations { found, members, obstacles }
}

/// A combination that is left alone.
#[derive(Default)]
struct Left {
    /// The operators that were looked through.
    ops: Vec<OpId>,
    /// With a single term there is none within it either.
    is_single: bool,
}

/// What is known of operators from combinations that were left alone. Each operator within one may be where another ends;
/// but to read a long chain anew from each of its operators takes the square of its length.
#[derive(Default)]
struct Passed {
    /// At these operators no combination ends.
    over: HashSet<OpId>,
    /// In how many large combinations that were left alone an operator is.
    within: HashMap<OpId, usize>,
    /// Operators that are not looked at, with the operator that computes the combination of which they are a large part.
    part_of: HashMap<OpId, OpId>,
    /// Combinations of which a part was not looked at.
    told: BTreeSet<OpId>,
}

/// Combinations of fewer operators may be read from each of them.
const LARGE: usize = 32;

/// Within so many large combinations that are left alone, every part is looked at; then those of at most half the size.
const RETRIES: usize = 4;

impl Passed {
    fn pass(&mut self, graph: &Graph, root: OpId, mut left: Left) {
        if left.is_single {
            self.over.extend(left.ops);
            return;
        }
        if left.ops.len() <= LARGE {
            return;
        }
        // Operands first.
        left.ops.sort_unstable_by_key(|&op| graph.op(op).rank);
        let mut sizes: HashMap<OpId, usize> = HashMap::default();
        for &op in &left.ops {
            let before = graph.predecessors(op).filter_map(|before| sizes.get(&before));
            let size = before.fold(1, |sum: usize, &size| sum.saturating_add(size));
            sizes.insert(op, size);
            let within = self.within.entry(op).or_default();
            *within += 1;
            if *within > RETRIES && size > left.ops.len() / 2 {
                self.part_of.entry(op).or_insert(root);
            }
        }
    }
}

/// With `order_follows`, operators are not moved and the terms of a chain may stand in any order: what decides about that
/// comes later, and two passes that each put the same operators in an order of their own would never come to rest.
fn survey(graph: &Graph, exact: bool, order_follows: bool, target: Target) -> Survey {
    let order = order_of(graph);
    let Combinations { found, members, obstacles } = combinations(graph, &order);
    let mut position = vec![0; graph.op_bound()];
    let mut others = vec![0];
    for (at, op) in order.iter().enumerate() {
        position[op.index()] = at;
        others.push(others[at] + usize::from(!members.contains(op)));
    }
    let plan = |(root, combination): (OpId, Combination)| {
        let site = |value: ValueId, terms: usize, form: Form| Site::new(graph, value, terms, form.name());
        let whole = graph.op(root).output(0).map(|v| site(v, combination.width(), combination.form));
        let parts: Vec<Site> = combination.parts.iter().map(|p| site(p.value, p.width, p.form)).collect();
        let sites = if parts.is_empty() { Vec::from_iter(whole) } else { parts };
        let late = |mut ops: crate::linear::Placement| {
            if order_follows {
                return Step::Leave;
            }
            let prepared = combination.terms.iter().flat_map(|t| preparation(graph, t));
            ops.ops.splice(0..0, prepared);
            match ops.late(graph, &position, &others) {
                late if late.is_empty() => Step::Leave,
                late => Step::Hoist(late),
            }
        };
        let step = if exact {
            if combination.form == Form::Chain {
                late(crate::linear::Placement { ops: combination.ops.clone() })
            } else {
                Step::Refuse(format!(
                    "not bit-identical: {} may add in another order",
                    combination.form.name()
                ))
            }
        } else {
            let stands = |expr: &Expr| graph.op(root).output(0).and_then(|v| expr.find(graph, v, false));
            let is_chain =
                || chain(graph, root, &combination, false).is_ok_and(|found| stands(&found.expr).is_some());
            if order_follows && is_chain() {
                Step::Leave
            } else {
                match replacement(graph, root, &combination) {
                    Ok(Replacement { expr, steps }) => {
                        let nested = || stands_nested(graph, root, &combination, steps);
                        match stands(&expr)
                            .or_else(|| nested().filter(|_| !has_step(target, &combination.ty)))
                        {
                            Some(ops) => late(ops),
                            None if is_part(graph, &combination, steps) => Step::Leave,
                            None => Step::Rewrite,
                        }
                    }
                    Err(reason) => Step::Refuse(reason),
                }
            }
        };
        Plan { root, sites, step }
    };
    let mut plans: Vec<Plan> = found.into_iter().map(plan).collect();
    plans.reverse();
    Survey { plans, obstacles }
}

impl Step {
    fn patch(self, graph: &Graph, root: OpId) -> Result<Patch, Miss> {
        match self {
            Step::Leave => Err(Miss::NoEffect),
            Step::Refuse(reason) => Err(Miss::Refused(reason)),
            Step::Hoist(ops) => {
                let mut patch = Patch::new(Safety::Exact);
                ops.into_iter().for_each(|op| patch.hoist(op));
                Ok(patch)
            }
            Step::Rewrite => {
                // Sites before this one may have been rewritten since: what this one reads has new names.
                let finder = Finder::new(graph);
                let combination = combination_at(graph, &finder, root).ok_or(Miss::NoMatch)?;
                let Replacement { expr, .. } =
                    replacement(graph, root, &combination).map_err(Miss::Refused)?;
                let result = graph.op(root).output(0).ok_or(Miss::NoMatch)?;
                let same_numbers = expr.find(graph, result, true).is_some();
                let mut patch = Patch::new(if same_numbers { Safety::Exact } else { Safety::Reassociates });
                for op in combination.terms.iter().flat_map(|t| preparation(graph, t)) {
                    patch.hoist(op);
                }
                let new = expr.emit(graph, &mut patch, &graph.value(result).name);
                let new = new.ok_or_else(|| Miss::refused("a scaled weight does not fit its type"))?;
                patch.replace_uses(result, new);
                Ok(patch)
            }
        }
    }
}

/// The combination whose result this operator computes, if it is one to rewrite.
pub(crate) fn combination_at(graph: &Graph, finder: &Finder<'_>, root: OpId) -> Option<Combination> {
    examine(graph, finder, root).ok()
}

fn examine(graph: &Graph, finder: &Finder<'_>, root: OpId) -> Result<Combination, Left> {
    let value = graph.op(root).output(0).ok_or_else(Left::default)?;
    let combination = finder.combination(value).map_err(|ops| Left { ops, is_single: false })?;
    let is_single = combination.is_single();
    let left = |combination: Combination| Err(Left { ops: combination.ops, is_single });
    if is_single || !combination.is_mixing(graph) {
        return left(combination);
    }
    // A change of shape that does not come back to the shape of the terms belongs to what reads it.
    let ty = graph.tensor_type(value).filter(|ty| !is_reshape(graph, root) || combination.ty.same_shape(ty));
    if ty.is_none() {
        return Err(Left::default());
    }
    // The same operators in a chain are no gain if there are more of them; a nested sum is one all the same, or the sums
    // within it would be taken apart.
    if combination.form <= Form::Mean {
        let before = steps_in(graph, &combination);
        let fits = |after: Replacement| {
            after.steps <= before || stands_nested(graph, root, &combination, before).is_some()
        };
        if !replacement(graph, root, &combination).is_ok_and(fits) {
            return left(combination);
        }
    }
    Ok(combination)
}

fn is_reshape(graph: &Graph, op: OpId) -> bool {
    matches!(graph.op(op).op_type.as_str(), "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze")
}

/// True for a part of a deep sum that takes as many operators written anew. Where the next part begins follows from where
/// this one ends: to write one anew would give others to find, again and again.
fn is_part(graph: &Graph, combination: &Combination, after: usize) -> bool {
    combination.is_cut && combination.form <= Form::Mean && after >= steps_in(graph, combination)
}

/// Operators on whole tensors that a combination stands for.
fn steps_in(graph: &Graph, combination: &Combination) -> usize {
    combination.ops.iter().map(|&op| steps(graph, op)).sum()
}

/// Operators on whole tensors that an operator stands for.
pub(crate) fn steps(graph: &Graph, op: OpId) -> usize {
    match graph.op(op).op_type.as_str() {
        "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => 0,
        "Sum" => graph.op(op).inputs.len().saturating_sub(1),
        "Mean" => graph.op(op).inputs.len(),
        _ => 1,
    }
}

pub(crate) fn is_sign(factor: &Factor) -> bool {
    factor.parts.is_empty() && factor.constant.as_scalar().is_some_and(|v| v.abs() == 1.0)
}

/// Operators between a term's `x` and what it is computed from that cost little and serve it alone (casts, and
/// scales under a cast): they move with the step, operands first.
fn preparation(graph: &Graph, term: &Term) -> Vec<OpId> {
    let mut ops = Vec::new();
    let mut value = term.x;
    while let Some(op) = value.and_then(|v| graph.producer(v).filter(|_| graph.readers(v) == 1)) {
        let operator = graph.op(op);
        let is_scale = operator.is("Mul") && !ops.is_empty();
        if !operator.is("Cast") && !is_scale {
            break;
        }
        ops.push(op);
        let result = operator.output(0).and_then(|v| graph.tensor_type(v));
        value = operator.operands().find(|&v| {
            graph.constant(v).is_none()
                && matches!((graph.tensor_type(v), result), (Some(a), Some(b)) if a.same_shape(b))
        });
    }
    ops.reverse();
    ops
}

/// The place in the file from which a term can be used: where the last of its `x` and its coefficient is computed.
fn ready(graph: &Graph, term: &Term) -> (u64, Option<OpId>, usize) {
    let prepared = preparation(graph, term);
    let x = match prepared.first() {
        Some(&first) => graph.predecessors(first).collect(),
        None => Vec::from_iter(term.x.and_then(|x| graph.producer(x))),
    };
    let coefficient = term.factor.parts.iter().flat_map(|p| p.expr.values());
    let last = x.into_iter().chain(coefficient.filter_map(|v| graph.producer(v)));
    let last = last.max_by_key(|&op| (graph.op(op).rank, op));
    // Inputs of the graph come first, in their order.
    let input = term.x.and_then(|x| graph.input_place(x));
    (last.map_or(0, |p| graph.op(p).rank), last, input.unwrap_or(usize::MAX))
}

/// What is to stand in the place of a combination.
pub(crate) struct Replacement {
    pub(crate) expr: Expr,
    /// Operators on whole tensors in it.
    pub(crate) steps: usize,
}

/// The chain for a combination whose result `root` computes.
pub(crate) fn replacement(
    graph: &Graph,
    root: OpId,
    combination: &Combination,
) -> Result<Replacement, String> {
    chain(graph, root, combination, true)
}

/// The chain with its terms in the order in which they can be used, or in the order in which they were found.
fn chain(graph: &Graph, root: OpId, combination: &Combination, sorted: bool) -> Result<Replacement, String> {
    let (mut terms, addends) = split(&combination.terms);
    if sorted {
        terms.sort_by_cached_key(|t| ready(graph, t));
    }
    let own = own(graph, root, &combination.ops);
    let accumulated = accumulate(graph, &combination.ty, &terms, addends, &own)
        .ok_or_else(|| format!("a coefficient does not fit {}", combination.ty.dtype))?;
    let ty = graph.op(root).output(0).and_then(|v| graph.tensor_type(v));
    let ty = ty.ok_or("its shape is not known")?;
    if ty.same_shape(&combination.ty) {
        return Ok(accumulated);
    }
    let shape = reshape_target(ty).ok_or("the shape of the result has more than one unknown size")?;
    let expr = Expr::op("Reshape", [accumulated.expr, Expr::Constant(Tensor::i64s(&shape))]);
    Ok(Replacement { expr, steps: accumulated.steps })
}

/// The values that serve a combination alone. A stack that is read twice does not, nor does what is on the way to it.
fn own(graph: &Graph, root: OpId, ops: &[OpId]) -> HashSet<ValueId> {
    let within: HashSet<OpId> = ops.iter().copied().collect();
    let (mut own, mut next) = (HashSet::default(), vec![root]);
    while let Some(op) = next.pop() {
        for value in graph.op(op).operands().filter(|&v| graph.readers(v) == 1) {
            own.insert(value);
            let producer = graph.producer(value).filter(|p| within.contains(p));
            next.extend(producer.filter(|&p| graph.op(p).results().count() == 1));
        }
    }
    own
}

/// The operand of a Reshape to this type: -1 for the one size that is not known.
fn reshape_target(ty: &TensorType) -> Option<Vec<i64>> {
    let shape = ty.shape.as_ref()?;
    if shape.contains(&Dim::Known(0)) || shape.iter().filter(|d| d.known().is_none()).count() > 1 {
        return None;
    }
    shape.iter().map(|d| d.known().map_or(Some(-1), |n| i64::try_from(n).ok())).collect()
}

/// Terms and addends apart, without those that are zero; the last term stays.
pub(crate) fn split(all: &[Term]) -> (Vec<Term>, Vec<Factor>) {
    let (mut terms, addends): (Vec<Term>, Vec<Term>) = all.iter().cloned().partition(|t| t.x.is_some());
    let last = terms.last().cloned();
    terms.retain(|t| !t.factor.constant.is_zero());
    if terms.is_empty() {
        terms.extend(last);
    }
    let addends = addends.into_iter().map(|t| t.factor).filter(|f| !f.constant.is_zero());
    (terms, addends.collect())
}

/// The chain. `None` when a constant does not fit the element type.
fn accumulate(
    graph: &Graph,
    ty: &TensorType,
    terms: &[Term],
    mut addends: Vec<Factor>,
    own: &HashSet<ValueId>,
) -> Option<Replacement> {
    let common = common_scale(graph, terms, &addends, own);
    // The first constant addend goes into the bias of the first convolution that is read here alone.
    let mut bias_for = None;
    if let Some(at) = addends.iter().position(|f| f.parts.is_empty())
        && let Some(i) =
            (0..terms.len()).find(|&i| into_conv(graph, terms, i, Some(&addends[at].constant), own).is_some())
    {
        bias_for = Some((i, addends.remove(at).constant));
    }
    let mut acc: Option<Expr> = None;
    let mut steps = 0;
    // A chain that starts with a subtraction would need a negation first.
    let subtracts = |t: &Term| common.is_none() && is_sign(&t.factor) && !t.factor.is_one();
    let first = terms.iter().position(|t| !subtracts(t)).unwrap_or(0);
    let order = std::iter::once(first).chain((0..terms.len()).filter(|&i| i != first));
    for i in order {
        let term = &terms[i];
        let x = Expr::Value(term.x?);
        let bias = bias_for.as_ref().filter(|(at, _)| *at == i).map(|(_, bias)| bias);
        let folded = if common.is_none() { into_conv(graph, terms, i, bias, own) } else { None };
        let negative = folded.is_none() && subtracts(term);
        let product = match folded {
            Some(conv) => conv,
            None if common.is_some() || term.factor.is_one() || negative => x,
            None => {
                steps += 1;
                scaled(x, &term.factor, ty)?
            }
        };
        acc = Some(match (acc, negative) {
            (None, false) => product,
            (None, true) => {
                steps += 1;
                Expr::op("Neg", [product])
            }
            (Some(acc), negative) => {
                steps += 1;
                Expr::op(if negative { "Sub" } else { "Add" }, [acc, product])
            }
        });
    }
    let mut acc = acc?;
    if let Some(scale) = common {
        steps += 1;
        acc = scaled(acc, &Factor::constant(Array::scalar(scale)), ty)?;
    }
    for addend in addends {
        steps += 1;
        acc = Expr::op("Add", [acc, coefficient(&addend, ty)?]);
    }
    Some(Replacement { expr: acc, steps })
}

/// The scale that every term shares, where scaling the sum once is cheaper than scaling each term.
fn common_scale(graph: &Graph, terms: &[Term], addends: &[Factor], own: &HashSet<ValueId>) -> Option<f64> {
    let scale = terms.first()?.factor.constant.as_scalar()?;
    let shared = terms.len() > 1
        && scale.abs() != 1.0
        && addends.is_empty()
        && terms.iter().all(|t| t.factor.parts.is_empty() && t.factor.constant.as_scalar() == Some(scale))
        && (0..terms.len()).all(|i| into_conv(graph, terms, i, None, own).is_none());
    shared.then_some(scale)
}

/// `x * factor`.
fn scaled(x: Expr, factor: &Factor, ty: &TensorType) -> Option<Expr> {
    match factor.parts.as_slice() {
        [part] if part.inverse && factor.constant.is_one() => Some(Expr::op("Div", [x, part_expr(part, ty)])),
        _ => Some(Expr::op("Mul", [x, coefficient(factor, ty)?])),
    }
}

/// The coefficient alone: constant and computed parts, combined while they are small.
fn coefficient(factor: &Factor, ty: &TensorType) -> Option<Expr> {
    let multiplied = factor.parts.iter().filter(|p| !p.inverse).map(|p| part_expr(p, ty));
    let mut all = multiplied.reduce(|a, b| Expr::op("Mul", [a, b]));
    let divided = factor.parts.iter().any(|p| p.inverse);
    if !factor.constant.is_one() || all.is_none() {
        let constant = Expr::Constant(factor.constant.tensor(ty.dtype)?);
        all = Some(match all {
            Some(all) => Expr::op("Mul", [all, constant]),
            None => constant,
        });
    }
    let mut all = all?;
    if divided {
        for part in factor.parts.iter().filter(|p| p.inverse) {
            all = Expr::op("Div", [all, part_expr(part, ty)]);
        }
    }
    Some(all)
}

/// A computed coefficient, brought down to a rank that does not raise that of what it scales.
fn part_expr(part: &crate::linear::Computed, ty: &TensorType) -> Expr {
    if ty.rank().is_some_and(|rank| part.shape.len() > rank) {
        return Expr::op("Reshape", [part.expr.clone(), Expr::Constant(Tensor::i64s(&[]))]);
    }
    part.expr.clone()
}

/// `s * Conv(p, W, B) + c` as `Conv(p, s*W, s*B + c)`, for constants, where nothing else reads the Conv or its
/// kernel. `None` where that is not so, or changes nothing.
fn into_conv(
    graph: &Graph,
    terms: &[Term],
    at: usize,
    bias: Option<&Array>,
    own: &HashSet<ValueId>,
) -> Option<Expr> {
    let (x, scale) = (terms[at].x?, &terms[at].factor);
    if !scale.parts.is_empty() || (scale.is_one() && bias.is_none()) || !own.contains(&x) {
        return None;
    }
    let op = graph.producer(x)?;
    let conv = graph.op(op);
    // With a computed coefficient, one Conv can be two terms: it would have to exist twice.
    if !conv.is("Conv") || terms.iter().filter(|t| t.x == Some(x)).count() > 1 {
        return None;
    }
    let w = conv.input(1)?;
    // Half-precision weights are often so small that scaling them would cost digits.
    if !scale.is_one() && graph.tensor_type(x)?.dtype == DType::F16 {
        return None;
    }
    let channels = *graph.tensor_type(w)?.dims()?.first()?;
    let spatial = graph.tensor_type(w)?.rank()?.checked_sub(2)?;
    let scales = scale.constant.per_channel(channels, spatial)?;
    let dtype = graph.tensor_type(x)?.dtype;
    let kernel = if scale.is_one() {
        Expr::Value(w)
    } else {
        let Def::Initializer(tensor) = &graph.value(w).def else { return None };
        if graph.readers(w) != 1 || tensor.byte_len()? > MAX_WEIGHT {
            return None;
        }
        Expr::Rows { of: w, by: scales.clone() }
    };
    let old = match conv.input(2) {
        Some(b) => Some(graph.constant(b)?.to_f64().ok()?),
        None => None,
    };
    let added = match bias {
        Some(bias) => Some(bias.per_channel(channels, spatial)?),
        None => None,
    };
    let new: Option<Vec<f64>> = match (old, added) {
        (None, None) => None,
        (Some(old), None) => Some(old.iter().zip(&scales).map(|(b, s)| b * s).collect()),
        (None, Some(added)) => Some(added),
        (Some(old), Some(added)) => {
            Some(old.iter().zip(&scales).zip(&added).map(|((b, s), c)| b * s + c).collect())
        }
    };
    let mut args = vec![Some(Expr::Value(conv.input(0)?)), Some(kernel)];
    if let Some(data) = new {
        args.push(Some(Expr::Constant(Array { dims: vec![channels], data }.tensor(dtype)?)));
    }
    Some(Expr::Like { op, args })
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::{canonical_like, parse_model, print_graph};
    use dmopt_ir::{Model, Safety};

    use crate::linear::Finder;
    use crate::{Options, Outcome, order_of, run};

    fn model(text: &str) -> Model {
        parse_model(&format!("<ir_version: 10, opset_import: [\"\": 21]> {text}")).expect("text of the test")
    }

    fn fuse(model: &mut Model, allow: Safety) -> Outcome {
        let only = vec!["fuse-scaled-sum".to_string()];
        run(model, &Options { only, allow: Some(allow), ..Options::default() })
            .expect("the pass keeps the graph whole")
    }

    /// Rewrites `before` and expects `after`, up to names; a second run must change nothing.
    fn check(before: &str, after: &str) -> Outcome {
        let (mut model, expected) = (self::model(before), self::model(after));
        let outcome = fuse(&mut model, Safety::Approximates);
        let got = canonical_like(&model.graph, &expected.graph);
        let want = canonical_like(&expected.graph, &expected.graph);
        assert_eq!(got, want, "\ngot:\n{}", print_graph(&model.graph));
        let again = fuse(&mut model, Safety::Approximates);
        assert_eq!(again.passes[0].rewrites, 0, "a second run changed\n{}", print_graph(&model.graph));
        outcome
    }

    /// Rewrites nothing in `text`.
    fn check_left(text: &str) -> Outcome {
        let mut model = self::model(text);
        let before = canonical_like(&model.graph, &model.graph);
        let outcome = fuse(&mut model, Safety::Approximates);
        assert_eq!(canonical_like(&model.graph, &model.graph), before);
        outcome
    }

    #[test]
    fn products_move_next_to_what_they_scale() {
        let outcome = check(
            "f (float[1,2,4,4] x) => (float[1,2,4,4] z, float[1,2,4,4] u, float[1,2,4,4] v)
             <float[1] a = {2.0}, float[1] b = {3.0}> {
                u = Relu(x)
                v = Tanh(x)
                p = Mul(a, u)
                q = Mul(b, v)
                z = Add(p, q)
             }",
            "f (float[1,2,4,4] x) => (float[1,2,4,4] z, float[1,2,4,4] u, float[1,2,4,4] v)
             <float a = {2.0}, float b = {3.0}> {
                u = Relu(x)
                p = Mul(u, a)
                v = Tanh(x)
                q = Mul(v, b)
                z = Add(p, q)
             }",
        );
        assert_eq!((outcome.sites.len(), outcome.sites[0].terms, outcome.sites[0].form), (1, 2, "chain"));
    }

    #[test]
    fn repeated_terms_merge_and_zero_disappears() {
        check(
            "f (float[2,4] x, float[2,4] y, float[2,4] w) => (float[2,4] z)
             <float a = {2.0}, float b = {0.5}, float zero = {0.0}> {
                p = Mul(x, a)
                q = Mul(y, b)
                r = Mul(x, b)
                s = Mul(w, zero)
                z = Sum(p, q, r, s)
             }",
            "f (float[2,4] x, float[2,4] y, float[2,4] w) => (float[2,4] z) <float a = {2.5}, float b = {0.5}> {
                p = Mul(x, a)
                q = Mul(y, b)
                z = Add(p, q)
             }",
        );
    }

    #[test]
    fn a_scale_and_a_bias_go_into_a_convolution_that_nothing_else_reads() {
        check(
            "f (float[1,2,4,4] x, float[1,2,4,4] y, float[1,2,4,4] p) => (float[1,2,4,4] z)
             <float[1] a = {2.0}, float g = {0.5}, float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float[1,2,1,1] b = {7.0, 8.0}> {
                m = Mul(a, x)
                n = Mul(a, y)
                t = Add(m, n)
                c = Conv(p, w)
                q = Mul(g, c)
                u = Add(t, q)
                z = Add(u, b)
             }",
            "f (float[1,2,4,4] x, float[1,2,4,4] y, float[1,2,4,4] p) => (float[1,2,4,4] z)
             <float a = {2.0}, float a2 = {2.0}, float[2,2,1,1] w = {0.5, 1.0, 1.5, 2.0}, float[2] b = {7.0, 8.0}> {
                m = Mul(x, a)
                n = Mul(y, a2)
                t = Add(m, n)
                c = Conv(p, w, b)
                z = Add(t, c)
             }",
        );
    }

    #[test]
    fn a_convolution_that_two_sums_read_through_one_stack_is_not_computed_twice() {
        check(
            "f (float[1,2,4,4] x, float[1,2,4,4] p) => (float[1,2,4,4] y, float[1,2,4,4] z)
             <float[2,2,1,1] w = {1, 2, 3, 4}, float[2] a = {2, 3}, float[2] b = {4, 5}, int64[1] axis = {0}> {
                c = Conv(p, w)
                u = Unsqueeze(c, axis)
                v = Unsqueeze(x, axis)
                s = Concat<axis = 0>(u, v)
                y = Einsum<equation = \"n,n...->...\">(a, s)
                t = Concat<axis = 0>(u, v)
                z = Einsum<equation = \"n,n...->...\">(b, t)
             }",
            "f (float[1,2,4,4] x, float[1,2,4,4] p) => (float[1,2,4,4] y, float[1,2,4,4] z)
             <float[2,2,1,1] w = {1, 2, 3, 4}, float a = {2}, float a1 = {3}, float b = {4}, float b1 = {5}> {
                c = Conv(p, w)
                m = Mul(x, a1)
                m1 = Mul(c, a)
                y = Add(m, m1)
                n = Mul(x, b1)
                n1 = Mul(c, b)
                z = Add(n, n1)
             }",
        );
    }

    #[test]
    fn a_residual_connection_is_not_a_mixing_site() {
        let outcome =
            check_left("f (float[2,4] x) => (float[2,4] z) { a = Relu(x)  b = Tanh(x)  z = Add(a, b) }");
        assert!(outcome.sites.is_empty());
    }

    #[test]
    fn a_partial_sum_that_something_else_reads_stays() {
        check(
            "f (float[2,4] x, float[2,4] y, float[2,4] w) => (float[2,4] z, float[2,4] t)
             <float[1] a = {2.0}, float[1] b = {3.0}> {
                p = Mul(x, a)  q = Mul(y, b)  t = Add(p, q)  r = Mul(w, b)  z = Add(t, r)
             }",
            "f (float[2,4] x, float[2,4] y, float[2,4] w) => (float[2,4] z, float[2,4] t)
             <float a = {2.0}, float b = {3.0}, float b2 = {3.0}> {
                p = Mul(x, a)  q = Mul(y, b)  t = Add(p, q)  r = Mul(w, b2)  z = Add(r, t)
             }",
        );
    }

    #[test]
    fn exact_moves_operators_and_changes_none() {
        let mut model = self::model(
            "f (float[2,4] x) => (float[2,4] z, float[2,4] u, float[2,4] v) <float[1] a = {2.0}, float[1] b = {0.0}> {
                u = Relu(x)  v = Tanh(x)  p = Mul(a, u)  q = Mul(b, v)  z = Add(p, q)
             }",
        );
        let outcome = fuse(&mut model, Safety::Exact);
        assert_eq!(outcome.safety, Some(Safety::Exact));
        let text = print_graph(&model.graph);
        assert!(text.find("p = Mul").unwrap() < text.find("v = Tanh").unwrap(), "{text}");
        assert!(text.contains("q = Mul(b, v)"), "{text}");
    }

    #[test]
    fn a_partial_sum_read_twice_within_the_combination_is_looked_through() {
        let outcome = check(
            "f (float[2,4] a, float[2,4] b, float[2,4] c) => (float[2,4] z)
             <float two = {2.0}, float half = {0.5}, float quarter = {0.25}> {
                s = Mul(a, two)
                d = Sub(b, s)  e = Mul(d, half)  l = Add(s, e)
                f = Sub(c, l)  g = Mul(f, quarter)  z = Add(l, g)
             }",
            "f (float[2,4] a, float[2,4] b, float[2,4] c) => (float[2,4] z)
             <float p = {0.75}, float q = {0.375}, float r = {0.25}> {
                x = Mul(a, p)  y = Mul(b, q)  t = Add(x, y)  w = Mul(c, r)  z = Add(t, w)
             }",
        );
        assert_eq!((outcome.sites.len(), outcome.sites[0].terms), (1, 3));
    }

    #[test]
    fn a_stack_keeps_its_slices_through_reshapes_around_ones() {
        check(
            "f (float[2,4] a, float[2,4] b) => (float[2,4] z)
             <float[1,1,2] v = {2.0, 3.0}, int64[1] zero = {0}, int64[3] flat = {1, 2, 8}, int64[2] back = {2, 4}> {
                p = Unsqueeze(a, zero)  q = Unsqueeze(b, zero)  s = Concat<axis=0>(p, q)
                f = Reshape(s, flat)  m = MatMul(v, f)  z = Reshape(m, back)
             }",
            "f (float[2,4] a, float[2,4] b) => (float[2,4] z) <float v = {2.0}, float w = {3.0}> {
                p = Mul(a, v)  q = Mul(b, w)  z = Add(p, q)
             }",
        );
    }

    #[test]
    fn steps_that_wait_for_nothing_do_not_fight_for_the_first_place() {
        check_left(
            "f (float[2,4] x) => (float[2,4] z) <float a = {-2.0}, float b = {3.0}> {
                r = Relu(x)  m = Mul(x, a)  n = Mul(r, b)  z = Add(m, n)
             }",
        );
    }

    #[test]
    fn a_convolution_in_two_terms_is_not_doubled() {
        check(
            "f (float[1,2,3,3] p, float g) => (float[1,2,3,3] z)
             <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float a = {2.0}> {
                c = Conv(p, w)  e = Mul(c, a)  f = Mul(e, g)  z = Add(e, f)
             }",
            "f (float[1,2,3,3] p, float g) => (float[1,2,3,3] z)
             <float[2,2,1,1] w = {1.0, 2.0, 3.0, 4.0}, float a = {2.0}> {
                c = Conv(p, w)  e = Mul(c, a)  f = Mul(e, g)  z = Add(e, f)
             }",
        );
    }

    #[test]
    fn a_sum_of_very_many_terms_is_refused() {
        let terms: Vec<String> = (0..600).map(|i| format!("x{i}")).collect();
        let inputs: Vec<String> = terms.iter().map(|x| format!("float[2] {x}")).collect();
        let outcome = check_left(&format!(
            "f ({}) => (float[2] z) {{ z = Sum({}) }}",
            inputs.join(", "),
            terms.join(", ")
        ));
        assert_eq!(outcome.passes[0].refused[0].reason, "more than 512 terms");
    }

    #[test]
    fn a_sum_too_deep_to_be_read_at_a_time_comes_to_rest() {
        let steps = 180;
        let own: Vec<String> =
            (0..steps).map(|i| format!("float[2] a{i}, float[2] b{i}, float[2] c{i}")).collect();
        let lines: Vec<String> =
            (0..steps).map(|i| format!("v{} = Sum(v{i}, a{i}, b{i}, c{i})", i + 1)).collect();
        let (own, lines) = (own.join(", "), lines.join("\n"));
        let mut model = self::model(&format!("f (float[2] v0, {own}) => (float[2] v{steps}) {{ {lines} }}"));
        // Those 170 at the bottom, of 511 terms, are written as a chain; of what is above, only a part can be read.
        assert_eq!(fuse(&mut model, Safety::Approximates).passes[0].rewrites, 1);
        assert_eq!(fuse(&mut model, Safety::Approximates).passes[0].rewrites, 0);
    }

    /// Looks at operators that it takes to read a graph with so many steps, and the combinations found.
    fn looks(step: &str, steps: usize) -> (usize, super::Combinations) {
        let step = |i: usize| {
            let names = [("next", i + 1), ("last", i), ("own", i)];
            names.iter().fold(step.to_string(), |step, (name, i)| step.replace(name, &format!("{name}{i}")))
        };
        let (lines, inputs): (Vec<String>, Vec<String>) =
            (0..steps).map(|i| (step(i).replace("next", "last"), format!("float[3,2] own{i}"))).unzip();
        let model = self::model(&format!(
            "f (float[3,2] last0, float[3,1] a, {}) => (float[3,2] last{steps})
             <float c = {{1.5}}, float[3,1] d = {{1, 2, 3}}, float16 e = {{2}}> {{ {} }}",
            inputs.join(", "),
            lines.join("\n")
        ));
        let mut graph = model.graph;
        dmopt_ir::infer::infer_graph(&mut graph);
        let finder = Finder::new(&graph);
        let found = super::read(&graph, &order_of(&graph), &finder);
        (finder.looks.get(), found)
    }

    #[test]
    fn the_looks_that_it_takes_grow_with_the_number_of_operators() {
        for step in [
            "next = Add(last, last)",
            "m_next = Mul(last, c)  next = Add(m_next, d)",
            "next = Add(last, own)",
            "m_next = Mul(last, a)  next = Add(m_next, own)",
            "s_next = Sub(own, last)  m_next = Mul(s_next, c)  next = Add(last, m_next)",
            "next = Sum(last, own, c, d)",
            "m_next = Mul(last, c)  h_next = Cast<to = 10>(m_next)  s_next = Mul(h_next, e)  next = Cast<to = 1>(s_next)",
        ] {
            let [small, large] = [1_000, 2_000].map(|steps| looks(step, steps).0);
            assert!(large <= 2 * small + small / 4, "{step}: {small}, then {large}");
            assert!(small <= 40_000, "{step}: {small}");
        }
    }

    #[test]
    fn of_a_long_combination_that_is_left_alone_not_every_part_is_looked_at() {
        let step = "m_next = Mul(last, a)  n_next = Add(m_next, own)  o_next = Relu(own)  next = Add(n_next, o_next)";
        let [small, large] = [500, 1_000].map(|steps| looks(step, steps));
        assert!(large.0 <= 2 * small.0 + small.0 / 4, "{}, then {}", small.0, large.0);
        assert!(small.1.obstacles.iter().any(|(_, reason)| reason.contains("not every part")));
        assert!(!small.1.found.is_empty());
    }
}
