//! What the dedup table is compared with: the concurrent maps that the field uses, doing the least of its
//! work.
//!
//! ```text
//! hash --> (reports, sightings by point) --> was it reported as often as it was seen here?
//! ```

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};

use engine::dedup::{Key, Outcome, Table};

use super::GROUP;

/// The hash is the key already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AsItIs(u64);

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

/// Of every map here.
pub(super) type Build = BuildHasherDefault<AsItIs>;
/// Reports, and the sightings at two points.
type Counts = [u32; 3];

fn see(counts: &mut Counts, point: usize) -> bool {
    counts[point] += 1;
    let is_fresh = counts[point] > counts[0];
    counts[0] += u32::from(is_fresh);
    is_fresh
}

/// What is measured.
pub(super) trait Seen: Sync {
    /// Sees all of these keys at a point, 1 or 2, and says how many were new.
    fn see(&self, hashes: &[u64], point: usize, now_ns: u64) -> usize;
    /// A window has passed.
    fn sweep(&self);
}

/// Keys of a group are asked for before the first is looked up.
pub(super) fn observe_all(
    table: &Table,
    hashes: &[u64],
    point: usize,
    now_ns: u64,
    mut each: impl FnMut(Outcome),
) {
    let point = u16::try_from(point).expect("two points");
    for group in hashes.chunks(GROUP) {
        let keys = group.iter().map(|hash| Key::new(*hash, *hash, !*hash));
        keys.clone().for_each(|key| table.prefetch(key));
        for key in keys {
            each(table.observe(key, point, now_ns));
        }
    }
}

impl Seen for Table {
    fn see(&self, hashes: &[u64], point: usize, now_ns: u64) -> usize {
        let mut fresh = 0;
        observe_all(self, hashes, point, now_ns, |outcome| {
            fresh += usize::from(outcome != Outcome::Duplicate);
        });
        fresh
    }

    fn sweep(&self) {}
}

/// Its values are not to be changed, so the counts are behind a lock each, which nobody else holds.
pub(super) struct Papaya(papaya::HashMap<u64, Mutex<Counts>, Build>);

impl Papaya {
    pub(super) fn new(capacity: usize) -> Self {
        Self(papaya::HashMap::builder().capacity(capacity).hasher(Build::default()).build())
    }
}

impl Seen for Papaya {
    fn see(&self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        let map = self.0.pin();
        let seen = |hash: &u64| {
            let counts = map.get_or_insert_with(*hash, Default::default);
            usize::from(see(&mut counts.lock().unwrap_or_else(PoisonError::into_inner), point))
        };
        hashes.iter().map(seen).sum()
    }

    fn sweep(&self) {
        self.0.pin().clear();
    }
}

impl Seen for dashmap::DashMap<u64, Counts, Build> {
    fn see(&self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        hashes.iter().map(|hash| usize::from(see(&mut self.entry(*hash).or_default(), point))).sum()
    }

    fn sweep(&self) {
        self.clear();
    }
}

impl Seen for scc::HashMap<u64, Counts, Build> {
    fn see(&self, hashes: &[u64], point: usize, _now_ns: u64) -> usize {
        let seen = |hash: &u64| {
            let mut entry = self.entry_sync(*hash).or_default();
            usize::from(see(entry.get_mut(), point))
        };
        hashes.iter().map(seen).sum()
    }

    fn sweep(&self) {
        self.clear_sync();
    }
}
