//! What is remembered of one packet, in 128 bits so that one compare-exchange changes all of it.
//!
//! ```text
//! bits 127..108  check     20 bits of the key: the state belongs to the slot's id
//!      107..102  reports   how often it was reported, at most 63
//!      101..0    6 places  of 17 bits: point (11) and deficit (6); point 0 = free
//! ```
//!
//! The rule is "report when the count at this point exceeds what has been reported". With
//! `deficit = reports - count`, a point with deficit 0 reports (and every other point falls one
//! behind), a point with a deficit catches up by one. Only the differences are stored, so a stream
//! of identical packets can go on for ever. A deficit that would pass 63 stays there, and a point
//! that finds no place is always reported: both err towards a duplicate.

/// Bits of a point's number; the table's points are below 2^11.
pub(super) const POINT_BITS: u32 = 11;
const DEFICIT_BITS: u32 = 6;
const PLACE_BITS: u32 = POINT_BITS + DEFICIT_BITS;
const PLACES: u32 = 6;
const MAX_DEFICIT: u128 = (1 << DEFICIT_BITS) - 1;
const MAX_REPORTS: u128 = 63;
const REPORTS_SHIFT: u32 = PLACES * PLACE_BITS;
const CHECK_SHIFT: u32 = REPORTS_SHIFT + 6;
/// Bits of the check.
pub(super) const CHECK_BITS: u32 = 20;
const _: () = assert!(CHECK_SHIFT + CHECK_BITS == 128);

/// One entry's counts; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(pub(super) u128);

/// What a sighting means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    /// Not reported often enough yet: report.
    Fresh(State),
    /// A copy of what was reported elsewhere.
    Duplicate(State),
    /// All places are taken by other points: report, and remember nothing.
    Overflow,
}

impl State {
    /// The state after the first report, at `point`.
    pub(super) fn first(check: u32, point: u16) -> Self {
        Self(u128::from(check) << CHECK_SHIFT | 1 << REPORTS_SHIFT | place(point, 0))
    }

    pub(super) fn check(self) -> u32 {
        u32::try_from(self.0 >> CHECK_SHIFT).expect("20 bits are left")
    }

    fn reports(self) -> u128 {
        self.0 >> REPORTS_SHIFT & MAX_REPORTS
    }

    /// The packet is seen at `point` (not 0) once more.
    pub(super) fn see(self, point: u16) -> Sighting {
        let mut free = None;
        for at in (0..PLACES).map(|index| index * PLACE_BITS) {
            let here = self.0 >> at & ((1 << PLACE_BITS) - 1);
            let deficit = here & MAX_DEFICIT;
            if here >> DEFICIT_BITS == u128::from(point) {
                return match deficit {
                    0 => Sighting::Fresh(self.report_from(point)),
                    _ => Sighting::Duplicate(Self(self.0 - (1 << at))),
                };
            }
            if here == 0 {
                free = Some(at);
                break; // places are taken from the lowest, and never given back
            }
        }
        let Some(at) = free else { return Sighting::Overflow };
        // Never seen here: this is its first copy of `reports` so far, at least one.
        let deficit = self.reports().saturating_sub(1);
        Sighting::Duplicate(Self(self.0 | (place(point, deficit) << at)))
    }

    /// Whether this packet, reported so often, may be what a translated copy at `point` is a copy
    /// of: it was reported more often than copies were seen there.
    pub(super) fn see_copy(self, point: u16) -> Option<Self> {
        match self.see(point) {
            Sighting::Duplicate(next) => Some(next),
            // Of more than the counts can tell apart, or of a packet that is at many points.
            Sighting::Fresh(_) => (self.reports() == MAX_REPORTS).then_some(self),
            Sighting::Overflow => Some(self),
        }
    }

    fn report_from(self, point: u16) -> Self {
        let mut next = self.0;
        if self.reports() < MAX_REPORTS {
            next += 1 << REPORTS_SHIFT;
        }
        for at in (0..PLACES).map(|index| index * PLACE_BITS) {
            let here = self.0 >> at & ((1 << PLACE_BITS) - 1);
            let other = here != 0 && here >> DEFICIT_BITS != u128::from(point);
            if other && here & MAX_DEFICIT < MAX_DEFICIT {
                next += 1 << at;
            }
        }
        Self(next)
    }
}

fn place(point: u16, deficit: u128) -> u128 {
    u128::from(point) << DEFICIT_BITS | deficit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule as it is written down, with counts.
    #[derive(Default)]
    struct Oracle {
        counts: std::collections::HashMap<u16, u32>,
        reports: u32,
    }

    impl Oracle {
        fn see(&mut self, point: u16) -> bool {
            let count = self.counts.entry(point).or_default();
            *count += 1;
            let fresh = *count > self.reports;
            self.reports += u32::from(fresh);
            fresh
        }
    }

    proptest! {
        #[test]
        fn agrees_with_counting(points in proptest::collection::vec(1..=6u16, 1..200)) {
            let mut oracle = Oracle::default();
            prop_assert!(oracle.see(points[0]));
            let mut state = State::first(0xabcde, points[0]);
            for &point in &points[1..] {
                let behind = oracle.counts.values().max().unwrap()
                    - oracle.counts.get(&point).copied().unwrap_or(0);
                let expected = oracle.see(point);
                match state.see(point) {
                    Sighting::Fresh(next) => {
                        // Past 63 behind, a duplicate may be reported, never the reverse.
                        prop_assert!(expected || behind > 60);
                        if !expected { return Ok(()); }
                        state = next;
                    }
                    Sighting::Duplicate(next) => { prop_assert!(!expected); state = next; }
                    Sighting::Overflow => prop_assert!(false, "six points fit"),
                }
                prop_assert_eq!(state.check(), 0xabcde);
            }
        }
    }

    #[test]
    fn a_seventh_point_is_reported() {
        let mut state = State::first(1, 1);
        for point in 2..=6 {
            let Sighting::Duplicate(next) = state.see(point) else { panic!("{point}") };
            state = next;
        }
        assert_eq!(state.see(7), Sighting::Overflow);
        assert!(matches!(state.see(2047), Sighting::Overflow));
    }

    #[test]
    fn saturation_costs_duplicates_not_losses() {
        let mut state = State::first(1, 1);
        for _ in 0..200 {
            let Sighting::Fresh(next) = state.see(1) else { panic!("always ahead") };
            state = next;
        }
        let mut duplicates = 0;
        for _ in 0..200 {
            match state.see(2) {
                Sighting::Duplicate(next) => {
                    duplicates += 1;
                    state = next;
                }
                Sighting::Fresh(next) => state = next,
                Sighting::Overflow => panic!("there is room"),
            }
        }
        assert_eq!(duplicates, 63);
    }
}
