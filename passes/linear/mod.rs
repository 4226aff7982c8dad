//! The normal form of linear combinations: `c + sum_i s_i * x_i`.
//!
//! [`Finder::combination`] reads a graph backwards from one value and flattens whatever computes it (sums, scales,
//! stacks that are summed, contractions with a vector, convolutions by scaled identities) into [`Term`]s. Nothing
//! is changed here. A value that something else reads too is never looked through: it has to exist anyway, so it
//! is a term of its own.
//!
//! The rules, with `~` for "flattens to":
//! ```text
//! a + b, Sum(a, b, ...)          ~  terms of a, terms of b, ...
//! a - b, -a                      ~  the same with scale -1
//! a * s, a / s, Mean             ~  terms of a, each scaled   (s broadcasts into a, and is smaller)
//! a + c                          ~  terms of a, and c         (c broadcasts into a, and is smaller)
//! ReduceSum(stack(a_0, ...))     ~  terms of a_0, ...         (likewise ReduceMean, with 1/N)
//! contract(v, stack(a_0, ...))   ~  v_0 * a_0, ...            (MatMul, Gemm, Einsum over the stacked axis)
//! Conv1x1(concat(a_0, ...))      ~  d_0 * a_0, ...            (the kernel's blocks are diagonals d_i)
//! Reshape(a)                     ~  terms of a, while something around it restores the shape
//! ```

mod expr;
mod factor;
mod find;
mod stack;
mod written;

pub use expr::{Expr, MAX_WEIGHT, Placement, scaled_weight};
pub use factor::{Array, Computed, Factor, MAX_CHANNELS};
pub use find::{Combination, Finder, Form, Term};
pub(crate) use stack::axis;
pub use written::Written;
