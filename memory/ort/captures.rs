//! The order in which an operator gives up what its bodies capture.
//!
//! ONNX Runtime goes through the names that a body reads from outside in the order of a hash set
//! (`Graph::BuildConnections` in `core/graph/graph.cc`), and through bodies in that of a hash map. The order decides
//! which of several buffers of the same size is taken again first. So the containers of its builds for Linux are
//! reproduced here (`std::unordered_set<std::string>` of libstdc++; the hash is `_Hash_bytes` of
//! `libsupc++/hash_bytes.cc`). Elsewhere another one of equal buffers may be taken; and also where several operators
//! within one body have bodies, whose order follows from addresses in memory.

use std::collections::HashMap;

use dmopt_ir::{AttributeValue, Def, Graph, Op, ValueId};
use indexmap::IndexSet;

/// The values that the bodies of an operator capture, in that order.
pub(super) fn implicit_inputs(op: &Op) -> Vec<ValueId> {
    if op.captures.len() < 2 {
        return op.captures.clone();
    }
    let mut inputs = IndexSet::new();
    for body in bodies(op) {
        let captured = captured(body);
        inputs.extend(consumed(body).names().filter_map(|name| captured.get(name)));
    }
    // What is captured without being an operand: the output of a body.
    inputs.extend(&op.captures);
    inputs.into_iter().collect()
}

/// What a body captures: by its name there, the value outside.
fn captured(body: &Graph) -> HashMap<&str, ValueId> {
    let outer = |value: ValueId| match body.value(value).def {
        Def::Captured { outer } => Some((body.value(value).name.as_str(), outer)),
        _ => None,
    };
    body.values().filter_map(outer).collect()
}

/// The bodies of an operator in the order of its attributes, which are in a hash map by name.
fn bodies(op: &Op) -> Vec<&Graph> {
    let mut names = HashSet::default();
    op.attributes.iter().for_each(|attribute| names.insert(&attribute.name));
    let graph = |name: &str| match op.attribute(name)? {
        AttributeValue::Graph(graph) => Some(&**graph),
        _ => None,
    };
    names.names().filter_map(graph).collect()
}

/// The names that a body reads from outside, those that its own bodies read through it first.
fn consumed(body: &Graph) -> HashSet {
    let mut names = HashSet::default();
    let captured = captured(body);
    let mut ops: Vec<_> = body.ops().collect();
    ops.sort_by_key(|&id| body.op(id).rank);
    for graph in ops.iter().flat_map(|&id| bodies(body.op(id))) {
        let through = consumed(graph);
        through.names().filter(|name| captured.contains_key(name)).for_each(|name| names.insert(name));
    }
    for value in ops.iter().flat_map(|&id| body.op(id).operands()) {
        let name = body.value(value).name.as_str();
        if captured.contains_key(name) {
            names.insert(name);
        }
    }
    names
}

/// A hash set that lists its elements in the order of libstdc++: all in one list, those of a bucket one after the
/// other, each new one first in its bucket and each new bucket first in the list.
#[derive(Debug)]
struct HashSet {
    /// The element before the first of each bucket.
    buckets: Vec<Option<usize>>,
    /// The list; the first one stands before its beginning.
    elements: Vec<Element>,
}

#[derive(Debug, Default)]
struct Element {
    name: String,
    hash: u64,
    next: Option<usize>,
}

impl Default for HashSet {
    fn default() -> HashSet {
        HashSet { buckets: vec![None], elements: vec![Element::default()] }
    }
}

/// Numbers of buckets: each one the first in libstdc++'s list of primes that is at least double the one before.
const PRIMES: [usize; 16] =
    [13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061, 712697];

impl HashSet {
    fn names(&self) -> impl Iterator<Item = &str> {
        let first = self.elements[0].next;
        let list = std::iter::successors(first, |&at| self.elements[at].next);
        list.map(|at| self.elements[at].name.as_str())
    }

    fn insert(&mut self, name: &str) {
        let hash = hash(name.as_bytes());
        let bucket = |at: usize| (self.elements[at].hash % self.buckets.len() as u64) as usize;
        let own = (hash % self.buckets.len() as u64) as usize;
        let first = self.buckets[own].and_then(|before| self.elements[before].next);
        let list = std::iter::successors(first, |&at| self.elements[at].next);
        if list.take_while(|&at| bucket(at) == own).any(|at| self.elements[at].name == name) {
            return;
        }
        let count = self.elements.len();
        if let Some(&more) = PRIMES.iter().find(|&&prime| prime >= count)
            && more > self.buckets.len()
        {
            let mut list: Vec<usize> = Vec::new();
            let mut at = self.elements[0].next;
            while let Some(i) = at {
                list.push(i);
                at = self.elements[i].next;
            }
            self.buckets = vec![None; more];
            self.elements[0].next = None;
            list.into_iter().for_each(|at| self.link(at));
        }
        self.elements.push(Element { name: name.to_string(), hash, next: None });
        self.link(count);
    }

    /// Puts an element first in its bucket, or its bucket first in the list.
    fn link(&mut self, at: usize) {
        let bucket = self.bucket(at);
        let before = self.buckets[bucket].unwrap_or(0);
        self.elements[at].next = self.elements[before].next;
        self.elements[before].next = Some(at);
        if self.buckets[bucket].is_none() {
            self.buckets[bucket] = Some(0);
            if let Some(next) = self.elements[at].next {
                let bucket = self.bucket(next);
                self.buckets[bucket] = Some(at);
            }
        }
    }

    fn bucket(&self, at: usize) -> usize {
        (self.elements[at].hash % self.buckets.len() as u64) as usize
    }
}

fn hash(bytes: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |v: u64| v ^ (v >> 47);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = 0xc70f_6907 ^ (bytes.len() as u64).wrapping_mul(MUL);
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_the_order_of_a_standard_hash_set() {
        // As a program built with libstdc++ prints them.
        #[rustfmt::skip]
        let expected = [
            (5, "1 4 3 2 0"),
            (13, "6 12 9 5 3 2 4 8 11 1 7 10 0"),
            (20, "13 19 12 11 18 0 10 7 14 2 1 8 4 6 5 15 9 16 3 17"),
            (40, "26 38 31 24 17 3 4 30 22 36 8 23 19 5 16 9 21 10 28 2 14 34 35 7 37 0 12 18 27 11 33 25 39 32 6 15 13 20 1 29"),
        ];
        for (count, expected) in expected {
            let mut set = HashSet::default();
            (0..count).for_each(|i| set.insert(&format!("value_{}", i * 7 % count)));
            let names: Vec<&str> = set.names().map(|name| name.trim_start_matches("value_")).collect();
            assert_eq!(names.join(" "), expected);
        }
        assert_eq!(hash(b"hello world foo"), 12752756811198110771);
    }

    #[test]
    fn the_other_branch_comes_first() {
        let mut set = HashSet::default();
        ["then_branch", "else_branch", "then_branch"].iter().for_each(|name| set.insert(name));
        assert_eq!(set.names().collect::<Vec<_>>(), ["else_branch", "then_branch"]);
    }
}
