//! The only door to mutation. A pass describes an edit as a [`Patch`] while it reads the graph; the
//! [`Rewriter`] checks it, applies it as a whole, and counts it. A patch that does not fit changes nothing.

use std::cell::RefCell;

use crate::graph::captures_of;
use crate::hash::{HashMap, HashSet};
use crate::infer::{self, Known};
use crate::{Attribute, AttributeValue, Def, Graph, Names, Op, OpId, Tensor, Type, Use, ValueId};

/// How far an edit may change results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Safety {
    /// Bit-identical results, NaN and infinity included.
    Exact,
    /// The same formula in another order of operations: results differ by rounding alone.
    Reassociates,
    /// Another formula with the same value in exact arithmetic, with conditions that the pass checks.
    Approximates,
}

impl Safety {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Safety::Exact => "exact",
            Safety::Reassociates => "reassociates",
            Safety::Approximates => "approximates",
        }
    }
}

/// An operand of an operator in a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// A value of the graph.
    Value(ValueId),
    /// The result `slot` of the patch's operator number `op`.
    New {
        /// Number of the operator within the patch.
        op: usize,
        /// Position among its results.
        slot: usize,
    },
    /// The patch's constant of this number.
    Constant(usize),
}

impl From<ValueId> for Operand {
    fn from(v: ValueId) -> Operand {
        Operand::Value(v)
    }
}

/// Where a new operator stands in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// As early as possible: right after the last of its operands.
    AfterOperands,
    /// In the place of this operator.
    At(OpId),
    /// After every other operator; several in the order in which they are added.
    Last,
}

/// An operator that a patch adds.
#[derive(Clone, Debug)]
pub struct NewOp {
    op: Op,
    inputs: Vec<Option<Operand>>,
    types: Vec<Option<Type>>,
    position: Position,
    result_hint: Option<String>,
    has_own_name: bool,
}

impl NewOp {
    /// A standard operator with one result.
    pub fn new(op_type: &str, inputs: impl IntoIterator<Item = Operand>) -> NewOp {
        NewOp {
            op: Op::new(op_type, Vec::new(), Vec::new()),
            inputs: inputs.into_iter().map(Some).collect(),
            types: vec![None],
            position: Position::AfterOperands,
            result_hint: None,
            has_own_name: false,
        }
    }

    /// A standard operator with one result and operands left out.
    pub fn with_optional(op_type: &str, inputs: Vec<Option<Operand>>) -> NewOp {
        NewOp { inputs, ..NewOp::new(op_type, []) }
    }

    /// A copy of an operator (name, attributes, everything the file said) that stands in its place, with other
    /// operands.
    pub fn like(graph: &Graph, id: OpId, inputs: Vec<Option<Operand>>) -> NewOp {
        NewOp { inputs, ..NewOp::instead_of(graph, id, graph.op(id).clone()) }
    }

    /// This operator, which has the results of another, in the other's place.
    pub fn instead_of(graph: &Graph, id: OpId, op: Op) -> NewOp {
        let inputs = op.inputs.iter().map(|v| v.map(Operand::from)).collect();
        let types = op.outputs.iter().map(|v| v.and_then(|v| graph.value(v).ty.clone())).collect();
        NewOp { op, inputs, types, position: Position::At(id), result_hint: None, has_own_name: false }
    }

    /// Makes it an operator of another operator set, or of another type.
    pub fn of(mut self, domain: &str, op_type: &str) -> NewOp {
        self.op.domain = domain.to_string();
        self.op.op_type = op_type.to_string();
        self
    }

    /// Adds an attribute, or replaces the one of this name.
    pub fn attribute(mut self, name: &str, value: impl Into<AttributeValue>) -> NewOp {
        self.op.attributes.retain(|a| a.name != name);
        self.op.attributes.push(Attribute::new(name, value));
        self
    }

    /// Names the operator.
    pub fn named(mut self, name: impl Into<String>) -> NewOp {
        self.op.name = name.into();
        self
    }

    /// Names the operator as no other of the graph is: this, and underscores behind it where one is.
    pub fn named_apart(mut self, name: impl Into<String>) -> NewOp {
        self.has_own_name = true;
        self.named(name)
    }

