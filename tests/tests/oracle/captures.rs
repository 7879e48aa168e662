//! Every capture at hand, by ways through a node: each frame is reported once, as the rule says.
//!
//! ```text
//! $PODTAP_CAPTURES/*.pcap* --frames--> pod to pod | pod to uplink | uplink to pod --> engine, rule
//! ```

use std::path::PathBuf;

use tests::compare;
use tests::oracle::identity::Identity;
use tests::oracle::rule::{Direction, Sighting, Sort};
use tests::oracle::taps::{self, Running, mixed};
use tests::oracle::topology::{Cni, Coverage, NodePlan, Topology};

use super::nodes::agrees;

fn captures() -> Vec<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let folder = std::env::var_os("PODTAP_CAPTURES").map_or(beside, PathBuf::from);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures at {} ($PODTAP_CAPTURES)", folder.display());
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let is_capture = |path: &PathBuf| {
        path.extension().is_some_and(|it| it == "pcap" || it == "pcapng" || it == "cap")
    };
    paths.retain(is_capture);
    paths.sort();
    paths
}

/// As a router leaves it: one hop less, and marked where that is allowed.
fn routed(frame: &[u8], hops: u8, marked: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    match (frame.get(12..14), frame.len()) {
        (Some([8, 0]), 34..) if frame[14] >> 4 == 4 => {
            frame[22] = frame[22].wrapping_sub(hops);
            frame[24] = frame[24].wrapping_add(hops);
            if marked && frame[15] & 3 != 0 {
                frame[15] |= 3;
            }
        }
        (Some([0x86, 0xdd]), 54..) if frame[14] >> 4 == 6 => {
            frame[21] = frame[21].wrapping_sub(hops);
            if marked && frame[15] & 0x30 != 0 {
                frame[15] |= 0x30;
            }
        }
        _ => {}
    }
    frame
}

/// Points of one of several ways: pod to pod, pod to uplink (a bridge and its port), and back.
fn way(choice: u64) -> &'static [(u32, Direction)] {
    use Direction::{In, Out};
    match choice % 4 {
        0 => &[(10, In), (11, Out)],
        1 => &[(10, In), (6, Out), (2, Out)],
        2 => &[(2, In), (6, In), (11, Out)],
        _ => &[(11, In), (3, Out)],
    }
}

#[test]
fn each_frame_of_every_capture_is_reported_once_on_its_way_through_a_node() {
    let plan = NodePlan { cni: Cni::Routed, is_tapped: true, has_stacked_uplink: true };
    let node = Topology { nodes: vec![plan], coverage: Coverage::None }.describe(0);
    let (mut files, mut total) = (0, 0usize);
    for (number, path) in (0u64..).zip(captures()) {
        let packets = match compare::read(&path) {
            Ok(packets) => packets,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                continue;
            }
        };
        files += 1;
        let mut sightings = Vec::new();
        let mut count = 0;
        for (index, packet) in (0u64..).zip(&packets) {
            if packet.is_cut_short() {
                continue;
            }
            count += 1;
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
            frame.extend(packet.ethertype().to_be_bytes());
            frame.extend(packet.data());
            let drawn = mixed(number, index);
            // Equal frames go the same way.
            let name = Identity::of(&frame).say();
            let choice = name.bytes().fold(0, |sum, byte| mixed(sum, u64::from(byte)));
            for (hop, (ifindex, direction)) in (0u8..).zip(way(choice)) {
                let changed = routed(&frame, hop, drawn >> 8 & u64::from(hop) != 0);
                // Where there is no header to change, a router would not have passed it on.
                let is_same = Identity::of(&changed) == Identity::of(&frame);
                sightings.push(Sighting {
                    at_ns: 1_000_000_000 + index * 10_000 + u64::from(hop) * 25_000,
                    ifindex: *ifindex,
                    direction: *direction,
                    data: if is_same { changed } else { frame.clone() },
                    tag: (drawn >> 16 & 3 == u64::from(hop)).then_some(7),
                    gso_size: 0,
                    gso_type: 0,
                    partial: None,
                });
            }
        }
        sightings.sort_by_key(|sighting| sighting.at_ns);
        let workers = usize::try_from(1 + number % 4).unwrap();
        let running = Running { table_memory: 1 << 23, ..Running::new(workers, number) };
        agrees(&node, &sightings, running).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        // Whatever has nothing of this node in it is plain, and once it is.
        let is_plain = |it: &Sighting| node.sort(it.ifindex, it.direction, &it.data) == Sort::Plain;
        if sightings.iter().all(is_plain) {
            let reported: usize = taps::run(&node, &sightings, running).reported.values().sum();
            assert_eq!(reported, count, "{path:?}");
            total += count;
        }
    }
    eprintln!("{total} frames of {files} captures, once each");
    assert!(files == 0 || total > 0);
}
