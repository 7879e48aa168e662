//! A scripted daemon against `podtap sensor`: what it asks, and what it makes of every answer.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::Value;
use tests::rpcap_spec::{LIMIT, Peer, SensorRun, Wire, frames_of, message, packet};

const AUTH: &str = "
    C 00 08 0000 00000008 0000 0000 0000 0000
    D 00 88 0000 00000008 00 00 0000 MAGIC
";
/// One interface, no address.
const FINDALLIF: &str = "
    C 00 02 0000 00000000
    D 00 82 0001 00000010 0004 0000 00000016 0000 0000 \"eth0\"
";
const OPEN: &str = "
    C 00 03 0000 00000004 \"eth0\"
    D 00 83 0000 00000008 00000001 00000000
";
/// Snaplen 262144, DGRAM and SERVEROPEN, a filter that accepts everything.
const STARTCAP: &str = "
    C 00 04 0000 0000001c 00040000 00000064 0006 PORT 0001 0000 00000001 0006 00 00 00040000
    D 00 84 0000 00000008 00040000 0000 0000
";
const END: &str = "
    C 00 09 0000 00000000
    D 00 89 0000 00000010 00000009 00000001 00000002 00000006
    C 00 0a 0000 00000000
    D 00 8a 0000 00000000
    C 00 09 0000 00000000
    D 00 89 0000 00000010 00000009 00000001 00000002 00000006
    C 00 06 0000 00000000
    C end
";

/// A sensor whose capture runs, and its daemon's two ends.
struct Daemon {
    sensor: SensorRun,
    peer: Peer,
    data: UdpSocket,
    to: SocketAddr,
}

impl Daemon {
    /// Plays all up to a running capture.
    fn capturing(flags: &[&str]) -> Self {
        let mut sensor = SensorRun::listening(flags);
        let mut peer = sensor.meet();
        for script in [AUTH, FINDALLIF, OPEN, STARTCAP] {
            peer.plays(script);
        }
        let data = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, peer.port()));
        Self { sensor, peer, data, to }
    }

    fn sends(&self, datagram: &[u8]) {
        assert_eq!(self.data.send_to(datagram, self.to).expect("it is there"), datagram.len());
    }

    /// Ends the capture as the sensor asks to. What it wrote, and its summary.
    fn ends(mut self) -> (Vec<Vec<u8>>, Value) {
        self.sensor.interrupt();
        self.peer.plays(END);
        let summary = self.sensor.summary();
        (frames_of(&self.sensor.file()), summary["totals"].clone())
    }
}

/// The nth frame of a conversation, and its PACKET message.
fn frame(number: u8) -> Vec<u8> {
    Wire::frame(number, 100 + usize::from(number))
}

fn plain(number: u8) -> Vec<u8> {
    let frame = frame(number);
    packet(number.into(), 1_700_000_000, 5, &frame, frame.len())
}

fn frames(numbers: &[u8]) -> Vec<Vec<u8>> {
    numbers.iter().map(|number| frame(*number)).collect()
}

/// The datagrams' outcome: the frames that were written, and the totals.
fn outcome(datagrams: &[Vec<u8>]) -> (Vec<Vec<u8>>, Value) {
    let daemon = Daemon::capturing(&[]);
    datagrams.iter().for_each(|datagram| daemon.sends(datagram));
    daemon.ends()
}

/// A conversation that the sensor leaves; it says why.
fn is_left(script: &str, why: &str) {
    let mut sensor = SensorRun::listening(&[]);
    let mut peer = sensor.meet();
    peer.plays(script);
    sensor.wait_for(why);
}

mod section_1_3_auth {
    use super::*;

    fn auth_is_accepted(reply: &str) {
        let mut sensor = SensorRun::listening(&[]);
        let mut peer = sensor.meet();
        peer.plays("C 00 08 0000 00000008 0000 0000 0000 0000");
        peer.plays(reply);
        peer.plays(FINDALLIF);
    }

    #[test]
    fn a_reply_of_every_generation_is_accepted() {
        auth_is_accepted("D 00 88 0000 00000000");
        auth_is_accepted("D 00 88 0000 00000002 00 00");
        auth_is_accepted("D 00 88 0000 00000008 00 00 0000 a1b2c3d4");
        auth_is_accepted("D 00 88 0000 00000008 00 00 0000 d4c3b2a1");
        auth_is_accepted("D 00 88 0000 0000000c 00 00 0000 MAGIC deadbeef");
        auth_is_accepted("D 00 88 0000 00000008 00 05 0000 MAGIC");
    }

