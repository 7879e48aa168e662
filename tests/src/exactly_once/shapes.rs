//! Rows 18, 19, 21, 27: packets in parts, frames without IP, repeats, super-frames.

use super::{Ground, rows::port};
use crate::{
    lab::{Host, LabError, Protocol},
    traffic::{Bulk, Datagrams, Raw, Serve, Server, craft},
};
use std::net::TcpStream;

/// Bits a second of bulk TCP: servers, taps, captures and sensors share the machine's cores.
const BULK_RATE: u64 = 200_000_000;
/// Row 18: datagrams of two fragments and of many, both families, both ways.
pub(super) fn fragments(ground: &Ground<'_>) -> Result<(), LabError> {
    let (one, other) = (ground.client(), ground.far());
    for (client, server) in [(one, other), (other, one)] {
        let _discard = Server::start(server, Serve::Discard, port(18))?;
        for to in [server.socket(port(18)), Ground::v6(server, port(18))?] {
            for payload in [2000, 20_000] {
                Datagrams::new(to, ground.size.some(), payload).run_on(client)?;
            }
        }
    }
    Ok(())
}

/// Row 19: frames of a protocol that nobody knows, from a pod; ARP is asked for.
pub(super) fn non_ip(ground: &Ground<'_>) -> Result<(), LabError> {
    let raw = Raw::on(ground.client())?;
    for number in 0..ground.size.some() {
        let mut payload = vec![0; 46];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        raw.frame(&craft::frame(raw.next_mac(), raw.own_mac(), 0x88b5, &payload))?;
    }
    for (node, pod) in
        ground.lab.nodes().iter().flat_map(|node| node.pods().iter().map(move |pod| (node, pod)))
    {
        forget_neighbour(node, pod.host_veth())?;
    }
    for node in ground.lab.nodes() {
        forget_neighbour(node, "eth0")?;
    }
    // Somebody speaks, so that the addresses are asked for again.
    for node in ground.lab.nodes() {
        for pod in node.pods() {
            crate::traffic::ping(node, pod.v4().into(), 1, 56)?;
        }
    }
    Ok(())
}

fn forget_neighbour(node: &Host, device: &str) -> Result<(), LabError> {
    node.exec(["ip", "neighbour", "flush", "dev", device]).map(drop)
}

/// Row 21: TCP sent again, datagrams of the same bytes (over IPv6, and IPv4 with ID 0, as fast as
/// it goes), resets without a socket.
pub(super) fn repeats(ground: &Ground<'_>) -> Result<(), LabError> {
    let (client, some) = (ground.client(), ground.size.some());
    for server in [ground.near(), ground.far()] {
        let discard = Server::start(server, Serve::Discard, port(21))?;
        for to in [server.socket(port(21)), Ground::v6(server, port(21))?] {
            Datagrams { times: 5, ..Datagrams::new(to, some, 100) }.run_on(client)?;
        }
        let datagram =
            craft::udp(client.socket(40021), server.socket(port(21)), 0, b"the same again");
        Raw::on(client)?.packets(&datagram, 5 * some)?;
        drop(discard);
        let closed = server.socket(port(21));
        client.enter(|| (0..some).for_each(|_| drop(TcpStream::connect(closed))))?;
    }
    let server = ground.far();
    let to = server.socket(port(21));
    ground.lab.vpc().lose(Protocol::Tcp, to, 20)?;
    let _bulk = Server::start(server, Serve::Bulk, port(21))?;
    let bulk = Bulk::new(to, ground.size.bulk_bytes / 4);
    Bulk { bits_per_second: Some(BULK_RATE / 4), ..bulk }.run_on(client)?;
    Ok(())
}

/// Row 27: by uplinks that take super-frames, then by such that cut them as a NIC does and put
/// them together again on arrival.
pub(super) fn bulk(ground: &Ground<'_>) -> Result<(), LabError> {
    bulk_both_ways(ground)?;
    ground.lab.uplinks_like_wires()?;
    bulk_both_ways(ground)
}

fn bulk_both_ways(ground: &Ground<'_>) -> Result<(), LabError> {
    let client = ground.client();
    for server in [ground.near(), ground.far()] {
        let _bulk = Server::start(server, Serve::Bulk, port(27))?;
        for to in [server.socket(port(27)), Ground::v6(server, port(27))?] {
            let bulk = Bulk::new(to, ground.size.bulk_bytes / 2);
            Bulk { bits_per_second: Some(BULK_RATE), ..bulk }.run_on(client)?;
        }
    }
    Ok(())
}
