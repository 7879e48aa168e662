//! The control protocol as the appliance speaks it: the side that asks.
//!
//! ```text
//! AUTH -> FINDALLIF -> OPEN -> (caller makes a data socket) STARTCAP -> STATS... -> ENDCAP -> STATS
//! bytes in --receive--> events                 requests --take_output--> bytes out
//! ```
//!
//! Pure: bytes and the time are arguments. At most one request waits for its reply, except that
//! ENDCAP does not wait for a STATS. Reading keeps no more of a message than can be of use.

use std::time::{Duration, Instant};

use crate::rpcap::{
    Auth, HEADER_BYTES, Header, Interface, MessageType, OpenReply, StartCapture, StartCaptureReply,
    Stats, read_auth_reply,
};

/// How long a daemon may take to reply.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often STATS are asked for; it is also the only sign of life that the protocol has.
pub(super) const STATS_PERIOD: Duration = Duration::from_secs(5);
/// How long the last replies may take: nobody wants to wait for a dying daemon.
pub(super) const END_TIMEOUT: Duration = Duration::from_millis(700);
/// The longest interface list that is read: some 30,000 interfaces with an address each.
const MAX_INTERFACES_BYTES: u32 = 16 << 20;
/// Bytes that are kept of any other message; the rest is passed over.
const KEPT_BYTES: u32 = 256;

/// What to ask daemons for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    /// User and password; null authentication without.
    pub(super) credentials: Option<(String, String)>,
    /// The interface to open, instead of the first one offered.
    pub(super) open: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An interface is open; [`Client::start_capture`] is due.
    Opened {
        interface: String,
        linktype: i32,
    },
    Started(StartCaptureReply),
    Stats(Stats),
    /// The last STATS, after the capture has ended.
    FinalStats(Stats),
    /// The daemon complains, but goes on.
    Complaint {
        code: u16,
        text: String,
    },
    /// The capture has ended as we wished.
    Ended,
}

