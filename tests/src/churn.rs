//! Pods that come and go, each with numbered datagrams for as long as it lives.
//!
//! ```text
//! slot (namespace, thread): attach veth, route --> datagrams 0, 1, 2 .. to the receiver --> detach
//!          each pod's attach time, each datagram's send time --+
//! receiver pod: which datagrams arrived -----------------------+--> judge: missing, doubled
//! sensor's file: which datagrams were reported, how often -----+
//! tap: descriptors, threads, memory, every half second --> Sample --> Spread
//! ```
//!
//! A pod is attached as the VPC CNI does it, from the moment that the host's end is up and the
//! route to its address is in place. Slots are used again and again, since a namespace costs more
//! than a pod; every pod has a veth, an interface number and an address of its own.

use crate::balance::each_packet;
use crate::lab::{Host, Lab, LabError, ip_batch};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// First bytes of each payload; pod and number follow.
const MAGIC: [u8; 4] = *b"ptch";
const PAYLOAD: usize = 12;
const PORT: u16 = 7007;
/// Numbers of the host ends' interfaces; those of the pods' ends are below, so that the kernel
/// reports a carrier at once (see the lab's wiring).
const FIRST_INDEX: usize = 100_000;
/// How many pods have numbers in [`address`].
const MOST_PODS: usize = 16_000;
/// The address of the pods' gateway, which nobody has.
const GATEWAY: &str = "169.254.1.1";
/// Nothing more comes to the receiver after so long.
const QUIET: Duration = Duration::from_millis(300);
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods in all.
    pub pods: usize,
    /// From the first pod's attach to the last one's.
    pub over: Duration,
    /// The most that live at once.
    pub slots: usize,
    /// Between two datagrams of a pod.
    pub every: Duration,
    /// The shortest and the longest life; each pod's is somewhere between.
    pub life: (Duration, Duration),
}

/// What one pod did.
#[derive(Clone, Debug, Default)]
pub struct Life {
    /// When each of its datagrams was sent, after its attach.
    pub sent: Vec<Duration>,
    /// What attaching took.
    pub attach: Duration,
}

/// What was sent, and what the receiver got of it.
#[derive(Debug)]
pub struct Truth {
    /// By pod.
    pub lives: Vec<Life>,
    /// By pod and number.
    delivered: Vec<Vec<u8>>,
    /// From the first attach to the last detach.
    pub took: Duration,
}

fn call(what: &str) -> impl Fn(io::Error) -> LabError {
    let what = what.to_owned();
    move |error| LabError::call(what.clone(), error)
}

/// 10.0.64.1 and up.
fn address(pod: usize) -> Ipv4Addr {
    let part = |number: usize| u8::try_from(number).expect("at most 16,000 pods");
    Ipv4Addr::new(10, 0, part(64 + pod / 250), part(1 + pod % 250))
}

/// A life between the two, evenly spread over the pods, in no order.
fn life(plan: &Plan, pod: usize) -> Duration {
    let (least, most) = plan.life;
    let share = u32::try_from(pod * 7919 % 1000).unwrap_or(0);
    least + (most - least) * share / 1000
}

fn payload(pod: usize, number: usize) -> [u8; PAYLOAD] {
    let mut bytes = [0; PAYLOAD];
    let part = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&part(pod));
    bytes[8..].copy_from_slice(&part(number));
    bytes
}

/// Pod and number.
fn parse(payload: &[u8]) -> Option<(usize, usize)> {
    let bytes: &[u8; PAYLOAD] = payload.first_chunk()?;
    let part = |at: usize| {
        let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        usize::try_from(u32::from_be_bytes(four)).ok()
    };
    if bytes[..4] == MAGIC { Some((part(4)?, part(8)?)) } else { None }
}

/// Counts one more of this pod and number.
fn count(counts: &mut Vec<Vec<u8>>, (pod, number): (usize, usize)) {
    if counts.len() <= pod {
        counts.resize(pod + 1, Vec::new());
    }
    let of_pod = &mut counts[pod];
    if of_pod.len() <= number {
        of_pod.resize(number + 1, 0);
    }
    of_pod[number] = of_pod[number].saturating_add(1);
}

