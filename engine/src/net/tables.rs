//! What the kernel has told us: links, addresses, routes, nexthops. State only, no I/O.
//!
//! ```text
//! events: Update --apply--> devices, addresses, routes, nexthops --roles--> View
//! dump:   [Update] --replace--^          (one kind at a time)
//! ```
//!
//! The kernel does not announce everything: IPv4 routes go in silence with their link or their
//! preferred source, a veth does not tell that its peer has moved to another namespace. [`Tables`] drops what it can know to be gone and otherwise says that it
//! [is stale](Tables::take_stale), which asks for a dump. An event costs what it touches, whatever
//! the number of links.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

use super::slots::Slots;
use super::{InterfaceSelection, Link, RoleOverrides, View, roles};

/// Owns every service address under IPVS; they are no addresses of the node.
pub(super) const IPVS_DEVICE: &str = "kube-ipvs0";

/// Frames of this many links that went last may still be in a ring. Their interface numbers are not
/// given again soon.
const GONE: usize = 256;

/// Kinds of which two ends make one, each naming the other as what is below.
fn is_pair(kind: &str) -> bool {
    matches!(kind, "veth" | "netkit" | "vxcan")
}

/// A link as the kernel describes it. In `link`, what is found out later (addresses, role, slot,
/// tapped) is left empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) link: Link,
    /// The bridge, bond or VRF it is a port of; 0 for none.
    pub(super) master: u32,
    /// The device below, or a veth's peer, in this namespace; 0 for none.
    pub(super) parent: u32,
    /// Its other end (a veth's peer) is in another namespace.
    pub(super) is_peer_elsewhere: bool,
    /// The UDP port of a VXLAN or Geneve device.
    pub(super) overlay_port: Option<u16>,
    /// Bytes of the largest super-frame that it sends or receives.
    pub(super) largest_frame: u32,
}

/// What makes two routes the same one. Routes that differ only in their legs share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RouteKey {
    pub(super) table: u32,
    pub(super) destination: IpNet,
    pub(super) priority: u32,
    pub(super) tos: u8,
}

/// One way out of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Leg {
    Direct(Hop),
    /// By the number of a nexthop object.
    Object(u32),
}

/// A link, and the router to hand the packet to if it does not go straight to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hop {
    pub(super) ifindex: u32,
    pub(super) gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nexthop {
    Hop(Hop),
    Group(Vec<u32>),
}

/// One thing the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Link(Box<Device>),
    LinkGone(u32),
    Address(u32, IpNet),
    AddressGone(u32, IpNet),
    /// `replaces` tells `ip route replace` from one more route beside those with this key.
    Route {
        key: RouteKey,
        legs: Vec<Leg>,
        replaces: bool,
    },
    RouteGone {
        key: RouteKey,
        legs: Vec<Leg>,
    },
    Nexthop(u32, Nexthop),
    NexthopGone(u32),
}

/// What one dump brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Links,
    Addresses,
    Nexthops,
    Routes4,
    Routes6,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Links, Self::Addresses, Self::Nexthops, Self::Routes4, Self::Routes6];
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    selection: InterfaceSelection,
    overrides: RoleOverrides,
    devices: HashMap<u32, Device>,
    /// The devices that name the link as their parent.
    children_of: HashMap<u32, HashSet<u32>>,
    addresses: HashMap<u32, BTreeSet<IpNet>>,
    routes: HashMap<RouteKey, Vec<Leg>>,
    /// The keys of routes with a leg through the link.
    routes_of: HashMap<u32, HashSet<RouteKey>>,
    nexthops: HashMap<u32, Nexthop>,
    slots: Slots,
    /// Tapped links that went, the last one first.
    gone: VecDeque<u32>,
    is_stale: bool,
}

impl Tables {
    pub(super) fn new(selection: InterfaceSelection, overrides: RoleOverrides) -> Self {
        Self { selection, overrides, ..Self::default() }
    }

    /// What all this means.
    pub(super) fn view(&self) -> View {
        roles::build(self)
    }

    pub(super) fn devices(&self) -> &HashMap<u32, Device> {
        &self.devices
    }

    pub(super) fn overrides(&self) -> &RoleOverrides {
        &self.overrides
    }

    /// Tapped links that went, the last [`GONE`] at most.
    pub(super) fn gone(&self) -> impl Iterator<Item = u32> {
        self.gone.iter().copied()
    }

    pub(super) fn slot(&self, ifindex: u32) -> u16 {
        self.slots.get(ifindex)
    }

    pub(super) fn is_tapped(&self, link: &Link) -> bool {
        link.is_ethernet && self.selection.matches(&link.name)
    }

