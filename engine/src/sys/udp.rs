//! Sends many datagrams with few calls, and asks the kernel how large they may be.
#![expect(
    unsafe_code,
    reason = "sendmmsg takes arrays of pointers, which no safe crate fills without allocating"
)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::segment::{send_segments, stretch};
use super::socket::{option, set_option};

/// Datagrams per call; more gains nothing (spec/capture.md, section 5).
const PER_CALL: usize = 64;
/// How often a full socket is waited for before datagrams are given up, a millisecond each: the
/// worker that sends has a ring to read.
pub(crate) const WAITS: u32 = 4;

/// What became of the datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SendOutcome {
    /// Taken by the kernel.
    pub datagrams: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Given up, as ranges of indexes; empty unless something failed.
    pub failed: Vec<Range<usize>>,
    /// EMSGSIZE at this datagram: neither it nor those behind it were sent. Perhaps it is not too
    /// large, but an earlier one was, as a router's ICMP message now says.
    pub too_large: Option<usize>,
    /// Answers "port unreachable" to earlier datagrams.
    pub refused: u64,
    /// Of the datagrams taken, those that the kernel was left to cut.
    pub segmented: u64,
    /// The kernel does not cut on this path: its answer.
    pub uncut: Option<i32>,
}

/// Says whether a UDP socket's datagrams may become IP fragments. If not, one that the path is
/// known not to take is refused with EMSGSIZE, and routers are told not to cut it either.
pub(crate) fn allow_fragments(socket: impl AsFd, is_v6: bool, is_allowed: bool) -> io::Result<()> {
    let (level, name, never, always) = match is_v6 {
        true => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
            libc::IPV6_PMTUDISC_DONT,
        ),
        false => {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO, libc::IP_PMTUDISC_DONT)
        }
    };
    set_option(socket, level, name, &if is_allowed { always } else { never })
}

/// The path MTU that the kernel knows for a connected socket, bytes, as of its last look at the
/// route: `connect`, or a send.
pub(crate) fn path_mtu(socket: impl AsFd, is_v6: bool) -> io::Result<usize> {
    let mtu: libc::c_int = match is_v6 {
        true => option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)?,
        false => option(socket, libc::IPPROTO_IP, libc::IP_MTU)?,
    };
    usize::try_from(mtu).map_err(io::Error::other)
}

/// Sends `bytes`, cut at `ends`, from datagram `from` on, on a connected non-blocking socket, several
/// of one size, `segment_most` at most, by one call where the kernel allows it. Waits for a full socket a
/// millisecond each of `waits`, which it counts down; what the kernel refuses is in the outcome.
pub(crate) fn send_datagrams(
    socket: &impl AsFd,
    bytes: &[u8],
    ends: &[usize],
    from: usize,
    mut segment_most: usize,
    waits: &mut u32,
) -> SendOutcome {
    let mut outcome = SendOutcome::default();
    let mut next = from;
    // An ICMP error about an earlier datagram is reported at the next send, which did not happen.
    let mut asynchronous_errors = 8;
    while next < ends.len() {
        let (count, is_segmented) = plan(ends, next, segment_most);
        let sent = match is_segmented {
            true => {
                let start = if next == 0 { 0 } else { ends[next - 1] };
                let stretch = &bytes[start..ends[next + count - 1]];
                send_segments(socket, stretch, ends[next] - start).map(|()| count)
            }
            false => send_some(socket, bytes, &ends[..next + count], next),
        };
        match sent {
            Ok(0) => break,
            Ok(count) => {
                outcome.segmented += if is_segmented { count as u64 } else { 0 };
                let from = if next == 0 { 0 } else { ends[next - 1] };
                next += count;
                outcome.datagrams += count as u64;
                outcome.bytes += (ends[next - 1] - from) as u64;
            }
            Err(error) => {
                outcome.refused += u64::from(error.raw_os_error() == Some(libc::ECONNREFUSED));
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // One by one, it will be seen which is too large.
                    Some(libc::EMSGSIZE) if is_segmented => segment_most = 0,
                    Some(
                        errno @ (libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT),
                    ) if is_segmented => {
                        segment_most = 0;
                        outcome.uncut = Some(errno);
                    }
                    Some(libc::EMSGSIZE) => {
                        outcome.too_large = Some(next);
                        break;
                    }
                    Some(libc::EAGAIN | libc::ENOBUFS) if *waits > 0 => {
                        *waits -= 1;
                        wait_writable(socket);
                    }
                    Some(libc::ECONNREFUSED | libc::EHOSTUNREACH) if asynchronous_errors > 0 => {
                        asynchronous_errors -= 1;
                    }
                    _ => {
                        give_up(&mut outcome, next);
                        next += 1;
                        *waits = (*waits).min(1);
                    }
                }
            }
        }
    }
    outcome
}

/// How many datagrams the next call sends, and whether as one for the kernel to cut.
fn plan(ends: &[usize], next: usize, segment_most: usize) -> (usize, bool) {
    if segment_most == 0 {
        return (PER_CALL.min(ends.len() - next), false);
    }
    let (mut count, is_segmented) = stretch(ends, next, segment_most);
    while !is_segmented && count < PER_CALL && next + count < ends.len() {
        let (more, is_segmented) = stretch(ends, next + count, segment_most);
        if is_segmented {
            break;
        }
        count += more;
    }
    (count, is_segmented)
}

#[cold]
fn give_up(outcome: &mut SendOutcome, index: usize) {
    match outcome.failed.last_mut() {
        Some(range) if range.end == index => range.end += 1,
        _ => outcome.failed.push(index..index + 1),
    }
}

