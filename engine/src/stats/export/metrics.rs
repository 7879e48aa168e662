//! Every metric of the exposition, with what it means and where its samples come from.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::MetricType;

use crate::net::Counters;
use crate::stats::WorkerStats;
use crate::stats::control::ControlStats;
use crate::stats::sensor::{SensorStats, SessionCounts};

/// A metric: its name as a query has it, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// With its suffix (`_total`, `_info`).
    pub name: &'static str,
    /// One sentence, without a full stop.
    pub help: &'static str,
    pub(super) source: Value,
}

/// Where a metric's samples come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Worker(fn(&WorkerStats) -> u64),
    WorkerGauge(fn(&WorkerStats) -> u64),
    WorkerDrops,
    Sensor(fn(&SessionCounts) -> u64),
    SensorDrops,
    SensorSessions,
    SensorDatagramSize,
    SensorStates,
    Control(fn(&ControlStats) -> &AtomicU64),
    Network(fn(&Counters) -> &AtomicU64),
    NetworkGauge(fn(&Counters) -> &AtomicU64),
    Clients,
    SensorMoves,
    SensorCount(fn(&SensorStats) -> u64),
    SensorGauge(fn(&SensorStats) -> u64),
    Latency,
    Build,
}

impl Metric {
    /// Labels of its samples.
    #[must_use]
    pub fn labels(&self) -> &'static [&'static str] {
        match self.source {
            Value::Worker(_) | Value::WorkerGauge(_) => &["worker"],
            Value::WorkerDrops => &["worker", "reason"],
            Value::Sensor(_)
            | Value::SensorSessions
            | Value::SensorDatagramSize
            | Value::SensorCount(_)
            | Value::SensorGauge(_) => &["sensor"],
            Value::SensorDrops => &["sensor", "reason"],
            Value::SensorStates => &["sensor", "state"],
            Value::SensorMoves => &["sensor", "kind"],
            Value::Control(_) | Value::Clients | Value::Network(_) | Value::NetworkGauge(_) => &[],
            Value::Latency => &["stage"],
            Value::Build => &["version", "commit"],
        }
    }

    /// `counter`, `gauge`, `histogram` or `info`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.metric_type() {
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
            MetricType::Info => "info",
            _ => "gauge",
        }
    }

    pub(super) fn metric_type(&self) -> MetricType {
        match self.source {
            Value::Worker(_)
            | Value::WorkerDrops
            | Value::Sensor(_)
            | Value::SensorDrops
            | Value::Control(_)
            | Value::Network(_)
            | Value::SensorMoves
            | Value::SensorCount(_) => MetricType::Counter,
            Value::WorkerGauge(_)
            | Value::SensorSessions
            | Value::SensorDatagramSize
            | Value::SensorStates
            | Value::SensorGauge(_)
            | Value::NetworkGauge(_)
            | Value::Clients => MetricType::Gauge,
            Value::Latency => MetricType::Histogram,
            Value::Build => MetricType::Info,
        }
    }

    /// The name without the suffix, which the encoder puts back.
    pub(super) fn family(&self) -> &'static str {
        let suffix = match self.metric_type() {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            _ => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }
}

const fn metric(name: &'static str, help: &'static str, source: Value) -> Metric {
    Metric { name, help, source }
}

