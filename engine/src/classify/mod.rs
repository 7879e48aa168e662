//! What addresses, role and direction alone decide about a frame.
//!
//! ```text
//! Policy (flags) + View (netlink) --Classifier::new--> Classifier   (rebuilt when either changes)
//! Classifier::classify(frame, headers) --> Scope { point, candidate?, marks } | DropReason
//! Classifier::filter()                 --> the same drops for the socket, as classic BPF
//! ```
//!
//! The rule is "the sender's node reports": a frame whose source is local to another tapped node
//! is that node's. A frame with a service address, or with the node's own at an uplink, may have a
//! twin with pod addresses, so that it is only a [`Candidate`] for being reported. Whatever is in
//! doubt passes: the dedup table comes next, and a duplicate is better than a loss.

mod candidate;
mod classes;
mod filter;
mod icmp;
mod own;
mod places;
mod ports;
mod why;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

use crate::bpf::Program;
use crate::dedup::Marks;
use crate::frame::{Direction, Frame, Point};
use crate::net::{Role, SHARED_SLOT, View};
use crate::rpcap::MessageType;
use crate::stats::DropReason;
use crate::wire::{Address, Headers, Network, PrefixSet, be16, ethertype, protocol};

pub use candidate::Candidate;
pub use classes::Recall;
pub use own::OwnFlow;
#[cfg(test)]
pub(crate) use ports::tests::script as reference_script;
pub use why::Standing;

use classes::{AddressClasses, Classes};
use places::{Place, Places};

/// Who reports a packet that several nodes or points see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Election {
    /// The sender's node.
    #[default]
    Source,
    /// The reference's rule, by ports and addresses, at each point on its own.
    Ports,
    /// Everybody; only the content table removes copies within the node.
    None,
}

/// What flags say.
#[derive(Clone, Debug)]
pub struct Policy {
    /// See [`Election`].
    pub election: Election,
    /// The pods' prefixes; only [`Election::Ports`] asks for them.
    pub pods: Vec<IpNet>,
    /// Service addresses.
    pub svcnet: Vec<IpNet>,
    /// Ports that are a service's where the address is the node's own.
    pub nodeports: RangeInclusive<u16>,
    /// Addresses whose nodes all run a tap.
    pub tapped: Vec<IpNet>,
    /// Exceptions to `tapped`.
    pub untapped: Vec<IpNet>,
    /// UDP destination ports of VXLAN and Geneve, beside those of the node's own devices.
    pub overlay_ports: Vec<u16>,
    /// Every Ethernet interface is wanted, also one that netlink has not told of yet.
    pub any_interface: bool,
    /// TCP ports of the sensors' control connections.
    pub control_ports: Vec<u16>,
    /// Where the tap listens for clients: address (any of the node's if `None`) and TCP port.
    pub listeners: Vec<(Option<IpAddr>, u16)>,
    /// What a packet must match, at each point, to be looked at at all.
    pub node_filter: Option<Program>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            election: Election::default(),
            pods: Vec::new(),
            svcnet: Vec::new(),
            nodeports: NODEPORTS,
            tapped: Vec::new(),
            untapped: Vec::new(),
            overlay_ports: Vec::new(),
            any_interface: false,
            control_ports: Vec::new(),
            listeners: Vec::new(),
            node_filter: None,
        }
    }
}

/// Kubernetes' own default of `--service-node-port-range`.
pub const NODEPORTS: RangeInclusive<u16> = 30_000..=32_767;

/// A frame that passed: its point's number in the dedup table, and whether a better copy may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `slot * 2 + direction`; 0 where no copy is looked for: reported at every point.
    pub point: u16,
    /// See [`Candidate`].
    pub candidate: Option<Candidate>,
    /// For the packet's key.
    pub marks: Marks,
}

/// See the module. Immutable: a change of flags, network or sensors makes a new one.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// No other has it, but its clones.
    number: u64,
    election: Election,
    /// Set for [`Election::Ports`].
    ports: Option<ports::Ports>,
    any_interface: bool,
    places: Places,
    /// Tapped links that went lately.
    gone: HashSet<u32>,
    names: HashMap<String, u32>,
    own: PrefixSet,
    local: PrefixSet,
    service: PrefixSet,
    nodeports: RangeInclusive<u16>,
    tapped: PrefixSet,
    untapped: PrefixSet,
    sensors: PrefixSet,
    flows: own::OwnFlows,
    classes: AddressClasses,
    control_ports: Vec<u16>,
    listeners: Vec<(Option<Address>, u16)>,
    overlay_ports: Vec<u16>,
    has_ipip: bool,
    /// A packet may have a VLAN tag at one point and none, or another, at the next.
    changes_tags: bool,
    node_filter: Option<Program>,
}

