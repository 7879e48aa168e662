//! What readiness and metrics may know of the sensors.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// How far the tap is with a sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SensorState {
    /// A name is looked up, or a TCP connection made.
    #[default]
    Connecting,
    /// Waits until it may try again.
    Backoff,
    /// The control connection stands; no capture runs.
    Connected,
    /// A capture runs.
    Capturing,
}

/// A connection to a sensor at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SensorStatus {
    /// As configured, `host:port`.
    pub target: String,
    /// See [`SensorState`].
    pub state: SensorState,
    /// The control connection's peer, while there is one.
    pub peer: Option<SocketAddr>,
    /// TCP connections made.
    pub connects: u64,
    /// Those of them after the first.
    pub reconnects: u64,
    /// Attempts and connections that ended, for whatever reason.
    pub failures: u64,
    /// Captures started.
    pub captures: u64,
    /// Why the last attempt or connection ended.
    pub last_error: Option<String>,
}

/// A handle on the status of every connection to a sensor; clones see the same. The order is the
/// configuration's, the connections to one sensor together.
#[derive(Clone, Debug)]
pub struct SensorStates(Arc<Mutex<Vec<SensorStatus>>>);

impl SensorStates {
    pub(super) fn new(targets: impl Iterator<Item = String>) -> Self {
        let status = |target| SensorStatus { target, ..SensorStatus::default() };
        Self(Arc::new(Mutex::new(targets.map(status).collect())))
    }

    /// All sensors now.
    #[must_use]
    pub fn load(&self) -> Vec<SensorStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A place for a connection to a target that is not `taken`: one that it had before, or a new
    /// one behind the others.
    pub(super) fn place(&self, target: &str, taken: &[usize]) -> usize {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = list.iter().enumerate();
        let known = places
            .find(|(place, status)| status.target == target && !taken.contains(place))
            .map(|(place, _status)| place);
        known.unwrap_or_else(|| {
            list.push(SensorStatus { target: target.to_owned(), ..SensorStatus::default() });
            list.len() - 1
        })
    }

    pub(super) fn update(&self, sensor: usize, change: impl FnOnce(&mut SensorStatus)) {
        if let Some(status) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(sensor)
        {
            change(status);
        }
    }
}
