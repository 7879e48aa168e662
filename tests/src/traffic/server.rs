//! The other end of the traffic: one server per kind, on threads of ours, stopped on drop.
//!
//! A socket belongs to the namespace that it was made in, whichever thread uses it; so servers
//! bind inside the host and then run like any thread.

use super::{bulk, dns, http, socket};
use crate::lab::{Host, LabError};
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a server may sleep before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// What to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// Requests of [`super::Http`].
    Http,
    /// Queries of [`super::Dns`].
    Dns,
    /// The sink for [`super::Bulk`].
    Bulk,
    /// UDP that nobody answers, for [`super::Datagrams`].
    Discard,
}

/// A running server. Dropping it ends its threads and connections.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    // Relaxed throughout: a flag that may be seen late, and a count read after the threads ended.
    stop: AtomicBool,
    requests: AtomicU64,
}

impl Shared {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

impl Server {
    /// Serves on every address of the host.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn start(host: &Host, serve: Serve, port: u16) -> Result<Self, LabError> {
        let addresses: Vec<SocketAddr> =
            host.addresses().into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        Self::start_at(host, serve, &addresses)
    }

    /// Serves on these addresses of the host.
    ///
    /// # Errors
    ///
    /// When one is taken or not the host's.
    pub fn start_at(host: &Host, serve: Serve, addresses: &[SocketAddr]) -> Result<Self, LabError> {
        host.enter(|| Self::listen(serve, addresses))?.map_err(|error| {
            LabError::call(format!("serving {serve:?} on {} at {addresses:?}", host.name()), error)
        })
    }

    /// Serves on these addresses, in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// When one is taken or not ours.
    pub fn listen(serve: Serve, addresses: &[SocketAddr]) -> io::Result<Self> {
        let mut server = Self { shared: Arc::default(), threads: Vec::new() };
        for address in addresses {
            let shared = Arc::clone(&server.shared);
            let thread = match serve {
                Serve::Http | Serve::Bulk => {
                    let listener = socket::listen(*address)?;
                    thread::spawn(move || accept(&listener, serve, &shared))
                }
                Serve::Dns | Serve::Discard => {
                    let socket = UdpSocket::bind(address)?;
                    socket.set_read_timeout(Some(LOOK))?;
                    thread::spawn(move || answer(&socket, serve, &shared))
                }
            };
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// Requests, queries, connections (bulk) or datagrams served by now.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, serve: Serve, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while !shared.stopped() {
        match listener.accept() {
            Ok((stream, _peer)) => {
                let shared = Arc::clone(shared);
                connections.push(thread::spawn(move || {
                    let result = prepare(&stream).and_then(|()| match serve {
                        Serve::Bulk => bulk::serve(stream, &shared),
                        _ => http::serve(stream, &shared),
                    });
                    report(serve, result, &shared);
                }));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(LOOK / 10),
            Err(error) => report(serve, Err(error), shared),
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(socket::LIMIT))
}

fn answer(socket: &UdpSocket, serve: Serve, shared: &Shared) {
    let mut buffer = vec![0; 65536];
    while !shared.stopped() {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                shared.count_request();
                if serve == Serve::Dns {
                    let result = dns::answer(&buffer[..length])
                        .and_then(|reply| socket.send_to(&reply, peer).map(drop));
                    report(serve, result, shared);
                }
            }
            Err(error) if is_timeout(&error) => {}
            Err(error) => report(serve, Err(error), shared),
        }
    }
}

/// A server that fails is seen by its client too; this says why. Not while it is being stopped.
fn report(serve: Serve, result: io::Result<()>, shared: &Shared) {
    if let Err(error) = result
        && !shared.stopped()
    {
        eprintln!("{serve:?} server: {error}");
    }
}

/// Reads once, waiting as long as the server is wanted. 0 is the end, also when stopped.
pub(crate) fn read(
    stream: &mut impl io::Read,
    buffer: &mut [u8],
    shared: &Shared,
) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if is_timeout(&error) && !shared.stopped() => {}
            Err(error) if is_timeout(&error) => return Ok(0),
            other => return other,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
