//! The scheduling problem as plain data: which operators there are, what each has to wait for, which buffers it
//! creates, reads and may take over. Bounds and searches see this and no graph.
//!
//! The model, for operators that run one after the other:
//! - A buffer is in memory from the operator that creates it through its last reader. One that nothing reads is there
//!   while its operator runs; one that is *kept* (an output of the graph) stays to the end.
//! - While an operator runs, its operands, its results and its scratch memory are in memory together. A result that
//!   takes over the buffer of an operand of equal size needs nothing of its own; that happens if this operator is the
//!   last that reads the operand.
//! - Values that share memory whatever the order (views) are one buffer here.
//!
//! With `f(D)` for the bytes in memory once exactly the operators of a down-set `D` have run, running `v` next needs
//! `f(D) + alloc(v, D) + scratch(v)`, where `alloc` are the results that take over nothing. The peak of an order is
//! the largest of these. Two facts carry every proof in this crate: `f` is submodular (it is the cut function of a
//! directed hypergraph: a buffer counts if its creator is inside and a reader is outside), and `alloc(v, D)` never
//! grows with `D` (the more has run, the more operands die).

use crate::state::saved;

/// Operators and buffers; operators are numbered in file order.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    pub(crate) ops: Vec<Operator>,
    pub(crate) buffers: Vec<Buffer>,
    /// Operators that wait for each operator, ascending, each once.
    pub(crate) successors: Vec<Vec<u32>>,
}

/// One operator.
#[derive(Clone, Debug, Default)]
pub struct Operator {
    /// Operators that must run before, by number. Creators of what it reads are added by [`Problem::new`].
    pub after: Vec<usize>,
    /// Buffers that it creates.
    pub creates: Vec<usize>,
    /// Buffers that it reads.
    pub reads: Vec<usize>,
    /// Results that may take over operands.
    pub in_place: Vec<InPlace>,
    /// Bytes that exist only while it runs.
    pub scratch: u64,
}

/// A result that may take over the buffer of an operand.
#[derive(Clone, Debug)]
pub struct InPlace {
    /// The result, one of what the operator creates.
    pub result: usize,
    /// Operands of equal size in order of preference; the first that dies here and is not taken yet is taken over.
    pub over: Vec<usize>,
}

/// One buffer.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    /// Size in bytes.
    pub bytes: u64,
    /// True if it stays to the end.
    pub kept: bool,
    pub(crate) creator: usize,
    pub(crate) readers: Vec<u32>,
}

impl Buffer {
    /// A buffer of this size.
    pub fn new(bytes: u64, kept: bool) -> Buffer {
        Buffer { bytes, kept, ..Buffer::default() }
    }

    /// The operator that creates it.
    pub fn creator(&self) -> usize {
        self.creator
    }

    /// The operators that read it, each once, ascending.
    pub fn readers(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.readers.iter().map(|&op| op as usize)
    }
}

/// Why data are no problem.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Operators are not in an order in which they could run.
    #[error("operator {0} comes before something that it waits for")]
    Order(usize),
    /// A buffer has no creator, or two.
    #[error("buffer {0} is not created by exactly one operator")]
    Creator(usize),
    /// A buffer is named that there is not, or an in-place pair does not fit.
    #[error("operator {0} names a buffer that does not fit")]
    Buffer(usize),
    /// The sizes add up to more than any machine has.
    #[error("the sizes of all values add up to more than 2^60 bytes")]
    TooLarge,
}

/// Sums below this never overflow, however they are formed.
const MOST_BYTES: u64 = 1 << 60;

