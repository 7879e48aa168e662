//! How long frames take, stage by stage.
//!
//! ```text
//! worker --record--> local histogram --publish, once a second, try_lock--> shared
//!                                                              exporter --snapshot--^
//! ```
//!
//! Recording touches memory of the worker's own and takes no lock; publishing gives up where the
//! exporter is just reading, and the next round carries the more. Values are nanoseconds from 1 ns
//! to 60 s, longer ones counted as 60 s, exact to 1 %: the memory is fixed, 30 KiB per stage.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::reasons;

reasons! {
    /// What is timed.
    Stage {
        /// From the kernel's timestamp until the worker takes the frame.
        Ring = "ring",
        /// From there until its datagram is handed on to be sent.
        BatchWait = "batch_wait",
        /// From there until the kernel has taken it.
        Send = "send",
    }
}

const LONGEST_NS: u64 = 60_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 2; // buckets of the exposition are powers of two: 1 % is plenty
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// Upper bounds of the exposition's buckets: 1 us, doubled up to 8.4 s.
const BUCKETS: usize = 24;
const FIRST_BUCKET_NS: u64 = 1_000;

type Stages = [Histogram<u64>; Stage::ALL.len()];

fn empty() -> Stages {
    std::array::from_fn(|_| {
        Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS)
            .expect("1 < 60 s and two digits are bounds that it takes")
    })
}

/// What a worker has published. Clones see the same.
#[derive(Clone, Debug)]
pub struct SharedHistograms(Arc<Mutex<Stages>>);

/// A worker's own histograms.
#[derive(Debug)]
pub struct WorkerHistograms {
    local: Box<Stages>,
    shared: SharedHistograms,
    published: Option<Instant>,
}

impl Default for WorkerHistograms {
    fn default() -> Self {
        Self::new()
    }
}

impl WorkerHistograms {
    /// Empty ones.
    #[must_use]
    pub fn new() -> Self {
        let shared = SharedHistograms(Arc::new(Mutex::new(empty())));
        Self { local: Box::new(empty()), shared, published: None }
    }

    /// Where they are published.
    #[must_use]
    pub fn shared(&self) -> SharedHistograms {
        self.shared.clone()
    }

    /// One frame took `ns` for `stage`.
    pub fn record(&mut self, stage: Stage, ns: u64) {
        self.record_n(stage, ns, 1);
    }

    /// `count` frames took `ns` each.
    pub fn record_n(&mut self, stage: Stage, ns: u64, count: u64) {
        self.local[stage as usize].saturating_record_n(ns, count);
    }

    /// Hands on what was recorded, if that is a second ago and nobody reads just now; true if so.
    /// Never blocks: to be called once per batch, with the batch's time.
    pub fn publish(&mut self, now: Instant) -> bool {
        let due = |at: Instant| now.saturating_duration_since(at) >= PUBLISH_EVERY;
        if !self.published.is_none_or(due) {
            return false;
        }
        match self.shared.0.try_lock() {
            Ok(mut shared) => fold(&mut self.local, &mut shared),
            Err(TryLockError::Poisoned(poisoned)) => {
                fold(&mut self.local, &mut poisoned.into_inner());
            }
            Err(TryLockError::WouldBlock) => return false,
        }
        self.published = Some(now);
        true
    }
}

impl Drop for WorkerHistograms {
    /// The last second counts, too.
    fn drop(&mut self) {
        let mut shared = self.shared.lock();
        fold(&mut self.local, &mut shared);
    }
}

fn fold(local: &mut Stages, shared: &mut Stages) {
    for (local, shared) in local.iter_mut().zip(shared) {
        if !local.is_empty() {
            shared.add(&*local).expect("both have the same bounds");
            local.clear();
        }
    }
}

impl SharedHistograms {
    fn lock(&self) -> MutexGuard<'_, Stages> {
        // Counts are right one by one: a panic cannot have left one half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was published for `stage` to `sum`.
    pub fn add_to(&self, stage: Stage, sum: &mut Distribution) {
        let stages = self.lock();
        let histogram = &stages[stage as usize];
        for cell in histogram.iter_recorded() {
            let value = cell.value_iterated_to();
            let (low, middle) =
                (histogram.lowest_equivalent(value), histogram.median_equivalent(value));
            sum.add(low, middle, cell.count_at_value());
        }
    }
}

