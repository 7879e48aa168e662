//! Daemons of several manners, each played to the whole sensor: the traps of real peers.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::client::Wishes;
use super::context::{DataChannel, Settings};
use super::message::tests::{message, packet};
use super::played::{FakeTap, Plan, Sensor, accept, file_of};
use super::reassembly::tests::{datagrams, packets};
use super::targets::Target;
use crate::rpcap::{Auth, Filter, MAX_UDP_PAYLOAD, MessageType, OpenReply, Sampling, StartCapture};
use crate::sys::libpcap::CompileError;

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port at which nobody listens.
fn nobody() -> SocketAddr {
    listener().1
}

/// Sends from an address of loopback.
fn send_from(host: u8, to: SocketAddr, bytes: &[u8]) {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    socket.send_to(bytes, to).unwrap();
}

#[test]
fn a_daemon_that_never_answers_ends_the_run_with_the_reason() {
    let address = nobody();
    let mut plan = Plan::new(DataChannel::Udp).connecting([]);
    // Its patience is over already.
    let begin = Instant::now() - Duration::from_secs(3_600);
    plan.targets.push(Target::new("away".into(), vec![address], begin));
    let (summary, result, _) = plan.start().end_somehow();
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("away cannot be connected to: Connection refused"), "{error}");
    assert_eq!(summary.failures.get("connect"), Some(&1));
}

#[test]
fn a_refusal_ends_the_run_with_the_daemon_s_words() {
    // ExtraHop's daemon says 3 for everything about authentication, libpcap's 18.
    for (code, words) in [(3, "error 3 (authentication)"), (18, "error 18 (authentication failed)")]
    {
        let (daemon, address) = listener();
        let sensor = Plan::new(DataChannel::Udp).connecting([address]).start();
        let mut tap = FakeTap::new(accept(&daemon));
        tap.expect(MessageType::Auth);
        tap.reply(MessageType::Error, code, b"go away");
        tap.expect_end();
        let (summary, result, _) = sensor.end_somehow();
        let expected = format!("{address} refused AUTH: {words}, \"go away\"");
        assert_eq!(result.unwrap_err().to_string(), expected);
        assert_eq!(summary.failures.get("refused"), Some(&1));
    }
}

#[test]
fn a_capture_that_is_refused_ends_the_run_too() {
    let (daemon, address) = listener();
    let sensor = Plan::new(DataChannel::Udp).connecting([address]).start();
    let mut tap = FakeTap::new(accept(&daemon));
    tap.talk_until_opened();
    tap.expect(MessageType::StartCapture);
    tap.reply(MessageType::Error, 12, b"no");
    let (_, result, _) = sensor.end_somehow();
    let error = result.unwrap_err().to_string();
    assert!(
        error.ends_with("refused STARTCAP: error 12 (capture cannot start), \"no\""),
        "{error}"
    );
}

#[test]
fn a_daemon_that_captured_once_is_come_back_to() {
    let (daemon, address) = listener();
    let sensor = Plan::new(DataChannel::Udp).connecting([address]).start();
    let sent = packets(2, |_| 80);
    let tap = FakeTap::accept(&daemon, 0);
    tap.send(&[&message(&sent[0])]);
    drop(tap);
    let tap = FakeTap::accept(&daemon, 0);
    tap.send(&[&message(&sent[1])]);
    sensor.stop();
    tap.end(1);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of(&address.to_string(), &sent));
    assert_eq!(summary.taps[0].captures, 2);
}

#[test]
fn several_daemons_are_captured_from_at_once_though_one_is_away() {
    let (one, two) = (listener(), listener());
    let plan = Plan::new(DataChannel::Udp).connecting([one.1, nobody(), two.1]);
    let sensor = plan.start();
    let taps = [FakeTap::accept(&one.0, 0), FakeTap::accept(&two.0, 0)];
    for (tap, packet) in taps.iter().zip(packets(2, |_| 80)) {
        tap.send(&[&message(&packet)]);
    }
    sensor.stop();
    let [first, second] = taps;
    // The sensor asks both at once; who answers first does not matter.
    first.end(1);
    second.end(1);
    let (summary, result, _) = sensor.end_somehow();
    result.unwrap();
    let labels: Vec<_> = summary.taps.iter().map(|tap| tap.tap.clone()).collect();
    assert!(labels.contains(&one.1.to_string()) && labels.contains(&two.1.to_string()));
    assert_eq!(summary.totals.packets, 2);
}

