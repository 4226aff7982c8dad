//! Compute a batch in slices of its samples, one after the other.
//!
//! A network treats every sample by itself, from what comes in to what goes out. With `x_k` the samples of slice k,
//! ```text
//! f(x)  =  Concat_k(f(x_k))
//! ```
//! so that no more than one slice of what lies between has to exist at a time. `Scan` does that: its body stands in the file
//! once, reads slices where they are, and writes its results where they belong. What mixes samples, and what is computed of
//! that, stays outside and reads whole batches.
//!
//! There are as many slices as the batch, the outermost size of the largest input, can be divided into without taking longer:
//! each has work enough for every operator of the body, and samples enough for every weight. Where the model leaves the size
//! of the batch open, a slice is one sample, or there are none. On CUDA, where small operators leave most of the device idle,
//! only who asks for slices (`--split-batch K`) gets any.
//!
//! Class: exact for convolutions, pooling, moves of data and arithmetic of elements. Products of matrices, sums, and functions
//! that kernels compute in other ways at the ends of vectors, may be rounded otherwise where there are fewer samples; where
//! nothing but exact edits are allowed, they stay outside.
//! Left alone: unless somebody asks, models that do not need less by an eighth, or that need more for a single sample. An open
//! batch cannot be empty any more: ONNX Runtime refuses to run a Scan over nothing.
//!
//! ```onnx
//! f (float[4,8,128,128] x) => (float[4,8,128,128] y) <float[16,8,3,3] w, float[8,16,3,3] v> {
//!   h = Conv<pads = [1, 1, 1, 1]>(x, w)
//!   a = Relu(h)
//!   y = Conv<pads = [1, 1, 1, 1]>(a, v)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[4,8,128,128] x) => (float[4,8,128,128] y) <int64[5] x_slices_shape = {4, 1, 8, 128, 128}> {
//!   x_slices = Reshape(x, x_slices_shape)
//!   y = Scan(x_slices)<body = f_slice (float[1,8,128,128] x_slice) => (float[8,128,128] y_out)
//!   <float[16,8,3,3] w, float[8,16,3,3] v, int64[3] y_sizes = {8, 128, 128}>
//!   {
//!     h = Conv<pads = [1, 1, 1, 1]>(x_slice, w)
//!     a = Relu(h)
//!     y_slice = Conv<pads = [1, 1, 1, 1]>(a, v)
//!     y_out = Reshape(y_slice, y_sizes)
//!   }, num_scan_inputs = 1>
//! }
//! ```
//!
//! refused: samples are computed of other samples
//! ```onnx
//! f (float[4,8,128,128] x) => (float[1,8,128,128] y)
//! <float[16,8,3,3] w, float[8,16,3,3] v, int64[1] axes = {0}> {
//!   m = ReduceMean(x, axes)
//!   h = Conv<pads = [1, 1, 1, 1]>(m, w)
//!   a = Relu(h)
//!   y = Conv<pads = [1, 1, 1, 1]>(a, v)
//! }
//! ```

use std::collections::{HashMap, HashSet};

use dmopt_ir::{
    AttributeValue, BuildError, Builder, Graph, NewOp, Op, OpId, Operand, Patch, Rewriter, Safety,
    TensorType, Type, ValueId,
};

use crate::batch::Batch;
use crate::flops::{flops, flops_of};
use crate::samples::{dims, new_shape, safety, sampled, shape};
use crate::{Context, Miss, Pass, Planning, Stage, Target, edited, order_of};

/// See the header of this file.
pub struct SplitBatch;

/// Arithmetic operations for each operator of a slice, on average. To begin with an operator, and to share it among
/// threads, takes as long as some hundred thousand; with fewer than this, slices were seen to take a tenth longer.
const LEAST_FLOPS: u128 = 1 << 24;

/// How often each weight of a layer is used for a slice, on average: to read it takes as long as some multiplications.
const LEAST_USES: u128 = 64;

/// There are no more slices than this.
const MOST_SLICES: u64 = 1 << 10;

/// So many places at which a region ends are looked at.
const MOST_ENDS: usize = 16;

/// One part in this many of all operations is little.
const LITTLE: u128 = 256;

/// The predicted peak has to come down by one part in this many.
const WORTHWHILE: u64 = 8;

/// What grows by less than one part in this many is as large as before.
const NO_MORE: u64 = 256;

impl Pass for SplitBatch {
    fn name(&self) -> &'static str {
        "split-batch"
    }

    fn source(&self) -> &'static str {
        include_str!("split_batch.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Batching
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let asked = context.planning.split_batch;
        // Slices are not sliced again.
        let is_split = graph.ops().any(|id| graph.op(id).is("Scan"));
        let is_cuda = context.planning.target == Target::OrtCuda;
        if context.in_body || asked.is_none() && is_cuda || is_split {
            return;
        }
        let proposal = match asked {
            Some(1) => Err(Miss::NoMatch),
            Some(count) => asked_for(rewriter, count, context.planning),
            None => best(rewriter, context),
        };
        match proposal {
            Ok((Region { count, is_open, ops, .. }, patch)) => {
                if context.apply(ops[0].0, Ok(patch), rewriter) {
                    let note = match is_open {
                        true => "a batch is computed one sample at a time, and cannot be empty".to_string(),
                        false => format!(
                            "a batch is computed in {count} slices of its samples, one after the other"
                        ),
                    };
                    context.log.notes.push(note);
                }
            }
            Err(Miss::Refused(reason)) => {
                let name = format!("graph '{}'", rewriter.graph().name());
                context.log.refuse(name, reason);
            }
            Err(Miss::NoMatch | Miss::NoEffect) => {}
        }
    }
}

/// The operator that does the same with each slice of what it reads and hands nothing from slice to slice, if there is
/// exactly one.
pub(crate) fn sliced(graph: &Graph) -> Option<OpId> {
    let is_sliced = |id: &OpId| {
        let op = graph.op(*id);
        let scanned = op.int("num_scan_inputs").and_then(|count| usize::try_from(count).ok());
        op.is("Scan") && scanned == Some(op.inputs.len())
    };
    let mut found = graph.ops().filter(is_sliced);
    found.next().filter(|_| found.next().is_none())
}

