//! `sidetone keygen`: a new keyring, or a new key in an old one. No key is ever printed.

use std::path::PathBuf;

use super::output;
use super::{CliError, Exit, SettingsArgs};
use crate::seal::{Keyring, Write, read_keyring, write_keyring};

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
}

pub(super) fn run(settings: &SettingsArgs, args: &KeygenArgs) -> Result<Exit, CliError> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => settings.load()?.keys.file,
    };
    let told = path.display();
    let failed = |err| CliError::below(format!("keyring {told}"), Exit::No, err);
    if args.add {
        let text = read_keyring(&path)?;
        let ring = Keyring::parse(&text).map_err(failed)?;
        let id = args.id.clone().unwrap_or_else(|| next_id(ring.ids()));
        let text = Keyring::add(&text, &id).map_err(failed)?;
        write_keyring(&path, &text, Write::Replace)?;
        output::print(&format!(
            "{told}: {id} is in and seals from now on. Copy the file to every node and run `systemctl restart sidetone` \
             before you seal anything with it.\n"
        ))?;
    } else {
        let id = args.id.as_deref().unwrap_or("k1");
        let text = Keyring::generate(id).map_err(failed)?;
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
