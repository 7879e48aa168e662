//! Frames onto an interface, as fast as one core can or at a rate: `sendmmsg` on a packet socket.
//!
//! ```text
//! 64 templates, flows of pods --new IP id and TCP sequence each time--> sendmmsg, queueing bypassed
//! ```
//!
//! The destination's hardware address is nobody's here, so that the stack drops the frame once taps have seen it.
#![expect(unsafe_code, reason = "sendmmsg takes arrays of pointers")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::workload::MIX;

const PER_CALL: usize = 64;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Frames of so many bytes, link header included.
    Fixed(usize),
    /// 64, 594 and 1518 bytes, 7:4:1.
    Mix,
}

impl Sizes {
    fn of(self, number: usize) -> usize {
        match self {
            Self::Fixed(size) => size,
            Self::Mix => MIX[number % MIX.len()],
        }
    }

    /// For names of figures.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Fixed(size) => size.to_string(),
            Self::Mix => "mix".into(),
        }
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that the kernel took.
    pub frames: u64,
    /// In this time.
    pub elapsed: Duration,
}

impl Sent {
    /// Frames a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let frames = self.frames as f64;
        frames / self.elapsed.as_secs_f64()
    }
}

/// Sends from this thread's namespace for so long, at so many frames a second or as fast as it goes.
/// `first` numbers the packets: those of one run differ from those of another.
///
/// # Errors
///
/// What the kernel answers, a full device excepted.
pub fn send(
    interface: &str,
    sizes: Sizes,
    rate: Option<f64>,
    time: Duration,
    first: u32,
) -> Result<Sent, Error> {
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    let socket = open(interface).map_err(Error::call(format!("a packet socket on {interface}")))?;
    let mut frames: Vec<Vec<u8>> =
        (0..PER_CALL * MIX.len()).map(|n| frame(n, sizes.of(n))).collect();
    // At a rate, no burst is longer than a tenth of a millisecond.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let per_call = rate.map_or(PER_CALL, |rate| (rate / 10_000.0).clamp(1.0, 64.0) as usize);
    let (mut number, mut sent) = (first, 0u64);
    let started = Instant::now();
    while started.elapsed() < time {
        for group in frames.chunks_mut(per_call) {
            for frame in &mut *group {
                renew(frame, number);
                number = number.wrapping_add(1);
            }
            sent += send_all(&socket, group).map_err(Error::call("sendmmsg"))?;
            if let Some(rate) = rate {
                #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
                let due = Duration::from_secs_f64(sent as f64 / rate);
                while started.elapsed() < due {
                    std::hint::spin_loop();
                }
            }
            if started.elapsed() >= time {
                break;
            }
        }
    }
    Ok(Sent { frames: sent, elapsed: started.elapsed() })
}

fn open(interface: &str) -> io::Result<OwnedFd> {
    // SAFETY: `socket` takes numbers; the result is checked before it is owned.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: an all-zero address is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = 17; // AF_PACKET
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let on: libc::c_int = 1;
    // SAFETY: both take a pointer to a live value and its size.
    let result = unsafe {
        let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
        let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len);
        let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
        bound.min(libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size,
        ))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn send_all(socket: &OwnedFd, frames: &mut [Vec<u8>]) -> io::Result<u64> {
    let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [empty; PER_CALL];
    // SAFETY: an all-zero mmsghdr is valid: null pointers with zero lengths.
    let mut messages: [libc::mmsghdr; PER_CALL] = unsafe { std::mem::zeroed() };
    let mut count: libc::c_uint = 0;
    for ((vector, message), frame) in vectors.iter_mut().zip(&mut messages).zip(&mut *frames) {
        vector.iov_base = frame.as_mut_ptr().cast();
        vector.iov_len = frame.len();
        message.msg_hdr.msg_iov = std::ptr::from_mut(vector);
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: `messages[..count]` point at `vectors`, those at `frames`; all outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    match u64::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_negative) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            error => Err(error),
        },
    }
}

/// A TCP frame of one of 64 flows between pods of another node's subnet and this one's.
fn frame(number: usize, size: usize) -> Vec<u8> {
    let flow = u8::try_from(number % 64).expect("under 64");
    let mut data = vec![0x02, 0, 0, 0xee, 0, flow, 0x02, 0, 0, 0, 0, flow, 8, 0];
    let [high, low] = u16::try_from(size - 14).unwrap_or(u16::MAX).to_be_bytes();
    data.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, flow % 8 + 1]);
    data.extend([10, 2, 0, flow / 8 + 1, 0x9c, flow, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 1]);
    data.extend([0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    data.resize(size.max(54), 7);
    data
}

/// The same frame as another packet.
fn renew(frame: &mut [u8], number: u32) {
    let bytes = number.to_be_bytes();
    frame[18..20].copy_from_slice(&bytes[2..]);
    frame[38..42].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_their_size_and_differ() {
        for (number, size) in (0..24).map(|n| (n, Sizes::Mix.of(n))) {
            let mut one = frame(number, size);
            assert_eq!(one.len(), size);
            let other = one.clone();
            renew(&mut one, 0x0102_0304);
            assert_ne!(one, other);
        }
        let count = |size| MIX.iter().filter(|it| **it == size).count();
        assert_eq!((count(64), count(594), count(1518)), (7, 4, 1));
    }
}
