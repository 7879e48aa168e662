//! Dense numbers for links, 1..=1022: they name a link in the dedup table.
//!
//! ```text
//! link appears --take--> the number free for longest      link goes --release--> end of the queue
//! ```
//!
//! First in, first out: entries that a dead link left in the dedup table have the most time to
//! expire before its number means another link. One more number is shared by all links that have
//! none of their own, or are not known yet ([`SHARED_SLOT`]).

use std::collections::{BTreeSet, HashMap, VecDeque};

/// The number of links without one: those that netlink has not told of yet, and those that came when
/// all were taken. They see each other's packets as repeats, which costs duplicates, but nobody
/// else's: what a new pod sends is a copy at the next point.
pub const SHARED_SLOT: u16 = SLOTS + 1;

/// The most links that have numbers at once. A point is twice the number, and one for "in"; the
/// table's points have 11 bits.
const SLOTS: u16 = 1022;
const _: () = assert!(SHARED_SLOT * 2 + 1 < 1 << 11);

#[derive(Debug)]
pub(super) struct Slots {
    taken: HashMap<u32, u16>,
    free: VecDeque<u16>,
    /// Links that came when no number was free, by ifindex: the oldest gets the next one.
    waiting: BTreeSet<u32>,
}

impl Default for Slots {
    fn default() -> Self {
        Self { taken: HashMap::new(), free: (1..=SLOTS).collect(), waiting: BTreeSet::new() }
    }
}

impl Slots {
    /// The link's number, 0 if it has none.
    pub(super) fn get(&self, ifindex: u32) -> u16 {
        self.taken.get(&ifindex).copied().unwrap_or(0)
    }

    /// Gives the link a number, if it has none yet and one is free.
    pub(super) fn take(&mut self, ifindex: u32) {
        if self.taken.contains_key(&ifindex) {
            return;
        }
        if let Some(slot) = self.free.pop_front() {
            self.taken.insert(ifindex, slot);
        } else {
            self.waiting.insert(ifindex);
        }
    }

    /// Takes the number back, and gives it to a link that waits for one.
    pub(super) fn release(&mut self, ifindex: u32) {
        self.waiting.remove(&ifindex);
        if let Some(slot) = self.taken.remove(&ifindex) {
            self.free.push_back(slot);
            if let Some(next) = self.waiting.pop_first() {
                self.take(next);
            }
        }
    }

    /// Releases all numbers but those of links that live.
    pub(super) fn retain(&mut self, is_alive: impl Fn(u32) -> bool) {
        let dead: BTreeSet<u32> = self.taken.keys().copied().filter(|&i| !is_alive(i)).collect();
        self.waiting.retain(|&ifindex| is_alive(ifindex));
        for ifindex in dead {
            self.release(ifindex);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_kept_for_life_and_reused_last() {
        let mut slots = Slots::default();
        slots.take(7);
        slots.take(8);
        slots.take(7);
        assert_eq!((slots.get(7), slots.get(8), slots.get(9)), (1, 2, 0));
        slots.release(7);
        slots.take(9);
        assert_eq!(slots.get(9), 3, "the number just given back rests");
        for ifindex in 100..100 + u32::from(SLOTS) - 3 {
            slots.take(ifindex);
        }
        slots.take(10);
        assert_eq!(slots.get(10), 1, "the only one left");
    }

    #[test]
    fn who_came_too_late_waits_for_the_next_number() {
        let mut slots = Slots::default();
        for ifindex in 1..=u32::from(SLOTS) + 2 {
            slots.take(ifindex);
        }
        let last = u32::from(SLOTS);
        assert_eq!((slots.get(last), slots.get(last + 1), slots.get(last + 2)), (SLOTS, 0, 0));
        slots.release(last + 1);
        slots.release(5);
        assert_eq!(slots.get(last + 2), 5);
        slots.retain(|ifindex| ifindex == last + 2);
        assert_eq!((slots.get(last + 2), slots.get(6)), (5, 0));
        assert_eq!(slots.free.len(), usize::from(SLOTS) - 1);
    }

    #[test]
    fn a_life_of_ten_thousand_links_leaves_nothing() {
        let mut slots = Slots::default();
        for ifindex in 0..10_000 {
            slots.take(ifindex);
            slots.release(ifindex);
        }
        assert!(slots.taken.is_empty() && slots.waiting.is_empty());
        assert_eq!(slots.free.len(), usize::from(SLOTS));
    }
}