fn counted(counts: &[Vec<u8>], pod: usize, number: usize) -> u8 {
    counts.get(pod).and_then(|of_pod| of_pod.get(number)).copied().unwrap_or(0)
}

/// A place for one pod after the other.
struct Slot<'a> {
    node: &'a Host,
    host: Host,
}

impl Slot<'_> {
    fn attach(&self, pod: usize) -> Result<(), LabError> {
        let (address, name) = (address(pod), format!("eni{pod:05}"));
        let mac = format!("0a:58:01:{:02x}:{:02x}:{:02x}", pod >> 16, pod >> 8 & 0xff, pod & 0xff);
        let index = FIRST_INDEX + pod;
        let node = self.node.namespace();
        ip_batch(
            Some(self.host.namespace()),
            &[
                format!(
                    "link add name {name} index {index} address {mac} netns {node} \
                     type veth peer name eth0"
                ),
                format!("address add {address}/32 dev eth0"),
                "link set eth0 up".to_owned(),
                format!("neighbour add {GATEWAY} lladdr {mac} dev eth0 nud permanent"),
                format!("route add {GATEWAY} dev eth0 scope link"),
                format!("route add default via {GATEWAY} dev eth0"),
            ],
        )?;
        ip_batch(
            Some(node),
            &[
                format!("link set {name} up"),
                format!("route add {address}/32 dev {name} scope link"),
            ],
        )
    }

    fn detach(&self) -> Result<(), LabError> {
        ip_batch(Some(self.host.namespace()), &["link del eth0".to_owned()])
    }

    /// A whole life; runs in the slot's namespace.
    fn live(&self, plan: &Plan, pod: usize, to: SocketAddr) -> Result<Life, LabError> {
        let before = Instant::now();
        self.attach(pod)?;
        let attached = Instant::now();
        let mut life = Life { sent: Vec::new(), attach: attached - before };
        let end = attached + self::life(plan, pod);
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(call("a pod's socket"))?;
        let mut next = attached;
        while next < end {
            let now = Instant::now();
            // What is late is sent late, not twice as often.
            next = (next + plan.every).max(now);
            socket.send_to(&payload(pod, life.sent.len()), to).map_err(call("a pod's datagram"))?;
            life.sent.push(now - attached);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        drop(socket);
        self.detach()?;
        Ok(life)
    }
}

/// Makes the namespaces that pods will live in; the lab removes them with its own.
fn slots<'a>(lab: &'a Lab, plan: &Plan) -> Result<Vec<Slot<'a>>, LabError> {
    let node = lab.node(1);
    let prefix = node.namespace().strip_suffix("node1").unwrap_or_default();
    let name = |slot: usize| format!("{prefix}churn{slot}");
    let add: Vec<String> =
        (0..plan.slots).map(|slot| format!("netns add {}", name(slot))).collect();
    ip_batch(None, &add)?;
    let slots = (0..plan.slots).map(|slot| {
        let host = Host {
            name: format!("churn{slot}"),
            namespace: name(slot),
            v4: Ipv4Addr::UNSPECIFIED,
            v6: None,
            neighbour_mac: None,
        };
        host.enter(|| {
            for scope in ["all", "default"] {
                // A kernel without IPv6 has no such file.
                let _absent =
                    fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
            }
        })?;
        Ok(Slot { node, host })
    });
    slots.collect()
}

/// Runs the plan on the lab's first node; the receiver is its first pod.
///
/// # Errors
///
/// When a namespace, a veth or a socket cannot be made.
pub fn run(lab: &Lab, plan: &Plan) -> Result<Truth, LabError> {
    assert!(plan.pods <= MOST_PODS && plan.life.0 <= plan.life.1, "{plan:?}");
    let slots = slots(lab, plan)?;
    let receiver = lab.node(1).pod(1);
    let to = receiver.socket(PORT);
    let socket = receiver.enter(|| UdpSocket::bind(to))?.map_err(call("the receiver's socket"))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20))
        .map_err(|error| LabError::call("the receiver's buffer", error))?;
    socket.set_read_timeout(Some(QUIET)).map_err(call("the receiver's socket"))?;

    let (is_over, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lives = Mutex::new(vec![Life::default(); plan.pods]);
    let began = Instant::now();
    let (result, delivered, took) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&socket, &is_over));
        let working: Vec<_> = slots
            .iter()
            .map(|slot| {
                let (next, lives) = (&next, &lives);
                let work = move || -> Result<(), LabError> {
                    loop {
                        let pod = next.fetch_add(1, Ordering::Relaxed);
                        if pod >= plan.pods {
                            return Ok(());
                        }
                        let share = u32::try_from(pod).unwrap_or(0);
                        let of = u32::try_from(plan.pods).unwrap_or(1).max(1);
                        let due = began + plan.over * share / of;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let life = slot.live(plan, pod, to)?;
                        lives.lock().unwrap_or_else(PoisonError::into_inner)[pod] = life;
                    }
                };
                scope.spawn(move || slot.host.enter(work)?)
            })
            .collect();
        let mut result = Ok(());
        for worker in working {
            let ended = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(ended);
        }
        let took = began.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let delivered = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, delivered, took)
    });
    result?;
    let lives = lives.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Truth { lives, delivered, took })
}

