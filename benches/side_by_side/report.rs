//! What was measured: alternations of the same load against several servers, told as medians and ratios of medians.

use std::process::Command;

use crate::load::Measured;

/// Measurements of one server under one load, a value per alternation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Series {
    per_second: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Of the server, seconds for each answer.
    spent: Vec<f64>,
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
}

/// A claim with its bound.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) measured: f64,
    /// `>= 1.2` and the like.
    pub(crate) at_least: bool,
    pub(crate) bound: f64,
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
            "| {} | {:.2} | {sign} {} | {verdict} |",
            self.what, self.measured, self.bound
        )
    }
}

/// A part of the report.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) text: String,
    /// By load and server, in the order of measuring.
    pub(crate) loads: Vec<(String, Vec<(String, Series)>)>,
    pub(crate) verdicts: Vec<Verdict>,
}

impl Section {
    pub(crate) fn new(title: &str, text: &str) -> Self {
        Self {
            title: title.to_owned(),
            text: text.to_owned(),
            ..Self::default()
        }
    }

    /// Keeps the measurements of a load, and tells them at once.
    pub(crate) fn keep(&mut self, load: &str, servers: Vec<(String, Series)>) {
        for (name, series) in &servers {
            let (rate, p50, p99) = (series.per_second(), series.p50(), series.p99());
            let spent = series.micros_spent();
            eprintln!(
                "{load}: {name}: {rate:.0}/s, p50 {p50:.1} µs, p99 {p99:.1} µs, server {spent:.1} µs"
            );
        }
        self.loads.push((load.to_owned(), servers));
    }

    pub(crate) fn series(&self, load: &str, server: &str) -> Series {
        let load = self.loads.iter().find(|(name, _)| name == load);
        let found = load.and_then(|(_, all)| all.iter().find(|(name, _)| name == server));
        found.map(|(_, series)| series.clone()).unwrap_or_default()
    }

    pub(crate) fn at_least(&mut self, what: impl Into<String>, measured: f64, bound: f64) {
        self.verdicts.push(Verdict {
            what: what.into(),
            measured,
            at_least: true,
            bound,
        });
    }

    pub(crate) fn at_most(&mut self, what: impl Into<String>, measured: f64, bound: f64) {
        self.verdicts.push(Verdict {
            what: what.into(),
            measured,
            at_least: false,
            bound,
        });
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n", self.title, self.text);
        for (load, servers) in &self.loads {
            text += &format!(
                "\n{load}\n\n| server | answers/s | p50 µs | p99 µs | server's processor time µs |\n|---|--:|--:|--:|--:|\n"
            );
            for (name, series) in servers {
                text += &format!(
                    "| {name} | {:.0} | {:.1} | {:.1} | {:.1} |\n",
                    series.per_second(),
                    series.p50(),
                    series.p99(),
                    series.micros_spent()
                );
            }
        }
        if !self.verdicts.is_empty() {
            text += "\n| target | measured | bound | met |\n|---|--:|--:|---|\n";
            for verdict in &self.verdicts {
                text += &verdict.row();
                text += "\n";
            }
        }
        text
    }
}

/// When, where and how it was measured.
pub(crate) fn head(quick: bool) -> String {
    let told = |command: &mut Command| {
        let output = command.output().ok();
        let text = output
            .map(|out| [out.stdout, out.stderr].concat())
            .unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .next()
            .unwrap_or("unknown")
            .trim()
            .to_owned()
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "# Benchmarks\n\nMeasured by `make bench{}`: medians of runs in alternation, all servers on one machine, \
         load client included.\nAbsolute numbers are this machine's; the ratios are the claims.\n\n\
         - machine: {cores} cores, {}\n- {}\n- {}\n- {}\n- {}\n\n",
        if quick { " QUICK=1" } else { "" },
        model.unwrap_or("unknown"),
        told(Command::new("uname").arg("-sr")),
        told(Command::new("rustc").arg("--version")),
        told(Command::new("nginx").arg("-v")),
        told(Command::new("redis-server").arg("--version")),
    )
}
