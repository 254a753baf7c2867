//! `sidetone open`: what a `data_ciphertext` holds, for the row it was sealed for.

use super::output;
use super::seal::{RowArgs, input};
use super::{CliError, Exit, SettingsArgs};

/// What to open.
#[derive(Debug, clap::Args)]
pub struct OpenArgs {
    #[command(flatten)]
    row: RowArgs,
}

pub(super) fn run(settings: &SettingsArgs, args: &OpenArgs) -> Result<Exit, CliError> {
    let (ring, raw) = args.row.keyring(settings)?;
    let sealed = input("the sealed value")?;
    let opened = ring
        .open(&sealed, &args.row.context(), raw.as_deref())
        .map_err(|err| CliError::below("standard input", Exit::No, err))?;
    output::print_body(opened.secret.expose().as_bytes())?;
    Ok(Exit::Ok)
}
