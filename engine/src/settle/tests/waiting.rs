//! What waits, for how long, and in what memory.

use super::*;
use crate::frame::{Offload, VlanTag};
use crate::net::Role;

const CLIENT: End = (A, 5000);
const SERVICE: End = (SVC, 80);
const SERVER: End = (NET, 443);
const NATED: End = (OWN, 40_000);

fn request(seq: u32) -> Copy {
    copy(0, POD, In, tcp(CLIENT, SERVICE, ACK, seq))
}

fn reply(seq: u32) -> Copy {
    copy(0, UPLINK, In, tcp(SERVER, NATED, ACK, seq))
}

#[test]
fn a_service_copy_without_a_twin_is_reported_after_the_settle_time_and_counted() {
    let mut node = Node::new();
    assert_eq!(node.see(&request(1)), Verdict::Hold);
    assert_eq!(node.workers[0].next_deadline_ns(), Some(node.now_ns + 20 * MS));
    node.pass(20 * MS - 1);
    assert_eq!((node.reports.len(), node.held()), (0, 1));
    node.pass(1);
    assert_eq!(node.said(), [named(CLIENT, SERVICE)]);
    assert_eq!((node.held(), node.untwinned()), (0, 1));
    assert_eq!(node.workers[0].next_deadline_ns(), None);
}

#[test]
fn a_copy_at_an_uplink_waits_half_as_long() {
    let mut node = Node::new();
    assert_eq!(node.see(&reply(1)), Verdict::Hold);
    node.pass(10 * MS - 1);
    assert_eq!(node.held(), 1);
    node.pass(1);
    assert_eq!(node.said(), [named(SERVER, NATED)]);
}

#[test]
fn a_rejected_request_and_the_reset_that_answers_it_are_both_reported() {
    let mut node = Node::new();
    let rst = tcp(SERVICE, CLIENT, RST | 0x10, 9);
    for attempt in 0..3 {
        node.see(&copy(0, POD, In, tcp(CLIENT, SERVICE, SYN, attempt)));
        node.see(&copy(0, POD, Out, rst.clone()));
        node.pass(30 * MS);
    }
    assert_eq!(node.reports.len(), 6);
    assert_eq!(node.end().len(), 6);
    // A bridge and its port see each of them; no more is reported for that, and nothing is learned.
    let mut node = Node::new();
    for ifindex in [POD, POD_B] {
        node.see(&copy(0, ifindex, In, tcp(CLIENT, SERVICE, SYN, 1)));
    }
    node.pass(30 * MS);
    for ifindex in [POD_B, POD] {
        node.see(&copy(0, ifindex, Out, rst.clone()));
    }
    assert_eq!(node.end(), [named(CLIENT, SERVICE), named(SERVICE, CLIENT)]);
    assert_eq!(node.dropped(DropReason::Duplicate), 2);
}

#[test]
fn an_icmp_error_about_a_request_is_the_nodes_own_and_reported() {
    let mut node = Node::new();
    let ask = udp(A, SVC, (5000, 53), b"ask");
    let refusal = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &ask[14..]].concat();
    let refusal = packet(protocol::ICMP, OWN, A, &refusal);
    node.see(&copy(0, POD, In, ask));
    assert_eq!(node.see(&copy(0, POD, Out, refusal)), Verdict::Report);
    assert_eq!(node.end().len(), 2);
    // Of a request that went to a pod, the error comes back with the service's address.
    let mut node = Node::new();
    let (before, after) = (udp(A, SVC, (5000, 53), b"ask"), udp(A, B, (5000, 5353), b"ask"));
    let error = |from: &str, about: &[u8]| {
        let message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &about[14..]].concat();
        packet(protocol::ICMP, from, A, &message)
    };
    let (inner, outer) = (error(B, &after), error(SVC, &before));
    node.see(&copy(0, POD, In, before));
    node.see(&copy(1, POD_B, Out, after));
    node.pass(MS);
    assert_eq!(node.see(&copy(1, POD_B, In, inner)), Verdict::Report);
    assert_eq!(node.see(&copy(0, POD, Out, outer)), Verdict::Drop(DropReason::Service));
    assert_eq!(node.end().len(), 2);
}

#[test]
fn an_error_that_the_node_makes_in_the_services_name_is_reported_though_its_flow_is_proven() {
    let mut node = Node::new();
    node.see(&copy(0, UPLINK, Out, tcp(CLIENT, (FAR, 8080), ACK, 1)));
    assert_eq!(node.see(&request(1)), Verdict::Drop(DropReason::Service));
    let about = tcp(CLIENT, SERVICE, ACK, 2);
    let message = [&[3, 4, 0, 0, 0, 0, 0, 0][..], &about[14..]].concat();
    let error = packet(protocol::ICMP, SVC, A, &message);
    assert_eq!(node.see(&copy(0, POD, Out, error)), Verdict::Hold);
    node.pass(20 * MS);
    assert_eq!(node.reports.len(), 2);
}

