//! One graph: operators in a petgraph, values beside it, and both indices between them.
//!
//! Operand lists are the truth. Each value keeps the set of its uses, and petgraph keeps one edge for each use of
//! an operator's result, so that order, reachability and cycles come from there. Values that no operator defines
//! (inputs, initializers, captured values) have uses but no edges: a constant that every operator reads would
//! otherwise make removal quadratic. Only this file knows petgraph's indices.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use bytes::Bytes;
use indexmap::map::Entry;
use petgraph::Direction;
use petgraph::stable_graph::{EdgeIndex, StableDiGraph};
use petgraph::visit::{EdgeRef, IntoEdgeReferences, NodeIndexable};

use crate::hash::{HashMap, IndexMap, IndexSet};
use crate::{AttributeValue, DType, Op, OpId, Opsets, SparseTensor, Tensor, Type, ValueId};

/// A graph of operators over SSA values: the main graph, a body, or a function's definition.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    name: String,
    opsets: Arc<Opsets>,
    ops: StableDiGraph<Op, Edge>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    extra: Bytes,
    dropped_edges: usize,
    /// The order, from [`Graph::compact`] to the next change of an operator: every pass asks for it.
    known_order: Option<Vec<OpId>>,
    births: u64,
    /// How many operators have a body: it is asked before each pass. No operator that is here gets one, or loses it.
    with_bodies: usize,
}

/// One use of an operator's result by another operator.
#[derive(Clone, Copy, Debug)]
struct Edge {
    value: ValueId,
    slot: Slot,
    /// False once the use is gone. Taking an edge out of petgraph walks all edges of its producer, which would make
    /// removing the readers of a hub quadratic; [`Graph::compact`] takes out all at once.
    live: bool,
}

/// What operators read and write.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name in the file: unique within a graph and against the graphs around it.
    pub name: String,
    /// Type, as far as it is declared or inferred.
    pub ty: Option<Type>,
    /// Where the value comes from.
    pub def: Def,
    /// What else the file said about it; opaque here.
    pub extra: Bytes,
    /// Each with its edge, if an operator defines the value.
    uses: IndexMap<Use, Option<EdgeIndex>>,
    /// The places that it has among the outputs of the graph, and the one among the inputs.
    outputs: Vec<u32>,
    input: Option<u32>,
    pinned: bool,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Def {
    /// An input of the graph, with the value it takes when the caller gives none.
    Input {
        /// The default, for an initializer that is listed among the inputs.
        default: Option<Box<Tensor>>,
    },
    /// A constant.
    Initializer(Box<Tensor>),
    /// A sparse constant.
    SparseInitializer(Box<SparseTensor>),
    /// The result `slot` of an operator.
    Op {
        /// The operator.
        op: OpId,
        /// Position among its results.
        slot: u32,
    },
    /// In a body: a value of the enclosing graph.
    Captured {
        /// Its id there.
        outer: ValueId,
    },
    /// Named but not defined (while building), or removed.
    Dead,
}

/// One reading of a value by an operator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Use {
    /// Who reads.
    pub op: OpId,
    /// At which position.
    pub slot: Slot,
}

/// How an operator reads a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    /// As the operand at this position.
    Operand(u32),
    /// Within one of its bodies.
    Capture,
}

impl Graph {
    /// Name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Imported operator sets.
    pub fn opsets(&self) -> &Arc<Opsets> {
        &self.opsets
    }

    /// Version of a domain's operator set (`""` and `ai.onnx` are the same); 0 when it is not imported.
    pub fn opset(&self, domain: &str) -> i64 {
        let domain = if domain == "ai.onnx" { "" } else { domain };
        self.opsets.get(domain).copied().unwrap_or(0)
    }

    /// Imports these operator sets, in bodies too.
    pub(crate) fn set_opsets(&mut self, opsets: &Arc<Opsets>) {
        self.opsets = opsets.clone();
        for op in self.ops.node_weights_mut() {
            op.bodies_mut().for_each(|body| body.set_opsets(opsets));
        }
    }

