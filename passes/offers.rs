//! Which offers are taken: those that bring the predicted peak down.
//!
//! The graph is at rest when this begins. A trial is a copy of it in which some offers are taken, each at a level, with
//! the target's operators put in and the operators ordered anew; its peak is that of the runtime's plan. While a trial
//! needs less than the best so far, the offers that touch what is in memory at its peak are taken further: all of them
//! together, at the level at which that helps most, or where it does not help one at a time. Slices are half as wide at each
//! level, so all that are left gain at most what the last one gained: where that is too little, they are not tried. Then
//! whatever can be taken back, wholly or to a milder level, by itself or two at once, without a higher peak (or one that
//! does not fit) is taken back, so no more is changed than pays. Where that brings the peak down, which is elsewhere then,
//! it begins again.
//!
//! Kernels that do not add in place need a result in parts twice while it is added up, so that places which pay together
//! do not one by one. Where the target has no operators of its own for that, the search is made once more for ideal
//! kernels, and where what it takes needs less on the target's kernels, too, it goes on from there. In the end, what came
//! to nothing together is tried once more with a longer search for the order, where the search may have missed much.
//! What makes half as many operators again for hardly less is taken back, unless the model has to fit a budget.
//!
//! Every trial begins with the same graph. So the outcome does not depend on the way to it, a level replaces the one
//! below it, and what another offer made possible is found again.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::{ControlFlow, Range};

use dmopt_ir::{Graph, Names, Patch, Rewriter, Safety, parallel};
use dmopt_memory::Kernels;
use dmopt_memory::ort::{Tenant, Timeline};

use crate::flops::flops;
use crate::schedule_for_memory::{CARE, CAREFUL, Effort, Ordered, QUICK, in_better_order};
use crate::split_batch::sliced;
use crate::{Context, Log, Miss, Offer, Options, Pass, Planning, learn, operators, order_of};

/// An offer: the pass that makes it, and the name of the result that stays.
pub(crate) type Key = (&'static str, String);

/// Offers that are taken, with their levels.
pub(crate) type Taken = BTreeMap<Key, usize>;

/// What came of offers: the name of each new value, with the offer and how many levels that has.
type Made = HashMap<String, (Key, usize)>;

/// What each pass offers for a graph.
type Found = BTreeMap<&'static str, Vec<Offer>>;

/// What came of the search for offers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Chosen {
    /// The offers that pay.
    pub(crate) taken: Taken,
    /// Those that do not, or cannot be taken: the pass, what it is about, and the reason.
    pub(crate) refused: Vec<(&'static str, String, String)>,
}

/// A trial has to bring the peak down by one part in this many.
const WORTHWHILE: u64 = 256;

/// Going one level further, which makes more and smaller operators, has to bring it down by one part in this many.
const WORTH_A_LEVEL: u64 = 32;

/// What brings it down by less than that is not worth it where so many parts in three of the operators do without it.
const LEANER: usize = 2;

/// A longer search for the order of a trial has to bring it down by one part in this many.
const WORTH_CARE: u64 = 6;

/// Steps that need this share of the peak, in parts of 64, are looked at together with it.
const NEAR_PEAK: u64 = 63;

/// How many operators the graphs of all trials together may have: some seconds of work.
const WORK: usize = 300_000;

/// So many levels show whether finer ones may help: those are larger, and are begun only then.
const AT_ONCE: usize = 2;

/// One part in this many comes on top of it for the last step.
const LAST: usize = 10;

/// The passes that take part, and what they may do.
pub(crate) struct Offers<'a> {
    /// Those that make offers.
    offering: Vec<&'static dyn Pass>,
    /// Those that put the target's operators in.
    lowering: Vec<&'static dyn Pass>,
    /// What the model is optimized for.
    planning: &'a Planning,
    /// The kernels that trials are planned for.
    kernels: Kernels,
    /// The edits that the caller allows.
    allow: Safety,
    /// What is little enough, in bytes.
    budget_bytes: Option<u64>,
    /// How much more arithmetic a trial may take, as a factor.
    max_flops_ratio: f64,
    /// True if operators will be put in the best order.
    reorder: bool,
}

/// A copy of the graph with some offers taken.
#[derive(Clone)]
struct Trial {
    taken: Taken,
    /// The peak in bytes, at each of the sizes that matter.
    peaks: Vec<u64>,
    /// How often the graph comes near to the first of them.
    crests: usize,
    flops: u128,
    /// Number of operators, those of bodies too.
    ops: usize,
    /// What a longer search for their order may come to, in bytes; that it would not get below this is likely, not certain.
    least_bytes: u64,
    /// Bytes of values that are alive at once in the order that was searched for, as many as there can be where none was. What a
    /// runtime holds beyond them comes and goes with sizes.
    alive_bytes: u64,
    /// Why an offer that is in `taken` comes to nothing.
    refused: BTreeMap<Key, String>,
    /// The same graph on ideal kernels, where that was asked for.
    on_ideal: Option<Box<Trial>>,
}

/// What touches what is in memory at the peak of a trial.
#[derive(Default)]
struct Around {
    /// Offers that are open, or can go further; with the levels that are left.
    next: BTreeMap<Key, Range<usize>>,
    /// Why an offer that would be there comes to nothing.
    refused: BTreeMap<Key, String>,
}

/// An offer that is not taken.
struct Open {
    key: Key,
    /// Names of what it relieves.
    relieves: Vec<String>,
    levels: usize,
    /// Why it cannot be.
    obstacle: Option<String>,
}

impl Trial {
    /// True if this needs less than another and more at no size; or as much, but less often, so that one that needs less
    /// is nearer.
    fn beats(&self, other: &Trial) -> bool {
        self.no_worse(other) && (self.is_below(other, WORTHWHILE) || self.crests < other.crests)
    }

    /// True if the peak is lower by more than one part in so many.
    fn is_below(&self, other: &Trial, parts: u64) -> bool {
        let (now, before) = (self.peaks[0], other.peaks[0]);
        now + before / parts < before
    }

    fn no_worse(&self, other: &Trial) -> bool {
        self.peaks.iter().zip(&other.peaks).all(|(now, before)| now <= before)
    }

    /// True if it takes more arithmetic than allowed.
    fn is_too_much(&self, allowed: f64) -> bool {
        self.flops as f64 > allowed
    }

    /// True if a longer search for its order might get far below the best.
    fn may_beat(&self, best: &Trial) -> bool {
        self.least_bytes < best.peaks[0] - best.peaks[0] / WORTH_CARE
    }

    /// True if neither this level of what is tried beats the best, or fits, nor finer ones are likely to: at each, slices are half
    /// as wide, so that all of them together gain at most what this one gained over the milder one before. A level that gets
    /// below the best in what is alive is promising, whatever the runtime holds beyond that, and of one at which an offer came
    /// to nothing, nothing follows.
    fn is_in_vain(&self, before: Option<&Trial>, best: &Trial, budget_bytes: Option<u64>) -> bool {
        let Some(before) = before.filter(|before| before.refused.is_empty() && self.refused.is_empty())
        else {
            return false;
        };
        let ends_above =
            |now: u64, before: u64, most: u64| now.saturating_sub(before.saturating_sub(now)) > most;
        // What comes as high less often beats it, too.
        let less = if best.crests > 1 { 0 } else { (best.peaks[0] / WORTHWHILE).max(1) };
        let enough = best.peaks[0].saturating_sub(less);
        !self.beats(best)
            && !self.may_beat(best)
            && ends_above(self.peaks[0], before.peaks[0], enough.max(budget_bytes.unwrap_or(0)))
            && ends_above(self.alive_bytes, before.alive_bytes, best.alive_bytes.saturating_sub(1))
    }
}

