//! rtnetlink messages, read into [`Update`]s.
//!
//! ```text
//! one message's type, flags, payload --header, then attribute by attribute--> Option<Update>
//! ```
//!
//! Attributes are picked one by one, and one that cannot be read counts as absent: a link must not
//! stay invisible because a newer kernel says something about it that we cannot parse. What is no
//! business of ours (routes that are not unicast, caches, bridge ports' own messages) is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_REPLACE, NlaBuffer, NlasIterator, parse_u32};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressHeader, AddressHeaderFlags};
use netlink_packet_route::link::{LinkFlags, LinkHeader, LinkLayerType};
use netlink_packet_route::route::{RouteFlags, RouteHeader, RouteType};

use super::tables::{Device, Hop, Leg, Nexthop, RouteKey, Update};
use super::{Link, Role};

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEXTHOP_HEADER: usize = 8;

// include/uapi/linux: if_link.h, if_addr.h, rtnetlink.h, nexthop.h. libc has some of them, and not
// for every C library.
pub(super) const RTM_NEWNEXTHOP: u16 = 104;
pub(super) const RTM_DELNEXTHOP: u16 = 105;
pub(super) const RTM_GETNEXTHOP: u16 = 106;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_GRO_MAX_SIZE: u16 = 58;
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_GRO_IPV4_MAX_SIZE: u16 = 64;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_GENEVE_PORT: u16 = 5;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// Reads one message; `flags` are those of its netlink header.
pub(super) fn update(message_type: u16, flags: u16, payload: &[u8]) -> Option<Update> {
    match message_type {
        libc::RTM_NEWLINK => link(payload).map(|device| Update::Link(Box::new(device))),
        libc::RTM_DELLINK => link_header(payload).map(|header| Update::LinkGone(header.index)),
        libc::RTM_NEWADDR => {
            let (header, net) = address(payload)?;
            // Until it is known to be the only one of its kind, an IPv6 address is nobody's; the
            // kernel announces it after that, though it lists it before.
            let is_doubtful = header.flags.contains(AddressHeaderFlags::Tentative)
                && !header.flags.contains(AddressHeaderFlags::Optimistic);
            (!is_doubtful).then_some(Update::Address(header.index, net))
        }
        libc::RTM_DELADDR => {
            address(payload).map(|(header, net)| Update::AddressGone(header.index, net))
        }
        libc::RTM_NEWROUTE => {
            let (header, key, legs) = route(payload)?;
            let replaces = flags & NLM_F_REPLACE != 0;
            match header.kind {
                RouteType::Unicast => Some(Update::Route { key, legs, replaces }),
                // A blackhole, say, that takes a route's place.
                _ if replaces => Some(Update::Route { key, legs: Vec::new(), replaces }),
                _ => None,
            }
        }
        libc::RTM_DELROUTE => {
            let (header, key, legs) = route(payload)?;
            (header.kind == RouteType::Unicast).then_some(Update::RouteGone { key, legs })
        }
        RTM_NEWNEXTHOP => {
            let (id, nexthop) = nexthop(payload)?;
            Some(nexthop.map_or(Update::NexthopGone(id), |nexthop| Update::Nexthop(id, nexthop)))
        }
        RTM_DELNEXTHOP => nexthop(payload).map(|(id, _)| Update::NexthopGone(id)),
        _ => None,
    }
}

/// The attributes up to the first broken one.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|nla: NlaBuffer<&[u8]>| {
        let whole = nla.into_inner();
        let length = usize::from(nla.length());
        (nla.kind(), &whole[netlink_packet_core::NLA_HEADER_SIZE..length])
    })
}

fn integer(value: &[u8]) -> Option<u32> {
    parse_u32(value).ok()
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    let v6 = || <[u8; 16]>::try_from(value).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b)));
    v4().or_else(v6)
}

fn link_header(payload: &[u8]) -> Option<LinkHeader> {
    let header = LinkHeader::parse(payload).ok()?;
    // AF_BRIDGE tells of a port in its bridge; "deleted" there means that it left the bridge.
    (header.interface_family == AddressFamily::Unspec && header.index != 0).then_some(header)
}

