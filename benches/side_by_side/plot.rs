//! Plots as SVG, drawn here: a crate that draws knows neither titles for those who cannot see nor the reader's dark mode,
//! and two kinds of plot are all that is needed.

use std::fmt::Write as _;

/// Width of every plot, in the units of its viewBox.
const WIDTH: f64 = 760.0;
/// Where bars begin: names stand left of it.
const NAMES: f64 = 210.0;
/// Where bars end at most: values stand right of it.
const BARS_END: f64 = 660.0;
const ROW: f64 = 22.0;
/// Colours that are told apart by everybody and against either background, and dashes for where colours are not.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a67c00", "#56a4d9", "#8a63d2", "#7f7f7f",
];
const DASHES: [&str; 4] = ["none", "7 4", "2 3", "9 3 2 3"];

/// A finished plot.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// Of the file, without directory and ending.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

/// Groups of bars, each bar with its name and value.
pub(crate) fn bars(
    name: &str,
    title: &str,
    unit: &str,
    groups: &[(String, Vec<(String, f64)>)],
) -> Plot {
    let all = || groups.iter().flat_map(|(_, bars)| bars);
    let most = all().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut body = String::new();
    let mut told = Vec::new();
    let mut y = 44.0;
    for (group, bars) in groups {
        body += &text(16.0, y + 14.0, "start", "group", group);
        y += ROW + 2.0;
        for (name, value) in bars {
            let length = (value / most * (BARS_END - NAMES)).max(1.0);
            let colour = names.iter().position(|known| known == name).unwrap_or(0) % COLOURS.len();
            body += &text(NAMES - 8.0, y + 14.0, "end", "", name);
            if value.is_finite() {
                let _ = write!(
                    body,
                    r#"<rect x="{NAMES}" y="{y}" width="{length:.1}" height="16" rx="2" fill="{}"/>"#,
                    COLOURS[colour]
                );
                body += &text(
                    NAMES + length + 6.0,
                    y + 13.0,
                    "start",
                    "",
                    &readable(*value),
                );
            }
            told.push(format!("{group}, {name}: {} {unit}", readable(*value)));
            y += ROW;
        }
        y += 10.0;
    }
    finish(name, &format!("{title}, {unit}"), &told, y + 6.0, &body)
}

/// An axis: linear, or logarithmic to the base ten.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) name: &'static str,
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) logarithmic: bool,
    /// Where a line of the grid stands, and what is written there.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a round number that is not less than `most`.
    pub(crate) fn linear(name: &'static str, most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 {
            most
        } else {
            1.0
        };
        let power = 10_f64.powf((most / 4.0).log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|times| times * power);
        let step = step.into_iter().find(|step| step * 4.0 >= most);
        let step = step.unwrap_or(10.0 * power);
        Self {
            name,
            from: 0.0,
            to: step * 4.0,
            logarithmic: false,
            ticks: (0..=4)
                .map(|tick| (step * f64::from(tick), readable(step * f64::from(tick))))
                .collect(),
        }
    }

    /// Whole powers of ten around the values.
    pub(crate) fn logarithmic(name: &'static str, least: f64, most: f64) -> Self {
        let from = least.max(1e-3).log10().floor();
        let to = most.max(least).max(1e-3).log10().ceil().max(from + 1.0);
        let mut ticks = Vec::new();
        let mut power = from;
        while power <= to {
            ticks.push((10_f64.powf(power), readable(10_f64.powf(power))));
            power += 1.0;
        }
        Self {
            name,
            from: 10_f64.powf(from),
            to: 10_f64.powf(to),
            logarithmic: true,
            ticks,
        }
    }

    /// Of the way from one end to the other.
    fn share(&self, value: f64) -> f64 {
        let on = |value: f64| {
            if self.logarithmic {
                value.log10()
            } else {
                value
            }
        };
        ((on(value) - on(self.from)) / (on(self.to) - on(self.from))).clamp(0.0, 1.0)
    }
}

/// A named line through points.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// Lines over two axes, with a legend below.
pub(crate) fn lines(name: &str, title: &str, x: &Axis, y: &Axis, lines: &[Line]) -> Plot {
    let (left, right, top, bottom) = (80.0, WIDTH - 28.0, 70.0, 350.0);
    let across = |value: f64| left + x.share(value) * (right - left);
    let up = |value: f64| bottom - y.share(value) * (bottom - top);
    let mut body = text(16.0, 52.0, "start", "", y.name);
    for (value, label) in &y.ticks {
        let y = up(*value);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{left} {y:.1}H{right}"/>{}"#,
            text(left - 8.0, y + 4.0, "end", "", label)
        );
    }
    for (value, label) in &x.ticks {
        let x = across(*value);
        let _ = write!(
            body,
            r#"<path class="grid" d="M{x:.1} {top}V{bottom}"/>{}"#,
            text(x, bottom + 18.0, "middle", "", label)
        );
    }
    body += &text(
        f64::midpoint(left, right),
        bottom + 40.0,
        "middle",
        "",
        x.name,
    );
    let mut told = Vec::new();
    let legend = bottom + 62.0;
    for (number, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let dashes = DASHES[number % DASHES.len()];
        let stroke = format!(
            r#"fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}""#
        );
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y)))
            .collect();
        let _ = write!(body, r#"<polyline {stroke} points="{}"/>"#, path.join(" "));
        let (column, row) = ((number % 2) as f64, (number / 2) as f64);
        let (at, line) = (left + column * 330.0, legend + row * ROW);
        let _ = write!(
            body,
            r#"<path {stroke} d="M{at} {line}h36"/>{}"#,
            text(at + 44.0, line + 4.0, "start", "", name)
        );
        if let Some((_, last)) = points.last() {
            told.push(format!("{name} ends at {}", readable(*last)));
        }
    }
    let height = legend + lines.len().div_ceil(2) as f64 * ROW;
    finish(name, title, &told, height, &body)
}

/// The whole file. Screen readers read title and description; the background is its own, since a page may be light where the
/// reader's system is dark.
fn finish(name: &str, title: &str, told: &[String], height: f64, body: &str) -> Plot {
    let heading = text(16.0, 26.0, "start", "title", title);
    let svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" width="{WIDTH}" height="{height:.0}" role="img" aria-labelledby="title description">
<title id="title">{}</title>
<desc id="description">{}</desc>
<style>
.ground{{fill:#fff}} text{{font:13px system-ui,sans-serif;fill:#1f2328}} .title{{font-weight:600;font-size:15px}} .group{{font-weight:600}} .grid{{stroke:#d1d9e0;fill:none}}
@media (prefers-color-scheme:dark){{.ground{{fill:#0d1117}} text{{fill:#e6edf3}} .grid{{stroke:#3d444d}}}}
</style>
<rect class="ground" width="100%" height="100%"/>
{heading}
{}
</svg>
"#,
        escaped(title),
        escaped(&told.join("; ")),
        body.replace("><", ">\n<"),
    );
    Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        svg,
    }
}

fn text(x: f64, y: f64, anchor: &str, class: &str, text: &str) -> String {
    let text = escaped(text);
    format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Three significant digits, thousands set apart.
pub(crate) fn readable(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value.abs() < 100.0 {
        let decimals = match value.abs() {
            small if small >= 10.0 => 1,
            small if small >= 1.0 => 2,
            _ => 3,
        };
        let text = format!("{value:.decimals$}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut spaced = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            spaced.push(' ');
        }
        spaced.push(digit);
    }
    spaced
}
