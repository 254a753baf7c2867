//! What the README shows is run, and what it lists exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::node::Node;

fn readme() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

/// The lines of fenced blocks of a kind.
fn fenced(text: &str, kind: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(opens) => inside = !inside && opens == kind,
            None if inside => lines.push(line.to_owned()),
            None => {}
        }
    }
    lines
}

/// `like this` in running text and tables.
fn inline(text: &str) -> Vec<String> {
    let mut outside = true;
    let prose: Vec<&str> = text
        .lines()
        .filter(|line| {
            let fence = line.starts_with("```");
            outside ^= fence;
            outside && !fence
        })
        .collect();
    prose
        .iter()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// Whether a text is as shown: `…` stands for anything, digits after `ms":` and at the end of a metric for any number.
fn is_as_shown(shown: &str, text: &str) -> bool {
    let mask = |text: &str| {
        let mut masked = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("\"staleness_ms\":") {
            masked.push_str(before);
            masked.push_str("\"staleness_ms\":N");
            rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        masked + rest
    };
    let text = mask(text);
    let shown = mask(shown);
    let mut rest = text.as_str();
    for (index, piece) in shown.split('…').enumerate() {
        match (index, rest.find(piece)) {
            (0, Some(0)) => rest = &rest[piece.len()..],
            (0, _) | (_, None) => return false,
            (_, Some(at)) => rest = &rest[at + piece.len()..],
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn every_curl_line_of_the_readme_answers_as_shown() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    node.level().await;
    let lines = fenced(&readme(), "console");
    let mut tried = 0;
    for pair in lines.windows(2) {
        let Some(command) = pair[0].strip_prefix("$ curl ") else {
            continue;
        };
        let url = command
            .split_whitespace()
            .map(|word| word.trim_matches('\''))
            .find(|word| word.starts_with("http://"))
            .unwrap();
        let path = url.splitn(4, '/').nth(3).unwrap();
        let reply = if command.contains("--unix-socket") {
            node.get(&format!("/{path}")).await
        } else {
            node.get_tcp(&format!("/{path}")).await
        };
        if path == "metrics" {
            let name = pair[1].split(' ').next().unwrap();
            assert!(
                reply.body.lines().any(|line| line.starts_with(name)),
                "{name}"
            );
        } else {
            assert!(
                is_as_shown(&pair[1], &reply.body),
                "{command}\nshown:    {}\nanswered: {}",
                pair[1],
                reply.body
            );
        }
        tried += 1;
    }
    assert!(tried >= 3, "the README shows no curl lines any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_readme_is_taken() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let manuals = node.path("man");
    fs::create_dir(&manuals).unwrap();
    let text = readme();
    let shown = inline(&text).into_iter().chain(
        fenced(&text, "sh")
            .into_iter()
            .map(|line| line.split('#').next().unwrap().trim().to_owned()),
    );
    let mut tried = BTreeSet::new();
    for command in shown {
        let Some(rest) = command.strip_prefix("sidetone ") else {
            continue;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let name = words[0];
        let placeholders = rest.contains('…') || rest.contains('"');
        match name {
            // These have tests of their own; here only their flags are read.
            "run" | "demo" | "migrate" | "keygen" | "seal" | "open" | "watch" => {
                let flags = words.iter().skip(1).filter(|word| word.starts_with("--"));
                let help = String::from_utf8(node.cli(&[name, "--help"]).stdout).unwrap();
                for flag in flags {
                    assert!(
                        help.contains(flag.split('=').next().unwrap()),
                        "{command}: {help}"
                    );
                }
            }
            _ if placeholders => continue,
            _ => {
                let manuals = manuals.to_str().unwrap();
                let words: Vec<&str> = words
                    .iter()
                    .map(|word| {
                        if word.starts_with("/usr/share/man") {
                            manuals
                        } else {
                            *word
                        }
                    })
                    .collect();
                let output = node.cli(&words);
                assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
                assert!(
                    !output.stdout.is_empty() || name == "man",
                    "{command} says nothing"
                );
            }
        }
        tried.insert(name.to_owned());
    }
    for name in [
        "run",
        "check",
        "migrate",
        "lookup",
        "resolve",
        "explain",
        "status",
        "refresh",
        "verify",
        "watch",
        "keygen",
        "seal",
        "demo",
        "completions",
        "man",
    ] {
        assert!(
            tried.contains(name),
            "the README shows no `sidetone {name}`; shown: {tried:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_setting_and_route_that_the_readme_names_exists() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let metrics = node.get("/metrics").await.body;
    let defaults = String::from_utf8(node.cli(&["check", "--print-defaults"]).stdout).unwrap();
    for word in inline(&readme()) {
        if let Some(name) = word.strip_prefix("sidetone_") {
            let name = name.split('{').next().unwrap();
            assert!(
                metrics.contains(&format!("# TYPE sidetone_{name} ")),
                "no metric {word}"
            );
        }
        if let Some((section, key)) = word.split_once('.')
            && [
                "feed", "postgres", "http", "replica", "keys", "cache", "admin", "numbers",
                "limits", "log",
            ]
            .contains(&section)
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            assert!(
                defaults.contains(&format!("\n{key} = ")),
                "no setting {word}"
            );
        }
        if let Some(path) = word.strip_prefix("GET ") {
            let path = path
                .replace("{field}", "language")
                .replace('…', "%2B14155550100");
            if path.starts_with("/v1/watch") {
                // It goes on; its head says enough.
                let head = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let head = node.raw(head.as_bytes()).await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{word}: {head}");
                continue;
            }
            let reply = if path.contains("/admin/") {
                node.admin("GET", &path, "").await
            } else {
                node.get(&path).await
            };
            assert_eq!(reply.status, 200, "{word}: {reply:?}");
        }
    }
}

fn file(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// The alerts of the rules by name, each with the lines that follow it: a key and a value on each line.
fn alerts() -> BTreeMap<String, String> {
    let rules = file("deploy/prometheus/alerts.yml");
    rules
        .split("- alert: ")
        .skip(1)
        .map(|rule| rule.split_once('\n').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// The value of a key of an alert.
fn value<'a>(rule: &'a str, key: &str) -> &'a str {
    rule.lines()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))
        .unwrap_or_else(|| panic!("no {key} in {rule}"))
}

/// Words that begin like a metric's name, without what a histogram's series add.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        .filter(|word| word.starts_with("sidetone_") || word.starts_with("process_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_an_alert_the_runbook_or_a_promise_names_exists() {
    let mut node = Node::prepare(crate::node::AWAY, "");
    node.start();
    node.answering().await;
    let metrics = node.get("/metrics").await.body;
    let mut seen = 0;
    for name in [
        "deploy/prometheus/alerts.yml",
        "docs/runbook.md",
        "docs/promises.md",
        "docs/observing.md",
    ] {
        for metric in metrics_in(&file(name)) {
            assert!(
                metrics.contains(&format!("# TYPE {metric} ")),
                "{name} names {metric}, which does not exist"
            );
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
    for (name, rule) in alerts() {
        let known = !metrics_in(value(&rule, "expr")).is_empty() || name == "SidetoneDown";
        assert!(known, "{name} watches nothing of ours");
        for (label, of) in value(&rule, "expr")
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split_once('}')?.0.split_once('='))
            .map(|(label, of)| (label.trim_end_matches('!'), of))
            .filter(|(label, _)| *label != "job")
        {
            for wanted in of.trim_matches(['~', '"']).split('|') {
                assert!(
                    metrics.contains(&format!("{label}=\"{wanted}\"")),
                    "{name}: no {label}={wanted}"
                );
            }
        }
    }
}

/// The expressions of the dashboard: of its panels and its annotations.
pub(crate) fn dashboard_expressions() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(
                    fields
                        .get("expr")
                        .and_then(Value::as_str)
                        .map(str::to_owned),
                );
                fields.values().for_each(|value| collect(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(
        &serde_json::from_str(&file("deploy/grafana/sidetone.json")).unwrap(),
        &mut found,
    );
    found
}

/// The selectors of an expression: each metric's name with what stands in its braces.
fn selectors(expression: &str) -> Vec<(&str, &str)> {
    let word = |c: char| c.is_ascii_lowercase() || c == '_';
    expression
        .match_indices('{')
        .map(|(at, _)| {
            let before = &expression[..at];
            let name = before
                .rfind(|c| !word(c))
                .map_or(before, |end| &before[end + 1..]);
            (name, expression[at + 1..].split('}').next().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_label_and_value_of_the_dashboard_exists_and_every_panel_has_its_place() {
    let mut node = Node::prepare(crate::node::AWAY, "");
    node.start();
    node.answering().await;
    let metrics = node.get("/metrics").await.body;
    // What Prometheus itself adds.
    let scraped = ["instance", "job", "le"];
    let has = |name: &str, label: &str| {
        let series = [format!("{name}{{"), format!("{name}_bucket{{")];
        metrics.lines().any(|line| {
            series
                .iter()
                .any(|begins| line.starts_with(begins.as_str()))
                && line.contains(&format!("{label}=\""))
        })
    };
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 40, "{}", expressions.len());
    for expression in &expressions {
        for (name, matchers) in selectors(expression) {
            if ["up", "ALERTS", ""].contains(&name) {
                continue;
            }
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(
                metrics.contains(&format!("# TYPE {family} ")),
                "{expression}: no metric {name}"
            );
            for matcher in matchers.split(',') {
                let (label, value) = matcher.split_once('=').unwrap();
                let label = label.trim_end_matches('!');
                if scraped.contains(&label) {
                    continue;
                }
                for value in value.trim_matches(['~', '"']).split('|') {
                    let there = format!("{label}=\"{value}\"");
                    assert!(
                        metrics
                            .lines()
                            .any(|line| line.starts_with(family) && line.contains(&there)),
                        "{expression}: no {there}"
                    );
                }
            }
        }
        for labels in expression.split("by (").skip(1) {
            for label in labels.split(')').next().unwrap().split(", ") {
                let known = metrics_in(expression).iter().any(|name| has(name, label));
                assert!(
                    scraped.contains(&label) || known,
                    "{expression}: no label {label}"
                );
            }
        }
    }
    let board: Value = serde_json::from_str(&file("deploy/grafana/sidetone.json")).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let place =
        |panel: &Value| ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
    for (index, panel) in panels.iter().enumerate() {
        let [x, y, w, h] = place(panel);
        assert!(x + w <= 24, "{panel}");
        for other in &panels[..index] {
            let [ox, oy, ow, oh] = place(other);
            assert!(
                x >= ox + ow || ox >= x + w || y >= oy + oh || oy >= y + h,
                "{} stands on {}",
                panel["title"],
                other["title"]
            );
            assert_ne!(panel["id"], other["id"]);
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
            assert!(
                panel["description"].as_str().unwrap().len() > 10,
                "{}",
                panel["title"]
            );
            let names = alerts();
            for word in panel["description"]
                .as_str()
                .unwrap()
                .split([' ', ',', '.', ':'])
            {
                let known = !word.starts_with("Sidetone") || names.contains_key(word);
                assert!(known, "no alert {word}");
            }
        }
    }
    let rows: Vec<&str> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|panel| panel["title"].as_str().unwrap())
        .collect();
    assert_eq!(
        rows,
        [
            "At a glance",
            "Answers",
            "Freshness",
            "Feed",
            "Replica and cache",
            "Watchers and connections",
            "Process"
        ]
    );
}

#[test]
fn every_alert_is_whole_and_has_its_section_of_the_runbook_and_the_other_way_round() {
    let runbook = file("docs/runbook.md");
    let sections: BTreeSet<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.keys().map(String::as_str).collect();
    assert_eq!(names, sections);
    let tests = file("deploy/prometheus/alerts_test.yml");
    for (name, rule) in &alerts {
        assert!(
            tests.contains(&format!("- name: {name}\n")),
            "{name} is not tested"
        );
        for key in ["expr", "for", "summary", "description"] {
            assert!(value(rule, key).len() > 1, "{name}: {key}");
        }
        assert!(
            ["{severity: warning}", "{severity: critical}"].contains(&value(rule, "labels")),
            "{name}"
        );
        assert_eq!(
            value(rule, "runbook"),
            format!("docs/runbook.md#{}", name.to_lowercase())
        );
    }
    for section in runbook.split("\n## ").skip(1) {
        for part in ["- **Calls**: ", "- **Look at**: ", "- **Do**: "] {
            assert!(section.contains(part), "{section}");
        }
        for word in section.split(|c: char| !c.is_ascii_alphanumeric()) {
            assert!(
                !word.starts_with("Sidetone") || word == "Sidetone" || names.contains(word),
                "no alert {word}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_observing_shows_of_filter_keyring_and_spans_works_and_is_all() {
    let mut node = Node::prepare(crate::node::AWAY, "");
    node.start();
    node.answering().await;
    let text = file("docs/observing.md");
    let lines = fenced(&text, "sh");
    let put = lines.iter().find(|line| line.starts_with("curl ")).unwrap();
    let body = put.split("-d '").nth(1).unwrap().trim_end_matches('\'');
    assert!(
        put.contains(" -X PUT http://localhost/v1/admin/log "),
        "{put}"
    );
    let reply = node.admin("PUT", "/v1/admin/log", body).await;
    assert_eq!(reply.status, 200, "{reply:?}");

    let ring = fs::read_to_string(node.path("keyring.toml")).unwrap();
    let expires = fenced(&text, "toml").join("\n");
    fs::write(node.path("keyring.toml"), ring + "\n" + &expires).unwrap();
    let reply = node.admin("POST", "/v1/admin/keys/reload", "").await;
    assert_eq!(reply.text("/keys/0/expires"), "2027-01-01T00:00:00Z");

    let words = file("src/trace.rs");
    let spans = words
        .split("Work {")
        .nth(1)
        .unwrap()
        .split("\n}")
        .next()
        .unwrap();
    for name in spans.split('"').skip(1).step_by(2) {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_runbook_exists() {
    let node = Node::prepare(crate::node::AWAY, "");
    let mut tried = 0;
    for command in inline(&file("docs/runbook.md")) {
        let Some(rest) = command.strip_prefix("sidetone ") else {
            continue;
        };
        let (name, flags) = rest.split_once(' ').unwrap_or((rest, ""));
        let help = node.cli(&[name, "--help"]);
        assert!(help.status.success(), "{command}");
        for flag in flags.split(' ').filter(|flag| flag.starts_with("--")) {
            assert!(
                String::from_utf8_lossy(&help.stdout).contains(flag),
                "{command}"
            );
        }
        tried += 1;
    }
    assert!(tried > 10);
}

#[test]
fn every_promise_names_tests_and_alerts_that_exist_and_every_alert_watches_a_promise() {
    let alerts = alerts();
    let promises = file("docs/promises.md");
    let mut watched = BTreeSet::new();
    let mut rows = 0;
    for row in promises
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| promise"))
    {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [promise, bound, tests, metrics, by] = cells[..] else {
            panic!("five cells: {row}")
        };
        assert!(!bound.trim().is_empty(), "{promise}");
        assert!(!metrics_in(metrics).is_empty(), "{promise}: no metric");
        let names = inline(by);
        assert!(!names.is_empty(), "{promise}: no alert");
        for name in names {
            assert!(alerts.contains_key(&name), "{promise}: no alert {name}");
            watched.insert(name);
        }
        let tests = inline(tests);
        assert!(!tests.is_empty(), "{promise}: no test");
        for test in tests.iter().filter(|test| test.contains("::")) {
            let (module, name) = test.split_once("::").unwrap();
            let source = file(&format!("tests/it/{module}.rs"));
            assert!(
                source.contains(&format!("fn {name}")),
                "{promise}: no test {test}"
            );
        }
        rows += 1;
    }
    assert!(rows >= 14, "{rows}");
    let all: BTreeSet<String> = alerts.into_keys().collect();
    assert_eq!(all, watched, "an alert that watches no promise");
}
