//! One call for many datagrams of one size: the kernel, or the NIC, cuts them (`UDP_SEGMENT`).
//!
//! ```text
//! ends --stretch--> so many of one size, the last perhaps shorter --sendmsg--> all or none
//! ```
#![expect(
    unsafe_code,
    reason = "builds a control message on the stack, which safe crates allocate"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Datagrams of one call (`UDP_MAX_SEGMENTS` of kernels before 6.9).
const MOST: usize = 64;
/// Bytes of one call: an IP packet's, less its headers.
const MOST_BYTES: usize = 65_000;
/// Two cost no more so than one by one, three less (spec/capture.md, section 5); small packets make
/// stretches of about three, since a datagram ends early where a packet's header would be torn.
const LEAST: usize = 2;

/// How many datagrams from `next` on go out alike, and whether one call may send them: those of one
/// size, `largest` at most, to which a last one that is shorter may belong.
pub(super) fn stretch(ends: &[usize], next: usize, largest: usize) -> (usize, bool) {
    let mut start = if next == 0 { 0 } else { ends[next - 1] };
    let first = start;
    let size = ends[next] - start;
    let mut count = 0;
    for &end in ends[next..].iter().take(MOST) {
        let len = end - start;
        if len > size || end - first > MOST_BYTES {
            break;
        }
        count += 1;
        start = end;
        if len < size {
            break;
        }
    }
    // One that is too large for a call of several goes alone.
    (count.max(1), count >= LEAST && size <= largest)
}

/// Aligned as a `cmsghdr`, with room for one number.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    data: [u8; 8],
}

/// Sends `bytes` as datagrams of `size`, on a connected socket: all, or none.
///
/// # Errors
///
/// What `sendmsg` answers; EIO, EINVAL and the like where there is no such thing for this path.
pub(super) fn send_segments(socket: &impl AsFd, bytes: &[u8], size: usize) -> io::Result<()> {
    let size = u16::try_from(size).map_err(|_large| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: both structs are valid as zeros: numbers, and pointers of length 0.
    let (mut message, mut control) = unsafe {
        (
            MaybeUninit::<libc::msghdr>::zeroed().assume_init(),
            MaybeUninit::<Control>::zeroed().assume_init(),
        )
    };
    // SAFETY: these only compute; the data is a `u16`.
    let (space, len) = unsafe { (libc::CMSG_SPACE(2), libc::CMSG_LEN(2)) };
    control.header.cmsg_level = libc::SOL_UDP;
    control.header.cmsg_type = libc::UDP_SEGMENT;
    control.header.cmsg_len = len as _;
    control.data[..2].copy_from_slice(&size.to_ne_bytes());
    message.msg_iov = ptr::from_mut(&mut vector);
    message.msg_iovlen = 1;
    message.msg_control = ptr::from_mut(&mut control).cast();
    message.msg_controllen = space as _;
    const { assert!(size_of::<Control>() >= 24) };
    // SAFETY: `message` points at `vector`, that into `bytes`, and at `control`, which is as large as
    // it says; all outlive the call, which only reads.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(lens: &[usize]) -> Vec<usize> {
        let mut end = 0;
        lens.iter()
            .map(|len| {
                end += len;
                end
            })
            .collect()
    }

    #[test]
    fn a_stretch_is_of_one_size_but_for_its_last() {
        for (lens, said) in [
            (&[100, 100, 100, 100][..], (4, true)),
            (&[100, 100, 100, 99], (4, true)),
            (&[100, 100, 100, 99, 99], (4, true)),
            (&[100, 100, 100], (3, true)),
            (&[100, 50, 100], (2, true)),
            (&[100, 100, 101, 100], (2, true)),
            (&[99, 100], (1, false)),
            (&[100], (1, false)),
            (&[65_507, 65_507], (1, false)),
            (&[30_000, 30_000, 30_000], (2, true)),
        ] {
            assert_eq!(stretch(&ends(lens), 0, 60_000), said, "{lens:?}");
        }
        let six = ends(&[1, 100, 100, 100, 100, 100]);
        assert_eq!(stretch(&six, 1, 100), (5, true), "from any place");
        assert_eq!(stretch(&six, 1, 99), (5, false), "larger than the path takes");
        assert_eq!(stretch(&ends(&[100; 200]), 0, 1472), (MOST, true));
        assert_eq!(stretch(&ends(&[1472; 60]), 0, 1472), (44, true));
    }
}
