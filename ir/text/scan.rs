//! Characters to names, numbers and strings; and numbers to the bytes of elements.

use half::{bf16, f16};

use super::parse::{Parser, Result};
use super::{TextError, special_float};
use crate::DType;

/// A number or string as written.
pub(super) enum Literal<'t> {
    Int(&'t str),
    Float(&'t str),
    /// inf or nan.
    Special(f64),
    Bits(u64),
    String(Vec<u8>),
}

impl<'t> Parser<'t, '_> {
    /// Items separated by commas, up to and with `close`.
    pub(super) fn items(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        while !self.eat(close) {
            item(self)?;
            if !self.eat(',') {
                return self.expect(close);
            }
        }
        Ok(())
    }

    pub(super) fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    pub(super) fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// The place of the next token.
    pub(super) fn here(&mut self) -> usize {
        self.skip();
        self.at
    }

    pub(super) fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    pub(super) fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    pub(super) fn expect(&mut self, wanted: char) -> Result<()> {
        if self.eat(wanted) {
            return Ok(());
        }
        let found = self.found();
        self.fail(format!("expected '{wanted}', found {found}"))
    }

    pub(super) fn found(&mut self) -> String {
        self.peek().map_or("the end of the text".to_string(), |c| format!("'{c}'"))
    }

    /// The identifier that is next, or nothing.
    pub(super) fn peek_word(&mut self) -> &'t str {
        self.skip();
        let rest = self.rest();
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            return "";
        }
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        &rest[..end]
    }

    pub(super) fn identifier(&mut self) -> Result<&'t str> {
        let word = self.peek_word();
        if word.is_empty() {
            let found = self.found();
            return self.fail(format!("expected a word, found {found}"));
        }
        self.at += word.len();
        Ok(word)
    }

    pub(super) fn optional_name(&mut self) -> Result<Option<String>> {
        if self.peek() == Some('"') {
            return self.string().map(Some);
        }
        let word = self.peek_word();
        self.at += word.len();
        Ok(if word.is_empty() { None } else { Some(word.to_string()) })
    }

    pub(super) fn name(&mut self) -> Result<String> {
        match self.optional_name()? {
            Some(name) => Ok(name),
            None => {
                let found = self.found();
                self.fail(format!("expected a name, found {found}"))
            }
        }
    }

    pub(super) fn string(&mut self) -> Result<String> {
        let at = self.here();
        match String::from_utf8(self.string_bytes()?) {
            Ok(string) => Ok(string),
            Err(_) => self.fail_at(at, "not UTF-8"),
        }
    }

    pub(super) fn string_bytes(&mut self) -> Result<Vec<u8>> {
        let start = self.here();
        if !self.eat('"') {
            let found = self.found();
            return self.fail(format!("expected a string, found {found}"));
        }
        let mut bytes = Vec::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            let literal = match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(bytes);
                }
                '\\' => match chars.next() {
                    Some((at, 'x')) => {
                        let digits = self.rest().get(at + 1..at + 3).unwrap_or("");
                        match u8::from_str_radix(digits, 16) {
                            Ok(byte) if !digits.starts_with('+') => bytes.push(byte),
                            _ => return self.fail_at(self.at + at, "expected two digits after '\\x'"),
                        }
                        chars.nth(1);
                        continue;
                    }
                    Some((_, escaped)) => escaped,
                    None => break,
                },
                c => c,
            };
            bytes.extend(literal.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.fail_at(start, "this string does not end")
    }

    pub(super) fn int(&mut self) -> Result<i64> {
        let at = self.here();
        if let Literal::Int(digits) = self.literal()?
            && let Ok(value) = digits.parse()
        {
            return Ok(value);
        }
        self.fail_at(at, "expected an integer")
    }

    pub(super) fn literal(&mut self) -> Result<Literal<'t>> {
        if self.peek() == Some('"') {
            return self.string_bytes().map(Literal::String);
        }
        let rest = self.rest();
        let negative = rest.starts_with('-');
        let digits = &rest[negative as usize..];
        let word_end = digits.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(digits.len());
        let word = &digits[..word_end];
        if let Some(value) = special_float(word) {
            self.at += negative as usize + word.len();
            return Ok(Literal::Special(if negative { -value } else { value }));
        }
        if let Some(hex) = word.strip_prefix("0x")
            && !negative
            && let Ok(bits) = u64::from_str_radix(hex, 16)
        {
            self.at += word.len();
            return Ok(Literal::Bits(bits));
        }
        let mut is_float = false;
        let mut before = '0';
        let end = digits.find(|c: char| {
            let exponent = matches!(c, 'e' | 'E') && !matches!(before, 'e' | 'E');
            let sign = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
            let part = c.is_ascii_digit() || c == '.' || exponent || sign;
            is_float |= part && !c.is_ascii_digit();
            before = c;
            !part
        });
        let number = &rest[..negative as usize + end.unwrap_or(digits.len())];
        if number.parse::<f64>().is_err() {
            let found = self.found();
            return self.fail(format!("expected a number or a string, found {found}"));
        }
        self.at += number.len();
        Ok(if is_float { Literal::Float(number) } else { Literal::Int(number) })
    }

    pub(super) fn fail<T>(&self, reason: impl Into<String>) -> Result<T> {
        self.fail_at(self.at, reason)
    }

    pub(super) fn fail_at<T>(&self, at: usize, reason: impl Into<String>) -> Result<T> {
        Err(error_at(self.text, at, reason.into()))
    }
}

