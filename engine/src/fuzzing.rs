//! Every parser of bytes from outside as a function that a fuzzer calls (`tests/fuzz`).
//!
//! ```text
//! bytes --> control::conversation | sensor::{daemon, datagram, stream, tcp} | file
//!       --> filter, frame, ini (here)         each panics when a law of its module is broken
//! ```
//!
//! Not part of the program: it exists for tests and under `cfg(fuzzing)`. What a fuzzer found is
//! a test here, in hexadecimal.

use std::sync::{Arc, LazyLock};

pub use crate::control::fuzzing::conversation;
pub use crate::sensor::fuzzing::{daemon, datagram, stream, tcp};
pub use crate::source::file::fuzzing::file;

use crate::bpf::Program;
use crate::classify::{Classifier, Policy};
use crate::dedup::{Fingerprinter, Table};
use crate::frame::{Direction, Frame, Offload, Point, VlanTag};
use crate::net::View;
use crate::pipeline::{Pipeline, Verdict};
use crate::rpcap::{BpfInsn, Filter};
use crate::rpcapd;
use crate::segment::{Cut, Cutter, clip};
use crate::wire::{Headers, Network};

/// A filter as STARTCAP has it, then a frame: what is accepted runs on any frame.
///
/// The first byte is the number of instructions, eight bytes each follow, the rest is the frame.
///
/// # Panics
///
/// When a verified program does not come to an end, or not in order.
pub fn filter(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let (instructions, frame) = rest.split_at((usize::from(*count) * 8).min(rest.len()));
    let _any_bytes_are_read = Filter::read(rest);
    let instructions: Vec<BpfInsn> = instructions
        .chunks_exact(8)
        .map(|bytes| BpfInsn {
            code: u16::from_be_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let Ok(program) = Program::new(&instructions) else { return };
    assert_eq!(program.instructions(), instructions);
    assert!(!program.to_string().is_empty());
    // What the kernel is to know of it; building it checks that it is a program.
    static NODE: LazyLock<Classifier> =
        LazyLock::new(|| Classifier::new(&Policy::default(), &View::default(), &[]));
    let _pushed = NODE.filter_for(std::slice::from_ref(&program));
    for cut in [frame.len(), frame.len() / 2, 0] {
        for direction in [Direction::In, Direction::Out] {
            let vlan = (cut % 2 == 1).then_some(VlanTag { tpid: 0x8100, tci: 7 });
            let point = Point { ifindex: 3, direction };
            let whole = Frame { vlan, point, ..captured(&frame[..cut], Offload::default()) };
            let _accepted = program.run(&whole);
        }
    }
}

/// A file of `podtap rpcapd`: what is read can be written, and reads back the same.
///
/// # Panics
///
/// When it does not.
pub fn ini(data: &[u8]) {
    let Ok(read) = rpcapd::ini::parse(data) else { return };
    let text = rpcapd::ini::to_text(&read.sensors, &read.hosts, read.null_auth.unwrap_or(false));
    let again = rpcapd::ini::parse(text.as_bytes()).expect("our own text");
    assert_eq!((again.sensors, again.hosts), (read.sensors, read.hosts));
}

fn captured(data: &[u8], offload: Offload) -> Frame<'_> {
    Frame {
        data,
        wire_len: u32::try_from(data.len()).unwrap_or(u32::MAX),
        timestamp_ns: 1_700_000_000_000_000_000,
        point: Point { ifindex: 1, direction: Direction::In },
        vlan: None,
        offload,
    }
}

/// A frame with what the kernel says of it: headers, cutting, checksums, the whole pipeline.
///
/// Eight bytes first: `gso_type`, `gso_size` (2), whether and where a checksum is to be made (1, 1),
/// a tag's presence, a snaplen (2).
///
/// # Panics
///
/// When offsets leave the frame, segments are not the frame's bytes, or a verdict is missing.
pub fn frame(data: &[u8]) {
    let Some(([gso_type, s0, s1, start, offset, tag, n0, n1], data)) = data.split_first_chunk()
    else {
        return;
    };
    let partial_checksum = (*start != 0).then_some((u16::from(*start), u16::from(*offset)));
    let gso_size = u16::from_be_bytes([*s0, *s1]);
    let offload = Offload { partial_checksum, gso_size, gso_type: *gso_type };
    let vlan = (tag & 1 == 1).then_some(VlanTag { tpid: 0x8100, tci: 9 });
    let frame = Frame { vlan, ..captured(data, offload) };
    let headers = Headers::parse(data);
    check_headers(&headers, data.len());
    check_wire(&frame, usize::from(u16::from_be_bytes([*n0, *n1])));
    check_cut(&frame, &headers);
    check_pipeline(&frame);
    // Captured in part.
    check_pipeline(&Frame { wire_len: frame.wire_len.saturating_add(100), ..frame });
}

/// A super-frame: eight bytes of offload first, as [`frame`] has them, but that the checksum's place has two
/// bytes and there is no tag; then the frame, captured whole and in part.
///
/// # Panics
///
/// When segments are not the frame's bytes, or what cannot be cut is shown longer than it is.
pub fn segment(data: &[u8]) {
    let Some(([gso_type, s0, s1, a0, a1, offset, n0, n1], data)) = data.split_first_chunk() else {
        return;
    };
    let start = u16::from_be_bytes([*a0, *a1]);
    let partial_checksum = (start != 0).then_some((start, u16::from(*offset)));
    let gso_size = u16::from_be_bytes([*s0, *s1]);
    let offload = Offload { partial_checksum, gso_size, gso_type: *gso_type };
    let whole = captured(data, offload);
    let missing = u32::from(u16::from_be_bytes([*n0, *n1]));
    for frame in [whole, Frame { wire_len: whole.wire_len.saturating_add(missing), ..whole }] {
        let headers = Headers::parse(data);
        check_cut(&frame, &headers);
        let shown = clip(&frame, &headers, Some(1500));
        assert!(shown.data.len() <= data.len() && shown.wire_len == frame.wire_len);
    }
}

fn check_headers(headers: &Headers, len: usize) {
    let Headers { network, l3, l4, payload, end, .. } = *headers;
    assert!(l3 <= l4 && l4 <= payload && payload <= end && end <= len, "{headers:?} of {len}");
    assert!(network != Network::Other || headers.ports.is_none());
}

fn check_wire(frame: &Frame<'_>, snaplen: usize) {
    let wire = frame.wire(snaplen);
    let bytes = wire.to_vec();
    assert_eq!(bytes.len(), wire.caplen());
    assert!(bytes.len() <= snaplen);
    assert!(u32::try_from(bytes.len()).is_ok_and(|len| len <= wire.wire_len()));
}

fn check_cut(frame: &Frame<'_>, headers: &Headers) {
    let mut payload = Vec::new();
    let (mut segments, mut is_plain) = (0, true);
    let cut = Cutter::default().cut(frame, headers, |segment, cut| {
        segments += 1;
        check_headers(cut, segment.data.len());
        let captured = u32::try_from(segment.data.len()).expect("a segment's length");
        let missing = segment.wire_len.checked_sub(captured);
        let carried = &segment.data[cut.payload..cut.end];
        payload.extend_from_slice(carried);
        // In a tunnel, the inner headers are payload too.
        is_plain &= carried.len() <= usize::from(frame.offload.gso_size);
        if missing.expect("no longer than on the wire") == 0 {
            assert!(!carried.is_empty());
            // What was cut reads as what it is.
            let read = Headers::parse(segment.data);
            assert_eq!((read.network, read.l3, read.l4), (cut.network, cut.l3, cut.l4));
            assert_eq!((read.payload, read.end, read.ports), (cut.payload, cut.end, cut.ports));
        }
    });
    assert_eq!(cut != Cut::Impossible, segments > 0);
    if cut == Cut::Whole && is_plain {
        assert_eq!(payload, frame.data[headers.payload..headers.end]);
    }
}

fn check_pipeline(frame: &Frame<'_>) {
    /// One for all runs: no verdict is foreseen here, only that there is one.
    static TABLE: LazyLock<Arc<Table>> =
        LazyLock::new(|| Arc::new(Table::new(1 << 20, 100_000_000).expect("a table of 1 MiB")));
    let mut pipeline = Pipeline::new(Arc::clone(&TABLE), Fingerprinter::new(1));
    let policy = Policy {
        any_interface: true,
        overlay_ports: vec![4789, 6081],
        control_ports: vec![2003],
        svcnet: vec!["10.0.0.0/8".parse().expect("a prefix")],
        ..Policy::default()
    };
    let classifier = Classifier::new(&policy, &View::default(), &[[192, 0, 2, 1].into()]);
    let mut verdicts = 0;
    let mut held = 0;
    pipeline.admit(&classifier, frame, 0, |_packet, _headers, verdict| {
        verdicts += 1;
        held += u32::from(verdict == Verdict::Hold);
    });
    assert_eq!(pipeline.held(), u64::from(held));
    pipeline.settle_all(|_packet, _headers, verdict| {
        assert_ne!(verdict, Verdict::Hold);
        held -= 1;
    });
    assert_eq!(held, 0, "every packet is decided in the end");
    assert_eq!(verdicts, 1 + pipeline.notes.cut, "every packet has one verdict");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fuzzer's function.
    type Target = fn(&[u8]);

    /// What fuzzers found, each with what was wrong.
    const FOUND: &[(Target, &str, &str)] = &[];

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    #[test]
    fn what_was_found_stays_mended() {
        for (target, hex, what) in FOUND {
            eprintln!("{what}");
            target(&bytes(hex));
        }
    }

    #[test]
    fn nothing_and_noise_do_no_harm() {
        let targets: [Target; 10] =
            [conversation, daemon, datagram, stream, tcp, file, filter, frame, segment, ini];
        let noise: Vec<u8> = (0..4096_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
            .collect();
        for target in targets {
            for end in [0, 1, 2, 3, 8, 9, 64, 1000, noise.len()] {
                target(&noise[..end]);
                target(&vec![0; end]);
                target(&vec![0xff; end]);
            }
        }
    }
}
