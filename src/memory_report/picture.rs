//! The timeline as a picture: bytes by step, each tensor an area as high as it is large, as long as it is in memory.
//!
//! Areas lie on each other, those that stay longest at the bottom, so that the silhouette is what is in memory. Their
//! colour says why they are there. What would be thinner than a line is drawn as one area.

use std::fmt::Write as _;

use super::{MemoryReport, Why};
use crate::units;

/// Height of a plot in its own units; one step is one unit wide.
pub(super) const HEIGHT: f64 = 1000.0;

/// A tensor below this part of the scale is drawn with others.
const THIN: u64 = 1000;

/// More areas than this are drawn as one, the largest excepted: nobody can tell them apart.
const MOST_AREAS: usize = 4000;

/// The colours by class: name, in light, in dark, what it means. `a` to `d` are shades of one meaning, so that
/// neighbours can be told apart.
const COLOURS: [(&str, &str, &str, &str); 10] = [
    ("use", "#e8590c", "#ff922b", "used by the running operator"),
    ("a", "#4c86c6", "#3f77b8", "read later"),
    ("b", "#6a9fd8", "#5690d0", ""),
    ("c", "#3d74b0", "#33659f", ""),
    ("d", "#84b2e2", "#6ba3de", ""),
    ("held", "#c2558f", "#d66ba3", "free, but held for a later result"),
    ("out", "#3b9b73", "#46b587", "output of the model"),
    ("lost", "#c92a2a", "#ff6b6b", "never read"),
    ("scratch", "#c49a06", "#e0b420", "scratch memory of the kernel"),
    ("rest", "#8a93a0", "#7d8794", "tensors too small to draw"),
];

/// Style rules for the classes, under a selector: of areas, and of what explains them beside a picture.
pub(super) fn colours(selector: &str) -> String {
    let mut text = String::new();
    for dark in [false, true] {
        if dark {
            text.push_str("@media (prefers-color-scheme:dark){");
        }
        for (class, light, night, _) in COLOURS {
            let colour = if dark { night } else { light };
            let _ = write!(text, "{selector} .{class}{{fill:{colour};background:{colour}}}");
        }
    }
    text + "}"
}

/// The areas of a run below `scale` bytes, as elements of an SVG of [`HEIGHT`]. Groups are marked with the positions
/// of their buffers; `title` describes one, where the picture has to speak for itself.
pub(super) fn areas(report: &MemoryReport, scale: u64, title: Option<&dyn Fn(usize) -> String>) -> String {
    let steps = report.order.len();
    if steps == 0 {
        return String::new();
    }
    let buffers = &report.buffers;
    let mut drawn: Vec<usize> = (0..buffers.len()).collect();
    drawn.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), i));
    let visible = drawn.partition_point(|&i| u128::from(buffers[i].bytes) * u128::from(THIN) >= scale.into());
    let rest = drawn.split_off(visible.min(MOST_AREAS));
    drawn.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].to - buffers[i].from), buffers[i].from, i));

    let mut text = String::new();
    let height = |bytes: u64| HEIGHT - bytes as f64 / scale.max(1) as f64 * HEIGHT;
    let mut base = vec![0u64; steps];
    for buffer in rest.iter().map(|&i| &buffers[i]) {
        base[buffer.from..=buffer.to]
            .iter_mut()
            .for_each(|bytes| *bytes = bytes.saturating_add(buffer.bytes));
    }
    if base.iter().any(|&bytes| bytes > 0) {
        let edges: Vec<(u64, u64)> = base.iter().map(|&bytes| (0, bytes)).collect();
        let _ = write!(text, "<g data-rest=\"{}\">{}</g>", rest.len(), area("rest", 0, &edges, &height));
    }
    for (n, &i) in drawn.iter().enumerate() {
        let buffer = &buffers[i];
        let edges: Vec<(u64, u64)> = base[buffer.from..=buffer.to]
            .iter_mut()
            .map(|edge| {
                let low = *edge;
                *edge = low.saturating_add(buffer.bytes);
                (low, *edge)
            })
            .collect();
        let _ = write!(text, "<g data-b=\"{i}\">");
        if let Some(title) = title {
            let _ = write!(text, "<title>{}</title>", escape(&title(i)));
        }
        let class = |reason: Why| match reason {
            Why::Computed | Why::Operand => "use",
            Why::ReadLater => ["a", "b", "c", "d"][n % 4],
            Why::HeldForReuse => "held",
            Why::Output => "out",
            Why::NeverRead => "lost",
        };
        let mut parts = buffer.states.iter().map(|state| (state.from, class(state.reason))).peekable();
        while let Some((from, class)) = parts.next() {
            while parts.next_if(|next| next.1 == class).is_some() {}
            let to = parts.peek().map_or(buffer.to + 1, |next| next.0);
            text += &area(class, from, &edges[from - buffer.from..to - buffer.from], &height);
        }
        text.push_str("</g>");
    }
    text.push_str("<g data-scratch=\"\">");
    for (step, (low, needs)) in base.iter().zip(&report.order).enumerate() {
        if needs.scratch_bytes.saturating_mul(THIN) >= scale {
            text += &area("scratch", step, &[(*low, low.saturating_add(needs.scratch_bytes))], &height);
        }
    }
    text + "</g>"
}

