//! A cluster at work: which frames each node's tap sees, and what is right to report of them.
//!
//! ```text
//! Plan: topology, conversations, messages --World::new--> sightings of each node
//!                                                    `--> truth: of each packet, which node reports
//!                                                         it with which ends; what else is tolerated
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::identity::Identity;
use super::load::{self, Form, Piece};
use super::packet::{Body, End, Ends, Look, Packet, flag, low16, low32};
use super::rule::{Direction, Node, Sighting};
use super::taps::mixed;
use super::topology::Topology;
use super::way::{Conversation, Hop, Kind, View};

/// Transport of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, where services are not involved; else UDP.
    Echo,
    /// SCTP.
    Sctp,
    /// ESP, where services are not involved; else UDP.
    Esp,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A packet like no other, of so many bytes of payload.
    Data(usize),
    /// A packet that equals those of other conversations in all but its ends.
    Heartbeat,
    /// So many segments, in super-frames here and there.
    Bulk(usize),
    /// A packet in fragments: payload, bytes of each fragment divided by 8.
    Fragments(usize, usize),
    /// An ICMP error about a packet of the other direction, of the other end or of a router.
    Error(bool),
}

/// One packet (or one stretch of bulk) on its way.
#[derive(Clone, Debug)]
pub struct Message {
    /// Whose.
    pub conversation: usize,
    /// From the server.
    pub is_reply: bool,
    /// See [`Load`].
    pub load: Load,
    /// Time since the message before, microseconds.
    pub gap_us: u32,
    /// The same packet again, bit by bit: how often.
    pub repeats: usize,
    /// The same in all senses: IP identification 0.
    pub has_no_id: bool,
    /// With an IP option or an extension header.
    pub has_option: bool,
    /// It is lost behind this point.
    pub lost_after: Option<usize>,
    /// Random: where it is marked, how it is cut at each point, what checksums are left open.
    pub look: u64,
}

/// All that is chosen.
#[derive(Clone, Debug)]
pub struct Plan {
    /// See [`Topology`].
    pub topology: Topology,
    /// Conversations and their transport.
    pub conversations: Vec<(Conversation, Transport)>,
    /// In the order of their times.
    pub messages: Vec<Message>,
    /// Equal packets are equal between conversations of all kinds, not only of one.
    pub has_equals_of_all_kinds: bool,
}

/// What is right.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// How often a node is to report a packet.
    pub right: BTreeMap<(usize, Identity), usize>,
    /// How often it may do so besides, and why.
    pub tolerated: BTreeMap<(usize, Identity), (usize, &'static str)>,
    /// Of each invariant part: packets that a tap saw, and how many reports there may be when each
    /// node that saw it reports it once.
    pub seen: BTreeMap<Vec<u8>, (usize, usize)>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// What each tap knows; `None` where there is no tap.
    pub nodes: Vec<Option<Node>>,
    /// What each sees, in the order of time.
    pub sightings: Vec<Vec<Sighting>>,
    /// See [`Truth`].
    pub truth: Truth,
}

/// Payload of a segment of bulk.
const SEGMENT: usize = 72;
/// Between two sightings of one frame, at least.
const HOP_NS: u64 = 2_000;

