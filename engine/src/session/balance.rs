//! Who gets which flow: a table of slots, each owned by one member of a group.
//!
//! ```text
//! flow --upper bits--> slot --table--> member
//! slot, each sensor's name --hash, highest wins--> sensor; then the same among its connections
//! ```
//!
//! Rendezvous hashing: who owns a slot depends on the names of those who are there, never on their
//! order, so every node comes to the same answer; and when one goes, only its slots change hands.
//! Two steps, so that a lost connection's share stays with its sensor.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Entries of a table: fine enough to give 16 members shares that are equal to within a few
/// percent, and small enough (8 KiB) to stay in the cache.
pub const SLOTS: usize = 4096;

/// The slot of a flow.
#[inline]
#[must_use]
pub fn slot(flow: u64) -> usize {
    let [first, second, ..] = flow.to_be_bytes();
    usize::from(u16::from_be_bytes([first, second]) >> 4)
}

/// A member by its name: the sensor as configured, and which of the connections to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a> {
    /// `host:port`.
    pub sensor: &'a str,
    /// From 0.
    pub ordinal: usize,
}

struct Sensor<'a> {
    name: &'a str,
    seed: u64,
    /// Each one's seed, and its place in the list of members.
    connections: Vec<(u64, u16)>,
}

/// For each slot, the place in `members` of its owner. Members' names differ; there are at least
/// one and at most 65536.
#[must_use]
pub fn owners(members: &[Name<'_>]) -> Box<[u16]> {
    let mut sensors: Vec<Sensor<'_>> = Vec::new();
    for (place, member) in (0u16..).zip(members) {
        let seed = xxh3_64(member.sensor.as_bytes());
        let ordinal = u64::try_from(member.ordinal).unwrap_or(u64::MAX);
        let connection = (xxh3_64_with_seed(&ordinal.to_be_bytes(), seed), place);
        match sensors.iter_mut().find(|sensor| sensor.name == member.sensor) {
            Some(sensor) => sensor.connections.push(connection),
            None => {
                let connections = vec![connection];
                sensors.push(Sensor { name: member.sensor, seed, connections });
            }
        }
    }
    let owner = |slot: u16| {
        let weight = |seed: u64| (xxh3_64_with_seed(&slot.to_be_bytes(), seed), seed);
        let sensor = sensors.iter().max_by_key(|sensor| weight(sensor.seed));
        let connections = sensor.map_or(&[][..], |sensor| &sensor.connections);
        connections.iter().max_by_key(|(seed, _)| weight(*seed)).map_or(0, |(_, place)| *place)
    };
    (0u16..).take(SLOTS).map(owner).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn name(sensor: &str, ordinal: usize) -> Name<'_> {
        Name { sensor, ordinal }
    }

    /// Each slot's owner, by name.
    fn named<'a>(members: &[Name<'a>]) -> Vec<Name<'a>> {
        owners(members).iter().map(|place| members[usize::from(*place)]).collect()
    }

    #[test]
    fn the_table_is_the_same_in_every_version_and_on_every_machine() {
        // Changing these numbers makes nodes of two versions split flows during an upgrade.
        let members = [name("10.0.0.1:2003", 0), name("10.0.0.2:2003", 0), name("s.example:99", 0)];
        assert_eq!(owners(&members)[..16], FIRST_OWNERS);
        assert_eq!(slot(0xabcd_0000_0000_0001), 0xabc);
    }
    const FIRST_OWNERS: [u16; 16] = [2, 2, 0, 1, 0, 2, 0, 2, 0, 0, 2, 0, 2, 2, 2, 2];

    #[test]
    fn shares_are_nearly_equal() {
        let hosts: Vec<String> = (0..16).map(|n| format!("10.0.0.{n}:2003")).collect();
        let members: Vec<_> = hosts.iter().map(|host| name(host, 0)).collect();
        let mut counts = HashMap::new();
        named(&members).into_iter().for_each(|owner| *counts.entry(owner).or_insert(0) += 1);
        assert!(
            counts.len() == 16 && counts.values().all(|n| (190..330).contains(n)),
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn removing_a_member_moves_only_its_slots(sensors in 2..6usize, each in 1..4usize,
                                                  gone in any::<prop::sample::Index>()) {
            let hosts: Vec<String> = (0..sensors).map(|n| format!("sensor-{n}:2003")).collect();
            let members: Vec<_> =
                hosts.iter().flat_map(|host| (0..each).map(|k| name(host, k))).collect();
            let gone = members[gone.index(members.len())];
            let left: Vec<_> = members.iter().copied().filter(|member| *member != gone).collect();
            for (before, after) in named(&members).into_iter().zip(named(&left)) {
                if before != gone {
                    prop_assert_eq!(before, after);
                } else if each > 1 {
                    prop_assert_eq!(before.sensor, after.sensor, "its sensor's other connections");
                }
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(
            shuffled in Just((0..9usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let hosts = ["a:1", "b:1", "c:1"];
            let members: Vec<_> = (0..9).map(|n| name(hosts[n % 3], n / 3)).collect();
            let other: Vec<_> = shuffled.iter().map(|n| members[*n]).collect();
            prop_assert_eq!(named(&members), named(&other));
        }
    }
}
