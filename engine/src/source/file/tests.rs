use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::frame::Direction;

/// A frame as a test looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    data: Vec<u8>,
    wire_len: u32,
    timestamp_ns: u64,
    point: Point,
}

const IN: Point = Point { ifindex: 7, direction: Direction::In };

fn drain(source: &mut FileSource) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some(batch) = source.next_batch() {
        let before = seen.len();
        seen.extend(batch.frames().map(|frame| Seen {
            data: frame.data.to_vec(),
            wire_len: frame.wire_len,
            timestamp_ns: frame.timestamp_ns,
            point: frame.point,
        }));
        assert!(seen.len() - before <= BATCH_FRAMES);
    }
    assert!(source.is_exhausted());
    seen
}

/// Writes the files into a folder and opens them all, each with its own ifindex from 7 on.
fn open(files: &[&[u8]]) -> Result<FileSource, FileError> {
    let folder = TempDir::new().unwrap();
    let inputs: Vec<Input> = (7..)
        .zip(files)
        .map(|(ifindex, bytes)| {
            let path = folder.path().join(format!("{ifindex}.pcap"));
            fs::write(&path, bytes).unwrap();
            Input { path, point: Point { ifindex, ..IN } }
        })
        .collect();
    FileSource::open(&inputs)
}

fn read(file: &[u8]) -> (Vec<Seen>, Option<FileError>) {
    let mut source = open(&[file]).unwrap();
    (drain(&mut source), source.error)
}

/// Writes numbers in one byte order.
#[derive(Clone, Copy)]
struct Order {
    big_endian: bool,
}

const LITTLE: Order = Order { big_endian: false };
const BIG: Order = Order { big_endian: true };

impl Order {
    fn words(self, words: &[u32]) -> Vec<u8> {
        let bytes = |word: &u32| {
            if self.big_endian { word.to_be_bytes() } else { word.to_le_bytes() }
        };
        words.iter().flat_map(bytes).collect()
    }

    fn halves(self, a: u16, b: u16) -> u32 {
        let (a, b) = (u32::from(a), u32::from(b));
        if self.big_endian { a << 16 | b } else { b << 16 | a }
    }

    fn pcap(self, magic: u32, link: u32) -> Vec<u8> {
        self.words(&[magic, self.halves(2, 4), 0, 0, 65535, link])
    }

    fn record(self, seconds: u32, units: u32, data: &[u8], orig_len: u32) -> Vec<u8> {
        let caplen = u32::try_from(data.len()).unwrap();
        [self.words(&[seconds, units, caplen, orig_len]), data.to_vec()].concat()
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = u32::try_from(body.len()).unwrap() + 12;
        [self.words(&[kind, length]), body, self.words(&[length])].concat()
    }

    fn section(self) -> Vec<u8> {
        let body = [0x1a2b_3c4d, self.halves(1, 0), u32::MAX, u32::MAX];
        self.block(0x0a0d_0d0a, &self.words(&body))
    }

    fn interface(self, link: u16, snaplen: u32, options: &[u8]) -> Vec<u8> {
        let body = self.words(&[self.halves(link, 0), snaplen]);
        self.block(1, &[body, options.to_vec()].concat())
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap();
        let mut option = self.words(&[self.halves(code, length)]);
        option.extend(value);
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    fn packet(self, interface: u32, units: u64, data: &[u8], orig: u32, options: &[u8]) -> Vec<u8> {
        let caplen = u32::try_from(data.len()).unwrap();
        let high = u32::try_from(units >> 32).unwrap();
        let low = u32::try_from(units & 0xffff_ffff).unwrap();
        let mut body = self.words(&[interface, high, low, caplen, orig]);
        body.extend(data);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(options);
        self.block(6, &body)
    }
}

fn seen(data: &[u8], wire_len: u32, timestamp_ns: u64) -> Seen {
    Seen { data: data.to_vec(), wire_len, timestamp_ns, point: IN }
}

#[test]
fn pcap_is_read_in_both_byte_orders_and_resolutions() {
    for order in [LITTLE, BIG] {
        for (magic, unit) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
            let file = [
                order.pcap(magic, 1),
                order.record(5, 7, &[1; 60], 60),
                order.record(6, 8, &[2; 20], 1500),
            ];
            let (frames, error) = read(&file.concat());
            assert!(error.is_none(), "{error:?}");
            let want = [
                seen(&[1; 60], 60, 5_000_000_000 + 7 * unit),
                seen(&[2; 20], 1500, 6_000_000_000 + 8 * unit),
            ];
            assert_eq!(frames, want);
        }
    }
}