    /// Names the operator after another, with this behind it, if that one has a name; apart from others, because ONNX Runtime
    /// loads no model in which two have the same.
    pub fn named_after(self, graph: &Graph, id: OpId, what: &str) -> NewOp {
        match graph.op(id).name.as_str() {
            "" => self,
            name => self.named_apart(format!("{name}_{what}")),
        }
    }

    /// Gives the operator this number of results.
    pub fn results(mut self, count: usize) -> NewOp {
        self.types.resize(count, None);
        self
    }

    /// Declares the type of the first result, for operators that inference does not know.
    pub fn typed(mut self, ty: Option<Type>) -> NewOp {
        if let Some(first) = self.types.first_mut() {
            *first = ty;
        }
        self
    }

    /// Names the results: this, or this with a number. A result that replaces a value takes that value's name.
    pub fn result_named(mut self, hint: &str) -> NewOp {
        self.result_hint = Some(hint.to_string());
        self
    }

    /// A copy leaves out the results that its original leaves out.
    fn leaves_out(&self, slot: usize) -> bool {
        matches!(self.op.outputs.get(slot), Some(None))
    }

    /// Chooses the place in the file.
    pub fn at(mut self, position: Position) -> NewOp {
        self.position = position;
        self
    }
}

/// An edit, applied as a whole or not at all.
#[derive(Clone, Debug)]
pub struct Patch {
    /// How far this edit may change results; never beyond its pass's class.
    pub safety: Safety,
    ops: Vec<NewOp>,
    constants: Vec<(String, Tensor)>,
    replacements: Vec<(ValueId, Operand)>,
    erased: Vec<OpId>,
    dropped: Vec<ValueId>,
    hoisted: Vec<OpId>,
    order: Option<Vec<OpId>>,
}

impl Patch {
    /// An empty edit of this class.
    pub fn new(safety: Safety) -> Patch {
        Patch {
            safety,
            ops: Vec::new(),
            constants: Vec::new(),
            replacements: Vec::new(),
            erased: Vec::new(),
            dropped: Vec::new(),
            hoisted: Vec::new(),
            order: None,
        }
    }

    /// Adds an operator; the result is its first result.
    pub fn add_op(&mut self, op: NewOp) -> Operand {
        self.ops.push(op);
        Operand::New { op: self.ops.len() - 1, slot: 0 }
    }

    /// Adds an initializer.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> Operand {
        self.constants.push((hint.to_string(), tensor));
        Operand::Constant(self.constants.len() - 1)
    }

    /// Makes every reader of `old` (operators, bodies, graph outputs) read `new`; operators of this patch read what
    /// they list. What only served `old` is erased; a new value takes over the name.
    pub fn replace_uses(&mut self, old: ValueId, new: impl Into<Operand>) {
        self.replacements.push((old, new.into()));
    }

    /// Erases an operator whose results nothing reads, and what only served it.
    pub fn erase(&mut self, op: OpId) {
        self.erased.push(op);
    }

    /// Drops an initializer that nothing reads.
    pub fn drop_initializer(&mut self, value: ValueId) {
        self.dropped.push(value);
    }

    /// Moves an operator up in the file: right after the last of its operands. Operators that are hoisted
    /// together are named operands first.
    pub fn hoist(&mut self, op: OpId) {
        self.hoisted.push(op);
    }

    /// Puts the operators in this order, which has each of them once and operands first; those that the patch erases
    /// may be left out.
    pub fn reorder(&mut self, order: Vec<OpId>) {
        self.order = Some(order);
    }

    /// Number of operators that the patch adds.
    pub fn added(&self) -> usize {
        self.ops.len()
    }
}

