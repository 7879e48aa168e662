//! The Internet checksum (RFC 1071), and completing a packet's.

/// One's complement sum of the bytes as big-endian words, continued from `sum`.
fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
        sum += u32::from(u16::from_be_bytes(word));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn finish(sum: u32) -> [u8; 2] {
    let folded = (sum & 0xffff) + (sum >> 16);
    // `add` leaves at most 16 bits and a carry, which the fold has taken in.
    let [_, _, high, low] = (!folded).to_be_bytes();
    [high, low]
}

/// Writes the IPv4 header's checksum. `packet` begins with a complete header.
pub(crate) fn set_ipv4(packet: &mut [u8], header_bytes: usize) {
    packet[10..12].fill(0);
    let sum = finish(add(0, &packet[..header_bytes]));
    packet[10..12].copy_from_slice(&sum);
}

/// The L4 checksum of `segment`, whose checksum field is zero; `addresses` are both IP addresses.
pub(crate) fn l4(addresses: &[u8], protocol: u8, segment: &[u8]) -> [u8; 2] {
    let mut sum = 0;
    // ICMP has no pseudo-header; ICMPv6 does.
    if protocol != 1 {
        sum = add(sum, addresses);
        sum = add(sum, &[0, protocol]);
        let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
        sum = add(sum, &length.to_be_bytes());
    }
    let checksum = finish(add(sum, segment));
    // A UDP checksum of 0 would mean "none".
    if protocol == 17 && checksum == [0, 0] { [0xff, 0xff] } else { checksum }
}

/// A checksum as a number, its two zeros being one.
pub(crate) fn one_zero(high: u8, low: u8) -> u16 {
    match u16::from_be_bytes([high, low]) {
        0xffff => 0,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_header_gets_its_known_checksum() {
        // The example of RFC 1071's common illustration: checksum 0xb861.
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xff, 0xff, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        set_ipv4(&mut header, 20);
        assert_eq!(header[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn a_complete_segment_sums_to_zero() {
        let addresses = [10, 0, 1, 101, 10, 0, 2, 101];
        let mut segment = [0_u8, 53, 0x9c, 0x40, 0, 11, 0, 0, 1, 2, 3];
        let sum = l4(&addresses, 17, &segment);
        segment[6..8].copy_from_slice(&sum);
        let verify = add(add(add(add(0, &addresses), &[0, 17]), &[0, 0, 0, 11]), &segment);
        assert_eq!(verify, 0xffff);
    }
}
