//! The header of a pass's file: documentation, examples and tests in one text.
//!
//! A header is the run of `//!` lines that opens the file. Blocks fenced as `onnx` hold graphs in the text form:
//! two blocks with a line `->` between them are before and after; a block below a line `refused: REASON` must be
//! left as it is. A line `target: NAME` says what the example below it is optimized for, where that is not `portable`.
//! An initializer without data stands for any: the tests give it seeded values.

use std::ops::Range;

use crate::Target;

/// The examples in a header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Examples {
    /// What the pass does.
    pub rewrites: Vec<Rewrite>,
    /// What it leaves alone.
    pub refusals: Vec<Refusal>,
}

/// A graph before and after the pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewrite {
    /// Before.
    pub before: Block,
    /// After.
    pub after: Block,
    /// What the result is for.
    pub target: Target,
}

/// A graph that the pass must leave alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// The graph.
    pub graph: Block,
    /// What the result would be for.
    pub target: Target,
}

/// A fenced block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its text, without fences and comment marks.
    pub text: String,
    /// Its lines in the file, from 0, without the fences.
    pub lines: Range<usize>,
}

/// Why a header cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// A fence is not closed.
    #[error("line {0}: this block does not end")]
    Open(usize),
    /// A block is neither one of a pair nor refused.
    #[error("line {0}: a block needs '->' and a second one after it, or 'refused: REASON' above it")]
    Alone(usize),
    /// A target that there is not.
    #[error("line {0}: there is no such target")]
    Target(usize),
}

/// The header without its comment marks, as it is shown to people.
pub fn text(source: &str) -> String {
    lines(source).map(|line| format!("{line}\n")).collect()
}

/// The examples in a header.
///
/// # Errors
/// A block that is not closed, or that is no example; the error names the line.
pub fn examples(source: &str) -> Result<Examples, HeaderError> {
    let mut examples = Examples::default();
    let mut refused: Option<String> = None;
    let mut before: Option<Block> = None;
    let mut arrow = false;
    let mut target = Target::default();
    let mut lines = lines(source).enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line == "->" {
            arrow = true;
        } else if let Some(reason) = line.strip_prefix("refused:") {
            refused = Some(reason.trim().to_string());
        } else if let Some(name) = line.strip_prefix("target:") {
            let named = Target::ALL.into_iter().find(|target| target.name() == name.trim());
            target = named.ok_or(HeaderError::Target(number + 1))?;
        } else if line == "```onnx" {
            let mut block = Block { text: String::new(), lines: number + 1..number + 1 };
            loop {
                match lines.next() {
                    Some((_, line)) if line.trim() == "```" => break,
                    Some((_, line)) => block.text += &format!("{line}\n"),
                    None => return Err(HeaderError::Open(number + 1)),
                }
                block.lines.end += 1;
            }
            match (before.take(), refused.take()) {
                (Some(before), None) if arrow => {
                    let target = std::mem::take(&mut target);
                    examples.rewrites.push(Rewrite { before, after: block, target });
                }
                (Some(before), _) => return Err(HeaderError::Alone(before.lines.start)),
                (None, Some(reason)) => {
                    let target = std::mem::take(&mut target);
                    examples.refusals.push(Refusal { reason, graph: block, target });
                }
                (None, None) => before = Some(block),
            }
            arrow = false;
        }
    }
    match before {
        Some(block) => Err(HeaderError::Alone(block.lines.start)),
        None => Ok(examples),
    }
}

/// The file with another text in place of a block.
pub fn replace(source: &str, block: &Block, text: &str) -> String {
    let mut out = String::with_capacity(source.len() + text.len());
    for (number, line) in source.split_inclusive('\n').enumerate() {
        if number == block.lines.start {
            text.lines().for_each(|line| out += &format!("{}\n", format!("//! {line}").trim_end()));
        }
        if !block.lines.contains(&number) {
            out += line;
        }
    }
    out
}

fn lines(source: &str) -> impl Iterator<Item = &str> {
    let comments = source.lines().map_while(|line| line.strip_prefix("//!"));
    comments.map(|line| line.strip_prefix(' ').unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
//! Do something.
//!
//! ```text
//! no example
//! ```
//! ```onnx
//! f (x) => (y) {
//!   y = A(x)
//! }
//! ```
//! ->
//! ```onnx
//! f (x) => (y) {}
//! ```
//!
//! refused: too odd
//! ```onnx
//! g (x) => (y) {}
//! ```

//! ```onnx
fn code() {}
";

    #[test]
    fn examples_are_found_in_the_header_alone() {
        let found = examples(SOURCE).unwrap();
        let [Rewrite { before, after, target }] = found.rewrites.as_slice() else { panic!("{found:?}") };
        assert_eq!((before.text.as_str(), *target), ("f (x) => (y) {\n  y = A(x)\n}\n", Target::Portable));
        assert_eq!((after.text.as_str(), &after.lines), ("f (x) => (y) {}\n", &(12..13)));
        let [Refusal { reason, graph, .. }] = found.refusals.as_slice() else { panic!("{found:?}") };
        assert_eq!((reason.as_str(), graph.text.as_str()), ("too odd", "g (x) => (y) {}\n"));
    }

    #[test]
    fn a_target_is_that_of_the_example_below_it() {
        let source = SOURCE.replacen("//! ```onnx", "//! target: ort-cpu\n//! ```onnx", 1);
        let found = examples(&source).unwrap();
        assert_eq!((found.rewrites[0].target, found.refusals[0].target), (Target::OrtCpu, Target::Portable));
        let unknown = source.replace("ort-cpu", "ort");
        assert_eq!(examples(&unknown), Err(HeaderError::Target(6)));
    }

    #[test]
    fn a_block_can_be_replaced() {
        let found = examples(SOURCE).unwrap();
        let replaced = replace(SOURCE, &found.rewrites[0].after, "new\n\nlines\n");
        assert_eq!(replaced, SOURCE.replace("//! f (x) => (y) {}\n", "//! new\n//!\n//! lines\n"));
    }

    #[test]
    fn the_text_has_no_comment_marks() {
        assert!(text(SOURCE).starts_with("Do something.\n\n```text\nno example\n"));
        assert!(text(SOURCE).ends_with("g (x) => (y) {}\n```\n"));
    }

    #[test]
    fn a_block_without_a_partner_is_an_error() {
        let alone = "//! ```onnx\n//! f\n//! ```\n";
        assert_eq!(examples(alone), Err(HeaderError::Alone(1)));
        let without_arrow = format!("{alone}{alone}");
        assert_eq!(examples(&without_arrow), Err(HeaderError::Alone(1)));
        assert_eq!(examples("//! ```onnx\n//! f\n"), Err(HeaderError::Open(1)));
    }
}