impl World {
    /// Lets it happen.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let count = plan.topology.nodes.len();
        let nodes = (0..count)
            .map(|node| plan.topology.nodes[node].is_tapped.then(|| plan.topology.describe(node)))
            .collect();
        let mut world = Self { nodes, sightings: vec![Vec::new(); count], truth: Truth::default() };
        let mut clock = 1_000_000_000;
        let lost = plan.messages.iter().filter(|it| it.lost_after.is_some() && !it.is_reply);
        let doubted = lost.map(|message| message.conversation).collect();
        let mut learned = Learned { doubted, ..Learned::default() };
        for (number, message) in plan.messages.iter().enumerate() {
            clock += u64::from(message.gap_us) * 1000;
            for repeat in 0..=message.repeats {
                let at = clock + u64::from(low32(repeat)) * 700;
                world.send(plan, number, at, &mut learned);
            }
        }
        for sightings in &mut world.sightings {
            sightings.sort_by_key(|sighting| sighting.at_ns);
        }
        world
    }

    fn send(&mut self, plan: &Plan, number: usize, at_ns: u64, learned: &mut Learned) {
        let message = &plan.messages[number];
        let (conversation, transport) = &plan.conversations[message.conversation];
        let mut hops = conversation.way(&plan.topology, message.is_reply);
        if let Some(last) = message.lost_after {
            hops.truncate(last % hops.len() + 1);
        }
        let packet = packet(plan, number, *transport);
        let from_router = matches!(message.load, Load::Error(true))
            && comes_from_outside(conversation, message.is_reply);
        let looks: Vec<Look> = hops
            .iter()
            .zip(0u8..)
            .map(|(hop, at)| Look {
                ends: outer_ends(hop, message, from_router, conversation.v6),
                about: Some(hop.ends.reversed()),
                ttl: 64 - at,
                is_marked: message.look & 7 < u64::from(at),
            })
            .collect();
        for ((hop, look), at) in hops.iter().zip(&looks).zip(0u32..) {
            if self.nodes[hop.node].is_none() {
                continue;
            }
            let bits = message.look >> (8 + 4 * (at % 12));
            let is_inner = hop.view == View::Outer && conversation.kind_is_inside();
            let form = if is_inner { Form::Wire } else { Form::from_bits(bits) };
            let mut time = at_ns + u64::from(at) * HOP_NS + (message.look >> (at % 32) & 0xfff);
            for mut piece in
                load::pieces(&packet, look, pieces_of(message.load), form, bits & 8 != 0)
            {
                if is_inner {
                    piece =
                        load::encapsulated(&piece, conversation.v6, &plan.topology, &hops, number);
                }
                let link = u8::try_from(hop.ifindex).unwrap_or(0);
                self.sightings[hop.node].push(sighting(time, hop, piece, link));
                time += 50;
            }
        }
        self.judge(message, &hops, &looks, &packet, learned);
    }

    /// What is right to report of a packet that was seen at these places.
    fn judge(
        &mut self,
        message: &Message,
        hops: &[Hop],
        looks: &[Look],
        packet: &Packet,
        learned: &mut Learned,
    ) {
        let wire = |at: usize| -> Vec<Identity> {
            load::pieces(packet, &looks[at], pieces_of(message.load), Form::Wire, false)
                .iter()
                .map(|piece| Identity::of(&piece.data))
                .collect()
        };
        let seen_by: BTreeSet<usize> = hops
            .iter()
            .filter(|hop| hop.view != View::Outer && self.nodes[hop.node].is_some())
            .map(|hop| hop.node)
            .collect();
        // The first tap on the way: the sender's, or where it comes from outside.
        let Some(reporter) = hops.iter().map(|hop| hop.node).find(|it| seen_by.contains(it)) else {
            return;
        };
        let best_at = |node: usize| {
            (0..hops.len()).filter(|at| hops[*at].node == node).min_by_key(|at| hops[*at].view)
        };
        let best = best_at(reporter).expect("it has seen it");
        for identity in wire(best) {
            let seen = self.truth.seen.entry(identity.invariant.clone()).or_default();
            *seen = (seen.0 + 1, seen.1 + seen_by.len());
            *self.truth.right.entry((reporter, identity)).or_default() += 1;
        }
        self.forgive_native(message, hops, reporter, learned, &wire);
        for node in seen_by {
            let service = (0..hops.len())
                .find(|at| hops[*at].node == node && hops[*at].view == View::Service);
            let is_translated = best_at(node).is_some_and(|at| hops[at].view < View::Service);
            let name = (node, message.conversation);
            let Some(service) = service.filter(|_| is_translated) else { continue };
            // Fragments, and errors, go to a worker by their addresses alone, which may be another
            // than the one that knows the flow; and an error may be the node's own.
            let is_apart = matches!(message.load, Load::Fragments(..) | Load::Error(_));
            if !message.is_reply {
                if !is_apart {
                    learned.proven.insert(name);
                }
                continue;
            }
            let is_known =
                learned.proven.contains(&name) && !learned.doubted.contains(&message.conversation);
            if node != reporter && (is_apart || !is_known) {
                for identity in wire(service) {
                    let why = "the worker saw no request of the flow, or one without its twin";
                    self.truth.tolerated.entry((node, identity)).or_insert((0, why)).0 += 1;
                }
            }
        }
    }

    /// A flow of which a packet was lost between its translated copy and the better one looks like
    /// the node's own: then both copies of the next may be reported. So does a flow without ports, if
    /// the node itself speaks to the same address.
    fn forgive_native(
        &mut self,
        message: &Message,
        hops: &[Hop],
        reporter: usize,
        learned: &mut Learned,
        wire: &impl Fn(usize) -> Vec<Identity>,
    ) {
        let name = (reporter, message.conversation);
        let here = || (0..hops.len()).filter(|at| hops[*at].node == reporter);
        let Some(node) = here().find(|at| hops[*at].view == View::Node) else { return };
        let ends: BTreeSet<_> = wire(node).iter().filter_map(|it| it.ends).map(flow_of).collect();
        let mut ends = ends.into_iter().map(|ends| (reporter, ends));
        if here().all(|at| hops[at].view != View::Clear) {
            learned.native.insert(name);
            learned.native_ends.extend(ends);
        } else if learned.native.contains(&name)
            || ends.any(|ends| learned.native_ends.contains(&ends))
        {
            for identity in wire(node) {
                let why = "a packet of the flow was lost, or one without ports was the node's own";
                self.truth.tolerated.entry((reporter, identity)).or_insert((0, why)).0 += 1;
            }
        }
    }
}

