//! The reference, written from the code: settings, metrics, exit codes, routes, statuses.
//!
//! `docs/reference.md` is this text; a test keeps the two equal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::CommandFactory;

use super::client::{Side, Status};
use super::{Args, EXIT_CODES};
use crate::answer::Field;
use crate::config::{self, ENV_PREFIX, NOT_SETTINGS};
use crate::metrics::Metrics;

/// What can be asked: where, with what, for what.
const ROUTES: &[(&str, &str, &str)] = &[
    (
        "call",
        "`GET /v1/lookup?to=…`",
        "short view, `format=json` or `form`",
    ),
    (
        "call",
        "`GET /v1/lookup/{field}?to=…`",
        "that one flat field as text",
    ),
    (
        "call",
        "`GET /v1/resolve?to=…[&include=credentials]`",
        "full view; `ETag`, `If-None-Match` → 304",
    ),
    (
        "call",
        "`POST /v1/resolve`",
        "the same, asked with a JSON or form body",
    ),
    (
        "call",
        "`GET /v1/credentials?to=…[&provider=…]`",
        "credentials only; Unix socket only",
    ),
    (
        "call",
        "`GET /v1/explain?to=…[&at=…]`",
        "why the answer is what it is; no secrets, no prompt content",
    ),
    (
        "call",
        "`GET /v1/watch?to=…` or `?tenant=…`",
        "server-sent events: `revision`, `heartbeat`, `upstream`, `end`; see [watch.md](watch.md)",
    ),
    ("call", "`GET /healthz`", "the process lives"),
    (
        "call",
        "`GET /readyz`",
        "the node can answer; the body tells whether it is fresh",
    ),
    ("call", "`GET /metrics`", "Prometheus text"),
    (
        "call",
        "`GET /openapi.yaml`",
        "description of every route, OpenAPI 3.1; on the admin side too",
    ),
    (
        "admin",
        "`GET /v1/admin/status`",
        "one snapshot of the node's health",
    ),
    (
        "admin",
        "`GET /v1/admin/events`",
        "server-sent events of the page: `status`, `sample`, `end`; see [page.md](page.md)",
    ),
    (
        "admin",
        "`GET /v1/admin/lookup?to=…`",
        "what a call would be told, not counted as one",
    ),
    (
        "admin",
        "`GET /v1/admin/explain?to=…[&at=…]`",
        "why; as the call side's, not counted as a call",
    ),
    ("admin", "`POST /v1/admin/refresh`", "pull now and rebuild"),
    (
        "admin",
        "`POST /v1/admin/verify`",
        "compare with Postgres and repair",
    ),
    (
        "admin",
        "`POST /v1/admin/keys/reload`",
        "read the keyring again",
    ),
    ("admin", "`PUT /v1/admin/log`", "change the log's filter"),
    ("admin", "`GET /`", "the page; see [page.md](page.md)"),
    (
        "admin",
        "`GET /api`",
        "the description of every route, rendered for reading",
    ),
];

/// What can be said of a call.
const PARAMETERS: &[(&str, &str)] = &[
    ("to", "the called number, in any spelling"),
    ("account_ref", "the account that the call is about"),
    ("event_type", "what happened"),
    ("zone", "where; may repeat"),
    (
        "outside_business_hours",
        "`true` or `false`; else the tenant's hours say it",
    ),
    (
        "attr.<name>",
        "any other attribute that a condition names; may repeat",
    ),
    ("at", "the instant of the call, RFC 3339; else now"),
    ("format", "`json` or `form`"),
    ("include", "`credentials`: of `/v1/resolve`"),
    ("provider", "whose credentials alone: of `/v1/credentials`"),
];

/// Everything as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "# Reference\n\nWritten by `sidetone reference` from the code; write it anew with\n\
         `sidetone reference > docs/reference.md`.\n",
    );
    settings(&mut text);
    commands(&mut text);
    routes(&mut text);
    metrics(&mut text);
    text
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($to:expr, $($what:tt)*) => { let _ = writeln!($to, $($what)*); };
}