/// Kinds of links that carry frames in UDP between nodes.
const UDP_OVERLAYS: [&str; 2] = ["vxlan", "geneve"];
/// Kinds of links that may put a VLAN tag on a frame, or take it off.
const TAGGERS: [&str; 4] = ["vlan", "bridge", "openvswitch", "dsa"];
/// Kinds of links that carry packets in IP between nodes.
const IP_OVERLAYS: [&str; 3] = ["ipip", "sit", "ip6tnl"];

impl Classifier {
    /// What `policy` means on the network `view`, with the sensors at these addresses.
    #[must_use]
    pub fn new(policy: &Policy, view: &View, sensors: &[IpAddr]) -> Self {
        let place = |link: &crate::net::Link| Place {
            slot: if link.slot == 0 { SHARED_SLOT } else { link.slot },
            role: link.role,
            is_tapped: link.is_tapped,
            mtu: link.mtu,
        };
        let has = |kinds: &[&str]| {
            view.links.values().any(|link| link.is_up && kinds.contains(&link.kind.as_str()))
        };
        // Without a device that unpacks them, the outer packets are all there is.
        let mut overlay_ports = Vec::new();
        if has(&UDP_OVERLAYS) {
            overlay_ports.extend(policy.overlay_ports.iter().chain(&view.overlay_ports));
            overlay_ports.sort_unstable();
            overlay_ports.dedup();
        }
        let mut made = Self {
            number: 0,
            election: policy.election,
            ports: (policy.election == Election::Ports).then(|| {
                let subnets = view.main_subnets.iter().copied();
                ports::Ports::new(&policy.svcnet, &policy.pods, subnets)
            }),
            any_interface: policy.any_interface,
            places: Places::new(view.links.iter().map(|(ifindex, link)| (*ifindex, place(link)))),
            gone: view.gone.iter().copied().collect(),
            names: view.links.values().map(|link| (link.name.clone(), link.ifindex)).collect(),
            own: PrefixSet::of_hosts(view.own.iter().copied()),
            local: PrefixSet::new(view.local.iter().copied()),
            service: PrefixSet::new(policy.svcnet.iter().copied()),
            nodeports: policy.nodeports.clone(),
            tapped: PrefixSet::new(policy.tapped.iter().copied()),
            untapped: PrefixSet::new(policy.untapped.iter().copied()),
            sensors: PrefixSet::of_hosts(sensors.iter().copied()),
            flows: own::OwnFlows::default(),
            classes: AddressClasses::new([], |_| Classes::default()),
            control_ports: policy.control_ports.clone(),
            listeners: policy
                .listeners
                .iter()
                .map(|(ip, port)| (ip.map(Into::into), *port))
                .collect(),
            overlay_ports,
            has_ipip: has(&IP_OVERLAYS),
            // Without any link there is only the doubt.
            changes_tags: view.links.is_empty() || has(&TAGGERS),
            node_filter: policy.node_filter.clone(),
        };
        made.compile();
        made
    }

    /// What addresses are, in the form that is asked per packet.
    fn compile(&mut self) {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only that no two are the same.
        self.number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let sets = [
            &self.own,
            &self.local,
            &self.service,
            &self.tapped,
            &self.untapped,
            &self.sensors,
            self.flows.peers(),
        ];
        self.classes = AddressClasses::new(sets, |address| {
            let is_peer = self.sensors.contains(address) || self.flows.peers().contains(address);
            Classes::default()
                .with(Classes::OWN, self.own.contains(address))
                .with(Classes::SERVICE, self.service.contains(address))
                .with(Classes::COVERED, self.is_covered(address))
                .with(Classes::PEER, is_peer)
        });
    }

