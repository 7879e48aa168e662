//! A run: finished datagrams, back to back in one buffer, that go out together.
//!
//! ```text
//! bytes:     | datagram 0 (full) | datagram 1 (full) | ... | datagram n (partial) |
//! ends:                          ^                   ^                            ^
//! frames:    (place of the packet number, first datagram, last datagram, caplen) for each
//! ```
//!
//! A run starts and ends at a packet's edge, so whole runs of different workers can follow one
//! another in any order. Datagram and packet numbers are left empty here and stamped when the run
//! is sent, because only then is its place in the session's sequence known.
//!
//! Both encodings are written here. Stream: 8 bytes, then packets one after the other; a frame
//! goes on in the next datagram, a packet header never does: a datagram is finished as soon as
//! it holds `datagram_bytes - 28`, as the reference does. Plain: a message header, then one packet;
//! over TCP, messages follow one another without datagrams.
//!
//! When the path turns out to take less than a run was packed for, what was not sent is cut anew
//! ([`Run::recut`]): the stream goes on where it was, in smaller datagrams.

use crate::frame::WireFrame;
use crate::rpcap::{
    HEADER_BYTES, Header, MAX_UDP_PAYLOAD, MessageType, PACKET_HEADER_BYTES, PacketHeader,
    STREAM_HEADER_BYTES, STREAM_NO_PACKET, StreamHeader,
};

/// Bytes of a run's buffer: one frame of the largest size, and a batch of small ones.
pub(super) const RUN_BYTES: usize = 160 * 1024;
/// A run with this many bytes is sent, partial datagram and all: what one GSO send may hold.
const FULL_BYTES: usize = 60 * 1024;
/// Datagrams of a run, at most, apart from those of its last frame.
const FULL_DATAGRAMS: usize = 64;
/// The same for a run that others wait before: small plain datagrams are many. One more frame of
/// the largest size, in the smallest datagrams, still has its marks.
const MOST_DATAGRAMS: usize = 512;
/// The most bytes of a frame that are sent: an IP packet of 64 KiB with its link header. A larger
/// one is cut, its length on the wire kept.
pub(crate) const MAX_CAPLEN: usize = 65_535 + 14 + 8;
/// Smallest useful datagram: headers and something of a frame.
pub(crate) const MIN_DATAGRAM: usize = 128;

/// What a run is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// [`Encoding::Stream`](super::Encoding::Stream).
    Stream,
    /// [`Encoding::Plain`](super::Encoding::Plain).
    Plain,
    /// Messages as in the plain form, for TCP.
    Messages,
}

/// A frame's place in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameMark {
    /// Offset of the packet number in the buffer; 0 if it was sent with an earlier part of the
    /// frame, whose rest begins with the buffer's first datagram.
    pub number_at: usize,
    /// First and last datagram that carry a part of it.
    pub first: usize,
    /// See `first`.
    pub last: usize,
    /// Bytes of the frame.
    pub caplen: usize,
    /// Those of them that are in this buffer.
    pub here: usize,
}

/// See the module. Buffers are allocated once and recycled.
#[derive(Debug)]
pub(super) struct Run {
    pub bytes: Vec<u8>,
    /// End of each finished datagram.
    pub ends: Vec<usize>,
    pub frames: Vec<FrameMark>,
    /// When the first frame was offered, worker's clock, ns.
    pub opened_ns: u64,
    /// Frames that lost bytes because a datagram has no room for them.
    pub cut: u64,
    form: Form,
    datagram_bytes: usize,
    /// Start of the datagram being filled, if one is.
    open: Option<usize>,
}

impl Run {
    pub(super) fn new(form: Form) -> Self {
        Self {
            bytes: Vec::with_capacity(RUN_BYTES),
            ends: Vec::with_capacity(RUN_BYTES / MIN_DATAGRAM),
            frames: Vec::with_capacity(RUN_BYTES / PACKET_HEADER_BYTES),
            opened_ns: 0,
            cut: 0,
            form,
            datagram_bytes: MAX_UDP_PAYLOAD,
            open: None,
        }
    }

