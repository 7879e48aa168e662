//! A small node, and what its classifier says of frames.

use super::*;
use crate::frame::Offload;
use crate::net::Link;
use crate::wire::ethertype;

pub(crate) const UPLINK: u32 = 2;
pub(crate) const POD: u32 = 10;

pub(crate) fn link(ifindex: u32, role: Role, kind: &str) -> (u32, Link) {
    let link = Link {
        ifindex,
        name: format!("if{ifindex}"),
        kind: kind.into(),
        is_ethernet: true,
        is_up: true,
        is_running: true,
        is_loopback: false,
        mac: vec![2, 0, 0, 0, 0, 1],
        mtu: 1500,
        addresses: Vec::new(),
        role,
        slot: u16::try_from(ifindex).unwrap(),
        is_tapped: true,
    };
    (ifindex, link)
}

/// A link that is nothing special.
pub(crate) fn link_for_test(ifindex: u32) -> (u32, Link) {
    link(ifindex, Role::Other, "")
}

pub(crate) fn view() -> View {
    View {
        links: [link(UPLINK, Role::Uplink, ""), link(POD, Role::Pod, "veth")].into(),
        own: vec!["10.0.1.10".parse().unwrap(), "172.20.0.10".parse().unwrap()],
        local: ["10.0.1.10/32", "10.0.1.101/32", "fd00:1::101/128"]
            .map(|net| net.parse().unwrap())
            .into(),
        ..View::default()
    }
}

pub(crate) fn policy() -> Policy {
    Policy {
        svcnet: vec!["172.20.0.0/16".parse().unwrap()],
        tapped: vec!["10.0.0.0/16".parse().unwrap(), "fd00::/16".parse().unwrap()],
        untapped: vec!["10.0.200.0/24".parse().unwrap()],
        overlay_ports: vec![4789],
        any_interface: true,
        control_ports: vec![2003],
        ..Policy::default()
    }
}

pub(crate) fn packet(protocol: u8, source: &str, destination: &str, l4: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    let mut data = vec![0; 12];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            data.extend(ethertype::IPV4.to_be_bytes());
            let total = u16::try_from(20 + l4.len()).unwrap().to_be_bytes();
            data.extend([0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0]);
            data.extend(source.octets());
            data.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            data.extend(ethertype::IPV6.to_be_bytes());
            let len = u16::try_from(l4.len()).unwrap().to_be_bytes();
            data.extend([0x60, 0, 0, 0, len[0], len[1], protocol, 64]);
            data.extend(source.octets());
            data.extend(destination.octets());
        }
        _ => panic!("one family"),
    }
    data.extend(l4);
    data
}

pub(crate) fn udp(source: &str, destination: &str, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(ports.0.to_be_bytes());
    l4.extend(ports.1.to_be_bytes());
    l4.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    packet(protocol::UDP, source, destination, &l4)
}

pub(crate) fn tcp(source: &str, destination: &str, ports: (u16, u16)) -> Vec<u8> {
    let mut l4 = vec![0; 20];
    l4[..2].copy_from_slice(&ports.0.to_be_bytes());
    l4[2..4].copy_from_slice(&ports.1.to_be_bytes());
    l4[12] = 0x50;
    packet(protocol::TCP, source, destination, &l4)
}

pub(crate) fn at(data: &[u8], ifindex: u32, direction: Direction) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 0,
        point: Point { ifindex, direction },
        vlan: None,
        offload: Offload::default(),
    }
}

pub(crate) fn ask(classifier: &Classifier, frame: &Frame<'_>) -> Result<Scope, DropReason> {
    classifier.classify(frame, &Headers::parse(frame.data))
}

pub(crate) fn classifier() -> Classifier {
    Classifier::new(&policy(), &view(), &["10.0.250.10".parse().unwrap()])
}

use Direction::{In, Out};

#[test]
fn the_senders_node_reports() {
    let c = classifier();
    let local = udp("10.0.1.101", "10.0.2.101", (1000, 53), b"x");
    assert_eq!(ask(&c, &at(&local, POD, In)).map(|scope| scope.point), Ok(21));
    assert_eq!(ask(&c, &at(&local, UPLINK, Out)).map(|scope| scope.point), Ok(4));
    let covered = udp("10.0.2.101", "10.0.1.101", (53, 1000), b"x");
    assert_eq!(ask(&c, &at(&covered, UPLINK, In)), Err(DropReason::Covered));
    assert_eq!(ask(&c, &at(&covered, POD, Out)), Err(DropReason::Covered));
    let v6 = udp("fd00:2::101", "fd00:1::101", (53, 1000), b"x");
    assert_eq!(ask(&c, &at(&v6, UPLINK, In)), Err(DropReason::Covered));
}

