//! Frames made by hand; the kernel as the judge is in `oracle`.

use super::fix::{TCP_CWR, TCP_FIN, TCP_PSH};
use super::plan::gso;
use super::*;
use crate::frame::{Direction, Point, internet_checksum};
use crate::wire::{Network, protocol};
use proptest::prelude::*;

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
    let mut data = super_frame(Network::V4, protocol::UDP, &[5; 250]);
    let without = segments(&frame(&data, gso::UDP_L4, 100)).unwrap();
    assert!(without.iter().all(|segment| segment[40..42] == [0, 0]), "no checksum stays none");
    data[40] = 1;
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
    let empty = super_frame(Network::V4, protocol::TCP, &[]);
    assert!(segments(&frame(&empty, gso::TCPV4, 100)).is_none());
    assert!(segments(&frame(&tcp[..20], gso::TCPV4, 100)).is_none(), "a runt");
    assert!(segments(&frame(&tcp, gso::TCPV4, u16::MAX)).is_none(), "no segment of that size");
}

#[test]
fn what_was_captured_in_part_is_cut_as_far_as_it_goes() {
    let payload: Vec<u8> = (0..2500).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (network, kind) in [(Network::V4, gso::TCPV4), (Network::V6, gso::TCPV6)] {
        let data = super_frame(network, protocol::TCP, &payload);
        let whole = segments(&frame(&data, kind, 1000)).unwrap();
        let header = data.len() - payload.len();
        for captured in [header, header + 1, header + 1000, header + 1700, data.len() - 1] {
            let short = Frame { data: &data[..captured], ..frame(&data, kind, 1000) };
            let headers = Headers::parse(short.data);
            let mut at = 0;
            let cut = Cutter::default().cut(&short, &headers, |segment, headers| {
                let full = &whole[at];
                assert_eq!(segment.wire_len as usize, full.len());
                assert_eq!(headers.end, segment.data.len());
                // But for the checksum, which needs what is missing.
                let mut same = full[..segment.data.len()].to_vec();
                if segment.data.len() < full.len() {
                    same[headers.l4 + 16..headers.l4 + 18]
                        .copy_from_slice(&segment.data[headers.l4 + 16..headers.l4 + 18]);
                }
                assert_eq!(segment.data, same);
                at += 1;
            });
            assert_eq!((cut, at), (Cut::Truncated, 3));
        }
    }
}

