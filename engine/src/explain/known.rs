//! What a state says of addresses and interfaces, and by which entry.
//!
//! ```text
//! State --> Classifier (decides) + View, Policy (name the entry that the decision comes from)
//! address --facts--> own | local behind interfaces | covered by a prefix | unknown
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::Serialize;

use crate::classify::{Classifier, Election, Policy, Standing};
use crate::frame::Direction;
use crate::net::{Link, Role, View};

use super::craft::{End, Ends, Protocol, frame, packet};
use super::state::State;

/// A state, ready to be asked.
pub(super) struct Known {
    pub(super) state: State,
    pub(super) policy: Policy,
    pub(super) view: View,
    pub(super) classifier: Classifier,
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The node itself.
    Own,
    /// Behind these interfaces, more than one only where routes disagree.
    Behind(Vec<u32>),
    /// Not on this node.
    Elsewhere,
}

/// An interface that leads to an address, and the prefix by which it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Behind {
    pub(super) interface: String,
    pub(super) role: &'static str,
    pub(super) prefix: IpNet,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct AddressFacts {
    pub(super) address: IpAddr,
    /// `own`, `local` or `elsewhere`.
    pub(super) place: &'static str,
    /// Interfaces that have it (own) or lead to it (local).
    pub(super) behind: Vec<Behind>,
    /// Another node's tap reports what it sends.
    pub(super) covered: bool,
    /// The entry of `--tapped-net` that holds it.
    pub(super) tapped_by: Option<IpNet>,
    /// The entry of `--untapped-net` that excepts it.
    pub(super) untapped_by: Option<IpNet>,
    /// The entry of `--svcnet` that holds it.
    pub(super) service_by: Option<IpNet>,
    /// It is a sensor's.
    pub(super) sensor: bool,
    /// One sentence.
    pub(super) says: String,
}

/// The longest entry that holds the address: the one to look at.
fn entry(nets: &[IpNet], address: IpAddr) -> Option<IpNet> {
    let holding = nets.iter().filter(|net| net.contains(&address));
    holding.max_by_key(|net| net.prefix_len()).copied()
}

/// An address that nobody has: only what a verdict does not depend on is taken from it.
pub(super) fn nobody(is_v6: bool) -> IpAddr {
    match is_v6 {
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        false => Ipv4Addr::new(192, 0, 2, 1).into(),
    }
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Uplink => "uplink",
        Role::Pod => "pod",
        Role::Other => "other",
    }
}

pub(super) fn election_name(election: Election) -> &'static str {
    match election {
        Election::Source => "source",
        Election::Ports => "ports",
        Election::None => "none",
    }
}

/// Kinds of devices at whose frames' place there is another packet on the wire.
const TUNNELS: [&str; 8] =
    ["vxlan", "geneve", "ipip", "sit", "ip6tnl", "gretap", "ip6gretap", "wireguard"];

pub(super) fn is_tunnel(link: &Link) -> bool {
    TUNNELS.contains(&link.kind.as_str())
}

impl Known {
    pub(super) fn new(state: State) -> Self {
        let (policy, view, classifier) = (state.policy(), state.view(), state.classifier());
        Self { state, policy, view, classifier }
    }

    pub(super) fn standing(&self, address: IpAddr) -> Standing {
        self.classifier.standing(address.into())
    }

    /// A service's end, as the data path sees it.
    pub(super) fn is_service(&self, end: End, protocol: Protocol) -> bool {
        let address = nobody(end.address.is_ipv6());
        let port = end.port.map(|_| 49_152);
        let ends = Ends { source: End { address, port }, destination: end };
        self.classifier.is_to_service(&frame(&packet(&ends, protocol, false), 0, Direction::Out))
    }

    pub(super) fn link(&self, ifindex: u32) -> Option<&Link> {
        self.view.links.get(&ifindex)
    }

    pub(super) fn link_named(&self, name: &str) -> Option<&Link> {
        self.view.links.values().find(|link| link.name == name)
    }

    pub(super) fn name(&self, ifindex: u32) -> String {
        self.link(ifindex).map_or_else(|| format!("if{ifindex}"), |link| link.name.clone())
    }

    /// The most specific local prefix of an address, with the interfaces behind which it is.
    fn local_route(&self, address: IpAddr) -> Option<(IpNet, Vec<u32>)> {
        let holds = |(net, ifindex): &&(IpNet, u32)| *ifindex != 0 && net.contains(&address);
        let routes = || self.view.local_by.iter().filter(holds);
        let net = routes().map(|(net, _)| *net).max_by_key(IpNet::prefix_len)?;
        let through = routes().filter(|(other, _)| *other == net).map(|(_, ifindex)| *ifindex);
        Some((net, through.collect()))
    }

    pub(super) fn place(&self, address: IpAddr) -> Place {
        let standing = self.standing(address);
        match (standing.is_own, standing.is_local) {
            (true, _) => Place::Own,
            (false, true) => {
                Place::Behind(self.local_route(address).map_or_else(Vec::new, |(_, links)| links))
            }
            (false, false) => Place::Elsewhere,
        }
    }