#[test]
fn several_connections_of_one_tap_are_one_tap_in_the_summary() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let taps: Vec<_> = (0..4).map(|_| FakeTap::connect(&sensor)).collect();
    // Each has its own numbers, of datagrams and of packets.
    for tap in &taps {
        tap.send(&datagrams(&packets(10, |_| 200), 0, 1_472).iter().collect::<Vec<_>>());
    }
    sensor.stop();
    taps.into_iter().for_each(|tap| tap.end(10));
    let (summary, _) = sensor.end();
    let tap = &summary.taps[0];
    assert_eq!((summary.taps.len(), tap.captures, tap.counts.packets), (1, 4, 40));
    assert_eq!((tap.counts.lost_packets, tap.counts.duplicates, tap.counts.gaps), (0, 0, 0));
    assert_eq!(tap.tap_stats.unwrap().sent, 40);
}

#[test]
fn a_password_is_sent_and_its_refusal_is_said() {
    let mut plan = Plan::new(DataChannel::Udp);
    plan.settings.wishes.credentials = Some(("me".into(), "secret".into()));
    let sensor = plan.start();
    let mut tap = FakeTap::new(TcpStream::connect(sensor.address()).unwrap());
    let sent = Auth::read(&tap.expect(MessageType::Auth)).unwrap();
    assert_eq!(sent, Auth::Password { user: b"me".into(), password: b"secret".into() });
    tap.reply(MessageType::Error, 18, b"Authentication failed");
    sensor.stop();
    tap.expect_end();
    let (summary, _) = sensor.end();
    assert_eq!(summary.failures.get("refused"), Some(&1));
}

#[test]
fn a_named_interface_is_opened_without_asking_for_a_list() {
    let mut plan = Plan::new(DataChannel::Udp);
    plan.settings.wishes = Wishes { open: Some("eth7".into()), ..Wishes::default() };
    let sensor = plan.start();
    let mut tap = FakeTap::new(TcpStream::connect(sensor.address()).unwrap());
    tap.expect(MessageType::Auth);
    tap.reply(MessageType::AuthReply, 0, &[]);
    assert_eq!(tap.expect(MessageType::Open), b"eth7");
    tap.reply(MessageType::OpenReply, 0, &OpenReply { linktype: 1 }.to_bytes());
    tap.talk_until_started(0);
    sensor.stop();
    tap.end(0);
    assert_eq!(sensor.end().0.taps[0].interface, "eth7");
}

#[test]
fn sampling_is_asked_for_before_the_capture() {
    let mut plan = Plan::new(DataChannel::Udp);
    plan.settings.wishes.sampling = Some(Sampling { method: 1, value: 5 });
    let sensor = plan.start();
    let mut tap = FakeTap::new(TcpStream::connect(sensor.address()).unwrap());
    tap.talk_until_opened();
    assert_eq!(tap.expect(MessageType::SetSampling), [1, 0, 0, 0, 0, 0, 0, 5]);
    tap.reply(MessageType::SetSamplingReply, 0, &[]);
    tap.talk_until_started(0);
    sensor.stop();
    tap.end(0);
    sensor.end();
}

/// The instructions of an expression; `None` without libpcap.
fn compiled(text: &str) -> Option<Filter> {
    let settings =
        Settings::new(Wishes::default(), DataChannel::Udp, 65_535, Some(text.to_owned()));
    match settings {
        Err(CompileError::NoLibrary(why)) => {
            eprintln!("SKIPPED: {why}");
            None
        }
        settings => Some(settings.unwrap().filter_for(1).unwrap()),
    }
}

