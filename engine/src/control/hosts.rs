//! Which hosts may connect to the tap at all.
//!
//! ```text
//! peer's address --> prefixes --> names' addresses, if looked up lately --> allowed | refused
//!                                  `-- else: a thread looks all names up, and the peer waits
//! ```

use std::collections::HashSet;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// Hosts that may connect; an empty list lets everybody, who then has to authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    /// Addresses and prefixes.
    pub nets: Vec<IpNet>,
    /// Names, looked up when somebody connects whom nothing else allows.
    pub names: Vec<String>,
}

/// What is to become of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Allowed,
    Refused,
    /// Names are being looked up: ask again when the event loop is woken.
    Unknown,
}

/// See the module.
pub(super) struct HostList {
    allowed: AllowedHosts,
    /// Addresses of the names, and when they came.
    named: HashSet<IpAddr>,
    asked: Option<Instant>,
    is_asking: bool,
    /// How long an answer is good for.
    fresh: Duration,
    waker: Arc<mio::Waker>,
    sender: mpsc::Sender<HashSet<IpAddr>>,
    answers: mpsc::Receiver<HashSet<IpAddr>>,
}

impl HostList {
    pub(super) fn new(allowed: AllowedHosts, fresh: Duration, waker: Arc<mio::Waker>) -> Self {
        let (sender, answers) = mpsc::channel();
        let (named, asked) = (HashSet::new(), None);
        Self { allowed, named, asked, is_asking: false, fresh, waker, sender, answers }
    }

    /// Another list from now on. A look-up for the old one goes into the void; who waits for it
    /// asks again.
    pub(super) fn replace(&mut self, allowed: AllowedHosts) {
        if self.allowed != allowed {
            *self = Self::new(allowed, self.fresh, Arc::clone(&self.waker));
        }
    }

    /// Decides about a peer, as of now.
    pub(super) fn check(&mut self, host: IpAddr, now: Instant) -> Admission {
        let AllowedHosts { nets, names } = &self.allowed;
        if (nets.is_empty() && names.is_empty()) || nets.iter().any(|net| net.contains(&host)) {
            return Admission::Allowed;
        }
        if names.is_empty() {
            return Admission::Refused;
        }
        if let Some(named) = self.answers.try_iter().last() {
            (self.named, self.is_asking, self.asked) = (named, false, Some(now));
        }
        if self.is_asking {
            return Admission::Unknown;
        }
        if self.asked.is_some_and(|asked| now < asked + self.fresh) {
            let is_named = self.named.contains(&host);
            return if is_named { Admission::Allowed } else { Admission::Refused };
        }
        match self.ask() {
            Ok(()) => {
                self.is_asking = true;
                Admission::Unknown
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look up the names of --allow-hosts");
                self.named.clear();
                self.asked = Some(now);
                Admission::Refused
            }
        }
    }

    /// Looks all names up on a thread; there is never more than one.
    fn ask(&self) -> std::io::Result<()> {
        let names = self.allowed.names.clone();
        let (sender, waker) = (self.sender.clone(), Arc::clone(&self.waker));
        thread::Builder::new().name("resolve-hosts".to_owned()).spawn(move || {
            let mut addresses = HashSet::new();
            for name in names {
                match (&*name, 0).to_socket_addrs() {
                    Ok(found) => addresses.extend(found.map(|found| found.ip().to_canonical())),
                    Err(error) => tracing::warn!(name, %error, "a name of --allow-hosts"),
                }
            }
            // When the event loop is gone, nobody needs the answer.
            if sender.send(addresses).is_ok() {
                let _ignored = waker.wake();
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(nets: &[&str], names: &[&str], fresh: Duration) -> (HostList, mio::Poll) {
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let allowed = AllowedHosts {
            nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        (HostList::new(allowed, fresh, waker), poll)
    }

    fn decide(list: &mut HostList, poll: &mut mio::Poll, host: &str) -> Admission {
        let host = host.parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match list.check(host, Instant::now()) {
                Admission::Unknown => {
                    assert!(Instant::now() < deadline, "the look-up never ended");
                    let mut events = mio::Events::with_capacity(4);
                    poll.poll(&mut events, Some(Duration::from_secs(1))).unwrap();
                }
                decided => return decided,
            }
        }
    }

    #[test]
    fn an_empty_list_lets_everybody() {
        let (mut list, mut poll) = list(&[], &[], Duration::ZERO);
        assert_eq!(decide(&mut list, &mut poll, "192.0.2.1"), Admission::Allowed);
    }

    #[test]
    fn prefixes_and_names_let_their_hosts_and_nobody_else() {
        let nets = ["10.0.0.0/8", "fd00::/64", "192.0.2.7/32"];
        let fresh = Duration::from_secs(3600);
        let (mut list, mut poll) = list(&nets, &["localhost", "no.such.name.invalid"], fresh);
        for (host, expected) in [
            ("10.9.8.7", Admission::Allowed),
            ("fd00::1", Admission::Allowed),
            ("192.0.2.7", Admission::Allowed),
            ("127.0.0.1", Admission::Allowed),
            ("192.0.2.8", Admission::Refused),
            ("fd01::1", Admission::Refused),
        ] {
            assert_eq!(decide(&mut list, &mut poll, host), expected, "{host}");
        }
    }
}
