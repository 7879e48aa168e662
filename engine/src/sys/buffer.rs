//! A socket buffer beyond the system's limit, where we may.

use std::os::fd::AsFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{SndBuf, SndBufForce};

/// Asks for `bytes` of send buffer: past the system's limit with `CAP_NET_ADMIN`, else as much as
/// the limit gives. Never fails: a small buffer works, it only loses sooner.
pub(crate) fn force_send_buffer(socket: &impl AsFd, bytes: usize) {
    let _best_effort = setsockopt(socket, SndBufForce, &bytes)
        .or_else(|_not_permitted| setsockopt(socket, SndBuf, &bytes));
}
