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

mod data;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::capture::Capture;
use super::client::{Client, Event, Failure};
use super::context::{Context, Token, Trouble};
use super::socket::{self, Data};
use super::summary::{Counts, TapStats};
use crate::rpcap::Stats;
use crate::sys::socket_drops;

/// How long datagrams may still be on their way when the control connection says it is over.
pub(super) const DRAIN: Duration = Duration::from_millis(200);
/// How long a connection that failed stays open, unread: daemons reconnect without delay when it
/// closes, thousands of times a second.
const QUIET: Duration = Duration::from_secs(2);
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
    has_started: bool,
    record: usize,
    /// What OPEN answered: the filter is compiled for it.
    linktype: i32,
    last_stats: Option<Stats>,
    tap_stats: TapStats,
    trouble: Option<Trouble>,
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
        socket::notice_silence(&control)?;
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
            has_started: false,
            record: 0,
            linktype: 0,
            last_stats: None,
            tap_stats: TapStats::default(),
            trouble: None,
            leaving: None,
        })
    }

    /// True once a capture was begun.
    pub(super) fn has_captured(&self) -> bool {
        self.capture.is_some()
    }

    /// True once a daemon has agreed to capture.
    pub(super) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Why it is being left, unless it is as it should be.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
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
        let mut events = Vec::new();
        let read = self.read_control(now, context, &mut events);
        // What was said before the end counts.
        match self.act(now, events, context).and_then(|fate| read.map(|()| fate)) {
            Ok(fate) => fate,
            Err(trouble) => self.fail(now, &trouble, context),
        }
    }

    fn read_control(
        &mut self,
        now: Instant,
        context: &mut Context,
        events: &mut Vec<Event>,
    ) -> Result<(), Trouble> {
        let Some(control) = &mut self.control else { return Ok(()) };
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
                Ok(len) => self.client.receive(now, &buffer[..len], events)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Trouble::new("closed", format!("is gone: {error}"))),
            }
        }
        Ok(())
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
                Event::Opened { interface, linktype, is_swapped } => {
                    self.open_data(now, &interface, (linktype, is_swapped), context)?;
                }
                Event::Started(reply) => {
                    tracing::info!("{} captures", self.label);
                    self.has_started = true;
                    self.begin_data(now, reply.port, context)?;
                }
                Event::FilterReplaced => tracing::info!("{} has the new filter", self.label),
                Event::FilterKept(complaint) => {
                    tracing::warn!("{} keeps its old filter: {complaint}", self.label);
                }
                Event::Stats(stats) => self.note_stats(stats),
                Event::FinalStats(stats) => {
                    // Daemons that forget their counts with the capture answer zeros.
                    let last = self.last_stats.unwrap_or_default();
                    if stats.received >= last.received && stats.sent >= last.sent {
                        self.note_stats(stats);
                    }
                }
                Event::Complaint(complaint) => {
                    if context.is_news(&self.label, "complaint") {
                        tracing::warn!("{} says: {complaint}", self.label);
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

    /// The settings have a new filter: asks the daemon for it, if it captures.
    pub(super) fn update_filter(&mut self, now: Instant, context: &mut Context) -> Fate {
        if self.capture.is_none() || self.leaving.is_some() {
            return Fate::Stays;
        }
        match context.settings.filter_for(self.linktype) {
            Ok(filter) => self.client.update_filter(now, filter),
            Err(error) => tracing::warn!("{} keeps its old filter: {error}", self.label),
        }
        match self.act(now, Vec::new(), context) {
            Ok(fate) => fate,
            Err(trouble) => self.fail(now, &trouble, context),
        }
    }

    fn note_stats(&mut self, stats: Stats) {
        self.tap_stats.advance(self.last_stats.unwrap_or_default(), stats);
        self.last_stats = Some(stats);
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

    /// Does what is due by time.
    pub(super) fn tick(&mut self, now: Instant, context: &mut Context) -> Fate {
        if let Some(capture) = &mut self.capture {
            capture.tick(now, &mut context.output);
        }
        if let Some(until) = self.leaving {
            return if until <= now { Fate::Goes } else { Fate::Stays };
        }
        if self.data_due.is_some_and(|due| due <= now)
            && let Err(trouble) = self.check_data()
        {
            return self.fail(now, &trouble, context);
        }
        let mut events = Vec::new();
        let result = self.client.tick(now, &mut events).map_err(|failure| match failure {
            Failure::Timeout(_) if self.is_connecting => {
                Trouble::new("connect", "cannot be connected to: no answer")
            }
            failure => failure.into(),
        });
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
        self.trouble = Some(trouble.clone());
        if trouble.label == "closed" && self.has_captured() {
            tracing::info!("{} {}", self.label, trouble.text);
        } else {
            context.failed(&self.label, trouble);
        }
        // Strangers are shown the door; a tap that closed is gone; a daemon that we have connected
        // to stays where it is; anybody else would come back at once and fail again.
        let goes =
            matches!(trouble.label, "not_rpcap" | "version" | "connect" | "timeout" | "closed");
        if goes || self.target.is_some() {
            self.drop_control();
            let wait = self.has_captured().then_some(DRAIN);
            return self.leave(now, wait);
        }
        if let Some(control) = &self.control {
            // Registered since `new`: taking it out cannot fail.
            let _ = context.epoll.delete(control);
        }
        self.data_due = None;
        self.leave(now, Some(QUIET))
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
