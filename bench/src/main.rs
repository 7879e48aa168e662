//! The harness's program; see the library.

use std::process::ExitCode;

use bench::cli::{Cli, run};
use bench::error::Error;
use bench::interrupt;
use clap::Parser as _;

/// So that `pipeline` can count allocations.
#[global_allocator]
static ALLOCATOR: bench::pipeline::Counting = bench::pipeline::Counting;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interrupt::watch().and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(match error {
                Error::Input(_) => 2,
                _ => 1,
            })
        }
    }
}