    /// The operator sets of the operators, bodies included.
    pub(crate) fn domains(&self) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        for op in self.ops().map(|id| self.op(id)) {
            found.insert(if op.is_standard() { "" } else { op.domain.as_str() });
            op.bodies().for_each(|body| found.extend(body.domains()));
        }
        found
    }

    /// What else the file said about this graph; opaque here.
    pub fn extra(&self) -> &Bytes {
        &self.extra
    }

    /// Inputs in file order, initializers that are listed as inputs included.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Outputs in file order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The operator with this id.
    pub fn op(&self, id: OpId) -> &Op {
        &self.ops[id.node()]
    }

    /// True while the operator has not been erased.
    pub fn is_live(&self, id: OpId) -> bool {
        self.ops.node_weight(id.node()).is_some_and(|op| !op.erased)
    }

    /// The value with this id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// All operators, by id.
    pub fn ops(&self) -> impl Iterator<Item = OpId> + '_ {
        self.ops.node_indices().filter(|&n| !self.ops[n].erased).map(OpId::new)
    }

    /// All values that are defined, by id.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.values_from(0)
    }

    /// The values whose index is at least this: those that were added since it was the [bound](Graph::value_bound).
    pub fn values_from(&self, first: usize) -> impl Iterator<Item = ValueId> + '_ {
        (first as u32..self.values.len() as u32)
            .map(ValueId)
            .filter(|&v| !matches!(self.value(v).def, Def::Dead))
    }

    /// Number of operators.
    pub fn op_count(&self) -> usize {
        self.ops().count()
    }

    /// True if an operator has a body: If, Loop, Scan.
    pub fn has_bodies(&self) -> bool {
        let has_body = |id| self.op(id).bodies().next().is_some();
        debug_assert_eq!(self.with_bodies, self.ops().filter(|&id| has_body(id)).count());
        self.with_bodies > 0
    }

    /// One more than the largest operator index in use.
    pub fn op_bound(&self) -> usize {
        self.ops.node_bound()
    }

    /// One more than the largest value index in use.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// Where an operator reads this value, in the order in which the uses were made.
    pub fn uses(&self, id: ValueId) -> impl ExactSizeIterator<Item = Use> + '_ {
        self.value(id).uses.keys().copied()
    }

    /// How often this value is read: by operators (each operand position counts, all bodies of an operator
    /// together once), as an output of the graph, and from outside where it is pinned.
    pub fn readers(&self, id: ValueId) -> usize {
        let value = self.value(id);
        value.uses.len() + value.outputs.len() + usize::from(value.pinned)
    }

    /// True when something outside of the graph refers to the value by its name, as training does: it keeps that name,
    /// and a constant may be changed between runs.
    pub fn is_pinned(&self, id: ValueId) -> bool {
        self.value(id).pinned
    }

    /// True when the value is an output of the graph.
    pub fn is_output(&self, id: ValueId) -> bool {
        !self.value(id).outputs.is_empty()
    }

    /// The place of this value among the inputs of the graph, if it is one.
    pub fn input_place(&self, id: ValueId) -> Option<usize> {
        self.value(id).input.map(|place| place as usize)
    }

    /// The operator that computes this value, if one does.
    pub fn producer(&self, id: ValueId) -> Option<OpId> {
        match self.value(id).def {
            Def::Op { op, .. } => Some(op),
            _ => None,
        }
    }

    /// The type of a value, if it is a dense tensor of known element type.
    pub fn tensor_type(&self, id: ValueId) -> Option<&crate::TensorType> {
        self.value(id).ty.as_ref()?.tensor()
    }

    /// The value, if it is the same in every run: an initializer that is not an input and not pinned, or the result
    /// of a `Constant` operator.
    pub fn constant(&self, id: ValueId) -> Option<Cow<'_, Tensor>> {
        match &self.value(id).def {
            Def::Initializer(_) if self.is_pinned(id) => None,
            Def::Initializer(t) => Some(Cow::Borrowed(t)),
            Def::Op { op, .. } if self.op(*op).is("Constant") => constant_of(self.op(*op)),
            _ => None,
        }
    }

    /// All operators in file order: every operator after those it depends on and, among those that could come
    /// next, the one with the lowest rank (then the one that was added first). A file that was in a valid order keeps
    /// it, and a new operator stands at the place that its rank names.
    ///
    /// # Errors
    /// An operator on a cycle. A built and rewritten graph has none.
    pub fn order(&self) -> Result<Vec<OpId>, OpId> {
        if let Some(order) = &self.known_order {
            return Ok(order.clone());
        }
        let key = |id: OpId| ((self.op(id).rank, self.op(id).born), id);
        let live = || {
            let live = self.ops.edge_references().filter(|edge| edge.weight().live);
            live.map(|edge| (edge.source().index(), edge.target().index()))
        };
        // Mostly nothing stands before what it waits for.
        let mut order: Vec<OpId> = self.ops().collect();
        order.sort_unstable_by_key(|&id| key(id));
        let mut place = vec![0u32; self.op_bound()];
        order.iter().zip(0..).for_each(|(id, at)| place[id.index()] = at);
        if live().all(|(from, to)| place[from] < place[to]) {
            return Ok(order);
        }
        let mut waiting = vec![0u32; self.op_bound()];
        live().for_each(|(_, to)| waiting[to] += 1);
        let key = |id| Reverse(key(id));
        let mut ready: BinaryHeap<_> = self.ops().filter(|id| waiting[id.index()] == 0).map(key).collect();
        let mut order = Vec::with_capacity(self.ops.node_count());
        while let Some(Reverse((_, id))) = ready.pop() {
            order.push(id);
            for next in self.successors(id) {
                waiting[next.index()] -= 1;
                if waiting[next.index()] == 0 {
                    ready.push(key(next));
                }
            }
        }
        match self.ops().find(|id| waiting[id.index()] > 0) {
            Some(stuck) => Err(self.on_cycle(stuck, &waiting)),
            None => Ok(order),
        }
    }

    /// Walks back from an operator that waits for a cycle to an operator on it.
    fn on_cycle(&self, mut id: OpId, waiting: &[u32]) -> OpId {
        let mut seen = vec![false; waiting.len()];
        while !std::mem::replace(&mut seen[id.index()], true) {
            match self.predecessors(id).find(|p| waiting[p.index()] > 0) {
                Some(before) => id = before,
                None => break,
            }
        }
        id
    }

    /// Operators, in no particular order, whose results this operator reads (repeated for repeated readings).
    pub fn predecessors(&self, id: OpId) -> impl Iterator<Item = OpId> + '_ {
        let edges = self.ops.edges_directed(id.node(), Direction::Incoming);
        edges.filter(|e| e.weight().live).map(|e| OpId::new(e.source()))
    }

    /// Operators, in no particular order, that read a result of this operator (repeated for repeated readings).
    pub fn successors(&self, id: OpId) -> impl Iterator<Item = OpId> + '_ {
        let edges = self.ops.edges_directed(id.node(), Direction::Outgoing);
        edges.filter(|e| e.weight().live).map(|e| OpId::new(e.target()))
    }

    /// How to name an operator to a person: its name, or its type and first result.
    pub fn describe(&self, id: OpId) -> String {
        let op = self.op(id);
        if !op.name.is_empty() {
            return format!("{} '{}'", op.op_type, op.name);
        }
        match op.results().next() {
            Some(v) => format!("{} of '{}'", op.op_type, self.value(v).name),
            None => op.op_type.clone(),
        }
    }

    /// The edges as (producer, value, use), for [`verify`](crate::verify()).
    pub(crate) fn edges(&self) -> impl Iterator<Item = (OpId, ValueId, Use)> + '_ {
        self.ops.edge_references().filter(|e| e.weight().live).map(|e| {
            let Edge { value, slot, .. } = *e.weight();
            (OpId::new(e.source()), value, Use { op: OpId::new(e.target()), slot })
        })
    }

    pub(crate) fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.index()]
    }

    pub(crate) fn op_mut(&mut self, id: OpId) -> &mut Op {
        self.known_order = None;
        &mut self.ops[id.node()]
    }

    /// Edits the bodies of all operators.
    pub(crate) fn each_body_mut(&mut self, mut edit: impl FnMut(&mut Graph)) {
        let with_bodies = self.ops().filter(|&op| self.op(op).bodies().next().is_some());
        for op in with_bodies.collect::<Vec<_>>() {
            self.op_mut(op).bodies_mut().for_each(&mut edit);
        }
    }

    pub(crate) fn new_value(&mut self, name: String, ty: Option<Type>, def: Def) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        let (uses, outputs, extra) = (IndexMap::default(), Vec::new(), Bytes::new());
        self.values.push(Value { name, ty, def, extra, uses, outputs, input: None, pinned: false });
        id
    }

    /// Adds an operator; its results must exist as values that nothing defines.
    pub(crate) fn insert_op(&mut self, mut op: Op) -> OpId {
        self.known_order = None;
        op.captures = captures_of(&op);
        self.with_bodies += usize::from(op.bodies().next().is_some());
        op.born = self.births;
        self.births += 1;
        let id = OpId::new(self.ops.add_node(op));
        for (slot, value) in self.op(id).outputs.clone().into_iter().enumerate() {
            let Some(value) = value else { continue };
            self.values[value.index()].def = Def::Op { op: id, slot: slot as u32 };
            // Uses may come before the definition in a file that is not sorted.
            for (&Use { op, slot }, edge) in &mut self.values[value.index()].uses {
                *edge = Some(self.ops.add_edge(id.node(), op.node(), Edge { value, slot, live: true }));
            }
        }
        for (value, slot) in self.reads(id) {
            self.link(value, Use { op: id, slot });
        }
        id
    }

    /// Marks an operator as erased and drops its uses; the id stays taken until [`compact`](Graph::compact).
    pub(crate) fn erase_op(&mut self, id: OpId) {
        for (value, slot) in self.reads(id) {
            self.unlink(value, Use { op: id, slot });
        }
        for value in self.op(id).results().collect::<Vec<_>>() {
            self.bury(value);
        }
        let had_body = self.op(id).bodies().next().is_some();
        self.with_bodies -= usize::from(had_body);
        self.op_mut(id).erased = true;
    }

    /// Makes a value that nothing reads undefined and frees its name.
    pub(crate) fn bury(&mut self, id: ValueId) {
        let value = self.value_mut(id);
        debug_assert!(value.uses.is_empty() && value.outputs.is_empty() && !value.pinned);
        value.def = Def::Dead;
        value.name.clear();
        value.ty = None;
    }

    /// Turns one use of `old` into a use of `new`.
    pub(crate) fn redirect(&mut self, old: ValueId, new: ValueId, at: Use) {
        self.unlink(old, at);
        match at.slot {
            Slot::Operand(slot) => self.op_mut(at.op).inputs[slot as usize] = Some(new),
            Slot::Capture => {
                for body in self.op_mut(at.op).bodies_mut() {
                    for value in &mut body.values {
                        match &mut value.def {
                            Def::Captured { outer } if *outer == old => *outer = new,
                            _ => {}
                        }
                    }
                }
                if self.op(at.op).captures.contains(&new) {
                    self.op_mut(at.op).captures = captures_of(self.op(at.op));
                } else {
                    let places = self.op_mut(at.op).captures.iter_mut();
                    places.filter(|value| **value == old).for_each(|value| *value = new);
                }
            }
        }
        self.link(new, at);
    }

    /// Makes every output of the graph that is `old` be `new`.
    pub(crate) fn redirect_outputs(&mut self, old: ValueId, new: ValueId) {
        for place in std::mem::take(&mut self.value_mut(old).outputs) {
            self.outputs[place as usize] = new;
            self.value_mut(new).outputs.push(place);
        }
    }

    /// Brings the uses of an operator in line with what its bodies capture now.
    pub(crate) fn recapture(&mut self, id: OpId) {
        let before = std::mem::take(&mut self.op_mut(id).captures);
        for value in before {
            self.unlink(value, Use { op: id, slot: Slot::Capture });
        }
        self.op_mut(id).bodies_mut().for_each(Graph::forget_unread_captures);
        let captures = captures_of(self.op(id));
        for &value in &captures {
            self.link(value, Use { op: id, slot: Slot::Capture });
        }
        self.op_mut(id).captures = captures;
    }

    /// Makes captured values that nothing reads undefined: the enclosing graph is free to drop what they stand for.
    fn forget_unread_captures(&mut self) {
        let captured = |&id: &ValueId| matches!(self.value(id).def, Def::Captured { .. });
        let unread: Vec<ValueId> =
            self.values().filter(captured).filter(|&id| self.readers(id) == 0).collect();
        unread.into_iter().for_each(|id| self.bury(id));
    }

    /// Raises the rank of an operator to at least that of one that it has come to read from, and then that of its
    /// readers: ranks never fall along an edge.
    pub(crate) fn raise(&mut self, id: OpId, least: u64) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            if self.op(id).rank < least {
                self.op_mut(id).rank = least;
                pending.extend(self.successors(id));
            }
        }
    }

    /// Frees the ids of erased operators and the edges of uses that are gone, and numbers ranks by position.
    pub(crate) fn compact(&mut self) -> Result<(), OpId> {
        if self.known_order.is_some() {
            return Ok(());
        }
        let order = self.order()?;
        for (rank, &id) in order.iter().enumerate() {
            self.op_mut(id).rank = rank as u64;
        }
        if self.dropped_edges > 0 {
            let live: Vec<_> = (self.ops.edge_references())
                .filter(|e| e.weight().live)
                .map(|e| (e.source(), e.target(), *e.weight()))
                .collect();
            self.ops.clear_edges();
            for (from, to, edge) in live {
                let at = Use { op: OpId::new(to), slot: edge.slot };
                let index = self.ops.add_edge(from, to, edge);
                self.value_mut(edge.value).uses.insert(at, Some(index));
            }
            self.dropped_edges = 0;
        }
        self.ops.retain_nodes(|ops, n| !ops[n].erased);
        self.known_order = Some(order);
        Ok(())
    }

    fn reads(&self, id: OpId) -> Vec<(ValueId, Slot)> {
        let op = self.op(id);
        let operands =
            op.inputs.iter().enumerate().filter_map(|(i, v)| v.map(|v| (v, Slot::Operand(i as u32))));
        operands.chain(op.captures.iter().map(|&v| (v, Slot::Capture))).collect()
    }

    fn link(&mut self, value: ValueId, at: Use) {
        self.known_order = None;
        let Value { def, uses, .. } = &mut self.values[value.index()];
        let Entry::Vacant(place) = uses.entry(at) else { return };
        let edge = match def {
            Def::Op { op, .. } => {
                let edge = Edge { value, slot: at.slot, live: true };
                Some(self.ops.add_edge(op.node(), at.op.node(), edge))
            }
            _ => None,
        };
        place.insert(edge);
    }

    fn unlink(&mut self, value: ValueId, at: Use) {
        self.known_order = None;
        if let Some(Some(edge)) = self.value_mut(value).uses.swap_remove(&at) {
            self.ops[edge].live = false;
            self.dropped_edges += 1;
        }
    }
}

