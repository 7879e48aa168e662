//! Pinned threads that begin at the same moment, again and again.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads are measured: 1, 2, 4 .. and as many as there are cores.
pub(super) fn thread_counts() -> Vec<usize> {
    counts(std::thread::available_parallelism().map_or(1, usize::from))
}

fn counts(cores: usize) -> Vec<usize> {
    let mut counts: Vec<_> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cores).collect();
    counts.push(cores);
    counts
}

/// See the module.
pub(super) struct Together {
    threads: usize,
    arrived: AtomicUsize,
}

impl Together {
    pub(super) fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0) }
    }

    /// Runs `work` on each, with its number and a place to meet the others; once in a `Together`.
    pub(super) fn run<T: Send>(
        &self,
        work: impl Fn(usize, &mut dyn FnMut()) -> T + Sync,
    ) -> Vec<T> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..self.threads)
                .map(|worker| {
                    let core = cores.get(worker).copied();
                    let work = &work;
                    scope.spawn(move || {
                        core.map(core_affinity::set_for_current);
                        let mut meetings = 0;
                        work(worker, &mut || {
                            meetings += 1;
                            self.meet(meetings);
                        })
                    })
                })
                .collect();
            started.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }

    /// Waits for all, without sleep: who sleeps is late by more than what is measured takes.
    fn meet(&self, meeting: usize) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut turns = 0u32;
        while self.arrived.load(Ordering::Acquire) < meeting * self.threads {
            std::hint::spin_loop();
            turns += 1;
            // Somebody may need this core to arrive.
            if turns.is_multiple_of(4096) {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_count_is_all_cores() {
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(2), [1, 2]);
        assert_eq!(counts(6), [1, 2, 4, 6]);
    }

    #[test]
    fn nobody_goes_on_before_all_are_there() {
        let (threads, count) = (3, AtomicUsize::new(0));
        let seen = Together::new(threads).run(|_worker, meet| {
            let mut seen = Vec::new();
            for round in 1..=50 {
                count.fetch_add(1, Ordering::Relaxed);
                meet();
                seen.push(count.load(Ordering::Relaxed) >= round * threads);
                meet();
            }
            seen
        });
        assert!(seen.concat().into_iter().all(|is_so| is_so));
    }
}
