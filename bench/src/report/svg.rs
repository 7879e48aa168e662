//! Bars as SVG: plain shapes and text, in the reader's colours, light or dark.

use std::fmt::Write as _;

/// Left of the bars, for their names; right of them, for their values; of a row and around all.
const LEFT: f64 = 250.0;
const RIGHT: f64 = 150.0;
const BARS: f64 = 400.0;
const ROW: f64 = 20.0;
const HEAD: f64 = 44.0;
const FOOT: f64 = 34.0;

/// What a bar says by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Ours.
    Own,
    /// What it is compared with.
    Other,
    /// An aim that is met, and one that is not.
    Good,
    Bad,
}

impl Tone {
    fn class(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Other => "other",
            Self::Good => "good",
            Self::Bad => "bad",
        }
    }
}

/// One bar; or, without a value, a heading of those that follow.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: Option<f64>,
    /// Beside the bar.
    pub(super) said: String,
    pub(super) tone: Tone,
    /// A mark at this value: what is to be reached.
    pub(super) aim: Option<f64>,
    /// From least to most, drawn over the bar.
    pub(super) spread: Option<(f64, f64)>,
}

impl Bar {
    pub(super) fn heading(name: &str) -> Self {
        Self {
            name: name.into(),
            value: None,
            said: String::new(),
            tone: Tone::Own,
            aim: None,
            spread: None,
        }
    }
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From 0 to this.
    Linear(f64),
    /// Powers of two, from the first to the second; bars begin at the third.
    Doubling(f64, f64, f64),
    /// Powers of ten, from the first to the second; bars begin at the first.
    Tens(f64, f64),
}

impl Scale {
    fn x(self, value: f64) -> f64 {
        let part = match self {
            Self::Linear(most) => value.clamp(0.0, most) / most,
            Self::Doubling(least, most, _) | Self::Tens(least, most) => {
                (value.clamp(least, most) / least).log2() / (most / least).log2()
            }
        };
        LEFT + BARS * part
    }

    fn origin(self) -> f64 {
        match self {
            Self::Linear(_) => self.x(0.0),
            Self::Doubling(.., from) | Self::Tens(from, _) => self.x(from),
        }
    }

    fn marks(self) -> Vec<f64> {
        let powers = |least: f64, most: f64, base: f64| {
            std::iter::successors(Some(least), move |at| Some(at * base))
                .take_while(|at| *at <= most * 1.001)
                .collect()
        };
        match self {
            Self::Linear(most) => (0..=4).map(|n| most * f64::from(n) / 4.0).collect(),
            Self::Doubling(least, most, _) => powers(least, most, 2.0),
            Self::Tens(least, most) => powers(least, most, 10.0),
        }
    }
}

/// From 0 to a round number that is not below any of these.
pub(super) fn linear(values: impl Iterator<Item = f64>) -> Scale {
    let most = values.fold(0.0, f64::max).max(1e-9);
    let power = 10f64.powf(most.log10().floor());
    let round = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * power);
    Scale::Linear(round.into_iter().find(|round| *round >= most).unwrap_or(10.0 * power))
}

/// A chart of bars. `note` says what the bars and marks mean, below them.
pub(super) fn bars(title: &str, note: &str, scale: Scale, bars: &[Bar]) -> String {
    let width = LEFT + BARS + RIGHT;
    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    let y = |at: usize| HEAD + ROW * at as f64;
    let bottom = y(bars.len()) + 2.0;
    let height = bottom + FOOT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"ink\" x=\"10\" y=\"20\" font-size=\"14\">{}</text>\n",
        escape(title),
        escape(title)
    );
    for mark in scale.marks() {
        let (x, said) = (scale.x(mark), plain(mark));
        let _ = writeln!(
            text,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{said}</text>",
            HEAD - 4.0,
            HEAD - 8.0
        );
    }
    for (at, bar) in bars.iter().enumerate() {
        let _ = writeln!(text, "{}", one(bar, scale, y(at)));
    }
    let _ = writeln!(
        text,
        "<text class=\"faint\" x=\"10\" y=\"{:.1}\">{}</text>\n</svg>",
        height - 12.0,
        escape(note)
    );
    text
}

