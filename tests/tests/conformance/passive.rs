//! Passive mode, passwords and TCP data: scripted clients against `podtap run`.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use tests::rpcap_spec::{
    LIMIT, Packet, Peer, Tap, TcpDecoder, Wire, datagrams, in_namespace, read_plain,
};

const AUTH: &str = "
    C 00 08 0000 00000008 0000 0000 0000 0000
    D 00 88 0000 00000008 00 00 0000 MAGIC
";
const OPEN: &str = "
    C 00 03 0000 00000007 \"any-eth\"
    D 00 83 0000 00000008 00000001 00000000
";
const ENDCAP: &str = "
    C 00 0a 0000 00000000
    D 00 8a 0000 00000000
";

/// STARTCAP with these flags: 2 DGRAM, 4 SERVEROPEN, 0 the client connects. Snaplen 262144, a
/// filter that accepts everything.
fn startcap(flags: u16) -> String {
    format!(
        "C 00 04 0000 0000001c 00040000 000000fa {flags:04x} PORT 0001 0000 00000001 0006 00 00 00040000"
    )
}

/// The reply: 16 MiB; a port only if the client is to connect.
const STARTED: &str = "D 00 84 0000 00000008 01000000 0000 0000";
const STARTED_AT_PORT: &str = "D 00 84 0000 00000008 01000000 PORT 0000";

fn frame(mark: u8) -> Vec<u8> {
    Wire::frame(mark, 60 + usize::from(mark))
}

fn send(wire: &Wire, marks: std::ops::RangeInclusive<u8>) {
    marks.for_each(|mark| wire.send(&frame(mark)));
}

fn is_whole(packet: &Packet, number: u32, frame: &[u8]) {
    assert_eq!(packet.data, frame);
    assert_eq!((packet.number, packet.len as usize), (number, frame.len()));
}

/// A passive tap.
fn with_tap(name: &str, flags: &[&str], test: impl FnOnce(&mut Tap, &Wire) + Send) {
    in_namespace(name, |wire| {
        wire.wait_until_it_carries();
        test(&mut Tap::passive(flags), wire);
    });
}

/// A client that may open.
fn client(tap: &mut Tap) -> Peer {
    let mut peer = tap.connect();
    peer.plays(AUTH);
    peer.plays(OPEN);
    peer
}

/// A TCP data connection, as a client reads it.
struct Data {
    stream: TcpStream,
    decoder: TcpDecoder,
    packets: std::collections::VecDeque<Packet>,
}

impl Data {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).expect("an option of every socket");
        Self { stream, decoder: TcpDecoder::default(), packets: [].into() }
    }

    fn next(&mut self) -> Packet {
        let mut buffer = vec![0; 100_000];
        loop {
            if let Some(packet) = self.packets.pop_front() {
                return packet;
            }
            let len = self.stream.read(&mut buffer).expect("data");
            assert!(len > 0, "closed");
            self.packets.extend(self.decoder.take(&buffer[..len]));
        }
    }

    fn gets(&mut self, number: u32, marks: std::ops::RangeInclusive<u8>) {
        for (number, mark) in (number..).zip(marks) {
            is_whole(&self.next(), number, &frame(mark));
        }
    }

    /// Nothing more comes, and the connection ends at a message's edge.
    fn ends(mut self) {
        assert_eq!(self.stream.read(&mut [0; 100]).expect("its end"), 0);
        assert!(self.decoder.is_between_messages() && self.packets.is_empty());
    }
}

/// A port for the tap to connect to, told to `peer`.
fn listen(peer: &mut Peer) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    peer.set_port(listener.local_addr().expect("it is bound").port());
    listener
}

/// Has the tap connect; the client accepts after the reply, as libpcap's does.
fn server_open(peer: &mut Peer, flags: u16) -> Data {
    let listener = listen(peer);
    peer.plays(&startcap(flags));
    peer.plays(STARTED);
    Data::new(listener.accept().expect("the tap has connected").0)
}

/// Connects to the port that the reply tells.
fn client_open(peer: &mut Peer) -> Data {
    peer.set_port(0);
    peer.plays(&startcap(0));
    peer.plays(STARTED_AT_PORT);
    let address = SocketAddr::new(peer.address(), peer.port());
    Data::new(TcpStream::connect(address).expect("the tap listens"))
}

mod section_1_3_auth {
    use super::*;

    const PASSWORD: &str = "
        C 00 08 0000 0000000e 0001 0000 0004 0002 \"anna\" \"pw\"
        D 00 88 0000 00000008 00 00 0000 MAGIC
    ";

    /// A tap that knows `anna:pw`.
    fn with_password(name: &str, test: impl FnOnce(&mut Tap) + Send) {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(b"anna:pw\n").expect("it can be written");
        let path = file.path().display().to_string();
        with_tap(name, &["--password-file", &path], |tap, _wire| test(tap));
    }

