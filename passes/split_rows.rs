//! Compute what lies between two products of matrices in slices of its rows.
//!
//! A row of a product is computed of that row of the first factor alone, and so is what elementwise operators and a Softmax
//! along the row make of it. With `R_k` the rows of slice k,
//! ```text
//! MatMul(f(MatMul(A, B)), V)  =  Concat_k(MatMul(f(MatMul(A[R_k], B)), V))
//! ```
//! so that no more than one slice of what lies between has to exist at a time. In attention that is the largest tensor of
//! all, a number for every two positions and every head. Instead of rows, the slices may be those of an axis of the stack of
//! matrices, such as the heads, where that makes more of them: then `B` and `V` are cut, too, unless they serve all of them.
//!
//! Multiplications stay as many as they were. There are about 2, 4, 8, 16 or 32 slices, and as few as bring the predicted
//! peak of the whole graph down. Slices of rows have 128 or more, or 16 where all second factors are constants.
//!
//! Class: a matrix with fewer rows may be multiplied in another order of additions; no sum has other summands.
//! Left alone: axes of a size that the model leaves open; what something else reads; products that are put together with
//! others along such an axis, as slices are.
//!
//! ```onnx
//! f (float[1,256,8] q, float[1,8,64] k, float[1,64,8] v) => (float[1,256,8] y) {
//!   s = MatMul(q, k)
//!   p = Softmax<axis = -1>(s)
//!   y = MatMul(p, v)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,256,8] q, float[1,8,64] k, float[1,64,8] v) => (float[1,256,8] y)
//! <
//!   int64[1] y_at_0 = {0},
//!   int64[1] y_at_128 = {128},
//!   int64[1] y_at_1 = {1},
//!   int64[1] y_at_9223372036854775807 = {9223372036854775807}
//! >
//! {
//!   q_0 = Slice(q, y_at_0, y_at_128, y_at_1)
//!   s_0 = MatMul(q_0, k)
//!   p_0 = Softmax<axis = -1>(s_0)
//!   y_0 = MatMul(p_0, v)
//!   q_1 = Slice(q, y_at_128, y_at_9223372036854775807, y_at_1)
//!   s_1 = MatMul(q_1, k)
//!   p_1 = Softmax<axis = -1>(s_1)
//!   y_1 = MatMul(p_1, v)
//!   y = Concat<axis = 1>(y_0, y_1)
//! }
//! ```
//!
//! refused: rows are computed of other rows
//! ```onnx
//! f (float[1,64,8] q, float[1,8,64] k, float[1,64,8] v) => (float[1,64,8] y) {
//!   s = MatMul(q, k)
//!   t = Transpose<perm = [0, 2, 1]>(s)
//!   y = MatMul(t, v)
//! }
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use dmopt_ir::{
    Dim, Graph, NewOp, OpId, Operand, Patch, Position, Rewriter, Safety, Slot, Tensor, Type, ValueId,
};

use crate::channels::even_parts;
use crate::linear::axis as axis_of;
use crate::slices::{Role, is_product, roles};
use crate::{Context, Miss, Offer, Pass, Planning, Stage, order_of};

/// See the header of this file.
pub struct SplitRows;

/// Slices at each level, or fewer where they would be smaller than allowed.
const COUNTS: [u64; 5] = [2, 4, 8, 16, 32];

/// Products of fewer rows than this are slow: before it multiplies, ONNX Runtime packs the second factor, which takes as
/// long as some rows.
const LEAST_ROWS: u64 = 128;

/// The same where second factors are constants, which are packed once.
const LEAST_ROWS_PACKED: u64 = 16;

/// Regions of more operators than this are left alone.
const MAX_OPS: usize = 64;