/// Why the conversation is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("is no RPCAP daemon: its first message has type {0}")]
    NotRpcap(u8),
    #[error("speaks RPCAP version {0}, not 0")]
    Version(u8),
    #[error("did not reply to {0} in time")]
    Timeout(&'static str),
    #[error("refused {request}: error {code}, {text:?}")]
    Refused { request: &'static str, code: u16, text: String },
    #[error("ended its capture: error 9, {0:?}")]
    CaptureFailed(String),
    #[error("sent an interface list of {0} bytes; the most that is read is 16 MiB")]
    TooLong(u32),
    #[error("sent a {0}")]
    Malformed(#[from] crate::rpcap::Malformed),
    #[error("offers no interface")]
    NoInterface,
}

impl Failure {
    /// One word for each kind, by which a failure is said only once per peer.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NotRpcap(_) => "not_rpcap",
            Self::Version(_) => "version",
            Self::Timeout(_) => "timeout",
            Self::Refused { .. } => "refused",
            Self::CaptureFailed(_) => "capture_failed",
            Self::TooLong(_) => "too_long",
            Self::Malformed(_) => "malformed",
            Self::NoInterface => "no_interface",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Authenticating,
    Listing,
    Opening,
    /// The caller makes a data socket.
    Opened,
    Starting,
    Running,
    /// ENDCAP was sent.
    Ending,
    /// ENDCAP was answered, the last STATS sent.
    LastStats,
    Ended,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Client {
    wishes: Wishes,
    state: State,
    /// The interface that OPEN names.
    interface: String,
    /// When the outstanding reply is overdue.
    reply_due: Option<Instant>,
    next_stats: Instant,
    inbound: Vec<u8>,
    /// Bytes still to come of a message that was handled or is not wanted.
    skip: u64,
    outbound: Vec<u8>,
}

impl Client {
    /// Begins: the first request is waiting in [`take_output`](Self::take_output).
    pub(super) fn new(wishes: Wishes, now: Instant) -> Self {
        let mut client = Self {
            wishes,
            state: State::Authenticating,
            interface: String::new(),
            reply_due: None,
            next_stats: now,
            inbound: Vec::new(),
            skip: 0,
            outbound: Vec::new(),
        };
        let auth = match &client.wishes.credentials {
            None => Auth::null_request().to_vec(),
            Some((user, password)) => password_request(user, password),
        };
        client.request(now, MessageType::Auth, &auth);
        client
    }

    /// Bytes to be sent; the caller removes what it has sent.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.outbound
    }

    /// True between STARTCAP's reply and ENDCAP.
    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match (self.reply_due, self.state) {
            (None, State::Running) => Some(self.next_stats),
            (due, _) => due,
        }
    }

    fn request(&mut self, now: Instant, kind: MessageType, payload: &[u8]) {
        self.send(kind, payload);
        self.reply_due = Some(now + REPLY_TIMEOUT);
    }

    fn send(&mut self, kind: MessageType, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.outbound.extend(Header::new(kind, 0, len).to_bytes());
        self.outbound.extend(payload);
    }

    /// Sends STARTCAP, once an interface is open.
    pub(super) fn start_capture(&mut self, now: Instant, request: &StartCapture) {
        if self.state == State::Opened {
            self.state = State::Starting;
            self.request(now, MessageType::StartCapture, &request.to_vec());
        }
    }

    /// Ends the capture; [`Event::Ended`] follows. False if none is running.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let running = self.state == State::Running;
        if running {
            self.state = State::Ending;
            self.send(MessageType::EndCapture, &[]);
            self.reply_due = Some(now + END_TIMEOUT);
        }
        running
    }

    /// Says that we shall not come back.
    pub(super) fn close(&mut self) {
        self.state = State::Ended;
        self.reply_due = None;
        self.send(MessageType::Close, &[]);
    }

    /// Asks for STATS when it is time; finds out whether the daemon has fallen silent.
    pub(super) fn tick(&mut self, now: Instant, events: &mut Vec<Event>) -> Result<(), Failure> {
        if let Some(due) = self.reply_due {
            return if due <= now { self.overdue(now, events) } else { Ok(()) };
        }
        if self.state == State::Running && self.next_stats <= now {
            self.next_stats = now + STATS_PERIOD;
            self.request(now, MessageType::Stats, &[]);
        }
        Ok(())
    }

    fn overdue(&mut self, now: Instant, events: &mut Vec<Event>) -> Result<(), Failure> {
        match self.state {
            // ExtraHop's daemon never answers when it has some 60 interfaces or more. A reply that
            // comes after all is passed over.
            State::Listing if self.wishes.open.is_some() => self.open(now, Vec::new()),
            State::Ending | State::LastStats => {
                self.ended(events);
                Ok(())
            }
            _ => Err(Failure::Timeout(self.awaited())),
        }
    }

    fn ended(&mut self, events: &mut Vec<Event>) {
        self.state = State::Ended;
        self.reply_due = None;
        events.push(Event::Ended);
    }

    /// The request whose reply is due.
    fn awaited(&self) -> &'static str {
        match self.state {
            State::Authenticating => "AUTH",
            State::Listing => "FINDALLIF",
            State::Opening | State::Opened => "OPEN",
            State::Starting => "STARTCAP",
            State::Running | State::LastStats => "STATS",
            State::Ending => "ENDCAP",
            State::Ended => "CLOSE",
        }
    }

    /// Takes the next bytes of the connection, as many as came.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        bytes: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        self.inbound.extend_from_slice(bytes);
        let inbound = std::mem::take(&mut self.inbound);
        let mut rest = &inbound[..];
        let result = loop {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(rest.len());
            self.skip -= skipped as u64;
            rest = &rest[skipped..];
            let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
                break Ok(());
            };
            let header = Header::read(*header);
            let kept = match self.accepts(&header) {
                Ok(kept) => kept,
                Err(failure) => break Err(failure),
            };
            let Some(payload) = body.get(..kept as usize) else { break Ok(()) };
            self.skip = u64::from(header.payload_len - kept);
            rest = &body[kept as usize..];
            if let Err(failure) = self.message(now, &header, payload, events) {
                break Err(failure);
            }
        };
        // Copied, not drained: a long list's memory is given back with `inbound`.
        self.inbound = if rest.len() == inbound.len() { inbound } else { rest.to_vec() };
        result
    }

    /// Looks at a header before its payload has come: how much of that is to be kept?
    fn accepts(&self, header: &Header) -> Result<u32, Failure> {
        let kind = header.message_type();
        if self.state == State::Authenticating
            && !matches!(kind, Some(MessageType::AuthReply | MessageType::Error))
        {
            return Err(Failure::NotRpcap(header.kind));
        }
        // An ERROR may name the version that the daemon would rather speak.
        if header.version != 0 && kind != Some(MessageType::Error) {
            return Err(Failure::Version(header.version));
        }
        if kind == Some(MessageType::FindAllIfReply) && self.state == State::Listing {
            return if header.payload_len <= MAX_INTERFACES_BYTES {
                Ok(header.payload_len)
            } else {
                Err(Failure::TooLong(header.payload_len))
            };
        }
        Ok(header.payload_len.min(KEPT_BYTES))
    }

    fn message(
        &mut self,
        now: Instant,
        header: &Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        use MessageType as M;
        let Some(kind) = header.message_type() else { return Ok(()) };
        match (self.state, kind) {
            (_, M::Error) => self.error(now, header.value, payload, events),
            (State::Authenticating, M::AuthReply) => {
                read_auth_reply(payload)?;
                self.state = State::Listing;
                self.request(now, M::FindAllIf, &[]);
                Ok(())
            }
            (State::Listing, M::FindAllIfReply) => {
                self.open(now, Interface::read_all(payload, header.value)?)
            }
            (State::Opening, M::OpenReply) => {
                let linktype = OpenReply::read(payload)?.linktype;
                self.state = State::Opened;
                self.reply_due = None;
                events.push(Event::Opened { interface: self.interface.clone(), linktype });
                Ok(())
            }
            (State::Starting, M::StartCaptureReply) => {
                let reply = StartCaptureReply::read(payload)?;
                self.state = State::Running;
                self.reply_due = None;
                self.next_stats = now + STATS_PERIOD;
                events.push(Event::Started(reply));
                Ok(())
            }
            (State::Running, M::StatsReply) => {
                self.reply_due = None;
                events.push(Event::Stats(Stats::read(payload)?));
                Ok(())
            }
            // The reply to a STATS that was on its way when ENDCAP was sent.
            (State::Ending, M::StatsReply) => {
                events.push(Event::Stats(Stats::read(payload)?));
                Ok(())
            }
            (State::Ending, M::EndCaptureReply) => {
                self.last_stats(now);
                Ok(())
            }
            (State::LastStats, M::StatsReply) => {
                events.push(Event::FinalStats(Stats::read(payload)?));
                self.ended(events);
                Ok(())
            }
            // A reply that nobody waits for any more, or a request: not ours to answer.
            _ => Ok(()),
        }
    }

    fn last_stats(&mut self, now: Instant) {
        self.state = State::LastStats;
        self.send(MessageType::Stats, &[]);
        self.reply_due = Some(now + END_TIMEOUT);
    }

    /// An ERROR: the reply to what was asked, or (in a capture) said unasked.
    fn error(
        &mut self,
        now: Instant,
        code: u16,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        /// `ErrorCode::Read`.
        const CAPTURE_FAILED: u16 = crate::rpcap::ErrorCode::Read as u16;
        let text = String::from_utf8_lossy(payload).into_owned();
        match self.state {
            State::Listing if self.wishes.open.is_some() => self.open(now, Vec::new()),
            // The capture had failed already: there is nothing to end.
            State::Ending => {
                events.push(Event::Complaint { code, text });
                self.last_stats(now);
                Ok(())
            }
            State::LastStats => {
                self.ended(events);
                Ok(())
            }
            State::Ended => Ok(()),
            State::Running if code == CAPTURE_FAILED => Err(Failure::CaptureFailed(text)),
            State::Running => {
                self.reply_due = None;
                events.push(Event::Complaint { code, text });
                Ok(())
            }
            _ => Err(Failure::Refused { request: self.awaited(), code, text }),
        }
    }

    /// Sends OPEN: for the interface that was wished for, else for the preselected one, else for
    /// the first.
    fn open(&mut self, now: Instant, offered: Vec<Interface>) -> Result<(), Failure> {
        let preselected =
            offered.iter().position(|offer| offer.description.ends_with(";preselected"));
        let first = || offered.into_iter().nth(preselected.unwrap_or(0)).map(|offer| offer.name);
        self.interface = self.wishes.open.clone().or_else(first).ok_or(Failure::NoInterface)?;
        self.state = State::Opening;
        let name = self.interface.clone();
        self.request(now, MessageType::Open, name.as_bytes());
        Ok(())
    }
}

/// The payload of an AUTH request with a password.
fn password_request(user: &str, password: &str) -> Vec<u8> {
    let clip = |text: &str| text.len().min(u16::MAX.into());
    let (user, password) = (&user.as_bytes()[..clip(user)], &password.as_bytes()[..clip(password)]);
    let mut payload = vec![0, 1, 0, 0];
    for text in [user, password] {
        payload.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    }
    payload.extend(user);
    payload.extend(password);
    payload
}

#[cfg(test)]
mod tests;
