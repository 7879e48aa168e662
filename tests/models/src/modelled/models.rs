//! Models of a bucket: what workers do to it at the same time, in every order.
//!
//! ```text
//! threads: each a list of Step { key, point, time } --> reported or not, of each sighting
//! asserted: reports of a key >= its count at any one point (never a loss)
//! ```
//!
//! Two or three workers, one or two slots. In each model the reports are counted over all the
//! interleavings too: more than the largest count (a race that costs a duplicate) is allowed only
//! where the model says so.

use std::collections::BTreeMap;

use loom::model::Builder;
use loom::sync::Arc;

use super::bucket::{Bucket, Outcome, TICKS};
use super::key::{Key, Marks, Translated};

const A: (u64, u64, u64) = (1 << 40, 5, 6);
/// Of other content, the same bucket.
const B: (u64, u64, u64) = (2 << 40, 5, 6);
/// Like A from another source, which is the node.
const A_NODE: (u64, u64, u64) = (1 << 40, 9, 6);
/// Like A in everything that is in the id, with another check.
const A_ALIKE: (u64, u64, u64) = (1 << 40 | 1 << 12, 5, 6);

const SOURCE: Translated = Translated { source: true, destination: false };

#[derive(Clone, Copy, Debug)]
struct Step {
    key: (u64, u64, u64),
    point: u16,
    now: u64,
    /// A copy whose source is a translation's: asks for its twin.
    is_copy: bool,
}

fn see(key: (u64, u64, u64), point: u16, now: u64) -> Step {
    Step { key, point, now, is_copy: false }
}

fn copy(key: (u64, u64, u64), point: u16, now: u64) -> Step {
    Step { key, point, now, is_copy: true }
}

fn make((hash, source, destination): (u64, u64, u64)) -> Key {
    Key::for_test(hash, source, destination)
        .marked(Marks { source: source == A_NODE.1, destination: false })
}

/// True if the sighting was reported; for a copy, if no twin was found.
fn take<const N: usize>(bucket: &Bucket<N>, step: Step) -> bool {
    let key = make(step.key);
    bucket.prefetch();
    if step.is_copy {
        return !bucket.find_twin(key, SOURCE, step.point, step.now);
    }
    bucket.observe(key, step.point, step.now) != Outcome::Duplicate
}

/// Runs the threads in every order, after `before`; hands each run's sightings to `check`.
fn model<const N: usize>(
    before: &[Step],
    threads: &[&[Step]],
    check: impl Fn(&[(Step, bool)]) + Sync + Send + 'static,
) {
    let before = before.to_vec();
    let threads: Vec<Vec<Step>> = threads.iter().map(|steps| steps.to_vec()).collect();
    let mut builder = Builder::new();
    // Of two sightings, every interleaving; of more, all with so many switches that are not forced.
    let sightings: usize = threads.iter().map(Vec::len).sum();
    builder.preemption_bound = match (threads.len(), sightings) {
        (2, 2) => None,
        (2, _) => Some(3),
        _ => Some(1),
    };
    builder.check(move || {
        let bucket = Arc::new(Bucket::<N>::default());
        let mut seen: Vec<(Step, bool)> =
            before.iter().map(|step| (*step, take(&bucket, *step))).collect();
        let handles: Vec<_> = threads
            .iter()
            .skip(1)
            .map(|steps| {
                let (bucket, steps) = (Arc::clone(&bucket), steps.clone());
                loom::thread::spawn(move || {
                    steps.iter().map(|step| (*step, take(&bucket, *step))).collect::<Vec<_>>()
                })
            })
            .collect();
        seen.extend(threads[0].iter().map(|step| (*step, take(&bucket, *step))));
        for handle in handles {
            seen.extend(handle.join().unwrap());
        }
        check(&seen);
    });
}

/// Reports of each key less its largest count at one point; never below 0.
fn extra(seen: &[(Step, bool)]) -> BTreeMap<(u64, u64, u64), i32> {
    let mut extra = BTreeMap::new();
    for (step, _) in seen.iter().filter(|(step, _)| !step.is_copy) {
        let of_key = || seen.iter().filter(|(other, _)| other.key == step.key && !other.is_copy);
        let reports = of_key().filter(|(_, reported)| *reported).count();
        let most = of_key()
            .map(|(one, _)| of_key().filter(|(other, _)| other.point == one.point).count())
            .max();
        let reports = i32::try_from(reports).unwrap();
        extra.insert(step.key, reports - i32::try_from(most.unwrap()).unwrap());
    }
    assert!(extra.values().all(|extra| *extra >= 0), "lost: {seen:?}");
    extra
}

fn exactly_once(seen: &[(Step, bool)]) {
    assert!(extra(seen).values().all(|extra| *extra == 0), "doubled: {seen:?}");
}

fn never_lost(seen: &[(Step, bool)]) {
    extra(seen);
}

#[test]
fn two_workers_that_see_a_new_packet_report_it_once() {
    // One slot: there is no other to claim.
    model::<1>(&[], &[&[see(A, 1, 0)], &[see(A, 2, 0)]], exactly_once);
}

