//! A real Prometheus watches a real node: what is scraped, which alerts fire, what the dashboard shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Options, Stop, free_port, scratch};
use crate::docs::dashboard_expressions;
use crate::node::{ACME, AWAY, Node, PATIENCE, until};

/// Durations of the rules are divided by this: a minute is a second.
const FASTER: u64 = 60;

/// Where prometheus and promtool are. Without them the tests say so, as `scripts/check-alerts` does.
static PROGRAMS: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ensure-prometheus");
    let output = Command::new(script).output().unwrap();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap().trim().into());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(
        std::env::var_os("SIDETONE_REQUIRE_PROMTOOL").is_none(),
        "{why}"
    );
    println!("SKIPPED: {why}");
    None
});

fn file(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// A Prometheus of the test's own. Dropped, the process is gone.
struct Prometheus {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            eprintln!("--- log of Prometheus\n{log}");
        }
    }
}

impl Prometheus {
    /// With these settings and the rules of the repository, sixty times as fast.
    async fn start(bin: &Path, settings: &str) -> Self {
        let (dir, port) = (scratch("prometheus"), free_port());
        fs::write(dir.join("prometheus.yml"), settings).unwrap();
        let rules = faster(&file("deploy/prometheus/alerts.yml"));
        fs::write(dir.join("alerts.yml"), rules).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let child = Command::new(bin.join("prometheus"))
            .current_dir(&dir)
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Self { dir, port, child };
        until("Prometheus is ready", async || {
            prometheus
                .get("/-/ready")
                .await
                .is_some_and(|body| body.contains("Ready"))
        })
        .await;
        prometheus
    }

