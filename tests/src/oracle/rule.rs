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

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

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

/// Points on one packet's way through a host that are told apart; at more, copies are reported.
const POINTS: usize = 8;

type Point = (u32, Direction);
/// Sightings of one packet (by its ends) at each point.
type Counts = BTreeMap<Option<Ends>, BTreeMap<Point, usize>>;

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
        for group in groups.values_mut() {
            group.count_plain();
            group.settle_node();
        }
        for group in groups.values_mut() {
            group.prove(&mut flows);
        }
        for group in groups.values_mut() {
            group.widen_native(&flows);
        }
        let mut expectation = Expectation::new();
        for group in groups.values_mut() {
            group.settle_services(&flows);
            for (identity, range) in group.result() {
                expectation.insert(identity, range);
            }
        }
        expectation
    }
}

/// Pairs of addresses, in order, of service flows of which a request was seen without the service's
/// address too. Ports are left out: errors and fragments have none of their own.
#[derive(Default)]
struct Flows {
    proven: BTreeSet<(IpAddr, IpAddr)>,
    /// Of flows of which a copy with the node's address had no twin: the node's own, it seems.
    native: BTreeSet<(IpAddr, IpAddr)>,
    /// See [`Node::may_be_a_clients`].
    clients: BTreeSet<(IpAddr, IpAddr)>,
}

fn flow(ends: Ends) -> (IpAddr, IpAddr) {
    let (one, other) = (ends.source.address, ends.destination.address);
    (one.min(other), one.max(other))
}

/// Packets with one invariant part.
#[derive(Default)]
struct Group {
    names: BTreeMap<Option<Ends>, Identity>,
    plain: Counts,
    of_node: BTreeMap<bool, Counts>,
    of_service: BTreeMap<bool, Counts>,
    least: BTreeMap<Option<Ends>, usize>,
    most: BTreeMap<Option<Ends>, usize>,
}

impl Group {
    fn add(&mut self, sort: Sort, point: Point, identity: Identity) {
        let counts = match sort {
            Sort::NotHere => return,
            Sort::Plain => &mut self.plain,
            Sort::OfNode { both } => self.of_node.entry(both).or_default(),
            Sort::OfService { answers } => self.of_service.entry(answers).or_default(),
        };
        *counts.entry(identity.ends).or_default().entry(point).or_default() += 1;
        self.names.entry(identity.ends).or_insert(identity);
    }

    /// Rule 3: as many as at the point that saw most.
    fn count_plain(&mut self) {
        let candidates = |point: &Point| -> usize {
            let all = self.of_node.values().chain(self.of_service.values());
            all.flat_map(BTreeMap::values).filter_map(|points| points.get(point)).sum()
        };
        let (mut least, mut most) = (BTreeMap::new(), BTreeMap::new());
        for (ends, points) in &self.plain {
            least.insert(*ends, points.values().copied().max().unwrap_or(0));
            // At a point where candidates may have been taken for it before, it seems to be one more.
            let counts = points.iter().map(|(point, count)| count + candidates(point));
            let is_crowd = points.len() > POINTS;
            most.insert(*ends, if is_crowd { counts.sum() } else { counts.max().unwrap_or(0) });
        }
        (self.least, self.most) = (least, most);
    }

    /// How many reports of other packets (or of this at other points) stand for sightings at
    /// `point`, of those that `is_twin` allows; `with_node`: candidates of the node are decided already.
    fn supply(
        &self,
        point: Point,
        with_node: bool,
        is_twin: impl Fn(&Option<Ends>) -> bool,
    ) -> (usize, usize) {
        let sum = |reports: &BTreeMap<Option<Ends>, usize>| {
            reports
                .iter()
                .filter(|(ends, _)| is_twin(ends))
                .map(|(ends, reports)| {
                    let of_node = self.of_node.values().filter(|_| with_node);
                    let all = std::iter::once(&self.plain).chain(of_node);
                    let seen = all.filter_map(|counts| counts.get(ends)?.get(&point));
                    reports.saturating_sub(seen.sum())
                })
                .sum()
        };
        (sum(&self.least), sum(&self.most))
    }

    /// Rule 6: an own address at an uplink agrees with any other.
    fn settle_node(&mut self) {
        let mut left: BTreeMap<Option<Ends>, (usize, usize)> = BTreeMap::new();
        // Those that compete for the same twins: with one other end, at one point.
        let mut rivals: BTreeMap<(Point, Option<End>), Vec<(Option<Ends>, usize)>> =
            BTreeMap::new();
        for (both, counts) in &self.of_node {
            for (ends, points) in counts {
                for (point, count) in points {
                    let other = ends.filter(|_| !both).map(|ends| match point.1 {
                        Direction::Out => ends.destination,
                        Direction::In => ends.source,
                    });
                    rivals.entry((*point, other)).or_default().push((*ends, *count));
                }
            }
        }
        for ((point, other), rivals) in rivals {
            let is_twin = |ends: &Option<Ends>| match (ends, other, point.1) {
                (_, None, _) => true,
                (Some(ends), Some(other), Direction::Out) => ends.destination == other,
                (Some(ends), Some(other), Direction::In) => ends.source == other,
                (None, ..) => false,
            };
            let (least, most) = self.supply(point, false, is_twin);
            // Copies with a service's address may have been taken for the twins' before.
            let services = self.of_service.values().flat_map(BTreeMap::values);
            let taken: usize = services.filter_map(|points| points.get(&point)).sum();
            share(&rivals, (least.saturating_sub(taken), most), &mut left);
        }
        one_for_all(&mut left);
        for (ends, (least, most)) in left {
            *self.least.entry(ends).or_default() += least;
            *self.most.entry(ends).or_default() += most;
        }
    }

