//! The data over TCP: whole messages, whatever the kernel takes at once.
//!
//! ```text
//! run --stamp--> socket, as far as it takes them
//!                  `-- the rest --> backlog (whole messages, bounded) --resume--> socket
//!                                      `-- no room: the frame is dropped and counted
//! ```
//!
//! Once the backlog holds a byte, everything goes through it, so messages never mix. A client
//! that does not read costs the backlog's memory and its own frames, and nobody's time.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use socket2::Socket;

use crate::rpcap::{HEADER_BYTES, PACKET_HEADER_BYTES};
use crate::stats::{SessionDrop, SessionStats};

use super::run::Run;

/// Bytes that may wait for a client, beside what the kernel's send buffer holds: a tenth of a
/// second at 330 Mbit/s, which a client that is alive but busy (writing a file, say) needs. More
/// would only delay the drops of one that is too slow. Not touched, and so not resident, before a
/// client falls behind.
const BACKLOG_BYTES: usize = 4 << 20;
/// Where a message says how long its frame is.
const CAPLEN_AT: usize = HEADER_BYTES + 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Tcp {
    socket: Arc<Socket>,
    number: u32,
    /// Whole messages, but for the first, of which a part may be gone.
    backlog: VecDeque<u8>,
    /// Of the first message in the backlog: bytes that wait, bytes of its frame.
    first: (usize, usize),
    /// Messages in the backlog.
    waiting: u64,
    is_over: bool,
}

/// Messages that the kernel took to the last byte.
#[derive(Default)]
struct Taken {
    frames: u64,
    caplen: usize,
    bytes: usize,
}

impl Tcp {
    pub(super) fn new(socket: Arc<Socket>) -> Self {
        let backlog = VecDeque::with_capacity(BACKLOG_BYTES);
        Self { socket, number: 1, backlog, first: (0, 0), waiting: 0, is_over: false }
    }

    /// True when nothing is sent any more: the connection broke, or the capture ended.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// True while something waits for the client.
    pub(super) fn is_blocked(&self) -> bool {
        self.waiting != 0
    }

    /// Sends a run, or as much as the socket takes.
    pub(super) fn send(&mut self, run: &mut Run, stats: &SessionStats) {
        run.stamp_packets(self.number);
        let frames = run.frames.len() as u64;
        // What is given up is numbered too: the client sees the loss.
        self.number = self.number.wrapping_add(u32::try_from(frames).unwrap_or(u32::MAX));
        if self.is_over {
            stats.drop_frames(SessionDrop::TcpUnsent, frames);
            return;
        }
        // One that waits goes first.
        let gone = if self.waiting == 0 { self.push(&run.bytes) } else { 0 };
        let mut taken = Taken { bytes: gone, ..Taken::default() };
        let (mut at, mut dropped) = (0, 0);
        for frame in &run.frames {
            let end = frame.number_at + size_of::<u32>() + frame.caplen;
            if end <= gone {
                taken.frames += 1;
                taken.caplen += frame.caplen;
            } else if self.is_over || !self.keep(&run.bytes[at.max(gone)..end], frame.caplen) {
                dropped += 1;
            }
            at = end;
        }
        taken.count(stats);
        if dropped != 0 {
            let reason =
                if self.is_over { SessionDrop::TcpUnsent } else { SessionDrop::TcpBacklog };
            stats.drop_frames(reason, dropped);
        }
    }

    /// Goes on with what waits.
    pub(super) fn resume(&mut self, stats: &SessionStats) {
        let mut taken = Taken::default();
        while self.waiting != 0 && !self.is_over {
            let backlog = std::mem::take(&mut self.backlog);
            let gone = self.push(backlog.as_slices().0);
            self.backlog = backlog;
            if gone == 0 {
                break;
            }
            self.forget(gone, &mut taken);
        }
        taken.count(stats);
        if self.is_over {
            self.give_up(stats);
        }
    }

    /// The connection's state, without sending: a client that is gone need not be found out by
    /// the next frame.
    pub(super) fn check(&mut self, stats: &SessionStats) {
        if !self.is_over && !matches!(self.socket.take_error(), Ok(None)) {
            self.is_over = true;
            self.give_up(stats);
        }
    }

    /// The end of the capture.
    pub(super) fn close(&mut self, stats: &SessionStats) {
        if !self.is_over {
            self.is_over = true;
            self.give_up(stats);
            let _gone_already = self.socket.shutdown(Shutdown::Write);
        }
    }

    fn give_up(&mut self, stats: &SessionStats) {
        stats.drop_frames(SessionDrop::TcpUnsent, std::mem::take(&mut self.waiting));
        self.backlog = VecDeque::new();
    }

    /// Hands `bytes` to the kernel; returns how many it took.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let mut gone = 0;
        while gone < bytes.len() {
            match self.socket.send_with_flags(&bytes[gone..], libc::MSG_NOSIGNAL) {
                Ok(count) => gone += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    _ => {
                        tracing::debug!(%error, "the data connection broke");
                        self.is_over = true;
                        break;
                    }
                },
            }
        }
        gone
    }

    /// Puts a message, or the rest of one that was begun, at the backlog's end; false if it has no
    /// room.
    fn keep(&mut self, rest: &[u8], caplen: usize) -> bool {
        if self.backlog.len() + rest.len() > BACKLOG_BYTES {
            return false;
        }
        if self.waiting == 0 {
            self.first = (rest.len(), caplen);
        }
        self.backlog.extend(rest);
        self.waiting += 1;
        true
    }

    /// The kernel took the first `gone` bytes of the backlog.
    fn forget(&mut self, mut gone: usize, taken: &mut Taken) {
        taken.bytes += gone;
        while gone >= self.first.0 {
            let (len, caplen) = self.first;
            gone -= len;
            self.backlog.drain(..len);
            taken.frames += 1;
            taken.caplen += caplen;
            self.waiting -= 1;
            if self.waiting == 0 {
                debug_assert_eq!(gone, 0, "nothing behind the last message");
                return;
            }
            let mut caplen = [0; 4];
            for (byte, at) in caplen.iter_mut().zip(CAPLEN_AT..) {
                *byte = self.backlog[at];
            }
            let caplen = usize::try_from(u32::from_be_bytes(caplen)).expect("64-bit machine");
            self.first = (HEADER_BYTES + PACKET_HEADER_BYTES + caplen, caplen);
        }
        self.first.0 -= gone;
        self.backlog.drain(..gone);
    }
}

impl Taken {
    fn count(&self, stats: &SessionStats) {
        if self.bytes == 0 {
            return;
        }
        stats.datagrams.fetch_add(self.frames, Ordering::Relaxed);
        stats.datagram_bytes.fetch_add(self.bytes as u64, Ordering::Relaxed);
        stats.sent.fetch_add(self.frames, Ordering::Relaxed);
        stats.sent_bytes.fetch_add(self.caplen as u64, Ordering::Relaxed);
    }
}
