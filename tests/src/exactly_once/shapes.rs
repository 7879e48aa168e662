//! Rows 18, 19, 21, 27: packets in parts, frames without IP, repeats, super-frames.

use super::{Ground, rows::port};
use crate::{
    compare,
    lab::{Host, LabError, Pod, Protocol},
    traffic::{Bulk, Datagrams, Serve, Server, tcpreplay},
};
use std::{fs, net::TcpStream};

/// Bits a second of bulk TCP: servers, taps, captures and sensors share the machine's cores.
const BULK_RATE: u64 = 200_000_000;
/// Frames a second of what is replayed.
const REPLAY_RATE: u32 = 5000;
/// Frames a second: as fast as it goes.
const AT_ONCE: u32 = 10_000_000;

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

/// Row 21: TCP sent again, datagrams of the same bytes (over IPv6, and IPv4 with ID 0, as fast as
/// it goes), resets without a socket.
pub(super) fn repeats(ground: &Ground<'_>) -> Result<(), LabError> {
    let (client, some) = (ground.client(), ground.size.some());
    for server in [ground.near(), ground.far()] {
        let discard = Server::start(server, Serve::Discard, port(21))?;
        for to in [server.socket(port(21)), Ground::v6(server, port(21))?] {
            Datagrams { times: 5, ..Datagrams::new(to, some, 100) }.run_on(client)?;
        }
        let identical =
            vec![datagram_without_id(client, server)?; 5 * usize::try_from(some).unwrap_or(0)];
        let file = ground.directory.join("identical.pcap");
        write_pcap(&file, &identical)?;
        tcpreplay(client, "eth0", &file, AT_ONCE)?;
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

/// A UDP datagram with IP ID 0 (and no checksum, as IPv4 allows).
fn datagram_without_id(client: &Pod, server: &Pod) -> Result<Vec<u8>, LabError> {
    let mut packet = vec![0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(client.v4().octets());
    packet.extend(server.v4().octets());
    for word in [40021, port(21), 28, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.resize(48, 7);
    let mut frame = Vec::new();
    let mac = client.mac("eth0")?;
    for mac in [client.neighbour_mac().unwrap_or_default(), &mac] {
        frame.extend(super::truth::parse_mac(mac));
    }
    frame.extend([8, 0]);
    frame.extend(compare::with_checksums(packet));
    Ok(frame)
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
