//! The source on real links, each test in a network namespace of its own.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::Socket;

use super::testnet::{
    Veth, ifindex, in_netns, ip, ipv4, is_udp_checksum_right, marked, pseudo_sum, sender, tap, udp,
    with_peer,
};
use super::*;
use crate::frame::{Direction, Point, VlanTag};
use crate::source::Batch;
use crate::source::memory::OwnedFrame;
use crate::sys::packet::{VNET_NEEDS_CSUM, VnetHeader};

/// Smallest ring.
fn small() -> PacketOptions {
    let geometry = Geometry::from_budget(1 << 20, 1).unwrap();
    PacketOptions { geometry, retire_timeout_ms: 1 }
}

fn open() -> PacketSource {
    PacketSource::open(&small(), Waker::new().unwrap()).unwrap()
}

/// A source that captures everything.
fn capture() -> PacketSource {
    let mut source = open();
    source.set_filter(&[]).unwrap();
    source
}

/// Reads until `enough` says so; fails when nothing has come for long.
fn read_until(
    source: &mut PacketSource,
    enough: impl Fn(&[OwnedFrame]) -> bool,
) -> Vec<OwnedFrame> {
    let mut frames = Vec::new();
    for _ in 0..1000 {
        while let Some(batch) = source.next_batch() {
            frames.extend(batch.frames().map(OwnedFrame::from));
        }
        if enough(&frames) {
            return frames;
        }
        source.wait(Duration::from_millis(10)).unwrap();
    }
    panic!("only {} frames came", frames.len());
}

fn read(source: &mut PacketSource, count: usize) -> Vec<OwnedFrame> {
    let frames = read_until(source, |frames| frames.len() >= count);
    assert_eq!(frames.len(), count);
    frames
}

fn markers(frames: &[OwnedFrame]) -> Vec<u8> {
    frames.iter().map(|frame| frame.data[14]).collect()
}

fn at(ifindex: u32, direction: Direction) -> Point {
    Point { ifindex, direction }
}

#[test]
fn a_frame_is_seen_going_out_and_coming_in() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = capture();
        let sent = marked(7, 100);
        veth.send(&sent);
        let frames = read(&mut source, 2);
        let points: Vec<_> = frames.iter().map(|frame| frame.point).collect();
        assert_eq!(points, [at(veth.v0, Direction::Out), at(veth.v1, Direction::In)]);
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for frame in &frames {
            assert_eq!((frame.data.as_slice(), frame.wire_len), (sent.as_slice(), 100));
            assert_eq!((frame.vlan, frame.offload.partial_checksum), (None, None));
            assert!(now.abs_diff(Duration::from_nanos(frame.timestamp_ns)) < day);
        }
    });
}

#[test]
fn nothing_is_captured_before_the_first_filter() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = open();
        for _ in 0..100 {
            veth.send(&marked(1, 60));
        }
        source.set_filter(&[]).unwrap();
        veth.send(&marked(2, 60));
        assert_eq!(markers(&read(&mut source, 2)), [2, 2]);
        assert_eq!(source.stats().unwrap().seen, 2);
    });
}

/// Accepts `snaplen` bytes of frames whose byte 14 is `marker`.
fn only(marker: u8, snaplen: u32) -> [BpfInsn; 4] {
    let insn = |code, jf, k| BpfInsn { code, jt: 0, jf, k };
    [
        insn(0x30, 0, 14), // ldb [14]
        insn(0x15, 1, u32::from(marker)),
        insn(BPF_RET_K, 0, snaplen),
        insn(BPF_RET_K, 0, 0),
    ]
}

#[test]
fn a_filter_is_replaced_while_the_capture_runs() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = open();
        source.set_filter(&only(1, 1000)).unwrap();
        veth.send(&marked(1, 60));
        veth.send(&marked(2, 60));
        source.set_filter(&only(2, 40)).unwrap();
        veth.send(&marked(1, 60));
        veth.send(&marked(2, 60));
        let endless = BpfInsn { code: 0x30, jt: 0, jf: 0, k: 14 };
        assert!(source.set_filter(&[endless]).is_err(), "it does not return");
        assert!(source.set_filter(&vec![REJECT_ALL[0]; 65_537]).is_err(), "too long");
        veth.send(&marked(3, 60));
        veth.send(&marked(2, 60));
        let frames = read(&mut source, 6);
        assert_eq!(markers(&frames), [1, 1, 2, 2, 2, 2]);
        let lengths: Vec<_> = frames.iter().map(|f| (f.data.len(), f.wire_len)).collect();
        assert_eq!(lengths, [(60, 60), (60, 60), (40, 60), (40, 60), (40, 60), (40, 60)]);
    });
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x64];

