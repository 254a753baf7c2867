//! `sidetone migrate`: the database's schema brought up to what this program needs.

use std::error::Error as _;

use sqlx::Connection as _;

use super::output;
use super::verify::with_progress;
use super::{CliError, Exit, SettingsArgs, block_on};
use crate::source::inspect::connect;
use crate::source::migrate::{self, SCHEMA_VERSION};
use crate::source::{SourceError, Target};

/// Which database.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Migrations are run by the owner of the tables, not by the daemon's role: name its URL here. \
    Afterwards run deploy/sql/roles.sql again, which grants what the daemon reads."
)]
pub struct MigrateArgs {
    /// URL of the database, without a password [default: postgres.url of the settings]
    #[arg(long, value_name = "URL", conflicts_with = "url_file")]
    url: Option<String>,
    /// File that holds the URL, password included
    #[arg(long, value_name = "FILE")]
    url_file: Option<std::path::PathBuf>,
    /// List what would be applied and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(settings: &SettingsArgs, args: &MigrateArgs) -> Result<Exit, CliError> {
    let mut sources = settings.sources();
    let (url, file) = (
        args.url.clone(),
        args.url_file
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned()),
    );
    if url.is_some() || file.is_some() {
        // Both, so that a flag goes over whichever of the two the settings have.
        sources
            .flags
            .push(("postgres.url".to_owned(), url.unwrap_or_default()));
        sources
            .flags
            .push(("postgres.url_file".to_owned(), file.unwrap_or_default()));
    }
    let config = crate::config::Config::load(&sources)?;
    let target = Target::new(&config.postgres, &config.node_name())
        .map_err(|err| CliError::below("migrate", Exit::Usage, err))?;
    block_on(apply(&target, args.dry_run))?
}

async fn apply(target: &Target, dry_run: bool) -> Result<Exit, CliError> {
    let mut conn = connect(target).await.map_err(|err| {
        let exit = if matches!(err, SourceError::Rejected { .. }) {
            Exit::Refused
        } else {
            Exit::Unreachable
        };
        CliError::below("migrate", exit, err)
    })?;
    let asked =
        |err: sqlx::Error| CliError::below(format!("migrate {}", target.place), Exit::No, err);
    let pending = migrate::pending(&mut conn).await.map_err(asked)?;
    if pending.is_empty() {
        output::print(&format!(
            "{}: schema {SCHEMA_VERSION}, nothing to do\n",
            target.place
        ))?;
    } else if dry_run {
        output::print(&format!("{}: would be applied\n", target.place))?;
    } else {
        with_progress("migrating", migrate::run(&mut conn))
            .await
            .map_err(|err| {
                let exit = if is_forbidden(&err) {
                    Exit::Refused
                } else {
                    Exit::No
                };
                CliError::below(format!("migrate {}", target.place), exit, err)
            })?;
        output::print(&format!("{}: applied\n", target.place))?;
    }
    for step in pending {
        output::print(&format!("  {:04} {}\n", step.version, step.what))?;
    }
    // What was to be done is done; how the connection ends changes nothing.
    let _ = conn.close().await;
    Ok(Exit::Ok)
}

/// SQLSTATE 42501, insufficient privilege.
fn is_forbidden(err: &sqlx::migrate::MigrateError) -> bool {
    let mut cause = err.source();
    while let Some(err) = cause {
        if let Some(sqlx::Error::Database(db)) = err.downcast_ref::<sqlx::Error>() {
            return db.code().as_deref() == Some("42501");
        }
        cause = err.source();
    }
    false
}
