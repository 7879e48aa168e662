//! Payloads of the messages: what a daemon reads and writes, and what a client does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::LinkLayer;

/// A payload that contradicts itself; the text says what was missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

/// Bytes of the header before each packet, in both data encodings.
pub const PACKET_HEADER_BYTES: usize = 20;
/// Bytes of the header before each datagram of the stream encoding.
pub const STREAM_HEADER_BYTES: usize = 8;
/// `firsthdridx` of a datagram in which no packet starts.
pub const STREAM_NO_PACKET: u16 = 0xffff;

/// Bytes of one address slot of FINDALLIF; each address has four.
const ADDRESS_SLOT: usize = 128;
/// Bytes of an interface entry before its name.
const INTERFACE_FIXED: usize = 12;
/// The most bytes of a name or description that clients accept.
const MAX_NAME: usize = 1024;

/// Takes fields off the front of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed(what))?;
        self.0 = tail;
        Ok(head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        let bytes = self.take(2, what)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let bytes = self.take(4, what)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

/// AUTH request.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// No credentials.
    Null,
    /// User and password, in clear text.
    Password {
        /// Account.
        user: Vec<u8>,
        /// Secret; never printed.
        password: Vec<u8>,
    },
    /// A kind this protocol does not have.
    Other(u16),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Password { .. } => f.write_str("Password(..)"),
            Self::Other(kind) => write!(f, "Other({kind})"),
        }
    }
}

impl Auth {
    /// Reads the payload of an AUTH request.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let kind = reader.u16("AUTH type")?;
        reader.u16("AUTH padding")?;
        let user_len = reader.u16("AUTH user length")?;
        let password_len = reader.u16("AUTH password length")?;
        match kind {
            0 => Ok(Self::Null),
            1 => Ok(Self::Password {
                user: reader.take(user_len.into(), "AUTH user")?.to_vec(),
                password: reader.take(password_len.into(), "AUTH password")?.to_vec(),
            }),
            other => Ok(Self::Other(other)),
        }
    }

    /// The payload of a request without credentials.
    #[must_use]
    pub fn null_request() -> [u8; 8] {
        [0; 8]
    }

    /// The payload of the reply: versions 0 to 0, and the byte order magic as this CPU stores it.
    #[must_use]
    pub fn reply() -> [u8; 8] {
        let [m0, m1, m2, m3] = 0xa1b2_c3d4_u32.to_ne_bytes();
        [0, 0, 0, 0, m0, m1, m2, m3]
    }
}

/// Checks an AUTH reply as a client does: lengths 0, 2 and 8 or more exist.
pub fn read_auth_reply(payload: &[u8]) -> Result<(), Malformed> {
    if payload.is_empty() {
        return Ok(());
    }
    let mut reader = Reader(payload);
    let min = reader.u8("AUTH reply minimum version")?;
    let max = reader.u8("AUTH reply maximum version")?;
    if min > 0 || min > max {
        return Err(Malformed("AUTH reply offers no version that we speak"));
    }
    if reader.0.is_empty() {
        return Ok(());
    }
    reader.u16("AUTH reply padding")?;
    match reader.u32("AUTH reply byte order")? {
        0xa1b2_c3d4 | 0xd4c3_b2a1 => Ok(()),
        _ => Err(Malformed("AUTH reply has an unknown byte order magic")),
    }
}

/// An address of an interface, with its netmask where it is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's own address.
    pub address: IpAddr,
    /// IPv4 netmask. For IPv6 the slot stays empty on the wire: clients crash on it otherwise.
    pub netmask: Option<Ipv4Addr>,
}

/// One entry of a FINDALLIF reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name to be given to OPEN; at most 1024 bytes.
    pub name: String,
    /// Free text; at most 1024 bytes.
    pub description: String,
    /// 1 loopback, 2 up, 4 running, 0x10 connected, 0x20 disconnected.
    pub flags: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its link-layer address, if it has one.
    pub link_layer: Option<LinkLayer>,
}

