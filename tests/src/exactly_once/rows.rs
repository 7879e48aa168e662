//! The thirty rows of the specification: what each is, which packets are its, what makes them.
//!
//! ```text
//! row n: servers listen on port 8000 + n of a pod, so that a packet says which row it is of
//!        (where a row is about ports, fragments or other protocols, its own rule says)
//! ```

use super::{Ground, devices, node, outside, plain, services, shapes};
use crate::{compare::Packet, lab::LabError};
use std::net::{IpAddr, Ipv4Addr};

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its number in spec/exactly-once.md.
    pub number: u8,
    /// What it is, in the specification's words.
    pub what: &'static str,
    /// Whether a packet, as it must be reported, belongs to it.
    pub(super) is: fn(&Packet) -> bool,
    /// Makes its traffic; `None` where another row's traffic is this one's too.
    pub(super) traffic: Traffic,
}

/// Where a row's packets come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Traffic {
    /// This makes them.
    Of(fn(&Ground<'_>) -> Result<(), LabError>),
    /// The traffic of the row of this number.
    With(u8),
}

/// The port that a row's servers listen on.
pub(super) const fn port(row: u8) -> u16 {
    8000 + row as u16
}

/// The internet host.
pub(super) const INTERNET: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// The service address that a node answers itself.
pub(super) const NODE_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
/// Row 8: the service's port is above the client's.
pub(super) const HIGH_PORT: u16 = 50051;
/// Row 13: the pod's port is above the host process's.
pub(super) const PROBED_PORT: u16 = 50013;

const UDP: u8 = 17;

fn is_udp(packet: &Packet) -> bool {
    packet.protocol() == Some(UDP)
}

fn is_icmp(packet: &Packet) -> bool {
    packet.protocol() == Some(1)
}

/// Tunnels between nodes: VXLAN (both ports in use), Geneve, IP in IP.
pub(super) fn is_overlay(packet: &Packet) -> bool {
    let to = |port| packet.destination_port() == Some(port);
    matches!(packet.protocol(), Some(4 | 41))
        || is_udp(packet) && (to(4789) || to(8472) || to(6081))
}

macro_rules! of_port {
    ($row:literal) => {
        |packet| packet.has_port(port($row))
    };
}

/// All of them, in order.
pub const ROWS: [Row; 30] = [
    Row {
        number: 1,
        what: "same node pod A -> pod B, TCP, request and reply",
        is: of_port!(1),
        traffic: Traffic::Of(plain::tcp_same_node),
    },
    Row {
        number: 2,
        what: "cross node pod A -> pod B, TCP, request",
        is: |packet| packet.destination_port() == Some(port(2)),
        traffic: Traffic::Of(plain::tcp_cross_node),
    },
    Row {
        number: 3,
        what: "cross node pod B -> pod A, TCP, reply",
        is: |packet| packet.source_port() == Some(port(2)),
        traffic: Traffic::With(2),
    },
    Row {
        number: 4,
        what: "same node, UDP, both directions",
        is: of_port!(4),
        traffic: Traffic::Of(plain::udp_same_node),
    },
    Row {
        number: 5,
        what: "cross node, UDP, both directions",
        is: of_port!(5),
        traffic: Traffic::Of(plain::udp_cross_node),
    },
    Row {
        number: 6,
        what: "same node through a ClusterIP (DNAT), both directions",
        is: of_port!(6),
        traffic: Traffic::Of(services::same_node),
    },
    Row {
        number: 7,
        what: "cross node through a ClusterIP, both directions",
        is: of_port!(7),
        traffic: Traffic::Of(services::cross_node),
    },
    Row {
        number: 8,
        what: "through a ClusterIP whose port is above the client's (gRPC 50051, client 45000), same node",
        is: |packet| packet.has_port(HIGH_PORT),
        traffic: Traffic::Of(services::high_port),
    },
    Row {
        number: 9,
        what: "pod -> internet, SNATed to the node's address at the uplink",
        is: |packet| {
            packet.destination_port() == Some(port(9))
                || is_icmp(packet) && packet.destination() == Some(INTERNET)
        },
        traffic: Traffic::Of(outside::pod_to_internet),
    },
    Row {
        number: 10,
        what: "the reply to 9",
        is: |packet| {
            packet.source_port() == Some(port(9))
                || is_icmp(packet) && packet.source() == Some(INTERNET)
        },
        traffic: Traffic::With(9),
    },
    Row {
        number: 11,
        what: "internet client -> pod (load balancer with IP targets), both directions",
        is: of_port!(11),
        traffic: Traffic::Of(outside::internet_to_pod),
    },
    Row {
        number: 12,
        what: "internet client -> NodePort -> pod (same node and other node), both directions \
               (policy Cluster: as the pod's wire has it, the node in the client's place)",
        is: of_port!(12),
        traffic: Traffic::Of(services::node_port),
    },
    Row {
        number: 13,
        what: "host process -> local pod (kubelet probe), client port below the pod's, both directions",
        is: |packet| packet.has_port(PROBED_PORT),
        traffic: Traffic::Of(node::probe_from_below),
    },
    Row {
        number: 14,
        what: "host process -> local pod, client port above",
        is: of_port!(14),
        traffic: Traffic::Of(node::probe_from_above),
    },
    Row {
        number: 15,
        what: "pod -> NodeLocal DNS on a service address that the node itself answers, and the reply",
        is: |packet| packet.has_address(NODE_DNS) || packet.has_address(services::CLUSTER_DNS),
        traffic: Traffic::Of(services::node_local_dns),
    },
    Row {
        number: 16,
        what: "IPv6 same node",
        is: of_port!(16),
        traffic: Traffic::Of(plain::ipv6_same_node),
    },
    Row {
        number: 17,
        what: "IPv6 cross node",
        is: of_port!(17),
        traffic: Traffic::Of(plain::ipv6_cross_node),
    },
    Row {
        number: 18,
        what: "IP fragments (first and later), cross node",
        is: Packet::is_fragment,
        traffic: Traffic::Of(shapes::fragments),
    },
    Row {
        number: 19,
        what: "ARP and other non-IP",
        is: |packet| packet.protocol().is_none(),
        traffic: Traffic::Of(shapes::non_ip),
    },
    Row {
        number: 20,
        what: "overlay CNI: the VXLAN/Geneve/IPIP outer packet between two nodes \
               (sent: the inner packets, at the pods; an outer packet reported counts as doubled)",
        is: |packet| packet.has_port(port(20)) || is_overlay(packet),
        traffic: Traffic::Of(devices::overlay),
    },
    Row {
        number: 21,
        what: "real TCP retransmissions, repeated identical UDP datagrams, IP ID 0",
        is: of_port!(21),
        traffic: Traffic::Of(shapes::repeats),
    },
    Row {
        number: 22,
        what: "the tap's own datagrams to the sensor and its control connection \
               (sent: pods' packets meanwhile; a packet of the tap's own reported counts as doubled)",
        is: |packet| packet.has_port(port(22)) || is_own(packet),
        traffic: Traffic::Of(devices::beside_own_traffic),
    },
    Row {
        number: 23,
        what: "two equal ports, both directions, cross node",
        is: of_port!(23),
        traffic: Traffic::Of(plain::equal_ports),
    },
    Row {
        number: 24,
        what: "pod -> host process on another node, and its reply",
        is: of_port!(24),
        traffic: Traffic::Of(node::pod_to_other_node),
    },
    Row {
        number: 25,
        what: "pod <-> database or other instance inside PODNET that runs no tap, both directions",
        is: of_port!(25),
        traffic: Traffic::Of(outside::instance_without_tap),
    },
    Row {
        number: 26,
        what: "strict security groups: two pods of one node through branch and trunk and back",
        is: of_port!(26),
        traffic: Traffic::Of(devices::branch_and_trunk),
    },
    Row {
        number: 27,
        what: "bulk TCP with segmentation offload: super-frames at veths, MTU-size frames at the uplink, GRO on arrival",
        is: of_port!(27),
        traffic: Traffic::Of(shapes::bulk),
    },
    Row {
        number: 28,
        what: "internet or other client -> host-network server on the node (its own port, not NodePort), both directions",
        is: of_port!(28),
        traffic: Traffic::Of(node::internet_to_node),
    },
    Row {
        number: 29,
        what: "pod -> host-network server on its own node (kubelet, API server), both directions",
        is: of_port!(29),
        traffic: Traffic::Of(node::pod_to_own_node),
    },
    Row {
        number: 30,
        what: "secondary uplinks: a pod whose packets leave and arrive by another ENI, other subnet",
        is: of_port!(30),
        traffic: Traffic::Of(devices::secondary_uplink),
    },
];

/// To or from one of the sensors.
pub(super) fn is_own(packet: &Packet) -> bool {
    super::SENSORS.iter().any(|sensor| packet.has_address(*sensor))
}

/// Index of the row that a packet belongs to.
pub(super) fn of(packet: &Packet) -> Option<usize> {
    // Fragments and non-IP first: a first fragment has ports too.
    let special = [18, 19].into_iter().map(index).find(|row| (ROWS[*row].is)(packet));
    special.or_else(|| ROWS.iter().position(|row| (row.is)(packet)))
}

/// Where a row is in [`ROWS`].
pub(super) fn index(row: u8) -> usize {
    usize::from(row) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_in_order_and_their_traffic_is_made_by_somebody() {
        for (number, row) in (1..).zip(ROWS) {
            assert_eq!(row.number, number);
            if let Traffic::With(other) = row.traffic {
                assert!(matches!(ROWS[index(other)].traffic, Traffic::Of(_)));
            }
        }
    }
}
