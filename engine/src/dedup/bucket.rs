//! A bucket: four slots, each one packet, and all that workers do to them.
//!
//! ```text
//! slot: id    u64   tag (40) | generation (4) | ends (20); 0 = never used
//!       time  u64   both ends (20) | age of the first report (8) | last sighting (36), in ticks
//!       state u128  check, generation, counts; see `state`
//! claim: id (generation + 1) --> time --> state (of that generation), one step after the other
//! ```
//!
//! A look-up finds the slot by id and changes `state` by one compare-exchange; that is the moment
//! at which it is decided. A new packet takes an empty, a stale or else the oldest slot: it is the
//! owner by its compare-exchange of `id`, and the slot's counts are its own from that of `state`.
//! Between the two, generations differ; who finds the slot so for the same packet does the rest
//! itself. A packet that comes again after its window claims its own slot again.
//!
//! What is read of a slot belongs together: the id is read first and last, and a state has the
//! generation of its id. `time` is written before `state` and read after it; if it is the next
//! owner's, then so is the id that is read last. So no count is ever given to another packet, and
//! no count of a time long past is taken for a new one.
//!
//! What may go wrong, on purpose: two workers that claim different slots for one packet, a slot
//! overwritten within its window, a clock that jumps - each costs a duplicate.

use super::key::{EXACT_BITS, Id, Key, Translated};
use super::prefetch::prefetch;
use super::state::{Sighting, State};
use super::sync::{AtomicU64, AtomicU128, Ordering};

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

pub(super) const SLOTS: usize = 4;
/// A window is so many ticks: the error of an entry's age is under a sixty-fourth.
pub(super) const TICKS: u64 = 64;
/// Lost races after which a packet is simply reported.
const ATTEMPTS: usize = 16;

const LAST_BITS: u32 = 36;
const SPAN_BITS: u32 = 8;
const MAX_SPAN: u64 = (1 << SPAN_BITS) - 1;
const LAST_MASK: u64 = (1 << LAST_BITS) - 1;
const _: () = assert!(LAST_BITS + SPAN_BITS + EXACT_BITS == 64);

/// The second word of a slot. The ticks wrap: after three years with a window of 100 ms.
#[derive(Clone, Copy)]
struct Time(u64);

impl Time {
    fn new(exact: u64, span: u64, now: u64) -> Self {
        Self(exact << (64 - EXACT_BITS) | span.min(MAX_SPAN) << LAST_BITS | now & LAST_MASK)
    }

    fn exact(self) -> u64 {
        self.0 >> (64 - EXACT_BITS)
    }

    /// From the last sighting until now. May be negative: workers' clocks differ by a batch.
    fn age(self, now: u64) -> i64 {
        (now.wrapping_sub(self.0) << (64 - LAST_BITS)).cast_signed() >> (64 - LAST_BITS)
    }

    fn is_live(self, now: u64) -> bool {
        self.age(now).unsigned_abs() <= TICKS
    }

    /// From the first report until now.
    fn span(self, now: u64) -> u64 {
        (self.0 >> LAST_BITS & MAX_SPAN).saturating_add_signed(self.age(now))
    }

    /// After a sighting at this time; `None` if it is no later than the last.
    fn seen(self, now: u64) -> Option<Self> {
        (self.age(now) > 0).then(|| Self::new(self.exact(), self.span(now), now))
    }
}

#[derive(Debug)]
struct Slot {
    id: AtomicU64,
    time: AtomicU64,
    state: AtomicU128,
}

/// What was in a slot at one moment.
#[derive(Clone, Copy)]
struct View {
    id: Id,
    time: Time,
    state: State,
}

impl View {
    /// False between a claim's first and last step.
    fn is_started(self) -> bool {
        self.state.generation() == self.id.generation()
    }

    /// Longer after the first report than its copies take.
    fn is_late(self, now: u64) -> bool {
        self.time.span(now) > TICKS
    }
}

impl Slot {
    fn new() -> Self {
        Self { id: AtomicU64::new(0), time: AtomicU64::new(0), state: AtomicU128::new(0) }
    }

    /// The rest of the slot with this id; `None` when it was claimed meanwhile.
    fn view(&self, id: Id) -> Option<View> {
        // ORDER: Acquire, pairs with `exchange`: the time written before this state is seen.
        let state = State(self.state.load(Ordering::Acquire));
        // ORDER: Acquire, pairs with the store in `start`: if this is a later owner's, so is the id
        // that is read next.
        let time = Time(self.time.load(Ordering::Acquire));
        let is_same = self.id.load(Ordering::Acquire) == id.0;
        is_same.then_some(View { id, time, state })
    }

    /// Counts a sighting; `None` if another worker did since the view.
    fn count(&self, view: View, state: State, now: u64) -> Option<()> {
        if state != view.state {
            self.exchange(view.state, state)?;
        }
        if let Some(time) = view.time.seen(now) {
            // If it fails, another worker has made it later, or the slot is another's.
            let _ = self.time.compare_exchange(
                view.time.0,
                time.0,
                Ordering::Release,
                Ordering::Relaxed,
            );
        }
        Some(())
    }

