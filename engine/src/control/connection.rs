//! One control connection: its socket, its conversation, its times.
//!
//! ```text
//! socket --read--> inbound --advance--> Conversation --Action--> here: listing, access, captures
//!    ^                                       |                     |
//!    `------------- flush <---- output <-----+------- answer <-----'
//! ```
//!
//! Whoever made the connection (`active`, `passive`) calls [`Connection::step`] when something is
//! ready or due. A step never blocks. When the connection ends, its capture does; another
//! connection's never.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use mio::event::Event;
use mio::net::TcpStream;

use crate::rpcap::{Auth, DLT_EN10MB, ErrorCode};
use crate::session::{Session, Share};
use crate::stats::control::ControlStats;

use super::captures::{Captures, News};
use super::config::Context;
use super::event_loop::data_token;
use super::listing;
use super::protocol::{Action, Answer, Conversation, Ending};

/// Bytes read at once.
const INBOUND_BYTES: usize = 16 * 1024;
/// Rounds of one step, so that a peer that never pauses does not keep the others waiting.
const ROUNDS: usize = 16;
/// How long a refused peer's input is read on, so that our ERROR reaches it before a reset does.
const LINGER: Duration = Duration::from_millis(500);
/// How often it is read meanwhile if there is a buffer full each time: who never pauses costs no
/// CPU then.
const SIP: Duration = Duration::from_millis(10);

/// libpcap's words, by which nmap and hydra know that a password would do.
const NULL_REFUSED: &str = "Authentication failed; NULL authentication not permitted.";

