//! A plan with names instead of ids.

use std::collections::BTreeSet;

use dmopt_ir::{Graph, ValueId};

use super::expression::Expression;
use super::{At, Buffer, Live, MemoryOptions, MemoryReport, SCHEMA, State, Step, Why};
use crate::facts::each_graph;
use crate::memory::Kernels;
use crate::memory::ort::{self, Plan, Settings, Timeline};
use crate::report::OpenSizes;
use crate::{Error, Facts, Source, ir};
use dmopt_runtime::SessionKind;

/// Predicts what a model needs in memory, without running it.
///
/// # Errors
/// The file is no model, the sizes contradict it, or a size is not known: the message names an open dimension and how
/// to give it a size.
pub fn memory_report(source: &Source, options: &MemoryOptions) -> Result<MemoryReport, Error> {
    let mut model = source.model()?;
    ir::infer::infer_graph(&mut model.graph);
    let fail = |reason| Error::Sizes { file: source.name.clone(), reason };
    let open = OpenSizes::of(&model.graph, &options.sizes).map_err(fail)?;
    let sizes = open.sizes(None);
    let settings = Settings { kernels: options.kernels, sizes: sizes.clone(), ..Settings::default() };
    let plan = ort::plan(&model.graph, &settings).map_err(|unknown| fail(open.explain(&unknown)))?;
    let sized = model.graph.with_sizes(&sizes);
    let names = Names { graph: &sized, plan: &plan };
    let run = &plan.first_run;
    let buffers: Vec<Buffer> = run.buffers.iter().map(|buffer| names.buffer(buffer)).collect();
    let order: Vec<Step> = run.steps.iter().map(|step| names.step(step)).collect();
    let at = order.get(run.peak_step).map(|_| names.at(run.peak_step));
    let mut live: Vec<Live> = match &at {
        Some(at) => buffers.iter().filter_map(|buffer| names.live(buffer, at.step)).collect(),
        None => Vec::new(),
    };
    live.sort_by_key(|live| std::cmp::Reverse(live.bytes));
    let block = options.session == SessionKind::Default && plan.steady.block_bytes > 0;
    let (version, target) = match options.kernels {
        Kernels::OrtCpu { version } => (Some(version), "ort-cpu"),
        Kernels::OrtCuda { version } => (Some(version), "ort-cuda"),
        Kernels::Ideal => (None, "ideal"),
    };
    let inputs = sized.inputs().iter();
    Ok(MemoryReport {
        schema: SCHEMA.to_string(),
        path: source.name.clone(),
        target: target.to_string(),
        ort_version: version.map(|(major, minor)| format!("{major}.{minor}")),
        session: version.map(|_| options.session.name().to_string()),
        sizes: sizes.dims,
        peak_bytes: run.peak_bytes,
        peak_expression: expression(&model.graph, run),
        steady_peak_bytes: if block { plan.steady.peak_bytes } else { run.peak_bytes },
        block_bytes: block.then_some(plan.steady.block_bytes),
        lower_bound_bytes: None,
        optimal: None,
        scratch_bytes: run.steps.get(run.peak_step).map_or(0, |step| step.scratch_bytes),
        at,
        live,
        weights_bytes: Facts::of(&model).initializer_bytes,
        inputs_bytes: inputs
            .map(|&input| sized.tensor_type(input)?.bytes())
            .try_fold(0u64, |sum, bytes| Some(sum.saturating_add(bytes?))),
        order,
        buffers,
        notes: notes(&sized, &plan, options),
        other: None,
    })
}

/// Gives names to the ids of a plan.
struct Names<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
}

impl Names<'_> {
    fn value(&self, id: ValueId) -> String {
        self.graph.value(id).name.clone()
    }

    fn at(&self, step: usize) -> At {
        At { step, node: self.graph.describe(self.plan.order[step]) }
    }

    fn step(&self, step: &ort::Step) -> Step {
        Step {
            node: self.graph.describe(step.op),
            op_type: self.graph.op(step.op).op_type.clone(),
            live_bytes: step.live_bytes,
            scratch_bytes: step.scratch_bytes,
        }
    }

    fn buffer(&self, buffer: &ort::Buffer) -> Buffer {
        Buffer {
            values: buffer.tenants.iter().map(|tenant| self.value(tenant.value)).collect(),
            ty: self.graph.value(buffer.value).ty.as_ref().map(ToString::to_string).unwrap_or_default(),
            bytes: buffer.bytes,
            from: buffer.first,
            to: buffer.last,
            states: states(buffer),
        }
    }

    fn live(&self, buffer: &Buffer, step: usize) -> Option<Live> {
        let state = buffer.state(step)?;
        Some(Live {
            value: buffer.values[state.value].clone(),
            ty: buffer.ty.clone(),
            bytes: buffer.bytes,
            reason: state.reason,
            by: state.by.map(|step| self.at(step)),
            from: buffer.from,
            to: buffer.to,
        })
    }
}

