//! The data of one STARTCAP, in whatever form it comes.
//!
//! ```text
//! datagram --type byte--+-- 110: Reassembler --+
//!                       +-- 7: plain ----------+--> number --> Output
//! TCP bytes ------------+-- Framer ------------+
//! ```
//!
//! Knows no socket. Counts belong to this capture alone; the tap's record gets them at the end.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::message::{Fault, Framer, OutOfStep, Sink, parse_plain};
use super::numbering::{Numbering, Seen};
use super::output::Output;
use super::reassembly::Reassembler;
use super::summary::Counts;
use crate::capfile::pcapng::InterfaceId;
use crate::rpcap::{MessageType, PacketHeader};

pub(super) struct Capture {
    peer: IpAddr,
    also_from: Vec<IpNet>,
    /// The first stranger, until that was said.
    stranger: Option<SocketAddr>,
    snaplen: u32,
    reassembler: Reassembler,
    framer: Framer,
    delivery: Delivery,
}

/// The common end of all forms.
struct Delivery {
    interface: Option<InterfaceId>,
    numbering: Numbering,
    counts: Counts,
    new_faults: Vec<Fault>,
}

/// [`Delivery`] with the output that it lacks.
struct Delivering<'a> {
    delivery: &'a mut Delivery,
    output: &'a mut Output,
}

impl Delivery {
    fn fault(&mut self, fault: Fault) {
        if self.counts.malformed.note(fault) {
            self.new_faults.push(fault);
        }
    }

    fn deliver(&mut self, header: &PacketHeader, data: &[u8], output: &mut Output) {
        if output.packet(self.interface, header, data) {
            self.counts.packets += 1;
            self.counts.bytes += data.len() as u64;
        }
    }
}

impl Sink for Delivering<'_> {
    fn packet(&mut self, header: PacketHeader, data: &[u8]) {
        // Order and uniqueness are the datagrams' (or TCP's) business here: numbers only tell what
        // is missing.
        self.delivery.numbering.note(header.number);
        self.delivery.deliver(&header, data, self.output);
    }

    fn fault(&mut self, fault: Fault) {
        self.delivery.fault(fault);
    }
}

impl Capture {
    /// `peer` is whose datagrams are taken, `snaplen` what was asked for, `hold` how long a hole in
    /// the stream is waited for.
    pub(super) fn new(
        peer: IpAddr,
        snaplen: u32,
        hold: Duration,
        interface: Option<InterfaceId>,
    ) -> Self {
        let delivery = Delivery {
            interface,
            numbering: Numbering::new(),
            counts: Counts::default(),
            new_faults: Vec::new(),
        };
        Self {
            peer,
            also_from: Vec::new(),
            stranger: None,
            snaplen,
            reassembler: Reassembler::new(snaplen, hold),
            framer: Framer::new(snaplen),
            delivery,
        }
    }

    /// Takes data from these senders too: a daemon with several addresses may send from another
    /// one than we talk to.
    pub(super) fn also_from(&mut self, senders: &[IpNet]) {
        self.also_from = senders.to_vec();
    }

    /// True if data from this address are the tap's.
    pub(super) fn is_from_tap(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        from == self.peer || self.also_from.iter().any(|senders| senders.contains(&from))
    }

    /// Takes a datagram.
    pub(super) fn datagram(
        &mut self,
        now: Instant,
        from: Option<SocketAddr>,
        bytes: &[u8],
        output: &mut Output,
    ) {
        const STREAM: u8 = MessageType::Stream as u8;
        if !from.is_some_and(|from| self.is_from_tap(from.ip())) {
            if self.delivery.counts.foreign == 0 {
                self.stranger = from;
            }
            self.delivery.counts.foreign += 1;
            return;
        }
        let delivery = &mut self.delivery;
        delivery.counts.datagrams += 1;
        if bytes.get(1) == Some(&STREAM) {
            let mut sink = Delivering { delivery, output };
            self.reassembler.push(now, bytes, &mut sink);
            return;
        }
        match parse_plain(bytes, self.snaplen) {
            Err(fault) => delivery.fault(fault),
            Ok((header, data)) => match delivery.numbering.note(header.number) {
                Seen::Duplicate => delivery.counts.duplicates += 1,
                Seen::Late => delivery.counts.late += 1,
                seen => {
                    delivery.counts.reordered += u64::from(seen == Seen::Reordered);
                    delivery.deliver(&header, data, output);
                }
            },
        }
    }

    /// Takes bytes of the TCP data connection.
    pub(super) fn stream(&mut self, bytes: &[u8], output: &mut Output) -> Result<(), OutOfStep> {
        self.framer.push(bytes, &mut Delivering { delivery: &mut self.delivery, output })
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.reassembler.deadline()
    }

