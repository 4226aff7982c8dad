//! The graph around each mixing site, before and after, as pictures.
//!
//! A picture shows the operators that the rewrite of the site took out, put in or changed, and where they get their operands from. Of many
//! operands of one operator, and of many layers, those at the ends are drawn.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use dmopt_ir::text::print_op;
use dmopt_ir::{Def, Graph, OpId, ValueId};

use super::layout::{GAP, Node, place};
use crate::diff::{Matching, members};
use crate::memory_report::escape;

/// Operands of one operator that are drawn: more are cut down to the first ones and the last.
const OPERANDS: usize = 4;

/// Layers that are drawn: of more, the first and the last.
const LAYERS: usize = 12;

/// How far a wide picture shrinks before it is to be scrolled.
const SHRINK: f64 = 0.7;

/// Height of a box, and from one layer to the next.
const BOX: f64 = 40.0;
const STEP: f64 = 68.0;

/// Both pictures of the sites whose results are named, as far as rewrites touched them.
pub(super) fn pictures(before: &Graph, after: &Graph, sites: &[&str]) -> HashMap<String, [String; 2]> {
    let matching = Matching::of(before, after);
    let owned = members(&matching);
    let mut found = HashMap::new();
    for &site in sites {
        if let Some([gone, new]) = owned.get(site) {
            let draw = |side: usize, ops: &HashSet<OpId>| Drawing::of(&matching, side, ops).svg();
            found.insert(site.to_string(), [draw(0, gone), draw(1, new)]);
        }
    }
    found
}

/// A box.
struct Item {
    class: &'static str,
    title: String,
    label: String,
    remark: String,
    reads: Vec<usize>,
}

struct Drawing {
    items: Vec<Item>,
}

impl Drawing {
    fn of(matching: &Matching<'_>, side: usize, ops: &HashSet<OpId>) -> Drawing {
        let graph = matching.graphs[side];
        let order: Vec<OpId> =
            graph.order().unwrap_or_default().into_iter().filter(|op| ops.contains(op)).collect();
        let kept = elide(graph, &order, ops);
        let mut items: Vec<Item> = Vec::new();
        let mut places: HashMap<ValueId, usize> = HashMap::new();
        for &op in order.iter().filter(|op| kept.contains(op)) {
            let operator = graph.op(op);
            let mut reads = Vec::new();
            let (mut left_out, mut constants) = (0, 0);
            let operands: Vec<ValueId> = operator.operands().collect();
            for (n, &value) in operands.iter().enumerate() {
                let inside = graph.producer(value).is_some_and(|p| ops.contains(&p));
                let drawn = n + 1 < OPERANDS || n + 1 == operands.len();
                match &graph.value(value).def {
                    Def::Initializer(_) | Def::SparseInitializer(_) => constants += 1,
                    _ if places.contains_key(&value) => reads.push(places[&value]),
                    _ if inside || !drawn => left_out += 1,
                    _ => {
                        let name = &graph.value(value).name;
                        let remark =
                            graph.value(value).ty.as_ref().map(ToString::to_string).unwrap_or_default();
                        items.push(Item {
                            class: "from",
                            title: name.clone(),
                            label: end_of(name),
                            remark,
                            reads: Vec::new(),
                        });
                        places.insert(value, items.len() - 1);
                        reads.push(items.len() - 1);
                    }
                }
            }
            if left_out > 0 {
                items.push(Item {
                    class: "more",
                    title: String::new(),
                    label: format!("{left_out} more"),
                    remark: String::new(),
                    reads: Vec::new(),
                });
                reads.push(items.len() - 1);
            }
            let ty = operator.output(0).and_then(|v| graph.value(v).ty.as_ref());
            let class = match matching.partner(side, op) {
                None => ["gone", "new"][side],
                Some(_) => "same",
            };
            let plus = if constants > 0 { format!(" \u{b7} {constants} const") } else { String::new() };
            items.push(Item {
                class,
                title: print_op(graph, op),
                label: format!("{}{plus}", operator.op_type),
                remark: ty.map(ToString::to_string).unwrap_or_default(),
                reads,
            });
            let at = items.len() - 1;
            operator.results().for_each(|v| _ = places.insert(v, at));
        }
        Drawing { items }
    }

