//! `bench report`: records as the tables of PERF.md, and a chart.
//!
//! ```text
//! OUT/*.json --tables--> between the markers of PERF.md (what is written by hand around them stays)
//!            `-chart---> docs/perf/aims.svg: each figure over its aim
//! ```

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::aims::{AIMS, Aim};
use crate::error::Error;
use crate::record::{Figure, Record};

const BEGIN: &str = "<!-- bench report begins -->";
const END: &str = "<!-- bench report ends -->";

/// Writes the records of a folder into PERF.md, and the chart.
///
/// # Errors
///
/// No record, no markers, files that cannot be written.
pub fn report(records: &Path, perf: &Path, charts: &Path) -> Result<(), Error> {
    let records = Record::read_all(records)?;
    if records.is_empty() {
        return Err(Error::Input(
            "there is no record in that folder: run `bench all` first".into(),
        ));
    }
    let text = fs::read_to_string(perf).map_err(Error::file(perf))?;
    let text = between_markers(&text, &tables(&records))
        .ok_or_else(|| Error::Input(format!("{}: no line {BEGIN} before {END}", perf.display())))?;
    fs::create_dir_all(charts).map_err(Error::file(charts))?;
    let chart = charts.join("aims.svg");
    fs::write(&chart, svg(&figures(&records))).map_err(Error::file(&chart))?;
    fs::write(perf, text).map_err(Error::file(perf))
}

fn figures(records: &[Record]) -> Vec<&Figure> {
    records.iter().flat_map(|record| &record.figures).collect()
}

fn between_markers(text: &str, new: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{new}{END}{after}"))
}

/// Aims first, then every figure by command.
#[must_use]
pub fn tables(records: &[Record]) -> String {
    let figures = figures(records);
    let mut text = String::new();
    if let Some(record) = records.first() {
        let machine: Vec<_> =
            record.machine.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(text, "One run: {}.\n", machine.join(", "));
    }
    text += "| aim | at least, or at most | median | least..most | met |\n|---|---|---|---|---|\n";
    for aim in AIMS {
        let _ = writeln!(text, "{}", aim_line(aim, &figures));
    }
    for record in records {
        let settings: Vec<_> =
            record.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(text, "\n`bench {}` ({}):\n", record.command, settings.join(", "));
        text += "| figure | unit | median | least..most |\n|---|---|---|---|\n";
        for figure in &record.figures {
            let Figure { name, unit, median, .. } = figure;
            let _ = writeln!(text, "| {name} | {unit} | {} | {} |", short(*median), spread(figure));
        }
    }
    text
}

fn aim_line(aim: &Aim, figures: &[&Figure]) -> String {
    let sign = if aim.is_most { "<=" } else { ">=" };
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

/// How each figure stands to its aim: 1 is reached, to the right is better.
#[must_use]
fn svg(figures: &[&Figure]) -> String {
    let rows: Vec<_> = AIMS
        .iter()
        .filter_map(|aim| {
            let figure = figures.iter().find(|figure| figure.name == aim.figure)?;
            let ratio =
                if aim.is_most { aim.bound / figure.median } else { figure.median / aim.bound };
            // Nothing of what must be nothing.
            let ratio = if ratio.is_nan() { 1.0 } else { ratio };
            Some((aim.figure, ratio, aim.is_met(figure.median)))
        })
        .collect();
    let (left, width, row) = (280.0, 640.0, 22.0);
    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    let y = |at: usize| 50.0 + row * at as f64;
    // Logarithmic, from an eighth to eight times.
    let x =
        |ratio: f64| left + (ratio.clamp(0.125, 8.0).log2() + 3.0) / 6.0 * (width - left - 60.0);
    let height = y(rows.len()) + 20.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\" fill=\"#222\">Each figure over its aim (1 = reached, right is better)</text>\n"
    );
    for ratio in [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0] {
        let (x, color) = (x(ratio), if ratio == 1.0 { "#222" } else { "#ddd" });
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"44\" y2=\"{:.1}\" stroke=\"{color}\"/><text x=\"{x:.1}\" y=\"40\" text-anchor=\"middle\" fill=\"#555\">{ratio}</text>",
            height - 16.0
        );
    }
    for (at, (name, ratio, is_met)) in rows.into_iter().enumerate() {
        let (y, from, to) = (y(at), x(1.0), x(ratio));
        let color = if is_met { "#2a7f3f" } else { "#b5382a" };
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222\">{name}</text>\
             <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222\">{ratio:.2}</text>",
            left - 8.0,
            y + 14.0,
            from.min(to),
            y + 4.0,
            (to - from).abs().max(1.0),
            from.max(to) + 5.0,
            y + 14.0,
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, samples: &[f64]) -> Figure {
        Figure::new(name, "ns", samples.to_vec()).unwrap()
    }

    #[test]
    fn what_stands_around_the_markers_stays() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = between_markers(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(between_markers("no marker", "new"), None);
        assert_eq!(between_markers(&format!("{END}{BEGIN}"), "new"), None);
    }

    #[test]
    fn aims_are_met_missed_or_not_measured() {
        let (met, missed) =
            (figure("pipeline/new-64/ns", &[80.0, 85.0, 95.0]), figure("table/cold/mops", &[9.0]));
        let record = Record::new("pipeline", &[("rounds", "3".into())], vec![met, missed]);
        let text = tables(std::slice::from_ref(&record));
        assert!(text.contains("| <= 90 | 85.0 | 80.0..95.0 | yes |"), "{text}");
        assert!(text.contains("| >= 15 | 9.00 | one sample | **no** |"), "{text}");
        assert!(text.contains("not measured"), "{text}");
        let chart = svg(&figures(&[record]));
        assert!(chart.contains("pipeline/new-64/ns") && chart.contains("1.06"), "{chart}");
        assert!(!chart.contains("NaN"));
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
