//! The report of one optimization as a page: one file that needs no other and no network.
//!
//! The page is that of the memory timeline (`memory_report`), with what was done and found before and after it.

mod layout;
mod sites;

use std::fmt::Write as _;

use dmopt_ir::Graph;

use crate::memory_report::{MemoryReport, Page, escape};
use crate::report::{Report, Validation, ValidationStatus};
use crate::units::{bytes, count, plural};

/// Mixing sites beyond this are listed without pictures.
const PICTURES: usize = 100;

/// What the page is about.
#[derive(Clone, Copy)]
pub struct Content<'a> {
    /// What was done and found.
    pub report: &'a Report,
    /// The graph of the original, with inferred types.
    pub before: &'a Graph,
    /// The graph of the result, with inferred types.
    pub after: &'a Graph,
    /// The memory of both, the result as the [other](MemoryReport::other), or why it is not known.
    pub memory: Result<&'a MemoryReport, &'a str>,
}

impl Content<'_> {
    /// The page.
    pub fn html(&self) -> String {
        let report = self.report;
        let path = report.input.path.as_deref().unwrap_or("model");
        let (mut before, mut after) = (String::new(), String::new());
        self.summary(&mut before);
        before.push_str("<h2 class=\"part\">Memory, step by step</h2>");
        if let Err(reason) = self.memory {
            let _ = write!(before, "<p class=\"lede\">Not known: {}</p>", escape(reason));
        }
        self.sites(&mut after);
        self.passes(&mut after);
        if !report.notes.is_empty() {
            let notes: String =
                report.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
            let _ = write!(
                after,
                "<h2 class=\"part\">Notes</h2><section class=\"card\"><ul class=\"plain\">{notes}</ul></section>"
            );
        }
        let page = Page {
            title: format!("dmopt: {path}"),
            heading: escape(path),
            before,
            after,
            style: STYLE.to_string(),
        };
        page.render(self.memory.ok())
    }

    fn summary(&self, text: &mut String) {
        let report = self.report;
        let (before, after, peak) = (&report.input, &report.output, &report.peak);
        let rewritten = report.mixing_sites.iter().filter(|site| site.rewritten).count();
        let (word, class) = status(report.validation.status);
        let _ = write!(
            text,
            "<p class=\"lede\">{} <span class=\"verdict {class}\">{word}</span></p><section class=\"card\"><dl class=\"figures\">",
            match &after.path {
                Some(path) => format!("Optimized into {}.", escape(path)),
                None => "The result was not kept.".to_string(),
            }
        );
        let mut figure = |name: &str, value: String, remark: String, main: bool| {
            let class = if main { " class=\"main\"" } else { "" };
            let _ = write!(
                text,
                "<div{class}><dt>{name}</dt><dd>{value}<small>{}</small></dd></div>",
                escape(&remark)
            );
        };
        let unknown = || "unknown".to_string();
        let predicted = &peak.predicted;
        figure(
            "predicted peak",
            predicted.after_bytes.map_or_else(unknown, bytes),
            match (predicted.before_bytes, predicted.after_bytes, &predicted.reason) {
                (Some(was), Some(is), _) => format!("{} {}", change(was, is), bytes(was)),
                (.., reason) => reason.clone().unwrap_or_default(),
            },
            true,
        );
        figure(
            "measured peak",
            peak.measured.as_ref().map_or_else(|| "not measured".to_string(), |m| bytes(m.after_bytes)),
            match &peak.measured {
                Some(m) => format!(
                    "{} {}, {}, {} session",
                    change(m.before_bytes, m.after_bytes),
                    bytes(m.before_bytes),
                    m.runtime,
                    m.session
                ),
                None => peak.measured_reason.clone().unwrap_or_default(),
            },
            true,
        );
        if let Some(bound) = report.main_schedule().and_then(|schedule| schedule.lower_bound_bytes) {
            figure("no order below", bytes(bound), "proven, for the result's operators".into(), false);
        }
        figure(
            "mixing sites",
            format!("{rewritten} of {}", report.mixing_sites.len()),
            "rewritten".into(),
            false,
        );
        figure("operators", after.nodes.to_string(), format!("before: {}", before.nodes), false);
        figure(
            "weights",
            bytes(after.initializer_bytes),
            format!("before: {}", bytes(before.initializer_bytes)),
            false,
        );
        figure("parameters", count(after.parameters), format!("before: {}", count(before.parameters)), false);
        text.push_str("</dl><h3>Validation</h3><ul class=\"plain\">");
        report.verdicts().iter().for_each(|found| _ = write!(text, "<li>{}</li>", verdict(found)));
        text.push_str("</ul></section>");
    }

    fn sites(&self, text: &mut String) {
        let sites = &self.report.mixing_sites;
        let _ =
            write!(text, "<h2 class=\"part\">Mixing sites ({})</h2><section class=\"card\">", sites.len());
        if sites.is_empty() {
            text.push_str("<p class=\"soft\">There are none.</p>");
        } else {
            text.push_str(
                "<p class=\"soft\"><i class=\"key gone\"></i> only before <i class=\"key new\"></i> only after \
                 <i class=\"key same\"></i> in both <i class=\"key from\"></i> where it comes from</p>",
            );
        }
        let names: Vec<&str> = sites.iter().take(PICTURES).map(|site| site.output.as_str()).collect();
        let pictures = sites::pictures(self.before, self.after, &names);
        for (i, site) in sites.iter().enumerate() {
            let open = if i == 0 { " open" } else { "" };
            let head = format!(
                "<b>{}</b>, {}, {}",
                escape(&site.form),
                plural(site.terms, "term"),
                escape(&site.fate_and_form())
            );
            let name = escape(&site.output);
            match pictures.get(&site.output) {
                Some([before, after]) => {
                    let _ = write!(
                        text,
                        "<details class=\"site\"{open}><summary>{head} <small>{name}</small></summary><div class=\"pair\">\
                         <div><h4>before</h4><div class=\"scroll\">{before}</div></div>\
                         <div><h4>after</h4><div class=\"scroll\">{after}</div></div></div></details>"
                    );
                }
                None => _ = write!(text, "<p class=\"site\">{head} <small>{name}</small></p>"),
            }
        }
        text.push_str("</section>");
    }

    fn passes(&self, text: &mut String) {
        text.push_str(
            "<h2 class=\"part\">Passes</h2><section class=\"card\"><table class=\"passes\"><thead><tr><th>pass</th>\
             <th>may change results</th><th class=\"n\">rewrites</th><th class=\"n\">refused</th></tr></thead><tbody>",
        );
        for pass in &self.report.passes {
            let quiet = if pass.rewrites == 0 && pass.refused.is_empty() { " class=\"soft\"" } else { "" };
            let _ = write!(
                text,
                "<tr{quiet}><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escape(&pass.name),
                escape(&pass.safety),
                pass.rewrites,
                pass.refused.len()
            );
        }
        text.push_str("</tbody></table>");
        for pass in self.report.passes.iter().filter(|pass| !pass.refused.is_empty()) {
            let refused: String = pass
                .refused
                .iter()
                .map(|r| format!("<li>{}: {}</li>", escape(&r.node), escape(&r.reason)))
                .collect();
            let _ = write!(
                text,
                "<details><summary>left alone by {} ({})</summary><ul class=\"plain\">{refused}</ul></details>",
                escape(&pass.name),
                pass.refused.len()
            );
        }
        text.push_str("</section>");
    }
}

