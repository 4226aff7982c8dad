//! Recurrent layers.

use super::{Call, Dim, Rule, Rules, Shape, Size, Type, dim, tensor};

pub(super) const RULES: Rules = &[
    ("GRU", Rule::Types(|call| recurrent(call, 2))),
    ("LSTM", Rule::Types(|call| recurrent(call, 3))),
    ("RNN", Rule::Types(|call| recurrent(call, 2))),
];

/// `X [seq, batch, input], R [dirs, gates*hidden, hidden] -> Y [seq, dirs, batch, hidden], last [dirs, batch,
/// hidden]`; batch first under `layout` 1.
fn recurrent(call: &Call<'_>, results: usize) -> Vec<Option<Type>> {
    let Some(dtype) = call.dtype(0) else { return Vec::new() };
    let directions = match call.op.string("direction").unwrap_or("forward") {
        "forward" | "reverse" => Dim::Known(1),
        "bidirectional" => Dim::Known(2),
        _ => return Vec::new(),
    };
    let hidden = match (call.op.int("hidden_size"), call.shape(2)) {
        (Some(n), _) => dim(Some(Size::Known(n))),
        (None, Some([_, _, hidden])) => hidden.clone(),
        _ => Dim::Unknown,
    };
    let (first, second) = match call.shape(0) {
        Some([first, second, _]) => (first.clone(), second.clone()),
        _ => (Dim::Unknown, Dim::Unknown),
    };
    let (all, last): (Shape, Shape) = match call.int("layout", 0) {
        0 => (
            vec![first, directions.clone(), second.clone(), hidden.clone()],
            vec![directions, second, hidden],
        ),
        _ => {
            (vec![first.clone(), second, directions.clone(), hidden.clone()], vec![first, directions, hidden])
        }
    };
    let typed = |shape: Shape| Some(Type::Tensor(tensor(dtype, shape)));
    [vec![typed(all)], vec![typed(last); results - 1]].concat()
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn layouts_and_directions() {
        expect(&[
            (
                "LSTM hidden_size=5 direction='bidirectional'",
                14,
                &["float[S,B,3]", "float[2,20,3]", "float[2,20,5]"],
                "float[S,2,B,5] float[2,B,5] float[2,B,5]",
            ),
            (
                "GRU layout=1",
                14,
                &["float[B,S,3]", "float[1,15,3]", "float[1,15,5]"],
                "float[B,S,1,5] float[B,1,5]",
            ),
        ]);
    }
}
