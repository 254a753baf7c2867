//! `sidetone status`: one snapshot of the node's health.

use comfy_table::Cell;
use serde_json::Value;

use super::client::{AdminSocket, QUICK};
use super::output::{self, Tone, cell};
use super::{CliError, Exit, SettingsArgs, block_on, lookup};

/// Of which node.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
    /// Exit 1 unless the node can answer calls, from a stale copy too
    #[arg(long)]
    ready: bool,
    /// Exit 1 unless the node can answer calls and its copy is not stale
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    socket: AdminSocket,
}

pub(super) fn run(settings: &SettingsArgs, args: &StatusArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let reply = block_on(client.get("/v1/admin/status", QUICK))??;
    if args.json {
        output::print_body(&reply.body)?;
        if !reply.is_ok() {
            return Ok(reply.exit());
        }
    }
    let status = lookup::yes(&client, &reply)?;
    if !args.json {
        output::print(&snapshot(&status))?;
    }
    Ok(verdict(args, &status))
}

/// For a probe: whether what it asks for holds. Without that, an answer is enough.
fn verdict(args: &StatusArgs, status: &Value) -> Exit {
    let is = |name: &str| status.get(name) == Some(&Value::Bool(true));
    let lacking = (args.ready || args.fresh) && !is("ready");
    if lacking || (args.fresh && is("stale")) {
        Exit::No
    } else {
        Exit::Ok
    }
}

/// What people look for first; the rest follows in the order of its names.
const FIRST: [&str; 7] = [
    "node",
    "version",
    "started",
    "ready",
    "synced",
    "stale",
    "staleness_ms",
];

/// Facts first, those in groups after those without, lists below.
pub(super) fn snapshot(status: &Value) -> String {
    let mut facts = Vec::new();
    let mut lists = Vec::new();
    flatten("", status, &mut facts, &mut lists);
    let mut text = output::facts(
        facts
            .iter()
            .map(|(name, cell)| (name.as_str(), cell.clone())),
    );
    for (name, rows) in lists {
        text.push_str(&output::heading(&format!("{name} ({})", rows.len())));
        text.push_str(&list(rows));
    }
    text
}

fn flatten<'a>(
    prefix: &str,
    value: &'a Value,
    facts: &mut Vec<(String, Cell)>,
    lists: &mut Vec<(String, &'a [Value])>,
) {
    let Value::Object(fields) = value else { return };
    let mut fields: Vec<_> = fields
        .iter()
        .filter(|(name, _)| !(prefix.is_empty() && name.as_str() == "status"))
        .collect();
    // Stable: within a rank the names keep their order.
    fields.sort_by_key(|(name, value)| {
        (
            value.is_object(),
            FIRST
                .iter()
                .position(|first| first == name)
                .unwrap_or(FIRST.len()),
        )
    });
    for (name, value) in fields {
        let path = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(&path, value, facts, lists),
            Value::Array(rows) if rows.iter().any(Value::is_object) => lists.push((path, rows)),
            _ => {
                let cell = fact(&path, value);
                facts.push((path, cell));
            }
        }
    }
}

/// What needs a look is coloured.
fn fact(path: &str, value: &Value) -> Cell {
    let last = path.rsplit('.').next().unwrap_or(path);
    match (last, value) {
        (_, Value::Number(ms)) if last.ends_with("_ms") => cell(
            &ms.as_u64()
                .map_or_else(|| output::plain(value), output::duration),
            Tone::Plain,
        ),
        (_, Value::Number(bytes)) if last == "bytes" || last.ends_with("_bytes") => cell(
            &bytes.as_u64().map_or_else(
                || output::plain(value),
                |b| bytesize::ByteSize(b).to_string(),
            ),
            Tone::Plain,
        ),
        ("stale" | "refused_database" | "refuse_credentials", Value::Bool(true)) => {
            cell("yes", Tone::Warn)
        }
        ("listening" | "armed" | "synced" | "ready", Value::Bool(false)) => cell("no", Tone::Warn),
        ("listening" | "armed" | "synced" | "ready", Value::Bool(true)) => cell("yes", Tone::Good),
        ("state", Value::String(state)) => {
            let tone = match state.as_str() {
                "level" | "pulling" => Tone::Good,
                "backoff" => Tone::Bad,
                _ => Tone::Warn,
            };
            cell(state, tone)
        }
        ("last_error", Value::Null) => cell("–", Tone::Good),
        ("text", Value::String(text)) => cell(text, Tone::Warn),
        _ => cell(&output::plain(value), Tone::Plain),
    }
}

/// A list of objects as a table, columns in the order of the first object that has them.
pub(super) fn list(rows: &[Value]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for name in rows
        .iter()
        .filter_map(Value::as_object)
        .flat_map(|row| row.keys())
    {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let cells = rows
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|name| {
                    cell(
                        &row.get(name).map(output::plain).unwrap_or_default(),
                        Tone::Plain,
                    )
                })
                .collect()
        })
        .collect();
    output::table(&columns, cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_nested_facts_and_lists_as_tables() {
        let status = serde_json::json!({
            "status": "ok",
            "node": "edge-1",
            "feed": {"state": "level", "listening": true, "last_error": null},
            "replica": {"bytes": 1_048_576, "numbers": 3},
            "staleness_ms": 412,
            "quarantined": [{"table": "prompts", "key": "x", "reason": "conditions"}],
            "keys": [],
        });
        let text = anstream::adapter::strip_str(&snapshot(&status)).to_string();
        let expected = "\
node             edge-1
staleness_ms     412 ms
keys             –
feed.last_error  –
feed.listening   yes
feed.state       level
replica.bytes    1.0 MiB
replica.numbers  3

quarantined (1)
key   reason       table
──────────────────────────
x     conditions   prompts
";
        assert_eq!(text, expected, "{text}");
    }
}
