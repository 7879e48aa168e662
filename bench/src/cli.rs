//! The command line.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use crate::all::{Options, STEPS, Step, check};
use crate::compare;
use crate::error::Error;
use crate::net::libpcap;
use crate::pipeline::callgrind;
use crate::record::{Figure, Record};
use crate::report;

/// Measures podtap, and what it is compared with, in one run. Every figure is the median of its rounds.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The pipeline alone, from memory: ns and instructions a packet, by stage; two workers, allocations
    Pipeline {
        #[command(flatten)]
        common: Common,
        /// Count no instructions.
        #[arg(long)]
        no_callgrind: bool,
        /// Measure, too, what the choice between two sensors by flow adds.
        #[arg(long)]
        balance: bool,
        /// One pass of this workload, or of a stage of it, for callgrind.
        #[arg(long, hide = true, value_name = "WORKLOAD[/STAGE]")]
        callgrind: Option<String>,
    },
    /// The dedup table alone, 1 to all cores, beside papaya, dashmap and scc
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
        #[command(flatten)]
        peer: Peer,
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
        #[command(flatten)]
        peer: Peer,
    },
    /// Two revisions' pipelines in turn; a difference is one that is larger than their spreads
    Compare {
        /// A commit, branch or tag.
        revision_a: String,
        /// The other one.
        revision_b: String,
        #[command(flatten)]
        rounds: Rounds,
        /// Where the record goes.
        #[arg(long, default_value = "target/bench/compare")]
        out: PathBuf,
        /// The record on standard output, too.
        #[arg(long)]
        json: bool,
    },
    /// The records of --out as PERF.md's tables and charts
    Report {
        /// Where the records are.
        #[arg(long, default_value = RECORDS)]
        out: PathBuf,
        /// The file with the markers.
        #[arg(long, default_value = "PERF.md")]
        perf: PathBuf,
        /// Where the charts go.
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

const RECORDS: &str = "target/bench/records";

#[derive(Clone, Copy, Debug, Args)]
struct Rounds {
    /// Rounds; what is compared is measured in turn in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// One round, short: to see that it works.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
}

impl Rounds {
    fn count(self) -> usize {
        if self.quick { 1 } else { usize::from(self.rounds) }
    }

    /// Of one measurement with traffic.
    fn time(self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 1500 })
    }
}

#[derive(Clone, Debug, Args)]
struct Common {
    #[command(flatten)]
    rounds: Rounds,
    /// Where the records go.
    #[arg(long, default_value = RECORDS)]
    out: PathBuf,
    /// The records on standard output, too.
    #[arg(long)]
    json: bool,
    /// The program that is measured.
    #[arg(long, default_value = "target/release/podtap")]
    podtap: PathBuf,
}

#[derive(Clone, Debug, Default, Args)]
struct Peer {
    /// Another tap that speaks active mode: its command line with {iface}, {sensor}, {port}.
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,
}

impl Common {
    fn options(&self) -> Result<Options, Error> {
        Ok(Options {
            podtap: std::path::absolute(&self.podtap).map_err(Error::file(&self.podtap))?,
            rounds: self.rounds.count(),
            time: self.rounds.time(),
            callgrind: true,
            balance: false,
            peer: None,
        })
    }

    /// Takes these steps; the record of each is there before the next begins.
    fn take(
        &self,
        steps: &[Step],
        options: &Options,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Error> {
        check(steps, options)?;
        for step in steps {
            let figures = step.measure(options, say)?;
            let mut settings = vec![("rounds", options.rounds.to_string())];
            if step.has_traffic {
                settings.push(("seconds each", options.time.as_secs_f64().to_string()));
            }
            settings.extend(options.peer.clone().map(|peer| ("peer", peer)));
            for figure in &figures {
                let Figure { name, unit, median, least, most, .. } = figure;
                eprintln!("{name:<44} {median:>10.3} {unit:<12} {least:.3}..{most:.3}");
            }
            write(&Record::new(step.name, &settings, figures), &self.out, self.json)?;
        }
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "what --json is for")]
fn write(record: &Record, folder: &Path, json: bool) -> Result<(), Error> {
    let path = record.write(folder)?;
    eprintln!("-> {}", path.display());
    if json {
        println!("{}", record.json());
    }
    Ok(())
}

/// Does what the command line says.
///
/// # Errors
///
/// What the measurement could not do.
pub fn run(cli: Cli) -> Result<(), Error> {
    let started = Instant::now();
    let mut say = |step: &str| eprintln!("[{:5.1} s] {step}", started.elapsed().as_secs_f64());
    let mut one = |name: &str, common: &Common| {
        common.take(&[Step::named(name)?], &common.options()?, &mut say)
    };
    match cli.command {
        What::Pipeline { callgrind: Some(name), .. } => callgrind::one_pass(&name),
        What::Pipeline { common, no_callgrind, balance, .. } => {
            let options = Options { callgrind: !no_callgrind, balance, ..common.options()? };
            common.take(&[Step::named("pipeline")?], &options, &mut say)
        }
        What::Table { common } => one("table", &common),
        What::Capture { common } => one("capture", &common),
        What::Forward { common, peer } => {
            let options = Options { peer: peer.peer, ..common.options()? };
            common.take(&[Step::named("forward")?], &options, &mut say)
        }
        What::Harm { common } => one("harm", &common),
        What::Latency { common } => one("latency", &common),
        What::All { common, peer } => {
            common.take(&STEPS, &Options { peer: peer.peer, ..common.options()? }, &mut say)
        }
        What::Compare { revision_a, revision_b, rounds, out, json } => {
            let revisions = [revision_a.as_str(), revision_b.as_str()];
            let comparison = compare::compare(revisions, rounds.count(), &mut say)?;
            eprintln!("{}", comparison.text);
            let [a, b] = comparison.commits;
            let settings = [("rounds", rounds.count().to_string()), ("a", a), ("b", b)];
            write(&Record::new("compare", &settings, comparison.figures), &out, json)
        }
        What::Report { out, perf, charts } => report::report(&out, &perf, &charts),
        What::LibpcapTap { interface, sensor } => libpcap::run(&interface, sensor),
    }
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
        Cli::try_parse_from(["bench", "all", "--quick", "--json", "--peer", "x"]).unwrap();
    }

    #[test]
    fn every_step_is_a_subcommand() {
        use clap::CommandFactory as _;
        let command = Cli::command();
        for step in STEPS {
            assert!(command.find_subcommand(step.name).is_some(), "{}", step.name);
        }
    }
}
