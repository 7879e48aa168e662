//! The control thread: one mio loop over every sensor's and client's sockets, and the handle that
//! stops it.
//!
//! ```text
//! poll(timeout: whatever is due first) --> note events --> step sensors, clients --> poll ...
//!                  ^ waker: an answer of the resolver, or shutdown
//! ```
//!
//! Stepping all of at most 256 connections to sensors and 64 clients at each turn costs nothing next
//! to a system call, and leaves no timer to forget.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::net::View;
use crate::rpcap::Stats;
use crate::session::Sessions;
use crate::shared::Shared;
use crate::stats::control::ControlStats;

use super::active::{Role, Sensor};
use super::auth::Guesses;
use super::config::{Context, ControlConfig, SensorTarget, Timing};
use super::passive::Passive;
use super::resolve::{Addresses, Resolver};
use super::state::{SensorStates, SensorStatus};

/// The most sensors: each is a full copy of the traffic.
pub const MAX_SENSORS: usize = 64;
/// The most connections to one sensor.
pub const MAX_SESSIONS_PER_SENSOR: usize = 16;
/// The most connections to all sensors.
pub const MAX_CONNECTIONS: usize = 256;
/// The waker's token; connections to sensors have their indices.
const WAKER: Token = Token(usize::MAX);
/// Bits of the other tokens: a listener's or a client's place follows, as does the place of the
/// connection whose data socket it is.
const LISTENER: usize = 1 << 20;
const CLIENT: usize = 1 << 21;
const DATA: usize = 1 << 22;

/// The token of a listener.
pub(super) fn listener_token(index: usize) -> Token {
    Token(LISTENER | index)
}

/// The token of the client in this slot.
pub(super) fn client_token(slot: usize) -> Token {
    Token(CLIENT | slot)
}

/// The token of the data socket that belongs to a connection.
pub(super) fn data_token(connection: Token) -> Token {
    Token(DATA | connection.0)
}
/// What metrics call all clients that connected to the tap, together: there may be any.
pub const CLIENTS: &str = "passive";
/// How often workers are asked whether they have flushed, at the end.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// The running control thread. Dropping it ends the captures without waiting for them.
#[derive(Debug)]
pub struct Control {
    thread: Option<JoinHandle<bool>>,
    /// Tells the thread until when it may wait for workers.
    stop: mpsc::Sender<Instant>,
    waker: Arc<Waker>,
    changes: mpsc::Sender<ControlConfig>,
    states: SensorStates,
    stats: Arc<ControlStats>,
    listening: Vec<SocketAddr>,
}