    /// Flows whose packets have a twin, or may have one.
    fn prove(&self, flows: &mut Flows) {
        // An answer that has its twin here shows it too, though later ones may then be dropped that
        // have none.
        for (ends, points) in self.of_service.values().flatten() {
            // Perhaps one that looks like a service's itself.
            let others = self.of_service.values().flat_map(BTreeMap::keys);
            let has_twin = points.keys().any(|point| self.supply(*point, true, |_| true).1 > 0)
                || others.filter(|other| *other != ends).count() > 0;
            if has_twin {
                let about = self.names.get(ends).and_then(|identity| identity.about);
                flows.proven.extend(
                    ends.iter().chain(about.map(|about| about.ends).iter()).map(|ends| flow(*ends)),
                );
            }
        }
        let of_node = self.of_node.values().flat_map(BTreeMap::keys);
        for ends in of_node.filter(|ends| self.most.get(*ends).is_some_and(|most| *most > 0)) {
            flows.native.extend(ends.map(flow));
        }
    }

    /// What belongs to a flow that seems to be the node's own does not wait for a twin.
    fn widen_native(&mut self, flows: &Flows) {
        for (ends, points) in self.of_node.values().flatten() {
            if ends.is_some_and(|ends| flows.native.contains(&flow(ends))) {
                let count = points.values().copied().max().unwrap_or(0);
                let most = self.most.entry(*ends).or_default();
                *most = (*most).max(count);
            }
        }
    }

    /// Rule 2: a service's address agrees with any other; an answer in a flow that is translated
    /// is not reported even where its twin is another node's.
    fn settle_services(&mut self, flows: &Flows) {
        let mut left: BTreeMap<Option<Ends>, (usize, usize)> = BTreeMap::new();
        let mut rivals: BTreeMap<Point, Vec<(Option<Ends>, usize)>> = BTreeMap::new();
        for counts in self.of_service.values() {
            for (ends, points) in counts {
                for (point, count) in points {
                    rivals.entry(*point).or_default().push((*ends, *count));
                }
            }
        }
        for (point, rivals) in rivals {
            let supply = self.supply(point, true, |_| true);
            share(&rivals, supply, &mut left);
        }
        let answers = self.of_service.get(&true);
        one_for_all(&mut left);
        for (ends, (least, most)) in left {
            let is_answer = answers.is_some_and(|answers| answers.contains_key(&ends));
            let is_proven = ends.is_some_and(|ends| flows.proven.contains(&flow(ends)));
            // Answers that came before the proof are reported.
            *self.least.entry(ends).or_default() += if is_answer && is_proven { 0 } else { least };
            *self.most.entry(ends).or_default() += most;
        }
        for (ends, points) in self.of_service.values().flatten() {
            if ends.is_some_and(|ends| flows.clients.contains(&flow(ends))) {
                self.most.insert(*ends, points.values().sum());
            }
        }
    }

    fn result(&self) -> impl Iterator<Item = (Identity, RangeInclusive<usize>)> {
        self.names.iter().map(|(ends, identity)| {
            let of = |reports: &BTreeMap<Option<Ends>, usize>| reports.get(ends).copied();
            (identity.clone(), of(&self.least).unwrap_or(0)..=of(&self.most).unwrap_or(0))
        })
    }
}

/// Where several copies wait and all of them are candidates, one may stand for the others; and it
/// may be taken for one of them at a point where it is seen itself, and then seem to be one more.
fn one_for_all(left: &mut BTreeMap<Option<Ends>, (usize, usize)>) {
    let sum: usize = left.values().map(|(_, most)| most).sum();
    if left.values().filter(|(_, most)| *most > 0).count() > 1 {
        left.values_mut().for_each(|range| *range = (0, sum));
    }
}

/// Of candidates for the same twins, how many of each are left: at least, at most. Points do not
/// add up: a packet is left as often as at the point where it is left most.
fn share(
    rivals: &[(Option<Ends>, usize)],
    (least_supply, most_supply): (usize, usize),
    left: &mut BTreeMap<Option<Ends>, (usize, usize)>,
) {
    let demand: usize = rivals.iter().map(|(_, count)| count).sum();
    for (ends, count) in rivals {
        let others = demand - count;
        // The others take nothing, or all they can.
        let least = count.saturating_sub(most_supply);
        let most = (*count).min((count + others).saturating_sub(least_supply));
        let entry = left.entry(*ends).or_default();
        *entry = (entry.0.max(least), entry.1.max(most));
    }
}
