//! Rows 9-11, 25: the internet, and an instance of the VPC that runs no tap.

use super::{
    Ground,
    rows::{INTERNET, port},
};
use crate::{
    lab::{Host, LabError},
    traffic::{Dns, Http, Serve, Server, ping},
};

/// Rows 9 and 10: TCP, UDP and echo, each translated in its own way.
pub(super) fn pod_to_internet(ground: &Ground<'_>) -> Result<(), LabError> {
    let inet = ground.lab.inet();
    let _http = Server::start(inet, Serve::Http, port(9))?;
    let _dns = Server::start(inet, Serve::Dns, port(9))?;
    // From both nodes: the two SNAT to different addresses.
    for client in [ground.client(), ground.far()] {
        Http::new(inet.socket(port(9)), ground.size.requests, 8).run_on(client)?;
        Dns::new(inet.socket(port(9)), ground.size.requests, 4).run_on(client)?;
        ping(client, INTERNET, ground.size.some(), 56)?;
    }
    Ok(())
}

pub(super) fn internet_to_pod(ground: &Ground<'_>) -> Result<(), LabError> {
    let inet = ground.lab.inet();
    for pod in [ground.client(), ground.far()] {
        exchange(ground, inet, pod, 11)?;
    }
    Ok(())
}

pub(super) fn instance_without_tap(ground: &Ground<'_>) -> Result<(), LabError> {
    for instance in ground.instances() {
        for pod in [ground.client(), ground.far()] {
            exchange(ground, pod, instance, 25)?;
            exchange(ground, instance, pod, 25)?;
        }
    }
    Ok(())
}

fn exchange(ground: &Ground<'_>, client: &Host, server: &Host, row: u8) -> Result<(), LabError> {
    let _http = Server::start(server, Serve::Http, port(row))?;
    let _dns = Server::start(server, Serve::Dns, port(row))?;
    Http::new(server.socket(port(row)), ground.size.requests, 4).run_on(client)?;
    Dns::new(server.socket(port(row)), ground.size.requests, 4).run_on(client)?;
    if let Some(to) = server.socket_v6(port(row)) {
        Http::new(to, ground.size.some(), 2).run_on(client)?;
    }
    Ok(())
}
