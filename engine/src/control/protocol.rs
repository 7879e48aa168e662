//! One RPCAP conversation, the tap's side, without I/O.
//!
//! ```text
//! bytes --> Decoder --> legal now? --no--> ERROR                       --> output
//!                          |yes
//!                          |-- answered from its own state (SETSAMPLING, refusals) --> output
//!                          `-- Action --> driver --answer()--> reply or ERROR      --> output
//! ```
//!
//! Strictly one request at a time: while an action waits for its answer, or the peer leaves its
//! replies unread, nothing more is taken in. That bounds memory, and keeps what is unsolicited
//! from coming inside a reply. Sockets and captures are the driver's (`connection`).

mod reply;

use crate::bpf::Program;
use crate::rpcap::{
    Auth, ErrorCode, Filter, Interface, MAX_SNAPLEN, Malformed, MessageType, Sampling,
    StartCapture, StartCaptureReply, Stats,
};

use super::framing::{Body, Decoder, Message};
use super::tls::FirstBytes;

/// Unsent replies, bytes, above which no further request is taken in.
pub(super) const OUTPUT_HIGH_WATER: usize = 64 * 1024;
/// Refused messages of a peer that has not authenticated, before it is given up.
const MAX_REFUSALS: u32 = 16;
/// Wrong credentials, before a peer is given up.
const MAX_WRONG: u32 = 3;
/// What the driver has to do. Each but [`Action::Close`] is to be followed by one
/// [`Conversation::answer`].
#[derive(Debug)]
pub(super) enum Action {
    /// Check these credentials: null or a password.
    Authenticate(Auth),
    /// List the interfaces.
    List,
    /// See whether there is such an interface.
    Open(String),
    /// Start a capture in place of the one that may run. If that fails, the old one goes on.
    Start(StartRequest),
    /// Replace the running capture's filter.
    UpdateFilter(Program),
    /// Count what the running capture saw, or the one that ended last.
    Stats,
    /// End the running capture; answer when its last datagram has left.
    End,
    /// Send what is in the output, then close. Nothing more is taken in.
    Close(Ending),
}

/// A capture as STARTCAP, and what came before it, describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StartRequest {
    /// Name that OPEN gave.
    pub(super) interface: String,
    /// 1..=262144.
    pub(super) snaplen: u32,
    pub(super) transport: Transport,
    /// See [`StartCapture::LARGE_DATAGRAMS`].
    pub(super) takes_large_datagrams: bool,
    /// Promiscuous mode is wished for.
    pub(super) is_promiscuous: bool,
    /// The longest that the client wants to wait for a packet, milliseconds; 0 is no wish.
    pub(super) read_timeout_ms: u32,
    pub(super) filter: Program,
    /// Method 0 if there is to be none.
    pub(super) sampling: Sampling,
}

/// How the client wants its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Datagrams to this port of the client.
    Udp { port: u16 },
    /// A stream: to this port of the client if it asks the daemon to connect.
    Tcp { port: u16, is_server_open: bool },
}

/// What the driver found or did.
#[derive(Debug)]
pub(super) enum Answer {
    Authenticated(bool),
    Interfaces(Vec<Interface>),
    /// With the link type.
    Opened(i32),
    Started(StartCaptureReply),
    FilterReplaced,
    Counted(Stats),
    Ended,
}

/// Why a conversation ended, from inside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ending {
    #[error("it said CLOSE")]
    Close,
    #[error("it reported error {code}: {text:?}")]
    PeerError { code: u16, text: String },
    #[error("it broke the protocol: {0}")]
    Violation(&'static str),
}

/// What OPEN left behind.
enum Opened {
    Never,
    /// The last OPEN was refused; STARTCAP fails, as it does with libpcap.
    Refused,
    Name(String),
}

/// The request that waits for an answer, and what its success changes.
enum Pending {
    Authenticate,
    List,
    Open(String),
    Start,
    UpdateFilter,
    Stats,
    End,
}

impl Pending {
    fn error_code(&self) -> ErrorCode {
        match self {
            Self::Authenticate => ErrorCode::AuthFailed,
            Self::List => ErrorCode::FindAllIf,
            Self::Open(_) => ErrorCode::Open,
            Self::Start => ErrorCode::StartCapture,
            Self::UpdateFilter => ErrorCode::UpdateFilter,
            Self::Stats => ErrorCode::GetStats,
            Self::End => ErrorCode::EndCapture,
        }
    }
}

