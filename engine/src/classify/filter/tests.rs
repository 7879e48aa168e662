//! The kernel's part must change nothing: with it and without it, each sensor gets the same.
//!
//! ```text
//! packets -> their copies, in the order in which a node sees them (NAT, tags, super-frames)
//!   --tap's own filter------------> pipeline -> each sensor's filter -> delivered
//!   --and the sensors' in front --> pipeline -> each sensor's filter -> delivered     (the same)
//! ```
//!
//! Copies come in the order of their way or in the reverse: rings of several workers keep none.

mod several;
mod translated;

use std::sync::Arc;

use super::*;
use crate::bpf::oracle::{Random, network_program};
use crate::classify::Policy;
use crate::dedup::{Fingerprinter, Table};
use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
use crate::net::View;
use crate::pipeline::{Pipeline, Verdict};
use crate::segment::{Cut, Cutter};
use crate::source::memory::OwnedFrame;
use crate::sys::libpcap::{CompileError, NETMASK_UNKNOWN, compile};
use crate::wire::Headers;

const UPLINK: u32 = 2;
const POD: u32 = 10;
const POD_2: u32 = 11;
const VLAN: u32 = 12;

const OWN: &str = "10.0.1.10";

fn link(ifindex: u32, role: Role, kind: &str) -> (u32, crate::net::Link) {
    let (_, mut link) = crate::classify::tests::link(ifindex, role, kind);
    link.slot = u16::try_from(ifindex).unwrap();
    (ifindex, link)
}

/// A node with two pods; with a VLAN device beside its uplink, if it is to change tags.
fn node(has_vlan: bool, election: Election) -> Classifier {
    let mut links = vec![
        link(UPLINK, Role::Uplink, ""),
        link(POD, Role::Pod, "veth"),
        link(POD_2, Role::Pod, "veth"),
    ];
    if has_vlan {
        links.push(link(VLAN, Role::Uplink, "vlan"));
    }
    let view = View {
        links: links.into_iter().collect(),
        own: [OWN, "fe80::1", "2001:db8::10"].map(|ip| ip.parse().unwrap()).into(),
        local: [
            "10.0.1.10/32",
            "10.0.1.101/32",
            "10.0.1.102/32",
            "2001:db8::10/128",
            "2001:db8::101/128",
            "2001:db8::102/128",
        ]
        .map(|net| net.parse().unwrap())
        .into(),
        ..View::default()
    };
    let policy = Policy {
        election,
        svcnet: ["172.20.0.0/16", "2001:db8:9::2/128"].map(|net| net.parse().unwrap()).into(),
        any_interface: true,
        ..Policy::default()
    };
    Classifier::new(&policy, &view, &[])
}

/// Host parts of addresses: pods, own, others.
const V4: [&str; 6] = ["10.0.1.101", "10.0.1.102", OWN, "10.0.9.1", "8.8.8.8", "172.20.0.10"];
const V6: [&str; 6] =
    ["2001:db8::101", "2001:db8::102", "2001:db8::10", "2001:db8:9::1", "2600::8", "2001:db8:9::2"];
const PORTS: [u16; 9] = [22, 53, 80, 443, 1024, 8080, 30080, 40000, 65535];

/// A packet without its link header and without what a host changes.
#[derive(Clone, Debug)]
struct Packet {
    is_v6: bool,
    protocol: u8,
    /// Index into the addresses, and the port (or echo id).
    source: (usize, u16),
    destination: (usize, u16),
    /// Flags and offset of IPv4; of IPv6, a fragment header if not 0.
    fragment: u16,
    id: u16,
    flags: u8,
    options: bool,
    payload: Vec<u8>,
}

impl Packet {
    fn random(random: &mut Random) -> Self {
        let is_v6 = random.one_in(3);
        let icmp = if is_v6 { 58 } else { 1 };
        let protocol = random.pick(&[6, 6, 6, 6, 17, 17, 17, icmp, icmp, 132, 47, 0]);
        let flags = random.pick(&[0x02, 0x10, 0x18, 0x11, 0x12, 0x04, 0x90]);
        let fragment = random.pick(&[0, 0, 0, 0x4000, 0x4000, 0x2000, 0x00b9, 0x2001]);
        let len = random.pick(&[0, 0, 1, 4, 11, 12, 13, 100, 1000]);
        let end = |random: &mut Random| (random.below(6) as usize, random.pick(&PORTS));
        Self {
            is_v6,
            protocol,
            source: end(random),
            destination: end(random),
            fragment: if is_v6 && !random.one_in(4) { 0 } else { fragment },
            id: u16::from(random.byte()),
            flags,
            options: random.one_in(10),
            payload: (0..len).map(|_| random.byte() & 3).collect(),
        }
    }

