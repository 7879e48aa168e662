//! How many copies of packets with one invariant part are to be reported.
//!
//! ```text
//! plain: as many as at the point that saw most
//! candidates of the node: less what is reported with the same other end
//! candidates of a service: less all that is reported
//! ```
//!
//! Each number is a range, from the fewest to the most that the rule allows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::identity::Identity;
use super::packet::{End, Ends};
use super::rule::{Direction, Sort};

/// Points on one packet's way through a host that are told apart; at more, copies are reported.
const POINTS: usize = 8;

type Point = (u32, Direction);
/// Candidates at one point, and how often each was seen there.
type Rivals = Vec<(Option<Ends>, usize)>;
/// Sightings of one packet (by its ends) at each point.
type Counts = BTreeMap<Option<Ends>, BTreeMap<Point, usize>>;

/// Pairs of addresses, in order, of service flows of which a request was seen without the service's
/// address too. Ports are left out: errors and fragments have none of their own.
#[derive(Default)]
pub(super) struct Flows {
    pub(super) proven: BTreeSet<(IpAddr, IpAddr)>,
    /// Of flows of which a copy with the node's address had no twin: the node's own, it seems.
    pub(super) native: BTreeSet<(IpAddr, IpAddr)>,
    /// See `Node::may_be_a_clients`.
    pub(super) clients: BTreeSet<(IpAddr, IpAddr)>,
}

pub(super) fn flow(ends: Ends) -> (IpAddr, IpAddr) {
    let (one, other) = (ends.source.address, ends.destination.address);
    (one.min(other), one.max(other))
}

/// Whether an address is the node's own or a service's: what a translation puts in a pod's place.
pub(super) type IsMarked<'a> = &'a dyn Fn(IpAddr) -> bool;

/// True where two packets with these ends may be one, before a translation and after: what it changes
/// is a pod's address into a host's or a service's, or back.
fn may_be_one(one: Option<Ends>, other: Option<Ends>, is_marked: IsMarked<'_>) -> bool {
    let end =
        |one: End, other: End| one == other || is_marked(one.address) != is_marked(other.address);
    match (one, other) {
        (Some(one), Some(other)) => {
            end(one.source, other.source) && end(one.destination, other.destination)
        }
        _ => one == other,
    }
}

/// Packets with one invariant part.
#[derive(Default)]
pub(super) struct Group {
    names: BTreeMap<Option<Ends>, Identity>,
    plain: Counts,
    of_node: BTreeMap<bool, Counts>,
    of_service: BTreeMap<bool, Counts>,
    least: BTreeMap<Option<Ends>, usize>,
    most: BTreeMap<Option<Ends>, usize>,
}

impl Group {
    pub(super) fn add(&mut self, sort: Sort, point: Point, identity: Identity) {
        let counts = match sort {
            Sort::NotHere => return,
            Sort::Plain => &mut self.plain,
            Sort::OfNode { both } => self.of_node.entry(both).or_default(),
            Sort::OfService { answers } => self.of_service.entry(answers).or_default(),
        };
        *counts.entry(identity.ends).or_default().entry(point).or_default() += 1;
        self.names.entry(identity.ends).or_insert(identity);
    }

    /// Rule 3: as many as at the point that saw most.
    pub(super) fn count_plain(&mut self) {
        let candidates = |point: &Point| -> usize {
            let all = self.of_node.values().chain(self.of_service.values());
            all.flat_map(BTreeMap::values).filter_map(|points| points.get(point)).sum()
        };
        let (mut least, mut most) = (BTreeMap::new(), BTreeMap::new());
        for (ends, points) in &self.plain {
            least.insert(*ends, points.values().copied().max().unwrap_or(0));
            // At a point where candidates may have been taken for it before, it seems to be one more.
            let counts = points.iter().map(|(point, count)| count + candidates(point));
            let is_crowd = points.len() > POINTS;
            most.insert(*ends, if is_crowd { counts.sum() } else { counts.max().unwrap_or(0) });
        }
        (self.least, self.most) = (least, most);
    }

