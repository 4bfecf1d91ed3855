//! Sizes in bytes, as people write them.

/// Units by ending, larger ones first where one ends in another.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Reads `200GiB`, `1.5 GB` or a number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit = UNITS.iter().find(|(name, _)| text.ends_with(name));
    let (number, unit) = match unit {
        Some((name, unit)) => (&text[..text.len() - name.len()], *unit),
        None => (text, 1),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| "write a size like 200GiB".to_owned())?;
    let bytes = number * unit as f64;
    if bytes >= 1.0 && bytes < u64::MAX as f64 {
        return Ok(bytes as u64);
    }
    Err("the size is out of range: write one like 200GiB".to_owned())
}

/// A number of bytes for people.
pub fn shown(bytes: u64) -> String {
    let unit = UNITS[..4].iter().rev().find(|(_, unit)| bytes >= *unit);
    match unit {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, expected) in [
            ("200GiB", 200 << 30),
            ("1.5 GB", 1_500_000_000),
            ("7", 7),
            ("10B", 10),
            ("3 MiB", 3 << 20),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "GiB", "-1GiB", "0", "inf", "NaN", "1e30TiB", "1 gb"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (shown(1023), shown(26 << 30)),
            ("1023 B".into(), "26.0 GiB".into())
        );
    }
}
