//! Sessions as workers and control use them, over loopback sockets.

mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::frame::{Direction, Frame, Offload, Point};
use crate::stats::SessionDrop;
use crate::stats::histogram::WorkerHistograms;

/// Generous: a machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn spec(peer: SocketAddr) -> SessionSpec {
    SessionSpec {
        sensor: 0,
        share: None,
        interface: None,
        peer,
        encoding: Encoding::Stream,
        snaplen: 262_144,
        datagram_bytes: None,
        takes_large_datagrams: false,
        longest_wait_ns: u64::MAX,
        filter: None,
        sampling: Sampling { method: 0, value: 0 },
    }
}

pub(super) fn frame(data: &[u8]) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap(),
        timestamp_ns: 1_700_000_000_123_456_789,
        point: Point { ifindex: 1, direction: Direction::In },
        vlan: None,
        offload: Offload::default(),
    }
}

/// Frame `n`'s bytes: nothing like those of its neighbours.
fn bytes(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + n * 7) & 255).unwrap()).collect()
}

/// A worker with one session.
struct Bench {
    packer: Packer,
    histograms: WorkerHistograms,
}

impl Bench {
    fn new(session: &Arc<Session>) -> Self {
        Self { packer: Packer::new(Arc::clone(session)), histograms: WorkerHistograms::new() }
    }

    /// As a batch of one.
    fn offer(&mut self, data: &[u8]) {
        self.packer.begin_batch();
        self.packer.offer(&frame(data), 0, &mut self.histograms);
        self.packer.publish();
    }

    fn flush(&mut self) {
        self.packer.flush(0, &mut self.histograms);
    }
}

/// Waits until `is_so`, doing `meanwhile` in between.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::yield_now();
    }
}

/// `(offered, sent, dropped)` with the identity asserted: nothing waits any more.
fn settled(session: &Session) -> (u64, u64, u64) {
    let stats = &session.stats;
    let offered = stats.offered.load(Ordering::Relaxed);
    let sent = stats.sent.load(Ordering::Relaxed);
    let dropped = SessionDrop::ALL.iter().map(|reason| stats.dropped(*reason)).sum();
    assert_eq!(offered, sent + dropped, "{stats:?}");
    (offered, sent, dropped)
}
