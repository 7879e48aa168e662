//! What belongs together comes to one member of a fanout group.
//!
//! ```text
//! frames of one conversation, both directions, tagged or not --v0====v1--> one of four sources
//! ```

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::testnet::{self, Veth, in_netns, ipv4, udp};
use super::*;
use crate::source::Batch;

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn group(members: usize) -> Vec<PacketSource> {
    let geometry = Geometry::from_budget(4 << 20, 1).unwrap();
    let options = PacketOptions { geometry, retire_timeout_ms: 1 };
    let mut sources: Vec<_> = (0..members)
        .map(|_| PacketSource::open(&options, Waker::new().unwrap()).unwrap())
        .collect();
    let group = sources[0].join_fanout(None).unwrap();
    for source in &mut sources[1..] {
        source.join_fanout(Some(group)).unwrap();
    }
    for source in &mut sources {
        source.set_filter(&[]).unwrap();
    }
    sources
}

/// Sends the frames of each conversation, and expects each conversation's copies, at both ends of the
/// link, at one source.
fn meet(conversations: &[Vec<Vec<u8>>]) {
    in_netns(|| {
        for members in [2, 3, 4] {
            let veth = Veth::new();
            let mut sources = group(members);
            let mut of = HashMap::new();
            let (mut seen, mut got) = (HashMap::new(), vec![0; members]);
            let mut expected = 0;
            for (number, frames) in conversations.iter().enumerate() {
                for frame in frames {
                    of.insert(frame.clone(), number);
                    veth.send(frame);
                    expected += 2;
                }
                drain(&mut sources, &of, &mut seen, &mut got);
            }
            for _ in 0..2000 {
                drain(&mut sources, &of, &mut seen, &mut got);
                sources[0].wait(Duration::from_millis(1)).unwrap();
                if got.iter().sum::<usize>() >= expected {
                    break;
                }
            }
            assert_eq!(got.iter().sum::<usize>(), expected);
            let apart: Vec<_> = seen.iter().filter(|(_, sources)| sources.len() > 1).collect();
            assert!(apart.is_empty(), "{members} members: {} of {}", apart.len(), seen.len());
            assert!(got.iter().all(|count| *count > 0), "all get some: {got:?}");
            testnet::ip("link del v0");
        }
    });
}

/// Notes which source each waiting frame came to.
fn drain(
    sources: &mut [PacketSource],
    of: &HashMap<Vec<u8>, usize>,
    seen: &mut HashMap<usize, HashSet<usize>>,
    got: &mut [usize],
) {
    for (which, source) in sources.iter_mut().enumerate() {
        while let Some(batch) = source.next_batch() {
            for frame in batch.frames() {
                let bytes = frame.wire(usize::MAX).to_vec();
                let number = of.get(&bytes).expect("a frame that was sent");
                seen.entry(*number).or_default().insert(which);
                got[which] += 1;
            }
        }
    }
}

fn tagged(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0, 0, 9]);
    frame
}

fn v6(from: u16, to: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next, 64]);
    for end in [from, to] {
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(end.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// `payload` with an IPv6 fragment header before it.
fn piece(next: u8, offset: u16, more: bool, id: u32, payload: &[u8]) -> Vec<u8> {
    let word = offset | u16::from(more);
    [&[next, 0][..], &word.to_be_bytes(), &id.to_be_bytes(), payload].concat()
}

fn host(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low)
}

#[test]
fn thousands_of_fragmented_datagrams_each_meet_on_one_source() {
    let mut datagrams = Vec::new();
    for number in 1..=1500u16 {
        let datagram = udp(5000 + number, 53, 0, &[1; 2000]);
        // As sent, and as some hop may cut it again, tagged or not, with another identification.
        datagrams.push(vec![
            ipv4(host(number), A, number, 0x2000, 17, &datagram[..1200]),
            ipv4(host(number), A, number, 1200 / 8, 17, &datagram[1200..]),
            ipv4(host(number), A, number, 0x2000, 17, &datagram[..800]),
            tagged(ipv4(host(number), A, number, 0x2000 | (800 / 8), 17, &datagram[800..1600])),
            ipv4(host(number), A, number, 1600 / 8, 17, &datagram[1600..]),
            ipv4(A, host(number), number, 1600 / 8, 17, &datagram[1600..]),
        ]);
    }
    meet(&datagrams);
}

#[test]
fn the_fragments_of_ipv6_meet_too() {
    let mut datagrams = Vec::new();
    for number in 2..=1500u16 {
        let datagram = udp(5000 + number, 53, 7, &[1; 2000]);
        let id = u32::from(number);
        let options =
            [&[44, 0, 1, 4, 0, 0, 0, 0][..], &piece(17, 1200, false, id, &datagram[1200..])]
                .concat();
        datagrams.push(vec![
            v6(number, 1, 44, &piece(17, 0, true, id, &datagram[..1200])),
            v6(number, 1, 44, &piece(17, 1200, false, id, &datagram[1200..])),
            tagged(v6(number, 1, 44, &piece(17, 0, true, id + 9999, &datagram[..800]))),
            v6(number, 1, 44, &piece(17, 800, false, id + 9999, &datagram[800..])),
            v6(1, number, 44, &piece(17, 1200, false, id, &datagram[1200..])),
            // Behind a hop-by-hop header.
            v6(number, 1, 0, &options),
        ]);
    }
    meet(&datagrams);
}

#[test]
fn both_directions_meet_whatever_the_protocol() {
    let mut conversations = Vec::new();
    for number in 2..=300u16 {
        let there = |kind, payload: &[u8]| ipv4(host(number), A, number, 0, kind, payload);
        let back = |kind, payload: &[u8]| ipv4(A, host(number), number, 0, kind, payload);
        let [high, low] = number.to_be_bytes();
        // Echo: request and reply differ in type.
        let echo = |kind| [kind, 0, 0, 0, high, low, 0, 1];
        conversations.push(vec![there(1, &echo(8)), back(1, &echo(0)), tagged(there(1, &echo(8)))]);
        let ports = |from: u16, to: u16, len| {
            let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
            bytes.resize(len, 5);
            bytes
        };
        let (request, reply) = (ports(number, 80, 28), ports(80, number, 28));
        let mut tcp = [request.clone(), reply.clone()];
        tcp.iter_mut().for_each(|tcp| tcp[12] = 0x50);
        for (kind, [request, reply]) in
            [(6, tcp), (17, [request.clone(), reply.clone()]), (132, [request, reply])]
        {
            conversations.push(vec![
                there(kind, &request),
                back(kind, &reply),
                tagged(there(kind, &request)),
                tagged(back(kind, &reply)),
            ]);
            conversations.push(vec![v6(number, 1, kind, &request), v6(1, number, kind, &reply)]);
            // Destination options before the transport header.
            let behind = |l4: &[u8]| [&[kind, 0, 1, 4, 0, 0, 0, 0][..], l4].concat();
            conversations.push(vec![
                v6(number, 1, 60, &behind(&request)),
                v6(1, number, 60, &behind(&reply)),
                v6(number, 1, 0, &behind(&request)),
            ]);
        }
        // An experimental protocol, and GRE with a key and an inner packet each way.
        conversations.push(vec![there(253, &[1; 40]), back(253, &[2; 40])]);
        let gre = |inner: &[u8]| [&[0x20, 0, 8, 0, 0, 0, 0, 7], &inner[14..]].concat();
        conversations.push(vec![
            there(47, &gre(&there(17, &udp(9, number, 0, b"x")))),
            back(47, &gre(&back(17, &udp(number, 9, 0, b"y")))),
        ]);
    }
    meet(&conversations);
}
