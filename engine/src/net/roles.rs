//! What the tables mean: the role of each link, the node's own and local addresses. Pure.
//!
//! ```text
//! addresses --> own                                  routes + links --> uplinks --> pods --> roles
//! own + routes not by an uplink --> local              default route + main table --> main
//! ```
//!
//! Names decide nothing here, but for `kube-ipvs0`. In doubt a prefix is not local: that costs a
//! duplicate at worst, never a loss (spec/exactly-once.md, rule 1).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::tables::{Device, Hop, IPVS_DEVICE, RouteKey, Tables};
use super::{Link, Role, View};

/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;
/// No interface has this number.
const NO_LINK: u32 = 0;

pub(super) fn build(tables: &Tables) -> View {
    let own = own_addresses(tables);
    let roles = Roles::find(tables, &own);

    let mut local_by: Vec<(IpNet, u32)> =
        own.iter().map(|address| (IpNet::from(*address), NO_LINK)).collect();
    local_by.extend(tables.hops().filter_map(|(key, hop)| {
        let device = tables.devices().get(&hop.ifindex)?;
        let leads_off = roles.of(device) == Role::Uplink
            || device.link.is_loopback
            || device.link.name == IPVS_DEVICE;
        (!leads_off && is_direct(key, &hop, &own) && can_be_local(&key.destination))
            .then_some((key.destination, hop.ifindex))
    }));
    local_by.sort_unstable();
    local_by.dedup();
    let mut local: Vec<IpNet> = local_by.iter().map(|(net, _)| *net).collect();
    local.dedup();
    let main = main_device(tables);

    let links = tables.devices().values().map(|device| {
        let link = Link {
            addresses: tables.addresses(device.link.ifindex).collect(),
            role: roles.of(device),
            slot: tables.slot(device.link.ifindex),
            is_tapped: tables.is_tapped(&device.link),
            ..device.link.clone()
        };
        (link.ifindex, link)
    });

    let mut overlay_ports: Vec<u16> =
        tables.devices().values().filter_map(|device| device.overlay_port).collect();
    overlay_ports.sort_unstable();
    overlay_ports.dedup();

    let mut gone: Vec<u32> = tables.gone().collect();
    gone.sort_unstable();

    let mut own: Vec<IpAddr> = own.into_iter().collect();
    own.sort_unstable();
    let ethernet = tables.devices().values().filter(|device| device.link.is_ethernet);
    let largest_frame = ethernet.map(|device| device.largest_frame).max().unwrap_or(0);
    View {
        links: links.collect(),
        own,
        local,
        local_by,
        overlay_ports,
        gone,
        largest_frame,
        main,
        main_subnets: main.map_or_else(Vec::new, |main| subnets_behind(tables, main)),
    }
}

/// What `ip route show default` names first.
fn main_device(tables: &Tables) -> Option<u32> {
    let defaults = tables.hops().filter(|(key, hop)| {
        key.table == MAIN_TABLE
            && matches!(key.destination, IpNet::V4(net) if net.prefix_len() == 0)
            && tables.devices().get(&hop.ifindex).is_some_and(|device| !device.link.is_loopback)
    });
    defaults.map(|(key, hop)| (key.priority, hop.ifindex)).min().map(|(_, ifindex)| ifindex)
}

/// What `ip -4 route show dev MAIN scope link` lists with a prefix length: a unicast route without
/// gateway has this scope.
fn subnets_behind(tables: &Tables, main: u32) -> Vec<Ipv4Net> {
    let mut subnets: Vec<Ipv4Net> = tables
        .hops()
        .filter(|(key, hop)| {
            key.table == MAIN_TABLE && hop.ifindex == main && hop.gateway.is_none()
        })
        .filter_map(|(key, _)| match key.destination {
            IpNet::V4(net) if (1..32).contains(&net.prefix_len()) => Some(net),
            _ => None,
        })
        .collect();
    subnets.sort_unstable();
    subnets.dedup();
    subnets
}

