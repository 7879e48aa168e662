//! Passive mode: clients that connect to the tap.
//!
//! ```text
//! listeners --accept--> room? too many guesses? in the list of hosts? --> connection (64 slots)
//!    ^                     |no                        `-- names are looked up: the peer waits
//!    `-- pause, when the system has no descriptor     `--> ERROR, goodbye
//! ```
//!
//! Who has authenticated is never put out for somebody who has not: those make room for one
//! another, the longest waiting first.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::rpcap::ErrorCode;
use crate::stats::control::ControlStats;

use super::config::{Context, ControlConfig, ListenAddress};
use super::connection::{Connection, Mode, Over, Peer};
use super::event_loop::{client_token, listener_token};
use super::hosts::{Admission, AllowedHosts, HostList};
use super::protocol::Ending;
use super::socket::{canonical, watch_for_silence};
use super::state::{SensorState, SensorStates};

/// Clients at a time.
pub(super) const MAX_CLIENTS: usize = 64;
/// Of those, from one host and not yet authenticated.
const MAX_STRANGERS: usize = 8;
/// Connections taken from one listener in one step.
const ACCEPTS: usize = 64;
/// Connections that may wait in a listener.
const BACKLOG: i32 = 128;
/// A refusal is written to the log this often at most.
const SAY: Duration = Duration::from_secs(1);

/// An address that clients were to connect to.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    address: ListenAddress,
    source: io::Error,
}

/// See the module.
pub(super) struct Passive {
    listeners: Vec<Listener>,
    clients: Vec<Option<Client>>,
    hosts: HostList,
    states: SensorStates,
    /// All clients' place among the sensors.
    index: usize,
    /// Their place among the statuses.
    status: usize,
    said: Option<Instant>,
}

struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    is_ready: bool,
    paused_until: Option<Instant>,
}

struct Client {
    peer: Peer,
    since: Instant,
    link: Link,
}

enum Link {
    /// Whether its host may connect is being looked up.
    Checking(TcpStream),
    Open(Box<Connection>),
}

impl Client {
    fn authenticated_at(&self) -> Option<Instant> {
        match &self.link {
            Link::Checking(_) => None,
            Link::Open(connection) => connection.authenticated_at(),
        }
    }

    fn is_ending(&self) -> bool {
        matches!(&self.link, Link::Open(connection) if connection.is_ending())
    }
}