/// As many slices as the caller says, or one for each sample.
fn asked_for(rewriter: &mut Rewriter<'_>, count: u64, planning: &Planning) -> Result<(Region, Patch), Miss> {
    let graph = rewriter.graph();
    let refused = || {
        let slices = if count == 0 { "slices of one".to_string() } else { format!("{count} slices of its") };
        Miss::refused(format!("there is no batch that can be computed in {slices} samples"))
    };
    let batch = Batch::of(graph, planning).ok_or_else(refused)?;
    if batch.is_open() && count != 0 {
        return Err(Miss::refused("a batch of open size is computed one sample at a time, or as a whole"));
    }
    let count = if count == 0 { batch.samples } else { count };
    if !batch.samples.is_multiple_of(count) {
        return Err(refused());
    }
    let region = Region::of(&batch, graph, count, rewriter.allows()).ok_or_else(refused)?;
    region.in_slices(&batch, rewriter).map(|patch| (region, patch))
}

/// As many slices as do not take longer, or as few as fit the budget; where the peak falls.
fn best(rewriter: &mut Rewriter<'_>, context: &Context<'_>) -> Result<(Region, Patch), Miss> {
    let (original, allow, budget) = (rewriter.graph(), rewriter.allows(), context.budget_bytes);
    let batch =
        Batch::of(original, context.planning).filter(|batch| batch.samples > 1).ok_or(Miss::NoMatch)?;
    let graph = batch.graph(original);
    let region = |count| Region::of(&batch, original, count, allow);
    let counts = counts(&batch);
    // With the fewest slices there is most to do at a time.
    let first = counts.iter().copied().find_map(region).ok_or(Miss::NoMatch)?;
    if budget.is_none() && !first.is_quick(graph) {
        return Err(Miss::refused("with slices, operators would have too little to do at a time"));
    }
    let peaks = |graph: &Graph| context.planning.sized(graph).peaks().ok();
    let before = peaks(original).ok_or(Miss::NoMatch)?;
    let candidates: Vec<Region> = match budget {
        Some(budget) if before[0] <= budget => return Err(Miss::NoEffect),
        // Who has a budget rather waits than goes beyond it.
        Some(_) => counts.into_iter().filter_map(region).collect(),
        None => {
            let quick = |region: &Region| region.is_quick(graph);
            let more = counts.into_iter().rev().take_while(|&count| count > first.count);
            vec![more.filter_map(region).find(quick).unwrap_or(first)]
        }
    };
    let mut found = Err(Miss::NoEffect);
    for region in candidates {
        let patch = region.in_slices(&batch, rewriter)?;
        let (sliced, _) = edited(rewriter.graph(), [patch.clone()]).ok_or(Miss::NoMatch)?;
        let after = peaks(&sliced).ok_or(Miss::NoMatch)?;
        if after[0] > before[0] - before[0] / WORTHWHILE {
            continue;
        }
        // At none of the sizes that an open batch may have.
        if after.iter().zip(&before).any(|(after, before)| *after > before + before / NO_MORE) {
            found = Err(Miss::refused("a single sample would need more, and how many there are is not said"));
            continue;
        }
        found = Ok((region, patch));
        if budget.is_some_and(|budget| after[0] <= budget) {
            break;
        }
    }
    found
}

/// The numbers of slices that a batch can be divided into, in ascending order.
fn counts(batch: &Batch) -> Vec<u64> {
    let samples = batch.samples;
    if batch.is_open() {
        return vec![samples];
    }
    (2..=samples.min(MOST_SLICES)).filter(|count| samples.is_multiple_of(*count)).collect()
}

/// What an operator reads, but for the operand that tells the size of a whole result.
fn read_in_slices(op: &Op, told: Option<usize>) -> impl Iterator<Item = ValueId> {
    let operands = op.inputs.iter().enumerate().filter(move |(slot, _)| Some(*slot) != told);
    operands.filter_map(|(_, value)| *value).chain(op.captures.iter().copied())
}

/// What treats every sample by itself.
struct Region {
    count: u64,
    /// True if there are as many slices as there are samples, and the model leaves open how many.
    is_open: bool,
    /// Its operators, in order, and which operands each of them reads slice by slice.
    ops: Vec<(OpId, Vec<bool>)>,
    /// The same as a set.
    members: HashSet<OpId>,
    /// What it reads slice by slice and does not compute.
    scanned: Vec<ValueId>,
    /// What of it is read outside, or is an output.
    results: Vec<ValueId>,
    safety: Safety,
}

impl Region {
    /// The largest region of a graph that can be computed in so many slices by edits of this class.
    fn of(batch: &Batch, graph: &Graph, count: u64, allow: Safety) -> Option<Region> {
        let graph = batch.graph(graph);
        // An older Scan is another operator.
        if count < 2 || graph.opset("") < 9 {
            return None;
        }
        let whole = flops(graph);
        let mut outside = HashSet::new();
        let (mut region, mut ends) = Region::without(&outside, batch, graph, count, allow);
        for _ in 0..MOST_ENDS {
            // Where the region ends because something reads little of it as a whole, as a mask of attention, that little is
            // computed before, as a whole.
            let little = ends.iter().map(|&end| region.served(graph, end)).find(|served| {
                region.flops(graph, |id| served.contains(&id)) <= whole / LITTLE
                    && !served.is_subset(&outside)
            });
            let Some(little) = little else { break };
            outside.extend(little);
            let (next, next_ends) = Region::without(&outside, batch, graph, count, allow);
            if next.flops(graph, |_| true) > region.flops(graph, |_| true) {
                (region, ends) = (next, next_ends);
            } else {
                break;
            }
        }
        (!region.results.is_empty() && !region.scanned.is_empty()).then_some(region)
    }

