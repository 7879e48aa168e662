//! A capture that runs: its session, its data connection, what it holds for as long as it lives.
//!
//! ```text
//! session <-- workers            stream (a second descriptor) <-- event loop: writable, or at its end
//! flows, promiscuous: begun with the capture, ended by dropping it
//! ```

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::net::TcpStream;

use crate::rpcap::Stats;
use crate::session::{Pump, Session};
use crate::stats::SessionDrop;

use super::config::{Context, FlowGuard};
use super::promiscuous::Promiscuous;

/// Reads of one step from a data connection, on which nothing should come.
const READS: usize = 16;

/// A capture that runs, or can at once.
pub(super) struct Capture {
    pub(super) session: Arc<Session>,
    /// The node's counters when it started: STATS counts from there.
    pub(super) baseline: Stats,
    /// The size of datagrams that was last written to the log.
    pub(super) said_size: u64,
    /// Our end of a TCP data connection, to see its end by.
    pub(super) stream: Option<TcpStream>,
    pub(super) _flows: [FlowGuard; 2],
    pub(super) _promiscuous: Option<Promiscuous>,
    /// Of a client's capture: one of those there may be.
    pub(super) _place: Option<Arc<()>>,
}

impl Capture {
    /// Counts since the capture started. What was received is, of a capture of one interface, what
    /// was there to be offered to it, with what the rings lost (of whichever interface it was); of
    /// the whole node, every frame that a worker took from a ring.
    pub(super) fn stats(&self, cx: &Context) -> Stats {
        let now = (cx.capture_stats)();
        let stats = &self.session.stats;
        // The fields wrap, as the protocol's do.
        let wrap = |count: u64| u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        // What this client's own queue lost is a lack of buffer like the ring's.
        let is_loss =
            |reason: &&SessionDrop| !matches!(reason, SessionDrop::Filter | SessionDrop::Sampling);
        let lost: u64 =
            SessionDrop::ALL.iter().filter(is_loss).map(|reason| stats.dropped(*reason)).sum();
        let ring_lost = now.kernel_dropped.wrapping_sub(self.baseline.kernel_dropped);
        let received = match self.session.spec.interface {
            Some(_) => wrap(stats.offered.load(Ordering::Relaxed)).wrapping_add(ring_lost),
            None => now.received.wrapping_sub(self.baseline.received),
        };
        Stats {
            received,
            interface_dropped: now.interface_dropped.wrapping_sub(self.baseline.interface_dropped),
            kernel_dropped: ring_lost.wrapping_add(wrap(lost)),
            sent: wrap(stats.sent.load(Ordering::Relaxed)),
        }
    }

    /// Sends what waits for the data connection, and looks for its end.
    pub(super) fn is_broken(&mut self, is_ready: bool) -> bool {
        // Over UDP, this is for the size of datagrams.
        let is_over = self.session.pump() == Pump::Broken;
        let Some(stream) = &mut self.stream else { return false };
        if is_over || !is_ready {
            return is_over;
        }
        let mut nothing = [0; 512];
        for _ in 0..READS {
            match stream.read(&mut nothing) {
                Ok(0) => return true,
                // A client has nothing to say here.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        // It talks on: a client that does is none.
        true
    }

    /// Writes the size of datagrams to the log, if it is another than before: on control's thread,
    /// since whoever holds up a worker's log line would hold up the data.
    pub(super) fn say_size(&mut self) {
        let size = self.session.stats.datagram_size.load(Ordering::Relaxed);
        if size != self.said_size {
            let peer = self.session.spec.peer;
            tracing::info!(%peer, before = self.said_size, now = size, "bytes of a datagram, at most");
            self.said_size = size;
        }
    }

    /// Lets go of the data connection; the session closes it when all is sent.
    pub(super) fn let_go(self, cx: &Context) {
        if let Some(mut stream) = self.stream {
            // The registration would outlive this descriptor: the session has one of its own.
            let _not_registered = cx.registry.deregister(&mut stream);
        }
    }
}
