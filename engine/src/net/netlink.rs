//! The two rtnetlink sockets: one listens to changes, the other asks for everything.
//!
//! ```text
//! Events: subscribe --> recv, until empty --> [Update]      ENOBUFS: some were lost
//! Dumper: request one kind --> its multipart answer --> [Update], again while it was interrupted
//! ```
//!
//! Subscribing comes before dumping, so nothing falls in between: what changes during a dump waits
//! in the other socket, and applying it a second time is harmless.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::decode::{self, RTM_GETNEXTHOP};
use super::tables::{Kind, Tables, Update};

/// The kernel's own limit for one read of a dump is 32 KiB; events are smaller.
const READ_BYTES: usize = 64 * 1024;
/// How often an interrupted dump is asked for again before its result is taken as it is.
const DUMP_TRIES: u32 = 8;
/// For an answer that never comes.
const DUMP_TIMEOUT: Duration = Duration::from_secs(5);
/// At most this many reads before the caller looks at the clock.
const READS_AT_ONCE: usize = 64;

const NETLINK_HEADER: usize = 16;
const IFLA_EXT_MASK: u16 = 29;
/// Without counters, a link's answer is half the size.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// How a read of the events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// Nothing is left.
    Empty,
    /// There may be more.
    More,
    /// The kernel could not queue all; the tables no longer say what is.
    Overrun,
}

