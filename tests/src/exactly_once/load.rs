//! Rows 21 and 27 under load: a million segments and more, none lost, none doubled.
//!
//! ```text
//! pods: numbered datagrams, each several times; bulk TCP, some of it lost and sent again
//!   |--> the kernel's own counts of segments sent, the sender's of datagrams ----------> sent
//!   `--> taps -> sensor -> file, read once: digest -> how often, streams -> bytes covered --+
//! ```
//!
//! No capture at the senders: it would lose. Packets are told apart by a 128-bit digest here and
//! only here; no two TCP segments of these are alike (IP ID, sequence, time stamps), so a digest
//! seen twice is a doubled report. What is read is judged one by one, checksums and sizes too.

use super::{
    Options, Size,
    rows::port,
    stage::{self, Taps},
    truth::{MTU, unreadable},
};
use crate::{
    compare::{self, Counts, Packet},
    lab::{Host, Lab, LabError, LabSpec, Pod, Protocol},
    traffic::{Bulk, Raw, Serve, Server, craft, ping},
};
use serde::Serialize;
use sha1::{Digest as _, Sha1};
use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How much, and how fast: all of it shares the machine's cores with taps and sensor.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Bytes of bulk TCP to each of two pods; a quarter of it once more where segments are lost.
    pub bulk_bytes: u64,
    /// Bits a second of bulk TCP.
    pub bits_per_second: u64,
    /// Different datagrams to each of two pods, each sent [`TIMES`].
    pub datagrams: u32,
    /// Datagrams a second.
    pub datagrams_per_second: u32,
}

/// How often each datagram is sent, back to back.
pub const TIMES: u32 = 4;
/// Datagrams sent back to back before the rate is looked at.
const BURST: u32 = 500;
/// A super-frame takes 64 kB of a ring, and a worker that shares its core with all this may not
/// run for a quarter of a second.
const RING_MEMORY: [&str; 2] = ["--ring-memory", "512M"];
/// One of so many segments is lost between the nodes (row 21).
const LOST_EVERY: u32 = 50;

impl Load {
    /// What `scripts/exactly-once --load` shows.
    pub const SHOW: Self = Self {
        bulk_bytes: 1_000_000_000,
        bits_per_second: 300_000_000,
        datagrams: 125_000,
        datagrams_per_second: 40_000,
    };
    /// Enough to test.
    pub const TEST: Self = Self {
        bulk_bytes: 10_000_000,
        bits_per_second: 100_000_000,
        datagrams: 2000,
        datagrams_per_second: 20_000,
    };
}

/// One kind of load.
#[derive(Clone, Debug, Serialize)]
pub struct LoadLine {
    /// The row that it is of.
    pub row: u8,
    /// What it is.
    pub what: &'static str,
    /// As in the table.
    #[serde(flatten)]
    pub counts: Counts,
    /// Segments that TCP sent again, by the kernel's count.
    pub sent_again: u64,
    /// Bytes of the streams that no report covers.
    pub uncovered_bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct LoadTable {
    /// Each kind.
    pub load: Vec<LoadLine>,
    /// Frames that the taps' rings lost.
    pub ring_lost: u64,
    /// Packets that the taps could not send as fast as they came.
    pub queue_lost: u64,
    /// Packets lost between taps and sensor.
    pub network_lost: u64,
    /// Frames that this machine dropped before any tap could see them, those of others included.
    pub backlog_lost: u64,
    /// How long the traffic took.
    pub seconds: f64,
}

impl LoadTable {
    /// Every packet once, and nothing lost on the way.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let is_exact = |line: &LoadLine| line.counts.is_exact() && line.uncovered_bytes == 0;
        self.ring_lost + self.queue_lost + self.network_lost == 0 && self.load.iter().all(is_exact)
    }
}

