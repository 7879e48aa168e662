//! `bench latency`: from the kernel's stamp of a frame to the datagram that carries it, on the wire.
//!
//! ```text
//! generator at a rate --> tap --> datagrams --tcpdump at the sink--> arrival - stamp of each packet that begins in it
//! ```
//!
//! Both clocks are this machine's.

use std::path::Path;
use std::time::Duration;

use super::generator::Sizes;
use super::rig::Rig;
use super::tap::{Program, at_rest, podtap_and_sensor, until};
use crate::error::Error;
use crate::interrupt::Folder;
use crate::record::{Figure, Figures};

const PRESETS: [&str; 3] = ["low", "balanced", "throughput"];
/// Frames a second.
const RATES: [(f64, &str); 2] = [(100_000.0, ""), (1_000.0, "-1kpps")];
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

/// Milliseconds, ascending.
fn latencies(file: &[u8]) -> Vec<f64> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?))
    };
    let mut found = Vec::new();
    let mut at = 24;
    while let (Some(seconds), Some(nanos), Some(len)) = (word(at), word(at + 4), word(at + 8)) {
        let len = len as usize;
        let Some(packet) = file.get(at + 16..at + 16 + len) else { break };
        at += 16 + len;
        let arrival = f64::from(seconds) + f64::from(nanos) / 1e9;
        let stamps = packet.get(HEADERS..).map(stamps).unwrap_or_default();
        found.extend(stamps.into_iter().map(|stamp| (arrival - stamp) * 1e3));
    }
    found.sort_by(f64::total_cmp);
    found
}

/// Seconds of the packets that begin in a datagram of the stream form.
fn stamps(datagram: &[u8]) -> Vec<f64> {
    let field = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(datagram.get(at..at + 4)?.try_into().ok()?))
    };
    let mut found = Vec::new();
    let Some([0, 110, high, low]) = datagram.first_chunk() else { return found };
    let mut at = usize::from(u16::from_be_bytes([*high, *low]));
    while at != 0xffff
        && let (Some(seconds), Some(micros), Some(caplen)) =
            (field(at), field(at + 4), field(at + 8))
    {
        found.push(f64::from(seconds) + f64::from(micros) / 1e6);
        at += 20 + caplen as usize;
    }
    found
}

fn quantile(sorted: &[f64], of: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let at = (of * (sorted.len() - 1) as f64) as usize;
    sorted[at]
}

/// The figures of `rounds` rounds.
///
/// # Errors
///
/// Without root, podtap or tcpdump.
pub fn measure(
    podtap: &Path,
    rounds: usize,
    time: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, Error> {
    let rig = Rig::new()?;
    let folder = Folder::new()?;
    let file = folder.path().join("datagrams.pcap");
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say(&format!("latency: round {round} of {rounds}"));
        for preset in PRESETS {
            for (rate, suffix) in RATES {
                let _programs = podtap_and_sensor(&rig, podtap, &format!("--latency {preset}"))?;
                let dump = format!(
                    "tcpdump -i snk0 -w {} -B 16384 -U --time-stamp-precision=nano udp dst port not 9",
                    file.display()
                );
                let dumping = Program::start(&rig.sink, 0, &dump)?;
                until("tcpdump writes", || Ok(file.metadata().is_ok_and(|it| it.len() >= 24)))?;
                rig.generate(Sizes::Fixed(64), Some(rate), time)?;
                at_rest(&rig.node)?;
                drop(dumping);
                let bytes = std::fs::read(&file).map_err(Error::file(&file))?;
                std::fs::remove_file(&file).map_err(Error::file(&file))?;
                let found = latencies(&bytes);
                if found.len() < 20 {
                    return Err(Error::Unbelievable(format!(
                        "{} datagrams were seen",
                        found.len()
                    )));
                }
                for (name, of) in [("p50", 0.5), ("p99", 0.99)] {
                    let name = format!("latency/{preset}{suffix}/{name}-ms");
                    figures.add(&name, "ms", quantile(&found, of));
                }
            }
        }
    }
    figures.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_that_begin_in_a_datagram_tell_their_stamps() {
        let mut datagram = vec![0, 110, 0, 12, 0, 0, 0, 1, 9, 9, 9, 9];
        assert!(stamps(&datagram).is_empty(), "cut before the first");
        for field in [5, 250_000, 3, 3, 1] {
            datagram.extend(u32::to_be_bytes(field));
        }
        datagram.extend([7; 3]);
        assert_eq!(stamps(&datagram), [5.25]);
        let more: Vec<u8> = [6, 0, 500, 500, 2].into_iter().flat_map(u32::to_be_bytes).collect();
        assert_eq!(stamps(&[&datagram[..], &more].concat()), [5.25, 6.0], "the rest is elsewhere");
        datagram[2..4].copy_from_slice(&[0xff, 0xff]);
        assert!(stamps(&datagram).is_empty(), "no packet begins there");
        let mut file = vec![0; 24];
        datagram[2..4].copy_from_slice(&[0, 12]);
        let packet = [&[0; HEADERS][..], &datagram].concat();
        for nanos in [251_000_000u32, 250_500_000] {
            let len = u32::try_from(packet.len()).unwrap();
            for word in [5, nanos, len, len] {
                file.extend(word.to_le_bytes());
            }
            file.extend(&packet);
        }
        let found = latencies(&file);
        assert!((found[0] - 0.5).abs() < 1e-6 && (found[1] - 1.0).abs() < 1e-6, "{found:?}");
        assert_eq!(latencies(&file[..file.len() - 1]).len(), 1, "the end is missing");
    }
}
