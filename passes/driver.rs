//! Runs the passes over a model, stage by stage, and keeps count.

use std::collections::{BTreeMap, HashMap, HashSet};

use dmopt_ir::{
    Boundary, Def, Graph, Invariant, Model, Names, Rewriter, Safety, Violation, infer, verify_model,
};

use crate::log::note_written;
use crate::offers::{Offers, Taken};
use crate::split_batch::sliced;
use crate::{
    Context, Error, Log, Options, Outcome, Pass, Stage, find, learn, order_anchors, order_of,
    schedule_for_memory,
};

/// How many bytes folding constants may add to a model unless told otherwise.
pub const FOLD_BUDGET: u64 = 1 << 20;

/// Rounds of the repeated passes after which they stop even if they still find edits; a model that needs this many points
/// to two passes that undo each other.
const MAX_ROUNDS: usize = 16;

/// How often operators of the target are put in at most, each time until the others are at rest.
const MAX_LOWERINGS: usize = 4;

/// Runs the pipeline over a model: the main graph and every body.
///
/// # Errors
/// See [`Error`].
pub fn run(model: &mut Model, options: &Options<'_>) -> Result<Outcome, Error> {
    let pipeline = options.pipeline();
    for name in options.only.iter().chain(&options.skip) {
        if pipeline.iter().all(|pass| pass.name() != name) {
            find(name)?;
        }
    }
    let chosen = |pass: &dyn Pass| {
        let name = pass.name().to_string();
        (options.only.is_empty() || options.only.contains(&name)) && !options.skip.contains(&name)
    };
    let passes: Vec<&'static dyn Pass> = pipeline.into_iter().filter(|p| chosen(*p)).collect();
    let of = |stage: Stage| passes.iter().copied().filter(move |p| p.stage() == stage);
    let imported = options.planning.target.domain().filter(|domain| model.import(domain, 1));
    let noted = options.inferred.map_or_else(|| infer::infer_graph(&mut model.graph), <[_]>::to_vec);
    if !noted.is_empty() {
        // Of what the file and inference disagree on, what both say is left: now that the file has had its say, it follows
        // from the operators.
        infer::infer_graph(&mut model.graph);
    }
    let baseline = (options.verify || cfg!(debug_assertions)).then(|| Baseline::of(model));
    let notes = noted.iter().map(ToString::to_string).collect();
    let mut outcome = Outcome { notes, ..Outcome::default() };
    // Anchors count as readers, which stand in the way of edits; and what they order may not stay as it is.
    let came_as = layout(&model.graph);
    if passes.iter().any(|p| p.name() == order_anchors::OrderAnchors.name()) {
        let (mut names, mut fuel) = (Names::default(), None);
        let mut rewriter = Rewriter::new(&mut model.graph, &mut names, Safety::Exact, &mut fuel);
        order_anchors::strip(&mut rewriter);
        // Taking out what nothing reads closes no cycle.
        let _ = rewriter.finish();
    }
    let mut driver = Driver {
        names: Names::of(model),
        options,
        fuel: options.stop_after,
        fold_budget: options.fold_budget.unwrap_or(FOLD_BUDGET),
        order_follows: passes.iter().any(|p| p.name() == schedule_for_memory::ScheduleForMemory.name()),
        baseline,
        logs: BTreeMap::new(),
        edits: 0,
        rounds: 0,
        quiet_at: HashMap::new(),
        worst: None,
    };
    let repeated: Vec<&'static dyn Pass> = of(Stage::Repeated).collect();
    // Where other operators will stand in the end, the order is found for those, and begins with that of the file.
    let lowers = options.planning.target.domain().is_some() && of(Stage::Lowering).next().is_some();
    let orders = |p: &&dyn Pass| p.name() == schedule_for_memory::ScheduleForMemory.name();
    let early: Vec<&'static dyn Pass> = repeated.iter().copied().filter(|p| !(lowers && orders(p))).collect();
    driver.rest(&early, model)?;
    for pass in of(Stage::Batching) {
        driver.run(pass, model)?;
    }
    driver.rest(&early, model)?;
    for pass in of(Stage::Offering) {
        driver.run(pass, model)?;
    }
    driver.rest(&early, model)?;
    let (offering, lowering) = (of(Stage::Offering).collect(), of(Stage::Lowering).collect());
    let offers = Offers::new(offering, lowering, options, driver.order_follows);
    let chosen = match options.offers {
        Some(chosen) => chosen.clone(),
        None => offers.choose_everywhere(&model.graph, &driver.names),
    };
    for (pass, node, reason) in chosen.refused.iter().cloned() {
        driver.logs.entry(pass).or_default().refuse(node, reason);
    }
    driver.take(&offers, &chosen.taken, model)?;
    outcome.offers = chosen;
    driver.rest(&early, model)?;
    let lowering: Vec<&'static dyn Pass> = of(Stage::Lowering).collect();
    for _ in 0..MAX_LOWERINGS {
        let before = driver.edits;
        for pass in &lowering {
            driver.run(*pass, model)?;
        }
        driver.rest(&repeated, model)?;
        // What was folded since may leave more to lower.
        if lowering.is_empty() || driver.edits == before {
            break;
        }
    }
    for pass in of(Stage::Final) {
        driver.run(pass, model)?;
    }
    driver.settle_order(&came_as, &model.graph);
    if let Some(domain) = imported {
        model.drop_import(domain);
    }
    let Driver { fuel, mut logs, worst, .. } = driver;
    outcome.safety = worst;
    outcome.out_of_fuel = fuel == Some(0);
    // Up to version 3 of the format, every initializer is an input too; what passes add is none.
    let is_new = |v| matches!(model.graph.value(v).def, Def::Initializer(_));
    if outcome.safety.is_some() && model.ir_version < 4 && model.graph.values().any(is_new) {
        model.ir_version = 4;
    }
    for pass in passes {
        let log = logs.remove(pass.name()).unwrap_or_default();
        outcome.sites.extend(log.sites.iter().cloned());
        outcome.schedules.extend(log.schedules.iter().cloned());
        outcome.notes.extend(log.notes.iter().cloned());
        outcome.passes.push(log.report(pass));
    }
    note_written(&mut outcome.sites, &model.graph);
    Ok(outcome)
}

