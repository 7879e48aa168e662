//! What a packet is, in the specification's words: the bytes that no host changes, and its two
//! ends. Compared byte for byte; nothing is hashed.
//!
//! ```text
//! frame --> | link, tags | IP | extensions | transport | payload | padding |
//!              ignored    less TTL, checksum, ECN   less ports, checksum   ignored
//! ```

use std::net::IpAddr;

use super::packet::{End, Ends, low32};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Rule 4's invariant part.
    pub invariant: Vec<u8>,
    /// `None` for what is not IP: then all of the frame is in `invariant`.
    pub ends: Option<Ends>,
    /// IP protocol behind the extension headers.
    pub protocol: u8,
    /// True for a fragment but the first: its ports are elsewhere.
    pub is_later_fragment: bool,
    /// The packet that an ICMP error is about.
    pub about: Option<About>,
}

/// What an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// Its ends.
    pub ends: Ends,
    /// Its protocol.
    pub protocol: u8,
}

/// Where things are in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// IP header.
    pub l3: usize,
    /// Transport header.
    pub l4: usize,
    /// What follows it.
    pub payload: usize,
    /// End of the IP packet.
    pub end: usize,
    /// IP protocol.
    pub protocol: u8,
    /// A part of a packet.
    pub is_fragment: bool,
}

struct Parts {
    /// The invariant bytes of the network headers.
    network: Vec<u8>,
    l3: usize,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    l4: usize,
    end: usize,
    is_later_fragment: bool,
    is_fragment: bool,
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

impl Identity {
    /// That of an Ethernet frame.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        let (at, parts) = parts(frame);
        let Some(parts) = parts else {
            // Tags are not part of the packet, whatever it is.
            let tail = frame.get(at..).unwrap_or_default();
            let macs = &frame[..frame.len().min(12)];
            return Self {
                invariant: [macs, tail].concat(),
                ends: None,
                protocol: 0,
                is_later_fragment: false,
                about: None,
            };
        };
        Self::of_ip(frame, parts)
    }

    fn of_ip(frame: &[u8], parts: Parts) -> Self {
        let l4 = &frame[parts.l4..parts.end];
        let transport = if parts.is_later_fragment {
            Transport::none(l4)
        } else {
            transport(parts.protocol, l4)
        };
        let mut invariant = parts.network;
        invariant.push(parts.protocol);
        invariant.extend(low32(l4.len()).to_be_bytes());
        invariant.extend(transport.fields);
        let (source, destination) = transport.ports;
        Self {
            invariant,
            ends: Some(Ends {
                source: End { address: parts.source, port: source },
                destination: End { address: parts.destination, port: destination },
            }),
            protocol: parts.protocol,
            is_later_fragment: parts.is_later_fragment,
            about: transport.about,
        }
    }

    /// Where its parts are, for an IP packet.
    #[must_use]
    pub fn layout(frame: &[u8]) -> Option<Layout> {
        let parts = parts(frame).1?;
        let l4 = &frame[parts.l4..parts.end];
        let header = if parts.is_later_fragment { 0 } else { transport(parts.protocol, l4).header };
        Some(Layout {
            l3: parts.l3,
            l4: parts.l4,
            payload: parts.l4 + header,
            end: parts.end,
            protocol: parts.protocol,
            is_fragment: parts.is_fragment,
        })
    }

    /// Type of what follows the link header and its tags.
    #[must_use]
    pub fn ethertype(frame: &[u8]) -> Option<u16> {
        word(frame, parts(frame).0)
    }

    /// Who sent an ARP frame.
    #[must_use]
    pub fn arp_sender(frame: &[u8]) -> Option<IpAddr> {
        let arp = frame.get(parts(frame).0 + 2..)?;
        let is_ip = word(arp, 0)? == 1 && word(arp, 2)? == 0x0800 && word(arp, 4)? == 0x0604;
        let octets = arp.get(14..18).filter(|_| is_ip)?;
        Some(<[u8; 4]>::try_from(octets).ok()?.into())
    }

    /// Short, for messages of failing tests.
    #[must_use]
    pub fn say(&self) -> String {
        let end = |end: End| format!("{}:{}", end.address, end.port);
        let text = self.ends.map_or("no IP".to_owned(), |ends| {
            format!("{} > {}", end(ends.source), end(ends.destination))
        });
        let sum: u32 = self
            .invariant
            .iter()
            .fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        format!("{text} protocol {} invariant #{sum:08x}", self.protocol)
    }
}

/// Where the link header's type field is, and what follows it.
fn parts(frame: &[u8]) -> (usize, Option<Parts>) {
    let mut at = 12;
    while let (Some(0x8100 | 0x88a8), true) = (word(frame, at), at < 20) {
        at += 4;
    }
    let parts = match word(frame, at) {
        Some(0x0800) => ipv4(frame, at + 2),
        Some(0x86dd) => ipv6(frame, at + 2),
        _ => None,
    };
    (at, parts)
}

