//! Copies that carry an address which is no pod's although a better copy may exist.
//!
//! ```text
//! address in SVCNET, not the node's own -----------------------> Service    (any point)
//! node's own address, port in the NodePort range --------------> NodePort   (any point)
//! at an uplink: out from, or in to, an own address ------------> Node       (not multicast, link-local)
//! anything else (nearly all) ----------------------------------> no candidate: decided at once
//! ```
//!
//! The better copy, its *twin*, has the pod's address where this one has the service's or the
//! node's. Which ends of it may differ is all that is said here; whether there is one, and what
//! becomes of a copy without, is for [`settle`](crate::settle).

use crate::dedup::Translated;
use crate::frame::Frame;
use crate::wire::{Headers, protocol};

use super::Classifier;
use super::classes::Classes;

/// A copy that may have a twin; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// A service address.
    Service {
        /// It is the source: the twin went this way before, or is another node's to report.
        answers: bool,
    },
    /// The node's own address with a port in the NodePort range; by chance, it may as well be the
    /// port that a translation, or a process of the node, took for itself.
    NodePort {
        /// It is the source.
        answers: bool,
        /// Seen at an uplink.
        at_uplink: bool,
    },
    /// The node's own address at an uplink: the node itself speaks, or it has put its address in a
    /// pod's place.
    Node {
        /// The ends that may differ.
        translated: Translated,
    },
}

const BOTH: Translated = Translated { source: true, destination: true };

impl Candidate {
    /// The ends that a twin may have otherwise. Of a packet through a service it is both: on the way
    /// to another node, and back to the pod that sent it, source and destination are replaced.
    #[must_use]
    pub fn ignored(self) -> Translated {
        match self {
            Self::Service { .. } | Self::NodePort { .. } => BOTH,
            Self::Node { translated } => translated,
        }
    }
}

impl Classifier {
    /// A packet with a service address, or one that looks like it.
    pub(super) fn service(
        &self,
        frame: &Frame<'_>,
        headers: &Headers,
        at_uplink: bool,
        source: Classes,
        destination: Classes,
    ) -> Option<Candidate> {
        let is_service = |end: Classes| end.is(Classes::SERVICE) && !end.is(Classes::OWN);
        if is_service(destination) {
            return Some(Candidate::Service { answers: false });
        }
        if is_service(source) {
            return Some(Candidate::Service { answers: true });
        }
        let answers = match headers.protocol {
            // An error goes the other way than the packet that it is about.
            protocol::ICMP | protocol::ICMPV6 => {
                let about = headers.embedded(frame.data)?;
                let of = |address| self.classes.of(address);
                self.node_port(&about, of(about.source), of(about.destination)).map(|to| !to)
            }
            _ => self.node_port(headers, source, destination),
        };
        answers.map(|answers| Candidate::NodePort { answers, at_uplink })
    }

    /// Whether the NodePort is the source's; `None` if there is none.
    fn node_port(&self, headers: &Headers, source: Classes, destination: Classes) -> Option<bool> {
        let (from, to) = headers.ports?;
        if destination.is(Classes::OWN) && self.nodeports.contains(&to) {
            return Some(false);
        }
        (source.is(Classes::OWN) && self.nodeports.contains(&from)).then_some(true)
    }

