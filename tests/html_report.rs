//! The report of an optimization as a page.

use std::fs;

use crate::cli::{Desk, EXPORT};
use crate::timeline::{Browser, attribute, hostile};

#[test]
fn the_page_shows_figures_sites_and_passes_in_a_browser() {
    let Some(browser) = Browser::find("the report in a browser") else { return };
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx --report r.json --html r.html --no-validate").succeeds();
    let report = desk.report("r.json");
    let document = browser.open(&desk, "r.html");
    let peaks = [report.peak.predicted.before_bytes.unwrap(), report.peak.predicted.after_bytes.unwrap()];
    for (i, peak) in peaks.into_iter().enumerate() {
        assert_eq!(attribute(&document, "flag", "data-bytes", i), peak.to_string());
    }
    assert!(document.contains("20 of 20") && document.contains("not validated"));
    assert_eq!(document.matches("<details class=\"site\"").count(), 20);
    assert_eq!(document.matches("<svg class=\"graph\"").count(), 40);
    for pass in &report.passes {
        assert!(document.contains(&format!("<td>{}</td>", pass.name)), "{}", pass.name);
    }
    // Nothing is wider than a phone but what scrolls by itself.
    let probe = "<script>document.title = document.documentElement.scrollWidth <= window.innerWidth ? 'fits' : 'wide';</script>";
    let page =
        fs::read_to_string(desk.path("r.html")).unwrap().replace("</body>", &format!("{probe}</body>"));
    fs::write(desk.path("r.html"), page).unwrap();
    assert!(browser.open_at(&desk, "r.html", (500, 900)).contains("<title>fits</title>"));
}

#[test]
fn the_page_needs_nothing_from_outside_and_names_cannot_break_out() {
    let desk = Desk::new();
    hostile(&desk);
    desk.run("optimize m.onnx o.onnx --html r.html --no-validate").succeeds();
    let page = fs::read_to_string(desk.path("r.html")).unwrap();
    assert_eq!(page.matches("</script>").count(), 2, "of the data and of the script");
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_model_of_unknown_sizes_has_a_page_without_a_timeline() {
    let desk = Desk::with_text(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[N,4] x) => (float[N,4] y) { a = Exp(x) y = Neg(a) }",
    );
    desk.run("optimize m.onnx --html r.html --no-validate").succeeds();
    let page = fs::read_to_string(desk.path("r.html")).unwrap();
    assert!(page.contains("Not known: ") && page.contains("--dim N=N"), "{page}");
    if let Some(browser) = Browser::find("a report without a timeline in a browser") {
        assert!(browser.open(&desk, "r.html").contains("There are none."));
    }
}

#[test]
#[cfg(feature = "tract")]
fn a_rejected_result_has_a_page_that_says_so() {
    let desk = Desk::with_text(crate::cli::CANCELLING);
    assert_eq!(desk.run("optimize m.onnx --html r.html").code(), 3);
    let page = fs::read_to_string(desk.path("r.html")).unwrap();
    assert!(page.contains("outputs differ") && page.contains("m.opt.rejected.onnx"), "{page}");
}

#[test]
fn nothing_that_is_no_page_is_overwritten() {
    let desk = Desk::with(EXPORT);
    fs::write(desk.path("weights.bin"), [1, 2, 3]).unwrap();
    desk.refuses("optimize m.onnx --html m.onnx", 1, &["would overwrite the input"]);
    desk.refuses("optimize m.onnx --html weights.bin", 1, &["overwrite a file that is no report"]);
    desk.refuses("optimize m.onnx --html r --report r", 1, &["page and report are one file"]);
}
