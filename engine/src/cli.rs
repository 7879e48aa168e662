//! The command line: what can be asked, and what is said when it cannot be done.
//!
//! ```text
//! argv --clap--> subcommand --settings, Args--> run | check | sensor | replay --> exit code
//!      `-- called rpcapd, or first word rpcapd: the reference's options --> rpcapd --^
//! ```
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong input or a missing privilege. An error is
//! one line on standard error, with its causes; logs go to standard error too, so that standard
//! output is free for data (`podtap sensor --write -`).

use std::ffi::OsString;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::classify::Election;
use crate::config::{Config, ConfigError, SETTINGS, Settings};
use crate::supervisor::{self, Machine};
use crate::{explain, replay, rpcapd, sensor};

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
    let explain = explain::Args::augment_args(Command::new("explain"))
        .next_help_heading("A tap with these flags, as if it ran on this machine");
    let explain = Settings::declare(explain)
        .about("Say why a packet is reported or not, and by whom: for an address, a flow, an interface, a frame of a file")
        .after_help(explain::AFTER_HELP);
    // Only for the help: its arguments are not read by clap.
    let rpcapd = Command::new("rpcapd")
        .about(
            "Tap by the command line and file of ExtraHop's rpcapd (rpcapd -h lists its options)",
        )
        .disable_help_flag(true);
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
        .subcommand(explain)
        .subcommand(rpcapd)
}

/// The arguments for the reference's command line, if that is how the program was called.
fn rpcapd_arguments(mut args: impl Iterator<Item = OsString>) -> Option<Vec<OsString>> {
    let name = args.next()?;
    let mut args: Vec<OsString> = args.collect();
    if rpcapd::is_our_name(&name) {
        return Some(args);
    }
    (args.first()? == "rpcapd").then(|| args.split_off(1))
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(args) = rpcapd_arguments(std::env::args_os()) {
        return finish(run_rpcapd(args));
    }
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version are no errors; clap knows which stream and code.
            let code = error.exit_code();
            let _nobody_reads = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(WRONG_INPUT));
        }
    };
    // Who asks wants the answer alone.
    init_logging(if matches.subcommand_name() == Some("explain") { "warn" } else { "info" });
    match matches.subcommand() {
        Some(("run", args)) => finish(run(args)),
        Some(("check", args)) => finish(check(args)),
        Some(("sensor", args)) => finish(run_sensor(args)),
        Some(("explain", args)) => finish(run_explain(args)),
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

/// At `level` unless `PODTAP_LOG` says otherwise.
fn init_logging(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PODTAP_LOG")
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new(level));
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

fn run_rpcapd(args: Vec<OsString>) -> Result<(), Failure> {
    let line = rpcapd::CommandLine::parse(args).map_err(input)?;
    init_logging(if rpcapd::is_talkative(&line) { "info,engine=debug" } else { "info" });
    match rpcapd::prepare(&line, |name| std::env::var_os(name)).map_err(input)? {
        rpcapd::Task::Print(text) => {
            print(&text);
            Ok(())
        }
        rpcapd::Task::Run { config, remarks, mut reloader } => {
            for remark in remarks {
                tracing::warn!("{remark}");
            }
            supervisor::run_reloading(&config, &mut || reloader.reload()).map_err(input)
        }
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
    if config.policy.election == Election::Ports {
        let view = &machine.view;
        let subnets: Vec<String> = view.main_subnets.iter().map(ToString::to_string).collect();
        let main = view.main_name().unwrap_or("none");
        text.push_str(&format!("main device: {main} {}\n", subnets.join(",")));
    }
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

fn run_explain(args: &ArgMatches) -> Result<(), Failure> {
    let config = Config::new(&settings(args).map_err(input)?).map_err(input)?;
    let has_flags = SETTINGS.iter().any(|setting| {
        // Where to ask is no flag of the tap's that answers.
        setting.flag != "state-socket"
            && args.value_source(setting.flag) == Some(ValueSource::CommandLine)
    });
    let args = explain::Args::from_arg_matches(args).map_err(input)?;
    match explain::run(&args, &config, has_flags) {
        Ok(text) => {
            print(&text);
            Ok(())
        }
        Err(error) if error.is_input() => Err(input(error)),
        Err(error) => Err(Failure::Running(Box::new(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    #[test]
    fn the_reference_s_command_line_is_taken_by_name_and_by_word() {
        let arguments = |words: &[&str]| {
            let arguments = super::rpcapd_arguments(words.iter().map(OsString::from))?;
            Some(arguments.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(arguments(&["/opt/rpcapd", "-v", "run"]), Some(vec!["-v".into(), "run".into()]));
        assert_eq!(arguments(&["./rpcapd"]), Some(vec![]));
        assert_eq!(arguments(&["podtap", "rpcapd", "-h"]), Some(vec!["-h".into()]));
        assert_eq!(arguments(&["podtap", "run", "rpcapd"]), None);
        assert_eq!(arguments(&["podtap"]), None);
    }
}
