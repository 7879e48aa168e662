//! Where on this node the packets of a flow are seen, and with which addresses.
//!
//! ```text
//! source behind an interface: in there -\            /- destination behind an interface: out there
//! source elsewhere: in at an uplink     -> [DNAT, SNAT] -> elsewhere: out at an uplink
//! own process: seen nowhere yet         -/            \- own process: seen nowhere any more
//! ```
//!
//! The answer's way is the request's backwards, with everything turned round: translation is undone
//! where it was done. What cannot be known (which backend, whether the node masquerades) is a step
//! that says so. Nothing is decided here; that is the classifier's.

use crate::frame::Direction;
use crate::net::Role;

use super::craft::{End, Ends, Protocol, tunnel};
use super::known::{Known, Place, is_tunnel, nobody};

/// Of two ways that a packet may go, the one that a step is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Branch {
    /// Both.
    Any,
    /// The source's address stays.
    Plain,
    /// The node puts its own address in its place.
    Snat,
}

impl Branch {
    /// Whether one packet may be seen at a step of each.
    pub(super) fn meets(self, other: Self) -> bool {
        self == Self::Any || other == Self::Any || self == other
    }
}

/// A place where the packet is seen; `interfaces` are alternatives, most likely first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) interfaces: Vec<u32>,
    pub(super) direction: Direction,
    pub(super) ends: Ends,
    pub(super) branch: Branch,
    /// What must be so for it to be seen there.
    pub(super) when: Option<&'static str>,
    /// The interfaces, where they cannot be named.
    pub(super) at: Option<&'static str>,
    /// Another packet than the flow's: a tunnel's, around it.
    pub(super) is_outer: bool,
    /// The frame that is seen; the flow's first one if it is none in particular.
    pub(super) bytes: Option<Vec<u8>>,
}

impl Step {
    pub(super) fn new(interfaces: Vec<u32>, direction: Direction, ends: Ends) -> Self {
        let (branch, when, at) = (Branch::Any, None, None);
        Self { interfaces, direction, ends, branch, when, at, is_outer: false, bytes: None }
    }
}

/// The ways of a flow's packets through this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) request: Vec<Step>,
    pub(super) answer: Vec<Step>,
    pub(super) notes: Vec<String>,
}

const IF_SNAT: &str = "if the node masquerades (SNAT)";
const IF_NOT: &str = "if it does not masquerade";

struct Way<'a> {
    known: &'a Known,
    steps: Vec<Step>,
    notes: Vec<String>,
}

impl Way<'_> {
    fn step(&mut self, interfaces: Vec<u32>, direction: Direction, ends: Ends) -> &mut Step {
        self.steps.push(Step::new(interfaces, direction, ends));
        self.steps.last_mut().expect("just pushed")
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn uplinks(&mut self) -> Vec<u32> {
        const NONE: &str =
            "no interface of this node leads off it: what is elsewhere is not seen here";
        let uplinks = self.known.uplinks();
        if uplinks.is_empty() && !self.notes.iter().any(|note| note == NONE) {
            self.note(NONE);
        }
        uplinks
    }

    /// Where the source's packet is first seen.
    fn enter(&mut self, place: &Place, ends: Ends) {
        match place {
            Place::Own => {}
            Place::Behind(links) => {
                self.step(links.clone(), Direction::In, ends);
            }
            Place::Elsewhere => {
                let uplinks = self.uplinks();
                self.step(uplinks, Direction::In, ends);
            }
        }
    }

    /// Where it is last seen; with `snat`, perhaps with this source instead.
    fn leave(&mut self, place: &Place, ends: Ends, snat: Option<End>) {
        let links = match place {
            Place::Own => return,
            Place::Behind(links) => links.clone(),
            Place::Elsewhere => self.uplinks(),
        };
        let snat = snat.filter(|node| node.address != ends.source.address);
        let plain = self.step(links.clone(), Direction::Out, ends);
        let Some(node) = snat else { return };
        (plain.branch, plain.when) = (Branch::Plain, Some(IF_NOT));
        let translated = Ends { source: node, ..ends };
        let other = self.step(links, Direction::Out, translated);
        (other.branch, other.when) = (Branch::Snat, Some(IF_SNAT));
    }

    /// Between two pods of the node, with strict security groups: off the node and back.
    fn branches(&mut self, source: &Place, destination: &Place, ends: Ends) {
        let (Place::Behind(_), Place::Behind(_)) = (source, destination) else { return };
        let is_branch = |i: &u32| self.known.link(*i).is_some_and(|link| link.kind == "vlan");
        let branches: Vec<u32> = self.known.uplinks().into_iter().filter(is_branch).collect();
        if branches.is_empty() {
            return;
        }
        for direction in [Direction::Out, Direction::In] {
            self.step(branches.clone(), direction, ends).when =
                Some("if its security groups send it off the node and back");
        }
    }

    /// A bridge's port sees what the bridge sees.
    fn note_bridges(&mut self) {
        let mut bridges: Vec<String> = Vec::new();
        for step in &self.steps {
            let links = step.interfaces.iter().filter_map(|ifindex| self.known.link(*ifindex));
            for link in links.filter(|link| link.kind == "bridge" && link.role != Role::Uplink) {
                if !bridges.contains(&link.name) {
                    bridges.push(link.name.clone());
                }
            }
        }
        for bridge in bridges {
            self.note(format!(
                "{bridge} is a bridge: a packet is seen at the pod's port of it as well, with the same verdict, and whichever copy is the later one is dropped as a duplicate (rule 3)"
            ));
        }
    }

    /// Between nodes, the packet may travel inside another one.
    fn tunnels(&mut self, source: &Place, destination: &Place, ends: Ends) {
        let crosses = *source != Place::Elsewhere && *destination == Place::Elsewhere;
        let (ports, _) = self.known.classifier.tunnels();
        let (true, Some(port)) = (crosses, ports.first().copied()) else { return };
        let v4 = self.known.node_address(false).map(|node| (node, nobody(false)));
        let v6 = || self.known.node_address(true).map(|node| (node, nobody(true)));
        let Some((node, peer)) = v4.or_else(v6) else { return };
        let is_under = |ifindex: &u32| self.known.link(*ifindex).is_some_and(|l| !is_tunnel(l));
        let links = self.known.uplinks().into_iter().filter(is_under).collect();
        let step = self.step(links, Direction::Out, ends);
        step.when = Some("the outer packet, if it goes by a tunnel");
        (step.is_outer, step.bytes) = (true, Some(tunnel(node, peer, port)));
    }
}

