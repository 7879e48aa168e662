//! What waits for its twin: who gets it, and when.

use super::*;
use crate::frame::{Direction, Offload, Point};
use crate::source::memory::{MemorySource, OwnedFrame};
use crate::source::packet::testnet::{ipv4, udp};

const SECOND: u64 = 1_000_000_000;

/// A datagram to a service, or with the address of its pod.
fn datagram(is_translated: bool, time_ns: u64) -> OwnedFrame {
    let to = if is_translated { [10, 0, 1, 102] } else { [172, 20, 0, 9] };
    let data = ipv4([10, 0, 1, 101].into(), to.into(), 1, 0, 17, &udp(5000, 53, 0, b"question"));
    let (ifindex, direction) = match is_translated {
        true => (2, Direction::Out),
        false => (1, Direction::In),
    };
    OwnedFrame {
        wire_len: u32::try_from(data.len()).unwrap(),
        data,
        timestamp_ns: time_ns,
        point: Point { ifindex, direction },
        vlan: None,
        offload: Offload::default(),
    }
}

fn running(settle_ns: u64, clock: Clock) -> Running {
    let mut view = View::default();
    view.links.extend([1, 2].map(crate::classify::link_for_test));
    let policy = Policy {
        any_interface: true,
        svcnet: vec!["172.20.0.0/16".parse().unwrap()],
        ..Policy::default()
    };
    let mut running = Running::new(Waker::new().unwrap());
    running.classifier = Shared::new(Classifier::new(&policy, &view, &[]));
    (running.settle_ns, running.clock) = (settle_ns, clock);
    running
}

/// Hands out its frames, and then waits for more that never come.
struct Patient(MemorySource);

impl Source for Patient {
    type Batch<'a> = MemoryBatch<'a>;

    fn next_batch(&mut self) -> Option<MemoryBatch<'_>> {
        self.0.next_batch()
    }

    fn wait(&mut self, timeout: Duration) -> std::io::Result<()> {
        std::thread::sleep(timeout.min(Duration::from_millis(5)));
        Ok(())
    }

    fn stats(&mut self) -> std::io::Result<SourceStats> {
        Ok(SourceStats::default())
    }

    fn set_filter(&mut self, _program: &[BpfInsn]) -> std::io::Result<()> {
        Ok(())
    }
}

fn offered(session: &Session) -> u64 {
    session.stats.offered.load(Ordering::Relaxed)
}

fn account(stats: &WorkerStats) {
    let dropped: u64 = stats.dropped.iter().map(crate::stats::Counter::get).sum();
    assert_eq!(stats.received.get(), stats.admitted.get() + dropped + stats.held.get());
}

#[test]
fn an_interfaces_capture_gets_at_once_what_others_get_when_it_has_waited() {
    let running = running(3600 * SECOND, Clock::Worker);
    let ((all, _at_all), (one, _at_one), (other, _at_other)) =
        (session(None), session_of(Some("if1"), None), session_of(Some("if2"), None));
    for session in [&all, &one, &other] {
        running.sessions.add(Arc::clone(session));
    }
    let source = Patient(MemorySource::new(vec![datagram(false, SECOND)], 64));
    running.with_worker(source, || {
        eventually("the frame", || running.stats.received.get() == 1);
        assert_eq!((offered(&one), offered(&all), running.stats.held.get()), (1, 0, 1));
        account(&running.stats);
    });
    // The end decides what waits.
    assert_eq!((offered(&one), offered(&all), offered(&other)), (1, 1, 0));
    assert_eq!((running.stats.held.get(), running.stats.untwinned.get()), (0, 1));
    account(&running.stats);
}

#[test]
fn a_worker_wakes_for_what_has_waited_though_no_frame_comes() {
    let running = running(20_000_000, Clock::Worker);
    let (all, _at_all) = session(None);
    running.sessions.add(Arc::clone(&all));
    let source = Patient(MemorySource::new(vec![datagram(false, SECOND)], 64));
    running.with_worker(source, || {
        eventually("its report", || offered(&all) == 1);
        eventually("the count", || running.stats.untwinned.get() == 1);
    });
    account(&running.stats);
}

#[test]
fn files_are_settled_by_their_own_time_however_fast_they_are_read() {
    for (later_ns, untwinned) in [(15_000_000, 0), (25_000_000, 1)] {
        let running = running(20_000_000, Clock::Frames);
        let frames = vec![datagram(false, SECOND), datagram(true, SECOND + later_ns)];
        run(MemorySource::new(frames, 64), running.context());
        assert_eq!(running.stats.untwinned.get(), untwinned);
        let service = running.stats.dropped(crate::stats::DropReason::Service).get();
        assert_eq!(service, 1 - untwinned);
        account(&running.stats);
    }
}