    /// Makes the slot the key's; `None` if another worker was first.
    fn claim(&self, id: Id, key: Key, point: u16, now: u64) -> Option<()> {
        let state = State(self.state.load(Ordering::Acquire));
        let new = key.id(id.next_generation());
        // ORDER: AcqRel, pairs with the loads of `id`: the new owner's time and state are written
        // after it.
        self.id.compare_exchange(id.0, new.0, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.start(new, state, key, point, now)
    }

    /// The first sighting: the slot's id is the key's already, its state another's.
    fn start(&self, id: Id, old: State, key: Key, point: u16, now: u64) -> Option<()> {
        // ORDER: Release, pairs with `view`.
        self.time.store(Time::new(key.exact(), 0, now).0, Ordering::Release);
        self.exchange(old, State::first(key.check(), id.generation(), point))
    }

    fn exchange(&self, old: State, new: State) -> Option<()> {
        // ORDER: AcqRel, pairs with itself in other workers: each change of a state is made on
        // the one before it, so every sighting is counted once.
        self.state
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(())
    }
}

/// See the module. As many slots as fill two cache lines; fewer in models.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Bucket<const N: usize = SLOTS>([Slot; N]);

impl<const N: usize> Default for Bucket<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Slot::new()))
    }
}

impl<const N: usize> Bucket<N> {
    /// Asks for its cache lines, of which the first look-up will need both.
    #[inline]
    pub(super) fn prefetch(&self) {
        for slot in self.0.iter().step_by(2) {
            prefetch(slot);
        }
    }

    /// The packet is seen at `point`, which has a number, at `now` (ticks).
    pub(super) fn observe(&self, key: Key, point: u16, now: u64) -> Outcome {
        (0..ATTEMPTS)
            .find_map(|_| self.try_observe(key, point, now))
            .unwrap_or(Outcome::Fresh { evicted: false })
    }

    /// `None` when another worker changed the slot between look and compare-exchange.
    fn try_observe(&self, key: Key, point: u16, now: u64) -> Option<Outcome> {
        const FRESH: Outcome = Outcome::Fresh { evicted: false };
        // The slot to take if the packet is not there: never used, else the oldest.
        let mut victim: Option<(&Slot, Id, u64)> = None;
        for slot in &self.0 {
            // ORDER: Acquire, pairs with `claim`: what a view reads after it is that owner's or a
            // later one's, or the state before it, which has another generation.
            let id = Id(slot.id.load(Ordering::Acquire));
            if id.is_of(key) {
                let view = slot.view(id)?;
                if !view.is_started() {
                    return slot.start(id, view.state, key, point, now).map(|()| FRESH);
                }
                if view.state.check() == key.check() && view.time.exact() == key.exact() {
                    if !view.time.is_live(now) {
                        return slot.claim(id, key, point, now).map(|()| FRESH);
                    }
                    let (state, outcome) = match view.state.see(point, view.is_late(now)) {
                        Sighting::Fresh(state) => (state, FRESH),
                        Sighting::Duplicate(state) => (state, Outcome::Duplicate),
                        Sighting::Overflow => return Some(FRESH),
                    };
                    return slot.count(view, state, now).map(|()| outcome);
                }
            }
            // Relaxed: an age that is a moment late moves the window by that moment.
            let rank = match id.is_used() {
                true => Time(slot.time.load(Ordering::Relaxed)).age(now).unsigned_abs(),
                false => u64::MAX,
            };
            if victim.is_none_or(|(_, _, best)| rank > best) {
                victim = Some((slot, id, rank));
            }
        }
        let (slot, id, rank) = victim.expect("a bucket has slots");
        let evicted = id.is_used() && rank <= TICKS;
        slot.claim(id, key, point, now).map(|()| Outcome::Fresh { evicted })
    }

    /// Whether there is a twin; see [`super::Table::find_twin`].
    pub(super) fn find_twin(&self, key: Key, ignored: Translated, point: u16, now: u64) -> bool {
        (0..ATTEMPTS).find_map(|_| self.try_find(key, ignored, point, now)).unwrap_or(false)
    }

    /// `None` when another worker changed the slot between look and compare-exchange.
    fn try_find(&self, key: Key, ignored: Translated, point: u16, now: u64) -> Option<bool> {
        let mut best: Option<(&Slot, View, State, u32)> = None;
        for slot in &self.0 {
            // ORDER: Acquire, as in `try_observe`.
            let id = Id(slot.id.load(Ordering::Acquire));
            let Some(ends) = id.twin_ends(key, ignored).filter(|_| id.is_used()) else { continue };
            let view = slot.view(id)?;
            if !view.is_started() || view.state.check() != key.check() || !view.time.is_live(now) {
                continue;
            }
            // With both ends equal it is the packet itself, not a translation of it: however many
            // of it there are, only its own counts make it a copy.
            let late = view.is_late(now);
            let seen = match (ends, view.state.see(point, late)) {
                (2, Sighting::Duplicate(state)) => Some(state),
                (2, _) => None,
                _ => view.state.see_copy(point, late),
            };
            let Some(state) = seen else { continue };
            if best.is_none_or(|(_, _, _, most)| ends > most) {
                best = Some((slot, view, state, ends));
            }
        }
        let Some((slot, view, state, _)) = best else { return Some(false) };
        slot.count(view, state, now).map(|()| true)
    }
}
