//! The ways that packets take: at which points, with which ends.
//!
//! ```text
//! Conversation --way(request)--> Hop, Hop, Hop ...   an answer goes the same way back
//!                                 |
//!                                 `-- point, ends as they are there, what kind of copy that is
//! ```

use std::net::IpAddr;

use super::packet::{End, Ends};
use super::rule::Direction;
use super::topology::{BR_EX, BRIDGE, Cni, ETH0, ETH1, Pod, TUNNEL, Topology, branch, veth};

/// What a copy of a packet is worth; the least is the one to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// With the addresses of the true ends.
    Clear,
    /// Translated to the node's address.
    Node,
    /// With a service's address, or the node's with a NodePort.
    Service,
    /// The packet is inside of one between nodes.
    Outer,
}

/// A place on the way.
#[derive(Clone, Copy, Debug)]
pub struct Hop {
    /// The node.
    pub node: usize,
    /// The interface.
    pub ifindex: u32,
    /// The direction.
    pub direction: Direction,
    /// The ends there.
    pub ends: Ends,
    /// See [`View`].
    pub view: View,
    /// A VLAN tag.
    pub tag: Option<u16>,
}

/// Who speaks to whom, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two pods, of one node or of two.
    Pods(Pod, Pod),
    /// A pod and, by a service's address, another.
    ClusterIp(Pod, Pod),
    /// A pod and, by a service's address, itself.
    Hairpin(Pod),
    /// A pod and a host without tap; translated to the node's address, or not.
    PodOutside(Pod, usize, bool),
    /// A pod and, by a service's address, a host without tap: both ends are translated.
    ServiceOutside(Pod, usize),
    /// A host without tap and a pod.
    OutsidePod(usize, Pod),
    /// A host without tap, by the NodePort of a node, to a pod; the source is translated, or not
    /// (`externalTrafficPolicy: Local`, only to a pod of that node).
    NodePort(usize, usize, Pod, bool),
    /// A pod and a service that its node answers itself.
    NodeLocal(Pod),
    /// A pod and a process of a node.
    PodHost(Pod, usize),
    /// A process of a node and a pod.
    HostPod(usize, Pod),
    /// A process of a node and a host without tap.
    HostOutside(usize, usize),
    /// A host without tap and a process of a node, on an ordinary port or one like a NodePort's.
    OutsideHost(usize, usize, bool),
    /// Processes of two nodes.
    Hosts(usize, usize),
    /// A pod, and a service without endpoint that nobody answers.
    Rejected(Pod),
    /// Datagrams of a tap to its sensor.
    Own(usize),
}

/// A conversation.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// See [`Kind`].
    pub kind: Kind,
    /// IPv6.
    pub v6: bool,
    /// Client's port or echo id.
    pub client: u16,
    /// Server's port.
    pub server: u16,
    /// The service's port.
    pub service: u16,
    /// The client's port after translation to the node's address.
    pub translated: u16,
    /// The NodePort.
    pub node_port: u16,
    /// By the second uplink.
    pub second: bool,
    /// Answers come by the other uplink.
    pub is_asymmetric: bool,
}

/// A way in the making.
struct Way<'a> {
    topology: &'a Topology,
    hops: Vec<Hop>,
    second: bool,
}