/// The values of the enclosing graph that an operator's bodies read, each once, in order of first mention.
pub(crate) fn captures_of(op: &Op) -> Vec<ValueId> {
    let mut captures = IndexSet::default();
    for body in op.bodies() {
        for id in body.values() {
            match body.value(id).def {
                Def::Captured { outer } if body.readers(id) > 0 => {
                    captures.insert(outer);
                }
                _ => {}
            }
        }
    }
    captures.into_iter().collect()
}

/// The tensor that a `Constant` operator stands for, in any of its spellings; strings and sparse tensors excepted.
fn constant_of(op: &Op) -> Option<Cow<'_, Tensor>> {
    let [attribute] = op.attributes.as_slice() else { return None };
    let tensor = match (attribute.name.as_str(), &attribute.value) {
        ("value", AttributeValue::Tensor(t)) => return Some(Cow::Borrowed(t)),
        ("value_float", AttributeValue::Float(v)) => Tensor::from_f64(DType::F32, vec![], &[*v as f64]),
        ("value_int", AttributeValue::Int(v)) => Tensor::from_i64(DType::I64, vec![], &[*v]),
        ("value_ints", AttributeValue::Ints(v)) => Ok(Tensor::i64s(v)),
        ("value_floats", AttributeValue::Floats(v)) => {
            let data: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
            Ok(Tensor::raw(DType::F32, vec![v.len() as u64], data))
        }
        _ => return None,
    };
    tensor.ok().map(Cow::Owned)
}

