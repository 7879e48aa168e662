//! Packet numbers (`npkt`): what is missing, what came twice.
//!
//! ```text
//! number --note--> New | Reordered | Duplicate | Late        lost() = numbers skipped, not come yet
//! ```
//!
//! Numbers count from 1 at each STARTCAP and wrap at 2^32.

/// Numbers that are remembered behind the newest.
const WINDOW: u32 = 4_096;
/// So many numbers from beyond the window, with none inside it, mean that counting began anew.
const RESTART: u32 = 256;

/// What a number tells about its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Newer than all before.
    New,
    /// Older than the newest, not seen before.
    Reordered,
    /// Seen before.
    Duplicate,
    /// So old that nobody knows whether it was seen.
    Late,
}

/// The numbers of one STARTCAP.
#[derive(Debug)]
pub(super) struct Numbering {
    newest: u32,
    lost: u64,
    late_in_a_row: u32,
    /// One bit for each number of the window, at `number % WINDOW`.
    seen: Box<[u64]>,
}

impl Numbering {
    pub(super) fn new() -> Self {
        let mut numbering = Self {
            newest: 0,
            lost: 0,
            late_in_a_row: 0,
            seen: vec![0; (WINDOW / 64) as usize].into_boxed_slice(),
        };
        // What lies before the first number counts as seen: it is not waited for.
        numbering.seen.fill(u64::MAX);
        numbering
    }

    /// Numbers skipped that have not come yet.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn note(&mut self, number: u32) -> Seen {
        if number == 0 && self.newest == 0 {
            return Seen::New; // a daemon that does not count
        }
        let ahead = number.wrapping_sub(self.newest);
        let behind = self.newest.wrapping_sub(number);
        if ahead != 0 && ahead.cast_signed() > 0 {
            self.late_in_a_row = 0;
            self.lost = self.lost.saturating_add(u64::from(ahead - 1));
            self.advance(number, ahead);
            return Seen::New;
        }
        if behind >= WINDOW {
            self.late_in_a_row += 1;
            if self.late_in_a_row < RESTART {
                return Seen::Late;
            }
            self.late_in_a_row = 0;
            self.newest = number;
            self.seen.fill(u64::MAX);
            return Seen::New;
        }
        self.late_in_a_row = 0;
        if self.bit(number) {
            return Seen::Duplicate;
        }
        self.set(number, true);
        self.lost = self.lost.saturating_sub(1);
        Seen::Reordered
    }

    fn advance(&mut self, number: u32, ahead: u32) {
        if ahead >= WINDOW {
            self.seen.fill(0);
        } else {
            for skipped in 1..ahead {
                self.set(self.newest.wrapping_add(skipped), false);
            }
        }
        self.set(number, true);
        self.newest = number;
    }

    fn bit(&self, number: u32) -> bool {
        let at = number % WINDOW;
        self.seen[(at / 64) as usize] & (1 << (at % 64)) != 0
    }

    fn set(&mut self, number: u32, seen: bool) {
        let at = number % WINDOW;
        let mask = 1 << (at % 64);
        let word = &mut self.seen[(at / 64) as usize];
        *word = if seen { *word | mask } else { *word & !mask };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_gap_is_lost_until_it_is_filled() {
        let mut numbering = Numbering::new();
        let seen = [1, 2, 5, 3, 3, 5, 6].map(|number| numbering.note(number));
        use Seen::{Duplicate, New, Reordered};
        assert_eq!(seen, [New, New, New, Reordered, Duplicate, Duplicate, New]);
        assert_eq!(numbering.lost(), 1);
    }

    #[test]
    fn the_first_packets_can_be_lost_too() {
        let mut numbering = Numbering::new();
        assert_eq!(numbering.note(11), Seen::New);
        assert_eq!(numbering.lost(), 10);
    }

    #[test]
    fn numbers_wrap() {
        let mut numbering = Numbering::new();
        numbering.newest = u32::MAX - 1;
        for number in [u32::MAX, 0, 1] {
            assert_eq!(numbering.note(number), Seen::New);
        }
        assert_eq!((numbering.lost(), numbering.note(u32::MAX)), (0, Seen::Duplicate));
    }

    #[test]
    fn a_daemon_that_does_not_count_loses_nothing() {
        let mut numbering = Numbering::new();
        for _ in 0..10 {
            assert_eq!(numbering.note(0), Seen::New);
        }
        assert_eq!(numbering.lost(), 0);
    }

    #[test]
    fn a_leap_by_mistake_is_recovered_from() {
        let mut numbering = Numbering::new();
        numbering.note(1 << 30);
        let late = (1..1_000).filter(|number| numbering.note(*number) == Seen::Late).count();
        assert_eq!(late, RESTART as usize - 1);
    }

    proptest! {
        #[test]
        fn a_set_of_all_numbers_says_the_same(numbers in proptest::collection::vec(1u32..500, 1..400)) {
            let mut numbering = Numbering::new();
            let mut all = HashSet::new();
            for number in numbers {
                let duplicate = !all.insert(number);
                prop_assert_eq!(numbering.note(number) == Seen::Duplicate, duplicate);
                let newest = u64::from(*all.iter().max().unwrap());
                prop_assert_eq!(numbering.lost(), newest - all.len() as u64);
            }
        }
    }
}