/// Which kind a packet is of.
const KINDS: [(u8, &str); 4] = [
    (21, "identical datagrams (IP ID 0), same node and other node"),
    (21, "TCP between nodes, one of 50 segments lost on the way and sent again"),
    (27, "bulk TCP with segmentation offload, same node"),
    (27, "bulk TCP with segmentation offload, other node"),
];
const DATAGRAMS: usize = 0;
const LOSSY: usize = 1;
const NEAR: usize = 2;
const FAR: usize = 3;

/// Ports of the four kinds.
const PORTS: [u16; 4] = [port(21), 9021, port(27), 9027];

/// Runs it; `say` is told each step.
///
/// # Errors
///
/// As [`super::run`].
pub fn run(
    options: Options<'_>,
    load: Load,
    say: &mut dyn FnMut(&str),
) -> Result<LoadTable, LabError> {
    say("raising the lab, a sensor, and the taps");
    let lab = Lab::up(LabSpec::unique().nodes(2).pods(2))?;
    stage::add_sensors(&lab)?;
    let options = Options { reference: false, size: Size::TEST, ..options };
    let mut flags = stage::our_flags(options);
    if !flags.contains(&"--ring-memory") {
        flags.extend(RING_MEMORY);
    }
    let mut taps = Taps::launch("load", &lab, 0, options, &flags)?;
    taps.wait_ready()?;
    let (client, near, far) = (lab.node(1).pod(1), lab.node(1).pod(2), lab.node(2).pod(1));
    for server in [near, far] {
        ping(client, server.v4().into(), 2, 56)?;
    }
    let backlog = backlog_drops();
    let started = Instant::now();
    let mut sent = [(0, 0); 4];
    say("row 21: identical datagrams, back to back");
    for server in [near, far] {
        sent[DATAGRAMS].0 += datagrams(client, server, load)?;
    }
    say("row 21: TCP with losses between the nodes");
    let to = far.socket(PORTS[LOSSY]);
    lab.vpc().lose(Protocol::Tcp, to, LOST_EVERY)?;
    let lossy = Load { bulk_bytes: load.bulk_bytes / 4, ..load };
    sent[LOSSY] = bulk(client, far, to, lossy)?;
    say("row 27: bulk TCP, same node");
    sent[NEAR] = bulk(client, near, near.socket(PORTS[NEAR]), load)?;
    say("row 27: bulk TCP, other node, by uplinks that cut and put together as a NIC does");
    lab.uplinks_like_wires()?;
    sent[FAR] = bulk(client, far, far.socket(PORTS[FAR]), load)?;
    let seconds = started.elapsed().as_secs_f64();
    let backlog_lost = backlog_drops().saturating_sub(backlog);
    say("ending taps and sensor");
    let (file, _summary, lost) = taps.stop(options.directory)?;
    drop(lab);
    say("reading the sensor's file");
    let mut readers: [Reader; 4] = Default::default();
    compare::for_each_frame(&file, &mut |frame| {
        if let Some(kind) = PORTS.iter().position(|port| frame.packet.has_port(*port)) {
            readers[kind].take(&frame.packet);
        }
    })
    .map_err(unreadable)?;
    let bytes = [0, lossy.bulk_bytes, load.bulk_bytes, load.bulk_bytes];
    let times = [u64::from(TIMES), 1, 1, 1];
    let load = readers
        .into_iter()
        .enumerate()
        .map(|(kind, reader)| {
            let uncovered_bytes = reader.uncovered(bytes[kind]);
            LoadLine {
                row: KINDS[kind].0,
                what: KINDS[kind].1,
                counts: reader.counts(sent[kind].0, times[kind]),
                sent_again: sent[kind].1,
                uncovered_bytes,
            }
        })
        .collect();
    Ok(LoadTable {
        load,
        ring_lost: lost.rings,
        queue_lost: lost.queues,
        network_lost: lost.network,
        backlog_lost,
        seconds,
    })
}

