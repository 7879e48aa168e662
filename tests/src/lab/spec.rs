//! What a lab looks like, and every name and address in it, as a pure function of that.
//!
//! ```text
//! VPC 10.0.0.0/16, fd00:10::/32          node n: 10.0.n.10, fd00:10:n::10, gateway .1
//! services 172.20.0.0/16, fd00:172:20::  pod m:  10.0.n.(100+m), fd00:10:n::(100+m)
//! internet 203.0.113.10, 2001:db8:203::10        sensor: 10.0.250.10, fd00:10:250::10
//! db: 10.0.200.10, fd00:10:200::10               cache: 10.0.120.10, fd00:10:120::10
//! overlay pods 10.244.n.0/24, fd00:244:n::/64    eth1 of node n: 10.0.(40+n).10
//! ```

use super::{error::LabError, pods::PodKind};
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

/// The VPC, which is what `PODNET` is on EKS: pods, nodes and bare instances alike.
pub const PODNET: &str = "10.0.0.0/16";
/// The IPv6 VPC.
pub const PODNET_V6: &str = "fd00:10::/32";
/// The service network.
pub const SVCNET: &str = "172.20.0.0/16";
/// The IPv6 service network.
pub const SVCNET_V6: &str = "fd00:172:20::/112";
/// The pods' IPv4 gateway: an address that nobody has, with a static neighbour entry.
pub(crate) const POD_GATEWAY: &str = "169.254.1.1";
/// The same for IPv6.
pub(crate) const POD_GATEWAY_V6: &str = "fe80::1";

const MAX_NODES: u8 = 200;
const MAX_PODS: u8 = 100;
/// Third number of the sensor's address: above every node's.
const SENSOR_SUBNET: u8 = 250;
/// Third number of the address of `db`, outside what nodes have: above the tapped half.
const DB_SUBNET: u8 = 200;
/// Third number of the address of `cache`, in the tapped half.
const CACHE_SUBNET: u8 = 120;
/// With secondary ENIs or bare instances there is room for fewer nodes.
const MAX_NODES_WITH_MORE: u8 = 39;

/// How an overlay's packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlay {
    /// In VXLAN by this UDP port, by a device of the kernel's.
    Vxlan(u16),
    /// In Geneve, by a relay.
    Geneve,
    /// IPv4 in IPv4, by a relay.
    Ipip,
}

impl Default for Overlay {
    /// As flannel does it.
    fn default() -> Self {
        Self::Vxlan(8472)
    }
}

impl From<u16> for Overlay {
    fn from(port: u16) -> Self {
        Self::Vxlan(port)
    }
}

impl FromStr for Overlay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("vxlan:")) {
            ("vxlan", _) => Ok(Self::default()),
            ("geneve", _) => Ok(Self::Geneve),
            ("ipip", _) => Ok(Self::Ipip),
            (_, Some(port)) => {
                port.parse().map(Self::Vxlan).map_err(|error| format!("port {port:?}: {error}"))
            }
            _ => Err(format!("{text:?} is not vxlan, vxlan:PORT, geneve or ipip")),
        }
    }
}

impl Overlay {
    /// The device that leads to the other nodes.
    #[must_use]
    pub fn device(self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan.1",
            Self::Geneve => "geneve.1",
            Self::Ipip => "tunl.1",
        }
    }
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabSpec {
    /// Tells labs apart that run side by side: lower-case letters and digits.
    pub name: String,
    /// Nodes, numbered from 1.
    pub nodes: u8,
    /// Pods on each node, numbered from 1.
    pub pods: u8,
    /// Give everything IPv6 addresses as well.
    pub ipv6: bool,
    /// MTU of the pods' interfaces, bytes. Uplinks have at least 1500.
    pub mtu: u32,
    /// Leave segmentation and checksums to the "hardware", as veths do unless told otherwise.
    /// Without, every frame that a pod (or the internet host) sends is within the MTU and has its
    /// checksums.
    pub pod_offloads: bool,
    /// Pods behind a secondary ENI on each node.
    #[serde(default)]
    pub eni_pods: u8,
    /// Pods with branch ENIs (strict security groups) on each node.
    #[serde(default)]
    pub branch_pods: u8,
    /// Pods of an overlay on each node.
    #[serde(default)]
    pub overlay_pods: u8,
    /// Which overlay.
    #[serde(default)]
    pub overlay: Overlay,
    /// Instances of the VPC that are no nodes: `db`, and `cache` among the nodes' subnets.
    #[serde(default)]
    pub bare: bool,
    /// Super-frames of up to 180 kB, instead of 64 kB (BIG TCP).
    #[serde(default)]
    pub big_tcp: bool,
}

