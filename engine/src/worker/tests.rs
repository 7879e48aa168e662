//! The socket filter follows the sensors' filters; what waits is delivered in its time.

mod settle;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Mutex;

use super::*;
use crate::bpf::Program;
use crate::classify::Policy;
use crate::dedup::{Fingerprinter, Table};
use crate::net::View;
use crate::rpcap::{BpfInsn, Sampling};
use crate::session::{Encoding, Session, SessionSpec};
use crate::settle::Settling;
use crate::shared::Shared;
use crate::source::packet::testnet::{Veth, in_netns, ip, ipv4, udp};
use crate::source::packet::{Geometry, PacketOptions, PacketSource};
use crate::source::{Source, SourceStats, memory::MemoryBatch};
use crate::sys::Waker;
use crate::sys::libpcap::{CompileError, NETMASK_UNKNOWN, compile};

/// A filter, or `None` where this machine has no libpcap.
fn compiled(expression: &str) -> Option<Program> {
    match compile(expression, 1, 65535, true, NETMASK_UNKNOWN) {
        Ok(program) => Some(Program::new(&program).unwrap()),
        Err(CompileError::NoLibrary(reason)) => {
            eprintln!("SKIPPED: no libpcap on this machine: {reason}");
            None
        }
        Err(error) => panic!("{expression}: {error}"),
    }
}

/// Looks until it holds, for 20 seconds at most.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 20 seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A session to a socket that nobody reads; the socket must live as long.
fn session(filter: Option<Program>) -> (Arc<Session>, UdpSocket) {
    session_of(None, filter)
}

fn session_of(interface: Option<&str>, filter: Option<Program>) -> (Arc<Session>, UdpSocket) {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let spec = SessionSpec {
        sensor: 0,
        share: None,
        interface: interface.map(Into::into),
        peer: receiver.local_addr().unwrap(),
        encoding: Encoding::Stream,
        snaplen: 65535,
        datagram_bytes: None,
        takes_large_datagrams: false,
        longest_wait_ns: u64::MAX,
        filter,
        sampling: Sampling { method: 0, value: 0 },
    };
    (Session::open(spec).unwrap(), receiver)
}

/// A worker's surroundings, on a node of which nothing is known but that it has no VLANs.
struct Running {
    sessions: Arc<Sessions>,
    stats: Arc<WorkerStats>,
    life: Arc<Lifecycle>,
    waker: Waker,
    classifier: Shared<Classifier>,
    settle_ns: u64,
    clock: Clock,
}

fn classifier() -> Classifier {
    let mut view = View::default();
    view.links.extend([crate::classify::link_for_test(1)]);
    Classifier::new(&Policy { any_interface: true, ..Policy::default() }, &view, &[])
}

impl Running {
    fn new(waker: Waker) -> Self {
        Self {
            sessions: Sessions::new(vec![waker.clone()]),
            stats: Arc::default(),
            life: Arc::default(),
            waker,
            classifier: Shared::new(classifier()),
            settle_ns: 20_000_000,
            clock: Clock::Worker,
        }
    }

    fn context(&self) -> Context {
        let table = Arc::new(Table::new(1 << 20, 100_000_000).unwrap());
        Context {
            index: 0,
            pipeline: Pipeline::new(table, Fingerprinter::new(1))
                .settling(Settling { settle_ns: self.settle_ns, memory: 1 << 20 }),
            classifier: self.classifier.reader(),
            sessions: Arc::clone(&self.sessions),
            stats: Arc::clone(&self.stats),
            histograms: WorkerHistograms::default(),
            flush_ns: 1_000_000,
            clock: self.clock,
            life: Arc::clone(&self.life),
        }
    }

    /// Runs `test` beside a worker that works on `source`.
    fn with_worker(&self, source: impl Source + Send, test: impl FnOnce()) {
        /// Ends the worker also when the test panics.
        struct End<'a>(&'a Running);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.life.drain();
                self.0.waker.wake();
            }
        }
        std::thread::scope(|scope| {
            let context = self.context();
            scope.spawn(move || run(source, context));
            let _end = End(self);
            test();
        });
    }
}

/// No frame ever comes; remembers the programs, and refuses those that are too long.
struct Silent {
    programs: Arc<Mutex<Vec<Vec<BpfInsn>>>>,
    longest: usize,
}

impl Source for Silent {
    type Batch<'a> = MemoryBatch<'a>;

    fn next_batch(&mut self) -> Option<MemoryBatch<'_>> {
        None
    }

    fn wait(&mut self, _timeout: Duration) -> std::io::Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }

    fn stats(&mut self) -> std::io::Result<SourceStats> {
        Ok(SourceStats::default())
    }

    fn set_filter(&mut self, program: &[BpfInsn]) -> std::io::Result<()> {
        if program.len() > self.longest {
            return Err(std::io::Error::from_raw_os_error(libc::ENOMEM));
        }
        self.programs.lock().unwrap().push(program.to_vec());
        Ok(())
    }
}

