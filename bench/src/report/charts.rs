//! The charts: which figures, in which order, on which scale.

use super::short;
use super::svg::{Bar, Scale, Tone, bars, linear};
use crate::aims::AIMS;
use crate::pipeline::stages::STAGES;
use crate::record::Figure;
use crate::workload::WORKLOADS;

/// A chart.
pub(super) struct Chart {
    /// Of its file, and of the command whose figures it shows.
    pub(super) name: &'static str,
    pub(super) svg: String,
}

/// All that there are figures for.
pub(super) fn charts(figures: &[&Figure]) -> Vec<Chart> {
    [
        ("aims", aims(figures)),
        ("pipeline", pipeline(figures)),
        ("table", table(figures)),
        ("capture", capture(figures)),
        ("forward", forward(figures)),
        ("latency", latency(figures)),
    ]
    .into_iter()
    .filter_map(|(name, svg)| Some(Chart { name, svg: svg? }))
    .collect()
}

fn find<'a>(figures: &[&'a Figure], name: &str) -> Option<&'a Figure> {
    figures.iter().find(|figure| figure.name == name).copied()
}

/// A figure's bar, with its spread and its aim.
fn bar(figures: &[&Figure], figure: &str, name: &str, tone: Tone) -> Option<Bar> {
    let found = find(figures, figure)?;
    let aim = AIMS.iter().find(|aim| aim.figure == figure);
    Some(Bar {
        name: name.into(),
        value: Some(found.median),
        said: short(found.median),
        tone,
        aim: aim.map(|aim| aim.bound),
        spread: (found.samples.len() > 1).then_some((found.least, found.most)),
    })
}

fn ends(bars: &[Bar]) -> impl Iterator<Item = f64> {
    bars.iter().flat_map(|bar| {
        let most = bar.spread.map(|(_, most)| most);
        [bar.value, bar.aim, most].into_iter().flatten()
    })
}

/// Nothing of bars that are only headings.
fn filled(bars: &[Bar]) -> Option<()> {
    bars.iter().any(|bar| bar.value.is_some()).then_some(())
}

fn aims(figures: &[&Figure]) -> Option<String> {
    let rows: Vec<_> = AIMS
        .iter()
        .filter_map(|aim| {
            let figure = find(figures, aim.figure)?;
            let of = |value: f64| {
                let ratio = if aim.is_most { aim.bound / value } else { value / aim.bound };
                // Nothing of what must be nothing.
                if ratio.is_nan() { 1.0 } else { ratio }
            };
            let ratio = of(figure.median);
            let said = if ratio.is_finite() { format!("{ratio:.2}") } else { "none at all".into() };
            Some(Bar {
                name: aim.figure.into(),
                value: Some(ratio),
                said,
                tone: if aim.is_met(figure.median) { Tone::Good } else { Tone::Bad },
                aim: None,
                spread: None,
            })
        })
        .collect();
    filled(&rows)?;
    Some(bars(
        "Each figure over its aim",
        "1 is reached, to the right is better; the scale doubles",
        Scale::Doubling(0.125, 8.0, 1.0),
        &rows,
    ))
}

fn pipeline(figures: &[&Figure]) -> Option<String> {
    let mut rows = Vec::new();
    for workload in WORKLOADS {
        let name = workload.name;
        let Some(whole) = bar(figures, &format!("pipeline/{name}/ns"), name, Tone::Own) else {
            continue;
        };
        rows.push(whole);
        rows.extend(STAGES.into_iter().filter_map(|stage| {
            bar(figures, &format!("pipeline/{name}/{stage}-ns"), stage, Tone::Other)
        }));
    }
    filled(&rows)?;
    Some(bars(
        "The pipeline alone: ns a packet",
        "Blue: the pipeline; grey: its stages, each alone. Thick mark: aim; thin line: least to most",
        linear(ends(&rows)),
        &rows,
    ))
}

fn table(figures: &[&Figure]) -> Option<String> {
    let mut rows = Vec::new();
    for size in ["resident", "cold"] {
        let mut threads: Vec<_> = figures
            .iter()
            .filter_map(|figure| {
                let rest = figure.name.strip_prefix(&format!("table/{size}/threads-"))?;
                rest.strip_suffix("/mops")?.parse::<usize>().ok()
            })
            .collect();
        threads.sort_unstable();
        for threads in std::iter::once(1).chain(threads) {
            let place = match threads {
                1 => format!("table/{size}"),
                _ => format!("table/{size}/threads-{threads}"),
            };
            let Some(own) = bar(figures, &format!("{place}/mops"), "table", Tone::Own) else {
                continue;
            };
            rows.push(Bar::heading(&format!("{size}, threads: {threads}")));
            rows.push(own);
            rows.extend(
                ["papaya", "dashmap", "scc"].into_iter().filter_map(|map| {
                    bar(figures, &format!("{place}/{map}-mops"), map, Tone::Other)
                }),
            );
        }
    }
    filled(&rows)?;
    Some(bars(
        "The dedup table and concurrent maps: million operations a second",
        "To the right is better. Thick mark: aim; thin line: least to most",
        linear(ends(&rows)),
        &rows,
    ))
}

