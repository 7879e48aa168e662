//! What one sensor got, over all its sessions.
//!
//! ```text
//! control --begin(id, counters)--> live --\
//!         --end(id)----> ended sums -------+--counts()--> exporter
//! ```
//!
//! A session's counters move from live to ended under one lock, so the sums never go backwards.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{SessionDrop, SessionStats, reasons};

reasons! {
    /// How far the conversation with a sensor has come.
    SensorState {
        /// No control connection.
        Disconnected = "disconnected",
        /// A control connection, but no capture running.
        Connected = "connected",
        /// A capture runs.
        Capturing = "capturing",
    }
}

reasons! {
    /// How a sensor's part in a group of sensors changes.
    Move {
        /// It takes part for the first time.
        Joined = "joined",
        /// Its flows go to the others.
        Left = "left",
        /// It has its flows again.
        Returned = "returned",
    }
}

/// [`SessionStats`] at one moment, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Frames that workers offered.
    pub offered: u64,
    /// Frames that the kernel took to the last byte.
    pub sent: u64,
    /// Captured bytes of those.
    pub sent_bytes: u64,
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Payload bytes of those.
    pub datagram_bytes: u64,
    /// Times that the path was found to take smaller datagrams.
    pub size_lowered: u64,
    /// Datagrams that became IP fragments.
    pub datagrams_over_mtu: u64,
    /// Frames cut to fit into a datagram.
    pub frames_cut: u64,
    /// Of the datagrams, those that the kernel or the NIC cut out of a larger one.
    pub segmented: u64,
    /// Times that the kernel refused to.
    pub segmenting_refused: u64,
    /// The smallest of the open sessions' largest datagrams, UDP payload bytes; 0 if there is none.
    pub datagram_size: u64,
    /// Frames not sent, by [`SessionDrop`] as index.
    pub dropped: [u64; SessionDrop::ALL.len()],
}

impl From<&SessionStats> for SessionCounts {
    fn from(stats: &SessionStats) -> Self {
        let SessionStats {
            offered,
            sent,
            sent_bytes,
            datagrams,
            datagram_bytes,
            size_lowered,
            datagrams_over_mtu,
            frames_cut,
            segmented,
            segmenting_refused,
            datagram_size,
            dropped,
            ..
        } = stats;
        // Relaxed: each is right by itself, and a batch late at most.
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            offered: get(offered),
            sent: get(sent),
            sent_bytes: get(sent_bytes),
            datagrams: get(datagrams),
            datagram_bytes: get(datagram_bytes),
            size_lowered: get(size_lowered),
            datagrams_over_mtu: get(datagrams_over_mtu),
            frames_cut: get(frames_cut),
            segmented: get(segmented),
            segmenting_refused: get(segmenting_refused),
            datagram_size: get(datagram_size),
            dropped: dropped.each_ref().map(get),
        }
    }
}

impl SessionCounts {
    /// Adds another session's counts.
    pub fn add(&mut self, other: &Self) {
        let Self {
            offered,
            sent,
            sent_bytes,
            datagrams,
            datagram_bytes,
            size_lowered,
            datagrams_over_mtu,
            frames_cut,
            segmented,
            segmenting_refused,
            datagram_size,
            dropped,
        } = other;
        self.offered += offered;
        self.sent += sent;
        self.sent_bytes += sent_bytes;
        self.datagrams += datagrams;
        self.datagram_bytes += datagram_bytes;
        self.size_lowered += size_lowered;
        self.datagrams_over_mtu += datagrams_over_mtu;
        self.frames_cut += frames_cut;
        self.segmented += segmented;
        self.segmenting_refused += segmenting_refused;
        self.datagram_size = match (self.datagram_size, *datagram_size) {
            (0, one) | (one, 0) => one,
            (one, other) => one.min(other),
        };
        for (sum, count) in self.dropped.iter_mut().zip(dropped) {
            *sum += count;
        }
    }
}

type Counters = Box<dyn Fn() -> SessionCounts + Send>;

#[derive(Default)]
struct Sessions {
    live: Vec<(u64, Counters)>,
    ended: SessionCounts,
}

/// One sensor's state and counts.
pub struct SensorStats {
    label: [(&'static str, String); 1],
    state: AtomicU8,
    sessions: Mutex<Sessions>,
    /// By [`Move`] as index.
    moves: [AtomicU64; Move::ALL.len()],
    slots_moved: AtomicU64,
    slots: AtomicU64,
}

impl fmt::Debug for SensorStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sensor = f.debug_struct("SensorStats");
        sensor.field("label", &self.label()).field("state", &self.state());
        sensor.field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl SensorStats {
    /// A sensor that is not connected; `label` names it in metrics, `address:port` say.
    #[must_use]
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: [("sensor", label.into())],
            state: AtomicU8::new(0),
            sessions: Mutex::default(),
            moves: Default::default(),
            slots_moved: AtomicU64::new(0),
            slots: AtomicU64::new(0),
        }
    }

