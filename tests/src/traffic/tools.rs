//! Traffic by other people's programs: `ping`, `iperf3`, `tcpreplay`.

use super::Sent;
use crate::lab::{Host, LabError, Process};
use std::{net::IpAddr, path::Path, time::Duration};

/// How long any of them may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Sends `count` echo requests, 2 ms apart, with the given payload.
///
/// # Errors
///
/// When not all are answered.
pub fn ping(host: &Host, to: IpAddr, count: u32, payload: usize) -> Result<Sent, LabError> {
    let (count, payload, to) = (count.to_string(), payload.to_string(), to.to_string());
    let output = host
        .exec(["ping", "-n", "-q", "-i", "0.002", "-W", "5", "-c", &count, "-s", &payload, &to])?;
    let (sent, received) = ping_counts(&output).ok_or_else(|| unexpected("ping", &output))?;
    if sent != received {
        return Err(unexpected("ping", &output));
    }
    let bytes = |packets: u64| packets * payload.parse::<u64>().unwrap_or(0);
    Ok(Sent {
        what: "ping",
        connections: 1,
        requests: sent,
        responses: received,
        bytes_sent: bytes(sent),
        bytes_received: bytes(received),
    })
}

fn ping_counts(output: &str) -> Option<(u64, u64)> {
    let line = output.lines().find(|line| line.contains(" packets transmitted, "))?;
    let mut parts = line.split(", ").map(|part| part.split(' ').next()?.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Sends `bytes` from `client` to `server` over one TCP connection (and one for control).
///
/// # Errors
///
/// When either end of iperf3 fails.
pub fn iperf3(
    client: &Host,
    server: &Host,
    to: IpAddr,
    port: u16,
    bytes: u64,
) -> Result<Sent, LabError> {
    let (to, port, bytes) = (to.to_string(), port.to_string(), bytes.to_string());
    let mut listener: Process =
        server.spawn(["iperf3", "-s", "-1", "--forceflush", "-B", &to, "-p", &port])?;
    listener.wait_for("Server listening", LIMIT)?;
    let output =
        client.spawn(["iperf3", "-c", &to, "-p", &port, "-n", &bytes, "-J"])?.finish(LIMIT)?;
    listener.finish(LIMIT)?;
    let report: serde_json::Value = serde_json::from_str(&output).map_err(|error| {
        LabError::Unexpected { what: "iperf3".to_owned(), detail: error.to_string() }
    })?;
    let count = |side: &str| report["end"][side]["bytes"].as_u64();
    let (Some(bytes_sent), Some(bytes_received)) = (count("sum_sent"), count("sum_received"))
    else {
        return Err(unexpected("iperf3", &output));
    };
    // What it calls received is what had been read when the clock stopped; the rest follows.
    Ok(Sent {
        what: "iperf3",
        connections: 1,
        requests: 1,
        responses: 1,
        bytes_sent,
        bytes_received,
    })
}

/// What `tcpreplay` says that it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Frames sent.
    pub sent: u64,
    /// Frames that the interface did not take, for most because they are larger than the MTU.
    pub failed: u64,
}

/// Replays a capture into an interface of the host, at a rate that nobody has to drop at.
///
/// # Errors
///
/// When `tcpreplay` fails.
pub fn tcpreplay(
    host: &Host,
    interface: &str,
    file: &Path,
    frames_per_second: u32,
) -> Result<Replayed, LabError> {
    let rate = format!("--pps={frames_per_second}");
    let mut command = host.command("tcpreplay");
    command.args(["-q", "-i", interface, &rate]).arg(file);
    let mut process = Process::start(command)?;
    let output = process.finish(LIMIT)?;
    let count = |label: &str| {
        output.lines().find_map(|line| {
            line.trim().strip_prefix(label)?.trim().split(' ').next()?.parse().ok()
        })
    };
    match (count("Successful packets:"), count("Failed packets:")) {
        (Some(sent), Some(failed)) => Ok(Replayed { sent, failed }),
        _ => Err(unexpected("tcpreplay", &output)),
    }
}

fn unexpected(what: &str, output: &str) -> LabError {
    LabError::Unexpected { what: what.to_owned(), detail: output.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_is_understood() {
        let output = "PING x\n\n--- x ping statistics ---\n\
                      5 packets transmitted, 4 received, 20% packet loss, time 8ms\n";
        assert_eq!(ping_counts(output), Some((5, 4)));
        assert_eq!(ping_counts("nothing"), None);
    }
}
