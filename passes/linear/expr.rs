//! Small expressions over values of a graph: what a rewrite wants to stand there. They can be compared with what
//! stands there already, and written into a patch.

use dmopt_ir::{Def, Graph, NewOp, OpId, Operand, Patch, Tensor, ValueId};

/// An expression over values of a graph.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// A value of the graph.
    Value(ValueId),
    /// A constant.
    Constant(Tensor),
    /// An initializer with each row (slice along the first axis) multiplied; read only when it is written.
    Rows {
        /// The initializer.
        of: ValueId,
        /// One factor for each row.
        by: Vec<f64>,
    },
    /// A standard operator with one result.
    Op {
        /// Its type.
        op_type: &'static str,
        /// Its attribute `axis`, if it has one.
        axis: Option<i64>,
        /// Its operands.
        args: Vec<Expr>,
    },
    /// An operator of the graph with other operands.
    Like {
        /// The operator.
        op: OpId,
        /// Its operands.
        args: Vec<Option<Expr>>,
    },
}

/// Where the operators that already compute an expression stand.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// They, operands before readers.
    pub ops: Vec<OpId>,
}

impl Expr {
    /// An operator without attributes.
    pub fn op(op_type: &'static str, args: impl IntoIterator<Item = Expr>) -> Expr {
        Expr::Op { op_type, axis: None, args: args.into_iter().collect() }
    }

    /// The operators of a graph that compute exactly this expression as `value`, if they do; operands of Add and
    /// Mul may be swapped. With `loose`, constants of one element may differ in shape and Identity is looked
    /// through: the numbers are the same then, the operators need not be.
    pub fn find(&self, graph: &Graph, value: ValueId, loose: bool) -> Option<Placement> {
        let mut placement = Placement::default();
        self.matches(graph, value, loose, &mut placement.ops).then_some(placement)
    }

    fn matches(&self, graph: &Graph, value: ValueId, loose: bool, ops: &mut Vec<OpId>) -> bool {
        let value = if loose { through_identity(graph, value) } else { value };
        match self {
            Expr::Value(v) => *v == value || (loose && through_identity(graph, *v) == value),
            Expr::Constant(t) => graph.constant(value).is_some_and(|have| {
                let same_shape = have.dims == t.dims || (loose && have.elements() == Some(1));
                same_shape && have.dtype == t.dtype && have.bytes().ok() == t.bytes().ok()
            }),
            Expr::Op { op_type, axis, args } => {
                let Some(id) = graph.producer(value) else { return false };
                let op = graph.op(id);
                if !op.is(op_type) || op.int("axis") != *axis || op.inputs.len() != args.len() {
                    return false;
                }
                let swaps: &[bool] =
                    if matches!(*op_type, "Add" | "Mul") { &[false, true] } else { &[false] };
                for &swapped in swaps {
                    let before = ops.len();
                    let operand = |i: usize| op.input(if swapped { args.len() - 1 - i } else { i });
                    // Of a chain, the last operand is the short one: it tells soonest that this is not what stands here.
                    let all = args
                        .iter()
                        .enumerate()
                        .rev()
                        .all(|(i, arg)| operand(i).is_some_and(|v| arg.matches(graph, v, loose, ops)));
                    if all {
                        ops.push(id);
                        return true;
                    }
                    ops.truncate(before);
                }
                false
            }
            Expr::Rows { .. } | Expr::Like { .. } => false,
        }
    }

    /// The values of the graph that the expression reads.
    pub fn values(&self) -> Vec<ValueId> {
        match self {
            Expr::Value(v) => vec![*v],
            Expr::Constant(_) | Expr::Rows { .. } => Vec::new(),
            Expr::Op { args, .. } => args.iter().flat_map(Expr::values).collect(),
            Expr::Like { args, .. } => args.iter().flatten().flat_map(Expr::values).collect(),
        }
    }

    /// Operators of this type in the expression.
    pub fn count(&self, op_type: &str) -> usize {
        match self {
            Expr::Value(_) | Expr::Constant(_) | Expr::Rows { .. } => 0,
            Expr::Op { op_type: own, args, .. } => {
                usize::from(*own == op_type) + args.iter().map(|a| a.count(op_type)).sum::<usize>()
            }
            Expr::Like { args, .. } => args.iter().flatten().map(|a| a.count(op_type)).sum(),
        }
    }

    /// Writes the expression into a patch: new operators right after their operands, changed ones where they were.
    /// New values are named after `name`. `None` when a scaled initializer cannot be read or does not fit its type.
    pub fn emit(&self, graph: &Graph, patch: &mut Patch, name: &str) -> Option<Operand> {
        Some(match self {
            Expr::Value(v) => Operand::Value(*v),
            Expr::Constant(t) => {
                let what = if t.elements() == Some(1) { "scale" } else { "weight" };
                patch.constant(&format!("{name}_{what}"), t.clone())
            }
            Expr::Rows { of, by } => {
                let tensor = graph.constant(*of)?;
                let row = tensor.elements()? as usize / by.len().max(1);
                let scaled = scaled_weight(&tensor, row, |row| by[row])?;
                patch.constant(&format!("{}_scaled", graph.value(*of).name), scaled)
            }
            Expr::Op { op_type, axis, args } => {
                let args: Option<Vec<Operand>> = args.iter().map(|a| a.emit(graph, patch, name)).collect();
                let what = op_type.to_lowercase();
                let mut op = NewOp::new(op_type, args?).result_named(&format!("{name}_{what}"));
                if let Some(axis) = axis {
                    op = op.attribute("axis", *axis);
                }
                patch.add_op(op)
            }
            Expr::Like { op, args } => {
                let mut operands = Vec::with_capacity(args.len());
                for arg in args {
                    operands.push(match arg {
                        Some(arg) => Some(arg.emit(graph, patch, name)?),
                        None => None,
                    });
                }
                patch.add_op(NewOp::like(graph, *op, operands))
            }
        })
    }
}

impl Placement {
    /// The operators that do not stand as early as they could: something other than members stands between them
    /// and the last of their operands. `position` is the place of each operator in the file, by index, and `others` has for
    /// each place how many that are no members stand before it. Operators that wait for none stand well anywhere: an
    /// input of the graph is there from the start.
    pub fn late(&self, graph: &Graph, position: &[usize], others: &[usize]) -> Vec<OpId> {
        let late = |&op: &OpId| {
            let last = graph.predecessors(op).map(|p| position[p.index()]).max();
            last.is_some_and(|last| others[position[op.index()]] > others[last + 1])
        };
        self.ops.iter().copied().filter(late).collect()
    }
}

/// Weights of more bytes than this are not rewritten, nor copied in parts.
pub const MAX_WEIGHT: u64 = 256 << 20;

/// A weight with each element multiplied, every run of so many elements by one factor. `None` when it cannot be read, or
/// an element would not fit (see [`Tensor::scaled`]).
pub fn scaled_weight(weight: &Tensor, run: usize, by: impl Fn(usize) -> f64) -> Option<Tensor> {
    weight.scaled(run, by).ok().flatten()
}

/// The value behind any number of Identity operators.
fn through_identity(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Def::Op { op, .. } = graph.value(value).def
        && graph.op(op).is("Identity")
        && let Some(input) = graph.op(op).input(0)
    {
        value = input;
    }
    value
}
