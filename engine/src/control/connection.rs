//! One control connection: its socket, its conversation, the capture that it started.
//!
//! ```text
//! socket --read--> inbound --advance--> Conversation --Action--> here: sessions, listing
//!    ^                                       |                     |
//!    `------------- flush <---- output <-----+------- answer <-----'
//! ```
//!
//! Mode does not matter here: `active` makes the connection, and whoever made it calls
//! [`Connection::step`] when something is ready or due. A step never blocks. When the connection
//! ends, its capture does; another connection's never.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;

use crate::rpcap::{ANY_ETH, DLT_EN10MB, StartCaptureReply, Stats};
use crate::session::{Session, SessionSpec};

use super::config::Context;
use super::listing;
use super::protocol::{Action, Answer, Conversation, Ending, StartRequest, Transport};

/// Bytes read at once.
const INBOUND_BYTES: usize = 16 * 1024;
/// Rounds of one step, so that a peer that never pauses does not keep the others waiting.
const ROUNDS: usize = 16;
/// How often workers are asked whether they have flushed.
const DRAIN_POLL: Duration = Duration::from_millis(2);
/// How often a capture of one interface is checked for its interface.
const INTERFACE_POLL: Duration = Duration::from_millis(500);
/// How long a refused peer's input is read on, so that our ERROR reaches it before a reset does.
const LINGER: Duration = Duration::from_millis(500);
/// What STARTCAP's reply says: clients make their receive buffer this large if they may.
const CLIENT_BUFFER_BYTES: u32 = 16 << 20;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("the sensor closed the connection")]
    Eof,
    #[error("the sensor ended the conversation: {0}")]
    Conversation(Ending),
    #[error("the sensor did not authenticate in time")]
    NoAuth,
    #[error("the sensor does not read its replies")]
    Stalled,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// A capture that runs, or is about to.
struct Capture {
    session: Arc<Session>,
    /// The node's counters when it started: STATS counts from there.
    baseline: Stats,
}

/// A capture that was ended; workers may still hold frames for it.
struct Draining {
    generation: u64,
    deadline: Instant,
    /// The capture that takes its place; without one, ENDCAP is to be answered.
    next: Option<Capture>,
}

/// Bytes that were read and not yet taken.
struct Inbound {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// See the module.
pub(super) struct Connection {
    socket: TcpStream,
    peer: SocketAddr,
    /// Index in the configuration.
    sensor: usize,
    conversation: Conversation,
    inbound: Inbound,
    is_readable: bool,
    is_writable: bool,
    capture: Option<Capture>,
    /// Captures started and not yet reported.
    started: u64,
    draining: Option<Draining>,
    connected_at: Instant,
    authenticated_at: Option<Instant>,
    /// Since when no reply byte could be sent though some wait.
    blocked_at: Option<Instant>,
    /// Nothing is taken in any more; until when the socket is kept.
    ending: Option<(Over, Instant)>,
}

impl Connection {
    /// Takes over a connected, non-blocking, registered socket.
    pub(super) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        sensor: usize,
        cx: &Context,
        now: Instant,
    ) -> Self {
        Self {
            socket,
            peer,
            sensor,
            conversation: Conversation::new(cx.config.preselected_for(sensor).map(str::to_owned)),
            inbound: Inbound { buffer: vec![0; INBOUND_BYTES].into(), start: 0, end: 0 },
            is_readable: true,
            is_writable: true,
            capture: None,
            started: 0,
            draining: None,
            connected_at: now,
            authenticated_at: None,
            blocked_at: None,
            ending: None,
        }
    }

    /// When credentials were accepted.
    pub(super) fn authenticated_at(&self) -> Option<Instant> {
        self.authenticated_at
    }

    /// True while a capture runs.
    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// Captures started since this was last asked.
    pub(super) fn take_started(&mut self) -> u64 {
        std::mem::take(&mut self.started)
    }

    /// Notes what the kernel says about the socket.
    pub(super) fn note(&mut self, event: &Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_error();
    }

    /// Does what can be done now, and says when to be called again at the latest.
    ///
    /// # Errors
    ///
    /// The connection is over, and its capture ended.
    pub(super) fn step(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        let result = self.work(now, cx);
        if result.is_err() {
            self.end_capture(cx);
        }
        result
    }