#[test]
fn a_doubt_costs_a_duplicate_never_a_loss() {
    let c = classifier();
    for outside in ["203.0.113.10", "10.0.200.5"] {
        let data = udp(outside, "10.0.1.101", (53, 1000), b"x");
        assert!(ask(&c, &at(&data, UPLINK, In)).is_ok(), "{outside} runs no tap");
    }
    // A pod whose route netlink has not told of yet: its frames enter at a local interface.
    let new_pod = udp("10.0.1.222", "10.0.2.101", (1000, 53), b"x");
    assert!(ask(&c, &at(&new_pod, POD, In)).is_ok());
    // Interfaces that netlink has not told of yet share a number: their packets are copies elsewhere.
    assert_eq!(ask(&c, &at(&new_pod, 99, In)).map(|scope| scope.point), Ok(2047));
    let known = udp("10.0.1.101", "10.0.2.101", (1000, 53), b"x");
    assert_eq!(ask(&c, &at(&known, 98, Out)).map(|scope| scope.point), Ok(2046));
    let chosen = Classifier { any_interface: false, ..c };
    assert_eq!(ask(&chosen, &at(&new_pod, 99, In)), Err(DropReason::Interface));
}

#[test]
fn a_service_address_is_local_to_no_other_node_whatever_network_it_is_part_of() {
    let mut policy = policy();
    policy.svcnet.push("fd00:ffff::/108".parse().unwrap());
    let c = Classifier::new(&policy, &view(), &[]);
    // What rejects a connection may have no other copy than this.
    let rejected = tcp("fd00:ffff::99", "fd00:1::101", (80, 40_000));
    for (point, direction) in [(POD, Out), (UPLINK, In)] {
        let frame = at(&rejected, point, direction);
        ask(&c, &frame).unwrap();
        assert_ne!(c.filter(&[]).run_in_kernel(&frame), 0);
    }
}

#[test]
fn the_taps_own_traffic_is_nobodys() {
    let c = classifier();
    let own = |data: &[u8]| ask(&c, &at(data, UPLINK, Out)) == Err(DropReason::OwnTraffic);
    assert!(own(&udp("10.0.1.10", "10.0.250.10", (999, 7777), &[0, 110, 0, 8])));
    assert!(own(&udp("10.0.2.10", "10.0.250.10", (999, 7777), &[0, 7, 0, 0])), "another tap's");
    assert!(own(&tcp("10.0.1.10", "10.0.250.10", (40000, 2003))));
    let reply = tcp("10.0.250.10", "10.0.1.10", (2003, 40000));
    assert_eq!(ask(&c, &at(&reply, UPLINK, In)), Err(DropReason::OwnTraffic));
    assert!(!own(&udp("10.0.1.101", "10.0.250.10", (999, 53), b"dns")), "a pod's own business");
    assert!(!own(&tcp("10.0.1.101", "10.0.250.10", (40000, 443))));
    assert!(!own(&udp("10.0.1.10", "10.0.251.10", (999, 7777), &[0, 110, 0, 8])), "elsewhere");
}

#[test]
fn what_icmp_says_about_the_taps_own_datagrams_is_nobodys() {
    let sensors = ["10.0.250.10".parse().unwrap(), "fd00:9::1".parse().unwrap()];
    let c = Classifier::new(&policy(), &view(), &sensors);
    let own = |data: &[u8]| ask(&c, &at(data, UPLINK, In)) == Err(DropReason::OwnTraffic);
    let about = |kind: u8, code: u8, quoted: &[u8]| {
        // Without its Ethernet header, and cut as routers do.
        let quoted = &quoted[14..quoted.len().min(14 + 548)];
        [&[kind, code, 0, 0, 0, 0, 5, 120], quoted].concat()
    };
    let data = udp("10.0.1.10", "10.0.250.10", (999, 7777), &[&[0, 110][..], &[0; 1400]].concat());
    for (from, kind, code) in [("10.0.250.10", 3, 3), ("10.9.9.9", 3, 4)] {
        assert!(own(&packet(protocol::ICMP, from, "10.0.1.10", &about(kind, code, &data))));
    }
    let data6 = udp("fd00:1::10", "fd00:9::1", (999, 7777), &[0, 7, 0, 0]);
    for (kind, code) in [(1, 4), (2, 0)] {
        let icmp = packet(protocol::ICMPV6, "fd00:9::1", "fd00:1::10", &about(kind, code, &data6));
        assert!(own(&icmp));
        for len in 0..icmp.len() {
            let _no_panic = own(&icmp[..len]);
        }
    }
    let icmp = |message: &[u8]| packet(protocol::ICMP, "10.0.250.10", "10.0.1.10", message);
    for len in 0..38 {
        assert!(!own(&icmp(&about(3, 3, &data)[..len])), "quotes too little to tell");
    }
    assert!(!own(&icmp(&about(0, 0, &data))), "no error");
    let others = udp("10.0.1.10", "10.0.251.10", (999, 7777), &[0, 110, 0, 0]);
    assert!(!own(&icmp(&about(3, 3, &others))));
    let dns = udp("10.0.1.101", "10.0.250.10", (999, 53), b"dns");
    assert!(!own(&icmp(&about(3, 3, &dns))), "a pod's own business");
}

