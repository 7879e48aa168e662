//! One captured packet from its network header on, and where its fields are.
//!
//! The link header and VLAN tags are gone: a node writes its own. Lengths are checked once, in
//! [`Packet::parse`]; a packet that is cut short keeps its bytes and loses its fields.

use super::checksum;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    ethertype: u16,
    data: Vec<u8>,
    cut_short: bool,
    ip: Option<Ip>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// A part of a packet: first or later.
    pub(crate) fragment: bool,
    /// Where the transport header is, complete as far as its fixed part goes; `None` in later
    /// fragments and for protocols without ports or checksum that we know.
    pub(crate) l4: Option<usize>,
    /// Bytes of `data` that the IP header accounts for; the rest is padding of the link.
    pub(crate) length: usize,
}

impl Packet {
    /// Takes the bytes after the link header. `cut_short`: the capture has not all of them.
    #[must_use]
    pub fn parse(ethertype: u16, data: Vec<u8>, cut_short: bool) -> Self {
        let ip = match ethertype {
            IPV4 => ipv4(&data),
            IPV6 => ipv6(&data),
            _ => None,
        };
        Self { ethertype, data, cut_short, ip }
    }

    /// Type of the network header, such as 0x0800.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// All bytes from the network header on, link padding included.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// True when the capture does not have the whole packet.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// True for IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.ethertype == IPV6
    }

    /// True for a fragment, first or later.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.ip.is_some_and(|ip| ip.fragment)
    }

    /// IP source address.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.ip.map(|ip| ip.source)
    }

    /// IP destination address.
    #[must_use]
    pub fn destination(&self) -> Option<IpAddr> {
        self.ip.map(|ip| ip.destination)
    }

    /// Transport protocol number.
    #[must_use]
    pub fn protocol(&self) -> Option<u8> {
        self.ip.map(|ip| ip.protocol)
    }

    /// TCP or UDP source port; none in later fragments.
    #[must_use]
    pub fn source_port(&self) -> Option<u16> {
        self.port(0)
    }

    /// TCP or UDP destination port; none in later fragments.
    #[must_use]
    pub fn destination_port(&self) -> Option<u16> {
        self.port(2)
    }

    /// True when either port is this one.
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.source_port() == Some(port) || self.destination_port() == Some(port)
    }

    /// True when either address is this one.
    #[must_use]
    pub fn has_address(&self, address: impl Into<IpAddr>) -> bool {
        let address = Some(address.into());
        self.source() == address || self.destination() == address
    }

    /// True when the two ends are these, in either direction.
    #[must_use]
    pub fn is_between(&self, one: impl Into<IpAddr>, other: impl Into<IpAddr>) -> bool {
        let ends = (self.source(), self.destination());
        let (one, other) = (Some(one.into()), Some(other.into()));
        ends == (one, other) || ends == (other, one)
    }

    pub(crate) fn ip(&self) -> Option<Ip> {
        self.ip
    }

    pub(crate) fn source_socket(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.source()?, self.source_port()?))
    }

    pub(crate) fn destination_socket(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.destination()?, self.destination_port()?))
    }

    fn port(&self, offset: usize) -> Option<u16> {
        let ip = self.ip.filter(|ip| matches!(ip.protocol, TCP | UDP))?;
        let at = ip.l4? + offset;
        Some(u16::from_be_bytes([self.data[at], self.data[at + 1]]))
    }

    /// Where the transport checksum is.
    pub(crate) fn l4_checksum_at(&self) -> Option<usize> {
        let ip = self.ip?;
        Some(ip.l4? + checksum_offset(ip.protocol)?)
    }

    /// The same packet to another address and port, checksums recomputed.
    pub(crate) fn readdressed(&self, to: SocketAddr) -> Self {
        let mut data = self.data.clone();
        if let Some(l4) = self.ip.and_then(|ip| ip.l4) {
            match to.ip() {
                IpAddr::V4(address) => data[16..20].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => data[24..40].copy_from_slice(&address.octets()),
            }
            data[l4 + 2..l4 + 4].copy_from_slice(&to.port().to_be_bytes());
        }
        let mut packet = Self::parse(self.ethertype, data, self.cut_short);
        packet.complete_checksums();
        packet
    }

    /// Computes the checksums that can be computed: not those of fragments or cut packets, nor
    /// UDP's over IPv4 where the sender chose none.
    pub(crate) fn complete_checksums(&mut self) {
        let Some(ip) = self.ip else { return };
        if self.ethertype == IPV4 {
            let header = header_bytes(&self.data);
            checksum::set_ipv4(&mut self.data, header);
        }
        let (Some(l4), Some(at)) = (ip.l4, self.l4_checksum_at()) else { return };
        let none = ip.protocol == UDP && !self.is_ipv6() && self.data[at..at + 2] == [0, 0];
        if ip.fragment || self.cut_short || none {
            return;
        }
        self.data[at..at + 2].fill(0);
        let addresses = if self.is_ipv6() { 8..40 } else { 12..20 };
        let sum = checksum::l4(&self.data[addresses], ip.protocol, &self.data[l4..ip.length]);
        self.data[at..at + 2].copy_from_slice(&sum);
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(ip) = self.ip else {
            if let (0x0806, Some(arp)) = (self.ethertype, self.data.get(..28)) {
                let address =
                    |at: usize| IpAddr::from([arp[at], arp[at + 1], arp[at + 2], arp[at + 3]]);
                let what = if arp[7] == 1 { "asks for" } else { "answers" };
                return write!(f, "ARP: {} {what} {}", address(14), address(24));
            }
            return write!(f, "ethertype {:#06x}, {} bytes", self.ethertype, self.data.len());
        };
        let end = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        write!(
            f,
            "{} > {} protocol {} length {}",
            end(ip.source, self.source_port()),
            end(ip.destination, self.destination_port()),
            ip.protocol,
            ip.length
        )?;
        if !self.is_ipv6() {
            write!(
                f,
                " id {} ttl {}",
                u16::from_be_bytes([self.data[4], self.data[5]]),
                self.data[8]
            )?;
        }
        if let (TCP, Some(l4)) = (ip.protocol, ip.l4) {
            let mut seq = [0; 4];
            seq.copy_from_slice(&self.data[l4 + 4..l4 + 8]);
            write!(f, " seq {} flags {:#04x}", u32::from_be_bytes(seq), self.data[l4 + 13])?;
        }
        if ip.fragment { f.write_str(" fragment") } else { Ok(()) }
    }
}

fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        1 | 58 => Some(2), // ICMP, ICMPv6
        _ => None,
    }
}

/// Least bytes of the transport headers whose fields we use.
fn l4_bytes(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(20),
        UDP => Some(8),
        1 | 58 => Some(4),
        _ => None,
    }
}

fn l4_at(protocol: u8, at: usize, length: usize) -> Option<usize> {
    l4_bytes(protocol).filter(|bytes| at + bytes <= length).map(|_bytes| at)
}

fn header_bytes(ipv4: &[u8]) -> usize {
    usize::from(ipv4[0] & 0x0f) * 4
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

fn ipv4(data: &[u8]) -> Option<Ip> {
    if data.len() < 20 || data[0] >> 4 != 4 {
        return None;
    }
    let header = header_bytes(data);
    let length = usize::from(word(data, 2)?).min(data.len());
    if header < 20 || length < header {
        return None;
    }
    let address =
        |at: usize| -> IpAddr { [data[at], data[at + 1], data[at + 2], data[at + 3]].into() };
    let offset_and_flags = word(data, 6)?;
    let first = offset_and_flags & 0x1fff == 0;
    Some(Ip {
        source: address(12),
        destination: address(16),
        protocol: data[9],
        fragment: offset_and_flags & 0x3fff != 0,
        l4: if first { l4_at(data[9], header, length) } else { None },
        length,
    })
}

fn ipv6(data: &[u8]) -> Option<Ip> {
    if data.len() < 40 || data[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = data.get(at..at + 16)?.try_into().ok()?;
        Some(octets.into())
    };
    let length = (40 + usize::from(word(data, 4)?)).min(data.len());
    let (mut protocol, mut at) = (data[6], 40);
    let (mut fragment, mut first) = (false, true);
    // Hop-by-hop, routing, destination options; fragment. Each is 8 bytes or more: this ends.
    while matches!(protocol, 0 | 43 | 44 | 60) && first && at + 8 <= length {
        let bytes = if protocol == 44 {
            fragment = true;
            first = word(data, at + 2)? & 0xfff8 == 0;
            8
        } else {
            8 + usize::from(data[at + 1]) * 8
        };
        protocol = data[at];
        at += bytes;
    }
    Some(Ip {
        source: address(8)?,
        destination: address(24)?,
        protocol,
        fragment,
        l4: if first { l4_at(protocol, at, length) } else { None },
        length,
    })
}

/// Packets for tests.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// An IPv4 TCP packet with complete checksums.
    pub(crate) fn tcp_between(from: SocketAddr, to: SocketAddr, id: u16, payload: &[u8]) -> Packet {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
            panic!("an IPv4 sample");
        };
        let length = u16::try_from(40 + payload.len()).unwrap();
        let mut data = vec![0x45, 0];
        data.extend(length.to_be_bytes());
        data.extend(id.to_be_bytes());
        data.extend([0x40, 0, 64, TCP, 0, 0]);
        data.extend(source.octets());
        data.extend(destination.octets());
        data.extend(from.port().to_be_bytes());
        data.extend(to.port().to_be_bytes());
        data.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x99, 1, 0, 0, 0, 0, 0]);
        data.extend(payload);
        let mut packet = Packet::parse(IPV4, data, false);
        packet.complete_checksums();
        packet
    }

    pub(crate) fn tcp(id: u16, payload: &[u8]) -> Packet {
        let socket = |text: &str| text.parse().unwrap();
        tcp_between(socket("10.0.1.101:40000"), socket("10.0.2.101:80"), id, payload)
    }

    /// As a router leaves it.
    pub(crate) fn after_a_hop(packet: &Packet) -> Packet {
        let mut data = packet.data.clone();
        data[8] -= 1;
        checksum::set_ipv4(&mut data, 20);
        Packet::parse(packet.ethertype, data, packet.cut_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found() {
        let packet = samples::tcp(9, b"xy");
        assert_eq!(packet.source_port(), Some(40000));
        assert_eq!(packet.destination_socket(), Some("10.0.2.101:80".parse().unwrap()));
        assert_eq!(packet.protocol(), Some(TCP));
        assert!(!packet.is_fragment());
        assert!(packet.to_string().contains("id 9 ttl 64 seq 1"), "{packet}");
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        let v4 = samples::tcp(9, b"xy").data().to_vec();
        let mut v6 = vec![0x60, 0, 0, 0, 0, 28, 0, 64];
        v6.extend([1; 32]);
        v6.extend([44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 5]);
        v6.extend([0, 53, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        for (ethertype, data) in [(IPV4, v4), (IPV6, v6)] {
            for length in 0..=data.len() {
                let mut packet = Packet::parse(ethertype, data[..length].to_vec(), true);
                packet.complete_checksums();
                let _ = (packet.to_string(), packet.destination_port());
            }
            let packet = Packet::parse(ethertype, data, false);
            assert!(packet.destination_port().is_some(), "{packet}");
        }
    }

    #[test]
    fn a_later_fragment_has_addresses_but_no_ports() {
        let mut data = samples::tcp(9, b"xy").data().to_vec();
        data[6] = 0x20;
        data[7] = 0x10;
        let packet = Packet::parse(IPV4, data, false);
        assert!(packet.is_fragment());
        assert!(packet.source().is_some());
        assert_eq!(packet.source_port(), None);
    }
}