/// What [`ort::Buffer::reason`] says of every step, in one pass.
fn states(buffer: &ort::Buffer) -> Vec<State> {
    /// In this order at one step: what is computed hides what is read.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Kind {
        Computed,
        Read,
    }
    let tenants = || buffer.tenants.iter().enumerate();
    let computed = tenants().map(|(i, tenant)| (tenant.first, Kind::Computed, i));
    let read = tenants().flat_map(|(i, tenant)| tenant.readers.iter().map(move |&at| (at, Kind::Read, i)));
    let events: BTreeSet<(usize, Kind, usize)> = computed.chain(read).collect();
    let mut states: Vec<State> = Vec::new();
    let mut add = |state: State| {
        let same = |last: &State| State { from: state.from, ..*last } == state;
        if state.from <= buffer.last && !states.last().is_some_and(same) {
            states.push(state);
        }
    };
    let mut done: Option<usize> = None;
    let mut occupant = 0;
    for &(step, kind, value) in &events {
        if done.is_some_and(|done| done >= step) {
            continue;
        }
        // From the step after the last event on, the buffer waits for this one.
        if let Some(from) = done.map(|done| done + 1).filter(|&from| from < step) {
            let next = events.range((step, Kind::Read, 0)..).next();
            add(match next.filter(|(at, ..)| *at == step) {
                Some(&(_, _, value)) => State { from, reason: Why::ReadLater, value, by: Some(step) },
                None => State { from, reason: Why::HeldForReuse, value: occupant, by: Some(step) },
            });
        }
        let reason = if kind == Kind::Computed { Why::Computed } else { Why::Operand };
        occupant = occupant.max(value);
        add(State { from: step, reason, value, by: Some(step) });
        done = Some(step);
    }
    let reason = if buffer.is_output { Why::Output } else { Why::NeverRead };
    add(State { from: done.map_or(buffer.first, |done| done + 1), reason, value: 0, by: None });
    states
}

/// The peak in the open dimensions. Scratch memory is what it is at the sizes of the run.
fn expression(graph: &Graph, run: &Timeline) -> Option<String> {
    let mut sum = Expression::default();
    for (buffer, _) in run.live(run.peak_step) {
        sum.add_tensor(graph.tensor_type(buffer.value)?)?;
    }
    sum.add_bytes(run.steps.get(run.peak_step)?.scratch_bytes);
    (!sum.is_number()).then(|| sum.to_string())
}

fn notes(graph: &Graph, plan: &Plan, options: &MemoryOptions) -> Vec<String> {
    let mut notes = Vec::new();
    match (options.kernels, options.session) {
        (Kernels::Ideal, _) => {}
        (_, SessionKind::Default) => notes.push(
            "the plan is that of the file as it is; what a default session fuses while it loads the model can change \
             order and peak, and shows only when it is measured"
                .to_string(),
        ),
        (_, SessionKind::Tuned) => notes.push(
            "the plan is that of the file as it is; what the session folds while it loads the model (level BASIC) is \
             not anticipated"
                .to_string(),
        ),
    }
    if let Kernels::OrtCuda { .. } = options.kernels {
        notes.push(
            "what convolutions ask cuDNN for depends on the device and is not counted; the plan for CUDA is read from \
             sources, not measured"
                .to_string(),
        );
    }
    let mut with_bodies = Vec::new();
    each_graph(graph, &mut |graph| {
        let ops = graph.ops().filter(|&id| graph.op(id).bodies().next().is_some());
        with_bodies.extend(ops.map(|id| graph.describe(id)));
    });
    if let Some(first) = with_bodies.first() {
        notes.push(format!("what bodies need inside is not counted: {}", list(first, with_bodies.len())));
    }
    if let Some(&first) = plan.unknown.first() {
        let described = list(&graph.describe(first), plan.unknown.len());
        notes.push(format!(
            "not in the tables, and taken to compute into memory of its own without scratch memory: {described}"
        ));
    }
    notes
}

/// `Mystery 'm'`, `Mystery 'm' and 2 more`.
fn list(first: &str, count: usize) -> String {
    match count {
        1 => first.to_string(),
        n => format!("{first} and {} more", n - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text::{default_opsets, parse_graph};
    use crate::memory::ort::Reason;

    #[test]
    fn states_say_what_the_plan_says_of_every_step() {
        let chain: String = (1..9).map(|i| format!("a{i} = Exp(a{}) ", i - 1)).collect();
        for body in [
            format!("a0 = Exp(x) {chain} y = Add(a8, a0)"),
            "a = Exp(x) b = Relu(a) v = Identity(b) c = Exp(v) d = Add(b, c) y = Mul(d, d)".to_string(),
            "y = Exp(x) a = Exp(y) unread = Exp(a) b = Tanh(a) c = Exp(b) z = Mul(c, a)".to_string(),
            "a = Exp(x) b = Exp(a) c = Exp(b) d = Exp(c) e = Add(d, d) f = Exp(e) y = Add(f, b)".to_string(),
        ] {
            let text = format!("g (float[2,3] x) => (float[2,3] y) {{ {body} }}");
            let mut graph = parse_graph(&text, default_opsets()).unwrap();
            ir::infer::infer_graph(&mut graph);
            let plan = ort::plan(&graph, &Settings::default()).unwrap();
            let names = Names { graph: &graph, plan: &plan };
            for planned in &plan.first_run.buffers {
                let buffer = names.buffer(planned);
                for step in 0..plan.order.len() + 1 {
                    let said = buffer.state(step).map(|state| (state.reason, state.by));
                    let expected = planned.reason(step).map(|reason| match reason {
                        Reason::Computed(_) => (Why::Computed, Some(step)),
                        Reason::Read { at, .. } if at == step => (Why::Operand, Some(at)),
                        Reason::Read { at, .. } => (Why::ReadLater, Some(at)),
                        Reason::Held { at, .. } => (Why::HeldForReuse, Some(at)),
                        Reason::Output(_) => (Why::Output, None),
                        Reason::NeverRead(_) => (Why::NeverRead, None),
                    });
                    assert_eq!(said, expected, "{:?} at step {step} of {body}", buffer.values);
                }
            }
        }
    }
}
