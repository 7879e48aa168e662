//! Was every packet that was sent reported exactly once?
//!
//! ```text
//! pods' captures --read--> packets --services, segments--> what should be reported --+
//! sensor's pcapng --read--> packets --segments-----------> what was reported --------+--> Report
//! ```
//!
//! Packets are equal when their bytes are, from the network header on, without what a node
//! changes on the way ([`Identity`]). No hashes stand in for the bytes, nothing is matched by
//! time, and equal packets are counted: three sent must be three reported.

pub(crate) mod checksum;
mod counts;
mod identity;
pub(crate) mod packet;
mod read;
mod report;
pub(crate) mod segments;
mod services;

pub use counts::{Counts, Expected, Faults, Reported, count, key, place};
pub use identity::{Checksums, Identity};
pub use packet::Packet;
pub use read::{Frame, ReadError, for_each_frame, read, read_frames};
pub use report::{Report, Row};

use crate::{lab::Service, traffic::Captured};
use report::Examples;
use std::{collections::HashMap, fmt, path::Path};

/// Decides whether a packet belongs to a kind of traffic.
type Matches = Box<dyn Fn(&Packet) -> bool + Send + Sync>;

/// What to compare, and how.
#[derive(Default)]
pub struct Comparison {
    identity: Identity,
    mtu: Option<usize>,
    services: Vec<Service>,
    kinds: Vec<(String, Matches)>,
}

impl fmt::Debug for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<&str> = self.kinds.iter().map(|(what, _matches)| what.as_str()).collect();
        f.debug_struct("Comparison")
            .field("identity", &self.identity)
            .field("mtu", &self.mtu)
            .field("services", &self.services)
            .field("kinds", &kinds)
            .finish()
    }
}

impl Comparison {
    /// By the bytes that no node changes; no kinds yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when two packets are equal.
    #[must_use]
    pub fn identity(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    /// Cuts TCP super-frames, on both sides, into the segments that a link with this MTU carries.
    #[must_use]
    pub fn by_segments(self, mtu: usize) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Expects packets to these services to be reported with the backend's address and port.
    #[must_use]
    pub fn services(self, services: &[Service]) -> Self {
        Self { services: services.to_vec(), ..self }
    }

    /// Adds a row. A packet, as it should be reported, belongs to the first kind that it matches.
    #[must_use]
    pub fn kind(
        mut self,
        what: impl Into<String>,
        matches: impl Fn(&Packet) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.kinds.push((what.into(), Box::new(matches)));
        self
    }

    /// Compares the captures of what was sent with the sensor's file.
    ///
    /// # Errors
    ///
    /// When a file cannot be read. A capture that lost packets is not an error, but named in the
    /// report, which is then not exact.
    pub fn files(&self, truth: &[Captured], sensor: &Path) -> Result<Report, ReadError> {
        let mut sent = Vec::new();
        let mut untrusted = Vec::new();
        for capture in truth {
            let packets = read(&capture.path)?;
            if capture.lost > 0 || usize::try_from(capture.packets) != Ok(packets.len()) {
                untrusted.push(format!(
                    "{}: {} in the file, {} captured, {} lost",
                    capture.what,
                    packets.len(),
                    capture.packets,
                    capture.lost
                ));
            }
            sent.extend(packets);
        }
        let mut report = self.run(&sent, &read(sensor)?);
        report.untrusted = untrusted;
        Ok(report)
    }

    /// Compares packets.
    #[must_use]
    pub fn run(&self, sent: &[Packet], sensor: &[Packet]) -> Report {
        let translation = services::Translation::learn(&self.services, sent, sensor);
        let sent: Vec<Packet> =
            self.cut(sent.iter().map(|packet| translation.apply(packet)).collect());
        let sensor = self.cut(sensor.to_vec());

        let mut rows: Vec<Row> =
            self.kinds.iter().map(|(what, _matches)| Row::new(what.clone())).collect();
        let mut examples = vec![Examples::default(); rows.len()];
        let (mut other_sent, mut other_sensor) = (0, 0);
        let mut expected: HashMap<Vec<u8>, Entry> = HashMap::new();

        for packet in &sent {
            let kind = self.kind_of(packet);
            match kind {
                Some(kind) => rows[kind].sent += 1,
                None => other_sent += 1,
            }
            expected
                .entry(self.identity.expected(packet))
                .or_insert(Entry { packet, kind, sent: 0, seen: 0 })
                .sent += 1;
        }
        for packet in &sensor {
            let entry = expected.get_mut(&self.identity.reported(packet));
            let known = entry.is_some();
            let kind = match entry {
                Some(entry) => {
                    entry.seen += 1;
                    entry.kind
                }
                None => self.kind_of(packet),
            };
            match kind {
                Some(kind) => {
                    rows[kind].sensor += 1;
                    if !known {
                        rows[kind].unexpected += 1;
                        examples[kind].add("unexpected", packet);
                    }
                }
                None => other_sensor += 1,
            }
        }
        // In the order of sending, so that the examples are the first ones.
        for packet in &sent {
            let Some(entry) = expected.remove(&self.identity.expected(packet)) else { continue };
            let Some(kind) = entry.kind else { continue };
            rows[kind].missing += entry.sent.saturating_sub(entry.seen);
            rows[kind].doubled += entry.seen.saturating_sub(entry.sent);
            if entry.seen < entry.sent {
                examples[kind].add("missing", entry.packet);
            }
            if entry.seen > entry.sent {
                examples[kind].add("doubled", entry.packet);
            }
        }
        for (row, examples) in rows.iter_mut().zip(examples) {
            row.examples = examples.into_lines();
        }
        Report { rows, other_sent, other_sensor, untrusted: Vec::new() }
    }

    fn kind_of(&self, packet: &Packet) -> Option<usize> {
        self.kinds.iter().position(|(_what, matches)| matches(packet))
    }

    fn cut(&self, packets: Vec<Packet>) -> Vec<Packet> {
        match self.mtu {
            Some(mtu) => {
                packets.into_iter().flat_map(|packet| segments::cut(packet, mtu)).collect()
            }
            None => packets,
        }
    }
}

/// Packets to services as they must be reported: to the backends that answered, or else those that
/// the sensor has seen. Each keeps what comes with it.
#[must_use]
pub fn at_backends<T>(
    services: &[Service],
    sent: Vec<(Packet, T)>,
    reported: &[Packet],
) -> Vec<(Packet, T)> {
    let packets: Vec<Packet> = sent.iter().map(|(packet, _with)| packet.clone()).collect();
    let translation = services::Translation::learn(services, &packets, reported);
    sent.into_iter().map(|(packet, with)| (translation.apply(&packet), with)).collect()
}

/// The segments that a link with this MTU carries for a packet.
#[must_use]
pub fn segments_of(packet: Packet, mtu: usize) -> Vec<Packet> {
    segments::cut(packet, mtu)
}

/// One packet, as often as it was sent and reported.
struct Entry<'a> {
    packet: &'a Packet,
    kind: Option<usize>,
    sent: u64,
    seen: u64,
}

