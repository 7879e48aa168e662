//! The pipeline's stages one after the other, each over a whole batch, so that each can be told from
//! the rest.
//!
//! ```text
//! batch --parse--> headers --classify--> scopes --fingerprint--> keys --table--> reported
//! ```
//!
//! The pipeline does the same in groups of 16, with less between the stages; so their sum is near its cost, and
//! not the same. Super-frames are cut between the stages and are left out. The first stage to touch a frame pays
//! for its way from memory.

use std::time::{Duration, Instant};

use engine::classify::{Classifier, Recall, Scope};
use engine::dedup::{Fingerprinter, Key, Outcome, Table};
use engine::source::memory::{MemoryBatch, MemorySource};
use engine::source::{Batch as _, Source as _};
use engine::wire::Headers;

use super::{BATCH, PASSES, check, classifier, packets, table};
use crate::error::Error;
use crate::stats::median;
use crate::workload::{Shape, Workload};

/// In their order; each is a function of this name here, in which callgrind collects.
pub const STAGES: [&str; 4] = ["parse", "classify", "fingerprint", "table"];
/// Keys whose memory is asked for before the first of them is looked up, as in the pipeline.
const GROUP: usize = 16;

/// Of a packet that is to be looked up: its name, and its point's number.
type Named = (Key, u16);

#[inline(never)]
fn parse(batch: MemoryBatch<'_>, headers: &mut Vec<Headers>) {
    headers.clear();
    headers.extend(batch.frames().map(|frame| Headers::parse(frame.data)));
}

#[inline(never)]
fn classify(
    batch: MemoryBatch<'_>,
    headers: &[Headers],
    classifier: &Classifier,
    recall: &mut Recall,
    scopes: &mut Vec<Option<Scope>>,
) {
    scopes.clear();
    classifier.begin(recall);
    scopes.extend(batch.frames().zip(headers).map(|(frame, headers)| {
        let verdict = classifier.classify_with(recall, &frame, headers);
        classifier.narrow(verdict, &frame).ok()
    }));
}

#[inline(never)]
fn fingerprint(
    batch: MemoryBatch<'_>,
    headers: &[Headers],
    scopes: &[Option<Scope>],
    prints: &Fingerprinter,
    keys: &mut Vec<Named>,
) {
    keys.clear();
    keys.extend(batch.frames().zip(headers).zip(scopes).filter_map(|((frame, headers), scope)| {
        let scope = scope.as_ref()?;
        Some((prints.key(headers, frame.data).marked(scope.marks), scope.point))
    }));
}

#[inline(never)]
fn look_up(table: &Table, keys: &[Named]) -> u32 {
    let mut reported = 0;
    for group in keys.chunks(GROUP) {
        group.iter().for_each(|(key, _)| table.prefetch(*key));
        for (key, point) in group {
            reported += u32::from(table.observe(*key, *point, 0) != Outcome::Duplicate);
        }
    }
    reported
}

/// The function of a stage, as callgrind knows it.
#[must_use]
pub fn function(stage: &str) -> String {
    let name = if stage == "table" { "look_up" } else { stage };
    format!("bench::pipeline::stages::{name}*")
}

/// Whether a workload goes through these stages.
#[must_use]
pub fn apply_to(workload: &Workload) -> bool {
    workload.shape != Shape::Super
}

/// All of the source through the stages, an empty table: the time of each.
///
/// # Errors
///
/// When a packet is lost or doubled.
pub fn pass(source: &mut MemorySource, classifier: &Classifier) -> Result<[Duration; 4], Error> {
    source.rewind();
    let (table, prints, mut recall) = (table(), Fingerprinter::new(1), Recall::default());
    let mut headers = Vec::with_capacity(BATCH);
    let mut scopes = Vec::with_capacity(BATCH);
    let mut keys = Vec::with_capacity(BATCH);
    let (mut spent, mut reported) = ([Duration::ZERO; 4], 0);
    while let Some(batch) = source.next_batch() {
        let started = Instant::now();
        parse(batch, &mut headers);
        let parsed = Instant::now();
        classify(batch, &headers, classifier, &mut recall, &mut scopes);
        let classified = Instant::now();
        fingerprint(batch, &headers, &scopes, &prints, &mut keys);
        let named = Instant::now();
        reported += look_up(&table, &keys);
        let done = Instant::now();
        for (spent, [from, to]) in spent.iter_mut().zip([
            [started, parsed],
            [parsed, classified],
            [classified, named],
            [named, done],
        ]) {
            *spent += to - from;
        }
    }
    check(reported)?;
    Ok(spent)
}

/// Nanoseconds a packet of each stage, the median of some passes.
///
/// # Errors
///
/// When a packet is lost or doubled.
pub(super) fn sample(
    workload: &Workload,
    source: &mut MemorySource,
) -> Result<Vec<(&'static str, f64)>, Error> {
    if !apply_to(workload) {
        return Ok(Vec::new());
    }
    let classifier = classifier();
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..PASSES {
        for (times, spent) in times.iter_mut().zip(pass(source, &classifier)?) {
            times.push(spent.as_secs_f64() * 1e9 / packets(workload));
        }
    }
    Ok(STAGES.into_iter().zip(times.iter().filter_map(|times| median(times))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::source;
    use crate::workload::WORKLOADS;

    #[test]
    fn the_stages_report_what_the_pipeline_reports() {
        for workload in WORKLOADS.iter().filter(|workload| apply_to(workload)) {
            pass(&mut source(workload), &classifier()).unwrap();
        }
        assert!(!apply_to(&Workload::named("super").unwrap()));
    }
}
