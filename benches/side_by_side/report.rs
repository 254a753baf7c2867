//! What was measured: alternations of the same load against several servers, told as medians and ratios of medians.
//!
//! `docs/benchmarks.md` is a head and a section for each part. A section that was not measured this time stays as it is, with
//! the date and the commit that it was measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hdrhistogram::Histogram;
use sidetone::cli::demo::cluster::Programs;

use crate::load::{Measured, histogram};
use crate::plot::{self, Axis, Plot};

/// Measurements of one server under one load, a value per alternation.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Of the server, seconds for each answer.
    spent: Vec<f64>,
    /// All alternations together.
    latency: Histogram<u64>,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            per_second: Vec::new(),
            p50: Vec::new(),
            p99: Vec::new(),
            spent: Vec::new(),
            latency: histogram(),
        }
    }
}

/// The middle value; of an even number the lower one of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

impl Series {
    pub(crate) fn add(&mut self, measured: &Measured) {
        self.per_second.push(measured.per_second);
        self.p50.push(measured.micros(0.5));
        self.p99.push(measured.micros(0.99));
        self.latency
            .add(&measured.latency)
            .expect("the same bounds");
    }

    pub(crate) fn spent(&mut self, seconds: f64) {
        self.spent.push(seconds);
    }

    /// Microseconds that the server had on a core for an answer.
    pub(crate) fn micros_spent(&self) -> f64 {
        median(&self.spent) * 1e6
    }

    pub(crate) fn per_second(&self) -> f64 {
        median(&self.per_second)
    }

    pub(crate) fn p50(&self) -> f64 {
        median(&self.p50)
    }

    pub(crate) fn p99(&self) -> f64 {
        median(&self.p99)
    }

    /// Answers per second, 50th and 99th percentile, the server's time for an answer, the times in microseconds.
    fn medians(&self) -> [String; 4] {
        let values = [
            self.per_second(),
            self.p50(),
            self.p99(),
            self.micros_spent(),
        ];
        values.map(plot::readable)
    }
}

/// A claim with its bound.
#[derive(Debug, Clone)]
struct Verdict {
    what: String,
    measured: f64,
    at_least: bool,
    bound: f64,
}

impl Verdict {
    fn holds(&self) -> bool {
        if self.at_least {
            self.measured >= self.bound
        } else {
            self.measured <= self.bound
        }
    }

    fn row(&self) -> String {
        let sign = if self.at_least { "≥" } else { "≤" };
        let verdict = if self.holds() { "yes" } else { "**no**" };
        format!(
            "| {} | {} | {sign} {} | {verdict} |\n",
            self.what,
            plot::readable(self.measured),
            self.bound
        )
    }
}

/// What a part of the benchmark found.
#[derive(Debug, Default)]
pub(crate) struct Section {
    text: String,
    /// By load and server, in the order of measuring.
    loads: Vec<(String, Vec<(String, Series)>)>,
    verdicts: Vec<Verdict>,
    plots: Vec<Plot>,
}