    fn auth_is_left(reply: &str, why: &str) {
        is_left(&format!("C 00 08 0000 00000008 0000 0000 0000 0000\n{reply}"), why);
    }

    #[test]
    fn a_reply_of_no_generation_is_not() {
        auth_is_left("D 00 88 0000 00000003 00 00 00", "sent a");
        auth_is_left("D 00 88 0000 00000004 00 00 0000", "sent a");
        auth_is_left("D 00 88 0000 00000008 00 00 0000 a1b2c3d5", "sent a");
        auth_is_left("D 00 88 0000 00000008 01 00 0000 MAGIC", "sent a");
        auth_is_left("D 00 88 0000 00000008 01 02 0000 MAGIC", "sent a");
        auth_is_left("D 00 88 0000 00000002 02 01", "sent a");
    }

    #[test]
    fn a_reply_in_another_version_ends_it() {
        auth_is_left("D 01 88 0000 00000000\nC end", "speaks RPCAP version 1");
    }

    #[test]
    fn a_refusal_is_said_with_its_code() {
        for code in [3, 10, 16, 18, 19, 20] {
            auth_is_left(&format!("D error {code}"), &format!("refused AUTH: error {code}"));
        }
        auth_is_left("D 05 01 0011 00000001 \"v\"", "refused AUTH: error 17");
    }

    #[test]
    fn who_speaks_another_protocol_is_shown_the_door() {
        is_left("C 00 08 0000 00000008 00*8\nD \"SSH-2.0-OpenSSH\"\nC end", "is no RPCAP daemon");
    }

    #[test]
    fn a_password_goes_out_as_user_and_password() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"secret\n").expect("it can be written");
        let path = file.path().display().to_string();
        let mut sensor = SensorRun::listening(&["--user", "anna", "--password-file", &path]);
        let mut peer = sensor.meet();
        peer.plays(
            "
            C 00 08 0000 00000012 0001 0000 0004 0006 \"anna\" \"secret\"
            D 00 88 0000 00000008 00 00 0000 MAGIC
            ",
        );
        peer.plays(FINDALLIF);
    }
}

mod section_1_4_findallif {
    use super::*;

    const ASK: &str = "C 00 02 0000 00000000";

    fn opens(reply: &str, open: &str) {
        let mut sensor = SensorRun::listening(&[]);
        let mut peer = sensor.meet();
        peer.plays(AUTH);
        peer.plays(ASK);
        peer.plays(reply);
        peer.plays(open);
    }

    #[test]
    fn the_first_interface_is_opened() {
        opens(
            "D 00 82 0002 00000020 0004 0000 00000016 0000 0000 \"eth1\" 0004 0000 00000016 0000 0000 \"eth0\"",
            "C 00 03 0000 00000004 \"eth1\"",
        );
    }

    #[test]
    fn the_preselected_interface_is_opened_wherever_it_stands() {
        opens(
            "D 00 82 0002 0000002c 0004 0000 00000016 0000 0000 \"eth1\" 0004 000c 00000016 0000 0000 \"eth0\" \";preselected\"",
            "C 00 03 0000 00000004 \"eth0\"",
        );
    }

    #[test]
    fn an_interface_that_was_asked_for_is_opened_without_a_list() {
        let mut sensor = SensorRun::listening(&["--open", "ens5"]);
        let mut peer = sensor.meet();
        peer.plays(AUTH);
        peer.plays("C 00 03 0000 00000004 \"ens5\"");
    }

    #[test]
    fn addresses_of_every_family_are_passed_over() {
        // IPv4, IPv6 (23 and Linux's 10), a MAC (17), a BSD form with its length.
        let slots = ["0002", "0017", "000a", "0011", "1002"]
            .map(|family| format!("{family} 00*126 00*384 "))
            .concat();
        let list = format!("D 00 82 0001 00000a10 0004 0000 00000016 0005 0000 \"eth0\" {slots}");
        opens(&list, "C 00 03 0000 00000004 \"eth0\"");
    }

    #[test]
    fn a_list_beyond_64000_bytes_is_read() {
        let list =
            format!("D 00 82 0001 00010010 0004 0000 00000016 0080 0000 \"eth0\" {}", "00*65536");
        opens(&list, "C 00 03 0000 00000004 \"eth0\"");
    }

