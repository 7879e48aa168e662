//! The table: shards of buckets, and which one a packet belongs to.
//!
//! ```text
//! key --low bits of its hash: shard, bucket--> Bucket --> Fresh | Duplicate, twin or not
//! time --a 64th of the window is a tick--^
//! ```
//!
//! A packet is lost to a collision only if another of different content has all the 64 bits of its
//! hash and its ends' fingerprints, and was seen at another point within the window. A look-up meets
//! as many others as the table has live entries, N at most; by the union bound that is
//! N * 2^-64 a look-up, even where the ends agree anyway (one bulk flow): 2^-45 for the 2^19 slots of
//! 16 MiB, one packet in 3 * 10^13. Of packets of equal content from other ends, a look-up meets the
//! n that were reported within the window, and is wrong with n * 2^-29 at most, if one end is the
//! same, else n * 2^-38. A search for a twin ignores an end; the first bound is its, and for equal
//! content it is right to within the fingerprint of the other end, 9 bits - then the copy of one of
//! two equal packets is counted as the other's, and the numbers are still right. In all cases: what a
//! collision silences was reported at another point just before, once for each; at one point nothing
//! is ever silenced by what was seen there.
//!
//! Of identical packets that follow each other for longer than a window, two things are not known:
//! whether copies that a point has missed will still come (what a ring dropped is expected there
//! until the stream has paused for a window; as many later ones, if seen there alone, would be silent),
//! and, of a point that joins late, how far it is behind (it is reported from then on: one more copy
//! for each packet that was on its way).

pub use super::bucket::Outcome;
use super::bucket::{Bucket, SLOTS, TICKS};
use super::key::{Key, Translated};
use super::state::POINT_BITS;

/// The table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Too little memory was given.
    #[error("{given} bytes of dedup memory are too few: at least {MIN_MEMORY} are needed")]
    TooSmall {
        /// What was given.
        given: u64,
    },
    /// More than the machine can have.
    #[error("{given} bytes of dedup memory cannot be had: give less")]
    TooLarge {
        /// What was given.
        given: u64,
    },
}

const SHARDS: usize = 16;
/// Miri takes seconds for each thousand.
const LEAST_BUCKETS: usize = if cfg!(miri) { 1 } else { 64 };
/// The least memory that a table takes, bytes: 64 buckets a shard.
pub const MIN_MEMORY: u64 = (SHARDS * LEAST_BUCKETS * size_of::<Bucket>()) as u64;
/// The most: 2^26 buckets.
const MAX_MEMORY: u64 = 1 << 33;

const _: () = assert!(size_of::<Bucket>() == 32 * SLOTS);

/// See the module.
#[derive(Debug)]
pub struct Table {
    shards: Vec<Box<[Bucket]>>,
    bucket_mask: u64,
    tick_ns: u64,
}

impl Table {
    /// A table of at most `memory` bytes that remembers a packet for `window_ns`.
    ///
    /// # Errors
    ///
    /// Memory outside of what works.
    pub fn new(memory: u64, window_ns: u64) -> Result<Self, TableError> {
        check_memory(memory)?;
        let per_shard = memory / (SHARDS * size_of::<Bucket>()) as u64;
        let buckets = 1u64 << per_shard.ilog2();
        let shard = || (0..buckets).map(|_| Bucket::default()).collect();
        Ok(Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            bucket_mask: buckets - 1,
            tick_ns: (window_ns / TICKS).max(1),
        })
    }

    /// Bytes that the table has taken.
    #[must_use]
    pub fn memory(&self) -> u64 {
        SHARDS as u64 * (self.bucket_mask + 1) * size_of::<Bucket>() as u64
    }

    #[inline]
    fn bucket(&self, hash: u64) -> &Bucket {
        let low = usize::try_from(hash & 0xffff_ffff).expect("usize has 32 bits or more");
        let shard = &self.shards[low % SHARDS];
        let at = (low / SHARDS) & (shard.len() - 1);
        &shard[at]
    }

    /// Only differences count; the ticks may wrap.
    fn ticks(&self, now_ns: u64) -> u64 {
        now_ns / self.tick_ns
    }

    /// A look-up of this key is about to come.
    #[inline]
    pub fn prefetch(&self, key: Key) {
        self.bucket(key.hash()).prefetch();
    }

    /// The packet is seen at `point` at `now_ns`. A point of 0 or past 2^11 has no number, and is
    /// always reported.
    pub fn observe(&self, key: Key, point: u16, now_ns: u64) -> Outcome {
        if !has_number(point) {
            return Outcome::Fresh { evicted: false };
        }
        self.bucket(key.hash()).observe(key, point, self.ticks(now_ns))
    }

    /// Whether a packet is known that `key` is a copy of at `point`, with ends that a translation
    /// changed `ignored`: one of the same hash, whose other ends agree while those may be what was
    /// translated ([`Translated`]), and that was reported more often than copies of it were seen at this point. If so, this is one more; if not, nothing
    /// changes, and the same may be asked again.
    pub fn find_twin(&self, key: Key, ignored: Translated, point: u16, now_ns: u64) -> bool {
        has_number(point)
            && self.bucket(key.hash()).find_twin(key, ignored, point, self.ticks(now_ns))
    }
}

fn has_number(point: u16) -> bool {
    point != 0 && u32::from(point) >> POINT_BITS == 0
}

/// Whether a table of this memory can be made.
///
/// # Errors
///
/// Less than [`MIN_MEMORY`], or more than any node should give.
pub fn check_memory(memory: u64) -> Result<(), TableError> {
    match memory {
        given if given < MIN_MEMORY => Err(TableError::TooSmall { given }),
        given if given > MAX_MEMORY => Err(TableError::TooLarge { given }),
        _ => Ok(()),
    }
}
