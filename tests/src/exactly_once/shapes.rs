//! Rows 18, 19, 21, 27: packets in parts, frames without IP, repeats, super-frames.

use super::{Ground, rows::port};
use crate::{
    lab::{Host, LabError},
    traffic::{Bulk, Datagrams, Serve, Server, tcpreplay},
};
use std::{fs, net::SocketAddr};

/// Bits a second of bulk TCP: servers, taps, captures and sensors share the machine's cores.
const BULK_RATE: u64 = 200_000_000;
/// Frames a second of what is replayed.
const REPLAY_RATE: u32 = 5000;

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

/// Row 19: frames of protocols that nobody knows, from a pod; ARP comes by itself, and is asked
/// for.
pub(super) fn non_ip(ground: &Ground<'_>) -> Result<(), LabError> {
    let frames: Vec<Vec<u8>> = (0..ground.size.some())
        .map(|number| {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
            frame.extend(number.to_be_bytes());
            frame.resize(60, 0);
            frame
        })
        .collect();
    let file = ground.directory.join("non-ip.pcap");
    write_pcap(&file, &frames)?;
    tcpreplay(ground.client(), "eth0", &file, REPLAY_RATE)?;
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

/// Row 21: TCP sent again, datagrams of the same bytes (over IPv6 and with IP ID 0), resets
/// without a socket.
pub(super) fn repeats(ground: &Ground<'_>) -> Result<(), LabError> {
    let client = ground.client();
    for server in [ground.near(), ground.far()] {
        let discard = Server::start(server, Serve::Discard, port(21))?;
        for to in [server.socket(port(21)), Ground::v6(server, port(21))?] {
            let datagrams = Datagrams::new(to, ground.size.some(), 100);
            Datagrams { times: 5, ..datagrams }.run_on(client)?;
        }
        drop(discard);
        let lossy = Bulk::new(server.socket(port(21)), ground.size.bulk_bytes / 4);
        let _bulk = Server::start(server, Serve::Bulk, port(21))?;
        Bulk { bits_per_second: Some(BULK_RATE / 4), ..lossy }.run_on(client)?;
    }
    Ok(())
}

/// Row 27.
pub(super) fn bulk(ground: &Ground<'_>) -> Result<(), LabError> {
    let client = ground.client();
    for server in [ground.near(), ground.far()] {
        let _bulk = Server::start(server, Serve::Bulk, port(27))?;
        let mut to: Vec<SocketAddr> = vec![server.socket(port(27))];
        to.push(Ground::v6(server, port(27))?);
        for to in to {
            let bulk = Bulk::new(to, ground.size.bulk_bytes);
            Bulk { bits_per_second: Some(BULK_RATE), ..bulk }.run_on(client)?;
        }
    }
    Ok(())
}

/// A capture file of Ethernet frames, for tcpreplay.
pub(super) fn write_pcap(file: &std::path::Path, frames: &[Vec<u8>]) -> Result<(), LabError> {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 1] {
        bytes.extend(word.to_le_bytes());
    }
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap_or(0);
        for word in [0, 0, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    fs::write(file, bytes).map_err(|error| LabError::file(file, error))
}
