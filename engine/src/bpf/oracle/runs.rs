//! A program must accept of a frame what the kernel lets through a socket with that filter.
//!
//! ```text
//! send --> unix socket pair: sk_filter --> recv         data = payload; no root needed
//! send --> veth a -> veth b: packet sockets on both --> recv     frames, both directions
//! ```

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Loads, Random, all_codes, attach, random_program};
use crate::bpf::Program;
use crate::frame::{Direction, Frame, Offload, Point, VlanTag};

fn frame(data: &[u8], point: Point, vlan: Option<VlanTag>) -> Frame<'_> {
    let wire_len = u32::try_from(data.len()).unwrap();
    Frame { data, wire_len, timestamp_ns: 0, point, vlan, offload: Offload::default() }
}

/// The next message; `None` if none is there (or comes in time, where `flags` let it wait).
fn receive(socket: &Socket, flags: MsgFlags) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    match recv(socket.as_raw_fd(), &mut buffer, flags) {
        Ok(len) => buffer.truncate(len),
        Err(Errno::EAGAIN) => return None,
        Err(error) => panic!("recv: {error}"),
    }
    Some(buffer)
}

/// The next program that is sound.
fn sound_program(random: &mut Random, codes: &[u16], loads: Loads) -> Program {
    loop {
        if let Ok(program) = Program::new(&random_program(random, codes, loads)) {
            return program;
        }
    }
}

/// Counts verdicts by kind, so that a test can tell that it saw all of them.
#[derive(Debug, Default)]
struct Seen {
    rejected: u32,
    cut: u32,
    whole: u32,
}

impl Seen {
    fn check(&mut self, program: &Program, frame: &Frame<'_>, got: Option<&[u8]>) {
        let accepted = (program.run_in_kernel(frame) as usize).min(frame.data.len());
        let expected = (accepted > 0).then(|| &frame.data[..accepted]);
        assert_eq!(got, expected, "{frame:x?} by\n{program}");
        match accepted {
            0 => self.rejected += 1,
            _ if accepted < frame.data.len() => self.cut += 1,
            _ => self.whole += 1,
        }
    }

    fn assert_all_kinds(&self, at_least: u32) {
        let Self { rejected, cut, whole } = *self;
        assert!(rejected.min(cut).min(whole) >= at_least, "too few of a kind: {self:?}");
    }
}

#[test]
fn arithmetic_and_plain_loads_agree_with_the_kernel() {
    let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
    let (mut random, codes) = (Random(2), all_codes());
    let point = Point { ifindex: 0, direction: Direction::In };
    let mut seen = Seen::default();
    for _ in 0..3000 {
        let program = sound_program(&mut random, &codes, Loads::Plain);
        attach(&receiver, program.instructions()).unwrap();
        for _ in 0..4 {
            let len = 1 + random.below(120);
            let data: Vec<u8> = (0..len).map(|_| random.byte()).collect();
            sender.send(&data).unwrap();
            let got = receive(&receiver, MsgFlags::MSG_DONTWAIT);
            seen.check(&program, &frame(&data, point, None), got.as_deref());
        }
    }
    seen.assert_all_kinds(500);
}

/// `ETH_P_ALL` as a socket wants it.
fn all_protocols() -> Protocol {
    Protocol::from(i32::from(0x0003_u16.to_be()))
}

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
}

fn link(name: &str) -> LinkAddr {
    let mut all = getifaddrs().unwrap().filter(|address| address.interface_name == name);
    all.find_map(|address| address.address?.as_link_addr().copied()).unwrap()
}

/// A packet socket on an interface. The kernel serves the one that was opened last first.
fn packet_socket(on: &LinkAddr) -> Socket {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all_protocols())).unwrap();
    bind(socket.as_fd().as_raw_fd(), on).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// What one interface sees, and what a filter there lets through.
struct Tap {
    point: Point,
    everything: Socket,
    filtered: Socket,
}

impl Tap {
    fn open(on: &LinkAddr, direction: Direction) -> Self {
        let ifindex = u32::try_from(on.ifindex()).unwrap();
        let everything = packet_socket(on);
        // Opened later, so it has its copy before `everything` has.
        let filtered = packet_socket(on);
        Self { point: Point { ifindex, direction }, everything, filtered }
    }

