//! One connection to a sensor in active mode: makes it, for ever, but never in a hurry.
//!
//! ```text
//!      .--> Resolving --addresses--> Connecting --> Open (connection) --.
//!      |        |                      |  next address                  |
//!      |        `----- failed ---------'-------------- over ------------|
//!      `---- Waiting: doubled each time, with jitter; long after CLOSE <-'
//! ```
//!
//! Knows nothing of other sensors: each steps alone, and a step never blocks.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::config::{Context, SensorTarget, Timing};
use super::connection::{Connection, Mode, Over, Peer};
use super::protocol::Ending;
use super::resolve::{Addresses, Resolver};
use super::state::{SensorState, SensorStates};
use super::watch::Watch;
use crate::session::Share;

/// The waits between attempts.
struct Backoff {
    /// Half of the longest next wait.
    base: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    fn new(timing: &Timing) -> Self {
        Self { base: timing.backoff_min, min: timing.backoff_min, max: timing.backoff_max }
    }

    fn reset(&mut self) {
        self.base = self.min;
    }

    /// How long to wait: between the base and twice that, so that a node group whose sensor
    /// restarts does not come back in step.
    fn next(&mut self) -> Duration {
        let wait = jitter(self.base).min(self.max);
        // Halved, because the jitter may double it.
        self.base = (self.base * 2).min(self.max / 2).max(self.min);
        wait
    }
}

