//! The interfaces that FINDALLIF shows and OPEN takes: `any-eth`, then the links that are tapped.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::{Link, View};
use crate::rpcap::{ANY_ETH, Address, Interface, LinkLayer};

/// `PCAP_IF_LOOPBACK`, `_UP`, `_RUNNING`, and the connection status.
const LOOPBACK: u32 = 1;
const UP: u32 = 2;
const RUNNING: u32 = 4;
const CONNECTED: u32 = 0x10;
const DISCONNECTED: u32 = 0x20;
/// How the reference marks the interface that its sensors have to open.
const PRESELECTED: &str = ";preselected";

/// The list, the preselected interface first and marked: `any-eth`, unless another was configured.
/// Appliances look for the mark; only a configured one is the only one that opens.
pub(super) fn interfaces(view: &View, preselected: Option<&str>) -> Vec<Interface> {
    let mut links: Vec<&Link> = view.links.values().filter(|link| link.is_tapped).collect();
    links.sort_by_key(|link| link.ifindex);
    let any_eth = Interface {
        name: ANY_ETH.to_owned(),
        description: "Every Ethernet interface of the node".to_owned(),
        flags: UP | RUNNING | CONNECTED,
        addresses: Vec::new(),
        link_layer: None,
    };
    let mut list: Vec<_> = [any_eth].into_iter().chain(links.into_iter().map(describe)).collect();
    let marked = preselected.unwrap_or(ANY_ETH);
    if let Some(at) = list.iter().position(|entry| entry.name == marked) {
        let entry = &mut list[at];
        let space = if entry.description.is_empty() { "" } else { " " };
        entry.description = format!("{}{space}{PRESELECTED}", entry.description);
        list[..=at].rotate_right(1);
    }
    list
}

/// True if OPEN may take `name`.
pub(super) fn contains(view: &View, name: &str) -> bool {
    name == ANY_ETH || view.links.values().any(|link| link.is_tapped && link.name == name)
}

fn describe(link: &Link) -> Interface {
    let status = if link.is_running { RUNNING | CONNECTED } else { DISCONNECTED };
    let up = if link.is_up { UP } else { 0 };
    let loopback = if link.is_loopback { LOOPBACK } else { 0 };
    Interface {
        name: link.name.clone(),
        description: link.kind.clone(),
        flags: status | up | loopback,
        addresses: link.addresses.iter().map(address).collect(),
        link_layer: link_layer(link),
    }
}

fn link_layer(link: &Link) -> Option<LinkLayer> {
    let address = link.mac.as_slice().try_into().ok()?;
    Some(LinkLayer { ifindex: link.ifindex, address })
}

fn address(net: &IpNet) -> Address {
    let netmask = match net.netmask() {
        IpAddr::V4(mask) => Some(mask),
        IpAddr::V6(_) => None,
    };
    Address { address: net.addr(), netmask }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::net::Role;

    /// A node with these Ethernet links, numbered from 2, and a tunnel that is none.
    pub(crate) fn node(names: &[&str]) -> View {
        let link = |(name, ifindex): (&str, u32)| Link {
            ifindex,
            name: name.to_owned(),
            kind: String::new(),
            is_ethernet: name != "tun0",
            is_up: true,
            is_running: true,
            is_loopback: false,
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec!["10.0.0.1/16".parse().unwrap(), "fd00::1/64".parse().unwrap()],
            role: Role::Uplink,
            slot: 1,
            is_tapped: name != "tun0",
        };
        let names = names.iter().copied().chain(["tun0"]);
        let links = names.zip(2..).map(|pair| (pair.1, link(pair))).collect();
        View { links, ..View::default() }
    }

    #[test]
    fn the_preselected_interface_is_first_and_marked() {
        let view = node(&["eth0", "eth1"]);
        let names = |list: &[Interface]| list.iter().map(|i| i.name.clone()).collect::<Vec<_>>();

        let any = interfaces(&view, Some(ANY_ETH));
        assert_eq!(names(&any), ["any-eth", "eth0", "eth1"]);
        assert_eq!(any[0].description, "Every Ethernet interface of the node ;preselected");

        let one = interfaces(&view, Some("eth1"));
        assert_eq!(names(&one), ["eth1", "any-eth", "eth0"]);
        assert_eq!(one[0].description, ";preselected");

        assert_eq!(interfaces(&view, None), any, "appliances look for the mark");
    }

    #[test]
    fn an_ipv6_address_has_no_netmask() {
        let list = interfaces(&node(&["eth0"]), None);
        let masks: Vec<_> = list[1].addresses.iter().map(|entry| entry.netmask).collect();
        assert_eq!(masks, [Some("255.255.0.0".parse().unwrap()), None]);
    }

    #[test]
    fn an_interface_has_its_link_layer_address_and_any_eth_none() {
        let list = interfaces(&node(&["eth0"]), None);
        assert_eq!(list[0].link_layer, None);
        let expected = LinkLayer { ifindex: 2, address: [2, 0, 0, 0, 0, 1] };
        assert_eq!(list[1].link_layer, Some(expected));
    }

    #[test]
    fn only_what_is_tapped_can_be_opened() {
        let view = node(&["eth0"]);
        assert!(contains(&view, "eth0") && contains(&view, ANY_ETH));
        assert!(!contains(&view, "tun0") && !contains(&view, "eth9"));
    }
}