    fn l4(&self, random: &mut Random) -> Vec<u8> {
        let mut l4 = Vec::new();
        let sum = [random.byte(), random.byte()];
        let (ports, id) = ([self.source.1, self.destination.1], self.id.to_be_bytes());
        match self.protocol {
            6 => {
                l4.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                l4.extend([0, 0, id[0], id[1], 0, 0, 0, id[1] & 3, 0x50, self.flags, 1, 0]);
                l4.extend(sum);
                l4.extend([0, 0]);
            }
            17 => {
                l4.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
                l4.extend(u16::try_from((8 + self.payload.len()) & 0xffff).unwrap().to_be_bytes());
                l4.extend(sum);
            }
            1 | 58 => {
                let echo = if self.protocol == 1 { 8 } else { 128 };
                let kind = if self.flags & 2 == 0 { echo } else { 3 };
                l4.extend([kind, 0, sum[0], sum[1]]);
                l4.extend(self.source.1.to_be_bytes());
                l4.extend(id);
            }
            _ => l4.extend(ports.iter().flat_map(|port| port.to_be_bytes())),
        }
        l4.extend(&self.payload);
        l4
    }

    /// The frame at some point: what a host changes is drawn anew.
    fn frame(&self, random: &mut Random) -> Vec<u8> {
        let mut data: Vec<u8> = (0..12).map(|_| random.pick(&[2, 0, 6])).collect();
        let l4 = self.l4(random);
        let (ecn, ttl) = (random.byte() & 3, random.pick(&[1, 63, 64]));
        if self.is_v6 {
            data.extend([0x86, 0xdd, 0x60, ecn << 4, 0, 0]);
            let extra = if self.fragment == 0 { 0 } else { 8 };
            data.extend(u16::try_from(l4.len() + extra).unwrap().to_be_bytes());
            data.extend([if self.fragment == 0 { self.protocol } else { 44 }, ttl]);
            for end in [self.source, self.destination] {
                data.extend(V6[end.0].parse::<std::net::Ipv6Addr>().unwrap().octets());
            }
            if self.fragment != 0 {
                data.extend([self.protocol, 0]);
                data.extend((self.fragment << 3 | self.fragment >> 13 & 1).to_be_bytes());
                data.extend([0, 0, 0, self.id.to_be_bytes()[1]]);
            }
        } else {
            let header = if self.options { 24 } else { 20 };
            data.extend([0x08, 0x00, 0x40 | (header / 4), ecn]);
            data.extend((u16::from(header) + u16::try_from(l4.len()).unwrap()).to_be_bytes());
            data.extend(self.id.to_be_bytes());
            data.extend(self.fragment.to_be_bytes());
            data.extend([ttl, self.protocol, random.byte(), random.byte()]);
            for end in [self.source, self.destination] {
                data.extend(V4[end.0].parse::<std::net::Ipv4Addr>().unwrap().octets());
            }
            data.resize(14 + usize::from(header), 1);
        }
        data.extend(l4);
        data
    }
}

impl Packet {
    /// A flow's translation does not change from one packet to its repeat.
    fn translated_port(&self) -> u16 {
        let flow = self.source.1 ^ self.destination.1 ^ self.id >> 2;
        PORTS[usize::from(flow) % PORTS.len()]
    }
}

struct Stream {
    random: Random,
    has_vlan: bool,
    frames: Vec<OwnedFrame>,
}

impl Stream {
    fn push(&mut self, data: Vec<u8>, ifindex: u32, direction: Direction, offload: Offload) {
        let vlan = (ifindex == UPLINK && self.has_vlan && self.random.one_in(2))
            .then_some(VlanTag { tpid: 0x8100, tci: 5 });
        let timestamp_ns = 1_000 * self.frames.len() as u64;
        let wire_len = u32::try_from(data.len()).unwrap();
        let point = Point { ifindex, direction };
        self.frames.push(OwnedFrame { data, wire_len, timestamp_ns, point, vlan, offload });
    }

