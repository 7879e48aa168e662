//! Link-layer addresses among the addresses of FINDALLIF.

/// A link-layer address in the list: the last of an interface's addresses, of a family that
/// libpcap's clients skip and nmap's does not read, with the other three slots empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLayer {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Ethernet address.
    pub address: [u8; 6],
}

/// `AF_PACKET`.
const FAMILY_PACKET: u16 = 17;
/// `ARPHRD_ETHER`.
const HARDWARE_ETHERNET: u16 = 1;
/// Bytes of a `sockaddr_ll` up to the end of an Ethernet address.
const LINK_LAYER_BYTES: usize = 18;

impl LinkLayer {
    /// A `sockaddr_ll` in network byte order: family, protocol 0, index, hardware type, packet
    /// type 0, address length, address.
    pub(super) fn to_bytes(self) -> [u8; LINK_LAYER_BYTES] {
        let mut bytes = [0; LINK_LAYER_BYTES];
        bytes[..2].copy_from_slice(&FAMILY_PACKET.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.ifindex.to_be_bytes());
        bytes[8..10].copy_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        bytes[11] = 6;
        bytes[12..].copy_from_slice(&self.address);
        bytes
    }

    /// `None` for what is no Ethernet address. The reference writes the index and the hardware
    /// type in its own byte order: the index may be wrong, the address is not.
    pub(super) fn read(slot: &[u8]) -> Option<Self> {
        let is_packet = slot[..2] == FAMILY_PACKET.to_be_bytes() && slot[11] == 6;
        let address = slot[12..LINK_LAYER_BYTES].try_into().ok().filter(|_| is_packet)?;
        let ifindex = u32::from_be_bytes([slot[4], slot[5], slot[6], slot[7]]);
        Some(Self { ifindex, address })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Address, Interface};
    use super::*;

    #[test]
    fn a_link_layer_address_comes_last_and_alone_in_its_entry() {
        let interface = Interface {
            addresses: vec![Address { address: [10, 0, 0, 1].into(), netmask: None }],
            link_layer: Some(LinkLayer { ifindex: 3, address: [2, 0, 0, 0, 0, 9] }),
            ..Interface::default()
        };
        let mut payload = Vec::new();
        interface.write(&mut payload);
        assert_eq!((payload.len(), &payload[8..10]), (12 + 2 * 512, &[0, 2][..]));
        let (last, rest) = payload[12 + 512..].split_at(18);
        assert_eq!(last, [0, 17, 0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 9]);
        assert!(rest.iter().all(|byte| *byte == 0));
    }
}