impl Section {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            ..Self::default()
        }
    }

    /// A sentence more, told at once.
    pub(crate) fn tell(&mut self, sentence: &str) {
        eprintln!("{sentence}");
        self.text += "\n\n";
        self.text += sentence;
    }

    /// Keeps the measurements of a load, and tells them at once.
    pub(crate) fn keep(&mut self, load: &str, servers: Vec<(String, Series)>) {
        for (name, series) in &servers {
            let [rate, p50, p99, spent] = series.medians();
            eprintln!("{load}: {name}: {rate}/s, p50 {p50} µs, p99 {p99} µs, server {spent} µs");
        }
        self.loads.push((load.to_owned(), servers));
    }

    pub(crate) fn series(&self, load: &str, server: &str) -> Series {
        let load = self.loads.iter().find(|(name, _)| name == load);
        let found = load.and_then(|(_, all)| all.iter().find(|(name, _)| name == server));
        found.map(|(_, series)| series.clone()).unwrap_or_default()
    }

    pub(crate) fn at_least(&mut self, what: impl Into<String>, measured: f64, bound: f64) {
        self.judge(what.into(), measured, true, bound);
    }

    pub(crate) fn at_most(&mut self, what: impl Into<String>, measured: f64, bound: f64) {
        self.judge(what.into(), measured, false, bound);
    }

    fn judge(&mut self, what: String, measured: f64, at_least: bool, bound: f64) {
        let verdict = Verdict {
            what,
            measured,
            at_least,
            bound,
        };
        eprint!("{}", verdict.row());
        self.verdicts.push(verdict);
    }

    pub(crate) fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// Bars for one measure of every load kept so far.
    pub(crate) fn bars(
        &mut self,
        name: &str,
        title: &str,
        unit: &str,
        of: impl Fn(&Series) -> f64,
    ) {
        let groups: Vec<_> = self
            .loads
            .iter()
            .map(|(load, servers)| {
                let bars = servers
                    .iter()
                    .map(|(name, series)| (name.clone(), of(series)));
                (load.clone(), bars.collect())
            })
            .collect();
        self.plots.push(plot::bars(name, title, unit, &groups));
    }

    /// The latencies of a load's servers by percentile, of all alternations together.
    pub(crate) fn percentiles(&mut self, name: &str, load: &str) {
        let Some((_, servers)) = self.loads.iter().find(|(known, _)| known == load) else {
            return;
        };
        let shown = [
            (0.0, "0"),
            (0.5, "50"),
            (0.9, "90"),
            (0.99, "99"),
            (0.999, "99.9"),
            (0.9999, "99.99"),
        ];
        // The tail is what matters: each step leaves a tenth of the answers beyond it.
        let beyond = |quantile: f64| 1.0 / (1.0 - quantile);
        let fine = (0..=80).map(|step| 1.0 - 10_f64.powf(f64::from(step) / -20.0));
        let fine: Vec<f64> = fine.collect();
        let micros = |series: &Series, quantile: f64| {
            (series.latency.value_at_quantile(quantile) as f64 / 1000.0).max(1.0)
        };
        let lines: Vec<plot::Line> = servers
            .iter()
            .map(|(name, series)| {
                // Beyond the slowest answer nothing was measured.
                let answers = series.latency.len() as f64;
                let known = fine.iter().filter(|q| beyond(**q) <= answers);
                let points = known.map(|q| (beyond(*q), micros(series, *q)));
                (name.clone(), points.collect())
            })
            .collect();
        let all = || lines.iter().flat_map(|(_, points)| points.iter());
        let least = all().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
        let most = all().map(|(_, y)| *y).fold(0.0, f64::max);
        let x = Axis {
            name: "percentile",
            from: 1.0,
            to: 10_000.0,
            logarithmic: true,
            ticks: shown.map(|(q, label)| (beyond(q), label.to_owned())).into(),
        };
        let y = Axis::logarithmic("µs", least, most);
        self.plots.push(plot::lines(
            name,
            &format!("Latency, {load}"),
            &x,
            &y,
            &lines,
        ));
    }

    /// The section as it stands in the report. `plots` is the directory of the plots as links name it.
    fn markdown(&self, title: &str, notes: &str, measured: &str, plots: &str) -> String {
        let mut text = format!("## {title}\n\n{measured}\n\n{}\n", self.text);
        if !self.verdicts.is_empty() {
            text += "\n| target | measured | bound | met |\n|---|--:|--:|---|\n";
            for verdict in &self.verdicts {
                text += &verdict.row();
            }
        }
        for (load, servers) in &self.loads {
            text += &format!(
                "\n{load}\n\n| server | answers/s | p50 µs | p99 µs | server's processor time µs |\n|---|--:|--:|--:|--:|\n"
            );
            for (name, series) in servers {
                let [rate, p50, p99, spent] = series.medians();
                text += &format!("| {name} | {rate} | {p50} | {p99} | {spent} |\n");
            }
        }
        for plot in &self.plots {
            text += &format!("\n![{}]({plots}/{}.svg)\n", plot.title, plot.name);
        }
        if !notes.trim().is_empty() {
            text += &format!("\n{}\n", notes.trim());
        }
        text
    }
}

