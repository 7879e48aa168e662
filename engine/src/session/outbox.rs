//! Numbers runs and sends them, one worker at a time, without any worker waiting for another.
//!
//! ```text
//! worker A --submit--> queue --+                      (a bounded lock-free queue)
//! worker B --submit--> queue --+--> whoever holds `link`: Datagrams | Tcp, next run
//! control  --pump--> (nudge) --+
//! ```
//!
//! A worker that finds the link taken leaves its run in the queue and goes on: the holder looks
//! once more after it has let go. So datagrams leave in the order of their numbers, which a
//! receiver may count on, and a slow send delays nobody's capture but the sender's own.
//!
//! The holder may lose its core for longer than a flush time. Then runs are few, bytes are not: a
//! packer that finds some waiting ([`Outbox::is_behind`]) goes on filling the run it has.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use socket2::Socket;

use crate::rpcap::MAX_UDP_PAYLOAD;
use crate::stats::SessionStats;
use crate::sys::udp::WAITS;

use super::datagrams::Datagrams;
use super::run::{Form, Run};
use super::tcp::Tcp;
use super::{Encoding, Pump, SessionSpec};

/// Runs that may wait or be filled, per session, at least.
const RUNS: usize = 16;

/// With so many runs waiting, only full ones join them: the rest of the runs then holds what its
/// bytes can hold, not what comes within as many flush times.
const BEHIND: usize = 4;

/// Runs of a session: each worker fills one and may have one on its way, and some wait.
fn runs_for(workers: usize) -> usize {
    RUNS.max(2 * workers + 8)
}

#[derive(Debug)]
pub(super) struct Outbox {
    queue: ArrayQueue<Box<Run>>,
    pool: ArrayQueue<Box<Run>>,
    socket: Arc<Socket>,
    link: Mutex<Link>,
    /// Somebody found the link taken who had no run to leave.
    is_nudged: AtomicBool,
    /// Whoever sent last has left runs behind, so as not to be held up for ever.
    is_owed: AtomicBool,
    /// Nothing is to be sent any more.
    is_closed: AtomicBool,
    /// Nothing is sent any more, whoever ended it.
    is_over: AtomicBool,
    /// Most bytes of a datagram in the next runs.
    size: AtomicUsize,
}

/// How the data travel.
#[derive(Debug)]
enum Link {
    Udp(Box<Datagrams>),
    Tcp(Box<Tcp>),
}

/// How much one thread does in one go.
struct Allowance {
    /// Runs that it sends.
    runs: usize,
    /// Milliseconds that it waits for a full socket.
    waits: u32,
}

impl Outbox {
    /// Over a connected, non-blocking UDP socket.
    pub(super) fn udp(socket: Socket, spec: &SessionSpec, workers: usize) -> io::Result<Self> {
        let form = match spec.encoding {
            Encoding::Stream => Form::Stream,
            Encoding::Plain => Form::Plain,
        };
        let socket = Arc::new(socket);
        let datagrams = Datagrams::new(Arc::clone(&socket), form, spec)?;
        let size = datagrams.size(spec);
        Ok(Self::new(socket, Link::Udp(Box::new(datagrams)), form, size, workers))
    }

    /// Over a connected, non-blocking TCP socket.
    pub(super) fn tcp(socket: Socket, workers: usize) -> Self {
        let socket = Arc::new(socket);
        let tcp = Tcp::new(Arc::clone(&socket));
        Self::new(socket, Link::Tcp(Box::new(tcp)), Form::Messages, MAX_UDP_PAYLOAD, workers)
    }

    fn new(socket: Arc<Socket>, link: Link, form: Form, size: usize, workers: usize) -> Self {
        let pool = ArrayQueue::new(runs_for(workers));
        while pool.push(Box::new(Run::new(form))).is_ok() {}
        Self {
            queue: ArrayQueue::new(runs_for(workers)),
            pool,
            socket,
            link: Mutex::new(link),
            is_nudged: AtomicBool::new(false),
            is_owed: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            size: AtomicUsize::new(size),
        }
    }