    fn list_is_left(reply: &str, why: &str) {
        is_left(&format!("{AUTH}\n{ASK}\n{reply}"), why);
    }

    #[test]
    fn an_empty_list_and_a_refusal_are_said() {
        list_is_left("D 00 82 0000 00000000", "offers no interface");
        list_is_left("D error 4", "refused FINDALLIF: error 4");
        list_is_left("D error 5", "refused FINDALLIF: error 5");
    }

    #[test]
    fn a_list_that_contradicts_itself_is_not_used() {
        // More interfaces than there are; a name, and addresses, longer than the payload.
        list_is_left("D 00 82 0002 00000010 0004 0000 00000016 0000 0000 \"eth0\"", "sent a");
        list_is_left("D 00 82 0001 00000010 0040 0000 00000016 0000 0000 \"eth0\"", "sent a");
        list_is_left("D 00 82 0001 00000010 0004 0000 00000016 ffff 0000 \"eth0\"", "sent a");
        list_is_left("D 00 82 0001 ffffffff", "sent an interface list of 4294967295 bytes");
    }
}

mod section_1_5_open {
    use super::*;

    #[test]
    fn a_refusal_is_said_with_its_code() {
        let script = "C 00 03 0000 00000004 \"eth0\"\nD error 6";
        is_left(&[AUTH, FINDALLIF, script].join("\n"), "refused OPEN: error 6");
    }

    #[test]
    fn a_reply_too_short_is_not_used() {
        let script = "C 00 03 0000 00000004 \"eth0\"\nD 00 83 0000 00000003 000000";
        is_left(&[AUTH, FINDALLIF, script].join("\n"), "sent a");
    }
}

mod section_1_6_startcap {
    use super::*;

    const ASK: &str =
        "C 00 04 0000 0000001c 00040000 00000064 0006 PORT 0001 0000 00000001 0006 00 00 00040000";

    #[test]
    fn a_refusal_is_said_with_its_code() {
        let script = format!("{ASK}\nD error 12");
        is_left(&[AUTH, FINDALLIF, OPEN, &script].join("\n"), "refused STARTCAP: error 12");
    }

    #[test]
    fn replies_with_trailing_bytes_are_read() {
        let mut sensor = SensorRun::listening(&[]);
        let mut peer = sensor.meet();
        peer.plays(AUTH);
        peer.plays(FINDALLIF);
        peer.plays(
            "C 00 03 0000 00000004 \"eth0\"\nD 00 83 0000 0000000c 00000001 00000000 deadbeef",
        );
        peer.plays(ASK);
        peer.plays("D 00 84 0000 0000000c 00040000 0000 0000 deadbeef");
        sensor.wait_for("captures");
    }

    #[test]
    fn the_snaplen_that_was_asked_for_is_sent() {
        let mut sensor = SensorRun::listening(&["--snaplen", "96"]);
        let mut peer = sensor.meet();
        for script in [AUTH, FINDALLIF, OPEN] {
            peer.plays(script);
        }
        peer.plays(&ASK.replacen("00040000", "00000060", 1));
    }
}

mod section_1_11_endcap_and_close {
    use super::*;

    #[test]
    fn a_capture_ends_with_endcap_stats_and_close() {
        let daemon = Daemon::capturing(&[]);
        daemon.sends(&plain(1));
        let (written, totals) = daemon.ends();
        assert_eq!(written, [frame(1)]);
        assert_eq!(totals["packets"], 1);
    }

    #[test]
    fn a_daemon_that_answers_byte_by_byte_is_understood() {
        let mut sensor = SensorRun::listening(&[]);
        let mut peer = sensor.meet();
        peer.cut_into(1);
        for script in [AUTH, FINDALLIF, OPEN, STARTCAP] {
            peer.plays(script);
        }
        sensor.interrupt();
        peer.plays(END);
        sensor.summary();
    }

    #[test]
    fn an_endcap_that_is_refused_ends_it_all_the_same() {
        let mut daemon = Daemon::capturing(&[]);
        daemon.sensor.interrupt();
        daemon.peer.plays(
            "
            C 00 09 0000 00000000
            D error 8
            C 00 0a 0000 00000000
            D error 13
            C 00 09 0000 00000000
            D error 8
            C 00 06 0000 00000000
            C end
            ",
        );
        daemon.sensor.summary();
    }
}

mod section_1_13_error {
    use super::*;

