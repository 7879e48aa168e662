//! The captures of one control connection: one at a time, with its data socket.
//!
//! ```text
//! STARTCAP -- UDP -------------------------------> session --.
//!    |------- TCP, we connect --> Opening -------> session --+--> old one drained --> run, reply
//!    `------- TCP, the client connects --> listener ---------'    reply --> Awaiting --> run
//! ENDCAP --> drained --> reply                 run --> interface or data connection gone --> ERROR 9
//! ```
//!
//! A step never blocks. Until the data connection stands there is no session, so nothing that
//! workers have to wait for.

mod data;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use mio::net::TcpStream;

use crate::bpf::Program;
use crate::classify::OwnFlow;
use crate::rpcap::{ANY_ETH, StartCaptureReply, Stats};
use crate::session::{Encoding, Session, SessionSpec, Share};

use super::capture::Capture;
use super::config::{Context, FlowGuard};
use super::connection::{Mode, Peer};
use super::listing;
use super::promiscuous::Promiscuous;
use super::protocol::{Answer, StartRequest, Transport};
use super::socket::connect;

use data::{Awaiting, Opening, cannot_connect};

/// How often workers are asked whether they have flushed.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// How often a capture is checked for its interface and its data connection, event or not.
const CAPTURE_POLL: Duration = Duration::from_millis(500);
/// What STARTCAP's reply says: clients make their receive buffer this large if they may.
const CLIENT_BUFFER_BYTES: u32 = 16 << 20;
/// Captures of clients that connected to the tap, all together: each has send buffers of its own.
const MAX_CLIENT_CAPTURES: usize = 16;

/// What has happened by itself.
pub(super) enum News {
    /// The answer to the STARTCAP or ENDCAP that waits for one.
    Answer(Result<Answer, String>),
    /// The capture has ended.
    Failed(&'static str),
}

/// A capture that was ended; workers may still hold frames for it.
struct Draining {
    generation: u64,
    deadline: Instant,
    old: Option<Capture>,
    /// What takes its place; without, ENDCAP is to be answered.
    next: Option<Next>,
}

/// A STARTCAP or UPDATEFILTER that is answered when every worker has taken it over: a frame that
/// comes after the answer, and that the kernel's filter did not admit before, is then captured.
struct Starting {
    generation: u64,
    deadline: Instant,
    answer: Answer,
}

enum Next {
    Run(Box<Capture>),
    Await(Box<Awaiting>),
}

/// See the module.
pub(super) struct Captures {
    peer: Peer,
    /// The tap's end of the control connection.
    local: SocketAddr,
    /// Of whichever data socket there is.
    token: Token,
    /// What captures of the whole node share with those of other connections.
    share: Option<Share>,
    is_data_ready: bool,
    running: Option<Capture>,
    opening: Option<Opening>,
    awaiting: Option<Awaiting>,
    draining: Option<Draining>,
    starting: Option<Starting>,
    /// Counts of the capture that ended last.
    last: Stats,
    /// Captures started and not yet reported.
    started: u64,
}

impl Captures {
    /// None yet.
    pub(super) fn new(peer: Peer, local: SocketAddr, token: Token) -> Self {
        Self {
            peer,
            local,
            token,
            share: None,
            is_data_ready: false,
            running: None,
            opening: None,
            awaiting: None,
            draining: None,
            starting: None,
            last: Stats::default(),
            started: 0,
        }
    }

    /// See [`Connection::set_share`](super::connection::Connection::set_share).
    pub(super) fn set_share(&mut self, share: Option<Share>) {
        self.share = share;
    }

    /// The session that runs, if it shares.
    pub(super) fn shared(&self) -> Option<&Arc<Session>> {
        let session = &self.running.as_ref()?.session;
        session.spec.share.is_some().then_some(session)
    }

    /// Something happened on the data socket.
    pub(super) fn note(&mut self) {
        self.is_data_ready = true;
    }

    /// True while all workers have a session of this connection: from when the answer to STARTCAP
    /// may be given, since who is told that a capture runs may count on the next packet.
    pub(super) fn is_running(&self) -> bool {
        let is_starting = |starting: &Starting| matches!(starting.answer, Answer::Started(_));
        self.running.is_some() && !self.starting.as_ref().is_some_and(is_starting)
    }

