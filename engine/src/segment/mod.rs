//! Cuts a super-frame into the frames that the wire carries.
//!
//! ```text
//! | link | IP | TCP seq=s | payload of n * gso_size bytes, or a little less |
//!   --plan: where is what--> n times | link | IP id+i len | TCP seq=s+i*gso_size | gso_size bytes |
//!   no plan --> clip: one frame, cut to the largest that the wire can have carried
//! ```
//!
//! As the kernel and the hardware cut: the IP identification counts up, CWR stays on the first
//! segment only, PSH and FIN on the last only, lengths and checksums are each segment's own. UDP
//! super-frames (`UDP_L4`) become datagrams of `gso_size` bytes of payload. What is in a tunnel is cut
//! inside, and the headers around it follow. The jumbo header of BIG TCP, which no wire has seen,
//! is taken out. Each segment is written into one buffer that is used again for the next; nothing
//! is allocated per frame.
//!
//! The kernel says the same of two kinds of super-frames that it cuts differently, and here the commoner one is
//! assumed: (1) `SKB_GSO_TCP_FIXEDID`, which GRO makes of packets that all had one identification
//! (and DF, so that it means nothing, RFC 6864): its segments here count up; (2) `SKB_GSO_TCP_ACCECN`, whose
//! segments all keep CWR: known here only by the AE bit beside it.
//!
//! What was captured in part (BIG TCP in a small ring, a sensor's snaplen) is cut as far as the
//! headers say; the segments whose bytes are not there are as short as what is. What cannot be cut (a
//! kind that is not known here, headers that contradict themselves) stays whole; the caller counts it.

mod fix;
mod plan;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use crate::frame::{Frame, Offload};
use crate::wire::Headers;

use self::plan::Plan;

/// What became of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All segments were handed out.
    Whole,
    /// All segments were handed out, the bytes of some are missing.
    Truncated,
    /// Nothing was handed out.
    Impossible,
}

/// See the module. One per worker.
#[derive(Debug, Default)]
pub struct Cutter {
    segment: Vec<u8>,
}

impl Cutter {
    /// Hands each segment of a super-frame to `each`.
    pub fn cut(
        &mut self,
        frame: &Frame<'_>,
        headers: &Headers,
        mut each: impl FnMut(&Frame<'_>, &Headers),
    ) -> Cut {
        let Some(plan) = Plan::of(frame, headers) else { return Cut::Impossible };
        let size = usize::from(frame.offload.gso_size);
        let captured = frame.data.get(plan.payload..).unwrap_or_default();
        let captured = &captured[..captured.len().min(plan.payload_len)];
        let header_len = plan.inner.payload;
        // What the frame's own headers tell, for the segment's.
        let removed = plan.payload - header_len;
        let headers =
            Headers { l4: headers.l4 - removed, payload: headers.payload - removed, ..*headers };
        for (at, offset) in (0..plan.payload_len).step_by(size).enumerate() {
            let len = size.min(plan.payload_len - offset);
            let from = offset.min(captured.len());
            let chunk = &captured[from..captured.len().min(offset + len)];
            plan.start(frame.data, &mut self.segment);
            self.segment.extend_from_slice(chunk);
            let is_last = offset + len == plan.payload_len;
            plan.fix(&mut self.segment, fix::Place { at, offset, len, is_last });
            let wire_len = u32::try_from(header_len + len).expect("a segment has 64 KiB at most");
            let segment =
                Frame { data: &self.segment, wire_len, offload: Offload::default(), ..*frame };
            each(&segment, &Headers { end: self.segment.len(), ..headers });
        }
        if captured.len() == plan.payload_len { Cut::Whole } else { Cut::Truncated }
    }
}

/// A super-frame that cannot be cut, as the largest frame of it that a wire can have carried:
/// headers and `gso_size` bytes; where the headers are not known, so much of the packet, but no more than
/// `mtu` bytes of it. `wire_len` says what is missing.
#[must_use]
pub fn clip<'a>(frame: &Frame<'a>, headers: &Headers, mtu: Option<u32>) -> Frame<'a> {
    let size = usize::from(frame.offload.gso_size);
    let most = mtu.map_or(usize::MAX, |mtu| usize::try_from(mtu).unwrap_or(usize::MAX));
    let most = headers.l3.saturating_add(most);
    let end = match headers.has_transport() {
        true => headers.payload + size,
        false => headers.l3 + size,
    };
    let data = &frame.data[..end.min(most).min(frame.data.len())];
    // A checksum that covers more than what is left cannot be made.
    Frame { data, offload: Offload::default(), ..*frame }
}