impl Pass for SplitRows {
    fn name(&self) -> &'static str {
        "split-rows"
    }

    fn source(&self) -> &'static str {
        include_str!("split_rows.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Reassociates
    }

    fn stage(&self) -> Stage {
        Stage::Offering
    }

    fn run(&self, _: &mut Rewriter<'_>, _: &mut Context<'_>) {}

    fn offers(&self, graph: &Graph, _: &Planning) -> Vec<Offer> {
        let offer = |op: OpId| {
            let region = Region::of(graph, op)?;
            let levels = region.levels();
            let relieves = region.inner.into_keys().collect();
            (levels > 0).then_some(Offer { start: op, op, relieves, levels, refused: None })
        };
        order_of(graph).into_iter().filter_map(offer).collect()
    }

    fn take(&self, graph: &Graph, _: &Planning, offer: &Offer, level: usize) -> Result<Patch, Miss> {
        match Region::of(graph, offer.op) {
            Some(region) if level < region.levels() => region.in_slices(&region.at_level(level)),
            _ => Err(Miss::NoMatch),
        }
    }
}

/// What lies between a product and those before it.
struct Region<'g> {
    graph: &'g Graph,
    /// The product that reads it.
    sink: OpId,
    /// The axis of the sink's result that the slices are of.
    axis: usize,
    size: u64,
    /// How much of that a slice has at least.
    least: u64,
    /// What exists slice by slice, with the axis of the slices.
    inner: BTreeMap<ValueId, usize>,
}

