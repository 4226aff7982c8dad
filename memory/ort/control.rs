//! What `If`, `Loop` and `Scan` take while their bodies run (`cpu/controlflow/{if,loop,scan_9,scan_utils}.cc`).
//!
//! - **If** runs one branch: the one that a constant condition names, otherwise the one that takes more is assumed.
//!   Its results are the outputs of the branch themselves. Where the branch declares their sizes, they are allocated
//!   before it runs, otherwise when they are computed.
//! - **Loop** takes 9 bytes for the number of the round and the condition. The outputs of a round are allocated while it
//!   runs. Those that are carried are the inputs of the next round and are kept to its end; the others are all kept.
//!   In the end the carried ones are copied, and the others put together, into the results. An output that is the
//!   `Identity` of an input of the body is not copied. A condition that is computed is assumed to stay true; without a
//!   number of rounds that is known, three are assumed, from where on nothing grows but what is put together, whose
//!   size tells the number.
//! - **Scan** allocates its results first and the outputs of rounds in them; for each carried value it has one more in
//!   the second round, two from the third on. Inputs and outputs along another axis than the first are turned into
//!   copies.

use dmopt_ir::{AttributeValue, Graph, Op, OpId, ValueId};

use super::frame::{Frame, Run, bytes};
use super::scratch::Scratch;

/// Tells whether the result at a position is allocated by the operator, rather than being there before.
type Taken<'t> = &'t dyn Fn(usize) -> bool;

