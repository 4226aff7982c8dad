//! The rewrites, one file each, and the driver that runs them.
//!
//! The folder is the list of passes; [`PIPELINE`] is their order. A pass file opens with its own documentation: what
//! it does, an example before and after, and an example that it must refuse. The tests run those examples, and
//! `dmopt passes NAME` prints them. Adding a pass is one new file and two lines here: `mod`, and its place in
//! [`PIPELINE`].

#![forbid(unsafe_code)]

use dmopt_ir::{Graph, Names, OpId, Patch, Refusal, Rewriter, Safety, ValueId, infer};

mod accumulate_in_place;
mod affine;
mod batch;
mod channels;
mod common_subexpressions;
mod dedupe_initializers;
mod driver;
mod drop_dead;
mod evaluate;
mod flops;
mod fold_batch_norm;
mod fold_constants;
mod fuse_layer_affine;
mod fuse_scaled_sum;
pub mod header;
mod keep_copies;
mod linear;
mod nest_scaled_sum;
mod offers;
mod order_anchors;
mod planning;
mod raw_readers;
mod requires;
mod resolve_reshape;
mod samples;
mod schedule_for_memory;
mod slices;
mod split_batch;
mod split_concat;
mod split_hidden;
mod split_rows;

pub use driver::{FOLD_BUDGET, run};
pub use fuse_scaled_sum::mixing_sites;
pub use linear::Written;
pub use log::{Log, PassReport, Refused, Schedule, Site};
pub use offers::Chosen;
pub use planning::{Anchors, Planning, Target};
pub use requires::oldest_onnxruntime;

mod log;
#[cfg(test)]
mod testing;

/// Every pass in the order in which they run, [stage](Stage) by stage; the first stage repeats until nothing changes.
pub const PIPELINE: &[&dyn Pass] = &[
    &drop_dead::DropDead,
    &fold_constants::FoldConstants,
    &resolve_reshape::ResolveReshape,
    &dedupe_initializers::DedupeInitializers,
    &common_subexpressions::CommonSubexpressions,
    &fuse_scaled_sum::FuseScaledSum,
    &fuse_layer_affine::FuseLayerAffine,
    &fold_batch_norm::FoldBatchNorm,
    &split_batch::SplitBatch,
    &split_concat::SplitConcat,
    &split_rows::SplitRows,
    &split_hidden::SplitHidden,
    &nest_scaled_sum::NestScaledSum,
    &schedule_for_memory::ScheduleForMemory,
    &accumulate_in_place::AccumulateInPlace,
    &keep_copies::KeepCopies,
    &order_anchors::OrderAnchors,
];

/// A rewrite of a graph.
pub trait Pass: Sync {
    /// Name on the command line and in reports, the file's name with dashes.
    fn name(&self) -> &'static str;

    /// The text of the pass's file: its header is its documentation, example and test.
    fn source(&self) -> &'static str;

    /// The furthest that any of its edits may change results.
    fn safety(&self) -> Safety;

    /// True if another run right after one that edited need not be tried; `log` has what was reported so far.
    fn settles(&self, log: &Log) -> bool {
        let _ = log;
        false
    }

    /// When it runs.
    fn stage(&self) -> Stage {
        Stage::Repeated
    }

    /// Edits one graph (the main graph or a body; bodies get their own call).
    fn run(&self, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>);

    /// What a pass of [`Stage::Offering`] could do: edits that pay only where they bring the peak of the whole graph down.
    /// The driver takes those that do (`offers.rs`); in [`Pass::run`], such a pass does only what the caller asked for
    /// whatever the peak.
    fn offers(&self, _graph: &Graph, _planning: &Planning) -> Vec<Offer> {
        Vec::new()
    }

    /// The edit that an offer stands for, at one of its levels.
    ///
    /// # Errors
    /// Why there is none.
    fn take(
        &self,
        _graph: &Graph,
        _planning: &Planning,
        _offer: &Offer,
        _level: usize,
    ) -> Result<Patch, Miss> {
        Err(Miss::NoMatch)
    }
}