/// Every metric there is.
pub const METRICS: &[Metric] = &[
    metric(
        "podtap_frames_received_total",
        "Frames taken from the ring; none that the socket filter kept back, sensors' filters included",
        Value::Worker(|worker| worker.received.get()),
    ),
    metric(
        "podtap_received_bytes_total",
        "Bytes on the wire of the frames taken from the ring",
        Value::Worker(|worker| worker.received_bytes.get()),
    ),
    metric(
        "podtap_frames_admitted_total",
        "Frames offered to the sessions that were open",
        Value::Worker(|worker| worker.admitted.get()),
    ),
    metric(
        "podtap_frames_dropped_total",
        "Frames received and not offered, by reason",
        Value::WorkerDrops,
    ),
    metric(
        "podtap_frames_held",
        "Frames that wait for a copy with better addresses: received = admitted + dropped + held",
        Value::WorkerGauge(|worker| worker.held.get()),
    ),
    metric(
        "podtap_frames_untwinned_total",
        "Frames reported with the node's or a service's address after no better copy had come",
        Value::Worker(|worker| worker.untwinned.get()),
    ),
    metric(
        "podtap_settle_full_total",
        "Frames that should have waited for a better copy and were decided at once, for lack of memory",
        Value::Worker(|worker| worker.settle_full.get()),
    ),
    metric(
        "podtap_ring_frames_total",
        "Frames that passed the kernel's filter, those lost in front of a full ring included",
        Value::Worker(|worker| worker.ring_seen.get()),
    ),
    metric(
        "podtap_ring_dropped_total",
        "Frames that the kernel lost because the ring was full",
        Value::Worker(|worker| worker.ring_dropped.get()),
    ),
    metric(
        "podtap_ring_freezes_total",
        "Times that the kernel found the ring full",
        Value::Worker(|worker| worker.ring_freezes.get()),
    ),
    metric(
        "podtap_ring_malformed_total",
        "Ring entries that contradicted themselves and were skipped",
        Value::Worker(|worker| worker.ring_malformed.get()),
    ),
    metric(
        "podtap_segments_cut_total",
        "Packets that came out of super-frames, less the super-frames: received = ring frames - ring drops + these",
        Value::Worker(|worker| worker.segments_cut.get()),
    ),
    metric(
        "podtap_segments_uncut_total",
        "Super-frames that could not be cut: one packet each, reported as the largest frame of it that a wire can have carried",
        Value::Worker(|worker| worker.segments_uncut.get()),
    ),
    metric(
        "podtap_segments_truncated_total",
        "Super-frames that were cut, but not captured whole: bytes of their last segments are missing",
        Value::Worker(|worker| worker.segments_truncated.get()),
    ),
    metric(
        "podtap_dedup_evictions_total",
        "Entries of the dedup table overwritten before their window had passed",
        Value::Worker(|worker| worker.dedup_evicted.get()),
    ),
    metric(
        "podtap_fragments_stray_total",
        "Fragments given to a sensor by their addresses alone, the first fragment not having been seen",
        Value::Worker(|worker| worker.fragments_stray.get()),
    ),
    metric(
        "podtap_worker_batches_total",
        "Batches worked on; stands still only in a worker that hangs",
        Value::Worker(|worker| worker.batches.get()),
    ),
    metric(
        "podtap_session_frames_offered_total",
        "Frames that workers offered to the sensor's sessions",
        Value::Sensor(|counts| counts.offered),
    ),
    metric(
        "podtap_session_frames_sent_total",
        "Frames that the kernel took to the last byte",
        Value::Sensor(|counts| counts.sent),
    ),
    metric(
        "podtap_session_frames_dropped_total",
        "Frames offered and not sent, by reason",
        Value::SensorDrops,
    ),
    metric(
        "podtap_session_sent_bytes_total",
        "Captured bytes of the frames sent",
        Value::Sensor(|counts| counts.sent_bytes),
    ),
    metric(
        "podtap_session_datagrams_total",
        "Datagrams, or messages over TCP, that the kernel took",
        Value::Sensor(|counts| counts.datagrams),
    ),
    metric(
        "podtap_session_datagram_bytes_total",
        "Payload bytes of the datagrams, or the messages over TCP, that the kernel took",
        Value::Sensor(|counts| counts.datagram_bytes),
    ),
    metric(
        "podtap_session_datagram_size_lowered_total",
        "Times that the path to the sensor was found to take smaller datagrams than it did, or than its route says",
        Value::Sensor(|counts| counts.size_lowered),
    ),
    metric(
        "podtap_session_datagrams_over_mtu_total",
        "Plain datagrams that are larger than the path takes, so that they became IP fragments",
        Value::Sensor(|counts| counts.datagrams_over_mtu),
    ),
    metric(
        "podtap_session_frames_cut_total",
        "Frames sent with fewer bytes than the sensor wants, so that they fit into a datagram",
        Value::Sensor(|counts| counts.frames_cut),
    ),
    metric(
        "podtap_session_datagrams_segmented_total",
        "Of the datagrams, those that the kernel or the NIC cut out of a larger one (UDP_SEGMENT)",
        Value::Sensor(|counts| counts.segmented),
    ),
    metric(
        "podtap_session_segmenting_refused_total",
        "Times that the kernel refused to cut datagrams, so that they are sent one by one for a while",
        Value::Sensor(|counts| counts.segmenting_refused),
    ),
    metric(
        "podtap_sensor_datagram_bytes",
        "Most UDP payload bytes of a datagram to the sensor as of now, 0 without a capture over UDP",
        Value::SensorDatagramSize,
    ),
    metric("podtap_sensor_sessions", "Captures that run for the sensor", Value::SensorSessions),
    metric(
        "podtap_sensor_state",
        "1 for the state that the conversation with the sensor is in, 0 for the others",
        Value::SensorStates,
    ),
    metric(
        "podtap_control_connections_total",
        "Connections accepted from clients (--listen)",
        Value::Control(|control| &control.connections),
    ),
    metric(
        "podtap_control_refused_hosts_total",
        "Connections refused: the host is not in --allow-hosts, or gave too many wrong passwords",
        Value::Control(|control| &control.refused_hosts),
    ),
    metric(
        "podtap_control_refused_connections_total",
        "Connections refused or dropped because there were too many",
        Value::Control(|control| &control.refused_connections),
    ),
    metric(
        "podtap_control_auth_failures_total",
        "Authentications refused, of clients and sensors",
        Value::Control(|control| &control.auth_failures),
    ),
    metric(
        "podtap_control_timeouts_total",
        "Control connections ended because nothing came, or nothing was read, for too long",
        Value::Control(|control| &control.timeouts),
    ),
    metric(
        "podtap_control_accept_failures_total",
        "Times that the system had no descriptor or memory for a connection",
        Value::Control(|control| &control.accept_failures),
    ),
    metric("podtap_control_clients", "Clients that are connected to the tap", Value::Clients),
    metric(
        "podtap_network_views_total",
        "Times that links, addresses or routes changed what they mean to the tap",
        Value::Network(|network| &network.views),
    ),
    metric(
        "podtap_network_overruns_total",
        "Times that the kernel had more changes to tell than its queue for the tap holds; each was made good",
        Value::Network(|network| &network.overruns),
    ),
    metric(
        "podtap_network_dumps_total",
        "Times that the tap asked the kernel for the whole network",
        Value::Network(|network| &network.dumps),
    ),
    metric(
        "podtap_network_links_unnumbered",
        "Tapped interfaces beyond the number of those whose copies can be found",
        Value::NetworkGauge(|network| &network.unnumbered),
    ),
    metric(
        "podtap_sensor_moves_total",
        "Times that the sensor's part among sensors that share the packets changed, by kind: joined for the first time, left to the others, returned",
        Value::SensorMoves,
    ),
    metric(
        "podtap_sensor_slots_moved_total",
        "Slots of flows, of 4096, that came to the sensor's sessions from other sessions",
        Value::SensorCount(SensorStats::slots_moved),
    ),
    metric(
        "podtap_sensor_slots",
        "Slots of flows, of 4096, that the sensor's sessions own; 0 if it gets every packet",
        Value::SensorGauge(SensorStats::slots),
    ),
    metric(
        "podtap_latency_seconds",
        "Time that frames took: in the ring until a worker took them, then until their datagram \
         was handed on, then until the kernel had it",
        Value::Latency,
    ),
    metric("podtap_build_info", "What runs here", Value::Build),
];
