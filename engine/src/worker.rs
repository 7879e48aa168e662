//! One core's loop, and the only place that names all the stages.
//!
//! ```text
//! look at what changed (classifier, sessions, life) -> take a batch -> admit each frame, settle
//! what waits -> offer it to every session, or to its flow's of each group -> flush what has waited
//! long enough -> publish counts -> again
//! ```
//!
//! Nothing on the way of a frame allocates, locks, formats, logs or reads the clock. A worker
//! sleeps in `Source::wait` and is woken by frames, by control, or after 100 ms at the latest,
//! so that its heartbeat moves.

mod deliver;
mod socket_filter;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::classify::Classifier;
use crate::frame::Frame;
use crate::pipeline::{Notes, Pipeline};
use crate::session::flow::Flows;
use crate::session::{Group, Packer, Roster, Sessions};
use crate::shared::Reader;
use crate::source::{Batch, Source};
use crate::stats::WorkerStats;
use crate::stats::histogram::WorkerHistograms;
use crate::wire::Headers;
use deliver::Delivery;

/// A worker looks around this often even if nothing happens.
const IDLE: Duration = Duration::from_millis(100);
/// Kernel counters and histograms are read and published this often.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// How long the frames that are still in the ring are waited for at the end.
const DRAIN: Duration = Duration::from_millis(300);

/// The workers' common life: capturing, then draining, then gone.
#[derive(Debug, Default)]
pub struct Lifecycle(AtomicU8);

const CAPTURING: u8 = 0;
const DRAINING: u8 = 1;

impl Lifecycle {
    /// Workers stop taking new frames, work off what the ring holds, flush, and end.
    pub fn drain(&self) {
        // Relaxed: workers are woken after it, and one that sees it late sees it at the next look.
        self.0.store(DRAINING, Ordering::Relaxed);
    }

    fn is_capturing(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CAPTURING
    }
}

/// What a worker needs; see [`run`].
#[derive(Debug)]
pub struct Context {
    /// Index among the workers.
    pub index: usize,
    /// See [`Pipeline`].
    pub pipeline: Pipeline,
    /// What addresses decide, as of now.
    pub classifier: Reader<Classifier>,
    /// Where frames go.
    pub sessions: Arc<Sessions>,
    /// Counters.
    pub stats: Arc<WorkerStats>,
    /// Latencies.
    pub histograms: WorkerHistograms,
    /// The longest that a partial datagram waits, ns.
    pub flush_ns: u64,
    /// By which copies wait for their twins.
    pub clock: Clock,
    /// See [`Lifecycle`].
    pub life: Arc<Lifecycle>,
}

/// What time it is for a copy that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The worker's: a worker that is behind with its ring does not give up earlier.
    #[default]
    Worker,
    /// The frames' stamps: they come from files, faster or slower than they were captured.
    Frames,
}

/// A packer, and what it is offered.
struct Outlet {
    packer: Packer,
    wants: Wants,
}

/// What a packer is offered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wants {
    /// Every admitted frame.
    All,
    /// A capture of one interface gets every frame there but our own, whatever the election says;
    /// none if there is no such interface.
    Interface(Option<u32>),
    /// What a [`Sharing`] gives it.
    Share,
}

/// A group of sessions, each of which gets its own flows.
struct Sharing {
    group: Arc<Group>,
    /// Of each of the group's members, the place in the worker's outlets.
    places: Vec<usize>,
}

/// Works until `life` says to drain, or the source is exhausted; then flushes and returns.
pub fn run<S: Source>(mut source: S, context: Context) {
    let mut worker = Worker::new(context);
    worker.follow_changes(&mut source, true);
    while worker.context.life.is_capturing() {
        worker.follow_changes(&mut source, false);
        if !worker.work(&mut source) {
            if source.is_exhausted() {
                break;
            }
            worker.sleep(&mut source);
        }
        worker.settle_due();
        worker.flush_due();
        worker.keep_house(&mut source, false);
    }
    worker.drain(&mut source);
}

struct Worker {
    context: Context,
    sessions: Reader<Roster>,
    /// Those that get a share only come last.
    outlets: Vec<Outlet>,
    /// How many of `outlets` get more than a share.
    direct: usize,
    sharings: Vec<Sharing>,
    flows: Flows,
    started: Instant,
    housekept: Instant,
}

impl Worker {
    fn new(context: Context) -> Self {
        let sessions = context.sessions.reader();
        let started = Instant::now();
        Self {
            context,
            sessions,
            outlets: Vec::new(),
            direct: 0,
            sharings: Vec::new(),
            flows: Flows::default(),
            started,
            housekept: started,
        }
    }