    /// True if the client has nothing going on.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
            && self.opening.is_none()
            && self.awaiting.is_none()
            && self.draining.is_none()
    }

    /// Captures started since this was last asked.
    pub(super) fn take_started(&mut self) -> u64 {
        std::mem::take(&mut self.started)
    }

    /// STARTCAP. `Ok` means that the answer comes by [`poll`](Self::poll); the capture that runs
    /// goes on until then, or for good if this fails.
    pub(super) fn start(
        &mut self,
        request: StartRequest,
        now: Instant,
        cx: &Context,
    ) -> Result<(), String> {
        if !listing::contains(&cx.view.load(), &request.interface) {
            return Err("The interface does not exist".to_owned());
        }
        self.check_room(cx)?;
        let deadline = now + cx.config.timing.data;
        match request.transport {
            Transport::Udp { port } => {
                let spec = self.spec(&request, port, cx);
                // Before the first probe leaves.
                let flows = self.begin_flows(port, None, cx);
                let session = cx.sessions.open(spec).map_err(|error| {
                    tracing::warn!(peer = %self.peer.address, %error, "cannot open the data socket");
                    format!("Cannot open the data socket: {error}")
                })?;
                let capture = self.capture(session, None, flows, &request, cx);
                self.replace(Some(Next::Run(Box::new(capture))), now, cx);
            }
            Transport::Tcp { port, is_server_open }
                if is_server_open || self.peer.mode == Mode::Active =>
            {
                if port == 0 {
                    return Err("The data port is 0".to_owned());
                }
                let socket = connect(self.data_address(port), &cx.registry, self.token)
                    .map_err(|error| cannot_connect(&error))?;
                self.opening = Some(Opening { socket, deadline, request });
            }
            Transport::Tcp { .. } => {
                let (listener, port) = self.listen(cx).map_err(|error| {
                    tracing::warn!(peer = %self.peer.address, %error, "cannot listen for data");
                    format!("Cannot listen for the data connection: {error}")
                })?;
                let awaiting = Awaiting { listener, port, deadline, request };
                self.replace(Some(Next::Await(Box::new(awaiting))), now, cx);
            }
        }
        Ok(())
    }

    /// ENDCAP; the answer comes by [`poll`](Self::poll).
    pub(super) fn end(&mut self, now: Instant, cx: &Context) {
        self.replace(None, now, cx);
    }

    /// UPDATEFILTER. `Ok(None)` means that the answer comes by [`poll`](Self::poll).
    pub(super) fn set_filter(
        &mut self,
        filter: Program,
        now: Instant,
        cx: &Context,
    ) -> Result<Option<Answer>, String> {
        let answer = Answer::FilterReplaced;
        if let Some(capture) = &self.running {
            let generation = cx.sessions.set_filter(&capture.session, Some(filter));
            let deadline = now + cx.config.timing.drain;
            self.starting = Some(Starting { generation, deadline, answer });
            return Ok(None);
        }
        let Some(awaiting) = &mut self.awaiting else {
            return Err("No capture is running".to_owned());
        };
        awaiting.request.filter = filter;
        Ok(Some(answer))
    }

    /// STATS: of the capture that runs, else of the last one.
    pub(super) fn stats(&self, cx: &Context) -> Stats {
        match (&self.running, &self.awaiting) {
            (Some(capture), _) => capture.stats(cx),
            (None, Some(_)) => Stats::default(),
            (None, None) => self.last,
        }
    }

    /// Takes the capture away from the workers; the generation from which they have it not.
    pub(super) fn stop(&mut self, cx: &Context) -> Option<u64> {
        self.opening = None;
        self.awaiting = None;
        self.starting = None;
        let draining = self.draining.take().map(|Draining { generation, old, next, .. }| {
            let next = next.and_then(|next| match next {
                Next::Run(capture) => Some(*capture),
                Next::Await(_) => None,
            });
            old.into_iter().chain(next).for_each(|capture| capture.let_go(cx));
            generation
        });
        let removed = self.running.take().map(|capture| {
            self.last = capture.stats(cx);
            let generation = cx.sessions.remove(capture.session.id);
            capture.let_go(cx);
            generation
        });
        removed.or(draining)
    }