/// `frame` with [`TAG`] in it.
fn tagged(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(12..12, TAG);
    frame
}

#[test]
fn a_vlan_tag_is_reported_beside_the_frame_and_put_back() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = capture();
        let sent = tagged(marked(1, 60));
        veth.send(&sent);
        let frames = read(&mut source, 2);
        let tag = VlanTag { tpid: 0x8100, tci: 0x2064 };
        // On the way out the tag still stands in the frame; the receiving side takes it out.
        assert_eq!((frames[0].point.direction, frames[0].vlan), (Direction::Out, None));
        assert_eq!((frames[1].point.direction, frames[1].vlan), (Direction::In, Some(tag)));
        for frame in &frames {
            let wire = frame.as_frame().wire(usize::MAX);
            assert_eq!((wire.to_vec(), wire.wire_len()), (sent.clone(), 64));
        }
    });
}

#[test]
fn a_checksum_left_to_the_hardware_is_completed_with_and_without_a_tag() {
    in_netns(|| {
        let veth = Veth::new();
        let socket = sender("v0");
        packet::enable_vnet_header(&socket).unwrap();
        let socket = Socket::from(socket);
        let mut source = capture();
        let datagram = udp(1000, 2000, pseudo_sum(A, B, 8 + 33), &[0x5a; 33]);
        let plain = ipv4(A, B, 1, 0, 17, &datagram);
        for (frame, network) in [(plain.clone(), 14u16), (tagged(plain), 18)] {
            assert!(!is_udp_checksum_right(&frame, usize::from(network)));
            let header = VnetHeader {
                flags: VNET_NEEDS_CSUM,
                csum_start: network + 20,
                csum_offset: 6,
                ..VnetHeader::default()
            };
            let message = [bytemuck::bytes_of(&header), &frame].concat();
            assert_eq!(socket.send(&message).unwrap(), message.len());
            let seen = read(&mut source, 2);
            assert_eq!(seen[1].point, at(veth.v1, Direction::In));
            assert_eq!(seen[1].vlan.is_some(), network == 18);
            for frame in seen {
                // `csum_start` counts without the tag that stands beside the frame.
                let start = if frame.vlan.is_some() { network + 16 } else { network + 20 };
                assert_eq!(frame.offload.partial_checksum, Some((start, 6)));
                let bytes = frame.as_frame().wire(usize::MAX).to_vec();
                assert!(is_udp_checksum_right(&bytes, network.into()));
            }
        }
    });
}

#[test]
fn a_datagram_of_the_stack_gets_its_checksum() {
    in_netns(|| {
        let veth = Veth::new();
        with_peer(
            || (),
            || {
                let mut source = capture();
                let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
                ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0");
                let is_ours = |frame: &&OwnedFrame| frame.data[12..14] == [8, 0];
                let seen = read_until(&mut source, |seen| {
                    // Again and again: the link may not carry anything yet.
                    socket.send_to(b"odd bytes", "10.9.0.2:9").unwrap();
                    seen.iter().any(|frame| is_ours(&frame))
                });
                let frame = seen.iter().find(is_ours).unwrap();
                assert_eq!(frame.point, at(veth.v0, Direction::Out));
                assert_eq!(frame.offload.partial_checksum, Some((34, 6)));
                assert!(!is_udp_checksum_right(&frame.data, 14));
                assert!(is_udp_checksum_right(&frame.as_frame().wire(usize::MAX).to_vec(), 14));
            },
        );
    });
}

#[test]
fn a_super_frame_says_how_it_would_be_cut() {
    in_netns(|| {
        let veth = Veth::new();
        let (say, hear) = std::sync::mpsc::channel();
        let far = move || {
            let listener = TcpListener::bind("10.9.0.2:80").unwrap();
            say.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        };
        with_peer(far, || {
            hear.recv().unwrap();
            let mut stream = TcpStream::connect("10.9.0.2:80").unwrap();
            let mut source = capture();
            stream.write_all(&vec![1; 300_000]).unwrap();
            let is_super = |frame: &OwnedFrame| frame.data.len() > 1514;
            let seen = read_until(&mut source, |seen| seen.iter().any(is_super));
            for frame in seen.iter().filter(|frame| is_super(frame)) {
                assert_eq!(frame.point, at(veth.v0, Direction::Out));
                assert_eq!(frame.offload.gso_type, 1, "VIRTIO_NET_HDR_GSO_TCPV4");
                assert!((1000..=1460).contains(&frame.offload.gso_size));
                assert_eq!(frame.wire_len as usize, frame.data.len(), "captured whole");
            }
        });
    });
}

