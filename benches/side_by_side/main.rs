//! sidetone beside its peers and the raw limit, in one run on one machine: `make bench`.
//!
//! Absolute numbers of a small machine say little; every claim is a ratio of medians of runs in alternation.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark ends where something is wrong, as a test does"
)]

#[path = "../../tests/it/cluster.rs"]
mod cluster;

mod answers;
mod calls;
mod calm;
mod copy;
mod fresh;
mod growth;
mod load;
mod nodes;
#[path = "../../tests/it/node.rs"]
mod node;
mod peers;
mod plot;
#[path = "../../tests/it/proxy.rs"]
#[allow(dead_code, reason = "a proxy for tests can do more than delay")]
mod proxy;
mod report;
mod rest;
#[path = "../instructions/rows.rs"]
mod rows;
mod watchers;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Db;
use load::{At, Framing, Question, Target};
use node::Node;
use report::{Section, Series};
use tokio::runtime::Runtime;
use world::World;

/// Settings of the measured node: what limits callers is off, so that the server is measured and not its limits.
const SETTINGS: &str = r#"
    http.tcp_rate = "off"
    log.filter = "warn"
    [[access]]
    user = "0"
    allow = ["config", "credentials"]
    rate = "off"
"#;

/// How much is measured.
struct Bench {
    runtime: Runtime,
    quick: bool,
    alternations: usize,
    lasts: Duration,
}

/// A part of the benchmark.
struct Part {
    /// What `ONLY` takes.
    name: &'static str,
    title: &'static str,
    measure: fn(&Bench) -> Section,
    /// What was found out about these figures: it outlives their being measured anew.
    notes: &'static str,
}

