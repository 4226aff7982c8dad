//! Orders that cost next to nothing: how runtimes and compilers order operators. They are what a search has to beat,
//! and its starting point.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use crate::problem::Problem;
use crate::state::State;

/// A way to order operators.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Heuristic {
    /// As they stand in the file.
    File,
    /// What ONNX Runtime does by default: depth first back from the operators that nothing waits for, the last in the
    /// file first, at each operator the last in the file among those it waits for first (`Graph::ReverseDFSFrom`).
    ReverseDepthFirst,
    /// Least peak memory first (`topological_sort_lpmf` of PyTorch's Inductor, `torch/_inductor/memory.py`): among the
    /// ready operators that do not raise the peak so far the one that leaves least in memory, else the one that raises
    /// it least.
    LeastPeakFirst,
    /// Inductor's `topological_sort_bfs`: the operator whose predecessors ran earliest.
    BreadthFirst,
    /// Inductor's `topological_sort_dfs`: depth first, operators with small operands and results first.
    SmallestFirst,
    /// XLA's `ListScheduler` (`hlo_memory_scheduler.cc`): the ready operator that frees most, less what it creates;
    /// of equal ones the one with most readers.
    List,
    /// XLA's `DFSMemoryScheduler`: depth first, the operand with most readers on the way to it first, then the one with
    /// most bytes on the way.
    MostReadFirst,
    /// XLA's `PostOrderMemoryScheduler`: depth first in file order.
    PostOrder,
}

impl Heuristic {
    /// All of them.
    pub const ALL: [Heuristic; 8] = [
        Heuristic::File,
        Heuristic::ReverseDepthFirst,
        Heuristic::LeastPeakFirst,
        Heuristic::BreadthFirst,
        Heuristic::SmallestFirst,
        Heuristic::List,
        Heuristic::MostReadFirst,
        Heuristic::PostOrder,
    ];

    /// The order that it gives.
    pub fn order(self, problem: &Problem) -> Vec<usize> {
        match self {
            Heuristic::File => (0..problem.len()).collect(),
            Heuristic::ReverseDepthFirst => depth_first(problem, leaves(problem), Reverse),
            Heuristic::LeastPeakFirst => greedy(problem, |ready| {
                let fits = |v: &usize| ready.state.needs(*v) <= ready.peak;
                // If that does not fit, nothing does.
                let least = ready.by_need.first().map(|&(_, _, v)| v)?;
                let free = fits(&least).then(|| ready.by_rest.iter().map(|&(_, _, v)| v).find(fits));
                free.flatten().or(Some(least))
            }),
            Heuristic::BreadthFirst => breadth_first(problem),
            Heuristic::SmallestFirst => {
                let bytes = |v: usize| {
                    let op = &problem.ops[v];
                    op.creates.iter().chain(&op.reads).map(|&b| problem.buffers[b].bytes).sum::<u64>()
                };
                depth_first(problem, (0..problem.len()).collect(), |v| (bytes(v), v))
            }
            Heuristic::List => greedy(problem, |ready| ready.by_rest.first().map(|&(_, _, v)| v)),
            Heuristic::MostReadFirst => {
                let weights = weights(problem);
                depth_first(problem, leaves(problem), |v| (Reverse(weights[v]), v))
            }
            Heuristic::PostOrder => depth_first(problem, leaves(problem), |v| v),
        }
    }
}

/// Operators that nothing waits for.
fn leaves(problem: &Problem) -> Vec<usize> {
    (0..problem.len()).filter(|&v| problem.successors[v].is_empty()).collect()
}

/// Runs the ready operators one after the other; which, `choose` says.
fn greedy(problem: &Problem, choose: impl Fn(&Ready<'_>) -> Option<usize>) -> Vec<usize> {
    let mut ready = Ready::new(problem);
    while let Some(v) = choose(&ready) {
        ready.run(v);
    }
    ready.state.log.iter().map(|&v| v as usize).collect()
}

/// A run with its ready operators sorted, so that choosing one takes no look at all.
struct Ready<'p> {
    state: State<'p>,
    peak: u64,
    /// The costs under which an operator is sorted in.
    costs: Vec<(u64, i64)>,
    /// By the bytes that they leave more, then by successors, most first, then by place.
    by_rest: BTreeSet<(i64, Reverse<usize>, usize)>,
    /// By the bytes that they take while they run, then by those that they leave.
    by_need: BTreeSet<(u64, i64, usize)>,
}