impl<'a> Offers<'a> {
    /// The passes that make offers and those that put the target's operators in, with what the caller wants of them.
    pub fn new(
        offering: Vec<&'static dyn Pass>,
        lowering: Vec<&'static dyn Pass>,
        options: &'a Options<'_>,
        reorder: bool,
    ) -> Offers<'a> {
        Offers {
            offering,
            lowering,
            planning: &options.planning,
            kernels: options.planning.target.kernels(),
            allow: options.allow.unwrap_or(Safety::Approximates),
            budget_bytes: options.budget_bytes,
            max_flops_ratio: options.max_flops_ratio.unwrap_or(1.0),
            reorder,
        }
    }

    /// The offers that pay in a graph and in what it does to slices, and why others do not.
    pub fn choose_everywhere(&self, graph: &Graph, names: &Names) -> Chosen {
        let mut chosen = self.choose(graph, names);
        let Some(body) = sliced(graph).and_then(|id| graph.op(id).bodies().next()) else { return chosen };
        // What is in memory around the body takes of the budget.
        let peak = |graph: &Graph| self.planning.sized(graph).peaks().map_or(0, |peaks| peaks[0]);
        let around = peak(graph).saturating_sub(peak(body));
        let within = Offers {
            offering: self.offering.clone(),
            lowering: self.lowering.clone(),
            budget_bytes: self.budget_bytes.map(|bytes| bytes.saturating_sub(around)),
            ..*self
        };
        let own = within.choose(body, names);
        chosen.taken.extend(own.taken);
        chosen.refused.extend(own.refused);
        chosen
    }

    /// The offers that pay, and why others do not.
    fn choose(&self, graph: &Graph, names: &Names) -> Chosen {
        let mut chosen = Chosen::default();
        let found = self.found(graph);
        let open = self.open(graph, &found, &Taken::new());
        if open.is_empty() {
            return chosen;
        }
        if let Some(size) = self.planning.open_size(graph) {
            for pass in open.iter().map(|offer| offer.key.0).collect::<BTreeSet<_>>() {
                let reason = format!("what pays depends on the size '{size}', which is open");
                chosen.refused.push((pass, format!("graph '{}'", graph.name()), reason));
            }
            return chosen;
        }
        let ideal = Offers {
            offering: self.offering.clone(),
            lowering: Vec::new(),
            kernels: Kernels::Ideal,
            ..*self
        };
        let on_ideal = TrialsOf { offers: &ideal, ideal: None, graph, names, found: &found };
        let ideal = self.planning.target.domain().is_none().then_some(&on_ideal);
        let trials = TrialsOf { offers: self, ideal, ..on_ideal };
        let Some(start) = trials.attempt(&Taken::new(), &QUICK, false) else { return chosen };
        let mut search = Search::new(&trials, &start, self.budget_bytes, self.max_flops_ratio);
        search.ideal = ideal.map(|trials| trials as &dyn Trials);
        let best = search.run(start);
        let Search { useless, mut reasons, .. } = search;
        reasons.extend(useless);
        reasons.retain(|key, _| !best.taken.contains_key(key));
        // What is taken and yet came to nothing is told of, too.
        reasons.extend(best.refused);
        let refused = |((pass, result), reason): (Key, String)| (pass, format!("'{result}'"), reason);
        chosen.refused = reasons.into_iter().map(refused).collect();
        chosen.taken = best.taken;
        chosen
    }

    /// Lets each pass take what is in `taken`, and again while that makes more possible. `take` adds to what is done.
    pub fn each<E>(
        &self,
        taken: &Taken,
        mut take: impl FnMut(&'static dyn Pass, &mut BTreeSet<Key>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = BTreeSet::new();
        while done.len() < taken.len() {
            let before = done.len();
            for pass in &self.offering {
                if taken.keys().any(|key| key.0 == pass.name() && !done.contains(key)) {
                    take(*pass, &mut done)?;
                }
            }
            if done.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Everything that is offered for a graph.
    fn found(&self, graph: &Graph) -> Found {
        self.offering.iter().map(|pass| (pass.name(), pass.offers(graph, self.planning))).collect()
    }

    /// Offers that are not taken.
    fn open(&self, graph: &Graph, found: &Found, taken: &Taken) -> Vec<Open> {
        let mut open = Vec::new();
        for (pass, offers) in found {
            for offer in offers {
                let Some(key) = key_of(pass, graph, offer) else { continue };
                let obstacle = match &offer.refused {
                    None => None,
                    Some(Miss::Refused(reason)) => Some(reason.clone()),
                    Some(Miss::NoMatch | Miss::NoEffect) => continue,
                };
                if !taken.contains_key(&key) {
                    let relieves = offer.relieves.iter().map(|&v| graph.value(v).name.clone()).collect();
                    open.push(Open { key, relieves, levels: offer.levels, obstacle });
                }
            }
        }
        open
    }

    /// Takes those of a pass's offers that are in `taken` and not done yet. `made`, if it is there, learns which values came
    /// of each.
    fn take(
        &self,
        (pass, offers): (&'static dyn Pass, &[Offer]),
        taken: &Taken,
        done: &mut BTreeSet<Key>,
        rewriter: &mut Rewriter<'_>,
        mut made: Option<&mut Made>,
        refused: &mut dyn FnMut(&Key, String),
    ) {
        let planning = self.planning;
        for offer in offers {
            let graph = rewriter.graph();
            let Some(key) = graph.is_live(offer.op).then(|| key_of(pass.name(), graph, offer)).flatten()
            else {
                continue;
            };
            let Some(&level) = taken.get(&key) else { continue };
            if done.contains(&key) {
                continue;
            }
            let first = graph.value_bound();
            let patch: Result<Patch, Miss> = pass.take(graph, planning, offer, level.min(offer.levels - 1));
            match patch.map(|patch| rewriter.apply(patch)) {
                Ok(Ok(())) => {
                    if let Some(made) = made.as_deref_mut() {
                        let graph = rewriter.graph();
                        let names = graph.values_from(first).map(|v| graph.value(v).name.clone());
                        made.extend(names.map(|name| (name, (key.clone(), offer.levels))));
                    }
                    done.insert(key);
                }
                Ok(Err(refusal)) => refused(&key, refusal.to_string()),
                Err(Miss::Refused(reason)) => refused(&key, reason),
                Err(Miss::NoMatch | Miss::NoEffect) => {}
            }
        }
    }

    /// Takes offers for good.
    pub fn run(
        &self,
        pass: &'static dyn Pass,
        taken: &Taken,
        done: &mut BTreeSet<Key>,
        rewriter: &mut Rewriter<'_>,
    ) {
        let offers = pass.offers(rewriter.graph(), self.planning);
        self.take((pass, &offers), taken, done, rewriter, None, &mut |_, _| {});
    }
}

/// Where trials are made.
trait Trials: Sync {
    /// A trial with these offers taken; `None` where a size is not known in it. One on ideal kernels may come with it.
    fn attempt(&self, taken: &Taken, effort: &Effort, with_ideal: bool) -> Option<Trial>;

    /// What could be taken to get further than that. It takes as long, and most trials lead nowhere.
    fn around(&self, taken: &Taken, effort: &Effort) -> Option<Around>;
}

/// Trials of what is offered for a graph.
struct TrialsOf<'a> {
    offers: &'a Offers<'a>,
    /// The same for ideal kernels, where a search for those may lead further.
    ideal: Option<&'a TrialsOf<'a>>,
    graph: &'a Graph,
    names: &'a Names,
    /// What is offered for that graph.
    found: &'a Found,
}

/// A graph with some offers taken.
struct Edited {
    graph: Graph,
    names: Names,
    /// Why some came to nothing.
    refused: BTreeMap<Key, String>,
}

/// A graph as the target runs it.
struct Planned<'g> {
    graph: Cow<'g, Graph>,
    ordered: Ordered,
    flops: u128,
}

impl TrialsOf<'_> {
    fn edited(&self, taken: &Taken, mut made: Option<&mut Made>) -> Option<Edited> {
        let offers = self.offers;
        let (mut graph, mut names, mut fuel) = (self.graph.clone(), self.names.clone(), None);
        let mut refused = BTreeMap::new();
        let taking: Result<(), ()> = offers.each(taken, |pass, done| {
            // Before the first edit the offers are those of the graph that every trial begins with.
            let known = self.found.get(pass.name()).filter(|_| done.is_empty());
            let own = match known {
                Some(known) => Cow::Borrowed(&known[..]),
                None => Cow::Owned(pass.offers(&graph, offers.planning)),
            };
            let mut rewriter = Rewriter::new(&mut graph, &mut names, offers.allow, &mut fuel);
            let mut note = |key: &Key, reason: String| _ = refused.insert(key.clone(), reason);
            offers.take((pass, &own), taken, done, &mut rewriter, made.as_deref_mut(), &mut note);
            rewriter.finish().map_err(drop)?;
            learn(&mut graph);
            Ok(())
        });
        taking.ok()?;
        Some(Edited { graph, names, refused })
    }

    /// A graph as the target runs it.
    fn planned<'g>(
        &self,
        mut graph: Cow<'g, Graph>,
        names: &mut Names,
        effort: &Effort,
    ) -> Option<Planned<'g>> {
        let offers = self.offers;
        // Of standard operators: what the target writes for a sum may multiply by one.
        let flops = flops(offers.planning.sized(&graph).graph());
        let (mut log, mut fuel) = (Log::default(), None);
        for pass in &offers.lowering {
            let mut rewriter = Rewriter::new(graph.to_mut(), names, offers.allow, &mut fuel);
            let mut context = Context {
                fold_budget: &mut 0,
                planning: offers.planning,
                budget_bytes: offers.budget_bytes,
                in_body: false,
                order_follows: offers.reorder,
                log: &mut log,
            };
            pass.run(&mut rewriter, &mut context);
            rewriter.finish().ok()?;
            learn(graph.to_mut());
        }
        let sized = offers.planning.sized(&graph).on(offers.kernels);
        let order = order_of(&graph);
        let ordered = match offers.reorder {
            true => in_better_order(&sized, &order, effort).ok()?,
            false => {
                let timelines = sized.plans().ok()?.timelines_in(&order).ok()?;
                Ordered { timelines, least_bytes: u64::MAX, alive_bytes: u64::MAX }
            }
        };
        Some(Planned { graph, ordered, flops })
    }
}

