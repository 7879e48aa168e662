//! Clients that connect to the tap.

mod access;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::control::passive::MAX_CLIENTS;
use crate::control::{AllowedHosts, ListenAddress, NullAuth, OwnFlows, Passwords};

/// A tap that listens on loopback and lets everybody in.
pub(super) fn open_config() -> ControlConfig {
    let mut config = config(&[]);
    config.listen = vec![ListenAddress { ip: Some(IpAddr::from([127, 0, 0, 1])), port: 0 }];
    config.access.null = NullAuth::Everybody;
    config
}

fn with_password() -> ControlConfig {
    let mut config = open_config();
    config.access.null = NullAuth::Sensors;
    config.access.passwords = Passwords::parse("ann:secret").unwrap();
    config
}

/// A tap that cannot wait for its own.
fn patient(mut config: ControlConfig) -> ControlConfig {
    config.timing.refusal = FAR;
    config
}

impl Tap {
    pub(super) fn address(&self) -> SocketAddr {
        self.control.listening()[0]
    }

    pub(super) fn connect(&self) -> Client {
        self.connect_from([127, 0, 0, 1])
    }

    pub(super) fn connect_from(&self, host: [u8; 4]) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((host, 0)).into()).unwrap();
        socket.connect(&self.address().into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(FAR)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(stream)
    }

    fn count(&self, of: impl Fn(&ControlStats) -> &std::sync::atomic::AtomicU64) -> u64 {
        of(&self.control.stats()).load(Ordering::Relaxed)
    }

    fn clients(&self) -> u64 {
        self.count(|stats| &stats.clients)
    }
}

impl Client {
    fn log_in(&mut self, user: &str, password: &str) -> (u8, u16) {
        let len = |text: &str| u16::try_from(text.len()).unwrap().to_be_bytes();
        let payload =
            [&[0, 1, 0, 0][..], &len(user), &len(password), user.as_bytes(), password.as_bytes()];
        self.send(8, &payload.concat());
        let (kind, code, _) = self.receive();
        (kind, code)
    }

    /// An ERROR, then the end.
    fn is_refused_with(&mut self, code: u16) -> String {
        let (kind, seen, text) = self.receive();
        assert_eq!((kind, seen), (1, code), "{}", String::from_utf8_lossy(&text));
        assert!(self.is_closed(), "the ERROR arrives before the end, and no reset instead");
        String::from_utf8(text).unwrap()
    }
}

#[test]
fn a_client_that_connects_is_served_like_a_sensor() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect();
    client.ask(8, &[0; 8]);
    assert!(client.ask(2, &[]).windows(7).any(|bytes| bytes == b"any-eth"));
    tap.until_status(0, "connected", |status| status.state == SensorState::Connected);
    client.ask(3, b"eth0");
    client.ask(11, &[1, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(client.ask(4, &STARTCAP), [1, 0, 0, 0, 0, 0, 0, 0], "16 MiB, no port");
    let session = Arc::clone(&tap.sessions.load()[0]);
    assert_eq!(session.spec.peer, "127.0.0.1:4000".parse().unwrap());
    assert_eq!((session.spec.sensor, session.spec.longest_wait_ns), (0, 250_000_000));
    tap.until_status(0, "capturing", |status| status.state == SensorState::Capturing);
    client.ask(5, &STARTCAP[12..]);
    client.ask(9, &[]);
    client.ask(10, &[]);
    client.ask(4, &STARTCAP);
    client.send(6, &[]);
    assert!(client.is_closed());
    until("the end of the capture", || tap.capturing() == 0);
    tap.until_status(0, "nobody", |status| status.state == SensorState::Connecting);
    let status = &tap.control.state()[0];
    assert_eq!((&*status.target, status.captures, status.failures), ("passive", 2, 0));
}

#[test]
fn unknown_clients_get_standard_datagrams_and_sensors_of_ours_the_configured_form() {
    let tap = Tap::start(open_config(), 0);
    for (flags, expected) in [(0x02, Encoding::Plain), (0x8002, Encoding::Stream)] {
        let mut client = tap.connect();
        client.ask(8, &[0; 8]);
        client.ask(3, b"any-eth");
        let mut request = STARTCAP;
        request[8..10].copy_from_slice(&u16::to_be_bytes(flags));
        client.ask(4, &request);
        assert_eq!(tap.sessions.load()[0].spec.encoding, expected);
        client.ask(10, &[]);
    }
}

#[test]
fn byte_by_byte_a_client_is_served_the_same() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect();
    let messages: [(u8, &[u8]); 5] =
        [(8, &[0; 8]), (2, &[]), (3, b"any-eth"), (4, &STARTCAP), (9, &[])];
    for (kind, payload) in messages {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        for byte in [&[0, kind, 0, 0][..], &len, payload].concat() {
            client.0.write_all(&[byte]).unwrap();
        }
        assert_eq!(client.receive().0, kind | 0x80);
    }
    assert_eq!(tap.capturing(), 1);
}