    /// How many reports of other packets (or of this at other points) stand for sightings at
    /// `point`, of those that `is_twin` allows; `with_node`: candidates of the node are decided already.
    fn supply(
        &self,
        point: Point,
        with_node: bool,
        is_twin: impl Fn(&Option<Ends>) -> bool,
    ) -> (usize, usize) {
        let sum = |reports: &BTreeMap<Option<Ends>, usize>| {
            reports
                .iter()
                .filter(|(ends, _)| is_twin(ends))
                .map(|(ends, reports)| {
                    let of_node = self.of_node.values().filter(|_| with_node);
                    let all = std::iter::once(&self.plain).chain(of_node);
                    let seen = all.filter_map(|counts| counts.get(ends)?.get(&point));
                    reports.saturating_sub(seen.sum())
                })
                .sum()
        };
        (sum(&self.least), sum(&self.most))
    }

    /// Rule 6: an own address at an uplink agrees with any other.
    pub(super) fn settle_node(&mut self, is_marked: IsMarked<'_>) {
        let mut left: BTreeMap<Option<Ends>, (usize, usize)> = BTreeMap::new();
        // Those that compete for the same twins: with one other end, at one point.
        let mut rivals: BTreeMap<(Point, Option<End>), Rivals> = BTreeMap::new();
        for (both, counts) in &self.of_node {
            for (ends, points) in counts {
                for (point, count) in points {
                    let other = ends.filter(|_| !both).map(|ends| match point.1 {
                        Direction::Out => ends.destination,
                        Direction::In => ends.source,
                    });
                    rivals.entry((*point, other)).or_default().push((*ends, *count));
                }
            }
        }
        for ((point, other), rivals) in rivals {
            let agrees = |ends: &Option<Ends>| match (ends, other, point.1) {
                (_, None, _) => true,
                (Some(ends), Some(other), Direction::Out) => ends.destination == other,
                (Some(ends), Some(other), Direction::In) => ends.source == other,
                (None, ..) => false,
            };
            // Copies with a service's address may have been taken for the twins' before.
            let services = self.of_service.values().flat_map(BTreeMap::values);
            let taken: usize = services.filter_map(|points| points.get(&point)).sum();
            let supply = |rival: Option<Ends>| {
                let is_twin =
                    |ends: &Option<Ends>| agrees(ends) && may_be_one(rival, *ends, is_marked);
                let (least, most) = self.supply(point, false, is_twin);
                (least.saturating_sub(taken), most)
            };
            share(&rivals, supply, &mut left);
        }
        one_for_all(&mut left, is_marked);
        for (ends, (least, most)) in left {
            *self.least.entry(ends).or_default() += least;
            *self.most.entry(ends).or_default() += most;
        }
    }

    /// Flows whose packets have a twin, or may have one.
    pub(super) fn prove(&self, flows: &mut Flows, is_marked: IsMarked<'_>) {
        // An answer that has its twin here shows it too, though later ones may then be dropped that
        // have none.
        for (ends, points) in self.of_service.values().flatten() {
            // Perhaps one that looks like a service's itself.
            let others = self.of_service.values().flat_map(BTreeMap::keys);
            let is_twin = |other: &Option<Ends>| may_be_one(*ends, *other, is_marked);
            let has_twin = points.keys().any(|point| self.supply(*point, true, is_twin).1 > 0)
                || others.filter(|other| *other != ends).count() > 0;
            if has_twin {
                let about = self.names.get(ends).and_then(|identity| identity.about);
                flows.proven.extend(
                    ends.iter().chain(about.map(|about| about.ends).iter()).map(|ends| flow(*ends)),
                );
            }
        }
        let of_node = self.of_node.values().flat_map(BTreeMap::keys);
        for ends in of_node.filter(|ends| self.most.get(*ends).is_some_and(|most| *most > 0)) {
            flows.native.extend(ends.map(flow));
        }
    }

    /// What belongs to a flow that seems to be the node's own does not wait for a twin.
    pub(super) fn widen_native(&mut self, flows: &Flows) {
        for (ends, points) in self.of_node.values().flatten() {
            if ends.is_some_and(|ends| flows.native.contains(&flow(ends))) {
                let count = points.values().copied().max().unwrap_or(0);
                let most = self.most.entry(*ends).or_default();
                *most = (*most).max(count);
            }
        }
    }

