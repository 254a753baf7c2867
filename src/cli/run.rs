//! `sidetone run`: the daemon, until SIGTERM or Ctrl-C.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Exit, SettingsArgs};
use crate::config::{Config, Sources};
use crate::daemon::{self, DaemonError};
use crate::http::BindError;
use crate::log;

/// Nothing of its own: the settings say it all.
#[derive(Debug, clap::Args)]
pub struct RunArgs {}

pub(super) fn run(settings: &SettingsArgs) -> Result<Exit, CliError> {
    let config = settings.load()?;
    let sources = settings.sources();
    let runtime = super::runtime(None)?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = Signals::listen(&[SignalKind::interrupt(), SignalKind::terminate()])?;
        let told = async {
            signals.times(1).await;
            stop.cancel();
            signals.times(2).await;
        };
        tokio::select! {
            ended = serve(config, Some(sources), stop.clone()) => ended.map(|()| Some(Exit::Ok)),
            () = told => Ok(None),
        }
    })?;
    ended.ok_or_else(|| {
        // Waits for nothing that still runs.
        runtime.shutdown_background();
        CliError::Answer {
            message: "told to stop a second time; ended without draining".to_owned(),
            exit: Exit::No,
        }
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
        .map_err(|err| CliError::below("run", exit(&err), err))
}

/// What no retry can mend stands in the settings.
fn exit(err: &DaemonError) -> Exit {
    match err {
        DaemonError::RawKey(_)
        | DaemonError::Traces(_)
        | DaemonError::Target(_)
        | DaemonError::Bind(BindError::Access(_) | BindError::NoGroup { .. }) => Exit::Usage,
        _ => Exit::No,
    }
}

/// How often this process was asked to end.
#[derive(Debug)]
pub(super) struct Signals(tokio::sync::watch::Receiver<u32>);

impl Signals {
    /// From here on these signals no longer end the process by themselves.
    pub(super) fn listen(kinds: &[SignalKind]) -> Result<Self, CliError> {
        let (told, heard) = tokio::sync::watch::channel(0_u32);
        for kind in kinds {
            let mut signal = signal(*kind).map_err(|source| CliError::Io {
                what: "cannot listen for signals".into(),
                source,
            })?;
            let told = told.clone();
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    told.send_modify(|times| *times = times.saturating_add(1));
                }
            });
        }
        Ok(Self(heard))
    }

    /// Waits until it was asked so often.
    pub(super) async fn times(&self, times: u32) {
        // The senders live as long as the runtime.
        let _ = self.0.clone().wait_for(|told| *told >= times).await;
    }
}