#[test]
fn what_waited_is_reported_with_every_byte_tag_and_checksum_of_an_immediate_report() {
    let data = tcp(CLIENT, SERVICE, ACK, 1);
    let frame = Frame {
        timestamp_ns: 123,
        wire_len: 1400,
        vlan: Some(VlanTag { tpid: 0x8100, tci: 7 }),
        offload: Offload { partial_checksum: Some((34, 16)), ..Offload::default() },
        ..at(&data, POD, In)
    };
    let whole = Frame { wire_len: u32::try_from(data.len()).unwrap(), ..frame };
    for frame in [frame, whole] {
        let mut node = Node::new();
        let mut held = Vec::new();
        node.workers[0].admit(&classifier(), &frame, 5, |_, _, verdict| {
            assert_eq!(verdict, Verdict::Hold);
        });
        node.workers[0].settle_all(|packet, headers, verdict| {
            assert_eq!((verdict, *headers), (Verdict::Report, Headers::parse(&data)));
            held.push(OwnedFrame::from(*packet));
        });
        assert_eq!(held, [OwnedFrame::from(frame)]);
        let wire = |frame: &Frame<'_>| {
            let wire = frame.wire(1000);
            (wire.to_vec(), wire.wire_len(), wire.timestamp_ns())
        };
        assert_eq!(wire(&held[0].as_frame()), wire(&frame));
    }
}

#[test]
fn segments_of_a_super_frame_wait_each_for_its_own_twin() {
    let mut node = Node::new();
    let long = |to: End| {
        let mut data = tcp(CLIENT, to, ACK, 1);
        data.extend([7; 2500]);
        let total = u16::try_from(data.len() - 14).unwrap();
        data[16..18].copy_from_slice(&total.to_be_bytes());
        data
    };
    let (before, after) = (long(SERVICE), long((B, 8080)));
    let offload = Offload { gso_size: 1000, gso_type: 1, ..Offload::default() };
    let (mut said, c) = (Vec::new(), classifier());
    let frame = Frame { offload, ..at(&before, POD, In) };
    node.workers[0].admit(&c, &frame, 0, |_, _, verdict| said.push(verdict));
    assert_eq!((said.as_slice(), node.held()), (&[Verdict::Hold; 3][..], 3));
    let frame = Frame { offload, ..at(&after, POD_B, Out) };
    node.workers[1].admit(&c, &frame, 0, |_, _, verdict| said.push(verdict));
    assert_eq!(said[3..], [Verdict::Report; 3]);
    node.workers[0].settle(1, |_, _, verdict| {
        assert_eq!(verdict, Verdict::Drop(DropReason::Service));
    });
    assert_eq!((node.held(), node.workers[0].notes.cut), (0, 2));
}

#[test]
fn without_memory_nothing_waits_and_nothing_is_lost() {
    // One packet fits into each queue, at most.
    let mut node = Node::with(classifier(), 1024);
    let mut held = 0;
    for seq in 0..50 {
        held += u64::from(node.see(&request(seq)) == Verdict::Hold);
        held += u64::from(node.see(&reply(seq)) == Verdict::Hold);
    }
    assert!(held < 20, "{held}");
    let full = node.workers[0].notes.settle_full;
    assert_eq!(full + held, 100);
    assert_eq!(node.end().len(), 100, "a doubt costs a duplicate");
}

#[test]
fn without_memory_a_translation_is_believed_and_a_services_packet_reported() {
    let mut node = Node::with(classifier(), 1024);
    node.see(&copy(0, POD, In, tcp(CLIENT, SERVER, ACK, 1)));
    node.see(&copy(0, UPLINK, Out, tcp(NATED, SERVER, ACK, 1)));
    node.see(&copy(1, POD_B, Out, tcp(CLIENT, (B, 8080), ACK, 1)));
    node.see(&request(1));
    let reported = node.reports.len();
    let mut said = Vec::new();
    for seq in 2..40 {
        said.push(node.see(&reply(seq)));
        said.push(node.see(&request(seq)));
    }
    assert!(node.reports.len() > reported + 20, "requests whose twins nobody saw");
    assert!(said.contains(&Verdict::Drop(DropReason::Translated)));
    assert!(!said.contains(&Verdict::Drop(DropReason::Service)));
}

