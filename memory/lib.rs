//! Memory models: pure functions of a graph and an order
