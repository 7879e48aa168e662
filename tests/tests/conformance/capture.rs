//! Captures by `podtap run` and `podtap replay`: known frames in, datagrams out, compared byte for
//! byte.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use tests::rpcap_spec::{
    Instruction, LIMIT, Packet, Peer, RET_ALL, StreamDecoder, Tap, Wire, datagrams, filter,
    in_namespace, kind, message, read_interfaces, read_plain,
};

mod data;

const PLAIN: [&str; 2] = ["--encoding", "plain"];
/// What clients that want everything ask for.
const SNAPLEN: usize = 262_144;

const AUTH_AND_OPEN: &str = "
    C 00 08 0000 00000008 0000 0000 0000 0000
    D 00 88 0000 00000008 00 00 0000 MAGIC
    C 00 03 0000 00000007 \"any-eth\"
    D 00 83 0000 00000008 00000001 00000000
";
/// Snaplen 262144, UDP, a filter that accepts everything; 16 MiB and no port in the reply.
const STARTCAP: &str = "
    C 00 04 0000 0000001c 00040000 000000fa 0002 PORT 0001 0000 00000001 0006 00 00 00040000
    D 00 84 0000 00000008 01000000 0000 0000
";
const ENDCAP: &str = "
    C 00 0a 0000 00000000
    D 00 8a 0000 00000000
";

/// A sensor's two ends.
struct Sensor {
    peer: Peer,
    socket: UdpSocket,
}

impl Sensor {
    /// Takes the tap's connection and opens `any-eth`.
    fn meet(tap: &mut Tap) -> Self {
        let (socket, port) = datagrams();
        Self::begin(tap.accept(), socket, port)
    }

    /// Connects to a passive tap and opens `any-eth`.
    fn call(tap: &mut Tap) -> Self {
        let (socket, port) = datagrams();
        Self::begin(tap.connect(), socket, port)
    }

    fn begin(mut peer: Peer, socket: UdpSocket, port: u16) -> Self {
        peer.set_port(port);
        peer.plays(AUTH_AND_OPEN);
        Self { peer, socket }
    }

    fn datagram(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let len = self.socket.recv(&mut buffer).expect("a datagram");
        buffer.truncate(len);
        buffer
    }

    /// The next packets, in the plain form.
    fn packets(&self, count: usize, snaplen: usize) -> Vec<Packet> {
        (0..count).map(|_| read_plain(&self.datagram(), snaplen)).collect()
    }

    /// The next packets are these frames, whole, with numbers from `number`.
    fn gets(&self, number: u32, frames: &[Vec<u8>]) {
        for (number, frame) in (number..).zip(frames) {
            let packet = &self.packets(1, SNAPLEN)[0];
            assert_eq!(packet.number, number, "npkt");
            is_whole(packet, frame);
        }
    }

    fn update_filter(&mut self, program: &[Instruction], answer: &str) {
        self.peer.send(&message(kind::UPDATEFILTER, 0, &filter(program)));
        self.peer.plays(answer);
    }

    /// ifrecv, ifdrop, krnldrop, svrcapt.
    fn stats(&mut self) -> [u32; 4] {
        self.peer.plays("C 00 09 0000 00000000");
        let (version, reply, value, payload) = self.peer.message("STATS' reply");
        assert_eq!((version, reply, value, payload.len()), (0, 0x89, 0, 16));
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
        [word(0), word(4), word(8), word(12)]
    }
}

fn is_whole(packet: &Packet, frame: &[u8]) {
    assert_eq!(packet.data, frame);
    assert_eq!(packet.len as usize, frame.len());
}

/// Nothing has come to it.
fn is_silent(socket: &UdpSocket) {
    socket.set_nonblocking(true).expect("an option of every socket");
    let got = socket.recv(&mut [0; 2000]).map_err(|error| error.kind());
    assert_eq!(got, Err(ErrorKind::WouldBlock));
}

/// A TCP port that nobody listens on.
fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    listener.local_addr().expect("it is bound").port()
}

fn frames(marks: std::ops::RangeInclusive<u8>) -> Vec<Vec<u8>> {
    marks.map(|mark| Wire::frame(mark, 60 + usize::from(mark))).collect()
}

