//! States of a search, kept as the steps that lead to them: a node holds the operators that run between its parent's
//! state and its own. Going from one node to another takes steps back to where their ways part and forward again.

use crate::problem::Problem;
use crate::state::State;

/// All states found, and one run that stands at one of them.
pub(crate) struct Tree<'p> {
    /// Where the run stands; a search may go on from here, and comes back with [`Tree::visit`].
    pub state: State<'p>,
    at: u32,
    nodes: Vec<Node>,
    ops: Vec<u32>,
}

struct Node {
    parent: u32,
    depth: u32,
    /// Where its operators begin in `ops`; they end where those of the next node begin.
    start: usize,
    /// Operators that have run, those of its ancestors included.
    steps: u32,
}

impl<'p> Tree<'p> {
    /// The root alone.
    pub fn new(problem: &'p Problem) -> Tree<'p> {
        let root = Node { parent: 0, depth: 0, start: 0, steps: 0 };
        Tree { state: State::new(problem), at: 0, nodes: vec![root], ops: Vec::new() }
    }

    /// Takes the run to a node.
    pub fn visit(&mut self, node: u32) {
        let (mut here, mut there) = (self.at, node);
        let mut way = Vec::new();
        while here != there {
            if self.nodes[here as usize].depth >= self.nodes[there as usize].depth {
                here = self.nodes[here as usize].parent;
            } else {
                way.push(there);
                there = self.nodes[there as usize].parent;
            }
        }
        self.state.undo_to(self.nodes[here as usize].steps as usize);
        for node in way.into_iter().rev() {
            let end = self.nodes.get(node as usize + 1).map_or(self.ops.len(), |next| next.start);
            for i in self.nodes[node as usize].start..end {
                self.state.run(self.ops[i] as usize);
            }
        }
        self.at = node;
    }

    /// Makes a node of the state at which the run stands now, which must come after the node visited last.
    pub fn add(&mut self) -> u32 {
        let parent = &self.nodes[self.at as usize];
        let node = Node {
            parent: self.at,
            depth: parent.depth + 1,
            start: self.ops.len(),
            steps: self.state.log.len() as u32,
        };
        self.ops.extend_from_slice(&self.state.log[parent.steps as usize..]);
        self.at = self.nodes.len() as u32;
        self.nodes.push(node);
        self.at
    }

    /// The order in which the run got here.
    pub fn order(&self) -> Vec<usize> {
        self.state.log.iter().map(|&v| v as usize).collect()
    }
}