/// Two sources that share the frames.
fn pair() -> [PacketSource; 2] {
    let mut sources = [open(), open()];
    let group = sources[0].join_fanout(None).unwrap();
    assert_eq!(sources[1].join_fanout(Some(group)).unwrap(), group);
    for source in &mut sources {
        source.set_filter(&[]).unwrap();
    }
    sources
}

/// What `key` says of each frame that either source got, once `count` have come.
fn share<K: Eq + std::hash::Hash>(
    sources: &mut [PacketSource; 2],
    count: usize,
    key: impl Fn(&OwnedFrame) -> K,
) -> HashMap<K, HashSet<usize>> {
    let mut seen = HashMap::<K, HashSet<usize>>::new();
    let mut got = [0; 2];
    for _ in 0..1000 {
        for (which, source) in sources.iter_mut().enumerate() {
            while let Some(batch) = source.next_batch() {
                for frame in batch.frames().map(OwnedFrame::from) {
                    seen.entry(key(&frame)).or_default().insert(which);
                    got[which] += 1;
                }
            }
            source.wait(Duration::from_millis(5)).unwrap();
        }
        if got[0] + got[1] >= count {
            break;
        }
    }
    assert_eq!(got[0] + got[1], count);
    assert!(got[0] > 0 && got[1] > 0, "both get some: {got:?}");
    seen
}

#[test]
fn both_directions_of_a_flow_meet_on_one_source() {
    in_netns(|| {
        let veth = Veth::new();
        let mut sources = pair();
        for flow in 0..64 {
            let (client, server) = (40_000 + flow, 53);
            veth.send(&ipv4(A, B, flow, 0, 17, &udp(client, server, 0, b"question")));
            veth.send(&ipv4(B, A, flow, 0, 17, &udp(server, client, 0, b"answer")));
        }
        // The flow is in the IP ID, which no hash looks at.
        let seen = share(&mut sources, 64 * 4, |frame| [frame.data[18], frame.data[19]]);
        assert_eq!(seen.len(), 64);
        assert!(seen.values().all(|sources| sources.len() == 1), "{seen:?}");
    });
}

#[test]
fn the_fragments_of_a_datagram_meet_on_one_source() {
    in_netns(|| {
        let veth = Veth::new();
        let mut sources = pair();
        for host in 0..64u8 {
            let from = Ipv4Addr::new(10, 1, 1, host);
            let datagram = udp(5000 + u16::from(host), 53, 0, &[1; 2000]);
            let id = u16::from(host);
            veth.send(&ipv4(from, B, id, 0x2000, 17, &datagram[..1200]));
            veth.send(&ipv4(from, B, id, 1200 / 8, 17, &datagram[1200..]));
        }
        let seen = share(&mut sources, 64 * 4, |frame| [frame.data[18], frame.data[19]]);
        assert_eq!(seen.len(), 64);
        assert!(seen.values().all(|sources| sources.len() == 1), "{seen:?}");
    });
}

#[test]
fn two_taps_in_one_namespace_do_not_share_a_group() {
    in_netns(|| {
        let veth = Veth::new();
        let mut sources = [open(), open()];
        let groups: HashSet<_> =
            sources.iter_mut().map(|source| source.join_fanout(None).unwrap()).collect();
        assert_eq!(groups.len(), 2);
        for source in &mut sources {
            source.set_filter(&[]).unwrap();
        }
        veth.send(&marked(1, 60));
        for source in &mut sources {
            assert_eq!(markers(&read(source, 2)), [1, 1]);
        }
    });
}

