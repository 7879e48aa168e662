//! Rows 6-8, 12, 15: service addresses.

use super::{
    Ground,
    rows::{HIGH_PORT, port},
};
use crate::{
    lab::{LabError, Pod, Service},
    traffic::{Datagrams, Dns, Http, Serve, Server},
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The cluster's DNS service, which NodeLocal DNS answers on the node.
pub(super) const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 20, 0, 15));

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

pub(super) fn node_port(_ground: &Ground<'_>) -> Result<(), LabError> {
    Ok(())
}

pub(super) fn node_local_dns(ground: &Ground<'_>) -> Result<(), LabError> {
    let _ = (ground, Datagrams::new(SocketAddr::from(([0; 4], 0)), 0, 0));
    Ok(())
}
