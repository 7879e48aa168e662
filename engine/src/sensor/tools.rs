//! What other programs make of the sensor: tshark and tcpdump read what it writes, tshark's RPCAP
//! dissector reads what it says.
//!
//! ```text
//! FakeTap <--control, UDP--> Sensor --pcapng--> file, pipe --> tshark, tcpdump
//!           `--tcpdump (a namespace of its own)--> tshark -Y rpcap
//! ```

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use super::context::DataChannel;
use super::message::tests::{message, packet};
use super::played::{FakeTap, PATIENCE, Plan, Sensor};
use super::reassembly::tests::Packet;
use crate::rpcap::{BpfInsn, Filter, MessageType, Sampling};

/// False, and says so, if a program is missing.
fn have(programs: &[&str]) -> bool {
    programs.iter().all(|program| {
        let found = Command::new(program).arg("--version").output().is_ok();
        if !found {
            eprintln!("SKIPPED: no {program} on this machine");
        }
        found
    })
}

/// Standard output; standard error must not speak of errors.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {errors}");
    for word in ["malformed", "truncated", "cut short", "corrupt", "damaged", "error"] {
        assert!(!errors.to_lowercase().contains(word), "{command:?}: {errors}");
    }
    String::from_utf8(output.stdout).unwrap()
}

/// A frame that dissectors know to be whole: Ethernet with local experimental ethertype 1.
fn frame(number: u32, len: usize) -> Packet {
    let (header, mut data) = packet(number, len);
    data[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    (header, data)
}

/// A tap at one of loopback's addresses.
fn tap_at(host: u8, sensor: &Sensor) -> FakeTap {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let local = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
    socket.bind(&local.into()).unwrap();
    socket.connect(&sensor.address().into()).unwrap();
    FakeTap::serve(TcpStream::from(socket), 0)
}

fn send_from(host: u8, tap: &FakeTap, packet: &Packet) {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    socket.send_to(&message(packet), tap.data_address()).unwrap();
}

#[test]
fn tshark_and_tcpdump_read_what_was_written() {
    if !have(&["tshark", "tcpdump"]) {
        return;
    }
    let sensor = Sensor::start(DataChannel::Udp, None);
    let taps = [tap_at(1, &sensor), tap_at(2, &sensor)];
    let mut cut = frame(3, 60);
    cut.0.wire_len = 9_014;
    let sent = [frame(1, 60), frame(2, 1_514), cut, frame(4, 61)];
    for packet in &sent {
        send_from(1, &taps[0], packet);
        send_from(2, &taps[1], packet);
    }
    sensor.stop();
    taps.into_iter().for_each(|tap| tap.end(4));
    let path = sensor.path().to_owned();
    let (_, result, _directory) = sensor.end_somehow();
    result.unwrap();

    let fields = [
        "frame.interface_name",
        "frame.time_epoch",
        "frame.len",
        "frame.cap_len",
        "frame.encap_type",
    ];
    let mut tshark = Command::new("tshark");
    tshark.env("TZ", "UTC").args(["-n", "-T", "fields", "-r"]).arg(&path);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let lines = said(&mut tshark);
    for host in ["127.0.0.1", "127.0.0.2"] {
        let name = format!("{host} any-eth");
        let of_tap: Vec<_> = lines.lines().filter(|line| line.starts_with(&name)).collect();
        let expected: Vec<_> = sent
            .iter()
            .map(|(header, data)| {
                let (seconds, micros) = (header.seconds, header.micros);
                let len = header.wire_len;
                format!("{name}\t{seconds}.{micros:06}000\t{len}\t{}\t1", data.len())
            })
            .collect();
        assert_eq!(of_tap, expected);
    }
    let bad = said(Command::new("tshark").args(["-n", "-Y", "_ws.malformed", "-r"]).arg(&path));
    assert_eq!(bad, "");
    let lines = said(Command::new("tcpdump").args(["-n", "-r"]).arg(&path));
    assert_eq!(lines.lines().filter(|line| line.contains("0x88b5")).count(), 8, "{lines}");
}

#[test]
fn a_file_without_a_tap_is_readable_too() {
    if !have(&["tshark", "tcpdump"]) {
        return;
    }
    let sensor = Sensor::start(DataChannel::Udp, None);
    sensor.stop();
    let path = sensor.path().to_owned();
    let (_, result, _directory) = sensor.end_somehow();
    result.unwrap();
    assert_eq!(said(Command::new("tshark").args(["-n", "-r"]).arg(&path)), "");
    assert_eq!(said(Command::new("tcpdump").args(["-n", "-r"]).arg(&path)), "");
}

/// A program that is ended when its guard is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a program says, as they come.
fn lines_of(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        // The test may have seen enough.
        lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
    });
    receiver
}

