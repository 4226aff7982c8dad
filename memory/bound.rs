//! What no order can avoid: lower bounds on the peak of a [`Problem`], each provable for the problem as it is (another
//! graph that computes the same may need less).
//!
//! - **Operator**: while `v` runs, its operands, its results and its scratch memory are there. A result that could take
//!   over an operand in some order counts nothing.
//! - **Settled**: where every other operator comes before `v` or after it whatever the order, as in a chain and where
//!   branches meet, what has run when `v` starts is the same in all orders, and so is what `v` needs.
//! - **Forced**: besides, every buffer that an ancestor of `v` creates and that stays to the end or that a descendant
//!   of `v` reads. An operand with such a reader does not die at `v`.
//! - **Cut**: when `v` starts, the operators that have run are some down-set `D` that has all ancestors of `v` and not
//!   `v`, so the peak is at least the minimum of `f(D) + alloc(v, D) + scratch(v)` over those. `f` is the cut function
//!   of a directed hypergraph, so the minimum is a minimum cut: source side `D`; per buffer a node behind its creator,
//!   with its bytes as capacity, from which unbounded edges lead to its readers; an unbounded edge from each operator to
//!   each that it waits for. A result that may take over an operand is one more such node, whose readers are the other
//!   readers of the operand; with a choice of operands the minimum is taken over the choices.
//!
//! Each is at least the one before.

use std::cmp::Reverse;

use crate::flow::{Network, UNBOUNDED};
use crate::problem::Problem;
use crate::state::{State, saved};

/// The operator bound, in bytes.
pub fn operator(problem: &Problem) -> u64 {
    let needs = |v: usize| {
        let op = &problem.ops[v];
        let there: u64 = op.reads.iter().chain(&op.creates).map(|&b| problem.buffers[b].bytes).sum();
        there + op.scratch - saved(problem, v, |_| true)
    };
    (0..problem.len()).map(needs).max().unwrap_or(0)
}

/// The settled bound, in bytes; `needs` is the [profile](Problem::profile) of the order of the file. Takes time in the
/// number of operators and readings.
///
/// All that stand before `v` come before it if `v` is the only one up to there that nothing up to there waits for: from
/// any operator, going on to one that waits for it ends there. What stands after `v` is the same read backwards.
pub fn settled(problem: &Problem, needs: &[u64]) -> u64 {
    let n = problem.len();
    // For each operator, how many find in it the first that waits for them, and the last that they wait for.
    let (mut first_for, mut last_for) = (vec![0usize; n], vec![0usize; n]);
    problem.successors.iter().filter_map(|after| after.first()).for_each(|&v| first_for[v as usize] += 1);
    problem.ops.iter().filter_map(|op| op.after.last()).for_each(|&v| last_for[v] += 1);
    let alone = |waiting: &mut usize, done: usize| {
        *waiting = *waiting + 1 - done;
        *waiting == 1
    };
    let mut open = 0;
    let is_end: Vec<bool> = first_for.into_iter().map(|done| alone(&mut open, done)).collect();
    let mut open = 0;
    let starts = last_for.into_iter().enumerate().rev().filter(|&(_, done)| alone(&mut open, done));
    let settled = starts.filter(|&(v, _)| is_end[v]).map(|(v, _)| needs[v]).max();
    settled.unwrap_or(0).max(operator(problem))
}

/// The forced bound, in bytes. Takes time in the number of operators times that of readings.
pub fn forced(problem: &Problem) -> u64 {
    let relation = Relation::new(problem);
    (0..problem.len()).map(|v| forced_at(problem, &relation, v)).max().unwrap_or(0)
}

/// The cut bound, in bytes, or as much of it as comes out of `work` visits to edges of networks (the forced bound at
/// least). `order` is any order of the operators; a good one saves most of the work.
///
/// # Panics
/// `order` is no [order](Problem::is_order) of this problem.
pub fn cut(problem: &Problem, order: &[usize], work: u64) -> u64 {
    Cuts::new(problem).bound(order, work)
}

/// Which operators come before which, whatever the order: a bit for each pair.
struct Relation {
    words: usize,
    ancestors: Vec<u64>,
}

impl Relation {
    fn new(problem: &Problem) -> Relation {
        let words = problem.len().div_ceil(64);
        let mut ancestors = vec![0u64; words * problem.len()];
        for (v, op) in problem.ops.iter().enumerate() {
            let (known, rest) = ancestors.split_at_mut(v * words);
            let row = &mut rest[..words];
            for &before in &op.after {
                row[before / 64] |= 1 << (before % 64);
                row.iter_mut().zip(&known[before * words..]).for_each(|(mine, theirs)| *mine |= theirs);
            }
        }
        Relation { words, ancestors }
    }