fn receive(socket: &UdpSocket, is_over: &AtomicBool) -> Vec<Vec<u8>> {
    let mut counts = Vec::new();
    let mut bytes = [0; 64];
    loop {
        match socket.recv(&mut bytes) {
            Ok(len) => {
                if let Some(datagram) = parse(&bytes[..len]) {
                    count(&mut counts, datagram);
                }
            }
            // Nothing waits: what was sent has come, or never will.
            Err(_) if is_over.load(Ordering::Relaxed) => return counts,
            Err(_) => {}
        }
    }
}

/// Datagrams sent early in a pod's life, or later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent.
    pub sent: u64,
    /// Of those, not delivered either: lost on the way, where no tap may have seen them.
    pub undelivered: u64,
    /// Of those sent, not at the sensor, though delivered.
    pub missing: u64,
    /// Not at the sensor and not delivered.
    pub gone: u64,
    /// More than once at the sensor.
    pub doubled: u64,
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sent within the grace after the pod's attach.
    pub early: Tally,
    /// Sent after it.
    pub late: Tally,
    /// The latest of those missing, after its pod's attach.
    pub last_missing: Option<Duration>,
    /// The latest of those doubled, after its pod's attach.
    pub last_doubled: Option<Duration>,
    /// Pods that lived for 200 ms or more.
    pub pods: usize,
}

impl Truth {
    /// Holds the sensor's file against it. `grace` is how long after its attach a pod may be missed.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn judge(&self, file: &Path, grace: Duration) -> io::Result<Verdict> {
        let mut seen = Vec::new();
        each_packet(file, |_at, frame| {
            // IPv4 without options, UDP.
            let is_udp = frame.get(12..15) == Some(&[8, 0, 0x45]) && frame.get(23) == Some(&17);
            if let Some(datagram) = frame.get(42..).filter(|_| is_udp).and_then(parse) {
                count(&mut seen, datagram);
            }
        })?;
        Ok(self.verdict(&seen, grace))
    }

    fn verdict(&self, seen: &[Vec<u8>], grace: Duration) -> Verdict {
        let mut verdict = Verdict::default();
        for (pod, life) in self.lives.iter().enumerate() {
            let lived = life.sent.last().copied().unwrap_or_default();
            verdict.pods += usize::from(lived >= Duration::from_millis(190));
            for (number, at) in life.sent.iter().enumerate() {
                let tally = if *at <= grace { &mut verdict.early } else { &mut verdict.late };
                let is_delivered = counted(&self.delivered, pod, number) > 0;
                tally.sent += 1;
                tally.undelivered += u64::from(!is_delivered);
                match counted(seen, pod, number) {
                    0 if is_delivered => {
                        tally.missing += 1;
                        verdict.last_missing = verdict.last_missing.max(Some(*at));
                    }
                    0 => tally.gone += 1,
                    1 => {}
                    _ => {
                        tally.doubled += 1;
                        verdict.last_doubled = verdict.last_doubled.max(Some(*at));
                    }
                }
            }
        }
        verdict
    }
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Resident memory, KiB.
    pub resident_kib: u64,
    /// Mapped packet rings, KiB.
    pub ring_kib: u64,
    /// Processor time used, in ticks of 10 ms.
    pub ticks: u64,
}

