//! The `ip` commands and sysctls that make a lab out of empty namespaces. Text only; `build` runs
//! it.
//!
//! ```text
//!  pod  eth0 .101/32 --- eni<11 hex> node1 eth0 .10/24 --- node1 .1 vpc inet --- eth0 inet
//!       default via 169.254.1.1      route .101/32 dev eni..      |
//!       (static neighbour)                                        +---- sensor --- eth0 sensor
//! ```
//!
//! As the VPC CNI lays it out: each hop is routed, so the TTL goes down within a node too. What
//! hangs on secondary, branch and overlay interfaces is in [`super::uplinks`].

use super::{
    pods::{self, PodId, PodKind},
    spec::{self, LabSpec, POD_GATEWAY, POD_GATEWAY_V6},
    uplinks,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Largest super-frame of a lab with BIG TCP, bytes.
pub(super) const BIG: u32 = 185_000;

/// Sysctls below `/proc/sys/net`, to be set before any interface is made.
///
/// They silence what a kernel says by itself, so that the traffic on the veths is the tests' own
/// (ARP and neighbour discovery remain, as on a real node; multicast reports, which have no
/// setting, are for [`super::nat::silence_multicast_reports`]).
pub(crate) fn sysctls(spec: &LabSpec, forwards: bool) -> Vec<(String, &'static str)> {
    let mut list = Vec::new();
    for scope in ["all", "default"] {
        let mut v4 = |key: &str, value| list.push((format!("ipv4/conf/{scope}/{key}"), value));
        v4("rp_filter", "2"); // loose
        v4("send_redirects", "0");
        v4("accept_redirects", "0");
        let mut v6 = |key: &str, value| list.push((format!("ipv6/conf/{scope}/{key}"), value));
        if !spec.ipv6 {
            v6("disable_ipv6", "1");
            continue;
        }
        v6("disable_ipv6", "0");
        v6("accept_dad", "0");
        v6("dad_transmits", "0");
        v6("accept_ra", "0");
        v6("accept_redirects", "0");
        v6("autoconf", "0");
        v6("router_solicitations", "0");
        v6("forwarding", if forwards { "1" } else { "0" });
    }
    if forwards {
        list.push(("ipv4/ip_forward".to_owned(), "1"));
    }
    // Every error is sent, however many there are.
    list.push(("ipv4/icmp_ratelimit".to_owned(), "0"));
    list.push(("ipv4/icmp_msgs_per_sec".to_owned(), "1000000"));
    list.push(("ipv4/icmp_msgs_burst".to_owned(), "1000000"));
    if spec.ipv6 {
        list.push(("ipv6/icmp/ratelimit".to_owned(), "0"));
    }
    // Anybody may ping, whatever capabilities the process has.
    list.push(("ipv4/ping_group_range".to_owned(), "0 2147483647"));
    list
}

/// A veth with one end on each host, both made where they belong, from our own namespace.
///
/// The first end's index is chosen, so that no two ends of a veth have the same one: for such the
/// kernel reports a carrier at once, for others up to a second late.
pub(crate) fn veth(
    spec: &LabSpec,
    (host, name, index, mac): (&str, &str, u32, Option<&str>),
    (peer_host, peer): (&str, &str),
    mtu: u32,
) -> String {
    let prefix = spec::prefix(&spec.name);
    let mac = mac.map(|mac| format!("address {mac} ")).unwrap_or_default();
    format!(
        "link add name {name} index {index} {mac}mtu {mtu} netns {prefix}{host} \
         type veth peer name {peer} mtu {mtu} netns {prefix}{peer_host}"
    )
}

/// All veths.
pub(crate) fn links(spec: &LabSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let bare: &[(u32, &str)] = if spec.bare { &[(13, "db"), (14, "cache")] } else { &[] };
    for (index, host) in [(11, "inet"), (12, "sensor")].iter().chain(bare) {
        lines.push(veth(spec, ("vpc", host, *index, None), (host, "eth0"), spec.uplink_mtu()));
    }
    for node in 1..=spec.nodes {
        let name = spec::node_name(node);
        let index = 100 + u32::from(node);
        lines.push(veth(spec, ("vpc", &name, index, None), (&name, "eth0"), spec.uplink_mtu()));
        if spec.has_eni() {
            lines.push(uplinks::eni_link(spec, node));
        }
        lines.extend(pods::of_node(spec, node).into_iter().map(|pod| pod_link(spec, pod)));
    }
    lines
}

/// A pod's veth.
pub(crate) fn pod_link(spec: &LabSpec, pod: PodId) -> String {
    let (node, veth_name, mac) = (spec::node_name(pod.node), pod.host_veth(), pod.host_mac());
    let node_end = (node.as_str(), veth_name.as_str(), pod.host_index(), Some(mac.as_str()));
    veth(spec, node_end, (&pod.name(), "eth0"), pod.mtu(spec))
}

/// An interface up, with what the lab wants of all.
pub(crate) fn up(lines: &mut Vec<String>, spec: &LabSpec, device: &str) {
    if spec.big_tcp {
        lines.push(format!("link set {device} gso_max_size {BIG} gro_max_size {BIG}"));
    }
    lines.push(format!("link set {device} up"));
}

/// Address of one interface, and the interface up.
fn address(lines: &mut Vec<String>, spec: &LabSpec, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) {
    lines.push(format!("address add {v4}/24 dev {device}"));
    if spec.ipv6 {
        lines.push(format!("address add {v6}/64 dev {device} nodad"));
    }
    up(lines, spec, device);
}

fn default_route(lines: &mut Vec<String>, spec: &LabSpec, v4: Ipv4Addr, v6: Ipv6Addr) {
    lines.push(format!("route add default via {v4}"));
    if spec.ipv6 {
        lines.push(format!("route add default via {v6} dev eth0"));
    }
}

pub(crate) fn loopback() -> Vec<String> {
    vec!["link set lo up".to_owned()]
}

/// The VPC's router: knows which node has which pod's address, as the VPC does.
pub(crate) fn vpc(spec: &LabSpec) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "inet", spec::inet_gateway_v4(), spec::inet_gateway_v6());
    address(&mut lines, spec, "sensor", spec::sensor_gateway_v4(), spec::sensor_gateway_v6());
    if spec.bare {
        let gateways = spec::bare_gateways_v4().into_iter().zip(spec::bare_gateways_v6());
        for (device, (v4, v6)) in ["db", "cache"].into_iter().zip(gateways) {
            address(&mut lines, spec, device, v4, v6);
        }
    }
    for node in 1..=spec.nodes {
        let device = spec::node_name(node);
        address(&mut lines, spec, &device, spec::gateway_v4(node), spec::gateway_v6(node));
        if spec.has_eni() {
            lines.extend(uplinks::vpc_eni(spec, node));
        }
        for pod in pods::of_node(spec, node) {
            lines.extend(vpc_pod(spec, pod));
        }
    }
    lines
}

