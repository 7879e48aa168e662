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
use crate::stats::histogram::WorkerHistograms;
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
    pub(super) histograms: &'a mut WorkerHistograms,
    now_ns: u64,
    tally: Tally,
}

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
        Self { outlets, direct, sharings, flows, histograms, now_ns, tally: Tally::default() }
    }

    /// A packet that just came.
    #[inline]
    pub(super) fn seen(&mut self, packet: &Frame<'_>, headers: &Headers, verdict: Verdict) {
        self.tally.received += 1;
        self.tally.bytes += u64::from(packet.wire_len);
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
    pub(super) fn publish(self, stats: &WorkerStats) {
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