fn send(wire: &Wire, frames: &[Vec<u8>]) {
    frames.iter().for_each(|frame| wire.send(frame));
}

/// A tap of this form, a sensor that it has met, the cable.
fn with_tap(name: &str, flags: &[&str], test: impl FnOnce(&mut Sensor, &Wire) + Send) {
    in_namespace(name, |wire| {
        wire.wait_until_it_carries();
        let mut tap = Tap::run(flags);
        let mut sensor = Sensor::meet(&mut tap);
        test(&mut sensor, wire);
    });
}

fn with_plain_tap(name: &str, test: impl FnOnce(&mut Sensor, &Wire) + Send) {
    with_tap(name, &PLAIN, test);
}

mod section_1_6_startcap {
    use super::*;

    #[test]
    fn the_snaplen_limits_caplen_and_the_datagram() {
        with_plain_tap("snaplen", |sensor, wire| {
            sensor.peer.plays(
                "
                C 00 04 0000 0000001c 00000040 000000fa 0002 PORT 0001 0000 00000001 0006 00 00 00040000
                D 00 84 0000 00000008 01000000 0000 0000
                ",
            );
            let frames = [Wire::frame(1, 1000), Wire::frame(2, 64), Wire::frame(3, 60)];
            send(wire, &frames);
            for (packet, frame) in sensor.packets(3, 64).iter().zip(&frames) {
                assert_eq!(packet.len as usize, frame.len());
                assert_eq!(packet.data, frame[..frame.len().min(64)]);
            }
        });
    }

    #[test]
    fn snaplen_0_and_a_huge_one_mean_whole_frames() {
        with_plain_tap("snaplen 0", |sensor, wire| {
            for snaplen in ["00000000", "ffffffff"] {
                sensor.peer.plays(&STARTCAP.replacen("00040000", snaplen, 1));
                let frame = [Wire::frame(1, 1514)];
                send(wire, &frame);
                sensor.gets(1, &frame);
                sensor.peer.plays(ENDCAP);
            }
        });
    }

    #[test]
    fn promiscuous_and_direction_flags_are_no_obstacle() {
        with_plain_tap("flags", |sensor, wire| {
            // PROMISC, DGRAM, SERVEROPEN, INBOUND, OUTBOUND.
            sensor.peer.plays(&STARTCAP.replacen("0002 PORT", "001f PORT", 1));
            send(wire, &frames(1..=3));
            sensor.gets(1, &frames(1..=3));
        });
    }

    #[test]
    fn a_second_one_takes_the_place_of_the_first() {
        with_plain_tap("a second STARTCAP", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            send(wire, &frames(1..=2));
            sensor.gets(1, &frames(1..=2));
            let (second, port) = datagrams();
            sensor.peer.set_port(port);
            sensor.peer.plays(STARTCAP);
            let first = std::mem::replace(&mut sensor.socket, second);
            send(wire, &frames(3..=4));
            sensor.gets(1, &frames(3..=4));
            sensor.peer.plays(ENDCAP);
            first.set_nonblocking(true).expect("an option of every socket");
            assert!(first.recv(&mut [0; 2000]).is_err(), "the first capture went on");
        });
    }

    #[test]
    fn one_that_fails_leaves_the_first_running() {
        with_plain_tap("a second STARTCAP that fails", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            sensor.peer.plays(
                "
                C 00 04 0000 00000014 00040000 000000fa 0002 PORT 0001 0000 00000000
                D error 12
                ",
            );
            send(wire, &frames(1..=2));
            sensor.gets(1, &frames(1..=2));
            // One that is well said, but has nobody at its data port: TCP, the tap connects.
            sensor.peer.set_port(closed_port());
            sensor.peer.plays(
                "
                C 00 04 0000 0000001c 00040000 000000fa 0004 PORT 0001 0000 00000001 0006 00 00 00040000
                D error 12
                ",
            );
            send(wire, &frames(3..=4));
            sensor.gets(3, &frames(3..=4));
        });
    }
}

mod section_1_7_filter {
    use super::*;