/// When a pass runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Again and again with the others of this stage, until nothing changes.
    Repeated,
    /// Once the passes above have come to rest: it moves operators into a body, in which they run again.
    Batching,
    /// It makes offers when the passes above have come to rest; after what is taken, they run again.
    Offering,
    /// After that, and again where what follows from it leaves more to do: it puts operators of the target in the place of
    /// standard ones, which other passes read better.
    Lowering,
    /// Once, at the very end.
    Final,
}

/// An edit that a pass could make, and that pays only if the peak falls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The operator that the pass found it at, by which it finds it again.
    pub start: OpId,
    /// The operator whose result stays what it is; the name of that result tells the offer from others of the pass.
    pub op: OpId,
    /// Values that would no longer exist, or not at once: the offer is looked at while one of them is in memory at the
    /// peak.
    pub relieves: Vec<ValueId>,
    /// How far the edit can go: `take` knows levels from 0, the mildest, up to this, left out. Each makes about twice as many
    /// slices of something as the one before, by which it is told whether finer ones may help.
    pub levels: usize,
    /// Why it cannot be taken, where that is known before it is tried: told of, where it would matter.
    pub refused: Option<Miss>,
}

/// What a pass may use beside the graph.
pub struct Context<'a> {
    /// Bytes by which folding constants may still let the model grow.
    pub fold_budget: &'a mut u64,
    /// The memory that the model is optimized for.
    pub planning: &'a Planning,
    /// What is little enough, in bytes.
    pub budget_bytes: Option<u64>,
    /// True if the graph is a body.
    pub in_body: bool,
    /// True if another pass of this run decides about the order of operators.
    pub order_follows: bool,
    /// Where refusals and findings go.
    pub log: &'a mut Log,
}

/// A local rewrite: looks at one operator of a read-only graph and proposes an edit.
pub trait Rule {
    /// The edit that starts at this operator.
    ///
    /// # Errors
    /// Why there is none; only [`Miss::Refused`] is reported.
    fn at(&self, graph: &Graph, op: OpId) -> Result<Patch, Miss>;
}

/// Why a rule proposes no edit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Miss {
    /// The operator is not what the rule looks for.
    NoMatch,
    /// The edit would change nothing.
    NoEffect,
    /// The pattern is there, but the edit is not certain to be safe.
    Refused(String),
}

impl Miss {
    /// The pattern is there, but the edit is not certain to be safe, for this reason.
    pub fn refused(reason: impl Into<String>) -> Miss {
        Miss::Refused(reason.into())
    }
}

impl Context<'_> {
    /// Applies a rule to every operator, in order, again until a round changes nothing.
    pub fn apply_rule(&mut self, rule: &dyn Rule, rewriter: &mut Rewriter<'_>) {
        loop {
            let before = rewriter.applied();
            for op in order_of(rewriter.graph()) {
                if rewriter.graph().is_live(op) {
                    let proposal = rule.at(rewriter.graph(), op);
                    self.apply(op, proposal, rewriter);
                }
            }
            if rewriter.applied() == before || rewriter.out_of_fuel() {
                return;
            }
        }
    }

    /// Applies one proposal for an operator, or reports why not. True when the graph changed.
    pub fn apply(&mut self, op: OpId, proposal: Result<Patch, Miss>, rewriter: &mut Rewriter<'_>) -> bool {
        let node = || rewriter.graph().describe(op);
        let (node, reason) = match proposal {
            Ok(patch) => {
                let node = node();
                match rewriter.apply(patch) {
                    Ok(()) => return true,
                    Err(Refusal::OutOfFuel) => return false,
                    Err(refusal) => (node, refusal.to_string()),
                }
            }
            Err(Miss::Refused(reason)) => (node(), reason),
            Err(Miss::NoMatch | Miss::NoEffect) => return false,
        };
        self.log.refuse(node, reason);
        false
    }
}