#[test]
fn a_capture_of_all_nodes_or_of_none_waits_for_nothing() {
    let policy = Policy { election: crate::classify::Election::None, ..policy() };
    let mut node = Node::with(classifier_of(&policy), 1 << 20);
    assert_eq!(node.see(&request(1)), Verdict::Report);
    assert_eq!(node.see(&reply(1)), Verdict::Report);
    assert_eq!(
        node.see(&copy(0, POD, Out, tcp(SERVER, CLIENT, ACK, 1))),
        Verdict::Report,
        "the node's address is reported, and its twin's too: nobody is elected",
    );
    assert_eq!(node.see(&copy(0, POD, In, tcp(CLIENT, SERVER, ACK, 2))), Verdict::Report,);
    assert_eq!(
        node.see(&copy(0, UPLINK, Out, tcp(NATED, SERVER, ACK, 2))),
        Verdict::Drop(DropReason::Duplicate),
    );
    assert_eq!(node.held(), 0);
}

#[test]
fn real_repeats_are_all_reported_however_many_wait() {
    let mut node = Node::new();
    // Identical requests that nobody answers, and identical datagrams of the node's own.
    let (ask, own) = (udp(A, SVC, (5000, 53), b"same"), udp(OWN, NET, (5000, 53), b"same"));
    for _ in 0..100 {
        node.see(&copy(0, POD, In, ask.clone()));
        node.see(&copy(1, UPLINK, Out, own.clone()));
    }
    node.pass(20 * MS);
    for _ in 0..100 {
        node.see(&copy(1, UPLINK, Out, own.clone()));
    }
    assert_eq!(node.end().len(), 300);
    // And where they have twins, each has one.
    let mut node = Node::new();
    let inner = udp(A, B, (5000, 5353), b"same");
    for _ in 0..20 {
        node.see(&copy(0, POD, In, ask.clone()));
    }
    for _ in 0..15 {
        node.see(&copy(1, POD_B, Out, inner.clone()));
    }
    node.pass(MS);
    assert_eq!(node.dropped(DropReason::Service), 15);
    assert_eq!(node.end().len(), 20);
}

#[test]
fn a_new_interface_that_netlink_has_not_told_of_is_not_doubled() {
    let mut node = Node::new();
    node.see(&copy(0, 77, In, tcp(CLIENT, (B, 8080), SYN, 1)));
    node.see(&copy(1, POD_B, Out, tcp(CLIENT, (B, 8080), SYN, 1)));
    node.see(&copy(1, 78, Out, tcp(CLIENT, (B, 8080), SYN, 1)));
    assert_eq!(node.end(), [named(CLIENT, (B, 8080))]);
    assert_eq!(link(1, Role::Pod, "").1.slot, 1);
}

#[test]
fn the_hold_gives_back_what_it_took_in_any_order_of_decisions() {
    use super::super::hold::{Hold, Waiting};
    let key = |data: &[u8]| Fingerprinter::new(1).key(&Headers::parse(data), data);
    let mut random = 12345u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut hold = Hold::new(8 << 10);
    let mut here: Vec<(u64, Vec<u8>)> = Vec::new();
    let (mut pushed, mut full) = (0, 0);
    for round in 0..20_000u64 {
        if next(5) < 3 {
            let mut data = tcp(CLIENT, SERVICE, ACK, 1);
            data.resize(54 + usize::try_from(next(1500)).unwrap(), round.to_le_bytes()[0]);
            let waiting = Waiting {
                deadline_ns: round,
                key: key(&data),
                number: 1,
                candidate: Candidate::Service { answers: false },
                flow: 1 + round % 3,
                is_error: false,
            };
            match hold.push(waiting, &at(&data, POD, In)) {
                Some(ticket) => here.push((ticket, data)),
                None => full += 1,
            }
            pushed += 1;
        } else if !here.is_empty() {
            // Mostly the oldest, sometimes one in the middle.
            let which = if next(4) == 0 { next(here.len() as u64) } else { 0 };
            let (ticket, _) = here.remove(usize::try_from(which).unwrap());
            hold.done(ticket);
            hold.done(ticket);
            assert!(hold.get(ticket).is_none());
        }
        assert_eq!(hold.open(), here.len() as u64);
        assert_eq!(hold.oldest(), here.first().map(|(ticket, _)| *ticket));
        for (ticket, data) in &here {
            assert_eq!(hold.get(*ticket).unwrap().1.data, data.as_slice());
        }
    }
    assert!(full > 100 && full < pushed, "{full} of {pushed}");
}

#[test]
fn answers_whose_plain_copies_the_ring_lost_are_reported() {
    let mut node = Node::new();
    let answer = |seq| copy(0, POD, Out, tcp((SVC, 80), CLIENT, ACK, seq));
    node.see(&copy(1, POD_B, Out, tcp(CLIENT, (B, 8080), ACK, 1)));
    node.see(&copy(0, POD, In, tcp(CLIENT, (SVC, 80), ACK, 1)));
    node.see(&copy(1, POD_B, In, tcp((B, 8080), CLIENT, ACK, 4)));
    node.see(&answer(4));
    for seq in 5..9 {
        node.see(&answer(seq));
        node.pass(25 * MS);
    }
    assert_eq!(node.end().len(), 2 + 4);
}
