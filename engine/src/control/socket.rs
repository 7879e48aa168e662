//! TCP sockets of the control thread: made without blocking, and watched for a silent peer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// A peer that vanished without a word: probed when idle for a third of `silence`, and given up
/// when it has acknowledged nothing for all of it.
pub(super) fn watch_for_silence(socket: &SockRef<'_>, silence: Duration) -> io::Result<()> {
    let probe = Duration::from_secs((silence.as_secs() / 3).max(1));
    let keepalive = TcpKeepalive::new().with_time(probe).with_interval(probe).with_retries(2);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(silence))
}

/// Starts to make a data connection. Its peer's silence shows on the control connection, and
/// may be long: it is a client that reads slowly.
pub(super) fn connect(
    peer: SocketAddr,
    registry: &Registry,
    token: Token,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(peer)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let mut socket = TcpStream::from_std(socket.into());
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

/// An IPv4 address as such, where an IPv6 socket shows it as a mapped one.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}
