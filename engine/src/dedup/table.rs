//! The table: shards of buckets of four slots, each slot one packet.
//!
//! ```text
//! hash: bits 63..20 tag, of which 51..32 are the check too; the low bits choose shard and bucket
//! slot: id    u64   tag (44) | source end (10) | destination end (10); 0 = never used
//!       time  u32   ticks of the last sighting
//!       state u128  see `state`; belongs to `id` where its check is that of the key
//! ```
//!
//! A look-up finds the slot by id and changes `state` by one compare-exchange; that is the moment
//! at which it is decided. A new packet takes an empty, a stale or else the oldest slot of its
//! bucket: first `id`, then `state`, each by compare-exchange. Between the two the slot has the
//! new id and the old state, and the check tells: whoever finds it so treats it as not there.
//!
//! What may go wrong, on purpose: two workers that claim different slots for one packet, a slot
//! overwritten within its window, a clock that jumps - each costs a duplicate. A packet is lost
//! to a collision only if the 44 bits of tag and the ends agree with those of another packet in
//! the same bucket, seen at another point within the window: 4 slots * 2^-44 a look-up at most,
//! even where the ends agree anyway (one bulk flow). That is one packet in 4 * 10^12.

use super::fingerprint::{Key, Translated, twin_ends};
use super::state::{CHECK_BITS, POINT_BITS, Sighting, State};
use super::sync::{AtomicU32, AtomicU64, AtomicU128, Ordering};

/// What the table says of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Report it.
    Fresh {
        /// Another packet was forgotten for it before its window had passed.
        evicted: bool,
    },
    /// A copy of what was reported at another point.
    Duplicate,
}

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

const SLOTS: usize = 4;
const SHARDS: usize = 16;
/// The least memory that a table takes, bytes: 64 buckets a shard.
pub const MIN_MEMORY: u64 = (SHARDS * 64 * size_of::<Bucket>()) as u64;
/// The most: 2^26 buckets.
const MAX_MEMORY: u64 = 1 << 33;
/// A window is so many ticks: the error of an entry's age is under a sixty-fourth.
const TICKS: u64 = 64;
/// Lost races after which a packet is simply reported.
const ATTEMPTS: usize = 16;

#[derive(Debug, Default)]
struct Slot {
    id: AtomicU64,
    time: AtomicU32,
    state: AtomicU128,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Bucket([Slot; SLOTS]);

const _: () = assert!(size_of::<Slot>() == 32 && size_of::<Bucket>() == 128);

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

    fn bucket(&self, hash: u64) -> &Bucket {
        let low = usize::try_from(hash & 0xffff_ffff).expect("usize has 32 bits or more");
        let shard = &self.shards[low % SHARDS];
        let at = (low / SHARDS) & (shard.len() - 1);
        &shard[at]
    }

    /// The packet is seen at `point` at `now_ns`. A point of 0 or past 2^11 has no number, and is
    /// always reported.
    pub fn observe(&self, key: Key, point: u16, now_ns: u64) -> Outcome {
        if point == 0 || u32::from(point) >> POINT_BITS != 0 {
            return Outcome::Fresh { evicted: false };
        }
        // Only differences count; the ticks may wrap.
        let now = u32::try_from((now_ns / self.tick_ns) & 0xffff_ffff).expect("masked");
        let bucket = self.bucket(key.hash());
        for _ in 0..ATTEMPTS {
            if let Some(outcome) = Self::try_observe(bucket, key, point, now) {
                return outcome;
            }
        }
        Outcome::Fresh { evicted: false }
    }

    /// Whether a packet is known that `key` is a copy of at `point`, with ends that a translation
    /// changed `ignored`: one of the same hash, whose other ends agree, and that was reported more
    /// often than copies of it were seen at this point. If so, this is one more; if not, nothing
    /// changes, and the same may be asked again.
    pub fn find_twin(&self, key: Key, ignored: Translated, point: u16, now_ns: u64) -> bool {
        if point == 0 || u32::from(point) >> POINT_BITS != 0 {
            return false;
        }
        let now = u32::try_from((now_ns / self.tick_ns) & 0xffff_ffff).expect("masked");
        let bucket = self.bucket(key.hash());
        for _ in 0..ATTEMPTS {
            if let Some(is_found) = Self::try_find(bucket, key, ignored, point, now) {
                return is_found;
            }
        }
        false
    }

    /// `None` when another worker changed the slot between look and compare-exchange.
    fn try_find(
        bucket: &Bucket,
        key: Key,
        ignored: Translated,
        point: u16,
        now: u32,
    ) -> Option<bool> {
        let mut best: Option<(&Slot, State, State, u32)> = None;
        for slot in &bucket.0 {
            // ORDER: Acquire, as in `try_observe`.
            let id = slot.id.load(Ordering::Acquire);
            let Some(ends) = twin_ends(id, key, ignored).filter(|_| id != 0) else { continue };
            let old = State(slot.state.load(Ordering::Acquire));
            let age = now.wrapping_sub(slot.time.load(Ordering::Relaxed));
            if old.check() != check(key) || !is_live(age) {
                continue;
            }
            let Some(new) = old.see_copy(point) else { continue };
            if best.is_none_or(|(_, _, _, most)| ends > most) {
                best = Some((slot, old, new, ends));
            }
        }
        let Some((slot, old, new, _)) = best else { return Some(false) };
        Self::exchange(slot, old, new)?;
        slot.time.store(now, Ordering::Relaxed);
        Some(true)
    }

