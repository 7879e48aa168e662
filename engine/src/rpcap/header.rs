//! The eight bytes before every message: `ver u8 | type u8 | value u16 | plen u32`.

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 8;

/// What a message is. A reply is the request's number with bit 7 set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub enum MessageType {
    Error = 1,
    FindAllIf = 2,
    Open = 3,
    StartCapture = 4,
    UpdateFilter = 5,
    Close = 6,
    Packet = 7,
    Auth = 8,
    Stats = 9,
    EndCapture = 10,
    SetSampling = 11,
    /// ExtraHop's UDPSTR: a datagram of the packet stream, data channel only.
    Stream = 110,
    FindAllIfReply = 130,
    OpenReply = 131,
    StartCaptureReply = 132,
    UpdateFilterReply = 133,
    AuthReply = 136,
    StatsReply = 137,
    EndCaptureReply = 138,
    SetSamplingReply = 139,
}

impl MessageType {
    /// Every type, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Error,
        Self::FindAllIf,
        Self::Open,
        Self::StartCapture,
        Self::UpdateFilter,
        Self::Close,
        Self::Packet,
        Self::Auth,
        Self::Stats,
        Self::EndCapture,
        Self::SetSampling,
        Self::Stream,
        Self::FindAllIfReply,
        Self::OpenReply,
        Self::StartCaptureReply,
        Self::UpdateFilterReply,
        Self::AuthReply,
        Self::StatsReply,
        Self::EndCaptureReply,
        Self::SetSamplingReply,
    ];

    /// The type with this number, if the protocol has one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A message header as it was read: the type is kept as a number, because an unknown one must be
/// answered (and its payload skipped), not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Protocol version; 0 is the only one that exists.
    pub version: u8,
    /// See [`MessageType`].
    pub kind: u8,
    /// Number of interfaces (FINDALLIF reply) or error code (ERROR); else 0.
    pub value: u16,
    /// Bytes of payload that follow.
    pub payload_len: u32,
}

impl Header {
    /// A header of version 0.
    #[must_use]
    pub fn new(kind: MessageType, value: u16, payload_len: u32) -> Self {
        Self { version: 0, kind: kind as u8, value, payload_len }
    }

    /// Reads a header.
    #[must_use]
    pub fn read(bytes: [u8; HEADER_BYTES]) -> Self {
        let [version, kind, v0, v1, l0, l1, l2, l3] = bytes;
        Self {
            version,
            kind,
            value: u16::from_be_bytes([v0, v1]),
            payload_len: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [v0, v1] = self.value.to_be_bytes();
        let [l0, l1, l2, l3] = self.payload_len.to_be_bytes();
        [self.version, self.kind, v0, v1, l0, l1, l2, l3]
    }

    /// The type, if it is known.
    #[must_use]
    pub fn message_type(&self) -> Option<MessageType> {
        MessageType::from_number(self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header::new(MessageType::FindAllIfReply, 5, 0xacd);
        assert_eq!(header.to_bytes(), [0, 0x82, 0, 5, 0, 0, 0x0a, 0xcd]);
        assert_eq!(Header::read(header.to_bytes()), header);
    }

    #[test]
    fn an_unknown_type_is_kept_as_a_number() {
        let header = Header::read([0, 77, 0, 0, 0, 0, 0, 0]);
        assert_eq!((header.kind, header.message_type()), (77, None));
    }
}