impl Trials for TrialsOf<'_> {
    fn attempt(&self, taken: &Taken, effort: &Effort, with_ideal: bool) -> Option<Trial> {
        let Edited { graph, mut names, refused } = self.edited(taken, None)?;
        let mut trial = |trials: &Self, graph: Cow<'_, Graph>| {
            let Planned { graph, ordered, flops } = trials.planned(graph, &mut names, effort)?;
            let Ordered { timelines, least_bytes, alive_bytes } = ordered;
            let peaks = timelines.iter().map(|timeline| timeline.peak_bytes).collect();
            let crests = near_peak(&timelines[0]).chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            let (taken, ops, refused) = (taken.clone(), operators(&graph), refused.clone());
            Some(Trial {
                taken,
                peaks,
                crests,
                flops,
                ops,
                least_bytes,
                alive_bytes,
                refused,
                on_ideal: None,
            })
        };
        let ideal = self.ideal.filter(|_| with_ideal);
        let on_ideal = ideal.and_then(|ideal| trial(ideal, Cow::Borrowed(&graph))).map(Box::new);
        Some(Trial { on_ideal, ..trial(self, Cow::Owned(graph))? })
    }

    fn around(&self, taken: &Taken, effort: &Effort) -> Option<Around> {
        let mut made = Made::new();
        let Edited { graph, mut names, .. } = self.edited(taken, Some(&mut made))?;
        // Where nothing is taken, this is the graph that every trial begins with.
        let found = match taken.is_empty() {
            true => Cow::Borrowed(self.found),
            false => Cow::Owned(self.offers.found(&graph)),
        };
        let open = self.offers.open(&graph, &found, taken);
        let Planned { graph, ordered, .. } = self.planned(Cow::Owned(graph), &mut names, effort)?;
        let hot = hot(&ordered.timelines[0], &graph);
        let mut around = Around::default();
        for Open { key, relieves, levels, obstacle } in open {
            if relieves.iter().any(|name| hot.contains(name)) {
                match obstacle {
                    Some(reason) => _ = around.refused.insert(key, reason),
                    None => _ = around.next.insert(key, 0..levels),
                }
            }
        }
        for (name, (key, levels)) in &made {
            if hot.contains(name) && *name != key.1 && taken[key] + 1 < *levels {
                around.next.insert(key.clone(), taken[key] + 1..*levels);
            }
        }
        Some(around)
    }
}

/// A search for the trial that needs least, or little enough.
struct Search<'s> {
    trials: &'s dyn Trials,
    /// The same for ideal kernels, where a search for those may lead further.
    ideal: Option<&'s dyn Trials>,
    /// True in the end, when the orders of trials are searched longer and offers are tried together or not at all.
    is_careful: bool,
    /// What came to nothing together when it was last tried to get further, and may come to much with a longer search.
    uncertain: Vec<Step>,
    /// How many operators the graphs of further trials may have.
    work: usize,
    /// What is little enough.
    budget_bytes: Option<u64>,
    /// Operations that a trial may have.
    allowed: f64,
    /// Peaks that a trial may have at most.
    most: Vec<u64>,
    /// True when no work is left.
    at_end: bool,
    /// Trials that were looked at or came with others, at the effort of now: what was tried last to take back is often tried
    /// next.
    known: BTreeMap<Taken, Trial>,
    /// Those on ideal kernels that came with others.
    on_ideal: BTreeMap<Taken, Trial>,
    /// What has been tried since the peak was elsewhere and does not help, with the reason.
    useless: BTreeMap<Key, String>,
    /// What was tried before, or cannot be, with the reason.
    reasons: BTreeMap<Key, String>,
}