    /// `None` when another worker changed the slot between look and compare-exchange.
    fn try_observe(bucket: &Bucket, key: Key, point: u16, now: u32) -> Option<Outcome> {
        // The slot to take if the packet is not there: never used, else stale, else the oldest.
        let mut victim: Option<(&Slot, u64, u32)> = None;
        for slot in &bucket.0 {
            // ORDER: Acquire, pairs with the claim below: who sees the id sees the state that
            // stood there before it or a later one.
            let id = slot.id.load(Ordering::Acquire);
            // Relaxed: an age that is a moment late moves the window by that moment.
            let age = now.wrapping_sub(slot.time.load(Ordering::Relaxed));
            if id != 0 && id == key.id() {
                return Self::see(slot, key, point, now, is_live(age));
            }
            // Older is better; an unused slot is older than all.
            let rank = if id == 0 { u32::MAX } else { age.min(u32::MAX - 1) };
            if victim.is_none_or(|(_, _, best)| rank > best) {
                victim = Some((slot, id, rank));
            }
        }
        let (slot, old, rank) = victim.expect("a bucket has slots");
        Self::claim(slot, old, key, point, now)
            .map(|()| Outcome::Fresh { evicted: old != 0 && is_live(rank) })
    }

    fn see(slot: &Slot, key: Key, point: u16, now: u32, live: bool) -> Option<Outcome> {
        let old = State(slot.state.load(Ordering::Acquire));
        if old.check() != check(key) || !live {
            // Claimed by another worker that has not written its state yet, or from another time.
            Self::start(slot, old, key, point, now)?;
            return Some(Outcome::Fresh { evicted: false });
        }
        let (new, outcome) = match old.see(point) {
            Sighting::Fresh(new) => (new, Outcome::Fresh { evicted: false }),
            Sighting::Duplicate(new) => (new, Outcome::Duplicate),
            Sighting::Overflow => return Some(Outcome::Fresh { evicted: false }),
        };
        Self::exchange(slot, old, new)?;
        slot.time.store(now, Ordering::Relaxed);
        Some(outcome)
    }

