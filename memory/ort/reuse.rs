//! Which values share a buffer: ONNX Runtime's allocation planner (`core/framework/allocation_planner.cc`).
//!
//! - **Uses** are counted per buffer (`ComputeReuseCount`): one for its value's definition, one for each operand
//!   position that reads the value, one for each operator whose bodies capture it, one for each time it is a graph
//!   output. What exists before the run (graph inputs, initializers, captured values) has one more for its owner, and
//!   so never runs out of uses.
//! - In the order of execution, each result (`ComputeSingleStreamReusePlan`)
//!   1. that is a graph output gets memory of its own, which the caller keeps; except that in the body of a `Loop`,
//!      the `Identity` of what is given to the body is that value itself;
//!   2. that is a view shares the buffer of its operand, whatever that is;
//!   3. may take over the buffer of an operand that the kernel offers if this is the last use of the buffer and both
//!      are of the same size (`FindReusableInput`);
//!   4. else takes the buffer of the same size that was given up last (`FindReusableTensor`), unless it has no
//!      dimensions or nothing reads it;
//!   5. else gets a buffer of its own.
//! - After each operator, buffers without uses left are given up: those of its operands first, then of what its bodies
//!   capture, then of its results.
//! - **The same size** (`SameSize`) means elements of equal width, and dimensions that are equal numbers or equal
//!   names; not an equal number of bytes. Strings have no size.
//! - A buffer is freed after the last operator that reads any value in it (`GenerateDeallocationPlan`). So a buffer that
//!   was given up and taken again is held in between, and one that nothing reads is held to the end.

use std::ops::Range;

use dmopt_ir::hash::HashMap;
use dmopt_ir::{Def, Dim, Graph, Op, OpId, ValueId};

use super::captures::implicit_inputs;
use super::known::Known;
use crate::Kernels;

/// Whose memory a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// It exists before the run: an input, a weight, a value of the enclosing graph.
    Outside,
    /// A graph output.
    Output,
    /// Everything else.
    Inside,
}

/// The buffer of every value.
#[derive(Debug)]
pub(super) struct Buffers {
    owner: Vec<ValueId>,
    origin: Vec<Origin>,
}

impl Buffers {
    /// The value that the buffer of this value was made for.
    pub fn owner(&self, value: ValueId) -> ValueId {
        self.owner[value.index()]
    }

    /// Whose the buffer of this value is.
    pub fn origin(&self, value: ValueId) -> Origin {
        self.origin[self.owner(value).index()]
    }

    /// Assigns buffers for this order of execution.
    pub fn assign(graph: &Graph, order: &[OpId], offers: &Offers) -> Buffers {
        let mut state = State::new(graph, offers);
        for &id in order {
            let op = graph.op(id);
            for value in op.results() {
                match state.taken_over(op, value) {
                    Some(other) => state.share(value, other),
                    None => {
                        let is_output = graph.is_output(value);
                        state.buffers.origin[value.index()] =
                            if is_output { Origin::Output } else { Origin::Inside };
                    }
                }
            }
            let read = op.operands().chain(implicit_inputs(op));
            read.chain(op.results()).for_each(|value| state.used(value));
        }
        state.buffers
    }
}

/// Number of a size; values of equal numbers are of the same size.
type Class = u32;

/// What decides about buffers whatever the order is, by value.
#[derive(Debug)]
pub(super) struct Offers {
    of: Vec<Offer>,
    /// How many sizes there are.
    classes: usize,
}

/// The memory that is offered for a result, beside what was given up.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Offer {
    /// The value that it always shares the buffer of.
    is: Option<ValueId>,
    /// The operands whose buffer it may take over.
    in_place: Range<usize>,
    /// True if it may take what was given up.
    again: bool,
    class: Option<Class>,
}

