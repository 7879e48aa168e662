//! `scripts/exactly-once`: the thirty rows, measured, as a table or as JSON.
#![expect(clippy::print_stdout, reason = "a program that talks to a person")]

use clap::Parser;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use tests::exactly_once::{Options, Size, run};

/// Measures the rows of spec/exactly-once.md in a lab. Exit code 0: every packet once.
#[derive(Debug, Parser)]
struct Args {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Where captures, logs and the sensors' files go.
    #[arg(long, default_value = "target/exactly-once")]
    directory: PathBuf,
    /// HTTP requests and DNS queries of each kind.
    #[arg(long, default_value_t = Size::SHOW.requests)]
    requests: u32,
    /// Bytes of bulk TCP, each way that it is sent.
    #[arg(long, default_value_t = Size::SHOW.bulk_bytes)]
    bulk_bytes: u64,
    /// Leave the reference's taps away.
    #[arg(long)]
    no_reference: bool,
    /// More flags for our taps, separated by spaces.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    tap_flags: String,
    /// Only these rows.
    rows: Vec<u8>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = std::fs::create_dir_all(&args.directory) {
        eprintln!("exactly-once: {}: {error}", args.directory.display());
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let mut say = |step: &str| eprintln!("[{:5.1} s] {step}", started.elapsed().as_secs_f64());
    let flags: Vec<&str> = args.tap_flags.split_whitespace().collect();
    let options = Options {
        directory: &args.directory,
        size: Size { requests: args.requests, bulk_bytes: args.bulk_bytes },
        rows: &args.rows,
        reference: !args.no_reference,
        flags: &flags,
    };
    let table = match run(options, &mut say) {
        Ok(table) => table,
        Err(error) => {
            eprintln!("exactly-once: {}", error.chain());
            return ExitCode::FAILURE;
        }
    };
    match serde_json::to_string(&table) {
        Ok(json) if args.json => println!("{json}"),
        _ => println!("{table}"),
    }
    if table.is_exact() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
