//! A plan with names instead of ids.

use std::collections::{BTreeMap, BTreeSet};

use dmopt_ir::{Graph, ValueId};

use super::expression::Expression;
use super::{At, Buffer, Live, MemoryOptions, MemoryReport, SCHEMA, State, Step, Why};
use crate::memory::ort::{self, Patterned, Settings, Timeline};
use crate::memory::{Found, Kernels, Scheduling, Unknown, liveness, search};
use crate::report::{OpenSizes, is_cast};
use crate::units::plural;
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
    let open = OpenSizes::of(&model.graph, &options.sizes, options.kernels).map_err(fail)?;
    let sizes = open.sizes(None);
    let sized = model.graph.with_sizes(&sizes);
    let settings = Settings { kernels: options.kernels, sizes, ..Settings::default() };
    let planned = Planned::new(&model.graph, &sized, &settings, options.session)
        .map_err(|unknown| fail(open.explain(&model.graph, &unknown)))?;

    let run = &planned.run;
    let names = Names { graph: &sized, run };
    let buffers: Vec<Buffer> = run.buffers.iter().map(|buffer| names.buffer(buffer)).collect();
    let order: Vec<Step> = run.steps.iter().map(|step| names.step(step)).collect();
    let at = order.get(run.peak_step).map(|_| names.at(run.peak_step));
    let mut live: Vec<Live> = match &at {
        Some(at) => buffers.iter().filter_map(|buffer| names.live(buffer, at.step)).collect(),
        None => Vec::new(),
    };
    live.sort_by_key(|live| std::cmp::Reverse(live.bytes));
    let best = best_order(&sized, options);
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
        peak_bytes: run.peak_bytes,
        arena_peak_bytes: planned.patterned.map(|_| run.arena_peak_bytes()),
        peak_expression: expression(&model.graph.with_named_dims(), run),
        steady_peak_bytes: planned.patterned.map_or(run.peak_bytes, |later| later.peak_bytes),
        block_bytes: planned.patterned.map(|later| later.block_bytes),
        lower_bound_bytes: best.as_ref().map(|best| best.lower_bound_bytes),
        best_order_bytes: best.as_ref().map(|best| best.peak_bytes),
        optimal: best.as_ref().map(|best| run.peak_bytes <= best.lower_bound_bytes),
        scratch_bytes: run.steps.get(run.peak_step).map_or(0, |step| step.scratch_bytes),
        at,
        live,
        weights_bytes: Facts::of(&model).initializer_bytes,
        inputs_bytes: inputs
            .map(|&input| sized.tensor_type(input)?.bytes())
            .try_fold(0u64, |sum, bytes| Some(sum.saturating_add(bytes?))),
        order,
        buffers,
        notes: planned.notes(&sized, options),
        other: None,
        sizes: settings.sizes.dims,
    })
}

/// A run, and what else is known about it.
struct Planned {
    run: Timeline,
    /// Runs with memory patterns, where they are on.
    patterned: Option<Patterned>,
    /// Operators that are in no table, by type.
    unknown: BTreeMap<String, usize>,
}

impl Planned {
    /// `sized` is the graph with the sizes of the settings.
    fn new(
        graph: &Graph,
        sized: &Graph,
        settings: &Settings,
        session: SessionKind,
    ) -> Result<Planned, Unknown> {
        if settings.kernels == Kernels::Ideal {
            let order = sized.order().map_err(|_| Unknown::Cycle)?;
            let run = liveness::timeline(sized, &order, Kernels::Ideal)?;
            return Ok(Planned { run, patterned: None, unknown: BTreeMap::new() });
        }
        let plan = ort::plan(graph, settings)?;
        let patterned = (session == SessionKind::Default).then_some(plan.patterned);
        Ok(Planned { run: plan.first_run, patterned, unknown: plan.unknown })
    }

    fn notes(&self, graph: &Graph, options: &MemoryOptions) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |text: &str| notes.push(text.to_string());
        match (options.kernels, options.session) {
            (Kernels::Ideal, _) => note(
                "ideal kernels compute every elementwise operator in place; operators run in the order of the file, and \
                 a tensor is freed after its last reader",
            ),
            (_, SessionKind::Default) => note(
                "the plan is that of the file as it is; what a default session fuses while it loads the model can \
                 change order and peak, and shows only when it is measured",
            ),
            (_, SessionKind::Tuned) => note(
                "the plan is that of the file as it is; what the session folds while it loads the model (level BASIC) \
                 is not anticipated",
            ),
        }
        if let Kernels::OrtCuda { .. } = options.kernels {
            note("what convolutions ask cuDNN for depends on the device and is not counted");
        }
        if let Some(again) = self.patterned.filter(|p| p.first_peak_bytes != self.run.peak_bytes) {
            let bytes = again.first_peak_bytes;
            note(&format!(
                "bodies that run again in the first run use their pattern already: {bytes} bytes at most"
            ));
        }
        if is_cast(graph, options.kernels) {
            note(
                "ONNX Runtime puts casts around what its processor kernels do not compute in half precision; the plan \
                 does not know them",
            );
        }
        if graph.has_bodies() {
            note("there is no lower bound for models with If, Loop or Scan");
        }
        if !self.unknown.is_empty() {
            let list: Vec<String> = self
                .unknown
                .iter()
                .map(|(name, &count)| format!("{name} ({})", plural(count, "time")))
                .collect();
            note(&format!(
                "not in the tables, and taken to compute into memory of their own without scratch memory: {}",
                list.join(", ")
            ));
        }
        notes
    }
}

/// The order with the lowest peak that a search finds, and a bound for all of them; for graphs without bodies, because
/// what those need is estimated from above.
fn best_order(graph: &Graph, options: &MemoryOptions) -> Option<Found> {
    let scheduling = (!graph.has_bodies()).then(|| Scheduling::new(graph, options.kernels).ok())??;
    Some(search(scheduling.problem(), &options.limits))
}

/// Gives names to the ids of a run.
struct Names<'a> {
    graph: &'a Graph,
    run: &'a Timeline,
}

impl Names<'_> {
    fn value(&self, id: ValueId) -> String {
        self.graph.value(id).name.clone()
    }

    fn at(&self, step: usize) -> At {
        At { step, node: self.graph.describe(self.run.steps[step].op) }
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
            let names = Names { graph: &graph, run: &plan.first_run };
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
