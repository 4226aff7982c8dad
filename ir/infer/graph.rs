//! Inference over a whole graph, and sizes put in place of symbols.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::control::{Scanned, carried, loop_inputs};
use super::{Arg, Call, Int, Ints, Size};
use crate::{Def, Dim, Graph, OpId, Tensor, TensorType, Type, ValueId};

/// Where a file declares another type than follows from the operators: the file is wrong, or a runtime refuses
/// it. The declaration stays at the boundary; elsewhere only what both say is kept.
#[derive(Clone, PartialEq, Debug)]
pub struct Note {
    /// Name of the value.
    pub value: String,
    /// What the file says.
    pub declared: Type,
    /// What follows.
    pub inferred: Type,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is declared as {}, but its operator gives {}",
            self.value, self.declared, self.inferred
        )
    }
}

/// Infers the types of all values of a graph and its bodies, in order. A declared type fills in what inference
/// has no answer for; where the two contradict each other, a note says so.
///
/// Inferred sizes win over declared ones: a stale number beside a symbol is common in files, and harmless there.
/// At the outputs of the graph, declared sizes stay.
pub fn infer_graph(graph: &mut Graph) -> Vec<Note> {
    let mut notes = Vec::new();
    walk(graph, &[], &Outer::default(), &mut notes);
    notes
}

/// A copy with the types that follow from inputs, weights and operators: what a file declares of values that are computed
/// proves nothing. Bodies stay as they are.
pub fn with_proven_types(graph: &Graph) -> Graph {
    let mut bare = graph.clone();
    for id in graph.values().filter(|&id| graph.producer(id).is_some()) {
        bare.value_mut(id).ty = None;
    }
    infer_graph(&mut bare);
    bare
}

/// Names of the outputs for which the file declares more than follows from the operators. What is found out about those
/// later, as when their operands are computed beforehand, may contradict it.
pub fn unproven_outputs(graph: &Graph) -> HashSet<String> {
    let mut bare = graph.clone();
    graph.outputs().iter().for_each(|&id| bare.value_mut(id).ty = None);
    infer_graph(&mut bare);
    let is_proven = |id: ValueId| match (&graph.value(id).ty, &bare.value(id).ty) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(declared), Some(follows)) => follows.merge(declared).as_ref() == Some(follows),
    };
    let unproven = graph.outputs().iter().filter(|id| !is_proven(**id));
    unproven.map(|&id| graph.value(id).name.clone()).collect()
}

/// What is known of one element of the target of a Reshape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Element {
    /// The number.
    Known(i64),
    /// The size that dimensions of this name have.
    Symbol(Arc<str>),
    /// Nothing.
    Unknown,
}

/// The targets of the Reshapes of a graph that operators compute, as far as they are known element by element. A -1 is
/// given as the number that it stands for, where that follows. A body is not told what is known around it.
pub fn reshape_targets(graph: &Graph) -> HashMap<OpId, Vec<Element>> {
    let mut graph = graph.clone();
    let values = walk(&mut graph, &[], &Outer::default(), &mut Vec::new());
    let target = |id: OpId| {
        let target = values[graph.op(id).input(1)?.index()].as_ref().filter(|ints| ints.is_vector())?;
        // From the operands alone: what the file declares for the result proves nothing.
        let result = with_call(&graph, id, &values, |call| call.infer()).pop()?;
        let dims = result.as_ref()?.tensor()?.shape.as_deref()?;
        let element = |(int, dim): (&Int, &Dim)| match (int.number(), int.dim(), dim) {
            (Some(-1), _, Dim::Known(n)) if *n > 0 => {
                i64::try_from(*n).map_or(Element::Known(-1), Element::Known)
            }
            (Some(n), _, _) => Element::Known(n),
            (None, Dim::Symbol(name), _) => Element::Symbol(name),
            _ => Element::Unknown,
        };
        Some((id, target.elements.iter().zip(dims).map(element).collect()))
    };
    graph.ops().filter(|&id| graph.op(id).is("Reshape")).filter_map(target).collect()
}

/// After this many rounds, and in bodies nested deeper than this, nothing is assumed of carried values: searching
/// for what stays would take too long.
const MAX_ROUNDS: u32 = 8;
const MAX_DEPTH: u32 = 3;

/// What a body is told about the graphs around it.
#[derive(Default)]
struct Outer {
    depth: u32,
    known: HashMap<ValueId, (Option<Type>, Option<Ints>)>,
}