    fn svg(&self) -> String {
        // What was left out in the middle leaves nodes that read nothing drawn; they stand on their own.
        let width = |item: &Item| {
            let text = item.label.chars().count().max(item.remark.chars().count() * 6 / 7) as f64;
            (text * 7.4 + 18.0).max(44.0)
        };
        let nodes: Vec<Node> =
            self.items.iter().map(|item| Node { width: width(item), reads: item.reads.clone() }).collect();
        let (places, wide) = place(&nodes);
        let layers = places.iter().map(|p| p.layer + 1).max().unwrap_or(0);
        let (w, h) = (wide + 2.0 * GAP, layers as f64 * STEP - STEP + BOX + 2.0 * GAP);
        let at = |i: usize| (places[i].x + GAP, places[i].layer as f64 * STEP + GAP);
        let mut text = format!(
            "<svg class=\"graph\" viewBox=\"0 0 {w:.0} {h:.0}\" style=\"max-width:{w:.0}px;min-width:{:.0}px\" role=\"img\">",
            w * SHRINK
        );
        for (i, item) in self.items.iter().enumerate() {
            let (x, y) = at(i);
            for &r in &item.reads {
                let (from, top) = at(r);
                let (start, bend) = (top + BOX, (y - top - BOX) / 2.0);
                let _ = write!(
                    text,
                    "<path class=\"edge\" d=\"M{from:.1} {start:.1}C{from:.1} {:.1} {x:.1} {:.1} {x:.1} {y:.1}\"/>",
                    start + bend,
                    y - bend
                );
            }
        }
        for (i, item) in self.items.iter().enumerate() {
            let ((x, y), width) = (at(i), nodes[i].width);
            let round = if item.class == "from" || item.class == "more" { BOX / 2.0 } else { 6.0 };
            let _ = write!(
                text,
                "<g class=\"{}\"><title>{}</title><rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BOX}\" \
                 rx=\"{round}\"/><text x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                item.class,
                escape(&item.title),
                x - width / 2.0,
                y + if item.remark.is_empty() { 24.0 } else { 17.0 },
                escape(&item.label)
            );
            if !item.remark.is_empty() {
                let _ = write!(
                    text,
                    "<text class=\"ty\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                    y + 31.0,
                    escape(&item.remark)
                );
            }
            text.push_str("</g>");
        }
        text + "</svg>"
    }
}

/// The operators that are drawn: those that the last ones lead back to through the operands that are drawn, and of many layers the
/// first and last.
fn elide(graph: &Graph, order: &[OpId], ops: &HashSet<OpId>) -> HashSet<OpId> {
    let mut kept = HashSet::new();
    let last = |op: &OpId| !graph.successors(*op).any(|reader| ops.contains(&reader));
    let mut todo: Vec<OpId> = order.iter().copied().filter(last).collect();
    while let Some(op) = todo.pop() {
        if kept.insert(op) {
            let operands: Vec<ValueId> = graph.op(op).operands().collect();
            let drawn =
                operands.iter().enumerate().filter(|(n, _)| n + 1 < OPERANDS || n + 1 == operands.len());
            todo.extend(drawn.filter_map(|(_, &v)| graph.producer(v)).filter(|p| ops.contains(p)));
        }
    }
    let mut layer: HashMap<OpId, usize> = HashMap::new();
    for &op in order.iter().filter(|op| kept.contains(op)) {
        let below = graph.predecessors(op).filter_map(|p| layer.get(&p)).max().map_or(0, |n| n + 1);
        layer.insert(op, below);
    }
    let layers = layer.values().max().map_or(0, |n| n + 1);
    if layers > LAYERS {
        kept.retain(|op| layer[op] < LAYERS / 2 || layer[op] >= layers - LAYERS / 2);
    }
    kept
}

/// The end of a long name.
fn end_of(name: &str) -> String {
    const MOST: usize = 22;
    let length = name.chars().count();
    match length > MOST {
        true => format!("\u{2026}{}", name.chars().skip(length + 1 - MOST).collect::<String>()),
        false => name.to_string(),
    }
}
