//! The packet that an ICMP error is about, or its beginning: what of it a host leaves alone.
//!
//! ```text
//! | IP: all but TTL, checksum, addresses | L4: all but ports or id, and checksum | the rest |
//! ```
//!
//! A translation of the error's own address is one of these too.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::fingerprint::Query;
use crate::wire::{Headers, Network, protocol};

/// Hash of what follows an error's header; of all of it, if that is no packet.
pub(super) fn hash(quoted: &[u8], seed: u64) -> u64 {
    let Some(headers) = Headers::parse_ip(quoted, 0) else {
        return xxh3_64_with_seed(quoted, seed);
    };
    let ip = &quoted[..headers.l4];
    // A constant part follows the one before it as its seed; parts that are not there are empty.
    let part = |hash: u64, bytes: &[u8], from: usize, to: usize| {
        let part = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
        xxh3_64_with_seed(part, hash)
    };
    let mut hash = match headers.network {
        Network::V4 => {
            let hash = part(part(seed, ip, 0, 8), ip, 9, 10);
            part(hash, ip, 20, ip.len())
        }
        _ => part(part(seed, ip, 0, 7), ip, 40, ip.len()),
    };
    let l4 = &quoted[headers.l4..];
    let is_start = headers.fragment.is_none_or(|fragment| fragment.offset == 0);
    let constant: &[(usize, usize)] = match headers.protocol {
        _ if !is_start => &[(0, usize::MAX)],
        protocol::TCP => &[(4, 16), (18, usize::MAX)],
        protocol::UDP => &[(4, 6), (8, usize::MAX)],
        protocol::SCTP => &[(4, 8), (12, usize::MAX)],
        protocol::ICMP | protocol::ICMPV6
            if l4.first().is_some_and(|kind| Query::of(headers.protocol, *kind).is_some()) =>
        {
            &[(0, 2), (6, usize::MAX)]
        }
        protocol::ICMP | protocol::ICMPV6 => &[(0, 2), (4, usize::MAX)],
        _ => &[(0, usize::MAX)],
    };
    for (from, to) in constant {
        hash = part(hash, l4, *from, *to);
    }
    hash
}