    /// Sets the most bytes of a datagram, for an empty run.
    pub(super) fn limit(&mut self, datagram_bytes: usize) {
        debug_assert!(self.is_empty(), "datagrams of one run are packed alike");
        self.datagram_bytes = datagram_bytes.max(MIN_DATAGRAM);
    }

    /// The most bytes of a datagram.
    pub(super) fn datagram_bytes(&self) -> usize {
        self.datagram_bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.frames.clear();
        self.cut = 0;
        self.open = None;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// True when it should be sent before another frame is added.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.ends.len() >= FULL_DATAGRAMS
    }

    /// True when it must be sent before another frame is added.
    pub(super) fn has_no_room(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.ends.len() >= MOST_DATAGRAMS
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: &WireFrame<'_>) {
        match self.form {
            Form::Stream => self.push_stream(frame),
            Form::Plain => {
                let room = self.datagram_bytes - HEADER_BYTES - PACKET_HEADER_BYTES;
                self.cut += u64::from(frame.caplen() > room);
                self.push_message(frame, frame.caplen().min(room));
                self.ends.push(self.bytes.len());
            }
            Form::Messages => self.push_message(frame, frame.caplen()),
        }
    }

    /// Finishes the datagram being filled.
    pub(super) fn finish(&mut self) {
        if self.open.take().is_some() {
            self.ends.push(self.bytes.len());
        }
    }

    fn push_stream(&mut self, frame: &WireFrame<'_>) {
        self.begin_packet();
        let first = self.ends.len();
        let caplen = frame.caplen();
        let number_at = self.push_packet_header(frame, caplen);
        frame.for_each_piece(|piece| self.push_bytes(piece));
        self.end_packet(FrameMark { number_at, first, last: first, caplen, here: caplen });
    }

    /// Opens a datagram if none is, and says in it that a packet starts here, if it is the first.
    fn begin_packet(&mut self) {
        let start = self.datagram();
        if self.bytes[start + 2..start + 4] == STREAM_NO_PACKET.to_be_bytes() {
            let at =
                u16::try_from(self.bytes.len() - start).expect("datagrams have 64 KiB at most");
            self.bytes[start + 2..start + 4].copy_from_slice(&at.to_be_bytes());
        }
    }

