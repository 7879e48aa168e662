//! `bench capture`: the engine's ring and pipeline into nothing, against a bare loop that counts frames.
//!
//! ```text
//! generator (core 0, unpaced) --> tap0 --> PacketSource (core 1) --> count | Pipeline::admit_batch
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::classify::{Classifier, Policy};
use engine::dedup::{Fingerprinter, Table};
use engine::net::View;
use engine::pipeline::{Pipeline, Verdict};
use engine::source::packet::{Geometry, PacketOptions, PacketSource};
use engine::source::{Batch as _, Source as _, SourceStats};
use engine::sys::Waker;

use super::generator::Sizes;
use super::loops::thread_cpu;
use super::rig::Rig;
use crate::error::Error;
use crate::record::{Figure, Figures};

const SIZES: [usize; 3] = [64, 512, 1500];
const RING_BYTES: u64 = 64 << 20;

/// Who reads the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Walks the frames and counts them.
    Bare,
    /// Classifies and looks up each.
    Engine,
}

/// What a reader saw.
struct Seen {
    frames: u64,
    stats: SourceStats,
    cpu: Duration,
}

/// Reads until `is_over`, then what is left.
fn read(reader: Reader, is_over: &AtomicBool, ready: &AtomicBool) -> Result<Seen, Error> {
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let wrong = |error: &dyn std::fmt::Display| Error::Input(error.to_string());
    let geometry = Geometry::from_budget(RING_BYTES, 1).map_err(|error| wrong(&error))?;
    let options = PacketOptions { geometry, retire_timeout_ms: 1 };
    let waker = Waker::new().map_err(Error::call("an eventfd"))?;
    let mut source = PacketSource::open(&options, waker).map_err(|error| wrong(&error))?;
    let policy = Policy { any_interface: true, ..Policy::default() };
    let classifier = Classifier::new(&policy, &View::default(), &[]);
    // The kernel's part of the same verdicts; without it nothing passes.
    let program = classifier.filter(&[]);
    source.set_filter(program.instructions()).map_err(Error::call("a filter"))?;
    let table = Table::new(16 << 20, 100_000_000).map_err(|error| wrong(&error))?;
    let mut pipeline = Pipeline::new(Arc::new(table), Fingerprinter::new(1));
    ready.store(true, Ordering::Release);
    let (mut frames, mut idle, before) = (0u64, 0, thread_cpu());
    while idle < 50 {
        let is_empty = source.next_batch().is_none_or(|batch| {
            match reader {
                Reader::Bare => frames += batch.frames().count() as u64,
                Reader::Engine => {
                    pipeline.admit_batch(&classifier, batch.frames(), 0, |_, _, verdict| {
                        frames += u64::from(verdict == Verdict::Report);
                    });
                }
            }
            false
        });
        if is_empty {
            source.wait(Duration::from_millis(2)).map_err(Error::call("ppoll"))?;
            idle += i32::from(is_over.load(Ordering::Acquire));
        }
    }
    let stats = source.stats().map_err(Error::call("PACKET_STATISTICS"))?;
    Ok(Seen { frames, stats, cpu: thread_cpu().saturating_sub(before) })
}

/// Delivered frames a second, their share that was lost, and CPU nanoseconds a frame.
fn run(rig: &Rig, reader: Reader, size: usize, time: Duration) -> Result<[f64; 3], Error> {
    let [is_over, ready] = [false; 2].map(|value| Arc::new(AtomicBool::new(value)));
    std::thread::scope(|scope| {
        let (over, is_ready) = (Arc::clone(&is_over), Arc::clone(&ready));
        let reading = scope.spawn(|| rig.node.run(move || read(reader, &over, &is_ready)));
        while !ready.load(Ordering::Acquire) && !reading.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let sent = rig.generate(Sizes::Fixed(size), None, time);
        is_over.store(true, Ordering::Release);
        let seen = reading
            .join()
            .map_err(|_panic| Error::Unbelievable("a reader panicked".into()))???;
        let sent = sent?;
        // What the interfaces say by themselves (multicast) is seen too.
        let lost = seen.stats.ring_dropped;
        if seen.frames + lost < sent.frames {
            return Err(Error::Unbelievable(format!(
                "{} frames were generated, {} seen, {lost} lost",
                sent.frames, seen.frames
            )));
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let [frames, lost, all] = [seen.frames, lost, seen.stats.seen.max(1)].map(|n| n as f64);
        let cpu = seen.cpu.as_secs_f64() * 1e9 / frames;
        Ok([frames / sent.elapsed.as_secs_f64(), lost / all, cpu])
    })
}

/// The figures of `rounds` rounds.
///
/// # Errors
///
/// Without root, or when frames are not accounted for.
pub fn measure(
    rounds: usize,
    time: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, Error> {
    let rig = Rig::new()?;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say(&format!("capture: round {round} of {rounds}"));
        let mut worst = 0.0f64;
        for size in SIZES {
            let rate = |reader| run(&rig, reader, size, time);
            let [bare, _, bare_cpu] = rate(Reader::Bare)?;
            let [engine, lost, engine_cpu] = rate(Reader::Engine)?;
            worst = worst.max(lost);
            figures.add(&format!("capture/{size}/ring-kpps"), "kpps", bare / 1e3);
            figures.add(&format!("capture/{size}/ring-cpu-ns"), "ns", bare_cpu);
            figures.add(&format!("capture/{size}/cpu-ns"), "ns", engine_cpu);
            figures.add(&format!("capture/{size}/share-of-ring"), "ratio", engine / bare);
        }
        figures.add("capture/ring-drops", "share", worst);
    }
    figures.finish()
}