    /// True if `u` runs before `v` in every order.
    fn before(&self, u: usize, v: usize) -> bool {
        self.ancestors[v * self.words + u / 64] >> (u % 64) & 1 == 1
    }
}

fn forced_at(problem: &Problem, relation: &Relation, v: usize) -> u64 {
    let op = &problem.ops[v];
    let later =
        |b: usize| problem.buffers[b].readers.iter().any(|&reader| relation.before(v, reader as usize));
    let operands: u64 = op.reads.iter().map(|&b| problem.buffers[b].bytes).sum();
    let results: u64 = op.creates.iter().map(|&b| problem.buffers[b].bytes).sum();
    let others = problem.buffers.iter().enumerate().filter(|(b, buffer)| {
        relation.before(buffer.creator, v) && !op.reads.contains(b) && (buffer.kept || later(*b))
    });
    let others: u64 = others.map(|(_, buffer)| buffer.bytes).sum();
    operands + results + op.scratch + others - saved(problem, v, |b| !later(b))
}

/// Lowers `most` to what each operator needs that is ready after this down-set.
fn lower(problem: &Problem, downset: &[bool], most: &mut [u64]) {
    let mut state = State::new(problem);
    (0..problem.len()).filter(|&v| downset[v]).for_each(|v| state.run(v));
    for v in state.ready.iter().map(|&v| v as usize) {
        most[v] = most[v].min(state.needs(v));
    }
}

/// Minimum cuts, one operator at a time.
pub(crate) struct Cuts<'p> {
    problem: &'p Problem,
    relation: Relation,
    network: Network,
    /// The node of each operator, in the network at hand.
    node: Vec<usize>,
    /// The operators whose cuts were the largest, those first.
    critical: Vec<(u64, usize)>,
}

const SOURCE: usize = 0;
const SINK: usize = 1;

impl<'p> Cuts<'p> {
    pub fn new(problem: &'p Problem) -> Cuts<'p> {
        let relation = Relation::new(problem);
        Cuts { problem, relation, network: Network::default(), node: Vec::new(), critical: Vec::new() }
    }

    /// See [`cut`].
    pub fn bound(&mut self, order: &[usize], work: u64) -> u64 {
        let problem = self.problem;
        let forced: Vec<u64> = (0..problem.len()).map(|v| forced_at(problem, &self.relation, v)).collect();
        let mut best = forced.iter().copied().max().unwrap_or(0);
        // What an operator needs after some down-set bounds its cut from above, so most cuts cannot improve the best.
        let mut most = vec![0; problem.len()];
        order.iter().zip(problem.profile(order)).for_each(|(&v, needs)| most[v] = needs);
        let mut candidates: Vec<usize> = (0..problem.len()).filter(|&v| most[v] > best).collect();
        candidates.sort_by_key(|&v| (Reverse((forced[v], most[v])), v));
        for v in candidates {
            if most[v] <= best {
                continue;
            }
            if self.network.work() > work {
                break;
            }
            let (value, downset) = self.least(v, |_| false, most[v]);
            self.critical.push((value, v));
            best = best.max(value);
            lower(problem, &downset, &mut most);
        }
        self.critical.sort_by_key(|&(value, v)| (Reverse(value), v));
        best
    }

    /// The operators whose cuts in [`bound`](Cuts::bound) were the largest, those first.
    pub fn critical(&self) -> impl Iterator<Item = usize> + '_ {
        self.critical.iter().map(|&(_, v)| v)
    }

    /// Visits to edges since the start.
    pub fn work(&self) -> u64 {
        self.network.work()
    }

    /// The least that `v` needs after any down-set that has all of `done`; any value beyond `most` if it is larger.
    pub fn given(&mut self, v: usize, done: impl Fn(usize) -> bool + Copy, most: u64) -> u64 {
        self.least(v, done, most).0
    }

    /// As [`given`](Cuts::given), with the down-set.
    fn least(&mut self, v: usize, done: impl Fn(usize) -> bool + Copy, most: u64) -> (u64, Vec<bool>) {
        let mut best = (u64::MAX, Vec::new());
        for over in choices(self.problem, &self.relation, v) {
            let least = self.least_with(v, &over, done, most);
            if least.0 < best.0 {
                best = least;
            }
        }
        best
    }

