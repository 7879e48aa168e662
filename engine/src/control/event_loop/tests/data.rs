//! The data over TCP, and promiscuous mode: what control makes and lets go of.

use super::passive::open_config;
use super::*;
use crate::frame::{Direction, Frame, Offload, Point};
use crate::session::Packer;
use crate::stats::histogram::WorkerHistograms;

/// STARTCAP with these flags and this port of the client.
fn startcap(flags: u16, port: u16) -> Vec<u8> {
    let mut request = STARTCAP.to_vec();
    request[8..10].copy_from_slice(&flags.to_be_bytes());
    request[10..12].copy_from_slice(&port.to_be_bytes());
    request
}

const SERVER_OPEN: u16 = 4;

impl Tap {
    /// Plays a worker that captured this, for every session.
    fn capture(&self, data: &[u8]) {
        let frame = Frame {
            data,
            wire_len: u32::try_from(data.len()).unwrap(),
            timestamp_ns: 1_000_000_000,
            point: Point { ifindex: 2, direction: Direction::In },
            vlan: None,
            offload: Offload::default(),
        };
        for session in self.sessions.load().iter() {
            let mut packer = Packer::new(Arc::clone(session));
            packer.offer(&frame, 0, &mut WorkerHistograms::new());
        }
    }

    fn until_capturing(&self, count: usize) {
        until("the capture", || self.capturing() == count);
    }
}

impl Client {
    /// Authenticated, any-eth opened.
    fn opened(mut self) -> Self {
        self.ask(8, &[0; 8]);
        self.ask(3, b"any-eth");
        self
    }

    /// STARTCAP for a data connection that the client makes: its port.
    fn start_passive(&mut self) -> u16 {
        let reply = self.ask(4, &startcap(0, 0));
        let port = u16::from_be_bytes([reply[4], reply[5]]);
        assert_ne!(port, 0);
        port
    }

    fn data(&self, port: u16) -> TcpStream {
        let data = TcpStream::connect((self.0.peer_addr().unwrap().ip(), port)).unwrap();
        data.set_read_timeout(Some(FAR)).unwrap();
        data
    }

    fn is_told_of_the_end(&mut self) -> String {
        let (kind, code, text) = self.receive();
        assert_eq!((kind, code), (1, 9));
        String::from_utf8(text).unwrap()
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A frame arrives, whole, as the first or a later message.
fn receives(data: &mut TcpStream, tap: &Tap, frame: &[u8]) {
    tap.capture(frame);
    let mut message = vec![0; 28 + frame.len()];
    data.read_exact(&mut message).unwrap();
    assert_eq!((message[1], &message[28..]), (7, frame));
}

#[test]
fn a_client_opens_the_data_connection_of_a_passive_tap() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    // Control goes on while the connection is awaited.
    assert_eq!(tap.capturing(), 0);
    assert_eq!(client.ask(9, &[]), [0; 16]);
    client.ask(5, &STARTCAP[12..]);
    let mut data = client.data(port);
    tap.until_capturing(1);
    for frame in [&b"first"[..], b"the second one"] {
        receives(&mut data, &tap, frame);
    }
    assert_eq!(client.ask(9, &[])[12..], [0, 0, 0, 2]);
    TcpStream::connect((client.0.peer_addr().unwrap().ip(), port)).unwrap_err();
    client.ask(10, &[]);
    assert_eq!(data.read(&mut [0; 8]).unwrap(), 0, "the end, and no reset");
    assert_eq!(client.ask(9, &[])[12..], [0, 0, 0, 2], "the last counts");
}

#[test]
fn the_tap_opens_the_data_connection_where_it_is_asked_to() {
    let (sensor, tap_config) = (Sensor::new(), open_config());
    let tap = Tap::start(ControlConfig { sensors: vec![sensor.target()], ..tap_config }, 0);
    // Active mode: with and without the flag. Passive: with it.
    for (mut client, flags) in
        [(sensor.accept().opened(), SERVER_OPEN), (tap.connect().opened(), SERVER_OPEN)]
    {
        let (data, port) = listener();
        assert_eq!(client.ask(4, &startcap(flags, port))[4..], [0; 4]);
        // It stood before the reply.
        let (mut data, _) = data.accept().unwrap();
        data.set_read_timeout(Some(FAR)).unwrap();
        receives(&mut data, &tap, b"frame");
        client.ask(10, &[]);
        assert_eq!(data.read(&mut [0; 8]).unwrap(), 0);
    }
    let mut client = sensor.accept().opened();
    let (data, port) = listener();
    client.ask(4, &startcap(0, port));
    let _open = data.accept().unwrap();
    assert_eq!(tap.capturing(), 1);
}

#[test]
fn a_data_port_where_nobody_listens_is_error_12_and_the_old_capture_goes_on() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    client.ask(4, &STARTCAP);
    let old = tap.sessions.load()[0].id;
    let (closed, port) = listener();
    drop(closed);
    for port in [port, 0] {
        client.send(4, &startcap(SERVER_OPEN, port));
        let (kind, code, text) = client.receive();
        assert_eq!((kind, code), (1, 12), "{}", String::from_utf8_lossy(&text));
    }
    assert_eq!(tap.sessions.load()[0].id, old);
    client.ask(10, &[]);
}