impl Frame<'_> {
    /// What the operator needs beside its results.
    pub(super) fn control(&self, id: OpId, bodies: &[Frame<'_>], run: Run, taken: Taken<'_>) -> Scratch {
        let op = self.graph().op(id);
        match (op.op_type.as_str(), bodies) {
            ("If", [_, _]) if op.is_standard() => self.branch(op, bodies, run, taken),
            ("Loop", [body]) if op.is_standard() => self.rounds(op, body, run),
            ("Scan", [body]) if op.is_standard() => self.scan(op, body, run, taken),
            // Something else with bodies: one of them at a time, once.
            _ => {
                let peak = bodies.iter().map(|body| body.peak(run, &|_| true)).max().unwrap_or(0);
                Scratch { before: 0, beside: peak }
            }
        }
    }

    fn branch(&self, op: &Op, bodies: &[Frame<'_>], run: Run, taken: Taken<'_>) -> Scratch {
        let peak = branches(self.graph(), op, bodies).into_iter().map(|body| {
            let outputs = body.graph().outputs().iter().enumerate().filter(|(slot, _)| taken(*slot));
            let (first, then): (Vec<_>, Vec<_>) = outputs.partition(|(_, value)| body.is_declared(**value));
            let first = total(first.iter().filter_map(|(_, value)| bytes(body.graph(), **value)));
            first.saturating_add(body.peak(run, &|value| then.iter().any(|(_, output)| **output == value)))
        });
        Scratch { before: peak.max().unwrap_or(0), beside: 0 }
    }

    fn rounds(&self, op: &Op, body: &Frame<'_>, run: Run) -> Scratch {
        let carried = body.graph().inputs().len().saturating_sub(2);
        let made = |value: &ValueId| body.buffer(*value).map_or(0, |buffer| buffer.bytes);
        let outputs = body.graph().outputs();
        let (kept, collected) = outputs.split_at(outputs.len().min(1 + carried));
        let kept_bytes = total(kept.iter().map(made));
        let collected_bytes = total(collected.iter().map(made));
        // Number and condition; a condition that a round makes anew replaces the first one.
        let first = 9;
        let later = if kept.first().is_some_and(|value| made(value) > 0) { 8 } else { 9 };
        let rounds = match truth(self.graph(), op.input(1)) {
            Some(false) => 0,
            _ => self.round_count(op, body, carried),
        };
        let all = |_: ValueId| true;
        let mut before: u64 = 0;
        if rounds >= 1 {
            before = body.peak(run, &all).saturating_add(first);
        }
        if rounds >= 2 {
            let again = if run == Run::Plain { Run::Plain } else { Run::Later };
            let held =
                kept_bytes.saturating_add(collected_bytes.saturating_mul(rounds - 1)).saturating_add(later);
            before = before.max(body.peak(again, &all).saturating_add(held));
        }
        let beside = match rounds {
            0 => first,
            1 => kept_bytes.saturating_add(first),
            _ => later.saturating_add(kept_bytes.saturating_mul(2)),
        };
        Scratch { before, beside: beside.saturating_add(collected_bytes.saturating_mul(rounds)) }
    }

    fn round_count(&self, op: &Op, body: &Frame<'_>, carried: usize) -> u64 {
        if let Some(count) = integer(self.graph(), op.input(0)) {
            let stops = body
                .graph()
                .outputs()
                .first()
                .is_some_and(|&value| truth(body.graph(), Some(value)) == Some(false));
            return u64::try_from(count).unwrap_or(0).min(if stops { 1 } else { u64::MAX });
        }
        let collected = op.outputs.iter().skip(carried).flatten();
        let first = |value: &ValueId| self.graph().tensor_type(*value)?.dims()?.first().copied();
        collected.filter_map(first).next().unwrap_or(3)
    }

    fn scan(&self, op: &Op, body: &Frame<'_>, run: Run, taken: Taken<'_>) -> Scratch {
        let scanned = op.int("num_scan_inputs").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let states = op.inputs.len().saturating_sub(scanned);
        let axis = |name: &str, i: usize| op.ints(name).and_then(|axes| axes.get(i)).copied().unwrap_or(0);
        let size = |value: Option<ValueId>| value.and_then(|value| bytes(self.graph(), value)).unwrap_or(0);
        let dims = |value: Option<ValueId>| self.graph().tensor_type(value?)?.dims();
        let is_turned = |name: &str, i: usize, rank: usize| ![0, -(rank as i64)].contains(&axis(name, i));
        let rounds = dims(op.input(states)).map_or(0, |dims| {
            let axis = axis("scan_input_axes", 0);
            let at = if axis < 0 { axis.saturating_add(dims.len() as i64) } else { axis };
            usize::try_from(at).ok().and_then(|at| dims.get(at)).copied().unwrap_or(0)
        });
        let rank = |value| dims(value).map_or(0, |dims| dims.len());
        let carried = total((0..states).map(|i| size(op.input(i))));
        let mut copies = carried.saturating_mul(rounds.saturating_sub(1).min(2));
        for i in 0..scanned {
            let value = op.input(states + i);
            if is_turned("scan_input_axes", i, rank(value)) {
                copies = copies.saturating_add(size(value));
            }
        }
        let mut results = 0;
        for slot in 0..op.outputs.len() {
            let value = op.output(slot);
            if slot >= states && is_turned("scan_output_axes", slot - states, rank(value)) {
                copies = copies.saturating_add(size(value));
            } else if taken(slot) {
                results = u64::saturating_add(results, size(value));
            }
        }
        let again = if run == Run::Plain { Run::Plain } else { Run::Later };
        let none = |_: ValueId| false;
        let peak = match rounds {
            0 => 0,
            1 => body.peak(run, &none),
            _ => body.peak(run, &none).max(body.peak(again, &none)),
        };
        Scratch { before: peak.saturating_add(copies).saturating_add(results), beside: copies }
    }

    /// True when the type of a value says all its sizes before the model runs.
    fn is_declared(&self, value: ValueId) -> bool {
        self.planned().tensor_type(value).is_some_and(|ty| ty.dims().is_some())
    }
}

/// The branches that may run: one where the condition is constant.
fn branches<'b, 'g>(graph: &Graph, op: &Op, bodies: &'b [Frame<'g>]) -> Vec<&'b Frame<'g>> {
    let known = truth(graph, op.input(0));
    let names = op.attributes.iter().filter(|a| matches!(a.value, AttributeValue::Graph(_)));
    let may_run = |name: &str| match known {
        Some(true) => name == "then_branch",
        Some(false) => name == "else_branch",
        None => true,
    };
    bodies.iter().zip(names).filter(|(_, attribute)| may_run(&attribute.name)).map(|(body, _)| body).collect()
}

/// The results of an operator with bodies in the order in which they are allocated.
pub(super) fn allocated(graph: &Graph, op: &Op, bodies: &[Frame<'_>]) -> Vec<ValueId> {
    let mut results: Vec<(usize, ValueId)> =
        op.outputs.iter().enumerate().filter_map(|(slot, value)| Some((slot, (*value)?))).collect();
    if op.is("If")
        && let Some(body) = branches(graph, op, bodies).first()
    {
        // Those of declared size first, the others as the branch computes them.
        results.sort_by_key(|(slot, _)| match body.graph().outputs().get(*slot) {
            Some(&output) if !body.is_declared(output) => (1, body.place(output).unwrap_or(0)),
            _ => (0, *slot),
        });
    }
    results.into_iter().map(|(_, value)| value).collect()
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

fn integer(graph: &Graph, value: Option<ValueId>) -> Option<i64> {
    graph.constant(value?)?.to_i64().ok()?.first().copied()
}

fn truth(graph: &Graph, value: Option<ValueId>) -> Option<bool> {
    integer(graph, value).map(|n| n != 0)
}