/// Infers types where more than what patches brought with them can follow: where something is not known.
pub(crate) fn learn(graph: &mut Graph) {
    let is_known = |v| graph.tensor_type(v).is_some_and(|ty| ty.elements().is_some());
    if graph.has_bodies() || !graph.values().all(is_known) {
        infer::infer_graph(graph);
    } else {
        debug_assert!({
            let mut learned = graph.clone();
            infer::infer_graph(&mut learned);
            graph.values().all(|v| graph.value(v).ty == learned.value(v).ty)
        });
    }
}

/// The operators of a graph in order. Rewriters keep graphs free of cycles, so there is one.
pub(crate) fn order_of(graph: &Graph) -> Vec<OpId> {
    graph.order().unwrap_or_default()
}

/// A copy of a graph after those of the edits that fit, of whatever class, and how many did; `None` if they close a cycle.
pub(crate) fn edited(graph: &Graph, edits: impl IntoIterator<Item = Patch>) -> Option<(Graph, u64)> {
    let mut copy = graph.clone();
    let (mut names, mut fuel) = (Names::default(), None);
    names.add_graph(graph);
    let mut rewriter = Rewriter::new(&mut copy, &mut names, Safety::Approximates, &mut fuel);
    edits.into_iter().for_each(|patch| _ = rewriter.apply(patch));
    let applied = rewriter.finish().ok()?;
    Some((copy, applied))
}

/// Number of operators of a graph and of the bodies in it.
pub(crate) fn operators(graph: &Graph) -> usize {
    graph.ops().map(|op| 1 + graph.op(op).bodies().map(operators).sum::<usize>()).sum()
}

/// Called with the name of a pass and the round.
pub type Progress<'a> = &'a dyn Fn(&str, usize);

/// What to run, and how far.
#[derive(Default)]
pub struct Options<'a> {
    /// Only these passes, by name; empty means all.
    pub only: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
    /// Passes of the caller's own. They run with the others, before the one that decides about order.
    pub own: Vec<&'static dyn Pass>,
    /// Apply edits up to this class only; `None` means every class.
    pub allow: Option<Safety>,
    /// Stop after this many edits.
    pub stop_after: Option<u64>,
    /// Bytes by which folding constants may let the model grow; `None` means [`FOLD_BUDGET`].
    pub fold_budget: Option<u64>,
    /// The memory that the model is optimized for.
    pub planning: Planning,
    /// Take no more offers once the model needs no more than this many bytes.
    pub budget_bytes: Option<u64>,
    /// Take no offers that multiply the arithmetic by more than this; `None` means 1.
    pub max_flops_ratio: Option<f64>,
    /// What inference had to say, where the types of the model are those that came of it; without, they are inferred first.
    pub inferred: Option<&'a [infer::Note]>,
    /// What an earlier run for the same target found to pay: it is taken, and there is no search. Passes that do not run
    /// take nothing of it.
    pub offers: Option<&'a Chosen>,
    /// Check every invariant after every pass, not only in debug builds.
    pub verify: bool,
    /// Called before each run of a pass, with its name and the round (from 1).
    pub progress: Option<Progress<'a>>,
}

impl Options<'_> {
    /// Every pass there is, in the order in which they run.
    pub(crate) fn pipeline(&self) -> Vec<&'static dyn Pass> {
        let mut passes = PIPELINE.to_vec();
        let order = schedule_for_memory::ScheduleForMemory.name();
        let at = passes.iter().position(|pass| pass.name() == order).unwrap_or(passes.len());
        passes.splice(at..at, self.own.iter().copied());
        passes
    }
}