impl Interface {
    /// Appends the entry to a FINDALLIF reply's payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let name = &self.name.as_bytes()[..self.name.len().min(MAX_NAME)];
        let description = &self.description.as_bytes()[..self.description.len().min(MAX_NAME)];
        let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        let most = usize::from(u16::MAX) - usize::from(self.link_layer.is_some());
        let addresses = &self.addresses[..self.addresses.len().min(most)];
        let count = addresses.len() + usize::from(self.link_layer.is_some());
        out.extend(short(name.len()));
        out.extend(short(description.len()));
        out.extend(self.flags.to_be_bytes());
        out.extend(short(count));
        out.extend([0, 0]);
        out.extend_from_slice(name);
        out.extend_from_slice(description);
        for entry in addresses {
            write_slot(out, Some(entry.address));
            write_slot(out, entry.netmask.map(IpAddr::V4));
            write_slot(out, None);
            write_slot(out, None);
        }
        if let Some(link_layer) = self.link_layer {
            let start = out.len();
            out.resize(start + 4 * ADDRESS_SLOT, 0);
            let bytes = link_layer.to_bytes();
            out[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// Reads `count` entries from a FINDALLIF reply's payload.
    pub fn read_all(payload: &[u8], count: u16) -> Result<Vec<Self>, Malformed> {
        let mut reader = Reader(payload);
        let mut interfaces = Vec::new();
        for _ in 0..count {
            let name_len = usize::from(reader.u16("interface name length")?);
            let description_len = usize::from(reader.u16("interface description length")?);
            if name_len > MAX_NAME || description_len > MAX_NAME {
                return Err(Malformed("interface name or description is longer than 1024 bytes"));
            }
            let flags = reader.u32("interface flags")?;
            let address_count = reader.u16("interface address count")?;
            reader.u16("interface padding")?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let name = text(reader.take(name_len, "interface name")?);
            let description = text(reader.take(description_len, "interface description")?);
            let mut addresses = Vec::new();
            let mut link_layer = None;
            for _ in 0..address_count {
                let slots = reader.take(4 * ADDRESS_SLOT, "interface address")?;
                let (own, rest) = slots.split_at(ADDRESS_SLOT);
                let netmask = match read_slot(&rest[..ADDRESS_SLOT]) {
                    Some(IpAddr::V4(mask)) => Some(mask),
                    _ => None,
                };
                if let Some(address) = read_slot(own) {
                    addresses.push(Address { address, netmask });
                }
                link_layer = link_layer.or_else(|| LinkLayer::read(own));
            }
            interfaces.push(Self { name, description, flags, addresses, link_layer });
        }
        Ok(interfaces)
    }

    /// Bytes that [`write`](Self::write) appends at least, for capacity.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        INTERFACE_FIXED
            + self.name.len()
            + self.description.len()
            + (self.addresses.len() + usize::from(self.link_layer.is_some())) * 4 * ADDRESS_SLOT
    }
}

/// Windows' value of `AF_INET6`, which the protocol uses on every platform.
const FAMILY_IPV6: u16 = 23;

fn write_slot(out: &mut Vec<u8>, address: Option<IpAddr>) {
    let start = out.len();
    out.resize(start + ADDRESS_SLOT, 0);
    let slot = &mut out[start..];
    match address {
        Some(IpAddr::V4(v4)) => {
            slot[..2].copy_from_slice(&2u16.to_be_bytes());
            slot[4..8].copy_from_slice(&v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            slot[..2].copy_from_slice(&FAMILY_IPV6.to_be_bytes());
            slot[8..24].copy_from_slice(&v6.octets());
        }
        None => {}
    }
}

fn read_slot(slot: &[u8]) -> Option<IpAddr> {
    match u16::from_be_bytes([slot[0], slot[1]]) {
        2 => Some(IpAddr::V4(Ipv4Addr::new(slot[4], slot[5], slot[6], slot[7]))),
        10 | FAMILY_IPV6 => {
            let octets: [u8; 16] = slot[8..24].try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}

/// OPEN reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// `DLT_` value of the frames to come.
    pub linktype: i32,
}

impl OpenReply {
    /// The payload.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.linktype.to_be_bytes();
        [a, b, c, d, 0, 0, 0, 0]
    }

    /// Reads the payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let linktype = Reader(payload).u32("OPEN reply link type")?;
        Ok(Self { linktype: linktype.cast_signed() })
    }
}

/// One instruction of a classic BPF program (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfInsn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the condition holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A filter of STARTCAP or UPDATEFILTER: instructions as they came, not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `filtertype`: 1 is BPF, the only one there is.
    pub kind: u16,
    /// The program.
    pub instructions: Vec<BpfInsn>,
}