#[cold]
fn wait_writable(socket: &impl AsFd) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    // The result does not matter: the next send tells.
    let _ready = poll(&mut fds, PollTimeout::from(1u8));
}

/// One `sendmmsg` from datagram `next` on; returns how many the kernel took.
fn send_some(socket: &impl AsFd, bytes: &[u8], ends: &[usize], next: usize) -> io::Result<usize> {
    let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    let mut vectors = [empty; PER_CALL];
    // SAFETY: an all-zero mmsghdr is valid: null pointers with zero lengths.
    let mut messages: [libc::mmsghdr; PER_CALL] = unsafe { std::mem::zeroed() };
    let mut start = if next == 0 { 0 } else { ends[next - 1] };
    let mut count: libc::c_uint = 0;
    let slots = vectors.iter_mut().zip(&mut messages);
    for ((vector, message), &end) in slots.zip(&ends[next..]) {
        let datagram = &bytes[start..end];
        vector.iov_base = datagram.as_ptr().cast_mut().cast();
        vector.iov_len = datagram.len();
        message.msg_hdr.msg_iov = ptr::from_mut(vector);
        message.msg_hdr.msg_iovlen = 1;
        start = end;
        count += 1;
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `messages[..count]` point at `vectors`, those into `bytes`; all outlive the call,
    // and sendmmsg only reads the data.
    let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        sender.set_nonblocking(true).unwrap();
        (sender, receiver)
    }

    #[test]
    fn every_datagram_arrives_in_order_at_its_length() {
        let all_differ: Vec<usize> = (1..=150).map(|n| n * (n + 1) / 2).collect();
        // Runs of one size, long and short, with and without a shorter last one.
        let mut end = 0;
        let runs =
            [1400; 70].iter().chain(&[900; 3]).chain(&[100; 30]).chain(&[90, 500, 80, 80, 7]);
        let mostly_alike: Vec<usize> = runs
            .map(|len| {
                end += len;
                end
            })
            .collect();
        for (ends, segment_most, segmented) in [
            (&all_differ, 1472, 0),
            (&mostly_alike, 1472, 46 + 25 + 3 + 30 + 2 + 2),
            (&mostly_alike, 899, 30 + 2 + 2),
            (&mostly_alike, 0, 0),
        ] {
            let (sender, receiver) = pair();
            let last = *ends.last().unwrap();
            let bytes: Vec<u8> = (0..last).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let outcome = send_datagrams(&sender, &bytes, ends, 0, segment_most, &mut 4);
            assert_eq!((outcome.datagrams, outcome.bytes), (ends.len() as u64, last as u64));
            assert!(outcome.failed.is_empty() && outcome.uncut.is_none());
            assert_eq!(outcome.segmented, segmented);
            let mut buffer = [0; 2048];
            let mut start = 0;
            for &end in ends {
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], bytes[start..end]);
                start = end;
            }
        }
    }

    /// A socket that leaves checksums out cannot be segmented: the kernel says EINVAL or EIO.
    #[test]
    fn what_the_kernel_will_not_cut_goes_one_by_one() {
        let (sender, receiver) = pair();
        let on: libc::c_int = 1;
        set_option(&sender, libc::SOL_SOCKET, libc::SO_NO_CHECK, &on).unwrap();
        let ends: Vec<usize> = (1..=20).map(|n| n * 1000).collect();
        let bytes: Vec<u8> = (0..20_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let outcome = send_datagrams(&sender, &bytes, &ends, 0, 1472, &mut 4);
        assert_eq!((outcome.datagrams, outcome.segmented, outcome.uncut.is_some()), (20, 0, true));
        assert_eq!((outcome.failed.len(), outcome.too_large), (0, None));
        let mut buffer = [0; 2048];
        for n in 0..20 {
            assert_eq!(receiver.recv(&mut buffer).unwrap(), 1000);
            assert_eq!(buffer[..1000], bytes[n * 1000..][..1000]);
        }
    }

    #[test]
    fn what_is_too_large_is_named_and_nothing_behind_it_is_sent() {
        let (sender, receiver) = pair();
        let bytes = vec![1; 70_020];
        let outcome = send_datagrams(&sender, &bytes, &[10, 70_010, 70_020], 0, 1472, &mut 4);
        assert_eq!((outcome.datagrams, outcome.bytes), (1, 10));
        assert!(outcome.failed.is_empty());
        assert_eq!(outcome.too_large, Some(1));
        let mut buffer = [0; 64];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 10);
        receiver.set_nonblocking(true).unwrap();
        receiver.recv(&mut buffer).unwrap_err();
    }

    #[test]
    fn the_loopback_path_takes_what_its_link_does() {
        let (sender, _receiver) = pair();
        allow_fragments(&sender, false, false).unwrap();
        assert!(path_mtu(&sender, false).unwrap() >= 1500);
        let receiver = UdpSocket::bind("[::1]:0").unwrap();
        let sender = UdpSocket::bind("[::1]:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        allow_fragments(&sender, true, false).unwrap();
        assert!(path_mtu(&sender, true).unwrap() >= 1500);
    }

    #[test]
    fn a_dead_receiver_costs_no_datagram_of_the_next_run() {
        let (sender, receiver) = pair();
        let port = receiver.local_addr().unwrap();
        drop(receiver);
        send_datagrams(&sender, &[1; 10], &[10], 0, 1472, &mut 4); // answered by ICMP port unreachable
        let receiver = UdpSocket::bind(port).unwrap();
        let outcome = send_datagrams(&sender, &[2; 10], &[10], 0, 1472, &mut 4);
        assert_eq!((outcome.datagrams, outcome.failed.len()), (1, 0));
        assert_eq!(outcome.refused, 1, "the refusal is told");
        let mut buffer = [0; 64];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 10);
    }
}
