//! `bench [ROUNDS]`: what the pipeline costs a frame, without kernel and network; JSON lines out.
#![expect(clippy::print_stdout, reason = "a program that reports")]

use std::sync::Arc;
use std::time::Instant;

use bench::WORKLOADS;
use engine::classify::{Classifier, Policy};
use engine::dedup::{Fingerprinter, Table};
use engine::net::View;
use engine::pipeline::{Pipeline, Verdict};
use engine::session::balance::{Name, owners, slot};
use engine::session::flow::Flows;
use engine::source::memory::MemorySource;
use engine::source::{Batch as _, Source as _};

const PACKETS: u32 = 50_000;

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    for workload in WORKLOADS {
        for balanced in [false, true] {
            let mut samples: Vec<f64> =
                (0..rounds).map(|_round| measure(&workload, balanced)).collect();
            samples.sort_by(f64::total_cmp);
            println!(
                "{{\"workload\":\"{}\",\"balanced\":{balanced},\"ns_per_frame\":{:.1},\"min\":{:.1},\"max\":{:.1},\"rounds\":{rounds}}}",
                workload.name,
                samples[rounds / 2],
                samples[0],
                samples[rounds - 1]
            );
        }
    }
}

/// Nanoseconds a frame, over one pass with an empty table; `balanced`, with the look-up of the
/// sensor that a reported frame goes to.
fn measure(workload: &bench::Workload, balanced: bool) -> f64 {
    let mut view = View::default();
    for ifindex in 1..=4 {
        view.links.insert(ifindex, link(ifindex));
    }
    let policy = Policy { any_interface: true, ..Policy::default() };
    let classifier = Classifier::new(&policy, &view, &[]);
    let table = Table::new(16 << 20, 100_000_000).expect("16 MiB is in range");
    let mut pipeline = Pipeline::new(Arc::new(table), Fingerprinter::new(1));
    let frames = workload.frames(PACKETS);
    let count = f64::from(PACKETS * workload.copies);
    let mut source = MemorySource::new(frames, 64);
    let names = ["10.0.0.1:2003", "10.0.0.2:2003"].map(|sensor| Name { sensor, ordinal: 0 });
    let (owners, mut flows, mut shares) = (owners(&names), Flows::default(), [0u32; 2]);
    let (mut reported, started) = (0u32, Instant::now());
    while let Some(batch) = source.next_batch() {
        pipeline.admit_batch(&classifier, batch.frames(), 0, |packet, headers, verdict| {
            reported += u32::from(verdict == Verdict::Report);
            if balanced {
                flows.note(headers);
                if verdict == Verdict::Report {
                    let owner = owners[slot(flows.of(packet.data, headers))];
                    shares[usize::from(owner)] += 1;
                }
            }
        });
    }
    let nanos = started.elapsed().as_secs_f64() * 1e9;
    assert_eq!(reported, PACKETS, "each packet is reported once");
    let shared = if balanced { PACKETS } else { 0 };
    assert_eq!(shares.iter().sum::<u32>(), shared, "each has one owner");
    nanos / count
}

fn link(ifindex: u32) -> engine::net::Link {
    engine::net::Link {
        ifindex,
        name: format!("bench{ifindex}"),
        kind: "veth".into(),
        is_ethernet: true,
        is_up: true,
        is_running: true,
        is_loopback: false,
        mac: Vec::new(),
        mtu: 1500,
        addresses: Vec::new(),
        role: engine::net::Role::Pod,
        slot: u16::try_from(ifindex).expect("four links"),
        is_tapped: true,
    }
}
