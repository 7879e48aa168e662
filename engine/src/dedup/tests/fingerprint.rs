//! What counts in a key, one frame after the other.

use super::super::fingerprint::Fingerprinter;
use super::super::key::{Key, Marks, Translated};
use crate::wire::Headers;

fn tcp() -> Vec<u8> {
    let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    data.extend([0x45, 0, 0, 44, 0x12, 0x34, 0x40, 0, 64, 6, 0xaa, 0xbb]);
    data.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    data.extend([0x9c, 0x40, 0x1f, 0x90, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x18, 1, 0, 0xcc, 0xdd]);
    data.extend([0, 0, b'a', b'b', b'c', b'd']);
    data
}

fn key(data: &[u8]) -> Key {
    let headers = Headers::parse(data);
    Fingerprinter::new(7).key(&headers, data)
}

#[test]
fn what_a_host_changes_is_ignored() {
    let original = key(&tcp());
    // MACs, ECN, TTL, IP checksum, TCP checksum.
    for (at, value) in [(0, 9), (6, 9), (15, 3), (22, 63), (24, 1), (25, 1), (50, 1), (51, 1)] {
        let mut changed = tcp();
        assert_ne!(changed[at], value);
        changed[at] = value;
        assert_eq!(key(&changed), original, "byte {at}");
    }
    let mut padded = tcp();
    padded.extend([0; 2]);
    assert_eq!(key(&padded), original, "padding");
    let mut tagged = tcp();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(key(&tagged), original, "a tag in the frame");
}

#[test]
fn every_other_byte_counts() {
    let original = key(&tcp());
    let ignored: &[usize] = &[15, 22, 24, 25, 50, 51];
    for at in (15..tcp().len()).filter(|at| !ignored.contains(at)) {
        let mut changed = tcp();
        changed[at] ^= 4; // keeps version, header lengths and the protocol parseable
        if matches!(at, 16 | 17 | 23 | 46) {
            continue; // lengths, protocol: another shape altogether
        }
        assert_ne!(key(&changed), original, "byte {at}");
    }
    let mut dscp = tcp();
    dscp[15] = 0x20;
    assert_ne!(key(&dscp), original, "DSCP");
}

#[test]
fn addresses_and_ports_are_in_the_ends_alone() {
    let original = key(&tcp());
    for at in [29, 33, 35, 37] {
        let mut changed = tcp();
        changed[at] ^= 1;
        let other = key(&changed);
        assert_eq!(other.hash(), original.hash());
        assert_ne!(other, original, "byte {at}");
        assert_eq!(original.id(0).twin_ends(other, Translated::default()), None);
    }
}

#[test]
fn an_ignored_end_agrees_with_any_and_the_other_must_be_equal() {
    let original = key(&tcp());
    let mut snat = tcp();
    snat[29] = 9;
    snat[35] = 9;
    let [source, both] = [false, true].map(|destination| Translated { source: true, destination });
    let marks = [false, true].map(|destination| Marks { source: true, destination });
    let node = key(&snat).marked(marks[0]);
    assert_eq!(original.id(0).twin_ends(node, source), Some(1));
    assert_eq!(node.id(0).twin_ends(original, source), Some(1), "in either order");
    assert_eq!(original.id(0).twin_ends(key(&snat), source), None, "another pod's");
    assert_eq!(original.id(0).twin_ends(original, source), Some(2));
    snat[33] = 9;
    assert_eq!(original.id(0).twin_ends(key(&snat).marked(marks[0]), source), None);
    assert_eq!(original.id(0).twin_ends(key(&snat).marked(marks[0]), both), None);
    assert_eq!(original.id(0).twin_ends(key(&snat).marked(marks[1]), both), Some(0));
}

#[test]
fn an_echo_id_is_a_port() {
    let mut echo = vec![0u8; 12];
    echo.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 8, 8, 8, 8]);
    echo.extend([8, 0, 0, 0, 0x11, 0x22, 0, 1]);
    let original = key(&echo);
    echo[14 + 20 + 4] = 0x33;
    assert_eq!(key(&echo).hash(), original.hash());
    assert_ne!(key(&echo), original);
    let source = Translated { source: true, destination: false };
    let asks = Marks { source: true, destination: false };
    let node = key(&echo).marked(asks);
    assert_eq!(original.id(0).twin_ends(node, source), Some(1), "of the one that asks");
    echo[14 + 20] = 0;
    let answer = key(&echo);
    echo[14 + 20 + 4] = 0x11;
    let destination = Translated { source: false, destination: true };
    let node = key(&echo).marked(Marks { source: false, destination: true });
    assert_eq!(answer.id(0).twin_ends(node, destination), Some(1));
    assert_eq!(answer.id(0).twin_ends(node, source), None);
    echo[14 + 20] = 3; // unreachable: no id there
    let error = key(&echo);
    echo[14 + 20 + 4] = 0x33;
    assert_ne!(key(&echo).hash(), error.hash());
}

#[test]
fn a_tcp_header_of_any_length_fits_the_gathering() {
    for words in 5..=15usize {
        let mut data = tcp();
        data.truncate(54);
        data[46] = u8::try_from(words << 4).unwrap();
        data.resize(14 + 20 + words * 4, 1);
        let total = u16::try_from(data.len() - 14).unwrap();
        data[16..18].copy_from_slice(&total.to_be_bytes());
        assert!(Headers::parse(&data).has_transport());
        let _ = key(&data);
    }
}

/// Seen between two nodes with connection tracking: `ip6_fragment` chooses an identification of
/// its own for what was reassembled.
#[test]
fn fragments_that_a_router_sends_on_with_another_identification_keep_their_keys() {
    let fragment = |id: u8, offset: u8| {
        let mut data = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        data.extend([0x60, 0, 0, 0, 0, 24, 44, 64]);
        data.extend([1; 16]);
        data.extend([2; 16]);
        data.extend([17, 0, 0, offset, 9, 9, 9, id]);
        data.extend([0, 53, 0, 53, 0, 40, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        data
    };
    for offset in [1, 0x11] {
        assert_eq!(key(&fragment(1, offset)), key(&fragment(2, offset)));
    }
    assert_ne!(key(&fragment(1, 0x11)), key(&fragment(1, 0x19)), "another place in the packet");
}
