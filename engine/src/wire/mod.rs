//! Headers of a frame, found once and checked once.
//!
//! ```text
//! frame.data:  | MACs [tags] type | IP header [extensions] | L4 header | payload ... | padding |
//!              0                  l3                       l4          payload       end
//! ```
//!
//! [`Headers::parse`] never fails: what is not well-formed IP is [`Network::Other`], and is then
//! treated as bytes. All offsets lie within the frame's captured bytes, in the order drawn above.
//! Nothing here allocates. IPv4 addresses are carried as IPv4-mapped IPv6 ones, so that one kind
//! of number serves both.

mod address;

pub use address::{Address, Networks, PrefixSet};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Anything else, and IP that contradicts itself.
    Other,
}

/// Protocol numbers that decide something here.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;

    /// True for those whose ports are known here.
    #[must_use]
    pub fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }
}

/// Ethertypes that decide something here.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad tag.
    pub const QINQ: u16 = 0x88a8;
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes before this fragment.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
    /// Identification.
    pub id: u32,
}

/// Where a frame's headers are, and what decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// See [`Network`].
    pub network: Network,
    /// Start of the network header.
    pub l3: usize,
    /// Start of the transport header; where there is none (later fragments, unknown protocols),
    /// of what follows the network header.
    pub l4: usize,
    /// Start of what follows the transport header.
    pub payload: usize,
    /// End of the IP packet: padding of the link layer follows.
    pub end: usize,
    /// Source address; unspecified for [`Network::Other`].
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Protocol behind the last known extension header.
    pub protocol: u8,
    /// Source and destination port, if the transport header has them and was captured.
    pub ports: Option<(u16, u16)>,
    /// Set for every fragment, the first included.
    pub fragment: Option<Fragment>,
}

