//! Keep one of several equal initializers: same element type, same shape, same bytes.
//!
//! Bits decide, so `0.0` and `-0.0` differ and NaN equals itself. Data in other files are equal when they are the
//! same range of the same file, and are never read. Of tensors of the same type and shape only the ends are read
//! first, and the rest only where these agree, so that a large model is not read for nothing. An initializer that
//! is listed as an input may be replaced by the caller, and one that training refers to may be changed by it: both
//! stay. One that is an output of the graph keeps its name.
//!
//! ```onnx
//! f (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {1, 2}> {
//!   t = Add(x, a)
//!   y = Mul(t, b)
//! }
//! ```
//! ->
//! ```onnx
//! f (float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
//!   t = Add(x, a)
//!   y = Mul(t, a)
//! }
//! ```
//!
//! refused: equal numbers of another shape or with another sign of zero are not the same tensor
//! ```onnx
//! f (float[1] x) => (float[1] y) <float[1] a = {0.0}, float[1] b = {-0.0}, float c = {0.0}> {
//!   t = Add(x, a)
//!   u = Mul(t, b)
//!   y = Sub(u, c)
//! }
//! ```

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use dmopt_ir::hash::{Fold, HashMap, hasher};
use dmopt_ir::{Def, Derived, Graph, Patch, Rewriter, Safety, Storage, Tensor, ValueId};

use crate::{Context, Pass};

/// Bytes read at each end of a tensor to tell it from others.
const END_BYTES: usize = 2048;

/// See the header of this file.
pub struct DedupeInitializers;

impl Pass for DedupeInitializers {
    fn name(&self) -> &'static str {
        "dedupe-initializers"
    }

    fn source(&self) -> &'static str {
        include_str!("dedupe_initializers.rs")
    }

    fn safety(&self) -> Safety {
        Safety::Exact
    }

    fn run(&self, rewriter: &mut Rewriter<'_>, _context: &mut Context<'_>) {
        let graph = rewriter.graph();
        let initializers: Vec<ValueId> = graph.values().filter(|&v| tensor_of(graph, v).is_some()).collect();
        let mut merges: Vec<(ValueId, ValueId)> = Vec::new();
        for alike in groups(initializers, |&v| hash_of(graph, v, |t, h| (t.dtype, &t.dims).hash(h))) {
            for similar in groups(alike, |&v| hash_of(graph, v, hash_ends)) {
                for equal in groups(similar, |&v| hash_of(graph, v, hash_all)) {
                    merges.extend(merges_within(graph, equal));
                }
            }
        }
        merges.sort();
        for (gone, kept) in merges {
            let mut patch = Patch::new(Safety::Exact);
            patch.replace_uses(gone, kept);
            // A body that hides the name of the one to keep is the only obstacle; its copy stays.
            let _ = rewriter.apply(patch);
        }
    }
}

/// The initializers to replace, each with the one that takes its place.
fn merges_within(graph: &Graph, mut equal: Vec<ValueId>) -> Vec<(ValueId, ValueId)> {
    // An output keeps its name, so it is the one to keep.
    equal.sort_by_key(|&v| (!graph.is_output(v), v));
    let mut kept: Vec<ValueId> = Vec::new();
    let mut merges = Vec::new();
    for value in equal {
        let same = |&&k: &&ValueId| match (tensor_of(graph, k), tensor_of(graph, value)) {
            (Some(a), Some(b)) => same_elements(a, b),
            _ => false,
        };
        match kept.iter().find(same) {
            Some(_) if graph.is_output(value) => {}
            Some(&first) => merges.push((value, first)),
            None => kept.push(value),
        }
    }
    merges
}

fn tensor_of(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    match &graph.value(value).def {
        Def::Initializer(tensor) if tensor.storage != Storage::Absent && !graph.is_pinned(value) => {
            Some(tensor)
        }
        _ => None,
    }
}

/// Values that share a key, in order; those that share it with none are left out.
fn groups(values: Vec<ValueId>, key: impl Fn(&ValueId) -> u64) -> Vec<Vec<ValueId>> {
    if values.len() < 2 {
        return Vec::new();
    }
    let mut by_key: HashMap<u64, Vec<ValueId>> = HashMap::default();
    for value in values {
        by_key.entry(key(&value)).or_default().push(value);
    }
    by_key.into_values().filter(|group| group.len() > 1).collect()
}