    /// The name in metrics.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label[0].1
    }

    pub(super) fn labels(&self) -> &[(&'static str, String); 1] {
        &self.label
    }

    /// The conversation's state.
    #[must_use]
    pub fn state(&self) -> SensorState {
        // Relaxed: a metric, nothing is read through it.
        SensorState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// Says where the conversation is.
    pub fn set_state(&self, state: SensorState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Its part in a group of sensors changed.
    pub fn count_move(&self, kind: Move) {
        self.moves[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often its part in a group of sensors changed so.
    #[must_use]
    pub fn moves(&self, kind: Move) -> u64 {
        self.moves[kind as usize].load(Ordering::Relaxed)
    }

    /// Slots of flows came to its sessions from other sessions.
    pub fn add_slots_moved(&self, count: u64) {
        self.slots_moved.fetch_add(count, Ordering::Relaxed);
    }

    /// Slots that ever came to its sessions from others.
    #[must_use]
    pub fn slots_moved(&self) -> u64 {
        self.slots_moved.load(Ordering::Relaxed)
    }

    /// Says how many slots its sessions own.
    pub fn set_slots(&self, count: u64) {
        self.slots.store(count, Ordering::Relaxed);
    }

    /// Slots that its sessions own; 0 if it shares with nobody.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.slots.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        // Only a caller's `counters` can panic under it, and that leaves the lists whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Session `id` counts from now on: `begin(session.id, move || (&session.stats).into())`.
    pub fn begin(&self, id: u64, counters: impl Fn() -> SessionCounts + Send + 'static) {
        self.lock().live.push((id, Box::new(counters)));
    }

    /// Takes over the last counts of session `id` and drops its closure. To be called when no
    /// worker counts for it any more: what is counted later is lost.
    pub fn end(&self, id: u64) {
        let mut sessions = self.lock();
        let Some(at) = sessions.live.iter().position(|(live, _)| *live == id) else { return };
        let (_, counters) = sessions.live.swap_remove(at);
        // A size is of now, not a sum.
        sessions.ended.add(&SessionCounts { datagram_size: 0, ..counters() });
    }

    /// Sessions that are open.
    #[must_use]
    pub fn open_sessions(&self) -> usize {
        self.lock().live.len()
    }

    /// Sums over all sessions, ended ones included. Never less than they were.
    #[must_use]
    pub fn counts(&self) -> SessionCounts {
        let sessions = self.lock();
        let mut sum = sessions.ended.clone();
        for (_, counters) in &sessions.live {
            sum.add(&counters());
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn count(stats: &SessionStats, by: u64) {
        let SessionStats { offered, sent, sent_bytes, datagrams, datagram_bytes, dropped, .. } =
            stats;
        let SessionStats { size_lowered, datagrams_over_mtu, frames_cut, datagram_size, .. } =
            stats;
        datagram_size.store(1000 + by, Ordering::Relaxed);
        let fields = [offered, sent, sent_bytes, datagrams, datagram_bytes];
        let SessionStats { segmented, segmenting_refused, .. } = stats;
        let more = [size_lowered, datagrams_over_mtu, frames_cut, segmented, segmenting_refused];
        for (at, counter) in (1..).zip(fields.into_iter().chain(more).chain(dropped)) {
            counter.fetch_add(at * by, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_session_that_ends_takes_nothing_away() {
        let sensor = SensorStats::new("a");
        let sessions: Vec<_> = (0..3).map(|_| Arc::new(SessionStats::default())).collect();
        for (id, stats) in (0..).zip(&sessions) {
            let live = Arc::clone(stats);
            sensor.begin(id, move || (&*live).into());
            count(stats, id + 1);
        }
        let before = sensor.counts();
        assert_eq!(before.offered, 6);
        assert_eq!(before.datagram_bytes, 30);
        assert_eq!(before.frames_cut, 48);
        assert_eq!((before.segmented, before.segmenting_refused), (54, 60));
        assert_eq!(before.dropped, [66, 72, 78, 84, 90, 96, 102]);
        for (id, datagram_size) in [(1, 1001), (0, 1003), (2, 0), (2, 0), (9, 0)] {
            sensor.end(id);
            assert_eq!(sensor.counts(), SessionCounts { datagram_size, ..before.clone() });
        }
        assert_eq!(sensor.open_sessions(), 0);
        assert!(sessions.iter().all(|stats| Arc::strong_count(stats) == 1), "let go");
    }

    #[test]
    fn the_state_is_the_last_one_said() {
        let sensor = SensorStats::new("a");
        assert_eq!(sensor.state(), SensorState::Disconnected);
        for state in SensorState::ALL {
            sensor.set_state(*state);
            assert_eq!(sensor.state(), *state);
        }
    }
}
