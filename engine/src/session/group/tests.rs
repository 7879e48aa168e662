//! Membership as control sees it, and workers that run while it changes.

use std::net::UdpSocket;
use std::sync::atomic::Ordering;
use std::thread;

use super::*;
use crate::bpf::Program;
use crate::classify::{Classifier, Policy};
use crate::dedup::{Fingerprinter, Table};
use crate::frame::{Direction, Frame, Offload, Point};
use crate::net::View;
use crate::pipeline::Pipeline;
use crate::rpcap::{BpfInsn, Sampling};
use crate::session::{Encoding, SessionSpec, Sessions};
use crate::shared::Shared;
use crate::source::memory::{MemoryBatch, MemorySource, OwnedFrame};
use crate::source::{Source, SourceStats};
use crate::stats::WorkerStats;
use crate::stats::histogram::WorkerHistograms;
use crate::sys::Waker;
use crate::worker::{self, Lifecycle};

const SETTLE: Duration = Duration::from_secs(5);

/// A receiver that nobody reads: what matters here is what is offered.
fn receiver() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

fn session(to: &UdpSocket, group: Option<usize>, sensor: usize, ordinal: usize) -> Arc<Session> {
    let share = group.map(|group| Share {
        group,
        sensor: format!("sensor-{sensor}:2003"),
        ordinal,
        settle: SETTLE,
    });
    Session::open(SessionSpec {
        sensor,
        share,
        interface: None,
        peer: to.local_addr().unwrap(),
        encoding: Encoding::Stream,
        snaplen: 65_535,
        datagram_bytes: None,
        takes_large_datagrams: false,
        longest_wait_ns: u64::MAX,
        filter: None::<Program>,
        sampling: Sampling { method: 0, value: 0 },
    })
    .unwrap()
}

fn stats(sensors: usize) -> Vec<Arc<SensorStats>> {
    (0..sensors).map(|n| Arc::new(SensorStats::new(format!("sensor-{n}:2003")))).collect()
}

/// Members of the only group, by session.
fn members(sessions: &Sessions) -> Vec<u64> {
    let roster = sessions.load();
    let mut ids: Vec<u64> =
        roster.groups().iter().flat_map(|g| g.members().iter().map(|m| m.id)).collect();
    ids.sort_unstable();
    ids
}

fn moves(stats: &SensorStats) -> [u64; 3] {
    [Move::Joined, Move::Left, Move::Returned].map(|kind| stats.moves(kind))
}

#[test]
fn the_first_start_has_no_settle_time_and_a_return_has() {
    let to = receiver();
    let stats = stats(2);
    let sessions = Sessions::counting(Vec::new(), stats.clone());
    let open = |sensor| {
        let session = session(&to, Some(0), sensor, 0);
        sessions.add(Arc::clone(&session));
        session.id
    };
    let (a, b) = (open(0), open(1));
    assert_eq!(members(&sessions), [a, b]);
    assert_eq!(sessions.tend_groups(Instant::now()), None, "nothing settles");
    assert_eq!(stats[0].slots() + stats[1].slots(), 4096);
    let of_b = stats[1].slots();
    assert_eq!(stats[1].slots_moved(), of_b, "what b got, a had");

    sessions.remove(b);
    assert_eq!(members(&sessions), [a]);
    assert_eq!((stats[0].slots(), stats[0].slots_moved(), stats[1].slots()), (4096, of_b, 0));
    let before = Instant::now();
    let b = open(1);
    assert_eq!(members(&sessions), [a], "b settles");
    let due = sessions.tend_groups(before).unwrap();
    assert!(due >= before + SETTLE && due <= Instant::now() + 2 * SETTLE);
    assert_eq!(sessions.tend_groups(due), None);
    assert_eq!(members(&sessions), [a, b]);
    assert_eq!([moves(&stats[0]), moves(&stats[1])], [[1, 0, 0], [1, 1, 1]]);
    assert_eq!(stats[1].slots(), of_b, "its own flows, no others");
}

#[test]
fn who_settles_is_used_when_nobody_else_is_there() {
    let to = receiver();
    let stats = stats(2);
    let sessions = Sessions::counting(Vec::new(), stats.clone());
    let open = |sensor| {
        let session = session(&to, Some(0), sensor, 0);
        sessions.add(Arc::clone(&session));
        session.id
    };
    let (a, b) = (open(0), open(1));
    sessions.remove(b);
    let b = open(1);
    assert_eq!(members(&sessions), [a]);
    sessions.remove(a);
    assert_eq!(members(&sessions), [b], "a doubt, never a loss");
    let a = open(0);
    assert_eq!(members(&sessions), [b], "a settles; b need not any more");
    let due = sessions.tend_groups(Instant::now()).unwrap();
    assert_eq!(sessions.tend_groups(due), None);
    assert_eq!(members(&sessions), [b, a]);
    assert_eq!([moves(&stats[0]), moves(&stats[1])], [[1, 1, 1], [1, 1, 1]], "none twice");
    sessions.remove(a);
    sessions.remove(b);
    assert!(sessions.load().groups().is_empty());
    assert_eq!(stats[0].slots() + stats[1].slots(), 0);
}

