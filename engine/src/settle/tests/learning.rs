//! What is learned of flows, and what is not.

use super::*;
use crate::session::flow::Flows;

const CLIENT: End = (A, 5000);
const SERVICE: End = (SVC, 80);
const BACKEND: End = (B, 8080);
const FAR_BACKEND: End = (FAR, 8080);
const SERVER: End = (NET, 443);
const NATED: End = (OWN, 40_000);
const NODE_PORT: End = (OWN, 30_080);

fn out(flags: u8, seq: u32) -> Copy {
    copy(0, UPLINK, Out, tcp(NATED, SERVER, flags, seq))
}

fn back(flags: u8, seq: u32) -> Copy {
    copy(0, UPLINK, In, tcp(SERVER, NATED, flags, seq))
}

#[test]
fn the_nodes_own_flow_waits_once_then_goes_at_once_in_order() {
    let mut node = Node::new();
    assert_eq!(node.see(&out(SYN, 0)), Verdict::Hold);
    let other = copy(0, UPLINK, Out, tcp((OWN, 40_001), SERVER, SYN, 7));
    for seq in 1..6 {
        node.pass(MS);
        assert_eq!(
            node.see(&if seq % 2 == 0 { out(ACK, seq) } else { back(ACK, seq) }),
            Verdict::Hold
        );
        node.see(&other);
    }
    node.pass(5 * MS);
    let seqs = |node: &Node| -> Vec<u32> {
        let seq = |frame: &OwnedFrame| crate::wire::be32(&frame.data, 38).unwrap();
        node.reports.iter().map(seq).collect()
    };
    assert_eq!(seqs(&node), [0, 1, 2, 3, 4, 5], "all of the flow, at the first one's time");
    for seq in 6..9 {
        assert_eq!(node.see(&back(ACK, seq)), Verdict::Report);
    }
    assert_eq!(node.held(), 5, "the other flow's wait for theirs");
    node.end();
    assert_eq!(seqs(&node), [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 7, 7, 7, 7]);
}

#[test]
fn a_new_connection_with_the_same_ports_is_unknown_again() {
    let mut node = Node::new();
    node.see(&out(SYN, 1));
    node.pass(10 * MS);
    assert_eq!(node.see(&out(ACK, 2)), Verdict::Report);
    // A SYN that is sent again waits again, which costs nothing but the time.
    assert_eq!(node.see(&out(SYN, 1)), Verdict::Hold);
    node.pass(10 * MS);
    assert_eq!(node.see(&out(ACK, 3)), Verdict::Report);
    // Then a pod's, whose copy at the uplink is seen first.
    assert_eq!(node.see(&out(SYN, 50)), Verdict::Hold);
    node.see(&copy(1, POD, In, tcp(CLIENT, SERVER, SYN, 50)));
    node.pass(MS);
    assert_eq!(node.dropped(DropReason::Translated), 1);
    assert_eq!(node.see(&back(SYN_ACK, 60)), Verdict::Hold);
}

#[test]
fn what_icmp_says_about_a_packet_belongs_to_the_packets_flow() {
    let error = |seq| {
        let message = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &tcp(NATED, SERVER, ACK, seq)[14..]];
        let data = packet(protocol::ICMP, "203.0.113.1", OWN, &message.concat());
        copy(0, UPLINK, In, data)
    };
    let mut node = Node::new();
    assert_eq!(node.see(&error(1)), Verdict::Hold, "nothing is known of the flow");
    node.pass(10 * MS);
    node.see(&out(SYN, 1));
    node.pass(10 * MS);
    assert_eq!(node.see(&error(2)), Verdict::Report, "the flow is the node's own");
    node.see(&copy(1, POD, In, tcp(CLIENT, SERVER, ACK, 3)));
    node.see(&out(ACK, 3));
    assert_eq!(node.see(&error(4)), Verdict::Hold, "it is a pod's");
}

