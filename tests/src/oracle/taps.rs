//! The engine at work on a node's sightings: one pipeline for each worker, one table for all.
//!
//! ```text
//! sightings --fanout--> worker 1 (late by up to the skew) --admit, settle--> reports, drops
//!                       worker 2 ...                            `-- one table
//! ```
//!
//! Workers are not threads here: what each does when is drawn from a seed, so that every
//! interleaving can be had again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use engine::classify::{Classifier, Policy};
use engine::dedup::{Fingerprinter, Table};
use engine::frame::{self, Frame, Offload, VlanTag};
use engine::net::{self, Link, View};
use engine::pipeline::{Notes, Pipeline, Verdict};
use engine::settle::Settling;
use engine::wire::Headers;

use super::cut;
use super::identity::Identity;
use super::packet::low16;
use super::rule::{Direction, Node, Role, Sighting};
use crate::compare::packet::Packet as Seen;

/// How a tap is run.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// How many workers.
    pub workers: usize,
    /// Draws the fanout and the delays.
    pub seed: u64,
    /// A worker is late by less than this, nanoseconds.
    pub skew_ns: u64,
    /// Time between looks at what waits, nanoseconds.
    pub poll_ns: u64,
    /// Time and memory for candidates.
    pub settling: Settling,
    /// Bytes of the table.
    pub table_memory: u64,
    /// Its window.
    pub window_ns: u64,
    /// The table's.
    pub hash_seed: u64,
    /// Every verdict is written down, for people.
    pub is_told: bool,
}

impl Running {
    /// As the defaults of the tap are, with a table that is large enough for a test.
    #[must_use]
    pub fn new(workers: usize, seed: u64) -> Self {
        Self {
            workers,
            seed,
            // A copy at another worker, and the one that its twin waits for, come within half of the
            // settle time, less what the way takes and the worker's own step.
            skew_ns: 7_000_000,
            poll_ns: 1_000_000,
            settling: Settling { settle_ns: 20_000_000, memory: 1 << 18 },
            table_memory: 1 << 18,
            window_ns: 100_000_000,
            hash_seed: seed,
            is_told: false,
        }
    }
}

/// What a tap did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How often it reported each packet.
    pub reported: BTreeMap<Identity, usize>,
    /// What was handed over in the end, reported or dropped.
    pub handed: BTreeMap<Identity, usize>,
    /// Reports whose checksums are wrong, or which are super-frames.
    pub spoiled: Vec<String>,
    /// Packets that were said to wait, less those decided later.
    pub waiting: i64,
    /// The engine's own notes, summed.
    pub untwinned: u64,
    /// Likewise.
    pub settle_full: u64,
    /// Likewise.
    pub evicted: u64,
    /// Each verdict, where that was asked for.
    pub told: Vec<(Identity, String)>,
    /// When, and which worker.
    now: (u64, usize),
    is_told: bool,
}