/// A refusal: the ERROR's code and text.
type Refusal<Text = String> = (ErrorCode, Text);

fn refuse<T>(code: ErrorCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err((code, text.into()))
}

/// The state of one control connection.
pub(super) struct Conversation {
    decoder: Decoder,
    output: Vec<u8>,
    /// The one interface that may be opened, if there is one.
    preselected: Option<String>,
    first_bytes: FirstBytes,
    is_authenticated: bool,
    refusals: u32,
    wrong: u32,
    /// A message was read since [`Conversation::take_heard`].
    is_heard: bool,
    opened: Opened,
    sampling: Sampling,
    is_capturing: bool,
    pending: Option<Pending>,
    /// Text of an ERROR 9 that must wait for the pending reply.
    failure: Option<String>,
    is_over: bool,
}

const UNKNOWN_MESSAGE: &str = "Unknown or illegal message type";
const NO_SAMPLING: Sampling = Sampling { method: 0, value: 0 };

impl Conversation {
    /// Waits for AUTH.
    pub(super) fn new(preselected: Option<String>) -> Self {
        Self {
            decoder: Decoder::new(),
            output: Vec::new(),
            preselected,
            first_bytes: FirstBytes::default(),
            is_authenticated: false,
            refusals: 0,
            wrong: 0,
            is_heard: false,
            opened: Opened::Never,
            sampling: NO_SAMPLING,
            is_capturing: false,
            pending: None,
            failure: None,
            is_over: false,
        }
    }

    /// True if more input can be worked on now.
    pub(super) fn takes_input(&self) -> bool {
        !self.is_over && self.pending.is_none() && self.output.len() < OUTPUT_HIGH_WATER
    }

    /// Memory held for the message that is being read.
    #[cfg(any(test, fuzzing))]
    pub(super) fn kept_bytes(&self) -> usize {
        self.decoder.kept_bytes()
    }

    /// Whole messages that are to be sent; the driver takes off the front what went out.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Takes bytes off the front of `input` until there is something to do. `None` means that all
    /// bytes are taken, or that [`takes_input`](Self::takes_input) is false.
    pub(super) fn advance(&mut self, input: &mut &[u8]) -> Option<Action> {
        while self.takes_input() {
            if self.is_given_up() {
                return Some(self.close(Ending::Violation("too many refusals before AUTH")));
            }
            if let Some(alert) = self.first_bytes.alert(input)? {
                self.output.extend(alert);
                return Some(
                    self.close(Ending::Violation("it speaks TLS, which this tap does not")),
                );
            }
            let message = self.decoder.next(input)?;
            self.is_heard = true;
            match self.handle(message) {
                Ok(None) => {}
                Ok(Some(action)) => return Some(action),
                Err((code, text)) => {
                    self.write_error(code, &text);
                    self.refusals = self.refusals.saturating_add(1);
                }
            }
        }
        None
    }

