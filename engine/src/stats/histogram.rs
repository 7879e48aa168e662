//! Latencies, in nanoseconds: recorded by a worker in its own memory, read by others a second later.
//!
//! ```text
//! worker: record -> local histogram --publish (try_lock, never waits)--> shared one <-- reader
//! ```
//!
//! Ring: kernel timestamp to the moment the worker took the batch. Batch wait: a run's first frame
//! offered to the run handed over. Send: numbering and sending of what waited.

use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

/// Which two points a latency is measured between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Kernel timestamp to the worker.
    Ring,
    /// Waiting for a datagram to fill or to be due.
    BatchWait,
    /// Sending a run.
    Send,
}

impl Stage {
    /// Every stage, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Ring, Self::BatchWait, Self::Send];

    /// The label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::BatchWait => "batch_wait",
            Self::Send => "send",
        }
    }
}

/// The largest value that is told apart, ns: a minute.
const HIGHEST: u64 = 60_000_000_000;

/// One histogram for each [`Stage`].
pub type Histograms = [Histogram<u64>; Stage::ALL.len()];

fn empty() -> Histograms {
    let new = || Histogram::new_with_bounds(1, HIGHEST, 2).expect("the bounds are in range");
    [new(), new(), new()]
}

/// What readers see of one worker's latencies.
#[derive(Clone, Debug)]
pub struct PublishedHistograms(Arc<Mutex<Histograms>>);

impl PublishedHistograms {
    /// A copy, as of the worker's last publication.
    #[must_use]
    pub fn snapshot(&self) -> Histograms {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A worker's own.
#[derive(Debug)]
pub struct WorkerHistograms {
    local: Histograms,
    published: PublishedHistograms,
}

impl Default for WorkerHistograms {
    fn default() -> Self {
        Self { local: empty(), published: PublishedHistograms(Arc::new(Mutex::new(empty()))) }
    }
}

impl WorkerHistograms {
    /// The readers' side.
    #[must_use]
    pub fn published(&self) -> PublishedHistograms {
        self.published.clone()
    }

    /// Counts one latency; beyond a minute counts as a minute.
    pub fn record(&mut self, stage: Stage, ns: u64) {
        self.record_n(stage, ns, 1);
    }

    /// Counts one latency that `count` frames share.
    pub fn record_n(&mut self, stage: Stage, ns: u64, count: u64) {
        self.local[stage as usize].saturating_record_n(ns, count);
    }

    /// Moves what was recorded to where readers see it, unless one is reading just now: then the
    /// next time will do.
    pub fn publish(&mut self) {
        let Ok(mut shared) = self.published.0.try_lock() else { return };
        for (local, shared) in self.local.iter_mut().zip(shared.iter_mut()) {
            if !local.is_empty() {
                shared.add(&*local).expect("both have the same bounds");
                local.reset();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_what_was_recorded() {
        let mut worker = WorkerHistograms::default();
        let published = worker.published();
        worker.record(Stage::Ring, 1000);
        worker.record_n(Stage::Ring, 2000, 3);
        worker.record(Stage::Send, u64::MAX);
        assert_eq!(published.snapshot()[Stage::Ring as usize].len(), 0);
        worker.publish();
        worker.publish();
        let [ring, wait, send] = published.snapshot();
        assert_eq!((ring.len(), wait.len(), send.len()), (4, 0, 1));
        assert!(ring.max() >= 2000 && ring.max() < 2020, "two digits: {}", ring.max());
        assert!(send.max() >= HIGHEST);
    }

    #[test]
    fn a_reader_in_the_way_loses_nothing() {
        let mut worker = WorkerHistograms::default();
        let published = worker.published();
        worker.record(Stage::Ring, 5);
        let reading = published.0.lock().unwrap();
        worker.publish();
        drop(reading);
        worker.record(Stage::Ring, 6);
        worker.publish();
        assert_eq!(published.snapshot()[0].len(), 2);
    }
}
