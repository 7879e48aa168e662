use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::thread;

use socket2::SockRef;

use super::*;
use crate::frame::VlanTag;
use crate::stats::sensor::SensorStats;

/// A session and the client's end.
fn session_with(change: impl FnOnce(&mut SessionSpec)) -> (Arc<Session>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (client, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let mut spec = spec(stream.peer_addr().unwrap());
    change(&mut spec);
    (Session::over_tcp(spec, stream).unwrap(), client)
}

fn session() -> (Arc<Session>, TcpStream) {
    session_with(|_spec| {})
}

#[derive(Debug, PartialEq, Eq)]
struct Message {
    number: u32,
    len: usize,
    data: Vec<u8>,
}

/// Reads one message as the spec describes it, with code of its own; `None` at the stream's end,
/// which may come in the middle of a message.
fn read(client: &mut TcpStream) -> Option<Message> {
    let mut header = [0; 28];
    let mut get = |buffer: &mut [u8]| match client.read_exact(buffer) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
        Err(error) => panic!("{error}"),
    };
    if !get(&mut header) {
        return None;
    }
    let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    assert_eq!(header[..4], [0, 7, 0, 0]);
    let caplen = field(16);
    assert_eq!(field(4), 20 + caplen, "plen is exact");
    assert_eq!((field(8), field(12)), (1_700_000_000, 123_456));
    let mut data = vec![0; usize::try_from(caplen).unwrap()];
    get(&mut data).then(|| Message {
        number: field(24),
        len: usize::try_from(field(20)).unwrap(),
        data,
    })
}

/// Offers frames until the session drops some for want of room; how many were offered.
fn fill(bench: &mut Bench, session: &Session, len: usize) -> usize {
    let mut n = 0;
    while session.stats.dropped(SessionDrop::TcpBacklog) == 0 {
        bench.offer(&bytes(n, len));
        n += 1;
        assert!(n * len < 1 << 30, "memory is bounded");
    }
    bench.flush();
    n
}

#[test]
fn messages_arrive_whole_and_in_order_over_tcp() {
    let (session, mut client) = session();
    let mut bench = Bench::new(&session);
    let lens: Vec<usize> = (0..3000).map(|n| n * 7919 % 1515).chain([0, 9000, 65_535]).collect();
    for (n, len) in lens.iter().enumerate() {
        bench.offer(&bytes(n, *len));
    }
    bench.flush();
    for (n, len) in lens.iter().enumerate() {
        let message = read(&mut client).unwrap();
        let number = u32::try_from(n).unwrap() + 1;
        assert_eq!(message, Message { number, len: *len, data: bytes(n, *len) });
        session.pump();
    }
    assert_eq!(session.pump(), Pump::Idle);
    assert_eq!(settled(&session), (3003, 3003, 0));
    assert_eq!(session.stats.datagrams.load(Ordering::Relaxed), 3003);
}

#[test]
fn partial_writes_break_no_message() {
    let (session, mut client) = session();
    // The smallest buffer there is, so that writes end anywhere.
    SockRef::from(&session.data_socket()).set_send_buffer_size(1).unwrap();
    let reader = thread::spawn(move || {
        let messages = std::iter::from_fn(|| read(&mut client));
        for (n, message) in messages.enumerate() {
            assert_eq!(usize::try_from(message.number).unwrap(), n + 1);
            assert_eq!(message.data, bytes(n, message.len));
        }
    });
    let mut bench = Bench::new(&session);
    for n in 0..2000 {
        bench.offer(&bytes(n, n * 37 % 1515));
        if n % 11 == 0 {
            bench.flush();
        }
    }
    bench.flush();
    until("the rest is sent", || session.pump() == Pump::Idle);
    session.close();
    reader.join().unwrap();
    assert_eq!(settled(&session), (2000, 2000, 0));
}

