//! The product under test: taps and a sensor as processes in the lab's namespaces.
//!
//! ```text
//! Sensor::start(host) ... Tap::start(node) -> ready when /readyz says so ... Tap::stop -> Account
//!                                                                       Sensor::stop -> Summary
//! ```
//!
//! The account is what the tap says when it ends; [`settle_accounts`] holds it against the identity
//! and against what the sensor counted.

use crate::lab::{Host, LabError, Process};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

/// How long a process may take to start or to end.
const LIMIT: Duration = Duration::from_secs(20);
/// Where each tap serves its metrics, inside its own namespace.
const METRICS: &str = "127.0.0.1:9100";

/// The binary under test: `$PODTAP_BIN`, else the one that `scripts/test` builds.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn podtap() -> PathBuf {
    let path = std::env::var_os("PODTAP_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-release/podtap"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there: run scripts/test, which builds it", path.display());
    path
}

fn unexpected(what: &str, detail: impl Into<String>) -> LabError {
    LabError::Unexpected { what: what.to_owned(), detail: detail.into() }
}

/// A running `podtap sensor`.
#[derive(Debug)]
pub struct Sensor {
    process: Process,
    /// The pcapng that it writes.
    pub file: PathBuf,
}

impl Sensor {
    /// Listens on the host's IPv4 address, port 2003, and writes to `file`.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn start(host: &Host, file: PathBuf, more: &[&str]) -> Result<Self, LabError> {
        let listen = host.socket(2003).to_string();
        let mut command = host.command(podtap());
        command.args(["sensor", "--listen", &listen, "--json", "--write"]).arg(&file).args(more);
        let mut process = Process::start(command)?;
        process.wait_for("waiting for taps", LIMIT)?;
        Ok(Self { process, file })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When it could not be sent.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.process.signal(signal)
    }

    /// Ends it; the file is complete then. Returns its summary.
    ///
    /// # Errors
    ///
    /// When it does not end with exit code 0, or says no summary.
    pub fn stop(mut self) -> Result<Value, LabError> {
        let status = self.process.stop(Signal::SIGINT, LIMIT)?;
        let said = self.process.stderr();
        let summary = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        match summary {
            Some(summary) if status.success() => Ok(summary),
            _ => Err(unexpected("podtap sensor", format!("{status}: {said}"))),
        }
    }
}

/// A running `podtap run`.
#[derive(Debug)]
pub struct Tap {
    process: Process,
    host: Host,
}

impl Tap {
    /// Starts a tap on a node, towards a sensor host, and waits until a capture runs.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn start(node: &Host, sensor: &Host, more: &[&str]) -> Result<Self, LabError> {
        let mut tap = Self::launch(node, sensor, more)?;
        tap.wait_ready()?;
        Ok(tap)
    }

    /// As [`start`](Self::start), with `--sensor` among `flags`.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn start_with(node: &Host, flags: &[&str]) -> Result<Self, LabError> {
        let mut command = node.command(podtap());
        command.args(["run", "--metrics", METRICS]).args(flags);
        let mut tap = Self { process: Process::start(command)?, host: node.clone() };
        tap.wait_ready()?;
        Ok(tap)
    }

    /// As [`start`](Self::start), without waiting for a sensor.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(node: &Host, sensor: &Host, more: &[&str]) -> Result<Self, LabError> {
        let mut command = node.command(podtap());
        let to = sensor.v4().to_string();
        command.args(["run", "--sensor", &to, "--metrics", METRICS]).args(more);
        Ok(Self { process: Process::start(command)?, host: node.clone() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Waits until a sensor has started a capture.
    ///
    /// # Errors
    ///
    /// When it ends first, or takes too long.
    pub fn wait_ready(&mut self) -> Result<(), LabError> {
        let started = Instant::now();
        while started.elapsed() < LIMIT {
            if let Some(status) = self.process.ended()? {
                return Err(unexpected("podtap run", format!("{status}: {}", self.log())));
            }
            if self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(unexpected("podtap run", format!("not ready in {LIMIT:?}: {}", self.log())))
    }

    /// An answer of its metrics server, head and body.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<String> {
        let ask = || {
            let address: SocketAddr = METRICS.parse().ok()?;
            let mut stream = TcpStream::connect_timeout(&address, LIMIT).ok()?;
            stream.set_read_timeout(Some(LIMIT)).ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: tap\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        };
        self.host.enter(ask).ok().flatten()
    }

    /// The sum of a metric over all its label sets that contain `label`.
    #[must_use]
    pub fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.get("/metrics")?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_it = rest.starts_with(['{', ' ']) && rest.contains(label);
            is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        });
        Some(values.sum())
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When it could not be sent.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        self.process.signal(signal)
    }

    /// As [`stop`](Self::stop), and keeps what it logged in a file.
    ///
    /// # Errors
    ///
    /// As there, and when the file cannot be written.
    pub fn stop_logging(mut self, file: &Path) -> Result<Value, LabError> {
        let status = self.process.stop(Signal::SIGTERM, LIMIT)?;
        std::fs::write(file, self.log()).map_err(|error| LabError::file(file, error))?;
        self.account(status)
    }

    /// Ends it by SIGTERM; it must exit with 0. Returns its account.
    ///
    /// # Errors
    ///
    /// When it does not end well, or says no account.
    pub fn stop(mut self) -> Result<Value, LabError> {
        let status = self.process.stop(Signal::SIGTERM, LIMIT)?;
        self.account(status)
    }

    /// As [`stop`](Self::stop), with what it logged.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stop_with_log(mut self) -> Result<(Value, String), LabError> {
        let status = self.process.stop(Signal::SIGTERM, LIMIT)?;
        Ok((self.account(status)?, self.log()))
    }

    fn account(&self, status: ExitStatus) -> Result<Value, LabError> {
        let said = self.log();
        let account = said
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line.split_once("counted ")?.1).ok());
        match account {
            Some(account) if status.success() => Ok(account),
            _ => Err(unexpected("podtap run", format!("{status}: {said}"))),
        }
    }
}

