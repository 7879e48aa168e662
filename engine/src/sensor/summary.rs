//! What is counted, and how it is said at the end.
//!
//! ```text
//! Counts of a capture --when it ends--> Record (one per tap) --> Summary --> JSON, or text
//! ```
//!
//! A tap that reconnects adds to its record. sent by the tap = packets + lost_packets + what was
//! lost after the last packet that came.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::message::Fault;
use crate::rpcap::Stats;

/// Datagrams and messages that could not be used, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Malformed([u64; Fault::ALL.len()]);

impl Malformed {
    /// Counts one; true if it is the first for this reason.
    pub(super) fn note(&mut self, fault: Fault) -> bool {
        let count = &mut self.0[fault as usize];
        *count += 1;
        *count == 1
    }

    /// All reasons together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let labels = Fault::ALL.iter().map(|fault| fault.label());
        labels.zip(self.0).filter(|(_, count)| *count > 0)
    }
}

impl Serialize for Malformed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (label, count) in self.iter() {
            map.serialize_entry(label, &count)?;
        }
        map.end()
    }
}

/// What came of captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Packets, each counted once.
    pub packets: u64,
    /// Their captured bytes.
    pub bytes: u64,
    /// Datagrams received from the tap (UDP).
    pub datagrams: u64,
    /// Holes in the sequence of datagrams that were given up (stream form).
    pub gaps: u64,
    /// Datagrams in those holes.
    pub lost_datagrams: u64,
    /// Packet numbers that were skipped and never came.
    pub lost_packets: u64,
    /// Packets that had begun and could not be finished (stream form); also in `lost_packets`.
    pub unfinished: u64,
    /// Datagrams that came again, ignored.
    pub duplicates: u64,
    /// Datagrams that came after a later one, used.
    pub reordered: u64,
    /// Datagrams that came after they had been given up, ignored.
    pub late: u64,
    /// How often numbers began anew within a capture.
    pub restarts: u64,
    /// Datagrams from somebody else than the tap, ignored.
    pub foreign: u64,
    /// Datagrams lost here because the socket's buffer was full; part of what is missing above.
    pub socket_drops: u64,
    /// What could not be used, by reason.
    pub malformed: Malformed,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.datagrams += other.datagrams;
        self.gaps += other.gaps;
        self.lost_datagrams = self.lost_datagrams.saturating_add(other.lost_datagrams);
        self.lost_packets = self.lost_packets.saturating_add(other.lost_packets);
        self.unfinished += other.unfinished;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.late += other.late;
        self.restarts += other.restarts;
        self.foreign += other.foreign;
        self.socket_drops += other.socket_drops;
        for (sum, count) in self.malformed.0.iter_mut().zip(other.malformed.0) {
            *sum += count;
        }
    }
}

/// What the tap says of itself, its captures added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TapStats {
    /// Frames seen.
    pub received: u64,
    /// Frames dropped by interfaces.
    pub interface_dropped: u64,
    /// Frames dropped for lack of buffer.
    pub kernel_dropped: u64,
    /// Packets sent.
    pub sent: u64,
}

impl TapStats {
    /// Adds what has happened between two STATS of one capture; counts wrap at 2^32.
    pub(super) fn advance(&mut self, last: Stats, now: Stats) {
        let grown = |last: u32, now: u32| {
            let by = now.wrapping_sub(last);
            // A count that went back was set anew, it did not run through four billion.
            if by.cast_signed() < 0 { 0 } else { u64::from(by) }
        };
        self.received += grown(last.received, now.received);
        self.interface_dropped += grown(last.interface_dropped, now.interface_dropped);
        self.kernel_dropped += grown(last.kernel_dropped, now.kernel_dropped);
        self.sent += grown(last.sent, now.sent);
    }
}

impl std::ops::AddAssign for TapStats {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.interface_dropped += other.interface_dropped;
        self.kernel_dropped += other.kernel_dropped;
        self.sent += other.sent;
    }
}

/// One tap: an address, the interface opened there, and its link type.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Record {
    /// The tap's address; with its port if we connected to it.
    pub tap: String,
    /// The interface that was opened.
    pub interface: String,
    /// `LINKTYPE_` value.
    pub linktype: u16,
    /// Captures that were started, reconnections included.
    pub captures: u64,
    /// What came.
    #[serde(flatten)]
    pub counts: Counts,
    /// What the tap says it sent; `None` if it never said.
    pub tap_stats: Option<TapStats>,
}

