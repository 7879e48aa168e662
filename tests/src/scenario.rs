//! The main job, whole: two nodes, a tap on each, one sensor, real traffic, and the verdict.
//!
//! ```text
//! lab up -> sensor, taps -> tcpdump at the pods -> each kind of traffic -> stop -> compare
//! ```
//!
//! `scripts/demo` shows it to a person; a test asserts it, smaller.

use crate::compare::{Comparison, Packet, Report};
use crate::lab::{Host, Lab, LabError, LabSpec, Pod, Service};
use crate::tap::{Sensor, Tap, settle_accounts};
use crate::traffic::{Bulk, Dns, Http, Serve, Server, Side, Truth, ping};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// Prefixes as an operator of this lab would give them.
pub const TAP_FLAGS: [&str; 6] = [
    "--podnet",
    "10.0.0.0/16",
    "--svcnet",
    "172.20.0.0/16",
    // The nodes and their pods; the sensor (10.0.250.10) and the router run no tap.
    "--tapped-net",
    "10.0.0.0/17,fd00:10::/33",
];

/// How much traffic.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// HTTP requests of each kind.
    pub requests: u32,
    /// DNS queries of each kind.
    pub queries: u32,
    /// Bytes of bulk TCP, each way that it is sent.
    pub bulk_bytes: u64,
    /// Echo requests.
    pub pings: u32,
}

impl Size {
    /// More than 100,000 packets.
    pub const DEMO: Self =
        Self { requests: 3000, queries: 5000, bulk_bytes: 40_000_000, pings: 500 };
    /// Enough to test, quickly.
    pub const TEST: Self = Self { requests: 200, queries: 300, bulk_bytes: 2_000_000, pings: 30 };
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// Each kind of traffic.
    pub report: Report,
    /// The taps' accounts, node 1 first.
    pub accounts: Vec<Value>,
    /// The sensor's summary.
    pub summary: Value,
    /// Frames that the rings lost: those are accounted for, and missing.
    pub ring_lost: u64,
    /// The sensor's file.
    pub file: PathBuf,
}

/// Runs the scenario; `say` is told each step.
///
/// # Errors
///
/// When the lab, a process or the traffic fails, or an account does not add up.
pub fn run(
    directory: &Path,
    size: Size,
    more_flags: &[&str],
    say: &mut dyn FnMut(&str),
) -> Result<Outcome, LabError> {
    say("raising a lab: two nodes with two pods each, a router, a sensor");
    let lab = Lab::up(LabSpec::unique().nodes(2).pods(2).ipv6())?;
    let services = services(&lab);
    for service in &services {
        lab.add_service(service)?;
    }
    say("starting the sensor and a tap on each node");
    let sensor = Sensor::start(lab.sensor(), directory.join("sensor.pcapng"), &[])?;
    let flags: Vec<&str> = TAP_FLAGS.iter().copied().chain(more_flags.iter().copied()).collect();
    let taps = lab
        .nodes()
        .iter()
        .map(|node| Tap::start(node, lab.sensor(), &flags))
        .collect::<Result<Vec<_>, _>>()?;

    say("starting tcpdump in every pod: what the pods send is the truth to compare with");
    let mut truth = Truth::of_pods(&lab, directory, "ip or ip6")?;
    // What a process on the node sends to a pod leaves no pod: seen where it arrives.
    let probed = lab.node(1).pod(1);
    let from_node = format!("src host {}", lab.node(1).v4());
    truth.add(probed, "eth0", Side::Received, &from_node)?;
    traffic(&lab, &services, size, say)?;
    say("waiting for the last packets, ending taps and sensor");
    let truth = truth.stop()?;
    let mut accounts = Vec::new();
    for (tap, node) in taps.into_iter().zip(1..) {
        let log = directory.join(format!("tap-{node}.log"));
        accounts.push(tap.stop_logging(&log)?);
    }
    let file = sensor.file.clone();
    let summary = sensor.stop()?;
    let ring_lost = settle_accounts(&accounts, &summary).map_err(|detail| {
        LabError::Unexpected { what: "the accounting identity".into(), detail }
    })?;
    say("comparing what the pods sent with what the sensor got");
    let report = comparison(&lab, &services).files(&truth, &file).map_err(|error| {
        LabError::Unexpected { what: "comparing".into(), detail: error.to_string() }
    })?;
    Ok(Outcome { report, accounts, summary, ring_lost, file })
}

const HTTP: u16 = 8080;
/// What the services' backends listen on, so that their packets can be told from direct ones.
const BACKEND: u16 = 8081;
const BULK: u16 = 5201;
const DNS: u16 = 53;
/// Bits a second of bulk TCP: clients, servers, router, both taps, tcpdumps and the sensor share
/// the machine's cores here.
const BULK_RATE: u64 = 400_000_000;

fn services(lab: &Lab) -> Vec<Service> {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address of this file");
    let (same, other) = (lab.node(1).pod(2), lab.node(2).pod(1));
    vec![
        Service::tcp(address("172.20.0.10:80"), &[same.socket(BACKEND)]),
        Service::tcp(address("172.20.0.11:80"), &[other.socket(BACKEND)]),
    ]
}

