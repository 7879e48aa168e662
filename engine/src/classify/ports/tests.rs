//! Our two forms of the rule against the script's text, compiled by libpcap.
//!
//! ```text
//! settings --script--> text --libpcap--> Program, run as the kernel runs it --.
//!          --Classifier--> classify (user space), filter (socket) ------------+--> equal?
//! every frame of every capture, frames made here; in and out ----------------'
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::bpf::Program;
use crate::classify::{Classifier, Election, Policy, Scope};
use crate::dedup::{Fingerprinter, Marks, Table};
use crate::frame::{Offload, Point, VlanTag};
use crate::net::View;
use crate::pipeline::{Pipeline, Verdict};
use crate::rpcap::{DLT_EN10MB, MAX_SNAPLEN};
use crate::source::file::{FileSource, Input};
use crate::source::{Batch as _, Source as _};
use crate::stats::DropReason;
use crate::sys::libpcap;
use crate::wire::Headers;

/// The text that the reference's script makes: spec/rpcap.md 4.2, and the module's words.
pub(crate) fn script(services: &[&str], cluster: &[&str]) -> String {
    let services: String = services.iter().map(|net| format!("and (not ip net {net}) ")).collect();
    let cluster: Vec<String> =
        cluster.iter().map(|net| format!("ip src or dst net {net}")).collect();
    let side = |direction: &str, address: &str, port: &str| {
        let address = format!("(ip[12:4] {address} ip[16:4])");
        let no_port = format!("((ip[6:2] & 0x1fff != 0) or ((not tcp)) and {address})");
        let ports = format!(
            "(tcp and ((tcp[0:2] {port} tcp[2:2]) or ((tcp[0:2] = tcp[2:2]) and {address})))"
        );
        format!("({direction} and ({no_port} or {ports}))")
    };
    format!(
        "not ip or (not ip proto 4) {services}and (( not ( {} ) ) or {} or {})",
        cluster.join(" or "),
        side("inbound", ">=", "<"),
        side("outbound", "<=", ">"),
    )
}

/// PODNET, SVCNET, and the main device's subnets.
struct Setting {
    pods: &'static [&'static str],
    services: &'static [&'static str],
    main: &'static [&'static str],
}

const SETTINGS: [Setting; 10] = [
    Setting { pods: &["10.0.0.0/16"], services: &["172.20.0.0/16"], main: &["10.0.0.0/20"] },
    Setting { pods: &["192.168.0.0/16"], services: &["10.100.0.0/16"], main: &[] },
    Setting {
        pods: &["10.1.0.0/16", "10.2.0.0/16", "100.64.0.0/10", "192.168.1.2/32"],
        services: &["172.20.0.0/16", "10.2.3.0/24"],
        main: &["172.16.0.0/12"],
    },
    // Overlapping each other, and services inside pods.
    Setting {
        pods: &["10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/24"],
        services: &["10.1.2.0/24", "10.0.0.0/9"],
        main: &["10.0.0.0/8"],
    },
    Setting { pods: &["10.0.0.7/32"], services: &["10.0.9.1/32"], main: &["10.0.0.8/31"] },
    Setting { pods: &["0.0.0.0/0"], services: &["172.20.0.0/16"], main: &[] },
    Setting { pods: &["0.0.0.0/0", "10.0.0.0/8"], services: &[], main: &["10.0.0.0/24"] },
    Setting { pods: &["10.0.0.0/16"], services: &["0.0.0.0/0"], main: &[] },
    Setting { pods: &["0.0.0.0/1"], services: &[], main: &["128.0.0.0/1"] },
    Setting { pods: &["203.0.113.0/24"], services: &["198.51.100.0/24"], main: &[] },
];

struct Rule {
    text: String,
    /// The reference: compiled by libpcap, optimized as daemons do.
    reference: Program,
    classifier: Classifier,
    filter: Program,
}