    /// Adds a frame's bytes, in as many datagrams as they need.
    fn push_bytes(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let start = self.datagram();
            let room = self.datagram_bytes - (self.bytes.len() - start);
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.bytes.extend_from_slice(now);
            piece = later;
            // Cut only where the next piece, or the next packet's header, cannot follow.
            if now.len() == room {
                self.finish();
            }
        }
    }

    /// Notes the frame that is complete now.
    fn end_packet(&mut self, mark: FrameMark) {
        let last = self.ends.len() - usize::from(self.open.is_none());
        self.frames.push(FrameMark { last, ..mark });
        if let Some(start) = self.open
            && self.bytes.len() - start
                > self.datagram_bytes - (PACKET_HEADER_BYTES + STREAM_HEADER_BYTES)
        {
            self.finish();
        }
    }

    /// Start of the datagram being filled; a new one if none is.
    fn datagram(&mut self) -> usize {
        let bytes = &mut self.bytes;
        *self.open.get_or_insert_with(|| {
            let start = bytes.len();
            let header = StreamHeader { first_header: STREAM_NO_PACKET, sequence: 0 };
            bytes.extend_from_slice(&header.to_bytes());
            start
        })
    }

    fn push_message(&mut self, frame: &WireFrame<'_>, caplen: usize) {
        let len = u32::try_from(PACKET_HEADER_BYTES + caplen).expect("cut to MAX_CAPLEN");
        self.bytes.extend_from_slice(&Header::new(MessageType::Packet, 0, len).to_bytes());
        let number_at = self.push_packet_header(frame, caplen);
        let mut left = caplen;
        frame.for_each_piece(|piece| {
            let piece = &piece[..piece.len().min(left)];
            left -= piece.len();
            self.bytes.extend_from_slice(piece);
        });
        let at = self.ends.len();
        self.frames.push(FrameMark { number_at, first: at, last: at, caplen, here: caplen });
    }

    /// Returns where the packet number stands.
    fn push_packet_header(&mut self, frame: &WireFrame<'_>, caplen: usize) -> usize {
        let ns = frame.timestamp_ns();
        let header = PacketHeader {
            // The field ends in 2106.
            seconds: u32::try_from(ns / 1_000_000_000).unwrap_or(u32::MAX),
            micros: u32::try_from(ns % 1_000_000_000 / 1000).expect("under a million"),
            caplen: u32::try_from(caplen).expect("cut to MAX_CAPLEN"),
            wire_len: frame.wire_len(),
            number: 0,
        };
        self.bytes.extend_from_slice(&header.to_bytes());
        self.bytes.len() - 4
    }

    /// Puts what is left of the finished stream `old` from its datagram `from` on into this run,
    /// which is empty, cut to this one's datagrams. Packets keep their numbers; those that
    /// `is_lost` says lost a part already are left out.
    pub(super) fn recut(&mut self, old: &Self, from: usize, is_lost: impl Fn(&FrameMark) -> bool) {
        debug_assert_eq!((self.form, old.form), (Form::Stream, Form::Stream));
        for mark in old.frames.iter().filter(|mark| mark.last >= from && !is_lost(mark)) {
            let mut at = match mark.number_at {
                0 => old.payload_at(0),
                number_at => number_at + size_of::<u32>(),
            };
            let mut number_at = 0;
            if mark.number_at != 0 && mark.first >= from {
                self.begin_packet();
                self.bytes.extend_from_slice(&old.bytes[at - PACKET_HEADER_BYTES..at]);
                number_at = self.bytes.len() - size_of::<u32>();
            }
            let first = self.ends.len();
            let (mut datagram, mut left, mut here) = (mark.first, mark.here, 0);
            loop {
                let piece = &old.bytes[at..old.ends[datagram].min(at + left)];
                left -= piece.len();
                if datagram >= from {
                    here += piece.len();
                    self.push_bytes(piece);
                }
                if left == 0 {
                    break;
                }
                datagram += 1;
                at = old.payload_at(datagram);
            }
            let caplen = mark.caplen;
            self.end_packet(FrameMark { number_at, first, last: first, caplen, here });
        }
        self.finish();
    }

    /// Bytes of a finished datagram.
    pub(super) fn datagram_len(&self, datagram: usize) -> usize {
        self.ends[datagram] - if datagram == 0 { 0 } else { self.ends[datagram - 1] }
    }

    /// Where the stream's bytes begin in a datagram.
    fn payload_at(&self, datagram: usize) -> usize {
        let start = if datagram == 0 { 0 } else { self.ends[datagram - 1] };
        start + STREAM_HEADER_BYTES
    }

    /// Writes the packets' numbers in.
    pub(super) fn stamp_packets(&mut self, number: u32) {
        let mut next = number;
        for frame in &self.frames {
            self.bytes[frame.number_at..frame.number_at + 4].copy_from_slice(&next.to_be_bytes());
            next = next.wrapping_add(1);
        }
    }

    /// Writes the datagrams' numbers in, where they have one.
    pub(super) fn stamp_datagrams(&mut self, sequence: u32) {
        if self.form == Form::Stream {
            let (mut start, mut next) = (0, sequence);
            for &end in &self.ends {
                self.bytes[start + 4..start + 8].copy_from_slice(&next.to_be_bytes());
                next = next.wrapping_add(1);
                start = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::frame;
    use super::*;
    use proptest::prelude::*;

    fn limited(form: Form, datagram_bytes: usize) -> Run {
        let mut run = Run::new(form);
        run.limit(datagram_bytes);
        run
    }

    fn datagrams(run: &Run) -> Vec<&[u8]> {
        let mut start = 0;
        run.ends
            .iter()
            .map(|&end| {
                let datagram = &run.bytes[start..end];
                start = end;
                datagram
            })
            .collect()
    }

    /// Reads the stream form back as the spec describes it, with code of its own.
    fn decode(datagrams: &[&[u8]], sequence: u32) -> Vec<(u32, Vec<u8>)> {
        let mut stream = Vec::new();
        let mut starts = Vec::new();
        for (at, datagram) in datagrams.iter().enumerate() {
            assert_eq!(datagram[..2], [0, 110]);
            let expected = sequence.wrapping_add(u32::try_from(at).unwrap());
            assert_eq!(datagram[4..8], expected.to_be_bytes());
            let first = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
            if first != 0xffff {
                starts.push(stream.len() + first - 8);
            }
            stream.extend_from_slice(&datagram[8..]);
        }
        let mut packets = Vec::new();
        let mut edges = Vec::new();
        let mut at = 0;
        while at < stream.len() {
            edges.push(at);
            let field = |n: usize| {
                u32::from_be_bytes(stream[at + 4 * n..at + 4 * n + 4].try_into().unwrap())
            };
            assert_eq!((field(0), field(1)), (1_700_000_000, 123_456));
            assert_eq!(field(2), field(3));
            let len = usize::try_from(field(2)).unwrap();
            packets.push((field(4), stream[at + 20..at + 20 + len].to_vec()));
            at += 20 + len;
        }
        assert_eq!(at, stream.len(), "ends at a packet's edge");
        assert!(starts.iter().all(|start| edges.contains(start)), "firsthdridx points at headers");
        packets
    }

    proptest! {
        #[test]
        fn the_stream_reads_back(lens in proptest::collection::vec(0..9100usize, 1..40),
                                 size in 128..1600usize, sequence: u32) {
            let mut run = limited(Form::Stream, size);
            let mut sent = Vec::new();
            for (n, len) in lens.iter().enumerate() {
                if run.is_full() { break; }
                let data: Vec<u8> = (0..*len).map(|i| u8::try_from((i + n) & 255).unwrap()).collect();
                run.push(&frame(&data).wire(usize::MAX));
                sent.push((u32::try_from(n).unwrap() + 5, data));
            }
            run.finish();
            run.stamp_packets(5);
            run.stamp_datagrams(sequence);
            let datagrams = datagrams(&run);
            prop_assert!(datagrams.iter().all(|d| d.len() <= size && d.len() > 8));
            prop_assert_eq!(&decode(&datagrams, sequence), &sent);
            // All but the last are as full as an unsplit header allows.
            for d in &datagrams[..datagrams.len() - 1] {
                prop_assert!(d.len() > size - 28);
            }
            for (mark, (_, data)) in run.frames.iter().zip(&sent) {
                prop_assert!(mark.first <= mark.last && mark.last < datagrams.len());
                prop_assert_eq!(mark.caplen, data.len());
            }
        }
    }

    proptest! {
        #[test]
        fn a_stream_that_is_cut_anew_anywhere_goes_on(
            lens in proptest::collection::vec(0..9100usize, 1..20),
            sizes in proptest::collection::vec(128..9000usize, 1..4),
            places in proptest::collection::vec(0.0..1.0f64, 3),
            first_size in 128..9000usize,
        ) {
            let mut run = limited(Form::Stream, first_size);
            let mut packets = Vec::new();
            for (n, len) in (5u32..).zip(&lens) {
                if run.is_full() { break; }
                let data: Vec<u8> = (0..*len).map(|i| u8::try_from((i * 3 + n as usize) & 255).unwrap()).collect();
                run.push(&frame(&data).wire(usize::MAX));
                packets.push((n, data));
            }
            run.finish();
            run.stamp_packets(5);
            run.stamp_datagrams(77);
            let (mut sent, mut sequence) = (Vec::new(), 77u32);
            let mut frames = 0;
            for (size, place) in sizes.iter().zip(&places) {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
                let from = (place * run.ends.len() as f64) as usize;
                sent.extend(datagrams(&run)[..from].iter().map(|d| d.to_vec()));
                frames += run.frames.iter().filter(|mark| mark.last < from).count();
                let mut smaller = limited(Form::Stream, *size);
                smaller.recut(&run, from, |_mark| false);
                sequence = sequence.wrapping_add(u32::try_from(from).unwrap());
                smaller.stamp_datagrams(sequence);
                prop_assert!(datagrams(&smaller).iter().all(|d| d.len() <= *size && d.len() > 8));
                run = smaller;
            }
            sent.extend(datagrams(&run).iter().map(|d| d.to_vec()));
            frames += run.frames.len();
            let sent: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decode(&sent, 77), packets.clone());
            prop_assert_eq!(frames, packets.len(), "each is counted once");
        }
    }

    #[test]
    fn a_frame_that_lost_its_beginning_is_left_out_when_the_rest_is_cut_anew() {
        let mut run = limited(Form::Stream, 500);
        for n in 0..3 {
            run.push(&frame(&[n; 1000]).wire(usize::MAX));
        }
        run.finish();
        run.stamp_packets(1);
        let mut smaller = limited(Form::Stream, 300);
        // Datagram 2 holds the end of the first frame and the beginning of the second.
        assert_eq!((run.frames[0].last, run.frames[1].first), (2, 2));
        smaller.recut(&run, 3, |mark| mark.first <= 2);
        smaller.stamp_datagrams(3);
        assert_eq!(decode(&datagrams(&smaller), 3), [(3, vec![2; 1000])]);
    }

    #[test]
    fn small_packets_share_a_datagram() {
        let mut run = limited(Form::Stream, 1472);
        let data = [7u8; 60];
        for _ in 0..18 {
            run.push(&frame(&data).wire(usize::MAX));
        }
        assert_eq!(run.ends.len(), 1, "18 * 80 + 8 = 1448 leaves no room for a header and a byte");
        assert_eq!(run.ends[0], 1448);
    }

    #[test]
    fn a_plain_datagram_is_one_message() {
        let mut run = limited(Form::Plain, MAX_UDP_PAYLOAD);
        run.push(&frame(&[1, 2, 3]).wire(usize::MAX));
        run.push(&frame(&[4; 2000]).wire(usize::MAX));
        run.finish();
        run.stamp_packets(41);
        run.stamp_datagrams(9);
        let datagrams = datagrams(&run);
        assert_eq!(datagrams.len(), 2);
        assert_eq!(datagrams[0][..8], [0, 7, 0, 0, 0, 0, 0, 23]);
        assert_eq!(datagrams[0][24..], [0, 0, 0, 41, 1, 2, 3]);
        assert_eq!(datagrams[1].len(), 2028);
        assert_eq!(datagrams[1][24..28], [0, 0, 0, 42]);
    }

    #[test]
    fn a_plain_frame_too_large_for_udp_is_cut_and_says_so() {
        let mut run = limited(Form::Plain, MAX_UDP_PAYLOAD);
        let data = vec![9; 65_549];
        run.push(&frame(&data).wire(usize::MAX));
        assert_eq!(run.ends, [65_507]);
        assert_eq!(run.bytes[16..24], [0, 0, 0xff, 0xc7, 0, 1, 0, 0x0d], "caplen 65479, len 65549");
    }

    #[test]
    fn the_largest_frame_fits_an_almost_full_run() {
        for form in [Form::Stream, Form::Plain, Form::Messages] {
            for small in [&[1u8; 60][..], &[]] {
                let mut run = limited(form, MIN_DATAGRAM);
                let capacity =
                    |run: &Run| (run.bytes.capacity(), run.ends.capacity(), run.frames.capacity());
                let before = capacity(&run);
                while !run.has_no_room() {
                    run.push(&frame(small).wire(usize::MAX));
                }
                run.push(&frame(&vec![2; MAX_CAPLEN]).wire(usize::MAX));
                run.finish();
                assert_eq!(capacity(&run), before);
            }
        }
    }
}
