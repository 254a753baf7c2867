//! `sidetone seal`: a secret on standard input, never in the arguments, becomes what `data_ciphertext` holds.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::output;
use super::{CliError, Exit, SettingsArgs};
use crate::seal::{Context, Keyring};

/// Most bytes taken from standard input.
const MOST_BYTES: u64 = 1024 * 1024;

/// The row a value is sealed for, and the keys.
#[derive(Debug, clap::Args)]
pub struct RowArgs {
    /// Id of the tenant whose credential it is
    #[arg(long, value_name = "UUID")]
    pub tenant: Uuid,
    /// Provider, as in the row
    #[arg(long)]
    pub provider: String,
    /// Name, as in the row
    #[arg(long)]
    pub name: String,
    /// Keyring file [default: keys.file of the settings]
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
}

impl RowArgs {
    /// The row.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        Context {
            tenant: self.tenant,
            provider: &self.provider,
            name: &self.name,
        }
    }

    /// The keyring, and the id of the key of the form without context.
    ///
    /// # Errors
    /// When settings or keyring cannot be used.
    pub fn keyring(&self, settings: &SettingsArgs) -> Result<(Keyring, Option<String>), CliError> {
        let (path, raw) = match &self.keys {
            Some(path) => (
                path.clone(),
                settings
                    .load()
                    .map(|config| config.keys.raw)
                    .unwrap_or_default(),
            ),
            None => {
                let keys = settings.load()?.keys;
                (keys.file, keys.raw)
            }
        };
        let ring = Keyring::load(&path)?;
        Ok((ring, Some(raw).filter(|raw| !raw.is_empty())))
    }
}

/// What to seal.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The value may be JSON; it is then given to callers as JSON. One line break at its end is dropped.\n\n\
    Example:\n  sidetone seal --tenant 6f717b5a-1a2b-4c3d-9e8f-112233445566 --provider openai --name default < key.txt"
)]
pub struct SealArgs {
    #[command(flatten)]
    row: RowArgs,
}

pub(super) fn run(settings: &SettingsArgs, args: &SealArgs) -> Result<Exit, CliError> {
    let (ring, _) = args.row.keyring(settings)?;
    let secret = input("the secret")?;
    let sealed = ring
        .seal_jwe(&secret, &args.row.context())
        .map_err(|err| CliError::below("standard input", Exit::No, err))?;
    output::print(&format!("{sealed}\n"))?;
    Ok(Exit::Ok)
}

/// Standard input as text, without the line break at its end.
pub(super) fn input(what: &str) -> Result<Zeroizing<String>, CliError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        anstream::eprintln!("sidetone: type {what}, then Ctrl-D on a line of its own");
    }
    let mut text = Zeroizing::new(String::with_capacity(64 * 1024));
    stdin
        .lock()
        .take(MOST_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => {
                CliError::Usage(format!("standard input: {what} must be UTF-8 text"))
            }
            _ => CliError::Io {
                what: "standard input: cannot be read".into(),
                source,
            },
        })?;
    let kept = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| {
            line.strip_suffix('\r').unwrap_or(line)
        })
        .len();
    text.truncate(kept);
    if text.is_empty() {
        return Err(CliError::Usage(format!(
            "standard input is empty; {what} is read from it"
        )));
    }
    Ok(text)
}