#[test]
fn the_filter_file_is_read_again_when_told() {
    let (Some(web), Some(udp)) = (compiled("tcp port 80"), compiled("udp")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("filter");
    std::fs::write(&path, "tcp port 80\n").unwrap();
    let mut plan = Plan::new(DataChannel::Udp);
    plan.settings.set_filter_file(path.clone()).unwrap();
    let (reload, mut reloader) = UnixStream::pair().unwrap();
    let sensor = Plan { reload: Some(reload), ..plan }.start();
    let mut tap = FakeTap::connect(&sensor);
    assert_eq!(tap.start.filter, web);
    std::fs::write(&path, "udp").unwrap();
    reloader.write_all(b"x").unwrap();
    let asked = tap.expect(MessageType::UpdateFilter);
    assert_eq!(Filter::read(&asked), Ok(udp.clone()));
    // What one daemon refuses is asked of who comes later all the same.
    tap.reply(MessageType::Error, 7, b"not that one");
    let other = FakeTap::connect(&sensor);
    assert_eq!(other.start.filter, udp);
    sensor.stop();
    tap.end(0);
    other.end(0);
    sensor.end();
}

#[test]
fn a_filter_file_that_cannot_be_used_is_named_and_changes_nothing() {
    let Some(web) = compiled("tcp port 80") else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("filter");
    let mut settings = Plan::new(DataChannel::Udp).settings;
    let error = settings.set_filter_file(path.clone()).unwrap_err();
    assert!(error.to_string().contains("filter: No such file"), "{error}");
    std::fs::write(&path, "tcp port 80").unwrap();
    settings.reload().unwrap();
    for (text, reason) in [("tcp prot 80", "syntax error"), (" \n", "filter: empty")] {
        std::fs::write(&path, text).unwrap();
        let error = settings.reload().unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(settings.filter_for(1).unwrap(), web);
    }
}

#[test]
fn startcap_says_that_datagrams_may_be_of_any_size() {
    for (data, expected) in [
        (
            DataChannel::Udp,
            StartCapture::DGRAM | StartCapture::SERVER_OPEN | StartCapture::LARGE_DATAGRAMS,
        ),
        (DataChannel::Tcp, StartCapture::SERVER_OPEN),
    ] {
        let sensor = Sensor::start(data, None);
        let tap = FakeTap::connect(&sensor);
        assert_eq!(tap.start.flags, expected);
        assert_eq!(tap.start.filter.instructions.len(), 1, "never a program of no instructions");
        sensor.stop();
        tap.end(0);
        sensor.end();
    }
}

#[test]
fn the_largest_datagrams_arrive_in_both_forms() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let tap = FakeTap::connect(&sensor);
    let plain = packet(1, MAX_UDP_PAYLOAD - 28);
    let stream = [packet(2, MAX_UDP_PAYLOAD - 28)];
    let datagrams = datagrams(&stream, 0, MAX_UDP_PAYLOAD);
    assert_eq!((message(&plain).len(), datagrams[0].len()), (65_507, 65_507));
    tap.send(&[&message(&plain), &datagrams[0]]);
    sensor.stop();
    tap.end(2);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of("127.0.0.1", &[plain, stream[0].clone()]));
    assert_eq!(summary.totals.malformed.total(), 0);
}

#[test]
fn no_datagram_ends_a_capture() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let tap = FakeTap::connect(&sensor);
    let good = packets(4, |_| 60);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = message(&good[1]);
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let two = [message(&good[1]), message(&good[2])].concat();
    // What libpcap's client dies of, or worse: see the specification, 2.2.
    let bad = [
        (vec![], "short"),
        (vec![0, 7, 0], "short"),
        (with(0, &[1]), "version"),
        (with(1, &[9]), "type"),
        (with(4, &[0, 0, 1, 0]), "payload_length"),
        (with(4, &[0, 0, 0, 79]), "caplen"),
        (with(16, &[0, 0, 0, 81]), "wire_len"),
        (with(20, &[0, 0, 0, 59]), "wire_len"),
        (vec![0, 110, 0, 8], "short"),
        (vec![0, 110, 0, 8, 0, 0, 0, 0, 1, 2, 3], "first_header"),
    ];
    tap.send(&[&message(&good[0])]);
    for (bytes, _) in &bad {
        tap.send(&[bytes]);
    }
    // Only the first message of a datagram exists; the second is lost, and known to be.
    tap.send(&[&two, &message(&good[3])]);
    sensor.stop();
    tap.end(4);
    let (summary, file) = sensor.end();
    let expected = [good[0].clone(), good[1].clone(), good[3].clone()];
    assert_eq!(file, file_of("127.0.0.1", &expected));
    let counts = &summary.totals;
    assert_eq!((counts.malformed.total(), counts.lost_packets), (bad.len() as u64, 1));
    for (label, count) in counts.malformed.iter() {
        let expected = bad.iter().filter(|(_, reason)| *reason == label).count();
        assert_eq!(count, expected as u64, "{label}");
    }
}

