//! What the properties ask of a world after the taps have seen it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tests::oracle::identity::Identity;
use tests::oracle::rule::{Node, Sighting};
use tests::oracle::taps::{self, Outcome, Running, mixed};
use tests::oracle::world::{Plan, World};

/// Cases for each property, unless `PROPTEST_CASES` says otherwise.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: given.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

/// What fails with one seed of the table's hash and not with another is a collision, of which the
/// table states the bound; a fault is there with all of them.
pub(crate) fn despite_collisions(
    running: Running,
    check: impl Fn(Running) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let failed = check(running);
    let again = |seed| check(Running { hash_seed: mixed(running.hash_seed, seed), ..running });
    if failed.is_err() && (again(1).is_ok() || again(2).is_ok()) {
        eprintln!("a collision, with seed {}", running.hash_seed);
        return Ok(());
    }
    failed
}

/// Runs every tap over what it saw; all packets must be accounted for.
pub(crate) fn outcomes(
    world: &World,
    running: Running,
) -> Result<Vec<Option<Outcome>>, TestCaseError> {
    let taps = world.nodes.iter().zip(&world.sightings);
    taps.map(|(node, sightings)| {
        let Some(node) = node else { return Ok(None) };
        let outcome = taps::run(node, sightings, running);
        outcome.accounts_for(sightings).map_err(TestCaseError::fail)?;
        prop_assert!(outcome.spoiled.is_empty(), "{:?}", outcome.spoiled);
        Ok(Some(outcome))
    })
    .collect()
}

/// All reports, by node and packet.
pub(crate) fn reports(outcomes: &[Option<Outcome>]) -> BTreeMap<(usize, Identity), usize> {
    let taps = outcomes.iter().enumerate().filter_map(|(node, it)| Some((node, it.as_ref()?)));
    taps.flat_map(|(node, outcome)| {
        outcome.reported.iter().map(move |(identity, count)| ((node, identity.clone()), *count))
    })
    .collect()
}

/// Each packet exactly once, by the right node, with the right ends.
pub(crate) fn exactly_once(plan: &Plan, running: Running) -> Result<(), TestCaseError> {
    let world = World::new(plan);
    despite_collisions(running, |running| is_exactly_once(&world, running))
}

fn is_exactly_once(world: &World, running: Running) -> Result<(), TestCaseError> {
    let reported = reports(&outcomes(world, running)?);
    for ((node, identity), right) in &world.truth.right {
        let count = reported.get(&(*node, identity.clone())).copied().unwrap_or(0);
        prop_assert!(
            count >= *right,
            "LOST: node {node} reports {count} of {right} {}\n{}",
            identity.say(),
            story(world, running, identity)
        );
    }
    for ((node, identity), count) in &reported {
        let key = (*node, identity.clone());
        let right = world.truth.right.get(&key).copied().unwrap_or(0);
        let more = world.truth.tolerated.get(&key).map_or(0, |(count, _)| *count);
        prop_assert!(
            *count <= right + more,
            "DOUBLED: node {node} reports {count} instead of {right} (and {more} tolerated) {}\n{}",
            identity.say(),
            story(world, running, identity)
        );
    }
    Ok(())
}

/// No packet of which a tap saw a copy is lost, whatever else; and no node reports it twice if
/// `at_most_once_a_node`.
pub(crate) fn never_lost(
    plan: &Plan,
    running: Running,
    at_most_once_a_node: bool,
) -> Result<(), TestCaseError> {
    let world = World::new(plan);
    despite_collisions(running, |running| is_never_lost(&world, running, at_most_once_a_node))
}

fn is_never_lost(
    world: &World,
    running: Running,
    at_most_once_a_node: bool,
) -> Result<(), TestCaseError> {
    let mut counts: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut names: BTreeMap<Vec<u8>, Identity> = BTreeMap::new();
    for ((_, identity), count) in reports(&outcomes(world, running)?) {
        *counts.entry(identity.invariant.clone()).or_default() += count;
        names.entry(identity.invariant.clone()).or_insert(identity);
    }
    let mut more: BTreeMap<&Vec<u8>, usize> = BTreeMap::new();
    for ((_, identity), (count, _)) in &world.truth.tolerated {
        *more.entry(&identity.invariant).or_default() += count;
    }
    for (invariant, (packets, at_most)) in &world.truth.seen {
        let count = counts.get(invariant).copied().unwrap_or(0);
        let name = || {
            world.truth.right.keys().find(|(_, it)| it.invariant == *invariant).map(|(_, it)| it)
        };
        prop_assert!(
            count >= *packets,
            "LOST: {count} of {packets}, such as {}\n{}",
            name().map_or(String::new(), Identity::say),
            name().map_or(String::new(), |it| story(world, running, it))
        );
        let at_most = at_most + more.get(invariant).copied().unwrap_or(0);
        prop_assert!(
            !at_most_once_a_node || count <= at_most,
            "DOUBLED: {count} of {packets}, at most {at_most}, such as {}\n{}",
            name().map_or(String::new(), Identity::say),
            name().map_or(String::new(), |it| story(world, running, it))
        );
    }
    Ok(())
}

/// What became of the copies of a packet, whatever their ends, node by node.
pub(crate) fn story(world: &World, running: Running, identity: &Identity) -> String {
    let mut lines = Vec::new();
    for (node, sightings) in world.nodes.iter().zip(&world.sightings) {
        let Some(node) = node else { continue };
        lines.push("  a tap:".to_owned());
        lines.push(story_of(node, sightings, running, identity));
    }
    lines.join("\n")
}

/// What became of the copies of a packet at one node.
pub(crate) fn story_of(
    node: &Node,
    sightings: &[Sighting],
    running: Running,
    identity: &Identity,
) -> String {
    let running = Running { is_told: true, ..running };
    let told = taps::run(node, sightings, running).told;
    let told = told.into_iter().filter(|(it, _)| it.invariant == identity.invariant);
    told.map(|(_, text)| format!("    {text}")).collect::<Vec<_>>().join("\n")
}