/// Infers one graph: a body is told the types of its inputs and what it captures. Gives what is known of the elements
/// of its values, by id.
fn walk(
    graph: &mut Graph,
    inputs: &[Option<Type>],
    outer: &Outer,
    notes: &mut Vec<Note>,
) -> Vec<Option<Ints>> {
    let mut values: Vec<Option<Ints>> = vec![None; graph.value_bound()];
    let Ok(order) = graph.order() else { return values };
    for (slot, ty) in inputs.iter().enumerate() {
        if let (Some(&id), Some(ty)) = (graph.inputs().get(slot), ty) {
            settle(graph, id, ty.clone(), notes);
        }
    }
    for id in 0..graph.value_bound() as u32 {
        let id = ValueId(id);
        match &graph.value(id).def {
            Def::Captured { outer: from } => {
                let Some((ty, ints)) = outer.known.get(from) else { continue };
                values[id.index()] = ints.clone();
                if let Some(ty) = ty {
                    graph.value_mut(id).ty = Some(ty.clone());
                }
            }
            Def::Initializer(tensor) if graph.value(id).ty.is_none() => {
                let ty = tensor.ty();
                graph.value_mut(id).ty = Some(ty.into());
            }
            _ => {}
        }
    }
    for op in order {
        if graph.op(op).bodies().next().is_some() {
            walk_bodies(graph, op, &values, outer.depth, notes);
        }
        let (types, ints) = with_call(graph, op, &values, |call| {
            let types = call.infer();
            let ints = call.values(&types);
            (types, ints)
        });
        let results = graph.op(op).outputs.clone();
        for (result, ty) in results.iter().zip(types) {
            if let (Some(id), Some(ty)) = (*result, ty) {
                settle(graph, id, ty, notes);
            }
        }
        for (result, ints) in results.into_iter().zip(ints) {
            if let Some(id) = result {
                values[id.index()] = ints;
            }
        }
    }
    values
}

