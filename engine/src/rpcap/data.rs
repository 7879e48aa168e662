//! The headers on the data channel.
//!
//! ```text
//! plain:   | message header 8 | packet header 20 | frame |              one a datagram, or on TCP
//! stream:  | stream header 8  | packet header 20 | frame | packet ...   datagrams only
//! ```

/// Bytes of the header before each packet, in both data encodings.
pub const PACKET_HEADER_BYTES: usize = 20;
/// Bytes of the header before each datagram of the stream encoding.
pub const STREAM_HEADER_BYTES: usize = 8;
/// `firsthdridx` of a datagram in which no packet starts.
pub const STREAM_NO_PACKET: u16 = 0xffff;

/// The 20 bytes before each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketHeader {
    /// Seconds since the epoch.
    pub seconds: u32,
    /// Microseconds.
    pub micros: u32,
    /// Bytes that follow.
    pub caplen: u32,
    /// Bytes on the wire.
    pub wire_len: u32,
    /// Number of the packet, from 1 at each STARTCAP.
    pub number: u32,
}

impl PacketHeader {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; PACKET_HEADER_BYTES] {
        let mut bytes = [0; PACKET_HEADER_BYTES];
        let fields = [self.seconds, self.micros, self.caplen, self.wire_len, self.number];
        for (slot, field) in bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    /// Reads a header.
    #[must_use]
    pub fn read(bytes: &[u8; PACKET_HEADER_BYTES]) -> Self {
        let field = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            seconds: field(0),
            micros: field(4),
            caplen: field(8),
            wire_len: field(12),
            number: field(16),
        }
    }
}

/// The 8 bytes before each datagram of the stream encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Offset from the datagram's first byte to the first packet header that starts in it;
    /// [`STREAM_NO_PACKET`] if none does.
    pub first_header: u16,
    /// Number of the datagram, from 0 at each STARTCAP.
    pub sequence: u32,
}

impl StreamHeader {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; STREAM_HEADER_BYTES] {
        let [f0, f1] = self.first_header.to_be_bytes();
        let [s0, s1, s2, s3] = self.sequence.to_be_bytes();
        [0, super::MessageType::Stream as u8, f0, f1, s0, s1, s2, s3]
    }

    /// Reads a header; the caller has seen that the type is [`super::MessageType::Stream`].
    #[must_use]
    pub fn read(bytes: [u8; STREAM_HEADER_BYTES]) -> Self {
        Self {
            first_header: u16::from_be_bytes([bytes[2], bytes[3]]),
            sequence: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }
}
