//! The whole sensor on loopback, against taps that are played here.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use crate::rpcap::{Auth, Header, Interface, MessageType, OpenReply, StartCapture};
use crate::sensor::context::DataChannel;
use crate::sensor::message::tests::{message, packet};
use crate::sensor::played::{FakeTap, Plan, Sensor, accept, file_of};
use crate::sensor::reassembly::tests::{Packet, datagrams, packets};

#[test]
fn the_stream_form_survives_loss_and_reordering() {
    let sent = packets(60, |number| 40 + (number as usize * 211) % 1_475);
    let cut = datagrams(&sent, 0, 1_472);
    let sensor = Sensor::start(DataChannel::Udp, None);
    let tap = FakeTap::connect(&sensor);
    let mut order: Vec<_> = cut.iter().collect();
    order.swap(10, 13);
    order.insert(20, &cut[18]);
    order.remove(5);
    tap.send(&order);
    sensor.stop();
    tap.end(60);
    let (summary, file) = sensor.end();

    // Which packets have a byte in datagram 5.
    let ends: Vec<usize> = cut
        .iter()
        .scan(0, |end, datagram| {
            *end += datagram.len() - 8;
            Some(*end)
        })
        .collect();
    let mut position = 0;
    let expected: Vec<Packet> = sent
        .iter()
        .filter(|(_, data)| {
            let start = position;
            position += 20 + data.len();
            position <= ends[4] || start >= ends[5]
        })
        .cloned()
        .collect();
    let lost = 60 - expected.len() as u64;
    assert!(lost > 0);
    assert_eq!(file, file_of("127.0.0.1", &expected));
    let tap = &summary.taps[0];
    assert_eq!((tap.counts.packets, tap.counts.lost_packets), (60 - lost, lost));
    assert_eq!((tap.counts.gaps, tap.counts.lost_datagrams, tap.counts.duplicates), (1, 1, 1));
    assert_eq!(tap.tap_stats.unwrap().sent, 60);
    assert_eq!(summary.totals, tap.counts);
}

#[test]
fn the_plain_form_is_one_packet_a_datagram() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let tap = FakeTap::connect(&sensor);
    let sent = packets(10, |number| number as usize);
    let mut bytes: Vec<_> = sent.iter().map(message).collect();
    bytes.remove(4);
    tap.send(&bytes.iter().collect::<Vec<_>>());
    sensor.stop();
    tap.end(10);
    let (summary, file) = sensor.end();
    let expected = [&sent[..4], &sent[5..]].concat();
    assert_eq!(file, file_of("127.0.0.1", &expected));
    assert_eq!(summary.totals.lost_packets, 1);
}

#[test]
fn data_come_over_tcp_from_taps_that_connect() {
    let sensor = Sensor::start(DataChannel::Tcp, None);
    let tap = FakeTap::connect(&sensor);
    assert_eq!(tap.start.flags, StartCapture::SERVER_OPEN);
    let sent = packets(500, |number| number as usize * 3);
    let mut data = TcpStream::connect(tap.data_address()).unwrap();
    data.write_all(&sent.iter().flat_map(message).collect::<Vec<_>>()).unwrap();
    sensor.stop();
    tap.end(500);
    drop(data);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of("127.0.0.1", &sent));
    assert_eq!(summary.totals.lost_packets, 0);
}

#[test]
fn passive_daemons_are_connected_to() {
    for data in [DataChannel::Udp, DataChannel::Tcp] {
        let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
        let data_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = daemon.local_addr().unwrap();
        let sensor = Plan::new(data).connecting([address]).start();
        let tap = FakeTap::accept(&daemon, data_listener.local_addr().unwrap().port());
        let sent = packets(3, |_| 700);
        match data {
            DataChannel::Udp => tap.send(&datagrams(&sent, 0, 1_472).iter().collect::<Vec<_>>()),
            DataChannel::Tcp => {
                assert_eq!((tap.start.flags, tap.start.port), (0, 0));
                let mut stream = accept(&data_listener);
                stream.write_all(&sent.iter().flat_map(message).collect::<Vec<_>>()).unwrap();
            }
        }
        sensor.stop();
        // TCP's data connection was closed above: a failure, but what had arrived is kept.
        if data == DataChannel::Udp {
            tap.end(3);
        }
        let (summary, file) = sensor.end();
        assert_eq!(file, file_of(&address.to_string(), &sent));
        assert_eq!(summary.totals.packets, 3);
    }
}

