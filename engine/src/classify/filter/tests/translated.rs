//! Packets whose ends a node replaces: what their twins are to the kernel's part.

use super::*;

impl Stream {
    /// Between a pod and a service, its backend in another pod or outside.
    pub(super) fn travel_by_service(&mut self, packet: &Packet) {
        use Direction::{In, Out};
        let is_request = packet.destination.0 == 5;
        let pod = if is_request { packet.source.0 } else { packet.destination.0 };
        let is_inside = packet.id.is_multiple_of(2);
        let backend = if is_inside { 1 - pod } else { 3 };
        let (near, far) = ([POD, POD_2][pod], [POD_2, POD][pod]);
        let mut beyond = packet.clone();
        let port = packet.translated_port();
        let is_masqueraded = packet.id & 4 == 0;
        let (service, client) = match is_request {
            true => (&mut beyond.destination, &mut beyond.source),
            false => (&mut beyond.source, &mut beyond.destination),
        };
        *service = (backend, port);
        if is_masqueraded {
            *client = (2, port);
        }
        if matches!(packet.protocol, 1 | 58) {
            beyond.source.1 = packet.source.1;
        }
        let (beyond_at, direction) = match (is_inside, is_request) {
            (true, true) => (far, Out),
            (true, false) => (far, In),
            (false, true) => (UPLINK, Out),
            (false, false) => (UPLINK, In),
        };
        if is_request {
            self.copy(packet, near, In);
            // A policy may drop it, or there may be no backend.
            if !self.random.one_in(6) {
                self.copy(&beyond, beyond_at, direction);
            }
        } else {
            self.copy(&beyond, beyond_at, direction);
            self.copy(packet, near, Out);
        }
    }
}

fn packet(source: (usize, u16), destination: (usize, u16), id: u16) -> Packet {
    Packet {
        is_v6: false,
        protocol: 17,
        source,
        destination,
        fragment: 0,
        id,
        flags: 0,
        options: false,
        payload: vec![1; 100],
    }
}

/// What one sensor gets of a stream with its filter in the kernel.
fn pushed(expression: &str, frames: &[OwnedFrame]) -> Option<usize> {
    let filter = [compiled(expression, true)?];
    let node = node(false, Election::Source);
    check(&node, &filter, frames);
    let socket = node.filter_for(&filter).unwrap_or_else(|| node.filter(&[]));
    Some(delivered(&node, &socket, &filter, frames).0[0].len())
}

#[test]
fn who_asks_for_a_services_or_the_nodes_address_gets_no_copy_that_has_a_twin() {
    use Direction::{In, Out};
    let (pod, other, own, outside, service) = (0, 1, 2, 4, 5);
    let request = packet((pod, 1024), (service, 53), 1);
    // The twin has another destination, both ends otherwise, or the node's as source.
    for twin in [packet((pod, 1024), (other, 8080), 1), packet((own, 443), (other, 8080), 1)] {
        for order in [[0, 1], [1, 0]] {
            let mut stream = Stream { random: Random(1), has_vlan: false, frames: Vec::new() };
            for which in order {
                match which {
                    0 => stream.copy(&request, POD, In),
                    _ => stream.copy(&twin, POD_2, Out),
                }
            }
            for expression in ["host 172.20.0.10", "port 53", "udp and net 172.20.0.0/16"] {
                let Some(got) = pushed(expression, &stream.frames) else { return };
                assert_eq!(got, 0, "{expression} {order:?}: the pods' copy is the report");
            }
        }
    }
    let (sent, left) =
        (packet((pod, 1024), (outside, 53), 1), packet((own, 443), (outside, 53), 1));
    let mut stream = Stream { random: Random(1), has_vlan: false, frames: Vec::new() };
    stream.copy(&sent, POD, In);
    stream.copy(&left, UPLINK, Out);
    for (expression, expected) in
        [("host 10.0.1.10", 0), ("src port 443", 0), ("host 10.0.1.101", 1), ("host 8.8.8.8", 1)]
    {
        let Some(got) = pushed(expression, &stream.frames) else { return };
        assert_eq!(got, expected, "{expression}");
    }
    // Without a backend there is nothing else to report.
    stream.frames.clear();
    stream.copy(&request, POD, In);
    let Some(got) = pushed("host 172.20.0.10", &stream.frames) else { return };
    assert_eq!(got, 1);
}

#[test]
fn where_candidates_wait_protocols_are_the_kernels_to_tell() {
    let frames = Stream::random(3, 3000, false);
    for expression in [
        "arp",
        "ip",
        "ip6",
        "tcp",
        "udp",
        "icmp",
        "sctp",
        "ip proto 47",
        "ip and udp",
        "tcp port 80",
        "udp port 53",
        "host 10.0.1.101 and tcp and not port 22",
        "tcp[tcpflags] & tcp-syn != 0",
    ] {
        let Some(filter) = compiled(expression, true) else { return };
        let kept_away = check(&node(false, Election::Source), &[filter], &frames);
        assert!(kept_away >= 10, "{expression}: only {kept_away} % kept away");
    }
}

#[test]
fn an_icmp_error_passes_for_who_wants_the_packets_that_it_is_about() {
    let Some(tcp) = compiled("tcp", true) else { return };
    let combined = node(false, Election::Source).filter_for(&[tcp]).unwrap();
    for (is_v6, protocol) in [(false, 1), (true, 58)] {
        for is_error in [true, false] {
            let mut stream = Stream { random: Random(1), has_vlan: false, frames: Vec::new() };
            let mut icmp = packet((0, 7), (4, 7), 1);
            (icmp.is_v6, icmp.protocol, icmp.flags) =
                (is_v6, protocol, if is_error { 2 } else { 0 });
            stream.copy(&icmp, POD, Direction::In);
            let passes = combined.run_in_kernel(&stream.frames[0].as_frame()) != 0;
            assert_eq!(passes, is_error, "IPv6: {is_v6}");
        }
    }
}