/// Sends numbered datagrams, each [`TIMES`] in a row. How many it sent.
fn datagrams(client: &Pod, server: &Pod, load: Load) -> Result<u64, LabError> {
    let _discard = Server::start(server, Serve::Discard, PORTS[DATAGRAMS])?;
    let raw = Raw::on(client)?;
    let (from, to) = (client.socket(40021), server.socket(PORTS[DATAGRAMS]));
    let started = Instant::now();
    for number in 0..load.datagrams {
        raw.packets(&craft::udp(from, to, 0, &number.to_be_bytes()), TIMES)?;
        let sent = (number + 1) * TIMES;
        if sent.is_multiple_of(BURST) {
            let due = f64::from(sent) / f64::from(load.datagrams_per_second.max(1));
            std::thread::sleep(Duration::from_secs_f64(due).saturating_sub(started.elapsed()));
        }
    }
    Ok(u64::from(load.datagrams) * u64::from(TIMES))
}

/// One connection. How many segments both ends sent, and how many of them again.
fn bulk(client: &Pod, server: &Pod, to: SocketAddr, load: Load) -> Result<(u64, u64), LabError> {
    let before = [segments(client)?, segments(server)?];
    let serving = Server::start(server, Serve::Bulk, to.port())?;
    let bulk = Bulk::new(to, load.bulk_bytes);
    Bulk { bits_per_second: Some(load.bits_per_second), ..bulk }.run_on(client)?;
    drop(serving);
    // The last acknowledgements and ends of connections are counted when they are sent.
    let mut now = [segments(client)?, segments(server)?];
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(50));
        let next = [segments(client)?, segments(server)?];
        if next != now {
            (now, quiet_since) = (next, Instant::now());
        }
    }
    let sum = |of: fn(&(u64, u64)) -> u64| {
        now.iter().map(of).sum::<u64>() - before.iter().map(of).sum::<u64>()
    };
    Ok((sum(|it| it.0), sum(|it| it.1)))
}

/// TCP segments that the host has sent so far, and how many of them again. The kernel counts the
/// wire's segments, and those sent again apart (`OutSegs`, `RetransSegs`).
fn segments(host: &Host) -> Result<(u64, u64), LabError> {
    let path = "/proc/thread-self/net/snmp";
    let text =
        host.enter(|| fs::read_to_string(path))?.map_err(|error| LabError::file(path, error))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let count = |wanted: &str| {
        names
            .split(' ')
            .zip(values.split(' '))
            .find(|(name, _value)| *name == wanted)
            .and_then(|(_name, value)| value.parse::<u64>().ok())
            .ok_or_else(|| LabError::Unexpected {
                what: path.to_owned(),
                detail: format!("it has no {wanted}"),
            })
    };
    let again = count("RetransSegs")?;
    Ok((count("OutSegs")? + again, again))
}

/// Frames that the machine's backlog queues had no room for.
fn backlog_drops() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let second = |line: &str| u64::from_str_radix(line.split(' ').nth(1)?, 16).ok();
    text.lines().filter_map(second).sum()
}

/// What was read of one kind.
#[derive(Debug, Default)]
struct Reader {
    seen: HashMap<u128, u32>,
    /// Parts of each stream: offset from the first sequence number, length.
    streams: BTreeMap<(SocketAddr, SocketAddr), Vec<(u32, u32)>>,
    wrong_checksum: u64,
    wrong_size: u64,
}

impl Reader {
    fn take(&mut self, packet: &Packet) {
        *self.seen.entry(digest(packet)).or_default() += 1;
        self.wrong_checksum += u64::from(!packet.has_right_checksums());
        self.wrong_size += u64::from(packet.data().len() > MTU);
        if let Some((ends, seq, length)) = compare::place(packet) {
            self.streams.entry(ends).or_default().push((seq, length));
        }
    }

    fn counts(&self, sent: u64, times: u64) -> Counts {
        let (mut once, mut doubled, mut distinct) = (0, 0, 0);
        for seen in self.seen.values().map(|seen| u64::from(*seen)) {
            let surplus = seen.saturating_sub(times);
            doubled += surplus;
            distinct += seen.min(times);
            once += seen.min(times).saturating_sub(surplus);
        }
        Counts {
            sent,
            once,
            missing: sent.saturating_sub(distinct),
            doubled,
            wrong_checksum: self.wrong_checksum,
            wrong_size: self.wrong_size,
            unexpected: distinct.saturating_sub(sent),
            ..Counts::default()
        }
    }

