//! The control thread against sensors played by the tests, on loopback.
//!
//! Waits have a far deadline and poll for what they wait for; nothing depends on a duration.

mod connection;
mod data;
mod passive;
mod reconfigured;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use super::*;
use crate::control::{SensorState, SensorTarget, Timing};
use crate::rpcap::ANY_ETH;
use crate::session::Encoding;
use crate::sys;

mod balance;

const FAR: Duration = Duration::from_secs(30);

/// A sensor: a listener, and the protocol spoken by hand.
struct Sensor(TcpListener);

impl Sensor {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn target(&self) -> SensorTarget {
        let port = self.0.local_addr().unwrap().port();
        SensorTarget { host: "127.0.0.1".to_owned(), port, interface: None }
    }

    /// The tap's next connection.
    fn accept(&self) -> Client {
        self.0.set_nonblocking(true).unwrap();
        let mut accepted = None;
        until("a connection", || {
            accepted = self.0.accept().ok();
            accepted.is_some()
        });
        let (stream, _) = accepted.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(FAR)).unwrap();
        Client(stream)
    }
}

/// The sensor's end of a control connection.
struct Client(TcpStream);

impl Client {
    fn send(&mut self, kind: u8, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.0.write_all(&[&[0, kind, 0, 0][..], &len, payload].concat()).unwrap();
    }

    fn receive(&mut self) -> (u8, u16, Vec<u8>) {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).unwrap();
        let len = u32::from_be_bytes(header[4..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(len).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        (header[1], u16::from_be_bytes([header[2], header[3]]), payload)
    }

    /// A request and the payload of its reply, which must be one.
    fn ask(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        self.send(kind, payload);
        let (reply, code, payload) = self.receive();
        assert_eq!(reply, kind | 0x80, "ERROR {code}: {}", String::from_utf8_lossy(&payload));
        payload
    }

    fn capture(&mut self, interface: &str) {
        self.ask(8, &[0; 8]);
        self.ask(3, interface.as_bytes());
        self.ask(4, &STARTCAP);
    }

    /// Reads to the end; true if the tap closed in order.
    fn is_closed(&mut self) -> bool {
        self.0.read_to_end(&mut Vec::new()).is_ok()
    }
}

/// Snaplen 65535, UDP to port 4000, a filter that accepts everything.
const STARTCAP: [u8; 28] = [
    0, 0, 0xff, 0xff, 0, 0, 0, 250, 0, 2, 0x0f, 0xa0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 0, 4, 0,
    0,
];

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + FAR;
    while !is_so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn quick() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        backoff_min: ms(20),
        backoff_max: ms(80),
        close_pause: ms(50),
        drain: FAR,
        ..Timing::default()
    }
}

fn config(sensors: &[SensorTarget]) -> ControlConfig {
    ControlConfig {
        sensors: sensors.to_vec(),
        is_ipv4_only: false,
        sharing: crate::control::Sharing::default(),
        encoding: Encoding::Stream,
        datagram_bytes: None,
        snaplen: crate::rpcap::MAX_SNAPLEN,
        addresses: crate::control::SensorAddresses::default(),
        listen: Vec::new(),
        allowed_hosts: crate::control::AllowedHosts::default(),
        access: crate::control::Access::default(),
        allow_promisc: false,
        flows: crate::control::OwnFlows::default(),
        preselected: None,
        timing: quick(),
    }
}

fn view_with(name: &str) -> View {
    crate::control::listing::tests::node(&[name])
}

struct Tap {
    control: Control,
    sessions: Arc<Sessions>,
    view: Shared<View>,
}

impl Tap {
    /// A tap whose one worker flushes when the test says so; with none, at once.
    fn start(config: ControlConfig, workers: usize) -> Self {
        let wakers = (0..workers).map(|_| sys::Waker::new().unwrap()).collect();
        let sessions = Sessions::new(wakers);
        let view = Shared::new(view_with("eth0"));
        let received = std::sync::atomic::AtomicU32::new(100);
        let stats = move || Stats {
            received: received.fetch_add(10, std::sync::atomic::Ordering::Relaxed),
            ..Stats::default()
        };
        let control = Control::start(config, Arc::clone(&sessions), view.clone(), stats).unwrap();
        Self { control, sessions, view }
    }

    fn capturing(&self) -> usize {
        self.sessions.load().len()
    }

    fn until_status(&self, sensor: usize, what: &str, is_so: impl Fn(&SensorStatus) -> bool) {
        until(what, || is_so(&self.control.state()[sensor]));
    }