impl LabSpec {
    /// Two nodes with two pods each, IPv4, MTU 1500, offloads on.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nodes: 2,
            pods: 2,
            ipv6: false,
            mtu: 1500,
            pod_offloads: true,
            eni_pods: 0,
            branch_pods: 0,
            overlay_pods: 0,
            overlay: Overlay::default(),
            bare: false,
            big_tcp: false,
        }
    }

    /// The same with a name that no other lab of this machine has: for tests.
    #[must_use]
    pub fn unique() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the uniqueness of the number matters.
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self::new(format!("t{}x{count}", process::id()))
    }

    /// Sets the number of nodes.
    #[must_use]
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    /// Sets the number of pods on each node.
    #[must_use]
    pub fn pods(self, pods: u8) -> Self {
        Self { pods, ..self }
    }

    /// Adds IPv6.
    #[must_use]
    pub fn ipv6(self) -> Self {
        Self { ipv6: true, ..self }
    }

    /// Sets the pods' MTU, bytes.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Self {
        Self { mtu, ..self }
    }

    /// Frames within the MTU and with checksums, as they leave the pods.
    #[must_use]
    pub fn without_pod_offloads(self) -> Self {
        Self { pod_offloads: false, ..self }
    }

    /// Gives each node a secondary ENI `eth1` with this many pods behind it.
    #[must_use]
    pub fn eni_pods(self, eni_pods: u8) -> Self {
        Self { eni_pods, ..self }
    }

    /// Adds this many pods with branch ENIs to each node.
    #[must_use]
    pub fn branch_pods(self, branch_pods: u8) -> Self {
        Self { branch_pods, ..self }
    }

    /// Adds this many pods of an overlay (a number: VXLAN by that UDP port) to each node.
    #[must_use]
    pub fn overlay_pods(self, overlay_pods: u8, overlay: impl Into<Overlay>) -> Self {
        Self { overlay_pods, overlay: overlay.into(), ..self }
    }

    /// Adds the bare instances `db` and `cache`.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { bare: true, ..self }
    }

    /// Lets super-frames grow beyond 64 kB.
    #[must_use]
    pub fn big_tcp(self) -> Self {
        Self { big_tcp: true, ..self }
    }

    pub(crate) fn count_of(&self, kind: PodKind) -> u8 {
        match kind {
            PodKind::Plain => self.pods,
            PodKind::Eni => self.eni_pods,
            PodKind::Branch => self.branch_pods,
            PodKind::Overlay => self.overlay_pods,
        }
    }

    /// Whether nodes have an `eth1`.
    pub(crate) fn has_eni(&self) -> bool {
        self.eni_pods > 0 || self.branch_pods > 0
    }

    pub(crate) fn validate(&self) -> Result<(), LabError> {
        validate_name(&self.name)?;
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(LabError::Invalid(format!(
                "nodes is {}; it can be 1 to {MAX_NODES}",
                self.nodes
            )));
        }
        for (what, kind) in [
            ("pods", PodKind::Plain),
            ("pods behind secondary ENIs", PodKind::Eni),
            ("pods with branch ENIs", PodKind::Branch),
            ("overlay pods", PodKind::Overlay),
        ] {
            let count = self.count_of(kind);
            if count > MAX_PODS {
                return Err(LabError::Invalid(format!(
                    "{what} is {count}; it can be 0 to {MAX_PODS}"
                )));
            }
        }
        if (self.has_eni() || self.bare) && self.nodes > MAX_NODES_WITH_MORE {
            return Err(LabError::Invalid(format!(
                "nodes is {}; with secondary ENIs or bare instances it can be 1 to {}",
                self.nodes, MAX_NODES_WITH_MORE
            )));
        }
        // 1280 is the least that IPv6 accepts, 65535 the most of a veth.
        if !(1280..=65535).contains(&self.mtu) {
            return Err(LabError::Invalid(format!("mtu is {}; it can be 1280 to 65535", self.mtu)));
        }
        Ok(())
    }

    pub(crate) fn uplink_mtu(&self) -> u32 {
        self.mtu.max(1500)
    }
}

/// Refuses names that would make one lab's namespaces look like another's.
pub(crate) fn validate_name(name: &str) -> Result<(), LabError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !plain || name.is_empty() || name.len() > 32 {
        return Err(LabError::Invalid(format!(
            "lab name {name:?}: 1 to 32 lower-case letters and digits"
        )));
    }
    Ok(())
}

