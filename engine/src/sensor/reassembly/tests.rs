//! Datagrams that get lost, swapped and doubled, against what must come out.

use proptest::prelude::*;

use super::*;
use crate::sensor::message::tests::{Kept, packet};

pub(in crate::sensor) type Packet = (PacketHeader, Vec<u8>);

/// Cuts packets into datagrams as the tap does: full when less than a header's room is left.
pub(in crate::sensor) fn datagrams(
    packets: &[Packet],
    first_number: u32,
    bytes: usize,
) -> Vec<Vec<u8>> {
    let start = |number: u32| {
        let header = StreamHeader { first_header: STREAM_NO_PACKET, sequence: number };
        header.to_bytes().to_vec()
    };
    let mut done = Vec::new();
    let mut open = start(first_number);
    for (header, data) in packets {
        if open[2..4] == [0xff, 0xff] {
            let at = u16::try_from(open.len()).unwrap().to_be_bytes();
            open[2..4].copy_from_slice(&at);
        }
        open.extend(header.to_bytes());
        let mut data = &data[..];
        loop {
            let (now, later) = data.split_at(data.len().min(bytes - open.len()));
            open.extend(now);
            data = later;
            if open.len() + PACKET_HEADER_BYTES > bytes {
                let number = first_number.wrapping_add(u32::try_from(done.len() + 1).unwrap());
                done.push(std::mem::replace(&mut open, start(number)));
            }
            if data.is_empty() {
                break;
            }
        }
    }
    if open.len() > STREAM_HEADER_BYTES {
        done.push(open);
    }
    done
}

pub(in crate::sensor) fn packets(count: u32, len: impl Fn(u32) -> usize) -> Vec<Packet> {
    (1..=count).map(|number| packet(number, len(number))).collect()
}

/// Feeds datagrams that arrive at one moment each, then ends.
fn reassembled(datagrams: &[&Vec<u8>]) -> (Kept, StreamCounts) {
    let mut kept = Kept::default();
    let mut reassembler = Reassembler::new(262_144, HOLD);
    let now = Instant::now();
    for datagram in datagrams {
        reassembler.push(now, datagram, &mut kept);
    }
    reassembler.finish(&mut kept);
    (kept, reassembler.counts())
}

#[test]
fn packets_continue_over_datagrams() {
    let sent = packets(50, |n| (n as usize * 97) % 4_000);
    let cut = datagrams(&sent, 0, 1_472);
    let (kept, counts) = reassembled(&cut.iter().collect::<Vec<_>>());
    assert_eq!((kept.packets, kept.faults), (sent, vec![]));
    assert_eq!(counts, StreamCounts::default());
}

#[test]
fn order_is_put_right_and_doubles_are_ignored() {
    let sent = packets(40, |_| 1_000);
    let cut = datagrams(&sent, 0, 1_472);
    let mut order: Vec<_> = cut.iter().collect();
    order.swap(3, 7);
    order.insert(10, &cut[9]);
    order.insert(5, &cut[7]);
    let (kept, counts) = reassembled(&order);
    assert_eq!((kept.packets, kept.faults), (sent, vec![]));
    // 4, 5, 6 and 3 came after 7.
    assert_eq!((counts.duplicates, counts.reordered, counts.gaps), (2, 4, 0));
}

#[test]
fn a_hole_costs_the_packets_that_touch_it() {
    let sent = packets(5, |_| 1_000);
    let cut = datagrams(&sent, 0, 1_472);
    let (kept, counts) = reassembled(&[&cut[0], &cut[2], &cut[3]]);
    // Datagram 1 holds the end of packet 2 and the beginning of packet 3.
    let numbers: Vec<u32> = kept.packets.iter().map(|(header, _)| header.number).collect();
    assert_eq!(numbers, [1, 4, 5]);
    assert_eq!((counts.gaps, counts.lost_datagrams, counts.unfinished), (1, 1, 1));
    assert_eq!(kept.faults, []);
}

