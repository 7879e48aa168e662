//! The rows of the table whose packets have two addresses, at the level of the pipeline.
//!
//! ```text
//! packet = its copies, each with point and worker --in every order, by one worker or two--> reports
//! ```

mod equal;
mod learning;
mod rows;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::classify::tests::{POD, UPLINK, at, link, packet, policy, udp, view};
use crate::classify::{Classifier, Policy};
use crate::dedup::Fingerprinter;
use crate::frame::Direction::{self, In, Out};
use crate::net::Role;
use crate::pipeline::Pipeline;
use crate::source::memory::OwnedFrame;
use crate::wire::protocol;

pub(super) const POD_B: u32 = 11;
pub(super) const MS: u64 = 1_000_000;

/// Who talks: pods here, the node, a pod of another tapped node, the internet, a service.
pub(super) const A: &str = "10.0.1.101";
pub(super) const B: &str = "10.0.1.102";
pub(super) const OWN: &str = "10.0.1.10";
pub(super) const FAR: &str = "10.0.2.101";
pub(super) const NET: &str = "203.0.113.10";
pub(super) const SVC: &str = "172.20.0.99";

pub(super) const SYN: u8 = 2;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const ACK: u8 = 0x10;
pub(super) const RST: u8 = 4;

/// A packet's form: an end is address and port.
pub(super) type End = (&'static str, u16);

pub(super) fn tcp(from: End, to: End, flags: u8, seq: u32) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.1.to_be_bytes());
    l4.extend(to.1.to_be_bytes());
    l4.extend(seq.to_be_bytes());
    l4.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    packet(protocol::TCP, from.0, to.0, &l4)
}

/// Where a copy is seen, and by which of two workers.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) data: Vec<u8>,
    pub(super) ifindex: u32,
    pub(super) direction: Direction,
    pub(super) worker: usize,
}

pub(super) fn copy(worker: usize, ifindex: u32, direction: Direction, data: Vec<u8>) -> Copy {
    Copy { data, ifindex, direction, worker }
}

pub(super) fn classifier() -> Classifier {
    classifier_of(&policy())
}

pub(super) fn classifier_of(policy: &Policy) -> Classifier {
    let mut view = view();
    view.links.extend([link(POD_B, Role::Pod, "veth")]);
    view.links.extend([link(3, Role::Uplink, "vlan")]);
    view.local.push("10.0.1.102/32".parse().unwrap());
    Classifier::new(policy, &view, &[])
}

/// Two workers of one node, and what they said.
pub(super) struct Node {
    classifier: Classifier,
    pub(super) workers: [Pipeline; 2],
    pub(super) now_ns: u64,
    received: u64,
    pub(super) reports: Vec<OwnedFrame>,
    pub(super) drops: BTreeMap<&'static str, u64>,
}

impl Node {
    pub(super) fn new() -> Self {
        Self::with(classifier(), 1 << 20)
    }

    pub(super) fn with(classifier: Classifier, memory: usize) -> Self {
        let table = Arc::new(Table::new(1 << 20, 100 * MS).unwrap());
        let settling = Settling { settle_ns: 20 * MS, memory };
        let worker = || Pipeline::new(Arc::clone(&table), Fingerprinter::new(7)).settling(settling);
        Self {
            classifier,
            workers: [worker(), worker()],
            now_ns: 1_000_000 * MS,
            received: 0,
            reports: Vec::new(),
            drops: BTreeMap::new(),
        }
    }

    fn take(
        reports: &mut Vec<OwnedFrame>,
        drops: &mut BTreeMap<&'static str, u64>,
        packet: &Frame<'_>,
        verdict: Verdict,
    ) {
        match verdict {
            Verdict::Report => reports.push((*packet).into()),
            Verdict::Drop(reason) => *drops.entry(reason.label()).or_default() += 1,
            Verdict::Hold => {}
        }
    }

    /// A copy is seen now.
    pub(super) fn see(&mut self, copy: &Copy) -> Verdict {
        let Self { classifier, workers, reports, drops, .. } = self;
        let frame =
            Frame { timestamp_ns: self.now_ns, ..at(&copy.data, copy.ifindex, copy.direction) };
        let mut said = None;
        self.received += 1;
        workers[copy.worker].admit(classifier, &frame, self.now_ns, |packet, _, verdict| {
            said = Some(verdict);
            Self::take(reports, drops, packet, verdict);
        });
        said.unwrap()
    }

    /// Both workers settle, `ns` later.
    pub(super) fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        let Self { workers, reports, drops, now_ns, .. } = self;
        for worker in workers {
            worker
                .settle(*now_ns, |packet, _, verdict| Self::take(reports, drops, packet, verdict));
        }
    }

    pub(super) fn held(&self) -> u64 {
        self.workers.iter().map(Pipeline::held).sum()
    }

    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.label()).copied().unwrap_or(0)
    }

    /// Ends; what was reported, as "source > destination" with ports, in order. The account holds.
    pub(super) fn end(&mut self) -> Vec<String> {
        let Self { workers, reports, drops, .. } = self;
        for worker in workers {
            worker.settle_all(|packet, _, verdict| Self::take(reports, drops, packet, verdict));
        }
        assert_eq!(self.held(), 0);
        assert_eq!(self.received, self.reports.len() as u64 + self.drops.values().sum::<u64>());
        self.said()
    }

    /// What was reported up to now.
    pub(super) fn said(&self) -> Vec<String> {
        self.reports.iter().map(|frame| name(&frame.data)).collect()
    }

    pub(super) fn untwinned(&self) -> u64 {
        self.workers.iter().map(|worker| worker.notes.untwinned).sum()
    }
}

pub(super) fn name(data: &[u8]) -> String {
    let headers = Headers::parse(data);
    let (from, to) = headers.ports.unwrap_or((0, 0));
    format!("{}:{from} > {}:{to}", headers.source.to_ip(), headers.destination.to_ip())
}

pub(super) fn named(from: End, to: End) -> String {
    format!("{}:{} > {}:{}", from.0, from.1, to.0, to.1)
}

/// Sends the packets, each as its copies, in every combination of: the copies of a packet in
/// order or in reverse; two workers or one; packets that follow at once or 30 ms later; workers
/// that settle after every copy or after every packet. The reports must be these.
pub(super) fn exactly(packets: &[Vec<Copy>], expected: &[String]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    for case in 0..1u32 << (packets.len() + 3) {
        let flag = |bit: usize| case >> bit & 1 == 1;
        let (one_worker, slow, busy) = (flag(0), flag(1), flag(2));
        let mut node = Node::new();
        for (at, copies) in packets.iter().enumerate() {
            let mut copies = copies.clone();
            if flag(3 + at) {
                copies.reverse();
            }
            for mut copy in copies {
                copy.worker *= usize::from(!one_worker);
                node.see(&copy);
                if busy {
                    node.pass(MS / 10);
                }
            }
            for _ in 0..if slow { 3 } else { 0 } {
                node.pass(10 * MS);
            }
            node.pass(MS / 10);
        }
        node.pass(10 * MS);
        node.pass(10 * MS);
        let mut said = node.end();
        said.sort_unstable();
        assert_eq!(said, expected, "case {case:b}: one worker {one_worker}, slow {slow}");
    }
}