/// An area between edges, step by step from `from` on.
fn area(class: &str, from: usize, edges: &[(u64, u64)], height: &dyn Fn(u64) -> f64) -> String {
    let mut path = String::new();
    let mut line = |at: usize, edge: u64, first: bool| {
        let y = format!("{:.1}", height(edge));
        let y = y.strip_suffix(".0").unwrap_or(&y);
        let _ = if first { write!(path, "M{at} {y}") } else { write!(path, "H{at}V{y}") };
    };
    let last = edges.len().saturating_sub(1);
    for (i, &(_, high)) in edges.iter().enumerate() {
        if i == 0 || edges[i - 1].1 != high {
            line(from + i, high, i == 0);
        }
    }
    for (i, &(low, _)) in edges.iter().enumerate().rev() {
        if i == last || edges[i + 1].0 != low {
            line(from + i + 1, low, false);
        }
    }
    format!("<path class=\"{class}\" d=\"{path}H{from}Z\"/>")
}

/// Bytes that the axis goes up to, for models drawn at one scale: the largest peak and a little.
pub(super) fn scale(report: &MemoryReport) -> u64 {
    let peaks = report.models().map(|report| report.peak_bytes.max(report.steady_peak_bytes));
    let most = peaks.max().unwrap_or(0).max(1);
    most.saturating_add(most / 20)
}

/// Round numbers from 0 to `most`, about `count` of them.
fn ticks(most: u64, count: u64) -> impl Iterator<Item = u64> {
    let rough = (most / count.max(1)).max(1);
    let power = 10u64.pow(rough.ilog10());
    let unit = [1, 2, 5, 10].map(|factor| power.saturating_mul(factor));
    let step = unit.into_iter().find(|&unit| unit >= rough).unwrap_or(rough);
    (0..=most / step).map(move |n| n * step)
}

/// Text that is safe between tags and in quotes; characters that XML cannot hold are left out.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
            c => safe.push(c),
        }
    }
    safe
}

/// Sizes of the static picture in pixels: all of it, around plots, between two, a line of text.
const WIDTH: usize = 960;
const PLOT: usize = 320;
const LEFT: usize = 64;
const TOP: usize = 58;
const GAP: usize = 24;
const LINE: usize = 20;

