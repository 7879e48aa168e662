//! Cutting a super-frame as its vnet header says.
//!
//! ```text
//! [IP id][TCP seq flags | UDP length][payload, n x gso_size + rest]
//!    id + i; seq + i x gso_size; PSH, FIN on the last, CWR on the first; lengths
//! ```
//!
//! Lengths are taken from what was captured, not from the IP header: beyond 64 kB it has none.

/// `struct virtio_net_hdr`: needs a checksum; segmentation of TCP over IPv4, over IPv6, of UDP.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// What the sender left to the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offload {
    pub(crate) needs_checksum: bool,
    kind: u8,
    size: usize,
}

impl Offload {
    /// From a vnet header, at least 10 bytes.
    pub(crate) fn read(vnet: &[u8]) -> Self {
        let kind = vnet[1] & !GSO_ECN;
        Self {
            needs_checksum: vnet[0] & NEEDS_CSUM != 0 || kind != 0,
            kind,
            size: usize::from(u16::from_ne_bytes([vnet[4], vnet[5]])),
        }
    }
}

/// The segments of a packet, from the network header on. Their transport checksums are to be
/// computed.
pub(crate) fn segments(packet: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, String> {
    if offload.kind == 0 {
        return Ok(vec![packet.to_vec()]);
    }
    let cannot = || format!("a super-frame of kind {} cannot be cut", offload.kind);
    let packet = without_jumbo(packet);
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let l4 = if is_v6 { 40 } else { usize::from(packet[0] & 0x0f) * 4 };
    let headers = match offload.kind {
        GSO_TCPV4 | GSO_TCPV6 => l4 + usize::from(packet.get(l4 + 12).ok_or_else(cannot)? >> 4) * 4,
        GSO_UDP_L4 => l4 + 8,
        _ => return Err(cannot()),
    };
    let is_tcp = offload.kind != GSO_UDP_L4;
    let protocol = if is_v6 { packet[6] } else { packet[9] };
    if offload.size == 0 || packet.len() < headers || protocol != if is_tcp { 6 } else { 17 } {
        return Err(cannot());
    }
    let payload = &packet[headers..];
    let count = payload.len().div_ceil(offload.size);
    let mut segments = Vec::with_capacity(count);
    for (index, part) in payload.chunks(offload.size).enumerate() {
        let mut segment = packet[..headers].to_vec();
        segment.extend_from_slice(part);
        let length = segment.len();
        if is_v6 {
            put(&mut segment, 4, length - 40);
        } else {
            put(&mut segment, 2, length);
            let id = usize::from(u16::from_be_bytes([segment[4], segment[5]]));
            put(&mut segment, 4, (id + index) & 0xffff);
        }
        if is_tcp {
            let seq = [segment[l4 + 4], segment[l4 + 5], segment[l4 + 6], segment[l4 + 7]];
            let offset = u32::try_from(index * offload.size).map_err(|_large| cannot())?;
            let seq = u32::from_be_bytes(seq).wrapping_add(offset);
            segment[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
            if index + 1 != count {
                segment[l4 + 13] &= !FIN_PSH;
            }
            if index != 0 {
                segment[l4 + 13] &= !CWR;
            }
        } else {
            put(&mut segment, l4 + 4, length - l4);
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// Beyond 64 kB an IPv6 packet may have a jumbogram's hop-by-hop header on the host, which its
/// segments have not.
fn without_jumbo(packet: &[u8]) -> Vec<u8> {
    let is_jumbo = packet.len() > 48
        && packet[0] >> 4 == 6
        && packet[6] == 0
        && packet[4..6] == [0, 0]
        && packet[42] == 0xc2;
    let mut packet = packet.to_vec();
    if is_jumbo {
        packet[6] = packet[40];
        packet.drain(40..48);
    }
    packet
}

fn put(data: &mut [u8], at: usize, value: usize) {
    // Lengths of one segment: at most 64 kB, as the GSO size is 16 bits.
    let value = u16::try_from(value).unwrap_or(u16::MAX);
    data[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::{super::craft, *};

    fn offload(kind: u8, size: u16) -> Offload {
        let mut vnet = [0; 10];
        vnet[1] = kind;
        vnet[4..6].copy_from_slice(&size.to_ne_bytes());
        Offload::read(&vnet)
    }

    #[test]
    fn tcp_is_cut_as_the_kernel_does_it() {
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let packet = craft::tcp(from, to, 0xffff, (u32::MAX, 1, 0x99), &[7; 2500]);
        let parts = segments(&packet, offload(GSO_TCPV4, 1000)).unwrap();
        let field = |at: usize, bytes: usize| -> Vec<Vec<u8>> {
            parts.iter().map(|part| part[at..at + bytes].to_vec()).collect()
        };
        assert_eq!(field(2, 2), [[4, 16], [4, 16], [2, 28]]);
        assert_eq!(field(4, 2), [[0xff, 0xff], [0, 0], [0, 1]]);
        assert_eq!(field(24, 4)[1], 999_u32.to_be_bytes());
        assert_eq!(field(33, 1), [[0x90], [0x10], [0x19]]);
    }

    #[test]
    fn udp_is_cut_with_its_lengths() {
        let (from, to) = ("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap());
        let packet = craft::udp(from, to, 0, &[7; 250]);
        let parts = segments(&packet, offload(GSO_UDP_L4, 100)).unwrap();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [148, 148, 98]);
        assert_eq!(parts[2][4..6], [0, 58]);
        assert_eq!(parts[2][44..46], [0, 58]);
    }

    #[test]
    fn what_it_does_not_know_it_does_not_cut() {
        let packet = [0x45; 60];
        assert!(segments(&packet, offload(3, 100)).is_err());
        assert!(segments(&packet, offload(GSO_TCPV4, 0)).is_err());
        assert_eq!(segments(&packet, offload(0, 0)).unwrap(), [packet.to_vec()]);
    }
}
