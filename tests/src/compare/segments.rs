//! Cutting a TCP super-frame into the segments that the wire would carry.
//!
//! ```text
//! [IP id][TCP seq .. flags][ payload, n x mss + rest ]
//!    id + i, seq + i x mss; PSH and FIN on the last, CWR on the first; lengths, checksums
//! ```
//!
//! The segment size is what fits the MTU after this packet's own headers, which is how Linux
//! sizes them when both ends have that MTU.

use super::packet::{Packet, TCP};

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The segments of a packet that is longer than the MTU; any other packet as it is.
pub(crate) fn cut(packet: Packet, mtu: usize) -> Vec<Packet> {
    let Some(ip) = packet.ip() else { return vec![packet] };
    let Some(l4) = ip.l4.filter(|_l4| ip.protocol == TCP && !ip.fragment && ip.length > mtu) else {
        return vec![packet];
    };
    let data = &packet.data()[..ip.length];
    let headers = l4 + usize::from(data[l4 + 12] >> 4) * 4;
    if headers >= mtu || headers >= data.len() || packet.is_cut_short() {
        return vec![packet];
    }
    let payload = &data[headers..];
    let mss = mtu - headers;
    let count = payload.len().div_ceil(mss);
    (0..)
        .zip(payload.chunks(mss))
        .map(|(index, chunk)| {
            let last = usize::try_from(index).is_ok_and(|index: usize| index + 1 == count);
            let mut segment = data[..headers].to_vec();
            segment.extend_from_slice(chunk);
            if packet.is_ipv6() {
                set_word(&mut segment, 4, |_old| low_word(headers + chunk.len() - 40));
            } else {
                set_word(&mut segment, 2, |_old| low_word(headers + chunk.len()));
                set_word(&mut segment, 4, |id| id.wrapping_add(low_word_u32(index)));
            }
            let offset = index.wrapping_mul(u32::try_from(mss).unwrap_or(u32::MAX));
            let mut seq = [0; 4];
            seq.copy_from_slice(&segment[l4 + 4..l4 + 8]);
            let seq = u32::from_be_bytes(seq).wrapping_add(offset);
            segment[l4 + 4..l4 + 8].copy_from_slice(&seq.to_be_bytes());
            if !last {
                segment[l4 + 13] &= !FIN_PSH;
            }
            if index != 0 {
                segment[l4 + 13] &= !CWR;
            }
            let mut segment = Packet::parse(packet.ethertype(), segment, false);
            segment.complete_checksums();
            segment
        })
        .collect()
}

fn set_word(data: &mut [u8], at: usize, change: impl Fn(u16) -> u16) {
    let old = u16::from_be_bytes([data[at], data[at + 1]]);
    data[at..at + 2].copy_from_slice(&change(old).to_be_bytes());
}

/// A length that fits 16 bits, as it is at most the MTU.
fn low_word(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn low_word_u32(number: u32) -> u16 {
    let [_, _, high, low] = number.to_be_bytes();
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::{super::packet::samples, *};

    #[test]
    fn flags_ids_and_numbers_follow_the_kernels_rules() {
        let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
        // The sample has CWR, ACK, PSH, FIN: 0x99.
        let segments = cut(samples::tcp(0xffff, &payload), 1500);
        let field = |at: usize, bytes: usize| -> Vec<Vec<u8>> {
            segments.iter().map(|segment| segment.data()[at..at + bytes].to_vec()).collect()
        };
        assert_eq!(field(2, 2), [1500_u16, 1500, 120].map(|length| length.to_be_bytes().to_vec()));
        assert_eq!(field(4, 2), [0xffff_u16, 0, 1].map(|id| id.to_be_bytes().to_vec()));
        assert_eq!(field(24, 4), [1_u32, 1461, 2921].map(|seq| seq.to_be_bytes().to_vec()));
        assert_eq!(field(33, 1), [[0x90], [0x10], [0x19]]);
        let whole: Vec<u8> =
            segments.iter().flat_map(|segment| segment.data()[40..].to_vec()).collect();
        assert_eq!(whole, payload);
    }

    #[test]
    fn what_fits_is_left_alone() {
        let packet = samples::tcp(1, &[7; 1460]);
        assert_eq!(cut(packet.clone(), 1500), [packet]);
    }
}
