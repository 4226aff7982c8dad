//! The timeline as a page and as a picture.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::process::Command;

use dmopt::MemoryReport;

use super::cli::{Desk, EXPORT, bytes, proto};

/// A browser without a window. `DMOPT_BROWSER` names a Chromium; without one, what needs it is skipped.
pub struct Browser(OsString);

impl Browser {
    pub fn find(what: &str) -> Option<Browser> {
        let found = std::env::var_os("DMOPT_BROWSER").map(Browser);
        if found.is_none() {
            // Around the capture of the test harness: what is skipped has to show.
            let _ = writeln!(std::io::stderr(), "skipped: {what} (DMOPT_BROWSER names no browser)");
        }
        found
    }

    /// The document after its scripts ran.
    pub fn open(&self, desk: &Desk, page: &str) -> String {
        self.open_at(desk, page, (1280, 900))
    }

    /// The same in a window of this size.
    pub fn open_at(&self, desk: &Desk, page: &str, (width, height): (u32, u32)) -> String {
        let mut command = Command::new(&self.0);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--disable-dev-shm-usage", "--virtual-time-budget=2000", "--dump-dom"]);
        command.arg(format!("--window-size={width},{height}"));
        command.arg(format!("--user-data-dir={}", desk.path("profile").display()));
        let done = command.arg(format!("file://{}", desk.path(page).display())).output().unwrap();
        let _ = fs::remove_dir_all(desk.path("profile"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

/// The attribute of the first element of this class, after `skip` others.
pub fn attribute<'d>(document: &'d str, class: &str, name: &str, skip: usize) -> &'d str {
    let start = format!("class=\"{class}\"");
    let element = document.split(&start).nth(skip + 1).unwrap_or_else(|| panic!("no {start}"));
    let element = element.split('>').next().unwrap();
    let (_, rest) =
        element.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("no {name} in {element}"));
    rest.split('"').next().unwrap()
}

fn report(desk: &Desk, arguments: &str) -> MemoryReport {
    serde_json::from_str(&desk.run(&format!("memory {arguments} --json")).succeeds().stdout()).unwrap()
}

#[test]
fn the_page_shows_the_peak_of_both_models_in_a_browser() {
    let Some(browser) = Browser::find("the timeline in a browser") else { return };
    let desk = Desk::with(EXPORT);
    desk.run("optimize m.onnx o.onnx --no-validate -q").succeeds();
    let report = report(&desk, "m.onnx o.onnx --html t.html");
    let document = browser.open(&desk, "t.html");
    for (i, model) in report.models().enumerate() {
        let at = model.at.as_ref().unwrap();
        assert_eq!(attribute(&document, "flag", "data-bytes", i), model.peak_bytes.to_string());
        assert_eq!(attribute(&document, "flag", "data-step", i), at.step.to_string());
        // The script has added up the rows of the table.
        let table = document.split("<tfoot>").nth(i + 1).unwrap().split("</tfoot>").next().unwrap();
        assert!(table.contains(&format!("data-bytes=\"{}\"", model.peak_bytes)), "{table}");
        assert!(table.contains(&format!("in all, {} tensors, the peak", model.live.len())), "{table}");
        assert!(document.contains(&format!("Step {} of {}: ", at.step + 1, model.order.len())));
    }
}

#[test]
fn the_page_answers_for_every_step() {
    let Some(browser) = Browser::find("steps of the timeline in a browser") else { return };
    let desk = Desk::with(EXPORT);
    let report = report(&desk, "m.onnx --html t.html");
    let last = report.order.len() - 1;
    // As a person would, by keyboard or finger.
    let act = "<script>const slider = document.querySelector('input');
        slider.value = slider.max; slider.dispatchEvent(new Event('input'));
        document.querySelectorAll('.controls button')[2].click();</script>";
    let page = fs::read_to_string(desk.path("t.html")).unwrap().replace("</body>", &format!("{act}</body>"));
    fs::write(desk.path("t.html"), page).unwrap();
    let document = browser.open(&desk, "t.html");
    assert!(document.contains(&format!("Step {} of {}: {}", last + 1, last + 1, report.order[last].node)));
    let foot = document.split("<tfoot>").nth(1).unwrap().split("</tfoot>").next().unwrap();
    assert!(foot.contains(&format!("data-bytes=\"{}\"", report.order[last].total_bytes())), "{foot}");
    let view: Vec<f64> = document
        .split("viewBox=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .split(' ')
        .map(|n| n.parse().unwrap())
        .collect();
    assert_eq!(view[2], report.order.len() as f64 / 2.0, "half the steps");
    assert!(view[0] + view[2] <= report.order.len() as f64 && view[0] > 0.0, "{view:?}");
}

/// A model whose tensors and operators have names that end elements, attributes and strings.
pub fn hostile(desk: &Desk) {
    let mut model = proto(
        "<ir_version: 10, opset_import: [\"\": 21]> g (float[64] x) => (float[64] y) { a = Exp(x) b = Tanh(a) y = Add(a, b) }",
    );
    let name = "</script></svg><script>document.title='broken'</script>\"'&%%DATA%%";
    let graph = model.graph.as_mut().unwrap();
    for node in &mut graph.node {
        node.name = Some(name.to_string());
        for value in node.input.iter_mut().chain(&mut node.output).filter(|value| *value == "a") {
            *value = name.to_string();
        }
    }
    fs::write(desk.path("m.onnx"), bytes(model)).unwrap();
}

#[test]
fn names_cannot_break_out() {
    let desk = Desk::new();
    hostile(&desk);
    desk.run("memory m.onnx --html t.html --svg t.svg").succeeds();
    let (page, picture) =
        (fs::read_to_string(desk.path("t.html")).unwrap(), fs::read_to_string(desk.path("t.svg")).unwrap());
    assert_eq!(page.matches("</script>").count(), 2, "of the data and of the script");
    assert_eq!((picture.matches("<script").count(), picture.matches("&lt;script").count() > 0), (0, true));
    if let Some(browser) = Browser::find("hostile names in a browser") {
        let document = browser.open(&desk, "t.html");
        assert!(document.contains("<title>Memory of m.onnx</title>"));
        assert_eq!(attribute(&document, "flag", "data-bytes", 0), "768");
    }
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let desk = Desk::with(EXPORT);
    desk.run("memory m.onnx --html t.html --svg t.svg").succeeds();
    for file in ["t.html", "t.svg"] {
        let text = fs::read_to_string(desk.path(file)).unwrap().replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
            assert!(!text.contains(outside), "{outside} in {file}");
        }
    }
}

/// Every area of the picture is as high as its tensor is large: the top edges reach the peak and nothing is above it.
#[test]
fn the_picture_is_as_high_as_the_peak() {
    let desk = Desk::with(EXPORT);
    let report = report(&desk, "m.onnx --svg t.svg");
    let picture = fs::read_to_string(desk.path("t.svg")).unwrap();
    let scale = report.peak_bytes.max(report.steady_peak_bytes);
    let scale = scale + scale / 20;
    let expected = 1000.0 - report.peak_bytes as f64 / scale as f64 * 1000.0;
    let paths = picture.split(" d=\"M").skip(1).filter(|path| path.contains('Z') && path.contains('H'));
    let points = paths.flat_map(|path| {
        let path = path.split('"').next().unwrap();
        let first = path.split(['H', 'V']).next().unwrap().split(' ').nth(1).unwrap();
        let others = path.split('V').skip(1).map(|part| part.split(['H', 'Z']).next().unwrap());
        std::iter::once(first).chain(others).map(|y| y.parse::<f64>().unwrap()).collect::<Vec<f64>>()
    });
    let top = points.fold(f64::MAX, f64::min);
    assert!((top - expected).abs() < 0.06, "{top} instead of {expected}");
}

#[test]
fn nothing_that_is_no_timeline_is_overwritten() {
    let desk = Desk::with(EXPORT);
    fs::write(desk.path("weights.bin"), [1, 2, 3]).unwrap();
    fs::write(desk.path("t.html"), "<p>older</p>").unwrap();
    for flag in ["--html", "--svg"] {
        desk.refuses(
            &format!("memory m.onnx {flag} m.onnx"),
            1,
            &["m.onnx: the timeline would overwrite the model"],
        );
        desk.refuses(
            &format!("memory m.onnx {flag} weights.bin"),
            1,
            &["weights.bin", "overwrite a file that is none"],
        );
        desk.refuses(&format!("memory m.onnx {flag} missing/t.html"), 1, &["missing/t.html", "No such file"]);
    }
    desk.run("memory m.onnx --html t.html").succeeds();
    assert!(fs::read_to_string(desk.path("t.html")).unwrap().starts_with("<!doctype html>"));
    assert_eq!(desk.files(), ["m.onnx", "t.html", "weights.bin"]);
}