/// Who made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The tap, to a configured sensor.
    Active,
    /// A client, to the tap.
    Passive,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) mode: Mode,
    pub(super) address: SocketAddr,
    /// Index in the configuration; one past the sensors' for every client.
    pub(super) sensor: usize,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("the peer closed the connection")]
    Eof,
    #[error("the peer ended the conversation: {0}")]
    Conversation(Ending),
    #[error("the peer did not authenticate in time")]
    NoAuth,
    #[error("the peer left without having authenticated: {0}")]
    AuthRefused(&'static str),
    #[error("the peer was silent for too long")]
    Idle,
    #[error("the peer does not read its replies")]
    Stalled,
    #[error("the peer was refused: {0}")]
    Refused(&'static str),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
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
    peer: Peer,
    conversation: Conversation,
    inbound: Inbound,
    is_readable: bool,
    is_writable: bool,
    captures: Captures,
    connected_at: Instant,
    authenticated_at: Option<Instant>,
    /// When it last had something going on: a message understood, a capture.
    active_at: Instant,
    /// Credentials were wrong, and are answered then.
    refusal: Option<Instant>,
    /// Why the last ones were not accepted.
    refused_auth: Option<&'static str>,
    /// Since when no reply byte could be sent though some wait.
    blocked_at: Option<Instant>,
    /// Nothing is taken in any more.
    ending: Option<Farewell>,
}

/// The peer was sent away.
struct Farewell {
    over: Over,
    /// Until when the socket is kept.
    until: Instant,
    /// When its input is read again, to be thrown away.
    read_at: Instant,
}

impl Farewell {
    fn new(over: Over, now: Instant) -> Self {
        Self { over, until: now + LINGER, read_at: now }
    }
}

impl Connection {
    /// Takes over a connected, non-blocking, registered socket.
    pub(super) fn new(
        socket: TcpStream,
        peer: Peer,
        token: Token,
        cx: &Context,
        now: Instant,
    ) -> Self {
        // A socket without a local address is dead, as the first read will tell.
        let local = socket.local_addr().map_or(peer.address, super::socket::canonical);
        Self {
            socket,
            peer,
            conversation: Conversation::new(cx.preselected(peer.sensor).map(str::to_owned)),
            inbound: Inbound { buffer: vec![0; INBOUND_BYTES].into(), start: 0, end: 0 },
            is_readable: true,
            is_writable: true,
            captures: Captures::new(peer, local, data_token(token)),
            connected_at: now,
            authenticated_at: None,
            active_at: now,
            refusal: None,
            refused_auth: None,
            blocked_at: None,
            ending: None,
        }
    }

    /// Captures share the packets from now on; those of one interface never do.
    pub(super) fn set_share(&mut self, share: Option<Share>) {
        self.captures.set_share(share);
    }

    /// The capture that runs, if it shares, and the socket that says whether its peer is there.
    pub(super) fn shared_capture(&self) -> Option<(&TcpStream, &Arc<Session>)> {
        Some((&self.socket, self.captures.shared()?))
    }

    /// When credentials were accepted.
    pub(super) fn authenticated_at(&self) -> Option<Instant> {
        self.authenticated_at
    }

    /// True while a capture runs.
    pub(super) fn is_capturing(&self) -> bool {
        self.captures.is_running()
    }

    /// True if the peer was sent away, and only its goodbye is awaited.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Captures started since this was last asked.
    pub(super) fn take_started(&mut self) -> u64 {
        self.captures.take_started()
    }

    /// Notes what the kernel says about the socket, or about that of the data.
    pub(super) fn note(&mut self, event: &Event, is_data: bool) {
        if is_data {
            return self.captures.note();
        }
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_error();
    }

    /// Tells the peer that it is not served, and takes in nothing more.
    pub(super) fn refuse(&mut self, code: ErrorCode, text: &'static str, now: Instant) {
        self.dismiss(code, text, Over::Refused(text), now);
    }

    fn dismiss(&mut self, code: ErrorCode, text: &str, over: Over, now: Instant) {
        self.conversation.dismiss(code, text);
        self.ending = Some(Farewell::new(over, now));
    }

    /// Does what can be done now, and says when to be called again at the latest.
    ///
    /// # Errors
    ///
    /// The connection is over, and its capture ended.
    pub(super) fn step(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        self.work(now, cx).map_err(|over| {
            self.captures.give_up(cx);
            self.reason(over)
        })
    }

    /// A peer whose AUTH was refused mostly just leaves: what it could not do is what somebody
    /// who looks for the fault has to read.
    fn reason(&self, over: Over) -> Over {
        let is_leaving =
            matches!(over, Over::Eof | Over::Io(_) | Over::Conversation(Ending::Close));
        match self.refused_auth {
            Some(why) if is_leaving && self.authenticated_at.is_none() => Over::AuthRefused(why),
            _ => over,
        }
    }

    /// Takes the capture away from the workers; the generation from which they have it not.
    pub(super) fn stop(&mut self, cx: &Context) -> Option<u64> {
        self.captures.stop(cx)
    }

    fn work(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        for _ in 0..ROUNDS {
            while let Some(news) = self.captures.poll(now, cx) {
                match news {
                    News::Answer(answer) => self.conversation.answer(answer),
                    News::Failed(text) => self.conversation.capture_failed(text),
                }
            }
            if self.refusal.take_if(|until| *until <= now).is_some() {
                self.conversation.answer(Ok(Answer::Authenticated(false)));
            }
            self.flush(now)?;
            if self.ending.is_some() {
                self.inbound.clear();
            }
            let may_read = self.ending.as_ref().is_none_or(|ending| now >= ending.read_at);
            let has_work = !self.inbound.is_empty() || self.conversation.is_given_up();
            if has_work && self.conversation.takes_input() {
                let mut input = self.inbound.unread();
                let action = self.conversation.advance(&mut input);
                let left = input.len();
                self.inbound.keep_last(left);
                if self.conversation.take_heard() {
                    self.active_at = now;
                }
                if let Some(action) = action {
                    self.act(action, now, cx)?;
                }
            } else if self.inbound.is_empty() && self.is_readable && may_read {
                self.read(now)?;
            } else {
                return self.wait(now, cx);
            }
        }
        // A peer that never pauses has no more time than others.
        self.overdue(now, cx)?;
        Ok(Some(now))
    }

    fn read(&mut self, now: Instant) -> Result<(), Over> {
        match self.socket.read(&mut self.inbound.buffer) {
            Ok(0) => Err(self.ending.take().map_or(Over::Eof, |ending| ending.over)),
            Ok(len) => {
                (self.inbound.start, self.inbound.end) = (0, len);
                if let Some(ending) = self.ending.as_mut().filter(|_| len == INBOUND_BYTES) {
                    ending.read_at = now + SIP;
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.ending.take().map_or(Over::Io(error), |ending| ending.over)),
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

    /// Ends what took too long; true if the peer is being told so, which wants another step.
    fn overdue(&mut self, now: Instant, cx: &Context) -> Result<bool, Over> {
        let timing = &cx.config.timing;
        if let Some(ending) = self.ending.take_if(|ending| ending.until <= now) {
            return Err(ending.over);
        }
        if self.blocked_at.is_some_and(|since| now >= since + timing.stall) {
            ControlStats::count(&cx.stats.timeouts);
            return Err(Over::Stalled);
        }
        if !self.captures.is_idle() {
            self.active_at = now;
        }
        if self.ending.is_some() || self.silence_due(cx).is_none_or(|due| now < due) {
            return Ok(false);
        }
        ControlStats::count(&cx.stats.timeouts);
        // The texts are those of the reference.
        if self.authenticated_at.is_none() {
            let text = "The RPCAP initial timeout has expired";
            self.dismiss(ErrorCode::InitTimeout, text, Over::NoAuth, now);
        } else {
            let text = "The RPCAP runtime timeout has expired";
            self.dismiss(ErrorCode::RuntimeTimeout, text, Over::Idle, now);
        }
        Ok(true)
    }

    /// Nothing can be done now: is anything overdue, and what will be due first?
    fn wait(&mut self, now: Instant, cx: &Context) -> Result<Option<Instant>, Over> {
        if self.overdue(now, cx)? {
            return Ok(Some(now));
        }
        let ending = self.ending.as_ref();
        let dues = [
            ending.map(|ending| ending.until),
            ending.filter(|_| self.is_readable).map(|ending| ending.read_at),
            self.blocked_at.map(|since| since + cx.config.timing.stall),
            self.silence_due(cx).filter(|_| ending.is_none()),
            self.refusal,
            self.captures.due(now),
        ];
        Ok(dues.into_iter().flatten().min())
    }

    /// When the peer must have said something: its credentials, or, if it came to us, anything
    /// while it has nothing going on.
    fn silence_due(&self, cx: &Context) -> Option<Instant> {
        let timing = &cx.config.timing;
        match (self.peer.mode, self.authenticated_at) {
            (Mode::Active, None) => Some(self.connected_at + timing.auth),
            (Mode::Passive, None) => Some(self.connected_at + timing.client_auth),
            (Mode::Active, Some(_)) => None,
            (Mode::Passive, Some(_)) => Some(self.active_at + timing.client_idle),
        }
    }

    fn act(&mut self, action: Action, now: Instant, cx: &Context) -> Result<(), Over> {
        let answer = match action {
            Action::Authenticate(credentials) => {
                if self.authenticate(&credentials, now, cx) {
                    Ok(Answer::Authenticated(true))
                } else {
                    ControlStats::count(&cx.stats.auth_failures);
                    if matches!(credentials, Auth::Password { .. }) {
                        self.refusal = Some(now + cx.config.timing.refusal);
                        return Ok(());
                    }
                    Err(NULL_REFUSED.to_owned())
                }
            }
            Action::List => {
                let preselected = cx.preselected(self.peer.sensor);
                Ok(Answer::Interfaces(listing::interfaces(&cx.view.load(), preselected)))
            }
            Action::Open(name) => match listing::contains(&cx.view.load(), &name) {
                true => Ok(Answer::Opened(DLT_EN10MB)),
                false => Err("The interface does not exist".to_owned()),
            },
            Action::Start(request) => match self.captures.start(request, now, cx) {
                Ok(()) => return Ok(()),
                Err(text) => Err(text),
            },
            Action::UpdateFilter(filter) => match self.captures.set_filter(filter, now, cx) {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => return Ok(()),
                Err(text) => Err(text),
            },
            Action::Stats => Ok(Answer::Counted(self.captures.stats(cx))),
            Action::End => {
                self.captures.end(now, cx);
                return Ok(());
            }
            Action::Close(ending) => {
                self.captures.give_up(cx);
                if ending == Ending::Close {
                    return Err(Over::Conversation(ending));
                }
                self.ending = Some(Farewell::new(Over::Conversation(ending), now));
                return Ok(());
            }
        };
        self.conversation.answer(answer);
        Ok(())
    }

    fn authenticate(&mut self, credentials: &Auth, now: Instant, cx: &Context) -> bool {
        let host = self.peer.address.ip();
        let is_client = self.peer.mode == Mode::Passive;
        let mut guesses = cx.guesses.borrow_mut();
        // A host that guesses is not told when it guesses right.
        let is_barred = is_client && guesses.are_too_many(host, now);
        let is_password = matches!(credentials, Auth::Password { .. });
        let access = &cx.config.access;
        let is_good = access.accepts(credentials, self.peer.mode) && !is_barred;
        if is_good {
            self.authenticated_at = Some(now);
            guesses.forgive(host);
            return true;
        }
        if is_client && !is_barred && is_password {
            guesses.add(host, now);
        }
        self.refused_auth = Some(match (is_barred, is_password) {
            (true, _) => "its host has tried too many wrong passwords",
            (false, true) => "wrong user or password",
            (false, false) if access.passwords.is_empty() => "null authentication is not permitted",
            (false, false) => "null authentication is not permitted: there is a password",
        });
        false
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
