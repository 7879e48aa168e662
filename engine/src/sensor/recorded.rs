//! Conversations of real peers, recorded: `$PODTAP_CAPTURES/rpcap`, or `../shared/captures/rpcap`
//! beside the checkout. Nothing here was written by us but the decoders.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{LegacyPcapReader, PcapBlockOwned, PcapError};

use super::capture::Capture;
use super::client::{Client, Event, Wishes};
use super::output::Output;
use super::reassembly::HOLD;
use crate::rpcap::{Filter, StartCapture};

/// What each file holds: packets, and the link type that OPEN announces.
const FILES: [(&str, u64, i32); 7] = [
    ("active-tcp", 16, 1),
    ("active-udp-eh-t0-preselected", 20, 1),
    ("active-udp", 34, 1),
    ("active-udpstr-eh-default", 46, 1),
    ("passive-tcp", 18, 1),
    ("passive-udp-any-sll", 20, 113),
    ("passive-udp", 14, 1),
];

fn directory() -> Option<PathBuf> {
    let given = std::env::var_os("PODTAP_CAPTURES").map(PathBuf::from);
    let checkout = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let beside = ["../../shared/captures", "../../../shared/captures"].map(|up| checkout.join(up));
    let found = given.into_iter().chain(beside).map(|path| path.join("rpcap"));
    let found = found.into_iter().find(|path| path.is_dir());
    if found.is_none() {
        eprintln!("SKIPPED: no recorded conversations: set PODTAP_CAPTURES");
    }
    found
}

/// A direction of a flow.
type Flow = (SocketAddr, SocketAddr);

#[derive(Default)]
struct Recording {
    datagrams: Vec<(Flow, Vec<u8>)>,
    /// Bytes in order, without what was sent twice.
    streams: BTreeMap<Flow, (u32, Vec<u8>)>,
}

impl Recording {
    fn read(path: &PathBuf) -> Self {
        let file = std::fs::File::open(path).unwrap();
        let mut reader = LegacyPcapReader::new(65_536, file).unwrap();
        let mut recording = Self::default();
        loop {
            match reader.next() {
                Ok((used, PcapBlockOwned::Legacy(block))) => {
                    recording.frame(block.data);
                    reader.consume(used);
                }
                Ok((used, _)) => reader.consume(used),
                Err(PcapError::Eof) => return recording,
                Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// An Ethernet frame with IPv4.
    fn frame(&mut self, frame: &[u8]) {
        let ip = &frame[14..];
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let l4 = &ip[usize::from(ip[0] & 15) * 4..total];
        let end = |ip: &[u8], port: &[u8]| {
            let ip = Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]);
            SocketAddr::new(IpAddr::V4(ip), u16::from_be_bytes([port[0], port[1]]))
        };
        let flow = (end(&ip[12..], l4), end(&ip[16..], &l4[2..]));
        match ip[9] {
            17 => self.datagrams.push((flow, l4[8..].to_vec())),
            6 => {
                let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                let payload = &l4[usize::from(l4[12] >> 4) * 4..];
                let is_syn = l4[13] & 2 != 0;
                let (next, bytes) =
                    self.streams.entry(flow).or_insert((sequence.wrapping_add(1), Vec::new()));
                if !is_syn && sequence == *next {
                    *next = next.wrapping_add(u32::try_from(payload.len()).unwrap());
                    bytes.extend(payload);
                }
            }
            other => panic!("protocol {other}"),
        }
    }
}

/// Lets our client hear, byte by byte, what a daemon said to another one.
fn listen(said: &[u8]) -> Vec<Event> {
    let now = Instant::now();
    // Some clients capture without listing, as ours does when it knows what to open.
    let auth = 8 + usize::from(said[7]);
    let is_listed = said.get(auth + 1) == Some(&0x82);
    let open = (!is_listed).then(|| "as recorded".to_owned());
    let mut client = Client::new(Wishes { open, ..Wishes::default() }, now);
    let mut all = Vec::new();
    for byte in said {
        let mut events = Vec::new();
        client.receive(now, &[*byte], &mut events).unwrap();
        if events.iter().any(|event| matches!(event, Event::Opened { .. })) {
            let request = StartCapture {
                snaplen: 0,
                read_timeout_ms: 0,
                flags: 0,
                port: 0,
                filter: Filter::default(),
            };
            client.start_capture(now, &request);
        }
        all.extend(events);
    }
    all
}

#[test]
fn every_recorded_packet_is_found() {
    let Some(directory) = directory() else { return };
    for (name, packets, _) in FILES {
        let recording = Recording::read(&directory.join(format!("{name}.pcap")));
        let mut output = Output::nowhere(None);
        let mut captures: BTreeMap<SocketAddr, Capture> = BTreeMap::new();
        let capture = |from: SocketAddr| Capture::new(from.ip(), 262_144, HOLD, None);
        for ((from, to), bytes) in &recording.datagrams {
            captures.entry(*to).or_insert_with(|| capture(*from)).datagram(
                Instant::now(),
                Some(*from),
                bytes,
                &mut output,
            );
        }
        for ((from, to), (_, bytes)) in &recording.streams {
            if bytes.starts_with(&[0, 7]) {
                let capture = captures.entry(*to).or_insert_with(|| capture(*from));
                bytes.chunks(100).for_each(|piece| capture.stream(piece, &mut output).unwrap());
            }
        }
        let mut found = 0;
        for capture in captures.values() {
            let counts = capture.counts();
            assert_eq!((counts.gaps, counts.lost_packets), (0, 0), "{name}");
            assert_eq!((counts.malformed.total(), counts.foreign), (0, 0), "{name}");
            found += counts.packets;
        }
        assert_eq!(found, packets, "{name}");
    }
}

#[test]
fn every_recorded_daemon_is_understood() {
    let Some(directory) = directory() else { return };
    for (name, _, linktype) in FILES {
        let recording = Recording::read(&directory.join(format!("{name}.pcap")));
        let mut started = 0;
        for (_, said) in recording.streams.values().filter(|(_, said)| said.starts_with(&[0, 0x88]))
        {
            for event in &listen(said) {
                match event {
                    Event::Opened { linktype: opened, .. } => assert_eq!(*opened, linktype),
                    Event::Started(_) => started += 1,
                    Event::Stats(stats) => assert!(stats.received >= stats.sent),
                    other => panic!("{name}: {other:?}"),
                }
            }
        }
        assert!(started > 0, "{name}");
    }
}
