//! Per row: how often what was sent was reported, and in which form.
//!
//! ```text
//! expected --key-------> entries: packet, row, how often sent <--key-- reported      exact
//!            \-body----> the same, without its ends          <--body-- the others    wrong address
//!            \-flow,seq> the same, by its place in a stream  <--seq--- the others    wrong size
//! ```
//!
//! Every report is counted for one packet that was sent, whatever its form, or as unexpected: so
//! `reports = sent - missing + doubled + unexpected`, as long as no report covers several packets.
//! Checksums and sizes are judged on every report.

use super::{
    checksum,
    identity::{Checksums, Identity},
    packet::{Packet, TCP},
    report::Examples,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

/// One packet as it must be reported.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The packet, with the addresses that it must have at the sensor.
    pub packet: Packet,
    /// Which row it belongs to; `None`: to none, but it is known.
    pub row: Option<usize>,
    /// False when it was sent at the edge of the run, where the taps may or may not have seen it.
    pub required: bool,
}

/// One packet as it was reported.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The packet.
    pub packet: Packet,
    /// False when it was captured at the edge of the run: then it counts only for a packet that
    /// lacks a report.
    pub inside: bool,
}

/// What came of a row's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Packets that were sent.
    pub sent: u64,
    /// Reported once, with the right ends and the right bytes.
    pub once: u64,
    /// Not reported in any form.
    pub missing: u64,
    /// Reports beyond the first of a packet, in any form.
    pub doubled: u64,
    /// Reports with another address or port at one end or both.
    pub wrong_address: u64,
    /// Reports whose IP or transport checksum is wrong.
    pub wrong_checksum: u64,
    /// Reports larger than the wire carries, or cut otherwise than the wire's segments.
    pub wrong_size: u64,
    /// Reports of packets that nobody sent.
    pub unexpected: u64,
}

impl Counts {
    /// Something was sent, and all of it was reported once, rightly, and nothing else.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.sent > 0 && *self == Self { sent: self.sent, once: self.sent, ..Self::default() }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.once += other.once;
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.wrong_address += other.wrong_address;
        self.wrong_checksum += other.wrong_checksum;
        self.wrong_size += other.wrong_size;
        self.unexpected += other.unexpected;
    }
}

/// A row's counts with the first packets of each fault.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The counts.
    pub counts: Counts,
    /// Some of the packets that are at fault, in words.
    pub examples: Vec<String>,
}

#[derive(Debug)]
struct Entry<'a> {
    packet: &'a Packet,
    row: Option<usize>,
    required: u64,
    optional: u64,
    /// Reports that are right in all that is compared.
    right: u64,
    /// Reports in another form.
    wrong: u64,
}

impl Entry<'_> {
    fn reports(&self) -> u64 {
        self.right + self.wrong
    }

    fn lacks(&self) -> bool {
        self.reports() < self.required + self.optional
    }
}

/// Compares what should be reported with what was. Rows are numbered from 0; the last element
/// of the result is what belongs to none. `mtu` is the wire's; `row_of` says where a report
/// belongs that nobody expected.
#[must_use]
pub fn count(
    expected: &[Expected],
    reported: &[Reported],
    rows: usize,
    mtu: usize,
    row_of: impl Fn(&Packet) -> Option<usize>,
) -> Vec<Faults> {
    let mut tally = Tally::new(rows);
    let mut book = Book::new(expected);
    // First all that is right, so that a wrong one is held against a packet that lacks a report.
    let mut rest = Vec::new();
    for Reported { packet, inside } in reported {
        match book.find(packet) {
            Some(entry) if *inside || entry.lacks() => {
                entry.right += 1;
                tally.judge(entry.row, packet, mtu);
            }
            None if *inside => rest.push(packet),
            _ => {}
        }
    }
    for packet in rest {
        if let Some(row) = book.by_body(packet) {
            tally.note(row, |counts| &mut counts.wrong_address, "wrong address", packet);
            tally.judge(row, packet, mtu);
        } else if let Some(row) = book.by_place(packet) {
            tally.note(row, |counts| &mut counts.wrong_size, "wrong size", packet);
            tally.judge_checksum(row, packet);
        } else {
            let row = row_of(packet);
            tally.note(row, |counts| &mut counts.unexpected, "unexpected", packet);
            tally.judge(row, packet, mtu);
        }
    }
    for entry in &book.entries {
        tally.close(entry);
    }
    tally
        .rows
        .into_iter()
        .zip(tally.examples)
        .map(|(counts, examples)| Faults { counts, examples: examples.into_lines() })
        .collect()
}

