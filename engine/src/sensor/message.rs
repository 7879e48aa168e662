//! PACKET messages: one in a datagram (plain form), or one after the other in a TCP stream.
//!
//! ```text
//! datagram ---parse_plain--> Packet
//! TCP bytes --Framer--> Sink::packet, Sink::fault
//! ```
//!
//! The stream form (type 110) is `reassembly`'s. Pure: no socket, no clock.

use crate::rpcap::{
    HEADER_BYTES, Header, MAX_SNAPLEN, MessageType, PACKET_HEADER_BYTES, PacketHeader,
};

/// What is wrong with a datagram or a message. Labels are an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Shorter than its headers.
    Short,
    /// A version other than 0.
    Version,
    /// Neither PACKET nor, in a datagram, the stream form.
    Type,
    /// `plen` says more than there is, less than a packet header, or more than is ever asked for.
    PayloadLength,
    /// The packet claims more bytes than its message has, or than were asked for.
    Caplen,
    /// The packet claims to have been shorter on the wire than it is here.
    WireLen,
    /// Stream: the first packet header lies outside the datagram.
    FirstHeader,
    /// Stream: a packet header is cut by the datagram's end.
    SplitHeader,
    /// Stream: the bytes before the first header do not finish the packet begun before.
    Continuation,
    /// The stream form on a TCP connection, where it cannot be told apart.
    StreamOnTcp,
}

impl Fault {
    pub(super) const ALL: [Self; 10] = [
        Self::Short,
        Self::Version,
        Self::Type,
        Self::PayloadLength,
        Self::Caplen,
        Self::WireLen,
        Self::FirstHeader,
        Self::SplitHeader,
        Self::Continuation,
        Self::StreamOnTcp,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Version => "version",
            Self::Type => "type",
            Self::PayloadLength => "payload_length",
            Self::Caplen => "caplen",
            Self::WireLen => "wire_len",
            Self::FirstHeader => "first_header",
            Self::SplitHeader => "split_header",
            Self::Continuation => "continuation",
            Self::StreamOnTcp => "stream_on_tcp",
        }
    }
}

/// Takes what the data channel yields.
pub(super) trait Sink {
    /// A whole packet; `data` is `header.caplen` bytes.
    fn packet(&mut self, header: PacketHeader, data: &[u8]);
    /// Something that could not be used.
    fn fault(&mut self, fault: Fault);
}

/// Checks a packet header's lengths against each other and against what was asked for; the answer
/// is `caplen`.
pub(super) fn check(header: &PacketHeader, snaplen: u32) -> Result<usize, Fault> {
    if header.caplen > snaplen.min(MAX_SNAPLEN) {
        return Err(Fault::Caplen);
    }
    if header.wire_len < header.caplen {
        return Err(Fault::WireLen);
    }
    usize::try_from(header.caplen).map_err(|_too_large| Fault::Caplen)
}

/// Reads the payload of a PACKET message; bytes after the frame are nobody's.
fn read_packet(payload: &[u8], snaplen: u32) -> Result<(PacketHeader, &[u8]), Fault> {
    let (header, rest) = payload.split_first_chunk().ok_or(Fault::PayloadLength)?;
    let header = PacketHeader::read(header);
    let caplen = check(&header, snaplen)?;
    Ok((header, rest.get(..caplen).ok_or(Fault::Caplen)?))
}

/// Reads a datagram of the plain form. Bytes after the message are ignored, as every client does.
pub(super) fn parse_plain(datagram: &[u8], snaplen: u32) -> Result<(PacketHeader, &[u8]), Fault> {
    let (header, rest) = datagram.split_first_chunk().ok_or(Fault::Short)?;
    let header = Header::read(*header);
    if header.version != 0 {
        return Err(Fault::Version);
    }
    if header.message_type() != Some(MessageType::Packet) {
        return Err(Fault::Type);
    }
    let len = usize::try_from(header.payload_len).map_err(|_too_large| Fault::PayloadLength)?;
    read_packet(rest.get(..len).ok_or(Fault::PayloadLength)?, snaplen)
}

/// The stream of messages cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

/// Cuts a TCP stream into messages. Holds less than one message.
#[derive(Debug)]
pub(super) struct Framer {
    snaplen: u32,
    held: Vec<u8>,
    /// Bytes still to come of a message that is not wanted.
    skip: u64,
}

impl Framer {
    /// Bytes after the frame that are let pass within a message.
    const TRAILER: u32 = 4_096;

    pub(super) fn new(snaplen: u32) -> Self {
        Self { snaplen, held: Vec::new(), skip: 0 }
    }

