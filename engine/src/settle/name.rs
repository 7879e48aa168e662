//! Which flow a packet belongs to: one number for both directions, seeded.
//!
//! ```text
//! frame, headers ---> protocol, {(address, port or echo id), ...} in order --xxh3, seed--> u64
//! ICMP error -------> the same, of the packet that it is about
//! first fragment ---> memory: (addresses, protocol, id) -> u64 <- its later fragments
//! ```

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::wire::{Address, Headers, be16, protocol};

/// What settling wants to know of a packet's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// Never 0.
    pub(super) name: u64,
    /// The first packet of a TCP connection: what was known of the flow is of an earlier one.
    pub(super) opens: bool,
    /// An ICMP error.
    pub(super) is_error: bool,
}

/// Sets of the memory of fragmented packets, two each: 32 KiB. The older of the two goes; a later
/// fragment whose first one is not known is a flow of its own.
const SETS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Namer {
    seed: u64,
    /// Packet and flow; 0 is none. Plain numbers: memory of zeros is not touched before it is used.
    fragmented: Box<[[[u64; 2]; 2]]>,
}

impl Namer {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, fragmented: vec![[[0; 2]; 2]; SETS].into() }
    }

    pub(super) fn name(&mut self, data: &[u8], headers: &Headers) -> Flow {
        if let Some(about) = headers.embedded(data) {
            return Flow { name: self.flow(data, &about), opens: false, is_error: true };
        }
        let is_tcp = headers.protocol == protocol::TCP && headers.has_transport();
        // SYN without ACK.
        let opens = is_tcp && data.get(headers.l4 + 13).is_some_and(|flags| flags & 0x12 == 2);
        let name = match headers.fragment {
            None => self.flow(data, headers),
            Some(fragment) => {
                let packet = self.hash(headers, [0, 0], 1 + u64::from(fragment.id));
                let slot = usize::try_from(packet % SETS as u64).expect("less than SETS");
                let known = self.fragmented[slot].iter().find(|known| known[0] == packet);
                match known {
                    Some(known) if fragment.offset != 0 => known[1],
                    None if fragment.offset != 0 => packet,
                    _ => {
                        let flow = self.flow(data, headers);
                        let set = &mut self.fragmented[slot];
                        if set[0][0] != packet {
                            set[1] = set[0];
                        }
                        set[0] = [packet, flow];
                        flow
                    }
                }
            }
        };
        Flow { name, opens, is_error: false }
    }

    fn flow(&self, data: &[u8], headers: &Headers) -> u64 {
        let (source, destination) = headers.ports.unwrap_or_else(|| {
            let id = echo_id(data, headers).unwrap_or(0);
            (id, id)
        });
        self.hash(headers, [source, destination], 0)
    }

    fn hash(&self, headers: &Headers, [source, destination]: [u16; 2], packet: u64) -> u64 {
        let ends = [(headers.source, source), (headers.destination, destination)];
        let [low, high]: [(Address, u16); 2] =
            if ends[0] <= ends[1] { ends } else { [ends[1], ends[0]] };
        let mut bytes = [0; 45];
        bytes[0] = headers.protocol;
        bytes[1..17].copy_from_slice(&low.0.0.to_be_bytes());
        bytes[17..19].copy_from_slice(&low.1.to_be_bytes());
        bytes[19..35].copy_from_slice(&high.0.0.to_be_bytes());
        bytes[35..37].copy_from_slice(&high.1.to_be_bytes());
        bytes[37..].copy_from_slice(&packet.to_be_bytes());
        xxh3_64_with_seed(&bytes, self.seed).max(1)
    }
}

/// The number that stands for a port in a ping and its answer.
fn echo_id(data: &[u8], headers: &Headers) -> Option<u16> {
    let kind = *data.get(headers.l4)?;
    let is_echo = headers.fragment.is_none_or(|fragment| fragment.offset == 0)
        && match headers.protocol {
            protocol::ICMP => matches!(kind, 0 | 8),
            protocol::ICMPV6 => matches!(kind, 128 | 129),
            _ => false,
        };
    if is_echo { be16(data, headers.l4 + 4) } else { None }
}