    #[test]
    fn what_it_returns_limits_caplen() {
        with_plain_tap("a filter's return value", |sensor, wire| {
            sensor.peer.plays(
                "
                C 00 04 0000 0000001c 00040000 000000fa 0002 PORT 0001 0000 00000001 0006 00 00 00000028
                D 00 84 0000 00000008 01000000 0000 0000
                ",
            );
            let frame = Wire::frame(1, 100);
            wire.send(&frame);
            let packet = &sensor.packets(1, 40)[0];
            assert_eq!((packet.len, &packet.data[..]), (100, &frame[..40]));
        });
    }

    #[test]
    fn it_chooses_frames_by_their_bytes() {
        with_plain_tap("a filter", |sensor, wire| {
            // ldb [14]; jeq #2; ret #262144; ret #0
            sensor.peer.plays(
                "
                C 00 04 0000 00000034 00040000 000000fa 0002 PORT 0001 0000 00000004
                C 0030 00 00 0000000e  0015 00 01 00000002  0006 00 00 00040000  0006 00 00 00000000
                D 00 84 0000 00000008 01000000 0000 0000
                ",
            );
            send(wire, &frames(1..=3));
            send(wire, &frames(2..=2));
            // Rejected frames take no number.
            sensor.gets(1, &[frames(2..=2), frames(2..=2)].concat());
        });
    }

    #[test]
    fn inbound_and_outbound_of_older_clients_are_understood() {
        with_plain_tap("ancillary loads", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            // ldh [-4092] (pkttype); jeq #4; one or the other.
            let by_direction = |outbound: u32, inbound: u32| {
                [
                    (0x28, 0, 0, 0xffff_f004),
                    (0x15, 0, 1, 4),
                    (6, 0, 0, outbound),
                    (6, 0, 0, inbound),
                ]
            };
            sensor.update_filter(&by_direction(0, 0x4_0000), "D 00 85 0000 00000000");
            send(wire, &frames(1..=1));
            sensor.gets(1, &frames(1..=1));
            sensor.update_filter(&by_direction(0x4_0000, 0), "D 00 85 0000 00000000");
            send(wire, &frames(2..=2));
            // Seen by the worker: a frame is judged by the filter of the moment.
            while sensor.stats()[0] < 2 {}
            sensor.update_filter(&[RET_ALL], "D 00 85 0000 00000000");
            send(wire, &frames(3..=3));
            sensor.gets(2, &frames(3..=3));
        });
    }

    #[test]
    fn the_longest_filter_that_linux_takes_works() {
        with_plain_tap("4096 instructions", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            let mut program = vec![(0x30, 0, 0, 14); 4096];
            program[4095] = RET_ALL;
            sensor.update_filter(&program, "D 00 85 0000 00000000");
            send(wire, &frames(1..=1));
            sensor.gets(1, &frames(1..=1));
        });
    }
}

mod section_1_8_malformed_startcap {
    use super::*;

    #[test]
    fn the_instruction_that_plen_forgets_is_read_and_the_capture_runs() {
        with_plain_tap("plen 20, nitems 1", |sensor, wire| {
            sensor.peer.plays(
                "
                C 00 04 0000 00000014 00040000 000000fa 0002 PORT 0001 0000 00000001  0006 00 00 00040000
                D 00 84 0000 00000008 01000000 0000 0000
                C 00 05 0000 00000008 0001 0000 00000001  0006 00 00 00040000
                D 00 85 0000 00000000
                ",
            );
            send(wire, &frames(1..=2));
            sensor.gets(1, &frames(1..=2));
            sensor.peer.plays(ENDCAP);
        });
    }
}

mod section_1_9_updatefilter {
    use super::*;

    #[test]
    fn a_refused_filter_leaves_the_old_one_running() {
        with_plain_tap("a refused filter", |sensor, wire| {
            // Only frames with mark 1: ldb [14]; jeq #1; ret #262144; ret #0
            sensor.peer.plays(STARTCAP);
            let old = [(0x30, 0, 0, 14), (0x15, 0, 1, 1), RET_ALL, (6, 0, 0, 0)];
            sensor.update_filter(&old, "D 00 85 0000 00000000");
            sensor.update_filter(&[(0x28, 0, 0, 12)], "D error 7"); // no return
            sensor.update_filter(&[], "D error 7");
            sensor.peer.plays(
                "
                C 00 05 0000 00000010 0002 0000 00000001 0006 00 00 00040000  # no such type
                D error 7
                C 00 05 0000 00000010 0001 0000 00000009 0006 00 00 00040000  # nine, but one
                D error 7
                C 00 05 0000 00000000
                D error 7
                ",
            );
            sensor.peer.send(&message(kind::UPDATEFILTER, 0, &vec![0; 40_000]));
            sensor.peer.plays("D error 7");
            for _ in 0..2 {
                send(wire, &frames(1..=2));
            }
            sensor.gets(1, &[frames(1..=1), frames(1..=1)].concat());
        });
    }
}