    /// Takes the next bytes of the stream, as many as came.
    pub(super) fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), OutOfStep> {
        if self.held.is_empty() {
            let used = self.messages(bytes, sink)?;
            self.held.extend_from_slice(&bytes[used..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            let used = self.messages(&held, sink)?;
            held.drain(..used);
            self.held = held;
        }
        Ok(())
    }

    /// Bytes of a PACKET's payload; `None` if more must come first. libpcap's daemon and the
    /// reference's cut `plen` to 16 bits, so that it says less than there is where a frame has more
    /// than 65,515 bytes; the packet's own header tells.
    fn payload_len(&self, plen: u32, rest: &[u8]) -> Option<usize> {
        let header = PacketHeader::read(rest.first_chunk()?);
        let whole = u64::from(header.caplen) + PACKET_HEADER_BYTES as u64;
        let is_cut = u64::from(plen) < whole
            && u64::from(plen) == whole & 0xffff
            && header.caplen <= self.snaplen.min(MAX_SNAPLEN);
        usize::try_from(if is_cut { whole } else { plen.into() }).ok()
    }

    /// Handles the whole messages at the front of `bytes`; the answer is how much that was.
    fn messages(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, OutOfStep> {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(rest.len());
            self.skip -= skipped as u64;
            used += skipped;
            let Some((header, rest)) = rest[skipped..].split_first_chunk() else {
                return Ok(used);
            };
            let header = Header::read(*header);
            if header.version != 0 {
                sink.fault(Fault::Version);
                return Err(OutOfStep);
            }
            if header.message_type() == Some(MessageType::Stream) {
                // The reference's daemon writes its datagrams into TCP. They have no length there:
                // where one ends cannot be known, and their sequence number is no `plen`.
                sink.fault(Fault::StreamOnTcp);
                return Err(OutOfStep);
            }
            if header.message_type() != Some(MessageType::Packet) {
                sink.fault(Fault::Type);
                self.skip = header.payload_len.into();
                used += HEADER_BYTES;
                continue;
            }
            let most =
                u32::try_from(PACKET_HEADER_BYTES).unwrap_or(0) + MAX_SNAPLEN + Self::TRAILER;
            if header.payload_len > most {
                sink.fault(Fault::PayloadLength);
                return Err(OutOfStep);
            }
            let Some(len) = self.payload_len(header.payload_len, rest) else { return Ok(used) };
            let Some(payload) = rest.get(..len) else { return Ok(used) };
            match read_packet(payload, self.snaplen) {
                Ok((header, data)) => sink.packet(header, data),
                Err(fault) => sink.fault(fault),
            }
            used += HEADER_BYTES + len;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Keeps everything.
    #[derive(Debug, Default, PartialEq)]
    pub(in crate::sensor) struct Kept {
        pub(in crate::sensor) packets: Vec<(PacketHeader, Vec<u8>)>,
        pub(in crate::sensor) faults: Vec<Fault>,
    }

    impl Sink for Kept {
        fn packet(&mut self, header: PacketHeader, data: &[u8]) {
            self.packets.push((header, data.to_vec()));
        }

        fn fault(&mut self, fault: Fault) {
            self.faults.push(fault);
        }
    }

    /// A packet with number `number` and `len` bytes that tell it from others.
    pub(in crate::sensor) fn packet(number: u32, len: usize) -> (PacketHeader, Vec<u8>) {
        let caplen = u32::try_from(len).unwrap();
        let header = PacketHeader {
            seconds: 1_700_000_000,
            micros: number % 1_000_000,
            caplen,
            wire_len: caplen,
            number,
        };
        let data = (0..caplen).map(|at| (at.wrapping_mul(31) ^ number).to_le_bytes()[0]);
        (header, data.collect())
    }

    /// The PACKET message of a packet.
    pub(in crate::sensor) fn message((header, data): &(PacketHeader, Vec<u8>)) -> Vec<u8> {
        let plen = u32::try_from(PACKET_HEADER_BYTES + data.len()).unwrap();
        let mut bytes = Header::new(MessageType::Packet, 0, plen).to_bytes().to_vec();
        bytes.extend(header.to_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn a_plain_datagram_is_one_packet() {
        let packet = packet(1, 60);
        let mut bytes = message(&packet);
        assert_eq!(parse_plain(&bytes, 60), Ok((packet.0, &packet.1[..])));
        bytes.extend([9; 30]);
        assert_eq!(parse_plain(&bytes, 60), Ok((packet.0, &packet.1[..])), "a trailer is ignored");
    }

    #[test]
    fn every_length_is_checked() {
        let good = message(&packet(1, 60));
        let with = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            parse_plain(&bytes, 60).unwrap_err()
        };
        assert_eq!(parse_plain(&good[..7], 60), Err(Fault::Short));
        assert_eq!(parse_plain(&good[..87], 60), Err(Fault::PayloadLength));
        assert_eq!(parse_plain(&good, 59), Err(Fault::Caplen));
        assert_eq!(with(0, &[1]), Fault::Version);
        assert_eq!(with(1, &[9]), Fault::Type);
        assert_eq!(with(4, &[0xff; 4]), Fault::PayloadLength);
        assert_eq!(with(4, &[0, 0, 0, 19]), Fault::PayloadLength);
        assert_eq!(with(4, &[0, 0, 0, 79]), Fault::Caplen, "caplen larger than its message");
        assert_eq!(with(20, &[0, 0, 0, 59]), Fault::WireLen);
    }

    #[test]
    fn tcp_data_may_come_byte_by_byte() {
        let packets = [packet(1, 60), packet(2, 0), packet(3, 9_000)];
        let mut bytes: Vec<u8> = packets.iter().flat_map(message).collect();
        // An unknown message and a trailer inside `plen` are passed over.
        bytes.extend([0, 99, 0, 0, 0, 0, 0, 3, 1, 2, 3]);
        let mut trailed = message(&packet(4, 10));
        trailed[7] += 5;
        bytes.extend(trailed);
        bytes.extend([0; 5]);
        let mut kept = Kept::default();
        let mut framer = Framer::new(65_535);
        for byte in &bytes {
            framer.push(&[*byte], &mut kept).unwrap();
        }
        assert_eq!(kept.packets[..3], packets);
        assert_eq!(kept.packets[3..], [packet(4, 10)]);
        assert_eq!(kept.faults, [Fault::Type]);
        assert!(framer.held.is_empty());
    }

    #[test]
    fn a_plen_that_was_cut_to_16_bits_is_seen_through() {
        let packets = [packet(1, 65_516), packet(2, 70_000), packet(3, 200_000), packet(4, 60)];
        let mut bytes = Vec::new();
        for packet in &packets {
            let mut message = message(packet);
            message[4..6].fill(0);
            bytes.extend(message);
        }
        let mut kept = Kept::default();
        let mut framer = Framer::new(262_144);
        bytes.chunks(4_001).for_each(|piece| framer.push(piece, &mut kept).unwrap());
        assert_eq!((kept.packets, kept.faults), (packets.to_vec(), vec![]));
    }

    #[test]
    fn a_message_too_short_for_a_packet_is_passed_over() {
        let mut kept = Kept::default();
        let mut framer = Framer::new(65_535);
        let short = [0, 7, 0, 0, 0, 0, 0, 3, 1, 2, 3];
        let bytes = [&short[..], &message(&packet(1, 60))].concat();
        framer.push(&bytes, &mut kept).unwrap();
        assert_eq!((kept.packets, kept.faults), (vec![packet(1, 60)], vec![Fault::PayloadLength]));
    }

    #[test]
    fn the_stream_form_on_tcp_ends_the_stream_at_once() {
        let mut kept = Kept::default();
        let mut framer = Framer::new(65_535);
        let (header, data) = packet(1, 50);
        let block = [&[0, 110, 0, 8, 0, 0, 0, 0][..], &header.to_bytes(), &data].concat();
        assert_eq!(framer.push(&block, &mut kept), Err(OutOfStep));
        assert_eq!((kept.packets.len(), kept.faults), (0, vec![Fault::StreamOnTcp]));
    }

    #[test]
    fn a_message_of_4_gib_ends_the_stream_and_takes_no_memory() {
        let mut kept = Kept::default();
        let mut framer = Framer::new(65_535);
        let huge = [0, 7, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(framer.push(&huge, &mut kept), Err(OutOfStep));
        let mut framer = Framer::new(65_535);
        framer.push(&[0, 50, 0, 0, 0xff, 0xff, 0xff, 0xff], &mut kept).unwrap();
        for _ in 0..1_000 {
            framer.push(&[0xaa; 10_000], &mut kept).unwrap();
            assert!(framer.held.is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut: usize) {
            let _ = parse_plain(&bytes, 1_000);
            let mut kept = Kept::default();
            let mut framer = Framer::new(1_000);
            let (head, tail) = bytes.split_at(cut % (bytes.len() + 1));
            let _ = framer.push(head, &mut kept).and_then(|()| framer.push(tail, &mut kept));
        }
    }
}