impl<'p> Ready<'p> {
    fn new(problem: &'p Problem) -> Ready<'p> {
        let (state, costs) = (State::new(problem), vec![(0, 0); problem.len()]);
        let (by_rest, by_need) = (BTreeSet::new(), BTreeSet::new());
        let mut ready = Ready { state, peak: 0, costs, by_rest, by_need };
        for v in ready.state.ready.clone() {
            ready.insert(v as usize);
        }
        ready
    }

    fn insert(&mut self, v: usize) {
        let (needs, rest) = self.state.costs(v);
        self.costs[v] = (needs, rest);
        self.by_rest.insert((rest, Reverse(self.state.problem.successors[v].len()), v));
        self.by_need.insert((needs, rest, v));
    }

    fn remove(&mut self, v: usize) {
        let (needs, rest) = self.costs[v];
        self.by_rest.remove(&(rest, Reverse(self.state.problem.successors[v].len()), v));
        self.by_need.remove(&(needs, rest, v));
    }

    fn run(&mut self, v: usize) {
        let problem = self.state.problem;
        self.remove(v);
        self.peak = self.peak.max(self.state.needs(v));
        self.state.run(v);
        // The costs of a last reader change; it is sorted in again if it was ready before.
        for &b in &problem.ops[v].reads {
            if let Some(last) = self.state.last_reader(b).filter(|&last| self.state.is_ready(last)) {
                self.remove(last);
                self.insert(last);
            }
        }
        for next in problem.successors[v].iter().map(|&next| next as usize) {
            if self.state.is_ready(next) {
                self.insert(next);
            }
        }
    }
}

/// Goes back from each root to what it waits for, at every operator the one with the least key first; an operator runs
/// once all that it waits for has run.
fn depth_first<K: Ord>(problem: &Problem, mut roots: Vec<usize>, key: impl Fn(usize) -> K) -> Vec<usize> {
    let mut order = Vec::with_capacity(problem.len());
    let mut seen = vec![false; problem.len()];
    roots.sort_by_cached_key(|&v| Reverse(key(v)));
    // Each operator twice: to be entered, and to run.
    let mut stack: Vec<(usize, bool)> = roots.into_iter().map(|v| (v, false)).collect();
    while let Some((v, entered)) = stack.pop() {
        if entered {
            order.push(v);
        } else if !std::mem::replace(&mut seen[v], true) {
            stack.push((v, true));
            let mut before: Vec<usize> = problem.ops[v].after.clone();
            before.retain(|&p| !seen[p]);
            before.sort_by_cached_key(|&p| Reverse(key(p)));
            stack.extend(before.into_iter().map(|p| (p, false)));
        }
    }
    order
}

fn breadth_first(problem: &Problem) -> Vec<usize> {
    let mut waiting: Vec<usize> = problem.ops.iter().map(|op| op.after.len()).collect();
    let mut place = vec![0; problem.len()];
    let mut order = Vec::with_capacity(problem.len());
    let first = (0..problem.len()).filter(|&v| waiting[v] == 0).map(|v| Reverse((Vec::new(), v)));
    let mut ready: BinaryHeap<Reverse<(Vec<usize>, usize)>> = first.collect();
    while let Some(Reverse((_, v))) = ready.pop() {
        place[v] = order.len();
        order.push(v);
        for next in problem.successors[v].iter().map(|&next| next as usize) {
            waiting[next] -= 1;
            if waiting[next] == 0 {
                let mut places: Vec<usize> = problem.ops[next].after.iter().map(|&p| place[p]).collect();
                places.sort_unstable();
                ready.push(Reverse((places, next)));
            }
        }
    }
    order
}

/// For each operator, summed over the ways that lead to it: readers beyond the first, and bytes created. The sums are
/// cut off at the number of operators and at the bytes created so far, since ways may be too many to count.
fn weights(problem: &Problem) -> Vec<(usize, u64)> {
    let mut weights: Vec<(usize, u64)> = Vec::with_capacity(problem.len());
    let mut total = 0;
    for (v, op) in problem.ops.iter().enumerate() {
        let own = op.creates.iter().map(|&b| problem.buffers[b].bytes).sum::<u64>();
        total += own;
        let start = (problem.successors[v].len().saturating_sub(1), own);
        let (users, bytes) = op.after.iter().fold(start, |(users, bytes), &p| {
            (users.saturating_add(weights[p].0), bytes.saturating_add(weights[p].1))
        });
        weights.push((users.min(problem.len()), bytes.min(total)));
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Buffer, Operator};

    /// Operators that create a buffer of this size each and read those of others.
    fn problem(ops: &[(u64, &[usize])]) -> Problem {
        let operator = |(v, (_, reads)): (usize, &(u64, &[usize]))| Operator {
            creates: vec![v],
            reads: reads.to_vec(),
            ..Operator::default()
        };
        let buffers = ops.iter().map(|&(bytes, _)| Buffer::new(bytes, false)).collect();
        Problem::new(ops.iter().enumerate().map(operator).collect(), buffers).unwrap()
    }

    #[test]
    fn reverse_depth_first_runs_the_later_of_two_producers_first() {
        let p = problem(&[(1, &[]), (1, &[0]), (1, &[0]), (1, &[1, 2])]);
        assert_eq!(Heuristic::ReverseDepthFirst.order(&p), [0, 2, 1, 3]);
        assert_eq!(Heuristic::PostOrder.order(&p), [0, 1, 2, 3]);
    }

    #[test]
    fn the_least_peak_is_raised_least() {
        // A large and a small producer: the small one first, since it does not raise the peak beyond its own size.
        let p = problem(&[(9, &[]), (2, &[]), (1, &[0]), (1, &[1]), (1, &[2, 3])]);
        assert_eq!(Heuristic::LeastPeakFirst.order(&p), [1, 3, 0, 2, 4]);
    }

    #[test]
    fn the_list_scheduler_runs_what_frees_most() {
        let p = problem(&[(4, &[]), (4, &[0]), (1, &[1]), (2, &[0]), (1, &[2, 3])]);
        // After 0 and 3 (which takes 2 rather than 4), 1 is an even exchange and 2 frees.
        assert_eq!(Heuristic::List.order(&p), [0, 3, 1, 2, 4]);
    }

    #[test]
    fn much_read_operands_come_first() {
        let p = problem(&[(1, &[]), (1, &[]), (1, &[1]), (1, &[1]), (1, &[0, 2, 3])]);
        assert_eq!(Heuristic::MostReadFirst.order(&p), [1, 2, 3, 0, 4]);
        assert_eq!(Heuristic::BreadthFirst.order(&p), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn small_operators_come_first() {
        let p = problem(&[(8, &[]), (1, &[]), (1, &[0, 1])]);
        assert_eq!(Heuristic::SmallestFirst.order(&p), [1, 0, 2]);
    }
}
