//! The command line.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// A packet tap for Kubernetes nodes.
#[derive(Parser)]
#[command(name = "podtap")]
enum Command {
    /// Receive packets from taps, write them as pcapng.
    Sensor(engine::sensor::Args),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Command::Sensor(args) = Command::parse();
    match engine::sensor::run(&args) {
        Ok(_summary) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
