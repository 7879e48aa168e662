//! Which pods there are, by how they are connected, and every name and address of one.
//!
//! ```text
//! Plain    behind eth0               10.0.n.(100+m)        eni<hash>
//! Eni      behind eth1               10.0.(40+n).(100+m)   eni<hash>   rule from POD lookup 2
//! Branch   behind vlan.eth.m, eth1   10.0.(80+n).(100+m)   vlan<hash>  rule iif VETH lookup 100+m
//! Overlay  behind cni0, vxlan.1      10.244.n.(100+m)      veth<hash>
//! ```

use super::spec::{self, LabSpec};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

/// Kubernetes namespace that the pods are said to live in; it only shapes the veths' names.
const POD_NAMESPACE: &str = "default";

/// How a pod is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PodKind {
    /// By the node's primary uplink.
    Plain,
    /// By a secondary ENI, in another subnet.
    Eni,
    /// By a branch ENI of its own (security groups for pods, strict): a VLAN of the trunk `eth1`.
    Branch,
    /// By an overlay: the bridge `cni0`, and `vxlan.1` to the other nodes.
    Overlay,
}

impl PodKind {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Eni, Self::Branch, Self::Overlay];

    fn word(self) -> &'static str {
        match self {
            Self::Plain => "pod",
            Self::Eni => "eni",
            Self::Branch => "branch",
            Self::Overlay => "overlay",
        }
    }
}

/// One pod of a lab: everything else about it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodId {
    pub(crate) kind: PodKind,
    pub(crate) node: u8,
    pub(crate) number: u8,
}

impl PodId {
    #[cfg(test)]
    pub(crate) fn plain(node: u8, number: u8) -> Self {
        Self { kind: PodKind::Plain, node, number }
    }

    pub(crate) fn name(self) -> String {
        format!("{}-{}{}", spec::node_name(self.node), self.kind.word(), self.number)
    }

    /// The host side of its veth, named as the VPC CNI (or, in an overlay, a bridge CNI) does it.
    pub(crate) fn host_veth(self) -> String {
        let digest = Sha1::digest(format!("{POD_NAMESPACE}.{}", self.name()));
        let mut hex = String::new();
        for byte in digest.iter().take(6) {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex.truncate(11);
        let prefix = match self.kind {
            PodKind::Plain | PodKind::Eni => "eni",
            PodKind::Branch => "vlan",
            PodKind::Overlay => "veth",
        };
        format!("{prefix}{hex}")
    }

    /// MAC address of the host side; set by us, so that the pod's static neighbour entry needs no
    /// look-up.
    pub(crate) fn host_mac(self) -> String {
        self.mac(0)
    }

    /// MAC address of the branch ENI, on the node.
    pub(crate) fn branch_mac(self) -> String {
        self.mac(1)
    }

    /// MAC address of the VPC's end of the branch.
    pub(crate) fn router_mac(self) -> String {
        self.mac(2)
    }

    fn mac(self, what: u8) -> String {
        let kind = match self.kind {
            PodKind::Plain => 0,
            PodKind::Eni => 1,
            PodKind::Branch => 2,
            PodKind::Overlay => 3,
        };
        format!("0a:58:{what:02x}:{kind:02x}:{:02x}:{:02x}", self.node, self.number)
    }

    /// Index of the host side: chosen, so that no two ends of a veth have the same.
    pub(crate) fn host_index(self) -> u32 {
        let base = match self.kind {
            PodKind::Plain => 100,
            PodKind::Eni => 300,
            PodKind::Branch => 500,
            PodKind::Overlay => 700,
        };
        base + u32::from(self.number)
    }

    pub(crate) fn v4(self) -> Ipv4Addr {
        let host = 100 + self.number; // at most 100 pods: `LabSpec::validate`
        match self.subnet() {
            Some(subnet) => Ipv4Addr::new(10, 0, subnet, host),
            None => Ipv4Addr::new(10, 244, self.node, host),
        }
    }

    pub(crate) fn v6(self) -> Ipv6Addr {
        let host = 100 + self.number;
        match self.subnet() {
            Some(subnet) => spec::vpc_v6(subnet, host),
            None => spec::overlay_v6(self.node, host),
        }
    }

    fn subnet(self) -> Option<u8> {
        match self.kind {
            PodKind::Plain => Some(self.node),
            PodKind::Eni => Some(spec::eni_subnet(self.node)),
            PodKind::Branch => Some(spec::branch_subnet(self.node)),
            PodKind::Overlay => None,
        }
    }

    /// The VLAN device of its branch.
    pub(crate) fn branch_device(self) -> String {
        format!("vlan.eth.{}", self.number)
    }

    /// The router's end of its branch.
    pub(crate) fn router_device(self) -> String {
        format!("n{}vlan{}", self.node, self.number)
    }

    /// Routing table of its branch, as the VPC CNI numbers them.
    pub(crate) fn branch_table(self) -> u32 {
        100 + u32::from(self.number)
    }

    pub(crate) fn mtu(self, spec: &LabSpec) -> u32 {
        match self.kind {
            // What the outer headers take.
            PodKind::Overlay => spec.mtu - 50,
            _ => spec.mtu,
        }
    }
}

/// All pods of a node, ordinary ones first.
pub(crate) fn of_node(spec: &LabSpec, node: u8) -> Vec<PodId> {
    PodKind::ALL
        .into_iter()
        .flat_map(|kind| (1..=spec.count_of(kind)).map(move |number| PodId { kind, node, number }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_is_named_by_the_sha1_of_namespace_and_pod() {
        // printf default.node1-pod1 | sha1sum
        assert_eq!(PodId::plain(1, 1).host_veth(), "eni20a2ad68006");
        for kind in PodKind::ALL {
            let pod = PodId { kind, node: 39, number: 100 };
            assert!(pod.host_veth().len() <= 15 && pod.router_device().len() <= 15);
        }
    }

    #[test]
    fn addresses_read_alike_in_both_families() {
        assert_eq!(PodId::plain(2, 50).v4().to_string(), "10.0.2.150");
        assert_eq!(PodId::plain(2, 50).v6().to_string(), "fd00:10:2::150");
        assert_eq!(PodId::plain(200, 100).v6().to_string(), "fd00:10:200::200");
        let branch = PodId { kind: PodKind::Branch, node: 2, number: 1 };
        assert_eq!(branch.v4().to_string(), "10.0.82.101");
        assert_eq!(branch.v6().to_string(), "fd00:10:82::101");
        let overlay = PodId { kind: PodKind::Overlay, node: 2, number: 1 };
        assert_eq!(overlay.v4().to_string(), "10.244.2.101");
        assert_eq!(overlay.v6().to_string(), "fd00:244:2::101");
    }
}
