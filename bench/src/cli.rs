//! The command line.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
use crate::net::{capture, forward, harm, latency, libpcap};
use crate::record::{Figure, Record};
use crate::{callgrind, compare, pipeline, report, table};

/// Measures podtap, and what it is compared with, in one run. Every figure is the median of its rounds.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The pipeline alone, from memory: ns and instructions a frame, two workers, allocations
    Pipeline {
        #[command(flatten)]
        common: Common,
        /// Count no instructions.
        #[arg(long)]
        no_callgrind: bool,
        /// One pass of this workload, for callgrind.
        #[arg(long, hide = true, value_name = "WORKLOAD")]
        callgrind: Option<String>,
    },
    /// The dedup table alone, beside papaya, dashmap and scc
    Table {
        #[command(flatten)]
        common: Common,
    },
    /// Ring and pipeline against a bare ring loop (root)
    Capture {
        #[command(flatten)]
        common: Common,
    },
    /// Captured to sent: CPU a frame, beside bare loops, a libpcap tap and --peer; highest rate without loss (root)
    Forward {
        #[command(flatten)]
        common: Common,
        /// Another tap that speaks active mode: its command line with {iface}, {sensor}, {port}.
        #[arg(long, value_name = "COMMAND")]
        peer: Option<String>,
    },
    /// What a tap costs the traffic that it sees: unwanted frames, iperf3 (root)
    Harm {
        #[command(flatten)]
        common: Common,
    },
    /// From a frame's stamp to its datagram, for each --latency preset (root)
    Latency {
        #[command(flatten)]
        common: Common,
    },
    /// All of the above (root)
    All {
        #[command(flatten)]
        common: Common,
    },
    /// Two revisions' pipelines in turn
    Compare {
        /// A commit, branch or tag.
        revision_a: String,
        /// The other one.
        revision_b: String,
        /// Rounds of each.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
    },
    /// The records of --out as PERF.md's tables and chart
    Report {
        /// Where the records are.
        #[arg(long, default_value = "target/bench/records")]
        out: PathBuf,
        /// The file with the markers.
        #[arg(long, default_value = "PERF.md")]
        perf: PathBuf,
        /// Where the chart goes.
        #[arg(long, default_value = "docs/perf")]
        charts: PathBuf,
    },
    /// The libpcap tap, until it is killed
    #[command(hide = true)]
    LibpcapTap {
        /// The interface.
        interface: String,
        /// Where datagrams go.
        sensor: std::net::SocketAddr,
    },
}

#[derive(Clone, Debug, Args)]
struct Common {
    /// Rounds; what is compared is measured in turn in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// One round, short: to see that it works.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Where the records go.
    #[arg(long, default_value = "target/bench/records")]
    out: PathBuf,
    /// The program that is measured.
    #[arg(long, default_value = "target/release/podtap")]
    podtap: PathBuf,
}

impl Common {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { usize::from(self.rounds) }
    }

    /// Of one measurement with traffic.
    fn time(&self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 1500 })
    }

    fn podtap(&self) -> Result<PathBuf, Error> {
        std::path::absolute(&self.podtap).map_err(Error::file(&self.podtap))
    }

    fn record(&self, command: &str, has_traffic: bool, figures: Vec<Figure>) -> Result<(), Error> {
        let mut settings = vec![("rounds", self.rounds().to_string())];
        if has_traffic {
            settings.push(("seconds each", self.time().as_secs_f64().to_string()));
        }
        for figure in &figures {
            let Figure { name, unit, median, least, most, .. } = figure;
            eprintln!("{name:<44} {median:>10.3} {unit:<12} {least:.3}..{most:.3}");
        }
        let path = Record::new(command, &settings, figures).write(&self.out)?;
        eprintln!("-> {}", path.display());
        Ok(())
    }
}

/// Does what the command line says.
///
/// # Errors
///
/// What the measurement could not do.
pub fn run(cli: Cli) -> Result<(), Error> {
    let started = Instant::now();
    let mut say = |step: &str| eprintln!("[{:5.1} s] {step}", started.elapsed().as_secs_f64());
    match cli.command {
        What::Pipeline { callgrind: Some(name), .. } => callgrind::one_pass(&name),
        What::Pipeline { common, no_callgrind, .. } => {
            one("pipeline", &common, !no_callgrind, &mut say)
        }
        What::Table { common } => one("table", &common, false, &mut say),
        What::Capture { common } => one("capture", &common, false, &mut say),
        What::Forward { common, peer } => forward(&common, peer, &mut say),
        What::Harm { common } => one("harm", &common, false, &mut say),
        What::Latency { common } => one("latency", &common, false, &mut say),
        What::All { common } => {
            for step in ["pipeline", "table", "capture"] {
                one(step, &common, true, &mut say)?;
            }
            forward(&common, None, &mut say)?;
            one("harm", &common, true, &mut say)?;
            one("latency", &common, true, &mut say)
        }
        What::Compare { revision_a, revision_b, rounds } => {
            let revisions = [revision_a.as_str(), revision_b.as_str()];
            eprintln!("{}", compare::compare(revisions, usize::from(rounds), &mut say)?);
            Ok(())
        }
        What::Report { out, perf, charts } => report::report(&out, &perf, &charts),
        What::LibpcapTap { interface, sensor } => libpcap::run(&interface, sensor),
    }
}

fn one(
    step: &str,
    common: &Common,
    with_callgrind: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let (rounds, time) = (common.rounds(), common.time());
    match step {
        "pipeline" => {
            let mut figures = pipeline::measure(rounds, say)?;
            if with_callgrind {
                figures.extend(callgrind::measure(say)?.into_iter().flatten());
            }
            common.record(step, false, figures)
        }
        "table" => common.record(step, false, table::measure(rounds, say)?),
        "capture" => common.record(step, true, capture::measure(rounds, time, say)?),
        "latency" => {
            let figures = latency::measure(&common.podtap()?, rounds, time, say)?;
            common.record(step, true, figures)
        }
        _ => common.record("harm", true, harm::measure(&common.podtap()?, rounds, time, say)?),
    }
}

fn forward(common: &Common, peer: Option<String>, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let podtap = common.podtap()?;
    let options = forward::Options { podtap, peer, rounds: common.rounds(), time: common.time() };
    common.record("forward", true, forward::measure(&options, say)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        Cli::try_parse_from(["bench", "pipeline", "--rounds", "0"]).unwrap_err();
        Cli::try_parse_from(["bench", "all", "--quick", "--rounds", "3"]).unwrap_err();
        Cli::try_parse_from(["bench", "compare", "main"]).unwrap_err();
        Cli::try_parse_from(["bench", "forward", "--peer", "x {iface}"]).unwrap();
    }
}