#[test]
fn the_modified_pcap_of_old_linuxes_is_read() {
    let mut record = LITTLE.record(5, 7, &[], 4);
    record[8] = 4;
    record.extend([0; 8]);
    record.extend([9; 4]);
    let (frames, _) = read(&[LITTLE.pcap(0xa1b2_cd34, 1), record].concat());
    assert_eq!(frames, [seen(&[9; 4], 4, 5_000_007_000)]);
}

#[test]
fn old_versions_have_the_lengths_the_other_way_round() {
    for (minor, lengths) in [(2, [100, 4]), (3, [100, 4]), (3, [4, 100]), (4, [4, 100])] {
        let mut header = LITTLE.pcap(0xa1b2_c3d4, 1);
        header[6] = minor;
        let record = [LITTLE.words(&[5, 7]), LITTLE.words(&lengths), vec![9; 4]].concat();
        let (frames, _) = read(&[header, record].concat());
        assert_eq!(frames, [seen(&[9; 4], 100, 5_000_007_000)], "2.{minor}");
    }
}

#[test]
fn pcapng_is_read_in_both_byte_orders_with_each_interface_s_clock() {
    for order in [LITTLE, BIG] {
        let nanoseconds = order.option(9, &[9]);
        let offset = if order.big_endian { 100i64.to_be_bytes() } else { 100i64.to_le_bytes() };
        let binary = [order.option(9, &[0x80 | 10]), order.option(14, &offset)].concat();
        let file = [
            order.section(),
            order.interface(1, 0, &[]),
            order.interface(1, 0, &nanoseconds),
            order.interface(1, 0, &binary),
            order.block(5, &[0; 40]), // interface statistics: no packet
            order.block(0x1234, &[0; 4000]),
            order.packet(0, 5_000_007, &[1; 61], 61, &[]),
            order.packet(1, 5_000_000_007, &[2; 10], 1500, &[]),
            order.packet(2, 2 * 1024 + 512, &[3; 60], 60, &[]),
        ];
        let (frames, error) = read(&file.concat());
        assert!(error.is_none(), "{error:?}");
        let want = [
            seen(&[1; 61], 61, 5_000_007_000),
            seen(&[2; 10], 1500, 5_000_000_007),
            seen(&[3; 60], 60, 102_500_000_000),
        ];
        assert_eq!(frames, want);
    }
}

#[test]
fn a_second_section_may_have_another_byte_order_and_other_interfaces() {
    let file = [
        LITTLE.section(),
        LITTLE.interface(1, 0, &[]),
        LITTLE.packet(0, 1, &[1; 60], 60, &[]),
        BIG.section(),
        BIG.interface(101, 0, &[]),
        BIG.packet(0, 2, &[0x45; 60], 60, &[]),
        BIG.packet(1, 3, &[3; 60], 60, &[]),
    ];
    let (frames, error) = read(&file.concat());
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[1].data[12..15], [8, 0, 0x45]);
    assert_eq!(
        error.unwrap().to_string().split(" is ").nth(1),
        Some("damaged at record 7: packet of an unknown interface")
    );
}

#[test]
fn a_simple_packet_is_cut_by_the_interface_and_keeps_its_place() {
    for (snaplen, caplen) in [(0, 57), (20, 20)] {
        let mut body = LITTLE.words(&[57]);
        body.extend(vec![7; caplen]);
        let file = [
            LITTLE.section(),
            LITTLE.interface(1, snaplen, &[]),
            LITTLE.packet(0, 9, &[1; 60], 60, &[]),
            LITTLE.block(3, &body),
        ];
        let (frames, _) = read(&file.concat());
        assert_eq!(frames[1], seen(&vec![7; caplen], 57, 9000));
    }
}

