//! What makes two frames the same packet.
//!
//! ```text
//! hashed:   protocol, DSCP, IP id, fragment, lengths, TCP seq..options (no checksum), payload
//! beside:   10 bits of source (address, port), 10 bits of destination
//! ignored:  link header, VLAN tag, TTL, IP and L4 checksum, ECN, link padding
//! ```
//!
//! Ports and addresses are not hashed, since translation changes one end on the way, or both. Two
//! frames are the same when hash and both ends agree; who knows that an end was put there by a
//! translation asks for a twin that agrees in the other ([`Table::find_twin`]). The spec's "at least
//! one end equal" is narrowed so: otherwise equal heartbeats of two pods to one server would silence
//! each other.
//!
//! [`Table::find_twin`]: super::Table::find_twin
//!
//! Frames that are not IP are hashed whole, link header included: bridges leave it alone.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::wire::{Address, Fragment, Headers, Network, protocol};

/// Which ends of a frame may be a translation's, and are ignored in the search for its twin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// The source.
    pub source: bool,
    /// The destination.
    pub destination: bool,
}

const END_BITS: u32 = 10;
const END_MASK: u64 = (1 << END_BITS) - 1;

/// A packet's name in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    hash: u64,
    /// Source and destination, 10 bits each, never 0.
    ends: u64,
}

impl Key {
    pub(super) fn hash(self) -> u64 {
        self.hash
    }

    /// Tag and ends, never 0.
    pub(super) fn id(self) -> u64 {
        let tag = (self.hash >> (2 * END_BITS)).max(1);
        tag << (2 * END_BITS) | self.ends
    }

    #[cfg(test)]
    pub(super) fn for_test(hash: u64, source: u64, destination: u64) -> Self {
        Self { hash, ends: source << END_BITS | destination }
    }
}

/// How many ends of the id's packet are those of the key, if it may be the key's twin: the hash is
/// the same and the ends that are not ignored agree.
pub(super) fn twin_ends(id: u64, key: Key, ignored: Translated) -> Option<u32> {
    let differs = id ^ key.id();
    if differs >> (2 * END_BITS) != 0 {
        return None;
    }
    let source = differs >> END_BITS & END_MASK == 0;
    let destination = differs & END_MASK == 0;
    ((source || ignored.source) && (destination || ignored.destination))
        .then_some(u32::from(source) + u32::from(destination))
}

/// Makes keys; the seed is this process's own, so that nobody can aim a collision.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprinter {
    seed: u64,
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
        Self { seed }
    }

    /// The key of a frame, or of a segment of it: `header` is the frame from its first byte to
    /// `headers.payload`, `payload` what follows, both without link padding.
    #[must_use]
    pub fn key(&self, headers: &Headers, header: &[u8], payload: &[u8]) -> Key {
        if headers.network == Network::Other {
            let hash = xxh3_64_with_seed(payload, xxh3_64_with_seed(header, self.seed));
            return Key { hash, ends: 1 << END_BITS | 1 };
        }
        let mut fields = Gathered { bytes: [0; 96], len: 0 };
        gather_network(&mut fields, headers, header, payload.len());
        let (source_port, destination_port) = gather_transport(&mut fields, headers, header);
        let seed = xxh3_64_with_seed(&fields.bytes[..fields.len], self.seed);
        let hash = xxh3_64_with_seed(payload, seed);
        let source = self.end(headers.source, source_port);
        let destination = self.end(headers.destination, destination_port);
        Key { hash, ends: source << END_BITS | destination }
    }

    /// Ten bits of an end, never 0.
    fn end(&self, address: Address, port: u16) -> u64 {
        // Multiply and fold: ten bits that need to differ, not to resist.
        let mixed = address.0 ^ (u128::from(port) << 64) ^ u128::from(self.seed);
        let low = u64::try_from(mixed & u128::from(u64::MAX)).expect("masked");
        let high = u64::try_from(mixed >> 64).expect("64 bits are left");
        let hash = (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - END_BITS)).max(1)
    }

    /// A seed from the operating system.
    ///
    /// # Errors
    ///
    /// When the system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        Ok(Self::new(getrandom::u64()?))
    }
}

