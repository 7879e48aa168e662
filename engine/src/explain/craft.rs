//! Frames as a flow would send them, for the classifier to judge.
//!
//! ```text
//! Ends { source, destination: address and port }, protocol --> Ethernet | IP | TCP, UDP, ICMP, SCTP
//! ```
//!
//! Only what decides is in them: addresses, protocol, ports. Checksums stay zero, as they do where
//! the hardware is to fill them in.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Serialize, Serializer};

use crate::frame::{Direction, Frame, Offload, Point};
use crate::wire::{ethertype, protocol};

/// SCTP, whose ports stand where those of TCP do.
const SCTP: u8 = 132;

/// A protocol by its number; says its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocol(pub(super) u8);

const NAMES: [(&str, u8); 5] = [
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("icmp", protocol::ICMP),
    ("icmp6", protocol::ICMPV6),
    ("sctp", SCTP),
];

impl Protocol {
    pub(super) const TCP: Self = Self(protocol::TCP);

    /// By name, or by number.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, number)| *number);
        named.or_else(|| text.parse().ok()).map(Self)
    }

    pub(super) fn has_ports(self) -> bool {
        matches!(self.0, protocol::TCP | protocol::UDP | SCTP)
    }

    /// ICMP is another number in the other family.
    pub(super) fn of_family(self, is_v6: bool) -> Self {
        match self.0 {
            protocol::ICMP | protocol::ICMPV6 if is_v6 => Self(protocol::ICMPV6),
            protocol::ICMP | protocol::ICMPV6 => Self(protocol::ICMP),
            _ => self,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "protocol {}", self.0),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One end of a flow. Without a port, as of ICMP, or where any will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) source: End,
    pub(super) destination: End,
}

impl Ends {
    pub(super) fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.source, self.destination)
    }
}

/// A flow's first packet, or the answer to it.
pub(super) fn packet(ends: &Ends, protocol: Protocol, is_answer: bool) -> Vec<u8> {
    let ports = |at: End| at.port.unwrap_or(0).to_be_bytes();
    let mut l4 = Vec::new();
    if protocol.has_ports() {
        l4.extend(ports(ends.source));
        l4.extend(ports(ends.destination));
    }
    match protocol.0 {
        protocol::TCP => {
            let flags = if is_answer { 0x12 } else { 0x02 };
            l4.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        protocol::UDP => l4.extend([0, 8, 0, 0]),
        protocol::ICMP => l4.extend([if is_answer { 0 } else { 8 }, 0, 0, 0, 0, 1, 0, 1]),
        protocol::ICMPV6 => l4.extend([if is_answer { 129 } else { 128 }, 0, 0, 0, 0, 1, 0, 1]),
        _ => l4.extend([0; 16]),
    }
    ip(ends.source.address, ends.destination.address, protocol.0, &l4)
}

/// The outer packet of a tunnel in UDP.
pub(super) fn tunnel(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let end = |address, port| End { address, port: Some(port) };
    let ends = Ends { source: end(source, 49_152), destination: end(destination, port) };
    packet(&ends, Protocol(protocol::UDP), false)
}

fn ip(source: IpAddr, destination: IpAddr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let len = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let mut data = vec![0; 12];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = len(20 + l4.len());
            data.extend(ethertype::IPV4.to_be_bytes());
            data.extend([0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
            data.extend(source.octets());
            data.extend(destination.octets());
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let [high, low] = len(l4.len());
            data.extend(ethertype::IPV6.to_be_bytes());
            data.extend([0x60, 0, 0, 0, high, low, protocol, 64]);
            data.extend(octets(source));
            data.extend(octets(destination));
        }
    }
    data.extend(l4);
    data
}

/// The frame at a point.
pub(super) fn frame(data: &[u8], ifindex: u32, direction: Direction) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
        timestamp_ns: 0,
        point: Point { ifindex, direction },
        vlan: None,
        offload: Offload::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Headers;

    fn end(text: &str) -> End {
        let address: SocketAddr = text.parse().unwrap();
        End { address: address.ip(), port: Some(address.port()) }
    }

    #[test]
    fn what_is_made_parses_to_what_was_asked() {
        for (source, destination) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:3", "[fd00::2]:4")]
        {
            let ends = Ends { source: end(source), destination: end(destination) };
            for number in [protocol::TCP, protocol::UDP, protocol::ICMP, SCTP, 50] {
                let protocol = Protocol(number).of_family(ends.source.address.is_ipv6());
                let data = packet(&ends, protocol, false);
                let headers = Headers::parse(&data);
                assert_eq!(headers.protocol, protocol.0);
                assert_eq!(headers.source.to_ip(), ends.source.address);
                assert_eq!(headers.destination.to_ip(), ends.destination.address);
                assert_eq!(headers.end, data.len());
                if matches!(number, protocol::TCP | protocol::UDP) {
                    let ports = (ends.source.port.unwrap(), ends.destination.port.unwrap());
                    assert_eq!(headers.ports, Some(ports));
                }
            }
        }
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        for (text, number) in [("tcp", 6), ("UDP", 17), ("icmp", 1), ("132", 132), ("47", 47)] {
            assert_eq!(Protocol::parse(text), Some(Protocol(number)));
        }
        assert_eq!(Protocol::parse("tpc"), None);
        assert_eq!(Protocol(47).to_string(), "protocol 47");
        assert_eq!(Protocol::TCP.to_string(), "tcp");
    }
}
