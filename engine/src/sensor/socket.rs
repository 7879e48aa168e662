//! The sockets of the sensor: non-blocking, and of the control connection's family.
//!
//! ```text
//! listen              taps come to us                connect    we go to a daemon
//! udp                 datagrams                      listen_for_data / connect    TCP data
//! ```

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Receive buffer of a data socket, bytes: 60 ms at 200,000 full datagrams a second. Used only
/// while we lag behind.
const RECEIVE_BUFFER: usize = 32 << 20;

/// What data arrive on.
pub(super) enum Data {
    None,
    Udp(UdpSocket),
    /// TCP; the daemon has not connected yet.
    Listening(TcpListener),
    /// TCP.
    Stream(TcpStream),
}

impl Data {
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::None => None,
            Self::Udp(socket) => Some(socket.as_fd()),
            Self::Listening(listener) => Some(listener.as_fd()),
            Self::Stream(stream) => Some(stream.as_fd()),
        }
    }

    /// The port to be told in STARTCAP; 0 where it is the daemon that has one.
    pub(super) fn local_port(&self) -> u16 {
        let address = match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Listening(listener) => listener.local_addr(),
            Self::None | Self::Stream(_) => return 0,
        };
        address.map_or(0, |address| address.port())
    }
}

/// An IPv4 address in IPv6 clothes becomes IPv4; any other stays whole, since without its scope
/// (the interface) a link-local address leads nowhere.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

/// The same host at another port.
pub(super) fn at_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// `local` with a port of the kernel's choice.
fn ephemeral(local: SocketAddr) -> SocketAddr {
    at_port(canonical(local), 0)
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    socket.set_cloexec(true)?;
    Ok(socket)
}

/// The kernel ends a connection whose peer says nothing to four probes (25 s), or leaves what we
/// send unacknowledged for 20 s: a machine that is gone without FIN does not hold us for ever.
pub(super) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(20)))
}

/// Waits for taps.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    Ok(socket.into())
}

/// Begins to connect; the socket becomes writable when that has ended one way or the other.
pub(super) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => {
            let stream = socket.into();
            notice_silence(&stream)?;
            Ok(stream)
        }
    }
}

/// A socket for datagrams, at the address where the tap has reached us.
pub(super) fn udp(local: SocketAddr) -> io::Result<UdpSocket> {
    let address = ephemeral(local);
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    // Beyond net.core.rmem_max needs CAP_NET_ADMIN; without it the kernel gives what it may.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Waits for the tap's data connection.
pub(super) fn listen_for_data(local: SocketAddr) -> io::Result<TcpListener> {
    let address = ephemeral(local);
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.bind(&address.into())?;
    socket.listen(4)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_peer_keeps_its_interface_at_every_port() {
        let peer: SocketAddr = "[fe80::1%7]:2002".parse().unwrap();
        assert_eq!(canonical(peer), peer);
        assert_eq!(at_port(canonical(peer), 99), "[fe80::1%7]:99".parse().unwrap());
        assert_eq!(ephemeral(peer), "[fe80::1%7]:0".parse().unwrap());
        let mapped = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:5".parse().unwrap());
    }

    #[test]
    fn connections_are_probed_so_that_a_half_open_peer_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(listener.local_addr().unwrap()).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(20)));
    }
}