#[test]
fn datagrams_of_strangers_are_counted_and_those_of_another_address_can_be_allowed() {
    let mut plan = Plan::new(DataChannel::Udp);
    plan.settings.data_from = vec!["127.0.0.3/32".parse().unwrap()];
    let sensor = plan.start();
    let tap = FakeTap::connect(&sensor);
    let sent = packets(3, |_| 60);
    for (host, packet) in [2, 3, 1].into_iter().zip(&sent) {
        send_from(host, tap.data_address(), &message(packet));
    }
    sensor.stop();
    tap.end(3);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of("127.0.0.1", &sent[1..]));
    assert_eq!(summary.totals.foreign, 1);
}

#[test]
fn a_stranger_cannot_take_the_data_connection() {
    let sensor = Sensor::start(DataChannel::Tcp, None);
    let tap = FakeTap::connect(&sensor);
    let stranger =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    stranger.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)), 0).into()).unwrap();
    stranger.connect(&tap.data_address().into()).unwrap();
    let mut data = TcpStream::connect(tap.data_address()).unwrap();
    let sent = packets(1, |_| 60);
    data.write_all(&message(&sent[0])).unwrap();
    sensor.stop();
    tap.end(1);
    assert_eq!(sensor.end().1, file_of("127.0.0.1", &sent));
}

#[test]
fn the_stream_form_on_tcp_ends_the_capture_with_its_reason() {
    // What ExtraHop's daemon does when it is asked for TCP.
    let sensor = Sensor::start(DataChannel::Tcp, None);
    let tap = FakeTap::connect(&sensor);
    let mut data = TcpStream::connect(tap.data_address()).unwrap();
    data.write_all(&datagrams(&packets(30, |_| 1_000), 0, 1_472).concat()).unwrap();
    // The sensor gives the data connection up.
    data.set_read_timeout(Some(super::played::PATIENCE)).unwrap();
    let _ = std::io::Read::read(&mut data, &mut [0]);
    sensor.stop();
    tap.expect_end();
    let (summary, result, _) = sensor.end_somehow();
    result.unwrap();
    assert_eq!(summary.failures.get("data"), Some(&1));
    assert_eq!(summary.totals.malformed.iter().collect::<Vec<_>>(), [("stream_on_tcp", 1)]);
}

#[test]
fn a_passive_daemon_that_names_no_data_port_is_an_error() {
    let (daemon, address) = listener();
    let sensor = Plan::new(DataChannel::Tcp).connecting([address]).start();
    // It captures as far as it knows, so the sensor comes back; it is told to stop instead.
    let tap = FakeTap::accept(&daemon, 0);
    tap.expect_end();
    sensor.stop();
    let (summary, result, _) = sensor.end_somehow();
    result.unwrap();
    assert_eq!(summary.failures.get("data"), Some(&1));
}

#[test]
fn an_unasked_error_9_ends_the_conversation_but_not_the_run() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let mut tap = FakeTap::connect(&sensor);
    let other = FakeTap::connect(&sensor);
    tap.reply(MessageType::Error, 9, b"The interface disappeared");
    tap.expect_end();
    let sent = packets(1, |_| 60);
    other.send(&[&message(&sent[0])]);
    sensor.stop();
    other.end(1);
    let (summary, file) = sensor.end();
    assert_eq!(summary.failures.get("capture_failed"), Some(&1));
    assert_eq!(file, file_of("127.0.0.1", &sent));
}
