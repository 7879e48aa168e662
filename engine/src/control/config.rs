//! What the control thread is told once: sensors, data form, times, and whom it may serve.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::net::View;
use crate::rpcap::{Auth, Stats};
use crate::session::{Encoding, Sessions};
use crate::shared::Shared;

/// A sensor to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorTarget {
    /// Address or name; a name is looked up at each attempt.
    pub host: String,
    /// TCP port of its control connection.
    pub port: u16,
    /// The one interface that it may open, where that is not [`ControlConfig::preselected`].
    pub interface: Option<String>,
}

impl std::fmt::Display for SensorTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }?;
        match &self.interface {
            Some(name) => write!(f, "/{name}"),
            None => Ok(()),
        }
    }
}

/// Times of the control connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// For a TCP connection to be made, each address.
    pub connect: Duration,
    /// Before the first attempt after a failure, at least; doubles with each further one.
    pub backoff_min: Duration,
    /// Before any attempt, at most.
    pub backoff_max: Duration,
    /// A connection that was authenticated for this long starts the backoff anew.
    pub settled: Duration,
    /// Before an attempt after the sensor said CLOSE: it asked not to be bothered.
    pub close_pause: Duration,
    /// For the sensor to authenticate.
    pub auth: Duration,
    /// Until a silent peer counts as dead; whole seconds, at least 3.
    pub silence: Duration,
    /// For a peer to read its replies.
    pub stall: Duration,
    /// For workers to flush an ended capture, before its end is confirmed all the same.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            settled: Duration::from_secs(10),
            close_pause: Duration::from_secs(30),
            auth: Duration::from_secs(30),
            silence: Duration::from_secs(15),
            stall: Duration::from_secs(15),
            drain: Duration::from_secs(1),
        }
    }
}

/// Settings of the control thread.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Sensors in active mode; each gets every packet.
    pub sensors: Vec<SensorTarget>,
    /// UDP form of the data.
    pub encoding: Encoding,
    /// The most bytes of UDP payload per datagram.
    pub datagram_bytes: usize,
    /// The most bytes of a frame, whatever the sensor asks for.
    pub snaplen: u32,
    /// AUTH without credentials is accepted.
    pub null_auth: bool,
    /// The one interface that sensors may open; `None` lets them choose.
    pub preselected: Option<String>,
    /// See [`Timing`].
    pub timing: Timing,
    /// See [`SensorAddresses`].
    pub addresses: SensorAddresses,
}

impl ControlConfig {
    /// The one interface that the sensor of this index may open.
    pub(super) fn preselected_for(&self, sensor: usize) -> Option<&str> {
        let own = self.sensors.get(sensor).and_then(|target| target.interface.as_deref());
        own.or(self.preselected.as_deref())
    }
}

/// Told each address that a sensor's name led to, before anything is sent there: what goes to and
/// from it must not be captured.
#[derive(Clone)]
pub struct SensorAddresses(Arc<dyn Fn(IpAddr) + Send + Sync>);

impl SensorAddresses {
    /// Calls `tell` on the control thread, for each attempt to connect.
    pub fn new(tell: impl Fn(IpAddr) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(super) fn tell(&self, address: IpAddr) {
        (self.0)(address);
    }
}

impl Default for SensorAddresses {
    fn default() -> Self {
        Self::new(|_address| {})
    }
}

impl std::fmt::Debug for SensorAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SensorAddresses(..)")
    }
}

/// Decides whom the tap serves.
pub trait Authenticator: Send {
    /// True if these credentials are good. They are never [`Auth::Other`]; called on the control
    /// thread, so it must not block.
    fn accepts(&self, credentials: &Auth) -> bool;
}

/// No passwords: AUTH without credentials, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullAuth {
    /// False refuses everybody.
    pub is_allowed: bool,
}

impl Authenticator for NullAuth {
    fn accepts(&self, credentials: &Auth) -> bool {
        self.is_allowed && matches!(credentials, Auth::Null)
    }
}

/// What a connection works on, besides its socket.
pub(super) struct Context {
    pub(super) config: ControlConfig,
    pub(super) authenticator: Box<dyn Authenticator>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) view: Shared<View>,
    pub(super) capture_stats: Box<dyn Fn() -> Stats + Send>,
}