#[test]
fn several_clients_have_captures_of_their_own() {
    let tap = Tap::start(open_config(), 0);
    let mut clients: Vec<_> = (0..5).map(|_| tap.connect()).collect();
    clients.iter_mut().for_each(|client| client.capture(ANY_ETH));
    assert_eq!(tap.capturing(), 5);
    drop(clients.remove(2));
    until("the end of one", || tap.capturing() == 4);
    let mut broken = clients.remove(0);
    broken.0.write_all(b"\x07garbage").unwrap();
    until("the end of another", || tap.capturing() == 3);
    for client in &mut clients {
        client.ask(9, &[]);
        client.ask(10, &[]);
    }
}

#[test]
fn a_sensor_and_a_client_are_served_at_once() {
    let sensor = Sensor::new();
    let mut both = open_config();
    both.sensors = vec![sensor.target()];
    both.access.null = NullAuth::Sensors;
    both.access.passwords = Passwords::default();
    let tap = Tap::start(both, 0);
    sensor.accept().capture(ANY_ETH);
    let mut client = tap.connect();
    client.send(8, &[0; 8]);
    assert_eq!(client.receive().1, 18, "null is for the sensor only");
    let targets: Vec<_> = tap.control.state().into_iter().map(|status| status.target).collect();
    assert_eq!(targets, [sensor.target().to_string(), "passive".to_owned()]);
}

#[test]
fn too_many_captures_of_clients_are_refused_and_the_others_go_on() {
    let tap = Tap::start(open_config(), 0);
    let capturing = |_| {
        let mut client = tap.connect();
        client.capture(ANY_ETH);
        client
    };
    let mut clients: Vec<_> = (0..16).map(capturing).collect();
    let mut last = tap.connect();
    last.ask(8, &[0; 8]);
    last.ask(3, b"any-eth");
    last.send(4, &STARTCAP);
    assert_eq!(last.receive().1, 12);
    // One that has a capture may start another in its place.
    clients[0].ask(4, &STARTCAP);
    clients[1].ask(10, &[]);
    last.ask(4, &STARTCAP);
    assert_eq!(tap.capturing(), 16);
}

#[test]
fn who_has_no_capture_must_say_something_now_and_then() {
    let mut config = open_config();
    config.timing.client_idle = Duration::from_millis(200);
    let tap = Tap::start(config, 0);
    let mut capturing = tap.connect();
    capturing.capture(ANY_ETH);
    for _ in 0..3 {
        let mut idle = tap.connect();
        idle.ask(8, &[0; 8]);
        idle.is_refused_with(14);
    }
    capturing.ask(9, &[]);
    capturing.ask(10, &[]);
    capturing.is_refused_with(14);
    assert_eq!(tap.count(|stats| &stats.timeouts), 4);
}