#[test]
fn a_client_that_does_not_read_costs_its_own_frames_and_nobodys_time() {
    let (session, mut client) = session();
    let mut bench = Bench::new(&session);
    let offered = fill(&mut bench, &session, 1000);
    assert_eq!(session.pump(), Pump::Blocked);
    let dropped = session.stats.dropped(SessionDrop::TcpBacklog);
    let sent = session.stats.sent.load(Ordering::Relaxed);
    let waiting = u64::try_from(offered).unwrap() - dropped - sent;
    assert!((3900..=4097).contains(&waiting), "{waiting} messages of 1028 bytes in 4 MiB");
    // A client that comes back gets what waited, and what comes then, and sees the gap.
    let reader = thread::spawn(move || {
        let mut last = 0;
        let mut got = 0;
        while let Some(message) = read(&mut client) {
            assert!(message.number > last);
            last = message.number;
            let n = usize::try_from(message.number).unwrap() - 1;
            assert_eq!(message.data, bytes(n, 1000));
            got += 1;
        }
        (last, got)
    });
    until("the backlog is sent", || session.pump() == Pump::Idle);
    bench.offer(&bytes(offered, 1000));
    bench.flush();
    until("the last is sent", || session.pump() == Pump::Idle);
    session.close();
    let (last, got) = reader.join().unwrap();
    assert_eq!(last, u32::try_from(offered).unwrap() + 1);
    let (_, sent, now_dropped) = settled(&session);
    assert_eq!((sent, now_dropped), (got, dropped));
}

#[test]
fn what_waits_at_the_end_is_counted_and_what_was_sent_is_what_arrived() {
    let (session, mut client) = session();
    let mut bench = Bench::new(&session);
    fill(&mut bench, &session, 700);
    session.close();
    session.close();
    assert_eq!(session.pump(), Pump::Broken);
    assert!(session.stats.dropped(SessionDrop::TcpUnsent) > 0);
    let (_, sent, _) = settled(&session);
    // Offered too late, by a worker that has not heard of it.
    bench.offer(&[1; 100]);
    bench.flush();
    let (_, still, _) = settled(&session);
    assert_eq!(still, sent);
    let arrived = std::iter::from_fn(|| read(&mut client)).count();
    assert_eq!(arrived as u64, sent);
}

#[test]
fn an_ended_capture_is_drained_when_its_client_has_read_all() {
    let (session, mut client) = session();
    let sessions = Sessions::counting(vec![Waker::new().unwrap()], vec![sensor()]);
    sessions.add(Arc::clone(&session));
    let mut bench = Bench::new(&session);
    fill(&mut bench, &session, 1000);
    let generation = sessions.remove(session.id);
    drop(bench);
    assert!(!sessions.is_drained(generation), "the worker has not seen it");
    sessions.mark_seen(0, generation);
    assert!(!sessions.is_drained(generation), "the client has not read");
    let reader = thread::spawn(move || std::iter::from_fn(|| read(&mut client)).count());
    until("drained", || sessions.is_drained(generation));
    let (_, sent, _) = settled(&session);
    assert_eq!(reader.join().unwrap() as u64, sent, "and then sees the end");
    assert_eq!(session.stats.dropped(SessionDrop::TcpUnsent), 0);
    assert_eq!(sessions.sensors()[0].counts(), (&session.stats).into());
    assert_eq!(sessions.sensors()[0].open_sessions(), 0);
}

#[test]
fn an_ended_capture_whose_client_does_not_read_is_abandoned_and_counted() {
    let (session, _client) = session();
    let sessions = Sessions::counting(vec![Waker::new().unwrap()], vec![sensor()]);
    sessions.add(Arc::clone(&session));
    let mut bench = Bench::new(&session);
    fill(&mut bench, &session, 1000);
    let generation = sessions.remove(session.id);
    drop(bench);
    sessions.mark_seen(0, generation);
    assert!(!sessions.is_drained(generation));
    sessions.abandon(generation);
    assert!(sessions.is_drained(generation));
    settled(&session);
    let counts = sessions.sensors()[0].counts();
    assert_eq!(counts, (&session.stats).into());
    assert!(counts.dropped[SessionDrop::TcpUnsent as usize] > 0);
}

#[test]
fn a_session_that_nobody_waits_for_goes_on_and_is_drained() {
    let (session, mut client) = session();
    let sessions = Sessions::counting(vec![Waker::new().unwrap()], vec![sensor()]);
    sessions.add(Arc::clone(&session));
    let mut bench = Bench::new(&session);
    let offered = fill(&mut bench, &session, 1000);
    sessions.mark_seen(0, sessions.remove(session.id));
    drop(bench);
    let dropped = session.stats.dropped(SessionDrop::TcpBacklog);
    let left = u64::try_from(offered).unwrap() - dropped;
    let reader = thread::spawn(move || (0..left).filter(|_| read(&mut client).is_some()).count());
    until("sent", || {
        sessions.tend();
        session.stats.sent.load(Ordering::Relaxed) == left
    });
    assert_eq!(reader.join().unwrap() as u64, left);
    settled(&session);
}

