//! IP packets and frames made by hand: what no socket would send.
//!
//! ```text
//! udp | tcp | sctp | echo (From -> To, id) -> packet -- with_extensions, fragments --> packets
//! arp_request, frame -> frames                                        (sent by `Raw`)
//! ```
//!
//! Lengths and checksums are right. The same arguments make the same bytes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// Bytes of an IPv6 header.
const V6_HEADER: usize = 40;

/// A UDP datagram; `id` is the IP ID, which IPv6 has not.
#[must_use]
pub fn udp(from: SocketAddr, to: SocketAddr, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(length(8 + payload.len()).to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    transport(from.ip(), to.ip(), UDP, id, segment, Some(6))
}

/// Flags of a TCP segment.
pub mod flags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
}

/// A TCP segment without options.
#[must_use]
pub fn tcp(
    from: SocketAddr,
    to: SocketAddr,
    id: u16,
    (seq, ack, flags): (u32, u32, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.extend(payload);
    transport(from.ip(), to.ip(), TCP, id, segment, Some(16))
}

/// An SCTP packet with one DATA chunk.
#[must_use]
pub fn sctp(from: SocketAddr, to: SocketAddr, id: u16, tag: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(tag.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([0, 3]);
    segment.extend(length(16 + payload.len()).to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    segment.extend(payload);
    segment.resize(segment.len().next_multiple_of(4), 0);
    finish_sctp(&mut segment);
    transport(from.ip(), to.ip(), SCTP, id, segment, None)
}

/// An SCTP packet with one INIT chunk: what opens an association, for those that track them.
#[must_use]
pub fn sctp_init(from: SocketAddr, to: SocketAddr, id: u16) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend([0; 8]);
    segment.extend([1, 0, 0, 20]);
    segment.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    finish_sctp(&mut segment);
    transport(from.ip(), to.ip(), SCTP, id, segment, None)
}

fn finish_sctp(segment: &mut [u8]) {
    let sum = crc32c(segment);
    segment[8..12].copy_from_slice(&sum.to_le_bytes());
}

/// An echo request.
#[must_use]
pub fn echo(from: IpAddr, to: IpAddr, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let (kind, protocol) = if from.is_ipv4() { (8, 1) } else { (128, 58) };
    let mut message = vec![kind, 0, 0, 0, 0, 7];
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    transport(from, to, protocol, id, message, Some(2))
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options, padding only.
    HopByHop,
    /// Destination options, padding only.
    Destination,
    /// A routing header of an experimental type with nothing left to visit.
    Routing,
}

/// Puts extension headers, in this order, behind the header of an IPv6 packet.
///
/// # Panics
///
/// When it is none: a mistake in the test.
#[must_use]
pub fn with_extensions(packet: &[u8], extensions: &[Extension]) -> Vec<u8> {
    assert!(packet.len() >= V6_HEADER && packet[0] >> 4 == 6, "an IPv6 packet");
    let mut next = packet[6];
    let mut headers: Vec<u8> = Vec::new();
    for extension in extensions.iter().rev() {
        let (number, rest) = match extension {
            Extension::HopByHop => (0, [1, 4, 0, 0, 0, 0]),
            Extension::Destination => (60, [1, 4, 0, 0, 0, 0]),
            Extension::Routing => (43, [253, 0, 0, 0, 0, 0]),
        };
        let mut header = vec![next, 0];
        header.extend(rest);
        header.extend(&headers);
        (headers, next) = (header, number);
    }
    let mut whole = packet[..V6_HEADER].to_vec();
    whole[6] = next;
    whole.extend(&headers);
    whole.extend(&packet[V6_HEADER..]);
    let payload = length(whole.len() - V6_HEADER).to_be_bytes();
    whole[4..6].copy_from_slice(&payload);
    whole
}

/// The packet in fragments that fit `mtu`, in order. IPv6 (without extension headers) gets `id`
/// for its fragments; IPv4 has its own.
///
/// # Panics
///
/// When it is no IP packet: a mistake in the test.
#[must_use]
pub fn fragments(packet: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let is_v6 = packet[0] >> 4 == 6;
    let header = if is_v6 { V6_HEADER } else { usize::from(packet[0] & 0x0f) * 4 };
    let overhead = if is_v6 { 8 } else { 0 };
    let most = (mtu - header - overhead) / 8 * 8;
    let count = (packet.len() - header).div_ceil(most);
    packet[header..]
        .chunks(most)
        .enumerate()
        .map(|(index, part)| {
            let units = length(index * most / 8);
            let more = u16::from(index + 1 < count);
            let mut fragment = packet[..header].to_vec();
            if is_v6 {
                fragment.extend([packet[6], 0]);
                fragment.extend((units << 3 | more).to_be_bytes());
                fragment.extend(id.to_be_bytes());
                fragment[6] = 44;
                fragment[4..6].copy_from_slice(&length(8 + part.len()).to_be_bytes());
            } else {
                fragment[2..4].copy_from_slice(&length(header + part.len()).to_be_bytes());
                fragment[6..8].copy_from_slice(&(more << 13 | units).to_be_bytes());
                finish_v4_header(&mut fragment);
            }
            fragment.extend(part);
            fragment
        })
        .collect()
}

/// A frame of any type.
#[must_use]
pub fn frame(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An ARP request: who has `target`? To everybody.
#[must_use]
pub fn arp_request(from: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, 1];
    message.extend(from);
    message.extend(sender.octets());
    message.extend([0; 6]);
    message.extend(target.octets());
    frame([0xff; 6], from, 0x0806, &message)
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut bytes = from.port().to_be_bytes().to_vec();
    bytes.extend(to.port().to_be_bytes());
    bytes
}

/// Puts the IP header before a segment, whose checksum is at `sum_at`.
fn transport(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    id: u16,
    mut segment: Vec<u8>,
    sum_at: Option<usize>,
) -> Vec<u8> {
    let (mut header, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(length(20 + segment.len()).to_be_bytes());
            header.extend(id.to_be_bytes());
            header.extend([0, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            finish_v4_header(&mut header);
            (header, 12)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length(segment.len()).to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(from.octets());
            header.extend(to.octets());
            (header, 8)
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    if let Some(at) = sum_at {
        // ICMP for IPv4 has no pseudo-header.
        let with_addresses = protocol != 1;
        let mut sum = if with_addresses {
            sum_of(&header[addresses..]) + u64::from(protocol) + sum_of_length(segment.len())
        } else {
            0
        };
        sum += sum_of(&segment);
        let folded = match fold(sum) {
            // 0 says that there is none.
            0 if protocol == UDP => 0xffff,
            folded => folded,
        };
        segment[at..at + 2].copy_from_slice(&folded.to_be_bytes());
    }
    header.extend(segment);
    header
}

fn finish_v4_header(header: &mut [u8]) {
    header[10..12].fill(0);
    let end = usize::from(header[0] & 0x0f) * 4;
    let sum = fold(sum_of(&header[..end]));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn sum_of(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
        .sum()
}

fn sum_of_length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(0)
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// # Panics
///
/// When it does not fit: a mistake in the test.
fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a packet of at most 64 kB")
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _bit| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_checksum_makes_the_sum_zero() {
        let packet = udp(end("10.0.0.1:1"), end("10.0.0.2:2"), 7, b"abc");
        assert_eq!(fold(sum_of(&packet[..20])), 0);
        let pseudo = sum_of(&packet[12..20]) + 17 + 11;
        assert_eq!(fold(pseudo + sum_of(&packet[20..])), 0);
        // The check value of CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn fragments_hold_the_whole_packet() {
        let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
        for (from, to, header) in
            [("10.0.0.1:1", "10.0.0.2:2", 20), ("[fd00::1]:1", "[fd00::2]:2", 48)]
        {
            let packet = udp(end(from), end(to), 7, &payload);
            let parts = fragments(&packet, 1280, 9);
            assert_eq!(parts.len(), 3);
            assert!(parts.iter().all(|part| part.len() <= 1280));
            let whole: Vec<u8> = parts.iter().flat_map(|part| part[header..].to_vec()).collect();
            assert_eq!(whole, packet[packet.len() - 3008..]);
        }
    }

    #[test]
    fn extension_headers_are_chained_in_order() {
        let packet = udp(end("[fd00::1]:1"), end("[fd00::2]:2"), 0, b"abc");
        let all = [Extension::HopByHop, Extension::Routing, Extension::Destination];
        let whole = with_extensions(&packet, &all);
        assert_eq!((whole[6], whole[40], whole[48], whole[56]), (0, 43, 60, UDP));
        assert_eq!(whole.len(), packet.len() + 24);
        assert_eq!(whole[64..], packet[40..]);
    }
}
