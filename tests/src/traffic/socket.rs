//! Sockets with limits on every wait and, where a test needs it, a chosen client port.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

/// How long a client waits for anything. Long: two busy cores are shared by many.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

fn any(to: SocketAddr, port: u16) -> SocketAddr {
    let ip = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, port)
}

/// Connects, from `client_port` if there is one.
pub(crate) fn connect(to: SocketAddr, client_port: Option<u16>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(port) = client_port {
        socket.set_reuse_address(true)?;
        socket.bind(&any(to, port).into())?;
    }
    socket.connect_timeout(&to.into(), LIMIT)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// A UDP socket of the family of `to`, from `client_port` if there is one; not connected.
pub(crate) fn udp(to: SocketAddr, client_port: Option<u16>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(to, client_port.unwrap_or(0)))?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// A listener whose port can be used again at once, for labs that are used by hand.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The port of the `index`-th connection, when the first one's was chosen.
pub(crate) fn client_port(first: Option<u16>, index: u32) -> io::Result<Option<u16>> {
    let Some(first) = first else { return Ok(None) };
    u16::try_from(u32::from(first) + index)
        .map(Some)
        .map_err(|_above| io::Error::other(format!("no port {first} + {index}")))
}

/// An error that says what was not as it should be.
pub(crate) fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
