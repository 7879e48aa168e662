//! `podtap replay`: capture files through the tap's own pipeline.
//!
//! ```text
//! files --FileSource--> (timestamps are the clock) --Pipeline--> pcap | sessions --> sensor
//! ```
//!
//! Needs no privilege and no network of its own: what netlink tells the tap, the command line
//! tells the replay (`--point`, `--uplink`, `--local-net`). With `--write`, the same input gives
//! the same bytes: frames are merged by time, the dedup hash has a fixed seed, one thread works.

mod points;
mod to_sensor;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use crate::capfile::pcap::PcapWriter;
use crate::classify::{Classifier, Policy};
use crate::config::Config;
use crate::dedup::{Fingerprinter, Table, TableError};
use crate::frame::Frame;
use crate::pipeline::{Pipeline, Verdict};
use crate::source::file::{FileError, FileSource};
use crate::source::{Batch, Source};
use crate::stats::DropReason;
use crate::wire::Headers;

/// The dedup hash's seed: fixed, since a replay must repeat itself.
const SEED: u64 = 0x706f_6474_6170;

/// Command line of `podtap replay`, beside the tap's settings.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Capture files (pcap or pcapng); their frames are taken as entering at one interface of the node's
    pub files: Vec<PathBuf>,
    /// Frames of FILE were captured at this interface and direction; may be given several times
    #[arg(long, value_name = "IFACE:in|out=FILE")]
    pub point: Vec<String>,
    /// Names, among those of --point, of interfaces that lead off the node
    #[arg(long, value_name = "LIST", default_value = "")]
    pub uplink: String,
    /// Prefixes that are local to the node whose points these are
    #[arg(long, value_name = "LIST", default_value = "")]
    pub local_net: String,
    /// Write what would be reported to this file, as pcap; - is standard output
    #[arg(long, value_name = "FILE|-")]
    pub write: Option<PathBuf>,
    /// Packets a second to a sensor, at most; 0 is as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    pub packets_per_second: u64,
    /// Seconds to wait for the sensor to start a capture
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub wait_seconds: u64,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The output.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The table.
    #[error("--dedup-memory: {0}")]
    Table(#[from] TableError),
    /// The sensor.
    #[error("{0}")]
    Sensor(String),
}

impl ReplayError {
    /// True where the exit code is 2.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::Usage(_) | Self::Table(_) => true,
            Self::File(error) => !error.is_truncation(),
            Self::Write { .. } | Self::Sensor(_) => false,
        }
    }
}

/// What became of the packets; the accounting identity holds of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packets, super-frames counted as what they were cut into.
    pub received: u64,
    /// Reported.
    pub reported: u64,
    /// Not reported, by [`DropReason`] as index.
    pub dropped: [u64; DropReason::ALL.len()],
}

impl Summary {
    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Report => self.reported += 1,
            Verdict::Drop(reason) => self.dropped[reason as usize] += 1,
            Verdict::Hold => return, // comes again
        }
        self.received += 1;
    }

    /// One line.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("received {}, reported {}", self.received, self.reported);
        for (reason, count) in DropReason::ALL.iter().zip(self.dropped) {
            if count != 0 {
                text.push_str(&format!(", {} {count}", reason.label()));
            }
        }
        text
    }
}

/// Does what the command line says; the summary goes to standard error.
///
/// # Errors
///
/// See [`ReplayError`]. What was read before a file's damaged end is reported first.
pub fn run(args: &Args, config: &Config) -> Result<(), ReplayError> {
    let points = points::Points::new(args)?;
    let policy = Policy { any_interface: true, ..config.policy.clone() };
    let classifier = Classifier::new(&policy, &points.view, &config.numeric_sensors());
    let mut source = FileSource::open(&points.inputs)?;
    let table = Arc::new(Table::new(config.dedup_memory, config.dedup_window_ns)?);
    let fingerprinter = Fingerprinter::new(SEED).ignoring_dscp(config.ignores_dscp);
    let pipeline = Pipeline::new(table, fingerprinter).settling(config.settling(1));
    let summary = match (&args.write, config.sensors.is_empty()) {
        (Some(path), true) => {
            let out = open_output(path)?;
            let written = to_file(&mut source, pipeline, &classifier, config.snaplen, out);
            let summary =
                written.map_err(|source| ReplayError::Write { path: path.clone(), source })?;
            tracing::info!("{}", summary.to_text());
            return finish(source.error());
        }
        (None, false) => to_sensor::run(args, config, source, pipeline, classifier, points.view)?,
        (Some(_), false) => {
            return Err(ReplayError::Usage("--write and --sensor are one too many".into()));
        }
        (None, true) => {
            return Err(ReplayError::Usage("where to? give --write FILE or --sensor ADDR".into()));
        }
    };
    tracing::info!("{}", summary.to_text());
    Ok(())
}

/// A file that is damaged in the middle is an error, after what could be read was reported.
fn finish(error: Option<&FileError>) -> Result<(), ReplayError> {
    match error {
        Some(error) => Err(ReplayError::Sensor(error.to_string())),
        None => Ok(()),
    }
}

fn open_output(path: &PathBuf) -> Result<Box<dyn Write>, ReplayError> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdout()));
    }
    let file =
        File::create(path).map_err(|source| ReplayError::Write { path: path.clone(), source })?;
    Ok(Box::new(file))
}

fn to_file(
    source: &mut FileSource,
    mut pipeline: Pipeline,
    classifier: &Classifier,
    snaplen: u32,
    out: impl Write,
) -> io::Result<Summary> {
    let mut output = Output {
        writer: PcapWriter::new(BufWriter::with_capacity(1 << 20, out))?,
        snaplen: usize::try_from(snaplen).unwrap_or(usize::MAX),
        summary: Summary::default(),
        result: Ok(()),
    };
    while !source.is_exhausted() && output.result.is_ok() {
        let Some(batch) = source.next_batch() else { continue };
        for frame in batch.frames() {
            let now_ns = frame.timestamp_ns;
            pipeline.settle(now_ns, |packet, _headers, verdict| output.take(packet, verdict));
            let take =
                |packet: &Frame<'_>, _headers: &Headers, verdict| output.take(packet, verdict);
            pipeline.admit(classifier, &frame, now_ns, take);
        }
    }
    pipeline.settle_all(|packet, _headers, verdict| output.take(packet, verdict));
    output.result?;
    output.writer.finish()?;
    Ok(output.summary)
}

/// The file that is written, and the account.
struct Output<W: Write> {
    writer: PcapWriter<BufWriter<W>>,
    snaplen: usize,
    summary: Summary,
    /// Of the first write that failed.
    result: io::Result<()>,
}

impl<W: Write> Output<W> {
    fn take(&mut self, packet: &Frame<'_>, verdict: Verdict) {
        self.summary.count(verdict);
        if verdict == Verdict::Report && self.result.is_ok() {
            self.result = self.writer.write(&packet.wire(self.snaplen));
        }
    }
}

#[cfg(test)]
mod tests;
