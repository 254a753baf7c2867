//! What the documentation shows is run, and what it names exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use clap::Parser as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::Cluster;
use crate::markdown::{
    Piece, anchors, blocks, documents, file, inline, links, pieces, prose, repository, words,
};
use crate::node::{Node, PATIENCE};
use crate::terminal::try_document;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_readme_shows_is_what_a_terminal_shows() {
    let tried = try_document("README.md").await;
    assert!(tried >= 4, "the README shows no commands any more: {tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_start_leads_from_nothing_to_an_answer() {
    assert!(try_document("docs/quickstart.md").await >= 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_are_told_to_do_does_what_it_says() {
    assert!(try_document("docs/operating.md").await >= 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_other_document_shows_is_what_a_terminal_shows() {
    for document in documents() {
        match document.as_str() {
            // They have tests of their own above; the Spanish one shows what the English one shows.
            "README.md" | "README.es.md" | "docs/quickstart.md" | "docs/operating.md" => {}
            _ => {
                try_document(&document).await;
            }
        }
    }
}

/// The `sidetone …` of a shell's line or of running text, each up to where the shell takes over.
fn commands_in(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" # ").next().unwrap_or_default();
    line.split(['|', ';', '<', '>', '&', '(', ')'])
        .filter_map(|part| part.split_once("sidetone "))
        .filter(|(before, _)| before.is_empty() || before.ends_with([' ', '!']))
        .map(|(_, rest)| {
            let mut words = words(rest);
            for index in 0..words.len() {
                let of_tenant = index > 0 && words[index - 1] == "--tenant";
                match words[index].as_str() {
                    "…" => "6f717b5a-1a2b-4c3d-9e8f-112233445566".clone_into(&mut words[index]),
                    word if word.starts_with('$') && of_tenant => {
                        "6f717b5a-1a2b-4c3d-9e8f-112233445566".clone_into(&mut words[index]);
                    }
                    word if word.starts_with('$') => "1".clone_into(&mut words[index]),
                    _ => {}
                }
            }
            std::iter::once("sidetone".to_owned())
                .chain(words)
                .collect()
        })
        .collect()
}

#[test]
fn every_command_named_in_the_documents_is_taken_by_the_command_line() {
    let mut tried = BTreeSet::new();
    for document in documents() {
        let text = file(&document);
        let shown = blocks(&text, "sh")
            .into_iter()
            .flat_map(|(.., block)| block.lines().map(str::to_owned).collect::<Vec<_>>());
        let named = inline(&text)
            .into_iter()
            .filter(|word| word.starts_with("sidetone "));
        for line in named.chain(shown) {
            for command in commands_in(&line) {
                let Err(err) = sidetone::cli::Args::try_parse_from(&command) else {
                    tried.insert(command[1].clone());
                    continue;
                };
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayVersion, MissingRequiredArgument,
                };
                let named = match err.kind() {
                    DisplayHelp | DisplayVersion => true,
                    // `sidetone lookup` in running text names the command and not what is typed.
                    MissingRequiredArgument => command.len() == 2,
                    _ => false,
                };
                assert!(named, "{document}: {line}\n{err}");
            }
        }
    }
    for command in <sidetone::cli::Args as clap::CommandFactory>::command().get_subcommands() {
        let name = command.get_name();
        assert!(
            tried.contains(name) || command.is_hide_set() || name == "help",
            "no document shows `sidetone {name}`"
        );
    }
}

/// What belongs to the machine and to nobody's test: packages, services, other hosts, hours of work.
const NOT_RUN: [&str; 12] = [
    "apt-get",
    "cargo",
    "cd",
    "cp",
    "dpkg",
    "export",
    "git",
    "journalctl",
    "make",
    "scp",
    "ssh",
    "systemctl",
];

#[test]
fn blocks_that_are_not_run_hold_only_what_belongs_to_the_machine() {
    for document in documents() {
        for piece in pieces(&file(&document)) {
            let Piece::Fence { info, line, lines } = piece else {
                continue;
            };
            let mut info = info.split(' ');
            let language = info.next().unwrap_or_default();
            if !["sh", "console", "bash", "shell"].contains(&language) {
                continue;
            }
            assert!(
                ["sh", "console"].contains(&language),
                "{document}:{line}: `sh` is run and `console` is a transcript; {language} is neither"
            );
            match info.next() {
                None => {}
                Some("norun") => {
                    for line in lines.iter().filter(|line| !line.starts_with(['#', ' '])) {
                        let program = words(line.trim_start_matches("$ ")).into_iter().next();
                        let program = program.unwrap_or_default();
                        assert!(
                            program.is_empty() || NOT_RUN.contains(&program.as_str()),
                            "{document}: `{line}` could be run by the tests"
                        );
                    }
                }
                Some(other) => panic!("{document}:{line}: {other}?"),
            }
        }
    }
}

#[test]
fn every_block_of_shell_is_well_formed() {
    for document in documents() {
        for (_, line, block) in blocks(&file(&document), "sh") {
            let output = std::process::Command::new("sh")
                .args(["-n", "-c", &block])
                .output()
                .unwrap();
            assert!(output.status.success(), "{document}:{line}: {output:?}");
        }
    }
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let mut tried = 0;
    for document in documents() {
        let from = repository().join(&document);
        for link in links(&file(&document)) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                from.clone()
            } else {
                from.parent().unwrap().join(path)
            };
            assert!(target.exists(), "{document} links to {link}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(
                    anchors(&text).contains(anchor),
                    "{document} links to {link}, which has {:?}",
                    anchors(&text)
                );
            }
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
}

/// The code in the cells of a text's tables, row by row.
fn code_of_tables(text: &str) -> Vec<Vec<String>> {
    prose(text)
        .iter()
        .filter(|line| line.starts_with('|'))
        .map(|line| inline(line))
        .collect()
}

/// A block without what is said to the reader in it.
fn without_comments(block: &str) -> String {
    block
        .lines()
        .map(|line| line.split("# ").next().unwrap().trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_spanish_readme_shows_what_the_english_one_shows() {
    let (english, spanish) = (file("README.md"), file("README.es.md"));
    let blocks = |text: &str| -> Vec<(String, String)> {
        pieces(text)
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Fence { info, lines, .. } => Some((info, lines.join("\n"))),
                Piece::Line { .. } => None,
            })
            .map(|(info, block)| (info, without_comments(&block)))
            .collect()
    };
    assert_eq!(blocks(&english), blocks(&spanish));
    let (shown, translated) = (code_of_tables(&english), code_of_tables(&spanish));
    for (english, spanish) in shown.iter().zip(&translated) {
        assert_eq!(english, spanish, "the code in the cells of a row");
    }
    assert_eq!(shown.len(), translated.len(), "rows of tables");
    // The exit codes and HTTP statuses are no code.
    let numbers = |text: &str| -> Vec<String> {
        prose(text)
            .iter()
            .filter(|line| line.starts_with('|'))
            .map(|line| {
                line.chars()
                    .map(|c| if c.is_ascii_digit() { c } else { ' ' })
                    .collect::<String>()
            })
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert_eq!(numbers(&english), numbers(&spanish));
    let named = |text: &str| -> BTreeSet<String> { inline(text).into_iter().collect() };
    let (shown, translated) = (named(&english), named(&spanish));
    assert_eq!(
        shown.symmetric_difference(&translated).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "code that one of the two names alone"
    );
    let headings = |text: &str| {
        prose(text)
            .iter()
            .filter(|line| line.starts_with('#'))
            .count()
    };
    assert_eq!(headings(&english), headings(&spanish));
    // Each links to the other.
    let targets = |text: &str| -> Vec<String> {
        let links = links(text).into_iter();
        links.filter(|link| !link.starts_with("README")).collect()
    };
    assert_eq!(targets(&english), targets(&spanish));
}

/// The files of `src/`.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec!["src".to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(repository().join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                dirs.push(path);
            } else if path.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn the_map_shows_every_file_and_no_other() {
    let map = file("ARCHITECTURE.md");
    let named: BTreeSet<String> = inline(&map)
        .into_iter()
        .filter(|word| word.ends_with(".rs"))
        .collect();
    for source in sources() {
        let name = source.strip_prefix("src/").unwrap();
        // Tests and the files of a command are not on the map one by one.
        if name.ends_with("tests.rs") || name.starts_with("cli/") || name == "lib.rs" {
            continue;
        }
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let whole = map.contains(&format!("`{dir}/*`"));
        assert!(
            named.contains(name) || (!dir.is_empty() && whole),
            "ARCHITECTURE.md does not show {source}"
        );
    }
    for name in named.iter().filter(|name| !name.contains('*')) {
        let of_repository = repository().join(name).exists();
        assert!(
            of_repository
                || repository().join("src").join(name).exists()
                || repository().join("fuzz").join(name).exists()
                || repository().join("fuzz/src").join(name).exists(),
            "ARCHITECTURE.md shows {name}, which is not there"
        );
    }
}

#[test]
fn every_test_that_a_document_calls_a_proof_exists() {
    let mut tried = 0;
    let units: String = sources().iter().map(|path| file(path)).collect();
    for document in documents() {
        for word in inline(&file(&document)) {
            let Some((module, name)) = word.split_once("::") else {
                // A unit test, by its name alone: a sentence.
                let is_name = word
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b"_019".contains(&b));
                let is_metric = word.starts_with("sidetone_") || word.starts_with("process_");
                if is_name && !is_metric && word.matches('_').count() > 3 {
                    assert!(
                        units.contains(&format!("fn {word}()")),
                        "{document}: no test {word}"
                    );
                    tried += 1;
                }
                continue;
            };
            let path = repository().join(format!("tests/it/{module}.rs"));
            if path.exists() {
                let source = fs::read_to_string(path).unwrap();
                assert!(
                    source.contains(&format!("fn {name}")),
                    "{document}: no test {word}"
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 40, "{tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_setting_and_route_that_a_document_names_exists() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, "").await;
    let metrics = node.get("/metrics").await.body;
    let settings = sidetone::config::settings();
    let sections: BTreeSet<&str> = settings.iter().map(|setting| setting.section).collect();
    let mut routes = BTreeSet::new();
    for document in documents() {
        for word in inline(&file(&document)) {
            if word.starts_with("sidetone_") || word.starts_with("process_") {
                let name = word.split(['{', ' ']).next().unwrap();
                let name = name.strip_suffix("_bucket").unwrap_or(name);
                assert!(
                    metrics.contains(&format!("# TYPE {name} ")),
                    "{document}: no metric {word}"
                );
            }
            let name = word.split([' ', '=']).next().unwrap();
            if let Some((section, key)) = name.split_once('.')
                && sections.contains(section)
                && key != "rs"
                && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            {
                assert!(
                    settings
                        .iter()
                        .any(|setting| (setting.section, setting.key) == (section, key)),
                    "{document}: no setting {word}"
                );
            }
            if let Some((method, path)) = word.split_once(' ')
                && ["GET", "POST", "PUT"].contains(&method)
                && path.starts_with('/')
            {
                let path = path.split(['?', '[', ' ']).next().unwrap();
                routes.insert((method.to_owned(), path.replace("{field}", "language")));
            }
        }
    }
    for (method, path) in &routes {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        let admin = path.starts_with("/v1/admin/") || ["/", "/api"].contains(&path.as_str());
        let socket = if admin {
            node.path("admin/admin.sock")
        } else {
            node.unix()
        };
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The answer may be anything but that there is no such thing. Some go on, and then are one.
        let mut said = vec![0; 16 * 1024];
        let mut length = 0;
        while !said[..length].starts_with(b"HTTP/1.1 2") {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut said[length..]));
            match read.await.unwrap().unwrap() {
                0 => break,
                more => length += more,
            }
        }
        let said = String::from_utf8_lossy(&said[..length]);
        assert!(
            said.starts_with("HTTP/1.1 ")
                && !said.starts_with("HTTP/1.1 405")
                && !said.contains(r#""status":"no_such_route""#),
            "{method} {path}: {said}"
        );
    }
    assert!(routes.len() > 10, "{routes:?}");
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
async fn what_observing_shows_of_the_keyring_and_of_spans_works_and_is_all() {
    let mut node = Node::prepare(crate::node::AWAY, "");
    node.start();
    node.answering().await;
    let text = file("docs/observing.md");
    let ring = fs::read_to_string(node.path("keyring.toml")).unwrap();
    let (_, _, expires) = blocks(&text, "toml").remove(0);
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
        rows += 1;
    }
    assert!(rows >= 14, "{rows}");
    let all: BTreeSet<String> = alerts.into_keys().collect();
    assert_eq!(all, watched, "an alert that watches no promise");
}
