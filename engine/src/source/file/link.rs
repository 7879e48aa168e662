//! Link headers other than Ethernet, turned into Ethernet.
//!
//! ```text
//! captured   | SLL, SLL2, NULL, LOOP header | IP packet ...      or   | IP packet ...
//! handed out | 00:00:00:00:00:00 twice, ethertype | IP packet ...
//! ```
//!
//! The MAC addresses are zero because these headers hold one address at most: a made-up pair would
//! look like a captured one. SLL and SLL2 also tell the direction.

use crate::frame::Direction;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_HEADER: usize = 14;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A link type that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Ethernet,
    /// An IP packet, its version in its first four bits.
    Raw,
    /// Address family in the byte order of the host that captured.
    Null,
    /// Address family, big-endian.
    Loop,
    Sll,
    Sll2,
}

/// What stands in front of the payload, instead of the `skip` bytes that were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replacement {
    pub(super) header: [u8; ETHERNET_HEADER],
    pub(super) skip: usize,
    pub(super) direction: Option<Direction>,
}

impl Link {
    /// The numbers as files carry them (`LINKTYPE_*`), and 12 and 14, which systems with another
    /// `DLT_RAW` than Linux's wrote.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Null,
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            108 => Self::Loop,
            113 => Self::Sll,
            276 => Self::Sll2,
            _ => return None,
        })
    }

    /// The Ethernet header for a frame of this type; `None` if the frame's own link header is not
    /// whole or names no protocol that Ethernet has a number for. Not for [`Link::Ethernet`].
    pub(super) fn to_ethernet(self, data: &[u8]) -> Option<Replacement> {
        let (ethertype, skip, direction) = match self {
            Self::Ethernet => return None,
            Self::Raw => (ip_ethertype(*data.first()?)?, 0, None),
            Self::Null => {
                let family = u32::from_le_bytes(*data.first_chunk()?);
                // Families are small numbers: a large one was written by the other byte order.
                let family = if family > 0xffff { family.swap_bytes() } else { family };
                (family_ethertype(family)?, 4, None)
            }
            Self::Loop => (family_ethertype(u32::from_be_bytes(*data.first_chunk()?))?, 4, None),
            Self::Sll => {
                let header: &[u8; 16] = data.first_chunk()?;
                let direction = direction(u16::from_be_bytes([header[0], header[1]]));
                let protocol = u16::from_be_bytes([header[14], header[15]]);
                (sll_ethertype(protocol, data.len() - 16)?, 16, Some(direction))
            }
            Self::Sll2 => {
                let header: &[u8; 20] = data.first_chunk()?;
                let protocol = u16::from_be_bytes([header[0], header[1]]);
                let direction = direction(u16::from(header[10]));
                (sll_ethertype(protocol, data.len() - 20)?, 20, Some(direction))
            }
        };
        let mut header = [0; ETHERNET_HEADER];
        header[12..].copy_from_slice(&ethertype.to_be_bytes());
        Some(Replacement { header, skip, direction })
    }
}

/// `sll_pkttype`: 4 is `PACKET_OUTGOING`.
fn direction(packet_type: u16) -> Direction {
    if packet_type == 4 { Direction::Out } else { Direction::In }
}

fn ip_ethertype(first: u8) -> Option<u16> {
    match first >> 4 {
        4 => Some(ETHERTYPE_IPV4),
        6 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

/// `AF_INET` is 2 everywhere; `AF_INET6` depends on the system: Linux 10, NetBSD and OpenBSD 24,
/// FreeBSD 28, Darwin 30.
fn family_ethertype(family: u32) -> Option<u16> {
    match family {
        2 => Some(ETHERTYPE_IPV4),
        10 | 24 | 28 | 30 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

/// Protocols from 0x600 on are ethertypes. 4 is `ETH_P_802_2`: an LLC frame, whose Ethernet header
/// has the length there.
fn sll_ethertype(protocol: u16, payload: usize) -> Option<u16> {
    match protocol {
        4 => u16::try_from(payload).ok().filter(|length| *length <= 1500),
        0x600.. => Some(protocol),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(link: Link, data: &[u8]) -> Option<(u16, usize, Option<Direction>)> {
        let replacement = link.to_ethernet(data)?;
        assert_eq!(replacement.header[..12], [0; 12]);
        let ethertype = u16::from_be_bytes([replacement.header[12], replacement.header[13]]);
        Some((ethertype, replacement.skip, replacement.direction))
    }

    #[test]
    fn a_raw_packet_says_its_version_itself() {
        assert_eq!(converted(Link::Raw, &[0x45]), Some((0x0800, 0, None)));
        assert_eq!(converted(Link::Raw, &[0x60]), Some((0x86dd, 0, None)));
        assert_eq!(converted(Link::Raw, &[0x10]), None);
        assert_eq!(converted(Link::Raw, &[]), None);
    }

    #[test]
    fn the_family_is_read_in_either_byte_order() {
        assert_eq!(converted(Link::Null, &[2, 0, 0, 0]), Some((0x0800, 4, None)));
        assert_eq!(converted(Link::Null, &[0, 0, 0, 30]), Some((0x86dd, 4, None)));
        assert_eq!(converted(Link::Loop, &[0, 0, 0, 24]), Some((0x86dd, 4, None)));
        assert_eq!(converted(Link::Loop, &[2, 0, 0, 0]), None);
        assert_eq!(converted(Link::Null, &[2, 0, 0]), None);
    }

    #[test]
    fn a_cooked_header_tells_direction_and_protocol() {
        let mut sll = [0u8; 17];
        sll[14..16].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(converted(Link::Sll, &sll), Some((0x0806, 16, Some(Direction::In))));
        sll[1] = 4;
        assert_eq!(converted(Link::Sll, &sll), Some((0x0806, 16, Some(Direction::Out))));
        assert_eq!(converted(Link::Sll, &sll[..15]), None);
        let mut sll2 = [0u8; 20];
        sll2[..2].copy_from_slice(&[0x86, 0xdd]);
        sll2[10] = 4;
        assert_eq!(converted(Link::Sll2, &sll2), Some((0x86dd, 20, Some(Direction::Out))));
        assert_eq!(converted(Link::Sll2, &sll2[..19]), None);
    }

    #[test]
    fn an_llc_frame_gets_its_length() {
        let mut sll = [0u8; 16 + 38];
        sll[15] = 4;
        assert_eq!(converted(Link::Sll, &sll), Some((38, 16, Some(Direction::In))));
        sll[15] = 1;
        assert_eq!(converted(Link::Sll, &sll), None);
    }
}
