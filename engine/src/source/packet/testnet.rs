//! A network namespace for a test, links in it, and frames to send.
//!
//! ```text
//! in_netns(|| { Veth::new() ; packet socket --send--> v0 ===== v1 })
//! ```
//!
//! A namespace belongs to a thread that ends with the test: what is in it ends too.
#![expect(unsafe_code, reason = "attaches to a tap device")]

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::Socket;

use crate::frame::internet_checksum;
use crate::sys::packet;

/// Local experimental ethertype 1: no stack answers it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Runs `test` in a namespace of its own; without root says so and skips.
pub(crate) fn in_netns(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let test = scope.spawn(|| {
            if let Err(error) = enter() {
                eprintln!("SKIPPED: a network namespace needs root: {error}");
                return;
            }
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn enter() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    // Router solicitations and the like would be frames that no test sent.
    for links in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6");
        if let Err(error) = std::fs::write(&path, "1") {
            eprintln!("{path}: {error}");
        }
    }
    Ok(())
}

/// `ip` with `arguments`, in this thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// Two ends of a cable, both up.
pub(crate) struct Veth {
    pub(crate) v0: u32,
    pub(crate) v1: u32,
    socket: Socket,
}

impl Veth {
    pub(crate) fn new() -> Self {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        let veth = Self { v0: ifindex("v0"), v1: ifindex("v1"), socket: sender("v0").into() };
        veth.wait_for_carrier();
        veth
    }

    /// Returns when what is sent arrives and nothing is on its way. A link that is up is given a
    /// queue a moment later (`linkwatch_do_dev`); until then frames vanish, and `send` says nothing.
    /// The probes have 0 in byte 14.
    pub(crate) fn wait_for_carrier(&self) {
        let receiver = packet::socket().expect("socket");
        packet::bind(&receiver, u16::from_be_bytes(EXPERIMENTAL), self.v1).expect("bind");
        let receiver = Socket::from(receiver);
        receiver.set_read_timeout(Some(Duration::from_millis(10))).expect("timeout");
        for probe in 0..1000u16 {
            let mut frame = marked(0, 60);
            frame[20..22].copy_from_slice(&probe.to_be_bytes());
            self.send(&frame);
            let mut buffer = [0; 60];
            // The one just sent: those before it are then not on their way either.
            if (&receiver).read(&mut buffer).is_ok() && buffer[20..22] == probe.to_be_bytes() {
                return;
            }
        }
        panic!("the link carries nothing");
    }

    /// Sends `frame` from v0 to v1.
    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send(frame).expect("send"), frame.len());
    }
}

pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the link exists")
}

/// A packet socket that sends on `link` and receives nothing.
pub(crate) fn sender(link: &str) -> OwnedFd {
    let socket = packet::socket().expect("socket");
    packet::bind(&socket, 0, ifindex(link)).expect("bind");
    socket
}

/// Runs `near` here with v0 as 10.9.0.1, and `far` in a namespace where the other end of the cable
/// is v1, 10.9.0.2; that namespace lives until both have returned.
pub(crate) fn with_peer(far: impl FnOnce() + Send, near: impl FnOnce()) {
    thread::scope(|scope| {
        // Made in here: a panic of this thread hangs up, which ends the peer, before the join.
        let (say_tid, hear_tid) = mpsc::channel();
        let (say_moved, hear_moved) = mpsc::channel();
        let (say_up, hear_up) = mpsc::channel();
        let (say_end, hear_end) = mpsc::channel::<()>();
        scope.spawn(move || {
            enter().expect("this thread's parent could");
            let thread = std::fs::read_link("/proc/thread-self").expect("procfs");
            let tid = thread.file_name().expect("PID/task/TID").to_string_lossy().into_owned();
            say_tid.send(tid).expect("the parent waits");
            hear_moved.recv().expect("the parent moves the link");
            ip("addr add 10.9.0.2/24 dev v1");
            ip("link set v1 up");
            say_up.send(()).expect("the parent waits");
            far();
            let _hung_up = hear_end.recv();
        });
        let tid = hear_tid.recv().expect("the peer's thread id");
        ip(&format!("link set v1 netns {tid}"));
        ip("addr add 10.9.0.1/24 dev v0");
        say_moved.send(()).expect("the peer waits");
        hear_up.recv().expect("the peer is up");
        near();
        drop(say_end);
    });
}

/// A tap device whose descriptor takes a `virtio_net_hdr` before each frame.
pub(crate) fn tap(name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("tun");
    let mut name_bytes = [0; libc::IFNAMSIZ];
    for (to, from) in name_bytes.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).expect("an ASCII name");
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).expect("16 bits");
    let ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags };
    let mut request = libc::ifreq { ifr_name: name_bytes, ifr_ifru: ifru };
    // SAFETY: TUNSETIFF reads and writes the `ifreq`, which lives until the call returns.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(answer, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    ip(&format!("link set {name} up"));
    file
}

/// A frame of `len` bytes that no stack answers, with `marker` in byte 14.
pub(crate) fn marked(marker: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(EXPERIMENTAL);
    frame.resize(len, marker);
    frame
}

/// An IPv4 packet in a frame; `fragment` is the field of flags and offset.
pub(crate) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    id: u16,
    fragment: u16,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).expect("fits a packet");
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = internet_checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend(header);
    frame.extend(payload);
    frame
}

/// A UDP datagram with `checksum` as it stands.
pub(crate) fn udp(source: u16, destination: u16, checksum: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).expect("fits a datagram");
    let mut datagram = Vec::new();
    for field in [source, destination, len, checksum] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

/// The sum over IPv4's pseudo-header for a UDP datagram of `len` bytes: what a sender leaves in the
/// checksum field for the hardware.
pub(crate) fn pseudo_sum(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> u16 {
    !internet_checksum(&pseudo_header(from, to, len))
}

fn pseudo_header(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let len = u16::try_from(len).expect("fits a datagram").to_be_bytes();
    [&from.octets()[..], &to.octets()[..], &[0, 17], &len].concat()
}

/// Whether the UDP checksum of the frame `bytes`, whose IPv4 header (without options) begins at
/// `network`, is right.
pub(crate) fn is_udp_checksum_right(bytes: &[u8], network: usize) -> bool {
    let address = |at: usize| {
        Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[network + at..network + at + 4]).expect("4"))
    };
    let datagram = &bytes[network + 20..];
    let mut covered = pseudo_header(address(12), address(16), datagram.len());
    covered.extend(datagram);
    internet_checksum(&covered) == 0
}
