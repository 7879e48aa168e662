//! The table: for people with the specification's words, for scripts as JSON.

use super::{
    rows::{self, ROWS},
    stage::{Reported, Seen},
    truth::MTU,
};
use crate::{
    compare::{self, Counts, Faults},
    lab::LabError,
};
use serde::Serialize;
use std::{collections::BTreeSet, fmt};

/// One row, measured.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its number.
    pub row: u8,
    /// What it is.
    pub what: &'static str,
    /// By the default rule.
    #[serde(flatten)]
    pub counts: Counts,
    /// By the reference's rule, over the same traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<Counts>,
    /// Some packets that are at fault under the default rule.
    pub examples: Vec<String>,
}

/// All rows, and whether they can be believed.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Each row that was asked for.
    pub rows: Vec<Line>,
    /// Packets of no row: neighbour discovery and the like.
    pub other: Line,
    /// Frames that the rings of our taps lost.
    pub ring_lost: u64,
    /// Packets that our taps could not send as fast as they came (`queue_full`).
    pub queue_lost: u64,
    /// Packets lost between our taps and their sensor.
    pub network_lost: u64,
    /// The same of the reference's taps.
    pub reference_lost: u64,
    /// Datagrams that our taps sent: what row 22 must not show.
    pub own_datagrams: u64,
    /// Captures of the truth that lost packets.
    pub untrusted: Vec<String>,
}

impl Table {
    /// Every row is exact under the default rule, nothing of no row is at fault, and nothing was lost on
    /// the way.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        let Counts { sent, .. } = self.other.counts;
        let is_other_exact = self.other.counts == Counts { sent, once: sent, ..Counts::default() };
        let are_rows_exact = self.rows.iter().all(|line| line.counts.is_exact());
        self.is_complete() && is_other_exact && are_rows_exact
    }

    /// Nothing was lost in rings, at the sensor or in the captures of the truth: what is missing,
    /// was not reported.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ring_lost + self.queue_lost + self.network_lost == 0 && self.untrusted.is_empty()
    }

    /// The line of a row.
    #[must_use]
    pub fn row(&self, number: u8) -> Option<&Line> {
        self.rows.iter().find(|line| line.row == number)
    }
}

/// Compares what was seen.
pub(super) fn make(seen: &Seen, wanted: &BTreeSet<u8>) -> Result<Table, LabError> {
    let ours = faults(seen, &seen.ours);
    let reference = seen.reference.as_ref().map(|reported| faults(seen, reported));
    let line = |index: usize, row: u8, what: &'static str| Line {
        row,
        what,
        counts: ours[index].counts,
        reference: reference.as_ref().map(|faults| faults[index].counts),
        examples: ours[index].examples.clone(),
    };
    Ok(Table {
        rows: ROWS
            .iter()
            .filter(|row| wanted.contains(&row.number))
            .map(|row| line(rows::index(row.number), row.number, row.what))
            .collect(),
        other: line(ROWS.len(), 0, "of no row: neighbour discovery, and what rows need besides"),
        ring_lost: seen.ours.lost.rings,
        queue_lost: seen.ours.lost.queues,
        network_lost: seen.ours.lost.network,
        reference_lost: seen
            .reference
            .as_ref()
            .map_or(0, |it| it.lost.rings + it.lost.queues + it.lost.network),
        own_datagrams: seen.ours.summary["totals"]["datagrams"].as_u64().unwrap_or(0),
        untrusted: seen.testimony.untrusted.clone(),
    })
}

fn faults(seen: &Seen, reported: &Reported) -> Vec<Faults> {
    let testimony = &seen.testimony;
    let reported: Vec<compare::Reported> = reported
        .frames
        .iter()
        .map(|frame| compare::Reported {
            packet: frame.packet.clone(),
            inside: testimony.inside.contains(&frame.time_us),
        })
        .collect();
    let mut faults = compare::count(&testimony.expected, &reported, ROWS.len(), MTU, rows::of);
    // Of these rows nobody sends packets that should be reported besides their pods' own: each
    // other report is one copy too many.
    for row in [20, 22] {
        let counts = &mut faults[rows::index(row)].counts;
        counts.doubled += std::mem::take(&mut counts.unexpected);
    }
    faults
}

const COLUMNS: [&str; 8] =
    ["sent", "once", "missing", "doubled", "address", "checksum", "size", "unexpected"];

fn cells(counts: &Counts) -> [u64; 8] {
    [
        counts.sent,
        counts.once,
        counts.missing,
        counts.doubled,
        counts.wrong_address,
        counts.wrong_checksum,
        counts.wrong_size,
        counts.unexpected,
    ]
}

/// Reports for each packet, in any form, to a tenth.
fn copies(counts: &Counts) -> String {
    let reports = (counts.sent + counts.doubled).saturating_sub(counts.missing);
    let tenths = (reports * 10 + counts.sent / 2).checked_div(counts.sent).unwrap_or(0);
    format!("{}.{}", tenths / 10, tenths % 10)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3} ", "row")?;
        for column in COLUMNS {
            write!(f, " {column:>10}")?;
        }
        writeln!(f, "  | reference:  once missing doubled   wrong copies | what")?;
        for line in self.rows.iter().chain([&self.other]) {
            write!(f, "{:>3} ", line.row)?;
            for cell in cells(&line.counts) {
                write!(f, " {cell:>10}")?;
            }
            match &line.reference {
                Some(it) => {
                    let wrong = it.wrong_address + it.wrong_checksum + it.wrong_size;
                    write!(
                        f,
                        "  | {:>16} {:>7} {:>7} {wrong:>7} {:>6}",
                        it.once,
                        it.missing,
                        it.doubled,
                        copies(it)
                    )?;
                }
                None => write!(f, "  | {:47}", "not run")?,
            }
            writeln!(f, " | {}", line.what)?;
        }
        for line in self.rows.iter().chain([&self.other]) {
            for example in &line.examples {
                writeln!(f, "  row {}: {example}", line.row)?;
            }
        }
        for capture in &self.untrusted {
            writeln!(f, "  not to be trusted: the capture of {capture}")?;
        }
        writeln!(
            f,
            "lost: {} frames in our taps' rings, {} packets in their queues, {} before our sensor; \
             {} by the reference's taps",
            self.ring_lost, self.queue_lost, self.network_lost, self.reference_lost
        )?;
        writeln!(f, "our taps sent {} datagrams meanwhile (row 22)", self.own_datagrams)
    }
}