#[test]
fn what_clients_say_to_the_tap_is_nobodys_from_the_first_byte() {
    let (client, node) = ("10.0.1.101", "10.0.1.10");
    let listening = |listener| Policy { listeners: vec![listener], ..policy() };
    for listener in [(None, 2002), (Some(node.parse().unwrap()), 2002)] {
        let c = Classifier::new(&listening(listener), &view(), &[]);
        for ours in [tcp(client, node, (40_000, 2002)), tcp(node, client, (2002, 40_000))] {
            assert_eq!(ask(&c, &at(&ours, POD, In)), Err(DropReason::OwnTraffic));
        }
        for foreign in [
            tcp(client, node, (2002, 80)),
            tcp(client, "10.0.1.102", (40_000, 2002)),
            udp(client, node, (40_000, 2002), b"dns"),
        ] {
            ask(&c, &at(&foreign, POD, In)).unwrap();
        }
    }
    let elsewhere = Classifier::new(&listening((Some([10, 9, 9, 9].into()), 2002)), &view(), &[]);
    ask(&elsewhere, &at(&tcp(client, node, (40_000, 2002)), POD, In)).unwrap();
}

#[test]
fn a_clients_own_connections_are_left_out_and_nothing_else_of_its_host() {
    // The client runs in a pod of this node, where a loss would hurt most.
    let client = "10.0.1.101";
    let flow = |peer_port, tcp_port| OwnFlow { peer: client.parse().unwrap(), peer_port, tcp_port };
    let flows = [flow(40_000, Some(2002)), flow(5000, None)];
    let c = classifier().without(flows);
    let node = "10.0.1.10";
    for ours in [
        tcp(client, node, (40_000, 2002)),
        tcp(node, client, (2002, 40_000)),
        udp(node, client, (33_333, 5000), &[1, 2]),
    ] {
        for (point, direction) in [(POD, In), (POD, Out)] {
            assert_eq!(ask(&c, &at(&ours, point, direction)), Err(DropReason::OwnTraffic));
        }
        ask(&classifier(), &at(&ours, POD, Out)).unwrap();
    }
    let mut tail = udp(node, client, (33_333, 5000), &[0; 64]);
    tail[14 + 7] = 100;
    assert_eq!(ask(&c, &at(&tail, POD, Out)), Err(DropReason::OwnTraffic));
    for foreign in [
        tcp(client, node, (40_001, 2002)),
        tcp(client, node, (40_000, 2003)),
        tcp("10.0.1.102", node, (40_000, 2002)),
        tcp(client, "10.0.1.102", (40_000, 2002)),
        udp(client, node, (5000, 33_333), &[0, 7]),
        udp("10.0.1.102", client, (33_333, 5000), &[0, 7]),
        udp(node, client, (33_333, 5001), &[0, 7]),
    ] {
        ask(&c, &at(&foreign, POD, In)).unwrap();
    }
}