/// Why a patch was not applied. Nothing has changed then.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The number of patches that the caller allowed is used up.
    #[error("stopped after the allowed number of rewrites")]
    OutOfFuel,
    /// The edit may change results more than the caller allows.
    #[error("not bit-identical ({})", .0.name())]
    Unsafe(Safety),
    /// The new value does not have the type of the old one.
    #[error("'{value}' has type {old}, its replacement {new}")]
    Type {
        /// Name of the value.
        value: String,
        /// Type before.
        old: Type,
        /// Type of the replacement.
        new: Type,
    },
    /// A value to be erased or dropped has readers, or cannot be dropped.
    #[error("'{0}' is still in use")]
    InUse(String),
    /// Training refers to a value by its name, which the edit would take away.
    #[error("training refers to '{0}'")]
    Pinned(String),
    /// The replacement is a result that its operator leaves out.
    #[error("'{0}' would be replaced by a result that is left out")]
    LeftOut(String),
    /// A body hides the replacement behind a value of the same name.
    #[error("'{0}' is hidden within a body by a value of the same name")]
    Shadowed(String),
    /// The edit would make an operator depend on itself.
    #[error("the edit would close a cycle through '{0}'")]
    Cycle(String),
    /// An order that leaves an operator out, repeats one, or has one before what it reads.
    #[error("{0} has no place in the new order, or one before what it reads")]
    Order(String),
}

/// Applies patches to one graph.
pub struct Rewriter<'g> {
    graph: &'g mut Graph,
    names: &'g mut Names,
    allow: Safety,
    fuel: &'g mut Option<u64>,
    applied: u64,
    worst: Option<Safety>,
    /// How many operators have a name; from when it is first asked on.
    op_names: Option<HashMap<String, usize>>,
    /// Names that the bodies of an operator give themselves; from when they are first asked for on.
    body_names: RefCell<HashMap<OpId, HashSet<String>>>,
}

