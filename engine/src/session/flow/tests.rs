use proptest::prelude::*;

use super::*;
use crate::wire::protocol;

/// An Ethernet frame with an IPv4 packet.
fn v4(proto: u8, ends: [[u8; 4]; 2], flags: u16, id: u16, l4: &[u8]) -> Vec<u8> {
    [&[0; 12][..], &[8, 0], &v4_packet(proto, ends, flags, id, l4)].concat()
}

fn v4_packet(proto: u8, ends: [[u8; 4]; 2], flags: u16, id: u16, l4: &[u8]) -> Vec<u8> {
    let mut data = vec![0x45, 0];
    data.extend(u16::try_from(20 + l4.len()).unwrap().to_be_bytes());
    data.extend(id.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data.extend([64, proto, 0, 0]);
    data.extend(ends.concat());
    data.extend(l4);
    data
}

fn v6_packet(next: u8, ends: [[u8; 16]; 2], rest: &[u8]) -> Vec<u8> {
    let mut data = vec![0x60, 0, 0, 0];
    data.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    data.extend([next, 64]);
    data.extend(ends.concat());
    data.extend(rest);
    data
}

fn v6(next: u8, ends: [[u8; 16]; 2], rest: &[u8]) -> Vec<u8> {
    [&[0; 12][..], &[0x86, 0xdd], &v6_packet(next, ends, rest)].concat()
}

fn udp(ports: [u16; 2]) -> Vec<u8> {
    let [source, destination] = ports.map(u16::to_be_bytes);
    [&source[..], &destination, &[0, 9, 0, 0, b'x']].concat()
}

fn tcp(ports: [u16; 2]) -> Vec<u8> {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&ports[0].to_be_bytes());
    header[2..4].copy_from_slice(&ports[1].to_be_bytes());
    header[12] = 0x50;
    header.to_vec()
}

fn flow(flows: &mut Flows, frame: &[u8]) -> u64 {
    let headers = Headers::parse(frame);
    flows.note(&headers);
    flows.of(frame, &headers)
}

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 1, 7];

#[test]
fn a_flows_number_is_the_same_in_every_version_and_on_every_machine() {
    let number = flow(&mut Flows::default(), &v4(protocol::UDP, [A, B], 0, 1, &udp([5353, 53])));
    assert_eq!(number, UDP_FLOW, "{number:#x}: nodes of two versions would split flows");
}
const UDP_FLOW: u64 = 0xdc7a_ccc6_6a3b_7a85;

proptest! {
    #[test]
    fn both_directions_are_one_flow(a: [u8; 4], b: [u8; 4], a6: [u8; 16], b6: [u8; 16],
                                    ports: [u16; 2], is_tcp: bool, id: u16) {
        let mut flows = Flows::default();
        let back = [ports[1], ports[0]];
        let (proto, there, back) = match is_tcp {
            true => (protocol::TCP, tcp(ports), tcp(back)),
            false => (protocol::UDP, udp(ports), udp(back)),
        };
        let out = flow(&mut flows, &v4(proto, [a, b], 0, id, &there));
        prop_assert_eq!(out, flow(&mut flows, &v4(proto, [b, a], 0x4000, 0, &back)));
        let out6 = flow(&mut flows, &v6(proto, [a6, b6], &there));
        // With hop-by-hop options on the way back.
        let options = [&[proto, 0, 1, 4, 0, 0, 0, 0][..], &back].concat();
        prop_assert_eq!(out6, flow(&mut flows, &v6(0, [b6, a6], &options)));
        prop_assert_eq!(flows.strays, 0);
    }

    #[test]
    fn any_bytes_have_a_flow(mut data in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4u8) {
        if data.len() > 34 && kind < 3 {
            data[12..14].copy_from_slice(&[8, 0]);
            data[14] = 0x45;
            data[23] = protocol::ICMP;
            data[34] = 3;
        }
        let mut flows = Flows::default();
        let one = flow(&mut flows, &data);
        prop_assert_eq!(one, flow(&mut flows, &data));
    }
}

#[test]
fn ports_protocol_and_addresses_tell_flows_apart() {
    let mut flows = Flows::default();
    let frames = [
        v4(protocol::UDP, [A, B], 0, 1, &udp([1000, 53])),
        v4(protocol::UDP, [A, B], 0, 1, &udp([1001, 53])),
        v4(protocol::UDP, [A, B], 0, 1, &udp([53, 1000])), // the ports the other way: another flow
        v4(protocol::TCP, [A, B], 0, 1, &tcp([1000, 53])),
        v4(protocol::UDP, [A, [10, 0, 1, 8]], 0, 1, &udp([1000, 53])),
        v4(47, [A, B], 0, 1, &[0; 8]),
        v4(protocol::ICMP, [A, B], 0, 1, &[8, 0, 0, 0, 0, 1, 0, 1]),
    ];
    let numbers: std::collections::HashSet<u64> =
        frames.iter().map(|frame| flow(&mut flows, frame)).collect();
    assert_eq!(numbers.len(), frames.len());
}

