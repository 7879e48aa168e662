//! The `ip` commands of what is beside `eth0`: secondary ENIs, branch ENIs, an overlay.
//!
//! ```text
//! eth1 (10.0.(40+n).10, table 2) --- vpc node<n>-eth1     pods by rules: from POD lookup 2
//!   |  802.1Q, by `trunk`  |
//! vlan.eth.m (TAP)      n<n>vlan<m> (TAP)                 pods by rules: iif VETH lookup 100+m
//! cni0 -- vxlan.1 | geneve.1 | tunl.1 == eth0 ==          10.244.other/24 via that
//! ```
//!
//! As the VPC CNI lays it out (strict security groups for pods: the rules of branches come before
//! the local table, so that two pods of one node meet in the VPC), and flannel the overlay.

use super::{
    pods::PodId,
    spec::{self, LabSpec, Overlay},
    wiring::{up, veth},
};
use std::net::Ipv4Addr;

/// Routing table of the secondary ENI, as the VPC CNI numbers them.
const ENI_TABLE: u32 = 2;
/// VXLAN network of the overlay.
const VNI: u32 = 1;

/// The veth of a node's secondary ENI.
pub(crate) fn eni_link(spec: &LabSpec, node: u8) -> String {
    let (name, device) = (spec::node_name(node), vpc_eni_device(node));
    let vpc_end = ("vpc", device.as_str(), 400 + u32::from(node), None);
    veth(spec, vpc_end, (&name, "eth1"), spec.uplink_mtu())
}

/// The router's end of a node's secondary ENI.
pub(crate) fn vpc_eni_device(node: u8) -> String {
    format!("{}-eth1", spec::node_name(node))
}

/// The router's side of a secondary ENI.
pub(crate) fn vpc_eni(spec: &LabSpec, node: u8) -> Vec<String> {
    let (device, subnet) = (vpc_eni_device(node), spec::eni_subnet(node));
    let mut lines = vec![format!("address add {}/24 dev {device}", spec::gateway_v4(subnet))];
    if spec.ipv6 {
        lines.push(format!("address add {}/64 dev {device} nodad", spec::gateway_v6(subnet)));
    }
    up(&mut lines, spec, &device);
    lines
}

/// The node's side of a secondary ENI: its subnet is known in its own table only.
pub(crate) fn node_eni(spec: &LabSpec, node: u8) -> Vec<String> {
    let subnet = spec::eni_subnet(node);
    let mut lines = vec![format!("address add {}/24 dev eth1 noprefixroute", spec::eni_v4(node))];
    if spec.ipv6 {
        let address = spec::eni_v6(node);
        lines.push(format!("address add {address}/64 dev eth1 nodad noprefixroute"));
    }
    up(&mut lines, spec, "eth1");
    let gateway = spec::gateway_v4(subnet);
    lines.push(format!("route add {gateway} dev eth1 scope link table {ENI_TABLE}"));
    lines.push(format!("route add default via {gateway} dev eth1 table {ENI_TABLE}"));
    // Marked: a connection that a pod opened to the internet, or that came by the primary ENI.
    lines.push("rule add fwmark 0x80/0x80 lookup main priority 1024".to_owned());
    if spec.ipv6 {
        let gateway = spec::gateway_v6(subnet);
        lines.push(format!("route add {gateway}/128 dev eth1 table {ENI_TABLE}"));
        lines.push(format!("route add default via {gateway} dev eth1 table {ENI_TABLE}"));
    }
    lines
}

/// Policy of one pod on a node with a secondary ENI: local pods first, then by which ENI it leaves.
pub(crate) fn pod_rules(spec: &LabSpec, pod: PodId) -> Vec<String> {
    let mut addresses = vec![("", pod.v4().to_string())];
    if spec.ipv6 {
        addresses.push(("-6 ", pod.v6().to_string()));
    }
    let mut lines = Vec::new();
    for (family, address) in addresses {
        lines.push(format!("{family}rule add to {address} lookup main priority 512"));
        if pod.kind == super::PodKind::Eni {
            let rule = format!("rule add from {address} lookup {ENI_TABLE} priority 1536");
            lines.push(format!("{family}{rule}"));
        }
    }
    lines
}

/// Takes a pod's rules away again: routes go with their interface, rules do not.
pub(crate) fn remove_pod_rules(spec: &LabSpec, pod: PodId) -> Vec<String> {
    pod_rules(spec, pod).iter().map(|line| line.replacen("rule add", "rule del", 1)).collect()
}

/// Makes room for the rules of branches: the local table comes after them.
pub(crate) fn branches_first(spec: &LabSpec) -> Vec<String> {
    let families: &[&str] = if spec.ipv6 { &["", "-6 "] } else { &[""] };
    families
        .iter()
        .flat_map(|family| {
            [
                format!("{family}rule add from all lookup local priority 20"),
                format!("{family}rule del from all lookup local priority 0"),
            ]
        })
        .collect()
}

