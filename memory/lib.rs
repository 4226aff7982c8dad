//! Memory models: pure functions of a graph and an order of its operators.
//!
//! [`liveness`] is the ideal one: what has to be in memory if every buffer is freed after its last reader and
//! nothing else is ever allocated. A runtime needs at least about that much; how much more is its own affair, which
//! is why a measured peak is reported apart from a predicted one. [`ort`] is the plan of one runtime, reproduced.
//! [`Kernels`] says what single operators do with memory, for both, and [`steer`] makes that runtime follow an order.
//!
//! Finding an order is a problem of its own, and needs no graph: [`Scheduling`] makes a [`Problem`] of one, [`heuristics`]
//! are orders that cost nothing, [`bound`] is what no order can avoid, [`search()`] looks for the best, and [`polish()`]
//! goes on from there with a runtime's own plan.

#![forbid(unsafe_code)]

pub mod bound;
mod flow;
pub mod heuristics;
mod kernels;
#[cfg(test)]
mod laws;
pub mod liveness;
pub mod ort;
mod polish;
pub mod problem;
mod scheduling;
pub mod search;
mod state;
pub mod steer;

pub use kernels::{Kernels, same_size};
pub use liveness::{Peak, Unknown, file_order};
pub use polish::{Weight, polish};
pub use problem::Problem;
pub use scheduling::Scheduling;
pub use search::{Found, Limits, search};
