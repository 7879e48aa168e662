//! Two workers against one, over what a loop without memory traffic gains on the same two cores.
//!
//! ```text
//! worker 0, 1, pinned: own frames, one table --> work of one, twice, in the time of both --> / gain
//! ```

use std::hint::black_box;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::dedup::Fingerprinter;
use engine::pipeline::Pipeline;
use engine::source::memory::MemorySource;

use super::{PACKETS, PASSES, check, classifier, drive, table};
use crate::error::Error;
use crate::stats::median;

/// What the loop gains, and the share of that which the pipeline gains.
pub(super) fn share(source: &MemorySource) -> Result<(f64, f64), Error> {
    let gain = two_against_one(|| (), |(), _worker| spin(PACKETS * 64));
    let classifier = classifier();
    // Each its own copy, rewound by who takes it.
    let sources = [source.clone(), source.clone()].map(Mutex::new);
    let wrong = Mutex::new(None);
    let pipelines = two_against_one(table, |table, worker| {
        // Another seed: these are other packets than the other worker's.
        let prints = Fingerprinter::new(worker as u64 + 1);
        let mut pipeline = Pipeline::new(Arc::clone(table), prints);
        let mut source = sources[worker].lock().unwrap_or_else(PoisonError::into_inner);
        source.rewind();
        let reported = drive(&mut source, &classifier, &mut pipeline).reported;
        if let Err(error) = check(reported) {
            *wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    match wrong.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok((gain, pipelines / gain)),
    }
}

/// What two pinned threads do together over what one does: work of one, twice, in the time of both. The
/// median of passes, each of which has both cores alone and together, so that what slows all of them for a
/// while, or one core, makes no difference.
fn two_against_one<T: Sync>(prepare: impl Fn() -> T, work: impl Fn(&T, usize) + Sync) -> f64 {
    let time = |workers: &[usize]| slowest(workers, &prepare(), &work).as_secs_f64();
    let gains: Vec<_> = (0..PASSES)
        .map(|_| {
            let together = time(&[0, 1]);
            (time(&[0]) + time(&[1])) / together
        })
        .collect();
    median(&gains).unwrap_or_default()
}

/// How long the slowest of these workers takes, each on its core.
fn slowest<T: Sync>(
    workers: &[usize],
    prepared: &T,
    work: &(impl Fn(&T, usize) + Sync),
) -> Duration {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let barrier = Barrier::new(workers.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter()
            .map(|worker| {
                let (barrier, core) = (&barrier, cores.get(*worker).copied());
                scope.spawn(move || {
                    core.map(core_affinity::set_for_current);
                    barrier.wait();
                    let started = Instant::now();
                    work(prepared, *worker);
                    started.elapsed()
                })
            })
            .collect();
        threads.into_iter().map(|it| it.join().expect("no panic")).max().unwrap_or_default()
    })
}

/// Work of registers alone.
fn spin(count: u32) {
    let mut value = 1u64;
    for n in 0..u64::from(count) {
        value = black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n);
    }
    black_box(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_gains_two() {
        let gain = two_against_one(|| (), |(), _| std::thread::sleep(Duration::from_millis(4)));
        assert!((1.0..=2.2).contains(&gain), "{gain}");
    }
}
