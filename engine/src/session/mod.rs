//! A running capture of one sensor: what workers offer frames to, what control opens and closes.
//!
//! ```text
//! worker --offer(frame)--> Packer: filter, sampling, encode --> Run (datagrams, bytes)
//!                                                                | full, or flush time
//!                                                                v
//!              any worker, one at a time:  Outbox --number, send--> UDP socket
//! control --open/close, set_filter--> Sessions (Shared list) --wake--> workers
//! ```
//!
//! Sessions of a group share the packets between them, by flow: `group` says who takes part,
//! `balance` who gets what, `flow` what a flow is.
//!
//! The protocol's conversation is `control`'s; this module knows no message but the two data
//! encodings.

pub mod balance;
pub mod flow;
mod group;
mod outbox;
mod packer;
mod run;
mod sampler;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::bpf::Program;
use crate::rpcap::Sampling;
use crate::shared::{Reader, Shared};
use crate::stats::SessionStats;
use crate::stats::sensor::SensorStats;
use crate::sys::{Waker, force_send_buffer};

use group::Membership;
pub use group::{Group, Roster, Share};
use outbox::Outbox;
pub use packer::Packer;
pub(crate) use run::MIN_DATAGRAM;
use sampler::Sampler;

/// Send buffer asked for, bytes: what the reference takes.
const SEND_BUFFER: usize = 8 << 20;

/// UDP form of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Message type 110: a stream of packets cut into datagrams.
    Stream,
    /// Message type 7: one packet per datagram.
    Plain,
}

/// What a sensor asked for in STARTCAP, and what the tap adds.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// Index of the sensor in the configuration; a label in metrics.
    pub sensor: usize,
    /// What it shares with other sessions; `None` gets every packet that it asks for.
    pub share: Option<Share>,
    /// The one interface that was opened; `None` for `any-eth`.
    pub interface: Option<String>,
    /// Where datagrams go: the control connection's peer, the port from STARTCAP.
    pub peer: SocketAddr,
    /// UDP form.
    pub encoding: Encoding,
    /// The most bytes of a frame, 1..=262144.
    pub snaplen: u32,
    /// The most bytes of UDP payload per datagram.
    pub datagram_bytes: usize,
    /// The sensor's filter; `None` accepts everything.
    pub filter: Option<Program>,
    /// The sensor's sampling.
    pub sampling: Sampling,
}

/// A running capture.
#[derive(Debug)]
pub struct Session {
    /// Unique in this process.
    pub id: u64,
    /// As it was opened.
    pub spec: SessionSpec,
    /// Counters.
    pub stats: SessionStats,
    filter: Shared<Option<Program>>,
    sampler: Sampler,
    outbox: Outbox,
}

impl Session {
    /// Opens the data socket.
    ///
    /// # Errors
    ///
    /// What `socket`, `bind` or `connect` answers.
    pub fn open(spec: SessionSpec) -> io::Result<Arc<Self>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: only uniqueness matters.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let any: IpAddr = match spec.peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(spec.peer)?;
        socket.set_nonblocking(true)?;
        force_send_buffer(&socket, SEND_BUFFER);
        let datagram_bytes = spec.datagram_bytes.max(MIN_DATAGRAM);
        Ok(Arc::new(Self {
            id,
            stats: SessionStats::default(),
            filter: Shared::new(spec.filter.clone()),
            sampler: Sampler::new(spec.sampling),
            outbox: Outbox::new(socket, spec.encoding, datagram_bytes),
            spec,
        }))
    }

    /// Replaces the sensor's filter; frames already encoded are not called back.
    pub fn set_filter(&self, filter: Option<Program>) {
        self.filter.replace(filter);
    }
}

/// The sessions that are open, as control changes them and workers read them.
#[derive(Debug)]
pub struct Sessions {
    list: Shared<Roster>,
    membership: Mutex<Membership>,
    seen: Box<[AtomicU64]>,
    wakers: Vec<Waker>,
    /// Each sensor's counts, over all its sessions.
    sensors: Vec<Arc<SensorStats>>,
    /// Sessions that were taken out, until all workers have flushed: generation, sensor, id.
    ending: Mutex<Vec<(u64, usize, u64)>>,
}

impl Sessions {
    /// No session yet; `wakers` wake the workers, one each.
    #[must_use]
    pub fn new(wakers: Vec<Waker>) -> Arc<Self> {
        Self::counting(wakers, Vec::new())
    }