    /// Operators of the region that this one needs.
    fn served(&self, graph: &Graph, end: OpId) -> HashSet<OpId> {
        let (mut found, mut pending) = (HashSet::new(), vec![end]);
        while let Some(id) = pending.pop() {
            let by = graph.predecessors(id).filter(|by| self.members.contains(by));
            pending.extend(by.filter(|by| found.insert(*by)).collect::<Vec<_>>());
        }
        found
    }

    /// Operations of some of the operators.
    fn flops(&self, graph: &Graph, of: impl Fn(OpId) -> bool) -> u128 {
        let ops = self.ops.iter().map(|(id, _)| *id).filter(|id| of(*id));
        ops.filter_map(|id| flops_of(graph, id)).sum()
    }

    /// The largest region that these operators are not part of; and those that read it and are not part of it.
    fn without(
        outside: &HashSet<OpId>,
        batch: &Batch,
        graph: &Graph,
        count: u64,
        allow: Safety,
    ) -> (Region, Vec<OpId>) {
        let mut ends = Vec::new();
        let mut region = Region {
            count,
            is_open: batch.is_open(),
            ops: Vec::new(),
            members: HashSet::new(),
            scanned: Vec::new(),
            results: Vec::new(),
            safety: Safety::Exact,
        };
        let (mut inside, mut after, mut scanned) = (HashSet::new(), HashSet::new(), HashSet::new());
        for id in order_of(graph) {
            let op = graph.op(id);
            let told = batch.told_size(graph, id);
            let is_out = outside.contains(&id) || read_in_slices(op, told).any(|v| after.contains(&v));
            let sampled = if is_out { None } else { sampled(batch, graph, id, count) };
            let sampled = sampled.map(|sampled| (safety(graph, id, &sampled), sampled));
            let fits = |sampled: &[bool]| {
                let operands = op.inputs.iter().zip(sampled);
                let is_apart = operands.clone().enumerate().all(|(slot, (v, &own))| {
                    own || told == Some(slot) || v.is_none_or(|v| !inside.contains(&v))
                });
                let own = operands.filter_map(|(v, &own)| v.filter(|_| own));
                let is_certain = op.results().chain(own.clone()).all(|v| batch.is_certain(v));
                // What is made of the size alone, as copies of one row for all samples, is as cheap in slices.
                let is_made = told.is_some() && own.clone().next().is_none();
                is_apart && is_certain && (is_made || own.clone().any(|v| graph.constant(v).is_none()))
            };
            match sampled.filter(|(safety, sampled)| *safety <= allow && fits(sampled)) {
                Some((safety, sampled)) => {
                    let own = op.inputs.iter().zip(&sampled).filter_map(|(v, own)| v.filter(|_| *own));
                    region.scanned.extend(own.filter(|v| !inside.contains(v) && scanned.insert(*v)));
                    inside.extend(op.results());
                    region.safety = region.safety.max(safety);
                    region.ops.push((id, sampled));
                    region.members.insert(id);
                }
                None => {
                    let reads = || op.operands().chain(op.captures.iter().copied());
                    let is_after = reads().any(|v| after.contains(&v));
                    let reads_inside = reads().any(|v| inside.contains(&v));
                    if is_after || reads_inside {
                        after.extend(op.results());
                    }
                    if reads_inside && !is_after {
                        ends.push(id);
                    }
                }
            }
        }
        let needed = region.needed(batch, graph);
        ends.retain(|end| needed.contains(end));
        let is_outside = |id: OpId| !region.members.contains(&id) && needed.contains(&id);
        for (id, _) in &region.ops {
            let is_result = |&v: &ValueId| {
                graph.uses(v).len() != graph.readers(v) || graph.uses(v).any(|at| is_outside(at.op))
            };
            region.results.extend(graph.op(*id).results().filter(is_result));
        }
        (region, ends)
    }

    /// Operators that the outputs depend on, once this is computed in slices: what only tells the size of a whole is none.
    fn needed(&self, batch: &Batch, graph: &Graph) -> HashSet<OpId> {
        let outputs = graph.outputs().iter().filter_map(|&v| graph.producer(v));
        let (mut found, mut pending) = (HashSet::new(), outputs.collect::<Vec<_>>());
        while let Some(id) = pending.pop() {
            if !found.insert(id) {
                continue;
            }
            let told = batch.told_size(graph, id).filter(|_| self.members.contains(&id));
            pending.extend(read_in_slices(graph.op(id), told).filter_map(|v| graph.producer(v)));
        }
        found
    }

    /// True if slices take no longer than the whole does.
    fn is_quick(&self, graph: &Graph) -> bool {
        let (mut all, mut of_layers, mut weights) = (0, 0, 0);
        for (id, _) in &self.ops {
            let op = graph.op(*id);
            let flops = flops_of(graph, *id).unwrap_or(0);
            all += flops;
            let is_layer = ["Conv", "ConvTranspose", "Gemm", "MatMul"].contains(&op.op_type.as_str());
            let weight = op.input(1).filter(|&v| is_layer && graph.constant(v).is_some());
            if let Some(elements) = weight.and_then(|v| graph.tensor_type(v)?.elements()) {
                of_layers += flops;
                weights += u128::from(elements);
            }
        }
        let count = u128::from(self.count);
        // A weight is used in a multiplication and an addition.
        all >= LEAST_FLOPS * count * self.ops.len() as u128 && of_layers >= 2 * LEAST_USES * count * weights
    }