impl Offers {
    /// What kernels offer for the results of a graph. `known` has the shapes of values, as far as they are known; `in_loop`
    /// tells that the graph is the body of a `Loop`.
    pub fn new(graph: &Graph, kernels: Kernels, known: &Known<'_>, in_loop: bool) -> Offers {
        let mut of = vec![Offer::default(); graph.value_bound()];
        let mut classes: HashMap<(u32, &[Dim]), Class> = HashMap::default();
        for value in graph.values() {
            let next = classes.len() as Class;
            of[value.index()].class =
                size(graph, value, known).map(|key| *classes.entry(key).or_insert(next));
        }
        let carries = |op: &Op| {
            // The number of the round changes in place, so that alone is copied.
            let number = graph.inputs().first().copied();
            let read = op.input(0).filter(|&x| op.is("Identity") && Some(x) != number)?;
            let is_given = matches!(graph.value(read).def, Def::Input { .. } | Def::Captured { .. });
            (in_loop && is_given).then_some(read)
        };
        for id in graph.ops() {
            let op = graph.op(id);
            for (slot, value) in op.outputs.iter().enumerate() {
                let Some(value) = *value else { continue };
                let offer = &mut of[value.index()];
                if graph.is_output(value) {
                    offer.is = carries(op);
                    continue;
                }
                let rank = graph.tensor_type(value).and_then(|ty| ty.rank());
                offer.is = kernels.alias(graph, id, slot).and_then(|operand| op.input(operand));
                offer.in_place = kernels.in_place(graph, id, slot);
                offer.again = rank.is_some_and(|rank| rank > 0) && graph.uses(value).len() > 0;
            }
        }
        Offers { of, classes: classes.len() }
    }
}

struct State<'o> {
    offers: &'o [Offer],
    buffers: Buffers,
    /// Uses that are left, by owner.
    uses: Vec<usize>,
    /// Buffers that were given up, by size, the last one last.
    free: Vec<Vec<ValueId>>,
}

impl<'o> State<'o> {
    fn new(graph: &Graph, offers: &'o Offers) -> State<'o> {
        let bound = graph.value_bound();
        let mut uses = vec![0; bound];
        // Values that are not defined have no readers; any owner does.
        let mut owner: Vec<ValueId> = graph.values().next().map_or(Vec::new(), |any| vec![any; bound]);
        for value in graph.values() {
            owner[value.index()] = value;
            uses[value.index()] = graph.readers(value) + 1;
        }
        State {
            offers: &offers.of,
            buffers: Buffers { owner, origin: vec![Origin::Outside; bound] },
            uses,
            free: vec![Vec::new(); offers.classes],
        }
    }

    /// The value whose buffer a result shares.
    fn taken_over(&mut self, op: &Op, value: ValueId) -> Option<ValueId> {
        let offer = &self.offers[value.index()];
        if offer.is.is_some() {
            return offer.is;
        }
        let class = offer.class?;
        let fits = |other: &ValueId| {
            let owner = self.buffers.owner(*other);
            self.uses[owner.index()] == 1 && self.offers[other.index()].class == Some(class)
        };
        let mut offered = offer.in_place.clone().filter_map(|operand| op.input(operand));
        if let Some(operand) = offered.find(fits) {
            return Some(operand);
        }
        if offer.again { self.free[class as usize].pop() } else { None }
    }

    fn share(&mut self, value: ValueId, other: ValueId) {
        let owner = self.buffers.owner(other);
        self.buffers.owner[value.index()] = owner;
        self.uses[owner.index()] += self.uses[value.index()];
    }

    /// One use less; gives up the buffer after the last one.
    fn used(&mut self, value: ValueId) {
        let owner = self.buffers.owner(value);
        self.uses[owner.index()] -= 1;
        if self.uses[owner.index()] == 0
            && let Some(class) = self.offers[owner.index()].class
        {
            self.free[class as usize].push(owner);
        }
    }
}

/// Bytes of an element, and the dimensions where all of them are known.
fn size<'k>(graph: &Graph, value: ValueId, known: &'k Known<'_>) -> Option<(u32, &'k [Dim])> {
    let dtype = graph.tensor_type(value)?.dtype;
    let dims = known[value.index()].as_deref().filter(|dims| !dims.contains(&Dim::Unknown))?;
    Some((dtype.bits()?.div_ceil(8), dims))
}