fn one(bar: &Bar, scale: Scale, y: f64) -> String {
    let base = y + 14.0;
    let Some(value) = bar.value else {
        let name = escape(&bar.name);
        return format!(
            "<text class=\"ink\" x=\"10\" y=\"{base:.1}\" font-weight=\"bold\">{name}</text>"
        );
    };
    let (from, to) = (scale.origin(), scale.x(value));
    let mut text = format!(
        "<text class=\"ink\" x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
         <rect class=\"{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\"/>",
        LEFT - 8.0,
        escape(&bar.name),
        bar.tone.class(),
        from.min(to),
        y + 4.0,
        (to - from).abs().max(1.0),
    );
    let mut end = from.max(to);
    if let Some((least, most)) = bar.spread {
        let (least, most) = (scale.x(least), scale.x(most));
        end = end.max(most);
        let _ = write!(
            text,
            "<line class=\"spread\" x1=\"{least:.1}\" x2=\"{most:.1}\" y1=\"{0:.1}\" y2=\"{0:.1}\"/>",
            y + 10.0
        );
    }
    if let Some(aim) = bar.aim {
        let x = scale.x(aim);
        end = end.max(x);
        let _ = write!(
            text,
            "<line class=\"aim\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            y + 1.0,
            y + 19.0
        );
    }
    let _ = write!(
        text,
        "<text class=\"ink\" x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
        end + 6.0,
        escape(&bar.said)
    );
    text
}

fn plain(mark: f64) -> String {
    let text = format!("{mark:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Blue and grey, green and red that differ in lightness, too.
const STYLE: &str = "\
.ground{fill:#fff}.ink{fill:#222}.faint{fill:#666}.grid{stroke:#ddd}\
.own{fill:#2f6fb5}.other{fill:#9aa3ad}.good{fill:#3a9456}.bad{fill:#a3281f}\
.aim{stroke:#222;stroke-width:2}.spread{stroke:#222;stroke-width:1.5}\
@media (prefers-color-scheme:dark){\
.ground{fill:#0d1117}.ink{fill:#e6e6e6}.faint{fill:#9aa3ad}.grid{stroke:#30363d}\
.own{fill:#5b9fe6}.other{fill:#6b747e}.good{fill:#57b374}.bad{fill:#e0604f}\
.aim{stroke:#f0f0f0}.spread{stroke:#f0f0f0}}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_put_values_where_they_belong() {
        let same = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        same(Scale::Linear(200.0).x(100.0), LEFT + BARS / 2.0);
        same(Scale::Linear(200.0).x(900.0), LEFT + BARS);
        same(Scale::Doubling(0.125, 8.0, 1.0).origin(), LEFT + BARS / 2.0);
        same(Scale::Tens(1.0, 10_000.0).x(100.0), LEFT + BARS / 2.0);
        same(Scale::Tens(1.0, 100.0).x(0.0), LEFT);
        assert_eq!(Scale::Tens(1.0, 100.0).marks().len(), 3);
        assert_eq!(Scale::Doubling(0.125, 8.0, 1.0).marks().len(), 7);
    }

    #[test]
    fn the_end_of_a_linear_scale_is_round_and_not_below() {
        for (most, end) in [(83.0, 100.0), (100.0, 100.0), (101.0, 200.0), (0.3, 0.4)] {
            let Scale::Linear(got) = linear([1e-3, most].into_iter()) else { unreachable!() };
            assert!((got - end).abs() < 1e-9 * end, "{most}: {got}");
        }
    }

    #[test]
    fn text_is_escaped() {
        let bar = Bar {
            value: Some(1.0),
            said: "a < b".into(),
            aim: Some(2.0),
            spread: Some((0.5, 1.5)),
            ..Bar::heading("x & y")
        };
        let text = bars("t", "n", Scale::Linear(2.0), &[bar, Bar::heading("h")]);
        assert!(text.contains("a &lt; b") && text.contains("x &amp; y"), "{text}");
        assert!(!text.contains("NaN"));
        assert_eq!(text.matches("class=\"aim\"").count(), 1);
    }
}
