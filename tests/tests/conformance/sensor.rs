//! A scripted daemon against `podtap sensor`: what it asks, and what it makes of every answer.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::Value;
use tests::rpcap_spec::{LIMIT, Peer, SensorRun, Wire, frames_of, message, packet};

mod data;

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
/// Snaplen 262144, DGRAM and SERVEROPEN, podtap's own flag 8000 (datagrams of any
/// size are taken), a filter that accepts everything.
const STARTCAP: &str = "
    C 00 04 0000 0000001c 0000ffc7 00000064 8006 PORT 0001 0000 00000001 0006 00 00 00040000
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
        "C 00 04 0000 0000001c 0000ffc7 00000064 8006 PORT 0001 0000 00000001 0006 00 00 00040000";

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
        peer.plays(&ASK.replacen("0000ffc7", "00000060", 1));
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
        daemon.sensor.wait_for("ended its capture: error 9");
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
