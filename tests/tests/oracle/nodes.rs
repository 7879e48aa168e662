//! Node by node: the engine reports what the rule says, of anything that it can be shown.

use proptest::prelude::*;
use tests::oracle::generate::{Limits, plan};
use tests::oracle::identity::Identity;
use tests::oracle::rule::{Direction, Expectation, Node, Sighting};
use tests::oracle::taps::{self, Running};
use tests::oracle::topology::Coverage;
use tests::oracle::world::World;

use super::check::{config, despite_collisions, story_of};

const ANYTHING: Limits = Limits {
    has_missing_taps: true,
    has_losses: true,
    has_equals_of_all_kinds: true,
    has_doubtful_addresses: true,
};

fn any_knowledge() -> impl Strategy<Value = Coverage> {
    prop_oneof![
        Just(Coverage::Published),
        Just(Coverage::Cidr),
        any::<u32>().prop_map(Coverage::Lagging),
        Just(Coverage::None),
    ]
}

/// The engine's reports lie within what the rule leaves open, which is mostly nothing.
pub(crate) fn agrees(
    node: &Node,
    sightings: &[Sighting],
    running: Running,
) -> Result<(), TestCaseError> {
    let expected = node.expect(sightings);
    despite_collisions(running, |running| is_within(&expected, node, sightings, running))
}

fn is_within(
    expected: &Expectation,
    node: &Node,
    sightings: &[Sighting],
    running: Running,
) -> Result<(), TestCaseError> {
    let outcome = taps::run(node, sightings, running);
    outcome.accounts_for(sightings).map_err(TestCaseError::fail)?;
    for (identity, range) in expected {
        let count = outcome.reported.get(identity).copied().unwrap_or(0);
        prop_assert!(
            range.contains(&count),
            "{count} reports where the rule says {range:?}: {}\n{}",
            identity.say(),
            story_of(node, sightings, running, identity)
        );
    }
    let unknown = outcome.reported.keys().find(|identity| !expected.contains_key(*identity));
    prop_assert!(
        unknown.is_none(),
        "reported though nobody's here: {}",
        unknown.map_or(String::new(), Identity::say)
    );
    Ok(())
}

/// How much the rule leaves open: packets with one right number of reports, and all.
fn certain(expected: &Expectation) -> (usize, usize) {
    (expected.values().filter(|range| range.start() == range.end()).count(), expected.len())
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn a_node_reports_what_the_rule_says_of_a_cluster_at_work(
        plan in plan(Limits { has_equals_of_all_kinds: false, ..ANYTHING }, any_knowledge()),
        workers in 1..=4usize,
        seed: u64,
    ) {
        let world = World::new(&plan);
        for (node, sightings) in world.nodes.iter().zip(&world.sightings) {
            let Some(node) = node else { continue };
            for part in windows(sightings) {
                agrees(node, part, Running::new(workers, seed))?;
            }
        }
    }

    #[test]
    fn a_node_reports_what_the_rule_says_of_what_is_left_where_rings_lost_frames(
        plan in plan(Limits { has_equals_of_all_kinds: false, ..ANYTHING }, any_knowledge()),
        lost in prop::collection::vec(any::<bool>(), 1..40),
        workers in 1..=4usize,
        seed: u64,
    ) {
        let world = World::new(&plan);
        for (node, sightings) in world.nodes.iter().zip(world.sightings) {
            let Some(node) = node else { continue };
            let left = sightings.into_iter().zip(lost.iter().cycle()).filter(|(_, lost)| !**lost);
            let left: Vec<_> = left.map(|(sighting, _)| sighting).collect();
            for part in moments(&left) {
                agrees(node, part, Running::new(workers, seed))?;
            }
        }
    }

    #[test]
    fn a_node_reports_what_the_rule_says_of_packets_at_points_where_they_have_no_business(
        plan in plan(Limits { has_equals_of_all_kinds: false, ..ANYTHING }, any_knowledge()),
        moves in prop::collection::vec((any::<prop::sample::Index>(), 0..8usize, any::<bool>()), 1..4),
        seed: u64,
    ) {
        let mut world = World::new(&plan);
        for (node, sightings) in world.nodes.iter().zip(&mut world.sightings) {
            let Some(node) = node else { continue };
            for (which, interface, out) in &moves {
                if sightings.is_empty() {
                    break;
                }
                let at = which.index(sightings.len());
                let to = &node.interfaces[interface % node.interfaces.len()];
                sightings[at].ifindex = to.ifindex;
                sightings[at].direction = if *out { Direction::Out } else { Direction::In };
            }
            for part in moments(sightings) {
                agrees(node, part, Running { skew_ns: 0, ..Running::new(1, seed) })?;
            }
        }
    }
}

/// Stretches that lie within a window of 100 ms, since the rule looks at one window.
fn windows(sightings: &[Sighting]) -> impl Iterator<Item = &[Sighting]> {
    stretches(sightings, 20_000_000, 80_000_000)
}

/// Stretches so short that all in them is seen before anything that waits is decided: where copies
/// are missing, those of equal packets may be taken for each other's.
fn moments(sightings: &[Sighting]) -> impl Iterator<Item = &[Sighting]> {
    stretches(sightings, 800_000, 1_500_000)
}

fn stretches(
    sightings: &[Sighting],
    gap_ns: u64,
    most_ns: u64,
) -> impl Iterator<Item = &[Sighting]> {
    sightings.chunk_by(move |one, next| next.at_ns - one.at_ns < gap_ns).filter(move |part| {
        let (first, last) = (part.first(), part.last());
        first.zip(last).is_some_and(|(first, last)| last.at_ns - first.at_ns < most_ns)
    })
}

#[test]
fn the_rule_leaves_little_open() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = plan(Limits { has_equals_of_all_kinds: false, ..ANYTHING }, any_knowledge());
    let (mut sure, mut all) = (0, 0);
    for _ in 0..200 {
        let plan = strategy.new_tree(&mut runner).unwrap().current();
        let world = World::new(&plan);
        for (node, sightings) in world.nodes.iter().zip(&world.sightings) {
            let Some(node) = node else { continue };
            for part in windows(sightings) {
                let (one, of) = certain(&node.expect(part));
                sure += one;
                all += of;
            }
        }
    }
    assert!(all > 1000, "{all}");
    assert!(sure * 100 > all * 90, "{sure} of {all}");
}