    /// A packet's copy at one point; at the uplink links pad, and may tag in the bytes.
    fn copy(&mut self, packet: &Packet, ifindex: u32, direction: Direction) {
        let mut data = packet.frame(&mut self.random);
        if ifindex == UPLINK && direction == Direction::In && data.len() < 60 {
            data.resize(60, self.random.byte());
        }
        if self.has_vlan && ifindex == UPLINK && self.random.one_in(5) {
            data.splice(12..12, [0x81, 0, 0, 7]);
        }
        self.push(data, ifindex, direction, Offload::default());
    }

    /// Everywhere on its way, in that order or the reverse.
    fn travel(&mut self, packet: &Packet) {
        let first = self.frames.len();
        match (packet.source.0, packet.destination.0) {
            (0 | 1, 5) | (5, 0 | 1) => self.travel_by_service(packet),
            _ => self.travel_plainly(packet),
        }
        if self.random.one_in(4) {
            let times: Vec<_> = self.frames[first..].iter().map(|f| f.timestamp_ns).collect();
            self.frames[first..].reverse();
            for (frame, time) in self.frames[first..].iter_mut().zip(times) {
                frame.timestamp_ns = time;
            }
        }
    }

    fn travel_plainly(&mut self, packet: &Packet) {
        use Direction::{In, Out};
        let (from, to) = (packet.source.0, packet.destination.0);
        let pod = |index: usize| [Some(POD), Some(POD_2)].get(index).copied().flatten();
        let mut packet = packet.clone();
        if let Some(pod) = pod(from) {
            self.copy(&packet, pod, In);
        }
        let is_from_outside = from > 2;
        if is_from_outside {
            // A reply to what was sent with the node's address, or a node port.
            let is_translated = pod(to).is_some() && packet.id.is_multiple_of(3);
            let mut outer = packet.clone();
            if is_translated {
                outer.destination = (2, packet.translated_port());
                if matches!(packet.protocol, 1 | 58) {
                    outer.source.1 = outer.destination.1;
                }
            }
            self.copy(&outer, UPLINK, In);
            if self.has_vlan {
                self.copy(&outer, VLAN, In);
            }
        }
        if let Some(pod) = pod(to) {
            self.copy(&packet, pod, Out);
        } else if to > 2 && !is_from_outside {
            if from < 2 && packet.id.is_multiple_of(2) {
                packet.source = (2, packet.translated_port());
            }
            if self.has_vlan {
                self.copy(&packet, VLAN, Out);
            }
            self.copy(&packet, UPLINK, Out);
        }
    }

    /// A super-frame at a pod, the segments that it is at the uplink.
    fn travel_super(&mut self, packet: &Packet) {
        let mut packet = Packet { fragment: 0, options: false, protocol: 6, ..packet.clone() };
        packet.source.0 %= 2;
        packet.destination.0 = 3 + packet.destination.0 % 2;
        packet.flags |= 0x10;
        packet.payload = (0..2500).map(|_| self.random.byte()).collect();
        let gso_type = if packet.is_v6 { 4 } else { 1 };
        let offload = Offload { partial_checksum: None, gso_size: 1000, gso_type };
        let data = packet.frame(&mut self.random);
        let pod = if packet.source.0 == 0 { POD } else { POD_2 };
        self.push(data, pod, Direction::In, offload);
        if packet.id.is_multiple_of(2) {
            packet.source = (2, packet.translated_port());
        }
        let mut whole = self.frames.last().unwrap().clone();
        whole.data = packet.frame(&mut self.random);
        let mut segments = Vec::new();
        let headers = Headers::parse(&whole.data);
        let cut = Cutter::default()
            .cut(&whole.as_frame(), &headers, |segment, _| segments.push(segment.data.to_vec()));
        assert_eq!(cut, Cut::Whole, "{packet:?}");
        for segment in segments {
            self.push(segment, UPLINK, Direction::Out, Offload::default());
        }
    }

    /// What is not IP, or pretends to be, at two points.
    fn odd(&mut self) {
        let len = self.random.below(100) as usize;
        let mut data: Vec<u8> = (0..14 + len).map(|_| self.random.byte() & 0x47).collect();
        let kind = [[8, 6], [8, 0], [0x86, 0xdd], [0x88, 0xcc], [0, 0x40], [0x88, 0xa8]];
        data[12..14].copy_from_slice(&self.random.pick(&kind));
        let point = self.random.pick(&[UPLINK, POD]);
        self.push(data.clone(), point, Direction::In, Offload::default());
        self.push(data, POD_2, Direction::Out, Offload::default());
    }