#[test]
fn a_sensors_new_filter_comes_with_its_socket_filter() {
    let (Some(http), Some(dns)) = (compiled("tcp port 80"), compiled("udp port 53")) else {
        return;
    };
    let running = Running::new(Waker::new().unwrap());
    let programs: Arc<Mutex<Vec<Vec<BpfInsn>>>> = Arc::default();
    let source = Silent { programs: Arc::clone(&programs), longest: 4096 };
    let ((one, _at_one), (other, _at_other)) = (session(Some(http.clone())), session(None));
    let expect = |what: &str, filters: &[Program]| {
        let expected = classifier().filter_for(filters).unwrap_or(classifier().filter(&[]));
        eventually(what, || {
            programs.lock().unwrap().last().is_some_and(|last| last == expected.instructions())
        });
    };
    running.with_worker(source, || {
        running.sessions.add(Arc::clone(&one));
        expect("one sensor's filter", std::slice::from_ref(&http));
        running.sessions.set_filter(&one, Some(dns.clone()));
        expect("its next filter", std::slice::from_ref(&dns));
        running.sessions.add(Arc::clone(&other));
        expect("a sensor without a filter wants everything", &[]);
        running.sessions.set_filter(&other, Some(http.clone()));
        expect("both filters", &[dns.clone(), http.clone()]);
        running.sessions.remove(one.id);
        expect("the one that is left", &[http]);
    });
}

#[test]
fn what_the_kernel_refuses_is_left_to_user_space() {
    let Some(filter) = compiled("tcp port 80") else { return };
    let classifier = classifier();
    let combined = classifier.filter_for(std::slice::from_ref(&filter)).unwrap();
    let own = classifier.filter(&[]);
    let lengths = [combined.instructions().len(), own.instructions().len(), 1];
    for (longest, expected) in lengths.into_iter().zip([&combined, &own, &Program::accept_all()]) {
        let programs: Arc<Mutex<Vec<Vec<BpfInsn>>>> = Arc::default();
        let mut source = Silent { programs: Arc::clone(&programs), longest };
        socket_filter::put(&mut source, 0, &classifier, &[], Some(vec![filter.clone()]));
        assert_eq!(*programs.lock().unwrap(), [expected.instructions()]);
    }
}

/// A datagram to `port`, long enough not to be padded.
fn datagram(port: u16, id: u16) -> Vec<u8> {
    let ends = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    ipv4(ends[0], ends[1], id, 0, 17, &udp(40_000, port, 0, &[7; 32]))
}

#[test]
fn frames_that_no_sensor_wants_stay_in_the_kernel() {
    let filters = ["udp port 53", "udp port 54", "udp"].map(compiled);
    let [Some(dns), Some(other), Some(any)] = filters else { return };
    in_netns(|| {
        ip("link set lo up");
        let veth = Veth::new();
        let waker = Waker::new().unwrap();
        let running = Running::new(waker.clone());
        let options = PacketOptions {
            geometry: Geometry::from_budget(16 << 20, 1).unwrap(),
            retire_timeout_ms: 1,
        };
        let source = PacketSource::open(&options, waker).unwrap();
        let ((first, _at_first), (second, _at_second)) =
            (session(Some(dns.clone())), session(Some(other)));
        running.sessions.add(Arc::clone(&first));
        running.sessions.add(Arc::clone(&second));
        let offered = |session: &Session| session.stats.offered.load(Ordering::Relaxed);
        let mut id = 0;
        let mut send = |port: u16, count: u16| {
            for _ in 0..count {
                id += 1;
                veth.send(&datagram(port, id));
            }
        };
        running.with_worker(source, || {
            // The first that arrive say that the capture has begun.
            eventually("a first frame", || {
                send(53, 1);
                offered(&first) > 0
            });
            let settle = |running: &Running| {
                let mut before = u64::MAX;
                eventually("quiet", || {
                    std::thread::sleep(Duration::from_millis(20));
                    let now = running.stats.received.get();
                    std::mem::replace(&mut before, now) == now
                });
                before
            };
            let (before, offered_before) = (settle(&running), offered(&first));
            send(9999, 500);
            send(54, 10);
            send(53, 20);
            eventually("what they want", || offered(&second) >= offered_before + 30);
            // Each at two points: sent by v0, entering at v1.
            assert_eq!(settle(&running) - before, 60, "the 500 stayed in the kernel");
            eventually("the ring's own count", || {
                running.stats.ring_seen.get() == running.stats.received.get()
            });

            // Wider: takes effect, and from then on nothing is missing.
            running.sessions.set_filter(&first, Some(any));
            eventually("the wider filter", || {
                let before = offered(&first);
                send(9999, 1);
                std::thread::sleep(Duration::from_millis(20));
                offered(&first) > before
            });
            let (before, offered_before) = (settle(&running), offered(&first));
            send(9999, 100);
            eventually("all of them", || offered(&first) >= offered_before + 100);
            assert_eq!(settle(&running) - before, 200);

            // Narrower again.
            running.sessions.set_filter(&first, Some(dns));
            eventually("the narrower filter", || {
                let before = settle(&running);
                send(9999, 10);
                settle(&running) == before
            });
        });
        let dropped = &running.stats.dropped;
        let sum: u64 = dropped.iter().map(crate::stats::Counter::get).sum();
        assert_eq!(running.stats.received.get(), running.stats.admitted.get() + sum);
    });
}
