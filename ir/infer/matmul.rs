//! Matrix products: MatMul, Gemm, Einsum and their like; attention.

use super::{
    Call, DType, Dim, Rule, Rules, Shape, Size, TensorType, Type, broadcast, broadcast_dim, dim, of_rank,
    tensor,
};

pub(super) const RULES: Rules = &[
    ("Attention", Rule::Types(attention)),
    ("Det", Rule::Tensor(det)),
    ("Einsum", Rule::Tensor(einsum)),
    ("Gemm", Rule::Tensor(gemm)),
    ("LinearAttention", Rule::Types(linear_attention)),
    ("MatMul", Rule::Tensor(|call| product(call, 0, 1, call.dtype(0).or(call.dtype(1))))),
    ("MatMulInteger", Rule::Tensor(|call| product(call, 0, 1, Some(DType::I32)))),
    ("QLinearMatMul", Rule::Tensor(|call| product(call, 0, 3, call.dtype(7)))),
];

/// `[.., M, K] x [.., K, N] -> [.., M, N]`; an operand of one dimension is a row or a column that vanishes.
fn product(call: &Call<'_>, a: usize, b: usize, dtype: Option<DType>) -> Option<TensorType> {
    let dtype = dtype?;
    let (Some(a), Some(b)) = (call.shape(a), call.shape(b)) else { return Some(tensor(dtype, None)) };
    let (outer_a, m, k) = match a {
        [] => return None,
        [k] => (&[][..], None, k),
        [outer @ .., m, k] => (outer, Some(m), k),
    };
    let (outer_b, l, n) = match b {
        [] => return None,
        [l] => (&[][..], l, None),
        [outer @ .., l, n] => (outer, l, Some(n)),
    };
    if !k.may_equal(l) {
        return None;
    }
    let mut shape = broadcast(outer_a, outer_b)?;
    shape.extend(m.into_iter().chain(n).cloned());
    Some(tensor(dtype, shape))
}

fn gemm(call: &Call<'_>) -> Option<TensorType> {
    let dtype = call.dtype(0).or(call.dtype(1))?;
    let side = |slot, transposed: &str, kept: usize| match call.shape(slot) {
        Some(dims @ [_, _]) => {
            let at = if call.int(transposed, 0) != 0 { 1 - kept } else { kept };
            Some((dims[at].clone(), dims[1 - at].clone()))
        }
        Some(_) => None,
        None => Some((Dim::Unknown, Dim::Unknown)),
    };
    let ((m, k), (n, l)) = (side(0, "transA", 0)?, side(1, "transB", 1)?);
    k.may_equal(&l).then(|| tensor(dtype, vec![m, n]))
}

fn det(call: &Call<'_>) -> Option<TensorType> {
    let shape = match call.shape(0) {
        Some([outer @ .., _, _]) => Some(outer.to_vec()),
        Some(_) => return None,
        None => None,
    };
    Some(tensor(call.dtype(0)?, shape))
}

/// One side of an Einsum equation: labels before and after the ellipsis, if there is one.
struct Labels {
    before: Vec<char>,
    after: Option<Vec<char>>,
}

impl Labels {
    fn parse(text: &str) -> Option<Labels> {
        let letters = |part: &str| {
            part.chars().all(|c| c.is_ascii_alphabetic()).then(|| part.chars().collect::<Vec<_>>())
        };
        Some(match text.split_once("...") {
            Some((before, after)) => Labels { before: letters(before)?, after: Some(letters(after)?) },
            None => Labels { before: letters(text)?, after: None },
        })
    }

    fn letters(&self) -> impl Iterator<Item = char> + '_ {
        self.before.iter().chain(self.after.iter().flatten()).copied()
    }
}

/// What Einsum found out about its labels.
#[derive(Default)]
struct Sizes {
    labels: Vec<(char, Dim, u32)>,
    ellipsis: Shape,
}

impl Sizes {
    fn learn(&mut self, label: char, size: &Dim) -> Option<()> {
        match self.labels.iter_mut().find(|(l, ..)| *l == label) {
            Some((_, known, count)) => {
                *known = broadcast_dim(known, size)?;
                *count += 1;
            }
            None => self.labels.push((label, size.clone(), 1)),
        }
        Some(())
    }