/// Where the report stands, and its plots beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a Path,
    pub(crate) plots: &'a Path,
}

/// Writes a section into the report: anew, in the place of the one with its title, or where `titles` has it.
pub(crate) fn write(
    place: Place<'_>,
    titles: &[&str],
    (title, notes): (&str, &str),
    section: &Section,
    took: Duration,
) {
    let Place { file, plots } = place;
    let parent = file.parent().unwrap_or(Path::new("."));
    let linked = plots.strip_prefix(parent).unwrap_or(plots);
    fs::create_dir_all(plots).unwrap_or_else(|err| panic!("{}: {err}", plots.display()));
    for plot in &section.plots {
        let path = plots.join(format!("{}.svg", plot.name));
        fs::write(&path, &plot.svg).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    }
    let measured = format!("{}; took {}.", provenance(), minutes(took));
    let section = section.markdown(title, notes, &measured, &linked.display().to_string());
    let known = fs::read_to_string(file).unwrap_or_default();
    fs::write(file, merged(&known, titles, title, &section))
        .unwrap_or_else(|err| panic!("{}: {err}", file.display()));
}

/// The report with a section put where it belongs. Sections whose title is no part's any more go.
fn merged(known: &str, titles: &[&str], title: &str, section: &str) -> String {
    let known = format!("\n{known}");
    let mut sections: Vec<(&str, &str)> = Vec::new();
    for one in known.split("\n## ").skip(1) {
        let (heading, body) = one.split_once('\n').unwrap_or((one, ""));
        sections.push((heading, body));
    }
    let mut report = head();
    for one in titles {
        if *one == title {
            report += "\n";
            report += section;
        } else if let Some((_, body)) = sections.iter().find(|(heading, _)| heading == one) {
            report += &format!("\n## {one}\n{}\n", body.trim_end());
        }
    }
    report
}

pub(crate) fn minutes(took: Duration) -> String {
    format!("{}:{:02} min", took.as_secs() / 60, took.as_secs() % 60)
}

fn told(command: &mut Command) -> String {
    let output = command.output().ok();
    let text = output
        .map(|out| [out.stdout, out.stderr].concat())
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

/// When, on which commit and where a section is measured.
fn provenance() -> String {
    let commit = told(Command::new("git").args(["describe", "--always", "--exclude", "*"]));
    let changed = Command::new("git")
        .args([
            "status",
            "--porcelain",
            "--",
            "src",
            "benches",
            "Cargo.lock",
            "migrations",
        ])
        .output()
        .is_ok_and(|out| !out.stdout.is_empty());
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Measured on {} at commit {commit}{}, {cores} cores, {}",
        jiff::Timestamp::now().strftime("%F"),
        if changed { " with changes" } else { "" },
        model.unwrap_or("unknown"),
    )
}

/// Name and version of the system, without what its builder adds.
fn kernel() -> String {
    let told = told(Command::new("uname").arg("-sr"));
    told.split('-').next().unwrap_or_default().to_owned()
}

/// The server's program, which the clusters are started with.
fn postgres() -> Command {
    let named = std::env::var_os("SIDETONE_PG_BIN").map(std::path::PathBuf::from);
    let programs = Programs::find(named.as_deref()).unwrap_or_else(|err| panic!("{err}"));
    let mut command = programs.command("postgres", Path::new("/"));
    command.arg("--version");
    command
}

/// How to read the report and what it was measured beside.
fn head() -> String {
    format!(
        "# Benchmarks\n\n{}\n- {}\n- {}\n- {}\n- {}\n- {}\n",
        include_str!("notes/head.md"),
        kernel(),
        told(Command::new("rustc").arg("--version")),
        told(Command::new("nginx").arg("-v")),
        told(Command::new("redis-server").arg("--version")),
        told(&mut postgres()),
    )
}