    /// A capture of `any-eth`, with this test as the worker that takes it over.
    fn start_capture(&self, client: &mut Client) {
        client.ask(8, &[0; 8]);
        client.ask(3, ANY_ETH.as_bytes());
        let running = self.capturing();
        client.send(4, &STARTCAP);
        until("the capture", || self.capturing() > running);
        self.flush();
        assert_eq!(client.receive().0, 0x84);
    }

    /// Plays the worker: it has flushed whatever was ended up to now.
    fn flush(&self) {
        self.sessions.mark_seen(0, self.sessions.reader().generation());
    }
}

#[test]
fn a_whole_session_is_served() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    assert!(client.ask(2, &[]).windows(7).any(|bytes| bytes == b"any-eth"));
    assert_eq!(client.ask(3, b"any-eth"), [0, 0, 0, 1, 0, 0, 0, 0]);
    tap.until_status(0, "connected", |status| status.state == SensorState::Connected);
    client.ask(11, &[1, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(client.ask(4, &STARTCAP), [1, 0, 0, 0, 0, 0, 0, 0], "16 MiB, no port");

    let session = Arc::clone(&tap.sessions.load()[0]);
    assert_eq!(session.spec.peer, "127.0.0.1:4000".parse().unwrap());
    assert_eq!((session.spec.snaplen, session.spec.sampling.value), (65_535, 3));
    assert_eq!(session.spec.interface, None);
    tap.until_status(0, "capturing", |status| status.state == SensorState::Capturing);

    session.stats.sent.store((1 << 32) + 4, std::sync::atomic::Ordering::Relaxed);
    let stats = [0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
    assert_eq!(client.ask(9, &[]), stats, "since STARTCAP, not since ever");
    client.ask(5, &STARTCAP[12..]);
    client.ask(10, &[]);
    assert_eq!(tap.capturing(), 0);
    assert_eq!(client.ask(9, &[])[12..], [0, 0, 0, 4], "the last capture's counts");

    client.ask(3, b"eth0");
    client.ask(4, &STARTCAP);
    assert_eq!(tap.sessions.load()[0].spec.interface.as_deref(), Some("eth0"));
    client.send(6, &[]);
    assert!(client.is_closed());
    tap.until_status(0, "backoff", |status| status.failures == 1);
    assert_eq!(tap.capturing(), 0, "CLOSE ends the capture");
    sensor.accept();
    let status = &tap.control.state()[0];
    assert_eq!((status.captures, status.last_error.is_some()), (2, true));
}

#[test]
fn a_dead_sensor_is_connected_to_again() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    for round in 0..5 {
        let mut client = sensor.accept();
        client.capture(ANY_ETH);
        assert_eq!(tap.capturing(), 1);
        drop(client);
        tap.until_status(0, "the death", |status| status.failures == round + 1);
        assert_eq!(tap.capturing(), 0);
    }
    sensor.accept();
    tap.until_status(0, "six connections", |status| status.connects == 6);
    assert_eq!(tap.control.state()[0].reconnects, 5);
}

#[test]
fn close_before_auth_is_a_failure_like_any_other() {
    let sensor = Sensor::new();
    let mut config = config(&[sensor.target()]);
    config.timing.close_pause = Duration::from_secs(3600);
    let tap = Tap::start(config, 0);
    for _ in 0..3 {
        sensor.accept().send(6, &[]);
    }
    tap.until_status(0, "the failures", |status| status.failures >= 2);
}

#[test]
fn a_sensor_that_is_not_there_is_tried_again_with_growing_waits() {
    let sensor = Sensor::new();
    let target = sensor.target();
    drop(sensor);
    let tap = Tap::start(config(std::slice::from_ref(&target)), 0);
    let started = Instant::now();
    tap.until_status(0, "some failures", |status| status.failures >= 5);
    // 20 + 40 + 40 + 40 ms at least, whatever the machine's load.
    assert!(started.elapsed() >= Duration::from_millis(140));
    let status = &tap.control.state()[0];
    assert_eq!((status.connects, status.peer), (0, None));
    assert!(status.last_error.as_ref().unwrap().contains("cannot connect"));

    let late = Sensor(TcpListener::bind(("127.0.0.1", target.port)).unwrap());
    late.accept().capture(ANY_ETH);
}

#[test]
fn a_name_is_resolved_and_one_that_does_not_exist_is_no_end() {
    let sensor = Sensor::new();
    let named = SensorTarget { host: "localhost".to_owned(), ..sensor.target() };
    let missing =
        SensorTarget { host: "no.such.name.invalid".to_owned(), port: 2003, interface: None };
    let tap = Tap::start(config(&[missing, named]), 0);
    sensor.accept().capture(ANY_ETH);
    tap.until_status(0, "failures", |status| status.failures >= 1);
    let error = tap.control.state()[0].last_error.clone().unwrap();
    assert!(error.contains("cannot resolve"), "{error}");
}

#[test]
fn one_sensors_death_does_not_touch_the_others_capture() {
    let (steady, dying) = (Sensor::new(), Sensor::new());
    let tap = Tap::start(config(&[steady.target(), dying.target()]), 0);
    let mut client = steady.accept();
    client.capture(ANY_ETH);
    let session = tap.sessions.load()[0].id;
    for round in 1..=4 {
        let mut other = dying.accept();
        other.capture(ANY_ETH);
        assert_eq!(tap.capturing(), 2);
        // In the middle of a message.
        other.0.write_all(&[0, 4, 0, 0, 0, 0, 0, 40, 1, 2, 3]).unwrap();
        drop(other);
        tap.until_status(1, "the death", |status| status.failures == round);
        let left = tap.sessions.load();
        assert_eq!((left.len(), left[0].id), (1, session));
        client.ask(9, &[]);
    }
    assert_eq!(tap.control.state()[0].connects, 1);
}

#[test]
fn garbage_is_refused_and_the_tap_comes_back() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    let mut client = sensor.accept();
    client.0.write_all(b"GET / HTTP/1.1\r\nHost: tap\r\n\r\n").unwrap();
    let (kind, code, _) = client.receive();
    assert_eq!((kind, code), (1, 17));
    assert!(client.is_closed(), "the ERROR arrives before the end, and no reset instead");
    drop(client);
    tap.until_status(0, "the failure", |status| status.failures == 1);
    sensor.accept().capture(ANY_ETH);
}

