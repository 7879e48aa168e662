//! The kernel as the judge: a link without offloads makes the kernel cut, and ours must be the same.
//!
//! ```text
//! super-frame --packet socket--> v0 with offloads:     the tap sees it whole --Cutter--> segments
//!                           `--> v0 without offloads:  the tap sees what the kernel made of it    equal
//! ```

use std::process::Command;
use std::time::Duration;

use socket2::Socket;

use super::plan::gso;
use super::*;
use crate::frame::{Direction, internet_checksum};
use crate::source::memory::OwnedFrame;
use crate::source::packet::testnet::{Veth, in_netns, ip, sender};
use crate::source::packet::{Geometry, PacketOptions, PacketSource};
use crate::source::{Batch, Source};
use crate::sys::Waker;
use crate::sys::packet::{self, VNET_GSO_ECN, VNET_NEEDS_CSUM, VnetHeader};
use crate::wire::{Network, protocol};

pub(super) fn capture(budget: u64) -> PacketSource {
    let geometry = Geometry::from_budget(budget, 1).unwrap();
    let options = PacketOptions { geometry, retire_timeout_ms: 1 };
    let mut source = PacketSource::open(&options, Waker::new().unwrap()).unwrap();
    source.set_filter(&[]).unwrap();
    source
}

fn offloads(link: &str, state: &str) {
    let mut command = Command::new("ethtool");
    command.args(["-K", link]);
    for feature in ["tx", "tso", "tx-udp-segmentation", "tx-udp_tnl-segmentation"] {
        command.args([feature, state]);
    }
    command.args(["tx-udp_tnl-csum-segmentation", state]);
    let output = command.output().expect("ethtool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Frames that `v0` sends, once there are `count`.
fn outgoing(source: &mut PacketSource, v0: u32, count: usize) -> Vec<OwnedFrame> {
    let mut frames = Vec::new();
    for _ in 0..1000 {
        while let Some(batch) = source.next_batch() {
            let ours = batch.frames().filter(|frame| {
                frame.point.ifindex == v0 && frame.point.direction == Direction::Out
            });
            frames.extend(ours.map(OwnedFrame::from));
        }
        if frames.len() >= count {
            assert_eq!(frames.len(), count);
            return frames;
        }
        source.wait(Duration::from_millis(10)).unwrap();
    }
    panic!("only {} of {count} frames came", frames.len());
}

fn cut(frame: &OwnedFrame) -> (Cut, Vec<Vec<u8>>) {
    let frame = frame.as_frame();
    let mut segments = Vec::new();
    let cut = Cutter::default().cut(&frame, &Headers::parse(frame.data), |segment, headers| {
        assert_eq!(Headers::parse(segment.data), *headers);
        segments.push(segment.wire(usize::MAX).to_vec());
    });
    (cut, segments)
}

/// A super-frame and what is said of it.
#[derive(Clone)]
struct Case {
    name: String,
    vnet: VnetHeader,
    frame: Vec<u8>,
}

/// Bytes after the Ethernet addresses: tags, IP, transport header with the seed of its checksum,
/// payload.
#[derive(Clone)]
struct Shape {
    is_v6: bool,
    is_udp: bool,
    tags: Vec<u8>,
    /// Options of IPv4, or a destination options header of IPv6.
    has_options: bool,
    flags: u8,
    ae: bool,
    df: bool,
    id: u16,
    payload: usize,
    size: u16,
}

impl Shape {
    fn new(is_v6: bool, is_udp: bool) -> Self {
        let (payload, size) = if is_udp { (4321, 1000) } else { (30_000, 1448) };
        Self {
            is_v6,
            is_udp,
            tags: Vec::new(),
            has_options: false,
            flags: 0x18,
            ae: false,
            df: true,
            id: 0xfff0,
            payload,
            size,
        }
    }

    fn case(&self, name: &str) -> Case {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(&self.tags);
        let l3 = frame.len() + 2;
        let kind = if self.is_udp { protocol::UDP } else { protocol::TCP };
        let mut transport = vec![0x9c, 0x40, 0x1f, 0x90];
        if self.is_udp {
            transport.extend(u16::try_from(8 + self.payload).unwrap().to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend([0xff, 0xff, 0xf0, 0, 1, 2, 3, 4]);
            transport.extend([0x80 | u8::from(self.ae), self.flags, 1, 0, 0, 0, 0, 0]);
            transport.extend([1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
        }
        let l4_len = transport.len() + self.payload;
        let (ends, l4) = if self.is_v6 {
            let options = if self.has_options { 8 } else { 0 };
            frame.extend([0x86, 0xdd, 0x62, 0x30, 0, 5]);
            frame.extend(u16::try_from(options + l4_len).unwrap().to_be_bytes());
            frame.extend([if self.has_options { 60 } else { kind }, 64]);
            let ends = [[0xfd; 16], [0xfe; 16]].concat();
            frame.extend(&ends);
            if self.has_options {
                frame.extend([kind, 0, 1, 4, 0, 0, 0, 0]);
            }
            (ends, l3 + 40 + options)
        } else {
            let words = if self.has_options { 6 } else { 5 };
            let total = u16::try_from(words * 4 + l4_len).unwrap().to_be_bytes();
            frame.extend([8, 0, 0x40 | u8::try_from(words).unwrap(), 0, total[0], total[1]]);
            frame.extend(self.id.to_be_bytes());
            frame.extend([if self.df { 0x40 } else { 0 }, 0, 64, kind, 0, 0]);
            let ends = vec![10, 0, 0, 1, 10, 0, 0, 2];
            frame.extend(&ends);
            if self.has_options {
                frame.extend([1, 1, 1, 1]);
            }
            let sum = internet_checksum(&frame[l3..]).to_be_bytes();
            frame[l3 + 10..l3 + 12].copy_from_slice(&sum);
            (ends, l3 + words * 4)
        };
        let at = if self.is_udp { 6 } else { 16 };
        let len = u32::try_from(l4_len).unwrap().to_be_bytes();
        let seed = !internet_checksum(&[&ends[..], &len, &[0, 0, 0, kind]].concat());
        transport[at..at + 2].copy_from_slice(&seed.to_be_bytes());
        frame.extend(&transport);
        let header_len = frame.len();
        frame.extend((0..self.payload).map(|n| u8::try_from(n * 7 % 253).unwrap()));
        let gso_type = match (self.is_udp, self.is_v6) {
            (true, _) => gso::UDP_L4,
            (false, false) => gso::TCPV4,
            (false, true) => gso::TCPV6,
        };
        let ecn = if self.flags & 0x80 != 0 { VNET_GSO_ECN } else { 0 };
        let vnet = VnetHeader {
            flags: VNET_NEEDS_CSUM,
            gso_type: gso_type | ecn,
            hdr_len: u16::try_from(header_len).unwrap(),
            gso_size: self.size,
            csum_start: u16::try_from(l4).unwrap(),
            csum_offset: u16::try_from(at).unwrap(),
        };
        Case { name: name.into(), vnet, frame }
    }
}

/// Sends each case over `v0` with offloads and without, and compares.
fn judge(cases: &[Case]) {
    in_netns(|| {
        let veth = Veth::new();
        ip("link set v0 mtu 1600");
        let socket = sender("v0");
        packet::enable_vnet_header(&socket).unwrap();
        let socket = Socket::from(socket);
        let mut source = capture(8 << 20);
        for case in cases {
            let message = [bytemuck::bytes_of(&case.vnet), &case.frame].concat();
            offloads("v0", "on");
            assert_eq!(socket.send(&message).unwrap(), message.len(), "{}", case.name);
            let whole = outgoing(&mut source, veth.v0, 1).remove(0);
            assert_eq!(whole.data, case.frame, "{}", case.name);
            assert_eq!(whole.offload.gso_size, case.vnet.gso_size, "{}", case.name);
            let (cut, ours) = cut(&whole);
            assert_eq!(cut, Cut::Whole, "{}", case.name);
            offloads("v0", "off");
            assert_eq!(socket.send(&message).unwrap(), message.len(), "{}", case.name);
            let kernels = outgoing(&mut source, veth.v0, ours.len());
            for (at, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
                let kernels = kernels.as_frame().wire(usize::MAX).to_vec();
                assert_eq!(*ours, kernels, "{}, segment {at}", case.name);
            }
        }
    });
}

#[test]
fn tcp_is_cut_as_the_kernel_cuts_it() {
    let mut cases = Vec::new();
    for is_v6 in [false, true] {
        let plain = Shape::new(is_v6, false);
        let family = if is_v6 { "IPv6" } else { "IPv4" };
        let mut case =
            |shape: Shape, what: &str| cases.push(shape.case(&format!("{family} {what}")));
        case(plain.clone(), "plain");
        case(Shape { flags: 0x19, ..plain.clone() }, "FIN");
        case(Shape { flags: 0xd8, ..plain.clone() }, "CWR and ECE");
        case(Shape { flags: 0x30, ..plain.clone() }, "URG");
        case(Shape { df: false, id: 0, ..plain.clone() }, "no DF");
        case(Shape { has_options: true, ..plain.clone() }, "options");
        case(Shape { payload: 1448 * 20, ..plain.clone() }, "a multiple of the size");
        case(Shape { payload: 1449, ..plain.clone() }, "one byte more than one");
        case(Shape { size: 536, payload: 60_000, ..plain.clone() }, "many");
        let tags = vec![0x81, 0, 0x20, 0x64];
        case(Shape { tags, ..plain.clone() }, "a tag");
    }
    judge(&cases);
}

#[test]
fn udp_is_cut_as_the_kernel_cuts_it() {
    let mut cases = Vec::new();
    for is_v6 in [false, true] {
        let plain = Shape::new(is_v6, true);
        let family = if is_v6 { "IPv6" } else { "IPv4" };
        let mut case =
            |shape: Shape, what: &str| cases.push(shape.case(&format!("{family} {what}")));
        case(plain.clone(), "plain");
        case(Shape { df: false, id: 0, ..plain.clone() }, "no DF");
        case(Shape { has_options: true, ..plain.clone() }, "options");
        case(Shape { payload: 3000, ..plain.clone() }, "a multiple of the size");
        case(Shape { tags: vec![0x81, 0, 0, 7], ..plain.clone() }, "a tag");
    }
    judge(&cases);
}

/// A VXLAN device over `v0`: what goes in as a super-frame comes out of `v0` as one in a tunnel.
#[test]
fn a_tunnel_is_cut_as_the_kernel_cuts_it() {
    for checksums in ["noudpcsum", "udpcsum"] {
        in_netns(|| {
            let veth = Veth::new();
            ip("link set v0 mtu 1600");
            ip("addr add 10.9.0.1/24 dev v0");
            ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 dev v0");
            ip(&format!(
                "link add x0 type vxlan id 7 local 10.9.0.1 remote 10.9.0.2 dev v0 dstport 4444 {checksums}"
            ));
            ip("link set x0 up");
            let socket = sender("x0");
            packet::enable_vnet_header(&socket).unwrap();
            let socket = Socket::from(socket);
            let mut source = capture(8 << 20);
            for is_v6 in [false, true] {
                let case = Shape::new(is_v6, false).case("in a tunnel");
                let message = [bytemuck::bytes_of(&case.vnet), &case.frame].concat();
                offloads("v0", "on");
                assert_eq!(socket.send(&message).unwrap(), message.len());
                let whole = outgoing(&mut source, veth.v0, 1).remove(0);
                // The kernel names the inner kind, and where the inner checksum begins.
                assert_eq!(whole.offload.gso_type, case.vnet.gso_type);
                let start = case.vnet.csum_start + 50;
                assert_eq!(whole.offload.partial_checksum, Some((start, 16)));
                let (cut, ours) = cut(&whole);
                assert_eq!(cut, Cut::Whole);
                offloads("v0", "off");
                assert_eq!(socket.send(&message).unwrap(), message.len());
                let kernels = outgoing(&mut source, veth.v0, ours.len());
                // The device chose another identification for the second packet; from there it counts.
                let first = kernels[0].as_frame().wire(usize::MAX).to_vec();
                let shift = id(&ours[0][14..]).wrapping_sub(id(&first[14..]));
                for (at, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
                    let mut kernels = kernels.as_frame().wire(usize::MAX).to_vec();
                    let fixed = id(&kernels[14..]).wrapping_add(shift);
                    kernels[18..20].copy_from_slice(&fixed.to_be_bytes());
                    kernels[24..26].copy_from_slice(&ours[24..26]);
                    assert_eq!(*ours, kernels, "{checksums}, IPv6 {is_v6}, segment {at}");
                }
            }
        });
    }
}

/// Identification of the IPv4 packet `ip`.
fn id(ip: &[u8]) -> u16 {
    u16::from_be_bytes([ip[4], ip[5]])
}

/// Asks the kernel for super-frames of more than 64 kB on `link`; `ip` knows not all of the names.
fn make_big(link: &str, bytes: u32) {
    let mut message = vec![0, 0, 0, 0, 16, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0]; // RTM_NEWLINK, REQUEST | ACK
    message.extend([0; 4]);
    message.extend(crate::source::packet::testnet::ifindex(link).to_ne_bytes());
    message.extend([0; 8]);
    // IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, and those for IPv4.
    for attribute in [41u16, 58, 63, 64] {
        message.extend(8u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(bytes.to_ne_bytes());
    }
    let len = u32::try_from(message.len()).unwrap();
    message[..4].copy_from_slice(&len.to_ne_bytes());
    let netlink = socket2::Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(netlink, socket2::Type::RAW, None).unwrap();
    socket.send(&message).unwrap();
    let mut answer = [0; 256];
    assert!(std::io::Read::read(&mut socket, &mut answer).unwrap() >= 20);
    assert_eq!(answer[16..20], [0; 4], "RTM_NEWLINK: {:?}", &answer[16..20]);
}

/// Real BIG TCP: every segment right, and all bytes of the stream in order.
#[test]
fn big_tcp_of_the_kernel_is_cut_right() {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    const BIG: u32 = 185_000;
    for address in ["10.9.0.2:80", "[fd09::2]:80"] {
        in_netns(|| {
            let veth = Veth::new();
            let (say, hear) = std::sync::mpsc::channel();
            let far = move || {
                for link in ["all", "default", "v1"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
                    std::fs::write(path, "0").unwrap();
                }
                ip("addr add fd09::2/64 dev v1 nodad");
                let listener = TcpListener::bind(address).unwrap();
                say.send(()).unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_to_end(&mut Vec::new()).unwrap();
            };
            crate::source::packet::testnet::with_peer(far, || {
                for link in ["all", "default", "v0"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
                    std::fs::write(path, "0").unwrap();
                }
                ip("addr add fd09::1/64 dev v0 nodad");
                make_big("v0", BIG);
                let largest = crate::net::snapshot(
                    crate::net::InterfaceSelection::default(),
                    crate::net::RoleOverrides::default(),
                )
                .unwrap()
                .largest_frame;
                assert_eq!(largest, BIG, "read from the link");
                hear.recv().unwrap();
                let mut stream = TcpStream::connect(address).unwrap();
                let geometry = Geometry::for_frames(64 << 20, 1, largest + 22).unwrap();
                let options = PacketOptions { geometry, retire_timeout_ms: 1 };
                let mut source = PacketSource::open(&options, Waker::new().unwrap()).unwrap();
                source.set_filter(&[]).unwrap();
                let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
                let writer = std::thread::spawn({
                    let sent = sent.clone();
                    move || stream.write_all(&sent).unwrap()
                });
                let (mut seen, mut next, mut joined, mut big) = (0, None, Vec::new(), 0);
                while joined.len() < sent.len() {
                    seen += 1;
                    assert!(seen < 100_000, "{} bytes came", joined.len());
                    let Some(batch) = source.next_batch() else {
                        source.wait(Duration::from_millis(10)).unwrap();
                        continue;
                    };
                    for frame in batch.frames().map(OwnedFrame::from) {
                        if (frame.point.ifindex, frame.point.direction) != (veth.v0, Direction::Out)
                        {
                            continue;
                        }
                        big += usize::from(frame.data.len() > 66_000);
                        let (cut, segments) = if frame.offload.gso_size == 0 {
                            (Cut::Whole, vec![frame.as_frame().wire(usize::MAX).to_vec()])
                        } else {
                            cut(&frame)
                        };
                        assert_eq!(cut, Cut::Whole, "{} of {}", frame.data.len(), frame.wire_len);
                        for segment in segments {
                            take(&segment, &mut next, &mut joined);
                        }
                    }
                }
                writer.join().unwrap();
                assert!(big > 0, "no super-frame of more than 64 kB came");
                assert!(joined == sent, "the stream's bytes");
                assert_eq!(source.stats().unwrap().ring_dropped, 0);
            });
        });
    }
}

/// Appends the payload of a TCP segment that continues the stream, after looking at everything in it.
fn take(segment: &[u8], next: &mut Option<u32>, joined: &mut Vec<u8>) {
    let headers = Headers::parse(segment);
    if headers.protocol != protocol::TCP || headers.end == headers.payload {
        return;
    }
    assert!(segment.len() <= 1514, "{}", segment.len());
    let (at, ends) = match headers.network {
        Network::V4 => (16, 26..34),
        _ => (18, 22..54),
    };
    let len = usize::from(segment[at]) * 256 + usize::from(segment[at + 1]);
    assert_eq!(len + if at == 16 { 14 } else { 54 }, segment.len());
    let l4_len = u32::try_from(headers.end - headers.l4).unwrap().to_be_bytes();
    let covered = [&segment[ends], &l4_len, &[0, 0, 0, 6], &segment[headers.l4..]].concat();
    assert_eq!(internet_checksum(&covered), 0);
    let l4 = &segment[headers.l4..];
    let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
    let payload = &segment[headers.payload..headers.end];
    // A repeat is skipped; a link drops nothing, so there is no other way to go back.
    if next.is_none_or(|next| next == sequence) {
        joined.extend_from_slice(payload);
        *next = Some(sequence.wrapping_add(u32::try_from(payload.len()).unwrap()));
    }
}
