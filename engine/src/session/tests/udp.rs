use std::net::UdpSocket;

use super::*;

fn receiver(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

fn session_to(
    receiver: &UdpSocket,
    change: impl FnOnce(&mut SessionSpec),
) -> (Arc<Session>, Bench) {
    let mut spec = spec(receiver.local_addr().unwrap());
    change(&mut spec);
    let session = Session::open(spec).unwrap();
    let bench = Bench::new(&session);
    (session, bench)
}

/// Follows the path until datagrams have this size.
fn until_size(session: &Session, size: u64) {
    until("the size is found", || {
        session.pump();
        session.stats.datagram_size.load(Ordering::Relaxed) == size
    });
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let len = socket.recv(&mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

/// The frames in stream datagrams that begin with the sequence number 0.
fn frames(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut stream = Vec::new();
    for (n, datagram) in datagrams.iter().enumerate() {
        assert_eq!(datagram[..2], [0, 110]);
        assert_eq!(datagram[4..8], u32::try_from(n).unwrap().to_be_bytes());
        stream.extend_from_slice(&datagram[8..]);
    }
    let mut frames = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let caplen = u32::from_be_bytes(stream[at + 8..at + 12].try_into().unwrap());
        let number = u32::from_be_bytes(stream[at + 16..at + 20].try_into().unwrap());
        assert_eq!(usize::try_from(number).unwrap(), frames.len() + 1);
        let end = at + 20 + usize::try_from(caplen).unwrap();
        frames.push(stream[at + 20..end].to_vec());
        at = end;
    }
    frames
}

#[test]
fn a_client_that_takes_any_size_gets_what_the_path_takes() {
    for (address, sizes) in [("127.0.0.1:0", [65_507, 1472]), ("[::1]:0", [65_488, 1472])] {
        for (takes_large_datagrams, size) in [true, false].into_iter().zip(sizes) {
            let receiver = receiver(address);
            let (session, mut bench) =
                session_to(&receiver, |spec| spec.takes_large_datagrams = takes_large_datagrams);
            until_size(&session, size);
            let sent: Vec<_> = (0..40).map(|n| bytes(n, 1500)).collect();
            for data in &sent {
                bench.offer(data);
            }
            bench.flush();
            let total = 40 * 1520;
            let mut datagrams = Vec::new();
            while datagrams.iter().map(|d: &Vec<u8>| d.len() - 8).sum::<usize>() < total {
                datagrams.push(receive(&receiver));
            }
            assert_eq!(frames(&datagrams), sent);
            let longest = datagrams.iter().map(Vec::len).max().unwrap();
            assert!(longest <= usize::try_from(size).unwrap());
            assert!(longest > 50_000 || !takes_large_datagrams);
            assert_eq!(settled(&session), (40, 40, 0));
            assert_eq!(session.stats.size_lowered.load(Ordering::Relaxed), 0);
        }
    }
}

#[test]
fn a_size_that_was_fixed_is_used() {
    for bytes in [128, 1000, 9000] {
        let receiver = receiver("127.0.0.1:0");
        let (session, mut bench) = session_to(&receiver, |spec| spec.datagram_bytes = Some(bytes));
        until_size(&session, bytes as u64);
        bench.offer(&[7; 20_000]);
        bench.flush();
        assert_eq!(receive(&receiver).len(), bytes);
        assert_eq!(settled(&session), (1, 1, 0));
    }
}

#[test]
fn a_plain_datagram_is_as_large_as_its_frame() {
    let receiver = receiver("127.0.0.1:0");
    let (session, mut bench) = session_to(&receiver, |spec| spec.encoding = Encoding::Plain);
    for len in [60, 1514, 9014, 65_479] {
        bench.offer(&vec![1; len]);
        bench.flush();
        assert_eq!(receive(&receiver).len(), len + 28);
    }
    assert_eq!(session.stats.frames_cut.load(Ordering::Relaxed), 0);
    assert_eq!(session.stats.datagrams_over_mtu.load(Ordering::Relaxed), 0, "loopback takes it");
    assert_eq!(session.stats.datagram_size.load(Ordering::Relaxed), 65_507);
    bench.offer(&vec![1; 65_480]);
    bench.flush();
    let datagram = receive(&receiver);
    assert_eq!(datagram.len(), 65_507);
    assert_eq!(datagram[16..24], [0, 0, 0xff, 0xc7, 0, 0, 0xff, 0xc8], "caplen cut, len kept");
    assert_eq!(session.stats.frames_cut.load(Ordering::Relaxed), 1);
    assert_eq!(settled(&session), (5, 5, 0));
}

#[test]
fn a_plain_frame_is_cut_to_a_fixed_size_and_counted() {
    let receiver = receiver("127.0.0.1:0");
    let (session, mut bench) = session_to(&receiver, |spec| {
        spec.encoding = Encoding::Plain;
        spec.datagram_bytes = Some(1000);
    });
    for len in [60, 972, 973, 1514] {
        bench.offer(&vec![1; len]);
        bench.flush();
        let datagram = receive(&receiver);
        let caplen = len.min(972);
        assert_eq!(datagram.len(), caplen + 28);
        assert_eq!(datagram[16..20], u32::try_from(caplen).unwrap().to_be_bytes());
        assert_eq!(datagram[20..24], u32::try_from(len).unwrap().to_be_bytes());
    }
    assert_eq!(session.stats.frames_cut.load(Ordering::Relaxed), 2);
    assert_eq!(settled(&session), (4, 4, 0));
}

#[test]
fn a_runs_old_size_is_no_reason_to_lose_it() {
    let receiver = receiver("127.0.0.1:0");
    let (session, mut bench) = session_to(&receiver, |spec| spec.takes_large_datagrams = true);
    until_size(&session, 65_507);
    let run = session.outbox.take_run().unwrap();
    assert_eq!(run.datagram_bytes(), 65_507);
    session.outbox.give_back(run);
    bench.offer(&[1; 3000]);
    bench.flush();
    assert_eq!(receive(&receiver).len(), 3028);
}

#[test]
fn a_session_over_udp_is_never_blocked_and_closing_it_does_nothing() {
    let receiver = receiver("127.0.0.1:0");
    let (session, mut bench) = session_to(&receiver, |_spec| {});
    assert_eq!(session.pump(), Pump::Idle);
    session.close();
    bench.offer(&[1; 60]);
    bench.flush();
    assert_eq!(receive(&receiver).len(), 88);
    assert_eq!(settled(&session), (1, 1, 0));
}

#[test]
fn a_client_that_waits_less_than_the_flush_time_gets_its_packets_earlier() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (longest_wait_ns, expected) in [(u64::MAX, 1_000_000), (250, 250), (2_000_000, 1_000_000)] {
        let spec = SessionSpec { longest_wait_ns, ..spec(receiver.local_addr().unwrap()) };
        let mut bench = Bench::new(&Session::open(spec).unwrap());
        assert_eq!(bench.packer.deadline_ns(1_000_000), None);
        bench.offer(&bytes(0, 60));
        assert_eq!(bench.packer.deadline_ns(1_000_000), Some(expected));
    }
}

#[test]
fn each_of_many_workers_has_a_run_to_fill() {
    let to = receiver("127.0.0.1:0");
    let wakers = (0..64).map(|_| Waker::new().unwrap()).collect();
    let session = Sessions::new(wakers).open(spec(to.local_addr().unwrap())).unwrap();
    let mut workers: Vec<_> = (0..64).map(|_| Bench::new(&session)).collect();
    for worker in &mut workers {
        worker.offer(&bytes(1, 100));
    }
    workers.iter_mut().for_each(Bench::flush);
    assert_eq!(session.stats.dropped(SessionDrop::QueueFull), 0);
}
