//! The sensors' filters in the socket filter, behind the tap's own.
//!
//! ```text
//! tap's own: accept? -> short, tagged, odd? take it
//!     candidates wait? an ICMP error, a protocol that sensors want? take it -> leave it
//!         entering at an uplink, for the node's address? take it
//!         entering otherwise: sensors' needs with the node's address as its source? take it
//!         leaving, at no uplink: with the node's address as its destination? take it
//!         sensors' needs? take it -> leave it
//! ```
//!
//! Why this loses nothing is written in [`bpf::push`](crate::bpf::push); here the conditions of
//! its [`Family`] are made true, and the frames found that it speaks of.

use std::net::IpAddr;

use super::{L3, PACKET_OUTGOING, Writer, v6_words};
use crate::bpf::push::{Ends, Family, Need, Protocols, may_accept_tagged};
use crate::bpf::{Alu, Ancillary, Condition, Label, Program, Size, Target};
use crate::classify::Classifier;
use crate::net::Role;
use crate::wire::{PrefixSet, ethertype, protocol};

/// With more addresses of its own than these a node's translations are not followed.
const MAX_OWN: usize = 16;
/// Bytes that every frame has which the sensors' part looks at.
const LEAST: u32 = 54;

/// What all sensors' filters together need of one family of packets.
enum Needs {
    /// Any packet may be the twin of one that waits, or tell of its flow.
    Flows(Protocols),
    Packets(PacketNeeds),
}

/// The same where no packet waits for another.
struct PacketNeeds {
    seen: Need,
    /// What they need beyond it of a packet whose source the node may put its own address in.
    sent: Need,
    /// The same of the destination, of one that came for the node's address.
    received: Need,
    /// They ask for addresses or ports.
    asks_ends: bool,
}

/// What all sensors' filters together need.
pub(super) struct Sensors {
    v4: Needs,
    v6: Needs,
    other: Need,
}

impl Sensors {
    /// `None` if the kernel cannot tell any frame that no sensor wants.
    pub(super) fn new(classifier: &Classifier, filters: &[Program]) -> Option<Self> {
        let is_blind = classifier.changes_tags && filters.iter().any(may_accept_tagged);
        if filters.is_empty() || is_blind {
            return None;
        }
        let mut other = Need::nothing();
        for filter in filters {
            other.join(Need::of(filter, Family::Other, Ends::Seen));
        }
        let sources = sources(&classifier.own);
        let of_family = |want_v4: bool| -> Vec<IpAddr> {
            sources.iter().copied().filter(|source| source.is_ipv4() == want_v4).collect()
        };
        let needs = |family, own: &[IpAddr]| match waits(classifier, family) {
            true => Needs::Flows(Protocols::wanted(filters, family)),
            false => Needs::Packets(PacketNeeds::new(filters, family, own)),
        };
        let v4 = needs(Family::V4, &of_family(true));
        let v6 = needs(Family::V6, &of_family(false));
        let is_all = other == Need::Everything && v4.is_all(Family::V4) && v6.is_all(Family::V6);
        (!is_all).then_some(Self { v4, v6, other })
    }
}

impl Needs {
    fn is_all(&self, family: Family) -> bool {
        match self {
            Self::Flows(protocols) => protocols.is_all(family),
            Self::Packets(needs) => needs.seen == Need::Everything,
        }
    }
}

impl PacketNeeds {
    fn new(filters: &[Program], family: Family, own: &[IpAddr]) -> Self {
        let (mut seen, mut asks_ends) = (Need::nothing(), false);
        for filter in filters {
            let need = Need::of(filter, family, Ends::Seen);
            asks_ends |= need != Need::of(filter, family, Ends::Unknown);
            seen.join(need);
        }
        let (mut sent, mut received) = (Need::nothing(), Need::nothing());
        if asks_ends && own.len() > MAX_OWN {
            (sent, received) = (Need::Everything, Need::Everything);
        } else if asks_ends {
            for (source, filter) in own.iter().flat_map(|own| filters.iter().map(move |f| (own, f)))
            {
                sent.join(Need::of(filter, family, Ends::From(*source)));
                received.join(Need::of(filter, family, Ends::To(*source)));
            }
        }
        Self { sent: sent.beyond(&seen), received: received.beyond(&seen), seen, asks_ends }
    }
}

/// Whether a packet of the family may wait for another: without services and addresses of the node
/// there are no candidates.
fn waits(classifier: &Classifier, family: Family) -> bool {
    let has = |set: &PrefixSet| {
        let (v4, v6) = set.split();
        if family == Family::V6 { !v6.is_empty() } else { !v4.is_empty() }
    };
    classifier.settles() && (has(&classifier.service) || has(&classifier.own))
}

/// The addresses that a node may put in place of a packet's source on its way out.
fn sources(own: &PrefixSet) -> Vec<IpAddr> {
    let (v4, v6) = own.split();
    // A link-local address is not translated to: it would not be understood on the next link.
    let is_global = |address: &u128| address >> (128 - 10) != 0xfe80 >> 6;
    let v4 = v4.into_iter().map(|(address, _)| IpAddr::from(address.to_be_bytes()));
    let v6 = v6.into_iter().map(|(address, _)| address).filter(is_global);
    v4.chain(v6.map(|address| IpAddr::from(address.to_be_bytes()))).collect()
}

/// Where a frame ends up.
#[derive(Clone, Copy)]
struct Ways {
    take: Label,
    leave: Label,
}

