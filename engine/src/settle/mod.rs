//! Which of two copies is reported: the one with the pods' addresses, whichever comes first.
//!
//! ```text
//! candidate --twin known? (table)--yes--> drop: service | translated        the flow's memory learns
//!               `--no--> what is known of its flow? --> report | drop | hold a copy
//! hold --twin comes--> drop;   hold --time is over--> report, "untwinned"
//! ```
//!
//! A candidate ([`Candidate`]) has an address that is no pod's. Its twin, the same packet with the
//! pod's, may come later: at the next point, or in another worker's ring. So it waits, for
//! [`Settling::settle_ns`] at most (half of that at an uplink: the twin of a packet to a NodePort
//! may be such a one itself, and has to be decided first). What is learned of a flow spares its next
//! packets the wait.
//!
//! In doubt the packet is reported. It is dropped without its twin having been seen only
//! where the twin is known to exist: an answer through a service whose requests have twins, while
//! none of its answers had one here, is another tapped node's to report; and where the memory for
//! waiting packets is full, what belongs to a flow that is translated.
//!
//! One doubt is not told. A twin has a pod's address where the candidate has the node's or a service's, and its
//! other end is the candidate's or, masqueraded, the node's own ([`Marks`]). The very same bytes between such
//! ends, seen within the window, are taken for the twin, whoever sent them.
//!
//! [`Marks`]: crate::dedup::Marks

mod flows;
mod hold;
mod name;
#[cfg(test)]
mod tests;

use crate::classify::Candidate;
use crate::dedup::{Key, Outcome, Table, Translated};
use crate::frame::Frame;
use crate::pipeline::{Notes, Verdict};
use crate::stats::DropReason;
use crate::wire::{Headers, protocol};

use flows::{FlowMemory, State};
use hold::{Hold, Waiting};
use name::Namer;

/// How long, and in how much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settling {
    /// The longest that a candidate waits for its twin.
    pub settle_ns: u64,
    /// Bytes for waiting packets and the memory of flows, of one worker.
    pub memory: usize,
}

impl Default for Settling {
    fn default() -> Self {
        Self { settle_ns: 20_000_000, memory: 1 << 20 }
    }
}

/// A packet as the table knows it, and what settling needs to know beside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sighting<'a> {
    pub(crate) key: Key,
    /// The point's number.
    pub(crate) number: u16,
    pub(crate) candidate: Candidate,
    pub(crate) packet: &'a Frame<'a>,
    pub(crate) headers: &'a Headers,
}

impl Sighting<'_> {
    /// Without settling, whichever copy comes first is reported.
    pub(crate) fn decide_at_once(&self, table: &Table, notes: &mut Notes) -> Verdict {
        let &Self { key, number, candidate, packet, .. } = self;
        match ask(table, key, number, candidate, packet.timestamp_ns) {
            Known::Copy | Known::Twin => Verdict::Drop(DropReason::Duplicate),
            Known::Nothing => observe(table, key, number, packet, notes),
        }
    }
}

/// See the module. One per worker; all share the table.
#[derive(Debug)]
pub(crate) struct Settler {
    settle_ns: u64,
    namer: Namer,
    flows: FlowMemory,
    /// What waits for half the time: the node's own addresses, and answers of which nothing is
    /// known.
    short: Hold,
    /// What waits for all of it.
    long: Hold,
}

const BOTH: Translated = Translated { source: true, destination: true };

/// Which of the two queues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Short,
    Long,
}

/// What the table says of a candidate.
enum Known {
    /// A copy of what was reported with these very addresses.
    Copy,
    Twin,
    Nothing,
}

impl Settler {
    /// With a seed that nobody outside can know.
    pub(crate) fn new(settling: Settling, seed: u64) -> Self {
        let Settling { settle_ns, memory } = settling;
        let flows = memory / 4;
        let each = (memory - flows) / 2;
        Self {
            settle_ns,
            namer: Namer::new(seed),
            flows: FlowMemory::new(flows),
            short: Hold::new(each),
            long: Hold::new(each),
        }
    }

    /// Packets that wait.
    pub(crate) fn held(&self) -> u64 {
        self.short.open() + self.long.open()
    }