fn count(value: &Value, path: &str) -> Result<u64, String> {
    value.pointer(path).and_then(Value::as_u64).ok_or(format!("{path} is not in {value}"))
}

fn sum_of(value: &Value, path: &str) -> Result<u64, String> {
    let map = value.pointer(path).and_then(Value::as_object).ok_or(format!("no {path}"))?;
    Ok(map.values().filter_map(Value::as_u64).sum())
}

/// Holds a tap's account against the identity: received = admitted + drops + held (and nothing is
/// held at the end), ring frames all
/// accounted for, offered = sent + drops for each sensor.
///
/// # Errors
///
/// The equation that does not hold, with its numbers.
pub fn check_account(account: &Value) -> Result<(), String> {
    let equal = |what: &str, left: u64, right: u64| match left == right {
        true => Ok(()),
        false => Err(format!("{what}: {left} is not {right}, in {account}")),
    };
    let (received, admitted) = (count(account, "/received")?, count(account, "/admitted")?);
    let (dropped, held) = (sum_of(account, "/dropped")?, count(account, "/held")?);
    equal("received = admitted + dropped + held", received, admitted + dropped + held)?;
    equal("held at the end", held, 0)?;
    let (frames, lost) = (count(account, "/ring/frames")?, count(account, "/ring/dropped")?);
    let malformed = count(account, "/ring/malformed")?;
    let cut = count(account, "/segments_cut")?;
    equal(
        "ring frames + cut = received + lost + malformed",
        frames + cut,
        received + lost + malformed,
    )?;
    let sensors = account.pointer("/sensors").and_then(Value::as_array).ok_or("no sensors")?;
    for sensor in sensors {
        let (offered, sent) = (count(sensor, "/offered")?, count(sensor, "/sent")?);
        let dropped = sum_of(sensor, "/dropped")?;
        equal("offered = sent + dropped", offered, sent + dropped)?;
    }
    Ok(())
}

/// Checks every account, and that what the taps sent is what the sensor counted plus what it knows
/// to be lost. Returns what the rings lost: more than 0 means that "missing" is explained.
///
/// # Errors
///
/// The equation that does not hold.
pub fn settle_accounts(accounts: &[Value], summary: &Value) -> Result<u64, String> {
    let (mut sent, mut ring_lost) = (0, 0);
    for account in accounts {
        check_account(account)?;
        ring_lost += count(account, "/ring/dropped")?;
        sent += count(account, "/sensors/0/sent")?;
    }
    let (packets, lost) =
        (count(summary, "/totals/packets")?, count(summary, "/totals/lost_packets")?);
    if sent != packets + lost {
        return Err(format!(
            "sent {sent}, the sensor counted {packets} and lost {lost}: {summary}"
        ));
    }
    Ok(ring_lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn account() -> Value {
        json!({
            "received": 10, "admitted": 6, "dropped": {"a": 3, "b": 1}, "held": 0,
            "segments_cut": 2,
            "ring": {"frames": 9, "dropped": 1, "malformed": 0},
            "sensors": [{"offered": 6, "sent": 5, "dropped": {"x": 1}}],
        })
    }

    #[test]
    fn an_account_that_adds_up_is_accepted_and_no_other() {
        check_account(&account()).unwrap();
        for (path, value) in [
            ("/received", 11),
            ("/admitted", 7),
            ("/dropped/a", 2),
            ("/held", 1),
            ("/ring/frames", 8),
            ("/ring/dropped", 2),
            ("/segments_cut", 0),
            ("/sensors/0/sent", 6),
        ] {
            let mut wrong = account();
            *wrong.pointer_mut(path).unwrap() = value.into();
            check_account(&wrong).unwrap_err();
        }
    }

    #[test]
    fn what_was_sent_is_counted_or_lost() {
        let summary =
            |packets: u64, lost: u64| json!({"totals": {"packets": packets, "lost_packets": lost}});
        assert_eq!(settle_accounts(&[account()], &summary(4, 1)), Ok(1));
        settle_accounts(&[account()], &summary(4, 0)).unwrap_err();
    }
}