fn link(payload: &[u8]) -> Option<Device> {
    let header = link_header(payload)?;
    let has = |flag| header.flags.contains(flag);
    let mut link = Link {
        ifindex: header.index,
        name: String::new(),
        kind: String::new(),
        is_ethernet: header.link_layer_type == LinkLayerType::Ether,
        is_up: has(LinkFlags::Up),
        is_running: has(LinkFlags::Running),
        is_loopback: has(LinkFlags::Loopback),
        mac: Vec::new(),
        mtu: 0,
        addresses: Vec::new(),
        role: Role::Other,
        slot: 0,
        is_tapped: false,
    };
    let (mut master, mut parent, mut is_peer_elsewhere) = (0, 0, false);
    let mut largest_frame = 0;
    let mut info: &[u8] = &[];
    for (kind, value) in attributes(payload.get(LINK_HEADER..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = integer(value).unwrap_or(0),
            IFLA_LINK => parent = integer(value).unwrap_or(0),
            IFLA_MASTER => master = integer(value).unwrap_or(0),
            IFLA_LINK_NETNSID => is_peer_elsewhere = true,
            IFLA_LINKINFO => info = value,
            IFLA_GSO_MAX_SIZE
            | IFLA_GRO_MAX_SIZE
            | IFLA_GSO_IPV4_MAX_SIZE
            | IFLA_GRO_IPV4_MAX_SIZE => {
                largest_frame = largest_frame.max(integer(value).unwrap_or(0));
            }
            _ => {}
        }
    }
    if is_peer_elsewhere {
        // An index of that other namespace, which may be anything in ours.
        parent = 0;
    }
    let mut data: &[u8] = &[];
    for (kind, value) in attributes(info) {
        match kind {
            IFLA_INFO_KIND => link.kind = text(value),
            IFLA_INFO_DATA => data = value,
            _ => {}
        }
    }
    let port_attribute = match link.kind.as_str() {
        "vxlan" => Some(IFLA_VXLAN_PORT),
        "geneve" => Some(IFLA_GENEVE_PORT),
        _ => None,
    };
    let overlay_port = attributes(data)
        .find(|&(kind, _)| Some(kind) == port_attribute)
        .and_then(|(_, value)| <[u8; 2]>::try_from(value).ok())
        .map(u16::from_be_bytes);
    Some(Device { link, master, parent, is_peer_elsewhere, overlay_port, largest_frame })
}

fn address(payload: &[u8]) -> Option<(AddressHeader, IpNet)> {
    let header = AddressHeader::parse(payload).ok()?;
    let (mut own, mut other) = (None, None);
    for (kind, value) in attributes(payload.get(ADDRESS_HEADER..)?) {
        match kind {
            IFA_LOCAL => own = ip(value),
            // The peer's on a point-to-point link, the own one where IFA_LOCAL is missing.
            IFA_ADDRESS => other = ip(value),
            _ => {}
        }
    }
    let net = IpNet::new(own.or(other)?, header.prefix_len).ok()?;
    Some((header, net))
}

fn route(payload: &[u8]) -> Option<(RouteHeader, RouteKey, Vec<Leg>)> {
    let header = RouteHeader::parse(payload).ok()?;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut destination, mut priority, mut table) = (any, 0, u32::from(header.table));
    let (mut ifindex, mut gateway, mut object) = (None, None, None);
    let mut legs = Vec::new();
    for (kind, value) in attributes(payload.get(ROUTE_HEADER..)?) {
        match kind {
            RTA_DST => destination = ip(value)?,
            RTA_PRIORITY => priority = integer(value)?,
            RTA_TABLE => table = integer(value)?,
            RTA_OIF => ifindex = integer(value),
            RTA_GATEWAY => gateway = ip(value),
            RTA_VIA => gateway = via(value),
            RTA_NH_ID => object = integer(value),
            RTA_MULTIPATH => legs = multipath(value),
            _ => {}
        }
    }
    // With an object the kernel may spell out its hops as well (sysctl nexthop_compat_mode), and
    // then announces them anew when the object changes.
    match (ifindex, object) {
        (Some(ifindex), _) => legs.push(Leg::Direct(Hop { ifindex, gateway })),
        (None, Some(id)) if legs.is_empty() => legs.push(Leg::Object(id)),
        _ => {}
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?.trunc();
    if is_every_link_s(&destination) {
        return None;
    }
    let key = RouteKey { table, destination, priority, tos: header.tos };
    Some((header, key, legs))
}