    /// The socket, to wait for it.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// True when nothing is sent any more: frames need not be encoded.
    pub(super) fn is_over(&self) -> bool {
        // Relaxed: one that is late is counted when its run is submitted.
        self.is_over.load(Ordering::Relaxed)
    }

    /// An empty run, or `None` while all of them wait to be sent.
    pub(super) fn take_run(&self) -> Option<Box<Run>> {
        let mut run = self.pool.pop()?;
        // Relaxed: a run that is packed too large is cut anew.
        run.limit(self.size.load(Ordering::Relaxed));
        Some(run)
    }

    /// Hands a finished run over, and sends what waits unless another worker is at it. Returns
    /// the nanoseconds spent sending, if any was done here.
    pub(super) fn submit(&self, run: Box<Run>, stats: &SessionStats) -> Option<u64> {
        // There are as many places in the queue as runs in the world.
        let queued = self.queue.push(run).is_ok();
        debug_assert!(queued, "the queue holds every run there is");
        let mut started = None;
        self.drain(stats, &mut started);
        started.map(|at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Goes on with what waits.
    pub(super) fn pump(&self, stats: &SessionStats) -> Pump {
        // Relaxed: the fences in `drain` order it.
        self.is_nudged.store(true, Ordering::Relaxed);
        match self.drain(stats, &mut None) {
            Some(pump) => pump,
            None if self.is_over() => Pump::Broken,
            // Somebody else is at it: who knows how it will end.
            None => Pump::Blocked,
        }
    }

    /// Gives up what waits and what is to come, over TCP.
    pub(super) fn close(&self, stats: &SessionStats) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.pump(stats);
    }

    /// Gives an unused run back.
    pub(super) fn give_back(&self, mut run: Box<Run>) {
        run.clear();
        let _there_is_room = self.pool.push(run);
    }

    /// True while so many runs wait that one with room left should be filled before it joins them.
    pub(super) fn is_behind(&self) -> bool {
        self.queue.len() >= BEHIND
    }

    /// True if runs wait that nobody is about to send.
    pub(super) fn is_owed(&self) -> bool {
        // Relaxed: one that is late is seen at the next look.
        self.is_owed.load(Ordering::Relaxed)
    }

    /// Does what there is to do, of others' runs only so many that nobody is held up for long;
    /// `None` if another thread is at it, which then does.
    fn drain(&self, stats: &SessionStats, started: &mut Option<Instant>) -> Option<Pump> {
        let mut result = None;
        let mut allowance = Allowance { runs: RUNS, waits: WAITS };
        loop {
            // ORDER: SeqCst fence, paired with the one below. Either the holder's look at the
            // queue and the nudge comes after our push or store and finds it, or our try_lock comes
            // after its unlock and succeeds.
            fence(Ordering::SeqCst);
            let Ok(mut link) = self.link.try_lock() else { break };
            // Relaxed: whoever nudges after this and finds the link taken is seen below.
            self.is_nudged.store(false, Ordering::Relaxed);
            self.is_owed.store(false, Ordering::Relaxed);
            let now = *started.get_or_insert_with(Instant::now);
            result = Some(self.work(&mut link, now, &mut allowance, stats));
            drop(link);
            fence(Ordering::SeqCst);
            if self.queue.is_empty() && !self.is_nudged.load(Ordering::Relaxed) {
                break;
            }
            if allowance.runs == 0 {
                self.is_owed.store(true, Ordering::Relaxed);
                break;
            }
        }
        result
    }

    fn next(&self, allowance: &mut Allowance) -> Option<Box<Run>> {
        allowance.runs = allowance.runs.checked_sub(1)?;
        self.queue.pop()
    }

    fn work(
        &self,
        link: &mut Link,
        now: Instant,
        allowance: &mut Allowance,
        stats: &SessionStats,
    ) -> Pump {
        match link {
            Link::Udp(datagrams) => {
                datagrams.look(now, &self.size, stats);
                while let Some(mut run) = self.next(allowance) {
                    datagrams.send(&mut run, now, &self.size, &mut allowance.waits, stats);
                    self.give_back(run);
                }
                Pump::Idle
            }
            Link::Tcp(tcp) => {
                if self.queue.is_empty() {
                    tcp.check(stats);
                }
                tcp.resume(stats);
                while let Some(mut run) = self.next(allowance) {
                    tcp.send(&mut run, stats);
                    self.give_back(run);
                }
                // Relaxed: who closed has nudged, and comes by if this look was too early.
                if self.is_closed.load(Ordering::Relaxed) {
                    tcp.close(stats);
                }
                if tcp.is_over() {
                    self.is_over.store(true, Ordering::Relaxed);
                    return Pump::Broken;
                }
                if tcp.is_blocked() { Pump::Blocked } else { Pump::Idle }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::super::tests::{frame, spec};
    use super::super::{Packer, Session};
    use super::*;
    use crate::stats::SessionDrop;
    use crate::stats::histogram::WorkerHistograms;

    const MS: u64 = 1_000_000;

    /// Two workers take 2,000 packets per second together, for 300 ms, while somebody who is not
    /// getting on has the right to send.
    fn hold_up(session: &Session, packers: &mut [Packer; 2]) {
        let mut histograms = WorkerHistograms::new();
        let _held = session.outbox.link.lock().unwrap();
        for n in 0..600 {
            let now_ns = n * MS / 2;
            for packer in &mut *packers {
                packer.begin_batch();
                if packer.deadline_ns(MS).is_some_and(|due| due <= now_ns) {
                    packer.flush(now_ns, &mut histograms);
                }
                assert!(packer.deadline_ns(MS).is_none_or(|due| due > now_ns), "no busy loop");
            }
            let [first, second] = &mut *packers;
            let packer = if n % 2 == 0 { first } else { second };
            packer.offer(&frame(&[7; 200]), now_ns, &mut histograms);
            packer.publish();
        }
    }

    /// Nothing is dropped, and with the sender back, everything goes.
    fn holds_what_its_bytes_hold(session: &Arc<Session>) {
        let mut packers = [Packer::new(Arc::clone(session)), Packer::new(Arc::clone(session))];
        hold_up(session, &mut packers);
        let stats = &session.stats;
        assert_eq!(stats.dropped(SessionDrop::QueueFull), 0);
        let mut histograms = WorkerHistograms::new();
        for packer in &mut packers {
            packer.flush(301 * MS, &mut histograms);
            assert_eq!(packer.deadline_ns(MS), None, "nothing is kept any more");
        }
        assert_eq!(stats.offered.load(Ordering::Relaxed), 600);
        assert_eq!(stats.sent.load(Ordering::Relaxed), 600);
    }

    #[test]
    fn a_sender_without_a_core_for_300_ms_costs_no_packet_over_udp() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        for encoding in [Encoding::Stream, Encoding::Plain] {
            let spec = SessionSpec { encoding, ..spec(to.local_addr().unwrap()) };
            holds_what_its_bytes_hold(&Session::open(spec).unwrap());
        }
    }

    #[test]
    fn a_sender_without_a_core_for_300_ms_costs_no_packet_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let stream = TcpStream::connect(to).unwrap();
        let _client = listener.accept().unwrap();
        holds_what_its_bytes_hold(&Session::over_tcp(spec(to), stream).unwrap());
    }

    #[test]
    fn nobody_sends_for_the_others_without_end() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(to.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let spec = spec(to.local_addr().unwrap());
        let outbox = Outbox::udp(socket.into(), &spec, 32).unwrap();
        let stats = SessionStats::default();
        let taken = outbox.link.lock().unwrap();
        for _ in 0..RUNS + 5 {
            assert_eq!(outbox.submit(outbox.take_run().unwrap(), &stats), None, "taken");
        }
        drop(taken);
        outbox.pump(&stats);
        assert_eq!((outbox.queue.len(), outbox.is_owed()), (5, true));
        outbox.pump(&stats);
        assert_eq!((outbox.queue.len(), outbox.is_owed()), (0, false));
    }
}