    /// The region as the body of a Scan.
    fn in_slices(&self, batch: &Batch, rewriter: &mut Rewriter<'_>) -> Result<Patch, Miss> {
        let names = BodyNames::of(self, batch, rewriter);
        let original = rewriter.graph();
        let graph = batch.graph(original);
        let body = self.body(batch, original, &names).map_err(|error| Miss::Refused(error.to_string()))?;
        let mut patch = Patch::new(self.safety);
        let shaped = |patch: &mut Patch, value: Operand, hint: &str, dims: &[u64]| {
            let shape = patch.constant(&format!("{hint}_shape"), shape(dims));
            patch.add_op(NewOp::new("Reshape", [value, shape]).result_named(hint))
        };
        let mut slices = Vec::with_capacity(self.scanned.len());
        for &value in &self.scanned {
            // As many as there are.
            let count = if self.is_open { 0 } else { self.count };
            let dims = [&[count], &self.slice_dims(graph, value)?[..]].concat();
            let hint = format!("{}_slices", graph.value(value).name);
            slices.push(shaped(&mut patch, value.into(), &hint, &dims));
        }
        let scan = NewOp::new("Scan", slices)
            .attribute("body", AttributeValue::Graph(Box::new(body)))
            .attribute("num_scan_inputs", self.scanned.len() as i64)
            .results(self.results.len())
            .named_apart("split_batch");
        let Operand::New { op, .. } = patch.add_op(scan.result_named("slices")) else {
            return Err(Miss::NoMatch);
        };
        for (slot, &value) in self.results.iter().enumerate() {
            let mut result = Operand::New { op, slot };
            if !self.is_one_sample(graph, value) {
                let dims = dims(graph, value).ok_or(Miss::NoMatch)?;
                result = shaped(&mut patch, result, &graph.value(value).name, &dims);
            }
            patch.replace_uses(value, result);
        }
        // What nothing reads is served by others of the region, which would stay.
        let is_unread = |id: &OpId| graph.op(*id).results().all(|v| graph.readers(v) == 0);
        self.ops.iter().map(|(id, _)| *id).filter(is_unread).for_each(|id| patch.erase(id));
        Ok(patch)
    }

    /// The sizes of a slice of a value.
    fn slice_dims(&self, graph: &Graph, value: ValueId) -> Result<Vec<u64>, Miss> {
        let mut dims = dims(graph, value).ok_or(Miss::NoMatch)?;
        dims[0] /= self.count;
        Ok(dims)
    }

    /// With what sizes a slice of a result leaves the body, where those are not its own.
    fn leaving_dims(&self, graph: &Graph, value: ValueId) -> Option<Vec<u64>> {
        if self.is_one_sample(graph, value) {
            return dims(graph, value).map(|dims| dims[1..].to_vec());
        }
        // What is read within the body as well is another value than what leaves it: tract takes the two for one, with an
        // axis more.
        let is_read = graph.uses(value).any(|at| self.members.contains(&at.op));
        is_read.then(|| Some([&[1], &self.slice_dims(graph, value).ok()?[..]].concat())).flatten()
    }

    /// True if a slice of a value is one alone along the outermost axis, so that slices make up the whole as they are.
    fn is_one_sample(&self, graph: &Graph, value: ValueId) -> bool {
        dims(graph, value).is_some_and(|dims| dims[0] == self.count)
    }

    /// Makes an operand of the body a value that is read as a whole. Weights that nothing else reads move into the body, where
    /// ONNX Runtime finds them when it optimizes.
    fn bring(
        &self,
        body: &mut Builder,
        operand: ValueId,
        original: &Graph,
        value: ValueId,
    ) -> Result<(), BuildError> {
        let is_own = !self.scanned.contains(&value)
            && original.uses(value).len() == original.readers(value)
            && original.uses(value).all(|at| self.members.contains(&at.op));
        match original.constant(value).filter(|_| is_own) {
            Some(tensor) => body.initializer(operand, tensor.into_owned()),
            None => body.captured(operand, value, original.value(value).ty.clone()),
        }
    }

    fn body(&self, batch: &Batch, original: &Graph, names: &BodyNames) -> Result<Graph, BuildError> {
        let graph = batch.graph(original);
        let mut body = Builder::new(names.body.clone(), graph.opsets().clone());
        let name_of = |value: ValueId| names.own.get(&value).unwrap_or(&graph.value(value).name);
        let slice_type = |value: ValueId| {
            let ty = graph.tensor_type(value)?;
            let dims = self.slice_dims(graph, value).ok()?;
            Some(Type::Tensor(TensorType::known(ty.dtype, &dims)))
        };
        for &value in &self.scanned {
            let slice = body.value(name_of(value));
            body.input(slice, None)?;
            body.set_type(slice, slice_type(value));
        }
        for (id, sampled) in &self.ops {
            let op = graph.op(*id);
            let sizes = new_shape(batch, graph, *id, self.count);
            let mut inputs = Vec::with_capacity(op.inputs.len());
            for (slot, value) in op.inputs.iter().enumerate() {
                let Some(value) = *value else {
                    inputs.push(None);
                    continue;
                };
                let stated = sizes.as_ref().filter(|(at, _)| *at == slot).zip(names.shapes.get(id));
                if let Some(((_, sizes), name)) = stated {
                    let operand = body.value(name);
                    body.initializer(operand, sizes.clone())?;
                    inputs.push(Some(operand));
                    continue;
                }
                // One value may be read in slices and as a whole.
                let name = if sampled[slot] { name_of(value) } else { &graph.value(value).name };
                let is_known = body.find(name).is_some();
                let operand = body.value(name);
                if !is_known && graph.producer(value).is_none_or(|by| !self.members.contains(&by)) {
                    self.bring(&mut body, operand, original, value)?;
                }
                inputs.push(Some(operand));
            }
            let mut outputs = Vec::with_capacity(op.outputs.len());
            for value in &op.outputs {
                outputs.push(value.map(|value| {
                    let result = body.value(name_of(value));
                    body.set_type(result, slice_type(value));
                    result
                }));
            }
            let mut copy = op.clone();
            (copy.inputs, copy.outputs) = (inputs, outputs);
            body.op(copy)?;
        }
        for &value in &self.results {
            let slice = body.value(name_of(value));
            let mut result = slice;
            if let Some((shape_name, name)) = names.results.get(&value) {
                let dims = self.leaving_dims(graph, value).unwrap_or_default();
                let target = body.value(shape_name);
                body.initializer(target, shape(&dims))?;
                result = body.value(name);
                let ty = graph.tensor_type(value).map(|ty| TensorType::known(ty.dtype, &dims));
                body.set_type(result, ty.map(Type::Tensor));
                body.op(Op::new("Reshape", vec![Some(slice), Some(target)], vec![Some(result)]))?;
            }
            body.output(result);
        }
        body.finish()
    }
}

