//! IPv4 options and IPv6 extension headers: what of them a host leaves alone.
//!
//! ```text
//! IPv4:  options: kind, length, data --> all, but not the data of routes and time stamps
//! IPv6:  hop-by-hop, destination: options --> all, but not the data of those that may change
//!        routing: all but the number of segments left; fragment: in `fingerprint`; AH: all
//! ```
//!
//! Where the host is a segment endpoint, the destination changes with each segment: that is
//! another packet. The address lists of routing types that swap addresses (0, 2, 3) count: they
//! change only where the destination does.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Options of IPv4 whose data routers write: record route, time stamp, loose and strict source
/// route.
const WRITTEN: [u8; 4] = [7, 68, 131, 137];
/// An option of IPv6 whose data may change en route.
const MAY_CHANGE: u8 = 0x20;

/// Hash of IPv4 options.
pub(super) fn hash_v4(mut options: &[u8], seed: u64) -> u64 {
    let mut hash = seed;
    // One byte alone: end of options, and a gap.
    while let [kind, rest @ ..] = options {
        let len = match (kind, rest) {
            (0 | 1, _) => 1,
            (_, [len, ..]) => usize::from(*len).clamp(2, options.len()),
            _ => options.len(),
        };
        let option = &options[..len];
        hash = match WRITTEN.contains(kind) {
            true => xxh3_64_with_seed(&option[..len.min(2)], hash),
            false => xxh3_64_with_seed(option, hash),
        };
        options = &options[len..];
    }
    hash
}

/// Hash of IPv6 extension headers, the first of which is of this kind.
pub(super) fn hash_v6(mut kind: u8, mut headers: &[u8], seed: u64) -> u64 {
    let mut hash = seed;
    // As `Headers::parse` has walked them: they are all there.
    while let [next, words, ..] = *headers {
        let len = match kind {
            44 => 8,
            51 => (usize::from(words) + 2) * 4,
            _ => (usize::from(words) + 1) * 8,
        };
        let header = &headers[..len.min(headers.len())];
        hash = match kind {
            0 | 60 => hash_v6_options(header, hash),
            43 if header.len() > 4 => {
                xxh3_64_with_seed(&header[4..], xxh3_64_with_seed(&header[..3], hash))
            }
            44 => xxh3_64_with_seed(&[next], hash),
            _ => xxh3_64_with_seed(header, hash),
        };
        kind = next;
        headers = &headers[header.len()..];
    }
    hash
}

fn hash_v6_options(header: &[u8], seed: u64) -> u64 {
    let (start, mut options) = header.split_at(header.len().min(2));
    let mut hash = xxh3_64_with_seed(start, seed);
    while let [kind, rest @ ..] = options {
        let len = match (kind, rest) {
            (0, _) => 1,
            (_, [len, ..]) => (usize::from(*len) + 2).min(options.len()),
            _ => options.len(),
        };
        let option = &options[..len];
        hash = match kind & MAY_CHANGE {
            0 => xxh3_64_with_seed(option, hash),
            _ => xxh3_64_with_seed(&option[..len.min(2)], hash),
        };
        options = &options[len..];
    }
    hash
}