#[test]
fn the_run_ends_after_so_many_packets() {
    let sensor = Sensor::start(DataChannel::Udp, Some(7));
    let tap = FakeTap::connect(&sensor);
    let sent = packets(40, |_| 100);
    tap.send(&datagrams(&sent, 0, 1_472).iter().collect::<Vec<_>>());
    tap.end(40);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of("127.0.0.1", &sent[..7]));
    assert_eq!(summary.totals.packets, 7);
}

#[test]
fn a_tap_that_comes_back_keeps_its_block() {
    let sensor = Sensor::start(DataChannel::Udp, Some(2));
    let sent = packets(1, |_| 100);
    let tap = FakeTap::connect(&sensor);
    tap.send(&[&message(&sent[0])]);
    drop(tap);
    let tap = FakeTap::connect(&sensor);
    tap.send(&[&message(&sent[0])]);
    tap.end(1);
    let (summary, file) = sensor.end();
    assert_eq!(file, file_of("127.0.0.1", &[sent[0].clone(), sent[0].clone()]));
    assert_eq!((summary.taps.len(), summary.taps[0].captures), (1, 2));
}

/// Numbers that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.next(4) {
            let at = self.next(bytes.len());
            bytes[at] = self.next(256).to_le_bytes()[0];
        }
        if self.next(4) == 0 {
            let len = self.next(bytes.len());
            bytes.truncate(len.max(1));
        }
    }
}

#[test]
fn ten_thousand_mutated_datagrams_do_not_disturb_another_tap() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let evil = FakeTap::connect(&sensor);
    let good = FakeTap::connect(&sensor);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let sent = packets(200, |number| (number as usize * 37) % 900);
    let stream = datagrams(&sent, 0, 1_472);
    let good_datagrams = datagrams(&packets(100, |_| 64), 0, 1_472);
    for at in 0..10_000 {
        let mut bytes = if at % 2 == 0 {
            stream[at % stream.len()].clone()
        } else {
            message(&sent[at % sent.len()])
        };
        noise.mutate(&mut bytes);
        evil.send(&[&bytes]);
        if let Some(datagram) = good_datagrams.get(at) {
            good.send(&[datagram]);
        }
    }
    sensor.stop();
    good.end(100);
    drop(evil);
    let (summary, _) = sensor.end();
    let tap = &summary.taps[0];
    assert_eq!(summary.taps.len(), 1, "both are at one address");
    assert!(tap.counts.packets >= 100);
    assert_eq!(
        tap.counts.datagrams + tap.counts.socket_drops,
        10_000 + good_datagrams.len() as u64
    );
    assert!(tap.counts.malformed.total() > 1_000);
}

#[test]
fn mutated_conversations_and_strangers_do_not_disturb_a_tap() {
    let sensor = Sensor::start(DataChannel::Udp, None);
    let good = FakeTap::connect(&sensor);
    let mut noise = Noise(42);
    let mut list = Vec::new();
    Interface { name: "eth0".into(), ..Interface::default() }.write(&mut list);
    let say = |kind, value, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        [&Header::new(kind, value, len).to_bytes()[..], payload].concat()
    };
    let conversation = [
        say(MessageType::AuthReply, 0, &Auth::reply()),
        say(MessageType::FindAllIfReply, 1, &list),
        say(MessageType::OpenReply, 0, &OpenReply { linktype: 1 }.to_bytes()),
        say(MessageType::StartCaptureReply, 0, &[0; 8]),
        say(MessageType::StatsReply, 0, &[1; 16]),
    ]
    .concat();
    let mut silent = Vec::new();
    for at in 0..500 {
        let mut bytes = conversation.clone();
        noise.mutate(&mut bytes);
        let mut peer = TcpStream::connect(sensor.address()).unwrap();
        // The sensor may have hung up by now: that is its right.
        let _ = peer.write_all(&bytes);
        if at % 10 == 0 {
            silent.push(peer);
        }
    }
    // Connections are accepted in order: when this one captures, all the others were seen.
    let last = FakeTap::connect(&sensor);
    good.send(&[&message(&packet(1, 60))]);
    sensor.stop();
    good.end(1);
    last.end(0);
    let (summary, _) = sensor.end();
    assert_eq!(summary.connections, 502);
    assert_eq!(summary.taps.iter().map(|tap| tap.counts.packets).sum::<u64>(), 1);
    assert!(summary.failures.values().sum::<u64>() > 50);
}
