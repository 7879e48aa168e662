//! Whose AUTH is good, and which hosts have guessed too often.
//!
//! ```text
//! AUTH --Access: null? account?--> good | wrong --Guesses: this host again?--> answered late, or never
//! ```
//!
//! A wrong user and a wrong password cost the same work and get the same answer. Passwords go in
//! clear text by the protocol's nature: they keep strangers out, not listeners.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use subtle::{Choice, ConstantTimeEq};

use crate::rpcap::Auth;

use super::connection::Mode;

/// Longest user and password, bytes.
const SECRET_BYTES: usize = 256;
/// Wrong tries of a host, not yet forgotten, from which on it is not served.
const MAX_GUESSES: u32 = 10;
/// Hosts that are remembered; the one that was seen longest ago makes room.
const MAX_HOSTS: usize = 1024;

/// Who may come without credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NullAuth {
    /// The configured sensors, as long as there is no password; never who connects to the tap.
    #[default]
    Sensors,
    /// Everybody.
    Everybody,
    /// Nobody.
    Nobody,
}

/// What AUTH is checked against.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// See [`NullAuth`].
    pub null: NullAuth,
    /// See [`Passwords`].
    pub passwords: Passwords,
}

impl Access {
    /// True if these credentials are good for a peer of this mode.
    pub(super) fn accepts(&self, credentials: &Auth, mode: Mode) -> bool {
        match credentials {
            Auth::Null => match self.null {
                NullAuth::Sensors => mode == Mode::Active && self.passwords.is_empty(),
                NullAuth::Everybody => true,
                NullAuth::Nobody => false,
            },
            Auth::Password { user, password } => self.passwords.accept(user, password),
            Auth::Other(_) => false,
        }
    }
}

/// Accounts that may use the tap.
#[derive(Clone, Default)]
pub struct Passwords(Vec<Account>);

#[derive(Clone)]
struct Account {
    /// `None` for any.
    user: Option<Secret>,
    password: Secret,
}

impl Passwords {
    /// Reads lines of `user:password`; a line without a colon, or with the user `*`, is a password
    /// for any user. Empty lines and those that start with `#` do not count.
    ///
    /// # Errors
    ///
    /// The number of the line that cannot be used, and why; never the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut accounts = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (user, password) = match line.split_once(':') {
                Some(("*", password)) => (None, password),
                Some((user, password)) => (Some(user), password),
                None => (None, line),
            };
            accounts.add(user, password).map_err(|why| format!("line {number}: {why}"))?;
        }
        Ok(accounts)
    }

    /// Adds an account; `None` is any user.
    ///
    /// # Errors
    ///
    /// An empty or overlong user or password.
    pub fn add(&mut self, user: Option<&str>, password: &str) -> Result<(), String> {
        for (what, text) in [("user", user), ("password", Some(password))] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.len() > SECRET_BYTES {
                return Err(format!(
                    "the {what} has {} bytes, not 1 to {SECRET_BYTES}",
                    text.len()
                ));
            }
        }
        let user = user.map(|user| Secret::new(user.as_bytes()));
        self.0.push(Account { user, password: Secret::new(password.as_bytes()) });
        Ok(())
    }

    /// True if there is no account.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks at every account, whatever the others say, so that the time does not tell which
    /// user there is.
    fn accept(&self, user: &[u8], password: &[u8]) -> bool {
        let (user, password) = (Secret::new(user), Secret::new(password));
        let is_good = |account: &Account| {
            let is_user = account.user.as_ref().map_or(Choice::from(1), |own| own.is(&user));
            is_user & account.password.is(&password)
        };
        self.0.iter().map(is_good).fold(Choice::from(0), |any, one| any | one).into()
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} accounts", self.0.len())
    }
}

/// Bytes whose comparison takes the same time whatever they are.
#[derive(Clone)]
struct Secret {
    bytes: [u8; SECRET_BYTES],
    len: u64,
}

impl Secret {
    /// What is longer than any account's is cut, and its length says that it is none.
    fn new(text: &[u8]) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        let kept = &text[..text.len().min(SECRET_BYTES)];
        bytes[..kept.len()].copy_from_slice(kept);
        Self { bytes, len: text.len() as u64 }
    }

    fn is(&self, other: &Self) -> Choice {
        self.bytes.ct_eq(&other.bytes) & self.len.ct_eq(&other.len)
    }
}

/// Wrong tries by host, over all its connections.
pub(super) struct Guesses {
    hosts: HashMap<IpAddr, Guess>,
    /// How long until one wrong try is forgotten.
    forget: Duration,
}

struct Guess {
    /// As of `at`.
    count: u32,
    at: Instant,
}