/// What the taps can have learned of conversations, by node.
#[derive(Debug, Default)]
struct Learned {
    /// Through a service: a request was seen with both addresses.
    proven: BTreeSet<(usize, usize)>,
    /// Conversations of which a request is lost: if that is before it got the other address, answers
    /// may be the node's own.
    doubted: BTreeSet<usize>,
    /// Looks like the node's own.
    native: BTreeSet<(usize, usize)>,
    /// The same, by what the flow is called.
    native_ends: BTreeSet<(usize, [End; 2])>,
}

/// The same for both directions.
fn flow_of(Ends { source, destination }: Ends) -> [End; 2] {
    [source.min(destination), source.max(destination)]
}

impl Conversation {
    fn kind_is_inside(&self) -> bool {
        !matches!(self.kind, Kind::Own(_))
    }
}

fn pieces_of(load: Load) -> load::Cut {
    match load {
        Load::Data(_) | Load::Heartbeat | Load::Error(_) => load::Cut::Not,
        Load::Bulk(_) => load::Cut::Segments(SEGMENT),
        Load::Fragments(_, size) => load::Cut::Fragments(size * 8),
    }
}

fn comes_from_outside(conversation: &Conversation, is_reply: bool) -> bool {
    match conversation.kind {
        Kind::PodOutside(..) | Kind::HostOutside(..) => is_reply,
        Kind::OutsidePod(..) | Kind::OutsideHost(..) => !is_reply,
        Kind::NodePort(_, _, _, is_translated) => !is_reply && !is_translated,
        _ => false,
    }
}

fn outer_ends(hop: &Hop, message: &Message, from_router: bool, v6: bool) -> Ends {
    let mut ends = hop.ends;
    if matches!(message.load, Load::Error(_)) {
        (ends.source.port, ends.destination.port) = (0, 0);
    }
    if from_router {
        ends.source.address = Topology::router(v6);
    }
    ends
}

fn sighting(at_ns: u64, hop: &Hop, piece: Piece, link: u8) -> Sighting {
    let Piece { mut data, gso_size, gso_type, partial } = piece;
    let (from, to) = if hop.direction == Direction::In { (5, 11) } else { (11, 5) };
    data[from] = link;
    data[to] = 99;
    Sighting {
        at_ns,
        ifindex: hop.ifindex,
        direction: hop.direction,
        data,
        tag: hop.tag,
        gso_size,
        gso_type,
        partial,
    }
}