    /// Takes the capture away from the workers; the generation from which they have it not.
    pub(super) fn end_capture(&mut self, cx: &Context) -> Option<u64> {
        let draining = self.draining.take().map(|draining| draining.generation);
        let removed = self.capture.take().map(|capture| cx.sessions.remove(capture.session.id));
        removed.or(draining)
    }

    fn work(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        for _ in 0..ROUNDS {
            self.finish_draining(now, cx);
            self.flush(now)?;
            if self.ending.is_some() {
                self.inbound.clear();
            }
            if !self.inbound.is_empty() && self.conversation.takes_input() {
                let mut input = self.inbound.unread();
                let action = self.conversation.advance(&mut input);
                let left = input.len();
                self.inbound.keep_last(left);
                if let Some(action) = action {
                    self.act(action, now, cx)?;
                }
            } else if self.inbound.is_empty() && self.is_readable {
                self.read()?;
            } else {
                return self.wait(now, cx);
            }
        }
        Ok(Some(now))
    }

    fn read(&mut self) -> Result<(), Over> {
        match self.socket.read(&mut self.inbound.buffer) {
            Ok(0) => Err(self.ending.take().map_or(Over::Eof, |(over, _)| over)),
            Ok(len) => {
                (self.inbound.start, self.inbound.end) = (0, len);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.ending.take().map_or(Over::Io(error), |(over, _)| over)),
        }
    }