#[test]
fn captures_over_tcp_that_were_let_wait_are_refused_when_others_took_the_places() {
    let mut config = open_config();
    config.timing.data = FAR;
    let tap = Tap::start(config, 0);
    let opened = |_| tap.connect().opened();
    let mut awaited = tap.connect().opened();
    let port = awaited.start_passive();
    // A backlog that is full: the tap is connecting until the test accepts.
    let slow = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    slow.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    slow.listen(0).unwrap();
    let slow = TcpListener::from(slow);
    let slow_address = slow.local_addr().unwrap();
    let _in_the_way = TcpStream::connect(slow_address).unwrap();
    let mut opening = tap.connect().opened();
    opening.send(4, &startcap(SERVER_OPEN, slow_address.port()));
    let mut others: Vec<_> = (0..16).map(opened).collect();
    for other in &mut others {
        other.ask(4, &STARTCAP);
    }
    let _data = awaited.data(port);
    assert!(awaited.is_told_of_the_end().contains("Too many captures"));
    slow.accept().unwrap();
    let (kind, code, text) = opening.receive();
    assert_eq!((kind, code), (1, 12));
    assert!(String::from_utf8(text).unwrap().contains("16 captures run"));
    assert_eq!(tap.capturing(), 16);
    // Of those that have one, the next may be over TCP, and those that were refused may try again.
    let port = others[0].start_passive();
    let mut data = others[0].data(port);
    tap.until_capturing(16);
    receives(&mut data, &tap, b"frame");
    others[1].ask(10, &[]);
    awaited.ask(4, &STARTCAP);
}

#[test]
fn a_stranger_on_the_data_port_is_closed_and_the_client_still_expected() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let mut stranger = TcpStream::from(socket);
    stranger.set_read_timeout(Some(FAR)).unwrap();
    assert_eq!(stranger.read(&mut [0; 8]).unwrap_or(0), 0);
    assert_eq!(tap.capturing(), 0);
    let mut data = client.data(port);
    tap.until_capturing(1);
    receives(&mut data, &tap, b"frame");
}