/// Why a graph could not be built.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BuildError {
    /// Two definitions of one value.
    #[error("value '{0}' is defined twice")]
    DefinedTwice(String),
    /// A value is read that nothing defines.
    #[error("value '{value}' is read by {reader} but nothing defines it")]
    Undefined {
        /// Name of the value.
        value: String,
        /// Who reads it.
        reader: String,
    },
    /// Operators depend on each other in a circle.
    #[error("{0} depends on its own result: the graph has a cycle")]
    Cycle(String),
}

/// Builds a graph by names, in any order: uses may come before definitions.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    graph: Graph,
    by_name: HashMap<String, ValueId>,
}

impl Builder {
    /// An empty graph.
    pub fn new(name: impl Into<String>, opsets: Arc<Opsets>) -> Builder {
        Builder {
            graph: Graph { name: name.into(), opsets, ..Graph::default() },
            by_name: HashMap::default(),
        }
    }

    /// The value of this name, made on first mention; it must be defined before [`finish`](Builder::finish).
    pub fn value(&mut self, name: &str) -> ValueId {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = self.graph.new_value(name.to_string(), None, Def::Dead);
        self.by_name.insert(name.to_string(), id);
        id
    }

    /// The value of this name, if it was mentioned.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// Values that were mentioned and that nothing defines so far, by id.
    pub fn undefined(&self) -> impl Iterator<Item = (ValueId, &str)> {
        (0..self.graph.values.len() as u32)
            .map(ValueId)
            .map(|id| (id, self.graph.value(id)))
            .filter(|(_, v)| matches!(v.def, Def::Dead))
            .map(|(id, v)| (id, v.name.as_str()))
    }

