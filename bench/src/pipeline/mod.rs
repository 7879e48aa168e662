//! `bench pipeline`: frames from memory through the pipeline into nothing; no kernel, no network.
//!
//! ```text
//! Workload --> MemorySource, batches of 64 --> Pipeline::admit_batch, an empty table --> counted
//!                                        `---> stages: the same, one after the other, each alone
//! ```

pub mod callgrind;
pub mod stages;
mod workers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::classify::{Classifier, Policy};
use engine::dedup::{Fingerprinter, Table};
use engine::net::{Link, Role, View};
use engine::pipeline::{Pipeline, Verdict};
use engine::session::balance::{Name, owners, slot};
use engine::session::flow::Flows;
use engine::source::memory::MemorySource;
use engine::source::{Batch as _, Source as _};

use crate::error::Error;
use crate::record::{Figure, Figures};
use crate::stats::median;
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

/// The same, and for each packet that is reported, which of two sensors in balance gets it.
fn drive_balanced(
    source: &mut MemorySource,
    classifier: &Classifier,
    pipeline: &mut Pipeline,
) -> Pass {
    let names = ["10.0.0.1:2003", "10.0.0.2:2003"].map(|sensor| Name { sensor, ordinal: 0 });
    let (owners, mut flows, mut shares) = (owners(&names), Flows::default(), [0u32; 2]);
    let started = Instant::now();
    while let Some(batch) = source.next_batch() {
        pipeline.admit_batch(classifier, batch.frames(), 0, |packet, headers, verdict| {
            flows.note(headers);
            if verdict == Verdict::Report {
                let owner = owners[slot(flows.of(packet.data, headers))];
                shares[usize::from(owner)] += 1;
            }
        });
    }
    Pass { elapsed: started.elapsed(), reported: shares.iter().sum(), allocations: 0 }
}

type Drive = fn(&mut MemorySource, &Classifier, &mut Pipeline) -> Pass;

/// One pass of a workload with an empty table; the packets must all be reported, once.
///
/// # Errors
///
/// When they are not.
pub fn pass(
    source: &mut MemorySource,
    classifier: &Classifier,
    drive: Drive,
) -> Result<Pass, Error> {
    source.rewind();
    let mut pipeline = Pipeline::new(table(), Fingerprinter::new(1));
    let pass = drive(source, classifier, &mut pipeline);
    check(pass.reported)?;
    Ok(pass)
}

fn check(reported: u32) -> Result<(), Error> {
    match reported {
        PACKETS => Ok(()),
        other => Err(Error::Unbelievable(format!("{other} of {PACKETS} packets were reported"))),
    }
}

/// Its frames.
#[must_use]
pub fn source(workload: &Workload) -> MemorySource {
    MemorySource::new(workload.frames(PACKETS), BATCH)
}

/// Packets of a pass, each as often as it is seen: what a figure is divided by.
#[must_use]
pub fn packets(workload: &Workload) -> f64 {
    f64::from(PACKETS * workload.copies)
}

/// Nanoseconds a packet, the median of some passes; and the most allocations of one.
fn sample(
    workload: &Workload,
    source: &mut MemorySource,
    drive: Drive,
) -> Result<(f64, u64), Error> {
    let classifier = classifier();
    let (mut times, mut allocations) = (Vec::new(), 0);
    for _ in 0..PASSES {
        let pass = pass(source, &classifier, drive)?;
        times.push(pass.elapsed.as_secs_f64() * 1e9 / packets(workload));
        allocations = allocations.max(pass.allocations);
    }
    Ok((median(&times).unwrap_or_default(), allocations))
}

/// The figures of `rounds` rounds; every workload in each. With `balance`, what the choice between two
/// sensors adds, too.
///
/// # Errors
///
/// A pass that loses or doubles packets.
pub fn measure(
    rounds: usize,
    balance: bool,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, Error> {
    let mut sources: Vec<_> = WORKLOADS.iter().map(source).collect();
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say(&format!("pipeline: round {round} of {rounds}"));
        let mut most = 0;
        for (workload, source) in WORKLOADS.iter().zip(&mut sources) {
            let name = workload.name;
            let (ns, allocated) = sample(workload, source, drive)?;
            figures.add(&format!("pipeline/{name}/ns"), "ns", ns);
            most = most.max(allocated);
            if balance {
                let (balanced, _) = sample(workload, source, drive_balanced)?;
                figures.add(&format!("pipeline/{name}/balanced-ns"), "ns", balanced);
                figures.add(&format!("pipeline/{name}/balanced-ratio"), "ratio", balanced / ns);
            }
            for (stage, ns) in stages::sample(workload, source)? {
                figures.add(&format!("pipeline/{name}/{stage}-ns"), "ns", ns);
            }
        }
        figures.add(
            "pipeline/allocations",
            "per pass",
            f64::from(u32::try_from(most).unwrap_or(u32::MAX)),
        );
        let (gain, share) = workers::share(&sources[0])?;
        figures.add("pipeline/workers/gain-without-memory", "ratio", gain);
        figures.add("pipeline/workers/share", "ratio", share);
    }
    figures.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_workload_reports_each_packet_once() {
        for workload in WORKLOADS {
            let mut source = source(&workload);
            for drive in [drive as Drive, drive_balanced] {
                pass(&mut source, &classifier(), drive).unwrap();
            }
        }
    }

    #[test]
    fn a_packet_that_is_missing_is_not_believed() {
        let frames = WORKLOADS[0].frames(PACKETS - 1);
        let error = pass(&mut MemorySource::new(frames, BATCH), &classifier(), drive).unwrap_err();
        assert!(error.to_string().contains("49999 of 50000"), "{error}");
    }
}
