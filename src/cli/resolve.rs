//! `sidetone resolve`: the full view of an answer. Credentials only when asked for, and masked unless told otherwise.

use serde_json::Value;

use super::call::CallArgs;
use super::client::{self, CallSocket, QUICK};
use super::output::{self, Tone, cell};
use super::{CliError, Exit, SettingsArgs, block_on, lookup};

/// What to resolve.
#[derive(Debug, clap::Args)]
pub struct ResolveArgs {
    #[command(flatten)]
    call: CallArgs,
    /// Ask for the tenant's credentials too
    #[arg(long)]
    credentials: bool,
    /// Show the credentials' values in the table
    #[arg(long, requires = "credentials")]
    reveal: bool,
    /// The daemon's answer as it is, credentials in the clear when asked for
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: CallSocket,
}

pub(super) fn run(settings: &SettingsArgs, args: &ResolveArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let mut query = args.call.query();
    if args.credentials {
        query.push(("include".to_owned(), "credentials".to_owned()));
    }
    let reply = block_on(client.get(&client::target("/v1/resolve", &query), QUICK))??;
    if args.json {
        output::print_body(&reply.body)?;
        return Ok(reply.exit());
    }
    let answer = lookup::yes(&client, &reply)?;
    let mut text = lookup::answer(&answer);
    text.push_str(&prompts(&answer));
    if args.credentials {
        text.push_str(&credentials(&answer, args.reveal));
    }
    output::print(&text)?;
    Ok(Exit::Ok)
}

fn prompts(answer: &Value) -> String {
    let layers = answer.pointer("/prompt/layers").and_then(Value::as_array);
    let rows: Vec<_> = layers
        .into_iter()
        .flatten()
        .map(|layer| {
            let field = |name: &str| {
                cell(
                    &layer.get(name).map(output::plain).unwrap_or_default(),
                    Tone::Plain,
                )
            };
            vec![
                field("priority"),
                field("scope"),
                field("name"),
                field("version"),
                field("id"),
            ]
        })
        .collect();
    if rows.is_empty() {
        return output::heading("No prompt applies");
    }
    let mut text = output::heading("Prompts that apply, in the order of the stack");
    text.push_str(&output::table(
        &["priority", "scope", "name", "version", "id"],
        rows,
    ));
    text.push_str(&output::heading("System prompt"));
    text.push_str(&output::printable(
        answer
            .pointer("/prompt/system")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    ));
    text.push('\n');
    text
}

/// What stands for a value that nobody asked to see: its length tells nothing either.
const MASK: &str = "••••••••";

fn credentials(answer: &Value, reveal: bool) -> String {
    let mut rows = Vec::new();
    for (provider, names) in answer
        .get("credentials")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        for (name, value) in names.as_object().into_iter().flatten() {
            let shown = if reveal {
                cell(&output::plain(value), Tone::Plain)
            } else {
                cell(MASK, Tone::Dim)
            };
            rows.push(vec![
                cell(provider, Tone::Plain),
                cell(name, Tone::Plain),
                shown,
            ]);
        }
    }
    for withheld in answer
        .get("credentials_withheld")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (provider, name) = withheld
            .as_str()
            .and_then(|text| text.split_once('/'))
            .unwrap_or_default();
        let why = cell(
            "withheld, since it does not open (`sidetone explain`)",
            Tone::Bad,
        );
        rows.push(vec![
            cell(provider, Tone::Plain),
            cell(name, Tone::Plain),
            why,
        ]);
    }
    if rows.is_empty() {
        return output::heading(
            "The tenant has no credentials, or the access rules give none of them",
        );
    }
    let title = if reveal {
        "Credentials"
    } else {
        "Credentials (values are shown with --reveal)"
    };
    let mut text = output::heading(title);
    text.push_str(&output::table(&["provider", "name", "value"], rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Value {
        serde_json::json!({
            "credentials": {"openai": {"default": "sk-very-secret", "json": {"key": "k3y"}}},
            "credentials_withheld": ["google/tts"],
        })
    }

    #[test]
    fn a_secret_is_masked_until_it_is_asked_for_by_name() {
        let masked = credentials(&answer(), false);
        assert!(
            !masked.contains("sk-very") && !masked.contains("k3y"),
            "{masked}"
        );
        assert!(
            masked.contains(MASK)
                && masked.contains("google")
                && masked.contains("withheld, since it does not open"),
            "{masked}"
        );
        let revealed = credentials(&answer(), true);
        assert!(
            revealed.contains("sk-very-secret") && revealed.contains(r#"{"key":"k3y"}"#),
            "{revealed}"
        );
    }
}