#[test]
fn the_jumbo_header_of_big_tcp_is_not_on_the_wire() {
    let payload: Vec<u8> = (0..100_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let plain = super_frame(Network::V6, protocol::TCP, &payload);
    let len = u32::try_from(plain.len() - 54 + 8).unwrap().to_be_bytes();
    for has_header in [false, true] {
        let mut data = plain.clone();
        data[18..20].fill(0);
        if has_header {
            data[20] = 0;
            data.splice(54..54, [&[6, 0, 0xc2, 4][..], &len].concat());
        }
        let cut = segments(&frame(&data, gso::TCPV6, 1400)).unwrap();
        assert_eq!(cut.len(), 72);
        let mut joined = Vec::new();
        for segment in &cut {
            assert_eq!((segment[20], residue(segment)), (protocol::TCP, 0));
            assert_eq!(
                usize::from(segment[18]) * 256 + usize::from(segment[19]) + 54,
                segment.len()
            );
            joined.extend_from_slice(&segment[86..]);
        }
        assert_eq!(joined, payload);
    }
    let mut data = super_frame(Network::V4, protocol::TCP, &payload);
    data[16..18].fill(0);
    assert_eq!(segments(&frame(&data, gso::TCPV4, 1400)).unwrap().len(), 72);
}

#[test]
fn what_cannot_be_cut_is_shown_as_far_as_a_wire_can_have_carried_it() {
    let tcp = super_frame(Network::V4, protocol::TCP, &[5; 2500]);
    let odd = frame(&tcp, 3, 1000);
    let shown = clip(&odd, &Headers::parse(&tcp), Some(9001));
    assert_eq!((shown.data.len(), shown.wire_len as usize), (14 + 52 + 1000, tcp.len()));
    assert_eq!(clip(&odd, &Headers::parse(&tcp), Some(500)).data.len(), 514);
    let noise = vec![7; 3000];
    let odd = frame(&noise, 3, 1000);
    assert_eq!(clip(&odd, &Headers::parse(&noise), None).data.len(), 1014);
    let large = frame(&noise, 3, u16::MAX);
    assert_eq!(clip(&large, &Headers::parse(&noise), Some(1500)).data.len(), 1514);
    let runt = frame(&noise[..5], 3, 1);
    assert_eq!(clip(&runt, &Headers::parse(runt.data), None).data.len(), 5);
}

/// `inner`, a frame, in VXLAN over IPv4.
fn in_vxlan(inner: &[u8], checksum: u16) -> Vec<u8> {
    let mut data =
        super_frame(Network::V4, protocol::UDP, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat());
    data[36..38].copy_from_slice(&4789_u16.to_be_bytes());
    let len = low16(data.len() - 34).to_be_bytes();
    data[38..40].copy_from_slice(&len);
    data[40..42].copy_from_slice(&checksum.to_be_bytes());
    data
}

#[test]
fn a_super_frame_in_a_tunnel_is_cut_inside() {
    let payload: Vec<u8> = (0..2500).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for (network, kind) in [(Network::V4, gso::TCPV4), (Network::V6, gso::TCPV6)] {
        let inner = super_frame(network, protocol::TCP, &payload);
        let expected = segments(&frame(&inner, kind, 1000)).unwrap();
        let start = 50 + if network == Network::V4 { 34 } else { 54 };
        for checksum in [0, 7] {
            let data = in_vxlan(&inner, checksum);
            for partial in [None, Some((start, 16))] {
                let mut whole = frame(&data, kind, 1000);
                whole.offload.partial_checksum = partial;
                let cut = segments(&whole).unwrap();
                assert_eq!(cut.len(), 3);
                for (segment, inner) in cut.iter().zip(&expected) {
                    assert_eq!(segment[50..], *inner);
                    assert_eq!(internet_checksum(&segment[14..34]), 0);
                    match checksum {
                        0 => assert_eq!(segment[40..42], [0, 0]),
                        _ => assert_eq!(residue(segment), 0),
                    }
                }
            }
            // The checksum begins somewhere else: not a tunnel that is known here.
            let mut odd = frame(&data, kind, 1000);
            odd.offload.partial_checksum = Some((start + 2, 16));
            assert!(segments(&odd).is_none());
        }
    }
}

proptest! {
    /// What is cut, joined again, is what was cut; every length and checksum is right.
    #[test]
    fn segments_joined_are_the_super_frame(
        is_v6: bool, is_udp: bool, len in 1usize..20_000, size in 1u16..9000, seed: u8, tunnel: bool,
    ) {
        let network = if is_v6 { Network::V6 } else { Network::V4 };
        let of = if is_udp { protocol::UDP } else { protocol::TCP };
        let size = size.max(u16::try_from(len / 60).unwrap()).max(1);
        let payload: Vec<u8> =
            (0..len).map(|n| u8::try_from((n * 31 + usize::from(seed)) % 251).unwrap()).collect();
        let mut data = super_frame(network, of, &payload);
        let l4 = if is_v6 { 54 } else { 34 };
        if is_udp { data[l4 + 6] = 1; }
        let kind = match (is_udp, is_v6) {
            (true, _) => gso::UDP_L4,
            (false, false) => gso::TCPV4,
            (false, true) => gso::TCPV6,
        };
        let before = if tunnel { 50 } else { 0 };
        let whole = if tunnel { in_vxlan(&data, 0) } else { data.clone() };
        let mut whole = frame(&whole, kind, size);
        whole.offload.partial_checksum =
            Some((u16::try_from(before + l4).unwrap(), if is_udp { 6 } else { 16 }));
        let cut = segments(&whole).unwrap();
        prop_assert_eq!(cut.len(), len.div_ceil(size.into()));
        let mut joined = Vec::new();
        for segment in &cut {
            let inner = &segment[before..];
            let headers = Headers::parse(inner);
            prop_assert_eq!(headers.end, inner.len());
            prop_assert_eq!(residue(inner), 0);
            if !is_v6 { prop_assert_eq!(internet_checksum(&inner[14..34]), 0); }
            joined.extend_from_slice(&inner[headers.payload..]);
        }
        prop_assert_eq!(joined, payload);
    }

    /// Whatever headers and offloads say, nothing panics, and what was cut has its verdict.
    #[test]
    fn garbage_is_cut_or_not_but_never_a_panic(
        hits in proptest::collection::vec((0usize..140, any::<u8>()), 0..12),
        kind in 0u8..8, size: u16, partial in proptest::option::of((0u16..200, 0u16..20)),
        captured in 0usize..600, more in 0u32..200_000, is_v6: bool, tunnel: bool,
    ) {
        let network = if is_v6 { Network::V6 } else { Network::V4 };
        let mut data = super_frame(network, protocol::TCP, &[3; 400]);
        if tunnel { data = in_vxlan(&data, 5); }
        for (at, value) in hits {
            if let Some(byte) = data.get_mut(at) { *byte = value; }
        }
        data.truncate(captured);
        let mut whole = frame(&data, kind, size);
        whole.wire_len += more;
        whole.offload.partial_checksum = partial;
        let headers = Headers::parse(&data);
        let mut count = 0;
        let cut = Cutter::default().cut(&whole, &headers, |segment, headers| {
            assert!(headers.end <= segment.data.len());
            assert!(segment.wire_len as usize >= segment.data.len());
            count += 1;
        });
        prop_assert_eq!(cut == Cut::Impossible, count == 0);
        let shown = clip(&whole, &headers, Some(1500));
        prop_assert!(shown.data.len() <= data.len());
    }
}
