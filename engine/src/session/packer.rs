//! A worker's own end of a session: decides whether the sensor wants a frame, and packs it.
//!
//! ```text
//! offer(frame): interface, filter, sampling -> run.push -> full? submit
//! flush(now): the oldest frame has waited long enough? finish the datagram, submit
//!             ... but while others wait to be sent, go on filling the run instead
//! drop: flush, so that nothing offered is left behind
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bpf::Program;
use crate::frame::Frame;
use crate::shared::Reader;
use crate::stats::SessionDrop;
use crate::stats::histogram::{Stage, WorkerHistograms};

use super::Session;
use super::run::{MAX_CAPLEN, Run};

/// How long a run that is kept because others wait is filled before it is tried again, ns.
const RETRY_NS: u64 = 1_000_000;

/// See the module. One per worker and session.
#[derive(Debug)]
pub struct Packer {
    session: Arc<Session>,
    filter: Reader<Option<Program>>,
    /// Since [`Packer::follow_filter`] told of it last.
    has_new_filter: bool,
    run: Option<Box<Run>>,
    /// The run is kept until then, unless it has no room left; worker's clock.
    kept_until_ns: u64,
    /// The session sends no more: frames are only counted.
    is_over: bool,
    /// Counts not yet added to the session's.
    offered: u64,
    dropped: [u64; SessionDrop::ALL.len()],
}

impl Packer {
    /// A packer for one worker.
    #[must_use]
    pub fn new(session: Arc<Session>) -> Self {
        let filter = session.filter.reader();
        let dropped = [0; SessionDrop::ALL.len()];
        let (has_new_filter, is_over) = (false, false);
        let (run, kept_until_ns, offered) = (None, 0, 0);
        Self { session, filter, has_new_filter, run, kept_until_ns, is_over, offered, dropped }
    }

    /// The session it packs for.
    #[must_use]
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Before a batch: takes a new filter, if there is one.
    pub fn begin_batch(&mut self) {
        self.has_new_filter |= self.filter.refresh();
        self.is_over = self.session.outbox.is_over();
    }

    /// Takes a new filter, if there is one; true if one came since it was asked last.
    pub fn follow_filter(&mut self) -> bool {
        self.begin_batch();
        std::mem::take(&mut self.has_new_filter)
    }

    /// The filter of a capture of the whole node; `None` if it has none, or is of one interface.
    #[must_use]
    pub fn filter_of_any(&self) -> Option<Program> {
        let filter = Option::clone(self.filter.get());
        filter.filter(|_| self.session.spec.interface.is_none())
    }

    /// Offers a frame at the worker's time `now_ns`.
    pub fn offer(&mut self, frame: &Frame<'_>, now_ns: u64, histograms: &mut WorkerHistograms) {
        self.offered += 1;
        let mut most = usize::try_from(self.session.spec.snaplen).unwrap_or(usize::MAX);
        if let Some(program) = &**self.filter.get() {
            match program.run(frame) {
                0 => return self.count(SessionDrop::Filter),
                accepted => most = most.min(usize::try_from(accepted).unwrap_or(usize::MAX)),
            }
        }
        if !self.session.sampler.admits(frame.timestamp_ns) {
            return self.count(SessionDrop::Sampling);
        }
        if self.is_over {
            return self.count(SessionDrop::TcpUnsent);
        }
        let run = match &mut self.run {
            Some(run) => run,
            empty => match self.session.outbox.take_run() {
                Some(run) => empty.insert(run),
                None => return self.count(SessionDrop::QueueFull),
            },
        };
        if run.is_empty() {
            run.opened_ns = now_ns;
        }
        run.push(&frame.wire(most.min(MAX_CAPLEN)));
        if run.has_no_room() || (run.is_full() && self.kept_until_ns <= now_ns) {
            self.flush(now_ns, histograms);
        }
    }

    fn count(&mut self, reason: SessionDrop) {
        self.dropped[reason as usize] += 1;
    }

    /// When what waits must go out, worker's clock; `None` while nothing waits.
    #[must_use]
    pub fn deadline_ns(&self, flush_ns: u64) -> Option<u64> {
        if self.session.outbox.is_owed() {
            return Some(0);
        }
        let run = self.run.as_ref().filter(|run| !run.is_empty())?;
        let wait_ns = flush_ns.min(self.session.spec.longest_wait_ns);
        Some(run.opened_ns.saturating_add(wait_ns).max(self.kept_until_ns))
    }

    /// Sends what waits, partial datagram included. While the session's runs wait for a sender that
    /// does not get on, a run with room is kept, to be filled: there are only so many runs.
    pub fn flush(&mut self, now_ns: u64, histograms: &mut WorkerHistograms) {
        if self.run.as_ref().is_some_and(|run| !run.has_no_room()) && self.is_behind() {
            self.kept_until_ns = now_ns.saturating_add(RETRY_NS);
            return;
        }
        self.kept_until_ns = 0;
        if let Some(run) = self.run.take() {
            let waited = now_ns.saturating_sub(run.opened_ns);
            let frames = run.frames.len() as u64;
            if let Some(send_ns) = self.submit(run) {
                histograms.record(Stage::Send, send_ns);
            }
            histograms.record_n(Stage::BatchWait, waited, frames);
        } else if self.session.outbox.is_owed() {
            self.session.pump();
        }
    }

    /// True if runs still wait after an attempt to send them here.
    fn is_behind(&self) -> bool {
        let outbox = &self.session.outbox;
        outbox.is_behind() && {
            self.session.pump();
            outbox.is_behind()
        }
    }

    fn submit(&mut self, mut run: Box<Run>) -> Option<u64> {
        if run.is_empty() {
            self.session.outbox.give_back(run);
            return None;
        }
        run.finish();
        self.session.outbox.submit(run, &self.session.stats)
    }

    /// After a batch: the counts become visible.
    pub fn publish(&mut self) {
        let stats = &self.session.stats;
        if self.offered != 0 {
            stats.offered.fetch_add(std::mem::take(&mut self.offered), Ordering::Relaxed);
        }
        for (count, reason) in self.dropped.iter_mut().zip(SessionDrop::ALL) {
            if *count != 0 {
                stats.drop_frames(*reason, std::mem::take(count));
            }
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.submit(run);
        }
        self.publish();
    }
}