#[test]
fn two_workers_that_claim_different_slots_lose_nothing() {
    model::<2>(&[], &[&[see(A, 1, 0)], &[see(A, 2, 0)]], never_lost);
}

#[test]
fn repeats_and_their_copies_are_counted_in_any_order() {
    let before = [see(A, 1, 0)];
    model::<1>(&before, &[&[see(A, 1, 0), see(A, 2, 0)], &[see(A, 2, 0)]], exactly_once);
    model::<1>(&before, &[&[see(A, 2, 0), see(A, 2, 0)], &[see(A, 1, 0)]], exactly_once);
}

#[test]
fn three_workers_at_three_points_report_once() {
    let threads: [&[Step]; 3] = [&[see(A, 1, 0)], &[see(A, 2, 0)], &[see(A, 3, 0)]];
    model::<1>(&[see(A, 1, 0)], &threads, |seen| {
        assert_eq!(extra(seen)[&A], 0, "{seen:?}");
    });
    model::<1>(&[], &threads, exactly_once);
}

#[test]
fn a_packet_that_comes_again_after_its_window_is_reported_whoever_sees_it_first() {
    let later = 3 * TICKS;
    let threads: [&[Step]; 2] = [&[see(A, 1, later)], &[see(A, 2, later)]];
    model::<1>(&[see(A, 1, 0)], &threads, |seen| {
        let reports = seen[1..].iter().filter(|(_, reported)| *reported).count();
        assert_eq!(reports, 1, "{seen:?}");
    });
}

#[test]
fn a_slot_that_is_taken_while_its_packet_comes_again_loses_neither() {
    let later = 3 * TICKS;
    // Stale: A comes again at another point while B takes its slot.
    model::<1>(&[see(A, 1, 0)], &[&[see(A, 2, later)], &[see(B, 1, later)]], |seen| {
        assert!(seen.iter().all(|(_, reported)| *reported), "all three are packets: {seen:?}");
    });
    let threads: [&[Step]; 2] = [&[see(A, 2, later)], &[see(B, 1, later), see(A, 3, later)]];
    model::<1>(&[see(A, 1, 0)], &threads, |seen| {
        let again = seen[1..].iter().filter(|(step, reported)| step.key == A && *reported).count();
        assert!(again >= 1, "{seen:?}");
    });
    // Live: one is evicted for the other.
    model::<1>(&[see(A, 1, 0)], &[&[see(A, 2, 1), see(B, 2, 1)], &[see(B, 1, 1)]], never_lost);
}

#[test]
fn packets_that_collide_in_a_bucket_keep_their_counts_apart() {
    model::<2>(&[], &[&[see(A, 1, 0), see(B, 2, 0)], &[see(B, 1, 0)]], never_lost);
    model::<1>(&[], &[&[see(A, 1, 0)], &[see(B, 2, 0)]], exactly_once);
    model::<1>(&[], &[&[see(A, 1, 0)], &[see(A_ALIKE, 2, 0)]], exactly_once);
    model::<1>(&[see(A, 1, 0)], &[&[see(A, 2, 0)], &[see(A_ALIKE, 2, 0)]], never_lost);
}

#[test]
fn three_workers_and_two_packets_in_one_slot_lose_nothing() {
    let threads: [&[Step]; 3] = [&[see(A, 1, 0)], &[see(B, 1, 0)], &[see(A, 2, 0)]];
    model::<1>(&[], &threads, never_lost);
}

#[test]
fn a_copy_finds_a_twin_only_where_one_was_reported() {
    let threads: [&[Step]; 2] = [&[see(A, 1, 0)], &[copy(A_NODE, 3, 0), copy(A_NODE, 3, 0)]];
    model::<1>(&[], &threads, |seen| {
        exactly_once(seen);
        let found = seen.iter().filter(|(step, held)| step.is_copy && !*held).count();
        assert!(found <= 1, "one report, one copy: {seen:?}");
    });
    // Two reports, and copies that two workers see.
    let threads: [&[Step]; 2] = [&[copy(A_NODE, 3, 0)], &[copy(A_NODE, 3, 0)]];
    model::<1>(&[see(A, 1, 0), see(A, 1, 0)], &threads, |seen| {
        assert!(seen[2..].iter().all(|(_, held)| !*held), "both are found: {seen:?}");
    });
    model::<1>(&[see(A, 1, 0)], &threads, |seen| {
        assert_eq!(
            seen.iter().filter(|(step, held)| step.is_copy && !*held).count(),
            1,
            "{seen:?}"
        );
    });
}

#[test]
fn a_copy_finds_no_twin_in_a_slot_that_is_being_taken() {
    let later = 3 * TICKS;
    let threads: [&[Step]; 2] = [&[see(B, 1, later)], &[copy(A_NODE, 3, later)]];
    model::<1>(&[see(A, 1, 0)], &threads, |seen| {
        assert!(seen[2].1, "what was reported is long past: {seen:?}");
    });
}