/// The end of a run.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Summary {
    /// In the order in which they came.
    pub taps: Vec<Record>,
    /// All taps together.
    pub totals: Counts,
    /// Control connections that were made or accepted.
    pub connections: u64,
    /// Conversations that failed, by reason.
    pub failures: BTreeMap<&'static str, u64>,
}

impl Summary {
    pub(super) fn new(
        taps: Vec<Record>,
        connections: u64,
        failures: BTreeMap<&'static str, u64>,
    ) -> Self {
        let mut totals = Counts::default();
        taps.iter().for_each(|tap| totals += tap.counts);
        Self { taps, totals, connections, failures }
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for tap in &self.taps {
            text.push_str(&format!("{} {}: ", tap.tap, tap.interface));
            push_counts(&mut text, &tap.counts);
            if let Some(stats) = tap.tap_stats {
                let dropped = stats.interface_dropped + stats.kernel_dropped;
                let TapStats { received, sent, .. } = stats;
                // Writing to a String cannot fail.
                let _ = write!(text, "; it says: {received} seen, {dropped} dropped, {sent} sent");
            }
            text.push('\n');
        }
        text.push_str("total: ");
        push_counts(&mut text, &self.totals);
        for (reason, count) in &self.failures {
            let _ = write!(text, "; {count} conversations failed ({reason})");
        }
        text
    }
}

/// The four numbers that always count, and those of the others that are not zero.
fn push_counts(text: &mut String, counts: &Counts) {
    let Counts { packets, bytes, datagrams, lost_packets, .. } = counts;
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "{packets} packets, {bytes} bytes, {datagrams} datagrams, {lost_packets} packets lost"
    );
    let others = [
        ("gaps", counts.gaps),
        ("datagrams lost", counts.lost_datagrams),
        ("duplicates", counts.duplicates),
        ("reordered", counts.reordered),
        ("late", counts.late),
        ("restarts", counts.restarts),
        ("foreign", counts.foreign),
        ("dropped by our own socket", counts.socket_drops),
    ];
    for (what, count) in others.into_iter().filter(|(_, count)| *count > 0) {
        let _ = write!(text, ", {count} {what}");
    }
    for (reason, count) in counts.malformed.iter() {
        let _ = write!(text, ", {count} malformed ({reason})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_own_count() {
        let mut malformed = Malformed::default();
        for fault in Fault::ALL {
            assert!(malformed.note(fault));
            assert!(!malformed.note(fault));
        }
        let labels: Vec<_> = malformed.iter().collect();
        assert_eq!(labels, Fault::ALL.map(|fault| (fault.label(), 2)));
        assert_eq!(malformed.total(), 20);
    }

    #[test]
    fn stats_add_up_over_wraps_and_resets() {
        let stats = |sent| Stats { sent, ..Stats::default() };
        let mut sum = TapStats::default();
        sum.advance(stats(0), stats(0x7fff_0000));
        sum.advance(stats(0x7fff_0000), stats(0xf000_0000));
        sum.advance(stats(0xf000_0000), stats(5));
        sum.advance(stats(5), stats(0));
        assert_eq!(sum.sent, (1 << 32) + 5);
    }

    #[test]
    fn the_summary_is_one_line_of_json_with_the_documented_names() {
        let mut record = Record { tap: "10.0.0.1".into(), ..Record::default() };
        record.counts.packets = 3;
        record.counts.malformed.note(Fault::Caplen);
        record.tap_stats = Some(TapStats { sent: 4, ..TapStats::default() });
        let summary = Summary::new(vec![record.clone(), record], 2, BTreeMap::new());
        let text = serde_json::to_string(&summary).unwrap();
        assert!(!text.contains('\n'));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["totals"]["packets"], 6);
        assert_eq!(json["totals"]["malformed"]["caplen"], 2);
        let names = ["tap", "interface", "packets", "bytes", "datagrams", "gaps", "lost_packets"];
        let tap = json["taps"][0].as_object().unwrap();
        for name in names.iter().chain(&["duplicates", "reordered", "malformed", "tap_stats"]) {
            assert!(tap.contains_key(*name), "{name}");
        }
        assert_eq!(json["taps"][1]["tap_stats"]["sent"], 4);
    }

    #[test]
    fn the_text_names_what_is_not_zero() {
        let mut record = Record { tap: "a".into(), interface: "b".into(), ..Record::default() };
        record.counts.gaps = 7;
        let text = Summary::new(vec![record], 1, BTreeMap::from([("timeout", 1)])).to_text();
        assert!(text.starts_with("a b: 0 packets"), "{text}");
        assert!(text.contains("7 gaps") && text.contains("1 conversations failed (timeout)"));
        assert!(!text.contains("foreign"));
    }
}
