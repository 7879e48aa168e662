//! The work on frames, without rings, sockets or threads: tests, replay and workers all call it.
//!
//! ```text
//! frames, 16 at a time --parse, classify, name--> --dedup------> each(packet, headers, Report | Drop)
//!      super-frame? cut, each segment named       candidate? `--> settle --> each(.., Hold) ... --> each(.., Report | Drop)
//! ```
//!
//! Every packet is handed to `each` once as it comes, with its verdict, and if that is to wait
//! then once more, with another: so whoever counts cannot forget one.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::classify::{Classifier, Recall, Scope};
use crate::dedup::{Fingerprinter, Key, Table};
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

/// Frames of a group: enough for memory to come from far, few enough to stay near meanwhile (4 KiB).
const GROUP: usize = 16;

/// A frame before it is looked up.
struct Named<'f> {
    frame: Frame<'f>,
    headers: Headers,
    what: What,
}

/// What comes next for a frame.
#[derive(Clone, Copy)]
enum What {
    /// It is one packet, which is dropped, or has this key.
    Packet(Result<(Scope, Key), DropReason>),
    /// It is to be cut; what was said of it holds for all its segments.
    Super(Result<Scope, DropReason>),
}

/// See the module. One per worker; the table is everybody's.
#[derive(Debug)]
pub struct Pipeline {
    table: Arc<Table>,
    recall: Recall,
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
        let recall = Recall::default();
        Self { table, recall, fingerprinter, cutter, settler, notes }
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
        each: impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        self.admit_batch(classifier, std::iter::once(*frame), now_ns, each);
    }

    /// The same for many frames, in their order. It works in groups: all of a group are read and named
    /// before the first is looked up, so that the memory they need comes while others are worked on.
    pub fn admit_batch<'f>(
        &mut self,
        classifier: &Classifier,
        frames: impl Iterator<Item = Frame<'f>>,
        now_ns: u64,
        mut each: impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        classifier.begin(&mut self.recall);
        let mut group = ArrayVec::<Named<'f>, GROUP>::new();
        let mut frames = frames.fuse();
        loop {
            group.extend(frames.by_ref().take(GROUP).map(|frame| self.name(classifier, frame)));
            if group.is_empty() {
                return;
            }
            for Named { frame, headers, what } in &group {
                let verdict = match *what {
                    What::Packet(Ok((scope, key))) => {
                        self.look_up(classifier, scope, key, frame, (frame, headers), now_ns)
                    }
                    What::Packet(Err(reason)) => Verdict::Drop(reason),
                    What::Super(verdict) => {
                        self.admit_super(classifier, frame, headers, verdict, now_ns, &mut each);
                        continue;
                    }
                };
                each(frame, headers, verdict);
            }
            group.clear();
        }
    }

    /// What the frame is, and, where it is one packet that is to be looked up, its key; the table's
    /// memory for it is on its way then.
    #[inline]
    fn name<'f>(&mut self, classifier: &Classifier, frame: Frame<'f>) -> Named<'f> {
        let headers = Headers::parse(frame.data);
        let verdict = classifier.classify_with(&mut self.recall, &frame, &headers);
        // Of a super-frame, each segment is narrowed for itself.
        if frame.offload.gso_size != 0 {
            return Named { frame, headers, what: What::Super(verdict) };
        }
        let what = classifier.narrow(verdict, &frame).map(|scope| {
            let key = self.fingerprinter.key(&headers, frame.data).marked(scope.marks);
            self.table.prefetch(key);
            (scope, key)
        });
        Named { frame, headers, what: What::Packet(what) }
    }

    /// The table's verdict on a packet, or the settler's. `shown` is what is reported of it: less than
    /// all where it cannot be cut.
    #[inline]
    fn look_up(
        &mut self,
        classifier: &Classifier,
        scope: Scope,
        key: Key,
        packet: &Frame<'_>,
        shown: (&Frame<'_>, &Headers),
        now_ns: u64,
    ) -> Verdict {
        let Self { table, settler, notes, .. } = self;
        let Scope { point: number, candidate, .. } = scope;
        let Some(candidate) = candidate else {
            return observe(table, key, number, packet, notes);
        };
        let (packet, headers) = shown;
        let sighting = Sighting { key, number, candidate, packet, headers };
        match classifier.settles() {
            true => settler.arrive(table, sighting, now_ns, notes),
            false => sighting.decide_at_once(table, notes),
        }
    }

    /// A frame that has to be cut, with what its addresses, role and direction decide.
    fn admit_super(
        &mut self,
        classifier: &Classifier,
        frame: &Frame<'_>,
        headers: &Headers,
        verdict: Result<Scope, DropReason>,
        now_ns: u64,
        each: &mut impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        let mut decide = |this: &mut Self,
                          packet: &Frame<'_>,
                          headers: &Headers,
                          shown: (&Frame<'_>, &Headers)| {
            let verdict = match classifier.narrow(verdict, packet) {
                Err(reason) => Verdict::Drop(reason),
                Ok(scope) => {
                    let key = this.fingerprinter.key(headers, packet.data).marked(scope.marks);
                    this.look_up(classifier, scope, key, packet, shown, now_ns)
                }
            };
            each(shown.0, shown.1, verdict);
        };
        let mut count = 0u64;
        let mut cutter = std::mem::take(&mut self.cutter);
        let cut = cutter.cut(frame, headers, |packet, headers| {
            count += 1;
            decide(self, packet, headers, (packet, headers));
        });
        self.cutter = cutter;
        if cut == Cut::Impossible {
            self.notes.uncut += 1;
            let shown = clip(frame, headers, classifier.mtu(frame.point));
            let within = headers.within(shown.data.len());
            return decide(self, frame, headers, (&shown, &within));
        }
        self.notes.cut += count - 1;
        self.notes.truncated += u64::from(cut == Cut::Truncated);
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
