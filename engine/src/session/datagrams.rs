//! The data over UDP: numbers a run's datagrams and sends them, in the size that the path takes.
//!
//! ```text
//! run --packed too large?--> recut --stamp--> UDP_SEGMENT | sendmmsg --EMSGSIZE--> smaller size, recut the rest
//!                                            refused: sendmmsg alone, for a while
//! ```
//!
//! Plain datagrams are as large as their message: they may become IP fragments, and are counted.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::rpcap::{HEADER_BYTES, MAX_UDP_PAYLOAD, PACKET_HEADER_BYTES};
use crate::stats::{SessionDrop, SessionStats};
use crate::sys::udp::{SendOutcome, allow_fragments, send_datagrams};

use super::SessionSpec;
use super::path::Path;
use super::run::{Form, FrameMark, Run};

/// EMSGSIZE may be about an earlier datagram, as often as routers answered since the last send;
/// how often it is believed to be, each run.
const REFUSALS: u32 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Arc<Socket>,
    form: Form,
    path: Path,
    sequence: u32,
    number: u32,
    segmenting: Segmenting,
    /// Takes what is cut anew; its run is swapped with the one that is sent.
    spare: Box<Run>,
}

impl Datagrams {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(socket: Arc<Socket>, form: Form, spec: &SessionSpec) -> io::Result<Self> {
        let is_plain = form == Form::Plain;
        allow_fragments(&*socket, spec.peer.is_ipv6(), is_plain)?;
        let path = Path::new(spec, !is_plain, Instant::now())?;
        // "npkt" counts from 1, "seqno" from 0.
        let (segmenting, spare) = (Segmenting::default(), Box::new(Run::new(form)));
        Ok(Self { socket, form, path, sequence: 0, number: 1, segmenting, spare })
    }

    /// What the first runs are packed for.
    pub(super) fn size(&self, spec: &SessionSpec) -> usize {
        match self.form {
            Form::Stream => self.path.size(),
            // Whatever the path takes.
            Form::Plain | Form::Messages => spec.datagram_bytes.unwrap_or(MAX_UDP_PAYLOAD),
        }
    }

    /// Follows the path's changes, when that is due; `size` is what runs are packed for.
    pub(super) fn look(&mut self, now: Instant, size: &AtomicUsize, stats: &SessionStats) {
        if self.path.is_due(now) {
            let is_lowered = self.path.look(now);
            self.publish(is_lowered, size, stats);
        }
    }

    fn publish(&self, is_lowered: bool, size: &AtomicUsize, stats: &SessionStats) {
        if is_lowered {
            stats.size_lowered.fetch_add(1, Ordering::Relaxed);
        }
        let now = match self.form {
            Form::Stream => self.path.size(),
            Form::Plain | Form::Messages => size.load(Ordering::Relaxed),
        };
        // Relaxed: a run that was packed for the old size is cut anew.
        size.store(now, Ordering::Relaxed);
        // Control says it to the log.
        stats.datagram_size.store(now as u64, Ordering::Relaxed);
    }

    /// Sends a run; what the kernel does not take is counted. `waits` is how often a full socket may still be waited for.
    pub(super) fn send(
        &mut self,
        run: &mut Box<Run>,
        now: Instant,
        size: &AtomicUsize,
        waits: &mut u32,
        stats: &SessionStats,
    ) {
        run.stamp_packets(self.number);
        // Given-up datagrams and frames are numbered too: the receiver sees the loss.
        self.number = self.number.wrapping_add(count(run.frames.len()));
        if run.cut != 0 {
            stats.frames_cut.fetch_add(run.cut, Ordering::Relaxed);
        }
        if self.form == Form::Plain {
            self.count_fragmented(run, stats);
        } else if run.datagram_bytes() > self.path.size() {
            self.recut(run, 0, |_mark| false);
        }
        run.stamp_datagrams(self.sequence);
        let mut lost = Lost::default();
        let (mut from, mut refusals) = (0, 0);
        loop {
            // A plain datagram that is larger becomes IP fragments, which nothing cuts.
            let most = if self.form == Form::Plain { self.path.fits() } else { self.path.size() };
            let most = if self.segmenting.is_on(now) { most } else { 0 };
            let sent = send_datagrams(&*self.socket, &run.bytes, &run.ends, from, most, waits);
            let SendOutcome { datagrams, bytes, failed, too_large, refused, .. } = sent;
            if sent.segmented != 0 {
                self.segmenting.taken();
                stats.segmented.fetch_add(sent.segmented, Ordering::Relaxed);
            }
            if let Some(errno) = sent.uncut {
                let error = std::io::Error::from_raw_os_error(errno);
                tracing::info!(%error, "UDP_SEGMENT is refused: datagrams go one by one for a while");
                self.segmenting.refused(now);
                stats.segmenting_refused.fetch_add(1, Ordering::Relaxed);
            }
            if refused != 0 {
                stats.refused.fetch_add(refused, Ordering::Relaxed);
            }
            stats.datagrams.fetch_add(datagrams, Ordering::Relaxed);
            stats.datagram_bytes.fetch_add(bytes, Ordering::Relaxed);
            lost.failed.extend(failed);
            let Some(at) = too_large else {
                self.sequence = self.sequence.wrapping_add(count(run.ends.len()));
                return lost.settle(&run.frames, usize::MAX, stats);
            };
            let is_lowered = self.path.refused(&*self.socket);
            self.publish(is_lowered, size, stats);
            refusals += 1;
            from = at;
            if refusals > REFUSALS {
                lost.too_large.push(at);
                from = at + 1;
            } else if self.form == Form::Stream && run.datagram_len(at) > self.path.size() {
                lost.settle(&run.frames, at, stats);
                self.recut(run, at, |mark| lost.reason(mark).is_some());
                self.sequence = self.sequence.wrapping_add(count(at));
                run.stamp_datagrams(self.sequence);
                (from, lost) = (0, Lost::default());
            }
        }
    }