/// A node's side of a branch ENI: the TAP that stands for the VLAN device, and its table.
pub(crate) fn node_branch(spec: &LabSpec, pod: PodId) -> Vec<String> {
    let (device, veth, table) = (pod.branch_device(), pod.host_veth(), pod.branch_table());
    let mut lines = tap(spec, &device, &pod.branch_mac());
    let mut family = |option: &str, gateway: String, address: String| {
        let router = pod.router_mac();
        lines.push(format!("neighbour add {gateway} lladdr {router} dev {device} nud permanent"));
        lines.push(format!("route add {gateway} dev {device} table {table}"));
        lines.push(format!("route add default via {gateway} dev {device} table {table}"));
        lines.push(format!("route add {address} dev {veth} table {table}"));
        for interface in [&device, &veth] {
            lines.push(format!("{option}rule add iif {interface} lookup {table} priority 10"));
        }
    };
    let subnet = spec::branch_subnet(pod.node);
    family("", spec::gateway_v4(subnet).to_string(), pod.v4().to_string());
    if spec.ipv6 {
        family("-6 ", spec::gateway_v6(subnet).to_string(), pod.v6().to_string());
    }
    lines
}

/// The router's side of a branch ENI.
pub(crate) fn vpc_branch(spec: &LabSpec, pod: PodId) -> Vec<String> {
    let device = pod.router_device();
    let mut lines = tap(spec, &device, &pod.router_mac());
    let mut family = |gateway: String, address: String| {
        let branch = pod.branch_mac();
        lines.push(format!("address add {gateway} dev {device}"));
        lines.push(format!("neighbour add {address} lladdr {branch} dev {device} nud permanent"));
        lines.push(format!("route add {address} dev {device}"));
    };
    let subnet = spec::branch_subnet(pod.node);
    family(format!("{}/32", spec::gateway_v4(subnet)), pod.v4().to_string());
    if spec.ipv6 {
        family(format!("{}/128", spec::gateway_v6(subnet)), pod.v6().to_string());
    }
    lines
}

fn tap(spec: &LabSpec, device: &str, mac: &str) -> Vec<String> {
    vec![
        format!("tuntap add dev {device} mode tap"),
        // The relay may be late by more than the usual queue is long.
        format!("link set {device} address {mac} mtu {} txqueuelen 10000", spec.mtu),
        format!("link set {device} up"),
    ]
}

/// A node's side of the overlay: the bridge of its pods, and the device that leads to the others.
pub(crate) fn node_overlay(spec: &LabSpec, node: u8) -> Vec<String> {
    let (mtu, device) = (spec.mtu - 50, spec.overlay.device());
    let mut lines = vec![
        "link add cni0 type bridge mcast_snooping 0".to_owned(),
        format!("link set cni0 address 0a:58:04:00:{node:02x}:00 mtu {mtu}"),
        format!("address add {}/24 dev cni0", spec::overlay_gateway_v4(node)),
        "link set cni0 up".to_owned(),
    ];
    if spec.ipv6 {
        lines.push(format!("address add {}/64 dev cni0 nodad", spec::overlay_v6(node, 1)));
    }
    let mac = overlay_mac(node);
    match spec.overlay {
        Overlay::Vxlan(port) => lines.push(format!(
            "link add {device} address {mac} mtu {mtu} type vxlan id {VNI} dev eth0 local {} \
             dstport {port} nolearning",
            spec::node_v4(node)
        )),
        Overlay::Geneve => {
            lines.push(format!("tuntap add dev {device} mode tap"));
            lines.push(format!("link set {device} address {mac} mtu {mtu} txqueuelen 10000"));
        }
        Overlay::Ipip => {
            lines.push(format!("tuntap add dev {device} mode tun"));
            lines.push(format!("link set {device} mtu {mtu} txqueuelen 10000"));
        }
    }
    lines.push(format!("address add {}/32 dev {device}", overlay_v4(node)));
    lines.push(format!("link set {device} up"));
    for other in (1..=spec.nodes).filter(|other| *other != node) {
        lines.extend(overlay_peer(spec, other));
    }
    lines
}

/// The way to another node's pods.
fn overlay_peer(spec: &LabSpec, other: u8) -> Vec<String> {
    let (device, net, node) = (spec.overlay.device(), overlay_v4(other), spec::node_v4(other));
    if spec.overlay == Overlay::Ipip {
        // IPv6 has no way through it.
        return vec![format!("route add {net}/24 via {node} dev {device} onlink")];
    }
    let mac = overlay_mac(other);
    let mut lines = vec![
        format!("neighbour add {net} lladdr {mac} dev {device} nud permanent"),
        format!("route add {net}/24 via {net} dev {device} onlink"),
    ];
    if spec.ipv6 {
        let (gateway, net) = (spec::overlay_v6(other, 1), spec::overlay_v6(other, 0));
        lines.push(format!("neighbour add {gateway} lladdr {mac} dev {device} nud permanent"));
        lines.push(format!("route add {net}/64 via {gateway} dev {device} onlink"));
    }
    if matches!(spec.overlay, Overlay::Vxlan(_)) {
        lines.push(format!("bridge fdb append {mac} dev {device} dst {node}"));
    }
    lines
}

/// MAC address of a node's VXLAN device.
fn overlay_mac(node: u8) -> String {
    format!("0a:58:05:00:{node:02x}:00")
}

/// The node's address on its VXLAN device: flannel takes the first of the node's subnet.
fn overlay_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 0)
}
