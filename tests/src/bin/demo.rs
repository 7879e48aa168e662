//! `scripts/demo`: the main job on real traffic, for a person to watch.
#![expect(clippy::print_stdout, reason = "a program that talks to a person")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use tests::scenario::{Outcome, Size, run};

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("demo"), PathBuf::from);
    if let Err(error) = std::fs::create_dir_all(&directory) {
        eprintln!("demo: {}: {error}", directory.display());
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let mut say = |step: &str| println!("[{:5.1} s] {step}", started.elapsed().as_secs_f64());
    match run(&directory, Size::DEMO, &[], &mut say) {
        Ok(outcome) => show(&outcome),
        Err(error) => {
            eprintln!("demo: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn show(outcome: &Outcome) -> ExitCode {
    let Outcome { report, accounts, ring_lost, file, summary } = outcome;
    println!(
        "\nPackets, as they left the pods and as they reached the sensor (rows of spec/exactly-once.md):\n"
    );
    println!("{report}");
    for (account, node) in accounts.iter().zip(1..) {
        println!(
            "tap on node {node}: received {} = admitted {} + dropped {}",
            account["received"], account["admitted"], account["dropped"]
        );
    }
    println!("lost in the rings: {ring_lost}");
    let totals = &summary["totals"];
    println!(
        "lost between taps and sensor: {} packets in {} datagrams ({} of them at the sensor's socket)",
        totals["lost_packets"], totals["lost_datagrams"], totals["socket_drops"]
    );
    println!(
        "\nAll thirty rows (NodePort, SNAT, fragments, overlays, trunks, ...): scripts/exactly-once"
    );
    println!("\nThe sensor's file: {}\n  tshark -r {0}", file.display());
    if report.is_exact() {
        println!("\nevery packet once: yes");
        ExitCode::SUCCESS
    } else {
        println!("\nevery packet once: NO");
        ExitCode::FAILURE
    }
}