impl Filter {
    /// The most instructions that are read; Linux takes no more.
    pub const MAX_INSTRUCTIONS: u32 = 4096;
    /// Bytes before the instructions.
    pub const FIXED_BYTES: usize = 8;
    /// Bytes of an instruction.
    pub const INSTRUCTION_BYTES: usize = 8;

    /// Reads a filter.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let kind = reader.u16("filter type")?;
        reader.u16("filter padding")?;
        let count = reader.u32("filter instruction count")?;
        if count > Self::MAX_INSTRUCTIONS {
            return Err(Malformed("filter has more than 4096 instructions"));
        }
        let mut instructions = Vec::new();
        for _ in 0..count {
            instructions.push(BpfInsn {
                code: reader.u16("filter instruction")?,
                jt: reader.u8("filter instruction")?,
                jf: reader.u8("filter instruction")?,
                k: reader.u32("filter instruction")?,
            });
        }
        Ok(Self { kind, instructions })
    }

    /// Appends the filter to a payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.kind.to_be_bytes());
        out.extend([0, 0]);
        out.extend(u32::try_from(self.instructions.len()).unwrap_or(u32::MAX).to_be_bytes());
        for insn in &self.instructions {
            out.extend(insn.code.to_be_bytes());
            out.extend([insn.jt, insn.jf]);
            out.extend(insn.k.to_be_bytes());
        }
    }
}

/// STARTCAP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCapture {
    /// The most bytes of a frame, as it was sent (0 means the maximum).
    pub snaplen: u32,
    /// Milliseconds.
    pub read_timeout_ms: u32,
    /// See the constants.
    pub flags: u16,
    /// The client's data port.
    pub port: u16,
    /// Which frames.
    pub filter: Filter,
}

impl StartCapture {
    /// Flag: promiscuous mode is wished for.
    pub const PROMISC: u16 = 1;
    /// Flag: data go over UDP.
    pub const DGRAM: u16 = 2;
    /// Flag: the daemon opens the data connection.
    pub const SERVER_OPEN: u16 = 4;
    /// Flag of podtap's own: the client takes UDP payloads of any size, 65,507 bytes and less.
    /// Everybody else ignores flags that they do not know (libpcap's daemon and the reference test
    /// single bits), and a client that does not set it gets 1472 bytes at most: what the reference
    /// sends, and all that is known of what its receivers take.
    pub const LARGE_DATAGRAMS: u16 = 0x8000;
    /// Bytes before the filter.
    pub const FIXED_BYTES: usize = 12;

    /// Reads the payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        Ok(Self {
            snaplen: reader.u32("STARTCAP snaplen")?,
            read_timeout_ms: reader.u32("STARTCAP read timeout")?,
            flags: reader.u16("STARTCAP flags")?,
            port: reader.u16("STARTCAP port")?,
            filter: Filter::read(reader.0)?,
        })
    }

    /// The payload.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.snaplen.to_be_bytes());
        out.extend(self.read_timeout_ms.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.port.to_be_bytes());
        self.filter.write(&mut out);
        out
    }
}

/// STARTCAP reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartCaptureReply {
    /// Buffer size, bytes; clients set their receive buffer from it.
    pub buffer_bytes: u32,
    /// TCP port that the daemon listens on, passive TCP only; else 0.
    pub port: u16,
}

impl StartCaptureReply {
    /// The payload.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.buffer_bytes.to_be_bytes();
        let [p0, p1] = self.port.to_be_bytes();
        [a, b, c, d, p0, p1, 0, 0]
    }

    /// Reads the payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        Ok(Self {
            buffer_bytes: reader.u32("STARTCAP reply buffer size")?,
            port: reader.u16("STARTCAP reply port")?,
        })
    }
}

/// STATS reply. Counts wrap at 2^32, as the field does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames seen.
    pub received: u32,
    /// Frames dropped by interfaces.
    pub interface_dropped: u32,
    /// Frames dropped for lack of buffer.
    pub kernel_dropped: u32,
    /// Frames sent.
    pub sent: u32,
}

