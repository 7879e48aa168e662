//! What truly went through an interface: `tcpdump`, and whether it can be trusted.
//!
//! ```text
//! start: tcpdump "ether src .. and (..)" -> "listening on"
//! stop:  SIGUSR1 until captured + dropped = received and nothing new comes -> SIGINT -> counts
//! ```
//!
//! tcpdump reads its ring in blocks that the kernel hands over up to a second late, and SIGINT
//! would lose what is in the open one; so it is asked until it has read what it received.
//!
//! The direction is told by MAC addresses. `-Q` is applied after the count of what was received,
//! and `outbound` never holds while libpcap filters its first blocks itself.

use crate::lab::{Host, Lab, LabError, Process};
use nix::sys::signal::Signal;
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long tcpdump may take to start, to say its counts, or to end.
const LIMIT: Duration = Duration::from_secs(20);
/// How far apart two looks at its counts are.
const LOOK: Duration = Duration::from_millis(50);
/// No packet for this long means that none comes: a delayed ACK or a first retransmission takes
/// 200 ms at most.
const QUIET: Duration = Duration::from_millis(500);
/// Ring of each capture, KiB.
const RING_KIB: &str = "32768";

/// Which way packets go, as seen by the host that captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the host sends through the interface.
    Sent,
    /// What comes in by it.
    Received,
    /// Both.
    Both,
}

/// A capture that runs. Dropping it ends `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    what: String,
    path: PathBuf,
}

/// A finished capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Host and interface.
    pub what: String,
    /// The pcap file.
    pub path: PathBuf,
    /// Packets in it.
    pub packets: u64,
    /// Packets that passed the filter and are not in it: then it is no truth to compare with.
    pub lost: u64,
    /// Those of them that the kernel had no room for. The others came while it was ended.
    pub dropped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    captured: u64,
    received: u64,
    dropped: u64,
}

impl Capture {
    /// Starts capturing and returns when it does.
    ///
    /// # Errors
    ///
    /// When `tcpdump` fails: no such interface, a bad filter.
    pub fn start(
        host: &Host,
        interface: &str,
        side: Side,
        filter: &str,
        path: impl Into<PathBuf>,
    ) -> Result<Self, LabError> {
        let mut capture = Self::launch(host, interface, side, filter, path.into())?;
        capture.wait_until_listening()?;
        Ok(capture)
    }

    fn launch(
        host: &Host,
        interface: &str,
        side: Side,
        filter: &str,
        path: PathBuf,
    ) -> Result<Self, LabError> {
        let mut terms = Vec::new();
        match (side, host.neighbour_mac()) {
            (Side::Both, _) => {}
            // Not by its own address: it may replay frames with anybody's.
            (Side::Sent, Some(neighbour)) if interface == "eth0" => {
                terms.push(format!("not ether src {neighbour}"));
            }
            (Side::Sent, _) => terms.push(format!("ether src {}", host.mac(interface)?)),
            (Side::Received, _) => {
                terms.push(format!("not ether src {}", host.mac(interface)?));
            }
        }
        if !filter.is_empty() {
            terms.push(format!("({filter})"));
        }
        let mut command = host.command("tcpdump");
        // -Z: as root, it would otherwise become a user that cannot write where we do.
        command.args(["-n", "-Z", "root", "-B", RING_KIB, "-i", interface, "-w"]);
        command.arg(&path).arg(terms.join(" and "));
        let what = format!("{} {interface}", host.name());
        Ok(Self { process: Process::start(command)?, what, path })
    }

    fn wait_until_listening(&mut self) -> Result<(), LabError> {
        self.process.wait_for("listening on", LIMIT)
    }

    /// Waits until nothing new comes, and ends the capture.
    ///
    /// # Errors
    ///
    /// When `tcpdump` does not end or does not say its counts. Lost packets are not an error
    /// here, but in the result.
    pub fn stop(mut self) -> Result<Captured, LabError> {
        self.settle()?;
        self.finish()
    }

    /// Waits until tcpdump has read all that it received, and no more comes.
    fn settle(&mut self) -> Result<(), LabError> {
        let started = Instant::now();
        let mut counts = self.counts()?;
        let mut changed = Instant::now();
        while started.elapsed() < LIMIT {
            if changed.elapsed() > QUIET && counts.captured + counts.dropped >= counts.received {
                break;
            }
            thread::sleep(LOOK);
            let now = self.counts()?;
            if now != counts {
                (counts, changed) = (now, Instant::now());
            }
        }
        // One that never settles ends with what it has; `lost` tells.
        Ok(())
    }

