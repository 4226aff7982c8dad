//! What passes report: counts, refusals, mixing sites.

use std::collections::{HashMap, HashSet};

use dmopt_ir::{Graph, Safety, ValueId};

use crate::Pass;
use crate::linear::Written;

/// What one pass did over the whole run.
#[derive(Clone, Debug)]
pub struct PassReport {
    /// Name of the pass.
    pub name: &'static str,
    /// The furthest that its edits may change results.
    pub safety: Safety,
    /// Edits applied.
    pub rewrites: u64,
    /// What it found and left alone.
    pub refused: Vec<Refused>,
}

/// A place where a pass found its pattern and left it alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Refused {
    /// The operator.
    pub node: String,
    /// Why the edit was not certain to be safe.
    pub reason: String,
}

/// A linear combination `c + sum_i s_i * x_i` in the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Name of the value that holds the result.
    pub output: String,
    /// Number of terms `s_i * x_i`.
    pub terms: usize,
    /// How the file writes it, such as `stack-sum`.
    pub form: &'static str,
    /// True when it was rewritten; false when it was an accumulation already, or was refused.
    pub rewritten: bool,
    /// Why it was left alone, if it was.
    pub reason: Option<String>,
    /// How the result writes it, where that is one of these forms.
    pub written: Option<Written>,
    /// How it was written when it was found.
    pub(crate) came: Option<Written>,
    /// Its name and those of what alone follows from it: a rewrite that takes in what follows keeps the last name.
    pub(crate) names: Vec<String>,
}

/// So many operators may follow that a rewrite takes in.
const FOLLOWING: usize = 8;

impl Site {
    /// A site as it was found.
    pub(crate) fn new(graph: &Graph, value: ValueId, terms: usize, form: &'static str) -> Site {
        let next = |&value: &ValueId| {
            let reader = graph.uses(value).next().filter(|_| graph.readers(value) == 1)?;
            graph.op(reader.op).output(0)
        };
        let names = std::iter::successors(Some(value), next).take(FOLLOWING);
        Site {
            output: graph.value(value).name.clone(),
            terms,
            form,
            rewritten: false,
            reason: None,
            written: None,
            came: Written::of(graph, value),
            names: names.map(|value| graph.value(value).name.clone()).collect(),
        }
    }

    /// The same where the original's operators stay, for this reason.
    pub fn left_alone(&self, reason: &str) -> Site {
        Site { rewritten: false, reason: Some(reason.to_string()), written: self.came, ..self.clone() }
    }
}

/// Notes how a graph writes the sites in the end. What another pass than the one that found it wrote in another form is
/// rewritten, too.
pub(crate) fn note_written(sites: &mut [Site], graph: &Graph) {
    let mut forms = HashMap::new();
    let wanted = sites.iter().flat_map(|site| site.names.iter().map(String::as_str)).collect();
    forms_of(graph, &wanted, &mut forms);
    for site in sites {
        site.written = site.names.iter().find_map(|name| forms.get(name)).copied().flatten();
        if site.written.is_some() && site.written != site.came {
            site.rewritten = true;
            site.reason = None;
        }
    }
}

/// The forms of values of these names, in a graph and its bodies.
fn forms_of(graph: &Graph, wanted: &HashSet<&str>, forms: &mut HashMap<String, Option<Written>>) {
    for value in graph.values().filter(|&value| graph.producer(value).is_some()) {
        let name = &graph.value(value).name;
        if wanted.contains(name.as_str()) {
            forms.insert(name.clone(), Written::of(graph, value));
        }
    }
    for op in graph.ops() {
        graph.op(op).bodies().for_each(|body| forms_of(body, wanted, forms));
    }
}

/// The order of one graph: the main graph or a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// Name of the graph.
    pub graph: String,
    /// Peak in bytes if the target's runtime executed operators in the order of the file as it was found.
    pub before_bytes: u64,
    /// The same in the order that was chosen, which is that of the file if none is better.
    pub after_bytes: u64,
    /// True for a body.
    pub in_body: bool,
    /// True if sizes were assumed because nobody gave them; the figures are for those.
    pub assumed_sizes: bool,
    /// No order of these operators has a lower peak than this with the target's kernels, in bytes. `None` for a graph
    /// with bodies, because what those need is estimated from above.
    pub lower_bound_bytes: Option<u64>,
    /// Sets of operators that the exact search looked at; 0 if it was not needed.
    pub states: u64,
}

impl Schedule {
    /// True if it is proven that no order of these operators needs less; never so of a graph with bodies.
    pub fn is_optimal(&self) -> bool {
        self.lower_bound_bytes.is_some_and(|bound| self.after_bytes <= bound)
    }
}