    /// Worker's clock: monotonic, ns since it started.
    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes over a new classifier, new sessions and their new filters, and puts the filter that follows from them
    /// in front of the source.
    fn follow_changes<S: Source>(&mut self, source: &mut S, first: bool) {
        let sessions_changed = self.sessions.refresh() || first;
        let mut filters_changed = false;
        for outlet in &mut self.outlets {
            filters_changed |= outlet.packer.follow_filter();
        }
        if !(self.context.classifier.refresh() || sessions_changed || filters_changed) {
            return;
        }
        if sessions_changed {
            let list = Arc::clone(self.sessions.get());
            // Dropping a packer flushes it.
            self.outlets.retain(|outlet| {
                list.iter().any(|session| session.id == outlet.packer.session().id)
            });
            for session in list.iter() {
                if !self.outlets.iter().any(|outlet| outlet.packer.session().id == session.id) {
                    let packer = Packer::new(Arc::clone(session));
                    self.outlets.push(Outlet { packer, wants: Wants::All });
                }
            }
            self.share_out(&list);
        }
        let classifier = self.context.classifier.get();
        let mut whole = Vec::new();
        for outlet in &mut self.outlets {
            if let Some(name) = outlet.packer.session().spec.interface.as_deref() {
                let ifindex = classifier.ifindex(name);
                outlet.wants = Wants::Interface(ifindex);
                whole.extend(ifindex);
            }
        }
        let filters = self.outlets.iter().map(|outlet| outlet.packer.filter_of_any()).collect();
        socket_filter::put(source, self.context.index, classifier, &whole, filters);
        self.context.sessions.mark_seen(self.context.index, self.sessions.generation());
    }

    /// Takes over who shares with whom.
    fn share_out(&mut self, list: &Roster) {
        for outlet in &mut self.outlets {
            let session = outlet.packer.session();
            let alone =
                |group: &Arc<Group>| matches!(group.members(), [one] if one.id == session.id);
            // The only one there is gets everything, without any look at flows.
            outlet.wants = match &session.spec.share {
                Some(_) if !list.groups().iter().any(alone) => Wants::Share,
                _ => Wants::All,
            };
        }
        self.outlets.sort_by_key(|outlet| outlet.wants == Wants::Share);
        self.direct = self.outlets.iter().filter(|outlet| outlet.wants != Wants::Share).count();
        let shared = list.groups().iter().filter(|group| group.members().len() > 1);
        self.sharings = shared
            .map(|group| {
                let place = |id| self.outlets.iter().position(|o| o.packer.session().id == id);
                let places = group
                    .members()
                    .iter()
                    .map(|member| place(member.id).expect("members are sessions of the same list"));
                Sharing { group: Arc::clone(group), places: places.collect() }
            })
            .collect();
    }

    /// Works off one batch; false if there was none.
    fn work<S: Source>(&mut self, source: &mut S) -> bool {
        let Some(batch) = source.next_batch() else { return false };
        let now_ns = self.now_ns();
        let wall_ns = wall_clock_ns();
        let Self { context, outlets, direct, sharings, flows, .. } = self;
        let Context { pipeline, classifier, histograms, stats, clock, .. } = context;
        let classifier = classifier.get();
        let mut delivery =
            Delivery::new(outlets, *direct, sharings, flows, histograms, now_ns).taken_at(wall_ns);
        match clock {
            Clock::Worker => {
                let each = |p: &Frame<'_>, h: &Headers, verdict| delivery.seen(p, h, verdict);
                pipeline.admit_batch(classifier, batch.frames(), now_ns, each);
            }
            // Whatever waited is decided at the time of the frame that comes next.
            Clock::Frames => {
                for frame in batch.frames() {
                    let now_ns = frame.timestamp_ns;
                    pipeline.settle(now_ns, |p, h, verdict| delivery.settled(p, h, verdict));
                    pipeline.admit(classifier, &frame, now_ns, |p, h, verdict| {
                        delivery.seen(p, h, verdict);
                    });
                }
            }
        }
        drop(batch);
        if *clock == Clock::Worker && pipeline.held() != 0 {
            pipeline.settle(now_ns, |p, h, verdict| delivery.settled(p, h, verdict));
        }
        delivery.publish(stats);
        publish_notes(stats, pipeline);
        true
    }

    /// Decides about what has waited for its twin long enough, also where no batch comes.
    fn settle_due(&mut self) {
        let Some(due) = self.context.pipeline.next_deadline_ns() else { return };
        if self.context.clock == Clock::Worker && due <= self.now_ns() {
            self.settle(false);
        }
    }