impl Way<'_> {
    fn push(&mut self, node: usize, ifindex: u32, direction: Direction, ends: Ends, view: View) {
        self.hops.push(Hop { node, ifindex, direction, ends, view, tag: None });
    }

    /// From a pod into its host.
    fn out_of_pod(&mut self, pod: Pod, ends: Ends, view: View) {
        self.push(pod.node, veth(pod), Direction::In, ends, view);
        if matches!(self.topology.nodes[pod.node].cni, Cni::Bridge | Cni::Overlay) {
            self.push(pod.node, BRIDGE, Direction::In, ends, view);
        }
    }

    /// From the host into a pod.
    fn deliver(&mut self, pod: Pod, ends: Ends, view: View) {
        if matches!(self.topology.nodes[pod.node].cni, Cni::Bridge | Cni::Overlay) {
            self.push(pod.node, BRIDGE, Direction::Out, ends, view);
        }
        self.push(pod.node, veth(pod), Direction::Out, ends, view);
    }

    /// Off a node, or onto it: the points of its uplink.
    fn uplink(
        &mut self,
        node: usize,
        pod: Option<Pod>,
        direction: Direction,
        ends: Ends,
        view: View,
    ) {
        let plan = &self.topology.nodes[node];
        let from = self.hops.len();
        match pod {
            Some(pod) if plan.cni == Cni::Trunk => {
                self.push(node, branch(pod), direction, ends, view);
                self.push(node, ETH1, direction, ends, view);
                let tag = branch(pod);
                self.hops[from + 1].tag = u16::try_from(tag).ok();
            }
            _ if self.second => self.push(node, ETH1, direction, ends, view),
            _ if plan.has_stacked_uplink => {
                self.push(node, BR_EX, direction, ends, view);
                self.push(node, ETH0, direction, ends, view);
            }
            _ => self.push(node, ETH0, direction, ends, view),
        }
        if direction == Direction::In {
            self.hops[from..].reverse();
        }
    }

    fn tunnel(&mut self, node: usize, direction: Direction, ends: Ends, view: View) {
        let from = self.hops.len();
        self.push(node, TUNNEL, direction, ends, view);
        self.push(node, ETH0, direction, ends, View::Outer);
        if direction == Direction::In {
            self.hops[from..].reverse();
        }
    }

    /// From one pod to another, the first point (with its ends) aside.
    fn across(&mut self, a: Pod, b: Pod, ends: Ends, is_bridged: bool) {
        let nodes = &self.topology.nodes;
        let is_overlay = |node: usize| nodes[node].cni == Cni::Overlay;
        if a.node == b.node && nodes[a.node].cni == Cni::Trunk {
            self.uplink(a.node, Some(a), Direction::Out, ends, View::Clear);
            self.uplink(b.node, Some(b), Direction::In, ends, View::Clear);
        } else if a.node != b.node && is_overlay(a.node) && is_overlay(b.node) {
            self.tunnel(a.node, Direction::Out, ends, View::Clear);
            self.tunnel(b.node, Direction::In, ends, View::Clear);
        } else if a.node != b.node {
            self.uplink(a.node, Some(a), Direction::Out, ends, View::Clear);
            self.uplink(b.node, Some(b), Direction::In, ends, View::Clear);
        }
        if is_bridged && a.node == b.node {
            // Two ports of one bridge: the host's stack sees nothing.
            self.push(b.node, veth(b), Direction::Out, ends, View::Clear);
        } else {
            self.deliver(b, ends, View::Clear);
        }
    }
}

impl Conversation {
    /// The way of a request, or of an answer.
    #[must_use]
    pub fn way(&self, topology: &Topology, is_reply: bool) -> Vec<Hop> {
        let mut way = Way { topology, hops: Vec::new(), second: self.second };
        self.request(&mut way);
        let mut hops = way.hops;
        if is_reply {
            hops.reverse();
            for hop in &mut hops {
                hop.ends = hop.ends.reversed();
                hop.direction = hop.direction.opposite();
                let may_move = hop.tag.is_none()
                    && hop.view != View::Outer
                    && !topology.nodes[hop.node].has_stacked_uplink;
                if self.is_asymmetric && may_move {
                    hop.ifindex = match hop.ifindex {
                        ETH0 => ETH1,
                        ETH1 => ETH0,
                        other => other,
                    };
                }
            }
        }
        hops
    }

    fn own(&self, node: usize) -> IpAddr {
        Topology::own(node, self.second, self.v6)
    }

