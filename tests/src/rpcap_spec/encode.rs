//! Messages too long for a script, and the interface list.
//!
//! ```text
//! kind, value, payload --> 8 bytes and the payload       filter: 8 bytes and 8 for each instruction
//! ```

use super::kind;

/// A message (1.1).
///
/// # Panics
///
/// When the payload is longer than its length field can say.
#[must_use]
pub fn message(kind: u8, value: u16, payload: &[u8]) -> Vec<u8> {
    let plen = u32::try_from(payload.len()).expect("a payload of less than 4 GiB");
    let mut bytes = vec![0, kind];
    bytes.extend(value.to_be_bytes());
    bytes.extend(plen.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An instruction of classic BPF: code, jt, jf, k.
pub type Instruction = (u16, u8, u8, u32);

/// Accepts all of a frame.
pub const RET_ALL: Instruction = (6, 0, 0, 0x4_0000);

/// A filter (1.7), as UPDATEFILTER's payload or STARTCAP's tail.
///
/// # Panics
///
/// When there are more than 2^32 instructions.
#[must_use]
pub fn filter(instructions: &[Instruction]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0];
    bytes.extend(u32::try_from(instructions.len()).expect("few instructions").to_be_bytes());
    for (code, jt, jf, k) in instructions {
        bytes.extend(code.to_be_bytes());
        bytes.extend([*jt, *jf]);
        bytes.extend(k.to_be_bytes());
    }
    bytes
}

/// A PACKET message (2.1) with the whole of `frame`, or the first `caplen` bytes.
///
/// # Panics
///
/// When the frame is shorter than `caplen`.
#[must_use]
pub fn packet(number: u32, seconds: u32, micros: u32, frame: &[u8], caplen: usize) -> Vec<u8> {
    let length = |len: usize| u32::try_from(len).expect("a frame").to_be_bytes();
    let mut payload = Vec::new();
    payload.extend(seconds.to_be_bytes());
    payload.extend(micros.to_be_bytes());
    payload.extend(length(caplen));
    payload.extend(length(frame.len()));
    payload.extend(number.to_be_bytes());
    payload.extend(&frame[..caplen]);
    message(kind::PACKET, 0, &payload)
}

/// An entry of FINDALLIF's reply (1.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedInterface {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Flags.
    pub flags: u32,
    /// Address, netmask, broadcast, peer: 128 bytes each.
    pub addresses: Vec<[[u8; 128]; 4]>,
}

/// Reads the payload of FINDALLIF's reply; every byte must be accounted for.
///
/// # Panics
///
/// When it is not what the specification says.
#[must_use]
pub fn read_interfaces(count: u16, mut payload: &[u8]) -> Vec<OfferedInterface> {
    let mut interfaces = Vec::new();
    for number in 1..=count {
        let mut take = |len: usize, what: &str| {
            let (head, tail) = payload
                .split_at_checked(len)
                .unwrap_or_else(|| panic!("interface {number} of {count}: {what} is cut short"));
            payload = tail;
            head
        };
        let head = take(12, "its head");
        let half = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        assert_eq!(half(10), 0, "interface {number}: dummy");
        assert!(half(0) <= 1024 && half(2) <= 1024, "interface {number}: clients take no more");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let name = text(take(half(0).into(), "its name"));
        let description = text(take(half(2).into(), "its description"));
        let addresses = (0..half(8))
            .map(|_| [(); 4].map(|()| take(128, "an address").try_into().expect("128 bytes")))
            .collect();
        let flags = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        interfaces.push(OfferedInterface { name, description, flags, addresses });
    }
    assert!(payload.is_empty(), "{} bytes behind the list", payload.len());
    interfaces
}
