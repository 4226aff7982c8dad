//! Put the operators into the order with the lowest peak of memory.
//!
//! The search (`memory/search`) goes through the orders in which operators can run, with what the target's kernels
//! compute in place, and says how far from the optimum its result is for certain. Where the runtime's own plan keeps more
//! than the search counts, operators around its peak are moved as long as that helps. The order is taken if that plan,
//! executed in it, needs less than in the order of the file; where sizes are open, at two assumptions about them. Which order a runtime then executes is the affair of `order-anchors`.
//!
//! The same operators run on the same operands: bit-identical.
//!
//! ```onnx
//! f (float[1,64] x) => (float[1,1] y) <int64[1] axis = {1}> {
//!   a = Exp(x)
//!   b = Neg(x)
//!   p = ReduceSum(a, axis)
//!   q = ReduceSum(b, axis)
//!   y = Mul(p, q)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[1,64] x) => (float[1,1] y) <int64[1] axis = {1}> {
//!   b = Neg(x)
//!   q = ReduceSum(b, axis)
//!   a = Exp(x)
//!   p = ReduceSum(a, axis)
//!   y = Mul(p, q)
//! }
//! ```
//!
//! refused: no order needs less
//! ```onnx
//! f (float[1,64] x) => (float[1,64] y) {
//!   a = Exp(x)
//!   b = Neg(x)
//!   c = Abs(a)
//!   y = Add(c, b)
//! }
//! ```

use dmopt_ir::{OpId, Patch, Rewriter, Safety, parallel};
use dmopt_memory::ort::Timeline;
use dmopt_memory::{Found, Limits, Scheduling, Unknown, Weight, polish, search};

use crate::log::{Log, Schedule};
use crate::planning::{Plans, Sized};
use crate::{Context, Pass, operators, order_of};

/// See the header of this file.
pub struct ScheduleForMemory;

impl Pass for ScheduleForMemory {
    fn name(&self) -> &'static str {
        "schedule-for-memory"
    }

    fn source(&self) -> &'static str {
        include_str!("schedule_for_memory.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn settles(&self, log: &Log) -> bool {
        !log.unsettled
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let order = order_of(graph);
        let [first, _, ..] = order[..] else { return };
        match best(&context.planning.sized(graph), &order, &THOROUGH) {
            Err(unknown) => context.log.refuse(format!("graph '{}'", graph.name()), unknown.to_string()),
            Ok(Best { order, schedule, again, .. }) => {
                let name = graph.name().to_string();
                context.log.schedule(Schedule { graph: name, in_body: context.in_body, ..schedule });
                let Some(order) = order else { return };
                context.log.unsettled |= again;
                let mut patch = Patch::new(Safety::Exact);
                patch.reorder(order);
                context.apply(first, Ok(patch), rewriter);
            }
        }
    }
}

/// What finding an order may cost.
#[derive(PartialEq, Eq)]
pub(crate) struct Effort {
    search: Limits,
    /// Operators whose place in the runtime's plan may be computed to change what the search found.
    planned: usize,
}

/// More sets of operators than a search looks at that is worth doing twice.
const LONG: u64 = 10_000;

/// For the order that stays: a second or two, mostly far less.
const THOROUGH: Effort = Effort { search: Limits { states: 100_000, steps: 20_000_000 }, planned: 300_000 };

/// For one of many trials.
pub(crate) const QUICK: Effort = Effort { search: Limits { states: 1_000, steps: 400_000 }, planned: 0 };

/// For one of a few trials.
pub(crate) const CAREFUL: Effort = Effort { search: Limits { states: 20_000, steps: 8_000_000 }, planned: 0 };

/// How much more work that is.
pub(crate) const CARE: usize = (CAREFUL.search.steps / QUICK.search.steps) as usize;

/// What is known of the best order that was found, that of the file included.
pub(crate) struct Ordered {
    /// What is in memory at each of the sizes.
    pub timelines: Vec<Timeline>,
    /// Bytes that more effort might come to: as many as it takes where the search is through.
    pub least_bytes: u64,
    /// Bytes of values that are alive at once in the order that the search found, by its own count.
    pub alive_bytes: u64,
}

/// Puts operators in this order or in one that needs less, if one is found.
///
/// # Errors
/// A size is not known.
pub(crate) fn in_better_order(
    sized: &Sized<'_>,
    order: &[OpId],
    effort: &Effort,
) -> Result<Ordered, Unknown> {
    let Best { timelines, schedule, is_done, alive_bytes, .. } = best(sized, order, effort)?;
    let least_bytes = if is_done { schedule.after_bytes } else { schedule.lower_bound_bytes.unwrap_or(0) };
    Ok(Ordered { timelines, least_bytes, alive_bytes })
}

