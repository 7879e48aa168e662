//! The fields of one segment that are its own.
//!
//! ```text
//! | IP length, id, checksum | UDP length, checksum | .. | IP length, id, checksum | TCP seq, flags, checksum |
//!       a tunnel's, if there is one                            the packet's own
//! ```
//!
//! Innermost first: the outer checksum covers the inner one.

use super::plan::{Plan, checksum_offset};
use crate::frame::internet_checksum;
use crate::wire::{Headers, Network, protocol};

pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_PSH: u8 = 0x08;
pub(super) const TCP_CWR: u8 = 0x80;
/// In the byte of the data offset. Only AccECN sets it, where CWR is a digit of a counter.
const TCP_AE: u8 = 0x01;

/// Which segment it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: usize,
    /// Bytes of payload before it.
    pub(super) offset: usize,
    /// Bytes of payload in it, captured or not.
    pub(super) len: usize,
    pub(super) is_last: bool,
}

impl Plan {
    /// Makes of `segment`, which is the common headers and its part of the payload, that segment.
    pub(super) fn fix(&self, segment: &mut [u8], place: Place) {
        let inner = &self.inner;
        let end = inner.payload + place.len;
        // Of a segment that is not all there, no checksum can be made.
        let is_whole = segment.len() == end;
        fix_network(segment, inner, end, place.at);
        if inner.protocol == protocol::TCP {
            fix_tcp(segment, inner.l4, place);
        } else {
            put16(segment, inner.l4 + 4, low16(end - inner.l4));
        }
        if let Some(pseudo) = self.pseudo.filter(|_| is_whole) {
            put_checksum(segment, inner, pseudo);
        }
        let Some(outer) = self.outer else { return };
        fix_network(segment, &outer.headers, end, place.at);
        if outer.is_udp {
            put16(segment, outer.headers.l4 + 4, low16(end - outer.headers.l4));
        }
        if let Some(pseudo) = outer.pseudo.filter(|_| is_whole) {
            put_checksum(segment, &outer.headers, pseudo);
        }
    }
}

fn low16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).expect("masked")
}

fn put16(segment: &mut [u8], at: usize, value: u16) {
    segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn fix_network(segment: &mut [u8], headers: &Headers, end: usize, at: usize) {
    let (l3, l4) = (headers.l3, headers.l4);
    match headers.network {
        Network::V4 => {
            put16(segment, l3 + 2, low16(end - l3));
            let id = u16::from_be_bytes([segment[l3 + 4], segment[l3 + 5]]);
            put16(segment, l3 + 4, id.wrapping_add(low16(at)));
            put16(segment, l3 + 10, 0);
            let sum = internet_checksum(&segment[l3..l4]);
            put16(segment, l3 + 10, sum);
        }
        Network::V6 => put16(segment, l3 + 4, low16(end - l3 - 40)),
        Network::Other => {}
    }
}

fn fix_tcp(segment: &mut [u8], l4: usize, place: Place) {
    let sequence =
        u32::from_be_bytes([segment[l4 + 4], segment[l4 + 5], segment[l4 + 6], segment[l4 + 7]]);
    let offset = u32::try_from(place.offset & 0xffff_ffff).expect("masked");
    segment[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
    let is_accurate_ecn = segment[l4 + 12] & TCP_AE != 0;
    if place.at != 0 && !is_accurate_ecn {
        segment[l4 + 13] &= !TCP_CWR;
    }
    if !place.is_last {
        segment[l4 + 13] &= !(TCP_FIN | TCP_PSH);
    }
}

/// Adds in one's complement.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

fn folded(len: usize) -> u16 {
    add(low16(len), low16(len >> 16))
}

/// The pseudo-header's part of a transport checksum, but for the length.
pub(super) fn pseudo_sum(headers: &Headers) -> u16 {
    // The sum is the same with IPv4-mapped addresses, but for the mapping's ffff, which is one's
    // complement zero.
    let mut pseudo = [0u8; 34];
    pseudo[..16].copy_from_slice(&headers.source.0.to_be_bytes());
    pseudo[16..32].copy_from_slice(&headers.destination.0.to_be_bytes());
    pseudo[33] = headers.protocol;
    !internet_checksum(&pseudo)
}

/// The same from what a host leaves in the checksum field of `len` bytes.
pub(super) fn pseudo_sum_of_seed(seed: u16, len: usize) -> u16 {
    add(seed, !folded(len))
}

/// Puts in the checksum of the transport header of `headers` and what follows.
fn put_checksum(segment: &mut [u8], headers: &Headers, pseudo: u16) {
    let at = headers.l4 + checksum_offset(headers.protocol);
    put16(segment, at, 0);
    let covered = &segment[headers.l4..];
    let sum = !add(add(pseudo, folded(covered.len())), !internet_checksum(covered));
    // UDP has a meaning of its own for 0; elsewhere the two are the same number.
    let sum = if sum == 0 && headers.protocol == protocol::UDP { 0xffff } else { sum };
    put16(segment, at, sum);
}
