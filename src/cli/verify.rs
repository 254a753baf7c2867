//! `sidetone verify`: the node's rows compared with Postgres, and repaired.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::AdminSocket;
use super::output;
use super::refresh::LONG;
use super::{CliError, Exit, SettingsArgs, block_on, lookup, status};

/// On which node.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: AdminSocket,
}

pub(super) fn run(settings: &SettingsArgs, args: &VerifyArgs) -> Result<Exit, CliError> {
    let client = args.socket.client(settings)?;
    let nothing = serde_json::json!({});
    let ask = with_progress("comparing", client.post("/v1/admin/verify", &nothing, LONG));
    let reply = block_on(ask)??;
    let found = |answer: &Value| {
        answer
            .get("differences")
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    if args.json {
        output::print_body(&reply.body)?;
        let answer = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
        return Ok(if reply.is_ok() && found(&answer) > 0 {
            Exit::No
        } else {
            reply.exit()
        });
    }
    let answer = lookup::yes(&client, &reply)?;
    output::print(&status::snapshot(&answer))?;
    match found(&answer) {
        0 => Ok(Exit::Ok),
        differences => Err(CliError::Answer {
            message: format!(
                "{differences} rows differed from Postgres; repaired unless a loss is held back (`sidetone status`)"
            ),
            exit: Exit::No,
        }),
    }
}

/// Waits with a spinner for people, and with one line on standard error for logs.
pub(super) async fn with_progress<F: Future>(doing: &'static str, work: F) -> F::Output {
    if !output::progress_is_seen() {
        anstream::eprintln!("sidetone: {doing}");
        return work.await;
    }
    let bar = ProgressBar::new_spinner().with_message(doing);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    bar.finish_and_clear();
    done
}
