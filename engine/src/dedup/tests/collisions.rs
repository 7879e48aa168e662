//! Packets that the table takes for each other: how often, and what it costs.

use super::super::key::Key;
use super::super::table::{MIN_MEMORY, Outcome, Table};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Packets of different content and equal ends, each at a point of its own, into a full table; how
/// many are taken for another. Of the hash's bits beyond those of the bucket, `bits` count.
fn false_drops(memory: u64, bits: u32, count: u64) -> u64 {
    const BUCKETS: u64 = (1 << 26) - 1;
    let table = Table::new(memory, 1 << 50).unwrap();
    let mut random = Random(u64::from(bits));
    let mut see = |n: u64| {
        let hash = random.next();
        let hash = (hash & BUCKETS) | (hash >> 26 & ((1 << bits) - 1)) << 26;
        // The bucket's bits are 10 here: those above are the check's, and must not tell.
        let hash = if bits < 38 { hash & !(BUCKETS & !0x3ff) } else { hash };
        let point = u16::try_from(n % 2000 + 1).unwrap();
        table.observe(Key::for_test(hash, 5, 6), point, n) == Outcome::Duplicate
    };
    for n in 0..table.memory() / 32 * 4 {
        see(n);
    }
    (0..count).map(|n| u64::from(see(n))).sum()
}

/// The formula: a full bucket has four others, each of which is equal in all bits with 2^-bits.
#[test]
fn false_drops_are_as_many_as_the_formula_says_at_every_width() {
    for bits in [8, 10, 12, 14, 16] {
        let count = 1 << (bits + 7).max(20);
        let expected = (count * 4) >> bits;
        let measured = false_drops(MIN_MEMORY, bits, count);
        eprintln!(
            "{bits} bits: {measured} of {count} dropped; 4 * 2^-{bits} says {expected} at most"
        );
        assert!(measured * 10 <= expected * 11, "{bits} bits: {measured}, not {expected}");
        assert!(measured * 10 >= expected * 8, "{bits} bits: {measured}, not {expected}");
    }
}

#[test]
#[ignore = "10^8 packets: cargo test --release -p models -- --ignored --nocapture full_load"]
fn at_full_load_and_full_width_nothing_is_dropped() {
    let count = 100_000_000;
    let dropped = false_drops(16 << 20, 38, count);
    eprintln!("{dropped} of {count} dropped; N * 2^-64 says {:e}", 1e8 * 2f64.powi(19 - 64));
    assert_eq!(dropped, 0);
}

/// The worst that a collision can do: all that the table knows of two packets is equal.
#[test]
fn a_collision_silences_one_packet_for_each_that_was_reported_elsewhere_and_none_at_its_own_point()
{
    for (ones, others) in [(1, 1), (1, 5), (5, 1), (40, 60)] {
        let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
        let key = Key::for_test(3, 5, 6);
        let reported = |point: u16, count: u32| {
            let see = |_: &u32| table.observe(key, point, 0) != Outcome::Duplicate;
            u32::try_from((0..count).filter(see).count()).unwrap()
        };
        assert_eq!(reported(1, ones), ones);
        assert_eq!(reported(1, others), others, "at the same point none is silenced");
        let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
        let reported = |point: u16, count: u32, now: u64| {
            let see = |_: &u32| table.observe(key, point, now) != Outcome::Duplicate;
            u32::try_from((0..count).filter(see).count()).unwrap()
        };
        assert_eq!(reported(1, ones, 0), ones);
        assert_eq!(others - reported(2, others, 0), ones.min(others), "one for each");
        assert_eq!(reported(2, others, 300_000_000), others, "and none after the window");
    }
}

/// Nothing less than all of it makes a collision.
#[test]
fn packets_that_differ_in_any_part_of_the_key_are_both_reported() {
    for bit in 0..64 {
        let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
        let one = Key::for_test(0, 5, 6);
        let other = Key::for_test(1 << bit, 5, 6);
        assert_ne!(table.observe(one, 1, 0), Outcome::Duplicate);
        assert_ne!(table.observe(other, 2, 0), Outcome::Duplicate, "bit {bit} of the hash");
        assert_eq!(table.observe(one, 2, 0), Outcome::Duplicate, "both are there");
        assert_eq!(table.observe(other, 1, 0), Outcome::Duplicate, "both are there");
    }
    for (source, destination) in [(7, 6), (5, 7), (6, 5)] {
        let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
        assert_ne!(table.observe(Key::for_test(0, 5, 6), 1, 0), Outcome::Duplicate);
        let other = Key::for_test(0, source, destination);
        assert_ne!(table.observe(other, 2, 0), Outcome::Duplicate, "{source} {destination}");
    }
    // The two ends together, where each alone has the fingerprint of the other packet's.
    let hash = |high: u64| high << 54;
    let (one, other) = (Key::new(0, hash(5), hash(6)), Key::new(0, hash(5) | 1, hash(6)));
    assert_eq!(one.id(0), other.id(0));
    let table = Table::new(MIN_MEMORY, 100_000_000).unwrap();
    assert_ne!(table.observe(one, 1, 0), Outcome::Duplicate);
    assert_ne!(table.observe(other, 2, 0), Outcome::Duplicate);
    assert_eq!(table.observe(one, 2, 0), Outcome::Duplicate);
}