/// Runs `f` on an operator with all that is known about its operands.
fn with_call<R>(graph: &Graph, op: OpId, values: &[Option<Ints>], f: impl FnOnce(&Call<'_>) -> R) -> R {
    let op = graph.op(op);
    let constants: Vec<Option<std::borrow::Cow<'_, Tensor>>> =
        op.inputs.iter().map(|v| graph.constant((*v)?)).collect();
    let args: Vec<Arg<'_>> = (op.inputs.iter().zip(&constants))
        .map(|(id, constant)| Arg {
            ty: id.and_then(|id| graph.value(id).ty.as_ref()),
            constant: constant.as_deref(),
            ints: id.and_then(|id| values[id.index()].as_ref()),
        })
        .collect();
    f(&Call { op, opset: graph.opset(&op.domain), args: &args })
}

/// Gives a value the type that follows, together with what is declared.
fn settle(graph: &mut Graph, id: ValueId, inferred: Type, notes: &mut Vec<Note>) {
    let boundary = graph.is_output(id);
    let value = graph.value_mut(id);
    let Some(declared) = &value.ty else {
        value.ty = Some(inferred);
        return;
    };
    if *declared == inferred {
        return;
    }
    if !declared.compatible(&inferred) {
        notes.push(Note {
            value: value.name.clone(),
            declared: declared.clone(),
            inferred: inferred.clone(),
        });
        if !boundary {
            value.ty = super::sequence::join(declared, &inferred);
        }
        return;
    }
    value.ty = match (declared, &inferred) {
        _ if boundary => declared.merge(&inferred),
        (Type::Tensor(declared), Type::Tensor(inferred)) => Some(fill(inferred, declared).into()),
        _ => Some(inferred),
    };
}

/// The inferred type, with declared dimensions where it has none.
fn fill(inferred: &TensorType, declared: &TensorType) -> TensorType {
    let shape = match (&inferred.shape, &declared.shape) {
        (Some(a), Some(b)) => {
            let dims = a.iter().zip(b).map(|(x, y)| if *x == Dim::Unknown { y } else { x });
            Some(dims.cloned().collect())
        }
        (a, b) => a.clone().or_else(|| b.clone()),
    };
    TensorType { dtype: inferred.dtype, shape }
}

/// Infers the bodies of an operator. A carried value may change its shape from round to round: what is assumed
/// of it is weakened until a round no longer changes it.
fn walk_bodies(graph: &mut Graph, id: OpId, values: &[Option<Ints>], depth: u32, notes: &mut Vec<Note>) {
    let known = |v: ValueId| {
        let ints = values[v.index()].clone().or_else(|| Ints::of(&*graph.constant(v)?));
        (v, (graph.value(v).ty.clone(), ints))
    };
    let known = graph.op(id).captures.iter().map(|&v| known(v)).collect();
    let outer = Outer { depth: depth + 1, known };
    let operand_types: Vec<Option<Type>> =
        graph.op(id).inputs.iter().map(|v| v.and_then(|v| graph.value(v).ty.clone())).collect();
    let standard = |name: &str| graph.op(id).is(name);
    let (is_loop, is_scan) = (standard("Loop"), standard("Scan"));
    let mut inputs: Vec<Option<Type>> = match (is_loop, is_scan) {
        (true, _) => loop_inputs(operand_types.get(2..).unwrap_or_default()),
        (_, true) => with_call(graph, id, values, |call| {
            let scanned = Scanned::of(call);
            let input = |slot| scanned.as_ref().and_then(|s| s.body_input(call, slot));
            (0..call.args.len()).map(input).collect()
        }),
        _ => Vec::new(),
    };
    // Where the carried values begin among the inputs and outputs of the body, and how many there are.
    let (first_in, first_out) = if is_loop { (2, 1) } else { (0, 0) };
    let count = match (is_loop, is_scan) {
        (true, _) => inputs.len() - 2,
        (_, true) => with_call(graph, id, values, |call| Scanned::of(call).map_or(0, |s| s.state)),
        _ => 0,
    };
    let mut bodies: Vec<Graph> = graph.op_mut(id).bodies_mut().map(std::mem::take).collect();
    let rounds = if depth < MAX_DEPTH { MAX_ROUNDS } else { 0 };
    for body in &mut bodies {
        let before = Types::of(body);
        let mark = notes.len();
        for round in 0.. {
            if round == rounds {
                inputs[first_in..first_in + count].fill(None);
            }
            walk(body, &inputs, &outer, notes);
            if round == rounds {
                break;
            }
            let mut changed = false;
            for i in 0..count {
                let after = body.outputs().get(first_out + i).and_then(|&v| body.value(v).ty.as_ref());
                let assumed = inputs[first_in + i].as_ref();
                let weaker = carried(assumed, after);
                changed |= weaker.as_ref() != assumed;
                inputs[first_in + i] = weaker;
            }
            if !changed {
                break;
            }
            before.restore(body);
            notes.truncate(mark);
        }
    }
    for (place, body) in graph.op_mut(id).bodies_mut().zip(bodies) {
        *place = body;
    }
}

/// The types of a graph and its bodies.
struct Types {
    own: Vec<Option<Type>>,
    bodies: Vec<(OpId, Vec<Types>)>,
}

impl Types {
    fn of(graph: &Graph) -> Types {
        let own = (0..graph.value_bound() as u32).map(|i| graph.value(ValueId(i)).ty.clone()).collect();
        let with_bodies = graph.ops().filter(|&op| graph.op(op).bodies().next().is_some());
        let bodies = with_bodies.map(|op| (op, graph.op(op).bodies().map(Types::of).collect())).collect();
        Types { own, bodies }
    }

    fn restore(&self, graph: &mut Graph) {
        for (i, ty) in self.own.iter().enumerate() {
            graph.value_mut(ValueId(i as u32)).ty = ty.clone();
        }
        for (op, types) in &self.bodies {
            graph.op_mut(*op).bodies_mut().zip(types).for_each(|(body, types)| types.restore(body));
        }
    }
}

/// Calls `f` for each dimension in a type.
pub(super) fn each_dim(ty: &Type, f: &mut dyn FnMut(&Dim)) {
    match ty {
        Type::Tensor(t) | Type::Sparse(t) => t.shape.iter().flatten().for_each(f),
        Type::Sequence(inner) | Type::Optional(inner) | Type::Map { value: inner, .. } => each_dim(inner, f),
        Type::Opaque { .. } => {}
    }
}

pub(super) fn each_dim_mut(ty: &mut Type, f: &mut dyn FnMut(&mut Dim)) {
    match ty {
        Type::Tensor(t) | Type::Sparse(t) => t.shape.iter_mut().flatten().for_each(f),
        Type::Sequence(inner) | Type::Optional(inner) | Type::Map { value: inner, .. } => {
            each_dim_mut(inner, f)
        }
        Type::Opaque { .. } => {}
    }
}

fn collect_symbols(dim: &Dim, symbols: &mut BTreeSet<String>) {
    if let Some(size) = Size::of(dim) {
        size.each_symbol(&mut |name| {
            symbols.insert(name.to_string());
        });
    }
}

/// Why a size could not be fixed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BindError {
    /// No dimension of the model has this name.
    #[error("no dimension is named '{name}'; there are: {}", if .known.is_empty() { "none" } else { .known })]
    UnknownSymbol {
        /// The name.
        name: String,
        /// The names that there are, joined by commas.
        known: String,
    },
    /// The graph has no such input.
    #[error("no input is named '{name}'; there are: {known}")]
    UnknownInput {
        /// The name.
        name: String,
        /// The names that there are, joined by commas.
        known: String,
    },
    /// The input is not a dense tensor of declared type.
    #[error("input '{0}' is not a tensor")]
    NotATensor(String),
    /// The number of dimensions differs.
    #[error("input '{name}' has {expected} dimensions, not {given}")]
    Rank {
        /// Name of the input.
        name: String,
        /// Dimensions that it has.
        expected: usize,
        /// Dimensions that were given.
        given: usize,
    },
    /// A dimension has another size already.
    #[error("dimension {axis} of input '{name}' is {size}, not {given}")]
    Differs {
        /// Name of the input.
        name: String,
        /// Position of the dimension.
        axis: usize,
        /// Size that it has.
        size: Dim,
        /// Size that was given.
        given: u64,
    },
}

