//! The table against the rule: counts in a map, by whole keys, with nothing hashed.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::key::{Key, Marks, Translated};
use super::super::table::{MIN_MEMORY, Outcome, Table};

/// Ticks of a window; the table's resolution, so that the oracle's times are the table's.
const WINDOW: u64 = 64;
const TICK_NS: u64 = 1000;

/// Content, source, destination.
type Name = (u64, u64, u64);

#[derive(Clone)]
struct Entry {
    name: Name,
    counts: HashMap<u16, u32>,
    reports: u32,
    first: u64,
    last: u64,
}

impl Entry {
    fn count(&self, point: u16) -> u32 {
        self.counts.get(&point).copied().unwrap_or_default()
    }

    /// A point that joins a stream of repeats late owes nothing for those before it.
    fn join(&mut self, point: u16, now: u64, owes: u32) {
        if !self.counts.contains_key(&point) && self.reports > 1 && now > self.first + WINDOW {
            self.counts.insert(point, self.reports - owes);
        }
    }
}

#[derive(Default)]
struct Oracle(Vec<Entry>);

impl Oracle {
    fn observe(&mut self, name: Name, point: u16, now: u64) -> bool {
        let new = Entry { name, counts: HashMap::new(), reports: 0, first: now, last: now };
        let at = self.0.iter().position(|entry| entry.name == name).unwrap_or_else(|| {
            self.0.push(new);
            self.0.len() - 1
        });
        let entry = &mut self.0[at];
        if now > entry.last + WINDOW {
            *entry = Entry { name, counts: HashMap::new(), reports: 0, first: now, last: now };
        }
        entry.join(point, now, 0);
        entry.last = now;
        let count = entry.counts.entry(point).or_default();
        *count += 1;
        let fresh = *count > entry.reports;
        entry.reports += u32::from(fresh);
        fresh
    }

    fn find_twin(&mut self, name: Name, ignored: Translated, point: u16, now: u64) -> bool {
        let ends = |entry: &Entry| {
            let (source, destination) = (entry.name.1 == name.1, entry.name.2 == name.2);
            let source_fits = source || ignored.source && is_host(entry.name.1) != is_host(name.1);
            let destination_fits =
                destination || ignored.destination && is_host(entry.name.2) != is_host(name.2);
            (entry.name.0 == name.0 && source_fits && destination_fits)
                .then_some(u32::from(source) + u32::from(destination))
        };
        let is_twin = |entry: &Entry| {
            if entry.name == name {
                // The packet itself: as if it were observed.
                let mut entry = entry.clone();
                entry.join(point, now, 0);
                return now <= entry.last + WINDOW && entry.count(point) < entry.reports;
            }
            let is_new = !entry.counts.contains_key(&point);
            now <= entry.last + WINDOW && (is_new || entry.count(point) < entry.reports)
        };
        let mut best: Option<(usize, u32)> = None;
        for (at, entry) in self.0.iter().enumerate().filter(|(_, entry)| is_twin(entry)) {
            if let Some(ends) = ends(entry)
                && best.is_none_or(|(_, most)| ends > most)
            {
                best = Some((at, ends));
            }
        }
        let Some((at, _)) = best else { return false };
        let entry = &mut self.0[at];
        entry.join(point, now, 1);
        *entry.counts.entry(point).or_default() += 1;
        entry.last = now;
        true
    }
}

#[derive(Clone, Debug)]
struct Step {
    name: Name,
    point: u16,
    after: u64,
    ignored: Option<Translated>,
}

fn steps(contents: u64, ends: u64, points: u16) -> impl Strategy<Value = Vec<Step>> {
    let name = (1..=contents, 1..=ends, 1..=ends);
    let ignored = proptest::option::weighted(0.3, any::<[bool; 2]>()).prop_map(|ignored| {
        ignored.map(|[source, destination]| Translated { source, destination })
    });
    let after = prop_oneof![6 => Just(0u64), 2 => 0..10u64, 1 => 30..100u64];
    let step = (name, 1..=points, after, ignored).prop_map(|(name, point, after, ignored)| Step {
        name,
        point,
        after,
        ignored,
    });
    proptest::collection::vec(step, 1..300)
}

/// Every third end, so that there are several of each kind.
fn is_host(end: u64) -> bool {
    end % 3 == 2
}

fn key((content, source, destination): Name) -> Key {
    // All in one bucket.
    let marks = Marks { source: is_host(source), destination: is_host(destination) };
    Key::for_test(content << 30, source, destination).marked(marks)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    #[cfg_attr(miri, ignore = "proptest is too slow for Miri")]
    fn where_the_bucket_holds_all_its_packets_the_table_is_the_rule(
        steps in steps(2, 2, 5),
        names in proptest::collection::vec((1..=2u64, 1..=2u64, 1..=2u64), 4),
    ) {
        let table = Table::new(MIN_MEMORY, WINDOW * TICK_NS).unwrap();
        let (mut oracle, mut now) = (Oracle::default(), 1000);
        for (at, step) in steps.iter().enumerate() {
            now += step.after;
            let ns = now * TICK_NS;
            if let Some(ignored) = step.ignored {
                let expected = oracle.find_twin(step.name, ignored, step.point, now);
                let found = table.find_twin(key(step.name), ignored, step.point, ns);
                prop_assert_eq!(found, expected, "step {}: {:?}", at, step);
            } else {
                // Four packets that are reported; copies may have any name.
                let name = names[usize::try_from(step.name.0 * 2 + step.name.1).unwrap() % 4];
                let expected = oracle.observe(name, step.point, now);
                let outcome = table.observe(key(name), step.point, ns);
                prop_assert_eq!(outcome != Outcome::Duplicate, expected, "step {}: {:?}", at, step);
                prop_assert_ne!(outcome, Outcome::Fresh { evicted: true });
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "proptest is too slow for Miri")]
    fn where_it_does_not_nothing_is_lost(steps in steps(6, 3, 10)) {
        let table = Table::new(MIN_MEMORY, WINDOW * TICK_NS).unwrap();
        let mut now = 1000;
        let mut counts: HashMap<Name, (u32, HashMap<u16, u32>)> = HashMap::new();
        for step in steps {
            now += step.after;
            // Copies at points of their own.
            if let Some(ignored) = step.ignored {
                table.find_twin(key(step.name), ignored, step.point + 100, now * TICK_NS);
                continue;
            }
            let outcome = table.observe(key(step.name), step.point, now * TICK_NS);
            let (reports, counts) = counts.entry(step.name).or_default();
            *reports += u32::from(outcome != Outcome::Duplicate);
            *counts.entry(step.point).or_default() += 1;
            prop_assert!(counts.values().all(|count| count <= reports), "{:?}", step);
        }
    }
}

/// Row 21 under load: identical datagrams a microsecond apart for a second, at three points, copies
/// read up to some thousands behind.
#[test]
fn a_flood_of_identical_datagrams_is_reported_once_each_however_far_behind_its_copies_are() {
    let (count, behind) = if cfg!(miri) { (200, 50) } else { (1_000_000, 20_000) };
    let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
    let key = Key::for_test(7, 5, 6);
    let mut reports = 0;
    let mut see = |point: u16, packet: u64| {
        reports += u64::from(table.observe(key, point, packet * 1000) != Outcome::Duplicate);
    };
    for first in (0..count).step_by(behind) {
        // A ring's block after the other, of each point in turn.
        for point in 1..=3 {
            (first..first + behind as u64).for_each(|packet| see(point, packet));
        }
    }
    assert_eq!(reports, count);
}