fn gather_network(fields: &mut Gathered, headers: &Headers, header: &[u8], payload: usize) {
    let ip = &header[headers.l3..];
    let len = u32::try_from(headers.payload - headers.l4 + payload).unwrap_or(u32::MAX);
    fields.push(&[headers.protocol]);
    fields.push(&len.to_be_bytes());
    match headers.network {
        Network::V4 => {
            // DSCP without ECN; identification; fragment offset and flags.
            fields.push(&[ip[1] & 0xfc, ip[4], ip[5], ip[6], ip[7]]);
            if headers.l4 - headers.l3 > 20 {
                fields.push(&xxh3_64(&ip[20..headers.l4 - headers.l3]).to_be_bytes());
            }
        }
        Network::V6 => {
            // Traffic class without ECN, flow label.
            fields.push(&[ip[0], ip[1] & 0xcf, ip[2], ip[3]]);
            if let Some(Fragment { offset, more, id }) = headers.fragment {
                fields.push(&offset.to_be_bytes());
                fields.push(&[u8::from(more)]);
                fields.push(&id.to_be_bytes());
            }
        }
        Network::Other => {}
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
        protocol::ICMP | protocol::ICMPV6 if headers.has_transport() => {
            fields.push(&l4[..2]);
            fields.push(&l4[6..8]);
            let is_echo = match headers.protocol {
                protocol::ICMP => matches!(l4[0], 0 | 8),
                _ => matches!(l4[0], 128 | 129),
            };
            let id = u16::from_be_bytes([l4[4], l4[5]]);
            if is_echo {
                return (id, id); // translated as a port would be
            }
            fields.push(&l4[4..6]);
        }
        _ => {}
    }
    headers.ports.unwrap_or((0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> Vec<u8> {
        let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        data.extend([0x45, 0, 0, 44, 0x12, 0x34, 0x40, 0, 64, 6, 0xaa, 0xbb]);
        data.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        data.extend([0x9c, 0x40, 0x1f, 0x90, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 1, 0, 0xcc, 0xdd]);
        data.extend([0, 0, b'a', b'b', b'c', b'd']);
        data
    }

    fn key(data: &[u8]) -> Key {
        let headers = Headers::parse(data);
        let (header, payload) = data[..headers.end].split_at(headers.payload);
        Fingerprinter::new(7).key(&headers, header, payload)
    }

    #[test]
    fn what_a_host_changes_is_ignored() {
        let original = key(&tcp());
        // MACs, ECN, TTL, IP checksum, TCP checksum.
        for (at, value) in [(0, 9), (6, 9), (15, 3), (22, 63), (24, 1), (25, 1), (50, 1), (51, 1)] {
            let mut changed = tcp();
            assert_ne!(changed[at], value);
            changed[at] = value;
            assert_eq!(key(&changed), original, "byte {at}");
        }
        let mut padded = tcp();
        padded.extend([0; 2]);
        assert_eq!(key(&padded), original, "padding");
        let mut tagged = tcp();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        assert_eq!(key(&tagged), original, "a tag in the frame");
    }

    #[test]
    fn every_other_byte_counts() {
        let original = key(&tcp());
        let ignored: &[usize] = &[15, 22, 24, 25, 50, 51];
        for at in (15..tcp().len()).filter(|at| !ignored.contains(at)) {
            let mut changed = tcp();
            changed[at] ^= 4; // keeps version, header lengths and the protocol parseable
            if matches!(at, 16 | 17 | 23 | 46) {
                continue; // lengths, protocol: another shape altogether
            }
            assert_ne!(key(&changed), original, "byte {at}");
        }
        let mut dscp = tcp();
        dscp[15] = 0x20;
        assert_ne!(key(&dscp), original, "DSCP");
    }

    #[test]
    fn addresses_and_ports_are_in_the_ends_alone() {
        let original = key(&tcp());
        for at in [29, 33, 35, 37] {
            let mut changed = tcp();
            changed[at] ^= 1;
            let other = key(&changed);
            assert_eq!(other.hash, original.hash);
            assert_ne!(other.ends, original.ends, "byte {at}");
            assert_eq!(twin_ends(original.id(), other, Translated::default()), None);
        }
    }

    #[test]
    fn an_ignored_end_agrees_with_any_and_the_other_must_be_equal() {
        let original = key(&tcp());
        let mut snat = tcp();
        snat[29] = 9;
        snat[35] = 9;
        let [source, both] =
            [false, true].map(|destination| Translated { source: true, destination });
        assert_eq!(twin_ends(original.id(), key(&snat), source), Some(1));
        assert_eq!(twin_ends(key(&snat).id(), original, source), Some(1), "in either order");
        assert_eq!(twin_ends(original.id(), original, source), Some(2));
        snat[33] = 9;
        assert_eq!(twin_ends(original.id(), key(&snat), source), None);
        assert_eq!(twin_ends(original.id(), key(&snat), both), Some(0));
    }

    #[test]
    fn an_echo_id_is_a_port() {
        let mut echo = vec![0u8; 12];
        echo.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 8, 8, 8, 8]);
        echo.extend([8, 0, 0, 0, 0x11, 0x22, 0, 1]);
        let original = key(&echo);
        echo[14 + 20 + 4] = 0x33;
        assert_eq!(key(&echo).hash, original.hash);
        assert_ne!(key(&echo).ends, original.ends);
        echo[14 + 20] = 3; // unreachable: no id there
        assert_eq!(key(&echo).ends, {
            echo[14 + 20 + 4] = 0x11;
            key(&echo).ends
        });
    }

    #[test]
    fn a_tcp_header_of_any_length_fits_the_gathering() {
        for words in 5..=15usize {
            let mut data = tcp();
            data.truncate(54);
            data[46] = u8::try_from(words << 4).unwrap();
            data.resize(14 + 20 + words * 4, 1);
            let total = u16::try_from(data.len() - 14).unwrap();
            data[16..18].copy_from_slice(&total.to_be_bytes());
            assert!(Headers::parse(&data).has_transport());
            let _ = key(&data);
        }
    }
}