/// Numbers that follow from a seed (SplitMix64).
#[must_use]
pub fn mixed(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The kernel's fanout: both directions of a flow to one worker, fragments by their addresses.
fn flow(frame: &[u8], seed: u64) -> u64 {
    let identity = Identity::of(frame);
    let Some(ends) = identity.ends else { return 0 };
    let is_fragment = Identity::layout(frame).is_some_and(|layout| layout.is_fragment);
    let mut both = [ends.source, ends.destination];
    if is_fragment {
        both.iter_mut().for_each(|end| end.port = 0);
    }
    both.sort_unstable();
    let text = format!("{both:?} {}", identity.protocol);
    text.bytes().fold(seed, |sum, byte| mixed(sum, u64::from(byte)))
}

fn classifier(node: &Node) -> Classifier {
    let links: HashMap<u32, Link> = node
        .interfaces
        .iter()
        .zip(1..)
        .map(|(interface, slot)| {
            let role = match interface.role {
                Role::Uplink => net::Role::Uplink,
                Role::Pod => net::Role::Pod,
                Role::Other => net::Role::Other,
            };
            let link = Link {
                ifindex: interface.ifindex,
                name: format!("if{}", interface.ifindex),
                kind: interface.kind.clone(),
                is_ethernet: true,
                is_up: true,
                is_running: true,
                is_loopback: false,
                mac: vec![2, 0, 0, 0, 0, 1],
                mtu: 1500,
                addresses: Vec::new(),
                role,
                slot,
                is_tapped: interface.is_tapped,
            };
            (interface.ifindex, link)
        })
        .collect();
    let view = View { links, own: node.own.clone(), local: node.local.clone(), ..View::default() };
    let policy = Policy {
        svcnet: node.svcnet.clone(),
        nodeports: node.nodeports.clone(),
        tapped: node.tapped.clone(),
        untapped: node.untapped.clone(),
        overlay_ports: node.overlay_ports.clone(),
        any_interface: true,
        control_ports: node.control_ports.clone(),
        ..Policy::default()
    };
    Classifier::new(&policy, &view, &node.sensors)
}

fn as_frame(sighting: &Sighting) -> Frame<'_> {
    let direction = match sighting.direction {
        Direction::In => frame::Direction::In,
        Direction::Out => frame::Direction::Out,
    };
    Frame {
        data: &sighting.data,
        wire_len: u32::try_from(sighting.data.len()).unwrap_or(u32::MAX),
        timestamp_ns: sighting.at_ns,
        point: frame::Point { ifindex: sighting.ifindex, direction },
        vlan: sighting.tag.map(|tci| VlanTag { tpid: 0x8100, tci }),
        offload: Offload {
            partial_checksum: sighting.partial,
            gso_size: sighting.gso_size,
            gso_type: sighting.gso_type,
        },
    }
}

/// The whole story of a tap.
#[must_use]
pub fn run(node: &Node, sightings: &[Sighting], running: Running) -> Outcome {
    let classifier = classifier(node);
    let table = Table::new(running.table_memory, running.window_ns).expect("memory enough");
    let table = Arc::new(table);
    let fingerprinter = Fingerprinter::new(running.hash_seed);
    let mut workers: Vec<Pipeline> = (0..running.workers)
        .map(|_| Pipeline::new(Arc::clone(&table), fingerprinter).settling(running.settling))
        .collect();
    let mut outcome = Outcome { is_told: running.is_told, ..Outcome::default() };
    let mut poll = sightings.first().map_or(0, |first| first.at_ns);
    for (now, worker, index) in order(sightings, running) {
        while poll <= now {
            if workers.iter().all(|worker| worker.next_deadline_ns().is_none()) {
                poll = now + running.poll_ns;
                break;
            }
            for (number, worker) in workers.iter_mut().enumerate() {
                outcome.now = (poll, number);
                worker.settle(poll, |packet, _, verdict| outcome.settled(packet, verdict));
            }
            poll += running.poll_ns;
        }
        let frame = as_frame(&sightings[index]);
        outcome.now = (now, worker);
        let worker = &mut workers[worker];
        worker.settle(now, |packet, _, verdict| outcome.settled(packet, verdict));
        worker.admit(&classifier, &frame, now, |packet, headers, verdict| {
            outcome.take(packet, headers, verdict);
        });
    }
    // Time goes on for everybody, first; then the end.
    let steps = 2 * running.settling.settle_ns / running.poll_ns;
    for now in (0..steps).map(|step| poll + step * running.poll_ns) {
        for (number, worker) in workers.iter_mut().enumerate() {
            outcome.now = (now, number);
            worker.settle(now, |packet, _, verdict| outcome.settled(packet, verdict));
        }
    }
    for worker in &mut workers {
        worker.settle_all(|packet, _, verdict| outcome.settled(packet, verdict));
        let Notes { untwinned, settle_full, evicted, .. } = worker.notes;
        outcome.untwinned += untwinned;
        outcome.settle_full += settle_full;
        outcome.evicted += evicted;
    }
    outcome
}

