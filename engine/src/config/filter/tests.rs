//! The reference's own filter, as its start script writes it, against the rule that it stands for.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::classify::reference_script;
use crate::classify::{Classifier, Election, Policy};
use crate::config::{Config, Settings};
use crate::dedup::{Fingerprinter, Table};
use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
use crate::net::View;
use crate::pipeline::{Pipeline, Verdict};
use crate::stats::DropReason;

/// The filter of the reference's script for this service network and this cluster.
fn script(service: &str, cluster: &[&str]) -> String {
    reference_script(&[service], cluster)
}

const SERVICE: &str = "172.20.0.0/16";
const CLUSTER: [&str; 2] = ["10.0.0.0/24", "10.0.8.0/21"];

/// Compiles, or says loudly that this machine cannot.
fn compiled(text: &str) -> Option<Program> {
    match compile(text) {
        Err(reason) if reason.contains("cannot be loaded") => {
            eprintln!("SKIPPED: {reason}");
            None
        }
        answer => Some(answer.unwrap().unwrap()),
    }
}

/// An IPv4 packet in Ethernet.
#[derive(Clone, Debug)]
struct Packet {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    /// In units of 8 bytes.
    fragment: u16,
    ports: (u16, u16),
    options: bool,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let version = if self.options { 0x46 } else { 0x45 };
        bytes.extend([version, 0, 0, 60, 0, 1]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(vec![1; if self.options { 4 } else { 0 }]);
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.resize(bytes.len() + 30, 0);
        bytes
    }

    /// The rule in words: spec/rpcap.md, 4.3.
    fn passes(&self, direction: Direction) -> bool {
        let inside = |net: &str| {
            let net: ipnet::Ipv4Net = net.parse().unwrap();
            net.contains(&self.source) || net.contains(&self.destination)
        };
        if self.protocol == 4 || inside(SERVICE) {
            return false;
        }
        if !CLUSTER.iter().any(|net| inside(net)) {
            return true;
        }
        let (sport, dport) = self.ports;
        let by_ports = self.protocol == 6 && self.fragment == 0 && sport != dport;
        match (direction, by_ports) {
            (Direction::In, true) => sport < dport,
            (Direction::In, false) => self.source >= self.destination,
            (Direction::Out, true) => sport > dport,
            (Direction::Out, false) => self.source <= self.destination,
        }
    }
}

fn frame(data: &[u8], direction: Direction) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 1,
        point: Point { ifindex: 2, direction },
        vlan: None,
        offload: Offload::default(),
    }
}

fn packets() -> impl Strategy<Value = Packet> {
    let address = || {
        prop_oneof![
            Just([10, 0, 0, 7]),
            Just([10, 0, 0, 255]),
            Just([10, 0, 9, 1]),
            Just([10, 0, 16, 1]),
            Just([172, 20, 0, 10]),
            Just([8, 8, 8, 8]),
            Just([255, 255, 255, 255]),
            any::<[u8; 4]>(),
        ]
        .prop_map(Ipv4Addr::from)
    };
    let protocol = prop_oneof![Just(6u8), Just(6), Just(17), Just(1), Just(4), Just(50)];
    let port = || prop_oneof![Just(80u16), Just(443), Just(40_000), any::<u16>()];
    let fragment = prop_oneof![Just(0u16), Just(0), Just(0), 1u16..0x1fff];
    (address(), address(), protocol, fragment, (port(), port()), any::<bool>()).prop_map(
        |(source, destination, protocol, fragment, ports, options)| Packet {
            source,
            destination,
            protocol,
            fragment,
            ports,
            options,
        },
    )
}

#[test]
fn the_reference_s_filter_means_what_the_rule_says() {
    let Some(program) = compiled(&script(SERVICE, &CLUSTER)) else { return };
    assert!(program.asks_direction());
    proptest!(ProptestConfig::with_cases(4000), |(packet in packets())| {
        let bytes = packet.bytes();
        for direction in [Direction::In, Direction::Out] {
            let verdict = program.run(&frame(&bytes, direction)) != 0;
            prop_assert_eq!(verdict, packet.passes(direction), "{:?} {:?}", packet, direction);
        }
    });
}

#[test]
fn what_is_not_ipv4_passes_the_reference_s_filter_both_ways() {
    let Some(program) = compiled(&script(SERVICE, &CLUSTER)) else { return };
    for ethertype in [[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xcc]] {
        let mut bytes = vec![0xff; 12];
        bytes.extend(ethertype);
        bytes.extend([0; 60]);
        for direction in [Direction::In, Direction::Out] {
            assert_ne!(program.run(&frame(&bytes, direction)), 0, "{ethertype:x?}");
        }
    }
}