    fn claim(slot: &Slot, old_id: u64, key: Key, point: u16, now: u32) -> Option<()> {
        let old = State(slot.state.load(Ordering::Acquire));
        // ORDER: AcqRel, pairs with the loads of `id`: the new owner's later state is written
        // after it, and what was read of the slot before is still true if it succeeds.
        slot.id.compare_exchange(old_id, key.id(), Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Self::start(slot, old, key, point, now)
    }

    /// The first sighting: the slot's id is the key's already.
    fn start(slot: &Slot, old: State, key: Key, point: u16, now: u32) -> Option<()> {
        Self::exchange(slot, old, State::first(check(key), point))?;
        slot.time.store(now, Ordering::Relaxed);
        Some(())
    }

    fn exchange(slot: &Slot, old: State, new: State) -> Option<()> {
        // ORDER: AcqRel, pairs with itself in other workers: each change of a state is made on
        // the one before it, so every sighting is counted once.
        slot.state
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(())
    }
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

fn check(key: Key) -> u32 {
    u32::try_from(key.hash() >> 32 & ((1 << CHECK_BITS) - 1)).expect("masked")
}

/// An age is a difference of ticks that may be negative: workers' clocks differ by a batch.
fn is_live(age: u32) -> bool {
    u64::from(age.cast_signed().unsigned_abs()) <= TICKS
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 100_000_000;
    const FRESH: Outcome = Outcome::Fresh { evicted: false };

    fn table() -> Table {
        Table::new(MIN_MEMORY, WINDOW).unwrap()
    }

    #[test]
    fn another_point_is_a_copy_and_the_same_point_is_a_repeat() {
        let table = table();
        let key = Key::for_test(1, 5, 6);
        assert_eq!(table.observe(key, 1, 0), FRESH);
        assert_eq!(table.observe(key, 2, 10), Outcome::Duplicate);
        assert_eq!(table.observe(key, 1, 20), FRESH, "a repeat at the first point");
        assert_eq!(table.observe(key, 2, 30), Outcome::Duplicate, "the repeat's copy");
        assert_eq!(table.observe(key, 2, 40), FRESH, "one more than the first point saw");
    }

    #[test]
    fn the_order_of_two_points_does_not_matter() {
        let table = table();
        let key = Key::for_test(1, 5, 6);
        for (point, expected) in
            [(2, FRESH), (2, FRESH), (1, Outcome::Duplicate), (1, Outcome::Duplicate), (1, FRESH)]
        {
            assert_eq!(table.observe(key, point, 0), expected);
        }
    }

    #[test]
    fn a_window_after_the_last_sighting_it_is_forgotten() {
        let table = table();
        let key = Key::for_test(1, 5, 6);
        assert_eq!(table.observe(key, 1, 0), FRESH);
        assert_eq!(table.observe(key, 2, WINDOW), Outcome::Duplicate);
        assert_eq!(table.observe(key, 3, 2 * WINDOW), Outcome::Duplicate);
        assert_eq!(table.observe(key, 4, 3 * WINDOW + WINDOW / 32), FRESH);
    }

    #[test]
    fn a_clock_that_steps_back_a_little_changes_nothing() {
        let table = table();
        let key = Key::for_test(1, 5, 6);
        assert_eq!(table.observe(key, 1, 10 * WINDOW), FRESH);
        assert_eq!(table.observe(key, 2, 10 * WINDOW - WINDOW / 2), Outcome::Duplicate);
    }

    const SOURCE: Translated = Translated { source: true, destination: false };
    const BOTH: Translated = Translated { source: true, destination: true };

    #[test]
    fn one_equal_end_is_a_copy_only_where_the_other_is_ignored() {
        let table = table();
        let (pod, node) = (Key::for_test(1, 5, 6), Key::for_test(1, 9, 6));
        assert!(!table.find_twin(node, SOURCE, 3, 0), "before its twin");
        assert_eq!(table.observe(pod, 1, 0), FRESH);
        assert_eq!(table.observe(Key::for_test(1, 7, 6), 2, 0), FRESH, "another pod's heartbeat");
        assert!(!table.find_twin(Key::for_test(1, 9, 8), SOURCE, 3, 0), "the other end differs");
        assert!(!table.find_twin(Key::for_test(1, 5, 8), SOURCE, 3, 0), "the other end differs");
        assert!(table.find_twin(Key::for_test(1, 9, 8), BOTH, 4, 0), "no end in common");
        // One copy for each of the two that were reported, and not a third.
        assert!(table.find_twin(node, SOURCE, 3, 0));
        assert!(table.find_twin(node, SOURCE, 3, 0));
        assert!(!table.find_twin(node, SOURCE, 3, 0));
        assert!(!table.find_twin(node, SOURCE, 3, 0), "asking changed nothing");
        assert!(!table.find_twin(node, SOURCE, 0, 0), "a point without number");
        assert!(!table.find_twin(node, SOURCE, 5, 3 * WINDOW), "forgotten");
    }

    #[test]
    fn a_full_bucket_forgets_the_oldest_and_says_so() {
        let table = table();
        let key = |tag: u64| Key::for_test(tag << 52, 5, 6); // the low bits choose the bucket
        for tag in 1..=4 {
            assert_eq!(table.observe(key(tag), 1, tag * 10_000_000), FRESH);
        }
        assert_eq!(table.observe(key(5), 1, 50_000_000), Outcome::Fresh { evicted: true });
        assert_eq!(table.observe(key(2), 2, 50_000_000), Outcome::Duplicate, "still there");
        assert_eq!(table.observe(key(1), 2, 50_000_000), Outcome::Fresh { evicted: true });
        // Past the window nothing is lost by overwriting.
        assert_eq!(table.observe(key(9), 1, 50_000_000 + 2 * WINDOW), FRESH);
    }

    #[test]
    fn a_point_without_number_is_reported() {
        let table = table();
        for point in [0, 1 << 11, u16::MAX] {
            assert_eq!(table.observe(Key::for_test(1, 5, 6), point, 0), FRESH);
            assert_eq!(table.observe(Key::for_test(1, 5, 6), point, 0), FRESH);
        }
    }

    #[test]
    fn memory_is_bounded_both_ways() {
        assert!(matches!(Table::new(MIN_MEMORY - 1, WINDOW), Err(TableError::TooSmall { .. })));
        assert!(matches!(Table::new(u64::MAX, WINDOW), Err(TableError::TooLarge { .. })));
        let table = Table::new(3 << 20, WINDOW).unwrap();
        assert_eq!(table.memory(), 2 << 20, "the power of two below");
    }

    #[test]
    fn workers_that_race_report_each_packet_once() {
        let table = Table::new(16 << 20, WINDOW).unwrap();
        let reported: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..=2u16)
                .map(|point| {
                    let table = &table;
                    scope.spawn(move || {
                        let mut fresh = 0;
                        for n in 0..50_000u64 {
                            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                            let key = Key::for_test(hash, 5, 6);
                            fresh += u64::from(table.observe(key, point, 0) != Outcome::Duplicate);
                        }
                        fresh
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // A lost packet would make it fewer; the rare race of two claims may make it more.
        assert!((50_000..50_100).contains(&reported), "{reported}");
    }
}
