//! Typed indices: an operator and a value can never be confused, and neither is a bare number.

use petgraph::stable_graph::NodeIndex;

/// An operator of one graph. Stays valid, and is never given to another operator, until
/// [`Rewriter::finish`](crate::Rewriter::finish) compacts the graph.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(u32);

impl OpId {
    pub(crate) fn new(node: NodeIndex<u32>) -> Self {
        OpId(node.index() as u32)
    }

    pub(crate) fn node(self) -> NodeIndex<u32> {
        NodeIndex::new(self.0 as usize)
    }

    /// Position for side tables (`Vec` indexed by operator); below [`Graph::op_bound`](crate::Graph::op_bound).
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value of one graph: never reused for another value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ValueId(pub(crate) u32);

impl ValueId {
    /// Position for side tables (`Vec` indexed by value); below [`Graph::value_bound`](crate::Graph::value_bound).
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