/// In the order of the report.
const PARTS: &[Part] = &[
    Part {
        name: "answers",
        title: "Answers",
        measure: answers::measure,
        notes: include_str!("notes/answers.md"),
    },
    Part {
        name: "calls",
        title: "Calls with context",
        measure: calls::measure,
        notes: include_str!("notes/calls.md"),
    },
    Part {
        name: "calm",
        title: "Calm",
        measure: calm::measure,
        notes: include_str!("notes/calm.md"),
    },
    Part {
        name: "watchers",
        title: "Calm with watchers",
        measure: watchers::measure,
        notes: include_str!("notes/watchers.md"),
    },
    Part {
        name: "fresh",
        title: "Commit to answer",
        measure: fresh::measure,
        notes: include_str!("notes/fresh.md"),
    },
    Part {
        name: "copy",
        title: "First copy, start and memory",
        measure: copy::measure,
        notes: include_str!("notes/copy.md"),
    },
    Part {
        name: "growth",
        title: "Growth",
        measure: growth::measure,
        notes: include_str!("notes/growth.md"),
    },
    Part {
        name: "nodes",
        title: "Many nodes",
        measure: nodes::measure,
        notes: include_str!("notes/nodes.md"),
    },
    Part {
        name: "rest",
        title: "At rest",
        measure: rest::measure,
        notes: include_str!("notes/rest.md"),
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, echo, socket, request, answer] = &args[..]
        && echo == "--echo"
    {
        let number = |text: &str| text.parse().expect("a number of bytes");
        peers::be_echo(Path::new(socket), number(request), number(answer));
    }
    load::allow_descriptors();
    let quick = std::env::var("QUICK").is_ok_and(|value| !value.is_empty());
    let only = std::env::var("ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    for name in &only {
        if !PARTS.iter().any(|part| part.name == *name) {
            let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
            eprintln!("ONLY={name}: no such part; there are {}", names.join(","));
            return ExitCode::from(2);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let bench = Bench {
        runtime: runtime.expect("a runtime"),
        quick,
        alternations: 5,
        lasts: Duration::from_millis(if quick { 250 } else { 1500 }),
    };
    let _entered = bench.runtime.enter();
    // What was measured in a hurry does not take the place of what was measured at length.
    let dir = if quick {
        env!("CARGO_TARGET_TMPDIR")
    } else {
        "docs"
    };
    let (file, plots) = (
        Path::new(dir).join("benchmarks.md"),
        Path::new(dir).join("benchmarks"),
    );
    let place = report::Place {
        file: &file,
        plots: &plots,
    };
    let titles: Vec<&str> = PARTS.iter().map(|part| part.title).collect();
    let mut failed = Vec::new();
    let all = Instant::now();
    for part in PARTS {
        if !only.is_empty() && !only.contains(&part.name) {
            continue;
        }
        eprintln!("== {}", part.name);
        let began = Instant::now();
        let work = || {
            let section = (part.measure)(&bench);
            let took = began.elapsed();
            report::write(place, &titles, (part.title, part.notes), &section, took);
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let took = report::minutes(began.elapsed());
        eprintln!(
            "== {} {} after {took}",
            part.name,
            if ended.is_ok() { "done" } else { "FAILED" }
        );
        if ended.is_err() {
            failed.push(part.name);
        }
    }
    println!("{} in {}", file.display(), report::minutes(all.elapsed()));
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!(
        "failed, and left in the report as they were before: {}",
        failed.join(", ")
    );
    ExitCode::FAILURE
}

impl Bench {
    /// The same load against each server in turn, again and again.
    fn alternate(
        &self,
        section: &mut Section,
        load: &str,
        callers: usize,
        servers: &[(&str, Target)],
    ) {
        let mut all: Vec<(String, Series)> = servers
            .iter()
            .map(|(name, _)| ((*name).to_owned(), Series::default()))
            .collect();
        for _ in 0..self.alternations {
            for ((_, series), (_, target)) in all.iter_mut().zip(servers) {
                let before = target.server.map(cpu_seconds);
                let measured = load::closed(target, callers, self.lasts);
                let spent = target
                    .server
                    .zip(before)
                    .map(|(pid, before)| cpu_seconds(pid) - before);
                series.add(&measured);
                series.spent(spent.map_or(f64::NAN, |spent| spent / measured.latency.len() as f64));
            }
        }
        section.keep(load, all);
    }

    /// Where a hundred thousand numbers are usual: in a hurry fewer.
    fn usual(&self) -> World {
        if self.quick {
            World::QUICK
        } else {
            World::USUAL
        }
    }

    /// Where a million numbers are asked for: in a hurry a hundred thousand.
    fn large(&self) -> World {
        if self.quick {
            World::USUAL
        } else {
            World::LARGE
        }
    }

    /// Waits as long as a million rows may need.
    fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
        let began = Instant::now();
        self.runtime.block_on(async {
            while !holds().await {
                assert!(began.elapsed() < Duration::from_secs(600), "{what}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        began.elapsed()
    }

    /// Waits until a node holds a complete copy.
    fn synced(&self, node: &Node) -> Duration {
        self.until("the node never holds a complete copy", async || {
            let ready = node.try_get("/readyz").await;
            ready.is_ok_and(|reply| reply.status == 200 && reply.json()["synced"] == true)
        })
    }

    /// A node with a complete copy.
    fn node(&self, db: &Db<'_>, more: &str) -> Node {
        let mut node = Node::prepare(&db.url(), &format!("{more}{SETTINGS}"));
        node.start();
        self.synced(&node);
        node
    }
}

/// A load on a node's Unix socket.
fn ours(node: &Node, questions: Vec<Question>) -> Target {
    Target {
        at: At::Unix(node.unix()),
        framing: Framing::Http,
        questions: Arc::new(questions),
        hello: Vec::new(),
        fresh: false,
        server: Some(node.pid()),
    }
}

/// Resident bytes of a process.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

/// Ticks of `/proc/<pid>/stat` in a second, on every Linux.
const USER_HZ: f64 = 100.0;

/// Time that a process and its children have had on a core.
fn cpu_seconds(pid: u32) -> f64 {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return f64::NAN;
    };
    let mut ticks = 0.0;
    for process in processes.flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let fields: Vec<&str> = after.split(' ').collect();
        let id = stat.split(' ').next().and_then(|id| id.parse::<u32>().ok());
        let parent = fields.get(1).and_then(|id| id.parse::<u32>().ok());
        if id == Some(pid) || parent == Some(pid) {
            let both = fields.iter().skip(11).take(2);
            ticks += both
                .filter_map(|ticks| ticks.parse::<f64>().ok())
                .sum::<f64>();
        }
    }
    ticks / USER_HZ
}