#[test]
fn a_hole_is_given_up_after_a_while_and_what_comes_then_is_late() {
    let sent = packets(20, |_| 100);
    let cut = datagrams(&sent, 0, 300);
    let mut kept = Kept::default();
    let mut reassembler = Reassembler::new(65_535, HOLD);
    let start = Instant::now();
    reassembler.push(start, &cut[1], &mut kept);
    assert_eq!(reassembler.deadline(), Some(start + HOLD));
    reassembler.tick(start + HOLD - Duration::from_millis(1), &mut kept);
    assert_eq!(kept.packets, []);
    reassembler.tick(start + HOLD, &mut kept);
    assert!(!kept.packets.is_empty());
    assert_eq!(reassembler.deadline(), None);
    reassembler.push(start + HOLD, &cut[0], &mut kept);
    reassembler.push(start + HOLD, &cut[1], &mut kept);
    let counts = reassembler.counts();
    assert_eq!((counts.late, counts.duplicates, counts.lost_datagrams), (1, 1, 1));
}

#[test]
fn a_full_window_gives_up_the_hole_at_once() {
    let sent = packets(600, |_| 100);
    let cut = datagrams(&sent, 0, 130);
    assert!(cut.len() > 300);
    let (kept, counts) = reassembled(&cut[1..].iter().collect::<Vec<_>>());
    assert_eq!((counts.gaps, counts.lost_datagrams), (1, 1));
    assert_eq!(kept.packets.last(), sent.last());
}

#[test]
fn numbers_wrap() {
    let sent = packets(40, |_| 500);
    let first = u32::MAX - 5;
    let cut = datagrams(&sent, first, 700);
    let mut kept = Kept::default();
    let mut reassembler = Reassembler::new(65_535, HOLD);
    reassembler.next = first;
    reassembler.beyond_newest = first;
    let mut order: Vec<_> = cut.iter().collect();
    order.swap(4, 8);
    for datagram in order {
        reassembler.push(Instant::now(), datagram, &mut kept);
    }
    assert_eq!(kept.packets, sent);
    assert_eq!((reassembler.counts().gaps, reassembler.counts().late), (0, 0));
}

#[test]
fn a_leap_by_mistake_is_recovered_from() {
    let sent = packets(2_000, |_| 100);
    let mut cut = datagrams(&sent, 0, 128);
    cut[10][4..8].copy_from_slice(&0x4000_0000_u32.to_be_bytes());
    let (kept, counts) = reassembled(&cut.iter().collect::<Vec<_>>());
    assert_eq!(counts.restarts, 1);
    assert!(kept.packets.len() > 2_000 - 2 * WINDOW as usize - 10);
    assert_eq!(kept.packets.last(), sent.last());
}

#[test]
fn lying_headers_are_named() {
    let good = &datagrams(&packets(1, |_| 100), 0, 1_472)[0];
    let fault = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let (kept, _) = reassembled(&[&bytes]);
        kept.faults[0]
    };
    assert_eq!(fault(2, &[0, 7]), Fault::FirstHeader, "inside its own header");
    assert_eq!(fault(2, &[0, 109]), Fault::FirstHeader, "no room for a packet header");
    assert_eq!(fault(2, &[0xff, 0xfe]), Fault::FirstHeader);
    assert_eq!(fault(2, &[0, 9]), Fault::Continuation, "nothing was begun before");
    assert_eq!(fault(16, &[0, 0, 0, 99]), Fault::SplitHeader, "one byte is left over");
    assert_eq!(fault(16, &[0x7f, 0, 0, 0]), Fault::Caplen);
    assert_eq!(fault(20, &[0, 0, 0, 99]), Fault::WireLen);
    assert_eq!(fault(0, &[1]), Fault::Version);
    assert_eq!(reassembled(&[&vec![0, 110, 0]]).0.faults, [Fault::Short]);
}

