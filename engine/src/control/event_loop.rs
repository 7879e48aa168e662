//! The control thread: one mio loop over every sensor's socket, and the handle that stops it.
//!
//! ```text
//! poll(timeout: whatever is due first) --> note events --> step every sensor --> poll ...
//!                  ^ waker: an answer of the resolver, or shutdown
//! ```
//!
//! Stepping all of at most 64 sensors at each turn costs nothing next to a system call, and leaves
//! no timer to forget.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::net::View;
use crate::rpcap::Stats;
use crate::session::Sessions;
use crate::shared::Shared;

use super::active::Sensor;
use super::config::{Authenticator, Context, ControlConfig, NullAuth};
use super::resolve::{Addresses, Resolver};
use super::state::{SensorStates, SensorStatus};

/// The most sensors: each is a full copy of the traffic.
pub const MAX_SENSORS: usize = 64;
/// The waker's token; sensors have their indices.
const WAKER: Token = Token(usize::MAX);
/// How often workers are asked whether they have flushed, at the end.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// The running control thread. Dropping it ends the captures without waiting for them.
#[derive(Debug)]
pub struct Control {
    thread: Option<JoinHandle<bool>>,
    /// Tells the thread until when it may wait for workers.
    stop: mpsc::Sender<Instant>,
    waker: Arc<Waker>,
    states: SensorStates,
}

impl Control {
    /// Starts the thread, which connects to every sensor and serves it until
    /// [`shutdown`](Self::shutdown). AUTH is decided by [`ControlConfig::null_auth`].
    ///
    /// `capture_stats` counts for the whole node, from any moment on; it is called on the control
    /// thread, as often as sensors ask, and must not block. Its `sent` is not used.
    ///
    /// # Errors
    ///
    /// More than [`MAX_SENSORS`], or no epoll instance or thread to be had.
    pub fn start(
        config: ControlConfig,
        sessions: Arc<Sessions>,
        view: Shared<View>,
        capture_stats: impl Fn() -> Stats + Send + 'static,
    ) -> io::Result<Self> {
        let authenticator = NullAuth { is_allowed: config.null_auth };
        Self::start_with(config, authenticator, sessions, view, capture_stats)
    }

    /// As [`start`](Self::start), with somebody else to decide AUTH.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with(
        config: ControlConfig,
        authenticator: impl Authenticator + 'static,
        sessions: Arc<Sessions>,
        view: Shared<View>,
        capture_stats: impl Fn() -> Stats + Send + 'static,
    ) -> io::Result<Self> {
        if config.sensors.len() > MAX_SENSORS {
            let error = format!("{} sensors, at most {MAX_SENSORS}", config.sensors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let states = SensorStates::new(config.sensors.iter().map(ToString::to_string));
        let now = Instant::now();
        let sensors = config.sensors.iter().enumerate().map(|(index, target)| {
            Sensor::new(index, target.clone(), &config.timing, states.clone(), now)
        });
        let sensors = sensors.collect();
        let (stop, stops) = mpsc::channel();
        let (answers, resolved) = mpsc::channel();
        let event_loop = EventLoop {
            poll,
            sensors,
            resolver: Resolver { answers, waker: Arc::clone(&waker) },
            resolved,
            stops,
            cx: Context {
                config,
                authenticator: Box::new(authenticator),
                sessions,
                view,
                capture_stats: Box::new(capture_stats),
            },
        };
        let thread =
            thread::Builder::new().name("control".to_owned()).spawn(move || event_loop.run())?;
        Ok(Self { thread: Some(thread), stop, waker, states })
    }

    /// STUB
    pub fn reconfigure(&self, _config: &ControlConfig) {}

    /// Every sensor's status now, in the configuration's order.
    #[must_use]
    pub fn state(&self) -> Vec<SensorStatus> {
        self.states.load()
    }

    /// A handle on the sensors' status, for who outlives the borrow of this.
    #[must_use]
    pub fn states(&self) -> SensorStates {
        self.states.clone()
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
    sensors: Vec<Sensor>,
    resolver: Resolver,
    resolved: mpsc::Receiver<(usize, Addresses)>,
    stops: mpsc::Receiver<Instant>,
    cx: Context,
}

impl EventLoop {
    fn run(mut self) -> bool {
        let mut events = Events::with_capacity(2 * MAX_SENSORS);
        let deadline = loop {
            match self.stops.try_recv() {
                Ok(deadline) => break deadline,
                Err(mpsc::TryRecvError::Disconnected) => break Instant::now(),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            for (sensor, addresses) in self.resolved.try_iter() {
                self.sensors[sensor].resolved(addresses, now);
            }
            let mut due: Option<Instant> = None;
            for sensor in &mut self.sensors {
                let own = sensor.step(now, &self.cx, self.poll.registry(), &self.resolver);
                due = due.into_iter().chain(own).min();
            }
            self.poll_until(&mut events, due);
        };
        self.end(deadline)
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
            if let Some(sensor) = self.sensors.get_mut(event.token().0) {
                sensor.note(event);
            }
        }
    }

    /// Ends the captures and waits for workers; dropping `self` then closes the sockets.
    fn end(mut self, deadline: Instant) -> bool {
        let generation = self.sensors.iter_mut().filter_map(|sensor| sensor.stop(&self.cx)).max();
        let generation = generation.unwrap_or(0);
        loop {
            if self.cx.sessions.is_drained(generation) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("workers did not flush in time");
                return false;
            }
            thread::sleep(left.min(DRAIN_POLL));
        }
    }
}

#[cfg(test)]
mod tests;
