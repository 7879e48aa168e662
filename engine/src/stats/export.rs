//! The counters as OpenMetrics text.
//!
//! ```text
//! WorkerStats, SharedHistograms, SensorStats --read, summed--> METRICS --encode--> text
//! ```
//!
//! Reads and prints; never touches a worker. [`METRICS`] is at once the list of what is exported
//! and its documentation, so neither can miss what the other has. Metrics by worker keep the
//! accounting identity: received = admitted + sum of dropped over the reasons, and by sensor:
//! offered = sent + sum of dropped, each to within the batch that is being worked on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::control::ControlStats;
use super::histogram::{Distribution, SharedHistograms, Stage};
use super::sensor::{Move, SensorState, SensorStats, SessionCounts};
use super::{DropReason, SessionDrop, WorkerStats};
use crate::net::Counters;

/// What is read to answer a scrape, a probe of readiness or one of liveness.
pub struct Exported {
    /// Each worker's counters; the place in the list is the label.
    pub workers: Vec<Arc<WorkerStats>>,
    /// Each worker's published histograms.
    pub histograms: Vec<SharedHistograms>,
    /// Counters of the control connections.
    pub control: Arc<ControlStats>,
    /// What following the network took.
    pub network: Arc<Counters>,
    /// The sensors there are now.
    pub sensors: Box<dyn Fn() -> Vec<Arc<SensorStats>> + Send + Sync>,
    /// Why the tap is not ready, if it is not.
    pub readiness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// What was built.
    pub build: BuildInfo,
}

/// What was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// The package's version.
    pub version: String,
    /// The commit it was built from, or "unknown".
    pub commit: String,
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut exported = f.debug_struct("Exported");
        exported.field("workers", &self.workers.len()).field("build", &self.build);
        exported.finish_non_exhaustive()
    }
}

/// A metric: its name as a query has it, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// With its suffix (`_total`, `_info`).
    pub name: &'static str,
    /// One sentence, without a full stop.
    pub help: &'static str,
    source: Value,
}

/// Where a metric's samples come from.
#[derive(Clone, Copy, Debug)]
enum Value {
    Worker(fn(&WorkerStats) -> u64),
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
            Value::Worker(_) => &["worker"],
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