mod section_1_10_stats {
    use super::*;

    #[test]
    fn they_count_the_capture_and_are_kept_after_it() {
        with_plain_tap("STATS", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            send(wire, &frames(1..=5));
            sensor.gets(1, &frames(1..=5));
            let started = std::time::Instant::now();
            // Counters are published after a batch.
            let counts = loop {
                let counts = sensor.stats();
                if (counts[0] >= 5 && counts[3] >= 5) || started.elapsed() > LIMIT {
                    break counts;
                }
            };
            assert_eq!(counts, [5, 0, 0, 5]);
            sensor.peer.plays(ENDCAP);
            // As libpcap's daemon means to; its test for success is inverted, so it answers zeros.
            assert_eq!(sensor.stats(), [5, 0, 0, 5]);
            sensor.peer.plays(STARTCAP);
            assert_eq!(sensor.stats(), [0; 4]);
        });
    }
}

mod section_1_11_endcap {
    use super::*;

    #[test]
    fn a_capture_ends_and_the_next_counts_from_one() {
        with_plain_tap("ENDCAP", |sensor, wire| {
            for _ in 0..3 {
                sensor.peer.plays(STARTCAP);
                send(wire, &frames(1..=3));
                sensor.gets(1, &frames(1..=3));
                sensor.peer.plays(ENDCAP);
                sensor.peer.plays("C 00 0a 0000 00000000\nD error 13");
            }
        });
    }

    #[test]
    fn what_was_captured_before_it_is_sent_before_it_is_answered() {
        with_tap("ENDCAP flushes", &["--flush-us", "10000000"], |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            send(wire, &frames(1..=9));
            // All captured; the datagram they share would wait for ten seconds.
            while sensor.stats()[0] < 9 {}
            sensor.peer.plays(ENDCAP);
            sensor.socket.set_nonblocking(true).expect("an option of every socket");
            let packets = StreamDecoder::new(1472).take(&sensor.datagram());
            assert_eq!(packets.len(), 9);
        });
    }

    #[test]
    fn nothing_is_sent_after_it() {
        with_plain_tap("silence", |sensor, wire| {
            sensor.peer.plays(STARTCAP);
            sensor.peer.plays(ENDCAP);
            let first = std::mem::replace(&mut sensor.socket, datagrams().0);
            let port = sensor.socket.local_addr().expect("it is bound").port();
            send(wire, &frames(1..=3));
            sensor.peer.set_port(port);
            sensor.peer.plays(STARTCAP);
            send(wire, &frames(4..=4));
            // Frames that the ring still held when the next capture began may be that one's.
            while sensor.packets(1, SNAPLEN)[0].data != frames(4..=4)[0] {}
            first.set_nonblocking(true).expect("an option of every socket");
            assert!(first.recv(&mut [0; 2000]).is_err());
        });
    }

    #[test]
    fn close_ends_the_capture() {
        in_namespace("CLOSE in a capture", |wire| {
            wire.wait_until_it_carries();
            // Passive: in active mode the tap would be back only after half a minute.
            let mut tap = Tap::passive(&["--encoding", "plain", "--null-auth"]);
            let mut first = Sensor::call(&mut tap);
            first.peer.plays(STARTCAP);
            send(wire, &frames(1..=1));
            first.gets(1, &frames(1..=1));
            let mut second = Sensor::call(&mut tap);
            second.peer.plays(STARTCAP);
            first.peer.plays("C 00 06 0000 00000000\nD end");
            send(wire, &frames(2..=3));
            // What these frames are to the second capture, they would be to the first.
            second.gets(1, &frames(2..=3));
            second.peer.plays(ENDCAP);
            is_silent(&first.socket);
        });
    }

    #[test]
    fn sighup_without_a_file_to_read_again_ends_nothing() {
        in_namespace("SIGHUP", |wire| {
            wire.wait_until_it_carries();
            let mut tap = Tap::run(&PLAIN);
            let mut sensor = Sensor::meet(&mut tap);
            sensor.peer.plays(STARTCAP);
            tap.signal(nix::sys::signal::Signal::SIGHUP);
            tap.wait_for("there is no file to read again");
            send(wire, &frames(1..=2));
            sensor.gets(1, &frames(1..=2));
        });
    }
}

