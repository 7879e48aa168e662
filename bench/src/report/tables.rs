//! The tables: what was to be reached, then every figure.

use std::fmt::Write as _;

use super::short;
use crate::aims::{AIMS, Aim};
use crate::record::{Figure, Record};

/// Aims first, then every figure by command. `shown` is where the chart of this name is, if there is one.
pub(super) fn tables(records: &[Record], shown: &dyn Fn(&str) -> Option<String>) -> String {
    let figures: Vec<&Figure> = records.iter().flat_map(|record| &record.figures).collect();
    let mut text = machines(records);
    let chart = |text: &mut String, name: &str, what: &str| {
        if let Some(path) = shown(name) {
            let _ = writeln!(text, "![{what}]({path})\n");
        }
    };
    chart(&mut text, "aims", "each figure over its aim");
    text += "| figure | aim | median | least..most | met |\n|---|---|---|---|---|\n";
    for aim in AIMS {
        let _ = writeln!(text, "{}", aim_line(aim, &figures));
    }
    for record in records {
        let settings: Vec<_> =
            record.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(text, "\n### `bench {}`\n", record.command);
        if !settings.is_empty() {
            let _ = writeln!(text, "Settings: {}.\n", settings.join(", "));
        }
        chart(&mut text, &record.command, &format!("figures of bench {}", record.command));
        text += "| figure | unit | median | least..most |\n|---|---|---|---|\n";
        for figure in &record.figures {
            let Figure { name, unit, median, .. } = figure;
            let _ = writeln!(text, "| {name} | {unit} | {} | {} |", short(*median), spread(figure));
        }
    }
    text
}

/// What was measured on, once, and which records are of something else.
fn machines(records: &[Record]) -> String {
    let mut text = String::new();
    let Some(first) = records.first() else { return text };
    // These differ within a run.
    let told = |name: &str| !["load before", "ended"].contains(&name);
    let machine: Vec<_> = first
        .machine
        .iter()
        .filter(|(name, _)| told(name))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let _ = writeln!(text, "Measured on: {}.\n", machine.join(", "));
    for record in records {
        let others: Vec<_> = record
            .machine
            .iter()
            .filter(|(name, value)| told(name) && first.machine.get(*name) != Some(value))
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        if !others.is_empty() {
            let _ = writeln!(
                text,
                "**`bench {}` is of another run: {}.**\n",
                record.command,
                others.join(", ")
            );
        }
    }
    text
}

fn aim_line(aim: &Aim, figures: &[&Figure]) -> String {
    let sign = if aim.is_most { "at most" } else { "at least" };
    let bound = format!("{sign} {}", aim.bound);
    match figures.iter().find(|figure| figure.name == aim.figure) {
        Some(figure) => {
            let met = if aim.is_met(figure.median) { "yes" } else { "**no**" };
            let (median, spread) = (short(figure.median), spread(figure));
            format!("| {} | {bound} | {median} | {spread} | {met} |", aim.what)
        }
        None => format!("| {} | {bound} | not measured | | |", aim.what),
    }
}

fn spread(figure: &Figure) -> String {
    match figure.samples.len() {
        1 => "one sample".into(),
        _ => format!("{}..{}", short(figure.least), short(figure.most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(command: &str, figures: &[(&str, &[f64])]) -> Record {
        let figures = figures
            .iter()
            .map(|(name, samples)| Figure::new(name, "ns", samples.to_vec()).unwrap());
        Record::new(command, &[("rounds", "3".into())], figures.collect())
    }

    #[test]
    fn aims_are_met_missed_or_not_measured() {
        let record = record(
            "pipeline",
            &[("pipeline/new-64/ns", &[80.0, 85.0, 95.0]), ("table/cold/mops", &[9.0])],
        );
        let text = tables(&[record], &|name| (name == "aims").then(|| "a.svg".into()));
        assert!(text.contains("| at most 90 | 85.0 | 80.0..95.0 | yes |"), "{text}");
        assert!(text.contains("| at least 15 | 9.00 | one sample | **no** |"), "{text}");
        assert!(text.contains("not measured"), "{text}");
        assert_eq!(text.matches("![").count(), 1, "{text}");
    }

    #[test]
    fn a_record_of_another_commit_is_told() {
        let [one, mut other] = ["pipeline", "table"].map(|name| record(name, &[("a", &[1.0])]));
        let both = |other: &Record| tables(&[one.clone(), other.clone()], &|_| None);
        assert!(!both(&other).contains("another run"));
        other.machine.insert("commit".into(), "feed".into());
        assert!(both(&other).contains("`bench table` is of another run: commit feed"));
    }
}
