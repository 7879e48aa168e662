//! The counters of the accounting identity.
//!
//! ```text
//! per worker    received = admitted + sum of dropped[reason] + held   (WorkerStats)
//!               ring_seen = received - segments_cut + ring_dropped + ring_malformed
//! per session   offered  = sent + sum of dropped[reason]              (SessionStats)
//!               sent     = what the sensor counted + what the network lost
//! ```
//!
//! "Admitted" frames were offered to every session that was open then; with none open they are
//! dropped as `no_session`. Those held wait for a better copy; at the end there are none. Frames that the kernel lost before a worker saw them are
//! [`SourceStats::ring_dropped`](crate::source::SourceStats). Counters have one writer, are
//! published once per batch, and are right one by one; a snapshot of several is not one moment.

pub mod account;
pub mod control;
pub mod export;
pub mod histogram;
pub mod sensor;
pub mod server;

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    pub fn add(&self, count: u64) {
        // Relaxed: one writer, so nothing is lost; readers may be late.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Replaces the value; only the owning thread may.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value, possibly a batch old.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label in metrics and reports; renaming one is a change of the interface.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

use reasons;

reasons! {
    /// Why a frame was not offered to the sessions.
    DropReason {
        /// The tap's own datagrams or control connection.
        OwnTraffic = "own_traffic",
        /// The source is local to another node that runs a tap.
        Covered = "covered",
        /// Carries a service address; its translated twin is reported.
        Service = "service",
        /// Carries the node's address where a pod's was; its twin with the pod's is reported.
        Translated = "translated",
        /// Outer packet of an overlay between nodes; the inner one is reported.
        Overlay = "overlay",
        /// The interface is not selected, or not Ethernet.
        Interface = "interface",
        /// The same packet was reported at another point.
        Duplicate = "duplicate",
        /// The reference's port rule left it to the other side.
        Election = "election",
        /// The node's own filter (`--filter`) rejects it.
        NodeFilter = "node_filter",
        /// No sensor had a capture running.
        NoSession = "no_session",
    }
}

reasons! {
    /// Why a frame that was offered to a session was not sent.
    SessionDrop {
        /// The sensor's own filter rejects it.
        Filter = "sensor_filter",
        /// SETSAMPLING leaves it out.
        Sampling = "sampling",
        /// No room in the queue of what waits to be sent.
        QueueFull = "queue_full",
        /// The kernel refused the datagram.
        SendFailed = "send_failed",
        /// The path takes datagrams of no useful size.
        TooLarge = "datagram_too_large",
        /// The client reads its TCP connection too slowly: no room in the backlog.
        TcpBacklog = "tcp_backlog",
        /// The TCP connection broke, or the capture ended, before the frame was sent.
        TcpUnsent = "tcp_unsent",
    }
}

/// One worker's counters. The worker is the only writer.
#[derive(Debug, Default)]
#[repr(align(128))] // two cache lines: the prefetcher pulls pairs, and workers must not share one
pub struct WorkerStats {
    /// Packets: frames taken from the source, super-frames counted as what they were cut into.
    pub received: Counter,
    /// Bytes on the wire of those.
    pub received_bytes: Counter,
    /// Frames offered to at least one session.
    pub admitted: Counter,
    /// Frames not offered, by [`DropReason`] as index.
    pub dropped: [Counter; DropReason::ALL.len()],
    /// Packets that wait for a better copy now.
    pub held: Counter,
    /// Packets that waited and were reported without a better copy.
    pub untwinned: Counter,
    /// Packets that should have waited and were decided at once: no memory was left.
    pub settle_full: Counter,
    /// Frames that passed the kernel's filter, lost ones included ([`crate::source::SourceStats`]).
    pub ring_seen: Counter,
    /// Frames lost because the ring was full.
    pub ring_dropped: Counter,
    /// How often the ring was found full.
    pub ring_freezes: Counter,
    /// Ring entries that contradicted themselves.
    pub ring_malformed: Counter,
    /// Packets that came out of super-frames, less the super-frames:
    /// `received = ring frames + segments_cut`.
    pub segments_cut: Counter,
    /// Super-frames that could not be cut: one packet each, reported as the largest frame of it that a
    /// wire can have carried.
    pub segments_uncut: Counter,
    /// Super-frames that were cut, but not captured whole: bytes of their last segments are missing.
    pub segments_truncated: Counter,
    /// Dedup entries overwritten before their window had passed.
    pub dedup_evicted: Counter,
    /// Fragments that were given to a sensor by their addresses alone, since the first fragment of
    /// their packet was not seen; only where sensors share the packets.
    pub fragments_stray: Counter,
    /// Batches worked on: moves while the worker lives.
    pub batches: Counter,
}

impl WorkerStats {
    /// The counter of `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.dropped[reason as usize]
    }
}

/// One session's counters: written by whichever worker holds the right to send, so added to
/// atomically, once per run of datagrams.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Frames that workers offered.
    pub offered: AtomicU64,
    /// Frames that the kernel took to the last byte.
    pub sent: AtomicU64,
    /// Captured bytes of those.
    pub sent_bytes: AtomicU64,
    /// Datagrams (or TCP writes' messages) that the kernel took.
    pub datagrams: AtomicU64,
    /// Payload bytes of those.
    pub datagram_bytes: AtomicU64,
    /// Times that the path was found to take smaller datagrams than it did, or than its route
    /// says.
    pub size_lowered: AtomicU64,
    /// Datagrams larger than the path takes, which became IP fragments (plain form only).
    pub datagrams_over_mtu: AtomicU64,
    /// Frames sent with fewer bytes than the sensor wants, so that they fit into a datagram.
    pub frames_cut: AtomicU64,
    /// Of the datagrams, those that the kernel or the NIC cut out of a larger one (`UDP_SEGMENT`).
    pub segmented: AtomicU64,
    /// Times that the kernel refused to.
    pub segmenting_refused: AtomicU64,
    /// UDP payload bytes that a datagram holds at most, as of now; 0 for TCP.
    pub datagram_size: AtomicU64,
    /// Frames not sent, by [`SessionDrop`] as index.
    pub dropped: [AtomicU64; SessionDrop::ALL.len()],
    /// Answers "port unreachable" to earlier datagrams; a hint, no count of losses.
    pub refused: AtomicU64,
}

impl SessionStats {
    /// Adds frames to a reason's count.
    pub fn drop_frames(&self, reason: SessionDrop, count: u64) {
        self.dropped[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The count of a reason.
    #[must_use]
    pub fn dropped(&self, reason: SessionDrop) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_its_place_in_all() {
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
        for (at, reason) in SessionDrop::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at);
        }
    }
}