    pub(super) fn tick(&mut self, now: Instant, output: &mut Output) {
        let mut sink = Delivering { delivery: &mut self.delivery, output };
        self.reassembler.tick(now, &mut sink);
    }

    /// Nothing more will come.
    pub(super) fn finish(&mut self, output: &mut Output) {
        self.reassembler.finish(&mut Delivering { delivery: &mut self.delivery, output });
    }

    /// Faults that have occurred for the first time since the last call.
    pub(super) fn take_new_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.delivery.new_faults)
    }

    /// The first sender whose datagrams were not taken, once.
    pub(super) fn take_stranger(&mut self) -> Option<SocketAddr> {
        self.stranger.take()
    }

    /// Counts so far; socket drops are not known here.
    pub(super) fn counts(&self) -> Counts {
        let stream = self.reassembler.counts();
        let mut counts = self.delivery.counts;
        counts.lost_packets = self.delivery.numbering.lost();
        counts.gaps = stream.gaps;
        counts.lost_datagrams = stream.lost_datagrams;
        counts.unfinished = stream.unfinished;
        counts.restarts = stream.restarts;
        counts.duplicates += stream.duplicates;
        counts.reordered += stream.reordered;
        counts.late += stream.late;
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::{message, packet};
    use super::super::reassembly::HOLD;
    use super::*;

    #[test]
    fn both_forms_are_told_apart_datagram_by_datagram() {
        let peer: SocketAddr = "10.0.0.1:5".parse().unwrap();
        let mut output = Output::nowhere(None);
        let mut capture = Capture::new(peer.ip(), 65_535, HOLD, None);
        let now = Instant::now();
        let (header, data) = packet(1, 50);
        let stream = [&[0, 110, 0, 8, 0, 0, 0, 0][..], &header.to_bytes(), &data].concat();
        capture.datagram(now, Some(peer), &stream, &mut output);
        capture.datagram(now, Some(peer), &message(&packet(4, 60)), &mut output);
        capture.datagram(now, Some(peer), &message(&packet(3, 60)), &mut output);
        capture.datagram(now, Some(peer), &message(&packet(4, 60)), &mut output);
        capture.datagram(now, Some(peer), &[0, 9, 0, 0, 0, 0, 0, 0], &mut output);
        capture.datagram(now, Some(peer), &[], &mut output);
        let counts = capture.counts();
        assert_eq!((counts.packets, counts.bytes, counts.datagrams), (3, 170, 6));
        assert_eq!((counts.lost_packets, counts.reordered, counts.duplicates), (1, 1, 1));
        assert_eq!(capture.take_new_faults(), [Fault::Type, Fault::Short]);
        assert_eq!(capture.take_new_faults(), []);
    }

    #[test]
    fn strangers_datagrams_are_counted_and_dropped() {
        let mut output = Output::nowhere(None);
        let mut capture = Capture::new("10.0.0.1".parse().unwrap(), 65_535, HOLD, None);
        let bytes = message(&packet(1, 60));
        for from in [Some("10.0.0.2:5"), None, Some("[::ffff:10.0.0.1]:5")] {
            let from = from.map(|text| text.parse().unwrap());
            capture.datagram(Instant::now(), from, &bytes, &mut output);
        }
        let counts = capture.counts();
        assert_eq!((counts.foreign, counts.packets), (2, 1), "a mapped address is the same");
    }

    #[test]
    fn a_daemon_with_several_addresses_can_be_allowed_to_use_them() {
        let mut output = Output::nowhere(None);
        let mut capture = Capture::new("10.0.0.1".parse().unwrap(), 65_535, HOLD, None);
        capture.also_from(&["10.0.0.2/32".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        for (number, from) in (1..).zip([
            "10.0.0.2:5",
            "[fd00::9]:5",
            "[::ffff:10.0.0.2]:7",
            "10.0.0.3:5",
            "10.0.0.4:5",
        ]) {
            let bytes = message(&packet(number, 60));
            capture.datagram(Instant::now(), Some(from.parse().unwrap()), &bytes, &mut output);
        }
        assert_eq!((capture.counts().packets, capture.counts().foreign), (3, 2));
        assert_eq!(capture.take_stranger(), Some("10.0.0.3:5".parse().unwrap()));
        assert_eq!(capture.take_stranger(), None, "it is said once");
    }

    #[test]
    fn no_more_than_the_limit_is_taken() {
        let mut output = Output::nowhere(Some(2));
        let peer = "10.0.0.1:5".parse().unwrap();
        let mut capture = Capture::new("10.0.0.1".parse().unwrap(), 65_535, HOLD, None);
        for number in 1..=5 {
            let bytes = message(&packet(number, 60));
            capture.datagram(Instant::now(), Some(peer), &bytes, &mut output);
        }
        assert_eq!((capture.counts().packets, output.packets()), (2, 2));
        assert!(output.is_done());
    }
}
