//! The tap's own connections with clients that connected to it, exact to their ports.
//!
//! ```text
//! addresses of their peers? --no (almost always)--> not ours
//!     `--yes--> ports, and one of the node's addresses at the other end? --> ours
//! ```
//!
//! A client may run on this node or in a pod of it, so its address alone says nothing: only what
//! belongs to one of these connections is left out, with the probes for the size of its datagrams.

use std::net::IpAddr;

use crate::rpcap::PROBE_PORT;
use crate::wire::{Address, Headers, PrefixSet, protocol};

use super::is_rpcap_data;

/// A connection of the tap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnFlow {
    /// The peer's address.
    pub peer: IpAddr,
    /// The peer's port.
    pub peer_port: u16,
    /// The tap's port of a TCP connection; `None` for datagrams, which only the tap sends.
    pub tcp_port: Option<u16>,
}

/// The flows that are there now.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnFlows {
    peers: PrefixSet,
    flows: Vec<(Address, OwnFlow)>,
}

impl OwnFlows {
    pub(super) fn new(flows: impl IntoIterator<Item = OwnFlow>) -> Self {
        let flows: Vec<_> = flows.into_iter().map(|flow| (flow.peer.into(), flow)).collect();
        Self { peers: PrefixSet::of_hosts(flows.iter().map(|(_, flow)| flow.peer)), flows }
    }

    /// Their peers' addresses.
    pub(super) fn peers(&self) -> &PrefixSet {
        &self.peers
    }

    /// True if the packet belongs to one of them; `own` are the node's addresses.
    pub(super) fn contain(&self, data: &[u8], headers: &Headers, own: &PrefixSet) -> bool {
        let Headers { source, destination, .. } = *headers;
        let is_to = self.peers.contains(destination) && own.contains(source);
        let is_from = self.peers.contains(source) && own.contains(destination);
        (is_to || is_from)
            && self.flows.iter().any(|(peer, flow)| {
                (is_to && *peer == destination && flow.is_sent(data, headers))
                    || (is_from && *peer == source && flow.is_received(headers))
            })
    }

    /// True for a datagram of ours: from the node itself, to this address and port.
    pub(super) fn take(&self, destination: Address, port: u16, payload: &[u8]) -> bool {
        self.peers.contains(destination)
            && self
                .flows
                .iter()
                .any(|(peer, flow)| *peer == destination && flow.takes(port, payload))
    }
}

impl OwnFlow {
    fn is_sent(&self, data: &[u8], headers: &Headers) -> bool {
        match (headers.protocol, headers.ports) {
            (protocol::TCP, Some((port, peer_port))) => {
                self.tcp_port == Some(port) && self.peer_port == peer_port
            }
            (protocol::UDP, Some((_, peer_port))) => {
                self.takes(peer_port, data.get(headers.payload..).unwrap_or_default())
            }
            // The tail of a datagram of ours that was cut on its way out.
            (protocol::UDP, None) => self.tcp_port.is_none(),
            _ => false,
        }
    }

    /// A datagram with the data, or one that goes ahead to see what the path takes.
    fn takes(&self, port: u16, payload: &[u8]) -> bool {
        self.tcp_port.is_none()
            && (port == self.peer_port || (port == PROBE_PORT && is_rpcap_data(payload)))
    }

    fn is_received(&self, headers: &Headers) -> bool {
        headers.protocol == protocol::TCP
            && headers.ports.is_some_and(|(peer_port, port)| {
                self.tcp_port == Some(port) && self.peer_port == peer_port
            })
    }
}
