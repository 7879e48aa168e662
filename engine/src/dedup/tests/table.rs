//! The table, one case after the other.

use super::super::key::{Key, Marks, Translated};
use super::super::table::*;

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

const HOSTS: Marks = Marks { source: true, destination: false };
const BOTH_HOSTS: Marks = Marks { source: true, destination: true };

#[test]
fn one_equal_end_is_a_copy_only_where_the_other_is_ignored() {
    let table = table();
    let node = |source, destination| Key::for_test(1, source, destination).marked(HOSTS);
    let (pod, node, others) = (Key::for_test(1, 5, 6), node(9, 6), node(9, 8));
    assert!(!table.find_twin(node, SOURCE, 3, 0), "before its twin");
    assert_eq!(table.observe(pod, 1, 0), FRESH);
    assert_eq!(table.observe(Key::for_test(1, 7, 6), 2, 0), FRESH, "another pod's heartbeat");
    assert!(!table.find_twin(others, SOURCE, 3, 0), "the other end differs");
    assert!(!table.find_twin(Key::for_test(1, 5, 8), SOURCE, 3, 0), "the other end differs");
    let both = Key::for_test(1, 9, 8).marked(BOTH_HOSTS);
    assert!(table.find_twin(both, BOTH, 4, 0), "no end in common");
    // One copy for each of the two that were reported, and not a third.
    assert!(table.find_twin(node, SOURCE, 3, 0));
    assert!(table.find_twin(node, SOURCE, 3, 0));
    assert!(!table.find_twin(node, SOURCE, 3, 0));
    assert!(!table.find_twin(node, SOURCE, 3, 0), "asking changed nothing");
    assert!(!table.find_twin(node, SOURCE, 0, 0), "a point without number");
    assert!(!table.find_twin(node, SOURCE, 5, 3 * WINDOW), "forgotten");
}

#[test]
fn an_ignored_end_is_translated_from_a_pods_address_or_into_one() {
    // (What was reported, what looks for its twin): which ends are marked.
    let marks = |source, destination| Marks { source, destination };
    let [none, source, destination, both] =
        [(false, false), (true, false), (false, true), (true, true)].map(|(s, d)| marks(s, d));
    for (reported, looks, ignored, is_twin) in [
        (none, source, SOURCE, true),
        (source, none, SOURCE, true),
        (none, none, SOURCE, false),
        (source, source, SOURCE, false),
        (none, both, BOTH, true),
        (source, destination, BOTH, true),
        (none, destination, BOTH, false),
        (destination, destination, BOTH, false),
        (both, source, BOTH, false),
    ] {
        let table = table();
        let (one, other) = (Key::for_test(1, 5, 6), Key::for_test(1, 9, 8));
        // Where the destination is not ignored, it is the same.
        let other = if ignored.destination { other } else { Key::for_test(1, 9, 6) };
        assert_eq!(table.observe(one.marked(reported), 1, 0), FRESH);
        let found = table.find_twin(other.marked(looks), ignored, 2, 0);
        assert_eq!(found, is_twin, "{reported:?} {looks:?}");
    }
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
#[cfg_attr(miri, ignore = "a large table")]
fn memory_is_bounded_both_ways() {
    assert!(matches!(Table::new(MIN_MEMORY - 1, WINDOW), Err(TableError::TooSmall { .. })));
    assert!(matches!(Table::new(u64::MAX, WINDOW), Err(TableError::TooLarge { .. })));
    let table = Table::new(3 << 20, WINDOW).unwrap();
    assert_eq!(table.memory(), 2 << 20, "the power of two below");
}

#[test]
fn workers_that_race_report_each_packet_once() {
    // Under Miri, as many as a small table holds.
    let (memory, packets) = if cfg!(miri) { (MIN_MEMORY, 50) } else { (16 << 20, 50_000u64) };
    let table = Table::new(memory, WINDOW).unwrap();
    let reported: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=2u16)
            .map(|point| {
                let table = &table;
                scope.spawn(move || {
                    let mut fresh = 0;
                    for n in 0..packets {
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
    assert!((packets..packets + 100).contains(&reported), "{reported}");
}

#[test]
fn a_clock_that_steps_back_far_forgets() {
    let table = table();
    let key = Key::for_test(1, 5, 6);
    assert_eq!(table.observe(key, 1, 10 * WINDOW), FRESH);
    assert_eq!(table.observe(key, 2, 7 * WINDOW), FRESH);
}

#[test]
fn what_a_worker_ahead_has_just_seen_is_not_the_oldest() {
    let table = table();
    let key = |tag: u64| Key::for_test(tag << 52, 5, 6);
    for (tag, now) in [(1, WINDOW / 2), (2, WINDOW / 2), (3, WINDOW / 2), (4, WINDOW * 6 / 10)] {
        assert_eq!(table.observe(key(tag), 1, now), FRESH);
    }
    assert_eq!(table.observe(key(5), 1, WINDOW * 56 / 100), Outcome::Fresh { evicted: true });
    assert_eq!(table.observe(key(4), 2, WINDOW * 6 / 10), Outcome::Duplicate);
}

#[test]
fn the_two_ends_are_not_the_same_in_the_other_order() {
    let (one, other) = (0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321);
    assert_ne!(Key::new(0, one, other).exact(), Key::new(0, other, one).exact());
}