#[test]
fn a_suspect_loses_its_share_until_it_has_settled_again() {
    let to = receiver();
    let stats = stats(2);
    let sessions = Sessions::counting(Vec::new(), stats.clone());
    let open = |sensor| {
        let session = session(&to, Some(0), sensor, 0);
        sessions.add(Arc::clone(&session));
        session.id
    };
    let (a, b) = (open(0), open(1));
    sessions.suspect(a, "test");
    sessions.suspect(a, "test");
    assert_eq!((members(&sessions), sessions.load().len()), (vec![b], 2), "its capture goes on");
    assert_eq!(moves(&stats[0]), [1, 1, 0]);
    // With nobody else left, a suspect may be innocent.
    sessions.suspect(b, "test");
    assert_eq!(members(&sessions), [a, b]);
    sessions.trust(b);
    assert_eq!(members(&sessions), [b]);
    sessions.trust(a);
    assert_eq!(members(&sessions), [b], "a settles; b was needed at once");
    let due = sessions.tend_groups(Instant::now()).unwrap();
    assert_eq!((sessions.tend_groups(due), members(&sessions)), (None, vec![a, b]));
    sessions.trust(a);
    assert_eq!(sessions.tend_groups(due), None, "who is trusted stays so");
}

#[test]
fn nodes_that_return_in_one_period_settle_at_one_moment() {
    let ms = Duration::from_millis;
    for (wall, expected) in [(10_000, 5000), (10_001, 9999), (12_500, 7500), (14_999, 5001)] {
        assert_eq!(settling_at(ms(wall), SETTLE), ms(expected), "at {wall} ms");
    }
    assert_eq!(settling_at(ms(12_345), Duration::ZERO), Duration::ZERO);
}

#[test]
fn a_lost_connections_share_stays_with_its_sensor() {
    let to = receiver();
    let stats = stats(2);
    let sessions = Sessions::counting(Vec::new(), stats.clone());
    let mut ids = Vec::new();
    for (sensor, ordinal) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let session = session(&to, Some(0), sensor, ordinal);
        sessions.add(Arc::clone(&session));
        ids.push(session.id);
    }
    let shares = [stats[0].slots(), stats[1].slots()];
    sessions.remove(ids[1]);
    assert_eq!([stats[0].slots(), stats[1].slots()], shares);
    assert_eq!([moves(&stats[0]), moves(&stats[1])], [[1, 0, 0]; 2], "no sensor has moved");
    sessions.remove(ids[0]);
    assert_eq!([stats[0].slots(), stats[1].slots()], [0, 4096]);
    assert_eq!(moves(&stats[0]), [1, 1, 0]);
}

#[test]
fn a_change_elsewhere_leaves_a_group_as_it_is() {
    let to = receiver();
    let sessions = Sessions::counting(Vec::new(), stats(3));
    sessions.add(session(&to, Some(0), 0, 0));
    sessions.add(session(&to, Some(0), 1, 0));
    let group = Arc::clone(&sessions.load().groups()[0]);
    let generation = sessions.reader().generation();
    let alone = session(&to, None, 2, 0);
    sessions.add(Arc::clone(&alone));
    sessions.suspect(alone.id, "a session that shares nothing");
    assert!(Arc::ptr_eq(&group, &sessions.load().groups()[0]));
    assert_eq!((sessions.reader().generation(), sessions.load().len()), (generation + 1, 3));
}

/// Frames of many flows, handed out a few at a time, for so many rounds.
struct Rounds {
    frames: MemorySource,
    left: u32,
}

impl Source for Rounds {
    type Batch<'a> = MemoryBatch<'a>;

    fn next_batch(&mut self) -> Option<MemoryBatch<'_>> {
        if self.frames.is_exhausted() {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                return None;
            }
            self.frames.rewind();
        }
        self.frames.next_batch()
    }

    fn wait(&mut self, _timeout: Duration) -> std::io::Result<()> {
        Ok(())
    }

    fn stats(&mut self) -> std::io::Result<SourceStats> {
        Ok(SourceStats::default())
    }

    fn set_filter(&mut self, _program: &[BpfInsn]) -> std::io::Result<()> {
        Ok(())
    }

    fn is_exhausted(&self) -> bool {
        self.left == 0
    }
}