/// When which worker takes up which sighting.
fn order(sightings: &[Sighting], running: Running) -> Vec<(u64, usize, usize)> {
    let mut last = vec![0u64; running.workers];
    let mut order: Vec<(u64, usize, usize)> = sightings
        .iter()
        .enumerate()
        .map(|(index, sighting)| {
            let number = u64::try_from(running.workers).unwrap_or(1);
            let worker = flow(&sighting.data, running.seed) % number;
            let worker = usize::try_from(worker).unwrap_or(0);
            // Now and then a worker falls behind; most of the time it is prompt.
            let drawn = mixed(running.seed, u64::try_from(index).unwrap_or(0));
            let late = if drawn & 3 == 0 { drawn >> 8 } else { 0 };
            let late = if running.skew_ns == 0 { 0 } else { late % running.skew_ns };
            last[worker] = last[worker].max(sighting.at_ns + late);
            (last[worker], worker, index)
        })
        .collect();
    order.sort_by_key(|(now, _, index)| (*now, *index));
    order
}

impl Outcome {
    fn tell(&mut self, packet: &Frame<'_>, verdict: Verdict) {
        if self.is_told {
            let identity = Identity::of(&packet.wire(usize::MAX).to_vec());
            let (now, worker) = self.now;
            let (point, seen) = (packet.point, packet.timestamp_ns);
            let text = format!(
                "{now} ns: worker {worker} {verdict:?} (seen at {seen}, interface {} {:?}) {}",
                point.ifindex,
                point.direction,
                identity.say()
            );
            self.told.push((identity, text));
        }
    }

    fn take(&mut self, packet: &Frame<'_>, headers: &Headers, verdict: Verdict) {
        self.tell(packet, verdict);
        assert_eq!(Headers::parse(packet.data), *headers, "the headers are the packet's");
        match verdict {
            Verdict::Hold => self.waiting += 1,
            decided => self.decide(packet, decided),
        }
    }

    fn settled(&mut self, packet: &Frame<'_>, verdict: Verdict) {
        assert_ne!(verdict, Verdict::Hold, "what has waited is decided");
        self.tell(packet, verdict);
        self.waiting -= 1;
        self.decide(packet, verdict);
    }

    fn decide(&mut self, packet: &Frame<'_>, verdict: Verdict) {
        let bytes = packet.wire(usize::MAX).to_vec();
        let identity = Identity::of(&bytes);
        *self.handed.entry(identity.clone()).or_default() += 1;
        if verdict != Verdict::Report {
            return;
        }
        if let Some(layout) = Identity::layout(&bytes) {
            let ethertype = if bytes[layout.l3] >> 4 == 4 { 0x0800 } else { 0x86dd };
            let seen = Seen::parse(ethertype, bytes[layout.l3..].to_vec(), false);
            let mut right = seen.clone();
            right.complete_checksums();
            // A TCP checksum of 0 may be written as ffff, the other zero of one's complement.
            let is_zero = Identity::layout(&bytes).is_some_and(|layout| {
                let at = layout.l4 + 16;
                layout.protocol == 6 && bytes.get(at..at + 2) == Some(&[0xff, 0xff])
            });
            if right != seen && !is_zero {
                self.spoiled.push(format!("wrong checksum: {}", identity.say()));
            }
        }
        if usize::try_from(packet.wire_len).ok() != Some(packet.data.len()) {
            self.spoiled.push(format!("cut: {}", identity.say()));
        }
        *self.reported.entry(identity).or_default() += 1;
    }

    /// Every packet was handed over once, and as it was.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn accounts_for(&self, sightings: &[Sighting]) -> Result<(), String> {
        let mut all: BTreeMap<Identity, usize> = BTreeMap::new();
        for sighting in sightings {
            for packet in cut::packets(sighting) {
                *all.entry(Identity::of(&packet)).or_default() += 1;
            }
        }
        if self.waiting != 0 {
            return Err(format!("{} packets wait for ever", self.waiting));
        }
        if all == self.handed {
            return Ok(());
        }
        let differs = |from: &BTreeMap<Identity, usize>, to: &BTreeMap<Identity, usize>| {
            from.iter()
                .find(|(identity, count)| to.get(*identity) != Some(*count))
                .map(|(identity, count)| format!("{count} of {}", identity.say()))
        };
        let (came, went) = (differs(&all, &self.handed), differs(&self.handed, &all));
        Err(format!("came {came:?}, was handed over {went:?}, {}", low16(all.len())))
    }
}
