//! Each row, with each packet's copies in either order, by two workers or one.

use super::*;

const CLIENT: End = (A, 5000);
const SERVER: End = (NET, 443);
/// What the node puts in the client's place.
const NATED: End = (OWN, 40_000);
const SERVICE: End = (SVC, 80);
const BACKEND: End = (B, 8080);
const FAR_BACKEND: End = (FAR, 8080);
const NODE_PORT: End = (OWN, 30_080);

#[test]
fn rows_9_and_10_a_pod_and_the_internet_with_the_pods_address() {
    let request = |flags, seq| {
        vec![
            copy(0, POD, In, tcp(CLIENT, SERVER, flags, seq)),
            copy(1, UPLINK, Out, tcp(NATED, SERVER, flags, seq)),
        ]
    };
    let reply = |flags, seq| {
        vec![
            copy(1, UPLINK, In, tcp(SERVER, NATED, flags, seq)),
            copy(0, POD, Out, tcp(SERVER, CLIENT, flags, seq)),
        ]
    };
    exactly(
        &[request(SYN, 1), reply(SYN_ACK, 100), request(ACK, 2), reply(ACK, 101), reply(ACK, 102)],
        &[
            named(CLIENT, SERVER),
            named(CLIENT, SERVER),
            named(SERVER, CLIENT),
            named(SERVER, CLIENT),
            named(SERVER, CLIENT),
        ],
    );
}

#[test]
fn rows_9_and_10_a_ping_and_what_a_router_says_about_a_packet() {
    let echo = |kind: u8, id: u16| [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1]].concat();
    let ping = |kind, from, to, id| packet(protocol::ICMP, from, to, &echo(kind, id));
    let error = |to: &str, about: &[u8]| {
        let message = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &about[14..]].concat();
        packet(protocol::ICMP, "203.0.113.1", to, &message)
    };
    exactly(
        &[
            vec![copy(0, POD, In, ping(8, A, NET, 7)), copy(1, UPLINK, Out, ping(8, OWN, NET, 9))],
            vec![copy(1, UPLINK, In, ping(0, NET, OWN, 9)), copy(0, POD, Out, ping(0, NET, A, 7))],
            vec![
                copy(1, UPLINK, In, error(OWN, &tcp(NATED, SERVER, ACK, 5))),
                copy(0, POD, Out, error(A, &tcp(CLIENT, SERVER, ACK, 5))),
            ],
        ],
        &[format!("{A}:0 > {NET}:0"), format!("{NET}:0 > {A}:0"), format!("203.0.113.1:0 > {A}:0")],
    );
}

#[test]
fn rows_6_and_8_a_cluster_ip_with_its_pod_here() {
    let request = |flags, seq| {
        vec![
            copy(0, POD, In, tcp(CLIENT, SERVICE, flags, seq)),
            copy(1, POD_B, Out, tcp(CLIENT, BACKEND, flags, seq)),
        ]
    };
    let reply = |flags, seq| {
        vec![
            copy(1, POD_B, In, tcp(BACKEND, CLIENT, flags, seq)),
            copy(0, POD, Out, tcp(SERVICE, CLIENT, flags, seq)),
        ]
    };
    exactly(
        &[request(SYN, 1), reply(SYN_ACK, 100), request(ACK, 2), reply(ACK, 101)],
        &[
            named(CLIENT, BACKEND),
            named(CLIENT, BACKEND),
            named(BACKEND, CLIENT),
            named(BACKEND, CLIENT),
        ],
    );
}

#[test]
fn row_7_a_cluster_ip_with_its_pod_on_another_node_that_reports_the_replies() {
    let request = |flags, seq| {
        vec![
            copy(0, POD, In, tcp(CLIENT, SERVICE, flags, seq)),
            copy(1, UPLINK, Out, tcp(CLIENT, FAR_BACKEND, flags, seq)),
        ]
    };
    let reply = |flags, seq| {
        vec![
            copy(1, UPLINK, In, tcp(FAR_BACKEND, CLIENT, flags, seq)),
            copy(0, POD, Out, tcp(SERVICE, CLIENT, flags, seq)),
        ]
    };
    exactly(
        &[request(SYN, 1), reply(SYN_ACK, 100), request(ACK, 2), reply(ACK, 101)],
        &[named(CLIENT, FAR_BACKEND), named(CLIENT, FAR_BACKEND)],
    );
}