fn own_addresses(tables: &Tables) -> HashSet<IpAddr> {
    let devices = tables.devices().values().filter(|device| device.link.name != IPVS_DEVICE);
    devices
        .flat_map(|device| tables.addresses(device.link.ifindex))
        .map(|net| net.addr())
        .filter(|address| !address.is_loopback())
        .collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A gateway that is the node itself is none: Cilium routes pods `via` the address of
/// `cilium_host`. (Link-local addresses repeat from link to link and prove nothing.)
fn router(hop: &Hop, own: &HashSet<IpAddr>) -> Option<IpAddr> {
    hop.gateway.filter(|gateway| is_link_local(*gateway) || !own.contains(gateway))
}

/// Whether the destination is right behind the link. Cilium routes other nodes' pods through
/// `cilium_host` as well as its own; its own are those among whose addresses the gateway is.
fn is_direct(key: &RouteKey, hop: &Hop, own: &HashSet<IpAddr>) -> bool {
    router(hop, own).is_none()
        && hop.gateway.is_none_or(|gateway| key.destination.contains(&gateway))
}

fn can_be_local(destination: &IpNet) -> bool {
    let is_scoped = match destination {
        IpNet::V4(net) => net.network().is_multicast(),
        IpNet::V6(net) => net.network().is_multicast() || net.network().is_unicast_link_local(),
    };
    destination.prefix_len() > 0 && !is_scoped
}

/// Devices whose frames come from, and go to, other nodes by their nature.
fn is_tunnel(kind: &str) -> bool {
    let kinds = [
        "vxlan",
        "geneve",
        "ipip",
        "ip6tnl",
        "sit",
        "gre",
        "gretap",
        "ip6gre",
        "ip6gretap",
        "erspan",
        "vti",
        "vti6",
        "xfrm",
        "wireguard",
    ];
    kinds.contains(&kind)
}

fn is_physical(link: &Link) -> bool {
    link.kind.is_empty() && link.is_ethernet && !link.is_loopback
}

/// Kinds whose other end is a pod, if anything says so.
fn can_be_a_pods(kind: &str) -> bool {
    matches!(kind, "veth" | "netkit" | "tun")
}

struct Roles<'a> {
    tables: &'a Tables,
    uplinks: HashSet<u32>,
    /// Links to which a host route leads that is not the node's own address.
    with_hosts: HashSet<u32>,
}

impl<'a> Roles<'a> {
    fn find(tables: &'a Tables, own: &HashSet<IpAddr>) -> Self {
        let mut hosts: HashSet<(u32, IpAddr)> = HashSet::new();
        for (key, hop) in tables.hops() {
            let net = key.destination;
            let is_host = net.prefix_len() == net.max_prefix_len() && can_be_local(&net);
            if is_host && hop.gateway.is_none() && !own.contains(&net.addr()) {
                hosts.insert((hop.ifindex, net.addr()));
            }
        }

        let mut uplinks: HashSet<u32> = HashSet::new();
        for (key, hop) in tables.hops() {
            let Some(device) = tables.devices().get(&hop.ifindex) else { continue };
            let leads_off = key.destination.prefix_len() == 0
                || router(&hop, own).is_some_and(|router| {
                    // Networks behind a pod, and the inside of Open vSwitch, where local pods and
                    // tunnels part, are not off the node for having a gateway.
                    let is_behind_a_pod = hosts.contains(&(hop.ifindex, router));
                    !(can_be_a_pods(&device.link.kind) && is_behind_a_pod)
                        && device.link.kind != "openvswitch"
                });
            if leads_off && !device.link.is_loopback {
                uplinks.insert(hop.ifindex);
            }
        }
        let by_nature = |d: &&Device| is_physical(&d.link) || is_tunnel(&d.link.kind);
        uplinks.extend(tables.devices().values().filter(by_nature).map(|d| d.link.ifindex));
        spread(tables.devices(), &mut uplinks);

        let with_hosts = hosts.into_iter().map(|(ifindex, _)| ifindex).collect();
        Self { tables, uplinks, with_hosts }
    }

    fn of(&self, device: &Device) -> Role {
        let Device { link, .. } = device;
        if let Some(role) = self.tables.overrides().role_of(&link.name) {
            return role;
        }
        if self.uplinks.contains(&link.ifindex) {
            return Role::Uplink;
        }
        let master = self.tables.devices().get(&device.master);
        let is_bridged = master.is_some_and(|master| master.link.kind == "bridge");
        let is_pods = match () {
            () if !can_be_a_pods(&link.kind) => false,
            () if self.with_hosts.contains(&link.ifindex) => true,
            () if self.uplinks.contains(&device.master) => false,
            () => is_bridged || device.is_peer_elsewhere,
        };
        if is_pods { Role::Pod } else { Role::Other }
    }
}

/// What is stacked on an uplink, or under one, is an uplink: a VLAN device and its trunk, a bridge
/// or bond and the device through which it leaves the node (not the tunnel of an overlay's bridge:
/// behind that bridge are this node's pods).
fn spread(devices: &HashMap<u32, Device>, uplinks: &mut HashSet<u32>) {
    let stacked: Vec<(u32, u32, bool)> = devices
        .values()
        .flat_map(|device| {
            let below = device.link.ifindex;
            let is_vlan = device.link.kind == "vlan" && device.parent != 0;
            let vlan = is_vlan.then_some((device.parent, below, true));
            let leaves = is_physical(&device.link) || matches!(&*device.link.kind, "vlan" | "bond");
            let joins = devices.get(&device.master).is_some_and(|master| {
                leaves && matches!(&*master.link.kind, "bridge" | "bond" | "team")
            });
            [vlan, joins.then_some((below, device.master, false))].into_iter().flatten()
        })
        .collect();
    // Stacks are a few devices high, so a few rounds; each but the last adds at least one.
    loop {
        let before = uplinks.len();
        for &(below, above, goes_down) in &stacked {
            if uplinks.contains(&below) {
                uplinks.insert(above);
            } else if goes_down && uplinks.contains(&above) && devices.contains_key(&below) {
                uplinks.insert(below);
            }
        }
        if uplinks.len() == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