/// Conversations whose equal packets are equal.
fn class(kind: Kind) -> u8 {
    match kind {
        Kind::Pods(..) => 1,
        Kind::ClusterIp(..) => 2,
        Kind::Hairpin(_) => 3,
        Kind::PodOutside(_, _, false) => 4,
        Kind::PodOutside(_, _, true) => 5,
        Kind::ServiceOutside(..) => 6,
        Kind::OutsidePod(..) => 7,
        Kind::NodePort(..) => 8,
        Kind::NodeLocal(_) => 9,
        Kind::PodHost(..) => 10,
        Kind::HostPod(..) => 11,
        Kind::HostOutside(..) => 12,
        Kind::OutsideHost(..) => 13,
        Kind::Hosts(..) => 14,
        Kind::Rejected(_) => 15,
        Kind::Own(_) => 16,
    }
}

fn packet(plan: &Plan, number: usize, transport: Transport) -> Packet {
    let message = &plan.messages[number];
    let (conversation, _) = &plan.conversations[message.conversation];
    let unique = |len: usize| -> Vec<u8> {
        // No two stretches of it are alike.
        let number = u64::from(low32(number));
        let words =
            (0..len.max(6)).map(|at| mixed(number, u64::from(low32(at / 8))).to_be_bytes()[at % 8]);
        words.collect()
    };
    let class = match (plan.has_equals_of_all_kinds, conversation.kind) {
        (true, _) => 0,
        // An answer's copy with the service's address would pass for that of another conversation's.
        (false, Kind::ClusterIp(..)) if message.is_reply => {
            100 + u8::try_from(message.conversation).unwrap_or(99)
        }
        (false, kind) => class(kind),
    };
    let mut payload = match message.load {
        Load::Data(len) | Load::Fragments(len, _) => unique(len),
        Load::Bulk(segments) => unique(segments * SEGMENT - 5),
        Load::Heartbeat => [[class, u8::from(message.is_reply)]; 5].concat(),
        Load::Error(_) => Vec::new(),
    };
    if matches!(conversation.kind, Kind::Own(_)) {
        payload.splice(..0, [0, 110, 0, 8]);
    }
    let is_equal = message.load == Load::Heartbeat;
    let has_ports_only = class_needs_ports(conversation.kind);
    let udp_needed = matches!(conversation.kind, Kind::Own(_));
    let body = match transport {
        Transport::Tcp if !udp_needed => Body::Tcp {
            sequence: if is_equal { 1 } else { low32(number) << 16 },
            flags: flag::ACK | flag::PSH | if message.look & 1 == 0 { flag::CWR } else { 0 },
            timestamp: (message.look & 2 == 0 && !is_equal).then_some(low32(number)),
        },
        Transport::Echo if !has_ports_only => {
            Body::Echo { is_reply: message.is_reply, sequence: 3 }
        }
        Transport::Sctp if !udp_needed => Body::Sctp { tag: 5 },
        Transport::Esp if !has_ports_only => Body::Raw(50),
        _ => Body::Udp,
    };
    let body = match (&body, message.load) {
        (Body::Tcp { sequence, timestamp, .. }, Load::Heartbeat) => {
            Body::Tcp { sequence: *sequence, flags: flag::ACK, timestamp: *timestamp }
        }
        (_, Load::Error(_)) => {
            let about = Packet {
                dscp: 0,
                id: low16(number) | 0x4000,
                has_option: false,
                body: match body {
                    Body::Echo { is_reply, sequence } => {
                        Body::Echo { is_reply: !is_reply, sequence }
                    }
                    other => other,
                },
                payload: unique(40),
            };
            Body::Error(Box::new(about))
        }
        _ => body,
    };
    let id = if message.has_no_id || is_equal { 0 } else { low16(number * 64 + 1) };
    Packet { dscp: 0, id, has_option: message.has_option && !is_equal, body, payload }
}

/// Kinds whose translation is by ports.
fn class_needs_ports(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ClusterIp(..)
            | Kind::Hairpin(_)
            | Kind::ServiceOutside(..)
            | Kind::NodePort(..)
            | Kind::Rejected(_)
            | Kind::Own(_)
    )
}
