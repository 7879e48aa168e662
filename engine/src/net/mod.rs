//! What the node's network looks like: links with their roles, own addresses, local prefixes.
//!
//! ```text
//! kernel --netlink, decode--> tables --roles--> View --> Shared<View> --> classify, control
//!            (sockets)       (what is)  (what it means)
//! select: which interfaces are tapped
//! ```
//!
//! A [`View`] is a snapshot, never changed after it was built. [`Monitor`] keeps a new one coming
//! within 100 ms of a change; [`snapshot`] takes a single one.

mod decode;
mod monitor;
mod netlink;
mod roles;
mod select;
mod slots;
mod tables;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

pub use monitor::{Counters, Monitor, Options, snapshot};
pub use select::{InterfaceSelection, RoleOverrides, SelectionError};
pub use slots::SHARED_SLOT;

/// What an interface is to the node, from routes and addresses, never from its name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Leads off the node: carries a default route or one by a gateway, is a physical device, a
    /// VLAN of one, or a tunnel to other nodes.
    Uplink,
    /// The host side of a pod's link: a host route leads through it, its peer lives in another
    /// namespace, or it is a port of a bridge that is no uplink.
    Pod,
    /// Neither (such a bridge itself, a dummy, loopback).
    Other,
}

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kernel interface index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND` ("veth", "bridge", "vlan", "vxlan"), empty for physical devices.
    pub kind: String,
    /// `ARPHRD_ETHER`.
    pub is_ethernet: bool,
    /// `IFF_UP`.
    pub is_up: bool,
    /// `IFF_RUNNING`.
    pub is_running: bool,
    /// `IFF_LOOPBACK`.
    pub is_loopback: bool,
    /// Link-layer address, empty if it has none.
    pub mac: Vec<u8>,
    /// Largest payload of a frame, bytes.
    pub mtu: u32,
    /// Own addresses, with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// See [`Role`].
    pub role: Role,
    /// Dense number, 1..1022, kept for as long as the link lives and reused later; 0 if there are
    /// more links than numbers. Names the link in the dedup table.
    pub slot: u16,
    /// False where `--interface` leaves it out; always false for what is not Ethernet.
    pub is_tapped: bool,
}

/// The node's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By interface index.
    pub links: HashMap<u32, Link>,
    /// Addresses of the node itself, sorted; those of `kube-ipvs0`, 127/8 and ::1 left out.
    pub own: Vec<IpAddr>,
    /// What the node's routes reach through interfaces that are no uplinks, host routes and
    /// connected subnets, own addresses included; sorted, each once.
    pub local: Vec<IpNet>,
    /// The same, each prefix with the interface that it is behind (every one, should there be
    /// several); own addresses with 0. Sorted, each pair once.
    pub local_by: Vec<(IpNet, u32)>,
    /// UDP ports of the node's VXLAN and Geneve devices, sorted, each once.
    pub overlay_ports: Vec<u16>,
    /// Interface numbers of tapped links that went lately, sorted: a ring may still hold frames of
    /// theirs.
    pub gone: Vec<u32>,
    /// The main device: where the IPv4 default route of least metric in the main table leads.
    pub main: Option<u32>,
    /// The IPv4 subnets right behind the main device, by the main table: routes of link scope
    /// with a prefix shorter than an address. Sorted, each once.
    pub main_subnets: Vec<Ipv4Net>,
    /// Bytes of the largest super-frame of any Ethernet link (`gso_max_size`, `gro_max_size` and those for
    /// IPv4), without link header.
    pub largest_frame: u32,
}

impl View {
    /// The main device's name.
    #[must_use]
    pub fn main_name(&self) -> Option<&str> {
        Some(self.links.get(&self.main?)?.name.as_str())
    }
}