    fn random(seed: u64, packets: usize, has_vlan: bool) -> Vec<OwnedFrame> {
        let mut stream = Self { random: Random(seed), has_vlan, frames: Vec::new() };
        let mut last = Packet::random(&mut stream.random);
        for _ in 0..packets {
            match stream.random.below(12) {
                0 => stream.odd(),
                1 => stream.travel_super(&last.clone()),
                // Again: a real repeat, not a copy.
                2 => stream.travel(&last.clone()),
                _ => {
                    last = Packet::random(&mut stream.random);
                    stream.travel(&last.clone());
                }
            }
        }
        stream.frames
    }
}

/// What a sensor gets: the frame, and whether it might have had a twin.
type Delivered = (Vec<u8>, bool);

/// What each of the sensors gets, as delivered; and how many frames the kernel let through.
fn delivered(
    classifier: &Classifier,
    socket: &Program,
    filters: &[Program],
    frames: &[OwnedFrame],
) -> (Vec<Vec<Delivered>>, usize) {
    let table = Arc::new(Table::new(1 << 20, 1_000_000_000).unwrap());
    let mut pipeline = Pipeline::new(table, Fingerprinter::new(7));
    let mut got = vec![Vec::new(); filters.len()];
    let mut passed = 0;
    let mut take = |packet: &Frame<'_>, headers: &Headers, verdict| {
        let scope = classifier.classify(packet, headers);
        let is_candidate = scope.is_ok_and(|scope| scope.candidate.is_some());
        for (got, filter) in got.iter_mut().zip(filters) {
            if verdict == Verdict::Report && filter.run(packet) != 0 {
                got.push((packet.wire(usize::MAX).to_vec(), is_candidate));
            }
        }
    };
    for frame in frames.iter().map(OwnedFrame::as_frame) {
        if socket.run_in_kernel(&frame) == 0 {
            continue;
        }
        passed += 1;
        pipeline.admit(classifier, &frame, 0, &mut take);
    }
    pipeline.settle_all(&mut take);
    assert_eq!(pipeline.notes.settle_full, 0, "there is memory for all");
    (got, passed)
}

/// Checks a node; the share of frames that the sensors' part kept away, in percent.
fn check(classifier: &Classifier, filters: &[Program], frames: &[OwnedFrame]) -> usize {
    let own = classifier.filter(&[]);
    let Some(combined) = classifier.filter_for(filters) else { return 0 };
    for frame in frames.iter().map(OwnedFrame::as_frame) {
        let wider = own.run_in_kernel(&frame) == 0 && combined.run_in_kernel(&frame) != 0;
        assert!(!wider, "the tap's own filter is never widened: {frame:x?}");
    }
    let (without, all) = delivered(classifier, &own, filters, frames);
    let (with, some) = delivered(classifier, &combined, filters, frames);
    for ((without, with), filter) in without.iter().zip(&with).zip(filters) {
        // Those that waited have no order among the others.
        let split = |all: &[Delivered]| -> (Vec<_>, Vec<_>) {
            let (mut waited, plain): (Vec<_>, Vec<_>) =
                all.iter().cloned().partition(|(_, is_candidate)| *is_candidate);
            waited.sort_unstable();
            (waited, plain)
        };
        let ((waited, plain), (waited_with, plain_with)) = (split(without), split(with));
        assert_eq!(plain, plain_with, "by\n{filter}\nand the kernel by\n{combined}");
        assert_eq!(waited, waited_with, "by\n{filter}\nand the kernel by\n{combined}");
    }
    (all - some) * 100 / all.max(1)
}

/// A filter, or `None` where this machine has no libpcap.
fn compiled(expression: &str, optimize: bool) -> Option<Program> {
    match compile(expression, 1, 65535, optimize, NETMASK_UNKNOWN) {
        Ok(program) => Some(Program::new(&program).unwrap()),
        Err(CompileError::NoLibrary(reason)) => {
            eprintln!("SKIPPED: no libpcap on this machine: {reason}");
            None
        }
        Err(error) => panic!("{expression}: {error}"),
    }
}

