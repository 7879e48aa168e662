//! Where the parts of a super-frame are that change from segment to segment.
//!
//! ```text
//! | link | IP | TCP or UDP | payload                                       plain
//! | link | IP | UDP | VXLAN, Geneve | link | IP | TCP or UDP | payload     a tunnel: `outer`, then the same
//! ```
//!
//! `PACKET_VNET_HDR` has no word for tunnels (the kernel leaves `SKB_GSO_UDP_TUNNEL` out of it): a TCP
//! super-frame in VXLAN is called TCP, and its outer header is UDP. What tells is where the checksum
//! begins that was left to the hardware: at the innermost transport header. So tunnels are known by their shape and that
//! number, whatever their port.

use super::fix::{pseudo_sum, pseudo_sum_of_seed};
use crate::frame::Frame;
use crate::wire::{Headers, Network, be16, protocol};

/// `gso_type` values of `virtio_net_hdr` (linux/virtio_net.h).
pub(super) mod gso {
    /// TCP over IPv4.
    pub(in super::super) const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub(in super::super) const TCPV6: u8 = 4;
    /// UDP, each segment a datagram (since Linux 6.2).
    pub(in super::super) const UDP_L4: u8 = 5;
}

const GRE: u8 = 47;
const UDP_HEADER: usize = 8;
/// VXLAN's, and Geneve's without options.
const TUNNEL_HEADER: usize = 8;
/// The hop-by-hop header with the jumbo payload option (RFC 2675) and nothing else.
const JUMBO_HEADER: usize = 8;
/// Past the largest that the kernel makes (`GSO_MAX_SIZE`, 512 KiB) a length is garbage.
const MAX_PAYLOAD: usize = 1 << 20;

/// The headers around a tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) headers: Headers,
    /// Its transport header is UDP.
    pub(super) is_udp: bool,
    /// As [`Plan::pseudo`]; `None` where it has no checksum.
    pub(super) pseudo: Option<u16>,
}

/// See the module. Offsets are those of the segments; the frame's own are `JUMBO_HEADER` more behind `jumbo`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) outer: Option<Outer>,
    /// The innermost network and transport header.
    pub(super) inner: Headers,
    /// What the pseudo-header adds to the checksum, its length left out; `None` where the datagrams
    /// have no checksum.
    pub(super) pseudo: Option<u16>,
    /// Start of a hop-by-hop header in the frame that the segments do not have.
    pub(super) jumbo: Option<usize>,
    /// Start of the payload in the frame.
    pub(super) payload: usize,
    /// Bytes of it, captured or not.
    pub(super) payload_len: usize,
}

impl Plan {
    /// `None` for what cannot be cut.
    pub(super) fn of(frame: &Frame<'_>, headers: &Headers) -> Option<Self> {
        let start = frame.offload.partial_checksum.map(|(start, _)| usize::from(start));
        let fits = |headers: &Headers| {
            is_kind(frame.offload.gso_type, headers) && start.is_none_or(|at| at == headers.l4)
        };
        let (outer, inner) = if fits(headers) {
            (None, *headers)
        } else {
            let inner = inner(frame.data, headers, fits)?;
            (Some(outer(frame.data, headers)), inner)
        };
        let payload = inner.payload;
        let end = end_of_packet(frame, headers)?;
        let payload_len = end.checked_sub(payload)?;
        let size = usize::from(frame.offload.gso_size);
        let can_cut = size != 0
            && (1..=MAX_PAYLOAD).contains(&payload_len)
            && headers.fragment.is_none()
            // A segment's own length fields must hold it.
            && payload - headers.l3 + size <= 0xffff;
        if !can_cut {
            return None;
        }
        let jumbo = if outer.is_none() { jumbo(frame.data, headers) } else { None };
        let removed = if jumbo.is_some() { JUMBO_HEADER } else { 0 };
        let has_extensions = inner.network == Network::V6 && inner.l4 > inner.l3 + 40;
        let pseudo = match start {
            // A routing header: the checksum is not over the destination that the header names.
            Some(_) if has_extensions => {
                let at = inner.l4 + checksum_offset(inner.protocol);
                Some(pseudo_sum_of_seed(be16(frame.data, at)?, end - inner.l4))
            }
            None if inner.protocol == protocol::UDP
                && be16(frame.data, inner.l4 + 6) == Some(0) =>
            {
                None
            }
            _ => Some(pseudo_sum(&inner)),
        };
        let inner = Headers { l4: inner.l4 - removed, payload: payload - removed, ..inner };
        Some(Self { outer, inner, pseudo, jumbo, payload, payload_len })
    }

