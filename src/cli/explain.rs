//! `sidetone explain`: each prompt and binding, chosen or not, and why; each field and the row it came from.

use serde_json::Value;

use super::call::CallArgs;
use super::client::{self, CallSocket, QUICK};
use super::output::{self, Tone, cell};
use super::{CliError, Exit, SettingsArgs, block_on, lookup, status};

/// What to explain.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    call: CallArgs,
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: CallSocket,
}

pub(super) fn run(settings: &SettingsArgs, args: &ExplainArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let reply = block_on(client.get(&client::target("/v1/explain", &args.call.query()), QUICK))??;
    if args.json {
        output::print_body(&reply.body)?;
        return Ok(reply.exit());
    }
    output::print(&explanation(&lookup::yes(&client, &reply)?))?;
    Ok(Exit::Ok)
}

/// What was decided and why, most telling first.
fn explanation(answer: &Value) -> String {
    let at = |pointer: &str| {
        answer
            .pointer(pointer)
            .map(output::plain)
            .unwrap_or_default()
    };
    let plain = |pointer: &str| cell(&at(pointer), Tone::Plain);
    let mut facts = vec![
        ("number", plain("/number")),
        (
            "tenant",
            cell(
                &format!(
                    "{} ({}, {})",
                    at("/tenant/name"),
                    at("/tenant/slug"),
                    at("/tenant/status")
                ),
                Tone::Plain,
            ),
        ),
        (
            "instant",
            cell(
                &format!(
                    "{}, {} in {}",
                    at("/at"),
                    at("/business_hours/local_time"),
                    at("/business_hours/timezone")
                ),
                Tone::Plain,
            ),
        ),
        (
            "business hours",
            cell(
                &format!(
                    "{}: {}",
                    at("/business_hours/value"),
                    at("/business_hours/why")
                ),
                Tone::Plain,
            ),
        ),
        ("revision", plain("/revision")),
    ];
    match answer.get("status").and_then(Value::as_str) {
        Some("ok") | None => {}
        Some(status) => facts.insert(
            0,
            (
                "refused",
                cell(&format!("{status}: {}", at("/message")), Tone::Bad),
            ),
        ),
    }
    let mut text = output::facts(facts);
    text.push_str(&output::heading("Prompts, in the order of the stack"));
    text.push_str(&prompts(answer));
    text.push_str(&output::heading("Fields, and the rows they come from"));
    text.push_str(&fields(answer));
    for (name, title) in [
        ("credentials", "Credentials"),
        ("faults", "Rows not in force as they stand in Postgres"),
    ] {
        if let Some(rows) = answer
            .get(name)
            .and_then(Value::as_array)
            .filter(|rows| !rows.is_empty())
        {
            text.push_str(&output::heading(title));
            text.push_str(&status::list(rows));
        }
    }
    text
}

fn list<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    of.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn is(of: &Value, name: &str) -> bool {
    of.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// Each prompt with its bindings.
pub(super) fn prompts(answer: &Value) -> String {
    let mut rows = Vec::new();
    for prompt in list(answer, "prompts") {
        let field = |name: &str| {
            cell(
                &prompt.get(name).map(output::plain).unwrap_or_default(),
                Tone::Plain,
            )
        };
        let mark = if is(prompt, "chosen") {
            cell("✓", Tone::Good)
        } else {
            cell("✗", Tone::Dim)
        };
        rows.push(vec![
            mark,
            field("priority"),
            field("scope"),
            field("name"),
            field("why"),
        ]);
        for binding in list(prompt, "bindings") {
            let tone = if is(binding, "acts") {
                Tone::Plain
            } else {
                Tone::Dim
            };
            let why = binding.get("why").map(output::plain).unwrap_or_default();
            rows.push(vec![
                cell("", tone),
                cell("", tone),
                cell("", tone),
                cell("", tone),
                cell(&format!("  {why}"), tone),
            ]);
        }
    }
    output::table(&["", "priority", "scope", "name", "why"], rows)
}

fn fields(answer: &Value) -> String {
    let fields = answer.get("fields").and_then(Value::as_object);
    let rows = fields.into_iter().flatten().map(|(name, field)| {
        let part = |name: &str| field.get(name).map(output::plain).unwrap_or_default();
        let from = format!("{}.{}", part("table"), part("column"));
        vec![
            cell(name, Tone::Plain),
            cell(&part("value"), Tone::Plain),
            cell(&from, Tone::Plain),
            cell(&part("why"), Tone::Dim),
        ]
    });
    output::table(&["field", "value", "from", "why"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_was_not_chosen_is_listed_with_its_reason_and_its_bindings() {
        let answer = serde_json::json!({
            "status": "ok", "number": "+14155550100",
            "prompts": [{"chosen": false, "priority": 10, "scope": "event_type", "name": "Door",
                "why": "not chosen: none of its bindings matches",
                "bindings": [{"acts": false, "why": "binding b1: event_type is not door_open"}]}],
            "fields": {"language": {"value": "es-AR", "table": "tenant_phone_numbers", "column": "default_language", "why": "of the number"}},
            "faults": [],
        });
        let text = anstream::adapter::strip_str(&explanation(&answer)).to_string();
        let expected = "\
Prompts, in the order of the stack
    priority   scope        name   why
────────────────────────────────────────────────────────────────────────────
✗   10         event_type   Door   not chosen: none of its bindings matches
                                     binding b1: event_type is not door_open

Fields, and the rows they come from
field      value   from                                    why
────────────────────────────────────────────────────────────────────────
language   es-AR   tenant_phone_numbers.default_language   of the number
";
        assert_eq!(
            text.split_once("\n\n").map(|(_, rest)| rest),
            Some(expected),
            "{text}"
        );
    }
}