impl<'g> Rewriter<'g> {
    /// A rewriter that applies patches up to class `allow`, and no more than `fuel` of them.
    pub fn new(
        graph: &'g mut Graph,
        names: &'g mut Names,
        allow: Safety,
        fuel: &'g mut Option<u64>,
    ) -> Rewriter<'g> {
        let body_names = RefCell::default();
        Rewriter { graph, names, allow, fuel, applied: 0, worst: None, op_names: None, body_names }
    }

    /// The graph as it stands.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Patches applied so far.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The worst class among the patches applied.
    pub fn worst(&self) -> Option<Safety> {
        self.worst
    }

    /// The class up to which patches are applied.
    pub fn allows(&self) -> Safety {
        self.allow
    }

    /// True when no further patch will be applied.
    pub fn out_of_fuel(&self) -> bool {
        *self.fuel == Some(0)
    }

    /// A name that no value of the model has, for what a patch brings within a body.
    pub fn fresh_name(&mut self, hint: &str) -> String {
        self.names.fresh(hint)
    }

    /// Runs `edit` over each body of an operator, then brings the captured uses up to date.
    pub fn in_bodies(&mut self, op: OpId, edit: &mut dyn FnMut(&mut Rewriter<'_>)) {
        if self.graph.op(op).bodies().next().is_none() {
            return;
        }
        // A body's captured values learn what the enclosing graph found out about them since.
        let captures = self.graph.op(op).captures.iter();
        let outer_types = captures.map(|&v| (v, self.graph.value(v).ty.clone())).collect();
        let mut bodies: Vec<Graph> = self.graph.op_mut(op).bodies_mut().map(std::mem::take).collect();
        for body in &mut bodies {
            body.learn_captured(&outer_types);
            let mut inner = Rewriter::new(body, self.names, self.allow, self.fuel);
            edit(&mut inner);
            self.applied += inner.applied;
            self.worst = self.worst.max(inner.worst);
        }
        for (place, body) in self.graph.op_mut(op).bodies_mut().zip(bodies) {
            *place = body;
        }
        self.body_names.get_mut().remove(&op);
        self.graph.recapture(op);
    }

    /// Ends a pass: ids of erased operators are freed, ranks become positions.
    ///
    /// # Errors
    /// Never for edits made through patches; an operator on a cycle otherwise.
    pub fn finish(self) -> Result<u64, OpId> {
        self.graph.compact()?;
        Ok(self.applied)
    }

    /// Applies an edit.
    ///
    /// # Errors
    /// See [`Refusal`]; the graph is unchanged then.
    pub fn apply(&mut self, patch: Patch) -> Result<(), Refusal> {
        if self.out_of_fuel() {
            return Err(Refusal::OutOfFuel);
        }
        if patch.safety > self.allow {
            return Err(Refusal::Unsafe(patch.safety));
        }
        let types = self.check(&patch)?;
        self.worst = self.worst.max(Some(patch.safety));
        self.perform(patch, types);
        self.applied += 1;
        if let Some(fuel) = self.fuel {
            *fuel -= 1;
        }
        Ok(())
    }

    /// Types of the new operators' results, once everything about the patch is known to fit.
    fn check(&self, patch: &Patch) -> Result<Vec<Vec<Option<Type>>>, Refusal> {
        let graph = &*self.graph;
        let constant_types: Vec<Type> = patch.constants.iter().map(|(_, t)| t.ty().into()).collect();
        let mut types: Vec<Vec<Option<Type>>> = Vec::with_capacity(patch.ops.len());
        for new in &patch.ops {
            let constants: Vec<_> = (new.inputs.iter())
                .map(|i| match i {
                    Some(Operand::Value(v)) => graph.constant(*v),
                    Some(Operand::Constant(c)) => Some(std::borrow::Cow::Borrowed(&patch.constants[*c].1)),
                    _ => None,
                })
                .collect();
            let known: Vec<Known<'_>> = (new.inputs.iter().zip(&constants))
                .map(|(input, constant)| Known {
                    ty: input.and_then(|i| type_of(graph, &constant_types, &types, i)),
                    constant: constant.as_deref(),
                })
                .collect();
            let mut op = new.op.clone();
            // Inference asks which operands are there; their ids do not matter to it.
            op.inputs = new.inputs.iter().map(|i| i.map(|_| ValueId(0))).collect();
            op.outputs = vec![None; new.types.len()];
            let inferred = infer::infer(&op, graph.opset(&op.domain), &known);
            let merged = new.types.iter().enumerate().map(|(slot, declared)| {
                let inferred = inferred.get(slot).cloned().flatten();
                match (declared, inferred) {
                    (Some(d), Some(i)) => Some(i.merge(d).unwrap_or(i)),
                    (d, i) => i.or_else(|| d.clone()),
                }
            });
            types.push(merged.collect());
        }
        for (old, new) in &patch.replacements {
            if let Operand::New { op, slot } = *new
                && patch.ops[op].leaves_out(slot)
            {
                return Err(Refusal::LeftOut(graph.value(*old).name.clone()));
            }
            let old_type = graph.value(*old).ty.as_ref();
            if let (Some(old_type), Some(new_type)) =
                (old_type, type_of(graph, &constant_types, &types, *new))
                && !old_type.compatible(new_type)
            {
                let value = graph.value(*old).name.clone();
                return Err(Refusal::Type { value, old: old_type.clone(), new: new_type.clone() });
            }
            let renamed = match *new {
                Operand::Value(new) if graph.is_output(*old) => Some(new),
                _ => None,
            };
            if let Some(pinned) = renamed.into_iter().chain([*old]).find(|&v| graph.is_pinned(v)) {
                return Err(Refusal::Pinned(graph.value(pinned).name.clone()));
            }
            if matches!(graph.value(*old).def, Def::Input { .. }) && graph.is_output(*old) {
                // Input and output are one value with one name: neither can be parted from it.
                return Err(Refusal::InUse(graph.value(*old).name.clone()));
            }
            if let Operand::Value(new) = *new {
                self.check_visible(*old, new)?;
            }
        }
        self.check_acyclic(patch)?;
        self.check_order(patch)?;
        for &op in &patch.erased {
            for value in graph.op(op).results() {
                if graph.readers(value) > 0 {
                    return Err(Refusal::InUse(graph.value(value).name.clone()));
                }
            }
        }
        for &value in &patch.dropped {
            let is_initializer =
                matches!(graph.value(value).def, Def::Initializer(_) | Def::SparseInitializer(_));
            if !is_initializer || graph.readers(value) > 0 {
                return Err(Refusal::InUse(graph.value(value).name.clone()));
            }
        }
        Ok(types)
    }

    /// A body that reads `old` must be able to read `new` by its name.
    fn check_visible(&self, old: ValueId, new: ValueId) -> Result<(), Refusal> {
        let name = &self.graph.value(new).name;
        let mut body_names = self.body_names.borrow_mut();
        for at in self.graph.uses(old).filter(|at| at.slot == crate::Slot::Capture) {
            let hidden = body_names.entry(at.op).or_insert_with(|| {
                let mut names = HashSet::default();
                self.graph.op(at.op).bodies().for_each(|body| body.own_names(&mut names));
                names
            });
            if hidden.contains(name) {
                return Err(Refusal::Shadowed(name.clone()));
            }
        }
        Ok(())
    }

    /// An order has every operator once and each after those that it reads from.
    fn check_order(&self, patch: &Patch) -> Result<(), Refusal> {
        let Some(order) = &patch.order else { return Ok(()) };
        let graph = &*self.graph;
        let misplaced = |id: OpId| Err(Refusal::Order(graph.describe(id)));
        let mut placed = vec![false; graph.op_bound()];
        for &id in order {
            let ready = graph.predecessors(id).all(|p| placed[p.index()]);
            if !ready || std::mem::replace(&mut placed[id.index()], true) {
                return misplaced(id);
            }
        }
        let erased: HashSet<&OpId> = patch.erased.iter().collect();
        match graph.ops().find(|id| !placed[id.index()] && !erased.contains(id)) {
            Some(left_out) => misplaced(left_out),
            None => Ok(()),
        }
    }

    /// Nothing may come to depend on a reader of what it replaces, in the graph as it will be. Ranks bound the
    /// search: they never fall along an edge, so nothing below the first reader depends on one.
    fn check_acyclic(&self, patch: &Patch) -> Result<(), Refusal> {
        let graph = &*self.graph;
        // What operators that are there already will read: replacements take effect one after the other.
        let mut substitutes: HashMap<ValueId, Operand> = HashMap::default();
        for &(old, new) in patch.replacements.iter().rev() {
            let last = match new {
                Operand::Value(v) => substitutes.get(&v).copied().unwrap_or(new),
                _ => new,
            };
            substitutes.insert(old, last);
        }
        let readers = |old: &ValueId| graph.uses(*old).map(|at| at.op);
        let Some(first) = substitutes.keys().flat_map(readers).map(|op| graph.op(op).rank).min() else {
            return Ok(());
        };
        for (old, substitute) in &substitutes {
            let readers: HashSet<OpId> = readers(old).collect();
            let (mut seen, mut seen_new) = (HashSet::default(), HashSet::default());
            let mut pending = vec![*substitute];
            while let Some(operand) = pending.pop() {
                let op = match operand {
                    Operand::Constant(_) => continue,
                    Operand::New { op, .. } => {
                        if seen_new.insert(op) {
                            let new = &patch.ops[op];
                            pending.extend(new.inputs.iter().flatten());
                            pending.extend(captures_of(&new.op).into_iter().map(Operand::Value));
                        }
                        continue;
                    }
                    Operand::Value(v) => match graph.producer(v) {
                        Some(op) => op,
                        None => continue,
                    },
                };
                if readers.contains(&op) {
                    return Err(Refusal::Cycle(graph.value(*old).name.clone()));
                }
                if graph.op(op).rank >= first && seen.insert(op) {
                    let reads = graph.op(op).operands().chain(graph.op(op).captures.iter().copied());
                    pending.extend(reads.map(|v| substitutes.get(&v).copied().unwrap_or(v.into())));
                }
            }
        }
        Ok(())
    }

    fn perform(&mut self, patch: Patch, types: Vec<Vec<Option<Type>>>) {
        for (rank, op) in patch.order.into_iter().flatten().enumerate() {
            self.graph.op_mut(op).rank = rank as u64;
        }
        for op in patch.hoisted {
            let rank = self.graph.predecessors(op).map(|p| self.graph.op(p).rank).max().unwrap_or(0);
            self.graph.op_mut(op).rank = rank;
        }
        let mut constants = Vec::with_capacity(patch.constants.len());
        for (hint, tensor) in patch.constants {
            let ty = Some(tensor.ty().into());
            let name = self.names.fresh(&hint);
            constants.push(self.graph.new_value(name, ty, Def::Initializer(Box::new(tensor))));
        }
        let mut added = HashSet::default();
        let mut results: Vec<Vec<Option<ValueId>>> = Vec::with_capacity(patch.ops.len());
        let resolve = |results: &[Vec<Option<ValueId>>], operand: Operand| match operand {
            Operand::Value(v) => Some(v),
            Operand::New { op, slot } => results[op][slot],
            Operand::Constant(c) => Some(constants[c]),
        };
        // Ids do not tell which operator came first: those of erased ones are given out again.
        let has_last = patch.ops.iter().any(|new| new.position == Position::Last);
        let mut last = 0;
        if has_last {
            last = self.graph.ops().map(|id| self.graph.op(id).rank).max().unwrap_or(0);
        }
        for (new, types) in patch.ops.into_iter().zip(types) {
            let inputs: Vec<Option<ValueId>> =
                new.inputs.iter().map(|i| i.and_then(|i| resolve(&results, i))).collect();
            let after = inputs.iter().flatten().filter_map(|&v| self.graph.producer(v));
            let after = after.map(|op| self.graph.op(op).rank).max().unwrap_or(0);
            let rank = match new.position {
                Position::AfterOperands => after,
                Position::At(op) => after.max(self.graph.op(op).rank),
                Position::Last => {
                    last = last.max(after) + 1;
                    last
                }
            };
            let left_out: Vec<bool> = (0..types.len()).map(|slot| new.leaves_out(slot)).collect();
            let hint = new.result_hint.unwrap_or_else(|| {
                format!("{}_out", if new.op.name.is_empty() { &new.op.op_type } else { &new.op.name })
            });
            let mut outputs = Vec::with_capacity(types.len());
            for (slot, ty) in types.into_iter().enumerate() {
                let present = !left_out[slot];
                outputs.push(present.then(|| self.graph.new_value(self.names.fresh(&hint), ty, Def::Dead)));
            }
            let mut op = Op { inputs, outputs: outputs.clone(), rank, ..new.op };
            self.name_op(&mut op, new.has_own_name);
            let id = self.graph.insert_op(op);
            // Its bodies may read what stands further down than its operands.
            let last = self.graph.predecessors(id).map(|p| self.graph.op(p).rank).max();
            self.graph.raise(id, last.unwrap_or(0));
            added.insert(id);
            results.push(outputs);
        }
        let mut doomed: Vec<OpId> = patch.erased;
        let mut unread: Vec<ValueId> = patch.dropped;
        for (old, new) in patch.replacements {
            let fresh = !matches!(new, Operand::Value(_));
            let Some(new) = resolve(&results, new) else { continue };
            self.replace(old, new, fresh, &added);
            doomed.extend(self.graph.producer(old));
            unread.push(old);
        }
        // Not before all replacements are made: a later one may turn to what an earlier one left.
        unread.into_iter().for_each(|value| self.bury_if_dead(value));
        self.sweep(doomed);
    }

    /// Counts the name of an operator that is added; one that has to be its own is made so.
    fn name_op(&mut self, op: &mut Op, apart: bool) {
        let graph = &*self.graph;
        let count = || {
            let mut names: HashMap<String, usize> = HashMap::default();
            graph.ops().for_each(|id| *names.entry(graph.op(id).name.clone()).or_default() += 1);
            names
        };
        let Some(names) =
            (if apart { Some(self.op_names.get_or_insert_with(count)) } else { self.op_names.as_mut() })
        else {
            return;
        };
        while apart && names.get(&op.name).is_some_and(|&count| count > 0) {
            op.name += "_";
        }
        *names.entry(op.name.clone()).or_default() += 1;
    }

    /// `added` are the patch's own operators: they read what they list.
    fn replace(&mut self, old: ValueId, new: ValueId, fresh: bool, added: &HashSet<OpId>) {
        if old == new {
            return;
        }
        let graph = &mut *self.graph;
        if let (Some(a), Some(b)) = (&graph.value(new).ty, &graph.value(old).ty) {
            // At an output, the names that the file gives to sizes stay.
            if let Some(merged) = if graph.is_output(old) { b.merge(a) } else { a.merge(b) } {
                graph.value_mut(new).ty = Some(merged);
            }
        } else if graph.value(new).ty.is_none() {
            graph.value_mut(new).ty = graph.value(old).ty.clone();
        }
        let rank = graph.producer(new).map_or(0, |op| graph.op(op).rank);
        for at in graph.uses(old).filter(|at| !added.contains(&at.op)).collect::<Vec<Use>>() {
            graph.redirect(old, new, at);
            graph.raise(at.op, rank);
        }
        let by_op = matches!(graph.value(new).def, Def::Op { .. });
        // An input keeps its name, and a captured value only repeats one of the enclosing graph.
        let gives_name = !matches!(graph.value(old).def, Def::Input { .. } | Def::Captured { .. });
        if graph.is_output(old) {
            if by_op && !graph.is_output(new) {
                if gives_name {
                    self.swap_names(old, new);
                }
                self.graph.redirect_outputs(old, new);
            } else {
                // An output keeps its name, and the replacement has one of its own that must stay.
                let name = self.names.fresh(&format!("{}_old", graph.value(old).name));
                let ty = graph.value(new).ty.clone();
                let copy = graph.new_value(name, ty, Def::Dead);
                let rank = graph.producer(old).map(|op| graph.op(op).rank).unwrap_or(0);
                let rank = graph.producer(new).map_or(rank, |op| rank.max(graph.op(op).rank));
                graph.insert_op(Op { rank, ..Op::new("Identity", vec![Some(new)], vec![Some(copy)]) });
                if gives_name {
                    self.swap_names(old, copy);
                }
                self.graph.redirect_outputs(old, copy);
            }
        } else if fresh && gives_name && !graph.is_output(new) {
            // Keeping the name of what a reader knows makes reports and comparisons readable.
            self.swap_names(old, new);
        }
    }

    fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let name = std::mem::take(&mut self.graph.value_mut(a).name);
        let other = std::mem::replace(&mut self.graph.value_mut(b).name, name);
        self.graph.value_mut(a).name = other;
        let extra = self.graph.value(a).extra.clone();
        if self.graph.value(b).extra.is_empty() {
            self.graph.value_mut(b).extra = extra;
        }
    }

    fn bury_if_dead(&mut self, value: ValueId) {
        let unread = self.graph.readers(value) == 0;
        let droppable = matches!(
            self.graph.value(value).def,
            Def::Initializer(_) | Def::SparseInitializer(_) | Def::Captured { .. }
        );
        if unread && droppable {
            self.graph.bury(value);
        }
    }

    /// Erases these operators where nothing reads their results, and then what only served them.
    fn sweep(&mut self, mut doomed: Vec<OpId>) {
        while let Some(op) = doomed.pop() {
            let graph = &mut *self.graph;
            if !graph.is_live(op) || graph.op(op).results().any(|v| graph.readers(v) > 0) {
                continue;
            }
            let read: Vec<ValueId> =
                graph.op(op).operands().chain(graph.op(op).captures.iter().copied()).collect();
            if let Some(count) = self.op_names.as_mut().and_then(|names| names.get_mut(&graph.op(op).name)) {
                *count -= 1;
            }
            graph.erase_op(op);
            for value in read {
                doomed.extend(self.graph.producer(value));
                self.bury_if_dead(value);
            }
        }
    }
}

