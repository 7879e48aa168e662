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
    /// The addresses if `target` is numeric; else `None`, and they come later: only the IPv4 ones
    /// where `is_ipv4_only`.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn look_up(
        &self,
        number: u64,
        target: &SensorTarget,
        is_ipv4_only: bool,
    ) -> io::Result<Option<Vec<SocketAddr>>> {
        let bare = target.host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Some(vec![SocketAddr::new(address, target.port)]));
        }
        let name = (bare.to_owned(), target.port);
        let (answers, waker) = (self.answers.clone(), Arc::clone(&self.waker));
        thread::Builder::new().name(format!("resolve-{number}")).spawn(move || {
            let addresses =
                name.to_socket_addrs().and_then(|found| usable(found.collect(), is_ipv4_only));
            // When the event loop is gone, nobody needs the answer.
            if answers.send((number, addresses)).is_ok() {
                let _ignored = waker.wake();
            }
        })?;
        Ok(None)
    }
}

/// Those that may be connected to.
fn usable(mut addresses: Vec<SocketAddr>, is_ipv4_only: bool) -> Addresses {
    if is_ipv4_only {
        addresses.retain(SocketAddr::is_ipv4);
        if addresses.is_empty() {
            return Err(io::Error::other("it has no IPv4 address"));
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_names_addresses_only_ipv4_ones_are_used_where_only_those_may_be() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = addresses(&["[fd00::1]:3", "10.0.0.1:3", "10.0.0.2:3"]);
        assert_eq!(usable(both.clone(), false).unwrap(), both);
        assert_eq!(usable(both, true).unwrap(), addresses(&["10.0.0.1:3", "10.0.0.2:3"]));
        let error = usable(addresses(&["[fd00::1]:3"]), true).unwrap_err();
        assert_eq!(error.to_string(), "it has no IPv4 address");
    }

    #[test]
    fn an_ipv6_name_is_not_connected_to_where_only_ipv4_may_be() {
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let (answers, answered) = mpsc::channel();
        let resolver = Resolver { answers, waker };
        // Not numeric to us, because of its scope; the system's resolver needs no server for it.
        let target = SensorTarget { host: "fe80::1%lo".to_owned(), port: 3, interface: None };
        for (is_ipv4_only, is_found) in [(false, true), (true, false)] {
            assert!(resolver.look_up(5, &target, is_ipv4_only).unwrap().is_none());
            let (sensor, addresses) = answered.recv().unwrap();
            assert_eq!((sensor, addresses.is_ok()), (5, is_found), "{addresses:?}");
        }
    }
}