#[test]
fn a_packet_s_own_direction_counts_before_its_file_s() {
    for order in [LITTLE, BIG] {
        let flags = |flags: u32| order.option(2, &order.words(&[flags]));
        let file = [
            order.section(),
            order.interface(1, 0, &[]),
            order.packet(0, 1, &[1; 60], 60, &flags(1)),
            order.packet(0, 2, &[1; 60], 60, &flags(0x1e)),
            order.packet(0, 3, &[1; 60], 60, &flags(0)),
            order.packet(0, 4, &[1; 60], 60, &[]),
        ]
        .concat();
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, file).unwrap();
        for own in [Direction::In, Direction::Out] {
            let point = Point { ifindex: 3, direction: own };
            let mut source = FileSource::open(&[Input { path: path.clone(), point }]).unwrap();
            let directions = drain(&mut source).iter().map(|seen| seen.point).collect::<Vec<_>>();
            let want = [Direction::In, Direction::Out, own, own]
                .map(|direction| Point { ifindex: 3, direction });
            assert_eq!(directions, want);
        }
    }
}

#[test]
fn other_link_types_get_an_ethernet_header() {
    let mut sll = vec![0, 4, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x86, 0xdd];
    sll.extend([0x60; 40]);
    let file = [LITTLE.pcap(0xa1b2_c3d4, 113), LITTLE.record(1, 0, &sll, 1000)];
    let (frames, _) = read(&file.concat());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].data[..12], [0; 12]);
    assert_eq!(frames[0].data[12..16], [0x86, 0xdd, 0x60, 0x60]);
    assert_eq!(frames[0].data.len(), 54);
    assert_eq!(frames[0].wire_len, 998);
    assert_eq!(frames[0].point.direction, Direction::Out);
}

#[test]
fn a_frame_without_a_whole_link_header_is_skipped_and_counted() {
    let mut file = LITTLE.pcap(0xa1b2_c3d4, 101);
    for at in 0..200 {
        file.extend(LITTLE.record(at, 0, &[], 60));
    }
    file.extend(LITTLE.record(500, 0, &[0x45], 60));
    let mut source = open(&[&file]).unwrap();
    assert_eq!(drain(&mut source).len(), 1);
    let stats = source.stats().unwrap();
    assert_eq!((stats.seen, stats.malformed), (201, 200));
}

#[test]
fn files_are_merged_by_time_then_by_their_order() {
    let file = |records: &[(u32, u8)]| {
        let mut file = LITTLE.pcap(0xa1b2_c3d4, 1);
        for (seconds, byte) in records {
            file.extend(LITTLE.record(*seconds, 0, &[*byte; 14], 14));
        }
        file
    };
    // The first goes back in time: its own order stays.
    let files = [
        file(&[(2, 1), (5, 2), (3, 3), (9, 4)]),
        file(&[(2, 5), (4, 6), (5, 7)]),
        file(&[]),
        file(&[(1, 8), (9, 9)]),
    ];
    let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
    let mut source = open(&files).unwrap();
    let frames = drain(&mut source);
    let order: Vec<u8> = frames.iter().map(|frame| frame.data[0]).collect();
    assert_eq!(order, [8, 1, 5, 6, 2, 3, 7, 4, 9]);
    assert_eq!(frames[0].point.ifindex, 10);
    assert_eq!(frames[1].point.ifindex, 7);
}

#[test]
fn a_cut_file_gives_all_that_is_whole_and_says_so() {
    let ng = [
        LITTLE.section(),
        LITTLE.interface(1, 0, &[]),
        LITTLE.packet(0, 1, &[1; 60], 60, &[]),
        LITTLE.packet(0, 2, &[2; 60], 60, &[]),
    ]
    .concat();
    let classic = [
        LITTLE.pcap(0xa1b2_c3d4, 1),
        LITTLE.record(1, 0, &[1; 60], 60),
        LITTLE.record(2, 0, &[2; 60], 60),
    ]
    .concat();
    for (file, last, record) in [(ng, 92, 4), (classic, 76, 2)] {
        for cut in 1..last {
            let (frames, error) = read(&file[..file.len() - cut]);
            assert_eq!(frames.len(), 1, "cut by {cut}");
            let error = error.unwrap();
            assert!(error.is_truncation());
            let text = error.to_string();
            assert!(text.ends_with(&format!("7.pcap is cut short in record {record}")), "{text}");
        }
        let (frames, error) = read(&file[..file.len() - last]);
        assert_eq!((frames.len(), error.is_none()), (1, true), "no record was begun");
        assert_eq!(read(&file).0.len(), 2);
    }
}

