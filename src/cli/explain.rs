//! `sidetone explain`: each prompt and binding, chosen or not, and why; each field and the row it came from.

use serde_json::Value;

use super::call::CallArgs;
use super::client::{self, CallSocket, QUICK};
use super::output;
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

pub(super) fn explanation(answer: &Value) -> String {
    status::snapshot(answer)
}
