//! Where frames come from.
//!
//! ```text
//! Source::next_batch -> Batch --frames()--> Frame<'_>      (borrows the batch)
//!                         |
//!                        drop: the memory goes back to the kernel
//! ```
//!
//! `packet` reads TPACKET_V3 rings, `file` reads captures, `memory` hands out frames made by a
//! test or a benchmark. Roles, verdicts and sessions are other modules' business.

pub mod file;
pub mod memory;
pub mod packet;

use std::io;
use std::time::Duration;

use crate::frame::Frame;

/// Frames that are ready, in the order in which they were captured.
pub trait Batch {
    /// The frames of the batch.
    fn frames(&self) -> impl Iterator<Item = Frame<'_>>;
}

/// Frames that the kernel or the file could not hand over, since the source was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Frames that passed the kernel's filter, those below included.
    pub seen: u64,
    /// Frames lost because the ring was full (`tp_drops`).
    pub ring_dropped: u64,
    /// How often the ring was found full (`tp_freeze_q_cnt`).
    pub ring_freezes: u64,
    /// Entries of the ring that contradicted themselves and were skipped.
    pub malformed: u64,
}

/// A place where frames come from; owned by one worker.
pub trait Source {
    /// See [`Batch`].
    type Batch<'a>: Batch
    where
        Self: 'a;

    /// The frames that are ready, or `None`. Never blocks. Dropping the batch gives its memory
    /// back.
    fn next_batch(&mut self) -> Option<Self::Batch<'_>>;

    /// Blocks until a batch may be ready, somebody wakes the worker, or `timeout` passes.
    ///
    /// # Errors
    ///
    /// What `ppoll` answers, `EINTR` excepted.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// Sums since the source was opened.
    ///
    /// # Errors
    ///
    /// What `getsockopt(PACKET_STATISTICS)` answers.
    fn stats(&mut self) -> io::Result<SourceStats>;

    /// Puts a classic BPF program in front of the source, in place of the one before; a source
    /// that cannot filter does nothing, since the same decisions are taken again in user space.
    ///
    /// # Errors
    ///
    /// What `setsockopt(SO_ATTACH_FILTER)` answers; the old filter is then still there.
    fn set_filter(&mut self, program: &[crate::rpcap::BpfInsn]) -> io::Result<()>;

    /// True when no frame will ever come again (a file at its end).
    fn is_exhausted(&self) -> bool {
        false
    }
}
