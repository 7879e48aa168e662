//! Many datagrams per system call: `recvmmsg`.
//!
//! ```text
//! Receiver: one buffer of BATCH slots --receive(socket)--> Batch --datagrams()--> (sender, bytes)
//! ```
//!
//! One receiver serves all sockets of a thread, whatever their family. A slot is as long as the
//! longest datagram there is, so nothing is ever cut.
#![expect(unsafe_code, reason = "recvmmsg takes arrays of pointers; SO_MEMINFO is not in nix")]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

/// Datagrams per call.
const BATCH: usize = 64;
/// Bytes of a slot.
const SLOT: usize = 65_536;

/// The buffer that datagrams are received into.
#[derive(Debug)]
pub struct Receiver {
    slots: Box<[u8]>,
}

/// What one call received; borrows the buffer.
#[derive(Debug)]
pub struct Batch<'a> {
    slots: &'a [u8],
    entries: [(Option<SocketAddr>, usize); BATCH],
    len: usize,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

impl Receiver {
    /// Takes 4 MiB of address space; pages are used as datagrams need them.
    #[must_use]
    pub fn new() -> Self {
        Self { slots: vec![0; BATCH * SLOT].into_boxed_slice() }
    }

    /// The whole buffer, for a stream socket.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.slots
    }

    /// Receives what is there, at most 64 datagrams, without waiting.
    ///
    /// # Errors
    ///
    /// What `recvmmsg` answers: `WouldBlock` when there is nothing.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<Batch<'_>> {
        let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::zeroed() }; BATCH];
        let mut pieces: [libc::iovec; BATCH] =
            std::array::from_fn(|_| libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        for (piece, slot) in pieces.iter_mut().zip(self.slots.chunks_exact_mut(SLOT)) {
            *piece = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: SLOT };
        }
        let name_len = socklen(size_of::<libc::sockaddr_storage>());
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|at| {
            // SAFETY: mmsghdr is integers and pointers; all zero is "none" for each of them.
            let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            header.msg_hdr.msg_name = names[at].as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = name_len;
            header.msg_hdr.msg_iov = &raw mut pieces[at];
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        // SAFETY: the 64 headers point at 64 names, at 64 iovecs and by them at 64 disjoint slots
        // of `self.slots`, all of which outlive the call; the lengths are those of the arrays.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                libc::c_uint::try_from(BATCH).unwrap_or(0),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let len = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
        let mut entries = [(None, 0); BATCH];
        for ((entry, header), name) in entries.iter_mut().zip(&headers).zip(&names).take(len) {
            // SAFETY: zeroed at the start and perhaps written by the kernel: initialised.
            let name = unsafe { name.assume_init_ref() };
            *entry = (sender(name), (header.msg_len as usize).min(SLOT));
        }
        Ok(Batch { slots: &self.slots, entries, len })
    }
}

impl Batch<'_> {
    /// Who sent it (if the kernel told), and its bytes.
    pub fn datagrams(&self) -> impl Iterator<Item = (Option<SocketAddr>, &[u8])> {
        let slots = self.slots.chunks_exact(SLOT);
        self.entries[..self.len].iter().zip(slots).map(|((from, len), slot)| (*from, &slot[..*len]))
    }

    /// True if there may be more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(libc::socklen_t::MAX)
}

/// The address that the kernel wrote.
fn sender(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let name = std::ptr::from_ref(name);
    // SAFETY: sockaddr_storage is larger than any address and aligned for all of them.
    match i32::from(unsafe { (*name).ss_family }) {
        libc::AF_INET => {
            // SAFETY: as above, and the family says which address it is.
            let v4 = unsafe { &*name.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, and the family says which address it is.
            let v6 = unsafe { &*name.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(v6.sin6_port)))
        }
        _ => None,
    }
}

/// Datagrams that the kernel threw away because the socket's buffer was full (`SO_MEMINFO`); 0
/// where the kernel does not tell. Wraps at 2^32.
#[must_use]
pub fn socket_drops(socket: impl AsFd) -> u32 {
    /// `SK_MEMINFO_DROPS`, `include/uapi/linux/sock_diag.h`; the ninth and last value.
    const DROPS: usize = 8;
    let mut values = [0u32; DROPS + 1];
    let mut len = socklen(size_of_val(&values));
    // SAFETY: `values` is valid for `len` bytes and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 && len as usize == size_of_val(&values) { values[DROPS] } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn datagrams_of_both_families_come_with_their_senders() {
        let mut receiver = Receiver::new();
        for local in ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"] {
            let socket = UdpSocket::bind(local).unwrap();
            let peer = UdpSocket::bind(local).unwrap();
            for len in [0usize, 1, 9_000] {
                peer.send_to(&vec![0xab; len], socket.local_addr().unwrap()).unwrap();
            }
            let batch = receiver.receive(&socket).unwrap();
            let found: Vec<_> =
                batch.datagrams().map(|(from, bytes)| (from, bytes.len())).collect();
            let from = Some(peer.local_addr().unwrap());
            assert_eq!(found, [(from, 0), (from, 1), (from, 9_000)]);
            assert!(!batch.is_full());
            let nothing = receiver.receive(&socket).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn what_a_full_socket_loses_is_known() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&socket).set_recv_buffer_size(4_096).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            peer.send_to(&[0; 1_000], socket.local_addr().unwrap()).unwrap();
        }
        let mut receiver = Receiver::new();
        let taken = receiver.receive(&socket).unwrap().datagrams().count();
        assert_eq!(taken + socket_drops(&socket) as usize, 100);
        assert!(taken < 100);
    }
}
