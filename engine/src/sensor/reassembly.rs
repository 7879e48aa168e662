//! The stream form: packets out of datagrams that were lost, swapped or doubled on the way.
//!
//! ```text
//!            in order ---------------------------------> unpack --> Sink::packet
//! datagram --early-----> held (WINDOW, HOLD) --hole filled, or given up--^
//!            old -------> counted, dropped
//! ```
//!
//! A hole is given up when it was waited for long enough or when what came after it no longer fits
//! the window; only the packets that touch a lost datagram are then lost. Pure: time is an argument.

use std::time::{Duration, Instant};

use super::message::{Fault, Sink, check};
use crate::rpcap::{
    PACKET_HEADER_BYTES, PacketHeader, STREAM_HEADER_BYTES, STREAM_NO_PACKET, StreamHeader,
};

/// Datagrams after a hole that are held; 16 MiB at the very most.
const WINDOW: u32 = 256;
/// How long a hole is waited for, outside tests. Networks that reorder do so within milliseconds.
pub(super) const HOLD: Duration = Duration::from_millis(50);

/// What befell the datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamCounts {
    /// Holes given up.
    pub(super) gaps: u64,
    /// Datagrams in those holes.
    pub(super) lost_datagrams: u64,
    /// Datagrams that had come before.
    pub(super) duplicates: u64,
    /// Datagrams that came after a later one, in time.
    pub(super) reordered: u64,
    /// Datagrams that came after they had been given up.
    pub(super) late: u64,
    /// Packets begun and not finished.
    pub(super) unfinished: u64,
    /// How often the numbers began anew in the middle.
    pub(super) restarts: u64,
}

struct Held {
    arrived: Instant,
    bytes: Vec<u8>,
}

/// The datagrams of one STARTCAP.
pub(super) struct Reassembler {
    snaplen: u32,
    /// How long a hole is waited for.
    hold: Duration,
    /// Number of the datagram that is due.
    next: u32,
    /// Numbers below this have been seen or passed over.
    beyond_newest: u32,
    /// Early datagrams, at `number % WINDOW`.
    held: Vec<Option<Held>>,
    held_count: usize,
    oldest_held: Option<Instant>,
    /// Whether a number behind `next` came, at `number % WINDOW`.
    came: Vec<bool>,
    old_in_a_row: u32,
    spare: Vec<Vec<u8>>,
    unpacker: Unpacker,
    counts: StreamCounts,
}

fn slot(number: u32) -> usize {
    (number % WINDOW) as usize
}

impl Reassembler {
    pub(super) fn new(snaplen: u32, hold: Duration) -> Self {
        Self {
            snaplen,
            hold,
            next: 0,
            beyond_newest: 0,
            held: (0..WINDOW).map(|_| None).collect(),
            held_count: 0,
            oldest_held: None,
            came: vec![true; WINDOW as usize],
            old_in_a_row: 0,
            spare: Vec::new(),
            unpacker: Unpacker::new(),
            counts: StreamCounts::default(),
        }
    }

    pub(super) fn counts(&self) -> StreamCounts {
        StreamCounts { unfinished: self.unpacker.unfinished, ..self.counts }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.oldest_held.map(|arrived| arrived + self.hold)
    }

    /// Takes a datagram of type 110.
    pub(super) fn push(&mut self, now: Instant, datagram: &[u8], sink: &mut impl Sink) {
        let Some(header) = datagram.first_chunk::<STREAM_HEADER_BYTES>() else {
            return sink.fault(Fault::Short);
        };
        if header[0] != 0 {
            return sink.fault(Fault::Version);
        }
        let number = StreamHeader::read(*header).sequence;
        if number.wrapping_sub(self.next).cast_signed() < 0 && !self.is_restart(number) {
            return;
        }
        self.old_in_a_row = 0;
        while number.wrapping_sub(self.next) >= WINDOW {
            self.give_up_hole(number, sink);
        }
        if number != self.next {
            return self.hold(now, number, datagram);
        }
        self.note_order(number);
        self.unpacker.datagram(datagram, self.snaplen, sink);
        self.came[slot(number)] = true;
        self.next = number.wrapping_add(1);
        if self.held_count > 0 {
            self.deliver_held(sink);
        }
    }

