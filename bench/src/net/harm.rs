//! `bench harm`: what a tap costs those whose traffic it sees.
//!
//! ```text
//! generator: frames that no rule wants (a covered source at an uplink), with podtap and without
//! iperf3, generator <--> node through tap0: untapped, podtap, podtap --snaplen 256
//! ```
//!
//! iperf3's both ends, their kernel's part and the tap share two cores. No sensor answers: it is the
//! capture's cost, not that of a second copy on the same wire.

use std::path::Path;
use std::time::Duration;

use super::generator::Sizes;
use super::rig::Rig;
use super::tap::{Counts, Program, podtap, until};
use crate::error::Error;
use crate::record::{Figure, Figures};

/// podtap, and time for it to follow the network.
fn tap(rig: &Rig, path: &Path, more: &str) -> Result<Program, Error> {
    let program = podtap(rig, path, more)?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(program)
}

/// Bits a second of one iperf3 run.
fn iperf3(rig: &Rig, time: Duration) -> Result<f64, Error> {
    let _server = Program::start(&rig.node, 1, "iperf3 --server --one-off --bind 10.8.0.1")?;
    until("iperf3 listens", || Ok(rig.node.command("ss -Hltn sport = 5201")?.contains("5201")))?;
    let seconds = time.as_secs().max(1);
    let said = rig
        .generator
        .command(&format!("taskset -c 0 iperf3 --client 10.8.0.1 --time {seconds} --json"))?;
    let said: serde_json::Value = serde_json::from_str(&said)
        .map_err(|error| Error::Unbelievable(format!("iperf3: {error}")))?;
    said["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .ok_or_else(|| Error::Unbelievable("iperf3 told no rate".into()))
}

/// The figures of `rounds` rounds.
///
/// # Errors
///
/// Without root, podtap or iperf3.
pub fn measure(
    path: &Path,
    rounds: usize,
    time: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Figure>, Error> {
    let rig = Rig::new()?;
    rig.generator.ip("address add 10.8.0.2/24 dev gen0")?;
    rig.node.ip("address add 10.8.0.1/24 dev tap0")?;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        say(&format!("harm: round {round} of {rounds}"));
        let rate = |size| Ok::<_, Error>(rig.generate(Sizes::Fixed(size), None, time)?.rate());
        // tap0 is an uplink then, and its traffic another tapped node's.
        rig.node.ip("route replace default via 10.8.0.2 dev tap0")?;
        let untapped = [rate(64)?, rate(1500)?];
        {
            let _tap = tap(&rig, path, "--tapped-net 10.0.0.0/8")?;
            let received = || Ok::<_, Error>(Counts::read(&rig.node)?.received);
            let before = received()?;
            let tapped = [rate(64)?, rate(1500)?];
            if received()? > before + 1000 {
                return Err(Error::Unbelievable("unwanted frames came through the filter".into()));
            }
            figures.add("harm/unwanted/share", "ratio", tapped[0] / untapped[0]);
            figures.add("harm/unwanted-1500/share", "ratio", tapped[1] / untapped[1]);
        }
        rig.node.ip("route del default")?;
        let untapped = iperf3(&rig, time)?;
        figures.add("harm/iperf3/untapped-gbit", "Gbit/s", untapped / 1e9);
        for (name, more) in [("iperf3", ""), ("iperf3-256", "--snaplen 256")] {
            let _tap = tap(&rig, path, more)?;
            figures.add(&format!("harm/{name}/share"), "ratio", iperf3(&rig, time)? / untapped);
        }
    }
    figures.finish()
}
