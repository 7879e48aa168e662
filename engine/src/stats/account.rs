//! The accounting identity as one JSON object: what the tap logs when it ends.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::sensor::SensorStats;
use super::{DropReason, SessionDrop, WorkerStats};

/// Sums over the workers, and each sensor's counts.
#[must_use]
pub fn account(workers: &[Arc<WorkerStats>], sensors: &[Arc<SensorStats>]) -> Value {
    let sum = |field: &dyn Fn(&WorkerStats) -> u64| workers.iter().map(|w| field(w)).sum::<u64>();
    let dropped: Map<String, Value> = DropReason::ALL
        .iter()
        .map(|reason| (reason.label().into(), sum(&|w| w.dropped(*reason).get()).into()))
        .collect();
    let sensors: Vec<Value> = sensors
        .iter()
        .map(|sensor| {
            let counts = sensor.counts();
            let dropped: Map<String, Value> = SessionDrop::ALL
                .iter()
                .zip(counts.dropped)
                .map(|(reason, count)| (reason.label().into(), count.into()))
                .collect();
            json!({
                "sensor": sensor.label(),
                "offered": counts.offered,
                "sent": counts.sent,
                "dropped": dropped,
                "datagrams": counts.datagrams,
                "datagrams_segmented": counts.segmented,
                "datagram_size_lowered": counts.size_lowered,
                "datagrams_over_mtu": counts.datagrams_over_mtu,
                "frames_cut": counts.frames_cut,
            })
        })
        .collect();
    json!({
        "received": sum(&|w| w.received.get()),
        "admitted": sum(&|w| w.admitted.get()),
        "dropped": dropped,
        "held": sum(&|w| w.held.get()),
        "untwinned": sum(&|w| w.untwinned.get()),
        "settle_full": sum(&|w| w.settle_full.get()),
        "ring": {
            "frames": sum(&|w| w.ring_seen.get()),
            "dropped": sum(&|w| w.ring_dropped.get()),
            "malformed": sum(&|w| w.ring_malformed.get()),
        },
        "segments_cut": sum(&|w| w.segments_cut.get()),
        "segments_uncut": sum(&|w| w.segments_uncut.get()),
        "segments_truncated": sum(&|w| w.segments_truncated.get()),
        "dedup_evictions": sum(&|w| w.dedup_evicted.get()),
        "workers": workers.iter().map(|w| w.received.get()).collect::<Vec<u64>>(),
        "sensors": sensors,
    })
}