fn type_of<'a>(
    graph: &'a Graph,
    constants: &'a [Type],
    ops: &'a [Vec<Option<Type>>],
    operand: Operand,
) -> Option<&'a Type> {
    match operand {
        Operand::Value(v) => graph.value(v).ty.as_ref(),
        Operand::New { op, slot } => ops.get(op)?.get(slot)?.as_ref(),
        Operand::Constant(c) => constants.get(c),
    }
}

impl Graph {
    /// Tells captured values the types that the enclosing graph knows.
    fn learn_captured(&mut self, outer: &HashMap<ValueId, Option<Type>>) {
        for id in self.values().collect::<Vec<_>>() {
            if let Def::Captured { outer: from } = self.value(id).def
                && let Some(Some(ty)) = outer.get(&from)
            {
                self.value_mut(id).ty = Some(ty.clone());
            }
        }
    }

    /// Names of the values that are defined in this body or in a body within it: they hide those of the graphs around it.
    fn own_names(&self, names: &mut HashSet<String>) {
        let own = self.values().filter(|&v| !matches!(self.value(v).def, Def::Captured { .. }));
        names.extend(own.map(|v| self.value(v).name.clone()));
        self.ops().for_each(|op| self.op(op).bodies().for_each(|body| body.own_names(names)));
    }
}

#[cfg(test)]
mod tests;
