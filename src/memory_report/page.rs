//! The timeline as a page: one file that needs no other and no network.
//!
//! The areas are drawn here; what can be asked of them is answered by the script of the page from the report, which is
//! in the page as JSON.

use super::MemoryReport;
use super::picture::{HEIGHT, areas, colours, escape, scale};

/// The page, with `%%NAME%%` where something is put in.
const PAGE: &str = include_str!("timeline.html");

/// What a page has beside the timeline; all but the title is markup.
#[derive(Default)]
pub(crate) struct Page {
    /// What the browser calls it.
    pub title: String,
    /// The heading.
    pub heading: String,
    /// What comes before the timeline.
    pub before: String,
    /// What comes after it.
    pub after: String,
    /// Further rules of style.
    pub style: String,
}

impl Page {
    /// The page; without a report it has no timeline.
    pub fn render(&self, report: Option<&MemoryReport>) -> String {
        let scale = report.map_or(1, scale);
        let plots: String =
            report.into_iter().flat_map(|r| r.models()).map(|model| model.section(scale)).collect();
        // Nothing in the data can end the script element that they are in.
        let data = serde_json::to_string(&report).unwrap_or_default().replace('<', "\\u003c");
        let mut page = String::with_capacity(PAGE.len() + plots.len() + data.len() + 1000);
        let mut parts = PAGE.split("%%");
        page.push_str(parts.next().unwrap_or_default());
        while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
            match name {
                "TITLE" => page.push_str(&escape(&self.title)),
                "HEADING" => page.push_str(&self.heading),
                "BEFORE" => page.push_str(&self.before),
                "AFTER" => page.push_str(&self.after),
                "STYLE" => page.push_str(&self.style),
                "SCALE" => page.push_str(&scale.to_string()),
                "COLOURS" => page.push_str(&colours(":root")),
                "PLOTS" => page.push_str(&plots),
                "DATA" => page.push_str(&data),
                other => page.push_str(other),
            }
            page.push_str(text);
        }
        page
    }
}

impl MemoryReport {
    /// The timeline as an HTML page: what is in memory at every step, and why; two models side by side at one scale.
    pub fn html(&self) -> String {
        let names: Vec<&str> = self.models().map(|model| model.path.as_str()).collect();
        let page = Page {
            title: format!("Memory of {}", names.join(" and ")),
            heading: "What is in memory, step by step".to_string(),
            ..Page::default()
        };
        page.render(Some(self))
    }

    fn section(&self, scale: u64) -> String {
        format!(
            "<section class=\"model\"><h2>{}</h2><div class=\"plot\"><svg viewBox=\"0 0 {} {HEIGHT}\" \
             preserveAspectRatio=\"none\" aria-hidden=\"true\">{}</svg></div></section>\n",
            escape(&self.path),
            self.order.len().max(1),
            areas(self, scale, None)
        )
    }
}
