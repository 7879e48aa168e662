//! What arrives at a sensor, from bytes that a fuzzer makes.
//!
//! ```text
//! conversation: bytes --> Client, whole and in pieces: the same events, the same requests
//! datagram, stream, tcp: bytes --> packets, none longer than what came or was asked for
//! ```

use std::time::{Duration, Instant};

use super::client::{Client, Event, Wishes};
use super::message::{Fault, Framer, Sink, parse_plain};
use super::reassembly::{HOLD, Reassembler};
use crate::rpcap::{Filter, PacketHeader, StartCapture};

/// What a daemon says to the sensor's side of the control protocol. The first byte says how pieces
/// are cut, and what the sensor wishes for.
///
/// # Panics
///
/// When what is asked depends on the pieces, or is no sequence of whole messages.
pub fn daemon(data: &[u8]) {
    let Some((how, said)) = data.split_first() else { return };
    let wishes = || {
        let mut wishes = Wishes::default();
        if how & 0x80 != 0 {
            wishes.open = Some("eth0".to_owned());
        }
        if how & 0x40 != 0 {
            wishes.credentials = Some(("u".to_owned(), "p".to_owned()));
        }
        wishes
    };
    let piece = usize::from(how & 0x1f) + 1;
    // A capture begins as soon as it can, which depends on the pieces; or never.
    let starts = how & 0x20 != 0;
    let pieces = listen(wishes(), said, piece, starts);
    if !starts {
        let whole = listen(wishes(), said, said.len().max(1), starts);
        assert_eq!(whole, pieces, "how the bytes are cut must not matter");
    }
}

/// Events, what was asked, and whether the daemon was given up.
fn listen(wishes: Wishes, said: &[u8], piece: usize, starts: bool) -> (Vec<Event>, Vec<u8>, bool) {
    let now = Instant::now();
    let mut client = Client::new(wishes, now);
    let mut events = Vec::new();
    let mut failed = false;
    for piece in said.chunks(piece) {
        if client.receive(now, piece, &mut events).is_err() {
            failed = true;
            break;
        }
        if starts {
            let filter = Filter::default();
            client.start_capture(
                now,
                &StartCapture { snaplen: 9, read_timeout_ms: 1, flags: 2, port: 3, filter },
            );
        }
    }
    let asked = client.output().clone();
    // Every state may be overdue, and may be ended.
    let _failure = client.tick(now + Duration::from_secs(60), &mut Vec::new());
    client.end(now);
    client.close();
    let mut rest = &client.output()[..];
    while !rest.is_empty() {
        let (header, tail) = rest.split_at(8);
        let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        rest = &tail[len as usize..];
    }
    (events, asked, failed)
}

/// A datagram of the plain form; the first two bytes are the snaplen.
///
/// # Panics
///
/// When the packet is longer than the datagram or the snaplen.
pub fn datagram(data: &[u8]) {
    let Some((snaplen, datagram)) = data.split_first_chunk() else { return };
    let snaplen = u32::from(u16::from_be_bytes(*snaplen));
    if let Ok((header, data)) = parse_plain(datagram, snaplen) {
        assert_eq!(data.len(), header.caplen as usize);
        assert!(header.caplen <= snaplen.min(header.wire_len));
        assert!(data.len() + 28 <= datagram.len());
    }
}

/// What was handed out.
#[derive(Debug, Default, PartialEq)]
struct Taken {
    packets: Vec<(PacketHeader, Vec<u8>)>,
    faults: Vec<Fault>,
    snaplen: u32,
}

impl Sink for Taken {
    fn packet(&mut self, header: PacketHeader, data: &[u8]) {
        assert_eq!(data.len(), header.caplen as usize);
        assert!(header.caplen <= self.snaplen && header.caplen <= header.wire_len);
        self.packets.push((header, data.to_vec()));
    }

    fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }
}

impl Taken {
    fn new(snaplen: u32) -> Self {
        Self { snaplen, ..Self::default() }
    }

    fn bytes(&self) -> usize {
        self.packets.iter().map(|(_, data)| 20 + data.len()).sum()
    }
}

/// Datagrams of the stream form: the first two bytes are the snaplen; then each datagram has a
/// byte before it, its length, or 0 for time that passes. The type is put in.
///
/// # Panics
///
/// When a byte is handed out twice, or a packet is longer than it may be.
pub fn stream(data: &[u8]) {
    let Some((snaplen, mut rest)) = data.split_first_chunk() else { return };
    let snaplen = u32::from(u16::from_be_bytes(*snaplen));
    let mut now = Instant::now();
    let mut reassembler = Reassembler::new(snaplen, HOLD);
    let mut taken = Taken::new(snaplen);
    let mut came = 0;
    while let Some((len, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        if datagram.is_empty() {
            now += HOLD;
            reassembler.tick(now, &mut taken);
            continue;
        }
        came += datagram.len();
        let mut datagram = datagram.to_vec();
        if let Some(kind) = datagram.get_mut(1) {
            *kind = 110;
        }
        reassembler.push(now, &datagram, &mut taken);
    }
    reassembler.finish(&mut taken);
    assert!(reassembler.deadline().is_none(), "nothing is held after the end");
    assert!(taken.bytes() <= came, "{} bytes from {came}", taken.bytes());
}

/// Bytes of a TCP data connection; the first says how pieces are cut, two more are the snaplen.
///
/// # Panics
///
/// When what is found depends on the pieces.
pub fn tcp(data: &[u8]) {
    let Some(([how, snaplen @ ..], bytes)) = data.split_first_chunk::<3>() else { return };
    let snaplen = u32::from(u16::from_be_bytes(*snaplen));
    let read = |piece: usize| {
        let mut framer = Framer::new(snaplen);
        let mut taken = Taken::new(snaplen);
        let failed = bytes.chunks(piece).any(|piece| framer.push(piece, &mut taken).is_err());
        (taken, failed)
    };
    let whole = read(bytes.len().max(1));
    assert_eq!(whole, read(usize::from(*how) + 1), "how the bytes are cut must not matter");
    assert!(whole.0.bytes() <= bytes.len());
}
