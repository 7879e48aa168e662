use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::stats::SessionStats;
use crate::stats::histogram::WorkerHistograms;

/// Two workers and two sensors, every counter with a value of its own.
fn exported() -> Exported {
    let workers: Vec<_> = (0..2u64).map(|_| Arc::new(WorkerStats::default())).collect();
    for (worker, by) in workers.iter().zip([1, 100]) {
        worker.received.add(73 * by);
        worker.admitted.add(24 * by);
        worker.held.set(4 * by);
        for (at, dropped) in (0..).zip(&worker.dropped) {
            dropped.add(at * by);
        }
        worker.batches.add(by);
    }
    let sensors: Vec<_> =
        ["10.0.0.1:2003", "odd \"name\"\\\n"].map(|label| Arc::new(SensorStats::new(label))).into();
    let stats = Arc::new(SessionStats::default());
    stats.offered.store(7, std::sync::atomic::Ordering::Relaxed);
    stats.drop_frames(SessionDrop::QueueFull, 3);
    sensors[0].begin(1, move || (&*stats).into());
    sensors[0].set_state(SensorState::Capturing);
    let mut histograms = WorkerHistograms::new();
    histograms.record_n(Stage::Ring, 1_500, 4);
    histograms.record_n(Stage::Ring, 30_000_000_000, 1);
    Exported {
        workers,
        histograms: vec![histograms.shared()],
        control: Arc::default(),
        sensors: Box::new(move || sensors.clone()),
        readiness: Box::new(|| Ok(())),
        build: BuildInfo { version: "0.1.0".into(), commit: "abc".into() },
    }
}

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Reads `key="value",...` up to the closing brace; returns the rest behind it.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    loop {
        let (key, rest) = text.split_once("=\"").unwrap();
        assert!(is_name(key), "{key}");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    escaped @ ('"' | '\\') => value.push(escaped),
                    other => panic!("\\{other} is no escape"),
                },
                (_, '\n') => panic!("a line break in a label"),
                (_, char) => value.push(char),
            }
        };
        assert!(labels.insert(key.to_owned(), value).is_none(), "{key} twice");
        text = &rest[end + 1..];
        match text.split_at(1) {
            (",", rest) => text = rest,
            ("}", rest) => return (labels, rest),
            other => panic!("{other:?} after a label"),
        }
    }
}

/// Reads an OpenMetrics exposition as strictly as Prometheus does: families with HELP and TYPE
/// once each, samples with their family's suffixes and in one piece, no sample twice.
fn parse(text: &str) -> BTreeMap<String, (String, Vec<Sample>)> {
    let body = text.strip_suffix("# EOF\n").expect("ends in # EOF");
    let mut families: BTreeMap<String, (String, Vec<Sample>)> = BTreeMap::new();
    let (mut helped, mut current) = (String::new(), String::new());
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').unwrap().0.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(is_name(name) && name == helped, "{line}");
            let old = families.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            assert!(old.is_none(), "{name} twice");
            name.clone_into(&mut current);
        } else {
            assert!(seen.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "twice: {line}");
            let at = line.find(['{', ' ']).unwrap();
            let (name, rest) = line.split_at(at);
            let (labels, rest) = rest.strip_prefix('{').map_or((BTreeMap::new(), rest), labels);
            let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
            let (kind, samples) = families.get_mut(&current).unwrap();
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{other} is no type of ours"),
            };
            let suffix = name.strip_prefix(&current).unwrap();
            assert!(suffixes.contains(&suffix), "{line}");
            samples.push((name.to_owned(), labels, value));
        }
    }
    families
}

fn families() -> BTreeMap<String, (String, Vec<Sample>)> {
    parse(&render(&registry(Arc::new(exported()))))
}

fn value(name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let families = families();
    let mut samples = families.values().flat_map(|(_, samples)| samples);
    samples.find(|sample| sample.0 == name && sample.1 == labels).unwrap().2
}

#[test]
fn what_is_documented_is_exported_and_the_other_way_round() {
    let families = families();
    let documented: BTreeSet<_> = METRICS.iter().map(|metric| metric.family()).collect();
    let exported: BTreeSet<_> = families.keys().map(String::as_str).collect();
    assert_eq!(documented, exported);
    assert_eq!(documented.len(), METRICS.len(), "no name twice");
    for metric in METRICS {
        assert!(metric.name.starts_with("podtap_") && !metric.help.is_empty());
        assert!(!metric.help.contains(['\n', '\\']) && !metric.help.ends_with('.'));
        let (kind, samples) = &families[metric.family()];
        assert_eq!(kind, metric.kind(), "{}", metric.name);
        let want: BTreeSet<_> = metric.labels().iter().copied().collect();
        assert!(!samples.is_empty(), "{}", metric.name);
        for (name, labels, _) in samples {
            let labels = labels.keys().map(String::as_str).filter(|label| *label != "le");
            assert_eq!(labels.collect::<BTreeSet<_>>(), want, "{name}");
            assert!(name.starts_with(metric.name), "{name}");
        }
    }
}

#[test]
fn every_counter_of_the_identity_is_there() {
    for (worker, by) in [("0", 1.0), ("1", 100.0)] {
        let received = value("podtap_frames_received_total", &[("worker", worker)]);
        let admitted = value("podtap_frames_admitted_total", &[("worker", worker)]);
        let dropped: f64 = DropReason::ALL
            .iter()
            .map(|reason| {
                let labels = [("worker", worker), ("reason", reason.label())];
                value("podtap_frames_dropped_total", &labels)
            })
            .sum();
        let held = value("podtap_frames_held", &[("worker", worker)]);
        assert_eq!((admitted, dropped, held), (24.0 * by, 45.0 * by, 4.0 * by));
        assert_eq!(received, admitted + dropped + held);
    }
    let sensor = ("sensor", "10.0.0.1:2003");
    assert_eq!(value("podtap_session_frames_offered_total", &[sensor]), 7.0);
    let dropped = [sensor, ("reason", "queue_full")];
    assert_eq!(value("podtap_session_frames_dropped_total", &dropped), 3.0);
}

#[test]
fn a_sensor_is_in_one_state_and_its_odd_name_is_quoted() {
    for (sensor, now, sessions) in
        [("10.0.0.1:2003", "capturing", 1.0), ("odd \"name\"\\\n", "disconnected", 0.0)]
    {
        for state in SensorState::ALL {
            let labels = [("sensor", sensor), ("state", state.label())];
            let want = f64::from(u8::from(state.label() == now));
            assert_eq!(value("podtap_sensor_state", &labels), want);
        }
        assert_eq!(value("podtap_sensor_sessions", &[("sensor", sensor)]), sessions);
    }
}

#[test]
fn buckets_are_cumulative_and_end_in_the_count() {
    let (_, samples) = families().remove("podtap_latency_seconds").unwrap();
    for stage in Stage::ALL {
        let of_stage = |sample: &&Sample| sample.1["stage"] == stage.label();
        let buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter(of_stage)
            .filter(|sample| sample.0.ends_with("_bucket"))
            .map(|sample| (sample.1["le"].parse().unwrap(), sample.2))
            .collect();
        assert_eq!(buckets.len(), 25);
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        let count = value("podtap_latency_seconds_count", &[("stage", stage.label())]);
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, count));
    }
    let ring = [("stage", "ring")];
    assert_eq!(value("podtap_latency_seconds_count", &ring), 5.0);
    assert!((value("podtap_latency_seconds_sum", &ring) - 30.000_006).abs() < 0.3);
}