impl Control {
    /// Starts the thread, which connects to every sensor, listens for clients, and serves both
    /// until [`shutdown`](Self::shutdown).
    ///
    /// `capture_stats` counts for the whole node, from any moment on; it is called on the control
    /// thread, as often as sensors ask, and must not block. Its `sent` is not used.
    ///
    /// # Errors
    ///
    /// More than [`MAX_SENSORS`], an address that cannot be listened on, or no epoll instance or
    /// thread to be had.
    pub fn start(
        config: ControlConfig,
        sessions: Arc<Sessions>,
        view: Shared<View>,
        capture_stats: impl Fn() -> Stats + Send + 'static,
    ) -> io::Result<Self> {
        if config.sensors.len() > MAX_SENSORS {
            let error = format!("{} sensors, at most {MAX_SENSORS}", config.sensors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let each = config.sharing.sessions_per_sensor.clamp(1, MAX_SESSIONS_PER_SENSOR);
        if config.sensors.len() * each > MAX_CONNECTIONS {
            let error = format!(
                "{} sensors with {each} sessions each, at most {MAX_CONNECTIONS} sessions",
                config.sensors.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let clients = (!config.listen.is_empty()).then(|| CLIENTS.to_owned());
        let names: Vec<_> = config.sensors.iter().map(ToString::to_string).collect();
        let connections = names.iter().flat_map(|name| std::iter::repeat_n(name, each));
        let states = SensorStates::new(connections.chain(&clients).cloned());
        let names = names.into_iter().chain(clients).collect();
        let passive = Passive::start(&config, poll.registry(), Arc::clone(&waker), states.clone())?;
        let listening = passive.addresses();
        let stats = Arc::new(ControlStats::default());
        let timing = config.sharing.timing(&config.timing);
        let (stop, stops) = mpsc::channel();
        let (answers, resolved) = mpsc::channel();
        let (changes, changed) = mpsc::channel();
        let registry = poll.registry().try_clone()?;
        let sensors = config.sensors.clone();
        let mut event_loop = EventLoop {
            poll,
            names,
            timing,
            sensors: Vec::new(),
            passive,
            resolver: Resolver { answers, waker: Arc::clone(&waker) },
            resolved,
            stops,
            changed,
            states: states.clone(),
            cx: Context {
                registry,
                guesses: RefCell::new(Guesses::new(config.timing.forget)),
                stats: Arc::clone(&stats),
                said_promisc: Cell::new(false),
                client_captures: Arc::default(),
                config,
                sessions,
                view,
                capture_stats: Box::new(capture_stats),
                interfaces: HashMap::new(),
            },
        };
        let now = Instant::now();
        sensors.iter().for_each(|target| event_loop.connect_to(target, now));
        let thread =
            thread::Builder::new().name("control".to_owned()).spawn(move || event_loop.run())?;
        Ok(Self { thread: Some(thread), stop, waker, changes, states, stats, listening })
    }

    /// Takes over what of `config` can change while it runs: sensors come and go, other hosts may
    /// connect, other credentials are good. A sensor that stays, and a client that is connected,
    /// notice nothing; whatever else `config` says is not looked at.
    pub fn reconfigure(&self, config: ControlConfig) {
        // Either fails only if the thread is gone, which `shutdown` will tell.
        let _gone = self.changes.send(config);
        let _gone = self.waker.wake();
    }

    /// The status now of every connection to a sensor, in the configuration's order; behind them,
    /// if it listens, that of all clients together.
    #[must_use]
    pub fn state(&self) -> Vec<SensorStatus> {
        self.states.load()
    }

    /// A handle on the sensors' status, for who outlives the borrow of this.
    #[must_use]
    pub fn states(&self) -> SensorStates {
        self.states.clone()
    }

    /// Counters of the control connections.
    #[must_use]
    pub fn stats(&self) -> Arc<ControlStats> {
        Arc::clone(&self.stats)
    }

    /// Where clients can connect.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Ends every capture, waits until workers have flushed what they hold for it, then closes
    /// the connections. True if all was flushed within `limit`.
    pub fn shutdown(mut self, limit: Duration) -> bool {
        self.stop(Instant::now() + limit)
    }

    fn stop(&mut self, deadline: Instant) -> bool {
        let Some(thread) = self.thread.take() else { return true };
        // Either fails only if the thread is gone, which `join` will tell.
        let _gone = self.stop.send(deadline);
        let _gone = self.waker.wake();
        match thread.join() {
            Ok(is_drained) => is_drained,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop(Instant::now());
        }
    }
}

/// What the thread owns.
struct EventLoop {
    poll: Poll,
    /// Every sensor that there was, by its place among their counts; clients together have one too.
    names: Vec<String>,
    /// Of connections to sensors.
    timing: Timing,
    sensors: Vec<Sensor>,
    passive: Passive,
    resolver: Resolver,
    resolved: mpsc::Receiver<(u64, Addresses)>,
    stops: mpsc::Receiver<Instant>,
    changed: mpsc::Receiver<ControlConfig>,
    states: SensorStates,
    cx: Context,
}

impl EventLoop {
    fn run(mut self) -> bool {
        let mut events = Events::with_capacity(MAX_CONNECTIONS);
        let deadline = loop {
            match self.stops.try_recv() {
                Ok(deadline) => break deadline,
                Err(mpsc::TryRecvError::Disconnected) => break Instant::now(),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            while let Ok(config) = self.changed.try_recv() {
                self.take_over(config, now);
            }
            for (number, addresses) in self.resolved.try_iter() {
                // One that was left meanwhile needs no answer, nor does who has its place now.
                if let Some(sensor) = self.sensors.iter_mut().find(|one| one.awaits(number)) {
                    sensor.resolved(addresses, &self.cx, now);
                }
            }
            let mut due: Option<Instant> = None;
            for sensor in &mut self.sensors {
                let own = sensor.step(now, &self.cx, self.poll.registry(), &self.resolver);
                due = due.into_iter().chain(own).min();
            }
            due = due.into_iter().chain(self.passive.step(now, &self.cx)).min();
            due = due.into_iter().chain(self.cx.sessions.tend_groups(now)).min();
            self.poll_until(&mut events, due);
        };
        self.end(deadline)
    }

    /// See [`Control::reconfigure`].
    fn take_over(&mut self, config: ControlConfig, now: Instant) {
        let Self { sensors, passive, cx, .. } = self;
        passive.allow(config.allowed_hosts);
        cx.config.access = config.access;
        let (kept, left) = std::mem::take(sensors)
            .into_iter()
            .partition::<Vec<_>, _>(|sensor| config.sensors.contains(sensor.target()));
        *sensors = kept;
        for sensor in left {
            cx.interfaces.remove(&sensor.place());
            sensor.leave(cx);
        }
        for target in config.sensors {
            if self.sensors.iter().all(|sensor| *sensor.target() != target) {
                tracing::info!(sensor = %target, "a new sensor");
                self.connect_to(&target, now);
            }
        }
    }

    /// From now on there are as many connections to a sensor as it is to have.
    fn connect_to(&mut self, target: &SensorTarget, now: Instant) {
        let Self { sensors, states, cx, names, timing, .. } = self;
        let sharing = cx.config.sharing;
        let each = sharing.sessions_per_sensor.clamp(1, MAX_SESSIONS_PER_SENSOR);
        let label = target.to_string();
        if sensors.len() + each > MAX_CONNECTIONS {
            tracing::error!(sensor = label, "not connected to: there are too many");
            return;
        }
        let known = names.iter().position(|name| *name == label);
        let sensor = known.unwrap_or_else(|| {
            names.push(label.clone());
            names.len() - 1
        });
        cx.sessions.count_sensor(sensor, &label);
        cx.interfaces.extend(target.interface.clone().map(|name| (sensor, name)));
        for ordinal in 0..each {
            let taken: Vec<_> = sensors.iter().map(Sensor::index).collect();
            let index = states.place(&label, &taken);
            let role = Role { sensor, share: sharing.share(label.clone(), sensor, ordinal) };
            sensors.push(Sensor::new(index, role, target.clone(), timing, states.clone(), now));
        }
    }

    fn poll_until(&mut self, events: &mut Events, due: Option<Instant>) {
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => {
                tracing::error!(%error, "cannot poll the control connections");
                // Whatever it is, it must not become a busy loop.
                thread::sleep(Duration::from_millis(100));
                return;
            }
        }
        for event in events.iter() {
            let Token(token) = event.token();
            let is_data = token & DATA != 0 && token != WAKER.0;
            let place = token & !(DATA | CLIENT | LISTENER);
            if token == WAKER.0 {
                // It only ends the wait.
            } else if token & LISTENER != 0 {
                self.passive.note_listener(place);
            } else if token & CLIENT != 0 {
                self.passive.note_client(place, event, is_data);
            } else if let Some(sensor) = self.sensors.iter_mut().find(|one| one.index() == place) {
                sensor.note(event, is_data);
            }
        }
    }

    /// Ends the captures and waits for workers; dropping `self` then closes the sockets.
    fn end(mut self, deadline: Instant) -> bool {
        let clients = self.passive.stop(&self.cx);
        let sensors = self.sensors.iter_mut().filter_map(|sensor| sensor.stop(&self.cx));
        let generation = sensors.chain(clients).max().unwrap_or(0);
        loop {
            if self.cx.sessions.is_drained(generation) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("captures were not flushed in time");
                self.cx.sessions.abandon(generation);
                return false;
            }
            thread::sleep(left.min(DRAIN_POLL));
        }
    }
}

#[cfg(test)]
mod tests;
