//! Valleys: states that may be gone through without losing the best order.
//!
//! Let `E` have been reached from `D` within a budget, with `f(E) <= f(P)` for every down-set `P` between them. Then
//! whatever order completes `D` within the budget, one that goes through `E` does too: it runs `E` as it was reached and
//! then the rest in the old order. For a down-set `G` of the old order, `P = G ∩ E` lies between `D` and `E`, and
//! submodularity gives `f(G ∪ E) <= f(G) + f(E) - f(P) <= f(G)`; results need no more memory the more has run. So if
//! there is no way on from `E`, there is none from `D`.
//!
//! The least `f` between two states is a minimum cut (see [`bound`](crate::bound)).

use crate::flow::{Network, UNBOUNDED};
use crate::state::State;

const SOURCE: usize = 0;
const SINK: usize = 1;

/// Minimum cuts between states of a run.
pub(crate) struct Valleys {
    network: Network,
    /// The node of each operator that has run since the earlier state; [`SOURCE`] for all others.
    node: Vec<usize>,
}

impl Valleys {
    /// For problems of so many operators.
    pub fn new(operators: usize) -> Valleys {
        Valleys { network: Network::default(), node: vec![SOURCE; operators] }
    }

    /// Visits to edges since the start.
    pub fn work(&self) -> u64 {
        self.network.work()
    }

    /// True if the state that the run is in has least in memory of all down-sets between it and the state that the run
    /// was in after `steps` operators.
    pub fn is_least(&mut self, state: &State<'_>, steps: usize) -> bool {
        let problem = state.problem;
        let since = &state.log[steps..];
        since.iter().enumerate().for_each(|(i, &v)| self.node[v as usize] = 2 + i);
        self.network.clear(2 + since.len());
        // What lives at the end and was created since.
        let mut end = 0;
        for (i, &v) in since.iter().enumerate() {
            let (v, op) = (v as usize, &problem.ops[v as usize]);
            for &b in &op.creates {
                let bytes = problem.buffers[b].bytes;
                if state.is_live(b) {
                    end += bytes;
                    self.network.edge(2 + i, SINK, bytes);
                } else {
                    self.hyperedge(2 + i, bytes, &problem.buffers[b].readers);
                }
            }
            for &b in &op.reads {
                let buffer = &problem.buffers[b];
                if self.node[buffer.creator] != SOURCE || state.is_live(b) {
                    continue;
                }
                // It was there before and died since: of its readers since then the first notes it.
                let first = buffer.readers.iter().find(|&&reader| self.node[reader as usize] != SOURCE);
                if first == Some(&(v as u32)) {
                    self.hyperedge(SOURCE, buffer.bytes, &buffer.readers);
                }
            }
            for &before in op.after.iter().filter(|&&before| self.node[before] != SOURCE) {
                self.network.edge(2 + i, self.node[before], UNBOUNDED);
            }
        }
        let least = self.network.flow(SOURCE, SINK, end);
        since.iter().for_each(|&v| self.node[v as usize] = SOURCE);
        least >= end
    }

    /// A buffer: alive if its creator has run and one of its readers has not.
    fn hyperedge(&mut self, creator: usize, bytes: u64, readers: &[u32]) {
        let node = self.network.add();
        self.network.edge(creator, node, bytes);
        for reader in readers.iter().map(|&reader| self.node[reader as usize]).filter(|&node| node != SOURCE)
        {
            self.network.edge(node, reader, UNBOUNDED);
        }
    }
}
