//! The control protocol as the appliance speaks it: the side that asks.
//!
//! ```text
//! AUTH -> [FINDALLIF] -> OPEN -> [SETSAMPLING] -> (caller makes a data socket) STARTCAP
//!      -> { STATS | UPDATEFILTER }... -> STATS -> ENDCAP -> STATS -> CLOSE
//! bytes in --receive--> events                 requests --output--> bytes out
//! ```
//!
//! Pure: bytes and the time are arguments. At most one request waits for its reply. Reading keeps
//! no more of a message than can be of use. STATS are asked for before ENDCAP because libpcap's
//! daemon forgets its counts with the capture, and after it because ours then knows the last packet.

mod failure;

use std::time::{Duration, Instant};

pub(super) use failure::{Complaint, Failure};

use crate::rpcap::{
    Auth, ErrorCode, Filter, HEADER_BYTES, Header, Interface, MessageType, OpenReply, Sampling,
    StartCapture, StartCaptureReply, Stats, auth_reply_is_swapped, read_auth_reply,
};

/// How long a daemon may take to reply.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often STATS are asked for; it is also the only sign of life that the protocol has. The
/// reference's daemon writes a line to its log each time, if it was started with `-S`.
pub(super) const STATS_PERIOD: Duration = Duration::from_secs(5);
/// How long the last replies may take: nobody wants to wait for a dying daemon.
pub(super) const END_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest interface list that is read: some 30,000 interfaces with an address each.
const MAX_INTERFACES_BYTES: u32 = 16 << 20;
/// Bytes that are kept of any other message; the rest is passed over.
const KEPT_BYTES: u32 = 256;

/// What to ask daemons for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    /// User and password; null authentication without.
    pub(super) credentials: Option<(String, String)>,
    /// The interface to open, unseen, instead of the first one offered.
    pub(super) open: Option<String>,
    /// Which packets to leave out.
    pub(super) sampling: Option<Sampling>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An interface is open; [`Client::start_capture`] is due.
    Opened {
        interface: String,
        linktype: i32,
        /// The daemon's byte order is not ours.
        is_swapped: bool,
    },
    Started(StartCaptureReply),
    Stats(Stats),
    /// The last STATS, after the capture has ended.
    FinalStats(Stats),
    /// UPDATEFILTER was carried out.
    FilterReplaced,
    /// UPDATEFILTER was refused: the old filter goes on.
    FilterKept(Complaint),
    /// The daemon complains, but goes on.
    Complaint(Complaint),
    /// The capture has ended as we wished.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Authenticating,
    Listing,
    Opening,
    /// SETSAMPLING was sent.
    Sampling,
    /// The caller makes a data socket.
    Opened,
    Starting,
    Running,
    /// STATS were asked for, ENDCAP comes next.
    StatsBeforeEnd,
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
    linktype: i32,
    is_swapped: bool,
    /// The last request, and when its reply is overdue if that is still to come.
    asked: MessageType,
    reply_due: Option<Instant>,
    next_stats: Instant,
    /// To be sent when no reply is outstanding.
    new_filter: Option<Filter>,
    inbound: Vec<u8>,
    /// Bytes still to come of a message that was handled or is not wanted.
    skip: u64,
    outbound: Vec<u8>,
}