#[test]
fn a_pipe_is_read_while_the_capture_runs() {
    for command in [["tshark", "-n", "-l", "-i"], ["tcpdump", "-n", "-l", "-r"]] {
        if !have(&command[..1]) {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let plan = Plan { output: Some(pipe.clone()), ..Plan::new(DataChannel::Udp) };
        let sensor = plan.start();
        let mut reader = Command::new(command[0])
            .args(&command[1..])
            .arg(&pipe)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map(Running)
            .unwrap();
        let lines = lines_of(reader.0.stdout.take().unwrap());
        let tap = FakeTap::connect(&sensor);
        // Each is shown before the next is sent: nothing waits for a buffer to fill.
        for number in 1..=3 {
            tap.send(&[&message(&frame(number, 60))]);
            // tcpdump says more lines: the bytes of a protocol that it does not know.
            while !lines
                .recv_timeout(PATIENCE)
                .expect("each packet is shown")
                .to_lowercase()
                .contains("0x88b5")
            {}
        }
        sensor.stop();
        tap.end(3);
        let (summary, result, _) = sensor.end_somehow();
        result.unwrap();
        assert_eq!(summary.totals.packets, 3);
    }
}

/// Runs `test` in a network namespace of its own; without root says so and skips.
fn in_netns(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: a network namespace needs root: {error}");
                return;
            }
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// tcpdump on loopback, from the moment that it sees packets to the one that it has seen `last`.
struct Recorder {
    tcpdump: Running,
}

impl Recorder {
    fn start(file: &Path) -> Self {
        let mut tcpdump = Command::new("tcpdump")
            .args(["-i", "lo", "-U", "-s", "0", "-w"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map(Running)
            .unwrap();
        let lines = lines_of(tcpdump.0.stderr.take().unwrap());
        while !lines.recv_timeout(PATIENCE).expect("tcpdump begins").contains("listening on") {}
        Self { tcpdump }
    }

    /// Ends when a datagram that is sent now is in the file.
    fn stop(self, file: &Path) {
        const MARK: &[u8] = b"the last datagram";
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            socket.send_to(MARK, "127.0.0.1:9").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let bytes = std::fs::read(file).unwrap();
            if bytes.windows(MARK.len()).any(|window| window == MARK) {
                break;
            }
            assert!(Instant::now() < deadline, "tcpdump records nothing");
        }
        drop(self.tcpdump);
    }
}

/// Values of a field of the RPCAP dissector, in the order of the file.
/// The dissector finds the protocol by itself, at any port.
fn dissected(file: &Path, filter: &str, field: &str) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-T", "fields", "-e", field, "-Y", filter, "-r"]).arg(file);
    let text = said(&mut tshark);
    text.split(['\n', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn tshark_s_rpcap_dissector_finds_nothing_malformed() {
    if !have(&["tshark", "tcpdump", "ip"]) {
        return;
    }
    in_netns(|| {
        for data in [DataChannel::Udp, DataChannel::Tcp] {
            dissect_a_conversation(data);
        }
    });
}

fn dissect_a_conversation(data: DataChannel) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lo.pcap");
    let recorder = Recorder::start(&file);
    let mut plan = Plan::new(data);
    plan.settings.wishes.credentials = Some(("me".into(), "secret".into()));
    plan.settings.wishes.sampling = Some(Sampling { method: 1, value: 3 });
    let (reload, mut reloader) = std::os::unix::net::UnixStream::pair().unwrap();
    let sensor = Plan { reload: Some(reload), ..plan }.start();
    let mut tap = FakeTap::new(TcpStream::connect(sensor.address()).unwrap());
    tap.talk_until_opened();
    tap.expect(MessageType::SetSampling);
    tap.reply(MessageType::SetSamplingReply, 0, &[]);
    tap.talk_until_started(0);
    assert_eq!(tap.start.filter, everything());
    let packets: Vec<_> = (1..=3).map(|number| message(&frame(number, 100))).collect();
    let stream = match data {
        DataChannel::Udp => {
            tap.send(&packets.iter().collect::<Vec<_>>());
            None
        }
        DataChannel::Tcp => {
            let mut stream = TcpStream::connect(tap.data_address()).unwrap();
            std::io::Write::write_all(&mut stream, &packets.concat()).unwrap();
            Some(stream)
        }
    };
    std::io::Write::write_all(&mut reloader, b"x").unwrap();
    assert_eq!(Filter::read(&tap.expect(MessageType::UpdateFilter)), Ok(everything()));
    tap.reply(MessageType::UpdateFilterReply, 0, &[]);
    sensor.stop();
    tap.end(3);
    drop(stream);
    let (summary, result, _) = sensor.end_somehow();
    result.unwrap();
    assert_eq!(summary.totals.packets, 3);
    recorder.stop(&file);

    let types = dissected(&file, "rpcap", "rpcap.type");
    // Every message of the protocol but ERROR, each with its reply, where it has one.
    let asked = [8, 2, 3, 11, 4, 5, 9, 10, 9].into_iter().flat_map(|asked| [asked, asked | 128]);
    let expected: Vec<u16> = asked.chain([6]).collect();
    let control: Vec<u16> =
        types.iter().map(|text| parse_number(text)).filter(|number| *number != 7).collect();
    assert_eq!(control, expected);
    assert_eq!(types.iter().filter(|text| parse_number(text) == 7).count(), 3);
    let bad = dissected(&file, "_ws.malformed || _ws.expert.severity >= 8388608", "rpcap");
    assert_eq!(bad, Vec::<String>::new());
}

fn parse_number(text: &str) -> u16 {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

fn everything() -> Filter {
    let accept = BpfInsn { code: 6, jt: 0, jf: 0, k: 262_144 };
    Filter { kind: 1, instructions: vec![accept] }
}
