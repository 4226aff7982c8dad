//! Small graphs in layers, top to bottom: every node below what it reads, as near to it as its layer allows.

/// A node to place.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    /// Width in pixels.
    pub width: f64,
    /// What it reads, as positions of nodes before it.
    pub reads: Vec<usize>,
}

/// Where a node is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Place {
    /// Middle, in pixels.
    pub x: f64,
    /// Layer, from 0.
    pub layer: usize,
}

/// Between two nodes of a layer.
pub(super) const GAP: f64 = 18.0;

/// How often nodes move towards what they read and what reads them.
const SWEEPS: usize = 6;

/// Places nodes, which come operands first; gives their places and the width of the whole.
pub(super) fn place(nodes: &[Node]) -> (Vec<Place>, f64) {
    let mut layer = vec![0usize; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        layer[i] = node.reads.iter().map(|&r| layer[r] + 1).max().unwrap_or(0);
    }
    let mut readers = vec![Vec::new(); nodes.len()];
    nodes.iter().enumerate().for_each(|(i, node)| node.reads.iter().for_each(|&r| readers[r].push(i)));
    // What reads nothing stands right above its first reader, not at the very top.
    for i in 0..nodes.len() {
        if nodes[i].reads.is_empty() {
            layer[i] = readers[i].iter().map(|&r| layer[r]).min().map_or(0, |first| first.saturating_sub(1));
        }
    }
    let layers = layer.iter().max().map_or(0, |last| last + 1);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); layers];
    (0..nodes.len()).for_each(|i| rows[layer[i]].push(i));
    let mut x = vec![0.0; nodes.len()];
    for row in &rows {
        pack(row, nodes, &mut x, &row.iter().map(|_| 0.0).collect::<Vec<_>>());
    }
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        for at in 0..layers {
            let row = &mut rows[if down { at } else { layers - 1 - at }];
            let wish = |&i: &usize| {
                let near = if down { &nodes[i].reads } else { &readers[i] };
                let sum: f64 = near.iter().map(|&j| x[j]).sum();
                if near.is_empty() { x[i] } else { sum / near.len() as f64 }
            };
            let mut wished: Vec<(f64, usize)> = row.iter().map(|i| (wish(i), *i)).collect();
            wished.sort_by(|a, b| a.0.total_cmp(&b.0));
            *row = wished.iter().map(|&(_, i)| i).collect();
            let wishes: Vec<f64> = wished.iter().map(|&(x, _)| x).collect();
            pack(row, nodes, &mut x, &wishes);
        }
    }
    let left = (0..nodes.len()).map(|i| x[i] - nodes[i].width / 2.0).fold(f64::MAX, f64::min);
    let right = (0..nodes.len()).map(|i| x[i] + nodes[i].width / 2.0).fold(f64::MIN, f64::max);
    let places = (0..nodes.len()).map(|i| Place { x: x[i] - left, layer: layer[i] }).collect();
    (places, if nodes.is_empty() { 0.0 } else { right - left })
}

/// Puts a row, in its order, as near to where its nodes would like to be as their widths allow: neighbours that would
/// overlap form blocks, which stand at the mean of their wishes.
fn pack(row: &[usize], nodes: &[Node], x: &mut [f64], wishes: &[f64]) {
    // A block: its nodes, the sum of wishes for its first node's middle, and that node's place.
    let mut blocks: Vec<(Vec<usize>, f64, f64)> = Vec::new();
    let step = |a: usize, b: usize| (nodes[a].width + nodes[b].width) / 2.0 + GAP;
    for (&i, &wish) in row.iter().zip(wishes) {
        let mut block = (vec![i], wish, wish);
        while let Some(last) = blocks.pop() {
            let span = |members: &[usize]| members.windows(2).map(|pair| step(pair[0], pair[1])).sum::<f64>();
            let (Some(&tail), Some(&head)) = (last.0.last(), block.0.first()) else { break };
            let offset = span(&last.0) + step(tail, head);
            if last.2 + offset <= block.2 {
                blocks.push(last);
                break;
            }
            let sum = last.1 + block.1 - offset * block.0.len() as f64;
            let members: Vec<usize> = last.0.into_iter().chain(block.0).collect();
            block = (members, sum, 0.0);
            block.2 = block.1 / block.0.len() as f64;
        }
        blocks.push(block);
    }
    for (members, _, start) in blocks {
        let mut at = start;
        for (n, &i) in members.iter().enumerate() {
            if n > 0 {
                at += step(members[n - 1], i);
            }
            x[i] = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(reads: &[usize]) -> Node {
        Node { width: 40.0, reads: reads.to_vec() }
    }

    #[test]
    fn nodes_stand_below_what_they_read_and_nothing_overlaps() {
        arbtest::arbtest(|u| {
            let count = u.int_in_range(0..=20)?;
            let mut nodes = Vec::new();
            for i in 0..count {
                let reads = u.int_in_range(0..=3usize.min(i))?;
                let reads = (0..reads).map(|_| u.int_in_range(0..=i - 1)).collect::<Result<Vec<_>, _>>()?;
                nodes.push(Node { width: f64::from(u.int_in_range(20..=120)?), reads });
            }
            let (places, width) = place(&nodes);
            for (i, node) in nodes.iter().enumerate() {
                assert!(node.reads.iter().all(|&r| places[r].layer < places[i].layer));
                let (left, right) = (places[i].x - node.width / 2.0, places[i].x + node.width / 2.0);
                assert!(left > -0.01 && right < width + 0.01);
                let beside = (0..i).filter(|&j| places[j].layer == places[i].layer);
                for j in beside {
                    let apart = (places[i].x - places[j].x).abs() - (node.width + nodes[j].width) / 2.0;
                    assert!(apart > GAP - 0.01, "{apart}");
                }
            }
            Ok(())
        });
    }

    #[test]
    fn a_chain_is_straight_and_a_join_in_the_middle() {
        let (places, _) = place(&[node(&[]), node(&[]), node(&[0, 1]), node(&[2])]);
        assert_eq!(places[2].x, (places[0].x + places[1].x) / 2.0);
        assert_eq!(places[3].x, places[2].x);
        let layers: Vec<usize> = places.iter().map(|place| place.layer).collect();
        assert_eq!(layers, [0, 0, 1, 2]);
    }
}
