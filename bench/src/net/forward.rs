//! `bench forward`: what a frame costs the tap's CPU, captured to sent, beside bare loops and a libpcap tap.
//!
//! ```text
//! each round: sendmmsg loop, UDP_SEGMENT loop;  per size: podtap, libpcap tap, peer, one after the other,
//!     at a rate that it carries without loss --> CPU time of all its threads / frames sent
//! ```
//!
//! The highest rate without loss is halved in on between what was carried and what was not.

use std::path::Path;
use std::time::Duration;

use super::generator::{Sent, Sizes};
use super::loops::{self, Loop};
use super::rig::{Rig, SINK};
use super::tap::{Program, SENSOR_PORT, at_rest, podtap_and_sensor, sensor};
use crate::all::Options;
use crate::error::Error;
use crate::record::{Figure, Figures};

const SIZES: [Sizes; 3] = [Sizes::Fixed(64), Sizes::Mix, Sizes::Fixed(1518)];
/// Frames a second at which podtap's CPU is measured, by the above: busy, and nothing is lost.
const RATES: [f64; 3] = [400_000.0, 300_000.0, 250_000.0];
/// The same of other taps, which carry less.
const OTHERS_RATES: [f64; 3] = [100_000.0, 80_000.0, 50_000.0];
/// Halvings of the search for the highest rate.
const HALVINGS: usize = 5;
/// Where that search begins: more than one generator sends.
const MOST_RATE: f64 = 1_500_000.0;

struct Bench<'a> {
    options: &'a Options,
    rig: Rig,
}

impl Bench<'_> {
    fn generate(&self, sizes: Sizes, rate: Option<f64>) -> Result<Sent, Error> {
        self.rig.generate(sizes, rate, self.options.time)
    }

    /// CPU nanoseconds a frame that was sent, resident memory after it, and what share of the datagrams
    /// the kernel cut.
    fn cost(&self, sizes: Sizes, rate: f64) -> Result<[f64; 3], Error> {
        let [tap, _sensor] = podtap_and_sensor(&self.rig, &self.options.podtap, "")?;
        // Memory that is touched for the first time costs once.
        self.generate(sizes, Some(rate))?;
        let (before, cpu) = (at_rest(&self.rig.node)?, tap.cpu()?);
        let sent = self.generate(sizes, Some(rate))?;
        let after = at_rest(&self.rig.node)?;
        let spent = tap.cpu()?.saturating_sub(cpu);
        let frames = after.sent - before.sent;
        let lost = after.ring_dropped - before.ring_dropped;
        if frames + lost + (after.session_dropped - before.session_dropped) != sent.frames {
            return Err(Error::Unbelievable(format!(
                "{} frames were generated, {frames} sent on, {lost} lost in the ring",
                sent.frames
            )));
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let [segmented, datagrams] =
            [after.segmented - before.segmented, after.datagrams - before.datagrams]
                .map(|count| count as f64);
        Ok([per(spent, frames), tap.resident_mib()?, segmented / datagrams.max(1.0)])
    }

    /// The same of another tap, by the datagrams that the sink got.
    fn cost_of(&self, command: &str, sizes: Sizes, rate: f64) -> Result<f64, Error> {
        let mut tap = Program::start(&self.rig.node, 1, command)?;
        std::thread::sleep(Duration::from_millis(1500));
        tap.check(command)?;
        let (before, cpu) = (self.rig.received()?, tap.cpu()?);
        let sent = self.generate(sizes, Some(rate))?;
        // It may hold packets for a second.
        std::thread::sleep(Duration::from_millis(1500));
        let spent = tap.cpu()?.saturating_sub(cpu);
        let datagrams = self.rig.received()? - before;
        if datagrams == 0 {
            return Err(Error::Unbelievable(format!("`{command}` sent nothing")));
        }
        // Its datagrams may be IP fragments, or hold several packets: what it lost is not known then.
        Ok(per(spent, sent.frames))
    }

    /// The highest rate, in thousand frames a second, at which nothing is lost.
    fn highest(&self, sizes: Sizes) -> Result<f64, Error> {
        let _programs = podtap_and_sensor(&self.rig, &self.options.podtap, "")?;
        let (mut low, mut high) = (0.0, MOST_RATE);
        for step in 0..=HALVINGS {
            let rate = if step == 0 { None } else { Some(f64::midpoint(low, high)) };
            let before = at_rest(&self.rig.node)?;
            let sent = self.generate(sizes, rate)?;
            let after = at_rest(&self.rig.node)?;
            let lost = after.ring_dropped - before.ring_dropped + after.session_dropped
                - before.session_dropped;
            match (lost, rate) {
                // As fast as the generator goes.
                (0, None) => return Ok(sent.rate() / 1e3),
                (0, Some(_)) => low = sent.rate(),
                (_, None) => high = sent.rate(),
                (_, Some(rate)) => high = rate,
            }
        }
        Ok(low / 1e3)
    }
}

fn per(spent: Duration, count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let count = count.max(1) as f64;
    spent.as_secs_f64() * 1e9 / count
}

/// The figures.
///
/// # Errors
///
/// Without root or a program, or when frames are not accounted for.
pub fn measure(options: &Options, say: &mut dyn FnMut(&str)) -> Result<Vec<Figure>, Error> {
    let bench = Bench { options, rig: Rig::new()? };
    let this = std::env::current_exe().map_err(Error::call("this program's path"))?;
    let libpcap = libpcap_command(&this);
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        say(&format!("forward: round {round} of {}", options.rounds));
        let to = format!("{SINK}:9").parse().expect("an address");
        let time = options.time;
        let bare = |how| bench.rig.node.run(move || loops::send(how, to, time));
        let (sendmmsg, segment) = (bare(Loop::Sendmmsg)??, bare(Loop::UdpSegment)??);
        figures.add("forward/bare/sendmmsg-ns", "ns", sendmmsg);
        figures.add("forward/bare/udp-segment-share", "ratio", segment / sendmmsg);
        for ((sizes, rate), slow) in SIZES.into_iter().zip(RATES).zip(OTHERS_RATES) {
            let name = sizes.name();
            let [ours, resident, segmented] = bench.cost(sizes, rate)?;
            figures.add(&format!("forward/{name}/segmented"), "share", segmented);
            figures.add(&format!("forward/{name}/cpu-ns"), "ns", ours);
            let theirs = bench.cost_of(&libpcap, sizes, slow)?;
            figures.add(&format!("forward/{name}/libpcap-ns"), "ns", theirs);
            figures.add(&format!("forward/{name}/libpcap-ratio"), "ratio", theirs / ours);
            if let Some(peer) = &options.peer {
                let command = peer
                    .replace("{iface}", "tap0")
                    .replace("{sensor}", SINK)
                    .replace("{port}", &SENSOR_PORT.to_string());
                let _sensor = sensor(&bench.rig, &options.podtap)?;
                let peers = bench.cost_of(&command, sizes, slow)?;
                figures.add(&format!("forward/{name}/peer-ratio"), "ratio", peers / ours);
            }
            if sizes == Sizes::Fixed(1518) {
                figures.add("forward/1518/share-of-sendmmsg", "ratio", ours / sendmmsg);
                figures.add("forward/resident-mib", "MiB", resident);
            }
        }
        for sizes in SIZES {
            let rate = bench.highest(sizes)?;
            figures.add(&format!("forward/{}/lossless-kpps", sizes.name()), "kpps", rate);
        }
    }
    figures.finish()
}

/// The command line of the libpcap tap that is part of this program.
fn libpcap_command(this: &Path) -> String {
    format!("{} libpcap-tap tap0 {SINK}:9", this.display())
}