    /// A packet at an uplink with an own address where a translation puts it.
    pub(super) fn node(
        &self,
        frame: &Frame<'_>,
        headers: &Headers,
        inbound: bool,
    ) -> Option<Candidate> {
        let own = if inbound { headers.destination } else { headers.source };
        // What does not leave its link is not translated: the same query, sent on each of two links,
        // is two packets, and none a pod's.
        if own.is_link_local() || headers.destination.is_multicast() {
            return None;
        }
        // Without its ports a fragment may belong to a NodePort's packet, and an ICMP error be
        // about one: then both ends are replaced.
        let is_fragment = headers.fragment.is_some_and(|fragment| fragment.offset != 0);
        let translated = match is_fragment || headers.is_icmp_error(frame.data) {
            true => BOTH,
            false => Translated { source: !inbound, destination: inbound },
        };
        Some(Candidate::Node { translated })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{POD, UPLINK, ask, at, classifier, packet, policy, tcp, udp, view};
    use super::*;
    use crate::classify::{Election, Policy};
    use crate::frame::Direction::{self, In, Out};
    use crate::stats::DropReason;

    fn candidate(data: &[u8], ifindex: u32, direction: Direction) -> Option<Candidate> {
        ask(&classifier(), &at(data, ifindex, direction)).unwrap().candidate
    }

    const SOURCE: Translated = Translated { source: true, destination: false };
    const DESTINATION: Translated = Translated { source: false, destination: true };

    #[test]
    fn a_service_address_makes_a_candidate_at_any_point_unless_it_is_the_nodes_own() {
        let request = udp("10.0.1.101", "172.20.0.99", (1000, 53), b"x");
        let reply = udp("172.20.0.99", "10.0.1.101", (53, 1000), b"x");
        for (ifindex, direction) in [(POD, In), (UPLINK, Out), (POD, Out)] {
            let said = candidate(&request, ifindex, direction);
            assert_eq!(said, Some(Candidate::Service { answers: false }));
            let said = candidate(&reply, ifindex, direction);
            assert_eq!(said, Some(Candidate::Service { answers: true }));
            assert_eq!(said.unwrap().ignored(), BOTH);
        }
        let node_local = udp("10.0.1.101", "172.20.0.10", (1000, 53), b"x");
        assert_eq!(candidate(&node_local, POD, In), None);
        let plain = udp("10.0.1.101", "10.0.2.101", (1000, 53), b"x");
        assert_eq!(candidate(&plain, UPLINK, Out), None, "nearly all packets");
    }

    #[test]
    fn the_nodes_address_with_a_port_of_the_range_is_a_node_port() {
        let (own, client) = ("10.0.1.10", "203.0.113.10");
        for (port, is_in) in [(29_999, false), (30_000, true), (32_767, true), (32_768, false)] {
            let (to, from) = (tcp(client, own, (999, port)), tcp(own, client, (port, 999)));
            let request = Candidate::NodePort { answers: false, at_uplink: true };
            assert_eq!(candidate(&to, UPLINK, In) == Some(request), is_in, "{port}");
            let answer = Candidate::NodePort { answers: true, at_uplink: true };
            assert_eq!(candidate(&from, UPLINK, Out) == Some(answer), is_in, "{port}");
            let at_pod = Candidate::NodePort { answers: true, at_uplink: false };
            assert_eq!(candidate(&from, POD, Out), is_in.then_some(at_pod), "{port}");
            // Another node's address is no service of this one.
            assert_eq!(candidate(&tcp("10.0.1.101", "10.0.2.10", (999, port)), POD, In), None);
        }
        // What ICMP says about a request is an answer.
        let about = tcp(client, own, (999, 30_080));
        let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &about[14..]].concat();
        let error = packet(protocol::ICMP, own, client, &error);
        let answer = Candidate::NodePort { answers: true, at_uplink: true };
        assert_eq!(candidate(&error, UPLINK, Out), Some(answer));
    }