    fn flush(&mut self, now: Instant) -> Result<(), Over> {
        let output = self.conversation.output();
        while self.is_writable && !output.is_empty() {
            match self.socket.write(output) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(len) => {
                    output.drain(..len);
                    self.blocked_at = None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if output.is_empty() {
            // A large list of interfaces need not stay allocated for the connection's life.
            output.shrink_to(INBOUND_BYTES);
            if self.ending.is_some() {
                // The peer sees the end after our ERROR; a repeated call does nothing.
                let _not_connected = self.socket.shutdown(Shutdown::Write);
            }
        } else {
            self.blocked_at.get_or_insert(now);
        }
        Ok(())
    }

    /// Nothing can be done now: is anything overdue, and what will be due first?
    fn wait(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        let timing = &cx.config.timing;
        if let Some((over, _)) = self.ending.take_if(|(_, until)| *until <= now) {
            return Err(over);
        }
        if self.blocked_at.is_some_and(|since| now >= since + timing.stall) {
            return Err(Over::Stalled);
        }
        let auth_due = self.connected_at + timing.auth;
        let is_mute = self.authenticated_at.is_none() && self.ending.is_none();
        if is_mute && now >= auth_due {
            self.conversation.give_up();
            self.ending = Some((Over::NoAuth, now + LINGER));
            return Ok(Some(now));
        }
        if self.is_interface_gone(cx) {
            self.end_capture(cx);
            self.conversation.capture_failed("The interface disappeared");
            return Ok(Some(now));
        }
        let dues = [
            self.ending.as_ref().map(|(_, until)| *until),
            self.blocked_at.map(|since| since + timing.stall),
            is_mute.then_some(auth_due),
            self.draining.as_ref().map(|_| now + DRAIN_POLL),
            self.captured_interface().map(|_| now + INTERFACE_POLL),
        ];
        Ok(dues.into_iter().flatten().min())
    }

    fn captured_interface(&self) -> Option<&str> {
        self.capture.as_ref()?.session.spec.interface.as_deref()
    }

    /// True if the capture is of one interface, and that is gone.
    fn is_interface_gone(&self, cx: &Context) -> bool {
        self.captured_interface().is_some_and(|name| !listing::contains(&cx.view.load(), name))
    }

    fn act(&mut self, action: Action, now: Instant, cx: &Context) -> Result<(), Over> {
        let answer = match action {
            Action::Authenticate(credentials) => {
                let is_accepted = cx.authenticator.accepts(&credentials);
                self.authenticated_at = is_accepted.then_some(now);
                Ok(Answer::Authenticated(is_accepted))
            }
            Action::List => {
                let preselected = cx.config.preselected_for(self.sensor);
                Ok(Answer::Interfaces(listing::interfaces(&cx.view.load(), preselected)))
            }
            Action::Open(name) => match listing::contains(&cx.view.load(), &name) {
                true => Ok(Answer::Opened(DLT_EN10MB)),
                false => Err("The interface does not exist".to_owned()),
            },
            Action::Start(request) => match self.open_session(request, cx) {
                Ok(session) => {
                    let next = Capture { session, baseline: Stats::default() };
                    self.drain(Some(next), now, cx);
                    return Ok(());
                }
                Err(text) => Err(text),
            },
            Action::UpdateFilter(filter) => match &self.capture {
                Some(capture) => {
                    capture.session.set_filter(Some(filter));
                    Ok(Answer::FilterReplaced)
                }
                None => Err("No capture is running".to_owned()),
            },
            Action::Stats => Ok(Answer::Counted(
                self.capture.as_ref().map(|capture| capture.stats(cx)).unwrap_or_default(),
            )),
            Action::End => {
                self.drain(None, now, cx);
                return Ok(());
            }
            Action::Close(ending) => {
                self.end_capture(cx);
                if ending == Ending::Close {
                    return Err(Over::Conversation(ending));
                }
                self.ending = Some((Over::Conversation(ending), now + LINGER));
                return Ok(());
            }
        };
        self.conversation.answer(answer);
        Ok(())
    }

    fn open_session(&self, request: StartRequest, cx: &Context) -> Result<Arc<Session>, String> {
        let Transport::Udp { port } = request.transport else {
            return Err("This tap sends its data over UDP only".to_owned());
        };
        if !listing::contains(&cx.view.load(), &request.interface) {
            return Err("The interface does not exist".to_owned());
        }
        let mut peer = self.peer;
        peer.set_port(port);
        let spec = SessionSpec {
            sensor: self.sensor,
            peer,
            encoding: cx.config.encoding,
            snaplen: request.snaplen.min(cx.config.snaplen),
            datagram_bytes: cx.config.datagram_bytes,
            filter: Some(request.filter),
            sampling: request.sampling,
            interface: (request.interface != ANY_ETH).then_some(request.interface),
        };
        Session::open(spec).map_err(|error| {
            tracing::warn!(%peer, %error, "cannot open the data socket");
            format!("Cannot open the data socket: {error}")
        })
    }

    /// Ends the running capture; when it is flushed, `next` takes its place or ENDCAP is answered.
    fn drain(&mut self, next: Option<Capture>, now: Instant, cx: &Context) {
        // Without a capture there is nothing to wait for: generation 0 is what everybody has seen.
        let generation = self.end_capture(cx).unwrap_or(0);
        self.draining = Some(Draining { generation, deadline: now + cx.config.timing.drain, next });
        self.finish_draining(now, cx);
    }

    fn finish_draining(&mut self, now: Instant, cx: &Context) {
        let Some(draining) = self.draining.take() else { return };
        let is_drained = cx.sessions.is_drained(draining.generation);
        if !is_drained && now < draining.deadline {
            self.draining = Some(draining);
            return;
        }
        if !is_drained {
            tracing::warn!("workers did not flush an ended capture in time");
        }
        let answer = match draining.next {
            Some(mut capture) => {
                capture.baseline = (cx.capture_stats)();
                cx.sessions.add(Arc::clone(&capture.session));
                self.capture = Some(capture);
                self.started += 1;
                Answer::Started(StartCaptureReply { buffer_bytes: CLIENT_BUFFER_BYTES, port: 0 })
            }
            None => Answer::Ended,
        };
        self.conversation.answer(Ok(answer));
    }
}

impl Capture {
    /// Counts since the capture started.
    fn stats(&self, cx: &Context) -> Stats {
        let now = (cx.capture_stats)();
        let sent = self.session.stats.sent.load(Ordering::Relaxed);
        Stats {
            received: now.received.wrapping_sub(self.baseline.received),
            interface_dropped: now.interface_dropped.wrapping_sub(self.baseline.interface_dropped),
            kernel_dropped: now.kernel_dropped.wrapping_sub(self.baseline.kernel_dropped),
            // The field wraps, as the others do.
            sent: u32::try_from(sent & u64::from(u32::MAX)).unwrap_or(u32::MAX),
        }
    }
}

impl Inbound {
    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn keep_last(&mut self, len: usize) {
        self.start = self.end - len;
    }

    fn clear(&mut self) {
        self.keep_last(0);
    }
}
