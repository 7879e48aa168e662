//! What a worker does with a packet and its verdict: count it, and offer it to whom it is for.
//!
//! ```text
//! seen(packet, Report | Drop | Hold) --> count; captures of one interface; if Report: all others
//! settled(packet, Report | Drop) ------> count;                            if Report: all others
//! ```

use super::{Outlet, Sharing, Wants};
use crate::frame::Frame;
use crate::pipeline::Verdict;
use crate::session::balance::slot;
use crate::session::flow::Flows;
use crate::stats::histogram::{Stage, WorkerHistograms};
use crate::stats::{DropReason, WorkerStats};
use crate::wire::Headers;

/// Counts of one batch.
#[derive(Default)]
struct Tally {
    received: u64,
    bytes: u64,
    admitted: u64,
    dropped: [u64; DropReason::ALL.len()],
}

/// One batch's packets; see the module.
pub(super) struct Delivery<'a> {
    outlets: &'a mut [Outlet],
    /// How many of `outlets` get more than a share.
    direct: usize,
    sharings: &'a [Sharing],
    flows: &'a mut Flows,
    histograms: &'a mut WorkerHistograms,
    now_ns: u64,
    /// When the batch was taken, on the clock of the frames' stamps; 0 if it was not just taken.
    wall_ns: u64,
    /// How long packets were in the ring, and how many of them so long, not yet recorded.
    in_ring: (u64, u64),
    tally: Tally,
}

/// Times in the ring that differ by less, in parts of themselves, are one: the histogram's resolution
/// is coarser.
const RING_BITS: u32 = 8;

impl<'a> Delivery<'a> {
    /// Begins a batch.
    pub(super) fn new(
        outlets: &'a mut [Outlet],
        direct: usize,
        sharings: &'a [Sharing],
        flows: &'a mut Flows,
        histograms: &'a mut WorkerHistograms,
        now_ns: u64,
    ) -> Self {
        for outlet in outlets.iter_mut() {
            outlet.packer.begin_batch();
        }
        let (wall_ns, in_ring, tally) = (0, (0, 0), Tally::default());
        Self { outlets, direct, sharings, flows, histograms, now_ns, wall_ns, in_ring, tally }
    }

    /// The batch was taken from the ring at this time: its packets' times there are recorded.
    pub(super) fn taken_at(self, wall_ns: u64) -> Self {
        Self { wall_ns, ..self }
    }

    /// One call for packets that follow each other closely: they were in the ring for as long.
    #[inline]
    fn time_in_ring(&mut self, packet: &Frame<'_>) {
        let ns = self.wall_ns.saturating_sub(packet.timestamp_ns);
        let kept = (u64::BITS - ns.leading_zeros()).saturating_sub(RING_BITS);
        let ns = ns >> kept << kept;
        if ns == self.in_ring.0 {
            self.in_ring.1 += 1;
        } else {
            self.record_in_ring();
            self.in_ring = (ns, 1);
        }
    }

    fn record_in_ring(&mut self) {
        let (ns, count) = std::mem::take(&mut self.in_ring);
        if count != 0 {
            self.histograms.record_n(Stage::Ring, ns, count);
        }
    }

    /// A packet that just came.
    #[inline]
    pub(super) fn seen(&mut self, packet: &Frame<'_>, headers: &Headers, verdict: Verdict) {
        self.tally.received += 1;
        self.tally.bytes += u64::from(packet.wire_len);
        self.time_in_ring(packet);
        for Outlet { packer, wants } in &mut self.outlets[..self.direct] {
            // It does not wait for a verdict that it does not ask for.
            if *wants == Wants::Interface(Some(packet.point.ifindex)) && is_whole_capture(verdict) {
                packer.offer(packet, self.now_ns, self.histograms);
            }
        }
        if !self.sharings.is_empty() {
            self.flows.note(headers);
        }
        self.settled(packet, headers, verdict);
    }

    /// A packet that is decided; nothing happens to one that is not.
    #[inline]
    pub(super) fn settled(&mut self, packet: &Frame<'_>, headers: &Headers, verdict: Verdict) {
        match verdict {
            Verdict::Hold => return,
            Verdict::Drop(reason) => return self.tally.dropped[reason as usize] += 1,
            Verdict::Report if self.outlets.is_empty() => {
                return self.tally.dropped[DropReason::NoSession as usize] += 1;
            }
            Verdict::Report => self.tally.admitted += 1,
        }
        for Outlet { packer, wants } in &mut self.outlets[..self.direct] {
            if *wants == Wants::All {
                packer.offer(packet, self.now_ns, self.histograms);
            }
        }
        if self.sharings.is_empty() {
            return;
        }
        let slot = slot(self.flows.of(packet.data, headers));
        for Sharing { group, places } in self.sharings {
            let outlet = &mut self.outlets[places[group.owner(slot)]];
            outlet.packer.offer(packet, self.now_ns, self.histograms);
        }
    }

    /// The end of the batch.
    pub(super) fn publish(mut self, stats: &WorkerStats) {
        self.record_in_ring();
        for outlet in self.outlets {
            outlet.packer.publish();
        }
        let Tally { received, bytes, admitted, dropped } = self.tally;
        stats.received.add(received);
        stats.received_bytes.add(bytes);
        stats.admitted.add(admitted);
        for (counter, count) in stats.dropped.iter().zip(dropped) {
            counter.add(count);
        }
        stats.fragments_stray.add(std::mem::take(&mut self.flows.strays));
    }
}

/// A capture of a single interface has no election: only what the tap must never send is left out,
/// and what the node's filter rejects.
fn is_whole_capture(verdict: Verdict) -> bool {
    use DropReason::{Interface, NodeFilter, OwnTraffic};
    !matches!(verdict, Verdict::Drop(OwnTraffic | Interface | NodeFilter))
}
