//! Changes that belong together: what leads to a mixing site is that site's; what is left belongs to the block that its
//! names tell (`/layers.3/conv` is in `/layers.3`), or to the result that it leads to.

use std::collections::{BTreeMap, HashMap, HashSet};

use dmopt_ir::text::print_op;
use dmopt_ir::{AttributeValue, Graph, Op, OpId};
use dmopt_passes::{Site, mixing_sites};

use super::matching::{Matching, first_result};
use super::{Changed, Group, Pair};
use crate::units::plural;

/// The changes between two graphs with their bodies, in the order of the first.
pub(crate) fn groups(matching: &Matching<'_>) -> Vec<Group> {
    let sites = matching.graphs.map(sites);
    let mut found = Vec::new();
    graph(matching, &sites, "", &mut found);
    found
}

fn sites(graph: &Graph) -> HashMap<String, Site> {
    mixing_sites(graph).into_iter().map(|site| (site.output.clone(), site)).collect()
}

fn graph(matching: &Matching<'_>, sites: &[HashMap<String, Site>; 2], prefix: &str, found: &mut Vec<Group>) {
    let changed = &matching.changed;
    let owners = owners(matching, sites);
    // By place: groups come in the order in which they are first mentioned.
    let mut grouped: BTreeMap<usize, Group> = BTreeMap::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    let [a, b] = matching.graphs;
    let mut put = |owner: &Owner, add: &mut dyn FnMut(&mut Group)| {
        let next = place.len();
        let at = *place.entry(owner.title()).or_insert(next);
        let form = |site: Option<&Site>| site.map(|s| format!("{}, {}", s.form, plural(s.terms, "term")));
        let group = grouped.entry(at).or_insert_with(|| Group {
            title: format!("{prefix}{}", owner.title()),
            form: (owner.kind == Kind::Site).then(|| Pair {
                before: form(sites[0].get(&owner.name)),
                after: form(sites[1].get(&owner.name)),
            }),
            gone: Vec::new(),
            new: Vec::new(),
            changed: Vec::new(),
        });
        add(group);
    };
    let mut events: Vec<(usize, Event)> = Vec::new();
    let ranks = |graph: &Graph| -> HashMap<OpId, usize> {
        graph.order().unwrap_or_default().into_iter().zip(0..).collect()
    };
    let rank = ranks(a);
    events.extend(matching.alone(0).into_iter().map(|op| (rank[&op], Event::Gone(op))));
    events.extend(changed.iter().enumerate().map(|(i, (p, ..))| (rank[p], Event::Changed(i))));
    events.sort_by_key(|&(at, _)| at);
    for (_, event) in events {
        match event {
            Event::Gone(op) => put(&owners[0][&op], &mut |group| group.gone.push(line(a, op))),
            Event::Changed(i) => {
                let (p, q, differences) = &changed[i];
                let (ours, theirs) = (&owners[0][p], &owners[1][q]);
                let owner = if ours.kind > theirs.kind { ours } else { theirs };
                let text = Pair { before: line(a, *p), after: line(b, *q) };
                put(owner, &mut |group| {
                    group.changed.push(Changed { text: text.clone(), differences: differences.clone() });
                });
            }
        }
    }
    for op in matching.alone(1) {
        put(&owners[1][&op], &mut |group| group.new.push(line(b, op)));
    }
    found.extend(grouped.into_values());
    for (p, q, _) in changed {
        let name = first_result(b, *q).unwrap_or_default();
        for (attribute, ours, theirs) in bodies(a.op(*p), b.op(*q)) {
            graph(&Matching::of(ours, theirs), sites, &format!("{prefix}{attribute} of {name}: "), found);
        }
    }
}

/// What the operators of both sides that changed belong to.
fn owners(matching: &Matching<'_>, sites: &[HashMap<String, Site>; 2]) -> [HashMap<OpId, Owner>; 2] {
    [0, 1].map(|side| {
        let touched = matching.changed.iter().map(|&(p, q, _)| [p, q][side]).chain(matching.alone(side));
        own(matching.graphs[side], touched.collect(), sites, side)
    })
}