/// What the pipeline did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One entry for each pass that ran, in the order of the pipeline.
    pub passes: Vec<PassReport>,
    /// The mixing sites found in the model as it came in.
    pub sites: Vec<Site>,
    /// The order of each graph whose sizes are known.
    pub schedules: Vec<Schedule>,
    /// Types that inference and the file disagree on, what whoever deploys the result wants to know, and similar remarks.
    pub notes: Vec<String>,
    /// What was found to pay.
    pub offers: Chosen,
    /// The worst class among the edits applied; `None` when nothing changed.
    pub safety: Option<Safety>,
    /// True when `stop_after` ended the run.
    pub out_of_fuel: bool,
}

impl Outcome {
    /// The order of the main graph, where its figures are for sizes that are known.
    pub fn main_schedule(&self) -> Option<&Schedule> {
        self.schedules.iter().find(|schedule| !schedule.in_body && !schedule.assumed_sizes)
    }
}

/// Why the pipeline gave up; the model must not be written then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pass of this name does not exist.
    #[error("no pass is called '{name}'{}", .nearest.map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default())]
    UnknownPass {
        /// The name asked for.
        name: String,
        /// The closest name there is.
        nearest: Option<&'static str>,
    },
    /// A pass left the graph in a state that breaks an invariant: a defect of the pass.
    #[error("pass {pass} broke the graph: {violations}")]
    Broken {
        /// Name of the pass.
        pass: &'static str,
        /// The invariants it broke.
        violations: String,
    },
}

/// The pass of this name.
///
/// # Errors
/// There is none; the error names the closest.
pub fn find(name: &str) -> Result<&'static dyn Pass, Error> {
    PIPELINE.iter().copied().find(|p| p.name() == name).ok_or_else(|| Error::UnknownPass {
        name: name.to_string(),
        nearest: PIPELINE.iter().map(|p| p.name()).min_by_key(|n| edit_distance(n, name)),
    })
}