    /// Of the longest stream, which has so many bytes, those that were in no report.
    fn uncovered(&self, bytes: u64) -> u64 {
        let covered = |parts: &Vec<(u32, u32)>| {
            // Sequence numbers wrap: counted from the first part, which is the stream's start.
            let start = parts.first().map_or(0, |(seq, _length)| *seq);
            let mut parts: Vec<(u32, u32)> =
                parts.iter().map(|(seq, length)| (seq.wrapping_sub(start), *length)).collect();
            parts.sort_unstable();
            let (mut end, mut covered) = (0_u64, 0_u64);
            for (from, length) in parts {
                let (from, to) = (u64::from(from), u64::from(from) + u64::from(length));
                covered += to.saturating_sub(from.max(end));
                end = end.max(to);
            }
            covered
        };
        let most = self.streams.values().map(covered).max().unwrap_or(0);
        bytes.abs_diff(if bytes == 0 { 0 } else { most })
    }
}

/// Of all that no node changes.
fn digest(packet: &Packet) -> u128 {
    let hash = Sha1::digest(compare::key(packet));
    hash.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

impl fmt::Display for LoadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "row       sent       once    missing    doubled   checksum       size unexpected sent again uncovered | what"
        )?;
        for LoadLine { row, what, counts, sent_again, uncovered_bytes } in &self.load {
            let Counts { sent, once, missing, doubled, wrong_checksum, wrong_size, .. } = counts;
            let unexpected = counts.unexpected;
            writeln!(
                f,
                "{row:>3} {sent:>10} {once:>10} {missing:>10} {doubled:>10} {wrong_checksum:>10} \
                 {wrong_size:>10} {unexpected:>10} {sent_again:>10} {uncovered_bytes:>9} | {what}"
            )?;
        }
        writeln!(
            f,
            "lost: {} frames in the taps' rings, {} packets in their queues, {} before the sensor; \
             dropped by this machine's backlog before any tap: {}; {:.0} s",
            self.ring_lost, self.queue_lost, self.network_lost, self.backlog_lost, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u8) -> Packet {
        let end = |text: &str| text.parse().unwrap();
        let bytes = craft::udp(end("10.0.1.101:40021"), end("10.0.2.101:8021"), 0, &[number]);
        Packet::parse(0x0800, bytes, false)
    }

    #[test]
    fn each_datagram_is_due_as_often_as_it_was_sent() {
        let counts = |times: [usize; 2]| {
            let mut reader = Reader::default();
            for (number, times) in (0..).zip(times) {
                (0..times).for_each(|_| reader.take(&datagram(number)));
            }
            reader.counts(8, 4)
        };
        assert!(counts([4, 4]).is_exact());
        // One lost and one doubled do not make up for each other.
        let base = Counts { sent: 8, ..Counts::default() };
        assert_eq!(counts([3, 5]), Counts { once: 6, missing: 1, doubled: 1, ..base });
    }

    #[test]
    fn bytes_in_no_report_are_known_wherever_the_numbers_wrap() {
        let ends = ("10.0.1.101:1".parse().unwrap(), "10.0.2.101:2".parse().unwrap());
        let uncovered = |parts: &[(u32, u32)]| {
            let mut reader = Reader::default();
            reader.streams.insert(ends, parts.to_vec());
            reader.uncovered(300)
        };
        let start = u32::MAX - 49;
        let parts = [(start, 100), (50, 100), (150, 100)];
        assert_eq!(uncovered(&parts), 0);
        assert_eq!(uncovered(&[parts[0], parts[2], parts[0]]), 100);
        assert_eq!(uncovered(&[]), 300);
    }
}
