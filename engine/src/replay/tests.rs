//! Replays of small captures made here.

use std::io::Read as _;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use super::*;
use crate::config::Settings;
use crate::rpcap::{BpfInsn, Header, MessageType};
use crate::sys::libpcap::{NETMASK_UNKNOWN, compile};
use crate::wire::{Headers, protocol};

/// A UDP packet of pod A to a peer, with this number as its payload.
fn packet(source: [u8; 4], ttl: u8, id: u16, payload: u32) -> Vec<u8> {
    let mut data = vec![2; 12];
    data.extend([8, 0, 0x45, 0, 0, 32]);
    data.extend(id.to_be_bytes());
    data.extend([0, 0, ttl, protocol::UDP, 0, 0]);
    data.extend(source);
    data.extend([10, 0, 2, 101, 0x03, 0xe8, 0, 53, 0, 12, 0, 0]);
    data.extend(payload.to_be_bytes());
    data
}

fn capture(path: &Path, frames: &[(u64, Vec<u8>)]) {
    let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for (time, data) in frames {
        let len = u32::try_from(data.len()).unwrap();
        writer.write_bytes(*time, len, data).unwrap();
    }
    writer.finish().unwrap();
}

fn replay(args: &Args, settings: &[&str]) -> (Summary, Vec<u8>) {
    try_replay(args, settings).unwrap()
}

fn try_replay(args: &Args, settings: &[&str]) -> Result<(Summary, Vec<u8>), FileError> {
    let config = Config::new(&Settings::from_parts(settings, &[]).unwrap()).unwrap();
    let points = points::Points::new(args).unwrap();
    let classifier = Classifier::new(&config.policy, &points.view, &[]);
    let mut source = FileSource::open(&points.inputs)?;
    let table = Arc::new(Table::new(config.dedup_memory, config.dedup_window_ns).unwrap());
    let pipeline = Pipeline::new(table, Fingerprinter::new(SEED));
    let mut out = Vec::new();
    let summary = to_file(&mut source, pipeline, &classifier, config.snaplen, &mut out).unwrap();
    Ok((summary, out))
}

fn args(points: Vec<String>) -> Args {
    Args {
        files: Vec::new(),
        point: points,
        uplink: "eth*".into(),
        local_net: "10.0.1.0/24".into(),
        write: None,
        packets_per_second: 0,
        wait_seconds: 1,
    }
}

const POD: [u8; 4] = [10, 0, 1, 101];
const OTHER: [u8; 4] = [10, 0, 3, 7];

#[test]
fn two_points_of_one_node_give_each_packet_once_and_the_same_bytes_again() {
    let dir = tempfile::tempdir().unwrap();
    let (pod, uplink) = (dir.path().join("pod.pcap"), dir.path().join("uplink.pcap"));
    let at = |number: u32| 1_700_000_000_000_000_000 + u64::from(number) * 1000;
    let id = |number: u32| u16::try_from(number).unwrap();
    let sent: Vec<_> = (0..500).map(|n| (at(n), packet(POD, 64, id(n), n))).collect();
    let mut left: Vec<_> = (0..500).map(|n| (at(n) + 300, packet(POD, 63, id(n), n))).collect();
    // A packet of another tapped node passes by, and one whose pod-side copy was never seen.
    left.push((at(500), packet(OTHER, 61, 9, 9)));
    left.push((at(501), packet(POD, 63, 999, 77)));
    capture(&pod, &sent);
    capture(&uplink, &left);
    let args =
        args(vec![format!("vethA:in={}", pod.display()), format!("eth0:out={}", uplink.display())]);
    let (summary, bytes) = replay(&args, &["--tapped-net", "10.0.0.0/16"]);
    assert_eq!((summary.received, summary.reported), (1002, 501));
    assert_eq!(summary.dropped[DropReason::Duplicate as usize], 500);
    assert_eq!(summary.dropped[DropReason::Covered as usize], 1);
    assert_eq!(bytes, replay(&args, &["--tapped-net", "10.0.0.0/16"]).1);
    // The reported copies are the first ones: the pod's own, not the uplink's.
    let first = &bytes[24 + 16..24 + 16 + 46];
    assert_eq!(first, packet(POD, 64, 0, 0));
}