/// Names that no value has, for what is in the body and was not there before.
struct BodyNames {
    body: String,
    /// Slices of what exists as a whole, too.
    own: HashMap<ValueId, String>,
    /// Targets of operators that say how large their result is.
    shapes: HashMap<OpId, String>,
    /// Of results that leave with other sizes: that of the target, and their own.
    results: HashMap<ValueId, (String, String)>,
}

impl BodyNames {
    fn of(region: &Region, batch: &Batch, rewriter: &mut Rewriter<'_>) -> BodyNames {
        let graph = batch.graph(rewriter.graph());
        let name = |value: ValueId| graph.value(value).name.clone();
        let whole = region.scanned.iter().chain(&region.results);
        let own: Vec<(ValueId, String)> = whole.map(|&v| (v, format!("{}_slice", name(v)))).collect();
        let ops = region.ops.iter().map(|(id, _)| *id);
        let targets = ops.filter(|&id| new_shape(batch, graph, id, region.count).is_some());
        let result = |id: OpId| graph.op(id).output(0).map_or(String::new(), name);
        let shapes: Vec<(OpId, String)> = targets.map(|id| (id, format!("{}_sizes", result(id)))).collect();
        let leaving = region.results.iter().filter(|&&v| region.leaving_dims(graph, v).is_some());
        let results: Vec<(ValueId, String)> = leaving.map(|&v| (v, name(v))).collect();
        let body = format!("{}_slice", graph.name());
        let mut fresh = |hint: String| rewriter.fresh_name(&hint);
        BodyNames {
            body,
            own: own.into_iter().map(|(value, hint)| (value, fresh(hint))).collect(),
            shapes: shapes.into_iter().map(|(id, hint)| (id, fresh(hint))).collect(),
            results: (results.into_iter())
                .map(|(value, name)| (value, (fresh(format!("{name}_sizes")), fresh(format!("{name}_out")))))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::{parse_model_filled, print_model};
    use dmopt_ir::{DType, Graph, Model, Sizes, Storage, TensorType};

    use crate::testing::{optimize, refusals};
    use crate::{Options, Outcome, Planning, Safety, Target, run};

    const PASS: &str = "split-batch";

    /// The result for a caller who asks for slices, or does not.
    fn split(text: &str, count: Option<u64>, options: Options<'_>) -> (Model, Outcome) {
        let mut ones = |_: &str, ty: &TensorType| match ty.elements() {
            Some(count) if ty.dtype == DType::F32 => Storage::Float(vec![1.0; count as usize]),
            _ => Storage::Absent,
        };
        let model = parse_model_filled(text, &mut ones).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let planning = Planning { split_batch: count, ..options.planning.clone() };
        optimize(PASS, &print_model(&model), Options { planning, ..options })
    }

    fn in_slices(text: &str, count: u64) -> Model {
        split(text, Some(count), Options::default()).0
    }

    /// Types of the operators of the main graph, and those of the bodies in it.
    fn operators(model: &Model) -> [String; 2] {
        let types = |graph: &Graph| {
            let ops = graph.order().unwrap().into_iter();
            ops.map(|id| graph.op(id).op_type.clone()).collect::<Vec<_>>().join(" ")
        };
        let bodies = model.graph.ops().flat_map(|id| model.graph.op(id).bodies());
        [types(&model.graph), bodies.map(types).collect()]
    }

    fn operators_of(text: &str, count: u64) -> [String; 2] {
        operators(&in_slices(text, count))
    }

    /// Two convolutions of this many samples with so many pixels in a row.
    fn network(samples: u64, pixels: u64) -> String {
        format!(
            "f (float[{samples},8,{pixels},{pixels}] x) => (float[{samples},8,{pixels},{pixels}] y)
             <float[16,8,3,3] w, float[8,16,3,3] v> {{
                h = Conv<pads = [1, 1, 1, 1]>(x, w)  a = Relu(h)  y = Conv<pads = [1, 1, 1, 1]>(a, v) }}"
        )
    }

    /// How many slices are made where nobody asks for a number.
    fn count(text: &str, options: Options<'_>) -> Option<u64> {
        let (model, _) = split(text, None, options);
        let graph = &model.graph;
        let scan = graph.ops().find(|&id| graph.op(id).is("Scan"))?;
        graph.tensor_type(graph.op(scan).input(0)?)?.dims()?.first().copied()
    }

    #[test]
    fn slices_of_one_sample_make_up_outputs_as_they_are() {
        let text = "f (float[6,2] x) => (float[6,2] y) { y = Relu(x) }";
        assert_eq!(operators_of(text, 6), ["Reshape Scan", "Relu Reshape"]);
        assert_eq!(operators_of(text, 3), ["Reshape Scan Reshape", "Relu"]);
    }

    #[test]
    fn there_are_as_many_slices_as_have_work_enough() {
        assert_eq!(count(&network(8, 128), Options::default()), Some(8));
        assert_eq!(count(&network(8, 64), Options::default()), Some(2));
        let (_, outcome) = split(&network(8, 16), None, Options::default());
        assert_eq!(
            refusals(&outcome),
            ["graph 'f': with slices, operators would have too little to do at a time"]
        );
    }

    #[test]
    fn weights_are_used_often_in_every_slice() {
        let text = "f (float[1024,1024] x) => (float[1024,64] y) <float[1024,1024] w, float[1024,64] v> {
            h = MatMul(x, w)  a = Relu(h)  b = Neg(a)  c = Exp(b)  y = MatMul(c, v) }";
        assert_eq!(count(text, Options::default()), Some(8));
    }

    #[test]
    fn a_budget_is_met_with_as_few_slices_as_it_takes() {
        let within =
            |bytes: u64| count(&network(8, 64), Options { budget_bytes: Some(bytes), ..Options::default() });
        // The hidden tensor of all samples and a result.
        let whole = 8 * (16 + 8) * 64 * 64 * 4;
        assert_eq!(within(2 * whole), None);
        assert_eq!(within(whole - 1), Some(2));
        // More of them than is quick.
        assert_eq!(within(1), Some(8));
    }

    #[test]
    fn cuda_has_slices_only_for_who_asks() {
        let planning = Planning { target: Target::OrtCuda, ..Planning::default() };
        assert_eq!(
            count(&network(8, 128), Options { planning: planning.clone(), ..Options::default() }),
            None
        );
        let (model, _) = split(&network(8, 128), Some(8), Options { planning, ..Options::default() });
        assert_eq!(operators(&model), ["Reshape Scan", "Conv Relu Conv Reshape"]);
    }

    #[test]
    fn who_asks_for_a_number_that_does_not_divide_the_batch_is_told() {
        let (_, outcome) = split(&network(8, 64), Some(3), Options::default());
        assert_eq!(
            refusals(&outcome),
            ["graph 'f': there is no batch that can be computed in 3 slices of its samples"]
        );
        let (_, outcome) = split(&network(8, 64), Some(1), Options::default());
        assert_eq!((outcome.safety, refusals(&outcome)), (None, vec![]));
    }

    #[test]
    fn what_mixes_samples_and_what_follows_stay_whole() {
        let text = "f (float[4,3] x, float[3] z) => (float[4,3] y) <int64[1] zero = {0}> {
            a = Relu(x)  m = ReduceMean(a, zero)  s = Sub(a, m)  t = Exp(z)  y = Add(s, t) }";
        assert_eq!(operators_of(text, 2), ["Reshape Scan Reshape ReduceMean Sub Exp Add", "Relu"]);
    }