mod section_1_12_setsampling {
    use super::*;

    /// Frames with marks 1 to 7 are sent; the marks that arrive.
    fn sampled(name: &str, sampling: &str, expected: &[u8]) {
        with_plain_tap(name, |sensor, wire| {
            sensor.peer.plays(&format!("C 00 0b 0000 00000008 {sampling}\nD 00 8b 0000 00000000"));
            sensor.peer.plays(STARTCAP);
            send(wire, &frames(1..=7));
            let expected: Vec<_> = expected.iter().map(|mark| frames(*mark..=*mark)).collect();
            sensor.gets(1, &expected.concat());
            sensor.peer.plays(ENDCAP);
            sensor.socket.set_nonblocking(true).expect("an option of every socket");
            assert!(sensor.socket.recv(&mut [0; 2000]).is_err(), "more than these");
        });
    }

    #[test]
    fn one_in_n_delivers_the_first_and_drops_the_next() {
        sampled("one in 3", "01 00 0000 00000003", &[1, 4, 7]);
    }

    #[test]
    fn first_after_n_ms_delivers_the_first_and_waits() {
        sampled("first after an hour", "02 00 0000 0036ee80", &[1]);
    }

    #[test]
    fn value_0_and_unknown_methods_do_not_sample() {
        for sampling in ["01 00 0000 00000000", "02 00 0000 00000000", "07 00 0000 00000003"] {
            sampled("no sampling", sampling, &[1, 2, 3, 4, 5, 6, 7]);
        }
    }
}

mod section_1_13_error {
    use super::*;

    const ON_V1: &str = "
        C 00 03 0000 00000002 \"v1\"
        D 00 83 0000 00000008 00000001 00000000
    ";

    #[test]
    fn an_interface_that_disappears_is_error_9_unasked() {
        with_plain_tap("a deleted interface", |sensor, _wire| {
            sensor.peer.plays(ON_V1);
            sensor.peer.plays(STARTCAP);
            Wire::ip("link delete v1");
            sensor.peer.plays(
                "
                D 00 01 0009 00000019 \"The interface disappeared\"
                C 00 09 0000 00000000
                D 00 89 0000 00000010 00*16
                C 00 0a 0000 00000000
                D error 13
                C 00 03 0000 00000002 \"v1\"
                D error 6
                ",
            );
        });
    }

    #[test]
    fn error_9_is_never_inside_a_reply() {
        with_plain_tap("ERROR 9 among replies", |sensor, _wire| {
            sensor.peer.plays(ON_V1);
            sensor.peer.plays(STARTCAP);
            let mut errors = 0;
            let mut asked = 0;
            let started = std::time::Instant::now();
            while errors == 0 {
                assert!(started.elapsed() < LIMIT, "no ERROR 9");
                if asked == 50 {
                    Wire::ip("link delete v1");
                }
                asked += 50;
                sensor.peer.send(&message(kind::FINDALLIF, 0, &[]).repeat(50));
                let mut replies = 0;
                while replies < 50 {
                    let (version, reply, value, payload) = sensor.peer.message("replies");
                    assert_eq!(version, 0);
                    match (reply, value) {
                        (kind::ERROR, 9) => errors += 1,
                        (0x82, count) => {
                            let _whole = read_interfaces(count, &payload);
                            replies += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(errors, 1);
        });
    }

    #[test]
    fn a_capture_of_any_eth_outlives_an_interface() {
        with_plain_tap("any-eth without its interface", |sensor, _wire| {
            sensor.peer.plays(STARTCAP);
            Wire::ip("link delete v1");
            sensor.update_filter(&[RET_ALL], "D 00 85 0000 00000000");
            sensor.peer.plays(ENDCAP);
        });
    }
}