    /// Puts the segments' common headers into `segment`.
    pub(super) fn start(&self, data: &[u8], segment: &mut Vec<u8>) {
        segment.clear();
        let Some(at) = self.jumbo else {
            segment.extend_from_slice(&data[..self.payload]);
            return;
        };
        segment.extend_from_slice(&data[..at]);
        segment.extend_from_slice(&data[at + JUMBO_HEADER..self.payload]);
        segment[self.inner.l3 + 6] = data[at];
    }
}

fn is_kind(gso_type: u8, headers: &Headers) -> bool {
    let kind_fits = match gso_type {
        gso::TCPV4 => headers.network == Network::V4 && headers.protocol == protocol::TCP,
        gso::TCPV6 => headers.network == Network::V6 && headers.protocol == protocol::TCP,
        gso::UDP_L4 => headers.protocol == protocol::UDP,
        _ => false,
    };
    kind_fits && headers.has_transport() && headers.fragment.is_none()
}

/// End of the packet on the wire, counted in the frame's bytes whether they were captured or not.
fn end_of_packet(frame: &Frame<'_>, headers: &Headers) -> Option<usize> {
    let wire_len = usize::try_from(frame.wire_len).ok()?;
    let claimed = match headers.network {
        Network::V4 => match usize::from(be16(frame.data, headers.l3 + 2)?) {
            0 => wire_len,
            total => headers.l3 + total,
        },
        Network::V6 => match usize::from(be16(frame.data, headers.l3 + 4)?) {
            0 => wire_len,
            len => headers.l3 + 40 + len,
        },
        Network::Other => return None,
    };
    Some(claimed.min(wire_len))
}

/// Where the jumbo header of BIG TCP stands: right behind the IPv6 header, and alone.
fn jumbo(data: &[u8], headers: &Headers) -> Option<usize> {
    if headers.network != Network::V6 || be16(data, headers.l3 + 4) != Some(0) {
        return None;
    }
    let at = headers.l3 + 40;
    let header = data.get(at..at + JUMBO_HEADER)?;
    // Hop-by-hop, eight bytes of it, with option 0xc2 of four bytes.
    (data[headers.l3 + 6] == 0 && header[1] == 0 && header[2..4] == [0xc2, 4]).then_some(at)
}

/// Where in a transport header its checksum stands.
pub(super) fn checksum_offset(of: u8) -> usize {
    if of == protocol::TCP { 16 } else { 6 }
}

fn outer(data: &[u8], headers: &Headers) -> Outer {
    let is_udp = headers.protocol == protocol::UDP;
    let has_checksum = is_udp && be16(data, headers.l4 + 6).is_some_and(|sum| sum != 0);
    Outer { headers: *headers, is_udp, pseudo: has_checksum.then(|| pseudo_sum(headers)) }
}

/// The headers inside the tunnel whose outer ones are `headers`, the offsets counted from the
/// frame's first byte.
fn inner(data: &[u8], headers: &Headers, fits: impl Fn(&Headers) -> bool) -> Option<Headers> {
    let whole = &data[..headers.end];
    let ethernet = |at: usize| {
        let inner = Headers::parse(whole.get(at..)?);
        Some(Headers {
            l3: at + inner.l3,
            l4: at + inner.l4,
            payload: at + inner.payload,
            end: at + inner.end,
            ..inner
        })
    };
    let right = |found: &Headers| fits(found) && found.end == headers.end;
    let packet = |at: usize| Headers::parse_packet(whole, at);
    match headers.protocol {
        protocol::UDP if headers.payload == headers.l4 + UDP_HEADER => {
            let first = *whole.get(headers.payload)?;
            let after = headers.payload + TUNNEL_HEADER;
            let options = usize::from(first & 0x3f) * 4;
            // VXLAN; Geneve, which counts its options in words; the two with a packet and no
            // frame; a packet right in UDP.
            [ethernet(after), ethernet(after + options), packet(after), packet(after + options)]
                .into_iter()
                .chain([packet(headers.payload)])
                .flatten()
                .find(right)
        }
        protocol::IPIP | protocol::IPV6 => packet(headers.l4).filter(right),
        GRE => {
            // Only a key may be there: a checksum or a sequence number would be each segment's own.
            let flags = be16(whole, headers.l4)?;
            let after = headers.l4 + if flags & 0x2000 != 0 { 8 } else { 4 };
            let kind = be16(whole, headers.l4 + 2)?;
            let inner = if kind == 0x6558 { ethernet(after) } else { packet(after) };
            inner.filter(right).filter(|_| flags & !0x2000 == 0)
        }
        _ => None,
    }
}
