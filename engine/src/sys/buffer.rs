//! Socket buffers beyond the system's limit, where we may.

use std::os::fd::AsFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, SndBuf, SndBufForce};

/// Which buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    /// `SO_SNDBUF`.
    Send,
    /// `SO_RCVBUF`.
    Receive,
}

/// Asks for `bytes` of buffer: past the system's limit with `CAP_NET_ADMIN`, else as much as the
/// limit gives. Never fails: a small buffer works, it only loses sooner.
pub(crate) fn force_buffer(socket: &impl AsFd, buffer: Buffer, bytes: usize) {
    let _best_effort = match buffer {
        Buffer::Send => setsockopt(socket, SndBufForce, &bytes)
            .or_else(|_not_permitted| setsockopt(socket, SndBuf, &bytes)),
        Buffer::Receive => setsockopt(socket, RcvBufForce, &bytes)
            .or_else(|_not_permitted| setsockopt(socket, RcvBuf, &bytes)),
    };
}
