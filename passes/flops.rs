//! Arithmetic operations of a graph.
//!
//! An addition, a multiplication or a function of one element is one operation:
//! ```text
//! Conv, MatMul, Gemm, ...   n products and n - 1 additions per element of the result, one more for a bias or an addend
//! elementwise operators     one per element of the result; Sum, Mean, Max, Min one for each operand after the first
//! reductions, pooling       one per element that goes in, or per element of each window
//! ```
//! What only moves data costs nothing. So a sum that is split into parts and put together again takes exactly as much
//! as before.

use dmopt_ir::{Graph, Op, OpId, ValueId};

/// Operations of a run, the bodies of operators not counted; an operator with a size that is not known counts nothing.
pub(crate) fn flops(graph: &Graph) -> u128 {
    graph.ops().filter_map(|id| flops_of(graph, id)).sum()
}

/// Operations of one operator; `None` where a size is not known.
pub(crate) fn flops_of(graph: &Graph, id: OpId) -> Option<u128> {
    // Files may say any size; what nothing could compute is as good as the most that fits.
    counted(graph, id).map(|flops| flops.min(u128::from(u64::MAX)))
}

fn counted(graph: &Graph, id: OpId) -> Option<u128> {
    let op = graph.op(id);
    let dims = |value: Option<ValueId>| graph.tensor_type(value?)?.dims();
    let count = |value: Option<ValueId>| graph.tensor_type(value?)?.elements().map(u128::from);
    let (x, y) = (op.input(0), op.output(0));
    let addends = |slots: &[usize]| slots.iter().filter(|&&slot| op.input(slot).is_some()).count() as u128;
    let sums = |products: u128, added: u128| {
        Some(count(y)?.saturating_mul((2 * products).saturating_sub(1) + added))
    };
    match op.op_type.as_str() {
        "Conv" | "FusedConv" => {
            sums(count(op.input(1))? / u128::from(*dims(op.input(1))?.first()?).max(1), addends(&[2, 3]))
        }
        "ConvTranspose" => {
            let per_element = count(op.input(1))? / u128::from(*dims(op.input(1))?.first()?).max(1);
            // Of the products that meet in an element, one is not added to another.
            let products = (2 * count(x)?).saturating_mul(per_element);
            Some(products.saturating_sub(count(y)?).saturating_add(count(y)? * addends(&[2])))
        }
        "MatMul" | "Gemm" => {
            let transposed = op.is("Gemm") && op.int("transA") == Some(1);
            let dims = dims(x)?;
            let axis = dims.len().checked_sub(if transposed { 2 } else { 1 })?;
            sums(u128::from(dims[axis]), addends(&[2]))
        }
        "BatchNormalization" => Some(2 * count(y)?),
        "Sum" | "Mean" | "Max" | "Min" => Some(count(y)? * (op.inputs.len() as u128).saturating_sub(1)),
        name if name.starts_with("Reduce") || name.starts_with("Global") => count(x),
        "MaxPool" | "AveragePool" => Some(count(y)?.saturating_mul(window(op))),
        name if MOVES.contains(&name) => Some(0),
        _ => count(y),
    }
}

fn window(op: &Op) -> u128 {
    let sizes = op.ints("kernel_shape").unwrap_or_default();
    sizes.iter().map(|&n| u128::try_from(n).unwrap_or(1)).fold(1, u128::saturating_mul)
}

/// Operators that compute nothing.
const MOVES: [&str; 20] = [
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

#[cfg(test)]
mod tests {
    use super::flops;
    use dmopt_ir::infer::infer_graph;
    use dmopt_ir::text::{default_opsets, parse_graph};

    fn of(text: &str) -> u128 {
        let mut graph = parse_graph(text, default_opsets()).unwrap();
        infer_graph(&mut graph);
        flops(&graph)
    }

    #[test]
    fn a_convolution_that_is_split_takes_as_much_as_before() {
        let interface = "f (float[1,2,4,4] p, float[1,2,4,4] q) => (float[1,3,4,4] y)";
        let whole = of(&format!(
            "{interface} <float[3,4,3,3] w, float[3] b> {{
                x = Concat<axis = 1>(p, q) y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }}"
        ));
        let parts = of(&format!(
            "{interface} <float[3,2,3,3] v, float[3,2,3,3] w, float[3] b> {{
                s = Conv<pads = [1, 1, 1, 1]>(p, v, b) t = Conv<pads = [1, 1, 1, 1]>(q, w) y = Add(s, t) }}"
        ));
        assert_eq!((whole, parts), (48 * 2 * 36, 48 * 2 * 36));
    }

    #[test]
    fn a_step_of_an_accumulation_is_a_product_and_a_sum() {
        let interface = "f (float[1,2,4,4] p, float[1,2,4,4] q) => (float[1,2,4,4] y)";
        assert_eq!(of(&format!("{interface} <float a> {{ m = Mul(p, a) y = Add(m, q) }}")), 64);
    }

    #[test]
    fn products_of_matrices_count_the_inner_size() {
        assert_eq!(of("f (float[2,5] a, float[5,3] b) => (float[2,3] y) { y = MatMul(a, b) }"), 6 * 9);
        assert_eq!(
            of("f (float[5,2] a, float[5,3] b) => (float[2,3] y) { y = Gemm<transA = 1>(a, b) }"),
            6 * 9
        );
    }

    #[test]
    fn what_moves_data_costs_nothing() {
        assert_eq!(of("f (float[2,5] a) => (float[5,2] y) { y = Transpose(a) }"), 0);
    }
}