    /// Takes the frame that was just sent from both sockets.
    fn take(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let whole = receive(&self.everything, MsgFlags::empty()).expect("the frame arrives");
        (whole, receive(&self.filtered, MsgFlags::MSG_DONTWAIT))
    }
}

/// A frame as sent: destination, then what looks like a packet up to where random bytes follow.
fn random_frame(random: &mut Random, own: [u8; 6]) -> Vec<u8> {
    let multicast = [0x01, 0, 0x5e, 1, 2, 3];
    let mut data = random.pick(&[own, own, multicast, [0xff; 6]]).to_vec();
    data.extend([2, 0, 0, 0, 0, 9]);
    if random.one_in(3) {
        data.extend([0x81, 0x00, random.byte(), random.byte()]);
    }
    let protocol = random.pick(&[6, 17, 1, 2, 33, 58, 132, 0, 44, 60]);
    match random.below(5) {
        0 | 1 => {
            data.extend([0x08, 0x00, random.pick(&[0x45, 0x46, 0x4f, 0x44]), 0, 0, 60, 0, 1]);
            data.extend([0, 0, 64, protocol, 0, 0]);
        }
        2 => {
            data.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
            data.extend([0xfd; 32]);
            data.extend([random.pick(&[6, 17, 58, 0]), random.below(2).to_be_bytes()[3]]);
        }
        3 => data.extend([0x08, 0x06]),
        _ => data.extend([0x88, 0xb5]),
    }
    let more = random.below(100);
    data.extend((0..more).map(|_| random.byte()));
    data.resize(data.len().max(24), 0);
    data
}

/// The receiving end's view of a frame: the tag is moved out of it.
fn untagged(sent: &[u8]) -> (Vec<u8>, Option<VlanTag>) {
    if sent[12..14] != [0x81, 0x00] {
        return (sent.to_vec(), None);
    }
    let tag = VlanTag { tpid: 0x8100, tci: u16::from_be_bytes([sent[14], sent[15]]) };
    ([&sent[..12], &sent[16..]].concat(), Some(tag))
}

fn compare_on_veth() {
    // No neighbour discovery in between; a kernel without IPv6 has none anyway.
    let _no_ipv6 = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    ip("link add bpfa type veth peer name bpfb");
    ip("link set bpfa up");
    ip("link set bpfb up");
    let (a, b) = (link("bpfa"), link("bpfb"));
    let (out, into) = (Tap::open(&a, Direction::Out), Tap::open(&b, Direction::In));
    let sender = packet_socket(&a);
    let (mut random, codes) = (Random(3), all_codes());
    let (mut seen_out, mut seen_in) = (Seen::default(), Seen::default());
    for _ in 0..2500 {
        let program = sound_program(&mut random, &codes, Loads::Network);
        attach(&out.filtered, program.instructions()).unwrap();
        attach(&into.filtered, program.instructions()).unwrap();
        for _ in 0..4 {
            let sent = random_frame(&mut random, b.addr().unwrap());
            sender.send(&sent).unwrap();
            let (data, vlan) = untagged(&sent);
            let (whole, filtered) = into.take();
            assert_eq!(whole, data, "nobody else sends here");
            seen_in.check(&program, &frame(&data, into.point, vlan), filtered.as_deref());
            let (whole, filtered) = out.take();
            assert_eq!(whole, sent, "nobody else sends here");
            // Where the network header of a tagged frame is depends on who sends it.
            if vlan.is_none() {
                seen_out.check(&program, &frame(&sent, out.point, None), filtered.as_deref());
            }
        }
    }
    seen_in.assert_all_kinds(500);
    seen_out.assert_all_kinds(500);
}

#[test]
fn verdicts_on_frames_agree_with_the_kernel() {
    // A namespace belongs to the thread that makes it, and ends with it.
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => compare_on_veth(),
        Err(error) => {
            let error = io::Error::from(error);
            eprintln!("SKIPPED: a network namespace and packet sockets need root: {error}");
        }
    });
    thread.join().unwrap();
}