#[test]
fn a_flood_of_connections_costs_those_that_authenticated_nothing() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect();
    client.capture(ANY_ETH);
    let mut idle = tap.connect_from([127, 0, 0, 2]);
    idle.ask(8, &[0; 8]);
    let flood: Vec<_> = (0..300u16)
        .map(|n| tap.connect_from([127, 0, 1, u8::try_from(n % 200).unwrap() + 1]))
        .collect();
    until("the flood", || tap.count(|stats| &stats.connections) == 302);
    assert!(tap.clients() <= u64::try_from(MAX_CLIENTS).unwrap());
    client.ask(9, &[]);
    idle.ask(2, &[]);
    assert!(tap.count(|stats| &stats.refused_connections) >= 300 - 62);
    // In the midst of it there is room for who comes and authenticates.
    tap.connect_from([127, 0, 0, 3]).ask(8, &[0; 8]);
    drop(flood);
    until("the end of the flood", || tap.clients() <= 3);
    assert_eq!(tap.capturing(), 1);
}

#[test]
fn one_host_may_have_only_so_many_connections_before_it_authenticates() {
    let tap = Tap::start(open_config(), 0);
    let mut strangers: Vec<_> = (0..8).map(|_| tap.connect()).collect();
    until("eight", || tap.clients() == 8);
    tap.connect().is_refused_with(1);
    tap.connect_from([127, 0, 0, 2]).ask(8, &[0; 8]);
    strangers[0].ask(8, &[0; 8]);
    strangers.push(tap.connect());
    strangers.last_mut().unwrap().ask(8, &[0; 8]);
}

#[test]
fn when_all_places_are_taken_by_clients_that_authenticated_the_next_is_closed() {
    let tap = Tap::start(open_config(), 0);
    let clients: Vec<_> = (0..MAX_CLIENTS)
        .map(|_| {
            let mut client = tap.connect();
            client.ask(8, &[0; 8]);
            client
        })
        .collect();
    let mut late = tap.connect();
    let _reset_or_end = late.0.read_to_end(&mut Vec::new());
    until("the refusal", || tap.count(|stats| &stats.refused_connections) == 1);
    drop(clients);
    until("room", || tap.clients() == 0);
    tap.connect().ask(8, &[0; 8]);
}

#[test]
fn a_tls_client_is_told_so_and_left() {
    let tap = Tap::start(open_config(), 0);
    let mut client = tap.connect();
    client.0.write_all(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).unwrap();
    let mut seen = Vec::new();
    client.0.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, [0x15, 3, 1, 0, 2, 2, 40]);
}

#[test]
fn an_ipv4_client_of_a_listener_on_every_address_gets_ipv4_data() {
    let mut config = open_config();
    config.listen = vec![ListenAddress { ip: None, port: 0 }];
    let tap = Tap::start(config, 0);
    let stream = TcpStream::connect(("127.0.0.1", tap.address().port())).unwrap();
    stream.set_read_timeout(Some(FAR)).unwrap();
    Client(stream).capture(ANY_ETH);
    assert_eq!(tap.sessions.load()[0].spec.peer, "127.0.0.1:4000".parse().unwrap());
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = open_config();
    config.listen[0].port = taken.local_addr().unwrap().port();
    let (view, sessions) = (Shared::new(View::default()), Sessions::new(Vec::new()));
    let error = Control::start(config, sessions, view, Stats::default).unwrap_err();
    let expected = format!("cannot listen on {}", taken.local_addr().unwrap());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[test]
fn a_clients_connections_are_excluded_from_the_first_startcap_to_the_last_end() {
    let flows = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&flows);
    let mut config = open_config();
    config.flows = OwnFlows::new(move |flow, begins| {
        let mut flows = told.lock().unwrap();
        match begins {
            true => flows.push(flow),
            false => {
                let at = flows.iter().position(|other| *other == flow).unwrap();
                flows.swap_remove(at);
            }
        }
    });
    let tap = Tap::start(config, 0);
    let mut client = tap.connect();
    client.ask(8, &[0; 8]);
    client.ask(3, b"any-eth");
    assert!(flows.lock().unwrap().is_empty(), "strangers and lists rebuild nothing");
    let port = client.0.local_addr().unwrap().port();
    for _ in 0..2 {
        client.ask(4, &STARTCAP);
        let mut seen: Vec<_> =
            flows.lock().unwrap().iter().map(|flow| (flow.peer_port, flow.tcp_port)).collect();
        seen.sort_unstable();
        let mut expected = [(4000, None), (port, Some(tap.address().port()))];
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }
    client.ask(10, &[]);
    assert!(flows.lock().unwrap().is_empty());
    client.ask(4, &STARTCAP);
    drop(client);
    until("the end", || flows.lock().unwrap().is_empty());
}

