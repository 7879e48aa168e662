//! Which bits of a packet are the same wherever it is seen.
//!
//! ```text
//! family, protocols, ends, offset --> Value { bits that may differ, or the number that it is }
//! ```
//!
//! The mirror of `dedup::fingerprint` (what is hashed is equal in copies) and of `segment` (what
//! the cutter writes differs between a super-frame and its segments).

use std::net::IpAddr;

use super::super::op::Size;
use super::value::{Kind, Value};
use super::{Ends, Family};
use crate::wire::{ethertype, protocol};

/// Sets of transport protocols, as bits.
pub(super) mod protocols {
    pub(in super::super) const TCP: u8 = 1;
    pub(in super::super) const UDP: u8 = 2;
    pub(in super::super) const ICMP: u8 = 4;
    pub(in super::super) const OTHERS: u8 = 8;
}

/// Offset of the IP header, and of the protocol and the transport header in either family.
const L3: u32 = 14;
const V4_PROTOCOL: u32 = L3 + 9;
const V6_PROTOCOL: u32 = L3 + 6;
const V4_L4: u32 = L3 + 20;
const V6_L4: u32 = L3 + 40;

/// Every bit of the byte may differ.
const VARIES: u8 = 0xff;
/// FIN, PSH and CWR: on one segment of a super-frame only.
const SEGMENT_FLAGS: u8 = 0x89;

/// What can follow the IP header.
pub(super) fn all_protocols(family: Family) -> u8 {
    let known = protocols::TCP | protocols::UDP | protocols::ICMP;
    match family {
        Family::V6 => known,
        _ => known | protocols::OTHERS,
    }
}

/// The set with one protocol by its number.
pub(super) fn protocol_set(family: Family, number: u32) -> u8 {
    let icmp = if family == Family::V6 { protocol::ICMPV6 } else { protocol::ICMP };
    match u8::try_from(number) {
        Ok(protocol::TCP) => protocols::TCP,
        Ok(protocol::UDP) => protocols::UDP,
        Ok(number) if number == icmp => protocols::ICMP,
        _ => protocols::OTHERS,
    }
}

/// Bytes that every frame of the family has, as the caller makes sure.
pub(super) fn certain(family: Family) -> u32 {
    match family {
        Family::V6 => V6_L4 + 20,
        Family::V4 | Family::Other => V4_L4 + 20,
        Family::Tagged => u32::MAX,
    }
}

/// One byte of a packet.
#[derive(Clone, Copy)]
enum Byte {
    /// These bits may differ, the others are equal in all copies.
    Varies(u8),
    Known(u8),
}

const SAME: Byte = Byte::Varies(0);
const DIFFERS: Byte = Byte::Varies(VARIES);

/// What a load at `at` answers, where the transport is one of `possible`.
pub(super) fn load(family: Family, ends: Ends, possible: u8, size: Size, at: u32) -> Value {
    let mut value = Value::known(0);
    let mut known = Some(0u32);
    for offset in 0..size.bytes() {
        let at = at.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX));
        let (taint, number) = match byte(family, ends, possible, at) {
            Byte::Varies(bits) => (bits, None),
            Byte::Known(number) => (0, Some(number)),
        };
        value.varies = value.varies << 8 | u32::from(taint);
        known = known.zip(number).map(|(known, number)| known << 8 | u32::from(number));
    }
    value.known = known;
    value.kind = match (family, size, at) {
        (Family::V4, Size::Byte, V4_PROTOCOL) | (Family::V6, Size::Byte, V6_PROTOCOL) => {
            Kind::Protocol
        }
        (Family::Other, Size::Half, 12) => Kind::EtherType,
        (Family::Tagged, Size::Half, 12) => Kind::TagProtocol,
        _ => Kind::Plain,
    };
    value
}

fn byte(family: Family, ends: Ends, possible: u8, at: u32) -> Byte {
    if let (Family::V4 | Family::V6, Ends::Flow(number)) = (family, ends) {
        return of_flow(family, number, at);
    }
    match (family, at) {
        // Of frames that are not IP the addresses are hashed, but a bridge may still flood.
        (_, 0..12) | (Family::Tagged, _) => DIFFERS,
        (Family::V4, _) => v4(ends, possible, at),
        (Family::V6, _) => v6(ends, possible, at),
        // Hashed whole.
        (Family::Other, _) => SAME,
    }
}