#[test]
fn a_refusal_by_the_sensor_is_a_failure_with_its_text() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    let mut client = sensor.accept();
    client.0.write_all(b"\0\x01\0\x0b\0\0\0\x08go away!").unwrap();
    assert!(client.is_closed());
    drop(client);
    tap.until_status(0, "the failure", |status| status.failures == 1);
    let error = tap.control.state()[0].last_error.clone().unwrap();
    assert!(error.contains("error 11") && error.contains("go away!"), "{error}");
}

#[test]
fn a_sensor_that_never_authenticates_is_told_and_left() {
    let sensor = Sensor::new();
    let mut config = config(&[sensor.target()]);
    config.timing.auth = Duration::from_millis(50);
    let tap = Tap::start(config, 0);
    let mut client = sensor.accept();
    let (kind, code, _) = client.receive();
    assert_eq!((kind, code), (1, 2));
    assert!(client.is_closed());
    drop(client);
    tap.until_status(0, "the failure", |status| status.failures == 1);
    sensor.accept();
}

#[test]
fn without_null_auth_a_sensor_is_refused_but_kept() {
    let sensor = Sensor::new();
    let mut config = config(&[sensor.target()]);
    config.access.null = crate::control::NullAuth::Nobody;
    let tap = Tap::start(config, 0);
    let mut client = sensor.accept();
    for _ in 0..2 {
        client.send(8, &[0; 8]);
        let (kind, code, _) = client.receive();
        assert_eq!((kind, code), (1, 18));
    }
    assert_eq!(tap.control.state()[0].failures, 0);
}

#[test]
fn a_peer_that_does_not_read_is_left_after_the_stall_time() {
    let sensor = Sensor::new();
    let mut config = config(&[sensor.target()]);
    config.timing.stall = Duration::from_millis(200);
    let tap = Tap::start(config, 0);
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    client.0.set_write_timeout(Some(FAR)).unwrap();
    // Lists without end, until the tap has had enough and our writes fail.
    let requests = [0, 2, 0, 0, 0, 0, 0, 0].repeat(1000);
    while client.0.write_all(&requests).is_ok() {}
    tap.until_status(0, "the failure", |status| status.failures == 1);
    let error = tap.control.state()[0].last_error.clone().unwrap();
    assert!(error.contains("does not read"), "{error}");
}

#[test]
fn an_unknown_interface_is_refused_in_clear_text() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    client.send(3, b"eth9");
    let (kind, code, text) = client.receive();
    assert_eq!((kind, code, &*text), (1, 6, &b"The interface does not exist"[..]));
    assert_eq!(tap.capturing(), 0);
}