/// A stage's times over any number of workers, as Prometheus' classic histogram has them.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Upper bound in seconds and count of each bucket, not cumulated; the last is infinite.
    pub buckets: [(f64, u64); BUCKETS + 1],
    /// Sum in seconds, exact to 1 %.
    pub sum: f64,
    /// Frames.
    pub count: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        let mut buckets = [(f64::INFINITY, 0); BUCKETS + 1];
        for (bound, (upper, _)) in buckets.iter_mut().take(BUCKETS).enumerate() {
            *upper = seconds(FIRST_BUCKET_NS << bound);
        }
        Self { buckets, sum: 0.0, count: 0 }
    }
}

impl Distribution {
    /// `count` values of a cell that begins at `low`. Cells begin at the buckets' bounds among
    /// others, so "up to the bound" is exact but for the width of the cell that begins there.
    fn add(&mut self, low: u64, middle: u64, count: u64) {
        let bucket = (0..BUCKETS).find(|bound| low <= FIRST_BUCKET_NS << bound);
        self.buckets[bucket.unwrap_or(BUCKETS)].1 += count;
        self.sum += seconds(middle) * to_f64(count);
        self.count += count;
    }
}

fn seconds(ns: u64) -> f64 {
    to_f64(ns) / 1e9
}

/// Exact up to 2^53: a hundred days in nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a sum in an exposition is a float anyway")]
fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(shared: &SharedHistograms, stage: Stage) -> Distribution {
        let mut sum = Distribution::default();
        shared.add_to(stage, &mut sum);
        sum
    }

    #[test]
    fn the_buckets_are_powers_of_two_from_a_microsecond_to_eight_seconds() {
        let bounds = Distribution::default().buckets;
        assert_eq!(bounds[0].0, 0.000_001);
        assert_eq!(bounds[1].0, 0.000_002);
        assert_eq!(bounds[23].0, 8.388_608);
        assert_eq!(bounds[24].0, f64::INFINITY);
    }

    #[test]
    fn a_value_falls_into_the_bucket_whose_bound_it_does_not_pass() {
        for (ns, bucket) in [
            (0, 0),
            (1, 0),
            (1_000, 0),
            (1_010, 1),
            (2_000, 1),
            (2_020, 2),
            (8_388_608_000, 23),
            (8_480_000_000, 24),
            (u64::MAX, 24),
        ] {
            let mut worker = WorkerHistograms::new();
            worker.record_n(Stage::Send, ns, 3);
            worker.publish(Instant::now());
            let sum = distribution(&worker.shared(), Stage::Send);
            let filled: Vec<_> = (0..=BUCKETS).filter(|at| sum.buckets[*at].1 > 0).collect();
            assert_eq!(filled, [bucket], "{ns} ns");
            assert_eq!((sum.buckets[bucket].1, sum.count), (3, 3));
            let exact = seconds(ns.min(LONGEST_NS)) * 3.0;
            assert!((sum.sum - exact).abs() <= exact * 0.01 + 2e-9, "{} for {exact}", sum.sum);
            assert_eq!(distribution(&worker.shared(), Stage::Ring).count, 0);
        }
    }

    #[test]
    fn publishing_is_once_a_second_and_gives_way_to_a_reader() {
        let mut worker = WorkerHistograms::new();
        let shared = worker.shared();
        let start = Instant::now();
        worker.record(Stage::Ring, 5);
        assert!(worker.publish(start));
        worker.record(Stage::Ring, 5);
        assert!(!worker.publish(start + Duration::from_millis(999)));
        let reader = shared.lock();
        assert!(!worker.publish(start + Duration::from_secs(1)));
        drop(reader);
        assert_eq!(distribution(&shared, Stage::Ring).count, 1);
        assert!(worker.publish(start + Duration::from_secs(1)));
        assert_eq!(distribution(&shared, Stage::Ring).count, 2);
    }

    #[test]
    fn what_was_not_published_is_when_the_worker_ends() {
        let mut worker = WorkerHistograms::new();
        let shared = worker.shared();
        worker.publish(Instant::now());
        worker.record(Stage::BatchWait, 5);
        drop(worker);
        assert_eq!(distribution(&shared, Stage::BatchWait).count, 1);
    }

    #[test]
    fn workers_add_up() {
        let (mut one, mut two) = (WorkerHistograms::new(), WorkerHistograms::new());
        let shared = [one.shared(), two.shared()];
        one.record_n(Stage::Ring, 5_000, 10);
        two.record_n(Stage::Ring, 5_000, 32);
        drop((one, two));
        let mut sum = Distribution::default();
        shared.iter().for_each(|shared| shared.add_to(Stage::Ring, &mut sum));
        assert_eq!((sum.count, sum.buckets[3].1), (42, 42));
    }
}