impl Guess {
    /// Wrong tries that are not forgotten yet.
    fn left(&self, now: Instant, forget: Duration) -> u32 {
        let nanos = forget.as_nanos().max(1);
        let forgotten = now.saturating_duration_since(self.at).as_nanos() / nanos;
        self.count.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

impl Guesses {
    pub(super) fn new(forget: Duration) -> Self {
        Self { hosts: HashMap::new(), forget }
    }

    /// True if the host has guessed so often that it is not served now.
    pub(super) fn are_too_many(&self, host: IpAddr, now: Instant) -> bool {
        let guess = self.hosts.get(&network(host));
        guess.is_some_and(|guess| guess.left(now, self.forget) >= MAX_GUESSES)
    }

    /// A wrong try.
    pub(super) fn add(&mut self, host: IpAddr, now: Instant) {
        let (host, forget) = (network(host), self.forget);
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(&host) {
            self.hosts.retain(|_, guess| guess.left(now, forget) > 0);
            let oldest = self.hosts.iter().min_by_key(|(_, guess)| guess.at).map(|(host, _)| *host);
            if let Some(oldest) = oldest.filter(|_| self.hosts.len() >= MAX_HOSTS) {
                self.hosts.remove(&oldest);
            }
        }
        let guess = self.hosts.entry(host).or_insert(Guess { count: 0, at: now });
        *guess = Guess { count: guess.left(now, forget).saturating_add(1), at: now };
    }

    /// A right try: what went before was a mistake.
    pub(super) fn forgive(&mut self, host: IpAddr) {
        self.hosts.remove(&network(host));
    }
}

/// Whom to hold an address against: with IPv6, everybody has 2^64 of them.
fn network(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(_) => host,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_password(user: &str, password: &str) -> Auth {
        Auth::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn null_is_for_configured_sensors_until_there_is_a_password_or_a_rule() {
        let set = Passwords::parse("secret").unwrap();
        for (null, passwords, active, passive) in [
            (NullAuth::Sensors, Passwords::default(), true, false),
            (NullAuth::Sensors, set.clone(), false, false),
            (NullAuth::Everybody, set.clone(), true, true),
            (NullAuth::Nobody, Passwords::default(), false, false),
        ] {
            let access = Access { null, passwords };
            assert_eq!(access.accepts(&Auth::Null, Mode::Active), active, "{access:?}");
            assert_eq!(access.accepts(&Auth::Null, Mode::Passive), passive, "{access:?}");
        }
    }

    #[test]
    fn accounts_are_lines_and_comments_are_none() {
        let text = "# people\nann:one\r\nbob:with:colon\n\n*:any:way\nplain word\n";
        let access = Access { passwords: Passwords::parse(text).unwrap(), ..Access::default() };
        for (user, password, is_good) in [
            ("ann", "one", true),
            ("bob", "with:colon", true),
            ("whoever", "any:way", true),
            ("", "plain word", true),
            ("ann", "one\r", false),
            ("ann", "on", false),
            ("ann", "one\0", false),
            ("ann", "", false),
            ("ann", "with:colon", false),
            ("# people", "", false),
            ("ann", &"x".repeat(65_535), false),
        ] {
            let auth = with_password(user, password);
            assert_eq!(access.accepts(&auth, Mode::Passive), is_good, "{user} {password}");
            assert_eq!(access.accepts(&auth, Mode::Active), is_good);
        }
        assert!(!format!("{access:?}").contains("one"), "never printed");
        assert!(!Access::default().accepts(&with_password("", ""), Mode::Passive));
    }

    #[test]
    fn an_account_that_cannot_be_used_is_named_by_its_line_only() {
        for (text, line) in [("ok\nann:", 2), (":secret", 1), (&*"s".repeat(257), 1)] {
            let error = Passwords::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}: the ")), "{error}");
            assert!(!error.contains("secret"));
        }
        let longest = "s".repeat(256);
        assert!(Passwords::parse(&longest).unwrap().accept(b"", longest.as_bytes()));
    }

    #[test]
    fn a_host_that_guesses_waits_until_its_tries_are_forgotten() {
        let (now, forget) = (Instant::now(), Duration::from_secs(30));
        let mut guesses = Guesses::new(forget);
        let host = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..10 {
            assert!(!guesses.are_too_many(host, now));
            guesses.add(host, now);
        }
        assert!(guesses.are_too_many(host, now));
        assert!(!guesses.are_too_many(IpAddr::from([10, 0, 0, 2]), now), "another host");
        assert!(!guesses.are_too_many(host, now + forget), "one is forgotten");
        guesses.add(host, now + forget);
        assert!(guesses.are_too_many(host, now + forget));
        assert!(!guesses.are_too_many(host, now + forget * 1000));
        guesses.forgive(host);
        assert!(!guesses.are_too_many(host, now + forget));
    }

    #[test]
    fn ipv6_neighbours_are_one_host() {
        let now = Instant::now();
        let mut guesses = Guesses::new(Duration::from_secs(30));
        for n in 0..10u16 {
            guesses.add(Ipv6Addr::new(0xfd00, 0, 0, 1, n, 0, 0, n).into(), now);
        }
        assert!(guesses.are_too_many("fd00:0:0:1::99".parse().unwrap(), now));
        assert!(!guesses.are_too_many("fd00:0:0:2::99".parse().unwrap(), now));
    }

    #[test]
    fn the_table_of_hosts_does_not_grow() {
        let now = Instant::now();
        let mut guesses = Guesses::new(Duration::from_secs(30));
        let host = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n));
        for (n, ms) in (0..5000).zip(0..) {
            guesses.add(host(n), now + Duration::from_millis(ms));
        }
        assert_eq!(guesses.hosts.len(), MAX_HOSTS);
        assert!(guesses.hosts.contains_key(&host(4999)) && !guesses.hosts.contains_key(&host(0)));
    }
}
