//! The mapped ring: which block comes next.
//!
//! ```text
//! | block 0 | block 1 | .. | block n-1 |      the kernel fills them in this order, round and round;
//!             ^ current                       we take them in the same order
//! ```
#![expect(unsafe_code, reason = "takes blocks out of memory shared with the kernel")]

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;

use super::block::Block;
use super::geometry::Geometry;
use crate::sys::mmap::Mmap;

/// The RX ring of one socket.
#[derive(Debug)]
pub(super) struct Ring {
    map: Mmap,
    geometry: Geometry,
    block_bytes: usize,
    current: u32,
    malformed: Cell<u64>,
}

impl Ring {
    /// Maps the ring that was set up on `socket` with `geometry`. Every page is there when this
    /// returns (`packet_mmap` inserts them one by one): no `MAP_POPULATE`, no fault later.
    pub(super) fn map(socket: impl AsFd, geometry: Geometry) -> io::Result<Self> {
        let len = usize::try_from(geometry.ring_bytes()).map_err(io::Error::other)?;
        let block_bytes = usize::try_from(geometry.block_bytes()).map_err(io::Error::other)?;
        let map = Mmap::shared(socket, len)?;
        Ok(Self { map, geometry, block_bytes, current: 0, malformed: Cell::new(0) })
    }

    /// The next block, if the kernel has handed it over.
    #[inline]
    pub(super) fn next_block(&mut self) -> Option<Block<'_>> {
        let at = self.current;
        let offset = usize::try_from(at).ok()? * self.block_bytes;
        let memory = self.map.range(offset, self.block_bytes)?;
        // SAFETY: one whole block of the mapping (a multiple of the page size from its start, and
        // larger than a header), mapped as long as `self`, which the block borrows. That borrow is
        // exclusive, so no other block is out.
        let block = unsafe { Block::acquire(memory, &self.malformed) }?;
        self.current = if at + 1 == self.geometry.blocks() { 0 } else { at + 1 };
        Some(block)
    }

    /// Entries that made no sense, since the ring was mapped.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed.get()
    }
}
