//! Addresses as one kind of number, and sets of prefixes of them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// An IP address; IPv4 ones in their IPv4-mapped form (`::ffff:a.b.c.d`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u128);

impl Address {
    /// `::`.
    pub const UNSPECIFIED: Self = Self(0);
    const MAPPED: u128 = 0xffff_0000_0000;

    /// From the four octets of an IPv4 address.
    #[must_use]
    pub fn from_v4(octets: [u8; 4]) -> Self {
        Self(Self::MAPPED | u128::from(u32::from_be_bytes(octets)))
    }

    /// From the sixteen octets of an IPv6 address.
    #[must_use]
    pub fn from_v6(octets: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(octets))
    }

    /// For printing and for sockets.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// 224.0.0.0/4, ff00::/8.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0 >> 120 == 0xff || self.0 >> 28 == (Self::MAPPED | 0xe000_0000) >> 28
    }

    /// 169.254.0.0/16, fe80::/10.
    #[must_use]
    pub fn is_link_local(self) -> bool {
        self.0 >> 118 == 0x3fa || self.0 >> 16 == (Self::MAPPED | 0xa9fe_0000) >> 16
    }

    /// The bits of the IPv4 address, if it is one.
    #[must_use]
    #[inline]
    pub fn as_v4(self) -> Option<u32> {
        let low = u32::try_from(self.0 & 0xffff_ffff).expect("masked");
        (self.0 >> 32 == Self::MAPPED >> 32).then_some(low)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

/// A set of prefixes, built once and then only asked.
///
/// One sorted list per prefix length that occurs: a look-up costs a mask and a search for each
/// length, and nodes have few (host routes, one or two subnets).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    lengths: Vec<(u128, Vec<u128>)>,
}

/// Networks, each with its mask.
pub type Networks<T> = Vec<(T, T)>;

/// Lists up to this long are searched from front to back, which beats halving.
const LINEAR: usize = 8;

impl PrefixSet {
    /// The set of these prefixes.
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let mut by_length = std::collections::BTreeMap::<u8, Vec<u128>>::new();
        for prefix in prefixes {
            let bits = match prefix {
                IpNet::V4(v4) => v4.prefix_len() + 96,
                IpNet::V6(v6) => v6.prefix_len(),
            };
            let network = Address::from(prefix.network()).0 & mask(bits);
            by_length.entry(bits).or_default().push(network);
        }
        let lengths = by_length
            .into_iter()
            .map(|(bits, mut networks)| {
                networks.sort_unstable();
                networks.dedup();
                (mask(bits), networks)
            })
            .collect();
        Self { lengths }
    }

    /// The set of these addresses.
    pub fn of_hosts(hosts: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::new(hosts.into_iter().map(IpNet::from))
    }

    /// True if a prefix of the set holds `address`.
    #[must_use]
    pub fn contains(&self, address: Address) -> bool {
        self.lengths.iter().any(|(mask, networks)| {
            let network = address.0 & mask;
            if networks.len() <= LINEAR {
                networks.contains(&network)
            } else {
                networks.binary_search(&network).is_ok()
            }
        })
    }

    /// First and last address of each prefix.
    pub fn ranges(&self) -> impl Iterator<Item = (u128, u128)> {
        self.lengths
            .iter()
            .flat_map(|(mask, networks)| networks.iter().map(move |first| (*first, first | !mask)))
    }

    /// True if it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The IPv4 prefixes as (network, mask), then the IPv6 ones, for the kernel's filter.
    #[must_use]
    pub fn split(&self) -> (Networks<u32>, Networks<u128>) {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (mask, networks) in &self.lengths {
            for network in networks {
                let low = |number: u128| u32::try_from(number & 0xffff_ffff).unwrap_or(0);
                if network >> 32 == Address::MAPPED >> 32 && mask >> 32 == u128::MAX >> 32 {
                    v4.push((low(*network), low(*mask)));
                } else {
                    v6.push((*network, *mask));
                }
            }
        }
        (v4, v6)
    }
}

fn mask(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(prefixes: &[&str]) -> PrefixSet {
        PrefixSet::new(prefixes.iter().map(|text| text.parse().unwrap()))
    }

    fn has(set: &PrefixSet, ip: &str) -> bool {
        set.contains(ip.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn what_stays_on_its_link_is_known_by_its_address() {
        for (ip, is_multicast, is_link_local) in [
            ("224.0.0.1", true, false),
            ("239.255.255.255", true, false),
            ("240.0.0.1", false, false),
            ("223.255.255.255", false, false),
            ("169.254.1.1", false, true),
            ("169.253.1.1", false, false),
            ("ff02::1", true, false),
            ("fe80::1", false, true),
            ("febf::1", false, true),
            ("fec0::1", false, false),
            ("::", false, false),
        ] {
            let address = Address::from(ip.parse::<IpAddr>().unwrap());
            assert_eq!(address.is_multicast(), is_multicast, "{ip}");
            assert_eq!(address.is_link_local(), is_link_local, "{ip}");
        }
    }

    #[test]
    fn prefixes_of_both_families_live_together() {
        let set = set(&["10.0.0.0/8", "192.168.1.7/32", "fd00::/16", "2001:db8::1/128"]);
        for inside in ["10.255.0.1", "192.168.1.7", "fd00:1::9", "2001:db8::1"] {
            assert!(has(&set, inside), "{inside}");
        }
        for outside in ["11.0.0.0", "192.168.1.8", "fc00::1", "2001:db8::2", "::"] {
            assert!(!has(&set, outside), "{outside}");
        }
    }

    #[test]
    fn everything_is_zero_bits() {
        assert!(has(&set(&["0.0.0.0/0"]), "1.2.3.4"));
        assert!(!has(&set(&["0.0.0.0/0"]), "fd00::1"));
        assert!(has(&set(&["::/0"]), "fd00::1"));
        assert!(!has(&PrefixSet::default(), "1.2.3.4"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(nets in proptest::collection::vec((any::<u32>(), 0..=32u8), 0..40),
                                     asked: u32, near in 0..40usize) {
            let nets: Vec<IpNet> = nets.into_iter()
                .map(|(ip, bits)| IpNet::new(IpAddr::V4(ip.into()), bits).unwrap().trunc())
                .collect();
            let set = PrefixSet::new(nets.iter().copied());
            let mut ips = vec![IpAddr::V4(asked.into())];
            ips.extend(nets.get(near).map(IpNet::broadcast));
            for ip in ips {
                prop_assert_eq!(set.contains(ip.into()), nets.iter().any(|net| net.contains(&ip)));
            }
        }
    }
}
