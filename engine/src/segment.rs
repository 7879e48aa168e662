//! Cuts a super-frame into the frames that the wire carries.
//!
//! ```text
//! | link | IP | TCP seq=s | payload of n * gso_size bytes, or a little less |
//!   --> n times | link | IP id+i len | TCP seq=s+i*gso_size | gso_size bytes |
//! ```
//!
//! As the kernel and the hardware cut: the IP identification counts up, CWR stays on the first
//! segment only, PSH and FIN on the last only, lengths and checksums are each segment's own. UDP
//! super-frames (`UDP_L4`) become datagrams of `gso_size` bytes of payload. Each segment is
//! written into one buffer that is used again for the next; nothing is allocated per frame.
//!
//! What cannot be cut (a kind that is not known here, headers that contradict themselves, a frame
//! that was not captured whole) stays whole; the caller counts it.

use crate::frame::{Frame, Offload, internet_checksum};
use crate::wire::{Headers, Network, protocol};

/// `gso_type` values of `virtio_net_hdr` (linux/virtio_net.h).
mod gso {
    /// TCP over IPv4.
    pub(super) const TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub(super) const TCPV6: u8 = 4;
    /// UDP, each segment a datagram (since Linux 6.2).
    pub(super) const UDP_L4: u8 = 5;
}

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// See the module. One per worker.
#[derive(Debug, Default)]
pub struct Cutter {
    segment: Vec<u8>,
}

impl Cutter {
    /// Hands each segment of a super-frame to `each`; false, and nothing is handed out, if it
    /// cannot be cut.
    pub fn cut(
        &mut self,
        frame: &Frame<'_>,
        headers: &Headers,
        mut each: impl FnMut(&Frame<'_>, &Headers),
    ) -> bool {
        if !can_cut(frame, headers) {
            return false;
        }
        let size = usize::from(frame.offload.gso_size);
        let header = &frame.data[..headers.payload];
        let payload = &frame.data[headers.payload..headers.end];
        let last = payload.len().div_ceil(size) - 1;
        for (at, chunk) in payload.chunks(size).enumerate() {
            self.segment.clear();
            self.segment.extend_from_slice(header);
            self.segment.extend_from_slice(chunk);
            let place = Place { at, offset: at * size, is_last: at == last };
            fix_headers(&mut self.segment, headers, place);
            let end = self.segment.len();
            let wire_len = u32::try_from(end).expect("a segment has 64 KiB at most");
            let segment =
                Frame { data: &self.segment, wire_len, offload: Offload::default(), ..*frame };
            each(&segment, &Headers { end, ..*headers });
        }
        true
    }
}

fn can_cut(frame: &Frame<'_>, headers: &Headers) -> bool {
    let kind_fits = match frame.offload.gso_type {
        gso::TCPV4 => headers.network == Network::V4 && headers.protocol == protocol::TCP,
        gso::TCPV6 => headers.network == Network::V6 && headers.protocol == protocol::TCP,
        gso::UDP_L4 => headers.protocol == protocol::UDP,
        _ => false,
    };
    kind_fits
        && frame.offload.gso_size != 0
        && headers.fragment.is_none()
        && headers.has_transport()
        && headers.end > headers.payload
        && frame.wire_len as usize == frame.data.len()
        // A segment's own length fields must hold it.
        && headers.payload - headers.l3 + usize::from(frame.offload.gso_size) <= 0xffff
}

#[derive(Clone, Copy)]
struct Place {
    at: usize,
    /// Bytes of payload before it.
    offset: usize,
    is_last: bool,
}

fn low16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).expect("masked")
}

