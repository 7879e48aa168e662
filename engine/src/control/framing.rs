//! Cuts the bytes of a control connection into messages, whatever lengths a peer announces.
//!
//! ```text
//! bytes, in any pieces --> header (8) --> plen within the type's limit: payload kept
//!                                     |-> beyond it: skipped, at most the budget
//!                                     `-> beyond that, or version not 0: the stream ends here
//! ```
//!
//! Knows where a message ends and nothing about what it asks: that is `protocol`'s. Memory grows
//! with what arrived, never with what was announced.

use crate::rpcap::{Filter, HEADER_BYTES, Header, MessageType, StartCapture};

/// Payload bytes that are thrown away in a row, without an understood message between, before the
/// peer is given up.
pub(super) const DISCARD_BUDGET: u32 = 1 << 20;
/// What libpcap's client leaves out of `plen` when the application never set a filter.
const UNCOUNTED_BYTES: usize = Filter::INSTRUCTION_BYTES;
/// Largest AUTH: two strings of 65,535 bytes.
const MAX_AUTH: usize = 8 + 2 * 65_535;
/// Longest name in OPEN.
const MAX_OPEN: usize = 1024;
/// The largest filter, the bytes before it and the uncounted instruction included.
const MAX_FILTER: usize =
    20 + Filter::INSTRUCTION_BYTES * Filter::MAX_INSTRUCTIONS as usize + UNCOUNTED_BYTES;
/// SETSAMPLING; some bytes more are read and ignored, as after every payload.
const MAX_SAMPLING: usize = 64;
/// Longest error text that is kept for the log.
const MAX_ERROR_TEXT: usize = 256;

/// A message, as far as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Body,
}

/// What became of a message's payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Here it is; empty for types that have none, whatever came with them.
    Whole(Vec<u8>),
    /// Longer than its type allows, or of an unknown type: skipped. The stream is in step.
    Skipped,
    /// Not read: the version is unknown or the budget spent. Nothing can follow.
    Unreadable,
}

/// What to do with a payload.
enum Plan {
    /// Keep this many bytes, skip the rest.
    Keep(usize),
    /// Skip all of it, and say so.
    Skip,
}

impl Plan {
    fn of(header: &Header) -> Self {
        let announced = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
        let up_to = |limit| if announced <= limit { Self::Keep(announced) } else { Self::Skip };
        match header.message_type() {
            Some(MessageType::Auth) => up_to(MAX_AUTH),
            Some(MessageType::Open) => up_to(MAX_OPEN),
            Some(MessageType::StartCapture | MessageType::UpdateFilter) => up_to(MAX_FILTER),
            Some(MessageType::SetSampling) => up_to(MAX_SAMPLING),
            Some(MessageType::Error) => Self::Keep(announced.min(MAX_ERROR_TEXT)),
            Some(
                MessageType::FindAllIf
                | MessageType::Stats
                | MessageType::EndCapture
                | MessageType::Close,
            ) => Self::Keep(0),
            _ => Self::Skip,
        }
    }
}

/// The message that is being read.
struct Partial {
    header: Header,
    /// Bytes of payload to keep.
    keep: usize,
    /// Bytes of payload still to be skipped, after those to keep.
    skip: u32,
    is_skipped: bool,
    payload: Vec<u8>,
}

/// Bytes in, messages out.
pub(super) struct Decoder {
    header: [u8; HEADER_BYTES],
    header_len: usize,
    partial: Option<Partial>,
    budget: u32,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { header: [0; HEADER_BYTES], header_len: 0, partial: None, budget: DISCARD_BUDGET }
    }

    /// Takes bytes off the front of `bytes` until a message is complete; `None` when more are
    /// needed. Not to be called again after [`Body::Unreadable`].
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Message> {
        if self.partial.is_none() {
            let taken = take(bytes, HEADER_BYTES - self.header_len);
            self.header[self.header_len..][..taken.len()].copy_from_slice(taken);
            self.header_len += taken.len();
            if self.header_len < HEADER_BYTES {
                return None;
            }
            self.header_len = 0;
            match self.begin(Header::read(self.header)) {
                Ok(partial) => self.partial = Some(partial),
                Err(header) => return Some(Message { header, body: Body::Unreadable }),
            }
        }
        let partial = self.partial.as_mut()?;
        partial.fill(bytes);
        if !partial.is_complete() {
            return None;
        }
        let Partial { header, payload, is_skipped, .. } = self.partial.take()?;
        let body = if is_skipped {
            Body::Skipped
        } else {
            self.budget = DISCARD_BUDGET;
            Body::Whole(payload)
        };
        Some(Message { header, body })
    }

    /// Memory held for the message that is being read.
    #[cfg(any(test, fuzzing))]
    pub(super) fn kept_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.payload.capacity())
    }

    /// Plans how to read the payload, or gives the header back if it cannot be read.
    fn begin(&mut self, header: Header) -> Result<Partial, Header> {
        if header.version != 0 {
            return Err(header);
        }
        let (keep, is_skipped) = match Plan::of(&header) {
            Plan::Keep(keep) => (keep, false),
            Plan::Skip => (0, true),
        };
        let kept = u32::try_from(keep).unwrap_or(u32::MAX);
        let skip = header.payload_len.saturating_sub(kept);
        self.budget = self.budget.checked_sub(skip).ok_or(header)?;
        Ok(Partial { header, keep, skip, is_skipped, payload: Vec::new() })
    }
}