impl Writer<'_> {
    /// What follows the tap's own "accept".
    pub(super) fn sensors(&mut self, sensors: &Sensors, with_local: bool) {
        let ways = Ways { take: self.asm.label(), leave: self.asm.label() };
        let Ways { take, leave } = ways;
        self.need(LEAST, take);
        self.asm.load_ancillary(Ancillary::VlanTagPresent);
        self.unless_equal(0, take);
        let (v6, v4) = (self.asm.label(), self.asm.label());
        self.asm.load(Size::Half, 12);
        self.if_equal(u32::from(ethertype::IPV4), v4);
        self.if_equal(u32::from(ethertype::IPV6), v6);
        self.if_equal(u32::from(ethertype::VLAN), take);
        self.if_equal(u32::from(ethertype::QINQ), take);
        sensors.other.write(&mut self.asm, take);
        self.asm.jump(leave);
        self.asm.bind(v4);
        self.plain_v4(take);
        match &sensors.v4 {
            Needs::Flows(protocols) => self.flows_v4(protocols, ways),
            Needs::Packets(needs) => self.ends(needs, &[L3 + 16], ways, with_local),
        }
        self.asm.bind(v6);
        self.plain_v6(take);
        match &sensors.v6 {
            Needs::Flows(protocols) => self.flows_v6(protocols, ways),
            Needs::Packets(needs) => self.ends(needs, &v6_words(L3 + 24), ways, with_local),
        }
        self.asm.bind(take);
        self.asm.ret(u32::MAX);
        self.asm.bind(leave);
        self.asm.ret(0);
    }

    /// What is not [`Family::V4`] is taken.
    fn plain_v4(&mut self, take: Label) {
        self.asm.load(Size::Byte, L3);
        self.unless_equal(0x45, take);
        self.asm.load(Size::Half, L3 + 2);
        self.asm.branch(Condition::AtLeast, 40, Target::Next, take);
    }

    /// What is not [`Family::V6`] is taken.
    fn plain_v6(&mut self, take: Label) {
        let known = self.asm.label();
        self.need(L3 + 40 + 20, take);
        self.asm.load(Size::Byte, L3);
        self.asm.alu(Alu::And, 0xf0);
        self.unless_equal(0x60, take);
        self.asm.load(Size::Half, L3 + 4);
        self.asm.branch(Condition::AtLeast, 20, Target::Next, take);
        self.asm.load(Size::Byte, L3 + 6);
        for number in [protocol::TCP, protocol::UDP] {
            self.if_equal(u32::from(number), known);
        }
        self.unless_equal(u32::from(protocol::ICMPV6), take);
        self.asm.bind(known);
    }

    /// Of no options, so that the type of ICMP is where it is looked for; in a later fragment it is
    /// some byte, and the frame is taken or asked about like any other.
    fn flows_v4(&mut self, protocols: &Protocols, Ways { take, leave }: Ways) {
        if !protocols.is_empty() {
            let (icmp, ask) = (self.asm.label(), self.asm.label());
            self.asm.load(Size::Byte, L3 + 9);
            self.asm.branch(Condition::Equal, u32::from(protocol::ICMP), icmp, ask);
            self.asm.bind(icmp);
            self.asm.load(Size::Byte, L3 + 20);
            for echo in [0, 8] {
                self.if_equal(echo, ask);
            }
            self.asm.jump(take);
            self.asm.bind(ask);
            self.asm.load(Size::Byte, L3 + 9);
            protocols.write(&mut self.asm, take);
        }
        self.asm.jump(leave);
    }

    fn flows_v6(&mut self, protocols: &Protocols, Ways { take, leave }: Ways) {
        if !protocols.is_empty() {
            let (icmp, ask) = (self.asm.label(), self.asm.label());
            self.asm.load(Size::Byte, L3 + 6);
            self.asm.branch(Condition::Equal, u32::from(protocol::ICMPV6), icmp, ask);
            self.asm.bind(icmp);
            self.asm.load(Size::Byte, L3 + 40);
            // Below are the errors.
            self.asm.branch(Condition::AtLeast, 128, ask, take);
            self.asm.bind(ask);
            self.asm.load(Size::Byte, L3 + 6);
            protocols.write(&mut self.asm, take);
        }
        self.asm.jump(leave);
    }

    /// The needs of a family, as far as they depend on where the frame is and whom it is for.
    fn ends(
        &mut self,
        needs: &PacketNeeds,
        destination: &[u32],
        Ways { take, leave }: Ways,
        with_local: bool,
    ) {
        let seen = self.asm.label();
        let c = self.c;
        if needs.asks_ends {
            let (entered, at_uplink) = (self.asm.label(), self.asm.label());
            self.asm.load_ancillary(Ancillary::PktType);
            let not_out = self.asm.label();
            self.asm.branch(Condition::Equal, PACKET_OUTGOING, Target::Next, not_out);
            // At an uplink it is a candidate itself, or nothing was translated.
            self.if_at_uplink(seen);
            needs.received.write(&mut self.asm, take);
            self.asm.jump(seen);
            self.asm.bind(not_out);
            self.if_at_uplink(at_uplink);
            self.asm.jump(entered);
            self.asm.bind(at_uplink);
            self.if_in(&c.own, destination, take);
            self.asm.bind(entered);
            if needs.sent != Need::nothing() {
                if with_local {
                    // What stays on the node does not leave with the node's address.
                    self.if_in(&c.local, destination, seen);
                }
                needs.sent.write(&mut self.asm, take);
            }
        }
        self.asm.bind(seen);
        needs.seen.write(&mut self.asm, take);
        self.asm.jump(leave);
    }

    fn if_at_uplink(&mut self, then: Label) {
        self.asm.load_ancillary(Ancillary::IfIndex);
        for (ifindex, place) in self.c.places.iter() {
            if place.role == Role::Uplink {
                self.if_equal(*ifindex, then);
            }
        }
    }
}