#[cfg(test)]
mod tests {
    use super::{packet::samples, *};
    use std::net::SocketAddr;

    fn comparison() -> Comparison {
        Comparison::new().kind("tcp", |packet| packet.protocol() == Some(6))
    }

    fn counts(report: &Report) -> (u64, u64, u64, u64, u64) {
        let row = &report.rows[0];
        (row.sent, row.sensor, row.missing, row.doubled, row.unexpected)
    }

    #[test]
    fn a_copy_after_a_hop_is_the_same_packet() {
        let sent = [samples::tcp(1, b"a"), samples::tcp(2, b"b")];
        let hop: Vec<Packet> = sent.iter().map(samples::after_a_hop).collect();
        let report = comparison().run(&sent, &hop);
        assert_eq!(counts(&report), (2, 2, 0, 0, 0));
        assert!(report.is_exact());
    }

    #[test]
    fn one_left_out_is_missing() {
        let sent = [samples::tcp(1, b"a"), samples::tcp(2, b"b")];
        let report = comparison().run(&sent, &sent[..1]);
        assert_eq!(counts(&report), (2, 1, 1, 0, 0));
        assert!(!report.is_exact());
        assert!(report.rows[0].examples[0].starts_with("missing"), "{report:?}");
    }

    #[test]
    fn one_reported_twice_is_doubled() {
        let sent = [samples::tcp(1, b"a")];
        let report = comparison().run(&sent, &[sent[0].clone(), samples::after_a_hop(&sent[0])]);
        assert_eq!(counts(&report), (1, 2, 0, 1, 0));
        assert!(!report.is_exact());
    }

    #[test]
    fn equal_packets_sent_twice_are_two() {
        let sent = [samples::tcp(1, b"a"), samples::tcp(1, b"a")];
        assert_eq!(counts(&comparison().run(&sent, &sent)), (2, 2, 0, 0, 0));
        assert_eq!(counts(&comparison().run(&sent, &sent[..1])), (2, 1, 1, 0, 0));
    }

    #[test]
    fn a_wrong_byte_is_one_missing_and_one_unexpected() {
        let sent = [samples::tcp(1, b"abc")];
        let report = comparison().run(&sent, &[samples::tcp(1, b"abd")]);
        assert_eq!(counts(&report), (1, 1, 1, 0, 1));
    }

    #[test]
    fn a_row_that_nothing_was_sent_for_proves_nothing() {
        assert!(!comparison().run(&[], &[]).is_exact());
    }

    #[test]
    fn what_no_kind_claims_is_still_counted() {
        let report = Comparison::new().run(&[samples::tcp(1, b"")], &[]);
        assert_eq!((report.other_sent, report.other_sensor), (1, 0));
    }

    #[test]
    fn service_traffic_is_expected_at_the_backend_that_answered() {
        let service: SocketAddr = "172.20.0.1:80".parse().unwrap();
        let client: SocketAddr = "10.0.1.101:40000".parse().unwrap();
        let backends: [SocketAddr; 2] =
            ["10.0.2.101:8080".parse().unwrap(), "10.0.2.102:8080".parse().unwrap()];
        let request = samples::tcp_between(client, service, 1, b"q");
        let reply = samples::tcp_between(backends[1], client, 2, b"r");
        let translated = samples::tcp_between(client, backends[1], 1, b"q");
        let elsewhere = samples::tcp_between(client, backends[0], 1, b"q");
        let comparison = comparison().services(&[Service::tcp(service, &backends)]);

        let sent = [request.clone(), reply.clone()];
        assert!(comparison.run(&sent, &[translated, reply.clone()]).is_exact());
        assert_eq!(counts(&comparison.run(&sent, &[request, reply.clone()])), (2, 2, 1, 0, 1));
        assert_eq!(counts(&comparison.run(&sent, &[elsewhere, reply])), (2, 2, 1, 0, 1));
    }

    #[test]
    fn super_frames_are_compared_by_their_segments() {
        let payload: Vec<u8> = (0..=255).cycle().take(4000).collect();
        let sent = [samples::tcp(1, &payload)];
        let segments = segments::cut(sent[0].clone(), 1500);
        assert_eq!(segments.len(), 3);
        let comparison = comparison().by_segments(1500);
        assert_eq!(counts(&comparison.run(&sent, &segments)), (3, 3, 0, 0, 0));
        assert_eq!(counts(&comparison.run(&sent, &segments[..2])), (3, 2, 1, 0, 0));
    }
}