fn fix_headers(segment: &mut [u8], headers: &Headers, place: Place) {
    let end = segment.len();
    let (l3, l4) = (headers.l3, headers.l4);
    match headers.network {
        Network::V4 => {
            segment[l3 + 2..l3 + 4].copy_from_slice(&low16(end - l3).to_be_bytes());
            let id = u16::from_be_bytes([segment[l3 + 4], segment[l3 + 5]]);
            let id = id.wrapping_add(low16(place.at));
            segment[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
            segment[l3 + 10..l3 + 12].fill(0);
            let sum = internet_checksum(&segment[l3..l4]);
            segment[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        Network::V6 => {
            segment[l3 + 4..l3 + 6].copy_from_slice(&low16(end - l3 - 40).to_be_bytes());
        }
        Network::Other => return,
    }
    let checksum_at = if headers.protocol == protocol::TCP {
        let sequence = u32::from_be_bytes([
            segment[l4 + 4],
            segment[l4 + 5],
            segment[l4 + 6],
            segment[l4 + 7],
        ]);
        let offset = u32::try_from(place.offset & 0xffff_ffff).expect("masked");
        segment[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if place.at != 0 {
            segment[l4 + 13] &= !TCP_CWR;
        }
        if !place.is_last {
            segment[l4 + 13] &= !(TCP_FIN | TCP_PSH);
        }
        l4 + 16
    } else {
        segment[l4 + 4..l4 + 6].copy_from_slice(&low16(end - l4).to_be_bytes());
        l4 + 6
    };
    segment[checksum_at..checksum_at + 2].fill(0);
    let sum = transport_checksum(&segment[l4..end], headers);
    segment[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Checksum over pseudo-header, transport header (its own field zero) and payload.
fn transport_checksum(l4: &[u8], headers: &Headers) -> u16 {
    // The sum is the same with IPv4-mapped addresses, but for the mapping's ffff, which is one's
    // complement zero.
    let mut pseudo = [0u8; 40];
    pseudo[..16].copy_from_slice(&headers.source.0.to_be_bytes());
    pseudo[16..32].copy_from_slice(&headers.destination.0.to_be_bytes());
    pseudo[32..36].copy_from_slice(&u32::try_from(l4.len()).unwrap_or(0).to_be_bytes());
    pseudo[39] = headers.protocol;
    let sum = u32::from(!internet_checksum(&pseudo)) + u32::from(!internet_checksum(l4));
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
    match (headers.protocol, checksum) {
        (protocol::UDP, 0) => 0xffff,
        (_, checksum) => checksum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Direction, Point};

    fn super_frame(network: Network, l4_protocol: u8, payload: &[u8]) -> Vec<u8> {
        let l4_len = if l4_protocol == protocol::TCP { 32 } else { 8 };
        let mut data = vec![2; 12];
        if network == Network::V4 {
            data.extend([8, 0]);
            let total = low16(20 + l4_len + payload.len()).to_be_bytes();
            data.extend([0x45, 0, total[0], total[1], 0xff, 0xfe, 0x40, 0, 64, l4_protocol, 0, 0]);
            data.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            data.extend([0x86, 0xdd]);
            let len = low16(l4_len + payload.len()).to_be_bytes();
            data.extend([0x60, 0, 0, 0, len[0], len[1], l4_protocol, 64]);
            data.extend([0xfd; 16]);
            data.extend([0xfe; 16]);
        }
        let l4 = data.len();
        data.resize(l4 + l4_len, 0);
        data[l4..l4 + 4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        if l4_protocol == protocol::TCP {
            data[l4 + 4..l4 + 8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
            data[l4 + 12] = 0x80;
            data[l4 + 13] = TCP_CWR | TCP_PSH | TCP_FIN | 0x10;
            data[l4 + 20..l4 + 32].fill(1); // NOPs
        }
        data.extend(payload);
        data
    }

    fn frame(data: &[u8], gso_type: u8, gso_size: u16) -> Frame<'_> {
        Frame {
            data,
            wire_len: u32::try_from(data.len()).unwrap(),
            timestamp_ns: 7,
            point: Point { ifindex: 1, direction: Direction::In },
            vlan: None,
            offload: Offload { partial_checksum: None, gso_size, gso_type },
        }
    }

    fn segments(frame: &Frame<'_>) -> Option<Vec<Vec<u8>>> {
        let mut out = Vec::new();
        let headers = Headers::parse(frame.data);
        Cutter::default()
            .cut(frame, &headers, |segment, cut| {
                assert_eq!(Headers::parse(segment.data), *cut, "the headers are the segment's own");
                out.push(segment.data.to_vec());
            })
            .then_some(out)
    }

    /// Zero for a right checksum, from the wire alone.
    fn residue(data: &[u8]) -> u16 {
        let headers = Headers::parse(data);
        let mut covered = Vec::<u8>::new();
        match headers.network {
            Network::V4 => covered.extend(&data[26..34]),
            _ => covered.extend(&data[22..54]),
        }
        covered.extend([0, headers.protocol]);
        covered.extend(low16(headers.end - headers.l4).to_be_bytes());
        covered.extend(&data[headers.l4..headers.end]);
        internet_checksum(&covered)
    }

    #[test]
    fn tcp_is_cut_as_the_wire_carries_it() {
        let payload: Vec<u8> = (0..2500).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for (network, kind) in [(Network::V4, gso::TCPV4), (Network::V6, gso::TCPV6)] {
            let data = super_frame(network, protocol::TCP, &payload);
            let cut = segments(&frame(&data, kind, 1000)).unwrap();
            assert_eq!(cut.len(), 3);
            let mut joined = Vec::<u8>::new();
            for (at, segment) in cut.iter().enumerate() {
                let headers = Headers::parse(segment);
                assert_eq!(residue(segment), 0, "{network:?} {at}");
                joined.extend(&segment[headers.payload..headers.end]);
                let l4 = &segment[headers.l4..];
                let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                let expected = 0xffff_ff00_u32.wrapping_add(1000 * u32::try_from(at).unwrap());
                assert_eq!(sequence, expected);
                let flags = [TCP_CWR | 0x10, 0x10, TCP_PSH | TCP_FIN | 0x10][at];
                assert_eq!(l4[13], flags);
                if network == Network::V4 {
                    assert_eq!(internet_checksum(&segment[14..34]), 0);
                    assert_eq!(segment[18..20], [[0xff, 0xfe], [0xff, 0xff], [0, 0]][at]);
                }
            }
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn udp_becomes_datagrams() {
        let data = super_frame(Network::V4, protocol::UDP, &[5; 250]);
        let cut = segments(&frame(&data, gso::UDP_L4, 100)).unwrap();
        let lens: Vec<usize> = cut.iter().map(Vec::len).collect();
        assert_eq!(lens, [142, 142, 92]);
        for segment in &cut {
            assert_eq!(residue(segment), 0);
            assert_eq!(
                usize::from(segment[39]) + usize::from(segment[38]) * 256,
                segment.len() - 34
            );
        }
    }

    #[test]
    fn what_cannot_be_cut_stays_whole() {
        let tcp = super_frame(Network::V4, protocol::TCP, &[5; 250]);
        assert!(segments(&frame(&tcp, 3, 100)).is_none(), "IP fragmentation offload");
        assert!(segments(&frame(&tcp, gso::TCPV6, 100)).is_none(), "the wrong family");
        assert!(segments(&frame(&tcp, gso::TCPV4, 0)).is_none());
        let cut_short = Frame { wire_len: 9000, ..frame(&tcp, gso::TCPV4, 100) };
        assert!(segments(&cut_short).is_none(), "not captured whole");
        let empty = super_frame(Network::V4, protocol::TCP, &[]);
        assert!(segments(&frame(&empty, gso::TCPV4, 100)).is_none());
        assert!(segments(&frame(&tcp[..20], gso::TCPV4, 100)).is_none(), "a runt");
        assert!(segments(&frame(&tcp, gso::TCPV4, u16::MAX)).is_none(), "no segment of that size");
    }
}
