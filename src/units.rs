//! Numbers for people.

/// Bytes with a decimal unit and three digits: `14.5 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"])
}

/// Bytes from a number with or without a unit: `41943040`, `40 MB`, `1.5GB`, `40 MiB`.
///
/// # Errors
/// What is wrong: a sentence.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 9] = [
        ("", 1.0),
        ("b", 1.0),
        ("kb", 1e3),
        ("mb", 1e6),
        ("gb", 1e9),
        ("tb", 1e12),
        ("kib", 1024.0),
        ("mib", 1048576.0),
        ("gib", 1073741824.0),
    ];
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim().to_ascii_lowercase());
    if unit.is_empty()
        && let Ok(exact) = number.parse()
    {
        return Ok(exact);
    }
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
    match (number.parse::<f64>(), factor) {
        (Ok(number), Some(factor)) if number.is_finite() => Ok((number * factor).round() as u64),
        _ => Err("expected bytes, as in 41943040, '40 MB' or '40 MiB'".to_string()),
    }
}

/// A count with a decimal unit and three digits: `11.2 M`.
pub fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T"]).trim_end().to_string()
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut value = n as f64;
    // 999.5 and more would be printed as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// `1 site`, `2 sites`.
pub fn plural(n: usize, noun: &str) -> String {
    if n == 1 { format!("{n} {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let read = ["41943040", "40 MB", "1.5kB", "40 MiB", " 7 b ", "18446744073709551615"].map(parse_bytes);
        let expected = [41_943_040, 40_000_000, 1500, 41_943_040, 7, u64::MAX].map(Ok);
        assert_eq!(read, expected);
        for wrong in ["", "MB", "4 MX", "-4", "4 4", "1e3"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn three_digits_and_a_unit() {
        let shown = [0, 999, 1000, 9994, 9999, 14_483_456, 999_499, 999_500, u64::MAX].map(bytes);
        let expected =
            ["0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "14.5 MB", "999 kB", "1.00 MB", "18446744 TB"];
        assert_eq!(shown, expected);
        assert_eq!([count(412), count(11_200_000)], ["412", "11.2 M"]);
    }
}
