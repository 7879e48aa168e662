//! Packets as a sender makes them, and as they look at each place on the way.
//!
//! ```text
//! Packet (what nobody changes) + Look (ends, TTL, ECN mark here) --> IP packet --> Ethernet frame
//! ```
//!
//! Every checksum is right for the look, as if each node had computed it anew.

use std::net::IpAddr;

use crate::compare::checksum;

/// Address and port (or echo id; 0 where there is neither).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// IP address.
    pub address: IpAddr,
    /// Port or echo id.
    pub port: u16,
}

/// Both ends of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Who sent it.
    pub source: End,
    /// Whom it is for.
    pub destination: End,
}

impl Ends {
    /// Those of an answer.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp {
        /// Sequence number.
        sequence: u32,
        /// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR from the lowest bit.
        flags: u8,
        /// With a timestamp option.
        timestamp: Option<u32>,
    },
    /// A datagram.
    Udp,
    /// ICMP echo.
    Echo {
        /// The answer.
        is_reply: bool,
        /// Sequence number.
        sequence: u16,
    },
    /// An ICMP error about a packet; the ends of that are in the look.
    Error(Box<Packet>),
    /// An SCTP packet.
    Sctp {
        /// Verification tag.
        tag: u32,
    },
    /// A protocol without ports.
    Raw(u8),
}

/// A packet as its sender made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// DSCP.
    pub dscp: u8,
    /// IPv4 identification, and of IPv6 fragments.
    pub id: u16,
    /// An IPv4 option (router alert), or an IPv6 extension header (destination options).
    pub has_option: bool,
    /// See [`Body`].
    pub body: Body,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

/// What changes on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The ends.
    pub ends: Ends,
    /// The ends of the packet that an ICMP error is about.
    pub about: Option<Ends>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// A router marked it: ECT(0) became CE.
    pub is_marked: bool,
}

/// TCP flag bits.
pub mod flag {
    /// Last segment of a connection.
    pub const FIN: u8 = 0x01;
    /// First.
    pub const SYN: u8 = 0x02;
    /// Refused.
    pub const RST: u8 = 0x04;
    /// Hand over at once.
    pub const PSH: u8 = 0x08;
    /// Acknowledgment.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) fn low16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or(0)
}

pub(super) fn low32(number: usize) -> u32 {
    u32::try_from(number & 0xffff_ffff).unwrap_or(0)
}

impl Packet {
    fn protocol(&self, is_v6: bool) -> u8 {
        match &self.body {
            Body::Tcp { .. } => TCP,
            Body::Udp => UDP,
            Body::Echo { .. } | Body::Error(_) if is_v6 => 58,
            Body::Echo { .. } | Body::Error(_) => 1,
            Body::Sctp { .. } => SCTP,
            Body::Raw(protocol) => *protocol,
        }
    }

    /// The packet from its IP header on, with right checksums. Lengths past 64 kB are written as 0, as in super-frames.
    #[must_use]
    pub fn ip(&self, look: &Look) -> Vec<u8> {
        let l4 = self.transport(look);
        match (look.ends.source.address, look.ends.destination.address) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, self.dscp << 2 | ecn(look)];
                let header = if self.has_option { 24 } else { 20 };
                ip[0] = 0x40 | u8::try_from(header / 4).unwrap_or(5);
                ip.extend(length(header + l4.len()));
                ip.extend(self.id.to_be_bytes());
                ip.extend([0x40, 0, look.ttl, self.protocol(false), 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                if self.has_option {
                    ip.extend([0x94, 4, 0, 0]);
                }
                checksum::set_ipv4(&mut ip, header);
                ip.extend(l4);
                ip
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let class = self.dscp << 2 | ecn(look);
                let extension: &[u8] = &[self.protocol(true), 0, 1, 4, 0, 0, 0, 0];
                let extension = if self.has_option { extension } else { &[] };
                let mut ip = vec![0x60 | class >> 4, class << 4, 0x12, 0x34];
                ip.extend(length(extension.len() + l4.len()));
                let next = if self.has_option { DESTINATION_OPTIONS } else { self.protocol(true) };
                ip.extend([next, look.ttl]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(extension);
                ip.extend(l4);
                ip
            }
            _ => unreachable!("the two ends of a packet are of one family"),
        }
    }

