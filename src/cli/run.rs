//! `sidetone run`: the daemon, until SIGTERM or Ctrl-C.

use tokio_util::sync::CancellationToken;

use super::{CliError, Exit, SettingsArgs};
use crate::config::Config;

/// Nothing of its own: the settings say it all.
#[derive(Debug, clap::Args)]
pub struct RunArgs {}

pub(super) fn run(settings: &SettingsArgs, _args: RunArgs) -> Result<Exit, CliError> {
    let _config = settings.load()?;
    Err(CliError::Usage("not built yet".into()))
}

pub(super) async fn serve(_config: Config, stop: CancellationToken) -> Result<(), CliError> {
    stop.cancelled().await;
    Ok(())
}
