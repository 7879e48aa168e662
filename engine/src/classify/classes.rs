//! What an address is, in all the senses that decide about a packet: one look-up for all of them.
//!
//! ```text
//! prefixes of every set --cut at all their ends--> ranges, each with its classes
//! address --Recall: seen lately?--no--> halving over the ranges (IPv4 and IPv6 apart)
//! ```
//!
//! The ranges are the classifier's, and never change. A [`Recall`] is a worker's own and forgets
//! everything when the classifier is another.

use crate::wire::{Address, PrefixSet};

/// A set of properties of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Classes(u8);

impl Classes {
    /// The node's own.
    pub(super) const OWN: Self = Self(1);
    /// In SVCNET.
    pub(super) const SERVICE: Self = Self(1 << 1);
    /// Local to another node that runs a tap.
    pub(super) const COVERED: Self = Self(1 << 2);
    /// A sensor, or a client that connected to the tap.
    pub(super) const PEER: Self = Self(1 << 3);

    /// What a translation puts in a pod's place.
    pub(super) const HOST: Self = Self(Self::OWN.0 | Self::SERVICE.0);

    pub(super) fn with(self, other: Self, is_so: bool) -> Self {
        Self(self.0 | if is_so { other.0 } else { 0 })
    }

    /// Both addresses' together.
    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if it is one of `other`.
    pub(super) fn is(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Where ranges begin, ascending from zero, and what the addresses in each are.
#[derive(Clone, Debug)]
struct Ranges<T> {
    starts: Vec<T>,
    classes: Vec<Classes>,
}

impl<T: Copy + Ord> Ranges<T> {
    fn new(mut starts: Vec<T>, classes_at: impl Fn(T) -> Classes) -> Self {
        starts.sort_unstable();
        starts.dedup();
        let mut ranges = Self { starts: Vec::new(), classes: Vec::new() };
        for start in starts {
            let classes = classes_at(start);
            if ranges.classes.last() != Some(&classes) {
                ranges.starts.push(start);
                ranges.classes.push(classes);
            }
        }
        ranges
    }

    fn classes(&self, at: T) -> Classes {
        let after = self.starts.partition_point(|start| *start <= at);
        // The first range begins at zero.
        after.checked_sub(1).map_or(Classes::default(), |index| self.classes[index])
    }
}

/// All addresses; see the module.
#[derive(Clone, Debug)]
pub(super) struct AddressClasses {
    v4: Ranges<u32>,
    all: Ranges<u128>,
}

impl AddressClasses {
    /// `classes_of` is the truth; it may change only where a prefix of `sets` begins or ends.
    pub(super) fn new<'a>(
        sets: impl IntoIterator<Item = &'a PrefixSet>,
        classes_of: impl Fn(Address) -> Classes,
    ) -> Self {
        let (first_v4, last_v4) = (Address::from_v4([0; 4]).0, Address::from_v4([255; 4]).0);
        let mut starts = vec![0, first_v4];
        for (first, last) in sets.into_iter().flat_map(PrefixSet::ranges) {
            starts.push(first);
            starts.extend(last.checked_add(1));
        }
        let v4 = starts.iter().filter(|start| (first_v4..=last_v4).contains(start));
        let v4 = v4.map(|start| u32::try_from(start - first_v4).expect("within IPv4")).collect();
        Self {
            v4: Ranges::new(v4, |start| classes_of(Address::from_v4(start.to_be_bytes()))),
            all: Ranges::new(starts, |start| classes_of(Address(start))),
        }
    }

    pub(super) fn of(&self, address: Address) -> Classes {
        match address.as_v4() {
            Some(v4) => self.v4.classes(v4),
            None => self.all.classes(address.0),
        }
    }
}

/// Entries of a [`Recall`]: 16 KiB.
const ENTRIES: usize = 1 << 11;
const HIT: u64 = 1 << 8;

/// The IPv4 addresses that a worker asked for lately; see the module.
#[derive(Clone, Debug)]
pub struct Recall {
    /// The classifier's number.
    of: u64,
    /// Address (32), nothing (23), `HIT` (1), classes (8); 0 is none.
    entries: Box<[u64; ENTRIES]>,
}

impl Default for Recall {
    fn default() -> Self {
        Self { of: 0, entries: Box::new([0; ENTRIES]) }
    }
}

impl Recall {
    /// Once per batch, with the classifier's number.
    pub(super) fn begin(&mut self, number: u64) {
        if self.of != number {
            self.of = number;
            self.entries.fill(0);
        }
    }