#[test]
fn vlan_tags_do_not_matter() {
    let mut flows = Flows::default();
    let plain = v4(protocol::UDP, [A, B], 0, 1, &udp([1000, 53]));
    let tagged = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
    assert_eq!(flow(&mut flows, &plain), flow(&mut flows, &tagged));
}

#[test]
fn fragments_follow_their_flow() {
    let mut flows = Flows::default();
    let whole = flow(&mut flows, &v4(protocol::UDP, [A, B], 0, 1, &udp([1000, 53])));
    let first = flow(&mut flows, &v4(protocol::UDP, [A, B], 0x2000, 77, &udp([1000, 53])));
    let later = flow(&mut flows, &v4(protocol::UDP, [A, B], 0x2001, 77, &[1; 8]));
    let last = flow(&mut flows, &v4(protocol::UDP, [A, B], 0x0002, 77, &[1; 8]));
    assert_eq!([first, later, last], [whole; 3]);
    assert_eq!(flows.strays, 0);

    let fragment = |offset: u8, more: u8, rest: &[u8]| {
        [&[17, 0, 0, offset | more, 0, 0, 0, 5][..], rest].concat()
    };
    let ends = [[1; 16], [2; 16]];
    let whole = flow(&mut flows, &v6(17, ends, &udp([1000, 53])));
    let first = flow(&mut flows, &v6(44, ends, &fragment(0, 1, &udp([1000, 53]))));
    let last = flow(&mut flows, &v6(44, ends, &fragment(16, 0, &[1; 8])));
    assert_eq!([first, last, flows.strays], [whole, whole, 0]);
}

#[test]
fn a_fragment_whose_first_was_not_seen_goes_by_its_addresses_and_is_counted() {
    let mut flows = Flows::default();
    let there = flow(&mut flows, &v4(protocol::UDP, [A, B], 0x0002, 78, &[1; 8]));
    let back = flow(&mut flows, &v4(protocol::UDP, [B, A], 0x0002, 79, &[1; 8]));
    assert_eq!((there, flows.strays), (back, 2));
    // The id of another pair of hosts is another packet's.
    flow(&mut flows, &v4(protocol::UDP, [A, [9; 4]], 0x2000, 78, &udp([1, 2])));
    assert_eq!(flow(&mut flows, &v4(protocol::UDP, [A, B], 0x0002, 78, &[1; 8])), there);
}

#[test]
fn the_memory_of_fragments_is_bounded_and_keeps_the_newest() {
    let mut flows = Flows::default();
    let first = |id: u16| v4(protocol::UDP, [A, B], 0x2000, id, &udp([id, 53]));
    for id in 0..u16::MAX {
        flow(&mut flows, &first(id));
    }
    assert_eq!(flows.fragmented.len(), SETS);
    let newest = u16::MAX - 1;
    let expected = flow(&mut Flows::default(), &first(newest));
    let later = v4(protocol::UDP, [A, B], 0x0001, newest, &[0; 8]);
    assert_eq!((flow(&mut flows, &later), flows.strays), (expected, 0));
}

#[test]
fn an_icmp_error_follows_the_packet_that_it_is_about() {
    let mut flows = Flows::default();
    let router = [192, 0, 2, 1];
    for (proto, l4) in [(protocol::UDP, udp([1000, 53])), (protocol::TCP, tcp([1000, 53]))] {
        let expected = flow(&mut flows, &v4(proto, [A, B], 0, 1, &l4));
        // Of the transport header, eight bytes are carried.
        let mut carried = v4_packet(proto, [A, B], 0, 1, &l4);
        carried.truncate(28);
        for kind in [3, 11, 12] {
            let error = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &carried].concat();
            let frame = v4(protocol::ICMP, [router, A], 0, 9, &error);
            assert_eq!(flow(&mut flows, &frame), expected, "type {kind}");
        }
        let ends = [[1; 16], [2; 16]];
        let expected = flow(&mut flows, &v6(proto, ends, &l4));
        let mut carried = v6_packet(proto, ends, &l4);
        carried.truncate(48);
        let error = [&[2, 0, 0, 0, 0, 0, 5, 0][..], &carried].concat();
        let frame = v6(protocol::ICMPV6, [[3; 16], [1; 16]], &error);
        assert_eq!(flow(&mut flows, &frame), expected);
    }
    // An echo carries no packet, whatever its bytes look like.
    let carried = v4_packet(protocol::UDP, [A, B], 0, 1, &udp([1000, 53]));
    let echo = [&[8, 0, 0, 0, 0, 0, 0, 0][..], &carried].concat();
    let frame = v4(protocol::ICMP, [router, A], 0, 9, &echo);
    let bare = v4(protocol::ICMP, [A, router], 0, 9, &[0; 8]);
    assert_eq!(flow(&mut flows, &frame), flow(&mut flows, &bare));
}

#[test]
fn what_is_not_ip_goes_by_its_mac_addresses() {
    let mut flows = Flows::default();
    let frame = |to: u8, from: u8| [&[to; 6][..], &[from; 6], &[8, 6], &[0; 28]].concat();
    assert_eq!(flow(&mut flows, &frame(1, 2)), flow(&mut flows, &frame(2, 1)));
    assert_ne!(flow(&mut flows, &frame(1, 2)), flow(&mut flows, &frame(1, 3)));
}
