//! A run in the middle: which operators have run, what is in memory, what each ready operator would need. Forward and
//! backward steps cost as much as the operator has operands and successors; looking at a ready operator costs nothing.

use crate::problem::Problem;

/// No operator: the reader that a kept buffer waits for.
const NONE: u32 = u32::MAX;

/// So many operands and readers more count as another step.
const EDGES: usize = 16;

/// A down-set with what follows from it.
#[derive(Clone)]
pub(crate) struct State<'p> {
    pub problem: &'p Problem,
    /// Operators that could run next, in no particular order.
    pub ready: Vec<u32>,
    /// Operators that have run, in order.
    pub log: Vec<u32>,
    /// Bytes in memory between operators.
    pub live: u64,
    /// Steps taken so far, forward and backward, by their [weight](State::work): the work that a search has done here.
    pub moves: u64,
    /// Of the down-set; equal sets have equal hashes, and unequal ones unequal hashes but for 1 in 2^128.
    pub hash: u128,
    /// Where an operator stands in `ready`.
    place: Vec<u32>,
    /// Operators that an operator waits for.
    waiting: Vec<u32>,
    /// Readers of a buffer that have not run.
    unread: Vec<u32>,
    /// The readers that have not run, combined by exclusive or: the last one, once there is only one.
    last: Vec<u32>,
    /// Bytes that an operator would free.
    frees: Vec<u64>,
    /// Bytes that an operator would not need because results take over operands.
    saves: Vec<u64>,
    /// Bytes of results and scratch.
    alloc: Vec<u64>,
    /// Bytes of results that stay after the operator.
    stays: Vec<u64>,
    keys: Vec<u128>,
}