impl Problem {
    /// Completes the data.
    ///
    /// # Errors
    /// See [`Malformed`].
    pub fn new(mut ops: Vec<Operator>, mut buffers: Vec<Buffer>) -> Result<Problem, Malformed> {
        let mut created = vec![false; buffers.len()];
        for (v, op) in ops.iter().enumerate() {
            for &b in &op.creates {
                let buffer = buffers.get_mut(b).ok_or(Malformed::Buffer(v))?;
                if std::mem::replace(&mut created[b], true) {
                    return Err(Malformed::Creator(b));
                }
                buffer.creator = v;
            }
        }
        if let Some(b) = created.iter().position(|&created| !created) {
            return Err(Malformed::Creator(b));
        }
        let mut total = 0u64;
        let mut successors = vec![Vec::new(); ops.len()];
        for (v, op) in ops.iter_mut().enumerate() {
            sort(&mut op.reads);
            for &b in &op.reads {
                let buffer = buffers.get_mut(b).ok_or(Malformed::Buffer(v))?;
                buffer.readers.push(v as u32);
                op.after.push(buffer.creator);
            }
            sort(&mut op.after);
            if op.after.last().is_some_and(|&last| last >= v) {
                return Err(Malformed::Order(v));
            }
            for pair in &mut op.in_place {
                let fits =
                    |&b: &usize| op.reads.contains(&b) && buffers[b].bytes == buffers[pair.result].bytes;
                if !op.creates.contains(&pair.result) || !pair.over.iter().all(fits) {
                    return Err(Malformed::Buffer(v));
                }
                pair.over.retain(|&b| !buffers[b].kept);
            }
            op.in_place.retain(|pair| !pair.over.is_empty());
            op.after.iter().for_each(|&before| successors[before].push(v as u32));
            total = total.saturating_add(op.scratch);
        }
        let total = buffers.iter().fold(total, |sum, buffer| sum.saturating_add(buffer.bytes));
        if total > MOST_BYTES {
            return Err(Malformed::TooLarge);
        }
        Ok(Problem { ops, buffers, successors })
    }

    /// The operators.
    pub fn ops(&self) -> &[Operator] {
        &self.ops
    }

    /// The buffers.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Number of operators.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// True without operators.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// True if every operator is in `order` once, after all that it waits for.
    pub fn is_order(&self, order: &[usize]) -> bool {
        let mut done = vec![false; self.len()];
        let mut runs = |&v: &usize| {
            let fits = v < done.len() && !done[v] && self.ops[v].after.iter().all(|&before| done[before]);
            if fits {
                done[v] = true;
            }
            fits
        };
        order.len() == self.len() && order.iter().all(&mut runs)
    }

    /// Bytes in memory while each operator runs, in the order given.
    ///
    /// # Panics
    /// It is no [order](Problem::is_order) of this problem.
    pub fn profile(&self, order: &[usize]) -> Vec<u64> {
        self.needs(order).collect()
    }

    /// The largest of the [profile](Problem::profile); 0 without operators.
    ///
    /// # Panics
    /// It is no [order](Problem::is_order) of this problem.
    pub fn peak(&self, order: &[usize]) -> u64 {
        self.needs(order).max().unwrap_or(0)
    }

    /// What a [`State`](crate::state::State) says step by step, without what choosing among operators takes.
    fn needs(&self, order: &[usize]) -> impl Iterator<Item = u64> {
        assert!(self.is_order(order), "not an order of this problem");
        // Readers that have not run, and the end, which reads what is kept.
        let left = |buffer: &Buffer| buffer.readers.len() + usize::from(buffer.kept);
        let mut left: Vec<usize> = self.buffers.iter().map(left).collect();
        let mut live = 0;
        order.iter().map(move |&v| {
            let op = &self.ops[v];
            let bytes = |b: &usize| self.buffers[*b].bytes;
            let results: u64 = op.creates.iter().map(bytes).sum();
            let needs = live + results + op.scratch - saved(self, v, |b| left[b] == 1);
            live += op.creates.iter().filter(|&&b| left[b] > 0).map(bytes).sum::<u64>();
            for b in &op.reads {
                live -= if left[*b] == 1 { bytes(b) } else { 0 };
                left[*b] -= 1;
            }
            needs
        })
    }
}

fn sort(list: &mut Vec<usize>) {
    list.sort_unstable();
    list.dedup();
}