fn traffic(
    lab: &Lab,
    services: &[Service],
    size: Size,
    say: &mut dyn FnMut(&str),
) -> Result<(), LabError> {
    let client = lab.node(1).pod(1);
    let (same, other) = (lab.node(1).pod(2), lab.node(2).pod(1));
    let mut servers = Vec::new();
    for host in [client, same, other] {
        let ports =
            [(Serve::Http, HTTP), (Serve::Http, BACKEND), (Serve::Dns, DNS), (Serve::Bulk, BULK)];
        for (serve, port) in ports {
            servers.push(Server::start(host, serve, port)?);
        }
    }
    let http = |to, from: &Host| Http::new(to, size.requests, 8).run_on(from).map(drop);
    say("HTTP between pods of one node, and of two");
    http(same.socket(HTTP), client)?;
    http(other.socket(HTTP), client)?;
    say("DNS over UDP between pods of one node, and of two");
    Dns::new(same.socket(DNS), size.queries, 4).run_on(client)?;
    Dns::new(other.socket(DNS), size.queries, 4).run_on(client)?;
    say("HTTP through ClusterIP services");
    for service in services {
        http(service.address, client)?;
    }
    say("a process on the node to its pod (as the kubelet's probes do)");
    http(client.socket(HTTP), lab.node(1))?;
    say("bulk TCP with segmentation offload, between pods of one node, and of two");
    for server in [same, other] {
        let bulk = Bulk::new(server.socket(BULK), size.bulk_bytes);
        Bulk { bits_per_second: Some(BULK_RATE), ..bulk }.run_on(client)?;
    }
    say("ping");
    ping(client, same.v4().into(), size.pings, 56)?;
    ping(client, other.v4().into(), size.pings, 1400)?;
    say("IPv6: HTTP, DNS and ping, between pods of one node, and of two");
    for server in [same, other] {
        let at = |port| server.socket_v6(port).ok_or_else(no_ipv6);
        http(at(HTTP)?, client)?;
        Dns::new(at(DNS)?, size.queries, 4).run_on(client)?;
        ping(client, server.v6().ok_or_else(no_ipv6)?.into(), size.pings, 56)?;
    }
    Ok(())
}

fn no_ipv6() -> LabError {
    LabError::Unexpected { what: "the lab".into(), detail: "it has no IPv6".into() }
}

/// Adds a row for each kind; a packet belongs to the first that it matches.
fn comparison(lab: &Lab, services: &[Service]) -> Comparison {
    let (client, same, other) = (lab.node(1).pod(1), lab.node(1).pod(2), lab.node(2).pod(1));
    let (node, near, far) = (lab.node(1).v4(), pair(client, same), pair(client, other));
    let probed = client.v4();
    let (near6, far6) = (pair6(client, same), pair6(client, other));
    let is = |protocol: u8| move |packet: &Packet| packet.protocol() == Some(protocol);
    let (tcp, udp) = (is(6), is(17));
    let ping = |packet: &Packet| matches!(packet.protocol(), Some(1 | 58));
    let within = |(a, b): (IpAddr, IpAddr)| move |packet: &Packet| packet.is_between(a, b);
    Comparison::new()
        .by_segments(1500)
        .services(services)
        .kind("row 14  node process -> its pod", move |p| p.is_between(node, probed) && tcp(p))
        .kind("row 27  bulk TCP, same node", {
            let near = within(near);
            move |p| near(p) && p.has_port(BULK)
        })
        .kind("row 27  bulk TCP, other node", {
            let far = within(far);
            move |p| far(p) && p.has_port(BULK)
        })
        .kind("row 6   HTTP by a service, same node", {
            let near = within(near);
            move |p| near(p) && p.has_port(BACKEND)
        })
        .kind("row 7   HTTP by a service, other node", {
            let far = within(far);
            move |p| far(p) && p.has_port(BACKEND)
        })
        .kind("row 1   HTTP, same node", {
            let near = within(near);
            move |p| near(p) && tcp(p)
        })
        .kind("rows 2, 3  HTTP, other node", {
            let far = within(far);
            move |p| far(p) && tcp(p)
        })
        .kind("row 4   DNS, same node", {
            let near = within(near);
            move |p| near(p) && udp(p)
        })
        .kind("row 5   DNS, other node", {
            let far = within(far);
            move |p| far(p) && udp(p)
        })
        .kind("row 16  IPv6, same node", {
            let near = within(near6);
            move |p| near(p) && (tcp(p) || udp(p))
        })
        .kind("row 17  IPv6, other node", {
            let far = within(far6);
            move |p| far(p) && (tcp(p) || udp(p))
        })
        .kind("ping, same node, v4 and v6", {
            let (near, near6) = (within(near), within(near6));
            move |p| (near(p) || near6(p)) && ping(p)
        })
        .kind("ping, other node, v4 and v6", {
            let (far, far6) = (within(far), within(far6));
            move |p| (far(p) || far6(p)) && ping(p)
        })
}

fn pair(a: &Pod, b: &Pod) -> (IpAddr, IpAddr) {
    (a.v4().into(), b.v4().into())
}

fn pair6(a: &Pod, b: &Pod) -> (IpAddr, IpAddr) {
    let v6 = |pod: &Pod| pod.v6().map_or_else(|| pod.v4().into(), IpAddr::from);
    (v6(a), v6(b))
}
