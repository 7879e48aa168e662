//! Bare loops: what sending a datagram costs at least.
//!
//! ```text
//! one buffer --sendmmsg of 64 | UDP_SEGMENT of 44--> a connected UDP socket, for so long
//! ```
#![expect(unsafe_code, reason = "calls that take pointers")]

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::error::Error;

/// A datagram that fills an Ethernet frame.
pub const DATAGRAM: usize = 1472;

/// How to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loop {
    /// 64 datagrams a call.
    Sendmmsg,
    /// One buffer that the kernel cuts into 44.
    UdpSegment,
}

/// Nanoseconds of this thread's CPU a datagram, on core 1.
///
/// # Errors
///
/// What the kernel answers.
pub fn send(how: Loop, to: SocketAddr, time: Duration) -> Result<f64, Error> {
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let call = || Error::call("a UDP socket");
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(call())?;
    socket.connect(to).map_err(call())?;
    let (count, payload) = match how {
        Loop::Sendmmsg => (64u32, vec![7u8; DATAGRAM]),
        Loop::UdpSegment => (44, vec![7; DATAGRAM * 44]),
    };
    if how == Loop::UdpSegment {
        let size = libc::c_int::try_from(DATAGRAM).unwrap_or(0);
        let len = libc::socklen_t::try_from(size_of_val(&size)).unwrap_or(0);
        // SAFETY: a pointer to a live number and its size.
        let set = unsafe {
            let fd = socket.as_raw_fd();
            libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), len)
        };
        if set < 0 {
            return Err(Error::call("UDP_SEGMENT")(std::io::Error::last_os_error()));
        }
    }
    let mut vector =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: an all-zero mmsghdr is valid.
    let mut messages: [libc::mmsghdr; 64] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    let (started, before) = (Instant::now(), thread_cpu());
    let mut datagrams = 0u64;
    while started.elapsed() < time {
        let calls = if how == Loop::Sendmmsg { count } else { 1 };
        // SAFETY: the messages point at `vector`, that at `payload`; all outlive the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), calls, 0) };
        let sent = u64::try_from(sent)
            .map_err(|_negative| Error::call("sendmmsg")(std::io::Error::last_os_error()))?;
        datagrams += sent * if how == Loop::Sendmmsg { 1 } else { u64::from(count) };
    }
    let spent = thread_cpu().saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let datagrams = datagrams as f64;
    Ok(spent.as_secs_f64() * 1e9 / datagrams)
}

/// CPU time of this thread.
#[must_use]
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}
