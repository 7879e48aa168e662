//! Daemons that the sensor goes to: `--connect`.
//!
//! ```text
//! HOST[:PORT] --resolve--> Target --due--> address --(a conversation)--> lost --> due again
//!                                                                          `----> given up
//! ```
//!
//! A daemon from which nothing was captured yet is waited for as long as one needs to start; after
//! that it is an error, and so is a refusal, unless `--reconnect` says otherwise. A daemon that has
//! been captured from is come back to for ever: it restarts, or the network fails for a while.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::context::Trouble;
use crate::rpcap::PASSIVE_PORT;

/// Pauses between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a daemon that refuses connections is taken for one that is about to start.
const PATIENCE: Duration = Duration::from_secs(5);

/// A daemon that we connect to.
#[derive(Debug)]
pub(super) struct Target {
    /// As it was given.
    pub(super) label: String,
    addresses: Vec<SocketAddr>,
    attempts: usize,
    backoff: Duration,
    /// `None` while there is a conversation.
    next_attempt: Option<Instant>,
    has_captured: bool,
    /// Until when the first capture has to come about; `None` with `--reconnect`.
    patience: Option<Instant>,
    given_up: Option<String>,
}

impl Target {
    /// A daemon at the first of these addresses that answers, to be connected to at once.
    pub(super) fn new(label: String, addresses: Vec<SocketAddr>, now: Instant) -> Self {
        Self {
            label,
            addresses,
            attempts: 0,
            backoff: BACKOFF.0,
            next_attempt: Some(now),
            has_captured: false,
            patience: Some(now + PATIENCE),
            given_up: None,
        }
    }

    /// `--connect`'s text: HOST, HOST:PORT, an address, \[V6]:PORT; link-local ones with %INTERFACE.
    pub(super) fn resolve(text: &str, now: Instant) -> io::Result<Self> {
        let in_brackets = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let is_address = |text: &str| text.contains('%') || text.parse::<IpAddr>().is_ok();
        // What is split here goes as a pair: only the resolver knows an interface's number.
        let addresses: Vec<SocketAddr> = match in_brackets {
            Some((host, "")) => (host, PASSIVE_PORT).to_socket_addrs()?.collect(),
            Some((host, port)) => (host, port_behind(port)?).to_socket_addrs()?.collect(),
            None if is_address(text) => (text, PASSIVE_PORT).to_socket_addrs()?.collect(),
            None if text.contains(':') => text.to_socket_addrs()?.collect(),
            None => (text, PASSIVE_PORT).to_socket_addrs()?.collect(),
        };
        match addresses.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(Self::new(text.to_owned(), addresses, now)),
        }
    }

    /// Never gives up.
    pub(super) fn insist(&mut self) {
        self.patience = None;
    }

    /// When to connect, if that is so.
    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.next_attempt
    }

    /// The address to connect to now; [`lost`](Self::lost) follows sooner or later.
    pub(super) fn attempt(&mut self) -> SocketAddr {
        let address = self.addresses[self.attempts % self.addresses.len()];
        self.attempts += 1;
        self.next_attempt = None;
        address
    }

    /// The conversation is over, or there was none.
    pub(super) fn lost(&mut self, now: Instant, has_captured: bool, trouble: Option<&Trouble>) {
        if has_captured {
            self.has_captured = true;
            self.backoff = BACKOFF.0;
        }
        let may_come = |until: Instant| {
            now < until && trouble.is_none_or(|trouble| trouble.label == "connect")
        };
        if self.has_captured || self.patience.is_none_or(may_come) {
            self.next_attempt = Some(now + self.backoff);
            self.backoff = (self.backoff * 2).min(BACKOFF.1);
        } else {
            let why = trouble.map_or("is gone", |trouble| &trouble.text);
            self.given_up = Some(format!("{} {why}", self.label));
        }
    }

    /// Why it is not tried any more, if that is so.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.as_deref()
    }
}

/// `:PORT`.
fn port_behind(text: &str) -> io::Result<u16> {
    let port = text.strip_prefix(':').and_then(|port| port.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no :PORT follows the address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        let mut target = Target::resolve(text, Instant::now()).unwrap();
        target.attempt()
    }

    #[test]
    fn the_port_of_passive_daemons_need_not_be_said() {
        for (text, expected) in [
            ("127.0.0.1", "127.0.0.1:2002"),
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("::1", "[::1]:2002"),
            ("[::1]", "[::1]:2002"),
            ("[::1]:7", "[::1]:7"),
            ("fe80::1%lo", "[fe80::1%1]:2002"),
            ("[fe80::1%lo]", "[fe80::1%1]:2002"),
            ("[fe80::1%lo]:7", "[fe80::1%1]:7"),
            ("[fe80::1%1]:7", "[fe80::1%1]:7"),
        ] {
            assert_eq!(address(text), expected.parse().unwrap(), "{text}");
        }
        assert_eq!(address("localhost").port(), 2_002);
        for bad in ["", "127.0.0.1:x", "127.0.0.1:99999", "[::1", "[::1]7", "[::1]:x", ":7:"] {
            Target::resolve(bad, Instant::now()).unwrap_err();
        }
    }

    #[test]
    fn a_daemon_that_may_be_starting_is_waited_for_and_then_given_up() {
        let now = Instant::now();
        let mut target = Target::resolve("127.0.0.1", now).unwrap();
        let refused = Trouble::new("connect", "cannot be connected to: refused");
        target.attempt();
        target.lost(now, false, Some(&refused));
        assert_eq!((target.next_attempt(), target.given_up()), (Some(now + BACKOFF.0), None));
        target.attempt();
        target.lost(now + PATIENCE, false, Some(&refused));
        assert_eq!(target.next_attempt(), None);
        assert_eq!(target.given_up(), Some("127.0.0.1 cannot be connected to: refused"));
    }

    #[test]
    fn a_refusal_is_final_and_a_lost_capture_is_not() {
        let now = Instant::now();
        let refused = Trouble::new("refused", "refused AUTH");
        let mut target = Target::resolve("127.0.0.1", now).unwrap();
        target.lost(now, false, Some(&refused));
        assert!(target.given_up().is_some());
        let mut target = Target::resolve("127.0.0.1", now).unwrap();
        let later = now + 10 * PATIENCE;
        target.lost(later, true, Some(&Trouble::new("closed", "closed the connection")));
        target.lost(later, false, Some(&refused));
        assert_eq!(target.given_up(), None);
    }

    #[test]
    fn who_insists_is_never_given_up_and_pauses_grow() {
        let now = Instant::now();
        let mut target = Target::resolve("127.0.0.1", now).unwrap();
        target.insist();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            target.lost(now, false, Some(&Trouble::new("refused", "refused AUTH")));
            pauses.push((target.next_attempt().unwrap() - now).as_millis());
        }
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
    }
}