    /// Rule 2: a service's address agrees with any other; an answer in a flow that is translated
    /// is not reported even where its twin is another node's.
    pub(super) fn settle_services(&mut self, flows: &Flows, is_marked: IsMarked<'_>) {
        let mut left: BTreeMap<Option<Ends>, (usize, usize)> = BTreeMap::new();
        let mut rivals: BTreeMap<Point, Rivals> = BTreeMap::new();
        for counts in self.of_service.values() {
            for (ends, points) in counts {
                for (point, count) in points {
                    rivals.entry(*point).or_default().push((*ends, *count));
                }
            }
        }
        for (point, rivals) in rivals {
            let supply = |rival: Option<Ends>| {
                self.supply(point, true, |ends| may_be_one(rival, *ends, is_marked))
            };
            share(&rivals, supply, &mut left);
        }
        let answers = self.of_service.get(&true);
        one_for_all(&mut left, is_marked);
        for (ends, (least, most)) in left {
            let is_answer = answers.is_some_and(|answers| answers.contains_key(&ends));
            let is_proven = ends.is_some_and(|ends| flows.proven.contains(&flow(ends)));
            // Answers that came before the proof are reported.
            *self.least.entry(ends).or_default() += if is_answer && is_proven { 0 } else { least };
            *self.most.entry(ends).or_default() += most;
        }
        let mut is_doubtful = false;
        for (ends, points) in self.of_service.values().flatten() {
            if ends.is_some_and(|ends| flows.clients.contains(&flow(ends))) {
                self.most.insert(*ends, points.values().sum());
                is_doubtful = true;
            }
        }
        // Then any of the candidates may be the one that stands for the others.
        for ends in self.of_node.values().flat_map(BTreeMap::keys).filter(|_| is_doubtful) {
            self.least.insert(*ends, 0);
        }
    }

    pub(super) fn result(&self) -> impl Iterator<Item = (Identity, RangeInclusive<usize>)> {
        self.names.iter().map(|(ends, identity)| {
            let of = |reports: &BTreeMap<Option<Ends>, usize>| reports.get(ends).copied();
            (identity.clone(), of(&self.least).unwrap_or(0)..=of(&self.most).unwrap_or(0))
        })
    }
}

/// Where several copies wait and all of them are candidates, one may stand for the others; and it
/// may be taken for one of them at a point where it is seen itself, and then seem to be one more.
fn one_for_all(left: &mut BTreeMap<Option<Ends>, (usize, usize)>, is_marked: IsMarked<'_>) {
    let waiting: Vec<_> = left
        .iter()
        .filter(|(_, (_, most))| *most > 0)
        .map(|(ends, (_, most))| (*ends, *most))
        .collect();
    for (ends, range) in left.iter_mut().filter(|(_, (_, most))| *most > 0) {
        let others = waiting.iter().filter(|(other, _)| other != ends);
        let alike = others.filter(|(other, _)| may_be_one(*ends, *other, is_marked));
        let sum: usize = alike.map(|(_, most)| most).sum();
        if sum > 0 {
            *range = (0, range.1 + sum);
        }
    }
}

/// Of candidates for the same twins, how many of each are left: at least, at most. Points do not
/// add up: a packet is left as often as at the point where it is left most.
fn share(
    rivals: &[(Option<Ends>, usize)],
    supply: impl Fn(Option<Ends>) -> (usize, usize),
    left: &mut BTreeMap<Option<Ends>, (usize, usize)>,
) {
    let demand: usize = rivals.iter().map(|(_, count)| count).sum();
    for (ends, count) in rivals {
        let (least_supply, most_supply) = supply(*ends);
        let others = demand - count;
        // The others take nothing, or all they can.
        let least = count.saturating_sub(most_supply);
        let most = (*count).min((count + others).saturating_sub(least_supply));
        let entry = left.entry(*ends).or_default();
        *entry = (entry.0.max(least), entry.1.max(most));
    }
}