    #[test]
    fn error_9_in_a_capture_ends_it() {
        let mut daemon = Daemon::capturing(&[]);
        daemon.peer.plays("D 00 01 0009 00000019 \"The interface disappeared\"");
        daemon.sensor.wait_for("ended its capture: error 9, \"The interface disappeared\"");
    }

    #[test]
    fn other_errors_and_replies_that_nobody_waits_for_do_not() {
        let mut daemon = Daemon::capturing(&[]);
        daemon.peer.plays(
            "
            D error 8
            D 00 85 0000 00000000
            D 00 8b 0000 00000002 0102
            D 00 4d 0000 00000400 4d*1024
            ",
        );
        daemon.sensor.wait_for("error 8");
        daemon.sends(&plain(1));
        assert_eq!(daemon.ends().0, [frame(1)]);
    }

    #[test]
    fn a_message_in_another_version_ends_it() {
        let mut daemon = Daemon::capturing(&[]);
        daemon.peer.plays("D 02 89 0000 00000010 00*16\nC end");
        daemon.sensor.wait_for("version 2");
    }
}

mod section_2_2_udp {
    use super::*;

    #[test]
    fn exact_messages_are_delivered_byte_for_byte() {
        let (written, totals) = outcome(&[plain(1), plain(2), plain(3)]);
        assert_eq!(written, frames(&[1, 2, 3]));
        assert_eq!((&totals["packets"], &totals["lost_packets"]), (&3.into(), &0.into()));
    }

    #[test]
    fn trailing_bytes_and_a_second_message_are_ignored() {
        let trailing = [&plain(1)[..], &[0xde, 0xad]].concat();
        let (written, _) = outcome(&[trailing, [plain(2), plain(3)].concat(), plain(4)]);
        assert_eq!(written, frames(&[1, 2, 4]));
    }

    #[test]
    fn a_caplen_below_the_payload_cuts_the_frame() {
        let mut datagram = plain(1);
        datagram[16..20].copy_from_slice(&60_u32.to_be_bytes());
        let (written, _) = outcome(&[datagram]);
        assert_eq!(written, [frame(1)[..60].to_vec()]);
    }

    #[test]
    fn malformed_datagrams_are_counted_by_reason_and_harm_nothing() {
        let changed = |at: usize, bytes: &[u8]| {
            let mut datagram = plain(7);
            datagram[at..at + bytes.len()].copy_from_slice(bytes);
            datagram
        };
        let lens = |caplen: u32, len: u32| [caplen.to_be_bytes(), len.to_be_bytes()].concat();
        let faults: [(&str, Vec<u8>); 12] = [
            ("short", vec![]),
            ("short", vec![0, 7, 0, 0, 0, 0, 0]),
            ("version", changed(0, &[1])),
            ("type", changed(1, &[9])),
            ("type", changed(1, &[0x87])),
            // plen: shorter than a packet header, more than what came, much more.
            ("payload_length", message(7, 0, &[0; 19])),
            ("payload_length", plain(7)[..100].to_vec()),
            ("payload_length", changed(4, &[0xff])),
            // caplen: one byte, and a header's length (CVE-2026-18238), beyond plen; much more.
            ("caplen", changed(16, &lens(108, 1500))),
            ("caplen", changed(16, &lens(127, 1500))),
            ("caplen", changed(16, &lens(u32::MAX, u32::MAX))),
            // Longer here than on the wire.
            ("wire_len", changed(16, &lens(107, 106))),
        ];
        let bad = faults.iter().map(|(_, datagram)| datagram.clone());
        let datagrams: Vec<_> = [plain(1)].into_iter().chain(bad).chain([plain(2)]).collect();
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2]), "{totals}");
        let reasons = ["short", "version", "type", "payload_length", "caplen", "wire_len"];
        for reason in reasons {
            let expected = faults.iter().filter(|(label, _)| *label == reason).count();
            assert_eq!(totals["malformed"][reason], expected, "{reason}: {totals}");
        }
    }

    #[test]
    fn a_lost_datagram_is_counted_and_reordered_ones_are_delivered() {
        let (written, totals) = outcome(&[plain(1), plain(4), plain(3), plain(4), plain(6)]);
        assert_eq!(written, frames(&[1, 4, 3, 6]));
        for (what, expected) in
            [("lost_packets", 2), ("reordered", 1), ("duplicates", 1), ("packets", 4)]
        {
            assert_eq!(totals[what], expected, "{what}: {totals}");
        }
    }

    #[test]
    fn a_strangers_datagram_is_not_taken() {
        let daemon = Daemon::capturing(&[]);
        let stranger = UdpSocket::bind("127.0.0.2:0").expect("loopback is a /8");
        stranger.send_to(&plain(9), daemon.to).expect("it is there");
        daemon.sends(&plain(1));
        let (written, totals) = daemon.ends();
        assert_eq!(written, frames(&[1]));
        assert_eq!(totals["foreign"], 1, "{totals}");
    }

    #[test]
    fn the_largest_datagram_is_taken() {
        let frame = Wire::frame(1, 65_549);
        let (written, _) = outcome(&[packet(1, 5, 6, &frame, 65_479)]);
        assert_eq!(written, [frame[..65_479].to_vec()]);
    }
}