    fn size(&self, label: char) -> Option<Dim> {
        self.labels.iter().find(|(l, ..)| *l == label).map(|(_, size, _)| size.clone())
    }
}

fn einsum(call: &Call<'_>) -> Option<TensorType> {
    let dtype = (0..call.args.len()).find_map(|slot| call.dtype(slot))?;
    let equation: String = call.op.string("equation")?.chars().filter(|c| *c != ' ').collect();
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, Some(Labels::parse(output)?)),
        None => (equation.as_str(), None),
    };
    let inputs = inputs.split(',').map(Labels::parse).collect::<Option<Vec<_>>>()?;
    if inputs.len() != call.args.len() {
        return None;
    }
    let mut sizes = Sizes::default();
    for (slot, labels) in inputs.iter().enumerate() {
        let Some(dims) = call.shape(slot) else {
            // The rank follows from the labels, unless an ellipsis hides some.
            if labels.after.is_some() {
                return Some(tensor(dtype, None));
            }
            labels.letters().try_for_each(|l| sizes.learn(l, &Dim::Unknown))?;
            continue;
        };
        let hidden = dims.len().checked_sub(labels.letters().count())?;
        let (before, rest) = dims.split_at(labels.before.len());
        let (middle, after) = rest.split_at(hidden);
        match &labels.after {
            Some(_) => sizes.ellipsis = broadcast(&sizes.ellipsis, middle)?,
            None if hidden > 0 => return None,
            None => {}
        }
        labels.letters().zip(before.iter().chain(after)).try_for_each(|(l, d)| sizes.learn(l, d))?;
    }
    let shape = match output {
        Some(labels) => {
            let mut shape = labels.before.iter().map(|&l| sizes.size(l)).collect::<Option<Shape>>()?;
            if let Some(after) = &labels.after {
                shape.extend(sizes.ellipsis.iter().cloned());
                shape.extend(after.iter().map(|&l| sizes.size(l)).collect::<Option<Shape>>()?);
            }
            shape
        }
        // Without an output: the ellipsis, then every label that occurs once, in alphabetical order.
        None => {
            let mut once: Vec<(char, Dim)> = (sizes.labels.iter())
                .filter(|(_, _, count)| *count == 1)
                .map(|(l, size, _)| (*l, size.clone()))
                .collect();
            once.sort_by_key(|(l, _)| *l);
            sizes.ellipsis.iter().cloned().chain(once.into_iter().map(|(_, size)| size)).collect()
        }
    };
    Some(tensor(dtype, shape))
}

/// Batch, heads, sequence and head size of an operand of Attention, which may have three dimensions.
fn heads(call: &Call<'_>, slot: usize, count: &str) -> Option<[Dim; 4]> {
    match call.shape(slot)? {
        [b, h, s, d] => Some([b.clone(), h.clone(), s.clone(), d.clone()]),
        [b, s, hidden] => {
            let heads = call.op.int(count)?;
            let size = Size::of(hidden).and_then(|h| h.divided(&Size::Known(heads)));
            Some([b.clone(), Size::Known(heads).dim(), s.clone(), dim(size)])
        }
        _ => None,
    }
}

fn attention(call: &Call<'_>) -> Vec<Option<Type>> {
    let (q, k, v) =
        (heads(call, 0, "q_num_heads"), heads(call, 1, "kv_num_heads"), heads(call, 2, "kv_num_heads"));
    let past = |slot: usize| match (call.has(slot), call.shape(slot)) {
        (false, _) => Some(Dim::Known(0)),
        (true, Some([_, _, s, _])) => Some(s.clone()),
        _ => None,
    };
    let total = |now: &Dim, slot| dim(past(slot).and_then(|p| Size::of(&p)?.add(&Size::of(now)?)));
    let sum_of = |dims: [&Dim; 2]| dim(super::product(&[dims[0].clone(), dims[1].clone()]));
    let y = q.as_ref().map(|[b, h, s, _]| {
        let size = v.as_ref().map_or(Dim::Unknown, |[.., d]| d.clone());
        match call.shape(0).map(<[Dim]>::len) {
            Some(3) => vec![b.clone(), s.clone(), sum_of([h, &size])],
            _ => vec![b.clone(), h.clone(), s.clone(), size],
        }
    });
    let present = |of: &Option<[Dim; 4]>, slot| {
        of.as_ref().map(|[b, h, s, d]| vec![b.clone(), h.clone(), total(s, slot), d.clone()])
    };
    let scores = q
        .as_ref()
        .zip(k.as_ref())
        .map(|([b, h, s, _], [_, _, t, _])| vec![b.clone(), h.clone(), s.clone(), total(t, 4)]);
    let typed = |slot, shape: Option<Shape>| call.dtype(slot).map(|d| Type::Tensor(tensor(d, shape)));
    vec![typed(0, y), typed(1, present(&k, 4)), typed(2, present(&v, 5)), typed(0, scores)]
}