#[test]
fn row_12_a_node_port_with_its_pod_here_with_and_without_the_nodes_own_source() {
    for inner in [(NET, 443), (OWN, 41_000)] {
        let request = |flags, seq| {
            vec![
                copy(0, UPLINK, In, tcp(SERVER, NODE_PORT, flags, seq)),
                copy(1, POD_B, Out, tcp(inner, BACKEND, flags, seq)),
            ]
        };
        let reply = |flags, seq| {
            vec![
                copy(1, POD_B, In, tcp(BACKEND, inner, flags, seq)),
                copy(0, UPLINK, Out, tcp(NODE_PORT, SERVER, flags, seq)),
            ]
        };
        exactly(
            &[request(SYN, 1), reply(SYN_ACK, 100), request(ACK, 2), reply(ACK, 101)],
            &[
                named(inner, BACKEND),
                named(inner, BACKEND),
                named(BACKEND, inner),
                named(BACKEND, inner),
            ],
        );
    }
}

#[test]
fn row_12_a_node_port_with_its_pod_on_another_node() {
    // The port that the node takes for itself may lie among the NodePorts.
    for inner in [(OWN, 41_000), (OWN, 31_000)] {
        let request = |flags, seq| {
            vec![
                copy(0, UPLINK, In, tcp(SERVER, NODE_PORT, flags, seq)),
                copy(1, UPLINK, Out, tcp(inner, FAR_BACKEND, flags, seq)),
            ]
        };
        let reply = |flags, seq| {
            vec![
                copy(1, UPLINK, In, tcp(FAR_BACKEND, inner, flags, seq)),
                copy(0, UPLINK, Out, tcp(NODE_PORT, SERVER, flags, seq)),
            ]
        };
        exactly(
            &[request(SYN, 1), reply(SYN_ACK, 100), request(ACK, 2), reply(ACK, 101)],
            &[named(inner, FAR_BACKEND), named(inner, FAR_BACKEND)],
        );
    }
}

/// Found by the thirty rows: nothing in UDP says who opens.
#[test]
fn row_12_datagrams_for_whose_client_the_node_takes_a_port_among_the_node_ports() {
    let datagram =
        |from: End, to: End, text: &str| udp(from.0, to.0, (from.1, to.1), text.as_bytes());
    let inner = (OWN, 31_000);
    let request = |text: &str| {
        vec![
            copy(0, UPLINK, In, datagram(SERVER, NODE_PORT, text)),
            copy(1, POD_B, Out, datagram(inner, BACKEND, text)),
        ]
    };
    let reply = |text: &str| {
        vec![
            copy(1, POD_B, In, datagram(BACKEND, inner, text)),
            copy(0, UPLINK, Out, datagram(NODE_PORT, SERVER, text)),
        ]
    };
    let expected = [
        named(inner, BACKEND),
        named(inner, BACKEND),
        named(BACKEND, inner),
        named(BACKEND, inner),
    ];
    exactly(&[request("a"), reply("b"), request("c"), reply("d")], &expected);
}

#[test]
fn a_hairpin_through_a_service_to_the_same_pod() {
    let (inner, itself) = ((OWN, 40_500), (A, 8080));
    exactly(
        &[
            vec![
                copy(0, POD, In, tcp(CLIENT, SERVICE, SYN, 1)),
                copy(1, POD, Out, tcp(inner, itself, SYN, 1)),
            ],
            vec![
                copy(1, POD, In, tcp(itself, inner, SYN_ACK, 9)),
                copy(0, POD, Out, tcp(SERVICE, CLIENT, SYN_ACK, 9)),
            ],
        ],
        &[named(inner, itself), named(itself, inner)],
    );
}

#[test]
fn rows_13_and_29_between_a_pod_and_its_own_node_there_is_one_copy_and_no_wait() {
    let mut node = Node::new();
    let kubelet = (OWN, 45_000);
    for (data, direction) in [
        (tcp(kubelet, CLIENT, SYN, 1), Out),
        (tcp(CLIENT, kubelet, SYN_ACK, 2), In),
        (tcp(CLIENT, (OWN, 10_250), ACK, 3), In),
        (tcp((OWN, 10_250), CLIENT, ACK, 4), Out),
        // Row 15: a service address that is the node's own.
        (tcp(CLIENT, ("172.20.0.10", 53), ACK, 5), In),
        (tcp(("172.20.0.10", 53), CLIENT, ACK, 6), Out),
    ] {
        assert_eq!(node.see(&copy(0, POD, direction, data)), Verdict::Report);
    }
    assert_eq!(node.end().len(), 6);
}

