//! What a lab looks like, and every name and address in it, as a pure function of that.
//!
//! ```text
//! VPC 10.0.0.0/16, fd00:10::/32          node n: 10.0.n.10, fd00:10:n::10, gateway .1
//! services 172.20.0.0/16, fd00:172:20::  pod m:  10.0.n.(100+m), fd00:10:n::(100+m)
//! internet 203.0.113.10, 2001:db8:203::10        sensor: 10.0.250.10, fd00:10:250::10
//! ```

use super::error::LabError;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    process,
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
/// Kubernetes namespace that the pods are said to live in; it only shapes the veths' names.
const POD_NAMESPACE: &str = "default";

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
}

impl LabSpec {
    /// Two nodes with two pods each, IPv4, MTU 1500, offloads on.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: 2, pods: 2, ipv6: false, mtu: 1500, pod_offloads: true }
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

    pub(crate) fn validate(&self) -> Result<(), LabError> {
        validate_name(&self.name)?;
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return Err(LabError::Invalid(format!(
                "nodes is {}; it can be 1 to {MAX_NODES}",
                self.nodes
            )));
        }
        if self.pods > MAX_PODS {
            return Err(LabError::Invalid(format!(
                "pods is {}; it can be 0 to {MAX_PODS}",
                self.pods
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

pub(crate) fn pod_name(node: u8, pod: u8) -> String {
    format!("node{node}-pod{pod}")
}

/// Name of the host side of a pod's veth, as the VPC CNI makes it.
pub(crate) fn host_veth_name(node: u8, pod: u8) -> String {
    let digest = Sha1::digest(format!("{POD_NAMESPACE}.{}", pod_name(node, pod)));
    let mut hex = String::new();
    for byte in digest.iter().take(6) {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(11);
    format!("eni{hex}")
}

/// MAC address of the host side; set by us, so that the pod's static neighbour entry needs no
/// look-up.
pub(crate) fn host_veth_mac(node: u8, pod: u8) -> String {
    format!("0a:58:00:00:{node:02x}:{pod:02x}")
}

pub(crate) fn gateway_v4(subnet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, subnet, 1)
}

pub(crate) fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, node, 10)
}

pub(crate) fn pod_v4(node: u8, pod: u8) -> Ipv4Addr {
    // At most 100 pods: `validate`.
    Ipv4Addr::new(10, 0, node, 100 + pod)
}

/// An IPv6 address whose groups read like the IPv4 address's numbers.
fn vpc_v6(subnet: u8, host: u8) -> Ipv6Addr {
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

pub(crate) fn pod_v6(node: u8, pod: u8) -> Ipv6Addr {
    vpc_v6(node, 100 + pod)
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
    fn a_veth_is_named_by_the_sha1_of_namespace_and_pod() {
        // printf default.node1-pod1 | sha1sum
        assert_eq!(host_veth_name(1, 1), "eni20a2ad68006");
        assert_eq!(host_veth_name(200, 100).len(), 14);
    }

    #[test]
    fn addresses_read_alike_in_both_families() {
        assert_eq!(pod_v4(2, 50).to_string(), "10.0.2.150");
        assert_eq!(pod_v6(2, 50).to_string(), "fd00:10:2::150");
        assert_eq!(sensor_v6().to_string(), "fd00:10:250::10");
        assert_eq!(pod_v6(200, 100).to_string(), "fd00:10:200::200");
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
        assert!(LabSpec::new("a").mtu(1279).validate().is_err());
        assert!(LabSpec::new("a").mtu(9001).validate().is_ok());
    }
}
