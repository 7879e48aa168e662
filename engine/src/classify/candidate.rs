//! Copies that carry an address which is no pod's although a better copy may exist.
//!
//! ```text
//! address in SVCNET, not the node's own -----------------------> Service    (any point)
//! node's own address, port in the NodePort range --------------> NodePort   (any point)
//! at an uplink: out from, or in to, an own address ------------> Node
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
    ) -> Option<Candidate> {
        let is_service = |address| self.service.contains(address) && !self.own.contains(address);
        if is_service(headers.destination) {
            return Some(Candidate::Service { answers: false });
        }
        if is_service(headers.source) {
            return Some(Candidate::Service { answers: true });
        }
        let answers = match headers.protocol {
            // An error goes the other way than the packet that it is about.
            protocol::ICMP | protocol::ICMPV6 => {
                headers.embedded(frame.data).and_then(|about| self.node_port(&about)).map(|to| !to)
            }
            _ => self.node_port(headers),
        };
        answers.map(|answers| Candidate::NodePort { answers, at_uplink })
    }

    /// Whether the NodePort is the source's; `None` if there is none.
    fn node_port(&self, headers: &Headers) -> Option<bool> {
        let (source, destination) = headers.ports?;
        // The ports first: they are compared faster, and nearly always say no.
        if self.nodeports.contains(&destination) && self.own.contains(headers.destination) {
            return Some(false);
        }
        (self.nodeports.contains(&source) && self.own.contains(headers.source)).then_some(true)
    }

    /// A packet at an uplink with an own address in it.
    pub(super) fn node(&self, headers: &Headers, inbound: bool) -> Option<Candidate> {
        let own = if inbound { headers.destination } else { headers.source };
        if !self.own.contains(own) {
            return None;
        }
        // Without its ports a fragment may belong to a NodePort's packet, and an ICMP error be
        // about one: then both ends are replaced. The number of a ping stands for both ends' ports.
        let is_fragment = headers.fragment.is_some_and(|fragment| fragment.offset != 0);
        let is_icmp = matches!(headers.protocol, protocol::ICMP | protocol::ICMPV6);
        let translated = match is_fragment || is_icmp {
            true => BOTH,
            false => Translated { source: !inbound, destination: inbound },
        };
        Some(Candidate::Node { translated })
    }
}