/// The router's knowledge of one pod.
pub(crate) fn vpc_pod(spec: &LabSpec, pod: PodId) -> Vec<String> {
    let (v4, v6) = match pod.kind {
        PodKind::Plain => (spec::node_v4(pod.node), spec::node_v6(pod.node)),
        PodKind::Eni => (spec::eni_v4(pod.node), spec::eni_v6(pod.node)),
        PodKind::Branch => return uplinks::vpc_branch(spec, pod),
        PodKind::Overlay => return Vec::new(),
    };
    let mut lines = vec![format!("route add {}/32 via {v4}", pod.v4())];
    if spec.ipv6 {
        lines.push(format!("route add {}/128 via {v6}", pod.v6()));
    }
    lines
}

/// A host with one interface: on the internet, or in the VPC and no node.
pub(crate) fn single(
    spec: &LabSpec,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    (gateway_v4, gateway_v6): (Ipv4Addr, Ipv6Addr),
) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "eth0", v4, v6);
    default_route(&mut lines, spec, gateway_v4, gateway_v6);
    lines
}

/// A node: its uplinks, and a host route to each pod.
pub(crate) fn node(spec: &LabSpec, node: u8) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "eth0", spec::node_v4(node), spec::node_v6(node));
    default_route(&mut lines, spec, spec::gateway_v4(node), spec::gateway_v6(node));
    if spec.has_eni() {
        lines.extend(uplinks::node_eni(spec, node));
    }
    if spec.branch_pods > 0 {
        lines.extend(uplinks::branches_first(spec));
    }
    if spec.overlay_pods > 0 {
        lines.extend(uplinks::node_overlay(spec, node));
    }
    for pod in pods::of_node(spec, node) {
        lines.extend(node_pod(spec, pod));
    }
    lines
}

/// A node's side of one pod.
pub(crate) fn node_pod(spec: &LabSpec, pod: PodId) -> Vec<String> {
    let device = pod.host_veth();
    let mut lines = Vec::new();
    up(&mut lines, spec, &device);
    match pod.kind {
        PodKind::Plain | PodKind::Eni => {
            lines.push(format!("route add {}/32 dev {device} scope link", pod.v4()));
            if spec.ipv6 {
                lines.push(format!("route add {}/128 dev {device}", pod.v6()));
            }
            if spec.has_eni() {
                lines.extend(uplinks::pod_rules(spec, pod));
            }
        }
        PodKind::Branch => lines.extend(uplinks::node_branch(spec, pod)),
        PodKind::Overlay => lines.push(format!("link set {device} master cni0")),
    }
    lines
}

/// A pod: a host address, and a gateway that exists only as a neighbour entry; in an overlay,
/// an ordinary host on the bridge.
pub(crate) fn pod(spec: &LabSpec, pod: PodId) -> Vec<String> {
    if pod.kind == PodKind::Overlay {
        let gateways = (spec::overlay_gateway_v4(pod.node), spec::overlay_v6(pod.node, 1));
        return single(spec, (pod.v4(), pod.v6()), gateways);
    }
    let mac = pod.host_mac();
    let mut lines = loopback();
    lines.push(format!("address add {}/32 dev eth0", pod.v4()));
    if spec.ipv6 {
        lines.push(format!("address add {}/128 dev eth0 nodad", pod.v6()));
    }
    up(&mut lines, spec, "eth0");
    lines.push(format!("neighbour add {POD_GATEWAY} lladdr {mac} dev eth0 nud permanent"));
    lines.push(format!("route add {POD_GATEWAY} dev eth0 scope link"));
    lines.push(format!("route add default via {POD_GATEWAY} dev eth0"));
    if spec.ipv6 {
        lines.push(format!("neighbour add {POD_GATEWAY_V6} lladdr {mac} dev eth0 nud permanent"));
        lines.push(format!("route add default via {POD_GATEWAY_V6} dev eth0"));
    }
    lines
}
