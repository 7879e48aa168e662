//! Frames of capture files.

use super::*;
use crate::capfile::pcapng::Writer;
use crate::explain::craft::{End, Ends, Protocol, packet};
use crate::explain::key;

fn end(text: &str) -> End {
    let address: std::net::SocketAddr = text.parse().unwrap();
    End { address: address.ip(), port: Some(address.port()) }
}

fn tcp(source: &str, destination: &str) -> Vec<u8> {
    let ends = Ends { source: end(source), destination: end(destination) };
    packet(&ends, Protocol::TCP, false)
}

/// A file of these frames, in a folder of its own.
fn file(frames: &[Vec<u8>]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.pcapng");
    let mut writer = Writer::new(std::fs::File::create(&path).unwrap()).unwrap();
    let id = writer.interface("x", 1, 0).unwrap();
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap();
        writer.packet(id, 1_000_000_000, len, frame).unwrap();
    }
    let text = path.to_str().unwrap().to_owned();
    (folder, text)
}

fn json(state: &State, words: &str) -> serde_json::Value {
    serde_json::from_str(&ask(state, &format!("{words} --json")).unwrap()).unwrap()
}

#[test]
fn a_frame_is_taken_apart_and_judged_at_its_point() {
    let state = vpc_cni().state(&FLAGS);
    let mut tagged = tcp("10.0.2.7:40000", "10.0.1.101:80");
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let (_folder, path) = file(&[tcp("10.0.1.101:1", "10.0.1.102:2"), tagged]);
    let value = json(&state, &format!("--file {path} --frame 2 --point eth0:in"));
    assert_eq!(value["frame"], 2);
    assert_eq!(value["vlans"], serde_json::json!([5]));
    assert_eq!(value["packet"]["source"], "10.0.2.7:40000");
    assert_eq!(value["copy"], 1);
    assert_eq!(value["copies"][0]["reason"], "covered");
    let value = json(&state, &format!("--file {path} --frame 1 --point eni2:out"));
    assert_eq!(value["copy"], 2, "{value}");
    assert_eq!(value["copies"][1]["reason"], "duplicate");
    let value = json(&state, &format!("--file {path} --frame 1 --point eth0:out"));
    assert_eq!(value["copy"], 1);
    let notes = value["notes"].to_string();
    assert!(notes.contains("eth0:out is not on the way of its flow"), "{notes}");
}

#[test]
fn what_counts_in_a_packet_is_what_the_data_path_compares() {
    let key = key::fields(&tcp("10.0.2.7:40000", "10.0.1.101:80"));
    for name in ["DSCP", "IP ID", "fragment fields", "IP length", "seq", "ack", "flags", "window"] {
        assert!(key.counts.contains(&name), "{name}: {key:?}");
    }
    for name in ["MAC addresses", "ECN", "TTL", "IP checksum", "TCP checksum"] {
        assert!(key.ignored.contains(&name), "{name}: {key:?}");
    }
    assert_eq!(
        key.ends,
        ["source address", "destination address", "source port", "destination port"]
    );
    let v6 = key::fields(&tcp("[fd00::1]:1", "[fd00::2]:2"));
    assert_eq!(v6.ends, key.ends);
    assert!(v6.ignored.contains(&"hop limit") && v6.counts.contains(&"flow label"), "{v6:?}");
    // Bytes that are no packet count as they are.
    let other = key::fields(&[7; 60]);
    assert_eq!((other.counts.len(), other.ignored.len()), (2, 0), "{other:?}");
    let _none = key::fields(&[]);
}

#[test]
fn a_frame_that_is_not_there_says_how_many_are() {
    let state = vpc_cni().state(&FLAGS);
    let (_folder, path) = file(&[tcp("10.0.1.101:1", "10.0.1.102:2")]);
    for (words, expected) in [
        (format!("--file {path} --frame 2"), "has 1 frames, so none of number 2"),
        (format!("--file {path} --frame 0"), "counted from 1"),
        ("--file /etc/hostname --frame 1".to_owned(), "not a capture file"),
        ("--file /nonexistent --frame 1".to_owned(), "cannot read /nonexistent"),
        (format!("--file {path} --frame 1 --point eth9:in"), "\"eth9\" is neither"),
        (format!("--file {path} --frame 1 --point eth0"), "--point: \"eth0\" is not IFACE:in"),
    ] {
        let error = ask(&state, &words).unwrap_err();
        assert!(error.is_input(), "{error}");
        assert!(error.to_string().contains(expected), "{words}: {error}");
    }
}

#[test]
fn every_frame_of_every_capture_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures");
    let folder = std::env::var_os("PODTAP_CAPTURES").map_or(folder, Into::into);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures in {}", folder.display());
        return;
    };
    let known = Known::new(vpc_cni().state(&FLAGS));
    let mut explained = 0;
    for entry in entries {
        let file = entry.unwrap().path();
        // The first ones of each: a file is read from its start for each.
        for number in 1..=12 {
            let question =
                Question::Frame { file: file.clone(), number, point: None, backend: None };
            match answer(&known, Source::File("-".into()), question) {
                Ok(answer) => {
                    assert!(!text::render(&answer).is_empty());
                    explained += 1;
                }
                Err(error) => assert!(error.is_input(), "{error}"),
            }
        }
    }
    assert!(explained > 100, "{explained}");
}
