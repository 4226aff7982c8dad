//! Maximum flow and minimum cut, by Dinic's algorithm.
//!
//! *Why not petgraph's `dinics`*: it begins its search anew, and clears a vector over all nodes, for every augmenting
//! path; it can neither be stopped once the flow is large enough nor reused, and does not return the cut. There is one
//! cut per operator here, most of which can be stopped early.

use std::collections::VecDeque;

/// An edge that must not be cut.
pub(crate) const UNBOUNDED: u64 = u64::MAX / 2;

/// A directed graph with capacities. Edge `i ^ 1` is the reverse of edge `i`.
#[derive(Default)]
pub(crate) struct Network {
    heads: Vec<u32>,
    residual: Vec<u64>,
    nodes: usize,
    /// For each node, and possibly more.
    edges: Vec<Vec<u32>>,
    level: Vec<u32>,
    next: Vec<u32>,
    work: u64,
}

impl Network {
    /// Nodes without edges; storage of before is used again.
    pub fn clear(&mut self, nodes: usize) {
        self.work += nodes as u64;
        self.heads.clear();
        self.residual.clear();
        self.edges[..self.nodes].iter_mut().for_each(Vec::clear);
        self.nodes = nodes;
        if nodes > self.edges.len() {
            self.edges.resize_with(nodes, Vec::new);
        }
    }

    /// One more node.
    pub fn add(&mut self) -> usize {
        self.nodes += 1;
        if self.nodes > self.edges.len() {
            self.edges.push(Vec::new());
        }
        self.nodes - 1
    }

    /// An edge with a capacity.
    pub fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, capacity) in [(from, to, capacity), (to, from, 0)] {
            self.edges[from].push(self.heads.len() as u32);
            self.heads.push(to as u32);
            self.residual.push(capacity);
        }
    }

    /// The value of a maximum flow, or any value of at least `enough` once the flow is found to be so large.
    pub fn flow(&mut self, source: usize, sink: usize, enough: u64) -> u64 {
        let mut total = 0u64;
        while total < enough && self.label(source, sink) {
            self.next.clear();
            self.next.resize(self.nodes, 0);
            total = total.saturating_add(self.block(source, sink));
        }
        total
    }

    /// Visits to edges since the start.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// The nodes on the source's side of the cut that a maximum flow leaves: those that flow could still reach.
    pub fn reachable(&self) -> impl Fn(usize) -> bool + '_ {
        |node| self.level[node] != u32::MAX
    }

    /// Distances from the source; false if the sink cannot be reached.
    fn label(&mut self, source: usize, sink: usize) -> bool {
        self.level.clear();
        self.level.resize(self.nodes, u32::MAX);
        self.level[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(node) = queue.pop_front() {
            self.work += self.edges[node].len() as u64;
            for &edge in &self.edges[node] {
                let head = self.heads[edge as usize] as usize;
                if self.residual[edge as usize] > 0 && self.level[head] == u32::MAX {
                    self.level[head] = self.level[node] + 1;
                    queue.push_back(head);
                }
            }
        }
        self.level[sink] != u32::MAX
    }

    /// Flow along shortest paths until each has a full edge.
    fn block(&mut self, source: usize, sink: usize) -> u64 {
        let mut total = 0u64;
        let mut path: Vec<u32> = Vec::new();
        let mut node = source;
        loop {
            if node == sink {
                let least = path.iter().map(|&e| self.residual[e as usize]).min().unwrap_or(0);
                total = total.saturating_add(least);
                let mut back = 0;
                for (i, &edge) in path.iter().enumerate().rev() {
                    self.residual[edge as usize] -= least;
                    self.residual[edge as usize ^ 1] += least;
                    if self.residual[edge as usize] == 0 {
                        back = i;
                    }
                }
                node = self.heads[path[back] as usize ^ 1] as usize;
                path.truncate(back);
                continue;
            }
            self.work += 1;
            let edges = &self.edges[node];
            let onward = edges[self.next[node] as usize..].iter().position(|&edge| {
                let head = self.heads[edge as usize] as usize;
                self.residual[edge as usize] > 0 && self.level[head] == self.level[node] + 1
            });
            match onward {
                Some(skipped) => {
                    self.next[node] += skipped as u32;
                    let edge = edges[self.next[node] as usize];
                    path.push(edge);
                    node = self.heads[edge as usize] as usize;
                }
                None => {
                    self.next[node] = edges.len() as u32;
                    let Some(edge) = path.pop() else { return total };
                    node = self.heads[edge as usize ^ 1] as usize;
                    self.next[node] += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arbtest::arbtest;

    #[test]
    fn a_textbook_network_has_its_flow_and_cut() {
        let mut network = Network::default();
        network.clear(6);
        let edges = [
            (0, 1, 16),
            (0, 2, 13),
            (1, 3, 12),
            (2, 1, 4),
            (2, 4, 14),
            (3, 2, 9),
            (3, 5, 20),
            (4, 3, 7),
            (4, 5, 4),
        ];
        edges.iter().for_each(|&(from, to, capacity)| network.edge(from, to, capacity));
        assert_eq!(network.flow(0, 5, u64::MAX), 23);
        let side: Vec<bool> = (0..6).map(network.reachable()).collect();
        assert_eq!(side, [true, true, true, false, true, false]);
    }

    #[test]
    fn the_flow_equals_the_smallest_cut_of_all() {
        arbtest(|u| {
            let nodes = u.int_in_range(2..=7usize)?;
            let mut edges = Vec::new();
            for _ in 0..u.int_in_range(0..=16)? {
                edges.push((u.choose_index(nodes)?, u.choose_index(nodes)?, u.int_in_range(0..=9u64)?));
            }
            let mut network = Network::default();
            network.clear(nodes);
            edges.iter().for_each(|&(from, to, capacity)| network.edge(from, to, capacity));
            // Nodes 0 and 1 are source and sink; the others are on either side.
            let cut = |inside: &dyn Fn(usize) -> bool| -> u64 {
                edges.iter().filter(|(from, to, _)| inside(*from) && !inside(*to)).map(|edge| edge.2).sum()
            };
            let least = (0..1usize << (nodes - 2))
                .map(|set| cut(&|node| node == 0 || (node > 1 && set >> (node - 2) & 1 == 1)))
                .min();
            let flow = network.flow(0, 1, u64::MAX);
            assert_eq!(Some(flow), least);
            assert_eq!(flow, cut(&network.reachable()));
            Ok(())
        });
    }
}
