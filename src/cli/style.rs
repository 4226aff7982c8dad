//! Text on its way to a terminal, which obeys some characters. Names come from files, and files from anybody: at the
//! end, here, all such characters are escaped. So that styles can be told from them until then, they travel as marks.

use std::fmt;

/// How a part of a text looks: `{STYLE}` begins it, `{STYLE:#}` ends it.
#[derive(Clone, Copy)]
pub struct Style {
    /// A character that Unicode sets aside for use within a program.
    mark: char,
    code: &'static str,
}

pub const HEAD: Style = Style { mark: '\u{fdd0}', code: "\x1b[1m" };
pub const GOOD: Style = Style { mark: '\u{fdd1}', code: "\x1b[32m" };
pub const BAD: Style = Style { mark: '\u{fdd2}', code: "\x1b[31m" };
pub const DOUBT: Style = Style { mark: '\u{fdd3}', code: "\x1b[33m" };
pub const ERROR: Style = Style { mark: '\u{fdd4}', code: "\x1b[1;31m" };
const END: Style = Style { mark: '\u{fdd5}', code: "\x1b[0m" };

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let style = if f.alternate() { END } else { *self };
        write!(f, "{}", style.mark)
    }
}

/// The text as a terminal may have it: styles as it knows them, and all else that would control it escaped, as
/// `\u{1b}`.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let style = [HEAD, GOOD, BAD, DOUBT, ERROR, END].into_iter().find(|style| style.mark == c);
        match (c, style) {
            (_, Some(style)) => shown += style.code,
            ('\n' | '\t', _) => shown.push(c),
            (c, _) if c.is_control() || changes_direction(c) => shown.extend(c.escape_unicode()),
            (c, _) => shown.push(c),
        }
    }
    shown
}

/// A value in JSON that a terminal may have, too: what would control it is escaped, as `\u009b`.
///
/// # Errors
/// The value cannot be written in JSON.
pub fn json(value: &impl serde::Serialize) -> serde_json::Result<String> {
    let mut shown = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        match c {
            // JSON itself has no others; they are from within strings.
            c if c != '\n' && c.is_control() || changes_direction(c) => {
                shown += &format!("\\u{:04x}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Ok(shown + "\n")
}

/// Makes what follows appear in another order.
fn changes_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_reach_the_terminal_and_nothing_else_that_it_obeys() {
        let text = format!("{BAD}bad{BAD:#} \x1b[2Jname\x07\u{9b}\u{202e}\r\n");
        assert_eq!(shown(&text), "\x1b[31mbad\x1b[0m \\u{1b}[2Jname\\u{7}\\u{9b}\\u{202e}\\u{d}\n");
    }

    #[test]
    fn json_controls_no_terminal_and_says_the_same() {
        let names = ["\x1b[2J", "\u{7f}\u{9b}\u{202e}", "\u{e9}\n\t"];
        let text = json(&names).unwrap();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control() && !changes_direction(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), names);
    }
}