    /// Asks for the counts, while it runs.
    fn counts(&mut self) -> Result<Counts, LabError> {
        let reports = all_counts(&self.process.stderr()).len();
        self.process.signal(Signal::SIGUSR1)?;
        let started = Instant::now();
        loop {
            let counts = all_counts(&self.process.stderr());
            if counts.len() > reports
                && let Some(last) = counts.last()
            {
                return Ok(*last);
            }
            if let Some(status) = self.process.ended()? {
                return Err(LabError::Unexpected {
                    what: format!("tcpdump on {}", self.what),
                    detail: format!("ended with {status}: {}", self.process.stderr().trim()),
                });
            }
            if started.elapsed() > LIMIT {
                return Err(self.silent());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn finish(&mut self) -> Result<Captured, LabError> {
        let reports = all_counts(&self.process.stderr()).len();
        self.process.stop(Signal::SIGINT, LIMIT)?;
        let counts = all_counts(&self.process.stderr());
        match counts.last() {
            Some(last) if counts.len() > reports => Ok(Captured {
                what: self.what.clone(),
                path: self.path.clone(),
                packets: last.captured,
                lost: last.received.saturating_sub(last.captured).max(last.dropped),
                dropped: last.dropped,
            }),
            _ => Err(self.silent()),
        }
    }

    fn silent(&self) -> LabError {
        LabError::Unexpected {
            what: format!("tcpdump on {}", self.what),
            detail: format!("did not say its counts: {}", self.process.stderr().trim()),
        }
    }
}

/// All complete reports of counts in tcpdump's standard error, oldest first.
fn all_counts(stderr: &str) -> Vec<Counts> {
    let mut reports = Vec::new();
    let (mut captured, mut received) = (None, None);
    // A line without its end is still being written. Asked, it says all on one line; at its
    // end, on three.
    let lines = stderr.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    for part in lines.flat_map(|line| line.trim_start_matches("tcpdump: ").split(", ")) {
        let Some((number, rest)) = part.split_once(" packet") else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match rest.trim_start_matches('s') {
            " captured" => captured = Some(number),
            " received by filter" => received = Some(number),
            " dropped by kernel" => {
                if let (Some(captured), Some(received)) = (captured.take(), received.take()) {
                    reports.push(Counts { captured, received, dropped: number });
                }
            }
            _ => {}
        }
    }
    reports
}

/// Captures at several points at once: by default what each pod sends, at its own `eth0`.
#[derive(Debug)]
pub struct Truth {
    directory: PathBuf,
    captures: Vec<Capture>,
}

impl Truth {
    /// No capture yet; files will go to `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), captures: Vec::new() }
    }

    /// What every pod of the lab sends (`filter` as for tcpdump; empty for all).
    ///
    /// # Errors
    ///
    /// When a `tcpdump` fails.
    pub fn of_pods(lab: &Lab, directory: &Path, filter: &str) -> Result<Self, LabError> {
        let mut truth = Self::new(directory);
        // All are launched before the first is waited for.
        for pod in lab.pods() {
            truth.launch(pod, "eth0", Side::Sent, filter)?;
        }
        truth.wait_until_listening()?;
        Ok(truth)
    }

    /// Adds a point: the internet host, a node, or what a pod receives.
    ///
    /// A reply to a SNATed request leaves the internet host with the node's address; what is to
    /// be reported is what reaches the pod: capture that with [`Side::Received`] at the pod.
    ///
    /// # Errors
    ///
    /// When `tcpdump` fails.
    pub fn add(
        &mut self,
        host: &Host,
        interface: &str,
        side: Side,
        filter: &str,
    ) -> Result<(), LabError> {
        self.launch(host, interface, side, filter)?;
        self.wait_until_listening()
    }

    fn launch(
        &mut self,
        host: &Host,
        interface: &str,
        side: Side,
        filter: &str,
    ) -> Result<(), LabError> {
        let number = self.captures.len();
        let path = self.directory.join(format!("{number:02}-{}-{interface}.pcap", host.name()));
        self.captures.push(Capture::launch(host, interface, side, filter, path)?);
        Ok(())
    }

    fn wait_until_listening(&mut self) -> Result<(), LabError> {
        self.captures.iter_mut().try_for_each(Capture::wait_until_listening)
    }

    /// Waits until nothing new comes at any point, and ends all captures. Servers should be gone
    /// by then: what they send after this is not in the truth.
    ///
    /// # Errors
    ///
    /// As [`Capture::stop`].
    pub fn stop(mut self) -> Result<Vec<Captured>, LabError> {
        self.settle()?;
        self.captures.iter_mut().map(Capture::finish).collect()
    }

    /// Waits until nothing new comes at any point; the captures go on.
    ///
    /// # Errors
    ///
    /// As [`Capture::stop`].
    pub fn settle(&mut self) -> Result<(), LabError> {
        // They wait for the kernel at the same time.
        thread::scope(|scope| {
            let threads: Vec<_> =
                self.captures.iter_mut().map(|capture| scope.spawn(|| capture.settle())).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complete_report_counts() {
        let text = "tcpdump: listening on eth0\n1 packet captured\n2 packets received by filter\n\
                    0 packets dropped by kernel\ntcpdump: 7 packets captured, 9 packets received by \
                    filter, 2 packets dropped by kernel\n8 packets captured\n9 packets rec";
        let counts = all_counts(text);
        assert_eq!(counts.len(), 2);
        assert_eq!(counts[1], Counts { captured: 7, received: 9, dropped: 2 });
    }

    #[test]
    fn half_a_line_is_not_a_number() {
        let text = "1 packet captured\n1 packet received by filter\n0 packets dropped by kernel";
        assert!(all_counts(text).is_empty());
    }
}
