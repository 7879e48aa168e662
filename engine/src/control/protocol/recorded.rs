//! Conversations that real clients had with real daemons, held again with ours.
//!
//! The recordings are not part of the repository: `$PODTAP_CAPTURES/rpcap`, or `../shared/captures`
//! beside the checkout.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::bench::{Bench, replies};

/// Ports that daemons connect to (active mode) and listen on (passive mode).
const ACTIVE: u16 = 2003;
const PASSIVE: u16 = 2002;

/// One control connection.
#[derive(Default)]
struct Recorded {
    client: Vec<u8>,
    daemon: Vec<u8>,
}

/// One direction of a TCP connection, its segments by sequence number.
type Segments = BTreeMap<u32, Vec<u8>>;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The control connections of a little-endian pcap file of Ethernet and IPv4.
fn connections(file: &[u8]) -> Vec<Recorded> {
    assert_eq!(file[..4], 0xa1b2_c3d4u32.to_le_bytes(), "little-endian pcap");
    let mut directions: BTreeMap<(u16, u16), Segments> = BTreeMap::new();
    let mut rest = &file[24..];
    while let Some((header, tail)) = rest.split_at_checked(16) {
        let caplen = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let (frame, tail) = tail.split_at(usize::try_from(caplen).unwrap());
        rest = tail;
        if be16(frame, 12) != 0x0800 || frame[23] != 6 {
            continue;
        }
        let packet = &frame[14..14 + usize::from(be16(frame, 16))];
        let tcp = &packet[usize::from(packet[0] & 15) * 4..];
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        if !payload.is_empty() {
            let direction = directions.entry((be16(tcp, 0), be16(tcp, 2))).or_default();
            let segment = direction.entry(sequence).or_default();
            if segment.len() < payload.len() {
                *segment = payload.to_vec();
            }
        }
    }
    let mut connections: BTreeMap<(u16, u16), Recorded> = BTreeMap::new();
    for ((from, to), segments) in directions {
        let bytes = join(segments);
        match (from, to) {
            (ACTIVE, _) => connections.entry((from, to)).or_default().client = bytes,
            (_, ACTIVE) => connections.entry((to, from)).or_default().daemon = bytes,
            (_, PASSIVE) => connections.entry((from, to)).or_default().client = bytes,
            (PASSIVE, _) => connections.entry((to, from)).or_default().daemon = bytes,
            _ => {}
        }
    }
    connections.into_values().collect()
}

/// The bytes in order, retransmitted ones once.
fn join(segments: Segments) -> Vec<u8> {
    let first = *segments.keys().next().unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    for (sequence, segment) in segments {
        let at = usize::try_from(sequence.wrapping_sub(first)).unwrap();
        assert!(at <= bytes.len(), "the recording has a hole");
        bytes.extend(segment.iter().skip(bytes.len() - at));
    }
    bytes
}

#[test]
fn recorded_clients_get_the_replies_they_got_from_their_daemons() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/captures");
    let captures = std::env::var_os("PODTAP_CAPTURES").unwrap_or_else(|| beside.into());
    let directory = PathBuf::from(captures).join("rpcap");
    let Ok(files) = std::fs::read_dir(&directory) else {
        eprintln!("SKIPPED: no recorded conversations in {}", directory.display());
        return;
    };
    let mut count = 0;
    for file in files.map(|file| file.unwrap().path()) {
        if file.extension().is_none_or(|extension| extension != "pcap") {
            continue;
        }
        for recorded in connections(&std::fs::read(&file).unwrap()) {
            let mut bench = Bench::new(None);
            let ours = replies(&bench.talk(&recorded.client));
            assert_eq!(ours, replies(&recorded.daemon), "{}", file.display());
            assert!(ours.iter().all(|(kind, _)| *kind != 1), "{}: {ours:?}", file.display());
            assert!(!bench.starts.is_empty(), "{}: no capture was asked for", file.display());
            count += 1;
        }
    }
    assert!(count >= 7, "only {count} conversations in {}", directory.display());
}
