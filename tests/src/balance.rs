//! Numbered flows between pods, and the judgement of which sensor got which packet when.
//!
//! ```text
//! Traffic: many UDP flows, both directions, each datagram numbered --> taps --> two sensors' files
//! a tap's log: who left, who returned, when (Shift) --+
//! files: who got which number, when (Sighting) -------+--> judge: split flows, doubled packets
//! ```
//!
//! A flow's home is the sensor that gets it while both take part. What is required: it is there
//! exactly as long as its home takes part in its tap's view, and at the other sensor meanwhile.
//! How flows are spread is the engine's business; nothing here knows it.

use crate::lab::{Host, LabError};
use pcap_parser::{
    Block, PcapBlockOwned, PcapError, create_reader, traits::PcapNGPacketBlock as _,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// First bytes of each payload.
const MAGIC: [u8; 4] = *b"ptbf";
/// Where the answering side listens.
const PORT: u16 = 7;
/// Payload: magic, flow, direction, a zero, number.
const PAYLOAD: usize = 12;
/// Datagrams a millisecond, all flows together, one direction.
const RATE: usize = 8;
/// How long an idle answerer sleeps before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(50);

fn payload(flow: u16, direction: u8, number: u32) -> [u8; PAYLOAD] {
    let mut bytes = [0; PAYLOAD];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&flow.to_be_bytes());
    bytes[6] = direction;
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Flows that run until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// Nothing more is sent that would have to be answered.
    is_sent: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<u64>>,
    answerers: Vec<JoinHandle<u64>>,
}

/// Datagrams of each direction. On a busy machine an answerer's buffer overflows: not all that was
/// sent is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the client.
    pub sent: u64,
    /// By the servers.
    pub answered: u64,
}

impl Traffic {
    /// `each` flows from `client` to each of `servers`; flow `n` is of server `n / each`.
    ///
    /// # Errors
    ///
    /// When a socket cannot be made.
    pub fn start(client: &Host, servers: &[&Host], each: u16) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let is_sent = Arc::new(AtomicBool::new(false));
        let mut answerers = Vec::new();
        let mut sockets = Vec::new();
        for server in servers {
            let to = server.socket(PORT);
            let failed = |error| LabError::call(format!("UDP to {to}"), error);
            let socket = server.enter(|| UdpSocket::bind(to))?.map_err(failed)?;
            socket.set_read_timeout(Some(LOOK)).map_err(failed)?;
            let stop = Arc::clone(&is_sent);
            answerers.push(thread::spawn(move || answer(&socket, &stop)));
            let connect = || (0..each).map(|_flow| connected(to)).collect::<io::Result<Vec<_>>>();
            sockets.extend(client.enter(connect)?.map_err(failed)?);
        }
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || send(&sockets, &stopped));
        Ok(Self { stop, is_sent, sender, answerers })
    }

    /// Ends it; how many datagrams were sent.
    ///
    /// # Errors
    ///
    /// When sending failed.
    pub fn stop(self) -> io::Result<Counts> {
        // Relaxed: it may be seen late.
        self.stop.store(true, Ordering::Relaxed);
        let gone = |_panic| io::Error::other("a thread of the traffic panicked");
        let sent = self.sender.join().map_err(gone)??;
        self.is_sent.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for answerer in self.answerers {
            answered += answerer.join().map_err(gone)?;
        }
        Ok(Counts { sent, answered })
    }
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    Ok(socket)
}

