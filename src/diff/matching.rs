//! Which operators of two graphs are the same, by what they compute, then by the names of their results, then by what
//! they read.

use std::collections::{BTreeMap, HashMap};

use dmopt_ir::{AttributeValue, Def, Digest, Graph, Op, OpId, Structure, ValueId, attribute_digest};

/// An operator of each graph, and what differs between them.
pub(crate) type Difference = (OpId, OpId, Vec<String>);

/// Two graphs side by side.
pub(crate) struct Matching<'g> {
    /// One side and the other.
    pub graphs: [&'g Graph; 2],
    structures: [Structure; 2],
    /// By index of the operator: its counterpart.
    partners: [Vec<Option<OpId>>; 2],
    /// Values of the second graph that stand for values of the first.
    values: HashMap<ValueId, ValueId>,
    /// Operators that both graphs have and that are not the same, in the order of the first.
    pub changed: Vec<Difference>,
}

impl<'g> Matching<'g> {
    pub fn of(a: &'g Graph, b: &'g Graph) -> Matching<'g> {
        let mut matching = Matching {
            graphs: [a, b],
            structures: [Structure::of(a), Structure::of(b)],
            partners: [vec![None; a.op_bound()], vec![None; b.op_bound()]],
            values: HashMap::new(),
            changed: Vec::new(),
        };
        matching.by_name_of_source();
        matching.by_digest();
        matching.by_name();
        matching.by_operands();
        let pairs = matching.pairs().into_iter().map(|(p, q)| (p, q, matching.differences(p, q)));
        matching.changed = pairs.filter(|(.., differences)| !differences.is_empty()).collect();
        matching
    }

    /// The counterpart of an operator of `side` (0 or 1).
    pub fn partner(&self, side: usize, op: OpId) -> Option<OpId> {
        self.partners[side][op.index()]
    }

    /// Operators of `side` without a counterpart, in order.
    pub fn alone(&self, side: usize) -> Vec<OpId> {
        order(self.graphs[side]).into_iter().filter(|&op| self.partner(side, op).is_none()).collect()
    }

    /// Pairs of operators that stand for each other, in the order of the first graph.
    pub fn pairs(&self) -> Vec<(OpId, OpId)> {
        order(self.graphs[0]).into_iter().filter_map(|op| Some((op, self.partner(0, op)?))).collect()
    }

    /// What differs between an operator and its counterpart, in words; what comes before them left out.
    fn differences(&self, a: OpId, b: OpId) -> Vec<String> {
        let [left, right] = self.graphs;
        let (p, q) = (left.op(a), right.op(b));
        let mut found = Vec::new();
        if (domain(p), &p.op_type, &p.overload) != (domain(q), &q.op_type, &q.overload) {
            found.push(format!("{} instead of {}", q.op_type, p.op_type));
        }
        let attributes = |op: &Op| -> BTreeMap<String, Digest> {
            op.attributes
                .iter()
                .map(|attribute| (attribute.name.clone(), attribute_digest(attribute)))
                .collect()
        };
        let (ours, theirs) = (attributes(p), attributes(q));
        let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        for name in names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name)) {
            let body = |op: &Op| matches!(op.attribute(name), Some(AttributeValue::Graph(_)));
            found.push(match (ours.contains_key(name), theirs.contains_key(name)) {
                (true, true) if body(p) && body(q) => format!("body {name} differs"),
                (true, true) => format!("attribute {name} differs"),
                (true, false) => format!("without attribute {name}"),
                _ => format!("with attribute {name}"),
            });
        }
        for slot in 0..p.inputs.len().max(q.inputs.len()) {
            let name = |graph: &Graph, value: Option<ValueId>| {
                value.map_or_else(|| "nothing".to_string(), |v| graph.value(v).name.clone())
            };
            let (old, new) = (p.input(slot), q.input(slot));
            if self.same(old, new) {
                continue;
            }
            let (was, is) = (name(left, old), name(right, new));
            found.push(match was == is {
                true => format!("operand {slot} ({is}) has other elements"),
                false => format!("operand {slot} is {is} instead of {was}"),
            });
        }
        found
    }

    /// How many operators that both graphs have stand elsewhere in their order: what is left of the pairs beside the longest
    /// run of them that keeps its order.
    pub fn moved(&self) -> usize {
        let place: HashMap<OpId, usize> = order(self.graphs[1]).into_iter().zip(0..).collect();
        let pairs = self.pairs();
        // The smallest last place among increasing runs of each length.
        let mut ends: Vec<usize> = Vec::new();
        for at in pairs.iter().filter_map(|(_, b)| place.get(b).copied()) {
            match ends.partition_point(|&end| end < at) {
                end if end == ends.len() => ends.push(at),
                end => ends[end] = at,
            }
        }
        pairs.len() - ends.len()
    }

    /// The constants of `side` whose name and content the other graph does not have: name and bytes.
    pub fn constants(&self, side: usize) -> Vec<(String, u64)> {
        let named = |side: usize| {
            let graph = self.graphs[side];
            let constants =
                graph.values().filter(move |&v| matches!(graph.value(v).def, Def::Initializer(_)));
            constants.map(move |v| (graph.value(v).name.as_str(), self.structures[side].value(v), v))
        };
        let theirs: HashMap<Digest, usize> = named(1 - side).map(|(_, digest, _)| (digest, 0)).collect();
        let bytes = |v: ValueId| match &self.graphs[side].value(v).def {
            Def::Initializer(tensor) => tensor.byte_len().unwrap_or(0),
            _ => 0,
        };
        named(side)
            .filter(|(_, digest, _)| !theirs.contains_key(digest))
            .map(|(name, _, v)| (name.to_string(), bytes(v)))
            .collect()
    }

    /// Inputs and captured values of one name stand for each other.
    fn by_name_of_source(&mut self) {
        let [a, b] = self.graphs;
        let is_source =
            |graph: &Graph, v| matches!(graph.value(v).def, Def::Input { .. } | Def::Captured { .. });
        let ours: HashMap<&str, ValueId> =
            a.values().filter(|&v| is_source(a, v)).map(|v| (a.value(v).name.as_str(), v)).collect();
        for v in b.values().filter(|&v| is_source(b, v)) {
            if let Some(&ours) = ours.get(b.value(v).name.as_str()) {
                self.values.insert(v, ours);
            }
        }
    }

    /// What computes the same from the same inputs; of several copies, those whose results have one name first.
    fn by_digest(&mut self) {
        let [a, b] = self.graphs;
        let mut ours: HashMap<(Digest, Option<&str>), Vec<OpId>> = HashMap::new();
        for named in [true, false] {
            ours.clear();
            for op in order(a).into_iter().rev().filter(|op| self.partners[0][op.index()].is_none()) {
                let name = if named { first_result(a, op) } else { None };
                ours.entry((self.structures[0].op(op), name)).or_default().push(op);
            }
            for op in order(b) {
                let name = if named { first_result(b, op) } else { None };
                if self.partners[1][op.index()].is_none()
                    && let Some(ours) = ours.get_mut(&(self.structures[1].op(op), name)).and_then(Vec::pop)
                {
                    self.pair(ours, op);
                }
            }
        }
    }

    /// A name means the same number before and after a rewrite.
    fn by_name(&mut self) {
        let [a, b] = self.graphs;
        let ours: HashMap<&str, OpId> = order(a)
            .into_iter()
            .filter(|op| self.partners[0][op.index()].is_none())
            .filter_map(|op| Some((first_result(a, op)?, op)))
            .collect();
        for op in order(b) {
            if self.partners[1][op.index()].is_none()
                && let Some(&ours) = first_result(b, op).and_then(|name| ours.get(name))
                && self.partners[0][ours.index()].is_none()
            {
                self.pair(ours, op);
            }
        }
    }

    /// An operator of one type that reads the counterparts of what another one reads is its counterpart, whatever they
    /// are called.
    fn by_operands(&mut self) {
        let [a, b] = self.graphs;
        let mut readers: HashMap<ValueId, Vec<OpId>> = HashMap::new();
        for op in self.alone(0) {
            if let Some(first) = a.op(op).operands().find(|&v| !is_constant(a, v)) {
                readers.entry(first).or_default().push(op);
            }
        }
        for op in self.alone(1) {
            let theirs = b.op(op);
            let first = theirs.operands().find(|&v| !is_constant(b, v)).and_then(|v| self.values.get(&v));
            let candidates = first.and_then(|v| readers.get(v)).map_or(&[][..], Vec::as_slice);
            let fits = |&&candidate: &&OpId| {
                self.partners[0][candidate.index()].is_none() && {
                    let ours = a.op(candidate);
                    ours.op_type == theirs.op_type
                        && domain(ours) == domain(theirs)
                        && ours.inputs.len() == theirs.inputs.len()
                        && ours.inputs.iter().zip(&theirs.inputs).all(|(&p, &q)| self.same(p, q))
                }
            };
            if let Some(&ours) = candidates.iter().find(fits) {
                self.pair(ours, op);
            }
        }
    }

    fn pair(&mut self, a: OpId, b: OpId) {
        self.partners[0][a.index()] = Some(b);
        self.partners[1][b.index()] = Some(a);
        let [left, right] = self.graphs;
        for (p, q) in left.op(a).outputs.iter().zip(&right.op(b).outputs) {
            if let (Some(p), Some(q)) = (p, q) {
                self.values.insert(*q, *p);
            }
        }
    }

    /// True if two operands stand for each other: both left out, counterparts, or computed in the same way.
    fn same(&self, a: Option<ValueId>, b: Option<ValueId>) -> bool {
        match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                self.values.get(&b) == Some(&a) || self.structures[0].value(a) == self.structures[1].value(b)
            }
            _ => false,
        }
    }
}

fn order(graph: &Graph) -> Vec<OpId> {
    graph.order().unwrap_or_default()
}

fn domain(op: &Op) -> &str {
    if op.is_standard() { "" } else { &op.domain }
}

fn is_constant(graph: &Graph, value: ValueId) -> bool {
    matches!(graph.value(value).def, Def::Initializer(_) | Def::SparseInitializer(_))
}

/// The name of the first result that there is.
pub(crate) fn first_result(graph: &Graph, op: OpId) -> Option<&str> {
    graph.op(op).results().next().map(|v| graph.value(v).name.as_str())
}
