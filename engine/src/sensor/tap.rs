//! One tap: its control connection, its data socket, and what the two mean for each other.
//!
//! ```text
//! control socket <--> Client --Opened--> data socket, STARTCAP --Started--> Capture
//!                       |  Ended, failed, closed
//!                       v
//!                   leaving: data already sent are still taken for a moment, then `close`
//! ```
//!
//! Sockets are in `socket`, the loop that calls this is `event_loop`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::capture::Capture;
use super::client::{Client, Event};
use super::context::{Context, DataChannel, Token, Trouble};
use super::socket::{self, Data};
use super::summary::{Counts, TapStats};
use crate::rpcap::{StartCapture, Stats};
use crate::sys::socket_drops;

/// How long datagrams may still be on their way when the control connection says it is over.
pub(super) const DRAIN: Duration = Duration::from_millis(200);
/// How long a connection that failed stays open, unread: daemons reconnect without delay when it
/// closes, thousands of times a second.
const QUIET: Duration = Duration::from_secs(2);
/// How long a daemon may take to open its data connection (TCP).
const DATA_TIMEOUT: Duration = Duration::from_secs(10);
/// Reads from one socket before others have their turn.
const READS_PER_TURN: usize = 8;
/// Reads at the very end; what is still there after half a million datagrams is a flood.
const READS_AT_THE_END: usize = 8_192;
/// Bytes of one read from a stream socket.
const READ_BYTES: usize = 256 * 1024;

/// What becomes of a tap after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    /// It is to be taken out and [`Tap::close`]d.
    Goes,
}

pub(super) struct Tap {
    id: u64,
    /// In logs, in the summary and in the file.
    label: String,
    peer: SocketAddr,
    /// Index of the `--connect` target; `None` if the tap came to us.
    pub(super) target: Option<usize>,
    control: Option<TcpStream>,
    is_connecting: bool,
    wants_to_write: bool,
    client: Client,
    data: Data,
    data_due: Option<Instant>,
    capture: Option<Capture>,
    record: usize,
    last_stats: Option<Stats>,
    tap_stats: TapStats,
    /// The tap is being left, and goes then.
    leaving: Option<Instant>,
}

impl Tap {
    /// A tap that has connected to us, or that is being connected to.
    pub(super) fn new(
        id: u64,
        label: String,
        peer: SocketAddr,
        target: Option<usize>,
        control: TcpStream,
        now: Instant,
        context: &Context,
    ) -> io::Result<Self> {
        let is_connecting = target.is_some();
        let interest = if is_connecting { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        context.register(&control, Token::Control(id), interest)?;
        Ok(Self {
            id,
            label,
            peer,
            target,
            control: Some(control),
            is_connecting,
            wants_to_write: is_connecting,
            client: Client::new(context.settings.wishes.clone(), now),
            data: Data::None,
            data_due: None,
            capture: None,
            record: 0,
            last_stats: None,
            tap_stats: TapStats::default(),
            leaving: None,
        })
    }

    /// True once a capture was begun.
    pub(super) fn has_captured(&self) -> bool {
        self.capture.is_some()
    }

    /// Counts of the capture that is not in the records yet.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.capture.as_ref().map(Capture::counts).unwrap_or_default();
        if let Data::Udp(socket) = &self.data {
            counts.socket_drops = socket_drops(socket).into();
        }
        counts
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let of_client = if self.leaving.is_none() { self.client.deadline() } else { None };
        let of_capture = self.capture.as_ref().and_then(Capture::deadline);
        [self.leaving, of_client, of_capture, self.data_due].into_iter().flatten().min()
    }

    /// The control connection can be read or written.
    pub(super) fn control_ready(&mut self, now: Instant, context: &mut Context) -> Fate {
        match self.read_control(now, context).and_then(|events| self.act(now, events, context)) {
            Ok(fate) => fate,
            Err(trouble) => self.fail(now, &trouble, context),
        }
    }