/// What is expected, found by its bytes, by its bytes without ends, or by its place in a stream.
struct Book<'a> {
    entries: Vec<Entry<'a>>,
    by_key: HashMap<Vec<u8>, usize>,
    by_body: HashMap<Vec<u8>, Vec<usize>>,
    by_place: HashMap<(SocketAddr, SocketAddr), BTreeMap<u32, Vec<usize>>>,
}

/// How packets are compared: checksums are judged apart.
const IDENTITY: Identity = Identity { checksums: Checksums::Ignore, ecn: false, padding: false };

impl<'a> Book<'a> {
    fn new(expected: &'a [Expected]) -> Self {
        let mut book = Self {
            entries: Vec::new(),
            by_key: HashMap::new(),
            by_body: HashMap::new(),
            by_place: HashMap::new(),
        };
        for Expected { packet, row, required } in expected {
            let at = *book.by_key.entry(IDENTITY.key(packet)).or_insert_with(|| {
                book.entries.push(Entry {
                    packet,
                    row: *row,
                    required: 0,
                    optional: 0,
                    right: 0,
                    wrong: 0,
                });
                book.entries.len() - 1
            });
            let entry = &mut book.entries[at];
            if *required {
                entry.required += 1;
            } else {
                entry.optional += 1;
            }
        }
        for (at, entry) in book.entries.iter().enumerate() {
            book.by_body.entry(body(entry.packet)).or_default().push(at);
            if let Some((ends, seq, _length)) = place(entry.packet) {
                book.by_place.entry(ends).or_default().entry(seq).or_default().push(at);
            }
        }
        book
    }

    fn find(&mut self, packet: &Packet) -> Option<&mut Entry<'a>> {
        let at = *self.by_key.get(&IDENTITY.key(packet))?;
        self.entries.get_mut(at)
    }

    /// Counts a report with other ends; the row that it is of.
    fn by_body(&mut self, packet: &Packet) -> Option<Option<usize>> {
        let candidates = self.by_body.get(&body(packet))?;
        let lacking = candidates.iter().find(|at| self.entries[**at].lacks());
        let entry = &mut self.entries[*lacking.or(candidates.first())?];
        entry.wrong += 1;
        Some(entry.row)
    }

    /// Counts a report that covers parts of a stream otherwise cut; the row that it is of.
    fn by_place(&mut self, packet: &Packet) -> Option<Option<usize>> {
        let (ends, seq, length) = place(packet)?;
        let sent = self.by_place.get(&ends)?;
        let same_cut = |at: &usize| place(self.entries[*at].packet).map(|it| it.2) == Some(length);
        if sent.get(&seq).is_some_and(|here| here.iter().any(same_cut)) {
            // It differs in something else than its size.
            return None;
        }
        let mut row = None;
        let covered = sent
            .iter()
            .filter(|(start, _at)| start.wrapping_sub(seq) < length)
            .flat_map(|(_start, at)| at);
        for at in covered {
            let entry = &mut self.entries[*at];
            if entry.lacks() || row.is_none() {
                entry.wrong += 1;
                row = Some(entry.row);
            }
        }
        row
    }
}

struct Tally {
    rows: Vec<Counts>,
    examples: Vec<Examples>,
}

impl Tally {
    fn new(rows: usize) -> Self {
        Self {
            rows: vec![Counts::default(); rows + 1],
            examples: vec![Examples::default(); rows + 1],
        }
    }

    fn index(&self, row: Option<usize>) -> usize {
        row.unwrap_or(self.rows.len() - 1)
    }

