//! Sends many datagrams with few calls.
#![expect(
    unsafe_code,
    reason = "sendmmsg takes arrays of pointers, which no safe crate fills without allocating"
)]

use std::io;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Datagrams per call; more gains nothing (spec/capture.md, section 5).
const PER_CALL: usize = 64;
/// How often a full socket is waited for before datagrams are given up, a millisecond each: the
/// worker that sends has a ring to read.
const WAITS: u32 = 4;

/// What became of the datagrams.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SendOutcome {
    /// Taken by the kernel.
    pub datagrams: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Given up, as ranges of indexes; empty unless something failed.
    pub failed: Vec<Range<usize>>,
    /// Answers "port unreachable" to earlier datagrams.
    pub refused: u64,
}

/// Sends `bytes`, cut at `ends`, on a connected non-blocking socket. Never waits longer than a
/// few milliseconds; what the kernel refuses is in the outcome.
pub(crate) fn send_datagrams(socket: &UdpSocket, bytes: &[u8], ends: &[usize]) -> SendOutcome {
    let mut outcome = SendOutcome::default();
    let mut next = 0;
    let mut waits = WAITS;
    // An ICMP error about an earlier datagram is reported at the next send, which did not happen.
    let mut asynchronous_errors = 8;
    while next < ends.len() {
        match send_some(socket, bytes, ends, next) {
            Ok(0) => break,
            Ok(count) => {
                let from = if next == 0 { 0 } else { ends[next - 1] };
                next += count;
                outcome.datagrams += count as u64;
                outcome.bytes += (ends[next - 1] - from) as u64;
            }
            Err(error) => {
                outcome.refused += u64::from(error.raw_os_error() == Some(libc::ECONNREFUSED));
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::ENOBUFS) if waits > 0 => {
                        waits -= 1;
                        wait_writable(socket);
                    }
                    Some(libc::ECONNREFUSED | libc::EHOSTUNREACH) if asynchronous_errors > 0 => {
                        asynchronous_errors -= 1;
                    }
                    _ => {
                        give_up(&mut outcome, next);
                        next += 1;
                        waits = waits.min(1);
                    }
                }
            }
        }
    }
    outcome
}

#[cold]
fn give_up(outcome: &mut SendOutcome, index: usize) {
    match outcome.failed.last_mut() {
        Some(range) if range.end == index => range.end += 1,
        _ => outcome.failed.push(index..index + 1),
    }
}

#[cold]
fn wait_writable(socket: &UdpSocket) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    // The result does not matter: the next send tells.
    let _ready = poll(&mut fds, PollTimeout::from(1u8));
}

/// One `sendmmsg` from datagram `next` on; returns how many the kernel took.
fn send_some(socket: &UdpSocket, bytes: &[u8], ends: &[usize], next: usize) -> io::Result<usize> {
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
    // SAFETY: `messages[..count]` point at `vectors`, those into `bytes`; all outlive the call,
    // and sendmmsg only reads the data.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
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
        let (sender, receiver) = pair();
        let ends: Vec<usize> = (1..=150).map(|n| n * (n + 1) / 2).collect();
        let bytes: Vec<u8> = (0..ends[149]).map(|n| u8::try_from(n & 255).unwrap()).collect();
        let outcome = send_datagrams(&sender, &bytes, &ends);
        assert_eq!((outcome.datagrams, outcome.bytes), (150, bytes.len() as u64));
        assert!(outcome.failed.is_empty());
        let mut buffer = [0; 2048];
        let mut start = 0;
        for end in ends {
            let len = receiver.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], bytes[start..end]);
            start = end;
        }
    }

    #[test]
    fn what_is_too_large_is_given_up_and_the_rest_is_sent() {
        let (sender, receiver) = pair();
        let bytes = vec![1; 70_020];
        let outcome = send_datagrams(&sender, &bytes, &[10, 70_010, 70_020]);
        assert_eq!((outcome.datagrams, outcome.bytes), (2, 20));
        assert_eq!(outcome.failed.len(), 1);
        assert_eq!(outcome.failed[0], 1..2);
        let mut buffer = [0; 64];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 10);
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 10);
    }

    #[test]
    fn a_dead_receiver_costs_no_datagram_of_the_next_run() {
        let (sender, receiver) = pair();
        let port = receiver.local_addr().unwrap();
        drop(receiver);
        send_datagrams(&sender, &[1; 10], &[10]); // answered by ICMP port unreachable
        let receiver = UdpSocket::bind(port).unwrap();
        let outcome = send_datagrams(&sender, &[2; 10], &[10]);
        assert_eq!((outcome.datagrams, outcome.failed.len()), (1, 0));
        assert_eq!(outcome.refused, 1, "the refusal is told");
        let mut buffer = [0; 64];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 10);
    }
}