/// Looks at a process.
///
/// # Errors
///
/// When it has gone, or `/proc` is not as proc(5) says.
pub fn sample(pid: u32) -> io::Result<Sample> {
    let strange = |what: &str| io::Error::other(format!("{what} of process {pid}"));
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| strange(name))
    };
    let is_ring = |line: &&str| line.contains("socket:[");
    let kib = |line: &str| {
        let (from, to) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(to)? - number(from)?) / 1024)
    };
    let ring_kib = read("maps")?.lines().filter(is_ring).filter_map(kib).sum();
    let stat = read("stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>());
    Ok(Sample {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        threads: field("Threads:")?,
        resident_kib: field("VmRSS:")?,
        ring_kib,
        ticks: ticks.sum::<Result<u64, _>>().map_err(|_| strange("stat"))?,
    })
}

/// Samples of a process, taken while `work` runs.
///
/// # Errors
///
/// As [`sample`].
pub fn watched<T>(pid: u32, work: impl FnOnce() -> T) -> io::Result<(T, Vec<Sample>)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut samples = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                samples.push(sample(pid)?);
                thread::sleep(SAMPLE_EVERY);
            }
            Ok(samples)
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        let samples = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        samples.map(|samples: Vec<Sample>| (result, samples))
    })
}

/// Least and most of what a process held after its first `warm_up` samples.
#[must_use]
pub fn spread(samples: &[Sample], warm_up: usize) -> Option<(Sample, Sample)> {
    let warm = samples.get(warm_up..)?;
    let of = |pick: fn(u64, u64) -> u64| {
        let both = |a: Sample, b: &Sample| Sample {
            descriptors: pick(a.descriptors, b.descriptors),
            threads: pick(a.threads, b.threads),
            resident_kib: pick(a.resident_kib, b.resident_kib),
            ring_kib: pick(a.ring_kib, b.ring_kib),
            ticks: pick(a.ticks, b.ticks),
        };
        Some(warm.iter().skip(1).fold(*warm.first()?, both))
    };
    Some((of(u64::min)?, of(u64::max)?))
}

impl Verdict {
    /// For a report.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let tally = |t: &Tally| {
            json!({
                "sent": t.sent, "undelivered": t.undelivered, "missing": t.missing,
                "gone": t.gone, "doubled": t.doubled,
            })
        };
        let ms = |at: Option<Duration>| at.map(|at| at.as_secs_f64() * 1000.0);
        json!({
            "pods": self.pods, "early": tally(&self.early), "late": tally(&self.late),
            "last_missing_ms": ms(self.last_missing), "last_doubled_ms": ms(self.last_doubled),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn what_is_missing_or_doubled_is_counted_by_when_it_was_sent() {
        let sent: Vec<Duration> = (0..6).map(|number| ms(50 * number)).collect();
        let lives = vec![Life { sent, attach: ms(1) }];
        let delivered = vec![vec![1, 1, 1, 1, 0, 1]];
        let truth = Truth { lives, delivered, took: ms(1000) };
        let verdict = truth.verdict(&[vec![0, 2, 1, 0, 0, 3]], ms(100));
        let early = Tally { sent: 3, undelivered: 0, missing: 1, gone: 0, doubled: 1 };
        let late = Tally { sent: 3, undelivered: 1, missing: 1, gone: 1, doubled: 1 };
        assert_eq!((verdict.early, verdict.late), (early, late));
        assert_eq!((verdict.last_missing, verdict.last_doubled), (Some(ms(150)), Some(ms(250))));
        assert_eq!(verdict.pods, 1);
    }

    #[test]
    fn a_payload_says_whose_it_is() {
        assert_eq!(parse(&payload(9_999, 123)), Some((9_999, 123)));
        assert_eq!(parse(b"ptch"), None);
        assert_eq!(address(9_999).to_string(), "10.0.103.250");
        assert_eq!(address(MOST_PODS - 1).to_string(), "10.0.127.250");
    }

    #[test]
    fn a_process_holds_something() {
        let ((), samples) = watched(std::process::id(), || ()).unwrap();
        let (least, most) = spread(&samples, 0).unwrap();
        assert!(least.descriptors > 2 && least.threads > 0 && least.resident_kib > 100);
        assert!(most.resident_kib >= least.resident_kib && spread(&samples, 9).is_none());
    }
}