/// Runs passes one after the other and keeps count.
struct Driver<'a> {
    options: &'a Options<'a>,
    names: Names,
    fuel: Option<u64>,
    fold_budget: u64,
    order_follows: bool,
    baseline: Option<Baseline>,
    logs: BTreeMap<&'static str, Log>,
    /// Edits applied by all passes.
    edits: u64,
    /// How often the repeated passes have begun.
    rounds: usize,
    /// The number of edits at which a pass had nothing more to do.
    quiet_at: HashMap<&'static str, u64>,
    worst: Option<Safety>,
}

impl Driver<'_> {
    /// Moving operators back and forth, or taking anchors out and putting them in again, is no edit; leaving them out
    /// is one.
    fn settle_order(&mut self, came_as: &str, graph: &Graph) {
        let movers = [schedule_for_memory::ScheduleForMemory.name(), order_anchors::OrderAnchors.name()];
        let others: u64 =
            self.logs.iter().filter(|(name, _)| !movers.contains(name)).map(|(_, log)| log.rewrites).sum();
        if others > 0 {
            return;
        }
        let stays = came_as == layout(graph);
        if stays {
            self.logs.values_mut().for_each(|log| log.rewrites = 0);
            self.worst = None;
        } else if self.edits == 0 {
            self.logs.entry(movers[1]).or_default().rewrites = 1;
            self.worst = Some(Safety::Exact);
        }
    }

    /// Runs passes again and again until nothing changes.
    fn rest(&mut self, passes: &[&'static dyn Pass], model: &mut Model) -> Result<(), Error> {
        for _ in 0..MAX_ROUNDS {
            let before = self.edits;
            self.rounds += 1;
            for pass in passes {
                self.run(*pass, model)?;
            }
            if self.edits == before || self.fuel == Some(0) {
                break;
            }
        }
        Ok(())
    }

    /// Takes the offers that were chosen.
    fn take(&mut self, offers: &Offers<'_>, taken: &Taken, model: &mut Model) -> Result<(), Error> {
        offers.each(taken, |pass, done| {
            self.edit(pass, model, &mut |rewriter, _| {
                offers.run(pass, taken, done, rewriter);
                if let Some(op) = sliced(rewriter.graph()) {
                    rewriter.in_bodies(op, &mut |body| offers.run(pass, taken, done, body));
                }
            })
        })
    }

    /// Runs one pass over a model, unless it has seen the model as it is.
    fn run(&mut self, pass: &'static dyn Pass, model: &mut Model) -> Result<(), Error> {
        if self.quiet_at.get(pass.name()) == Some(&self.edits) {
            return Ok(());
        }
        if let Some(progress) = self.options.progress {
            progress(pass.name(), self.rounds);
        }
        self.logs.entry(pass.name()).or_default().start_round();
        self.edit(pass, model, &mut |rewriter, context| run_everywhere(pass, rewriter, context))
    }

    /// Lets a pass edit a model, and keeps count.
    fn edit(
        &mut self,
        pass: &'static dyn Pass,
        model: &mut Model,
        edit: &mut dyn FnMut(&mut Rewriter<'_>, &mut Context<'_>),
    ) -> Result<(), Error> {
        let scheduled = self.logs.get(schedule_for_memory::ScheduleForMemory.name());
        let reordered = scheduled.is_some_and(|log| log.rewrites > 0);
        let log = self.logs.entry(pass.name()).or_default();
        log.reordered = reordered;
        let mut context = Context {
            fold_budget: &mut self.fold_budget,
            planning: &self.options.planning,
            budget_bytes: self.options.budget_bytes,
            in_body: false,
            order_follows: self.order_follows,
            log,
        };
        let allow = self.options.allow.unwrap_or(Safety::Approximates);
        let mut rewriter = Rewriter::new(&mut model.graph, &mut self.names, allow, &mut self.fuel);
        edit(&mut rewriter, &mut context);
        let worst = rewriter.worst();
        let applied = rewriter.finish().map_err(|_| Error::Broken {
            pass: pass.name(),
            violations: "operators depend on each other in a circle".to_string(),
        })?;
        log.rewrites += applied;
        self.edits += applied;
        self.worst = self.worst.max(worst);
        if applied > 0 {
            // What was folded or dropped may tell a shape that was not known before.
            learn(&mut model.graph);
        }
        if applied == 0 || pass.settles(log) {
            self.quiet_at.insert(pass.name(), self.edits);
        }
        match &self.baseline {
            Some(baseline) => baseline.check(model, pass.name()),
            None => Ok(()),
        }
    }
}