impl Graph {
    /// The names that the types of this graph and its bodies give to sizes, sorted.
    pub fn dim_symbols(&self) -> BTreeSet<String> {
        let mut symbols = BTreeSet::new();
        self.collect_dim_symbols(&mut symbols);
        symbols
    }

    fn collect_dim_symbols(&self, symbols: &mut BTreeSet<String>) {
        for id in self.values() {
            if let Some(ty) = &self.value(id).ty {
                each_dim(ty, &mut |dim| collect_symbols(dim, symbols));
            }
        }
        for op in self.ops() {
            self.op(op).bodies().for_each(|body| body.collect_dim_symbols(symbols));
        }
    }

    /// Puts sizes in place of symbols in every type, in bodies too. Run [`infer_graph`] afterwards.
    ///
    /// # Errors
    /// A name that no dimension has; nothing has changed then.
    pub fn bind_dims(&mut self, sizes: &BTreeMap<String, u64>) -> Result<(), BindError> {
        let symbols = self.dim_symbols();
        if let Some(name) = sizes.keys().find(|name| !symbols.contains(*name)) {
            let known = symbols.into_iter().collect::<Vec<_>>().join(", ");
            return Err(BindError::UnknownSymbol { name: name.clone(), known });
        }
        self.substitute_dims(sizes);
        Ok(())
    }

    fn substitute_dims(&mut self, sizes: &BTreeMap<String, u64>) {
        let mut substitute = |dim: &mut Dim| {
            let Some(size) = Size::of(dim) else { return };
            if size.any_symbol(&|name| sizes.contains_key(name)) {
                *dim = super::dim(size.substitute(&|name| sizes.get(name).copied()));
            }
        };
        for id in self.values().collect::<Vec<_>>() {
            if let Some(ty) = &mut self.value_mut(id).ty {
                each_dim_mut(ty, &mut substitute);
            }
        }
        self.each_body_mut(|body| body.substitute_dims(sizes));
    }

    /// Fixes the sizes of an input, outermost first. Where the input names a size, the name gets that size
    /// everywhere. Run [`infer_graph`] afterwards.
    ///
    /// # Errors
    /// See [`BindError`]; nothing has changed then.
    pub fn set_input_shape(&mut self, name: &str, dims: &[u64]) -> Result<(), BindError> {
        let Some(&id) = self.inputs().iter().find(|&&v| self.value(v).name == name) else {
            let names: Vec<&str> = self.inputs().iter().map(|&v| self.value(v).name.as_str()).collect();
            return Err(BindError::UnknownInput { name: name.to_string(), known: names.join(", ") });
        };
        let Some(Type::Tensor(ty)) = &self.value(id).ty else {
            return Err(BindError::NotATensor(name.to_string()));
        };
        let mut sizes = BTreeMap::new();
        if let Some(shape) = &ty.shape {
            if shape.len() != dims.len() {
                let (expected, given) = (shape.len(), dims.len());
                return Err(BindError::Rank { name: name.to_string(), expected, given });
            }
            for (axis, (dim, &given)) in shape.iter().zip(dims).enumerate() {
                let size = match dim {
                    Dim::Known(n) => *n,
                    Dim::Symbol(symbol) => *sizes.entry(symbol.to_string()).or_insert(given),
                    Dim::Unknown => given,
                };
                if size != given {
                    let size = Dim::Known(size);
                    return Err(BindError::Differs { name: name.to_string(), axis, size, given });
                }
            }
        }
        let dtype = ty.dtype;
        self.value_mut(id).ty = Some(TensorType::known(dtype, dims).into());
        self.substitute_dims(&sizes);
        Ok(())
    }
}