    fn metric_type(&self) -> MetricType {
        match self.source {
            Value::Worker(_)
            | Value::WorkerDrops
            | Value::Sensor(_)
            | Value::SensorDrops
            | Value::Control(_)
            | Value::Network(_)
            | Value::SensorMoves
            | Value::SensorCount(_) => MetricType::Counter,
            Value::SensorSessions
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
    fn family(&self) -> &'static str {
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
        "Super-frames that could not be cut and were worked on whole",
        Value::Worker(|worker| worker.segments_uncut.get()),
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
    metric("podtap_build_info", "What runs here", Value::Build),
];

type Labels<const N: usize> = [(&'static str, String); N];

/// [`Exported`] with its label sets, built once.
#[derive(Debug)]
struct Exporter {
    exported: Arc<Exported>,
    workers: Vec<WorkerLabels>,
    build: Labels<2>,
}

#[derive(Debug)]
struct WorkerLabels {
    plain: Labels<1>,
    drops: Vec<Labels<2>>,
}

impl WorkerLabels {
    fn new(index: usize) -> Self {
        let worker = || ("worker", index.to_string());
        let drops = DropReason::ALL.iter();
        let drops = drops.map(|reason| [worker(), ("reason", reason.label().into())]).collect();
        Self { plain: [worker()], drops }
    }
}

/// A registry with every metric of [`METRICS`].
pub(super) fn registry(exported: Arc<Exported>) -> Registry {
    let workers = (0..exported.workers.len()).map(WorkerLabels::new).collect();
    let BuildInfo { version, commit } = exported.build.clone();
    let build = [("version", version), ("commit", commit)];
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exporter { exported, workers, build }));
    registry
}

/// The exposition, down to its `# EOF`.
pub(super) fn render(registry: &Registry) -> String {
    let mut out = String::with_capacity(16 * 1024);
    text::encode(&mut out, registry).expect("writing to a String cannot fail");
    out
}

impl Collector for Exporter {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        // Read once, so that one scrape agrees with itself.
        let sensors: Vec<_> = (self.exported.sensors)()
            .into_iter()
            .map(|sensor| (sensor.counts(), sensor.open_sessions(), sensor.state(), sensor))
            .collect();
        for metric in METRICS {
            let (family, kind) = (metric.family(), metric.metric_type());
            let mut out = encoder.encode_descriptor(family, metric.help, None, kind)?;
            match metric.source {
                Value::Worker(get) => {
                    for (worker, labels) in self.exported.workers.iter().zip(&self.workers) {
                        counter(&mut out, &labels.plain, get(worker))?;
                    }
                }
                Value::WorkerDrops => {
                    for (worker, labels) in self.exported.workers.iter().zip(&self.workers) {
                        for (labels, count) in labels.drops.iter().zip(&worker.dropped) {
                            counter(&mut out, labels, count.get())?;
                        }
                    }
                }
                Value::Sensor(get) => {
                    for (counts, _, _, sensor) in &sensors {
                        counter(&mut out, sensor.labels(), get(counts))?;
                    }
                }
                Value::SensorDrops => {
                    for (counts, _, _, sensor) in &sensors {
                        for (reason, count) in SessionDrop::ALL.iter().zip(counts.dropped) {
                            let labels = with(sensor, "reason", reason.label());
                            counter(&mut out, &labels, count)?;
                        }
                    }
                }
                Value::SensorDatagramSize => {
                    for (counts, _, _, sensor) in &sensors {
                        gauge(&mut out, sensor.labels(), counts.datagram_size)?;
                    }
                }
                Value::SensorSessions => {
                    for (_, open, _, sensor) in &sensors {
                        gauge(&mut out, sensor.labels(), u64::try_from(*open).unwrap_or(u64::MAX))?;
                    }
                }
                Value::SensorStates => {
                    for (_, _, now, sensor) in &sensors {
                        for state in SensorState::ALL {
                            let labels = with(sensor, "state", state.label());
                            gauge(&mut out, &labels, u64::from(state == now))?;
                        }
                    }
                }
                Value::Control(get) => {
                    let count = get(&self.exported.control).load(Ordering::Relaxed);
                    out.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
                }
                Value::Network(get) => {
                    let count = get(&self.exported.network).load(Ordering::Relaxed);
                    out.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
                }
                Value::NetworkGauge(get) => {
                    out.encode_gauge(&get(&self.exported.network).load(Ordering::Relaxed))?;
                }
                Value::Clients => {
                    let clients = self.exported.control.clients.load(Ordering::Relaxed);
                    out.encode_gauge(&clients)?;
                }
                Value::SensorMoves => {
                    for (_, _, _, sensor) in &sensors {
                        for kind in Move::ALL {
                            let labels = with(sensor, "kind", kind.label());
                            counter(&mut out, &labels, sensor.moves(*kind))?;
                        }
                    }
                }
                Value::SensorCount(get) => {
                    for (_, _, _, sensor) in &sensors {
                        counter(&mut out, sensor.labels(), get(sensor))?;
                    }
                }
                Value::SensorGauge(get) => {
                    for (_, _, _, sensor) in &sensors {
                        gauge(&mut out, sensor.labels(), get(sensor))?;
                    }
                }
                Value::Latency => self.latency(&mut out)?,
                Value::Build => out.encode_info(&self.build)?,
            }
        }
        Ok(())
    }
}

impl Exporter {
    fn latency(&self, out: &mut MetricEncoder<'_>) -> fmt::Result {
        for stage in Stage::ALL {
            let mut sum = Distribution::default();
            for shared in &self.exported.histograms {
                shared.add_to(*stage, &mut sum);
            }
            let labels = [("stage", stage.label())];
            let mut out = out.encode_family(&labels)?;
            out.encode_histogram::<NoLabelSet>(sum.sum, sum.count, &sum.buckets, None)?;
        }
        Ok(())
    }
}

/// A sensor's label set and one more label.
fn with<'a>(sensor: &'a SensorStats, key: &'a str, value: &'a str) -> [(&'a str, &'a str); 2] {
    [("sensor", sensor.label()), (key, value)]
}

fn counter(out: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    let none: Option<&Exemplar<NoLabelSet, f64>> = None;
    out.encode_family(labels)?.encode_counter(&value, none)
}

fn gauge(out: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    out.encode_family(labels)?.encode_gauge(&value)
}

#[cfg(test)]
mod tests;
