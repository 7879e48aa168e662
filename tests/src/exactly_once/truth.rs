//! What must reach the sensor, from captures where packets are sent.
//!
//! ```text
//! pod, sent      -> as it is; to a service: to the backend that answered
//! pod, received  -> as it is, unless a pod sent it: from the internet, a node, an instance
//! other host     -> what it exchanges with a node's own server
//! wire of a node -> ARP and neighbour discovery
//! ```

use super::rows;
use crate::{
    compare::{self, Expected, Frame, Packet},
    lab::{Host, Lab, LabError, PodKind, Service},
    traffic::{Captured, Side, Truth},
};
use std::{
    collections::HashSet,
    net::IpAddr,
    ops::RangeInclusive,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// A point where packets are captured, and which of them count there.
#[derive(Clone, Debug)]
enum Point {
    /// A pod's own interface.
    Pod(PodPoint),
    /// A host outside.
    Outside,
    /// The other end of a node's uplink.
    Wire,
}

#[derive(Clone, Copy, Debug)]
struct PodPoint {
    mac: [u8; 6],
    /// What it cuts to.
    mtu: usize,
    /// Another pod of the same bridge stands for it where all get the same frame.
    is_flooded_too: bool,
}

/// All captures of a run.
#[derive(Debug)]
pub(super) struct Witness {
    truth: Truth,
    points: Vec<Point>,
    pods: HashSet<IpAddr>,
    nodes: HashSet<IpAddr>,
    /// Between these times all taps ran, microseconds since 1970.
    from_us: u64,
    until_us: u64,
}

/// What was captured.
#[derive(Debug)]
pub(super) struct Testimony {
    /// What must be reported.
    pub(super) expected: Vec<Expected>,
    /// Captures that lost packets.
    pub(super) untrusted: Vec<String>,
    /// When all taps ran, microseconds since 1970.
    pub(super) inside: RangeInclusive<u64>,
}

impl Witness {
    /// Starts the captures. Call it before the taps start.
    pub(super) fn start(lab: &Lab, directory: &Path) -> Result<Self, LabError> {
        let addresses = |host: &Host| host.addresses();
        let mut witness = Self {
            truth: Truth::new(directory),
            points: Vec::new(),
            pods: lab.pods().flat_map(|pod| addresses(pod)).collect(),
            nodes: lab.nodes().iter().flat_map(|node| addresses(node)).collect(),
            from_us: 0,
            until_us: u64::MAX,
        };
        for pod in lab.pods() {
            let mac = parse_mac(&pod.mac("eth0")?);
            let mtu = if pod.kind() == PodKind::Overlay { MTU - OUTER_BYTES } else { MTU };
            let is_flooded_too = pod.kind() == PodKind::Overlay && pod.name().ends_with('2');
            witness.add(pod, "eth0", "", Point::Pod(PodPoint { mac, mtu, is_flooded_too }))?;
        }
        let to_servers = format!("port {}", rows::port(28));
        for host in [lab.inet(), lab.db()] {
            witness.add(host, "eth0", &to_servers, Point::Outside)?;
        }
        for node in lab.nodes() {
            witness.add(lab.vpc(), node.name(), NEIGHBOURS, Point::Wire)?;
            if lab.spec().eni_pods + lab.spec().branch_pods > 0 {
                let second = format!("{}-eth1", node.name());
                witness.add(lab.vpc(), &second, NEIGHBOURS, Point::Wire)?;
            }
        }
        Ok(witness)
    }

    fn add(
        &mut self,
        host: &Host,
        interface: &str,
        filter: &str,
        point: Point,
    ) -> Result<(), LabError> {
        self.truth.add(host, interface, Side::Both, filter)?;
        self.points.push(point);
        Ok(())
    }

    /// From now on all taps run: what is sent must be reported.
    pub(super) fn begin(&mut self) {
        self.from_us = now_us();
    }

    /// Waits for quiet. After this the taps may end.
    pub(super) fn wait_for_quiet(&mut self) -> Result<(), LabError> {
        self.truth.settle()?;
        self.until_us = now_us();
        Ok(())
    }

    /// Ends the captures and reads them; `sensors` is what was reported, for services whose
    /// backend did not answer.
    pub(super) fn end(
        self,
        services: &[Service],
        reported: &[Packet],
    ) -> Result<Testimony, LabError> {
        let Self { truth, points, pods, nodes, from_us, until_us } = self;
        let translated = services.iter().map(|service| service.address.ip()).collect();
        let captures = truth.stop()?;
        let mut untrusted = Vec::new();
        // What a bridge floods arrives at several pods: it counts where it was sent.
        let macs: HashSet<[u8; 6]> = points
            .iter()
            .filter_map(|point| if let Point::Pod(pod) = point { Some(pod.mac) } else { None })
            .collect();
        let mut sent: Vec<(Packet, (bool, usize))> = Vec::new();
        for (capture, point) in captures.iter().zip(&points) {
            let frames = read(capture, &mut untrusted)?;
            for frame in frames {
                let known = |address: Option<IpAddr>, of: &HashSet<IpAddr>| {
                    address.is_some_and(|address| of.contains(&address))
                };
                let counts = match point {
                    // An answer that a service's address has been put on was sent by a pod.
                    Point::Pod(pod) => {
                        let from = frame.source_mac.unwrap_or_default();
                        let is_flooded = frame.destination_mac.is_some_and(|mac| mac[0] & 1 == 1);
                        let is_counted_elsewhere = macs.contains(&from)
                            || is_flooded && pod.is_flooded_too
                            || known(frame.packet.source(), &pods)
                            || known(frame.packet.source(), &translated);
                        from == pod.mac || !is_counted_elsewhere
                    }
                    Point::Outside => {
                        known(frame.packet.source(), &nodes)
                            || known(frame.packet.destination(), &nodes)
                    }
                    Point::Wire => true,
                };
                if counts {
                    let required = (from_us..=until_us).contains(&frame.time_us);
                    let mtu = if let Point::Pod(pod) = point { pod.mtu } else { MTU };
                    sent.push((frame.packet, (required, mtu)));
                }
            }
        }
        let expected = compare::at_backends(services, sent, reported)
            .into_iter()
            .flat_map(|(packet, (required, mtu))| {
                let row = rows::of(&packet);
                compare::segments_of(packet, mtu).into_iter().map(move |packet| Expected {
                    packet,
                    row,
                    required,
                })
            })
            .collect();
        Ok(Testimony { expected, untrusted, inside: from_us..=until_us })
    }
}

/// Of the lab's links, bytes.
pub(super) const MTU: usize = 1500;
/// What VXLAN takes of it.
const OUTER_BYTES: usize = 50;
const NEIGHBOURS: &str = "arp or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)";

fn read(capture: &Captured, untrusted: &mut Vec<String>) -> Result<Vec<Frame>, LabError> {
    let frames = compare::read_frames(&capture.path).map_err(unreadable)?;
    // Lost at its end, after the run, does not matter.
    if capture.dropped > 0 || usize::try_from(capture.packets) != Ok(frames.len()) {
        untrusted.push(format!(
            "{}: {} in the file, {} captured, {} lost",
            capture.what,
            frames.len(),
            capture.packets,
            capture.dropped
        ));
    }
    Ok(frames)
}

pub(super) fn unreadable(error: compare::ReadError) -> LabError {
    LabError::Unexpected { what: "reading a capture".into(), detail: error.to_string() }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn parse_mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, part) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).unwrap_or(0);
    }
    mac
}
