//! Equal bytes between other ends are other packets, also for a candidate whose twin never comes.

use super::*;

const CLIENT: End = (A, 5000);
const OTHER_CLIENT: End = (B, 5000);
const SERVICE: End = (SVC, 53);
const OTHER_SERVICE: End = ("172.20.0.98", 53);
const NODE_PORT: End = (OWN, 30_080);
/// The node's address at its second uplink.
const OWN_2: &str = "10.0.3.10";
const UPLINK_2: u32 = 3;

fn say(from: End, to: End) -> Vec<u8> {
    udp(from.0, to.0, (from.1, to.1), b"the same")
}

fn two_addresses() -> Node {
    let mut view = view();
    view.links.extend([link(POD_B, Role::Pod, "veth"), link(UPLINK_2, Role::Uplink, "veth")]);
    view.own.push(OWN_2.parse().unwrap());
    view.local.push("10.0.3.10/32".parse().unwrap());
    Node::with(Classifier::new(&policy(), &view, &[]), 1 << 20)
}

/// Both packets, in either order, by one worker or two: both are reported.
fn both_are_reported(new: fn() -> Node, one: &Copy, other: &Copy) {
    for case in 0..8 {
        let (mut node, [mut first, mut second]) = (new(), [one, other].map(Clone::clone));
        if case & 1 == 1 {
            std::mem::swap(&mut first, &mut second);
        }
        first.worker = case >> 1 & 1;
        second.worker = 0;
        for copy in [&first, &second] {
            node.see(copy);
            node.pass(if case & 4 == 0 { MS / 10 } else { 25 * MS });
        }
        node.pass(10 * MS);
        node.pass(10 * MS);
        let (mut said, mut sent) = (node.end(), [&first, &second].map(|copy| name(&copy.data)));
        said.sort_unstable();
        sent.sort_unstable();
        assert_eq!(said, sent, "case {case:b}");
    }
}

#[test]
fn a_request_to_a_service_without_endpoints_beside_an_equal_datagram_of_another_flow() {
    let request = copy(0, POD, In, say(CLIENT, SERVICE));
    for other in [
        copy(0, POD_B, In, say(OTHER_CLIENT, (NET, 53))),
        copy(0, POD_B, In, say(OTHER_CLIENT, (A, 53))),
        copy(0, UPLINK, In, say((NET, 53), OTHER_CLIENT)),
        // To a service that has none either.
        copy(0, POD_B, In, say(OTHER_CLIENT, SERVICE)),
        copy(0, POD, In, say(CLIENT, OTHER_SERVICE)),
    ] {
        both_are_reported(Node::new, &request, &other);
    }
}

#[test]
fn an_answer_of_the_nodes_own_server_on_a_node_port_beside_an_equal_one() {
    let answer = copy(0, UPLINK, Out, say(NODE_PORT, (NET, 999)));
    for other in [
        copy(0, POD_B, In, say((B, 53), ("203.0.113.11", 999))),
        copy(0, UPLINK, Out, say(NODE_PORT, ("203.0.113.11", 999))),
        copy(0, UPLINK, Out, say((OWN, 30_081), (NET, 999))),
    ] {
        both_are_reported(Node::new, &answer, &other);
    }
}

#[test]
fn the_same_datagram_of_two_own_addresses_by_two_uplinks() {
    let one = copy(0, UPLINK, Out, say((OWN, 999), (NET, 53)));
    let other = copy(0, UPLINK_2, Out, say((OWN_2, 999), (NET, 53)));
    both_are_reported(two_addresses, &one, &other);
    let one = copy(0, UPLINK, In, say((NET, 53), (OWN, 999)));
    let other = copy(0, UPLINK_2, In, say((NET, 53), (OWN_2, 999)));
    both_are_reported(two_addresses, &one, &other);
}

#[test]
fn later_fragments_of_the_node_beside_equal_ones_of_a_pod_to_another_end() {
    let tail = |from: End, to: End| {
        let mut data = say(from, to);
        data[14 + 7] = 100; // the offset
        data
    };
    let own = copy(0, UPLINK, Out, tail((OWN, 999), (NET, 53)));
    let pods = copy(0, POD, In, tail((A, 999), ("203.0.113.11", 53)));
    both_are_reported(Node::new, &own, &pods);
}
