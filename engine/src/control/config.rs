//! What the control thread is told once: sensors, data form, times, and whom it may serve.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::classify::OwnFlow;
use crate::net::View;
use crate::rpcap::Stats;
use crate::session::{Encoding, Sessions, Share};
use crate::shared::Shared;
use crate::stats::control::ControlStats;

use super::auth::{Access, Guesses};
use super::hosts::AllowedHosts;

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

/// The longest wait between attempts to connect to sensors that share.
const TOGETHER: Duration = Duration::from_secs(1);

/// Which sensor gets which packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SensorsMode {
    /// Each gets every packet.
    #[default]
    Copy,
    /// Each packet goes to one of them, whole flows to the same.
    Balance,
}

/// How packets are shared between sensors, and between the connections to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// See [`SensorsMode`].
    pub mode: SensorsMode,
    /// Connections to each sensor, which share what it gets: at least 1.
    pub sessions_per_sensor: usize,
    /// How long one that is back after an absence gets nothing, up to twice this, so that one that
    /// comes and goes does not tear flows each time.
    pub settle: Duration,
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            mode: SensorsMode::default(),
            sessions_per_sensor: 1,
            settle: Duration::from_secs(5),
        }
    }
}

impl Sharing {
    /// What connection `ordinal` to a sensor of this name and place shares; `None` if it never has
    /// another to share with. A sensor that is alone may get company while the tap runs.
    pub(super) fn share(&self, sensor: String, place: usize, ordinal: usize) -> Option<Share> {
        let group = match self.mode {
            SensorsMode::Copy if self.sessions_per_sensor > 1 => place,
            SensorsMode::Copy => return None,
            SensorsMode::Balance => 0,
        };
        Some(Share { group, sensor, ordinal, settle: self.settle })
    }

    /// Times of the connections: nodes whose sensors share are to be back at about one time, since
    /// until then they do not agree where flows go.
    pub(super) fn timing(&self, timing: &Timing) -> Timing {
        let mut timing = timing.clone();
        if self.is_balanced() {
            timing.backoff_max = timing.backoff_max.min(TOGETHER.max(timing.backoff_min));
        }
        timing
    }

    /// True if a sensor's flows would be better off elsewhere when its host falls silent.
    pub(super) fn is_balanced(&self) -> bool {
        self.mode == SensorsMode::Balance
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
    /// For a client that connected to us to authenticate.
    pub client_auth: Duration,
    /// For such a client to say something while no capture of it runs.
    pub client_idle: Duration,
    /// Before a wrong password is answered.
    pub refusal: Duration,
    /// Until one wrong try of a host is forgotten.
    pub forget: Duration,
    /// For a TCP data connection to be made, by either side.
    pub data: Duration,
    /// How long the addresses of names in the list of hosts are good for.
    pub names: Duration,
    /// Before a listener is tried again that the system could not serve.
    pub accept_pause: Duration,
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
            client_auth: Duration::from_secs(90),
            client_idle: Duration::from_secs(180),
            refusal: Duration::from_secs(1),
            forget: Duration::from_secs(30),
            data: Duration::from_secs(10),
            names: Duration::from_secs(5),
            accept_pause: Duration::from_millis(500),
            silence: Duration::from_secs(15),
            stall: Duration::from_secs(15),
            drain: Duration::from_secs(1),
        }
    }
}

/// Settings of the control thread.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Sensors in active mode.
    pub sensors: Vec<SensorTarget>,
    /// Names of sensors lead to their IPv4 addresses only.
    pub is_ipv4_only: bool,
    /// Who of them gets what.
    pub sharing: Sharing,
    /// UDP form of the data.
    pub encoding: Encoding,
    /// The most bytes of UDP payload per datagram; `None` is what the path takes.
    pub datagram_bytes: Option<usize>,
    /// The most bytes of a frame, whatever the sensor asks for.
    pub snaplen: u32,
    /// Where clients may connect to the tap: passive mode.
    pub listen: Vec<ListenAddress>,
    /// Which hosts may.
    pub allowed_hosts: AllowedHosts,
    /// Whose AUTH is good, in both modes.
    pub access: Access,
    /// A client that asks for promiscuous mode gets it.
    pub allow_promisc: bool,
    /// The one interface that sensors may open; `None` lets them choose.
    pub preselected: Option<String>,
    /// See [`Timing`].
    pub timing: Timing,
    /// See [`SensorAddresses`].
    pub addresses: SensorAddresses,
    /// See [`OwnFlows`].
    pub flows: OwnFlows,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// `None` is every address of the node, IPv6 and IPv4.
    pub ip: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, "port {}", self.port),
        }
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

/// Told each connection that carries a capture, when it begins and when it ends: what the tap and
/// its client say to each other must not be captured, least of all into that capture.
#[derive(Clone)]
pub struct OwnFlows(Arc<dyn Fn(OwnFlow, bool) + Send + Sync>);

impl OwnFlows {
    /// Calls `tell` on the control thread: with true before anything is sent there, with false
    /// when nothing is any more. A flow may begin twice, and then ends twice.
    pub fn new(tell: impl Fn(OwnFlow, bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// The flow is excluded for as long as the guard lives.
    pub(super) fn begin(&self, flow: OwnFlow) -> FlowGuard {
        (self.0)(flow, true);
        FlowGuard { flow, flows: self.clone() }
    }
}

impl Default for OwnFlows {
    fn default() -> Self {
        Self::new(|_flow, _begins| {})
    }
}

impl std::fmt::Debug for OwnFlows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnFlows(..)")
    }
}

/// See [`OwnFlows::begin`].
#[derive(Debug)]
pub(super) struct FlowGuard {
    flow: OwnFlow,
    flows: OwnFlows,
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        (self.flows.0)(self.flow, false);
    }
}

/// What a connection works on, besides its socket.
pub(super) struct Context {
    pub(super) config: ControlConfig,
    /// Where sockets are registered.
    pub(super) registry: mio::Registry,
    pub(super) guesses: RefCell<Guesses>,
    pub(super) stats: Arc<ControlStats>,
    /// It was said that promiscuous mode is not granted.
    pub(super) said_promisc: Cell<bool>,
    /// Cloned by each capture of a client for as long as it has a socket.
    pub(super) client_captures: Arc<()>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) view: Shared<View>,
    pub(super) capture_stats: Box<dyn Fn() -> Stats + Send>,
    /// Interfaces of sensors that have one of their own, by their place.
    pub(super) interfaces: HashMap<usize, String>,
}

impl Context {
    /// The one interface that the sensor of this place may open.
    pub(super) fn preselected(&self, sensor: usize) -> Option<&str> {
        self.interfaces.get(&sensor).or(self.config.preselected.as_ref()).map(String::as_str)
    }
}