#[test]
fn rows_24_and_28_a_server_of_the_nodes_own() {
    let server = (OWN, 443);
    for client in [(NET, 50_000), ("10.0.200.5", 50_000)] {
        exactly(
            &[
                vec![copy(0, UPLINK, In, tcp(client, server, SYN, 1))],
                vec![copy(0, UPLINK, Out, tcp(server, client, SYN_ACK, 2))],
                vec![copy(0, UPLINK, In, tcp(client, server, ACK, 3))],
            ],
            &[named(client, server), named(server, client), named(client, server)],
        );
    }
    // A pod of another tapped node asks: its node reports the request, this one the reply.
    let client = (FAR, 50_000);
    exactly(
        &[
            vec![copy(0, UPLINK, In, tcp(client, server, SYN, 1))],
            vec![copy(0, UPLINK, Out, tcp(server, client, SYN_ACK, 2))],
        ],
        &[named(server, client)],
    );
}

#[test]
fn row_30_stacked_and_secondary_uplinks_are_points_of_one_packet() {
    let server = (OWN, 443);
    exactly(
        &[
            vec![
                copy(0, UPLINK, In, tcp(SERVER, server, SYN, 1)),
                copy(1, 3, In, tcp(SERVER, server, SYN, 1)),
            ],
            vec![
                copy(1, 3, Out, tcp(server, SERVER, SYN_ACK, 2)),
                copy(0, UPLINK, Out, tcp(server, SERVER, SYN_ACK, 2)),
            ],
            // And of one that the node has put its address in.
            vec![
                copy(0, POD, In, tcp(CLIENT, SERVER, SYN, 3)),
                copy(1, 3, Out, tcp(NATED, SERVER, SYN, 3)),
                copy(1, UPLINK, Out, tcp(NATED, SERVER, SYN, 3)),
            ],
        ],
        &[named(SERVER, server), named(server, SERVER), named(CLIENT, SERVER)],
    );
}

#[test]
fn row_18_fragments_through_a_translation_and_through_a_service() {
    let fragment = |from: &str, to: &str, first: bool, ports: (u16, u16)| {
        let mut data = udp(from, to, ports, &[7; 24]);
        if !first {
            data = packet(protocol::UDP, from, to, &[9; 32]);
        }
        let flags: u16 = if first { 0x2000 } else { 4 };
        data[14 + 6..14 + 8].copy_from_slice(&flags.to_be_bytes());
        data
    };
    for first in [true, false] {
        exactly(
            &[
                vec![
                    copy(0, POD, In, fragment(A, NET, first, (5000, 53))),
                    copy(1, UPLINK, Out, fragment(OWN, NET, first, (40_000, 53))),
                ],
                vec![
                    copy(0, UPLINK, In, fragment(NET, OWN, first, (53, 40_000))),
                    copy(1, POD, Out, fragment(NET, A, first, (53, 5000))),
                ],
            ],
            &[
                name(&fragment(A, NET, first, (5000, 53))),
                name(&fragment(NET, A, first, (53, 5000))),
            ],
        );
    }
    // A reply that another node reports: the tail belongs to the flow of the first fragment.
    exactly(
        &[
            vec![
                copy(0, POD, In, udp(A, SVC, (5000, 53), b"ask")),
                copy(0, UPLINK, Out, udp(A, FAR, (5000, 53), b"ask")),
            ],
            vec![copy(0, POD, Out, fragment(SVC, A, true, (53, 5000)))],
            vec![copy(0, POD, Out, fragment(SVC, A, false, (53, 5000)))],
        ],
        &[named((A, 5000), (FAR, 53))],
    );
}

#[test]
fn the_same_query_to_a_multicast_group_on_two_links_is_two_packets() {
    let query = |from| udp(from, "224.0.0.251", (5353, 5353), b"who is it?");
    let mut node = Node::new();
    assert_eq!(node.see(&copy(0, UPLINK, Out, query(OWN))), Verdict::Report);
    let other_own = "172.20.0.10";
    assert_eq!(node.see(&copy(0, 3, Out, query(other_own))), Verdict::Report);
    assert_eq!(node.end().len(), 2);
}
