//! A packet's name in the table, and how it is laid out in a slot's words.
//!
//! ```text
//! hash (64)   content, without ends: bits 25..0 choose the bucket (as many as the table has)
//!             bits 63..24 tag -> slot's id      bits 23..12 check -> slot's state
//! ends (2*10) of each end alone a bit, whether it is a host's, and a fingerprint (9) -> slot's id
//! exact (20)  a fingerprint of both ends together, for who ignores none -> slot's time
//! ```
//!
//! Bucket, tag and check are all the 64 bits of the hash (in tables of less than 2^12 buckets, half a
//! megabyte, all but two), so that two packets of different content are taken for one only where all
//! of it is equal. Packets of equal content from different ends
//! (heartbeats, probes) differ in 29 bits at least, if one end is the same, else in 38.

const END_BITS: u32 = 10;
/// Of an end: it is a host's or a service's, see [`Marks`].
const MARK: u64 = 1 << (END_BITS - 1);
const END_MASK: u64 = (1 << END_BITS) - 1;
const ENDS_MASK: u64 = (1 << (2 * END_BITS)) - 1;
/// Bits of a slot's generation: in its id and in its state.
pub(super) const GENERATION_BITS: u32 = 4;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const GENERATION_SHIFT: u32 = 2 * END_BITS;
const TAG_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
/// Bits of the check.
pub(super) const CHECK_BITS: u32 = 12;
/// Bits of the fingerprint of both ends.
pub(super) const EXACT_BITS: u32 = 20;

/// Which ends of a packet are addresses that a translation puts in a pod's place: the node's own and
/// those of services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The source.
    pub source: bool,
    /// The destination.
    pub destination: bool,
}

/// Which ends of a frame may be a translation's, and are ignored in the search for its twin. What
/// differs there must differ as a translation makes it: of the two addresses one is marked
/// ([`Marks`]), and the other is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// The source.
    pub source: bool,
    /// The destination.
    pub destination: bool,
}

/// A packet's name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    hash: u64,
    /// Source and destination: each a mark and a fingerprint, the latter at least 1.
    ends: u64,
    exact: u64,
}

impl Key {
    /// Of the content's hash and those of the two ends, of which none is marked.
    #[must_use]
    pub fn new(hash: u64, source: u64, destination: u64) -> Self {
        let end = |hash: u64| (hash >> (64 - END_BITS + 1)).max(1);
        // As good as the ends' own hashes, and not the same for two ends in the other order.
        let both = source.rotate_left(23).wrapping_add(destination);
        Self {
            hash,
            ends: end(source) << END_BITS | end(destination),
            exact: fold(both, 0xa076_1d64_78bd_642f) >> (64 - EXACT_BITS),
        }
    }

    /// With the ends that are marked.
    #[must_use]
    pub fn marked(self, marks: Marks) -> Self {
        let source = if marks.source { MARK << END_BITS } else { 0 };
        let destination = if marks.destination { MARK } else { 0 };
        Self { ends: self.ends | source | destination, ..self }
    }

    pub(super) fn hash(self) -> u64 {
        self.hash
    }

    /// The part of the hash that is in a slot's state.
    pub(super) fn check(self) -> u32 {
        u32::try_from(self.hash >> (TAG_SHIFT - CHECK_BITS) & ((1 << CHECK_BITS) - 1))
            .expect("masked")
    }

    pub(super) fn exact(self) -> u64 {
        self.exact
    }

    /// The id of a slot that holds it, never 0.
    pub(super) fn id(self, generation: u32) -> Id {
        let tag = self.hash >> TAG_SHIFT;
        Id(tag << TAG_SHIFT | u64::from(generation) << GENERATION_SHIFT | self.ends)
    }

    /// With these fingerprints of ends; the one of both is theirs.
    #[cfg(test)]
    pub(crate) fn for_test(hash: u64, source: u64, destination: u64) -> Self {
        assert!((1..MARK).contains(&source) && (1..MARK).contains(&destination));
        let ends = source << END_BITS | destination;
        Self { hash, ends, exact: ends }
    }
}

/// Multiplies, and folds the product: each bit of the result depends on all of both.
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let low = u64::try_from(product & u128::from(u64::MAX)).expect("masked");
    let high = u64::try_from(product >> 64).expect("64 bits are left");
    low ^ high
}

/// The first word of a slot: tag, generation, ends. 0 = never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(pub(super) u64);

impl Id {
    pub(super) fn is_used(self) -> bool {
        self.0 != 0
    }

    /// Counts the slot's owners.
    pub(super) fn generation(self) -> u32 {
        u32::try_from(self.0 >> GENERATION_SHIFT & GENERATION_MASK).expect("masked")
    }

    /// Of the slot's next owner.
    pub(super) fn next_generation(self) -> u32 {
        (self.generation() + 1) & ((1 << GENERATION_BITS) - 1)
    }

    /// True if this slot was taken for the key, or one that differs in check or both ends alone.
    pub(super) fn is_of(self, key: Key) -> bool {
        self == key.id(self.generation())
    }

    /// How many ends are those of the key, if the tag is and each end is, or is ignored and may be a
    /// translation of the key's.
    pub(super) fn twin_ends(self, key: Key, ignored: Translated) -> Option<u32> {
        let differs = self.0 ^ key.id(self.generation()).0;
        if differs & !ENDS_MASK != 0 {
            return None;
        }
        let end = |differs: u64, is_ignored: bool| match differs & END_MASK {
            0 => Some(1),
            differs => (is_ignored && differs & MARK != 0).then_some(0),
        };
        Some(end(differs >> END_BITS, ignored.source)? + end(differs, ignored.destination)?)
    }
}