    /// The body of a 200. HTTP/1.0, so that it ends with the connection.
    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reply = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut reply))
            .await
            .expect("Prometheus answers")
            .ok()?;
        let reply = String::from_utf8(reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.0 200 ").then(|| body.to_owned())
    }

    /// `data` of an answer of the API.
    async fn api(&self, path: &str) -> Value {
        let body = self.get(&format!("/api/v1/{path}")).await;
        let body = body.unwrap_or_else(|| panic!("{path} is refused"));
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// What an expression is now: labels and value of each series.
    async fn query(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let expression =
            percent_encoding::utf8_percent_encode(expression, percent_encoding::NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={expression}")).await;
        let series = data["result"].as_array().unwrap().iter();
        series
            .map(|one| {
                (
                    serde_json::from_value(one["metric"].clone()).unwrap(),
                    one["value"][1].as_str().unwrap().parse().unwrap(),
                )
            })
            .collect()
    }

    /// The alerts that fire now.
    async fn firing(&self) -> BTreeSet<String> {
        let data = self.api("alerts").await;
        let alerts = data["alerts"].as_array().unwrap().iter();
        alerts
            .filter(|alert| alert["state"] == "firing")
            .map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// The settings of deploy/prometheus/scrape.yml, for this node and five times a second.
fn settings_for(node: &Node) -> String {
    let settings = file("deploy/prometheus/scrape.yml");
    for shown in ["127.0.0.1:8377", "15s"] {
        assert!(settings.contains(shown), "{shown}");
    }
    settings
        .replace("127.0.0.1:8377", &format!("127.0.0.1:{}", node.tcp))
        .replace("15s", "200ms")
}

/// Rules whose times are shorter: `for`, ranges and offsets, and the ages that seconds are compared with. Counts and
/// shares stay.
fn faster(rules: &str) -> String {
    let mut fast = String::new();
    for line in rules.lines() {
        let (key, rest) = line.trim_start().split_once(": ").unwrap_or(("", line));
        let shorter = match key {
            "for" => format!("{key}: {}", shorter(rest)),
            "expr" => format!("{key}: {}", shorter_expression(rest)),
            _ => line.trim_start().to_owned(),
        };
        let indent = line.len() - line.trim_start().len();
        fast.push_str(&" ".repeat(indent));
        fast.push_str(&shorter);
        fast.push('\n');
    }
    fast
}

/// `5m` as `5s`, `1d` as `1440s`.
fn shorter(duration: &str) -> String {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => panic!("no duration: {duration}"),
    };
    let millis = number.parse::<u64>().unwrap() * seconds * 1000 / FASTER;
    format!("{millis}ms")
}

fn shorter_expression(expression: &str) -> String {
    let words: Vec<&str> = expression.split(' ').collect();
    let before = |index: usize, back| index.checked_sub(back).map_or("", |at| words[at]);
    let short = |(index, word): (usize, &&str)| {
        let is_age = before(index, 1) == ">" && before(index, 2).ends_with("_seconds");
        if is_age || before(index, 1) == "offset" {
            let end = word.find(|c: char| !c.is_ascii_alphanumeric());
            let (time, rest) = word.split_at(end.unwrap_or(word.len()));
            if is_age {
                return format!("{}{rest}", time.parse::<u64>().unwrap() / FASTER);
            }
            return shorter(time) + rest;
        }
        let mut pieces = word.split('[');
        let mut short = pieces.next().unwrap().to_owned();
        for piece in pieces {
            let (range, rest) = piece.split_once(']').unwrap();
            short += &format!("[{}]{rest}", shorter(range));
        }
        short
    };
    let words: Vec<String> = words.iter().enumerate().map(short).collect();
    words.join(" ")
}

#[test]
fn the_rules_of_the_test_are_those_of_the_repository_in_less_time() {
    for (rule, fast) in [
        ("        for: 1m", "        for: 1000ms"),
        (
            "        expr: 'sidetone_staleness_seconds > 60'",
            "        expr: 'sidetone_staleness_seconds > 1'",
        ),
        (
            "        expr: 'rate(x{a=~\"b|c\"}[5m]) / rate(x[1h] offset 1d) > 0.2'",
            "        expr: 'rate(x{a=~\"b|c\"}[5000ms]) / rate(x[60000ms] offset 1440000ms) > 0.2'",
        ),
    ] {
        assert_eq!(faster(rule).trim_end(), fast);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_alerts_about_a_stopped_postgres_fire_in_prometheus_and_end_when_it_is_back() {
    let Some(bin) = &*PROGRAMS else { return };
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let node = Node::with_example(&db, "feed.heartbeat_every = '200ms'").await;
    let prometheus = Prometheus::start(bin, &settings_for(&node)).await;

    until("the node is scraped", async || {
        let up = prometheus.query("up{job=\"sidetone\"}").await;
        up.len() == 1 && up[0].0["instance"] == "edge-1" && up[0].1 == 1.0
    })
    .await;
    let wanted = file("deploy/prometheus/alerts.yml")
        .matches("- alert: ")
        .count();
    until("every rule was evaluated", async || {
        let data = prometheus.api("rules").await;
        let rules = data["groups"][0]["rules"].as_array().unwrap();
        rules.len() == wanted && rules.iter().all(|rule| rule["health"] == "ok")
    })
    .await;
    until("nothing fires", async || {
        prometheus.firing().await.is_empty()
    })
    .await;

    drop(db);
    cluster.stop(Stop::Immediate);
    let wanted = BTreeSet::from(["SidetoneStale", "SidetoneFeedDown"].map(str::to_owned));
    until("the alerts fire", async || {
        prometheus.firing().await.is_superset(&wanted)
    })
    .await;
    // The node is well all the same.
    let firing = prometheus.firing().await;
    for quiet in ["SidetoneDown", "SidetoneNotSynced", "SidetoneErrors"] {
        assert!(!firing.contains(quiet), "{firing:?}");
    }
    let summary = prometheus.api("alerts").await.to_string();
    assert!(
        summary.contains("edge-1 last proved to be level with Postgres"),
        "{summary}"
    );

    cluster.start();
    until("the alerts end", async || {
        prometheus.firing().await.is_disjoint(&wanted)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_to_say_about_the_metrics_and_the_settings_shown() {
    let Some(bin) = &*PROGRAMS else { return };
    let mut node = Node::prepare(AWAY, "");
    node.start();
    node.answering().await;
    let mut lint = Command::new(bin.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = node.get("/metrics").await.body;
    lint.stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = lint.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");

    let dir = scratch("settings");
    fs::write(dir.join("alerts.yml"), file("deploy/prometheus/alerts.yml")).unwrap();
    let shown = file("deploy/prometheus/scrape.yml");
    // The second way stands there as a comment.
    let afar = shown
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| rest.starts_with("  "))
                .unwrap_or(line)
        })
        .collect::<Vec<_>>()
        .join("\n")
        .replacen("job_name: sidetone", "job_name: other", 1);
    assert!(afar.contains("\n    scheme: https\n"), "{afar}");
    for settings in [&shown, &afar] {
        fs::write(dir.join("prometheus.yml"), settings).unwrap();
        let output = Command::new(bin.join("promtool"))
            .current_dir(&dir)
            // Files that are named and not there are no fault of the settings.
            .args(["check", "config", "--syntax-only", "prometheus.yml"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_shows_something_of_a_node_that_works() {
    let Some(bin) = &*PROGRAMS else { return };
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let prometheus = Prometheus::start(bin, &settings_for(&node)).await;
    let filled = |expression: &str| {
        let expression = expression
            .replace("$node", "edge-1")
            .replace("$__rate_interval", "5s");
        assert!(!expression.contains('$'), "{expression}");
        expression
    };
    // Twice at least, so that there are rates.
    until("the node was scraped again and again", async || {
        let ask = node.get(&format!("/v1/lookup?to={ACME}")).await;
        assert_eq!(ask.status, 200);
        let asked = prometheus
            .query("rate(sidetone_lookups_total{outcome=\"ok\"}[5s])")
            .await;
        asked.iter().any(|(_, rate)| *rate > 0.0)
    })
    .await;
    for expression in dashboard_expressions() {
        let shown = prometheus.query(&filled(&expression)).await;
        // What tells of faults and ends shows nothing on a node that has none.
        let may_be_empty = expression.contains(" > 0") || expression.starts_with("ALERTS");
        assert!(may_be_empty || !shown.is_empty(), "{expression}");
    }
    let nodes = prometheus
        .api("label/instance/values?match[]=sidetone_build_info")
        .await;
    assert_eq!(nodes, serde_json::json!(["edge-1"]));
}