fn ipv4(frame: &[u8], l3: usize) -> Option<Parts> {
    let ip = frame.get(l3..)?;
    let header = usize::from(*ip.first()? & 15) * 4;
    if ip[0] >> 4 != 4 || header < 20 || ip.len() < header {
        return None;
    }
    let total = match usize::from(word(ip, 2)?) {
        0 => ip.len(),
        total => total.min(ip.len()),
    };
    if total < header {
        return None;
    }
    let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    let fragment = word(ip, 6)?;
    let mut network = vec![4, ip[1] & 0xfc, ip[4], ip[5], ip[6], ip[7]];
    network.extend(&ip[20..header]);
    Some(Parts {
        network,
        l3,
        source: address(12),
        destination: address(16),
        protocol: ip[9],
        l4: l3 + header,
        end: l3 + total,
        is_later_fragment: fragment & 0x1fff != 0,
        is_fragment: fragment & 0x3fff != 0,
    })
}

fn ipv6(frame: &[u8], l3: usize) -> Option<Parts> {
    let ip = frame.get(l3..)?;
    if ip.len() < 40 || ip[0] >> 4 != 6 {
        return None;
    }
    let end = match usize::from(word(ip, 4)?) {
        0 => ip.len(),
        length => (40 + length).min(ip.len()),
    };
    let address = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).ok().map(IpAddr::from);
    let mut parts = Parts {
        network: vec![6, ip[0] & 15, ip[1] & 0xcf, ip[2], ip[3]],
        l3,
        source: address(8)?,
        destination: address(24)?,
        protocol: ip[6],
        l4: l3 + 40,
        end: l3 + end,
        is_later_fragment: false,
        is_fragment: false,
    };
    // Eight extension headers are more than anybody sends.
    for _ in 0..8 {
        let Some(head) = frame[..parts.end].get(parts.l4..parts.l4 + 8) else { break };
        let bytes = match parts.protocol {
            0 | 43 | 60 => 8 + usize::from(head[1]) * 8,
            51 => 8 + usize::from(head[1]) * 4,
            44 => 8,
            _ => break,
        };
        let Some(header) = frame[..parts.end].get(parts.l4..parts.l4 + bytes) else { break };
        // A node that has put fragments together and taken them apart again gives them a new number.
        parts.network.extend(if parts.protocol == 44 { &header[..4] } else { header });
        if parts.protocol == 44 {
            parts.is_fragment |= word(head, 2)? & 0xfff9 != 0;
            parts.is_later_fragment = word(head, 2)? & 0xfff8 != 0;
        }
        parts.protocol = head[0];
        parts.l4 += bytes;
        if parts.is_later_fragment {
            break;
        }
    }
    Some(parts)
}

struct Transport {
    /// Without ports, checksum, and what else translation changes.
    fields: Vec<u8>,
    ports: (u16, u16),
    about: Option<About>,
    header: usize,
}

impl Transport {
    fn none(l4: &[u8]) -> Self {
        Self { fields: l4.to_vec(), ports: (0, 0), about: None, header: 0 }
    }
}

fn transport(protocol: u8, l4: &[u8]) -> Transport {
    let ports = || Some((word(l4, 0)?, word(l4, 2)?));
    let header = match protocol {
        6 => l4.get(12).map_or(usize::MAX, |byte| usize::from(byte >> 4) * 4),
        17 | 1 | 58 => 8,
        132 => 12,
        _ => usize::MAX,
    };
    let (true, Some(ports)) = (header <= l4.len() && header >= 8, ports()) else {
        return Transport::none(l4);
    };
    let tail = &l4[header..];
    match protocol {
        6 if header >= 20 => {
            Transport { fields: [&l4[4..16], &l4[18..]].concat(), ports, about: None, header }
        }
        17 => Transport { fields: [&l4[4..6], tail].concat(), ports, about: None, header },
        132 => Transport { fields: [&l4[4..8], tail].concat(), ports, about: None, header },
        1 | 58 => icmp(protocol, l4),
        _ => Transport::none(l4),
    }
}