impl MemoryReport {
    /// The timeline as an SVG picture for documents; two models side by side at one scale.
    pub fn svg(&self) -> String {
        let scale = scale(self);
        let models: Vec<&MemoryReport> = self.models().collect();
        let width = (WIDTH - LEFT - GAP * models.len()) / models.len();
        let (plots, legend): (String, String) = (
            models
                .iter()
                .enumerate()
                .map(|(i, model)| model.plot(LEFT + i * (width + GAP), width, scale))
                .collect(),
            legend(TOP + PLOT + 2 * LINE + GAP),
        );
        let mut axis = String::new();
        for bytes in ticks(scale, 6) {
            let y = TOP as f64 + PLOT as f64 * (1.0 - bytes as f64 / scale as f64);
            let _ = write!(
                axis,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - GAP,
                LEFT - 8,
                y + 4.0,
                units::bytes(bytes)
            );
        }
        let height = TOP + PLOT + 2 * LINE + GAP + 2 * LINE;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\"><title>{}</title><style>{STYLE}{}</style>\
             <rect class=\"page\" width=\"100%\" height=\"100%\"/>{axis}{plots}{legend}</svg>\n",
            escape(&format!("Memory of {} by step", self.path)),
            colours("svg")
        )
    }

    /// One model, with its peak marked.
    fn plot(&self, x: usize, width: usize, scale: u64) -> String {
        let steps = self.order.len().max(1);
        let describe = |i: usize| {
            let buffer = &self.buffers[i];
            let names = buffer.values.join(", ");
            let (from, to) = (buffer.from + 1, buffer.to + 1);
            format!("{names}: {}, {}, steps {from} to {to}", buffer.ty, units::bytes(buffer.bytes))
        };
        let height = |bytes: u64| TOP as f64 + PLOT as f64 * (1.0 - bytes as f64 / scale as f64);
        let room = width / 7;
        let mut text = format!(
            "<svg x=\"{x}\" y=\"{TOP}\" width=\"{width}\" height=\"{PLOT}\" viewBox=\"0 0 {steps} {HEIGHT}\" \
             preserveAspectRatio=\"none\"{}>{}</svg>",
            if steps * 3 > width { " class=\"dense\"" } else { "" },
            areas(self, scale, Some(&describe))
        );
        let _ = write!(text, "<text class=\"head\" x=\"{x}\" y=\"20\">{}</text>", shorten(&self.path, room));
        if let Some(at) = &self.at {
            let middle = x as f64 + (at.step as f64 + 0.5) * width as f64 / steps as f64;
            let label = format!(
                "peak {} at step {} of {}: {}",
                units::bytes(self.peak_bytes),
                at.step + 1,
                self.order.len(),
                at.node
            );
            let top = height(self.peak_bytes);
            let _ = write!(
                text,
                "<text x=\"{x}\" y=\"38\">{}</text><path class=\"peak\" d=\"M{middle:.1} {:.1}V{}\"/>\
                 <path class=\"tip\" d=\"M{middle:.1} {:.1}l-5 -8h10z\"/>",
                shorten(&label, room),
                top,
                TOP + PLOT,
                top - 1.0
            );
        }
        let mut level = |bytes: u64, label: &str| {
            let y = height(bytes);
            let _ = write!(
                text,
                "<path class=\"level\" d=\"M{x} {y:.1}h{width}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">\
                 {label} {}</text>",
                x + width,
                y - 4.0,
                units::bytes(bytes)
            );
        };
        if self.steady_peak_bytes != self.peak_bytes {
            level(self.steady_peak_bytes, "later runs");
        }
        if let Some(bound) = self.lower_bound_bytes {
            level(bound, "lower bound");
        }
        let _ = write!(text, "<path class=\"line\" d=\"M{x} {}h{width}\"/>", TOP + PLOT);
        for step in ticks(steps as u64, width as u64 / 70).filter(|&step| step > 0) {
            let at = x as f64 + (step as f64 - 0.5) * width as f64 / steps as f64;
            let y = TOP + PLOT + LINE - 4;
            let _ = write!(text, "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{step}</text>");
        }
        let (middle, y) = (x + width / 2, TOP + PLOT + 2 * LINE);
        let _ =
            write!(text, "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">step of execution</text>");
        text
    }
}

/// What the colours mean, below a place.
fn legend(y: usize) -> String {
    let mut text = String::new();
    let meanings = COLOURS.iter().filter(|(.., meaning)| !meaning.is_empty());
    for (i, (class, .., meaning)) in meanings.enumerate() {
        let (x, y) = (LEFT + i % 4 * 225, y + i / 4 * LINE);
        let _ = write!(
            text,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" rx=\"2\"/><text x=\"{}\" y=\"{}\">{meaning}</text>",
            x + 18,
            y + 10
        );
    }
    text
}

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#3d4754}.head{font-weight:600;font-size:14px}\
.page{fill:#fff}.grid{stroke:#e3e7ec}.line{stroke:#8a93a0}.level{stroke:#5b6673;stroke-dasharray:5 4}\
.peak{stroke:#16202b}.tip{fill:#16202b}[data-b] path{stroke:#fff;stroke-width:.6;vector-effect:non-scaling-stroke}\
.dense path{stroke:none!important}@media (prefers-color-scheme:dark){text{fill:#c3ccd6}.page{fill:#12171d}\
.grid{stroke:#2a323c}.level{stroke:#9aa5b1}.peak{stroke:#fff}.tip{fill:#fff}[data-b] path{stroke:#12171d}}";

/// At most so many characters, safe between tags.
fn shorten(text: &str, most: usize) -> String {
    let shown: String = match text.chars().count() > most {
        true => text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect(),
        false => text.to_string(),
    };
    escape(&shown)
}