fn policy(pods: &[&str], services: &[&str]) -> Policy {
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    Policy {
        election: Election::Ports,
        pods: nets(pods),
        svcnet: nets(services),
        any_interface: true,
        ..Policy::default()
    }
}

fn view(main: &[&str]) -> View {
    View { main_subnets: main.iter().map(|net| net.parse().unwrap()).collect(), ..View::default() }
}

fn compiled(text: &str, optimize: bool) -> Option<Program> {
    let netmask = libpcap::NETMASK_UNKNOWN;
    match libpcap::compile(text, DLT_EN10MB, MAX_SNAPLEN, optimize, netmask) {
        Err(libpcap::CompileError::NoLibrary(reason)) => {
            eprintln!("SKIPPED: no libpcap on this machine: {reason}");
            None
        }
        program => Some(Program::new(&program.unwrap()).unwrap()),
    }
}

fn rules() -> Option<Vec<Rule>> {
    let rule = |Setting { pods, services, main }: &Setting| {
        let text = script(services, &[*main, *pods].concat());
        let reference = compiled(&text, true)?;
        let classifier = Classifier::new(&policy(pods, services), &view(main), &[]);
        let filter = classifier.filter(&[]);
        Some(Rule { text, reference, classifier, filter })
    };
    SETTINGS.iter().map(rule).collect()
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

impl Rule {
    /// Whether the frame is taken: by the reference, by us in user space, by us in the kernel.
    fn verdicts(&self, frame: &Frame<'_>) -> [bool; 3] {
        let ours = self.classifier.classify(frame, &Headers::parse(frame.data));
        if let Err(reason) = ours {
            assert_eq!(reason, DropReason::Election);
        }
        [
            self.reference.run_in_kernel(frame) != 0,
            ours.is_ok(),
            self.filter.run_in_kernel(frame) != 0,
        ]
    }

    fn check(&self, frame: &Frame<'_>) -> Result<bool, String> {
        let [reference, user, kernel] = self.verdicts(frame);
        match reference == user && reference == kernel {
            true => Ok(reference),
            false => Err(format!(
                "reference {reference}, user space {user}, kernel {kernel}: {frame:02x?} by {}",
                self.text
            )),
        }
    }
}

fn captures() -> Option<Vec<PathBuf>> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let folder = std::env::var_os("PODTAP_CAPTURES").map_or_else(beside, PathBuf::from);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures at {} ($PODTAP_CAPTURES)", folder.display());
        return None;
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension().is_some_and(|end| ["pcap", "pcapng", "cap"].iter().any(|e| end == *e))
    });
    paths.sort();
    Some(paths)
}

#[test]
fn every_frame_of_every_capture_gets_the_reference_s_verdict_both_ways() {
    let (Some(rules), Some(paths)) = (rules(), captures()) else { return };
    let (mut files, mut frames, mut taken) = (0u32, 0u64, 0u64);
    for path in &paths {
        let point = Point { ifindex: 2, direction: Direction::In };
        let mut source = match FileSource::open(&[Input { path: path.clone(), point }]) {
            Ok(source) => source,
            Err(error) => {
                // Cisco HDLC has no Ethernet form: no tap sees it.
                assert!(error.to_string().contains("has link type 104"), "{error}");
                continue;
            }
        };
        files += 1;
        while let Some(batch) = source.next_batch() {
            for seen in batch.frames() {
                frames += 1;
                for direction in [Direction::In, Direction::Out] {
                    let frame = Frame { point: Point { ifindex: 2, direction }, ..seen };
                    for rule in &rules {
                        match rule.check(&frame) {
                            Ok(is_taken) => taken += u64::from(is_taken),
                            Err(error) => panic!("{}: {error}", path.display()),
                        }
                    }
                }
            }
        }
    }
    let asked = frames * 2 * u64::try_from(rules.len()).unwrap();
    eprintln!("{files} captures, {frames} frames, {asked} verdicts, {taken} of them to take");
    assert!(files > 30 && frames > 10_000 && taken > asked / 10 && taken < asked, "{frames}");
}