#[test]
fn a_clients_probes_and_what_icmp_says_about_its_datagrams_are_left_out_and_nothing_else() {
    let mut view = view();
    view.own.push("fd00:1::10".parse().unwrap());
    for (node, client, other) in
        [("10.0.1.10", "10.0.1.101", "10.0.1.102"), ("fd00:1::10", "fd00:1::101", "fd00:1::102")]
    {
        let peer = client.parse().unwrap();
        let c = Classifier::new(&policy(), &view, &[]).without([
            OwnFlow { peer, peer_port: 40_000, tcp_port: Some(2002) },
            OwnFlow { peer, peer_port: 5000, tcp_port: None },
        ]);
        let own = |data: &[u8]| ask(&c, &at(data, POD, In)) == Err(DropReason::OwnTraffic);
        let (kind, is_v4) = if node.contains(':') { (1, false) } else { (3, true) };
        let about = |from: &str, quoted: &[u8]| {
            let message = [&[kind, 4, 0, 0, 0, 0, 0, 0], &quoted[14..]].concat();
            let protocol = if is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
            packet(protocol, from, node, &message)
        };
        let probe = udp(node, client, (33_333, 33_434), &[0, 110, 0, 8, 0, 0]);
        let data = udp(node, client, (33_333, 5000), &[0, 7, 0, 0]);
        assert!(own(&probe));
        for ours in [&probe, &data] {
            assert!(own(&about(client, ours)), "from the client");
            assert!(own(&about(other, ours)), "from a router");
            let icmp = about(client, ours);
            for len in 0..icmp.len() {
                let _no_panic = own(&icmp[..len]);
            }
        }
        for foreign in [
            udp(node, client, (33_333, 33_434), b"@ABC, of traceroute"),
            udp(node, client, (33_333, 5001), &[0, 110, 0, 8]),
            udp(node, other, (33_333, 33_434), &[0, 110, 0, 8]),
            udp(other, client, (33_333, 33_434), &[0, 110, 0, 8]),
            udp(other, client, (33_333, 5000), &[0, 110, 0, 8]),
        ] {
            assert!(!own(&foreign));
            assert!(!own(&about(client, &foreign)));
        }
    }
}

#[test]
fn overlays_are_dropped_only_where_something_unpacks_them() {
    let outer = udp("10.0.1.10", "10.0.2.10", (5555, 4789), b"vxlan");
    assert!(ask(&classifier(), &at(&outer, UPLINK, Out)).is_ok(), "no vxlan device here");
    let mut with_device = view();
    with_device.links.extend([link(30, Role::Uplink, "vxlan")]);
    let c = Classifier::new(&policy(), &with_device, &[]);
    assert_eq!(ask(&c, &at(&outer, UPLINK, Out)), Err(DropReason::Overlay));
    let nested = udp("10.0.1.101", "10.0.2.101", (5555, 4789), b"vxlan");
    assert!(ask(&c, &at(&nested, POD, In)).is_ok(), "a pod's own tunnel is traffic");
}

#[test]
fn a_frame_in_the_ring_outlives_its_link() {
    let policy = Policy { any_interface: false, ..policy() };
    let view = View { gone: vec![77], ..view() };
    let c = Classifier::new(&policy, &view, &[]);
    let last = udp("10.0.1.102", "10.0.2.101", (53, 1000), b"bye");
    assert!(ask(&c, &at(&last, 77, In)).is_ok(), "it was tapped when the frame came");
    assert_eq!(ask(&c, &at(&last, 78, In)), Err(DropReason::Interface), "never known");
}

#[test]
fn without_an_election_only_the_taps_own_traffic_goes() {
    let policy = Policy { election: Election::None, ..policy() };
    let c = Classifier::new(&policy, &view(), &["10.0.250.10".parse().unwrap()]);
    for data in [
        udp("10.0.2.101", "10.0.1.101", (53, 1000), b"x"),
        udp("10.0.1.101", "172.20.0.99", (1000, 53), b"x"),
    ] {
        assert!(ask(&c, &at(&data, UPLINK, In)).is_ok());
    }
    let own = udp("10.0.1.10", "10.0.250.10", (999, 7777), &[0, 110, 0, 8]);
    assert_eq!(ask(&c, &at(&own, UPLINK, Out)), Err(DropReason::OwnTraffic));
}

/// Both verdicts on a frame: true = dropped.
fn verdicts(c: &Classifier, filter: &crate::bpf::Program, frame: &Frame<'_>) -> (bool, bool) {
    (filter.run_in_kernel(frame) == 0, ask(c, frame).is_err())
}

fn classifiers() -> Vec<Classifier> {
    let mut overlays = view();
    overlays.links.extend([link(30, Role::Uplink, "vxlan"), link(31, Role::Uplink, "ipip")]);
    let sensors: [IpAddr; 2] = ["10.0.250.10".parse().unwrap(), "fd00:fa::10".parse().unwrap()];
    let named = Policy { any_interface: false, ..policy() };
    let none = Policy { election: Election::None, ..policy() };
    vec![
        Classifier::new(&policy(), &view(), &sensors),
        Classifier::new(&policy(), &overlays, &sensors),
        Classifier::new(&named, &overlays, &sensors),
        Classifier::new(&none, &overlays, &sensors),
        Classifier::new(&Policy { any_interface: true, ..Policy::default() }, &view(), &[]),
    ]
}