    /// Gives up what was waited for long enough.
    pub(super) fn tick(&mut self, now: Instant, sink: &mut impl Sink) {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            self.give_up_hole(self.next, sink);
        }
    }

    /// Nothing more will come: gives up every hole.
    pub(super) fn finish(&mut self, sink: &mut impl Sink) {
        while self.held_count > 0 {
            self.give_up_hole(self.next, sink);
        }
        self.unpacker.abandon();
    }

    /// Counts a datagram from before `next`. True if so many came in a row from before the window
    /// that the numbers must have begun anew (or leapt by mistake): `next` is then `number`.
    fn is_restart(&mut self, number: u32) -> bool {
        let behind = self.next.wrapping_sub(number);
        if behind <= WINDOW {
            self.old_in_a_row = 0;
            if std::mem::replace(&mut self.came[slot(number)], true) {
                self.counts.duplicates += 1;
            } else {
                self.counts.late += 1;
            }
            return false;
        }
        self.counts.late += 1;
        self.old_in_a_row += 1;
        if self.old_in_a_row < WINDOW {
            return false;
        }
        self.counts.late -= 1;
        self.counts.restarts += 1;
        for index in 0..self.held.len() {
            self.take_held(index);
        }
        self.oldest_held = None;
        self.came.fill(true);
        self.next = number;
        self.beyond_newest = number;
        self.unpacker.out_of_step();
        true
    }

    fn note_order(&mut self, number: u32) {
        if number.wrapping_sub(self.beyond_newest).cast_signed() < 0 {
            self.counts.reordered += 1;
        } else {
            self.beyond_newest = number.wrapping_add(1);
        }
    }

    fn hold(&mut self, now: Instant, number: u32, datagram: &[u8]) {
        if self.held[slot(number)].is_some() {
            self.counts.duplicates += 1;
            return;
        }
        self.note_order(number);
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(datagram);
        self.held[slot(number)] = Some(Held { arrived: now, bytes });
        self.held_count += 1;
        self.oldest_held = Some(self.oldest_held.map_or(now, |oldest| oldest.min(now)));
    }

    fn take_held(&mut self, index: usize) -> Option<Held> {
        let held = self.held[index].take()?;
        self.held_count -= 1;
        Some(held)
    }

    /// Unpacks held datagrams up to the next hole.
    fn deliver_held(&mut self, sink: &mut impl Sink) {
        while let Some(mut held) = self.take_held(slot(self.next)) {
            self.unpacker.datagram(&held.bytes, self.snaplen, sink);
            self.came[slot(self.next)] = true;
            self.next = self.next.wrapping_add(1);
            held.bytes.clear();
            // Ordinary datagrams' buffers are kept; giants' are not worth their memory.
            if held.bytes.capacity() <= 16_384 {
                self.spare.push(held.bytes);
            }
        }
        self.oldest_held = self.held.iter().flatten().map(|held| held.arrived).min();
    }

    /// Passes over the hole at `next`, up to the first held datagram, or to `wanted` if none is
    /// held.
    fn give_up_hole(&mut self, wanted: u32, sink: &mut impl Sink) {
        let first_held = (1..WINDOW)
            .map(|ahead| self.next.wrapping_add(ahead))
            .find(|number| self.held[slot(*number)].is_some());
        let end = first_held.unwrap_or(wanted);
        let lost = end.wrapping_sub(self.next);
        self.counts.gaps += 1;
        self.counts.lost_datagrams = self.counts.lost_datagrams.saturating_add(lost.into());
        for ahead in 0..lost.min(WINDOW) {
            self.came[slot(end.wrapping_sub(1 + ahead))] = false;
        }
        self.unpacker.out_of_step();
        self.next = end;
        self.deliver_held(sink);
    }
}

/// Cuts datagrams, in order, into packets.
struct Unpacker {
    /// The packet that the next datagram continues; its bytes so far are in `begun_bytes`.
    begun: Option<PacketHeader>,
    begun_bytes: Vec<u8>,
    /// False after a gap: what stands before the first header belongs to a packet we cannot have.
    in_step: bool,
    unfinished: u64,
}

impl Unpacker {
    fn new() -> Self {
        Self { begun: None, begun_bytes: Vec::new(), in_step: true, unfinished: 0 }
    }

    fn abandon(&mut self) {
        if self.begun.take().is_some() {
            self.unfinished += 1;
        }
        self.begun_bytes.clear();
    }

    fn out_of_step(&mut self) {
        self.abandon();
        self.in_step = false;
    }

    fn datagram(&mut self, bytes: &[u8], snaplen: u32, sink: &mut impl Sink) {
        if let Err(fault) = self.try_datagram(bytes, snaplen, sink) {
            self.out_of_step();
            sink.fault(fault);
        }
    }

    fn try_datagram(
        &mut self,
        bytes: &[u8],
        snaplen: u32,
        sink: &mut impl Sink,
    ) -> Result<(), Fault> {
        let header = bytes.first_chunk::<STREAM_HEADER_BYTES>().ok_or(Fault::Short)?;
        let first = StreamHeader::read(*header).first_header;
        let first = (first != STREAM_NO_PACKET).then_some(usize::from(first));
        let end = first.unwrap_or(bytes.len());
        let continuation = bytes.get(STREAM_HEADER_BYTES..end).ok_or(Fault::FirstHeader)?;
        if first.is_some_and(|first| first + PACKET_HEADER_BYTES > bytes.len()) {
            return Err(Fault::FirstHeader);
        }
        if self.in_step
            && let Err(fault) = self.resume(continuation, first.is_some(), sink)
        {
            // The headers that start in this datagram can be used all the same.
            self.abandon();
            self.in_step = false;
            sink.fault(fault);
        }
        let Some(first) = first else { return Ok(()) };
        self.in_step = true;
        let mut rest = &bytes[first..];
        while !rest.is_empty() {
            let (header, tail) = rest.split_first_chunk().ok_or(Fault::SplitHeader)?;
            let header = PacketHeader::read(header);
            let caplen = check(&header, snaplen)?;
            let Some((data, tail)) = tail.split_at_checked(caplen) else {
                self.begun = Some(header);
                self.begun_bytes.extend_from_slice(tail);
                return Ok(());
            };
            sink.packet(header, data);
            rest = tail;
        }
        Ok(())
    }

    /// Adds to the packet begun before; `is_all` if another starts after these bytes.
    fn resume(&mut self, bytes: &[u8], is_all: bool, sink: &mut impl Sink) -> Result<(), Fault> {
        let Some(header) = self.begun else {
            return if bytes.is_empty() { Ok(()) } else { Err(Fault::Continuation) };
        };
        let missing = header.caplen as usize - self.begun_bytes.len();
        if bytes.len() > missing || (is_all && bytes.len() < missing) {
            return Err(Fault::Continuation);
        }
        self.begun_bytes.extend_from_slice(bytes);
        if bytes.len() == missing {
            sink.packet(header, &self.begun_bytes);
            self.begun = None;
            self.begun_bytes.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