    /// The same, with connections of the tap's that must not be captured.
    #[must_use]
    pub fn without(self, flows: impl IntoIterator<Item = OwnFlow>) -> Self {
        let mut made = Self { flows: own::OwnFlows::new(flows), ..self };
        made.compile();
        made
    }

    /// Decides about a frame.
    ///
    /// # Errors
    ///
    /// Why it is not this node's, or nobody's, to report.
    pub fn classify(&self, frame: &Frame<'_>, headers: &Headers) -> Result<Scope, DropReason> {
        let of = |address| self.classes.of(address);
        self.judge(frame, headers, of(headers.source), of(headers.destination))
    }

    /// The same for many frames: `recall` remembers addresses, and is for this worker alone.
    ///
    /// # Errors
    ///
    /// As [`classify`](Self::classify).
    #[inline]
    pub fn classify_with(
        &self,
        recall: &mut Recall,
        frame: &Frame<'_>,
        headers: &Headers,
    ) -> Result<Scope, DropReason> {
        let source = recall.classes(&self.classes, headers.source);
        let destination = recall.classes(&self.classes, headers.destination);
        self.judge(frame, headers, source, destination)
    }

    /// Before frames are classified with `recall`.
    pub fn begin(&self, recall: &mut Recall) {
        recall.begin(self.number);
    }

    #[inline]
    fn judge(
        &self,
        frame: &Frame<'_>,
        headers: &Headers,
        source: Classes,
        destination: Classes,
    ) -> Result<Scope, DropReason> {
        let place = self.place(frame.point).ok_or(DropReason::Interface)?;
        let either = source.or(destination);
        if self.is_own_traffic(frame.data, headers, either) {
            return Err(DropReason::OwnTraffic);
        }
        if let Some(rule) = &self.ports {
            // No table: what the rule takes is reported, at every point where it takes it.
            let always = Scope { point: 0, candidate: None, marks: Marks::default() };
            return if rule.takes(frame) { Ok(always) } else { Err(DropReason::Election) };
        }
        let inbound = frame.point.direction == Direction::In;
        let at_uplink = place.role == Role::Uplink;
        let mut candidate = None;
        if self.election == Election::Source {
            if either.is(Classes::OWN) && self.is_overlay(headers) {
                return Err(DropReason::Overlay);
            }
            // A source that is neither local nor entering at a local interface came by an uplink,
            // here or at a point before.
            if (at_uplink || !inbound) && self.comes_from_covered(frame.data, headers, source) {
                return Err(DropReason::Covered);
            }
            // An ICMP error may be about such an address.
            let may_serve = either.is(Classes::HOST)
                || matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
            if may_serve {
                candidate = self.service(frame, headers, at_uplink, source, destination);
            }
        }
        let own_end = if inbound { destination } else { source };
        if at_uplink && candidate.is_none() && own_end.is(Classes::OWN) {
            candidate = self.node(frame, headers, inbound);
        }
        let marks =
            Marks { source: source.is(Classes::HOST), destination: destination.is(Classes::HOST) };
        Ok(Scope { point: place.slot * 2 + u16::from(inbound), candidate, marks })
    }

    /// Whether candidates may wait for their twins.
    #[must_use]
    pub fn settles(&self) -> bool {
        self.election == Election::Source
    }

    /// [`classify`](Self::classify)'s verdict, with the node's own filter applied to one packet: it
    /// narrows, whoever is elected, and comes before the table, so that of several copies it is one
    /// that the filter takes which is reported.
    ///
    /// # Errors
    ///
    /// Why the packet is not to be looked up.
    #[inline]
    pub fn narrow(
        &self,
        verdict: Result<Scope, DropReason>,
        packet: &Frame<'_>,
    ) -> Result<Scope, DropReason> {
        let Some(filter) = &self.node_filter else { return verdict };
        match verdict {
            Err(DropReason::OwnTraffic | DropReason::Interface) => verdict,
            _ if filter.run_in_kernel(packet) == 0 => Err(DropReason::NodeFilter),
            _ => verdict,
        }
    }

    /// The interface of this name, if there is one.
    #[must_use]
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// The largest packet of the interface, if it is known.
    #[must_use]
    pub fn mtu(&self, point: Point) -> Option<u32> {
        self.places.get(point.ifindex).map(|place| place.mtu).filter(|mtu| *mtu != 0)
    }

