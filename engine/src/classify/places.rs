//! What is known of interfaces, by their index.
//!
//! ```text
//! ifindex --multiply, high bits--> first place of a table at most half full --> next --> found, or empty
//! ```
//!
//! Asked once per frame; a general map's hash takes longer than all the rest of the question.

use crate::net::Role;

/// What is known of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u16,
    pub(super) role: Role,
    pub(super) is_tapped: bool,
    pub(super) mtu: u32,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// A power of two of them, at least one empty.
    table: Vec<Option<(u32, Place)>>,
    shift: u32,
}

impl Places {
    pub(super) fn new(places: impl IntoIterator<Item = (u32, Place)>) -> Self {
        let places: Vec<_> = places.into_iter().collect();
        let len = (places.len() * 2).next_power_of_two().max(2);
        let mut made = Self { table: vec![None; len], shift: 32 - len.ilog2() };
        for (ifindex, place) in places {
            let at = made.search(ifindex);
            made.table[at] = Some((ifindex, place));
        }
        made
    }

    /// Where the interface is, or would be.
    #[inline]
    fn search(&self, ifindex: u32) -> usize {
        let mask = self.table.len() - 1;
        let mut at = (ifindex.wrapping_mul(0x9e37_79b1) >> self.shift) as usize & mask;
        while self.table[at].is_some_and(|(known, _)| known != ifindex) {
            at = (at + 1) & mask;
        }
        at
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&u32, &Place)> {
        self.table.iter().flatten().map(|(ifindex, place)| (ifindex, place))
    }

    #[inline]
    pub(super) fn get(&self, ifindex: u32) -> Option<Place> {
        self.table[self.search(ifindex)].map(|(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_found_and_no_other() {
        for count in [0, 1, 2, 3, 100, 2000] {
            // Consecutive, and far apart, as after years of pods.
            for step in [1, 4096, 0x0100_0001] {
                let place = |n: u32| Place {
                    slot: u16::try_from(n).unwrap(),
                    role: Role::Pod,
                    is_tapped: n.is_multiple_of(2),
                    mtu: n,
                };
                let places =
                    Places::new((0..count).map(|n: u32| (n.wrapping_mul(step) + 1, place(n))));
                for n in 0..count {
                    assert_eq!(places.get(n.wrapping_mul(step) + 1), Some(place(n)));
                }
                assert_eq!(places.get(count.wrapping_mul(step) + 1), None);
                assert_eq!(places.get(0), None);
            }
        }
    }
}
