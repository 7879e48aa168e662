//! A running capture of one sensor: what workers offer frames to, what control opens and closes.
//!
//! ```text
//! worker --offer(frame)--> Packer: filter, sampling, encode --> Run (datagrams, bytes)
//!                                                                | full, or flush time
//!                                                                v
//!              any worker, one at a time:  Outbox --number--> Datagrams (UDP) | Tcp
//! control --open/close, set_filter--> Sessions (Shared list) --wake--> workers
//! ```
//!
//! Sessions of a group share the packets between them, by flow: `group` says who takes part,
//! `balance` who gets what, `flow` what a flow is.
//!
//! The protocol's conversation is `control`'s; this module knows no message but the two data
//! encodings.

pub mod balance;
mod datagrams;
pub mod flow;
mod group;
mod outbox;
mod packer;
mod path;
mod run;
mod sampler;
mod tcp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

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

/// How long a client may take to read what waits for it when its capture was ended, if nobody
/// decides before.
const ENDING: Duration = Duration::from_secs(5);

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
    /// The most bytes of UDP payload per datagram, as `--datagram-bytes` fixes it; `None` is what
    /// the path takes.
    pub datagram_bytes: Option<usize>,
    /// The client showed that it takes UDP payloads of any size, not just 1472 bytes.
    pub takes_large_datagrams: bool,
    /// The longest that the client wants what was captured to wait, ns; the tap's own time
    /// (`--flush-us`) is kept if it is shorter.
    pub longest_wait_ns: u64,
    /// The sensor's filter; `None` accepts everything.
    pub filter: Option<Program>,
    /// The sensor's sampling.
    pub sampling: Sampling,
}

/// What [`Session::pump`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pump {
    /// Nothing waits. Always so with UDP, which gives up what the kernel does not take.
    Idle,
    /// Data wait for the client: call again when the socket is writable.
    Blocked,
    /// The data connection is over: the client is gone, or the session was closed.
    Broken,
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
        Self::open_for(spec, 1)
    }

    /// For so many workers.
    fn open_for(mut spec: SessionSpec, workers: usize) -> io::Result<Arc<Self>> {
        // A control connection that came in over IPv6's socket may be an IPv4 one.
        spec.peer.set_ip(spec.peer.ip().to_canonical());
        let any: IpAddr = match spec.peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(spec.peer)?;
        socket.set_nonblocking(true)?;
        force_send_buffer(&socket, SEND_BUFFER);
        let outbox = Outbox::udp(socket.into(), &spec, workers)?;
        let session = Self::new(spec, outbox);
        // Sends the first probe, and on loopback finds its answer.
        session.pump();
        session.pump();
        Ok(session)
    }

    fn new(spec: SessionSpec, outbox: Outbox) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            // Relaxed: only uniqueness matters.
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            stats: SessionStats::default(),
            filter: Shared::new(spec.filter.clone()),
            sampler: Sampler::new(spec.sampling),
            outbox,
            spec,
        })
    }

    /// A capture whose data go over `stream`, which is connected; as plain messages, whatever
    /// the encoding. The stream becomes non-blocking.
    ///
    /// # Errors
    ///
    /// What setting the socket's options answers.
    pub fn over_tcp(spec: SessionSpec, stream: TcpStream) -> io::Result<Arc<Self>> {
        Self::over_tcp_for(spec, stream, 1)
    }

    fn over_tcp_for(spec: SessionSpec, stream: TcpStream, workers: usize) -> io::Result<Arc<Self>> {
        let socket = Socket::from(stream);
        socket.set_nonblocking(true)?;
        // Runs are as large as they should be, and are not to wait for an acknowledgement.
        socket.set_tcp_nodelay(true)?;
        Ok(Self::new(spec, Outbox::tcp(socket, workers)))
    }

    /// Sends what waits, as far as that goes without blocking. May be called at any time and by
    /// any thread: when the data socket has become writable, and now and then.
    pub fn pump(&self) -> Pump {
        self.outbox.pump(&self.stats)
    }

    /// The end, for good: what still waits is given up and counted, a TCP client sees the end of
    /// the stream. Never blocks; a repeated call does nothing.
    pub fn close(&self) {
        self.outbox.close(&self.stats);
    }

    /// The data socket, to wait until it is writable.
    #[must_use]
    pub fn data_socket(&self) -> BorrowedFd<'_> {
        self.outbox.socket()
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
    sensors: Mutex<Vec<Arc<SensorStats>>>,
    /// Sessions that were taken out, until all is flushed or given up.
    ending: Mutex<Vec<Ending>>,
}