/// Reads a big-endian number; `None` past the end.
#[must_use]
pub fn be16(data: &[u8], at: usize) -> Option<u16> {
    let bytes = data.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Reads a big-endian number; `None` past the end.
#[must_use]
pub fn be32(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

const IPV6_HEADER: usize = 40;
/// More extension headers than this are not walked; real packets have one or two.
const MAX_EXTENSIONS: usize = 8;

impl Headers {
    /// Finds the headers of an Ethernet frame.
    #[must_use]
    #[inline]
    pub fn parse(data: &[u8]) -> Self {
        Self::parse_common(data).unwrap_or_else(|| Self::parse_any(data))
    }

    /// Of what nearly every frame is: IPv4 without options, whole, with a TCP or UDP header behind it.
    /// `None` for anything else.
    #[inline]
    fn parse_common(data: &[u8]) -> Option<Self> {
        const L3: usize = 14;
        const L4: usize = L3 + 20;
        let head = data.first_chunk::<L4>()?;
        let total_len = usize::from(u16::from_be_bytes([head[16], head[17]]));
        // Neither the flag of more fragments nor an offset.
        let is_whole = (head[20] & 0x3f) | head[21] == 0;
        if head[12..15] != [8, 0, 0x45] || total_len < 20 || !is_whole {
            return None;
        }
        let end = data.len().min(L3 + total_len);
        let l4 = &data[L4..end];
        let ports = l4.first_chunk::<8>()?;
        let header_len = match head[23] {
            protocol::TCP => {
                let len = usize::from(l4.get(12)? >> 4) * 4;
                if len < 20 || len > l4.len() {
                    return None;
                }
                len
            }
            protocol::UDP => 8,
            _ => return None,
        };
        Some(Self {
            network: Network::V4,
            l3: L3,
            l4: L4,
            payload: L4 + header_len,
            end,
            source: Address::from_v4([head[26], head[27], head[28], head[29]]),
            destination: Address::from_v4([head[30], head[31], head[32], head[33]]),
            protocol: head[23],
            ports: Some((
                u16::from_be_bytes([ports[0], ports[1]]),
                u16::from_be_bytes([ports[2], ports[3]]),
            )),
            fragment: None,
        })
    }

    #[inline(never)]
    fn parse_any(data: &[u8]) -> Self {
        let mut l3 = 14;
        let mut kind = be16(data, 12);
        for _ in 0..2 {
            if !matches!(kind, Some(ethertype::VLAN | ethertype::QINQ)) {
                break;
            }
            kind = be16(data, l3 + 2);
            l3 += 4;
        }
        let parsed = match kind {
            Some(ethertype::IPV4) => Self::parse_v4(data, l3),
            Some(ethertype::IPV6) => Self::parse_v6(data, l3),
            _ => None,
        };
        parsed.unwrap_or_else(|| Self::other(data))
    }

    /// Finds the headers of a packet that begins at `l3`, with no link header of its own; `None` if
    /// it is not well-formed IP.
    #[must_use]
    pub(crate) fn parse_packet(data: &[u8], l3: usize) -> Option<Self> {
        match data.get(l3)? >> 4 {
            4 => Self::parse_v4(data, l3),
            6 => Self::parse_v6(data, l3),
            _ => None,
        }
    }

    fn other(data: &[u8]) -> Self {
        Self {
            network: Network::Other,
            l3: data.len().min(14),
            l4: data.len().min(14),
            payload: data.len().min(14),
            end: data.len(),
            source: Address::UNSPECIFIED,
            destination: Address::UNSPECIFIED,
            protocol: 0,
            ports: None,
            fragment: None,
        }
    }

    fn parse_v4(data: &[u8], l3: usize) -> Option<Self> {
        let ip = data.get(l3..l3 + 20)?;
        let header_len = usize::from(ip[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        // A total length of 0 is a super-frame of more than 64 kB: its end is the frame's.
        let end = if total_len == 0 { data.len() } else { data.len().min(l3 + total_len) };
        if ip[0] >> 4 != 4 || header_len < 20 || l3 + header_len > end {
            return None;
        }
        let flags = u16::from_be_bytes([ip[6], ip[7]]);
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
        let fragment = (offset != 0 || more).then_some(Fragment { offset, more, id });
        let mut headers = Self {
            network: Network::V4,
            l3,
            l4: l3 + header_len,
            payload: l3 + header_len,
            end,
            source: Address::from_v4([ip[12], ip[13], ip[14], ip[15]]),
            destination: Address::from_v4([ip[16], ip[17], ip[18], ip[19]]),
            protocol: ip[9],
            ports: None,
            fragment,
        };
        headers.parse_l4(data);
        Some(headers)
    }

    fn parse_v6(data: &[u8], l3: usize) -> Option<Self> {
        let ip = data.get(l3..l3 + IPV6_HEADER)?;
        if ip[0] >> 4 != 6 {
            return None;
        }
        let payload_len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        // 0 is a jumbogram (BIG TCP): its end is the frame's.
        let end = match payload_len {
            0 => data.len(),
            len => data.len().min(l3 + IPV6_HEADER + len),
        };
        let octets = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).expect("ip has 40 bytes");
        let (mut next, mut at, mut fragment) = (ip[6], l3 + IPV6_HEADER, None);
        for _ in 0..MAX_EXTENSIONS {
            let Some(head) = data.get(at..at + 8).filter(|_| at + 8 <= end) else { break };
            let len = match next {
                0 | 43 | 60 => (usize::from(head[1]) + 1) * 8,
                51 => (usize::from(head[1]) + 2) * 4,
                44 => 8,
                _ => break,
            };
            if at + len > end {
                break;
            }
            if next == 44 {
                let word = u16::from_be_bytes([head[2], head[3]]);
                let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                fragment = Some(Fragment { offset: word & 0xfff8, more: word & 1 != 0, id });
            }
            next = head[0];
            at += len;
            if fragment.is_some_and(|fragment| fragment.offset != 0) {
                break; // what follows is the middle of something
            }
        }
        let mut headers = Self {
            network: Network::V6,
            l3,
            l4: at,
            payload: at,
            end,
            source: Address::from_v6(octets(8)),
            destination: Address::from_v6(octets(24)),
            protocol: next,
            ports: None,
            fragment,
        };
        headers.parse_l4(data);
        Some(headers)
    }

    fn parse_l4(&mut self, data: &[u8]) {
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return;
        }
        let l4 = &data[self.l4..self.end];
        let (least, header_len) = match self.protocol {
            protocol::TCP if l4.len() >= 20 => (20, usize::from(l4[12] >> 4) * 4),
            protocol::UDP | protocol::ICMP | protocol::ICMPV6 => (8, 8),
            protocol::SCTP => (12, 12),
            _ => return,
        };
        if header_len < least || header_len > l4.len() {
            return;
        }
        self.payload = self.l4 + header_len;
        if protocol::has_ports(self.protocol) {
            let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
            self.ports = Some((port(0), port(2)));
        }
    }

    /// True for an ICMP error, which carries the beginning of the packet that it is about; `data` is
    /// the frame, or its headers.
    #[must_use]
    pub fn is_icmp_error(&self, data: &[u8]) -> bool {
        let is_error = match (self.protocol, data.get(self.l4)) {
            (protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (protocol::ICMPV6, Some(kind)) => matches!(kind, 1..=4),
            _ => false,
        };
        is_error && self.has_transport()
    }

    /// The headers of an IP packet that begins at `l3`; `None` if there is none.
    #[must_use]
    pub fn parse_ip(data: &[u8], l3: usize) -> Option<Self> {
        match data.get(l3)? >> 4 {
            4 => Self::parse_v4(data, l3),
            6 => Self::parse_v6(data, l3),
            _ => None,
        }
    }

    /// The headers of the packet that an ICMP error is about; `None` for anything else. Its ports
    /// are there even where no more than those of its transport header are.
    #[must_use]
    pub fn embedded(&self, data: &[u8]) -> Option<Self> {
        if !self.is_icmp_error(data) {
            return None;
        }
        let (data, l3) = (data.get(..self.end)?, self.payload);
        let mut headers = Self::parse_packet(data, l3)?;
        let is_start = headers.fragment.is_none_or(|fragment| fragment.offset == 0);
        let l4 = &data[headers.l4..headers.end];
        if protocol::has_ports(headers.protocol)
            && is_start
            && let (Some(source), Some(destination)) = (be16(l4, 0), be16(l4, 2))
        {
            headers.ports = Some((source, destination));
        }
        Some(headers)
    }

    /// The same of the first `len` bytes of the frame.
    #[must_use]
    #[inline]
    pub fn within(&self, len: usize) -> Self {
        let [l3, l4] = [self.l3.min(len), self.l4.min(len)];
        let [payload, end] = [self.payload.min(len), self.end.min(len)];
        Self { l3, l4, payload, end, ..*self }
    }

    /// True where a transport header of a known kind was captured whole.
    #[must_use]
    pub fn has_transport(&self) -> bool {
        self.payload > self.l4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(protocol: u8, flags: u16, l4: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 12];
        data.extend(ethertype::IPV4.to_be_bytes());
        let total = u16::try_from(20 + l4.len()).unwrap();
        data.extend([0x45, 0]);
        data.extend(total.to_be_bytes());
        data.extend([0x12, 0x34]);
        data.extend(flags.to_be_bytes());
        data.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        data.extend(l4);
        data
    }

    #[test]
    fn a_udp_packet_with_padding_ends_where_ip_says() {
        let mut data = v4(protocol::UDP, 0, &[0, 53, 0x80, 0, 0, 9, 0, 0, b'x']);
        data.extend([0; 17]);
        let headers = Headers::parse(&data);
        assert_eq!((headers.l3, headers.l4, headers.payload, headers.end), (14, 34, 42, 43));
        assert_eq!(headers.ports, Some((53, 0x8000)));
        assert_eq!(headers.source.to_ip(), "10.0.0.1".parse::<std::net::IpAddr>().unwrap());
        assert_eq!(headers.fragment, None);
    }

    #[test]
    fn only_the_first_fragment_has_ports() {
        let first = Headers::parse(&v4(protocol::UDP, 0x2000, &[0, 53, 0, 54, 0, 9, 0, 0, 1]));
        assert_eq!(first.ports, Some((53, 54)));
        assert_eq!(first.fragment, Some(Fragment { offset: 0, more: true, id: 0x1234 }));
        let later = Headers::parse(&v4(protocol::UDP, 0x0001, &[0, 53, 0, 54, 0, 9, 0, 0, 1]));
        assert_eq!((later.ports, later.payload), (None, 34));
        assert_eq!(later.fragment, Some(Fragment { offset: 8, more: false, id: 0x1234 }));
    }

    #[test]
    fn tags_in_the_frame_are_walked_over() {
        let plain = v4(protocol::UDP, 0, &[0, 53, 0, 54, 0, 9, 0, 0, 1]);
        let mut tagged = plain[..12].to_vec();
        tagged.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0, 8]);
        tagged.extend(&plain[12..]);
        let headers = Headers::parse(&tagged);
        assert_eq!((headers.network, headers.l3, headers.ports), (Network::V4, 22, Some((53, 54))));
    }

    #[test]
    fn contradictions_are_other_not_a_panic() {
        let good = v4(protocol::TCP, 0, &[0; 20]);
        for (at, value) in [(14, 0x65), (14, 0x44), (14, 0x4f), (17, 19)] {
            let mut bad = good.clone();
            bad[at] = value;
            let headers = Headers::parse(&bad);
            assert_eq!((headers.network, headers.end), (Network::Other, bad.len()), "{at} {value}");
        }
        // A TCP data offset that is too small or too large leaves the packet without a header.
        for offset in [0x00, 0x40, 0xf0] {
            let mut bad = good.clone();
            bad[14 + 20 + 12] = offset;
            let headers = Headers::parse(&bad);
            assert_eq!(
                (headers.network, headers.has_transport()),
                (Network::V4, false),
                "{offset}"
            );
        }
    }

    #[test]
    fn extension_headers_lead_to_the_transport() {
        let mut data = vec![0; 12];
        data.extend(ethertype::IPV6.to_be_bytes());
        data.extend([0x60, 0, 0, 0, 0, 32, 0, 64]);
        data.extend([1; 16]);
        data.extend([2; 16]);
        data.extend([60, 0, 0, 0, 0, 0, 0, 0]); // hop-by-hop, then destination options
        data.extend([44, 0, 0, 0, 0, 0, 0, 0]); // then a fragment header
        data.extend([17, 0, 0, 1, 0, 0, 0, 9]);
        data.extend([0, 53, 0, 54, 0, 8, 0, 0]);
        let headers = Headers::parse(&data);
        assert_eq!((headers.protocol, headers.ports), (17, Some((53, 54))));
        assert_eq!(headers.fragment, Some(Fragment { offset: 0, more: true, id: 9 }));
        assert_eq!(headers.l4, 14 + 40 + 24);
    }

    proptest! {
        #[test]
        fn offsets_are_ordered_and_inside(mut data in proptest::collection::vec(any::<u8>(), 0..200),
                                          kind in 0..4u8) {
            if data.len() > 15 {
                match kind {
                    0 => data[12..14].copy_from_slice(&[8, 0]),
                    1 => data[12..14].copy_from_slice(&[0x86, 0xdd]),
                    2 => data[12..14].copy_from_slice(&[0x81, 0]),
                    _ => {}
                }
                if kind < 2 { data[14] = data[14] & 0x0f | if kind == 0 { 0x40 } else { 0x60 }; }
            }
            let h = Headers::parse(&data);
            prop_assert_eq!(h, Headers::parse_any(&data), "the short way is the same");
            prop_assert!(h.l3 <= h.l4 && h.l4 <= h.payload && h.payload <= h.end);
            prop_assert!(h.end <= data.len());
        }

        #[test]
        fn the_short_way_says_what_the_long_one_says(
            l4 in proptest::collection::vec(any::<u8>(), 0..80),
            protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()],
            change in proptest::option::weighted(0.5, (0..60usize, any::<u8>())),
            cut in 0..120usize,
        ) {
            let mut data = v4(protocol, 0x4000, &l4);
            if protocol == 6 && l4.len() > 20 {
                data[34 + 12] = data[34 + 12] & 0x1f | 0x50;
            }
            if let Some((at, byte)) = change && at < data.len() {
                data[at] = byte;
            }
            data.truncate(cut);
            prop_assert_eq!(Headers::parse(&data), Headers::parse_any(&data));
        }
    }
}