/// An address that some setting knows, at its edges, or any.
fn address() -> impl Strategy<Value = [u8; 4]> {
    let known = [
        [10, 0, 0, 0],
        [10, 0, 0, 7],
        [10, 0, 0, 8],
        [10, 0, 0, 255],
        [10, 0, 9, 1],
        [10, 0, 15, 255],
        [10, 0, 16, 0],
        [10, 0, 255, 255],
        [10, 1, 0, 0],
        [10, 1, 2, 3],
        [10, 2, 3, 4],
        [10, 127, 255, 255],
        [10, 128, 0, 0],
        [9, 255, 255, 255],
        [11, 0, 0, 0],
        [172, 20, 0, 10],
        [172, 19, 255, 255],
        [100, 64, 0, 1],
        [192, 168, 1, 2],
        [8, 8, 8, 8],
        [127, 255, 255, 255],
        [128, 0, 0, 0],
        [0; 4],
        [255; 4],
    ];
    prop_oneof![6 => prop::sample::select(known.to_vec()), 1 => any::<[u8; 4]>()]
}

/// What stands behind the link header.
#[derive(Clone, Copy, Debug)]
enum Kind {
    V4,
    V6,
    Arp(u16),
    Any(u16),
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        12 => Just(Kind::V4),
        1 => Just(Kind::V6),
        1 => prop::sample::select(vec![Kind::Arp(0x0806), Kind::Arp(0x8035)]),
        1 => prop_oneof![Just(0x88cc), Just(0x05dc), Just(0x86dd), any::<u16>()].prop_map(Kind::Any),
    ];
    let tags =
        prop_oneof![9 => Just(vec![]), 1 => Just(vec![0x8100u16]), 1 => Just(vec![0x88a8, 0x8100])];
    let version = prop_oneof![6 => Just(0x45u8), 2 => 0x46..=0x4fu8, 2 => any::<u8>()];
    let protocol = prop_oneof![
        6 => Just(6u8), 2 => Just(17), 1 => Just(1), 1 => Just(4), 1 => Just(41), 1 => any::<u8>()
    ];
    // Flags and offset: whole, don't fragment, first, later, last, the reserved bit.
    let fragment = prop_oneof![
        4 => Just(0u16), 2 => Just(0x4000), 1 => Just(0x2000), 1 => Just(0x2001), 1 => Just(0x00b9),
        1 => Just(0x8000), 1 => any::<u16>()
    ];
    let port = || prop_oneof![Just(80u16), Just(443), Just(40_000), Just(0), any::<u16>()];
    let ports = prop_oneof![3 => (port(), port()), 1 => port().prop_map(|port| (port, port))];
    let ends = prop_oneof![6 => (address(), address()), 1 => address().prop_map(|one| (one, one))];
    let cut = prop_oneof![8 => Just(usize::MAX), 3 => 0..64usize];
    let header = (kind, tags, version, protocol, fragment);
    (header, ports, ends, any::<[u8; 16]>(), cut).prop_map(
        |((kind, tags, version, protocol, fragment), ports, ends, filling, cut)| {
            let mut data = vec![0x02, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            for tag in tags {
                data.extend(tag.to_be_bytes());
                data.extend([0, 7]);
            }
            match kind {
                Kind::V4 => {
                    data.extend([0x08, 0x00, version, 0, 0, 60, filling[0], filling[1]]);
                    data.extend(fragment.to_be_bytes());
                    data.extend([64, protocol, 0, 0]);
                    data.extend(ends.0);
                    data.extend(ends.1);
                    let options = (usize::from(version & 0xf) * 4).saturating_sub(20);
                    data.extend(filling.iter().cycle().take(options));
                }
                Kind::V6 => {
                    data.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
                    data.extend([[0xfd; 12].as_slice(), &ends.0, &[0xfd; 12], &ends.1].concat());
                }
                Kind::Arp(ethertype) => {
                    data.extend(ethertype.to_be_bytes());
                    data.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
                    data.extend([ends.0.as_slice(), &[0; 6], &ends.1].concat());
                }
                Kind::Any(ethertype) => data.extend(ethertype.to_be_bytes()),
            }
            data.extend(ports.0.to_be_bytes());
            data.extend(ports.1.to_be_bytes());
            data.extend(filling);
            data.truncate(cut);
            data
        },
    )
}

