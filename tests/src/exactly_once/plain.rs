//! Rows 1-5, 16, 17, 23: pods to pods, no translation.

use super::{Ground, rows::port};
use crate::{
    lab::{LabError, Pod},
    traffic::{Datagrams, Dns, Http, Serve, Server},
};

pub(super) fn tcp_same_node(ground: &Ground<'_>) -> Result<(), LabError> {
    tcp(ground, ground.near(), 1)
}

/// Rows 2 and 3: requests one way, replies the other.
pub(super) fn tcp_cross_node(ground: &Ground<'_>) -> Result<(), LabError> {
    tcp(ground, ground.far(), 2)
}

pub(super) fn udp_same_node(ground: &Ground<'_>) -> Result<(), LabError> {
    udp(ground, ground.near(), 4)
}

pub(super) fn udp_cross_node(ground: &Ground<'_>) -> Result<(), LabError> {
    udp(ground, ground.far(), 5)
}

pub(super) fn ipv6_same_node(ground: &Ground<'_>) -> Result<(), LabError> {
    ipv6(ground, ground.near(), 16)
}

pub(super) fn ipv6_cross_node(ground: &Ground<'_>) -> Result<(), LabError> {
    ipv6(ground, ground.far(), 17)
}

/// Row 23: TCP and UDP, each from a port to the same port.
pub(super) fn equal_ports(ground: &Ground<'_>) -> Result<(), LabError> {
    let (client, server) = (ground.client(), ground.far());
    let _http = Server::start(server, Serve::Http, port(23))?;
    let _dns = Server::start(server, Serve::Dns, port(23))?;
    let to = server.socket(port(23));
    let client_port = Some(port(23));
    Http { client_port, ..Http::new(to, ground.size.requests, 1) }.run_on(client)?;
    Dns { client_port, ..Dns::new(to, ground.size.requests, 1) }.run_on(client)?;
    Ok(())
}

fn tcp(ground: &Ground<'_>, server: &Pod, row: u8) -> Result<(), LabError> {
    let _http = Server::start(server, Serve::Http, port(row))?;
    Http::new(server.socket(port(row)), ground.size.requests, 8).run_on(ground.client())?;
    Ok(())
}

/// Queries with replies, and datagrams of every size without.
fn udp(ground: &Ground<'_>, server: &Pod, row: u8) -> Result<(), LabError> {
    let client = ground.client();
    let dns = Server::start(server, Serve::Dns, port(row))?;
    Dns::new(server.socket(port(row)), ground.size.requests, 4).run_on(client)?;
    drop(dns);
    let _discard = Server::start(server, Serve::Discard, port(row))?;
    for payload in [1, 700, 1472] {
        Datagrams::new(server.socket(port(row)), ground.size.some(), payload).run_on(client)?;
    }
    Ok(())
}

fn ipv6(ground: &Ground<'_>, server: &Pod, row: u8) -> Result<(), LabError> {
    let client = ground.client();
    let to = Ground::v6(server, port(row))?;
    let _http = Server::start(server, Serve::Http, port(row))?;
    let _dns = Server::start(server, Serve::Dns, port(row))?;
    Http::new(to, ground.size.requests, 8).run_on(client)?;
    let dns = Dns { seed: u64::from(row), ..Dns::new(to, ground.size.requests, 4) };
    dns.run_on(client)?;
    Ok(())
}