fn capture(figures: &[&Figure]) -> Option<String> {
    let mut rows = Vec::new();
    for size in ["64", "512", "1500"] {
        let place = format!("capture/{size}");
        let name = |what: &str| format!("{size} B, {what}");
        rows.extend(bar(
            figures,
            &format!("{place}/cpu-ns"),
            &name("ring and pipeline"),
            Tone::Own,
        ));
        rows.extend(bar(figures, &format!("{place}/ring-cpu-ns"), &name("bare ring"), Tone::Other));
    }
    filled(&rows)?;
    Some(bars(
        "Captured into nothing: CPU ns a frame",
        "To the left is better. Thin line: least to most",
        linear(ends(&rows)),
        &rows,
    ))
}

fn forward(figures: &[&Figure]) -> Option<String> {
    let mut rows = Vec::new();
    for size in ["64", "mix", "1518"] {
        let place = format!("forward/{size}");
        let unit = if size == "mix" { "" } else { " B" };
        let name = |what: &str| format!("{size}{unit}, {what}");
        rows.extend(bar(figures, &format!("{place}/cpu-ns"), &name("podtap"), Tone::Own));
        rows.extend(bar(
            figures,
            &format!("{place}/libpcap-ns"),
            &name("libpcap tap"),
            Tone::Other,
        ));
    }
    filled(&rows)?;
    let bare = "bare sendmmsg, a 1472 B datagram";
    rows.extend(bar(figures, "forward/bare/sendmmsg-ns", bare, Tone::Other));
    let most = 10f64.powf(ends(&rows).fold(100.0, f64::max).log10().ceil());
    Some(bars(
        "Captured to sent: CPU ns a frame",
        "To the left is better; each line is ten times the last. Thick mark: aim",
        Scale::Tens(10.0, most),
        &rows,
    ))
}

fn latency(figures: &[&Figure]) -> Option<String> {
    let mut rows = Vec::new();
    for (rate, suffix) in [("100,000", ""), ("1,000", "-1kpps")] {
        rows.push(Bar::heading(&format!("{rate} frames a second")));
        for preset in ["low", "balanced", "throughput"] {
            for (quantile, tone) in [("p50", Tone::Own), ("p99", Tone::Other)] {
                let figure = format!("latency/{preset}{suffix}/{quantile}-ms");
                rows.extend(bar(figures, &figure, &format!("{preset}, {quantile}"), tone));
            }
        }
    }
    filled(&rows)?;
    Some(bars(
        "From the kernel's stamp to the datagram at the sink: ms",
        "By --latency preset. Thick mark: aim; thin line: least to most",
        linear(ends(&rows)),
        &rows,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, samples: &[f64]) -> Figure {
        Figure::new(name, "ns", samples.to_vec()).unwrap()
    }

    #[test]
    fn there_are_charts_of_what_was_measured_and_of_nothing_else() {
        let all = [
            figure("pipeline/new-64/ns", &[80.0, 85.0, 95.0]),
            figure("pipeline/new-64/parse-ns", &[20.0]),
            figure("pipeline/allocations", &[0.0]),
        ];
        let charts = charts(&all.iter().collect::<Vec<_>>());
        let names: Vec<_> = charts.iter().map(|chart| chart.name).collect();
        assert_eq!(names, ["aims", "pipeline"]);
        let [aims, pipeline] = [&charts[0].svg, &charts[1].svg];
        assert!(aims.contains("pipeline/new-64/ns") && aims.contains("1.06"), "{aims}");
        assert!(pipeline.contains("parse") && pipeline.contains("85.0"), "{pipeline}");
        for chart in [aims, pipeline] {
            assert!(!chart.contains("NaN") && !chart.contains("inf"), "{chart}");
        }
    }

    #[test]
    fn an_aim_of_nothing_is_reached_by_nothing_and_missed_by_all_else() {
        let svg = |samples: &[f64]| aims(&[&figure("pipeline/allocations", samples)]).unwrap();
        assert!(svg(&[0.0]).contains("class=\"good\""));
        assert!(svg(&[3.0]).contains("class=\"bad\""));
        // Of what must be little, none is better than any ratio says.
        let none = aims(&[&figure("capture/ring-drops", &[0.0])]).unwrap();
        assert!(none.contains("none at all") && !none.contains("inf"), "{none}");
    }

    #[test]
    fn threads_come_in_their_order() {
        let all = [
            figure("table/cold/threads-16/mops", &[9.0]),
            figure("table/cold/threads-2/mops", &[5.0]),
            figure("table/cold/mops", &[3.0]),
            figure("table/cold/scc-mops", &[1.0]),
        ];
        let svg = table(&all.iter().collect::<Vec<_>>()).unwrap();
        let at = |text: &str| svg.find(text).unwrap_or_else(|| panic!("{text}: {svg}"));
        assert!(at("threads: 1<") < at("scc") && at("scc") < at("threads: 2<"));
        assert!(at("threads: 2<") < at("threads: 16<"));
    }
}
