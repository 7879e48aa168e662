//! `bench pipeline`: frames from memory through the pipeline into nothing; no kernel, no network.
//!
//! ```text
//! Workload --> MemorySource, batches of 64 --> Pipeline::admit_batch, an empty table --> counted
//! two workers: own frames, one table;  over what a loop without memory traffic gains on two cores
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::classify::{Classifier, Policy};
use engine::dedup::{Fingerprinter, Table};
use engine::net::{Link, Role, View};
use engine::pipeline::{Pipeline, Verdict};
use engine::source::memory::MemorySource;
use engine::source::{Batch as _, Source as _};

use crate::error::Error;
use crate::record::Figure;
use crate::workload::{WORKLOADS, Workload};

/// Packets of a pass.
const PACKETS: u32 = 50_000;
/// A sample is the median of so many passes.
const PASSES: usize = 15;
const BATCH: usize = 64;
const TABLE_BYTES: u64 = 16 << 20;

/// Counts allocations: to be the program's global allocator.
#[derive(Debug)]
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all is the system allocator's; counting touches no memory of a caller.
#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// A classifier of a node with four pod interfaces, which drops nothing.
#[must_use]
pub fn classifier() -> Classifier {
    let mut view = View::default();
    for ifindex in 1..=4 {
        view.links.insert(ifindex, link(ifindex));
    }
    let policy = Policy { any_interface: true, ..Policy::default() };
    Classifier::new(&policy, &view, &[])
}

fn link(ifindex: u32) -> Link {
    Link {
        ifindex,
        name: format!("bench{ifindex}"),
        kind: "veth".into(),
        is_ethernet: true,
        is_up: true,
        is_running: true,
        is_loopback: false,
        mac: Vec::new(),
        mtu: 1500,
        addresses: Vec::new(),
        role: Role::Pod,
        slot: u16::try_from(ifindex).expect("four links"),
        is_tapped: true,
    }
}

fn table() -> Arc<Table> {
    Arc::new(Table::new(TABLE_BYTES, 100_000_000).expect("16 MiB is in range"))
}

/// What one pass came to.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// How long it took.
    pub elapsed: Duration,
    /// Packets reported.
    pub reported: u32,
    /// Allocations on the way, apart from the first batch's.
    pub allocations: u64,
}

/// All of the source through a pipeline. Not inlined: callgrind collects in here.
#[inline(never)]
pub fn drive(source: &mut MemorySource, classifier: &Classifier, pipeline: &mut Pipeline) -> Pass {
    let (mut reported, mut settled) = (0u32, None);
    let started = Instant::now();
    while let Some(batch) = source.next_batch() {
        pipeline.admit_batch(classifier, batch.frames(), 0, |packet, _headers, verdict| {
            black_box(packet);
            reported += u32::from(verdict == Verdict::Report);
        });
        settled.get_or_insert_with(|| ALLOCATIONS.load(Ordering::Relaxed));
    }
    let elapsed = started.elapsed();
    let after = ALLOCATIONS.load(Ordering::Relaxed);
    Pass { elapsed, reported, allocations: after - settled.unwrap_or(after) }
}

/// One pass of a workload with an empty table; the packets must all be reported, once.
///
/// # Errors
///
/// When they are not.
pub fn pass(source: &mut MemorySource, classifier: &Classifier) -> Result<Pass, Error> {
    source.rewind();
    let mut pipeline = Pipeline::new(table(), Fingerprinter::new(1));
    let pass = drive(source, classifier, &mut pipeline);
    match pass.reported {
        PACKETS => Ok(pass),
        other => Err(Error::Unbelievable(format!("{other} of {PACKETS} packets were reported"))),
    }
}

/// Its frames.
#[must_use]
pub fn source(workload: &Workload) -> MemorySource {
    MemorySource::new(workload.frames(PACKETS), BATCH)
}

/// Frames of a pass.
#[must_use]
pub fn frames(workload: &Workload) -> f64 {
    f64::from(PACKETS * workload.copies)
}

