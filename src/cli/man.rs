//! `sidetone man`: the manual pages, one per subcommand.

use std::path::{Path, PathBuf};

use clap::CommandFactory;

use super::output;
use super::{Args, CliError, Exit};

/// Where the pages go.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write sidetone.1 and a page per subcommand into this directory [default: print sidetone.1]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &ManArgs) -> Result<Exit, CliError> {
    let mut command = Args::command();
    command.build();
    match &args.dir {
        None => output::print_body(page(&command, "sidetone")?.trim_ascii_end())?,
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|source| write_error(dir, source))?;
            write(dir, &command, "sidetone")?;
            for sub in command
                .get_subcommands()
                .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
            {
                write(dir, sub, &format!("sidetone-{}", sub.get_name()))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn write(dir: &Path, command: &clap::Command, name: &str) -> Result<(), CliError> {
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?).map_err(|source| write_error(&path, source))
}

fn page(command: &clap::Command, name: &str) -> Result<Vec<u8>, CliError> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut text)
        .map_err(|source| CliError::Io {
            what: format!("manual page {name}: cannot be made"),
            source,
        })?;
    Ok(text)
}

fn write_error(path: &Path, source: std::io::Error) -> CliError {
    CliError::Io {
        what: format!("{}: cannot be written", path.display()),
        source,
    }
}