#[test]
fn the_same_bytes_twice_at_one_point_are_two_packets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod.pcap");
    let frames: Vec<_> = (0..100).map(|n| (1_000_000 + n, packet(POD, 64, 0, 7))).collect();
    capture(&path, &frames);
    let args = Args { files: vec![path], point: Vec::new(), ..args(Vec::new()) };
    let (summary, _) = replay(&args, &[]);
    assert_eq!((summary.received, summary.reported), (100, 100));
}

#[test]
fn what_goes_through_a_service_is_written_with_the_pods_address_whatever_the_pace() {
    let dir = tempfile::tempdir().unwrap();
    let (pod, uplink) = (dir.path().join("pod.pcap"), dir.path().join("uplink.pcap"));
    let at = |number: u16| 1_700_000_000_000_000_000 + u64::from(number) * 50_000_000;
    let translated = |number: u16| {
        let mut data = packet(POD, 63, number, number.into());
        data[30..34].copy_from_slice(&OTHER);
        data
    };
    let mut sent: Vec<_> = (0..50).map(|n| (at(n), packet(POD, 64, n, n.into()))).collect();
    // One that nobody answers for, and then nothing for a while.
    sent.push((at(50), packet(POD, 64, 50, 50)));
    sent.push((at(60), packet(POD, 64, 60, 60)));
    let mut left: Vec<_> = (0..50).map(|n| (at(n) + 300_000, translated(n))).collect();
    left.push((at(60) + 300_000, translated(60)));
    capture(&pod, &sent);
    capture(&uplink, &left);
    let args =
        args(vec![format!("vethA:in={}", pod.display()), format!("eth0:out={}", uplink.display())]);
    let settings = ["--svcnet", "10.0.2.0/24"];
    let (summary, bytes) = replay(&args, &settings);
    assert_eq!((summary.received, summary.reported), (103, 52));
    assert_eq!(summary.dropped[DropReason::Service as usize], 51);
    let frame = packet(POD, 64, 0, 0).len();
    let written: Vec<_> = bytes[24..].chunks(16 + frame).map(|record| &record[16..]).collect();
    assert_eq!(written[49], translated(49));
    assert_eq!(written[50], packet(POD, 64, 50, 50), "in its turn, by the time of the files");
    assert_eq!(written[51], translated(60));
    assert_eq!(bytes, replay(&args, &settings).1);
}

#[test]
fn the_summary_names_every_drop_that_happened() {
    let mut summary = Summary::default();
    summary.count(Verdict::Report);
    summary.count(Verdict::Drop(DropReason::Duplicate));
    summary.count(Verdict::Drop(DropReason::Duplicate));
    assert_eq!(summary.to_text(), "received 3, reported 1, duplicate 2");
}

#[test]
fn all_captures_keep_the_identity() {
    let folder = std::env::var("PODTAP_CAPTURES").unwrap_or("../../shared/captures".into());
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures in {folder}");
        return;
    };
    let mut files = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        let Some("pcap" | "pcapng" | "cap") = path.extension().and_then(|e| e.to_str()) else {
            continue;
        };
        match try_replay(&args(vec![format!("vethA:in={}", path.display())]), &[]) {
            // Not frames of any kind that has an Ethernet form (PPP, for one).
            Err(FileError::LinkType { .. }) => continue,
            Err(error) => panic!("{error}"),
            Ok(_) => files += 1,
        }
        // The same capture at two points: each packet once, whatever it is.
        let point = |place: &str| format!("{place}={}", path.display());
        let (once, bytes) = replay(&args(vec![point("vethA:in")]), &[]);
        let (twice, again) = replay(&args(vec![point("vethA:in"), point("vethB:out")]), &[]);
        assert_eq!(once.received, once.reported + once.dropped.iter().sum::<u64>());
        assert_eq!(once.received, once.reported, "{}: one point has no copies", path.display());
        assert_eq!(twice.received, 2 * once.received);
        assert_eq!(twice.reported, once.received, "{}", path.display());
        assert_eq!(bytes, again, "{}: the first copies, in order", path.display());
    }
    assert!(files > 30, "{files} captures in {folder}");
}

