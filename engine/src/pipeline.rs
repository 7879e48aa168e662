//! The work on one frame, without rings, sockets or threads: tests, replay and workers all call it.
//!
//! ```text
//! frame --cut--> packets --classify, filter--> dedup -----> each(packet, headers, Report | Drop)
//!                                   candidate? `--> settle --> each(.., Hold)  ... --> each(.., Report | Drop)
//! ```
//!
//! Every packet is handed to `each` once as it comes, with its verdict, and if that is to wait
//! then once more, with another: so whoever counts cannot forget one.

use std::sync::Arc;

use crate::classify::{Classifier, Scope};
use crate::dedup::{Fingerprinter, Table};
use crate::frame::Frame;
use crate::segment::{Cut, Cutter, clip};
use crate::settle::{Settler, Settling, Sighting, observe};
use crate::stats::DropReason;
use crate::wire::Headers;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this node's to report.
    Report,
    /// It is not, or another copy of it is.
    Drop(DropReason),
    /// A better copy may come: [`Pipeline::settle`] will say more.
    Hold,
}

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
    /// Packets that waited for a better copy and were reported without one.
    pub untwinned: u64,
    /// Packets that should have waited and were decided at once, for lack of memory.
    pub settle_full: u64,
}

/// See the module. One per worker; the table is everybody's.
#[derive(Debug)]
pub struct Pipeline {
    table: Arc<Table>,
    fingerprinter: Fingerprinter,
    cutter: Cutter,
    settler: Settler,
    /// Since it was last taken.
    pub notes: Notes,
}

impl Pipeline {
    /// All workers' pipelines share the table and the fingerprinter's seed.
    #[must_use]
    pub fn new(table: Arc<Table>, fingerprinter: Fingerprinter) -> Self {
        let settler = Settler::new(Settling::default(), fingerprinter.seed());
        let (cutter, notes) = (Cutter::default(), Notes::default());
        Self { table, fingerprinter, cutter, settler, notes }
    }

    /// The same, with another time and memory for candidates.
    #[must_use]
    pub fn settling(self, settling: Settling) -> Self {
        let settler = Settler::new(settling, self.fingerprinter.seed());
        Self { settler, ..self }
    }

    /// Decides about a frame: `each` gets every packet that it stands for, with its headers and the
    /// verdict. `now_ns` is when it was taken up, on the clock that [`settle`](Self::settle) is
    /// asked by.
    pub fn admit(
        &mut self,
        classifier: &Classifier,
        frame: &Frame<'_>,
        now_ns: u64,
        mut each: impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        let headers = Headers::parse(frame.data);
        let Self { table, fingerprinter, cutter, settler, notes } = self;
        // Addresses, role and direction are the same for all the segments.
        let scope = classifier.classify(frame, &headers);
        // `shown` is what is reported of the packet: less than all of it where it cannot be cut.
        let mut decide = |packet: &Frame<'_>,
                          headers: &Headers,
                          shown: (&Frame<'_>, &Headers),
                          notes: &mut Notes| {
            let verdict = match classifier.narrow(scope, packet) {
                Err(reason) => Verdict::Drop(reason),
                Ok(Scope { point: number, candidate, marks }) => {
                    let (header, rest) = packet.data.split_at(headers.payload);
                    let payload = &rest[..headers.end - headers.payload];
                    let key = fingerprinter.key(headers, header, payload).marked(marks);
                    match candidate {
                        None => observe(table, key, number, packet, notes),
                        Some(candidate) => {
                            let (packet, headers) = shown;
                            let sighting = Sighting { key, number, candidate, packet, headers };
                            match classifier.settles() {
                                true => settler.arrive(table, sighting, now_ns, notes),
                                false => sighting.decide_at_once(table, notes),
                            }
                        }
                    }
                }
            };
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

    /// Decides about packets that wait: those whose time is over by `now_ns`, and those of which
    /// enough is known by now. Once per batch, and at [`next_deadline_ns`](Self::next_deadline_ns).
    pub fn settle(&mut self, now_ns: u64, each: impl FnMut(&Frame<'_>, &Headers, Verdict)) {
        self.settler.settle(&self.table, now_ns, &mut self.notes, each);
    }

    /// Decides about all packets that wait: nothing will come any more.
    pub fn settle_all(&mut self, each: impl FnMut(&Frame<'_>, &Headers, Verdict)) {
        self.settle(u64::MAX, each);
    }

    /// When the oldest packet's time is over.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.settler.next_deadline_ns()
    }

    /// Packets that wait.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.settler.held()
    }
}

#[cfg(test)]
mod load_tests;