    #[test]
    fn null_auth_is_refused_unless_it_is_allowed() {
        with_password("null auth", |tap| {
            tap.connect().plays("C 00 08 0000 00000008 0000 0000 0000 0000\nD error 18");
        });
        with_tap("null auth", &["--null-auth"], |tap, _wire| {
            client(tap);
        });
    }

    #[test]
    fn a_right_password_is_accepted() {
        with_password("a password", |tap| {
            let mut peer = tap.connect();
            peer.plays(PASSWORD);
            peer.plays(OPEN);
            // Excess payload is discarded.
            tap.connect().plays(
                "
                C 00 08 0000 00000010 0001 0000 0004 0002 \"anna\" \"pw\" dead
                D 00 88 0000 00000008 00 00 0000 MAGIC
                ",
            );
        });
    }

    #[test]
    fn a_wrong_password_may_be_corrected_on_the_same_connection() {
        with_password("a wrong password", |tap| {
            let mut peer = tap.connect();
            peer.plays(
                "
                C 00 08 0000 0000000e 0001 0000 0004 0002 \"anna\" \"PW\"
                D error 18
                ",
            );
            peer.plays(PASSWORD);
        });
    }

    #[test]
    fn a_wrong_user_and_a_wrong_password_get_the_same_bytes() {
        with_password("CVE-2019-15162", |tap| {
            let refusals = ["\"anna\" \"no\"", "\"otto\" \"pw\"", "\"otto\" \"no\""].map(|who| {
                let mut peer = tap.connect();
                peer.plays(&format!("C 00 08 0000 0000000e 0001 0000 0004 0002 {who}"));
                peer.message("a refusal")
            });
            assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
            assert_eq!((refusals[0].1, refusals[0].2), (1, 18));
        });
    }

    #[test]
    fn empty_and_longest_credentials_are_refused() {
        with_password("odd credentials", |tap| {
            tap.connect().plays("C 00 08 0000 00000008 0001 0000 0000 0000\nD error 18");
            tap.connect().plays("C 00 08 0000 00020006 0001 0000 ffff ffff 61*131070\nD error 18");
        });
    }

    #[test]
    fn a_host_that_may_not_connect_gets_error_10() {
        let flags = ["--null-auth", "--allow-hosts", "192.0.2.0/24"];
        with_tap("the list of hosts", &flags, |tap, _wire| {
            tap.connect().plays("D error 10\nD end")
        });
    }

    #[test]
    fn a_tls_client_gets_an_alert() {
        with_tap("TLS", &["--null-auth"], |tap, _wire| {
            // 1.15: fatal, handshake_failure, in the client's version.
            tap.connect().plays("C 16 0301 0200 01 0001fc 0303\nD 15 0301 0002 02 28\nD end");
        });
    }
}

mod section_1_11_close {
    use super::*;

    #[test]
    fn close_and_the_end_of_the_stream_end_a_client_and_no_other() {
        with_tap("CLOSE in passive mode", &["--null-auth"], |tap, _wire| {
            let mut stays = client(tap);
            client(tap).plays("C 00 06 0000 00000000\nD end");
            client(tap).plays("C end\nD end");
            drop(client(tap));
            stays.plays(OPEN);
            client(tap).plays(OPEN);
        });
    }
}

mod section_2_2_udp {
    use super::*;

    #[test]
    fn a_passive_tap_sends_to_the_port_that_the_client_tells() {
        with_tap("passive UDP", &["--null-auth", "--encoding", "plain"], |tap, wire| {
            let mut peer = client(tap);
            let (socket, port) = datagrams();
            peer.set_port(port);
            peer.plays(&startcap(2));
            peer.plays(STARTED);
            send(wire, 1..=3);
            for (number, mark) in (1..).zip(1..=3) {
                let mut buffer = [0; 2000];
                let len = socket.recv(&mut buffer).expect("a datagram");
                is_whole(&read_plain(&buffer[..len], 262_144), number, &frame(mark));
            }
            peer.plays(ENDCAP);
        });
    }
}

mod section_2_3_tcp {
    use super::*;

    #[test]
    fn the_client_connects_to_the_port_in_the_reply() {
        with_tap("client-open", &["--null-auth"], |tap, wire| {
            let mut peer = client(tap);
            for _ in 0..2 {
                let mut data = client_open(&mut peer);
                // The tap may see the connection a moment later: what it captures from then on.
                let first = loop {
                    send(wire, 1..=1);
                    data.stream.set_nonblocking(true).expect("an option of every socket");
                    let is_there = data.stream.peek(&mut [0]).is_ok();
                    data.stream.set_nonblocking(false).expect("an option of every socket");
                    if is_there {
                        break data.next();
                    }
                };
                is_whole(&first, 1, &frame(1));
                send(wire, 2..=40);
                let mut next = data.next();
                // The first frame may have been sent more than once.
                while next.data == frame(1) {
                    next = data.next();
                }
                let number = next.number;
                is_whole(&next, number, &frame(2));
                data.gets(number + 1, 3..=40);
                peer.plays(ENDCAP);
                data.ends();
            }
        });
    }

