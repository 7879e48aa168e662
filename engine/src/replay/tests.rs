//! Replays of small captures made here.

use std::path::Path;

use super::*;
use crate::config::Settings;
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
fn the_summary_names_every_drop_that_happened() {
    let mut summary = Summary::default();
    summary.count(Ok(()));
    summary.count(Err(DropReason::Duplicate));
    summary.count(Err(DropReason::Duplicate));
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
