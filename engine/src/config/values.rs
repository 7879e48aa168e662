//! Values as people write them. Errors say what was written and what would have done.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

/// The entries of a comma-separated list; spaces around them, and empty ones, do not count.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// A number in a range.
pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let refusal = || format!("{text:?} is not a number from {} to {}", range.start(), range.end());
    let value = text.parse().map_err(|_not_a_number| refusal())?;
    if range.contains(&value) { Ok(value) } else { Err(refusal()) }
}

/// Ports from the first to the last, or one.
pub(super) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| number::<u16>(text.trim(), 1..=65_535).ok();
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("{text:?} is not a range of ports, as in 30000-32767")),
    }
}

/// A number of bytes, plain or with K, M, G (of 1024; a following i or B is allowed).
///
/// # Errors
///
/// What was written, if it is not that.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refusal = || format!("{text:?} is not a number of bytes, as in 65536, 64K or 16M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KI" | "KB" | "KIB" => 1 << 10,
        "M" | "MI" | "MB" | "MIB" => 1 << 20,
        "G" | "GI" | "GB" | "GIB" => 1u64 << 30,
        _ => return Err(refusal()),
    };
    let number: u64 = digits.trim().parse().map_err(|_not_a_number| refusal())?;
    number.checked_mul(unit).ok_or_else(refusal)
}

/// A list of prefixes; an address alone is one of full length.
pub(super) fn prefixes(text: &str) -> Result<Vec<IpNet>, String> {
    list(text).map(prefix).collect()
}

/// One prefix, or an address.
pub(super) fn prefix(entry: &str) -> Result<IpNet, String> {
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let net: IpNet = entry.parse().map_err(|_not_a_prefix| {
        format!("{entry:?} is not a prefix, as in 10.0.0.0/16 or fd00::/56")
    })?;
    if net.trunc() != net {
        return Err(format!("{entry:?} has bits behind its prefix length: {}?", net.trunc()));
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, bytes) in
            [("0", 0), ("65536", 65_536), ("64K", 65_536), ("2 MiB", 2 << 20), ("1g", 1 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "1.5M", "1T", "99999999999999999999", "99999999999G"] {
            parse_bytes(text).unwrap_err();
        }
    }

    #[test]
    fn a_range_of_ports_has_two_ends_or_is_one_port() {
        assert_eq!(port_range("30000-32767"), Ok(30_000..=32_767));
        assert_eq!(port_range(" 80 - 90 "), Ok(80..=90));
        assert_eq!(port_range("443"), Ok(443..=443));
        for text in ["", "-", "0-9", "9-8", "1-65536", "1-2-3", "a-b"] {
            port_range(text).unwrap_err();
        }
    }

    #[test]
    fn lists_forgive_spaces_and_empty_entries() {
        let nets = prefixes(" 10.0.0.0/16 ,, fd00::/56,192.0.2.1 ").unwrap();
        let texts: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/16", "fd00::/56", "192.0.2.1/32"]);
        assert_eq!(prefixes(""), Ok(vec![]));
    }
}