mod section_2_3_tcp {
    use super::*;

    /// Flags SERVEROPEN: the daemon connects to the port.
    fn server_open() -> (SensorRun, Peer, TcpStream) {
        let mut sensor = SensorRun::listening(&["--data", "tcp"]);
        let mut peer = sensor.meet();
        for script in [AUTH, FINDALLIF, OPEN, &STARTCAP.replace("0006 PORT", "0004 PORT")] {
            peer.plays(script);
        }
        let data = TcpStream::connect(("127.0.0.1", peer.port())).expect("it listens");
        data.set_nodelay(true).expect("an option of every TCP socket");
        (sensor, peer, data)
    }

    fn ends(mut sensor: SensorRun, mut peer: Peer, data: TcpStream) -> (Vec<Vec<u8>>, Value) {
        sensor.interrupt();
        let (stats, rest) = END.split_once("D 00 8a").expect("ENDCAP's reply");
        peer.plays(stats);
        drop(data); // ENDCAP closes the data socket before it is answered.
        peer.plays(&format!("D 00 8a{rest}"));
        let summary = sensor.summary();
        (frames_of(&sensor.file()), summary["totals"].clone())
    }

    #[test]
    fn an_active_daemon_connects_to_the_port_and_its_messages_are_taken_in_any_pieces() {
        let (sensor, peer, mut data) = server_open();
        let bytes = [plain(1), plain(2), plain(3)].concat();
        for piece in bytes.chunks(7) {
            data.write_all(piece).expect("it reads");
        }
        let (written, totals) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2, 3]));
        assert_eq!(totals["packets"], 3);
    }

    #[test]
    fn trailing_bytes_and_other_types_within_a_message_are_skipped() {
        let (sensor, peer, mut data) = server_open();
        let mut padded = plain(1);
        padded.extend([0xde; 5]);
        let plen = u32::try_from(padded.len() - 8).expect("a message");
        padded[4..8].copy_from_slice(&plen.to_be_bytes());
        let other = message(77, 0, &[7; 300]);
        data.write_all(&[padded, other, plain(2)].concat()).expect("it reads");
        let (written, _) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2]));
    }

    #[test]
    fn data_that_cannot_be_followed_end_the_capture() {
        for (at, byte) in [(0, 1), (4, 0x7f)] {
            let (mut sensor, _peer, mut data) = server_open();
            let mut wrong = plain(2);
            wrong[at] = byte;
            data.write_all(&[plain(1), wrong].concat()).expect("it reads");
            sensor.wait_for("sends data that cannot be followed");
        }
    }

    #[test]
    fn a_data_connection_that_closes_ends_the_capture() {
        let (mut sensor, _peer, data) = server_open();
        drop(data);
        sensor.wait_for("closed its data connection");
    }

    #[test]
    fn to_a_passive_daemon_the_sensor_connects_itself() {
        let mut sensor = SensorRun::connecting(&["--data", "tcp"]);
        let mut peer = sensor.meet();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
        for script in [AUTH, FINDALLIF, OPEN] {
            peer.plays(script);
        }
        peer.set_port(listener.local_addr().expect("it is bound").port());
        peer.plays(
            "
            C 00 04 0000 0000001c 00040000 00000064 0000 0000 0001 0000 00000001 0006 00 00 00040000
            D 00 84 0000 00000008 00040000 PORT 0000
            ",
        );
        let (mut data, _from) = listener.accept().expect("the sensor connects");
        data.set_write_timeout(Some(LIMIT)).expect("an option of every socket");
        data.write_all(&[plain(1), plain(2)].concat()).expect("it reads");
        let (written, _) = ends(sensor, peer, data);
        assert_eq!(written, frames(&[1, 2]));
    }
}