    #[test]
    fn a_mask_that_something_reads_as_a_whole_is_computed_before() {
        let text = "f (float[4,64,64] x, int32[4,64] m) => (float[4,64,64] y)
            <int64[1] last = {-1}, int64[1] one = {1}, float[64,64] w> {
                b = Cast<to = 1>(m)  r = CumSum(b, zero)  u = Unsqueeze(r, one)
                a = MatMul(x, w)  t = Tanh(a)  y = Mul(t, u) }";
        let text = text.replace("int64[1] last = {-1}", "int64 zero = {0}");
        assert_eq!(
            operators_of(&text, 4),
            ["Cast Reshape CumSum Reshape Scan", "Unsqueeze MatMul Tanh Mul Reshape"]
        );
    }

    #[test]
    fn what_is_computed_before_is_read_by_slices_or_as_a_whole() {
        let text = "f (float[4,3] x, float[3,4] u, float[3] z) => (float[4,3] y) {
            t = Exp(z)  v = Transpose(u)  a = Add(x, v)  y = Add(a, t) }";
        assert_eq!(operators_of(text, 2), ["Exp Reshape Transpose Reshape Scan Reshape", "Add Add"]);
    }

    #[test]
    fn one_value_may_be_read_in_slices_and_as_a_whole() {
        let text = "f (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }";
        let model = in_slices(text, 2);
        let graph = &model.graph;
        let scan = graph.ops().find(|&id| graph.op(id).is("Scan")).unwrap();
        assert_eq!(graph.op(scan).captures, graph.inputs());
        let body = graph.op(scan).bodies().next().unwrap();
        let product = body.op(body.ops().next().unwrap());
        let names = product.operands().map(|v| body.value(v).name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["x_slice", "x"]);
    }

    #[test]
    fn sizes_that_the_model_states_are_those_of_a_slice() {
        let text = "f (float[4,6] x) => (float[8,3,1,6] y) <int64[3] s = {8, 1, 3}, int64[4] e = {8, 3, 1, 3}, int64[4] r = {8, 3, 1, 6}> {
            a = Reshape(x, s)  t = Transpose<perm = [0, 2, 1]>(a)  u = Unsqueeze(t, axes)
            b = Expand(u, e)  y = Resize(b, , , r) }";
        let text = text.replace("int64[3] s", "int64[1] axes = {3}, int64[3] s");
        let model = in_slices(&text, 4);
        let graph = &model.graph;
        let body = graph.ops().flat_map(|id| graph.op(id).bodies()).next().unwrap();
        let sizes = |op_type: &str, slot: usize| {
            let id = body.ops().find(|&id| body.op(id).is(op_type)).unwrap();
            body.constant(body.op(id).input(slot).unwrap()).unwrap().to_i64().unwrap()
        };
        assert_eq!(sizes("Reshape", 1), [2, 1, 3]);
        assert_eq!(sizes("Expand", 1), [2, 3, 1, 3]);
        assert_eq!(sizes("Resize", 3), [2, 3, 1, 6]);
    }

    #[test]
    fn weights_move_into_the_body_unless_something_else_reads_them() {
        let text = "f (float[4,3] x) => (float[4,3] y, float[1,3] z) <float[3,3] w, float[3,3] v, int64[1] zero = {0}> {
            a = MatMul(x, w)  y = MatMul(a, v)  m = ReduceMean(y, zero)  z = MatMul(m, v) }";
        let model = in_slices(text, 2);
        let graph = &model.graph;
        let scan = graph.ops().find(|&id| graph.op(id).is("Scan")).unwrap();
        let captures: Vec<&str> =
            graph.op(scan).captures.iter().map(|&v| graph.value(v).name.as_str()).collect();
        assert_eq!(captures, ["v"]);
        assert!(graph.values().all(|v| graph.value(v).name != "w"));
    }

    #[test]
    fn products_of_fewer_rows_are_not_exact() {
        let text = "f (float[4,3] x, float[4,5,3] s) => (float[4,3] y, float[4,5,5] z) <float[3,3] w> {
            a = Relu(x)  y = MatMul(a, w)  t = Transpose<perm = [0, 2, 1]>(s)  z = MatMul(s, t) }";
        let exact = Options { allow: Some(Safety::Exact), ..Options::default() };
        let (model, outcome) = split(text, Some(2), exact);
        assert_eq!(outcome.safety, Some(Safety::Exact));
        assert_eq!(operators(&model)[1], "Relu Transpose MatMul");
        let (model, outcome) = split(text, Some(2), Options::default());
        assert_eq!(outcome.safety, Some(Safety::Reassociates));
        assert_eq!(operators(&model)[1], "Relu MatMul Transpose MatMul");
    }

    #[test]
    fn operators_along_the_batch_are_not_cut() {
        let is_split = |call: &str, ty: &str| {
            let text = format!(
                "f (float[4,4] x) => ({ty} y) <int64[4] i = {{1, 1, 0, 3}}, int64 zero = {{0}}, int64[1] first = {{0}}> {{ y = {call} }}"
            );
            operators_of(&text, 2)[0].contains("Scan")
        };
        assert!(is_split("Softmax<axis = 1>(x)", "float[4,4]"));
        for (call, ty) in [
            ("Softmax<axis = 0>(x)", "float[4,4]"),
            ("Transpose(x)", "float[4,4]"),
            ("Concat<axis = 0>(x, x)", "float[8,4]"),
            ("ReduceSum<keepdims = 0>(x)", "float"),
            ("ReduceMean(x, first)", "float[1,4]"),
            ("ArgMax(x)", "int64[1,4]"),
            ("Flatten<axis = 0>(x)", "float[1,16]"),
            ("Gather<axis = 0>(x, i)", "float[4,4]"),
            ("CumSum(x, zero)", "float[4,4]"),
        ] {
            assert!(!is_split(call, ty), "{call}");
        }
    }

    #[test]
    fn what_reads_other_samples_in_some_cases_alone_is_not_cut_there() {
        let is_split = |text: &str| operators_of(text, 2)[0].contains("Scan");
        let gather = |rows: u64| {
            is_split(&format!(
                "f (float[4,4] x, int64[{rows},4] i) => (float[{rows},4] y) {{ y = GatherElements<axis = 1>(x, i) }}"
            ))
        };
        assert_eq!([gather(4), gather(2)], [true, false]);
        let resize = |attributes: &str, rows: u64| {
            is_split(&format!(
                "f (float[4,4] x) => (float[{rows},8] y) <int64[2] s = {{{rows}, 8}}> {{
                    y = Resize<mode = \"linear\"{attributes}>(x, , , s) }}"
            ))
        };
        assert_eq!([resize("", 4), resize("", 8)], [true, false]);
        assert!(!resize(", keep_aspect_ratio_policy = \"not_larger\"", 4));
        let normalization = |scale: &str| {
            is_split(&format!(
                "f (float[4,2,8] x, float[{scale}] s) => (float[4,2,8] y) {{ y = LayerNormalization(x, s) }}"
            ))
        };
        assert_eq!([normalization("8"), normalization("1,2,8"), normalization("4,2,8")], [true, true, false]);
    }

    #[test]
    fn what_is_rounded_by_its_place_in_a_batch_is_not_exact() {
        let safety = |call: &str, shape: &str| {
            let text = format!(
                "f (float[4,4,4,4] x) => (float[{shape}] y) <int64[1] one = {{1}}, float[4] s = {{1, 2, 3, 4}}> {{ y = {call} }}"
            );
            split(&text, Some(4), Options::default()).1.safety
        };
        assert_eq!(safety("Mul(x, s)", "4,4,4,4"), Some(Safety::Exact));
        assert_eq!(safety("InstanceNormalization(x, s, s)", "4,4,4,4"), Some(Safety::Exact));
        assert_eq!(safety("Selu(x)", "4,4,4,4"), Some(Safety::Reassociates));
        assert_eq!(safety("ReduceMean(x, one)", "4,1,4,4"), Some(Safety::Reassociates));
    }

    #[test]
    fn what_nothing_reads_does_not_stay_outside() {
        let text = "f (float[4,2] x) => (float[4,2] y) { a = Relu(x)  unread = Neg(a)  y = Exp(a) }";
        assert_eq!(operators_of(text, 4)[0], "Reshape Scan");
    }

    #[test]
    fn a_constant_that_is_read_in_slices_and_as_a_whole_stays_outside() {
        let text = "f (float[2,2] x) => (float[2,2] y) <float[2,2] c = {1, 2, 3, 4}> {
            p = MatMul(x, c)  y = Add(p, c) }";
        let model = in_slices(text, 2);
        let graph = &model.graph;
        let scan = graph.op(graph.ops().find(|&id| graph.op(id).is("Scan")).unwrap());
        let names = |values: &[dmopt_ir::ValueId]| {
            values.iter().map(|&v| graph.value(v).name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&scan.captures), ["c"]);
        assert_eq!(scan.inputs.len(), 2);
    }

    #[test]
    fn what_pays_in_the_body_is_found_there() {
        let text = "f (float[4,4,32,32] x) => (float[4,4,32,32] y) <float[32,4,1,1] w, float[4,32,1,1] v> {
            h = Conv(x, w)  a = Relu(h)  y = Conv(a, v) }";
        let mut model =
            parse_model_filled(text, &mut |_, ty| Storage::Float(vec![1.0; ty.elements().unwrap() as usize]))
                .unwrap();
        let planning = Planning { split_batch: Some(4), ..Planning::default() };
        let outcome = run(&mut model, &Options { planning, verify: true, ..Options::default() }).unwrap();
        let [_, body] = operators(&model);
        assert!(body.matches("Conv").count() > 2, "{body}");
        assert!(outcome.notes.iter().any(|note| note.contains("in 4 slices of its samples")));
    }

    #[test]
    fn a_batch_of_open_size_is_computed_one_sample_at_a_time() {
        let open = |pixels: u64, last: &str| {
            format!(
                "f (float[n,8,{pixels},{pixels}] x) => (float[n,8,a,b] y) <float[16,8,3,3] w, float[8,16,3,3] v> {{
                    h = Conv<pads = [1, 1, 1, 1]>(x, w)  r = Relu(h)  c = Conv<pads = [1, 1, 1, 1]>(r, v)
                    y = {last}(c) }}"
            )
        };
        let (model, outcome) = split(&open(128, "GlobalAveragePool"), None, Options::default());
        assert_eq!(operators(&model), ["Reshape Scan", "Conv Relu Conv GlobalAveragePool Reshape"]);
        let text = print_model(&model);
        assert!(
            text.contains("float[1,8,128,128] x_slice") && text.contains("{0, 1, 8, 128, 128}"),
            "{text}"
        );
        assert!(outcome.notes.iter().any(|note| note.contains("one sample at a time")));
        // A result of the batch beside that of the sample.
        let large = open(128, "Neg");
        let (_, outcome) = split(&large, None, Options::default());
        assert_eq!(
            refusals(&outcome),
            ["graph 'f': a single sample would need more, and how many there are is not said"]
        );
        let sizes = Sizes { dims: [("n".to_string(), 4)].into(), ..Sizes::default() };
        let planning = Planning { sizes, ..Planning::default() };
        let (model, _) = split(&large, None, Options { planning, ..Options::default() });
        assert_eq!(operators(&model)[0], "Reshape Scan");
        // Too little to do for one.
        let (model, _) = split(&open(16, "Neg"), None, Options::default());
        assert_eq!(operators(&model)[0], "Conv Relu Conv Neg");
        let (model, _) = split(&open(16, "Neg"), Some(0), Options::default());
        assert_eq!(operators(&model)[0], "Reshape Scan");
        let (_, outcome) = split(&large, Some(2), Options::default());
        assert_eq!(
            refusals(&outcome),
            ["graph 'f': a batch of open size is computed one sample at a time, or as a whole"]
        );
    }

    #[test]
    fn what_is_as_large_as_an_open_batch_in_another_way_stays_outside() {
        // Every sample with every other; one behind the other.
        let text = "f (float[n,4] x) => (float[n,n] y, float[k] z) <int64[1] all = {-1}> {
            a = Relu(x)  t = Transpose(a)  y = MatMul(a, t)  b = Neg(a)  z = Reshape(b, all) }";
        assert_eq!(
            operators_of(text, 0),
            ["Reshape Scan Transpose MatMul Reshape", "Relu Neg Reshape Reshape"]
        );
    }

    #[test]
    fn what_slices_read_whole_may_be_of_open_size() {
        let text = "f (float[n,8] x, float[m,8] keys) => (float[n,8] y) {
            t = Transpose(keys)  p = MatMul(x, t)  s = Softmax(p)  y = MatMul(s, keys) }";
        let model = in_slices(text, 0);
        assert_eq!(operators(&model), ["Transpose MatMul Softmax MatMul", ""]);
    }

    #[test]
    fn what_only_tells_the_size_of_a_whole_is_no_end() {
        let text = "f (float[n,8,16,16] x) => (float[n,8,32,32] y) <int64[2] size = {32, 32}> {
            a = Relu(x)  s = Shape<end = 2>(a)  all = Concat<axis = 0>(s, size)
            y = Resize<mode = \"linear\">(a, , , all) }";
        assert_eq!(operators_of(text, 0), ["Reshape Scan", "Relu Resize Reshape"]);
    }

    #[test]
    fn copies_of_one_row_for_all_samples_are_made_in_slices() {
        let text = "f (float[n,3,8] x) => (float[n,4,8] y)
        <float[1,1,8] row, int64[1] zero = {0}, int64[2] rest = {1, 8}> {
            a = Relu(x)  s = Shape(a)  n = Gather(s, zero)  size = Concat<axis = 0>(n, rest)
            rows = Expand(row, size)  y = Concat<axis = 1>(rows, a) }";
        assert_eq!(operators_of(text, 0), ["Reshape Scan", "Relu Expand Concat Reshape"]);
    }

    #[test]
    fn what_reads_no_samples_has_none_to_be_cut_into() {
        let text = "f (float[4,2] x) => (float[4,8] y, float z) <float[1,8] row, int64[2] size = {4, 8}, int64[2] all = {0, 1}> {
            y = Expand(row, size)  z = ReduceSum<keepdims = 0>(x, all) }";
        assert_eq!(operators_of(text, 4)[1], "");
    }

    #[test]
    fn what_stays_outside_for_its_class_is_not_read_before_what_it_is_told() {
        let text = "f (float[n,2,8] x, float[n,1,4] z) => (float[n,2,8] y) <int64[1] zero = {0}, int64[2] rest = {2, 8}> {
            a = Relu(x)  s = Shape(a)  n = Gather(s, zero)  size = Concat<axis = 0>(n, rest)
            large = Resize<mode = \"linear\">(z, , , size)  y = Add(a, large) }";
        let exact = Options { allow: Some(Safety::Exact), ..Options::default() };
        let (model, _) = split(text, Some(0), exact);
        assert_eq!(operators(&model), ["Reshape Scan Shape Gather Concat Resize Add", "Relu Reshape"]);
    }

    #[test]
    fn what_a_file_declares_of_sizes_proves_nothing() {
        let text = "f (float[n,8] x, int64[2] s) => (float[n,8] y) { a = Relu(x)  y = Reshape(a, s) }";
        assert_eq!(operators_of(text, 0), ["Reshape Scan Reshape", "Relu Reshape"]);
    }

    #[test]
    fn one_sample_at_a_time_is_asked_for_without_a_number() {
        assert_eq!(operators_of(&network(4, 16), 0), ["Reshape Scan", "Conv Relu Conv Reshape"]);
    }

    #[test]
    fn older_scans_are_left_alone() {
        let old = format!("<ir_version: 4, opset_import: [\"\" : 8]> {}", network(8, 128));
        assert_eq!(count(&old, Options::default()), None);
    }
}