impl Client {
    /// Begins: the first request is waiting in [`output`](Self::output).
    pub(super) fn new(wishes: Wishes, now: Instant) -> Self {
        let mut client = Self {
            wishes,
            state: State::Authenticating,
            interface: String::new(),
            linktype: 0,
            is_swapped: false,
            asked: MessageType::Auth,
            reply_due: None,
            next_stats: now,
            new_filter: None,
            inbound: Vec::new(),
            skip: 0,
            outbound: Vec::new(),
        };
        let auth = match &client.wishes.credentials {
            None => Auth::null_request().to_vec(),
            Some((user, password)) => Auth::password_request(user, password),
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
        self.request_within(now, REPLY_TIMEOUT, kind, payload);
    }

    fn request_within(
        &mut self,
        now: Instant,
        timeout: Duration,
        kind: MessageType,
        payload: &[u8],
    ) {
        self.send(kind, payload);
        self.asked = kind;
        self.reply_due = Some(now + timeout);
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

    /// Replaces the filter that STARTCAP named, as soon as the daemon can be asked to.
    pub(super) fn update_filter(&mut self, now: Instant, filter: Filter) {
        // Never before STARTCAP: libpcap's daemon refuses it then and loses step.
        if matches!(self.state, State::Starting | State::Running) {
            self.new_filter = Some(filter);
            self.send_new_filter(now);
        }
    }

    fn send_new_filter(&mut self, now: Instant) {
        if self.state == State::Running
            && self.reply_due.is_none()
            && let Some(filter) = self.new_filter.take()
        {
            let mut payload = Vec::new();
            filter.write(&mut payload);
            self.request(now, MessageType::UpdateFilter, &payload);
        }
    }

    /// Ends the capture; [`Event::Ended`] follows. False if none is running.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let running = self.state == State::Running;
        if running {
            self.state = State::StatsBeforeEnd;
            if self.reply_due.is_some() && self.asked == MessageType::Stats {
                self.reply_due = Some(now + END_TIMEOUT);
            } else {
                self.request_within(now, END_TIMEOUT, MessageType::Stats, &[]);
            }
        }
        running
    }

    fn end_capture(&mut self, now: Instant) {
        self.state = State::Ending;
        self.request_within(now, END_TIMEOUT, MessageType::EndCapture, &[]);
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
            State::StatsBeforeEnd => {
                self.end_capture(now);
                Ok(())
            }
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
        match self.asked {
            MessageType::Auth => "AUTH",
            MessageType::FindAllIf => "FINDALLIF",
            MessageType::Open => "OPEN",
            MessageType::SetSampling => "SETSAMPLING",
            MessageType::StartCapture => "STARTCAP",
            MessageType::UpdateFilter => "UPDATEFILTER",
            MessageType::EndCapture => "ENDCAP",
            _ => "STATS",
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
            (_, M::Error) => {
                let text = String::from_utf8_lossy(payload).into_owned();
                self.error(now, Complaint { code: header.value, text }, events)
            }
            (State::Authenticating, M::AuthReply) => {
                read_auth_reply(payload)?;
                self.is_swapped = auth_reply_is_swapped(payload);
                match self.wishes.open.clone() {
                    // No list is needed, and ExtraHop's daemon never answers with one when it has
                    // some 60 interfaces.
                    Some(name) => self.open(now, name),
                    None => {
                        self.state = State::Listing;
                        self.request(now, M::FindAllIf, &[]);
                    }
                }
                Ok(())
            }
            (State::Listing, M::FindAllIfReply) => {
                let name = choose(Interface::read_all(payload, header.value)?)?;
                self.open(now, name);
                Ok(())
            }
            (State::Opening, M::OpenReply) => {
                self.linktype = OpenReply::read(payload)?.linktype;
                match self.wishes.sampling {
                    Some(sampling) => {
                        self.state = State::Sampling;
                        self.request(now, M::SetSampling, &sampling.to_bytes());
                    }
                    None => self.opened(events),
                }
                Ok(())
            }
            (State::Sampling, M::SetSamplingReply) => {
                self.opened(events);
                Ok(())
            }
            (State::Starting, M::StartCaptureReply) => {
                let reply = StartCaptureReply::read(payload)?;
                self.state = State::Running;
                self.reply_due = None;
                self.next_stats = now + STATS_PERIOD;
                events.push(Event::Started(reply));
                self.send_new_filter(now);
                Ok(())
            }
            (State::Running, M::StatsReply) => {
                events.push(Event::Stats(Stats::read(payload)?));
                self.answered(now, M::Stats);
                Ok(())
            }
            (State::Running, M::UpdateFilterReply) => {
                events.push(Event::FilterReplaced);
                self.answered(now, M::UpdateFilter);
                Ok(())
            }
            (State::StatsBeforeEnd, M::StatsReply) => {
                events.push(Event::Stats(Stats::read(payload)?));
                self.end_capture(now);
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

    /// The reply to `kind` has come while the capture runs.
    fn answered(&mut self, now: Instant, kind: MessageType) {
        if self.asked == kind {
            self.reply_due = None;
            self.send_new_filter(now);
        }
    }

    fn opened(&mut self, events: &mut Vec<Event>) {
        self.state = State::Opened;
        self.reply_due = None;
        events.push(Event::Opened {
            interface: self.interface.clone(),
            linktype: self.linktype,
            is_swapped: self.is_swapped,
        });
    }

    fn last_stats(&mut self, now: Instant) {
        self.state = State::LastStats;
        self.request_within(now, END_TIMEOUT, MessageType::Stats, &[]);
    }

    /// An ERROR: the reply to what was asked, or (in a capture) said unasked.
    fn error(
        &mut self,
        now: Instant,
        complaint: Complaint,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        /// Daemons say this unasked, so it may stand where the reply to a STATS is awaited.
        const CAPTURE_FAILED: u16 = ErrorCode::Read as u16;
        match self.state {
            State::StatsBeforeEnd => {
                events.push(Event::Complaint(complaint));
                self.end_capture(now);
                Ok(())
            }
            // The capture had failed already: there is nothing to end.
            State::Ending => {
                events.push(Event::Complaint(complaint));
                self.last_stats(now);
                Ok(())
            }
            State::LastStats => {
                self.ended(events);
                Ok(())
            }
            State::Ended => Ok(()),
            State::Running if complaint.code == CAPTURE_FAILED => {
                Err(Failure::CaptureFailed(complaint))
            }
            State::Running => {
                let is_refusal =
                    self.reply_due.is_some() && self.asked == MessageType::UpdateFilter;
                events.push(match is_refusal {
                    true => Event::FilterKept(complaint),
                    false => Event::Complaint(complaint),
                });
                self.reply_due = None;
                self.send_new_filter(now);
                Ok(())
            }
            _ => Err(Failure::Refused { request: self.awaited(), complaint }),
        }
    }

    fn open(&mut self, now: Instant, name: String) {
        self.state = State::Opening;
        self.request(now, MessageType::Open, name.as_bytes());
        self.interface = name;
    }
}

/// The preselected interface, else the first.
fn choose(offered: Vec<Interface>) -> Result<String, Failure> {
    let preselected = offered.iter().position(|offer| offer.description.ends_with(";preselected"));
    let chosen = offered.into_iter().nth(preselected.unwrap_or(0)).ok_or(Failure::NoInterface)?;
    Ok(chosen.name)
}

#[cfg(test)]
mod tests;