#[test]
fn one_cut_file_does_not_end_the_others() {
    let file = [LITTLE.pcap(0xa1b2_c3d4, 1), LITTLE.record(1, 0, &[1; 60], 60)].concat();
    let mut source = open(&[&file[..50], &file]).unwrap();
    assert_eq!(drain(&mut source).len(), 1);
    assert!(source.error().unwrap().is_truncation());
}

#[test]
fn what_is_no_capture_is_refused_with_the_path() {
    let refused = |file: &[u8]| open(&[file]).unwrap_err().to_string();
    assert!(refused(b"").ends_with("7.pcap is empty"));
    assert!(
        refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .ends_with("is not a capture file (pcap or pcapng)")
    );
    assert!(refused(b"abc").ends_with("is not a capture file (pcap or pcapng)"));
    assert!(refused(&LITTLE.pcap(0xa1b2_c3d4, 1)[..10]).ends_with("is cut short in record 0"));
    let wireless = refused(&LITTLE.pcap(0xa1b2_c3d4, 127));
    assert!(wireless.contains("7.pcap has link type 127; supported are Ethernet"), "{wireless}");
    let ng =
        [LITTLE.section(), LITTLE.interface(127, 0, &[]), LITTLE.packet(0, 1, &[1; 60], 60, &[])];
    assert!(refused(&ng.concat()).contains("has link type 127"));
    let missing = Input { path: "/nonexistent/x.pcap".into(), point: IN };
    let error = FileSource::open(&[missing]).unwrap_err().to_string();
    assert_eq!(error, "cannot read /nonexistent/x.pcap: No such file or directory (os error 2)");
    let folder = Input { path: "/".into(), point: IN };
    let error = FileSource::open(&[folder]).unwrap_err().to_string();
    assert_eq!(error, "cannot read /: Is a directory (os error 21)");
}

#[test]
fn lengths_that_lie_are_refused_before_they_are_believed() {
    let whole = LITTLE.record(1, 0, &[1; 60], 60);
    let huge = LITTLE.words(&[2, 0, 262_145, 262_145]);
    let (frames, error) = read(&[LITTLE.pcap(0xa1b2_c3d4, 1), whole, huge].concat());
    assert_eq!(frames.len(), 1);
    assert!(error.unwrap().to_string().ends_with("at record 2: more captured bytes than 262144"));
    let start =
        [LITTLE.section(), LITTLE.interface(1, 0, &[]), LITTLE.packet(0, 1, &[1; 60], 60, &[])]
            .concat();
    for (block, what) in [
        (LITTLE.words(&[6, 0xffff_fff0, 0]), "block longer than 524288 bytes"),
        (LITTLE.words(&[6, 13, 0, 0]), "impossible block length"),
        (LITTLE.words(&[6, 0, 0, 0]), "impossible block length"),
        (LITTLE.words(&[6, 32, 0, 0, 0, 61, 61, 32]), "lengths that contradict each other"),
        (LITTLE.words(&[6, 32, 0, 0, 0, 0, 0, 36]), "lengths that contradict each other"),
        (LITTLE.words(&[2, 12, 12]), "obsolete Packet Block"),
    ] {
        let (frames, error) = read(&[start.clone(), block].concat());
        assert_eq!(frames.len(), 1);
        let text = error.unwrap().to_string();
        assert!(text.ends_with(&format!("at record 4: {what}")), "{text}");
    }
    // A block of no interest may be as long as it likes, if it is there.
    let (_, error) = read(&[start, LITTLE.words(&[0x99, 0xffff_fff0, 0])].concat());
    assert!(error.unwrap().is_truncation());
}

