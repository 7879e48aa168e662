//! What the classifier knows of an address, for `podtap explain`: the same look-ups that decide.

use crate::frame::{Frame, Point};
use crate::wire::{Address, Headers};

use super::{Candidate, Classifier};

/// What an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// One of the node's own.
    pub is_own: bool,
    /// Own, or behind an interface of the node that is no uplink.
    pub is_local: bool,
    /// Another tapped node reports what comes from it.
    pub is_covered: bool,
    /// In SVCNET, whoever answers.
    pub is_in_svcnet: bool,
    /// A sensor's.
    pub is_sensor: bool,
}

impl Classifier {
    /// What an address is to this node.
    #[must_use]
    pub fn standing(&self, address: Address) -> Standing {
        Standing {
            is_own: self.own.contains(address),
            is_local: self.local.contains(address),
            is_covered: self.is_covered(address),
            is_in_svcnet: self.service.contains(address),
            is_sensor: self.sensors.contains(address),
        }
    }

    /// Whether a frame goes to a service, by its address or its port on this node.
    #[must_use]
    pub fn is_to_service(&self, frame: &Frame<'_>) -> bool {
        let headers = Headers::parse(frame.data);
        let of = |address| self.classes.of(address);
        let (source, destination) = (of(headers.source), of(headers.destination));
        let candidate = self.service(frame, &headers, false, source, destination);
        matches!(
            candidate,
            Some(
                Candidate::Service { answers: false } | Candidate::NodePort { answers: false, .. }
            )
        )
    }

    /// Whether frames of that interface are looked at.
    #[must_use]
    pub fn is_tapped(&self, point: Point) -> bool {
        self.place(point).is_some()
    }

    /// Whether the node has a device that unpacks tunnels in UDP, and their ports.
    #[must_use]
    pub fn tunnels(&self) -> (&[u16], bool) {
        (&self.overlay_ports, self.has_ipip)
    }
}