/// What all packets of all flows of a protocol have in common.
fn of_flow(family: Family, number: u8, at: u32) -> Byte {
    let kind = if family == Family::V6 { ethertype::IPV6 } else { ethertype::IPV4 };
    match (family, at) {
        (_, 12) => Byte::Known(kind.to_be_bytes()[0]),
        (_, 13) => Byte::Known(kind.to_be_bytes()[1]),
        // The version; a packet of the flow may have options.
        (_, 14) => Byte::Varies(0x0f),
        (Family::V4, V4_PROTOCOL) | (Family::V6, V6_PROTOCOL) => Byte::Known(number),
        _ => DIFFERS,
    }
}

fn v4(ends: Ends, possible: u8, at: u32) -> Byte {
    let kind = ethertype::IPV4.to_be_bytes();
    match at {
        12 => Byte::Known(kind[0]),
        13 => Byte::Known(kind[1]),
        14 => Byte::Known(0x45),
        // ECN and, if the tap is told so, DSCP; length, identification; time to live; checksum.
        15..20 | 22 | 24 | 25 => DIFFERS,
        20 | 21 | V4_PROTOCOL => SAME,
        26..30 => match ends {
            Ends::Seen | Ends::To(_) => SAME,
            Ends::From(IpAddr::V4(source)) => octet(&source.octets(), at - 26),
            Ends::From(IpAddr::V6(_)) | Ends::Unknown | Ends::Flow(_) => DIFFERS,
        },
        30..V4_L4 => destination(ends, at - 30),
        _ => transport(ends, possible, at - V4_L4),
    }
}

fn v6(ends: Ends, possible: u8, at: u32) -> Byte {
    let kind = ethertype::IPV6.to_be_bytes();
    match at {
        12 => Byte::Known(kind[0]),
        13 => Byte::Known(kind[1]),
        // ECN and, if the tap is told so, DSCP.
        14 => Byte::Varies(0x0f),
        15 => Byte::Varies(0xf0),
        16 | 17 | V6_PROTOCOL => SAME,
        // Length; hop limit.
        18 | 19 | 21 => DIFFERS,
        22..38 => match ends {
            Ends::Seen | Ends::To(_) => SAME,
            Ends::From(IpAddr::V6(source)) => octet(&source.octets(), at - 22),
            Ends::From(IpAddr::V4(_)) | Ends::Unknown | Ends::Flow(_) => DIFFERS,
        },
        38..V6_L4 => destination(ends, at - 38),
        _ => transport(ends, possible, at - V6_L4),
    }
}

fn octet(octets: &[u8], at: u32) -> Byte {
    octets.get(at as usize).map_or(DIFFERS, |octet| Byte::Known(*octet))
}

/// A byte of the destination's address.
fn destination(ends: Ends, at: u32) -> Byte {
    match ends {
        Ends::Seen | Ends::From(_) => SAME,
        Ends::To(IpAddr::V4(to)) => octet(&to.octets(), at),
        Ends::To(IpAddr::V6(to)) => octet(&to.octets(), at),
        Ends::Unknown | Ends::Flow(_) => DIFFERS,
    }
}

/// A byte behind the IP header; it differs if it does in any of the possible protocols.
fn transport(ends: Ends, possible: u8, at: u32) -> Byte {
    let source_port = match ends {
        Ends::Seen | Ends::To(_) => 0,
        Ends::From(_) | Ends::Unknown | Ends::Flow(_) => VARIES,
    };
    let destination_port = match ends {
        Ends::Seen | Ends::From(_) => 0,
        Ends::To(_) | Ends::Unknown | Ends::Flow(_) => VARIES,
    };
    let of = |protocol: u8| match (protocol, at) {
        // Type and code; what follows the identifier, which is translated as a port would be.
        (protocols::ICMP, 0 | 1 | 6 | 7) => 0,
        (protocols::ICMP, _) => VARIES,
        (_, 0 | 1) => source_port,
        (_, 2 | 3) => destination_port,
        // Acknowledgement and header length; window; urgent pointer.
        (protocols::TCP, 8..=12 | 14 | 15 | 18 | 19) => 0,
        (protocols::TCP, 13) => SEGMENT_FLAGS,
        // Payload to the key, and as much of it as any of these packets has, but for SCTP's checksum.
        (protocols::OTHERS, 4..8 | 12..20) => 0,
        _ => VARIES,
    };
    let bits = [protocols::TCP, protocols::UDP, protocols::ICMP, protocols::OTHERS];
    let possible = bits.into_iter().filter(|bit| possible & bit != 0);
    Byte::Varies(possible.fold(0, |varies, protocol| varies | of(protocol)))
}
