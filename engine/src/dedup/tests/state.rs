//! Counts, against counting.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::state::{MAX_PLACES, Sighting, State};

/// The rule as it is written down, with counts.
#[derive(Default)]
struct Oracle {
    counts: HashMap<u16, u32>,
    reports: u32,
}

impl Oracle {
    fn count(&self, point: u16) -> u32 {
        self.counts.get(&point).copied().unwrap_or_default()
    }

    fn see(&mut self, point: u16) -> bool {
        let count = self.counts.entry(point).or_default();
        *count += 1;
        let fresh = *count > self.reports;
        self.reports += u32::from(fresh);
        fresh
    }

    fn see_copy(&mut self, point: u16) -> bool {
        let is_copy = self.count(point) < self.reports;
        if is_copy {
            *self.counts.entry(point).or_default() += 1;
        }
        is_copy
    }
}

/// The most that a point can be behind where so many points have a place.
fn most_behind(points: usize) -> u32 {
    (1 << [0, 19, 19, 19, 13, 9, 6, 4, 2][points]) - 1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    #[cfg_attr(miri, ignore = "proptest is too slow for Miri")]
    fn the_state_agrees_with_counting(
        points in 1..=8u16,
        steps in proptest::collection::vec((0..8u16, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let mut oracle = Oracle::default();
        prop_assert!(oracle.see(2047));
        let mut state = State::first(0xabc, 9, 2047);
        for (point, is_copy, again) in steps {
            // Mostly the same point, so that others fall behind.
            let point = if again { 2047 } else { 2047 - point % points };
            let behind = oracle.reports - oracle.count(point);
            let mut seen: Vec<u16> = oracle.counts.keys().copied().collect();
            seen.push(point);
            seen.sort_unstable();
            seen.dedup();
            let most = most_behind(seen.len());
            // Past what a deficit holds, nothing is exact any more: that is another test's.
            let all = oracle.counts.values().map(|count| oracle.reports - count).max();
            prop_assume!(behind.max(all.unwrap_or(0)) < most && oracle.reports < most);
            if is_copy {
                let expected = oracle.see_copy(point);
                let next = state.see_copy(point, false);
                prop_assert_eq!(next.is_some(), expected);
                state = next.unwrap_or(state);
            } else {
                let expected = oracle.see(point);
                state = match state.see(point, false) {
                    Sighting::Fresh(next) => { prop_assert!(expected); next }
                    Sighting::Duplicate(next) => { prop_assert!(!expected); next }
                    Sighting::Overflow => { prop_assert!(false, "eight points fit"); return Ok(()) }
                };
            }
            prop_assert_eq!((state.check(), state.generation()), (0xabc, 9));
        }
    }

    /// Whatever is saturated or has no place: each point's count is reported at least.
    #[test]
    #[cfg_attr(miri, ignore = "proptest is too slow for Miri")]
    fn the_state_never_reports_less_than_any_point_saw(
        runs in proptest::collection::vec((1..=10u16, 1..120u32, any::<bool>()), 1..30),
    ) {
        let (mut reported, mut counts) = (1, HashMap::from([(1, 1)]));
        let mut state = State::first(1, 1, 1);
        for (point, count, is_late) in runs {
            for _ in 0..count {
                *counts.entry(point).or_insert(0u32) += 1;
                match state.see(point, is_late) {
                    Sighting::Fresh(next) => { reported += 1; state = next; }
                    Sighting::Duplicate(next) => state = next,
                    Sighting::Overflow => reported += 1,
                }
                prop_assert!(counts.values().all(|count| *count <= reported));
            }
        }
    }
}

#[test]
fn a_ninth_point_is_reported_and_its_copy_is_one() {
    let mut state = State::first(1, 1, 1);
    for point in 2..=8 {
        let Sighting::Duplicate(next) = state.see(point, false) else { panic!("{point}") };
        state = next;
    }
    assert_eq!(MAX_PLACES, 8);
    for point in [9, 2047] {
        assert_eq!(state.see(point, false), Sighting::Overflow);
        assert_eq!(state.see_copy(point, false), Some(state), "not for lack of places");
    }
}

/// Sees `ahead` packets at point 1 while `points` have a place, and then as many at point 2; how
/// many of these were duplicates.
fn copies_after(points: u16, ahead: u32) -> u32 {
    let mut state = State::first(1, 1, 1);
    let see = |state: &mut State, point: u16| match state.see(point, false) {
        Sighting::Fresh(next) => {
            *state = next;
            0
        }
        Sighting::Duplicate(next) => {
            *state = next;
            1
        }
        Sighting::Overflow => panic!("there is room"),
    };
    for point in 2..=points {
        assert_eq!(see(&mut state, point), 1);
    }
    for _ in 0..ahead {
        assert_eq!(see(&mut state, 1), 0, "always ahead");
    }
    (0..ahead).map(|_| see(&mut state, 2)).sum()
}

#[test]
fn copies_may_be_as_far_behind_as_the_width_of_so_many_places_holds() {
    let most = |points: u16| most_behind(usize::from(points));
    let range = if cfg!(miri) { 7..=8 } else { 2..=8 };
    for points in range {
        assert_eq!(copies_after(points, most(points)), most(points), "{points}");
        // Past it: duplicates, not losses.
        let past = most(points) + 10;
        assert_eq!(copies_after(points, past), most(points), "{points}");
    }
}

#[test]
fn a_copy_past_what_counts_hold_is_a_copy() {
    let mut state = State::first(1, 1, 1);
    for point in 2..=5 {
        let Sighting::Duplicate(next) = state.see(point, false) else { panic!("{point}") };
        state = next;
    }
    assert_eq!(state.see_copy(5, false), None, "one report, one copy");
    for _ in 0..600 {
        let Sighting::Fresh(next) = state.see(1, false) else { panic!("always ahead") };
        state = next;
    }
    for copy in 0..600 {
        state = state.see_copy(5, false).unwrap_or_else(|| panic!("{copy}"));
    }
}

#[test]
fn a_point_that_joins_late_owes_nothing() {
    let mut state = State::first(1, 1, 1);
    for _ in 0..1000 {
        let Sighting::Fresh(next) = state.see(1, false) else { panic!("always ahead") };
        state = next;
    }
    // The stream goes on at point 2: no packet of it is lost, though point 1 saw a thousand.
    let Sighting::Fresh(mut state) = state.see(2, true) else { panic!("in doubt, report") };
    for _ in 0..10 {
        let Sighting::Fresh(next) = state.see(2, true) else { panic!("ahead now") };
        state = next;
    }
    for _ in 0..11 {
        let Sighting::Duplicate(next) = state.see(1, true) else { panic!("behind now") };
        state = next;
    }
    assert!(matches!(state.see(1, true), Sighting::Fresh(_)));
    // A translated copy is one of the last report, and then one for each.
    let joined = state.see_copy(3, true).expect("of the last report");
    assert_eq!(joined.see_copy(3, true), None);
}

#[test]
#[cfg_attr(miri, ignore = "counts, too many for Miri")]
fn a_point_far_behind_stays_so_when_another_joins() {
    let mut state = State::first(1, 1, 1);
    let mut see = |point: u16| match state.see(point, false) {
        Sighting::Fresh(next) => {
            state = next;
            0
        }
        Sighting::Duplicate(next) => {
            state = next;
            1
        }
        Sighting::Overflow => panic!("there is room"),
    };
    assert_eq!(see(2), 1);
    assert_eq!((0..20_000).map(|_| see(1)).sum::<u32>(), 0);
    assert_eq!((see(3), see(4)), (1, 1));
    assert_eq!((0..20_000).map(|_| see(2)).sum::<u32>(), most_behind(4));
}
