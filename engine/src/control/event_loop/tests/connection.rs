//! One connection stepped by the test, at times of its own making.

use std::collections::HashMap;

use mio::Interest;

use super::passive::open_config;
use super::*;
use crate::control::active::{Role, Sensor as Connector};
use crate::control::connection::{Connection, Mode, Over, Peer};
use crate::rpcap::ErrorCode;

const TOKEN: Token = Token(0);

/// What connections work on, and the poll that their sockets are registered with.
fn context(config: ControlConfig) -> (Poll, Context) {
    let poll = Poll::new().unwrap();
    let cx = Context {
        registry: poll.registry().try_clone().unwrap(),
        guesses: RefCell::new(Guesses::new(config.timing.forget)),
        stats: Arc::default(),
        said_promisc: Cell::new(false),
        client_captures: Arc::default(),
        config,
        sessions: Sessions::new(Vec::new()),
        view: Shared::new(view_with("eth0")),
        capture_stats: Box::new(Stats::default),
        interfaces: HashMap::new(),
    };
    (poll, cx)
}

/// A client's end, and the tap's.
fn accepted(cx: &Context, now: Instant) -> (TcpStream, Connection) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // What waits to be read is then more than one step takes.
    socket2::SockRef::from(&listener).set_recv_buffer_size(4 << 20).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, address) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut socket = mio::net::TcpStream::from_std(socket);
    let interest = Interest::READABLE | Interest::WRITABLE;
    cx.registry.register(&mut socket, TOKEN, interest).unwrap();
    let peer = Peer { mode: Mode::Passive, address, sensor: 0 };
    (client, Connection::new(socket, peer, TOKEN, cx, now))
}

/// Writes what the kernel takes without anybody reading.
fn fill(client: &mut TcpStream) {
    client.set_nonblocking(true).unwrap();
    while client.write(&[0; 64 << 10]).is_ok_and(|len| len > 0) {}
}

#[test]
fn a_peer_that_was_sent_away_and_never_pauses_is_left_in_time_and_costs_little() {
    let (_poll, cx) = context(open_config());
    let start = Instant::now();
    let (mut client, mut connection) = accepted(&cx, start);
    fill(&mut client);
    connection.refuse(ErrorCode::Network, "go away", start);
    for ms in 0..500 {
        let now = start + Duration::from_millis(ms);
        let due = connection.step(now, &cx).unwrap().expect("it is looked at again");
        assert!(due > now, "not at once");
        fill(&mut client);
    }
    let over = connection.step(start + Duration::from_millis(500), &cx).unwrap_err();
    assert!(matches!(over, Over::Refused("go away")), "{over}");
}

#[test]
fn a_peer_that_never_pauses_has_no_more_time_to_authenticate_than_others() {
    let (_poll, cx) = context(open_config());
    let start = Instant::now();
    let (mut client, mut connection) = accepted(&cx, start);
    // A message of which the tap reads, and throws away, nearly a megabyte.
    client.write_all(&[0, 2, 0, 0, 0, 0x0f, 0, 0]).unwrap();
    fill(&mut client);
    let late = start + cx.config.timing.client_auth;
    connection.step(late, &cx).unwrap();
    assert!(connection.is_ending(), "though it still talks");
    let over = connection.step(late + Duration::from_millis(500), &cx).unwrap_err();
    assert!(matches!(over, Over::NoAuth), "{over}");
}

#[test]
fn a_late_answer_of_the_name_server_ends_nobodys_capture() {
    let far = Sensor::new();
    let (mut poll, cx) = context(config(&[far.target()]));
    let (answers, _resolved) = mpsc::channel();
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).unwrap());
    let resolver = Resolver { answers, waker };
    let states = SensorStates::new([far.target().to_string()].into_iter());
    let now = Instant::now();
    let role = Role { sensor: 0, share: None };
    let mut sensor = Connector::new(0, role, far.target(), &quick(), states.clone(), now);
    let mut events = Events::with_capacity(8);
    let mut step = |sensor: &mut Connector| {
        poll.poll(&mut events, Some(Duration::from_millis(10))).unwrap();
        events.iter().for_each(|event| sensor.note(event, false));
        sensor.step(now, &cx, &cx.registry, &resolver);
    };
    until("the connection", || {
        step(&mut sensor);
        states.load()[0].state == SensorState::Connected
    });
    let mut client = far.accept();
    for (kind, payload) in [(8, &[0; 8][..]), (3, ANY_ETH.as_bytes()), (4, &STARTCAP)] {
        client.send(kind, payload);
    }
    until("the capture", || {
        step(&mut sensor);
        cx.sessions.load().len() == 1
    });
    assert!((0..100).all(|number| !sensor.awaits(number)), "it is connected");
    // Even one that came through would leave no capture behind.
    sensor.resolved(Err(io::Error::other("a late answer")), &cx, now);
    assert_eq!(states.load()[0].state, SensorState::Backoff);
    assert!(cx.sessions.load().is_empty(), "a capture without a connection");
}
