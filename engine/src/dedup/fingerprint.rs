//! What makes two frames the same packet.
//!
//! ```text
//! hashed:   protocol, DSCP, IP id, fragment, lengths, options and extension headers, TCP seq..options,
//!           payload (of an ICMP error: what `quoted` leaves of the packet in it)
//! beside:   fingerprints of the two ends: address and port, or echo id at the asking end
//! ignored:  link header, VLAN tag, TTL, IP and L4 checksum, ECN, link padding
//! ```
//!
//! Ports and addresses are not hashed, since translation changes one end on the way, or both. Two
//! frames are the same when hash and both ends agree; who knows that an end was put there by a
//! translation asks for a twin that agrees in the other ([`Table::find_twin`]), and that has a pod's
//! address where this one has the node's or a service's, or the other way about ([`Marks`]). The spec's "at least
//! one end equal" is narrowed so: otherwise equal heartbeats of two pods to one server would silence
//! each other.
//!
//! Frames that are not IP are hashed whole, link header included: bridges leave it alone.
//!
//! [`Table::find_twin`]: super::Table::find_twin
//! [`Marks`]: super::Marks

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::key::{Key, fold};
use super::options;
use super::quoted;
use crate::wire::{Address, Fragment, Headers, Network, protocol};

/// Makes keys; the seed is this process's own, so that nobody can aim a collision.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprinter {
    seed: u64,
    /// From the seed: each as unknown to others as that.
    keys: [u64; 4],
    ignores_dscp: bool,
}

/// The fields in front of the payload, gathered for one hash call.
struct Gathered {
    bytes: [u8; 96],
    len: usize,
}

impl Gathered {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// TCP header with options.
const MAX_TCP: usize = 60;

impl Fingerprinter {
    /// With the given seed: any for a tap, a fixed one where output must repeat.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let key = |number: u64| xxh3_64_with_seed(&number.to_le_bytes(), seed) | 1;
        Self { seed, keys: [key(0), key(1), key(2), key(3)], ignores_dscp: false }
    }

