//! `sidetone run`: the daemon, until SIGTERM or Ctrl-C.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Exit, SettingsArgs};
use crate::config::{Config, Sources};
use crate::{daemon, log};

/// Nothing of its own: the settings say it all.
#[derive(Debug, clap::Args)]
pub struct RunArgs {}

pub(super) fn run(settings: &SettingsArgs) -> Result<Exit, CliError> {
    let config = settings.load()?;
    let sources = settings.sources();
    super::runtime(None)?.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::listen(&[SignalKind::interrupt(), SignalKind::terminate()])?;
        let told = stop.clone();
        tokio::spawn(async move {
            signals.any().await;
            told.cancel();
        });
        serve(config, Some(sources), stop).await.map(|()| Exit::Ok)
    })
}

/// Logs and answers until told to stop.
pub(super) async fn serve(
    config: Config,
    sources: Option<Sources>,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let log = log::init(&config.log).map_err(|err| CliError::below("run", Exit::Usage, err))?;
    daemon::run(config, log, sources, stop)
        .await
        .map_err(|err| CliError::below("run", Exit::No, err))
}

/// Whatever asks this process to end.
#[derive(Debug)]
pub(super) struct Signals(tokio::sync::watch::Receiver<bool>);

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    pub(super) fn listen(kinds: &[SignalKind]) -> Result<Self, CliError> {
        let (told, heard) = tokio::sync::watch::channel(false);
        for kind in kinds {
            let mut signal = signal(*kind).map_err(|source| CliError::Io {
                what: "cannot listen for signals".into(),
                source,
            })?;
            let told = told.clone();
            tokio::spawn(async move {
                signal.recv().await;
                told.send_replace(true);
            });
        }
        Ok(Self(heard))
    }

    /// Waits for the first of them.
    pub(super) async fn any(&self) {
        // The senders live as long as the runtime.
        let _ = self.0.clone().wait_for(|told| *told).await;
    }
}
