//! `sidetone lookup`: the short view of an answer, or one field of it.

use clap::ValueEnum;
use comfy_table::Cell;
use serde_json::Value;

use super::call::CallArgs;
use super::client::{self, CallSocket, Client, QUICK, Reply};
use super::output::{self, Tone, cell};
use super::{CliError, Exit, SettingsArgs, block_on};
use crate::answer::Field;

/// What to look up.
#[derive(Debug, clap::Args)]
pub struct LookupArgs {
    #[command(flatten)]
    call: CallArgs,
    /// One field alone, such as language or tenant_slug
    #[arg(long, value_name = "NAME", conflicts_with_all = ["format", "json"])]
    field: Option<String>,
    /// The daemon's answer as it is
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    #[command(flatten)]
    socket: CallSocket,
}

/// How the daemon writes an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line of JSON
    Json,
    /// key=value&…
    Form,
}

pub(super) fn run(settings: &SettingsArgs, args: &LookupArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let mut query = args.call.query();
    let path = match &args.field {
        Some(field) => format!("/v1/lookup/{}", client::segment(field)),
        None => "/v1/lookup".to_owned(),
    };
    if args.format == Some(Format::Form) {
        query.push(("format".to_owned(), "form".to_owned()));
    }
    let reply = block_on(client.get(&client::target(&path, &query), QUICK))??;
    if let Some(field) = &args.field
        && !reply.is_ok()
    {
        if reply.said("status").as_deref() == Some("no_such_route") {
            let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
            return Err(CliError::Usage(format!(
                "--field: no field {field}; there are {}",
                names.join(", ")
            )));
        }
        // A field that is refused says nothing but a number; the whole answer says why.
        let whole = if reply.body.is_empty() {
            Some(block_on(
                client.get(&client::target("/v1/lookup", &query), QUICK),
            )??)
        } else {
            None
        };
        return Err(whole
            .filter(|whole| !whole.is_ok())
            .unwrap_or(reply)
            .refusal());
    }
    if args.json || args.format.is_some() || args.field.is_some() {
        output::print_body(&reply.body)?;
        return Ok(reply.exit());
    }
    output::print(&answer(&yes(&client, &reply)?))?;
    Ok(Exit::Ok)
}

/// The answer, when it is one.
pub(super) fn yes(client: &Client, reply: &Reply) -> Result<Value, CliError> {
    if reply.is_ok() {
        reply.json(client)
    } else {
        Err(reply.refusal())
    }
}

/// The fields of an answer in the order people ask for them.
const FIELDS: [&str; 16] = [
    "number",
    "label",
    "tenant",
    "account_ref",
    "event_type",
    "language",
    "voice",
    "timezone",
    "local_time",
    "business_hours",
    "model",
    "transcription_provider",
    "recording_enabled",
    "revision",
    "stale",
    "staleness_ms",
];

/// What both views of an answer hold, as a table.
pub(super) fn answer(answer: &Value) -> String {
    let rows = FIELDS.iter().filter_map(|name| {
        let value = answer.get(name)?;
        let cell = match *name {
            "tenant" => tenant(value),
            "stale" => match value.as_bool() {
                Some(true) => cell(
                    "yes: level with Postgres was last proved too long ago",
                    Tone::Warn,
                ),
                _ => cell("no", Tone::Good),
            },
            "staleness_ms" => match value.as_u64() {
                Some(ms) => cell(&output::duration(ms), Tone::Plain),
                None => cell(&output::plain(value), Tone::Plain),
            },
            "business_hours" => match value.as_str() {
                Some("open") => cell("open", Tone::Good),
                Some("closed") => cell("closed", Tone::Warn),
                _ => cell("none configured", Tone::Dim),
            },
            _ => cell(&output::plain(value), Tone::Plain),
        };
        Some((*name, cell))
    });
    output::facts(rows)
}

fn tenant(value: &Value) -> Cell {
    let part = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    cell(
        &format!("{} ({}, {})", part("name"), part("slug"), part("id")),
        Tone::Plain,
    )
}