    /// Defines a value as the next input.
    ///
    /// # Errors
    /// It is defined already.
    pub fn input(&mut self, id: ValueId, default: Option<Tensor>) -> Result<(), BuildError> {
        self.define(id, Def::Input { default: default.map(Box::new) })?;
        self.graph.value_mut(id).input = Some(self.graph.inputs.len() as u32);
        self.graph.inputs.push(id);
        Ok(())
    }

    /// Defines a value as a constant. Its type follows from the tensor.
    ///
    /// # Errors
    /// It is defined already.
    pub fn initializer(&mut self, id: ValueId, tensor: Tensor) -> Result<(), BuildError> {
        let ty = tensor.ty();
        self.define(id, Def::Initializer(Box::new(tensor)))?;
        self.graph.value_mut(id).ty = Some(ty.into());
        Ok(())
    }

    /// Defines a value as a sparse constant.
    ///
    /// # Errors
    /// It is defined already.
    pub fn sparse_initializer(&mut self, id: ValueId, tensor: SparseTensor) -> Result<(), BuildError> {
        self.define(id, Def::SparseInitializer(Box::new(tensor)))
    }

    /// Defines a value of a body as the value `outer` of the enclosing graph.
    ///
    /// # Errors
    /// It is defined already.
    pub fn captured(&mut self, id: ValueId, outer: ValueId, ty: Option<Type>) -> Result<(), BuildError> {
        self.define(id, Def::Captured { outer })?;
        self.graph.value_mut(id).ty = ty;
        Ok(())
    }