    fn settle(&mut self, all: bool) {
        let now_ns = self.now_ns();
        let Self { context, outlets, direct, sharings, flows, .. } = self;
        let Context { pipeline, histograms, stats, .. } = context;
        let mut delivery = Delivery::new(outlets, *direct, sharings, flows, histograms, now_ns);
        let until_ns = if all { u64::MAX } else { now_ns };
        pipeline.settle(until_ns, |p, h, verdict| delivery.settled(p, h, verdict));
        delivery.publish(stats);
        publish_notes(stats, pipeline);
    }

    fn sleep<S: Source>(&mut self, source: &mut S) {
        let flush_ns = self.context.flush_ns;
        let flush =
            self.outlets.iter().filter_map(|outlet| outlet.packer.deadline_ns(flush_ns)).min();
        let now = self.now_ns();
        let timeout =
            flush.map_or(IDLE, |due| IDLE.min(Duration::from_nanos(due.saturating_sub(now))));
        let timeout = self.until_settled(timeout);
        if let Err(error) = source.wait(timeout) {
            tracing::error!(%error, "waiting for frames failed");
            std::thread::sleep(IDLE);
        }
    }

    /// So long, or until something that waits is to be decided.
    fn until_settled(&self, most: Duration) -> Duration {
        let due = match self.context.clock {
            Clock::Worker => self.context.pipeline.next_deadline_ns(),
            Clock::Frames => None,
        };
        let now = self.now_ns();
        due.map_or(most, |due| most.min(Duration::from_nanos(due.saturating_sub(now))))
    }

    fn flush_due(&mut self) {
        if self.outlets.is_empty() {
            return;
        }
        let now = self.now_ns();
        let flush_ns = self.context.flush_ns;
        for Outlet { packer, .. } in &mut self.outlets {
            if packer.deadline_ns(flush_ns).is_some_and(|due| due <= now) {
                packer.flush(now, &mut self.context.histograms);
            }
        }
    }

    fn keep_house<S: Source>(&mut self, source: &mut S, at_once: bool) {
        let Context { stats, histograms, sessions, .. } = &mut self.context;
        stats.batches.add(1);
        let now = Instant::now();
        histograms.publish(now);
        if !at_once && now.duration_since(self.housekept) < HOUSEKEEPING {
            return;
        }
        self.housekept = now;
        // What waits for a client goes on, and paths are looked at, without traffic too.
        for outlet in &self.outlets {
            outlet.packer.session().pump();
        }
        sessions.tend();
        match source.stats() {
            Ok(seen) => {
                stats.ring_seen.set(seen.seen);
                stats.ring_dropped.set(seen.ring_dropped);
                stats.ring_freezes.set(seen.ring_freezes);
                stats.ring_malformed.set(seen.malformed);
            }
            Err(error) => tracing::warn!(%error, "reading the ring's counters failed"),
        }
    }

    /// The end: no new frames, those in the ring are worked off, what is batched is sent.
    fn drain<S: Source>(&mut self, source: &mut S) {
        let reject = crate::bpf::Program::reject_all();
        if let Err(error) = source.set_filter(reject.instructions()) {
            tracing::warn!(%error, "the kernel refused the closing filter");
        }
        let deadline = Instant::now() + DRAIN;
        // A partial block comes after the retire timeout; an idle wait says that none is left.
        let mut idle_since = Instant::now();
        while Instant::now() < deadline {
            if self.work(source) {
                idle_since = Instant::now();
            } else if source.is_exhausted() {
                break;
            } else {
                let is_idle = idle_since.elapsed() >= Duration::from_millis(40);
                if is_idle && self.context.pipeline.held() == 0 {
                    break;
                }
                // What waits is decided in its time: other workers' copies may still come.
                if source.wait(self.until_settled(Duration::from_millis(50))).is_err() {
                    break;
                }
            }
            self.settle_due();
        }
        // Nothing comes any more that could be the twin of what waits.
        self.settle(true);
        self.outlets.clear();
        self.keep_house(source, true);
        self.context.sessions.mark_seen(self.context.index, u64::MAX);
    }
}

fn publish_notes(stats: &WorkerStats, pipeline: &mut Pipeline) {
    let Notes { cut, uncut, truncated, evicted, untwinned, settle_full } =
        std::mem::take(&mut pipeline.notes);
    stats.segments_cut.add(cut);
    stats.segments_uncut.add(uncut);
    stats.segments_truncated.add(truncated);
    stats.dedup_evicted.add(evicted);
    stats.untwinned.add(untwinned);
    stats.settle_full.add(settle_full);
    stats.held.set(pipeline.held());
}

/// Nanoseconds since the epoch, the clock of kernel timestamps.
fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