    /// For other hashes that nobody may aim at.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A seed from the operating system.
    ///
    /// # Errors
    ///
    /// When the system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        Ok(Self::new(getrandom::u64()?))
    }

    /// Whether the DSCP is another thing that a host changes on the way.
    #[must_use]
    pub fn ignoring_dscp(self, ignores_dscp: bool) -> Self {
        Self { ignores_dscp, ..self }
    }

    /// The key, without marks, of a frame, or of a segment of it, whose headers these are.
    #[must_use]
    #[inline]
    pub fn key(&self, headers: &Headers, packet: &[u8]) -> Key {
        // Without link padding.
        let (header, payload) = packet[..headers.end].split_at(headers.payload);
        self.common_key(headers, header, payload)
            .unwrap_or_else(|| self.any_key(headers, header, payload))
    }

    /// Of TCP and UDP over IPv4 without options: the same fields, in words. Which way is taken is a
    /// matter of what no host changes, so all copies of a packet take the same.
    #[inline]
    fn common_key(&self, headers: &Headers, header: &[u8], payload: &[u8]) -> Option<Key> {
        let (Network::V4, Some((source_port, destination_port))) = (headers.network, headers.ports)
        else {
            return None;
        };
        let source = headers.source.as_v4()?;
        let destination = headers.destination.as_v4()?;
        let ip = header.get(headers.l3..headers.l4)?.first_chunk::<20>()?;
        let l4 = header.get(headers.l4..headers.payload)?;
        if headers.l4 - headers.l3 != 20 || headers.protocol == protocol::SCTP {
            return None;
        }
        let [k0, k1, k2, k3] = self.keys;
        let dscp = if self.ignores_dscp { 0 } else { 0xfc };
        let network = u64::from_be_bytes([0, 0, ip[9], ip[1] & dscp, ip[4], ip[5], ip[6], ip[7]]);
        let len = u64::try_from(l4.len() + payload.len()).unwrap_or(u64::MAX) << 32;
        let seed = match l4.split_first_chunk::<20>() {
            Some((tcp, options)) if headers.protocol == protocol::TCP => {
                // Offset, flags, window; sequence and acknowledgement; urgent pointer.
                let flags = u32::from_be_bytes([tcp[12], tcp[13], tcp[14], tcp[15]]);
                let mut mixed = fold(network ^ k0, (len | u64::from(flags)) ^ k1);
                let numbers =
                    tcp[4..12].first_chunk::<8>().map_or(0, |word| u64::from_be_bytes(*word));
                let urgent = u64::from(u16::from_be_bytes([tcp[18], tcp[19]]));
                mixed = fold(mixed ^ numbers, k2 ^ urgent);
                // A multiple of four bytes, their number told by the offset.
                for option in options.chunks(8) {
                    let word = match option.first_chunk::<8>() {
                        Some(word) => u64::from_be_bytes(*word),
                        None => option.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)),
                    };
                    mixed = fold(mixed ^ word, k3);
                }
                mixed
            }
            _ => {
                let udp_len = u64::from(u16::from_be_bytes([*l4.get(4)?, *l4.get(5)?]));
                fold(network ^ k0, (len | udp_len) ^ k1)
            }
        };
        let hash = xxh3_64_with_seed(payload, seed);
        let end = |address: u32, port: u16| {
            let word = u64::from(address) << 16 | u64::from(port);
            fold(fold(word ^ k2, 0xe703_7ed1_a0b4_28db) ^ k3, 0x8ebc_6af0_9c88_c6e3)
        };
        Some(Key::new(hash, end(source, source_port), end(destination, destination_port)))
    }

    #[inline(never)]
    fn any_key(&self, headers: &Headers, header: &[u8], payload: &[u8]) -> Key {
        if headers.network == Network::Other {
            let hash = xxh3_64_with_seed(payload, xxh3_64_with_seed(header, self.seed));
            return Key::new(hash, 0, 0);
        }
        let mut fields = Gathered { bytes: [0; 96], len: 0 };
        self.gather_network(&mut fields, headers, header, payload.len());
        let (source_port, destination_port) = gather_transport(&mut fields, headers, header);
        let seed = xxh3_64_with_seed(&fields.bytes[..fields.len], self.seed);
        let hash = match headers.is_icmp_error(header) {
            true => quoted::hash(payload, seed),
            false => xxh3_64_with_seed(payload, seed),
        };
        let source = self.end(headers.source, source_port);
        Key::new(hash, source, self.end(headers.destination, destination_port))
    }

    /// The hash of an end. Two that differ only rarely have equal ones; the seed keeps it so for
    /// those that choose their addresses and ports.
    fn end(&self, address: Address, port: u16) -> u64 {
        let low = u64::try_from(address.0 & u128::from(u64::MAX)).expect("masked");
        let high = u64::try_from(address.0 >> 64).expect("64 bits are left");
        let mixed = fold(low ^ self.seed, 0xe703_7ed1_a0b4_28db) ^ high;
        let mixed = fold(mixed.wrapping_add(self.seed), 0x8ebc_6af0_9c88_c6e3) ^ u64::from(port);
        fold(mixed.wrapping_add(self.seed.rotate_left(32)), 0x5899_65cc_7537_4cc3)
    }

    fn gather_network(
        &self,
        fields: &mut Gathered,
        headers: &Headers,
        header: &[u8],
        payload: usize,
    ) {
        let ip = &header[headers.l3..headers.l4];
        let len = u32::try_from(headers.payload - headers.l4 + payload).unwrap_or(u32::MAX);
        let dscp = if self.ignores_dscp { 0 } else { 0xfc };
        fields.push(&[headers.protocol]);
        fields.push(&len.to_be_bytes());
        match headers.network {
            Network::V4 => {
                // DSCP without ECN; identification; fragment offset and flags.
                fields.push(&[ip[1] & dscp, ip[4], ip[5], ip[6], ip[7]]);
                if ip.len() > 20 {
                    fields.push(&options::hash_v4(&ip[20..], self.seed).to_be_bytes());
                }
            }
            Network::V6 => {
                // Traffic class without ECN, flow label.
                let class = [ip[0] & (0xf0 | dscp >> 4), ip[1] & (0x0f | dscp << 4)];
                fields.push(&[class[0], class[1], ip[2], ip[3]]);
                // Without the identification: a host that follows connections puts fragments
                // together and sends them on with another (`ip6_fragment`).
                if let Some(Fragment { offset, more, .. }) = headers.fragment {
                    fields.push(&offset.to_be_bytes());
                    fields.push(&[u8::from(more)]);
                }
                if ip.len() > 40 {
                    let hash = options::hash_v6(ip[6], &ip[40..], self.seed);
                    fields.push(&hash.to_be_bytes());
                }
            }
            Network::Other => {}
        }
    }
}

/// The transport header without what translation and hardware change; its two ports, or what
/// stands for them.
fn gather_transport(fields: &mut Gathered, headers: &Headers, header: &[u8]) -> (u16, u16) {
    let l4 = &header[headers.l4..headers.payload];
    match headers.protocol {
        protocol::TCP if headers.has_transport() => {
            let l4 = &l4[..l4.len().min(MAX_TCP)];
            fields.push(&l4[4..16]); // seq, ack, offset and flags, window
            fields.push(&l4[18..]); // urgent pointer, options
        }
        protocol::UDP if headers.has_transport() => fields.push(&l4[4..6]),
        protocol::SCTP if headers.has_transport() => fields.push(&l4[4..8]), // verification tag
        protocol::ICMP | protocol::ICMPV6 if headers.has_transport() => {
            fields.push(&l4[..2]);
            fields.push(&l4[6..8]);
            let id = u16::from_be_bytes([l4[4], l4[5]]);
            // Translated as a port would be: the asking end's.
            match Query::of(headers.protocol, l4[0]) {
                Some(Query::Asks) => return (id, 0),
                Some(Query::Answers) => return (0, id),
                None => fields.push(&l4[4..6]),
            }
        }
        _ => {}
    }
    headers.ports.unwrap_or((0, 0))
}

/// An ICMP message with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Asks,
    Answers,
}

impl Query {
    /// Echo; of IPv4 also time stamp, information, address mask.
    pub(super) fn of(number: u8, kind: u8) -> Option<Self> {
        match (number, kind) {
            (protocol::ICMP, 8 | 13 | 15 | 17) | (protocol::ICMPV6, 128) => Some(Self::Asks),
            (protocol::ICMP, 0 | 14 | 16 | 18) | (protocol::ICMPV6, 129) => Some(Self::Answers),
            _ => None,
        }
    }
}