#[test]
fn jumbo_frames_end_a_batch_early() {
    let mut file = LITTLE.pcap(0xa1b2_c3d4, 1);
    for at in 0..20 {
        file.extend(LITTLE.record(at, 0, &vec![1; 262_144], 262_144));
    }
    let mut source = open(&[&file]).unwrap();
    assert_eq!(source.next_batch().unwrap().frames().count(), 4);
    assert_eq!(drain(&mut source).len(), 16);
}

fn captures() -> Option<Vec<PathBuf>> {
    let folder = std::env::var_os("PODTAP_CAPTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"),
        PathBuf::from,
    );
    let Ok(entries) = fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no captures at {} ($PODTAP_CAPTURES)", folder.display());
        return None;
    };
    let is_capture = |path: &PathBuf| {
        path.extension().is_some_and(|end| end == "pcap" || end == "pcapng" || end == "cap")
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(is_capture).collect();
    paths.sort();
    Some(paths)
}

/// What tcpdump counts in the file, where there is a tcpdump that can (4.99).
fn tcpdump_count(path: &Path) -> Option<usize> {
    let output = Command::new("tcpdump").arg("--count").arg("-r").arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

#[test]
fn real_captures_are_read_to_the_last_packet() {
    let Some(paths) = captures() else { return };
    let (mut compared, mut skipped) = (0, String::new());
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let opened = FileSource::open(&[Input { path: path.clone(), point: IN }]);
        if name == "BGP_redist.pcap" {
            let text = opened.unwrap_err().to_string();
            assert!(text.contains("has link type 104"), "Cisco HDLC: {text}");
            continue;
        }
        let mut source = opened.unwrap();
        let frames = drain(&mut source);
        let stats = source.stats().unwrap();
        let count = usize::try_from(stats.seen).unwrap();
        assert_eq!(frames.len(), usize::try_from(stats.seen - stats.malformed).unwrap());
        let is_cut = name == "fuzz-2021-10-13.pcap";
        assert_eq!(source.error().map(FileError::is_truncation), is_cut.then_some(true), "{name}");
        match tcpdump_count(path) {
            Some(truth) => assert_eq!(count, truth, "{name}"),
            None => writeln!(skipped, "SKIPPED: tcpdump gives no count for {name}").unwrap(),
        }
        compared += 1;
        if name == "http2.pcapng" {
            assert_eq!((count, stats.malformed), (10, 0));
        }
    }
    eprint!("{skipped}");
    assert!(compared > 0, "a folder without captures");
}

/// A few packets in every dialect.
fn samples() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for order in [LITTLE, BIG] {
        for link in [0, 1, 101, 108, 113, 276] {
            let data = [0, 4, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 8, 0, 69, 0, 0, 0, 0, 0];
            let mut classic = order.pcap(0xa1b2_3c4d, link);
            let mut ng = order.section();
            let options = [order.option(9, &[9]), order.option(14, &[0; 8])].concat();
            ng.extend(order.interface(u16::try_from(link).unwrap(), 0, &options));
            for at in 0..3 {
                classic.extend(order.record(at, at, &data, 60));
                let flags = order.option(2, &order.words(&[at]));
                ng.extend(order.packet(0, u64::from(at), &data, 22, &flags));
                ng.extend(order.block(3, &[order.words(&[22]), data.to_vec()].concat()));
            }
            samples.extend([classic, ng]);
        }
    }
    samples
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_an_error_at_worst(
        which in 0usize..24,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        word in prop::option::of((any::<prop::sample::Index>(), any::<u32>())),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = samples().swap_remove(which);
        for (at, byte) in &changes {
            let at = at.index(file.len());
            file[at] = *byte;
        }
        if let Some((at, word)) = word {
            let at = at.index(file.len() / 4) * 4;
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        // Through the reader alone: the merge above it never sees a length.
        let path = Path::new("x");
        if let Ok(mut reader) = Reader::open(path, file.as_slice()) {
            let mut bytes = Vec::new();
            while let Ok(Some(head)) = reader.advance() {
                let data = reader.bytes(&head).len();
                prop_assert!(data <= file.len());
                if let Some(meta) = append(&mut bytes, &head, reader.bytes(&head), IN) {
                    prop_assert!(meta.wire_len as usize >= meta.range.len());
                }
            }
            prop_assert!(bytes.len() <= 2 * file.len());
        }
    }
}