    /// Transport header and payload.
    fn transport(&self, look: &Look) -> Vec<u8> {
        let Ends { source, destination } = look.ends;
        let mut l4 = Vec::new();
        let is_v6 = source.address.is_ipv6();
        let checksum_at = match &self.body {
            Body::Tcp { sequence, flags, timestamp } => {
                l4.extend(source.port.to_be_bytes());
                l4.extend(destination.port.to_be_bytes());
                l4.extend(sequence.to_be_bytes());
                l4.extend([0, 0, 7, 7]);
                l4.extend([if timestamp.is_some() { 0x80 } else { 0x50 }, *flags, 1, 0]);
                l4.extend([0; 4]);
                if let Some(timestamp) = timestamp {
                    l4.extend([1, 1, 8, 10]);
                    l4.extend(timestamp.to_be_bytes());
                    l4.extend([0, 0, 0, 9]);
                }
                Some(16)
            }
            Body::Udp => {
                l4.extend(source.port.to_be_bytes());
                l4.extend(destination.port.to_be_bytes());
                l4.extend(length(8 + self.payload.len()));
                l4.extend([0, 0]);
                Some(6)
            }
            Body::Echo { is_reply, sequence } => {
                let kind = match (is_v6, is_reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                l4.extend([kind, 0, 0, 0]);
                let id = if *is_reply { destination.port } else { source.port };
                l4.extend(id.to_be_bytes());
                l4.extend(sequence.to_be_bytes());
                Some(2)
            }
            Body::Error(about) => {
                // Port unreachable.
                l4.extend(if is_v6 { [1, 4] } else { [3, 3] });
                l4.extend([0; 6]);
                let ends = look.about.unwrap_or(look.ends.reversed());
                let mut quoted = about.ip(&Look { ends, about: None, ttl: 60, is_marked: false });
                quoted.truncate(200);
                l4.extend(quoted);
                Some(2)
            }
            Body::Sctp { tag } => {
                l4.extend(source.port.to_be_bytes());
                l4.extend(destination.port.to_be_bytes());
                l4.extend(tag.to_be_bytes());
                // Not a CRC32c, but of ports and all like one.
                let crc = u32::from(source.port) << 16 ^ u32::from(destination.port) ^ tag;
                l4.extend(crc.wrapping_mul(0x9e37_79b9).to_be_bytes());
                None
            }
            Body::Raw(_) => None,
        };
        l4.extend(&self.payload);
        if let Some(at) = checksum_at {
            let sum = checksum::l4(&addresses(&look.ends), self.protocol(is_v6), &l4);
            l4[at..at + 2].copy_from_slice(&sum);
        }
        l4
    }
}

/// Both addresses' octets, as a pseudo-header has them.
pub(super) fn addresses(ends: &Ends) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    [octets(ends.source.address), octets(ends.destination.address)].concat()
}

fn ecn(look: &Look) -> u8 {
    if look.is_marked { 3 } else { 2 }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(0).to_be_bytes()
}

/// An IP packet in fragments with at most `size` bytes (a multiple of 8) behind the IP header.
#[must_use]
pub fn fragments(ip: &[u8], size: usize) -> Vec<Vec<u8>> {
    let is_v4 = ip[0] >> 4 == 4;
    let header = if is_v4 { usize::from(ip[0] & 15) * 4 } else { 40 };
    let (head, data) = ip.split_at(header);
    let last = data.len().div_ceil(size).saturating_sub(1);
    data.chunks(size)
        .enumerate()
        .map(|(at, chunk)| {
            let mut fragment = head.to_vec();
            let more = u16::from(at != last);
            if is_v4 {
                fragment[2..4].copy_from_slice(&length(header + chunk.len()));
                let word = more << 13 | low16(at * size / 8);
                fragment[6..8].copy_from_slice(&word.to_be_bytes());
                checksum::set_ipv4(&mut fragment, header);
            } else {
                let next = fragment[6];
                fragment[6] = 44;
                fragment[4..6].copy_from_slice(&length(8 + chunk.len()));
                fragment.extend([next, 0]);
                fragment.extend((low16(at * size) | more).to_be_bytes());
                // Of the bytes that all fragments of one packet share.
                fragment.extend([7, 7, ip[2], ip[5]]);
            }
            fragment.extend(chunk);
            fragment
        })
        .collect()
}

/// An Ethernet frame of an IP packet; `link` makes the MAC addresses.
#[must_use]
pub fn ethernet(ip: &[u8], link: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, link, 2, 0, 0, 0, 1, link];
    frame.extend(if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    frame.extend(ip);
    frame
}