/// `fe80::/64` and `ff00::/8` are on every link and lead nowhere in particular. All links' routes
/// have one key, so that each pod that dies would leave a doubt, and cost a dump.
fn is_every_link_s(destination: &IpNet) -> bool {
    match destination {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.network().is_multicast() || net.network().is_unicast_link_local(),
    }
}

/// `struct rtvia`: a gateway of the other family.
fn via(value: &[u8]) -> Option<IpAddr> {
    ip(value.get(2..)?)
}

/// A row of `struct rtnexthop { u16 len; u8 flags; u8 hops; int ifindex; }`, each with attributes.
fn multipath(mut bytes: &[u8]) -> Vec<Leg> {
    const HEADER: usize = 8;
    let mut legs = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let [l0, l1, _, _, i0, i1, i2, i3] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(inside) = bytes.get(HEADER..length) else { break };
        let mut gateway = None;
        for (kind, value) in attributes(inside) {
            match kind {
                RTA_GATEWAY => gateway = ip(value),
                RTA_VIA => gateway = via(value),
                _ => {}
            }
        }
        let ifindex = u32::from_ne_bytes([i0, i1, i2, i3]);
        legs.push(Leg::Direct(Hop { ifindex, gateway }));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    legs
}

/// The object's number, and what it is unless a blackhole.
fn nexthop(payload: &[u8]) -> Option<(u32, Option<Nexthop>)> {
    let (mut id, mut group, mut ifindex, mut gateway) = (None, None, None, None);
    for (kind, value) in attributes(payload.get(NEXTHOP_HEADER..)?) {
        match kind {
            NHA_ID => id = integer(value),
            // `struct nexthop_grp`: the number, then weights.
            NHA_GROUP => {
                let (entries, _) = value.as_chunks::<8>();
                let ids = entries.iter().map(|&[a, b, c, d, ..]| u32::from_ne_bytes([a, b, c, d]));
                group = Some(ids.collect());
            }
            NHA_OIF => ifindex = integer(value),
            NHA_GATEWAY => gateway = ip(value),
            _ => {}
        }
    }
    let hop = ifindex.map(|ifindex| Nexthop::Hop(Hop { ifindex, gateway }));
    Some((id?, group.map(Nexthop::Group).or(hop)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link_message(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 1, 0];
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(0x41_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(attributes.concat());
        bytes
    }

    /// `kind` and `prefix` as in the header; unicast is kind 1.
    fn route_message(family: u8, prefix: u8, kind: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![family, prefix, 0, 0, 254, 4, 0, kind, 0, 0, 0, 0];
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn a_vxlan_link_tells_its_port_and_a_veth_that_its_peer_is_elsewhere() {
        let port = attribute(IFLA_VXLAN_PORT, &8472_u16.to_be_bytes());
        let info =
            [attribute(IFLA_INFO_KIND, b"vxlan\0"), attribute(IFLA_INFO_DATA, &port)].concat();
        let name = attribute(IFLA_IFNAME, b"flannel.1\0");
        // 0x8000: the kernel marks nests.
        let message = link_message(0, &[name.clone(), attribute(IFLA_LINKINFO | 0x8000, &info)]);
        let Some(Update::Link(device)) = update(libc::RTM_NEWLINK, 0, &message) else { panic!() };
        assert_eq!((device.link.name.as_str(), device.overlay_port), ("flannel.1", Some(8472)));
        assert!(device.link.is_ethernet && device.link.is_up && device.link.is_running);

        let parent = attribute(IFLA_LINK, &3_u32.to_ne_bytes());
        let elsewhere = attribute(IFLA_LINK_NETNSID, &0_u32.to_ne_bytes());
        let message = link_message(0, &[name.clone(), elsewhere, parent.clone()]);
        let Some(Update::Link(device)) = update(libc::RTM_NEWLINK, 0, &message) else { panic!() };
        assert!(device.is_peer_elsewhere && device.parent == 0, "{device:?}");
        let message = link_message(0, &[name, parent]);
        let Some(Update::Link(device)) = update(libc::RTM_NEWLINK, 0, &message) else { panic!() };
        assert!(!device.is_peer_elsewhere && device.parent == 3, "{device:?}");
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_no_link_that_went() {
        assert_eq!(update(libc::RTM_DELLINK, 0, &link_message(7, &[])), None);
        let gone = update(libc::RTM_DELLINK, 0, &link_message(0, &[]));
        assert_eq!(gone, Some(Update::LinkGone(7)));
    }

    #[test]
    fn a_broken_attribute_does_not_hide_the_link() {
        let mut message = link_message(0, &[attribute(IFLA_IFNAME, b"eth0\0")]);
        message.extend([200, 0, 5, 0, 1]);
        let Some(Update::Link(device)) = update(libc::RTM_NEWLINK, 0, &message) else { panic!() };
        assert_eq!(device.link.name, "eth0");
    }

    #[test]
    fn gateways_come_in_four_ways() {
        let hop = |ifindex, gateway: &str| {
            Leg::Direct(Hop { ifindex, gateway: Some(gateway.parse().unwrap()) })
        };
        let oif = |index: u32| attribute(RTA_OIF, &index.to_ne_bytes());
        let legs = |attributes: &[Vec<u8>]| {
            let message = route_message(2, 0, 1, attributes);
            match update(libc::RTM_NEWROUTE, 0, &message) {
                Some(Update::Route { legs, .. }) => legs,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(legs(&[oif(2), attribute(RTA_GATEWAY, &[10, 0, 0, 1])]), [hop(2, "10.0.0.1")]);

        let via: Vec<u8> = [&[10, 0][..], &[0xfe, 0x80], &[0; 13], &[1]].concat();
        assert_eq!(legs(&[oif(2), attribute(RTA_VIA, &via)]), [hop(2, "fe80::1")]);

        let one = |ifindex: u32, inside: &[u8]| {
            let length = u16::try_from(8 + inside.len()).unwrap().to_ne_bytes();
            [&length[..], &[0, 0], &ifindex.to_ne_bytes(), inside].concat()
        };
        let both =
            [one(3, &attribute(RTA_GATEWAY, &[10, 0, 0, 1])), one(4, &attribute(RTA_VIA, &via))];
        let multipath = attribute(RTA_MULTIPATH, &both.concat());
        assert_eq!(legs(&[multipath]), [hop(3, "10.0.0.1"), hop(4, "fe80::1")]);

        let object = attribute(RTA_NH_ID, &9_u32.to_ne_bytes());
        assert_eq!(legs(std::slice::from_ref(&object)), [Leg::Object(9)]);
        assert_eq!(legs(&[object, oif(2)]), [Leg::Direct(Hop { ifindex: 2, gateway: None })]);
    }

    #[test]
    fn only_unicast_routes_count_but_a_blackhole_can_take_ones_place() {
        let message = route_message(2, 26, 6, &[attribute(RTA_DST, &[10, 0, 1, 64])]);
        assert_eq!(update(libc::RTM_NEWROUTE, 0, &message), None);
        assert_eq!(update(libc::RTM_DELROUTE, 0, &message), None);
        match update(libc::RTM_NEWROUTE, NLM_F_REPLACE, &message) {
            Some(Update::Route { key, legs, replaces: true }) => {
                assert_eq!(key.destination.to_string(), "10.0.1.64/26");
                assert!(legs.is_empty());
            }
            other => panic!("{other:?}"),
        }
        let table = attribute(RTA_TABLE, &1000_u32.to_ne_bytes());
        let message = route_message(2, 33, 1, &[table]);
        assert_eq!(update(libc::RTM_NEWROUTE, 0, &message), None, "a prefix of 33 bits");
    }

    #[test]
    fn routes_that_every_link_has_are_none() {
        let oif = attribute(RTA_OIF, &2_u32.to_ne_bytes());
        let to = |first: [u8; 2]| attribute(RTA_DST, &[&first[..], &[0; 14]].concat());
        for (first, prefix, counts) in [
            ([0xfe, 0x80], 64, false),
            ([0xff, 0], 8, false),
            ([0xfd, 0], 64, true),
            ([0, 0], 0, true),
        ] {
            let message = route_message(10, prefix, 1, &[to(first), oif.clone()]);
            for kind in [libc::RTM_NEWROUTE, libc::RTM_DELROUTE] {
                assert_eq!(update(kind, 0, &message).is_some(), counts, "{first:?}");
            }
        }
    }

    #[test]
    fn on_a_point_to_point_link_the_local_end_is_ours() {
        let mut message = vec![2, 32, 0, 0];
        message.extend(5_u32.to_ne_bytes());
        message.extend(attribute(IFA_ADDRESS, &[10, 0, 0, 2]));
        message.extend(attribute(IFA_LOCAL, &[10, 0, 0, 1]));
        let expected = Update::Address(5, "10.0.0.1/32".parse().unwrap());
        assert_eq!(update(libc::RTM_NEWADDR, 0, &message), Some(expected));
    }

    #[test]
    fn an_address_counts_once_nobody_else_claims_it() {
        let message = |flags| {
            let address = attribute(IFA_ADDRESS, &[0xfd; 16]);
            [vec![10, 64, flags, 0, 5, 0, 0, 0], address].concat()
        };
        let (tentative, optimistic) = (0x40, 0x04);
        assert_eq!(update(libc::RTM_NEWADDR, 0, &message(tentative)), None);
        for flags in [0, tentative | optimistic] {
            assert!(update(libc::RTM_NEWADDR, 0, &message(flags)).is_some(), "{flags:#x}");
        }
        assert!(update(libc::RTM_DELADDR, 0, &message(tentative)).is_some());
    }

    #[test]
    fn a_nexthop_is_a_hop_or_a_group_or_nothing() {
        let header = vec![0; NEXTHOP_HEADER];
        let id = attribute(NHA_ID, &10_u32.to_ne_bytes());
        let group = attribute(NHA_GROUP, &[1, 0, 0, 0, 9, 9, 9, 9, 2, 0, 0, 0, 9, 9, 9, 9]);
        let message = [header.clone(), id.clone(), group].concat();
        let expected = Nexthop::Group(vec![u32::from_ne_bytes([1, 0, 0, 0]), 2]);
        assert_eq!(update(RTM_NEWNEXTHOP, 0, &message), Some(Update::Nexthop(10, expected)));
        let message = [header, id].concat();
        assert_eq!(update(RTM_NEWNEXTHOP, 0, &message), Some(Update::NexthopGone(10)));
        assert_eq!(update(RTM_DELNEXTHOP, 0, &message), Some(Update::NexthopGone(10)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in prop_oneof![16..27_u16, 104..106_u16],
            flags: u16,
            bytes in proptest::collection::vec(prop_oneof![0..12_u8, any::<u8>()], 0..160),
        ) {
            let _update = update(kind, flags, &bytes);
        }

        #[test]
        fn no_attributes_make_it_panic(
            kind in 24..26_u16,
            list in proptest::collection::vec(
                (0..32_u16, proptest::collection::vec(0..20_u8, 0..24)), 0..8)
        ) {
            let list: Vec<Vec<u8>> = list.iter().map(|(kind, v)| attribute(*kind, v)).collect();
            let _route = update(kind, 0, &route_message(2, 24, 1, &list));
            let _link = update(kind - 8, 0, &link_message(0, &list));
            let _nexthop = update(kind + 80, 0, &[vec![0; 8], list.concat()].concat());
        }
    }
}
