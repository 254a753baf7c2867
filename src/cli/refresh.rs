//! `sidetone refresh`: pull now, and wait until this node answers with what was found.

use std::time::Duration;

use serde_json::{Map, Value};

use super::client::{AdminSocket, QUICK};
use super::output;
use super::{CliError, Exit, SettingsArgs, block_on, lookup, status, verify};

/// Longest wait for a pull and a comparison of everything; the daemon has its own limits below it.
pub(super) const LONG: Duration = Duration::from_secs(600);

/// What to refresh.
#[derive(Debug, clap::Args)]
pub struct RefreshArgs {
    /// Only this tenant, by slug or id
    #[arg(long, value_name = "TENANT", conflicts_with = "number")]
    tenant: Option<String>,
    /// Only this number
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    number: Option<String>,
    /// Order it and do not wait
    #[arg(long)]
    no_wait: bool,
    /// Done only when this transaction is in (`select pg_current_xact_id()`)
    #[arg(long, value_name = "XID")]
    at_least: Option<u64>,
    /// Let a held loss through, or accept a database without a tenant in common
    #[arg(long)]
    accept_loss: bool,
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: AdminSocket,
}

impl RefreshArgs {
    fn body(&self) -> Value {
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        match (&self.tenant, &self.number) {
            (Some(tenant), _) => set("tenant", tenant.as_str().into()),
            (None, Some(number)) => set("number", number.as_str().into()),
            (None, None) => set("scope", "all".into()),
        };
        set("wait", (!self.no_wait).into());
        if let Some(xid) = self.at_least {
            set("at_least", xid.to_string().into());
        }
        if self.accept_loss {
            set("accept_loss", true.into());
        }
        Value::Object(body)
    }
}

pub(super) fn run(settings: &SettingsArgs, args: &RefreshArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let body = args.body();
    let order = |limit| client.post("/v1/admin/refresh", &body, limit);
    let reply = if args.no_wait {
        block_on(order(QUICK))??
    } else {
        block_on(verify::with_progress("pulling", order(LONG)))??
    };
    let held = |answer: &Value| answer.get("held").and_then(Value::as_bool).unwrap_or(false);
    if args.json {
        output::print_body(&reply.body)?;
        let answer = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
        return Ok(if reply.is_ok() && held(&answer) {
            Exit::No
        } else {
            reply.exit()
        });
    }
    let answer = lookup::yes(&client, &reply)?;
    output::print(&if args.no_wait {
        "ordered\n".to_owned()
    } else {
        status::snapshot(&answer)
    })?;
    if held(&answer) {
        return Err(CliError::Answer {
            message: "a loss is held back: Postgres no longer has rows that this node still answers with; \
                      look at `sidetone status`, and if that is right, refresh with --accept-loss"
                .to_owned(),
            exit: Exit::No,
        });
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapped {
        #[command(flatten)]
        refresh: RefreshArgs,
    }

    fn body(args: &[&str]) -> String {
        let args = std::iter::once("x").chain(args.iter().copied());
        Wrapped::try_parse_from(args)
            .unwrap()
            .refresh
            .body()
            .to_string()
    }

    #[test]
    fn the_flags_become_the_order_of_the_contract() {
        assert_eq!(body(&[]), r#"{"scope":"all","wait":true}"#);
        assert_eq!(
            body(&["--tenant", "acme", "--no-wait"]),
            r#"{"tenant":"acme","wait":false}"#
        );
        assert_eq!(
            body(&["--number", "+1415", "--at-least", "77", "--accept-loss"]),
            r#"{"accept_loss":true,"at_least":"77","number":"+1415","wait":true}"#
        );
    }
}