impl Passive {
    /// Listens.
    ///
    /// # Errors
    ///
    /// An address that cannot be listened on: a [`ListenError`] within.
    pub(super) fn start(
        config: &ControlConfig,
        registry: &Registry,
        waker: Arc<mio::Waker>,
        states: SensorStates,
    ) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for (index, wanted) in config.listen.iter().enumerate() {
            let listener = listen(wanted).and_then(|mut socket| {
                registry.register(&mut socket, listener_token(index), Interest::READABLE)?;
                let address = socket.local_addr()?;
                Ok(Listener { socket, address, is_ready: true, paused_until: None })
            });
            listeners.push(listener.map_err(|source| {
                io::Error::new(source.kind(), ListenError { address: *wanted, source })
            })?);
        }
        for listener in &listeners {
            tracing::info!(address = %listener.address, "listening for clients");
        }
        let hosts = HostList::new(config.allowed_hosts.clone(), config.timing.names, waker);
        let clients = std::iter::repeat_with(|| None).take(MAX_CLIENTS).collect();
        let index = config.sensors.len();
        // Behind the statuses of all connections to sensors.
        let status = states.load().len().saturating_sub(1);
        Ok(Self { listeners, clients, hosts, states, index, status, said: None })
    }

    /// Other hosts may connect from now on; who is connected stays.
    pub(super) fn allow(&mut self, hosts: AllowedHosts) {
        self.hosts.replace(hosts);
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Notes that somebody knocks.
    pub(super) fn note_listener(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.is_ready = true;
        }
    }

    /// Notes what the kernel says about a client's socket.
    pub(super) fn note_client(&mut self, slot: usize, event: &Event, is_data: bool) {
        if let Some(Some(Client { link: Link::Open(connection), .. })) = self.clients.get_mut(slot)
        {
            connection.note(event, is_data);
        }
    }

    /// Does what can be done now, and says when to be called again at the latest.
    pub(super) fn step(&mut self, now: Instant, cx: &Context) -> Option<Instant> {
        if self.listeners.is_empty() {
            return None;
        }
        let mut due = self.accept(now, cx);
        for slot in 0..self.clients.len() {
            due = due.into_iter().chain(self.step_client(slot, now, cx)).min();
        }
        self.report(cx);
        due
    }

    /// Ends the captures, for good; the generation from which workers have them not.
    pub(super) fn stop(&mut self, cx: &Context) -> Option<u64> {
        let connections =
            self.clients.iter_mut().flatten().filter_map(|client| match &mut client.link {
                Link::Open(connection) => connection.stop(cx),
                Link::Checking(_) => None,
            });
        connections.max()
    }

    fn accept(&mut self, now: Instant, cx: &Context) -> Option<Instant> {
        let mut due = None;
        for index in 0..self.listeners.len() {
            for taken in 0.. {
                let listener = &mut self.listeners[index];
                listener.paused_until = listener.paused_until.filter(|until| *until > now);
                if !listener.is_ready || listener.paused_until.is_some() {
                    break;
                }
                if taken == ACCEPTS {
                    due = Some(now);
                    break;
                }
                match listener.socket.accept() {
                    Ok((socket, from)) => self.admit(socket, canonical(from), now, cx),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        listener.is_ready = false;
                    }
                    Err(error) if is_shortage(&error) => {
                        // Trying at once would fail as fast: who waits stays in the kernel's queue.
                        listener.paused_until = Some(now + cx.config.timing.accept_pause);
                        ControlStats::count(&cx.stats.accept_failures);
                        self.say("cannot accept a connection", &error.to_string(), now);
                    }
                    // Of one connection that is gone again.
                    Err(_) => {}
                }
            }
            due = due.into_iter().chain(self.listeners[index].paused_until).min();
        }
        due
    }

    fn admit(&mut self, socket: TcpStream, address: SocketAddr, now: Instant, cx: &Context) {
        ControlStats::count(&cx.stats.connections);
        let Some(slot) = self.room() else {
            // Without a goodbye, which would need a place too.
            ControlStats::count(&cx.stats.refused_connections);
            return self.say("refused a client", "all places are taken", now);
        };
        if let Some(old) = self.clients[slot].take()
            && !old.is_ending()
        {
            ControlStats::count(&cx.stats.refused_connections);
        }
        let host = address.ip();
        let is_stranger = |client: &&Client| {
            client.peer.address.ip() == host && client.authenticated_at().is_none()
        };
        let strangers = self.clients.iter().flatten().filter(is_stranger).count();
        let peer = Peer { mode: Mode::Passive, address, sensor: self.index };
        let mut socket = socket;
        let prepared = prepare(&mut socket, slot, cx);
        if let Err(error) = prepared {
            return self.say("cannot serve a client", &error.to_string(), now);
        }
        self.clients[slot] = Some(Client { peer, since: now, link: Link::Checking(socket) });
        if strangers >= MAX_STRANGERS {
            ControlStats::count(&cx.stats.refused_connections);
            let text = "Too many connections that have not authenticated";
            self.refuse(slot, ErrorCode::Network, text, now, cx);
        } else if cx.guesses.borrow().are_too_many(host, now) {
            ControlStats::count(&cx.stats.refused_hosts);
            let text = "Too many wrong passwords: try again later";
            self.refuse(slot, ErrorCode::HostNotAuthorised, text, now, cx);
        }
    }

    /// A free place, or that of somebody who need not be there.
    fn room(&self) -> Option<usize> {
        if let Some(free) = self.clients.iter().position(Option::is_none) {
            return Some(free);
        }
        let strangers = self.clients.iter().enumerate().filter_map(|(slot, client)| {
            let client = client.as_ref().filter(|client| client.authenticated_at().is_none())?;
            Some((!client.is_ending(), client.since, slot))
        });
        strangers.min().map(|(.., slot)| slot)
    }

    fn refuse(
        &mut self,
        slot: usize,
        code: ErrorCode,
        text: &'static str,
        now: Instant,
        cx: &Context,
    ) {
        let Some(Client { peer, since, link: Link::Checking(socket) }) = self.clients[slot].take()
        else {
            return;
        };
        let mut connection = Connection::new(socket, peer, client_token(slot), cx, now);
        connection.refuse(code, text, now);
        self.clients[slot] = Some(Client { peer, since, link: Link::Open(Box::new(connection)) });
        self.say("refused a client", &format!("{}: {text}", peer.address), now);
    }

    fn step_client(&mut self, slot: usize, now: Instant, cx: &Context) -> Option<Instant> {
        let client = self.clients[slot].as_mut()?;
        if let Link::Checking(_) = client.link {
            match self.hosts.check(client.peer.address.ip(), now) {
                Admission::Allowed => self.open(slot, now, cx),
                Admission::Refused => {
                    ControlStats::count(&cx.stats.refused_hosts);
                    let text = "This host may not connect";
                    self.refuse(slot, ErrorCode::HostNotAuthorised, text, now, cx);
                }
                // A name server that never answers holds nobody's place for longer than that.
                Admission::Unknown if now < client.since + cx.config.timing.client_auth => {
                    return Some(client.since + cx.config.timing.client_auth);
                }
                Admission::Unknown => {
                    ControlStats::count(&cx.stats.timeouts);
                    self.clients[slot] = None;
                }
            }
        }
        let Some(Client { peer, link: Link::Open(connection), .. }) = &mut self.clients[slot]
        else {
            return None;
        };
        let peer = *peer;
        match connection.step(now, cx) {
            Ok(due) => due,
            Err(over) => {
                let started = connection.take_started();
                self.clients[slot] = None;
                self.over(peer, &over, started, now);
                None
            }
        }
    }

    fn open(&mut self, slot: usize, now: Instant, cx: &Context) {
        let Some(Client { peer, since, link: Link::Checking(socket) }) = self.clients[slot].take()
        else {
            return;
        };
        tracing::debug!(peer = %peer.address, "a client");
        let connection = Connection::new(socket, peer, client_token(slot), cx, now);
        self.clients[slot] = Some(Client { peer, since, link: Link::Open(Box::new(connection)) });
        self.states.update(self.status, |status| {
            status.connects += 1;
            status.peer = Some(peer.address);
        });
    }

    fn over(&mut self, peer: Peer, over: &Over, started: u64, now: Instant) {
        let is_failure = !matches!(over, Over::Eof | Over::Conversation(Ending::Close));
        match over {
            Over::Refused(_) => {}
            _ if is_failure => {
                self.say("a client is gone", &format!("{}: {over}", peer.address), now)
            }
            _ => tracing::debug!(peer = %peer.address, %over, "a client is gone"),
        }
        self.states.update(self.status, |status| {
            status.captures += started;
            status.failures += u64::from(is_failure);
            if is_failure {
                status.last_error = Some(over.to_string());
            }
        });
    }

    /// What metrics and readiness may know of all clients together.
    fn report(&mut self, cx: &Context) {
        let (mut started, mut is_capturing, mut is_connected, mut count) = (0, false, false, 0);
        for client in self.clients.iter_mut().flatten() {
            count += 1;
            is_connected |= client.authenticated_at().is_some();
            if let Link::Open(connection) = &mut client.link {
                is_capturing |= connection.is_capturing();
                started += connection.take_started();
            }
        }
        cx.stats.clients.store(count, Ordering::Relaxed);
        self.states.update(self.status, |status| {
            status.captures += started;
            status.state = match (is_capturing, is_connected) {
                (true, _) => SensorState::Capturing,
                (false, true) => SensorState::Connected,
                (false, false) => SensorState::Connecting,
            };
        });
    }

    /// Writes to the log, unless it was written to just now: strangers must not fill it.
    fn say(&mut self, what: &str, why: &str, now: Instant) {
        if self.said.is_some_and(|said| now < said + SAY) {
            return tracing::debug!(why, "{what}");
        }
        self.said = Some(now);
        tracing::warn!(why, "{what}");
    }
}

