//! What must hold for every graph, after import and after every pass:
//!
//! 1. **Defined**: what an operator reads and a graph puts out is defined, in this graph, by something that says
//!    so itself: an operator and its result name each other, inputs are listed as inputs, and nothing belongs to
//!    an erased operator.
//! 2. **Indexed**: the uses that values keep, the counts of graph outputs, and the edges between operators say
//!    exactly what the operand lists say.
//! 3. **Acyclic**: no operator depends on its own result.
//! 4. **Ranked**: the place in the file never falls along an edge.
//! 5. **Named**: no two values of a graph share a name. (A body may reuse a name of the graphs around it, as files
//!    do; a value that it captures is known by its id, and the exporter tells the two apart.)
//! 6. **Captured**: what a body reads from around it exists there, and an operator's list of captures is what its
//!    bodies read.
//! 7. **Typed**: constants have the type of their tensors, and what inference finds for an operator's results is
//!    compatible with their types.
//! 8. **Imported**: the operator set of every operator has a version.
//!
//! And for a pass: the [`Boundary`] (inputs and outputs, their names, order and types; names of pinned values) stays.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use crate::infer::{self, Known};
use crate::{Def, Graph, Model, OpId, Slot, Tensor, Type, Use, ValueId, text};

/// Which of the invariants is broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Invariant {
    Defined,
    Indexed,
    Acyclic,
    Ranked,
    Named,
    Captured,
    Typed,
    Imported,
    /// Inputs and outputs of the graph are as before.
    Boundary,
}