    /// When [`settle`](Self::settle) has something to do at the latest.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        let deadlines = [self.short.next_deadline_ns(), self.long.next_deadline_ns()];
        deadlines.into_iter().flatten().min()
    }

    /// Decides about a candidate that was just seen, or keeps a copy.
    #[cold]
    #[inline(never)]
    pub(crate) fn arrive(
        &mut self,
        table: &Table,
        sighting: Sighting<'_>,
        now_ns: u64,
        notes: &mut Notes,
    ) -> Verdict {
        let Sighting { key, number, mut candidate, packet, headers } = sighting;
        let flow = self.namer.name(packet.data, headers);
        let mut state = self.flows.state(flow.name, now_ns);
        if flow.opens {
            state = match candidate {
                Candidate::NodePort { answers: true, .. } => State::Opened,
                _ => State::Unknown,
            };
            self.flows.learn(flow.name, state, now_ns);
        }
        if let Candidate::NodePort { answers, at_uplink } = candidate
            && matches!(state, State::Opened | State::Native | State::Translated)
        {
            if !at_uplink {
                return observe(table, key, number, packet, notes);
            }
            candidate = Candidate::Node {
                translated: Translated { source: answers, destination: !answers },
            };
        }
        let waiting = Waiting {
            deadline_ns: 0,
            key,
            number,
            candidate,
            flow: flow.name,
            is_error: flow.is_error,
        };
        let known = ask(table, key, number, candidate, packet.timestamp_ns);
        if let Some(verdict) = self.found(&waiting, known, state, now_ns) {
            return verdict;
        }
        if matches!(candidate, Candidate::NodePort { answers: true, at_uplink: false })
            && state == State::Unknown
            && !flow.is_error
            && headers.protocol != protocol::TCP
        {
            // The first of its flow, and nobody asked: no NodePort answers, but a translation took
            // a port of that range for a client's packet, which is on its way into the pod here. (TCP
            // says with its flags who opens; at an uplink it may as well be an answer that is seen
            // before its twin.)
            self.flows.learn(flow.name, State::Opened, now_ns);
            return observe(table, key, number, packet, notes);
        }
        let queue = match candidate {
            Candidate::Node { .. } if state == State::Native => {
                return observe(table, key, number, packet, notes);
            }
            Candidate::Node { .. } => Queue::Short,
            // The twin of what goes through a service may itself be a Node candidate of another
            // worker's, which has to be decided first.
            _ => Queue::Long,
        };
        if self.hold(queue, waiting, packet, now_ns) {
            if is_request(candidate) && state == State::Unknown {
                self.flows.learn(flow.name, State::Asked, now_ns);
            }
            return Verdict::Hold;
        }
        notes.settle_full += 1;
        match (candidate, state) {
            // What was learned decides (rule 6); a service's packet is in doubt, and reported.
            (Candidate::Node { .. }, State::Translated) => Verdict::Drop(DropReason::Translated),
            _ => observe(table, key, number, packet, notes),
        }
    }

    /// Keeps a copy; false if there is no room.
    fn hold(&mut self, queue: Queue, waiting: Waiting, packet: &Frame<'_>, now_ns: u64) -> bool {
        let (hold, wait_ns) = match queue {
            Queue::Short => (&mut self.short, self.settle_ns / 2),
            Queue::Long => (&mut self.long, self.settle_ns),
        };
        let waiting = Waiting { deadline_ns: now_ns.saturating_add(wait_ns), ..waiting };
        let Some(ticket) = hold.push(waiting, packet) else { return false };
        if matches!(waiting.candidate, Candidate::Node { .. }) {
            let before = self.flows.waits(waiting.flow, ticket, now_ns);
            self.short.link(before, ticket);
        }
        true
    }

    /// The verdict where what the table and the memory know is enough.
    fn found(
        &mut self,
        waiting: &Waiting,
        known: Known,
        state: State,
        now_ns: u64,
    ) -> Option<Verdict> {
        let is_node = matches!(waiting.candidate, Candidate::Node { .. });
        match known {
            Known::Copy => Some(Verdict::Drop(DropReason::Duplicate)),
            Known::Twin if is_node => {
                // One without ports says nothing of how the flow's other packets are translated.
                if waiting.candidate.ignored() != BOTH {
                    self.flows.learn(waiting.flow, State::Translated, now_ns);
                }
                Some(Verdict::Drop(DropReason::Translated))
            }
            Known::Twin => {
                let learned = match is_request(waiting.candidate) {
                    true if state == State::Answered => State::Answered,
                    true => State::Proven,
                    false => State::Answered,
                };
                self.flows.learn(waiting.flow, learned, now_ns);
                Some(Verdict::Drop(DropReason::Service))
            }
            Known::Nothing => {
                // The node itself may have made the error, but nothing else that answers.
                let is_covered = !is_node
                    && !is_request(waiting.candidate)
                    && !waiting.is_error
                    && state == State::Proven;
                is_covered.then_some(Verdict::Drop(DropReason::Service))
            }
        }
    }

    /// Decides about what has waited long enough by `now_ns`, and, in the order of arrival, about what
    /// can be decided before.
    pub(crate) fn settle(
        &mut self,
        table: &Table,
        now_ns: u64,
        notes: &mut Notes,
        mut each: impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        for queue in [Queue::Short, Queue::Long] {
            while let Some(ticket) = self.queue(queue).oldest() {
                if !self.decide(queue, ticket, false, table, now_ns, notes, &mut each) {
                    break;
                }
                if queue == Queue::Short {
                    self.release(ticket, table, now_ns, notes, &mut each);
                }
            }
        }
    }

    fn queue(&mut self, queue: Queue) -> &mut Hold {
        match queue {
            Queue::Short => &mut self.short,
            Queue::Long => &mut self.long,
        }
    }

    /// False if the packet has to wait longer.
    #[expect(clippy::too_many_arguments, reason = "the settler's parts are borrowed apart")]
    fn decide(
        &mut self,
        queue: Queue,
        ticket: u64,
        is_due: bool,
        table: &Table,
        now_ns: u64,
        notes: &mut Notes,
        each: &mut impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) -> bool {
        let hold = self.queue(queue);
        let Some((waiting, packet)) = hold.get(ticket) else { return true };
        let waiting = *waiting;
        let Waiting { key, number, candidate, .. } = waiting;
        let known = ask(table, key, number, candidate, packet.timestamp_ns);
        let state = self.flows.state(waiting.flow, now_ns);
        let found = self.found(&waiting, known, state, now_ns);
        if found.is_none() && !is_due && now_ns < waiting.deadline_ns {
            return false;
        }
        let Some((_, packet)) = self.queue(queue).get(ticket) else { return true };
        let verdict = found.unwrap_or_else(|| {
            let verdict = observe(table, key, number, &packet, notes);
            notes.untwinned += u64::from(verdict == Verdict::Report);
            verdict
        });
        each(&packet, &Headers::parse(packet.data), verdict);
        self.queue(queue).done(ticket);
        if found.is_none() {
            self.give_up(&waiting, state, now_ns);
        }
        true
    }

    /// What follows for its flow from a packet whose twin did not come.
    fn give_up(&mut self, waiting: &Waiting, state: State, now_ns: u64) {
        let learned = match (waiting.candidate, state) {
            (Candidate::Node { .. }, State::Translated | State::Native) => return,
            (Candidate::Node { translated }, _) if translated == BOTH => return,
            (Candidate::Node { .. }, _) => State::Native,
            (_, State::Asked) if is_request(waiting.candidate) => State::Unknown,
            // Its answers may be this node's own by now: of another backend, or who refuses for it.
            (_, State::Proven) if is_request(waiting.candidate) => State::Asked,
            _ => return,
        };
        self.flows.learn(waiting.flow, learned, now_ns);
    }

    /// Decides about the other packets of a flow that is the node's own, in their order.
    fn release(
        &mut self,
        mut ticket: u64,
        table: &Table,
        now_ns: u64,
        notes: &mut Notes,
        each: &mut impl FnMut(&Frame<'_>, &Headers, Verdict),
    ) {
        while let Some((later, flow)) = self.short.later(ticket)
            && self.flows.state(flow, now_ns) == State::Native
        {
            self.decide(Queue::Short, later, true, table, now_ns, notes, each);
            ticket = later;
        }
    }
}

fn is_request(candidate: Candidate) -> bool {
    matches!(
        candidate,
        Candidate::Service { answers: false } | Candidate::NodePort { answers: false, .. }
    )
}

/// Whether the packet, or its twin, was reported. If so, this is a copy of it and counted as such.
fn ask(table: &Table, key: Key, number: u16, candidate: Candidate, now_ns: u64) -> Known {
    // First by its own addresses: one of several points on the way of a packet without twin.
    if table.find_twin(key, Translated::default(), number, now_ns) {
        return Known::Copy;
    }
    match table.find_twin(key, candidate.ignored(), number, now_ns) {
        true => Known::Twin,
        false => Known::Nothing,
    }
}

/// The table's verdict on a packet by its own addresses.
#[inline]
pub(crate) fn observe(
    table: &Table,
    key: Key,
    number: u16,
    packet: &Frame<'_>,
    notes: &mut Notes,
) -> Verdict {
    match table.observe(key, number, packet.timestamp_ns) {
        Outcome::Fresh { evicted } => {
            notes.evicted += u64::from(evicted);
            Verdict::Report
        }
        Outcome::Duplicate => Verdict::Drop(DropReason::Duplicate),
    }
}