#[test]
fn a_broken_connection_is_noticed_without_a_frame_and_ends_the_session() {
    let (session, client) = session();
    let mut bench = Bench::new(&session);
    bench.offer(&[1; 100]);
    bench.flush();
    assert_eq!(session.pump(), Pump::Idle);
    // Unread data make it a reset.
    until("the message is there", || client.peek(&mut [0]).unwrap() == 1);
    drop(client);
    until("the reset is noticed", || session.pump() == Pump::Broken);
    bench.offer(&[2; 100]);
    bench.flush();
    assert_eq!(settled(&session), (2, 1, 1));
    assert_eq!(session.stats.dropped(SessionDrop::TcpUnsent), 1);
    session.close();
    assert_eq!(session.pump(), Pump::Broken);
}

#[test]
fn a_connection_that_breaks_while_frames_wait_counts_them() {
    let (session, client) = session();
    let mut bench = Bench::new(&session);
    fill(&mut bench, &session, 1000);
    drop(client);
    until("the reset is noticed", || {
        bench.offer(&[1; 1000]);
        session.pump() == Pump::Broken
    });
    bench.flush();
    drop(bench);
    settled(&session);
    assert!(session.stats.dropped(SessionDrop::TcpUnsent) > 3000);
}

#[test]
fn no_message_is_larger_than_the_client_can_take() {
    for snaplen in [1, 59, 64, 1514, 262_144] {
        let (session, mut client) = session_with(|spec| spec.snaplen = snaplen);
        let mut bench = Bench::new(&session);
        let data = bytes(1, 65_549);
        let tagged = Frame { vlan: Some(VlanTag { tpid: 0x8100, tci: 1 }), ..frame(&data) };
        bench.packer.offer(&tagged, 0, &mut bench.histograms);
        bench.offer(&data[..60]);
        bench.flush();
        bench.packer.publish();
        for (len, caplen) in [(65_553, 65_553), (60, 60)] {
            let message = read(&mut client).unwrap();
            assert_eq!(message.len, len);
            let most = usize::try_from(snaplen).unwrap();
            assert_eq!(message.data.len(), most.min(caplen), "exact, beyond 16 bits too");
        }
        settled(&session);
        assert_eq!(session.stats.frames_cut.load(Ordering::Relaxed), 0, "a snaplen is no cut");
    }
}

#[test]
fn workers_and_control_send_at_once_and_nothing_is_mixed_up() {
    const EACH: usize = 20_000;
    let (session, mut client) = session();
    SockRef::from(&session.data_socket()).set_send_buffer_size(1).unwrap();
    let reader = thread::spawn(move || {
        let mut next = [0; 3];
        let mut last = 0;
        while let Some(message) = read(&mut client) {
            assert!(message.number > last, "numbers only grow");
            last = message.number;
            let worker = usize::from(message.data[0]);
            let n = usize::from(message.data[1]) << 8 | usize::from(message.data[2]);
            assert!(n >= next[worker], "a worker's frames stay in order");
            next[worker] = n + 1;
            assert_eq!(message.data[3..], bytes(n, 57));
        }
    });
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3u8)
            .map(|worker| {
                let session = &session;
                scope.spawn(move || {
                    let mut bench = Bench::new(session);
                    for n in 0..EACH {
                        let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
                        bench.offer(&[&[worker, high, low], &bytes(n, 57)[..]].concat());
                        if n % 50 == 0 {
                            bench.flush();
                        }
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            session.pump();
        }
    });
    until("the rest is sent", || session.pump() == Pump::Idle);
    session.close();
    reader.join().unwrap();
    let (offered, ..) = settled(&session);
    assert_eq!(offered, 3 * EACH as u64);
}

fn sensor() -> Arc<SensorStats> {
    Arc::new(SensorStats::new("a"))
}