    fn note(
        &mut self,
        row: Option<usize>,
        field: impl Fn(&mut Counts) -> &mut u64,
        fault: &'static str,
        packet: &Packet,
    ) {
        let at = self.index(row);
        *field(&mut self.rows[at]) += 1;
        self.examples[at].add(fault, packet);
    }

    fn judge(&mut self, row: Option<usize>, packet: &Packet, mtu: usize) {
        if packet.ip().is_some_and(|ip| ip.length > mtu) {
            self.note(row, |counts| &mut counts.wrong_size, "wrong size", packet);
        }
        self.judge_checksum(row, packet);
    }

    fn judge_checksum(&mut self, row: Option<usize>, packet: &Packet) {
        if !packet.has_right_checksums() {
            self.note(row, |counts| &mut counts.wrong_checksum, "wrong checksum", packet);
        }
    }

    fn close(&mut self, entry: &Entry<'_>) {
        let at = self.index(entry.row);
        let reports = entry.reports();
        let sent = entry.required + entry.optional.min(reports.saturating_sub(entry.required));
        let surplus = reports.saturating_sub(sent);
        let missing = sent.saturating_sub(reports);
        let counts = &mut self.rows[at];
        counts.sent += sent;
        counts.once += entry.right.min(sent).saturating_sub(surplus);
        counts.missing += missing;
        counts.doubled += surplus;
        if missing > 0 {
            self.examples[at].add("missing", entry.packet);
        }
        if surplus > 0 {
            self.examples[at].add("doubled", entry.packet);
        }
    }
}

/// All that no node changes of a packet: equal packets have equal keys.
#[must_use]
pub fn key(packet: &Packet) -> Vec<u8> {
    IDENTITY.key(packet)
}

/// What NAT leaves of a packet.
fn body(packet: &Packet) -> Vec<u8> {
    let mut key = IDENTITY.key(packet);
    let Some(ip) = packet.ip() else { return key };
    let addresses = if packet.is_ipv6() { 8..40 } else { 12..20 };
    key[addresses].fill(0);
    let Some(l4) = ip.l4 else { return key };
    match (ip.protocol, key[l4]) {
        (TCP | super::packet::UDP, _) => key[l4..l4 + 4].fill(0),
        // Echo: the identifier is what NAT changes.
        (1, 0 | 8) | (58, 128 | 129) if ip.length >= l4 + 6 => key[l4 + 4..l4 + 6].fill(0),
        // Errors hold a packet that NAT changes too: only its size is left.
        (1, _) | (58, 1..=4) => key[l4 + 2..ip.length].fill(0),
        _ => {}
    }
    key
}

/// Where a TCP segment with data is in its stream: ends, sequence number, length.
#[must_use]
pub fn place(packet: &Packet) -> Option<((SocketAddr, SocketAddr), u32, u32)> {
    let ip = packet.ip().filter(|ip| ip.protocol == TCP && !ip.fragment)?;
    let l4 = ip.l4?;
    let data = packet.data();
    let header = l4 + usize::from(data[l4 + 12] >> 4) * 4;
    let length = u32::try_from(ip.length.checked_sub(header)?).ok().filter(|length| *length > 0)?;
    let seq = u32::from_be_bytes(data[l4 + 4..l4 + 8].try_into().ok()?);
    Some(((packet.source_socket()?, packet.destination_socket()?), seq, length))
}

impl Packet {
    /// True unless a checksum that can be verified is wrong.
    #[must_use]
    pub fn has_right_checksums(&self) -> bool {
        let mut right = self.clone();
        right.complete_checksums();
        let Some(_ip) = self.ip() else { return true };
        let header = self.is_ipv6() || right.data()[10..12] == self.data()[10..12];
        let l4 = self.l4_checksum_at().is_none_or(|at| {
            let word = |packet: &Self| checksum::one_zero(packet.data()[at], packet.data()[at + 1]);
            word(&right) == word(self)
        });
        header && l4
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{packet::samples, segments},
        *,
    };

    fn counted(sent: &[Packet], reported: &[Packet]) -> Counts {
        let expected: Vec<Expected> = sent
            .iter()
            .map(|packet| Expected { packet: packet.clone(), row: Some(0), required: true })
            .collect();
        count(&expected, &reports(reported, true), 1, 1500, |_packet| Some(0))[0].counts
    }

