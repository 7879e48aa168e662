//! Rows 6-8, 12, 15: service addresses.

use super::{
    Ground,
    rows::{HIGH_PORT, NODE_DNS, port},
};
use crate::{
    lab::{LabError, Pod, Service},
    traffic::{Dns, Http, Serve, Server},
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The cluster's DNS service, which NodeLocal DNS answers on the node.
pub(super) const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 15));

/// Node ports of row 12: to a pod of the node, to one of another, and with policy Local.
const NODE_PORT: u16 = 30012;
const NODE_PORT_FAR: u16 = 30112;
const NODE_PORT_LOCAL: u16 = 30212;

fn address(row: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([172, 20, 0, row], port))
}

/// All ClusterIP services of the rows: kept, as packets to them are expected at their backends.
pub(super) fn all(ground: &Ground<'_>) -> Vec<Service> {
    let of = |row: u8, pod: &Pod| {
        let backend = [pod.socket(port(row))];
        [Service::tcp(address(row, 80), &backend), Service::udp(address(row, 53), &backend)]
    };
    let mut services = of(6, ground.near()).to_vec();
    services.extend(of(7, ground.far()));
    let backend = [ground.near().socket(HIGH_PORT)];
    services.push(Service::tcp(address(8, HIGH_PORT), &backend));
    for (number, at, pod) in [(80, NODE_PORT, ground.near()), (81, NODE_PORT_FAR, ground.far())] {
        let backend = [pod.socket(port(12))];
        services.push(Service::tcp(address(12, number), &backend).node_port(at));
        services.push(Service::udp(address(12, number), &backend).node_port(at));
    }
    let backend = [ground.near().socket(port(12))];
    services.push(Service::tcp(address(12, 82), &backend).node_port(NODE_PORT_LOCAL).local_only());
    services
}

pub(super) fn same_node(ground: &Ground<'_>) -> Result<(), LabError> {
    through_service(ground, ground.near(), 6)
}

pub(super) fn cross_node(ground: &Ground<'_>) -> Result<(), LabError> {
    through_service(ground, ground.far(), 7)
}

fn through_service(ground: &Ground<'_>, backend: &Pod, row: u8) -> Result<(), LabError> {
    let _http = Server::start(backend, Serve::Http, port(row))?;
    let _dns = Server::start(backend, Serve::Dns, port(row))?;
    Http::new(address(row, 80), ground.size.requests, 8).run_on(ground.client())?;
    Dns::new(address(row, 53), ground.size.requests, 4).run_on(ground.client())?;
    Ok(())
}

pub(super) fn high_port(ground: &Ground<'_>) -> Result<(), LabError> {
    let _http = Server::start(ground.near(), Serve::Http, HIGH_PORT)?;
    let to = address(8, HIGH_PORT);
    let client_port = Some(45000);
    Http { client_port, ..Http::new(to, ground.size.requests, 4) }.run_on(ground.client())?;
    Ok(())
}

/// Row 12. With policy Cluster the pod sees the node as its client, so that is what its wire
/// carries and what must be reported; with policy Local it sees the client.
pub(super) fn node_port(ground: &Ground<'_>) -> Result<(), LabError> {
    let (inet, node) = (ground.lab.inet(), ground.lab.node(1));
    let mut servers = Vec::new();
    for pod in [ground.near(), ground.far()] {
        servers.push(Server::start(pod, Serve::Http, port(12))?);
        servers.push(Server::start(pod, Serve::Dns, port(12))?);
    }
    for at in [NODE_PORT, NODE_PORT_FAR] {
        Http::new(node.socket(at), ground.size.requests, 8).run_on(inet)?;
        Dns::new(node.socket(at), ground.size.requests, 4).run_on(inet)?;
    }
    Http::new(node.socket(NODE_PORT_LOCAL), ground.size.requests, 8).run_on(inet)?;
    Ok(())
}

/// Row 15: on the address of node-local-dns and on that of the cluster's DNS service.
pub(super) fn node_local_dns(ground: &Ground<'_>) -> Result<(), LabError> {
    let addresses = [NODE_DNS, CLUSTER_DNS].map(|address| SocketAddr::new(address, 53));
    let _dns = Server::start_at(ground.lab.node(1), Serve::Dns, &addresses)?;
    for to in addresses {
        Dns::new(to, ground.size.requests, 4).run_on(ground.client())?;
    }
    Ok(())
}
