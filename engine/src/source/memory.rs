//! Frames made by a test or a benchmark, handed out in batches.
//!
//! ```text
//! Vec<OwnedFrame> --batch_frames at a time--> MemoryBatch --> Frame
//! ```

use std::io;
use std::time::Duration;

use super::{Batch, Source, SourceStats};
use crate::frame::{Frame, Offload, Point, VlanTag};
use crate::rpcap::BpfInsn;

/// A [`Frame`] that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedFrame {
    /// Captured bytes.
    pub data: Vec<u8>,
    /// Length before any cut, bytes.
    pub wire_len: u32,
    /// Nanoseconds since the epoch.
    pub timestamp_ns: u64,
    /// Where it was seen.
    pub point: Point,
    /// The tag beside the bytes.
    pub vlan: Option<VlanTag>,
    /// Work left to the hardware.
    pub offload: Offload,
}

impl OwnedFrame {
    /// The same frame, borrowed.
    #[must_use]
    pub fn as_frame(&self) -> Frame<'_> {
        let Self { ref data, wire_len, timestamp_ns, point, vlan, offload } = *self;
        Frame { data, wire_len, timestamp_ns, point, vlan, offload }
    }
}

impl From<Frame<'_>> for OwnedFrame {
    fn from(frame: Frame<'_>) -> Self {
        let Frame { data, wire_len, timestamp_ns, point, vlan, offload } = frame;
        Self { data: data.to_vec(), wire_len, timestamp_ns, point, vlan, offload }
    }
}

/// A source whose frames are in memory.
#[derive(Clone, Debug)]
pub struct MemorySource {
    frames: Vec<OwnedFrame>,
    batch_frames: usize,
    next: usize,
}

/// Some consecutive frames of a [`MemorySource`].
#[derive(Clone, Copy, Debug)]
pub struct MemoryBatch<'a>(&'a [OwnedFrame]);

impl MemorySource {
    /// Hands out `frames` in order, `batch_frames` (at least 1) at a time.
    #[must_use]
    pub fn new(frames: Vec<OwnedFrame>, batch_frames: usize) -> Self {
        Self { frames, batch_frames: batch_frames.max(1), next: 0 }
    }

    /// Begins again with the first frame.
    pub fn rewind(&mut self) {
        self.next = 0;
    }
}

impl Batch for MemoryBatch<'_> {
    #[inline]
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.0.iter().map(OwnedFrame::as_frame)
    }
}

impl Source for MemorySource {
    type Batch<'a> = MemoryBatch<'a>;

    fn next_batch(&mut self) -> Option<MemoryBatch<'_>> {
        let rest = &self.frames[self.next..];
        let batch = &rest[..rest.len().min(self.batch_frames)];
        self.next += batch.len();
        (!batch.is_empty()).then_some(MemoryBatch(batch))
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn stats(&mut self) -> io::Result<SourceStats> {
        Ok(SourceStats::default())
    }

    fn set_filter(&mut self, _program: &[BpfInsn]) -> io::Result<()> {
        Ok(())
    }

    fn is_exhausted(&self) -> bool {
        self.next == self.frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Direction;

    #[test]
    fn every_frame_comes_once_in_order_and_then_no_more() {
        let point = Point { ifindex: 3, direction: Direction::Out };
        let vlan = Some(VlanTag { tpid: 0x8100, tci: 7 });
        let frames: Vec<_> = (0..7u8)
            .map(|n| OwnedFrame {
                data: vec![n; 60],
                wire_len: 60,
                timestamp_ns: u64::from(n),
                point,
                vlan,
                offload: Offload { gso_size: 9, ..Offload::default() },
            })
            .collect();
        let mut source = MemorySource::new(frames.clone(), 3);
        for _ in 0..2 {
            let mut sizes = Vec::new();
            let mut seen = Vec::new();
            while let Some(batch) = source.next_batch() {
                let batch: Vec<_> = batch.frames().map(OwnedFrame::from).collect();
                sizes.push(batch.len());
                seen.extend(batch);
            }
            assert_eq!(sizes, [3, 3, 1]);
            assert_eq!(seen, frames);
            assert!(source.is_exhausted());
            source.rewind();
            assert!(!source.is_exhausted());
        }
    }
}