    /// `None` where the interface is not to be tapped.
    fn place(&self, point: Point) -> Option<Place> {
        let place = match self.places.get(point.ifindex) {
            Some(place) => place,
            // Netlink is a moment behind, or the frame is: its link has gone meanwhile.
            None => {
                let is_tapped = self.any_interface || self.gone.contains(&point.ifindex);
                Place { slot: SHARED_SLOT, role: Role::Other, is_tapped, mtu: 0 }
            }
        };
        place.is_tapped.then_some(place)
    }

    /// True for an address that is local to another tapped node.
    fn is_covered(&self, source: Address) -> bool {
        self.tapped.contains(source)
            && !self.untapped.contains(source)
            && !self.local.contains(source)
            && !self.service.contains(source)
    }

    /// Whether it is another tapped node's, by its source, or by who asks or answers by ARP.
    #[inline]
    fn comes_from_covered(&self, data: &[u8], headers: &Headers, source: Classes) -> bool {
        match headers.network {
            Network::Other => self.is_covered(arp_sender(data)),
            _ => source.is(Classes::COVERED),
        }
    }

    /// An outer packet between nodes, of which one is this: its inner packet is seen at the overlay's
    /// device and the pod.
    fn is_overlay(&self, headers: &Headers) -> bool {
        match headers.protocol {
            protocol::UDP => {
                headers.ports.is_some_and(|(_, port)| self.overlay_ports.contains(&port))
            }
            protocol::IPIP | protocol::IPV6 => self.has_ipip,
            _ => false,
        }
    }

    /// A client's control connection, with the password in it perhaps.
    fn is_at_listener(&self, headers: &Headers) -> bool {
        let Some((source, destination)) = headers.ports else { return false };
        headers.protocol == protocol::TCP
            && self.listeners.iter().any(|(ip, port)| {
                let is_it = |address, end| {
                    end == *port
                        && ip.map_or_else(|| self.own.contains(address), |ip| ip == address)
                };
                is_it(headers.source, source) || is_it(headers.destination, destination)
            })
    }

    /// Datagrams to a sensor (whichever node's tap sent them), what ICMP says about them, and control
    /// connections.
    #[inline]
    fn is_own_traffic(&self, data: &[u8], headers: &Headers, either: Classes) -> bool {
        if matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6) {
            return icmp::is_about_our_data(data, headers, &self.sensors, &self.flows, &self.own);
        }
        (!self.listeners.is_empty() && self.is_at_listener(headers))
            || (either.is(Classes::PEER) && self.is_with_peer(data, headers))
    }

    /// The same, where one end is a sensor or a client.
    #[cold]
    fn is_with_peer(&self, data: &[u8], headers: &Headers) -> bool {
        if self.flows.contain(data, headers, &self.own) {
            return true;
        }
        let to_sensor = self.sensors.contains(headers.destination);
        if !to_sensor && !self.sensors.contains(headers.source) {
            return false;
        }
        match (headers.protocol, headers.ports) {
            (protocol::TCP, Some((source, destination))) => {
                let port = if to_sensor { destination } else { source };
                self.control_ports.contains(&port)
            }
            (protocol::UDP, Some(_)) => to_sensor && is_rpcap_data(&data[headers.payload..]),
            // The tail of a datagram of ours that some router cut.
            (protocol::UDP, None) => to_sensor && self.own.contains(headers.source),
            _ => false,
        }
    }
}

/// Who asks or answers by ARP; unspecified if it is no ARP of IPv4 on Ethernet.
fn arp_sender(data: &[u8]) -> Address {
    // Hardware type, protocol type, lengths; operation; sender's hardware and protocol address.
    let is_arp = be16(data, 12) == Some(ethertype::ARP)
        && be16(data, 16) == Some(ethertype::IPV4)
        && be16(data, 18) == Some(0x0604);
    match data.get(28..32) {
        Some(&[a, b, c, d]) if is_arp => Address::from_v4([a, b, c, d]),
        _ => Address::UNSPECIFIED,
    }
}

/// True for the first bytes of a datagram in either data encoding.
fn is_rpcap_data(payload: &[u8]) -> bool {
    matches!(payload, [0, kind, ..]
        if *kind == MessageType::Packet as u8 || *kind == MessageType::Stream as u8)
}

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
pub(crate) use tests::link_for_test;