enum Event {
    Gone(OpId),
    Changed(usize),
}

/// An operator as text without its name: the names of its results say enough.
fn line(graph: &Graph, op: OpId) -> String {
    let text = print_op(graph, op);
    let name = &graph.op(op).name;
    let rest = text.get(name.len()..).filter(|_| !name.is_empty()).and_then(|rest| rest.split_once("] "));
    rest.map_or_else(|| text.clone(), |(_, rest)| rest.to_string())
}

/// What a change belongs to.
#[derive(Clone)]
struct Owner {
    kind: Kind,
    name: String,
}

/// What changes can belong to, the weakest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Around,
    Block,
    Site,
}

impl Owner {
    fn new(kind: Kind, name: &str) -> Owner {
        Owner { kind, name: name.to_string() }
    }

    fn title(&self) -> String {
        let kind = match self.kind {
            Kind::Around => "around",
            Kind::Block => "block",
            Kind::Site => "mixing site",
        };
        format!("{kind} {}", self.name)
    }
}

/// Owners of the operators that changed: readers first, because what leads to a site belongs to it.
fn own(
    graph: &Graph,
    touched: HashSet<OpId>,
    sites: &[HashMap<String, Site>; 2],
    side: usize,
) -> HashMap<OpId, Owner> {
    let mut owners: HashMap<OpId, Owner> = HashMap::new();
    for op in graph.order().unwrap_or_default().into_iter().rev().filter(|op| touched.contains(op)) {
        let name = first_result(graph, op).unwrap_or_default();
        let reader = graph.successors(op).filter_map(|reader| owners.get(&reader));
        let reader = reader.max_by_key(|owner| owner.kind).cloned();
        // What a rewrite wrote in parts is one site still.
        let part = side == 1 && reader.as_ref().is_some_and(|reader| reader.kind == Kind::Site);
        let site = sites[0].contains_key(name) || (sites[1].contains_key(name) && !part);
        let owner = match (site, block(&graph.op(op).name), reader) {
            (true, ..) => Owner::new(Kind::Site, name),
            (false, _, Some(reader)) if reader.kind == Kind::Site => reader,
            (false, Some(block), _) => Owner::new(Kind::Block, block),
            (false, None, Some(reader)) => reader,
            (false, None, None) => Owner::new(Kind::Around, name),
        };
        owners.insert(op, owner);
    }
    // What follows from a block and has no name of its own belongs to it.
    for op in graph.order().unwrap_or_default().into_iter().filter(|op| touched.contains(op)) {
        let before = graph.predecessors(op).find_map(|p| owners.get(&p).cloned());
        if let Some(before) = before.filter(|owner| owner.kind == Kind::Block)
            && owners[&op].kind == Kind::Around
        {
            owners.insert(op, before);
        }
    }
    owners
}

/// The scope in an operator's name, without the last part.
fn block(name: &str) -> Option<&str> {
    let (scope, _) = name.rsplit_once('/')?;
    Some(scope).filter(|scope| !scope.is_empty())
}

/// The bodies that both operators have under one name.
fn bodies<'g>(p: &'g Op, q: &'g Op) -> impl Iterator<Item = (&'g str, &'g Graph, &'g Graph)> {
    p.attributes.iter().filter_map(|attribute| match (&attribute.value, q.attribute(&attribute.name)) {
        (AttributeValue::Graph(ours), Some(AttributeValue::Graph(theirs))) => {
            Some((attribute.name.as_str(), &**ours, &**theirs))
        }
        _ => None,
    })
}

/// The operators on both sides that changed and belong to a mixing site, by the site's result.
pub(crate) fn members(matching: &Matching<'_>) -> HashMap<String, [HashSet<OpId>; 2]> {
    let sites = [sites(matching.graphs[0]), sites(matching.graphs[1])];
    let mut found: HashMap<String, [HashSet<OpId>; 2]> = HashMap::new();
    for (side, owners) in owners(matching, &sites).into_iter().enumerate() {
        for (op, owner) in owners.into_iter().filter(|(_, owner)| owner.kind == Kind::Site) {
            found.entry(owner.name).or_default()[side].insert(op);
        }
    }
    found
}