impl<'p> State<'p> {
    /// Before the first operator.
    pub fn new(problem: &'p Problem) -> State<'p> {
        let n = problem.len();
        let sum = |v: usize, all: bool| {
            let counts = |&&b: &&usize| {
                let buffer = &problem.buffers[b];
                all || buffer.kept || !buffer.readers.is_empty()
            };
            problem.ops[v].creates.iter().filter(counts).map(|&b| problem.buffers[b].bytes).sum::<u64>()
        };
        let mut state = State {
            problem,
            ready: Vec::new(),
            log: Vec::with_capacity(n),
            live: 0,
            moves: 0,
            hash: 0,
            place: vec![NONE; n],
            waiting: problem.ops.iter().map(|op| op.after.len() as u32).collect(),
            unread: problem.buffers.iter().map(|b| b.readers.len() as u32 + u32::from(b.kept)).collect(),
            last: (problem.buffers.iter())
                .map(|b| b.readers.iter().fold(if b.kept { NONE } else { 0 }, |last, r| last ^ r))
                .collect(),
            frees: vec![0; n],
            saves: vec![0; n],
            alloc: (0..n).map(|v| sum(v, true) + problem.ops[v].scratch).collect(),
            stays: (0..n).map(|v| sum(v, false)).collect(),
            keys: (0..n as u64).map(key).collect(),
        };
        for b in 0..problem.buffers.len() {
            if state.unread[b] == 1 {
                state.dies_at_last(b, true);
            }
        }
        for v in 0..n {
            if state.waiting[v] == 0 {
                state.insert(v);
            }
        }
        state
    }

    /// Bytes in memory while this operator runs, if it runs next.
    pub fn needs(&self, v: usize) -> u64 {
        self.live + self.alloc[v] - self.saves[v]
    }

    /// Bytes in memory after this operator, if it runs next.
    pub fn after(&self, v: usize) -> u64 {
        self.live + self.stays[v] - self.frees[v]
    }

    /// The bytes that running an operator takes beyond what is in memory, and the bytes in memory that it leaves more.
    pub fn costs(&self, v: usize) -> (u64, i64) {
        (self.alloc[v] - self.saves[v], self.stays[v] as i64 - self.frees[v] as i64)
    }

    /// The only operator that has still to read a buffer, if there is one alone.
    pub fn last_reader(&self, b: usize) -> Option<usize> {
        (self.unread[b] == 1 && self.last[b] != NONE).then_some(self.last[b] as usize)
    }

    /// True if the operator could run next.
    pub fn is_ready(&self, v: usize) -> bool {
        self.place[v] != NONE
    }

    /// True if the operator has run.
    pub fn has_run(&self, v: usize) -> bool {
        self.place[v] == NONE && self.waiting[v] == 0
    }

    /// True if a buffer whose creator has run is still needed.
    pub fn is_live(&self, b: usize) -> bool {
        self.unread[b] > 0
    }

    /// True when every operator has run.
    pub fn is_complete(&self) -> bool {
        self.log.len() == self.problem.len()
    }

    /// Runs a ready operator.
    pub fn run(&mut self, v: usize) {
        debug_assert!(self.is_ready(v));
        self.moves += self.work(v);
        self.live = self.after(v);
        self.hash ^= self.keys[v];
        self.remove(v);
        let problem = self.problem;
        for &b in &problem.ops[v].reads {
            self.unread[b] -= 1;
            self.last[b] ^= v as u32;
            if self.unread[b] == 1 {
                self.dies_at_last(b, true);
            }
        }
        for &next in &problem.successors[v] {
            self.waiting[next as usize] -= 1;
            if self.waiting[next as usize] == 0 {
                self.insert(next as usize);
            }
        }
        self.log.push(v as u32);
    }

    /// Takes the last step back.
    pub fn undo(&mut self) {
        let Some(v) = self.log.pop().map(|v| v as usize) else { return };
        self.moves += self.work(v);
        let problem = self.problem;
        for &next in problem.successors[v].iter().rev() {
            if self.waiting[next as usize] == 0 {
                self.remove(next as usize);
            }
            self.waiting[next as usize] += 1;
        }
        for &b in problem.ops[v].reads.iter().rev() {
            if self.unread[b] == 1 {
                self.dies_at_last(b, false);
            }
            self.unread[b] += 1;
            self.last[b] ^= v as u32;
        }
        self.insert(v);
        self.hash ^= self.keys[v];
        self.live = self.live + self.frees[v] - self.stays[v];
    }

    /// Steps that running an operator counts as, or taking it back: one, unless it reads much or much reads it.
    fn work(&self, v: usize) -> u64 {
        1 + ((self.problem.ops[v].reads.len() + self.problem.successors[v].len()) / EDGES) as u64
    }

    /// Takes steps back until so many are left.
    pub fn undo_to(&mut self, steps: usize) {
        while self.log.len() > steps {
            self.undo();
        }
    }

    /// Only one reader of a buffer is left, or that is no longer so.
    fn dies_at_last(&mut self, b: usize, dies: bool) {
        let reader = self.last[b];
        if reader == NONE {
            return;
        }
        let (v, bytes) = (reader as usize, self.problem.buffers[b].bytes);
        let op = &self.problem.ops[v];
        if dies {
            self.frees[v] += bytes;
        } else {
            self.frees[v] -= bytes;
        }
        if !op.in_place.is_empty() {
            self.saves[v] = saved(self.problem, v, |other| {
                if other == b { dies } else { self.unread[other] == 1 && self.last[other] == reader }
            });
        }
    }

    fn insert(&mut self, v: usize) {
        self.place[v] = self.ready.len() as u32;
        self.ready.push(v as u32);
    }

    fn remove(&mut self, v: usize) {
        let at = self.place[v] as usize;
        self.ready.swap_remove(at);
        if let Some(&moved) = self.ready.get(at) {
            self.place[moved as usize] = at as u32;
        }
        self.place[v] = NONE;
    }
}

/// The results of `v` that take over an operand, each with the operand, given which operands die at `v`.
pub(crate) fn taken_over(problem: &Problem, v: usize, dies: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
    let mut taken: Vec<(usize, usize)> = Vec::new();
    for pair in &problem.ops[v].in_place {
        let free = |b: usize| dies(b) && taken.iter().all(|&(_, operand)| operand != b);
        let operand = pair.over.iter().copied().find(|&b| free(b));
        taken.extend(operand.map(|b| (pair.result, b)));
    }
    taken
}

/// The bytes of the results of `v` that take over an operand.
pub(crate) fn saved(problem: &Problem, v: usize, dies: impl Fn(usize) -> bool) -> u64 {
    // Of one result alone nothing needs to be written down, and hardly an operator has two.
    if let [pair] = &problem.ops[v].in_place[..] {
        let is_taken_over = pair.over.iter().any(|&b| dies(b));
        return if is_taken_over { problem.buffers[pair.result].bytes } else { 0 };
    }
    taken_over(problem, v, dies).iter().map(|&(result, _)| problem.buffers[result].bytes).sum()
}

/// SplitMix64 (Steele, Lea and Flood, 2014), twice: the same on every machine.
fn key(v: u64) -> u128 {
    let mix = |n: u64| {
        let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (u128::from(mix(2 * v + 1)) << 64) | u128::from(mix(2 * v + 2))
}