#[test]
fn a_flow_that_finds_a_twin_is_translated_from_then_on() {
    let mut node = Node::new();
    node.see(&out(ACK, 1));
    node.pass(10 * MS);
    assert_eq!(node.see(&back(ACK, 2)), Verdict::Report);
    node.see(&copy(1, POD, In, tcp(CLIENT, SERVER, ACK, 3)));
    assert_eq!(node.see(&out(ACK, 3)), Verdict::Drop(DropReason::Translated));
    assert_eq!(node.see(&back(ACK, 4)), Verdict::Hold, "its twin is to come");
    // The twin comes before a minute is over; then it is doubted, and the flow is the node's.
    node.pass(10 * MS);
    assert_eq!(node.see(&back(ACK, 5)), Verdict::Hold, "one that had none teaches nothing");
    node.pass(10 * MS);
    node.pass(61_000 * MS);
    assert_eq!(node.see(&back(ACK, 6)), Verdict::Hold);
    node.pass(10 * MS);
    assert_eq!(node.see(&back(ACK, 7)), Verdict::Report);
}

#[test]
fn what_conntrack_does_not_pass_on_is_reported_late_but_not_lost() {
    let mut node = Node::new();
    for seq in 0..40 {
        node.see(&copy(1, POD, In, tcp(CLIENT, SERVER, ACK, seq)));
        assert_eq!(node.see(&out(ACK, seq)), Verdict::Drop(DropReason::Translated));
        // INVALID: it ends at the node.
        assert_eq!(node.see(&back(ACK, 1000 + seq)), Verdict::Hold);
        node.pass(10 * MS);
    }
    assert_eq!(node.end().len(), 80);
    assert_eq!(node.untwinned(), 40);
}

#[test]
fn an_answer_without_twin_is_another_nodes_only_where_none_was_this_ones() {
    let ask = |node: &mut Node, to: End, seq: u32| {
        let ifindex = if to == BACKEND { POD_B } else { UPLINK };
        node.see(&copy(1, ifindex, Out, tcp(CLIENT, to, ACK, seq)));
        node.see(&copy(0, POD, In, tcp(CLIENT, SERVICE, ACK, seq)))
    };
    let answer = |seq| copy(0, POD, Out, tcp(SERVICE, CLIENT, ACK, seq));
    let mut node = Node::new();
    assert_eq!(node.see(&answer(1)), Verdict::Hold, "of a flow that nobody asked in");
    node.pass(20 * MS);
    assert_eq!(node.reports.len(), 1);
    assert_eq!(ask(&mut node, FAR_BACKEND, 2), Verdict::Drop(DropReason::Service));
    assert_eq!(node.see(&answer(3)), Verdict::Drop(DropReason::Service));
    // The backend is here: the answer's twin was seen, or will be.
    node.see(&copy(1, POD_B, In, tcp(BACKEND, CLIENT, ACK, 4)));
    assert_eq!(node.see(&answer(4)), Verdict::Drop(DropReason::Service));
    assert_eq!(node.see(&answer(5)), Verdict::Hold);
    assert_eq!(ask(&mut node, BACKEND, 6), Verdict::Drop(DropReason::Service));
    assert_eq!(node.see(&answer(7)), Verdict::Hold, "a request's twin changes nothing in that");
    node.see(&copy(1, POD_B, In, tcp(BACKEND, CLIENT, ACK, 5)));
    node.pass(20 * MS);
    assert_eq!(node.dropped(DropReason::Service), 5);
    assert_eq!(node.said().last(), Some(&named(SERVICE, CLIENT)), "7 had none");
    assert_eq!(node.see(&answer(8)), Verdict::Hold, "the ring may have lost the others' twins");
    // A new connection begins without what was known of the last one.
    node.see(&copy(0, POD, In, tcp(CLIENT, SERVICE, SYN, 90)));
    assert_eq!(node.see(&answer(91)), Verdict::Hold);
}

#[test]
fn a_request_without_twin_says_that_its_answers_may_be_this_nodes() {
    let mut node = Node::new();
    let request = |id| copy(0, POD, In, udp(A, SVC, (5000, 53), &[id]));
    let answer = |id| copy(0, POD, Out, udp(SVC, A, (53, 5000), &[id]));
    // A backend on another tapped node, which reports the answers.
    node.see(&copy(1, UPLINK, Out, udp(A, FAR, (5000, 53), &[1])));
    assert_eq!(node.see(&request(1)), Verdict::Drop(DropReason::Service));
    assert_eq!(node.see(&answer(2)), Verdict::Drop(DropReason::Service));
    // Then a server of this node's own: there are no other copies.
    for id in [3, 5, 7] {
        node.pass(50 * MS);
        assert_eq!(node.see(&request(id)), Verdict::Hold);
        node.pass(25 * MS);
        assert_eq!(node.see(&answer(id + 1)), Verdict::Hold, "{id}");
    }
    assert_eq!(node.end().len(), 1 + 6);
}