mod section_2_2_passive_udp {
    use super::*;

    #[test]
    fn to_a_passive_daemon_the_sensor_tells_its_port() {
        let mut sensor = SensorRun::connecting(&[]);
        let mut peer = sensor.meet();
        for script in [AUTH, FINDALLIF, OPEN, &STARTCAP.replace("0006 PORT", "0002 PORT")] {
            peer.plays(script);
        }
        let data = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, peer.port()));
        let daemon = Daemon { sensor, peer, data, to };
        daemon.sends(&plain(1));
        assert_eq!(daemon.ends().0, frames(&[1]));
    }
}

mod section_2_4_udpstr {
    use super::*;

    /// The stream of these frames, and where each packet header starts.
    fn stream(numbers: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for number in numbers {
            starts.push(bytes.len());
            bytes.extend(&plain(*number)[8..]);
        }
        (bytes, starts)
    }

    /// Cuts a stream at these places; each datagram says where its first header starts.
    fn cut(numbers: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let (bytes, starts) = stream(numbers);
        let mut from = 0;
        let mut datagrams = Vec::new();
        for (sequence, to) in (0_u32..).zip(cuts.iter().copied().chain([bytes.len()])) {
            let first = starts.iter().find(|start| (from..to).contains(*start));
            let first =
                first.map_or(0xffff, |start| u16::try_from(8 + start - from).expect("16 bits"));
            let mut datagram = vec![0, 110];
            datagram.extend(first.to_be_bytes());
            datagram.extend(sequence.to_be_bytes());
            datagram.extend(&bytes[from..to]);
            datagrams.push(datagram);
            from = to;
        }
        datagrams
    }

    #[test]
    fn packets_are_put_together_across_datagrams() {
        // Packets of 121, 122 and 123 bytes: cut in a frame, twice in the next, at an edge.
        let datagrams = cut(&[1, 2, 3], &[100, 150, 200, 243]);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3]), "{totals}");
        assert_eq!(totals["gaps"], 0);
    }

    #[test]
    fn a_lost_datagram_costs_only_the_packets_that_touch_it() {
        let mut datagrams = cut(&[1, 2, 3, 4], &[121, 200, 270]);
        datagrams.remove(1);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 3, 4]), "{totals}");
        assert_eq!((&totals["lost_datagrams"], &totals["lost_packets"]), (&1.into(), &1.into()));
    }

    #[test]
    fn swapped_and_doubled_datagrams_are_put_in_order() {
        let mut datagrams = cut(&[1, 2, 3, 4], &[121, 200, 270]);
        datagrams.swap(1, 2);
        datagrams.push(datagrams[0].clone());
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3, 4]), "{totals}");
        assert_eq!((&totals["reordered"], &totals["duplicates"]), (&1.into(), &1.into()));
    }

    #[test]
    fn malformed_datagrams_are_counted_and_harm_nothing() {
        let mut datagrams = cut(&[1, 2], &[121]);
        let numbered =
            |head: [u8; 4], number: u8, body: &[u8]| [&head[..], &[0, 0, 0, number], body].concat();
        let ((third, _), (fourth, _)) = (stream(&[3]), stream(&[4]));
        datagrams.extend([
            vec![0, 110, 0],
            numbered([1, 110, 0, 8], 2, &third),
            // A byte that continues nothing; the header behind it can be used.
            numbered([0, 110, 0, 9], 2, &[&[0xff], &third[..]].concat()),
            // The first header beyond the datagram's end, and one cut by it.
            numbered([0, 110, 0xff, 0], 3, &third),
            numbered([0, 110, 0, 8], 4, &third[..19]),
            numbered([0, 110, 0, 8], 5, &fourth),
        ]);
        let (written, totals) = outcome(&datagrams);
        assert_eq!(written, frames(&[1, 2, 3, 4]), "{totals}");
        for (reason, count) in
            [("short", 1), ("version", 1), ("continuation", 1), ("first_header", 2)]
        {
            assert_eq!(totals["malformed"][reason], count, "{reason}: {totals}");
        }
    }

    #[test]
    fn both_forms_may_be_mixed() {
        let datagrams = [cut(&[1], &[]), vec![plain(2)]].concat();
        assert_eq!(outcome(&datagrams).0, frames(&[1, 2]));
    }
}