fn settings(text: &mut String) {
    line!(text, "\n## Settings\n");
    line!(
        text,
        "One TOML file (`{}`), the environment over it (`{ENV_PREFIX}POSTGRES__URL_FILE` is `postgres.url_file`), \
         `--set key=value` over that.",
        config::DEFAULT_PATH
    );
    let mut section = "";
    for setting in config::settings() {
        if setting.section != section {
            section = setting.section;
            line!(
                text,
                "\n### `[{section}]`\n\n| key | default | meaning |\n|---|---|---|"
            );
        }
        line!(
            text,
            "| `{}` | `{}` | {} |",
            setting.key,
            setting.default,
            escaped(&setting.doc)
        );
    }
    line!(
        text,
        "\n### `[[access]]`\n\n```toml\n{}```",
        config::access_doc()
    );
    line!(
        text,
        "\nVariables that are no settings: {}.",
        NOT_SETTINGS
            .iter()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    );
}

fn commands(text: &mut String) {
    line!(
        text,
        "\n## Commands\n\n| command | what it does |\n|---|---|"
    );
    for command in Args::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        line!(
            text,
            "| `sidetone {}` | {} |",
            command.get_name(),
            escaped(&about)
        );
    }
    line!(text, "\n### Exit codes\n\n| code | meaning |\n|---|---|");
    for (exit, meaning) in EXIT_CODES {
        line!(text, "| {} | {} |", exit as u8, escaped(meaning));
    }
}

fn routes(text: &mut String) {
    line!(
        text,
        "\n## Routes\n\n| side | route | answer |\n|---|---|---|"
    );
    for (side, route, answer) in ROUTES {
        line!(
            text,
            "| {side} | {} | {} |",
            escaped(route),
            escaped(answer)
        );
    }
    line!(
        text,
        "\n### Parameters\n\nOf a question about a call, in the query or the body. Others are ignored; one given twice is refused, `zone` \
         and `attr.*` may repeat.\n\n| parameter | meaning |\n|---|---|"
    );
    for (name, meaning) in PARAMETERS {
        line!(text, "| `{name}` | {} |", escaped(meaning));
    }
    line!(
        text,
        "\n### Fields\n\nOf the short view, in this order, each always present. `/v1/lookup/{{field}}` and `format=form` know them by these \
         names, and a form has last what people and callers write freely; in JSON those of the tenant and the prompts stand in objects of their own (`tenant_slug` is `slug` in `tenant`).\n\n\
         | field | meaning |\n|---|---|"
    );
    for field in Field::ALL {
        line!(text, "| `{}` | {} |", field.name(), escaped(field.doc()));
    }
    line!(
        text,
        "\n### Statuses\n\n| side | status | HTTP | exit code | given when |\n|---|---|---|---|---|"
    );
    for status in Status::ALL {
        let side = match status.side {
            Side::Call => "call",
            Side::Admin => "admin",
        };
        line!(
            text,
            "| {side} | `{}` | {} | {} | {} |",
            status.name,
            status.http,
            status.exit as u8,
            escaped(status.meaning)
        );
    }
}

fn metrics(text: &mut String) {
    line!(
        text,
        "\n## Metrics\n\n| metric | type | labels | meaning |\n|---|---|---|---|"
    );
    let exposed = Metrics::new()
        .map(|metrics| String::from_utf8_lossy(&metrics.text()).into_owned())
        .unwrap_or_default();
    for (name, metric) in families(&exposed) {
        line!(
            text,
            "| `{name}` | {} | {} | {} |",
            metric.kind,
            metric.labels,
            escaped(&metric.help)
        );
    }
}

#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    labels: String,
}

/// The families of a text exposition.
fn families(exposed: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in exposed.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some((name, rest)) = line.split_once('{') {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
            let names = labels
                .split("\",")
                .filter_map(|pair| pair.split_once('='))
                .map(|(label, _)| label);
            let names: Vec<String> = names
                .filter(|label| *label != "le")
                .map(|label| format!("`{label}`"))
                .collect();
            if let Some(family) = families.get_mut(name) {
                family.labels = names.join(", ");
            }
        }
    }
    families
}