impl Stats {
    /// The payload.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let fields = [self.received, self.interface_dropped, self.kernel_dropped, self.sent];
        for (slot, field) in bytes.chunks_exact_mut(4).zip(fields) {
            slot.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    /// Reads the payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        Ok(Self {
            received: reader.u32("STATS reply")?,
            interface_dropped: reader.u32("STATS reply")?,
            kernel_dropped: reader.u32("STATS reply")?,
            sent: reader.u32("STATS reply")?,
        })
    }
}

/// SETSAMPLING request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// 0 none, 1 one in `value`, 2 the first after `value` milliseconds.
    pub method: u8,
    /// 0 means no sampling whatever the method: a common client always sends 0.
    pub value: u32,
}

impl Sampling {
    /// Reads the payload.
    pub fn read(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(payload);
        let method = reader.u8("SETSAMPLING method")?;
        reader.take(3, "SETSAMPLING padding")?;
        Ok(Self { method, value: reader.u32("SETSAMPLING value")? })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_recorded_startcap_reads() {
        // A libpcap client's own bytes (active UDP session), filter shortened to one instruction.
        let payload = [
            0, 0, 0xff, 0xff, 0, 0, 0, 0xfa, 0, 6, 0xcc, 0x3d, 0, 1, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0,
            0, 4, 0, 0,
        ];
        let start = StartCapture::read(&payload).unwrap();
        assert_eq!((start.snaplen, start.read_timeout_ms), (65_535, 250));
        assert_eq!(start.flags, StartCapture::DGRAM | StartCapture::SERVER_OPEN);
        assert_eq!((start.port, start.filter.kind), (0xcc3d, 1));
        assert_eq!(start.filter.instructions, [BpfInsn { code: 6, jt: 0, jf: 0, k: 0x40000 }]);
        assert_eq!(start.to_vec(), payload);
    }

    #[test]
    fn the_auth_reply_is_what_daemons_send() {
        #[cfg(target_endian = "little")]
        assert_eq!(Auth::reply(), [0, 0, 0, 0, 0xd4, 0xc3, 0xb2, 0xa1]);
        read_auth_reply(&Auth::reply()).unwrap();
        read_auth_reply(&[]).unwrap();
        read_auth_reply(&[0, 0]).unwrap();
        for bad in [&[0, 0, 0][..], &[1, 1], &[0, 0, 0, 0, 1, 2, 3, 4]] {
            read_auth_reply(bad).unwrap_err();
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let auth = Auth::read(b"\0\x01\0\0\0\x01\0\x06usecret").unwrap();
        assert!(
            matches!(&auth, Auth::Password { user, password } if user == b"u" && password == b"secret")
        );
        assert!(!format!("{auth:?}").contains("secret"));
    }

    #[test]
    fn interfaces_survive_the_wire() {
        let interfaces = vec![
            Interface {
                name: "any-eth".into(),
                description: "every interface ;preselected".into(),
                flags: 6,
                addresses: vec![],
                link_layer: None,
            },
            Interface {
                name: "eth0".into(),
                description: String::new(),
                flags: 0x16,
                addresses: vec![
                    Address {
                        address: "10.0.0.1".parse().unwrap(),
                        netmask: Some("255.255.0.0".parse().unwrap()),
                    },
                    Address { address: "fd00::1".parse().unwrap(), netmask: None },
                ],
                link_layer: Some(LinkLayer { ifindex: 3, address: [2, 0, 0, 0, 0, 9] }),
            },
        ];
        let mut payload = Vec::new();
        for interface in &interfaces {
            let before = payload.len();
            interface.write(&mut payload);
            assert_eq!(payload.len() - before, interface.encoded_len());
        }
        assert_eq!(Interface::read_all(&payload, 2).unwrap(), interfaces);
        Interface::read_all(&payload[..payload.len() - 1], 2).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), count: u16) {
            let _ = Auth::read(&bytes);
            let _ = read_auth_reply(&bytes);
            let _ = Interface::read_all(&bytes, count);
            let _ = OpenReply::read(&bytes);
            let _ = StartCapture::read(&bytes);
            let _ = StartCaptureReply::read(&bytes);
            let _ = Filter::read(&bytes);
            let _ = Stats::read(&bytes);
            let _ = Sampling::read(&bytes);
        }
    }
}
