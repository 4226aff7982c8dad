//! Beam search: keeps the few states of each layer that have least in memory. Finds good orders fast and proves nothing.

use std::collections::HashSet;

use super::closure::close;
use super::exact::MOVE;
use super::tree::Tree;
use crate::problem::Problem;

/// An order whose peak is at most `budget`, if the beam comes upon one before `steps` is used up.
pub(crate) fn beam(problem: &Problem, budget: u64, width: usize, steps: &mut u64) -> Option<Vec<usize>> {
    let mut tree = Tree::new(problem);
    let looked = close(&mut tree.state, budget, *steps);
    spend(steps, looked, &mut tree);
    if tree.state.is_complete() {
        return Some(tree.order());
    }
    let mut layer = vec![tree.add()];
    let mut seen = HashSet::new();
    while !layer.is_empty() && *steps > 0 {
        // Bytes, operators left, and how to get there.
        let mut found: Vec<(u64, usize, u32, u32)> = Vec::new();
        for &node in &layer {
            tree.visit(node);
            let base = tree.state.log.len();
            let ready: Vec<u32> = tree.state.ready.clone();
            spend(steps, ready.len() as u64, &mut tree);
            for v in ready {
                if tree.state.needs(v as usize) > budget {
                    continue;
                }
                tree.state.run(v as usize);
                let looked = close(&mut tree.state, budget, *steps);
                spend(steps, looked, &mut tree);
                if tree.state.is_complete() {
                    return Some(tree.order());
                }
                if seen.insert(tree.state.hash) {
                    found.push((tree.state.live, problem.len() - tree.state.log.len(), node, v));
                }
                if *steps == 0 {
                    return None;
                }
                tree.state.undo_to(base);
            }
        }
        found.sort_unstable();
        found.truncate(width);
        layer.clear();
        for (_, _, node, v) in found {
            tree.visit(node);
            tree.state.run(v as usize);
            let looked = close(&mut tree.state, budget, *steps);
            spend(steps, looked, &mut tree);
            layer.push(tree.add());
        }
    }
    None
}

fn spend(steps: &mut u64, looked: u64, tree: &mut Tree<'_>) {
    *steps = steps.saturating_sub(looked + MOVE * std::mem::take(&mut tree.state.moves));
}