/// A session that was taken out.
#[derive(Debug)]
struct Ending {
    session: Arc<Session>,
    /// Workers that have seen this have flushed what they held for it.
    generation: u64,
    since: Instant,
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
        let (membership, sensors) = (Mutex::default(), Mutex::new(sensors));
        Arc::new(Self { list, membership, seen, wakers, sensors, ending })
    }

    /// [`Session::open`], for these workers.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn open(&self, spec: SessionSpec) -> io::Result<Arc<Session>> {
        Session::open_for(spec, self.seen.len())
    }

    /// [`Session::over_tcp`], for these workers.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn open_over_tcp(&self, spec: SessionSpec, stream: TcpStream) -> io::Result<Arc<Session>> {
        Session::over_tcp_for(spec, stream, self.seen.len())
    }

    /// A place for the counts of the sensor of this index, the next if it is new. Where nobody
    /// counts, there is none.
    pub fn count_sensor(&self, index: usize, label: &str) {
        let mut sensors = self.lock_sensors();
        if !sensors.is_empty() && sensors.len() == index {
            sensors.push(Arc::new(SensorStats::new(label.to_owned())));
        }
    }

    fn lock_sensors(&self) -> MutexGuard<'_, Vec<Arc<SensorStats>>> {
        self.sensors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts_of(&self, sensor: usize) -> Option<Arc<SensorStats>> {
        self.lock_sensors().get(sensor).cloned()
    }

    /// The sensors' counts as of now, ended sessions included.
    #[must_use]
    pub fn sensors(&self) -> Vec<Arc<SensorStats>> {
        let mut ending = self.lock_ending();
        ending.retain(|Ending { session, generation, .. }| {
            let is_over = self.is_seen(*generation) && session.pump() != Pump::Blocked;
            if is_over {
                session.close();
                if let Some(stats) = self.counts_of(session.spec.sensor) {
                    stats.end(session.id);
                }
            }
            !is_over
        });
        drop(ending);
        self.lock_sensors().clone()
    }

    /// Workers offer frames to `session` as soon as they see the change:
    /// [`is_seen`](Self::is_seen) with the returned generation tells when all have. What it shares
    /// with others it gets then, or, if it is back after an absence, when it has settled.
    pub fn add(&self, session: Arc<Session>) -> u64 {
        if let Some(stats) = self.counts_of(session.spec.sensor) {
            let counted = Arc::clone(&session);
            stats.begin(session.id, move || (&counted.stats).into());
        }
        self.change("capture started", |membership, list| {
            membership.enter(&session, Instant::now());
            list.push(Arc::clone(&session));
        })
    }

    /// Takes a session out. Workers flush what they hold for it when they see the change:
    /// [`is_drained_of`](Self::is_drained_of) with the returned generation tells when all have, and
    /// [`abandon_one`](Self::abandon_one) ends it if that takes too long.
    pub fn remove(&self, id: u64) -> u64 {
        let mut removed = None;
        let generation = self.change("capture ended", |membership, list| {
            membership.leave(id);
            list.retain(|session| {
                if session.id == id {
                    removed = Some(Arc::clone(session));
                }
                session.id != id
            });
        });
        if let Some(session) = removed {
            self.lock_ending().push(Ending { session, generation, since: Instant::now() });
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
    pub fn tend_groups(&self, now: Instant) -> Option<Instant> {
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
                membership.count_moves(&self.lock_sensors(), &old, &roster, reason);
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
        membership.count_moves(&self.lock_sensors(), &old, &roster, reason);
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

    /// True once every worker has seen `generation` and flushed what it ended, and the clients of
    /// all sessions that were ended up to then were sent what waited for them: for the end of all.
    #[must_use]
    pub fn is_drained(&self, generation: u64) -> bool {
        self.is_flushed(generation, |ending| ending.generation <= generation)
    }

    /// The same of one session, which `generation` ended; others' clients may take their time.
    #[must_use]
    pub fn is_drained_of(&self, id: u64, generation: u64) -> bool {
        self.is_flushed(generation, |ending| ending.session.id == id)
    }

    fn is_flushed(&self, generation: u64, is_awaited: impl Fn(&Ending) -> bool) -> bool {
        let _counts = self.sensors();
        self.is_seen(generation) && !self.lock_ending().iter().any(is_awaited)
    }

    /// The time of all sessions that were ended up to `generation` is over: what still waits is
    /// given up and counted.
    pub fn abandon(&self, generation: u64) {
        self.close_ending(|ending| ending.generation <= generation);
    }

    /// The same of one session.
    pub fn abandon_one(&self, id: u64) {
        self.close_ending(|ending| ending.session.id == id);
    }

    fn close_ending(&self, is_over: impl Fn(&Ending) -> bool) {
        let ending = self.lock_ending();
        ending.iter().filter(|ending| is_over(ending)).for_each(|ending| ending.session.close());
    }

    /// Goes on with sessions that nobody waits for, as those of a lost control connection, and
    /// never waits itself.
    pub fn tend(&self) {
        let Ok(ending) = self.ending.try_lock() else { return };
        for Ending { session, since, .. } in ending.iter() {
            if since.elapsed() > ENDING {
                session.close();
            } else {
                session.pump();
            }
        }
    }

    fn lock_ending(&self) -> MutexGuard<'_, Vec<Ending>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once every worker has seen `generation`: its kernel filter lets pass what the sessions
    /// of that generation want, and its frames are offered to them.
    #[must_use]
    pub fn is_seen(&self, generation: u64) -> bool {
        // ORDER: Acquire, pairs with the Release in `mark_seen`: the flush came before it.
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= generation)
    }

    /// Gives an open session another filter. Workers take it between two batches, together with
    /// the socket filter that follows from it, and are woken to do so: the one in force may keep
    /// every frame from them. [`is_seen`](Self::is_seen) with the returned generation tells when
    /// all have.
    pub fn set_filter(&self, session: &Session, filter: Option<Program>) -> u64 {
        session.filter.replace(filter);
        // Held so that no change of the list is undone.
        let _membership = self.membership();
        // The same list under a new number, which workers look for.
        self.publish(Roster::clone(&self.list.load()))
    }

    /// Worker `index` has flushed everything that `generation` ended.
    pub fn mark_seen(&self, index: usize, generation: u64) {
        // ORDER: Release, pairs with the Acquire in `is_seen`.
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

#[cfg(test)]
mod tests;