pub(super) fn error_at(text: &str, at: usize, reason: String) -> TextError {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    TextError { line, column: before[line_start..].chars().count() + 1, reason }
}

/// To f32, a NaN keeping its sign.
pub(super) fn narrow(special: f64) -> f32 {
    if special.is_nan() {
        f32::NAN.copysign(if special.is_sign_negative() { -1.0 } else { 1.0 })
    } else {
        special as f32
    }
}

/// Appends one element; `None` when the literal is no value of the type.
pub(super) fn encode(dtype: DType, literal: &Literal<'_>, out: &mut Vec<u8>) -> Option<()> {
    use DType::*;
    let integer = || match literal {
        Literal::Int(digits) => digits.parse::<i128>().ok(),
        _ => None,
    };
    let pattern = || match literal {
        Literal::Bits(bits) => Some(*bits),
        _ => u64::try_from(integer()?).ok(),
    };
    let real = || match literal {
        Literal::Int(digits) | Literal::Float(digits) => digits.parse::<f64>().ok(),
        Literal::Special(value) => Some(*value),
        _ => None,
    };
    match (dtype, literal) {
        (F32 | Complex64, Literal::Bits(bits)) => out.extend(u32::try_from(*bits).ok()?.to_le_bytes()),
        (F32 | Complex64, Literal::Special(value)) => out.extend(narrow(*value).to_le_bytes()),
        // Parsed as f32 at once: by way of f64 it would be rounded twice.
        (F32 | Complex64, Literal::Int(digits) | Literal::Float(digits)) => {
            out.extend(digits.parse::<f32>().ok()?.to_le_bytes());
        }
        (F64 | Complex128, Literal::Bits(bits)) => out.extend(bits.to_le_bytes()),
        (F64 | Complex128, _) => out.extend(real()?.to_le_bytes()),
        (F16, Literal::Float(_) | Literal::Special(_)) => out.extend(f16::from_f64(real()?).to_le_bytes()),
        (BF16, Literal::Float(_) | Literal::Special(_)) => out.extend(bf16::from_f64(real()?).to_le_bytes()),
        (F16 | BF16, _) => out.extend(u16::try_from(pattern()?).ok()?.to_le_bytes()),
        (F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0, _) => out.push(u8::try_from(pattern()?).ok()?),
        (F4E2M1, _) => out.push(u8::try_from(pattern()?).ok().filter(|&p| p < 16)?),
        (U64, _) => out.extend(u64::try_from(integer()?).ok()?.to_le_bytes()),
        (I64, _) => out.extend(i64::try_from(integer()?).ok()?.to_le_bytes()),
        (U32, _) => out.extend(u32::try_from(integer()?).ok()?.to_le_bytes()),
        (I32, _) => out.extend(i32::try_from(integer()?).ok()?.to_le_bytes()),
        (U16, _) => out.extend(u16::try_from(integer()?).ok()?.to_le_bytes()),
        (I16, _) => out.extend(i16::try_from(integer()?).ok()?.to_le_bytes()),
        (U8, _) => out.push(u8::try_from(integer()?).ok()?),
        (I8, _) => out.push(i8::try_from(integer()?).ok()? as u8),
        (Bool, _) => out.push(u8::try_from(integer()?).ok().filter(|&p| p < 2)?),
        (U4, _) => out.push(u8::try_from(integer()?).ok().filter(|&p| p < 16)?),
        (I4, _) => out.push(i8::try_from(integer()?).ok().filter(|p| (-8..8).contains(p))? as u8),
        (U2, _) => out.push(u8::try_from(integer()?).ok().filter(|&p| p < 4)?),
        (I2, _) => out.push(i8::try_from(integer()?).ok().filter(|p| (-2..2).contains(p))? as u8),
        (String | F6E2M3 | F6E3M2, _) | (_, Literal::String(_)) => return None,
    }
    Some(())
}