fn udp_frame(n: u16) -> OwnedFrame {
    let mut data = vec![0; 12];
    data.extend([8, 0, 0x45, 0, 0, 30]);
    data.extend(n.to_be_bytes());
    data.extend([0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    data.extend(n.to_be_bytes());
    data.extend([0, 53, 0, 10, 0, 0, 1, 2]);
    Frame {
        data: &data,
        wire_len: 44,
        timestamp_ns: 1,
        point: Point { ifindex: 3, direction: Direction::In },
        vlan: None,
        offload: Offload::default(),
    }
    .into()
}

/// Two workers, and members that come and go all the while: `change` is called again and again.
/// Returns what was admitted.
fn work_while(sessions: &Arc<Sessions>, mut change: impl FnMut(u32)) -> u64 {
    let table = Arc::new(Table::new(1 << 20, 1).unwrap());
    let policy = Policy { any_interface: true, ..Policy::default() };
    let classifier = Shared::new(Classifier::new(&policy, &View::default(), &[]));
    let life = Arc::new(Lifecycle::default());
    let all: Vec<Arc<WorkerStats>> = (0..2).map(|_| Arc::default()).collect();
    let threads: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(index, stats)| {
            let context = worker::Context {
                index,
                pipeline: Pipeline::new(Arc::clone(&table), Fingerprinter::new(1)),
                classifier: classifier.reader(),
                sessions: Arc::clone(sessions),
                stats: Arc::clone(stats),
                histograms: WorkerHistograms::default(),
                flush_ns: 1_000_000,
                clock: worker::Clock::Worker,
                life: Arc::clone(&life),
            };
            let frames = MemorySource::new((0..512).map(udp_frame).collect(), 7);
            thread::spawn(move || worker::run(Rounds { frames, left: 200 }, context))
        })
        .collect();
    let mut round = 0;
    while threads.iter().any(|thread| !thread.is_finished()) {
        change(round);
        round += 1;
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(round > 10, "it changed while they worked");
    all.iter().map(|stats| stats.admitted.get()).sum()
}

fn offered<'a>(sessions: impl IntoIterator<Item = &'a Arc<Session>>) -> u64 {
    sessions.into_iter().map(|s| s.stats.offered.load(Ordering::Relaxed)).sum()
}

#[test]
fn each_admitted_packet_is_offered_to_one_member_whatever_changes() {
    let to = receiver();
    let sessions = Sessions::counting(vec![Waker::new().unwrap(); 2], stats(3));
    let mut all = Vec::new();
    let mut open: Vec<Arc<Session>> = Vec::new();
    let admitted = work_while(&sessions, |round| {
        let sensor = usize::try_from(round * 7 % 3).unwrap();
        match (round % 5, open.iter().position(|s| s.spec.sensor == sensor)) {
            (0 | 1, None) => {
                let session = session(&to, Some(0), sensor, 0);
                sessions.add(Arc::clone(&session));
                all.push(Arc::clone(&session));
                open.push(session);
            }
            (2, Some(at)) => {
                sessions.remove(open.swap_remove(at).id);
            }
            (3, Some(at)) => sessions.suspect(open[at].id, "test"),
            (4, Some(at)) => {
                sessions.trust(open[at].id);
                sessions.tend_groups(Instant::now() + 2 * SETTLE);
            }
            _ => {}
        }
    });
    assert!(admitted > 0 && all.len() > 3);
    assert_eq!(offered(&all), admitted);
}

#[test]
fn in_copy_mode_each_sensors_connections_get_each_packet_once_between_them() {
    let to = receiver();
    let sessions = Sessions::counting(vec![Waker::new().unwrap(); 2], stats(3));
    let mut all = Vec::new();
    for (group, ordinal) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] {
        let session = session(&to, Some(group), group, ordinal);
        sessions.add(Arc::clone(&session));
        all.push(session);
    }
    // One that shares nothing, as a passive client does: it gets everything.
    let whole = session(&to, None, 2, 0);
    sessions.add(Arc::clone(&whole));
    let admitted = work_while(&sessions, |round| {
        let session = &all[usize::try_from(round % 5).unwrap()];
        sessions.suspect(session.id, "test");
        let session = &all[usize::try_from((round + 2) % 5).unwrap()];
        sessions.trust(session.id);
        sessions.tend_groups(Instant::now() + 2 * SETTLE);
    });
    for group in 0..2 {
        assert_eq!(offered(all.iter().filter(|s| s.spec.sensor == group)), admitted);
        assert!(all.iter().all(|s| s.stats.offered.load(Ordering::Relaxed) > 0));
    }
    assert_eq!(offered([&whole]), admitted);
}

#[test]
fn the_flows_of_a_member_that_leaves_move_and_no_others() {
    let to = receiver();
    let sessions = Sessions::counting(Vec::new(), stats(3));
    let all: Vec<_> = (0..3).map(|sensor| session(&to, Some(0), sensor, 0)).collect();
    all.iter().for_each(|session| {
        sessions.add(Arc::clone(session));
    });
    let owners = || -> Vec<u64> {
        let group = Arc::clone(&sessions.load().groups()[0]);
        (0..SLOTS).map(|slot| group.members()[group.owner(slot)].id).collect()
    };
    let before = owners();
    sessions.remove(all[1].id);
    for (before, after) in before.iter().zip(owners()) {
        assert!(if *before == all[1].id { after != *before } else { after == *before });
    }
}