#[test]
fn frames_of_every_shape_get_the_reference_s_verdict_both_ways() {
    let Some(rules) = rules() else { return };
    let seen = std::cell::Cell::new([0u32; 2]);
    proptest!(ProptestConfig::with_cases(20_000), |(data in frames())| {
        for direction in [Direction::In, Direction::Out] {
            for rule in &rules {
                let is_taken = rule.check(&frame(&data, direction)).map_err(TestCaseError::fail)?;
                let [mut dropped, mut taken] = seen.get();
                if is_taken { taken += 1 } else { dropped += 1 }
                seen.set([dropped, taken]);
            }
        }
    });
    let [dropped, taken] = seen.get();
    assert!(dropped > 50_000 && taken > 50_000, "{dropped} dropped, {taken} taken");
}

/// Ethernet with IPv4 and TCP or UDP ports.
fn packet(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    data.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, protocol, 0, 0]);
    data.extend([from.0, to.0].concat());
    data.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    data.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    data
}

#[test]
fn arp_with_addresses_in_every_net_passes_since_the_script_says_ip_net() {
    let Some(rules) = rules() else { return };
    for ethertype in [[0x08, 0x06], [0x80, 0x35]] {
        let mut data = packet(6, ([10, 0, 0, 7], 1), ([172, 20, 0, 10], 2));
        data[12..14].copy_from_slice(&ethertype);
        for direction in [Direction::In, Direction::Out] {
            for rule in &rules {
                assert_eq!(rule.check(&frame(&data, direction)), Ok(true));
            }
        }
    }
}

#[test]
fn a_tag_that_the_kernel_took_out_of_a_frame_does_not_change_its_verdict() {
    let Some(rules) = rules() else { return };
    let data = packet(6, ([10, 0, 0, 7], 40_000), ([10, 0, 9, 1], 443));
    for direction in [Direction::In, Direction::Out] {
        let plain = frame(&data, direction);
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 7 }), ..plain };
        for rule in &rules {
            assert_eq!(rule.check(&plain).unwrap(), rule.check(&tagged).unwrap());
        }
    }
}

#[test]
fn the_optimizer_changes_no_verdict_on_a_frame_whose_header_is_whole() {
    let Some(rules) = rules() else { return };
    let plain: Option<Vec<_>> = rules.iter().map(|rule| compiled(&rule.text, false)).collect();
    let Some(plain) = plain else { return };
    proptest!(ProptestConfig::with_cases(2000), |(data in frames())| {
        prop_assume!(data.len() >= 34);
        for direction in [Direction::In, Direction::Out] {
            let frame = frame(&data, direction);
            for (rule, plain) in rules.iter().zip(&plain) {
                let as_written = plain.run_in_kernel(&frame) != 0;
                prop_assert_eq!(as_written, rule.reference.run_in_kernel(&frame) != 0);
            }
        }
    });
}

const POD: ([u8; 4], u16) = ([10, 0, 0, 7], 40_000);
const SERVER: ([u8; 4], u16) = ([10, 0, 9, 1], 443);

