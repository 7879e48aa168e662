//! `bench table`: the dedup table alone, beside the concurrent maps that the field uses.
//!
//! ```text
//! each thread, pinned: its new keys at one point (misses), then, in another order, at a second (hits); the window
//!     goes by --> operations a second of all threads
//! table alone: more new keys than it has slots, within one window --> evictions a second
//! ```
//!
//! A quarter of the slots is in use. Maps get the key's own hash, so that they need not make one, are swept once a
//! window, and are spared what the table does beside: points' numbers, twins, eviction.

mod maps;
mod threads;

use std::time::{Duration, Instant};

use engine::dedup::{Outcome, Table};

use self::maps::{Build, Papaya, Seen, observe_all};
use self::threads::{Together, thread_counts};
use crate::error::Error;
use crate::record::{Figure, Figures};

/// A table that fits a core's second-level cache, and one that fits no cache of a core.
const SIZES: [(&str, u64); 2] = [("resident", 256 << 10), ("cold", 64 << 20)];
/// Bytes of a slot.
const SLOT: u64 = 32;
/// Keys that are asked for before the first of them is looked up.
const GROUP: usize = 16;
const WINDOW_NS: u64 = 100_000_000;
const LEAST_OPERATIONS: usize = 2_000_000;
const NAMES: [&str; 4] = ["table", "papaya", "dashmap", "scc"];

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
    /// Passes of different numbers have different keys.
    fn new(number: u64, keys: usize) -> Self {
        let first: Vec<u64> = (0..keys as u64).map(|n| random(number << 32 | n)).collect();
        // A step that shares no factor with any power of two.
        let second = (0..keys).map(|n| first[n.wrapping_mul(7919) % keys]).collect();
        Self { first, second }
    }
}

fn table(memory: u64) -> Result<Table, Error> {
    Table::new(memory, WINDOW_NS).map_err(|error| Error::Unbelievable(error.to_string()))
}

/// What is compared, by [`NAMES`].
fn all(memory: u64, keys: usize) -> Result<[Box<dyn Seen>; 4], Error> {
    let hasher = Build::default;
    Ok([
        Box::new(table(memory)?),
        Box::new(Papaya::new(keys)),
        Box::new(dashmap::DashMap::with_capacity_and_hasher(keys, hasher())),
        Box::new(scc::HashMap::with_capacity_and_hasher(keys, hasher())),
    ])
}

/// Million operations a second.
struct Rates {
    all: f64,
    misses: f64,
    hits: f64,
    /// Keys that the second point reported again, since their slot was another's by then.
    again: f64,
}

fn millions(operations: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let operations = operations as f64;
    operations / time.as_secs_f64() / 1e6
}

/// What one thread did.
#[derive(Default)]
struct Counted {
    misses: Duration,
    hits: Duration,
    sweeps: Duration,
    fresh: usize,
    again: usize,
}

/// `keys` are of all threads together. No two calls may have the same `first_pass`.
fn rates(seen: &dyn Seen, threads: usize, keys: usize, first_pass: u64) -> Result<Rates, Error> {
    let each = keys / threads;
    let passes = (LEAST_OPERATIONS / (2 * keys)).max(3);
    let together = Together::new(threads);
    let counted = together.run(|worker, meet| {
        let mut counted = Counted::default();
        for number in first_pass..first_pass + passes as u64 {
            let pass = Pass::new(number * threads as u64 + worker as u64, each);
            let now_ns = number * 3 * WINDOW_NS;
            meet();
            let started = Instant::now();
            counted.fresh += seen.see(&pass.first, 1, now_ns);
            let once = Instant::now();
            counted.again += seen.see(&pass.second, 2, now_ns + 1000);
            counted.hits += once.elapsed();
            counted.misses += once - started;
            meet();
            if worker == 0 {
                let started = Instant::now();
                seen.sweep();
                counted.sweeps += started.elapsed();
            }
        }
        counted
    });
    let [fresh, again] = [|it: &Counted| it.fresh, |it: &Counted| it.again]
        .map(|count| counted.iter().map(count).sum::<usize>());
    let operations = passes * each * threads;
    // What is evicted within the window is new again: of a quarter full table, hardly any.
    if fresh != operations || again > operations / 50 {
        return Err(Error::Unbelievable(format!(
            "{fresh} new and {again} again of {operations} keys"
        )));
    }
    let slowest =
        |time: fn(&Counted) -> Duration| counted.iter().map(time).max().unwrap_or_default();
    let whole = slowest(|it| it.misses + it.hits) + slowest(|it| it.sweeps);
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let again = again as f64 / operations as f64;
    Ok(Rates {
        all: millions(2 * operations, whole),
        misses: millions(operations, slowest(|it| it.misses)),
        hits: millions(operations, slowest(|it| it.hits)),
        again,
    })
}