#[test]
fn of_two_copies_the_one_that_the_filter_takes_is_reported() {
    let text = script(SERVICE, &CLUSTER);
    if compiled(&text).is_none() {
        return;
    }
    let settings = Settings::from_parts(&["--filter", &text], &[]).unwrap();
    let config = Config::new(&settings).unwrap();
    assert!(config.is_filter_election);
    assert_eq!(config.policy.election, Election::None);
    let table = Arc::new(Table::new(1 << 20, 1_000_000_000).unwrap());
    let mut pipeline = Pipeline::new(table, Fingerprinter::new(1));
    let classifier = Classifier::new(&config.policy, &View::default(), &[]);
    // The server's reply, higher address to lower: seen entering from the server, leaving to the client.
    let reply = Packet {
        source: Ipv4Addr::new(10, 0, 0, 9),
        destination: Ipv4Addr::new(10, 0, 0, 7),
        protocol: 6,
        fragment: 0,
        ports: (40_000, 443),
        options: false,
    };
    let bytes = reply.bytes();
    let mut verdicts = Vec::new();
    for (ifindex, direction) in [(2, Direction::In), (3, Direction::Out)] {
        let seen = Frame { point: Point { ifindex, direction }, ..frame(&bytes, direction) };
        pipeline.admit(&classifier, &seen, 0, |_packet, _headers, verdict| verdicts.push(verdict));
    }
    assert_eq!(verdicts, [Verdict::Drop(DropReason::NodeFilter), Verdict::Report]);
}

#[test]
fn a_filter_narrows_every_election_and_never_widens() {
    let Some(udp) = compiled("udp") else { return };
    let policy = Policy { any_interface: true, node_filter: Some(udp), ..Policy::default() };
    let sensor = "10.0.0.7".parse().unwrap();
    let covered = Policy { tapped: vec!["10.0.0.0/24".parse().unwrap()], ..policy.clone() };
    let packet = |protocol, payload: u8| {
        let packet = Packet {
            source: Ipv4Addr::new(10, 0, 0, 9),
            destination: Ipv4Addr::new(10, 0, 0, 7),
            protocol,
            fragment: 0,
            ports: (40_000, 443),
            options: false,
        };
        let mut bytes = packet.bytes();
        bytes[14 + 20 + 9] = payload;
        bytes[14 + 20 + 4..][..2].copy_from_slice(&40u16.to_be_bytes());
        bytes
    };
    let verdict = |policy: &Policy, sensors: &[std::net::IpAddr], bytes: &[u8]| {
        let mut verdict = None;
        let table = Arc::new(Table::new(1 << 20, 1_000_000_000).unwrap());
        let mut pipeline = Pipeline::new(table, Fingerprinter::new(1));
        let classifier = Classifier::new(policy, &View::default(), sensors);
        let seen = frame(bytes, Direction::Out);
        pipeline.admit(&classifier, &seen, 0, |_packet, _headers, said| verdict = Some(said));
        verdict.unwrap()
    };
    assert_eq!(verdict(&policy, &[], &packet(17, 0)), Verdict::Report);
    assert_eq!(verdict(&policy, &[], &packet(6, 0)), Verdict::Drop(DropReason::NodeFilter));
    assert_eq!(verdict(&covered, &[], &packet(17, 0)), Verdict::Drop(DropReason::Covered));
    // Also where nobody is elected: a capture of one interface takes all that the filter takes.
    assert_eq!(verdict(&covered, &[], &packet(6, 0)), Verdict::Drop(DropReason::NodeFilter));
    assert_eq!(
        verdict(&policy, &[sensor], &packet(17, 110)),
        Verdict::Drop(DropReason::OwnTraffic)
    );
}

#[test]
fn a_filter_without_directions_leaves_the_election_and_a_given_one_stays() {
    if compiled("udp").is_none() {
        return;
    }
    let election = |args: &[&str], variables: &[(&str, &str)]| {
        let config = Config::new(&Settings::from_parts(args, variables).unwrap()).unwrap();
        (config.policy.election, config.is_filter_election)
    };
    assert_eq!(election(&["--filter", "udp"], &[]), (Election::Source, false));
    assert_eq!(election(&["--filter", "inbound and udp"], &[]), (Election::None, true));
    assert_eq!(election(&["--filter", "outbound"], &[]), (Election::None, true));
    let given = ["--filter", "inbound", "--election", "source"];
    assert_eq!(election(&given, &[]), (Election::Source, false));
    let variable = [("PODTAP_ELECTION", "source"), ("PODTAP_FILTER", "inbound")];
    assert_eq!(election(&[], &variable), (Election::Source, false));
}

