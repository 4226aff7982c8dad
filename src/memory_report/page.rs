//! The timeline as a page: one file that needs no other and no network.
//!
//! The areas are drawn here; what can be asked of them is answered by the script of the page from the report, which is
//! in the page as JSON.

use super::MemoryReport;
use super::picture::{HEIGHT, areas, colours, escape, scale};

/// The page, with `%%NAME%%` where something is put in.
const PAGE: &str = include_str!("timeline.html");

impl MemoryReport {
    /// The timeline as an HTML page: what is in memory at every step, and why; two models side by side at one scale.
    pub fn html(&self) -> String {
        let scale = scale(self);
        let plots: String = self.models().map(|model| model.section(scale)).collect();
        // Nothing in the data can end the script element that they are in.
        let data = serde_json::to_string(self).unwrap_or_default().replace('<', "\\u003c");
        let names: Vec<&str> = self.models().map(|model| model.path.as_str()).collect();
        let title = escape(&names.join(" and "));
        let mut page = String::with_capacity(PAGE.len() + plots.len() + data.len() + 1000);
        let mut parts = PAGE.split("%%");
        page.push_str(parts.next().unwrap_or_default());
        while let (Some(name), Some(text)) = (parts.next(), parts.next()) {
            match name {
                "TITLE" => page.push_str(&title),
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