    /// True if a whole message came since this was last asked.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.is_heard)
    }

    /// True if the peer has had enough tries: [`advance`](Self::advance) ends it, whether or not
    /// there is input.
    pub(super) fn is_given_up(&self) -> bool {
        !self.is_authenticated && (self.refusals >= MAX_REFUSALS || self.wrong >= MAX_WRONG)
    }

    /// Writes the reply to the pending request; an `Err` becomes an ERROR of the request's code.
    pub(super) fn answer(&mut self, answer: Result<Answer, String>) {
        let Some(pending) = self.pending.take() else {
            tracing::error!(?answer, "an answer to no request");
            return;
        };
        match answer {
            Ok(answer) => self.write_reply(pending, answer),
            Err(text) => {
                self.refusals = self.refusals.saturating_add(1);
                self.write_error(pending.error_code(), &text);
            }
        }
        if let Some(text) = self.failure.take() {
            self.write_error(ErrorCode::Read, &text);
        }
    }

    /// The running capture has stopped by itself: tells the client, after the reply that it may
    /// be waiting for.
    pub(super) fn capture_failed(&mut self, text: &str) {
        if !std::mem::take(&mut self.is_capturing) || self.is_over {
            return;
        }
        if self.pending.is_some() {
            self.failure = Some(text.to_owned());
        } else {
            self.write_error(ErrorCode::Read, text);
        }
    }

    /// Tells the client why it is not served any longer, and takes in nothing more.
    pub(super) fn dismiss(&mut self, code: ErrorCode, text: &str) {
        if !self.is_over {
            self.write_error(code, text);
            self.is_over = true;
        }
    }

    fn close(&mut self, ending: Ending) -> Action {
        self.is_over = true;
        Action::Close(ending)
    }

    fn wait_for(&mut self, pending: Pending, action: Action) -> Option<Action> {
        self.pending = Some(pending);
        Some(action)
    }

    fn handle(&mut self, message: Message) -> Result<Option<Action>, Refusal> {
        let Message { header, body } = message;
        let kind = header.message_type();
        if header.version != 0 {
            // The version that was asked for goes into the answer, as libpcap's daemon does: a
            // client takes no answer of another version.
            let at = self.output.len();
            self.write_error(ErrorCode::WrongVersion, "RPCAP version number mismatch");
            self.output[at] = header.version;
            return Ok(Some(self.close(Ending::Violation("unknown protocol version"))));
        }
        let is_too_early = !self.is_authenticated
            && !matches!(kind, Some(MessageType::Auth | MessageType::Close | MessageType::Error));
        let payload = match body {
            Body::Whole(_) | Body::Skipped if is_too_early => {
                return refuse(ErrorCode::WrongMessage, "Authentication comes first");
            }
            Body::Whole(payload) => payload,
            Body::Skipped => {
                let (code, text) = skipped(kind);
                return refuse(code, text);
            }
            Body::Unreadable => {
                let (code, text) = skipped(kind);
                self.write_error(code, text);
                return Ok(Some(self.close(Ending::Violation("too many bytes to discard"))));
            }
        };
        match kind {
            Some(MessageType::Auth) => self.authenticate(&payload),
            Some(MessageType::Close) => Ok(Some(self.close(Ending::Close))),
            Some(MessageType::Error) => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                Ok(Some(self.close(Ending::PeerError { code: header.value, text })))
            }
            Some(kind) => self.handle_request(kind, &payload),
            None => refuse(ErrorCode::WrongMessage, UNKNOWN_MESSAGE),
        }
    }

    fn authenticate(&mut self, payload: &[u8]) -> Result<Option<Action>, Refusal> {
        if self.is_authenticated {
            self.write_error(ErrorCode::WrongMessage, "Already authenticated");
            return Ok(Some(self.close(Ending::Violation("second AUTH"))));
        }
        match Auth::read(payload) {
            Ok(Auth::Other(_)) => {
                refuse(ErrorCode::AuthType, "Authentication type is not supported")
            }
            Ok(auth) => Ok(self.wait_for(Pending::Authenticate, Action::Authenticate(auth))),
            Err(error) => malformed(ErrorCode::Auth, error),
        }
    }

    fn handle_request(
        &mut self,
        kind: MessageType,
        payload: &[u8],
    ) -> Result<Option<Action>, Refusal> {
        match kind {
            MessageType::FindAllIf => Ok(self.wait_for(Pending::List, Action::List)),
            MessageType::Open => {
                // Whatever comes of it: the last OPEN counts, even one that failed.
                self.opened = Opened::Refused;
                let name =
                    self.check_name(payload).or_else(|text| refuse(ErrorCode::Open, text))?;
                Ok(self.wait_for(Pending::Open(name.clone()), Action::Open(name)))
            }
            MessageType::StartCapture => {
                let request = self.start(payload)?;
                Ok(self.wait_for(Pending::Start, Action::Start(request)))
            }
            MessageType::UpdateFilter => {
                let code = ErrorCode::UpdateFilter;
                if !self.is_capturing {
                    return refuse(code, "No capture is running");
                }
                let filter = Filter::read(payload).or_else(|error| malformed(code, error))?;
                let program = compile(code, &filter)?;
                Ok(self.wait_for(Pending::UpdateFilter, Action::UpdateFilter(program)))
            }
            MessageType::Stats => Ok(self.wait_for(Pending::Stats, Action::Stats)),
            MessageType::SetSampling => {
                let sampling = Sampling::read(payload)
                    .or_else(|error| malformed(ErrorCode::SetSampling, error))?;
                // Value 0 is what libpcap's client sends whatever it was asked for, and unknown
                // methods are acknowledged by every daemon: neither samples.
                let is_meant = matches!(sampling.method, 1 | 2) && sampling.value > 0;
                self.sampling = if is_meant { sampling } else { NO_SAMPLING };
                self.write(MessageType::SetSamplingReply, 0, &[]);
                Ok(None)
            }
            MessageType::EndCapture if self.is_capturing => {
                Ok(self.wait_for(Pending::End, Action::End))
            }
            MessageType::EndCapture => refuse(ErrorCode::EndCapture, "No capture is running"),
            _ => refuse(ErrorCode::WrongMessage, UNKNOWN_MESSAGE),
        }
    }

    /// The name in OPEN, if it may be looked up at all.
    fn check_name(&self, payload: &[u8]) -> Result<String, String> {
        let name = str::from_utf8(payload).unwrap_or_default();
        if name.is_empty() || name.contains('\0') || name.contains("://") {
            return Err("The interface name is not valid".to_owned());
        }
        match &self.preselected {
            Some(only) if only != name => {
                Err(format!("can only open preselected interface '{only}'"))
            }
            _ => Ok(name.to_owned()),
        }
    }

    fn start(&self, payload: &[u8]) -> Result<StartRequest, Refusal> {
        let code = ErrorCode::StartCapture;
        let start = StartCapture::read(payload).or_else(|error| malformed(code, error))?;
        let interface = match &self.opened {
            Opened::Name(name) => name.clone(),
            Opened::Refused => return refuse(code, "The capture device could not be opened"),
            Opened::Never => return refuse(code, "No capture device was specified"),
        };
        let transport = if start.flags & StartCapture::DGRAM != 0 {
            Transport::Udp { port: start.port }
        } else {
            let is_server_open = start.flags & StartCapture::SERVER_OPEN != 0;
            Transport::Tcp { port: start.port, is_server_open }
        };
        if transport == (Transport::Udp { port: 0 }) {
            return refuse(code, "The data port is 0");
        }
        Ok(StartRequest {
            interface,
            snaplen: match start.snaplen {
                0 => MAX_SNAPLEN,
                wanted => wanted.min(MAX_SNAPLEN),
            },
            transport,
            takes_large_datagrams: start.flags & StartCapture::LARGE_DATAGRAMS != 0,
            is_promiscuous: start.flags & StartCapture::PROMISC != 0,
            read_timeout_ms: start.read_timeout_ms,
            filter: compile(code, &start.filter)?,
            sampling: self.sampling,
        })
    }
}