#[test]
fn services_may_overlap_pods_where_the_filter_decides() {
    if compiled("udp").is_none() {
        return;
    }
    let nets = [("PODNET", "10.0.0.0/8"), ("SVCNET", "10.9.0.0/16")];
    let config = |args: &[&str]| Config::new(&Settings::from_parts(args, &nets).unwrap());
    config(&["--filter", "inbound"]).unwrap();
    config(&["--filter", "udp"]).unwrap_err();
}

#[test]
fn a_filter_that_does_not_compile_says_why_on_one_line() {
    if compiled("udp").is_none() {
        return;
    }
    let refused = |text: &str| {
        let settings = Settings::from_parts(&["--filter", text], &[]).unwrap();
        Config::new(&settings).unwrap_err().to_string()
    };
    let said = refused("tcp prot 80");
    assert!(said.starts_with("--filter: \"tcp prot 80\": ") && said.contains("syntax"), "{said}");
    assert!(refused("vlan 7").contains("`vlan` is not supported"));
    assert!(refused("tcp and vlan").contains("`vlan` is not supported"));
    // Words in which it only occurs are others.
    assert!(refused("host vlan.invalid").contains("vlan.invalid"));
    for text in ["tcp prot 80", "host 1.2.3.4.5", &"(".repeat(5000)] {
        assert_eq!(refused(text).lines().count(), 1);
    }
}

#[test]
fn a_tag_that_was_taken_out_of_the_frame_hides_nothing_from_the_filter() {
    let Some(program) = compiled("tcp dst port 443") else { return };
    let packet = Packet {
        source: Ipv4Addr::new(10, 0, 0, 9),
        destination: Ipv4Addr::new(10, 0, 0, 7),
        protocol: 6,
        fragment: 0,
        ports: (40_000, 443),
        options: true,
    };
    let bytes = packet.bytes();
    let plain = frame(&bytes, Direction::In);
    let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 7 }), ..plain };
    let policy = Policy {
        any_interface: true,
        node_filter: Some(program),
        election: Election::None,
        ..Policy::default()
    };
    let table = Arc::new(Table::new(1 << 20, 1_000_000_000).unwrap());
    let mut pipeline = Pipeline::new(table, Fingerprinter::new(1));
    let classifier = Classifier::new(&policy, &View::default(), &[]);
    for seen in [plain, tagged] {
        let mut verdict = None;
        pipeline.admit(&classifier, &seen, 0, |_packet, _headers, said| verdict = Some(said));
        assert_eq!(verdict, Some(Verdict::Report), "{:?}", seen.vlan);
    }
}

#[test]
fn long_filters_compile_and_too_long_ones_say_how_long() {
    let cluster = |count: u32| {
        let nets = (0..count).map(|i| Ipv4Addr::from(0x0a00_0000 + (i << 8)).to_string() + "/24");
        nets.collect::<Vec<_>>()
    };
    let long = cluster(300);
    let nets: Vec<&str> = long.iter().map(String::as_str).collect();
    let Some(program) = compiled(&script(SERVICE, &nets)) else { return };
    assert!(program.instructions().len() > 600, "{}", program.instructions().len());
    let packet = Packet {
        source: Ipv4Addr::new(10, 1, 43, 9),
        destination: Ipv4Addr::new(192, 0, 2, 1),
        protocol: 6,
        fragment: 0,
        ports: (40_000, 443),
        options: true,
    };
    let bytes = packet.bytes();
    assert_eq!(program.run(&frame(&bytes, Direction::In)), 0, "in the last net but a few");
    assert_ne!(program.run(&frame(&bytes, Direction::Out)), 0);
    let hosts = |count: u32| {
        let hosts = (0..count).map(|i| format!("host {}", Ipv4Addr::from(i * 77_777)));
        hosts.collect::<Vec<_>>().join(" or ")
    };
    let said = compile(&hosts(400)).unwrap_err();
    assert!(said.contains("instructions, which are too many"), "{said}");
    let said = compile(&hosts(4000)).unwrap_err();
    assert!(said.contains("bytes of text, at most 24576"), "{said}");
}
