//! Rules 1 to 8 of the specification, written plainly over a list of sightings of one node.
//!
//! ```text
//! sightings --cut--> packets --kind--> not here | plain | candidate (of the node, of a service)
//!                                                   |         `-- matched with what is reported
//!                                                   `-- count per packet and point
//! ```
//!
//! It looks at everything that was seen at once, so the order of sightings plays no part: of each
//! packet it says how many copies are to be reported, or, where the rule leaves a doubt, how few
//! and how many may be. All sightings are taken to lie within one window.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::counts::{Flows, Group, flow};
use super::cut;
use super::identity::Identity;
use super::packet::{End, Ends};

/// Which way a frame crosses an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the host's stack.
    In,
    /// The host sends it.
    Out,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Leads off the node.
    Uplink,
    /// Leads to a pod.
    Pod,
    /// Neither.
    Other,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its number.
    pub ifindex: u32,
    /// See [`Role`].
    pub role: Role,
    /// The kernel's kind of device.
    pub kind: String,
    /// It is looked at.
    pub is_tapped: bool,
}

/// All that the rule knows of a node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's own addresses, service addresses that it answers itself among them.
    pub own: Vec<IpAddr>,
    /// Own addresses, and what is reached through interfaces that are no uplinks.
    pub local: Vec<IpNet>,
    /// All of them.
    pub interfaces: Vec<Interface>,
    /// Service addresses.
    pub svcnet: Vec<IpNet>,
    /// NodePorts.
    pub nodeports: RangeInclusive<u16>,
    /// Addresses of other nodes that run a tap.
    pub tapped: Vec<IpNet>,
    /// Exceptions to `tapped`.
    pub untapped: Vec<IpNet>,
    /// UDP ports of overlays, where the node has an overlay's device.
    pub overlay_ports: Vec<u16>,
    /// Where datagrams go.
    pub sensors: Vec<IpAddr>,
    /// TCP ports of the sensors' control connections.
    pub control_ports: Vec<u16>,
}

/// A frame seen at a point.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// When, nanoseconds.
    pub at_ns: u64,
    /// The interface.
    pub ifindex: u32,
    /// The direction.
    pub direction: Direction,
    /// Bytes from the link header on.
    pub data: Vec<u8>,
    /// A VLAN tag beside them.
    pub tag: Option<u16>,
    /// Payload of each segment of a super-frame, or 0.
    pub gso_size: u16,
    /// Its kind (`virtio_net_hdr`).
    pub gso_type: u8,
    /// The checksum is left to the hardware: from where, and where to.
    pub partial: Option<(u16, u16)>,
}

/// What the rule makes of a packet at a point, before copies are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Not this tap's to report, or nobody's.
    NotHere,
    /// Counted as it is.
    Plain,
    /// It has an own address at an uplink: perhaps the translated form of a pod's packet.
    OfNode {
        /// Nothing shows whether the other end is translated too: it has no ports.
        both: bool,
    },
    /// It has a service's address: perhaps there is a copy without.
    OfService {
        /// The service's address is the source's.
        answers: bool,
    },
}

/// How many copies of a packet are to be reported.
pub type Expectation = BTreeMap<Identity, RangeInclusive<usize>>;

impl Node {
    fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    fn is_service_address(&self, address: IpAddr) -> bool {
        self.svcnet.iter().any(|net| net.contains(&address))
    }

    /// Local to another node that runs a tap.
    fn is_covered(&self, address: IpAddr) -> bool {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        within(&self.tapped)
            && !within(&self.untapped)
            && !within(&self.local)
            && !self.is_service_address(address)
    }

    /// In SVCNET and not answered here, or the node's own with a NodePort.
    fn is_service(&self, end: End, protocol: u8) -> bool {
        let has_ports = matches!(protocol, 6 | 17 | 132);
        if self.is_own(end.address) {
            return has_ports && self.nodeports.contains(&end.port);
        }
        self.is_service_address(end.address)
    }

