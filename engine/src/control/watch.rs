//! Looks for signs that a sensor which shares the packets with others is not there any more.
//!
//! ```text
//! every 100 ms:  TCP_INFO of the control socket --silent 1.15 s, a probe unanswered--> suspect
//!                the data socket's refusals ------repeated----------------------------> suspect
//!                heard again / time to try again -------------------------------------> trust
//! ```
//!
//! Suspicion moves the sensor's flows and nothing else: the conversation goes on until the
//! connection itself ends. The bound: the kernel probes a connection 1 s after it last heard from
//! the peer, an answer may take 150 ms, and we look every 100 ms. So the flows of a host that falls
//! silent move at most 1.25 s later. A process that hangs while its host's kernel answers is not
//! noticed: nothing in the protocol would tell it from one that has nothing to say.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::session::{Session, Sessions};
use crate::sys::tcp::{PeerInfo, peer_info};

/// How often it is looked.
const PERIOD: Duration = Duration::from_millis(100);
/// A second until the kernel probes, and some time for the answer.
const SILENCE: Duration = Duration::from_millis(1150);
/// Looks that find new refusals, before they count as a sign.
const REFUSALS: u32 = 3;
/// Refusals longer ago than this are forgotten.
const REFUSAL_MEMORY: Duration = Duration::from_secs(10);
/// A sensor that refuses again and again is tried again after so many settle times, at most.
const MAX_PAUSE: u32 = 16;

/// See the module; one for each connection.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The session that the rest is about.
    session: u64,
    next: Option<Instant>,
    is_silent: bool,
    refusals: Refusals,
}

/// What is known of a data socket that nobody listens to.
#[derive(Debug, Default)]
struct Refusals {
    /// Of the session's count, what was seen.
    seen: u64,
    /// Looks that found new ones.
    looks: u32,
    last: Option<Instant>,
    /// When it is to be tried again; set while the port counts as closed.
    retry: Option<Instant>,
    /// How often it was found closed.
    rounds: u32,
}

impl Watch {
    /// Looks if it is time, tells `sessions` what there is to tell, and returns when to look again.
    pub(super) fn look(
        &mut self,
        now: Instant,
        socket: &TcpStream,
        session: &Session,
        sessions: &Sessions,
    ) -> Instant {
        if self.session != session.id {
            *self = Self { session: session.id, ..Self::default() };
        }
        if let Some(next) = self.next.filter(|next| *next > now) {
            return next;
        }
        let next = now + PERIOD;
        self.next = Some(next);
        let settle = session.spec.share.as_ref().map(|share| share.settle).unwrap_or_default();
        let was_suspect = self.is_suspect();
        // A socket that the kernel says nothing about is about to end by itself.
        if let Ok(info) = peer_info(socket) {
            self.is_silent = is_silent(info);
        }
        self.refusals.look(now, session.stats.refused.load(Ordering::Relaxed), settle);
        match (was_suspect, self.is_suspect()) {
            (false, true) if self.is_silent => sessions.suspect(session.id, "the host is silent"),
            (false, true) => sessions.suspect(session.id, "the data port is closed"),
            (true, false) => sessions.trust(session.id),
            _ => {}
        }
        next
    }

    fn is_suspect(&self) -> bool {
        self.is_silent || self.refusals.retry.is_some()
    }
}

fn is_silent(info: PeerInfo) -> bool {
    info.unanswered > 0 && info.silent_for >= SILENCE
}

impl Refusals {
    fn look(&mut self, now: Instant, count: u64, settle: Duration) {
        if self.retry.is_some_and(|retry| retry <= now) {
            *self = Self { seen: count, rounds: self.rounds, ..Self::default() };
        }
        if self.last.is_some_and(|last| now >= last + REFUSAL_MEMORY) {
            (self.looks, self.last) = (0, None);
        }
        if count == self.seen {
            return;
        }
        self.seen = count;
        self.looks += 1;
        self.last = Some(now);
        if self.looks >= REFUSALS && self.retry.is_none() {
            // Trusted again it still has to settle; the first time, that is pause enough.
            let pauses = (1u32 << self.rounds.min(MAX_PAUSE.ilog2())) - 1;
            self.rounds += 1;
            self.retry = Some(now + settle * pauses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_needs_a_probe_that_was_not_answered() {
        let info = |ms, unanswered| PeerInfo { silent_for: Duration::from_millis(ms), unanswered };
        for (ms, unanswered, expected) in
            [(0, 0, false), (5000, 0, false), (1149, 1, false), (1150, 1, true), (9000, 9, true)]
        {
            assert_eq!(is_silent(info(ms, unanswered)), expected, "{ms} ms, {unanswered}");
        }
    }

    #[test]
    fn one_stale_refusal_is_no_sign_and_repeated_ones_pause_longer_each_time() {
        let (start, settle) = (Instant::now(), Duration::from_secs(5));
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        for second in 0..100 {
            // One more each eleven seconds.
            refusals.look(at(second), second / 11, settle);
            assert_eq!(refusals.retry, None);
        }
        let mut refusals = Refusals::default();
        let mut count = 0;
        let mut now = at(0);
        for pause in [0, 5, 15, 35, 75, 75] {
            for _ in 0..REFUSALS {
                assert_eq!(refusals.retry, None);
                count += 7;
                refusals.look(now, count, settle);
            }
            assert_eq!(refusals.retry, Some(now + Duration::from_secs(pause)));
            now += Duration::from_secs(pause);
            refusals.look(now, count, settle);
            assert_eq!(refusals.retry, None, "time to try again");
        }
    }
}
