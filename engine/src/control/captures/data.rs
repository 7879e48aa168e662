//! The TCP data connection of a capture, until it stands.
//!
//! ```text
//! Opening:  connect --> writable --> session      Awaiting: accept, from the peer only --> session
//!              `------- deadline, refused --> error 12 or 9 -------'
//! ```

use std::io::{self, ErrorKind};
use std::time::Instant;

use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::active::is_connected;
use crate::control::capture::Capture;
use crate::control::config::Context;
use crate::control::protocol::StartRequest;
use crate::control::socket::canonical;

use super::{Captures, News, Next};

/// Connections to a data listener that are looked at in one step.
const ACCEPTS: usize = 16;

/// A STARTCAP that waits until we have connected to the client.
pub(super) struct Opening {
    pub(super) socket: TcpStream,
    pub(super) deadline: Instant,
    pub(super) request: StartRequest,
}

/// A capture that was confirmed, and waits for the client to connect.
pub(super) struct Awaiting {
    pub(super) listener: TcpListener,
    pub(super) port: u16,
    pub(super) deadline: Instant,
    pub(super) request: StartRequest,
}

impl Captures {
    pub(super) fn check_opening(&mut self, now: Instant, cx: &Context) -> Option<News> {
        let opening = self.opening.as_ref()?;
        let result = match is_connected(&opening.socket) {
            Ok(false) if now < opening.deadline => return None,
            Ok(false) => Err(io::Error::from(ErrorKind::TimedOut)),
            Ok(true) => Ok(()),
            Err(error) => Err(error),
        };
        let Opening { mut socket, request, .. } = self.opening.take()?;
        if result.is_ok()
            && let Err(text) = self.check_room(cx)
        {
            return Some(News::Answer(Err(text)));
        }
        let result = result
            .and_then(|()| cx.registry.deregister(&mut socket))
            .and_then(|()| self.over_tcp(socket.into(), &request, cx));
        match result {
            Ok(capture) => {
                self.replace(Some(Next::Run(Box::new(capture))), now, cx);
                None
            }
            Err(error) => Some(News::Answer(Err(cannot_connect(&error)))),
        }
    }

    pub(super) fn listen(&self, cx: &Context) -> io::Result<(TcpListener, u16)> {
        let mut address = self.local;
        address.set_port(0);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&address.into())?;
        // A stranger's attempt must not keep the client's out.
        socket.listen(i32::try_from(ACCEPTS).map_err(io::Error::other)?)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        let port = listener.local_addr()?.port();
        cx.registry.register(&mut listener, self.token, Interest::READABLE)?;
        Ok((listener, port))
    }

    pub(super) fn check_awaiting(&mut self, now: Instant, cx: &Context) -> Option<News> {
        let awaiting = self.awaiting.as_ref()?;
        for _ in 0..ACCEPTS {
            match awaiting.listener.accept() {
                Ok((_, from)) if canonical(from).ip() != self.peer.address.ip() => {
                    tracing::warn!(peer = %self.peer.address, %from, "a stranger on a data port");
                }
                Ok((stream, _)) => {
                    let Awaiting { request, .. } = self.awaiting.take()?;
                    if self.check_room(cx).is_err() {
                        return Some(News::Failed("Too many captures run"));
                    }
                    return match self.over_tcp(stream.into(), &request, cx) {
                        Ok(capture) => {
                            self.run(capture, cx);
                            None
                        }
                        Err(error) => {
                            tracing::warn!(peer = %self.peer.address, %error, "data connection");
                            Some(News::Failed("The data connection failed"))
                        }
                    };
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Aborted before it was accepted, or the system is short of something: the
                // deadline decides.
                Err(_) => {}
            }
        }
        if now < awaiting.deadline {
            return None;
        }
        self.awaiting = None;
        Some(News::Failed("The data connection did not come in time"))
    }

    /// A session over a data connection that stands, and is registered nowhere yet.
    fn over_tcp(
        &self,
        stream: std::net::TcpStream,
        request: &StartRequest,
        cx: &Context,
    ) -> io::Result<Capture> {
        let peer_port = stream.peer_addr()?.port();
        let flows = self.begin_flows(peer_port, Some(stream.local_addr()?.port()), cx);
        let mut watched = TcpStream::from_std(stream.try_clone()?);
        let session = cx.sessions.open_over_tcp(self.spec(request, peer_port, cx), stream)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        cx.registry.register(&mut watched, self.token, interest)?;
        Ok(self.capture(session, Some(watched), flows, request, cx))
    }
}

pub(super) fn cannot_connect(error: &io::Error) -> String {
    format!("Cannot connect to the data port: {error}")
}