/// Errors of `accept` that another try would meet again.
fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn prepare(socket: &mut TcpStream, slot: usize, cx: &Context) -> io::Result<()> {
    socket.set_nodelay(true)?;
    watch_for_silence(&SockRef::from(&*socket), cx.config.timing.silence)?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    cx.registry.register(socket, client_token(slot), interest)
}

fn listen(wanted: &ListenAddress) -> io::Result<TcpListener> {
    let any = (Ipv6Addr::UNSPECIFIED, wanted.port).into();
    match wanted.ip {
        Some(ip) => listen_on((ip, wanted.port).into(), true),
        None => match listen_on(any, false) {
            // Every address is then every IPv4 address.
            Err(error) if is_without_ipv6(&error) => {
                listen_on((Ipv4Addr::UNSPECIFIED, wanted.port).into(), true)
            }
            // Where a port is taken for IPv6, half of the clients would reach somebody else.
            other => other,
        },
    }
}

/// The kernel has no IPv6, or has it switched off.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listen_on(address: SocketAddr, is_v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if matches!(address.ip(), IpAddr::V6(_)) {
        socket.set_only_v6(is_v6_only)?;
    }
    // A restart must not wait for the connections of the last process to be forgotten.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_for_ipv6_only_is_taken() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let taken = match listen_on(any, true) {
            Err(error) if is_without_ipv6(&error) => {
                return eprintln!("SKIPPED: there is no IPv6 here: {error}");
            }
            other => other.unwrap(),
        };
        let port = taken.local_addr().unwrap().port();
        let error = listen(&ListenAddress { ip: None, port }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn only_a_kernel_without_ipv6_is_listened_on_by_ipv4() {
        for (code, is_without) in [
            (libc::EAFNOSUPPORT, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::EADDRINUSE, false),
            (libc::EACCES, false),
            (libc::EMFILE, false),
        ] {
            assert_eq!(is_without_ipv6(&io::Error::from_raw_os_error(code)), is_without, "{code}");
        }
    }
}
