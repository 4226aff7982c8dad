//! The graph: SSA values over petgraph, edited only through the rewriter