    /// The same, with nobody there to wait for what a data connection has not taken yet.
    pub(super) fn give_up(&mut self, cx: &Context) {
        let running = self.running.iter();
        let ended = self.draining.iter().flat_map(|draining| &draining.old);
        let streams = running.chain(ended).filter(|capture| capture.stream.is_some());
        let sessions: Vec<_> = streams.map(|capture| Arc::clone(&capture.session)).collect();
        self.stop(cx);
        sessions.iter().for_each(|session| session.close());
    }

    /// Does what can be done now.
    pub(super) fn poll(&mut self, now: Instant, cx: &Context) -> Option<News> {
        self.check_opening(now, cx)
            .or_else(|| self.check_draining(now, cx))
            .or_else(|| self.check_starting(now, cx))
            .or_else(|| self.check_awaiting(now, cx))
            .or_else(|| self.check_running(cx))
    }

    /// When to poll again at the latest.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let dues = [
            self.opening.as_ref().map(|opening| opening.deadline),
            self.awaiting.as_ref().map(|awaiting| awaiting.deadline),
            self.draining.as_ref().map(|_| now + DRAIN_POLL),
            self.starting.as_ref().map(|_| now + DRAIN_POLL),
            self.running.as_ref().map(|_| now + CAPTURE_POLL),
        ];
        dues.into_iter().flatten().min()
    }

    /// Asked before each socket for data: of those that wait for a TCP connection, any number may
    /// have been let so far.
    fn check_room(&self, cx: &Context) -> Result<(), String> {
        // One that runs makes room for what takes its place.
        if self.peer.mode == Mode::Active || self.running.is_some() {
            return Ok(());
        }
        match Arc::strong_count(&cx.client_captures) <= MAX_CLIENT_CAPTURES {
            true => Ok(()),
            false => Err(format!("{MAX_CLIENT_CAPTURES} captures run, and there may be no more")),
        }
    }

    fn data_address(&self, port: u16) -> SocketAddr {
        let mut address = self.peer.address;
        address.set_port(port);
        address
    }

    fn spec(&self, request: &StartRequest, port: u16, cx: &Context) -> SessionSpec {
        SessionSpec {
            sensor: self.peer.sensor,
            share: self.share.clone().filter(|_| request.interface == ANY_ETH),
            peer: self.data_address(port),
            encoding: self.encoding(request, cx),
            snaplen: request.snaplen.min(cx.config.snaplen),
            datagram_bytes: cx.config.datagram_bytes,
            takes_large_datagrams: request.takes_large_datagrams,
            longest_wait_ns: match request.read_timeout_ms {
                0 => u64::MAX,
                ms => u64::from(ms) * 1_000_000,
            },
            filter: Some(request.filter.clone()),
            sampling: request.sampling,
            interface: (request.interface != ANY_ETH).then(|| request.interface.clone()),
        }
    }

    /// The configured form is for configured sensors. Of who connects, only our own sensor is
    /// known to understand more than the standard's datagrams: others die of the first stream one.
    fn encoding(&self, request: &StartRequest, cx: &Context) -> Encoding {
        match self.peer.mode {
            Mode::Passive if !request.takes_large_datagrams => Encoding::Plain,
            _ => cx.config.encoding,
        }
    }

    /// The control connection and that of the data are excluded from here on.
    fn begin_flows(&self, peer_port: u16, tcp_port: Option<u16>, cx: &Context) -> [FlowGuard; 2] {
        let begin = |peer_port, tcp_port| {
            let peer = self.peer.address.ip();
            cx.config.flows.begin(OwnFlow { peer, peer_port, tcp_port })
        };
        let control = begin(self.peer.address.port(), Some(self.local.port()));
        [control, begin(peer_port, tcp_port)]
    }

    /// What a session needs besides.
    fn capture(
        &self,
        session: Arc<Session>,
        stream: Option<TcpStream>,
        flows: [FlowGuard; 2],
        request: &StartRequest,
        cx: &Context,
    ) -> Capture {
        let promiscuous = (request.is_promiscuous && is_granted(cx))
            .then(|| Promiscuous::enter(&cx.view.load(), session.spec.interface.as_deref()));
        Capture {
            session,
            baseline: Stats::default(),
            said_size: 0,
            stream,
            _flows: flows,
            _promiscuous: promiscuous,
            _place: (self.peer.mode == Mode::Passive).then(|| Arc::clone(&cx.client_captures)),
        }
    }

    /// Ends the running capture; when it is flushed, `next` takes its place or ENDCAP is answered.
    fn replace(&mut self, next: Option<Next>, now: Instant, cx: &Context) {
        self.awaiting = None;
        let old = self.running.take();
        // Without a capture there is nothing to wait for: generation 0 is what everybody has seen.
        let generation = old.as_ref().map_or(0, |old| cx.sessions.remove(old.session.id));
        let deadline = now + cx.config.timing.drain;
        self.draining = Some(Draining { generation, deadline, old, next });
    }

    fn check_draining(&mut self, now: Instant, cx: &Context) -> Option<News> {
        let Draining { generation, deadline, old, .. } = self.draining.as_ref()?;
        let ended = old.as_ref().map(|old| old.session.id);
        if let Some(id) = ended.filter(|id| !cx.sessions.is_drained_of(*id, *generation)) {
            if now < *deadline {
                return None;
            }
            tracing::warn!("an ended capture was not flushed in time");
            cx.sessions.abandon_one(id);
        }
        let Draining { old, next, .. } = self.draining.take()?;
        if let Some(old) = old {
            self.last = old.stats(cx);
            old.let_go(cx);
        }
        match next {
            Some(Next::Run(capture)) => {
                let generation = self.run(*capture, cx);
                let deadline = now + cx.config.timing.drain;
                self.starting = Some(Starting { generation, deadline, answer: started(0) });
                self.check_starting(now, cx)
            }
            Some(Next::Await(awaiting)) => {
                let port = awaiting.port;
                self.awaiting = Some(*awaiting);
                Some(News::Answer(Ok(started(port))))
            }
            None => Some(News::Answer(Ok(Answer::Ended))),
        }
    }

    fn check_starting(&mut self, now: Instant, cx: &Context) -> Option<News> {
        let Starting { generation, deadline, .. } = self.starting.as_ref()?;
        let is_seen = cx.sessions.is_seen(*generation);
        if !is_seen && now < *deadline {
            return None;
        }
        if !is_seen {
            tracing::debug!("a capture was confirmed before every worker had taken it over");
        }
        let Starting { answer, .. } = self.starting.take()?;
        Some(News::Answer(Ok(answer)))
    }

    /// Gives the capture to the workers; the generation from which they have it.
    fn run(&mut self, mut capture: Capture, cx: &Context) -> u64 {
        capture.baseline = (cx.capture_stats)();
        let generation = cx.sessions.add(Arc::clone(&capture.session));
        self.running = Some(capture);
        self.started += 1;
        // What happened on the data socket until now is to be looked at.
        self.is_data_ready = true;
        generation
    }

    fn check_running(&mut self, cx: &Context) -> Option<News> {
        if self.opening.is_some() || self.starting.is_some() {
            // Its end would be told after the answer to STARTCAP, as if the new one had failed.
            return None;
        }
        let capture = self.running.as_mut()?;
        let mut failure = None;
        // Looked at whether or not there was an event: a worker may have found the end.
        let is_ready = std::mem::take(&mut self.is_data_ready);
        let is_broken = capture.is_broken(is_ready);
        capture.say_size();
        if is_broken {
            failure = Some("The data connection was closed");
        }
        let interface = capture.session.spec.interface.as_deref();
        if interface.is_some_and(|name| !listing::contains(&cx.view.load(), name)) {
            failure = Some("The interface disappeared");
        }
        let failure = failure?;
        self.give_up(cx);
        Some(News::Failed(failure))
    }
}

fn started(port: u16) -> Answer {
    Answer::Started(StartCaptureReply { buffer_bytes: CLIENT_BUFFER_BYTES, port })
}

/// Whether promiscuous mode may be entered; a refusal is said once.
fn is_granted(cx: &Context) -> bool {
    if !cx.config.allow_promisc && !cx.said_promisc.replace(true) {
        tracing::info!("a client asks for promiscuous mode: not granted without --allow-promisc");
    }
    cx.config.allow_promisc
}