/// How the namespaces of a lab begin. No lab's prefix is another's, as names have no hyphen.
pub(crate) fn prefix(lab: &str) -> String {
    format!("pt-{lab}-")
}

pub(crate) fn node_name(node: u8) -> String {
    format!("node{node}")
}

pub(crate) fn gateway_v4(subnet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, subnet, 1)
}

pub(crate) fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, node, 10)
}

/// An IPv6 address whose groups read like the IPv4 address's numbers.
pub(crate) fn vpc_v6(subnet: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, as_digits(subnet), 0, 0, 0, 0, as_digits(host))
}

/// 250 becomes 0x250.
fn as_digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

pub(crate) fn gateway_v6(subnet: u8) -> Ipv6Addr {
    vpc_v6(subnet, 1)
}

pub(crate) fn node_v6(node: u8) -> Ipv6Addr {
    vpc_v6(node, 10)
}

/// Subnet of the secondary ENIs of a node.
pub(crate) fn eni_subnet(node: u8) -> u8 {
    // At most 39 such nodes: `validate`.
    40 + node
}

/// Subnet of the branch ENIs of a node.
pub(crate) fn branch_subnet(node: u8) -> u8 {
    80 + node
}

/// The node's own address of its secondary ENI.
pub(crate) fn eni_v4(node: u8) -> Ipv4Addr {
    node_v4(eni_subnet(node))
}

pub(crate) fn eni_v6(node: u8) -> Ipv6Addr {
    node_v6(eni_subnet(node))
}

pub(crate) fn overlay_gateway_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, 1)
}

/// An address of the overlay's pods.
pub(crate) fn overlay_v6(node: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, as_digits(node), 0, 0, 0, 0, as_digits(host))
}

pub(crate) fn db_v4() -> Ipv4Addr {
    node_v4(DB_SUBNET)
}

pub(crate) fn db_v6() -> Ipv6Addr {
    node_v6(DB_SUBNET)
}

pub(crate) fn cache_v4() -> Ipv4Addr {
    node_v4(CACHE_SUBNET)
}

pub(crate) fn cache_v6() -> Ipv6Addr {
    node_v6(CACHE_SUBNET)
}

pub(crate) fn bare_gateways_v4() -> [Ipv4Addr; 2] {
    [gateway_v4(DB_SUBNET), gateway_v4(CACHE_SUBNET)]
}

pub(crate) fn bare_gateways_v6() -> [Ipv6Addr; 2] {
    [gateway_v6(DB_SUBNET), gateway_v6(CACHE_SUBNET)]
}

pub(crate) fn sensor_v4() -> Ipv4Addr {
    node_v4(SENSOR_SUBNET)
}

pub(crate) fn sensor_v6() -> Ipv6Addr {
    node_v6(SENSOR_SUBNET)
}

pub(crate) fn sensor_gateway_v4() -> Ipv4Addr {
    gateway_v4(SENSOR_SUBNET)
}

pub(crate) fn sensor_gateway_v6() -> Ipv6Addr {
    gateway_v6(SENSOR_SUBNET)
}

pub(crate) fn inet_v4() -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10)
}

pub(crate) fn inet_gateway_v4() -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 1)
}

pub(crate) fn inet_v6() -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x10)
}

pub(crate) fn inet_gateway_v6() -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_alike_in_both_families() {
        assert_eq!(sensor_v6().to_string(), "fd00:10:250::10");
        assert_eq!((eni_v4(2).to_string(), eni_v6(2).to_string()), {
            ("10.0.42.10".to_owned(), "fd00:10:42::10".to_owned())
        });
    }

    #[test]
    fn a_name_that_could_be_taken_for_another_labs_host_is_refused() {
        for bad in ["", "a-node1", "A", "a b", "../a"] {
            assert!(validate_name(bad).is_err(), "{bad:?}");
        }
        assert!(LabSpec::unique().validate().is_ok());
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert!(LabSpec::new("a").nodes(0).validate().is_err());
        assert!(LabSpec::new("a").nodes(201).validate().is_err());
        assert!(LabSpec::new("a").pods(101).validate().is_err());
        assert!(LabSpec::new("a").nodes(40).branch_pods(1).validate().is_err());
        assert!(LabSpec::new("a").overlay_pods(101, 8472).validate().is_err());
        assert!(LabSpec::new("a").mtu(1279).validate().is_err());
        assert!(LabSpec::new("a").mtu(9001).validate().is_ok());
    }
}