    /// Adds an operator after the others. Bodies among its attributes must be built already, their captured
    /// values naming values of this graph.
    ///
    /// # Errors
    /// One of its results is defined already.
    pub fn op(&mut self, mut op: Op) -> Result<OpId, BuildError> {
        let mut seen = IndexSet::default();
        for id in op.results() {
            if !matches!(self.graph.value(id).def, Def::Dead) || !seen.insert(id) {
                return Err(BuildError::DefinedTwice(self.graph.value(id).name.clone()));
            }
        }
        op.rank = self.graph.ops.node_count() as u64;
        Ok(self.graph.insert_op(op))
    }

    /// Makes a value the next output.
    pub fn output(&mut self, id: ValueId) {
        let place = self.graph.outputs.len() as u32;
        self.graph.outputs.push(id);
        self.graph.value_mut(id).outputs.push(place);
    }

    /// Says that something outside of the graph refers to a value by its name; see [`Graph::is_pinned`].
    pub fn pin(&mut self, id: ValueId) {
        self.graph.value_mut(id).pinned = true;
    }

    /// Declares the type of a value.
    pub fn set_type(&mut self, id: ValueId, ty: Option<Type>) {
        self.graph.value_mut(id).ty = ty;
    }

    /// Attaches what else the file said about a value.
    pub fn set_value_extra(&mut self, id: ValueId, extra: Bytes) {
        self.graph.value_mut(id).extra = extra;
    }