    /// As [`least`](Cuts::least), with a given operand for each result to take over.
    fn least_with(
        &mut self,
        v: usize,
        over: &[Choice],
        done: impl Fn(usize) -> bool,
        most: u64,
    ) -> (u64, Vec<bool>) {
        let (problem, relation) = (self.problem, &self.relation);
        // Operators that run before are the source, `v` and those that always run after are the sink.
        let mut nodes = 2;
        let side = |u: usize| match () {
            () if done(u) || relation.before(u, v) => SOURCE,
            () if u == v || relation.before(v, u) => SINK,
            () => {
                nodes += 1;
                nodes - 1
            }
        };
        self.node = (0..problem.len()).map(side).collect();
        let node = |u: usize| self.node[u];
        let op = &problem.ops[v];
        let mut always = op.scratch + op.creates.iter().map(|&b| problem.buffers[b].bytes).sum::<u64>();

        // Hyperedges: from a node, with a weight, to readers.
        let free = |readers: &mut dyn Iterator<Item = usize>| readers.filter(|&r| r != SOURCE).collect();
        let mut hyperedges: Vec<(usize, u64, Vec<usize>)> = Vec::new();
        for buffer in &problem.buffers {
            let (tail, mut readers) = (node(buffer.creator), buffer.readers().map(node));
            let beyond = buffer.kept || readers.any(|reader| reader == SINK);
            match (tail, beyond) {
                (SINK, _) => {}
                (SOURCE, true) => always += buffer.bytes,
                (_, true) => hyperedges.push((tail, buffer.bytes, vec![SINK])),
                (_, false) => hyperedges.push((tail, buffer.bytes, free(&mut buffer.readers().map(node)))),
            }
        }
        for choice in over {
            let bytes = problem.buffers[choice.result].bytes;
            always -= bytes;
            if let Some(operand) = choice.operand {
                let mut others = problem.buffers[operand].readers().filter(|&reader| reader != v).map(node);
                hyperedges.push((SOURCE, bytes, free(&mut others)));
            }
        }
        hyperedges.retain(|(_, _, readers)| !readers.is_empty());

        self.network.clear(nodes + hyperedges.len());
        for (i, (tail, bytes, readers)) in hyperedges.iter().enumerate() {
            self.network.edge(*tail, nodes + i, *bytes);
            readers.iter().for_each(|&reader| self.network.edge(nodes + i, reader, UNBOUNDED));
        }
        for (u, op) in problem.ops.iter().enumerate().filter(|&(u, _)| self.node[u] > SINK) {
            for &before in op.after.iter().filter(|&&before| self.node[before] > SINK) {
                self.network.edge(self.node[u], self.node[before], UNBOUNDED);
            }
        }
        let enough = most.saturating_sub(always).saturating_add(1);
        let flow = self.network.flow(SOURCE, SINK, enough);
        let inside = self.network.reachable();
        (always + flow, (0..problem.len()).map(|u| inside(self.node[u])).collect())
    }
}

/// A result that takes over an operand, or any.
struct Choice {
    result: usize,
    operand: Option<usize>,
}

/// The ways in which results of `v` can take over operands that may die at `v`. With very many ways there is one, in
/// which each result takes over any operand, at whatever time.
fn choices(problem: &Problem, relation: &Relation, v: usize) -> Vec<Vec<Choice>> {
    const MOST: usize = 8;
    let dies = |b: usize| !problem.buffers[b].readers().any(|reader| relation.before(v, reader));
    let pairs = problem.ops[v].in_place.iter();
    let pairs: Vec<(usize, Vec<usize>)> =
        pairs.map(|p| (p.result, p.over.iter().copied().filter(|&b| dies(b)).collect())).collect();
    let pairs: Vec<&(usize, Vec<usize>)> = pairs.iter().filter(|(_, over)| !over.is_empty()).collect();
    if pairs.iter().fold(1usize, |ways, (_, over)| ways.saturating_mul(over.len())) > MOST {
        return vec![pairs.iter().map(|pair| Choice { result: pair.0, operand: None }).collect()];
    }
    let mut ways: Vec<Vec<usize>> = vec![Vec::new()];
    for (_, over) in &pairs {
        ways = ways
            .iter()
            .flat_map(|way| over.iter().map(move |&b| way.iter().copied().chain([b]).collect()))
            .collect();
    }
    let way = |operands: Vec<usize>| {
        let choice = |(pair, operand): (&&(usize, Vec<usize>), usize)| Choice {
            result: pair.0,
            operand: Some(operand),
        };
        pairs.iter().zip(operands).map(choice).collect()
    };
    ways.into_iter().map(way).collect()
}