#[test]
fn endcap_is_answered_when_workers_have_flushed() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 1);
    let mut client = sensor.accept();
    tap.start_capture(&mut client);
    client.send(10, &[]);
    until("the end of the capture", || tap.capturing() == 0);
    client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    client.0.read_exact(&mut [0; 1]).unwrap_err();
    tap.flush();
    client.0.set_read_timeout(Some(FAR)).unwrap();
    assert_eq!(client.receive(), (0x8a, 0, Vec::new()));
}

#[test]
fn startcap_is_answered_when_workers_have_taken_the_capture_over() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 1);
    let mut client = sensor.accept();
    client.ask(8, &[0; 8]);
    client.ask(3, ANY_ETH.as_bytes());
    client.send(4, &STARTCAP);
    until("the capture", || tap.capturing() == 1);
    client.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    client.0.read_exact(&mut [0; 1]).unwrap_err();
    let state = tap.control.state()[0].state;
    assert_eq!(state, SensorState::Connected, "who asks /readyz counts on the next packet");
    tap.flush();
    client.0.set_read_timeout(Some(FAR)).unwrap();
    assert_eq!(client.receive().0, 0x84);
    tap.until_status(0, "capturing", |status| status.state == SensorState::Capturing);
}

#[test]
fn a_second_startcap_waits_for_the_first_ones_last_datagram() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 1);
    let mut client = sensor.accept();
    tap.start_capture(&mut client);
    let first = tap.sessions.load()[0].id;
    client.send(4, &STARTCAP);
    until("the end of the first capture", || tap.capturing() == 0);
    tap.flush();
    until("the second capture", || tap.capturing() == 1);
    tap.flush();
    assert_eq!(client.receive().0, 0x84);
    assert_ne!(tap.sessions.load()[0].id, first);
}

#[test]
fn a_capture_whose_interface_disappears_ends_with_error_9() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 0);
    let mut client = sensor.accept();
    client.capture("eth0");
    tap.view.replace(view_with("eth1"));
    let (kind, code, text) = client.receive();
    assert_eq!((kind, code, &*text), (1, 9, &b"The interface disappeared"[..]));
    assert_eq!(tap.capturing(), 0);
    client.ask(3, b"eth1");
    client.ask(4, &STARTCAP);
}

#[test]
fn shutdown_ends_captures_waits_for_workers_and_closes() {
    let (one, two) = (Sensor::new(), Sensor::new());
    let tap = Tap::start(config(&[one.target(), two.target()]), 1);
    let mut clients = [one.accept(), two.accept()];
    clients.iter_mut().for_each(|client| tap.start_capture(client));
    let Tap { control, sessions, .. } = tap;
    let worker = thread::spawn(move || {
        until("the end of the captures", || sessions.load().is_empty());
        sessions.mark_seen(0, sessions.reader().generation());
    });
    assert!(control.shutdown(FAR));
    worker.join().unwrap();
    assert!(clients.iter_mut().all(Client::is_closed));
}

#[test]
fn shutdown_does_not_wait_for_a_stuck_worker_beyond_its_limit() {
    let sensor = Sensor::new();
    let tap = Tap::start(config(&[sensor.target()]), 1);
    let mut client = sensor.accept();
    tap.start_capture(&mut client);
    assert!(!tap.control.shutdown(Duration::from_millis(20)));
    assert!(client.is_closed());
}

#[test]
fn too_many_sensors_are_refused() {
    let target = SensorTarget { host: "127.0.0.1".to_owned(), port: 1, interface: None };
    let config = config(&vec![target; MAX_SENSORS + 1]);
    let view = Shared::new(View::default());
    let error = Control::start(config, Sessions::new(Vec::new()), view, Stats::default);
    assert!(error.unwrap_err().to_string().contains("65 sensors, at most 64"));
}

/// Runs in a network namespace of its own, where loopback can be taken down: the sensor then
/// vanishes without FIN or RST. Needs root.
#[test]
fn a_silent_half_open_peer_is_noticed() {
    let test = thread::spawn(|| {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: needs root for a network namespace ({error})");
            return;
        }
        let loopback = |state: &str| {
            let status = Command::new("ip").args(["link", "set", "lo", state]).status().unwrap();
            assert!(status.success());
        };
        loopback("up");
        let sensor = Sensor::new();
        let mut config = config(&[sensor.target()]);
        config.timing.silence = Duration::from_secs(3);
        let tap = Tap::start(config, 0);
        let mut client = sensor.accept();
        client.capture(ANY_ETH);
        loopback("down");
        tap.until_status(0, "the death", |status| status.failures >= 1);
        assert_eq!(tap.capturing(), 0, "no datagrams to a peer that is gone");
        loopback("up");
        sensor.accept();
    });
    test.join().unwrap();
}