/// `base` to twice `base`.
fn jitter(base: Duration) -> Duration {
    // Without randomness the tap still connects, only not spread.
    let random = getrandom::u32().unwrap_or(0);
    base + base.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(super) struct Role {
    /// The sensor's index in the configuration.
    pub(super) sensor: usize,
    /// What the connection's captures share with those of others.
    pub(super) share: Option<Share>,
}

/// How far the connection is.
enum Link {
    Waiting {
        until: Instant,
    },
    /// Addresses are at hand, or this look-up is to bring them.
    Resolving {
        awaited: Option<u64>,
    },
    Connecting {
        socket: TcpStream,
        peer: SocketAddr,
        deadline: Instant,
    },
    Open(Box<Connection>),
}

/// What a step does next.
enum Next {
    /// Step again at once: the link has moved on.
    Again,
    /// Step again when something happens, or at this time.
    Wait(Option<Instant>),
}

/// See the module.
pub(super) struct Sensor {
    /// Among all connections.
    index: usize,
    role: Role,
    target: SensorTarget,
    link: Link,
    /// Addresses of the target that were not tried yet.
    addresses: VecDeque<SocketAddr>,
    backoff: Backoff,
    states: SensorStates,
    /// What was last written to the log, so that an error is said once.
    said: Option<String>,
    watch: Watch,
}

impl Sensor {
    pub(super) fn new(
        index: usize,
        role: Role,
        target: SensorTarget,
        timing: &Timing,
        states: SensorStates,
        now: Instant,
    ) -> Self {
        Self {
            index,
            role,
            target,
            link: Link::Waiting { until: now },
            addresses: VecDeque::new(),
            backoff: Backoff::new(timing),
            states,
            said: None,
            watch: Watch::default(),
        }
    }

    /// Its place among the states, for as long as it lives.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The sensor's place among those that are counted.
    pub(super) fn place(&self) -> usize {
        self.role.sensor
    }

    /// What it connects to.
    pub(super) fn target(&self) -> &SensorTarget {
        &self.target
    }

    /// Ends the capture and the connection: the sensor is wanted no more.
    pub(super) fn leave(mut self, cx: &Context) {
        self.stop(cx);
        tracing::info!(sensor = %self.target, "leaving the sensor");
        self.states.update(self.index, |status| {
            status.state = SensorState::Backoff;
            status.peer = None;
            status.last_error = Some("it is not configured any more".to_owned());
        });
    }

    /// Notes what the kernel says about the socket. One that is being connected needs no note:
    /// each step looks at it.
    pub(super) fn note(&mut self, event: &Event, is_data: bool) {
        if let Link::Open(connection) = &mut self.link {
            connection.note(event, is_data);
        }
    }

    /// True if it waits for the answer to this look-up. A late answer is nobody's: its place may
    /// be another sensor's by then, with a capture.
    pub(super) fn awaits(&self, number: u64) -> bool {
        matches!(self.link, Link::Resolving { awaited: Some(awaited) } if awaited == number)
    }

    /// The answer to the look-up that it [`awaits`](Self::awaits).
    pub(super) fn resolved(&mut self, addresses: Addresses, cx: &Context, now: Instant) {
        match addresses {
            Ok(addresses) if addresses.is_empty() => {
                self.fail("the name has no address", cx, now);
            }
            Ok(addresses) => {
                self.addresses = addresses.into();
                self.link = Link::Resolving { awaited: None };
            }
            Err(error) => self.fail(&format!("cannot resolve the name: {error}"), cx, now),
        }
    }

    /// Does what can be done now, and says when to be called again at the latest.
    pub(super) fn step(
        &mut self,
        now: Instant,
        cx: &Context,
        registry: &Registry,
        resolver: &Resolver,
    ) -> Option<Instant> {
        loop {
            let next = match &mut self.link {
                Link::Waiting { until } if *until > now => Next::Wait(Some(*until)),
                Link::Waiting { .. } => self.look_up(resolver, cx, now),
                Link::Resolving { .. } => self.connect_next(cx, registry, now),
                Link::Connecting { .. } => self.check_connect(cx, now),
                Link::Open(connection) => match connection.step(now, cx) {
                    Ok(due) => {
                        let is_balanced = cx.config.sharing.is_balanced();
                        let look = connection.shared_capture().filter(|_| is_balanced);
                        let look = look.map(|(socket, session)| {
                            self.watch.look(now, socket, session, &cx.sessions)
                        });
                        self.report_open();
                        Next::Wait(due.into_iter().chain(look).min())
                    }
                    Err(over) => self.disconnected(&over, cx, now),
                },
            };
            if let Next::Wait(due) = next {
                return due;
            }
        }
    }

    /// Ends the capture, for good; the generation from which workers have it not.
    pub(super) fn stop(&mut self, cx: &Context) -> Option<u64> {
        match &mut self.link {
            Link::Open(connection) => connection.stop(cx),
            _ => None,
        }
    }

    fn look_up(&mut self, resolver: &Resolver, cx: &Context, now: Instant) -> Next {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        self.states.update(self.index, |status| status.state = SensorState::Connecting);
        // Relaxed: only uniqueness matters.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        match resolver.look_up(number, &self.target, cx.config.is_ipv4_only) {
            Ok(Some(addresses)) => {
                self.addresses = addresses.into();
                self.link = Link::Resolving { awaited: None };
            }
            Ok(None) => {
                self.link = Link::Resolving { awaited: Some(number) };
                return Next::Wait(None);
            }
            Err(error) => self.fail(&format!("cannot resolve the name: {error}"), cx, now),
        }
        Next::Again
    }

    /// Tries the next address that the look-up gave.
    fn connect_next(&mut self, cx: &Context, registry: &Registry, now: Instant) -> Next {
        let Some(peer) = self.addresses.pop_front() else {
            // The look-up still runs.
            return Next::Wait(None);
        };
        cx.config.addresses.tell(peer.ip());
        let is_balanced = cx.config.sharing.is_balanced();
        let keepalive = keepalive(&cx.config.timing, is_balanced);
        match connect(peer, &cx.config.timing, &keepalive, registry, Token(self.index)) {
            Ok(socket) => {
                let deadline = now + cx.config.timing.connect;
                self.link = Link::Connecting { socket, peer, deadline };
            }
            Err(error) => self.unreachable(&error, cx, now),
        }
        Next::Again
    }

    fn check_connect(&mut self, cx: &Context, now: Instant) -> Next {
        let Link::Connecting { socket, peer, deadline } = &self.link else { return Next::Again };
        match is_connected(socket) {
            Ok(true) => {
                let peer = *peer;
                let Link::Connecting { socket, .. } =
                    std::mem::replace(&mut self.link, Link::Resolving { awaited: None })
                else {
                    return Next::Again;
                };
                self.connected(socket, peer, cx, now);
            }
            Ok(false) if *deadline > now => return Next::Wait(Some(*deadline)),
            Ok(false) => {
                let error = io::Error::from(io::ErrorKind::TimedOut);
                self.unreachable(&error, cx, now);
            }
            Err(error) => self.unreachable(&error, cx, now),
        }
        Next::Again
    }

    fn connected(&mut self, socket: TcpStream, peer: SocketAddr, cx: &Context, now: Instant) {
        tracing::info!(sensor = %self.target, %peer, "connected");
        self.addresses.clear();
        let token = Token(self.index);
        let peer_of = Peer { mode: Mode::Active, address: peer, sensor: self.role.sensor };
        let mut connection = Connection::new(socket, peer_of, token, cx, now);
        connection.set_share(self.role.share.clone());
        self.link = Link::Open(Box::new(connection));
        self.states.update(self.index, |status| {
            status.state = SensorState::Connected;
            status.reconnects += u64::from(status.connects > 0);
            status.connects += 1;
            status.peer = Some(peer);
        });
    }

    fn report_open(&mut self) {
        let Link::Open(connection) = &mut self.link else { return };
        let state = match connection.is_capturing() {
            true => SensorState::Capturing,
            false => SensorState::Connected,
        };
        let started = connection.take_started();
        self.states.update(self.index, |status| {
            status.state = state;
            status.captures += started;
        });
    }

    /// An address did not answer: the next one, or a wait.
    fn unreachable(&mut self, error: &io::Error, cx: &Context, now: Instant) {
        if self.addresses.is_empty() {
            self.fail(&format!("cannot connect: {error}"), cx, now);
        } else {
            self.link = Link::Resolving { awaited: None };
        }
    }

    fn disconnected(&mut self, over: &Over, cx: &Context, now: Instant) -> Next {
        // What the last step started counts, however it ended.
        self.report_open();
        let Link::Open(connection) = &self.link else { return Next::Again };
        let timing = &cx.config.timing;
        let authenticated_at = connection.authenticated_at();
        if authenticated_at.is_some_and(|since| now >= since + timing.settled) {
            self.backoff.reset();
            self.said = None;
        }
        let is_sent_away =
            authenticated_at.is_some() && matches!(over, Over::Conversation(Ending::Close));
        if is_sent_away {
            // With the reference this ends the daemon's worker; a tap that never came back would
            // leave the node dark without anybody noticing.
            self.wait(jitter(timing.close_pause), &over.to_string(), cx, now);
        } else {
            self.fail(&over.to_string(), cx, now);
        }
        Next::Again
    }

    fn fail(&mut self, error: &str, cx: &Context, now: Instant) {
        let pause = self.backoff.next();
        self.wait(pause, error, cx, now);
    }

    fn wait(&mut self, pause: Duration, error: &str, cx: &Context, now: Instant) {
        // Whatever brought us here: workers must not keep a capture that has no connection.
        self.stop(cx);
        if self.said.as_deref() == Some(error) {
            tracing::debug!(sensor = %self.target, error, ?pause, "still no connection");
        } else {
            tracing::warn!(sensor = %self.target, error, ?pause, "no connection to the sensor");
            self.said = Some(error.to_owned());
        }
        self.addresses.clear();
        self.link = Link::Waiting { until: now + pause };
        self.states.update(self.index, |status| {
            status.state = SensorState::Backoff;
            status.failures += 1;
            status.peer = None;
            status.last_error = Some(error.to_owned());
        });
    }
}