#[test]
fn held_memory_is_bounded() {
    let mut kept = Kept::default();
    let mut reassembler = Reassembler::new(65_535, HOLD);
    for number in 1..10_000u32 {
        // Only even numbers: a hole before each.
        let header = StreamHeader { first_header: STREAM_NO_PACKET, sequence: number * 2 };
        reassembler.push(Instant::now(), &header.to_bytes(), &mut kept);
        assert!(reassembler.held_count <= WINDOW as usize);
        assert!(reassembler.spare.len() <= WINDOW as usize);
    }
}

proptest! {
    /// Loses, swaps and doubles at random: what comes out is in order, unharmed, and missing are
    /// only packets with a byte in a datagram that never came.
    #[test]
    fn only_packets_touching_a_lost_datagram_are_lost(
        lens in proptest::collection::vec(0usize..3_000, 1..120),
        fates in proptest::collection::vec((0u8..10, 0usize..20), 400),
        mtu in 60usize..1_600,
    ) {
        let sent: Vec<Packet> =
            lens.iter().zip(1..).map(|(len, number)| packet(number, *len)).collect();
        let cut = datagrams(&sent, 0, mtu);
        let mut order: Vec<(usize, usize)> = Vec::new();
        let mut lost = vec![false; cut.len()];
        for at in 0..cut.len() {
            let (fate, delay) = fates[at % fates.len()];
            match fate {
                0 => lost[at] = true,
                1 => order.extend([(at, at), (at + delay, at)]),
                2 => order.push((at + delay, at)),
                _ => order.push((at, at)),
            }
        }
        order.sort_by_key(|(when, _)| *when);
        let arriving: Vec<_> = order.iter().map(|(_, at)| &cut[*at]).collect();
        let (kept, counts) = reassembled(&arriving);

        // Which packets touch a lost datagram, from the datagrams' own sizes.
        let mut touched = vec![false; sent.len()];
        let mut position = 0;
        let ends: Vec<usize> = cut.iter().scan(0, |end, datagram| {
            *end += datagram.len() - STREAM_HEADER_BYTES;
            Some(*end)
        }).collect();
        for (touched, (_, data)) in touched.iter_mut().zip(&sent) {
            let end = position + PACKET_HEADER_BYTES + data.len();
            for (at, datagram_end) in ends.iter().enumerate() {
                let datagram_start = datagram_end + STREAM_HEADER_BYTES - cut[at].len();
                *touched |= lost[at] && datagram_start < end && *datagram_end > position;
            }
            position = end;
        }
        let expected: Vec<&Packet> =
            sent.iter().zip(&touched).filter(|(_, touched)| !**touched).map(|(p, _)| p).collect();
        prop_assert_eq!(kept.packets.iter().collect::<Vec<_>>(), expected);
        prop_assert_eq!(kept.faults, vec![]);
        let last_come = lost.iter().rposition(|lost| !lost).map_or(0, |at| at + 1);
        let expected_lost = lost[..last_come].iter().filter(|lost| **lost).count();
        prop_assert_eq!(counts.lost_datagrams, expected_lost as u64);
        prop_assert_eq!(counts.late, 0);
    }

    #[test]
    fn no_datagrams_panic(
        noise in proptest::collection::vec(
            (any::<[u8; 3]>(), 0u32..600, proptest::collection::vec(any::<u8>(), 0..80)), 0..300),
        raw in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut kept = Kept::default();
        let mut reassembler = Reassembler::new(2_000, HOLD);
        let start = Instant::now();
        reassembler.push(start, &raw, &mut kept);
        for (at, (head, number, body)) in noise.iter().enumerate() {
            let first = if head[0] < 128 { [0, head[1] % 64] } else { [head[1], head[2]] };
            let mut bytes = vec![0, 110, first[0], first[1]];
            let leap = if head[2] == 0 { 1 << 31 } else { 0 };
            bytes.extend((number + leap).to_be_bytes());
            bytes.extend(body);
            let now = start + Duration::from_millis(at as u64);
            reassembler.push(now, &bytes, &mut kept);
            reassembler.tick(now, &mut kept);
        }
        reassembler.finish(&mut kept);
    }
}
