//! The counters as OpenMetrics text.
//!
//! ```text
//! WorkerStats, SharedHistograms, SensorStats --read, summed--> METRICS --encode--> text
//! ```
//!
//! Reads and prints; never touches a worker. [`METRICS`] is at once the list of what is exported
//! and its documentation, so neither can miss what the other has. Metrics by worker keep the
//! accounting identity: received = admitted + sum of dropped over the reasons + held, and by sensor:
//! offered = sent + sum of dropped, each to within the batch that is being worked on.

mod metrics;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::control::ControlStats;
use super::histogram::{Distribution, SharedHistograms, Stage};
use super::sensor::{Move, SensorState, SensorStats};
use super::{DropReason, SessionDrop, WorkerStats};
use crate::net::Counters;
use metrics::Value;
pub use metrics::{METRICS, Metric};

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
                Value::WorkerGauge(get) => {
                    for (worker, labels) in self.exported.workers.iter().zip(&self.workers) {
                        gauge(&mut out, &labels.plain, get(worker))?;
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
