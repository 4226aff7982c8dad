//! Numbers for people.

/// Bytes with a decimal unit and three digits: `14.5 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"])
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
    fn three_digits_and_a_unit() {
        let shown = [0, 999, 1000, 9994, 9999, 14_483_456, 999_499, 999_500, u64::MAX].map(bytes);
        let expected =
            ["0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "14.5 MB", "999 kB", "1.00 MB", "18446744 TB"];
        assert_eq!(shown, expected);
        assert_eq!([count(412), count(11_200_000)], ["412", "11.2 M"]);
    }
}
