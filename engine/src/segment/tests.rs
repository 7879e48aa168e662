//! Frames made by hand; the kernel as the judge is in `oracle`.

use super::fix::{TCP_CWR, TCP_FIN, TCP_PSH};
use super::plan::gso;
use super::*;
use crate::frame::{Direction, Point, internet_checksum};
use crate::wire::{Network, protocol};

fn low16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).unwrap()
}

fn super_frame(network: Network, l4_protocol: u8, payload: &[u8]) -> Vec<u8> {
    let l4_len = if l4_protocol == protocol::TCP { 32 } else { 8 };
    let mut data = vec![2; 12];
    if network == Network::V4 {
        data.extend([8, 0]);
        let total = low16(20 + l4_len + payload.len()).to_be_bytes();
        data.extend([0x45, 0, total[0], total[1], 0xff, 0xfe, 0x40, 0, 64, l4_protocol, 0, 0]);
        data.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    } else {
        data.extend([0x86, 0xdd]);
        let len = low16(l4_len + payload.len()).to_be_bytes();
        data.extend([0x60, 0, 0, 0, len[0], len[1], l4_protocol, 64]);
        data.extend([0xfd; 16]);
        data.extend([0xfe; 16]);
    }
    let l4 = data.len();
    data.resize(l4 + l4_len, 0);
    data[l4..l4 + 4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
    if l4_protocol == protocol::TCP {
        data[l4 + 4..l4 + 8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
        data[l4 + 12] = 0x80;
        data[l4 + 13] = TCP_CWR | TCP_PSH | TCP_FIN | 0x10;
        data[l4 + 20..l4 + 32].fill(1); // NOPs
    }
    data.extend(payload);
    data
}

fn frame(data: &[u8], gso_type: u8, gso_size: u16) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 7,
        point: Point { ifindex: 1, direction: Direction::In },
        vlan: None,
        offload: Offload { partial_checksum: None, gso_size, gso_type },
    }
}

fn segments(frame: &Frame<'_>) -> Option<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    let headers = Headers::parse(frame.data);
    let cut = Cutter::default().cut(frame, &headers, |segment, cut| {
        assert_eq!(Headers::parse(segment.data), *cut, "the headers are the segment's own");
        out.push(segment.data.to_vec());
    });
    (cut != Cut::Impossible).then_some(out)
}

/// Zero for a right checksum, from the wire alone.
fn residue(data: &[u8]) -> u16 {
    let headers = Headers::parse(data);
    let mut covered = Vec::<u8>::new();
    match headers.network {
        Network::V4 => covered.extend(&data[26..34]),
        _ => covered.extend(&data[22..54]),
    }
    covered.extend([0, headers.protocol]);
    covered.extend(low16(headers.end - headers.l4).to_be_bytes());
    covered.extend(&data[headers.l4..headers.end]);
    internet_checksum(&covered)
}

#[test]
fn tcp_is_cut_as_the_wire_carries_it() {
    let payload: Vec<u8> = (0..2500).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (network, kind) in [(Network::V4, gso::TCPV4), (Network::V6, gso::TCPV6)] {
        let data = super_frame(network, protocol::TCP, &payload);
        let cut = segments(&frame(&data, kind, 1000)).unwrap();
        assert_eq!(cut.len(), 3);
        let mut joined = Vec::<u8>::new();
        for (at, segment) in cut.iter().enumerate() {
            let headers = Headers::parse(segment);
            assert_eq!(residue(segment), 0, "{network:?} {at}");
            joined.extend(&segment[headers.payload..headers.end]);
            let l4 = &segment[headers.l4..];
            let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            let expected = 0xffff_ff00_u32.wrapping_add(1000 * u32::try_from(at).unwrap());
            assert_eq!(sequence, expected);
            let flags = [TCP_CWR | 0x10, 0x10, TCP_PSH | TCP_FIN | 0x10][at];
            assert_eq!(l4[13], flags);
            if network == Network::V4 {
                assert_eq!(internet_checksum(&segment[14..34]), 0);
                assert_eq!(segment[18..20], [[0xff, 0xfe], [0xff, 0xff], [0, 0]][at]);
            }
        }
        assert_eq!(joined, payload);
    }
}

#[test]
fn udp_becomes_datagrams() {
    let data = super_frame(Network::V4, protocol::UDP, &[5; 250]);
    let cut = segments(&frame(&data, gso::UDP_L4, 100)).unwrap();
    let lens: Vec<usize> = cut.iter().map(Vec::len).collect();
    assert_eq!(lens, [142, 142, 92]);
    for segment in &cut {
        assert_eq!(residue(segment), 0);
        assert_eq!(usize::from(segment[39]) + usize::from(segment[38]) * 256, segment.len() - 34);
    }
}

#[test]
fn what_cannot_be_cut_stays_whole() {
    let tcp = super_frame(Network::V4, protocol::TCP, &[5; 250]);
    assert!(segments(&frame(&tcp, 3, 100)).is_none(), "IP fragmentation offload");
    assert!(segments(&frame(&tcp, gso::TCPV6, 100)).is_none(), "the wrong family");
    assert!(segments(&frame(&tcp, gso::TCPV4, 0)).is_none());
    let cut_short = Frame { wire_len: 9000, ..frame(&tcp, gso::TCPV4, 100) };
    assert!(segments(&cut_short).is_none(), "not captured whole");
    let empty = super_frame(Network::V4, protocol::TCP, &[]);
    assert!(segments(&frame(&empty, gso::TCPV4, 100)).is_none());
    assert!(segments(&frame(&tcp[..20], gso::TCPV4, 100)).is_none(), "a runt");
    assert!(segments(&frame(&tcp, gso::TCPV4, u16::MAX)).is_none(), "no segment of that size");
}