/// One broken invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What is wrong, in a sentence.
    pub reason: String,
    /// The value whose type is wrong, where that is what is wrong.
    pub value: Option<String>,
    /// The operator as text, where there is one.
    pub op: Option<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.op {
            Some(op) => write!(f, "\n    {op}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a graph and its bodies; empty when nothing is.
pub fn verify(graph: &Graph) -> Vec<Violation> {
    let mut verifier = Verifier { violations: Vec::new() };
    verifier.graph(graph, None);
    verifier.violations
}

/// Everything that is wrong with the graphs of a model, functions included.
pub fn verify_model(model: &Model) -> Vec<Violation> {
    let graphs = std::iter::once(&model.graph).chain(model.functions.iter().map(|f| &f.graph));
    graphs.flat_map(verify).collect()
}

/// Inputs and outputs of a graph: what a pass must leave as it is.
#[derive(Clone, PartialEq, Debug)]
pub struct Boundary {
    inputs: Vec<(String, Option<Type>)>,
    outputs: Vec<(String, Option<Type>)>,
    pinned: BTreeSet<String>,
}

impl Boundary {
    /// The boundary of a graph now.
    pub fn of(graph: &Graph) -> Boundary {
        let side = |values: &[ValueId]| {
            values.iter().map(|&v| (graph.value(v).name.clone(), graph.value(v).ty.clone())).collect()
        };
        let pinned = graph.values().filter(|&v| graph.is_pinned(v)).map(|v| graph.value(v).name.clone());
        Boundary { inputs: side(graph.inputs()), outputs: side(graph.outputs()), pinned: pinned.collect() }
    }

    /// What has changed since: names, their order, or types beyond what inference may add.
    pub fn check(&self, graph: &Graph) -> Vec<Violation> {
        let now = Boundary::of(graph);
        let lost = |name: &String| Violation {
            invariant: Invariant::Boundary,
            reason: format!("training refers to '{name}', which is gone"),
            value: None,
            op: None,
        };
        let mut violations: Vec<Violation> = self.pinned.difference(&now.pinned).map(lost).collect();
        for (side, before, after) in
            [("input", &self.inputs, &now.inputs), ("output", &self.outputs, &now.outputs)]
        {
            let names = |side: &[(String, Option<Type>)]| {
                side.iter().map(|(name, _)| format!("'{name}'")).collect::<Vec<_>>().join(", ")
            };
            let mut report = |reason| {
                violations.push(Violation { invariant: Invariant::Boundary, reason, value: None, op: None })
            };
            if names(before) != names(after) {
                report(format!("the {side}s of the graph were {}, now {}", names(before), names(after)));
                continue;
            }
            for ((name, old), (_, new)) in before.iter().zip(after) {
                match (old, new) {
                    (Some(old), Some(new)) if !old.compatible(new) => {
                        report(format!("{side} '{name}' of the graph was {old}, now {new}"));
                    }
                    (Some(old), None) => {
                        report(format!("{side} '{name}' of the graph was {old}, now unknown"))
                    }
                    _ => {}
                }
            }
        }
        violations
    }
}

struct Verifier {
    violations: Vec<Violation>,
}

impl Verifier {
    fn report(&mut self, invariant: Invariant, reason: String, at: Option<(&Graph, OpId)>) {
        let op = at.map(|(graph, op)| text::print_op(graph, op));
        self.violations.push(Violation { invariant, reason, value: None, op });
    }

    fn graph(&mut self, graph: &Graph, outer: Option<&Graph>) {
        let sound = self.references(graph);
        self.names(graph);
        self.captured(graph, outer);
        if !sound {
            // What follows looks through references and needs them to lead somewhere.
            return;
        }
        self.index(graph);
        self.order(graph);
        self.types(graph);
        for id in graph.ops() {
            let op = graph.op(id);
            if graph.opset(&op.domain) == 0 {
                let reason = format!("no version of the operator set '{}' is imported", op.domain);
                self.report(Invariant::Imported, reason, Some((graph, id)));
            }
        }
        for body in graph.ops().flat_map(|id| graph.op(id).bodies()) {
            self.graph(body, Some(graph));
        }
    }

    /// Invariant 1; false when ids lead outside the graph.
    fn references(&mut self, graph: &Graph) -> bool {
        let mut sound = true;
        let mut check = |this: &mut Self, value: ValueId, what: &str, at: Option<OpId>| {
            let at = at.map(|op| (graph, op));
            if value.index() >= graph.value_bound() {
                sound = false;
                this.report(Invariant::Defined, format!("{what} is no value of this graph"), at);
                return;
            }
            let reason = match &graph.value(value).def {
                Def::Dead => format!("{what} '{}' is not defined", graph.value(value).name),
                Def::Op { op, .. } if !graph.is_live(*op) => {
                    format!("{what} '{}' is the result of an erased operator", graph.value(value).name)
                }
                _ => return,
            };
            this.report(Invariant::Defined, reason, at);
        };
        for id in graph.ops() {
            let op = graph.op(id);
            for (slot, value) in op.inputs.iter().enumerate() {
                if let Some(value) = value {
                    check(self, *value, &format!("operand {slot}"), Some(id));
                }
            }
            op.captures.iter().for_each(|&value| check(self, value, "captured value", Some(id)));
            op.results().for_each(|value| check(self, value, "result", Some(id)));
        }
        graph.outputs().iter().for_each(|&value| check(self, value, "output of the graph", None));
        graph.inputs().iter().for_each(|&value| check(self, value, "input of the graph", None));
        if !sound {
            return false;
        }
        for id in graph.ops() {
            for (slot, value) in graph.op(id).outputs.iter().enumerate() {
                let Some(value) = value else { continue };
                match graph.value(*value).def {
                    Def::Op { op, slot: named } if op == id && named as usize == slot => {}
                    _ => {
                        let reason =
                            format!("'{}' does not say that it is result {slot}", graph.value(*value).name);
                        self.report(Invariant::Defined, reason, Some((graph, id)));
                    }
                }
            }
        }
        let inputs: HashSet<ValueId> = graph.inputs().iter().copied().collect();
        for id in graph.values() {
            let value = graph.value(id);
            let wrong = match value.def {
                Def::Op { op, slot } => graph.is_live(op) && graph.op(op).output(slot as usize) != Some(id),
                Def::Input { .. } => !inputs.contains(&id),
                _ => inputs.contains(&id),
            };
            if wrong {
                let reason = format!("what defines '{}' does not list it", value.name);
                self.report(Invariant::Defined, reason, None);
            }
        }
        true
    }

    /// Invariant 2.
    fn index(&mut self, graph: &Graph) {
        let mut uses: HashMap<ValueId, HashSet<Use>> = HashMap::new();
        for op in graph.ops() {
            for (slot, value) in graph.op(op).inputs.iter().enumerate() {
                if let Some(value) = value {
                    uses.entry(*value).or_default().insert(Use { op, slot: Slot::Operand(slot as u32) });
                }
            }
            for &value in &graph.op(op).captures {
                uses.entry(value).or_default().insert(Use { op, slot: Slot::Capture });
            }
        }
        let mut edges: HashMap<(OpId, ValueId, Use), i64> = HashMap::new();
        for id in (0..graph.value_bound() as u32).map(ValueId) {
            let listed = uses.remove(&id).unwrap_or_default();
            let kept: HashSet<Use> = graph.uses(id).collect();
            let name = &graph.value(id).name;
            for &at in listed.difference(&kept) {
                let reason = format!("'{name}' does not know that it is read here");
                self.report(Invariant::Indexed, reason, Some((graph, at.op)));
            }
            for &at in kept.difference(&listed) {
                let live = graph.is_live(at.op).then_some((graph, at.op));
                self.report(Invariant::Indexed, format!("'{name}' claims to be read here"), live);
            }
            let outputs = graph.outputs().iter().filter(|&&v| v == id).count();
            let counted = graph.readers(id) - graph.uses(id).len();
            if outputs != counted {
                let reason = format!("'{name}' is an output {outputs} times, counted as {counted}");
                self.report(Invariant::Indexed, reason, None);
            }
            if let Some(from) = graph.producer(id) {
                edges.extend(listed.into_iter().map(|at| ((from, id, at), 1)));
            }
        }
        for edge in graph.edges() {
            *edges.entry(edge).or_default() -= 1;
        }
        let mut wrong: Vec<_> = edges.into_iter().filter(|(_, count)| *count != 0).collect();
        wrong.sort();
        for ((from, value, at), count) in wrong {
            let (name, kind) =
                (&graph.value(value).name, if count > 0 { "no edge" } else { "an edge too many" });
            let reason = format!("{kind} for '{name}' from {}", graph.describe(from));
            self.report(Invariant::Indexed, reason, graph.is_live(at.op).then_some((graph, at.op)));
        }
    }

    /// Invariants 3 and 4.
    fn order(&mut self, graph: &Graph) {
        if let Err(op) = graph.order() {
            let reason = "this operator depends on its own result".to_string();
            self.report(Invariant::Acyclic, reason, Some((graph, op)));
        }
        for (from, value, at) in graph.edges() {
            if graph.op(from).rank > graph.op(at.op).rank {
                let reason =
                    format!("stands before the operator that computes '{}'", graph.value(value).name);
                self.report(Invariant::Ranked, reason, Some((graph, at.op)));
            }
        }
    }

    /// Invariant 5.
    fn names(&mut self, graph: &Graph) {
        let mut seen = HashSet::new();
        for id in graph.values() {
            let value = graph.value(id);
            // A captured value is a reference: it has the name of what it refers to.
            let captured = matches!(value.def, Def::Captured { .. });
            let reason = if value.name.is_empty() {
                "a value has no name".to_string()
            } else if !captured && !seen.insert(&value.name) {
                format!("two values are named '{}'", value.name)
            } else {
                continue;
            };
            let op = graph.producer(id).filter(|&op| graph.is_live(op));
            self.report(Invariant::Named, reason, op.map(|op| (graph, op)));
        }
    }

    /// Invariant 6, seen from the body and from the operator that holds bodies.
    fn captured(&mut self, graph: &Graph, outer: Option<&Graph>) {
        for id in graph.values() {
            let Def::Captured { outer: source } = graph.value(id).def else { continue };
            let name = &graph.value(id).name;
            let reason = match outer {
                None => format!("'{name}' is captured, but no graph is around this one"),
                Some(outer) if source.index() >= outer.value_bound() => {
                    format!("'{name}' refers to no value of the enclosing graph")
                }
                Some(outer) if matches!(outer.value(source).def, Def::Dead) => {
                    format!("'{name}' refers to a value that the enclosing graph no longer defines")
                }
                _ => continue,
            };
            self.report(Invariant::Captured, reason, None);
        }
        for id in graph.ops() {
            let op = graph.op(id);
            let mut read = HashSet::new();
            for body in op.bodies() {
                for value in body.values().filter(|&v| body.readers(v) > 0) {
                    if let Def::Captured { outer } = body.value(value).def {
                        read.insert(outer);
                    }
                }
            }
            let listed: HashSet<ValueId> = op.captures.iter().copied().collect();
            if listed != read || listed.len() != op.captures.len() {
                let reason = "the list of captured values is not what the bodies read".to_string();
                self.report(Invariant::Captured, reason, Some((graph, id)));
            }
        }
    }

    /// Invariant 7.
    fn types(&mut self, graph: &Graph) {
        for id in graph.values() {
            let value = graph.value(id);
            if let Def::Initializer(tensor) = &value.def {
                let own = Type::from(tensor.ty());
                if value.ty.as_ref() != Some(&own) {
                    let reason = format!("the data of '{}' are {own}, its type is another", value.name);
                    self.report(Invariant::Typed, reason, None);
                }
            }
        }
        for id in graph.ops() {
            let op = graph.op(id);
            let constants: Vec<Option<Cow<'_, Tensor>>> =
                op.inputs.iter().map(|v| v.and_then(|v| graph.constant(v))).collect();
            let known: Vec<Known<'_>> = (op.inputs.iter().zip(&constants))
                .map(|(v, constant)| Known {
                    ty: v.and_then(|v| graph.value(v).ty.as_ref()),
                    constant: constant.as_deref(),
                })
                .collect();
            let inferred = infer::infer(op, graph.opset(&op.domain), &known);
            for (value, inferred) in op.outputs.iter().zip(inferred) {
                let (Some(value), Some(inferred)) = (value, inferred) else { continue };
                let value = graph.value(*value);
                if let Some(ty) = &value.ty
                    && !ty.compatible(&inferred)
                {
                    self.violations.push(Violation {
                        invariant: Invariant::Typed,
                        reason: format!("'{}' has type {ty}, and is computed as {inferred}", value.name),
                        value: Some(value.name.clone()),
                        op: Some(text::print_op(graph, id)),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{default_opsets, parse_graph};

    const TEXT: &str = "f (bool c, float[2] x) => (y) <float[2] w> {
        a = Neg(x)
        b = Add(a, w)
        d = If(c)<then_branch = t () => (p) { p = Exp(a) }, else_branch = e () => (q) { q = Exp(x) }>
        y = Sum(a, b, d)
    }";

    fn graph() -> Graph {
        let graph = parse_graph(TEXT, default_opsets()).unwrap();
        assert_eq!(verify(&graph), []);
        graph
    }

    fn value(graph: &Graph, name: &str) -> ValueId {
        graph.values().find(|&v| graph.value(v).name == name).unwrap()
    }

    fn op(graph: &Graph, result: &str) -> OpId {
        graph.producer(value(graph, result)).unwrap()
    }

    /// What verification says once `damage` was done.
    fn after(damage: impl FnOnce(&mut Graph)) -> Vec<String> {
        let mut graph = graph();
        damage(&mut graph);
        let mut found: Vec<String> =
            verify(&graph).iter().map(|v| format!("{:?}: {v}", v.invariant)).collect();
        found.sort();
        found
    }

    #[test]
    fn an_operand_that_nothing_defines_is_reported() {
        let found = after(|g| {
            let w = value(g, "w");
            g.value_mut(w).def = Def::Dead;
        });
        assert_eq!(found, ["Defined: operand 1 'w' is not defined\n    b = Add(a, w)"]);
    }

    #[test]
    fn an_operand_of_another_graph_is_reported() {
        let found = after(|g| {
            let b = op(g, "b");
            g.op_mut(b).inputs[0] = Some(ValueId(999));
        });
        assert_eq!(found, ["Defined: operand 0 is no value of this graph\n    b = Add(..., w)"]);
    }

    #[test]
    fn a_result_that_belongs_to_another_operator_is_reported() {
        let found = after(|g| {
            let (a, b) = (op(g, "a"), value(g, "b"));
            g.value_mut(b).def = Def::Op { op: a, slot: 0 };
        });
        let defined: Vec<&String> = found.iter().filter(|v| v.starts_with("Defined")).collect();
        let expected = [
            "Defined: 'b' does not say that it is result 0\n    b = Add(a, w)",
            "Defined: what defines 'b' does not list it",
        ];
        assert_eq!(defined, expected);
    }

    #[test]
    fn an_operand_changed_behind_the_index_is_reported() {
        let found = after(|g| {
            let (b, x) = (op(g, "b"), value(g, "x"));
            g.op_mut(b).inputs[0] = Some(x);
        });
        let expected = [
            "Indexed: 'a' claims to be read here\n    b = Add(x, w)",
            "Indexed: 'x' does not know that it is read here\n    b = Add(x, w)",
            "Indexed: an edge too many for 'a' from Neg of 'a'\n    b = Add(x, w)",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_cycle_is_reported() {
        let found = after(|g| {
            let (a, x, y, at) = (op(g, "a"), value(g, "x"), value(g, "y"), Slot::Operand(0));
            g.redirect(x, y, Use { op: a, slot: at });
        });
        let of = |kind: &str| found.iter().filter(|v| v.starts_with(kind)).count();
        assert_eq!((of("Acyclic"), of("Ranked"), found.len()), (1, 1, 2), "{found:?}");
    }

    #[test]
    fn a_rank_that_falls_is_reported() {
        let found = after(|g| {
            let a = op(g, "a");
            g.op_mut(a).rank = 2;
        });
        assert_eq!(found, ["Ranked: stands before the operator that computes 'a'\n    b = Add(a, w)"]);
    }

    #[test]
    fn names_that_are_taken_or_missing_are_reported() {
        let found = after(|g| {
            let (a, w) = (value(g, "a"), value(g, "w"));
            g.value_mut(a).name = "x".to_string();
            g.value_mut(w).name.clear();
        });
        assert_eq!(found, ["Named: a value has no name", "Named: two values are named 'x'\n    x = Neg(x)"]);
    }

    #[test]
    fn a_list_of_captures_that_is_not_what_bodies_read_is_reported() {
        let found = after(|g| {
            let d = op(g, "d");
            let dropped = g.op_mut(d).captures.pop();
            assert!(dropped.is_some());
        });
        assert!(found[0].starts_with("Captured: the list of captured values is not what the bodies read"));
    }

    #[test]
    fn a_capture_of_nothing_is_reported() {
        let found = after(|g| {
            let d = op(g, "d");
            for body in g.op_mut(d).bodies_mut() {
                let captured =
                    body.values().find(|&v| matches!(body.value(v).def, Def::Captured { .. })).unwrap();
                body.value_mut(captured).def = Def::Captured { outer: ValueId(999) };
            }
        });
        let of = |text: &str| found.iter().filter(|v| v.contains(text)).count();
        assert_eq!(of("refers to no value of the enclosing graph"), 2, "{found:?}");
        let body = graph();
        let body = body.op(op(&body, "d")).bodies().next().unwrap();
        assert_eq!(verify(body)[0].reason, "'a' is captured, but no graph is around this one");
    }

    #[test]
    fn a_constant_of_another_type_is_reported() {
        let found = after(|g| {
            let w = value(g, "w");
            g.value_mut(w).ty = None;
        });
        assert_eq!(found, ["Typed: the data of 'w' are float[2], its type is another"]);
    }

    #[test]
    fn a_type_that_contradicts_inference_is_reported() {
        let found = after(|g| {
            let a = value(g, "a");
            g.value_mut(a).ty = Some(Type::Tensor(crate::TensorType::known(crate::DType::I64, &[2])));
        });
        let expected = "Typed: 'a' has type int64[2], and is computed as float[2]\n    a = Neg(x)";
        assert!(found.contains(&expected.to_string()), "{found:?}");
    }

    #[test]
    fn an_operator_set_that_is_not_imported_is_reported() {
        let graph = parse_graph("f (x) => (y) { y = my.domain.Foo(x) }", default_opsets()).unwrap();
        let found: Vec<String> = verify(&graph).iter().map(Violation::to_string).collect();
        assert_eq!(
            found,
            ["no version of the operator set 'my.domain' is imported\n    y = my.domain.Foo(x)"]
        );
    }

    #[test]
    fn a_changed_boundary_is_reported() {
        let before = Boundary::of(&graph());
        assert_eq!(before.check(&graph()), []);
        let mut other = graph();
        let (x, y) = (value(&other, "x"), value(&other, "y"));
        other.value_mut(x).ty = Some(Type::Tensor(crate::TensorType::known(crate::DType::F32, &[3])));
        other.value_mut(y).name = "z".to_string();
        let found: Vec<String> = before.check(&other).iter().map(Violation::to_string).collect();
        let expected = [
            "input 'x' of the graph was float[2], now float[3]",
            "the outputs of the graph were 'y', now 'z'",
        ];
        assert_eq!(found, expected);
    }
}
