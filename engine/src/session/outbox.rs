//! Numbers runs and sends them, one worker at a time, without any worker waiting for another.
//!
//! ```text
//! worker A --submit--> queue --+                      (a bounded lock-free queue)
//! worker B --submit--> queue --+--> whoever holds `sender`: stamp, sendmmsg, next run
//! ```
//!
//! A worker that finds the sender taken leaves its run in the queue and goes on: the holder looks
//! once more after it has let go. So datagrams leave in the order of their numbers, which a
//! receiver may count on, and a slow send delays nobody's capture but the sender's own.

use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;

use crate::stats::{SessionDrop, SessionStats};
use crate::sys::udp::{SendOutcome, send_datagrams};

use super::Encoding;
use super::run::Run;

/// Runs that may wait or be filled, per session: two a worker, and some in the queue.
pub(super) const RUNS: usize = 16;

#[derive(Debug)]
pub(super) struct Outbox {
    queue: ArrayQueue<Box<Run>>,
    pool: ArrayQueue<Box<Run>>,
    sender: Mutex<Sender>,
}

#[derive(Debug)]
struct Sender {
    socket: UdpSocket,
    sequence: u32,
    number: u32,
}

impl Outbox {
    pub(super) fn new(socket: UdpSocket, encoding: Encoding, datagram_bytes: usize) -> Self {
        let pool = ArrayQueue::new(RUNS);
        while pool.push(Box::new(Run::new(encoding, datagram_bytes))).is_ok() {}
        // "npkt" counts from 1, "seqno" from 0.
        let sender = Mutex::new(Sender { socket, sequence: 0, number: 1 });
        Self { queue: ArrayQueue::new(RUNS), pool, sender }
    }

    /// An empty run, or `None` while all of them wait to be sent.
    pub(super) fn take_run(&self) -> Option<Box<Run>> {
        self.pool.pop()
    }

    /// Hands a finished run over, and sends what waits unless another worker is at it. Returns
    /// the nanoseconds spent sending, if any was done here.
    pub(super) fn submit(&self, run: Box<Run>, stats: &SessionStats) -> Option<u64> {
        // There are as many places in the queue as runs in the world.
        let queued = self.queue.push(run).is_ok();
        debug_assert!(queued, "the queue holds every run there is");
        self.drain(stats)
    }

    /// Gives an unused run back.
    pub(super) fn give_back(&self, mut run: Box<Run>) {
        run.clear();
        let _there_is_room = self.pool.push(run);
    }

    fn drain(&self, stats: &SessionStats) -> Option<u64> {
        let mut started = None;
        loop {
            // ORDER: SeqCst fence, paired with the one below. Either the holder's look at the
            // queue comes after our push and finds the run, or our try_lock comes after its
            // unlock and succeeds.
            fence(Ordering::SeqCst);
            let Ok(mut sender) = self.sender.try_lock() else { break };
            while let Some(run) = self.queue.pop() {
                started.get_or_insert_with(Instant::now);
                let run = sender.send(run, stats);
                self.give_back(run);
            }
            drop(sender);
            fence(Ordering::SeqCst);
            if self.queue.is_empty() {
                break;
            }
        }
        started.map(|at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Sender {
    fn send(&mut self, mut run: Box<Run>, stats: &SessionStats) -> Box<Run> {
        run.stamp(self.sequence, self.number);
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        // Given-up datagrams and frames are counted too: the receiver sees the loss.
        self.sequence = self.sequence.wrapping_add(count(run.ends.len()));
        self.number = self.number.wrapping_add(count(run.frames.len()));
        let SendOutcome { datagrams, bytes, failed, refused } =
            send_datagrams(&self.socket, &run.bytes, &run.ends);
        let lost = |mark: &&super::run::FrameMark| {
            failed.iter().any(|range| range.start <= mark.last && mark.first < range.end)
        };
        let (mut frames, mut caplen, mut gone) = (0, 0, 0);
        for mark in &run.frames {
            if failed.is_empty() || !lost(&mark) {
                frames += 1;
                caplen += mark.caplen as u64;
            } else {
                gone += 1;
            }
        }
        stats.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        stats.datagram_bytes.fetch_add(bytes, Ordering::Relaxed);
        stats.sent.fetch_add(frames, Ordering::Relaxed);
        stats.sent_bytes.fetch_add(caplen, Ordering::Relaxed);
        if refused != 0 {
            stats.refused.fetch_add(refused, Ordering::Relaxed);
        }
        if gone != 0 {
            stats.drop_frames(SessionDrop::SendFailed, gone);
        }
        run
    }
}