#[test]
fn the_tap_s_own_traffic_is_dropped_before_the_rule() {
    let (sensor, node) = ([10, 0, 3, 3], [10, 0, 0, 5]);
    let policy = Policy { control_ports: vec![2003], ..policy(&["10.0.0.0/16"], &[]) };
    let classifier = Classifier::new(&policy, &view(&[]), &[sensor.into()]);
    let filter = classifier.filter(&[]);
    let mut datagram = packet(17, (node, 5000), (sensor, 6000));
    // Of a UDP length, and behind it the first bytes of a datagram of packets.
    datagram[38..44].copy_from_slice(&[0, 20, 0, 0, 0, 110]);
    let control = packet(6, (node, 33_000), (sensor, 2003));
    for data in [&datagram, &control] {
        let outgoing = frame(data, Direction::Out);
        let verdict = classifier.classify(&outgoing, &Headers::parse(data));
        assert_eq!(verdict, Err(DropReason::OwnTraffic));
        assert_eq!(filter.run_in_kernel(&outgoing), 0);
        // Without the sensor, the rule takes it: this is what feeds on itself in the reference.
        let unaware = Classifier::new(&policy, &view(&[]), &[]);
        assert!(unaware.classify(&outgoing, &Headers::parse(data)).is_ok());
    }
    let other = packet(17, (node, 5000), (sensor, 6000));
    assert!(classifier.classify(&frame(&other, Direction::Out), &Headers::parse(&other)).is_ok());
}

#[test]
fn nothing_else_of_our_rule_applies_and_copies_are_reported_each() {
    let policy = Policy {
        tapped: vec!["10.0.0.0/16".parse().unwrap()],
        overlay_ports: vec![443],
        ..policy(&["10.0.0.0/16"], &["172.20.0.0/16"])
    };
    let classifier = Classifier::new(&policy, &View::default(), &[]);
    let table = Arc::new(Table::new(1 << 20, 1_000_000_000).unwrap());
    let mut pipeline = Pipeline::new(table, Fingerprinter::new(1));
    let mut admit = |data: &[u8], ifindex, direction| {
        let mut verdicts = Vec::new();
        let seen = Frame { point: Point { ifindex, direction }, ..frame(data, direction) };
        pipeline.admit(&classifier, &seen, 0, |_packet, _headers, verdict| verdicts.push(verdict));
        verdicts[0]
    };
    // A client's request on its way over two nodes, seen by one tap: out is taken, in is not.
    let request = packet(6, POD, SERVER);
    assert_eq!(admit(&request, 1, Direction::In), Verdict::Drop(DropReason::Election));
    assert_eq!(admit(&request, 2, Direction::Out), Verdict::Report, "leaving the first node");
    assert_eq!(admit(&request, 3, Direction::In), Verdict::Drop(DropReason::Election));
    assert_eq!(admit(&request, 4, Direction::Out), Verdict::Report, "delivered: a second report");
    let service = packet(6, POD, ([172, 20, 0, 10], 443));
    assert_eq!(admit(&service, 2, Direction::Out), Verdict::Drop(DropReason::Election));
}

#[test]
fn what_the_rule_takes_needs_no_table() {
    let classifier = Classifier::new(&policy(&["10.0.0.0/16"], &[]), &View::default(), &[]);
    let request = packet(6, POD, SERVER);
    let scope = classifier.classify(&frame(&request, Direction::Out), &Headers::parse(&request));
    assert_eq!(scope, Ok(Scope { point: 0, candidate: None, marks: Marks::default() }));
}

#[test]
fn the_main_device_s_subnets_belong_to_the_cluster_as_they_change() {
    let policy = policy(&["10.0.0.0/16"], &[]);
    let ask = |main: &[&str]| {
        let data = packet(6, ([192, 0, 2, 1], 1000), ([192, 0, 2, 2], 2000));
        let classifier = Classifier::new(&policy, &view(main), &[]);
        classifier.classify(&frame(&data, Direction::Out), &Headers::parse(&data)).is_ok()
    };
    assert!(ask(&[]), "both ends outside");
    assert!(!ask(&["192.0.2.0/24"]), "the lower port's reply is taken coming in");
}