fn hash_of(graph: &Graph, value: ValueId, part: impl Fn(&Tensor, &mut Fold)) -> u64 {
    let mut hasher = hasher();
    if let Some(tensor) = tensor_of(graph, value) {
        part(tensor, &mut hasher);
    }
    hasher.finish()
}

/// Hashes the ends of a tensor's bytes, or where they are if that is in another file.
pub(crate) fn hash_ends(tensor: &Tensor, hasher: &mut Fold) {
    match &tensor.storage {
        Storage::External(range) => (&range.location, range.offset, range.length).hash(hasher),
        Storage::Strings(strings) => strings.hash(hasher),
        _ => {
            let Some(elements) = Elements::of(tensor) else { return };
            let len = elements.len();
            elements.read(0..END_BYTES.min(len)).hash(hasher);
            elements.read(len.saturating_sub(END_BYTES)..len).hash(hasher);
        }
    }
}

/// Hashes all bytes of a tensor whose ends do not cover it.
fn hash_all(tensor: &Tensor, hasher: &mut Fold) {
    if tensor.byte_len().is_some_and(|n| n > 2 * END_BYTES as u64)
        && let Some(elements) = Elements::of(tensor)
    {
        elements.pieces().for_each(|piece| hasher.write(&elements.read(piece)));
    }
}

/// True when two tensors have the same type, shape and bits, as far as that can be told without reading other
/// files.
pub(crate) fn same_elements(a: &Tensor, b: &Tensor) -> bool {
    if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
        return false;
    }
    match (&a.storage, &b.storage) {
        (Storage::External(a), Storage::External(b)) => a == b,
        (Storage::Strings(a), Storage::Strings(b)) => a == b,
        _ => {
            let (Some(a), Some(b)) = (Elements::of(a), Elements::of(b)) else { return false };
            a.len() == b.len() && a.pieces().all(|piece| a.read(piece.clone()) == b.read(piece))
        }
    }
}

