//! Rows 13, 14, 24, 28, 29: processes on the nodes themselves.

use super::{
    Ground,
    rows::{PROBED_PORT, port},
};
use crate::{
    lab::{Host, LabError},
    traffic::{Dns, Http, Serve, Server},
};
use std::net::SocketAddr;

/// Row 13: above the ports of services, below those that the kernel chooses, and below the pod's.
const PROBING_PORT: u16 = 20013;

pub(super) fn probe_from_below(ground: &Ground<'_>) -> Result<(), LabError> {
    let (node, pod) = (ground.lab.node(1), ground.client());
    let _http = Server::start(pod, Serve::Http, PROBED_PORT)?;
    let _dns = Server::start(pod, Serve::Dns, PROBED_PORT)?;
    let to = pod.socket(PROBED_PORT);
    let client_port = Some(PROBING_PORT);
    Http { client_port, ..Http::new(to, ground.size.requests, 4) }.run_on(node)?;
    Dns { client_port, ..Dns::new(to, ground.size.requests, 4) }.run_on(node)?;
    Ok(())
}

pub(super) fn probe_from_above(ground: &Ground<'_>) -> Result<(), LabError> {
    exchange(ground, ground.lab.node(1), ground.client(), 14)
}

pub(super) fn pod_to_other_node(ground: &Ground<'_>) -> Result<(), LabError> {
    exchange(ground, ground.client(), ground.lab.node(2), 24)
}

pub(super) fn pod_to_own_node(ground: &Ground<'_>) -> Result<(), LabError> {
    exchange(ground, ground.client(), ground.lab.node(1), 29)
}

/// Row 28: from the internet, and from the instance in the VPC.
pub(super) fn internet_to_node(ground: &Ground<'_>) -> Result<(), LabError> {
    exchange(ground, ground.lab.inet(), ground.lab.node(1), 28)?;
    exchange(ground, ground.lab.db(), ground.lab.node(2), 28)
}

/// TCP and UDP over both families, requests and replies.
fn exchange(ground: &Ground<'_>, client: &Host, server: &Host, row: u8) -> Result<(), LabError> {
    let _http = Server::start(server, Serve::Http, port(row))?;
    let _dns = Server::start(server, Serve::Dns, port(row))?;
    let seed = u64::from(row);
    let addresses: Vec<SocketAddr> =
        server.addresses().into_iter().map(|ip| SocketAddr::new(ip, port(row))).collect();
    for to in addresses {
        Http { seed, ..Http::new(to, ground.size.requests, 4) }.run_on(client)?;
        Dns { seed, ..Dns::new(to, ground.size.requests, 4) }.run_on(client)?;
    }
    Ok(())
}