    /// Cuts a run anew, from its datagram `from` on.
    #[cold]
    fn recut(&mut self, run: &mut Box<Run>, from: usize, is_lost: impl Fn(&FrameMark) -> bool) {
        self.spare.clear();
        self.spare.limit(self.path.size());
        self.spare.recut(run, from, is_lost);
        std::mem::swap(run, &mut self.spare);
    }

    fn count_fragmented(&self, run: &Run, stats: &SessionStats) {
        let fits = self.path.fits();
        let is_over = |mark: &&FrameMark| HEADER_BYTES + PACKET_HEADER_BYTES + mark.caplen > fits;
        let over = run.frames.iter().filter(is_over).count();
        if over != 0 {
            stats.datagrams_over_mtu.fetch_add(over as u64, Ordering::Relaxed);
        }
    }
}

/// Whether the kernel is left to cut datagrams of one size (`UDP_SEGMENT`).
#[derive(Debug, Default)]
struct Segmenting {
    /// Refused: it is tried again then.
    again: Option<Instant>,
    /// Refusals in a row.
    refusals: u32,
}

/// After the first refusal; doubled with each that follows, up to a minute.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MOST_DOUBLINGS: u32 = 6;

impl Segmenting {
    fn is_on(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }

    /// A device or a route on the way cannot do it; that may change.
    fn refused(&mut self, now: Instant) {
        let wait = FIRST_WAIT * (1 << self.refusals.min(MOST_DOUBLINGS));
        self.refusals += 1;
        self.again = Some(now + wait);
    }

    /// It worked.
    fn taken(&mut self) {
        self.refusals = 0;
    }
}

/// Datagrams that were given up.
#[derive(Default)]
struct Lost {
    failed: Vec<Range<usize>>,
    too_large: Vec<usize>,
}

impl Lost {
    /// Why a frame did not get through whole; `None` if it did.
    fn reason(&self, mark: &FrameMark) -> Option<SessionDrop> {
        if self.too_large.iter().any(|at| (mark.first..=mark.last).contains(at)) {
            Some(SessionDrop::TooLarge)
        } else if self.failed.iter().any(|range| range.start <= mark.last && mark.first < range.end)
        {
            Some(SessionDrop::SendFailed)
        } else {
            None
        }
    }

    /// Counts the frames that ended before datagram `end`, and those of the others that are lost.
    fn settle(&self, frames: &[FrameMark], end: usize, stats: &SessionStats) {
        let is_clean = self.failed.is_empty() && self.too_large.is_empty();
        let (mut sent, mut bytes) = (0, 0);
        for mark in frames {
            match if is_clean { None } else { self.reason(mark) } {
                Some(reason) => stats.drop_frames(reason, 1),
                None if mark.last < end => {
                    sent += 1;
                    bytes += mark.caplen as u64;
                }
                None => {}
            }
        }
        stats.sent.fetch_add(sent, Ordering::Relaxed);
        stats.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// As the protocol counts.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmenting_comes_back_later_each_time_and_at_once_after_it_worked() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut segmenting = Segmenting::default();
        assert!(segmenting.is_on(start));
        let mut now = 0;
        for wait in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            segmenting.refused(at(now));
            assert!(!segmenting.is_on(at(now)));
            now += wait;
            assert!(!segmenting.is_on(at(now) - Duration::from_millis(1)));
            assert!(segmenting.is_on(at(now)), "after {wait} s");
        }
        segmenting.taken();
        segmenting.refused(at(now));
        assert!(segmenting.is_on(at(now + 1)));
    }
}