/// Listens to changes of links, addresses, routes and nexthops of the namespace it was opened in.
pub(super) struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes. `receive_buffer_bytes` bounds what the kernel queues while nobody reads;
    /// without CAP_NET_ADMIN it is cut to `net.core.rmem_max`.
    pub(super) fn subscribe(receive_buffer_bytes: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer_bytes).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &receive_buffer_bytes)?;
        }
        socket.bind_auto()?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ] {
            socket.add_membership(group)?;
        }
        if let Err(error) = socket.add_membership(libc::RTNLGRP_NEXTHOP) {
            tracing::debug!(%error, "this kernel has no nexthop objects");
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(READ_BYTES) })
    }

    /// Hands what has come to `take`.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Update)) -> io::Result<Drained> {
        for _ in 0..READS_AT_ONCE {
            match read(&self.socket, &mut self.buffer) {
                Ok(Read::Whole) => {}
                // The rest of it is lost, as in an overrun.
                Ok(Read::Cut) => return self.discard(),
                Ok(Read::NotTheKernel) => continue,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Drained::Empty),
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOBUFS) => return self.discard(),
                    _ => return Err(error),
                },
            }
            for message in messages(&self.buffer) {
                let kind = message.message_type();
                if let Some(update) = decode::update(kind, message.flags(), payload(&message)) {
                    take(update);
                }
            }
        }
        Ok(Drained::More)
    }

    /// After an overrun, what is still queued comes before the gap: applied after a dump, it would
    /// bring back what is gone. The kernel queues nothing new until all of it has been read.
    fn discard(&mut self) -> io::Result<Drained> {
        loop {
            match read(&self.socket, &mut self.buffer) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(Drained::Overrun),
                    Some(libc::EINTR | libc::ENOBUFS) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for everything of a kind, in the namespace it was opened in.
pub(super) struct Dumper {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Dumper {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let timeout = TimeVal::new(DUMP_TIMEOUT.as_secs().try_into().unwrap_or(5), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: Vec::with_capacity(READ_BYTES), sequence: 0 })
    }

    /// Brings all tables up to what is now. False if changes kept interrupting a dump: its result
    /// may lack something.
    pub(super) fn refresh(&mut self, tables: &mut Tables) -> io::Result<bool> {
        let mut is_consistent = true;
        for kind in Kind::ALL {
            let mut tries = 0;
            let (updates, is_whole) = loop {
                tries += 1;
                let (updates, is_whole) = match self.dump(kind) {
                    // Kernels before 5.3 have no nexthop objects.
                    Err(error) if kind == Kind::Nexthops && is_unsupported(&error) => {
                        (Vec::new(), true)
                    }
                    result => result?,
                };
                if is_whole || tries == DUMP_TRIES {
                    break (updates, is_whole);
                }
            };
            tables.replace(kind, updates);
            is_consistent &= is_whole;
        }
        Ok(is_consistent)
    }

    fn dump(&mut self, kind: Kind) -> io::Result<(Vec<Update>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(kind, self.sequence);
        self.socket.send(&request, 0)?;
        let mut updates = Vec::new();
        let mut is_whole = true;
        loop {
            match read(&self.socket, &mut self.buffer) {
                Ok(Read::Whole) => {}
                Ok(Read::Cut) => is_whole = false,
                Ok(Read::NotTheKernel) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for message in messages(&self.buffer) {
                // The tail of an answer that was given up on.
                if message.sequence_number() != self.sequence {
                    continue;
                }
                is_whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                let body = payload(&message);
                match message.message_type() {
                    // Both begin with a negative errno, or zero.
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                        return match code {
                            0.. => Ok((updates, is_whole)),
                            _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    other => updates.extend(decode::update(other, message.flags(), body)),
                }
            }
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// One dump request: the header and the family's own, zero but for the family.
fn request(kind: Kind, sequence: u32) -> Vec<u8> {
    let (message_type, family, body_bytes) = match kind {
        Kind::Links => (libc::RTM_GETLINK, libc::AF_UNSPEC, 16),
        Kind::Addresses => (libc::RTM_GETADDR, libc::AF_UNSPEC, 8),
        Kind::Nexthops => (RTM_GETNEXTHOP, libc::AF_UNSPEC, 8),
        Kind::Routes4 => (libc::RTM_GETROUTE, libc::AF_INET, 12),
        Kind::Routes6 => (libc::RTM_GETROUTE, libc::AF_INET6, 12),
    };
    let mut body = vec![0; body_bytes];
    body[0] = u8::try_from(family).expect("address families in use are below 256");
    if kind == Kind::Links {
        body.extend(8_u16.to_ne_bytes());
        body.extend(IFLA_EXT_MASK.to_ne_bytes());
        body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    }
    let mut bytes = vec![0; NETLINK_HEADER];
    bytes.extend(body);
    let length = u32::try_from(bytes.len()).expect("a request is a few dozen bytes");
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(length);
    header.set_message_type(message_type);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(sequence);
    bytes
}

enum Read {
    Whole,
    /// It was longer than the buffer, which has now grown for the next one.
    Cut,
    /// Another process sent it: not to be believed.
    NotTheKernel,
}

/// Reads one datagram into the emptied buffer.
fn read(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<Read> {
    buffer.clear();
    let (length, sender) = socket.recv_from(buffer, libc::MSG_TRUNC)?;
    if sender.port_number() != 0 {
        return Ok(Read::NotTheKernel);
    }
    if length > buffer.len() {
        buffer.reserve(length.next_multiple_of(READ_BYTES) - buffer.len());
        return Ok(Read::Cut);
    }
    Ok(Read::Whole)
}

/// The messages of a datagram, up to the first broken one.
fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

fn payload<'a>(message: &NetlinkBuffer<&'a [u8]>) -> &'a [u8] {
    message.payload()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_falls_into_messages_and_ends_at_a_broken_one() {
        let mut datagram = request(Kind::Links, 1);
        datagram.extend(request(Kind::Routes6, 2));
        let found: Vec<u32> = messages(&datagram).map(|m| m.sequence_number()).collect();
        assert_eq!(found, [1, 2]);
        datagram.extend([9, 0, 0, 0, 1]);
        assert_eq!(messages(&datagram).count(), 2);
        datagram.truncate(40 + 16);
        assert_eq!(messages(&datagram).count(), 1, "shorter than it says");
    }

    #[test]
    fn loopback_is_found_in_whatever_namespace_this_runs() {
        let mut tables = Tables::default();
        Dumper::open().unwrap().refresh(&mut tables).unwrap();
        assert!(tables.view().links.values().any(|link| link.is_loopback && link.name == "lo"));
    }
}