    pub(super) fn addresses(&self, ifindex: u32) -> impl Iterator<Item = IpNet> {
        self.addresses.get(&ifindex).into_iter().flatten().copied()
    }

    /// Each way out of each unicast route, nexthop objects looked up.
    pub(super) fn hops(&self) -> impl Iterator<Item = (&RouteKey, Hop)> {
        self.routes.iter().flat_map(move |(key, legs)| {
            legs.iter().flat_map(move |leg| self.resolve(leg)).map(move |hop| (key, hop))
        })
    }

    fn resolve(&self, leg: &Leg) -> Vec<Hop> {
        let single = |id: &u32| match self.nexthops.get(id) {
            Some(Nexthop::Hop(hop)) => Some(*hop),
            _ => None,
        };
        match leg {
            Leg::Direct(hop) => vec![*hop],
            Leg::Object(id) => match self.nexthops.get(id) {
                // The kernel allows no groups of groups.
                Some(Nexthop::Group(members)) => members.iter().filter_map(single).collect(),
                _ => single(id).into_iter().collect(),
            },
        }
    }

    /// True once after events that may have changed more than they said.
    pub(super) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.is_stale)
    }

    /// Puts the result of a dump in the place of all that is known of its kind.
    pub(super) fn replace(&mut self, kind: Kind, updates: Vec<Update>) {
        match kind {
            Kind::Links => {
                let known: Vec<Link> =
                    self.devices.drain().map(|(_, device)| device.link).collect();
                let is_new = |link: &Link| !self.gone.contains(&link.ifindex);
                let went = known.into_iter().filter(|l| self.is_tapped(l) && is_new(l));
                let went: Vec<u32> = went.map(|link| link.ifindex).collect();
                for ifindex in went {
                    // Those that live are taken out again below.
                    self.gone.push_front(ifindex);
                }
                self.children_of.clear();
            }
            Kind::Addresses => self.addresses.clear(),
            Kind::Nexthops => self.nexthops.clear(),
            Kind::Routes4 => self.forget_routes(|destination| matches!(destination, IpNet::V4(_))),
            Kind::Routes6 => self.forget_routes(|destination| matches!(destination, IpNet::V6(_))),
        }
        for update in updates {
            self.apply(update);
        }
        if kind == Kind::Links {
            self.gone.truncate(GONE);
            self.slots.retain(|ifindex| self.devices.contains_key(&ifindex));
        }
    }

    /// Takes in one event; false if it told nothing new.
    pub(super) fn apply(&mut self, update: Update) -> bool {
        match update {
            Update::Link(device) => self.set_link(*device),
            Update::LinkGone(ifindex) => self.remove_link(ifindex),
            Update::Address(ifindex, address) => {
                self.addresses.entry(ifindex).or_default().insert(address)
            }
            Update::AddressGone(ifindex, address) => self.remove_address(ifindex, address),
            Update::Route { key, legs, replaces } => self.set_route(key, legs, replaces),
            Update::RouteGone { key, legs } => self.remove_legs(key, &legs),
            Update::Nexthop(id, nexthop) => {
                self.nexthops.insert(id, nexthop.clone()).as_ref() != Some(&nexthop)
            }
            Update::NexthopGone(id) => {
                // Routes by way of it go with it, unannounced.
                self.is_stale = true;
                self.nexthops.remove(&id).is_some()
            }
        }
    }

    fn set_link(&mut self, device: Device) -> bool {
        let ifindex = device.link.ifindex;
        self.gone.retain(|gone| *gone != ifindex);
        if self.is_tapped(&device.link) {
            self.slots.take(ifindex);
        }
        let (is_up, parent) = (device.link.is_up, device.parent);
        let old = self.devices.insert(ifindex, device);
        if let Some(old) = old.as_ref().filter(|old| old.parent != parent) {
            self.remove_child(old.parent, ifindex);
        }
        if parent != 0 {
            self.children_of.entry(parent).or_default().insert(ifindex);
        }
        let Some(old) = old else { return true };
        if old.link.is_up && !is_up {
            self.remove_routes_of(ifindex);
        }
        self.devices.get(&ifindex) != Some(&old)
    }

    fn remove_link(&mut self, ifindex: u32) -> bool {
        self.remove_routes_of(ifindex);
        self.addresses.remove(&ifindex);
        self.slots.release(ifindex);
        for child in self.children_of.remove(&ifindex).into_iter().flatten() {
            match self.devices.get_mut(&child) {
                // It goes too, and says so, or else its peer has moved to another namespace, which
                // is not announced: no dump for each pod whose end is made on the host.
                Some(child) if is_pair(&child.link.kind) => {
                    (child.parent, child.is_peer_elsewhere) = (0, true);
                }
                _ => self.is_stale = true,
            }
        }
        let Some(gone) = self.devices.remove(&ifindex) else { return false };
        if self.is_tapped(&gone.link) {
            self.gone.truncate(GONE - 1);
            self.gone.push_front(ifindex);
        }
        self.remove_child(gone.parent, ifindex);
        true
    }

    fn remove_child(&mut self, parent: u32, ifindex: u32) {
        if let Entry::Occupied(mut children) = self.children_of.entry(parent) {
            children.get_mut().remove(&ifindex);
            if children.get().is_empty() {
                children.remove();
            }
        }
    }

    fn remove_address(&mut self, ifindex: u32, address: IpNet) -> bool {
        let Entry::Occupied(mut of_link) = self.addresses.entry(ifindex) else { return false };
        let was_there = of_link.get_mut().remove(&address);
        if of_link.get().is_empty() {
            of_link.remove();
        }
        // IPv4 routes that prefer it as their source go with it, unannounced. Those of
        // `kube-ipvs0`, which change with every service, are preferred by none but local routes.
        let is_ipvs = self.devices.get(&ifindex).is_some_and(|d| d.link.name == IPVS_DEVICE);
        self.is_stale |= was_there && !is_ipvs && matches!(address, IpNet::V4(_));
        was_there
    }

    fn set_route(&mut self, key: RouteKey, legs: Vec<Leg>, replaces: bool) -> bool {
        let mut known = self.routes.remove(&key).unwrap_or_default();
        let before = known.clone();
        if replaces && !known.is_empty() && known != legs {
            // Of several routes with the key, only the first has been replaced: ask.
            self.is_stale = true;
            self.unindex(key, &known);
            known.clear();
        }
        for leg in legs {
            if !known.contains(&leg) {
                known.push(leg);
            }
        }
        let is_news = known != before;
        for leg in &known {
            if let Leg::Direct(hop) = leg {
                self.routes_of.entry(hop.ifindex).or_default().insert(key);
            }
        }
        if !known.is_empty() {
            self.routes.insert(key, known);
        }
        is_news
    }

    fn remove_legs(&mut self, key: RouteKey, gone: &[Leg]) -> bool {
        let Entry::Occupied(mut route) = self.routes.entry(key) else { return false };
        let before = route.get().len();
        route.get_mut().retain(|leg| !gone.contains(leg));
        let left = route.get().clone();
        if left.is_empty() {
            route.remove();
        }
        // Two routes with one key may have shared a leg: ask.
        self.is_stale |= !left.is_empty();
        let removed: Vec<Leg> = gone.iter().filter(|leg| !left.contains(leg)).copied().collect();
        self.unindex(key, &removed);
        left.len() != before
    }

    /// As the kernel does with a link that goes down or away.
    fn remove_routes_of(&mut self, ifindex: u32) {
        for key in self.routes_of.remove(&ifindex).unwrap_or_default() {
            let Entry::Occupied(mut route) = self.routes.entry(key) else { continue };
            route.get_mut().retain(|leg| !matches!(leg, Leg::Direct(h) if h.ifindex == ifindex));
            if route.get().is_empty() {
                route.remove();
            } else {
                // Whether the kernel keeps a route with a dead leg depends on the others: ask.
                self.is_stale = true;
            }
        }
        let is_by_link = |n: &Nexthop| matches!(n, Nexthop::Hop(hop) if hop.ifindex == ifindex);
        self.is_stale |= self.nexthops.values().any(is_by_link);
    }

    /// Drops the index entries of legs that the route no longer has.
    fn unindex(&mut self, key: RouteKey, legs: &[Leg]) {
        let remaining = self.routes.get(&key).map_or(&[][..], Vec::as_slice);
        for leg in legs {
            let &Leg::Direct(Hop { ifindex, .. }) = leg else { continue };
            if remaining.iter().any(|l| matches!(l, Leg::Direct(h) if h.ifindex == ifindex)) {
                continue;
            }
            if let Entry::Occupied(mut keys) = self.routes_of.entry(ifindex) {
                keys.get_mut().remove(&key);
                if keys.get().is_empty() {
                    keys.remove();
                }
            }
        }
    }

    fn forget_routes(&mut self, is_meant: impl Fn(&IpNet) -> bool) {
        self.routes.retain(|key, _| !is_meant(&key.destination));
        self.routes_of.retain(|_, keys| {
            keys.retain(|key| !is_meant(&key.destination));
            !keys.is_empty()
        });
    }
}

#[cfg(test)]
pub(super) use tests::fixture;

#[cfg(test)]
mod tests;
