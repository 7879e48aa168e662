//! The data channel of a tap: its socket, made and read.
//!
//! ```text
//! OPEN answered --open_data--> UDP | TCP listener | nothing yet       STARTCAP asked
//! STARTCAP answered --begin_data--> TCP connected to, or awaited
//! socket readable --read_data--> Capture
//! ```

use std::io::{self, Read};
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::super::capture::Capture;
use super::super::context::{Context, DataChannel, Token, Trouble};
use super::super::socket::{self, Data};
use super::{Fate, READ_BYTES, READS_PER_TURN, Tap};
use crate::rpcap::StartCapture;

/// How long a daemon may take to open its data connection, or to answer ours (TCP).
const DATA_TIMEOUT: Duration = Duration::from_secs(10);
/// `LINKTYPE_` values whose frames have fields in the byte order of the machine that captured them:
/// BSD loopback, pflog, USB (two), NFLOG.
const HOST_ORDER: [u16; 5] = [0, 117, 189, 220, 239];

impl Tap {
    /// An interface is open: makes the data socket and asks for the capture.
    pub(super) fn open_data(
        &mut self,
        now: Instant,
        interface: &str,
        (linktype, is_swapped): (i32, bool),
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
                let flags = StartCapture::DGRAM | StartCapture::LARGE_DATAGRAMS | server_open;
                (Data::Udp(socket), flags)
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
        if is_swapped
            && HOST_ORDER.contains(&file_linktype)
            && context.is_news(&self.label, "byte_order")
        {
            tracing::warn!(
                "{} has the other byte order: fields of link type {file_linktype} that are in \
                 host order are written as they come",
                self.label
            );
        }
        let snaplen = context.settings.snaplen;
        self.record = record;
        self.linktype = linktype;
        let mut capture = Capture::new(self.peer.ip(), snaplen, context.settings.hold, block);
        capture.also_from(&context.settings.data_from);
        self.capture = Some(capture);
        let request = StartCapture { snaplen, read_timeout_ms: 100, flags, port, filter };
        self.client.start_capture(now, &request);
        Ok(())
    }

    pub(super) fn set_data(&mut self, data: Data, context: &Context) -> Result<(), Trouble> {
        if let Some(descriptor) = data.descriptor() {
            context
                .register(descriptor, Token::Data(self.id), EpollFlags::EPOLLIN)
                .map_err(|error| data_trouble(&error.into()))?;
        }
        self.data = data;
        Ok(())
    }

    /// The data socket can be read.
    pub(in crate::sensor) fn data_ready(&mut self, now: Instant, context: &mut Context) -> Fate {
        match self.read_data(now, READS_PER_TURN, context) {
            Ok(()) => Fate::Stays,
            Err(trouble) => {
                self.data = Data::None;
                self.fail(now, &trouble, context)
            }
        }
    }

    pub(super) fn read_data(
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
                    Ok((stream, from)) if capture.is_from_tap(from.ip()) => {
                        stream
                            .set_nonblocking(true)
                            .and_then(|()| socket::notice_silence(&stream))
                            .map_err(|error| data_trouble(&error))?;
                        let token = Token::Data(self.id).to_number();
                        epoll
                            .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, token))
                            .map_err(|error| data_trouble(&error.into()))?;
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

    /// The capture has begun: connects to the daemon where it is the one that listens.
    pub(super) fn begin_data(
        &mut self,
        now: Instant,
        port: u16,
        context: &mut Context,
    ) -> Result<(), Trouble> {
        if matches!(self.data, Data::None) {
            if port == 0 {
                return Err(Trouble::new("data", "does not say at which port its data are"));
            }
            let stream = socket::connect(socket::at_port(self.peer, port))
                .map_err(|error| data_trouble(&error))?;
            self.set_data(Data::Stream(stream), context)?;
        }
        if !matches!(self.data, Data::Udp(_)) {
            self.data_due = Some(now + DATA_TIMEOUT);
        }
        Ok(())
    }

    /// The time that the data connection was given is over: is it there?
    pub(super) fn check_data(&mut self) -> Result<(), Trouble> {
        self.data_due = None;
        match &self.data {
            Data::Stream(stream) if stream.peer_addr().is_ok() => Ok(()),
            Data::Stream(_) => Err(Trouble::new("data", "cannot be reached at its data port")),
            Data::Listening(_) => {
                Err(Trouble::new("data", "did not open its data connection in time"))
            }
            // It was there, and has ended.
            Data::None | Data::Udp(_) => Ok(()),
        }
    }

    pub(super) fn say_new_faults(&mut self, context: &mut Context) {
        let Some(capture) = &mut self.capture else { return };
        if let Some(from) = capture.take_stranger()
            && context.is_news(&self.label, "stranger")
        {
            tracing::warn!(
                "{from} sends datagrams to the port of {}: not taken; if it is the same machine, \
                 --data-from {}",
                self.label,
                from.ip()
            );
        }
        for fault in capture.take_new_faults() {
            if context.is_news(&self.label, fault.label()) {
                tracing::warn!("{} sends malformed data: {}", self.label, fault.label());
            }
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