    fn read_control(&mut self, now: Instant, context: &mut Context) -> Result<Vec<Event>, Trouble> {
        let mut events = Vec::new();
        let Some(control) = &mut self.control else { return Ok(events) };
        if self.is_connecting {
            let error = control.take_error().unwrap_or_else(Some);
            if let Some(error) = error {
                return Err(Trouble::new("connect", format!("cannot be connected to: {error}")));
            }
            self.is_connecting = false;
        }
        for _ in 0..READS_PER_TURN {
            let buffer = &mut context.receiver.buffer()[..READ_BYTES];
            match control.read(buffer) {
                Ok(0) => return Err(Trouble::new("closed", "closed the connection")),
                Ok(len) => self.client.receive(now, &buffer[..len], &mut events)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::new("closed", format!("is gone: {error}"))),
            }
        }
        Ok(events)
    }

    /// Does what the client's events ask for, and sends what it has to say.
    fn act(
        &mut self,
        now: Instant,
        events: Vec<Event>,
        context: &mut Context,
    ) -> Result<Fate, Trouble> {
        let mut fate = Fate::Stays;
        for event in events {
            match event {
                Event::Opened { interface, linktype } => {
                    self.open_data(now, &interface, linktype, context)?;
                }
                Event::Started(reply) => {
                    tracing::info!("{} captures", self.label);
                    if matches!(self.data, Data::None) {
                        let stream = socket::connect(SocketAddr::new(self.peer.ip(), reply.port))
                            .map_err(|error| data_trouble(&error))?;
                        self.set_data(Data::Stream(stream), context)?;
                    } else if matches!(self.data, Data::Listening(_)) {
                        self.data_due = Some(now + DATA_TIMEOUT);
                    }
                }
                Event::Stats(stats) => self.note_stats(stats),
                Event::FinalStats(stats) => {
                    // Daemons that forget their counts with the capture answer zeros.
                    let last = self.last_stats.unwrap_or_default();
                    if stats.received >= last.received && stats.sent >= last.sent {
                        self.note_stats(stats);
                    }
                }
                Event::Complaint { code, text } => {
                    if context.is_news(&self.label, "complaint") {
                        tracing::warn!("{} says: error {code}, {text:?}", self.label);
                    }
                }
                Event::Ended => {
                    self.client.close();
                    fate = self.leave(now, Some(DRAIN));
                }
            }
        }
        self.write_control(context)?;
        if fate == Fate::Stays && self.leaving.is_some() {
            self.drop_control();
        }
        Ok(fate)
    }

    fn note_stats(&mut self, stats: Stats) {
        self.tap_stats.advance(self.last_stats.unwrap_or_default(), stats);
        self.last_stats = Some(stats);
    }

    /// An interface is open: makes the data socket and asks for the capture.
    fn open_data(
        &mut self,
        now: Instant,
        interface: &str,
        linktype: i32,
        context: &mut Context,
    ) -> Result<(), Trouble> {
        let filter = context.settings.filter_for(linktype).map_err(|error| {
            Trouble::new(
                "filter",
                format!("has link type {linktype}, where the filter fails: {error}"),
            )
        })?;
        let file_linktype = linktype_of_dlt(linktype)
            .ok_or_else(|| Trouble::new("linktype", format!("has unknown link type {linktype}")))?;
        let control = self.control.as_ref().ok_or_else(|| Trouble::new("closed", "is gone"))?;
        let local = control.local_addr().map_err(|error| data_trouble(&error))?;
        let is_active = self.target.is_none();
        let (data, flags) = match (context.settings.data, is_active) {
            (DataChannel::Udp, _) => {
                let socket = socket::udp(local).map_err(|error| data_trouble(&error))?;
                let server_open = if is_active { StartCapture::SERVER_OPEN } else { 0 };
                (Data::Udp(socket), StartCapture::DGRAM | server_open)
            }
            (DataChannel::Tcp, true) => {
                let listener =
                    socket::listen_for_data(local).map_err(|error| data_trouble(&error))?;
                (Data::Listening(listener), StartCapture::SERVER_OPEN)
            }
            (DataChannel::Tcp, false) => (Data::None, 0),
        };
        let port = data.local_port();
        self.set_data(data, context)?;
        let (record, block) = context
            .record(&self.label, interface, file_linktype)
            .ok_or_else(|| Trouble::new("too_many", "is one tap too many"))?;
        let snaplen = context.settings.snaplen;
        self.record = record;
        self.capture = Some(Capture::new(self.peer.ip(), snaplen, context.settings.hold, block));
        let request = StartCapture { snaplen, read_timeout_ms: 100, flags, port, filter };
        self.client.start_capture(now, &request);
        Ok(())
    }

    fn set_data(&mut self, data: Data, context: &Context) -> Result<(), Trouble> {
        if let Some(descriptor) = data.descriptor() {
            context
                .register(descriptor, Token::Data(self.id), EpollFlags::EPOLLIN)
                .map_err(|error| data_trouble(&error.into()))?;
        }
        self.data = data;
        Ok(())
    }

    fn write_control(&mut self, context: &Context) -> Result<(), Trouble> {
        if self.is_connecting {
            return Ok(());
        }
        let Some(control) = &mut self.control else { return Ok(()) };
        let output = self.client.output();
        while !output.is_empty() {
            match control.write(output) {
                Ok(len) => drop(output.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::new("closed", format!("is gone: {error}"))),
            }
        }
        let wants_to_write = !output.is_empty();
        if wants_to_write != self.wants_to_write {
            self.wants_to_write = wants_to_write;
            let also = if wants_to_write { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let token = Token::Control(self.id).to_number();
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | also, token);
            context
                .epoll
                .modify(&*control, &mut event)
                .map_err(|error| Trouble::new("closed", format!("cannot be polled: {error}")))?;
        }
        Ok(())
    }

    /// The data socket can be read.
    pub(super) fn data_ready(&mut self, now: Instant, context: &mut Context) -> Fate {
        match self.read_data(now, READS_PER_TURN, context) {
            Ok(()) => Fate::Stays,
            Err(trouble) => {
                self.data = Data::None;
                self.fail(now, &trouble, context)
            }
        }
    }

    fn read_data(
        &mut self,
        now: Instant,
        turns: usize,
        context: &mut Context,
    ) -> Result<(), Trouble> {
        let Some(capture) = &mut self.capture else { return Ok(()) };
        let Context { receiver, output, epoll, .. } = context;
        for _ in 0..turns {
            match &mut self.data {
                Data::None => break,
                Data::Udp(socket) => match receiver.receive(&*socket) {
                    Ok(batch) => {
                        for (from, bytes) in batch.datagrams() {
                            capture.datagram(now, from, bytes, output);
                        }
                        if !batch.is_full() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(data_trouble(&error)),
                },
                Data::Listening(listener) => match listener.accept() {
                    Ok((stream, from)) if from.ip().to_canonical() == self.peer.ip() => {
                        stream.set_nonblocking(true).map_err(|error| data_trouble(&error))?;
                        let token = Token::Data(self.id).to_number();
                        epoll
                            .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))
                            .map_err(|error| data_trouble(&error.into()))?;
                        self.data_due = None;
                        self.data = Data::Stream(stream);
                        break;
                    }
                    Ok(_stranger) => {}
                    Err(_nothing_or_aborted) => break,
                },
                Data::Stream(stream) => {
                    let buffer = &mut receiver.buffer()[..READ_BYTES];
                    match stream.read(buffer) {
                        Ok(0) => {
                            self.data = Data::None;
                            // As it should be after ENDCAP, and at no other time.
                            if self.leaving.is_none() && self.client.is_running() {
                                return Err(Trouble::new("data", "closed its data connection"));
                            }
                        }
                        Ok(len) => capture.stream(&buffer[..len], output).map_err(|_out| {
                            Trouble::new("data", "sends data that cannot be followed")
                        })?,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(data_trouble(&error)),
                    }
                }
            }
        }
        self.say_new_faults(context);
        Ok(())
    }

    fn say_new_faults(&mut self, context: &mut Context) {
        let faults = self.capture.as_mut().map(Capture::take_new_faults).unwrap_or_default();
        for fault in faults {
            if context.is_news(&self.label, fault.label()) {
                tracing::warn!("{} sends malformed data: {}", self.label, fault.label());
            }
        }
    }

    /// Does what is due by time.
    pub(super) fn tick(&mut self, now: Instant, context: &mut Context) -> Fate {
        if let Some(capture) = &mut self.capture {
            capture.tick(now, &mut context.output);
        }
        if let Some(until) = self.leaving {
            return if until <= now { Fate::Goes } else { Fate::Stays };
        }
        if self.data_due.is_some_and(|due| due <= now) {
            let trouble = Trouble::new("data", "did not open its data connection in time");
            return self.fail(now, &trouble, context);
        }
        let mut events = Vec::new();
        let result = self.client.tick(now, &mut events).map_err(Trouble::from);
        match result.and_then(|()| self.act(now, events, context)) {
            Ok(fate) => fate,
            Err(trouble) => self.fail(now, &trouble, context),
        }
    }

    /// Ends the capture in an orderly way, if there is one.
    pub(super) fn end(&mut self, now: Instant, context: &mut Context) -> Fate {
        if let Some(until) = self.leaving {
            self.leaving = Some(until.min(now + DRAIN));
            return Fate::Stays;
        }
        if !self.client.end(now) {
            return Fate::Goes;
        }
        self.act(now, Vec::new(), context).unwrap_or(Fate::Goes)
    }

    fn drop_control(&mut self) {
        self.control = None;
        self.data_due = None;
    }

    /// The tap goes after `wait`, or at once.
    fn leave(&mut self, now: Instant, wait: Option<Duration>) -> Fate {
        self.leaving = wait.map(|wait| now + wait);
        if wait.is_some() { Fate::Stays } else { Fate::Goes }
    }

    fn fail(&mut self, now: Instant, trouble: &Trouble, context: &mut Context) -> Fate {
        if self.leaving.is_some() {
            self.drop_control();
            return Fate::Stays;
        }
        if trouble.label == "closed" && self.has_captured() {
            tracing::info!("{} {}", self.label, trouble.text);
        } else {
            context.failed(&self.label, trouble);
        }
        // Strangers are shown the door; a tap that closed is gone; anybody else would come back at
        // once and fail again.
        match trouble.label {
            "not_rpcap" | "version" | "connect" | "timeout" => self.drop_control(),
            "closed" => {
                self.drop_control();
                let wait = self.has_captured().then_some(DRAIN);
                return self.leave(now, wait);
            }
            _ => {
                if let Some(control) = &self.control {
                    // Registered since `new`: taking it out cannot fail.
                    let _ = context.epoll.delete(control);
                }
                self.data_due = None;
                return self.leave(now, Some(QUIET));
            }
        }
        let wait = self.has_captured().then_some(DRAIN);
        self.leave(now, wait)
    }

    /// Takes the last data and adds up.
    pub(super) fn close(mut self, now: Instant, context: &mut Context) {
        // An error here has nothing left to spoil.
        let _ = self.read_data(now, READS_AT_THE_END, context);
        if let Some(capture) = &mut self.capture {
            capture.finish(&mut context.output);
        }
        if !self.has_captured() {
            return;
        }
        self.say_new_faults(context);
        let record = &mut context.records[self.record];
        record.counts += self.counts();
        if self.last_stats.is_some() {
            *record.tap_stats.get_or_insert_default() += self.tap_stats;
        }
    }
}

fn data_trouble(error: &io::Error) -> Trouble {
    Trouble::new("data", format!("cannot be given a data channel: {error}"))
}

/// The `LINKTYPE_` value of a daemon's `DLT_` value; they differ for raw IP only, where Linux
/// daemons say 12.
fn linktype_of_dlt(dlt: i32) -> Option<u16> {
    match dlt {
        12 => Some(101),
        other => u16::try_from(other).ok(),
    }
}
