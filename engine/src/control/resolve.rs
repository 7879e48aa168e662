//! Looks up sensors' names without holding up anybody else's control connection.
//!
//! ```text
//! numeric address --> addresses at once
//! name --> a thread of its own (getaddrinfo blocks) --> channel, and a wake of the event loop
//! ```
//!
//! A sensor asks again only after its answer came, so there are never more threads than sensors.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;

use super::config::SensorTarget;

/// What became of a look-up.
pub(super) type Addresses = io::Result<Vec<SocketAddr>>;

/// Starts look-ups; their answers come out of the channel, with the look-up's number.
pub(super) struct Resolver {
    pub(super) answers: mpsc::Sender<(u64, Addresses)>,
    pub(super) waker: Arc<mio::Waker>,
}

impl Resolver {
    /// The addresses if `target` is numeric; else `None`, and they come later.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn look_up(
        &self,
        number: u64,
        target: &SensorTarget,
    ) -> io::Result<Option<Vec<SocketAddr>>> {
        let bare = target.host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Some(vec![SocketAddr::new(address, target.port)]));
        }
        let name = (bare.to_owned(), target.port);
        let (answers, waker) = (self.answers.clone(), Arc::clone(&self.waker));
        thread::Builder::new().name(format!("resolve-{number}")).spawn(move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect);
            // When the event loop is gone, nobody needs the answer.
            if answers.send((number, addresses)).is_ok() {
                let _ignored = waker.wake();
            }
        })?;
        Ok(None)
    }
}
