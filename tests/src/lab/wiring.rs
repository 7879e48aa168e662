//! The `ip` commands and sysctls that make a lab out of empty namespaces. Text only; `build` runs
//! it.
//!
//! ```text
//!  pod  eth0 .101/32 --- eni<11 hex> node1 eth0 .10/24 --- node1 .1 vpc inet --- eth0 inet
//!       default via 169.254.1.1      route .101/32 dev eni..      |
//!       (static neighbour)                                        +---- sensor --- eth0 sensor
//! ```
//!
//! As the VPC CNI lays it out: each hop is routed, so the TTL goes down within a node too.

use super::spec::{self, LabSpec, POD_GATEWAY, POD_GATEWAY_V6};
use std::net::{Ipv4Addr, Ipv6Addr};

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
    // Anybody may ping, whatever capabilities the process has.
    list.push(("ipv4/ping_group_range".to_owned(), "0 2147483647"));
    list
}

/// All veths, from our own namespace: both ends are made where they belong.
pub(crate) fn links(spec: &LabSpec) -> Vec<String> {
    let prefix = spec::prefix(&spec.name);
    // The host side's index is chosen, so that no two ends of a veth have the same one: for such
    // the kernel reports a carrier at once, for others up to a second late.
    let veth = |host: &str, name: &str, index: u32, mac: &str, peer_host: &str, mtu: u32| {
        format!(
            "link add name {name} index {index} {mac} mtu {mtu} netns {prefix}{host} \
             type veth peer name eth0 mtu {mtu} netns {prefix}{peer_host}"
        )
    };
    let uplink_mtu = spec.uplink_mtu();
    let mut lines = Vec::new();
    for (index, host) in [(11, "inet"), (12, "sensor")] {
        lines.push(veth("vpc", host, index, "", host, uplink_mtu));
    }
    for node in 1..=spec.nodes {
        let node_name = spec::node_name(node);
        let index = 100 + u32::from(node);
        lines.push(veth("vpc", &node_name, index, "", &node_name, uplink_mtu));
        for pod in 1..=spec.pods {
            let name = spec::host_veth_name(node, pod);
            let mac = format!("address {}", spec::host_veth_mac(node, pod));
            let index = 100 + u32::from(pod);
            let pod_name = spec::pod_name(node, pod);
            lines.push(veth(&node_name, &name, index, &mac, &pod_name, spec.mtu));
        }
    }
    lines
}

/// Address of one interface, and the interface up.
fn address(lines: &mut Vec<String>, spec: &LabSpec, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) {
    lines.push(format!("address add {v4}/24 dev {device}"));
    if spec.ipv6 {
        lines.push(format!("address add {v6}/64 dev {device} nodad"));
    }
    lines.push(format!("link set {device} up"));
}

fn default_route(lines: &mut Vec<String>, spec: &LabSpec, v4: Ipv4Addr, v6: Ipv6Addr) {
    lines.push(format!("route add default via {v4}"));
    if spec.ipv6 {
        lines.push(format!("route add default via {v6} dev eth0"));
    }
}

fn loopback() -> Vec<String> {
    vec!["link set lo up".to_owned()]
}

/// The VPC's router: knows which node has which pod's address, as the VPC does.
pub(crate) fn vpc(spec: &LabSpec) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "inet", spec::inet_gateway_v4(), spec::inet_gateway_v6());
    address(&mut lines, spec, "sensor", spec::sensor_gateway_v4(), spec::sensor_gateway_v6());
    for node in 1..=spec.nodes {
        let device = spec::node_name(node);
        address(&mut lines, spec, &device, spec::gateway_v4(node), spec::gateway_v6(node));
        for pod in 1..=spec.pods {
            lines.push(format!(
                "route add {}/32 via {}",
                spec::pod_v4(node, pod),
                spec::node_v4(node)
            ));
            if spec.ipv6 {
                lines.push(format!(
                    "route add {}/128 via {}",
                    spec::pod_v6(node, pod),
                    spec::node_v6(node)
                ));
            }
        }
    }
    lines
}

/// The internet host.
pub(crate) fn inet(spec: &LabSpec) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "eth0", spec::inet_v4(), spec::inet_v6());
    default_route(&mut lines, spec, spec::inet_gateway_v4(), spec::inet_gateway_v6());
    lines
}

/// The sensor host, in a subnet of its own.
pub(crate) fn sensor(spec: &LabSpec) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "eth0", spec::sensor_v4(), spec::sensor_v6());
    default_route(&mut lines, spec, spec::sensor_gateway_v4(), spec::sensor_gateway_v6());
    lines
}

/// A node: the uplink, and a host route to each pod.
pub(crate) fn node(spec: &LabSpec, node: u8) -> Vec<String> {
    let mut lines = loopback();
    address(&mut lines, spec, "eth0", spec::node_v4(node), spec::node_v6(node));
    default_route(&mut lines, spec, spec::gateway_v4(node), spec::gateway_v6(node));
    for pod in 1..=spec.pods {
        let device = spec::host_veth_name(node, pod);
        lines.push(format!("link set {device} up"));
        lines.push(format!("route add {}/32 dev {device} scope link", spec::pod_v4(node, pod)));
        if spec.ipv6 {
            lines.push(format!("route add {}/128 dev {device}", spec::pod_v6(node, pod)));
        }
    }
    lines
}

/// A pod: a host address, and a gateway that exists only as a neighbour entry.
pub(crate) fn pod(spec: &LabSpec, node: u8, pod: u8) -> Vec<String> {
    let mac = spec::host_veth_mac(node, pod);
    let mut lines = loopback();
    lines.push(format!("address add {}/32 dev eth0", spec::pod_v4(node, pod)));
    if spec.ipv6 {
        lines.push(format!("address add {}/128 dev eth0 nodad", spec::pod_v6(node, pod)));
    }
    lines.push("link set eth0 up".to_owned());
    lines.push(format!("neighbour add {POD_GATEWAY} lladdr {mac} dev eth0 nud permanent"));
    lines.push(format!("route add {POD_GATEWAY} dev eth0 scope link"));
    lines.push(format!("route add default via {POD_GATEWAY} dev eth0"));
    if spec.ipv6 {
        lines.push(format!("neighbour add {POD_GATEWAY_V6} lladdr {mac} dev eth0 nud permanent"));
        lines.push(format!("route add default via {POD_GATEWAY_V6} dev eth0"));
    }
    lines
}