/// Collects what one pass reports, over all rounds.
#[derive(Debug, Default)]
pub struct Log {
    pub(crate) rewrites: u64,
    pub(crate) sites: Vec<Site>,
    /// The place of each site, by its output.
    places: HashMap<String, usize>,
    pub(crate) schedules: Vec<Schedule>,
    /// What whoever deploys the result wants to know.
    pub(crate) notes: Vec<String>,
    refused: Vec<Refused>,
    seen: HashSet<Refused>,
    rounds: usize,
    /// True if another run right after this round may find more; see [`Pass::settles`].
    pub(crate) unsettled: bool,
    /// True once operators were put in another order: sites that appear from then on are written by passes.
    pub(crate) reordered: bool,
}

impl Log {
    /// Refusals of an earlier round are forgotten: what still stands in the way says so again.
    pub(crate) fn start_round(&mut self) {
        self.refused.clear();
        self.seen.clear();
        self.unsettled = false;
        self.rounds += 1;
    }

    /// Notes that an edit was not certain to be safe.
    pub fn refuse(&mut self, node: String, reason: String) {
        let entry = Refused { node, reason };
        if self.seen.insert(entry.clone()) {
            self.refused.push(entry);
        }
    }

    /// Notes a mixing site, or updates what is known of the one with the same output.
    pub fn site(&mut self, site: Site) {
        match self.places.get(&site.output).map(|&at| &mut self.sites[at]) {
            // The form that the file came in is what the reader asked about.
            Some(known) if !known.rewritten => {
                known.rewritten = site.rewritten;
                known.reason = site.reason;
            }
            Some(_) => {}
            // The model did not come with what appears later, or in another order: passes made it.
            None if self.rounds > 1 || self.reordered => {}
            None => {
                self.places.insert(site.output.clone(), self.sites.len());
                self.sites.push(site);
            }
        }
    }

    /// Notes the order of a graph; a later round has the last word about it, but not about how it began.
    pub fn schedule(&mut self, schedule: Schedule) {
        match self.schedules.iter_mut().find(|s| (&s.graph, s.in_body) == (&schedule.graph, schedule.in_body))
        {
            Some(known) => *known = Schedule { before_bytes: known.before_bytes, ..schedule },
            None => self.schedules.push(schedule),
        }
    }

    pub(crate) fn report(self, pass: &dyn Pass) -> PassReport {
        PassReport {
            name: pass.name(),
            safety: pass.safety(),
            rewrites: self.rewrites,
            refused: self.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::parse_model;

    use crate::{Options, Planning, Target, Written, run};

    /// Whether the one site of a model is rewritten for a target, and its form in the result.
    fn fate(target: Target, text: &str) -> (bool, Option<&'static str>) {
        let mut model = parse_model(text).unwrap();
        let planning = Planning { target, ..Planning::default() };
        let outcome = run(&mut model, &Options { planning, ..Options::default() }).unwrap();
        let [site] = &outcome.sites[..] else { panic!("{:?}", outcome.sites) };
        (site.rewritten, site.written.map(Written::name))
    }

    #[test]
    fn a_site_has_the_form_that_the_last_pass_gave_it() {
        // Every term is read later, too, so that products would exist beside them.
        let text = "f (float[1,8,16,16] x) => (float[1,8,16,16] y) <float a = {0.5}, float b = {2}, float c = {-4}> {
            p = Exp(x)  q = Sigmoid(p)  r = Sqrt(q)
            k = Mul(p, a)  l = Mul(q, b)  m = Add(k, l)  n = Mul(r, c)  o = Add(m, n)
            s = Sub(p, q)  t = Div(s, r)  u = Tanh(o)  y = Sub(u, t)
         }";
        assert_eq!(fate(Target::Portable, text), (true, Some("horner")));
        assert_eq!(fate(Target::OrtCpu, text), (true, Some("fused-conv")));
        // Nothing else reads the terms.
        let once = "f (float[1,8,16,16] x) => (float[1,8,16,16] y) <float a = {0.5}, float b = {2}> {
            p = Exp(x)  k = Mul(p, a)  q = Sigmoid(x)  l = Mul(q, b)  o = Add(k, l)  y = Tanh(o)
         }";
        assert_eq!(fate(Target::Portable, once), (false, Some("mul-add")));
    }

    #[test]
    fn an_activation_that_is_taken_in_leaves_the_form() {
        let text = "f (float[1,8,16,16] x) => (float[1,8,16,16] y) <float a = {0.5}, float b = {2}> {
            p = Exp(x)  q = Sigmoid(p)  k = Mul(p, a)  l = Mul(q, b)  o = Add(k, l)  u = Relu(o)  y = Tanh(u)
         }";
        assert_eq!(fate(Target::OrtCpu, text), (true, Some("fused-conv")));
    }
}
