//! Whether a model can be run on this machine at all. A file of a few bytes may ask for a tensor of a terabyte, and a
//! runtime that believes it takes the whole process down.

use dmopt_ir::{Graph, Sizes};
use dmopt_runtime::available;

/// Why a run of this graph does not fit the memory that is left; `None` where it may, or where nobody knows. Types must
/// have been inferred.
pub(crate) fn lacking(graph: &Graph, sizes: &Sizes) -> Option<String> {
    let (needed, available) = (least(&graph.sized(sizes)), available()?);
    (needed > available)
        .then(|| format!("one operator alone takes {needed} bytes, and this machine has {available} left"))
}

/// Bytes that no run can do without: the operands and results of the operator that has most, as far as their sizes are
/// known. Of bodies, which may never run, nothing is counted.
fn least(graph: &Graph) -> u64 {
    let of_op = |op| {
        let op = graph.op(op);
        let mut values: Vec<_> = op.operands().chain(op.results()).collect();
        values.sort_unstable();
        values.dedup();
        let bytes = |v| {
            let ty = graph.tensor_type(v)?;
            // What is known and yet has no number of bytes has more than there are numbers for.
            let too_many = || (ty.dims().is_some() && ty.dtype.bits().is_some()).then_some(u64::MAX);
            ty.bytes().or_else(too_many)
        };
        values.into_iter().filter_map(bytes).fold(0u64, u64::saturating_add)
    };
    graph.ops().map(of_op).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use dmopt_ir::text::parse_model;

    use super::*;

    #[test]
    fn what_an_operator_reads_and_writes_counts_once() {
        let graph = parse_model("g (float[10] x) => (float[10] y) { y = Add(x, x) }").unwrap().graph;
        assert_eq!(least(&graph), 80);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_room_for_little_and_not_for_everything() {
        let of = |elements: u64| {
            let text = format!("g (float[{elements}] x) => (float[{elements}] y) {{ y = Relu(x) }}");
            lacking(&parse_model(&text).unwrap().graph, &Sizes::default())
        };
        assert_eq!(of(10), None);
        assert!(of(1 << 50).unwrap().contains("one operator alone takes 9007199254740992 bytes"));
        assert!(of(1 << 60).unwrap().contains("one operator alone takes 18446744073709551615 bytes"));
    }
}
