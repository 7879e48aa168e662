//! The verdict, one row for each kind of traffic: as a table for people, as JSON for scripts.

use super::packet::Packet;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// How many packets of each fault are shown.
const EXAMPLES: usize = 3;

/// One kind of traffic. Always `sensor = sent - missing + doubled + unexpected`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which kind.
    pub what: String,
    /// Packets that were sent.
    pub sent: u64,
    /// Packets at the sensor.
    pub sensor: u64,
    /// Sent and not reported.
    pub missing: u64,
    /// Reported more often than sent.
    pub doubled: u64,
    /// Reported although nobody sent such a packet: wrong addresses, sizes or bytes.
    pub unexpected: u64,
    /// The first few of each fault.
    pub examples: Vec<String>,
}

impl Row {
    pub(crate) fn new(what: String) -> Self {
        Self {
            what,
            sent: 0,
            sensor: 0,
            missing: 0,
            doubled: 0,
            unexpected: 0,
            examples: Vec::new(),
        }
    }

    /// Something was sent, and it was reported exactly once.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.sent > 0 && self.missing == 0 && self.doubled == 0 && self.unexpected == 0
    }
}

/// The verdict. Its `Display` is an aligned table with examples below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which the kinds were given.
    pub rows: Vec<Row>,
    /// Packets sent that belong to no kind.
    pub other_sent: u64,
    /// Packets at the sensor that belong to no kind.
    pub other_sensor: u64,
    /// Captures of what was sent that lost packets, so that "missing" may be too low and
    /// "unexpected" too high.
    pub untrusted: Vec<String>,
}

impl Report {
    /// Every row is exact, and what was sent is known completely.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.untrusted.is_empty() && !self.rows.is_empty() && self.rows.iter().all(Row::is_exact)
    }

    /// The row of this name.
    #[must_use]
    pub fn row(&self, what: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.what == what)
    }

    /// All rows added up, without examples.
    #[must_use]
    pub fn total(&self) -> Row {
        let mut total = Row::new("total".to_owned());
        for row in &self.rows {
            total.sent += row.sent;
            total.sensor += row.sensor;
            total.missing += row.missing;
            total.doubled += row.doubled;
            total.unexpected += row.unexpected;
        }
        total
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        let rows: Vec<&Row> = self.rows.iter().chain([&total]).collect();
        let width = rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "{:width$} {:>10} {:>10} {:>9} {:>9} {:>10}",
            "", "sent", "sensor", "missing", "doubled", "unexpected"
        )?;
        for row in rows {
            writeln!(
                f,
                "{:width$} {:>10} {:>10} {:>9} {:>9} {:>10}",
                row.what, row.sent, row.sensor, row.missing, row.doubled, row.unexpected
            )?;
        }
        writeln!(
            f,
            "of no kind above (ARP, neighbour discovery, ...): {} sent, {} at the sensor",
            self.other_sent, self.other_sensor
        )?;
        for row in &self.rows {
            for example in &row.examples {
                writeln!(f, "  {}: {example}", row.what)?;
            }
        }
        for capture in &self.untrusted {
            writeln!(f, "  not to be trusted: the capture of {capture}")?;
        }
        Ok(())
    }
}

/// The first few packets of each fault.
#[derive(Clone, Debug, Default)]
pub(crate) struct Examples(BTreeMap<&'static str, Vec<String>>);

impl Examples {
    pub(crate) fn add(&mut self, fault: &'static str, packet: &Packet) {
        let list = self.0.entry(fault).or_default();
        if list.len() < EXAMPLES {
            list.push(format!("{fault}: {packet}"));
        }
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0.into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_names_what_cannot_be_trusted() {
        let mut report = Report::default();
        report.rows.push(Row { sent: 12, sensor: 11, missing: 1, ..Row::new("http".to_owned()) });
        report.rows.push(Row { sent: 5, sensor: 5, ..Row::new("a longer name".to_owned()) });
        report.untrusted.push("node1-pod1 eth0".to_owned());
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[..4].iter().all(|line| line.len() == lines[0].len()), "{text}");
        assert!(lines[3].starts_with("total"), "{text}");
        assert!(lines[3].contains("17"), "{text}");
        assert!(text.contains("node1-pod1 eth0"));
    }

    #[test]
    fn json_has_the_counts() {
        let json = serde_json::to_value(Row::new("x".to_owned())).unwrap();
        assert_eq!(json["missing"], 0);
        assert_eq!(json["what"], "x");
    }
}
