//! Packets that wait for their twins: a queue of copies in a fixed piece of memory.
//!
//! ```text
//! records  | deadline, key, flow, place | ... |          a ring, first in, first out
//! bytes    |      second | third |  free  | first |       a ring; each packet in one piece
//! ```
//!
//! What is kept is the frame as the source gave it (bytes, tag, checksum left to the hardware,
//! stamp, point), so that its report is the same as an immediate one. Memory is touched only as
//! far as it is needed: an empty queue begins again at the front.

use crate::classify::Candidate;
use crate::dedup::Key;
use crate::frame::{Frame, Offload, Point, VlanTag};

/// What is known of a packet that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// When it is decided at the latest, on the clock of whoever asks.
    pub(super) deadline_ns: u64,
    pub(super) key: Key,
    /// The point's number in the table.
    pub(super) number: u16,
    pub(super) candidate: Candidate,
    /// Its name in the memory of flows.
    pub(super) flow: u64,
    /// An ICMP error, which the node may have made itself.
    pub(super) is_error: bool,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    waiting: Waiting,
    wire_len: u32,
    timestamp_ns: u64,
    point: Point,
    vlan: Option<VlanTag>,
    offload: Offload,
    /// Where its bytes are.
    at: usize,
    len: usize,
    /// The ticket of the flow's next packet here.
    next: u64,
    /// Decided before its turn.
    is_done: bool,
}

/// See the module. A packet is named by a ticket, which counts up from 1.
#[derive(Debug)]
pub(super) struct Hold {
    bytes: Box<[u8]>,
    /// Grows up to `most` and is then used in a ring.
    records: Vec<Record>,
    most: usize,
    /// Tickets: the oldest that is here, and the next to be given.
    first: u64,
    next: u64,
    /// The ticket that has, or had, the first place of `records`.
    base: u64,
    /// End of the youngest packet's bytes.
    tail: usize,
    /// Packets that are not decided.
    open: u64,
}

/// Memory is shared out for packets of this size; with smaller ones, records are used up first.
const TYPICAL: usize = 256;

impl Hold {
    /// In at most so much memory.
    pub(super) fn new(memory: usize) -> Self {
        let most = (memory / (TYPICAL + size_of::<Record>())).max(4);
        let bytes = memory.saturating_sub(most * size_of::<Record>());
        Self {
            bytes: vec![0; bytes].into(),
            records: Vec::with_capacity(most),
            most,
            first: 1,
            next: 1,
            base: 1,
            tail: 0,
            open: 0,
        }
    }

    /// Packets that wait.
    pub(super) fn open(&self) -> u64 {
        self.open
    }

    fn slot(&self, ticket: u64) -> usize {
        let since = ticket - self.base;
        usize::try_from(since % self.most as u64).expect("less than the number of records")
    }

    /// Copies a packet; its ticket, or `None` if there is no room.
    pub(super) fn push(&mut self, waiting: Waiting, packet: &Frame<'_>) -> Option<u64> {
        if self.oldest().is_none() {
            (self.base, self.tail) = (self.next, 0);
        }
        let len = packet.data.len();
        let waits = usize::try_from(self.next - self.first).ok()?;
        let at = self.room(len).filter(|_| waits < self.most)?;
        self.bytes[at..at + len].copy_from_slice(packet.data);
        let Frame { wire_len, timestamp_ns, point, vlan, offload, .. } = *packet;
        let record = Record {
            waiting,
            wire_len,
            timestamp_ns,
            point,
            vlan,
            offload,
            at,
            len,
            next: 0,
            is_done: false,
        };
        let slot = self.slot(self.next);
        match self.records.get_mut(slot) {
            Some(old) => *old = record,
            // Places are filled in order, within the capacity.
            None => self.records.push(record),
        }
        self.tail = at + len;
        self.open += 1;
        self.next += 1;
        Some(self.next - 1)
    }

    /// Where `len` bytes can be put behind the youngest packet's.
    fn room(&self, len: usize) -> Option<usize> {
        let (size, tail) = (self.bytes.len(), self.tail);
        if self.first == self.next {
            return (len <= size).then_some(0);
        }
        let head = self.records[self.slot(self.first)].at;
        // One byte stays free, so that a full ring does not look like an empty one.
        if tail > head {
            let ahead = (size - tail >= len).then_some(tail);
            return ahead.or((len < head).then_some(0));
        }
        (head - tail > len).then_some(tail)
    }

    /// The oldest packet that is not decided.
    pub(super) fn oldest(&mut self) -> Option<u64> {
        while self.first < self.next && self.records[self.slot(self.first)].is_done {
            self.first += 1;
        }
        (self.first < self.next).then_some(self.first)
    }

    /// Deadline of the oldest packet, which may be decided already since the last look.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        self.record(self.first).map(|record| record.waiting.deadline_ns)
    }

    /// A packet that waits, as it was pushed; `None` for a ticket of one that does not.
    pub(super) fn get(&self, ticket: u64) -> Option<(&Waiting, Frame<'_>)> {
        let record = self.record(ticket).filter(|record| !record.is_done)?;
        let &Record { wire_len, timestamp_ns, point, vlan, offload, at, len, .. } = record;
        let data = &self.bytes[at..at + len];
        Some((&record.waiting, Frame { data, wire_len, timestamp_ns, point, vlan, offload }))
    }

    fn record(&self, ticket: u64) -> Option<&Record> {
        (self.first..self.next).contains(&ticket).then(|| &self.records[self.slot(ticket)])
    }

    /// It is decided.
    pub(super) fn done(&mut self, ticket: u64) {
        if (self.first..self.next).contains(&ticket) {
            let slot = self.slot(ticket);
            let was_open = !std::mem::replace(&mut self.records[slot].is_done, true);
            self.open -= u64::from(was_open);
        }
    }

    /// `later` came next after `ticket`, if that is of the same flow and here.
    pub(super) fn link(&mut self, ticket: u64, later: u64) {
        let flow = self.record(later).map(|record| record.waiting.flow);
        if flow.is_some() && self.record(ticket).map(|record| record.waiting.flow) == flow {
            let slot = self.slot(ticket);
            self.records[slot].next = later;
        }
    }

    /// The flow's next packet after this one, which may be decided, and the flow.
    pub(super) fn later(&self, ticket: u64) -> Option<(u64, u64)> {
        let record = self.record(ticket)?;
        (record.next != 0).then_some((record.next, record.waiting.flow))
    }
}
