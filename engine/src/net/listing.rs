//! The interfaces as FINDALLIF lists them (spec/rpcap.md 1.4).
//!
//! ```text
//! View --> [ the preselected one, any-eth, the other tapped links by name ] --> control
//! ```
//!
//! A sensor opens the first that says ";preselected", so that is always there and always first.

use ipnet::IpNet;

use super::{Link, Role, View};
use crate::rpcap::{ANY_ETH, Address, Interface};

const LOOPBACK: u32 = 1;
const UP: u32 = 2;
const RUNNING: u32 = 4;
const CONNECTED: u32 = 0x10;
const DISCONNECTED: u32 = 0x20;
const PRESELECTED: &str = " ;preselected";

impl View {
    /// What can be opened: `any-eth` and each tapped link, sorted by name. The one called
    /// `preselected` comes first and says so; `any-eth` where none is given or it is not there.
    #[must_use]
    pub fn listing(&self, preselected: Option<&str>) -> Vec<Interface> {
        let any = Interface {
            name: ANY_ETH.to_owned(),
            description: "Every Ethernet interface".to_owned(),
            flags: UP | RUNNING,
            addresses: Vec::new(),
        };
        let mut links: Vec<&Link> = self.links.values().filter(|link| link.is_tapped).collect();
        links.sort_unstable_by(|a, b| a.name.cmp(&b.name));

        let mut listing = vec![any];
        listing.extend(links.into_iter().map(interface));
        let first = preselected.and_then(|name| listing.iter().position(|i| i.name == name));
        let first = first.unwrap_or(0);
        listing[first].description.push_str(PRESELECTED);
        listing[..=first].rotate_right(1);
        listing
    }
}

fn interface(link: &Link) -> Interface {
    let role = match link.role {
        Role::Uplink => "uplink",
        Role::Pod => "pod interface",
        Role::Other => "other",
    };
    let kind = if link.kind.is_empty() { "physical" } else { &link.kind };
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    Interface {
        name: link.name.clone(),
        description: format!("{role}, {kind}"),
        flags: flag(link.is_loopback, LOOPBACK)
            | flag(link.is_up, UP)
            | flag(link.is_running, RUNNING)
            | if link.is_running { CONNECTED } else { DISCONNECTED },
        addresses: link.addresses.iter().map(address).collect(),
    }
}

fn address(net: &IpNet) -> Address {
    let netmask = match net {
        IpNet::V4(net) => Some(net.netmask()),
        IpNet::V6(_) => None,
    };
    Address { address: net.addr(), netmask }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tables::fixture;

    fn view() -> View {
        fixture(
            "link lo loopback
             link eth0 physical
             addr eth0 10.0.0.10/20
             addr eth0 2001:db8::5/64
             link eni1 veth peer=elsewhere down",
        )
        .view()
    }

    #[test]
    fn any_eth_comes_first_and_preselected() {
        let listing = view().listing(None);
        let names: Vec<&str> = listing.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["any-eth", "eni1", "eth0"], "no loopback: it is not Ethernet");
        assert_eq!(listing[0].description, "Every Ethernet interface ;preselected");
        assert_eq!(listing[0].flags, 6);
        assert_eq!(listing[1].flags, 0x20, "down");
        assert_eq!(listing[2].flags, 0x16);
        assert_eq!(listing[2].description, "uplink, physical");
    }

    #[test]
    fn a_netmask_goes_with_ipv4_only() {
        let listing = view().listing(None);
        let netmask = |text: &str| text.parse().unwrap();
        let expected = [
            Address {
                address: "10.0.0.10".parse().unwrap(),
                netmask: Some(netmask("255.255.240.0")),
            },
            Address { address: "2001:db8::5".parse().unwrap(), netmask: None },
        ];
        assert_eq!(listing[2].addresses, expected);
    }

    #[test]
    fn the_preselected_name_moves_to_the_front_once() {
        let listing = view().listing(Some("eth0"));
        let names: Vec<&str> = listing.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["eth0", "any-eth", "eni1"]);
        let preselected = listing.iter().filter(|i| i.description.ends_with(";preselected"));
        assert_eq!(preselected.count(), 1);
        assert_eq!(view().listing(Some("eth7"))[0].name, "any-eth", "not there: the default");
    }
}