/// Expressions; those in the second list are more than the kernel can tell from the packet.
const PUSHED: [&str; 49] = [
    "ip",
    "ip6",
    "arp",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "sctp",
    "ip and udp",
    "ip6 and tcp",
    "host 10.0.1.101",
    "host 8.8.8.8",
    "host 10.0.1.10",
    "src host 10.0.1.10",
    "dst host 10.0.1.10",
    "src host 10.0.1.102",
    "host 2001:db8::101",
    "src host 2001:db8::10",
    "net 10.0.0.0/16",
    "net 10.0.9.0/24",
    "src net 10.0.1.0/24 and dst net 10.0.1.0/24",
    "net 2600::/16",
    "port 80",
    "tcp port 80",
    "udp port 53",
    "src port 22",
    "dst port 443",
    "tcp dst port 443 or udp dst port 53",
    "portrange 20-80",
    "tcp portrange 8000-9000",
    "host 8.8.8.8 and port 53",
    "host 10.0.1.101 and tcp and not port 22",
    "tcp[tcpflags] & tcp-syn != 0",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[tcpflags] == tcp-syn",
    "tcp[tcpflags] == tcp-ack",
    "tcp[tcpflags] == tcp-ack|tcp-push",
    "tcp[13] & 0x81 == 0",
    "icmp[4:2] == 22",
    "icmp6[4:2] == 22 or icmp[2] > 100",
    "tcp[13] & 2 != 0 and tcp port 443",
    "icmp[icmptype] == icmp-echo",
    "ip[6:2] & 0x1fff != 0",
    "ip proto 47",
    "ip[8] < 10 and tcp",
    "ether host 02:00:06:00:02:02 and udp",
    "tcp and greater 500",
    "inbound and tcp",
    "ip and not host 10.0.1.101",
];
const MORE: [&str; 22] = [
    "not port 22",
    "not host 10.0.1.101",
    "not host 10.0.1.10",
    "not (host 8.8.8.8 and tcp)",
    "not net 10.0.0.0/16",
    "not tcp",
    "not udp port 53",
    "not arp",
    "vlan",
    "vlan 5 and tcp port 80",
    "vlan 5 and vlan 7 and ip",
    "vlan or tcp port 443",
    "tcp port 80 or (vlan 5 and tcp port 80)",
    "less 100",
    "greater 100",
    "ether multicast",
    "ip[2:2] > 100",
    "udp[8:2] == 0x0102",
    "tcp[4:4] & 0xff == 3",
    "ip[4:2] + ip[0] > 5",
    "ip6[6] == 44 or ip6[54] == 6",
    "outbound",
];

#[test]
fn each_sensor_gets_the_same_with_its_filter_in_the_kernel_and_without() {
    let mut seed = 1;
    for expression in PUSHED.iter().chain(&MORE) {
        for (has_vlan, election) in
            [(false, Election::Source), (true, Election::Source), (false, Election::None)]
        {
            for optimize in [true, false] {
                // libpcap has no unoptimised form of this one.
                let Some(filter) = compiled(expression, optimize) else { return };
                seed += 1;
                let frames = Stream::random(seed, 200, has_vlan);
                check(&node(has_vlan, election), &[filter], &frames);
            }
        }
    }
}

#[test]
fn two_sensors_get_the_same_with_their_filters_in_the_kernel_and_without() {
    let mut random = Random(11);
    for round in 0..100 {
        let any = |random: &mut Random| {
            let expression =
                if random.one_in(3) { random.pick(&MORE) } else { random.pick(&PUSHED) };
            compiled(expression, true)
        };
        let (Some(one), Some(other)) = (any(&mut random), any(&mut random)) else { return };
        let has_vlan = random.one_in(3);
        let frames = Stream::random(1000 + round, 300, has_vlan);
        check(&node(has_vlan, Election::Source), &[one, other], &frames);
    }
}

#[test]
fn whatever_a_client_sends_the_kernels_part_changes_nothing() {
    let mut random = Random(5);
    let streams = [Stream::random(70, 500, false), Stream::random(71, 500, true)];
    let mut pushed = 0;
    for round in 0..600 {
        let program = network_program(&mut random);
        let which = usize::from(random.one_in(3));
        let election = if round % 2 == 0 { Election::Source } else { Election::None };
        let node = node(which == 1, election);
        pushed += usize::from(check(&node, &[program], &streams[which]) > 0);
    }
    assert!(pushed > 20, "only {pushed} programs kept anything away");
}

#[test]
fn ordinary_filters_are_the_kernels_to_apply() {
    let frames = Stream::random(3, 3000, false);
    for expression in PUSHED {
        let Some(filter) = compiled(expression, true) else { return };
        let kept_away = check(&node(false, Election::None), &[filter], &frames);
        eprintln!("{expression}: {kept_away} %");
        assert!(kept_away >= 10, "{expression}: only {kept_away} % kept away");
    }
}
