//! Payloads of the control messages, both sides of each; interface lists are `interfaces`'.
//!
//! ```text
//! client: Auth  StartCapture(Filter)  Filter  Sampling     daemon: OpenReply  StartCaptureReply  Stats
//! ```

use super::read::{Malformed, Reader};

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

    /// The payload of a request with a password; each text is cut to the 65,535 bytes that fit.
    #[must_use]
    pub fn password_request(user: &str, password: &str) -> Vec<u8> {
        let texts =
            [user, password].map(|text| &text.as_bytes()[..text.len().min(u16::MAX.into())]);
        let mut payload = vec![0, 1, 0, 0];
        for text in texts {
            payload.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
        payload.extend(texts.concat());
        payload
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

/// True if an AUTH reply, which [`read_auth_reply`] has accepted, comes from a daemon of the other
/// byte order. Fields inside frames that are in host order (USB, NFLOG) are then not in ours.
#[must_use]
pub fn auth_reply_is_swapped(payload: &[u8]) -> bool {
    payload.get(4..8).is_some_and(|magic| *magic == 0xa1b2_c3d4_u32.swap_bytes().to_ne_bytes())
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

    /// The payload.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let [v0, v1, v2, v3] = self.value.to_be_bytes();
        [self.method, 0, 0, 0, v0, v1, v2, v3]
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
    fn the_magic_tells_the_daemon_s_byte_order() {
        let mut swapped = Auth::reply();
        swapped[4..].reverse();
        read_auth_reply(&swapped).unwrap();
        assert!(auth_reply_is_swapped(&swapped));
        for same in [&Auth::reply()[..], &[], &[0, 0]] {
            assert!(!auth_reply_is_swapped(same));
        }
    }

    #[test]
    fn sampling_survives_the_wire() {
        // Not the truncated value 0 that libpcap's client sends.
        let sampling = Sampling { method: 1, value: 0x0102_0304 };
        assert_eq!(sampling.to_bytes(), [1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Sampling::read(&sampling.to_bytes()), Ok(sampling));
    }

    #[test]
    fn a_password_is_never_printed() {
        let auth = Auth::read(b"\0\x01\0\0\0\x01\0\x06usecret").unwrap();
        assert!(
            matches!(&auth, Auth::Password { user, password } if user == b"u" && password == b"secret")
        );
        assert!(!format!("{auth:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Auth::read(&bytes);
            let _ = read_auth_reply(&bytes);
            let _ = OpenReply::read(&bytes);
            let _ = StartCapture::read(&bytes);
            let _ = StartCaptureReply::read(&bytes);
            let _ = Filter::read(&bytes);
            let _ = Stats::read(&bytes);
            let _ = Sampling::read(&bytes);
        }
    }
}