    #[test]
    fn an_own_address_at_an_uplink_may_stand_for_a_pods_and_nowhere_else() {
        let node = |translated| Some(Candidate::Node { translated });
        let leaving = udp("10.0.1.10", "203.0.113.10", (1000, 53), b"x");
        assert_eq!(candidate(&leaving, UPLINK, Out), node(SOURCE));
        assert_eq!(candidate(&leaving, POD, In), None);
        let arriving = udp("203.0.113.10", "10.0.1.10", (53, 1000), b"x");
        assert_eq!(candidate(&arriving, UPLINK, In), node(DESTINATION));
        assert_eq!(candidate(&arriving, POD, Out), None);
        // Neither the other direction's end.
        assert_eq!(candidate(&arriving, UPLINK, Out), None);
        assert_eq!(candidate(&leaving, UPLINK, In), None);
        // Without ports either end may have been another.
        let mut tail = leaving.clone();
        tail[14 + 7] = 100;
        assert_eq!(candidate(&tail, UPLINK, Out), node(BOTH));
        let ping = packet(protocol::ICMP, "10.0.1.10", "203.0.113.10", &[8, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!(candidate(&ping, UPLINK, Out), node(SOURCE));
        let query = udp("10.0.1.10", "224.0.0.251", (5353, 5353), b"x");
        assert_eq!(candidate(&query, UPLINK, Out), None, "multicast is not translated");
        // Nobody is elected: there are no services, but translations still are.
        let none = Policy { election: Election::None, ..policy() };
        let c = Classifier::new(&none, &view(), &[]);
        let service = udp("10.0.1.101", "172.20.0.99", (1000, 53), b"x");
        assert_eq!(ask(&c, &at(&service, POD, In)).unwrap().candidate, None);
        assert_eq!(ask(&c, &at(&leaving, UPLINK, Out)).unwrap().candidate, node(SOURCE));
        assert!(!c.settles());
    }

    #[test]
    fn who_asks_by_arp_on_another_tapped_node_is_that_nodes_to_report() {
        let arp = |sender: [u8; 4]| {
            let mut data = vec![2; 12];
            data.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 2, 2, 2, 2, 2]);
            data.extend(sender);
            data.extend([0, 0, 0, 0, 0, 0, 10, 0, 1, 10]);
            data
        };
        let c = classifier();
        let filter = c.filter(&[]);
        for (sender, ifindex, direction, is_covered) in [
            ([10, 0, 2, 10], UPLINK, In, true),
            ([10, 0, 2, 10], POD, Out, true),
            ([10, 0, 1, 10], UPLINK, Out, false),
            ([10, 0, 1, 101], POD, In, false),
            ([203, 0, 113, 1], UPLINK, In, false),
            ([10, 0, 200, 7], UPLINK, In, false),
        ] {
            let data = arp(sender);
            let frame = at(&data, ifindex, direction);
            let said = ask(&c, &frame);
            assert_eq!(said.err() == Some(DropReason::Covered), is_covered, "{sender:?}");
            assert_eq!(filter.run_in_kernel(&frame) == 0, is_covered, "{sender:?}");
            for len in 14..data.len() {
                let cut = at(&data[..len], ifindex, direction);
                let kernel_drops = filter.run_in_kernel(&cut) == 0;
                assert!(!kernel_drops || ask(&c, &cut).is_err(), "the filter is a shortcut");
            }
            let mut other = data.clone();
            other[18] = 8; // no Ethernet addresses
            ask(&c, &at(&other, ifindex, direction)).unwrap();
            assert_ne!(filter.run_in_kernel(&at(&other, ifindex, direction)), 0);
        }
    }

    #[test]
    fn service_addresses_pass_the_kernel() {
        let c = classifier();
        let request = udp("10.0.1.101", "172.20.0.99", (1000, 53), b"x");
        let reply = udp("172.20.0.99", "10.0.1.101", (53, 1000), b"x");
        for (data, direction) in [(&request, In), (&reply, Out)] {
            assert_ne!(c.filter(&[]).run(&at(data, POD, direction)), 0);
        }
    }

    #[test]
    fn the_ports_of_the_nodes_own_overlay_devices_count_beside_those_of_the_flag() {
        let mut with_device = view();
        with_device.links.extend([super::super::tests::link(
            30,
            crate::net::Role::Uplink,
            "vxlan",
        )]);
        with_device.overlay_ports = vec![8473];
        let c = Classifier::new(&policy(), &with_device, &[]);
        for (port, is_overlay) in [(4789, true), (8473, true), (8474, false)] {
            let outer = udp("10.0.1.10", "10.0.2.10", (5555, port), b"vxlan");
            let said = ask(&c, &at(&outer, UPLINK, Out));
            assert_eq!(said.err() == Some(DropReason::Overlay), is_overlay, "{port}");
        }
    }
}
