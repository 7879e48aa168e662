//! `bench report`: records as the tables of PERF.md, and charts.
//!
//! ```text
//! OUT/*.json --tables--> between the markers of PERF.md (what is written by hand around them stays)
//!            `-charts--> docs/perf/*.svg, each shown beside the table of its figures
//! ```

mod charts;
mod svg;
mod tables;

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::record::{Figure, Record};

const BEGIN: &str = "<!-- bench report begins -->";
const END: &str = "<!-- bench report ends -->";

/// Writes the records of a folder into PERF.md, and the charts.
///
/// # Errors
///
/// No record, no markers, files that cannot be written.
pub fn report(records: &Path, perf: &Path, folder: &Path) -> Result<(), Error> {
    let records = Record::read_all(records).map_err(|error| match error {
        Error::File { path, .. } if !path.exists() => {
            Error::Input(format!("{}: no such folder: run `bench all` first", path.display()))
        }
        other => other,
    })?;
    if records.is_empty() {
        return Err(Error::Input(
            "there is no record in that folder: run `bench all` first".into(),
        ));
    }
    let text = fs::read_to_string(perf).map_err(Error::file(perf))?;
    let figures: Vec<&Figure> = records.iter().flat_map(|record| &record.figures).collect();
    let charts = charts::charts(&figures);
    let shown = |name: &str| {
        charts.iter().any(|chart| chart.name == name).then(|| link(perf, folder, name))
    };
    let text = between_markers(&text, &tables::tables(&records, &shown))
        .ok_or_else(|| Error::Input(format!("{}: no line {BEGIN} before {END}", perf.display())))?;
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    for chart in &charts {
        let path = folder.join(format!("{}.svg", chart.name));
        fs::write(&path, &chart.svg).map_err(Error::file(&path))?;
    }
    fs::write(perf, text).map_err(Error::file(perf))
}

/// A chart's file, as the file that shows it names it.
fn link(perf: &Path, folder: &Path, name: &str) -> String {
    let beside = perf.parent().unwrap_or(Path::new(""));
    let from_there = folder.strip_prefix(beside).unwrap_or(folder);
    format!("{}/{name}.svg", from_there.display())
}

fn between_markers(text: &str, new: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{new}{END}{after}"))
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_the_markers_stays() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = between_markers(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(between_markers("no marker", "new"), None);
        assert_eq!(between_markers(&format!("{END}{BEGIN}"), "new"), None);
    }

    #[test]
    fn a_report_can_be_made_again_and_shows_the_charts_that_it_writes() {
        let folder = tempfile::tempdir().unwrap();
        let [records, perf, charts] =
            ["records", "PERF.md", "docs/perf"].map(|name| folder.path().join(name));
        fs::write(&perf, format!("# P\n\n{BEGIN}\n{END}\n\nby hand\n")).unwrap();
        let missing = report(&records, &perf, &charts).unwrap_err();
        assert!(matches!(missing, Error::Input(_)), "{missing}");
        let figure = Figure::new("pipeline/new-64/ns", "ns", vec![80.0, 85.0]).unwrap();
        Record::new("pipeline", &[], vec![figure]).write(&records).unwrap();
        report(&records, &perf, &charts).unwrap();
        let once = fs::read_to_string(&perf).unwrap();
        report(&records, &perf, &charts).unwrap();
        assert_eq!(fs::read_to_string(&perf).unwrap(), once);
        assert!(once.ends_with("\n\nby hand\n"), "{once}");
        let shown: Vec<_> =
            once.split("](").skip(1).filter_map(|rest| rest.split_once(')')).collect();
        assert!(!shown.is_empty());
        for (path, _) in shown {
            assert!(folder.path().join(path).is_file(), "{path}");
        }
    }

    #[test]
    fn a_file_without_markers_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let perf = folder.path().join("PERF.md");
        fs::write(&perf, "by hand").unwrap();
        let figure = Figure::new("pipeline/new-64/ns", "ns", vec![80.0]).unwrap();
        Record::new("pipeline", &[], vec![figure]).write(folder.path()).unwrap();
        report(folder.path(), &perf, &folder.path().join("c")).unwrap_err();
        assert_eq!(fs::read_to_string(&perf).unwrap(), "by hand");
        assert!(!folder.path().join("c").exists());
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, said) in
            [(0.0, "0"), (1234.4, "1234"), (56.78, "56.8"), (0.123, "0.12"), (0.00012, "1.2e-4")]
        {
            assert_eq!(short(value), said);
        }
    }
}
