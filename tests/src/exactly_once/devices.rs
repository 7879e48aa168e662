//! Rows 20, 22, 26, 30: stacked devices, other uplinks, and the tap's own packets.

use super::{Ground, rows::port};
use crate::{
    lab::{Host, LabError, PodKind},
    traffic::{Dns, Http, Serve, Server},
};

/// Row 20: pods of the overlay, of two nodes and of one.
pub(super) fn overlay(ground: &Ground<'_>) -> Result<(), LabError> {
    let pod = |node, number| ground.lab.node(node).pod_of(PodKind::Overlay, number);
    exchange(ground, pod(1, 1), pod(2, 1), 20)?;
    exchange(ground, pod(2, 2), pod(1, 1), 20)?;
    exchange(ground, pod(1, 1), pod(1, 2), 20)
}

/// Row 22: whatever a pod sends makes the taps send.
pub(super) fn beside_own_traffic(ground: &Ground<'_>) -> Result<(), LabError> {
    exchange(ground, ground.client(), ground.far(), 22)
}

/// Row 26.
pub(super) fn branch_and_trunk(ground: &Ground<'_>) -> Result<(), LabError> {
    let pod = |number| ground.lab.node(1).pod_of(PodKind::Branch, number);
    exchange(ground, pod(1), pod(2), 26)?;
    exchange(ground, pod(2), pod(1), 26)
}

/// Row 30: to the other node's secondary uplink, to its primary, to its own node's primary.
pub(super) fn secondary_uplink(ground: &Ground<'_>) -> Result<(), LabError> {
    let pod = |node| ground.lab.node(node).pod_of(PodKind::Eni, 1);
    exchange(ground, pod(1), pod(2), 30)?;
    exchange(ground, pod(1), ground.far(), 30)?;
    exchange(ground, ground.far(), pod(1), 30)?;
    exchange(ground, ground.client(), pod(1), 30)?;
    exchange(ground, pod(1), ground.lab.db(), 30)
}

fn exchange(ground: &Ground<'_>, client: &Host, server: &Host, row: u8) -> Result<(), LabError> {
    let _http = Server::start(server, Serve::Http, port(row))?;
    let _dns = Server::start(server, Serve::Dns, port(row))?;
    let requests = ground.size.requests;
    Http::new(server.socket(port(row)), requests, 4).run_on(client)?;
    Dns::new(server.socket(port(row)), requests, 4).run_on(client)?;
    let to = Ground::v6(server, port(row))?;
    Http::new(to, ground.size.some(), 2).run_on(client)?;
    Dns { seed: u64::from(row), ..Dns::new(to, ground.size.some(), 2) }.run_on(client)?;
    Ok(())
}