impl<'g> Region<'g> {
    /// The region that this product reads, along the axis that makes the most slices; of several, rows before others.
    fn of(graph: &'g Graph, sink: OpId) -> Option<Region<'g>> {
        // Slice has operands since then.
        if !is_product(graph, sink) || graph.opset("") < 10 {
            return None;
        }
        let rank = graph.tensor_type(graph.op(sink).output(0)?)?.rank()?;
        let rows = rank.checked_sub(2)?;
        let found = std::iter::once(rows).chain(0..rows).filter_map(|axis| Region::along(graph, sink, axis));
        let best = found.reduce(|best, other| if other.most() > best.most() { other } else { best });
        best.filter(|region| !region.is_slice())
    }

    /// The region that this product reads, in slices along an axis of its result.
    fn along(graph: &'g Graph, sink: OpId, axis: usize) -> Option<Region<'g>> {
        let shape = graph.tensor_type(graph.op(sink).output(0)?)?.shape.as_deref()?;
        let size = shape.get(axis)?.known().filter(|&size| size > 1)?;
        let mut whole: HashSet<ValueId> = HashSet::new();
        loop {
            let mut inner: BTreeMap<ValueId, usize> = BTreeMap::new();
            let (mut ops, mut pending) = (HashSet::from([sink]), vec![(sink, roles(graph, sink, axis)?)]);
            let mut reads = Vec::new();
            while let Some((id, roles_of)) = pending.pop() {
                let operands = graph.op(id).inputs.iter().zip(roles_of);
                let own: Vec<(ValueId, Role)> =
                    operands.filter_map(|(v, role)| Some(((*v)?, role))).collect();
                reads.extend_from_slice(&own);
                if id != sink && is_product(graph, id) {
                    continue;
                }
                for (value, role) in own {
                    let Role::Slice(axis) = role else { continue };
                    let is_known = inner.contains_key(&value) || whole.contains(&value);
                    let by = graph.producer(value).filter(|_| !is_known);
                    let Some((by, roles)) = by.and_then(|by| Some((by, roles(graph, by, axis)?))) else {
                        continue;
                    };
                    inner.insert(value, axis);
                    ops.insert(by);
                    pending.push((by, roles));
                    if ops.len() > MAX_OPS {
                        return None;
                    }
                }
            }
            // What is read elsewhere, as a whole, or in slices of another axis has to exist as a whole.
            let is_torn =
                |(v, role): &(ValueId, Role)| inner.get(v).is_some_and(|&axis| *role != Role::Slice(axis));
            let mut torn: Vec<ValueId> =
                reads.iter().filter(|read| is_torn(read)).map(|read| read.0).collect();
            let is_read_within = |v: ValueId| {
                let mut uses = graph.uses(v);
                uses.len() == graph.readers(v)
                    && uses.all(|at| ops.contains(&at.op) && matches!(at.slot, Slot::Operand(_)))
            };
            torn.extend(inner.keys().copied().filter(|&v| !is_read_within(v)));
            if torn.is_empty() {
                let products: Vec<OpId> = ops.into_iter().filter(|&id| is_product(graph, id)).collect();
                let is_packed =
                    |&id: &OpId| graph.op(id).input(1).is_some_and(|v| graph.constant(v).is_some());
                let least = if axis + 2 < shape.len() {
                    1
                } else if products.iter().all(is_packed) {
                    LEAST_ROWS_PACKED
                } else {
                    LEAST_ROWS
                };
                // The sink is one of them.
                return (products.len() > 1).then_some(Region { graph, sink, axis, size, least, inner });
            }
            whole.extend(torn);
        }
    }

    /// True for what looks like a slice: it is put together with other products, one after the other.
    fn is_slice(&self) -> bool {
        let graph = self.graph;
        let result = graph.op(self.sink).output(0);
        let columns = result.and_then(|v| graph.tensor_type(v)?.rank()).unwrap_or(0).saturating_sub(1);
        let is_product_too = |v: ValueId| graph.producer(v).is_some_and(|by| is_product(graph, by));
        let mut readers = result.into_iter().flat_map(|v| graph.uses(v)).map(|at| graph.op(at.op));
        readers.any(|op| {
            let along = op.int("axis").and_then(|axis| axis_of(axis, columns + 1));
            op.is("Concat") && along.is_some_and(|axis| axis < columns) && op.operands().all(is_product_too)
        })
    }

    /// How many slices there can be.
    fn most(&self) -> u64 {
        (self.size / self.least).min(COUNTS[COUNTS.len() - 1])
    }

    /// As many as make more slices than the one before.
    fn levels(&self) -> usize {
        match self.most() {
            0 | 1 => 0,
            most => COUNTS.partition_point(|&count| count < most) + 1,
        }
    }

    /// The slices at a level.
    fn at_level(&self, level: usize) -> Vec<Range<u64>> {
        even_parts(self.size, COUNTS[level].min(self.most())).collect()
    }

    fn in_slices(&self, slices: &[Range<u64>]) -> Result<Patch, Miss> {
        let graph = self.graph;
        let result = graph.op(self.sink).output(0).ok_or(Miss::NoMatch)?;
        let mut patch = Patch::new(Safety::Reassociates);
        let (mut parts, mut numbers) = (Vec::with_capacity(slices.len()), HashMap::new());
        for (number, range) in slices.iter().enumerate() {
            let (patch, numbers) = (&mut patch, &mut numbers);
            let mut part = Part { region: self, range, number, patch, numbers, done: HashMap::new() };
            parts.push(part.compute(self.sink, result, self.axis)?);
        }
        let ty = graph.value(result).ty.clone();
        let concat = NewOp::new("Concat", parts).attribute("axis", self.axis as i64).typed(ty);
        let whole = patch.add_op(concat.named_after(graph, self.sink, "slices"));
        patch.replace_uses(result, whole);
        Ok(patch)
    }
}

/// One slice of a region, on its way into a patch.
struct Part<'a, 'g> {
    region: &'a Region<'g>,
    range: &'a Range<u64>,
    number: usize,
    patch: &'a mut Patch,
    /// Constants that say where slices begin and end, and along which axis.
    numbers: &'a mut HashMap<i64, Operand>,
    /// What is there already, along an axis.
    done: HashMap<(ValueId, usize), Operand>,
}

impl Part<'_, '_> {
    /// This slice of a value.
    fn slice(&mut self, value: ValueId, axis: usize) -> Result<Operand, Miss> {
        if let Some(&done) = self.done.get(&(value, axis)) {
            return Ok(done);
        }
        let graph = self.region.graph;
        let own = match (self.region.inner.get(&value), graph.producer(value)) {
            (Some(_), Some(by)) => self.compute(by, value, axis)?,
            _ => self.cut(value, axis),
        };
        self.done.insert((value, axis), own);
        Ok(own)
    }

    /// Cuts this slice out of a value that exists as a whole.
    fn cut(&mut self, value: ValueId, axis: usize) -> Operand {
        let graph = self.region.graph;
        let result = graph.op(self.region.sink).output(0);
        let name = result.map_or("", |result| graph.value(result).name.as_str());
        let mut constant = |number: i64| {
            let made = || self.patch.constant(&format!("{name}_at_{number}"), Tensor::i64s(&[number]));
            *self.numbers.entry(number).or_insert_with(made)
        };
        // The last slice is all that is left, even where the file is wrong about how much that is.
        let to = if self.range.end == self.region.size { i64::MAX } else { self.range.end as i64 };
        let [from, to, axes] = [self.range.start as i64, to, axis as i64].map(&mut constant);
        self.emit(NewOp::new("Slice", [value.into(), from, to, axes]), value, axis)
    }

    /// Computes this slice of the result of an operator.
    fn compute(&mut self, id: OpId, value: ValueId, axis: usize) -> Result<Operand, Miss> {
        let graph = self.region.graph;
        let roles = roles(graph, id, axis).ok_or(Miss::NoMatch)?;
        let mut operands = Vec::with_capacity(roles.len());
        for (operand, role) in graph.op(id).inputs.iter().zip(roles) {
            operands.push(match (*operand, role) {
                (Some(operand), Role::Slice(axis)) => Some(self.slice(operand, axis)?),
                (operand, _) => operand.map(Operand::Value),
            });
        }
        let new = NewOp::like(graph, id, operands).named_after(graph, id, &self.number.to_string());
        Ok(self.emit(new, value, axis))
    }

    /// Adds an operator that gives this slice of a value.
    fn emit(&mut self, new: NewOp, value: ValueId, axis: usize) -> Operand {
        let graph = self.region.graph;
        let mut ty = graph.tensor_type(value).cloned();
        if let Some(dim) = ty.as_mut().and_then(|ty| ty.shape.as_mut()?.get_mut(axis)) {
            *dim = Dim::Known(self.range.end - self.range.start);
        }
        let name = format!("{}_{}", graph.value(value).name, self.number);
        let new = new.typed(ty.map(Type::Tensor)).at(Position::At(self.region.sink));
        self.patch.add_op(new.result_named(&name))
    }
}

#[cfg(test)]
mod tests {
    use dmopt_ir::infer;
    use dmopt_ir::text::{parse_model, print_model};

    use super::SplitRows;
    use crate::testing::{take, takes};
    use crate::{Miss, Pass, Planning};

    /// How many levels each offer for a graph has.
    fn levels(text: &str) -> Vec<usize> {
        let mut model = parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        infer::infer_graph(&mut model.graph);
        SplitRows.offers(&model.graph, &Planning::default()).iter().map(|offer| offer.levels).collect()
    }

    #[test]
    fn attention_is_computed_in_slices_of_its_queries() {
        takes(
            &SplitRows,
            "f (float[2,256,8] q, float[2,8,40] k, float[2,40,8] v, float[2,1,40] m, float[256,40] b)
             => (float[2,256,8] y) <float c = {0.5}> {
                s = MatMul(q, k)  d = Mul(s, c)  e = Add(d, m)  g = Add(e, b)  p = Softmax<axis = -1>(g)  y = MatMul(p, v)
             }",
            0,
            "f (float[2,256,8] q, float[2,8,40] k, float[2,40,8] v, float[2,1,40] m, float[256,40] b)
             => (float[2,256,8] y)
             <float c = {0.5}, int64[1] zero = {0}, int64[1] half = {128}, int64[1] one = {1}, int64[1] all = {9223372036854775807}> {
                q0 = Slice(q, zero, half, one)  s0 = MatMul(q0, k)  d0 = Mul(s0, c)  e0 = Add(d0, m)
                b0 = Slice(b, zero, half, zero)  g0 = Add(e0, b0)  p0 = Softmax<axis = -1>(g0)  y0 = MatMul(p0, v)
                q1 = Slice(q, half, all, one)  s1 = MatMul(q1, k)  d1 = Mul(s1, c)  e1 = Add(d1, m)
                b1 = Slice(b, half, all, zero)  g1 = Add(e1, b1)  p1 = Softmax<axis = -1>(g1)  y1 = MatMul(p1, v)
                y = Concat<axis = 1>(y0, y1)
             }",
        );
    }

    #[test]
    fn a_stack_of_small_matrices_is_cut_between_them() {
        let text = "f (float[2,8,9,4] q, float[2,8,4,9] k, float[8,9,4] v) => (float[2,8,9,4] y) {
            s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }";
        let model = take(&SplitRows, text, 0).unwrap();
        let graph = &model.graph;
        let axes = |name: &str| {
            let value = graph.values().find(|&v| graph.value(v).name == name).unwrap();
            let slices = graph.uses(value).map(|at| graph.op(at.op)).filter(|op| op.is("Slice"));
            let axes = slices.map(|op| graph.constant(op.input(3).unwrap()).unwrap().to_i64().unwrap());
            axes.collect::<Vec<_>>()
        };
        let twice = |axis: i64| vec![vec![axis]; 2];
        assert_eq!(["q", "k", "v"].map(axes), [twice(1), twice(1), twice(0)]);
    }

    #[test]
    fn what_several_operators_read_is_cut_once() {
        let text = "f (float[256,8] q, float[8,64] k, float[64,8] v, float[256,64] m) => (float[256,8] y)
             <float zero = {0}> {
                s = MatMul(q, k)  a = Mul(s, m)  b = Add(a, m)  p = Softmax(b)  n = IsNaN(p)  c = Where(n, zero, p)
                y = MatMul(c, v)
             }";
        let model = take(&SplitRows, text, 0).unwrap();
        let count = |op_type: &str| model.graph.ops().filter(|&op| model.graph.op(op).is(op_type)).count();
        assert_eq!((count("Slice"), count("MatMul"), count("Where"), count("Concat")), (4, 4, 2, 1));
    }

    #[test]
    fn a_perceptron_is_computed_in_slices_of_its_samples() {
        let text = "f (float[64,4] x) => (float[64,3] y)
             <float[4,8] w, float[8] wb, float[8,3] v, float[3] vb> {
                h = Gemm(x, w, wb)  a = Relu(h)  y = Gemm(a, v, vb) }";
        let filled = |text: &str| {
            dmopt_ir::text::parse_model_filled(text, &mut |_, ty| {
                dmopt_ir::Tensor::from_f64(
                    ty.dtype,
                    ty.dims().unwrap(),
                    &vec![1.0; ty.elements().unwrap() as usize],
                )
                .unwrap()
                .storage
            })
        };
        let text = print_model(&filled(text).unwrap());
        let model = take(&SplitRows, &text, 1).unwrap();
        let count = |op_type: &str| model.graph.ops().filter(|&op| model.graph.op(op).is(op_type)).count();
        assert_eq!((count("Slice"), count("Gemm"), count("Relu")), (4, 8, 4));
    }

    #[test]
    fn slices_have_many_rows_and_there_are_thirty_two_at_most() {
        let text = |rows: u64, factors: &str| {
            let (inputs, constants) = match factors {
                "computed" => (", float[2,3] k, float[3,2] v", ""),
                _ => ("", "<float[2,3] k = {1, 2, 3, 4, 5, 6}, float[3,2] v = {1, 2, 3, 4, 5, 6}>"),
            };
            format!(
                "f (float[{rows},2] q{inputs}) => (float[{rows},2] y) {constants} {{
                    s = MatMul(q, k)  y = MatMul(s, v) }}"
            )
        };
        let of = |factors| [16, 32, 197, 600, 9000].map(|rows| levels(&text(rows, factors)));
        assert_eq!(of("computed"), [vec![], vec![], vec![], vec![2], vec![5]]);
        assert_eq!(of("constant"), [vec![], vec![1], vec![4], vec![5], vec![5]]);
        let model = take(&SplitRows, &text(600, "computed"), 1).unwrap();
        let rows = model.graph.values().filter(|&v| model.graph.value(v).name.starts_with("s_"));
        let rows: Vec<u64> = rows.map(|v| model.graph.tensor_type(v).unwrap().dims().unwrap()[0]).collect();
        assert_eq!(rows, [150; 4]);
    }

    #[test]
    fn an_axis_that_a_softmax_sums_over_is_not_cut() {
        let text = |opset: u64, attributes: &str| {
            format!(
                "<ir_version: 8, opset_import: [\"\" : {opset}]>
                 f (float[2,3,512,8] q, float[2,3,8,64] k, float[2,3,64,8] v) => (float[2,3,512,8] y) {{
                    s = MatMul(q, k)  p = Softmax{attributes}(s)  y = MatMul(p, v) }}"
            )
        };
        let axes = |text: &str| {
            let model = take(&SplitRows, text, 0).unwrap();
            let concat = model.graph.ops().find(|&op| model.graph.op(op).is("Concat")).unwrap();
            model.graph.op(concat).int("axis").unwrap()
        };
        assert_eq!(axes(&text(13, "")), 2);
        assert_eq!(axes(&text(13, "<axis = -2>")), 1);
        // All axes from the second on are one before version 13.
        assert_eq!(axes(&text(12, "")), 0);
        assert_eq!(axes(&text(12, "<axis = 3>")), 2);
    }

    #[test]
    fn what_something_else_reads_and_open_sizes_are_left_alone() {
        let text = |rows: &str, outputs: &str| {
            format!(
                "f (float[{rows},8] q, float[8,64] k, float[64,8] v) => (float[{rows},8] y{outputs}) {{
                    s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }}"
            )
        };
        assert_eq!(levels(&text("512", "")), [2]);
        assert!(levels(&text("512", ", float[512,64] s")).is_empty());
        assert!(levels(&text("512", ", float[512,64] p")).is_empty());
        assert!(levels(&text("n", "")).is_empty());
        assert!(levels(&text("0", "")).is_empty());
    }

    #[test]
    fn what_a_product_reads_as_a_whole_stays_whole() {
        let text = |second: &str| {
            format!(
                "f (float[512,8] q, float[8,512] k, float[512,512] v) => (float[512,512] y) {{
                    s = MatMul(q, k)  r = Relu(s)  y = MatMul(r, {second}) }}"
            )
        };
        assert_eq!(levels(&text("v")), [2]);
        assert!(levels(&text("s")).is_empty());
    }

    #[test]
    fn types_that_cannot_be_cut_are_cut_after_their_cast() {
        let text = "<ir_version: 10, opset_import: [\"\" : 21]>
            f (float[256,8] q, float[8,64] k, float[64,8] v, float8e4m3fn[256,64] m) => (float[256,8] y) {
                s = MatMul(q, k)  c = Cast<to = 1>(m)  e = Add(s, c)  y = MatMul(e, v) }";
        let model = take(&SplitRows, text, 0).unwrap();
        let graph = &model.graph;
        let cut = graph.ops().filter(|&op| graph.op(op).is("Slice"));
        let cut: Vec<&str> =
            cut.map(|op| graph.value(graph.op(op).input(0).unwrap()).name.as_str()).collect();
        assert_eq!(cut.iter().filter(|&&name| name == "c").count(), 2);
        assert!(!cut.contains(&"m"));
    }

    #[test]
    fn slices_are_not_sliced_again() {
        let text = "f (float[512,8] q, float[8,64] k, float[64,8] v) => (float[512,8] y) {
            s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }";
        let heads = "f (float[8,512,8] q, float[8,8,64] k, float[8,64,8] v) => (float[8,512,8] y) {
            s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }";
        for text in [text, heads] {
            let once = print_model(&take(&SplitRows, text, 0).unwrap());
            assert_eq!(take(&SplitRows, &once, 0).err(), Some(Miss::NoMatch));
        }
    }
}
