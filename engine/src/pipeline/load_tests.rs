//! Rows 21 and 27 at a million segments, without a kernel.
//!
//! ```text
//! runs of segments --> point 1: 45 to a frame | 2: 17 | 3: 1 | 4: 8     two pipelines, one table,
//! retransmissions, identical datagrams ------> all four                 batches in any order
//! ```
//!
//! What is reported of each segment must be what was sent of it.

use std::sync::Arc;

use super::*;
use crate::classify::{Policy, link_for_test};
use crate::frame::{Direction, Offload, Point};
use crate::net::View;
use crate::source::memory::OwnedFrame;

const SIZE: usize = 100;
const RUN: usize = 90;
const ROUNDS: usize = 12_000;
/// Segments to a frame at each point.
const CUTS: [usize; 4] = [45, 17, 1, 8];

/// A linear congruential generator: the same run each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

fn low<const N: usize>(number: usize) -> [u8; N] {
    number.to_be_bytes()[8 - N..].try_into().unwrap()
}

/// `count` segments of flow `flow`, the first of them number `first` of all, as one frame.
fn tcp(flow: usize, first: usize, count: usize, is_end: bool, id: usize, stamp: usize) -> Vec<u8> {
    let mut data = vec![2; 12];
    data.extend([8, 0, 0x45, 0]);
    data.extend(low::<2>(52 + count * SIZE));
    data.extend(low::<2>(id & 0xffff));
    data.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2]);
    data.extend(low::<2>(40_000 + flow));
    data.extend([0, 80]);
    data.extend(low::<4>((first * SIZE) & 0xffff_ffff));
    data.extend([
        0,
        0,
        0,
        1,
        0x80,
        if is_end { 0x18 } else { 0x10 },
        1,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        8,
        10,
    ]);
    data.extend(low::<4>(stamp));
    data.extend([0, 0, 0, 9]);
    for number in first..first + count {
        data.extend(low::<4>(number));
        data.resize(data.len() + SIZE - 4, 5);
    }
    data
}

/// A datagram that says nothing but its number; sent twice it is the same to the last bit.
fn udp(number: usize) -> Vec<u8> {
    let mut data = vec![2; 12];
    data.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2]);
    data.extend([0x9c, 0x40, 0, 53, 0, 12, 0, 0]);
    data.extend(low::<4>(number));
    data
}

/// A frame at the point number `at`.
fn frame(data: Vec<u8>, at: usize, gso_size: usize, now_ns: u64) -> OwnedFrame {
    let direction = if at.is_multiple_of(2) { Direction::In } else { Direction::Out };
    OwnedFrame {
        wire_len: u32::try_from(data.len()).unwrap(),
        data,
        timestamp_ns: now_ns,
        point: Point { ifindex: u32::try_from(at + 1).unwrap(), direction },
        vlan: None,
        offload: Offload {
            partial_checksum: None,
            gso_size: u16::try_from(gso_size).unwrap(),
            gso_type: u8::from(gso_size != 0),
        },
    }
}

/// The number that a packet carries.
fn number(packet: &Frame<'_>, headers: &Headers) -> usize {
    let bytes = packet.data[headers.payload..].first_chunk().unwrap();
    usize::try_from(u32::from_be_bytes(*bytes)).unwrap()
}

#[test]
fn of_a_million_segments_cut_differently_at_four_points_none_is_lost_or_doubled() {
    let mut view = View::default();
    view.links.extend((1..=4).map(link_for_test));
    let policy = Policy { any_interface: true, ..Policy::default() };
    let classifier = Classifier::new(&policy, &view, &[]);
    let table = Arc::new(Table::new(16 << 20, 100_000_000).unwrap());
    let mut pipelines = [0, 1].map(|_| Pipeline::new(Arc::clone(&table), Fingerprinter::new(7)));
    let mut random = Random(27);
    let (mut sent, mut reported) = (Vec::new(), Vec::<u8>::new());
    let (mut retransmitted, mut repeated) = (0, 0);
    for round in 0..ROUNDS {
        let first = sent.len();
        sent.resize(first + RUN, 1u8);
        let now_ns = 1_000_000_000_000 + u64::try_from(round * RUN).unwrap() * 1000;
        let (flow, id) = (round % 8, random.below(65_536));
        // A retransmission has another identification and another time stamp.
        let again = (random.below(4) == 0).then(|| first + random.below(RUN));
        if let Some(again) = again {
            sent[again] += 1;
            retransmitted += 1;
        }
        // Identical datagrams, so many a microsecond apart.
        let copies = random.below(4);
        let datagram = sent.len();
        sent.push(u8::try_from(copies).unwrap());
        repeated += copies.saturating_sub(1);
        let mut queues = CUTS.map(|_| std::collections::VecDeque::new());
        for (at, queue) in queues.iter_mut().enumerate() {
            for from in (0..RUN).step_by(CUTS[at]) {
                let count = CUTS[at].min(RUN - from);
                let is_end = from + count == RUN;
                let data = tcp(flow, first + from, count, is_end, id + from, round);
                let size = if count == 1 { 0 } else { SIZE };
                queue.push_back(frame(
                    data,
                    at,
                    size,
                    now_ns + u64::try_from(from).unwrap() * 1000,
                ));
            }
            for copy in 0..copies {
                let then = now_ns + u64::try_from(copy).unwrap() * 1000;
                queue.push_back(frame(udp(datagram), at, 0, then));
            }
            if let Some(again) = again {
                let is_end = again + 1 == first + RUN;
                let data = tcp(flow, again, 1, is_end, id + 30_000, round + 1);
                queue.push_back(frame(data, at, 0, now_ns + 95_000));
            }
        }
        // Each worker takes a batch of what one point has seen, whichever has something.
        while queues.iter().any(|queue| !queue.is_empty()) {
            let at = random.below(4);
            let batch = 1 + random.below(40);
            let pipeline = &mut pipelines[at / 2];
            for frame in queues[at].drain(..batch.min(queues[at].len())).collect::<Vec<_>>() {
                reported.resize(sent.len(), 0);
                pipeline.admit(&classifier, &frame.as_frame(), 0, |packet, headers, verdict| {
                    reported[number(packet, headers)] += u8::from(verdict == Verdict::Report);
                });
            }
        }
    }
    reported.resize(sent.len(), 0);
    assert!(sent.len() >= 1_000_000 && retransmitted > 2000 && repeated > 8000);
    let wrong: Vec<_> = (0..sent.len()).filter(|at| sent[*at] != reported[*at]).take(10).collect();
    assert!(wrong.is_empty(), "numbers {wrong:?}");
    let notes = pipelines.map(|pipeline| pipeline.notes);
    assert_eq!((notes[0].uncut, notes[1].uncut), (0, 0));
}