/// A cell of a Markdown table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_reference_in_the_repository_is_the_one_the_code_writes() {
        let committed =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md"))
                .unwrap();
        assert_eq!(
            committed,
            markdown(),
            "write it anew with `sidetone reference > docs/reference.md`"
        );
    }

    #[test]
    fn the_readme_names_every_command_setting_status_and_exit_code_and_no_metric_that_is_not_there()
    {
        let readme = include_str!("../../README.md");
        let command = Args::command();
        let names = command
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name);
        let statuses = Status::ALL
            .iter()
            .filter(|status| status.side == Side::Call)
            .map(|status| status.name);
        for name in names
            .chain(statuses)
            .chain(config::settings().iter().map(|setting| setting.key))
        {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        }
        for (exit, _) in EXIT_CODES {
            assert!(
                readme.contains(&format!("\n| {} | ", exit as u8)),
                "{exit:?}"
            );
        }
        let exposed = String::from_utf8(Metrics::new().unwrap().text()).unwrap();
        let known = families(&exposed);
        for rest in readme.split("`sidetone_").skip(1) {
            let name = rest
                .split(|c: char| !c.is_ascii_lowercase() && c != '_')
                .next()
                .unwrap_or_default();
            assert!(known.contains_key(&format!("sidetone_{name}")), "{name}");
        }
    }

    /// The code of a file without its tests.
    fn code(file: &str) -> &str {
        file.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }

    /// What stands in quotes in code.
    fn literals(code: &str) -> impl Iterator<Item = &str> {
        code.split('"').skip(1).step_by(2)
    }

    #[test]
    fn every_route_that_the_code_knows_is_listed_and_the_other_way_round() {
        let served: BTreeSet<&str> = [
            include_str!("../http/lookup.rs"),
            include_str!("../http/admin.rs"),
            include_str!("../http/page.rs"),
        ]
        .into_iter()
        .flat_map(|file| literals(code(file)))
        .filter(|literal| {
            literal.starts_with('/')
                && !literal.starts_with("/assets/") // of the page, not asked for otherwise
                && literal
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b"/1_.".contains(&b))
        })
        .map(|path| path.trim_end_matches('/'))
        .collect();
        let listed: BTreeSet<&str> = ROUTES
            .iter()
            .map(|(_, route, _)| {
                let path = route.split(['`', ' ']).find(|word| word.starts_with('/'));
                path.unwrap().split(['?', '{']).next().unwrap()
            })
            .map(|path| path.trim_end_matches('/'))
            .collect();
        assert!(served.len() > 8, "{served:?}");
        assert_eq!(served, listed);
    }

    #[test]
    fn every_parameter_of_a_call_is_listed_and_the_other_way_round() {
        let known = code(include_str!("../http/params.rs"));
        let known = known.split_once("const KNOWN").unwrap().1;
        let mut known: BTreeSet<&str> = literals(known.split_once("];").unwrap().0).collect();
        known.extend(["attr.<name>", "outside_business_hours"]);
        let listed: BTreeSet<&str> = PARAMETERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(known, listed);
    }

    #[test]
    fn every_status_of_the_admin_side_is_one_that_the_code_gives_and_the_other_way_round() {
        let given: BTreeSet<&str> = [
            include_str!("../http/admin.rs"),
            include_str!("../http/token.rs"),
        ]
        .into_iter()
        .map(code)
        .flat_map(|file| {
            let codes = file.split("StatusCode::").skip(1);
            let statuses =
                codes.filter_map(|rest| literals(rest.get(..120).unwrap_or(rest)).next());
            let bodies = file.split("\"status\":\"").skip(1);
            statuses.chain(bodies.filter_map(|rest| rest.split('"').next()))
        })
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect();
        let all: BTreeSet<&str> = Status::ALL.iter().map(|status| status.name).collect();
        assert_eq!(
            given.difference(&all).collect::<Vec<_>>(),
            Vec::<&&str>::new()
        );
        let admins = Status::ALL
            .iter()
            .filter(|status| status.side == Side::Admin);
        for status in admins {
            assert!(given.contains(status.name), "{}: {given:?}", status.name);
        }
    }

    #[test]
    fn a_histogram_is_listed_once_with_its_labels() {
        let text = "# HELP sidetone_x Time\n# TYPE sidetone_x histogram\nsidetone_x_bucket{route=\"a\",le=\"1\"} 0\n\
                    sidetone_x_sum{route=\"a\"} 0\n# HELP process_y z\n# TYPE process_y gauge\nprocess_y 1\n";
        let families = families(text);
        assert_eq!(families.len(), 2);
        assert_eq!(families["sidetone_x"].labels, "`route`");
    }
}