    /// Attaches what else the file said about the graph.
    pub fn set_extra(&mut self, extra: Bytes) {
        self.graph.extra = extra;
    }

    /// The type of a value, as far as it is known.
    pub fn type_of(&self, id: ValueId) -> Option<&Type> {
        self.graph.value(id).ty.as_ref()
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The finished graph.
    ///
    /// # Errors
    /// A value is read or put out that nothing defines, or operators form a cycle.
    pub fn finish(mut self) -> Result<Graph, BuildError> {
        for value in &self.graph.values {
            if !matches!(value.def, Def::Dead) {
                continue;
            }
            let reader = match value.uses.first() {
                Some((at, _)) => self.graph.describe(at.op),
                None if !value.outputs.is_empty() => "the outputs of the graph".to_string(),
                None => continue,
            };
            return Err(BuildError::Undefined { value: value.name.clone(), reader });
        }
        match self.graph.compact() {
            Ok(()) => Ok(self.graph),
            Err(op) => Err(BuildError::Cycle(self.graph.describe(op))),
        }
    }

    fn define(&mut self, id: ValueId, def: Def) -> Result<(), BuildError> {
        let value = self.graph.value_mut(id);
        if !matches!(value.def, Def::Dead) {
            return Err(BuildError::DefinedTwice(value.name.clone()));
        }
        value.def = def;
        Ok(())
    }
}

impl Op {
    /// An operator to add with [`Builder::op`].
    pub fn new(op_type: &str, inputs: Vec<Option<ValueId>>, outputs: Vec<Option<ValueId>>) -> Op {
        Op {
            name: String::new(),
            domain: String::new(),
            op_type: op_type.to_string(),
            overload: String::new(),
            attributes: Vec::new(),
            inputs,
            outputs,
            captures: Vec::new(),
            rank: 0,
            extra: Bytes::new(),
            erased: false,
            born: 0,
        }
    }
}
