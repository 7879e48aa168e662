//! `scripts/exactly-once`: the thirty rows, measured, as a table or as JSON.
#![expect(clippy::print_stdout, reason = "a program that talks to a person")]

use clap::Parser;
use std::{path::PathBuf, process::ExitCode, time::Instant};
use tests::exactly_once::{Load, Options, Size, run, run_load};

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
    /// Rows 21 and 27 under load instead: a million segments and more.
    #[arg(long)]
    load: bool,
    /// With --load: bytes of bulk TCP to each of two pods.
    #[arg(long, default_value_t = Load::SHOW.bulk_bytes)]
    load_bytes: u64,
    /// With --load: bits a second of bulk TCP.
    #[arg(long, default_value_t = Load::SHOW.bits_per_second)]
    load_rate: u64,
    /// With --load: different datagrams to each of two pods, each sent four times.
    #[arg(long, default_value_t = Load::SHOW.datagrams)]
    load_datagrams: u32,
    /// With --load: datagrams a second.
    #[arg(long, default_value_t = Load::SHOW.datagrams_per_second)]
    load_datagram_rate: u32,
    /// Leave the reference's taps away.
    #[arg(long)]
    no_reference: bool,
    /// Other flags for our taps than the ones that make up for cores shared by a whole cluster
    /// (--dedup-window-ms 2000 --settle-ms 500), separated by spaces.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    tap_flags: String,
    /// Only these rows.
    #[arg(value_parser = clap::value_parser!(u8).range(1..=30))]
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
    let result = if args.load {
        let load = Load {
            bulk_bytes: args.load_bytes,
            bits_per_second: args.load_rate,
            datagrams: args.load_datagrams,
            datagrams_per_second: args.load_datagram_rate,
        };
        run_load(options, load, &mut say)
            .map(|table| (table.to_string(), serde_json::to_string(&table), table.is_exact()))
    } else {
        run(options, &mut say)
            .map(|table| (table.to_string(), serde_json::to_string(&table), table.is_exact()))
    };
    match result {
        Ok((_text, Ok(json), is_exact)) if args.json => {
            println!("{json}");
            end(is_exact)
        }
        Ok((text, _json, is_exact)) => {
            println!("{text}\nevery packet once: {}", if is_exact { "yes" } else { "NO" });
            end(is_exact)
        }
        Err(error) => {
            eprintln!("exactly-once: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn end(is_exact: bool) -> ExitCode {
    if is_exact { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
