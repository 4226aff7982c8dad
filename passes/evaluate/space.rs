//! Positions of elements: sizes, axes, strides, broadcasting.

/// Number of elements; `None` when it does not fit.
pub(crate) fn product(dims: &[u64]) -> Option<u64> {
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

/// True when positions along every axis can be computed without overflow: a size of zero may hide others.
pub(super) fn is_addressable(dims: &[u64]) -> bool {
    let volume = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
    volume.is_some_and(|n| n <= i64::MAX as u64 / 16)
}

/// An axis or index that may count from the end.
pub(super) fn place(at: i64, size: usize) -> Option<usize> {
    let at = if at < 0 { at.checked_add_unsigned(size as u64)? } else { at };
    usize::try_from(at).ok().filter(|&a| a < size)
}

/// Axes that may count from the end, ascending, none twice.
pub(super) fn places(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    let mut all = axes.iter().map(|&a| place(a, rank)).collect::<Option<Vec<_>>>()?;
    all.sort_unstable();
    all.windows(2).all(|w| w[0] != w[1]).then_some(all)
}

/// Distance between neighbours along each dimension of an addressable tensor, in elements.
pub(super) fn strides(dims: &[u64]) -> Vec<i64> {
    let mut step = 1i64;
    let mut strides: Vec<i64> = dims
        .iter()
        .rev()
        .map(|&d| {
            let own = step;
            step = step.saturating_mul(d.max(1) as i64);
            own
        })
        .collect();
    strides.reverse();
    strides
}

/// Positions in row-major order of `dims`, each dimension stepping by its stride.
pub(super) fn walk(dims: &[u64], strides: &[i64], base: i64) -> impl Iterator<Item = usize> + use<> {
    let axes: Vec<(u64, i64)> = dims.iter().copied().zip(strides.iter().copied()).collect();
    let mut index = vec![0u64; axes.len()];
    let mut at = base;
    (0..product(dims).unwrap_or(0)).map(move |_| {
        let here = at as usize;
        for (i, &(size, step)) in index.iter_mut().zip(&axes).rev() {
            *i += 1;
            at += step;
            if *i < size {
                break;
            }
            at -= step * size as i64;
            *i = 0;
        }
        here
    })
}

/// The shape that shapes broadcast to.
pub(super) fn broadcast(shapes: &[&[u64]]) -> Option<Vec<u64>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    (0..rank)
        .map(|axis| {
            let sizes = shapes.iter().filter_map(|s| s.get((axis + s.len()).checked_sub(rank)?).copied());
            sizes.filter(|&d| d != 1).try_fold(1, |known, d| (known == 1 || known == d).then_some(d))
        })
        .collect()
}

/// Positions of a tensor's elements when it is broadcast to a shape that [`broadcast`] gave.
pub(super) fn spread(dims: &[u64], to: &[u64]) -> impl Iterator<Item = usize> + use<> {
    let mut steps = vec![0; to.len().saturating_sub(dims.len())];
    steps.extend(strides(dims).into_iter().zip(dims).map(|(step, &d)| if d == 1 { 0 } else { step }));
    walk(to, &steps, 0)
}
