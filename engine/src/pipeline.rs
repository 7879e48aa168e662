//! The work on one frame, without rings, sockets or threads: tests, replay and workers all call it.
//!
//! ```text
//! frame --cut--> packets --classify, filter--> dedup --> each(packet, headers, Ok | Err(reason))
//! ```
//!
//! Every packet is handed to `each` once, with its verdict, so that whoever counts cannot forget
//! one.

use std::sync::Arc;

use crate::classify::Classifier;
use crate::dedup::{Fingerprinter, Outcome, Table};
use crate::frame::Frame;
use crate::segment::{Cut, Cutter, clip};
use crate::stats::DropReason;
use crate::wire::Headers;

/// What happened beside the verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Packets that came out of super-frames, less the super-frames.
    pub cut: u64,
    /// Super-frames that could not be cut.
    pub uncut: u64,
    /// Super-frames that were cut, but not captured whole.
    pub truncated: u64,
    /// Dedup entries overwritten within their window.
    pub evicted: u64,
}

/// See the module. One per worker; the table is everybody's.
#[derive(Debug)]
pub struct Pipeline {
    table: Arc<Table>,
    fingerprinter: Fingerprinter,
    cutter: Cutter,
    /// Since it was last taken.
    pub notes: Notes,
}

impl Pipeline {
    /// All workers' pipelines share the table and the fingerprinter's seed.
    #[must_use]
    pub fn new(table: Arc<Table>, fingerprinter: Fingerprinter) -> Self {
        Self { table, fingerprinter, cutter: Cutter::default(), notes: Notes::default() }
    }

    /// Decides about a frame: `each` gets every packet that it stands for, with its headers and the
    /// verdict.
    pub fn admit(
        &mut self,
        classifier: &Classifier,
        frame: &Frame<'_>,
        mut each: impl FnMut(&Frame<'_>, &Headers, Result<(), DropReason>),
    ) {
        let headers = Headers::parse(frame.data);
        let Self { table, fingerprinter, cutter, notes } = self;
        // Addresses, role and direction are the same for all the segments.
        let scope = classifier.classify(frame, &headers);
        // Known by `packet`, shown as `shown`, which is the same but for what cannot be cut.
        let mut decide = |packet: &Frame<'_>,
                          headers: &Headers,
                          shown: (&Frame<'_>, &Headers),
                          notes: &mut Notes| {
            let verdict = classifier.narrow(scope, packet).and_then(|scope| {
                let (header, rest) = packet.data.split_at(headers.payload);
                let payload = &rest[..headers.end - headers.payload];
                let key = fingerprinter.key(headers, header, payload, scope.translated);
                match table.observe(key, scope.point, packet.timestamp_ns) {
                    Outcome::Fresh { evicted } => {
                        notes.evicted += u64::from(evicted);
                        Ok(())
                    }
                    Outcome::Duplicate => Err(DropReason::Duplicate),
                }
            });
            each(shown.0, shown.1, verdict);
        };
        if frame.offload.gso_size == 0 {
            return decide(frame, &headers, (frame, &headers), notes);
        }
        let mut count = 0u64;
        let cut = cutter.cut(frame, &headers, |packet, headers| {
            count += 1;
            decide(packet, headers, (packet, headers), notes);
        });
        if cut == Cut::Impossible {
            notes.uncut += 1;
            let shown = clip(frame, &headers, classifier.mtu(frame.point));
            let within = headers.within(shown.data.len());
            return decide(frame, &headers, (&shown, &within), notes);
        }
        notes.cut += count - 1;
        notes.truncated += u64::from(cut == Cut::Truncated);
    }
}

#[cfg(test)]
mod load_tests;