    /// Rules 1, 2, 6, 7 and 8: what addresses, role and direction say.
    #[must_use]
    pub fn sort(&self, ifindex: u32, direction: Direction, frame: &[u8]) -> Sort {
        let role = match self.interfaces.iter().find(|it| it.ifindex == ifindex) {
            Some(interface) if !interface.is_tapped => return Sort::NotHere,
            Some(interface) => interface.role,
            None => Role::Other,
        };
        let identity = Identity::of(frame);
        let at_uplink = role == Role::Uplink;
        let Some(Ends { source, destination }) = identity.ends else {
            // ARP is its sender's.
            let is_arp = Identity::ethertype(frame) == Some(0x0806);
            let from = is_arp.then(|| Identity::arp_sender(frame)).flatten();
            let is_foreign = at_uplink && direction == Direction::In;
            return match from {
                Some(from) if is_foreign && self.is_covered(from) => Sort::NotHere,
                _ => Sort::Plain,
            };
        };
        if self.is_own_traffic(&identity, frame) || self.is_overlay(&identity) {
            return Sort::NotHere;
        }
        let by_an_uplink = direction == Direction::Out || at_uplink;
        if by_an_uplink && self.is_covered(source.address) {
            return Sort::NotHere;
        }
        let protocol = identity.protocol;
        if self.is_service(source, protocol) {
            return Sort::OfService { answers: true };
        }
        if self.is_service(destination, protocol) {
            return Sort::OfService { answers: false };
        }
        // An error goes against the packet that it is about.
        if let Some(about) = identity.about {
            let quoted = [6, 17, 132].into_iter().find(|it| about.protocol == *it).unwrap_or(0);
            if self.is_service(about.ends.source, quoted) && self.is_own(about.ends.source.address)
            {
                return Sort::OfService { answers: false };
            }
            if self.is_service(about.ends.destination, quoted)
                && self.is_own(about.ends.destination.address)
            {
                return Sort::OfService { answers: true };
            }
        }
        let own_end = match direction {
            Direction::Out => source,
            Direction::In => destination,
        };
        if at_uplink && self.is_own(own_end.address) {
            Sort::OfNode { both: identity.is_later_fragment || identity.about.is_some() }
        } else {
            Sort::Plain
        }
    }

    /// On its way into a pod with a port like a NodePort's, which a translation may have drawn for
    /// a client: then this is the copy to report, whatever else is seen.
    fn may_be_a_clients(&self, sort: Sort, ifindex: u32, identity: &Identity) -> bool {
        let is_uplink = |it: &Interface| it.ifindex == ifindex && it.role == Role::Uplink;
        sort == (Sort::OfService { answers: true })
            && !self.interfaces.iter().any(is_uplink)
            && identity.ends.is_some_and(|ends| self.is_own(ends.source.address))
    }

    fn is_own_traffic(&self, identity: &Identity, frame: &[u8]) -> bool {
        let Some(Ends { source, destination }) = identity.ends else { return false };
        let is_sensor = |end: End| self.sensors.contains(&end.address);
        match identity.protocol {
            6 => {
                (is_sensor(destination) && self.control_ports.contains(&destination.port))
                    || (is_sensor(source) && self.control_ports.contains(&source.port))
            }
            17 if identity.is_later_fragment => {
                is_sensor(destination) && self.is_own(source.address)
            }
            17 => {
                let layout = Identity::layout(frame);
                let payload = layout.and_then(|it| frame.get(it.payload..it.payload + 2));
                is_sensor(destination) && matches!(payload, Some([0, 7 | 110]))
            }
            _ => false,
        }
    }

    fn is_overlay(&self, identity: &Identity) -> bool {
        let Some(Ends { source, destination }) = identity.ends else { return false };
        let has = |kinds: &[&str]| {
            self.interfaces.iter().any(|interface| kinds.contains(&interface.kind.as_str()))
        };
        let is_outer = match identity.protocol {
            17 => {
                has(&["vxlan", "geneve"])
                    && !identity.is_later_fragment
                    && self.overlay_ports.contains(&destination.port)
            }
            4 | 41 => has(&["ipip", "sit", "ip6tnl"]),
            _ => false,
        };
        is_outer && (self.is_own(source.address) || self.is_own(destination.address))
    }

    /// Rules 2 to 6: how many copies of each packet are to be reported.
    #[must_use]
    pub fn expect(&self, sightings: &[Sighting]) -> Expectation {
        let mut groups: BTreeMap<Vec<u8>, Group> = BTreeMap::new();
        let mut flows = Flows::default();
        for sighting in sightings {
            for packet in cut::packets(sighting) {
                let sort = self.sort(sighting.ifindex, sighting.direction, &packet);
                let identity = Identity::of(&packet);
                let group = groups.entry(identity.invariant.clone()).or_default();
                if self.may_be_a_clients(sort, sighting.ifindex, &identity) {
                    flows.clients.extend(identity.ends.map(flow));
                }
                group.add(sort, (sighting.ifindex, sighting.direction), identity);
            }
        }
        let is_marked = |address| self.is_own(address) || self.is_service_address(address);
        for group in groups.values_mut() {
            group.count_plain();
            group.settle_node(&is_marked);
        }
        for group in groups.values_mut() {
            group.prove(&mut flows, &is_marked);
        }
        for group in groups.values_mut() {
            group.widen_native(&flows);
        }
        let mut expectation = Expectation::new();
        for group in groups.values_mut() {
            group.settle_services(&flows, &is_marked);
            for (identity, range) in group.result() {
                expectation.insert(identity, range);
            }
        }
        expectation
    }
}