#[test]
fn headers_of_the_test_packets_are_udp() {
    let headers = Headers::parse(&packet(POD, 64, 0, 0));
    assert_eq!(headers.ports, Some((1000, 53)));
}

/// What a sensor says that wants plain datagrams at `port`, and only what `filter` accepts.
fn requests(port: u16, filter: &[BpfInsn]) -> Vec<u8> {
    let mut start = Vec::new();
    start.extend(65_535u32.to_be_bytes());
    start.extend([0; 4]);
    start.extend(2u16.to_be_bytes()); // RPCAP_STARTCAPREQ_FLAG_DGRAM
    start.extend(port.to_be_bytes());
    start.extend([0, 1, 0, 0]);
    start.extend(u32::try_from(filter.len()).unwrap().to_be_bytes());
    for insn in filter {
        start.extend(insn.code.to_be_bytes());
        start.extend([insn.jt, insn.jf]);
        start.extend(insn.k.to_be_bytes());
    }
    let mut bytes = Vec::new();
    let messages: [(MessageType, &[u8]); 3] = [
        (MessageType::Auth, &[0; 8]),
        (MessageType::Open, b"any-eth"),
        (MessageType::StartCapture, &start),
    ];
    for (kind, payload) in messages {
        bytes.extend(Header::new(kind, 0, u32::try_from(payload.len()).unwrap()).to_bytes());
        bytes.extend(payload);
    }
    bytes
}

#[test]
fn a_sensors_filter_holds_for_a_replay_too() {
    let expression = "udp dst port 53 or (vlan 5 and udp dst port 53)";
    let filter = match compile(expression, 1, 65_535, true, NETMASK_UNKNOWN) {
        Ok(filter) => filter,
        Err(error) => return eprintln!("SKIPPED: no libpcap on this machine: {error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod.pcap");
    let mut wanted = Vec::new();
    let frames: Vec<_> = (0..90u16)
        .map(|n| {
            let mut data = packet(POD, 64, n, n.into());
            if n.is_multiple_of(2) {
                data[37] = 54; // another port
            }
            match n % 3 {
                1 => drop(data.splice(12..12, [0x81, 0, 0, 5])),
                2 => drop(data.splice(12..12, [0x81, 0, 0, 6])),
                _ => {}
            }
            if !n.is_multiple_of(2) && n % 3 != 2 {
                wanted.push(data.clone());
            }
            (1_000_000 + u64::from(n), data)
        })
        .collect();
    capture(&path, &frames);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = receiver.local_addr().unwrap().port();
    let address = listener.local_addr().unwrap().to_string();
    let sensor = std::thread::spawn(move || {
        let (mut control, _from) = listener.accept().unwrap();
        control.write_all(&requests(port, &filter)).unwrap();
        // Replies, until the tap ends.
        let _read = control.read_to_end(&mut Vec::new());
    });
    let settings = ["--sensor", &address, "--encoding", "plain"];
    let config = Config::new(&Settings::from_parts(&settings, &[]).unwrap()).unwrap();
    let args = Args { wait_seconds: 20, ..args(vec![format!("vethA:in={}", path.display())]) };
    run(&args, &config).unwrap();
    sensor.join().unwrap();
    // What was sent is here: nothing is on its way on a loopback.
    receiver.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 2000];
    while let Ok(len) = receiver.recv(&mut buffer) {
        got.push(buffer[8 + 20..len].to_vec());
    }
    assert_eq!(wanted.len(), 30);
    assert_eq!(got, wanted);
}
