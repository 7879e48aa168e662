//! The payload of a FINDALLIF reply: the interfaces of a node and their addresses.
//!
//! ```text
//! | name_len | description_len | flags | addresses | 0 | name | description | address x 512 |  each
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::read::{Malformed, Reader};

/// Bytes of one address slot of FINDALLIF; each address has four.
const ADDRESS_SLOT: usize = 128;
/// Bytes of an interface entry before its name.
const INTERFACE_FIXED: usize = 12;
/// The most bytes of a name or description that clients accept.
const MAX_NAME: usize = 1024;

/// An address of an interface, with its netmask where it is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's own address.
    pub address: IpAddr,
    /// IPv4 netmask. For IPv6 the slot stays empty on the wire: clients crash on it otherwise.
    pub netmask: Option<Ipv4Addr>,
}

/// One entry of a FINDALLIF reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name to be given to OPEN; at most 1024 bytes.
    pub name: String,
    /// Free text; at most 1024 bytes.
    pub description: String,
    /// 1 loopback, 2 up, 4 running, 0x10 connected, 0x20 disconnected.
    pub flags: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

impl Interface {
    /// Appends the entry to a FINDALLIF reply's payload.
    pub fn write(&self, out: &mut Vec<u8>) {
        let name = &self.name.as_bytes()[..self.name.len().min(MAX_NAME)];
        let description = &self.description.as_bytes()[..self.description.len().min(MAX_NAME)];
        let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
        let count = self.addresses.len().min(u16::MAX.into());
        out.extend(short(name.len()));
        out.extend(short(description.len()));
        out.extend(self.flags.to_be_bytes());
        out.extend(short(count));
        out.extend([0, 0]);
        out.extend_from_slice(name);
        out.extend_from_slice(description);
        for entry in &self.addresses[..count] {
            write_slot(out, Some(entry.address));
            write_slot(out, entry.netmask.map(IpAddr::V4));
            write_slot(out, None);
            write_slot(out, None);
        }
    }

    /// Reads `count` entries from a FINDALLIF reply's payload.
    pub fn read_all(payload: &[u8], count: u16) -> Result<Vec<Self>, Malformed> {
        let mut reader = Reader(payload);
        let mut interfaces = Vec::new();
        for _ in 0..count {
            let name_len = usize::from(reader.u16("interface name length")?);
            let description_len = usize::from(reader.u16("interface description length")?);
            if name_len > MAX_NAME || description_len > MAX_NAME {
                return Err(Malformed("interface name or description is longer than 1024 bytes"));
            }
            let flags = reader.u32("interface flags")?;
            let address_count = reader.u16("interface address count")?;
            reader.u16("interface padding")?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let name = text(reader.take(name_len, "interface name")?);
            let description = text(reader.take(description_len, "interface description")?);
            let mut addresses = Vec::new();
            for _ in 0..address_count {
                let slots = reader.take(4 * ADDRESS_SLOT, "interface address")?;
                let (own, rest) = slots.split_at(ADDRESS_SLOT);
                let netmask = match read_slot(&rest[..ADDRESS_SLOT]) {
                    Some(IpAddr::V4(mask)) => Some(mask),
                    _ => None,
                };
                if let Some(address) = read_slot(own) {
                    addresses.push(Address { address, netmask });
                }
            }
            interfaces.push(Self { name, description, flags, addresses });
        }
        Ok(interfaces)
    }

    /// Bytes that [`write`](Self::write) appends at least, for capacity.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        INTERFACE_FIXED
            + self.name.len()
            + self.description.len()
            + self.addresses.len() * 4 * ADDRESS_SLOT
    }
}

/// Windows' value of `AF_INET6`, which the protocol uses on every platform.
const FAMILY_IPV6: u16 = 23;

fn write_slot(out: &mut Vec<u8>, address: Option<IpAddr>) {
    let start = out.len();
    out.resize(start + ADDRESS_SLOT, 0);
    let slot = &mut out[start..];
    match address {
        Some(IpAddr::V4(v4)) => {
            slot[..2].copy_from_slice(&2u16.to_be_bytes());
            slot[4..8].copy_from_slice(&v4.octets());
        }
        Some(IpAddr::V6(v6)) => {
            slot[..2].copy_from_slice(&FAMILY_IPV6.to_be_bytes());
            slot[8..24].copy_from_slice(&v6.octets());
        }
        None => {}
    }
}