/// Round and round, so that each flow has a datagram on its way at almost any time.
fn send(sockets: &[UdpSocket], stop: &AtomicBool) -> io::Result<u64> {
    let mut sent = 0;
    for number in 0u32.. {
        for (at, (flow, socket)) in (0u16..).zip(sockets).enumerate() {
            socket.send(&payload(flow, 0, number))?;
            sent += 1;
            if at % RATE == RATE - 1 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(sent)
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut bytes = [0; 64];
    let mut answered = 0;
    loop {
        let Ok((len, from)) = socket.recv_from(&mut bytes) else {
            // Nothing waits to be answered.
            if stop.load(Ordering::Relaxed) {
                return answered;
            }
            continue;
        };
        if let Some(bytes) = bytes.get_mut(..len).filter(|_| len == PAYLOAD) {
            bytes[6] = 1;
            // Nobody reads the answers; one that is lost is one that no tap saw.
            answered += u64::from(socket.send_to(bytes, from).is_ok());
        }
    }
}

/// A datagram of the traffic in a sensor's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// See [`Traffic::start`].
    pub flow: u16,
    /// 0 from the client, 1 back.
    pub direction: u8,
    /// Counted per flow.
    pub number: u32,
    /// When a tap captured it, since the epoch.
    pub at: Duration,
    /// Whose file.
    pub sensor: usize,
}

/// Reads what is whole of a sensor's pcapng: after `kill -9` it ends anywhere.
///
/// # Errors
///
/// When it is missing or no pcapng.
pub fn sightings(path: &Path, sensor: usize, into: &mut Vec<Sighting>) -> io::Result<()> {
    each_packet(path, |at, frame| {
        let found = datagram(frame);
        into.extend(found.map(|(flow, direction, number)| Sighting {
            flow,
            direction,
            number,
            at,
            sensor,
        }));
    })
}

/// Hands each packet of a sensor's pcapng, with when it was captured, to `take`, up to the last
/// that is whole.
///
/// # Errors
///
/// When it is missing or no pcapng.
pub fn each_packet(path: &Path, mut take: impl FnMut(Duration, &[u8])) -> io::Result<()> {
    let other = |what: String| io::Error::other(format!("{}: {what}", path.display()));
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    let mut reader = create_reader(1 << 20, file).map_err(|error| other(error.to_string()))?;
    loop {
        let consumed = match reader.next() {
            Ok((consumed, block)) => {
                if let PcapBlockOwned::NG(Block::EnhancedPacket(packet)) = &block {
                    let ns = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                    take(Duration::from_nanos(ns), packet.packet_data());
                }
                Some(consumed)
            }
            Err(PcapError::Eof | PcapError::UnexpectedEof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => None,
            Err(error) => return Err(other(error.to_string())),
        };
        match consumed {
            Some(consumed) => reader.consume(consumed),
            // The file ends inside a block.
            None if reader.reader_exhausted() => return Ok(()),
            None => reader.refill().map_err(|error| other(error.to_string()))?,
        }
    }
}

/// Flow, direction and number of the traffic's datagram in an Ethernet frame, if it is one.
#[must_use]
pub fn datagram(frame: &[u8]) -> Option<(u16, u8, u32)> {
    // IPv4 without options, UDP.
    let bytes = frame.get(14 + 20 + 8..)?.get(..PAYLOAD)?;
    if frame[12..14] != [8, 0] || frame[23] != 17 || bytes[..4] != MAGIC {
        return None;
    }
    let flow = u16::from_be_bytes([bytes[4], bytes[5]]);
    let number = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    Some((flow, bytes[6], number))
}

/// A line of a tap's log: a sensor's part in the group changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Since the epoch.
    pub at: Duration,
    /// Index in the list that was given.
    pub sensor: usize,
    /// It takes part from now on; else it has left.
    pub is_in: bool,
}

/// All shifts in a tap's log. `sensors` are their names, `host:port`.
#[must_use]
pub fn shifts(log: &str, sensors: &[String]) -> Vec<Shift> {
    let shift = |line: &str| {
        let (time, rest) = line.split_once(' ')?;
        let field = |name: &str| {
            let (_, rest) = rest.split_once(&format!(" {name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        if !rest.contains("the sensors' shares changed") {
            return None;
        }
        let name = field("sensor")?;
        let sensor = sensors.iter().position(|sensor| sensor == name)?;
        Some(Shift { at: since_epoch(time)?, sensor, is_in: field("kind")? != "left" })
    };
    log.lines().filter_map(shift).collect()
}

/// `2026-11-24T23:08:32.123456Z` as time since the epoch.
fn since_epoch(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.split(':');
    let (hour, minute) = (time.next()?.parse::<u64>().ok()?, time.next()?.parse::<u64>().ok()?);
    let second = time.next()?.parse::<f64>().ok()?;
    // Years that begin in March: the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(
        Duration::from_secs((days * 24 + hour) * 3600 + minute * 60)
            + Duration::from_secs_f64(second),
    )
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Packets that were judged.
    pub packets: u64,
    /// Of those, at the other sensor than their flow's home, rightly.
    pub away: u64,
    /// Of those, captured shortly before a shift and sent after it, or the other way about: their
    /// flow has moved, by the log's clock it had not yet.
    pub stragglers: u64,
    /// How far such a one was from the shift.
    pub furthest: Duration,
    /// Packets in one sensor's files twice.
    pub doubled: u64,
    /// How often flows changed sensors, both directions counted.
    pub changes: u64,
    /// What is wrong: the first of each kind, in words, and how many there are.
    pub wrong: Vec<(String, u64)>,
}

impl Judgement {
    fn complain(&mut self, kind: &str, detail: &dyn Fn() -> String) {
        match self.wrong.iter_mut().find(|(text, _)| text.starts_with(kind)) {
            Some((_, count)) => *count += 1,
            None => self.wrong.push((format!("{kind}: {}", detail()), 1)),
        }
    }
}

/// Holds what the sensors have against what the taps say of the shifts. `tap_of` names the tap that
/// reports a flow's direction; `window` is how far from a shift a frame may still, or already, go
/// the other way: frames wait in the ring before a worker takes them.
#[must_use]
pub fn judge(
    mut seen: Vec<Sighting>,
    shifts: &[Vec<Shift>],
    tap_of: impl Fn(u16, u8) -> usize,
    window: Duration,
) -> Judgement {
    seen.sort_by_key(|s| (s.flow, s.direction, s.number, s.sensor));
    let mut judgement = Judgement { packets: seen.len() as u64, ..Judgement::default() };
    let mut homes: HashMap<u16, usize> = HashMap::new();
    for stream in seen.chunk_by(|a, b| (a.flow, a.direction) == (b.flow, b.direction)) {
        let first = stream[0];
        let shifts = &shifts[tap_of(first.flow, first.direction)];
        let is_calm = |at: Duration| shifts.iter().all(|shift| shift.at.abs_diff(at) > window);
        let shows_home =
            |s: &&Sighting| is_calm(s.at) && [0, 1].iter().all(|n| takes_part(shifts, *n, s.at));
        let Some(own) = stream.iter().find(shows_home).map(|sighting| sighting.sensor) else {
            judgement.complain("a flow was never seen with both there", &|| format!("{first:?}"));
            continue;
        };
        let home = *homes.entry(first.flow).or_insert(own);
        if home != own {
            judgement.complain("the directions of a flow have two homes", &|| format!("{first:?}"));
        }
        let mut last = first;
        for pair in stream.windows(2).filter(|pair| pair[0].number == pair[1].number) {
            if pair[0].sensor == pair[1].sensor {
                judgement.doubled += 1;
            } else {
                judgement.complain("a packet is at both sensors", &|| format!("{pair:?}"));
            }
        }
        let mut changes = 0;
        for sighting in stream {
            if sighting.sensor != last.sensor {
                changes += 1;
            }
            last = *sighting;
            judgement.away += u64::from(sighting.sensor != home);
            let expected = if takes_part(shifts, home, sighting.at) { home } else { 1 - home };
            if sighting.sensor == expected {
                continue;
            }
            let distances = shifts.iter().map(|shift| shift.at.abs_diff(sighting.at));
            let nearest = distances.min().unwrap_or(Duration::MAX);
            if nearest <= window {
                judgement.stragglers += 1;
                judgement.furthest = judgement.furthest.max(nearest);
            } else {
                judgement.complain("a packet is where its flow does not belong", &|| {
                    format!("{sighting:?}, home is {home}")
                });
            }
        }
        judgement.changes += changes;
        // In order of the numbers, whatever the clocks say: each shift of its home moves a flow once.
        let allowed = shifts.iter().filter(|shift| shift.sensor == home).count() as u64;
        if changes > allowed {
            judgement.complain(
                "a flow changed sensors more often than its home came and went",
                &|| {
                    format!(
                        "flow {} direction {}: {changes}, {allowed}",
                        first.flow, first.direction
                    )
                },
            );
        }
    }
    judgement
}

/// How long two taps did not agree who takes part: in all, and the longest time at once.
#[must_use]
pub fn disagreement(one: &[Shift], other: &[Shift]) -> (Duration, Duration) {
    let mut times: Vec<Duration> = one.iter().chain(other).map(|shift| shift.at).collect();
    times.sort_unstable();
    let view = |shifts: &[Shift], at| [0, 1].map(|sensor| takes_part(shifts, sensor, at));
    let (mut all, mut longest, mut current) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for pair in times.windows(2) {
        if view(one, pair[0]) == view(other, pair[0]) {
            current = Duration::ZERO;
        } else {
            let span = pair[1] - pair[0];
            all += span;
            current += span;
            longest = longest.max(current);
        }
    }
    (all, longest)
}

fn takes_part(shifts: &[Shift], sensor: usize, at: Duration) -> bool {
    let last = shifts.iter().rfind(|shift| shift.sensor == sensor && shift.at <= at);
    last.is_some_and(|shift| shift.is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(500);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn shift(seconds: u64, sensor: usize, is_in: bool) -> Shift {
        Shift { at: at(seconds), sensor, is_in }
    }

    /// Both directions of a flow, number and time the same, at these sensors.
    fn seen(flow: u16, sensors: &[usize]) -> Vec<Sighting> {
        let one = |(number, sensor): (u32, &usize), direction| Sighting {
            flow,
            direction,
            number,
            at: at(number.into()),
            sensor: *sensor,
        };
        (0u32..).zip(sensors).flat_map(|numbered| [one(numbered, 0), one(numbered, 1)]).collect()
    }

    fn verdict(seen: Vec<Sighting>, shifts: &[Shift]) -> Vec<String> {
        let judgement = judge(seen, &[shifts.to_vec()], |_, _| 0, WINDOW);
        judgement.wrong.into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn a_flow_is_home_while_its_home_takes_part_and_away_meanwhile() {
        let joined = [shift(0, 0, true), shift(0, 1, true)];
        let moved = [&joined[..], &[shift(3, 0, false), shift(6, 0, true)]].concat();
        let none: [String; 0] = [];
        assert_eq!(verdict(seen(1, &[0, 0, 0, 0, 1, 1, 1, 0, 0]), &moved), none);
        assert_eq!(verdict(seen(1, &[0, 0, 0, 1, 1, 1, 0, 0, 0]), &moved), none);
        assert_eq!(verdict(seen(2, &[1; 9]), &moved), none, "the survivor's flow stays");
        // Away though nobody left; home though home has left; the survivor's flow moves.
        assert_eq!(verdict(seen(1, &[0, 0, 0, 0, 1, 0, 0]), &joined).len(), 2);
        assert_eq!(verdict(seen(1, &[0, 0, 0, 0, 0, 1, 1, 0, 0]), &moved).len(), 1);
        assert_eq!(verdict(seen(2, &[1, 1, 1, 1, 0, 0, 1, 1, 1]), &moved).len(), 2);
        // To and fro within the window.
        let flapping = [0, 0, 0, 1, 0, 0, 1, 0, 0].map(|sensor| sensor);
        assert!(!verdict(seen(1, &flapping), &moved).is_empty());
    }

    #[test]
    fn split_directions_and_doubled_packets_are_found() {
        let joined = [shift(0, 0, true), shift(0, 1, true)];
        let mut split = seen(1, &[0; 5]);
        split.iter_mut().filter(|s| s.direction == 1).for_each(|s| s.sensor = 1);
        assert!(verdict(split, &joined)[0].starts_with("the directions of a flow have"));
        let mut doubled = seen(1, &[0; 5]);
        doubled.push(Sighting { sensor: 1, ..doubled[4] });
        assert!(verdict(doubled, &joined)[0].starts_with("a packet is at both"));
    }

    #[test]
    fn taps_disagree_between_their_shifts() {
        let one = [shift(0, 0, true), shift(5, 0, false), shift(20, 0, true)];
        let other = [shift(1, 0, true), shift(7, 0, false), shift(20, 0, true)];
        assert_eq!(disagreement(&one, &other), (at(3), at(2)));
        assert_eq!(disagreement(&one, &one), (at(0), at(0)));
    }

    #[test]
    fn a_log_line_is_a_shift() {
        let log = "2026-11-24T23:08:32.250000Z  INFO engine::session::group: the sensors' shares \
                   changed sensor=\"b:1\" kind=\"left\" reason=\"capture ended\" slots=0 members=1\n\
                   1970-01-02T00:00:01.5Z  INFO x: something else sensor=\"b:1\" kind=\"left\"";
        let sensors = ["a:1".to_owned(), "b:1".to_owned()];
        let expected = Duration::from_millis(1_795_561_712_250);
        assert_eq!(shifts(log, &sensors), [Shift { at: expected, sensor: 1, is_in: false }]);
        assert_eq!(since_epoch("1970-01-02T00:00:01.5Z"), Some(Duration::from_millis(86_401_500)));
    }
}