/// Levenshtein distance, for suggestions.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::{parse_model, print_model};
    use dmopt_ir::{Model, verify_model};

    use super::*;

    /// Work for several passes: a fold, an unread operator, a copy, an Identity.
    const BUSY: &str = "f (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {2, 1}> {
        c = Add(a, b)
        unread = Exp(x)
        i = Identity(x)
        s = Mul(i, c)
        t = Mul(x, c)
        u = Add(s, t)
        y = Relu(u)
    }";

    fn model(text: &str) -> Model {
        parse_model(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
    }

    fn only(passes: &[&str]) -> Options<'static> {
        Options { only: passes.iter().map(|p| p.to_string()).collect(), verify: true, ..Options::default() }
    }

    fn rewrites(outcome: &Outcome) -> u64 {
        outcome.passes.iter().map(|p| p.rewrites).sum()
    }

    #[test]
    fn pass_names_are_file_names_with_dashes_and_unique() {
        for pass in PIPELINE {
            assert_eq!(PIPELINE.iter().filter(|p| p.name() == pass.name()).count(), 1);
            assert!(
                std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join(format!("{}.rs", pass.name().replace('-', "_")))
                    .is_file()
            );
        }
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let mut model = model(BUSY);
        let first = run(&mut model, &only(&[])).unwrap();
        assert!(rewrites(&first) >= 4);
        let text = print_model(&model);
        let second = run(&mut model, &only(&[])).unwrap();
        assert_eq!((rewrites(&second), second.safety), (0, None));
        assert_eq!(print_model(&model), text);
    }

    #[test]
    fn every_number_of_edits_up_to_the_last_leaves_a_sound_model() {
        let all = rewrites(&run(&mut model(BUSY), &only(&[])).unwrap());
        for stop_after in 0..=all + 1 {
            let mut model = model(BUSY);
            let outcome = run(&mut model, &Options { stop_after: Some(stop_after), ..only(&[]) }).unwrap();
            assert_eq!(rewrites(&outcome), stop_after.min(all));
            assert_eq!(outcome.out_of_fuel, stop_after <= all);
            assert_eq!(verify_model(&model), []);
        }
    }

    #[test]
    fn an_unknown_pass_is_an_error_that_names_the_closest() {
        for options in
            [only(&["drop-daed"]), Options { skip: vec!["drop-daed".into()], ..Options::default() }]
        {
            let error = run(&mut model(BUSY), &options).unwrap_err();
            assert_eq!(error.to_string(), "no pass is called 'drop-daed' (did you mean 'drop-dead'?)");
        }
    }

    #[test]
    fn skipped_passes_do_not_run_and_are_not_reported() {
        let outcome =
            run(&mut model(BUSY), &Options { skip: vec!["fold-constants".into()], ..only(&[]) }).unwrap();
        assert!(outcome.passes.iter().all(|p| p.name != "fold-constants"));
        assert_eq!(outcome.passes.len(), PIPELINE.len() - 1);
    }

    #[test]
    fn bodies_are_visited_at_every_depth() {
        let mut model = model(
            "f (bool c, bool d, float[1] x) => (float[1] y) {
               y = If (c) <
                 then_branch = t () => (float[1] v) {
                   v = If (d) <
                     then_branch = t2 () => (float[1] p) { unread = Exp(x) p = Neg(x) },
                     else_branch = e2 () => (float[1] q) { q = Abs(x) }>
                 },
                 else_branch = e () => (float[1] w) { gone = Exp(x) w = Relu(x) }>
             }",
        );
        let outcome = run(&mut model, &only(&["drop-dead"])).unwrap();
        assert_eq!(rewrites(&outcome), 2);
        assert!(!print_model(&model).contains("Exp"));
    }

    #[test]
    fn edits_beyond_the_allowed_class_are_refused_and_reported() {
        let options = Options { allow: Some(Safety::Exact), ..only(&[]) };
        let mut strict =
            model("f (float[1] x) => (float[1] y) <float[1] a = {2}> { e = Exp(a) y = Mul(x, e) }");
        let outcome = run(&mut strict, &options).unwrap();
        assert_eq!(outcome.safety, None);
        assert_eq!(testing::refusals(&outcome), ["Exp of 'e': not bit-identical (reassociates)"]);
        let outcome = run(&mut strict, &Options { allow: None, ..options }).unwrap();
        assert_eq!(outcome.safety, Some(Safety::Reassociates));
        assert!(testing::refusals(&outcome).is_empty());
    }

    #[test]
    fn a_pass_is_not_blamed_for_a_model_that_was_wrong_before() {
        // No operator set is imported.
        let text = "f (float[2] x) => (float[2] y) { t = Identity(x) u = Relu(t) y = Relu(u) }";
        let graph = dmopt_ir::text::parse_graph(text, dmopt_ir::Opsets::new()).unwrap();
        let mut model = Model { graph, ..model(text) };
        assert!(!verify_model(&model).is_empty());
        assert!(run(&mut model, &only(&["drop-dead"])).is_ok());
    }

    #[test]
    fn a_pass_is_not_blamed_for_what_a_file_declares_and_folding_disproves() {
        let text = "f (float[N,2] x) => (float[4,M] y) <int64[1] a = {3}, int64[1] rest = {-1}> {
            s = Shape<start = 1>(x)
            t = Mul(s, a)
            shape = Concat<axis = 0>(t, rest)
            y = Reshape(x, shape)
        }";
        let outcome = run(&mut model(text), &only(&["fold-constants"])).unwrap();
        assert!(rewrites(&outcome) > 0);
    }

    #[test]
    fn progress_names_each_pass_and_round() {
        let seen = std::cell::RefCell::new(Vec::new());
        let note = |pass: &str, round: usize| seen.borrow_mut().push(format!("{pass} {round}"));
        let options = Options { progress: Some(&note), ..only(&["drop-dead"]) };
        run(&mut model(BUSY), &options).unwrap();
        assert_eq!(seen.into_inner(), ["drop-dead 1", "drop-dead 2"]);
    }
}
