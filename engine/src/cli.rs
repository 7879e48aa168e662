//! The command line: what can be asked, and what is said when it cannot be done.
//!
//! ```text
//! argv --clap--> subcommand --settings, Args--> run | check | sensor | replay --> exit code
//! ```
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong input or a missing privilege. An error is
//! one line on standard error, with its causes; logs go to standard error too, so that standard
//! output is free for data (`podtap sensor --write -`).

use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Config, ConfigError, Settings};
use crate::supervisor::{self, Machine};
use crate::{replay, sensor};

/// Something was asked that cannot be done: exit code 2.
const WRONG_INPUT: u8 = 2;

fn command() -> Command {
    let print_config = || {
        clap::Arg::new("print-config")
            .long("print-config")
            .action(clap::ArgAction::SetTrue)
            .help("Print every setting, resolved, with where it came from, and exit")
    };
    let run = Command::new("run").about("Tap this node's traffic and send it to sensors");
    let check = Command::new("check")
        .about("Check the same flags and the machine, and exit: 0 if `run` would start, else 2");
    // After the arguments, whose own description clap would show otherwise.
    let sensor = sensor::Args::augment_args(Command::new("sensor"))
        .about("Receive from taps, and write what they report as pcapng");
    let replay = replay::Args::augment_args(Settings::declare(Command::new("replay")))
        .about("Send capture files through the tap's pipeline, to a file or a sensor");
    Command::new("podtap")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "A packet tap for Kubernetes nodes: every packet once, to a network sensor, by RPCAP",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Settings::declare(run).arg(print_config()))
        .subcommand(Settings::declare(check).arg(print_config()))
        .subcommand(sensor)
        .subcommand(replay)
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; clap knows which stream and code.
            let code = error.exit_code();
            let _nobody_reads = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(WRONG_INPUT));
        }
    };
    init_logging();
    match matches.subcommand() {
        Some(("run", args)) => finish(run(args)),
        Some(("check", args)) => finish(check(args)),
        Some(("sensor", args)) => finish(run_sensor(args)),
        Some(("replay", args)) => finish(run_replay(args)),
        _ => unreachable!("clap requires one of the subcommands"),
    }
}

/// Why the program ends without having done its work.
enum Failure {
    /// Exit code 2.
    Input(Box<dyn std::error::Error>),
    /// Exit code 1.
    Running(Box<dyn std::error::Error>),
}

fn input(error: impl std::error::Error + 'static) -> Failure {
    Failure::Input(Box::new(error))
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(error)) => (error, WRONG_INPUT),
        Err(Failure::Running(error)) => (error, 1),
    };
    eprintln!("podtap: {}", crate::error_chain(error.as_ref()));
    ExitCode::from(code)
}

fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODTAP_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).compact().init();
}

fn settings(args: &ArgMatches) -> Result<Settings, ConfigError> {
    Settings::resolve(args, |name| std::env::var_os(name))
}

/// Resolves the settings; `None` if they were only to be printed.
fn config(args: &ArgMatches) -> Result<Option<Config>, Failure> {
    let settings = settings(args).map_err(input)?;
    if args.get_flag("print-config") {
        print(&settings.to_text());
    }
    let config = Config::new(&settings).map_err(input)?;
    Ok((!args.get_flag("print-config")).then_some(config))
}

#[expect(clippy::print_stdout, reason = "what was asked for on the command line")]
fn print(text: &str) {
    print!("{text}");
}

fn run(args: &ArgMatches) -> Result<(), Failure> {
    match config(args)? {
        Some(config) => supervisor::run(&config).map_err(input),
        None => Ok(()),
    }
}

fn check(args: &ArgMatches) -> Result<(), Failure> {
    let Some(config) = config(args)? else { return Ok(()) };
    let machine = Machine::check(&config).map_err(input)?;
    let mut links: Vec<_> = machine.view.links.values().filter(|link| link.is_tapped).collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = format!(
        "capture: af-packet (TPACKET_V3), {} workers, {} bytes of ring each\n",
        machine.workers,
        machine.geometry.ring_bytes()
    );
    for link in links {
        text.push_str(&format!("interface: {} ({:?})\n", link.name, link.role).to_lowercase());
    }
    print(&text);
    Ok(())
}

fn run_sensor(args: &ArgMatches) -> Result<(), Failure> {
    let args = sensor::Args::from_arg_matches(args).map_err(input)?;
    match sensor::run(&args) {
        Ok(_summary) => Ok(()),
        Err(error) if error.exit_code() == WRONG_INPUT => Err(input(error)),
        Err(error) => Err(Failure::Running(Box::new(error))),
    }
}

fn run_replay(args: &ArgMatches) -> Result<(), Failure> {
    let config = Config::new(&settings(args).map_err(input)?).map_err(input)?;
    let args = replay::Args::from_arg_matches(args).map_err(input)?;
    match replay::run(&args, &config) {
        Ok(()) => Ok(()),
        Err(error) if error.is_input() => Err(input(error)),
        Err(error) => Err(Failure::Running(Box::new(error))),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
