//! `sidetone keygen`: a new keyring, or a new key in an old one. No key is ever printed.

use std::path::PathBuf;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::output;
use super::{CliError, Exit, SettingsArgs};
use crate::seal::{Keyring, KeyringFault, Write, expiry, read_keyring, write_keyring};

/// Where the key goes.
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {
    /// Keyring file [default: keys.file of the settings]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Id of the new key [default: k1, or with --add the next free k<n>]
    #[arg(long)]
    id: Option<String>,
    /// Add the key to the keyring and seal with it from now on; the old keys go on opening
    #[arg(long)]
    add: bool,
    /// When the new key is to be out of use: a date such as 2027-01-01, or a time as of RFC 3339. It goes on opening
    /// then; `check`, the metrics and an alert tell
    #[arg(long, value_name = "DATE", value_parser = in_future)]
    expires: Option<Timestamp>,
}

fn in_future(text: &str) -> Result<Timestamp, &'static str> {
    match expiry(text) {
        None => Err("must be a date such as 2027-01-01, or a time such as 2027-01-01T00:00:00Z"),
        Some(at) if at <= Timestamp::now() => Err("lies in the past"),
        Some(at) => Ok(at),
    }
}

pub(super) fn run(settings: &SettingsArgs, args: &KeygenArgs) -> Result<Exit, CliError> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => settings.load()?.keys.file,
    };
    let told = path.display();
    let failed = |err| CliError::below(format!("keyring {told}"), Exit::No, err);
    let dated = |text: Zeroizing<String>, id: &str| match args.expires {
        Some(at) => Keyring::expiring(&text, id, at),
        None => Ok::<_, KeyringFault>(text),
    };
    if args.add {
        let text = read_keyring(&path)?;
        let ring = Keyring::parse(&text).map_err(failed)?;
        let id = args.id.clone().unwrap_or_else(|| next_id(ring.ids()));
        let text = Keyring::add(&text, &id)
            .and_then(|text| dated(text, &id))
            .map_err(failed)?;
        write_keyring(&path, &text, Write::Replace)?;
        output::print(&format!(
            "{told}: {id} is in and seals from now on. Copy the file to every node and run `systemctl restart sidetone` \
             before you seal anything with it.\n"
        ))?;
    } else {
        let id = args.id.as_deref().unwrap_or("k1");
        let text = Keyring::generate(id)
            .and_then(|text| dated(text, id))
            .map_err(failed)?;
        write_keyring(&path, &text, Write::New)?;
        output::print(&format!(
            "{told}: made, {id} seals. Every node that is to open what it seals needs the same file.\n"
        ))?;
    }
    Ok(Exit::Ok)
}

/// The next `k<n>` after those in use.
fn next_id<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let highest = ids
        .filter_map(|id| id.strip_prefix('k')?.parse::<u32>().ok())
        .max()
        .unwrap_or(0);
    format!("k{}", highest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_key_is_numbered_after_the_highest() {
        assert_eq!(next_id(["k1", "k10", "old", "k2"].into_iter()), "k11");
        assert_eq!(next_id(std::iter::empty()), "k1");
    }
}
