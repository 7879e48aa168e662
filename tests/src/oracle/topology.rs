//! Nodes of a small cluster: interfaces, addresses, pods; what each tap knows of the others.
//!
//! ```text
//!   pod --veth(10+i)--+-- (bridge 4) --+--> eth0 (2), eth1 (3) [+ br-ex (6)] --> router
//!                     +-- vlan(20+i) --+--> trunk = eth1 (3)
//!                                      +--> vxlan/geneve (5) in UDP by eth0
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::rule::{Interface, Node, Role};

/// How a node's pods are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// A host route to each veth (VPC CNI, Calico).
    Routed,
    /// Veths are ports of a bridge.
    Bridge,
    /// Strict security groups: each pod has a VLAN of the trunk, also towards its neighbour.
    Trunk,
    /// A bridge, and a VXLAN (or Geneve) device to the other nodes.
    Overlay,
}

/// What is chosen of a node.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// See [`Cni`].
    pub cni: Cni,
    /// It runs a tap.
    pub is_tapped: bool,
    /// The uplink is a port of a bridge that has the address: two stacked points.
    pub has_stacked_uplink: bool,
}

/// What the taps know of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Every address of every other tapped node.
    Published,
    /// `--tapped-net` with the whole network, exceptions for what runs no tap.
    Cidr,
    /// Some of the addresses of other tapped nodes, and some of the node's own pods too (they moved
    /// here a moment ago); the bits choose.
    Lagging(u32),
    /// Nothing.
    None,
}

/// Pods of a node.
pub const PODS: usize = 2;
pub(super) const ETH0: u32 = 2;
pub(super) const ETH1: u32 = 3;
pub(super) const BRIDGE: u32 = 4;
pub(super) const TUNNEL: u32 = 5;
pub(super) const BR_EX: u32 = 6;

/// A pod: node and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its node.
    pub node: usize,
    /// Its number there.
    pub index: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Topology {
    /// By number.
    pub nodes: Vec<NodePlan>,
    /// See [`Coverage`].
    pub coverage: Coverage,
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(255)
}

fn address(v6: bool, subnet: usize, host: usize) -> IpAddr {
    if v6 {
        let word = |number: usize| u16::try_from(number).unwrap_or(0);
        Ipv6Addr::new(0xfd00, word(subnet), 0, 0, 0, 0, 0, word(host)).into()
    } else {
        Ipv4Addr::new(10, 0, octet(subnet), octet(host)).into()
    }
}

pub(super) fn veth(pod: Pod) -> u32 {
    10 + u32::from(octet(pod.index))
}

pub(super) fn branch(pod: Pod) -> u32 {
    20 + u32::from(octet(pod.index))
}

impl Topology {
    /// The node's own address at its first or second uplink.
    #[must_use]
    pub fn own(node: usize, second: bool, v6: bool) -> IpAddr {
        address(v6, node + 1, if second { 11 } else { 10 })
    }

    /// A pod's address.
    #[must_use]
    pub fn pod(pod: Pod, v6: bool) -> IpAddr {
        address(v6, pod.node + 1, 100 + pod.index)
    }