/// The operators of a graph and its bodies in order, by name, type and results.
fn layout(graph: &Graph) -> String {
    let mut all = String::new();
    for id in order_of(graph) {
        let op = graph.op(id);
        let results = op.results().map(|v| graph.value(v).name.as_str());
        for word in [op.name.as_str(), &op.op_type].into_iter().chain(results) {
            all.push_str(word);
            all.push('\0');
        }
        all.push('\n');
        op.bodies().for_each(|body| all.push_str(&layout(body)));
    }
    all
}

/// Bodies first: what they capture may end there.
fn run_everywhere(pass: &dyn Pass, rewriter: &mut Rewriter<'_>, context: &mut Context<'_>) {
    let in_body = std::mem::replace(&mut context.in_body, true);
    let with_bodies = if rewriter.graph().has_bodies() { order_of(rewriter.graph()) } else { Vec::new() };
    for op in with_bodies {
        rewriter.in_bodies(op, &mut |body| run_everywhere(pass, body, context));
    }
    context.in_body = in_body;
    pass.run(rewriter, context);
}

/// What a model looked like before any pass: a pass is not to blame for what was wrong already, nor for what its file
/// says without proof and what it folds proves wrong.
struct Baseline {
    boundary: Boundary,
    unproven: HashSet<String>,
    wrong: HashMap<Invariant, usize>,
}

impl Baseline {
    fn of(model: &Model) -> Baseline {
        let (boundary, unproven) = (Boundary::of(&model.graph), infer::unproven_outputs(&model.graph));
        let mut baseline = Baseline { boundary, unproven, wrong: HashMap::new() };
        for violation in baseline.violations(model) {
            *baseline.wrong.entry(violation.invariant).or_default() += 1;
        }
        baseline
    }

    fn violations(&self, model: &Model) -> Vec<Violation> {
        let mut violations = verify_model(model);
        violations.retain(|v| v.value.as_ref().is_none_or(|value| !self.unproven.contains(value)));
        violations
    }

    /// An invariant that more operators break than before is the pass's doing; names may have changed, so they are
    /// counted.
    fn check(&self, model: &Model, pass: &'static str) -> Result<(), Error> {
        let violations = self.violations(model);
        let count = |i: Invariant| violations.iter().filter(|v| v.invariant == i).count();
        let is_new = |v: &&Violation| count(v.invariant) > self.wrong.get(&v.invariant).copied().unwrap_or(0);
        let new = violations.iter().filter(is_new).cloned().chain(self.boundary.check(&model.graph));
        let new: Vec<String> = new.map(|v| v.to_string()).collect();
        if new.is_empty() { Ok(()) } else { Err(Error::Broken { pass, violations: new.join("\n") }) }
    }
}
