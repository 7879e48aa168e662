//! One connection stepped by the test, at times of its own making.

use std::collections::HashMap;
use std::net::SocketAddr;

use mio::Interest;

use super::passive::open_config;
use super::*;
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
    // A message of which the tap reads, and throws away, a megabyte.
    client.write_all(&[0, 2, 0, 0, 0, 0x10, 0, 0]).unwrap();
    fill(&mut client);
    let late = start + cx.config.timing.client_auth;
    connection.step(late, &cx).unwrap();
    assert!(connection.is_ending(), "though it still talks");
    let over = connection.step(late + Duration::from_millis(500), &cx).unwrap_err();
    assert!(matches!(over, Over::NoAuth), "{over}");
}