/// The ERROR for a payload that was not read.
fn skipped(kind: Option<MessageType>) -> Refusal<&'static str> {
    let code = match kind {
        Some(MessageType::Auth) => ErrorCode::Auth,
        Some(MessageType::Open) => ErrorCode::Open,
        Some(MessageType::StartCapture) => ErrorCode::StartCapture,
        Some(MessageType::UpdateFilter) => ErrorCode::UpdateFilter,
        Some(MessageType::SetSampling) => ErrorCode::SetSampling,
        _ => return (ErrorCode::WrongMessage, UNKNOWN_MESSAGE),
    };
    (code, "Message payload is too long")
}

fn malformed<T>(code: ErrorCode, error: Malformed) -> Result<T, Refusal> {
    refuse(code, error.to_string())
}

/// Checks a client's filter as the kernel would.
fn compile(code: ErrorCode, filter: &Filter) -> Result<Program, Refusal> {
    /// `RPCAP_UPDATEFILTER_BPF`, the only kind there is.
    const BPF: u16 = 1;
    if filter.kind != BPF {
        return refuse(code, "The filter type is not supported");
    }
    if filter.instructions.is_empty() {
        return refuse(code, "The filter has no instructions");
    }
    Program::new(&filter.instructions).or_else(|error| refuse(code, error.to_string()))
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod mutated;
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;