#[test]
fn a_clients_data_are_excluded_before_the_first_probe_leaves() {
    // An address of its own, where no other test's probes arrive.
    let host = [127, 0, 0, 77];
    let probes = std::net::UdpSocket::bind((IpAddr::from(host), crate::rpcap::PROBE_PORT)).unwrap();
    probes.set_nonblocking(true).unwrap();
    let at_beginning = probes.try_clone().unwrap();
    let (early, seen) = mpsc::channel();
    let mut config = open_config();
    config.flows = OwnFlows::new(move |flow, begins| {
        if begins && flow.tcp_port.is_none() {
            early.send(at_beginning.recv(&mut [0; 8]).is_ok()).unwrap();
        }
    });
    let tap = Tap::start(config, 0);
    let mut client = tap.connect_from(host);
    client.ask(8, &[0; 8]);
    client.ask(3, ANY_ETH.as_bytes());
    let mut request = STARTCAP;
    request[8..10].copy_from_slice(&[0x80, 2]);
    client.ask(4, &request);
    assert!(!seen.recv_timeout(FAR).unwrap(), "a probe left before");
    let mut first = [0; 8];
    until("a probe", || probes.recv(&mut first).is_ok());
    assert_eq!(first[..2], [0, 110]);
}

#[test]
fn shutdown_closes_clients_too() {
    let tap = Tap::start(open_config(), 1);
    let mut client = tap.connect();
    tap.start_capture(&mut client);
    let Tap { control, sessions, .. } = tap;
    let worker = thread::spawn(move || {
        until("the end of the captures", || sessions.load().is_empty());
        sessions.mark_seen(0, sessions.reader().generation());
    });
    assert!(control.shutdown(FAR));
    worker.join().unwrap();
    assert!(client.is_closed());
}

/// The limit of descriptors is a process's, so the test has one of its own.
#[test]
fn a_lack_of_descriptors_is_survived_without_spinning() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .arg("control::event_loop::tests::passive::without_descriptors")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "lowers its process's limits: run by the test above"]
fn without_descriptors() {
    let mut config = open_config();
    config.timing.accept_pause = Duration::from_millis(50);
    let tap = Tap::start(config, 0);
    // No capture: its sockets come and go.
    tap.connect().ask(8, &[0; 8]);
    let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let started = Instant::now();
    waiting.connect(&tap.address().into()).unwrap();
    until("several failures", || tap.count(|stats| &stats.accept_failures) >= 4);
    let failures = tap.count(|stats| &stats.accept_failures);
    assert!(started.elapsed() >= Duration::from_millis(50 * (failures - 1)), "it pauses");
    taken.truncate(taken.len() / 2);
    let stream = TcpStream::from(waiting);
    stream.set_read_timeout(Some(FAR)).unwrap();
    Client(stream).capture(ANY_ETH);
}

/// As with a sensor: the client vanishes without FIN or RST. Needs root.
#[test]
fn a_silent_half_open_client_is_noticed() {
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
        let mut config = open_config();
        config.timing.silence = Duration::from_secs(3);
        let tap = Tap::start(config, 0);
        let mut client = tap.connect();
        client.capture(ANY_ETH);
        loopback("down");
        until("the death", || tap.capturing() == 0);
        tap.until_status(0, "the failure", |status| status.failures == 1);
    });
    test.join().unwrap();
}
