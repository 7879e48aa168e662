//! Which bytes make a packet the same packet.

use super::packet::Packet;

/// What to do with TCP, UDP and ICMP checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// Not compared: a veth leaves them to hardware that is not there.
    #[default]
    Ignore,
    /// The sensor's must be right: what was sent is completed before it is compared.
    Right,
    /// The sensor's must be what was sent, right or wrong.
    AsSent,
}

/// What of a packet is compared. Never compared: link header, VLAN tag, TTL or hop limit, and
/// the IPv4 header's checksum, which follows the TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// TCP, UDP and ICMP checksums.
    pub checksums: Checksums,
    /// Compare the two ECN bits.
    pub ecn: bool,
    /// Compare what follows the IP packet in its frame (padding to the link's least size).
    pub padding: bool,
}

impl Default for Identity {
    /// What no node changes.
    fn default() -> Self {
        Self { checksums: Checksums::Ignore, ecn: false, padding: false }
    }
}

impl Identity {
    /// Byte for byte after the link header: for frames that leave the pod with their checksums
    /// done.
    #[must_use]
    pub fn strict() -> Self {
        Self { checksums: Checksums::AsSent, ecn: true, padding: true }
    }

    /// The key of a packet as it should be reported.
    pub(crate) fn expected(&self, packet: &Packet) -> Vec<u8> {
        if self.checksums == Checksums::Right {
            let mut packet = packet.clone();
            packet.complete_checksums();
            return self.key(&packet);
        }
        self.key(packet)
    }

    /// The key of a packet as it was reported.
    pub(crate) fn reported(&self, packet: &Packet) -> Vec<u8> {
        self.key(packet)
    }

    pub(crate) fn key(&self, packet: &Packet) -> Vec<u8> {
        let mut key = packet.data().to_vec();
        if let Some(ip) = packet.ip() {
            if packet.is_ipv6() {
                key[7] = 0;
                if !self.ecn {
                    key[1] &= !0x30;
                }
            } else {
                key[8] = 0;
                key[10..12].fill(0);
                if !self.ecn {
                    key[1] &= !0x03;
                }
            }
            if self.checksums == Checksums::Ignore
                && let Some(at) = packet.l4_checksum_at()
            {
                key[at..at + 2].fill(0);
            }
            if !self.padding {
                key.truncate(ip.length);
            }
        }
        key.extend_from_slice(&packet.ethertype().to_be_bytes());
        // A packet that the snap length cut is not the whole packet that it begins.
        key.push(u8::from(packet.is_cut_short()));
        key
    }
}

#[cfg(test)]
mod tests {
    use super::{super::packet::samples, *};

    fn changed(at: usize, to: u8) -> Packet {
        let mut data = samples::tcp(1, b"x").data().to_vec();
        data[at] = to;
        Packet::parse(0x0800, data, false)
    }

    #[test]
    fn what_a_node_changes_is_not_compared_and_all_else_is() {
        let identity = Identity::default();
        let packet = samples::tcp(1, b"x");
        let ignored = [8, 10, 11, 36, 37]; // TTL, IP checksum, TCP checksum
        for at in 1..packet.data().len() {
            // The header length decides where everything is; lengths and fragment bits too.
            let flipped = packet.data()[at] ^ 0x04;
            let same = identity.key(&changed(at, flipped)) == identity.key(&packet);
            assert_eq!(same, ignored.contains(&at), "byte {at}");
        }
        let ce = changed(1, 0x03);
        assert_eq!(identity.key(&ce), identity.key(&packet));
        assert_ne!(Identity::strict().key(&ce), Identity::strict().key(&packet));
    }

    #[test]
    fn a_right_checksum_is_demanded_of_the_sensor_only() {
        let identity = Identity { checksums: Checksums::Right, ..Identity::default() };
        let right = samples::tcp(1, b"x");
        let partial = changed(36, right.data()[36] ^ 1);
        assert_eq!(identity.expected(&partial), identity.reported(&right));
        assert_ne!(identity.expected(&right), identity.reported(&partial));
    }

    #[test]
    fn padding_counts_only_when_asked() {
        let packet = samples::tcp(1, b"x");
        let mut data = packet.data().to_vec();
        data.extend([0; 5]);
        let padded = Packet::parse(0x0800, data, false);
        let identity = Identity::default();
        assert_eq!(identity.key(&padded), identity.key(&packet));
        assert_ne!(Identity::strict().key(&padded), Identity::strict().key(&packet));
    }

    #[test]
    fn a_cut_packet_is_not_the_whole_one() {
        let packet = samples::tcp(1, b"x");
        let cut = Packet::parse(0x0800, packet.data().to_vec(), true);
        assert_ne!(Identity::default().key(&cut), Identity::default().key(&packet));
    }
}