/// Million insertions a second into a table that is full of what is still remembered.
fn evictions(memory: u64) -> Result<f64, Error> {
    let table = table(memory)?;
    let slots = usize::try_from(memory / SLOT).expect("some millions");
    // One table's slots fill it but for a few; what comes then finds it full.
    let fill = Pass::new(1, 2 * slots);
    observe_all(&table, &fill.first, 1, 0, |_| ());
    let passes = (LEAST_OPERATIONS / slots).max(1) as u64;
    let (mut evicted, mut time) = (0, Duration::ZERO);
    for number in 0..passes {
        let pass = Pass::new(2 + number, slots);
        let started = Instant::now();
        observe_all(&table, &pass.first, 1, 0, |outcome| {
            evicted += usize::from(outcome == Outcome::Fresh { evicted: true });
        });
        time += started.elapsed();
    }
    let operations = usize::try_from(passes).expect("hundreds") * slots;
    if evicted < operations / 100 * 95 {
        return Err(Error::Unbelievable(format!(
            "{evicted} of {operations} insertions into a full table evicted"
        )));
    }
    Ok(millions(operations, time))
}

/// The figures of `rounds` rounds; the table and every map in each.
///
/// # Errors
///
/// A map or a table that takes one key for another.
pub fn measure(rounds: usize, say: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Error> {
    let mut figures = Figures::default();
    // Every call its own keys.
    let mut first_pass = 1;
    for (name, memory) in SIZES {
        let keys = usize::try_from(memory / SLOT / 4).expect("some millions");
        for round in 1..=rounds {
            for threads in thread_counts() {
                say(&format!("table, {name}, threads {threads}: round {round} of {rounds}"));
                let place = match threads {
                    1 => format!("table/{name}"),
                    _ => format!("table/{name}/threads-{threads}"),
                };
                let mut reached = Vec::new();
                for (of, seen) in NAMES.into_iter().zip(all(memory, keys)?) {
                    let rates = rates(&*seen, threads, keys, first_pass)?;
                    first_pass += 1000;
                    reached.push(rates.all);
                    let figure = match of {
                        "table" => format!("{place}/mops"),
                        map => format!("{place}/{map}-mops"),
                    };
                    figures.add(&figure, "Mop/s", rates.all);
                    if of == "table" {
                        figures.add(&format!("{place}/misses-mops"), "Mop/s", rates.misses);
                        figures.add(&format!("{place}/hits-mops"), "Mop/s", rates.hits);
                        figures.add(&format!("{place}/reported-again"), "share", rates.again);
                    }
                }
                let best = reached[1..].iter().copied().fold(f64::MIN, f64::max);
                figures.add(&format!("{place}/best-map-ratio"), "ratio", reached[0] / best);
            }
            figures.add(&format!("table/{name}/evictions-mops"), "Mop/s", evictions(memory)?);
        }
    }
    figures.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 256 << 10;

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
        let keys = 2048;
        let pass = Pass::new(1, keys);
        for seen in all(MEMORY, keys).unwrap() {
            assert_eq!(seen.see(&pass.first, 1, 0), keys);
            assert!(seen.see(&pass.second, 2, 1000) < keys / 50);
            assert_eq!(seen.see(&pass.first[..10], 1, 2000), 10, "repeats are reported");
            seen.sweep();
            assert_eq!(seen.see(&pass.first, 2, 3 * WINDOW_NS), keys, "the window is over");
        }
    }

    #[test]
    fn threads_have_keys_of_their_own() {
        for seen in all(MEMORY, 2048).unwrap() {
            let rates = rates(&*seen, 2, 2048, 1).unwrap();
            assert!(rates.all > 0.0 && rates.again < 0.02);
        }
    }

    #[test]
    fn what_takes_one_key_for_another_is_not_believed() {
        struct Blind;
        impl Seen for Blind {
            fn see(&self, hashes: &[u64], _point: usize, _now_ns: u64) -> usize {
                hashes.len() - 1
            }
            fn sweep(&self) {}
        }
        assert!(rates(&Blind, 1, 2048, 1).is_err());
    }

    #[test]
    fn a_full_table_evicts() {
        assert!(evictions(MEMORY).unwrap() > 0.0);
    }
}
