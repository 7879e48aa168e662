//! `bench table`: the dedup table alone, beside the concurrent maps that the field uses.
//!
//! ```text
//! each key at one point, then, in another order, at a second --> operations a second
//! maps: key's hash -> (counts by point), no eviction asked of them, swept once a pass
//! ```
//!
//! A quarter of the slots is in use. Maps get the key's own hash, so that they need not make one, and are
//! spared what the table does beside: a window, eviction, twins.

use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use engine::dedup::{Key, Outcome, Table};

use crate::error::Error;
use crate::record::Figure;

/// A table that fits a core's second-level cache, and one that fits no cache of a core.
const SIZES: [(&str, u64); 2] = [("resident", 256 << 10), ("cold", 64 << 20)];
/// Bytes of a slot.
const SLOT: u64 = 32;
/// Keys that are asked for before the first of them is looked up.
const GROUP: usize = 16;
const WINDOW_NS: u64 = 100_000_000;
const LEAST_OPERATIONS: usize = 2_000_000;

/// The hash is the key already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type Build = BuildHasherDefault<AsItIs>;
/// Reports, and the counts of two points.
type Counts = [u32; 3];

/// splitmix64: the same keys in every run.
fn random(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hashes of a pass, and the order in which the second point sees them.
struct Pass {
    first: Vec<u64>,
    second: Vec<u64>,
}

impl Pass {
    fn new(number: u64, keys: usize) -> Self {
        let first: Vec<u64> = (0..keys as u64).map(|n| random(number << 32 | n)).collect();
        // A step that shares no factor with any power of two.
        let second = (0..keys).map(|n| first[n.wrapping_mul(7919) % keys]).collect();
        Self { first, second }
    }
}

fn see(counts: &mut Counts, point: usize) -> bool {
    counts[point] += 1;
    let is_fresh = counts[point] > counts[0];
    counts[0] += u32::from(is_fresh);
    is_fresh
}

/// What is measured: sees all of these keys at a point, and says how many were new.
trait Seen {
    fn see(&mut self, hashes: &[u64], point: usize, now_ns: u64) -> usize;
    /// A window has passed.
    fn sweep(&mut self);
}

impl Seen for Table {
    fn see(&mut self, hashes: &[u64], point: usize, now_ns: u64) -> usize {
        let point = u16::try_from(point).expect("two points");
        let mut fresh = 0;
        for group in hashes.chunks(GROUP) {
            let keys = group.iter().map(|hash| Key::of_hashes(*hash, *hash, !*hash));
            keys.clone().for_each(|key| self.prefetch(key));
            for key in keys {
                fresh += usize::from(self.observe(key, point, now_ns) != Outcome::Duplicate);
            }
        }
        fresh
    }

    fn sweep(&mut self) {}
}

struct Papaya(papaya::HashMap<u64, std::sync::Mutex<Counts>, Build>);

impl Seen for Papaya {
    fn see(&mut self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        let map = self.0.pin();
        let seen = |hash: &u64| {
            let counts = map.get_or_insert_with(*hash, Default::default);
            usize::from(see(&mut counts.lock().expect("no panic"), point))
        };
        hashes.iter().map(seen).sum()
    }

    fn sweep(&mut self) {
        self.0.pin().clear();
    }
}

impl Seen for dashmap::DashMap<u64, Counts, Build> {
    fn see(&mut self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        hashes.iter().map(|hash| usize::from(see(&mut self.entry(*hash).or_default(), point))).sum()
    }

    fn sweep(&mut self) {
        self.clear();
    }
}

impl Seen for scc::HashMap<u64, Counts, Build> {
    fn see(&mut self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        let seen = |hash: &u64| {
            let mut entry = self.entry_sync(*hash).or_default();
            usize::from(see(entry.get_mut(), point))
        };
        hashes.iter().map(seen).sum()
    }

    fn sweep(&mut self) {
        self.clear_sync();
    }
}

/// Million operations a second.
fn rate(seen: &mut dyn Seen, keys: usize, first_pass: u64) -> Result<f64, Error> {
    let passes = (LEAST_OPERATIONS / (2 * keys)).max(3);
    let mut seconds = 0.0;
    for number in 0..passes as u64 {
        let pass = Pass::new(first_pass + number, keys);
        let now_ns = (first_pass + number) * 3 * WINDOW_NS;
        let started = Instant::now();
        let fresh = seen.see(&pass.first, 1, now_ns);
        let again = seen.see(&pass.second, 2, now_ns + 1000);
        seen.sweep();
        seconds += started.elapsed().as_secs_f64();
        // What is evicted within the window is new again: of a quarter full table, hardly any.
        if fresh != keys || again > keys / 50 {
            return Err(Error::Unbelievable(format!(
                "{fresh} new and {again} again of {keys} keys"
            )));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let operations = (passes * 2 * keys) as f64;
    Ok(operations / seconds / 1e6)
}

/// The figures of `rounds` rounds; the table and every map in each.
///
/// # Errors
///
/// A map or a table that takes one key for another.
pub fn measure(rounds: usize, say: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    for (name, memory) in SIZES {
        let keys = usize::try_from(memory / SLOT / 4).expect("some millions");
        let names = ["table", "papaya", "dashmap", "scc"];
        let mut samples: [Vec<f64>; 4] = Default::default();
        let mut ratios = Vec::new();
        for round in 1..=rounds {
            say(&format!("table, {name}: round {round} of {rounds}"));
            let table = Table::new(memory, WINDOW_NS)
                .map_err(|error| Error::Unbelievable(error.to_string()))?;
            let hasher = Build::default;
            let mut all: [Box<dyn Seen>; 4] = [
                Box::new(table),
                Box::new(Papaya(
                    papaya::HashMap::builder().capacity(keys).hasher(hasher()).build(),
                )),
                Box::new(dashmap::DashMap::with_capacity_and_hasher(keys, hasher())),
                Box::new(scc::HashMap::with_capacity_and_hasher(keys, hasher())),
            ];
            for (seen, samples) in all.iter_mut().zip(&mut samples) {
                samples.push(rate(&mut **seen, keys, 1 + round as u64 * 1000)?);
            }
            let last = |of: usize| samples[of][round - 1];
            ratios.push(last(0) / (1..4).map(last).fold(f64::MIN, f64::max));
        }
        for (of, samples) in names.into_iter().zip(samples) {
            let figure = match of {
                "table" => format!("table/{name}/mops"),
                map => format!("table/{name}/{map}-mops"),
            };
            figures.push(Figure::new(&figure, "Mop/s", samples)?);
        }
        figures.push(Figure::new(&format!("table/{name}/best-map-ratio"), "ratio", ratios)?);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_order_has_the_same_keys() {
        let pass = Pass::new(3, 2048);
        let (mut first, mut second) = (pass.first.clone(), pass.second);
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, second);
        first.dedup();
        assert_eq!(first.len(), 2048);
    }

    #[test]
    fn all_of_them_say_the_same() {
        let (memory, keys) = (256 << 10, 2048);
        let mut all: [Box<dyn Seen>; 4] = [
            Box::new(Table::new(memory, WINDOW_NS).unwrap()),
            Box::new(Papaya(papaya::HashMap::builder().hasher(Build::default()).build())),
            Box::new(dashmap::DashMap::with_hasher(Build::default())),
            Box::new(scc::HashMap::with_hasher(Build::default())),
        ];
        let pass = Pass::new(1, keys);
        for seen in &mut all {
            assert_eq!(seen.see(&pass.first, 1, 0), keys);
            assert!(seen.see(&pass.second, 2, 1000) < keys / 50);
            assert_eq!(seen.see(&pass.first[..10], 1, 2000), 10, "repeats are reported");
        }
    }
}
