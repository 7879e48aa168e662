//! A replay to a live sensor: the tap's own control, sessions and worker over files.
//!
//! ```text
//! control connects, the sensor starts a capture -> the worker reads the files, not too fast -> drain
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Args, ReplayError, Summary};
use crate::classify::Classifier;
use crate::config::Config;
use crate::control::{Control, SensorAddresses};
use crate::net::View;
use crate::pipeline::Pipeline;
use crate::rpcap::{BpfInsn, Stats};
use crate::session::Sessions;
use crate::shared::Shared;
use crate::source::file::FileSource;
use crate::source::{Source, SourceStats};
use crate::stats::WorkerStats;
use crate::stats::histogram::WorkerHistograms;
use crate::sys::Waker;
use crate::worker::{self, Lifecycle};

pub(super) fn run(
    args: &Args,
    config: &Config,
    source: FileSource,
    pipeline: Pipeline,
    classifier: Classifier,
    view: View,
) -> Result<Summary, ReplayError> {
    let system = |error: std::io::Error| ReplayError::Sensor(error.to_string());
    let waker = Waker::new().map_err(system)?;
    let sessions = Sessions::new(vec![waker]);
    // No file is read before every capture runs: none has to wait for the worker to know of it.
    sessions.mark_seen(0, u64::MAX);
    let stats = Arc::new(WorkerStats::default());
    let mut control = config.control(SensorAddresses::default());
    // A replay is for the sensors; nobody else is waited for.
    control.listen.clear();
    let seen = Arc::clone(&stats);
    let capture_stats = move || Stats {
        received: u32::try_from(seen.received.get() & 0xffff_ffff).expect("masked"),
        ..Stats::default()
    };
    let control = Control::start(control, Arc::clone(&sessions), Shared::new(view), capture_stats)
        .map_err(system)?;
    wait_for_captures(args, config, &sessions, &control)?;
    let context = worker::Context {
        index: 0,
        pipeline,
        classifier: Shared::new(classifier).reader(),
        sessions: Arc::clone(&sessions),
        stats: Arc::clone(&stats),
        histograms: WorkerHistograms::default(),
        flush_ns: config.flush_ns,
        // However fast the files are read.
        clock: worker::Clock::Frames,
        life: Arc::new(Lifecycle::default()),
    };
    worker::run(Paced::new(source, args.packets_per_second), context);
    control.shutdown(Duration::from_secs(1));
    let mut summary = Summary {
        received: stats.received.get(),
        reported: stats.admitted.get(),
        ..Summary::default()
    };
    for (sum, counter) in summary.dropped.iter_mut().zip(&stats.dropped) {
        *sum = counter.get();
    }
    Ok(summary)
}

/// Until every sensor has a capture running.
fn wait_for_captures(
    args: &Args,
    config: &Config,
    sessions: &Sessions,
    control: &Control,
) -> Result<(), ReplayError> {
    let deadline = Instant::now() + Duration::from_secs(args.wait_seconds);
    let expected = config.sensors.len() * config.sharing.sessions_per_sensor;
    while sessions.load().len() < expected {
        if Instant::now() >= deadline {
            let why = control.state().into_iter().find_map(|status| status.last_error);
            let why = why.unwrap_or_else(|| "it connected, but asked for nothing".into());
            return Err(ReplayError::Sensor(format!(
                "no capture was started within {} s: {why}",
                args.wait_seconds
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Holds batches back so that a receiver on the same machine can keep up.
struct Paced {
    source: FileSource,
    per_second: u64,
    started: Instant,
    handed_out: u64,
}

impl Paced {
    fn new(source: FileSource, per_second: u64) -> Self {
        Self { source, per_second, started: Instant::now(), handed_out: 0 }
    }

    /// When the next batch may go.
    fn due(&self) -> Duration {
        match self.per_second {
            0 => Duration::ZERO,
            rate => {
                let ns = u128::from(self.handed_out) * 1_000_000_000 / u128::from(rate);
                Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
            }
        }
    }
}

impl Source for Paced {
    type Batch<'a> = <FileSource as Source>::Batch<'a>;

    fn next_batch(&mut self) -> Option<Self::Batch<'_>> {
        if self.started.elapsed() < self.due() {
            return None;
        }
        let batch = self.source.next_batch()?;
        self.handed_out += crate::source::Batch::frames(&batch).count() as u64;
        Some(batch)
    }

    fn wait(&mut self, timeout: Duration) -> std::io::Result<()> {
        let due = self.due().saturating_sub(self.started.elapsed());
        std::thread::sleep(due.min(timeout));
        Ok(())
    }

    fn stats(&mut self) -> std::io::Result<SourceStats> {
        self.source.stats()
    }

    fn set_filter(&mut self, program: &[BpfInsn]) -> std::io::Result<()> {
        self.source.set_filter(program)
    }

    fn is_exhausted(&self) -> bool {
        self.source.is_exhausted()
    }
}