fn icmp(protocol: u8, l4: &[u8]) -> Transport {
    let is_echo = matches!((protocol, l4[0]), (1, 0 | 8) | (58, 128 | 129));
    let is_error = matches!((protocol, l4[0]), (1, 3 | 4 | 5 | 11 | 12) | (58, 1..=4));
    let mut fields = [&l4[..2], &l4[6..8]].concat();
    if is_echo {
        let id = u16::from_be_bytes([l4[4], l4[5]]);
        fields.extend(&l4[8..]);
        // Translated as a port would be, at the end that asks.
        let ports = if matches!(l4[0], 8 | 128) { (id, 0) } else { (0, id) };
        return Transport { fields, ports, about: None, header: 8 };
    }
    fields.extend(&l4[4..6]);
    let quoted = &l4[8..];
    let parts = match quoted.first().map(|byte| byte >> 4) {
        Some(4) if is_error => ipv4(quoted, 0),
        Some(6) if is_error => ipv6(quoted, 0),
        _ => None,
    };
    let Some(parts) = parts else {
        fields.extend(quoted);
        return Transport { fields, ports: (0, 0), about: None, header: 8 };
    };
    // What translation changes in the quoted packet is not part of it.
    let inner = &quoted[parts.l4..];
    fields.extend(&parts.network);
    fields.push(parts.protocol);
    let mut about_ports = (0, 0);
    let is_start = !parts.is_later_fragment;
    let (ports_end, checksum, id) = match parts.protocol {
        6 if is_start => (4, Some(16), None),
        17 if is_start => (4, Some(6), None),
        132 if is_start => (4, Some(8), None),
        1 | 58 if is_start => (0, Some(2), Some(4)),
        _ => (0, None, None),
    };
    for (at, byte) in inner.iter().enumerate() {
        let sum_bytes = if parts.protocol == 132 { 4 } else { 2 };
        let in_sum = checksum.is_some_and(|from| (from..from + sum_bytes).contains(&at));
        let in_id = id.is_some_and(|from: usize| (from..from + 2).contains(&at));
        if at >= ports_end && !in_sum && !in_id {
            fields.push(*byte);
        }
    }
    if ports_end == 4 && inner.len() >= 4 {
        about_ports = (word(inner, 0).unwrap_or(0), word(inner, 2).unwrap_or(0));
    }
    let end = |address, port| End { address, port };
    let ends = Ends {
        source: end(parts.source, about_ports.0),
        destination: end(parts.destination, about_ports.1),
    };
    let about = About { ends, protocol: parts.protocol };
    Transport { fields, ports: (0, 0), about: Some(about), header: 8 }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Body, Look, Packet, ethernet, fragments};
    use super::*;

    fn end(address: &str, port: u16) -> End {
        End { address: address.parse().unwrap(), port }
    }

    fn look(v6: bool) -> Look {
        let ends = if v6 {
            Ends { source: end("fd00::1", 7), destination: end("fd00::2", 8) }
        } else {
            Ends { source: end("10.0.0.1", 7), destination: end("10.0.0.2", 8) }
        };
        Look { ends, about: None, ttl: 64, is_marked: false }
    }

    fn packets() -> Vec<Packet> {
        let packet =
            |body| Packet { dscp: 4, id: 9, has_option: false, body, payload: vec![5; 40] };
        let tcp = Body::Tcp { sequence: 5, flags: 0x18, timestamp: Some(3) };
        let udp = packet(Body::Udp);
        let about = Packet { body: tcp.clone(), ..udp.clone() };
        vec![
            packet(tcp),
            packet(Body::Udp),
            Packet { has_option: true, ..packet(Body::Udp) },
            packet(Body::Echo { is_reply: false, sequence: 4 }),
            Packet { payload: vec![], ..packet(Body::Error(Box::new(about))) },
            Packet { payload: vec![], ..packet(Body::Error(Box::new(udp))) },
            packet(Body::Sctp { tag: 77 }),
            packet(Body::Raw(50)),
        ]
    }

    #[test]
    fn hops_and_translation_leave_the_invariant_part_alone() {
        for v6 in [false, true] {
            let here = look(v6);
            let mut there = Look { ttl: 62, is_marked: true, ..here };
            there.ends.source = end(if v6 { "fd00::9" } else { "10.0.0.9" }, 999);
            there.about = Some(Ends { source: here.ends.destination, ..there.ends.reversed() });
            for packet in packets() {
                let one = Identity::of(&ethernet(&packet.ip(&here), 1));
                let other = Identity::of(&ethernet(&packet.ip(&there), 2));
                assert_eq!(one.invariant, other.invariant, "{packet:?}");
                assert_ne!(one.ends, other.ends, "{packet:?}");
                let different = Packet { id: 10, dscp: 8, ..packet };
                assert_ne!(one, Identity::of(&ethernet(&different.ip(&here), 1)));
            }
        }
    }

    #[test]
    fn fragments_are_packets_of_their_own() {
        for v6 in [false, true] {
            let packet = &packets()[1];
            let cut = fragments(&packet.ip(&look(v6)), 16);
            let identities: std::collections::BTreeSet<_> =
                cut.iter().map(|ip| Identity::of(&ethernet(ip, 1))).collect();
            assert_eq!(identities.len(), cut.len());
            assert_eq!(cut.len(), 3);
            assert_eq!(identities.iter().filter(|it| it.is_later_fragment).count(), 2);
        }
    }

    #[test]
    fn no_prefix_of_a_packet_panics() {
        for v6 in [false, true] {
            for packet in packets() {
                let frame = ethernet(&packet.ip(&look(v6)), 1);
                for length in 0..frame.len() {
                    let _ = Identity::of(&frame[..length]);
                }
            }
        }
    }
}
