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
//! The protocol's conversation is `control`'s; this module knows no message but the two data
//! encodings.

mod outbox;
mod packer;
mod run;
mod sampler;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bpf::Program;
use crate::rpcap::Sampling;
use crate::shared::{Reader, Shared};
use crate::stats::SessionStats;
use crate::stats::sensor::SensorStats;
use crate::sys::{Waker, force_send_buffer};

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
}

/// The sessions that are open, as control changes them and workers read them.
#[derive(Debug)]
pub struct Sessions {
    list: Shared<Vec<Arc<Session>>>,
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
        let (list, ending) = (Shared::new(Vec::new()), Mutex::default());
        Arc::new(Self { list, seen, wakers, sensors, ending })
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

    /// Workers offer frames to `session` from now on.
    pub fn add(&self, session: Arc<Session>) {
        if let Some(stats) = self.sensors.get(session.spec.sensor) {
            let counted = Arc::clone(&session);
            stats.begin(session.id, move || (&counted.stats).into());
        }
        self.change(|list| list.push(Arc::clone(&session)));
    }

    /// Takes a session out. Workers flush what they hold for it when they see the change:
    /// [`is_drained`](Self::is_drained) with the returned generation tells when all have.
    pub fn remove(&self, id: u64) -> u64 {
        let mut sensor = None;
        let generation = self.change(|list| {
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

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Session>>)) -> u64 {
        let generation = self.list.update(|old| {
            let mut list = old.clone();
            change(&mut list);
            list
        });
        for waker in &self.wakers {
            waker.wake();
        }
        generation
    }

    /// True once every worker has seen `generation` and flushed what it ended.
    #[must_use]
    pub fn is_drained(&self, generation: u64) -> bool {
        // ORDER: Acquire, pairs with the Release in `mark_seen`: the flush came before it.
        self.seen.iter().all(|seen| seen.load(Ordering::Acquire) >= generation)
    }

    /// Gives an open session another filter. Workers take it between two batches, together with
    /// the socket filter that follows from it, and are woken to do so: the one in force may keep
    /// every frame from them.
    pub fn set_filter(&self, session: &Session, filter: Option<Program>) {
        session.filter.replace(filter);
        for waker in &self.wakers {
            waker.wake();
        }
    }

    /// Worker `index` has flushed everything that `generation` ended.
    pub fn mark_seen(&self, index: usize, generation: u64) {
        // ORDER: Release, pairs with the Acquire in `is_drained`.
        self.seen[index].store(generation, Ordering::Release);
    }

    /// A worker's view of the list.
    #[must_use]
    pub fn reader(&self) -> Reader<Vec<Arc<Session>>> {
        self.list.reader()
    }

    /// The list now.
    #[must_use]
    pub fn load(&self) -> Arc<Vec<Arc<Session>>> {
        self.list.load()
    }
}