    fn reports(packets: &[Packet], inside: bool) -> Vec<Reported> {
        packets.iter().map(|packet| Reported { packet: packet.clone(), inside }).collect()
    }

    fn to(address: &str, id: u16) -> Packet {
        let from = "10.0.1.101:40000".parse().unwrap();
        samples::tcp_between(from, address.parse().unwrap(), id, b"x")
    }

    #[test]
    fn each_fault_has_its_own_count() {
        let sent = [to("10.0.2.101:80", 1), to("10.0.2.101:80", 2)];
        assert!(counted(&sent, &sent).is_exact());
        let base = Counts { sent: 2, ..Counts::default() };
        assert_eq!(counted(&sent, &sent[..1]), Counts { once: 1, missing: 1, ..base });
        let doubled = [sent[0].clone(), samples::after_a_hop(&sent[0]), sent[1].clone()];
        assert_eq!(counted(&sent, &doubled), Counts { once: 1, doubled: 1, ..base });
        let readdressed = [to("10.0.2.9:8080", 1), sent[1].clone()];
        assert_eq!(counted(&sent, &readdressed), Counts { once: 1, wrong_address: 1, ..base });
        let stranger = [sent[0].clone(), sent[1].clone(), to("10.0.2.101:80", 3)];
        assert_eq!(counted(&sent, &stranger), Counts { once: 2, unexpected: 1, ..base });
        let mut bytes = sent[0].data().to_vec();
        bytes[36] ^= 1;
        let wrong = [Packet::parse(0x0800, bytes, false), sent[1].clone()];
        assert_eq!(counted(&sent, &wrong), Counts { once: 2, wrong_checksum: 1, ..base });
    }

    #[test]
    fn a_copy_with_another_address_is_wrong_and_doubled() {
        let sent = [to("10.0.2.101:80", 1)];
        let reported = [sent[0].clone(), to("10.0.2.9:80", 1)];
        let counts = Counts { sent: 1, doubled: 1, wrong_address: 1, ..Counts::default() };
        assert_eq!(counted(&sent, &reported), counts);
    }

    #[test]
    fn equal_packets_are_as_many_as_were_sent() {
        let sent = vec![to("10.0.2.101:80", 1); 3];
        assert!(counted(&sent, &sent).is_exact());
        let more = vec![to("10.0.2.101:80", 1); 4];
        let base = Counts { sent: 3, ..Counts::default() };
        assert_eq!(counted(&sent, &more), Counts { once: 2, doubled: 1, ..base });
        assert_eq!(counted(&sent, &more[..1]), Counts { once: 1, missing: 2, ..base });
    }

    #[test]
    fn a_super_frame_and_another_cut_have_the_wrong_size() {
        let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let whole = samples::tcp(1, &payload);
        let sent = segments::cut(whole.clone(), 1500);
        let base = Counts { sent: 3, ..Counts::default() };
        assert_eq!(counted(&sent, std::slice::from_ref(&whole)), Counts { wrong_size: 1, ..base });
        let otherwise = segments::cut(whole, 1000);
        let counts = counted(&sent, &otherwise);
        assert!(counts.wrong_size > 0 && counts.once == 0, "{counts:?}");
    }

    #[test]
    fn at_the_edge_of_the_run_a_packet_may_be_reported_or_not() {
        let packet = to("10.0.2.101:80", 1);
        let at_edge = [Expected { packet: packet.clone(), row: Some(0), required: false }];
        let counts = |expected: &[Expected], reported: &[Reported]| {
            count(expected, reported, 1, 1500, |_packet| Some(0))[0].counts
        };
        let one = std::slice::from_ref(&packet);
        assert_eq!(counts(&at_edge, &[]), Counts::default());
        for inside in [true, false] {
            assert!(counts(&at_edge, &reports(one, inside)).is_exact());
        }
        let sent = [Expected { required: true, ..at_edge[0].clone() }];
        let two = [reports(one, true), reports(one, false)].concat();
        assert!(counts(&sent, &two).is_exact());
        assert_eq!(counts(&[], &reports(one, false)), Counts::default());
    }
}