fn status(status: ValidationStatus) -> (&'static str, &'static str) {
    match status {
        ValidationStatus::Passed => ("outputs are the same", "good"),
        ValidationStatus::Failed => ("outputs differ", "bad"),
        ValidationStatus::Skipped => ("not validated", "doubt"),
    }
}

/// What a runtime found, as markup.
fn verdict(found: &Validation) -> String {
    let (_, class) = status(found.status);
    let word = match found.status {
        ValidationStatus::Passed => "passed",
        ValidationStatus::Failed => "failed",
        ValidationStatus::Skipped => "skipped",
    };
    let mut text = format!("<span class=\"verdict {class}\">{word}</span>");
    if let Some(runtime) = &found.runtime {
        let _ = write!(text, " by {}", escape(runtime));
    }
    if let (Some(abs), Some(rel), Some(tolerance)) = (found.max_abs, found.max_rel, found.tolerance) {
        let bits = if found.bit_identical == Some(true) { "bit-identical, " } else { "" };
        let runs = plural(found.runs.len(), "run");
        let _ = write!(
            text,
            ": {bits}max abs {abs:.2e}, max rel {rel:.2e} (tolerance {:.2e}), {runs}",
            tolerance.rel
        );
    }
    if let Some(reason) = &found.reason {
        let _ = write!(text, "; {}", escape(reason));
    }
    text
}

/// `-20.3 % of`.
fn change(was: u64, is: u64) -> String {
    match was {
        0 => "of".to_string(),
        _ => format!("{:+.1} % of", (is as f64 / was as f64 - 1.0) * 100.0),
    }
}

const STYLE: &str = "
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px clamp(10px, 1.6vw, 20px); min-width: 0; }
h2.part { margin: 28px 0 10px; }
h4 { margin: 8px 0 4px; font-size: .8rem; font-weight: 600; color: var(--soft); }
.plain { margin: 0; padding: 0; list-style: none; font-size: .9rem; overflow-wrap: anywhere; }
.plain li { padding: 2px 0; }
:root { --good: #1f7a4d; --bad: #c0352b; --doubt: #8a5a00; --gone-fill: #fdecea; --new-fill: #e6f5ec; }
@media (prefers-color-scheme: dark) { :root { --good: #5cc08d; --bad: #ff8a80; --doubt: #e6b450; --gone-fill: #3a2222; --new-fill: #1b3327; } }
.verdict { font-weight: 600; }
.verdict.good { color: var(--good); } .verdict.bad { color: var(--bad); } .verdict.doubt { color: var(--doubt); }
summary { cursor: pointer; padding: 7px 0; font-size: .92rem; overflow-wrap: anywhere; }
summary small, p.site small { color: var(--soft); margin-left: 4px; }
.site { border-top: 1px solid var(--line); margin: 0; }
p.site { padding: 7px 0; font-size: .92rem; overflow-wrap: anywhere; }
.pair { display: grid; gap: 6px 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); padding-bottom: 12px; }
.pair > div { min-width: 0; }
.scroll { overflow-x: auto; }
.graph { display: block; width: 100%; height: auto; }
.graph .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; }
.graph rect { fill: var(--shade); stroke: var(--soft); stroke-width: 1; }
.graph text { fill: var(--ink); font-size: 12.5px; text-anchor: middle; }
.graph text.ty { fill: var(--soft); font-size: 10.5px; }
.graph .gone rect { fill: var(--gone-fill); stroke: var(--bad); }
.graph .new rect { fill: var(--new-fill); stroke: var(--good); }
.graph .from rect, .graph .more rect { fill: var(--card); stroke-dasharray: 3 3; }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; border: 1px solid var(--soft); background: var(--shade); margin: 0 3px 0 10px; vertical-align: -1px; }
.key:first-child { margin-left: 0; }
.key.gone { background: var(--gone-fill); border-color: var(--bad); } .key.new { background: var(--new-fill); border-color: var(--good); }
.key.from { background: var(--card); border-style: dashed; }
.passes td { overflow-wrap: anywhere; }
";
