//! A tap as a process, podtap or another: its CPU, its memory, its counts.
//!
//! ```text
//! start (core 1) --> /proc/PID: schedstat, VmRSS;  /metrics: received, sent, dropped
//! ```

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::namespace::Namespace;
use super::rig::{Rig, SINK};
use crate::error::Error;

/// How long programs get to start, and to work off what is left.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running program in a namespace; killed when dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts it on a core.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(namespace: &Namespace, core: usize, line: &str) -> Result<Self, Error> {
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        let child = namespace.run(move || {
            // Also where nobody is left to drop it.
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string()])
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        })?;
        Ok(Self(child.map_err(Error::call(line))?))
    }

    /// CPU time of all its threads so far but that which answers us (`metrics`).
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn cpu(&self) -> Result<Duration, Error> {
        let tasks = format!("/proc/{}/task", self.0.id());
        let mut spent = 0;
        for task in fs::read_dir(&tasks).map_err(Error::file(&tasks))? {
            let path = task.map_err(Error::file(&tasks))?.path();
            // A thread may end meanwhile.
            let text = fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            if fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "metrics") {
                continue;
            }
            spent += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(spent))
    }

    /// Resident memory, MiB.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn resident_mib(&self) -> Result<f64, Error> {
        let path = format!("/proc/{}/status", self.0.id());
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        kib.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
            .map(|kib| kib / 1024.0)
            .ok_or_else(|| Error::Unbelievable(format!("{path} has no VmRSS")))
    }

    /// An error if it has ended.
    ///
    /// # Errors
    ///
    /// See above.
    pub fn check(&mut self, what: &str) -> Result<(), Error> {
        match self.0.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Error::Program { command: what.into(), said: status.to_string() })
            }
            Err(error) => Err(Error::call(what)(error)),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Counts of podtap's, as `/metrics` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that workers took.
    pub received: u64,
    /// Frames that the kernel took for sensors.
    pub sent: u64,
    /// Frames lost in rings.
    pub ring_dropped: u64,
    /// Datagrams.
    pub datagrams: u64,
    /// Those of them that the kernel cut out of larger ones.
    pub segmented: u64,
    /// Frames dropped by sessions.
    pub session_dropped: u64,
    /// A capture runs.
    pub sessions: u64,
}

const METRICS: &str = "127.0.0.1:9101";

/// Where sensors listen, at the sink.
pub const SENSOR_PORT: u16 = 2003;

/// podtap's own sensor, at the sink.
///
/// # Errors
///
/// When it cannot be started.
pub fn sensor(rig: &Rig, podtap: &Path) -> Result<Program, Error> {
    let podtap = podtap.display();
    let line = format!("{podtap} sensor --listen {SINK}:{SENSOR_PORT} --write /dev/null");
    Program::start(&rig.sink, 0, &line)
}

/// podtap with one worker at `tap0`, and with these flags, once it answers.
///
/// # Errors
///
/// When it does not, or ends.
pub fn podtap(rig: &Rig, podtap: &Path, more: &str) -> Result<Program, Error> {
    let podtap = podtap.display();
    let line = format!(
        "{podtap} run --sensor {SINK} --port {SENSOR_PORT} --interface tap0 --workers 1 \
         --metrics {METRICS} --state-socket none {more}"
    );
    let mut program = Program::start(&rig.node, 1, &line)?;
    until("the tap is up", || Counts::read(&rig.node).map(|_counts| true))?;
    program.check(&line)?;
    Ok(program)
}

/// podtap, and a sensor that has a capture of it.
///
/// # Errors
///
/// When it does not come to that.
pub fn podtap_and_sensor(rig: &Rig, podtap_path: &Path, more: &str) -> Result<[Program; 2], Error> {
    let sensor = sensor(rig, podtap_path)?;
    let tap = podtap(rig, podtap_path, more)?;
    until("the tap has a capture", || Ok(Counts::read(&rig.node)?.sessions == 1))?;
    Ok([tap, sensor])
}

impl Counts {
    /// As of now.
    ///
    /// # Errors
    ///
    /// When nobody answers.
    pub fn read(node: &Namespace) -> Result<Self, Error> {
        let text = node.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        Ok(Self::parse(&text.map_err(Error::call("/metrics"))?))
    }

    fn parse(text: &str) -> Self {
        let sum = |name: &str| -> u64 {
            text.lines()
                .filter(|line| {
                    line.strip_prefix(name)
                        .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
                })
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum()
        };
        Self {
            received: sum("podtap_frames_received_total"),
            sent: sum("podtap_session_frames_sent_total"),
            ring_dropped: sum("podtap_ring_dropped_total"),
            datagrams: sum("podtap_session_datagrams_total"),
            segmented: sum("podtap_session_datagrams_segmented_total"),
            session_dropped: sum("podtap_session_frames_dropped_total"),
            sessions: sum("podtap_sensor_sessions"),
        }
    }
}

/// Waits until `is_so`.
///
/// # Errors
///
/// When that takes too long, with what it was.
pub fn until(what: &str, mut is_so: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        // Somebody who does not answer yet may answer soon.
        if is_so().unwrap_or(false) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    is_so()?;
    Err(Error::Input(format!("waited {} s in vain: {what}", PATIENCE.as_secs())))
}

/// Waits until the tap has worked off what came, and returns its counts then.
///
/// # Errors
///
/// When it does not come to rest.
pub fn at_rest(node: &Namespace) -> Result<Counts, Error> {
    let mut before = Counts::default();
    let mut since = Instant::now();
    until("the tap comes to rest", || {
        let now = Counts::read(node)?;
        if now != before {
            (before, since) = (now, Instant::now());
        }
        // Its counts of the ring are read five times a second.
        Ok(since.elapsed() > Duration::from_millis(500))
    })?;
    Ok(before)
}

/// The program to measure must be there.
///
/// # Errors
///
/// When it is not.
pub fn check_program(podtap: &Path) -> Result<(), Error> {
    match podtap.is_file() {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "{}: no such program: `cargo build --release -p engine`, or --podtap PATH",
            podtap.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_over_labels_and_of_whole_names() {
        let text = "podtap_frames_received_total{worker=\"0\"} 5\n\
                    podtap_frames_received_total{worker=\"1\"} 7\n\
                    podtap_frames_received_totally 9\n\
                    podtap_sensor_sessions{sensor=\"a\"} 1\n";
        let counts = Counts::parse(text);
        assert_eq!((counts.received, counts.sessions, counts.sent), (12, 1, 0));
    }

    #[test]
    fn a_program_that_is_not_there_is_said_with_what_to_do() {
        let error = check_program(Path::new("/nowhere/podtap")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/podtap") && error.contains("cargo build"), "{error}");
    }
}
