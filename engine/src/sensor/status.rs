//! The line of counts on a terminal.
//!
//! ```text
//! event loop, once a second --counts--> "2 taps, 1000 packets (+50), ..." over the line before
//! ```

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::summary::Counts;

/// The line of counts for people who watch.
pub(super) struct Status {
    /// When the line is due again.
    pub(super) next: Instant,
    packets: u64,
}

impl Status {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, packets: 0 }
    }

    pub(super) fn show(&mut self, now: Instant, taps: usize, counts: &Counts) {
        let rate = counts.packets.saturating_sub(self.packets);
        self.packets = counts.packets;
        self.next = now + Duration::from_secs(1);
        let line = format!(
            "\r\x1b[K{taps} taps, {} packets (+{rate}), {} bytes, {} lost, {} gaps, {} malformed",
            counts.packets,
            counts.bytes,
            counts.lost_packets,
            counts.gaps,
            counts.malformed.total()
        );
        // A terminal that cannot be written to shows nothing: no harm done.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    pub(super) fn clear(&self) {
        // As in `show`.
        let _ = io::stderr().write_all(b"\r\x1b[K");
    }
}