#[test]
fn a_first_answer_waits_for_the_request_to_be_proven_or_not() {
    for has_twin in [true, false] {
        let mut node = Node::new();
        node.see(&copy(0, POD, In, tcp(CLIENT, SERVICE, SYN, 1)));
        node.pass(MS);
        assert_eq!(node.see(&copy(0, POD, Out, tcp(SERVICE, CLIENT, SYN_ACK, 2))), Verdict::Hold);
        node.pass(18 * MS);
        assert_eq!(node.held(), 2, "the answer waits as long as the request");
        if has_twin {
            node.see(&copy(1, UPLINK, Out, tcp(CLIENT, FAR_BACKEND, SYN, 1)));
        }
        node.pass(2 * MS);
        let expected = if has_twin { 1 } else { 2 };
        assert_eq!(node.end().len(), expected, "twin: {has_twin}");
    }
}

#[test]
fn a_port_of_the_node_port_range_that_opens_a_connection_is_no_service() {
    let (own, server) = ((OWN, 31_000), (NET, 443));
    let mut node = Node::new();
    node.see(&copy(0, UPLINK, Out, tcp(own, server, SYN, 1)));
    node.pass(10 * MS);
    assert_eq!(node.said(), [named(own, server)], "after half the time, as the node's own");
    assert_eq!(node.see(&copy(0, UPLINK, In, tcp(server, own, SYN_ACK, 2))), Verdict::Report);
    // Where it speaks to a pod of its own, there is no other copy, and no wait.
    assert_eq!(node.see(&copy(0, POD, Out, tcp(own, CLIENT, SYN, 3))), Verdict::Report);
    assert_eq!(node.see(&copy(0, POD, In, tcp(CLIENT, own, SYN_ACK, 4))), Verdict::Report);
    // A client that opens one to it asks a NodePort.
    assert_eq!(node.see(&copy(0, POD, In, tcp(CLIENT, NODE_PORT, SYN, 5))), Verdict::Hold);
    assert_eq!(node.see(&copy(0, POD, In, tcp(CLIENT, own, SYN, 6))), Verdict::Hold);
    node.see(&copy(1, POD_B, Out, tcp((OWN, 42_000), BACKEND, SYN, 6)));
    node.pass(20 * MS);
    assert_eq!(node.dropped(DropReason::Service), 1);
}

#[test]
fn both_directions_of_a_translated_flow_go_to_one_of_several_sensors() {
    let mut node = Node::new();
    for seq in 0..4 {
        node.see(&copy(0, POD, In, tcp(CLIENT, SERVER, ACK, seq)));
        node.see(&copy(1, UPLINK, Out, tcp(NATED, SERVER, ACK, seq)));
        node.see(&copy(1, UPLINK, In, tcp(SERVER, NATED, ACK, 100 + seq)));
        node.see(&copy(0, POD, Out, tcp(SERVER, CLIENT, ACK, 100 + seq)));
    }
    node.end();
    let mut flows = Flows::default();
    let mut named: Vec<u64> = node
        .reports
        .iter()
        .map(|frame| flows.of(&frame.data, &Headers::parse(&frame.data)))
        .collect();
    assert_eq!(named.len(), 8);
    named.dedup();
    assert_eq!(named.len(), 1, "each by the pod's address, so one sensor gets them all");
}

#[test]
fn a_flood_of_new_flows_makes_known_ones_unknown_and_loses_nothing() {
    let mut node = Node::with(classifier(), 8 << 10);
    node.see(&out(ACK, 1));
    node.pass(10 * MS);
    assert_eq!(node.see(&out(ACK, 2)), Verdict::Report);
    for port in 1..3000 {
        node.see(&copy(0, UPLINK, In, tcp((NET, port), (OWN, 443), SYN, u32::from(port))));
        if port % 50 == 0 {
            node.pass(10 * MS);
        }
    }
    node.pass(10 * MS);
    assert_eq!(node.see(&out(ACK, 3)), Verdict::Hold);
    assert_eq!(node.end().len(), 3002);
}