    #[inline]
    pub(super) fn classes(&mut self, known: &AddressClasses, address: Address) -> Classes {
        let Some(v4) = address.as_v4() else { return known.of(address) };
        // Fibonacci: the product's high bits depend on all of the address.
        let at = v4.wrapping_mul(0x9e37_79b1) >> (32 - ENTRIES.ilog2());
        let entry = &mut self.entries[at as usize % ENTRIES];
        let name = u64::from(v4) << 32 | HIT;
        if *entry & !0xff == name {
            return Classes((*entry & 0xff).to_le_bytes()[0]);
        }
        let classes = known.of(address);
        *entry = name | u64::from(classes.0);
        classes
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    fn net() -> impl Strategy<Value = IpNet> {
        // Few different bits, so that prefixes hold each other and the addresses asked for.
        let v4 = (0..16u32, prop_oneof![0..=8u8, 24..=32u8])
            .prop_map(|(low, bits)| IpNet::new(IpAddr::V4((0x0a00_0000 | low).into()), bits));
        let v6 = (0..16u128, prop_oneof![0..=8u8, 94..=98u8, 124..=128u8])
            .prop_map(|(low, bits)| IpNet::new(IpAddr::V6((0xfd << 120 | low).into()), bits));
        prop_oneof![v4, v6].prop_map(|net| net.expect("few enough bits").trunc())
    }

    fn address() -> impl Strategy<Value = Address> {
        prop_oneof![
            (0..17u32).prop_map(|low| Address::from_v4((0x0a00_0000 | low).to_be_bytes())),
            (0..17u128).prop_map(|low| Address(0xfd << 120 | low)),
            any::<u32>().prop_map(|any| Address::from_v4(any.to_be_bytes())),
            any::<u128>().prop_map(Address),
            Just(Address(0)),
            Just(Address(u128::MAX)),
            Just(Address(Address::from_v4([255; 4]).0 + 1)),
        ]
    }

    proptest! {
        #[test]
        fn one_look_up_says_what_the_sets_say(
            nets in proptest::collection::vec((net(), 0..3usize), 0..20),
            asked in proptest::collection::vec(address(), 1..60),
        ) {
            let of = |index| {
                PrefixSet::new(nets.iter().filter(|(_, of)| *of == index).map(|(net, _)| *net))
            };
            let sets = [of(0), of(1), of(2)];
            let truth = |address| {
                Classes::default()
                    .with(Classes::OWN, sets[0].contains(address))
                    .with(Classes::SERVICE, sets[1].contains(address))
                    .with(Classes::COVERED, sets[2].contains(address) && !sets[0].contains(address))
            };
            let known = AddressClasses::new(&sets, truth);
            let none = AddressClasses::new(&[] as &[PrefixSet], |_| Classes::default());
            let mut recall = Recall::default();
            for round in 1..=2 {
                recall.begin(1);
                for address in &asked {
                    prop_assert_eq!(known.of(*address), truth(*address));
                    let said = recall.classes(&known, *address);
                    prop_assert_eq!(said, truth(*address), "round {}", round);
                }
            }
            recall.begin(2);
            for address in asked {
                prop_assert_eq!(recall.classes(&none, address), Classes::default());
            }
        }
    }
}