/// A peer that vanished without a word is probed when idle for a third of the time, and given up
/// when it has acknowledged nothing for all of it. One whose flows others can take is probed each
/// second, so that [`Watch`] has something to see; it is not given up any earlier.
fn keepalive(timing: &Timing, is_balanced: bool) -> TcpKeepalive {
    let silence = u32::try_from(timing.silence.as_secs()).unwrap_or(u32::MAX);
    let (seconds, retries) = if is_balanced { (1, silence) } else { ((silence / 3).max(1), 2) };
    let probe = Duration::from_secs(seconds.into());
    TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(retries.clamp(2, 127))
}

/// Starts to connect.
fn connect(
    peer: SocketAddr,
    timing: &Timing,
    keepalive: &TcpKeepalive,
    registry: &Registry,
    token: Token,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(keepalive)?;
    socket.set_tcp_user_timeout(Some(timing.silence))?;
    match socket.connect(&SockAddr::from(peer)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut socket = TcpStream::from_std(socket.into());
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

/// True when the connection stands, false while it is being made.
pub(super) fn is_connected(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        // On loopback, a port of the ephemeral range that nobody listens on can be our own.
        Ok(peer) if socket.local_addr()? == peer => {
            Err(io::Error::from(io::ErrorKind::ConnectionRefused))
        }
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_anew_after_a_reset() {
        let mut backoff = Backoff::new(&Timing::default());
        let ms = Duration::from_millis;
        for least in [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000] {
            let wait = backoff.next();
            assert!((ms(least)..=ms(2 * least)).contains(&wait), "{wait:?} after {least} ms");
        }
        backoff.reset();
        assert!(backoff.next() <= ms(1000));
    }

    #[test]
    fn odd_limits_make_no_hot_loop() {
        let ms = Duration::from_millis;
        let timing = Timing { backoff_min: ms(50), backoff_max: ms(60), ..Timing::default() };
        let mut backoff = Backoff::new(&timing);
        for _ in 0..100 {
            assert!((ms(50)..=ms(60)).contains(&backoff.next()));
        }
    }
}