#[test]
fn a_data_connection_that_does_not_come_is_told_and_control_goes_on() {
    let mut config = open_config();
    config.timing.data = Duration::from_millis(100);
    let tap = Tap::start(config, 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    assert!(client.is_told_of_the_end().contains("in time"));
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    client.send(10, &[]);
    assert_eq!(client.receive().1, 13, "there is no capture");
    client.ask(4, &STARTCAP);
}

#[test]
fn when_the_client_closes_the_data_connection_the_capture_ends_and_control_stays() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    for is_abrupt in [false, true] {
        let port = client.start_passive();
        let mut data = client.data(port);
        tap.until_capturing(1);
        receives(&mut data, &tap, b"frame");
        if is_abrupt {
            socket2::SockRef::from(&data).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(data);
        assert!(client.is_told_of_the_end().contains("data connection"));
        assert_eq!(tap.capturing(), 0);
        assert_eq!(client.ask(9, &[])[12..], [0, 0, 0, 1]);
    }
    client.ask(4, &STARTCAP);
}

#[test]
fn endcap_while_the_data_connection_is_awaited_takes_it_back() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    client.ask(10, &[]);
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    let old = client.start_passive();
    let new = client.start_passive();
    TcpStream::connect(("127.0.0.1", old)).unwrap_err();
    let mut data = client.data(new);
    tap.until_capturing(1);
    receives(&mut data, &tap, b"frame");
    // A capture over UDP in its place.
    client.ask(4, &STARTCAP);
    assert_eq!(data.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(tap.capturing(), 1);
}

#[test]
fn a_client_that_does_not_read_its_data_holds_up_nobody() {
    let mut config = open_config();
    config.timing.drain = Duration::from_millis(100);
    let tap = Tap::start(config, 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    let _unread = client.data(port);
    tap.until_capturing(1);
    let session = Arc::clone(&tap.sessions.load()[0]);
    let lost = || session.stats.dropped(crate::stats::SessionDrop::TcpBacklog);
    while lost() == 0 {
        tap.capture(&[7; 60_000]);
    }
    let stats = client.ask(9, &[]);
    assert_ne!(stats[8..12], [0; 4], "its losses are in the count of those for lack of buffer");
    tap.connect().capture(ANY_ETH);
    client.ask(10, &[]);
    client.ask(4, &STARTCAP);
}

#[test]
fn a_client_whose_end_takes_long_holds_up_nobody_elses() {
    let mut config = open_config();
    config.timing.drain = Duration::from_secs(3600);
    let tap = Tap::start(config, 0);
    let mut slow = tap.connect().opened();
    let port = slow.start_passive();
    let _unread = slow.data(port);
    tap.until_capturing(1);
    let session = Arc::clone(&tap.sessions.load()[0]);
    while session.stats.dropped(crate::stats::SessionDrop::TcpBacklog) == 0 {
        tap.capture(&[7; 60_000]);
    }
    slow.send(10, &[]);
    until("the slow end", || tap.capturing() == 0);
    let mut other = tap.connect().opened();
    for _ in 0..2 {
        other.ask(4, &STARTCAP);
    }
    other.ask(10, &[]);
    slow.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    slow.0.read_exact(&mut [0; 1]).unwrap_err();
}

#[test]
fn stats_of_a_capture_of_one_interface_count_what_was_there() {
    let tap = Tap::start(open_config(), 0);
    let mut clients = ["eth0", ANY_ETH].map(|interface| {
        let mut client = tap.connect();
        client.capture(interface);
        client
    });
    for _ in 0..3 {
        tap.capture(b"frame");
    }
    let received = clients.each_mut().map(|client| client.ask(9, &[])[..4].to_vec());
    assert_eq!(received[0], [0, 0, 0, 3], "and not the node's, which the test counts in tens");
    assert_eq!(received[1][3] % 10, 0);
    clients[0].ask(10, &[]);
    assert_eq!(clients[0].ask(9, &[])[..4], [0, 0, 0, 3], "the last counts");
}

#[test]
fn the_end_of_control_is_the_end_of_the_data() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect().opened();
    let port = client.start_passive();
    let mut data = client.data(port);
    tap.until_capturing(1);
    drop(client);
    assert_eq!(data.read(&mut [0; 8]).unwrap_or(0), 0);
    until("the end", || tap.capturing() == 0);

    let mut client = tap.connect().opened();
    let port = client.start_passive();
    client.send(6, &[]);
    assert!(client.is_closed());
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
}

/// In a network namespace of its own. Needs root.
#[test]
fn promiscuous_mode_is_entered_where_it_is_allowed_and_left_with_the_capture() {
    let test = thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: needs root for a network namespace ({error})");
            return;
        }
        let ip = |args: &str| {
            let output = Command::new("ip").args(args.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {args}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        ip("link set lo up");
        ip("link add eth0 type veth peer name eth1");
        let is_promiscuous = || ip("-d link show eth0").contains("promiscuity 1");
        for (allowed, interface, flags, expected) in [
            (true, "eth0", 3, true),
            (true, ANY_ETH, 3, true),
            (true, "eth0", 2, false),
            (false, "eth0", 3, false),
        ] {
            let tap = Tap::start(ControlConfig { allow_promisc: allowed, ..open_config() }, 0);
            let ifindex = nix::net::if_::if_nametoindex("eth0").unwrap();
            let mut view = view_with("eth0");
            let mut link = view.links.remove(&2).unwrap();
            link.ifindex = ifindex;
            view.links = [(ifindex, link)].into();
            tap.view.replace(view);
            let mut client = tap.connect();
            client.ask(8, &[0; 8]);
            client.ask(3, interface.as_bytes());
            client.ask(4, &startcap(flags, 4000));
            assert_eq!(is_promiscuous(), expected, "{allowed} {interface} {flags}");
            // Twice is once, and the end is the end.
            client.ask(4, &startcap(flags, 4000));
            assert_eq!(is_promiscuous(), expected);
            client.ask(10, &[]);
            assert!(!is_promiscuous());
        }
    });
    test.join().unwrap();
}