/// Nanoseconds a frame: the median of some passes.
fn sample(workload: &Workload, source: &mut MemorySource) -> Result<(f64, u64), Error> {
    let classifier = classifier();
    let (mut times, mut allocations) = (Vec::new(), 0);
    for _ in 0..PASSES {
        let pass = pass(source, &classifier)?;
        times.push(pass.elapsed.as_secs_f64() * 1e9 / frames(workload));
        allocations = allocations.max(pass.allocations);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[PASSES / 2], allocations))
}

/// The figures of `rounds` rounds; every workload in each.
///
/// # Errors
///
/// A pass that loses or doubles packets.
pub fn measure(rounds: usize, say: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Error> {
    let mut sources: Vec<_> = WORKLOADS.iter().map(source).collect();
    let mut samples = vec![Vec::new(); WORKLOADS.len()];
    let (mut allocations, mut shares, mut gains) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        say(&format!("pipeline: round {round} of {rounds}"));
        let mut most = 0;
        for ((workload, source), samples) in WORKLOADS.iter().zip(&mut sources).zip(&mut samples) {
            let (ns, allocated) = sample(workload, source)?;
            samples.push(ns);
            most = most.max(allocated);
        }
        allocations.push(f64::from(u32::try_from(most).unwrap_or(u32::MAX)));
        let gain = two_against_one(|| (), |(), _worker| spin(PACKETS * 64));
        let classifier = classifier();
        let prepare = || (table(), [(); 2].map(|()| Mutex::new(sources[0].clone())));
        let pipelines = two_against_one(prepare, |(table, sources), worker| {
            // Another seed: these are other packets than the other worker's.
            let prints = Fingerprinter::new(worker as u64 + 1);
            let mut pipeline = Pipeline::new(Arc::clone(table), prints);
            let mut source = sources[worker].lock().unwrap_or_else(PoisonError::into_inner);
            source.rewind();
            drive(&mut source, &classifier, &mut pipeline);
        });
        gains.push(gain);
        shares.push(pipelines / gain);
    }
    let mut figures = Vec::new();
    for (workload, samples) in WORKLOADS.iter().zip(samples) {
        figures.push(Figure::new(&format!("pipeline/{}/ns", workload.name), "ns", samples)?);
    }
    figures.push(Figure::new("pipeline/allocations", "per pass", allocations)?);
    figures.push(Figure::new("pipeline/workers/gain-without-memory", "ratio", gains)?);
    figures.push(Figure::new("pipeline/workers/share", "ratio", shares)?);
    Ok(figures)
}

/// What two pinned threads do together over what one does: work of one, twice, in the time of both.
fn two_against_one<T: Sync>(prepare: impl Fn() -> T, work: impl Fn(&T, usize) + Sync) -> f64 {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let time = |workers: usize| {
        let mut times = Vec::new();
        for _ in 0..PASSES {
            let (prepared, barrier) = (prepare(), Barrier::new(workers));
            let slowest = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..workers)
                    .map(|worker| {
                        let (prepared, barrier, work) = (&prepared, &barrier, &work);
                        // One alone runs where it runs beside the other.
                        let core = cores.get(worker).copied();
                        scope.spawn(move || {
                            core.map(core_affinity::set_for_current);
                            barrier.wait();
                            let started = Instant::now();
                            work(prepared, worker);
                            started.elapsed()
                        })
                    })
                    .collect();
                threads.into_iter().map(|it| it.join().expect("no panic")).max()
            });
            times.push(slowest.unwrap_or_default().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        times[PASSES / 2]
    };
    let (one, two) = (time(1), time(2));
    2.0 * one / two
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
    fn each_workload_reports_each_packet_once() {
        for workload in WORKLOADS {
            let mut source = source(&workload);
            for _ in 0..2 {
                pass(&mut source, &classifier()).unwrap();
            }
        }
    }
}