impl<'s> Search<'s> {
    /// A search that begins with this trial.
    fn new(
        trials: &'s dyn Trials,
        start: &Trial,
        budget_bytes: Option<u64>,
        max_flops_ratio: f64,
    ) -> Search<'s> {
        Search {
            trials,
            ideal: None,
            is_careful: false,
            work: WORK,
            uncertain: Vec::new(),
            budget_bytes,
            allowed: max_flops_ratio * start.flops as f64,
            most: start.peaks.clone(),
            at_end: false,
            known: BTreeMap::new(),
            on_ideal: BTreeMap::new(),
            useless: BTreeMap::new(),
            reasons: start.refused.clone(),
        }
    }

    fn run(&mut self, start: Trial) -> Trial {
        let mut best = self.settle(start);
        if !self.at_end && !self.fits(&best) {
            best = self.detour(best);
        }
        if !self.at_end && !self.fits(&best) && !self.uncertain.is_empty() {
            best = self.care(best);
        }
        if self.budget_bytes.is_some() { best } else { self.lean(best) }
    }

    /// Takes back what makes many operators for hardly less: each takes time to start, and smaller ones are slower.
    fn lean(&mut self, lowest: Trial) -> Trial {
        // The longer the search was, the more there may be to take back.
        self.work += WORK / LAST;
        self.at_end = false;
        let little_more = lowest.peaks.iter().map(|peak| peak + peak / WORTH_A_LEVEL);
        let most: Vec<u64> = little_more.zip(&self.most).map(|(little, &most)| little.min(most)).collect();
        let pays = self.most[0] - self.most[0] / WORTHWHILE;
        let is_good = |trial: &Trial| {
            trial.peaks.iter().zip(&most).all(|(peak, most)| peak <= most)
                && (trial.peaks[0] < pays || trial.taken.is_empty())
        };
        let mut best = lowest;
        loop {
            let changes: Vec<Milder> =
                best.taken.iter().flat_map(|(key, &level)| milder(key, level)).collect();
            let mut leaner: Option<(Milder, Trial)> = None;
            let _: Option<()> = self.try_each(&changes, &best.taken, |_, change, trial| {
                let is_leaner = |trial: &Trial| trial.ops * 3 <= best.ops * LEANER && is_good(trial);
                if let Some(trial) = trial.filter(is_leaner)
                    && leaner.as_ref().is_none_or(|(_, found)| trial.peaks[0] < found.peaks[0])
                {
                    leaner = Some((change.clone(), trial));
                }
                ControlFlow::Continue(())
            });
            let Some((Milder { key, level }, trial)) = leaner else { return best };
            if level.is_none() {
                let reason = "the peak is hardly lower with it, with many more operators";
                self.useless.insert(key, reason.to_string());
            }
            best = trial;
        }
    }

    /// Goes on from what a search for ideal kernels takes, where that needs less than the best.
    fn detour(&mut self, best: Trial) -> Trial {
        let start =
            self.ideal.and_then(|trials| Some((trials, trials.attempt(&Taken::new(), &QUICK, false)?)));
        let Some((trials, start)) = start else { return best };
        let search = Search::new(trials, &start, None, 1.0);
        let known = std::mem::take(&mut self.on_ideal);
        let mut search = Search { work: self.work, allowed: self.allowed, known, ..search };
        let taken = search.settle(start).taken;
        self.work = search.work;
        if taken == best.taken {
            return best;
        }
        let beats = |trial: &Trial| trial.no_worse(&best) && trial.is_below(&best, WORTHWHILE);
        let Some(found) = self.trials.attempt(&taken, &QUICK, false).filter(beats) else { return best };
        self.reasons.append(&mut self.useless);
        let settled = self.settle(found);
        if self.at_end { best } else { settled }
    }

    /// Searches longer for the orders of what came to nothing together. That has to get far below the best, whose order is
    /// searched as long; and there has to be enough work left to take back what is not needed.
    fn care(&mut self, best: Trial) -> Trial {
        self.is_careful = true;
        self.known.clear();
        let mut steps = vec![Step::new()];
        steps.append(&mut self.uncertain);
        let (mut least, mut found): (Option<Trial>, Option<Trial>) = (None, None);
        let _: Option<()> = self.try_each(&steps, &best.taken, |search, step, trial| {
            match (trial, &least) {
                (trial, None) if step.is_empty() => least = trial,
                (Some(trial), Some(least)) if !trial.is_too_much(search.allowed) => {
                    let lower = |found: &Trial| trial.no_worse(found) && trial.is_below(found, WORTH_A_LEVEL);
                    if trial.no_worse(least)
                        && trial.is_below(least, WORTH_CARE)
                        && found.as_ref().is_none_or(lower)
                    {
                        found = Some(trial);
                    }
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        let Some(found) = found else { return best };
        self.reasons.append(&mut self.useless);
        let settled = self.settle(found);
        if self.at_end { best } else { settled }
    }

    /// Takes and takes back until nothing helps.
    fn settle(&mut self, mut best: Trial) -> Trial {
        loop {
            let (low, lowest) = self.descend(best);
            best = self.take_back(low.clone());
            // Without work to take back what did not lead further, that is not taken.
            let further = best.is_below(&lowest, WORTHWHILE) || self.fits(&best);
            if self.at_end && !further && lowest.taken.len() < best.taken.len() {
                let untaken = best.taken.into_keys().filter(|key| !lowest.taken.contains_key(key));
                let reason = || "no work was left to see what would come of it".to_string();
                self.reasons.extend(untaken.map(|key| (key, reason())));
                return lowest;
            }
            if self.at_end || self.fits(&best) || !best.is_below(&low, WORTHWHILE) {
                return best;
            }
            self.reasons.append(&mut self.useless);
        }
    }

    /// Makes a trial of each change to what is taken and looks at them one after the other, until told to break or no work
    /// is left.
    fn try_each<C: Change, B>(
        &mut self,
        changes: &[C],
        taken: &Taken,
        look: impl FnMut(&mut Self, &C, Option<Trial>) -> ControlFlow<B>,
    ) -> Option<B> {
        let each: Vec<&[C]> = changes.chunks(1).collect();
        self.try_series(&each, taken, |_, _| false, look)
    }

    /// The same for series of changes: each goes on to its next change until a trial ends it, which is told from that trial
    /// and the one before it.
    fn try_series<C: Change, B>(
        &mut self,
        series: &[&[C]],
        taken: &Taken,
        ends: impl Fn(Option<&Trial>, &Trial) -> bool + Sync,
        mut look: impl FnMut(&mut Self, &C, Option<Trial>) -> ControlFlow<B>,
    ) -> Option<B> {
        self.at_end |= self.work == 0 && !series.is_empty();
        if self.at_end {
            return None;
        }
        let trials = self.trials;
        let (effort, cost) = self.effort();
        // A search on ideal kernels begins with the same.
        let with_ideal = self.ideal.is_some() && taken.is_empty() && !self.is_careful;
        let known = |change| {
            let mut taken = taken.clone();
            C::apply(change, &mut taken);
            let trial = self.known.get(&taken).cloned();
            (change, taken, trial)
        };
        let todo: Vec<Vec<(&C, Taken, Option<Trial>)>> =
            series.iter().map(|changes| changes.iter().map(known).collect()).collect();
        let make = |series: &Vec<(&C, Taken, Option<Trial>)>| {
            let mut made: Vec<Option<Trial>> = Vec::new();
            for (_, taken, known) in series {
                let trial = known.clone().or_else(|| trials.attempt(taken, effort, with_ideal));
                let before = made.last().and_then(Option::as_ref);
                let is_last = trial.as_ref().is_some_and(|trial| ends(before, trial));
                made.push(trial);
                if is_last {
                    break;
                }
            }
            made
        };
        let looked = parallel::in_order(&todo, make, |series, made| {
            for ((change, taken, _), trial) in series.iter().zip(made) {
                if self.work == 0 {
                    self.at_end = true;
                    return ControlFlow::Break(None);
                }
                self.work = self.work.saturating_sub(trial.as_ref().map_or(0, |trial| cost * trial.ops));
                let trial = trial.map(|mut trial| {
                    self.on_ideal.extend(trial.on_ideal.take().map(|ideal| (taken.clone(), *ideal)));
                    self.known.entry(taken.clone()).or_insert(trial).clone()
                });
                look(self, change, trial).map_break(Some)?;
            }
            ControlFlow::Continue(())
        });
        looked.break_value().flatten()
    }

    /// How long the order of a trial is looked for, and how much more work that is.
    fn effort(&self) -> (&'static Effort, usize) {
        if self.is_careful { (&CAREFUL, CARE) } else { (&QUICK, 1) }
    }

    fn fits(&self, trial: &Trial) -> bool {
        self.budget_bytes.is_some_and(|budget| trial.peaks[0] <= budget)
            && trial.peaks.iter().zip(&self.most).all(|(peak, most)| peak <= most)
    }

    /// Takes more as long as that helps. Gives the last trial, and the last that was lower and not only as low less often.
    fn descend(&mut self, mut best: Trial) -> (Trial, Trial) {
        let mut lowest = best.clone();
        while !self.fits(&best) {
            let Some(trial) = self.further(&best) else { break };
            if trial.is_below(&lowest, WORTHWHILE) {
                lowest = trial.clone();
            }
            // What came to nothing at one level may have helped at another.
            self.useless.retain(|key, _| trial.taken.get(key) == best.taken.get(key));
            best = trial;
            self.reasons.extend(best.refused.clone());
        }
        (best, lowest)
    }

    /// A better trial with more taken of what touches the peak.
    fn further(&mut self, best: &Trial) -> Option<Trial> {
        let Around { next, refused } = self.trials.around(&best.taken, self.effort().0)?;
        self.reasons.extend(refused);
        let next: Vec<(&Key, &Range<usize>)> =
            next.iter().filter(|(key, _)| !self.useless.contains_key(*key)).collect();
        self.uncertain.clear();
        let mut together = Together::default();
        let all = levels(&next);
        let (first, finer) = all.split_at(AT_ONCE.min(all.len()));
        let _ =
            self.try_each(first, &best.taken, |search, step, trial| together.look(search, step, trial, best));
        // Each alone is tried where all together do not help, and while it is not known whether they do.
        let with_each = together.found.is_none() && next.len() > 1 && !self.is_careful;
        let each: Vec<Vec<Step>> = if with_each { next.chunks(1).map(levels).collect() } else { Vec::new() };
        let finer = if together.is_over { &[] } else { finer };
        let mut alone = self.rest(finer, &each, &mut together, best);
        if together.is_over && together.found.is_none() && !finer.is_empty() {
            alone = self.rest(&[], &each, &mut together, best);
        }
        together.found.or(alone)
    }

    /// Finer levels of all offers together, until they are over; and where they do not help, the first offer that does alone, at
    /// its mildest level.
    fn rest(
        &mut self,
        finer: &[Step],
        each: &[Vec<Step>],
        together: &mut Together,
        best: &Trial,
    ) -> Option<Trial> {
        let mut left = finer.len();
        let series: Vec<&[Step]> = finer.chunks(1).chain(each.iter().map(Vec::as_slice)).collect();
        let (allowed, budget_bytes) = (self.allowed, self.budget_bytes);
        let ends = |before: Option<&Trial>, trial: &Trial| {
            trial.beats(best) && !trial.is_too_much(allowed) || trial.is_in_vain(before, best, budget_bytes)
        };
        let alone = self.try_series(&series, &best.taken, ends, |search, step, trial| {
            if left > 0 {
                left -= 1;
                let goes_on = together.look(search, step, trial, best).map_break(|()| None);
                return if left == 0 && together.found.is_some() {
                    ControlFlow::Break(None)
                } else {
                    goes_on
                };
            }
            match search.gets_further(step, trial.as_ref(), best) {
                true => ControlFlow::Break(trial),
                false => ControlFlow::Continue(()),
            }
        });
        alone.flatten()
    }

    /// True if a trial with these offers taken is better than the best. If it is not, and there is one of them, that is
    /// useless, with the reason.
    fn gets_further(&mut self, step: &Step, trial: Option<&Trial>, best: &Trial) -> bool {
        let too_much = trial.is_some_and(|trial| trial.is_too_much(self.allowed));
        let is_better = |trial: &Trial| trial.beats(best) || trial.no_worse(best) && self.fits(trial);
        if !too_much && trial.is_some_and(is_better) {
            return true;
        }
        if let [(key, _)] = &step[..] {
            let reason = match trial.map(|trial| trial.refused.get(key)) {
                None => "a size would not be known with it".to_string(),
                Some(Some(reason)) => reason.clone(),
                Some(None) if too_much => "it would take more arithmetic than allowed".to_string(),
                Some(None) => format!("the peak would not fall below {} bytes", best.peaks[0]),
            };
            self.useless.insert(key.clone(), reason);
        }
        false
    }

    /// Takes back what is as good undone, each by itself as far as that goes, then two at once.
    fn take_back(&mut self, best: Trial) -> Trial {
        let mut best = self.take_back_each(best);
        while let Some(trial) = self.take_back_two(&best) {
            best = self.take_back_each(trial);
        }
        best
    }

    /// Two offers that were taken at once because both are at the peak can need each other: parts of what one makes are
    /// what the other takes, and either alone at a milder level is worse.
    fn take_back_two(&mut self, best: &Trial) -> Option<Trial> {
        let one_level =
            |(key, level): (&Key, &usize)| Milder { key: key.clone(), level: level.checked_sub(1) };
        let each: Vec<Milder> = best.taken.iter().map(one_level).collect();
        let pairs_with = |(i, b)| each[..i].iter().map(move |a: &Milder| [a.clone(), Milder::clone(b)]);
        let pairs: Vec<[Milder; 2]> = each.iter().enumerate().flat_map(pairs_with).collect();
        // What is left is needed to get further, too.
        if pairs.len().saturating_mul(self.effort().1 * best.ops) > self.work / 2 {
            return None;
        }
        self.try_each(&pairs, &best.taken, |search, pair, trial| match trial {
            Some(trial) if search.is_as_good(&trial, best) => {
                pair.iter()
                    .filter(|change| change.level.is_none())
                    .for_each(|change| search.untaken(&change.key, best));
                ControlFlow::Break(trial)
            }
            _ => ControlFlow::Continue(()),
        })
    }

    /// True if a trial can stand in the place of another.
    fn is_as_good(&self, trial: &Trial, other: &Trial) -> bool {
        trial.no_worse(other) || self.fits(trial)
    }

    /// Notes that an offer was taken back.
    fn untaken(&mut self, key: &Key, before: &Trial) {
        let as_low = || "the peak is as low without it".to_string();
        let reason = before.refused.get(key).cloned().unwrap_or_else(as_low);
        self.useless.insert(key.clone(), reason);
    }

    /// Takes back what is as good undone, or at a milder level; backwards, because what was needed first is needed most.
    /// All that fits is as good.
    fn take_back_each(&mut self, mut best: Trial) -> Trial {
        let mut left: Vec<(Key, usize)> = best.taken.clone().into_iter().collect();
        loop {
            let changes: Vec<Milder> =
                left.iter().rev().flat_map(|(key, level)| milder(key, *level)).collect();
            let as_good = self.try_each(&changes, &best.taken, |search, change, trial| match trial {
                Some(trial) if search.is_as_good(&trial, &best) => {
                    ControlFlow::Break((change.key.clone(), change.level, trial))
                }
                _ => ControlFlow::Continue(()),
            });
            let Some((key, level, trial)) = as_good else { return best };
            left.truncate(left.iter().position(|(other, _)| *other == key).unwrap_or(0));
            if level.is_none() {
                self.untaken(&key, &best);
            }
            best = trial;
        }
    }
}

/// What comes of all offers at once, level by level.
#[derive(Default)]
struct Together {
    /// The best so far.
    found: Option<Trial>,
    before: Option<Trial>,
    /// True if finer levels are not looked at.
    is_over: bool,
}

impl Together {
    /// Looks at the next level, and breaks where that is the last one.
    fn look(
        &mut self,
        search: &mut Search<'_>,
        step: &Step,
        trial: Option<Trial>,
        best: &Trial,
    ) -> ControlFlow<()> {
        let gets_further = search.gets_further(step, trial.as_ref(), best);
        let Some(trial) = trial else { return ControlFlow::Continue(()) };
        let fits = gets_further && search.fits(&trial);
        if !gets_further && !trial.is_too_much(search.allowed) && trial.may_beat(best) {
            search.uncertain.push(step.clone());
        }
        let lower = |found: &Trial| fits || trial.is_below(found, WORTH_A_LEVEL);
        if gets_further && self.found.as_ref().is_none_or(|found| trial.no_worse(found) && lower(found)) {
            self.found = Some(trial.clone());
        }
        self.is_over = fits || trial.is_in_vain(self.before.as_ref(), best, search.budget_bytes);
        self.before = Some(trial);
        if self.is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// A change to what is taken.
trait Change: Sync {
    fn apply(&self, taken: &mut Taken);
}

/// Offers that are taken at once, each at a level.
type Step = Vec<(Key, usize)>;

impl Change for Step {
    fn apply(&self, taken: &mut Taken) {
        taken.extend(self.iter().cloned());
    }
}

/// An offer at a milder level, or no more.
#[derive(Clone)]
struct Milder {
    key: Key,
    level: Option<usize>,
}

/// An offer no more, and at every level below one, mildest first.
fn milder(key: &Key, level: usize) -> Vec<Milder> {
    let levels = std::iter::once(None).chain((0..level).map(Some));
    levels.map(|level| Milder { key: key.clone(), level }).collect()
}

impl Change for Milder {
    fn apply(&self, taken: &mut Taken) {
        match self.level {
            Some(level) => _ = taken.insert(self.key.clone(), level),
            None => _ = taken.remove(&self.key),
        }
    }
}

impl Change for [Milder; 2] {
    fn apply(&self, taken: &mut Taken) {
        self.iter().for_each(|change| change.apply(taken));
    }
}

/// These offers at once, at their mildest levels, at the next ones, and so on until each is at its last.
fn levels(offers: &[(&Key, &Range<usize>)]) -> Vec<Step> {
    let most = offers.iter().map(|(_, levels)| levels.len()).max().unwrap_or(0);
    let at = |further: usize| {
        let level = |levels: &Range<usize>| (levels.start + further).min(levels.end - 1);
        offers.iter().map(|(key, levels)| ((*key).clone(), level(levels))).collect()
    };
    (0..most).map(at).collect()
}

fn key_of(pass: &'static str, graph: &Graph, offer: &Offer) -> Option<Key> {
    Some((pass, graph.value(graph.op(offer.op).output(0)?).name.clone()))
}

/// For each step, whether it needs nearly as much as the one that needs most.
fn near_peak(timeline: &Timeline) -> Vec<bool> {
    let near = u128::from(timeline.peak_bytes) * u128::from(NEAR_PEAK);
    timeline.steps.iter().map(|step| u128::from(step.total_bytes()) * 64 >= near).collect()
}

/// Names of the values in memory at the steps that need most, and of those for which memory is held there.
fn hot(timeline: &Timeline, graph: &Graph) -> HashSet<String> {
    // How many such steps there are before each: a long graph may need its peak all the time.
    let mut before = vec![0usize];
    for is_near in near_peak(timeline) {
        before.push(before[before.len() - 1] + usize::from(is_near));
    }
    let any_near = |first: usize, last: usize| {
        let end = before.get(last + 1).or(before.last());
        first <= last && end.zip(before.get(first)).is_some_and(|(end, first)| end > first)
    };
    let mut hot = HashSet::new();
    for buffer in &timeline.buffers {
        let last = |t: &Tenant| t.readers.last().map_or(buffer.last, |&last| last.min(buffer.last));
        let mut before: Option<&Tenant> = None;
        for tenant in &buffer.tenants {
            let mut add = |t: &Tenant| _ = hot.insert(graph.value(t.value).name.clone());
            if any_near(tenant.first.max(buffer.first), last(tenant)) {
                add(tenant);
            }
            // Memory that is held from one value to the next is there for both.
            if let Some(before) = before
                && any_near(last(before) + 1, tenant.first.saturating_sub(1))
            {
                add(before);
                add(tenant);
            }
            if before.is_none_or(|before| last(before) < last(tenant)) {
                before = Some(tenant);
            }
        }
    }
    hot
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::{canonical, parse_model};
    use dmopt_ir::{NewOp, OpId, Sizes, ValueId, infer};

    use super::*;
    use crate::{Planning, Stage};

    /// Offers to write a Sum as a chain of Add, one Add more at each level.
    struct Unroll;

    impl Pass for Unroll {
        fn name(&self) -> &'static str {
            "unroll"
        }

        fn source(&self) -> &'static str {
            ""
        }

        fn safety(&self) -> Safety {
            Safety::Reassociates
        }

        fn stage(&self) -> Stage {
            Stage::Offering
        }

        fn run(&self, _: &mut Rewriter<'_>, _: &mut Context<'_>) {}

        fn offers(&self, graph: &Graph, _: &Planning) -> Vec<Offer> {
            let sums = order_of(graph).into_iter().filter(|&op| graph.op(op).is("Sum"));
            let offer = |op: OpId| {
                let operands: Vec<ValueId> = graph.op(op).operands().collect();
                Offer { start: op, op, levels: operands.len() - 1, relieves: operands, refused: None }
            };
            sums.map(offer).collect()
        }

        fn take(&self, graph: &Graph, _: &Planning, offer: &Offer, level: usize) -> Result<Patch, Miss> {
            let mut rest = graph.op(offer.op).operands();
            let mut patch = Patch::new(Safety::Reassociates);
            let mut sum = rest.next().ok_or(Miss::NoMatch)?.into();
            for operand in rest.by_ref().take(level + 1) {
                sum = patch.add_op(NewOp::new("Add", [sum, operand.into()]));
            }
            let left: Vec<_> = rest.map(Into::into).collect();
            if !left.is_empty() {
                sum = patch.add_op(NewOp::new("Sum", std::iter::once(sum).chain(left)));
            }
            patch.replace_uses(graph.op(offer.op).output(0).ok_or(Miss::NoMatch)?, sum);
            Ok(patch)
        }
    }

    const SUMS: &str = "f (float[64] x) => (float[1] y) <int64[1] axis = {0}> {
        a = Exp(x)  b = Neg(x)  c = Abs(x)  d = Tanh(x)  s = Sum(a, b, c, d)
        p = ReduceSum(s, axis)  q = Exp(p)  r = Neg(p)  y = Sum(p, q, r)
    }";

    fn choose(text: &str, options: &Options<'_>) -> (Taken, Vec<String>) {
        let mut model = parse_model(text).unwrap();
        infer::infer_graph(&mut model.graph);
        let offers = Offers::new(vec![&Unroll], Vec::new(), options, true);
        let Chosen { taken, refused } = offers.choose(&model.graph, &Names::of(&model));
        (taken, refused.into_iter().map(|(_, node, reason)| format!("{node}: {reason}")).collect())
    }

    #[test]
    fn what_is_at_the_peak_is_taken_as_far_as_it_pays_and_nothing_else() {
        let (taken, refused) = choose(SUMS, &Options::default());
        assert_eq!(taken, Taken::from([(("unroll", "s".to_string()), 1)]));
        assert!(refused.is_empty(), "{refused:?}");
    }

    #[test]
    fn a_model_that_fits_is_left_alone() {
        let fits = Options { budget_bytes: Some(6 * 256), ..Options::default() };
        assert_eq!(choose(SUMS, &fits).0, Taken::new());
        let tight = Options { budget_bytes: Some(5 * 256), ..Options::default() };
        assert_eq!(choose(SUMS, &tight).0, Taken::from([(("unroll", "s".to_string()), 0)]));
    }

    #[test]
    fn an_offer_that_is_not_safe_enough_is_refused_with_the_reason() {
        let exact = Options { allow: Some(Safety::Exact), ..Options::default() };
        let (taken, refused) = choose(SUMS, &exact);
        assert_eq!((taken.len(), refused), (0, vec!["'s': not bit-identical (reassociates)".to_string()]));
    }

    #[test]
    fn an_offer_that_does_not_lower_the_peak_is_named() {
        let (taken, refused) =
            choose("f (float[64] x, float[64] z) => (float[64] y) { y = Sum(x, z) }", &Options::default());
        assert_eq!((taken.len(), refused), (0, vec![]));
        let text = "f (float[64] x) => (float[64] y) { a = Exp(x) b = Neg(x) y = Sum(a, b) }";
        assert_eq!(choose(text, &Options::default()).1, ["'y': the peak would not fall below 768 bytes"]);
    }

    #[test]
    fn nothing_is_tried_where_sizes_other_than_the_number_of_samples_are_open() {
        let (taken, refused) = choose(&SUMS.replace("float[64] x", "float[n] x"), &Options::default());
        assert_eq!((taken.len(), refused.len()), (1, 0));
        let columns = SUMS.replace("float[64] x", "float[4,n] x").replace("float[1] y", "float[1,n] y");
        let expected = "graph 'f': what pays depends on the size 'n', which is open";
        let both = SUMS.replace("float[64] x", "float[n] x, float[2,n] m");
        for text in [&columns, &both] {
            let (taken, refused) = choose(text, &Options::default());
            assert_eq!((taken.len(), refused), (0, vec![expected.to_string()]));
        }
        for sizes in [
            Sizes { dims: [("n".to_string(), 64)].into(), ..Sizes::default() },
            Sizes { shapes: [("x".to_string(), vec![4, 64])].into(), ..Sizes::default() },
        ] {
            let given = Options { planning: Planning { sizes, ..Planning::default() }, ..Options::default() };
            let (taken, refused) = choose(&columns, &given);
            assert_eq!((taken.len(), refused.len()), (1, 0));
        }
    }

    #[test]
    fn a_level_that_fits_is_taken_though_a_milder_one_needs_little_more() {
        let chain = |count: usize| {
            let parts: Vec<String> = (0..count).map(|i| format!("a{i}")).collect();
            let ops: Vec<String> = parts.iter().map(|a| format!("{a} = Exp(x)")).collect();
            format!(
                "f (float[64] x) => (float[64] y) {{ {} s = Sum({}) y = Neg(s) }}",
                ops.join(" "),
                parts.join(", ")
            )
        };
        // 65 buffers of 256 bytes, and one fewer for each level.
        let budget = Options { budget_bytes: Some(61 * 256), ..Options::default() };
        let (taken, _) = choose(&chain(64), &budget);
        let all = choose(&chain(64), &Options::default()).0;
        assert!(taken.values().sum::<usize>() < all.values().sum::<usize>(), "{taken:?} {all:?}");
    }

    #[test]
    fn what_fits_without_an_offer_does_without_it() {
        let sum = |name: &str, of: &str, count: usize| {
            let parts: Vec<String> = (0..count).map(|i| format!("{name}{i}")).collect();
            let ops: String = parts.iter().map(|part| format!("{part} = Exp({of}) ")).collect();
            format!("{ops} {name} = Sum({}) q{name} = ReduceSum({name}, axis)", parts.join(", "))
        };
        // Six buffers of 2560 bytes, then six of 2528: both come near to the peak, and the second fits.
        let text = format!(
            "f (float[640] x, float[632] z) => (float[1] y) <int64[1] axis = {{0}}> {{
                {} {} y = Add(qs, qt) }}",
            sum("s", "x", 4),
            sum("t", "z", 4),
        );
        let budget = Options { budget_bytes: Some(15_200), ..Options::default() };
        assert_eq!(choose(&text, &budget).0, Taken::from([(("unroll", "s".to_string()), 0)]));
    }

    #[test]
    fn memory_that_is_held_at_the_peak_is_hot_for_what_was_in_it_and_what_will_be() {
        let text = "f (float[64] x) => (float[64] y) <int64[1] axis = {0}> {
            a = Exp(x)  p = ReduceSum(a, axis)  c = Concat<axis = 0>(x, x)  q = ReduceSum(c, axis)
            z = Neg(x)  u = Add(z, p)  y = Add(u, q)
        }";
        let mut model = parse_model(text).unwrap();
        infer::infer_graph(&mut model.graph);
        let planning = Planning::default();
        let sized = planning.sized(&model.graph);
        let timeline = sized.plans().unwrap().timeline_in(&order_of(&model.graph)).unwrap();
        let names = hot(&timeline, &model.graph);
        assert_eq!(["a", "c", "z", "u"].map(|name| names.contains(name)), [true, true, true, false]);
    }

    /// Trials that are what a function says, of offers that are open until they are taken; the first ones first.
    struct Told<F: Fn(&Taken, &Effort) -> Trial> {
        offers: Vec<Key>,
        first: usize,
        levels: usize,
        trial: F,
    }

    impl<F: Fn(&Taken, &Effort) -> Trial + Sync> Trials for Told<F> {
        fn attempt(&self, taken: &Taken, effort: &Effort, _: bool) -> Option<Trial> {
            Some(Trial { taken: taken.clone(), ..(self.trial)(taken, effort) })
        }

        fn around(&self, taken: &Taken, _: &Effort) -> Option<Around> {
            let count = if taken.len() < self.first { self.first } else { self.offers.len() };
            let open = self.offers[..count].iter().filter(|key| !taken.contains_key(key));
            Some(Around {
                next: open.map(|key| (key.clone(), 0..self.levels)).collect(),
                ..Around::default()
            })
        }
    }

    /// Offers for these results.
    fn places<const N: usize>(names: [&str; N]) -> [Key; N] {
        names.map(|name| ("unroll", name.to_string()))
    }

    /// What a search takes of all offers at once, or of the first ones first.
    fn searched(
        offers: &[Key],
        first: usize,
        trial: impl Fn(&Taken, &Effort) -> Trial + Sync,
        ideal: Option<&dyn Trials>,
    ) -> Vec<String> {
        let trials = Told { offers: offers.to_vec(), first, levels: 1, trial };
        let start = trials.attempt(&Taken::new(), &QUICK, false).unwrap();
        let mut search = Search::new(&trials, &start, None, 1.0);
        search.ideal = ideal;
        search.run(start.clone()).taken.into_keys().map(|(_, name)| name).collect()
    }

    fn trial(peak: u64, crests: usize) -> Trial {
        Trial {
            taken: Taken::new(),
            peaks: vec![peak],
            crests,
            flops: 0,
            ops: 1,
            least_bytes: 0,
            alive_bytes: peak,
            refused: BTreeMap::new(),
            on_ideal: None,
        }
    }

    #[test]
    fn as_much_less_often_is_better() {
        let beats = |a: (u64, usize), b: (u64, usize)| trial(a.0, a.1).beats(&trial(b.0, b.1));
        assert!(beats((1000, 1), (1000, 2)) && beats((900, 3), (1000, 2)));
        assert!(!beats((1000, 2), (1000, 2)) && !beats((1001, 1), (1000, 2)) && !beats((999, 2), (1000, 2)));
    }

    #[test]
    fn finer_levels_are_tried_as_long_as_they_may_help() {
        // What each of two offers comes to at every level, and what both do; nothing at all comes to 1000.
        let tried = |peaks: [u64; 4], may_beat: bool| {
            let told = |taken: &Taken, _: &Effort| {
                let peak = taken.values().next().map_or(1000, |&level| peaks[level]);
                Trial { least_bytes: if may_beat { 0 } else { peak }, ..trial(peak, 1) }
            };
            let trials = Told { offers: places(["a", "b"]).to_vec(), first: 2, levels: 4, trial: told };
            let start = trials.attempt(&Taken::new(), &QUICK, false).unwrap();
            let mut search = Search::new(&trials, &start, None, 1.0);
            (search.descend(start).0.taken.into_values().next(), search.known.len())
        };
        // What is still to be gained is as much as the last level gained at most: nothing, little, enough.
        assert_eq!(tried([1300, 1300, 900, 900], false), (None, 3 * 2));
        assert_eq!(tried([1300, 1150, 1075, 1038], false), (None, 3 * 2));
        assert_eq!(tried([1300, 1140, 1080, 900], false), (None, 3 * 3));
        assert_eq!(tried([1300, 1140, 1060, 1020], false), (None, 3 * 4));
        assert_eq!(tried([1300, 1140, 1060, 980], false), (Some(3), 4));
        // A longer search may come to less.
        assert_eq!(tried([1300, 1300, 900, 900], true), (Some(2), 4));
    }

    #[test]
    fn finer_levels_are_tried_where_less_is_alive_where_they_may_fit_and_where_an_offer_came_to_nothing() {
        let nothing = trial(1000, 1);
        let level = |alive_bytes| Trial { alive_bytes, least_bytes: 1003, ..trial(1003, 1) };
        let in_vain = |level: &Trial, budget| level.is_in_vain(Some(level), &nothing, budget);
        assert!(in_vain(&level(1000), None));
        assert!(!in_vain(&level(999), None));
        assert!(in_vain(&level(1000), Some(1002)));
        assert!(!in_vain(&level(1000), Some(1003)));
        let [key] = places(["a"]);
        let refused = BTreeMap::from([(key, "too large".to_string())]);
        assert!(!in_vain(&Trial { refused, ..level(1000) }, None));
        assert!(!level(1000).is_in_vain(None, &nothing, None));
        // As much, less often, is better.
        let as_much = Trial { least_bytes: 1000, ..trial(1000, 2) };
        assert!(as_much.is_in_vain(Some(&as_much), &nothing, None));
        assert!(!as_much.is_in_vain(Some(&as_much), &trial(1000, 2), None));
    }

    #[test]
    fn what_came_to_nothing_is_tried_with_a_longer_search_where_that_can_help() {
        let chosen = |least_bytes| {
            let peak = |taken: &Taken, effort: &Effort| {
                if taken.is_empty() || *effort == QUICK { 1000 } else { 700 }
            };
            let told =
                |taken: &Taken, effort: &Effort| Trial { least_bytes, ..trial(peak(taken, effort), 1) };
            searched(&places(["y"]), 1, told, None)
        };
        assert_eq!(chosen(700), ["y"]);
        assert!(chosen(900).is_empty());
    }

    #[test]
    fn what_pays_together_and_not_one_by_one_is_found_on_ideal_kernels() {
        // Each of two places alone pays on ideal kernels and costs on others; a third one never pays.
        let offers = places(["a", "b", "c"]);
        let on = |alone| {
            let never = offers[2].clone();
            move |taken: &Taken, _: &Effort| match (taken.contains_key(&never), taken.len()) {
                (true, _) => trial(2000, 1),
                (false, 0) => trial(1000, 1),
                (false, 1) => trial(alone, 1),
                (false, _) => trial(700, 1),
            }
        };
        let ideal = Told { offers: offers.to_vec(), first: 3, levels: 1, trial: on(900) };
        assert!(searched(&offers, 3, on(1100), None).is_empty());
        assert_eq!(searched(&offers, 3, on(1100), Some(&ideal)), ["a", "b"]);
    }

    #[test]
    fn two_that_need_each_other_are_taken_back_together() {
        // "c" is all that it takes. "a" and "b" do no harm together, and each does alone.
        let told = |taken: &Taken, _: &Effort| {
            let has = |name: &str| taken.keys().any(|key| key.1 == name);
            trial(
                if !has("c") {
                    1000
                } else if has("a") == has("b") {
                    700
                } else {
                    900
                },
                1,
            )
        };
        assert_eq!(searched(&places(["a", "b", "c"]), 3, told, None), ["c"]);
    }

    #[test]
    fn hardly_less_is_not_worth_many_more_operators() {
        let offers = places(["a", "b"]);
        let with = |first, one, both, ops| {
            let a = offers[0].clone();
            let told = move |taken: &Taken, _: &Effort| match (taken.contains_key(&a), taken.len()) {
                (false, _) => Trial { ops: 8, ..trial(1000, 1) },
                (true, 1) => Trial { ops: 10, ..trial(one, 1) },
                (true, _) => Trial { ops, ..trial(both, 1) },
            };
            searched(&offers, first, told, None)
        };
        assert_eq!(with(1, 900, 880, 15), ["a"]);
        assert_eq!(with(1, 900, 880, 14), ["a", "b"]);
        assert_eq!(with(1, 900, 870, 15), ["a", "b"]);
        // Alone, "a" is of no use.
        assert_eq!(with(2, 998, 990, 15), ["a", "b"]);
    }

    #[test]
    fn arithmetic_is_bounded() {
        let less = Options { max_flops_ratio: Some(0.5), ..Options::default() };
        let (taken, refused) = choose(SUMS, &less);
        assert_eq!(
            (taken.len(), refused),
            (0, vec!["'s': it would take more arithmetic than allowed".to_string()])
        );
    }

    #[test]
    fn a_trial_on_ideal_kernels_is_the_same_that_comes_with_another() {
        let model = parse_model(SUMS).unwrap();
        let (names, options) = (Names::of(&model), Options::default());
        let offers = Offers::new(vec![&Unroll], Vec::new(), &options, true);
        let ideal =
            Offers { offering: vec![&Unroll], lowering: Vec::new(), kernels: Kernels::Ideal, ..offers };
        let found = offers.found(&model.graph);
        let on_ideal =
            TrialsOf { offers: &ideal, ideal: None, graph: &model.graph, names: &names, found: &found };
        let trials = TrialsOf { offers: &offers, ideal: Some(&on_ideal), ..on_ideal };
        for level in 0..3 {
            let taken = Taken::from([(("unroll", "s".to_string()), level)]);
            let peaks = |trial: &Trial| trial.peaks.clone();
            let both = trials.attempt(&taken, &QUICK, true).unwrap();
            let alone = [&trials, &on_ideal].map(|trials| trials.attempt(&taken, &QUICK, false).unwrap());
            assert_eq!(
                [&both, both.on_ideal.as_ref().unwrap()].map(peaks),
                [&alone[0], &alone[1]].map(peaks)
            );
            assert_ne!(peaks(&alone[0]), peaks(&alone[1]));
        }
    }

    #[test]
    fn taking_for_good_does_what_the_trial_did() {
        let mut model = parse_model(SUMS).unwrap();
        let options = Options::default();
        let offers = Offers::new(vec![&Unroll], Vec::new(), &options, true);
        let taken = Taken::from([(("unroll", "s".to_string()), 2)]);
        let (mut names, mut fuel) = (Names::of(&model), None);
        let mut rewriter = Rewriter::new(&mut model.graph, &mut names, Safety::Reassociates, &mut fuel);
        offers.run(&Unroll, &taken, &mut BTreeSet::new(), &mut rewriter);
        rewriter.finish().unwrap();
        let chain = "t = Add(a, b)  c = Abs(x)  u = Add(t, c)  d = Tanh(x)  s = Add(u, d)";
        let expected = SUMS.replace("c = Abs(x)  d = Tanh(x)  s = Sum(a, b, c, d)", chain);
        assert_eq!(canonical(&model.graph), canonical(&parse_model(&expected).unwrap().graph));
    }
}