/// An order that needs less than that of the file, if there is one, and what is known about it.
struct Best {
    order: Option<Vec<OpId>>,
    /// What is in memory in the order that stays, at each of the sizes.
    timelines: Vec<Timeline>,
    schedule: Schedule,
    /// The peak by the count of the search.
    alive_bytes: u64,
    /// The search found what is best by its own count.
    is_done: bool,
    /// The search was short, and done, and what it found is below what the runtime's plan comes to: from the
    /// new order on, moving operators around the peak of that may get further.
    again: bool,
}

fn best(sized: &Sized<'_>, order: &[OpId], effort: &Effort) -> Result<Best, Unknown> {
    let (found, stands) = parallel::join(
        || {
            let scheduling = Scheduling::new(sized.graph(), sized.kernels())?;
            let found = search(scheduling.problem(), &effort.search);
            Ok((scheduling, found))
        },
        || {
            let plans = sized.plans()?;
            let stands = plans.timelines_in(order)?;
            Ok((plans, stands))
        },
    );
    let ((scheduling, found), (plans, stands)) = (found?, stands?);
    let before_bytes = stands[0].peak_bytes;
    // What is in memory in another order, where that is lower.
    let lower = |better: &[OpId], than: u64| -> Result<Option<Vec<Timeline>>, Unknown> {
        if better == order {
            return Ok(None);
        }
        let comes = plans.timelines_in(better)?;
        let mut both = comes.iter().zip(&stands);
        let is_lower =
            comes[0].peak_bytes < than && both.all(|(comes, stands)| comes.peak_bytes <= stands.peak_bytes);
        Ok(is_lower.then_some(comes))
    };
    let long = scheduling.order(&polished(&plans, &scheduling, &found, effort.planned, (order, &stands[0])));
    let mut comes = lower(&long, before_bytes)?.map(|timelines| (long, timelines));
    // What is best by the count of the search need not be so in the runtime's plan: there, the little that a trial looked
    // at may be better.
    let so_far = comes.as_ref().map_or(before_bytes, |(_, comes)| comes[0].peak_bytes);
    if so_far > found.lower_bound_bytes && *effort != QUICK {
        let short = scheduling.order(&search(scheduling.problem(), &QUICK.search).order);
        comes = lower(&short, so_far)?.map(|timelines| (short, timelines)).or(comes);
    }
    let (order, timelines) = match comes {
        Some((order, timelines)) => (Some(order), timelines),
        None => (None, stands),
    };
    let schedule = Schedule {
        graph: String::new(),
        in_body: false,
        assumed_sizes: sized.are_assumed(),
        before_bytes,
        after_bytes: timelines[0].peak_bytes,
        lower_bound_bytes: (!sized.graph().has_bodies()).then_some(found.lower_bound_bytes),
        states: found.states,
    };
    let is_done = found.peak_bytes <= found.lower_bound_bytes;
    let again = is_done && found.peak_bytes < schedule.after_bytes && found.states <= LONG;
    Ok(Best { order, timelines, schedule, alive_bytes: found.peak_bytes, is_done, again })
}

/// The order that was found or, where the runtime's own plan needs more than the search counted, one that it needs less
/// for. The plan of one order is known.
fn polished(
    plans: &Plans<'_>,
    scheduling: &Scheduling,
    found: &Found,
    planned: usize,
    (known, plan): (&[OpId], &Timeline),
) -> Vec<usize> {
    let mut left = planned / operators(plans.graph()).max(1);
    polish(scheduling.problem(), found.order.clone(), &mut |order| {
        left = left.checked_sub(1)?;
        let ops = scheduling.order(order);
        let new = if ops == known { None } else { Some(plans.timeline_in(&ops).ok()?) };
        let timeline = new.as_ref().unwrap_or(plan);
        let peak_bytes = timeline.peak_bytes;
        if peak_bytes <= found.peak_bytes {
            left = 0;
        }
        let first = timeline.steps.get(timeline.peak_step)?.op;
        let steps = timeline.steps.iter().filter(|step| step.total_bytes() == peak_bytes).count();
        let at = order.iter().position(|&v| scheduling.ops()[v] == first)?;
        Some(Weight { peak_bytes, steps, at })
    })
}

#[cfg(test)]
mod tests {
    use arbtest::arbitrary::{Result, Unstructured};
    use arbtest::arbtest;
    use dmopt_ir::infer;
    use dmopt_ir::text::parse_model;

    use super::{QUICK, THOROUGH, in_better_order};
    use crate::testing::{check, left_alone, optimize};
    use crate::{Options, Planning, order_of};

    const PASS: &str = "schedule-for-memory";