/// The bytes of a tensor, as few at a time as are asked for.
enum Elements<'t> {
    Here(Cow<'t, [u8]>),
    Derived(&'t Derived),
}

impl<'t> Elements<'t> {
    /// `None` for what is in another file, or nowhere.
    fn of(tensor: &'t Tensor) -> Option<Elements<'t>> {
        match &tensor.storage {
            Storage::Derived(derived) => Some(Elements::Derived(derived)),
            _ if tensor.is_resident() => tensor.bytes().ok().map(Elements::Here),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Elements::Here(bytes) => bytes.len(),
            Elements::Derived(derived) => derived.len(),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let len = self.len();
        (0..len).step_by(Derived::PIECE).map(move |at| at..len.min(at + Derived::PIECE))
    }

    fn read(&self, bytes: Range<usize>) -> Cow<'_, [u8]> {
        match self {
            Elements::Here(all) => Cow::Borrowed(&all[bytes]),
            Elements::Derived(derived) => {
                let mut read = Vec::new();
                derived.read(bytes, &mut read);
                Cow::Owned(read)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dmopt_ir::DType;

    use super::*;
    use crate::testing::{check, left_alone};

    const PASS: &str = "dedupe-initializers";

    #[test]
    fn nan_equals_itself_by_its_bits() {
        check(
            PASS,
            "f (float[1] x) => (float[1] y) <float[1] a = {nan}, float[1] b = {nan}> { t = Add(x, a) y = Mul(t, b) }",
            "f (float[1] x) => (float[1] y) <float[1] a = {nan}> { t = Add(x, a) y = Mul(t, a) }",
        );
    }

    #[test]
    fn several_copies_merge_into_the_first() {
        let outcome = check(
            PASS,
            "f (int64[1] x) => (int64[1] y) <int64[1] a = {1}, int64[1] b = {2}, int64[1] c = {1}, int64[1] d = {1}>
             { t = Add(x, a) u = Add(t, b) v = Add(u, c) y = Add(v, d) }",
            "f (int64[1] x) => (int64[1] y) <int64[1] a = {1}, int64[1] b = {2}>
             { t = Add(x, a) u = Add(t, b) v = Add(u, a) y = Add(v, a) }",
        );
        assert_eq!(outcome.passes[0].rewrites, 2);
    }

    #[test]
    fn weights_that_are_scaled_or_cut_are_compared_too() {
        let number = |value: f64| Tensor::from_f64(DType::F32, vec![5000], &[value; 5000]).unwrap();
        let scaled = |value: f64, by: f64| number(value).scaled(5000, |_| by).unwrap().unwrap();
        let rows = Tensor::from_f64(DType::F32, vec![2, 10_000], &[2.0; 20_000]).unwrap();
        let cut = Tensor { dims: vec![5000], ..rows.slice(1, 0..2500).unwrap() };
        let all = [number(2.0), scaled(1.0, 2.0), scaled(4.0, 0.5), cut];
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
            let hash = |tensor: &Tensor| {
                let mut hasher = hasher();
                hash_ends(tensor, &mut hasher);
                hash_all(tensor, &mut hasher);
                hasher.finish()
            };
            assert!(same_elements(a, b) && hash(a) == hash(b));
            assert!(!same_elements(a, &scaled(1.0, 3.0)));
        }
    }

    #[test]
    fn inputs_with_defaults_stay() {
        left_alone(
            PASS,
            "f (float[1] x, float[1] a = {1}, float[1] b = {1}) => (float[1] y) { t = Add(x, a) y = Mul(t, b) }",
        );
    }

    #[test]
    fn an_output_of_the_graph_keeps_its_name() {
        check(
            PASS,
            "f (float[1] x) => (float[1] y, float[1] b) <float[1] a = {1}, float[1] b = {1}> { y = Add(x, a) }",
            "f (float[1] x) => (float[1] y, float[1] b) <float[1] b = {1}> { y = Add(x, b) }",
        );
        left_alone(
            PASS,
            "f (float[1] x) => (float[1] y, float[1] a, float[1] b) <float[1] a = {1}, float[1] b = {1}> { y = Add(x, b) }",
        );
    }

    #[test]
    fn tensors_without_data_are_not_equal() {
        left_alone(
            PASS,
            "f (float[1] x) => (float[1] y) <float[1] a, float[1] b> { t = Add(x, a) y = Mul(t, b) }",
        );
    }

    #[test]
    fn external_data_are_equal_by_range() {
        let model = |offset: usize| {
            format!(
                "f (float[1] x) => (float[1] y) <float[1] a = [\"location\": \"w\", \"offset\": \"0\", \"length\": \"4\"],
                 float[1] b = [\"location\": \"w\", \"offset\": \"{offset}\", \"length\": \"4\"]>
                 {{ t = Add(x, a) y = Mul(t, b) }}"
            )
        };
        left_alone(PASS, &model(4));
        let (merged, _) = crate::testing::optimize(PASS, &model(0), crate::Options::default());
        assert_eq!(dmopt_ir::text::canonical(&merged.graph).matches("location").count(), 1);
    }

    #[test]
    fn tensors_that_differ_in_the_middle_alone_stay() {
        let mut tensor: Vec<String> = vec!["1".to_string(); 5000];
        let a = tensor.join(",");
        tensor[2500] = "2".to_string();
        let b = tensor.join(",");
        left_alone(
            PASS,
            &format!(
                "f (uint8[5000] x) => (uint8[5000] y) <uint8[5000] a = {{{a}}}, uint8[5000] b = {{{b}}}>
                 {{ t = Add(x, a) y = Mul(t, b) }}"
            ),
        );
    }

    #[test]
    fn bodies_keep_one_copy_each() {
        check(
            PASS,
            "f (bool c, float[1] x) => (float[1] y) {
               y = If (c) <
                 then_branch = t () => (float[1] v) <float[1] a = {1}, float[1] b = {1}> { u = Add(x, a) v = Mul(u, b) },
                 else_branch = e () => (float[1] w) { w = Relu(x) }>
             }",
            "f (bool c, float[1] x) => (float[1] y) {
               y = If (c) <
                 then_branch = t () => (float[1] v) <float[1] a = {1}> { u = Add(x, a) v = Mul(u, a) },
                 else_branch = e () => (float[1] w) { w = Relu(x) }>
             }",
        );
    }
}