impl Partial {
    fn fill(&mut self, bytes: &mut &[u8]) {
        self.payload.extend_from_slice(take(bytes, self.keep - self.payload.len()));
        if self.lacks_an_instruction() {
            self.keep += UNCOUNTED_BYTES;
            self.payload.extend_from_slice(take(bytes, UNCOUNTED_BYTES));
        }
        if self.payload.len() == self.keep {
            let most = usize::try_from(self.skip).unwrap_or(usize::MAX);
            let skipped = take(bytes, most).len();
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
        }
    }

    fn is_complete(&self) -> bool {
        self.payload.len() == self.keep && self.skip == 0
    }

    /// True if the filter is one instruction that `plen` does not cover: libpcap's client sends
    /// this when no filter was ever set, and the instruction does follow.
    fn lacks_an_instruction(&self) -> bool {
        let filter_at = match self.header.message_type() {
            Some(MessageType::StartCapture) => StartCapture::FIXED_BYTES,
            Some(MessageType::UpdateFilter) => 0,
            _ => return false,
        };
        let end = filter_at + Filter::FIXED_BYTES;
        self.keep == end && self.payload.len() == end && self.payload[end - 4..] == [0, 0, 0, 1]
    }
}

/// Splits at most `most` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (head, tail) = bytes.split_at(most.min(bytes.len()));
    *bytes = tail;
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        [&Header::new(kind, 0, len).to_bytes()[..], payload].concat()
    }

    fn decode_all(mut bytes: &[u8]) -> Vec<Message> {
        let mut decoder = Decoder::new();
        std::iter::from_fn(|| decoder.next(&mut bytes)).collect()
    }

    #[test]
    fn a_message_survives_delivery_byte_by_byte() {
        let bytes =
            [message(MessageType::Open, b"eth0"), message(MessageType::Stats, b"")].concat();
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for byte in bytes.chunks(1) {
            let mut piece = byte;
            seen.extend(decoder.next(&mut piece));
            assert!(piece.is_empty());
        }
        assert_eq!(seen, decode_all(&bytes));
        assert_eq!(seen[0].body, Body::Whole(b"eth0".to_vec()));
        assert_eq!(seen[1].body, Body::Whole(Vec::new()));
    }

    #[test]
    fn what_follows_a_skipped_payload_is_still_read() {
        let long_name = vec![b'x'; MAX_OPEN + 1];
        let mut unknown = message(MessageType::Open, &[7; 5000]);
        unknown[1] = 77;
        let bytes =
            [message(MessageType::Open, &long_name), unknown, message(MessageType::Close, b"")];
        let seen = decode_all(&bytes.concat());
        let bodies: Vec<_> = seen.iter().map(|message| &message.body).collect();
        assert_eq!(bodies, [&Body::Skipped, &Body::Skipped, &Body::Whole(Vec::new())]);
    }

    #[test]
    fn the_longest_legal_payloads_are_kept() {
        for (kind, limit) in [
            (MessageType::Auth, 131_078),
            (MessageType::Open, 1024),
            (MessageType::StartCapture, 20 + 8 * 4096 + 8),
            (MessageType::UpdateFilter, 20 + 8 * 4096 + 8),
        ] {
            let whole = decode_all(&message(kind, &vec![0; limit]));
            assert!(matches!(&whole[0].body, Body::Whole(payload) if payload.len() == limit));
            let over = decode_all(&message(kind, &vec![0; limit + 1]));
            assert_eq!(over[0].body, Body::Skipped, "{kind:?}");
        }
    }

    #[test]
    fn an_announced_length_is_not_allocated() {
        let mut decoder = Decoder::new();
        let header = Header::new(MessageType::Auth, 0, 131_078).to_bytes();
        assert_eq!(decoder.next(&mut &header[..]), None);
        assert!(decoder.kept_bytes() < 1024);
    }

    #[test]
    fn the_budget_ends_the_stream_and_an_understood_message_renews_it() {
        let huge = Header::new(MessageType::Packet, 0, DISCARD_BUDGET + 1).to_bytes();
        assert_eq!(decode_all(&huge)[0].body, Body::Unreadable);

        let half = message(MessageType::Packet, &vec![0; DISCARD_BUDGET as usize / 2 + 1]);
        let stats = message(MessageType::Stats, b"");
        let twice = decode_all(&[&half[..], &half].concat());
        assert_eq!(twice[1].body, Body::Unreadable);
        let between = decode_all(&[&half[..], &stats, &half].concat());
        assert_eq!(between[2].body, Body::Skipped);
    }

    #[test]
    fn the_instruction_that_plen_forgets_is_read() {
        let ret = [0, 6, 0, 0, 0, 4, 0, 0];
        let mut start = vec![0; 12];
        start.extend([0, 1, 0, 0, 0, 0, 0, 1]);
        for (kind, payload) in
            [(MessageType::StartCapture, &start[..]), (MessageType::UpdateFilter, &start[12..])]
        {
            let bytes = [&message(kind, payload)[..], &ret, &message(MessageType::Stats, b"")];
            let seen = decode_all(&bytes.concat());
            assert_eq!(seen.len(), 2, "{kind:?}");
            assert_eq!(seen[0].body, Body::Whole([payload, &ret].concat()));
        }
    }

    #[test]
    fn another_version_is_not_read_further() {
        let mut bytes = message(MessageType::Stats, b"");
        bytes[0] = 3;
        assert_eq!(decode_all(&bytes)[0].body, Body::Unreadable);
    }
}