#[test]
fn what_a_full_ring_loses_is_counted_exactly() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = capture();
        for _ in 0..2000 {
            veth.send(&marked(1, 1514));
        }
        let mut sums = source.stats().unwrap();
        for _ in 0..1000 {
            if sums.seen >= 4000 {
                break;
            }
            source.wait(Duration::from_millis(10)).unwrap();
            sums = source.stats().unwrap();
        }
        assert_eq!(sums.seen, 4000);
        assert!(sums.ring_dropped > 0 && sums.ring_freezes > 0, "{sums:?}");
        let delivered = usize::try_from(sums.seen - sums.ring_dropped).unwrap();
        let frames = read_until(&mut source, |frames| frames.len() >= delivered);
        assert!(frames.iter().all(|frame| frame.data == marked(1, 1514)));
        assert_eq!(frames.len(), delivered);
        // The ring works again, and nothing else was in it.
        veth.send(&marked(2, 60));
        assert_eq!(markers(&read(&mut source, 2)), [2, 2]);
        let after = source.stats().unwrap();
        assert_eq!((after.seen, after.ring_dropped), (4002, sums.ring_dropped));
        assert_eq!(after.malformed, 0);
    });
}

#[test]
fn a_frame_that_the_kernel_cannot_describe_leaves_no_ghost() {
    in_netns(|| {
        let mut tap = tap("t0");
        let mut source = capture();
        let message =
            |header: VnetHeader, frame: &[u8]| [bytemuck::bytes_of(&header), frame].concat();
        // Once round the ring, one frame to a block, so that every block has old frames in it.
        for _ in 0..=small().geometry.blocks() {
            tap.write_all(&message(VnetHeader::default(), &marked(1, 60))).unwrap();
            assert_eq!(markers(&read(&mut source, 1)), [1]);
        }
        let before = source.stats().unwrap();
        // UDP fragmentation offload, which `virtio_net_hdr_from_skb` has no word for.
        let ufo = VnetHeader {
            flags: VNET_NEEDS_CSUM,
            gso_type: 3,
            hdr_len: 42,
            gso_size: 1480,
            csum_start: 34,
            csum_offset: 6,
        };
        let datagram = udp(1000, 2000, pseudo_sum(A, B, 4008), &[3; 4000]);
        tap.write_all(&message(ufo, &ipv4(A, B, 1, 0, 17, &datagram))).unwrap();
        tap.write_all(&message(VnetHeader::default(), &marked(2, 60))).unwrap();
        assert_eq!(markers(&read(&mut source, 1)), [2]);
        let after = source.stats().unwrap();
        assert_eq!(after.ring_dropped - before.ring_dropped, 1);
        assert_eq!(after.seen - before.seen, 2);
        assert_eq!(after.malformed, 0);
    });
}

#[test]
fn a_link_that_goes_down_or_comes_later_does_not_end_the_capture() {
    in_netns(|| {
        let veth = Veth::new();
        let mut source = open();
        // Not the probes that wait for the carrier.
        source.set_filter(&only(1, 60)).unwrap();
        ip("link set v0 down");
        source.wait(Duration::ZERO).unwrap();
        ip("link set v0 up");
        veth.wait_for_carrier();
        veth.send(&marked(1, 60));
        assert_eq!(markers(&read(&mut source, 2)), [1, 1]);
        ip("link del v0");
        source.wait(Duration::ZERO).unwrap();
        let later = Veth::new();
        assert_eq!(later.v0, ifindex("v0"));
        later.send(&marked(1, 60));
        let frames = read(&mut source, 2);
        assert_eq!(markers(&frames), [1, 1]);
        assert_eq!(frames[1].point, at(later.v1, Direction::In));
    });
}

#[test]
fn a_waker_ends_the_wait_and_is_quiet_afterwards() {
    in_netns(|| {
        let waker = Waker::new().unwrap();
        let mut source = PacketSource::open(&small(), waker.clone()).unwrap();
        waker.wake();
        source.wait(Duration::from_secs(600)).unwrap();
        assert!(!waker.clear(), "wait has cleared it");
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    in_netns(|| {
        // Only of this thread, which ends with the test.
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_RAW).unwrap();
        let error = PacketSource::open(&small(), Waker::new().unwrap()).unwrap_err();
        assert!(matches!(error, OpenError::NoCapability(_)), "{error:?}");
        assert!(error.to_string().contains("CAP_NET_RAW"));
    });
}

#[test]
fn a_ring_that_no_memory_holds_says_its_size() {
    in_netns(|| {
        // So many blocks that the kernel cannot even make the list of them.
        let geometry = Geometry::from_budget(u64::MAX, 1).unwrap();
        let options = PacketOptions { geometry, retire_timeout_ms: 1 };
        let error = PacketSource::open(&options, Waker::new().unwrap()).unwrap_err();
        assert!(matches!(error, OpenError::NoMemory { .. }), "{error:?}");
        assert!(error.to_string().contains(&geometry.ring_bytes().to_string()));
    });
}