    /// The address at which the node answers DNS itself.
    #[must_use]
    pub fn node_local(v6: bool) -> IpAddr {
        if v6 {
            Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 10).into()
        } else {
            Ipv4Addr::new(172, 20, 0, 10).into()
        }
    }

    /// The address of a service.
    #[must_use]
    pub fn service(number: usize, v6: bool) -> IpAddr {
        if v6 {
            let host = u16::try_from(100 + number).unwrap_or(0);
            Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, host).into()
        } else {
            Ipv4Addr::new(172, 20, 1, octet(number)).into()
        }
    }

    /// A host without tap: on the internet, or (every other one) inside of the pods' network.
    #[must_use]
    pub fn outside(number: usize, v6: bool) -> IpAddr {
        match (number % 2, v6) {
            (0, false) => Ipv4Addr::new(203, 0, 113, octet(number)).into(),
            (0, true) => {
                let host = u16::try_from(number + 1).unwrap_or(0);
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into()
            }
            _ => address(v6, 200, number),
        }
    }

    /// A router that sends ICMP errors.
    #[must_use]
    pub fn router(v6: bool) -> IpAddr {
        if v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 9, 9).into()
        } else {
            Ipv4Addr::new(192, 0, 2, 9).into()
        }
    }

    /// A sensor.
    #[must_use]
    pub fn sensor(v6: bool) -> IpAddr {
        address(v6, 250, 10)
    }

    /// What a node's tap knows: the rule's description of the node.
    #[must_use]
    pub fn describe(&self, node: usize) -> Node {
        let plan = &self.nodes[node];
        let mut interfaces = Vec::new();
        let mut add = |ifindex: u32, role: Role, kind: &str| {
            interfaces.push(Interface { ifindex, role, kind: kind.to_owned(), is_tapped: true });
        };
        add(ETH0, Role::Uplink, "");
        add(ETH1, Role::Uplink, "");
        if plan.has_stacked_uplink {
            add(BR_EX, Role::Uplink, "bridge");
        }
        if matches!(plan.cni, Cni::Bridge | Cni::Overlay) {
            add(BRIDGE, Role::Other, "bridge");
        }
        if plan.cni == Cni::Overlay {
            add(TUNNEL, Role::Uplink, if node.is_multiple_of(2) { "vxlan" } else { "geneve" });
        }
        for index in 0..PODS {
            add(veth(Pod { node, index }), Role::Pod, "veth");
            if plan.cni == Cni::Trunk {
                add(branch(Pod { node, index }), Role::Uplink, "vlan");
            }
        }
        let families = [false, true];
        let mut own: Vec<IpAddr> =
            families.iter().flat_map(|v6| [false, true].map(|b| Self::own(node, b, *v6))).collect();
        own.extend(families.map(Self::node_local));
        let mut local: Vec<IpNet> = own.iter().copied().map(IpNet::from).collect();
        local.extend(self.addresses(node).into_iter().skip(4).map(IpNet::from));
        let (tapped, untapped) = self.knowledge(node);
        Node {
            own,
            local,
            interfaces,
            svcnet: ["172.20.0.0/16", "fd00:ffff::/108"]
                .map(|net| net.parse().expect("a prefix"))
                .into(),
            nodeports: 30_000..=32_767,
            tapped,
            untapped,
            overlay_ports: vec![4789, 8472, 6081],
            sensors: [false, true].map(Self::sensor).into(),
            control_ports: vec![2003],
        }
    }

    /// Own addresses of a node (four), and those of its pods.
    fn addresses(&self, node: usize) -> Vec<IpAddr> {
        let mut all = Vec::new();
        for v6 in [false, true] {
            all.extend([false, true].map(|second| Self::own(node, second, v6)));
        }
        for v6 in [false, true] {
            all.extend((0..PODS).map(|index| Self::pod(Pod { node, index }, v6)));
        }
        all
    }

    fn knowledge(&self, node: usize) -> (Vec<IpNet>, Vec<IpNet>) {
        let of = |wanted: &dyn Fn(usize) -> bool| -> Vec<IpNet> {
            (0..self.nodes.len())
                .filter(|other| wanted(*other))
                .flat_map(|other| self.addresses(other))
                .map(IpNet::from)
                .collect()
        };
        match self.coverage {
            Coverage::None => (Vec::new(), Vec::new()),
            Coverage::Published => {
                (of(&|other| other != node && self.nodes[other].is_tapped), Vec::new())
            }
            Coverage::Cidr => {
                let all = ["10.0.0.0/16", "fd00::/16"].map(|net| net.parse().expect("a prefix"));
                let mut untapped = of(&|other| !self.nodes[other].is_tapped);
                for net in ["10.0.200.0/24", "fd00:c8::/32", "10.0.250.0/24", "fd00:fa::/32"] {
                    untapped.push(net.parse().expect("a prefix"));
                }
                (all.into(), untapped)
            }
            Coverage::Lagging(bits) => {
                let known = of(&|other| other == node || self.nodes[other].is_tapped);
                let is_known = |at: &usize| bits >> (at % 29) & 1 == 1;
                (
                    known
                        .into_iter()
                        .enumerate()
                        .filter(|(at, _)| is_known(at))
                        .map(|(_, net)| net)
                        .collect(),
                    Vec::new(),
                )
            }
        }
    }
}
