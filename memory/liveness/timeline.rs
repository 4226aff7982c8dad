//! The model step by step: a run that frees every buffer after its last reader.

use dmopt_ir::{Graph, OpId};

use super::Unknown;
use crate::kernels::Kernels;
use crate::ort::{Buffer, Step, Tenant, Timeline};
use crate::scheduling::Scheduling;
use crate::state::taken_over;

/// What is in memory at each step if operators run in this order (`Constant` operators are no steps), by kernels that
/// compute in place what they can. A view is in the buffer of its operand, and not listed as a tenant.
///
/// # Errors
/// A size is not known, in the graph or in a body, or it is no order of the operators.
pub fn timeline(graph: &Graph, order: &[OpId], kernels: Kernels) -> Result<Timeline, Unknown> {
    let scheduling = Scheduling::new(graph, kernels)?;
    let problem = scheduling.problem();
    let numbers = scheduling.numbers(order).filter(|order| problem.is_order(order)).ok_or(Unknown::Order)?;
    let profile = problem.profile(&numbers);
    let runs = |v: &usize| !graph.op(scheduling.ops()[*v]).is("Constant");
    let mut step_of = vec![0; problem.len()];
    numbers.iter().filter(|v| runs(v)).enumerate().for_each(|(step, &v)| step_of[v] = step);
    let end = numbers.iter().filter(|v| runs(v)).count().saturating_sub(1);

    let mut run = Timeline::default();
    let mut place = vec![0; problem.buffers().len()];
    for (&v, needs) in numbers.iter().zip(profile).filter(|(v, _)| runs(v)) {
        let (step, op) = (run.steps.len(), &problem.ops()[v]);
        let last = |b: usize| problem.buffers()[b].readers().map(|reader| step_of[reader]).max();
        let dies = |b: usize| !problem.buffers()[b].kept && last(b).is_none_or(|last| last <= step);
        let taken = taken_over(problem, v, dies);
        for &b in &op.creates {
            let (made, value) = (&problem.buffers()[b], scheduling.values()[b]);
            let mut readers: Vec<usize> = made.readers().map(|reader| step_of[reader]).collect();
            readers.sort_unstable();
            let until = if made.kept { end } else { last(b).unwrap_or(step) };
            let tenant = Tenant { value, first: step, readers };
            match taken.iter().find(|(result, _)| *result == b) {
                Some(&(_, operand)) => {
                    place[b] = place[operand];
                    let buffer: &mut Buffer = &mut run.buffers[place[b]];
                    buffer.tenants.push(tenant);
                    (buffer.last, buffer.is_output) = (until, made.kept);
                }
                None => {
                    place[b] = run.buffers.len();
                    let (bytes, is_output) = (made.bytes, made.kept);
                    let tenants = vec![tenant];
                    run.buffers.push(Buffer { value, tenants, bytes, first: step, last: until, is_output });
                }
            }
        }
        let live_bytes = needs - op.scratch;
        run.steps.push(Step { op: scheduling.ops()[v], live_bytes, scratch_bytes: op.scratch });
        if needs > run.peak_bytes {
            (run.peak_bytes, run.peak_step) = (needs, step);
        }
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::liveness::in_order;
    use dmopt_ir::infer::infer_graph;
    use dmopt_ir::text::{default_opsets, parse_graph};

    const BODIES: [&str; 5] = [
        "a = Exp(x) b = Relu(a) c = Add(b, x) y = MatMul(c, w)",
        "a = Exp(x) v = Identity(a) b = Exp(v) c = Add(a, b) y = Mul(c, c)",
        "k = Constant<value_float = 1.0>() a = Mul(x, k) b = MatMul(a, w) unread = Exp(b) y = Add(a, b)",
        "y = Exp(x) a = MatMul(y, w) b = MatMul(a, w) z = Add(b, y)",
        "a = MatMul(x, w) b = MatMul(a, w) c = Sum(a, b, x) y = MatMul(c, w)",
    ];

    /// In every step, what is listed adds up to what is in memory, and the peak is that of the model.
    #[test]
    fn buffers_add_up_to_the_model() {
        for body in BODIES {
            let text = format!("g (float[4,4] x) => (float[4,4] y) <float[4,4] w> {{ {body} }}");
            let mut graph = parse_graph(&text, default_opsets()).unwrap();
            infer_graph(&mut graph);
            let order = graph.order().unwrap();
            for kernels in [Kernels::Ideal, Kernels::OrtCpu { version: (1, 32) }] {
                let run = timeline(&graph, &order, kernels).unwrap();
                for (i, step) in run.steps.iter().enumerate() {
                    let there: u64 = run.live(i).map(|(buffer, _)| buffer.bytes).sum();
                    assert_eq!(there, step.live_bytes, "step {i} of {body} on {kernels:?}");
                }
                let peak = in_order(&graph, &order, kernels).unwrap();
                assert_eq!(
                    (run.peak_bytes, Some(run.steps[run.peak_step].op)),
                    (peak.bytes, peak.at),
                    "{body}"
                );
            }
        }
    }

    #[test]
    fn an_order_that_cannot_run_is_refused() {
        let mut graph =
            parse_graph("g (float[2] x) => (float[2] y) { a = Exp(x) y = Exp(a) }", default_opsets())
                .unwrap();
        infer_graph(&mut graph);
        let mut order = graph.order().unwrap();
        order.reverse();
        assert_eq!(timeline(&graph, &order, Kernels::Ideal).unwrap_err(), Unknown::Order);
    }
}
