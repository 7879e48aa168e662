//! How a memory budget becomes blocks.
//!
//! ```text
//! budget / workers = one ring;  ring / block size = blocks, at least MIN_BLOCKS
//! ```
//!
//! At low rates a block holds what arrives within the retire timeout, however little: the number
//! of blocks is then how many timeouts a worker may be late. At high rates the bytes count. So
//! blocks are large (a large frame wastes the rest of its block) but not while that leaves few.
//! A frame that is larger than a block is cut by the kernel to what fits: so a block holds the
//! largest super-frame that the node's links make (BIG TCP), if the memory is there.

/// The smallest block that holds a frame of 64 KiB and its headers.
pub const MIN_BLOCK_BYTES: u32 = 128 << 10;
/// Holds two frames of the largest snaplen (256 KiB).
const MAX_BLOCK_BYTES: u32 = 512 << 10;
/// What stands in a block beside a frame: the headers of block, frame and address.
const FRAME_OVERHEAD: u32 = 512;
/// The largest super-frame without BIG TCP, link header included.
const PLAIN_SUPER_FRAME: u32 = (64 << 10) + 64;
/// A worker holds one block, the kernel fills another: below this a ring buffers nothing.
pub const MIN_BLOCKS: u32 = 8;
/// Blocks are halved in size as long as there are fewer: a quarter of a second at a retire timeout of 1 ms.
const ENOUGH_BLOCKS: u64 = 256;

/// The shape of one worker's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    block_bytes: u32,
    blocks: u32,
}

/// A budget that no ring can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ring memory of {given} bytes is too small for {workers} workers: {least} is the least that is \
     enough"
)]
pub struct RingTooSmall {
    /// The budget.
    pub given: u64,
    /// Rings to make of it.
    pub workers: usize,
    /// The smallest budget that would do.
    pub least: u64,
}

impl Geometry {
    /// The ring of each of `workers` workers (0 counts as one), of `budget_bytes` for all.
    ///
    /// # Errors
    ///
    /// A budget of too few bytes; the error names the least.
    pub fn from_budget(budget_bytes: u64, workers: usize) -> Result<Self, RingTooSmall> {
        Self::for_frames(budget_bytes, workers, PLAIN_SUPER_FRAME)
    }

    /// The same where frames of up to `largest` bytes are to fit: as large as the memory allows, which
    /// [`largest_frame`](Self::largest_frame) tells.
    ///
    /// # Errors
    ///
    /// As [`from_budget`](Self::from_budget).
    pub fn for_frames(
        budget_bytes: u64,
        workers: usize,
        largest: u32,
    ) -> Result<Self, RingTooSmall> {
        let rings = u64::try_from(workers).unwrap_or(u64::MAX).max(1);
        let ring_bytes = budget_bytes / rings;
        let least_ring = u64::from(MIN_BLOCK_BYTES) * u64::from(MIN_BLOCKS);
        if ring_bytes < least_ring {
            let least = least_ring.saturating_mul(rings);
            return Err(RingTooSmall { given: budget_bytes, workers, least });
        }
        let wanted = largest.saturating_add(FRAME_OVERHEAD).min(1 << 30).next_power_of_two();
        let least_block = wanted.max(MIN_BLOCK_BYTES);
        let mut block_bytes = MAX_BLOCK_BYTES.max(least_block);
        while block_bytes > least_block && ring_bytes / u64::from(block_bytes) < ENOUGH_BLOCKS {
            block_bytes /= 2;
        }
        while ring_bytes / u64::from(block_bytes) < u64::from(MIN_BLOCKS) {
            block_bytes /= 2;
        }
        // More than the kernel can count is more than any machine has.
        let blocks = u32::try_from(ring_bytes / u64::from(block_bytes)).unwrap_or(u32::MAX);
        Ok(Self { block_bytes, blocks })
    }

    /// Bytes of a block: a power of two and a multiple of every page size.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// The kernel cuts a frame that is larger than this, link header included.
    #[must_use]
    pub fn largest_frame(&self) -> u32 {
        self.block_bytes - FRAME_OVERHEAD
    }

    /// Blocks of the ring.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn ring_bytes(&self) -> u64 {
        u64::from(self.block_bytes) * u64::from(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_large_budget_makes_large_blocks() {
        let geometry = Geometry::from_budget(256 * MIB, 2).unwrap();
        assert_eq!((geometry.block_bytes(), geometry.blocks()), (512 << 10, 256));
    }

    #[test]
    fn a_small_budget_makes_small_blocks_rather_than_few() {
        let geometry = Geometry::from_budget(64 * MIB, 1).unwrap();
        assert_eq!((geometry.block_bytes(), geometry.blocks()), (256 << 10, 256));
        let geometry = Geometry::from_budget(4 * MIB, 1).unwrap();
        assert_eq!((geometry.block_bytes(), geometry.blocks()), (128 << 10, 32));
    }

    #[test]
    fn blocks_hold_the_largest_frame_while_memory_lasts() {
        let of = |budget, largest| Geometry::for_frames(budget, 2, largest).unwrap();
        assert_eq!(of(64 * MIB, 65_536).block_bytes(), 128 << 10);
        assert_eq!(of(64 * MIB, 185_000).block_bytes(), 256 << 10);
        assert_eq!(of(64 * MIB, 524_280).block_bytes(), 1 << 20);
        let small = of(4 * MIB, 524_280);
        assert_eq!((small.block_bytes(), small.blocks()), (256 << 10, 8));
        assert!(small.largest_frame() < 524_280);
        assert_eq!(of(2 * MIB, u32::MAX).block_bytes(), MIN_BLOCK_BYTES);
    }

    #[test]
    fn the_least_budget_is_named_and_is_enough() {
        let least = Geometry::from_budget(3 * MIB - 1, 3).unwrap_err().least;
        assert_eq!(least, 3 * MIB);
        assert_eq!(Geometry::from_budget(least, 3).unwrap().blocks(), MIN_BLOCKS);
    }

    proptest! {
        #[test]
        fn no_budget_is_exceeded(budget in any::<u64>(), shift in 0u32..64, workers in 0usize..300) {
            let budget = budget >> shift;
            if let Ok(geometry) = Geometry::from_budget(budget, workers) {
                let used = geometry.ring_bytes() * u64::try_from(workers.max(1)).unwrap();
                prop_assert!(used <= budget);
                prop_assert!(geometry.block_bytes().is_power_of_two());
                prop_assert!(geometry.blocks() >= MIN_BLOCKS);
            }
        }
    }
}