    #[test]
    fn a_list_of_products_becomes_an_accumulation() {
        let outcome = check(
            PASS,
            "f (float[64] x) => (float[64] y) <float a = {1}, float b = {2}, float c = {3}> {
                m0 = Mul(x, a)  m1 = Mul(x, b)  m2 = Mul(x, c)  s1 = Add(m0, m1)  s2 = Add(s1, m2)  y = Neg(s2)
             }",
            "f (float[64] x) => (float[64] y) <float a = {1}, float b = {2}, float c = {3}> {
                m1 = Mul(x, b)  m0 = Mul(x, a)  s1 = Add(m0, m1)  m2 = Mul(x, c)  s2 = Add(s1, m2)  y = Neg(s2)
             }",
        );
        let schedule = &outcome.schedules[0];
        assert_eq!(
            (schedule.before_bytes, schedule.after_bytes, schedule.lower_bound_bytes),
            (1024, 768, Some(768))
        );
    }

    /// Text of a graph of so many random operators, on vectors whose sizes are powers of two.
    fn random(u: &mut Unstructured<'_>, count: usize) -> Result<String> {
        let (mut ops, mut sizes) = (String::new(), vec![64]);
        for new in 1..=count {
            let near = sizes.len().min(14);
            let a = sizes.len() - 1 - u.choose_index(near)?;
            let b = sizes.len() - 1 - u.choose_index(near)?;
            let same = sizes[a] == sizes[b];
            let (op, size) = match u.int_in_range(0..=3)? {
                0 if same && sizes[a] < 1024 => (format!("Concat<axis = 0>(v{a}, v{b})"), 2 * sizes[a]),
                1 if sizes[a] > 16 => (format!("Slice(v{a}, zero, half{})", sizes[a] / 2), sizes[a] / 2),
                2 if same => (format!("Add(v{a}, v{b})"), sizes[a]),
                _ => (format!("Exp(v{a})"), sizes[a]),
            };
            ops += &format!("v{new} = {op} ");
            sizes.push(size);
        }
        let halves: String =
            (3..=9).map(|i| 1 << i).map(|half| format!(", int64[1] half{half} = {{{half}}}")).collect();
        Ok(format!(
            "f (float[64] v0) => (float[{}] v{count}) <int64[1] zero = {{0}}{halves}> {{ {ops} }}",
            sizes[count]
        ))
    }

    /// Of the first 300 graphs, those for which the long search alone comes to more in the runtime's plan.
    #[test]
    fn more_effort_never_comes_to_more() {
        for seed in [3, 69, 117] {
            arbtest(|u| {
                let count = u.int_in_range(60..=160)?;
                let mut model = parse_model(&random(u, count)?).unwrap();
                infer::infer_graph(&mut model.graph);
                let planning = Planning::default();
                let sized = planning.sized(&model.graph);
                let order = order_of(&model.graph);
                let peak = |effort| in_better_order(&sized, &order, effort).unwrap().timelines[0].peak_bytes;
                assert!(peak(&THOROUGH) <= peak(&QUICK), "{count} operators");
                Ok(())
            })
            // The lower half of a seed is the number of random bytes.
            .seed(seed << 32 | 1024)
            .run();
        }
    }

    #[test]
    fn an_order_that_is_worse_at_other_sizes_is_not_taken() {
        // With 224 in place of n, `a` should come first (225 and not 245 floats at a time), with 64 it should not (141 and
        // not 140).
        let text = "f (float[1,n] x, float[20,6] z) => (float[20,1] y) <int64[1] axis = {1}> {
            b = Neg(z)  q = ReduceSum(b, axis)  a = Exp(x)  p = ReduceSum(a, axis)  y = Mul(p, q)
         }";
        left_alone(PASS, text);
        let (model, _) = optimize(PASS, &text.replace("[1,n]", "[1,224]"), Options::default());
        let first = model.graph.order().unwrap()[0];
        assert!(model.graph.op(first).is("Exp"));
    }

    #[test]
    fn bodies_are_put_in_order_too() {
        check(
            PASS,
            "f (bool c, float[1,64] x) => (float[1,1] y) <int64[1] axis = {1}> {
                y = If (c) <
                    then_branch = t () => (float[1,1] r) {
                        a = Exp(x)  b = Neg(x)  p = ReduceSum(a, axis)  q = ReduceSum(b, axis)  r = Mul(p, q) },
                    else_branch = e () => (float[1,1] s) { s = ReduceSum(x, axis) }>
             }",
            "f (bool c, float[1,64] x) => (float[1,1] y) <int64[1] axis = {1}> {
                y = If (c) <
                    then_branch = t () => (float[1,1] r) {
                        b = Neg(x)  q = ReduceSum(b, axis)  a = Exp(x)  p = ReduceSum(a, axis)  r = Mul(p, q) },
                    else_branch = e () => (float[1,1] s) { s = ReduceSum(x, axis) }>
             }",
        );
    }

    #[test]
    fn a_size_that_is_not_known_is_named() {
        let refused =
            left_alone(PASS, "f (float[4] x) => (float[1,n] y) { m = NonZero(x)  y = Cast<to = 1>(m) }");
        assert_eq!(refused.len(), 1);
        assert!(refused[0].contains("'m'"), "{refused:?}");
    }
}