    fn request(&self, way: &mut Way<'_>) {
        let v6 = self.v6;
        let end = |address: IpAddr, port: u16| End { address, port };
        let ends = |source: End, destination: End| Ends { source, destination };
        let pod = |pod: Pod, port: u16| end(Topology::pod(pod, v6), port);
        let outside = |number: usize, port: u16| end(Topology::outside(number, v6), port);
        let host = |node: usize, port: u16| end(self.own(node), port);
        let service = end(Topology::service(usize::from(self.service & 0xff), v6), self.service);
        use Direction::{In, Out};
        match self.kind {
            Kind::Pods(a, b) => {
                let ends = ends(pod(a, self.client), pod(b, self.server));
                let is_bridge =
                    matches!(way.topology.nodes[a.node].cni, Cni::Bridge | Cni::Overlay);
                if is_bridge && a.node == b.node {
                    way.push(a.node, veth(a), In, ends, View::Clear);
                    way.across(a, b, ends, true);
                } else {
                    way.out_of_pod(a, ends, View::Clear);
                    way.across(a, b, ends, false);
                }
            }
            Kind::ClusterIp(a, b) => {
                let client = pod(a, self.client);
                way.out_of_pod(a, ends(client, service), View::Service);
                way.across(a, b, ends(client, pod(b, self.server)), false);
            }
            Kind::Hairpin(a) => {
                way.out_of_pod(a, ends(pod(a, self.client), service), View::Service);
                let inner = ends(host(a.node, self.translated), pod(a, self.server));
                way.deliver(a, inner, View::Clear);
            }
            Kind::PodOutside(a, x, is_translated) => {
                let server = outside(x, self.server);
                let clear = ends(pod(a, self.client), server);
                way.out_of_pod(a, clear, View::Clear);
                if is_translated {
                    let node = ends(host(a.node, self.translated), server);
                    way.uplink(a.node, None, Out, node, View::Node);
                } else {
                    way.uplink(a.node, Some(a), Out, clear, View::Clear);
                }
            }
            Kind::ServiceOutside(a, x) => {
                way.out_of_pod(a, ends(pod(a, self.client), service), View::Service);
                let node = ends(host(a.node, self.translated), outside(x, self.server));
                way.uplink(a.node, None, Out, node, View::Node);
            }
            Kind::OutsidePod(x, b) => {
                let clear = ends(outside(x, self.client), pod(b, self.server));
                way.uplink(b.node, Some(b), In, clear, View::Clear);
                way.deliver(b, clear, View::Clear);
            }
            Kind::NodePort(x, node, b, is_translated) => {
                let client = outside(x, self.client);
                let at_node = ends(client, host(node, self.node_port));
                way.uplink(node, None, In, at_node, View::Service);
                let source = if is_translated { host(node, self.translated) } else { client };
                let clear = ends(source, pod(b, self.server));
                if node != b.node {
                    way.uplink(node, None, Out, clear, View::Clear);
                    way.uplink(b.node, Some(b), In, clear, View::Clear);
                }
                way.deliver(b, clear, View::Clear);
            }
            Kind::NodeLocal(a) => {
                let server = end(Topology::node_local(v6), self.server);
                way.out_of_pod(a, ends(pod(a, self.client), server), View::Clear);
            }
            Kind::PodHost(a, node) => {
                let clear = ends(pod(a, self.client), host(node, self.server));
                way.out_of_pod(a, clear, View::Clear);
                if a.node != node {
                    way.uplink(a.node, Some(a), Out, clear, View::Clear);
                    way.uplink(node, None, In, clear, View::Clear);
                }
            }
            Kind::HostPod(node, b) => {
                let clear = ends(host(node, self.client), pod(b, self.server));
                if b.node != node {
                    way.uplink(node, None, Out, clear, View::Clear);
                    way.uplink(b.node, Some(b), In, clear, View::Clear);
                }
                way.deliver(b, clear, View::Clear);
            }
            Kind::HostOutside(node, x) => {
                let clear = ends(host(node, self.client), outside(x, self.server));
                way.uplink(node, None, Out, clear, View::Clear);
            }
            Kind::OutsideHost(x, node, is_like_node_port) => {
                let port = if is_like_node_port { self.node_port } else { self.server };
                let clear = ends(outside(x, self.client), host(node, port));
                way.uplink(node, None, In, clear, View::Clear);
            }
            Kind::Hosts(a, b) => {
                let clear = ends(host(a, self.client), host(b, self.server));
                way.uplink(a, None, Out, clear, View::Clear);
                way.uplink(b, None, In, clear, View::Clear);
            }
            Kind::Rejected(a) => {
                way.out_of_pod(a, ends(pod(a, self.client), service), View::Service);
            }
            Kind::Own(node) => {
                let sensor = end(Topology::sensor(v6), self.server);
                way.uplink(node, None, Out, ends(host(node, self.client), sensor), View::Outer);
            }
        }
    }
}