    #[test]
    fn a_stranger_on_the_data_port_gets_nothing() {
        with_tap("a stranger", &["--null-auth"], |tap, wire| {
            let mut peer = client(tap);
            peer.set_port(0);
            peer.plays(&startcap(0));
            peer.plays(STARTED_AT_PORT);
            let address = SocketAddr::new(peer.address(), peer.port());
            let socket = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )
            .expect("a socket");
            socket.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).expect("loopback is a /8");
            socket.connect(&address.into()).expect("the tap listens");
            let mut stranger = Data::new(socket.into());
            let mut data = Data::new(TcpStream::connect(address).expect("it still listens"));
            // The tap has turned the stranger away.
            assert!(!matches!(stranger.stream.read(&mut [0; 100]), Ok(1..)));
            // Answered by whoever does both: the client's connection has been taken by then.
            peer.plays("C 00 09 0000 00000000");
            let _stats = peer.message("STATS' reply");
            wait_for_first(&mut data, wire);
            peer.plays(ENDCAP);
        });
    }

    /// Sends frames until one arrives.
    fn wait_for_first(data: &mut Data, wire: &Wire) {
        data.stream
            .set_read_timeout(Some(std::time::Duration::from_millis(20)))
            .expect("an option of every socket");
        let started = std::time::Instant::now();
        while data.stream.peek(&mut [0]).is_err() {
            assert!(started.elapsed() < LIMIT, "no data");
            send(wire, 1..=1);
        }
        data.stream.set_read_timeout(Some(LIMIT)).expect("an option of every socket");
        is_whole(&data.next(), 1, &frame(1));
    }

    #[test]
    fn a_passive_tap_connects_when_it_is_asked_to() {
        with_tap("server-open", &["--null-auth"], |tap, wire| {
            let mut peer = client(tap);
            for _ in 0..2 {
                let mut data = server_open(&mut peer, 4);
                send(wire, 1..=40);
                data.gets(1, 1..=40);
                peer.plays(ENDCAP);
                data.ends();
            }
        });
    }

    #[test]
    fn an_active_tap_connects_whether_or_not_it_is_asked_to() {
        in_namespace("active TCP", |wire| {
            wire.wait_until_it_carries();
            let mut tap = Tap::run(&[]);
            let mut peer = tap.accept();
            peer.plays(AUTH);
            peer.plays(OPEN);
            for flags in [0, 4] {
                let mut data = server_open(&mut peer, flags);
                send(wire, 1..=40);
                data.gets(1, 1..=40);
                peer.plays(ENDCAP);
                data.ends();
            }
        });
    }

    #[test]
    fn a_data_port_where_nobody_listens_is_refused() {
        with_tap("connection refused", &["--null-auth"], |tap, wire| {
            let mut peer = client(tap);
            drop(listen(&mut peer));
            peer.plays(&startcap(4));
            peer.plays("D error 12");
            peer.set_port(0);
            peer.plays(&startcap(4));
            peer.plays("D error 12");
            let mut data = server_open(&mut peer, 4);
            send(wire, 1..=1);
            data.gets(1, 1..=1);
        });
    }

    #[test]
    fn a_data_connection_that_the_client_closes_is_error_9() {
        with_tap("a closed data connection", &["--null-auth"], |tap, wire| {
            let mut peer = client(tap);
            let mut data = server_open(&mut peer, 4);
            send(wire, 1..=2);
            data.gets(1, 1..=2);
            drop(data);
            peer.plays("D error 9\nC 00 0a 0000 00000000\nD error 13");
            let mut data = server_open(&mut peer, 4);
            send(wire, 3..=3);
            data.gets(1, 3..=3);
        });
    }

    #[test]
    fn a_jumbo_frame_is_whole_and_its_plen_has_32_bits() {
        in_namespace("a jumbo frame over TCP", |wire| {
            Wire::ip("link set v0 mtu 65535\nlink set v1 mtu 65535");
            wire.wait_until_it_carries();
            let mut tap = Tap::passive(&["--null-auth"]);
            let mut peer = client(&mut tap);
            let mut data = server_open(&mut peer, 4);
            let frame = Wire::frame(1, 65_549);
            wire.send(&frame);
            is_whole(&data.next(), 1, &frame);
        });
    }

    #[test]
    fn clients_have_captures_of_their_own() {
        with_tap("two clients", &["--null-auth"], |tap, wire| {
            let (mut one, mut other) = (client(tap), client(tap));
            let mut first = server_open(&mut one, 4);
            send(wire, 1..=2);
            first.gets(1, 1..=2);
            let mut second = server_open(&mut other, 4);
            send(wire, 3..=4);
            first.gets(3, 3..=4);
            second.gets(1, 3..=4);
            one.plays(ENDCAP);
            first.ends();
            send(wire, 5..=5);
            second.gets(3, 5..=5);
            // The end of the control connection is the end of the capture.
            drop(other);
            second.ends();
        });
    }
}