/// The same steps, as the answer takes them.
fn backwards(steps: &[Step]) -> Vec<Step> {
    let turned = |step: &Step| Step {
        direction: match step.direction {
            Direction::In => Direction::Out,
            Direction::Out => Direction::In,
        },
        ends: step.ends.reversed(),
        ..step.clone()
    };
    steps.iter().rev().filter(|step| !step.is_outer).map(turned).collect()
}

/// The way of a flow; `backend` is where a service's packets go, if that is known.
pub(super) fn find(known: &Known, ends: Ends, protocol: Protocol, backend: Option<End>) -> Path {
    let Ends { source, destination } = ends;
    let is_v6 = source.address.is_ipv6();
    let mut way = Way { known, steps: Vec::new(), notes: Vec::new() };
    let from = known.place(source.address);
    // Masqueraded, a flow has another port as well; any will do.
    let node = known.node_address(is_v6).map(|address| End { address, port: source.port });
    if known.is_service(destination, protocol) {
        if from == Place::Own {
            way.note("the node translates its own packets before they are seen anywhere: no copy carries the service address");
        } else {
            way.enter(&from, ends);
        }
        to_backend(&mut way, &from, ends, backend, node);
    } else {
        if backend.is_some() {
            way.note(format!("{destination} is no service's here: --backend says nothing"));
        }
        let to = known.place(destination.address);
        if from == Place::Own && to == Place::Own {
            way.note("both ends are the node itself: its packets stay on lo, which is not tapped");
        } else {
            way.enter(&from, ends);
            way.branches(&from, &to, ends);
            // Packets to other nodes' pods are hardly masqueraded; to what is no node's, often.
            let may_masquerade = matches!(from, Place::Behind(_))
                && to == Place::Elsewhere
                && !known.standing(destination.address).is_covered;
            way.leave(&to, ends, node.filter(|_| may_masquerade));
            way.tunnels(&from, &to, ends);
        }
        if from == Place::Elsewhere && to == Place::Elsewhere {
            way.note("neither end is on this node: its packets are seen here only if the node routes for others");
        }
    }
    way.note_bridges();
    let Way { steps, notes, .. } = way;
    Path { answer: backwards(&steps), request: steps, notes }
}

/// The translated packet's way to where the service sends it.
fn to_backend(
    way: &mut Way<'_>,
    from: &Place,
    ends: Ends,
    backend: Option<End>,
    node: Option<End>,
) {
    let Some(backend) = backend else {
        let address = nobody(ends.source.address.is_ipv6());
        let ends = Ends { destination: End { address, port: None }, ..ends };
        let uplinks = way.uplinks();
        let step = way.step(uplinks, Direction::Out, ends);
        step.at = Some("the backend's interface, or an uplink");
        way.note("which backend a connection gets is not known here: --backend ADDR:PORT shows the copies of one");
        return;
    };
    let translated = Ends { destination: backend, ..ends };
    let to = way.known.place(backend.address);
    if backend.address == ends.source.address {
        // Hairpin: without the node's address the pod would answer itself.
        let source = node.unwrap_or(ends.source);
        return way.leave(&to, Ends { source, ..translated }, None);
    }
    if to == Place::Own {
        way.note(format!(
            "{backend} is the node itself: the translated packet is not seen at an interface any more"
        ));
    }
    // What comes from outside is masqueraded unless the service keeps client addresses.
    way.leave(&to, translated, node.filter(|_| *from == Place::Elsewhere));
    way.tunnels(from, &to, translated);
}