    /// As [`new`](Self::new), with a place for each sensor's counts.
    #[must_use]
    pub fn counting(wakers: Vec<Waker>, sensors: Vec<Arc<SensorStats>>) -> Arc<Self> {
        let seen = wakers.iter().map(|_| AtomicU64::new(0)).collect();
        let (list, ending) = (Shared::new(Roster::default()), Mutex::default());
        Arc::new(Self { list, membership: Mutex::default(), seen, wakers, sensors, ending })
    }

    /// The sensors' counts as of now, ended sessions included.
    #[must_use]
    pub fn sensors(&self) -> Vec<Arc<SensorStats>> {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.retain(|(generation, sensor, id)| {
            let is_drained = self.is_drained(*generation);
            if is_drained && let Some(stats) = self.sensors.get(*sensor) {
                stats.end(*id);
            }
            !is_drained
        });
        self.sensors.clone()
    }

    /// Workers offer frames to `session` from now on; what it shares with others, unless it is
    /// back after an absence: then when it has settled.
    pub fn add(&self, session: Arc<Session>) {
        if let Some(stats) = self.sensors.get(session.spec.sensor) {
            let counted = Arc::clone(&session);
            stats.begin(session.id, move || (&counted.stats).into());
        }
        self.change("capture started", |membership, list| {
            membership.enter(&session, Instant::now());
            list.push(Arc::clone(&session));
        });
    }

    /// Takes a session out. Workers flush what they hold for it when they see the change:
    /// [`is_drained`](Self::is_drained) with the returned generation tells when all have.
    pub fn remove(&self, id: u64) -> u64 {
        let mut sensor = None;
        let generation = self.change("capture ended", |membership, list| {
            membership.leave(id);
            list.retain(|session| {
                if session.id == id {
                    sensor = Some(session.spec.sensor);
                }
                session.id != id
            });
        });
        if let Some(sensor) = sensor {
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            ending.push((generation, sensor, id));
            drop(ending);
            // Those that ended before, so that the list stays short with nobody reading.
            let _counts = self.sensors();
        }
        generation
    }

    /// Takes a session's share away from it while it stays open: there are signs that nobody
    /// receives it. It keeps it if there are such signs of every other.
    pub fn suspect(&self, id: u64, reason: &str) {
        self.regroup(reason, |membership| membership.suspect(id));
    }

    /// The opposite of [`suspect`](Self::suspect): it gets its share back when it has settled.
    pub fn trust(&self, id: u64) {
        self.regroup("answers again", |membership| membership.trust(id, Instant::now()));
    }

    /// Ends the settling of those whose time has come; when to call again, if ever.
    pub fn tend(&self, now: Instant) -> Option<Instant> {
        let due = self.membership().due();
        if due.is_some_and(|due| due <= now) {
            self.regroup("settled", |membership| membership.settle(now));
            return self.membership().due();
        }
        due
    }

    fn regroup(&self, reason: &str, change: impl FnOnce(&mut Membership) -> bool) {
        let mut membership = self.membership();
        if change(&mut membership) {
            let old = self.list.load();
            let roster = membership.roster(old.to_vec(), &old);
            if roster.groups() != old.groups() {
                membership.count_moves(&self.sensors, &old, &roster, reason);
                self.publish(roster);
            }
        }
    }

    fn change(
        &self,
        reason: &str,
        change: impl FnOnce(&mut Membership, &mut Vec<Arc<Session>>),
    ) -> u64 {
        // Held to the end, so that no other change comes between; workers never take it.
        let mut membership = self.membership();
        let old = self.list.load();
        let mut sessions = old.to_vec();
        change(&mut membership, &mut sessions);
        let roster = membership.roster(sessions, &old);
        membership.count_moves(&self.sensors, &old, &roster, reason);
        self.publish(roster)
    }

    fn publish(&self, roster: Roster) -> u64 {
        let generation = self.list.replace(roster);
        for waker in &self.wakers {
            waker.wake();
        }
        generation
    }

    fn membership(&self) -> MutexGuard<'_, Membership> {
        self.membership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once every worker has seen `generation` and flushed what it ended.
    #[must_use]
    pub fn is_drained(&self, generation: u64) -> bool {
        // ORDER: Acquire, pairs with the Release in `mark_seen`: the flush came before it.
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= generation)
    }

    /// Worker `index` has flushed everything that `generation` ended.
    pub fn mark_seen(&self, index: usize, generation: u64) {
        // ORDER: Release, pairs with the Acquire in `is_drained`.
        self.seen[index].store(generation, Ordering::Release);
    }

    /// A worker's view of the list.
    #[must_use]
    pub fn reader(&self) -> Reader<Roster> {
        self.list.reader()
    }

    /// The list now.
    #[must_use]
    pub fn load(&self) -> Arc<Roster> {
        self.list.load()
    }
}