/// Output `[B, T, H_q*d_v]`, state `[B, H_kv, d_k, d_v]`.
fn linear_attention(call: &Call<'_>) -> Vec<Option<Type>> {
    let value = heads(call, 2, "kv_num_heads");
    let output = || {
        let [batch, time, _] = call.shape(0)? else { return None };
        let [_, _, _, size] = value.as_ref()?;
        let heads = Size::Known(call.op.int("q_num_heads")?).dim();
        Some(vec![batch.clone(), time.clone(), dim(super::product(&[heads, size.clone()]))])
    };
    let result = call.dtype(0).map(|d| Type::Tensor(tensor(d, output().unwrap_or_else(|| of_rank(3)))));
    vec![result, call.ty(3).cloned()]
}

#[cfg(test)]
mod tests {
    use crate::infer::testing::expect;

    #[test]
    fn matrix_products() {
        expect(&[
            ("MatMul", 13, &["float[B,S,64]", "float[64,32]"], "float[B,S,32]"),
            ("MatMul", 13, &["float[B,1,S,64]", "float[H,64,T]"], "float[B,H,S,T]"),
            ("MatMul", 13, &["float[64]", "float[B,64,T]"], "float[B,T]"),
            ("MatMul", 13, &["float[B,S,64]", "float[64]"], "float[B,S]"),
            ("MatMul", 13, &["float[3]", "float[3]"], "float"),
            ("MatMul", 13, &["float[2,3]", "float[4,5]"], "-"),
            ("MatMul", 13, &["float[...]", "float[4,5]"], "float[...]"),
            ("MatMulInteger", 10, &["uint8[2,3]", "int8[3,4]"], "int32[2,4]"),
            ("Gemm transA=1 transB=1", 13, &["float[K,M]", "float[10,K]", "float[10]"], "float[M,10]"),
            ("Gemm", 13, &["float[M,512]", "float[512,10]"], "float[M,10]"),
            ("Gemm", 13, &["float[2,3,4]", "float[4,10]"], "-"),
            ("Det", 11, &["float[N,3,3]"], "float[N]"),
        ]);
    }

    #[test]
    fn einsum_labels() {
        expect(&[
            ("Einsum equation='n,nbchw->bchw'", 12, &["float[4]", "float[4,B,C,H,W]"], "float[B,C,H,W]"),
            (
                "Einsum equation='bhid, bhjd -> bhij'",
                12,
                &["float[B,8,S,64]", "float[B,8,T,64]"],
                "float[B,8,S,T]",
            ),
            (
                "Einsum equation='...ij,...jk->...ik'",
                12,
                &["float[B,1,2,3]", "float[7,3,4]"],
                "float[B,7,2,4]",
            ),
            ("Einsum equation='ij,jk'", 12, &["float[2,3]", "float[3,4]"], "float[2,4]"),
            ("Einsum equation='ba'", 12, &["float[2,3]"], "float[3,2]"),
            ("Einsum equation='ii->'", 12, &["float[3,3]"], "float"),
            ("Einsum equation='ij,j->i'", 12, &["float[...]", "float[3]"], "float[?]"),
            ("Einsum equation='ij->i'", 12, &["float[2,3,4]"], "-"),
        ]);
    }

    #[test]
    fn attention_with_three_and_four_dimensions() {
        expect(&[
            ("Attention", 23, &["float[B,8,S,64]", "float[B,8,T,64]", "float[B,8,T,32]"], "float[B,8,S,32]"),
            (
                "Attention q_num_heads=8 kv_num_heads=4",
                23,
                &["float[B,S,512]", "float[B,T,256]", "float[B,T,128]"],
                "float[B,S,256]",
            ),
        ]);
    }
}