/// How systems call IPv4 in a slot: everybody 2, the BSDs with the structure's length before it.
const FAMILIES_IPV4: [u16; 3] = [2, 0x1002, 0x1000];
/// How systems call IPv6: Windows (and the protocol), Linux (and ExtraHop's daemon, which sends its
/// own), HP-UX, AIX, Solaris; the BSDs with the length before it.
const FAMILIES_IPV6: [u16; 9] = [FAMILY_IPV6, 10, 22, 24, 26, 0x1c18, 0x1c1c, 0x1c1e, 0x1c00];

/// The address of a slot; `None` if it has none, or a kind (link layer, say) that is not ours.
fn read_slot(slot: &[u8]) -> Option<IpAddr> {
    let family = u16::from_be_bytes([slot[0], slot[1]]);
    if FAMILIES_IPV4.contains(&family) {
        return Some(IpAddr::V4(Ipv4Addr::new(slot[4], slot[5], slot[6], slot[7])));
    }
    let octets: [u8; 16] = slot[8..24].try_into().ok()?;
    FAMILIES_IPV6.contains(&family).then(|| IpAddr::V6(Ipv6Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn interfaces_survive_the_wire() {
        let interfaces = vec![
            Interface {
                name: "any-eth".into(),
                description: "every interface ;preselected".into(),
                flags: 6,
                addresses: vec![],
            },
            Interface {
                name: "eth0".into(),
                description: String::new(),
                flags: 0x16,
                addresses: vec![
                    Address {
                        address: "10.0.0.1".parse().unwrap(),
                        netmask: Some("255.255.0.0".parse().unwrap()),
                    },
                    Address { address: "fd00::1".parse().unwrap(), netmask: None },
                ],
            },
        ];
        let mut payload = Vec::new();
        for interface in &interfaces {
            let before = payload.len();
            interface.write(&mut payload);
            assert_eq!(payload.len() - before, interface.encoded_len());
        }
        assert_eq!(Interface::read_all(&payload, 2).unwrap(), interfaces);
        Interface::read_all(&payload[..payload.len() - 1], 2).unwrap_err();
    }

    #[test]
    fn every_system_s_name_for_a_family_is_understood() {
        let entry = |family: u16| {
            let mut payload = vec![0, 1, 0, 0, 0, 0, 0, 6, 0, 1, 0, 0, b'x'];
            let mut slot = [0; ADDRESS_SLOT];
            slot[..2].copy_from_slice(&family.to_be_bytes());
            slot[4..8].copy_from_slice(&[192, 0, 2, 1]);
            slot[8..24].copy_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
            payload.extend(slot);
            payload.extend([0; 3 * ADDRESS_SLOT]);
            Interface::read_all(&payload, 1).unwrap()[0].addresses.clone()
        };
        let v4 = Address { address: "192.0.2.1".parse().unwrap(), netmask: None };
        let v6 = Address { address: "fd00::1".parse().unwrap(), netmask: None };
        for family in FAMILIES_IPV4 {
            assert_eq!(entry(family), [v4], "{family:#x}");
        }
        for family in FAMILIES_IPV6 {
            assert_eq!(entry(family), [v6], "{family:#x}");
        }
        // AF_PACKET, as ExtraHop's daemon sends it; and an empty slot.
        for family in [17, 0, 0xffff] {
            assert_eq!(entry(family), [], "{family:#x}");
        }
    }

    #[test]
    fn a_name_longer_than_1024_bytes_is_refused() {
        let list = |name: usize, description: usize| {
            let mut payload = Vec::new();
            for len in [name, description] {
                payload.extend(u16::try_from(len).unwrap().to_be_bytes());
            }
            payload.extend([0; 8]);
            payload.extend(vec![b'x'; name + description]);
            Interface::read_all(&payload, 1)
        };
        assert_eq!(list(1_024, 1_024).unwrap()[0].name.len(), 1_024);
        for (name, description) in [(1_025, 0), (1, 1_025), (65_535, 65_535)] {
            let refusal = list(name, description).unwrap_err();
            assert!(refusal.to_string().contains("longer than 1024 bytes"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), count: u16) {
            let _ = Interface::read_all(&bytes, count);
        }
    }
}