    /// Interfaces that lead off the node, the main device first.
    pub(super) fn uplinks(&self) -> Vec<u32> {
        let is_up = |link: &&Link| link.role == Role::Uplink && link.is_up;
        let mut links: Vec<&Link> = self.view.links.values().filter(is_up).collect();
        links.sort_by_key(|link| {
            let is_main = Some(link.ifindex) == self.view.main;
            (!is_main, is_tunnel(link), link.ifindex)
        });
        links.into_iter().map(|link| link.ifindex).collect()
    }

    /// The node's address towards the network, of the family.
    pub(super) fn node_address(&self, is_v6: bool) -> Option<IpAddr> {
        let of_link = |ifindex: &u32| self.link(*ifindex).map(|link| link.addresses.iter());
        let of_uplinks = self.uplinks();
        let addresses = of_uplinks.iter().filter_map(of_link).flatten().map(IpNet::addr);
        let is_link_local = |address: &IpAddr| match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let mut fitting =
            addresses.filter(|address| address.is_ipv6() == is_v6 && !is_link_local(address));
        let own = || self.view.own.iter().find(|address| address.is_ipv6() == is_v6).copied();
        fitting.next().or_else(own)
    }

    fn behind(&self, ifindex: u32, prefix: IpNet) -> Behind {
        let role = self.link(ifindex).map_or("other", |link| role_name(link.role));
        Behind { interface: self.name(ifindex), role, prefix }
    }

    pub(super) fn facts(&self, address: IpAddr) -> AddressFacts {
        let standing = self.standing(address);
        let (place, behind) = match self.place(address) {
            Place::Own => ("own", self.owners(address)),
            Place::Behind(_) => ("local", self.routes_to(address)),
            Place::Elsewhere => ("elsewhere", Vec::new()),
        };
        let mut facts = AddressFacts {
            address,
            place,
            behind,
            covered: standing.is_covered,
            tapped_by: entry(&self.policy.tapped, address),
            untapped_by: entry(&self.policy.untapped, address),
            service_by: entry(&self.policy.svcnet, address),
            sensor: standing.is_sensor,
            says: String::new(),
        };
        facts.says = self.sentence(&facts);
        facts
    }

    /// The interfaces that have an own address.
    fn owners(&self, address: IpAddr) -> Vec<Behind> {
        let mut owners: Vec<&Link> = self.view.links.values().collect();
        owners.sort_by_key(|link| link.ifindex);
        let of_link = |link: &&Link| link.addresses.iter().copied().find(|n| n.addr() == address);
        let found = owners.iter().filter_map(|link| Some((link.ifindex, of_link(link)?)));
        found.map(|(ifindex, prefix)| self.behind(ifindex, prefix)).collect()
    }

    fn routes_to(&self, address: IpAddr) -> Vec<Behind> {
        let Some((prefix, links)) = self.local_route(address) else { return Vec::new() };
        links.into_iter().map(|ifindex| self.behind(ifindex, prefix)).collect()
    }

    fn sentence(&self, facts: &AddressFacts) -> String {
        let AddressFacts { behind, covered, tapped_by, untapped_by, service_by, sensor, .. } =
            facts;
        let listed = |net: &IpNet, flag: &str| format!("{net} of {}", self.state.named(flag));
        let place = match (facts.place, behind.as_slice()) {
            ("own", []) => "own: an address of this node".to_owned(),
            ("own", [first, ..]) => {
                format!("own: an address of {} ({})", first.interface, first.role)
            }
            ("local", []) => "local: by a route of this node".to_owned(),
            ("local", all @ [first, ..]) => {
                let through: Vec<String> =
                    all.iter().map(|one| format!("{} ({})", one.interface, one.role)).collect();
                format!("local: route {} through {}", first.prefix, through.join(", "))
            }
            _ => match (covered, tapped_by, untapped_by) {
                (true, Some(net), _) if self.policy.election != Election::Source => {
                    let (net, flag) = (listed(net, "tapped-net"), self.state.named("election"));
                    let election = election_name(self.policy.election);
                    format!("in {net}, which {flag} {election} does not ask for; not local here")
                }
                (true, Some(net), _) => {
                    let net = listed(net, "tapped-net");
                    format!(
                        "covered: {net}, and not local here: its own node reports what it sends"
                    )
                }
                (false, Some(net), Some(except)) => format!(
                    "not covered: {} excepts it from {}: what it sends is reported here",
                    listed(except, "untapped-net"),
                    listed(net, "tapped-net")
                ),
                _ if service_by.is_some() => String::new(),
                _ => {
                    let flag = self.state.named("tapped-net");
                    format!(
                        "neither local nor covered (in no entry of {flag}): what it sends is reported here"
                    )
                }
            },
        };
        let mut parts = vec![place];
        if let Some(net) = service_by {
            let net = listed(net, "svcnet");
            parts.push(match facts.place {
                "own" => format!("in {net}, but the node answers it itself: no other copy exists"),
                _ => format!("service address: {net}"),
            });
        }
        if *sensor {
            parts.push("a sensor's".into());
        }
        parts.retain(|part| !part.is_empty());
        parts.join("; ")
    }
}