const V4: [&str; 8] = [
    "10.0.1.10",
    "10.0.1.101",
    "10.0.2.101",
    "10.0.200.7",
    "172.20.0.10",
    "172.20.0.99",
    "203.0.113.10",
    "10.0.250.10",
];
const V6: [&str; 4] = ["fd00:1::101", "fd00:2::101", "2001:db8::1", "fd00:fa::10"];

fn any_packet() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let addresses = prop_oneof![
        (0..8usize, 0..8usize).prop_map(|(a, b)| (V4[a], V4[b])),
        (0..4usize, 0..4usize).prop_map(|(a, b)| (V6[a], V6[b])),
    ];
    let port = prop_oneof![Just(2003u16), Just(4789), Just(80), any::<u16>()];
    let payload = prop_oneof![
        Just(vec![0, 110, 0, 8]),
        Just(vec![0, 7, 0, 0, 1]),
        Just(vec![]),
        Just(vec![0]),
        proptest::collection::vec(any::<u8>(), 0..20),
    ];
    (addresses, (port.clone(), port), payload, 0..4u8).prop_map(|((a, b), ports, payload, kind)| {
        match kind {
            0 => tcp(a, b, ports),
            1 => packet(protocol::IPIP, a, b, &payload),
            2 => packet(protocol::ICMP, a, b, &payload),
            _ => udp(a, b, ports, &payload),
        }
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(3000))]

    #[test]
    fn the_filter_drops_what_the_rule_drops(data in any_packet(), which in 0..5usize,
                                            ifindex in 0..4usize, out: bool) {
        let c = &classifiers()[which];
        let direction = if out { Out } else { In };
        let frame = at(&data, [UPLINK, POD, 31, 99][ifindex], direction);
        let (kernel, user) = verdicts(c, &c.filter(&[]), &frame);
        // The filter leaves short IPv6 packets and IP in IPv6 to user space.
        let v6_leftover = data[12] == 0x86;
        proptest::prop_assert!(kernel == user || (user && v6_leftover), "{kernel} {user}");
    }

    #[test]
    fn the_filter_never_drops_more(data in any_packet(), which in 0..5usize, ifindex in 0..4usize,
                                   out: bool, at_byte in 0..80usize, bit in 0..8u8,
                                   keep in 0..120usize) {
        let c = &classifiers()[which];
        let mut data = data;
        if let Some(byte) = data.get_mut(at_byte) { *byte ^= 1 << bit; }
        data.truncate(keep.max(14));
        let direction = if out { Out } else { In };
        let frame = at(&data, [UPLINK, POD, 31, 99][ifindex], direction);
        let (kernel, user) = verdicts(c, &c.filter(&[]), &frame);
        proptest::prop_assert!(!kernel || user, "the kernel would lose a frame");
    }
}

#[test]
fn an_interface_captured_whole_passes_the_filter() {
    let c = classifier();
    let covered = udp("10.0.2.101", "10.0.1.101", (1000, 53), b"x");
    assert_eq!(c.filter(&[]).run(&at(&covered, POD, Out)), 0);
    assert_ne!(c.filter(&[POD]).run(&at(&covered, POD, Out)), 0);
    assert_eq!(c.filter(&[POD]).run(&at(&covered, UPLINK, In)), 0);
}

#[test]
fn too_many_prefixes_are_left_to_user_space() {
    let mut crowded = view();
    crowded.local.extend(
        (0..5000u32).map(|n| IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(0x0a01_0000 + n)))),
    );
    let c = Classifier::new(&policy(), &crowded, &["10.0.250.10".parse().unwrap()]);
    let covered = udp("10.0.2.101", "10.0.1.101", (53, 1000), b"x");
    assert_ne!(c.filter(&[]).run(&at(&covered, UPLINK, In)), 0);
    assert_eq!(ask(&c, &at(&covered, UPLINK, In)), Err(DropReason::Covered));
    let own = udp("10.0.1.10", "10.0.250.10", (999, 7777), &[0, 110, 0, 8]);
    assert_eq!(c.filter(&[]).run(&at(&own, UPLINK, Out)), 0, "the cheap part is kept");
}
